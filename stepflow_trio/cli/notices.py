"""What commands say on stderr: lines for people, or with ``--json`` one JSON object a line.

Every word that goes there goes through here, but for what click says of wrong usage and what workers write.

====================== ==============================================================================
``level``              ``info``, ``warning`` or ``error``; always there
``message``            what is said, without its place; always there
``place``              ``{"file", "line"?, "column"?}``
``hint``               what to do or to write instead
``kind``, ``code``     of a diagnostic, its name and number; of an error of a run, its code
``path``               of a diagnostic, the JSON path
``event``              of progress, what happened; its fields are beside it
====================== ==============================================================================
"""

from __future__ import annotations

import json
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from stepflow_trio.cli.plain_text import count, plain_lines
from stepflow_trio.cli.standard_error import write_error

if TYPE_CHECKING:
    from stepflow_trio.errors import ConfigError, FlowInvalid
    from stepflow_trio.flows.diagnostics import Diagnostic, Place

Level = Literal["info", "warning", "error"]

_is_json = ContextVar("is_json", default=False)

_PLACED = re.compile(r"(?P<file>[^\n:]+)(?::(?P<line>\d+)(?::(?P<column>\d+))?)?")
_ERROR = "error: "


def speak_json(is_json: bool) -> None:
    """From now on, for the command at hand, say everything as JSON; or, to begin with, as text."""
    _is_json.set(is_json)


def speaks_json() -> bool:
    """Whether the command at hand was given ``--json``."""
    return _is_json.get()


def complain(text: str, *, level: Level = "error", message: str | None = None, **fields: Any) -> None:
    """Say something on stderr; what a terminal would act on is made visible. Never waits, never raises.

    Args:
        text: what people read, as it is: with its place, if it has one, and its level.
        level: how grave it is.
        message: what programs read, where that is not ``text`` without its ``error: ``.
        fields: what programs read besides; those that are None are left out.
    """
    if not _is_json.get():
        write_error("\n".join(plain_lines(text)), _told_gap)
        return
    said: dict[str, Any] = {"level": level}
    said["message"] = message if message is not None else text.removeprefix(_ERROR).removeprefix("warning: ")
    said |= {name: value for name, value in fields.items() if value is not None}
    write_error(json.dumps(said, ensure_ascii=False, default=str), _told_gap_json)


def show_diagnostic(found: Diagnostic) -> None:
    """Say what is wrong with a flow, an input or a configuration, with the line that it is in."""
    level: Level = "warning" if found.level == "warning" else "error"
    shown = found.to_json()
    complain(
        str(found),
        level=level,
        message=found.message,
        hint=found.suggestion or None,
        kind=shown["kind"],
        code=shown["code"],
        path=shown.get("path"),
        place=place_json(found.place),
    )


def show_invalid(exc: FlowInvalid | ConfigError) -> None:
    """Say all that an exception lists, one by one; else what it says."""
    if exc.diagnostics:
        for found in exc.diagnostics:
            show_diagnostic(found)
        return
    place = getattr(exc, "place", "")
    message = getattr(exc, "message", str(exc))
    complain(str(exc), message=message, place=written_place(place))


def place_json(place: Place) -> dict[str, Any]:
    """A place as notices have it."""
    shown: dict[str, Any] = {"file": place.name}
    if place.line:
        shown |= {"line": place.line, "column": place.column}
    return shown


def written_place(place: str) -> dict[str, Any] | None:
    """The place that ``file``, ``file:line`` or ``file:line:column`` names; None for the empty text."""
    found = _PLACED.fullmatch(place)
    if found is None:
        return {"file": place} if place else None
    numbers = {name: int(found[name]) for name in ("line", "column") if found[name]}
    return {"file": found["file"], **numbers}


def _told_gap(lines: int) -> str:
    return f"… {count(lines, 'line')} {'was' if lines == 1 else 'were'} not written: nobody reads stderr"


def _told_gap_json(lines: int) -> str:
    said = {"level": "warning", "message": _told_gap(lines), "event": "lines_dropped", "lines": lines}
    return json.dumps(said, ensure_ascii=False)
