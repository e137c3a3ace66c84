"""Frames that wait for the writer."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

import trio

from stepflow_trio.engine.limits import Limits
from stepflow_trio.protocol.peer import Call


class WaitingCall:
    """A call whose caller waits: first for the writer, then for the answer."""

    __slots__ = ("call", "task")

    def __init__(self, call: Call, task: trio.lowlevel.Task) -> None:
        self.call = call
        self.task = task


class Outbox:
    """Two lanes: what ends something goes before what begins something.

    Answers, cancellations and notifications never wait behind calls. So an answer is not stuck behind a
    flood of our own requests, whose answers the peer may be unable to take before it has ours.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._urgent: deque[bytes] = deque()
        self._calls: OrderedDict[WaitingCall, bytes] = OrderedDict()
        self._bytes = 0
        self._writer: trio.lowlevel.Task | None = None
        self._closed = False
        self._held = False
        self._room = trio.lowlevel.ParkingLot()

    @property
    def pending_bytes(self) -> int:
        """Bytes that the writer has not taken."""
        return self._bytes

    @property
    def pending_frames(self) -> int:
        """Frames that the writer has not taken."""
        return len(self._urgent) + len(self._calls)

    @property
    def is_full(self) -> bool:
        """Whether who can wait should, with :meth:`wait_for_room`."""
        return self._bytes >= self._limits.max_outbox_bytes

    @property
    def is_overrun(self) -> bool:
        """Whether even the reserve of those who cannot wait is used up."""
        return self._bytes >= 2 * self._limits.max_outbox_bytes

    def post(self, frame: bytes) -> None:
        """Queue a frame of the urgent lane."""
        self._bytes += len(frame)
        self._urgent.append(frame)
        self.wake_writer()

    def post_call(self, waiting: WaitingCall, frame: bytes) -> None:
        """Queue a call's frame."""
        self._bytes += len(frame)
        self._calls[waiting] = frame
        self.wake_writer()
        self.tell_of_room()

    def withdraw(self, waiting: WaitingCall) -> bool:
        """Take a call's frame back. False where the writer has it already."""
        frame = self._calls.pop(waiting, None)
        if frame is None:
            return False
        self._bytes -= len(frame)
        self.tell_of_room()
        return True

    def take(self) -> list[bytes]:
        """Take the frames of one write, urgent ones first; they count as begun from here on."""
        frames: list[bytes] = []
        room = self._limits.write_bytes
        while self._urgent and room > 0:
            frame = self._urgent.popleft()
            room -= len(frame)
            frames.append(frame)
        # One call goes with every write at least, or a peer that asks without end would starve our calls.
        may_be_over = True
        while self._calls and (room > 0 or may_be_over):
            _, frame = self._calls.popitem(last=False)
            room -= len(frame)
            frames.append(frame)
            may_be_over = False
        self._bytes -= self._limits.write_bytes - room
        self.tell_of_room()
        return frames

    def take_urgent(self) -> list[bytes]:
        """Take all frames of the urgent lane."""
        frames = [*self._urgent]
        self._urgent.clear()
        self._bytes -= sum(map(len, frames))
        self.tell_of_room()
        return frames

    @property
    def writer_waits(self) -> bool:
        """Whether the writer waits for frames, so that nobody has begun one."""
        return self._writer is not None

    def hold(self) -> None:
        """Do not wake the writer until :meth:`release`: what follows may go together, or without it."""
        self._held = True

    def release(self) -> None:
        """Wake the writer if there is something for it."""
        self._held = False
        if self._urgent or self._calls:
            self.wake_writer()

    async def wait_for_frames(self) -> None:
        """Wait, as the writer, until there is something to take or the outbox is closed."""
        if self._urgent or self._calls or self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._writer = trio.lowlevel.current_task()

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def wait_for_room(self) -> None:
        """Wait, while the outbox is full, until it may be no more: ask again then."""
        await self._room.park()

    def tell_of_room(self) -> None:
        """Wake one of those who wait for room, if there is some; who was woken says it again when done."""
        if self._room and not self.is_full:
            self._room.unpark()

    def wake_waiting(self) -> None:
        """Make everyone who waits for room ask again whether to."""
        self._room.unpark_all()

    def close(self) -> None:
        """Drop everything and wake everyone."""
        self._closed = True
        self._held = False
        self._urgent.clear()
        self._calls.clear()
        self._bytes = 0
        self.wake_writer()
        self.wake_waiting()

    def wake_writer(self) -> None:
        """Make the writer look what there is to do, unless it is held."""
        if self._writer is not None and not self._held:
            trio.lowlevel.reschedule(self._writer)
            self._writer = None
