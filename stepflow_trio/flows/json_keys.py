"""Mappings whose keys are JSON values: how such a key is written as the string that a key of JSON must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from stepflow_trio.flows.paths import JsonPath
from stepflow_trio.flows.suggestions import closest

__all__ = ["JsonKeysAt", "key_of_value", "keys_are_inputs", "value_of_key"]

JsonKeysAt: TypeAlias = Callable[[JsonPath], bool]
"""Whether the keys of the mapping at this path are JSON values, and not only names."""


def keys_are_inputs(path: JsonPath) -> bool:
    """Whether here a configuration, or the one in a flow's tests, says by its input what a mock does.

    Misspelled it says so too: of that, and not of the keys, is to be complained.
    """
    match path[2:] if path[:2] == ("test", "config") else path:
        case ("plugins", str(), str(components), str(), str(behaviors)):
            return _is_meant(components, "components") and _is_meant(behaviors, "behaviors")
        case _:
            return False


def _is_meant(name: str, meant: str) -> bool:
    return name == meant or closest(name, (meant,)) is not None


def value_of_key(key: str) -> Any:
    """The value that a key stands for: what it says where it is a JSON text, else the key itself."""
    try:
        return json.loads(key, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return key


def key_of_value(value: Any) -> str:
    """The key that stands for ``value``: the same for equal values only.

    The order of an object's members does not count. Numbers of different types are not equal: 1 is not 1.0.
    Raises `ValueError` for a number that JSON does not have.
    """
    if isinstance(value, str) and value_of_key(value) is value:
        return value
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")
