"""``stepflow-trio visualize``: a flow as a drawing."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import msgspec

from stepflow_trio.cli.exits import Unusable
from stepflow_trio.cli.notices import speaks_json
from stepflow_trio.cli.standard_output import require_stdout, write_json_line, write_stdout
from stepflow_trio.errors import StepflowError
from stepflow_trio.flows.graph import FlowGraph, flow_graph
from stepflow_trio.flows.reader import read_flow_file

STDOUT = "-"

_FORMAT_OF = {
    ".svg": "svg",
    ".png": "png",
    ".mmd": "mermaid",
    ".mermaid": "mermaid",
    ".dot": "dot",
    ".gv": "dot",
}

_ZOOM = 2.0
"""Pixels of a PNG for each of the drawing, if there is room: text stays readable on any screen."""
_MIN_ZOOM = 0.5
_MAX_PIXELS = 48_000_000
"""They take four bytes each while they are drawn."""
_MAX_SIDE = 65_000
"""Pixels, which is about what programs that show pictures take."""


def draw_flow(
    flow_path: str, *, format: str | None, output: str | None, overwrites: bool, details: bool, servers: bool
) -> int:
    """Draw a flow to a file or to stdout, and return the exit code.

    Raises:
        FlowInvalid: the flow cannot be drawn, being none.
        Unusable: the format or the output cannot be used.
        StepflowError: the drawing could not be made or written.
    """
    path = Path(output) if output not in (None, STDOUT) else None
    format = format or _format_of(path)
    if path is None:
        require_stdout()
    if format == "png" and output is None and sys.stdout.isatty() and not speaks_json():
        raise Unusable("a PNG is nothing for a terminal; name a file with --output")
    flow = read_flow_file(flow_path)
    if not servers:
        steps = [msgspec.structs.replace(step, component="") for step in flow.steps]
        flow = msgspec.structs.replace(flow, steps=tuple(steps))
    graph = flow_graph(flow)
    drawing = _draw(graph, format, details=details)
    if path is not None:
        _write_file(path, drawing, overwrites=overwrites)
    if speaks_json():
        write_json_line(_as_json(drawing, format, path))
    elif path is None:
        write_stdout(drawing)
    return 0


def _as_json(drawing: bytes, format: str, path: Path | None) -> dict[str, str]:
    if path is not None:
        return {"format": format, "file": str(path)}
    if format == "png":
        return {"format": format, "encoding": "base64", "drawing": base64.b64encode(drawing).decode()}
    return {"format": format, "drawing": drawing.decode()}


def _format_of(path: Path | None) -> str:
    if path is None:
        return "svg"
    format = _FORMAT_OF.get(path.suffix.lower())
    if format is None:
        known = ", ".join(_FORMAT_OF)
        raise Unusable(f"its suffix says no format; use one of {known}, or --format", str(path))
    return format


def _draw(graph: FlowGraph, format: str, *, details: bool) -> bytes:
    # Each imports its own writer: the layout, say, is no use to Mermaid.
    if format == "mermaid":
        from stepflow_trio.flows.mermaid_drawing import draw_mermaid

        return draw_mermaid(graph, details=details).encode()
    if format == "dot":
        from stepflow_trio.flows.dot_drawing import draw_dot

        return draw_dot(graph, details=details).encode()
    from stepflow_trio.flows.svg_drawing import draw_svg

    drawing = draw_svg(graph, details=details)
    return (
        png_of_svg(drawing.text, drawing.width, drawing.height) if format == "png" else drawing.text.encode()
    )


def png_of_svg(svg: str, width: int, height: int) -> bytes:
    """The PNG of an SVG drawing of a size in pixels.

    Raises:
        Unusable: the package for it is not installed, or the drawing is too large.
        StepflowError: it could not be made.
    """
    try:
        import resvg_py
    except ImportError as exc:
        install = "pip install 'stepflow-trio[visualize]'"
        raise Unusable(f"a PNG needs the package resvg-py: {install}, or use --format svg") from exc
    zoom = min(_ZOOM, (_MAX_PIXELS / (width * height)) ** 0.5, _MAX_SIDE / max(width, height))
    if zoom < _MIN_ZOOM:
        raise Unusable(f"{width:,} × {height:,} pixels are too many for a PNG; use --format svg")
    try:
        _require_fonts()
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=zoom))
    except ValueError as exc:
        raise StepflowError(f"the PNG could not be made: {exc}") from exc


def _require_fonts() -> None:
    """Raise `StepflowError` where text would silently not be drawn."""
    import resvg_py

    from stepflow_trio.flows.svg_drawing import FONTS

    start, end = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20">', "</svg>"
    text = f'{start}<text y="15" font-family="{FONTS}">x</text>{end}'
    if resvg_py.svg_to_bytes(svg_string=text) == resvg_py.svg_to_bytes(svg_string=start + end):
        hint = "install fonts, such as Debian's fonts-dejavu-core, or use --format svg"
        raise StepflowError(f"a PNG needs a font, and there is none on this machine; {hint}")


def _write_file(path: Path, data: bytes, *, overwrites: bool) -> None:
    try:
        with path.open("wb" if overwrites else "xb") as file:
            file.write(data)
    except FileExistsError as exc:
        raise Unusable("is there already; --force overwrites it", str(path)) from exc
    except OSError as exc:
        raise Unusable(f"cannot be written: {exc.strerror}", str(path)) from exc
