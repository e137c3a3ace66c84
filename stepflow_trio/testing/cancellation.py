"""The cancel sweep: run a scenario again and again, and cancel it at another scheduler step each time.

A scenario is an async function that sets its stage, enters the :class:`Cancellable` that it is given around
what is to be cancelled, and then asserts what must hold whether it was cancelled or not::

    async def a_call(cancellable: Cancellable) -> None:
        async with connected() as (near, far):
            with cancellable:
                await near.call("echo", {"value": 1})
            await trio.testing.wait_all_tasks_blocked()
            assert far.statistics().requests_running == 0
            assert await near.call("echo", {"value": 2}) == 2

    def test_a_call_can_be_cancelled_anywhere():
        cancel_everywhere(a_call)

Steps, not lines: a checkpoint may complete without raising, and what other tasks do between two lines of
the scenario matters as much as the lines. Time is virtual and the scheduler's order follows from ``seed``, so
a scenario that does no real I/O takes the same steps every time, and a failure can be replayed.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeAlias

import trio
import trio.testing

from stepflow_trio.engine.ending import one_exception
from stepflow_trio.testing.scheduler import (
    all_tasks,
    is_thrown_cancelled,
    place_of,
    reaches,
    scheduler_order,
    task_tree,
)

__all__ = [
    "AllPoints",
    "CancelStrategy",
    "Cancellable",
    "EveryNth",
    "FirstN",
    "RandomSample",
    "Scenario",
    "SweepFailure",
    "SweepReport",
    "cancel_everywhere",
]

_UNCANCELLED_WITHIN_S = 3_600.0
"""A scenario that is not cancelled is stuck after so long in virtual time."""

_MAX_STEPS_AFTER = 1_000_000
"""After so many steps behind the cancellation something spins."""


class CancelStrategy(Protocol):
    """Chooses where a scenario is cancelled."""

    def points(self, steps: int) -> Iterable[int]:
        """Points in rising order, of 0 (at entry) to ``steps``, which is what it takes uncancelled.

        They may go on without end: the sweep ends at the first point that a run does not reach.
        """
        ...


@dataclass(frozen=True, slots=True)
class AllPoints:
    """At every step, until the scenario completes uncancelled."""

    def points(self, steps: int) -> Iterable[int]:
        """0, 1, 2, …"""
        return itertools.count()


@dataclass(frozen=True, slots=True)
class RandomSample:
    """At ``n`` steps drawn with ``seed``; at all of them where there are no more."""

    n: int
    seed: int = 0

    def points(self, steps: int) -> Iterable[int]:
        """The drawn ones."""
        every = range(steps + 1)
        return sorted(random.Random(self.seed).sample(every, min(self.n, len(every))))  # noqa: S311 — no secret


@dataclass(frozen=True, slots=True)
class EveryNth:
    """At every nth step, beginning at entry."""

    n: int

    def points(self, steps: int) -> Iterable[int]:
        """0, n, 2n, …"""
        return itertools.count(0, self.n)


@dataclass(frozen=True, slots=True)
class FirstN:
    """At the first ``n`` points."""

    n: int

    def points(self, steps: int) -> Iterable[int]:
        """0 … n−1."""
        return range(self.n)


class SweepFailure(AssertionError):
    """A scenario broke a promise when it was cancelled at ``point``; None: without being cancelled."""

    def __init__(self, message: str, point: int | None) -> None:
        super().__init__(message)
        self.point = point


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What a sweep did."""

    scenario: str
    steps: int
    """Scheduler steps that the cancellable part takes uncancelled."""
    injections: int
    """Runs in which it was cancelled."""
    caught: int
    """Of these, runs in which ``Cancelled`` came out of it; in the others it had no checkpoint left."""


class Cancellable:
    """The part of a scenario that the sweep cancels: ``with cancellable as scope: …``, entered once."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None
        """The task that is inside; None before and afterwards."""
        self.entered = False
        self.on_enter: Callable[[], object] = lambda: None

    @property
    def scope(self) -> trio.CancelScope:
        """The scope that the sweep cancels."""
        return self._scope

    def __enter__(self) -> trio.CancelScope:
        if self.entered:
            raise RuntimeError("a scenario enters its cancellable part once")
        scope = self._scope.__enter__()
        self.entered = True
        self.task = trio.lowlevel.current_task()
        self.on_enter()
        return scope

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self.task = None
        return self._scope.__exit__(kind, exc, traceback)


Scenario: TypeAlias = Callable[[Cancellable], Awaitable[object]]


def cancel_everywhere(
    scenario: Scenario,
    *,
    strategy: CancelStrategy | None = None,
    seed: int = 0,
    only: int | None = None,
    within_s: float = 5.0,
) -> SweepReport:
    """Cancel ``scenario`` at every point that ``strategy`` chooses, each time in a fresh ``trio.run``.

    First it runs uncancelled. What must hold after each run, besides what the scenario itself asserts:

    * The scenario ended within ``within_s`` virtual seconds after it was cancelled, and did not spin.
    * ``Cancelled``, once raised in the cancellable part, came out of it, or another exception did.
    * No task is left, no descriptor is open and no child process runs that was not there before.
      (Descriptors and children are looked for where ``/dev/fd`` and ``/proc`` exist.)

    Args:
        scenario: the function; it is called anew for each run.
        strategy: where to cancel; every point by default.
        seed: of the scheduler's order. Other seeds give other interleavings.
        only: replays one point and does nothing else.
        within_s: virtual seconds.

    Raises:
        SweepFailure: a promise was broken; the message names the scenario, the point, what broke, where the
            task was, and how to replay it.
    """
    name = getattr(scenario, "__qualname__", repr(scenario))
    steps = injections = caught = 0
    points: Iterable[int] = () if only is None else (only,)
    if only is None:
        steps = _run(scenario, name, None, seed, within_s).steps
        points = (strategy or AllPoints()).points(steps)
    for point in points:
        run = _run(scenario, name, point, seed, within_s)
        if not run.injected:
            break
        injections += 1
        caught += run.cancellable.scope.cancelled_caught
    return SweepReport(scenario=name, steps=steps, injections=injections, caught=caught)


def _run(scenario: Scenario, name: str, point: int | None, seed: int, within_s: float) -> _Run:
    run = _Run(scenario, point, within_s)
    descriptors, children = _descriptors(), _children()
    try:
        with scheduler_order(seed):
            clock = trio.testing.MockClock(autojump_threshold=0)
            trio.run(run.main, clock=clock, instruments=[_StepCounter(run)])
        if left := _descriptors() - descriptors:
            run.complain(f"descriptors are still open: {sorted(left)}")
        if left := _children() - children:
            run.complain(f"child processes still run: {sorted(left)}")
        run.check()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as exc:
        what = run.complaint or f"{type(exc).__name__}: {exc}"
        if point is None:
            message = f"{name} fails although it is not cancelled: {what}"
        else:
            message = (
                f"{name}, cancelled before scheduler step {point} ({run.where or 'not reached'}): {what}\n"
                f"To replay it: cancel_everywhere({name}, seed={seed}, only={point})"
            )
        raise SweepFailure(message, point) from exc
    return run


class _Run:
    """One run of a scenario, and what is found out in it."""

    def __init__(self, scenario: Scenario, point: int | None, within_s: float) -> None:
        self.cancellable = Cancellable()
        self.cancellable.on_enter = self._entered
        self.point = point
        self.steps = 0
        self.injected = False
        self.where = ""
        self.complaint = ""
        self._scenario = scenario
        self._within_s = within_s
        self._whole = trio.CancelScope()
        self._patience = trio.CancelScope()
        self._steps_after = 0
        self._cancelled_was_raised = False

    async def main(self) -> None:
        self._patience.deadline = trio.current_time() + _UNCANCELLED_WITHIN_S
        with one_exception():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                await trio.testing.wait_all_tasks_blocked()
                tasks = all_tasks()
                with self._whole:
                    await self._scenario(self.cancellable)
                await trio.testing.wait_all_tasks_blocked()
                if left := all_tasks() - tasks:
                    self.complain(f"tasks are left: {sorted(task.name for task in left)}")
                nursery.cancel_scope.cancel()

    def check(self) -> None:
        scope = self.cancellable.scope
        if not self.complaint and not self.cancellable.entered:
            self.complaint = "the scenario never entered its cancellable part"
        if not self.complaint and self._cancelled_was_raised and not scope.cancelled_caught:
            self.complaint = "Cancelled was raised in the cancellable part and swallowed there"
        if self.complaint:
            raise AssertionError(self.complaint)

    def complain(self, what: str) -> None:
        self.complaint = self.complaint or what

    def take_step(self, task: trio.lowlevel.Task) -> None:
        """Called by the instrument before each step of any task."""
        inside = self.cancellable.task
        if inside is not None:
            self.steps += 1
            if self.steps == self.point:
                self._inject(place_of(inside))
            if task is inside and self.injected and is_thrown_cancelled(task):
                self._cancelled_was_raised |= reaches(self.cancellable.scope, task)
        if self.injected:
            self._steps_after += 1
            if self._steps_after == _MAX_STEPS_AFTER:
                self.complain(
                    f"something spins: {_MAX_STEPS_AFTER} steps later it has not ended\n{task_tree()}"
                )
                self._whole.cancel()

    def _entered(self) -> None:
        if self.point == 0:
            self._inject("at entry")

    def _inject(self, where: str) -> None:
        self.injected = True
        self.where = where
        self._patience.deadline = trio.current_time() + self._within_s
        self.cancellable.scope.cancel(reason=f"the sweep cancels before scheduler step {self.point}")

    async def _watch(self) -> None:
        with self._patience:
            await trio.sleep_forever()
        if self._patience.cancelled_caught:
            limit_s = self._within_s if self.injected else _UNCANCELLED_WITHIN_S
            self.complain(f"TooSlowError: it has not ended {limit_s:g} virtual seconds later\n{task_tree()}")
            self._whole.cancel()


class _StepCounter(trio.abc.Instrument):
    def __init__(self, run: _Run) -> None:
        self._run = run

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._run.take_step(task)


def _descriptors() -> set[str]:
    try:
        numbers = os.listdir("/dev/fd")
    except OSError:
        return set()
    return {f"{number} {what}" for number in numbers if (what := _open_file(number)) is not None}


def _open_file(number: str) -> str | None:
    try:
        os.fstat(int(number))
    except OSError:  # the descriptor that listed the others
        return None
    try:
        return str(Path(f"/dev/fd/{number}").readlink())
    except OSError:
        return "?"


def _children() -> set[int]:
    found: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        try:
            found.update(map(int, listing.read_text(encoding="ascii").split()))
        except OSError:  # the thread has just ended
            continue
    return found
