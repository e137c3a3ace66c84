"""What happens while flows run: recorded by the store before it is acted on, then shown to observers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from msgspec import Struct

from stepflow_trio.flows.results import FlowError, FlowResult

# They are not the garbage collector's matter (`gc=False`): what they hold is JSON, which never refers back to
# them, and it would walk through a history of millions of them again and again.


class RunStarted(Struct, frozen=True, kw_only=True, gc=False):
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
    submission_digest: str | None = None
    """Of what came with that key, so that it can be told from another submission; see `Submission.digest`."""

    @property
    def total_items(self) -> int:
        """How many items it has."""
        return len(self.inputs)


class StepStarted(Struct, frozen=True, kw_only=True, gc=False):
    """A step is about to be executed, for the ``attempt``-th time."""

    run_id: str
    item_index: int
    at: datetime
    step_id: str
    component: str
    attempt: int


class StepProgressed(Struct, frozen=True, kw_only=True, gc=False):
    """A worker said how far a step is that it executes. Never recorded."""

    run_id: str
    item_index: int
    at: datetime
    step_id: str
    fraction: float
    """0 to 1."""
    message: str | None
    """1,000 characters at most."""


class StepRetrying(Struct, frozen=True, kw_only=True, gc=False):
    """An attempt failed with ``error``; the next one follows after ``delay_s`` seconds."""

    run_id: str
    item_index: int
    at: datetime
    step_id: str
    attempt: int
    delay_s: float
    error: FlowError


class StepEnded(Struct, frozen=True, kw_only=True, gc=False):
    """A step has its final result, or failed without being executed: its input could not be evaluated."""

    run_id: str
    item_index: int
    at: datetime
    step_id: str
    result: FlowResult


class ItemEnded(Struct, frozen=True, kw_only=True, gc=False):
    """An item has its result."""

    run_id: str
    item_index: int
    at: datetime
    result: FlowResult


class RunEnded(Struct, frozen=True, kw_only=True, gc=False):
    """A run is over: ``completed``, ``failed`` or ``cancelled``."""

    run_id: str
    at: datetime
    status: str


class WorkerStarted(Struct, frozen=True, kw_only=True, gc=False):
    """A plugin's worker was initialized. ``pid`` is None for one that is not a process started here."""

    plugin: str
    pid: int | None


class WorkerLine(Struct, frozen=True, kw_only=True, gc=False):
    """A worker's process wrote a line to stderr, or, if it speaks HTTP, to stdout."""

    plugin: str
    text: str


STOPPED = "it was stopped"
"""The ``detail`` of a worker that was asked to end."""


class WorkerEnded(Struct, frozen=True, kw_only=True, gc=False):
    """A plugin's worker is gone, or could not be started; ``detail`` says why."""

    plugin: str
    detail: str


RunEvent: TypeAlias = RunStarted | StepStarted | StepRetrying | StepEnded | ItemEnded | RunEnded
"""What belongs to a run's history."""

Event: TypeAlias = RunEvent | StepProgressed | WorkerStarted | WorkerLine | WorkerEnded

Observer: TypeAlias = Callable[[Event], object]
"""Called with each event as it happens. It must be quick. What it raises is logged and forgotten."""
