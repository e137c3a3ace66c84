"""A connection over a link: who reads, who writes, and who ends what."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial

import outcome
import trio

from stepflow_trio.engine.connection import Connection
from stepflow_trio.engine.ending import last_words, one_exception
from stepflow_trio.engine.handlers import Handlers
from stepflow_trio.engine.limits import Limits
from stepflow_trio.engine.link import CancellingLink, EagerLink, Link
from stepflow_trio.engine.outbox import WaitingCall
from stepflow_trio.errors import ConnectionLost, LossReason
from stepflow_trio.protocol.dialects import CANCEL
from stepflow_trio.protocol.peer import Peer, Role

LAST_WORDS_S = 0.5
"""How long a connection that ends by cancellation may take to tell the peer what it gives up, and how long
what a peer said before it stopped listening is waited for."""


class LinkConnection(Connection):
    """A connection over a link; :func:`open_connection` makes it."""

    def __init__(
        self,
        link: Link,
        handlers: Handlers,
        *,
        role: Role,
        limits: Limits,
        nursery: trio.Nursery,
    ) -> None:
        super().__init__(handlers, peer=Peer(role), limits=limits, nursery=nursery)
        self._link = link
        self._eager_link = link if isinstance(link, EagerLink) else None
        self._reader_scope = trio.CancelScope()
        self._writer_scope = trio.CancelScope()
        self._writing = False
        self.peer_extensions = self._peer.peer_extensions

    @property
    def link(self) -> Link:
        """The transport underneath."""
        return self._link

    @property
    def peer_extensions(self) -> frozenset[str]:
        """What the peer understands beyond the specification (docs/protocol.md, section 8)."""
        return self._peer.peer_extensions

    @peer_extensions.setter
    def peer_extensions(self, extensions: frozenset[str]) -> None:
        always = {CANCEL} if isinstance(self._link, CancellingLink) else frozenset[str]()
        self._peer.peer_extensions = extensions | always

    @property
    def is_idle(self) -> bool:
        """Whether nothing of the peer's is in hand and nothing waits to be sent."""
        return not self._writing and super().is_idle

    # ---- the two tasks that touch the link ----------------------------------------------------------

    async def read(self) -> None:
        """Take what arrives until the connection is over. Never raises but ``Cancelled``."""
        idle_timeout_s = self._limits.idle_timeout_s
        with self._reader_scope:
            try:
                while True:
                    if idle_timeout_s is None:
                        frames = await self._link.receive()
                    else:
                        frames = None
                        with trio.move_on_after(idle_timeout_s):
                            frames = await self._link.receive()
                        if frames is None:
                            self.lose(LossReason.IDLE_TIMEOUT, f"nothing arrived for {idle_timeout_s:g} s")
                            return
                    if not frames:
                        break
                    self._act_and_send(partial(self.take, frames))
                    # While nothing comes, nothing of what came is to be held on to.
                    del frames
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self.lose(LossReason.STREAM_ERROR, f"reading failed: {exc!r}")
                return
            await self._end_input()

    def _post_call(self, waiting: WaitingCall, frame: bytes) -> None:
        if self._eager_link is None or self._peer.call_count > 1:
            # With what others are about to call, in one write.
            super()._post_call(waiting, frame)
        else:
            self._act_and_send(partial(super()._post_call, waiting, frame))

    def _act_and_send(self, act: Callable[[], object]) -> None:
        self._outbox.hold()
        try:
            act()
            self._send_eagerly()
        finally:
            self._outbox.release()
            if self._writing:
                self._outbox.wake_writer()

    def _send_eagerly(self) -> None:
        """Send what waits to be sent, if the writer is idle and the link can."""
        idle = self._outbox.writer_waits and self._loss is None
        if self._eager_link is not None and idle and (frames := self._outbox.take()):
            self._frames_sent += len(frames)
            # What is left of them is the writer's to finish, before anything else.
            self._writing = not self._eager_link.send_nowait(frames)
            if self.is_idle:
                self._idle.unpark_all()

    async def _end_input(self) -> None:
        """The peer sends no more. A runtime that hangs up may still want the answers it asked for."""
        self._end_of_input = True
        loss = ConnectionLost(LossReason.PEER_CLOSED, "the peer closed its end")
        for call in self._peer.hang_up():
            self._outbox.withdraw(call.waiter)
            self._wake(call.waiter, outcome.Error(ConnectionLost(loss.reason, loss.detail)))
        # Who waits for a place is woken by those who leave theirs.
        self._outbox.wake_waiting()
        if self._peer.role is not Role.RUNTIME:
            await self.drain()
        self.lose(loss.reason, loss.detail)

    async def write(self) -> None:
        """Send what waits until the connection is over. Never raises but ``Cancelled``."""
        with self._writer_scope:
            try:
                while self._loss is None:
                    # Cancelled here, the frames stay for the last words.
                    await trio.lowlevel.checkpoint_if_cancelled()
                    frames = self._outbox.take()
                    if frames or self._writing:
                        self._writing = True
                        if not await self._send(frames):
                            timeout_s = self._limits.send_timeout_s
                            self.lose(
                                LossReason.SEND_STALLED, f"the peer accepted no bytes for {timeout_s:g} s"
                            )
                        self._writing = False
                        self._frames_sent += len(frames)
                        continue
                    # Whatever ends a request leaves a frame, so idleness always begins here.
                    if self.is_idle:
                        self._idle.unpark_all()
                    await self._outbox.wait_for_frames()
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                if not self._end_of_input:
                    # It may have answered before it went away: the reader goes on, if the end is near.
                    with trio.move_on_after(LAST_WORDS_S):
                        await self._lost.wait()
                reason = LossReason.PEER_CLOSED if self._end_of_input else LossReason.STREAM_ERROR
                self.lose(reason, f"writing failed: {exc!r}")

    async def _send(self, frames: list[bytes]) -> bool:
        """Send frames. False if the peer took nothing of them for ``send_timeout_s``."""
        timeout_s = self._limits.send_timeout_s
        # A scope of its own: one whose deadline passes just as the send is done has cancelled nothing.
        with trio.CancelScope(deadline=trio.current_time() + timeout_s) as scope:

            def progressed() -> None:
                scope.deadline = trio.current_time() + timeout_s

            await self._link.send(frames, progressed)
        return not scope.cancelled_caught

    # ---- the end ------------------------------------------------------------------------------------

    async def say_last_words(self) -> None:
        """Send what ends something, cancellations above all, although this task may be cancelled.

        Bounded by :data:`LAST_WORDS_S`. A frame that the writer has begun is not cut: then nothing is said.
        """
        if self._loss is not None or self._writing:
            return
        self._writer_scope.cancel(reason="the connection says its last words")
        if frames := self._outbox.take_urgent():
            with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                await last_words(partial(self._link.send, frames, lambda: None), within_s=LAST_WORDS_S)

    def lose(self, reason: LossReason, detail: str) -> None:
        """End the connection now; see :meth:`Connection.lose`. Closing the link is the owner's, and later."""
        super().lose(reason, detail)
        self._reader_scope.cancel(reason=reason.value)
        self._writer_scope.cancel(reason=reason.value)


@asynccontextmanager
async def open_connection(
    link: Link,
    handlers: Handlers,
    *,
    role: Role = Role.PLAIN,
    limits: Limits | None = None,
) -> AsyncGenerator[LinkConnection]:
    """Run a connection over ``link`` for as long as the block lasts.

    Entering never waits for the peer. Leaving in order waits at most ``limits.drain_s`` for what is in
    flight; leaving with an exception or by cancellation cancels it at once, and takes at most
    :data:`LAST_WORDS_S` to tell the peer. Either way the link is closed and no task is left. When the peer
    ends the connection, the block goes on: calls in it raise :class:`ConnectionLost`, and
    :meth:`Connection.wait_lost` returns.

    The exception that comes out is the block's own, not a group of one.
    """
    with one_exception():
        async with trio.open_nursery() as nursery:
            connection = LinkConnection(link, handlers, role=role, limits=limits or Limits(), nursery=nursery)
            nursery.start_soon(connection.read, name="read frames")
            nursery.start_soon(connection.write, name="write frames")
            try:
                yield connection
                await connection.drain()
            except BaseException:
                await connection.say_last_words()
                raise
            finally:
                connection.lose(LossReason.LOCAL_CLOSE, "this side closed the connection")
                nursery.cancel_scope.cancel(reason="connection closed")
                # Links close without waiting. Shielded from the line above, or its Cancelled would come out
                # of here in the place of the exception that ended the block.
                await last_words(link.aclose, within_s=0)
