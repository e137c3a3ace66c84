"""docs/cli.md is what there is: its options are the commands' own, and its examples print what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_process import DEADLINE_S

from stepflow_trio.cli.commands import commands

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `([\w-]+)`\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
EXAMPLES = re.findall(r"^\$ (.+)\n((?:(?!\$ |```).*\n)*)", TEXT, re.MULTILINE)


def documented(command: str) -> set[str]:
    """The options in the first column of a command's tables."""
    rows = re.findall(r"^\| (`-.+?) \|(?!\|)", SECTIONS[command].replace("\\|", "/"), re.MULTILINE)
    return {option for row in rows for option in re.findall(r"`(--?[\w-]+)", row)}


def offered(command: click.Command) -> set[str]:
    options = [option for option in command.params if isinstance(option, click.Option)]
    return {name for option in options for name in (*option.opts, *option.secondary_opts)}


def test_every_link_leads_somewhere() -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", TEXT):
        page = PAGE.parent / target if target else PAGE
        headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, f"{target}#{anchor}"


def test_every_command_has_its_section() -> None:
    assert set(SECTIONS) == set(commands.commands)


@pytest.mark.parametrize("name", sorted(commands.commands))
def test_the_options_of_a_section_are_those_of_the_command(name: str) -> None:
    assert documented(name) == offered(commands.commands[name])


@pytest.mark.parametrize("name", sorted(commands.commands))
def test_every_command_has_json(name: str) -> None:
    assert "--json" in offered(commands.commands[name])


@pytest.mark.parametrize("name", sorted(commands.commands))
def test_the_choices_of_a_section_are_the_command_s(name: str) -> None:
    for option in commands.commands[name].params:
        if isinstance(option.type, click.Choice):
            choices = "\\|".join(map(str, option.type.choices))
            assert f"`{option.opts[0]} {choices}`" in SECTIONS[name]


def files(language: str) -> list[tuple[str, str]]:
    return re.findall(rf"`([\w.-]+)`:\n\n```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("line", "printed"), EXAMPLES, ids=[line for line, _ in EXAMPLES])
def test_an_example_prints_what_is_under_it(line: str, printed: str, tmp_path: Path) -> None:
    given = [*files("python"), *files("yaml")]
    assert [name for name, _ in given] == ["shop.py", "flow.yaml", "stepflow-config.yml"]
    for name, text in given:
        (tmp_path / name).write_text(text, encoding="utf-8")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["sh", "-c", line],
        cwd=tmp_path,
        env={"PATH": path, "LANG": "C.UTF-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=DEADLINE_S,
    )
    assert ran.stdout.decode() == printed
