"""HTTP/2 of the hypercorn host: what one request, one connection and one client may use up."""

from __future__ import annotations

import pytest
import trio
from http2_stage import (
    CALM,
    CANCEL,
    NO_ERROR,
    REFUSED_STREAM,
    Http2Client,
    StreamReset,
    make_certificate,
    open_tls_server,
    request_head,
)
from http_stage import echo, part, seeing, start
from hyperframe.frame import (
    DataFrame,
    PingFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from raw_http import RawClient, request

from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import TlsFiles


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificate(tmp_path_factory.mktemp("tls"))


# ---- bounds


async def test_a_body_over_the_bound_is_refused_and_its_rest_is_not_wanted(tls: TlsFiles) -> None:
    app, _, _ = seeing(at="/silent")
    async with open_tls_server(app, tls, HttpServerLimits(max_body_bytes=1000)) as server:
        client = await server.connect()
        announced = await client.request("POST", "/silent", (b"content-length", b"1001"), more=True)
        assert (await client.response(announced)).status == 413
        assert client.answers[announced].reset == NO_ERROR
        sent = await client.request("POST", "/silent", body=b"x" * 1001, more=True)
        answer = await client.response(sent)
        assert answer.status == 413
        assert answer.body == b'{"code": 413, "message": "the body is over 1000 bytes"}'
        assert answer.reset == NO_ERROR
        # What was on its way meanwhile harms nobody.
        await client.send(DataFrame(sent, b"more"), DataFrame(announced, b"more", flags=["END_STREAM"]))
        assert (await client.post(b"x" * 1000)).body == b"x" * 1000


async def test_an_answer_before_the_bodys_end_stops_the_upload(tls: TlsFiles) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 403)
        await part(send, b"no")

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        stream_id = await client.request("POST", body=b"x" * 100_000, more=True)
        answer = await client.response(stream_id)
        assert (answer.status, answer.body) == (403, b"no")
        while answer.reset is None:
            await client.receive()
        assert answer.reset == NO_ERROR
        assert (await client.get()).status == 403


async def test_a_body_that_comes_too_slowly_is_408_and_the_others_go_on(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    limits = HttpServerLimits(body_grace_s=2, min_body_rate=1000)
    async with open_tls_server(echo, tls, limits) as server:
        client = await server.connect()
        began = trio.current_time()
        slow = await client.request("POST", "/", more=True)
        good = await client.request("POST", "/", body=b"x" * 1000, more=True)
        assert (await client.response(slow)).status == 408
        assert trio.current_time() == began + 2
        await client.send_body(good, b"y" * 10)
        assert (await client.response(good)).status == 200


async def test_an_application_may_take_its_time_with_a_body(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(100)
        await echo(scope, receive, send)

    async with open_tls_server(app, tls, HttpServerLimits(body_grace_s=2)) as server:
        client = await server.connect()
        stream_id = await client.request("POST", body=b"x" * 10_000, more=True)
        await trio.sleep(99)
        await client.send_body(stream_id, b"y")
        assert (await client.response(stream_id)).body == b"x" * 10_000 + b"y"


async def test_bodies_that_nobody_takes_hold_up_no_other_request(tls: TlsFiles) -> None:
    let_go = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/later":
            await let_go.wait()
        await echo(scope, receive, send)

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        later: list[int] = []
        for _ in range(20):
            later.append(await client.request("POST", "/later", more=True))
            await client.send_body(later[-1], b"x" * (2**16 - 1), more=True)
        assert (await client.post(b"y" * 2**16)).body == b"y" * 2**16
        let_go.set()
        for stream_id in later:
            await client.send_body(stream_id, b"z" * 2**16)
        for stream_id in later:
            assert len((await client.response(stream_id)).body) == 2**17 - 1


async def test_a_client_that_takes_no_bytes_of_an_answer_has_its_stream_reset(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    failures: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/large":
            await echo(scope, receive, send)
            return
        await start(send)
        try:
            while True:
                await part(send, b"x" * 10_000, more=True)
        except OSError as exc:
            failures.append(exc)
            raise

    async with open_tls_server(app, tls, HttpServerLimits(send_timeout_s=3)) as server:
        client = await server.connect(takes_bodies=False)
        began = trio.current_time()
        with pytest.raises(StreamReset) as caught:
            await client.get("/large")
        assert (caught.value.code, len(caught.value.received)) == (CANCEL, 2**16 - 1)
        assert trio.current_time() == began + 3
        assert len(failures) == 1
        # The connection's window is used up, not its life: with a new one it goes on.
        await client.send(WindowUpdateFrame(0, window_increment=1000))
        assert (await client.post(b"hello")).body == b"hello"


async def test_a_client_that_takes_a_little_of_an_answer_keeps_its_stream(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"x" * 2**17)

    async with open_tls_server(app, tls, HttpServerLimits(send_timeout_s=30)) as server:
        client = await server.connect(takes_bodies=False)
        stream_id = await client.request()
        for _ in range(8):
            await trio.sleep(25)
            frames = [WindowUpdateFrame(each, window_increment=2**13 + 1) for each in (0, stream_id)]
            await client.send(*frames)
        assert (await client.response(stream_id)).body == b"x" * 2**17


async def test_a_lost_client_ends_an_answer_that_waits_for_it(tls: TlsFiles) -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        try:
            while True:
                await part(send, b"x" * 10_000, more=True)
        except OSError:
            ended.set()

    async with open_tls_server(app, tls) as server:
        client = await server.connect(takes_bodies=False)
        await client.request()
        await trio.testing.wait_all_tasks_blocked()
        assert not ended.is_set()
        await client.aclose()
        with trio.fail_after(1):
            await ended.wait()


async def test_who_asks_on_and_on_and_reads_no_answer_is_not_read(tls: TlsFiles) -> None:
    pings_sent = 0

    async def ping(client: Http2Client) -> None:
        nonlocal pings_sent
        await client.open()
        while True:
            await client.send(*[PingFrame(0, b"12345678")] * 100)
            pings_sent += 100

    async with open_tls_server(echo, tls) as server, trio.open_nursery() as nursery:
        stream = server.tls(server.listener.connect_lockstep(), "h2")
        await stream.do_handshake()
        nursery.start_soon(ping, Http2Client(stream))
        await trio.testing.wait_all_tasks_blocked()
        assert pings_sent * 17 < 3 * 2**16
        nursery.cancel_scope.cancel()


async def test_padding_uses_up_no_window(tls: TlsFiles) -> None:
    async with open_tls_server(echo, tls) as server:
        client = await server.connect()
        stream_id = await client.request("POST", more=True)
        for _ in range(10):
            await client.send(*[DataFrame(stream_id, b"x", flags=["PADDED"], pad_length=255)] * 100)
            await trio.testing.wait_all_tasks_blocked()
        await client.send_body(stream_id, b"")
        assert (await client.response(stream_id)).body == b"x" * 1000


async def test_an_answer_waits_in_the_application_not_in_memory(tls: TlsFiles) -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await start(send)
        while True:
            await part(send, b"x" * 10_000, more=True)
            sent += 10_000

    async with open_tls_server(app, tls) as server:
        client = await server.connect(takes_bodies=False)
        stream_id = await client.request()
        while len(client.answers[stream_id].body) < 2**16 - 1:
            await client.receive()
        for number in range(50):  # each of which makes the sender look again
            await client.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}))
            await client.send(PingFrame(0, b"%08d" % number))
            await trio.testing.wait_all_tasks_blocked()
        assert sent < 2**16 + 50_000


async def test_headers_over_the_bound_are_431_and_far_over_it_the_connections_end(tls: TlsFiles) -> None:
    async with open_tls_server(echo, tls, HttpServerLimits(max_header_bytes=2000)) as server:
        client = await server.connect()
        fixed = sum(len(name) + len(value) + 4 for name, value in request_head("GET", "/"))
        fixed += len("GET/") + len("  HTTP/1.1\r\n\r\n")
        for size, status in ((2000, 200), (2001, 431)):
            stream_id = await client.request("GET", "/", (b"x", b"y" * (size - fixed - 5)))
            assert (await client.response(stream_id)).status == status
        await client.request("GET", "/", (b"x", b"y" * 8000))
        assert await client.wait_goaway() == CALM
        await client.wait_ended()
        assert (await (await server.connect()).get()).status == 200


async def test_after_its_requests_a_connection_says_so_and_ends_when_they_are_answered(tls: TlsFiles) -> None:
    let_go = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/later":
            await let_go.wait()
        await echo(scope, receive, send)

    async with open_tls_server(app, tls, HttpServerLimits(max_requests_per_connection=3)) as server:
        client = await server.connect()
        later = await client.request("POST", "/later", body=b"later")
        assert (await client.get()).status == 200
        last = await client.request()
        assert await client.wait_goaway() == NO_ERROR
        assert client.goaway is not None
        assert client.goaway.last_stream_id == last
        too_late = await client.request()
        with pytest.raises(StreamReset) as caught:
            await client.response(too_late)
        assert caught.value.code == REFUSED_STREAM
        assert (await client.response(last)).status == 200
        let_go.set()
        assert (await client.response(later)).body == b"later"
        await client.wait_ended()


async def test_an_idle_connection_is_closed_with_a_goaway_and_noise_does_not_keep_it(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_tls_server(echo, tls, HttpServerLimits(keep_alive_s=5)) as server:
        client = await server.connect()
        assert (await client.get()).status == 200
        began = trio.current_time()
        for _ in range(4):
            await trio.sleep(1)
            await client.send(PingFrame(0, b"12345678"))
        assert await client.wait_goaway() == NO_ERROR
        await client.wait_ended()
        assert trio.current_time() == began + 5


async def test_a_handshake_that_takes_too_long_ends(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_tls_server(echo, tls, HttpServerLimits(tls_handshake_timeout_s=5)) as server:
        silent = server.listener.connect()
        assert await silent.receive_some(1) == b""
        assert trio.current_time() == 5
        cleartext = server.listener.connect()
        await cleartext.send_all(request())
        assert await RawClient(cleartext).is_closed()
