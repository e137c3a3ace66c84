"""Values that the user gives: inputs and variables, from options, files and stdin, as JSON or YAML."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from stepflow_trio.cli.exits import Unusable
from stepflow_trio.errors import FlowInvalid
from stepflow_trio.flows.diagnostics import Diagnostic
from stepflow_trio.flows.source import Source, read_source
from stepflow_trio.flows.source_text import SourceLimits
from stepflow_trio.protocol.json_types import json_type

Format = Literal["json", "yaml"]

STDIN = "-"

_LIMITS = SourceLimits(max_bytes=2**40)
"""No bound on size: these are the user's own files, and a worker may take what it likes."""


def read_text_value(text: str | bytes, *, name: str, format: Format, line: int = 0) -> Any:
    """The value that a JSON or YAML text says.

    Args:
        text: the text.
        name: what to call it in an error.
        format: which of the two it is.
        line: the line of a larger text that this is; 0: it is all of it.

    Raises:
        FlowInvalid: it says none, such as a NaN or a key twice; with line and column.
    """
    try:
        # The reader goes by the name's suffix.
        source: Source = read_source(text, name=f"{name}.{format}", limits=_LIMITS)
        if source.diagnostics:
            raise FlowInvalid(source.diagnostics)
    except FlowInvalid as exc:
        moved = [
            msgspec.structs.replace(
                found,
                place=msgspec.structs.replace(
                    found.place, name=name, line=line + found.place.line - 1 if line else found.place.line
                ),
            )
            for found in exc.diagnostics
        ]
        raise FlowInvalid(moved) from None
    return source.value


def read_value(path: str, *, stdin_format: Format = "json") -> Any:
    """The value in a file, by its suffix JSON or YAML; ``-`` is stdin.

    Raises:
        Unusable: the file cannot be read.
        FlowInvalid: there is no value in it.
    """
    if path == STDIN:
        return read_text_value(read_stdin(), name="<stdin>", format=stdin_format)
    is_json = path.lower().endswith(".json")
    return read_text_value(_read_file(path), name=path, format="json" if is_json else "yaml")


def read_json_lines(path: str) -> dict[int, Any]:
    """The values of a file with one JSON value a line, by line, from 1; ``-`` is stdin.

    Blank lines are passed over.

    Raises:
        Unusable: the file cannot be read.
        FlowInvalid: a line is not a JSON value.
    """
    text = read_stdin() if path == STDIN else _read_file(path)
    name = "<stdin>" if path == STDIN else path
    return {
        number: read_text_value(line, name=name, format="json", line=number)
        for number, line in enumerate(text.split(b"\n"), 1)
        if line.strip()
    }


@contextmanager
def quoting_nothing(*, if_any_of: object) -> Generator[None]:
    """Where there is something secret in what is read in the block, say of it only where it is wrong."""
    try:
        yield
    except FlowInvalid as exc:
        if if_any_of is None:
            raise
        raise FlowInvalid([_unquoted(found) for found in exc.diagnostics]) from None


def _unquoted(found: Diagnostic) -> Diagnostic:
    # What is wrong with a JSON text is said without quoting it; YAML's anchors, tags and keys are named.
    is_plain = found.message.startswith("this is not JSON: ")
    return Diagnostic(
        kind=found.kind,
        message=found.message if is_plain else "this cannot be read",
        place=msgspec.structs.replace(found.place, excerpt=""),
        suggestion="" if is_plain else "it is not quoted, for the flow's schemas call a part of it secret",
    )


def require_object(value: Any, *, what: str) -> dict[str, Any]:
    """``value``, which must be a JSON object.

    Raises:
        Unusable: it is something else.
    """
    if not isinstance(value, dict):
        raise Unusable(f"must be an object, a member for each name, not {json_type(value)}", what)
    return cast("dict[str, Any]", value)


def _read_file(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read()
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise Unusable(f"the file cannot be read: {why}", path) from exc


def read_stdin() -> bytes:
    """All of stdin.

    Raises:
        Unusable: it cannot be read.
    """
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]: it is, when closed at the start
        raise Unusable("stdin is closed", "<stdin>")
    try:
        return sys.stdin.buffer.read()
    except OSError as exc:
        raise Unusable(f"stdin cannot be read: {exc.strerror}", "<stdin>") from exc
