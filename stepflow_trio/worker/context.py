"""What a component can ask of the runtime while it runs."""

from __future__ import annotations

import base64
import contextvars
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import trio

from stepflow_trio.engine import Connection
from stepflow_trio.errors import (
    ErrorCode,
    LocalProtocolError,
    RemoteProtocolError,
    RpcError,
    RunCancelled,
    RunFailed,
)
from stepflow_trio.protocol import blobs, dialects, methods
from stepflow_trio.protocol.dialects import Hello
from stepflow_trio.protocol.methods import Method
from stepflow_trio.protocol.payloads import (
    EvaluateFlowParams,
    GetBatchParams,
    GetBlobParams,
    GetRunParams,
    ItemResult,
    ItemStatistics,
    Observability,
    ProgressParams,
    PutBlobParams,
    RunStatus,
    SubmitBatchParams,
    SubmitRunParams,
)
from stepflow_trio.worker.outputs import check_output
from stepflow_trio.worker.threads import ThreadPlace

if TYPE_CHECKING:
    from stepflow_trio.worker.blob_client import BlobClient  # which a stdio worker does without

MAX_CALLBACKS = 64
"""Calls that one execution may have waiting at once; further ones wait for a place."""

EVALUATION_TIMEOUT_S = 7 * 24 * 3600
"""How long one call waits for an evaluation; then it asks again."""

POLL_PAUSE_S = 0.1
"""At least so much time passes between two questions how a run is."""

UNKNOWN_RUNTIME_PATIENCE_S = 10.0
"""Public runtimes from 0.10 on do not answer at all when they are asked for blobs by a callback."""


class BuiltFlow(Protocol):
    """What a :class:`~stepflow_trio.FlowBuilder` builds."""

    def to_json(self) -> dict[str, Any]:
        """The flow as JSON."""
        ...


FlowOrId: TypeAlias = str | Mapping[str, Any] | BuiltFlow
"""A flow: by its id, as JSON, or as it was built or read."""

ParamsT = TypeVar("ParamsT")
ResultT = TypeVar("ResultT")

_current: contextvars.ContextVar[Context] = contextvars.ContextVar("stepflow_trio.worker.context")


class Context:
    """One execution of a component.

    A component gets it by naming it in its signature, anywhere, with the type ``Context``; code below it
    gets it from :meth:`Context.current`. It is of use until the component returns.

    Every method that calls the runtime raises :class:`CallFailed` where the runtime refuses,
    :class:`ConnectionLost` where the connection ends, :class:`LocalProtocolError` where the execution is
    over, and leaves at once when it is cancelled. Where the runtime has its blobs at a URL, these travel
    over HTTP, and :class:`CallTimeout` says that nothing is heard from there. In a component that runs in a
    thread, call them through ``trio.from_thread.run``.
    """

    def __init__(
        self,
        connection: Connection,
        hello: Hello,
        *,
        component: str,
        attempt: int = 1,
        observability: Observability | None = None,
        deadline: float | None = None,
    ) -> None:
        self._connection = connection
        self._hello = hello
        self._blob_client: BlobClient | None = None
        self._observability = observability or Observability()
        self._places: trio.Semaphore | None = None  # made with the first callback: most make none
        self._thread: ThreadPlace | None = None
        self._submissions = 0
        self._is_over = False
        self._token = trio.lowlevel.current_trio_token()
        self.component = component
        """The component's path as it was called."""
        self.attempt = attempt
        """1 on the first execution of the step; grows with every further one, whatever its reason."""
        self.deadline = deadline
        """When the runtime gives this execution up, on ``trio.current_time()``'s clock; None: unknown."""

    @staticmethod
    def current() -> Context:
        """The context of the component that is running here, in its task or its thread.

        Raises:
            LookupError: no component is running here.
        """
        try:
            return _current.get()
        except LookupError:
            raise LookupError("no component is running here: there is no current Context") from None

    def use_blobs(self, client: BlobClient) -> None:
        """Store and read blobs with ``client`` from now on, and not by asking the runtime."""
        self._blob_client = client

    def use_thread(self, place: ThreadPlace) -> None:
        """The component runs in a thread, whose place others may have while it waits for the runtime."""
        self._thread = place

    def enter(self) -> contextvars.Token[Context]:
        """Make this the current context of the running task."""
        return _current.set(self)

    def leave(self, token: contextvars.Token[Context]) -> None:
        """Undo :meth:`enter`: the execution is over, and nothing more is asked or told in its name."""
        self._is_over = True
        if self._thread is not None:
            self._thread.cancel_callbacks()
        _current.reset(token)

    @property
    def run_id(self) -> str | None:
        """The run that this execution belongs to."""
        return self._observability.run_id

    @property
    def flow_id(self) -> str | None:
        """The flow that is run."""
        return self._observability.flow_id

    @property
    def step_id(self) -> str | None:
        """The step of the flow."""
        return self._observability.step_id

    @property
    def trace_id(self) -> str | None:
        """The W3C trace id, 32 hex digits."""
        return self._observability.trace_id

    @property
    def span_id(self) -> str | None:
        """The W3C id of the runtime's span, 16 hex digits."""
        return self._observability.span_id

    # ---- blobs --------------------------------------------------------------------------------------

    async def put_blob(self, data: Any, blob_type: str | None = None) -> str:
        """Store data and return their blob id: the same content always has the same id.

        ``bytes`` are stored as type ``binary``; anything else as JSON, of type ``data`` unless told ``flow``.

        Raises:
            OutputInvalid: the data are no JSON; the JSON path is named, and nothing was sent.
        """
        if self._blob_client is not None:
            async with self._place():
                if isinstance(data, (bytes, bytearray)):
                    return await self._blob_client.put_binary(bytes(data))
                return await self._blob_client.put(data, blob_type or blobs.DATA)
        if isinstance(data, (bytes, bytearray)):
            content = base64.b64encode(data).decode("ascii")
            params = PutBlobParams(data=content, blob_type=blobs.BINARY, observability=self._observability)
        else:
            kind = blob_type or blobs.DATA
            params = PutBlobParams(data=check_output(data), blob_type=kind, observability=self._observability)
        return (await self._call_for_blob(methods.BLOBS_PUT, params)).blob_id

    async def get_blob(self, blob_id: str) -> Any:
        """Read a blob: ``bytes`` for type ``binary``, else the JSON value.

        Raises:
            RemoteProtocolError: what came is not what the id stands for.
        """
        if self._blob_client is not None:
            async with self._place():
                return await self._blob_client.get(blob_id)
        result = await self._call_for_blob(
            methods.BLOBS_GET, GetBlobParams(blob_id=blob_id, observability=self._observability)
        )
        if not blobs.may_be_content(blob_id, result.data, result.blob_type):
            message = f"blob {blob_id} arrived with other content than its id stands for"
            raise RemoteProtocolError(message, code=ErrorCode.GARBLED_MESSAGE)
        if blobs.normalize_blob_type(result.blob_type) == blobs.BINARY:
            return blobs.blob_content(result.data, blobs.BINARY)
        return result.data

    # ---- runs ---------------------------------------------------------------------------------------

    async def submit_run(
        self,
        flow: FlowOrId,
        inputs: Sequence[Any],
        *,
        wait: bool = False,
        max_concurrency: int | None = None,
        overrides: Mapping[str, Any] | None = None,
        timeout_s: int | None = None,
        subflow_key: str | None = None,
    ) -> RunStatus:
        """Start a run with one item per input.

        Args:
            flow: a flow id, or a flow, which is stored first.
            inputs: one input for each item.
            wait: return when the run has ended, or after ``timeout_s`` seconds (300 by default).
            max_concurrency: items that run at once.
            overrides: changes to steps, ``{"steps": {id: {"value": …}}}``.
            timeout_s: how long to wait.
            subflow_key: a UUID; submitting the same key again within this run means the same run. By
                default derived from run, item, step and order, so that a step executed again finds its
                runs.
        """
        flow_id = await self._flow_id(flow)
        if not self._hello.dialect.has_runs:
            batch = SubmitBatchParams(
                flow_id=flow_id,
                inputs=list(inputs),
                overrides=_flat_overrides(overrides),
                max_concurrency=max_concurrency,
                observability=self._observability,
            )
            batch_id = (await self._call(methods.FLOWS_SUBMIT_BATCH, batch)).batch_id
            return await self.get_run(batch_id, wait=wait, include_results=wait)
        is_newest = self._hello.dialect is dialects.Dialect.V0_11
        params = SubmitRunParams(
            flow_id=flow_id,
            inputs=list(inputs),
            wait=wait,
            max_concurrency=max_concurrency,
            # 0.9 takes them without `steps` around the map, though its own schema says otherwise.
            overrides=dict(overrides or {}) or None if is_newest else _flat_overrides(overrides),
            timeout_secs=timeout_s if is_newest else None,
            observability=self._observability,
            subflow_key=(subflow_key or self._next_subflow_key()) if is_newest else None,
        )
        return await self._call(methods.RUNS_SUBMIT, params)

    async def get_run(
        self,
        run_id: str,
        *,
        wait: bool = False,
        include_results: bool = False,
        by_completion: bool = False,
        timeout_s: int | None = None,
    ) -> RunStatus:
        """How a run is; with ``wait``, once it has ended or ``timeout_s`` seconds (300 by default) are over.

        Results come in the order of the inputs, or with ``by_completion`` as they finished.
        """
        if not self._hello.dialect.has_runs:
            params = GetBatchParams(
                batch_id=run_id,
                wait=wait,
                include_results=include_results,
                observability=self._observability,
            )
            return _batch_as_run(await self._call(methods.FLOWS_GET_BATCH, params))
        return await self._call(
            methods.RUNS_GET,
            GetRunParams(
                run_id=run_id,
                wait=wait,
                include_results=include_results,
                result_order="by_completion" if by_completion else "by_index",
                timeout_secs=timeout_s if self._hello.dialect is dialects.Dialect.V0_11 else None,
                observability=self._observability,
            ),
        )

    async def evaluate_flow(
        self, flow: FlowOrId, input: Any, *, overrides: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a flow once, however long it takes, and return its result.

        Raises:
            RunFailed: the run failed (:class:`RunCancelled` if it was cancelled).
        """
        if not self._hello.dialect.has_runs:
            params = EvaluateFlowParams(
                flow_id=await self._flow_id(flow),
                input=input,
                overrides=_flat_overrides(overrides),
                observability=self._observability,
            )
            return _unwrap((await self._call(methods.FLOWS_EVALUATE, params)).result, "")
        [item] = await self.evaluate_run(flow, [input], overrides=overrides)
        return _unwrap(item.result, item.status)

    async def evaluate_run(
        self,
        flow: FlowOrId,
        inputs: Sequence[Any],
        *,
        max_concurrency: int | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> list[ItemResult]:
        """Run a flow once for each input; return every item's end, in the order of the inputs.

        Raises:
            RemoteProtocolError: the runtime says that the run is over, and has not one result for each item.
        """
        status = await self.submit_run(
            flow,
            inputs,
            wait=True,
            max_concurrency=max_concurrency,
            overrides=overrides,
            # As long as this call lasts, giving it up gives the run up.
            timeout_s=EVALUATION_TIMEOUT_S,
        )
        while status.status in ("running", "paused"):
            began = trio.current_time()
            status = await self.get_run(status.run_id, wait=True, include_results=True)
            # A runtime that does not wait, although it was asked to, is not asked without a pause.
            await trio.sleep_until(began + POLL_PAUSE_S)
        if status.results is None:
            status = await self.get_run(status.run_id, include_results=True)
        results = sorted(status.results or (), key=lambda item: item.item_index)
        if [item.item_index for item in results] != list(range(len(inputs))):
            message = f"run {status.run_id} is {status.status}, but its results are not those of its items"
            raise RemoteProtocolError(message, code=ErrorCode.GARBLED_MESSAGE)
        return results

    # ---- progress -----------------------------------------------------------------------------------

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Report how far this execution is, 0 to 1. Never waits, also not in a thread's component.

        A report is dropped where the runtime did not say that it wants them, and while more waits to be
        sent than fits: the next one is as good.

        Raises:
            ValueError: ``fraction`` is not between 0 and 1.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is between 0 and 1, not {fraction!r}")
        if dialects.PROGRESS not in self._hello.extensions or self.step_id is None:
            return
        params = ProgressParams(
            step_id=self.step_id,
            progress=float(fraction),
            message=message,
            run_id=self.run_id,
            span_id=self.span_id,
        )
        if trio.lowlevel.in_trio_task():
            self._report(params)
        else:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._report, params)

    def _report(self, params: ProgressParams) -> None:
        if not self._is_over and self._connection.loss is None:
            self._connection.notify_nowait(methods.PROGRESS_UPDATE, params)

    # ---- beneath ------------------------------------------------------------------------------------

    async def _call(self, method: Method[ParamsT, ResultT], params: ParamsT) -> ResultT:
        async with self._place():
            return await self._connection.call(method, params)

    async def _call_for_blob(self, method: Method[ParamsT, ResultT], params: ParamsT) -> ResultT:
        """As :meth:`_call`, but with bounded patience for a runtime that may have its blobs elsewhere."""
        if not self._hello.assumed:
            return await self._call(method, params)
        async with self._place():
            with trio.move_on_after(UNKNOWN_RUNTIME_PATIENCE_S):
                return await self._connection.call(method, params)
        message = (
            f"{method.name} was not answered within {UNKNOWN_RUNTIME_PATIENCE_S:g} s. The runtime has not "
            "initialized this worker since it was started, so it is not known where its blobs are: restart "
            "the runtime"
        )
        raise RpcError(ErrorCode.DEPENDENCY_ERROR, message)

    def _place(self) -> AbstractAsyncContextManager[object]:
        """What to hold while the runtime is asked."""
        if self._is_over:
            raise self._over()
        if self._places is None:
            self._places = trio.Semaphore(MAX_CALLBACKS)
        return self._places if self._thread is None else self._ask_from_thread(self._thread, self._places)

    @asynccontextmanager
    async def _ask_from_thread(self, thread: ThreadPlace, places: trio.Semaphore) -> AsyncGenerator[None]:
        async with thread.given_back() as scope, places:
            yield
        if scope.cancelled_caught:
            raise self._over()

    def _over(self) -> LocalProtocolError:
        return LocalProtocolError(f"the execution of {self.component} that this Context belongs to is over")

    async def _flow_id(self, flow: FlowOrId) -> str:
        if isinstance(flow, str):
            return flow
        content = flow if isinstance(flow, Mapping) else flow.to_json()
        return await self.put_blob(dict(content), blobs.FLOW)

    def _next_subflow_key(self) -> str:
        self._submissions += 1
        try:
            run = uuid.UUID(self.run_id or "")
        except ValueError:
            return str(uuid.uuid4())  # without a run there is nothing that the key could be unique in
        # The span tells the items of a run apart, whose steps have the same names.
        return str(uuid.uuid5(run, f"{self.span_id}/{self.step_id}/{self._submissions}"))

    def __repr__(self) -> str:
        return f"<Context {self.component} run={self.run_id} step={self.step_id} attempt={self.attempt}>"


def _flat_overrides(overrides: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Dialect 0.8 has no ``steps`` around the map."""
    return dict(overrides.get("steps", {})) if overrides is not None else None


def _batch_as_run(batch: methods.p.GetBatchResult) -> RunStatus:
    details = batch.details
    results: list[ItemResult] | None = None
    if batch.outputs is not None:
        results = [
            ItemResult(item_index=out.batch_input_index, status=out.status, result=out.result)
            for out in batch.outputs
        ]
    return RunStatus(
        run_id=details.batch_id,
        flow_id=details.flow_id,
        flow_name=details.flow_name,
        status=details.status,
        items=ItemStatistics(
            total=details.total_runs,
            completed=details.completed_runs,
            running=details.running_runs,
            failed=details.failed_runs,
            cancelled=details.cancelled_runs,
        ),
        created_at=details.created_at,
        completed_at=details.completed_at,
        results=results,
    )


def _unwrap(result: Mapping[str, Any] | None, status: str) -> Any:
    match result:
        case {"outcome": "success"}:
            return result.get("result")
        case {"outcome": "failed", "error": {"code": int() as code, "message": str() as message, **rest}}:
            raise RunFailed(code, message, rest.get("data"))
        case {"outcome": "skipped"}:
            return None
        case _ if status == "cancelled":
            raise RunCancelled(ErrorCode.REQUEST_CANCELLED, "the run was cancelled")
        case _:
            message = f"the runtime sent no flow result but {result!r}"
            raise RemoteProtocolError(message, code=ErrorCode.GARBLED_MESSAGE)
