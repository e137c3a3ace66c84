"""Components as lines of text, for people. Needs nothing of the runtime: a worker may list its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from stepflow_trio.cli.plain_text import plain_line


def component_lines(listed: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each, with the first of its description; below it its schemas, where they are there."""
    names = [plain_line(_name(component)) for component in listed]
    width = max(map(len, names), default=0)
    lines: list[str] = []
    for name, component in zip(names, listed, strict=True):
        first_line, *_ = (component.get("description") or "").strip().split("\n")
        lines.append(f"{name:{width}}  {plain_line(first_line)}".rstrip())
        for what in ("input", "output"):
            if f"{what}_schema" in component:
                schema: Any = component[f"{what}_schema"]
                shown = json.dumps(schema, ensure_ascii=False) if schema else "anything"
                lines.append(f"  {what}: {shown}")
    return lines


def _name(component: dict[str, Any]) -> str:
    if component["component"]:
        return component["component"]
    return f"{component['unreachable']} of plugin {component['plugin']}, which no route leads to"
