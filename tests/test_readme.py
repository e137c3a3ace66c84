"""The README says what is true: its code runs, its commands stand there whole, its numbers are the code's."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from documents import Page

from stepflow_trio.engine import Limits
from stepflow_trio.protocol.codec import MAX_NESTING
from stepflow_trio.protocol.lines import MAX_FRAME_BYTES
from stepflow_trio.runtime.config import read_config

ROOT = Path(__file__).parent.parent
PAGE = Page(ROOT / "README.md")
README = PAGE.text


def test_every_python_block_runs_on_its_own_and_prints_what_its_comments_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    PAGE.run_python(capsys, apart=True)


def test_the_two_commands_need_nothing_before_them() -> None:
    run, test = PAGE.blocks("sh")
    for command in (run, test):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install --quiet ")
        assert command.count("\n") == 1, "one line, to be copied whole"
    assert "&& .venv/bin/stepflow-trio run --flow docs/examples/" in run
    assert test.endswith("&& .venv/bin/python -m pytest -q\n")
    for path in re.findall(r" (docs/\S+)", run):
        assert (ROOT / path).is_file()


def test_the_configuration_can_be_read(tmp_path: Path) -> None:
    (text,) = PAGE.blocks("yaml")
    config = read_config(text, name="README.md", directory=tmp_path, environ={"STEPFLOW_PYTHON": "python"})
    assert (list(config.plugins), config.warnings) == (["text"], ())


def test_the_limits_are_those_of_the_code() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+|none) \|", README, re.MULTILINE))
    limits = {
        field: "none" if value is None else f"{value:,g}" if isinstance(value, float) else f"{value:,}"
        for field, value in dataclasses.asdict(Limits()).items()
    }
    assert rows == limits
    sizes = re.search(r"at most (\d+) MiB and nests at most (\d+) deep", README)
    assert sizes
    assert (int(sizes[1]) * 2**20, int(sizes[2])) == (MAX_FRAME_BYTES, MAX_NESTING)


def test_every_file_that_is_linked_exists() -> None:
    PAGE.check_links()


def test_every_command_of_the_table_exists() -> None:
    from stepflow_trio.cli.commands import commands

    named = set(re.findall(r"^\| `stepflow-trio ([a-z-]+)", README, re.MULTILINE))
    assert named == set(commands.commands)
    options = {
        name
        for command in commands.commands.values()
        for p in command.params
        for name in (*p.opts, *p.secondary_opts)
    }
    assert (
        set(re.findall(r"`[^`]*?(--[a-z]+(?:-[a-z]+)*)", README.partition("## The command line")[2]))
        <= options
    )
