"""In words, why a value does not fit a schema: what is there and what would fit, never the value itself.

A value may be a secret, or a megabyte; a schema is neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec

from stepflow_trio.flows.paths import JsonPath, resolve
from stepflow_trio.flows.suggestions import closest, did_you_mean
from stepflow_trio.protocol.json_types import json_type

__all__ = [
    "Misfit",
    "alternatives_in_words",
    "explain",
    "type_in_words",
    "types_in_words",
    "value_in_words",
]

_MAX_OPTIONS = 8
_MAX_OPTION_CHARS = 40

_LIMITS = {
    "minimum": "is less than {}",
    "maximum": "is more than {}",
    "exclusiveMinimum": "is not more than {}",
    "exclusiveMaximum": "is not less than {}",
    "minLength": "has fewer than {} characters",
    "maxLength": "has more than {} characters",
    "minItems": "has fewer than {} items",
    "maxItems": "has more than {} items",
    "minProperties": "has fewer than {} fields",
    "maxProperties": "has more than {} fields",
}


class Misfit(msgspec.Struct, frozen=True):
    """One place at which a value does not fit."""

    path: JsonPath
    """Where in the value."""
    pointer: JsonPath
    """Where in the schema, as the validator has it."""
    why: str
    """A sentence without its subject, which is what is at ``path``."""


def explain(error: Any, value: Any, schema: Any) -> Misfit:
    """What a validation error of jsonschema-rs says about ``value`` and the document ``schema``.

    Where a value fits none of several forms, the one that it comes closest to is explained.
    """
    return _explain(error, value, schema)


def _explain(error: Any, value: Any, schema: Any) -> Misfit:
    keyword: str = error.kind.name
    known: dict[str, Any] = error.kind.as_dict()
    path: JsonPath = tuple(error.instance_path)
    pointer: JsonPath = tuple(error.schema_path)
    if keyword in ("anyOf", "oneOf") and known.get("context") is not None:
        closest_form = _closest_form(known["context"])
        if closest_form is not None:
            return _explain(closest_form, value, schema)
    there = resolve(value, path)
    return Misfit(path, pointer, _why(keyword, known, there, schema, pointer))


def _why(keyword: str, known: dict[str, Any], there: Any, schema: Any, pointer: JsonPath) -> str:
    if keyword in _LIMITS:
        return _LIMITS[keyword].format(value_in_words(known.get("limit")))
    match keyword:
        case "type":
            return _wrong_type(there, known["types"])
        case "enum":
            options: list[Any] = known["options"]
            meant = closest(there, options) if isinstance(there, str) else None
            hint = f"; did you mean {value_in_words(meant)}?" if meant is not None else ""
            return f"is not {alternatives_in_words(options)}{hint}"
        case "const":
            return f"is not {value_in_words(known['expected_value'])}"
        case "required":
            return _lacks(str(known["property"]), there, schema, pointer)
        case "additionalProperties" | "unevaluatedProperties":
            return _unexpected([str(name) for name in known["unexpected"]], there, schema, pointer)
        case "anyOf" | "oneOf":
            return _fits_no_form(known.get("context") or [], there)
        case "multipleOf":
            return f"is not a multiple of {value_in_words(known['multiple_of'])}"
        case "pattern":
            if "pattern" not in known:
                return "cannot be held against its pattern, which has too many ways to match it"
            return f"does not match the pattern {known['pattern']}"
        case "format":
            name = known["format"]
            return f"is not a {'regular expression' if name == 'regex' else name}"
        case "uniqueItems":
            return "has an item twice"
        case "contains":
            return "has no item of the kind that it must contain"
        case "propertyNames":
            return "has a field whose name does not fit"
        case "falseSchema" if pointer[-1:] == ("additionalProperties",) and isinstance(there, dict):
            return _unexpected(list(cast("dict[str, Any]", there)), there, schema, pointer)
        case "falseSchema":
            return "may not be there"
        case "not":
            return "is of a kind that is ruled out"
        case _:
            return f"does not fit {keyword}"


def _wrong_type(there: Any, types: Iterable[str]) -> str:
    expected = types_in_words(types)
    if isinstance(there, float) and "integer" in types:
        return f"is not a whole number, where {expected} fits"
    return f"is {json_type(there)}, where {expected} fits"


def _lacks(name: str, there: Any, schema: Any, pointer: JsonPath) -> str:
    fields = cast("dict[str, Any]", there) if isinstance(there, dict) else {}
    meant = closest(name, (field for field in fields if field not in _known_fields(schema, pointer)))
    hint = f"; is {value_in_words(meant)} meant for it?" if meant is not None else ""
    return f"lacks the field {value_in_words(name)}{hint}"


def _unexpected(names: Sequence[str], there: Any, schema: Any, pointer: JsonPath) -> str:
    name = names[0]
    fields = cast("dict[str, Any]", there) if isinstance(there, dict) else {}
    known = [field for field in _known_fields(schema, pointer) if field not in fields]
    hint = did_you_mean(name, known)
    more = f" and {len(names) - 1} more that are not known" if len(names) > 1 else ", which is not known"
    return f"has the field {value_in_words(name)}{more}{f'; {hint}' if hint else ''}"


def _known_fields(schema: Any, pointer: JsonPath) -> list[str]:
    """The properties beside the keyword at ``pointer``."""
    properties: object = resolve(schema, (*pointer[:-1], "properties"))
    return list(cast("dict[str, Any]", properties)) if isinstance(properties, dict) else []


def _fits_no_form(forms: Sequence[Sequence[Any]], there: Any) -> str:
    """Why a value fits none of the forms, where each of them rejects the value itself, or several take it."""
    types: list[str] = []
    options: list[Any] = []
    for errors in forms:
        if not errors:
            return "fits more than one of the forms of which exactly one must fit"
        kind = errors[0].kind.as_dict()
        if errors[0].kind.name == "type":
            types += [name for name in kind["types"] if name not in types]
        elif errors[0].kind.name == "const":
            options.append(kind["expected_value"])
        elif errors[0].kind.name == "enum":
            options += kind["options"]
        else:
            return "fits none of the forms that it may have"
    if types and not options:
        return _wrong_type(there, types)
    words = [type_in_words(name) for name in types] + [value_in_words(option) for option in options]
    return f"is none of {_alternatives(words)}"


def _closest_form(forms: Sequence[Sequence[Any]]) -> Any:
    """The error of the form that rejects only a part of the value, the deepest; None where all reject it."""
    best, best_depth = None, 0
    for errors in forms:
        for error in errors[:1]:
            depth = len(error.instance_path)
            if error.kind.name in ("required", "additionalProperties"):
                depth += 1
            if depth > best_depth:
                best, best_depth = error, depth
    return best


def type_in_words(name: str) -> str:
    """A type of JSON Schema with its article: ``an integer``, ``null``."""
    return name if name == "null" else f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"


def types_in_words(names: Iterable[str]) -> str:
    """``an integer, a string or null``."""
    return _alternatives(type_in_words(name) for name in sorted(names, key=lambda t: (t == "null", t)))


def value_in_words(value: Any) -> str:
    """A schema's own value, as JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_OPTION_CHARS else f"{text[: _MAX_OPTION_CHARS - 1]}…"


def alternatives_in_words(options: Sequence[Any]) -> str:
    """``1``, ``"a" or "b"``; of many only the first."""
    shown = [value_in_words(option) for option in options[:_MAX_OPTIONS]]
    if len(options) > _MAX_OPTIONS:
        return f"one of {', '.join(shown)}, …"
    return _alternatives(shown)


def _alternatives(words: Iterable[str]) -> str:
    each = list(dict.fromkeys(words))
    return f"{', '.join(each[:-1])} or {each[-1]}" if len(each) > 1 else "".join(each)
