"""The line that a diagnostic shows: the caret is below the character, whatever the line holds."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.flows.diagnostics import Diagnostic, DiagnosticKind
from stepflow_trio.flows.source_text import SourceText


def excerpt(text: str, offset: int) -> list[str]:
    """The lines below a diagnostic's first one."""
    found = SourceText("f", text).diagnostic(DiagnosticKind.SYNTAX_ERROR, "no", offset)
    first, *rest = str(found).split("\n")
    assert first.startswith("f:")
    return rest


@pytest.mark.parametrize(
    ("text", "offset", "shown"),
    [
        ("a: b", 3, ["    1 | a: b", "      |    ^"]),
        ("x\n  y: z  \n", 4, ["    2 |   y: z", "      |   ^"]),
        ("a\tb\x00c\x7fd", 6, ["    1 | a␉b␀c␡d", "      |       ^"]),
        ("“日本”: é", 5, ["    1 | “日本”: é", "      |        ^"]),
        ("e\u0301x\u202ey", 2, ["    1 | e\u0301x\ufffdy", "      |  ^"]),
        ("short", 5, ["    1 | short", "      |      ^"]),
        ("   ", 1, []),
    ],
)
def test_the_caret_is_below_the_character_and_what_cannot_be_seen_is_shown(
    text: str, offset: int, shown: list[str]
) -> None:
    assert excerpt(text, offset) == shown


def test_a_long_line_is_cut_around_the_character() -> None:
    long = "".join(f"{number:05}," for number in range(1000))
    line, below = excerpt(long, 3000)
    assert line.startswith("    1 | …")
    assert line.endswith("…")
    assert len(line) < 180
    assert line[below.index("^") :].startswith("00500,")
    line, below = excerpt(long, 6)
    assert line.startswith("    1 | 00000,")
    assert line.endswith("…")
    assert line[below.index("^") :].startswith("00001,")
    line, below = excerpt(long, 5994)
    assert line.startswith("    1 | …")
    assert line.endswith("00999,")
    assert line[below.index("^") :] == "00999,"


def test_of_a_line_however_long_only_a_part_is_kept() -> None:
    text = SourceText("f", "x" * 10_000_000)
    place = text.place(5_000_000)
    assert (place.line, place.column) == (1, 5_000_001)
    assert len(place.excerpt) <= 1000
    assert "…" in excerpt(text.text, 5_000_000)[0]


@given(st.text(st.characters(exclude_characters="\n")), st.data())
def test_what_is_shown_is_printable_and_the_caret_is_in_its_column(line: str, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(line)))
    shown = excerpt(line, offset)
    assert all(each.isprintable() for each in shown)
    if shown:
        assert shown[0].startswith("    1 | ")
        assert shown[1].startswith("      | ")
        assert shown[1].strip(" |") == "^"
        before = shown[1].index("^") - len("      | ")
        assert before <= sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in shown[0]) - 7


def test_a_place_without_a_text_shows_no_line() -> None:
    found = SourceText("f", "").diagnostic(DiagnosticKind.SYNTAX_ERROR, "no", 0)
    assert "\n" not in str(found)
    assert isinstance(found, Diagnostic)
