"""Blob ids name content: the same bytes for everybody, whoever encodes them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.protocol import blobs

FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=100)

EXAMPLE = {"message": "Hello, blobs!", "number": 42, "nested": {"array": [1, 2, 3], "boolean": True}}
EXAMPLE_ID = "868591347a854ba1d0f4875b2dd44e1e8335052af03725a9819f89e0142318b0"

# Without fractions and huge integers, which encoders spell differently.
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


def id_of(data: Any, kind: str = blobs.DATA) -> str:
    return blobs.blob_id(blobs.blob_content(data, kind))


def test_the_id_of_the_specification_s_example_is_the_specification_s() -> None:
    assert id_of(EXAMPLE) == id_of(EXAMPLE, blobs.FLOW) == EXAMPLE_ID


@pytest.mark.parametrize(
    ("data", "content"),
    [
        (1e16, "1e+16"),
        (
            [-2.5e300, "1e16", 1e15, 1e-5, 1e-6, -0.0],
            '[-2.5e+300,"1e16",1000000000000000.0,0.00001,1e-6,-0.0]',
        ),
        (
            {"1e16": 1e99, 'x"1e17,': [{"\\": 1e100}, "é1e16]"]},
            r'{"1e16":1e+99,"x\"1e17,":[{"\\":1e+100},"é1e16]"]}',
        ),
    ],
)
def test_numbers_are_spelled_as_the_public_releases_spell_them(data: Any, content: str) -> None:
    assert blobs.blob_content(data, blobs.DATA).decode() == content


@FUZZ
@given(st.recursive(st.floats(allow_nan=False, allow_infinity=False) | st.text('e19+\\",]'), st.lists))
def test_the_spelling_of_numbers_changes_nothing_else(data: Any) -> None:
    content = blobs.blob_content(data, blobs.DATA)
    assert json.loads(content) == data
    assert not re.search(rb"[0-9]e[0-9]", _without_texts(content))


def _without_texts(content: bytes) -> bytes:
    return re.sub(rb'"(?:[^"\\]|\\.)*"', b"", content)


def test_the_order_of_keys_is_part_of_the_content() -> None:
    assert blobs.blob_content({"b": 1, "a": 2}, blobs.DATA) == b'{"b":1,"a":2}'
    assert id_of({"b": 1, "a": 2}) != id_of({"a": 2, "b": 1})


@settings(FUZZ)
@given(PLAIN)
def test_plain_data_are_spelled_as_other_compact_encoders_spell_them(data: Any) -> None:
    spelled = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    assert blobs.blob_content(data, blobs.DATA) == spelled


def test_every_control_character_is_escaped_as_other_encoders_escape_it() -> None:
    text = "".join(map(chr, range(0x100))) + "\u2028\u2029\ufeff😀"
    assert blobs.blob_content(text, blobs.DATA) == json.dumps(text, ensure_ascii=False).encode()


def test_binary_content_is_what_the_base64_text_stands_for() -> None:
    raw = bytes(range(256))
    assert blobs.blob_content(base64.b64encode(raw).decode(), blobs.BINARY) == raw
    assert blobs.blob_content("", blobs.BINARY) == b""
    assert id_of("aGk=", blobs.BINARY) == hashlib.sha256(b"hi").hexdigest()


@pytest.mark.parametrize(
    "data", ["a", "a===", "aGk", "aG k=", "aGk=\n", "aGk=x", "é", "_-__", None, 5, [1], {"a": 1}, b"aGk="]
)
def test_what_is_no_base64_text_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="base64"):
        blobs.blob_content(data, blobs.BINARY)


def test_what_is_no_json_is_refused() -> None:
    for data in (object(), "\ud800", {(1, 2): 3}):
        with pytest.raises(LocalProtocolError):
            blobs.blob_content(data, blobs.DATA)


def test_an_id_is_64_lower_case_hex_digits_and_a_prefix_is_taken_off() -> None:
    assert blobs.normalize_blob_id(EXAMPLE_ID) == EXAMPLE_ID
    assert blobs.normalize_blob_id(f"sha256:{EXAMPLE_ID}") == EXAMPLE_ID


@pytest.mark.parametrize(
    "text",
    [
        "", "5e43", EXAMPLE_ID[:-1], EXAMPLE_ID + "0", EXAMPLE_ID.upper(), EXAMPLE_ID + "\n",
        " " + EXAMPLE_ID, f"sha256:sha256:{EXAMPLE_ID}", f"SHA256:{EXAMPLE_ID}", f"sha256: {EXAMPLE_ID}",
        "../" + EXAMPLE_ID[3:], "%2e" + EXAMPLE_ID[3:], "\0" * 64, "g" * 64, "٣" * 64,
        EXAMPLE_ID[:32] + "/" + EXAMPLE_ID[33:],
    ],
)  # fmt: skip
def test_what_is_no_id_is_none_so_that_no_path_can_be_made_of_it(text: str) -> None:
    assert blobs.normalize_blob_id(text) is None


def test_types_may_be_written_in_any_case_and_old_peers_say_json() -> None:
    assert [blobs.normalize_blob_type(text) for text in ("data", "Flow", "BINARY", "Json", "json")] == [
        "data", "flow", "binary", "data", "data",
    ]  # fmt: skip
    assert [blobs.normalize_blob_type(text) for text in ("", "text", "data ", "jsonl")] == [None] * 4


# ---- checking what was read -------------------------------------------------------------------------


@settings(FUZZ)
@given(PLAIN, PLAIN)
def test_other_content_is_told_from_the_right_one(data: Any, other: Any) -> None:
    assert blobs.may_be_content(id_of(data), data, "data")
    assert blobs.may_be_content(f"sha256:{id_of(data)}", data, "Json")
    if blobs.blob_content(data, blobs.DATA) != blobs.blob_content(other, blobs.DATA):
        assert not blobs.may_be_content(id_of(data), other, "data")


def test_binary_content_is_checked_exactly() -> None:
    assert blobs.may_be_content(id_of("aGk=", "binary"), "aGk=", "Binary")
    for other in ("aGo=", "no base64", 1.5, None, [1.5]):
        assert not blobs.may_be_content(id_of("aGk=", "binary"), other, "binary")


@pytest.mark.parametrize("data", [1.5, [1.0], {"a": [{"b": 1e300}]}, 2**64, [-(2**63) - 1]])
def test_numbers_that_encoders_spell_differently_cannot_be_checked(data: Any) -> None:
    assert blobs.may_be_content(EXAMPLE_ID, data, "data")


@pytest.mark.parametrize("data", [1, [True], {"a": [{"b": None}]}, 2**64 - 1, [-(2**63)], "1.5"])
def test_everything_else_can(data: Any) -> None:
    assert not blobs.may_be_content(EXAMPLE_ID, data, "data")


def test_an_id_or_type_of_a_peer_s_own_says_nothing_about_the_content() -> None:
    assert blobs.may_be_content("5e43", {"a": 1}, "data")
    assert blobs.may_be_content(EXAMPLE_ID, {"a": 1}, "parquet")
