"""What the tests of transports share: nothing may be left behind, and how to start a child quickly."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from process_stage import Lifelines, has_children, open_files


@pytest.fixture(autouse=True)
def nothing_is_left() -> Generator[None]:
    before = open_files()
    yield
    assert open_files() == before
    assert not has_children()


@pytest.fixture
def python() -> Callable[..., list[str]]:
    """The command that runs a script, without what makes an interpreter start slowly."""

    def command(script: str, *arguments: str) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", textwrap.dedent(script), *arguments]

    return command


@pytest.fixture
def lifelines(tmp_path: Path) -> Generator[Lifelines]:
    lines = Lifelines(tmp_path / "lifelines")
    yield lines
    lines.close()
