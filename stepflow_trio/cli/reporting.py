"""Choosing how a run's progress is shown."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from stepflow_trio.cli.exits import complain, shows_tracebacks
from stepflow_trio.runtime.events import Event


class Reporter(Protocol):
    """Shows on stderr what happens."""

    def observe(self, event: Event) -> None:
        """Show an event. Never waits, never raises."""
        ...

    def warn(self, text: str) -> None:
        """Show something that is no event."""
        ...

    async def keep_showing(self) -> None:
        """Keep what is shown up to date, until cancelled or there is no need to."""
        ...

    def close(self) -> None:
        """Show what was held back, and show nothing any more."""
        ...


class Silence:
    """Shows warnings and nothing else."""

    def observe(self, event: Event) -> None:
        """Show nothing."""

    def warn(self, text: str) -> None:
        """Write it to stderr."""
        complain(text)

    async def keep_showing(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@contextmanager
def open_reporter(*, quiet: bool) -> Generator[Reporter]:
    """A reporter that suits stderr; the package's own warnings go to it as long as the block lasts."""
    reporter = _reporter(quiet=quiet)
    handler = _WarningHandler(reporter)
    log = logging.getLogger("stepflow_trio")
    log.addHandler(handler)
    log.propagate = False
    try:
        yield reporter
    finally:
        log.removeHandler(handler)
        log.propagate = True
        reporter.close()


def _reporter(*, quiet: bool) -> Reporter:
    if quiet:
        return Silence()
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):  # pyright: ignore[reportUnnecessaryComparison]: stderr is None when closed at the start
        # Takes 30 ms to import, and only a terminal needs it.
        from stepflow_trio.cli.progress_display import ProgressDisplay

        return ProgressDisplay()
    from stepflow_trio.cli.progress_log import ProgressLog

    return ProgressLog()


class _WarningHandler(logging.Handler):
    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            exc = record.exc_info[1]
            summary = [f"{type(exc).__name__}: {exc}"]
            details = traceback.format_exception(exc) if shows_tracebacks() else summary
            text = f"{text}\n{''.join(details).rstrip()}"
        self._reporter.warn(text)
