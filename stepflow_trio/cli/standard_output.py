"""What commands print: their products, and nothing else, go to stdout through here."""

from __future__ import annotations

import os
import sys

from stepflow_trio.errors import StepflowError


def write_stdout(data: bytes) -> None:
    """Write to stdout, and do not return before it is written.

    Raises:
        BrokenPipeError: nobody reads it any more.
        StepflowError: it cannot be written.
    """
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]: it is, when closed at the start
        raise StepflowError("stdout cannot be written: it is closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as exc:
        abandon_stdout()
        if isinstance(exc, BrokenPipeError):
            raise
        raise StepflowError(f"stdout cannot be written: {exc.strerror}") from exc


def write_line(text: str) -> None:
    """Write a line to stdout; see `write_stdout`."""
    write_stdout(text.encode("utf-8", "backslashreplace") + b"\n")


def abandon_stdout() -> None:
    """Let nothing that waits to be written be tried, and complained about, when the interpreter exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
