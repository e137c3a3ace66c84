"""Results come whole; what else the command line says is without the secrets of the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_process import CONFIG, Finished

from stepflow_trio.cli.log_notices import logged_text

Cli = Callable[..., Finished]
WriteFlow = Callable[..., Path]

WORD = "hunter22"

SECRETS = """schemas:
  type: object
  properties:
    input: { properties: { word: { type: string, is_secret: true } } }
    variables: { type: object, properties: { key: { type: string, is_secret: true } } }
"""


def test_a_batch_prints_its_results_whole(cli: Cli, flow: WriteFlow) -> None:
    written = flow("/crew/echo", "{ value: { $input: $.word } }", more=SECRETS)
    ran = cli(
        "run", "--flow", written, "--config", CONFIG, "--inputs", "-", "-q",
        stdin=f'{{"word": "{WORD}"}}\n{{"word": "{WORD}3"}}\n',
    )  # fmt: skip
    assert [json.loads(line)["result"] for line in ran.stdout.splitlines()] == [WORD, f"{WORD}3"]
    assert ran.stderr == ""


def test_why_a_run_failed_is_said_without_its_secrets(cli: Cli, flow: WriteFlow) -> None:
    written = flow("/crew/refuse", "{ why: { $input: $.word } }", more=SECRETS)
    ran = cli("run", "--flow", written, "--config", CONFIG, "--input-json", f'{{"word": "not {WORD}"}}')
    assert ran.code == 1
    assert ran.stderr.endswith("run failed in step only (/crew/refuse): [REDACTED] (code -32110)\n")
    assert WORD not in ran.stdout + ran.stderr


def test_what_is_left_of_a_logged_exception_is_shown() -> None:
    record = logging.LogRecord("stepflow_trio.worker", logging.ERROR, "x", 1, "it failed", None, None)
    record.exc_text = "Traceback (most recent call last):\n  …\nValueError: no [REDACTED]"
    assert logged_text(record) == "error: it failed\nValueError: no [REDACTED]"
    assert logged_text(record, with_traceback=True) == f"error: it failed\n{record.exc_text}"


@pytest.mark.parametrize("given", [(), ("--json",)], ids=str)
@pytest.mark.parametrize(
    ("option", "text", "says"),
    [
        ("--variables-json", f'{{"key": "{WORD}",}}', "1:19: error: this is not JSON: there is a comma"),
        ("--variables-json", f'{{"{WORD}": 1, "{WORD}": 2}}', "1:17: error: this cannot be read"),
        ("--variables-yaml", f"key: *{WORD}", "1:6: error: this cannot be read"),
        ("--variables-yaml", f"key: !{WORD} x", "1:6: error: this cannot be read"),
        ("--input-json", f'{{"word": {WORD}}}', "1:10: error: this is not JSON"),
        ("--input-yaml", f"word: '{WORD}", "error: this cannot be read"),
    ],
)
def test_what_cannot_be_read_is_not_quoted_where_it_may_be_secret(
    cli_here: Callable[..., Finished],
    flow: WriteFlow,
    option: str,
    text: str,
    says: str,
    given: tuple[str, ...],
) -> None:
    written = flow("/builtin/create_messages", "{ user_prompt: x }", more=SECRETS)
    beside = [] if option.startswith("--input") else ["--input-json", "{}"]
    ran = cli_here("run", "--flow", written, option, text, *beside, *given)
    assert ran.code == 2
    assert (json.loads(ran.stderr)["message"] if given else ran.stderr).count(says.split("error: ")[1]) == 1
    assert given or says in ran.stderr
    assert WORD not in ran.stderr


def test_what_cannot_be_read_is_quoted_where_nothing_is_secret(
    cli_here: Callable[..., Finished], flow: WriteFlow
) -> None:
    written = flow("/builtin/create_messages", "{ user_prompt: x }")
    ran = cli_here("run", "--flow", written, "--input-json", f'{{"word": {WORD}}}')
    assert WORD in ran.stderr
