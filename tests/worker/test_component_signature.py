"""How a function's signature becomes a component's: every way of writing one, with the annotations evaluated.

test_component_inputs.py converts every kind of type; test_component_definition.py is written under
``from __future__ import annotations``, with names that are looked up late.
"""

import collections
import dataclasses
import enum
import functools
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, TypedDict, Union

import attrs
import msgspec
import pydantic
import pytest

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.worker.schemas import AnnotationUnusable
from stepflow_trio.worker.signature import InputInvalid, is_async, read_signature


class Context: ...


CONTEXT = Context()


class AddInput(msgspec.Struct):
    a: int
    b: int = 0


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


Record = NewType("Record", dict)


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


# --- the rule: nothing, the whole input, or its fields


def test_a_function_without_parameters_ignores_its_input():
    def now():
        return "now"

    assert read(now).takes == "nothing"
    assert read(now).input_schema() == {}
    for value in (None, {}, {"a": 1}, [1], "x"):
        assert call(now, value) == "now"


WHOLE = [
    AddInput,
    Data,
    Attrs,
    Typed,
    Model,
    ModelData,
    dict,
    dict[str, int],
    dict[str, Any],
    Mapping[str, Any],
]
WHOLE += [Cat | Dog, Model | None, Optional[Data], Annotated[AddInput, "doc"], Record, Union[AddInput, None]]  # noqa: UP007, UP045


@pytest.mark.parametrize("annotation", WHOLE, ids=str)
def test_one_parameter_of_an_object_type_takes_the_whole_input(annotation):
    def component(anything: annotation):
        return anything

    signature = read(component)
    assert signature.takes == "whole"
    value = {"a": 1, "type": "Cat"} if annotation == (Cat | Dog) else {"a": 1}
    got = call(component, value)
    assert (got["a"] if isinstance(got, dict) else got.a) == 1
    assert signature.input_schema() != {}


@pytest.mark.parametrize(
    "annotation",
    [int, str, Literal["a"], list[int], tuple[int, ...], Any, object, Pair, Row, int | AddInput, Color],
)
def test_one_parameter_of_any_other_type_is_a_field(annotation):
    def component(x: annotation): ...

    signature = read(component)
    assert signature.takes == "fields"
    assert list(signature.input_schema()["properties"]) == ["x"]


def test_one_parameter_named_input_takes_the_whole_input_whatever_its_type():
    def untyped(input):
        return input

    def listed(input: list[int]):
        return input

    for value in ([1], {"a": 1}, None, "x", 7):
        assert call(untyped, value) is value
    assert call(listed, [1, 2]) == [1, 2]
    assert misfit(listed, {"input": [1]}).json_path == "$"


def test_one_parameter_without_an_annotation_is_a_field():
    def double(x):
        return x * 2

    assert call(double, {"x": 4}) == 8
    assert misfit(double, 4).message == "input does not fit /c: expected object, got int at $"


def test_several_parameters_are_fields_with_their_defaults():
    def add(a: int, b: int = 10, *, scale: float = 1.0):
        return (a + b) * scale

    assert call(add, {"a": 1}) == 11
    assert call(add, {"a": 1, "b": 2, "scale": 3}) == 9
    assert call(add, {"a": 1, "unknown": 2}) == 11
    assert read(add).input_schema() == {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "integer", "default": 10},
            "scale": {"type": "number", "default": 1.0},
        },
        "required": ["a"],
    }


def test_a_parameter_named_input_among_others_is_a_field():
    def f(input: int, b: int):
        return input - b

    assert call(f, {"input": 3, "b": 1}) == 2


def test_a_default_arrives_as_the_very_object_that_the_function_names():
    default, odd = [1], object()

    def f(a: list[int] = default, b: Any = odd, c: Model | None = None, d: Model = default):
        return a, b, c, d

    got = call(f, {})
    assert got[0] is default
    assert got[1] is odd
    assert got[2] is None
    assert got[3] is default


def test_null_counts_as_no_input_where_everything_has_a_default():
    def fields(a: int = 1, b: int = 2):
        return a + b

    def whole(options: AddInput = AddInput(5)):  # noqa: B008
        return options.a

    def others(**kwargs):
        return kwargs

    def needs(a: int, b: int = 2): ...

    assert call(fields, None) == 3
    assert call(whole, None) == 5
    assert call(others, None) == {}
    assert misfit(needs, None).message == "input does not fit /c: expected object, got null at $"


def test_field_names_need_not_be_possible_names_of_record_fields():
    def f(p0: int, p1: int, __struct_fields__: int = 0, größe: int = 0):
        return p0 - p1, __struct_fields__, größe

    assert call(f, {"p1": 1, "p0": 3, "__struct_fields__": 5, "größe": 7}) == (2, 5, 7)


# --- **kwargs


def test_other_fields_go_to_kwargs_and_are_converted():
    def f(a: int, **others: Color):
        return a, others

    assert call(f, {"a": 1, "x y": "red", "z": "red"}) == (1, {"x y": Color.RED, "z": Color.RED})
    error = misfit(f, {"a": 1, "x y": "green"})
    assert error.json_path == '$["x y"]'
    assert read(f).input_schema()["additionalProperties"] == {"$ref": "#/$defs/Color"}


def test_kwargs_alone_take_every_field():
    def f(**fields):
        return fields

    assert call(f, {"a": 1, "self": 2}) == {"a": 1, "self": 2}
    assert misfit(f, [1]).json_path == "$"
    assert read(f).input_schema() == {"type": "object", "properties": {}}


def test_kwargs_never_receive_what_another_parameter_is_for():
    def f(a: int, context, **others):
        return a, context, others

    assert call(f, {"a": 1, "context": "forged", "b": 2}) == (1, CONTEXT, {"b": 2})


def test_beside_a_parameter_that_takes_the_whole_input_kwargs_get_the_path_parameters_only():
    def f(input: AddInput, **others):
        return input.a, others

    assert call(f, {"a": 1, "x": 2}, name="n") == (1, {"name": "n"})


# --- the context


def contexts():
    def first(context: Context, input: AddInput):
        return context, input.a

    def last(input: AddInput, anything: Context):
        return anything, input.a

    def keyword(input: AddInput, *, ctx: Context):
        return ctx, input.a

    def positional(c: Context, i: AddInput, /):
        return c, i.a

    def optional(input: AddInput, c: Context | None = None):
        return c, input.a

    def old_optional(c: Optional[Context], input: AddInput):  # noqa: UP045
        return c, input.a

    def text(input: AddInput, c: "Context"):
        return c, input.a

    def text_optional(input: AddInput, c: "Context | None" = None):
        return c, input.a

    def annotated(input: AddInput, c: Annotated[Context, "x"]):
        return c, input.a

    def unannotated(input: AddInput, context):
        return context, input.a

    def short(ctx, input: AddInput):
        return ctx, input.a

    def between(a: int, context: Context, b: int = 2):
        return context, a

    return list(locals().values())


@pytest.mark.parametrize("fn", contexts(), ids=lambda f: f.__name__)
def test_the_context_is_found_anywhere_in_the_signature(fn):
    assert call(fn, {"a": 1}) == (CONTEXT, 1)
    assert read(fn).context is not None
    assert "context" not in str(read(fn).input_schema())


def test_an_annotated_parameter_named_context_is_a_field():
    def f(context: str, ctx: int):
        return context, ctx

    assert read(f).context is None
    assert call(f, {"context": "c", "ctx": 1}) == ("c", 1)


def test_the_annotated_context_wins_over_a_name():
    def f(c: Context, context):
        return c, context

    assert call(f, {"context": 1}) == (CONTEXT, 1)


def test_a_component_with_nothing_but_a_context_ignores_its_input():
    def f(context: Context):
        return context

    assert call(f, [1]) is CONTEXT


def test_two_contexts_are_refused():
    def f(a: Context, b: Context): ...

    with pytest.raises(LocalProtocolError, match="more than once: a, b"):
        read(f)


# --- every kind of callable


class Service:
    """A service."""

    def method(self, input: AddInput, context: Context):
        return input.a, context

    @classmethod
    def of_class(cls, input: AddInput, context: Context):
        return input.a, context

    @staticmethod
    def static(input: AddInput, context: Context):
        return input.a, context

    def __call__(self, input: AddInput, context: Context):
        return input.a, context


class AsyncService:
    async def __call__(self, input: AddInput): ...

    async def method(self, input: AddInput): ...


class GeneratorService:
    def __call__(self, input: AddInput):
        yield 1


def plain(input: AddInput, context: Context):
    return input.a, context


async def asynchronous(input: AddInput): ...


def decorated(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


def with_more(extra, input: AddInput, context: Context, b: int = 0):
    return input.a, context


CALLABLES = {
    "function": plain,
    "lambda": lambda input, context: (input["a"], context),
    "method": Service().method,
    "classmethod": Service.of_class,
    "staticmethod": Service.static,
    "callable object": Service(),
    "decorated": decorated(plain),
    "decorated twice": decorated(decorated(plain)),
    "decorated method": decorated(Service().method),
    "cached": functools.lru_cache(plain),
    "partial": functools.partial(plain),
    "partial of a decorated method": functools.partial(decorated(Service().method)),
    "partial of a callable object": functools.partial(Service()),
}


@pytest.mark.parametrize("fn", CALLABLES.values(), ids=CALLABLES)
def test_anything_callable_can_be_a_component(fn):
    if isinstance(fn, type(functools.lru_cache(plain))):
        args, kwargs = read(fn).bind({"a": 1}, CONTEXT, {})
        assert (args, kwargs) == ((AddInput(1), CONTEXT), {})
    else:
        assert call(fn, {"a": 1}) == (1, CONTEXT)
    assert not is_async(fn)


def test_a_builtin_function_can_be_a_component():
    assert call(math.sqrt, {"x": 4.0}) == 2.0


def test_a_partial_keeps_what_it_binds():
    bound = functools.partial(with_more, "extra", b=7)
    signature = read(bound)
    assert signature.bind({"input": {"a": 1}}, CONTEXT, {}) == ((AddInput(1), CONTEXT), {"b": 7})
    assert signature.input_schema()["properties"]["b"] == {"type": "integer", "default": 7}


@pytest.mark.parametrize(
    "fn",
    [
        asynchronous,
        functools.partial(asynchronous),
        decorated(asynchronous),
        functools.partial(decorated(asynchronous)),
        AsyncService(),
        AsyncService().method,
        functools.partial(AsyncService()),
    ],
)
def test_async_callables_are_recognised_under_all_their_wrappings(fn):
    assert is_async(fn)
    assert read(fn).bind({"a": 1}, CONTEXT, {}) == ((AddInput(1),), {})


def generator():
    yield 1


async def async_generator():
    yield 1


@pytest.mark.parametrize(
    ("fn", "complaint"),
    [
        (Service, "it is a class"),
        (int, "it is a class"),
        (generator, "generator function"),
        (async_generator, "generator function"),
        (functools.partial(generator), "generator function"),
        (GeneratorService(), "generator function"),
        (lambda *args: None, r"\*args cannot be filled"),
        (lambda a, *rest, b: None, r"\*rest cannot be filled"),
        (Service.method, "first parameter is 'self'"),
        (7, "cannot be called"),
        (Service.__dict__["of_class"], "cannot be called"),
        (min, "signature cannot be read"),
    ],
)
def test_what_can_never_be_a_component_is_refused_with_the_reason(fn, complaint):
    with pytest.raises(LocalProtocolError, match=complaint) as caught:
        read(fn)
    assert str(caught.value).startswith("component /c: ")
    assert not isinstance(caught.value, AnnotationUnusable)


# --- calls and results


def test_the_schema_of_the_output_describes_what_pydantic_writes():
    class Aliased(pydantic.BaseModel):
        a: int = pydantic.Field(serialization_alias="theA")

    def f(a: Aliased) -> Aliased: ...

    assert set(read(f).output_schema()["properties"]) == {"theA"}
    assert set(read(f).input_schema()["properties"]) == {"a"}


def test_an_unusable_return_type_does_not_keep_the_function_from_being_called():
    def f(a: int) -> complex:
        return a

    signature = read(f)
    assert call(f, {"a": 1}) == 1
    with pytest.raises(AnnotationUnusable, match="complex has no JSON form"):
        signature.output_schema()


@pytest.mark.parametrize("context", ["", "ctx: Context, "])
@pytest.mark.parametrize(
    "parameters",
    ["a: int, /, b: int = 2", "a: int, *, b: int = 2", "a: int, /, *, b: int = 2", "a: int, b: int = 2"],
)
def test_every_kind_of_parameter_is_passed_as_python_demands(context, parameters):
    namespace = dict(globals())
    exec(f"def f({context}{parameters}): return a, b", namespace)  # noqa: S102
    assert call(namespace["f"], {"a": 1}) == (1, 2)
    assert call(namespace["f"], {"a": 1, "b": 3}) == (1, 3)


def test_a_mapping_class_that_msgspec_does_not_make_is_refused():
    def f(x: collections.OrderedDict): ...

    with pytest.raises(AnnotationUnusable, match="OrderedDict"):
        read(f)
