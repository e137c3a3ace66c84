"""``stepflow-trio list-components``: what the configured workers offer."""

from __future__ import annotations

from typing import Any

from stepflow_trio.cli.component_display import component_lines
from stepflow_trio.cli.configuration import read_configuration
from stepflow_trio.cli.exits import FAILED
from stepflow_trio.cli.interruption import run_until_signal
from stepflow_trio.cli.notices import complain, show_diagnostic
from stepflow_trio.cli.standard_output import write_json, write_line, write_stdout
from stepflow_trio.cli.yaml_text import yaml_document
from stepflow_trio.runtime import ListedComponent, open_runtime


def list_configured_components(
    config_path: str | None, *, format: str, with_schemas: bool, with_unreachable: bool
) -> int:
    """Print every component, as ``pretty``, ``json`` or ``yaml``, and say which plugins cannot tell theirs.

    Raises:
        ConfigError: the configuration cannot be read or used.
        Interrupted: a signal came; no worker is left.
    """
    config = read_configuration(config_path)
    for warning in config.diagnostics:
        show_diagnostic(warning)

    async def ask() -> tuple[list[ListedComponent], dict[str, str]]:
        async with open_runtime(config) as runtime:
            listed = await runtime.list_components(with_unreachable=with_unreachable)
            return listed, runtime.plugin_problems

    components, problems = run_until_signal(ask)
    listed = [_as_json(component, with_schemas=with_schemas) for component in components]
    if format == "json":
        write_json({"components": listed})
    elif format == "yaml":
        write_stdout(yaml_document({"components": listed}))
    else:
        for line in component_lines(listed):
            write_line(line)
    for plugin, problem in sorted(problems.items()):
        complain(f"error: plugin {plugin} cannot be asked: {problem}", plugin=plugin)
    return FAILED if problems else 0


def _as_json(component: ListedComponent, *, with_schemas: bool) -> dict[str, Any]:
    info = component.info
    written: dict[str, Any] = {"component": component.path or None, "plugin": component.plugin}
    if not component.path:
        written["unreachable"] = info.component
    if info.description:
        written["description"] = info.description
    if with_schemas:
        written["input_schema"], written["output_schema"] = info.input_schema, info.output_schema
    return written
