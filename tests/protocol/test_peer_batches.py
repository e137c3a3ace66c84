"""Arrays of messages: each item on its own, one answer for the whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from peer_frames import (
    arrive,
    batch,
    cancel,
    failure,
    notification,
    one,
    refused,
    request,
    sent,
    success,
)

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import MAX_FRAME_BYTES
from stepflow_trio.protocol.messages import ErrorObject, Notification
from stepflow_trio.protocol.peer import (
    Answered,
    AnsweredWithError,
    CancelReceived,
    Dropped,
    InboundRequest,
    Peer,
    Reply,
    Role,
)

# ---- batches ----------------------------------------------------------------------------------------


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


# ---- what a batch may hold --------------------------------------------------------------------------


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def asked_together(peer: Peer, *ids: int | str) -> list[InboundRequest]:
    events = peer.receive(batch(*(request("m", id_) for id_ in ids)))
    return [event for event in events if type(event) is InboundRequest]


def codes(frame: bytes | None) -> list[int | None]:
    return [answer.get("error", {}).get("code") for answer in sent(frame)]


def test_an_answer_that_nests_as_deep_as_it_may_nests_too_deep_in_a_batch() -> None:
    peer = Peer()
    alone = codec.encode_success(nested(codec.MAX_NESTING - 1), 1)
    assert type(codec.decode(alone)).__name__ == "Success"
    first, second, third, last = asked_together(peer, 1, 2, 3, 4)
    peer.answer(first, nested(codec.MAX_NESTING - 1))
    peer.answer(second, nested(codec.MAX_NESTING - 2))
    peer.fail(third, ErrorObject(-1, "x", nested(codec.MAX_NESTING - 2)))
    whole = peer.answer(last, "fine")
    assert whole is not None
    assert type(codec.decode(whole)).__name__ == "Batch"
    assert codes(whole) == [-32603, None, -32603, None]
    assert "outside" in sent(whole)[0]["error"]["data"]["detail"]


def test_an_answer_that_is_larger_than_a_batch_may_hold_is_refused_and_a_small_one_is_not() -> None:
    peer = Peer(max_batched_bytes=1000)
    first, second = asked_together(peer, 1, 2)
    assert peer.answer(first, "x" * 1000) is None
    assert codes(peer.answer(second, "x" * 100)) == [-32603, None]
    [alone] = asked_together(peer, 1)
    assert codes(peer.answer(alone, "x" * 1000)) == [-32603]
    assert peer.answer(arrive(peer, "m", 3), "x" * 1000) is not None, "outside a batch it is none too many"


def test_what_waits_for_the_rest_of_its_batch_is_bounded_over_all_batches() -> None:
    peer = Peer(max_batched_bytes=1000)
    batches = [asked_together(peer, f"{n}a", f"{n}b", f"{n}c") for n in range(3)]
    for a, _, _ in batches:
        assert peer.answer(a, "x" * 400) is None
    assert 800 < peer.batched_bytes < 1100
    for a, b, _ in batches:
        assert peer.is_answered(a)
        assert peer.fail(b, ErrorObject(-1, "x" * 5000)) is None
    assert peer.batched_bytes < 1900, "the errors instead are small"
    frames = [peer.answer(c, None) for _, _, c in batches]
    assert peer.batched_bytes == 0
    assert [codes(frame)[0] for frame in frames] == [None, None, -32304]
    refusal = sent(frames[2])[0]
    assert refusal["id"] == "2a"
    assert refusal["error"]["data"]["retry_after_s"] > 0
    whole = asked_together(peer, 1, 2)
    assert peer.answer(whole[0], "x" * 400) is None
    assert codes(peer.answer(whole[1], "x" * 400)) == [None, None], "there is room again"


def test_while_too_much_waits_a_further_batch_is_refused_at_once() -> None:
    peer = Peer(max_batched_bytes=1000)
    held = peer.receive(batch(request("m", 1), *[b"1"] * 20))[0]
    assert type(held) is InboundRequest
    before = peer.batched_bytes
    assert before > 1000
    *_, last = peer.receive(batch(request("m", 2), b"1", request("m", 3)))
    assert type(last) is Reply
    assert codes(last.frame) == [-32304, -32600, -32304]
    assert (peer.batched_bytes, peer.requests) == (before, [held])
    arrive(peer, "m", 4)
    assert peer.answer(held, 1) is not None
    assert peer.batched_bytes == 0


def test_answers_that_fit_one_by_one_but_not_together_are_one_error() -> None:
    peer = Peer(max_batched_bytes=2 * MAX_FRAME_BYTES)
    first, second = asked_together(peer, 1, 2)
    large = "x" * (MAX_FRAME_BYTES // 2)
    assert peer.answer(first, large) is None
    whole = peer.answer(second, large)
    assert whole is not None
    answer = json.loads(whole)
    assert (answer["id"], answer["error"]["code"]) == (None, -32603)


def test_by_default_what_waits_fits_into_one_frame() -> None:
    peer = Peer()
    *most, last = asked_together(peer, *range(10))
    for asked in most:
        assert peer.answer(asked, "x" * (10 * 2**20)) is None
    assert peer.batched_bytes < MAX_FRAME_BYTES // 2
    whole = peer.answer(last, 1)
    assert whole is not None
    assert len(whole) < MAX_FRAME_BYTES
    assert codes(whole) == [None] * 3 + [-32304] * 6 + [None]


def test_an_initialize_whose_answer_is_refused_changes_no_phase() -> None:
    peer = Peer(Role.WORKER, max_batched_bytes=1000)
    asked = one(peer.receive(batch(request("initialize", 1))))
    assert codes(peer.answer(asked, "x" * 1000)) == [-32603]
    assert peer.phase.value == "new"


def test_nothing_of_a_batch_is_held_once_it_is_answered_or_the_peer_is_closed() -> None:
    peer = Peer()
    first, second = asked_together(peer, 1, 2)
    peer.answer(first, "x")
    assert peer.batched_bytes == len(success(1, "x"))
    peer.answer(second, "x")
    assert peer.batched_bytes == 0
    third, _ = asked_together(peer, 1, 2)
    peer.answer(third, "x")
    peer.close()
    assert peer.batched_bytes == 0


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
