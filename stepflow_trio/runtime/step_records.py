"""How the steps of a run stand, out of what is on record of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from stepflow_trio.errors import ErrorCode
from stepflow_trio.flows.model import Flow, UseDefault
from stepflow_trio.flows.plan import StepStatus
from stepflow_trio.flows.results import Failed, FlowError, FlowResult, Success
from stepflow_trio.runtime.run_log import RecordedEvent

INTERRUPTED = Failed(FlowError(ErrorCode.REQUEST_CANCELLED, "the step was cancelled while it was executed"))
"""What a step came to that was at work when its run was cancelled."""

_WORST_FIRST = (
    StepStatus.FAILED,
    StepStatus.RUNNING,
    StepStatus.RUNNABLE,
    StepStatus.BLOCKED,
    StepStatus.SKIPPED,
    StepStatus.COMPLETED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """How one step of one item stands."""

    step_id: str
    component: str | None
    status: StepStatus
    attempt: int = 0
    """The latest; 0 also where it ended without one: its input could not be evaluated."""
    started_at: datetime | None = None
    """When its first attempt began."""
    completed_at: datetime | None = None
    """When it ended, failed or not; of one that was cancelled, when its item or its run did."""
    last_error: FlowError | None = None
    """Of a step that runs: what its last attempt failed with."""
    next_attempt_at: datetime | None = None
    """Of a step that waits for its next attempt: when that is."""
    result: FlowResult | None = None
    """What it came to, its default applied; None also where the store keeps that no longer."""


def step_records(
    events: Iterable[RecordedEvent],
    *,
    is_over: bool,
    over_at: datetime | None = None,
    flow: Flow | None = None,
) -> dict[str, StepRecord]:
    """How the steps of one item stand by what happened in it, in the order in which they began.

    Args:
        events: what happened in the item, in order.
        is_over: nothing further happens in it.
        over_at: since when: then those ended that were cancelled.
        flow: what it runs, to know the defaults of failed steps.
    """
    defaults: dict[str, UseDefault] = {}
    if flow is not None:
        defaults = {s.id: s.on_error for s in flow.steps if isinstance(s.on_error, UseDefault)}
    begun: dict[str, RecordedEvent] = {}
    attempts: dict[str, int] = {}
    ended: dict[str, RecordedEvent] = {}
    retrying: dict[str, RecordedEvent] = {}
    for event in events:
        if event.step_id is None:
            continue
        if event.kind == "stepStarted":
            begun.setdefault(event.step_id, event)
            attempts[event.step_id] = event.attempt or 1
        elif event.kind == "stepRetrying":
            retrying[event.step_id] = event
        elif event.kind == "stepEnded":
            ended[event.step_id] = event
    return {
        step_id: _record(
            step_id,
            begun.get(step_id),
            ended.get(step_id),
            retrying.get(step_id),
            attempt=attempts.get(step_id, 0),
            default=defaults.get(step_id),
            is_over=is_over,
            over_at=over_at,
        )
        for step_id in {**begun, **ended}
    }


def all_step_records(
    flow: Flow, events: Iterable[RecordedEvent], *, is_over: bool, over_at: datetime | None = None
) -> dict[str, StepRecord]:
    """How every step of one item stands, in the order of the flow."""
    known = step_records(events, is_over=is_over, over_at=over_at, flow=flow)
    status = StepStatus.SKIPPED if is_over else StepStatus.BLOCKED
    return {
        step.id: known.get(step.id) or StepRecord(step_id=step.id, component=step.component, status=status)
        for step in flow.steps
    }


def worst_status(statuses: Iterable[StepStatus]) -> StepStatus:
    """Of a step's statuses in several items the one that says most about what is wrong or to be done."""
    return min(statuses, key=_WORST_FIRST.index)


def _record(
    step_id: str,
    begun: RecordedEvent | None,
    ended: RecordedEvent | None,
    retrying: RecordedEvent | None,
    *,
    attempt: int,
    default: UseDefault | None,
    is_over: bool,
    over_at: datetime | None,
) -> StepRecord:
    component = None if begun is None else begun.component
    started_at = None if begun is None else begun.at
    result: FlowResult | None
    last_error: FlowError | None = None
    next_attempt_at: datetime | None = None
    if ended is not None:
        result, completed_at = ended.result, ended.at
        status = StepStatus.COMPLETED if ended.status == "completed" else StepStatus.FAILED
        # A default stands in for what a component failed with, not for an input that could not be had.
        if status is StepStatus.FAILED and default is not None and begun is not None:
            result, status = Success(default.value), StepStatus.COMPLETED
    elif is_over:
        result, status, completed_at = INTERRUPTED, StepStatus.FAILED, over_at
    else:
        result, status, completed_at = None, StepStatus.RUNNING, None
        if retrying is not None:
            last_error = retrying.result.error if isinstance(retrying.result, Failed) else None
            if retrying.attempt == attempt:
                next_attempt_at = retrying.at + timedelta(seconds=retrying.delay_s or 0)
    return StepRecord(
        step_id=step_id,
        component=component,
        status=status,
        attempt=attempt,
        started_at=started_at,
        completed_at=completed_at,
        last_error=last_error,
        next_attempt_at=next_attempt_at,
        result=result,
    )
