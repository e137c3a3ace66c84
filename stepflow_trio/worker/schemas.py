"""JSON Schema of Python annotations.

msgspec describes builtins, Structs, dataclasses, TypedDicts, NamedTuples, attrs classes and the standard
scalar types; pydantic describes an annotation that names a pydantic type (``Model``, ``list[Model] | None``,
``Annotated[int, Field(ge=0)]``), and is asked by msgspec for a pydantic field inside another record. Schemas
are of draft 2020-12 and self-contained: what they refer to is in their own ``$defs``.

pydantic is never imported here: an author who did not import it has no pydantic types.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Never, NoReturn, cast

import msgspec

from stepflow_trio.errors import LocalProtocolError

Mode = Literal["validation", "serialization"]
"""Whether a schema describes what is accepted (an input) or what is produced (an output). Only pydantic,
whose models may differ in the two, makes the distinction."""

JsonSchema = dict[str, Any]

MISSING: Any = inspect.Parameter.empty
"""Stands for an annotation, or a default, that is not there."""

_ANYTHING: tuple[object, ...] = (MISSING, Any, object, NoReturn, Never)
_ANYTHING_MARK = "\0anything"  # msgspec takes no empty schema from its hook; this key is removed again
_PYDANTIC_PACKAGES = frozenset(("pydantic", "pydantic_core", "annotated_types"))
_REF = "#/$defs/"


class AnnotationUnusable(LocalProtocolError):
    """An annotation cannot be resolved, or what it names has no JSON form: the message says which, where."""


def schema_for(annotation: Any, *, mode: Mode = "validation") -> JsonSchema:
    """The JSON Schema of ``annotation``; ``{}``, which allows anything, where it is missing, Any or object.

    A pydantic type that pydantic itself cannot describe, inside a record that can be, is ``{}`` in there too.

    Raises:
        AnnotationUnusable: no schema describes it.
    """
    (schema,), definitions = _schemas({"$": annotation}, mode)
    return _self_contained(schema, definitions)


def object_schema(
    fields: Mapping[str, Any], *, defaults: Mapping[str, Any], additional: Any = MISSING
) -> JsonSchema:
    """The schema of an object that is accepted, given the annotation of each of its fields.

    Args:
        fields: name to annotation.
        defaults: the default of each field that is optional. One that is not JSON goes unmentioned.
        additional: the annotation of all other fields, which are allowed in any case.

    Raises:
        AnnotationUnusable: no schema describes one of the fields; the message names it.
    """
    places = {f"$.{name}": annotation for name, annotation in fields.items()} | {"$.*": additional}
    (*described, others), definitions = _schemas(places, "validation")
    properties = dict(zip(fields, described, strict=True))
    for name in defaults:
        try:
            default = msgspec.to_builtins(defaults[name], str_keys=True)
            _refuse_what_json_lacks(default)
        except (TypeError, ValueError):
            continue
        properties[name]["default"] = default
    schema: JsonSchema = {"type": "object", "properties": properties}
    if required := [name for name in fields if name not in defaults]:
        schema["required"] = required
    if others:
        schema["additionalProperties"] = others
    return _self_contained(schema, definitions)


def allows_anything(annotation: Any) -> bool:
    """Whether the annotation is missing or says nothing about the value."""
    return any(annotation is a for a in _ANYTHING)


def pydantic_adapter(annotation: Any) -> Any:
    """The pydantic TypeAdapter of an annotation that names a pydantic type outside of any record, else None.

    None as well where pydantic cannot handle the rest of the annotation, such as ``Model | SomeStruct``.

    Raises:
        AnnotationUnusable: a pydantic type refers to a name that is not defined (yet).
    """
    pydantic: Any = sys.modules.get("pydantic")
    if pydantic is None or not _names_pydantic(annotation):
        return None
    try:
        adapter = pydantic.TypeAdapter(annotation)
        if not getattr(adapter, "pydantic_complete", True):
            adapter.rebuild(raise_errors=True)
    except pydantic.PydanticUndefinedAnnotation as exc:
        raise AnnotationUnusable(f"{type_name(annotation)}: {_first_line(exc)}") from exc
    except pydantic.PydanticUserError:
        return None
    return adapter


def walk_types(annotation: Any) -> Iterator[tuple[str, msgspec.inspect.Type]]:
    """Every type that the annotation consists of, each with its place: ``$.items[*].price``.

    A record is entered once, however often it occurs.

    Raises:
        AnnotationUnusable: msgspec cannot read the annotation, or a class in it refers to an undefined name.
    """
    info = msgspec.inspect
    try:
        root = info.type_info(annotation)
    except Exception as exc:
        raise AnnotationUnusable(f"{type_name(annotation)}: {_first_line(exc)}") from exc
    entered: set[int] = set()
    pending: list[tuple[str, msgspec.inspect.Type]] = [("$", root)]
    while pending:
        place, node = pending.pop()
        yield place, node
        match node:
            case info.StructType() | info.DataclassType() | info.TypedDictType() | info.NamedTupleType():
                if id(node) not in entered:
                    entered.add(id(node))
                    pending += ((f"{place}.{field.encode_name}", field.type) for field in node.fields)
            case info.DictType():
                pending += ((f"{place}[key]", node.key_type), (f"{place}[*]", node.value_type))
            case info.TupleType():
                pending += ((f"{place}[{at}]", item) for at, item in enumerate(node.item_types))
            case info.CollectionType():
                pending.append((f"{place}[*]", node.item_type))
            case info.UnionType():
                pending += ((place, member) for member in node.types)
            case info.Metadata():
                pending.append((place, node.type))
            case _:
                pass


def _is_pydantic_type(kind: object) -> bool:
    """Whether pydantic has to be asked about this class."""
    return (
        isinstance(kind, type)
        and hasattr(kind, "__get_pydantic_core_schema__")
        and not issubclass(kind, msgspec.Struct)
    ) or hasattr(kind, "__pydantic_validator__")


def type_name(annotation: Any) -> str:
    """An annotation as its author would write it."""
    return inspect.formatannotation(annotation).removeprefix("typing.")


def _names_pydantic(annotation: Any) -> bool:
    if _is_pydantic_type(annotation):
        return True
    metadata = getattr(annotation, "__metadata__", ())
    if any(type(m).__module__.partition(".")[0] in _PYDANTIC_PACKAGES for m in metadata):
        return True
    return typing.get_origin(annotation) is not Literal and any(
        map(_names_pydantic, typing.get_args(annotation))
    )


def _schemas(annotations: Mapping[str, Any], mode: Mode) -> tuple[list[JsonSchema], JsonSchema]:
    """A schema for each annotation, which is keyed by its place, and the definitions that they share."""
    found: dict[str, JsonSchema] = {}
    adapters: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for place, annotation in annotations.items():
        if allows_anything(annotation):
            found[place] = {}
        elif adapter := pydantic_adapter(annotation):
            adapters[place] = adapter
        else:
            others[place] = annotation
    definitions: JsonSchema = {}

    def describe_custom(kind: Any) -> JsonSchema:
        if not _has_json_form(kind):
            raise NotImplementedError  # the hook's way of saying that it does not know either
        if adapter := pydantic_adapter(kind):
            try:
                # msgspec, whose definitions come at the end, writes no colon into their names.
                return _described_by_pydantic(adapter, f"{kind.__name__}:", mode, definitions)
            except Exception:  # noqa: BLE001 a model's schema hooks are code, which may raise anything
                return {_ANYTHING_MARK: True}
        return {_ANYTHING_MARK: True}

    try:
        schemas, more = msgspec.json.schema_components(
            others.values(), schema_hook=describe_custom, ref_template=_REF + "{name}"
        )
    except AnnotationUnusable:
        raise
    except Exception as exc:
        raise _explained(others, exc) from exc
    found.update(zip(others, schemas, strict=True))
    definitions |= more
    for place, adapter in adapters.items():
        try:
            found[place] = _described_by_pydantic(adapter, "", mode, definitions)
        except Exception as exc:
            name = type_name(annotations[place])
            raise AnnotationUnusable(f"{name}: {_first_line(exc)}, at {place}") from exc
    return [found[place] for place in annotations], definitions


def _described_by_pydantic(adapter: Any, prefix: str, mode: Mode, definitions: JsonSchema) -> JsonSchema:
    """Its schema. What that refers to is added to ``definitions``, with a longer prefix where names clash."""
    schema: JsonSchema = adapter.json_schema(mode=mode, ref_template=f"{_REF}{prefix}{{model}}")
    own = {prefix + name: definition for name, definition in schema.pop("$defs", {}).items()}
    if any(definitions.get(name, definition) != definition for name, definition in own.items()):
        return _described_by_pydantic(adapter, f"{prefix or 'other'}:", mode, definitions)
    definitions |= own
    return schema


def _explained(annotations: Mapping[str, Any], exc: Exception) -> AnnotationUnusable:
    """Which annotation it was, and where in it, since msgspec says neither."""
    for place, annotation in annotations.items():
        try:
            for inner, node in walk_types(annotation):
                if isinstance(node, msgspec.inspect.CustomType) and not _has_json_form(node.cls):
                    where = place + inner.removeprefix("$")
                    return AnnotationUnusable(f"{type_name(node.cls)} has no JSON form, at {where}")
            msgspec.json.schema(annotation, schema_hook=lambda _kind: {_ANYTHING_MARK: True})
        except AnnotationUnusable as unusable:
            return AnnotationUnusable(f"{unusable}, at {place}")
        except Exception as own:  # noqa: BLE001 as above
            return AnnotationUnusable(f"{type_name(annotation)}: {_first_line(own)}, at {place}")
    return AnnotationUnusable(_first_line(exc))


def _has_json_form(kind: object) -> bool:
    """Whether a class that msgspec does not know can be read from JSON all the same."""
    return kind is object or _is_pydantic_type(kind)


def _self_contained(schema: JsonSchema, definitions: JsonSchema) -> JsonSchema:
    """The whole schema, with its definitions, checked to be JSON.

    A schema that is only a reference becomes what it refers to: not every peer resolves references.
    """
    target = schema.get("$ref")
    if len(schema) == 1 and isinstance(target, str):
        name = target.removeprefix(_REF)
        schema = dict(definitions[name])
        if not any(_refers_to(part, target) for part in (schema, *definitions.values())):
            definitions = {k: v for k, v in definitions.items() if k != name}
    if definitions:
        schema["$defs"] = definitions
    schema = _without_marks(schema)
    try:
        _refuse_what_json_lacks(schema)
    except (TypeError, ValueError) as exc:
        raise AnnotationUnusable(
            f"the schema of {schema.get('title', 'the type')} is not JSON: {exc}"
        ) from exc
    return schema


def _refers_to(part: Any, target: str) -> bool:
    if isinstance(part, dict):
        return any(
            (k == "$ref" and v == target) or _refers_to(v, target)
            for k, v in cast("JsonSchema", part).items()
        )
    if isinstance(part, list):
        return any(_refers_to(item, target) for item in cast("list[Any]", part))
    return isinstance(part, str) and part == target  # a discriminator's mapping refers by plain text


def _without_marks(part: Any) -> Any:
    if isinstance(part, dict):
        fields = cast("JsonSchema", part)
        return {k: _without_marks(v) for k, v in fields.items() if k != _ANYTHING_MARK}
    if isinstance(part, (list, tuple)):
        return [_without_marks(item) for item in cast("Sequence[Any]", part)]
    return part


def _refuse_what_json_lacks(value: Any) -> None:
    import json  # here, as a worker's start-up does not need it

    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def _first_line(exc: BaseException) -> str:
    return (str(exc) or type(exc).__name__).splitlines()[0]
