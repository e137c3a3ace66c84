"""Links for tests: in memory, over a byte stream that can tear a frame, and with faults on purpose.

Every wait in here is virtual time where the test runs under :class:`trio.testing.MockClock`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import trio
import trio.testing

from stepflow_trio.engine.link import Arrival, Link
from stepflow_trio.protocol.dialects import TransportKind
from stepflow_trio.transports.memory import memory_link_pair
from stepflow_trio.transports.streams import StreamLink

__all__ = [
    "Faults",
    "FaultyLink",
    "Replacement",
    "byte_link_pair",
    "dropped",
    "duplicated",
    "garbled",
    "memory_link_pair",
]

Replacement: TypeAlias = Callable[[bytes], Sequence[bytes]]
"""Says which frames go in the place of one."""


def dropped(_frame: bytes) -> Sequence[bytes]:
    """The frame is lost."""
    return ()


def duplicated(frame: bytes) -> Sequence[bytes]:
    """The frame comes twice."""
    return (frame, frame)


def garbled(frame: bytes) -> Sequence[bytes]:
    """The second half of the frame is lost: it is no JSON any more."""
    return (frame[: len(frame) // 2],)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong in one direction of a :class:`FaultyLink`. Nothing, unless said."""

    delay_s: float = 0.0
    """Every frame takes so long."""

    stall_after: int | None = None
    """After so many frames the next one waits for ``released``."""

    released: trio.Event | None = None
    """Ends the stall when the test sets it. Without it a stall never ends."""

    fail_after: int | None = None
    """After so many frames the direction fails with :class:`OSError`."""

    end_after: int | None = None
    """Receiving only: after so many frames the far end seems to have closed its end; it still reads."""

    instead: Mapping[int, Replacement] = field(default_factory=dict[int, Replacement])
    """What goes in the place of the nth frame, counted from 1: :func:`dropped`, :func:`duplicated`,
    :func:`garbled` or a function of your own."""

    def replace(self, frame: Arrival, number: int) -> Sequence[Arrival]:
        """What goes on in the place of frame ``number``."""
        replacement = self.instead.get(number)
        return replacement(frame) if replacement is not None and isinstance(frame, bytes) else (frame,)

    async def strike(self, frames_before: int) -> None:
        """Stall or fail, if it is time.

        Raises:
            OSError: this direction was to fail here.
        """
        if self.fail_after is not None and frames_before >= self.fail_after:
            raise OSError(f"failed on purpose after {self.fail_after} frames")
        if self.stall_after is not None and frames_before >= self.stall_after:
            if self.released is None:
                await trio.sleep_forever()
            else:
                await self.released.wait()


class FaultyLink:
    """Another link, with faults; it hands out one frame at a time, so that their number is exact.

    It keeps the promises of :class:`~stepflow_trio.engine.link.Link`: cancelling a receive loses nothing.
    """

    def __init__(self, link: Link, *, receiving: Faults | None = None, sending: Faults | None = None) -> None:
        self._link = link
        self._receiving = receiving or Faults()
        self._sending = sending or Faults()
        self._arrived: deque[Arrival] = deque()
        self.frames_received = 0
        """Frames that came to this end, those lost on purpose included."""
        self.frames_sent = 0
        """Frames that this end began to send, those lost on purpose included."""

    @property
    def kind(self) -> TransportKind:
        """That of the link underneath."""
        return self._link.kind

    async def receive(self) -> Sequence[Arrival]:
        """Wait for the next frame; see :class:`~stepflow_trio.engine.link.Link`."""
        while True:
            await self._receiving.strike(self.frames_received)
            end_after = self._receiving.end_after
            if end_after is not None and self.frames_received >= end_after:
                await trio.lowlevel.checkpoint()
                return []
            if not self._arrived:
                arrived = await self._link.receive()
                if not arrived:
                    return []
                self._arrived.extend(arrived)
            await trio.sleep(self._receiving.delay_s)
            self.frames_received += 1
            frames = self._receiving.replace(self._arrived.popleft(), self.frames_received)
            if frames:
                return list(frames)

    async def send(self, frames: Sequence[bytes], progressed: Callable[[], object]) -> None:
        """Send the frames one by one; see :class:`~stepflow_trio.engine.link.Link`."""
        for frame in frames:
            await self._sending.strike(self.frames_sent)
            await trio.sleep(self._sending.delay_s)
            self.frames_sent += 1
            for replacement in self._sending.replace(frame, self.frames_sent):
                if isinstance(replacement, bytes):
                    await self._link.send([replacement], progressed)
            progressed()

    async def aclose(self) -> None:
        """Close the link underneath."""
        await self._link.aclose()

    def __repr__(self) -> str:
        return f"<FaultyLink over {self._link!r}>"


class _SlowStream(trio.abc.SendStream):
    """Bytes in chunks, each of which takes its time."""

    def __init__(self, stream: trio.abc.SendStream, chunk_bytes: int, delay_s: float) -> None:
        self._stream = stream
        self._chunk_bytes = chunk_bytes
        self._delay_s = delay_s

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for start in range(0, len(data), self._chunk_bytes):
            await trio.sleep(self._delay_s)
            await self._stream.send_all(data[start : start + self._chunk_bytes])

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


def byte_link_pair(*, chunk_bytes: int = 65_536, delay_s: float = 0.0) -> tuple[Link, Link]:
    """Two links over byte streams without a buffer, each the other's far end.

    A chunk is sent when the far end receives, and takes ``delay_s``. So a send that is cancelled leaves a
    torn frame, as on a pipe, and the far end sees it as a ``FrameRejected``.
    """
    there, arrives_there = trio.testing.lockstep_stream_one_way_pair()
    back, arrives_here = trio.testing.lockstep_stream_one_way_pair()
    return (
        StreamLink(arrives_here, _SlowStream(there, chunk_bytes, delay_s)),
        StreamLink(arrives_there, _SlowStream(back, chunk_bytes, delay_s)),
    )
