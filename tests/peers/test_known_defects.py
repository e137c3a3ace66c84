"""The page about the public releases names tests that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
HEADING = "\n## What public releases do, and what this does instead\n"
SECTION = TEXT.partition(HEADING)[2].partition("\n## ")[0]
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in SECTION.splitlines()
    if line.startswith("|") and not re.match(r"\|(-|.*\| tests \|$)", line)
]
NAMED = sorted(set(re.findall(r"`(tests/[^`]*)`", TEXT)))


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.name for node in ast.walk(tree) if isinstance(node, functions) and node.name.startswith("test")
    }


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_is_named_is_there(name: str) -> None:
    path, _, function = name.partition("::")
    assert (ROOT / path).exists()
    if function:
        assert function in names_in(ROOT / path)
    elif path.endswith(".py"):
        assert names_in(ROOT / path)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_every_row_says_what_happens_there_and_here_and_which_test_shows_it(row: list[str]) -> None:
    there, here, tests = row
    assert there
    assert here
    assert re.fullmatch(r"(`tests/[\w/]+\.py(::test_\w+)?`( |$))+", tests)


def test_there_are_rows() -> None:
    assert len(ROWS) >= 25
