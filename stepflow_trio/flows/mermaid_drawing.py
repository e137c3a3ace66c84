"""A flow's graph as a Mermaid flowchart, which many pages of documentation show as a drawing."""

from __future__ import annotations

import json
import re

from stepflow_trio.flows.diagnostics import printable
from stepflow_trio.flows.graph import FlowGraph, GraphNode, NodeKind

__all__ = ["draw_mermaid", "node_lines"]

_SPECIAL = re.compile(r"""["#&<>`\\*~$@:]|^[-+\s]|(?<=[\dw])[.)]|\](?=\()|_(?!\w)|(?<!\w)_""")
"""What Mermaid or its Markdown would not show as it is."""


def draw_mermaid(graph: FlowGraph, *, details: bool = True) -> str:
    """A graph as Mermaid's text.

    Without ``details`` there are only the steps' ids and the arrows. The same graph gives the same text.
    """
    lines: list[str] = []
    if details and graph.name:
        lines += ["---", f"title: {json.dumps(printable(graph.name), ensure_ascii=False)}", "---"]
    lines.append("flowchart TD")
    for number, node in enumerate(graph.nodes):
        text = "<br/>".join(map(_escaped, node_lines(node, details=details)))
        shape = f'["{text}"]' if node.kind is NodeKind.STEP else f'(["{text}"])'
        lines.append(f"    n{number}{shape}")
    for edge in graph.edges:
        arrow = "-->" if edge.uses and not edge.is_conditional else "-.->"
        labels = edge.labels if edge.uses else ["must execute"]
        label = f'|"{"<br/>".join(map(_escaped, labels))}"|' if details and labels else ""
        lines.append(f"    n{edge.source} {arrow}{label} n{edge.target}")
    defaults = [str(number) for number, edge in enumerate(graph.edges) if edge.has_default]
    if defaults:
        lines.append(f"    linkStyle {','.join(defaults)} stroke:#c07a10")
    idle = [f"n{number}" for number, node in enumerate(graph.nodes) if node.never_runs]
    if idle:
        lines += ["    classDef idle stroke-dasharray:3 3,opacity:0.6", f"    class {','.join(idle)} idle"]
    return "\n".join(lines) + "\n"


def node_lines(node: GraphNode, *, details: bool) -> list[str]:
    """What a node says, line by line."""
    if not details:
        return [node.name]
    return [node.name, *([node.component] if node.component else []), *node.notes]


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda match: f"#{ord(match[0])};", text)
