"""A server's life around its connections: listeners in, tasks out, an end in order or at once."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TypeAlias

import trio

from stepflow_trio.engine.ending import one_exception
from stepflow_trio.transports.http.dead_peers import notice_dead_peers
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.request_limits import OpenConnections

ACCEPT_PAUSE_S = 0.1
"""Before the next try, where there was no descriptor or memory for a connection."""

MAX_TURNED_AWAY = 64
"""Connections over the bound that are told so at once; further ones are closed without a word."""

TURN_AWAY_S = 1.0
"""One of those may take so long to send its request, and to close behind the answer to it."""

_RECEIVE_BYTES = 64 * 2**10

_TURNED_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 54\r\n"
    b'retry-after: 1\r\nconnection: close\r\n\r\n{"code":503,"message":"too many connections are open"}'
)

Address: TypeAlias = tuple[str, int | None]
"""A host and a port, or the path of a socket and None: as ASGI has it."""

ServeOne: TypeAlias = Callable[[trio.abc.Stream, Address | None, Address | None], Awaitable[None]]
"""Serves one connection, from the client's address at our own, and closes it."""

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

_log = logging.getLogger("stepflow_trio.transports")


async def serve_connections(
    serve: ServeOne,
    listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
    *,
    limits: HttpServerLimits,
    stop: trio.Event,
    drain: Callable[[], object],
    speaks_tls: bool = False,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run ``serve`` in a task for each connection to these listeners, which it owns, until ``stop`` is set.

    Then it closes the listeners, calls ``drain``, gives the connections ``limits.drain_s`` to end, cancels
    them, and returns. Cancelled, it cancels everything at once.

    A connection over the bounds of ``limits`` is answered 503 and closed; without a word where
    ``speaks_tls``.

    Raises:
        OSError: a listener does not work any more.
    """
    with one_exception():
        async with trio.open_nursery() as connections:
            async with AsyncExitStack() as closing:
                for listener in listeners:
                    closing.push_async_callback(listener.aclose)
                door = _Door(serve, limits, connections, speaks_tls=speaks_tls)
                with one_exception():
                    async with trio.open_nursery() as accepting:
                        for listener in listeners:
                            accepting.start_soon(door.accept, listener)
                        task_status.started()
                        await stop.wait()
                        accepting.cancel_scope.cancel()
            drain()
            connections.cancel_scope.deadline = trio.current_time() + limits.drain_s


class _Door:
    """Lets connections in, as many as there may be."""

    def __init__(
        self, serve: ServeOne, limits: HttpServerLimits, connections: trio.Nursery, *, speaks_tls: bool
    ) -> None:
        self._serve = serve
        self._limits = limits
        self._connections = connections
        self._open = OpenConnections(limits)
        self._places_to_turn_away = 0 if speaks_tls else MAX_TURNED_AWAY

    async def accept(self, listener: trio.abc.Listener[trio.abc.Stream]) -> None:
        if isinstance(listener, trio.SocketListener):
            notice_dead_peers(listener.socket, self._limits.send_timeout_s)
        while True:
            try:
                stream = await listener.accept()
            except OSError as exc:
                if exc.errno not in _OUT_OF_RESOURCES:
                    raise
                _log.error("cannot accept a connection: %s; next try in %g s", exc.strerror, ACCEPT_PAUSE_S)
                await trio.sleep(ACCEPT_PAUSE_S)
                continue
            client, server = _addresses(stream)
            if self._open.admit(client and client[0]):
                self._connections.start_soon(self._serve_one, stream, client, server)
            elif self._places_to_turn_away:
                self._places_to_turn_away -= 1
                self._connections.start_soon(self._turn_away, stream)
            else:
                await trio.aclose_forcefully(stream)

    async def _turn_away(self, stream: trio.abc.Stream) -> None:
        try:
            with (
                trio.move_on_after(TURN_AWAY_S),
                suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError),
            ):
                if await stream.receive_some(_RECEIVE_BYTES):  # an answer follows a request
                    await stream.send_all(_TURNED_AWAY)
                    if isinstance(stream, trio.abc.HalfCloseableStream):
                        await stream.send_eof()
                    # To close over unread bytes resets the connection, which can take the answer away.
                    while await stream.receive_some(_RECEIVE_BYTES):
                        pass
        finally:
            self._places_to_turn_away += 1
            await trio.aclose_forcefully(stream)

    async def _serve_one(
        self, stream: trio.abc.Stream, client: Address | None, server: Address | None
    ) -> None:
        try:
            await self._serve(stream, client, server)
        finally:
            self._open.release(client and client[0])


def _addresses(stream: trio.abc.Stream) -> tuple[Address | None, Address | None]:
    """The client's and our own."""
    if not isinstance(stream, trio.SocketStream):
        return None, None
    try:
        client, server = stream.socket.getpeername(), stream.socket.getsockname()
    except OSError:
        return None, None  # the client is gone already
    if stream.socket.family == socket.AF_UNIX:
        return None, (str(server), None)
    return (client[0], client[1]), (server[0], server[1])
