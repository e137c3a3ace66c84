"""The runs of one runtime: how they start, who they belong to, how they end."""

from __future__ import annotations

import logging
import math
import secrets
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import trio

from stepflow_trio.engine.ending import last_words
from stepflow_trio.errors import ErrorCode, LocalProtocolError, RpcError
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.plan import PreparedFlow
from stepflow_trio.flows.results import Failed, FlowError, FlowResult, Success
from stepflow_trio.flows.schemas import FlowSchemas
from stepflow_trio.flows.value_bounds import excess_of
from stepflow_trio.protocol import codec
from stepflow_trio.runtime.events import ItemEnded, RunEnded, RunEvent, RunStarted
from stepflow_trio.runtime.executor import Executor, RunBasis
from stepflow_trio.runtime.large_flows import beside_the_loop
from stepflow_trio.runtime.recent_flows import RecentFlows
from stepflow_trio.runtime.redaction import Redaction
from stepflow_trio.runtime.stores import RunRecord

MAX_DEPTH = 64
"""How deep runs may nest. One that submits itself would go on until this process's stack is used up."""

_log = logging.getLogger("stepflow_trio.runtime")

DEFAULT_MAX_CONCURRENCY = 100
"""Items of one run that are in flight at once, where the submission does not say."""

_WHOLE_FROM_S = 10
"""Times that are measured are told in whole seconds from here on, shorter ones with two digits."""

RECORD_WITHIN_S = 5.0
"""How long the store may take to record that a run was cancelled; whoever cancelled it waits to leave."""


class Run:
    """A run that was submitted to a runtime in this process.

    Its items, their steps and the runs that its components submit are one tree of tasks: cancelling the run
    cancels all of them.
    """

    def __init__(
        self,
        *,
        run_id: str,
        flow: Flow,
        flow_id: str,
        schemas: FlowSchemas,
        prepared: PreparedFlow,
        inputs: Sequence[Any],
        variables: Mapping[str, Any],
        max_concurrency: int,
        deadline: float,
        timeout_s: float | None,
        depth: int,
        trace_id: str,
        root_id: str,
        above: tuple[str, ...],
        redaction: Redaction,
    ) -> None:
        self.id = run_id
        self.flow = flow
        self.flow_id = flow_id
        self.inputs = inputs
        self.variables = variables
        self.max_concurrency = max_concurrency
        self.deadline = deadline
        """When it is given up, on ``trio.current_time()``'s clock."""
        self._timeout_s = timeout_s
        """How long it may take, where its deadline was said in that way."""
        self.depth = depth
        """How many runs it is below; 0 where none submitted it."""
        self.trace_id = trace_id
        """32 hex digits that this run and all below it have in common."""
        self.root_id = root_id
        """The topmost run above it, or itself."""
        self.above = above
        """The ids of the runs above it, the one that submitted it last."""
        """The run whose component submitted it."""
        self.results: list[FlowResult | None] = [None] * len(inputs)
        """One for each input; None until that item has ended, and for ever where it was cancelled.

        Successes are as they are; what is on record of them is without secrets, and so are failures."""
        self.status = "running"
        """running, completed, failed or cancelled; the last three are final."""
        self.subflows: dict[str, Run] = {}
        """The runs that its components submitted, by their subflow keys."""
        self.hidden_results: dict[str, Sequence[FlowResult | None]] = {}
        """Of the runs below it that are over, by their ids, where the record is without their secrets."""
        self.nursery: trio.Nursery | None = None
        """Where the runs that its components submit live; None unless its items are at work."""
        self._redaction = redaction
        self._schemas = schemas
        self._prepared = prepared
        self._begun_at = trio.current_time()
        self._scope = trio.CancelScope()
        self._recorded = trio.Event()
        self._over = trio.Event()

    @property
    def is_cancelled(self) -> bool:
        """Whether it is, or will be as soon as everything in it has left."""
        return self._scope.cancel_called and self.status in ("running", "cancelled")

    def is_submission_of(self, flow: Flow, inputs: Sequence[Any]) -> bool:
        """Whether it was submitted with exactly this flow and these inputs."""
        return self.flow == flow and codec.encode_json(self.inputs) == codec.encode_json(inputs)

    def cancel(self) -> None:
        """Cancel it and everything that belongs to it; nothing happens where it is over.

        Returns at once. :meth:`wait` returns when every component has been told and the run has ended.
        """
        self._scope.cancel(reason=f"run {self.id} was cancelled")

    def note_recorded(self) -> None:
        """Its start is on record: whoever found it by its key may ask the store for it."""
        self._recorded.set()

    async def wait_recorded(self) -> None:
        """Wait until its start is on record, or is known not to be."""
        await self._recorded.wait()

    async def wait(self) -> None:
        """Wait until it is over. Cancelling the waiter leaves the run as it is."""
        await self._over.wait()

    async def wait_as_owner(self, *, within_s: float = math.inf) -> None:
        """Wait until it is over, but at most ``within_s`` seconds. Cancelling the waiter cancels the run."""
        try:
            with trio.move_on_after(within_s):
                await self._over.wait()
        except trio.Cancelled:
            self.cancel()
            raise

    async def drive(
        self, executor: Executor, record: Callable[[RunEvent], Awaitable[None]], now: Callable[[], datetime]
    ) -> None:
        """Run it to its end; called once, in the task that owns it. Raises nothing but ``Cancelled``.

        A fault of ours, or of the store's, costs this run and not the runtime.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self.nursery = nursery
                    try:
                        await self._execute_items(executor, record, now)
                        failed = any(isinstance(result, Failed) for result in self.results)
                        await self._end("failed" if failed else "completed", record, now)
                    finally:
                        # Runs that components submitted without waiting for them may still be at work: this
                        # task stays until they are over, and cancelling this run still reaches them.
                        self.nursery = None
                        if self.status == "running":
                            self.cancel()
        except* Exception as faults:  # noqa: BLE001 — as said; ``Cancelled`` beside them goes on
            _log.error("run %s did not end in order", self.id, exc_info=faults)
        finally:
            if self.status == "running":
                # Whoever cancelled it, itself or what it belongs to: that it was must be on record.
                end = partial(self._end, "cancelled", record, now)
                if not await last_words(end, within_s=RECORD_WITHIN_S):
                    _log.error("that run %s was cancelled was not recorded in time", self.id)
            self.give_up()

    def give_up(self) -> None:
        """Wake whoever waits for it, although it has not come to an end or never began."""
        if self.status == "running":
            self.status = "cancelled"
        self._recorded.set()
        self._over.set()

    async def _execute_items(
        self, executor: Executor, record: Callable[[RunEvent], Awaitable[None]], now: Callable[[], datetime]
    ) -> None:
        indices = iter(range(len(self.inputs)))
        basis = RunBasis(
            run_id=self.id,
            flow_id=self.flow_id,
            trace_id=self.trace_id,
            prepared=self._prepared,
            schemas=self._schemas,
            deadline=self.deadline,
        )

        async def execute_some() -> None:
            # So many of these as may run at once share the iterator: no task waits for its turn.
            for index in indices:
                try:
                    result = await self._execute_item(executor, basis, index)
                except Exception as exc:  # noqa: BLE001 — a fault of ours costs this item, not the run
                    result = self._fault(index, exc)
                if isinstance(result, Failed):
                    result = self._redaction.failure(self.id, result)
                # Observers are shown what goes on record; whoever may have all of it finds it here by then.
                self.results[index] = result
                try:
                    await record(ItemEnded(run_id=self.id, item_index=index, at=now(), result=result))
                except trio.Cancelled:
                    self.results[index] = None
                    raise
                except Exception as exc:  # noqa: BLE001 — what is not on record was not achieved
                    self.results[index] = self._fault(index, exc)

        if len(self.inputs) == 1:
            await execute_some()
            return
        async with trio.open_nursery() as nursery:
            for _ in range(min(self.max_concurrency, len(self.inputs))):
                nursery.start_soon(execute_some, name=f"items of run {self.id}")

    async def _execute_item(self, executor: Executor, basis: RunBasis, index: int) -> FlowResult:
        schemas, input = self._schemas, self.inputs[index]
        refused = schemas.check_input(input) or schemas.check_variables(
            self.variables, inherited=self.depth > 0
        )
        if refused is not None:
            await trio.lowlevel.checkpoint()
            return Failed(refused)
        if self.deadline == math.inf:
            result = await executor.execute_item(basis, input, index)
        else:
            result = await self._run_item_in_time(executor, basis, index)
        if not isinstance(result, Success):
            return result
        if self._prepared.puts_output_together:
            excess = await beside_the_loop(self.flow, partial(excess_of, result.result))
            if excess is not None:
                message = f"the output cannot be delivered: {excess}"
                return Failed(FlowError(ErrorCode.INVALID_VALUE, message))
        misfit = schemas.check_output(result.result)
        return Failed(misfit) if misfit is not None else result

    async def _run_item_in_time(self, executor: Executor, basis: RunBasis, index: int) -> FlowResult:
        with trio.CancelScope(deadline=self.deadline):
            return await executor.execute_item(basis, self.inputs[index], index)
        # Whoever waits for it as its owner may have had the same deadline: then it is being cancelled.
        await trio.lowlevel.checkpoint()
        timeout_s = self._timeout_s
        if timeout_s is None:
            # Of a time on a clock, some was gone when this began: no digits that nobody gave.
            left_s = self.deadline - self._begun_at
            timeout_s = float(round(left_s) if left_s >= _WHOLE_FROM_S else f"{left_s:.2g}")
        message = f"the run was not over within {timeout_s:g} s"
        return Failed(FlowError(ErrorCode.RUN_TIMED_OUT, message, {"timeout_s": timeout_s}))

    def _fault(self, index: int, exc: Exception) -> FlowResult:
        incident = secrets.token_hex(4)
        _log.error("item %d of run %s failed, incident %s", index, self.id, incident, exc_info=exc)
        data = {"incident": incident}
        return Failed(FlowError(ErrorCode.RUNTIME_INTERNAL, "internal error of the runtime", data))

    async def _end(
        self, status: str, record: Callable[[RunEvent], Awaitable[None]], now: Callable[[], datetime]
    ) -> None:
        try:
            await record(RunEnded(run_id=self.id, at=now(), status=status))
        except Exception:  # noqa: BLE001 — the items are on record, and those who wait can be told
            _log.exception("that run %s is %s could not be recorded", self.id, status)
        self.status = status
        self._over.set()

    def __repr__(self) -> str:
        done = sum(result is not None for result in self.results)
        return f"<Run {self.id} {self.status}: {done} of {len(self.results)} items ended>"


class Runs:
    """Starts runs and finds them again; ``on_left`` is told the id of one that is no longer at work."""

    def __init__(
        self,
        executor: Executor,
        record: Callable[[RunEvent], Awaitable[None]],
        *,
        nursery: trio.Nursery,
        now: Callable[[], datetime],
        new_id: Callable[[], uuid.UUID],
        on_left: Callable[[str], object],
        redaction: Redaction,
        run_timeout_s: float = math.inf,
        enforce_schemas: bool = True,
    ) -> None:
        self._executor = executor
        self._record = record
        self._nursery = nursery
        self._now = now
        self._new_id = new_id
        self._on_left = on_left
        self._redaction = redaction
        self._run_timeout_s = run_timeout_s
        self._enforce_schemas = enforce_schemas
        self._flows: RecentFlows[int, tuple[FlowSchemas, PreparedFlow]] = RecentFlows()
        """What runs of one flow have in common, those without variables; by the flow's identity."""
        self._active: dict[str, Run] = {}
        self._closed = False

    def close(self) -> None:
        """Cancel the runs that are at work, and start no further ones."""
        self._closed = True
        self._nursery.cancel_scope.cancel(reason="the runtime is closed")

    def check_open(self) -> None:
        """Raise :class:`LocalProtocolError` once this is closed."""
        if self._closed:
            raise LocalProtocolError("this runtime is closed: its block has been left")

    def is_flow_at_work(self, flow_id: str) -> bool:
        """Whether a run of this flow is at work."""
        return any(run.flow_id == flow_id for run in self._active.values())

    def is_at_work(self, run_id: str) -> bool:
        """Whether this run, or one below it, is at work."""
        return run_id in self._active or any(run_id in run.above for run in self._active.values())

    def active(self, run_id: str | None) -> Run | None:
        """The run of this id, as long as it or a run below it is at work."""
        return self._active.get(run_id) if run_id is not None else None

    def hidden_results(self, record: RunRecord) -> Sequence[FlowResult | None] | None:
        """Of a run below one that is at work: its results with their secrets, for the components of that one.

        None where there is no such run, or nothing to hide in it.
        """
        parent = self.active(record.parent_run_id)
        if parent is None:
            return None
        run = self.active(record.run_id)
        return run.results if run is not None else parent.hidden_results.get(record.run_id)

    async def submit(
        self,
        flow: Flow,
        flow_id: str,
        inputs: Sequence[Any],
        *,
        variables: Mapping[str, Any],
        max_concurrency: int | None = None,
        parent: Run | None = None,
        subflow_key: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        submission_digest: str | None = None,
        deadline: float = float("inf"),
        timeout_s: float | None = None,
    ) -> Run:
        """Record and start a run. It belongs to ``parent`` as long as that is at work, else to the runtime.

        With a ``subflow_key`` that ``parent`` has seen with the same flow and inputs, return that run, unless
        it failed or was cancelled. Cancelled, it has started nothing.

        ``flow`` is what runs: the flow of this id with ``overrides`` applied, which are recorded, as are the
        ``idempotency_key`` and the ``submission_digest``. ``timeout_s`` is what the ``deadline`` was said as.

        Raises:
            LocalProtocolError: this is closed.
            FlowInvalid: schemas of the flow cannot be used.
            RpcError: −32004, runs nest too deep.
        """
        self.check_open()
        depth = 0 if parent is None else parent.depth + 1
        if depth > MAX_DEPTH:
            message = f"runs nest deeper than {MAX_DEPTH} levels: does a flow submit itself?"
            raise RpcError(ErrorCode.INVALID_VALUE, message)
        while parent is not None and subflow_key is not None:
            known = parent.subflows.get(subflow_key)
            # Keys are made by workers, and some make the same one for different submissions.
            if known is None or not known.is_submission_of(flow, inputs):
                break
            await known.wait_recorded()
            if known.status in ("running", "completed") and not known.is_cancelled:
                return known
            if parent.subflows[subflow_key] is known:
                break  # else another one has started it anew in the meantime
        configured = trio.current_time() + self._run_timeout_s
        if parent is None and configured < deadline:
            deadline, timeout_s = configured, self._run_timeout_s
        run_id = self._new_id()
        known_flow = self._flows.get(id(flow))
        if known_flow is None:
            known_flow = FlowSchemas(flow, enforce_schemas=self._enforce_schemas), PreparedFlow(flow)
            self._flows.put(id(flow), flow, known_flow)
        schemas, prepared = known_flow
        parent_id = parent.id if parent is not None else None
        run = Run(
            run_id=str(run_id),
            flow=flow,
            flow_id=flow_id,
            schemas=schemas,
            prepared=PreparedFlow(flow, variables) if variables else prepared,
            inputs=inputs,
            variables=variables,
            max_concurrency=max_concurrency or DEFAULT_MAX_CONCURRENCY,
            deadline=deadline,
            timeout_s=timeout_s,
            depth=depth,
            trace_id=parent.trace_id if parent is not None else run_id.hex,
            root_id=parent.root_id if parent is not None else str(run_id),
            above=() if parent is None else (*parent.above, parent.id),
            redaction=self._redaction,
        )
        if parent is not None and subflow_key is not None:
            parent.subflows[subflow_key] = run
        # Before it is on record: whoever finds it there finds it here as long as it is at work.
        self._active[run.id] = run
        self._redaction.begin(run.id, schemas.secrets, variables, parent_run_id=parent_id)
        try:
            await self._record(
                RunStarted(
                    run_id=run.id,
                    at=self._now(),
                    flow_id=flow_id,
                    flow_name=flow.name,
                    inputs=inputs,
                    variables=variables,
                    max_concurrency=run.max_concurrency,
                    overrides=overrides,
                    parent_run_id=parent_id,
                    root_run_id=run.root_id,
                    depth=depth,
                    idempotency_key=idempotency_key,
                    submission_digest=submission_digest,
                )
            )
        except BaseException:
            del self._active[run.id]
            self._redaction.end(run.id)
            run.give_up()
            self._on_left(run.id)
            raise
        run.note_recorded()
        if self._closed or (parent is not None and parent.is_cancelled):
            # It came too late to begin. That it is over goes on record as its start did.
            run.cancel()
            await self._own(run)
            return run
        owner = parent.nursery if parent is not None and parent.nursery is not None else self._nursery
        owner.start_soon(self._own, run, name=f"run {run.id}")
        return run

    async def _own(self, run: Run) -> None:
        try:
            await run.drive(self._executor, self._record, self._now)
        finally:
            del self._active[run.id]
            parent = self.active(run.above[-1] if run.above else None)
            if self._redaction.end(run.id) and parent is not None:
                parent.hidden_results[run.id] = run.results
            self._on_left(run.id)


def outcome_of(run: Run, index: int = 0) -> FlowResult:
    """An item's result; of an item that was cancelled, a failure that says so."""
    result = run.results[index]
    if result is None:
        return Failed(FlowError(ErrorCode.REQUEST_CANCELLED, "the run was cancelled"))
    return result
