"""One plugin over several workers that are alike: who gets a call, and who gets none for the time being."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import trio

from stepflow_trio.errors import ErrorCode, StepflowError
from stepflow_trio.protocol.payloads import ComponentInfo, Observability
from stepflow_trio.runtime.plugins import FailureKind, StepFailure
from stepflow_trio.runtime.worker_failures import is_local_lack
from stepflow_trio.runtime.worker_plugin import WorkerPlugin

__all__ = ["BalancedWorker", "BalancingPlugin"]

PROBE_INTERVAL_S = 10.0
"""Between two questions to a worker that is well; as often as the public balancer asks."""

MIN_BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0
"""Between two questions to one that is not: so long at first, then twice as long each time, at most that."""

JITTER = 0.2
"""So much of a delay may be taken off by chance, so that what failed together is not asked together."""

LIST_GRACE_S = 1.0
"""Once one worker has listed its components, so long the others may take until theirs are not compared."""

MAX_REMEMBERED_STEPS = 4096
"""Steps of which it is known where they failed last. Of more than that, the oldest are forgotten."""

_MAX_DOUBLINGS = 32
_MAX_LISTED = 10
_UNREACHABLE = (ErrorCode.CONNECTION_LOST, ErrorCode.SPAWN_FAILED)

_log = logging.getLogger("stepflow_trio.runtime")


@dataclass(eq=False, kw_only=True)
class BalancedWorker:
    """One of the workers."""

    url: str
    plugin: WorkerPlugin
    check_health: Callable[[], Awaitable[object]]
    """Raises a :class:`StepflowError` where the worker takes no requests."""
    live_calls: int = 0
    problem: str | None = None
    """Why it is ejected: gets no new calls while there are others. None: it is not."""
    ejected_at: float = 0.0
    wake: trio.Event = field(default_factory=trio.Event)
    """Set for whoever watches it to look at it now."""


class BalancingPlugin:
    """Executes components on whichever of its workers has least to do.

    A worker that cannot be reached, or is not healthy, is ejected: its calls in flight finish, and new ones
    go to the others until it is healthy again. If all are ejected, calls go to the one that has been so for
    longest. An execution that could not begin, as its worker could not be made ready, begins with another one
    within the same attempt; one that failed on its way begins elsewhere than before when it is tried again.

    Args:
        name: what the configuration calls it.
        workers: all of them; at least one.
        nursery: where they are watched; the plugin is of use as long as it is open.
        randomness: for the jitter of delays.
    """

    def __init__(
        self, name: str, workers: Sequence[BalancedWorker], *, nursery: trio.Nursery, randomness: Random
    ) -> None:
        if not workers:
            raise ValueError("there must be at least one worker to choose from")
        self.name = name
        self._workers = list(workers)
        self._nursery = nursery
        self._randomness = randomness
        self._next = 0
        self._failed_at: OrderedDict[str, BalancedWorker] = OrderedDict()
        self._watching = trio.CancelScope()

    @property
    def problem(self) -> str | None:
        """Why none of the workers can be used; None where one can."""
        problems = [worker.problem for worker in self._workers]
        if None in problems:
            return None
        return "; ".join(f"{worker.url}: {worker.problem}" for worker in self._workers)

    def start(self) -> None:
        """Make all workers ready, and watch them. Waits for nothing."""
        for worker in self._workers:
            worker.plugin.start()
        self._nursery.start_soon(self._watch_all, name=f"watch the workers of {self.name}")

    def stop(self) -> None:
        """Leave all workers. No call may follow. Waits for nothing."""
        self._watching.cancel(reason="the runtime stops this plugin")
        for worker in self._workers:
            worker.plugin.stop()

    # ---- what a plugin does ---------------------------------------------------------------------------

    async def execute(
        self,
        component: str,
        input: Any,
        *,
        attempt: int,
        observability: Observability,
        deadline: float,
    ) -> Any:
        """Execute a component on one of the workers; see :meth:`Plugin.execute`."""
        step = observability.span_id
        avoided = None if step is None else self._failed_at.pop(step, None)
        tried: list[BalancedWorker] = []
        while True:
            worker = self._choose(avoided, tried)
            tried.append(worker)
            worker.live_calls += 1
            has_begun = False
            try:
                if not worker.plugin.is_ready:
                    await worker.plugin.wait_ready()
                has_begun = True
                output = await worker.plugin.execute(
                    component, input, attempt=attempt, observability=observability, deadline=deadline
                )
            except StepFailure as failure:
                if not has_begun:
                    if not is_local_lack(failure.__cause__):
                        self._eject(worker, failure.error.message)
                    if any(other.problem is None and other not in tried for other in self._workers):
                        continue
                elif failure.kind is FailureKind.TRANSPORT:
                    self._remember(step, worker)
                    if failure.error.code in _UNREACHABLE:
                        self._eject(worker, failure.error.message)
                raise
            finally:
                worker.live_calls -= 1
            if worker.problem is not None:
                worker.wake.set()
            return output

    async def list_components(self) -> list[ComponentInfo]:
        """What the workers offer, as one of them says; see :meth:`Plugin.list_components`.

        All that are well are asked, and where they do not agree the log says so.
        """
        asked = [worker for worker in self._workers if worker.problem is None] or [self._choose(None, [])]
        listed: dict[BalancedWorker, list[ComponentInfo]] = {}
        failures: list[StepFailure] = []
        async with trio.open_nursery() as nursery:

            async def ask(worker: BalancedWorker) -> None:
                try:
                    listed[worker] = await worker.plugin.list_components()
                except StepFailure as failure:
                    failures.append(failure)
                    if not worker.plugin.is_ready and not is_local_lack(failure.__cause__):
                        self._eject(worker, failure.error.message)
                else:
                    patience_ends = trio.current_time() + LIST_GRACE_S
                    nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, patience_ends)

            for worker in asked:
                nursery.start_soon(ask, worker)
        if not listed:
            raise failures[0]
        first, *others = [worker for worker in asked if worker in listed]
        offered = _names(listed[first])
        for other in others:
            if differing := offered ^ _names(listed[other]):
                _log.warning(
                    "plugin %s: %s and %s do not offer the same components, but differ in %s",
                    self.name, first.url, other.url, ", ".join(sorted(differing)[:_MAX_LISTED]),
                )  # fmt: skip
        return listed[first]

    # ---- who gets a call ------------------------------------------------------------------------------

    def _choose(self, avoided: BalancedWorker | None, tried: Sequence[BalancedWorker]) -> BalancedWorker:
        """The worker for a call: of those that are well, one with least to do, each in its turn."""
        well = [worker for worker in self._workers if worker.problem is None and worker not in tried]
        if not well:
            return min(self._workers, key=lambda worker: worker.ejected_at)
        if len(well) > 1 and avoided in well:
            well.remove(avoided)
        least = min(worker.live_calls for worker in well)
        count = len(self._workers)
        for turn in range(count):
            worker = self._workers[(self._next + turn) % count]
            if worker in well and worker.live_calls == least:
                self._next = (self._next + turn + 1) % count
                return worker
        raise AssertionError("the least is one of them")

    def _remember(self, step: str | None, worker: BalancedWorker) -> None:
        """When this step is tried again, it is to be elsewhere."""
        if step is not None:
            self._failed_at[step] = worker
            if len(self._failed_at) > MAX_REMEMBERED_STEPS:
                self._failed_at.popitem(last=False)

    # ---- who is well ----------------------------------------------------------------------------------

    def _eject(self, worker: BalancedWorker, problem: str) -> None:
        """Send it nothing new while there are others."""
        if worker.problem is None:
            _log.warning("plugin %s: %s gets no new calls: %s", self.name, worker.url, problem)
            worker.wake.set()
        worker.problem = problem
        worker.ejected_at = trio.current_time()

    async def _watch_all(self) -> None:
        with self._watching:
            async with trio.open_nursery() as nursery:
                for worker in self._workers:
                    nursery.start_soon(self._watch, worker, name=f"watch {worker.url}")

    async def _watch(self, worker: BalancedWorker) -> None:
        """Ask the worker how it is: every now and then, and at once where that is in doubt."""
        failures = 0
        while True:
            backoff_s = min(MIN_BACKOFF_S * 2.0 ** (failures - 1), MAX_BACKOFF_S)
            delay_s = backoff_s if failures else PROBE_INTERVAL_S
            with trio.move_on_after(delay_s * (1 - JITTER * self._randomness.random())):
                await worker.wake.wait()
            worker.wake = trio.Event()
            problem = await _problem_of(worker)
            if problem is None:
                failures = 0
                if worker.problem is not None:
                    _log.info("plugin %s: %s is well again", self.name, worker.url)
                worker.problem = None
            else:
                failures = min(failures + 1, _MAX_DOUBLINGS)
                if worker.problem is None:
                    self._eject(worker, problem)
                worker.wake = trio.Event()
                worker.problem = problem

    def __repr__(self) -> str:
        well = sum(worker.problem is None for worker in self._workers)
        return f"<BalancingPlugin {self.name}: {well} of {len(self._workers)} are well>"


async def _problem_of(worker: BalancedWorker) -> str | None:
    try:
        await worker.check_health()
    except StepflowError as exc:
        return worker.problem if is_local_lack(exc) else str(exc)
    except Exception as exc:  # noqa: BLE001 — whatever it is, it costs this worker and not the runtime
        _log.error("asking %s how it is failed", worker.url, exc_info=exc)
        return f"{type(exc).__name__}: {exc}"
    return None


def _names(components: Sequence[ComponentInfo]) -> set[str]:
    return {info.component for info in components}
