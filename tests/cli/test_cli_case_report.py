"""What `stepflow-trio test` says of a difference: enough to see it, and not more than a screen."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from stepflow_trio.cli.case_finding import Case
from stepflow_trio.cli.case_report import CaseReport, FileReport, TextReport, difference_lines, is_colourful
from stepflow_trio.cli.case_running import CaseResult
from stepflow_trio.flows.expectations import differences
from stepflow_trio.flows.results import FlowResult, Success


def lines_of(expected: Any, actual: Any) -> list[str]:
    (difference,) = differences(Success(expected), Success(actual))
    return difference_lines(difference)


def report_of(expected: FlowResult, result: FlowResult, name: str = "case") -> FileReport:
    case = Case(index=0, name=name, input=None, variables={}, expected=expected)
    found = tuple(differences(expected, result))
    ran = CaseResult(case=case, duration_s=0.5, result=result, differences=found)
    return FileReport(path="f.yaml", cases=[CaseReport(result=ran, status="failed" if found else "passed")])


def said(report: FileReport, *, in_colour: bool = False) -> list[str]:
    return TextReport(shows_diff=True, quiet=False, in_colour=in_colour).lines(report)


def test_a_difference_shows_its_path_and_both_values() -> None:
    assert lines_of({"a.b": [1]}, {"a.b": [1.0]}) == [
        "$.result['a.b'][0] (1 is an integer, 1.0 a number)",
        "  expected: 1",
        "  actual:   1.0",
    ]


def test_a_long_value_is_cut_and_says_by_how_much() -> None:
    _, expected, actual = lines_of("x" * 1000, [])
    assert expected == '  expected: "' + "x" * 299 + " … (702 more characters)"
    assert actual == "  actual:   []"


def test_two_long_texts_are_shown_from_where_they_differ() -> None:
    same = "s" * 5000
    _, expected, actual = lines_of(f"{same}one{same}", f"{same}two")
    shown = "s" * 40
    assert (
        expected == f"  expected: (4,961 characters) … {shown}one" + "s" * 257 + " … (4,744 more characters)"
    )
    assert actual == f'  actual:   (4,961 characters) … {shown}two"'


def test_of_many_differences_some_are_shown_and_the_others_counted() -> None:
    lines = said(report_of(Success([*range(100)]), Success([None] * 100)))
    assert len(lines) == 1 + 3 * 20 + 1
    assert lines[-1] == "          … and 80 more differences"


def test_nothing_that_a_flow_says_can_move_the_cursor_or_break_a_line() -> None:
    report = report_of(Success("\x1b[2J\n"), Success("\u2028\x9b"), name="a\nb\x1b[31m")
    lines = said(report)
    assert lines[0] == "failed  f.yaml: a\\nb (0.50 s)"
    assert all(line.isprintable() for line in lines)


def test_colours_mark_what_a_line_begins_with() -> None:
    assert said(report_of(Success(1), Success(1)), in_colour=True) == [
        "\x1b[32mpassed \x1b[0m f.yaml: case (0.50 s)"
    ]
    assert said(report_of(Success(1), Success(2)), in_colour=True)[0].startswith("\x1b[31mfailed \x1b[0m f")


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stdout", "environment", "colourful"),
    [
        (Screen(), {"TERM": "xterm"}, True),
        (Screen(), {"TERM": "dumb"}, False),
        (Screen(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
        (None, {"TERM": "xterm"}, False),
    ],
)
def test_only_a_terminal_is_coloured(
    monkeypatch: pytest.MonkeyPatch, stdout: Any, environment: dict[str, str], *, colourful: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert is_colourful() is colourful
