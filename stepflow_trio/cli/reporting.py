"""Choosing how a run's progress is shown."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

from stepflow_trio.cli.log_notices import logged_level, logged_text
from stepflow_trio.cli.notices import Level, complain, speaks_json
from stepflow_trio.cli.run_state import RunState
from stepflow_trio.runtime.events import Event, RunEnded, RunStarted, WorkerEnded, WorkerStarted


class Reporter(Protocol):
    """Shows on stderr what happens."""

    def observe(self, event: Event) -> None:
        """Show an event. Never waits, never raises."""
        ...

    def warn(self, text: str, *, level: Level = "warning") -> None:
        """Show something that is no event."""
        ...

    async def keep_showing(self) -> None:
        """Keep what is shown up to date, until cancelled or there is no need to."""
        ...

    def close(self) -> None:
        """Show what was held back, and show nothing any more."""
        ...


class ProblemsOnly:
    """Shows warnings, and workers that end while the run needs them, with the last lines of their stderr."""

    def __init__(self) -> None:
        self._state = RunState()
        self._started: set[str] = set()
        self._unstartable: set[tuple[str, str]] = set()
        """Plugins whose worker could not be started and why, which is said once."""

    def observe(self, event: Event) -> None:
        """Show it if it is a worker's end."""
        if isinstance(event, RunStarted | RunEnded):
            self._state.take_run(event)
        elif isinstance(event, WorkerStarted):
            self._started.add(event.plugin)
        elif isinstance(event, WorkerEnded) and not self._state.is_over:
            how = "ended"
            if event.plugin not in self._started:
                how = "did not start"
                if (event.plugin, event.detail) in self._unstartable:
                    return
                self._unstartable.add((event.plugin, event.detail))
            text = f"worker {event.plugin} {how}: {event.detail}"
            complain(text, level="warning", event="worker_ended", plugin=event.plugin)

    def warn(self, text: str, *, level: Level = "warning") -> None:
        """Write it to stderr."""
        complain(text, level=level)

    async def keep_showing(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@contextmanager
def open_reporter(
    *, quiet: bool, input_lines: Sequence[int] = (), with_default: Collection[str] = ()
) -> Generator[Reporter]:
    """A reporter that suits stderr; the package's own warnings go to it as long as the block lasts.

    A batch's items are called by ``input_lines``, the lines of the inputs' file that they come from. Of
    the steps ``with_default`` it is said that their default takes the place of their failure.
    """
    reporter = _reporter(input_lines, with_default, quiet=quiet)
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


def _reporter(input_lines: Sequence[int], with_default: Collection[str], *, quiet: bool) -> Reporter:
    if quiet:
        return ProblemsOnly()
    if speaks_json():
        from stepflow_trio.cli.progress_json import ProgressJson  # here: few ask for it

        return ProgressJson(input_lines, with_default=with_default)
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):  # pyright: ignore[reportUnnecessaryComparison]: stderr is None when closed at the start
        # Takes 30 ms to import, and only a terminal needs it.
        from stepflow_trio.cli.progress_display import ProgressDisplay

        return ProgressDisplay(input_lines, with_default=with_default)
    from stepflow_trio.cli.progress_log import ProgressLog

    return ProgressLog(input_lines, with_default=with_default)


class _WarningHandler(logging.Handler):
    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.warn(logged_text(record), level=logged_level(record))
