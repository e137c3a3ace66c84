"""Calls out and handlers in, for both roles, whatever carries the frames."""

from __future__ import annotations

import contextvars
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from inspect import iscoroutine
from typing import Any, TypeVar, cast, overload

import outcome
import trio
from msgspec import UNSET

from stepflow_trio.engine.failures import error_for_peer, failure_of_call
from stepflow_trio.engine.handlers import Handlers, RequestContext
from stepflow_trio.engine.limits import Limits
from stepflow_trio.engine.link import Arrival
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
from stepflow_trio.protocol.messages import Notification, RequestId
from stepflow_trio.protocol.methods import Method, NotificationMethod
from stepflow_trio.protocol.peer import (
    Answered,
    AnsweredWithError,
    CallLost,
    CancelReceived,
    Event,
    InboundRequest,
    Peer,
    Reply,
)

ParamsT = TypeVar("ParamsT")
ResultT = TypeVar("ResultT")

RETRY_AFTER_S = 1.0
"""The hint that goes with −32304: about the time in which a full queue of short requests empties."""

_log = logging.getLogger("stepflow_trio.engine")


class Connection:
    """One end of a JSON-RPC connection: what is called, what is handled, and what that leaves to be sent.

    Any number of tasks may use it at once. Whoever owns it brings what arrives (:meth:`take`) and sends what
    is to be sent (:meth:`take_outgoing`): over a link that is :func:`open_connection`'s business, for a POST
    the HTTP endpoint's.

    Args:
        handlers: what the peer may ask for.
        peer: this end as data.
        limits: its bounds.
        nursery: where handlers run that need a task. Without one they wait for :meth:`run_in`.
    """

    def __init__(
        self, handlers: Handlers, *, peer: Peer, limits: Limits, nursery: trio.Nursery | None = None
    ) -> None:
        self._handlers = handlers
        self._limits = limits
        self._nursery = nursery
        self._peer = peer
        self._outbox = Outbox(limits)
        self._call_places = trio.lowlevel.ParkingLot()
        self._waiting: OrderedDict[RequestContext, None] = OrderedDict()
        self._unstarted: list[tuple[RequestContext, trio.CancelScope, Coroutine[Any, Any, Any]]] = []
        self._running = 0
        self._idle = trio.lowlevel.ParkingLot()
        self._owners_variables = contextvars.copy_context()
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
    def abandoned_calls(self) -> frozenset[RequestId]:
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
            if not self._peer.call_count:
                # Its frame may be sent at once: where the caller is cancelled already, it is not to be.
                await trio.lowlevel.checkpoint_if_cancelled()
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
        self._post_call(waiting, frame)

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._give_up(waiting)
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    def _post_call(self, waiting: WaitingCall, frame: bytes) -> None:
        self._outbox.post_call(waiting, frame)

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
        if self._call_places:
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

    # ---- what arrives -------------------------------------------------------------------------------

    def take(self, arrivals: Sequence[Arrival]) -> None:
        """Act on what has come from the peer, frames or what they were decoded to. Never raises."""
        self._frames_received += len(arrivals)
        for arrival in arrivals:
            for event in self._peer.events(arrival):
                self._take(event)

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
        elif type(event) is CallLost:
            self._wake(event.call.waiter, outcome.Error(event.error))
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
            if self._nursery is None:
                self._unstarted.append((context, scope, result))
            else:
                self._nursery.start_soon(self._run, context, scope, result, name=inbound.method)
        else:
            self._answer(context, result)

    def run_in(self, nursery: trio.Nursery) -> None:
        """Start the handlers that wait for a nursery, and run further ones in it, too."""
        self._nursery = nursery
        for context, scope, handler in self._unstarted:
            nursery.start_soon(self._run, context, scope, handler, name=context.method)
        self._unstarted.clear()

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
            _log.debug("dropped a notification: %s", exc.message)
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
            self._fail(context, RpcError(ErrorCode.INTERNAL_ERROR, f"The answer cannot be sent: {exc}"))
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

    # ---- what is to be sent -------------------------------------------------------------------------

    def take_outgoing(self) -> list[bytes]:
        """Take frames to send, as many as go well into one write; what ends something comes first."""
        frames = self._outbox.take()
        self._frames_sent += len(frames)
        if self.is_idle:
            self._idle.unpark_all()
        return frames

    async def wait_outgoing(self) -> None:
        """Wait until there may be something to send, or the connection is over."""
        await self._outbox.wait_for_frames()

    @property
    def is_settled(self) -> bool:
        """Whether every request of the peer's is answered, though not every answer may have been sent."""
        return not (self._running or self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether nothing of the peer's is in hand and nothing waits to be sent."""
        return not (self._running or self._waiting or self._outbox.pending_frames)

    def _act_and_send(self, act: Callable[[], object]) -> None:
        """Do something, and send what comes of it at once where that is possible."""
        act()

    # ---- the end ------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Refuse new requests, and wait at most ``drain_s`` until what is in flight is answered and sent."""
        self._peer.drain()
        with trio.move_on_after(self._limits.drain_s):
            while self._loss is None and not self.is_idle:
                await self._idle.park()

    def lose(self, reason: LossReason, detail: str) -> None:
        """End the connection now: wake every caller, cancel every handler. Does nothing the second time.

        All of it happens before anything else runs; closing the link is the owner's business, and later.
        """
        if self._loss is not None:
            return
        self._loss = ConnectionLost(reason, detail)
        # First the handlers: what they called is given up with them, and they see that they are cancelled.
        for inbound in self._peer.requests:
            scope = cast("RequestContext", inbound.handler).scope
            if scope is not None:
                scope.cancel(reason=f"connection lost: {reason.value}")
        calls, _ = self._peer.close()
        self._outbox.close()
        for call in calls:
            self._wake(call.waiter, outcome.Error(ConnectionLost(reason, detail)))
        self._waiting.clear()
        self._call_places.unpark_all()
        self._idle.unpark_all()
        self._lost.set()
        for _, _, handler in self._unstarted:
            handler.close()
        self._unstarted.clear()
