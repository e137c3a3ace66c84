"""What ends other servers, each in a test of its own: here it costs its sender the connection, and no more.

The names are those of the attacks. Over TLS, HTTP/2 is spoken; without TLS every host refuses it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from hostile_stage import ask, assert_healthy, open_memory_host
from http2_stage import (
    CANCEL,
    PREFACE,
    ConnectionEnded,
    Http2Client,
    StreamReset,
    make_certificate,
    open_tls_server,
    request_head,
)
from http_stage import echo, open_server, part, read_body, seeing, start
from hyperframe.frame import (
    ContinuationFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from raw_http import RawClient, connected, request

from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import TlsFiles

TRIES = 15
"""Some of these attacks are races."""


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificate(tmp_path_factory.mktemp("tls"))


# ---- HTTP/2


def method_that_is_not_ascii(client: Http2Client) -> list[Frame]:
    return [
        client.head([(b":method", b"\xff"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"x")])
    ]


def path_that_is_not_ascii(client: Http2Client) -> list[Frame]:
    return [
        client.head(
            [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/\xff"), (b":authority", b"x")]
        )
    ]


def connect_without_path(client: Http2Client) -> list[Frame]:
    return [client.head([(b":method", b"CONNECT"), (b":authority", b"x:1")])]


def headers_and_resets(client: Http2Client) -> list[Frame]:
    frames: list[Frame] = []
    for _ in range(500):
        head = client.head(request_head("GET", "/"))
        frames += [head, RstStreamFrame(head.stream_id, error_code=CANCEL)]
    return frames


def headers_without_end(client: Http2Client) -> list[Frame]:
    head = client.head(request_head("GET", "/"))
    head.flags.discard("END_HEADERS")
    return [head, *(ContinuationFrame(head.stream_id, b"\x00\x01x\x01y") for _ in range(2000))]


def data_on_a_stream_that_never_was(client: Http2Client) -> list[Frame]:
    return [Frame.parse_frame_header(memoryview(b"\0\0\0\0\0\0\0\0\x63"))[0]]


def a_thousand_priorities(client: Http2Client) -> list[Frame]:
    return [PriorityFrame(2 * each + 1, depends_on=2 * each - 1, stream_weight=1) for each in range(1, 1200)]


def a_stream_that_depends_on_itself(client: Http2Client) -> list[Frame]:
    return [PriorityFrame(1, depends_on=1, stream_weight=1)]


def pings_and_settings(client: Http2Client) -> list[Frame]:
    return [PingFrame(0, b"12345678"), SettingsFrame(0, settings={4: 1})] * 1000


def windows_of_a_hundred_streams(client: Http2Client) -> list[Frame]:
    heads: list[Frame] = [client.head(request_head("POST", "/"), end=False) for _ in range(99)]
    return heads + [WindowUpdateFrame(0, window_increment=1)] * 3000


def a_window_over_its_bound(client: Http2Client) -> list[Frame]:
    return [WindowUpdateFrame(0, window_increment=2**31 - 1)] * 2


def an_hpack_bomb(client: Http2Client) -> list[Frame]:
    # One large header in the table, named a thousand times by a byte each.
    block = b"\x82\x86\x84\x41\x01x" + b"\x40\x01a\x7f\x81\x1f" + b"b" * 4000 + b"\xbe" * 1000
    return [HeadersFrame(1, block, flags=["END_HEADERS", "END_STREAM"])]


def settings_of_nonsense(client: Http2Client) -> list[Frame]:
    return [SettingsFrame(0, settings={5: 1, 2: 7, 4: 2**32 - 1})]


ATTACKS: list[Callable[[Http2Client], list[Frame]]] = [
    method_that_is_not_ascii,
    path_that_is_not_ascii,
    connect_without_path,
    headers_and_resets,
    headers_without_end,
    data_on_a_stream_that_never_was,
    a_thousand_priorities,
    a_stream_that_depends_on_itself,
    pings_and_settings,
    windows_of_a_hundred_streams,
    a_window_over_its_bound,
    an_hpack_bomb,
    settings_of_nonsense,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_http2_over_tls(
    tls: TlsFiles, attack: Callable[[Http2Client], list[Frame]], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_tls_server(echo, tls) as server:
        healthy = await server.connect()
        assert (await healthy.post(b"before")).body == b"before"
        for _ in range(TRIES):
            attacker = await server.connect()
            try:
                await attacker.send(*attack(attacker))
                await attacker.get()
            except (StreamReset, ConnectionEnded, trio.BrokenResourceError):
                pass
            assert (await healthy.post(b"still here")).body == b"still here"
            await attacker.aclose()
        newcomer = await server.connect()
        assert (await newcomer.post(b"as well")).body == b"as well"
    assert "a connection failed" not in caplog.text


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_http2_with_prior_knowledge_and_no_tls(
    host: str, attack: Callable[[Http2Client], list[Frame]], caplog: pytest.LogCaptureFixture
) -> None:
    async with open_server(host, echo) as server, connected(server.port) as healthy:
        await ask(healthy)
        for _ in range(TRIES):
            async with connected(server.port) as client:
                frames = [frame.serialize() for frame in attack(Http2Client(client.stream))]
                await client.send_while_possible(PREFACE + SettingsFrame(0).serialize() + b"".join(frames))
                response = await client.response()
                assert (response.status, response.closes) == (505, True)
                assert await client.is_closed()
            await ask(healthy)
        await assert_healthy(server.port)
    assert "a connection failed" not in caplog.text


async def test_upgrade_to_h2c_with_bad_settings_is_served_as_http1(host: str) -> None:
    async with open_server(host, echo) as server:
        for _ in range(TRIES):
            async with connected(server.port) as client:
                upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: A")
                await client.send(request("GET", "/", *upgrade))
                assert (await client.response()).status == 200
        await assert_healthy(server.port)


# ---- HTTP/1.1


@pytest.mark.parametrize(
    "last", [request("GET", "/", "Connection: close"), request("GET", "/", version="1.0")]
)
async def test_bytes_behind_the_last_request(
    host: str, last: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_server(host, echo) as server:
        for number in range(TRIES):
            async with connected(server.port) as client:
                await client.send_while_possible(last)
                for _ in range(number):
                    await trio.lowlevel.checkpoint()
                await client.send_while_possible(b"trailing bytes \0\xff" * 100)
                assert (await client.response()).status == 200
                assert await client.is_closed()
        await assert_healthy(server.port)
    assert "a connection failed" not in caplog.text


async def test_headers_of_200_kilobytes_are_431(host: str) -> None:
    async with open_server(host, echo) as server:
        async with connected(server.port) as client:
            await client.send_while_possible(
                request("GET", "/", *(f"X-{n}: {'y' * 90}" for n in range(2000)))
            )
            assert (await client.response()).status == 431
        await assert_healthy(server.port)


async def test_a_413_reaches_who_sends_on_and_on_and_the_connection_does_not_leak(host: str) -> None:
    app, _, _ = seeing(at="/silent")
    calls = 0

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += 1
        try:
            await app(scope, receive, send)
        except EOFError:
            pass
        finally:
            calls -= 1

    async with open_server(host, counting, HttpServerLimits(max_body_bytes=300_000)) as server:
        async with connected(server.port) as client, trio.open_nursery() as nursery:
            head = request("POST", "/silent", "Transfer-Encoding: chunked")
            chunk = b"1000\r\n" + bytes(4096) + b"\r\n"
            nursery.start_soon(client.send_while_possible, head + chunk * 250)
            assert (await client.response()).status == 413
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            while calls:
                await trio.lowlevel.checkpoint()
        await assert_healthy(server.port)


async def test_length_and_chunks_together_are_400(host: str) -> None:
    smuggled = (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])
        await echo(scope, receive, send)

    async with open_server(host, app) as server:
        async with connected(server.port) as client:
            await client.send(smuggled)
            response = await client.response()
            assert (response.status, response.closes) == (400, True)
            assert await client.is_closed()
        assert not seen
        await assert_healthy(server.port)


async def test_slow_headers_cost_the_connection_when_their_time_is_over(
    host: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_memory_host(host, echo, HttpServerLimits(header_timeout_s=10)) as server:
        slow, healthy = RawClient(server.listener.connect()), RawClient(server.listener.connect())
        await slow.send(b"G")
        for byte in b"ET / HTTP/1.1\r\nX: 12"[:19]:
            await trio.sleep(0.5)
            await slow.send(bytes([byte]))
        await ask(healthy)
        assert (await slow.response()).status == 408
        assert trio.current_time() == 10
        await ask(healthy)


async def test_a_slow_body_costs_the_connection_when_its_time_is_over(
    host: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_memory_host(host, echo, HttpServerLimits(body_grace_s=10)) as server:
        slow, healthy = RawClient(server.listener.connect()), RawClient(server.listener.connect())
        await slow.send(request("POST", "/", "Content-Length: 100000"))
        for _ in range(99):
            await trio.sleep(0.1)
            await slow.send(b"x")
        await ask(healthy)
        assert (await slow.response()).status == 408
        assert 10 <= trio.current_time() < 10.1
        await ask(healthy)


# ---- event streams, and clients that are gone


async def events(scope: Scope, receive: Receive, send: Send) -> None:
    """Streams an event a second to ``/events``, and as fast as can be to ``/flood``."""
    if not scope["path"].startswith(("/events", "/flood")):
        await echo(scope, receive, send)
        return
    await read_body(receive)
    await start(send, 200, (b"content-type", b"text/event-stream"))
    while True:
        await part(send, b"data: %b\n\n" % (b"x" * (2**16 if scope["path"] == "/flood" else 10)), more=True)
        if scope["path"] == "/events":
            await trio.sleep(1)


async def test_a_client_that_is_silent_keeps_its_event_stream(
    host: str, autojump_clock: trio.testing.MockClock
) -> None:
    limits = HttpServerLimits(keep_alive_s=5, header_timeout_s=5, body_grace_s=5, send_timeout_s=5)
    async with open_memory_host(host, events, limits) as server:
        client = RawClient(server.listener.connect())
        await client.send(request("GET", "/events"))
        assert (await client.head())[0] == 200
        for _ in range(100):
            assert b"data: " in await client.chunk()
        assert trio.current_time() >= 99


async def test_a_stalled_reader_does_not_hold_up_the_shutdown(host: str) -> None:
    async with (
        open_server(host, events, HttpServerLimits(drain_s=0.5, send_timeout_s=60)) as server,
        connected(server.port) as stalled,
        connected(server.port) as healthy,
    ):
        await stalled.send(request("GET", "/flood"))
        for _ in range(20):
            await ask(healthy)
        began = trio.current_time()
        server.stop.set()
        await server.wait_ended()
        assert 0.5 <= trio.current_time() - began < 1.5


async def test_a_request_that_waits_behind_a_silent_one_does_not_hide_that_the_client_has_gone(
    host: str,
) -> None:
    app, begun, gone = seeing(at="/silent")
    async with open_server(host, app) as server:
        async with connected(server.port) as client:
            await client.send(request("GET", "/silent") + request("POST", "/next", body=b"x" * 1000))
            await begun.wait()
        with trio.fail_after(1):
            await gone.wait()
        await assert_healthy(server.port)


async def test_a_client_that_closes_its_sending_side_counts_as_gone(host: str) -> None:
    app, begun, gone = seeing(at="/silent")
    async with open_server(host, app) as server:
        async with connected(server.port) as client:
            await client.send(request("GET", "/silent"))
            await begun.wait()
            assert isinstance(client.stream, trio.SocketStream)
            await client.stream.send_eof()
            with trio.fail_after(1):
                await gone.wait()
        await assert_healthy(server.port)


async def test_a_websocket_and_other_upgrades_are_served_as_what_they_are_besides(host: str) -> None:
    async with open_server(host, echo) as server:
        for version in ("13", "x"):
            async with connected(server.port) as client:
                upgrade = ("Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Version: {version}")
                await client.send(
                    request("GET", "/", *upgrade, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
                )
                assert (await client.response()).status == 200
                await ask(client)


@pytest.mark.parametrize(
    "length", ["9" * 5000, "9" * 19, "-1", "+3", "3 3", "0x3", "\u0663", "3, 4", "3.0", ""]
)
async def test_a_content_length_that_is_no_reasonable_number(host: str, length: str) -> None:
    async with open_server(host, echo) as server:
        async with connected(server.port) as client:
            await client.send(request("POST", "/", f"Content-Length: {length}") + b"abc")
            response = await client.response()
            assert response.status in (400, 413)
            assert response.closes
        await assert_healthy(server.port)
