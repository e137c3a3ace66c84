"""The package's own names: type checkers and Python see the same ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stepflow_trio


def names_for_type_checkers() -> dict[str, str]:
    tree = ast.parse(Path(stepflow_trio.__file__).read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.asname or alias.name: node.module or ""
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_what_type_checkers_are_told_is_what_there_is() -> None:
    assert names_for_type_checkers() == stepflow_trio._ROOM_OF


@pytest.mark.parametrize("name", sorted(names_for_type_checkers()))
def test_every_public_name_can_be_had_and_is_documented(name: str) -> None:
    value = getattr(stepflow_trio, name)
    assert value.__doc__, f"{name} has no docstring"
    assert name in dir(stepflow_trio)


def test_everything_public_can_be_imported_at_once() -> None:
    names: dict[str, object] = {}
    exec("from stepflow_trio import *", names)  # noqa: S102 — only a module may say so
    assert names.keys() - {"__builtins__"} == names_for_type_checkers().keys()


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Wroker'"):
        stepflow_trio.Wroker  # noqa: B018 — reading it is the test


def test_a_worker_does_not_import_the_runtime() -> None:
    code = "import sys, stepflow_trio; stepflow_trio.Worker; print('stepflow_trio.runtime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
