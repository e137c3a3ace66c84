"""What commands print: their products, and nothing else, go to stdout through here."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn

from stepflow_trio.errors import StepflowError


def write_stdout(data: bytes) -> None:
    """Write to stdout, and do not return before it is written.

    Raises:
        BrokenPipeError: nobody reads it any more.
        StepflowError: it cannot be written.
    """
    require_stdout()
    try:
        left = memoryview(data)
        while left:
            # Unbuffered, it writes what fits.
            left = left[sys.stdout.buffer.write(left) :]
        sys.stdout.buffer.flush()
    except OSError as exc:
        raise_stdout_error(exc)


def write_line(text: str) -> None:
    """Write a line to stdout; see `write_stdout`."""
    write_stdout(_encoded(text) + b"\n")


def write_json(value: Any) -> None:
    """Write a document in JSON to stdout, indented; see `write_stdout`."""
    write_stdout(json_document(value))


def write_json_line(value: Any) -> None:
    """Write a value in JSON to stdout as one line, for who reads line by line; see `write_stdout`."""
    write_line(json.dumps(value, ensure_ascii=False))


def json_document(value: Any) -> bytes:
    """What `write_json` writes."""
    return _encoded(json.dumps(value, indent=2, ensure_ascii=False)) + b"\n"


def require_stdout() -> None:
    """Raise `StepflowError` where stdout was closed when this process started."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]: it is, when closed at the start
        raise StepflowError("stdout cannot be written: it is closed")


def raise_stdout_error(exc: OSError) -> NoReturn:
    """Say why stdout could not be written, as `write_stdout` does, and give it up."""
    abandon_stdout()
    if isinstance(exc, BrokenPipeError):
        raise exc
    raise StepflowError(f"stdout cannot be written: {exc.strerror}") from exc


def abandon_stdout() -> None:
    """Let nothing that waits to be written be tried, and complained about, when the interpreter exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _encoded(text: str) -> bytes:
    # A lone surrogate is escaped as JSON would have it.
    return text.encode("utf-8", "backslashreplace")
