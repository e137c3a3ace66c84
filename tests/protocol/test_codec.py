"""Frames to values and back: nothing that arrives makes the codec raise, nothing unreadable leaves it.

``STEPFLOW_FUZZ=20`` tries twenty times as many inputs.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import sys
import time
from typing import Any

import pytest
from envelope_frames import frame
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from stepflow_trio.errors import ErrorCode, LocalProtocolError
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import MAX_FRAME_BYTES
from stepflow_trio.protocol.messages import (
    Batch,
    ErrorObject,
    Failure,
    Malformed,
    Notification,
    Request,
    Success,
)

SCALE = float(os.environ.get("STEPFLOW_FUZZ", "1"))
FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck))


# ---- nesting ----------------------------------------------------------------------------------------


def depth_of(text: bytes) -> int:
    """The deepest level of brackets outside strings, one byte after the other."""
    depth = deepest = 0
    in_string = escaped = False
    for byte in text:
        char = chr(byte)
        if escaped:
            escaped = False
        elif in_string:
            escaped, in_string = char == "\\", char != '"'
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


BRACKETS = st.text('[]{}",\\a:', max_size=40).map(str.encode)


@settings(FUZZ, max_examples=300)
@given(BRACKETS, st.integers(0, 6))
@example(b'{"a":[{"a":[]}]}', 3)
@example(b'["\\"[[[[[["]', 1)
@example(b"][[", 1)
@example(b'["[[[[[[', 1)
def test_nesting_is_judged_as_by_counting_brackets_one_by_one(text: bytes, limit: int) -> None:
    if b"\\" in text.replace(b'"', b"") and not _is_json(text):
        # Outside a string a backslash is no JSON, so that where the next string begins has no right answer.
        return
    assert codec.nests_deeper(text, limit) == (depth_of(text) > limit)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=15,
)  # fmt: skip


@settings(FUZZ, max_examples=150)
@given(JSON, st.integers(0, 6))
def test_nesting_of_a_value_is_how_deep_it_nests(value: Any, limit: int) -> None:
    def deep(value: Any) -> int:
        match value:
            case list():
                return 1 + max(map(deep, value), default=0)
            case dict():
                return 1 + max(map(deep, value.values()), default=0)
            case _:
                return 0

    assert codec.nests_deeper(codec.encode_json(value), limit) == (deep(value) > limit)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":', b'{"a":[', b'[[{"a":', b'{"":{"":['])
def test_the_limit_of_nesting_is_exact_whatever_nests(opening: bytes) -> None:
    closing = opening.translate(bytes.maketrans(b"[{", b"]}"), b'":a')[::-1]
    step = len(closing)
    for depth in range(step, 12 * step, step):
        text = opening * (depth // step) + b"1" + closing * (depth // step)
        assert codec.decode_json(text, max_nesting=depth) is not None
        with pytest.raises(ValueError, match=f"nested deeper than {depth - 1} levels"):
            codec.decode_json(text, max_nesting=depth - 1)


def test_levels_are_counted_through_however_long_a_text() -> None:
    between = b"[" + b"[]," * 100_000 + b"[]],"
    text = b"[" * 100 + between + b"[" * 28 + b"]" * 128
    assert not codec.nests_deeper(text, 128)
    assert codec.nests_deeper(text, 127)
    assert codec.nests_deeper(b"[" * 100 + between + b"[" * 29 + b"]" * 129, 128)


def test_where_the_stack_is_nearly_used_up_a_deep_frame_is_refused_and_nothing_is_raised() -> None:
    text = b'{"jsonrpc":"2.0","id":1,"result":' + b"[" * 127 + b"]" * 127 + b"}"

    def descend(levels: int) -> object:
        return descend(levels - 1) if levels else codec.decode(text)

    assert type(codec.decode(text)) is Success
    frames = len(_stack())
    message = descend(sys.getrecursionlimit() - frames - 60)
    if sys.version_info >= (3, 12):  # what C code nests no longer counts with Python's frames
        assert type(message) is Success
    else:
        assert type(message) is Malformed
        assert message.error.code == ErrorCode.PARSE_ERROR


def _stack() -> list[object]:
    found: list[object] = []
    current = sys._getframe()
    while current is not None:
        found.append(current)
        current = current.f_back
    return found


# ---- any bytes at all -------------------------------------------------------------------------------

DECODED = (Request, Notification, Success, Failure, Malformed, Batch)

VALID = [
    frame(method='"components/execute"', params='{"component":"/a","input":{"x":[1,2.5,null]}}', id='"i1"'),
    frame(method='"initialized"', params="{}"),
    frame(result='{"output":{"text":"\\u00e9\\n","n":-1.5e-7}}', id="7"),
    frame(error='{"code":-32001,"message":"Component not found","data":{"component":"/x"}}', id="null"),
    b"["
    + frame(method='"sum"', params="[1,2,4]", id='"1"')
    + b","
    + frame(method='"n"', params="[7]")
    + b"]",
]


def assert_documented(message: object) -> None:
    assert type(message) in DECODED
    if type(message) is Batch:
        assert message.items
        assert all(type(item) in DECODED[:5] for item in message.items)
    if type(message) is Malformed:
        assert message.error.code in (ErrorCode.PARSE_ERROR, ErrorCode.INVALID_REQUEST)
        assert codec.encode_failure(message.error, message.id)


@settings(FUZZ, max_examples=int(400 * SCALE) or 1)
@given(st.binary(max_size=64) | st.text(max_size=64).map(str.encode) | BRACKETS)
def test_any_bytes_decode_to_a_documented_type_and_never_raise(text: bytes) -> None:
    assert_documented(codec.decode(text))


INSERTED = [b'"id":1,', b"[", b"}", b'"', b"\\u00", b"\xed\xa0\x80", b"1e400", b"null"]
MUTATION = st.tuples(st.integers(0, 5), st.integers(0, 400), st.integers(0, 255))


def mutate(text: bytes, mutations: list[tuple[int, int, int]]) -> bytes:
    found = bytearray(text)
    for kind, where, what in mutations:
        at = where % (len(found) + 1)
        match kind:
            case 0:
                found[at : at + 1] = bytes([what])
            case 1:
                found[at:at] = bytes([what])
            case 2:
                del found[at : at + 1 + what % 8]
            case 3:
                found[at:at] = found[: what % 32]
            case 4:
                del found[at:]
            case _:
                found[at:at] = INSERTED[what % len(INSERTED)]
    return bytes(found)


@settings(FUZZ, max_examples=int(1500 * SCALE) or 1)
@given(st.sampled_from(VALID), st.lists(MUTATION, min_size=1, max_size=6))
def test_a_mutated_frame_decodes_to_a_documented_type_and_never_raises(
    text: bytes, mutations: list[tuple[int, int, int]]
) -> None:
    assert_documented(codec.decode(mutate(text, mutations)))


@settings(FUZZ, max_examples=150)
@given(JSON)
def test_any_decoded_value_is_classified_and_nothing_is_raised(value: Any) -> None:
    assert_documented(codec.classify(value))


# ---- there and back ---------------------------------------------------------------------------------


@settings(FUZZ, max_examples=200)
@given(JSON)
def test_what_is_encoded_is_decoded_to_the_same(value: Any) -> None:
    text = codec.encode_json(value)
    assert repr(codec.decode_json(text)) == repr(value)
    assert b"\n" not in text, "a line holds one message"
    assert json.loads(text) == value


IDS_GIVEN = st.text(max_size=6) | st.integers(-(2**63), 2**63 - 1)
PARAMS = st.just(UNSET) | st.dictionaries(st.text(max_size=3), JSON, max_size=3) | st.lists(JSON, max_size=3)


@settings(FUZZ, max_examples=150)
@given(st.text(max_size=8), PARAMS, IDS_GIVEN, JSON, st.integers(-(2**63), 2**63 - 1))
def test_every_message_is_read_as_it_was_written(
    method: str, params: Any, id_: Any, value: Any, code: int
) -> None:
    assert codec.decode(codec.encode_request(method, params, id_)) == Request(method, params, id_)
    assert codec.decode(codec.encode_notification(method, params)) == Notification(method, params)
    assert codec.decode(codec.encode_success(value, id_)) == Success(value, id_)
    for error in (ErrorObject(code, method), ErrorObject(code, method, value)):
        assert codec.decode(codec.encode_failure(error, id_)) == Failure(error, id_)
        assert codec.decode(codec.encode_failure(error, None)) == Failure(error, None)


def test_frames_are_compact_and_in_the_order_of_the_specification() -> None:
    assert codec.encode_request("m", {"b": 1, "a": 2}, 7) == (
        b'{"jsonrpc":"2.0","method":"m","params":{"b":1,"a":2},"id":7}'
    )
    assert codec.encode_request("m", UNSET, "7") == b'{"jsonrpc":"2.0","method":"m","id":"7"}'
    assert codec.encode_notification("m", [1]) == b'{"jsonrpc":"2.0","method":"m","params":[1]}'
    assert codec.encode_success(None, 7) == b'{"jsonrpc":"2.0","result":null,"id":7}'
    assert codec.encode_failure(ErrorObject(-1, "é"), None) == (
        '{"jsonrpc":"2.0","error":{"code":-1,"message":"é"},"id":null}'.encode()
    )
    assert codec.encode_failure(ErrorObject(ErrorCode.PARSE_ERROR, "x", None), 1) == (
        b'{"jsonrpc":"2.0","error":{"code":-32700,"message":"x","data":null},"id":1}'
    )
    assert codec.encode_batch([b"1", b"2"]) == b"[1,2]"


def self_containing() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (object(), "object"),
        (1j, "complex"),
        ({(1, 2): 3}, "keys"),
        ("\ud800", "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        (self_containing(), "contains itself"),
        (deep(100_000), "deep"),
        (10**5000, "digits"),
        (lambda: 1, "function"),
    ],
    ids=[
        "object",
        "complex",
        "tuple key",
        "surrogate",
        "surrogate key",
        "cycle",
        "deep",
        "digits",
        "function",
    ],
)
def test_what_cannot_be_sent_is_a_mistake_of_ours_and_says_which(value: Any, says: str) -> None:
    for encode in (
        lambda: codec.encode_json(value),
        lambda: codec.encode_request("m", [value], 1),
        lambda: codec.encode_notification("m", [value]),
        lambda: codec.encode_success(value, 1),
        lambda: codec.encode_failure(ErrorObject(1, "x", value), 1),
    ):
        with pytest.raises(LocalProtocolError, match=says):
            encode()
    assert codec.encode_json([1]) == b"[1]", "the encoder is as good as before"


def test_a_method_or_message_that_is_no_unicode_text_is_a_mistake_of_ours() -> None:
    for encode in (
        lambda: codec.encode_request("\ud800", UNSET, 1),
        lambda: codec.encode_notification("\ud800", UNSET),
        lambda: codec.encode_failure(ErrorObject(1, "\ud800"), 1),
    ):
        with pytest.raises(LocalProtocolError, match="surrogate"):
            encode()


def test_numbers_that_json_lacks_become_null_so_whoever_minds_checks_before() -> None:
    """The encoder's own behaviour; results of components are checked before they get here."""
    assert codec.encode_json([math.nan, math.inf, -math.inf]) == b"[null,null,null]"


# ---- time -------------------------------------------------------------------------------------------

MIB = 2**20
TOO_DEEP = b"[" * 129
HOSTILE = {
    "quotes": b'"' * 10 * MIB,
    "backslashes": b"\\" * 10 * MIB,
    "backslashes in a string": b'"' + b"\\" * 10 * MIB,
    "escaped quotes": b'["' + b'\\"' * 5 * MIB,
    "empty strings": TOO_DEEP + b'""' * 5 * MIB,
    "unclosed string": TOO_DEEP + b'"' + b"[" * 10 * MIB,
    "open brackets": b"[" * 10 * MIB,
    "closing brackets": b"]" * 10 * MIB,
    "one deep nest": b"[" * 5 * MIB + b"]" * 5 * MIB,
    # These end too deep, so that it is the count of brackets that is measured, not the decoder.
    "many nests at the limit": b"[" + (b"[" * 127 + b"]" * 127 + b",") * (10 * MIB // 255) + TOO_DEEP,
    "many nests of both kinds": b"[" + (b'{"":[' * 63 + b"]}" * 63 + b",") * (10 * MIB // 442) + TOO_DEEP,
    "many shallow nests": b"[" + b"[[[[]]]]," * MIB + TOO_DEEP,
    "flat arrays": b"[" + b"[]," * (3 * MIB) + TOO_DEEP,
    "escaped keys": b'{"a":"' + b"\\u0069" * MIB + b'"}',
    "one key many times": b"{" + b'"id":1,' * MIB + b'"id":1}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_frame_of_10_mib_is_refused_in_linear_time(name: str) -> None:
    started = time.process_time()
    assert type(codec.decode(HOSTILE[name])) is Malformed
    # The slowest takes 0.6 s here. Quadratic work would take hours, work times the depth 5 s.
    assert time.process_time() - started < 3


def test_what_nests_deeper_than_we_would_read_is_not_sent() -> None:
    def nested(levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = [value]
        return value

    codec.encode_request("m", nested(codec.MAX_NESTING - 1), 1)
    with pytest.raises(LocalProtocolError, match="nests deeper than 128"):
        codec.encode_request("m", nested(codec.MAX_NESTING), 1)


def test_what_is_larger_than_we_would_read_is_not_sent() -> None:
    room = MAX_FRAME_BYTES - len(codec.encode_success("", 1))
    assert len(codec.encode_success("x" * room, 1)) == MAX_FRAME_BYTES
    with pytest.raises(LocalProtocolError, match="store large data as blobs"):
        codec.encode_success("x" * (room + 1), 1)


def test_no_result_at_all_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError, match="UNSET"):
        codec.encode_success(UNSET, 1)


AWKWARD = st.recursive(
    st.sampled_from([None, 1, "x", ',"id":7}', '"', "\\", ',\\"id\\":"a"}', "id"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "method", "a"]), inner)
    ),
    max_leaves=6,
)
IDS = st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20)


@given(method=st.text(max_size=10), params=st.dictionaries(st.text(max_size=3), AWKWARD), id_=IDS)
def test_the_outline_of_our_own_frames_is_that_of_the_decoded_message(
    method: str, params: Any, id_: int | str
) -> None:
    assert codec.outline(codec.encode_request(method, params, id_)) == codec.Outline(method, id_)
    assert codec.outline(codec.encode_notification(method, params)) == codec.Outline(method, None)
    assert codec.outline(codec.encode_success(params, id_)) == codec.Outline(None, id_)
    error = ErrorObject(1, method, params)
    assert codec.outline(codec.encode_failure(error, id_)) == codec.Outline(None, id_)
    assert codec.outline(codec.encode_failure(error, None)) == codec.Outline(None, None)


def test_the_outline_of_a_notification_without_params() -> None:
    assert codec.outline(codec.encode_notification("x", UNSET)) == codec.Outline("x", None)


@pytest.mark.parametrize("text", [b"[" + b"0," * 2**18 + b"0]", b"[" + b"0," * 2**18])
@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_as_it_was_after_a_large_text(text: bytes, enabled: bool) -> None:
    was_enabled = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with contextlib.suppress(ValueError):
            codec.decode_json(text)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
