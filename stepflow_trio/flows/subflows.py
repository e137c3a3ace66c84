"""Flows that stand inside a flow, as what a builtin component is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec

from stepflow_trio.flows.diagnostics import DiagnosticKind, Finding
from stepflow_trio.flows.expressions import Constant, Expression, Literal, ObjectOf
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.paths import JsonPath
from stepflow_trio.protocol import blobs

__all__ = ["finding_inside", "literal_flows"]

_FLOW_FIELD = {
    "/builtin/put_blob": "data",
    "/put_blob": "data",
    "/builtin/map": "workflow",
    "/builtin/iterate": "flow",
}
"""The member of a component's input that is a flow; of ``put_blob``, where ``blob_type`` says so."""

_FOUND_IN_ANY_FLOW = range(3000, 3100)
"""The codes of the public releases, which they give to a flow inside another as well."""


def literal_flows(flow: Flow) -> Iterator[tuple[JsonPath, Any]]:
    """The flows that are written out as members of the inputs of a flow's steps, each with its path."""
    for position, step in enumerate(flow.steps):
        field = _FLOW_FIELD.get(step.component)
        if field is None:
            continue
        members = dict(_members(step.input))
        if field == "data" and not _is_flow_type(members.get("blob_type")):
            continue
        path = ("steps", position, "input", field)
        match members.get(field):
            case Constant(value=value):
                yield path, value
            case Literal(value=value):
                yield (*path, "$literal"), value
            case _:
                pass


def finding_inside(finding: Finding, path: JsonPath) -> Finding:
    """What was found in a flow that is at ``path`` of another, as a finding of that one.

    What makes the inner flow unreadable is an error of the outer one, which itself can be read.
    """
    inside = msgspec.structs.replace(finding, path=(*path, *finding.path))
    if finding.kind.level != "fatal" or finding.kind.code in _FOUND_IN_ANY_FLOW:
        return inside
    message = f"this cannot be read as a flow: {finding.message}"
    return msgspec.structs.replace(
        inside,
        kind=DiagnosticKind.INVALID_SUBFLOW_LITERAL,
        message=message,
        data={"error": finding.message},
    )


def _members(expression: Expression) -> Iterator[tuple[str, Expression]]:
    match expression:
        case ObjectOf(keys=keys, values=values):
            yield from zip(keys, values, strict=True)
        case Constant(value=value) if isinstance(value, dict):
            for name, member in cast("dict[str, Any]", value).items():
                yield name, Constant(member)
        case _:
            pass


def _is_flow_type(expression: Expression | None) -> bool:
    match expression:
        case Constant(value=str(name)) | Literal(value=str(name)):
            return blobs.normalize_blob_type(name) == blobs.FLOW
        case _:
            return False
