"""What a request's type says of its fields: which that were sent are misspelled, and what one may hold."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from msgspec import inspect

from stepflow_trio.flows.paths import JsonPath, render_path
from stepflow_trio.flows.suggestions import closest, did_you_mean
from stepflow_trio.runtime.rest_api.errors import shown

_type_info = cache(inspect.type_info)


def misspelled(value: Any, type: Any) -> str | None:
    """What to say of a field that ``type`` does not have and that is close to one that is absent; None: there
    is none. Other fields that nobody knows are fine.
    """
    return _misspelled(value, _type_info(type), ())


def choices(type: Any, field: str, given: Any) -> str:
    """What the words are that a field may hold, to be put behind a complaint; empty where it holds others."""
    info = _type_info(type)
    if isinstance(info, inspect.StructType):
        for known in info.fields:
            for part in _parts(known.type):
                if known.encode_name == field and isinstance(part, inspect.LiteralType):
                    hint = did_you_mean(given, part.values) if isinstance(given, str) else ""
                    words = ", ".join(map(str, part.values))
                    return f": it is one of {words}{'; ' + hint if hint else ''}"
    return ""


def _misspelled(value: Any, info: inspect.Type, at: JsonPath) -> str | None:
    if not isinstance(value, dict):
        return None
    given = cast("dict[str, Any]", value)
    for part in _parts(info):
        if isinstance(part, inspect.StructType):
            fields = {field.encode_name: field.type for field in part.fields}
            for name, member in given.items():
                if name in fields:
                    found = _misspelled(member, fields[name], (*at, name))
                else:
                    meant = closest(name, (known for known in fields if known not in given))
                    there = f" at {render_path(at)}" if at else ""
                    found = (
                        None
                        if meant is None
                        else f'there is no field {shown(name)}{there}; did you mean "{meant}"?'
                    )
                if found is not None:
                    return found
        elif isinstance(part, inspect.DictType) and not isinstance(part.value_type, inspect.AnyType):
            for name, member in given.items():
                found = _misspelled(member, part.value_type, (*at, name))
                if found is not None:
                    return found
    return None


def _parts(info: inspect.Type) -> tuple[inspect.Type, ...]:
    return info.types if isinstance(info, inspect.UnionType) else (info,)
