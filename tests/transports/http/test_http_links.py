"""Our runtime's end of HTTP: calls over plain POSTs and over sessions, against our endpoint and others'."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from link_stage import execute, offered, open_link, open_stage
from worker_stage import Stage

from stepflow_trio.engine import Handlers, RequestContext, open_connection
from stepflow_trio.errors import (
    CallFailed,
    CallTimeout,
    ConnectionLost,
    LocalProtocolError,
    Overloaded,
    RemoteProtocolError,
)
from stepflow_trio.protocol import dialects
from stepflow_trio.protocol.peer import Role
from stepflow_trio.transports.http import post_link
from stepflow_trio.transports.http.asgi import AsgiApp, Receive, Scope, Send
from stepflow_trio.transports.http.events import OPENING_TIMEOUT_S
from stepflow_trio.transports.http.limits import HttpClientLimits, HttpServerLimits
from stepflow_trio.transports.http.links import SessionMode
from stepflow_trio.transports.http.post_link import PostLink

both_ways = pytest.mark.parametrize("sessions", ["never", "auto"])


@both_ways
async def test_calls_are_answered_in_any_order_at_once(
    sessions: SessionMode, autojump_clock: trio.testing.MockClock
) -> None:
    stage = Stage()
    async with open_stage(stage, sessions) as (connection, _), trio.open_nursery() as nursery:

        async def add(n: int) -> None:
            assert await execute(connection, "/add", a=n, b=n) == 2 * n

        async def wait() -> None:
            assert await execute(connection, "/wait", text="ä€😀") == "ä€😀"

        nursery.start_soon(wait)
        await stage.started.wait()
        async with trio.open_nursery() as adding:
            for n in range(100):
                adding.start_soon(add, n)
        stage.release.set()


@both_ways
async def test_callbacks_and_progress_reach_the_runtime(
    sessions: SessionMode, autojump_clock: trio.testing.MockClock
) -> None:
    stage = Stage()
    asked: list[Any] = []
    handlers = offered(asked)
    reports: list[Any] = []

    def hear(params: Any, _: object) -> None:
        reports.append(params["progress"])
        stage.release.set()

    handlers.on_raw_notification("progress_update", hear)
    async with open_stage(stage, sessions, handlers) as (connection, _):
        assert await execute(connection, "/ask", text="ä€😀") == "b" * 64
        assert await execute(connection, "/report") == "done"
    assert asked == [{"text": "ä€😀"}]
    assert reports == [0.5]


@both_ways
async def test_an_error_keeps_its_code_and_data(sessions: SessionMode) -> None:
    async with open_stage(Stage(), sessions) as (connection, _):
        with pytest.raises(CallFailed) as caught:
            await execute(connection, "/fail")
        assert (caught.value.code, caught.value.message, caught.value.data) == (
            -32111,
            "no",
            {"why": "because"},
        )
        assert await execute(connection, "/add", a=1, b=2) == 3


@both_ways
async def test_a_caller_that_gives_up_leaves_at_once_and_its_component_is_cancelled(
    sessions: SessionMode, autojump_clock: trio.testing.MockClock
) -> None:
    stage = Stage()
    async with open_stage(stage, sessions) as (connection, _):
        began = trio.current_time()
        with pytest.raises(CallTimeout):
            await execute(connection, "/wait", timeout_s=5)
        assert trio.current_time() - began == pytest.approx(5)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.log == ["cancelled"]
        assert connection.abandoned_calls == frozenset()
        assert await execute(connection, "/add", a=1, b=2) == 3


@both_ways
async def test_a_caller_that_gives_up_during_a_callback_cancels_the_callback_too(
    sessions: SessionMode, autojump_clock: trio.testing.MockClock
) -> None:
    stage = Stage()
    asked = trio.Event()
    ended: list[str] = []

    async def put_blob(_params: Any, _context: RequestContext) -> Any:
        asked.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.append("callback")

    handlers = Handlers()
    handlers.on_raw_request("blobs/put", put_blob)
    async with open_stage(stage, sessions, handlers) as (connection, _):
        with pytest.raises(CallTimeout):
            await execute(connection, "/ask", timeout_s=5, text="x")
        await trio.testing.wait_all_tasks_blocked()
        assert asked.is_set()
        assert ended == ["callback"]
        assert stage.log == ["ask ended"]


@both_ways
async def test_leaving_the_block_ends_every_connection(sessions: SessionMode) -> None:
    stage = Stage()
    async with trio.open_nursery() as nursery:
        async with open_stage(stage, sessions) as (connection, server):
            await execute(connection, "/add", a=1, b=2)
            assert server.open_connections
        await trio.testing.wait_all_tasks_blocked()
        assert server.open_connections == 0
        nursery.cancel_scope.cancel()


async def test_a_hundred_cancelled_posts_leave_the_pool_usable(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    async with open_stage(stage, "never") as (connection, server):

        async def give_up(after_s: float) -> None:
            with trio.move_on_after(after_s):
                await execute(connection, "/wait")

        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(give_up, 1 + n / 100)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.log == ["cancelled"] * 100
        assert server.open_connections <= 2
        assert await execute(connection, "/add", a=1, b=2) == 3


async def test_lines_that_pile_up_while_a_post_is_in_flight_go_with_the_next_one() -> None:
    stage = Stage()
    posts: list[int] = []

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            posts.append(1)
        await stage.endpoint(scope, receive, send)

    async with (
        open_link(counting, "auto") as (link, _),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
    ):
        await connection.call("initialize", dialects.write_initialize_params(None))
        await connection.notify("initialized", {})
        posts.clear()
        async with trio.open_nursery() as nursery:
            for n in range(500):
                nursery.start_soon(lambda n=n: execute(connection, "/add", a=n, b=1))
        assert len(posts) < 20


async def test_a_session_ends_with_its_stream(autojump_clock: trio.testing.MockClock) -> None:
    stage = Stage()
    async with open_stage(stage, "auto") as (connection, _):
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(ConnectionLost):
                    await execute(connection, "/wait")

            nursery.start_soon(wait)
            await stage.started.wait()
            stage.endpoint.stop()
        loss = await connection.wait_lost()
        assert "session" in str(loss)


async def test_a_worker_that_cannot_be_reached_fails_the_call_and_makes_the_link_suspect() -> None:
    async with (
        open_link(Stage().endpoint) as (link, server),
        open_connection(link, Handlers(), role=Role.RUNTIME) as connection,
    ):
        server.refuses = True
        with pytest.raises(ConnectionLost, match="nobody listens there"):
            await execute(connection, "/add", a=1, b=2)
        assert link.is_suspect
        assert connection.loss is None
        server.refuses = False
        assert await execute(connection, "/add", a=1, b=2) == 3


@both_ways
async def test_a_worker_may_be_below_a_path_of_its_server(sessions: SessionMode) -> None:
    stage = Stage()
    paths: set[str] = set()

    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        paths.add(scope["path"])
        await stage.endpoint({**scope, "root_path": "/workers/one"}, receive, send)

    async with (
        open_link(mounted, sessions, url="http://worker.test/workers/one/") as (link, _),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
    ):
        await connection.call("initialize", dialects.write_initialize_params(None))
        await connection.notify("initialized", {})
        assert await execute(connection, "/ask", text="x") == "b" * 64
    assert all(path.startswith("/workers/one/") for path in paths)


# ---- other people's workers -------------------------------------------------------------------------


def answering(
    status: int, body: bytes, content_type: bytes = b"application/json", *headers: tuple[bytes, bytes]
) -> AsgiApp:
    """Answers every POST so, with the id of the request in the place of ``ID``."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        request = json.loads((await receive())["body"])
        content = body.replace(b"ID", json.dumps(request.get("id")).encode())
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", content_type), *headers],
            }
        )
        await send({"type": "http.response.body", "body": content})

    return app


async def call(app: AsgiApp, *, limits: HttpClientLimits | None = None) -> Any:
    async with (
        open_link(app, limits=limits) as (link, _),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
    ):
        await connection.notify("initialized", {})
        return await connection.call("m")


SSE = b"text/event-stream"


@pytest.mark.parametrize(("content_type", "body"), [
    (b"application/json", b'{"jsonrpc":"2.0","id":ID,"result":42}'),
    (b"text/plain", b'{"jsonrpc":"2.0","id":ID,"result":42}'),
    (SSE, b'data: {"jsonrpc":"2.0","id":ID,"result":42}\n\n'),
    (SSE, b'data:{"jsonrpc":"2.0","id":ID,"result":42}\n\n'),
    (SSE, b'data: {"jsonrpc":"2.0","id":ID,"result":42}\r\n\r\n'),
    (SSE, b'data: {"jsonrpc":"2.0",\ndata: "id":ID,"result":42}\n\n'),
    (SSE, b': hello\n\nevent: message\nid: 7\ndata: {"jsonrpc":"2.0","id":ID,"result":42}\n\n'),
    (SSE, b'data: {"jsonrpc":"2.0","id":"x","result":1}\n\ndata: {"jsonrpc":"2.0","id":ID,"result":42}\n\n'),
    (SSE, b'data: garbage\n\ndata: {"jsonrpc":"2.0","id":ID,"result":42}\n\n'),
    (SSE + b"; charset=utf-8", b'data: {"jsonrpc":"2.0","id":ID,"result":42}\n\n'),
])  # fmt: skip
async def test_whatever_the_standards_allow_is_read(content_type: bytes, body: bytes) -> None:
    assert await call(answering(200, body, content_type)) == 42


@pytest.mark.parametrize(("status", "body"), [
    (200, b'{"jsonrpc":"2.0","id":ID,"error":{"code":-32005,"message":"gone"}}'),
    (400, b'{"jsonrpc":"2.0","id":ID,"error":{"code":-32005,"message":"gone"}}'),
    (500, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32005,"message":"gone"}}'),
    (400, b'{"error":{"code":-32005,"message":"gone"}}'),
])  # fmt: skip
async def test_a_json_rpc_error_is_the_answer_whatever_the_status_and_whatever_is_missing(
    status: int, body: bytes
) -> None:
    with pytest.raises(CallFailed, match="gone") as caught:
        await call(answering(status, body))
    assert caught.value.code == -32005


@pytest.mark.parametrize(("status", "kind", "words"), [
    (401, RemoteProtocolError, "HTTP 401"),
    (404, RemoteProtocolError, "HTTP 404"),
    (307, RemoteProtocolError, "HTTP 307"),
    (500, ConnectionLost, "HTTP 500"),
    (502, ConnectionLost, "HTTP 502"),
    (503, Overloaded, "HTTP 503"),
])  # fmt: skip
async def test_a_bare_status_says_whether_another_attempt_may_succeed(
    status: int, kind: type[Exception], words: str
) -> None:
    headers = (b"retry-after", b"7"), (b"location", b"http://elsewhere.test/")
    with pytest.raises(kind, match=words) as caught:
        await call(answering(status, b"<h1>\x1b[31mno</h1>", b"text/html", *headers))
    assert "\x1b" not in str(caught.value)
    if isinstance(caught.value, Overloaded):
        assert caught.value.retry_after_s == 7


@pytest.mark.parametrize(("said", "seconds"), [(b"0.5", 0.5), (b"9" * 400, 86_400), (b"soon", None)])
async def test_when_to_ask_again_is_a_number_that_json_has(said: bytes, seconds: float | None) -> None:
    with pytest.raises(Overloaded) as caught:
        await call(answering(503, b"", b"text/plain", (b"retry-after", said)))
    assert caught.value.data == (None if seconds is None else {"retry_after_s": seconds})


@pytest.mark.parametrize(("status", "content_type", "body"), [
    (202, b"application/json", b""),
    (202, b"application/json", b'""'),
    (200, b"application/json", b""),
    (200, b"application/json", b"{"),
    (200, b"application/json", b'{"jsonrpc":"2.0","id":"another","result":1}'),
    (200, b"text/html", b"<h1>Welcome</h1>"),
])  # fmt: skip
async def test_what_is_no_answer_fails_the_call(status: int, content_type: bytes, body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        await call(answering(status, body, content_type))


@pytest.mark.parametrize("body", [b"", b": ping\n\n", b'data: {"jsonrpc":"2.0","id":ID,"result":42}'])
async def test_a_stream_that_ends_before_the_answer_is_a_transport_error(body: bytes) -> None:
    with pytest.raises(ConnectionLost, match="ended before the answer"):
        await call(answering(200, body, SSE))


async def test_an_event_over_the_limit_fails_its_call() -> None:
    body = b'data: {"jsonrpc":"2.0","id":ID,"result":"' + b"x" * 5000 + b'"}\n\n'
    with pytest.raises(RemoteProtocolError, match="1000"):
        await call(answering(200, body, SSE), limits=HttpClientLimits(max_event_bytes=1000))


async def test_an_answer_over_the_limit_fails_its_call() -> None:
    body = b'{"jsonrpc":"2.0","id":ID,"result":"' + b"x" * 5000 + b'"}'
    with pytest.raises(ConnectionLost, match="1000"):
        await call(answering(200, body), limits=HttpClientLimits(max_body_bytes=1000))


async def test_a_stream_goes_back_to_the_pool_when_it_ends_after_its_answer() -> None:
    stage = Stage()
    async with open_stage(stage, "never") as (connection, server):
        for _ in range(5):
            await execute(connection, "/ask", text="x")
        await trio.testing.wait_all_tasks_blocked()
        assert server.open_connections <= 3


async def test_a_stream_that_goes_on_after_its_answer_delays_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        request = json.loads((await receive())["body"])
        if "id" not in request:
            await answering(202, b"")(_scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", SSE)]})
        event = b'data: {"jsonrpc":"2.0","id":%d,"result":1}\n\n' % request["id"]
        await send({"type": "http.response.body", "body": event, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    async with (
        open_link(app) as (link, server),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
    ):
        began = trio.current_time()
        assert await connection.call("m") == 1
        assert trio.current_time() == began
        await trio.sleep(1.5)
        assert server.open_connections == 0


async def test_a_callback_that_cannot_be_answered_fails_its_request() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = json.loads((await receive())["body"])
        if "method" not in request or request["method"] == "initialized":
            await answering(500, b"")(scope, _once(request), send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", SSE)]})
        event = b'data: {"jsonrpc":"2.0","id":"cb","method":"blobs/put","params":{"data":1}}\n\n'
        await send({"type": "http.response.body", "body": event, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    with pytest.raises(ConnectionLost, match="HTTP 500"):
        await call(app)


def _once(request: Any) -> Callable[[], Awaitable[dict[str, Any]]]:
    async def receive() -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {"type": "http.request", "body": json.dumps(request).encode()}

    return receive


async def test_answers_to_callbacks_carry_the_instance_id() -> None:
    seen: list[tuple[str | None, bytes | None]] = []
    stage = Stage(instance_id="instance-1")

    async def spying(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        request = json.loads(message["body"])
        seen.append((request.get("method"), dict(scope["headers"]).get(b"stepflow-instance-id")))
        unread = [message]

        async def again() -> Any:
            return unread.pop() if unread else await receive()

        await stage.endpoint(scope, again, send)

    async with (
        open_link(spying) as (link, _),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
    ):
        await connection.notify("initialized", {})
        await execute(connection, "/ask", text="x")
    assert ("components/execute", None) in seen
    assert (None, b"instance-1") in seen


# ---- sessions of others -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize("sessions", ["auto", "always"])
async def test_without_sessions_plain_posts_do(status: int, sessions: SessionMode) -> None:
    stage = Stage()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/runtime/events":
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await stage.endpoint(scope, receive, send)

    async with (
        open_link(app, sessions) as (link, _),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
    ):
        assert isinstance(link, PostLink)
        assert await execute(connection, "/add", a=1, b=2) == 3


async def test_a_session_without_lines_answers_in_responses_and_calls_back_on_the_stream() -> None:
    stage = Stage()

    async def older(scope: Scope, receive: Receive, send: Send) -> None:
        """Our endpoint, as a worker that knows nothing of lines would have it."""

        async def without_extensions(message: Any) -> None:
            if b"event: endpoint" in message.get("body", b""):
                data = json.loads(message["body"].split(b"data: ")[1])
                message["body"] = b'event: endpoint\ndata: {"endpoint":"%s"}\n\n' % data["endpoint"].encode()
            await send(message)

        await stage.endpoint(scope, receive, without_extensions)

    asked: list[Any] = []
    async with (
        open_link(older, "always") as (link, _),
        open_connection(link, offered(asked), role=Role.RUNTIME) as connection,
    ):
        assert isinstance(link, PostLink)
        await connection.call("initialize", dialects.write_initialize_params(None))
        await connection.notify("initialized", {})
        assert await execute(connection, "/ask", text="x") == "b" * 64
        assert asked == [{"text": "x"}]
        stage.endpoint.stop()
        loss = await connection.wait_lost()
        assert "session" in str(loss)
    stage = Stage()
    async with open_link(older, "auto") as (link, _):
        assert isinstance(link, PostLink)


@pytest.mark.parametrize(
    "data", [b'{"endpoint":"http://elsewhere.test/"}', b'{"endpoint":"//elsewhere.test/"}', b"{}", b"x"]
)
async def test_a_session_that_leads_elsewhere_is_refused(data: bytes) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", SSE)]})
        event = b"event: endpoint\ndata: " + data + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await trio.sleep_forever()

    with pytest.raises(RemoteProtocolError):
        async with open_link(app, "always"):
            pytest.fail("it was accepted")


async def test_a_session_without_its_first_event_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", SSE)]})
        await send({"type": "http.response.body", "body": b": hello\n\n", "more_body": True})
        await trio.sleep_forever()

    with pytest.raises(ConnectionLost, match="no session within 5 s"):
        async with open_link(app, "auto"):
            pytest.fail("it was accepted")


async def test_a_session_whose_heartbeats_stop_is_over(autojump_clock: trio.testing.MockClock) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", SSE)]})
        data = b'{"endpoint":"/?sessionId=a","extensions":["batch"],"heartbeatS":15}'
        event = b"event: endpoint\ndata: " + data + b"\n\n: ping\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await trio.sleep_forever()

    async with (
        open_link(app, "auto") as (link, _),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
    ):
        began = trio.current_time()
        loss = await connection.wait_lost()
        assert "brought nothing for 45 s" in str(loss)
        assert trio.current_time() - began == pytest.approx(45)


# ---- what must not cost more than itself ------------------------------------------------------------


def answered(request: Any, result: Any) -> bytes:
    return b'data: {"jsonrpc":"2.0","id":%d,"result":%s}\n\n' % (request["id"], json.dumps(result).encode())


def calling_back(number: int, id_: str = "cb-%d") -> AsgiApp:
    """Calls back so often, at once, and answers when all of that is answered."""
    waiting: dict[str, trio.Event] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = json.loads((await receive())["body"])
        if "method" not in request:
            waiting[request["id"]].set()
        if "method" not in request or "id" not in request:
            await answering(202, b"")(scope, _once(request), send)
            return
        ids = [id_ % n if "%d" in id_ else id_ for n in range(number)]
        for each in ids:
            waiting.setdefault(each, trio.Event())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", SSE)]})
        for each in ids:
            callback = {"jsonrpc": "2.0", "id": each, "method": "blobs/put", "params": {"data": each}}
            body = b"data: " + json.dumps(callback).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
        for each in ids:
            await waiting[each].wait()
        await send({"type": "http.response.body", "body": answered(request, number)})

    return app


async def test_a_request_waits_for_the_notification_before_it() -> None:
    arrived: list[str] = []
    release = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = json.loads((await receive())["body"])
        if "id" not in request:
            await release.wait()
        arrived.append(request["method"])
        status = 200 if "id" in request else 202
        await answering(status, b'{"jsonrpc":"2.0","id":ID,"result":1}')(scope, _once(request), send)

    async with (
        open_link(app) as (link, _),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
        trio.open_nursery() as nursery,
    ):
        await connection.notify("initialized", {})
        nursery.start_soon(connection.call, "m")
        await trio.testing.wait_all_tasks_blocked()
        assert arrived == []
        release.set()
    assert arrived == ["initialized", "m"]


async def test_callbacks_over_the_bound_are_refused_and_what_stands_behind_them_is_read(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(post_link, "MAX_CALLBACKS", 4)
    running = most = 0

    async def put_blob(_params: Any, _context: RequestContext) -> dict[str, str]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1
        return {"blob_id": "b" * 64}

    handlers = Handlers()
    handlers.on_raw_request("blobs/put", put_blob)
    async with (
        open_link(calling_back(20)) as (link, _),
        open_connection(link, handlers, role=Role.RUNTIME) as connection,
    ):
        await connection.notify("initialized", {})
        assert await connection.call("m") == 20
    assert most == 4


async def test_a_callback_with_an_id_in_flight_fails_its_own_request_alone() -> None:
    app = calling_back(1, id_="same")
    both = trio.Event()
    asked = 0

    async def put_blob(_params: Any, _context: RequestContext) -> dict[str, str]:
        nonlocal asked
        asked += 1
        await both.wait()
        return {"blob_id": "b" * 64}

    handlers = Handlers()
    handlers.on_raw_request("blobs/put", put_blob)
    async with (
        open_link(app) as (link, _),
        open_connection(link, handlers, role=Role.RUNTIME) as connection,
    ):
        await connection.notify("initialized", {})
        async with trio.open_nursery() as nursery:

            async def first() -> None:
                assert await connection.call("m") == 1

            nursery.start_soon(first)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(RemoteProtocolError, match="'same', which is still in flight"):
                await connection.call("m")
            both.set()
        assert asked == 1


async def test_an_answer_that_the_worker_does_not_take_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    inner = calling_back(1)
    deaf = True
    unheard = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal unheard
        message = await receive()
        if deaf and b'"result"' in message["body"]:
            unheard += 1
            while (await receive())["type"] != "http.disconnect":
                pass
            unheard -= 1
            return
        unread = [message]

        async def again() -> Any:
            return unread.pop() if unread else await receive()

        await inner(scope, again, send)

    async with (
        open_link(app) as (link, _),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
    ):
        await connection.notify("initialized", {})
        began = trio.current_time()
        with pytest.raises(ConnectionLost, match="did not reach it"):
            await connection.call("m")
        assert trio.current_time() - began == pytest.approx(post_link.ONE_WAY_TIMEOUT_S)
        with pytest.raises(CallTimeout):
            await connection.call("m", timeout_s=1)
        await trio.testing.wait_all_tasks_blocked()
        assert unheard == 0, "it ends with the request that it belongs to"
        deaf = False
        assert await connection.call("m") == 1


async def test_a_stream_whose_heartbeats_stop_fails_its_call(autojump_clock: trio.testing.MockClock) -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", SSE)]})
        for _ in range(3):
            await trio.sleep(15)
            await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})
        await trio.sleep_forever()

    async with (
        open_link(app) as (link, _),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
    ):
        began = trio.current_time()
        with pytest.raises(ConnectionLost, match="brought nothing for 45 s"):
            await connection.call("m")
        assert trio.current_time() - began == pytest.approx(90)


async def test_a_message_that_a_session_does_not_take_fails_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(http_limits=HttpServerLimits(max_body_bytes=5000))
    async with open_stage(stage, "auto") as (connection, _), trio.open_nursery() as nursery:

        async def wait() -> None:
            assert await execute(connection, "/wait", text="other") == "other"

        nursery.start_soon(wait)
        await stage.started.wait()
        with pytest.raises(LocalProtocolError, match="blobs"):
            await execute(connection, "/wait", text="x" * 6000)
        assert await execute(connection, "/add", a=1, b=2) == 3
        assert connection.loss is None
        stage.release.set()


async def test_a_session_outlives_a_worker_that_takes_nothing_for_the_time_being(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    refusals = 3

    async def busy(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal refusals
        if scope["method"] == "POST" and refusals:
            refusals -= 1
            await answering(503, b"", b"text/plain", (b"retry-after", b"2"))(scope, _once({}), send)
            return
        await stage.endpoint(scope, receive, send)

    async with (
        open_link(busy, "auto") as (link, _),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
    ):
        await connection.call("initialize", dialects.write_initialize_params(None))
        await connection.notify("initialized", {})
        assert await execute(connection, "/add", a=1, b=2) == 3
        assert trio.current_time() >= 6


async def test_an_answer_that_is_too_long_for_the_stream_ends_the_session(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage()
    stage.release.set()
    async with (
        open_link(stage.endpoint, "auto", HttpClientLimits(max_event_bytes=2000)) as (link, _),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
    ):
        await connection.call("initialize", dialects.write_initialize_params(None))
        await connection.notify("initialized", {})
        assert len(await execute(connection, "/wait", text="ä" * 900)) == 900, "UTF-8 is not made longer"
        with pytest.raises(ConnectionLost, match="protocol_violation"):
            await execute(connection, "/wait", text="x" * 5000)


async def test_opening_a_session_takes_no_longer_than_its_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def silent(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    began = trio.current_time()
    with pytest.raises(ConnectionLost, match="session"):
        async with open_link(silent, "auto"):
            pytest.fail("it was accepted")
    assert trio.current_time() - began == pytest.approx(OPENING_TIMEOUT_S)


async def test_only_an_instance_that_was_never_met_makes_a_link_suspect() -> None:
    stages = [Stage(instance_id="one"), Stage(instance_id="two")]
    turn = 0

    async def balanced(scope: Scope, receive: Receive, send: Send) -> None:
        named = dict(scope["headers"]).get(b"stepflow-instance-id")
        chosen = stages[turn % 2] if named is None else stages[named == b"two"]
        await chosen.endpoint(scope, receive, send)

    instances: set[bytes] = set()
    for expected in (True, False):
        async with (
            open_link(balanced, instances=instances) as (link, _),
            open_connection(link, offered(), role=Role.RUNTIME) as connection,
        ):
            await connection.notify("initialized", {})
            for turn in range(4):  # noqa: B007 — the balancer looks at it
                await execute(connection, "/ask", text="x")
            assert link.is_suspect == expected
    assert instances == {b"one", b"two"}


@pytest.mark.parametrize("error", [
    b'{"code":1e999,"message":"x"}',
    b'{"code":1%s,"message":"x"}' % (b"0" * 300),
    b'{"code":true,"message":"x"}',
    b'{"code":1.5,"message":"x"}',
    b'{"code":1,"message":"\\ud800"}',
    b'{"code":1,"message":"x","data":NaN}',
    b'{"code":1,"message":"x","data":%s}' % (b"[" * 400 + b"]" * 400),
])  # fmt: skip
async def test_an_error_that_could_not_be_passed_on_costs_its_own_call_alone(error: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = json.loads((await receive())["body"])
        is_good = request.get("method") == "good"
        body = b'{"jsonrpc":"2.0","id":ID,"result":1}' if is_good else b'{"error":' + error + b"}"
        await answering(200 if is_good else 500, body)(scope, _once(request), send)

    async with (
        open_link(app) as (link, _),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
    ):
        with pytest.raises(ConnectionLost, match="HTTP 500"):
            await connection.call("bad")
        assert await connection.call("good") == 1


async def test_an_event_that_is_cut_before_a_colon_is_no_heartbeat(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        request = json.loads((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", SSE)]})
        note = b': {"jsonrpc":"2.0","method":"n"}\n\n'
        for piece in (b"data", note):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await trio.sleep(1)
        await trio.sleep(500)
        await send({"type": "http.response.body", "body": answered(request, 1)})

    async with (
        open_link(app) as (link, _),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
    ):
        assert await connection.call("m") == 1


@pytest.mark.parametrize("callback", [
    b'{"jsonrpc":"2.0","id":"cb","method":"blobs/put","params":%s}' % (b"[" * 400 + b"]" * 400),
    b'{"jsonrpc":"2.0","id":"cb","method":"blobs/put","params":{"da',
])  # fmt: skip
async def test_a_callback_that_cannot_be_read_fails_its_call(callback: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="an event cannot be read"):
        await call(answering(200, b"data: " + callback + b"\n\n", SSE))


async def test_an_array_of_callbacks_is_answered_one_by_one() -> None:
    answers: dict[str, trio.Event] = {"one": trio.Event(), "two": trio.Event()}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = json.loads((await receive())["body"])
        if "id" not in request or "method" not in request:
            if "id" in request:
                answers[request["id"]].set()
            await answering(202, b"")(scope, _once(request), send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", SSE)]})
        asked = [
            {"jsonrpc": "2.0", "id": id_, "method": "blobs/put", "params": {"data": 1}} for id_ in answers
        ]
        body = b"data: " + json.dumps(asked).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})
        for each in answers.values():
            await each.wait()
        await send({"type": "http.response.body", "body": answered(request, 2)})

    assert await call(app) == 2


async def test_a_token_that_a_server_shows_is_not_shown_on() -> None:
    with pytest.raises(ConnectionLost) as caught:
        await call(answering(502, b"you sent Authorization: Bearer sekrit-token-123456 !", b"text/plain"))
    assert "sekrit" not in str(caught.value)
    assert "Bearer …" in str(caught.value)
