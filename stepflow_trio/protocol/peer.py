"""One end of a connection as data: which calls wait, which requests run, what may be said next.

A :class:`Peer` knows no bytes' way and no clock. Frames go in through :meth:`Peer.receive` and come back as
events; intentions go in through the other methods and come back as frames to send. Each direction has its
own table, and only the methods here change them.

Invariants, checked after every step of the state machine in ``tests/protocol/test_peer_machine.py``:

I1. Every id in the table of calls was allocated here and is unanswered.
I2. A call leaves its table exactly once: answered, failed, forgotten or closed; an abandoned one stays as a
    tombstone, of which at most ``max_abandoned`` are kept, so that its late answer is known as late.
I3. A request is in its table from its arrival until its answer is encoded, and is answered at most once.
I4. ``CLOSED`` means that both tables are empty and stay so.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeAlias, cast, final

from msgspec import UNSET, Struct, UnsetType

from stepflow_trio.errors import ConnectionLost, ErrorCode, LocalProtocolError, LossReason, StepflowError
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.batches import BATCHES_FULL, MAX_BATCHED_BYTES, BatchAnswer, BatchedBytes
from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.protocol.messages import (
    Batch,
    Decoded,
    ErrorObject,
    Failure,
    Malformed,
    Message,
    Notification,
    Request,
    RequestId,
    Success,
)

CANCEL_REQUEST = "$/cancelRequest"
"""LSP's name and shape (docs/protocol.md, section 8). Sent only to a peer that announced ``cancel``."""

MAX_ABANDONED = 1024
"""Tombstones of abandoned calls kept, so that late answers are counted as late and not as unknown."""

_MAX_QUOTED_CHARS = 80


class Role(enum.Enum):
    """Which end of a connection this is; it decides what is accepted before initialization."""

    RUNTIME = "runtime"
    WORKER = "worker"
    PLAIN = "plain"
    """Plain JSON-RPC 2.0: no initialization, everything is accepted from the start."""


class Phase(enum.Enum):
    """How far the connection has come (docs/protocol.md, section 2)."""

    NEW = "new"
    INITIALIZING = "initializing"
    """``initialize`` was answered, ``initialized`` has not come."""
    READY = "ready"
    DRAINING = "draining"
    """What is in flight may finish; new requests from the peer are refused."""
    CLOSED = "closed"


# What ends a phase: (role, phase, what happened) → the phase after it. Anything else changes nothing.
TRANSITIONS: dict[tuple[Role, Phase, str], Phase] = {
    (Role.WORKER, Phase.NEW, "answered initialize"): Phase.INITIALIZING,
    (Role.WORKER, Phase.INITIALIZING, "received initialized"): Phase.READY,
    (Role.RUNTIME, Phase.NEW, "sent initialized"): Phase.READY,
}

# Which requests are accepted before READY. In READY every request is, in DRAINING and CLOSED none.
ACCEPTED_EARLY: dict[Role, frozenset[str]] = {
    Role.WORKER: frozenset({"initialize"}),
    Role.RUNTIME: frozenset(),
    Role.PLAIN: frozenset(),
}


@final
class Call:
    """A request of ours that waits for its answer. ``waiter`` is the caller's own, untouched here."""

    __slots__ = ("id", "method", "waiter")

    def __init__(self, id_: RequestId, method: str) -> None:
        self.id: RequestId = id_
        self.method = method
        self.waiter: Any = None

    def __repr__(self) -> str:
        return f"<Call {self.id} {self.method}>"


@final
class InboundRequest:
    """A request of the peer's that is to be answered. ``handler`` is the answerer's own, untouched here."""

    __slots__ = ("_batch", "_slot", "handler", "id", "method", "params")

    def __init__(
        self, request: Request, batch: BatchAnswer | None = None, slot: int = 0, handler: Any = None
    ) -> None:
        self.id = request.id
        self.method = request.method
        self.params: dict[str, Any] | list[Any] | UnsetType = request.params
        self.handler = handler
        self._batch = batch
        self._slot = slot

    def unfit(self, frame: bytes) -> ErrorObject | None:
        """The error to answer with where the encoded answer cannot be sent in the request's batch."""
        return None if self._batch is None else self._batch.unfit(frame)

    def settle(self, frame: bytes) -> bytes | None:
        """Turn the encoded answer into what is to be sent now: a batch is answered whole."""
        return frame if self._batch is None else self._batch.fill(self._slot, frame)

    def __repr__(self) -> str:
        return f"<InboundRequest {self.id!r} {self.method}>"


@final
class Answered(Struct, frozen=True):
    """The peer answered ``call`` with ``result``."""

    call: Call
    result: Any


@final
class AnsweredWithError(Struct, frozen=True):
    """The peer answered ``call`` with ``error``; or with what is no answer, and ``garbled`` is true."""

    call: Call
    error: ErrorObject
    garbled: bool = False


@final
class CallLost(Struct, frozen=True):
    """No answer can come to ``call``, because of ``error``; the connection goes on."""

    call: Call
    error: StepflowError


@final
class CancelReceived(Struct, frozen=True):
    """The peer gives up ``request``, which is in flight."""

    request: InboundRequest


@final
class Reply(Struct, frozen=True):
    """``frame`` is to be sent; nothing else follows from what arrived."""

    frame: bytes
    error: ErrorObject


@final
class Dropped(Struct, frozen=True):
    """What arrived has no effect and gets no answer; ``why`` names the counter that was raised."""

    why: str
    detail: str


Event: TypeAlias = (
    InboundRequest | Notification | Answered | AnsweredWithError | CallLost | CancelReceived | Reply | Dropped
)


@final
class Unanswerable(Struct, frozen=True):
    """Arrives in the place of an answer: the call ``id`` was not delivered, or its answer cannot come."""

    id: RequestId
    error: StepflowError


Arrival: TypeAlias = bytes | FrameRejected | Unanswerable | Decoded
"""What a link can bring: a frame, or what it was decoded to; bytes that are none; a call's end on its way."""


class Peer:
    """One end of a JSON-RPC connection, without I/O.

    Args:
        role: which end this is.
        id_prefix: makes the ids of calls strings that begin so, where the peer answers several ends at one
            place; otherwise they are integers.
        max_abandoned: tombstones kept for calls that were given up.
        max_nesting: deepest JSON nesting accepted.
        max_batch_items: most messages accepted in one array.
        max_batched_bytes: answers held until the rest of their batches is answered. Over it, further answers
            in batches are errors instead, and further batches are refused.
        error_details: whether ``data`` of the errors raised here says what was wrong with a message. The
            JSON-RPC 2.0 specification's own examples have none.
    """

    def __init__(
        self,
        role: Role = Role.PLAIN,
        *,
        id_prefix: str = "",
        max_abandoned: int = MAX_ABANDONED,
        max_nesting: int = codec.MAX_NESTING,
        max_batch_items: int = codec.MAX_BATCH_ITEMS,
        max_batched_bytes: int = MAX_BATCHED_BYTES,
        error_details: bool = True,
    ) -> None:
        self.role = role
        self.phase = Phase.READY if role is Role.PLAIN else Phase.NEW
        self.peer_extensions: frozenset[str] = frozenset({"cancel"}) if role is Role.PLAIN else frozenset()
        """What the peer announced beyond the specification (docs/protocol.md, section 8)."""
        self.dropped: dict[str, int] = {}
        """How often something arrived that had no effect, by :attr:`Dropped.why`."""
        self._calls: dict[RequestId, Call | None] = {}  # None: abandoned
        self._abandoned: deque[RequestId] = deque()
        self._requests: dict[RequestId, InboundRequest] = {}
        self._last_number = 0
        self._id_prefix = id_prefix
        self._hung_up = False
        self._max_abandoned = max_abandoned
        self._max_nesting = max_nesting
        self._max_batch_items = max_batch_items
        self._batched_bytes = BatchedBytes(max_batched_bytes)
        self._error_details = error_details

    # ---- what is where ------------------------------------------------------------------------------

    @property
    def calls(self) -> list[Call]:
        """Our calls that wait for an answer."""
        return [call for call in self._calls.values() if call is not None]

    @property
    def call_count(self) -> int:
        """How many of our calls wait for an answer."""
        return len(self._calls) - len(self._abandoned)

    @property
    def abandoned_count(self) -> int:
        """How many tombstones are kept."""
        return len(self._abandoned)

    @property
    def abandoned(self) -> frozenset[RequestId]:
        """The ids of the tombstones."""
        return frozenset(self._abandoned)

    @property
    def requests(self) -> list[InboundRequest]:
        """The peer's requests that we have not answered."""
        return list(self._requests.values())

    @property
    def request_count(self) -> int:
        """How many of the peer's requests we have not answered."""
        return len(self._requests)

    @property
    def batched_bytes(self) -> int:
        """Bytes of answers that wait for the rest of their batches."""
        return self._batched_bytes.held

    def is_answered(self, request: InboundRequest) -> bool:
        """Whether the request is over: answered, or ended by the end of the connection."""
        return self._requests.get(request.id) is not request

    # ---- our side -----------------------------------------------------------------------------------

    def call(self, method: str, params: Any = UNSET) -> tuple[Call, bytes]:
        """Begin a call; return its record and the frame to send.

        Raises:
            LocalProtocolError: ``params`` cannot be encoded; nothing has changed.
            ConnectionLost: the connection is closed, or :meth:`hang_up` said that no answer can come.
        """
        self._check_open()
        if self._hung_up:
            raise ConnectionLost(LossReason.PEER_CLOSED, "nothing more will arrive, so no answer either")
        number = self._last_number + 1
        id_ = f"{self._id_prefix}{number}" if self._id_prefix else number
        frame = codec.encode_request(method, params, id_)
        self._last_number = number
        call = self._calls[id_] = Call(id_, method)
        return call, frame

    def notify(self, method: str, params: Any = UNSET) -> bytes:
        """The frame of a notification.

        Raises:
            LocalProtocolError: ``params`` cannot be encoded; nothing has changed.
            ConnectionLost: the connection is closed.
        """
        self._check_open()
        frame = codec.encode_notification(method, params)
        self._advance(f"sent {method}")
        return frame

    def forget(self, call: Call) -> None:
        """Take back a call whose frame was never sent: nobody will answer it.

        Raises:
            LocalProtocolError: the call is not waiting.
        """
        self._check_waiting(call)
        del self._calls[call.id]

    def abandon(self, call: Call) -> bytes | None:
        """Give up a call whose frame was sent, or may have been.

        Returns:
            The frame that tells the peer, or None where it would not understand.

        Raises:
            LocalProtocolError: the call is not waiting.
        """
        self._check_waiting(call)
        self._calls[call.id] = None
        self._abandoned.append(call.id)
        if len(self._abandoned) > self._max_abandoned:
            del self._calls[self._abandoned.popleft()]
        if "cancel" not in self.peer_extensions:
            return None
        return codec.encode_notification(CANCEL_REQUEST, {"id": call.id})

    def answer(self, request: InboundRequest, result: Any) -> bytes | None:
        """Answer a request; return the frame to send, or None while the rest of its batch is unanswered.

        Where ``result`` does not fit into the answer to its batch, an error takes its place.

        Raises:
            LocalProtocolError: the request was answered already, or ``result`` cannot be encoded: then it
                is still in flight.
        """
        self._check_unanswered(request)
        frame = codec.encode_success(result, request.id)
        if unfit := request.unfit(frame):
            return self.fail(request, unfit)
        self._end(request)
        self._advance(f"answered {request.method}")
        return request.settle(frame)

    def fail(self, request: InboundRequest, error: ErrorObject) -> bytes | None:
        """Answer a request with an error. Returns and raises as :meth:`answer` does."""
        self._check_unanswered(request)
        frame = codec.encode_failure(error, request.id)
        if unfit := request.unfit(frame):
            frame = codec.encode_failure(unfit, request.id)
        self._end(request)
        return request.settle(frame)

    def drain(self) -> None:
        """Refuse new requests of the peer from now on. What is in flight is unaffected."""
        if self.phase is not Phase.CLOSED:
            self.phase = Phase.DRAINING

    def close(self) -> tuple[list[Call], list[InboundRequest]]:
        """End everything; return the calls that will never be answered and the requests not to answer."""
        ended = self.calls, self.requests
        self._calls.clear()
        self._abandoned.clear()
        for request in ended[1]:
            self._end(request)
        self._batched_bytes.held = 0
        self.phase = Phase.CLOSED
        return ended

    def hang_up(self) -> list[Call]:
        """Note that nothing more will arrive; return the calls that will never be answered.

        The peer's requests stay: its other ear may be open.
        """
        ended = self.calls
        self._calls.clear()
        self._abandoned.clear()
        self._hung_up = True
        self.drain()
        return ended

    # ---- the peer's side ----------------------------------------------------------------------------

    def receive(self, arrival: Arrival) -> list[Event]:
        """Take what has arrived; return what follows from it, in order. Never raises."""
        return [*self.events(arrival)]

    def events(self, arrival: Arrival) -> Iterator[Event]:
        """As :meth:`receive`, but an event is found out when it is asked for.

        Whoever acts on each event before asking for the next one is never told what that act has made
        untrue: that a request is to be cancelled which was just answered, or that a call is answered which
        was just given up. All of them must be asked for.
        """
        if self.phase is Phase.CLOSED:
            return
        frame = b""
        if type(arrival) is bytes:
            frame = arrival
            message = codec.decode(
                frame, max_nesting=self._max_nesting, max_batch_items=self._max_batch_items
            )
        elif type(arrival) is FrameRejected:
            # What stands between keeps the ends apart, as no JSON and as what the tail is contained in.
            frame = arrival.head + b"\0," + arrival.tail
            detail = {"detail": arrival.detail}
            message = Malformed(ErrorObject(ErrorCode.INVALID_REQUEST, "Invalid Request", detail))
        elif type(arrival) is Unanswerable:
            call = self._settle(arrival.id)
            yield CallLost(call, arrival.error) if type(call) is Call else call
            return
        else:
            # Not narrowed by itself: `bytes` could have subclasses.
            message = cast("Decoded", arrival)
        if type(message) is Malformed and (begun := self._answers_begun(arrival, frame, message)):
            for id_ in begun:
                yield self._settle_with_error(id_, message.error, garbled=True)
            return
        if type(message) is not Batch:
            yield self._take(message, None, 0)
            return
        answer = BatchAnswer(self._batched_bytes)
        # All slots are reserved before the first is filled, or an early error would complete the batch.
        slots = [answer.reserve() if _wants_answer(item) else 0 for item in message.items]
        for item, slot in zip(message.items, slots, strict=True):
            yield self._take(item, answer, slot)
            if cast("Phase", self.phase) is Phase.CLOSED:
                return

    def _take(self, message: Message | Malformed, batch: BatchAnswer | None, slot: int) -> Event:
        if type(message) is Request:
            return self._take_request(message, batch, slot)
        if type(message) is Success:
            call = self._settle(message.id)
            return Answered(call, message.result) if type(call) is Call else call
        if type(message) is Failure:
            return self._take_failure(message)
        if type(message) is Notification:
            return self._take_notification(message)
        return self._take_malformed(message, batch, slot)

    def _take_request(self, request: Request, batch: BatchAnswer | None, slot: int) -> Event:
        if self.phase is Phase.DRAINING:
            error = ErrorObject(ErrorCode.OVERLOADED, "Shutting down", {"retry_after_s": 1.0})
        elif self.phase is not Phase.READY and request.method not in ACCEPTED_EARLY[self.role]:
            detail = f"{_quoted(request.method)} came before the connection was initialized"
            error = ErrorObject(ErrorCode.NOT_INITIALIZED, "Not initialized", {"detail": detail})
        elif (self.role, self.phase, request.method) == (Role.WORKER, Phase.READY, "initialize"):
            # The handlers that run rely on what was agreed on.
            detail = "the connection is initialized already"
            error = ErrorObject(ErrorCode.INVALID_REQUEST, "Invalid Request", {"detail": detail})
        elif batch is not None and self._batched_bytes.held > self._batched_bytes.limit:
            error = BATCHES_FULL
        elif request.id in self._requests:
            detail = f"a request with id {_quoted(request.id)} is still in flight"
            error = ErrorObject(ErrorCode.INVALID_REQUEST, "Invalid Request", {"detail": detail})
        else:
            inbound = self._requests[request.id] = InboundRequest(request, batch, slot)
            return inbound
        return self._reject(error, request.id, batch, slot)

    def _take_notification(self, notification: Notification) -> Event:
        if notification.method == CANCEL_REQUEST:
            return self._take_cancel(notification)
        self._advance(f"received {notification.method}")
        if self.phase in (Phase.NEW, Phase.INITIALIZING):
            return self._drop("early_notification", f"{_quoted(notification.method)} before initialization")
        return notification

    def _take_cancel(self, notification: Notification) -> Event:
        params = notification.params
        id_: Any = params.get("id") if type(params) is dict else None
        if type(id_) is not str and type(id_) is not int:
            return self._drop("malformed_cancel", f"{CANCEL_REQUEST} without a usable id")
        request = self._requests.get(id_)
        if request is None:
            return self._drop("late_cancel", f"{CANCEL_REQUEST} for {_quoted(id_)}, which is not in flight")
        return CancelReceived(request)

    def _take_failure(self, failure: Failure) -> Event:
        if failure.id is None:
            error = failure.error
            detail = f"the peer could not read a message of ours: {_quoted(error.message)} ({error.code})"
            return self._drop("peer_rejection", detail)
        return self._settle_with_error(failure.id, failure.error, garbled=False)

    def _take_malformed(self, malformed: Malformed, batch: BatchAnswer | None, slot: int) -> Event:
        if not malformed.is_response:
            return self._reject(malformed.error, malformed.id, batch, slot)
        # An answer that cannot be read is an answer all the same: its caller must not wait for ever.
        if malformed.id is not None and malformed.id in self._calls:
            return self._settle_with_error(malformed.id, malformed.error, garbled=True)
        return self._drop("malformed_answer", str(malformed.error.data))

    def _answers_begun(self, arrival: object, frame: bytes, malformed: Malformed) -> list[int]:
        """The calls that a frame which cannot be read seems to answer: no other answer will come to them."""
        if type(arrival) is bytes and malformed.error.code != ErrorCode.PARSE_ERROR:
            return []
        return [id_ for id_ in codec.answers_begun(frame) if id_ in self._calls]

    def _settle(self, id_: RequestId) -> Call | Dropped:
        call = self._calls.pop(id_, UNSET)
        if type(call) is Call:
            return call
        if call is None:
            self._abandoned.remove(id_)
            return self._drop("late_answer", f"an answer to call {_quoted(id_)}, which was given up")
        detail = f"an answer to {_quoted(id_)}, which was never asked or is answered"
        return self._drop("unknown_answer", detail)

    def _settle_with_error(self, id_: RequestId, error: ErrorObject, *, garbled: bool) -> Event:
        call = self._settle(id_)
        return AnsweredWithError(call, error, garbled) if type(call) is Call else call

    def _reject(
        self, error: ErrorObject, id_: RequestId | None, batch: BatchAnswer | None, slot: int = 0
    ) -> Event:
        told = error if self._error_details else ErrorObject(error.code, error.message)
        frame = codec.encode_failure(told, id_)
        if batch is not None:
            whole = batch.fill(slot, frame)
            if whole is None:
                return self._drop("rejected_in_batch", f"{error.message}: {error.data}")
            frame = whole
        return Reply(frame, error)

    def _drop(self, why: str, detail: str) -> Dropped:
        self.dropped[why] = self.dropped.get(why, 0) + 1
        return Dropped(why, detail)

    def _end(self, request: InboundRequest) -> None:
        # The id is free before the answer is written: the peer may use it again as soon as it reads us.
        del self._requests[request.id]
        request.params = UNSET  # they may be large, and whoever answers may keep the request for longer

    def _advance(self, what: str) -> None:
        self.phase = TRANSITIONS.get((self.role, self.phase, what), self.phase)

    def _check_open(self) -> None:
        if self.phase is Phase.CLOSED:
            raise ConnectionLost(LossReason.LOCAL_CLOSE, "the connection is closed")

    def _check_waiting(self, call: Call) -> None:
        if self._calls.get(call.id) is not call:
            raise LocalProtocolError(f"{call!r} is not waiting for an answer")

    def _check_unanswered(self, request: InboundRequest) -> None:
        if self.is_answered(request):
            raise LocalProtocolError(f"{request!r} was answered already")

    def __repr__(self) -> str:
        return (
            f"<Peer {self.role.value} {self.phase.value}: {self.call_count} calls waiting, "
            f"{self.request_count} requests running>"
        )


def _quoted(value: RequestId) -> str:
    """A peer's own words for a detail, which is sent and logged: no longer than a line."""
    if type(value) is str and len(value) > _MAX_QUOTED_CHARS:
        return f"{value[:_MAX_QUOTED_CHARS]!r}…"
    return repr(value)


def _wants_answer(item: Message | Malformed) -> bool:
    return type(item) is Request or (type(item) is Malformed and not item.is_response)
