"""Thousands of messages with something wrong in them, beside a client that is served all the while.

``STEPFLOW_HOSTILE_MESSAGES`` says how many, ``STEPFLOW_HOSTILE_SEED`` which; each test prints its own.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from hostile_stage import MESSAGES, SEED, healthy_client, mutated, open_memory_host, throw
from http2_stage import PREFACE, Http2Client, client_tls, make_certificate, open_tls_server, request_head
from http_stage import open_server, part, read_body, start
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from raw_http import chunked, request

from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import TlsFiles

AT_ONCE = 8
"""Hostile clients."""

LIMITS = HttpServerLimits(max_body_bytes=10_000)


class Application:
    """Echoes, in parts where the path says so; and counts its calls that have not ended."""

    def __init__(self) -> None:
        self.running = 0
        self._ended = trio.lowlevel.ParkingLot()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.running += 1
        try:
            body = await read_body(receive)
            await start(send, 200, (b"content-type", b"text/plain"))
            if scope["path"] == "/parts":
                for at in range(0, len(body), 1000):
                    await part(send, body[at : at + 1000], more=True)
                await part(send, b"")
            else:
                await part(send, body)
        except EOFError:
            pass
        finally:
            self.running -= 1
            self._ended.unpark_all()

    async def wait_idle(self) -> None:
        with trio.fail_after(5):
            while self.running:
                await self._ended.park()


HTTP1 = [
    request(),
    request("POST", "/", body=b"hello"),
    request("POST", "/parts", body=b"x" * 3000),
    request("POST", "/a%20b/%ff?c=d&e", "Accept: */*", "X-Y: z", body=b"{}"),
    request("POST", "/", "Transfer-Encoding: chunked") + chunked(b"abc", b"d" * 500),
    request("POST", "/", "Transfer-Encoding: chunked") + b"3;x=y\r\nabc\r\n0\r\nTrailer: t\r\n\r\n",
    request("POST", "/", "Expect: 100-continue", body=b"abc"),
    request("GET", "/", "Connection: close"),
    request("POST", "/", body=b"old", version="1.0"),
    request("HEAD", "/") + request("POST", "/", body=b"pipelined") * 3,
    request("GET", "http://localhost/x?y"),
    request("OPTIONS", "*"),
    request(
        "GET", "/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"
    ),
    request("GET", "/", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    PREFACE + SettingsFrame(0).serialize(),
]

HTTP1_TOKENS = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b"\xff", b" ", b"\t", b":", b": ", b"/", b"?", b"%", b"%2e%2e",
    b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"GET ", b"CONNECT ", PREFACE,
    b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Host: a\r\n",
    b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Upgrade: h2c\r\n",
    b"Expect: 100-continue\r\n", b"0\r\n\r\n", b"ffffffff\r\n", b"-1\r\n", b" folded\r\n", b"x" * 20_000,
    b"X: " + b"y" * 5000 + b"\r\n",
]  # fmt: skip


def http2_frames(rng: random.Random) -> list[bytes]:
    """A conversation of a client that is right, or nearly so, frame by frame."""
    client = Http2Client(trio.testing.memory_stream_pair()[0])
    frames = [PREFACE, SettingsFrame(0, settings={4: rng.choice((0, 1, 65535, 2**31 - 1))}).serialize()]
    stream_ids: list[int] = []
    for _ in range(rng.randrange(1, 12)):
        stream_id = rng.choice([*stream_ids, 1, 2 * rng.randrange(1, 9) + 1])
        match rng.randrange(12):
            case 0 | 1 | 2:
                extra = [(b"x" * rng.randrange(1, 9), b"y" * rng.randrange(200))]
                head = client.head(
                    request_head(rng.choice(("GET", "HEAD")), rng.choice(("/", "/x?y")), *extra)
                )
                stream_ids.append(head.stream_id)
                frames.append(head.serialize())
            case 3 | 4 | 5:
                head = client.head(request_head("POST", rng.choice(("/", "/parts"))), end=False)
                stream_ids.append(head.stream_id)
                body = bytes(rng.randrange(12_000))
                frames += [
                    head.serialize(),
                    DataFrame(head.stream_id, body, flags=["END_STREAM"]).serialize(),
                ]
            case 6:
                frames.append(RstStreamFrame(stream_id, error_code=rng.randrange(14)).serialize())
            case 7:
                frames.append(
                    WindowUpdateFrame(rng.choice((0, stream_id)), window_increment=1000).serialize()
                )
            case 8:
                frames.append(PingFrame(0, rng.randbytes(8)).serialize())
            case 9:
                frames.append(PriorityFrame(stream_id, depends_on=0, stream_weight=9).serialize())
            case 10:
                frames.append(ContinuationFrame(stream_id, b"\x82").serialize())
            case _:
                frames.append(GoAwayFrame(0, last_stream_id=stream_id, error_code=0).serialize())
    return frames


def mutated_http2(rng: random.Random) -> bytes:
    """Such a conversation with frames left out, exchanged or repeated, and with bytes changed."""
    frames = http2_frames(rng)
    for _ in range(rng.choice((0, 1, 2))):
        at = rng.randrange(1, len(frames))
        match rng.randrange(3):
            case 0:
                del frames[at:]
                if len(frames) == 1:
                    frames.append(rng.randbytes(20))
            case 1:
                frames.insert(at, frames[rng.randrange(1, len(frames))])
            case _:
                frames.append(frames.pop(at))
    if rng.random() < 0.8:
        at = rng.randrange(1, len(frames))
        frame = bytearray(frames[at])
        for _ in range(rng.choice((1, 1, 2, 4))):
            # As often in the nine bytes of its head as in all others.
            spot = rng.randrange(min(9, len(frame)) if rng.random() < 0.5 else len(frame))
            frame[spot] = rng.randrange(256)
        frames[at] = bytes(frame)
    data = b"".join(frames)
    return mutated(data, rng, [b"\0" * 9, PREFACE]) if rng.random() < 0.2 else data


async def attack(
    connect: Callable[[], Awaitable[trio.abc.Stream]],
    message: Callable[[random.Random], bytes],
    count: int,
    rng: random.Random,
) -> None:
    left = count

    async def go_on(rng: random.Random) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await throw(await connect(), message(rng), rng)

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(go_on, random.Random(rng.random()))  # noqa: S311 - mutations are no secrets


def mutated_http1(rng: random.Random) -> bytes:
    return mutated(rng.choice(HTTP1), rng, HTTP1_TOKENS)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    seed = f"{SEED} {request.node.name}"
    print(f"seed: STEPFLOW_HOSTILE_SEED={SEED}, messages: STEPFLOW_HOSTILE_MESSAGES={MESSAGES}")  # noqa: T201
    return random.Random(seed)  # noqa: S311 - likewise


def assert_nothing_failed(caplog: pytest.LogCaptureFixture) -> None:
    # What nobody foresaw costs one connection, and a line in the log: here nothing is unforeseen.
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.timeout(600)
async def test_http1_in_memory(host: str, rng: random.Random, caplog: pytest.LogCaptureFixture) -> None:
    app = Application()
    async with open_memory_host(host, app, LIMITS) as server:

        async def connect() -> trio.abc.Stream:
            return server.listener.connect()

        async with healthy_client(connect):
            await attack(connect, mutated_http1, MESSAGES * 3 // 10, rng)
        await app.wait_idle()
    assert_nothing_failed(caplog)


@pytest.mark.timeout(600)
async def test_http1_over_sockets(host: str, rng: random.Random, caplog: pytest.LogCaptureFixture) -> None:
    app = Application()
    with trio.fail_after(500):
        async with open_server(host, app, LIMITS) as server:

            async def connect() -> trio.abc.Stream:
                return await trio.open_tcp_stream("127.0.0.1", server.port)

            async with healthy_client(connect):
                await attack(connect, mutated_http1, MESSAGES // 10, rng)
            await app.wait_idle()
    assert_nothing_failed(caplog)


@pytest.mark.timeout(600)
async def test_http2_over_tls(
    tmp_path_factory: pytest.TempPathFactory, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    tls: TlsFiles = make_certificate(tmp_path_factory.mktemp("tls"))
    app = Application()
    context = client_tls(tls, "h2")
    async with open_tls_server(app, tls, LIMITS) as server:

        async def connect() -> trio.abc.Stream:
            stream = trio.SSLStream(
                server.listener.connect(), context, server_hostname="localhost", https_compatible=True
            )
            await stream.do_handshake()
            return stream

        async def connect_http1() -> trio.abc.Stream:
            return await server.connect_tls("http/1.1")

        async with healthy_client(connect_http1):
            await attack(connect, mutated_http2, MESSAGES * 2 // 10, rng)
        await app.wait_idle()
    assert_nothing_failed(caplog)
