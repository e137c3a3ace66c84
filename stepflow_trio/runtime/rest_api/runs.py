"""Runs: started, looked at, cancelled, deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import trio

from stepflow_trio.errors import FlowNotFound, LocalProtocolError
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.overrides import apply_overrides
from stepflow_trio.flows.plan import StepStatus
from stepflow_trio.flows.reader import examine_flow_json
from stepflow_trio.protocol.payloads import ItemStatistics
from stepflow_trio.runtime.callbacks import DEFAULT_WAIT_S
from stepflow_trio.runtime.rest_api.errors import ApiError, shown
from stepflow_trio.runtime.rest_api.flows import TOTAL_COUNT
from stepflow_trio.runtime.rest_api.payloads import (
    CreateRunRequest,
    CreateRunResponse,
    GetRunQuery,
    ItemDetails,
    ItemResultInfo,
    ItemsQuery,
    ListItemsResponse,
    ListRunsQuery,
    ListRunsResponse,
    ListStepRunsResponse,
    RunDetails,
    RunFlowResponse,
    RunSummary,
    StepRunInfo,
    StepsQuery,
    StepStatusInfo,
)
from stepflow_trio.runtime.rest_api.requests import Answer, ReceiveBody, Request, as_run_id, json_answer
from stepflow_trio.runtime.rest_api.routes import Route
from stepflow_trio.runtime.runtime import Runtime
from stepflow_trio.runtime.step_records import StepRecord, all_step_records, step_records, worst_status
from stepflow_trio.runtime.stores import RecordedEvent, RunQuery, RunRecord, status_of

CANCEL_WITHIN_S = 30.0
"""The answer to a cancellation waits so long for the components to end; then the run is still ``running``."""

MAX_KEY_CHARACTERS = 255

_ITEMS_BETWEEN_TURNS = 500
_EVENTS_BETWEEN_TURNS = 10_000
"""So many are looked at before other tasks get a turn."""


class RunRoutes:
    """``/runs``, but for their events."""

    def __init__(self, runtime: Runtime, receive_body: ReceiveBody) -> None:
        self._runtime = runtime
        self._history = runtime.history
        self._receive_body = receive_body

    def routes(self) -> Iterator[Route]:
        """What these functions serve."""
        yield Route(
            method="POST",
            path="/runs",
            operation="create_run",
            summary="Start a run; 202 unless `wait` asks for its end",
            handle=self._create,
            body=CreateRunRequest,
            headers={
                "Idempotency-Key": "Names the submission: sent again with the same body, it leads to the "
                "same run; with another one, to 422."
            },
            answers={200: CreateRunResponse, 202: CreateRunResponse},
            errors=(400, 404, 413, 415, 422),
        )
        yield Route(
            method="GET",
            path="/runs",
            operation="list_runs",
            summary="Runs, the latest first; the number of those that fit is in X-Total-Count too",
            handle=self._list,
            query=ListRunsQuery,
            answers={200: ListRunsResponse},
            errors=(400,),
        )
        yield Route(
            method="GET",
            path="/runs/{run_id}",
            operation="get_run",
            summary="How a run and its items stand",
            handle=self._get,
            query=GetRunQuery,
            answers={200: RunDetails},
            errors=(400, 404),
        )
        yield Route(
            method="GET",
            path="/runs/{run_id}/items",
            operation="get_run_items",
            summary="What a run's items came to, as far as they have ended",
            handle=self._items,
            query=ItemsQuery,
            answers={200: ListItemsResponse},
            errors=(400, 404),
        )
        yield Route(
            method="GET",
            path="/runs/{run_id}/flow",
            operation="get_run_flow",
            summary="The flow that a run was submitted with",
            handle=self._flow,
            answers={200: RunFlowResponse},
            errors=(400, 404),
        )
        yield Route(
            method="GET",
            path="/runs/{run_id}/steps",
            operation="get_run_steps",
            summary="How the steps of a run, or of one of its items, stand",
            handle=self._steps,
            query=StepsQuery,
            answers={200: ListStepRunsResponse},
            errors=(400, 404),
        )
        yield Route(
            method="POST",
            path="/runs/{run_id}/cancel",
            operation="cancel_run",
            summary="Cancel a run, with every component that is at work for it; 409 if it has ended",
            handle=self._cancel,
            answers={200: RunSummary},
            errors=(400, 404, 409),
        )
        yield Route(
            method="DELETE",
            path="/runs/{run_id}",
            operation="delete_run",
            summary="Remove a run and those below it; 409 while one of them is at work",
            handle=self._delete,
            answers={200: None},
            errors=(400, 404, 409),
        )

    # ---- starting and ending ------------------------------------------------------------------------------

    async def _create(self, request: Request) -> Answer:
        asked = await request.json(CreateRunRequest, self._receive_body)
        if asked.max_concurrency == 0:
            raise ApiError(400, "maxConcurrency must be at least 1")
        overrides: dict[str, Any] | None = None
        if asked.overrides is not None:
            patches = asked.overrides.steps.items()
            overrides = {"steps": {id_: {"$type": each.type, "value": each.value} for id_, each in patches}}
        try:
            run_id = await self._runtime.submit_stored(
                asked.flow_id,
                asked.input,
                variables=asked.variables,
                overrides=overrides,
                max_concurrency=asked.max_concurrency,
                idempotency_key=_key_of(request),
            )
        except LocalProtocolError as exc:
            raise ApiError(400, str(exc)) from exc
        if not asked.wait:
            record = await self._history.get(run_id)
            return json_answer(202, CreateRunResponse(**_summary(record)))
        record = await self._wait(request, run_id, asked.timeout_secs)
        results = (
            None if record.status == "running" else await _item_results(record, range(len(record.items)))
        )
        return json_answer(200, CreateRunResponse(**_summary(record), results=results))

    async def _wait(self, request: Request, run_id: str, timeout_secs: int | None) -> RunRecord:
        within_s = DEFAULT_WAIT_S if timeout_secs is None else timeout_secs
        return await request.while_connected(partial(self._history.wait, run_id, within_s=within_s))

    async def _cancel(self, request: Request) -> Answer:
        cancel = partial(self._history.cancel, request.run_id(), within_s=CANCEL_WITHIN_S)
        return json_answer(200, RunSummary(**_summary(await request.while_connected(cancel))))

    async def _delete(self, request: Request) -> Answer:
        await self._history.delete(request.run_id())
        return Answer(200)

    # ---- looking ------------------------------------------------------------------------------------------

    async def _list(self, request: Request) -> Answer:
        asked = request.query(ListRunsQuery)
        query = RunQuery(
            status=asked.status,
            flow_name=asked.flow_name,
            root_run_id=_filter(asked.root_run_id, "rootRunId"),
            parent_run_id=_filter(asked.parent_run_id, "parentRunId"),
            roots_only=asked.roots_only,
            max_depth=asked.max_depth,
            limit=asked.limit,
            offset=asked.offset,
        )
        page = await self._history.list_runs(query)
        runs = [RunSummary(**_summary(record)) for record in page.runs]
        headers = ((TOTAL_COUNT, b"%d" % page.total),)
        return json_answer(200, ListRunsResponse(runs=runs, total=page.total), headers)

    async def _get(self, request: Request) -> Answer:
        asked = request.query(GetRunQuery)
        run_id = request.run_id()
        if asked.wait:
            record = await self._wait(request, run_id, asked.timeout_secs)
        else:
            record = await self._history.get(run_id)
        of_items = await _by_item(await self._history.events(run_id))
        details: list[ItemDetails] = []
        flow = await self._flow_of(record)
        for index, item in enumerate(record.items):
            if index % _ITEMS_BETWEEN_TURNS == _ITEMS_BETWEEN_TURNS - 1:
                await trio.lowlevel.checkpoint()
            is_over = item.result is not None or record.status != "running"
            steps = step_records(of_items.get(index, ()), is_over=is_over, flow=flow)
            details.append(
                ItemDetails(
                    item_index=index,
                    input=record.inputs[index],
                    status=_item_status(record, index),
                    steps=[StepStatusInfo(step_id=id_, status=s.status.value) for id_, s in steps.items()],
                    completed_at=item.completed_at,
                )
            )
        overrides = None if record.overrides is None else dict(record.overrides)
        return json_answer(200, RunDetails(**_summary(record), item_details=details, overrides=overrides))

    async def _items(self, request: Request) -> Answer:
        asked = request.query(ItemsQuery)
        record = await self._history.get(request.run_id())
        total = len(record.items)
        end = total if asked.limit is None else min(total, asked.offset + asked.limit)
        items = await _item_results(record, range(min(asked.offset, total), end))
        headers = ((TOTAL_COUNT, b"%d" % total),)
        return json_answer(200, ListItemsResponse(item_count=total, items=items), headers)

    async def _flow(self, request: Request) -> Answer:
        record = await self._history.get(request.run_id())
        flow = await self._runtime.flows.get(record.flow_id)
        return json_answer(200, RunFlowResponse(flow=flow.to_json(), flow_id=record.flow_id))

    async def _steps(self, request: Request) -> Answer:
        asked = request.query(StepsQuery)
        run_id = request.run_id()
        record = await self._history.get(run_id)
        index = asked.item_index
        if index is not None and index >= len(record.items):
            raise ApiError(400, f"there is no item {index}: the run has {len(record.items)}")
        events = await self._history.events(run_id, item_index=index)
        flow = await self._flow_of(record)
        if index is None:
            return json_answer(200, ListStepRunsResponse(steps=await _steps_together(record, events, flow)))
        is_over = record.items[index].result is not None or record.status != "running"
        if flow is not None:
            steps = all_step_records(flow, events, is_over=is_over)
        else:
            steps = step_records(events, is_over=is_over)
        infos = {id_: _step_info(step) for id_, step in steps.items()}
        return json_answer(200, ListStepRunsResponse(steps=infos))

    async def _flow_of(self, record: RunRecord) -> Flow | None:
        """What a run executes, its overrides applied; None if the flow was deleted."""
        try:
            flow = await self._runtime.flows.get(record.flow_id)
        except FlowNotFound:
            return None
        if record.overrides is None:
            return flow
        return examine_flow_json(apply_overrides(flow.to_json(), record.overrides)).flow


def _filter(text: str | None, what: str) -> str | None:
    return None if text is None else as_run_id(text, what)


def _key_of(request: Request) -> str | None:
    key = request.headers.get(b"idempotency-key")
    if key is None:
        return None
    text = key.decode("latin-1")
    if not (text.isascii() and text.isprintable() and 0 < len(text) <= MAX_KEY_CHARACTERS):
        what = f"up to {MAX_KEY_CHARACTERS} printable ASCII characters, not {shown(text)}"
        raise ApiError(400, f"Idempotency-Key is {what}")
    return text


def _summary(record: RunRecord) -> dict[str, Any]:
    """The fields of a `RunSummary`."""
    unfinished = len(record.items) - record.finished_items
    is_running = record.status == "running"
    return {
        "run_id": record.run_id,
        "flow_id": record.flow_id,
        "flow_name": record.flow_name,
        "status": record.status,
        "items": ItemStatistics(
            total=len(record.items),
            completed=record.finished_items - record.failed_items,
            running=unfinished if is_running else 0,
            failed=record.failed_items,
            cancelled=0 if is_running else unfinished,
        ),
        "created_at": record.created_at,
        "completed_at": record.completed_at,
        "root_run_id": record.root_run_id,
        "parent_run_id": record.parent_run_id,
        "created_at_seqno": 1,
        "finished_at_seqno": None if is_running else record.last_seq,
    }


def _item_status(record: RunRecord, index: int) -> Any:
    result = record.items[index].result
    if result is not None:
        return status_of(result)
    return "running" if record.status == "running" else "cancelled"


async def _item_results(record: RunRecord, indices: range) -> list[ItemResultInfo]:
    results: list[ItemResultInfo] = []
    for index in indices:
        if index % _ITEMS_BETWEEN_TURNS == _ITEMS_BETWEEN_TURNS - 1:
            await trio.lowlevel.checkpoint()
        item = record.items[index]
        results.append(
            ItemResultInfo(
                item_index=index,
                status=_item_status(record, index),
                result=item.result,
                completed_at=item.completed_at,
            )
        )
    return results


async def _by_item(events: Sequence[RecordedEvent]) -> dict[int, list[RecordedEvent]]:
    of_items: dict[int, list[RecordedEvent]] = {}
    for event in events:
        if event.seq % _EVENTS_BETWEEN_TURNS == 0:
            await trio.lowlevel.checkpoint()
        if event.item_index is not None:
            of_items.setdefault(event.item_index, []).append(event)
    return of_items


async def _steps_together(
    record: RunRecord, events: Sequence[RecordedEvent], flow: Flow | None
) -> dict[str, StepRunInfo]:
    """Each step with the worst of its statuses in all items."""
    of_items = await _by_item(events)
    statuses: dict[str, set[StepStatus]] = {step.id: set() for step in (flow.steps if flow else ())}
    components = {step.id: step.component for step in (flow.steps if flow else ())}
    for index, item in enumerate(record.items):
        if index % _ITEMS_BETWEEN_TURNS == _ITEMS_BETWEEN_TURNS - 1:
            await trio.lowlevel.checkpoint()
        is_over = item.result is not None or record.status != "running"
        known = step_records(of_items.get(index, ()), is_over=is_over, flow=flow)
        for id_, step in known.items():
            statuses.setdefault(id_, set()).add(step.status)
            if step.component is not None:
                components.setdefault(id_, step.component)
        for id_ in statuses.keys() - known.keys():
            statuses[id_].add(StepStatus.SKIPPED if is_over else StepStatus.BLOCKED)
    return {
        id_: StepRunInfo(
            step_id=id_, component=components.get(id_), status=worst_status(its or _NOTHING).value
        )
        for id_, its in statuses.items()
    }


_NOTHING = frozenset({StepStatus.SKIPPED})
"""How a step stands in a run without items."""


def _step_info(step: StepRecord) -> StepRunInfo:
    return StepRunInfo(
        step_id=step.step_id,
        component=step.component,
        status=step.status.value,
        result=step.result,
        attempts=step.attempts,
        started_at=step.started_at,
        ended_at=step.ended_at,
    )
