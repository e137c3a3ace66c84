"""The HTTP host for networks: hypercorn's HTTP/1.1 and HTTP/2 over TLS, on connections of our own."""

from __future__ import annotations

import math
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeAlias

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.worker_context import WorkerContext

from stepflow_trio.transports.http.accepting import Address, serve_connections
from stepflow_trio.transports.http.asgi import AsgiApp
from stepflow_trio.transports.http.hypercorn_call import AppCall, Service, log
from stepflow_trio.transports.http.hypercorn_http1 import Http1
from stepflow_trio.transports.http.hypercorn_http2 import Http2
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import TlsFiles, server_ssl_context
from stepflow_trio.transports.http.wire import LINGER_BYTES, LINGER_S, RESET_ON_CLOSE

UNSENT_BYTES = 64 * 2**10
"""While more than this is written and not taken by the client, nothing more is written."""

SEND_BYTES = 64 * 2**10
"""Handed to the system at once. A client that takes so much in ``send_timeout_s`` is not stalled."""

Stream: TypeAlias = trio.abc.Stream


async def serve_hypercorn(
    app: AsgiApp,
    listeners: Sequence[trio.abc.Listener[Stream]],
    *,
    limits: HttpServerLimits,
    stop: trio.Event,
    tls: TlsFiles | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` on these listeners, which it owns and closes, until ``stop`` is set.

    Then it closes the listeners and the connections without a request at once, lets requests in flight
    finish for ``limits.drain_s``, cancels them, and returns. Cancelled, it closes everything at once. Either
    way an application that holds out against its cancellation is waited for.

    No client and no exception of the application ends it, and what ends a connection ends no other. An
    exception before the answer's beginning is answered 500; after it the connection is closed, or the HTTP/2
    stream reset, short of the answer's end. The log has it, by incident. ``lifespan`` is not sent;
    ``websocket`` does not occur. How HTTP is read is said at
    :class:`~stepflow_trio.transports.http.hypercorn_http1.Http1` and
    :class:`~stepflow_trio.transports.http.hypercorn_http2.Http2`.

    With ``tls``, HTTP/2 is spoken with whom TLS agrees on it (ALPN ``h2``), HTTP/1.1 otherwise; without, only
    HTTP/1.1: cleartext HTTP/2 is answered 505, and an ``Upgrade`` to it is ignored.

    Raises:
        ConfigError: a file of ``tls`` cannot be used.
        OSError: a listener does not work any more.
    """
    async with AsyncExitStack() as closing:
        for listener in listeners:
            closing.push_async_callback(listener.aclose)
        server = _Server(app, limits, server_ssl_context(tls) if tls else None)
        await serve_connections(
            server.serve,
            listeners,
            limits=limits,
            stop=stop,
            drain=server.drain,
            speaks_tls=tls is not None,
            task_status=task_status,
        )


class _Server:
    """What the connections have in common, and which of them are open."""

    def __init__(self, app: AsgiApp, limits: HttpServerLimits, ssl_context: ssl.SSLContext | None) -> None:
        self.service = Service(app, limits)
        self.ssl_context = ssl_context
        self.config = _hypercorn_config()
        self.context = WorkerContext(None)
        self._connections: set[_Connection] = set()

    async def serve(self, stream: Stream, client: Address | None, server: Address | None) -> None:
        """Serve one connection, whatever happens on it, and close it."""
        connection = _Connection(self, stream, client, server)
        self._connections.add(connection)
        try:
            await connection.run()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as failures:
            log.debug("a connection ended", exc_info=failures)
        except* Exception as failures:  # noqa: BLE001 - the other connections go on
            log.error("a connection failed, incident %s", secrets.token_hex(4), exc_info=failures)
        finally:
            self._connections.discard(connection)

    def drain(self) -> None:
        """Have each connection close as soon as it owes no answer."""
        self.service.is_stopping = True
        for connection in self._connections:
            connection.drain()


class _Connection:
    """One connection: bytes in and out, each with a task and its deadlines.

    It is what hypercorn's protocols have for a transport and for a task group.
    """

    def __init__(
        self, server: _Server, stream: Stream, client: Address | None, server_address: Address | None
    ) -> None:
        self.service = server.service
        self.is_closing = False
        self.calls: set[AppCall] = set()
        self.uploads: set[AppCall] = set()
        self._server = server
        self._client = client
        self._server_address = server_address
        self._transport = stream
        self._stream = stream
        self._tls: trio.SSLStream[Stream] | None = None
        self._protocol: Http1 | Http2
        self._nursery: trio.Nursery

        self._reading = trio.CancelScope()
        self._idle_deadline = trio.current_time() + self.service.limits.keep_alive_s
        self._head_deadline = math.inf
        self._is_eof = False
        self._is_lost = False

        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._wake_writer = trio.Event()
        self._writable: trio.Event | None = None
        self._written = trio.Event()

    async def run(self) -> None:
        """Serve the connection until it ends, and the calls of the application that it brought."""
        try:
            protocol = await self._negotiate()
            async with trio.open_nursery() as self._nursery:
                self._protocol = protocol
                self._nursery.start_soon(self._write_on)
                await protocol.initiate()
                await self._read_on()
                await protocol.handle(Closed())
                self._close()
                await self._written.wait()
                if not (self._is_eof or self._is_lost):
                    await self._say_goodbye()
                await trio.aclose_forcefully(self._transport)
        finally:
            await trio.aclose_forcefully(self._transport)

    async def _negotiate(self) -> Http1 | Http2:
        protocol: type[Http1 | Http2] = Http1
        context = self._server.ssl_context
        if context is not None:
            self._stream = self._tls = tls = trio.SSLStream(self._transport, context, server_side=True)
            try:
                with trio.fail_after(self.service.limits.tls_handshake_timeout_s):
                    await tls.do_handshake()
            except trio.TooSlowError:
                raise trio.BrokenResourceError("the TLS handshake takes too long") from None
            if tls.selected_alpn_protocol() == "h2":
                protocol = Http2
        return protocol(
            self,
            self._server.config,
            self._server.context,
            ssl=context is not None,
            client=self._client,
            server=self._server_address,
        )

    # ---- in

    async def _read_on(self) -> None:
        protocol = self._protocol
        is_retired = False
        while not self.is_closing:
            if self.service.is_stopping and not is_retired:
                is_retired = True
                await protocol.retire()
                continue
            data = b""
            with trio.CancelScope(deadline=self._deadline()) as self._reading:
                if protocol.is_backed_up:
                    await trio.sleep_forever()
                try:
                    data = bytes(await self._stream.receive_some(protocol.receive_bytes))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._is_lost = True
                self._is_eof = not data
            if self._is_eof or self._is_lost:
                return
            if data:
                await protocol.handle(RawData(data))
            elif trio.current_time() >= self._deadline():
                await self._time_out()
            else:
                await protocol.resume()

    def _deadline(self) -> float:
        deadline = min(self._idle_deadline, self._head_deadline)
        return min((call.budget.deadline for call in self.uploads), default=deadline)

    async def _time_out(self) -> None:
        if not self.uploads:
            await self._protocol.time_out()
        for call in list(self.uploads):
            await call.check_upload(trio.current_time())

    def resume_reading(self) -> None:
        """Have the reader look at what the protocol is like now."""
        self._reading.cancel()

    def note_head_begun(self) -> None:
        """From now on ``header_timeout_s`` counts."""
        if self._head_deadline == math.inf:
            self._head_deadline = trio.current_time() + self.service.limits.header_timeout_s
            self._idle_deadline = math.inf

    def drain(self) -> None:
        """Have the reader see that the server is stopping, behind what has arrived."""
        self._reading.deadline = trio.current_time()

    # ---- out

    def write(self, data: bytes) -> None:
        """Have the writer send it, behind what it has."""
        if data and not self._written.is_set() and not self._is_lost:
            self._unsent.append(data)
            self._unsent_bytes += len(data)
            self._wake_writer.set()

    async def wait_writable(self) -> None:
        """Wait while more than ``UNSENT_BYTES`` are not sent."""
        while self._unsent_bytes > UNSENT_BYTES:
            if self._writable is None:
                self._writable = trio.Event()
            await self._writable.wait()

    async def _write_on(self) -> None:
        try:
            while not self._is_lost and (self._unsent or not self.is_closing):
                if not self._unsent:
                    self._wake_writer = trio.Event()
                    await self._wake_writer.wait()
                parts, self._unsent = self._unsent, []
                for part in _join_small(parts):
                    await self._send_part(part)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._lose()
        finally:
            self._written.set()

    async def _send_part(self, part: bytes) -> None:
        with memoryview(part) as view:
            for start in range(0, len(part), SEND_BYTES):
                with trio.move_on_after(self.service.limits.send_timeout_s) as patience:
                    await self._stream.send_all(view[start : start + SEND_BYTES])
                if patience.cancelled_caught:
                    log.debug("a client took no bytes for %g s", self.service.limits.send_timeout_s)
                    raise trio.BrokenResourceError("the client takes no bytes")
                self._unsent_bytes -= min(SEND_BYTES, len(part) - start)
                if self._writable is not None and self._unsent_bytes <= UNSENT_BYTES:
                    self._writable.set()
                    self._writable = None

    # ---- its end

    def _close(self) -> None:
        self.is_closing = True
        self._wake_writer.set()
        self._reading.cancel()

    def _lose(self) -> None:
        self._is_lost = True
        for call in list(self.calls):
            call.leave()
        self._unsent.clear()
        self._unsent_bytes = 0
        if self._writable is not None:
            self._writable.set()
        self._close()

    async def _say_goodbye(self) -> None:
        if self._protocol.is_end_ambiguous and isinstance(self._transport, trio.SocketStream):
            with suppress(OSError):
                self._transport.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            return
        with trio.move_on_after(LINGER_S), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if self._tls is not None:
                with suppress(trio.BrokenResourceError):  # such as by requests behind the last answer
                    await self._tls.unwrap()
            if isinstance(self._transport, trio.abc.HalfCloseableStream):
                await self._transport.send_eof()
            left = LINGER_BYTES
            while left > 0 and (data := await self._transport.receive_some(SEND_BYTES)):
                left -= len(data)

    # ---- what hypercorn calls

    def spawn(self, func: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Start a task that ends with the connection."""
        self._nursery.start_soon(func, *args)

    async def send(self, event: Event) -> None:
        """Do what a protocol wants done; never waits."""
        if isinstance(event, RawData):
            self.write(event.data)
        elif isinstance(event, Closed):
            self._close()
        elif isinstance(event, Updated):
            self._head_deadline = math.inf
            if not event.idle:
                self._idle_deadline = math.inf
            else:
                self._idle_deadline = trio.current_time() + self.service.limits.keep_alive_s
                self._reading.deadline = self._deadline()


def _join_small(parts: list[bytes]) -> list[bytes]:
    """One part of many, unless one of them is large: that is not copied."""
    return [b"".join(parts)] if max(map(len, parts), default=0) < SEND_BYTES else parts


def _hypercorn_config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = log
    config.include_server_header = False
    return config
