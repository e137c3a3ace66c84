"""HTTP/1.1 by hand: a client that sends what it is told and reads what comes, byte by byte."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import trio


@dataclass(frozen=True, slots=True)
class Response:
    """One response as it came."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes = field(default=b"")

    @property
    def closes(self) -> bool:
        return b"close" in self.headers.get(b"connection", b"")


class CutShort(Exception):
    """The connection ended before the response did. ``received`` is what there was of it."""

    def __init__(self, received: bytes) -> None:
        super().__init__(f"the connection ended behind {received!r}")
        self.received = received


class RawClient:
    """One connection to a server."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._received = bytearray()

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def send_while_possible(self, data: bytes) -> None:
        """Send all of it, unless the server closes the connection meanwhile."""
        with suppress(trio.BrokenResourceError):
            await self.stream.send_all(data)

    async def response(self, *, to: str = "GET") -> Response:
        """Read one response, passing over informational ones (see :meth:`head`).

        Raises:
            CutShort: the connection ended too early.
        """
        status, headers = await self.head()
        while status < 200:
            status, headers = await self.head()
        if to == "HEAD" or status in (204, 304):
            return Response(status, headers)
        if b"chunked" in headers.get(b"transfer-encoding", b""):
            body = b""
            while chunk := await self.chunk():
                body += chunk
            return Response(status, headers, body)
        if b"content-length" in headers:
            return Response(status, headers, await self.take(int(headers[b"content-length"])))
        return Response(status, headers, await self.rest())

    async def head(self) -> tuple[int, dict[bytes, bytes]]:
        """Read a status line and headers; informational responses have nothing else."""
        lines = (await self.take_through(b"\r\n\r\n")).split(b"\r\n")
        version, status, _ = (lines[0] + b" ").split(b" ", 2)
        assert version == b"HTTP/1.1"
        headers: dict[bytes, bytes] = {}
        for line in lines[1:-2]:
            name, _, value = line.partition(b":")
            name = name.lower()
            assert name not in headers, f"{name!r} came twice"
            headers[name] = value.strip()
        return int(status), headers

    async def chunk(self) -> bytes:
        """Read one chunk of a body; nothing at its end."""
        size = int(await self.take_through(b"\r\n"), 16)
        data = await self.take(size)
        assert await self.take(2) == b"\r\n"
        return data

    async def take(self, size: int) -> bytes:
        while len(self._received) < size:
            await self._receive()
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    async def take_through(self, mark: bytes) -> bytes:
        while (at := self._received.find(mark)) < 0:
            await self._receive()
        return await self.take(at + len(mark))

    async def rest(self) -> bytes:
        """Read until the server closes. A reset counts as CutShort, for it says that something was lost."""
        try:
            while True:
                await self._receive(end_is_cut=False)
        except EOFError:
            taken = bytes(self._received)
            self._received.clear()
            return taken

    async def is_closed(self) -> bool:
        """Wait for the end of the connection, in order or reset; False if something else comes first."""
        try:
            await self._receive()
        except CutShort as cut:
            return not cut.received
        return False

    async def _receive(self, *, end_is_cut: bool = True) -> None:
        try:
            data = await self.stream.receive_some(2**16)
        except trio.BrokenResourceError:
            raise CutShort(bytes(self._received)) from None
        if not data and end_is_cut:
            raise CutShort(bytes(self._received))
        if not data:
            raise EOFError
        self._received += data

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


@asynccontextmanager
async def connected(port: int) -> AsyncGenerator[RawClient]:
    """A connection to a loopback port; leaving the block closes it, if it is still open."""
    client = RawClient(await trio.open_tcp_stream("127.0.0.1", port))
    try:
        yield client
    finally:
        await client.aclose()


def request(
    method: str = "GET", target: str = "/", *headers: str, body: bytes | None = None, version: str = "1.1"
) -> bytes:
    """The bytes of a request; with a body, its ``content-length`` too."""
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def chunked(*chunks: bytes) -> bytes:
    """A body in chunks, with its end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
