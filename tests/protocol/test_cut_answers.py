"""An answer that cannot be read is an answer all the same: its caller must hear of it.

One that was cut off runs into the next one on its line; others are too long, too deep or no JSON, and their
id stands at either end.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.errors import ErrorCode
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import FrameRejected, LineFramer
from stepflow_trio.protocol.peer import AnsweredWithError, Dropped, Peer, Reply

WHOLE = b'{"jsonrpc":"2.0","id":2,"result":{"output":1}}'


def asked(count: int = 3) -> Peer:
    peer = Peer()
    for _ in range(count):
        peer.call("ask")
    return peer


@pytest.mark.parametrize(
    "cut",
    [
        b'{"id":1,"result":{"output":"xxx',
        b'{"jsonrpc":"2.0","id":1,"result":{"output":"xxx',
        b' { "jsonrpc" : "2.0" , "id" : 1 , "error" : {"code": 1',
        b'{"id":1,"result":',
    ],
)
def test_the_calls_of_both_answers_fail_and_others_wait_on(cut: bytes) -> None:
    peer = asked()
    events = peer.receive(cut + WHOLE)
    assert all(isinstance(event, AnsweredWithError) and event.garbled for event in events)
    assert [event.call.id for event in events if isinstance(event, AnsweredWithError)] == [1, 2]
    assert [call.id for call in peer.calls] == [3]


@pytest.mark.parametrize(
    "inside", [b'[{"id":3,"result":0},{"a', b'{"x": {"id":3,"result":0},"b', b'{"id":3,"result":']
)
def test_an_object_that_looks_like_an_answer_inside_one_ends_no_call(inside: bytes) -> None:
    peer = asked()
    [event] = peer.receive(b'{"id":1,"result":{"output":' + inside)
    assert isinstance(event, AnsweredWithError)
    assert event.call.id == 1
    assert [call.id for call in peer.calls] == [2, 3]


def test_the_answer_to_a_call_that_was_given_up_is_late_even_if_it_was_cut_off() -> None:
    peer = asked()
    peer.abandon(peer.calls[0])
    [first, second] = peer.receive(b'{"id":1,"result":{"a' + WHOLE)
    assert isinstance(first, Dropped)
    assert first.why == "late_answer"
    assert isinstance(second, AnsweredWithError)


@pytest.mark.parametrize(
    "frame",
    [
        b'{"id":9,"result":{"a',
        b'{"jsonrpc":"2.0","method":"ask","params":{"id":1,"resul',
        b'{"id":1,"method":"ask","par',
        b'{"id":"1","result":{"a',
        b'{"text":"{\\"id\\":1,\\"result\\":1',
        b"Loading id:1, result: 2",
        b'{"id":1.5,"result":{"a',
        b'{"id":-1,"result":{"a',
    ],
)
def test_what_begins_no_answer_to_a_call_in_flight_is_refused_as_ever(frame: bytes) -> None:
    peer = asked()
    [reply] = peer.receive(frame)
    assert isinstance(reply, Reply)
    assert reply.error.code == ErrorCode.PARSE_ERROR
    assert len(peer.calls) == 3


def test_an_answer_that_is_whole_is_never_looked_at_in_this_way() -> None:
    peer = asked()
    [event] = peer.receive(b'{"jsonrpc":"2.0","id":3,"result":{"id":1,"result":{"id":2,"error":1}}}')
    assert type(event).__name__ == "Answered"
    assert [call.id for call in peer.calls] == [1, 2]


UNREADABLE = [b"NaN", b'{"output":"\\ud800"}', b'"\xff"', b"[" * 130 + b"]" * 130, b'{"id":3,"result":NaN}']


@pytest.mark.parametrize("value", UNREADABLE)
@pytest.mark.parametrize(
    "answer",
    [
        b'{"jsonrpc":"2.0","result":%b,"id":2}',
        b'{"jsonrpc":"2.0","error":%b,"id":2}',
        b'{"result":%b,"id":2}',
        b'{"error":%b,"id":2,"jsonrpc":"2.0"}',
        b' { "jsonrpc" : "2.0" , "result" : %b , "id" : 2 } ',
        b'{"result":%b, "id" :2 , "jsonrpc" : "2.0" }\r',
        b'{"jsonrpc":"2.0","id":2,"result":%b}',
        b'{"id":2,"result":%b,"jsonrpc":"2.0"}',
    ],
)
def test_the_call_of_an_answer_that_cannot_be_read_fails_wherever_its_id_stands(
    answer: bytes, value: bytes
) -> None:
    peer = asked()
    [event] = peer.receive(answer % value)
    assert isinstance(event, AnsweredWithError)
    assert event.garbled
    assert [call.id for call in peer.calls] == [1, 3]


@pytest.mark.parametrize(
    "answer",
    [
        b'{"jsonrpc":"2.0","result":"%b","id":2}',
        b'{"jsonrpc":"2.0","error":{"code":1,"message":"%b"},"id":2} \r',
        b'{"jsonrpc": "2.0", "id": 2, "result": "%b"}',
        b'{"id":2,"result":{"a":"%b"},"jsonrpc":"2.0"}',
        b'{"result":"%b","id":2,"jsonrpc":"2.0"}',
        b'{"id":2,"result":"%b{"jsonrpc":"2.0","id":99,"result":1}',
    ],
)
def test_the_call_of_an_answer_that_is_too_long_fails(answer: bytes) -> None:
    peer = asked()
    [rejected] = LineFramer(1000).feed(answer % (b"x" * 1000) + b"\n")
    assert isinstance(rejected, FrameRejected)
    [event] = peer.receive(rejected)
    assert isinstance(event, AnsweredWithError)
    assert event.garbled
    assert event.error.data == {"detail": "a line is longer than 1000 bytes"}
    assert [call.id for call in peer.calls] == [1, 3]


@pytest.mark.parametrize(
    "frame",
    [
        b'{"jsonrpc":"2.0","method":"ask","params":%b,"id":2}',
        b'{"method":"ask","params":{"result":%b},"id":2}',
        b'{"jsonrpc":"2.0","id":2,"method":"ask","params":%b}',
        b'{"jsonrpc":"2.0","result":%b,"id":9}',
        b'{"jsonrpc":"2.0","result":%b,"id":"2"}',
        b'{"jsonrpc":"2.0","result":%b,"id":null}',
        b'{"jsonrpc":"2.0","result":{"a":%b,"id":2}}',
        b'{"jsonrpc":"2.0","result":{"id":2,"result":%b}}',
        b'{"output":%b,"id":2}',
        b'{"jsonrpc":"2.0","params":{"result":%b},"id":2}',
    ],
)
@pytest.mark.parametrize("value", [*UNREADABLE, b'"' + b"x" * 5000 + b'"'])
def test_an_id_at_the_end_of_what_is_no_answer_or_within_one_ends_no_call(frame: bytes, value: bytes) -> None:
    peer = asked()
    [message] = LineFramer(1000).feed(frame % value + b"\n")
    [event] = peer.receive(message)
    assert isinstance(event, Reply)
    assert len(peer.calls) == 3


def test_the_two_ends_of_a_long_line_are_never_read_as_one() -> None:
    peer = asked()
    head, tail = b'{"id":1', b',"result":0}'
    [event] = peer.receive(FrameRejected("too long", head, tail))
    assert isinstance(event, Reply)
    [event] = peer.receive(FrameRejected("too long", b'{"output":[', b'{"id":2,"result":0}]}'))
    assert isinstance(event, Reply)
    assert len(peer.calls) == 3


@given(
    st.lists(st.sampled_from([b"{", b'"id"', b":", b"1", b",", b'"result"', b'"jsonrpc"', b'"2.0"', b" "]))
)
def test_any_frame_at_all_is_searched_without_an_exception(parts: list[bytes]) -> None:
    assert set(codec.answers_begun(b"".join(parts))) <= {int("1" * n) for n in range(1, 17)}


def test_a_large_frame_is_searched_in_linear_time() -> None:
    for hostile in (
        b"{" * 4_000_000,
        b"{ " * 2_000_000,
        b'{"id":' * 700_000,
        b'{"jsonrpc":"2.0",' * 250_000,
        b'{"result":' + b" " * 4_000_000,
        b'{"result":' + b',"id":1' * 600_000,
    ):
        assert codec.answers_begun(hostile) == []
