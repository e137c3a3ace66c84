"""One connection for both roles: calls out, handlers in, and who ends what."""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from inspect import iscoroutine
from typing import Any, TypeVar, cast, overload

import outcome
import trio
from msgspec import UNSET

from stepflow_trio.engine.ending import last_words, one_exception
from stepflow_trio.engine.failures import error_for_peer, failure_of_call
from stepflow_trio.engine.handlers import Handlers, RequestContext
from stepflow_trio.engine.limits import Limits
from stepflow_trio.engine.link import EagerLink, Link
from stepflow_trio.engine.outbox import Outbox, WaitingCall
from stepflow_trio.engine.statistics import ConnectionStatistics
from stepflow_trio.errors import (
    CallTimeout,
    ConnectionLost,
    ErrorCode,
    LocalProtocolError,
    LossReason,
    RpcError,
)
from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.protocol.messages import Notification
from stepflow_trio.protocol.methods import Method, NotificationMethod
from stepflow_trio.protocol.peer import (
    Answered,
    AnsweredWithError,
    CancelReceived,
    Event,
    InboundRequest,
    Peer,
    Reply,
    Role,
)

ParamsT = TypeVar("ParamsT")
ResultT = TypeVar("ResultT")

RETRY_AFTER_S = 1.0
"""The hint that goes with −32304: about the time in which a full queue of short requests empties."""

LAST_WORDS_S = 0.5
"""How long a connection that ends by cancellation may take to tell the peer what it gives up, and how long
what a peer said before it stopped listening is waited for."""

_log = logging.getLogger("stepflow_trio.engine")


class Connection:
    """One end of a JSON-RPC connection; :func:`open_connection` makes it.

    Any number of tasks may use it at once.
    """

    def __init__(
        self,
        link: Link,
        handlers: Handlers,
        *,
        role: Role,
        limits: Limits,
        nursery: trio.Nursery,
    ) -> None:
        self._link = link
        self._eager_link = link if isinstance(link, EagerLink) else None
        self._handlers = handlers
        self._limits = limits
        self._nursery = nursery
        self._peer = Peer(role)
        self._outbox = Outbox(limits)
        self._call_places = trio.lowlevel.ParkingLot()
        self._waiting: OrderedDict[RequestContext, None] = OrderedDict()
        self._running = 0
        self._idle = trio.lowlevel.ParkingLot()
        self._owners_variables = contextvars.copy_context()
        self._reader_scope = trio.CancelScope()
        self._writer_scope = trio.CancelScope()
        self._writing = False
        self._end_of_input = False
        self._loss: ConnectionLost | None = None
        self._lost = trio.Event()
        self._frames_sent = 0
        self._frames_received = 0
        self._requests_refused = 0

    # ---- what callers use ---------------------------------------------------------------------------

    @property
    def loss(self) -> ConnectionLost | None:
        """Why the connection is over; None while it is not."""
        return self._loss

    @property
    def link(self) -> Link:
        """The transport underneath."""
        return self._link

    @property
    def abandoned_calls(self) -> frozenset[int]:
        """The ids of calls that were given up after they were sent, and that the peer has not answered."""
        return self._peer.abandoned

    @property
    def peer_extensions(self) -> frozenset[str]:
        """What the peer understands beyond the specification (docs/protocol.md, section 8)."""
        return self._peer.peer_extensions

    @peer_extensions.setter
    def peer_extensions(self, extensions: frozenset[str]) -> None:
        self._peer.peer_extensions = extensions

    @overload
    async def call(
        self, method: Method[ParamsT, ResultT], params: ParamsT, *, timeout_s: float | None = None
    ) -> ResultT: ...

    @overload
    async def call(self, method: str, params: Any = UNSET, *, timeout_s: float | None = None) -> Any: ...

    async def call(
        self, method: Method[Any, Any] | str, params: Any = UNSET, *, timeout_s: float | None = None
    ) -> Any:
        """Send a request and wait for its answer.

        A cancelled or timed-out caller leaves at once. If its frame has not been begun, it is withdrawn and
        nothing is sent; otherwise the peer is told, where it understands, and the late answer is dropped.

        Returns:
            The result, converted to the method's result type; as decoded for a method given by name.

        Raises:
            CallFailed: the peer answered with an error (:class:`Overloaded`, :class:`CallCancelled` by code).
            CallTimeout: no answer came within ``timeout_s`` seconds.
            ConnectionLost: the connection ended before the answer came, or is over already.
            RemoteProtocolError: the answer does not fit the method, or is none.
            LocalProtocolError: ``params`` are no JSON; nothing was sent.
        """
        name = method if isinstance(method, str) else method.name
        if timeout_s is None:
            result = await self._exchange(name, params)
        else:
            result: Any = UNSET
            with trio.move_on_after(timeout_s):
                result = await self._exchange(name, params)
            if result is UNSET:
                raise CallTimeout(name, timeout_s)
        return result if isinstance(method, str) else method.read_result(result)

    async def notify(self, method: NotificationMethod[ParamsT] | str, params: Any = UNSET) -> None:
        """Queue a notification, waiting while the outbox is full.

        Raises:
            ConnectionLost: the connection is over.
            LocalProtocolError: ``params`` are no JSON; nothing was sent.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._wait_for_room()
        self._post_notification(method, params)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def notify_nowait(self, method: NotificationMethod[ParamsT] | str, params: Any = UNSET) -> bool:
        """Queue a notification if there is room. False if there is none: nothing was sent.

        Raises as :meth:`notify` does.
        """
        self._check_open()
        if self._outbox.is_full:
            return False
        self._post_notification(method, params)
        return True

    async def wait_lost(self) -> ConnectionLost:
        """Wait until the connection is over; return why."""
        await self._lost.wait()
        return cast("ConnectionLost", self._loss)

    def statistics(self) -> ConnectionStatistics:
        """What the connection holds and has seen."""
        return ConnectionStatistics(
            phase=self._peer.phase,
            calls_waiting=self._peer.call_count,
            calls_abandoned=self._peer.abandoned_count,
            requests_running=self._running,
            requests_waiting=len(self._waiting),
            outbox_frames=self._outbox.pending_frames,
            outbox_bytes=self._outbox.pending_bytes,
            frames_sent=self._frames_sent,
            frames_received=self._frames_received,
            requests_refused=self._requests_refused,
            dropped=dict(self._peer.dropped),
        )

    def __repr__(self) -> str:
        state = f"lost: {self._loss.reason.value}" if self._loss else self._peer.phase.value
        return (
            f"<Connection {self._peer.role.value} {state}: {self._peer.call_count} calls waiting, "
            f"{self._running} requests running, {len(self._waiting)} waiting, "
            f"{self._outbox.pending_bytes} bytes to send>"
        )

    # ---- calls --------------------------------------------------------------------------------------

    async def _exchange(self, method: str, params: Any) -> Any:
        try:
            self._check_answerable()
            while self._outbox.is_full or self._peer.call_count >= self._limits.max_calls:
                if self._outbox.is_full:
                    await self._outbox.wait_for_room()
                else:
                    await self._call_places.park()
                self._check_answerable()
            call, frame = self._peer.call(method, params)
        except BaseException:
            # A place may have been this caller's to take: it is the next one's now.
            if self._peer.call_count < self._limits.max_calls:
                self._call_places.unpark()
            self._outbox.tell_of_room()
            raise
        waiting = call.waiter = WaitingCall(call, trio.lowlevel.current_task())
        self._outbox.post_call(waiting, frame)

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._give_up(waiting)
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    async def _wait_for_room(self) -> None:
        try:
            while self._outbox.is_full:
                await self._outbox.wait_for_room()
        finally:
            self._outbox.tell_of_room()

    def _give_up(self, waiting: WaitingCall) -> None:
        if self._outbox.withdraw(waiting):
            self._peer.forget(waiting.call)
        elif (cancel := self._peer.abandon(waiting.call)) is not None:
            # Not refused where the outbox overruns: that many calls are given up at once is not the peer's
            # fault, and there is one of these at most for each call in flight.
            self._outbox.post(cancel)
        self._call_places.unpark()

    def _wake(self, waiting: WaitingCall, value: outcome.Outcome[Any]) -> None:
        trio.lowlevel.reschedule(waiting.task, value)
        self._call_places.unpark()

    def _wake_with_error(self, event: AnsweredWithError) -> None:
        self._wake(event.call.waiter, outcome.Error(failure_of_call(event)))

    def _post_notification(self, method: NotificationMethod[Any] | str, params: Any) -> None:
        self._check_open()
        self._outbox.post(self._peer.notify(method if isinstance(method, str) else method.name, params))

    def _check_open(self) -> None:
        if self._loss is not None:
            raise ConnectionLost(self._loss.reason, self._loss.detail)

    def _check_answerable(self) -> None:
        self._check_open()
        if self._end_of_input:
            raise ConnectionLost(LossReason.PEER_CLOSED, "the peer has closed its end and cannot answer")

    # ---- the peer's requests ------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        if type(event) is InboundRequest:
            self._admit(event)
        elif type(event) is Answered:
            self._wake(event.call.waiter, outcome.Value(event.result))
        elif type(event) is AnsweredWithError:
            self._wake_with_error(event)
        elif type(event) is Notification:
            self._hear(event)
        elif type(event) is CancelReceived:
            self._cancel(event.request)
        elif type(event) is Reply:
            _log.debug("refused what the peer sent: %s %s", event.error.message, event.error.data)
            self._post(event.frame)
        else:
            _log.debug("dropped (%s): %s", event.why, event.detail)

    def _admit(self, inbound: InboundRequest) -> None:
        context = inbound.handler = RequestContext(self, inbound)
        if self._running < self._limits.max_handlers:
            self._begin(context)
        elif len(self._waiting) < self._limits.max_waiting:
            self._waiting[context] = None
        else:
            self._requests_refused += 1
            data = {"retry_after_s": RETRY_AFTER_S}
            self._fail(context, RpcError(ErrorCode.OVERLOADED, "Too many requests are waiting", data))

    def _begin(self, context: RequestContext) -> None:
        # Whoever calls this has context variables of its own, and a handler may set some: each handler
        # begins with those of the task that opened the connection.
        self._owners_variables.copy().run(self._handle, context)

    def _handle(self, context: RequestContext) -> None:
        inbound = context.inbound
        try:
            result = self._handlers.for_request(inbound.method)(inbound.params, context)
        except Exception as exc:  # noqa: BLE001 — whatever a handler raises is its request's answer
            self._fail(context, exc)
            return
        if iscoroutine(result):
            # The scope exists before the task does: a cancellation right behind its request is not lost.
            scope = context.scope = trio.CancelScope()
            self._running += 1
            self._nursery.start_soon(self._run, context, scope, result, name=inbound.method)
        else:
            self._answer(context, result)

    async def _run(
        self, context: RequestContext, scope: trio.CancelScope, handler: Coroutine[Any, Any, Any]
    ) -> None:
        try:
            try:
                with scope:
                    result = await handler
                    if self._outbox.is_full:
                        # Keeping the place until there is room is what holds a fast peer back.
                        await self._wait_for_room()
                    if self._running == 1:  # nobody's answer could go with it
                        self._act_and_send(partial(self._answer, context, result))
                    else:
                        self._answer(context, result)
            except Exception as exc:  # noqa: BLE001 — whatever a handler raises is its request's answer
                self._fail(context, exc)
            else:
                if scope.cancelled_caught:
                    self._fail(context, RpcError(ErrorCode.REQUEST_CANCELLED, "Request cancelled"))
        finally:
            self._running -= 1
        # Not in the `finally`: where this task is cancelled from outside, nothing new is to begin.
        while self._waiting and self._running < self._limits.max_handlers:
            self._begin(self._waiting.popitem(last=False)[0])

    def _cancel(self, inbound: InboundRequest) -> None:
        context = cast("RequestContext", inbound.handler)
        if context.scope is not None:
            context.scope.cancel(reason=f"the peer cancelled request {inbound.id!r}")
        else:
            del self._waiting[context]
            self._fail(context, RpcError(ErrorCode.REQUEST_CANCELLED, "Request cancelled"))

    def _hear(self, notification: Notification) -> None:
        handler = self._handlers.for_notification(notification.method)
        if handler is None:
            return
        try:
            handler(notification.params, self)
        except RpcError as exc:
            _log.warning("dropped a notification: %s", exc.message)
        except Exception:  # noqa: BLE001 — a notification has nobody to tell but the log
            _log.exception("the handler of notification %r failed", notification.method)

    def _post(self, frame: bytes | None) -> None:
        """Queue an answer, whether there is room or not: the reader, which gives most, cannot wait."""
        if frame is None:
            return
        if self._outbox.is_overrun:
            self.lose(LossReason.SEND_STALLED, "the peer sends but does not read: the outbox is full")
        else:
            self._outbox.post(frame)

    def _answer(self, context: RequestContext, result: Any) -> None:
        if self._loss is not None:
            return
        try:
            frame = self._peer.answer(context.inbound, result)
        except LocalProtocolError as exc:
            self._fail(context, exc)
            return
        # The two refer to each other, and to the params: what was answered is to be gone at once.
        context.inbound.handler = None
        self._post(frame)

    def _fail(self, context: RequestContext, exc: Exception) -> None:
        inbound = context.inbound
        if self._loss is not None or self._peer.is_answered(inbound):
            return
        try:
            frame = self._peer.fail(inbound, error_for_peer(exc, inbound))
        except LocalProtocolError as unsayable:
            frame = self._peer.fail(inbound, error_for_peer(unsayable, inbound))
        inbound.handler = None
        self._post(frame)

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
                    self._act_and_send(partial(self._take_frames, frames))
                    # While nothing comes, nothing of what came is to be held on to.
                    del frames
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self.lose(LossReason.STREAM_ERROR, f"reading failed: {exc!r}")
                return
            await self._end_input()

    def _take_frames(self, frames: list[bytes | FrameRejected]) -> None:
        self._frames_received += len(frames)
        for frame in frames:
            for event in self._peer.events(frame):
                self._take(event)

    def _act_and_send(self, act: Callable[[], object]) -> None:
        """Do something, and send what comes of it at once, if the link and the writer let us."""
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
            if self._is_idle:
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
                    if self._is_idle:
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

    async def drain(self) -> None:
        """Refuse new requests, and wait at most ``drain_s`` until what is in flight is answered and sent."""
        self._peer.drain()
        with trio.move_on_after(self._limits.drain_s):
            while self._loss is None and not self._is_idle:
                await self._idle.park()

    @property
    def _is_idle(self) -> bool:
        return not (self._running or self._waiting or self._writing or self._outbox.pending_frames)

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
        """End the connection now: wake every caller, cancel every handler. Does nothing the second time.

        All of it happens before anything else runs; closing the link is the owner's business, and later.
        """
        if self._loss is not None:
            return
        self._loss = ConnectionLost(reason, detail)
        calls, requests = self._peer.close()
        self._outbox.close()
        for call in calls:
            self._wake(call.waiter, outcome.Error(ConnectionLost(reason, detail)))
        self._waiting.clear()
        for inbound in requests:
            scope = cast("RequestContext", inbound.handler).scope
            if scope is not None:
                scope.cancel(reason=f"connection lost: {reason.value}")
        self._call_places.unpark_all()
        self._idle.unpark_all()
        self._lost.set()
        self._reader_scope.cancel(reason=reason.value)
        self._writer_scope.cancel(reason=reason.value)


@asynccontextmanager
async def open_connection(
    link: Link,
    handlers: Handlers,
    *,
    role: Role = Role.PLAIN,
    limits: Limits | None = None,
) -> AsyncGenerator[Connection]:
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
            connection = Connection(link, handlers, role=role, limits=limits or Limits(), nursery=nursery)
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
