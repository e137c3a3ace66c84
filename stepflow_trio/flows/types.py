"""Types of expressions: JSON Schemas gathered in one pool, put together, taken apart and shown."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec

from stepflow_trio.flows.alternatives import (
    Alternative,
    alternatives,
    element,
    length_limits,
    member,
    named_members,
    required_members,
)
from stepflow_trio.flows.paths import JsonPath, NothingThere, resolve
from stepflow_trio.flows.schema_documents import DEFINITIONS, SchemaPool
from stepflow_trio.flows.schema_problems import types_in_words, value_in_words
from stepflow_trio.flows.suggestions import closest

__all__ = [
    "ANYTHING",
    "Made",
    "Part",
    "Presence",
    "can_be_null",
    "constant",
    "part_of",
    "read_at",
    "shown",
    "tuple_of",
    "union",
    "widened",
    "with_members",
    "without_null",
]

ANYTHING: Any = True
"""The type of which nothing is known."""

_NULL: dict[str, Any] = {"type": "null"}
_NOT_NULL: dict[str, Any] = {"type": ["boolean", "number", "string", "array", "object"]}

_MAX_SHOWN_MEMBERS = 12


class Made(dict[str, Any]):
    """A type that was made of an expression, not declared by anybody."""


class Presence(enum.IntEnum):
    """Whether values of a type have a part."""

    THERE = 0
    MAYBE = 1
    """Some have it."""
    UNDESCRIBED = 2
    """The type does not say."""
    ABSENT = 3


class Part(msgspec.Struct, frozen=True):
    """What a path leads to in values of a type."""

    type: Any
    presence: Presence = Presence.THERE
    reached: JsonPath = ()
    """Where it is absent or not described, the path up to there."""
    why: str = ""
    """Where it is absent: a sentence without its subject, which is what was reached."""


# ---- making types -----------------------------------------------------------------------------------


def constant(value: Any) -> Any:
    """The type of one value."""
    return Made(const=value)


def with_members(members: dict[str, Any]) -> Any:
    """The type of objects with exactly these members."""
    return Made(type="object", properties=members, required=list(members), additionalProperties=False)


def tuple_of(elements: Sequence[Any]) -> Any:
    """The type of arrays with exactly these elements."""
    length = len(elements)
    return Made(type="array", prefixItems=list(elements), minItems=length, maxItems=length)


def union(types: Iterable[Any]) -> Any:
    """The type of values that have one of ``types``."""
    forms: dict[str, Any] = {}
    for type_ in types:
        if type_ is True or type_ == {}:
            return ANYTHING
        for form in _forms(type_):
            forms.setdefault(json.dumps(form, sort_keys=True), form)
    found = list(forms.values())
    names = [_bare_type(form) for form in found]
    if len(names) > 1 and all(names):
        plain = [name for name in names if name != "integer" or "number" not in names]
        return {"type": plain if len(plain) > 1 else plain[0]}
    return {"anyOf": found} if len(found) > 1 else found[0] if found else False


def _forms(type_: Any) -> list[Any]:
    """The forms of a union, which any other type is the only one of; none of a type without values."""
    if type_ is False:
        return []
    if isinstance(type_, dict):
        schema = cast("dict[str, Any]", type_)
        if set(schema) == {"anyOf"}:
            return schema["anyOf"]
    return [type_]


def _bare_type(type_: Any) -> str | None:
    """The name of a type of which nothing else is said."""
    if isinstance(type_, dict):
        schema = cast("dict[str, Any]", type_)
        name: object = schema.get("type")
        if isinstance(name, str) and len(schema) == 1:
            return name
    return None


# ---- taking types apart -----------------------------------------------------------------------------


def can_be_null(type_: Any, pool: SchemaPool) -> bool:
    """Whether null is, or may be, a value of a type."""
    found = alternatives(type_, pool)
    return found is None or any(each.type == "null" for each in found)


def without_null(type_: Any, pool: SchemaPool) -> Any:
    """The type of its values that are not null."""
    if not can_be_null(type_, pool):
        return type_
    if not isinstance(type_, dict):
        return type_
    schema = cast("dict[str, Any]", type_)
    names: object = schema.get("type")
    if isinstance(names, list):
        rest = [name for name in cast("list[Any]", names) if name != "null"]
        return {**schema, "type": rest[0] if len(rest) == 1 else rest} if rest else False
    forms: object = schema.get("anyOf")
    if isinstance(forms, list):
        left = [without_null(form, pool) for form in cast("list[Any]", forms)]
        left = [form for form in left if form is not False]
        others = {key: value for key, value in schema.items() if key != "anyOf"}
        return {**others, "anyOf": left} if others or len(left) > 1 else union(left)
    if schema == _NULL or schema == {"const": None}:
        return False
    return {"allOf": [schema, _NOT_NULL]}


def read_at(type_: Any, path: JsonPath, pool: SchemaPool) -> Part:
    """What ``path`` leads to in values of a type."""
    presence = Presence.THERE
    undescribed_at: JsonPath | None = None
    for depth, key in enumerate(path):
        part = part_of(type_, key, pool)
        if part.presence is Presence.ABSENT:
            return Part(False, Presence.ABSENT, path[:depth], part.why)
        if part.presence is Presence.UNDESCRIBED and undescribed_at is None:
            undescribed_at = path[:depth]
        presence = max(presence, part.presence)
        type_ = part.type
    return Part(type_, presence, undescribed_at or ())


def part_of(type_: Any, key: str | int, pool: SchemaPool) -> Part:
    """A member or element of values of a type; `Part.reached` is empty."""
    found = alternatives(type_, pool)
    if found is None:
        return Part(ANYTHING, Presence.UNDESCRIBED)
    parts = [_part_of_alternative(each, key) for each in found]
    there = [part for part in parts if part.presence is not Presence.ABSENT]
    if not there:
        return Part(False, Presence.ABSENT, (), _why_absent(found, key))
    described = [part for part in there if part.presence is not Presence.UNDESCRIBED]
    if not described:
        return Part(ANYTHING, Presence.UNDESCRIBED)
    presence = max(part.presence for part in there)
    if len(there) < len(parts):
        presence = max(presence, Presence.MAYBE)
    return Part(union(part.type for part in there), presence)


def _part_of_alternative(alternative: Alternative, key: str | int) -> Part:
    absent = Part(False, Presence.ABSENT)
    if alternative.values is not None and alternative.type in ("object", "array"):
        read = [resolve(value, (key,)) for value in alternative.values]
        values = [constant(value) for value in read if not isinstance(value, NothingThere)]
        return (
            Part(union(values), Presence.THERE if len(values) == len(read) else Presence.MAYBE)
            if values
            else absent
        )
    facts = alternative.facts
    if alternative.type != ("array" if isinstance(key, int) else "object"):
        return absent
    if not alternative.is_described:
        return Part(ANYTHING, Presence.UNDESCRIBED)
    if isinstance(key, int):
        least, most = length_limits(facts, "Items")
        schema = element(facts, key)
        if key >= most or schema is False:
            return absent
        if schema is True:
            return Part(ANYTHING, Presence.UNDESCRIBED)
        return Part(schema, Presence.THERE if key < least else Presence.MAYBE)
    schema, is_mentioned = member(facts, key)
    is_certain = key in required_members(facts)
    if schema is False or not (is_mentioned or is_certain or not named_members(facts)):
        return absent
    if not is_mentioned and not is_certain:
        return Part(ANYTHING, Presence.UNDESCRIBED)
    return Part(schema, Presence.THERE if is_certain else Presence.MAYBE)


def _why_absent(found: Sequence[Alternative], key: str | int) -> str:
    if isinstance(key, int):
        if any(each.type == "array" for each in found):
            return f"has no element {key}"
        return f"is {types_in_words({each.type for each in found})}, which has no elements"
    objects = [each for each in found if each.type == "object"]
    if not objects:
        return f"is {types_in_words({each.type for each in found})}, which has no fields"
    names = [name for each in objects for name in named_members(each.facts)]
    for each in objects:
        names += [name for value in each.values or () for name in value]
    meant = closest(key, dict.fromkeys(names))
    hint = f'; did you mean "{meant}"?' if meant is not None else ""
    return f"has no field {value_in_words(key)}{hint}"


# ---- showing types ----------------------------------------------------------------------------------


def widened(type_: Any) -> Any:
    """A type as one would declare it: of values that are known only their types are left."""
    if not isinstance(type_, dict):
        return type_
    schema = cast("dict[str, Any]", type_)
    if set(schema) == {"anyOf"}:
        return union(widened(form) for form in schema["anyOf"])
    if not isinstance(schema, Made):
        return schema
    if "const" in schema:
        return _type_of_value(schema["const"])
    if "prefixItems" in schema:
        return _array_of(widened(each) for each in schema["prefixItems"])
    return _object_of({name: widened(each) for name, each in schema["properties"].items()})


def _type_of_value(value: Any) -> Any:
    match value:
        case None:
            return _NULL
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case float():
            return {"type": "number"}
        case str():
            return {"type": "string"}
        case list():
            return _array_of(map(_type_of_value, cast("list[Any]", value)))
        case _:
            return _object_of({name: _type_of_value(v) for name, v in cast("dict[str, Any]", value).items()})


def _array_of(elements: Iterable[Any]) -> Any:
    items = union(elements)
    return {"type": "array"} if isinstance(items, bool) else {"type": "array", "items": items}


def _object_of(members: dict[str, Any]) -> Any:
    anything: Any = {}
    properties = {name: anything if each is ANYTHING else each for name, each in members.items()}
    return {"type": "object", "properties": properties, "required": list(members)}


def shown(type_: Any, pool: SchemaPool | None = None) -> str:
    """A type in one line: ``{name: string, tags?: string[]} | null``.

    Definitions stand in it by their names, save one of ``pool`` that is the whole type.
    """
    if type_ is True or type_ == {}:
        return "any"
    if type_ is False or not isinstance(type_, dict):
        return "never"
    schema = cast("dict[str, Any]", type_)
    ref: object = schema.get("$ref")
    if isinstance(ref, str):
        target = pool.target(ref) if pool is not None else None
        return shown(target) if target is not None else ref.removeprefix(DEFINITIONS)
    if "const" in schema:
        return value_in_words(schema["const"])
    if isinstance(schema.get("enum"), list):
        return _joined(value_in_words(value) for value in schema["enum"])
    for keyword, between in (("anyOf", " | "), ("oneOf", " | "), ("allOf", " & ")):
        forms: object = schema.get(keyword)
        if isinstance(forms, list):
            return between.join(dict.fromkeys(shown(form) for form in cast("list[Any]", forms))) or "any"
    names: object = schema.get("type")
    if isinstance(names, list):
        return _joined(shown({**schema, "type": name}) for name in cast("list[Any]", names))
    if names == "array":
        return _shown_array(schema)
    if names == "object" or (names is None and "properties" in schema):
        return _shown_object(schema)
    return str(names) if names is not None else "any"


def _joined(forms: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(forms))


def _shown_array(schema: dict[str, Any]) -> str:
    prefix: object = schema.get("prefixItems")
    if isinstance(prefix, list):
        return f"[{', '.join(shown(each) for each in cast('list[Any]', prefix))}]"
    items = shown(schema.get("items", True))
    return f"({items})[]" if " " in items and not items.endswith("}") else f"{items}[]"


def _shown_object(schema: dict[str, Any]) -> str:
    members: dict[str, Any] = schema.get("properties") or {}
    required: list[Any] = schema.get("required") or []
    parts = [
        f"{name}{'' if name in required else '?'}: {shown(each)}"
        for name, each in list(members.items())[:_MAX_SHOWN_MEMBERS]
    ]
    if len(members) > _MAX_SHOWN_MEMBERS:
        parts.append("…")
    if not parts:
        rest = schema.get("additionalProperties", True)
        return "object" if rest is True else "{}" if rest is False else f"{{[name]: {shown(rest)}}}"
    return f"{{{', '.join(parts)}}}"
