"""Sessions of the endpoint: one stream for what the worker says, POSTs for what it is told."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from asgi_client import Response, post, request
from http_stage import open_server
from raw_http import connected
from raw_http import request as raw_request
from worker_stage import Stage, execute

from stepflow_trio.engine import Limits
from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.limits import HttpServerLimits

NDJSON = {b"content-type": b"application/x-ndjson"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"runtimeProtocolVersion": 1, "capabilities": {"extensions": ["cancel", "progress", "batch"]}},
}
INITIALIZED = {"jsonrpc": "2.0", "method": "initialized", "params": {}}


def lines(*messages: Any) -> bytes:
    return b"\n".join(json.dumps(message).encode() for message in messages)


@asynccontextmanager
async def session(stage: Stage) -> AsyncGenerator[tuple[Response, str]]:
    """An open session: its stream, and where to POST to."""
    async with request(stage.endpoint, "GET", "/runtime/events") as stream:
        kind, opening = await stream.next_event()
        assert kind == "endpoint"
        yield stream, opening["endpoint"]


async def test_the_first_event_says_where_to_post_and_what_is_understood() -> None:
    stage = Stage(instance_id="instance-1")
    async with request(stage.endpoint, "GET", "/runtime/events") as stream:
        kind, opening = await stream.next_event()
        assert stream.headers[b"stepflow-instance-id"] == b"instance-1"
        assert stream.headers[b"content-type"].startswith(b"text/event-stream")
    assert kind == "endpoint"
    assert opening["endpoint"].startswith("/?sessionId=")
    assert "batch" in opening["extensions"]
    assert opening["heartbeatS"] == 15
    assert opening["maxPostBytes"] == HttpServerLimits().max_body_bytes


async def test_a_request_is_answered_in_the_response_and_its_callbacks_come_on_the_stream() -> None:
    stage = Stage()
    async with session(stage) as (stream, target):
        async with request(stage.endpoint, "POST", target, execute("/ask", 5, text="x")) as response:
            kind, callback = await stream.next_event()
            assert (kind, callback["method"]) == ("message", "blobs/put")
            answer = {"jsonrpc": "2.0", "id": callback["id"], "result": {"blob_id": "b" * 64}}
            assert await post(stage.endpoint, answer, target) == (202, None)
            assert await response.json() == {"jsonrpc": "2.0", "id": 5, "result": {"output": "b" * 64}}
        assert response.headers[b"content-type"] == b"application/json"


async def test_a_callback_of_a_session_takes_no_answer_from_outside_of_it() -> None:
    stage = Stage()
    async with (
        session(stage) as (stream, target),
        session(stage) as (_, other),
        request(stage.endpoint, "POST", target, execute("/ask", text="x")) as response,
    ):
        callback = await stream.next_message()
        answer = {"jsonrpc": "2.0", "id": callback["id"], "result": {"blob_id": "e" * 64}}
        for elsewhere in ("/", other):
            assert await post(stage.endpoint, answer, elsewhere) == (202, None)
        assert stage.endpoint.unmatched_answers == 2
        answer["result"] = {"blob_id": "b" * 64}
        await post(stage.endpoint, answer, target)
        assert (await response.json())["result"] == {"output": "b" * 64}


async def test_lines_are_202_and_everything_comes_on_the_stream_as_it_is_done() -> None:
    stage = Stage()
    async with session(stage) as (stream, target):
        assert await post(stage.endpoint, lines(INITIALIZE), target, headers=NDJSON) == (202, None)
        welcome = await stream.next_message()
        assert welcome["result"]["serverProtocolVersion"] == 1
        work = lines(
            INITIALIZED, execute("/wait", 1, text="slow"), execute("/add", 2, a=1, b=2), execute("/report", 3)
        )
        assert await post(stage.endpoint, work, target, headers=NDJSON) == (202, None)
        assert await stream.next_message() == {"jsonrpc": "2.0", "id": 2, "result": {"output": 3}}
        assert (await stream.next_message())["method"] == "progress_update"
        stage.release.set()
        ends = [await stream.next_message() for _ in range(2)]
        assert sorted(end["id"] for end in ends) == [1, 3]


async def test_lines_need_initialize_first_as_on_stdio() -> None:
    stage = Stage()
    async with session(stage) as (stream, target):
        await post(stage.endpoint, lines(execute("/add", 7, a=1, b=2)), target, headers=NDJSON)
        assert (await stream.next_message())["error"]["code"] == -32002


async def test_a_cancellation_in_a_line_cancels_one_request_of_the_session() -> None:
    stage = Stage()
    async with session(stage) as (stream, target):
        await post(stage.endpoint, lines(INITIALIZE, INITIALIZED), target, headers=NDJSON)
        await stream.next_message()
        await post(
            stage.endpoint, lines(execute("/wait", 1), execute("/wait", 2, text="b")), target, headers=NDJSON
        )
        await stage.started.wait()
        cancel = {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": 1}}
        await post(stage.endpoint, lines(cancel), target, headers=NDJSON)
        answer = await stream.next_message()
        assert (answer["id"], answer["error"]["code"]) == (1, -32800)
        stage.release.set()
        assert (await stream.next_message())["result"] == {"output": "b"}


@pytest.mark.parametrize("as_lines", [True, False])
async def test_when_the_stream_closes_everything_in_the_session_is_cancelled(as_lines: bool) -> None:
    stage = Stage()
    async with request(stage.endpoint, "POST", body=execute("/wait", text="other")) as other:
        await stage.started.wait()
        stage.started = trio.Event()
        async with trio.open_nursery() as nursery:

            async def ask(target: str) -> None:
                status, answer = await post(stage.endpoint, execute("/wait", 7), target)
                assert (status, answer["id"]) == (404, 7)
                assert "the session is over" in answer["error"]["message"]

            async with session(stage) as (stream, target):
                if as_lines:
                    body = lines(INITIALIZE, INITIALIZED, execute("/wait", 1))
                    await post(stage.endpoint, body, target, headers=NDJSON)
                    await stream.next_message()
                else:
                    nursery.start_soon(ask, target)
                await stage.started.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert stage.log == ["cancelled"]
            assert (await post(stage.endpoint, execute("/add", a=1, b=2), target))[0] == 404
        stage.release.set()
        assert (await other.json())["result"] == {"output": "other"}


async def test_what_a_closing_session_was_asked_is_answered_and_no_error_is_logged(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()
    async with open_server(host, stage.endpoint) as server, connected(server.port) as poster:
        async with connected(server.port) as streamer:
            await streamer.send(raw_request("GET", "/runtime/events"))
            await streamer.head()
            opening = await streamer.chunk()
            query = opening.partition(b"?")[2].partition(b'"')[0].decode()
            body = json.dumps(execute("/wait")).encode()
            await poster.send(raw_request("POST", f"/?{query}", "Content-Type: application/json", body=body))
            await stage.started.wait()
        assert (await poster.response()).status == 404
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


async def test_a_host_that_logs_a_request_keeps_the_id_of_its_session_to_itself(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.lowlevel.checkpoint()

    async with open_server(host, silent) as server, connected(server.port) as client:
        await client.send(raw_request("GET", "/path?sessionId=0123456789abcdef"))
        assert (await client.response()).status == 500
    assert "GET /path" in caplog.text
    assert "0123456789abcdef" not in caplog.text


@pytest.mark.parametrize(
    "query", ["sessionId=nope", "sessionId=", "other=1", "sessionId=a&sessionId=b", "a=1&" * 20]
)
async def test_an_unknown_session_is_404(query: str) -> None:
    status, answer = await post(Stage().endpoint, execute("/add", a=1, b=2), f"/?{query}")
    assert status == 404
    assert "session" in answer["error"]["message"]


async def test_a_garbled_line_costs_itself_alone() -> None:
    stage = Stage()
    async with session(stage) as (stream, target):
        body = b"\n".join(
            [lines(INITIALIZE), b"{garbled", lines(INITIALIZED), lines(execute("/add", 1, a=1, b=2)), b"\xff"]
        )
        assert await post(stage.endpoint, body, target, headers=NDJSON) == (202, None)
        answers = [await stream.next_message() for _ in range(4)]
        assert [answer.get("error", {}).get("code") for answer in answers] == [None, -32700, None, -32700]


async def test_a_silent_session_gets_a_comment_every_heartbeat(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(http_limits=HttpServerLimits(heartbeat_s=15))
    async with session(stage) as (stream, _):
        began = trio.current_time()
        assert [await stream.next_chunk() for _ in range(2)] == [b": ping\n\n"] * 2
        assert trio.current_time() - began == pytest.approx(30)


async def test_a_stopping_endpoint_lets_sessions_finish_what_is_in_flight_and_ends_their_streams(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    async with session(stage) as (stream, target):
        await post(
            stage.endpoint,
            lines(INITIALIZE, INITIALIZED, execute("/ask", 1, text="x")),
            target,
            headers=NDJSON,
        )
        await stream.next_message()
        callback = await stream.next_message()
        stage.endpoint.stop()
        await trio.testing.wait_all_tasks_blocked()
        answer = {"jsonrpc": "2.0", "id": callback["id"], "result": {"blob_id": "b" * 64}}
        assert await post(stage.endpoint, lines(answer), target, headers=NDJSON) == (202, None)
        assert (await stream.next_message())["result"] == {"output": "b" * 64}
        assert await stream.next_event() is None
        assert stream.is_complete
    await stage.endpoint.wait_idle()


async def test_a_stopping_endpoint_gives_a_session_drain_s_at_most(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(limits=Limits(drain_s=7))
    async with session(stage) as (stream, target):
        await post(
            stage.endpoint, lines(INITIALIZE, INITIALIZED, execute("/wait", 1)), target, headers=NDJSON
        )
        await stream.next_message()
        await stage.started.wait()
        began = trio.current_time()
        stage.endpoint.stop()
        await stage.endpoint.wait_idle()
        assert trio.current_time() - began == pytest.approx(7)
        assert stage.log == ["cancelled"]


async def test_a_stopping_endpoint_lets_a_session_s_single_requests_finish_too() -> None:
    stage = Stage()
    async with (
        session(stage) as (stream, target),
        request(stage.endpoint, "POST", target, execute("/ask", 5, text="x")) as response,
    ):
        callback = await stream.next_message()
        stage.endpoint.stop()
        await trio.testing.wait_all_tasks_blocked()
        answer = {"jsonrpc": "2.0", "id": callback["id"], "result": {"blob_id": "b" * 64}}
        assert await post(stage.endpoint, answer, target) == (202, None)
        assert (await response.json())["result"] == {"output": "b" * 64}
        assert await stream.next_event() is None
        assert stream.is_complete
    await stage.endpoint.wait_idle()


async def test_a_single_request_of_a_session_that_takes_longer_than_drain_s_is_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(limits=Limits(drain_s=7))
    async with session(stage) as (_, target), trio.open_nursery() as nursery:

        async def ask() -> None:
            assert (await post(stage.endpoint, execute("/wait"), target))[0] == 404

        nursery.start_soon(ask)
        await stage.started.wait()
        began = trio.current_time()
        await stage.endpoint.drain()
        assert trio.current_time() - began == pytest.approx(7)
        assert stage.log == ["cancelled"]


async def test_no_more_sessions_are_open_than_may_be() -> None:
    stage = Stage(http_limits=HttpServerLimits(max_sessions=1))
    async with session(stage):
        async with request(stage.endpoint, "GET", "/runtime/events") as response:
            answer = await response.json()
        assert (response.status, response.headers[b"retry-after"]) == (503, b"1")
        assert answer["error"]["code"] == -32304
    async with session(stage):
        pass


async def test_a_session_is_refused_while_the_endpoint_stops() -> None:
    stage = Stage()
    stage.endpoint.stop()
    async with request(stage.endpoint, "GET", "/runtime/events") as response:
        await response.read()
    assert response.status == 503


async def test_two_sessions_may_use_the_same_ids() -> None:
    stage = Stage()
    async with session(stage) as (one, first), session(stage) as (two, second):
        for target in (first, second):
            await post(
                stage.endpoint,
                lines(INITIALIZE, INITIALIZED, execute("/wait", 1, text=target)),
                target,
                headers=NDJSON,
            )
        for stream in (one, two):
            await stream.next_message()
        stage.release.set()
        assert (await one.next_message())["result"] == {"output": first}
        assert (await two.next_message())["result"] == {"output": second}
