"""Making a component of a function, in a module whose annotations are text until somebody looks."""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import TYPE_CHECKING, Any, TypedDict

import attrs
import msgspec
import pydantic
import pytest

from stepflow_trio.errors import ErrorCode, LocalProtocolError, RpcError
from stepflow_trio.worker.component import define_component
from stepflow_trio.worker.signature import InputInvalid

if TYPE_CHECKING:
    from decimal import (
        Decimal as Context,
    )  # never imported here: what the name stands for is the real context

    import nowhere


class TheContext: ...


TheContext.__name__ = "Context"
CONTEXT = TheContext()


class AddInput(msgspec.Struct):
    a: int
    b: int = 0


@dataclasses.dataclass
class Data:
    a: int


@attrs.define
class Attrs:
    a: int


class Typed(TypedDict):
    a: int


class Model(pydantic.BaseModel):
    a: int


def define(fn, path=None, **options):
    return define_component(fn, path=path, context_type=TheContext, **options)


def run(component, value, **path_params):
    args, kwargs = component.bind(value, CONTEXT, path_params)
    return component.fn(*args, **kwargs)


# --- what a component says about itself


def test_a_component_is_named_and_described_by_its_function():
    def add(input: AddInput) -> int:
        """Add two numbers.

        Slowly.
        """
        return input.a + input.b

    component = define(add)
    assert component.path == "/add"
    assert component.description == "Add two numbers.\n\nSlowly."
    assert component.fn is add
    assert component.kind == "thread"
    assert component.input_schema["properties"]["a"] == {"type": "integer"}
    assert component.output_schema == {"type": "integer"}
    assert component.problems == ()
    assert run(component, {"a": 1, "b": 2}) == 3


def test_path_and_description_can_be_given():
    def add(input: AddInput, model: str):
        """Ignored."""
        return model

    component = define(add, "models/{model}", description="Mine.")
    assert (component.path, component.description) == ("/models/{model}", "Mine.")
    assert run(component, {"a": 1}, model="m") == "m"
    assert define(add, "/x/{model}", description="").description == ""


def test_a_function_without_a_docstring_has_no_description():
    def add(input: AddInput): ...

    class Service:
        """Not of the call."""

        def __call__(self, input: AddInput): ...

    assert define(add).description is None
    assert define(functools.partial(add)).description is None
    assert define(Service(), "/s").description is None


def test_partials_are_named_after_their_function_and_what_has_no_name_needs_a_path():
    def add(input: AddInput):
        """Adds."""

    class Service:
        def __call__(self, input: AddInput): ...

    assert define(functools.partial(add)).path == "/add"
    assert define(functools.partial(add)).description == "Adds."
    for nameless in (Service(), lambda: None, functools.partial(Service())):
        with pytest.raises(LocalProtocolError, match="path='/add'"):
            define(nameless)
        assert define(nameless, "/named").path == "/named"


def test_async_functions_run_on_the_loop_others_in_a_thread_unless_inline():
    async def fetch(input: AddInput): ...

    def add(input: AddInput): ...

    assert define(fetch).kind == "async"
    assert define(add).kind == "thread"
    assert define(add, inline=True).kind == "inline"
    with pytest.raises(
        LocalProtocolError, match="component /fetch: an async function runs on the event loop anyway"
    ):
        define(fetch, inline=True)


def test_a_component_is_a_record_that_cannot_be_changed():
    component = define(lambda: None, "/x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        component.path = "/y"


def generator():
    yield 1


@pytest.mark.parametrize(
    ("fn", "path", "complaint"),
    [
        (generator, None, "component /generator: it is a generator function"),
        (AddInput, None, "component /AddInput: it is a class"),
        (lambda *args: None, "/x", r"component /x: \*args cannot be filled"),
        (lambda name: None, "/{nmae}", "component /{nmae}: its path has a parameter .*: nmae"),
        (lambda: None, "/{x", "whole segment"),
        (lambda: None, "/", "empty segment"),
        (print, None, r"\*args"),
    ],
)
def test_what_can_never_be_a_component_is_refused_at_once(fn, path, complaint):
    with pytest.raises(LocalProtocolError, match=complaint):
        define(fn, path)


def test_a_misfit_names_the_pattern_of_the_component():
    def f(input: AddInput, m: str): ...

    with pytest.raises(
        InputInvalid, match=r"input does not fit /models/\{m\}: expected int, got str at \$\.a"
    ):
        run(define(f, "/models/{m}"), {"a": "x"}, m="m")


# --- annotations that are text


def test_types_of_the_module_are_found():
    def f(
        a: AddInput, b: Data, c: Attrs, d: Typed, e: Model, f: list[AddInput | None]
    ) -> dict[str, AddInput]:
        return a, b, c, d, e, f

    one = {"a": 1}
    component = define(f)
    got = run(component, dict.fromkeys("abcde", one) | {"f": [one, None]})
    assert got == (AddInput(1), Data(1), Attrs(1), {"a": 1}, Model(a=1), [AddInput(1), None])
    assert component.problems == ()
    assert component.output_schema["additionalProperties"] == {"$ref": "#/$defs/AddInput"}


def test_types_that_are_local_to_the_enclosing_functions_are_found():
    class Outer(msgspec.Struct):
        a: int

    def make():
        class Inner(msgspec.Struct):
            b: int

        def f(outer: Outer, inner: Inner) -> Inner:
            return outer, inner

        return define(f), Inner

    component, inner = make()
    assert run(component, {"outer": {"a": 1}, "inner": {"b": 2}}) == (Outer(1), inner(2))
    assert component.problems == ()
    assert component.output_schema["title"] == "Inner"


def test_types_in_the_closure_are_found_after_the_enclosing_function_has_returned():
    def make():
        class Inner(msgspec.Struct):
            b: int

        def f(input: Inner) -> Inner:
            return Inner(input.b + 1)

        return f, Inner

    f, inner = make()
    assert run(define(f), {"b": 1}) == inner(2)


def test_a_function_that_refers_to_its_own_decorated_name_can_be_defined():
    def make():
        def f(input: AddInput):
            return component

        component = None
        component = define(f)
        return component

    def unassigned():
        component = define(lambda input: component, "/x")
        return component

    assert run(make(), {"a": 1}).path == "/f"
    assert run(unassigned(), {}).path == "/x"


def test_types_of_the_class_are_found_for_its_methods():
    class Service:
        class Options(msgspec.Struct):
            a: int

        def method(self, input: Options) -> Options:
            return input

        def __call__(self, input: Options) -> Options:
            return input

        @classmethod
        def of_class(cls, input: Options) -> Options:
            return input

    for fn in (Service().method, Service(), Service.of_class):
        component = define(fn, "/s")
        assert run(component, {"a": 1}) == Service.Options(1)
        assert component.output_schema["title"] == "Options"


def test_decorated_functions_are_read_where_they_were_written():
    namespace = {"functools": functools}
    source = """
def decorate(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)
    return wrapper
"""
    exec(source, namespace)  # noqa: S102

    def f(input: AddInput) -> int:
        return input.a

    assert run(define(namespace["decorate"](f)), {"a": 1}) == 1


def test_the_context_is_known_even_if_it_was_imported_for_type_checkers_only():
    def plain(input: AddInput, c: Context):
        return c

    def optional(input: AddInput, c: Context | None = None):
        return c

    for fn in (plain, optional):
        assert run(define(fn), {"a": 1}) is CONTEXT


# --- names that are not there yet, or never


def module_with(source):
    """The names of a module that is still being executed."""
    namespace = {"__name__": "some_module", "msgspec": msgspec, "define": define}
    exec("from __future__ import annotations\n" + source, namespace)  # noqa: S102
    return namespace


def test_a_class_defined_after_the_function_is_found_at_the_first_use():
    namespace = module_with(
        """
def f(input: Later) -> Later:
    return input
component = define(f)
early = component.problems, component.input_schema, component.output_schema
class Later(msgspec.Struct):
    a: int
"""
    )
    problems, *schemas = namespace["early"]
    assert len(problems) == 1
    assert "parameter 'input': annotation 'Later' cannot be resolved" in problems[0]
    assert schemas == [{}, {}]
    component = namespace["component"]
    assert run(component, {"a": 1}) == namespace["Later"](1)
    assert component.input_schema["title"] == component.output_schema["title"] == "Later"
    assert component.problems == ()


def test_a_class_that_refers_to_a_later_one_is_found_too(monkeypatch):
    module = type(sys)("some_module")
    monkeypatch.setitem(sys.modules, "some_module", module)
    module.__dict__.update(msgspec=msgspec, define=define)
    source = """
from __future__ import annotations
class First(msgspec.Struct):
    second: Second
def f(input: First): return input.second.a
component = define(f)
early = component.problems
class Second(msgspec.Struct):
    a: int
"""
    exec(source, module.__dict__)  # noqa: S102
    assert "Second" in module.early[0]
    assert run(module.component, {"second": {"a": 1}}) == 1


def test_a_return_type_defined_after_the_function_is_described_once_it_is_there():
    namespace = module_with(
        """
def f(a: int, b: int) -> Later:
    return a
component = define(f)
early = component.problems, component.output_schema
class Later(msgspec.Struct):
    a: int
"""
    )
    (problem,), schema = namespace["early"]
    assert "its output has no schema" in problem
    assert schema == {}
    assert namespace["component"].output_schema["title"] == "Later"
    assert namespace["component"].problems == ()


def test_a_name_that_never_appears_is_a_problem_of_this_component_only():
    def f(input: NoSuchName) -> int: ...  # noqa: F821

    component = define(f)
    assert component.input_schema == component.output_schema == {}
    (problem,) = component.problems
    assert problem.startswith("component /f: parameter 'input': annotation 'NoSuchName' cannot be resolved")
    with pytest.raises(RpcError) as caught:
        component.bind({}, CONTEXT, {})
    assert caught.value.code == ErrorCode.CONFIGURATION_ERROR == -32008
    assert caught.value.message == problem
    assert caught.value.data == {"component": "/f", "reason": problem}


def test_an_import_for_type_checkers_only_is_named():
    def f(input: nowhere.Thing): ...

    assert "name 'nowhere' is not defined" in define(f).problems[0]


def test_a_parameter_that_no_json_value_fits_is_a_problem_at_definition_and_an_error_at_a_call():
    def f(x: complex, y: int): ...

    component = define(f)
    assert component.problems == ("component /f: complex has no JSON form, at $.x",)
    assert component.input_schema == {}
    with pytest.raises(RpcError, match="-32008"):
        component.bind({}, CONTEXT, {})


def test_a_result_that_cannot_be_described_leaves_the_component_usable():
    def unknown(a: int, b: int) -> NoSuchName:  # noqa: F821
        return a + b

    def custom(a: int, b: int) -> list[complex]:
        return a + b

    for fn, named in [(unknown, "NoSuchName"), (custom, "complex")]:
        component = define(fn)
        assert component.output_schema == {}
        assert component.input_schema["required"] == ["a", "b"]
        (problem,) = component.problems
        assert problem.startswith(f"component /{fn.__name__}: its output has no schema: ")
        assert named in problem
        assert run(component, {"a": 1, "b": 2}) == 3


def test_an_input_that_can_be_read_but_not_described_leaves_the_component_usable():
    class Hooked(pydantic.BaseModel):
        a: Any

        @classmethod
        def __get_pydantic_json_schema__(cls, *_args):
            raise RuntimeError("no")

    def f(input: Hooked) -> int:
        return input.a

    component = define(f)
    assert component.input_schema == {}
    assert component.problems == (
        "component /f: its input has no schema: " + component.problems[0].split(": ", 2)[2],
    )
    assert component.output_schema == {"type": "integer"}
    assert run(component, {"a": 1}) == 1


def test_schemas_are_made_once():
    component = define(lambda input: None, "/x")
    assert component.signature is component.signature

    def f(input: AddInput) -> AddInput: ...

    component = define(f)
    assert component.input_schema is component.input_schema
    assert component.output_schema is component.output_schema
