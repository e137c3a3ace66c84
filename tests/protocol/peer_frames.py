"""What the tests of a peer say to it, and what they look at in return."""

from __future__ import annotations

import json
from typing import Any

from msgspec import UNSET

from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.protocol.messages import ErrorObject, Notification
from stepflow_trio.protocol.peer import (
    CANCEL_REQUEST,
    Answered,
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


def sent(frame: bytes | None) -> list[Any]:
    assert frame is not None
    answers = json.loads(frame)
    assert type(answers) is list
    return answers
