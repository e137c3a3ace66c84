"""``stepflow-trio validate``: everything that can be known to be wrong without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stepflow_trio.cli.configuration import read_configuration
from stepflow_trio.cli.exits import FAILED, MISUSED
from stepflow_trio.cli.notices import speaks_json
from stepflow_trio.cli.plain_text import count, plain_lines
from stepflow_trio.cli.route_check import unreachable_steps
from stepflow_trio.cli.standard_output import write_json, write_line
from stepflow_trio.errors import ConfigError
from stepflow_trio.flows.diagnostics import Diagnostic, DiagnosticKind, Place
from stepflow_trio.flows.reader import examine_flow_file
from stepflow_trio.runtime.config import Config


def validate_files(
    flow_path: str,
    config_path: str | None,
    *,
    type_check: bool = False,
    strict: bool = False,
) -> int:
    """Print what is wrong with a flow and its configuration, and return the exit code.

    With ``--json`` that is one object: of the flow what the REST API says of it, beside it the same of the
    configuration, and the plugins that could not be asked.

    With ``type_check`` the workers are started, to be asked what their components take and return; where one
    that the flow needs cannot be asked, the exit code says that the command could not be carried out.

    Raises:
        Interrupted: a signal came while workers were asked; no worker is left.
    """
    reading = examine_flow_file(flow_path)
    found = list(reading.diagnostics)
    config: Config | None = None
    of_config: list[Diagnostic] = []
    problems: list[str] = []
    try:
        config = read_configuration(config_path, beside=Path(flow_path))
        of_config = _of_configuration(config)
    except ConfigError as exc:
        of_config = _as_diagnostics(exc)
    flow, is_right = reading.flow, not any(map(_is_error, found))
    if flow is not None and is_right and config is not None:
        found += unreachable_steps(flow, flow_path, config)
        if type_check and reading.source is not None:
            from stepflow_trio.cli.type_checking import check_flow_types  # here: most need no runtime

            try:
                checked = check_flow_types(flow, reading.source, config, strict=strict)
            except ConfigError as exc:
                of_config += _as_diagnostics(exc)
            else:
                found += checked.diagnostics
                problems = checked.problems
    if speaks_json():
        configuration = {**diagnostics_json(of_config), "unavailable": problems}
        write_json({**diagnostics_json(found), "configuration": configuration})
    else:
        _write_text(flow_path, [*found, *of_config], problems)
    if any(map(_is_error, [*found, *of_config])):
        return MISUSED
    return FAILED if problems else 0


def _of_configuration(config: Config) -> list[Diagnostic]:
    """What is odd about a configuration."""
    found = list(config.diagnostics)
    place = Place(config.source)
    if not config.plugins:
        kind, message = (
            DiagnosticKind.NO_PLUGINS_CONFIGURED,
            "no plugins are configured: there are no components",
        )
        found.append(Diagnostic(kind=kind, message=message, path=("plugins",), place=place))
    if not config.routes:
        kind, message = (
            DiagnosticKind.NO_ROUTING_RULES_CONFIGURED,
            "no routes are configured: no step can run",
        )
        found.append(Diagnostic(kind=kind, message=message, path=("routes",), place=place))
    return found


def _as_diagnostics(exc: ConfigError) -> list[Diagnostic]:
    if exc.diagnostics:
        return list(exc.diagnostics)
    place = Place(exc.place or "configuration")
    return [Diagnostic(kind=DiagnosticKind.INVALID_SETTING, message=exc.message, place=place)]


def diagnostics_json(found: list[Diagnostic]) -> dict[str, Any]:
    """Diagnostics as the REST API has them, with how many there are of each level."""
    levels = [diagnostic.level for diagnostic in found]
    return {
        "diagnostics": [diagnostic.to_json() for diagnostic in found],
        "numFatal": levels.count("fatal"),
        "numError": levels.count("error"),
        "numWarning": levels.count("warning"),
    }


def _write_text(flow_path: str, found: list[Diagnostic], problems: list[str]) -> None:
    errors = [str(diagnostic) for diagnostic in found if _is_error(diagnostic)]
    warnings = [str(diagnostic) for diagnostic in found if not _is_error(diagnostic)]
    warnings += [f"warning: {problem}" for problem in problems]
    for text in [*warnings, *errors]:
        for line in plain_lines(text):
            write_line(line)
    write_line(f"{flow_path}: {count(len(errors), 'error')}, {count(len(warnings), 'warning')}")


def _is_error(diagnostic: Diagnostic) -> bool:
    return diagnostic.level != "warning"
