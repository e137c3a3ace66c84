"""How a connection begins and ends, and what it makes of what is no message."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET
from peer_frames import (
    arrive,
    batch,
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

from stepflow_trio.errors import ConnectionLost, ErrorCode, LocalProtocolError
from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.protocol.messages import MAX_ID_CHARS, ErrorObject, Notification
from stepflow_trio.protocol.peer import (
    ACCEPTED_EARLY,
    TRANSITIONS,
    Answered,
    CancelReceived,
    Dropped,
    InboundRequest,
    Peer,
    Phase,
    Reply,
    Role,
)

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


def test_a_ready_worker_is_not_initialized_again() -> None:
    """What was agreed on holds for everything in flight."""
    peer = worker()
    arrive(peer, "components/list", 2)
    answer = refused(peer, request("initialize", 1))
    assert (answer["id"], answer["error"]["code"]) == (1, -32600)
    assert "initialized already" in answer["error"]["data"]["detail"]
    assert peer.phase is Phase.READY
    assert peer.receive(notification("initialized")) == [Notification("initialized", UNSET)]
    assert (peer.phase, peer.request_count) == (Phase.READY, 1)
    arrive(runtime(), "initialize", 1)


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
