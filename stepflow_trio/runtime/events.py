"""What happens while flows run: recorded by the store before it is acted on, then shown to observers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from stepflow_trio.flows.results import FlowError, FlowResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """A run was accepted, with one item for each input."""

    run_id: str
    at: datetime
    flow_id: str
    flow_name: str | None
    inputs: Sequence[Any]
    variables: Mapping[str, Any]
    max_concurrency: int
    overrides: Mapping[str, Any] | None = None
    """What the submission changed in the flow's steps; ``flow_id`` is the flow without it."""
    parent_run_id: str | None = None
    root_run_id: str | None = None
    """The topmost run above it; None: it is that itself."""
    depth: int = 0
    """How many runs it is below."""
    idempotency_key: str | None = None
    """Whoever submits with the same key again is led to this run."""

    @property
    def total_items(self) -> int:
        """How many items it has."""
        return len(self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """A step is about to be executed, for the ``attempt``-th time."""

    run_id: str
    item_index: int
    at: datetime
    step_id: str
    component: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgressed:
    """A worker said how far a step is. Never recorded."""

    run_id: str
    step_id: str
    fraction: float
    message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRetrying:
    """An attempt failed with ``error``; the next one follows after ``delay_s`` seconds."""

    run_id: str
    item_index: int
    at: datetime
    step_id: str
    attempt: int
    delay_s: float
    error: FlowError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded:
    """A step has its final result, or failed without being executed: its input could not be evaluated."""

    run_id: str
    item_index: int
    at: datetime
    step_id: str
    result: FlowResult


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemEnded:
    """An item has its result."""

    run_id: str
    item_index: int
    at: datetime
    result: FlowResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """A run is over: ``completed``, ``failed`` or ``cancelled``."""

    run_id: str
    at: datetime
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted:
    """A plugin's worker was initialized. ``pid`` is None for one that is not a process started here."""

    plugin: str
    pid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLine:
    """A worker's process wrote a line to stderr, or, if it speaks HTTP, to stdout."""

    plugin: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEnded:
    """A plugin's worker is gone, or could not be started; ``detail`` says why."""

    plugin: str
    detail: str


RunEvent: TypeAlias = RunStarted | StepStarted | StepRetrying | StepEnded | ItemEnded | RunEnded
"""What belongs to a run's history."""

Event: TypeAlias = RunEvent | StepProgressed | WorkerStarted | WorkerLine | WorkerEnded

Observer: TypeAlias = Callable[[Event], object]
"""Called with each event as it happens. It must be quick. What it raises is logged and forgotten."""
