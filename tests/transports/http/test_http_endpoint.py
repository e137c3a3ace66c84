"""What the worker's endpoint answers to a POST, byte for byte where old readers depend on it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing
from asgi_client import post, request
from worker_stage import EXTENSIONS, Stage, execute

from stepflow_trio.engine import Limits
from stepflow_trio.transports.http.asgi import Message
from stepflow_trio.transports.http.limits import HttpServerLimits


async def test_a_request_without_callbacks_is_answered_as_json() -> None:
    stage = Stage()
    async with request(stage.endpoint, "POST", body=execute("/add", "seven", a=1, b=2)) as response:
        body = await response.read()
    assert response.status == 200
    assert response.headers[b"content-type"] == b"application/json"
    assert response.headers[b"content-length"] == b"%d" % len(body)
    assert json.loads(body) == {"jsonrpc": "2.0", "id": "seven", "result": {"output": 3}}


async def test_a_component_that_waits_is_answered_as_json_too(autojump_clock: trio.testing.MockClock) -> None:
    stage = Stage()
    async with request(stage.endpoint, "POST", body=execute("/wait", text="ä")) as response:
        await stage.started.wait()
        await trio.sleep(100)
        assert not response.started.is_set()
        stage.release.set()
        assert (await response.json())["result"] == {"output": "ä"}
    assert response.headers[b"content-type"] == b"application/json"


async def test_the_first_callback_turns_the_answer_into_an_event_stream() -> None:
    stage = Stage(instance_id="instance-1")
    async with request(stage.endpoint, "POST", body=execute("/ask", 5, text="ä€😀")) as response:
        await response.started.wait()
        assert response.status == 200
        assert response.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
        assert response.headers[b"stepflow-instance-id"] == b"instance-1"
        assert response.headers[b"cache-control"] == b"no-store"
        assert response.headers[b"x-accel-buffering"] == b"no"
        assert b"content-length" not in response.headers
        callback = await response.next_message()
        assert callback["method"] == "blobs/put"
        assert callback["params"]["data"] == {"text": "ä€😀"}
        answer = {"jsonrpc": "2.0", "id": callback["id"], "result": {"blob_id": "b" * 64}}
        assert await post(stage.endpoint, answer) == (202, None)
        assert await response.next_message() == {"jsonrpc": "2.0", "id": 5, "result": {"output": "b" * 64}}
        assert await response.next_event() is None
    assert response.is_complete


async def test_every_event_is_one_write_of_ascii() -> None:
    stage = Stage()
    async with request(stage.endpoint, "POST", body=execute("/ask", text="ä€😀")) as response:
        chunk = await response.next_chunk()
    assert chunk.isascii()
    assert chunk.startswith(b'data: {"jsonrpc":"2.0"')
    assert chunk.endswith(b"}\n\n")
    assert chunk.count(b"\n") == 2
    assert b"\\u00e4\\u20ac\\ud83d\\ude00" in chunk


async def test_progress_is_an_event_before_the_answer_where_the_runtime_wants_it() -> None:
    stage = Stage()
    body = execute("/report")
    async with request(stage.endpoint, "POST", body=body, headers=EXTENSIONS) as response:
        event = await response.next_message()
        assert event["method"] == "progress_update"
        assert event["params"]["progress"] == 0.5
        stage.release.set()
        assert (await response.next_message())["result"] == {"output": "done"}
    stage = Stage()
    stage.release.set()
    async with request(stage.endpoint, "POST", body=body) as response:
        assert (await response.json())["result"] == {"output": "done"}


async def test_a_components_error_is_an_answer_with_status_200() -> None:
    status, answer = await post(Stage().endpoint, execute("/fail"))
    assert status == 200
    assert answer["error"] == {"code": -32111, "message": "no", "data": {"why": "because"}}


@pytest.mark.parametrize("method", ["components/list", "initialize"])
async def test_methods_are_served_before_initialize_and_initialize_at_any_time(method: str) -> None:
    stage = Stage()
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"runtimeProtocolVersion": 1}}
    for _ in range(2):
        status, answer = await post(stage.endpoint, body)
        assert (status, "result" in answer) == (200, True)


@pytest.mark.parametrize(("key", "answered"), [
    ("runtimeProtocolVersion", "serverProtocolVersion"),
    ("runtime_protocol_version", "server_protocol_version"),
])  # fmt: skip
async def test_initialize_is_answered_in_the_spelling_of_the_runtime(key: str, answered: str) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {key: 1}}
    assert (await post(Stage().endpoint, body))[1]["result"] == {answered: 1}


async def test_a_notification_is_answered_202() -> None:
    stage = Stage()
    assert await post(stage.endpoint, {"jsonrpc": "2.0", "method": "initialized", "params": {}}) == (
        202,
        None,
    )


@pytest.mark.parametrize("id_", [1, "x", "f" * 32 + "-1", None])
async def test_an_answer_that_nobody_waits_for_is_202_and_counted(id_: Any) -> None:
    stage = Stage()
    assert (
        await post(stage.endpoint, {"jsonrpc": "2.0", "id": id_, "result": 1}) in [(202, None)] or id_ is None
    )
    assert stage.endpoint.unmatched_answers == 1


async def test_an_answer_without_the_streams_own_key_reaches_no_callback() -> None:
    stage = Stage()
    async with request(stage.endpoint, "POST", body=execute("/ask", text="x")) as response:
        callback = await response.next_message()
        forged = {"jsonrpc": "2.0", "id": "0" * 32 + callback["id"][32:], "result": {"blob_id": "e" * 64}}
        assert await post(stage.endpoint, forged) == (202, None)
        answer = {"jsonrpc": "2.0", "id": callback["id"], "result": {"blob_id": "b" * 64}}
        await post(stage.endpoint, answer)
        assert (await response.next_message())["result"] == {"output": "b" * 64}


async def test_a_callbacks_answer_in_the_wrong_shape_fails_the_callback_and_is_400() -> None:
    stage = Stage()
    async with request(stage.endpoint, "POST", body=execute("/ask", text="x")) as response:
        callback = await response.next_message()
        status, _ = await post(
            stage.endpoint, {"jsonrpc": "2.0", "id": callback["id"], "result": 1, "error": 2}
        )
        assert status == 400
        error = (await response.next_message())["error"]
        assert error["code"] == -32100
        assert "no JSON-RPC response" in error["message"]


@pytest.mark.parametrize(("body", "code"), [
    (b"{", -32700),
    (b"", -32700),
    (b"\xff", -32700),
    (b"[" * 200, -32700),
    (b"{}", -32600),
    (b"[]", -32600),
    (b'{"jsonrpc":"1.0","id":1,"method":"x"}', -32600),
    (b'{"jsonrpc":"2.0","id":true,"method":"x"}', -32600),
    (b'{"id":1,"method":"x"}', -32600),
])  # fmt: skip
async def test_what_is_no_message_is_400_with_an_error_that_says_why(body: bytes, code: int) -> None:
    status, answer = await post(Stage().endpoint, body)
    assert status == 400
    assert answer["jsonrpc"] == "2.0"
    assert answer["error"]["code"] == code
    assert answer["error"]["data"]["detail"]


async def test_an_unknown_method_is_an_answer() -> None:
    status, answer = await post(Stage().endpoint, {"jsonrpc": "2.0", "id": 1, "method": "components/lisd"})
    assert status == 200
    assert answer["error"]["code"] == -32601
    assert answer["error"]["data"]["suggestion"] == "components/list"


@pytest.mark.parametrize("content_type", [None, b"text/plain", b"application/jsonx", b"application/x-ndjson"])
async def test_another_content_type_is_415(content_type: bytes | None) -> None:
    status, answer = await post(
        Stage().endpoint, execute("/add", a=1, b=2), headers={b"content-type": content_type}
    )
    assert status == 415
    assert "application/json" in answer["error"]["message"]


@pytest.mark.parametrize("content_type", [b"application/json; charset=utf-8", b"Application/JSON"])
async def test_json_with_parameters_is_json(content_type: bytes) -> None:
    status, _ = await post(
        Stage().endpoint, execute("/add", a=1, b=2), headers={b"content-type": content_type}
    )
    assert status == 200


@pytest.mark.parametrize("accept", [b"application/json", b"text/event-stream", b"text/html", b"",
                                    b"application/json, text/event-stream;q=0"])  # fmt: skip
async def test_an_accept_header_without_both_types_is_406(accept: bytes) -> None:
    status, answer = await post(Stage().endpoint, execute("/add", a=1, b=2), headers={b"accept": accept})
    assert status == 406
    assert "text/event-stream" in answer["error"]["message"]


@pytest.mark.parametrize(
    "accept", [b"*/*", b"text/event-stream,application/json;q=0.5", b"application/*, text/*", None]
)
async def test_an_accept_header_with_both_types_is_served(accept: bytes | None) -> None:
    status, _ = await post(Stage().endpoint, execute("/add", a=1, b=2), headers={b"accept": accept})
    assert status == 200


async def test_a_body_over_the_limit_is_413_after_all_of_it_was_received() -> None:
    stage = Stage(http_limits=HttpServerLimits(max_body_bytes=1000))
    status, answer = await post(stage.endpoint, b" " * 5000, pieces=10)
    assert status == 413
    assert "1000 bytes" in answer["error"]["message"]
    assert (await post(stage.endpoint, execute("/add", a=1, b=2)))[0] == 200


async def test_a_body_in_pieces_is_put_together() -> None:
    status, answer = await post(Stage().endpoint, execute("/add", a=1, b=2), pieces=7)
    assert (status, answer["result"]) == (200, {"output": 3})


async def test_health_names_the_instance() -> None:
    stage = Stage(instance_id="instance-1")
    async with request(stage.endpoint, "GET", "/health") as response:
        health = await response.json()
    assert health["status"] == "healthy"
    assert health["instanceId"] == "instance-1"
    assert {"timestamp", "service"} < health.keys()


@pytest.mark.parametrize(("method", "path", "status", "allow"), [
    ("GET", "/", 405, b"POST"),
    ("POST", "/health", 405, b"GET, HEAD"),
    ("DELETE", "/runtime/events", 405, b"GET"),
    ("GET", "/nowhere", 404, None),
    ("POST", "/nowhere", 404, None),
])  # fmt: skip
async def test_other_paths_and_methods_are_refused(
    method: str, path: str, status: int, allow: bytes | None
) -> None:
    async with request(Stage().endpoint, method, path) as response:
        assert (await response.json())["error"]["message"]
    assert response.status == status
    assert response.headers.get(b"allow") == allow


async def test_a_websocket_is_closed_at_once() -> None:
    sent: list[Message] = []

    async def never() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    await Stage().endpoint({"type": "websocket", "headers": []}, never, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_the_life_span_is_answered() -> None:
    events = iter(["lifespan.startup", "lifespan.shutdown"])
    sent: list[Message] = []

    async def receive() -> Message:
        await trio.lowlevel.checkpoint()
        return {"type": next(events)}

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    await Stage().endpoint({"type": "lifespan"}, receive, send)
    assert sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]


# ---- the client goes away ---------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["/wait", "/ask"])
async def test_a_client_that_goes_away_cancels_its_component_and_nothing_else(component: str) -> None:
    stage = Stage()
    async with request(stage.endpoint, "POST", body=execute("/wait", text="other")) as other:
        await stage.started.wait()
        stage.started = trio.Event()
        async with request(stage.endpoint, "POST", body=execute(component, text="x")) as response:
            await stage.started.wait()
        assert response.ended.is_set()
        assert not response.is_complete
        assert stage.log == ["cancelled" if component == "/wait" else "ask ended"]
        stage.release.set()
        assert (await other.json())["result"] == {"output": "other"}


async def test_a_callbacks_answer_after_the_client_went_away_is_202_and_dropped() -> None:
    stage = Stage()
    async with request(stage.endpoint, "POST", body=execute("/ask", text="x")) as response:
        callback = await response.next_message()
    answer = {"jsonrpc": "2.0", "id": callback["id"], "result": {"blob_id": "b" * 64}}
    assert await post(stage.endpoint, answer) == (202, None)
    assert stage.endpoint.unmatched_answers == 1


# ---- batches ----------------------------------------------------------------------------------------


async def test_an_array_is_answered_by_an_array_without_the_notifications_answers() -> None:
    stage = Stage()
    stage.release.set()
    body = [
        execute("/add", 1, a=1, b=2),
        {"jsonrpc": "2.0", "method": "initialized"},
        execute("/wait", 2, text="x"),
        1,
    ]
    status, answers = await post(stage.endpoint, body)
    assert status == 200
    assert [answer.get("id") for answer in answers] == [1, 2, None]
    assert answers[2]["error"]["code"] == -32600


async def test_an_array_of_nothing_but_notifications_and_answers_is_202() -> None:
    stage = Stage()
    async with request(stage.endpoint, "POST", body=execute("/ask", text="x")) as response:
        callback = await response.next_message()
        answer = {"jsonrpc": "2.0", "id": callback["id"], "result": {"blob_id": "b" * 64}}
        body = [{"jsonrpc": "2.0", "method": "initialized"}, answer]
        assert await post(stage.endpoint, body) == (202, None)
        assert (await response.next_message())["result"] == {"output": "b" * 64}


# ---- bounds and the end -----------------------------------------------------------------------------


async def test_over_the_limit_a_request_is_503_with_a_time_to_come_back() -> None:
    stage = Stage(limits=Limits(max_handlers=1))
    async with request(stage.endpoint, "POST", body=execute("/wait")) as first:
        await stage.started.wait()
        async with request(stage.endpoint, "POST", body=execute("/add", 9, a=1, b=2)) as second:
            answer = await second.json()
        assert second.status == 503
        assert second.headers[b"retry-after"] == b"1"
        assert (answer["id"], answer["error"]["code"]) == (9, -32304)
        assert answer["error"]["data"] == {"retry_after_s": 1.0}
        stage.release.set()
        await first.read()
    assert (await post(stage.endpoint, execute("/add", a=1, b=2)))[0] == 200


async def test_bodies_that_are_still_coming_have_one_bound_together() -> None:
    stage = Stage(http_limits=HttpServerLimits(max_body_bytes=500, max_receiving_bytes=1000))

    async def upload(task_status: trio.TaskStatus[None]) -> None:
        """All but the end of a body of 400 bytes, and 503 or the wait for more."""
        parts = iter([b" " * 200, b" " * 200])

        async def receive() -> Message:
            await trio.lowlevel.checkpoint()
            part = next(parts, None)
            if part is None:
                task_status.started()
                await stage.release.wait()
                return {"type": "http.request", "body": b"", "more_body": False}
            return {"type": "http.request", "body": part, "more_body": True}

        async def send(message: Message) -> None:
            await trio.lowlevel.checkpoint()
            if message["type"] == "http.response.start":
                statuses.append((message["status"], dict(message["headers"]).get(b"retry-after")))

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await stage.endpoint(scope, receive, send)

    statuses: list[tuple[int, bytes | None]] = []
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            await nursery.start(upload)
        status, answer = await post(stage.endpoint, b" " * 300, pieces=2)
        assert (status, answer["error"]["code"]) == (503, -32304)
        # What comes at once waits for nothing, and takes no room.
        assert (await post(stage.endpoint, execute("/add", a=1, b=2)))[0] == 200
        stage.release.set()
    assert sorted(statuses) == [(400, None), (400, None), (503, b"1")]
    assert (await post(stage.endpoint, execute("/add", a=1, b=2), pieces=3))[0] == 200


async def test_an_upload_that_ends_halfway_gives_its_room_back() -> None:
    stage = Stage(http_limits=HttpServerLimits(max_body_bytes=500, max_receiving_bytes=500))
    for _ in range(3):
        parts: list[Message] = [
            {"type": "http.request", "body": b" " * 300, "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive(parts: list[Message] = parts) -> Message:
            await trio.lowlevel.checkpoint()
            return parts.pop(0)

        async def send(message: Message) -> None:
            raise AssertionError(message)

        scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
        await stage.endpoint(scope, receive, send)
    assert (await post(stage.endpoint, b" " * 300, pieces=2))[0] == 400


async def test_a_stopping_endpoint_finishes_what_is_in_flight_and_its_callbacks() -> None:
    stage = Stage()
    async with request(stage.endpoint, "POST", body=execute("/ask", text="x")) as response:
        callback = await response.next_message()
        stage.endpoint.stop()
        assert (await post(stage.endpoint, execute("/add", a=1, b=2)))[0] == 503
        answer = {"jsonrpc": "2.0", "id": callback["id"], "result": {"blob_id": "b" * 64}}
        assert await post(stage.endpoint, answer) == (202, None)
        assert (await response.next_message())["result"]
    await stage.endpoint.wait_idle()


async def test_a_silent_event_stream_gets_a_comment_every_heartbeat(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(http_limits=HttpServerLimits(heartbeat_s=15))
    async with request(
        stage.endpoint, "POST", body=execute("/ask", text="x"), headers=EXTENSIONS
    ) as response:
        assert (await response.next_chunk()).startswith(b"data: ")
        began = trio.current_time()
        assert [await response.next_chunk() for _ in range(3)] == [b": ping\n\n"] * 3
        assert trio.current_time() - began == pytest.approx(45)


async def test_without_a_heartbeat_a_silent_event_stream_stays_silent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(http_limits=HttpServerLimits(heartbeat_s=0))
    async with request(
        stage.endpoint, "POST", body=execute("/ask", text="x"), headers=EXTENSIONS
    ) as response:
        await response.next_chunk()
        with trio.move_on_after(1000) as patience:
            await response.next_chunk()
        assert patience.cancelled_caught


# ---- who calls --------------------------------------------------------------------------------------


async def test_two_runtimes_are_told_apart_by_the_capabilities_they_repeat() -> None:
    stage = Stage()
    stage.release.set()
    async with (
        request(stage.endpoint, "POST", body=execute("/report"), headers=EXTENSIONS) as one,
        request(
            stage.endpoint, "POST", body=execute("/report"), headers={b"stepflow-capabilities": b"{}"}
        ) as two,
    ):
        assert (await one.next_message())["method"] == "progress_update"
        assert (await two.json())["result"] == {"output": "done"}


@pytest.mark.parametrize("said", [b"{", b"[]", b'{"extensions":1}', b"\xff"])
async def test_capabilities_that_cannot_be_read_are_400(said: bytes) -> None:
    status, answer = await post(
        Stage().endpoint, execute("/add", 3, a=1, b=2), headers={b"stepflow-capabilities": said}
    )
    assert status == 400
    assert (answer["id"], answer["error"]["code"]) == (3, -32602)


async def test_a_stopping_endpoint_tells_balancers_so() -> None:
    stage = Stage()
    stage.endpoint.stop()
    async with request(stage.endpoint, "GET", "/health") as response:
        assert (await response.json())["status"] == "stopping"
    assert response.status == 503
