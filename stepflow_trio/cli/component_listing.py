"""``stepflow-trio list-components``: what the configured workers offer."""

from __future__ import annotations

import json
from typing import Any

from stepflow_trio.cli.configuration import read_configuration
from stepflow_trio.cli.exits import FAILED, complain
from stepflow_trio.cli.interruption import run_until_signal
from stepflow_trio.cli.plain_text import plain_line
from stepflow_trio.cli.standard_output import write_line
from stepflow_trio.runtime import ListedComponent, open_runtime


def list_configured_components(config_path: str | None, *, as_json: bool, with_schemas: bool) -> int:
    """Print every component that flows can use, and say which plugins cannot tell theirs.

    Raises:
        ConfigError: the configuration cannot be read or used.
        Interrupted: a signal came; no worker is left.
    """
    config = read_configuration(config_path)
    for warning in config.warnings:
        complain(warning)

    async def ask() -> tuple[list[ListedComponent], dict[str, str]]:
        async with open_runtime(config) as runtime:
            return await runtime.list_components(), runtime.plugin_problems

    components, problems = run_until_signal(ask)
    if as_json:
        listed = [_as_json(component, with_schemas=with_schemas) for component in components]
        write_line(json.dumps({"components": listed}, indent=2, ensure_ascii=False))
    else:
        for line in _pretty(components, with_schemas=with_schemas):
            write_line(line)
    for plugin, problem in sorted(problems.items()):
        complain(f"error: plugin {plugin} cannot be asked: {problem}")
    return FAILED if problems else 0


def _as_json(component: ListedComponent, *, with_schemas: bool) -> dict[str, Any]:
    info = component.info
    written: dict[str, Any] = {"component": component.path, "plugin": component.plugin}
    if info.description:
        written["description"] = info.description
    if with_schemas:
        written["input_schema"], written["output_schema"] = info.input_schema, info.output_schema
    return written


def _pretty(components: list[ListedComponent], *, with_schemas: bool) -> list[str]:
    width = max((len(component.path) for component in components), default=0)
    lines: list[str] = []
    for component in components:
        first_line, *_ = (component.info.description or "").strip().split("\n")
        lines.append(f"{plain_line(component.path):{width}}  {plain_line(first_line)}".rstrip())
        if with_schemas:
            info = component.info
            for name, schema in (("input", info.input_schema), ("output", info.output_schema)):
                lines.append(f"  {name}: {json.dumps(schema, ensure_ascii=False) if schema else 'anything'}")
    return lines
