"""A flow's graph in DOT, the language of Graphviz, for those who have other wishes for its layout."""

from __future__ import annotations

from stepflow_trio.flows.diagnostics import printable
from stepflow_trio.flows.graph import FlowGraph, NodeKind
from stepflow_trio.flows.mermaid_drawing import node_lines

__all__ = ["draw_dot"]


def draw_dot(graph: FlowGraph, *, details: bool = True) -> str:
    """A graph as DOT's text.

    Without ``details`` there are only the steps' ids and the arrows. The same graph gives the same text.
    """
    lines = [
        "digraph flow {",
        '    node [shape=box, style=rounded, fontname="Helvetica", fontsize=12];',
        '    edge [fontname="Courier", fontsize=10];',
    ]
    if details and graph.name:
        lines.append(f"    label={_quoted([printable(graph.name)])}; labelloc=t; fontname=Helvetica;")
    for number, node in enumerate(graph.nodes):
        attributes = [f"label={_quoted(node_lines(node, details=details))}"]
        if node.kind is not NodeKind.STEP:
            attributes.append('style="rounded,filled", fillcolor="#e9eef5"')
        elif node.never_runs:
            attributes.append('style="rounded,dashed", fontcolor="#8a93a0"')
        lines.append(f"    n{number} [{', '.join(attributes)}];")
    for edge in graph.edges:
        attributes: list[str] = []
        if details and edge.labels:
            attributes.append(f"label={_quoted(edge.labels)}")
        if not edge.uses or edge.is_conditional:
            attributes.append(f"style={'dashed' if edge.uses else 'dotted'}")
        if edge.has_default:
            attributes.append('color="#c07a10"')
        suffix = f" [{', '.join(attributes)}]" if attributes else ""
        lines.append(f"    n{edge.source} -> n{edge.target}{suffix};")
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(lines: list[str]) -> str:
    escaped = [line.replace("\\", "\\\\").replace('"', '\\"') for line in lines]
    return '"' + "\\n".join(escaped) + '"'
