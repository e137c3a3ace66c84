"""What ``stepflow-trio test`` says of the cases: lines for people, or one JSON document."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import click

from stepflow_trio.cli.case_running import CaseResult
from stepflow_trio.cli.failures import fault_of
from stepflow_trio.cli.plain_text import count, duration, plain_line, plain_lines
from stepflow_trio.errors import ConfigError, FlowInvalid, StepflowError
from stepflow_trio.flows.expectations import Difference, DifferenceKind
from stepflow_trio.flows.paths import render_path
from stepflow_trio.flows.results import Failed

Status = Literal["passed", "failed", "updated"]

MAX_DIFFERENCES = 20
"""Of one case that are shown to people."""

MAX_VALUE_CHARS = 300
"""Of one value that are shown to people."""

_BEFORE_DIFFERENCE = 40
"""Characters that two long texts have in common and that are shown all the same."""

_COLOURS = {"passed": "green", "failed": "red", "updated": "yellow", "error": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseReport:
    """A case, and what became of it."""

    result: CaseResult
    status: Status
    remark: str = ""
    """Why it could not be updated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """A file, and what became of its cases."""

    path: str
    config: str | None = None
    """The configuration's file, if it is known."""
    cases: Sequence[CaseReport] = ()
    error: StepflowError | None = None
    """Why it has no cases that were run."""

    @property
    def is_not_loaded(self) -> bool:
        """Whether it, or its configuration, cannot be used as written."""
        return isinstance(self.error, (FlowInvalid, ConfigError))


@dataclass(slots=True)
class Tally:
    """How many of each there were."""

    duration_s: float = 0.0
    files: int = 0
    errors: int = 0
    """Files whose cases could not be run."""
    not_loaded: int = 0
    """Of these, those that cannot be used as written."""
    cases: dict[Status, int] = field(default_factory=lambda: {"passed": 0, "failed": 0, "updated": 0})

    def add(self, report: FileReport) -> None:
        """Count a file and its cases."""
        self.files += 1
        self.errors += report.error is not None
        self.not_loaded += report.is_not_loaded
        for case in report.cases:
            self.cases[case.status] += 1

    def line(self) -> str:
        """All of it in a line for people."""
        total = sum(self.cases.values())
        parts = [f"{number:,} {status}" for status, number in self.cases.items() if number]
        said = f"{count(total, 'case')} in {count(self.files - self.errors, 'file')}"
        said += f": {', '.join(parts)}" if parts else ""
        if self.errors:
            said += f"; {count(self.errors, 'file')} could not be tested"
        return f"{said} ({duration(self.duration_s)})"

    def to_json(self) -> dict[str, Any]:
        """All of it for programs."""
        return {
            "files": self.files,
            "filesNotTested": self.errors,
            "cases": sum(self.cases.values()),
            **self.cases,
            "durationSecs": round(self.duration_s, 6),
        }


# ---- for people -------------------------------------------------------------------------------------------


class TextReport:
    """Makes the lines.

    Args:
        shows_diff: whether to say where a result is not what is expected.
        quiet: whether to pass over the cases that passed.
        in_colour: whether to colour what a line begins with.
    """

    def __init__(self, *, shows_diff: bool, quiet: bool, in_colour: bool) -> None:
        self._shows_diff = shows_diff
        self._quiet = quiet
        self._in_colour = in_colour

    def lines(self, report: FileReport) -> list[str]:
        """A line for each case, and below it what there is to say of it."""
        lines: list[str] = []
        if report.error is not None:
            lines.append(self._head("error", f"{report.path}: {_what_is_wrong(report)}"))
            lines += _indented(plain_lines(str(report.error)), 2)
        for case in report.cases:
            result = case.result
            if case.status == "passed" and self._quiet:
                continue
            name = f"{report.path}: {result.case.name}"
            lines.append(self._head(case.status, f"{name} ({duration(result.duration_s)})"))
            lines += _indented(self._details(case), 2)
        return lines

    def _head(self, status: str, text: str) -> str:
        word = f"{status:7}"
        return f"{click.style(word, fg=_COLOURS[status]) if self._in_colour else word} {plain_line(text)}"

    def _details(self, case: CaseReport) -> list[str]:
        result = case.result
        if case.status == "passed":
            return []
        lines: list[str] = []
        if result.problem is not None:
            lines += plain_lines(result.problem)
        elif result.case.expected is None and case.status == "failed":
            hint = "" if case.remark else "; --update writes what it came to"
            lines.append(f"the case has no output to expect{hint}")
        if self._shows_diff:
            lines += self._differences(result)
        if case.status == "failed" and isinstance(result.result, Failed):
            if result.failed_step is not None:
                lines.append(plain_line(f"it failed in step {result.failed_step}"))
            if (why := fault_of(result.result.error)) is not None:
                lines.append(plain_line(why))
        if case.remark:
            lines.append(f"not updated: {plain_line(case.remark)}")
        return lines

    def _differences(self, result: CaseResult) -> Iterator[str]:
        for difference in result.differences[:MAX_DIFFERENCES]:
            yield from difference_lines(difference)
        if (more := len(result.differences) - MAX_DIFFERENCES) > 0:
            yield f"… and {count(more, 'more difference')}"
        if result.case.expected is None and result.result is not None:
            yield f"it came to: {_cut(_json(result.result.to_json()))}"


def difference_lines(difference: Difference) -> list[str]:
    """A difference for people: its path, and below it what is expected and what is there."""
    expected, actual = _shown_pair(difference)
    if difference.kind is DifferenceKind.MISSING:
        actual = "nothing"
    elif difference.kind is DifferenceKind.UNEXPECTED:
        expected = "nothing"
    note = f" ({difference.note})" if difference.note else ""
    path = plain_line(render_path(difference.path))
    return [f"{path}{note}", f"  expected: {plain_line(expected)}", f"  actual:   {plain_line(actual)}"]


def _shown_pair(difference: Difference) -> tuple[str, str]:
    expected, actual = difference.expected, difference.actual
    texts = _json(expected), _json(actual)
    if (
        not isinstance(expected, str)
        or not isinstance(actual, str)
        or max(map(len, texts)) <= MAX_VALUE_CHARS
    ):
        return _cut(texts[0]), _cut(texts[1])
    # What tells two long texts apart may be far from their beginning.
    same = next((at for at, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    start = max(0, same - _BEFORE_DIFFERENCE)
    return _cut(texts[0], start), _cut(texts[1], start)


def _cut(text: str, start: int = 0) -> str:
    before = f"({count(start, 'character')}) … " if start else ""
    rest = len(text) - start - MAX_VALUE_CHARS
    behind = f" … ({count(rest, 'more character')})" if rest > 0 else ""
    return f"{before}{text[start : start + MAX_VALUE_CHARS]}{behind}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _what_is_wrong(report: FileReport) -> str:
    if isinstance(report.error, ConfigError):
        return "its configuration cannot be used"
    return "cannot be used" if report.is_not_loaded else "its cases could not be run"


def _indented(lines: list[str], spaces: int) -> list[str]:
    return [" " * (8 + spaces) + line for line in lines]


def is_colourful() -> bool:
    """Whether stdout is a terminal that shows colours, and nobody minds."""
    if sys.stdout is None or not sys.stdout.isatty():  # pyright: ignore[reportUnnecessaryComparison]: it is, when closed at the start
        return False
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("", "dumb")


# ---- for programs -----------------------------------------------------------------------------------------


def report_json(reports: Sequence[FileReport], tally: Tally) -> dict[str, Any]:
    """All of it as one document."""
    return {"files": [_file_json(report) for report in reports], "summary": tally.to_json()}


def _file_json(report: FileReport) -> dict[str, Any]:
    written: dict[str, Any] = {"path": report.path}
    if report.config is not None:
        written["config"] = report.config
    if report.error is not None:
        diagnostics: Sequence[Any] = getattr(report.error, "diagnostics", ())
        written["error"] = {
            "message": str(report.error),
            "diagnostics": [diagnostic.to_json() for diagnostic in diagnostics],
        }
    written["cases"] = [_case_json(case) for case in report.cases]
    return written


def _case_json(report: CaseReport) -> dict[str, Any]:
    result = report.result
    written: dict[str, Any] = {
        "name": result.case.name,
        "status": report.status,
        "durationSecs": round(result.duration_s, 6),
    }
    if result.case.expected is not None:
        written["expected"] = result.case.expected.to_json()
    if result.result is not None:
        written["actual"] = result.result.to_json()
    if result.differences:
        written["differences"] = [_difference_json(difference) for difference in result.differences]
    said = {"problem": result.problem, "failedStep": result.failed_step, "notUpdated": report.remark or None}
    return {**written, **{name: text for name, text in said.items() if text is not None}}


def _difference_json(difference: Difference) -> dict[str, Any]:
    written: dict[str, Any] = {"path": render_path(difference.path), "kind": difference.kind.value}
    if difference.kind is not DifferenceKind.UNEXPECTED:
        written["expected"] = difference.expected
    if difference.kind is not DifferenceKind.MISSING:
        written["actual"] = difference.actual
    if difference.note:
        written["note"] = difference.note
    return written
