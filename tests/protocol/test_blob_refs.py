"""References to blobs: what is one, where they are in data, and which data become one."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.protocol import blob_refs, codec
from stepflow_trio.protocol.blob_refs import BlobRef, RefInvalid, Resolution, has_refs, large_fields, read_ref

ID = "868591347a854ba1d0f4875b2dd44e1e8335052af03725a9819f89e0142318b0"
REF = {"$blob": ID}

FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=100)


@pytest.mark.parametrize(
    ("value", "ref"),
    [
        ({"$blob": ID}, BlobRef(blob_id=ID)),
        ({"$blob": f"sha256:{ID}"}, BlobRef(blob_id=ID)),
        ({"$blob": ID, "blobType": "data"}, BlobRef(blob_id=ID)),
        ({"$blob": ID, "blobType": "Json"}, BlobRef(blob_id=ID)),
        ({"$blob": ID, "blobType": "flow", "size": None}, BlobRef(blob_id=ID, blob_type="flow")),
        ({"size": 7, "blobType": "binary", "$blob": ID}, BlobRef(blob_id=ID, blob_type="binary", size=7)),
    ],
)
def test_an_object_with_an_id_and_nothing_unknown_is_a_reference(value: Any, ref: BlobRef) -> None:
    assert read_ref(value) == ref


@pytest.mark.parametrize(
    "value",
    [
        None, 1, "x", ID, [], [REF], {}, {"blob": ID}, {"$blob": None}, {"$blob": 7}, {"$blob": ""},
        {"$blob": ID[:-1]}, {"$blob": ID.upper()}, {"$blob": f"../{ID[3:]}"}, {"$blob": [ID]}, {"$blob": REF},
        {"$blob": ID, "blobType": "parquet"}, {"$blob": ID, "blobType": 1}, {"$blob": ID, "blobType": None},
        {"$blob": ID, "size": -1}, {"$blob": ID, "size": 1.5}, {"$blob": ID, "size": True},
        {"$blob": ID, "size": "1"}, {"$blob": ID, "comment": "mine"}, {"$blob": ID, "": 0},
        {"$blob": ID, "$step": "a"},
    ],
)  # fmt: skip
def test_anything_else_is_data(value: Any) -> None:
    assert read_ref(value) is None


def test_a_reference_is_written_as_the_public_releases_write_it() -> None:
    assert BlobRef(blob_id=ID).to_json() == {"$blob": ID}
    assert BlobRef(blob_id=ID, size=12345).to_json() == {"$blob": ID, "size": 12345}
    assert BlobRef(blob_id=ID, blob_type="binary").to_json() == {"$blob": ID, "blobType": "binary"}


REFS = st.builds(
    lambda digit, kind, size: BlobRef(blob_id=digit * 64, blob_type=kind, size=size),
    st.sampled_from("0123456789abcdef"),
    st.sampled_from(["data", "flow", "binary"]),
    st.none() | st.integers(0, 2**70),
)


@settings(FUZZ)
@given(REFS)
def test_what_is_written_is_read_back(ref: BlobRef) -> None:
    assert read_ref(codec.decode_json(codec.encode_json(ref.to_json()))) == ref


def trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
        max_leaves=12,
    )


PLAIN = st.none() | st.integers() | st.text(max_size=4) | st.just({"$blob": "not an id"})


def refs_in(value: Any, path: tuple[str | int, ...] = ()) -> dict[str, list[tuple[str | int, ...]]]:
    found: dict[str, list[tuple[str | int, ...]]] = {}
    if (ref := read_ref(value)) is not None:
        return {ref.blob_id: [path]}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        for blob_id, paths in refs_in(item, (*path, key)).items():
            found.setdefault(blob_id, []).extend(paths)
    return found


@settings(FUZZ)
@given(trees(PLAIN | REFS.map(BlobRef.to_json)))
def test_every_blob_that_is_referred_to_is_wanted_once_with_a_path_to_it(value: Any) -> None:
    expected = refs_in(value)
    wanted = Resolution(value).wanted
    assert has_refs(value) == bool(wanted)
    assert wanted.keys() == expected.keys()
    assert all(path in expected[blob_id] for blob_id, path in wanted.items())


@settings(FUZZ)
@given(trees(PLAIN | REFS.map(BlobRef.to_json)), trees(PLAIN))
def test_content_takes_the_place_of_references_and_nothing_else_changes(value: Any, content: Any) -> None:
    def replaced(value: Any) -> Any:
        if (ref := read_ref(value)) is not None:
            text = codec.encode_json(content)
            return content if ref.blob_type != "binary" else base64.b64encode(text).decode()
        if isinstance(value, dict):
            return {key: replaced(item) for key, item in value.items()}
        return [replaced(item) for item in value] if isinstance(value, list) else value

    expected = replaced(value)
    assert codec.encode_json(resolved(value, dict.fromkeys(refs_in(value), content))) == codec.encode_json(
        expected
    )


def resolved(value: Any, contents: dict[str, Any]) -> Any:
    resolution = Resolution(value)
    while wanted := resolution.wanted:
        for blob_id in wanted:
            resolution.take(blob_id, codec.encode_json(contents[blob_id]))
    return resolution.value


def ref(digit: str) -> dict[str, Any]:
    return {"$blob": digit * 64}


def test_what_content_refers_to_is_wanted_when_all_content_has_come() -> None:
    resolution = Resolution({"x": [ref("a"), ref("b")]})
    resolution.take("a" * 64, b'{"y":{"$blob":"%s"}}' % (b"c" * 64))
    assert resolution.wanted == {"b" * 64: ("x", 1)}
    resolution.take("b" * 64, b"2")
    assert resolution.wanted == {"c" * 64: ("x", 0, "y")}
    resolution.take("c" * 64, b"3")
    assert resolution.wanted == {}
    assert resolution.value == {"x": [{"y": 3}, 2]}


def test_a_whole_value_may_be_a_reference() -> None:
    resolution = Resolution(ref("a"))
    assert resolution.wanted == {"a" * 64: ()}
    resolution.take("a" * 64, b"7")
    assert resolution.value == 7


def test_content_that_does_not_fit_is_refused_with_the_place() -> None:
    deep = b"[" * 127 + b"]" * 127
    resolution = Resolution({"a": ref("a")})
    resolution.take("a" * 64, deep)
    for content, why in ((b"[" + deep + b"]", "nested deeper than 127 levels"), (b"{", "truncated")):
        with pytest.raises(RefInvalid, match=why) as caught:
            Resolution({"a": ref("a")}).take("a" * 64, content)
        assert (caught.value.path, caught.value.ref) == (("a",), BlobRef(blob_id="a" * 64))


def test_references_rounds_and_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_refs, "MAX_REFS", 6)
    assert resolved([ref("a")] * 6, {"a" * 64: 1}) == [1] * 6
    with pytest.raises(RefInvalid, match="more than 6 references"):
        Resolution([ref("a")] * 7)
    assert resolved([ref("a")] * 2, {"a" * 64: [ref("b")] * 2, "b" * 64: 1}) == [[1, 1]] * 2
    with pytest.raises(RefInvalid, match="more than 6 references"):
        resolved([ref("a")] * 3, {"a" * 64: [ref("b")] * 2, "b" * 64: 1})

    monkeypatch.setattr(blob_refs, "MAX_ROUNDS", 2)
    assert resolved(ref("a"), {"a" * 64: ref("b"), "b" * 64: 1}) == 1
    with pytest.raises(RefInvalid, match="2 times"):
        resolved(ref("a"), {"a" * 64: ref("b"), "b" * 64: ref("c")})

    monkeypatch.setattr(blob_refs, "MAX_RESOLVED_BYTES", 30)
    assert resolved([ref("a")] * 3, {"a" * 64: "x" * 8}) == ["x" * 8] * 3
    with pytest.raises(RefInvalid, match="30 bytes"):
        resolved([ref("a")] * 4, {"a" * 64: "x" * 8})


def test_no_two_places_share_what_they_hold() -> None:
    value = resolved([ref("a"), ref("a")], {"a" * 64: {"n": []}})
    value[0]["n"].append(1)
    assert value == [{"n": [1]}, {"n": []}]


def test_a_deep_value_is_searched_without_recursion() -> None:
    value: Any = ref("a")
    for _ in range(100_000):
        value = [value]
    assert Resolution(value).wanted == {"a" * 64: (0,) * 100_000}
    while isinstance(value, list):  # or Python would free it by recursion
        value = value.pop()


# ---- fields that become references ----------------------------------------------------------------------


def test_a_field_is_large_from_one_byte_over_the_threshold() -> None:
    output = {"small": "x" * 98, "large": "x" * 99, "two bytes each": "ä" * 50}
    assert large_fields(output, 100) == {
        "large": b'"' + b"x" * 99 + b'"',
        "two bytes each": ('"' + "ä" * 50 + '"').encode(),
    }


@pytest.mark.parametrize("output", [None, "x" * 100, ["x" * 100], 1e300, {}])
def test_only_the_fields_of_objects_are_replaced(output: Any) -> None:
    assert large_fields(output, 1) == {}


@pytest.mark.parametrize("threshold", [0, -1])
def test_no_threshold_means_that_nothing_is_replaced(threshold: int) -> None:
    assert large_fields({"a": "x" * 100}, threshold) == {}


def test_what_is_a_reference_already_stays_one() -> None:
    assert large_fields({"a": REF, "b": {**REF, "c": 1}}, 10) == {"b": codec.encode_json({**REF, "c": 1})}


def test_a_field_that_is_no_json_is_an_error() -> None:
    with pytest.raises(LocalProtocolError):
        large_fields({"a": object()}, 1)
