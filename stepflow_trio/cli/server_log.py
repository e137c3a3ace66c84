"""What ``serve`` says on stderr of what its runtime does."""

from __future__ import annotations

import logging
from typing import Any

from stepflow_trio.cli.notices import complain
from stepflow_trio.cli.plain_text import count, plain_line
from stepflow_trio.flows.results import Failed
from stepflow_trio.runtime.events import (
    STOPPED,
    Event,
    RunEnded,
    RunStarted,
    StepEnded,
    StepRetrying,
    StepStarted,
    WorkerEnded,
    WorkerLine,
    WorkerStarted,
)


class ServerLog:
    """What a server says of what happens, from a level on: runs and workers, and with ``debug`` steps."""

    def __init__(self, least: int) -> None:
        self._least = least

    def observe(self, event: Event) -> None:
        """Say an event."""
        match event:
            case RunStarted() if self._least <= logging.INFO:
                self._run_started(event)
            case RunEnded() if self._least <= logging.INFO:
                text = f"run {event.run_id} {event.status}"
                complain(text, level="info", event="run_ended", run_id=event.run_id, status=event.status)
            case StepStarted() | StepRetrying() | StepEnded() if self._least <= logging.DEBUG:
                self._step(event)
            case WorkerStarted() if self._least <= logging.INFO:
                text = f"worker {event.plugin} is ready"
                complain(text, level="info", event="worker_started", plugin=event.plugin, pid=event.pid)
            case WorkerLine() if self._least <= logging.INFO:
                text = plain_line(event.text)
                fields = {"event": "worker_line", "plugin": event.plugin}
                complain(f"{event.plugin}: {text}", level="info", message=text, **fields)
            case WorkerEnded(detail=detail) if detail == STOPPED:
                if self._least <= logging.INFO:
                    text = f"worker {event.plugin} ended: {detail}"
                    complain(text, level="info", event="worker_ended", plugin=event.plugin)
            case WorkerEnded() if self._least <= logging.WARNING:
                text = f"worker {event.plugin} ended: {event.detail}"
                complain(text, level="warning", event="worker_ended", plugin=event.plugin)
            case _:
                pass

    def _run_started(self, event: RunStarted) -> None:
        name = f"flow {event.flow_name or event.flow_id[:12]}"
        below = f", below run {event.parent_run_id}" if event.parent_run_id else ""
        complain(
            f"run {event.run_id} started: {name}, {count(event.total_items, 'item')}{below}",
            level="info",
            event="run_started",
            run_id=event.run_id,
            flow_id=event.flow_id,
            flow_name=event.flow_name,
            total_items=event.total_items,
            parent_run_id=event.parent_run_id,
        )

    def _step(self, event: StepStarted | StepRetrying | StepEnded) -> None:
        fields: dict[str, Any] = {"run_id": event.run_id, "item_index": event.item_index}
        what = f"run {event.run_id} item {event.item_index} step {event.step_id}"
        match event:
            case StepStarted():
                how, name = f"started ({event.component}, attempt {event.attempt})", "step_started"
                fields |= {"component": event.component, "attempt": event.attempt}
            case StepRetrying(error=error):
                how, name = f"is tried again: {error.message} (code {error.code})", "step_retrying"
                fields |= {"attempt": event.attempt + 1, "delay_s": event.delay_s, "code": error.code}
            case StepEnded(result=Failed(error)):
                how, name = f"failed: {error.message} (code {error.code})", "step_failed"
                fields |= {"code": error.code}
            case StepEnded():
                how, name = "completed", "step_completed"
        complain(f"{what} {how}", level="info", event=name, step_id=event.step_id, **fields)
