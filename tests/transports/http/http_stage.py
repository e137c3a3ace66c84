"""The stage on which HTTP hosts play: a server on a loopback socket, or on memory streams in virtual time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import trio
import trio.testing
from raw_http import RawClient

from stepflow_trio.transports.http.asgi import AsgiApp, Receive, Scope, Send
from stepflow_trio.transports.http.h11_host import serve_h11
from stepflow_trio.transports.http.hypercorn_host import serve_hypercorn
from stepflow_trio.transports.http.limits import HttpServerLimits


class Serve(Protocol):
    """What every host is."""

    async def __call__(
        self,
        app: AsgiApp,
        listeners: Sequence[trio.SocketListener],
        *,
        limits: HttpServerLimits,
        stop: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None: ...


PATIENCE_S = 30
"""In real time, for everything that a test does with a server."""

HOSTS: dict[str, Serve] = {"h11": serve_h11, "hypercorn": serve_hypercorn}


class Server:
    """A server that runs. Setting ``stop`` ends it in order, :meth:`cancel` at once."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.stop = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    async def wait_ended(self) -> None:
        """Wait until the host's function has returned."""
        await self._ended.wait()

    def cancel(self) -> None:
        self._scope.cancel()

    async def run(self, serve: Serve, app: AsgiApp, listeners: Sequence[Any], **rest: Any) -> None:
        try:
            with self._scope:
                await serve(app, listeners, stop=self.stop, **rest)
        finally:
            self._ended.set()


@asynccontextmanager
async def open_server(
    host: str, app: AsgiApp, limits: HttpServerLimits | None = None
) -> AsyncGenerator[Server]:
    """Serve ``app`` with the host of that name on a loopback port; leaving the block cancels it.

    An exception that the host lets out comes out of the block: a test that ends well proves there was none.
    """
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = Server(listeners[0].socket.getsockname()[1])
    async with trio.open_nursery() as nursery:
        limits = limits or HttpServerLimits()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await server.run(HOSTS[host], app, listeners, limits=limits, task_status=task_status)

        await nursery.start(run)
        try:
            with trio.fail_after(PATIENCE_S):
                yield server
        finally:
            server.cancel()


class MemoryListener(trio.abc.Listener[trio.StapledStream[Any, Any]]):
    """A listener whose clients are tasks of the same test."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[trio.StapledStream[Any, Any]](64)

    def connect(self) -> trio.StapledStream[Any, Any]:
        near, far = trio.testing.memory_stream_pair()
        self._send.send_nowait(far)
        return near

    def connect_lockstep(self) -> trio.StapledStream[Any, Any]:
        """A connection without buffers: a send ends when the other end has received it all."""
        near, far = trio.testing.lockstep_stream_pair()
        self._send.send_nowait(far)
        return near

    async def accept(self) -> trio.StapledStream[Any, Any]:
        try:
            return await self._receive.receive()
        except trio.ClosedResourceError:
            raise trio.ClosedResourceError("this listener is closed") from None

    async def aclose(self) -> None:
        with suppress(trio.WouldBlock, trio.ClosedResourceError):
            while True:  # whoever was not accepted yet is sent away
                far = self._receive.receive_nowait()
                far.send_stream.close()
                far.receive_stream.close()
        self._receive.close()
        await trio.lowlevel.checkpoint()


class MemoryServer(Server):
    """A server that is reached by :attr:`listener`'s ``connect`` methods."""

    def __init__(self) -> None:
        super().__init__(port=0)
        self.listener = MemoryListener()


@asynccontextmanager
async def open_memory_server(
    app: AsgiApp, limits: HttpServerLimits | None = None
) -> AsyncGenerator[MemoryServer]:
    """Serve ``app`` with the h11 host over memory streams: time may be virtual."""
    server = MemoryServer()
    async with trio.open_nursery() as nursery:
        limits = limits or HttpServerLimits()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await server.run(serve_h11, app, [server.listener], limits=limits, task_status=task_status)

        await nursery.start(run)
        try:
            yield server
        finally:
            server.cancel()


@asynccontextmanager
async def memory_client(server: MemoryServer, *, lockstep: bool = False) -> AsyncGenerator[RawClient]:
    """A connection to that server; leaving the block closes it, if it is still open."""
    listener = server.listener
    client = RawClient(listener.connect_lockstep() if lockstep else listener.connect())
    try:
        yield client
    finally:
        await client.aclose()


async def read_body(receive: Receive) -> bytes:
    """The whole body of a request. ``EOFError`` if the client is gone before its end."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise EOFError
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


async def start(send: Send, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def part(send: Send, body: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An application: answers what it is sent."""
    assert scope["type"] == "http"
    body = await read_body(receive)
    await start(send, 200, (b"content-type", b"text/plain"))
    await part(send, body)


def seeing(*, at: str) -> tuple[AsgiApp, trio.Event, trio.Event]:
    """``echo``, but at path ``at`` it is silent until the client is gone: begun, and seen to be gone."""
    begun, gone = trio.Event(), trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != at:
            await echo(scope, receive, send)
            return
        await read_body(receive)
        begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    return app, begun, gone
