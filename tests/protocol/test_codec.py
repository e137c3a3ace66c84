"""Frames to messages and back: which object is which message, and that no input makes the codec raise."""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from stepflow_trio.errors import ErrorCode, LocalProtocolError
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import MAX_FRAME_BYTES
from stepflow_trio.protocol.messages import (
    MAX_ID_CHARS,
    Batch,
    ErrorObject,
    Failure,
    Malformed,
    Notification,
    Request,
    Success,
)

FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck))

ABSENT = object()

# An id as JSON text → the id that it is, or ABSENT where it is none.
IDS: dict[str, Any] = {
    "7": 7,
    '"7"': "7",
    '""': "",
    '"\\u0037"': "7",
    "0": 0,
    "-0": 0,
    "-1": -1,
    str(2**53): 2**53,
    str(2**53 + 1): 2**53 + 1,
    str(2**63 - 1): 2**63 - 1,
    str(-(2**63)): -(2**63),
    '"' + "x" * MAX_ID_CHARS + '"': "x" * MAX_ID_CHARS,
    '"' + "é" * MAX_ID_CHARS + '"': "é" * MAX_ID_CHARS,
    '"' + "x" * (MAX_ID_CHARS + 1) + '"': ABSENT,
    str(2**63): ABSENT,
    str(-(2**63) - 1): ABSENT,
    "1" + "0" * 400: ABSENT,
    "1.0": ABSENT,
    "1.5": ABSENT,
    "1e0": ABSENT,
    "-0.0": ABSENT,
    "true": ABSENT,
    "false": ABSENT,
    "null": ABSENT,
    "[]": ABSENT,
    "[7]": ABSENT,
    "{}": ABSENT,
    '{"id":7}': ABSENT,
}


def frame(**members: str | None) -> bytes:
    """One object with these members as JSON text; those that are None are left out."""
    members = {"jsonrpc": '"2.0"', **members}
    pairs = (f'"{key}":{text}' for key, text in members.items() if text is not None)
    return f"{{{','.join(pairs)}}}".encode()


def malformed(message: object) -> Malformed:
    assert type(message) is Malformed, message
    assert message.error.code == ErrorCode.INVALID_REQUEST
    assert message.error.message == "Invalid Request"
    assert list(message.error.data) == ["detail"]
    return message


# ---- ids --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", IDS, ids=lambda text: text[:20])
def test_a_request_has_a_string_or_a_64_bit_integer_as_its_id_and_keeps_its_type(text: str) -> None:
    message = codec.decode(frame(method='"m"', id=text))
    if IDS[text] is ABSENT:
        assert malformed(message).id is None
        assert not malformed(message).is_response
        assert '"id"' in malformed(message).error.data["detail"]
    else:
        assert message == Request("m", UNSET, IDS[text])
        assert type(message.id) is type(IDS[text])


@pytest.mark.parametrize("text", IDS, ids=lambda text: text[:20])
def test_a_result_has_a_string_or_a_64_bit_integer_as_its_id_and_keeps_its_type(text: str) -> None:
    message = codec.decode(frame(result="1", id=text))
    if IDS[text] is ABSENT:
        assert malformed(message).id is None
        assert malformed(message).is_response
    else:
        assert message == Success(1, IDS[text])
        assert type(message.id) is type(IDS[text])


@pytest.mark.parametrize("text", IDS, ids=lambda text: text[:20])
def test_an_error_may_also_have_null_as_its_id(text: str) -> None:
    message = codec.decode(frame(error='{"code":1,"message":"x"}', id=text))
    if text == "null":
        assert message == Failure(ErrorObject(1, "x"), None)
    elif IDS[text] is ABSENT:
        assert malformed(message).id is None
        assert malformed(message).is_response
    else:
        assert message == Failure(ErrorObject(1, "x"), IDS[text])
        assert type(message.id) is type(IDS[text])


def test_without_an_id_a_method_is_a_notification_and_an_answer_is_none() -> None:
    assert codec.decode(frame(method='"m"')) == Notification("m")
    for answer in (frame(result="1"), frame(error='{"code":1,"message":"x"}')):
        assert malformed(codec.decode(answer)) == Malformed(
            ErrorObject(ErrorCode.INVALID_REQUEST, "Invalid Request", {"detail": 'a response needs an "id"'}),
            None,
            is_response=True,
        )


# ---- the other members ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        None, '"1.0"', '"2"', '"2.00"', '"2.0 "', '" 2.0"', '""', "2.0", "2", "null", "true", "[]", "{}",
        '["2.0"]',
    ],
)  # fmt: skip
def test_the_version_is_exactly_the_text_2_0(text: str | None) -> None:
    request = malformed(codec.decode(frame(jsonrpc=text, method='"m"', id="7")))
    assert (request.id, request.is_response) == (7, False)
    answer = malformed(codec.decode(frame(jsonrpc=text, result="1", id='"7"')))
    assert (answer.id, answer.is_response) == ("7", True)
    assert (
        malformed(codec.decode(frame(jsonrpc=text, method='"m"'))).error.data["detail"]
        == '"jsonrpc" must be "2.0"'
    )


def test_the_version_may_be_spelled_with_escapes() -> None:
    assert codec.decode(frame(jsonrpc=r'"\u0032.0"', method='"m"', id="7")) == Request("m", UNSET, 7)


@pytest.mark.parametrize("text", ["null", "true", "1", "1.5", "[]", "{}", '["m"]'])
@pytest.mark.parametrize("id_", [None, "7", "null"])
def test_a_method_is_a_string(text: str, id_: str | None) -> None:
    message = malformed(codec.decode(frame(method=text, id=id_)))
    assert (message.id, message.is_response) == (7 if id_ == "7" else None, False)


@pytest.mark.parametrize("name", ["", "m", "$/cancelRequest", "rpc.x", "a/b", "é", "\x00", "x" * 10_000])
def test_any_text_names_a_method(name: str) -> None:
    assert codec.decode(frame(method=json.dumps(name), id="7")) == Request(name, UNSET, 7)


@pytest.mark.parametrize(
    ("text", "params"),
    [(None, UNSET), ("null", UNSET), ("{}", {}), ("[]", []), ('{"a":1}', {"a": 1}), ("[1,null]", [1, None])],
)
@pytest.mark.parametrize("id_", [None, "7"])
def test_params_are_an_object_or_an_array_or_absent_and_null_counts_as_absent(
    text: str | None, params: Any, id_: str | None
) -> None:
    message = codec.decode(frame(method='"m"', params=text, id=id_))
    assert message == (Notification("m", params) if id_ is None else Request("m", params, 7))


@pytest.mark.parametrize("text", ["true", "false", "0", "1", "1.5", '"bar"', '""'])
@pytest.mark.parametrize("id_", [None, "7"])
def test_params_are_nothing_else(text: str, id_: str | None) -> None:
    message = malformed(codec.decode(frame(method='"m"', params=text, id=id_)))
    assert (message.id, message.is_response) == (7 if id_ else None, False)
    assert '"params"' in message.error.data["detail"]


@pytest.mark.parametrize("text", ["null", "true", "0", "1.5", '""', "[]", "{}"])
def test_a_result_is_any_value(text: str) -> None:
    assert codec.decode(frame(result=text, id="7")) == Success(json.loads(text), 7)


@pytest.mark.parametrize("text", ["null", "0", "{}"])
def test_error_null_beside_a_result_is_no_error(text: str) -> None:
    """As peers write it whose records have both members."""
    assert codec.decode(frame(result=text, error="null", id="7")) == Success(json.loads(text), 7)


def test_error_null_alone_is_no_answer() -> None:
    message = malformed(codec.decode(frame(error="null", id="7")))
    assert (message.id, message.is_response) == (7, True)


@pytest.mark.parametrize("result", ["null", "0", "{}"])
def test_an_error_beside_a_result_is_no_answer(result: str) -> None:
    """A result of null is a result, so that this has two meanings."""
    message = malformed(codec.decode(frame(result=result, error='{"code":1,"message":"x"}', id="7")))
    assert (message.id, message.is_response) == (7, True)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"code":1,"message":""}', ErrorObject(1, "")),
        ('{"message":"x","code":-32600}', ErrorObject(-32600, "x")),
        ('{"code":0,"message":"x","data":null}', ErrorObject(0, "x", None)),
        ('{"code":0,"message":"x","data":[1]}', ErrorObject(0, "x", [1])),
        ('{"code":0,"message":"x","extra":1}', ErrorObject(0, "x")),
        ('{"code":-99999999999999999999,"message":"x"}', ErrorObject(-99999999999999999999, "x")),
    ],
)
def test_an_error_has_an_integer_code_and_a_message(text: str, error: ErrorObject) -> None:
    assert codec.decode(frame(error=text, id="7")) == Failure(error, 7)


@pytest.mark.parametrize(
    "text",
    [
        "0", "true", '"x"', "[]", "{}", '{"code":1}', '{"message":"x"}', '{"code":"1","message":"x"}',
        '{"code":1.0,"message":"x"}', '{"code":true,"message":"x"}', '{"code":null,"message":"x"}',
        '{"code":1,"message":null}', '{"code":1,"message":1}', '{"code":1,"message":["x"]}',
    ],
)  # fmt: skip
def test_an_error_is_nothing_else_and_its_call_is_still_known(text: str) -> None:
    message = malformed(codec.decode(frame(error=text, id="7")))
    assert (message.id, message.is_response) == (7, True)


@pytest.mark.parametrize("extra", [{"result": "1"}, {"error": "null"}, {"result": "1", "error": "null"}])
@pytest.mark.parametrize("id_", [None, "7", "null", "true"])
def test_what_asks_and_answers_at_once_is_invalid(extra: dict[str, str], id_: str | None) -> None:
    message = malformed(codec.decode(frame(method='"m"', id=id_, **extra)))
    assert (message.id, message.is_response) == (7 if id_ == "7" else None, False)


def test_what_neither_asks_nor_answers_is_invalid() -> None:
    for text, id_ in (
        (b"{}", None),
        (frame(), None),
        (frame(id="7"), 7),
        (frame(params="{}", id='"7"'), "7"),
    ):
        message = malformed(codec.decode(text))
        assert (message.id, message.is_response) == (id_, False)


def test_unknown_keys_are_ignored() -> None:
    extra = {"x": "1", "Id": "true", "METHOD": "[]", "": "null", "jsonrpc ": '"1"'}
    assert codec.decode(frame(method='"m"', id="7", **extra)) == Request("m", UNSET, 7)
    assert codec.decode(frame(method='"m"', **extra)) == Notification("m")
    assert codec.decode(frame(result="1", id="7", **extra)) == Success(1, 7)


@pytest.mark.parametrize("text", [b"null", b"true", b"1", b"1.5", b'"x"'])
def test_a_message_is_an_object(text: bytes) -> None:
    message = malformed(codec.decode(text))
    assert (message.id, message.is_response) == (None, False)


MEMBERS: dict[str, list[str | None]] = {
    "jsonrpc": ['"2.0"', '"1.0"', None],
    "id": ["7", '"7"', "null", "true", "1.0", None],
    "method": ['"m"', "1", "null", None],
    "params": ["{}", "[]", "null", "1", None],
    "result": ["1", "null", None],
    "error": ['{"code":1,"message":"x"}', "null", "1", "{}", None],
}


def test_every_combination_of_members_is_one_message_or_invalid_and_never_two_things() -> None:
    """5,400 envelopes against the rules of the specification, written once more and plainly."""
    seen: dict[type, int] = {}
    for texts in itertools.product(*MEMBERS.values()):
        members = dict(zip(MEMBERS, texts, strict=True))
        has = {key for key, text in members.items() if text is not None}
        message = codec.decode(frame(**members))
        seen[type(message)] = seen.get(type(message), 0) + 1

        id_ok = members["id"] in ("7", '"7"')
        asks = (
            members["jsonrpc"] == '"2.0"'
            and members["method"] == '"m"'
            and members["params"] != "1"
            and not has & {"result", "error"}
            and (id_ok or "id" not in has)
        )
        answers = members["jsonrpc"] == '"2.0"' and "method" not in has
        succeeds = answers and "result" in has and members["error"] in (None, "null") and id_ok
        fails = (
            answers
            and "result" not in has
            and members["error"] == '{"code":1,"message":"x"}'
            and (id_ok or members["id"] == "null")
        )
        if asks:
            assert type(message) is (Request if "id" in has else Notification), members
        elif succeeds:
            assert type(message) is Success, members
        elif fails:
            assert type(message) is Failure, members
        else:
            assert type(message) is Malformed, members
            assert message.is_response == ("method" not in has and bool(has & {"result", "error"})), members
        if id_ok:
            assert getattr(message, "id", 7) in (7, "7"), members
    assert len(seen) == 5
    assert min(seen.values()) >= 4


# ---- keys that stand twice --------------------------------------------------------------------------

TWICE = [
    ('{"jsonrpc":"2.0","method":"m","id":1,"id":2}', None, False),
    ('{"jsonrpc":"2.0","method":"m","id":1,"id":1}', None, False),
    ('{"jsonrpc":"2.0","method":"m","id":1,"\\u0069d":2}', None, False),
    ('{"jsonrpc":"2.0","method":"m","\\u0069\\u0064":1,"id":2}', None, False),
    ('{"jsonrpc":"2.0","method":"m","\\u0069d":1,"i\\u0064":2}', None, False),
    ('{"jsonrpc":"2.0","method":"m","method":"n","id":1}', 1, False),
    ('{"jsonrpc":"2.0","method":"m","m\\u0065thod":"n","id":1}', 1, False),
    ('{"jsonrpc":"2.0","method":"m","params":{},"params":[],"id":1}', 1, False),
    ('{"jsonrpc":"2.0","jsonrpc":"2.0","method":"m","id":1}', 1, False),
    ('{"jsonrpc":"2.0","method":"m","method":"m"}', None, False),
    ('{"jsonrpc":"2.0","result":1,"result":2,"id":1}', 1, True),
    ('{"jsonrpc":"2.0","result":1,"id":1,"id":2}', None, True),
    ('{"jsonrpc":"2.0","error":{"code":1,"message":"x"},"error":{},"id":"1"}', "1", True),
    ('{"jsonrpc":"2.0","error":null,"result":1,"error":null,"id":1}', 1, True),
    ('{"id":1,"id":2}', None, False),
    ('{"jsonrpc":"2.0","id":1,"id":2}', None, False),
    ('{"jsonrpc":"2.0","method":"m","result":1,"method":"m","id":1}', 1, False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "id_", "is_response"), TWICE)
def test_an_envelope_key_that_stands_twice_is_invalid_however_it_is_spelled(
    text: str, id_: Any, is_response: bool
) -> None:
    message = malformed(codec.decode(text.encode()))
    assert "twice" in message.error.data["detail"]
    assert (message.id, message.is_response) == (id_, is_response)


@pytest.mark.parametrize(("text", "id_", "is_response"), TWICE)
def test_an_envelope_key_that_stands_twice_is_invalid_in_a_batch_too(
    text: str, id_: Any, is_response: bool
) -> None:
    good = '{"jsonrpc":"2.0","method":"m","id":1}'
    batch = codec.decode(f"[{good}, {text} ,{good}]".encode())
    assert type(batch) is Batch
    assert batch.items[0] == batch.items[2] == Request("m", UNSET, 1)
    message = malformed(batch.items[1])
    assert (message.id, message.is_response) == (id_, is_response)


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","method":"m","id":1,"params":{"id":1,"id":2}}',
        '{"jsonrpc":"2.0","method":"m","id":1,"params":{"id":1,"\\u0069d":2}}',
        '{"jsonrpc":"2.0","method":"m","id":1,"params":[{"method":"a","params":{},"id":2,"jsonrpc":"2.0"}]}',
        '{"jsonrpc":"2.0","method":"m","id":1,"params":{"s":"\\"id\\":1,\\"id\\":2"}}',
        '{"jsonrpc":"2.0","method":"m","id":1,"params":{"id":"id","method":"method"}}',
        '{"jsonrpc":"2.0","method":"m","id":1,"x":{"result":1,"result":2}}',
        '{"jsonrpc":"2.0","method":"m","id":1,"x":1,"x":2}',
        '{"jsonrpc":"2.0","method":"m","id":1,"x":"\\u0041","x":"\\u0041"}',
        '{"jsonrpc":"2.0","method":"m","id":1,"x":["id","id"],"y":"\\u0069d"}',
    ],
)
def test_a_key_may_stand_twice_anywhere_else_and_unknown_keys_may_too(text: str) -> None:
    message = codec.decode(text.encode())
    assert type(message) is Request
    assert message.id == 1
    batch = codec.decode(f"[{text}]".encode())
    assert type(batch) is Batch
    assert batch.items == (message,)


@settings(FUZZ, max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["id", "method", "params", "result", "error", "jsonrpc", "x", "ID", ""]),
            st.integers(0, 3),
        ),
        max_size=7,
    ),
    st.sampled_from(["{}", '{"id":1,"id":2}', '"\\u0069d"', '"\\"id\\":"']),
)
def test_whether_a_key_stands_twice_does_not_depend_on_how_it_is_spelled(
    keys: list[tuple[str, int]], value: str
) -> None:
    def spell(key: str, escaped: int) -> str:
        return "".join(f"\\u{ord(c):04x}" if escaped >> i & 1 else c for i, c in enumerate(key))

    text = "{" + ",".join(f'"{spell(key, escaped)}":{value}' for key, escaped in keys) + "}"
    names = [key for key, _ in keys]
    twice = any(names.count(key) > 1 for key in ("id", "method", "params", "result", "error", "jsonrpc"))
    message = malformed(codec.decode(text.encode()))
    assert ("twice" in message.error.data["detail"]) == twice


# ---- batches ----------------------------------------------------------------------------------------


def test_an_array_is_a_batch_of_what_each_item_is() -> None:
    parts = [frame(method='"m"', id="1"), frame(method='"n"'), frame(result="2", id="3"), b"4", b"[]", b"{}"]
    batch = codec.decode(b"[" + b",".join(parts) + b"]")
    assert type(batch) is Batch
    assert batch.items[:3] == (Request("m", UNSET, 1), Notification("n"), Success(2, 3))
    assert [malformed(item).id for item in batch.items[3:]] == [None] * 3


def test_an_empty_array_is_no_batch() -> None:
    for text in (b"[]", b" [ ] "):
        assert malformed(codec.decode(text)).id is None


def test_a_batch_holds_at_most_so_many_messages() -> None:
    item = frame(method='"m"')
    for size in (1, 4, 5, 6):
        message = codec.decode(b"[" + b",".join([item] * size) + b"]", max_batch_items=5)
        if size <= 5:
            assert message == Batch((Notification("m"),) * size)
        else:
            assert "6" in malformed(message).error.data["detail"]
            assert "5" in malformed(message).error.data["detail"]
    assert type(codec.decode(b"[" + b",".join([b"1"] * codec.MAX_BATCH_ITEMS) + b"]")) is Batch
    assert type(codec.decode(b"[" + b",".join([b"1"] * (codec.MAX_BATCH_ITEMS + 1)) + b"]")) is Malformed


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


def test_where_the_stack_is_nearly_used_up_a_deep_frame_is_refused_and_nothing_is_raised() -> None:
    text = b'{"jsonrpc":"2.0","id":1,"result":' + b"[" * 127 + b"]" * 127 + b"}"

    def descend(levels: int) -> object:
        return descend(levels - 1) if levels else codec.decode(text)

    assert type(codec.decode(text)) is Success
    frames = len(_stack())
    message = descend(sys.getrecursionlimit() - frames - 60)
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


@settings(FUZZ, max_examples=200)
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


@settings(FUZZ, max_examples=400)
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
    with pytest.raises(LocalProtocolError, match="store large data as blobs"):
        codec.encode_success("x" * MAX_FRAME_BYTES, 1)
