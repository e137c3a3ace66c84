"""Runs one item of a run: a plan's steps over plugins, with retries."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from hashlib import blake2b
from typing import Any, cast

import trio

from stepflow_trio.errors import ErrorCode, RpcError
from stepflow_trio.flows.model import Retry
from stepflow_trio.flows.plan import Plan, PreparedFlow, ReadyStep
from stepflow_trio.flows.results import Failed, FlowError, FlowResult, Success
from stepflow_trio.flows.schemas import FlowSchemas
from stepflow_trio.protocol.payloads import Observability
from stepflow_trio.runtime.events import RunEvent, StepEnded, StepRetrying, StepStarted
from stepflow_trio.runtime.plugins import FailureKind, Plugin, StepFailure, failure_from
from stepflow_trio.runtime.progress import StepsAtWork
from stepflow_trio.runtime.retries import RetryPolicy
from stepflow_trio.runtime.routing import Router
from stepflow_trio.runtime.timeouts import Timeouts

MAX_RETRY_AFTER_S = 300.0
"""A worker that asks for more patience than this does not get it."""


_EVALUATIONS_AT_ONCE = 1000
_TASKS_STARTED_AT_ONCE = 256
_RECORDED_AT_ONCE = 256
"""In large flows other tasks get a turn after so many evaluations of inputs, so many steps that start
together, so many that are recorded without having been executed."""


class RunBasis:
    """What the items of one run have in common, found out once.

    Args:
        run_id: the run.
        flow_id: the flow's.
        trace_id: of all runs in one tree.
        prepared: the flow, with the run's variables.
        schemas: the flow's.
        deadline: when the run is given up, on ``trio.current_time()``'s clock.
    """

    __slots__ = (
        "_span_base",
        "deadline",
        "flow",
        "flow_id",
        "prepared",
        "run_id",
        "schemas",
        "trace_id",
    )

    def __init__(
        self,
        *,
        run_id: str,
        flow_id: str,
        trace_id: str,
        prepared: PreparedFlow,
        schemas: FlowSchemas,
        deadline: float,
    ) -> None:
        self.run_id = run_id
        self.flow = prepared.flow
        self.flow_id = flow_id
        self.trace_id = trace_id
        self.prepared = prepared
        self.schemas = schemas
        self.deadline = deadline
        self._span_base = int.from_bytes(blake2b(run_id.encode(), digest_size=8).digest())

    def span_id(self, item_index: int, step_id: str) -> str:
        """Names an item's step in messages: the same for every attempt, and for no other step of any item."""
        number = item_index * len(self.flow.steps) + self.prepared.position[step_id]
        return f"{(self._span_base + number) % 2**64:016x}"


class Executor:
    """What the items of all runs have in common.

    ``record`` is awaited with each event before what it says is acted on; ``now`` is the clock of the events;
    ``at_work`` is kept up with what is being executed.
    """

    def __init__(
        self,
        plugins: Mapping[str, Plugin],
        router: Router,
        retry: RetryPolicy,
        timeouts: Timeouts,
        record: Callable[[RunEvent], Awaitable[None]],
        at_work: StepsAtWork,
        *,
        now: Callable[[], datetime],
        randomness: random.Random,
    ) -> None:
        self._plugins = plugins
        self._router = router
        self._retry = retry
        self._step_timeout_s = timeouts.step_s
        self._record = record
        self._at_work = at_work
        self._now = now
        self._randomness = randomness

    async def execute_item(self, run: RunBasis, input: Any, item_index: int) -> FlowResult:
        """Run the flow once, its steps' outputs held to its schemas. Cancelling it cancels every step.

        Other tasks get a turn, however little there is to do.
        """
        plan = Plan(run.prepared, input, at_once=_EVALUATIONS_AT_ONCE)
        return await _Item(self, run, plan, item_index).execute()

    async def execute_step(self, item: _Item, ready: ReadyStep) -> FlowResult:
        """Execute a step until it has a final result, with both retry budgets, and record that."""
        run, step = item.run, ready.step
        component_budget = step.on_error.max_retries if isinstance(step.on_error, Retry) else 0
        transport_budget = self._retry.transport_max_retries
        attempt = 0
        while True:
            attempt += 1
            await self._record(
                StepStarted(
                    run_id=run.run_id,
                    item_index=item.index,
                    at=self._now(),
                    step_id=step.id,
                    component=step.component,
                    attempt=attempt,
                )
            )
            try:
                output = await self._attempt(item, ready, attempt)
                misfit = run.schemas.check_step_output(step.id, output)
                if misfit is not None:
                    raise StepFailure(misfit, FailureKind.COMPONENT)
                result = Success(output)
                break
            except StepFailure as failure:
                if failure.kind is FailureKind.TRANSPORT and transport_budget > 0:
                    transport_budget -= 1
                elif failure.kind is FailureKind.COMPONENT and component_budget > 0:
                    component_budget -= 1
                else:
                    # It may have failed before there was anything to wait for.
                    await trio.lowlevel.checkpoint()
                    result = Failed(failure.error)
                    break
                asked_s = min(failure.retry_after_s, MAX_RETRY_AFTER_S)
                delay_s = max(self._retry.delay_s(attempt, self._randomness), asked_s)
                await self._record(
                    StepRetrying(
                        run_id=run.run_id,
                        item_index=item.index,
                        at=self._now(),
                        step_id=step.id,
                        attempt=attempt,
                        delay_s=delay_s,
                        error=failure.error,
                    )
                )
            await trio.sleep(delay_s)
        await self.record_step(item, step.id, result)
        return result

    async def _attempt(self, item: _Item, ready: ReadyStep, attempt: int) -> Any:
        try:
            target = self._router.resolve(ready.step.component, ready.input)
        except RpcError as exc:
            raise failure_from(exc) from exc
        plugin = self._plugins[target.plugin]
        run = item.run
        # Both of the first two always: public workers send none of the five back without them.
        observability = Observability(
            trace_id=run.trace_id,
            span_id=run.span_id(item.index, ready.step.id),
            run_id=run.run_id,
            flow_id=run.flow_id,
            step_id=ready.step.id,
        )
        timeout_s = ready.step.timeout_s or self._step_timeout_s
        self._at_work.begin(observability, item.index)
        try:
            if timeout_s == math.inf:
                return await plugin.execute(
                    target.component,
                    ready.input,
                    attempt=attempt,
                    observability=observability,
                    deadline=run.deadline,
                )
            deadline = trio.current_time() + timeout_s
            with trio.move_on_at(deadline):
                return await plugin.execute(
                    target.component,
                    ready.input,
                    attempt=attempt,
                    observability=observability,
                    deadline=min(deadline, run.deadline),
                )
        finally:
            self._at_work.end(observability)
        message = f'step "{ready.step.id}" was not done within {timeout_s:g} s'
        raise StepFailure(
            FlowError(ErrorCode.STEP_TIMED_OUT, message, {"timeout_s": timeout_s}), FailureKind.COMPONENT
        )

    async def record_step(self, item: _Item, step_id: str, result: FlowResult) -> None:
        """Record a step's final result."""
        await self._record(
            StepEnded(
                run_id=item.run.run_id,
                item_index=item.index,
                at=self._now(),
                step_id=step_id,
                result=result,
            )
        )


class _Item:
    """One item while it runs. All of its state is the plan's, which its recorded results rebuild."""

    __slots__ = ("_executed", "_executor", "_plan", "index", "run")

    def __init__(self, executor: Executor, run: RunBasis, plan: Plan, index: int) -> None:
        self._executor = executor
        self._plan = plan
        self._executed: set[str] = set()
        self.run = run
        self.index = index

    async def execute(self) -> FlowResult:
        ready = await self._take_ready()
        if not ready:
            await trio.lowlevel.checkpoint()
        # Only what really runs in parallel gets tasks of its own: a chain stays in one, and needs no other.
        while len(ready) == 1:
            ready = await self._execute_step(ready[0])
        if ready:
            async with trio.open_nursery() as nursery:
                await self._execute_steps(ready, nursery)
        if len(self._executed) < len(self.run.flow.steps):
            await self._record_unexecuted()
        # The plan has concluded: it raises where nothing is left to record and nothing to conclude.
        return cast("FlowResult", self._plan.result)

    async def _execute_steps(self, ready: list[ReadyStep], nursery: trio.Nursery) -> None:
        """Execute the first in this task, with what follows, the others and what follows them beside it."""
        while ready:
            for number, other in enumerate(ready[1:], 1):
                nursery.start_soon(self._execute_steps, [other], nursery, name=f"step {other.step.id}")
                if number % _TASKS_STARTED_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            ready = await self._execute_step(ready[0])

    async def _execute_step(self, ready: ReadyStep) -> list[ReadyStep]:
        """Execute one step; the ones that may start now."""
        self._executed.add(ready.step.id)
        result = await self._executor.execute_step(self, ready)
        self._plan.record(ready.step.id, result)
        return await self._take_ready()

    async def _take_ready(self) -> list[ReadyStep]:
        """The steps that may start now. No checkpoint, unless there is much to evaluate."""
        while self._plan.is_behind:
            await trio.lowlevel.checkpoint()
            self._plan.catch_up()
        return self._plan.take_ready()

    async def _record_unexecuted(self) -> None:
        """Record the steps whose input could not be evaluated: they ended, though they never began."""
        recorded = 0
        for step in self.run.flow.steps:
            result = self._plan.result_of(step.id)
            if result is not None and step.id not in self._executed:
                await self._executor.record_step(self, step.id, result)
                recorded += 1
                if recorded % _RECORDED_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
