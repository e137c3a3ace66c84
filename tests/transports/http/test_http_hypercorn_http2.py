"""HTTP/2 of the hypercorn host: that each request is on its own, whatever another one does."""

from __future__ import annotations

import logging

import pytest
import trio
from http2_stage import (
    CALM,
    CANCEL,
    INTERNAL_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    StreamReset,
    make_certificate,
    open_tls_server,
    request_head,
)
from http_stage import echo, part, read_body, seeing, start
from hyperframe.frame import (
    PriorityFrame,
    RstStreamFrame,
)
from raw_http import RawClient, request

from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import TlsFiles


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificate(tmp_path_factory.mktemp("tls"))


# ---- what it is for


async def test_requests_of_one_connection_are_answered_each_when_it_is_ready(tls: TlsFiles) -> None:
    second_is_answered = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/first":
            await second_is_answered.wait()
        await echo(scope, receive, send)

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        first = await client.request("POST", "/first", body=b"1")
        assert (await client.post(b"2", "/second")).body == b"2"
        assert not client.answers[first].is_complete
        second_is_answered.set()
        assert (await client.response(first)).body == b"1"


async def test_an_application_sees_what_asgi_says_of_an_http2_request(tls: TlsFiles) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await echo(scope, receive, send)

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        stream_id = await client.request("POST", "/a%20b?c=%20", (b"x-y", b"z"), body=b"body")
        answer = await client.response(stream_id)
    assert answer.status == 200
    assert b"date" in answer.headers
    assert b"server" not in answer.headers
    scope = seen[0]
    assert (scope["type"], scope["http_version"], scope["method"], scope["scheme"]) == (
        "http",
        "2",
        "POST",
        "https",
    )
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"c=%20")
    assert scope["headers"] == [(b"host", b"localhost"), (b"x-y", b"z")]
    assert scope["asgi"]["version"] == "3.0"


async def test_who_agrees_on_http1_in_tls_or_on_nothing_is_served_http1(tls: TlsFiles) -> None:
    seen: list[tuple[str, str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["scheme"], scope["http_version"]))
        await echo(scope, receive, send)

    async with open_tls_server(app, tls) as server:
        for alpn in (["http/1.1"], ["something/else", "http/1.1"], []):
            client = RawClient(await server.connect_tls(*alpn))
            for _ in range(3):
                await client.send(request("POST", body=b"hello"))
                assert (await client.response()).body == b"hello"
            await client.aclose()
    assert set(seen) == {("https", "1.1")}


async def test_the_end_of_a_tls_connection_is_told_and_cannot_be_forged(tls: TlsFiles) -> None:
    async with open_tls_server(echo, tls) as server:
        stream = await server.connect_tls("http/1.1")
        stream._https_compatible = False  # raises where close_notify is missing
        await stream.send_all(request("POST", "/", "Connection: close", body=b"hello"))
        assert (await RawClient(stream).response()).body == b"hello"
        assert await stream.receive_some(1) == b""


async def test_a_large_body_passes_both_ways_as_the_windows_allow(tls: TlsFiles) -> None:
    body = bytes(range(256)) * 2**12
    async with open_tls_server(echo, tls) as server:
        client = await server.connect()
        assert (await client.post(body)).body == body


async def test_head_and_bodiless_answers_have_no_body(tls: TlsFiles) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 204 if scope["path"] == "/none" else 200)
        await part(send, b"" if scope["path"] == "/none" else b"not for HEAD")

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        for method, target, status in (("HEAD", "/", 200), ("GET", "/none", 204)):
            answer = await client.response(await client.request(method, target))
            assert (answer.status, answer.body) == (status, b"")
        assert (await client.get()).body == b"not for HEAD"


# ---- what goes wrong in an application


async def test_an_exception_before_the_answer_is_500_with_its_incident_and_after_its_start_a_reset(
    tls: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/good":
            await echo(scope, receive, send)
            return
        if scope["path"] == "/late":
            await start(send)
            await part(send, b"some", more=True)
        if scope["path"] != "/silent":
            raise ValueError("secret")

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        for target in ("/early", "/silent"):
            answer = await client.get(target)
            assert answer.status == 500
            assert b"internal error" in answer.body
            assert b"secret" not in answer.body
            incident = answer.body.decode().split('"')[-2]
            assert incident in caplog.text
        with pytest.raises(StreamReset) as caught:
            await client.get("/late")
        assert caught.value.code == INTERNAL_ERROR
        assert (await client.get("/good")).status == 200
    assert caplog.text.count("ValueError: secret") == 2
    assert {record.levelno for record in caplog.records if "incident" in record.message} == {logging.ERROR}


async def test_an_answer_left_short_is_reset(tls: TlsFiles) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"half", more=True)

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        with pytest.raises(StreamReset) as caught:
            await client.get()
        assert caught.value.code == INTERNAL_ERROR


# ---- clients that go


async def test_a_reset_request_is_a_disconnect_at_once_and_the_others_go_on(tls: TlsFiles) -> None:
    app, begun, gone = seeing(at="/silent")
    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        silent = await client.request("POST", "/silent", body=b"x")
        await begun.wait()
        await client.reset(silent)
        with trio.fail_after(1):
            await gone.wait()
        assert (await client.post(b"still here")).body == b"still here"


async def test_a_lost_connection_is_a_disconnect_for_each_of_its_requests(tls: TlsFiles) -> None:
    begun = 0
    gone = trio.Semaphore(0)
    all_begun = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal begun
        await read_body(receive)
        begun += 1
        if begun == 3:
            all_begun.set()
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(OSError, match="closed"):
            await start(send)
        gone.release()

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        for _ in range(3):
            await client.request()
        await all_begun.wait()
        await client.aclose()
        with trio.fail_after(1):
            for _ in range(3):
                await gone.acquire()


async def test_resets_faster_than_applications_give_up_end_the_connection_alone(tls: TlsFiles) -> None:
    running = most = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await echo(scope, receive, send)
        except EOFError:
            pass
        finally:
            running -= 1

    async with open_tls_server(app, tls) as server:
        attacker, healthy = await server.connect(), await server.connect()
        assert (await healthy.get()).status == 200
        frames = []
        for _ in range(500):
            frame = attacker.head(request_head("POST", "/"), end=False)
            frames += [frame, RstStreamFrame(frame.stream_id, error_code=CANCEL)]
        await attacker.send(*frames)
        assert await attacker.wait_goaway() == CALM
        await attacker.wait_ended()
        assert (await healthy.get()).status == 200
        await trio.testing.wait_all_tasks_blocked()
    assert running == 0
    assert most <= 200


async def test_resets_at_a_human_pace_never_end_a_connection(tls: TlsFiles) -> None:
    async with open_tls_server(echo, tls) as server:
        client = await server.connect()
        for _ in range(1100):  # more than hypercorn's priorities hold
            stream_id = await client.request("POST", more=True)
            await client.reset(stream_id)
            await trio.testing.wait_all_tasks_blocked()
        assert (await client.get()).status == 200


# ---- what is not HTTP/2, or not wanted


@pytest.mark.parametrize(
    "head",
    [
        request_head("GE\xffT", "/"),
        request_head("", "/"),
        request_head("GET POST", "/"),
        request_head("GET", "/\xff"),
        request_head("GET", "/a b"),
        request_head("GET", "relative"),
    ],
)
async def test_a_request_that_is_none_is_reset_and_the_others_go_on(
    tls: TlsFiles, head: list[tuple[bytes, bytes]]
) -> None:
    async with open_tls_server(echo, tls) as server:
        client = await server.connect()
        frame = client.head(head)
        await client.send(frame)
        with pytest.raises(StreamReset) as caught:
            await client.response(frame.stream_id)
        assert caught.value.code == PROTOCOL_ERROR
        assert (await client.get()).status == 200


@pytest.mark.parametrize("extended", [False, True])
async def test_connect_is_not_spoken(tls: TlsFiles, extended: bool) -> None:
    head = [(b":method", b"CONNECT"), (b":authority", b"localhost")]
    if extended:
        head += [(b":protocol", b"websocket"), (b":scheme", b"https"), (b":path", b"/")]
    async with open_tls_server(echo, tls) as server:
        client = await server.connect()
        frame = client.head(head, end=False)
        await client.send(frame)
        assert (await client.response(frame.stream_id)).status == 501
        assert (await client.get()).status == 200


async def test_priorities_are_ignored_however_many(tls: TlsFiles) -> None:
    async with open_tls_server(echo, tls) as server:
        client = await server.connect()
        await client.send(
            *(PriorityFrame(2 * each + 1, depends_on=0, stream_weight=7) for each in range(1, 1500))
        )
        assert (await client.get()).status == 200


# ---- its end


async def test_stop_lets_requests_finish_refuses_new_ones_and_says_so(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    begun, let_go = trio.Event(), trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await let_go.wait()
        await echo(scope, receive, send)

    async with open_tls_server(app, tls) as server:
        busy, idle = await server.connect(), await server.connect()
        stream_id = await busy.request("POST", body=b"in flight")
        await begun.wait()
        await trio.testing.wait_all_tasks_blocked()
        server.stop.set()
        assert await idle.wait_goaway() == NO_ERROR
        await idle.wait_ended()
        assert await busy.wait_goaway() == NO_ERROR
        refused = await busy.request()
        with pytest.raises(StreamReset) as caught:
            await busy.response(refused)
        assert caught.value.code == REFUSED_STREAM
        let_go.set()
        assert (await busy.response(stream_id)).body == b"in flight"
        await busy.wait_ended()
        await server.wait_ended()


async def test_an_answer_that_ends_while_the_server_stops_is_whole(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    let_go = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"first", more=True)
        await let_go.wait()
        await part(send, b"")

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        stream_id = await client.request()
        while not client.answers[stream_id].body:
            await client.receive()
        server.stop.set()
        await client.wait_goaway()
        let_go.set()
        assert (await client.response(stream_id)).body == b"first"
        await server.wait_ended()


async def test_after_the_drain_requests_are_cancelled(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    cancelled = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal cancelled
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled += 1
            raise

    async with open_tls_server(app, tls, HttpServerLimits(drain_s=3)) as server:
        client = await server.connect()
        await client.request()
        await client.request()
        await trio.sleep(1)
        server.stop.set()
        await server.wait_ended()
        assert trio.current_time() == 4
        assert cancelled == 2
        await client.wait_ended()
