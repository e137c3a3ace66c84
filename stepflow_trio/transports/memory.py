"""A pair of links inside one process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import trio

from stepflow_trio.engine.link import Link
from stepflow_trio.protocol.dialects import TransportKind
from stepflow_trio.protocol.lines import FrameRejected


class _Pipe:
    """One direction: at most ``capacity`` frames lie in it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.frames: deque[bytes | FrameRejected] = deque()
        self.readable = trio.lowlevel.ParkingLot()
        self.writable = trio.lowlevel.ParkingLot()
        self.writer_closed = False
        self.reader_closed = False


class MemoryLink:
    """One end of a pair made by :func:`memory_link_pair`."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False

    @property
    def kind(self) -> TransportKind:
        """Counts as stdio: a lasting connection, both ways."""
        return "stdio"

    async def receive(self) -> list[bytes | FrameRejected]:
        """Wait for frames; see :class:`~stepflow_trio.engine.link.Link`."""
        pipe = self._incoming
        await trio.lowlevel.checkpoint_if_cancelled()
        while not pipe.frames:
            if self._closed:
                raise trio.ClosedResourceError("this link is closed")
            if pipe.writer_closed:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return []
            await pipe.readable.park()
        frames = list(pipe.frames)
        pipe.frames.clear()
        pipe.writable.unpark_all()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return frames

    async def send(self, frames: Sequence[bytes], progressed: Callable[[], object]) -> None:
        """Send the frames; see :class:`~stepflow_trio.engine.link.Link`."""
        pipe = self._outgoing
        await trio.lowlevel.checkpoint()
        for frame in frames:
            while len(pipe.frames) >= pipe.capacity and not pipe.reader_closed and not self._closed:
                await pipe.writable.park()
                progressed()
            if self._closed:
                raise trio.ClosedResourceError("this link is closed")
            if pipe.reader_closed:
                raise trio.BrokenResourceError("the other end is closed")
            pipe.frames.append(frame)
            pipe.readable.unpark()

    async def aclose(self) -> None:
        """Close both directions; see :class:`~stepflow_trio.engine.link.Link`."""
        self._closed = True
        self._outgoing.writer_closed = True
        self._incoming.reader_closed = True
        for pipe in (self._incoming, self._outgoing):
            pipe.readable.unpark_all()
            pipe.writable.unpark_all()
        await trio.lowlevel.checkpoint()

    def __repr__(self) -> str:
        return f"<MemoryLink{' closed' if self._closed else ''}>"


def memory_link_pair(*, capacity: int = 1024) -> tuple[Link, Link]:
    """Two links, each the other's far end. ``capacity`` is how many frames may lie in each direction."""
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1, not {capacity}")
    there, back = _Pipe(capacity), _Pipe(capacity)
    return MemoryLink(back, there), MemoryLink(there, back)
