"""``visualize``: drawings go where they should, in the format that is meant, and overwrite nothing."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_process import COMMAND, Finished

from stepflow_trio.cli import visualize
from stepflow_trio.cli.exits import Unusable
from stepflow_trio.errors import StepflowError

Cli = Callable[..., Finished]
WriteFlow = Callable[..., Path]

PNG = b"\x89PNG\r\n\x1a\n"
BEGINS = {"svg": "<svg ", "mermaid": '---\ntitle: "test"\n', "dot": "digraph flow {"}


def png_of(svg: str) -> bytes:
    """A PNG, where what that needs is installed."""
    pytest.importorskip("resvg_py")
    try:
        return visualize.png_of_svg(svg, 300, 200)
    except StepflowError as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize("format", ["svg", "mermaid", "dot"])
def test_a_drawing_goes_to_stdout_in_the_format_that_is_asked_for(
    cli_here: Cli, flow: WriteFlow, format: str
) -> None:
    given = flow("/crew/echo")
    ran = cli_here("visualize", given, "--format", format)
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.stdout.startswith(BEGINS[format])
    assert cli_here("visualize", given, "--format", format, "--output", "-") == ran


def test_without_a_format_it_is_svg(cli_here: Cli, flow: WriteFlow) -> None:
    assert cli_here("visualize", flow("/crew/echo")).stdout.startswith("<svg ")


@pytest.mark.parametrize(
    ("name", "format"),
    [("a.svg", "svg"), ("a.SVG", "svg"), ("a.mmd", "mermaid"), ("a.mermaid", "mermaid"), ("a.gv", "dot")],
)
def test_the_suffix_of_the_file_says_the_format(
    cli_here: Cli, flow: WriteFlow, tmp_path: Path, name: str, format: str
) -> None:
    assert cli_here("visualize", flow("/crew/echo"), "--output", name) == Finished(0, "", "")
    assert (tmp_path / name).read_text(encoding="utf-8").startswith(BEGINS[format])


def test_a_format_goes_before_the_suffix(cli_here: Cli, flow: WriteFlow, tmp_path: Path) -> None:
    assert cli_here("visualize", flow("/crew/echo"), "--output", "a.txt", "--format", "dot").code == 0
    assert (tmp_path / "a.txt").read_text(encoding="utf-8").startswith("digraph")


def test_without_details_there_are_no_components(cli_here: Cli, flow: WriteFlow) -> None:
    given = flow("/crew/echo", "{ a: { $input: x } }")
    for format, component in [("svg", ">/crew/echo<"), ("mermaid", "/crew/echo"), ("dot", "/crew/echo")]:
        with_details = cli_here("visualize", given, "--format", format).stdout
        without = cli_here("visualize", given, "--format", format, "--no-details").stdout
        assert component in with_details
        assert component not in without
        assert "only" in without


def test_a_file_that_is_there_is_kept_unless_it_is_forced(
    cli_here: Cli, flow: WriteFlow, tmp_path: Path
) -> None:
    given, path = flow("/crew/echo"), tmp_path / "a.svg"
    path.write_text("precious", encoding="utf-8")
    ran = cli_here("visualize", given, "--output", path)
    assert ran == Finished(2, "", f"{path}: error: is there already; --force overwrites it\n")
    assert path.read_text(encoding="utf-8") == "precious"
    assert cli_here("visualize", given, "--output", path, "--force").code == 0
    assert path.read_text(encoding="utf-8").startswith("<svg ")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("a.jpg", "a.jpg: error: its suffix says no format; use one of .svg, .png, "),
        ("none/a.svg", "none/a.svg: error: cannot be written: No such file or directory"),
    ],
)
def test_an_output_that_cannot_be_is_refused(
    cli_here: Cli, flow: WriteFlow, output: str, message: str
) -> None:
    ran = cli_here("visualize", flow("/crew/echo"), "--output", output)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.startswith(message)


def test_a_flow_that_is_none_is_refused_with_its_place(cli_here: Cli, tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text("steps: [{id: a}]\n", encoding="utf-8")
    ran = cli_here("visualize", "flow.yaml", "--output", "a.svg")
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("flow.yaml:1:9: error: ")
    assert not (tmp_path / "a.svg").exists()


def test_a_png_is_one(flow: WriteFlow, tmp_path: Path) -> None:
    png_of("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    path = tmp_path / "a.png"
    for output in (["--output", str(path)], ["--format", "png"]):
        command = [*COMMAND, "visualize", str(flow("/crew/echo")), *output]
        ran = subprocess.run(command, capture_output=True, timeout=20)
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert (path.read_bytes() if output[0] == "--output" else ran.stdout).startswith(PNG)


def size_of(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def test_a_png_has_two_pixels_for_one_where_that_is_not_too_much() -> None:
    def svg(width: int, height: int) -> str:
        return f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}'/>"

    png_of(svg(9, 9))
    assert size_of(visualize.png_of_svg(svg(300, 200), 300, 200)) == (600, 400)
    width, height = size_of(visualize.png_of_svg(svg(200, 50_000), 200, 50_000))
    assert (height, width) == (65_000, 260)
    with pytest.raises(Unusable, match=r"900,000 × 200 pixels are too many for a PNG; use --format svg"):
        visualize.png_of_svg(svg(900_000, 200), 900_000, 200)


def test_without_the_package_a_png_is_refused_with_what_to_install(
    cli_here: Cli, flow: WriteFlow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    ran = cli_here("visualize", flow("/crew/echo"), "--output", "a.png")
    assert ran.code == 2
    assert "pip install 'stepflow-trio[visualize]'" in ran.stderr
    assert not (tmp_path / "a.png").exists()


def test_a_machine_without_fonts_makes_no_png_without_its_texts(
    cli_here: Cli, flow: WriteFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_without_text = types.SimpleNamespace(svg_to_bytes=lambda **_: PNG)
    monkeypatch.setitem(sys.modules, "resvg_py", drawn_without_text)
    ran = cli_here("visualize", flow("/crew/echo"), "--output", "a.png")
    assert ran.code == 1
    assert "a PNG needs a font, and there is none on this machine; install fonts" in ran.stderr


def test_what_the_renderer_refuses_is_an_error_of_ours(
    cli_here: Cli, flow: WriteFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*, svg_string: str, zoom: float = 1.0) -> bytes:
        if zoom != 1.0:
            raise ValueError("no")
        return svg_string.encode()

    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=refuse))
    ran = cli_here("visualize", flow("/crew/echo"), "--output", "a.png")
    assert ran == Finished(1, "", "error: the PNG could not be made: no\n")


def test_a_png_is_not_written_to_a_terminal(flow: WriteFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(Unusable, match="name a file with --output"):
        visualize.draw_flow(
            str(flow("/crew/echo")), format="png", output=None, overwrites=False, details=True, servers=True
        )


def test_two_of_one_option_are_refused(cli_here: Cli, flow: WriteFlow) -> None:
    ran = cli_here("visualize", flow("/crew/echo"), "--output", "a.svg", "--output", "b.svg")
    assert ran.code == 2
    assert "given 2 times" in ran.stderr


@pytest.mark.parametrize("format", ["svg", "dot", "mermaid"])
def test_without_servers_no_step_says_what_it_calls(
    cli_here: Callable[..., Finished], flow: Callable[..., Path], format: str
) -> None:
    given = flow("/crew/echo", "{ value: { $input: $.deep } }")
    assert "/crew/echo" in cli_here("visualize", given, "--format", format).stdout
    drawn = cli_here("visualize", "--flow", given, "--format", format, "--no-servers").stdout
    assert "crew" not in drawn
    assert "only" in drawn
    assert "deep" in drawn
