"""Progress as a log on stderr, one line an event: for pipes, files and terminals that cannot do more."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from stepflow_trio.cli.plain_text import count, duration, plain_lines
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


class ProgressLog:
    """Writes each event as a line. Of a batch, its items' ends; of their steps only what fails."""

    def __init__(
        self, input_lines: Sequence[int] = (), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._state = RunState(input_lines, clock=clock)
        self._is_broken = sys.stderr is None  # pyright: ignore[reportUnnecessaryComparison]: it is, when closed

    def observe(self, event: Event) -> None:
        """Show an event."""
        line = self._line(event)
        if line is not None:
            self.warn(f"[{self._state.now():8.2f} s] {line}")

    def warn(self, text: str) -> None:
        """Show something that is no event."""
        if self._is_broken:
            return
        try:
            sys.stderr.write("\n".join(plain_lines(text)) + "\n")
            sys.stderr.flush()
        except OSError:
            # Nobody reads the log any more; the run goes on, its result has its own way out.
            self._is_broken = True

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
            return f"{name} {event.status}"
        if not run.is_batch:
            return None
        error = event.result.error if isinstance(event.result, Failed) else None
        how = f"failed: {error.message} (code {error.code})" if error else "completed"
        return f"{name} {run.item_name(event.item_index)} ({run.ended_items} of {run.total_items}) {how}"

    def _step_line(self, event: StepStarted | StepProgressed | StepRetrying | StepEnded) -> str | None:
        step = self._state.take_step(event)
        if step is None:
            return None
        now = self._state.now()
        if isinstance(event, StepRetrying):
            again = f"attempt {event.attempt + 1} in {duration(event.delay_s)}"
            return f"step {step.label} failed, {again}: {event.error.message} (code {event.error.code})"
        if isinstance(event, StepEnded) and isinstance(event.result, Failed):
            error = event.result.error
            took = duration(now - step.started_at)
            return f"step {step.label} failed after {took}: {error.message} (code {error.code})"
        if step.run.is_batch:
            return None
        if isinstance(event, StepStarted):
            again = f", attempt {event.attempt}" if event.attempt > 1 else ""
            return f"step {step.label} started ({step.component}{again})"
        if isinstance(event, StepEnded):
            return f"step {step.label} completed in {duration(now - step.started_at)}"
        if now - max(step.logged_at, step.started_at) < PROGRESS_INTERVAL_S:
            return None
        step.logged_at = now
        return f"step {step.label} {event.fraction:.0%} {step.message}".rstrip()
