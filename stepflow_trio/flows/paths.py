"""The JSONPath subset of flows: ``$``, ``.field``, ``[n]``, ``['field']`` and ``["field"]``.

A path is a tuple of field names and array indices; ``()`` is the whole value. Two rules come from the
protocol's public releases: a text that does not start with ``$`` is *one* field name, dots and all, and an
empty segment (``$..a``) is skipped. A backslash inside quotes escapes a quote or a backslash and is itself
otherwise.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from stepflow_trio.errors import PathInvalid
from stepflow_trio.flows.suggestions import closest
from stepflow_trio.protocol.json_types import json_type

__all__ = ["JsonPath", "NothingThere", "json_type", "parse_path", "render_path", "resolve"]

JsonPath = tuple[str | int, ...]
"""Field names and array indices from the outside in."""

_SEGMENT = re.compile(
    r"""
      \. (?P<field> [^.\[]* )
    | \[ \s* (?: (?P<index> [0-9]{1,18} )
               | ' (?P<single> (?: [^'\\] | \\. )* ) '
               | " (?P<double> (?: [^"\\] | \\. )* ) "
             ) \s* \]
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r"""\\(['"\\])""")
_NEEDS_QUOTES = re.compile(r"[.\[]|^\Z")
_MAX_SHOWN = 80


class NothingThere(msgspec.Struct, frozen=True, kw_only=True):
    """What `resolve` returns where a path leads nowhere."""

    reached: JsonPath
    """The part of the path that exists."""
    why: str
    """One sentence that names the value at ``reached`` and, where there is one, the closest field."""


def parse_path(text: str) -> JsonPath:
    """Read a path.

    Raises `PathInvalid` for what is outside the subset (wildcards, slices, filters, negative indices) and for
    broken syntax.
    """
    trimmed = text.strip()
    if not trimmed:
        return (text,) if text else ()
    if not trimmed.startswith("$"):
        return (text,)
    path: list[str | int] = []
    at = 1
    while at < len(trimmed):
        segment = _SEGMENT.match(trimmed, at)
        if segment is None:
            raise PathInvalid(_shown(text), _syntax_fault(trimmed, at))
        at = segment.end()
        if segment["field"] is not None:
            if segment["field"]:
                path.append(segment["field"])
        elif segment["index"] is not None:
            path.append(int(segment["index"]))
        else:
            quoted = segment["single"] if segment["single"] is not None else segment["double"]
            path.append(_ESCAPED.sub(r"\1", quoted))
    return tuple(path)


def render_path(path: JsonPath) -> str:
    """The one normal text of a path: ``parse_path(render_path(p)) == p`` for every path.

    A field is written ``.field`` wherever that reads back as the same field, else quoted.
    """
    parts = ["$"]
    last = len(path) - 1
    for position, part in enumerate(path):
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif _NEEDS_QUOTES.search(part) or (position == last and part[-1:].isspace()):
            escaped = part.replace("\\", "\\\\").replace("'", "\\'")
            parts.append(f"['{escaped}']")
        else:
            parts.append(f".{part}")
    return "".join(parts)


def resolve(value: Any, path: JsonPath) -> Any:
    """The value at ``path`` inside ``value`` (shared, not copied), or a `NothingThere`."""
    current = value
    for depth, part in enumerate(path):
        if isinstance(part, int):
            if not isinstance(current, list) or part >= len(current):  # pyright: ignore[reportUnknownArgumentType]: any JSON
                return _nothing(current, path, depth)
            current = current[part]  # pyright: ignore[reportUnknownVariableType]: any JSON
        else:
            if not isinstance(current, dict) or part not in current:
                return _nothing(current, path, depth)
            current = current[part]  # pyright: ignore[reportUnknownVariableType]: any JSON
    return current  # pyright: ignore[reportUnknownVariableType]: any JSON


def _nothing(value: Any, path: JsonPath, depth: int) -> NothingThere:
    reached, part = path[:depth], path[depth]
    place = _shown(render_path(reached))
    if isinstance(part, int):
        if isinstance(value, list):
            length = len(value)  # pyright: ignore[reportUnknownArgumentType]: any JSON
            why = f"the array at {place} has {length} element{'s' * (length != 1)}, so none at index {part}"
        else:
            why = f"{place} is {json_type(value)}, which has no index {part}"
    elif isinstance(value, dict):
        why = f"the object at {place} has no field {_shown(part)!r}"
        names: list[object] = list(value)  # pyright: ignore[reportUnknownArgumentType]: any JSON
        if (match := closest(part, names)) is not None:
            why += f"; did you mean {match!r}?"
        elif "." in part and part.partition(".")[0] in names:
            why += f"; did you mean the path '$.{_shown(part)}'?"
    else:
        why = f"{place} is {json_type(value)}, which has no field {_shown(part)!r}"
    return NothingThere(reached=reached, why=why)


def _syntax_fault(text: str, at: int) -> str:
    """Why no segment starts at offset ``at``."""
    rest = text[at:]
    where = f"at character {at + 1}"
    if not rest.startswith("["):
        return f"expected '.' or '[' {where}, not {rest[0]!r}"
    inside = rest[1:].lstrip()
    if inside.startswith("*"):
        return f"wildcards are not supported ({where}): name the fields one by one"
    if inside.startswith("?"):
        return f"filters are not supported ({where}): filter in a component"
    if re.match(r"-[0-9]", inside):
        return f"an index counts from the start, so it cannot be negative ({where})"
    if re.match(r"[0-9]*\s*:", inside):
        return f"slices are not supported ({where}): name the indices one by one"
    if "]" not in inside:
        return f"the bracket opened {where} is never closed"
    return f"expected an index ([0]) or a quoted field (['name']) in the brackets {where}"


def _shown(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"
