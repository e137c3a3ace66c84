"""How a component's context asks for blobs and runs, facing a runtime that says what the test wants it to."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from stepflow_trio import Context, RunCancelled, RunFailed
from stepflow_trio.engine import Handlers, open_connection
from stepflow_trio.errors import ErrorCode, RemoteProtocolError, RpcError
from stepflow_trio.protocol.dialects import EXTENSIONS, Dialect, Hello
from stepflow_trio.protocol.payloads import Observability
from stepflow_trio.transports.memory import memory_link_pair
from stepflow_trio.worker.context import MAX_CALLBACKS, UNKNOWN_RUNTIME_PATIENCE_S

RUN = "01a1ff82-1900-78a1-9ba6-c11477158f0e"
SPAN = "00f067aa0ba902b7"
FLOW = "f" * 64


class Runtime:
    """Answers with what it was given, in order, and keeps what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, Any]] = []
        self.handlers = Handlers()
        for method in ("runs/submit", "runs/get", "flows/evaluate", "flows/submit_batch", "blobs/get"):
            self.handlers.on_raw_request(method, self.answer)

    def answer(self, params: Any, request: Any) -> Any:
        self.asked.append((request.method, params))
        return self.answers.pop(0)


@asynccontextmanager
async def asking(
    runtime: Runtime,
    dialect: Dialect = Dialect.V0_11,
    *,
    run_id: str | None = RUN,
    span_id: str | None = SPAN,
    assumed: bool = False,
) -> AsyncGenerator[Context]:
    near, far = memory_link_pair()
    async with open_connection(far, runtime.handlers), open_connection(near, Handlers()) as connection:
        hello = Hello(
            dialect=dialect, version=1, extensions=frozenset(EXTENSIONS), announced=True, assumed=assumed
        )
        observability = Observability(run_id=run_id, step_id="step", span_id=span_id)
        yield Context(connection, hello, component="/x", observability=observability)


def status(status: str, results: Any = None) -> dict[str, Any]:
    told = {"runId": "r", "flowId": FLOW, "status": status, "items": {"total": 1}, "createdAt": "then"}
    return told if results is None else {**told, "results": results}


def item(index: int, result: Any, status: str = "completed") -> dict[str, Any]:
    return {"itemIndex": index, "status": status, "result": result}


def success(value: Any) -> dict[str, Any]:
    return {"outcome": "success", "result": value}


async def test_evaluating_a_flow_returns_its_result(autojump_clock: Any) -> None:
    runtime = Runtime(status("completed", [item(0, success(7))]))
    async with asking(runtime) as context:
        assert await context.evaluate_flow(FLOW, 1) == 7
    [(method, params)] = runtime.asked
    assert method == "runs/submit"
    assert (params["flowId"], params["inputs"], params["wait"]) == (FLOW, [1], True)
    assert params["observability"] == {"run_id": RUN, "step_id": "step", "span_id": SPAN}


async def test_a_failed_flow_raises_its_error(autojump_clock: Any) -> None:
    error = {"code": -32150, "message": "no", "data": {"a": 1}}
    failed = item(0, {"outcome": "failed", "error": error}, "failed")
    async with asking(Runtime(status("failed", [failed]))) as context:
        with pytest.raises(RunFailed) as caught:
            await context.evaluate_flow(FLOW, 1)
    assert (caught.value.code, caught.value.message, caught.value.data) == (-32150, "no", {"a": 1})


async def test_a_cancelled_flow_raises_that_it_was_cancelled(autojump_clock: Any) -> None:
    async with asking(Runtime(status("cancelled", [item(0, None, "cancelled")]))) as context:
        with pytest.raises(RunCancelled):
            await context.evaluate_flow(FLOW, 1)


@pytest.mark.parametrize("result", [None, {}, {"outcome": "unheard of"}, {"outcome": "failed", "error": 1}])
async def test_a_result_that_is_none_is_the_runtime_s_fault(autojump_clock: Any, result: Any) -> None:
    async with asking(Runtime(status("completed", [item(0, result)]))) as context:
        with pytest.raises(RemoteProtocolError):
            await context.evaluate_flow(FLOW, 1)


async def test_a_run_that_is_not_over_yet_is_asked_for_until_it_is(autojump_clock: Any) -> None:
    ended = status("completed", [item(1, success("b")), item(0, success("a"))])
    runtime = Runtime(status("running", []), status("paused", []), status("running"), ended)
    async with asking(runtime) as context:
        items = await context.evaluate_run(FLOW, [1, 2])
    assert [(i.item_index, i.result) for i in items] == [(0, success("a")), (1, success("b"))]
    assert [method for method, _ in runtime.asked] == ["runs/submit", "runs/get", "runs/get", "runs/get"]
    assert all(params["wait"] and params["includeResults"] for _, params in runtime.asked[1:])


async def test_results_that_did_not_come_with_the_end_are_asked_for_once(autojump_clock: Any) -> None:
    runtime = Runtime(status("completed"), status("completed", [item(0, success(7))]))
    async with asking(runtime) as context:
        assert await context.evaluate_flow(FLOW, 1) == 7
    runtime = Runtime(status("completed"), status("completed"), status("completed"))
    async with asking(runtime) as context:
        with pytest.raises(RemoteProtocolError, match="results"):
            await context.evaluate_flow(FLOW, 1)
    assert len(runtime.asked) == 2


async def test_results_that_lack_an_item_are_the_runtime_s_fault(autojump_clock: Any) -> None:
    async with asking(Runtime(status("completed", []))) as context:
        with pytest.raises(RemoteProtocolError, match="results"):
            await context.evaluate_flow(FLOW, 1)


async def keys(count: int, **who: Any) -> list[str]:
    runtime = Runtime(*[status("running")] * count)
    async with asking(runtime, **who) as context:
        for _ in range(count):
            await context.submit_run(FLOW, [])
    return [str(uuid.UUID(params["subflowKey"])) for _, params in runtime.asked]


async def test_subflow_keys_are_the_same_for_every_attempt_and_for_nothing_else(autojump_clock: Any) -> None:
    first, again = await keys(3), await keys(3)
    assert first == again
    others = [
        *await keys(3, span_id="1" * 16),
        *await keys(3, run_id=str(uuid.uuid4())),
        *await keys(3, run_id=None),
    ]
    assert len({*first, *others}) == 12


@pytest.mark.parametrize("dialect", [Dialect.V0_9, Dialect.V0_8], ids=lambda d: d.value)
async def test_an_older_runtime_is_asked_in_its_own_words(autojump_clock: Any, dialect: Dialect) -> None:
    overrides = {"steps": {"a": {"value": {"input": 1}}}}
    if dialect is Dialect.V0_9:
        runtime = Runtime(status("completed", [item(0, success(7))]))
    else:
        runtime = Runtime({"result": success(7)})
    async with asking(runtime, dialect) as context:
        assert await context.evaluate_flow(FLOW, 1, overrides=overrides) == 7
    [(method, params)] = runtime.asked
    assert "timeoutSecs" not in params
    assert "subflowKey" not in params
    assert method == ("runs/submit" if dialect is Dialect.V0_9 else "flows/evaluate")
    assert params["overrides"] == overrides["steps"]


async def test_a_blob_that_is_not_what_its_id_stands_for_is_refused(autojump_clock: Any) -> None:
    async with asking(Runtime({"data": [2], "blob_type": "data"})) as context:
        with pytest.raises(RemoteProtocolError, match="other content"):
            await context.get_blob("0" * 64)


async def test_one_execution_has_no_more_calls_waiting_than_it_may(autojump_clock: Any) -> None:
    waiting, most = 0, 0

    async def slow(_params: Any, _request: Any) -> Any:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await trio.sleep(1)
        waiting -= 1
        return status("completed")

    runtime = Runtime()
    runtime.handlers = Handlers()
    runtime.handlers.on_raw_request("runs/get", slow)
    async with asking(runtime) as context, trio.open_nursery() as nursery:
        for _ in range(2 * MAX_CALLBACKS):
            nursery.start_soon(context.get_run, "r")
        await wait_all_tasks_blocked()
    assert most == MAX_CALLBACKS
    assert trio.current_time() == 2


@pytest.mark.parametrize("ask", ["put_blob", "get_blob"])
async def test_a_runtime_that_never_introduced_itself_is_not_asked_for_blobs_without_end(
    autojump_clock: Any, ask: str
) -> None:
    runtime = Runtime()
    runtime.handlers = Handlers()

    async def silent(_params: Any, _request: Any) -> Any:
        await trio.sleep_forever()

    runtime.handlers.on_raw_request("blobs/put", silent)
    runtime.handlers.on_raw_request("blobs/get", silent)
    async with asking(runtime, assumed=True) as context:
        with pytest.raises(RpcError, match="restart the runtime") as caught:
            await getattr(context, ask)("0" * 64)
        assert caught.value.code == ErrorCode.DEPENDENCY_ERROR
        assert trio.current_time() == UNKNOWN_RUNTIME_PATIENCE_S
