"""A flow's graph as an SVG drawing, which needs nothing but a program that shows SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from msgspec import Struct

from stepflow_trio.flows.diagnostics import printable
from stepflow_trio.flows.graph import FlowGraph, GraphEdge, GraphNode, NodeKind, shortened
from stepflow_trio.flows.layered_layout import Arrow, Knot, Size, lay_out
from stepflow_trio.flows.text_width import monospace_width, sans_width

__all__ = ["FONTS", "SvgDrawing", "draw_svg"]

FONTS = "Inter, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
_MONOSPACE = "'SF Mono', Menlo, Consolas, 'Liberation Mono', 'DejaVu Sans Mono', monospace"

_MARGIN = 24.0
_PADDING = 14.0
_MIN_NODE_WIDTH = 110.0
_MAX_NAME = 36
_MAX_COMPONENT = 40
_MAX_LABEL = 30
_MAX_LABEL_LINES = 4
_MAX_TITLE = 80
_MAX_DESCRIPTION = 400
_DESCRIPTION_LINE = 90

_NAME_SIZE = 14.0
_COMPONENT_SIZE = 11.5
_NOTE_SIZE = 11.0
_LABEL_SIZE = 11.0
_LABEL_LINE = 14.0

_CURVE = 0.45
"""How far a curve keeps its direction at either end, as a part of its height."""

_ACCENTS = ("#2f6fde", "#0f9d76", "#c2571a", "#8b4fd0", "#b3306b", "#4b7a12", "#0d7f97", "#8a6d0b")
"""Of the plugins, in the order in which they appear, so that steps of one worker are seen to be."""

_STYLE = f"""
text {{ font-family: {FONTS}; fill: #1d2530; }}
.name {{ font-size: {_NAME_SIZE}px; font-weight: 600; }}
.component, .label {{ font-family: {_MONOSPACE}; fill: #566172; }}
.component {{ font-size: {_COMPONENT_SIZE}px; }}
.note {{ font-size: {_NOTE_SIZE}px; fill: #8a5a00; }}
.label {{ font-size: {_LABEL_SIZE}px; }}
.label-back {{ fill: #ffffff; }}
.cut {{ fill: #f1f4f8; stroke: #d3dae3; }}
.title {{ font-size: 18px; font-weight: 600; }}
.description, .legend {{ font-size: 12px; fill: #566172; }}
.step {{ fill: #ffffff; stroke: #b9c2ce; stroke-width: 1.2; }}
.end {{ fill: #e9eef5; stroke: #8895a7; stroke-width: 1.2; }}
.idle {{ fill: #f7f7f7; stroke: #b9c2ce; stroke-dasharray: 3 3; }}
.idle-text {{ fill: #8a93a0; }}
.edge {{ fill: none; stroke: #5b6b80; stroke-width: 1.4; }}
.conditional {{ stroke-dasharray: 6 4; }}
.default {{ stroke: #c07a10; }}
.control {{ stroke-dasharray: 1.5 4; stroke-linecap: round; }}
.faint {{ opacity: 0.45; }}
.arrow {{ fill: #5b6b80; }}
.arrow-default {{ fill: #c07a10; }}
""".strip()


class SvgDrawing(Struct, frozen=True):
    """An SVG document, and its size in pixels."""

    text: str
    width: int
    height: int


class _Text(Struct, frozen=True):
    """A line of a node."""

    text: str
    css_class: str
    line_height: float
    width: float


class _Node(Struct, frozen=True):
    lines: list[_Text]
    size: Size


def draw_svg(graph: FlowGraph, *, details: bool = True) -> SvgDrawing:
    """Draw a graph: from the top downwards, a step below all that it reads.

    Without ``details`` there are only the steps' ids and the arrows. The same graph gives the same text.
    """
    nodes = [_node(node, details=details) for node in graph.nodes]
    labels = [_edge_label(edge) if details else [] for edge in graph.edges]
    cut_labels = [_cut_label(graph, edge, details=details) for edge in graph.edges]
    arrows = [
        Arrow(edge.source, edge.target, _label_size(lines) if lines else None, _label_size(cut))
        for edge, lines, cut in zip(graph.edges, labels, cut_labels, strict=True)
    ]
    layout = lay_out([node.size for node in nodes], arrows)
    head = _head(graph) if details else []
    legend = _legend(graph)
    head_height = 30.0 + 18.0 * (len(head) - 1) if head else 0.0
    widest = max([layout.width, *(line.width for line in head), *(line.width + 44.0 for line in legend)])
    left = _MARGIN + (widest - layout.width) / 2
    top = _MARGIN + head_height

    parts: list[str] = []
    for number, line in enumerate(head):
        parts.append(_text(_MARGIN, _MARGIN + 14.0 + 20.0 * number, line, anchor="start"))
    drawn: list[str] = []
    for edge, line in zip(graph.edges, layout.lines, strict=True):
        drawn.append(_edge(graph, edge, line))
    for number, place in enumerate(layout.labels):
        if place is not None:
            is_cut = number in layout.cut
            drawn.append(_label((cut_labels if is_cut else labels)[number], *place, is_cut=is_cut))
    for node, shown, (x, y) in zip(graph.nodes, nodes, layout.boxes, strict=True):
        drawn.append(_node_box(node, shown, x, y, _accent(graph, node)))
    parts.append(f'<g transform="translate({_number(left)} {_number(top)})">')
    parts += drawn
    parts.append("</g>")
    y = top + layout.height + 34.0
    for line in legend:
        parts.append(f'<path class="edge {line.css_class}" d="M{_number(_MARGIN)} {_number(y - 4)}h32"/>')
        text = _Text(line.text, "legend", 0.0, 0.0)
        parts.append(_text(_MARGIN + 44.0, y, text, anchor="start"))
        y += line.line_height
    width = round(widest + 2 * _MARGIN)
    height = round(y - 34.0 + _MARGIN if not legend else y - 10.0 + _MARGIN / 2)
    title = escape(printable(graph.name or "flow"))
    size = f'width="{width}" height="{height}"'
    document = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {width} {height}" role="img">',
        f"<title>{title}</title>",
        f"<style>{_STYLE}</style>",
        _marker("arrow"),
        _marker("arrow-default"),
        f'<rect {size} fill="#ffffff"/>',
        *parts,
        "</svg>",
    ]
    return SvgDrawing("\n".join(document) + "\n", width, height)


def _node(node: GraphNode, *, details: bool) -> _Node:
    name = shortened(node.name, _MAX_NAME)
    lines = [_Text(name, "name", 19.0, sans_width(name, _NAME_SIZE))]
    if details and node.component:
        component = shortened(node.component, _MAX_COMPONENT)
        lines.append(_Text(component, "component", 16.0, monospace_width(component, _COMPONENT_SIZE)))
    if details and node.notes:
        notes = " · ".join(node.notes)
        lines.append(_Text(notes, "note", 16.0, sans_width(notes, _NOTE_SIZE)))
    width = max(_MIN_NODE_WIDTH, *(line.width + 2 * _PADDING for line in lines))
    height = sum(line.line_height for line in lines) + 14.0
    return _Node(lines, Size(round(width), height))


def _edge_label(edge: GraphEdge) -> list[str]:
    return _shown_lines(edge.labels)


def _shown_lines(labels: Sequence[str]) -> list[str]:
    lines = [shortened(label, _MAX_LABEL) for label in labels]
    if len(lines) > _MAX_LABEL_LINES:
        lines[_MAX_LABEL_LINES - 1 :] = [f"+ {len(lines) - _MAX_LABEL_LINES + 1} more"]
    return lines


def _cut_label(graph: FlowGraph, edge: GraphEdge, *, details: bool) -> list[str]:
    """What names the source of an edge that is not drawn from there."""
    source = graph.nodes[edge.source].name
    labels = edge.labels if details else []
    full = [
        f"if {source}.{label[3:]}" if label.startswith("if ") else f"{source}.{label}" for label in labels
    ]
    return _shown_lines(full or [source])


def _label_size(lines: Sequence[str]) -> Size:
    width = max(monospace_width(line, _LABEL_SIZE) for line in lines)
    return Size(round(width + 8.0), _LABEL_LINE * len(lines) + 2.0)


def _head(graph: FlowGraph) -> list[_Text]:
    """The flow's name and description, as lines."""
    lines: list[_Text] = []
    if graph.name:
        name = shortened(printable(graph.name), _MAX_TITLE)
        lines.append(_Text(name, "title", 0.0, sans_width(name, 18.0)))
    if graph.description:
        words = " ".join(graph.description[:_MAX_DESCRIPTION].split())
        if len(graph.description) > _MAX_DESCRIPTION:
            words += "…"
        line = ""
        for word in printable(words).split(" "):
            if line and len(line) + len(word) >= _DESCRIPTION_LINE:
                lines.append(_Text(line, "description", 0.0, sans_width(line, 12.0)))
                line = ""
            line = f"{line} {shortened(word, _DESCRIPTION_LINE)}".strip()
        lines.append(_Text(line, "description", 0.0, sans_width(line, 12.0)))
    return lines


def _legend(graph: FlowGraph) -> list[_Text]:
    """What the kinds of arrows in the graph mean that are not plain."""
    kinds = {
        "conditional": ("read only if a choice comes to it", [edge.is_conditional for edge in graph.edges]),
        "default": ("or the step's default, if it fails", [edge.has_default for edge in graph.edges]),
        "control": (
            "must execute, though the output does not need it",
            [not edge.uses for edge in graph.edges],
        ),
    }
    return [
        _Text(meaning, css_class, 18.0, sans_width(meaning, 12.0))
        for css_class, (meaning, found) in kinds.items()
        if any(found)
    ]


def _accent(graph: FlowGraph, node: GraphNode) -> str:
    plugin = node.component.split("/")[1] if node.component.startswith("/") else ""
    return _ACCENTS[graph.plugins[plugin] % len(_ACCENTS)] if plugin else "#8895a7"


def _node_box(node: GraphNode, shown: _Node, x: float, y: float, accent: str) -> str:
    width, height = shown.size.width, shown.size.height
    left, top = x - width / 2, y - height / 2
    place = f'x="{_number(left)}" y="{_number(top)}" width="{_number(width)}" height="{_number(height)}"'
    tooltip = "\n".join([node.name, *([node.component] if node.component else []), *node.notes])
    parts = [f"<g><title>{escape(tooltip)}</title>"]
    if node.kind is NodeKind.STEP:
        parts.append(f'<rect class="{"idle" if node.never_runs else "step"}" {place} rx="6"/>')
        bar = f"M{_number(left + 6)} {_number(top)}a6 6 0 0 0-6 6v{_number(height - 12)}a6 6 0 0 0 6 6z"
        faint = ' class="faint"' if node.never_runs else ""
        parts.append(f'<path{faint} fill="{accent}" d="{bar}"/>')
    else:
        parts.append(f'<rect class="end" {place} rx="{_number(height / 2)}"/>')
    line_top = top + 7.0
    for line in shown.lines:
        middle = line_top + line.line_height / 2
        parts.append(_text(x, middle + line.line_height * 0.25, line, is_idle=node.never_runs))
        line_top += line.line_height
    return "".join([*parts, "</g>"])


def _text(x: float, y: float, line: _Text, *, anchor: str = "middle", is_idle: bool = False) -> str:
    css_class = f"{line.css_class} idle-text" if is_idle else line.css_class
    place = f'x="{_number(x)}" y="{_number(y)}"'
    return f'<text class="{css_class}" {place} text-anchor="{anchor}">{escape(line.text)}</text>'


def _label(lines: Sequence[str], x: float, y: float, *, is_cut: bool) -> str:
    size = _label_size(lines)
    place = f'x="{_number(x - size.width / 2)}" y="{_number(y - size.height / 2)}"'
    extent = f'width="{_number(size.width)}" height="{_number(size.height)}"'
    parts = [f'<rect class="{"cut" if is_cut else "label-back"}" {place} {extent} rx="3"/>']
    first = y - _LABEL_LINE * (len(lines) - 1) / 2 + _LABEL_SIZE * 0.36
    for number, line in enumerate(lines):
        parts.append(_text(x, first + _LABEL_LINE * number, _Text(line, "label", 0.0, 0.0)))
    return "".join(parts)


def _edge(graph: FlowGraph, edge: GraphEdge, line: Sequence[Knot]) -> str:
    classes = ["edge"]
    if edge.is_conditional:
        classes.append("conditional")
    if edge.has_default:
        classes.append("default")
    if not edge.uses:
        classes.append("control")
    if graph.nodes[edge.target].never_runs:
        classes.append("faint")
    marker = "arrow-default" if edge.has_default else "arrow"
    tooltip = [f"{graph.nodes[edge.source].name} → {graph.nodes[edge.target].name}", *edge.details]
    return (
        f"<g><title>{escape(chr(10).join(tooltip))}</title>"
        f'<path class="{" ".join(classes)}" marker-end="url(#{marker})" d="{_path(line)}"/></g>'
    )


def _path(line: Sequence[Knot]) -> str:
    """A smooth curve through all knots."""
    parts = [f"M{_number(line[0].x)} {_number(line[0].y)}"]
    for start, end in pairwise(line):
        if start.x == end.x and start.slope == end.slope == 0:
            parts.append(f"V{_number(end.y)}")
            continue
        reach = (end.y - start.y) * _CURVE
        controls = start.x + reach * start.slope, start.y + reach, end.x - reach * end.slope, end.y - reach
        parts.append("C" + " ".join(map(_number, (*controls, end.x, end.y))))
    return "".join(parts)


def _marker(name: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path class="{name}" d="M0 1 10 5 0 9z"/></marker>'
    )


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
