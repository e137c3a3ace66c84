"""A server for the client's tests: it does to each connection what a script says, byte by byte.

Over memory streams, or over socket pairs for what only sockets have: system buffers that fill up, and ends
that can be seen from afar. Both in virtual time.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import trio
import trio.testing

from stepflow_trio.transports.http.client import HttpClient, HttpResponse, open_http_client

Wire: TypeAlias = Literal["memory", "socket"]

URL = "http://worker.test:8000"


class ClientGone(Exception):
    """The client has closed its end."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes


class Peer:
    """The server's end of one connection, in a script's hands."""

    def __init__(self, stream: trio.abc.Stream, number: int) -> None:
        self.stream = stream
        self.number = number
        """The first connection is 0."""
        self._received = b""

    async def send(self, data: bytes) -> None:
        """Send it in one piece."""
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError:
            raise ClientGone from None

    async def send_bytewise(self, data: bytes) -> None:
        """Send each byte when the one before has been dealt with."""
        for at in range(len(data)):
            await self.send(data[at : at + 1])
            await trio.testing.wait_all_tasks_blocked()

    async def head(self) -> Request:
        """Receive a request without its body."""
        while b"\r\n\r\n" not in self._received:
            await self._receive()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        line, *headers = head.decode("ascii").split("\r\n")
        return Request(
            line, {name.lower(): value for name, value in (each.split(": ", 1) for each in headers)}, b""
        )

    async def request(self) -> Request:
        """Receive a whole request."""
        head = await self.head()
        if head.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.take_line(), 16):
                body += await self.take(size)
                assert await self.take_line() == b""
            assert await self.take_line() == b""
        else:
            body = await self.take(int(head.headers.get("content-length", "0")))
        return Request(head.line, head.headers, body)

    async def take(self, size: int) -> bytes:
        """Receive so many bytes."""
        while len(self._received) < size:
            await self._receive()
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    async def take_line(self) -> bytes:
        """Receive a line."""
        while b"\r\n" not in self._received:
            await self._receive()
        line, _, self._received = self._received.partition(b"\r\n")
        return line

    async def wait_gone(self) -> None:
        """Wait until the client has closed; it says nothing more."""
        try:
            await self._receive()
        except ClientGone:
            return
        raise AssertionError(f"the client goes on: {self._received!r}")

    async def _receive(self) -> None:
        try:
            data = await self.stream.receive_some(2**16)
        except trio.BrokenResourceError:
            raise ClientGone from None
        if not data:
            raise ClientGone
        self._received += data


Script: TypeAlias = Callable[[Peer], Awaitable[object]]


class ScriptedServer:
    """What clients connect to. A connection is closed where its script ends."""

    def __init__(self, nursery: trio.Nursery, script: Script, wire: Wire) -> None:
        self._nursery = nursery
        self._wire = wire
        self.script = script
        self.peers: list[Peer] = []
        """One for each connection that was ever made."""
        self.client_ends: list[trio.abc.Stream] = []
        self.live = 0
        """Connections whose script has not ended."""

    async def connect(self) -> trio.abc.Stream:
        """A new connection."""
        await trio.lowlevel.checkpoint()
        near, far = socket_stream_pair() if self._wire == "socket" else trio.testing.memory_stream_pair()
        self.client_ends.append(near)
        peer = Peer(far, len(self.peers))
        self.peers.append(peer)
        self.live += 1
        self._nursery.start_soon(self.run, peer)
        return near

    async def run(self, peer: Peer) -> None:
        """Do to one connection what the script says, and close it."""
        try:
            await self.script(peer)
        except ClientGone:
            pass
        finally:
            self.live -= 1
            await trio.aclose_forcefully(peer.stream)

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncGenerator[HttpClient]:
        """A client of this server."""
        async with open_http_client(URL, connect=self.connect, **options) as client:
            yield client


def socket_stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    near, far = socket.socketpair()
    return tuple(trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in (near, far))  # type: ignore[return-value]


@asynccontextmanager
async def scripted(script: Script, wire: Wire = "memory") -> AsyncGenerator[ScriptedServer]:
    """A server; at the end of the block its scripts are cancelled."""
    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, script, wire)
        yield server
        nursery.cancel_scope.cancel()


def answer(body: bytes = b"ok", *headers: str, status: str = "200 OK") -> bytes:
    """An answer with its length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def answering(*answers: bytes) -> Script:
    """Answer each request with the next of ``answers``, the last of them again and again."""

    async def script(peer: Peer) -> None:
        for turn in range(10**9):
            await peer.request()
            await peer.send(answers[min(turn, len(answers) - 1)])

    return script


async def post(client: HttpClient, body: bytes = b"{}", **options: Any) -> tuple[int, bytes]:
    """Send one POST; return the status and the whole body of its answer."""
    async with client.request("POST", "/", body=body, **options) as response:
        return response.status, await response.read()


async def read_all(response: HttpResponse) -> list[bytes]:
    """The pieces of a body as they come."""
    pieces: list[bytes] = []
    while piece := await response.receive_some():
        pieces.append(piece)
    return pieces
