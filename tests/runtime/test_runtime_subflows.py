"""Flows that components run: nothing of what they say is lost on the way, however they are given."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from runtime_stage import INPUT, RawWorker, Stage, flow, one_step, retrying, step

from stepflow_trio import ComponentError, Context, FlowBuilder, RunFailed, open_runtime
from stepflow_trio.engine import Connection
from stepflow_trio.errors import CallFailed, ErrorCode, FlowNotFound, RunNotFound, StateConflict
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.protocol.payloads import ExecuteParams
from stepflow_trio.runtime.retries import Constant

TAKES_DEFAULT = flow(
    step("fails", "/w/fail", {}, onError={"action": "useDefault", "defaultValue": "the default"})
)
TRIES_AGAIN = flow(step("fails", "/w/third_time", {}, onError={"action": "retry", "maxRetries": 2}))
MUST_EXECUTE = flow(
    step("aside", "/w/fail", {}, mustExecute=True), step("main", "/w/echo", {"value": 1}),
    output={"$step": "main"},
)  # fmt: skip
FAILS = one_step("/w/fail", {})

ERROR = {"code": -32150, "message": "it failed", "data": {"why": "because"}}
ENDS = [
    (TAKES_DEFAULT, {"outcome": "success", "result": "the default"}),
    (TRIES_AGAIN, {"outcome": "success", "result": "third time"}),
    (MUST_EXECUTE, {"outcome": "failed", "error": ERROR}),
    (FAILS, {"outcome": "failed", "error": ERROR}),
]

AT_ONCE = retrying(backoff=Constant(delay_s=0))

Way = Callable[[Context, Any], Awaitable[Any]]


async def evaluate_flow(context: Context, given: Any) -> Any:
    try:
        return {"outcome": "success", "result": await context.evaluate_flow(given, None)}
    except RunFailed as failed:
        error = {"code": failed.code, "message": failed.message, "data": failed.data}
        return {"outcome": "failed", "error": error}


async def evaluate_run(context: Context, given: Any) -> Any:
    [item] = await context.evaluate_run(given, [None])
    return item.result


async def submit_run(context: Context, given: Any) -> Any:
    [item] = (await context.submit_run(given, [None], wait=True)).results or []
    return item.result


async def get_run(context: Context, given: Any) -> Any:
    submitted = await context.submit_run(given, [None])
    [item] = (await context.get_run(submitted.run_id, wait=True, include_results=True)).results or []
    return item.result


async def in_thread(context: Context, given: Any) -> Any:
    return await trio.to_thread.run_sync(trio.from_thread.run, evaluate_flow, context, given)


def as_a_dict(given: dict[str, Any]) -> Any:
    return given


def as_it_was_read(given: dict[str, Any]) -> Any:
    return flow_from_json(given)


def as_built(given: dict[str, Any]) -> Any:
    return FlowBuilder.load(flow_from_json(given)).build()


@pytest.fixture
def stage() -> Stage:
    stage, tries = Stage(), iter(range(100))

    @stage.component
    async def fail() -> None:
        raise ComponentError(ERROR["message"], code=ERROR["code"], data=ERROR["data"])  # type: ignore[arg-type]

    @stage.component
    async def third_time() -> str:
        if next(tries) < 2:
            raise ComponentError("not yet")
        return "third time"

    return stage


@pytest.mark.parametrize("form", [as_a_dict, as_it_was_read, as_built])
@pytest.mark.parametrize("way", [evaluate_flow, evaluate_run, submit_run, get_run, in_thread])
@pytest.mark.parametrize(("given", "end"), ENDS, ids=["useDefault", "retry", "mustExecute", "fails"])
async def test_what_a_step_does_on_errors_and_that_it_must_execute_are_kept(
    stage: Stage, given: Any, end: Any, way: Way, form: Callable[[Any], Any]
) -> None:
    @stage.component
    async def calls(context: Context) -> Any:
        return await way(context, form(given))

    async with open_runtime(AT_ONCE, workers={"w": stage.worker}) as runtime:
        assert await runtime.run(one_step("/w/calls", {})) == end


async def test_a_plain_function_runs_a_flow_by_value_too(stage: Stage) -> None:
    @stage.component
    def calls(context: Context) -> Any:
        return trio.from_thread.run(context.evaluate_flow, TAKES_DEFAULT, None)

    async with open_runtime(workers={"w": stage.worker}) as runtime:
        assert await runtime.run(one_step("/w/calls", {})) == "the default"


@pytest.mark.parametrize("way", ["evaluate_run", "submit_run"])
@pytest.mark.parametrize(("max_concurrency", "takes_s"), [(None, 1), (1, 4), (2, 2)])
async def test_max_concurrency_and_overrides_of_what_a_component_submits_are_heeded(
    autojump_clock: Any, stage: Stage, way: str, max_concurrency: int | None, takes_s: int
) -> None:
    steps = step("sleeps", "/w/sleep", {"seconds": INPUT}), step("said", "/w/echo", {"value": "written"})
    both = flow(*steps, output=[{"$step": "sleeps"}, {"$step": "said"}])
    overrides = {"steps": {"said": {"value": {"input": {"value": "overridden"}}}}}

    @stage.component
    async def calls(context: Context) -> Any:
        waits: dict[str, Any] = {"wait": True} if way == "submit_run" else {}
        ended = await getattr(context, way)(
            both,
            [1, 1, 1, 1],
            max_concurrency=max_concurrency,
            overrides=overrides,
            **waits,
        )
        return [item.result["result"] for item in (ended.results if way == "submit_run" else ended)]

    async with open_runtime(workers={"w": stage.worker}) as runtime:
        assert await runtime.run(one_step("/w/calls", {})) == [[1, "overridden"]] * 4
    assert trio.current_time() == takes_s


@pytest.mark.parametrize("way", ["evaluate_run", "submit_run"])
async def test_a_max_concurrency_of_0_is_refused_and_the_component_goes_on(
    autojump_clock: Any, stage: Stage, way: str
) -> None:
    @stage.component
    async def calls(context: Context) -> Any:
        with pytest.raises(CallFailed, match="at least 1") as refused:
            await getattr(context, way)(TAKES_DEFAULT, [1], max_concurrency=0)
        assert refused.value.code == ErrorCode.INVALID_PARAMS
        return await context.evaluate_flow(TAKES_DEFAULT, 1)

    async with open_runtime(workers={"w": stage.worker}) as runtime:
        assert await runtime.run(one_step("/w/calls", {})) == "the default"


async def test_a_flow_given_by_value_has_one_id_however_many_metadata_it_has(stage: Stage) -> None:
    metadata = {f"key{number}": {"b": number, "a": [number]} for number in range(20)}
    described = {**TAKES_DEFAULT, "metadata": metadata}

    @stage.component
    async def calls(context: Context) -> Any:
        return [(await context.submit_run(as_built(described), [])).flow_id for _ in range(10)]

    async with open_runtime(workers={"w": stage.worker}) as runtime:
        ids = await runtime.run(one_step("/w/calls", {}))
    assert len(set(ids)) == 1


async def test_one_key_leads_to_one_run_also_when_the_run_that_it_led_to_has_failed(stage: Stage) -> None:
    key = "11111111-1111-1111-1111-111111111111"
    found: list[str] = []

    @stage.component
    async def again(context: Context) -> None:
        failed = await context.submit_run(FAILS, [1], wait=True, subflow_key=key)

        async def submit() -> None:
            found.append((await context.submit_run(FAILS, [1], subflow_key=key)).run_id)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(submit)
        assert failed.run_id not in found

    async with open_runtime(workers={"w": stage.worker}) as runtime:
        await runtime.run(one_step("/w/again", {}))
    assert len(found) == 3
    assert len(set(found)) == 1


@pytest.mark.parametrize("turns", range(8))
async def test_a_run_that_is_at_work_has_its_flow_whenever_somebody_deletes_it(
    stage: Stage, turns: int
) -> None:
    waits = one_step("/w/wait", {"name": "it"})
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        flow_id = await runtime.flows.put(flow_from_json(waits))

        async def delete() -> None:
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            with contextlib.suppress(StateConflict):
                await runtime.flows.delete(flow_id)

        async def submit() -> None:
            with contextlib.suppress(FlowNotFound):
                run_id = await runtime.submit_stored(flow_id, [None])
                await trio.testing.wait_all_tasks_blocked()
                assert (await runtime.history.get(run_id)).status == "running"
                assert await runtime.flows.get(flow_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit)
            nursery.start_soon(delete)


async def test_a_run_is_not_deleted_while_one_that_came_late_below_it_is_at_work(
    stage: Stage, autojump_clock: Any
) -> None:
    begun: list[tuple[Connection, str]] = []

    async def begin(connection: Connection, params: ExecuteParams) -> None:
        begun.append((connection, params.observability.run_id or ""))
        await submit(one_step("/w/sleep", {"seconds": 9}))

    async def submit(tested: dict[str, Any]) -> str:
        connection, parent_id = begun[0]
        flow_id = await runtime.flows.put(flow_from_json(tested))
        key = str(uuid.uuid4())
        given = {
            "flowId": flow_id,
            "inputs": [None],
            "subflowKey": key,
            "observability": {"run_id": parent_id},
        }
        return (await connection.call("runs/submit", given))["runId"]

    async with open_runtime(workers={"w": stage.worker, "raw": RawWorker(begin)}) as runtime:
        parent = await runtime.submit(one_step("/raw/begin"), [None])
        await parent.wait()
        late = await submit(one_step("/w/wait", {"name": "late"}))
        await trio.sleep(20)
        assert (await runtime.history.get(late)).parent_run_id == parent.id
        with pytest.raises(StateConflict, match="or one below it, is at work"):
            await runtime.history.delete(parent.id)
        stage.release.set()
        assert (await runtime.history.wait(late)).status == "completed"
        await trio.testing.wait_all_tasks_blocked()
        await runtime.history.delete(parent.id)
        with pytest.raises(RunNotFound):
            await runtime.history.get(late)


@pytest.mark.parametrize("turns", range(6))
async def test_of_two_who_delete_a_flow_one_does_and_the_other_is_told_that_it_is_gone(turns: int) -> None:
    ends: list[str] = []
    async with open_runtime() as runtime:
        flow_id = await runtime.flows.put(flow_from_json(one_step("/x")))

        async def delete(turns: int) -> None:
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            try:
                await runtime.flows.delete(flow_id)
                ends.append("deleted")
            except FlowNotFound:
                ends.append("gone")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(delete, 0)
            nursery.start_soon(delete, turns)
    assert sorted(ends) == ["deleted", "gone"]
