"""Progress for programs: one JSON object a line on stderr, with ``--json``."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from stepflow_trio.cli.notices import Level, complain
from stepflow_trio.cli.progress_log import BATCH_INTERVAL, MAX_FAILURES, PROGRESS_INTERVAL_S
from stepflow_trio.cli.run_state import RunState, WatchedRun, ended_worker
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


class ProgressJson:
    """Says each event with its fields; of a batch, how far it is now and then, and first failures."""

    def __init__(
        self,
        input_lines: Sequence[int] = (),
        *,
        with_default: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = RunState(input_lines, with_default=with_default, clock=clock)
        self._batch_said_at = 0.0
        self._failures_left = MAX_FAILURES

    def observe(self, event: Event) -> None:
        """Say it."""
        match event:
            case RunStarted() | ItemEnded() | RunEnded():
                self._observe_run(event)
            case StepStarted() | StepProgressed() | StepRetrying() | StepEnded():
                self._observe_step(event)
            case WorkerStarted():
                text = f"worker {event.plugin} started"
                self._say("worker_started", text, plugin=event.plugin, pid=event.pid)
            case WorkerLine():
                self._say("worker_line", event.text, plugin=event.plugin)
            case WorkerEnded() if not self._state.is_over:
                self._say("worker_ended", ended_worker(event), level="warning", plugin=event.plugin)
            case _:
                pass

    def warn(self, text: str, *, level: Level = "warning") -> None:
        """Say something that is no event."""
        complain(text, level=level)

    async def keep_showing(self) -> None:
        """Do nothing: every event is said as it happens."""

    def close(self) -> None:
        """Do nothing: nothing is held back."""

    def _observe_run(self, event: RunStarted | ItemEnded | RunEnded) -> None:
        run = self._state.take_run(event)
        if run is None:
            return
        if isinstance(event, RunStarted):
            text = f"{run.name or 'run'} started"
            self._say("run_started", text, run_id=event.run_id, total_items=run.total_items)
        elif isinstance(event, RunEnded):
            text = f"{run.name or 'run'} {event.status}"
            self._say("run_ended", text, run_id=event.run_id, status=event.status, **_counts(run))
        elif run.is_batch:
            self._observe_item(event, run)

    def _observe_item(self, event: ItemEnded, run: WatchedRun) -> None:
        if isinstance(event.result, Failed) and self._may_tell_failure():
            index, error = event.item_index, event.result.error
            line = run.input_lines[index] if run.input_lines else None
            self._say(
                "item_failed", error.message, level="warning", code=error.code, run_id=event.run_id,
                item_index=index, input_line=line,
            )  # fmt: skip
        now = self._state.now()
        if now - self._batch_said_at < max(PROGRESS_INTERVAL_S, now * BATCH_INTERVAL):
            return
        self._batch_said_at = now
        self._say("batch_progress", self._state.batch_summary(run), run_id=event.run_id, **_counts(run))

    def _observe_step(self, event: StepStarted | StepProgressed | StepRetrying | StepEnded) -> None:
        step = self._state.take_step(event)
        if step is None or step.run.is_batch:
            return
        about: dict[str, Any] = {"run_id": event.run_id, "step_id": event.step_id}
        match event:
            case StepStarted():
                text = f"step {step.label} started"
                self._say("step_started", text, **about, component=step.component, attempt=event.attempt)
            case StepRetrying():
                error = event.error
                self._say(
                    "step_retrying", error.message, level="warning", code=error.code, **about,
                    attempt=event.attempt + 1, delay_s=event.delay_s,
                )  # fmt: skip
            case StepEnded(result=Failed(error)):
                uses_default = True if step.has_default else None
                self._say(
                    "step_failed", error.message, level="warning", code=error.code, **about,
                    uses_default=uses_default,
                )  # fmt: skip
            case StepEnded():
                took = round(self._state.now() - step.started_at, 3)
                self._say("step_completed", f"step {step.label} completed", **about, took_s=took)
            case StepProgressed():
                now = self._state.now()
                if now - max(step.logged_at, step.started_at) < PROGRESS_INTERVAL_S:
                    return
                step.logged_at = now
                text = event.message or f"{event.fraction:.0%}"
                self._say("step_progress", text, **about, fraction=event.fraction)

    def _may_tell_failure(self) -> bool:
        self._failures_left -= 1
        return self._failures_left >= 0

    def _say(self, event: str, message: str, *, level: Level = "info", **fields: Any) -> None:
        complain(message, level=level, message=message, event=event, **fields)


def _counts(run: WatchedRun) -> dict[str, Any]:
    return {
        "total_items": run.total_items,
        "ended_items": run.ended_items,
        "failed_items": run.failed_items,
    }
