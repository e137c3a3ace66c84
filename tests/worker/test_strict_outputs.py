"""What a component may return: JSON and nothing that only looks like it."""

import collections
import dataclasses
import datetime
import decimal
import enum
import json
import math
import pathlib
import sys
import types
import uuid
from typing import Any, ClassVar, NamedTuple

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.errors import ErrorCode, RpcError
from stepflow_trio.protocol.codec import MAX_NESTING, decode_json, encode_success
from stepflow_trio.worker import outputs
from stepflow_trio.worker.outputs import MAX_OUTPUT_DEPTH, OutputInvalid, check_output, json_path


def written(value, **options):
    """What a peer reads of a value that was accepted."""
    return msgspec.json.decode(msgspec.json.encode(check_output(value, **options)))


def refused(value, **options):
    with pytest.raises(OutputInvalid) as caught:
        check_output(value, **options)
    return caught.value


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Point(msgspec.Struct):
    x: float
    label: str = ""


class Inner(pydantic.BaseModel):
    ratio: float
    when: datetime.date | None = None


@dataclasses.dataclass
class Holder:
    model: Inner
    note: str = ""


# --- what is accepted


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**63),
        2**64 - 1,
        1.5,
        -0.0,
        5e-324,
        "",
        "ä€😀",
        [],
        {},
        [1, "a", None],
        {"a": {"b": [1.5]}},
    ],
)
def test_plain_json_is_returned_as_the_very_same_object(value):
    assert check_output(value) is value
    assert written(value) == value


def test_tuples_named_tuples_and_container_subclasses_are_written_as_their_base():
    class Pair(NamedTuple):
        a: int
        b: int

    assert written((1, (2, 3))) == [1, [2, 3]]
    assert written(Pair(1, 2)) == [1, 2]
    assert written(collections.OrderedDict(a=1)) == {"a": 1}
    assert written(collections.defaultdict(list, a=[1])) == {"a": [1]}


def test_subclasses_of_scalars_are_written_as_their_plain_value():
    class Text(str): ...

    class Count(int): ...

    class Ratio(float):
        def __float__(self):
            return 9.0

    value = {"t": Text("x"), "c": [Count(3)], "r": Ratio(0.5), Text("k"): 1}
    assert written(value) == {"t": "x", "c": [3], "r": 0.5, "k": 1}
    assert refused([Ratio("nan")]).json_path == "$[0]"
    assert refused([Count(2**64)]).json_path == "$[0]"
    assert refused([Text("\ud800")]).json_path == "$[0]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), "2024-01-02T03:04:05Z"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.time(1, 2, 3), "01:02:03"),
        (datetime.timedelta(seconds=90), "PT90S"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1.50"), "1.50"),
        (Color.RED, "red"),
        (Level.HIGH, 3),
    ],
)
def test_standard_scalars_have_their_standard_form(value, text):
    assert check_output(value) is value
    assert written({"v": [value]}) == {"v": [text]}


def test_records_are_written_as_declared_without_being_copied():
    class Everything(msgspec.Struct, rename="camel", tag="all"):
        raw_bytes: bytes
        some_set: set[int]
        by_number: dict[int, str]
        when: datetime.date
        absent: int | msgspec.UnsetType = msgspec.UNSET

    value = Everything(b"hi", {1}, {7: "seven"}, datetime.date(2024, 1, 2))
    assert check_output(value) is value
    assert written([value]) == [
        {"type": "all", "rawBytes": "aGk=", "someSet": [1], "byNumber": {"7": "seven"}, "when": "2024-01-02"}
    ]


def test_dataclasses_and_attrs_classes_are_records_too():
    @dataclasses.dataclass
    class Data:
        blob: bytearray
        tags: frozenset[str]
        view: memoryview
        shared: ClassVar[Any] = object()

    @attrs.define
    class Attrs:
        blob: bytes
        _private: Any = None

    data = Data(bytearray(b"hi"), frozenset(("a",)), memoryview(b"hi"))
    assert written(data) == {"blob": "aGk=", "tags": ["a"], "view": "aGk="}
    assert written(Attrs(b"hi", private=object())) == {"blob": "aGk="}


def test_what_a_record_does_not_declare_is_refused_inside_it():
    class Loose(msgspec.Struct, rename="camel"):
        any_thing: Any

    for value, path in [(b"x", "$.anyThing"), ({"a": {1}}, "$.anyThing.a"), ({1: 2}, "$.anyThing")]:
        assert refused(Loose(value)).json_path == path


def test_records_are_searched_for_what_json_cannot_hold():
    assert refused([Point(1.0), Point(math.nan)]).json_path == "$[1].x"
    assert refused({"p": Point(1.0, "\ud800")}).json_path == "$.p.label"
    assert refused(Point(1.0, object())).json_path == "$.label"
    assert refused(Holder(Inner(ratio=1), note=b"no")).json_path == "$.note"


def test_a_record_whose_annotations_cannot_be_read_is_believed():
    @dataclasses.dataclass
    class Unreadable:
        a: "NoSuchName"  # noqa: F821
        b: Any

    assert written(Unreadable(b"hi", {1})) == {"a": "aGk=", "b": [1]}
    assert refused(Unreadable(1, math.inf)).json_path == "$.b"


def test_pydantic_models_are_written_by_pydantic_wherever_they_are():
    class Aliased(pydantic.BaseModel):
        value: int = pydantic.Field(serialization_alias="theValue")
        data: bytes = b"raw"

    model = Inner(ratio=0.5, when=datetime.date(2024, 1, 2))
    plain = {"ratio": 0.5, "when": "2024-01-02"}
    assert check_output(model) == plain
    assert written({"m": [model, model]}) == {"m": [plain, plain]}
    assert written(Holder(model, "n")) == {"model": plain, "note": "n"}
    assert written(Aliased(value=1)) == {"theValue": 1, "data": "raw"}


def test_a_pydantic_model_with_a_value_that_json_lacks_is_refused_at_its_place():
    assert refused([Inner(ratio=math.nan)]).json_path == "$[0].ratio"
    assert refused({"h": Holder(Inner(ratio=math.inf))}).json_path == "$.h.model.ratio"


def test_a_pydantic_model_that_does_not_hold_what_it_declares_is_refused_not_nulled():
    error = refused({"m": Inner.model_construct(ratio="text")})
    assert error.json_path == "$.m"
    assert "Inner" in error.message


def test_a_pydantic_model_that_contains_itself_is_refused():
    class Node(pydantic.BaseModel):
        next: Any = None

    node = Node()
    node.next = node
    assert refused(node).json_path == "$"


# --- what is refused


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused_and_never_become_null(number):
    assert refused(number).data == {"path": "$", "type": "float"}
    assert refused({"x": [1.0, 2.0, 3.0, number]}).data == {"path": "$.x[3]", "type": "float"}
    assert refused([1, None, number]).json_path == "$[2]"


def test_a_column_whose_sum_overflows_is_accepted():
    assert check_output([1e308] * 100) == [1e308] * 100
    assert refused([1e308] * 100 + [math.inf, -math.inf]).json_path == "$[100]"


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30])
def test_integers_beyond_64_bits_are_refused_with_a_hint(number):
    assert refused([1, number]).json_path == "$[1]"
    assert "return it as text" in refused(number).message


async def coroutine():
    return 1


def generator():
    yield 1


class Thing:
    def __repr__(self):
        return "secret"


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: b"x", "put_blob"),
        (lambda: bytearray(b"x"), "put_blob"),
        (lambda: memoryview(b"x"), "put_blob"),
        (lambda: {1}, "sorted"),
        (lambda: frozenset((1,)), "sorted"),
        (coroutine, "did you forget await"),
        (generator, "return a list"),
        (lambda: 1j, "complex"),
        (Thing, "Thing, which has no JSON form"),
        (lambda: Thing, "type"),
        (lambda: collections.deque([1]), "deque"),
        (lambda: range(3), "range"),
        ({}.keys, "dict_keys"),
        (lambda: types.MappingProxyType({}), "mappingproxy"),
        (lambda: pathlib.PurePosixPath("/x"), "PurePosixPath"),
        (lambda: ValueError("x"), "ValueError"),
        (lambda: msgspec.Raw(b"{"), "Raw"),
        (lambda: msgspec.UNSET, "UnsetType"),
    ],
)
def test_other_objects_are_refused_with_the_place_and_a_hint(make, hint):
    for wrap, path in [(lambda v: v, "$"), (lambda v: {"a": [0, v]}, "$.a[1]")]:
        error = refused(wrap(make()))
        assert hint in error.message
        assert error.message.endswith(f"at {path}")
        assert "secret" not in error.message


def test_anything_else_that_is_awaitable_was_not_awaited_either():
    class Future:
        def __await__(self): ...

    assert "did you forget await?" in refused([Future()]).message


def test_arrays_are_told_about_tolist():
    class Array:
        def tolist(self):
            return []

    assert ".tolist()" in refused(Array()).message


def test_a_bytes_member_of_an_enum_is_refused():
    class Raw(enum.Enum):
        A = b"raw"

    assert "put_blob" in refused([Raw.A]).message


@pytest.mark.parametrize("key", [1, None, True, 1.5, b"k", (1, 2), Level.HIGH, datetime.date(2024, 1, 1)])
def test_keys_that_are_no_strings_are_refused(key):
    error = refused({"a": {key: 1}})
    assert error.json_path == "$.a"
    assert "keys are strings" in error.message


class Odd(enum.Enum):
    A = (1, 2)


def test_keys_that_no_json_can_have_are_refused_even_where_other_keys_are_declared():
    class Numbered(msgspec.Struct):
        by: dict[float, int]

    declared = [7, 0.5, uuid.UUID(int=1), Level.HIGH, Color.RED, decimal.Decimal(1), b"k", "text"]
    declared += [
        datetime.date(2024, 1, 2),
        datetime.time(1),
        datetime.datetime(2024, 1, 2),
        datetime.timedelta(1),
    ]
    for key in declared:
        assert list(written(Numbered({key: 1}))["by"].values()) == [1]
    for key in (math.nan, None, (1,), 2**64, Odd.A):
        assert "keys are strings" in refused(Numbered({key: 1})).message


@pytest.mark.parametrize("text", ["\ud800", "ok\udfff"])
def test_text_with_lone_surrogates_is_refused_in_values_and_keys(text):
    assert refused(text).json_path == "$"
    assert refused(["ok"] * 10 + [text]).json_path == "$[10]"
    assert refused({"a": {text: 1}}).message.startswith("the output is not JSON: a key with a lone surrogate")
    assert refused({"a": {text: 1}}).json_path == "$.a"
    assert refused({"a": {"\u00fc" + text: 1}}).json_path == "$.a"


def test_a_refusal_is_an_rpc_error_of_the_component_with_path_and_type():
    error = refused({"x": [0, math.nan]})
    assert isinstance(error, RpcError)
    assert error.code == ErrorCode.COMPONENT_FAILED == -32100
    assert error.data == {"path": "$.x[1]", "type": "float"}
    assert error.message == (
        "the output is not JSON: the number nan, which JSON does not have: return None or text at $.x[1]"
    )


# --- depth and size


def nested(levels, leaf=None):
    value = leaf
    for at in range(levels):
        value = [value] if at % 2 else {"k": value}
    return value


@pytest.mark.parametrize("limit", [1, 5, MAX_OUTPUT_DEPTH])
def test_nesting_is_accepted_at_the_limit_and_refused_one_above(limit):
    assert check_output(nested(limit), max_depth=limit)
    assert "nested too deep" in refused(nested(limit + 1), max_depth=limit).message


def test_an_output_of_the_default_depth_still_fits_into_a_frame_that_a_peer_accepts():
    frame = encode_success({"output": check_output(nested(MAX_OUTPUT_DEPTH))}, 1)
    assert decode_json(frame, max_nesting=MAX_NESTING)["result"]["output"] == nested(MAX_OUTPUT_DEPTH)


def test_records_count_as_a_level():
    class Box(msgspec.Struct):
        inside: Any

    assert check_output(Box([Box(None)]), max_depth=3)
    assert refused(Box([Box([])]), max_depth=3).json_path == "$.inside[0].inside"


@pytest.mark.parametrize("kind", ["list", "dict", "record"])
def test_a_value_that_contains_itself_is_refused_without_a_recursion_error(kind):
    class Box(msgspec.Struct):
        inside: Any = None

    value = {"list": [], "dict": {}, "record": Box()}[kind]
    if kind == "list":
        value += [value, value]
    elif kind == "dict":
        value["me"] = value
    else:
        value.inside = value
    error = refused(value)
    assert "does it contain itself?" in error.message
    assert len(error.json_path) < 250
    deep = nested(100_000)
    assert "nested too deep" in refused(deep).message
    while deep:  # taken apart by hand: Python 3.11 frees nested containers recursively
        deep = deep[0] if isinstance(deep, list) else deep["k"]


def test_a_stack_that_is_nearly_used_up_gives_the_same_refusal():
    limit = sys.getrecursionlimit()
    depth = len(__import__("inspect").stack())
    sys.setrecursionlimit(depth + 80)
    try:
        with pytest.raises(OutputInvalid, match="too deep"):
            check_output(nested(100))
    finally:
        sys.setrecursionlimit(limit)


def test_a_list_shared_level_upon_level_ends_in_a_refusal_not_in_a_hang(monkeypatch):
    monkeypatch.setattr(outputs, "MAX_OUTPUT_VALUES", 10_000)
    value = []
    for _ in range(60):
        value = [value, value]
    assert "more than 10,000 values" in refused(value).message
    assert check_output([[0] * 99] * 99)


# --- paths


def test_paths_quote_what_is_no_identifier_and_are_shortened_in_the_middle():
    assert json_path(()) == "$"
    assert json_path(("a", 3, "b c", 'q"')) == '$.a[3]["b c"]["q\\""]'
    long = json_path(["k" * 30] * 40)
    assert len(long) < 250
    assert long.startswith("$.kkk")
    assert "…" in long


# --- properties

JSON_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
OTHER_LEAVES = (
    st.sampled_from([math.nan, math.inf, b"", {1}, 1j, 2**64, -(2**63) - 1, "\ud800", object(), range(1)])
    | st.integers()
    | st.floats()
)


def trees(leaves, keys):
    return st.recursive(
        leaves,
        lambda t: (
            st.lists(t, max_size=5)
            | st.lists(t, max_size=3).map(tuple)
            | st.dictionaries(keys, t, max_size=4)
        ),
        max_leaves=20,
    )


def is_json(value):
    """The definition, written down once more and as slowly as it likes."""
    if value is None or type(value) is bool:
        return True
    if type(value) is int:
        return -(2**63) <= value < 2**64
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is str:
        return not any("\ud800" <= c <= "\udfff" for c in value)
    if type(value) in (list, tuple):
        return all(map(is_json, value))
    if type(value) is dict:
        return all(type(k) is str and is_json(k) and is_json(v) for k, v in value.items())
    return False


@given(trees(JSON_LEAVES, st.text()))
def test_every_json_value_arrives_as_what_json_says(value):
    assert check_output(value) is value
    assert written(value) == json.loads(json.dumps(value, allow_nan=False))


@given(trees(JSON_LEAVES | OTHER_LEAVES, st.text() | st.integers(0, 3) | st.just("\ud800")))
def test_exactly_the_json_values_are_accepted(value):
    if is_json(value):
        assert check_output(value) is value
        assert written(value) == json.loads(json.dumps(value, allow_nan=False))
    else:
        error = refused(value)
        found = value
        for step in error.data["path"].replace("$", "", 1).replace("]", "").replace(".", "[").split("[")[1:]:
            if not isinstance(found, (list, tuple)) or not step.isdigit():
                break
            found = found[int(step)]
        else:
            assert not is_json(found)


@given(st.lists(st.floats(), min_size=1))
def test_a_column_of_floats_is_accepted_only_when_all_are_finite(column):
    if all(map(math.isfinite, column)):
        assert check_output(column) is column
    else:
        bad = next(i for i, x in enumerate(column) if not math.isfinite(x))
        assert refused(column).json_path == f"$[{bad}]"
