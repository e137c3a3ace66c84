"""Frames that wait for the writer."""

from __future__ import annotations

from collections import deque
from typing import Any

import trio

from stepflow_trio.engine.limits import Limits
from stepflow_trio.protocol.peer import Call


class WaitingCall:
    """A call whose caller waits: first for the writer, then for the answer."""

    __slots__ = ("call", "frame", "task")

    def __init__(self, call: Call, frame: bytes, task: trio.lowlevel.Task) -> None:
        self.call = call
        self.frame: bytes | None = frame
        """Its frame, until the writer takes it or the caller withdraws it."""
        self.task = task


class Outbox:
    """Two lanes: what ends something goes before what begins something.

    Answers, cancellations and notifications never wait behind calls. So an answer is not stuck behind a
    flood of our own requests, whose answers the peer may be unable to take before it has ours.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._urgent: deque[bytes] = deque()
        self._calls: deque[WaitingCall] = deque()
        self._bytes = 0
        self._writer: trio.lowlevel.Task | None = None
        self._closed = False
        self._room = trio.lowlevel.ParkingLot()

    @property
    def pending_bytes(self) -> int:
        """Bytes that the writer has not taken."""
        return self._bytes

    @property
    def pending_frames(self) -> int:
        """Frames that the writer has not taken, withdrawn calls included until it passes them."""
        return len(self._urgent) + len(self._calls)

    @property
    def is_full(self) -> bool:
        """Whether who can wait should, with :meth:`wait_for_room`."""
        return self._bytes >= self._limits.max_outbox_bytes

    def post(self, frame: bytes) -> bool:
        """Queue a frame of the urgent lane. False where even the reserve is used up: it is not queued."""
        size = self._bytes + len(frame)
        if size > 2 * self._limits.max_outbox_bytes and self._bytes:
            return False
        self._bytes = size
        self._urgent.append(frame)
        self._wake_writer()
        return True

    def post_call(self, waiting: WaitingCall) -> None:
        """Queue a call. Its caller has waited for room before."""
        if waiting.frame is not None:
            self._bytes += len(waiting.frame)
            self._calls.append(waiting)
            self._wake_writer()

    def withdraw(self, waiting: WaitingCall) -> bool:
        """Take a call back. False where the writer has its frame already."""
        if waiting.frame is None:
            return False
        self._bytes -= len(waiting.frame)
        waiting.frame = None
        # Usually the caller that gives up is among the latest; what stays is passed over by the writer.
        while self._calls and self._calls[-1].frame is None:
            self._calls.pop()
        self._room.unpark()
        return True

    def take(self) -> list[bytes]:
        """Take the frames of one write, urgent ones first; they count as begun from here on."""
        frames: list[bytes] = []
        room = self._limits.write_bytes
        urgent, calls = self._urgent, self._calls
        while urgent and (room > 0):
            frame = urgent.popleft()
            room -= len(frame)
            frames.append(frame)
        while calls and room > 0:
            waiting = calls.popleft()
            frame = waiting.frame
            if frame is None:
                continue
            waiting.frame = None
            room -= len(frame)
            frames.append(frame)
        taken = self._limits.write_bytes - room
        was_full = self.is_full
        self._bytes -= taken
        if self._room and (was_full or not self._bytes):
            self._room.unpark_all()
        return frames

    def take_urgent(self) -> list[bytes]:
        """Take the whole urgent lane; the calls stay."""
        frames = list(self._urgent)
        self._urgent.clear()
        self._bytes -= sum(map(len, frames))
        return frames

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
        """Wait until the outbox is not full, or closed."""
        while self.is_full and not self._closed:
            await self._room.park()

    def close(self) -> None:
        """Drop everything and wake everyone."""
        self._closed = True
        self._urgent.clear()
        self._calls.clear()
        self._bytes = 0
        self._wake_writer()
        self._room.unpark_all()

    def _wake_writer(self) -> None:
        if self._writer is not None:
            trio.lowlevel.reschedule(self._writer)
            self._writer = None
