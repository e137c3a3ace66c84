"""Reading a flow: from a file, a text or a plain value to a `Flow`, or to all that is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from stepflow_trio.errors import FlowInvalid
from stepflow_trio.flows.diagnostics import Diagnostic, DiagnosticKind, Finding
from stepflow_trio.flows.flow_shape import path_as_written, shape_flow
from stepflow_trio.flows.json_keys import keys_are_inputs
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.references import check_references
from stepflow_trio.flows.schemas import check_flow_schemas
from stepflow_trio.flows.source import Source, read_source, source_of_value
from stepflow_trio.flows.source_text import SourceLimits
from stepflow_trio.flows.subflows import finding_inside, literal_flows

__all__ = [
    "FlowReading",
    "examine_flow",
    "examine_flow_file",
    "examine_flow_json",
    "flow_from_json",
    "read_flow",
    "read_flow_file",
]

_MAX_DIAGNOSTICS = 1000
"""More than anyone reads, and a bound on the work for a text that is wrong everywhere."""


class FlowReading(msgspec.Struct, frozen=True):
    """What came of reading a flow."""

    flow: Flow | None
    """None if there is a fatal diagnostic."""
    diagnostics: tuple[Diagnostic, ...]
    """Everything found, warnings included, in the order of the source."""
    source: Source | None = None
    """Gives further findings their places; None if there was no text that could be read."""

    def runnable_flow(self) -> Flow:
        """The flow; raises `FlowInvalid` with every error if there is one."""
        errors = [found for found in self.diagnostics if found.level != "warning"]
        if errors or self.flow is None:
            raise FlowInvalid(errors)
        return self.flow


def read_flow(text: str | bytes, *, name: str = "<flow>", limits: SourceLimits | None = None) -> Flow:
    """Read a flow from YAML 1.2 or JSON text.

    ``name`` is the source's name in diagnostics; one that ends in ``.json`` makes JSON the only format.
    Raises `FlowInvalid` with everything that is wrong, each with its line, column and JSON path; what is
    merely odd is in the flow's ``warnings``.
    """
    return examine_flow(text, name=name, limits=limits).runnable_flow()


def read_flow_file(path: str | os.PathLike[str], *, limits: SourceLimits | None = None) -> Flow:
    """Read a flow from a file, as `read_flow` does; a file that cannot be read is a `FlowInvalid` too."""
    return examine_flow_file(path, limits=limits).runnable_flow()


def flow_from_json(value: Any, *, name: str = "<flow>") -> Flow:
    """Make a flow of a plain value: dicts, lists, strings, numbers, booleans and None.

    Its parts are shared with the flow, so it must not be changed afterwards. Raises `FlowInvalid` like
    `read_flow`, with JSON paths in place of lines.
    """
    return examine_flow_json(value, name=name).runnable_flow()


def examine_flow(
    text: str | bytes, *, name: str = "<flow>", limits: SourceLimits | None = None
) -> FlowReading:
    """Read a text and say everything that was found, warnings included; bad text raises nothing."""
    try:
        source = read_source(text, name=name, limits=limits, json_keys_at=keys_are_inputs)
    except FlowInvalid as exc:
        return FlowReading(None, exc.diagnostics)
    return _examine(source)


def examine_flow_file(path: str | os.PathLike[str], *, limits: SourceLimits | None = None) -> FlowReading:
    """Read a file and say everything that was found; one that cannot be read raises nothing either."""
    limits = limits or SourceLimits()
    name = os.fspath(path)
    try:
        with Path(name).open("rb") as file:
            text = file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        unreadable = Finding(DiagnosticKind.UNREADABLE, f"the file cannot be read: {why}")
        return FlowReading(None, (Source(name, None).diagnostic(unreadable),))
    return examine_flow(text, name=name, limits=limits)


def examine_flow_json(value: Any, *, name: str = "<flow>") -> FlowReading:
    """Take a plain value and say everything that was found, warnings included; a bad value raises nothing."""
    try:
        source = source_of_value(value, name=name)
    except FlowInvalid as exc:
        return FlowReading(None, exc.diagnostics)
    return _examine(source)


def _examine(source: Source) -> FlowReading:
    findings: list[Finding] = []
    flow = _read_value(source.value, findings)
    if not (flow.name or "").strip():
        findings.append(Finding(DiagnosticKind.MISSING_FLOW_NAME, "the flow has no name", ("name",)))
    if flow.description is None:
        no_description = "the flow has no description"
        findings.append(Finding(DiagnosticKind.MISSING_FLOW_DESCRIPTION, no_description, ("description",)))
    # The graver first, so that the bound never cuts an error off in favour of a warning.
    findings.sort(key=lambda finding: -(finding.kind.code // 1000))
    if len(findings) > _MAX_DIAGNOSTICS:
        rest = f"{len(findings) - _MAX_DIAGNOSTICS:,} more findings are not shown"
        findings[_MAX_DIAGNOSTICS:] = [Finding(findings[_MAX_DIAGNOSTICS].kind, rest)]
    found = [*source.diagnostics, *map(source.diagnostic, findings)]
    found.sort(key=lambda diagnostic: (diagnostic.place.line, diagnostic.place.column))
    if any(diagnostic.level == "fatal" for diagnostic in found):
        return FlowReading(None, tuple(found), source)
    warnings = tuple(diagnostic for diagnostic in found if diagnostic.level == "warning")
    return FlowReading(msgspec.structs.replace(flow, warnings=warnings), tuple(found), source)


def _read_value(value: Any, findings: list[Finding]) -> Flow:
    """The flow that a value describes, and what is wrong with it and with the flows that stand in it."""
    flow = shape_flow(value, findings.append)
    findings.extend(check_references(flow))
    findings.extend(
        msgspec.structs.replace(finding, path=path_as_written(value, finding.path))
        for finding in check_flow_schemas(flow.schemas)
    )
    for path, inner in literal_flows(flow):
        inside: list[Finding] = []
        _read_value(inner, inside)
        findings.extend(finding_inside(finding, path) for finding in inside)
    return flow
