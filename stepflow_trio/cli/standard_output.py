"""What commands print: their products, and nothing else, go to stdout through here."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from stepflow_trio.errors import StepflowError


def write_stdout(data: bytes) -> None:
    """Write to stdout, and do not return before it is written.

    Raises:
        BrokenPipeError: nobody reads it any more.
        StepflowError: it cannot be written.
    """
    require_stdout()
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as exc:
        raise_stdout_error(exc)


def write_line(text: str) -> None:
    """Write a line to stdout; see `write_stdout`."""
    write_stdout(text.encode("utf-8", "backslashreplace") + b"\n")


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
