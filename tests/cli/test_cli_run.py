"""What a run gives: results alone on stdout, everything else on stderr, and an exit code to go by."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_process import COMMAND, CONFIG, Finished

Cli = Callable[..., Finished]
WriteFlow = Callable[..., Path]

ECHO = "/crew/echo"
ECHO_INPUT = "{ value: { $input: $ } }"


def test_a_run_prints_its_result_alone_on_stdout_and_its_progress_on_stderr(
    cli: Cli, flow: WriteFlow
) -> None:
    ran = cli("run", "--flow", flow(ECHO, ECHO_INPUT), "--config", CONFIG, "--input-json", '{"ä": [1, 2.5]}')
    assert (ran.code, ran.stdout) == (0, '{"outcome":"success","result":{"ä":[1,2.5]}}\n')
    lines = ran.stderr.splitlines()
    assert re.fullmatch("run_id: [0-9a-f-]{36}", lines[0])
    said = [re.sub(r" *[0-9.]+ s\b| pid \d+", " …", line) for line in lines[1:]]
    assert "[ …] worker crew started, …" in said
    assert said[0] == "[ …] run started, 1 item"
    assert [line for line in said if "step" in line] == [
        "[ …] step only started (/crew/echo)",
        "[ …] step only completed in …",
    ]
    assert said[-1] == "[ …] run completed"


def test_a_run_that_fails_prints_its_failure_as_the_result_and_exits_with_1(
    cli: Cli, flow: WriteFlow
) -> None:
    ran = cli("run", "--flow", flow("/crew/refuse"), "--config", CONFIG, "--input-json", "null")
    assert ran.code == 1
    assert json.loads(ran.stdout) == {
        "outcome": "failed",
        "error": {"code": -32110, "message": "not today", "data": {"asked": True}},
    }
    assert "step only failed after" in ran.stderr
    assert ran.stderr.endswith("run failed in step only (/crew/refuse): not today (code -32110)\n")


def test_a_failed_run_exits_with_0_where_that_was_asked_for(cli: Cli, flow: WriteFlow) -> None:
    ran = cli(
        "run", "--flow", flow("/crew/refuse"), "--config", CONFIG, "--input-json", "{}",
        "--exit-zero-on-failed-run",
    )  # fmt: skip
    assert (ran.code, json.loads(ran.stdout)["outcome"]) == (0, "failed")


def test_quiet_shows_nothing_of_a_run_that_succeeds_and_why_one_fails(cli: Cli, flow: WriteFlow) -> None:
    echo = cli("run", "-q", "--flow", flow(ECHO, ECHO_INPUT), "--config", CONFIG, "--input-json", "7")
    assert echo == Finished(0, '{"outcome":"success","result":7}\n', "")
    refused = cli("run", "--quiet", "--flow", flow("/crew/refuse"), "--config", CONFIG, "--input-json", "7")
    assert refused.stderr == "run failed in step only (/crew/refuse): not today (code -32110)\n"


def test_what_a_worker_prints_reaches_stderr_under_its_name_and_cannot_move_the_cursor(
    cli: Cli, flow: WriteFlow
) -> None:
    ran = cli(
        "run", "--flow", flow("/crew/chatter", "{ lines: 2 }"), "--config", CONFIG, "--input-json", "{}"
    )
    assert ran.stdout == '{"outcome":"success","result":"said"}\n'
    said = [line.partition("] ")[2] for line in ran.stderr.splitlines() if "crew |" in line]
    assert said[0] == "crew | this is printed to stdout"
    assert [line[:13] for line in said[1:]] == ["crew | line 0", "crew | line 1"]
    assert "\x1b" not in ran.stderr


def test_a_step_that_is_tried_again_says_why_and_when(cli: Cli, flow: WriteFlow) -> None:
    retried = flow("/crew/refuse_at_first", more="    onError: { action: retry, maxRetries: 1 }\n")
    config = retried.with_name("config.json")
    plugin = {
        "type": "stepflow",
        "transport": "stdio",
        "command": "${STEPFLOW_PYTHON}",
        "args": ["worker.py"],
    }
    config.write_text(
        json.dumps(
            {
                "workingDirectory": str(CONFIG.parent),
                "plugins": {"crew": {**plugin, "env": {"PYTHONPATH": "${PYTHONPATH:-}"}}},
                "routes": {"/crew/{*component}": [{"plugin": "crew"}]},
                "retry": {"backoff": {"type": "constant", "delayMs": 1}},
            }
        ),
        encoding="utf-8",
    )
    ran = cli("run", "--flow", retried, "--config", config, "--input-json", "{}")
    assert (ran.code, json.loads(ran.stdout)["result"]) == (0, 2), ran.stderr
    assert re.search(r"step only failed, attempt 2 in 0\.0\d s: not yet \(code -32110\)", ran.stderr)
    assert "step only started (/crew/refuse_at_first, attempt 2)" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["--input", "in.json"], ""),
        (["--input", "in.yaml"], ""),
        (["--input-json", '{"n": 1}'], ""),
        (["--input-yaml", "n: 1"], ""),
        (["--input", "-"], '{"n": 1}'),
        (["--input", "-", "--stdin-format", "yaml"], "n: 1"),
        ([], '{"n": 1}'),
        (["--stdin-format", "yaml"], "n: 0x1"),
    ],
)
def test_an_input_comes_from_a_file_an_option_or_stdin(
    cli: Cli, flow: WriteFlow, tmp_path: Path, arguments: list[str], stdin: str
) -> None:
    (tmp_path / "in.json").write_text('{"n": 1}', encoding="utf-8")
    (tmp_path / "in.yaml").write_text("# a comment\nn: 1\n", encoding="utf-8")
    given = flow("/builtin/put_blob", "{ blob_type: data, data: { $input: n } }")
    ran = cli("run", "-q", "--flow", given, *arguments, stdin=stdin, cwd=tmp_path)
    assert ran.stderr == ""
    # The id of the blob `1`.
    assert json.loads(ran.stdout)["result"]["blob_id"].startswith("6b86b273ff34fce1")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--variables-json", '{"who": "you"}'), ("--variables-yaml", "who: you"), ("--variables", "vars.yml")],
)
def test_variables_reach_the_flow(cli: Cli, flow: WriteFlow, tmp_path: Path, option: str, value: str) -> None:
    (tmp_path / "vars.yml").write_text("who: you", encoding="utf-8")
    given = flow("/builtin/create_messages", "{ user_prompt: { $variable: who } }")
    ran = cli("run", "-q", "--flow", given, "--input-json", "{}", option, value, cwd=tmp_path)
    assert (ran.code, json.loads(ran.stdout)["result"]) == (
        0,
        {"messages": [{"role": "user", "content": "you"}]},
    )


def test_a_batch_prints_a_line_an_item_in_the_order_of_the_inputs(
    cli: Cli, flow: WriteFlow, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('{"n": 1}\n\n{"m": 2}\r\n{"n": 3}', encoding="utf-8")
    given = flow(ECHO, "{ value: { $input: n } }")
    ran = cli(
        "run",
        "--flow",
        given,
        "--config",
        CONFIG,
        "--inputs",
        tmp_path / "in.jsonl",
        "--max-concurrency",
        "2",
    )
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [result.get("result") for result in results] == [1, None, 3]
    assert results[1]["error"]["code"] == -32200
    assert ran.code == 1
    assert "run started, 3 items" in ran.stderr
    assert re.search(r"run input line 3 \(\d of 3\) failed: ", ran.stderr)
    last = ran.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"run failed: 1 of 3 items failed, the first at input line 3 in step only \(/crew/echo\): "
        r".* \(code -32200\)",
        last,
    )


def test_a_batch_without_inputs_prints_nothing(cli: Cli, flow: WriteFlow) -> None:
    ran = cli("run", "-q", "--flow", flow("/builtin/put_blob"), "--inputs", "-", stdin="\n")
    assert ran == Finished(0, "", "")


def test_a_result_goes_to_a_file_where_one_is_named(cli: Cli, flow: WriteFlow, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    given = flow(ECHO, ECHO_INPUT)
    ran = cli("run", "-q", "--flow", given, "--config", CONFIG, "--input-json", "[]", "--output", output)
    assert ran == Finished(0, "", "")
    assert output.read_text(encoding="utf-8") == '{"outcome":"success","result":[]}\n'


def test_a_worker_that_cannot_be_started_fails_the_run_and_says_what_was_tried(
    cli: Cli, flow: WriteFlow, tmp_path: Path
) -> None:
    config = tmp_path / "config.yml"
    text = CONFIG.read_text(encoding="utf-8").replace("${STEPFLOW_PYTHON}", "no-such-program")
    config.write_text(text, encoding="utf-8")
    ran = cli("run", "--flow", flow(ECHO, ECHO_INPUT), "--config", config, "--input-json", "1")
    assert (ran.code, json.loads(ran.stdout)["outcome"]) == (1, "failed")
    assert "no-such-program" in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr


def test_a_worker_that_dies_fails_the_step_with_what_it_said_last(cli: Cli, flow: WriteFlow) -> None:
    ran = cli("run", "--flow", flow("/crew/die"), "--config", CONFIG, "--input-json", "{}")
    assert ran.code == 1
    assert "exited with code 7" in json.loads(ran.stdout)["error"]["message"]
    assert "crew | dying" in ran.stderr


def test_python_workers_run_on_the_interpreter_of_the_command_unless_the_environment_names_one(
    cli: Cli, flow: WriteFlow
) -> None:
    given = flow(ECHO, ECHO_INPUT)
    environ = {**os.environ, "STEPFLOW_PYTHON": "no-such-python"}
    ran = cli("run", "--flow", given, "--config", CONFIG, "--input-json", "1", env=environ)
    assert "no-such-python" in ran.stderr


@pytest.mark.parametrize("arguments", [["schema"], ["--help"], ["run", "--input-json", "1"]])
def test_a_reader_that_goes_away_ends_the_command_in_silence(flow: WriteFlow, arguments: list[str]) -> None:
    if arguments[0] == "run":
        arguments = [
            *arguments,
            "-q",
            "--flow",
            str(flow("/builtin/put_blob", "{ blob_type: data, data: 1 }")),
        ]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        ran = subprocess.run([*COMMAND, *arguments], stdout=nobody, stderr=subprocess.PIPE, timeout=20)
    assert (ran.returncode, ran.stderr) == (1, b"")


@pytest.mark.parametrize("command", ["run", "schema"])
def test_a_result_that_cannot_be_written_is_an_error_that_says_why(flow: WriteFlow, command: str) -> None:
    given = flow("/builtin/put_blob", "{ blob_type: data, data: 1 }")
    more = ["-q", "--flow", given, "--input-json", "1"] if command == "run" else []
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run([*COMMAND, command, *more], stdout=full, stderr=subprocess.PIPE, timeout=20)
    assert ran.returncode == 1
    assert ran.stderr.decode() == "error: stdout cannot be written: No space left on device\n"


@pytest.mark.parametrize(("closing", "code"), [("<&-", 0), (">&-", 1), ("2>&-", 0)])
def test_closed_standard_streams_cost_no_more_than_what_would_have_gone_through_them(
    flow: WriteFlow, closing: str, code: int
) -> None:
    given = flow("/builtin/put_blob", "{ blob_type: data, data: 1 }")
    ran = subprocess.run(
        ["sh", "-c", f'exec "$@" {closing}', "sh", *COMMAND, "run", "--flow", given, "--input-json", "1"],
        capture_output=True,
        timeout=20,
    )
    assert ran.returncode == code
    assert (b'"success"' in ran.stdout) == (code == 0)
    assert b"Traceback" not in ran.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_result_that_does_not_fit_where_stdout_leads_fails_the_command(
    flow: WriteFlow, tmp_path: Path, unbuffered: str
) -> None:
    given = flow("/builtin/create_messages", "{ user_prompt: { $input: $ } }")
    input = tmp_path / "input.json"
    input.write_text(json.dumps("x" * 100_000), encoding="utf-8")
    with (tmp_path / "out").open("wb") as file:
        ran = subprocess.run(
            ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", *COMMAND, "run", given, "-q", "--input", input],
            stdout=file,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
            timeout=60,
        )
    assert ran.returncode == 1
    assert b"stdout cannot be written: File too large" in ran.stderr
