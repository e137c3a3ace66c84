"""`stepflow-trio test` shows and writes nothing that a flow's schemas call secret."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_process import CONFIG, Finished

Cli = Callable[..., Finished]

FLOW = """name: n
description: d
schemas:
  type: object
  properties:
    input: {{ properties: {{ word: {{ type: string, is_secret: true }} }} }}
    output: {{ properties: {{ pin: {{ type: integer, is_secret: true }} }} }}
steps: [{{ id: echo, component: /crew/{component} }}]
output: {{ $step: echo }}
test:
  cases:
    - name: one
      input: {{ word: hunter22 }}
{expected}"""

ECHO = "echo, input: { value: { pin: 4711, said: { $input: $.word }, n: 1 } }"


def write_flow(directory: Path, component: str = ECHO, expected: str = "") -> Path:
    path = directory / "flow.yaml"
    path.write_text(FLOW.format(component=component, expected=expected), encoding="utf-8")
    return path


@pytest.mark.parametrize("given", [(), ("--json",)], ids=str)
@pytest.mark.parametrize(
    "expected",
    [
        "",
        "      output: { outcome: success, result: { pin: 4712, said: no, n: 2 } }\n",
        "      output: { outcome: success, result: 4712 }\n",
        "      output: { outcome: failed, error: { code: 1, message: the hunter22 } }\n",
    ],
)
def test_what_is_secret_of_a_result_is_not_shown(
    cli: Cli, tmp_path: Path, expected: str, given: tuple[str, ...]
) -> None:
    ran = cli("test", write_flow(tmp_path, expected=expected), "--config", CONFIG, *given)
    assert ran.code == 1
    assert "[REDACTED]" in ran.stdout
    for secret in ("hunter22", "4711"):
        assert secret not in ran.stdout + ran.stderr


def test_that_secrets_differ_is_a_failure_all_the_same(cli: Cli, tmp_path: Path) -> None:
    expected = "      output: { outcome: success, result: { pin: 4712, said: hunter22, n: 1 } }\n"
    ran = cli("test", write_flow(tmp_path, expected=expected), "--config", CONFIG, "--json")
    [case] = json.loads(ran.stdout)["files"][0]["cases"]
    assert (ran.code, case["status"]) == (1, "failed")
    [difference] = case["differences"]
    assert (difference["path"], difference["actual"]) == ("$.result.pin", "[REDACTED]")


def test_an_update_writes_no_secrets_and_says_so(cli: Cli, tmp_path: Path) -> None:
    path = write_flow(tmp_path)
    before = path.read_bytes()
    ran = cli("test", path, "--config", CONFIG, "--update", "--no-diff")
    assert ran.code == 1
    assert "not updated: the flow's schemas call a part of its output secret: write it by hand" in ran.stdout
    assert path.read_bytes() == before


def test_an_update_of_what_is_not_secret_is_written(cli: Cli, tmp_path: Path) -> None:
    path = write_flow(tmp_path, "echo, input: { value: { n: 1 } }")
    assert cli("test", path, "--config", CONFIG, "--update").code == 0
    assert cli("test", path, "--config", CONFIG).code == 0
