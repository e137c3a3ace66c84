"""Which object is which message (JSON-RPC 2.0, sections 4 to 6), member by member."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from envelope_frames import frame, malformed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from stepflow_trio.errors import ErrorCode
from stepflow_trio.protocol import codec
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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("null", '"id" must be a string or an integer, not null'),
        ("true", '"id" must be a string or an integer, not a boolean'),
        ("1.0", '"id" must be a string or an integer, not a floating-point number'),
        ("[]", '"id" must be a string or an integer, not an array'),
        ("{}", '"id" must be a string or an integer, not an object'),
        (str(2**63), '"id" must fit into 64 bits'),
        ('"' + "x" * 5000 + '"', '"id" has 5000 characters; at most 4096 are accepted'),
    ],
    ids=["null", "boolean", "float", "array", "object", "large", "long"],
)
def test_what_is_wrong_with_an_id_is_said(text: str, says: str) -> None:
    for message in (frame(method='"m"', id=text), frame(result="1", id=text)):
        assert malformed(codec.decode(message)).error.data["detail"] == says


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


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"null", "null"),
        (b"true", "a boolean"),
        (b"1", "a number"),
        (b"1.5", "a number"),
        (b'"x"', "a string"),
        (b'"\\u0041"', "a string"),
    ],
)
def test_a_message_is_an_object(text: bytes, what: str) -> None:
    message = malformed(codec.decode(text))
    assert (message.id, message.is_response) == (None, False)
    assert message.error.data["detail"] == f"a message is an object, not {what}"
    batch = codec.decode(b"[" + text + b', [{"id":1,"id":2}]]')
    assert type(batch) is Batch
    assert batch.items[0] == message
    assert malformed(batch.items[1]).error.data["detail"] == "a message is an object, not an array"


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
    # As many names of the envelope as there are different keys, or more, or fewer.
    ('{"jsonrpc":"2.0","method":"m","id":1,"id":2,"x":0}', None, False),
    ('{"jsonrpc":"2.0","method":"m","id":1,"id":2,"x":0,"y":0}', None, False),
    ('{"jsonrpc":"2.0","method":"m","id":1,"id":2,"x":"id"}', None, False),
    ('{"jsonrpc":"2.0","method":"m","method":"n","x":0,"id":1}', 1, False),
    ('{"jsonrpc":"2.0","result":1,"result":2,"id":1,"x":0}', 1, True),
    ('{"jsonrpc":"2.0","id":1,"id":2}', None, False),
    ('{"jsonrpc":"2.0","method":"m","result":1,"method":"m","id":1}', 1, False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "id_", "is_response"), TWICE)
def test_an_envelope_key_that_stands_twice_is_invalid_however_it_is_spelled(
    text: str, id_: Any, is_response: bool
) -> None:
    message = malformed(codec.decode(text.encode()))
    keys = [key for key, _ in json.loads(text, object_pairs_hook=list)]
    for key in set(keys):
        assert (f'"{key}"' in message.error.data["detail"]) == (keys.count(key) > 1)
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
    assert type(codec.decode(b"[" + b",".join([b"1"] * 4096) + b"]")) is Batch
    assert type(codec.decode(b"[" + b",".join([b"1"] * 4097) + b"]")) is Malformed
