"""Workers behind nginx: events come at once, answers where they are waited for, and cancellations through."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from nginx_stage import NGINX, open_stage
from raw_http import RawClient, connected, request
from worker_stage import execute

from stepflow_trio import ConfigError, ErrorCode, RunFailed, Runtime, Worker, open_runtime
from stepflow_trio.runtime.config import read_config
from stepflow_trio.runtime.events import Event, StepProgressed

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: bash .ci/peers installs it")

EXTENSIONS = 'Stepflow-Capabilities: {"extensions":["progress"]}'


def post(message: dict[str, Any], *headers: str) -> bytes:
    kind = "Content-Type: application/json", "Accept: application/json, text/event-stream"
    return request("POST", "/", *kind, *headers, body=json.dumps(message).encode())


async def next_event(client: RawClient) -> Any:
    """The next message of an event stream, however it is cut into chunks."""
    received = b""
    while not received.endswith(b"\n\n"):
        received += await client.chunk()
    return json.loads(received.removeprefix(b"data: "))


@asynccontextmanager
async def runtime_at(
    port: int, *, session: str = "never", on_event: Callable[[Event], object] | None = None
) -> AsyncGenerator[Runtime]:
    """A runtime whose plugin `w` is what answers at this port."""
    config = {
        "plugins": {"w": {"type": "stepflow", "url": f"http://127.0.0.1:{port}", "session": session}},
        "routes": {"/w/{*component}": [{"plugin": "w"}]},
        "retry": {"transportMaxRetries": 3, "backoff": {"type": "constant", "delayMs": 10}},
    }
    read = read_config(json.dumps(config), name="config.json", directory=Path.cwd(), environ={})
    assert read.warnings == ()
    async with open_runtime(read, on_event=on_event) as runtime:
        yield runtime


def calling(component: str) -> dict[str, Any]:
    """A flow of one step that calls this component with the run's input."""
    step = {"id": "only", "component": f"/w/{component}", "input": {"$input": "$"}}
    return {"steps": [step], "output": {"$step": "only"}}


# ---- one request at a time ------------------------------------------------------------------------------


@needs_nginx
@pytest.mark.parametrize("http_version", ["1.1", "1.0"])
async def test_nginx_hands_on_an_event_while_its_component_waits_for_the_answer(
    tmp_path: Path, http_version: str
) -> None:
    """1.0 is nginx's own default, and there it buffers whatever does not say that it must not be."""
    async with (
        open_stage(tmp_path, http_version=http_version) as (port, workers),
        connected(port) as client,
        connected(port) as answers,
    ):
        await client.send(post(execute("/ask", text="hällo")))
        status, headers = await client.head()
        assert (status, headers[b"content-type"]) == (200, b"text/event-stream; charset=utf-8")
        instance_id = headers[b"stepflow-instance-id"].decode()
        assert instance_id in workers

        callback = await next_event(client)
        assert callback["method"] == "blobs/put"
        answer = {"jsonrpc": "2.0", "id": callback["id"], "result": {"blob_id": "b" * 64}}
        await answers.send(post(answer, f"Stepflow-Instance-Id: {instance_id}"))
        assert (await answers.response()).status == 202

        callback = await next_event(client)
        assert callback["method"] == "runs/submit"
        error = {"code": -32005, "message": "enough"}
        await answers.send(
            post(
                {"jsonrpc": "2.0", "id": callback["id"], "error": error},
                f"Stepflow-Instance-Id: {instance_id}",
            )
        )
        assert (await answers.response()).status == 202
        assert (await next_event(client))["id"] == 1
        assert await client.chunk() == b""


@needs_nginx
async def test_each_worker_behind_nginx_says_that_it_is_healthy_and_who_it_is(tmp_path: Path) -> None:
    async with open_stage(tmp_path) as (port, workers), connected(port) as client:
        for name in [*workers, *workers]:
            await client.send(request("GET", "/health", f"Stepflow-Instance-Id: {name}"))
            response = await client.response()
            health = json.loads(response.body)
            assert (response.status, health["status"], health["instanceId"]) == (200, "healthy", name)


@needs_nginx
@pytest.mark.parametrize("aloud", [False, True], ids=["no-answer-yet", "on-an-event-stream"])
async def test_closing_a_connection_to_nginx_cancels_the_component(tmp_path: Path, aloud: bool) -> None:
    async with open_stage(tmp_path) as (port, workers), connected(port) as client:
        await client.send(post(execute("/hold", aloud=aloud), EXTENSIONS, "Stepflow-Instance-Id: a"))
        await workers["a"].log.wait_for("hold began")
        if aloud:
            await client.head()
            assert (await next_event(client))["method"] == "progress_update"
        await client.aclose()
        with trio.fail_after(5):
            await workers["a"].log.wait_for("hold ended")


# ---- a runtime --------------------------------------------------------------------------------------------


@needs_nginx
async def test_answers_to_callbacks_reach_the_worker_that_waits_for_them(tmp_path: Path) -> None:
    async with open_stage(tmp_path) as (port, workers), runtime_at(port) as runtime:
        texts = [f"text {number}" for number in range(40)]
        run = await runtime.submit(calling("ask"), [{"text": text} for text in texts])
        await run.wait()
        results = [result.to_json()["result"] for result in run.results if result is not None]
    assert [text for _, text in results] == texts
    assert {name for name, _ in results} == set(workers)


@needs_nginx
async def test_progress_is_seen_through_nginx_and_giving_a_run_up_cancels_its_component(
    tmp_path: Path,
) -> None:
    progressed = trio.Event()

    def on_event(event: Event) -> None:
        if isinstance(event, StepProgressed):
            progressed.set()

    async with open_stage(tmp_path) as (port, workers), runtime_at(port, on_event=on_event) as runtime:
        run = await runtime.submit(calling("hold"), [{"aloud": True}])
        await progressed.wait()
        [at] = [worker for worker in workers.values() if "hold began" in worker.log]
        run.cancel()
        with trio.fail_after(5):
            await run.wait()
            await at.log.wait_for("hold ended")
        assert await runtime.run(calling("who")) in workers


@needs_nginx
@pytest.mark.parametrize("session", ["never", "always"])
async def test_what_a_killed_worker_was_at_is_tried_again_on_the_other(tmp_path: Path, session: str) -> None:
    async with open_stage(tmp_path) as (port, workers), runtime_at(port, session=session) as runtime:
        run = await runtime.submit(calling("first_time"), [{}])
        began = trio.Event()
        killed: list[str] = []

        async def watch(name: str) -> None:
            await workers[name].log.wait_for("first_time began")
            killed.append(name)
            began.set()

        async with trio.open_nursery() as nursery:
            for name in workers:
                nursery.start_soon(watch, name)
            await began.wait()
            nursery.cancel_scope.cancel()
        workers[killed[0]].kill()
        await run.wait()
        [result] = run.results
        [other] = workers.keys() - killed
        assert result is not None
        assert result.to_json()["result"] == [other, 2]
        # Nothing was lost by it, and nothing goes to the dead one any more.
        assert {await runtime.run(calling("who")) for _ in range(10)} == {other}


@needs_nginx
async def test_a_session_stays_with_the_worker_that_it_was_opened_with(tmp_path: Path) -> None:
    async with open_stage(tmp_path) as (port, workers), runtime_at(port, session="always") as runtime:
        texts = [f"text {number}" for number in range(20)]
        answers = [await runtime.run(calling("ask"), {"text": text}) for text in texts]
        assert [text for _, text in answers] == texts
        assert len({name for name, _ in answers}) == 1
        # Another runtime's session is a call like any other, and goes to whoever has less to do.
        async with runtime_at(port, session="always") as other:
            found = {answers[0][0], await other.run(calling("who"))}
            assert found == set(workers)


@needs_nginx
async def test_ten_megabytes_go_through_nginx_both_ways(tmp_path: Path) -> None:
    value = "ä" * 5_000_000
    async with open_stage(tmp_path) as (port, _), runtime_at(port) as runtime:
        assert await runtime.run(calling("echo"), {"value": value}) == value


@needs_nginx
async def test_nginx_s_own_error_page_is_a_transport_failure_that_says_what_came(tmp_path: Path) -> None:
    async with open_stage(tmp_path) as (port, workers), runtime_at(port) as runtime:
        assert await runtime.run(calling("who")) in workers
        for worker in workers.values():
            worker.kill()
            await worker.process.wait_exited()
        with pytest.raises(RunFailed) as failed:
            await runtime.run(calling("who"))
        assert failed.value.code == ErrorCode.CONNECTION_LOST
        assert "HTTP 502" in failed.value.message


# ---- what tells workers apart -----------------------------------------------------------------------------


@pytest.mark.parametrize("instance_id", ["", "a b", "wörker", "a\r\nset-cookie: b", "a" * 201])
def test_an_instance_id_that_cannot_be_a_header_s_value_is_refused(instance_id: str) -> None:
    with pytest.raises(ConfigError, match="instance_id"):
        Worker().http_endpoint(instance_id=instance_id)
