"""Sessions: an event stream for everything that a worker says, and POSTs for what it is told."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence

import trio

from stepflow_trio.engine.link import Arrival
from stepflow_trio.protocol.dialects import TransportKind
from stepflow_trio.protocol.sse import COMMENT_PING, escape_non_ascii, write_event
from stepflow_trio.transports.http.asgi import Send

MAX_UNREAD_BYTES = 2**20
"""A POST whose messages would make more than this wait to be read waits itself, and with it its sender."""


FRAMES_AT_ONCE = 32
"""Messages handed over before the answers to them are sent: so the client works on the first ones while the
last ones of a POST are still being answered."""


class Session:
    """One session's stream, and the link over it (docs/protocol.md, section 4).

    Messages that were POSTed together as lines come out of :meth:`receive`; what is sent goes to the stream
    as events. What belongs to a POST of a single message is said with :meth:`say`.
    """

    def __init__(self, send: Send) -> None:
        self.id = secrets.token_hex(16)
        self._send = send
        self._sending = trio.Lock()
        self._arrived: deque[Arrival] = deque()
        self._unread_bytes = 0
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()
        self._was_silent = False
        self._ended = False

    @property
    def kind(self) -> TransportKind:
        """HTTP."""
        return "http"

    async def receive(self) -> list[Arrival]:
        """Wait for messages; see :class:`~stepflow_trio.engine.link.Link`.

        Raises:
            trio.BrokenResourceError: the stream is over, and with it whatever is in flight in the session.
        """
        await trio.lowlevel.checkpoint()
        while not self._arrived and not self._ended:
            await self._readable.park()
        if self._ended:
            raise trio.BrokenResourceError("the client closed the event stream")
        frames = [self._arrived.popleft() for _ in range(min(FRAMES_AT_ONCE, len(self._arrived)))]
        if not self._arrived:
            self._unread_bytes = 0
            self._writable.unpark_all()
        return frames

    async def deliver(self, frames: Sequence[Arrival], size: int) -> None:
        """Take messages of ``size`` bytes that were POSTed, waiting while many wait to be read.

        Raises:
            trio.BrokenResourceError: the session is over.
        """
        while self._unread_bytes > MAX_UNREAD_BYTES and not self._ended:
            await self._writable.park()
        if self._ended:
            raise trio.BrokenResourceError("the session is over")
        self._arrived.extend(frames)
        self._unread_bytes += size
        self._readable.unpark_all()

    async def send(self, frames: Sequence[bytes], progressed: Callable[[], object]) -> None:
        """Send the frames as events; see :class:`~stepflow_trio.engine.link.Link`."""
        await self._write(b"".join([write_event(frame, "message") for frame in frames]))
        progressed()

    async def say(self, frames: Sequence[bytes]) -> None:
        """Send frames that belong to a POST of their own, in ASCII, for readers as old as such sessions."""
        await self._write(b"".join([write_event(escape_non_ascii(frame), "message") for frame in frames]))

    async def send_opening(self, data: bytes) -> None:
        """Send the first event, which says where to POST to."""
        await self._write(write_event(data, "endpoint"))

    async def keep_alive(self, heartbeat_s: float) -> None:
        """Send a comment whenever nothing was sent for ``heartbeat_s`` seconds, for ever."""
        while True:
            self._was_silent = True
            await trio.sleep(heartbeat_s)
            if self._was_silent:
                await self._write(COMMENT_PING)

    async def _write(self, body: bytes) -> None:
        async with self._sending:
            self._was_silent = False
            if self._ended:
                raise trio.BrokenResourceError("the client closed the event stream")
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    def end(self) -> None:
        """Note that the client is gone: nothing more is read or sent."""
        self._ended = True
        self._readable.unpark_all()
        self._writable.unpark_all()

    async def aclose(self) -> None:
        """Close; see :class:`~stepflow_trio.engine.link.Link`."""
        self.end()
        await trio.lowlevel.checkpoint()

    def __repr__(self) -> str:
        return f"<Session{' ended' if self._ended else ''}>"
