"""``stepflow-trio validate``: everything that can be known to be wrong without running anything."""

from __future__ import annotations

from pathlib import Path

from stepflow_trio.cli.configuration import read_configuration
from stepflow_trio.cli.exits import MISUSED
from stepflow_trio.cli.plain_text import count, plain_lines
from stepflow_trio.cli.route_check import unreachable_steps
from stepflow_trio.cli.standard_output import write_line
from stepflow_trio.errors import ConfigError, FlowInvalid
from stepflow_trio.flows.diagnostics import Diagnostic
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.reader import read_flow_file
from stepflow_trio.runtime.config import Config


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
        errors += map(str, unreachable_steps(flow, flow_path, config))
    for text in [*warnings, *errors]:
        for line in plain_lines(text):
            write_line(line)
    write_line(f"{flow_path}: {count(len(errors), 'error')}, {count(len(warnings), 'warning')}")
    return MISUSED if errors else 0
