"""What a component is given: JSON values, converted to the types that its parameters declare.

A reader is made once for each component, so that a call costs little more than ``msgspec.convert`` itself.
Types are enforced as msgspec does in strict mode, and pydantic types as pydantic does by default.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from stepflow_trio.errors import ErrorCode, RpcError
from stepflow_trio.worker.outputs import json_path
from stepflow_trio.worker.schemas import (
    MISSING,
    AnnotationUnusable,
    allows_anything,
    pydantic_adapter,
    type_name,
    walk_types,
)

ReadInput = Callable[[Any], tuple[Any, ...]]
"""Converts a JSON value to the values of the parameters that it fills. Raises InputInvalid."""

_COMPARED_FIELDS, _COMPARED_CHARS = 500, 100  # a suggestion is a courtesy, never the slow part of an error

_PLACE = re.compile(r"(?P<problem>.*) - at (?:`key` in )?`(?P<path>\$.*)`", re.DOTALL)
_MISMATCH = re.compile(r"Expected `(?P<expected>[^`]*)`(?P<constraint>[^,`]*), got `(?P<got>[^`]*)`")
_MISSING_FIELD = re.compile(r"Object missing required field `(?P<name>.*)`", re.DOTALL)


class InputInvalid(RpcError):
    """An input, or a path parameter, does not fit what the component declares (−32003).

    ``json_path`` says where in the input (``$`` is all of it; ``{name}`` is that path parameter). ``data`` is
    ``{"path": …, "component": …}``, with ``expected`` and ``got``, or ``field``, where they are known.
    """

    def __init__(self, component: str, problem: str, path: str = "$", *, more: int = 0, **known: str) -> None:
        others = f", and {more} more problem{'s' * (more > 1)}" if more else ""
        super().__init__(
            ErrorCode.INVALID_INPUT_SCHEMA,
            f"input does not fit {component}: {problem} at {path}{others}",
            {"path": path, "component": component, **known},
        )
        self.json_path = path


def whole_reader(annotation: Any, default: Any, component: str) -> ReadInput:
    """For the one parameter that takes the whole input; a default, unless MISSING, stands for null.

    Raises:
        AnnotationUnusable: no JSON value fits the annotation, or it refers to an undefined name.
    """
    read = _value_reader(annotation, component)
    if default is MISSING:
        return lambda value: (read(value, "$"),)
    return lambda value: (default if value is None else read(value, "$"),)


def fields_reader(
    fields: Mapping[str, Any], defaults: Mapping[str, Any], component: str, *, from_path: bool = False
) -> ReadInput:
    """For parameters that are the fields of an object; their values come in the order of ``fields``.

    With ``from_path`` the object is what a component's path captured: text, which is converted leniently.

    Raises:
        AnnotationUnusable: as ``whole_reader`` does.
    """
    members: list[tuple[str, Any, Any]] = []
    of_msgspec: dict[str, Any] = {}
    of_pydantic: list[tuple[int, str, Any, Callable[[Any, str], Any]]] = []
    for at, (name, annotation) in enumerate(fields.items()):
        place = f"{{{name}}}" if from_path else f"$.{name}"
        default = defaults.get(name, MISSING)
        declared = annotation
        if allows_anything(annotation):
            declared = Any
        elif pydantic_adapter(annotation):
            declared = Any
            of_pydantic.append((at, place, default, _value_reader(annotation, component)))
        else:
            of_msgspec[place] = annotation
        # Members have names of their own, since not every parameter's name can be that of a member.
        members.append((f"p{at}", declared, _struct_field(name, default)))
    options = _convert_options(of_msgspec)
    if from_path:
        options["strict"] = False
    record = msgspec.defstruct("Input", members, kw_only=True)
    convert, values_of = msgspec.convert, msgspec.structs.astuple
    null_is_empty = not from_path and defaults.keys() == fields.keys()

    def read(value: Any) -> tuple[Any, ...]:
        if value is None and null_is_empty:
            value = {}
        try:
            values = values_of(convert(value, record, **options) if options else convert(value, record))
        except msgspec.ValidationError as exc:
            raise _misfit(component, exc, "$", value, from_path=from_path) from exc
        if not of_pydantic:
            return values
        converted = list(values)
        for at, place, default, read_value in of_pydantic:
            if converted[at] is not default:
                converted[at] = read_value(converted[at], place)
        return tuple(converted)

    return read


def others_reader(annotation: Any, known: frozenset[str], component: str) -> Callable[[Any], dict[str, Any]]:
    """For ``**kwargs``: collects the fields of an object, or of null, that are not ``known``.

    Raises:
        AnnotationUnusable: as ``whole_reader`` does.
    """
    read_value = _value_reader(annotation, component)

    def read(value: Any) -> dict[str, Any]:
        fields = cast("dict[str, Any]", value or {})
        return {
            name: read_value(item, json_path((name,))) for name, item in fields.items() if name not in known
        }

    return read


def _struct_field(name: str, default: Any) -> Any:
    if default is MISSING:
        return msgspec.field(name=name)
    # Through a factory, the function's own default arrives as it is: msgspec would copy some, refuse others.
    return msgspec.field(name=name, default_factory=lambda: default)


def _value_reader(annotation: Any, component: str) -> Callable[[Any, str], Any]:
    """A function of a value and of the path that its errors start with."""
    if allows_anything(annotation):
        return lambda value, _root: value
    if adapter := pydantic_adapter(annotation):
        convert: Callable[[Any], Any] = adapter.validate_python
        misfit: type[Exception] = sys.modules["pydantic"].ValidationError
    else:
        misfit = msgspec.ValidationError
        options = _convert_options({"$": annotation})
        msgspec_convert = msgspec.convert

        def convert_plain(value: Any) -> Any:
            return msgspec_convert(value, annotation)  # by position: twice as fast as by name

        def convert_specially(value: Any) -> Any:
            return msgspec_convert(value, annotation, **options)

        convert = convert_specially if options else convert_plain

    def read(value: Any, root: str) -> Any:
        try:
            return convert(value)
        except misfit as exc:
            raise _misfit(component, exc, root, value) from exc

    return read


def _convert_options(annotations: Mapping[str, Any]) -> dict[str, Any]:
    """What ``msgspec.convert`` has to be told beyond the type. Most types need nothing, which is faster.

    ``annotations`` are keyed by their place. Raises AnnotationUnusable where no JSON value fits one of them.
    """
    info = msgspec.inspect
    options: dict[str, Any] = {}
    validators: dict[Any, Callable[[Any], Any]] = {}
    for root, annotation in annotations.items():
        for place, node in walk_types(annotation):
            if isinstance(node, info.CustomType):
                adapter = pydantic_adapter(node.cls)
                if adapter is None and not allows_anything(node.cls):
                    where = root + place.removeprefix("$")
                    raise AnnotationUnusable(f"{type_name(node.cls)} has no JSON form, at {where}")
                validators[node.cls] = adapter.validate_python if adapter else lambda value: value
            elif isinstance(node, info.DictType) and not isinstance(
                node.key_type, (info.StrType, info.AnyType)
            ):
                options["str_keys"] = True
    if validators:

        def convert_custom(kind: Any, value: Any) -> Any:
            return validators[kind](value)

        options["dec_hook"] = convert_custom
    return options


def _misfit(
    component: str, exc: Exception, root: str, value: Any, *, from_path: bool = False
) -> InputInvalid:
    text, path = str(exc), root
    if found := _PLACE.fullmatch(text):
        text, path = found["problem"], root + found["path"].removeprefix("$")
    if from_path:
        path = f"{{{path.removeprefix('$.')}}}"
    for error in (exc, exc.__cause__):
        if type(error).__module__.startswith("pydantic") and hasattr(error, "errors"):
            return _pydantic_misfit(component, error, path)
    if found := _MISMATCH.fullmatch(text):
        expected, got = found["expected"] + found["constraint"], found["got"]
        return InputInvalid(component, f"expected {expected}, got {got}", path, expected=expected, got=got)
    if found := _MISSING_FIELD.fullmatch(text):
        problem = f"missing required field {found['name']!r}"
        if path == "$" and (close := _closest(found["name"], value)):
            problem += f" ({close!r} was given)"
        return InputInvalid(component, problem, path, field=found["name"])
    return InputInvalid(component, text[:1].lower() + text[1:].replace("`", ""), path)


def _pydantic_misfit(component: str, exc: Any, root: str) -> InputInvalid:
    first, *others = exc.errors(include_url=False, include_context=False, include_input=False)
    path = root + json_path(first["loc"]).removeprefix("$")
    problem: str = first["msg"]
    return InputInvalid(component, problem[:1].lower() + problem[1:], path, more=len(others))


def _closest(name: str, value: Any) -> str | None:
    import difflib  # here, as a worker's start-up does not need it

    fields = cast("dict[str, Any]", value if isinstance(value, dict) else {})
    if len(fields) > _COMPARED_FIELDS:
        return None
    names = [k for k in fields if len(k) <= _COMPARED_CHARS]
    return next(iter(difflib.get_close_matches(name, names, 1, 0.7)), None)
