"""A Python function's signature, read as a component's: what its input is and how a call is made of it.

The rule for a function's parameters, after the context, the path parameters and ``**kwargs`` are set aside:

* **none left**: the input is ignored;
* **exactly one left**, which is named ``input`` or whose type is a JSON object in itself (a Struct,
  dataclass, TypedDict, attrs or pydantic class, or a mapping): it takes the **whole** input;
* **otherwise** each one is a **field** of the input, which is an object: a default makes its field optional.
  Fields that no parameter names go to ``**kwargs``, and are ignored where there is none.

The context is the parameter annotated with the context class (or with it and None), or else an unannotated
one named ``context`` or ``ctx``. Path parameters are those that the component's path names; they are text, so
their conversion is lenient (``"3"`` is an int). An input of null counts as no input where every parameter has
a default.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

import msgspec

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.worker.inputs import InputInvalid, ReadInput, fields_reader, others_reader, whole_reader
from stepflow_trio.worker.schemas import (
    MISSING,
    AnnotationUnusable,
    JsonSchema,
    object_schema,
    schema_for,
    type_name,
)

__all__ = [
    "AnnotationUnusable",
    "Bind",
    "InputInvalid",
    "Signature",
    "innermost",
    "is_async",
    "read_signature",
]

Bind = Callable[[Any, Any, Mapping[str, str]], tuple[tuple[Any, ...], dict[str, Any]]]
Resolve = Callable[[str, Any], Any]

_CONTEXT_NAMES = ("context", "ctx")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What ``read_signature`` found."""

    bind: Bind
    """``bind(input, context, path_params)`` makes the ``(args, kwargs)`` of one call.

    ``input`` is a decoded JSON value. It is not changed, and parts of it may become part of the arguments.
    ``path_params`` is what the component's path captured.

    Raises InputInvalid where the input or a path parameter does not fit. A ValueError or TypeError that a
    record's ``__post_init__`` or a model's validator raises means the same; others pass through.
    """
    takes: Literal["nothing", "whole", "fields"]
    """What the input is to the function; see the rule at the top of this module."""
    context: str | None
    """The name of the parameter that takes the context."""
    input_schema: Callable[[], JsonSchema]
    """Makes the schema of the input. Raises AnnotationUnusable where there is none."""
    output_schema: Callable[[], JsonSchema]
    """Makes the schema of what is returned. Raises AnnotationUnusable where there is none (yet)."""


def read_signature(
    fn: Callable[..., Any],
    *,
    path_params: frozenset[str] = frozenset(),
    context_type: type,
    component: str = "the component",
) -> Signature:
    """Read the signature of anything callable that can be a component.

    ``component`` is what errors call it: its path.

    Raises:
        LocalProtocolError: it can never be a component: a class, a generator function, a function with
            ``*args``, or one that does not take a parameter of its path.
        AnnotationUnusable: the annotation of a parameter cannot be resolved yet, or no JSON value fits it.
            The function may be read again later, when the names are defined.
    """
    try:
        return _read(fn, path_params, context_type, component)
    except LocalProtocolError as exc:
        raise type(exc)(f"component {component}: {exc}") from exc.__cause__


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling ``fn`` makes an awaitable.

    A plain function that wraps an async one (``functools.wraps``) is taken to return what that one returns.
    """
    return any(map(inspect.iscoroutinefunction, _layers(fn)))


def innermost(fn: Callable[..., Any]) -> Any:
    """The function underneath partials, methods, decorators and callable objects."""
    *_, function = _layers(fn)
    return function


def _layers(fn: Any) -> Iterator[Any]:
    while True:
        yield fn
        if isinstance(fn, functools.partial):
            fn = fn.func  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]: any callable
        elif inspect.ismethod(fn):
            fn = fn.__func__
        elif hasattr(fn, "__wrapped__"):
            fn = fn.__wrapped__
        elif not inspect.isroutine(fn) and inspect.isfunction(type(fn).__call__):
            fn = type(fn).__call__
        else:
            return


def _read(
    fn: Callable[..., Any], path_params: frozenset[str], context_type: type, component: str
) -> Signature:
    parameters, returned = _parameters(fn, path_params)
    resolve = _resolver(fn, context_type)
    annotations = {p.name: resolve(f"parameter {p.name!r}", p.annotation) for p in parameters}
    context = _context_name(parameters, annotations, path_params, context_type)
    catch_all = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), "")
    set_aside = {*path_params, context, catch_all}
    inputs = {p.name: annotations[p.name] for p in parameters if p.name not in set_aside}
    defaults = {p.name: p.default for p in parameters if p.name in inputs and p.default is not MISSING}
    only = next(iter(inputs)) if len(inputs) == 1 else None

    read_others: Callable[[Any], dict[str, Any]] | None = None
    if not inputs and not catch_all:
        takes, read_input, input_schema = "nothing", _nothing, dict[str, Any]
    elif only is not None and (only == "input" or _is_json_object(inputs[only])):
        takes, read_input = "whole", whole_reader(inputs[only], defaults.get(only, MISSING), component)
        input_schema = functools.partial(schema_for, inputs[only])
    else:
        takes, read_input = "fields", fields_reader(inputs, defaults, component)
        others = annotations[catch_all] if catch_all else MISSING
        if catch_all:
            known = frozenset((*inputs, *path_params, *((context,) if context else ())))
            read_others = others_reader(others, known, component)
        input_schema = functools.partial(object_schema, inputs, defaults=defaults, additional=others)

    captured = {name: annotations.get(name, annotations.get(catch_all)) for name in sorted(path_params)}
    read_path = fields_reader(captured, {}, component, from_path=True) if captured else _nothing

    # A call is made from one pool: the values from the input, then the context, then what the path captured.
    pool = [*inputs, *((context,) if context else ()), *captured]
    by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [name for name in pool if name not in by_position]
    return Signature(
        bind=_binder(
            read_input,
            bool(context),
            read_path,
            read_others,
            [pool.index(name) for name in by_position],
            [(name, pool.index(name)) for name in by_name],
        ),
        takes=takes,
        context=context,
        input_schema=input_schema,
        output_schema=_output_schema(resolve, returned),
    )


def _nothing(_value: Any) -> tuple[Any, ...]:
    return ()


def _binder(
    read_input: ReadInput,
    takes_context: bool,
    read_path: ReadInput,
    read_others: Callable[[Any], dict[str, Any]] | None,
    positional: Sequence[int],
    keyword: Sequence[tuple[str, int]],
) -> Bind:
    if (
        read_path is _nothing
        and read_others is None
        and not keyword
        and list(positional) == sorted(positional)
    ):
        # The usual component: the input, then perhaps the context, in the order in which they are made.
        if not takes_context:
            return lambda value, _context, _path_params: (read_input(value), {})
        return lambda value, context, _path_params: ((*read_input(value), context), {})

    def bind(value: Any, context: Any, path_params: Mapping[str, str]) -> Any:
        pool = (*read_input(value), *((context,) if takes_context else ()), *read_path(path_params))
        kwargs = {name: pool[at] for name, at in keyword}
        if read_others is not None:
            kwargs |= read_others(value)
        return tuple([pool[at] for at in positional]), kwargs

    return bind


def _parameters(fn: Any, path_params: frozenset[str]) -> tuple[list[inspect.Parameter], Any]:
    """The parameters and the return annotation of what can be a component."""
    calls: tuple[Any, ...] = (fn, getattr(fn.__class__, "__call__", None))  # noqa: B004 what it would call
    if isinstance(fn, type):
        raise LocalProtocolError("it is a class: register a function, or an instance that can be called")
    if not callable(fn):
        raise LocalProtocolError(f"a {type(fn).__qualname__} cannot be called")
    for call in calls:
        if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
            raise LocalProtocolError(
                "it is a generator function: a component returns one value, such as a list"
            )
    try:
        signature = inspect.signature(calls[0])
    except (ValueError, TypeError) as exc:
        raise LocalProtocolError(f"its signature cannot be read: {exc}") from exc
    parameters = list(signature.parameters.values())
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            problem = (
                f"*{parameter.name} cannot be filled from an object: name the parameters, or take a list"
            )
            raise LocalProtocolError(problem)
    if parameters and parameters[0].name in ("self", "cls") and parameters[0].annotation is MISSING:
        problem = f"its first parameter is {parameters[0].name!r}: register the method of an instance instead"
        raise LocalProtocolError(problem)
    missing = path_params - {p.name for p in parameters}
    if missing and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        names = ", ".join(sorted(missing))
        raise LocalProtocolError(f"its path has a parameter that the function does not take: {names}")
    return parameters, signature.return_annotation


def _context_name(
    parameters: Sequence[inspect.Parameter],
    annotations: Mapping[str, Any],
    path_params: frozenset[str],
    context_type: type,
) -> str | None:
    annotated = [name for name, annotation in annotations.items() if _is_context(annotation, context_type)]
    if len(annotated) > 1:
        raise LocalProtocolError(f"it takes the context more than once: {', '.join(annotated)}")
    if annotated:
        if annotated[0] in path_params:
            raise LocalProtocolError(f"{annotated[0]!r} is both the context and a parameter of its path")
        return annotated[0]
    for parameter in parameters:
        unclaimed = parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in path_params
        if unclaimed and parameter.annotation is MISSING and parameter.name in _CONTEXT_NAMES:
            return parameter.name
    return None


def _is_context(annotation: Any, context_type: type) -> bool:
    members = _members(annotation)
    return len(members) == 1 and members[0] is context_type


def _is_json_object(annotation: Any) -> bool:
    """Whether every value of the type, null aside, is written as an object."""
    members = _members(annotation)
    return bool(members) and all(map(_is_object_class, members))


def _members(annotation: Any) -> list[Any]:
    """What an annotation allows besides None: the members of a union, without Annotated and NewType."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for argument in typing.get_args(annotation) for member in _members(argument)]
    if hasattr(annotation, "__supertype__"):
        return _members(annotation.__supertype__)
    return [] if annotation is None or annotation is types.NoneType else [annotation]


def _is_object_class(annotation: Any) -> bool:
    kind: type[Any] | None = typing.get_origin(annotation) or annotation
    if not isinstance(kind, type):
        return False
    if issubclass(kind, msgspec.Struct):
        return not kind.__struct_config__.array_like
    return (
        issubclass(kind, Mapping)
        or typing.is_typeddict(kind)
        or dataclasses.is_dataclass(kind)
        or hasattr(kind, "__attrs_attrs__")
        or hasattr(kind, "model_validate")
    )


def _resolver(fn: Callable[..., Any], context_type: type) -> Resolve:
    """A function that turns an annotation, which may be text or contain some, into what it names.

    Names are looked up where the author sees them: in the type parameters, the class, the closure, the
    enclosing functions (while they run, as they do when a decorator is applied) and the module. The context
    class is known even where it was imported for type checkers only.
    """
    function = innermost(fn)
    module: dict[str, Any] = getattr(function, "__globals__", {})
    names: dict[str, Any] = {} if context_type.__name__ in module else {context_type.__name__: context_type}
    names |= _enclosing_names(function)
    if inspect.isfunction(function):
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # the cell of a name that is not assigned yet
                names[name] = cell.cell_contents
    for layer in _layers(fn):
        owner = layer.__self__ if inspect.ismethod(layer) else layer
        if owner is not layer or inspect.isfunction(type(layer).__call__):
            names |= vars(owner if isinstance(owner, type) else type(owner))
    names |= {p.__name__: p for p in getattr(function, "__type_params__", ())}

    def resolve(what: str, annotation: Any) -> Any:
        if annotation is MISSING:
            return annotation

        def holder() -> None: ...

        holder.__annotations__ = {"it": annotation}
        try:
            return typing.get_type_hints(holder, module, names, include_extras=True)["it"]
        except Exception as exc:
            text = annotation if isinstance(annotation, str) else type_name(annotation)
            raise AnnotationUnusable(f"{what}: annotation {text!r} cannot be resolved: {exc}") from exc

    return resolve


def _enclosing_names(function: Any) -> dict[str, Any]:
    """The local names of those functions around a nested function that are running."""
    qualname: str = getattr(function, "__qualname__", "")
    found: dict[str, Any] = {}
    while "<locals>" in qualname:
        qualname = qualname.rpartition(".<locals>")[0]
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code.co_qualname == qualname and frame.f_globals is function.__globals__:
                found = frame.f_locals | found
                break
            frame = frame.f_back
    return found


def _output_schema(resolve: Resolve, returned: Any) -> Callable[[], JsonSchema]:
    what = "the return value"
    try:
        annotation = resolve(what, returned)
    except AnnotationUnusable:
        # Nothing needs it before somebody asks, and by then it may be defined.
        return lambda: schema_for(resolve(what, returned), mode="serialization")
    return functools.partial(schema_for, annotation, mode="serialization")
