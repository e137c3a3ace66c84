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
from stepflow_trio.flows.model import Flow, Retry
from stepflow_trio.flows.plan import Plan, ReadyStep
from stepflow_trio.flows.results import Failed, FlowError, FlowResult, Success
from stepflow_trio.flows.schemas import FlowSchemas
from stepflow_trio.protocol.payloads import Observability
from stepflow_trio.runtime.events import RunEvent, StepEnded, StepRetrying, StepStarted
from stepflow_trio.runtime.plugins import FailureKind, Plugin, StepFailure, failure_from
from stepflow_trio.runtime.retries import RetryPolicy
from stepflow_trio.runtime.routing import Router
from stepflow_trio.runtime.timeouts import Timeouts

MAX_RETRY_AFTER_S = 300.0
"""A worker that asks for more patience than this does not get it."""


class Executor:
    """What the items of all runs have in common.

    ``record`` is awaited with each event before what it says is acted on; ``now`` is the clock of the events.
    """

    def __init__(
        self,
        plugins: Mapping[str, Plugin],
        router: Router,
        retry: RetryPolicy,
        timeouts: Timeouts,
        record: Callable[[RunEvent], Awaitable[None]],
        *,
        now: Callable[[], datetime],
        randomness: random.Random,
    ) -> None:
        self._plugins = plugins
        self._router = router
        self._retry = retry
        self._step_timeout_s = timeouts.step_s
        self._record = record
        self._now = now
        self._randomness = randomness

    async def execute_item(
        self,
        flow: Flow,
        input: Any,
        *,
        run_id: str,
        flow_id: str,
        trace_id: str,
        item_index: int,
        variables: Mapping[str, Any],
        schemas: FlowSchemas,
        deadline: float,
    ) -> FlowResult:
        """Run the flow once, its steps' outputs held to ``schemas``. Cancelling it cancels every step."""
        item = _Item(
            self,
            flow,
            Plan(flow, input, variables=variables),
            run_id=run_id,
            flow_id=flow_id,
            trace_id=trace_id,
            index=item_index,
            schemas=schemas,
            deadline=deadline,
        )
        return await item.execute()

    async def execute_step(self, item: _Item, ready: ReadyStep) -> FlowResult:
        """Execute a step until it has a final result, with both retry budgets."""
        step = ready.step
        component_budget = step.on_error.max_retries if isinstance(step.on_error, Retry) else 0
        transport_budget = self._retry.transport_max_retries
        attempt = 0
        while True:
            attempt += 1
            await self._record(
                StepStarted(
                    run_id=item.run_id,
                    item_index=item.index,
                    at=self._now(),
                    step_id=step.id,
                    component=step.component,
                    attempt=attempt,
                )
            )
            try:
                output = await self._attempt(item, ready, attempt)
                misfit = item.schemas.check_step_output(step.id, output)
                if misfit is not None:
                    raise StepFailure(misfit, FailureKind.COMPONENT)
                return Success(output)
            except StepFailure as failure:
                if failure.kind is FailureKind.TRANSPORT and transport_budget > 0:
                    transport_budget -= 1
                elif failure.kind is FailureKind.COMPONENT and component_budget > 0:
                    component_budget -= 1
                else:
                    return Failed(failure.error)
                asked_s = min(failure.retry_after_s, MAX_RETRY_AFTER_S)
                delay_s = max(self._retry.delay_s(attempt, self._randomness), asked_s)
                await self._record(
                    StepRetrying(
                        run_id=item.run_id,
                        item_index=item.index,
                        at=self._now(),
                        step_id=step.id,
                        attempt=attempt,
                        delay_s=delay_s,
                        error=failure.error,
                    )
                )
            await trio.sleep(delay_s)

    async def _attempt(self, item: _Item, ready: ReadyStep, attempt: int) -> Any:
        try:
            target = self._router.resolve(ready.step.component, ready.input)
        except RpcError as exc:
            raise failure_from(exc) from exc
        plugin = self._plugins[target.plugin]
        # Both of the first two always: public workers send none of the five back without them.
        observability = Observability(
            trace_id=item.trace_id,
            span_id=item.span_id(ready.step.id),
            run_id=item.run_id,
            flow_id=item.flow_id,
            step_id=ready.step.id,
        )
        timeout_s = ready.step.timeout_s or self._step_timeout_s
        if timeout_s == math.inf:
            return await plugin.execute(
                target.component,
                ready.input,
                attempt=attempt,
                observability=observability,
                deadline=item.deadline,
            )
        deadline = trio.current_time() + timeout_s
        with trio.move_on_at(deadline):
            return await plugin.execute(
                target.component,
                ready.input,
                attempt=attempt,
                observability=observability,
                deadline=min(deadline, item.deadline),
            )
        message = f'step "{ready.step.id}" was not done within {timeout_s:g} s'
        raise StepFailure(
            FlowError(ErrorCode.STEP_TIMED_OUT, message, {"timeout_s": timeout_s}), FailureKind.COMPONENT
        )

    async def record_step(self, item: _Item, step_id: str, result: FlowResult) -> None:
        """Record a step's final result."""
        await self._record(
            StepEnded(
                run_id=item.run_id, item_index=item.index, at=self._now(), step_id=step_id, result=result
            )
        )


class _Item:
    """One item while it runs. All of its state is the plan's, which its recorded results rebuild."""

    def __init__(
        self,
        executor: Executor,
        flow: Flow,
        plan: Plan,
        *,
        run_id: str,
        flow_id: str,
        trace_id: str,
        index: int,
        schemas: FlowSchemas,
        deadline: float,
    ) -> None:
        self._executor = executor
        self._plan = plan
        self._flow = flow
        self._executed: set[str] = set()
        self.run_id = run_id
        self.flow_id = flow_id
        self.trace_id = trace_id
        self.index = index
        self.schemas = schemas
        self.deadline = deadline

    def span_id(self, step_id: str) -> str:
        """Names this item's step in messages: the same for every attempt, and for no other item."""
        return blake2b(f"{self.run_id}/{self.index}/{step_id}".encode(), digest_size=8).hexdigest()

    async def execute(self) -> FlowResult:
        async with trio.open_nursery() as nursery:
            for ready in self._plan.take_ready():
                nursery.start_soon(self._execute_steps, ready, nursery, name=f"step {ready.step.id}")
        if len(self._executed) < len(self._flow.steps):
            await self._record_unexecuted()
        # The plan has concluded: it raises where nothing is left to record and nothing to conclude.
        return cast("FlowResult", self._plan.result)

    async def _execute_steps(self, ready: ReadyStep | None, nursery: trio.Nursery) -> None:
        while ready is not None:
            self._executed.add(ready.step.id)
            result = await self._executor.execute_step(self, ready)
            await self._executor.record_step(self, ready.step.id, result)
            self._plan.record(ready.step.id, result)
            # A chain stays in one task; only what really runs in parallel gets tasks of its own.
            following = self._plan.take_ready()
            ready = following[0] if following else None
            for other in following[1:]:
                nursery.start_soon(self._execute_steps, other, nursery, name=f"step {other.step.id}")

    async def _record_unexecuted(self) -> None:
        """Record the steps whose input could not be evaluated: they ended, though they never began."""
        for step in self._flow.steps:
            result = self._plan.result_of(step.id)
            if result is not None and step.id not in self._executed:
                await self._executor.record_step(self, step.id, result)
