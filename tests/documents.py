"""A page of documentation as its tests see it: blocks of code, links, headings."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pytest


class Page:
    """One Markdown file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[str]:
        """The fenced blocks of one language, in order."""
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)

    def run_python(self, capsys: pytest.CaptureFixture[str], *, apart: bool = False) -> None:
        """Run the Python blocks; each must print what its ``print(…)  # …`` lines promise.

        They share their names, one page being one module, unless they are run ``apart``.
        """
        module = types.ModuleType(self.path.stem)
        for code in self.blocks("python"):
            if apart:
                module = types.ModuleType(self.path.stem)
            line = self.text[: self.text.index(code)].count("\n")
            # On its own lines, so that a traceback leads to the page.
            exec(compile("\n" * line + code, self.name, "exec"), module.__dict__)  # noqa: S102 — ours
            promised = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
            printed = capsys.readouterr().out.splitlines()
            assert printed == promised, f"{printed} is not {promised}"

    def anchors(self) -> set[str]:
        """What a link can name behind its ``#``."""
        headings = re.findall(r"^#+ (.*)$", self.text, re.MULTILINE)
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def check_links(self) -> None:
        """Every link to a file, or to a heading in one, leads somewhere."""
        for target, anchor in re.findall(r"\]\((?!https:)([^)#]*)#?([^)]*)\)", self.text):
            path = self.path.parent / target if target else self.path
            assert path.exists(), target
            assert not anchor or anchor in Page(path).anchors(), f"{target}#{anchor}"
