"""A worker behind each host on a real socket: what its clients see, and what becomes of its components."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
from http_stage import open_server
from raw_http import CutShort, RawClient, Response, connected, request
from worker_stage import Stage, execute

from stepflow_trio import Context

POST = ("Content-Type: application/json", "Accept: application/json, text/event-stream")


def post(message: Any) -> bytes:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return request("POST", "/", *POST, body=body)


async def answer_to(port: int, message: Any) -> Response:
    async with connected(port) as client:
        await client.send(post(message))
        return await client.response()


async def event(client: RawClient) -> dict[str, Any]:
    """The next event of a stream; the worker writes each as one chunk."""
    chunk = await client.chunk()
    assert chunk.startswith(b"data: ")
    assert chunk.endswith(b"\n\n")
    return json.loads(chunk[6:])


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 — what is waited for comes over a socket
            await trio.sleep(0.005)


# ---- who goes away --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.parametrize("component", ["/wait", "/ask"], ids=["plain", "event-stream"])
async def test_a_client_that_goes_away_ends_its_component_and_no_other(
    host: str, component: str, how: str
) -> None:
    stage = Stage()
    async with open_server(host, stage.endpoint) as server, connected(server.port) as other:
        await other.send(post(execute("/wait", "other", text="other")))
        await stage.started.wait()
        stage.started = trio.Event()
        async with connected(server.port) as client:
            await client.send(post(execute(component, text="x")))
            await stage.started.wait()
            if component == "/ask":
                await client.head()
                assert (await event(client))["method"] == "blobs/put"
            assert stage.log == []
            if how == "resets":
                client.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1" + bytes(7))  # type: ignore[attr-defined]
        await until(lambda: stage.log)
        assert stage.log == ["cancelled" if component == "/wait" else "ask ended"]
        stage.release.set()
        assert json.loads((await other.response()).body)["result"] == {"output": "other"}


# ---- event streams --------------------------------------------------------------------------------------


async def test_an_event_stream_ends_with_its_last_chunk_and_without_an_error_every_time(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()
    caplog.set_level(logging.DEBUG)
    async with open_server(host, stage.endpoint) as server, connected(server.port) as client:
        for number in range(50):
            await client.send(post(execute("/ask", number, text="ä")))
            status, headers = await client.head()
            assert (status, headers[b"transfer-encoding"]) == (200, b"chunked")
            callback = await event(client)
            answer = {"jsonrpc": "2.0", "id": callback["id"], "result": {"blob_id": "b" * 64}}
            assert (await answer_to(server.port, answer)).status == 202
            assert (await event(client))["result"] == {"output": "b" * 64}
            assert await client.chunk() == b"", "the chunk that says that it is complete"
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING or r.exc_info] == []


async def test_an_answer_of_the_wrong_shape_fails_the_component_that_asked_and_leaves_nothing(
    host: str,
) -> None:
    stage = Stage()
    wrong = [{"result": 1, "error": 2}, {"result": {"blob": "x"}}, {"result": None}, {"error": "no"}]
    async with open_server(host, stage.endpoint) as server:
        for number, shape in enumerate(wrong * 5):
            async with connected(server.port) as client:
                await client.send(post(execute("/ask", number, text="x")))
                await client.head()
                callback = await event(client)
                await answer_to(server.port, {"jsonrpc": "2.0", "id": callback["id"], **shape})
                with trio.fail_after(5):
                    failed = await event(client)
                assert failed["id"] == number
                assert failed["error"]["code"] == -32100
                assert await client.chunk() == b""
        assert stage.log == ["ask ended"] * 20
        assert stage.endpoint.unmatched_answers == 0
        with trio.fail_after(5):
            await stage.endpoint.wait_idle()
        # Who answers once more, for what is over, is told nothing and disturbs nobody.
        late = {"jsonrpc": "2.0", "id": callback["id"], "result": {"blob_id": "b" * 64}}
        assert (await answer_to(server.port, late)).status == 202
        assert stage.endpoint.unmatched_answers == 1


async def test_what_is_no_answer_at_all_is_refused_and_the_callback_takes_the_right_one(host: str) -> None:
    stage = Stage()
    async with open_server(host, stage.endpoint) as server, connected(server.port) as client:
        await client.send(post(execute("/ask", text="x")))
        await client.head()
        none = {"jsonrpc": "2.0", "id": (await event(client))["id"]}
        refused = await answer_to(server.port, none)
        assert (refused.status, json.loads(refused.body)["error"]["code"]) == (400, -32600)
        assert stage.log == []
        assert (await answer_to(server.port, {**none, "result": {"blob_id": "b" * 64}})).status == 202
        assert (await event(client))["result"] == {"output": "b" * 64}


async def test_callbacks_of_clients_that_went_away_are_forgotten(host: str) -> None:
    stage = Stage()
    async with open_server(host, stage.endpoint) as server:
        ids: list[Any] = []
        for number in range(20):
            async with connected(server.port) as client:
                await client.send(post(execute("/ask", number, text="x")))
                await client.head()
                ids.append((await event(client))["id"])
        with trio.fail_after(10):
            await stage.endpoint.wait_idle()
        assert stage.log == ["ask ended"] * 20
        for id_ in ids:
            await answer_to(server.port, {"jsonrpc": "2.0", "id": id_, "result": {"blob_id": "b" * 64}})
        assert stage.endpoint.unmatched_answers == 20


# ---- plain functions ------------------------------------------------------------------------------------


async def test_a_plain_function_that_blocks_holds_up_neither_other_calls_nor_the_health(host: str) -> None:
    stage, release, running = Stage(), threading.Event(), threading.Event()

    @stage.worker.component
    def blocks() -> str:
        running.set()
        return "done" if release.wait(10) else "nobody else was served"

    async with open_server(host, stage.endpoint) as server, connected(server.port) as client:
        try:
            await client.send(post(execute("/blocks")))
            await trio.to_thread.run_sync(running.wait, 10)
            with trio.fail_after(5):
                sums = await answer_to(server.port, execute("/add", a=1, b=2))
                assert json.loads(sums.body)["result"] == {"output": 3}
                async with connected(server.port) as prober:
                    await prober.send(request("GET", "/health"))
                    assert (await prober.response()).status == 200
        finally:
            release.set()
        assert json.loads((await client.response()).body)["result"] == {"output": "done"}


async def test_a_plain_function_that_waits_for_the_runtime_ends_with_its_client(host: str) -> None:
    stage, raised = Stage(), []

    @stage.worker.component
    def store(context: Context) -> str:
        try:
            return trio.from_thread.run(context.put_blob, 1)
        except Exception as exc:
            raised.append(exc)
            raise

    async with open_server(host, stage.endpoint) as server:
        async with connected(server.port) as client:
            await client.send(post(execute("/store")))
            await client.head()
            await event(client)
        await until(lambda: raised)
        with trio.fail_after(5):
            await trio.testing.wait_all_threads_completed()


# ---- answers that are none ------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "code", "id_"), [
    (b"{", -32700, None),
    (b'{"jsonrpc":"2.0","id":5,"method":"x"', -32700, None),
    (b'{"jsonrpc":"1.0","id":5,"method":"components/list"}', -32600, 5),
    (b'{"id":"a","method":"components/list"}', -32600, "a"),
    (b'{"jsonrpc":"2.0","id":5,"method":7}', -32600, 5),
    (b'{"jsonrpc":"2.0","id":5,"method":"components/lost"}', -32601, 5),
    (b'{"jsonrpc":"2.0","id":5,"method":"components/info","params":{}}', -32602, 5),
    (b'{"jsonrpc":"2.0","id":5,"method":"components/info","params":{"component":"/x"}}', -32001, 5),
])  # fmt: skip
async def test_what_is_wrong_is_answered_as_json_rpc_with_the_request_s_id(
    host: str, body: bytes, code: int, id_: Any
) -> None:
    async with open_server(host, Stage().endpoint) as server:
        response = await answer_to(server.port, body)
    answer = json.loads(response.body)
    assert (answer["jsonrpc"], answer["id"], answer["error"]["code"]) == ("2.0", id_, code)
    if code == -32001:
        assert answer["error"]["message"] == "Component /x not found"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}, b"raw", object()])
async def test_an_output_that_is_no_json_is_its_component_s_failure(host: str, value: Any) -> None:
    stage = Stage()

    @stage.worker.component
    async def odd() -> Any:
        return value

    async with open_server(host, stage.endpoint) as server:
        response = await answer_to(server.port, execute("/odd", 9))
    answer = json.loads(response.body)
    assert (response.status, answer["id"], answer["error"]["code"]) == (200, 9, -32100)
    assert "path" in answer["error"]["data"]


async def test_an_answer_that_was_cut_off_can_be_told_from_a_whole_one(host: str) -> None:
    """The client of these tests does tell: without this, the tests above would prove nothing."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})

    async with open_server(host, app) as server, connected(server.port) as client:
        await client.send(post({}))
        await client.head()
        assert await event(client) == {}
        with pytest.raises(CutShort):
            await client.chunk()
