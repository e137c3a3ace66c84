"""The steps that are being executed, and how far each is by what its worker says."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from stepflow_trio.engine import Connection
from stepflow_trio.protocol.payloads import Observability, ProgressParams
from stepflow_trio.runtime.events import StepProgressed

MAX_MESSAGE_CHARACTERS = 1000
"""Of a report; what is longer is cut off, as the latest report of each step is kept."""

SEARCHED_STEPS = 128
"""A report without a span id is matched while at most so many steps are at work; else it is dropped."""


class StepAtWork:
    """One execution of a step of an item. It is over when its answer is there, before that is recorded."""

    __slots__ = ("connection", "item_index", "number", "observability", "report")

    def __init__(self, observability: Observability, item_index: int) -> None:
        self.observability = observability
        self.item_index = item_index
        self.connection: Connection | None = None
        """The worker's that executes it; None as long as it has been sent to none."""
        self.report: StepProgressed | None = None
        """The latest; None also when it is over."""
        self.number = 0
        """Grows from report to report, whichever step it is of."""


class StepsAtWork:
    """All executions of a runtime that are at work; nothing is kept of those that are over."""

    def __init__(self) -> None:
        self._steps: dict[str | None, StepAtWork] = {}
        self._reported: dict[str, dict[str | None, StepAtWork]] = {}
        """Of each run those that have reported, the one that did so last at the end."""
        self.last_number = 0
        """Of the latest report."""

    def begin(self, observability: Observability, item_index: int) -> None:
        """A step is about to be executed. Its span id is the only one of its kind."""
        self._steps[observability.span_id] = StepAtWork(observability, item_index)

    def end(self, observability: Observability) -> None:
        """The execution is over; nothing that is said of it from now on is heard."""
        step = self._steps.pop(observability.span_id, None)
        if step is None or step.report is None:
            return
        step.report = None
        run_id = step.observability.run_id or ""
        of_run = self._reported[run_id]
        del of_run[observability.span_id]
        if not of_run:
            del self._reported[run_id]

    def sent(self, observability: Observability, connection: Connection) -> None:
        """The execution is being sent to the worker behind a connection: that one may speak about it."""
        step = self._steps.get(observability.span_id)
        if step is not None:
            step.connection = connection

    def take(
        self, params: ProgressParams, connection: Connection, *, now: Callable[[], datetime]
    ) -> StepProgressed | None:
        """Take in a report. None where it is of nothing that is at work on this connection.

        A span id names one execution; the run and the step must be that one's. Without it the run, if it is
        named, and the step must be those of one execution only.
        """
        step = self._find(params, connection)
        if step is None:
            return None
        named = step.observability
        run_id = named.run_id or ""
        message = params.message
        if message is not None and len(message) > MAX_MESSAGE_CHARACTERS:
            message = message[: MAX_MESSAGE_CHARACTERS - 1] + "…"
        step.report = StepProgressed(
            run_id=run_id,
            item_index=step.item_index,
            at=now(),
            step_id=params.step_id,
            fraction=params.progress,
            message=message,
        )
        self.last_number += 1
        step.number = self.last_number
        of_run = self._reported.setdefault(run_id, {})
        of_run.pop(named.span_id, None)
        of_run[named.span_id] = step
        return step.report

    def _find(self, params: ProgressParams, connection: Connection) -> StepAtWork | None:
        if params.span_id is not None:
            step = self._steps.get(params.span_id)
            return step if step is not None and _fits(step, params, connection) else None
        if len(self._steps) > SEARCHED_STEPS:
            return None
        found = [step for step in self._steps.values() if _fits(step, params, connection)]
        return found[0] if len(found) == 1 else None

    def reports_of(self, run_id: str) -> list[StepProgressed]:
        """The latest report of each step of a run that is at work, the oldest first."""
        steps = self._reported.get(run_id, {}).values()
        return [step.report for step in steps if step.report is not None]

    def reported_since(self, run_id: str, number: int) -> list[tuple[StepAtWork, StepProgressed]]:
        """The steps of a run whose latest report is younger than ``number``, with it, the oldest first."""
        found: list[tuple[StepAtWork, StepProgressed]] = []
        for step in reversed(self._reported.get(run_id, {}).values()):
            if step.number <= number or step.report is None:
                break
            found.append((step, step.report))
        found.reverse()
        return found


def _fits(step: StepAtWork, params: ProgressParams, connection: Connection) -> bool:
    named = step.observability
    return (
        step.connection is connection
        and named.step_id == params.step_id
        and params.run_id in (None, named.run_id)
    )
