"""Lines of a configuration are shown beside what is wrong in them, unless they may hold a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepflow_trio.errors import ConfigError
from stepflow_trio.flows.diagnostics import Diagnostic
from stepflow_trio.runtime.config import read_config

SECRET = "hunter-of-secrets"  # noqa: S105 — of nobody


def found_in(text: str) -> list[Diagnostic]:
    """All that is wrong or odd, with what is shown of it."""
    try:
        config = read_config(text, name="c.yml", directory=Path(), environ={})
    except ConfigError as exc:
        wrong = exc
    else:
        assert len(config.diagnostics) == len(config.warnings)
        return list(config.diagnostics)
    assert len(wrong.diagnostics) == len(str(wrong).split("\n"))
    return list(wrong.diagnostics)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plugins: {}\nroutes: 1\n", "    2 | routes: 1\n      |         ^"),
        ("plugins: {}\nroutes: {}\ncolour: red\n", "    3 | colour: red\n      | ^"),
        ("plugins:\n  b: { type: biultin }\nroutes: {}\n", "    2 |   b: { type: biultin }\n"),
        ("plugins: {}\nroutes: [\n", "\n"),
        ('{"plugins": {},\n "routes": {"/x": 1}\n}', '    2 |  "routes": {"/x": 1}\n'),
    ],
)
def test_the_line_is_shown_with_a_caret(text: str, shown: str) -> None:
    assert any(shown in str(found) + "\n" for found in found_in(text))


@pytest.mark.parametrize(
    "text",
    [
        "plugins:\n  w: { type: stepflow, env: { T: SECRET }, x: 1 }\nroutes: {}\n",
        "plugins:\n  w:\n    type: stepflow\n    env:\n      A: SECRET\n      B: [SECRET]\nroutes: {}\n",
        "plugins:\n  w:\n    type: stepflow\n    env:\n      A: SECRET: SECRET\nroutes: {}\n",
        "plugins:\n  w:\n    type: stepflow\n    args:\n    - SECRET\n    - [SECRET]\nroutes: {}\n",
        "plugins:\n  w:\n    type: stepflow\n    args:\n    - 'SECRET\nroutes: {}\n",
        "plugins:\n  w:\n    type: stepflow\n    url: http://ann:SECRET@host\n    x: 1\nroutes: {}\n",
        "plugins:\n  w:\n    type: stepflow\n    arguments: [SECRET]\nroutes: {}\n",
        "plugins:\n  w:\n    type: stepflow\n    bearerToken: SECRET\nroutes: {}\n",
        "plugins:\n  w:\n    type: stepflow\n    environ:\n      # why\n\n      A: &SECRET [\nroutes: {}\n",
        '{"plugins":{"w":{"type":"stepflow","env":{"A":\n"SECRET" "SECRET"}}},"routes":{}}',
        '{\n "plugins": {\n  "w": {\n   "env": {\n    "A": "SECRET",\n    "B": 1 "SECRET"\n   }\n  }\n }\n}',
    ],
)
def test_a_line_that_may_hold_a_secret_is_not(text: str) -> None:
    found = found_in(text.replace("SECRET", SECRET))
    assert found
    for each in found:
        assert SECRET not in str(each)
        assert SECRET not in str(each.to_json())
        assert SECRET not in each.place.excerpt
