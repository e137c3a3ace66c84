"""How the runs that are being watched stand: what every way of showing progress has in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from stepflow_trio.cli.plain_text import count, duration
from stepflow_trio.flows.results import Failed
from stepflow_trio.runtime.events import (
    ItemEnded,
    RunEnded,
    RunStarted,
    StepEnded,
    StepProgressed,
    StepRetrying,
    StepStarted,
    WorkerEnded,
)

_RATE_AFTER_S = 0.5
"""Before, the rate of a batch's items says little about the rest of it."""


@dataclass(slots=True, eq=False)
class WatchedRun:
    """A run that has started."""

    name: str
    """What tells it from others; empty for the run that the command is about."""
    total_items: int
    input_lines: Sequence[int] = ()
    """The line in the inputs' file that each item comes from, where they come from one."""
    with_default: Collection[str] = ()
    """The steps whose default takes the place of their failure, as far as they are known."""
    ended_items: int = 0
    failed_items: int = 0
    ended_steps: int = 0
    started_at: float = 0.0

    @property
    def is_main(self) -> bool:
        """Whether it is the run that the command is about."""
        return not self.name

    @property
    def is_batch(self) -> bool:
        """Whether it has other than one item, so that its steps need to say which one they belong to."""
        return self.total_items != 1

    def item_name(self, index: int) -> str:
        """What to call an item: the user counts lines, of which some are blank."""
        return f"input line {self.input_lines[index]}" if self.input_lines else f"item {index}"


@dataclass(slots=True, eq=False)
class WatchedStep:
    """A step that has started, in one item of a run."""

    run: WatchedRun
    start: StepStarted
    """Its first attempt's."""
    started_at: float
    attempt: int = 1
    fraction: float | None = None
    """How far it is, 0 to 1, where its worker says so."""
    message: str = ""
    waits_until: float | None = None
    """When it is tried again, if its last attempt has failed."""
    logged_at: float = float("-inf")
    """When its progress was last written down."""

    @property
    def component(self) -> str:
        """The component that it calls."""
        return self.start.component

    @property
    def has_default(self) -> bool:
        """Whether its default takes the place of its failure."""
        return self.start.step_id in self.run.with_default

    def how_it_failed(self, now: float) -> str:
        """``failed after 0.12 s``; where its input could not be evaluated, it took no time."""
        return f"failed after {duration(now - self.started_at)}" if self.attempt else "failed"

    @property
    def what_follows(self) -> str:
        """What is said behind its failure."""
        return "; its default is used" if self.has_default else ""

    @property
    def label(self) -> str:
        """What to call it: its id, behind what tells its run and its item from others."""
        run = self.run
        item = f"{run.item_name(self.start.item_index)}: " if run.is_batch else ""
        return f"{run.name + ': ' if run.name else ''}{item}{self.start.step_id}"


class RunState:
    """The first run that starts is the one that the command is about; others are runs of its components.

    Args:
        with_default: its steps whose default takes the place of their failure.
        input_lines: where that run is a batch, the line in the inputs' file that each item comes from.
        clock: seconds.
    """

    def __init__(
        self,
        input_lines: Sequence[int] = (),
        *,
        with_default: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._with_default = with_default
        self._input_lines = input_lines
        self._clock = clock
        self._began_at = clock()
        self._runs: dict[str, WatchedRun] = {}
        self.main: WatchedRun | None = None
        self.is_over = False
        """Whether the run that the command is about has ended."""
        self.steps: dict[tuple[str, int, str], WatchedStep] = {}
        """The steps that run, by run, item and id, in the order in which they started."""

    def now(self) -> float:
        """Seconds since the command began to watch."""
        return self._clock() - self._began_at

    def take_run(self, event: RunStarted | ItemEnded | RunEnded) -> WatchedRun | None:
        """Take in what happened to a run, and return how it stands; None for one that is not known."""
        if isinstance(event, RunStarted):
            name = f"{event.flow_name or 'run'} {event.run_id[:8]}" if self.main else ""
            run = self._runs[event.run_id] = WatchedRun(
                name,
                event.total_items,
                () if self.main else self._input_lines,
                with_default=() if self.main else self._with_default,
                started_at=self.now(),
            )
            self.main = self.main or run
            return run
        if isinstance(event, RunEnded):
            run = self._runs.pop(event.run_id, None)
            self.is_over = self.is_over or (run is not None and run.is_main)
            return run
        run = self._runs.get(event.run_id)
        if run is not None:
            run.ended_items += 1
            run.failed_items += isinstance(event.result, Failed)
        return run

    def batch_summary(self, run: WatchedRun) -> str:
        """``1,200 of 5,000 items, 3 failed, 600/s, 6.3 s left``: how far a batch is."""
        text = f"{run.ended_items:,} of {count(run.total_items, 'item')}"
        if run.failed_items:
            text += f", {run.failed_items:,} failed"
        took = self.now() - run.started_at
        if run.ended_items and took >= _RATE_AFTER_S:
            rate = run.ended_items / took
            text += f", {rate:,.0f}/s" if rate >= 10 else f", {rate:.2g}/s"
            if run.ended_items < run.total_items:
                text += f", {duration((run.total_items - run.ended_items) / rate)} left"
        return text

    def take_step(self, event: StepStarted | StepProgressed | StepRetrying | StepEnded) -> WatchedStep | None:
        """Take in what happened to a step, and return how it stands; None for one that is not known."""
        key = (event.run_id, event.item_index, event.step_id)
        step = self.steps.get(key)
        if isinstance(event, StepStarted):
            if step is None and (run := self._runs.get(event.run_id)) is not None:
                step = self.steps[key] = WatchedStep(run, event, self.now())
            if step is not None:
                step.attempt, step.fraction, step.message, step.waits_until = event.attempt, None, "", None
        elif step is None:
            run = self._runs.get(event.run_id)
            if run is None or not isinstance(event, StepEnded) or not isinstance(event.result, Failed):
                return None
            # Its input could not be evaluated.
            run.ended_steps += 1
            step = WatchedStep(run, _not_executed(event), self.now(), attempt=0)
        elif isinstance(event, StepProgressed):
            step.fraction, step.message = event.fraction, event.message or ""
        elif isinstance(event, StepRetrying):
            step.fraction, step.waits_until = None, self.now() + event.delay_s
        else:
            step.run.ended_steps += 1
            del self.steps[key]
        return step


def _not_executed(event: StepEnded) -> StepStarted:
    return StepStarted(
        run_id=event.run_id,
        item_index=event.item_index,
        at=event.at,
        step_id=event.step_id,
        component="",
        attempt=0,
    )


def ended_worker(event: WorkerEnded) -> str:
    """That a worker ended and why, without the lines of its stderr: they were shown as they came."""
    detail = event.detail.partition("; the last lines of its stderr:")[0]
    return f"worker {event.plugin} ended: {detail}"
