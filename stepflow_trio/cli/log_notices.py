"""Log records as notices: what the package logs is said as everything else on stderr is."""

from __future__ import annotations

import logging
import traceback

from stepflow_trio.cli.exits import shows_tracebacks
from stepflow_trio.cli.notices import Level, complain


class NoticeHandler(logging.Handler):
    """Says every record; of an exception the traceback ``with_tracebacks``, or where that is asked for."""

    def __init__(self, *, with_tracebacks: bool = False) -> None:
        super().__init__()
        self._with_tracebacks = with_tracebacks

    def emit(self, record: logging.LogRecord) -> None:
        """Say a record."""
        text = logged_text(record, with_traceback=self._with_tracebacks)
        complain(text, level=logged_level(record), logger=record.name)


def logged_text(record: logging.LogRecord, *, with_traceback: bool = False) -> str:
    """What a record says, its level first."""
    text = f"{record.levelname.lower()}: {record.getMessage()}"
    if record.exc_info and record.exc_info[1] is not None:
        exc = record.exc_info[1]
        summary = [f"{type(exc).__name__}: {exc}"]
        in_full = with_traceback or shows_tracebacks()
        details = traceback.format_exception(*record.exc_info) if in_full else summary
        text = f"{text}\n{''.join(details).rstrip()}"
    elif record.exc_text:  # what is left of an exception that quoted a secret
        in_full = with_traceback or shows_tracebacks()
        text = f"{text}\n{record.exc_text if in_full else record.exc_text.rpartition(chr(10))[2]}"
    return text


def logged_level(record: logging.LogRecord) -> Level:
    """A record's level as notices have it."""
    if record.levelno >= logging.ERROR:
        return "error"
    return "warning" if record.levelno >= logging.WARNING else "info"
