"""``submit`` shows what ``run`` does, from the server's event stream; without one, it does without."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cli_process import CONFIG, DEADLINE_S, Finished, Started
from msgspec import structs

from stepflow_trio import Context, RestApi, Worker, open_runtime
from stepflow_trio.cli import progress_stream, submission
from stepflow_trio.cli.progress_display import ProgressDisplay
from stepflow_trio.cli.progress_stream import RunStream
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.flows.results import Failed, Success
from stepflow_trio.runtime.events import Event, RunEnded, RunStarted, StepEnded, StepProgressed
from stepflow_trio.transports.http.client import open_http_client
from stepflow_trio.transports.http.hosting import open_http_host

Cli = Callable[..., Finished]
Start = Callable[..., Started]
WriteFlow = Callable[..., Path]

RETRIES = "    onError: { action: retry, maxRetries: 2 }\n"
DEFAULT = "    onError: { action: useDefault, defaultValue: 5 }\n"
WITH_A_WORD = "schemas: { properties: { input: { properties: { word: { is_secret: true } } } } }\n"
NOW = "2025-01-01T00:00:00Z"
ERROR = {"code": -32110, "message": "not today"}
DONE = {"outcome": "success", "result": 1}
FAILED = {"outcome": "failed", "error": ERROR}


# ---- a server of ours, as a process ---------------------------------------------------------------------


@pytest.fixture
def url(start: Start) -> str:
    server = start("serve", "--port", "0", "--config", CONFIG)
    found = server.wait_for(r"serving (http://127\.0\.0\.1:\d+)/api/v1")
    return found[1]


def of_steps(stderr: str) -> list[str]:
    """The lines of a log about the run and its steps, without times and ids."""
    lines = [re.sub(r"\d+\.\d+ s", "N s", line) for line in stderr.splitlines()]
    lines = [re.sub(r"\[ *N s\]", "", line) for line in lines]
    about = (" worker ", " crew |", "run_id: ")
    return [line for line in lines if not line.startswith(about)]


def told(stderr: str) -> list[dict[str, Any]]:
    """The objects of ``--json``, but for what workers do, without times and ids."""
    said = [json.loads(line) for line in stderr.splitlines()]
    given = [one for one in said if not str(one.get("event")).startswith("worker_")]
    return [{k: v for k, v in one.items() if k not in ("run_id", "took_s", "delay_s")} for one in given]


FLOWS = [
    ("/crew/echo", "{ value: 1 }", ""),
    ("/crew/refuse", "{}", ""),
    ("/crew/refuse", "{}", DEFAULT),
    ("/crew/refuse_at_first", "{}", RETRIES),
    ("/crew/echo", "{ value: { $input: $.none } }", ""),
    ("/crew/refuse", "{ why: { $input: $.word } }", WITH_A_WORD),
]


@pytest.mark.parametrize(("component", "input", "more"), FLOWS, ids=str)
def test_submit_says_what_run_says(
    cli: Cli, flow: WriteFlow, url: str, component: str, input: str, more: str
) -> None:
    given = (flow(component, input, more=more), "--input-json", '{"word": "not hunter22"}')
    here, there = cli("run", "--config", CONFIG, *given), cli("submit", "--url", url, *given)
    assert (there.code, there.stdout) == (here.code, here.stdout)
    assert of_steps(there.stderr) == of_steps(here.stderr)
    assert any("step only " in line for line in of_steps(there.stderr))
    here, there = (
        cli("run", "--json", "--config", CONFIG, *given),
        cli("submit", "--json", "--url", url, *given),
    )
    assert told(there.stderr) == told(here.stderr)


def test_of_a_batch_submit_says_which_input_line_failed_and_in_which_step(
    cli: Cli, flow: WriteFlow, url: str, tmp_path: Path
) -> None:
    inputs = tmp_path / "inputs.jsonl"
    inputs.write_text('{"a": 1}\n\n{"b": 2}\n', encoding="utf-8")
    given = (flow("/crew/echo", "{ value: { $input: $.a } }"), "--inputs", inputs, "--max-concurrency", 1)
    here, there = cli("run", "--config", CONFIG, *given), cli("submit", "--url", url, *given)
    assert (there.code, there.stdout) == (here.code, here.stdout)
    assert of_steps(there.stderr) == of_steps(here.stderr)
    assert "1 of 2 items failed, the first at input line 3 in step only (/crew/echo)" in there.stderr


def test_progress_comes_while_the_run_is_at_work_and_ctrl_c_leaves_it_there(
    start: Start, cli: Cli, flow: WriteFlow, url: str
) -> None:
    submitted = start("submit", "--url", url, flow("/crew/wait"), "--input-json", "1", "--json")
    run_id = submitted.wait_for(r'"run_id": "([^"]+)"')[1]
    submitted.wait_for(r'"event": "step_started", [^\n]*"step_id": "only", "component": "/crew/wait"')
    submitted.signal_until_over(signal.SIGINT)
    ran = submitted.finish()
    assert (ran.code, ran.stdout) == (130, "")
    assert json.loads(ran.stderr.splitlines()[-1])["message"] == "interrupted: the run goes on"
    again = cli("submit", "--url", url, flow("/crew/echo", "{ value: 1 }"), "--input-json", "1", "-q")
    assert again.code == 0
    assert run_id


def test_a_step_that_an_override_leads_elsewhere_is_named_with_the_component_that_failed(
    cli: Cli, flow: WriteFlow, url: str
) -> None:
    overrides = '{"steps": {"only": {"value": {"component": "/crew/refuse", "input": {}}}}}'
    given = (flow("/crew/echo"), "--input-json", "1", "-q", "--overrides-json", overrides)
    for ran in (cli("run", "--config", CONFIG, *given), cli("submit", "--url", url, *given)):
        assert "run failed in step only (/crew/refuse): not today" in ran.stderr


# ---- a server of ours, in this process ------------------------------------------------------------------


async def test_what_a_stream_tells_are_the_events_that_the_run_had() -> None:
    worker = Worker()

    @worker.component
    async def work(number: int, context: Context) -> int:
        context.progress(0.5, "half")
        await goes_on.wait()
        if context.attempt == 1 or number == 1:
            raise ValueError("no")
        return number

    step: Any = {"id": "a", "component": "/w/work", "input": {"number": {"$input": "$"}}}
    step["onError"] = {"action": "retry", "maxRetries": 1}
    flow: Any = {"steps": [step], "output": {"$step": "a"}}
    seen: list[Event] = []
    told: list[Event] = []
    goes_on = trio.Event()

    def observe(event: Event) -> None:
        told.append(event)
        if isinstance(event, StepProgressed):
            goes_on.set()

    with trio.fail_after(DEADLINE_S):
        async with open_runtime(workers={"w": worker}, on_event=seen.append) as runtime:
            api = RestApi(runtime)
            async with open_http_host(api, drain=api.drain) as host, open_http_client(host.url) as client:
                run = await runtime.submit(flow_from_json(flow), [1, 2])
                start = next(event for event in seen if isinstance(event, RunStarted))
                stream = RunStream(client, f"/api/v1/runs/{run.id}/events", start=start, observe=observe)
                await stream.follow()
    assert not stream.is_of_use
    count = len(told)
    stream.finish([Success(1), Success(1)], status="completed")
    assert len(told) == count
    mine = [each for each in seen if getattr(each, "run_id", None) == run.id]
    # What a step that succeeded came to, no stream has.
    recorded: list[Event] = [
        structs.replace(each, result=Success(None))
        if isinstance(each, StepEnded) and isinstance(each.result, Success)
        else each
        for each in mine
        if not isinstance(each, StepProgressed)
    ]
    assert [each for each in told if not isinstance(each, StepProgressed)] == recorded
    assert sum(isinstance(each, StepEnded) and isinstance(each.result, Failed) for each in told) == 1
    progress = [each for each in told if isinstance(each, StepProgressed)]
    assert progress
    assert all(each in mine for each in progress)


# ---- a terminal, and a server that does not say what happens --------------------------------------------


async def test_a_terminal_counts_no_steps_where_none_are_known(
    capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    display = ProgressDisplay()
    at = datetime.now(UTC)
    display.observe(
        RunStarted(
            run_id="r", at=at, flow_id="f", flow_name=None, inputs=[1, 2], variables={}, max_concurrency=2
        )
    )
    with trio.move_on_after(1):
        await display.keep_showing()
    display.observe(RunEnded(run_id="r", at=at, status="completed"))
    display.close()
    shown = capsys.readouterr().err
    assert re.search(r"completed: 2 items in \d", shown)
    assert "step" not in shown
    assert "%" not in shown


# ---- a server that answers as it is told ----------------------------------------------------------------

Answer = Callable[[BaseHTTPRequestHandler], None]


def event(kind: str, seq: int | None, **fields: Any) -> bytes:
    data = {"type": kind, "at": NOW, "runId": "r", **fields} | ({} if seq is None else {"seq": seq})
    number = b"" if seq is None else b"id: %d\n" % seq
    return number + b"event: %b\ndata: %b\n\n" % (kind.encode(), json.dumps(data).encode())


STARTED = event("runStarted", 1)
STEP = event("stepStarted", 2, itemIndex=0, stepId="only", component="/crew/echo", attempt=1)
STEP_FAILED = event("stepEnded", 3, itemIndex=0, stepId="only", status="failed", error=ERROR)
ITEM_FAILED = event("itemEnded", 4, itemIndex=0, status="failed", result=FAILED)
ENDED = event("runEnded", 5, status="failed")
ALL = STARTED + STEP + STEP_FAILED + ITEM_FAILED + ENDED


class FakeServer(ThreadingHTTPServer):
    """Runs every flow to the same end; its event streams are those of ``streams``, one after the other."""

    daemon_threads = True

    def __init__(
        self, streams: list[Answer], *, result: Any = FAILED, polls: int = 0, drops: int = 0
    ) -> None:
        self.streams = streams
        self.result = result
        self.polls = polls
        """So many times the run is said to be at work still, at once."""
        self.drops = drops
        """So many times whoever asks how the run stands loses the connection."""
        self.last_event_ids: list[str | None] = []
        self.waits: list[str] = []
        self.is_over = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: FakeServer  # pyright: ignore[reportIncompatibleVariableOverride]: no other one has it

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer({"flowId": "f", "stored": True, "runId": "r", "status": "running"})

    def do_GET(self) -> None:
        server = self.server
        if self.path.endswith("/events"):
            server.last_event_ids.append(self.headers.get("last-event-id"))
            server.streams.pop(0)(self)
        elif self.path.endswith("/items"):
            self.answer({"items": [{"itemIndex": 0, "result": server.result}]})
        elif server.drops > 0:
            server.drops -= 1
        else:
            server.waits.append(self.path.partition("timeoutSecs=")[2])
            server.polls -= 1
            self.answer({"runId": "r", "status": "running" if server.polls >= 0 else "failed"})

    def answer(self, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def stream(
    *pieces: bytes, cut: bool = False, stalls: bool = False, media: str = "text/event-stream"
) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", media)
        if cut:
            handler.send_header("content-length", "1000000")
        handler.end_headers()
        handler.wfile.write(b"".join(pieces))
        handler.wfile.flush()
        if stalls:
            server: Any = handler.server
            server.is_over.wait(DEADLINE_S)

    return answer


def status(code: int) -> Answer:
    return lambda handler: handler.send_error(code)


def stalls_at_once(handler: BaseHTTPRequestHandler) -> None:
    server: Any = handler.server
    server.is_over.wait(DEADLINE_S)


@pytest.fixture
def serving() -> Generator[Callable[..., FakeServer]]:
    servers: list[tuple[FakeServer, threading.Thread]] = []

    def serve(*streams: Answer, **settings: Any) -> FakeServer:
        server = FakeServer(list(streams), **settings)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return server

    yield serve
    for server, thread in servers:
        server.is_over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def submit(cli_here: Cli, flow: WriteFlow, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    monkeypatch.setattr(submission, "POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(submission, "RETRY_PAUSES_S", (0.01, 0.01))

    def run(server: FakeServer, *options: str) -> Finished:
        return cli_here(
            "submit", "--url", server.url, flow("/crew/echo"), "--input-json", "1", *(options or ("-q",))
        )

    return run


Submit = Callable[..., Finished]
Serve = Callable[..., FakeServer]

IN_STEP = "run failed in step only (/crew/echo): not today (code -32110)\n"
IN_NO_STEP = "run failed: not today (code -32110)\n"


@pytest.mark.parametrize(
    "lost",
    [
        stream(STARTED, STEP),
        stream(STARTED, STEP, cut=True),
        stream(STARTED, STEP, STEP_FAILED[:-5], cut=True),
    ],
    ids=["ended", "cut", "cut in an event"],
)
def test_a_stream_that_is_lost_goes_on_behind_the_last_event(
    submit: Submit, serving: Serve, lost: Answer
) -> None:
    # The second server repeats what it has said.
    server = serving(lost, stream(ALL), polls=1)
    ran = submit(server, "--json")
    assert server.last_event_ids == [None, "2"]
    assert server.waits == ["1", "60"]
    events = [one.get("event") for one in map(json.loads, ran.stderr.splitlines())]
    assert events == ["run_started", "step_started", "step_failed", "run_ended", "run_failed"]
    assert json.loads(ran.stderr.splitlines()[-1])["step_id"] == "only"


NONE = [
    status(404), status(405), status(501), status(500), stream(b'{"runId": "r"}', media="application/json"),
    stream(b"<html>", media="text/html"),
]  # fmt: skip


@pytest.mark.parametrize("answer", NONE, ids=range(len(NONE)))
def test_a_server_without_the_stream_is_asked_until_the_run_has_ended(
    submit: Submit, serving: Serve, answer: Answer
) -> None:
    server = serving(answer, polls=2)
    assert submit(server) == Finished(1, json.dumps(FAILED, separators=(",", ":")) + "\n", IN_NO_STEP)
    assert server.waits == ["60"] * 3
    said = submit(serving(answer), "--exit-zero-on-failed-run")
    lines = of_steps(said.stderr)
    assert lines == [" run started, 1 item", " run failed", IN_NO_STEP.rstrip()]


def test_a_server_that_does_not_wait_is_asked_now_and_then(
    submit: Submit, serving: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "POLL_INTERVAL_S", 0.1)
    server = serving(status(404), polls=3)
    before = time.monotonic()
    submit(server)
    assert time.monotonic() - before >= 0.3


WRONG = [
    stream(STARTED, b"event: stepStarted\ndata: {\n\n"),
    stream(STARTED, b"event: stepStarted\ndata: []\n\n"),
    stream(event("stepStarted", 1, itemIndex=0, stepId="only")),
    stream(event("stepStarted", None, itemIndex=0, stepId="only", component="/c", attempt=1)),
    stream(event("itemEnded", 1, itemIndex=7, status="failed", result=FAILED)),
    stream(event("itemEnded", 1, itemIndex=-1, status="failed", result=FAILED)),
    stream(event("stepEnded", 1, itemIndex=0, stepId="only", status="failed")),
    stream(event("runEnded", 1, status="failed", runId="another")),
    stream(event("stepProgressed", None, itemIndex=0, stepId="only", fraction=1e300)),
]


@pytest.mark.parametrize("answer", WRONG, ids=range(len(WRONG)))
def test_a_stream_that_says_something_else_is_not_read_on(
    submit: Submit, serving: Serve, answer: Answer
) -> None:
    server = serving(answer, polls=1)
    said = [json.loads(line) for line in submit(server, "--json").stderr.splitlines()]
    assert [one["event"] for one in said] == ["run_started", "run_ended", "run_failed"]
    assert "step_id" not in said[-1]
    assert server.waits == ["60", "60"]


def test_what_a_stream_says_besides_is_of_no_matter(submit: Submit, serving: Serve) -> None:
    new = b": ping\n\nevent: paused\ndata: no JSON\n\n" + event("stepProgressed", None, itemIndex=0,
        stepId="only", fraction=0.5)  # fmt: skip
    server = serving(stream(STARTED, new, STEP, new, STEP_FAILED, ITEM_FAILED, ENDED))
    assert submit(server).stderr == IN_STEP


def test_streams_that_bring_nothing_are_not_opened_for_ever(submit: Submit, serving: Serve) -> None:
    server = serving(*[stream()] * 3, polls=5)
    assert submit(server).stderr == IN_NO_STEP
    assert server.waits == ["1", "1", "60", "60", "60", "60"]


@pytest.mark.parametrize("stalled", [stalls_at_once, stream(stalls=True)], ids=["no head", "no event"])
def test_a_server_that_stalls_is_asked_how_the_run_stands(
    submit: Submit, serving: Serve, monkeypatch: pytest.MonkeyPatch, stalled: Answer
) -> None:
    monkeypatch.setattr(progress_stream, "SILENCE_S", 0.1)
    server = serving(stalled, polls=1)
    assert submit(server).stderr == IN_NO_STEP
    assert server.waits == ["60", "60"]


def test_a_stream_that_falls_silent_is_opened_again(
    submit: Submit, serving: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_stream, "SILENCE_S", 0.5)
    server = serving(stream(STARTED, STEP, stalls=True), stream(ALL), polls=1)
    assert submit(server).stderr == IN_STEP
    assert server.last_event_ids == [None, "2"]


def test_a_run_that_ended_behind_a_stalled_stream_is_shown_to_its_end(
    submit: Submit, serving: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_stream, "SILENCE_S", 0.5)
    ran = submit(serving(stream(STARTED, STEP, STEP_FAILED, stalls=True)), "--json")
    events = [one.get("event") for one in map(json.loads, ran.stderr.splitlines())]
    assert events == ["run_started", "step_started", "step_failed", "run_ended", "run_failed"]


def test_a_success_is_printed_whatever_the_stream_was(submit: Submit, serving: Serve) -> None:
    ran = submit(serving(status(404), result=DONE))
    assert ran == Finished(0, '{"outcome":"success","result":1}\n', "")


def test_a_server_that_is_away_for_a_moment_is_tried_again_and_not_for_ever(
    submit: Submit, serving: Serve
) -> None:
    lost = stream(STARTED, STEP, cut=True)
    assert submit(serving(lost, stream(ALL), polls=1, drops=2)).stderr == IN_STEP
    gone = submit(serving(lost, drops=3))
    assert (gone.code, gone.stdout) == (1, "")
    assert gone.stderr.startswith("error: connection lost")
