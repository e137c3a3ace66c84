"""Runs: started, looked at, cancelled, deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
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
from stepflow_trio.runtime.events import StepProgressed
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
    StepProgressInfo,
    StepRunInfo,
    StepsQuery,
)
from stepflow_trio.runtime.rest_api.requests import (
    Answer,
    LongList,
    ReceiveBody,
    Request,
    as_run_id,
    json_answer,
)
from stepflow_trio.runtime.rest_api.routes import Route
from stepflow_trio.runtime.run_log import RecordedEvent, status_of
from stepflow_trio.runtime.runtime import Runtime
from stepflow_trio.runtime.step_records import StepRecord, all_step_records, step_records, worst_status
from stepflow_trio.runtime.stores import RunQuery, RunRecord

CANCEL_WITHIN_S = 30.0
"""The answer to a cancellation waits so long for the run to end; if it has not, it is still ``running``."""

MAX_KEY_CHARACTERS = 255

_SOON_S = 0.05
"""A run that is over by then is waited for without a look at whether the client is still there."""

_FEW_ITEMS = 100
"""The events of so many items are looked up item by item; else those of all items are gone through."""

_ITEMS_BETWEEN_TURNS = 200
_EVENTS_BETWEEN_TURNS = 5000
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
        summary = CreateRunResponse(**_summary(record))
        if record.status == "running":
            return json_answer(200, summary)
        return (await _item_results("results", record, range(len(record.items)))).answer(200, summary)

    async def _wait(self, request: Request, run_id: str, timeout_secs: float | None) -> RunRecord:
        within_s = DEFAULT_WAIT_S if timeout_secs is None else timeout_secs
        record = await self._history.wait(run_id, within_s=min(within_s, _SOON_S))
        left_s = within_s - _SOON_S
        if record.status != "running" or left_s <= 0:
            return record
        return await request.while_connected(partial(self._history.wait, run_id, within_s=left_s))

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
        details = await self._item_details(record, _page_of(record, asked.item_limit, asked.item_offset))
        overrides = None if record.overrides is None else dict(record.overrides)
        return details.answer(200, RunDetails(**_summary(record), overrides=overrides))

    async def _item_details(self, record: RunRecord, indices: range) -> LongList:
        details = LongList("itemDetails")
        if len(indices) <= _FEW_ITEMS:
            run_id = record.run_id
            of_items = {index: await self._history.events(run_id, item_index=index) for index in indices}
        else:
            of_items = await _by_item(await self._history.events(record.run_id))
        flow = await self._flow_of(record)
        progress = self._progress(record)
        for index in indices:
            item = record.items[index]
            is_over, over_at = _end_of(record, index)
            of_item = of_items.get(index, ())
            steps = step_records(of_item, is_over=is_over, over_at=over_at, flow=flow).values()
            await details.append(
                ItemDetails(
                    item_index=index,
                    input=record.inputs[index],
                    status=_item_status(record, index),
                    steps=[_step_info(step, progress.get((index, step.step_id))) for step in steps],
                    completed_at=item.completed_at,
                )
            )
        return details

    async def _items(self, request: Request) -> Answer:
        asked = request.query(ItemsQuery)
        record = await self._history.get(request.run_id())
        items = await _item_results("items", record, _page_of(record, asked.limit, asked.offset))
        total = len(record.items)
        return items.answer(200, {"itemCount": total}, ((TOTAL_COUNT, b"%d" % total),))

    async def _flow(self, request: Request) -> Answer:
        record = await self._history.get(request.run_id())
        flow = await self._runtime.flows.get(record.flow_id)
        return json_answer(200, RunFlowResponse(flow=flow.to_json(), flow_id=record.flow_id))

    async def _steps(self, request: Request) -> Answer:
        asked = request.query(StepsQuery)
        run_id = request.run_id()
        record = await self._history.get(run_id)
        index = 0 if asked.item_index is None and len(record.items) == 1 else asked.item_index
        if index is not None and index >= len(record.items):
            raise ApiError(400, f"there is no item {index}: the run has {len(record.items)}")
        events = await self._history.events(run_id, item_index=index)
        flow = await self._flow_of(record)
        if index is None:
            return json_answer(200, ListStepRunsResponse(steps=await _steps_together(record, events, flow)))
        is_over, over_at = _end_of(record, index)
        if flow is not None:
            steps = all_step_records(flow, events, is_over=is_over, over_at=over_at)
        else:
            steps = step_records(events, is_over=is_over, over_at=over_at)
        progress = self._progress(record)
        infos = {id_: _step_info(step, progress.get((index, id_))) for id_, step in steps.items()}
        return json_answer(200, ListStepRunsResponse(steps=infos))

    def _progress(self, record: RunRecord) -> dict[tuple[int, str], StepProgressed]:
        """The latest of each step that is at work, by item and step."""
        return {(each.item_index, each.step_id): each for each in self._history.progress(record.run_id)}

    async def _flow_of(self, record: RunRecord) -> Flow | None:
        """What a run executes, its overrides applied; None if the flow was deleted."""
        try:
            flow = await self._runtime.flows.get(record.flow_id)
        except FlowNotFound:
            return None
        if record.overrides is None:
            return flow
        return examine_flow_json(apply_overrides(flow.to_json(), record.overrides)).flow


def _page_of(record: RunRecord, limit: int | None, offset: int) -> range:
    """The indices of a part of a run's items."""
    total = len(record.items)
    return range(min(offset, total), total if limit is None else min(total, offset + limit))


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


def _end_of(record: RunRecord, index: int) -> tuple[bool, datetime | None]:
    """Whether nothing further happens in an item, and since when."""
    item = record.items[index]
    if item.result is not None:
        return True, item.completed_at
    return record.status != "running", record.completed_at


async def _item_results(name: str, record: RunRecord, indices: range) -> LongList:
    results = LongList(name)
    for index in indices:
        item = record.items[index]
        await results.append(
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
    for index in range(len(record.items)):
        if index % _ITEMS_BETWEEN_TURNS == _ITEMS_BETWEEN_TURNS - 1:
            await trio.lowlevel.checkpoint()
        is_over, _ = _end_of(record, index)
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


def _step_info(step: StepRecord, progress: StepProgressed | None) -> StepRunInfo:
    is_executed = step.status is StepStatus.RUNNING and step.next_attempt_at is None
    return StepRunInfo(
        step_id=step.step_id,
        component=step.component,
        status=step.status.value,
        result=step.result,
        attempt=step.attempt,
        started_at=step.started_at,
        completed_at=step.completed_at,
        progress=_progress_info(progress) if is_executed and progress is not None else None,
        last_error=step.last_error,
        next_attempt_at=step.next_attempt_at,
    )


def _progress_info(progress: StepProgressed) -> StepProgressInfo:
    return StepProgressInfo(fraction=progress.fraction, at=progress.at, message=progress.message)
