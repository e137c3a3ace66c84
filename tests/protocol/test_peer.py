"""The rules for calls, requests and notifications, one by one; the state machine mixes them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import UNSET
from peer_frames import (
    arrive,
    cancel,
    dropped,
    failure,
    notification,
    one,
    refused,
    request,
    runtime,
    success,
    worker,
)

from stepflow_trio.errors import ConnectionLost, ErrorCode, LocalProtocolError, LossReason
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.messages import ErrorObject, Notification
from stepflow_trio.protocol.peer import (
    CANCEL_REQUEST,
    MAX_ABANDONED,
    Answered,
    AnsweredWithError,
    Call,
    CallLost,
    CancelReceived,
    Dropped,
    InboundRequest,
    Peer,
    Role,
    Unanswerable,
)

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


# ---- for people -------------------------------------------------------------------------------------


def test_a_peer_and_its_records_say_in_their_repr_how_they_are() -> None:
    peer = Peer(Role.PLAIN)
    peer.call("m")
    asked = arrive(peer, "components/list", "i1")
    assert repr(peer) == "<Peer plain ready: 1 calls waiting, 1 requests running>"
    assert "'i1'" in repr(asked)
    assert "components/list" in repr(asked)


def test_a_request_that_is_over_no_longer_holds_its_params() -> None:
    peer = Peer()
    answered, failed, ended = (arrive(peer, "m", id_, [1]) for id_ in (1, 2, 3))
    with pytest.raises(LocalProtocolError):
        peer.answer(answered, object())
    assert answered.params == [1]
    peer.answer(answered, 1)
    peer.fail(failed, ErrorObject(-1, "x"))
    assert ended.params == [1]
    peer.close()
    assert [asked.params for asked in (answered, failed, ended)] == [UNSET] * 3


def test_a_call_that_cannot_be_answered_ends_with_the_reason_and_nothing_else_does() -> None:
    peer = Peer()
    lost, _ = peer.call("a")
    kept, _ = peer.call("b")
    error = ConnectionLost(LossReason.STREAM_ERROR, "nobody listens there")
    assert peer.receive(Unanswerable(lost.id, error)) == [CallLost(lost, error)]
    assert peer.calls == [kept]


def test_a_call_given_up_leaves_no_tombstone_once_it_is_known_that_no_answer_comes() -> None:
    peer = Peer()
    call, _ = peer.call("a")
    peer.abandon(call)
    [event] = peer.receive(Unanswerable(call.id, ConnectionLost(LossReason.LOCAL_CLOSE)))
    assert isinstance(event, Dropped)
    assert event.why == "late_answer"
    assert peer.abandoned_count == 0


def test_ids_with_a_prefix_are_strings_that_only_their_own_answers_match() -> None:
    peer = Peer(id_prefix="f00d-")
    call, frame = peer.call("a")
    assert call.id == "f00d-1"
    assert b'"id":"f00d-1"' in frame
    [other] = peer.receive(b'{"jsonrpc":"2.0","id":1,"result":0}')
    assert isinstance(other, Dropped)
    assert peer.receive(b'{"jsonrpc":"2.0","id":"f00d-1","result":0}') == [Answered(call, 0)]


def test_a_message_that_is_decoded_already_counts_as_the_frame_would() -> None:
    peer = Peer()
    message = codec.decode(b'{"jsonrpc":"2.0","id":"x","method":"m"}')
    [request] = peer.receive(message)
    assert isinstance(request, InboundRequest)
    assert request.id == "x"
    assert request.method == "m"
