"""``serve`` and ``submit``: a server as a process, and flows that are run on it."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from cli_process import CONFIG, DEADLINE_S, Finished, Started

Cli = Callable[..., Finished]
Start = Callable[..., Started]
WriteFlow = Callable[..., Path]

TOKEN = "a-token-of-the-tests"  # noqa: S105 — of no server


class Server:
    def __init__(self, started: Started) -> None:
        self.started = started
        assert started.process.stdout is not None
        ready, _, _ = select.select([started.process.stdout], [], [], DEADLINE_S)
        line = os.read(started.process.stdout.fileno(), 1000) if ready else b""
        assert line, started.finish()
        self.port: int = json.loads(line)["port"]
        self.url = f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request("GET", f"/api/v1{path}", headers=headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def runs(self) -> list[Any]:
        return self.get("/runs")[1]["runs"]


@pytest.fixture
def server(start: Start) -> Server:
    return Server(start("serve", "--port", "0", "--config", CONFIG))


def test_it_says_its_port_serves_and_ends_in_order_on_a_signal(start: Start) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        server = Server(start("serve", "--port", "0", "--config", CONFIG))
        assert server.get("/health")[1]["status"] == "healthy"
        components = {each["component"] for each in server.get("/components")[1]["components"]}
        assert {"/crew/echo", "/builtin/put_blob"} <= components
        server.started.signal_until_over(number)
        ran = server.started.finish()
        assert (ran.code, ran.stdout) == (0, "")
        assert f"serving {server.url}/api/v1" in ran.stderr


def test_a_flow_is_run_on_it_with_the_outputs_and_exit_codes_of_run(
    cli: Cli, flow: WriteFlow, server: Server, tmp_path: Path
) -> None:
    given = flow("/crew/echo", "{ value: { $input: $ } }")
    ran = cli("submit", "--url", server.url, "--flow", given, "--input-json", '{"n": "ä"}')
    assert (ran.code, ran.stdout) == (0, '{"outcome":"success","result":{"n":"ä"}}\n')
    [run] = server.runs()
    assert ran.stderr.startswith(f"run_id: {run['runId']}\n")

    inputs = tmp_path / "inputs.jsonl"
    inputs.write_text("1\n\n2\n3\n", encoding="utf-8")
    ran = cli("submit", "--url", f"{server.url}/api/v1", "--flow", given, "--inputs", inputs, "--quiet")
    assert (ran.code, ran.stderr) == (0, "")
    assert [json.loads(line)["result"] for line in ran.stdout.splitlines()] == [1, 2, 3]

    failing = flow("/crew/refuse")
    ran = cli("submit", "--url", server.url, "--flow", failing, "--input-json", "1")
    assert (ran.code, json.loads(ran.stdout)["error"]["code"]) == (1, -32110)
    assert "run failed in step only (/crew/refuse): not today (code -32110)" in ran.stderr
    again = cli(
        "submit", "--url", server.url, "--flow", failing, "--input-json", "1", "--exit-zero-on-failed-run"
    )
    assert (again.code, again.stdout) == (0, ran.stdout)


def test_what_is_not_waited_for_is_shown_as_it_stands(cli: Cli, flow: WriteFlow, server: Server) -> None:
    ran = cli("submit", "--url", server.url, "--flow", flow("/crew/wait"), "--input-json", "1", "--no-wait")
    assert ran.code == 0
    run = json.loads(ran.stdout)
    assert run["status"] == "running"
    assert server.runs()[0]["runId"] == run["runId"]


def test_an_interrupted_submit_leaves_the_run_and_a_stopped_server_cancels_it(
    start: Start, flow: WriteFlow, server: Server
) -> None:
    submitted = start("submit", "--url", server.url, "--flow", flow("/crew/wait"), "--input-json", "1")
    submitted.wait_for("run_id: ")
    submitted.signal_until_over(signal.SIGINT)
    ran = submitted.finish()
    assert (ran.code, ran.stdout) == (130, "")
    assert "the run goes on" in ran.stderr
    assert server.runs()[0]["status"] == "running"
    before = time.monotonic()
    server.started.signal_until_over(signal.SIGTERM)
    assert server.started.finish().code == 0
    assert time.monotonic() - before < 10


def test_a_stream_that_somebody_reads_holds_the_end_up_for_a_bounded_time(
    cli: Cli, flow: WriteFlow, server: Server
) -> None:
    ran = cli("submit", "--url", server.url, "--flow", flow("/crew/wait"), "--input-json", "1", "--no-wait")
    connection = HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
    try:
        connection.request("GET", f"/api/v1/runs/{json.loads(ran.stdout)['runId']}/events")
        response = connection.getresponse()
        assert response.readline() == b"id: 1\n"
        before = time.monotonic()
        server.started.signal(signal.SIGTERM)
        assert server.started.finish().code == 0
        assert time.monotonic() - before < 10
    finally:
        connection.close()


def test_a_server_asks_for_the_token_in_its_file(
    cli: Cli, start: Start, flow: WriteFlow, tmp_path: Path
) -> None:
    tokens = tmp_path / "token"
    tokens.write_text(TOKEN, encoding="utf-8")
    tokens.chmod(0o600)
    server = Server(start("serve", "--port", "0", "--config", CONFIG, "--bearer-token-file", tokens))
    assert server.get("/health")[0] == 200
    assert server.get("/runs")[0] == 401
    assert server.get("/runs", Authorization=f"Bearer {TOKEN}")[0] == 200
    submit = [
        "submit",
        "--url",
        server.url,
        "--flow",
        flow("/crew/echo", "{ value: 1 }"),
        "--input-json",
        "1",
    ]
    ran = cli(*submit)
    assert ran.code == 1
    assert "answers 401" in ran.stderr
    assert cli(*submit, "--bearer-token-file", tokens).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--host", "0.0.0.0"], 2, "--allow-insecure-bind"),  # noqa: S104 — refused
        (["--host", "no host"], 2, "bind"),
        (["--port", "70000"], 2, "70000"),
        (["--config", "none.yml"], 2, "none.yml"),
        (["--bearer-token-file", "none"], 2, "none"),
        (["--allowed-host", "a b"], 2, "a b"),
    ],
)
def test_a_server_that_cannot_be_says_why(
    cli: Cli, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    ran = cli("serve", "--port", "0", *arguments, cwd=tmp_path)
    assert (ran.code, ran.stdout) == (code, "")
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_port_that_is_taken_is_said(cli: Cli, server: Server, tmp_path: Path) -> None:
    ran = cli("serve", "--port", server.port, cwd=tmp_path)
    assert ran.code == 1
    assert f"cannot listen on 127.0.0.1:{server.port}" in ran.stderr


@pytest.mark.parametrize(
    ("url", "code", "says"),
    [
        ("http://127.0.0.1:1", 1, "cannot connect"),
        ("ftp://127.0.0.1", 2, "http"),
        ("127.0.0.1:7840", 2, "http://"),
    ],
)
def test_a_server_that_is_not_there_is_said(
    cli: Cli, flow: WriteFlow, url: str, code: int, says: str
) -> None:
    ran = cli("submit", "--url", url, "--flow", flow("/crew/echo"), "--input-json", "1")
    assert (ran.code, ran.stdout) == (code, "")
    assert says in ran.stderr


def test_a_flow_that_the_server_cannot_run_is_said(cli: Cli, flow: WriteFlow, server: Server) -> None:
    variables = "{ $variable: nobody }"
    ran = cli("submit", "--url", server.url, "--flow", flow("/crew/ecko", variables), "--input-json", "1")
    assert ran.code in (1, 2)
    assert ran.stderr
    assert "Traceback" not in ran.stderr


def test_each_run_is_logged_with_its_own_id_when_it_starts_and_when_it_ends(
    cli: Cli, start: Start, flow: WriteFlow
) -> None:
    server = Server(start("serve", "--port", "0", "--config", CONFIG, "--json"))
    ran = cli("submit", flow("/crew/echo", "{ value: 1 }"), "--url", server.url, "--input-json", "1", "-q")
    assert (ran.code, ran.stderr) == (0, "")
    refused = cli("submit", flow("/crew/refuse"), "--url", server.url, "--input-json", "1", "-q")
    assert refused.code == 1
    server.started.signal_until_over(signal.SIGTERM)
    said = [json.loads(line) for line in server.started.finish().stderr.splitlines()]
    runs: dict[str, str] = {}
    for one in said:
        if one.get("event") == "run_started":
            runs[one["run_id"]] = ""
            assert one["total_items"] == 1
        elif one.get("event") == "run_ended":
            assert runs[one["run_id"]] == ""
            runs[one["run_id"]] = one["status"]
    assert sorted(runs.values()) == ["completed", "failed"]
    assert "serving" in {one.get("event") for one in said}
    # An orderly end is no reason to warn.
    assert {one["level"] for one in said} == {"info"}


@pytest.mark.parametrize(
    ("level", "runs", "steps"), [("debug", 2, 2), ("info", 2, 0), ("WARNING", 0, 0), ("error", 0, 0)]
)
def test_a_server_says_what_its_log_level_lets_through(
    cli: Cli, start: Start, flow: WriteFlow, level: str, runs: int, steps: int
) -> None:
    environ = {
        **os.environ,
        "STEPFLOW_LOG_LEVEL": level,
        "STEPFLOW_PORT": "0",
        "STEPFLOW_CONFIG": str(CONFIG),
    }
    server = Server(start("serve", env=environ))
    assert (
        cli("submit", flow("/crew/echo", "{ value: 1 }"), "--url", server.url, "--input-json", "1").code == 0
    )
    [run] = server.runs()
    server.started.signal_until_over(signal.SIGTERM)
    lines = server.started.finish().stderr.splitlines()
    assert len([line for line in lines if line.startswith(f"run {run['runId']} item 0 step only ")]) == steps
    of_run = [line for line in lines if line.startswith(f"run {run['runId']}") and " step " not in line]
    assert (
        of_run
        == [
            f"run {run['runId']} started: flow test, 1 item",
            f"run {run['runId']} completed",
        ][:runs]
    )


def test_a_configuration_can_come_from_stdin(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "c.json"
    text = {"plugins": {"b": {"type": "builtin"}}, "routes": {"/b/{*component}": [{"plugin": "b"}]}}
    config.write_text(json.dumps(text), encoding="utf-8")
    with config.open("rb") as stdin:
        environ = {**os.environ, "STEPFLOW_CONFIG": "none.yml"}
        server = Server(start("serve", "--config-stdin", "--port", "0", stdin=stdin, env=environ))
    components = {each["component"] for each in server.get("/components")[1]["components"]}
    assert "/b/put_blob" in components
    assert not any(component.startswith("/builtin") for component in components)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("STEPFLOW_PORT", "many", "'--port': STEPFLOW_PORT: 'many' is not a valid integer"),
        ("STEPFLOW_PORT", "70000", "STEPFLOW_PORT: 70000 is not in the range"),
        ("STEPFLOW_LOG_LEVEL", "loud", "STEPFLOW_LOG_LEVEL: 'loud' is not one of 'debug', 'info'"),
        ("STEPFLOW_CONFIG", "none.yml", "none.yml: the configuration cannot be read"),
    ],
)
def test_what_the_environment_says_wrongly_is_named(
    cli_here: Cli, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    ran = cli_here("serve")
    assert (ran.code, ran.stdout) == (2, "")
    assert says in ran.stderr


def test_overrides_reach_the_server(cli: Cli, flow: WriteFlow, server: Server) -> None:
    overrides = '{"steps": {"only": {"value": {"component": "/crew/echo", "input": {"value": 5}}}}}'
    submit = ["submit", flow("/crew/refuse"), "--url", server.url, "--input-json", "1", "-q"]
    ran = cli(*submit, "--overrides-json", overrides)
    assert (ran.code, ran.stdout) == (0, '{"outcome":"success","result":5}\n')
    ran = cli(*submit, "--overrides-json", overrides.replace("only", "onyl"))
    assert ran.code == 2
    assert 'did you mean "only"?' in ran.stderr
    assert len(server.runs()) == 1
