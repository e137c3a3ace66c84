"""What a component is given: every kind of type, converted; every misfit, located and explained."""

import __future__

import dataclasses
import datetime
import enum
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypedDict, Union  # noqa: F401 some in texts

import attrs
import msgspec
import pydantic
import pytest

from stepflow_trio.errors import ErrorCode, LocalProtocolError, RpcError
from stepflow_trio.worker.schemas import AnnotationUnusable
from stepflow_trio.worker.signature import InputInvalid, read_signature


class Context: ...


CONTEXT = Context()


class AddInput(msgspec.Struct):
    a: int
    b: int = 0


class Nested(msgspec.Struct):
    items: list[AddInput]
    by_name: dict[str, AddInput] = {}


@dataclasses.dataclass
class Data:
    a: int
    b: int = 0


@attrs.define
class Attrs:
    a: int
    b: int = 0


class Typed(TypedDict):
    a: int


class Pair(NamedTuple):
    a: int
    b: str


class Model(pydantic.BaseModel):
    a: int
    b: int = 0


@pydantic.dataclasses.dataclass
class ModelData:
    a: int

    @pydantic.field_validator("a")
    @classmethod
    def positive(cls, a):
        assert a > 0
        return a


class Cat(msgspec.Struct, tag=True):
    a: int


class Dog(msgspec.Struct, tag=True):
    b: int


class Row(msgspec.Struct, array_like=True):
    a: int


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Mixed:
    model: Model
    models: list[Model]
    loose: object = None
    by_number: dict[int, Model] = dataclasses.field(default_factory=dict)


def read(fn, *path_params, component="/c"):
    return read_signature(fn, path_params=frozenset(path_params), context_type=Context, component=component)


def call(fn, value, /, **path_params):
    """What the function returns for an input: the arguments really fit it."""
    args, kwargs = read(fn, *path_params).bind(value, CONTEXT, path_params)
    return fn(*args, **kwargs)


def misfit(fn, value, /, **path_params):
    with pytest.raises(InputInvalid) as caught:
        read(fn, *path_params).bind(value, CONTEXT, path_params)
    return caught.value


@pytest.mark.parametrize("deferred", [False, True], ids=["evaluated", "deferred"])
@pytest.mark.parametrize(
    ("annotation", "value", "converted", "bad", "path"),
    [
        ("int", 1, 1, "1", "$.x"),
        ("float", 1, 1.0, "1", "$.x"),
        ("bool", True, True, 1, "$.x"),
        ("str", "a", "a", 1, "$.x"),
        ("None", None, None, 1, "$.x"),
        ("Any", {"a": [1]}, {"a": [1]}, ..., None),
        ("object", {"a": [1]}, {"a": [1]}, ..., None),
        ("bytes", "aGk=", b"hi", "?", "$.x"),
        ("int | None", None, None, "1", "$.x"),
        ("Optional[int]", None, None, "1", "$.x"),
        ("Union[int, str]", "a", "a", 1.5, "$.x"),
        ("Literal['a', 1]", 1, 1, "b", "$.x"),
        ("Color", "red", Color.RED, "green", "$.x"),
        ("Level", 3, Level.HIGH, "3", "$.x"),
        ("datetime.date", "2024-01-02", datetime.date(2024, 1, 2), "x", "$.x"),
        ("Annotated[int, msgspec.Meta(ge=3)]", 3, 3, 2, "$.x"),
        ("Annotated[int, msgspec.Meta(description='A number.')]", 3, 3, "3", "$.x"),
        ("Annotated[int, pydantic.Field(ge=3)]", 3, 3, 2, "$.x"),
        ("list[int]", [1], [1], [1, "2"], "$.x[1]"),
        ("tuple[int, str]", [1, "a"], (1, "a"), [1, 2], "$.x[1]"),
        ("set[int]", [1, 1], {1}, ["a"], "$.x[0]"),
        ("dict[str, int]", {"k": 1}, {"k": 1}, {"k": "1"}, "$.x[...]"),
        ("dict[int, str]", {"1": "a"}, {1: "a"}, {"a": "a"}, "$.x"),
        ("dict[str, object]", {"k": [1]}, {"k": [1]}, [], "$.x"),
        ("AddInput", {"a": 1}, AddInput(1), {"a": "1"}, "$.x.a"),
        ("list[AddInput]", [{"a": 1}], [AddInput(1)], [{}], "$.x[0]"),
        ("Data", {"a": 1}, Data(1), {"a": "1"}, "$.x.a"),
        ("Attrs", {"a": 1}, Attrs(1), {"a": "1"}, "$.x.a"),
        ("Typed", {"a": 1}, {"a": 1}, {"a": "1"}, "$.x.a"),
        ("Pair", [1, "a"], Pair(1, "a"), ["1", "a"], "$.x[0]"),
        ("Row", [1], Row(1), ["1"], "$.x[0]"),
        ("Cat | Dog", {"type": "Dog", "b": 1}, Dog(1), {"type": "Cow"}, "$.x.type"),
        ("Model", {"a": 1}, Model(a=1), {"a": "x"}, "$.x.a"),
        ("list[Model]", [{"a": 1}], [Model(a=1)], [{"a": 1}, {}], "$.x[1].a"),
        ("Model | None", None, None, {"a": []}, "$.x.a"),
        ("Model | int", 3, 3, "x", None),
        ("ModelData", {"a": 1}, ModelData(a=1), {"a": -1}, "$.x.a"),
        (
            "Mixed",
            {"model": {"a": 1}, "models": [{"a": 2}], "by_number": {"3": {"a": 4}}},
            Mixed(Model(a=1), [Model(a=2)], None, {3: Model(a=4)}),
            {"model": {"a": 1}, "models": [{"a": 1}, {"a": 1, "b": "x"}]},
            "$.x.models[1].b",
        ),
    ],
)
def test_fields_of_every_kind_are_converted_and_misfits_are_located(
    annotation, value, converted, bad, path, deferred
):
    flags = __future__.annotations.compiler_flag if deferred else 0
    source = f"def component(x: {annotation}, other: int = 0) -> {annotation}: return x"
    namespace = dict(globals())
    exec(compile(source, "<component>", "exec", flags=flags, dont_inherit=True), namespace)  # noqa: S102
    component = namespace["component"]
    assert isinstance(component.__annotations__["x"], str) is deferred
    got = call(component, {"x": value})
    assert got == converted
    assert type(got) is type(converted)
    if bad is not ...:
        error = misfit(component, {"x": bad})
        if path is not None:
            assert error.json_path == path
    signature = read(component)
    assert signature.input_schema()["required"] == ["x"]
    assert isinstance(signature.output_schema(), dict)


# --- misfits


def test_a_misfit_says_what_was_expected_what_came_and_where():
    def add(input: AddInput): ...

    error = misfit(add, {"a": "x"})
    assert isinstance(error, RpcError)
    assert error.code == ErrorCode.INVALID_INPUT_SCHEMA == -32003
    assert error.message == "input does not fit /c: expected int, got str at $.a"
    assert error.data == {"path": "$.a", "component": "/c", "expected": "int", "got": "str"}


def test_a_missing_field_is_named_together_with_what_was_probably_meant():
    def add(input: AddInput): ...

    def fields(amount: int, b: int): ...

    error = misfit(add, {})
    assert error.message == "input does not fit /c: missing required field 'a' at $"
    assert error.data == {"path": "$", "component": "/c", "field": "a"}
    assert "'amuont' was given" in misfit(fields, {"amuont": 1, "b": 1}).message
    assert "was given" not in misfit(fields, {f"amoun{i}": 1 for i in range(10_000)}).message


def test_a_misfit_inside_a_list_or_a_mapping_is_located():
    def f(input: Nested): ...

    assert misfit(f, {"items": [{"a": 1}, {"a": None}]}).json_path == "$.items[1].a"
    assert misfit(f, {"items": [], "by_name": {"k": {"a": 1.5}}}).json_path == "$.by_name[...].a"
    assert misfit(f, {"items": 3}).data["expected"] == "array"


def test_constraints_and_validators_of_the_author_are_reported_in_their_words():
    class Checked(msgspec.Struct):
        a: int

        def __post_init__(self):
            if self.a > 9:
                raise ValueError("a must be a digit")

    def constrained(x: Annotated[int, msgspec.Meta(ge=3)], y: int): ...

    def checked(input: list[Checked]): ...

    assert misfit(constrained, {"x": 1, "y": 1}).message == "input does not fit /c: expected int >= 3 at $.x"
    error = misfit(checked, [{"a": 1}, {"a": 10}])
    assert error.message == "input does not fit /c: a must be a digit at $[1]"


def test_a_pydantic_misfit_names_the_first_problem_and_counts_the_others():
    def f(input: Model): ...

    def inside(input: Mixed): ...

    error = misfit(f, {"b": "x"})
    assert error.message == "input does not fit /c: field required at $.a, and 1 more problem"
    error = misfit(inside, {"model": {}, "models": []})
    assert error.message == "input does not fit /c: field required at $.model.a"
    assert "input_value" not in str(error)


def test_any_other_exception_of_the_authors_own_code_passes_through():
    class Broken(msgspec.Struct):
        a: int

        def __post_init__(self):
            raise KeyError("bug")

    def f(input: Broken): ...

    with pytest.raises(KeyError, match="bug"):
        read(f).bind({"a": 1}, CONTEXT, {})


def test_the_input_is_not_changed_and_calls_do_not_share_arguments():
    def f(input: dict, **others): ...

    def g(a: list, **others): ...

    value = {"a": [1], "b": 2}
    (first,), kwargs = read(f).bind(value, CONTEXT, {})
    first["c"] = 3
    kwargs["d"] = 4
    read(g).bind(value, CONTEXT, {})
    assert value == {"a": [1], "b": 2}
    assert read(f).bind(value, CONTEXT, {})[1] == {}


@pytest.mark.parametrize(
    ("annotation", "complaint"),
    [
        (complex, r"complex has no JSON form, at \$\.x"),
        (Callable[[int], int], r"Callable has no JSON form, at \$\.x"),
        (Iterable[int], r"Iterable has no JSON form, at \$\.x"),
        (list[Context], r"Context has no JSON form, at \$\.x\[\*\]"),
        (AddInput | Nested, "tagged"),
        (3, "Type '3' is not supported"),
        ("NoSuchName", "parameter 'x': annotation 'NoSuchName' cannot be resolved: name 'NoSuchName'"),
        ("the number", "parameter 'x': annotation 'the number' cannot be resolved"),
        (list["NoSuchName"], r"annotation .* cannot be resolved"),  # noqa: F821
    ],
)
def test_an_annotation_that_no_json_value_fits_is_named(annotation, complaint):
    def f(x: annotation, y: int = 0): ...

    with pytest.raises(AnnotationUnusable, match=complaint) as caught:
        read(f)
    assert str(caught.value).startswith("component /c: ")


def test_an_unusable_type_for_kwargs_or_a_path_parameter_is_named_as_well():
    def f(**kwargs: complex): ...

    def g(n: complex): ...

    with pytest.raises(AnnotationUnusable, match="complex"):
        read(f)
    with pytest.raises(AnnotationUnusable, match=r"complex has no JSON form, at \{n\}"):
        read(g, "n")


# --- path parameters


def test_path_parameters_are_converted_from_text_to_what_they_are_annotated_with():
    def f(
        input: AddInput,
        s: str,
        i: int,
        x: float,
        b: bool,
        c: Color,
        e: Level,
        one: Literal[1, 2],
        raw,
        o: int | None = 5,
    ):
        return s, i, x, b, c, e, one, raw, o

    texts = {
        "s": "12",
        "i": "12",
        "x": "1.5",
        "b": "true",
        "c": "red",
        "e": "3",
        "one": "2",
        "raw": "7",
        "o": "8",
    }
    assert call(f, {"a": 1}, **texts) == ("12", 12, 1.5, True, Color.RED, Level.HIGH, 2, "7", 8)
    assert read(f, *texts).takes == "whole"


def test_path_parameters_are_taken_out_of_the_fields_and_cannot_be_forged():
    def f(a: int, name: str, *, b: int, more: str):
        return a, name, b, more

    assert call(f, {"a": 1, "b": 2, "name": "forged"}, name="n", more="m") == (1, "n", 2, "m")
    assert set(read(f, "name", "more").input_schema()["properties"]) == {"a", "b"}


def test_path_parameters_may_be_positional_only_or_caught_by_kwargs():
    def positional(name, /, context, a: int):
        return name, context, a

    def caught(a: int, **others):
        return a, others

    assert call(positional, {"a": 1}, name="n") == ("n", CONTEXT, 1)
    assert call(caught, {"a": 1, "b": 2, "name": "forged"}, name="n", x="y") == (
        1,
        {"b": 2, "name": "n", "x": "y"},
    )


def test_a_path_parameter_named_like_the_context_is_the_path_parameter():
    def f(context):
        return context

    assert call(f, {}, context="c") == "c"


def test_a_path_parameter_that_does_not_fit_is_named():
    def f(n: int, m: pydantic.PositiveInt): ...

    error = misfit(f, {}, n="x", m="1")
    assert error.message == "input does not fit /c: expected int, got str at {n}"
    assert error.data == {"path": "{n}", "component": "/c", "expected": "int", "got": "str"}
    assert misfit(f, {}, n="1", m="-1").json_path == "{m}"


def test_a_path_parameter_that_the_function_does_not_take_is_refused():
    def f(input: AddInput, *, a: str): ...

    with pytest.raises(LocalProtocolError, match=r"component /c: its path has a parameter .*: b, c"):
        read(f, "a", "b", "c")


def test_a_parameter_cannot_be_the_context_and_in_the_path():
    def f(c: Context): ...

    with pytest.raises(LocalProtocolError, match="'c' is both"):
        read(f, "c")
