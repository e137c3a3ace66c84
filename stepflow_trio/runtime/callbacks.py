"""What workers may ask of the runtime: blobs, runs, and to be heard about progress."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import trio
from msgspec.structs import replace

from stepflow_trio.engine import Connection, Handlers, RequestContext
from stepflow_trio.errors import BlobNotFound, ErrorCode, FlowInvalid, LocalProtocolError, RpcError
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.overrides import apply_overrides
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.flows.results import FlowResult
from stepflow_trio.protocol import blobs, codec, methods
from stepflow_trio.protocol.payloads import (
    BatchDetails,
    BatchOutput,
    EvaluateFlowParams,
    EvaluateFlowResult,
    FlowMetadataParams,
    FlowMetadataResult,
    GetBatchParams,
    GetBatchResult,
    GetBlobParams,
    GetBlobResult,
    GetRunParams,
    ItemResult,
    ItemStatistics,
    Observability,
    ProgressParams,
    PutBlobParams,
    PutBlobResult,
    RunStatus,
    SubmitBatchParams,
    SubmitBatchResult,
    SubmitRunParams,
)
from stepflow_trio.runtime.events import StepProgressed
from stepflow_trio.runtime.large_flows import beside_the_loop
from stepflow_trio.runtime.progress import StepsAtWork
from stepflow_trio.runtime.redaction import Redaction
from stepflow_trio.runtime.run_log import status_of
from stepflow_trio.runtime.runs import Run, Runs, outcome_of
from stepflow_trio.runtime.stores import (
    Blob,
    BlobStore,
    RunRecord,
    RunStore,
    id_of_content,
    put_json,
    results_in_order,
)

DEFAULT_WAIT_S = 300
"""How long ``wait`` waits where the caller does not say (docs/protocol.md, section 1)."""


class Callbacks:
    """Serves every worker of a runtime; ``on_progress`` is told what they say of steps that are at work."""

    def __init__(
        self,
        blob_store: BlobStore,
        run_store: RunStore,
        runs: Runs,
        at_work: StepsAtWork,
        on_progress: Callable[[StepProgressed], object],
        redaction: Redaction,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._blobs = blob_store
        self._run_store = run_store
        self._runs = runs
        self._at_work = at_work
        self._on_progress = on_progress
        self._redaction = redaction
        self._now = now

    def register(self, handlers: Handlers) -> None:
        """Offer everything to workers."""
        handlers.on_request(methods.BLOBS_PUT, self._put_blob)
        handlers.on_request(methods.BLOBS_GET, self._get_blob)
        handlers.on_request(methods.RUNS_SUBMIT, self._submit_run)
        handlers.on_request(methods.RUNS_GET, self._get_run)
        handlers.on_request(methods.FLOWS_EVALUATE, self._evaluate_flow)
        handlers.on_request(methods.FLOWS_GET_METADATA, self._get_metadata)
        handlers.on_request(methods.FLOWS_SUBMIT_BATCH, self._submit_batch)
        handlers.on_request(methods.FLOWS_GET_BATCH, self._get_batch)
        handlers.on_notification(methods.PROGRESS_UPDATE, self._progress)

    # ---- blobs --------------------------------------------------------------------------------------

    async def _put_blob(self, params: PutBlobParams, _request: RequestContext) -> PutBlobResult:
        return PutBlobResult(await store_blob(self._blobs, params.data, params.blob_type))

    async def _get_blob(self, params: GetBlobParams, _request: RequestContext) -> GetBlobResult:
        data, blob_type = await load_blob(self._blobs, params.blob_id)
        return GetBlobResult(data=data, blob_type=blob_type)

    # ---- runs ---------------------------------------------------------------------------------------

    async def _submit_run(self, params: SubmitRunParams, _request: RequestContext) -> RunStatus:
        run = await self._submit(
            params.flow_id,
            params.inputs,
            overrides=_nested(params.overrides),
            max_concurrency=params.max_concurrency,
            observability=params.observability,
            subflow_key=params.subflow_key,
        )
        if params.wait:
            await run.wait_as_owner(within_s=_wait_s(params.timeout_secs))
        return _status(await self._record(run.id), include_results=params.wait, hidden=run.results)

    async def _get_run(self, params: GetRunParams, _request: RequestContext) -> RunStatus:
        run = self._runs.active(params.run_id)
        if params.wait and run is not None:
            with trio.move_on_after(_wait_s(params.timeout_secs)):
                await run.wait()
        record = await self._record(params.run_id)
        return _status(
            record,
            include_results=params.include_results,
            hidden=self._runs.hidden_results(record),
            by_completion=params.result_order in ("by_completion", "byCompletion"),
        )

    async def _evaluate_flow(
        self, params: EvaluateFlowParams, _request: RequestContext
    ) -> EvaluateFlowResult:
        overrides = _nested(params.overrides)
        run = await self._submit(
            params.flow_id, [params.input], overrides=overrides, observability=params.observability
        )
        await run.wait_as_owner()
        return EvaluateFlowResult(outcome_of(run).to_json())

    async def _get_metadata(self, params: FlowMetadataParams, _request: RequestContext) -> FlowMetadataResult:
        flow, _ = await load_flow(self._blobs, params.flow_id)
        of_step = next((step.metadata for step in flow.steps if step.id == params.step_id), None)
        return FlowMetadataResult(flow_metadata=flow.metadata, step_metadata=of_step)

    async def _submit_batch(self, params: SubmitBatchParams, _request: RequestContext) -> SubmitBatchResult:
        run = await self._submit(
            params.flow_id,
            params.inputs,
            overrides=_nested(params.overrides),
            max_concurrency=params.max_concurrency,
            observability=params.observability,
        )
        return SubmitBatchResult(batch_id=run.id, total_runs=len(params.inputs))

    async def _get_batch(self, params: GetBatchParams, _request: RequestContext) -> GetBatchResult:
        run = self._runs.active(params.batch_id)
        if params.wait and run is not None:
            await run.wait()
        record = await self._record(params.batch_id)
        hidden = self._runs.hidden_results(record)
        status = _status(record, include_results=params.include_results, hidden=hidden)
        details = BatchDetails(
            batch_id=status.run_id,
            flow_id=status.flow_id,
            flow_name=status.flow_name,
            total_runs=status.items.total,
            status=status.status,
            created_at=status.created_at,
            completed_at=status.completed_at,
            completed_runs=status.items.completed,
            running_runs=status.items.running,
            failed_runs=status.items.failed,
            cancelled_runs=status.items.cancelled,
            paused_runs=0,
        )
        outputs = None
        if status.results is not None:
            outputs = [
                BatchOutput(batch_input_index=item.item_index, status=item.status, result=item.result)
                for item in status.results
            ]
        return GetBatchResult(details=details, outputs=outputs)

    async def _submit(
        self,
        flow_id: str,
        inputs: Sequence[Any],
        *,
        overrides: Mapping[str, Any] | None,
        observability: Observability | None,
        max_concurrency: int | None = None,
        subflow_key: str | None = None,
    ) -> Run:
        if max_concurrency == 0:
            raise RpcError(ErrorCode.INVALID_PARAMS, "maxConcurrency must be at least 1")
        flow, known_id = await load_flow(self._blobs, flow_id, overrides)
        parent_id = observability.run_id if observability is not None else None
        parent = self._runs.active(parent_id)
        if parent is None and parent_id is not None:
            record = await self._run_store.get(parent_id)
            if record is not None and record.status == "cancelled":
                # A component that was not told, or does not listen, must not begin anything anew.
                message = f"Run {parent_id} was cancelled and starts no further ones"
                raise RpcError(ErrorCode.REQUEST_CANCELLED, message, {"run_id": parent_id})
        return await self._runs.submit(
            flow,
            known_id,
            inputs,
            variables=parent.variables if parent is not None else {},
            max_concurrency=max_concurrency,
            parent=parent,
            subflow_key=subflow_key,
            overrides=overrides,
            deadline=parent.deadline if parent is not None else float("inf"),
        )

    async def _record(self, run_id: str) -> RunRecord:
        record = await self._run_store.get(run_id)
        if record is None:
            raise RpcError(ErrorCode.NOT_FOUND, f"Run {run_id} not found", {"run_id": run_id})
        return record

    # ---- progress -----------------------------------------------------------------------------------

    def _progress(self, params: ProgressParams, connection: Connection) -> None:
        if params.message is not None:
            # Before it is cut off, which might be in the middle of a secret.
            params = replace(params, message=self._redaction.text(params.message))
        progressed = self._at_work.take(params, connection, now=self._now)
        if progressed is not None:
            self._on_progress(progressed)


async def store_blob(store: BlobStore, data: Any, blob_type: str, filename: str | None = None) -> str:
    """Store a blob as a peer sends it.

    Raises:
        RpcError: −32004, an unknown type or binary data that are no base64 text.
    """
    kind = blobs.normalize_blob_type(blob_type)
    if kind is None:
        message = f"blob_type must be data, flow or binary, not {blob_type[:40]!r}"
        raise RpcError(ErrorCode.INVALID_VALUE, message)
    try:
        return await put_json(store, data, kind, filename)
    except (ValueError, LocalProtocolError) as exc:
        raise RpcError(ErrorCode.INVALID_VALUE, str(exc)) from exc


async def load_blob(store: BlobStore, blob_id: str) -> tuple[Any, str]:
    """Read a blob as a peer is sent it: JSON, or base64 text; and its type.

    Raises:
        RpcError: as :func:`verified_blob`.
    """
    blob = await verified_blob(store, blob_id)
    if blob.blob_type == blobs.BINARY:
        return base64.b64encode(blob.content).decode("ascii"), blob.blob_type
    return codec.decode_json(blob.content), blob.blob_type


async def verified_blob(store: BlobStore, blob_id: str) -> Blob:
    """Read a blob that is what its id stands for. What is no blob id never reaches the store.

    Raises:
        RpcError: −32005, there is none; −32202, what is stored is not what the id stands for.
    """
    bare = blobs.normalize_blob_id(blob_id)
    try:
        if bare is None:
            raise BlobNotFound(blob_id[:80])
        blob = await store.get(bare)
    except BlobNotFound as exc:
        message = f"Blob {exc.blob_id} not found"
        raise RpcError(ErrorCode.NOT_FOUND, message, {"blob_id": exc.blob_id}) from exc
    if await id_of_content(blob.content) != bare:
        message = f"Blob {bare} is damaged: its content has another hash"
        raise RpcError(ErrorCode.RUNTIME_INTERNAL, message, {"blob_id": bare})
    return blob


async def load_flow(
    store: BlobStore, flow_id: str, overrides: Mapping[str, Any] | None = None
) -> tuple[Flow, str]:
    """Read a stored flow; return it, overrides applied, and its id.

    Raises:
        RpcError: −32005, there is none; −32004, it is no flow, or the overrides do not fit it.
    """
    data, _ = await load_blob(store, flow_id)
    bare = blobs.normalize_blob_id(flow_id) or flow_id
    try:
        name = f"flow {bare[:12]}"
        return await beside_the_loop(
            data, lambda: flow_from_json(apply_overrides(data, overrides), name=name)
        ), bare
    except FlowInvalid as exc:
        message = f"Flow {bare} cannot be run: {exc}"
        raise RpcError(ErrorCode.INVALID_VALUE, message, {"flow_id": bare}) from exc


def _wait_s(timeout_secs: int | None) -> float:
    return DEFAULT_WAIT_S if timeout_secs is None else timeout_secs


def _status(
    record: RunRecord,
    *,
    include_results: bool,
    by_completion: bool = False,
    hidden: Sequence[FlowResult | None] | None = None,
) -> RunStatus:
    """How a run stands, with the results that are on record, or with ``hidden``: these with their secrets."""
    failed = record.failed_items
    unfinished = len(record.items) - record.finished_items
    is_cancelled = record.status == "cancelled"
    results: list[ItemResult] | None = None
    if include_results:
        results = [
            ItemResult(
                item_index=index,
                status=status_of(result),
                result=result.to_json(),
                completed_at=_rfc3339(item.completed_at),
            )
            for index, item in results_in_order(record, by_completion=by_completion)
            if (result := (hidden[index] if hidden is not None else None) or item.result) is not None
        ]
        if is_cancelled:
            done = {item.item_index for item in results}
            results += [
                ItemResult(item_index=index, status="cancelled")
                for index in range(len(record.items))
                if index not in done
            ]
    return RunStatus(
        run_id=record.run_id,
        flow_id=record.flow_id,
        flow_name=record.flow_name,
        status=record.status,
        items=ItemStatistics(
            total=len(record.items),
            completed=record.finished_items - failed,
            failed=failed,
            running=0 if is_cancelled else unfinished,
            cancelled=unfinished if is_cancelled else 0,
        ),
        created_at=_rfc3339(record.created_at) or "",
        completed_at=_rfc3339(record.completed_at),
        results=results,
    )


def _nested(overrides: dict[str, Any] | None) -> dict[str, Any] | None:
    """Overrides as they are since 0.10. Before, there is no ``steps`` around the map."""
    return overrides if not overrides or "steps" in overrides else {"steps": overrides}


def _rfc3339(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat().replace("+00:00", "Z")
