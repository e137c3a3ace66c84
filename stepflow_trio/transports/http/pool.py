"""Connections to one HTTP/1.1 server: each speaks through h11, and the pool hands them out in order."""

from __future__ import annotations

import errno
import math
import os
import select
import ssl
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, TypeAlias, cast

import h11
import outcome
import trio

from stepflow_trio.engine.ending import last_words
from stepflow_trio.errors import ConnectionLost, LossReason
from stepflow_trio.transports.http.limits import HttpClientLimits

RECEIVE_BYTES = 64 * 2**10
"""Asked for in one read."""

SEND_BYTES = 64 * 2**10
"""Given at once to a stream that does not tell what it has taken: so a slow server is seen to take it."""

CLOSE_WITHIN_S = 1.0
"""Closing by force takes no time; a stream of somebody else's making gets so long for it."""

_LEFTOVER_EVENTS = 8
"""So many pieces of an answer that nobody read are dropped if they have arrived, to keep the connection."""

_SHOWN_BYTES = 2
"""Of an answer: enough to tell what is not HTTP but TLS."""

_OWN_LACKS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})
_STREAM_ERRORS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)

AnswerEvent: TypeAlias = h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage
"""A part of an answer, in the order in which they come; of the first and third there may be any number."""


def _ignore() -> None:
    pass


class HttpConnection:
    """One connection. It carries one exchange after another: :meth:`begin`, :meth:`send`, :meth:`next_event`,
    :meth:`finish`. One task may send while another receives.

    Where the connection fails it raises :class:`~stepflow_trio.errors.ConnectionLost`, and is of no further
    use.

    Args:
        stream: what is spoken over. A socket is read and written without trio's detours.
        transport: what lies under ``stream`` where that is TLS; else the same. It is what gets closed, for an
            end by force has no last words.
        limits: of the client.
    """

    def __init__(
        self, stream: trio.abc.Stream, transport: trio.abc.Stream, *, limits: HttpClientLimits
    ) -> None:
        self._stream = stream
        self._transport = transport
        self._limits = limits
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=limits.max_header_bytes)
        self._fd = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else -1
        self._is_socket = self._fd != -1
        self._poll: select.poll | None = None
        if isinstance(transport, trio.SocketStream):
            self._poll = select.poll()
            self._poll.register(transport.socket.fileno(), select.POLLIN)
        self._is_in_head = True
        self._head_bytes = 0
        self._is_at_end = False
        self._is_reusable = True
        self._is_closed = False
        self.expires_at_s = math.inf
        """While it is idle: until when it may be used, by trio's clock."""
        self.has_sent = False
        """Whether the server may have taken some of the exchange's bytes."""
        self.answer_begins = b""
        """The first bytes that came of the exchange's answer."""

    def begin(self, request: h11.Request) -> bytes:
        """Begin an exchange; return the request's head, to be sent."""
        self._is_in_head = True
        self._head_bytes = 0
        self.has_sent = False
        self.answer_begins = b""
        return self._h11.send(request)

    def body_bytes(self, data: bytes) -> list[bytes]:
        """A piece of the request's body as it is to be sent.

        Raises:
            h11.LocalProtocolError: the body is longer than its ``content-length``.
        """
        return self._h11.send_with_data_passthrough(h11.Data(data=data)) or []

    def end_bytes(self) -> bytes:
        """The end of the request's body as it is to be sent.

        Raises:
            h11.LocalProtocolError: the body is shorter than its ``content-length``.
        """
        return self._h11.send(h11.EndOfMessage())

    async def send(self, data: bytes, progressed: Callable[[], object] = _ignore) -> None:
        """Send all of it, calling ``progressed`` whenever the server took some.

        A checkpoint only where it must wait. Cancelled, nobody knows how much was sent.
        """
        try:
            with memoryview(data) as view:
                if self._is_socket:
                    await self._write(view, progressed)
                else:
                    await self._send(view, progressed)
        except _STREAM_ERRORS as exc:
            raise self._lost_by(exc, "sending") from exc
        except BaseException:
            self._is_reusable = False
            raise

    async def _write(self, view: memoryview, progressed: Callable[[], object]) -> None:
        sent = 0
        while sent < len(view):
            try:
                with view[sent:] as rest:
                    # Closed meanwhile, its number may be another file's: hence −1, which is nobody's.
                    sent += os.write(self._fd, rest)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._fd)
            else:
                self.has_sent = True
                progressed()

    async def _send(self, view: memoryview, progressed: Callable[[], object]) -> None:
        for start in range(0, len(view), SEND_BYTES):
            self.has_sent = True  # if it fails, who knows how much of it was taken
            with view[start : start + SEND_BYTES] as piece:
                await self._stream.send_all(piece)
            progressed()

    async def next_event(self) -> AnswerEvent:
        """Wait for the next part of the answer. A checkpoint only where it must wait."""
        while (event := self._parse()) is h11.NEED_DATA:
            await self._receive()
        if type(event) is h11.Response:
            self._is_in_head = False
            self._is_reusable &= not _is_framed_twice(event)
        return cast("AnswerEvent", event)

    def _parse(self) -> object:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as exc:
            raise self._lost_by_answer(exc) from None

    async def _receive(self) -> None:
        max_bytes = RECEIVE_BYTES
        if self._is_in_head:
            max_bytes = min(max_bytes, self._limits.max_header_bytes - self._head_bytes)
            if max_bytes == 0:
                detail = f"the answer's head is larger than {self._limits.max_header_bytes} bytes"
                raise self._lost(LossReason.PROTOCOL_VIOLATION, detail)
        try:
            if self._is_socket:
                data = await self._read(max_bytes)
            else:
                data = bytes(await self._stream.receive_some(max_bytes))
        except _STREAM_ERRORS as exc:
            raise self._lost_by(exc, "receiving") from exc
        if not self._head_bytes:
            self.answer_begins = data[:_SHOWN_BYTES]
        self._head_bytes += len(data)
        self._is_at_end = not data
        self._h11.receive_data(data)

    async def _read(self, max_bytes: int) -> bytes:
        while not self._is_closed:
            await trio.lowlevel.wait_readable(self._fd)
            try:
                return os.read(self._fd, max_bytes)
            except BlockingIOError:
                continue
        raise trio.ClosedResourceError

    def finish(self) -> bool:
        """End the exchange; say whether another may follow it. Does not wait.

        One may where both sides have said all they had to, and only that, and neither said that it would be
        the last. What little of an answer has arrived unread does no harm.
        """
        if not self._is_reusable or self._is_at_end:
            return False
        if self._h11.our_state is h11.IDLE:
            return True  # cancelled before it began
        try:
            for _ in range(_LEFTOVER_EVENTS):
                if self._h11.their_state is not h11.SEND_BODY or self._h11.next_event() is h11.NEED_DATA:
                    break
        except h11.RemoteProtocolError:
            return False
        is_done = self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE
        if not is_done or self._h11.trailing_data[0]:
            return False
        self._h11.start_next_cycle()
        return True

    def is_stale(self, now_s: float) -> bool:
        """Whether the server has closed it, or said something unasked, or may be about to close it.

        What the server did is seen on sockets, under TLS too; of other streams only the age is known.
        """
        if now_s >= self.expires_at_s:
            return True
        return self._poll is not None and bool(self._poll.poll(0))

    async def aclose(self) -> None:
        """Close it now, also when cancelled; who sends or receives is woken with ``ConnectionLost``."""
        if not self._is_closed:
            self._is_closed = True
            self._is_reusable = False
            self._fd = -1
            await close_by_force(self._transport)

    def _lost_by_answer(self, exc: h11.RemoteProtocolError) -> ConnectionLost:
        # Without what h11 quotes: that could be long, or be what a server gives back of a token.
        why = str(exc).partition(": bytearray(")[0]
        if not self._is_at_end:
            return self._lost(LossReason.PROTOCOL_VIOLATION, f"the answer is no HTTP/1.1: {why}")
        if not self._is_in_head:
            return self._lost(LossReason.PEER_CLOSED, f"the answer's body is cut short: {why}")
        where = (
            f"{self._head_bytes} bytes into the answer's head" if self._head_bytes else "without an answer"
        )
        return self._lost(LossReason.PEER_CLOSED, f"the server closed the connection {where}")

    def _lost_by(self, exc: BaseException, doing: str) -> ConnectionLost:
        if self._is_closed:
            return client_closed()
        return self._lost(LossReason.STREAM_ERROR, f"{doing} failed: {why_failed(exc)}")

    def _lost(self, reason: LossReason, detail: str) -> ConnectionLost:
        self._is_reusable = False
        return ConnectionLost(reason, detail)


class ConnectionPool:
    """The connections of one client. At most ``max_connections`` are open at once or being opened.

    Who takes a connection, or the place for one, gives it back whatever happens: :meth:`give_back`, or
    :meth:`free_place`. Who has to wait is given what becomes free, in the order of coming; a waiter that is
    cancelled has taken nothing.
    """

    def __init__(self, limits: HttpClientLimits) -> None:
        self._limits = limits
        self._open: set[HttpConnection] = set()
        self._places_taken = 0
        self._idle: deque[HttpConnection] = deque()  # the longest idle first
        self._idle_again = trio.lowlevel.ParkingLot()
        self._waiting: OrderedDict[trio.lowlevel.Task, None] = OrderedDict()
        self._is_closed = False

    @property
    def idle_connections(self) -> int:
        """Open and used by nobody."""
        return len(self._idle)

    @property
    def open_connections(self) -> int:
        """Open or being opened."""
        return self._places_taken

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiting)

    async def take(self) -> HttpConnection | None:
        """Wait for a connection that is alive, as far as can be seen; or None, and the place for a new one.

        A checkpoint only where it must wait.

        Raises:
            ConnectionLost: the client is closed.
        """
        connection = await self._take()
        if connection is None or not connection.is_stale(trio.current_time()):
            return connection
        await self.drop(connection)
        return None

    async def _take(self) -> HttpConnection | None:
        if self._is_closed:
            raise client_closed()
        # While anybody waits there is nothing to take here: what becomes free goes to the first of them.
        if self._idle:
            return self._idle.pop()
        if self._places_taken < self._limits.max_connections:
            self._places_taken += 1
            return None
        task = trio.lowlevel.current_task()
        self._waiting[task] = None

        def abort(_: Any) -> trio.lowlevel.Abort:
            del self._waiting[task]
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    async def add(self, connection: HttpConnection) -> None:
        """Put a connection that was just opened into a place that was taken.

        Raises:
            ConnectionLost: the client was closed meanwhile; so is the connection, and the place is free.
        """
        self._open.add(connection)
        if self._is_closed:
            await self._close(connection)
            raise client_closed()

    async def give_back(self, connection: HttpConnection) -> None:
        """Give a connection back after its exchange. It is closed at once unless another may follow.

        A checkpoint only where it is closed, also when cancelled.
        """
        if self._is_closed or not connection.finish():
            await self._close(connection)
            return
        connection.expires_at_s = trio.current_time() + self._limits.keep_alive_s
        if self._waiting:
            self._wake(outcome.Value(connection))
        elif len(self._idle) < self._limits.max_idle_connections:
            self._idle.append(connection)
            self._idle_again.unpark()
        else:
            await self._close(connection)

    async def drop(self, connection: HttpConnection) -> None:
        """Close a connection and keep its place."""
        self._open.discard(connection)
        await connection.aclose()

    def free_place(self) -> None:
        """Give a place back."""
        if self._waiting:
            self._wake(outcome.Value(None))
        else:
            self._places_taken -= 1

    async def close_expired(self) -> NoReturn:
        """Close each connection once it was idle for ``keep_alive_s``. Until cancelled."""
        while True:
            while not self._idle:
                await self._idle_again.park()
            await trio.sleep_until(self._idle[0].expires_at_s)
            while self._idle and self._idle[0].is_stale(trio.current_time()):
                await self._close(self._idle.popleft())

    async def aclose(self) -> None:
        """Close all connections, used or not, also when cancelled. Who uses one or waits for one is raised
        ``ConnectionLost``.
        """
        self._is_closed = True
        while self._waiting:
            self._wake(outcome.Error(client_closed()))
        while self._idle:
            await self._close(self._idle.popleft())
        for connection in [*self._open]:
            await connection.aclose()

    async def _close(self, connection: HttpConnection) -> None:
        try:
            await self.drop(connection)
        finally:
            self.free_place()

    def _wake(self, value: outcome.Outcome[HttpConnection | None]) -> None:
        task, _ = self._waiting.popitem(last=False)
        trio.lowlevel.reschedule(task, value)


async def close_by_force(stream: trio.abc.Stream) -> None:
    """Close a stream at once, also when cancelled."""
    await last_words(partial(trio.aclose_forcefully, stream), within_s=CLOSE_WITHIN_S)


def client_closed() -> ConnectionLost:
    """What a request is raised whose client is closed."""
    return ConnectionLost(LossReason.LOCAL_CLOSE, "the HTTP client is closed")


def why_failed(exc: BaseException) -> str:
    """What went wrong with a stream, in the words of who knows best."""
    if isinstance(exc, OSError) and exc.strerror:
        if exc.errno is None or exc.errno not in errno.errorcode or isinstance(exc, ssl.SSLError):
            return exc.strerror
        return os.strerror(exc.errno)  # to these words trio adds the address, which is known here
    cause = exc.__cause__
    if isinstance(cause, OSError):  # ssl.SSLError is one
        return why_failed(cause)
    if isinstance(cause, ExceptionGroup):  # one for each address of a name
        each = cast("ExceptionGroup[Exception]", cause).exceptions
        return ", ".join(dict.fromkeys(map(why_failed, each)))
    return str(exc) or type(exc).__name__


def is_own_lack(exc: BaseException) -> bool:
    """Whether there was no connection because this machine has no descriptor, memory or port left for it."""
    if isinstance(exc, OSError) and exc.errno is not None:
        return exc.errno in _OWN_LACKS
    cause = exc.__cause__
    if isinstance(cause, ExceptionGroup):  # as above: a server that refuses at one address is known to do so
        return all(map(is_own_lack, cast("ExceptionGroup[Exception]", cause).exceptions))
    return isinstance(cause, OSError) and is_own_lack(cause)


def _is_framed_twice(response: h11.Response) -> bool:
    """Whether two readers could disagree on where the answer ends (RFC 9112, section 6.3)."""
    names = {name for name, _ in response.headers}
    return b"content-length" in names and b"transfer-encoding" in names
