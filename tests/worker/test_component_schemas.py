"""JSON Schema of annotations: valid, self-contained, right about values, and clear about what has none."""

import dataclasses
import datetime
import decimal
import enum
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NewType,
    NoReturn,
    NotRequired,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)

import attrs
import jsonschema_rs
import msgspec
import pydantic
import pytest

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.worker.schemas import AnnotationUnusable, object_schema, schema_for, walk_types


class Item(msgspec.Struct):
    """What is sold."""

    price: Annotated[float, msgspec.Meta(ge=0, description="In euros.")]
    name: str = "thing"


class Cart(msgspec.Struct):
    items: list[Item]
    first: Item | None = None


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    tricks: list[str]


class Tree(msgspec.Struct):
    children: list["Tree"] = []


@dataclasses.dataclass
class Data:
    a: int
    b: str = "x"


@attrs.define
class Attrs:
    a: int
    b: str = "x"


class Typed(TypedDict):
    a: int
    b: NotRequired[str]


class Pair(NamedTuple):
    a: int
    b: str


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Model(pydantic.BaseModel):
    a: int
    b: str = pydantic.Field("x", serialization_alias="bee")


class Branch(pydantic.BaseModel):
    leaf: Model
    branches: list["Branch"] = []


@dataclasses.dataclass
class Mixed:
    model: Model
    branch: Branch
    many: list[Model]
    cart: Cart
    loose: object


Money = NewType("Money", int)
T = TypeVar("T")

OBJECT = [{"a": 1}, {"a": 1, "b": "y"}], [{}, {"a": "1"}, {"a": 1, "b": 2}, [], None]
TEXT = ["x"], [1, None, {}]

# annotation, values that fit, values that do not
DESCRIBED = [
    (int, [1, -1], [1.5, "1", None]),
    (float, [1, 1.5], ["1"]),
    (bool, [True], [1, "true"]),
    (str, *TEXT),
    (None, [None], [0]),
    (bytes, *TEXT),
    (list, [[], [1, "a"]], [{}]),
    (list[int], [[], [1]], [["a"], {}]),
    (Sequence[int], [[1]], [["a"]]),
    (tuple[int, str], [[1, "a"]], [[1], [1, "a", 2], ["a", 1]]),
    (tuple[int, ...], [[], [1, 2]], [["a"]]),
    (set[int], [[1, 2]], [[1, 1], ["a"]]),
    (dict, [{}, {"a": 1}], [[]]),
    (dict[str, int], [{"a": 1}], [{"a": "1"}]),
    (dict[int, str], [{"1": "a"}], [{"1": 1}]),
    (Mapping[str, Any], [{"a": None}], [1]),
    (dict[str, object], [{"a": None}], [1]),
    (int | None, [1, None], ["a"]),
    (Optional[int], [1, None], ["a"]),  # noqa: UP045
    (Union[int, str], [1, "a"], [None]),  # noqa: UP007
    (Literal["a", 1], ["a", 1], ["b", 2]),
    (Color, ["red"], ["green"]),
    (Annotated[int, msgspec.Meta(ge=3)], [3], [2]),
    (datetime.datetime, *TEXT),
    (datetime.date, ["2024-01-02"], [1]),
    (datetime.timedelta, *TEXT),
    (uuid.UUID, *TEXT),
    (decimal.Decimal, *TEXT),
    (Money, [1], ["a"]),
    (Data, *OBJECT),
    (Attrs, *OBJECT),
    (Typed, *OBJECT),
    (Model, *OBJECT),
    (Pair, [[1, "a"]], [{"a": 1, "b": "a"}, [1]]),
    (Item, [{"price": 1}, {"price": 1, "name": "n"}], [{"price": -1}, {"name": "n"}]),
    (Cart, [{"items": [{"price": 1}]}, {"items": [], "first": None}], [{"items": [{}]}]),
    (Cat | Dog, [{"type": "Cat", "lives": 9}], [{"type": "Cat", "tricks": []}, {"type": "Cow"}]),
    (Tree, [{"children": [{"children": []}]}], [{"children": [{"children": [1]}]}]),
    (list[Model], [[{"a": 1}]], [[{}]]),
    (Model | None, [{"a": 1}, None], [1]),
    (Model | Branch, [{"a": 1}, {"leaf": {"a": 1}}], [{}]),
    (dict[str, list[Data]], [{"k": [{"a": 1}]}], [{"k": [{}]}]),
    (Branch, [{"leaf": {"a": 1}, "branches": [{"leaf": {"a": 1}}]}], [{"leaf": {"a": 1}, "branches": [{}]}]),
    (Annotated[int, pydantic.Field(ge=3)], [3], [2]),
    (list[pydantic.PositiveInt], [[1]], [[0]]),
    (
        Mixed,
        [{"model": {"a": 1}, "branch": {"leaf": {"a": 1}}, "many": [], "cart": {"items": []}, "loose": 1}],
        [{"model": {}, "branch": {"leaf": {"a": 1}}, "many": [], "cart": {"items": []}, "loose": 1}],
    ),
]


@pytest.mark.parametrize(("annotation", "good", "bad"), DESCRIBED, ids=[str(d[0]) for d in DESCRIBED])
def test_a_schema_is_valid_self_contained_and_tells_good_values_from_bad(annotation, good, bad):
    for mode in ("validation", "serialization"):
        schema = schema_for(annotation, mode=mode)
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    validator = jsonschema_rs.Draft202012Validator(schema_for(annotation))
    assert [v for v in good if not validator.is_valid(v)] == []
    assert [v for v in bad if validator.is_valid(v)] == []


@pytest.mark.parametrize("annotation", [Any, object, NoReturn, T, __import__("inspect").Parameter.empty])
def test_an_annotation_that_says_nothing_allows_anything(annotation):
    assert schema_for(annotation) == {}


def test_a_schema_that_is_only_a_reference_is_resolved_for_peers_that_cannot():
    assert schema_for(Item)["properties"]["price"]["minimum"] == 0
    assert "$defs" not in schema_for(Item)
    assert schema_for(Tree)["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}
    assert set(schema_for(Tree)["$defs"]) == {"Tree"}
    assert schema_for(Branch)["type"] == "object"


def test_docstrings_and_field_descriptions_are_kept():
    schema = schema_for(Item)
    assert schema["description"] == "What is sold."
    assert schema["properties"]["price"]["description"] == "In euros."
    assert schema["properties"]["name"]["default"] == "thing"


def test_pydantic_describes_inputs_by_what_it_accepts_and_outputs_by_what_it_writes():
    assert set(schema_for(Model)["properties"]) == {"a", "b"}
    assert set(schema_for(Model, mode="serialization")["properties"]) == {"a", "bee"}
    nested = schema_for(Mixed, mode="serialization")["properties"]["model"]
    assert set(nested["properties"]) == {"a", "bee"}


def test_models_of_the_same_name_are_kept_apart():
    def make(field):
        leaf = pydantic.create_model("Leaf", **{field: (int, ...)})
        return pydantic.create_model("Tree", leaf=(leaf, ...))

    first, second = make("one"), make("two")
    schema = object_schema({"a": first, "b": second, "c": first, "d": Tree}, defaults={})
    validator = jsonschema_rs.Draft202012Validator(schema)
    good = {
        "a": {"leaf": {"one": 1}},
        "b": {"leaf": {"two": 2}},
        "c": {"leaf": {"one": 1}},
        "d": {"children": []},
    }
    assert validator.is_valid(good)
    for name, leaf in [("a", "two"), ("b", "one"), ("c", "two")]:
        assert not validator.is_valid({**good, name: {"leaf": {leaf: 1}}})
    both = dataclasses.make_dataclass("Both", [("a", first), ("b", second)])
    validator = jsonschema_rs.Draft202012Validator(schema_for(both))
    assert validator.is_valid({"a": good["a"], "b": good["b"]})
    assert not validator.is_valid({"a": good["b"], "b": good["b"]})


def test_a_pydantic_type_that_pydantic_cannot_describe_is_anything_inside_a_record():
    class Hooked(pydantic.BaseModel):
        f: Callable[[int], int]

    record = dataclasses.make_dataclass("Record", [("hooked", Hooked), ("k", int)])
    assert schema_for(record)["properties"] == {"hooked": {}, "k": {"type": "integer"}}
    with pytest.raises(AnnotationUnusable, match="Hooked"):
        schema_for(Hooked)


class Custom: ...


@dataclasses.dataclass
class Deep:
    rows: list[dict[str, Custom]]


class Undefined(msgspec.Struct):
    x: "NoSuchClass"  # noqa: F821


class UndefinedModel(pydantic.BaseModel):
    x: "NoSuchClass"  # noqa: F821


class NotANumber(msgspec.Struct):
    x: float = float("nan")


class BadDefault(msgspec.Struct):
    x: object = Custom()


class MixedEnum(enum.Enum):
    A = 1
    B = "b"


@pytest.mark.parametrize(
    ("annotation", "named", "place"),
    [
        (Custom, "Custom", "at $"),
        (Deep, "Custom", "at $.rows[*][*]"),
        (list[Custom], "Custom", "at $[*]"),
        (tuple[int, Custom], "Custom", "at $[1]"),
        (Callable[[int], int], "Callable", "at $"),
        (Iterable[int], "Iterable", "at $"),
        (complex, "complex", "at $"),
        (Undefined, "NoSuchClass", "at $"),
        (UndefinedModel, "NoSuchClass", ""),
        (Model | Cat, "Model", "at $"),
        (MixedEnum, "MixedEnum", "at $"),
        (Literal[1.5], "Literal", "at $"),
        (NotANumber, "NotANumber", ""),
        (BadDefault, "BadDefault", "at $"),
        (dataclasses.make_dataclass("Around", [("m", UndefinedModel)]), "NoSuchClass", ""),
        (3, "3", "at $"),
        ("Item", "Item", "at $"),
    ],
)
def test_what_no_schema_describes_is_named_together_with_its_place(annotation, named, place):
    with pytest.raises(AnnotationUnusable, match=named) as caught:
        schema_for(annotation)
    assert isinstance(caught.value, LocalProtocolError)
    assert str(caught.value).endswith(place)


def test_an_object_schema_has_optional_fields_with_their_defaults():
    schema = object_schema(
        {"a": int, "b": Item, "c": Any, "d": Color, "e": float, "f": Model | None},
        defaults={"c": object(), "d": Color.RED, "e": float("inf"), "f": None},
    )
    assert schema["required"] == ["a", "b"]
    assert schema["properties"]["c"] == {}
    assert schema["properties"]["d"]["default"] == "red"
    assert "default" not in schema["properties"]["e"]
    assert schema["properties"]["f"]["default"] is None
    validator = jsonschema_rs.Draft202012Validator(schema)
    assert validator.is_valid({"a": 1, "b": {"price": 1}, "more": 1})
    assert not validator.is_valid({"a": 1, "b": {"price": -1}})


def test_an_object_schema_without_required_fields_does_not_mention_them():
    assert object_schema({}, defaults={}) == {"type": "object", "properties": {}}
    schema = object_schema({"a": int}, defaults={"a": 3}, additional=Item)
    assert "required" not in schema
    assert schema["additionalProperties"] == {"$ref": "#/$defs/Item"}


def test_an_object_schema_names_the_field_that_has_none():
    with pytest.raises(AnnotationUnusable, match=r"Custom has no JSON form, at \$\.bad\.rows"):
        object_schema({"fine": int, "bad": Deep}, defaults={})
    with pytest.raises(AnnotationUnusable, match=r"Custom has no JSON form, at \$\.\*"):
        object_schema({}, defaults={}, additional=Custom)


def test_types_are_walked_once_each_however_they_refer_to_each_other():
    places = [place for place, _ in walk_types(Tree)]
    assert sorted(places) == ["$", "$.children", "$.children[*]"]


def test_pydantic_is_not_imported_by_a_worker_that_does_not_use_it():
    code = """
import sys
from stepflow_trio.worker.component import define_component
def f(a: int, b: list[str]) -> dict[str, int]: ...
component = define_component(f, context_type=type)
assert component.input_schema["required"] == ["a", "b"] and component.output_schema and not component.problems
component.signature.bind({"a": 1, "b": []}, None, {})
print(sorted({"pydantic", "pydantic_core"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
