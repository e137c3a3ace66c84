"""A peer against a model of what it promises, for any sequence of what can happen to it.

``STEPFLOW_FUZZ=20`` runs twenty times as many sequences.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import UNSET

from stepflow_trio.errors import ConnectionLost, ErrorCode, LocalProtocolError
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import FrameRejected, LineFramer
from stepflow_trio.protocol.messages import (
    Batch,
    ErrorObject,
    Failure,
    Notification,
    Request,
    RequestId,
    Success,
)
from stepflow_trio.protocol.peer import (
    CANCEL_REQUEST,
    Answered,
    AnsweredWithError,
    Call,
    CancelReceived,
    Dropped,
    Event,
    InboundRequest,
    Peer,
    Phase,
    Reply,
    Role,
)

SCALE = float(os.environ.get("STEPFLOW_FUZZ", "1"))
FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=int(100 * SCALE) or 1)

MAX_ABANDONED = 2
FOREIGN_IDS: list[RequestId] = [1, "1", 2, "2", 0, -1]
METHODS = ["initialize", "components/list", "blobs/put"]
NOTES = ["initialized", "progress_update"]
RESULT = {"r": [1]}
UNENCODABLE = object()

JUNK: list[tuple[bytes, RequestId | None]] = [
    (b"1", None),
    (b"{}", None),
    (b'{"jsonrpc":"2.0","method":"m","id":true}', None),
    (b'{"jsonrpc":"2.0","method":1,"id":5}', 5),
    (b'{"jsonrpc":"2.0","method":"m","params":1,"id":"5"}', "5"),
]

SMALL = st.integers(0, 5)
ITEM = st.tuples(st.integers(0, 5), SMALL, SMALL)
"""What the peer may send, as (kind, which, how): the meaning of the numbers is in ``Model.frame_of``."""


class Owed:
    """What one array of requests is to be answered with."""

    def __init__(self, size: int) -> None:
        self.answers: list[Success | Failure | None] = [None] * size

    @property
    def is_whole(self) -> bool:
        return None not in self.answers


class PeerMachine(RuleBasedStateMachine):
    """Invariants I1 to I4 are those of the module ``stepflow_trio.protocol.peer``."""

    @initialize(role=st.sampled_from(list(Role)), cancels=st.booleans())
    def begin(self, role: Role, cancels: bool) -> None:
        self.peer = Peer(role, max_abandoned=MAX_ABANDONED)
        if role is not Role.PLAIN and cancels:
            self.peer.peer_extensions = frozenset({"cancel"})
        self.cancels = cancels or role is Role.PLAIN
        self.role = role
        self.phase = Phase.READY if role is Role.PLAIN else Phase.NEW
        self.hung_up = False
        self.calls: list[Call] = []
        self.waiting: dict[int, Call] = {}
        self.tombstones: list[int] = []
        self.endings: Counter[int] = Counter()
        self.asked: list[InboundRequest] = []
        self.running: dict[RequestId, tuple[InboundRequest, Owed | None, int]] = {}
        self.answered: Counter[int] = Counter()
        self.dropped: Counter[str] = Counter()

    # ---- our side ---------------------------------------------------------------------------------

    @rule(method=SMALL)
    def call(self, method: int) -> None:
        name = METHODS[method % len(METHODS)]
        if self.phase is Phase.CLOSED or self.hung_up:
            with pytest.raises(ConnectionLost):
                self.peer.call(name)
            return
        call, frame = self.peer.call(name, [method])
        assert codec.decode(frame) == Request(name, [method], call.id)
        assert all(call.id != earlier.id for earlier in self.calls)
        self.calls.append(call)
        self.waiting[call.id] = call

    @rule()
    def call_with_what_is_no_json(self) -> None:
        with pytest.raises((LocalProtocolError, ConnectionLost)):
            self.peer.call("m", UNENCODABLE)

    @rule(which=SMALL)
    def notify(self, which: int) -> None:
        name = NOTES[which % len(NOTES)]
        if self.phase is Phase.CLOSED:
            with pytest.raises(ConnectionLost):
                self.peer.notify(name)
            return
        assert codec.decode(self.peer.notify(name, {})) == Notification(name, {})
        if (self.role, self.phase, name) == (Role.RUNTIME, Phase.NEW, "initialized"):
            self.phase = Phase.READY

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 30), forget=st.booleans())
    def give_up(self, which: int, forget: bool) -> None:
        call = self.calls[-1 - which % len(self.calls)]
        give_up = self.peer.forget if forget else self.peer.abandon
        if call.id not in self.waiting:
            with pytest.raises(LocalProtocolError):
                give_up(call)
            return
        frame = give_up(call)
        del self.waiting[call.id]
        self.endings[call.id] += 1
        if forget or not self.cancels:
            assert frame is None
        else:
            assert codec.decode(frame) == Notification(CANCEL_REQUEST, {"id": call.id})
        if not forget:
            self.tombstones.append(call.id)
            del self.tombstones[:-MAX_ABANDONED]

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(0, 30), how=SMALL)
    def answer(self, which: int, how: int) -> None:
        request = self.asked[-1 - which % len(self.asked)]
        error = ErrorObject(-how, "x", RESULT)
        succeeds = how < 3

        def give(value: Any = RESULT) -> bytes | None:
            if succeeds:
                return self.peer.answer(request, value)
            return self.peer.fail(request, ErrorObject(-how, "x", value))

        record, owed, slot = self.running.get(request.id, (None, None, 0))
        if record is not request:
            with pytest.raises(LocalProtocolError):
                give()
            return
        if how in (0, 5):
            with pytest.raises(LocalProtocolError):
                give(UNENCODABLE)
        frame = give()
        assert request.params is UNSET
        del self.running[request.id]
        self.answered[id(request)] += 1
        if succeeds and (self.role, self.phase, request.method) == (Role.WORKER, Phase.NEW, "initialize"):
            self.phase = Phase.INITIALIZING
        answer = Success(RESULT, request.id) if succeeds else Failure(error, request.id)
        if owed is None:
            assert frame is not None
            assert codec.decode(frame) == answer
            return
        owed.answers[slot] = answer
        self.check_batch(owed, frame)

    @precondition(lambda self: len(self.asked) + len(self.calls) > 3)
    @rule(how=st.integers(0, 9))
    def end(self, how: int) -> None:
        waiting = list(self.waiting.values())
        if how <= 4:
            self.peer.drain()
        elif how <= 7:
            assert self.peer.hang_up() == waiting
            self.hung_up = True
        else:
            requests = [record for record, _, _ in self.running.values()]
            assert self.peer.close() == (waiting, requests)
            self.running.clear()
        if how > 4:
            self.endings.update(self.waiting.keys())
            self.waiting.clear()
            self.tombstones.clear()
        if self.phase is not Phase.CLOSED:
            self.phase = Phase.CLOSED if how > 7 else Phase.DRAINING

    # ---- the peer's side --------------------------------------------------------------------------

    @rule(item=ITEM)
    def receive(self, item: tuple[int, int, int]) -> None:
        events = self.peer.receive(self.frame_of(item))
        if self.phase is Phase.CLOSED:
            assert events == []
            return
        (event,) = events
        self.check(event, item, None, 0)

    @rule(items=st.lists(ITEM, min_size=1, max_size=5))
    def receive_batch(self, items: list[tuple[int, int, int]]) -> None:
        events = self.peer.receive(codec.encode_batch([self.frame_of(item) for item in items]))
        if self.phase is Phase.CLOSED:
            assert events == []
            return
        wanting = [item for item in items if item[0] in (0, 4)]
        owed, slot = Owed(len(wanting)), 0
        for event, item in zip(events, items, strict=True):
            self.check(event, item, owed, slot)
            slot += item[0] in (0, 4)

    @rule(items=st.lists(st.tuples(ITEM, SMALL, SMALL), min_size=1, max_size=5))
    def receive_batch_and_act_between(self, items: list[tuple[tuple[int, int, int], int, int]]) -> None:
        """As the engine does it: what an event leads to happens before the next one is asked for."""
        events = self.peer.events(codec.encode_batch([self.frame_of(item) for item, _, _ in items]))
        if self.phase is Phase.CLOSED:
            assert list(events) == []
            return
        owed, slot = Owed(sum(item[0] in (0, 4) for item, _, _ in items)), 0
        for item, act, how in items:
            self.check(next(events), item, owed, slot)
            slot += item[0] in (0, 4)
            if act == 0 and self.asked:
                self.answer(0, how)
            elif act == 1 and self.calls:
                self.give_up(how, forget=False)
            elif act == 2 and how == 0:
                self.end(9)
                break
        assert list(events) == []

    @rule(which=SMALL)
    def receive_what_is_no_json(self, which: int) -> None:
        frame: bytes | FrameRejected = FrameRejected("x") if which == 0 else b"{" * which
        events = self.peer.receive(frame)
        if self.phase is Phase.CLOSED:
            assert events == []
            return
        (event,) = events
        code = ErrorCode.INVALID_REQUEST if which == 0 else ErrorCode.PARSE_ERROR
        self.check_refusal(event, None, code, None, 0)

    def our_id(self, which: int) -> int:
        """An id that our calls have, had, or never had."""
        return self.calls[-1 - which].id if which < len(self.calls) else 1000 + which

    def frame_of(self, item: tuple[int, int, int]) -> bytes:
        kind, which, how = item
        match kind:
            case 0:
                return codec.encode_request(METHODS[how % 3], UNSET, FOREIGN_IDS[which])
            case 1:
                return codec.encode_notification(NOTES[which % 2], {})
            case 2:
                id_ = self.our_id(which)
                return (
                    codec.encode_success(RESULT, id_),
                    codec.encode_failure(ErrorObject(-1, "x"), id_),
                    b'{"jsonrpc":"2.0","id":%d,"error":null}' % id_,
                    codec.encode_success(RESULT, str(id_)),
                    b'{"jsonrpc":"2.0","id":%d.0,"result":1}' % id_,
                    codec.encode_failure(ErrorObject(-1, "x"), None),
                )[how]
            case 3:
                id_ = None if how == 5 else FOREIGN_IDS[which]
                return codec.encode_notification(CANCEL_REQUEST, {"id": id_})
            case 4:
                return JUNK[which % len(JUNK)][0]
            case _:
                return codec.encode_success(RESULT, self.our_id(which))

    def check(self, event: Event, item: tuple[int, int, int], owed: Owed | None, slot: int) -> None:
        kind, which, how = item
        match kind:
            case 0:
                self.check_request(event, METHODS[how % 3], FOREIGN_IDS[which], owed, slot)
            case 1:
                name = NOTES[which % 2]
                if (self.role, self.phase, name) == (Role.WORKER, Phase.INITIALIZING, "initialized"):
                    self.phase = Phase.READY
                if self.phase in (Phase.NEW, Phase.INITIALIZING):
                    self.check_dropped(event, "early_notification")
                else:
                    assert event == Notification(name, {})
            case 2:
                self.check_answer(event, self.our_id(which), how)
            case 3:
                if how == 5:
                    self.check_dropped(event, "malformed_cancel")
                elif FOREIGN_IDS[which] in self.running:
                    assert event == CancelReceived(self.running[FOREIGN_IDS[which]][0])
                else:
                    self.check_dropped(event, "late_cancel")
            case 4:
                self.check_refusal(event, JUNK[which % len(JUNK)][1], ErrorCode.INVALID_REQUEST, owed, slot)
            case _:
                self.check_answer(event, self.our_id(which), 0)

    def check_request(self, event: Event, method: str, id_: RequestId, owed: Owed | None, slot: int) -> None:
        if self.phase is Phase.DRAINING:
            self.check_refusal(event, id_, ErrorCode.OVERLOADED, owed, slot)
        elif self.phase is not Phase.READY and (self.role, method) != (Role.WORKER, "initialize"):
            self.check_refusal(event, id_, ErrorCode.NOT_INITIALIZED, owed, slot)
        elif id_ in self.running or (
            (self.role, self.phase, method) == (Role.WORKER, Phase.READY, "initialize")
        ):
            self.check_refusal(event, id_, ErrorCode.INVALID_REQUEST, owed, slot)
        else:
            assert type(event) is InboundRequest
            assert (event.method, event.id, event.params) == (method, id_, UNSET)
            assert type(event.id) is type(id_)
            self.asked.append(event)
            self.running[id_] = (event, owed, slot)

    def check_refusal(
        self, event: Event, id_: RequestId | None, code: ErrorCode, owed: Owed | None, slot: int
    ) -> None:
        if owed is not None:
            owed.answers[slot] = Failure(ErrorObject(code, "", UNSET), id_)
            if not owed.is_whole:
                self.check_dropped(event, "rejected_in_batch")
                return
        assert type(event) is Reply
        if owed is not None:
            self.check_batch(owed, event.frame)
        else:
            message = codec.decode(event.frame)
            assert type(message) is Failure
            assert (message.id, message.error.code) == (id_, code)

    def check_batch(self, owed: Owed, frame: bytes | None) -> None:
        if not owed.is_whole:
            assert frame is None
            return
        assert frame is not None
        message = codec.decode(frame)
        assert type(message) is Batch
        for found, expected in zip(message.items, owed.answers, strict=True):
            assert type(found) is type(expected)
            assert (found.id, type(found.id)) == (expected.id, type(expected.id))
            if type(found) is Failure:
                assert found.error.code == expected.error.code

    def check_answer(self, event: Event, id_: int, how: int) -> None:
        garbled, answers_nothing = how == 2, how > 2
        if id_ in self.waiting and not answers_nothing:
            call = self.waiting.pop(id_)
            self.endings[id_] += 1
            if how == 0:
                assert event == Answered(call, RESULT)
            else:
                assert type(event) is AnsweredWithError
                assert (event.call, event.garbled) == (call, garbled)
        elif id_ in self.tombstones and not answers_nothing:
            self.tombstones.remove(id_)
            self.check_dropped(event, "late_answer")
        elif how in (2, 4):
            self.check_dropped(event, "malformed_answer")
        else:
            self.check_dropped(event, "peer_rejection" if how == 5 else "unknown_answer")

    def check_dropped(self, event: Event, why: str) -> None:
        assert type(event) is Dropped
        assert event.why == why
        self.dropped[why] += 1

    # ---- after every step -------------------------------------------------------------------------

    @invariant()
    def i1_every_waiting_call_was_made_here_and_is_unanswered(self) -> None:
        assert self.peer.calls == list(self.waiting.values())
        assert self.peer.call_count == len(self.waiting)
        assert all(call in self.calls for call in self.peer.calls)
        assert not any(self.endings[call.id] for call in self.peer.calls)

    @invariant()
    def i2_a_call_ends_exactly_once_and_few_tombstones_are_kept(self) -> None:
        assert all(ended == 1 for ended in self.endings.values())
        assert len(self.endings) + len(self.waiting) == len(self.calls)
        assert self.peer.abandoned_count == len(self.tombstones) <= MAX_ABANDONED

    @invariant()
    def i3_a_request_runs_until_it_is_answered_and_is_answered_at_most_once(self) -> None:
        assert self.peer.requests == [record for record, _, _ in self.running.values()]
        assert self.peer.request_count == len(self.running)
        assert all(times == 1 for times in self.answered.values())
        assert not any(self.answered[id(request)] for request in self.peer.requests)
        waits = {id(owed): owed for _, owed, _ in self.running.values() if owed is not None}.values()
        assert (self.peer.batched_bytes > 0) == any(any(owed.answers) for owed in waits)

    @invariant()
    def i4_what_is_closed_is_empty_and_phases_are_as_told(self) -> None:
        assert self.peer.phase is self.phase
        if self.phase is Phase.CLOSED:
            assert (self.peer.calls, self.peer.requests, self.peer.abandoned_count) == ([], [], 0)

    @invariant()
    def everything_dropped_is_counted(self) -> None:
        assert self.peer.dropped == dict(self.dropped)


TestPeer = PeerMachine.TestCase
TestPeer.settings = settings(FUZZ, max_examples=int(200 * SCALE) or 1, stateful_step_count=40)


# ---- two peers --------------------------------------------------------------------------------------


class End:
    """One of two ends: a peer, what has been written to it but not read, and what became of its calls."""

    def __init__(self, role: Role) -> None:
        self.peer = Peer(role)
        self.framer = LineFramer(4096)
        self.unread = bytearray()
        self.calls: list[Call] = []
        self.outcomes: dict[Call, list[str]] = {}
        self.asked: list[InboundRequest] = []
        self.is_over = False
        self.other: End

    def write(self, frame: bytes | None) -> None:
        if frame is not None and not self.is_over:
            self.other.unread += frame + b"\n"

    def call(self) -> bytes:
        call, frame = self.peer.call(f"m{len(self.calls)}", {"n": "\n"})
        self.calls.append(call)
        self.outcomes[call] = []
        return frame

    def read(self, size: int) -> None:
        chunk = bytes(self.unread[:size])
        del self.unread[:size]
        for frame in self.framer.feed(chunk):
            for event in self.peer.receive(frame):
                self.take(event)

    def take(self, event: Event) -> None:
        match event:
            case InboundRequest():
                self.asked.append(event)
            case Answered(call, result):
                assert result == call.method, "this is the answer to another call"
                self.outcomes[call].append("answered")
            case AnsweredWithError(call, error):
                assert error.data == call.method, "this is the answer to another call"
                self.outcomes[call].append("failed")
            case Reply(frame):
                self.write(frame)
            case CancelReceived(request):
                assert request in self.asked
            case Notification() | Dropped():
                pass

    def answer(self, which: int, succeeds: bool) -> None:
        if self.asked and not self.is_over:
            request = self.asked.pop(which % len(self.asked))
            error = ErrorObject(ErrorCode.REQUEST_CANCELLED, "x", request.method)
            self.write(
                self.peer.answer(request, request.method) if succeeds else self.peer.fail(request, error)
            )

    def close(self) -> None:
        for call in self.peer.close()[0]:
            self.outcomes[call].append("lost")
        self.asked.clear()
        self.is_over = True

    def hear_the_end(self) -> None:
        self.read(len(self.unread))
        assert self.framer.feed_eof() == []
        for call in self.peer.hang_up():
            self.outcomes[call].append("lost")


def connected() -> tuple[End, End]:
    """A runtime and a worker that have shaken hands, over the wire."""
    ends = End(Role.RUNTIME), End(Role.WORKER)
    ends[0].other, ends[1].other = ends[1], ends[0]
    near, far = ends
    call, frame = near.peer.call("initialize")
    near.calls.append(call)
    near.outcomes[call] = []
    near.write(frame)
    far.read(10_000)
    far.answer(0, succeeds=True)
    near.read(10_000)
    near.write(near.peer.notify("initialized"))
    far.read(10_000)
    for end in ends:
        assert end.peer.phase is Phase.READY
        end.peer.peer_extensions = frozenset({"cancel"})
    return ends


OPERATION = st.tuples(st.integers(0, 1), st.integers(0, 9), st.integers(0, 60))
"""(which end, what, how); what the numbers mean is in ``operate``."""


def operate(end: End, what: int, how: int) -> None:
    match what:
        case 0 | 1:
            end.write(end.call())
        case 2 | 3 | 4:
            end.read(how)
        case 5:
            end.answer(how, succeeds=how % 3 > 0)
        case 6 if end.calls:
            call = end.calls[-1 - how % len(end.calls)]
            if call in end.peer.calls:
                end.write(end.peer.abandon(call))
                end.outcomes[call].append("abandoned")
        case 7:
            frames = [end.call() for _ in range(how % 3 + 1)]
            end.write(codec.encode_batch([*frames, end.peer.notify("n")]))
        case 8:
            end.call()
            call = end.calls[-1]
            end.peer.forget(call)
            end.outcomes[call].append("forgotten")
        case 9:
            junk = (b"{", b"[]", b"x" * 5000, b"", b'{"jsonrpc":"2.0","id":"?","result":1}', b"[1]")
            end.write(junk[how % len(junk)])
        case _:
            pass


def run_dry(ends: tuple[End, End]) -> None:
    """Deliver and answer until nothing is left to do."""
    for _ in range(1000):
        if not any(end.unread or end.asked for end in ends):
            return
        for end in ends:
            end.read(7)
            end.answer(0, succeeds=True)
    raise AssertionError("the two never come to rest")


@settings(FUZZ, max_examples=int(120 * SCALE) or 1)
@given(st.lists(OPERATION, max_size=60))
@example([(0, 0, 0), (1, 3, 60), (0, 6, 0), (1, 5, 1)])
def test_every_call_between_two_peers_ends_exactly_once_and_with_its_own_answer(
    operations: list[tuple[int, int, int]],
) -> None:
    ends = connected()
    for which, what, how in operations:
        operate(ends[which], what, how)
    for end in ends:
        end.read(10**9)
    run_dry(ends)
    for end in ends:
        assert [len(outcome) for outcome in end.outcomes.values()] == [1] * len(end.calls)
        assert (end.peer.call_count, end.peer.request_count, end.peer.abandoned_count) == (0, 0, 0)


@settings(FUZZ, max_examples=int(80 * SCALE) or 1)
@given(st.lists(OPERATION, max_size=40), st.integers(0, 1), st.lists(OPERATION, max_size=15))
def test_every_call_ends_exactly_once_when_an_end_closes_in_the_middle(
    before: list[tuple[int, int, int]], which: int, after: list[tuple[int, int, int]]
) -> None:
    ends = connected()
    for end, what, how in before:
        operate(ends[end], what, how)
    gone, left = ends[which], ends[1 - which]
    gone.close()
    left.hear_the_end()
    for _, what, how in after:
        if what in (2, 3, 4, 5, 6, 9):  # what needs no new call
            operate(left, what, how)
            operate(gone, what, how)
    while left.asked:
        left.answer(0, succeeds=True)
    for end in ends:
        assert [len(outcome) for outcome in end.outcomes.values()] == [1] * len(end.calls)
        assert (end.peer.call_count, end.peer.request_count, end.peer.abandoned_count) == (0, 0, 0)
