"""The rules of a connection's end, one by one. The state machine beside this file mixes them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import UNSET

from stepflow_trio.errors import ConnectionLost, ErrorCode, LocalProtocolError
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.protocol.messages import MAX_ID_CHARS, ErrorObject, Notification
from stepflow_trio.protocol.peer import (
    ACCEPTED_EARLY,
    CANCEL_REQUEST,
    MAX_ABANDONED,
    TRANSITIONS,
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


def request(method: str, id_: int | str, params: Any = UNSET) -> bytes:
    return codec.encode_request(method, params, id_)


def notification(method: str, params: Any = UNSET) -> bytes:
    return codec.encode_notification(method, params)


def success(id_: int | str, result: Any = None) -> bytes:
    return codec.encode_success(result, id_)


def failure(id_: int | str | None, code: int = -1, message: str = "x") -> bytes:
    return codec.encode_failure(ErrorObject(code, message), id_)


def cancel(id_: Any) -> bytes:
    return notification(CANCEL_REQUEST, {"id": id_})


def batch(*frames: bytes) -> bytes:
    return codec.encode_batch(list(frames))


def one(events: list[Event]) -> Any:
    (event,) = events
    return event


def arrive(peer: Peer, method: str, id_: int | str, params: Any = UNSET) -> InboundRequest:
    """A request comes in and is accepted."""
    event = one(peer.receive(request(method, id_, params)))
    assert type(event) is InboundRequest
    return event


def refused(peer: Peer, frame: bytes | FrameRejected) -> dict[str, Any]:
    """What came in is answered with an error at once; the answer."""
    event = one(peer.receive(frame))
    assert type(event) is Reply
    answer = json.loads(event.frame)
    assert answer["jsonrpc"] == "2.0"
    assert answer["error"]["code"] == event.error.code
    return answer


def dropped(peer: Peer, frame: bytes, why: str) -> str:
    """What came in is counted under ``why`` and has no other effect; the detail."""
    before = dict(peer.dropped)
    tables = peer.calls, peer.requests, peer.phase, peer.abandoned_count
    event = one(peer.receive(frame))
    assert type(event) is Dropped
    assert event.why == why
    assert event.detail
    assert peer.dropped == {**before, why: before.get(why, 0) + 1}
    assert (peer.calls, peer.requests, peer.phase) == tables[:3]
    return event.detail


def worker(*extensions: str) -> Peer:
    """A worker that a runtime has initialized."""
    peer = Peer(Role.WORKER)
    asked = arrive(peer, "initialize", 0)
    assert peer.answer(asked, {})
    assert peer.receive(notification("initialized", {})) == [Notification("initialized", {})]
    peer.peer_extensions = frozenset(extensions)
    assert peer.phase is Phase.READY
    return peer


def runtime(*extensions: str) -> Peer:
    """A runtime that has initialized its worker."""
    peer = Peer(Role.RUNTIME)
    call, _ = peer.call("initialize", {})
    assert peer.receive(success(call.id, {})) == [Answered(call, {})]
    peer.notify("initialized", {})
    peer.peer_extensions = frozenset(extensions)
    assert peer.phase is Phase.READY
    return peer


# ---- our calls --------------------------------------------------------------------------------------


def test_a_call_is_a_request_with_an_id_of_its_own() -> None:
    peer = Peer()
    first, frame = peer.call("a", {"x": 1})
    assert json.loads(frame) == {"jsonrpc": "2.0", "method": "a", "params": {"x": 1}, "id": first.id}
    second, frame = peer.call("b")
    assert json.loads(frame) == {"jsonrpc": "2.0", "method": "b", "id": second.id}
    assert first.id != second.id
    assert (first.method, second.method) == ("a", "b")
    assert peer.calls == [first, second]
    assert peer.call_count == 2
    assert first.waiter is None
    assert "a" in repr(first)


def test_an_id_is_never_used_for_two_calls() -> None:
    peer = Peer()
    seen: set[int] = set()
    for ending in range(40):
        call, _ = peer.call("m")
        assert call.id not in seen
        seen.add(call.id)
        if ending % 4 == 0:
            peer.forget(call)
        elif ending % 4 == 1:
            peer.abandon(call)
        elif ending % 4 == 2:
            peer.receive(success(call.id))


def test_a_call_that_cannot_be_encoded_leaves_no_trace() -> None:
    peer = Peer()
    with pytest.raises(LocalProtocolError):
        peer.call("m", {"x": object()})
    assert peer.call_count == 0
    call, _ = peer.call("m")
    assert call.id == 1, "no id was used up"


def test_answers_may_come_in_any_order() -> None:
    peer = Peer()
    calls = [peer.call(f"m{i}")[0] for i in range(4)]
    for i in (2, 0, 3, 1):
        assert peer.receive(success(calls[i].id, i)) == [Answered(calls[i], i)]
    assert peer.call_count == 0
    assert peer.dropped == {}


def test_an_error_answers_a_call_too() -> None:
    peer = Peer()
    call, _ = peer.call("m")
    event = one(peer.receive(failure(call.id, -32001, "gone")))
    assert event == AnsweredWithError(call, ErrorObject(-32001, "gone"), garbled=False)
    assert peer.call_count == 0


@pytest.mark.parametrize("answer", [success(1), failure(1)], ids=["result", "error"])
def test_a_second_answer_is_dropped_and_counted(answer: bytes) -> None:
    peer = Peer()
    call, _ = peer.call("m")
    peer.receive(success(call.id))
    other, _ = peer.call("n")
    dropped(peer, answer, "unknown_answer")
    assert peer.calls == [other]


@pytest.mark.parametrize("id_", [2, 0, -1, 2**53, 2**63 - 1, "1", "", "never"])
def test_an_answer_to_what_was_never_asked_is_dropped_and_counted(id_: int | str) -> None:
    peer = Peer()
    call, _ = peer.call("m")
    assert call.id == 1
    for answer in (success(id_), failure(id_)):
        assert repr(id_) in dropped(peer, answer, "unknown_answer")
    assert peer.calls == [call]


@pytest.mark.parametrize("id_", ["true", "1.0", "1e0", "null", "[1]", '{"id":1}', "99999999999999999999"])
def test_an_id_that_only_looks_like_ours_answers_nothing(id_: str) -> None:
    peer = Peer()
    call, _ = peer.call("m")
    dropped(peer, f'{{"jsonrpc":"2.0","result":0,"id":{id_}}}'.encode(), "malformed_answer")
    assert peer.calls == [call]


def test_an_answer_without_an_id_is_dropped_and_counted() -> None:
    peer = Peer()
    call, _ = peer.call("m")
    dropped(peer, b'{"jsonrpc":"2.0","result":0}', "malformed_answer")
    assert peer.calls == [call]


def test_an_error_without_an_id_says_that_the_peer_could_not_read_us() -> None:
    peer = Peer()
    call, _ = peer.call("m")
    detail = dropped(peer, failure(None, -32700, "Parse error"), "peer_rejection")
    assert "Parse error" in detail
    assert "-32700" in detail
    assert peer.calls == [call]


GARBLED = [
    '{"jsonrpc":"2.0","id":1,"result":1,"error":{"code":1,"message":"x"}}',
    '{"jsonrpc":"2.0","id":1,"error":null}',
    '{"jsonrpc":"2.0","id":1,"error":"boom"}',
    '{"jsonrpc":"2.0","id":1,"error":{"message":"no code"}}',
    '{"jsonrpc":"2.0","id":1,"error":{"code":"-1","message":"x"}}',
    '{"jsonrpc":"2.0","id":1,"result":1,"result":2}',
    '{"id":1,"result":1}',
    '{"jsonrpc":"1.0","id":1,"result":1}',
]


@pytest.mark.parametrize("frame", GARBLED)
def test_an_answer_that_cannot_be_read_fails_its_call_and_is_not_answered(frame: str) -> None:
    peer = Peer()
    call, _ = peer.call("m")
    event = one(peer.receive(frame.encode()))
    assert type(event) is AnsweredWithError
    assert (event.call, event.garbled) == (call, True)
    assert event.error.code == ErrorCode.INVALID_REQUEST
    assert peer.call_count == 0


@pytest.mark.parametrize("frame", GARBLED)
def test_an_unreadable_answer_to_nothing_is_dropped_and_counted(frame: str) -> None:
    dropped(Peer(), frame.encode(), "malformed_answer")


@pytest.mark.parametrize("frame", GARBLED)
def test_an_unreadable_answer_to_a_call_that_was_given_up_is_a_late_answer(frame: str) -> None:
    peer = Peer()
    call, _ = peer.call("m")
    peer.abandon(call)
    dropped(peer, frame.encode(), "late_answer")
    assert peer.abandoned_count == 0, "it has been answered, so nothing is to be remembered"
    dropped(peer, success(call.id), "unknown_answer")


# ---- giving up --------------------------------------------------------------------------------------


def test_a_call_whose_frame_was_never_sent_is_forgotten_without_a_trace() -> None:
    peer = Peer()
    call, _ = peer.call("m")
    peer.forget(call)
    assert (peer.call_count, peer.abandoned_count) == (0, 0)
    dropped(peer, success(call.id), "unknown_answer")


def test_a_call_that_was_given_up_is_cancelled_at_the_peer_that_announced_it() -> None:
    peer = runtime("cancel")
    call, _ = peer.call("m")
    frame = peer.abandon(call)
    assert frame is not None
    assert json.loads(frame) == {
        "jsonrpc": "2.0",
        "method": "$/cancelRequest",
        "params": {"id": call.id},
    }
    assert (peer.call_count, peer.abandoned_count) == (0, 1)


@pytest.mark.parametrize("extensions", [(), ("progress", "batch", "deadline"), ("Cancel",)])
def test_a_peer_that_did_not_announce_it_is_told_nothing(extensions: tuple[str, ...]) -> None:
    for peer in (runtime(*extensions), worker(*extensions)):
        call, _ = peer.call("m")
        assert peer.abandon(call) is None
        assert peer.abandoned_count == 1


def test_nothing_is_announced_before_the_handshake_and_a_plain_peer_may_always_be_told() -> None:
    assert Peer(Role.RUNTIME).peer_extensions == Peer(Role.WORKER).peer_extensions == frozenset()
    assert Peer(Role.PLAIN).peer_extensions == {"cancel"}


@pytest.mark.parametrize("answer", [success(1, 2), failure(1), failure(1, ErrorCode.REQUEST_CANCELLED)])
def test_the_answer_to_a_call_that_was_given_up_is_late_once_and_then_unknown(answer: bytes) -> None:
    peer = Peer()
    call, _ = peer.call("m")
    peer.abandon(call)
    dropped(peer, answer, "late_answer")
    assert peer.abandoned_count == 0
    dropped(peer, answer, "unknown_answer")


def test_only_so_many_given_up_calls_are_remembered_and_the_oldest_is_forgotten_first() -> None:
    peer = Peer(max_abandoned=2)
    calls = [peer.call("m")[0] for _ in range(3)]
    for call in calls:
        peer.abandon(call)
    assert peer.abandoned_count == 2
    assert peer.abandoned == {calls[1].id, calls[2].id}
    dropped(peer, success(calls[0].id), "unknown_answer")
    dropped(peer, success(calls[1].id), "late_answer")
    dropped(peer, success(calls[2].id), "late_answer")


def test_no_given_up_call_need_be_remembered() -> None:
    peer = Peer(max_abandoned=0)
    call, _ = peer.call("m")
    assert peer.abandon(call) is not None
    assert peer.abandoned_count == 0
    dropped(peer, success(call.id), "unknown_answer")


def test_by_default_1024_given_up_calls_are_remembered() -> None:
    peer = Peer()
    for _ in range(MAX_ABANDONED + 5):
        peer.abandon(peer.call("m")[0])
    assert peer.abandoned_count == MAX_ABANDONED == 1024
    assert peer.call_count == 0


@pytest.mark.parametrize(
    "end", ["answered", "failed", "abandoned", "forgotten", "closed", "hung up", "foreign"]
)
def test_a_call_that_is_over_cannot_be_given_up_again(end: str) -> None:
    peer = Peer()
    call, _ = peer.call("m")
    match end:
        case "answered":
            peer.receive(success(call.id))
        case "failed":
            peer.receive(failure(call.id))
        case "abandoned":
            peer.abandon(call)
        case "forgotten":
            peer.forget(call)
        case "closed":
            peer.close()
        case "hung up":
            peer.hang_up()
        case _:
            call = Call(call.id, "m")  # of another connection, with an id that we use too
    before = peer.call_count, peer.abandoned_count
    with pytest.raises(LocalProtocolError, match="not waiting"):
        peer.abandon(call)
    with pytest.raises(LocalProtocolError, match="not waiting"):
        peer.forget(call)
    assert (peer.call_count, peer.abandoned_count) == before


# ---- the peer's requests ----------------------------------------------------------------------------


@pytest.mark.parametrize("id_", [1, 0, -1, 2**63 - 1, -(2**63), "1", "", "é\n\0", "i" * 1000])
def test_a_request_is_answered_to_its_id_exactly_as_it_came(id_: int | str) -> None:
    peer = Peer()
    for answer in (
        lambda asked: peer.answer(asked, {"r": 1}),
        lambda asked: peer.fail(asked, ErrorObject(-1, "x", None)),
    ):
        asked = arrive(peer, "m", id_, [1])
        assert (asked.id, asked.method, asked.params, asked.handler) == (id_, "m", [1], None)
        assert type(asked.id) is type(id_)
        assert peer.requests == [asked]
        frame = answer(asked)
        assert json.loads(frame)["id"] == id_
        assert type(json.loads(frame)["id"]) is type(id_)
        assert peer.request_count == 0


def test_the_answer_is_the_result_or_the_error_and_nothing_else() -> None:
    peer = Peer()
    assert peer.answer(arrive(peer, "m", 7), None) == b'{"jsonrpc":"2.0","result":null,"id":7}'
    assert peer.fail(arrive(peer, "m", 7), ErrorObject(-1, "x")) == (
        b'{"jsonrpc":"2.0","error":{"code":-1,"message":"x"},"id":7}'
    )
    assert peer.fail(arrive(peer, "m", 7), ErrorObject(-1, "x", {"a": 1})) == (
        b'{"jsonrpc":"2.0","error":{"code":-1,"message":"x","data":{"a":1}},"id":7}'
    )


def test_seven_and_the_text_seven_are_different_requests() -> None:
    peer = Peer()
    number, text = arrive(peer, "m", 7), arrive(peer, "m", "7")
    assert peer.requests == [number, text]
    assert peer.receive(cancel("7")) == [CancelReceived(text)]
    assert peer.receive(cancel(7)) == [CancelReceived(number)]
    frame = peer.answer(text, 0)
    assert frame is not None
    assert json.loads(frame)["id"] == "7"
    assert peer.requests == [number]


@pytest.mark.parametrize("id_", [7, "7"])
def test_an_id_in_flight_cannot_be_used_again_and_the_first_request_is_unharmed(id_: int | str) -> None:
    peer = Peer()
    first = arrive(peer, "m", id_)
    answer = refused(peer, request("n", id_))
    assert (answer["id"], answer["error"]["code"]) == (id_, ErrorCode.INVALID_REQUEST)
    assert "in flight" in answer["error"]["data"]["detail"]
    assert peer.requests == [first]
    assert peer.answer(first, 1) is not None


def test_an_id_may_be_used_again_once_it_is_answered() -> None:
    peer = Peer()
    for _ in range(3):
        assert peer.answer(arrive(peer, "m", 7), 1) is not None
        assert peer.fail(arrive(peer, "m", 7), ErrorObject(1, "x")) is not None


def test_a_request_is_answered_only_once() -> None:
    peer = Peer()
    first = arrive(peer, "m", 7)
    peer.answer(first, 1)
    second = arrive(peer, "m", 7)
    for again in (lambda: peer.answer(first, 1), lambda: peer.fail(first, ErrorObject(1, "x"))):
        with pytest.raises(LocalProtocolError, match="answered already"):
            again()
    assert peer.requests == [second], "the request that has the id now is not touched"


def test_an_answer_that_cannot_be_encoded_leaves_its_request_unanswered() -> None:
    peer = Peer()
    asked = arrive(peer, "m", 7)
    with pytest.raises(LocalProtocolError):
        peer.answer(asked, object())
    with pytest.raises(LocalProtocolError):
        peer.fail(asked, ErrorObject(1, "x", object()))
    assert peer.requests == [asked]
    assert peer.fail(asked, ErrorObject(ErrorCode.INTERNAL_ERROR, "Internal error")) is not None


def test_each_direction_has_its_own_ids() -> None:
    peer = Peer()
    call, _ = peer.call("m")
    asked = arrive(peer, "m", call.id)
    dropped(peer, success(call.id + 1), "unknown_answer")
    assert peer.receive(cancel(call.id)) == [CancelReceived(asked)]
    assert peer.receive(success(call.id, 5)) == [Answered(call, 5)]
    assert peer.requests == [asked]


# ---- cancellation by the peer -----------------------------------------------------------------------


def test_a_cancelled_request_is_still_to_be_answered() -> None:
    peer = Peer()
    asked = arrive(peer, "m", "a")
    for _ in range(2):
        assert peer.receive(cancel("a")) == [CancelReceived(asked)]
    assert peer.requests == [asked]
    frame = peer.fail(asked, ErrorObject(ErrorCode.REQUEST_CANCELLED, "Cancelled"))
    assert frame is not None
    assert json.loads(frame)["error"]["code"] == -32800
    assert peer.dropped == {}


def test_the_cancellation_of_what_is_not_in_flight_is_dropped_and_counted() -> None:
    peer = Peer()
    dropped(peer, cancel(7), "late_cancel")
    peer.answer(arrive(peer, "m", 7), 1)
    dropped(peer, cancel(7), "late_cancel")
    asked = arrive(peer, "m", 7)
    dropped(peer, cancel("7"), "late_cancel")
    assert peer.requests == [asked]


@pytest.mark.parametrize(
    "params", [UNSET, {}, [], [7], {"id": None}, {"id": True}, {"id": 7.0}, {"id": [7]}, {"ID": 7}]
)
def test_a_cancellation_that_names_no_id_is_dropped_and_counted(params: Any) -> None:
    peer = Peer()
    arrive(peer, "m", 7)
    arrive(peer, "m", 1)
    dropped(peer, notification(CANCEL_REQUEST, params), "malformed_cancel")


def test_a_request_to_cancel_is_a_request_like_any_other() -> None:
    peer = Peer()
    arrive(peer, "m", 7)
    assert arrive(peer, CANCEL_REQUEST, 8, {"id": 7}).method == CANCEL_REQUEST


# ---- notifications ----------------------------------------------------------------------------------


def test_a_notification_is_told_and_not_answered() -> None:
    peer = Peer()
    assert peer.receive(notification("n", {"a": 1})) == [Notification("n", {"a": 1})]
    assert peer.request_count == 0


def test_a_notification_of_ours_has_no_id() -> None:
    peer = Peer()
    assert peer.notify("n", {"a": 1}) == b'{"jsonrpc":"2.0","method":"n","params":{"a":1}}'
    assert peer.notify("n") == b'{"jsonrpc":"2.0","method":"n"}'
    with pytest.raises(LocalProtocolError):
        peer.notify("n", object())
    assert peer.call_count == 0


# ---- the handshake ----------------------------------------------------------------------------------


def test_a_plain_peer_accepts_everything_from_the_start() -> None:
    peer = Peer(Role.PLAIN)
    assert peer.phase is Phase.READY
    arrive(peer, "initialize", 1)
    arrive(peer, "components/list", 2)
    assert peer.receive(notification("n")) == [Notification("n")]


def test_a_worker_is_ready_when_it_has_answered_initialize_and_heard_initialized() -> None:
    peer = Peer(Role.WORKER)
    assert peer.phase is Phase.NEW
    asked = arrive(peer, "initialize", 1)
    assert peer.phase is Phase.NEW
    peer.answer(asked, {})
    assert peer.phase is Phase.INITIALIZING
    assert refused(peer, request("components/list", 2))["error"]["code"] == ErrorCode.NOT_INITIALIZED
    assert peer.receive(notification("initialized")) == [Notification("initialized")]
    assert peer.phase is Phase.READY
    arrive(peer, "components/list", 2)


def test_a_runtime_is_ready_when_it_has_sent_initialized() -> None:
    peer = Peer(Role.RUNTIME)
    assert peer.phase is Phase.NEW
    call, _ = peer.call("initialize", {})
    assert peer.receive(success(call.id, {})) == [Answered(call, {})]
    assert peer.phase is Phase.NEW
    assert refused(peer, request("blobs/put", 1))["error"]["code"] == ErrorCode.NOT_INITIALIZED
    peer.notify("initialized", {})
    assert peer.phase is Phase.READY
    arrive(peer, "blobs/put", 1)


@pytest.mark.parametrize("role", [Role.WORKER, Role.RUNTIME])
@pytest.mark.parametrize("method", ["components/list", "components/execute", "blobs/put", "Initialize", ""])
def test_a_request_before_initialization_is_refused_and_says_why(role: Role, method: str) -> None:
    peer = Peer(role)
    answer = refused(peer, request(method, "i1"))
    assert (answer["id"], answer["error"]["code"]) == ("i1", -32002)
    assert "before the connection was initialized" in answer["error"]["data"]["detail"]
    assert peer.request_count == 0


def test_a_worker_does_not_initialize_a_runtime() -> None:
    assert refused(Peer(Role.RUNTIME), request("initialize", 1))["error"]["code"] == -32002


@pytest.mark.parametrize("role", [Role.WORKER, Role.RUNTIME])
@pytest.mark.parametrize("method", ["progress_update", "initialized", "anything"])
def test_a_notification_before_initialization_is_dropped_and_counted(role: Role, method: str) -> None:
    detail = dropped(Peer(role), notification(method), "early_notification")
    assert method in detail


def test_initialized_before_initialize_is_answered_does_not_make_ready() -> None:
    peer = Peer(Role.WORKER)
    dropped(peer, notification("initialized"), "early_notification")
    asked = arrive(peer, "initialize", 1)
    dropped(peer, notification("initialized"), "early_notification")
    peer.answer(asked, {})
    assert peer.phase is Phase.INITIALIZING
    assert refused(peer, request("components/list", 2))["error"]["code"] == -32002
    peer.receive(notification("initialized"))
    assert peer.phase is Phase.READY


def test_an_initialize_that_was_refused_may_be_tried_again() -> None:
    peer = Peer(Role.WORKER)
    peer.fail(arrive(peer, "initialize", 1), ErrorObject(ErrorCode.VERSION_MISMATCH, "x"))
    assert peer.phase is Phase.NEW
    dropped(peer, notification("initialized"), "early_notification")
    peer.answer(arrive(peer, "initialize", 2), {})
    assert peer.phase is Phase.INITIALIZING
    peer.answer(arrive(peer, "initialize", 3), {})
    assert peer.phase is Phase.INITIALIZING
    peer.receive(notification("initialized"))
    assert peer.phase is Phase.READY


def test_a_ready_worker_may_be_initialized_again_and_stays_ready() -> None:
    peer = worker()
    peer.answer(arrive(peer, "initialize", 1), {})
    assert peer.phase is Phase.READY
    arrive(peer, "components/list", 2)
    assert peer.receive(notification("initialized")) == [Notification("initialized", UNSET)]
    assert peer.phase is Phase.READY


def test_an_initialize_that_cannot_be_answered_changes_no_phase() -> None:
    peer = Peer(Role.WORKER)
    asked = arrive(peer, "initialize", 1)
    with pytest.raises(LocalProtocolError):
        peer.answer(asked, object())
    assert peer.phase is Phase.NEW


def test_before_initialization_a_request_may_be_cancelled_and_calls_may_be_answered() -> None:
    peer = Peer(Role.WORKER)
    asked = arrive(peer, "initialize", 1)
    assert peer.receive(cancel(1)) == [CancelReceived(asked)]
    call, _ = peer.call("early")
    assert peer.receive(success(call.id)) == [Answered(call, None)]


def test_every_phase_that_a_table_names_is_reached_and_no_phase_is_left_for_an_earlier_one() -> None:
    order = list(Phase)
    for (role, before, _), after in TRANSITIONS.items():
        assert role is not Role.PLAIN
        assert order.index(after) > order.index(before)
    assert set(ACCEPTED_EARLY) == set(Role)


# ---- batches ----------------------------------------------------------------------------------------


def sent(frame: bytes | None) -> list[Any]:
    assert frame is not None
    answers = json.loads(frame)
    assert type(answers) is list
    return answers


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_a_batch_is_answered_whole_and_in_the_order_of_its_requests(order: tuple[int, ...]) -> None:
    peer = Peer()
    asked = peer.receive(batch(request("a", 5), request("b", "x"), request("c", -1)))
    assert [type(event) for event in asked] == [InboundRequest] * 3
    frames = [peer.answer(asked[i], i) for i in order if type(asked[i]) is InboundRequest]
    assert frames[:2] == [None, None]
    assert [(a["id"], a["result"]) for a in sent(frames[2])] == [(5, 0), ("x", 1), (-1, 2)]
    assert peer.request_count == 0


def test_a_batch_of_one_request_is_answered_with_an_array_of_one() -> None:
    peer = Peer()
    asked = one(peer.receive(batch(request("a", 5))))
    assert peer.answer(asked, 1) == b'[{"jsonrpc":"2.0","result":1,"id":5}]'


def test_a_batch_of_notifications_is_not_answered() -> None:
    peer = Peer()
    assert peer.receive(batch(notification("a"), notification("b", [1]))) == [
        Notification("a"),
        Notification("b", [1]),
    ]


def test_a_batch_of_answers_is_not_answered() -> None:
    peer = Peer()
    first, second = peer.call("a")[0], peer.call("b")[0]
    assert peer.receive(batch(failure(second.id), success(first.id, 1))) == [
        AnsweredWithError(second, ErrorObject(-1, "x")),
        Answered(first, 1),
    ]
    events = peer.receive(batch(success(first.id), b'{"jsonrpc":"2.0","result":1,"id":null}'))
    assert [(type(event), getattr(event, "why", None)) for event in events] == [
        (Dropped, "unknown_answer"),
        (Dropped, "malformed_answer"),
    ]


def test_an_empty_batch_is_answered_with_one_error() -> None:
    answer = refused(Peer(), b"[]")
    assert (answer["id"], answer["error"]["code"]) == (None, -32600)


def test_a_batch_of_nothing_valid_is_answered_with_as_many_errors() -> None:
    peer = Peer()
    *others, last = peer.receive(b"[1,{},[]]")
    assert [type(event) for event in others] == [Dropped, Dropped]
    assert type(last) is Reply
    answers = sent(last.frame)
    assert [(a["id"], a["error"]["code"]) for a in answers] == [(None, -32600)] * 3
    assert peer.dropped == {"rejected_in_batch": 2}


def test_a_batch_of_everything_is_answered_for_requests_and_faults_only_and_in_their_order() -> None:
    peer = Peer()
    call, _ = peer.call("ours")
    events = peer.receive(
        batch(
            b"1",
            request("a", 10),
            notification("n"),
            success(call.id, 3),
            b'{"jsonrpc":"2.0","id":11,"method":1}',
            request("b", 12),
            cancel(10),
            success(99),
        )
    )
    kinds = [type(event) for event in events]
    assert kinds == [
        Dropped, InboundRequest, Notification, Answered, Dropped, InboundRequest, CancelReceived, Dropped,
    ]  # fmt: skip
    asked = [event for event in events if type(event) is InboundRequest]
    assert peer.answer(asked[1], "b") is None
    answers = sent(peer.fail(asked[0], ErrorObject(-1, "cancelled")))
    assert [(a["id"], a.get("result"), a.get("error", {}).get("code")) for a in answers] == [
        (None, None, -32600),
        (10, None, -1),
        (11, None, -32600),
        (12, "b", None),
    ]


def test_a_fault_at_the_end_of_a_batch_does_not_send_it_before_its_requests_are_answered() -> None:
    peer = Peer()
    asked, fault = peer.receive(batch(request("a", 1), b"1"))
    assert type(asked) is InboundRequest
    assert type(fault) is Dropped
    assert [a["id"] for a in sent(peer.answer(asked, 1))] == [1, None]


def test_an_id_stands_only_once_in_a_batch() -> None:
    peer = Peer()
    first, second = peer.receive(batch(request("a", 1), request("b", 1)))
    assert type(first) is InboundRequest
    assert type(second) is Dropped
    answers = sent(peer.answer(first, "a"))
    assert [(a["id"], "error" in a) for a in answers] == [(1, False), (1, True)]


def test_an_id_that_is_free_again_may_be_used_while_its_batch_still_waits() -> None:
    peer = Peer()
    first, second = peer.receive(batch(request("a", 1), request("b", 2)))
    assert type(first) is type(second) is InboundRequest
    assert peer.answer(first, "a") is None
    again = arrive(peer, "c", 1)
    assert peer.answer(again, "c") == b'{"jsonrpc":"2.0","result":"c","id":1}'
    assert [a["id"] for a in sent(peer.answer(second, "b"))] == [1, 2]


def test_two_batches_are_answered_each_for_itself() -> None:
    peer = Peer()
    (a1, a2), (b1, b2) = (peer.receive(batch(request("m", i), request("m", i + 1))) for i in (1, 3))
    assert type(a1) is type(a2) is type(b1) is type(b2) is InboundRequest
    assert peer.answer(a1, 0) is None
    assert peer.answer(b2, 0) is None
    assert [a["id"] for a in sent(peer.answer(b1, 0))] == [3, 4]
    assert [a["id"] for a in sent(peer.answer(a2, 0))] == [1, 2]


def test_an_answer_in_a_batch_that_cannot_be_encoded_may_be_given_again() -> None:
    peer = Peer()
    asked = one(peer.receive(batch(request("a", 1))))
    with pytest.raises(LocalProtocolError):
        peer.answer(asked, object())
    assert sent(peer.fail(asked, ErrorObject(1, "x")))[0]["error"]["code"] == 1


def test_a_batch_before_initialization_may_initialize_and_the_rest_is_refused() -> None:
    peer = Peer(Role.WORKER)
    asked, early = peer.receive(batch(request("initialize", 1), request("components/list", 2)))
    assert type(asked) is InboundRequest
    assert type(early) is Dropped
    answers = sent(peer.answer(asked, {}))
    assert [a.get("error", {}).get("code") for a in answers] == [None, -32002]


def test_a_batch_holds_at_most_so_many_messages_and_is_refused_whole() -> None:
    peer = Peer(max_batch_items=2)
    call, _ = peer.call("m")
    answer = refused(peer, batch(success(call.id), request("a", 1), request("b", 2)))
    assert (answer["id"], answer["error"]["code"]) == (None, -32600)
    assert peer.calls == [call]
    assert peer.request_count == 0
    assert len(peer.receive(batch(request("a", 1), request("b", 2)))) == 2


# ---- one event at a time ----------------------------------------------------------------------------


def test_an_event_of_a_batch_is_found_out_when_it_is_asked_for() -> None:
    peer = Peer()
    first, second = peer.call("a")[0], peer.call("b")[0]
    frames = request("m", 1), cancel(1), success(first.id, 1), success(second.id, 2), request("m", 1)
    events = peer.events(batch(*frames))
    asked = next(events)
    assert type(asked) is InboundRequest
    assert peer.answer(asked, 5) is None, "the rest of its batch is still to come"
    late = next(events)
    assert type(late) is Dropped
    assert late.why == "late_cancel", "it was answered before this was asked for"
    assert next(events) == Answered(first, 1)
    peer.abandon(second)
    late = next(events)
    assert type(late) is Dropped
    assert late.why == "late_answer"
    again = next(events)
    assert type(again) is InboundRequest, "its id was free again"
    assert [a["result"] for a in sent(peer.answer(again, 6))] == [5, 6]
    assert list(events) == []


def test_nothing_follows_in_a_batch_once_the_peer_was_closed() -> None:
    peer = Peer()
    events = peer.events(batch(notification("a"), request("m", 1), b"1"))
    assert next(events) == Notification("a")
    peer.close()
    assert list(events) == []
    assert (peer.request_count, peer.dropped) == (0, {})


def test_a_drained_peer_refuses_the_rest_of_a_batch() -> None:
    peer = Peer()
    events = peer.events(batch(request("m", 1), request("m", 2)))
    asked = next(events)
    assert type(asked) is InboundRequest
    peer.drain()
    assert [type(event) for event in events] == [Dropped]
    assert [a.get("error", {}).get("code") for a in sent(peer.answer(asked, 1))] == [None, -32304]


# ---- what is no message -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "id_", "code"),
    [
        (b"", None, -32700),
        (b"{", None, -32700),
        (b"\xff", None, -32700),
        (b"[" * 100_000, None, -32700),
        (b'{"jsonrpc":"2.0","method":"m","id":1', None, -32700),
        (b"1", None, -32600),
        (b"{}", None, -32600),
        (b'{"jsonrpc":"2.0","method":"m","id":true}', None, -32600),
        (b'{"jsonrpc":"2.0","method":"m","id":null}', None, -32600),
        (b'{"jsonrpc":"2.0","method":"m","params":1,"id":"a"}', "a", -32600),
        (b'{"jsonrpc":"2.0","method":1,"id":5}', 5, -32600),
        (b'{"jsonrpc":"1.0","method":"m","id":5}', 5, -32600),
        (b'{"jsonrpc":"2.0","id":5}', 5, -32600),
        (b'{"id":1,"id":2}', None, -32600),
        (b'{"jsonrpc":"2.0","method":"m","params":1}', None, -32600),
    ],
)
@pytest.mark.parametrize("role", list(Role))
def test_what_is_no_message_is_answered_with_an_error_in_every_phase(
    frame: bytes, id_: Any, code: int, role: Role
) -> None:
    peer = Peer(role)
    answer = refused(peer, frame)
    assert (answer["id"], answer["error"]["code"]) == (id_, code)
    assert answer["error"]["data"]["detail"]
    assert (peer.call_count, peer.request_count) == (0, 0)
    peer.drain()
    assert refused(peer, frame)["error"]["code"] == code


def test_bytes_that_are_no_frame_are_answered_with_an_error() -> None:
    answer = refused(Peer(), FrameRejected("a line is longer than 8 bytes"))
    assert (answer["id"], answer["error"]["code"]) == (None, -32600)
    assert answer["error"]["data"] == {"detail": "a line is longer than 8 bytes"}


@pytest.mark.parametrize("role", list(Role))
def test_a_refusal_is_small_however_large_what_is_refused(role: Role) -> None:
    """It quotes the id and the method, and what is sent is held to a limit of size as well."""
    huge = "x" * 2**20
    peer = Peer(role)
    peer.drain()
    other = Peer(role)
    arrived = other.receive(request("m", "i" * MAX_ID_CHARS))
    for events in (
        peer.receive(request("m", huge)),
        peer.receive(request(huge, 1)),
        Peer(Role.WORKER).receive(request(huge, 1)),
        other.receive(request("m", "i" * MAX_ID_CHARS)),
    ):
        event = one(events)
        assert type(event) is Reply
        assert len(event.frame) < MAX_ID_CHARS + 1000
    assert len(arrived) == 1
    for frame in (
        notification(huge),
        success("i" * MAX_ID_CHARS),
        success(huge),
        cancel(huge),
        failure(None, 1, huge),
    ):
        for event in Peer(Role.WORKER).receive(frame):
            assert type(event) is Dropped
            assert len(event.detail) < 1000


def test_without_details_an_error_is_what_the_specification_prints_and_the_event_still_knows_more() -> None:
    peer = Peer(error_details=False)
    event = one(peer.receive(b"{"))
    assert event.frame == b'{"jsonrpc":"2.0","error":{"code":-32700,"message":"Parse error"},"id":null}'
    assert event.error.data["detail"]
    assert one(peer.receive(b"1")).frame == (
        b'{"jsonrpc":"2.0","error":{"code":-32600,"message":"Invalid Request"},"id":null}'
    )


def test_the_limit_of_nesting_can_be_chosen() -> None:
    frame = b'{"jsonrpc":"2.0","method":"m","params":[[[]]]}'
    assert one(Peer(max_nesting=4).receive(frame)) == Notification("m", [[[]]])
    assert refused(Peer(max_nesting=3), frame)["error"]["code"] == -32700


# ---- the end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Peer, worker, runtime])
def test_a_draining_peer_finishes_what_is_in_flight_and_refuses_what_is_new(make: Any) -> None:
    peer = make()
    asked, (call, _) = arrive(peer, "m", 7), peer.call("n")
    peer.drain()
    assert peer.phase is Phase.DRAINING
    for method in ("m", "initialize"):
        answer = refused(peer, request(method, 8))
        assert (answer["id"], answer["error"]["code"]) == (8, ErrorCode.OVERLOADED)
        assert answer["error"]["data"]["retry_after_s"] > 0
    assert peer.receive(cancel(7)) == [CancelReceived(asked)]
    assert peer.receive(notification("x")) == [Notification("x")]
    assert peer.receive(success(call.id, 1)) == [Answered(call, 1)]
    assert peer.answer(asked, 1) is not None
    late, _ = peer.call("o")
    assert peer.calls == [late], "a handler that finishes may still need to call back"
    assert peer.notify("p")
    peer.drain()
    assert peer.phase is Phase.DRAINING


@pytest.mark.parametrize("role", [Role.WORKER, Role.RUNTIME])
def test_a_peer_that_drains_before_it_was_ready_does_not_become_ready(role: Role) -> None:
    peer = Peer(role)
    asked = peer.receive(request("initialize", 1))[0]
    peer.drain()
    if type(asked) is InboundRequest:
        peer.answer(asked, {})
    peer.notify("initialized")
    peer.receive(notification("initialized"))
    assert peer.phase is Phase.DRAINING


def test_after_hanging_up_no_call_waits_and_none_can_begin_but_requests_may_be_answered() -> None:
    peer = Peer()
    first, second = peer.call("a")[0], peer.call("b")[0]
    peer.abandon(second)
    asked = arrive(peer, "m", 7)
    assert peer.hang_up() == [first]
    assert (peer.call_count, peer.abandoned_count) == (0, 0)
    assert peer.phase is Phase.DRAINING
    assert peer.requests == [asked]
    with pytest.raises(ConnectionLost, match="nothing more will arrive"):
        peer.call("c")
    assert peer.calls == []
    assert peer.notify("progress")
    assert peer.answer(asked, 1) is not None
    assert peer.hang_up() == []


def test_closing_ends_every_call_and_every_request_and_nothing_begins_again() -> None:
    peer = Peer()
    first, second = peer.call("a")[0], peer.call("b")[0]
    peer.abandon(second)
    asked = arrive(peer, "m", 7)
    assert peer.close() == ([first], [asked])
    assert peer.phase is Phase.CLOSED
    assert (peer.call_count, peer.abandoned_count, peer.request_count) == (0, 0, 0)
    for use in (lambda: peer.call("m"), lambda: peer.notify("n"), lambda: peer.notify("initialized")):
        with pytest.raises(ConnectionLost):
            use()
    for frame in (request("m", 8), notification("n"), success(first.id), b"{", b"[]", cancel(7)):
        assert peer.receive(frame) == []
    assert peer.receive(FrameRejected("x")) == []
    with pytest.raises(LocalProtocolError):
        peer.answer(asked, 1)
    assert peer.dropped == {}
    assert (peer.call_count, peer.request_count) == (0, 0)


def test_a_closed_peer_stays_closed() -> None:
    peer = Peer()
    peer.close()
    peer.drain()
    assert peer.hang_up() == []
    assert peer.close() == ([], [])
    assert peer.phase is Phase.CLOSED


def test_a_batch_that_was_half_answered_when_the_peer_closed_is_never_sent() -> None:
    peer = Peer()
    first, second = peer.receive(batch(request("a", 1), request("b", 2)))
    assert type(first) is type(second) is InboundRequest
    assert peer.answer(first, 1) is None
    assert peer.close() == ([], [second])
    with pytest.raises(LocalProtocolError):
        peer.answer(second, 1)


# ---- for people -------------------------------------------------------------------------------------


def test_a_peer_and_its_records_say_in_their_repr_how_they_are() -> None:
    peer = Peer(Role.PLAIN)
    peer.call("m")
    asked = arrive(peer, "components/list", "i1")
    assert repr(peer) == "<Peer plain ready: 1 calls waiting, 1 requests running>"
    assert "'i1'" in repr(asked)
    assert "components/list" in repr(asked)
