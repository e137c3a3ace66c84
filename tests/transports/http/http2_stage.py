"""HTTP/2 by hand: a client that sends what it is told, also what no client should, and servers for it."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hpack
import trio
from http_stage import PATIENCE_S, MemoryServer
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from stepflow_trio.transports.http.asgi import AsgiApp
from stepflow_trio.transports.http.hypercorn_host import serve_hypercorn
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import TlsFiles

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, CALM = 0, 1, 2, 7, 8, 11
"""Codes of resets and GOAWAYs (RFC 9113, section 7)."""

INITIAL_WINDOW_BYTES = 2**16 - 1


def make_certificate(path: Path) -> TlsFiles:
    """A self-signed certificate for ``localhost``, in files below ``path``."""
    command = (
        "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 30 -subj /CN=localhost"
    )
    files = ["-keyout", "server.key", "-out", "server.pem", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *files], cwd=path, check=True, capture_output=True)
    return TlsFiles(certificate=path / "server.pem", private_key=path / "server.key")


def client_tls(tls: TlsFiles, *alpn: str) -> ssl.SSLContext:
    """What a client needs to trust that certificate."""
    context = ssl.create_default_context(cafile=tls.certificate)
    if alpn:
        context.set_alpn_protocols([*alpn])
    return context


class StreamReset(Exception):
    """The server has reset a stream."""

    def __init__(self, code: int, received: bytes) -> None:
        super().__init__(f"code {code} behind {received!r}")
        self.code = code
        self.received = received


class ConnectionEnded(Exception):
    """The server has closed the connection."""


@dataclass(slots=True)
class Answer:
    """What has come on one stream."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    is_complete: bool = False
    reset: int | None = None


class Http2Client:
    """One connection to a server. One task at a time reads.

    What comes is answered as a client should: settings and pings, and windows if ``takes_bodies``.
    """

    def __init__(self, stream: trio.abc.Stream, *, takes_bodies: bool = True) -> None:
        self.stream = stream
        self.answers: dict[int, Answer] = {}
        self.goaway: GoAwayFrame | None = None
        self.frames: list[Frame] = []
        self.settings: dict[int, int] = {}
        self._takes_bodies = takes_bodies
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._received = b""
        self._next_stream_id = 1
        self._windows: dict[int, int] = {0: INITIAL_WINDOW_BYTES}

    async def open(self, settings: dict[int, int] | None = None) -> None:
        await self.stream.send_all(PREFACE + SettingsFrame(0, settings=settings or {}).serialize())

    # ---- sending

    async def send(self, *frames: Frame | bytes) -> None:
        data = [frame if isinstance(frame, bytes) else frame.serialize() for frame in frames]
        await self.stream.send_all(b"".join(data))

    def head(
        self, headers: list[tuple[bytes, bytes]], *, end: bool = True, stream_id: int | None = None
    ) -> HeadersFrame:
        """A request's headers in one frame, on the next stream."""
        if stream_id is None:
            stream_id = self._next_stream_id
            self._next_stream_id += 2
        self.answers.setdefault(stream_id, Answer())
        self._windows.setdefault(stream_id, INITIAL_WINDOW_BYTES)
        flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
        return HeadersFrame(stream_id, self._encoder.encode(headers), flags=flags)

    async def request(
        self,
        method: str = "GET",
        target: str = "/",
        *headers: tuple[bytes, bytes],
        body: bytes = b"",
        more: bool = False,
    ) -> int:
        """Send a request and return its stream's id. With ``more``, its body does not end."""
        frame = self.head(request_head(method, target, *headers), end=not (body or more))
        await self.send(frame)
        if body:
            await self.send_body(frame.stream_id, body, more=more)
        return frame.stream_id

    async def send_body(self, stream_id: int, body: bytes, *, more: bool = False) -> None:
        """Send a part of a body, as the server's windows allow, unless the server does not want it."""
        while self.answers[stream_id].reset is None:
            room = min(self._windows[stream_id], self._windows[0], 2**14)
            if body and room <= 0:
                await self.receive()
                continue
            part, body = body[:room], body[room:]
            self._windows[stream_id] -= len(part)
            self._windows[0] -= len(part)
            flags = [] if body or more else ["END_STREAM"]
            await self.send(DataFrame(stream_id, part, flags=flags))
            if not body:
                return

    async def reset(self, stream_id: int, code: int = CANCEL) -> None:
        await self.send(RstStreamFrame(stream_id, error_code=code))

    # ---- receiving

    async def get(self, target: str = "/") -> Answer:
        return await self.response(await self.request("GET", target))

    async def post(self, body: bytes, target: str = "/") -> Answer:
        return await self.response(await self.request("POST", target, body=body))

    async def response(self, stream_id: int) -> Answer:
        """Read until this stream's answer is complete.

        Raises:
            StreamReset: it never will be.
            ConnectionEnded: likewise.
        """
        answer = self.answers[stream_id]
        while not answer.is_complete:
            if answer.reset is not None:
                raise StreamReset(answer.reset, answer.body)
            await self.receive()
        return answer

    async def wait_goaway(self) -> int:
        """Read until the server says that it takes no more requests; return why."""
        while self.goaway is None:
            await self.receive()
        return self.goaway.error_code

    async def wait_ended(self) -> None:
        """Read until the server closes the connection."""
        try:
            while True:
                await self.receive()
        except ConnectionEnded:
            pass

    async def receive(self) -> None:
        """Read once, and note what comes.

        Raises:
            ConnectionEnded: nothing more came.
        """
        try:
            data = await self.stream.receive_some(2**16)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            raise ConnectionEnded
        self._received += bytes(data)
        replies: list[Frame] = []
        while len(self._received) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self._received[:9]))
            if len(self._received) < 9 + length:
                break
            frame.parse_body(memoryview(self._received[9 : 9 + length]))
            self._received = self._received[9 + length :]
            self.frames.append(frame)
            replies += self._note(frame)
        if replies and self.goaway is None:
            try:
                await self.send(*replies)
            except trio.BrokenResourceError:
                raise ConnectionEnded from None

    def _note(self, frame: Frame) -> list[Frame]:
        answer = self.answers.get(frame.stream_id, Answer())
        match frame:
            case SettingsFrame() if "ACK" not in frame.flags:
                self.settings.update(frame.settings)
                return [SettingsFrame(0, flags=["ACK"])]
            case PingFrame() if "ACK" not in frame.flags:
                return [PingFrame(0, frame.opaque_data, flags=["ACK"])]
            case WindowUpdateFrame():
                self._windows[frame.stream_id] += frame.window_increment
            case HeadersFrame():
                headers = self._decoder.decode(frame.data, raw=True)
                answer.headers = {bytes(name): bytes(value) for name, value in headers}
                answer.status = int(answer.headers[b":status"])
                answer.is_complete = "END_STREAM" in frame.flags
            case DataFrame():
                assert not answer.is_complete, "data behind the end of its stream"
                answer.body += frame.data
                answer.is_complete = "END_STREAM" in frame.flags
                if self._takes_bodies and frame.data:
                    size = len(frame.data)
                    return [WindowUpdateFrame(each, window_increment=size) for each in (0, frame.stream_id)]
            case RstStreamFrame() if (
                answer.reset is None
            ):  # others say that what came meanwhile came too late
                answer.reset = frame.error_code
            case GoAwayFrame():
                self.goaway = frame
            case _:
                pass
        return []

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


def request_head(method: str, target: str, *headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    pseudo = [(b":method", method.encode()), (b":scheme", b"https"), (b":authority", b"localhost")]
    return [*pseudo, (b":path", target.encode()), *headers]


class TlsServer(MemoryServer):
    """A server that speaks TLS over memory streams; time may be virtual."""

    def __init__(self, tls: TlsFiles) -> None:
        super().__init__()
        self._tls = tls

    def tls(self, transport: trio.abc.Stream, *alpn: str) -> trio.SSLStream[Any]:
        """The client's end of TLS on it, before the handshake."""
        context = client_tls(self._tls, *alpn)
        return trio.SSLStream(transport, context, server_hostname="localhost", https_compatible=True)

    async def connect_tls(self, *alpn: str) -> trio.SSLStream[Any]:
        """A connection on which that protocol is agreed on."""
        stream = self.tls(self.listener.connect(), *alpn)
        await stream.do_handshake()
        return stream

    async def connect(
        self, *, settings: dict[int, int] | None = None, takes_bodies: bool = True
    ) -> Http2Client:
        """A connection on which HTTP/2 has begun."""
        client = Http2Client(await self.connect_tls("h2"), takes_bodies=takes_bodies)
        await client.open()
        return client


@asynccontextmanager
async def open_tls_server(
    app: AsgiApp, tls: TlsFiles, limits: HttpServerLimits | None = None
) -> AsyncGenerator[TlsServer]:
    """Serve ``app`` with the hypercorn host; leaving the block cancels it."""
    server = TlsServer(tls)
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[None]) -> None:
            rest: dict[str, Any] = {
                "limits": limits or HttpServerLimits(),
                "tls": tls,
                "task_status": task_status,
            }
            await server.run(serve_hypercorn, app, [server.listener], **rest)

        await nursery.start(run)
        try:
            with trio.fail_after(PATIENCE_S * 10):
                yield server
        finally:
            server.cancel()
