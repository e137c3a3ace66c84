"""Progress as a log on stderr, one line an event: for pipes, files and terminals that cannot do more."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from stepflow_trio.cli.notices import Level, complain
from stepflow_trio.cli.plain_text import count, duration
from stepflow_trio.cli.run_state import RunState, ended_worker
from stepflow_trio.flows.results import Failed
from stepflow_trio.runtime.events import (
    Event,
    ItemEnded,
    RunEnded,
    RunStarted,
    StepEnded,
    StepProgressed,
    StepRetrying,
    StepStarted,
    WorkerEnded,
    WorkerLine,
    WorkerStarted,
)

PROGRESS_INTERVAL_S = 1.0
"""A step's progress is written so often at most: workers report as often as they like."""

BATCH_INTERVAL = 0.1
"""How far a batch is, is written when it has run for this share longer than the last time: a log of a second
has some lines, and one of a day has not thousands."""

SMALL_BATCH = 20
"""Of a batch with so many items, each one's end is written."""

MAX_FAILURES = 20
"""Of a batch, so many lines tell of steps and items that failed. The others are counted."""


class ProgressLog:
    """Writes each event as a line. Of a larger batch, how far it is now and then, and first failures."""

    def __init__(
        self,
        input_lines: Sequence[int] = (),
        *,
        with_default: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = RunState(input_lines, with_default=with_default, clock=clock)
        self._batch_logged_at = 0.0
        self._failures_left = MAX_FAILURES

    def observe(self, event: Event) -> None:
        """Show an event."""
        line = self._line(event)
        if line is not None:
            self.warn(f"[{self._state.now():8.2f} s] {line}")

    def warn(self, text: str, *, level: Level = "warning") -> None:
        """Show something that is no event."""
        complain(text, level=level)

    async def keep_showing(self) -> None:
        """Do nothing: every event is shown as it happens."""

    def close(self) -> None:
        """Do nothing: nothing is held back."""

    def _line(self, event: Event) -> str | None:
        match event:
            case RunStarted() | ItemEnded() | RunEnded():
                return self._run_line(event)
            case StepStarted() | StepProgressed() | StepRetrying() | StepEnded():
                return self._step_line(event)
            case WorkerStarted():
                return f"worker {event.plugin} started" + (f", pid {event.pid}" if event.pid else "")
            case WorkerLine():
                return f"{event.plugin} | {event.text}"
            case WorkerEnded():
                return None if self._state.is_over else ended_worker(event)

    def _run_line(self, event: RunStarted | ItemEnded | RunEnded) -> str | None:
        run = self._state.take_run(event)
        if run is None:
            return None
        name = run.name or "run"
        if isinstance(event, RunStarted):
            if run.is_main:
                self.warn(f"run_id: {event.run_id}")
            return f"{name} started, {count(run.total_items, 'item')}"
        if isinstance(event, RunEnded):
            return f"{name} {event.status}{': ' + self._state.batch_summary(run) if run.is_batch else ''}"
        if not run.is_batch:
            return None
        error = event.result.error if isinstance(event.result, Failed) else None
        how = f"failed: {error.message} (code {error.code})" if error else "completed"
        done = f"{run.ended_items:,} of {run.total_items:,}"
        item = f"{name} {run.item_name(event.item_index)} ({done}) {how}"
        if run.total_items <= SMALL_BATCH:
            return item
        if error and self._may_tell_failure():
            return item + self._that_it_is_the_last()
        now = self._state.now()
        if now - self._batch_logged_at < max(PROGRESS_INTERVAL_S, now * BATCH_INTERVAL):
            return None
        self._batch_logged_at = now
        return f"{name} at {self._state.batch_summary(run)}"

    def _may_tell_failure(self) -> bool:
        self._failures_left -= 1
        return self._failures_left >= 0

    def _that_it_is_the_last(self) -> str:
        return "" if self._failures_left else "; further failures are only counted"

    def _step_line(self, event: StepStarted | StepProgressed | StepRetrying | StepEnded) -> str | None:
        step = self._state.take_step(event)
        if step is None:
            return None
        now = self._state.now()
        is_failure = isinstance(event, StepRetrying) or (
            isinstance(event, StepEnded) and isinstance(event.result, Failed)
        )
        if step.run.is_batch and not is_failure:
            return None
        last = ""
        if step.run.total_items > SMALL_BATCH:
            if not self._may_tell_failure():
                return None
            last = self._that_it_is_the_last()
        if isinstance(event, StepRetrying):
            again = f"attempt {event.attempt + 1} in {duration(event.delay_s)}"
            return f"step {step.label} failed, {again}: {event.error.message} (code {event.error.code}){last}"
        if isinstance(event, StepEnded) and isinstance(event.result, Failed):
            error = event.result.error
            how = f"{step.how_it_failed(now)}: {error.message} (code {error.code})"
            return f"step {step.label} {how}{step.what_follows}{last}"
        if isinstance(event, StepStarted):
            again = f", attempt {event.attempt}" if event.attempt > 1 else ""
            return f"step {step.label} started ({step.component}{again})"
        if isinstance(event, StepEnded):
            return f"step {step.label} completed in {duration(now - step.started_at)}"
        if now - max(step.logged_at, step.started_at) < PROGRESS_INTERVAL_S:
            return None
        step.logged_at = now
        return f"step {step.label} {event.fraction:.0%} {step.message}".rstrip()
