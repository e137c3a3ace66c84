"""``stepflow-trio validate``: everything that can be known to be wrong without running anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from stepflow_trio.cli.configuration import read_configuration
from stepflow_trio.cli.exits import MISUSED
from stepflow_trio.cli.plain_text import count, plain_lines
from stepflow_trio.cli.standard_output import write_line
from stepflow_trio.errors import ConfigError, FlowInvalid, RpcError
from stepflow_trio.flows.diagnostics import Diagnostic
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.reader import read_flow_file
from stepflow_trio.flows.source import read_source
from stepflow_trio.runtime.config import Config
from stepflow_trio.runtime.routing import Router


def validate_files(flow_path: str, config_path: str | None) -> int:
    """Print what is wrong with a flow and its configuration, and return the exit code."""
    flow: Flow | None = None
    config: Config | None = None
    errors: list[str] = []
    warnings: list[str] = []
    try:
        flow = read_flow_file(flow_path)
        found: tuple[Diagnostic, ...] = flow.warnings
    except FlowInvalid as exc:
        found = exc.diagnostics
    for diagnostic in found:
        (warnings if diagnostic.level == "warning" else errors).append(str(diagnostic))
    try:
        config = read_configuration(config_path, beside=Path(flow_path))
    except ConfigError as exc:
        errors.append(f"error: {exc}" if not exc.place else str(exc))
    else:
        warnings += config.warnings
    if flow is not None and config is not None:
        errors += _unreachable_components(flow, flow_path, config)
    for text in [*warnings, *errors]:
        for line in plain_lines(text):
            write_line(line)
    write_line(f"{flow_path}: {count(len(errors), 'error')}, {count(len(warnings), 'warning')}")
    return MISUSED if errors else 0


def _unreachable_components(flow: Flow, flow_path: str, config: Config) -> Iterator[str]:
    # Conditions look at a step's input, which nobody knows yet: they are taken to hold.
    routes = [
        replace(route, rules=tuple(replace(rule, conditions=()) for rule in route.rules))
        for route in config.routes
    ]
    router = Router(routes)
    source = read_source(Path(flow_path).read_bytes(), name=flow_path)
    for index, step in enumerate(flow.steps):
        try:
            router.resolve(step.component, None)
        except RpcError as exc:
            yield f"{source.place(('steps', index, 'component'))}: error: {exc.message}"
