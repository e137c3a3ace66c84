"""A runtime inside an application: what comes back, what comes out, what is left, what it costs others."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import signal
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from runtime_stage import OpenRunStore, Seen, Stage, flow, one_step, retrying, step
from trio.testing import wait_all_tasks_blocked

from stepflow_trio import (
    ComponentError,
    ConfigError,
    Context,
    ErrorCode,
    FlowInvalid,
    RunCancelled,
    RunFailed,
    Worker,
    open_runtime,
)
from stepflow_trio.engine import Link
from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.flows.model import flow_id
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.flows.results import Failed, Success
from stepflow_trio.runtime.config import (
    BuiltinPluginConfig,
    Config,
    McpPluginConfig,
    StdioPluginConfig,
)
from stepflow_trio.runtime.events import (
    ItemEnded,
    RunEnded,
    RunStarted,
    StepEnded,
    StepProgressed,
    StepStarted,
    WorkerEnded,
    WorkerStarted,
)
from stepflow_trio.runtime.routing import Route, Rule
from stepflow_trio.runtime.stores import Blob, MemoryBlobStore

ECHO = one_step("/w/echo", {"value": {"$input": "$"}})


@pytest.fixture
def stage() -> Stage:
    return Stage()


# ---- results --------------------------------------------------------------------------------------------


async def test_run_returns_the_flow_s_result(autojump_clock: Any, stage: Stage) -> None:
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        assert await runtime.run(ECHO, {"a": [1, None, "ä"]}) == {"a": [1, None, "ä"]}
        assert await runtime.run(ECHO) is None


async def test_what_a_component_raises_comes_out_of_run_unchanged(autojump_clock: Any, stage: Stage) -> None:
    class OutOfStock(ComponentError):
        code = -32110

    @stage.component
    async def order() -> None:
        raise OutOfStock("no widgets", data={"sku": 7})

    seen = Seen()
    async with open_runtime(workers={"w": stage.worker}, on_event=seen) as runtime:
        with pytest.raises(RunFailed) as caught:
            await runtime.run(one_step("/w/order", {}))
        assert (caught.value.code, caught.value.message) == (-32110, "no widgets")
        assert caught.value.data == {"sku": 7}
        assert caught.value.run_id == seen.of(RunStarted)[0].run_id
        assert not isinstance(caught.value, RunCancelled)
        assert await runtime.run(ECHO, 1) == 1


async def test_a_flow_is_given_as_json_as_a_file_or_as_it_was_read(
    autojump_clock: Any, stage: Stage, tmp_path: Path
) -> None:
    path = tmp_path / "flow.json"
    path.write_text(json.dumps(ECHO))
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        for given in (ECHO, path, str(path), flow_from_json(ECHO)):
            assert await runtime.run(given, 7) == 7


async def test_variables_reach_the_flow(autojump_clock: Any, stage: Stage) -> None:
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        asks = one_step("/w/echo", {"value": {"$variable": "$.who"}})
        assert await runtime.run(asks, variables={"who": "me"}) == "me"


async def test_200_runs_at_once_each_get_their_own_result(autojump_clock: Any, stage: Stage) -> None:
    results: dict[int, Any] = {}
    async with open_runtime(workers={"w": stage.worker}) as runtime, trio.open_nursery() as nursery:

        async def run(number: int) -> None:
            results[number] = await runtime.run(one_step("/w/sleep", {"seconds": {"$input": "$"}}), number)

        for number in range(200):
            nursery.start_soon(run, number)
    assert results == {number: number for number in range(200)}
    assert trio.current_time() == 199


async def test_a_component_is_told_run_flow_step_and_attempt(autojump_clock: Any, stage: Stage) -> None:
    @stage.component
    async def who(context: Context) -> Any:
        return [context.run_id, context.flow_id, context.step_id, context.attempt, context.deadline]

    run_id = uuid.UUID(int=7)
    asks = one_step("/w/who", {})
    async with open_runtime(workers={"w": stage.worker}, new_id=lambda: run_id) as runtime:
        told = await runtime.run(asks)
    assert told == [str(run_id), flow_id(flow_from_json(asks)), "only", 1, None]


async def test_a_run_and_the_runs_below_it_have_one_trace_and_every_step_has_its_own_span(
    autojump_clock: Any, stage: Stage
) -> None:
    @stage.component
    async def who(context: Context) -> Any:
        return [context.trace_id, context.span_id]

    @stage.component
    async def above(context: Context) -> Any:
        below = await context.evaluate_flow(one_step("/w/who", {}), None)
        return [[context.trace_id, context.span_id], below]

    both = flow(step("a", "/w/above", {}), step("b", "/w/who", {}), output=[{"$step": "a"}, {"$step": "b"}])
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        run = await runtime.submit(both, [1, 2])
        await run.wait()
    told = [
        pair
        for result in run.results
        if isinstance(result, Success)
        for pair in (*result.result[0], result.result[1])
    ]
    assert {trace_id for trace_id, _ in told} == {run.id.replace("-", "")}
    spans = {span_id for _, span_id in told}
    assert len(spans) == 6
    assert all(re.fullmatch("[0-9a-f]{16}", span_id) for span_id in spans)


async def test_a_component_can_read_the_flow_that_it_runs_in(autojump_clock: Any, stage: Stage) -> None:
    @stage.component
    async def own_flow(context: Context) -> Any:
        assert context.flow_id is not None
        return await context.get_blob(context.flow_id)

    asks = one_step("/w/own_flow", {})
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        assert await runtime.run(asks) == flow_from_json(asks).to_json()


# ---- order ----------------------------------------------------------------------------------------------


async def test_independent_steps_are_at_work_at_the_same_time(autojump_clock: Any, stage: Stage) -> None:
    parallel = flow(
        *(step(f"s{n}", "/w/wait", {"name": f"s{n}"}) for n in range(5)),
        output=[{"$step": f"s{n}"} for n in range(5)],
    )
    async with open_runtime(workers={"w": stage.worker}) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(runtime.run, parallel)
        await wait_all_tasks_blocked()
        assert sorted(stage.began) == ["s0", "s1", "s2", "s3", "s4"]
        assert stage.ended == []
        stage.release.set()
    assert trio.current_time() == 0


async def test_a_chain_is_executed_one_step_after_the_other(autojump_clock: Any, stage: Stage) -> None:
    at_work: list[int] = []

    @stage.component
    async def link(number: int) -> int:
        assert at_work == []
        at_work.append(number)
        await trio.sleep(1)
        at_work.remove(number)
        return number + 1

    chain = flow(
        step("s0", "/w/link", {"number": 0}),
        *(step(f"s{n}", "/w/link", {"number": {"$step": f"s{n - 1}"}}) for n in range(1, 5)),
    )
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        assert await runtime.run(chain) == 5
    assert trio.current_time() == 5


async def test_a_step_that_nothing_needs_is_not_executed(autojump_clock: Any, stage: Stage) -> None:
    lazy = flow(step("unused", "/w/wait", {"name": "x"}), step("used", "/w/echo", {"value": 1}))
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        assert await runtime.run(lazy) == 1
    assert stage.began == []


async def test_events_tell_a_run_s_story_in_order(autojump_clock: Any, stage: Stage) -> None:
    @stage.component
    async def half(context: Context) -> None:
        context.progress(0.5, "half")

    seen = Seen()
    run_id = str(uuid.UUID(int=1))
    at = datetime(2024, 1, 1, tzinfo=UTC)
    two = flow(step("a", "/w/half", {}), step("b", "/w/echo", {"value": {"$step": "a"}}))
    async with open_runtime(
        workers={"w": stage.worker}, on_event=seen, now=lambda: at, new_id=lambda: uuid.UUID(int=1)
    ) as runtime:
        await runtime.run(two, "in", variables={"v": 1})
    story = [event for event in seen if not isinstance(event, (WorkerStarted, WorkerEnded))]
    identity = flow_id(flow_from_json(two))
    assert story == [
        RunStarted(
            run_id=run_id,
            at=at,
            flow_id=identity,
            flow_name="tested",
            inputs=["in"],
            variables={"v": 1},
            max_concurrency=100,
            root_run_id=run_id,
        ),
        StepStarted(run_id=run_id, item_index=0, at=at, step_id="a", component="/w/half", attempt=1),
        StepProgressed(run_id=run_id, item_index=0, at=at, step_id="a", fraction=0.5, message="half"),
        StepEnded(run_id=run_id, item_index=0, at=at, step_id="a", result=Success(None)),
        StepStarted(run_id=run_id, item_index=0, at=at, step_id="b", component="/w/echo", attempt=1),
        StepEnded(run_id=run_id, item_index=0, at=at, step_id="b", result=Success(None)),
        ItemEnded(run_id=run_id, item_index=0, at=at, result=Success(None)),
        RunEnded(run_id=run_id, at=at, status="completed"),
    ]
    assert seen.of(WorkerStarted) == [WorkerStarted(plugin="w", pid=None)]
    assert isinstance(seen[-1], WorkerEnded)


# ---- many items -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_concurrency", [1, 3, 10, 11])
async def test_no_more_items_are_in_flight_than_max_concurrency_says(
    autojump_clock: Any, stage: Stage, max_concurrency: int
) -> None:
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        waits = one_step("/w/wait", {"name": {"$input": "$"}})
        names = [f"item {n}" for n in range(10)]
        run = await runtime.submit(waits, names, max_concurrency=max_concurrency)
        await wait_all_tasks_blocked()
        assert len(stage.began) == min(10, max_concurrency)
        stage.release.set()
        await run.wait()
        assert run.results == [Success(name) for name in names]
        assert run.status == "completed"


async def test_an_item_takes_the_place_of_one_that_has_ended(autojump_clock: Any, stage: Stage) -> None:
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        sleeps = one_step("/w/sleep", {"seconds": {"$input": "$"}})
        run = await runtime.submit(sleeps, [5, 1, 1, 1, 1, 1], max_concurrency=2)
        await run.wait()
    assert trio.current_time() == 5


async def test_max_concurrency_below_1_is_refused(autojump_clock: Any, stage: Stage) -> None:
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        with pytest.raises(ValueError, match="at least 1, not 0"):
            await runtime.submit(ECHO, [1], max_concurrency=0)


async def test_a_run_without_items_is_completed(autojump_clock: Any, stage: Stage) -> None:
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        run = await runtime.submit(ECHO, [])
        await run.wait()
        assert (run.status, run.results) == ("completed", [])


async def test_a_failed_item_fails_the_run_and_leaves_the_other_items_as_they_are(
    autojump_clock: Any, stage: Stage
) -> None:
    @stage.component
    async def only_even(number: int) -> int:
        if number % 2:
            raise ComponentError("odd", code=-32150)
        return number

    async with open_runtime(workers={"w": stage.worker}) as runtime:
        run = await runtime.submit(one_step("/w/only_even", {"number": {"$input": "$"}}), [0, 1, 2])
        await run.wait()
        assert run.status == "failed"
        assert [isinstance(result, Success) for result in run.results] == [True, False, True]


# ---- in and out of the block ----------------------------------------------------------------------------


async def test_two_runtimes_in_one_process_know_nothing_of_each_other(autojump_clock: Any) -> None:
    outer, inner = Stage(), Stage()
    outer_seen, inner_seen = Seen(), Seen()
    async with (
        open_runtime(workers={"w": outer.worker}, on_event=outer_seen) as first,
        open_runtime(workers={"w": inner.worker, "x": inner.worker}, on_event=inner_seen) as second,
    ):
        assert await first.run(one_step("/builtin/put_blob", {"data": 1, "blob_type": "data"}))
        assert await second.run(one_step("/x/echo", {"value": 2})) == 2
        with pytest.raises(RunFailed, match="not found"):
            await first.run(one_step("/x/echo", {"value": 2}))
        with pytest.raises(RunFailed, match="not found"):
            await second.run(one_step("/builtin/get_blob", {"blob_id": "6b86b273" + "0" * 56}))
    assert {event.run_id for event in outer_seen.of(RunStarted)}.isdisjoint(
        event.run_id for event in inner_seen.of(RunStarted)
    )


async def test_one_worker_object_serves_two_runtimes_at_once(autojump_clock: Any, stage: Stage) -> None:
    async with (
        open_runtime(workers={"a": stage.worker}) as first,
        open_runtime(workers={"b": stage.worker}) as second,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(first.run, one_step("/a/wait", {"name": "a"}))
        nursery.start_soon(second.run, one_step("/b/wait", {"name": "b"}))
        await wait_all_tasks_blocked()
        assert sorted(stage.began) == ["a", "b"]
        stage.release.set()


async def test_the_runtime_installs_no_signal_handlers(autojump_clock: Any, stage: Stage) -> None:
    before = [signal.getsignal(number) for number in signal.valid_signals()]
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        await runtime.run(ECHO)
        assert [signal.getsignal(number) for number in signal.valid_signals()] == before


@pytest.mark.parametrize("how", ["in order", "with an exception", "cancelled"])
async def test_no_task_is_left_behind_however_the_block_is_left(
    autojump_clock: Any, stage: Stage, how: str
) -> None:
    task = trio.lowlevel.current_task()
    assert task.parent_nursery is not None
    tasks_before, nurseries_before = task.parent_nursery.child_tasks, len(task.child_nurseries)
    seen = Seen()
    with trio.CancelScope() as scope, contextlib.suppress(LookupError):
        async with open_runtime(workers={"w": stage.worker}, on_event=seen) as runtime:
            await runtime.submit(one_step("/w/wait", {"name": "at work"}), [None])
            await stage.has_begun.wait()
            if how == "with an exception":
                raise LookupError(how)
            if how == "cancelled":
                scope.cancel()
    assert stage.cancelled == ["at work"]
    assert len(task.child_nurseries) == nurseries_before
    assert task.parent_nursery.child_tasks == tasks_before
    assert isinstance(seen[-1], WorkerEnded)


async def test_the_exception_of_the_block_comes_out_bare_and_with_its_own_context(
    autojump_clock: Any, stage: Stage
) -> None:
    async def block() -> None:
        async with open_runtime(workers={"w": stage.worker}) as runtime:
            await runtime.submit(one_step("/w/wait", {"name": "at work"}), [None])
            await stage.has_begun.wait()
            try:
                raise KeyError("first")
            except KeyError:
                raise LookupError("mine")  # noqa: B904 — the context is what is tested

    with pytest.raises(LookupError) as caught:
        await block()
    assert str(caught.value) == "mine"
    assert isinstance(caught.value.__context__, KeyError)


async def test_a_group_that_the_block_raises_stays_a_group(autojump_clock: Any, stage: Stage) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_runtime(workers={"w": stage.worker}):
            raise ExceptionGroup("mine", [LookupError("one")])
    assert caught.value.message == "mine"
    assert len(caught.value.exceptions) == 1


async def test_leaving_the_block_cancels_what_is_at_work_and_its_record_says_so(
    autojump_clock: Any, stage: Stage
) -> None:
    store = OpenRunStore()
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        run = await runtime.submit(one_step("/w/wait", {"name": "at work"}), [None])
        await stage.has_begun.wait()
    assert stage.cancelled == ["at work"]
    assert store.statuses == ["cancelled"]
    assert run.status == "cancelled"
    with trio.fail_after(1):
        await run.wait()


async def test_whoever_waits_for_a_run_when_the_runtime_closes_is_told_that_it_was_cancelled(
    autojump_clock: Any, stage: Stage
) -> None:
    async with trio.open_nursery() as nursery, open_runtime(workers={"w": stage.worker}) as runtime:

        async def wait() -> None:
            with pytest.raises(RunCancelled):
                await runtime.run(one_step("/w/wait", {"name": "at work"}))

        nursery.start_soon(wait)
        await stage.has_begun.wait()


async def test_a_runtime_whose_block_was_left_says_so(autojump_clock: Any, stage: Stage) -> None:
    store = OpenRunStore()
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        pass
    with pytest.raises(LocalProtocolError, match="block has been left"):
        await runtime.run(ECHO, 1)
    with pytest.raises(LocalProtocolError, match="block has been left"):
        await runtime.submit(ECHO, [1])
    with pytest.raises(LocalProtocolError, match="block has been left"):
        await runtime.list_components()
    assert store.records == []


# ---- what cannot be used --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"steps": [step("a", "/w/wait"), step("a", "/w/wait")], "output": {"$step": "a"}},
        {"steps": "none"},
        "no/such/file.yaml",
    ],
    ids=["invalid", "no flow", "no file"],
)
async def test_a_flow_that_cannot_be_read_starts_nothing(
    autojump_clock: Any, stage: Stage, given: Any
) -> None:
    store, seen = OpenRunStore(), Seen()
    async with open_runtime(workers={"w": stage.worker}, run_store=store, on_event=seen) as runtime:
        with pytest.raises(FlowInvalid):
            await runtime.run(given)
        with pytest.raises(FlowInvalid):
            await runtime.submit(given, [1, 2])
    assert store.records == []
    assert seen.of(RunStarted) == []
    assert stage.began == []


async def test_a_name_cannot_be_both_a_configured_plugin_and_a_worker(
    autojump_clock: Any, stage: Stage
) -> None:
    with pytest.raises(ConfigError, match="'builtin' is configured, and given as a worker"):
        async with open_runtime(workers={"builtin": stage.worker}):
            raise AssertionError("not reached")


async def test_a_route_to_a_plugin_that_nobody_gave_is_refused(autojump_clock: Any, stage: Stage) -> None:
    config = Config(plugins={}, routes=(Route("/x/{*component}", (Rule(plugin="wrkr"),)),), source="by hand")
    with pytest.raises(ConfigError, match="wrkr"):
        async with open_runtime(config, workers={"worker": stage.worker}):
            raise AssertionError("not reached")


async def test_a_configured_route_decides_where_a_worker_s_components_are(
    autojump_clock: Any, stage: Stage
) -> None:
    config = Config(plugins={}, routes=(Route("/mine/{*c}", (Rule(plugin="w"),)),), source="by hand")
    async with open_runtime(config, workers={"w": stage.worker}) as runtime:
        assert await runtime.run(one_step("/mine/echo", {"value": 1})) == 1
        with pytest.raises(RunFailed) as caught:
            await runtime.run(one_step("/w/echo", {"value": 1}))
        assert caught.value.code == ErrorCode.ENTITY_NOT_FOUND
        assert [listed.path for listed in await runtime.list_components()] == [
            "/mine/echo",
            "/mine/sleep",
            "/mine/wait",
        ]


async def test_a_component_that_does_not_exist_is_a_failure_that_names_the_closest(
    autojump_clock: Any, stage: Stage
) -> None:
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        with pytest.raises(RunFailed) as caught:
            await runtime.run(one_step("/w/ecco"))
        assert caught.value.code == ErrorCode.COMPONENT_NOT_FOUND
        assert caught.value.data["suggestion"] == "did you mean /echo?"
    assert trio.current_time() == 0


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"a": [1, float("nan")]}, "$.a[1]"),
        (float("inf"), "$"),
        (["\ud800"], "$[0]"),
        ({1: "x"}, "$"),
        ({1, 2}, "$"),
        (b"bytes", "$"),
        ((1, 2), "$"),
        (datetime(2024, 1, 1, tzinfo=UTC), "$"),
        (object(), "$"),
    ],
    ids=str,
)
async def test_an_input_that_is_no_json_is_refused_with_its_place(
    autojump_clock: Any, stage: Stage, given: Any, where: str
) -> None:
    store = OpenRunStore()
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        with pytest.raises(LocalProtocolError, match=re.escape(where)) as caught:
            await runtime.submit(ECHO, [0, given])
        assert "<input 1>" in str(caught.value)
        with pytest.raises(LocalProtocolError, match="<variables>"):
            await runtime.run(ECHO, 0, variables={"v": given})
        assert await runtime.run(ECHO, 1) == 1
    assert store.statuses == ["completed"]


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [100, 124, 126, 127, 128, 129, 200])
async def test_an_input_that_nests_too_deep_gives_an_error_and_never_a_hang(
    autojump_clock: Any, stage: Stage, depth: int
) -> None:
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        with trio.fail_after(100):
            if depth <= 124:
                assert await runtime.run(ECHO, nested(depth)) == nested(depth)
            else:
                with pytest.raises((RunFailed, LocalProtocolError), match="deep"):
                    await runtime.run(ECHO, nested(depth))
        assert await runtime.run(ECHO, 1) == 1


# ---- listing --------------------------------------------------------------------------------------------


async def test_every_component_is_listed_by_its_path_with_what_the_worker_says_of_it(
    autojump_clock: Any,
) -> None:
    worker = Worker()

    @worker.component
    async def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    async with open_runtime(workers={"math": worker}) as runtime:
        listed = await runtime.list_components()
    assert [component.path for component in listed] == [
        "/builtin/create_messages",
        "/builtin/eval",
        "/builtin/get_blob",
        "/builtin/iterate",
        "/builtin/load_file",
        "/builtin/map",
        "/builtin/openai",
        "/builtin/put_blob",
        "/math/add",
    ]
    added = listed[-1]
    assert (added.plugin, added.info.component, added.info.description) == (
        "math",
        "/add",
        "Add two numbers.",
    )
    assert added.info.input_schema is not None
    assert added.info.input_schema["required"] == ["a", "b"]


async def test_a_plugin_that_does_not_work_costs_only_its_own_components_and_says_why(
    autojump_clock: Any, stage: Stage, tmp_path: Path
) -> None:
    config = Config(
        plugins={
            "builtin": BuiltinPluginConfig(),
            "missing": StdioPluginConfig(command="no-such-program-anywhere", working_directory=tmp_path),
            "mcp": McpPluginConfig(command="no-such-server", working_directory=tmp_path),
        },
        routes=(
            Route("/builtin/{*c}", (Rule(plugin="builtin"),)),
            Route("/missing/{*c}", (Rule(plugin="missing"),)),
            Route("/mcp/{*c}", (Rule(plugin="mcp"),)),
        ),
        source="by hand",
    )
    async with open_runtime(config, workers={"w": stage.worker}) as runtime:
        assert await runtime.run(ECHO, 1) == 1
        with pytest.raises(RunFailed, match="no-such-program-anywhere") as caught:
            await runtime.run(one_step("/missing/x"))
        assert caught.value.code == ErrorCode.SPAWN_FAILED
        with pytest.raises(RunFailed, match="mcp") as caught:
            await runtime.run(one_step("/mcp/x"))
        # Without the extra its package is what is missing.
        assert caught.value.code in (ErrorCode.SPAWN_FAILED, ErrorCode.CONFIGURATION_ERROR)
        paths = [component.path for component in await runtime.list_components()]
        assert "/w/echo" in paths
        assert not [path for path in paths if path.startswith(("/missing", "/mcp"))]
        problems = runtime.plugin_problems
        assert set(problems) == {"missing", "mcp"}
        assert "no-such-program-anywhere" in problems["missing"]


# ---- faults that are contained --------------------------------------------------------------------------


class BrokenBlobStore(MemoryBlobStore):
    async def get(self, blob_id: str) -> Blob:
        raise RuntimeError("secret detail")


async def test_an_unexpected_exception_of_a_plugin_costs_its_item_and_stays_in_the_log(
    autojump_clock: Any, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    reads = one_step("/builtin/get_blob", {"blob_id": "0" * 64})
    async with open_runtime(workers={"w": stage.worker}, blob_store=BrokenBlobStore()) as runtime:
        with caplog.at_level(logging.ERROR), pytest.raises(RunFailed) as caught:
            await runtime.run(reads)
        assert caught.value.code == ErrorCode.RUNTIME_INTERNAL
        assert "secret" not in repr(caught.value)
        incident = caught.value.data["incident"]
        assert re.fullmatch("[0-9a-f]{8}", incident)
        assert incident in caplog.text
        assert "secret detail" in caplog.text
        assert await runtime.run(ECHO, 1) == 1


async def test_an_observer_that_raises_costs_nothing(
    autojump_clock: Any, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(event: Any) -> None:
        raise RuntimeError(f"cannot take {type(event).__name__}")

    with caplog.at_level(logging.ERROR):
        async with open_runtime(workers={"w": stage.worker}, on_event=raises) as runtime:
            assert await runtime.run(ECHO, 1) == 1
    assert "cannot take RunStarted" in caplog.text


class FailingRunStore(OpenRunStore):
    def __init__(self, event: type) -> None:
        super().__init__()
        self.event: type | None = event

    async def append(self, event: Any) -> None:
        if type(event) is self.event:
            raise OSError("disk full")
        await super().append(event)


@pytest.mark.parametrize("event", [StepStarted, StepEnded, ItemEnded])
async def test_a_run_store_that_fails_costs_the_run_and_not_the_runtime(
    autojump_clock: Any, stage: Stage, event: type
) -> None:
    store = FailingRunStore(event)
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        with pytest.raises(RunFailed, match="internal error") as caught:
            await runtime.run(ECHO, 1)
        assert caught.value.code == ErrorCode.RUNTIME_INTERNAL
        store.event = None
        assert await runtime.run(ECHO, 1) == 1
    assert store.statuses == ["failed", "completed"]


async def test_a_run_that_cannot_be_recorded_is_not_started(autojump_clock: Any, stage: Stage) -> None:
    store = FailingRunStore(RunStarted)
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        with pytest.raises(OSError, match="disk full"):
            await runtime.run(one_step("/w/wait", {"name": "x"}))
        store.event = None
        assert await runtime.run(ECHO, 1) == 1
    assert stage.began == []


async def test_a_run_whose_end_cannot_be_recorded_ends_all_the_same(
    autojump_clock: Any, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    store = FailingRunStore(RunEnded)
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        assert await runtime.run(ECHO, 1) == 1
    assert "is completed could not be recorded" in caplog.text


@pytest.mark.parametrize("how", ["raises", "returns", "raises later"])
async def test_a_worker_object_that_breaks_costs_only_its_own_components(
    autojump_clock: Any, stage: Stage, how: str
) -> None:
    class Breaking:
        async def serve(self, link: Link) -> None:
            if how == "raises later":
                with trio.move_on_after(1):
                    await stage.worker.serve(link)
            if how != "returns":
                raise RuntimeError("broken worker")

    config = retrying(1)
    async with open_runtime(config, workers={"broken": Breaking(), "w": stage.worker}) as runtime:
        with trio.fail_after(100), pytest.raises(RunFailed) as caught:
            await runtime.run(one_step("/broken/wait", {"name": "x"}))
        assert caught.value.code == ErrorCode.CONNECTION_LOST
        assert ("RuntimeError: broken worker" in caught.value.message) is (how != "returns")
        assert await runtime.run(ECHO, 1) == 1


async def test_results_are_those_of_the_items_even_if_they_end_in_another_order(
    autojump_clock: Any, stage: Stage
) -> None:
    delays: Sequence[float] = [3, 1, 2]
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        run = await runtime.submit(one_step("/w/sleep", {"seconds": {"$input": "$"}}), delays)
        await run.wait()
        assert run.results == [Success(delay) for delay in delays]
        assert not any(isinstance(result, Failed) for result in run.results)


async def test_a_flow_that_runs_itself_fails_where_runs_nest_too_deep(autojump_clock: Any) -> None:
    itself = {
        "steps": [
            {
                "id": "again",
                "component": "/builtin/eval",
                "input": {"flow_id": {"$input": "id"}, "input": {"$input": "$"}},
            }
        ],
        "output": {"$step": "again", "path": "result"},
    }
    async with open_runtime() as runtime:
        id_ = flow_id(flow_from_json(itself))
        result = await runtime.run(itself, {"id": id_})
        while result["outcome"] == "success":
            result = result["result"]
        assert "runs nest deeper than 64 levels" in result["error"]["message"]


async def test_a_configuration_is_given_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "stepflow-config.yml"
    path.write_text("plugins: {b: {type: builtin}}\nroutes: {'/x/{*component}': [{plugin: b}]}\n", "utf-8")
    async with open_runtime(path) as runtime:
        assert "/x/put_blob" in [component.path for component in await runtime.list_components()]
    with pytest.raises(ConfigError, match="cannot be read"):
        async with open_runtime(str(tmp_path / "absent.yml")):
            raise NotImplementedError


async def test_what_is_no_worker_and_what_is_no_list_of_inputs_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"workers\['w'\] .* must be a Worker"):
        async with open_runtime(workers={"w": Worker}):  # type: ignore[dict-item]  # the mistake is the test
            raise NotImplementedError
    async with open_runtime() as runtime:
        for inputs in ({"x": 1}, 5, "text", {1, 2}, None):
            with pytest.raises(TypeError, match=f"one input for each item, not {type(inputs).__name__}"):
                await runtime.submit({"steps": [], "output": 1}, inputs)  # type: ignore[arg-type]  # likewise


@pytest.mark.parametrize("workers", [Worker(), [Worker()], 5])
async def test_workers_that_are_no_mapping_are_refused(workers: Any) -> None:
    with pytest.raises(ConfigError, match=r"workers is .*; it must be a dict"):
        async with open_runtime(workers=workers):
            raise NotImplementedError


@pytest.mark.parametrize("name", ["a/b", "", "{a}", "a b", 5])
async def test_a_worker_s_name_that_makes_no_path_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"workers has the name .*: its components would be at /<name>/…"):
        async with open_runtime(workers={name: Worker()}):
            raise NotImplementedError
