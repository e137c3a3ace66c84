"""Cancellation, promises 5 and 7: a run is one tree of scopes, whatever runs and workers are below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from runtime_stage import OpenRunStore, Seen, Stage, flow, one_step, step
from trio.testing import wait_all_tasks_blocked

from stepflow_trio import (
    CallFailed,
    Context,
    ErrorCode,
    RpcError,
    Runtime,
    open_runtime,
)
from stepflow_trio.engine import Link
from stepflow_trio.flows.results import Failed, Success
from stepflow_trio.runtime import hosted_worker
from stepflow_trio.runtime.events import (
    RunEnded,
    RunStarted,
    StepEnded,
    StepStarted,
    WorkerEnded,
    WorkerStarted,
)
from stepflow_trio.runtime.stores import Blob, MemoryBlobStore
from stepflow_trio.testing import Cancellable, cancel_everywhere

GRACE_S = hosted_worker.CANCEL_GRACE_S

WAITS = one_step("/w/wait", {"name": {"$input": "$"}})
"""Its component waits for the stage's ``release``."""


class NestingStage(Stage):
    """More components, each of which has a run, given as its input, below its own."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: list[Any] = []
        for component in (self._evaluates, self._submits, self._submits_and_waits, self._batches):
            self.worker.add_component(component, path=component.__name__.replace("_", "/", 1))

    async def _evaluates(self, flow: dict[str, Any], input: Any, context: Context) -> Any:
        return await self._noting("evaluates", lambda: context.evaluate_flow(flow, input))

    async def _submits(self, flow: dict[str, Any], input: Any, context: Context) -> Any:
        async def submit_and_stay() -> Any:
            await context.submit_run(flow, [input])
            await trio.sleep_forever()

        return await self._noting("submits", submit_and_stay)

    async def _submits_and_waits(self, flow: dict[str, Any], input: Any, context: Context) -> Any:
        async def submit_and_wait() -> Any:
            submitted = await context.submit_run(flow, [input])
            return await context.get_run(submitted.run_id, wait=True)

        return await self._noting("submits_and_waits", submit_and_wait)

    async def _batches(self, flow: dict[str, Any], input: Any, context: Context) -> Any:
        return await self._noting("batches", lambda: context.evaluate_run(flow, [input, input]))

    async def _noting(self, name: str, act: Callable[[], Any]) -> Any:
        self.began.append(name)
        try:
            return await act()
        except trio.Cancelled:
            self.cancelled.append(name)
            raise
        finally:
            self.ended.append(name)


@pytest.fixture
def stage() -> NestingStage:
    return NestingStage()


async def cancel_run_when(condition: Callable[[], bool], runtime: Runtime, *run: Any) -> None:
    """Run, and cancel the caller as soon as nothing moves any more; the condition must hold then."""
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def caller() -> None:
            with scope:
                await runtime.run(*run)

        nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        assert condition()
        scope.cancel()
    assert scope.cancelled_caught
    await wait_all_tasks_blocked()


# ---- one tree -------------------------------------------------------------------------------------------


async def test_cancelling_run_cancels_the_component_whose_finally_runs(
    autojump_clock: Any, stage: Stage
) -> None:
    store, seen = OpenRunStore(), Seen()
    async with open_runtime(workers={"w": stage.worker}, run_store=store, on_event=seen) as runtime:
        await cancel_run_when(lambda: stage.began == ["x"], runtime, WAITS, "x")
        assert stage.cancelled == stage.ended == ["x"]
        assert store.statuses == ["cancelled"]
        stage.release.set()
        assert await runtime.run(WAITS, "y") == "y"
    assert store.statuses == ["cancelled", "completed"]
    assert len(seen.of(WorkerStarted)) == 1
    assert trio.current_time() == 0


async def test_cancelling_run_cancels_every_step_that_is_at_work(autojump_clock: Any, stage: Stage) -> None:
    parallel = flow(
        *(step(f"s{n}", "/w/wait", {"name": f"s{n}"}) for n in range(20)),
        output=[{"$step": f"s{n}"} for n in range(20)],
    )
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        await cancel_run_when(lambda: len(stage.began) == 20, runtime, parallel)
        assert len(stage.cancelled) == 20


async def test_cancelling_a_submitted_run_cancels_its_items_and_starts_no_further_ones(
    autojump_clock: Any, stage: Stage
) -> None:
    store = OpenRunStore()
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        run = await runtime.submit(WAITS, [str(n) for n in range(10)], max_concurrency=4)
        await wait_all_tasks_blocked()
        run.cancel()
        await run.wait()
        await wait_all_tasks_blocked()
        assert len(stage.began) == len(stage.cancelled) == 4
        assert run.results == [None] * 10
        assert run.status == "cancelled"
    assert store.statuses == ["cancelled"]


async def test_items_that_have_ended_keep_their_results_when_the_rest_is_cancelled(
    autojump_clock: Any, stage: Stage
) -> None:
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        sleeps = one_step("/w/sleep", {"seconds": {"$input": "$"}})
        run = await runtime.submit(sleeps, [1, 5, 2])
        await trio.sleep(3)
        run.cancel()
        await run.wait()
        assert run.results == [Success(1), None, Success(2)]


class SlowBlobStore(MemoryBlobStore):
    """Never done with data, and says who was cancelled in it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = self.cancelled = 0

    async def put(self, content: bytes, blob_type: str, filename: str | None = None) -> str:
        if blob_type == "data":
            self.waiting += 1
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                self.cancelled += 1
                raise
        return await super().put(content, blob_type)


async def test_cancelling_run_cancels_the_callbacks_of_its_components(
    autojump_clock: Any, stage: Stage
) -> None:
    @stage.component
    async def stores(context: Context) -> None:
        async with trio.open_nursery() as nursery:
            for n in range(3):
                nursery.start_soon(context.put_blob, n)

    store = SlowBlobStore()
    async with open_runtime(workers={"w": stage.worker}, blob_store=store) as runtime:
        await cancel_run_when(lambda: store.waiting == 3, runtime, one_step("/w/stores", {}))
        assert store.cancelled == 3


SUBMITTERS = ["evaluates", "submits", "submits_and_waits", "batches"]


def below(component: str, flow: Any, input: Any) -> dict[str, Any]:
    """A flow whose one component runs another flow."""
    return one_step(component, {"$literal": {"flow": flow, "input": input}})


@pytest.mark.parametrize("how", SUBMITTERS)
async def test_cancelling_run_cancels_the_runs_that_its_components_submitted(
    autojump_clock: Any, stage: Stage, how: str
) -> None:
    store = OpenRunStore()
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        nested = below(f"/w/{how}", WAITS, "x")
        await cancel_run_when(lambda: "x" in stage.began, runtime, nested)
        assert sorted(stage.cancelled) == sorted(stage.began)
        assert set(store.statuses) == {"cancelled"}
        assert len(store.records) == 2
        await trio.sleep(1000)
        assert set(store.statuses) == {"cancelled"}


@pytest.mark.parametrize(
    ("component", "input"),
    [
        ("/builtin/map", {"workflow": WAITS, "items": ["x"] * 5}),
        ("/builtin/iterate", {"flow": WAITS, "initial_input": "x"}),
    ],
    ids=["map", "iterate"],
)
async def test_cancelling_run_cancels_the_runs_of_builtin_components(
    autojump_clock: Any, stage: Stage, component: str, input: Any
) -> None:
    store = OpenRunStore()
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        nested = one_step(component, {"$literal": input})
        await cancel_run_when(lambda: "x" in stage.began, runtime, nested)
        assert stage.cancelled == stage.began
        assert store.statuses == ["cancelled", "cancelled"]


async def test_cancelling_run_cancels_the_run_of_builtin_eval(autojump_clock: Any, stage: Stage) -> None:
    store = OpenRunStore()
    stored = flow(
        step("put", "/builtin/put_blob", {"$literal": {"data": WAITS, "blob_type": "flow"}}),
        step("eval", "/builtin/eval", {"flow_id": {"$step": "put", "path": "blob_id"}, "input": "x"}),
    )
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        await cancel_run_when(lambda: "x" in stage.began, runtime, stored)
        assert stage.cancelled == ["x"]
        assert store.statuses == ["cancelled", "cancelled"]


@pytest.mark.parametrize("inner", [*SUBMITTERS, "map"])
@pytest.mark.parametrize("outer", [*SUBMITTERS, "map"])
async def test_the_tree_holds_across_two_levels_of_runs_and_two_workers(
    autojump_clock: Any, outer: str, inner: str
) -> None:
    first, second = NestingStage(), NestingStage()

    def nested(how: str, worker: str, flow: Any) -> Any:
        if how == "map":
            return one_step("/builtin/map", {"$literal": {"workflow": flow, "items": ["x", "x"]}})
        return below(f"/{worker}/{how}", flow, "x")

    leaf = one_step("/first/wait", {"name": "leaf"})
    tree = nested(outer, "first", nested(inner, "second", leaf))
    store = OpenRunStore()
    workers = {"first": first.worker, "second": second.worker}
    async with open_runtime(workers=workers, run_store=store) as runtime:
        await cancel_run_when(lambda: "leaf" in first.began, runtime, tree)
        for stage in (first, second):
            assert sorted(stage.cancelled) == sorted(stage.began) == sorted(stage.ended)
        assert len(store.records) >= 3
        assert set(store.statuses) == {"cancelled"}
    assert trio.current_time() == 0


async def test_a_component_that_gives_up_a_run_cancels_it_and_goes_on(
    autojump_clock: Any, stage: Stage
) -> None:
    @stage.component
    async def impatient(context: Context) -> str:
        with trio.move_on_after(5):
            await context.evaluate_flow(WAITS, "x")
        return "went on"

    store = OpenRunStore()
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        assert await runtime.run(one_step("/w/impatient", {})) == "went on"
        await wait_all_tasks_blocked()
        assert stage.cancelled == ["x"]
        assert store.statuses == ["completed", "cancelled"]
    assert trio.current_time() == 5


async def test_a_component_that_stops_waiting_for_a_run_leaves_it_at_work(
    autojump_clock: Any, stage: Stage
) -> None:
    @stage.component
    async def impatient(context: Context) -> str:
        waited = await context.submit_run(WAITS, ["x"], wait=True, timeout_s=5)
        with trio.move_on_after(5):
            await context.get_run(waited.run_id, wait=True)
        stage.release.set()
        return (await context.get_run(waited.run_id, wait=True)).status

    store = OpenRunStore()
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        assert await runtime.run(one_step("/w/impatient", {})) == "completed"
    assert store.statuses == ["completed", "completed"]
    assert trio.current_time() == 10


async def test_a_run_that_nobody_waits_for_outlives_the_run_that_submitted_it(
    autojump_clock: Any, stage: Stage
) -> None:
    @stage.component
    async def forgets(context: Context) -> str:
        return (await context.submit_run(WAITS, ["x"])).run_id

    store = OpenRunStore()
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        await runtime.run(one_step("/w/forgets", {}))
        await wait_all_tasks_blocked()
        assert store.statuses == ["completed", "running"]
        stage.release.set()
        await wait_all_tasks_blocked()
        assert store.statuses == ["completed", "completed"]


async def test_a_run_that_is_over_can_still_be_cancelled_with_all_that_it_left_at_work(
    autojump_clock: Any, stage: Stage
) -> None:
    @stage.component
    async def forgets(context: Context) -> str:
        return (await context.submit_run(WAITS, ["x"])).run_id

    store = OpenRunStore()
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        run = await runtime.submit(one_step("/w/forgets", {}), [None])
        await run.wait()
        await stage.has_begun.wait()
        run.cancel()
        await wait_all_tasks_blocked()
        assert stage.cancelled == ["x"]
        assert store.statuses == ["completed", "cancelled"]
        assert run.status == "completed"


async def test_a_component_that_does_not_listen_cannot_start_runs_for_a_cancelled_run(
    autojump_clock: Any, stage: Stage
) -> None:
    refusals: list[CallFailed] = []

    @stage.component
    async def deaf(context: Context) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                await trio.sleep(1)
                try:
                    await context.submit_run(WAITS, ["late"])
                except CallFailed as exc:
                    refusals.append(exc)

    store = OpenRunStore()
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        run = await runtime.submit(one_step("/w/deaf", {}), [None])
        await wait_all_tasks_blocked()
        run.cancel()
        await trio.sleep(3)
        assert [refusal.code for refusal in refusals] == [ErrorCode.REQUEST_CANCELLED]
        assert stage.began == []
        assert store.statuses == ["cancelled"]


# ---- status ---------------------------------------------------------------------------------------------


async def test_a_cancelled_run_ends_once_and_stays_cancelled_whatever_its_component_does(
    autojump_clock: Any, stage: Stage
) -> None:
    @stage.component
    async def stubborn() -> str:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 3):
            await trio.sleep_forever()
        return "done all the same"

    store, seen = OpenRunStore(), Seen()
    async with open_runtime(workers={"w": stage.worker}, run_store=store, on_event=seen) as runtime:
        await cancel_run_when(lambda: True, runtime, one_step("/w/stubborn", {}))
        assert store.statuses == ["cancelled"]
        await trio.sleep(10)
        assert store.statuses == ["cancelled"]
        assert [event.status for event in seen.of(RunEnded)] == ["cancelled"]
        assert seen.of(StepEnded) == []


async def test_whoever_else_waits_for_a_run_that_is_cancelled_is_told(
    autojump_clock: Any, stage: Stage
) -> None:
    async with open_runtime(workers={"w": stage.worker}) as runtime, trio.open_nursery() as nursery:
        run = await runtime.submit(WAITS, ["x"])
        nursery.start_soon(run.wait)
        nursery.start_soon(run.wait)
        await wait_all_tasks_blocked()
        run.cancel()


async def test_cancelling_a_waiter_leaves_a_submitted_run_as_it_is(autojump_clock: Any, stage: Stage) -> None:
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        run = await runtime.submit(WAITS, ["x"])
        with trio.move_on_after(1) as scope:
            await run.wait()
        assert scope.cancelled_caught
        stage.release.set()
        await run.wait()
        assert run.results == [Success("x")]


async def test_cancelling_a_run_that_has_ended_changes_nothing(autojump_clock: Any, stage: Stage) -> None:
    store = OpenRunStore()
    stage.release.set()
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        run = await runtime.submit(WAITS, ["x"])
        await run.wait()
        run.cancel()
        await wait_all_tasks_blocked()
        assert (run.status, run.results) == ("completed", [Success("x")])
    assert store.statuses == ["completed"]


async def test_a_fault_in_what_is_cancelled_costs_nothing_but_a_line_in_the_log(
    autojump_clock: Any, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    class Clumsy(MemoryBlobStore):
        async def get(self, blob_id: str) -> Blob:
            try:
                await trio.sleep_forever()
            finally:
                if blob_id.startswith("1"):
                    raise RuntimeError("clumsy")
            raise AssertionError("not reached")

    both = flow(
        step("a", "/builtin/get_blob", {"blob_id": "0" * 64}),
        step("b", "/builtin/get_blob", {"blob_id": "1" * 64}),
        output=[{"$step": "a"}, {"$step": "b"}],
    )
    store = OpenRunStore()
    async with open_runtime(workers={"w": stage.worker}, run_store=store, blob_store=Clumsy()) as runtime:
        await cancel_run_when(lambda: True, runtime, both)
        assert store.statuses == ["cancelled"]
        assert "clumsy" in caplog.text
        assert await runtime.run(one_step("/w/echo", {"value": 1})) == 1


# ---- who leaves when ------------------------------------------------------------------------------------


async def test_a_cancelled_caller_leaves_at_once_while_the_component_cleans_up(
    autojump_clock: Any, stage: Stage
) -> None:
    cleaned_at: list[float] = []

    @stage.component
    async def tidy() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 9):
                await trio.sleep(3)
            cleaned_at.append(trio.current_time())

    seen = Seen()
    async with open_runtime(workers={"w": stage.worker}, on_event=seen) as runtime:
        with trio.move_on_after(1):
            await runtime.run(one_step("/w/tidy", {}))
        assert trio.current_time() == 1
        await wait_all_tasks_blocked()
        assert [event.status for event in seen.of(RunEnded)] == ["cancelled"]
        await trio.sleep(10)
        assert cleaned_at == [4]
        assert len(seen.of(WorkerStarted)) == 1


async def test_cancelling_between_two_attempts_ends_the_run_at_once(
    autojump_clock: Any, stage: Stage
) -> None:
    @stage.component
    async def overloaded() -> None:
        raise RpcError(ErrorCode.OVERLOADED, "full", {"retry_after_s": 1000})

    store = OpenRunStore()
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        with trio.move_on_after(30):
            await runtime.run(one_step("/w/overloaded", {}))
        assert trio.current_time() == 30
        await wait_all_tasks_blocked()
        assert store.statuses == ["cancelled"]


async def test_cancelling_while_the_worker_starts_leaves_at_once(autojump_clock: Any) -> None:
    class Silent:
        async def serve(self, link: Link) -> None:
            await trio.sleep_forever()

    async with open_runtime(workers={"w": Silent()}) as runtime:
        with trio.move_on_after(1):
            await runtime.run(one_step("/w/x"))
        assert trio.current_time() == 1
    assert trio.current_time() == 1


# ---- components that do not listen ----------------------------------------------------------------------


class DeafStage(Stage):
    """Its component `/deaf` takes no notice of being cancelled until ``release``."""

    def __init__(self) -> None:
        super().__init__()
        self.worker.add_component(self._deaf, path="/deaf")

    async def _deaf(self) -> str:
        self.began.append("deaf")
        # A test's end is what bounds it.
        with trio.CancelScope(shield=True):
            await self.release.wait()
        return "at last"


async def test_a_worker_that_does_not_end_a_cancelled_execution_is_replaced_and_others_finish_on_it(
    autojump_clock: Any,
) -> None:
    stage, seen = DeafStage(), Seen()
    async with open_runtime(workers={"w": stage.worker}, on_event=seen) as runtime:
        other = await runtime.submit(one_step("/w/sleep", {"seconds": 100}), [None])
        with trio.move_on_after(1):
            await runtime.run(one_step("/w/deaf", {}))
        assert trio.current_time() == 1
        await trio.sleep(GRACE_S + 1)
        assert len(seen.of(WorkerStarted)) == 1
        assert await runtime.run(one_step("/w/echo", {"value": 1})) == 1
        assert len(seen.of(WorkerStarted)) == 2
        assert seen.of(WorkerEnded) == []
        await other.wait()
        assert other.results == [Success(100)]
        assert trio.current_time() == 100
        assert [event.attempt for event in seen.of(StepStarted)] == [1, 1, 1]
        stage.release.set()
        await wait_all_tasks_blocked()
        await trio.sleep(10)
        assert len(seen.of(WorkerEnded)) == 1
        assert await runtime.run(one_step("/w/echo", {"value": 2})) == 2
        assert len(seen.of(WorkerStarted)) == 2


async def test_a_worker_whose_execution_ends_within_the_grace_is_kept(autojump_clock: Any) -> None:
    stage, seen = DeafStage(), Seen()
    async with open_runtime(workers={"w": stage.worker}, on_event=seen) as runtime:
        with trio.move_on_after(1):
            await runtime.run(one_step("/w/deaf", {}))
        await trio.sleep(GRACE_S - 1)
        stage.release.set()
        await trio.sleep(GRACE_S + 10)
        assert await runtime.run(one_step("/w/echo", {"value": 1})) == 1
    assert len(seen.of(WorkerStarted)) == 1


async def test_a_call_waits_for_the_new_worker_and_not_for_the_old_one(autojump_clock: Any) -> None:
    stage, seen = DeafStage(), Seen()
    async with open_runtime(workers={"w": stage.worker}, on_event=seen) as runtime:
        with trio.move_on_after(1):
            await runtime.run(one_step("/w/deaf", {}))
        await trio.sleep(GRACE_S + 1)
        with trio.fail_after(1):
            results = [await runtime.run(one_step("/w/echo", {"value": n})) for n in range(5)]
        assert results == [0, 1, 2, 3, 4]
        stage.release.set()


# ---- deadlines ------------------------------------------------------------------------------------------


async def test_a_deadline_around_run_reaches_the_component_and_the_components_below_it(
    autojump_clock: Any, stage: Stage
) -> None:
    @stage.component
    async def tells(context: Context) -> Any:
        below = await context.evaluate_flow(WAITS, "x") if context.step_id == "outer" else None
        return [context.deadline, below]

    stage.release.set()
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        await trio.sleep(10)
        with trio.move_on_after(5):
            assert await runtime.run(flow(step("outer", "/w/tells", {}))) == [15, "x"]
        assert stage.deadlines == [15]
        assert await runtime.run(one_step("/w/tells", {})) == [None, None]


async def test_the_nearest_deadline_around_run_counts(autojump_clock: Any, stage: Stage) -> None:
    @stage.component
    async def tells(context: Context) -> float | None:
        return context.deadline

    async with open_runtime(workers={"w": stage.worker}) as runtime:
        with trio.move_on_after(9), trio.move_on_after(3), trio.move_on_after(7):
            assert await runtime.run(one_step("/w/tells", {})) == 3


async def test_a_run_whose_deadline_passes_is_cancelled_with_its_caller(
    autojump_clock: Any, stage: Stage
) -> None:
    store = OpenRunStore()
    async with open_runtime(workers={"w": stage.worker}, run_store=store) as runtime:
        with pytest.raises(trio.TooSlowError), trio.fail_after(2):
            await runtime.run(WAITS, "x")
        assert trio.current_time() == 2
        await wait_all_tasks_blocked()
        assert stage.cancelled == ["x"]
        assert store.statuses == ["cancelled"]


async def test_the_items_of_a_submitted_run_fail_when_its_deadline_passes(
    autojump_clock: Any, stage: Stage
) -> None:
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        sleeps = one_step("/w/sleep", {"seconds": {"$input": "$"}})
        run = await runtime.submit(sleeps, [1, 9, 1], deadline=5, max_concurrency=2)
        await run.wait()
        assert trio.current_time() == 5
        assert run.status == "failed"
        assert [type(result) for result in run.results] == [Success, Failed, Success]
        failed = run.results[1]
        assert isinstance(failed, Failed)
        assert failed.error.code == ErrorCode.RUN_TIMED_OUT
        assert failed.error.message == "the run was not over within 5 s"


# ---- the sweep: cancelled at every step of the scheduler ------------------------------------------------


def ended_in_order(store: OpenRunStore, seen: Seen) -> None:
    """Every run that was recorded as started has ended, once."""
    started = [event.run_id for event in seen.of(RunStarted)]
    ended = [event.run_id for event in seen.of(RunEnded)]
    assert sorted(started) == sorted(ended) == sorted(record.run_id for record in store.records)
    assert "running" not in store.statuses


async def swept(cancellable: Cancellable, stage: Stage, run: Any, *more: Any) -> None:
    store, seen, blobs = OpenRunStore(), Seen(), MemoryBlobStore()
    async with open_runtime(
        workers={"w": stage.worker}, run_store=store, on_event=seen, blob_store=blobs
    ) as runtime:
        with cancellable:
            await runtime.run(run, *more)
        await wait_all_tasks_blocked()
        ended_in_order(store, seen)
        assert sorted(stage.began) == sorted(stage.ended)
        # Others are not affected.
        assert await runtime.run(one_step("/w/echo", {"value": 1})) == 1
        assert len(seen.of(WorkerStarted)) == 1


def test_a_run_can_be_cancelled_anywhere() -> None:
    async def a_run(cancellable: Cancellable) -> None:
        stage = Stage()
        stage.release.set()
        chain = flow(step("a", "/w/wait", {"name": "a"}), step("b", "/w/wait", {"name": {"$step": "a"}}))
        await swept(cancellable, stage, chain)

    report = cancel_everywhere(a_run)
    assert report.injections > 20


def test_a_run_with_callbacks_can_be_cancelled_anywhere() -> None:
    async def a_run_with_callbacks(cancellable: Cancellable) -> None:
        stage = Stage()

        @stage.component
        async def keeps(context: Context) -> Any:
            stage.began.append("keeps")
            try:
                return await context.get_blob(await context.put_blob({"a": 1}))
            finally:
                stage.ended.append("keeps")

        await swept(cancellable, stage, one_step("/w/keeps", {}))

    report = cancel_everywhere(a_run_with_callbacks)
    assert report.injections > 20


@pytest.mark.parametrize("how", ["evaluates", "submits_and_waits", "map"])
def test_a_run_with_a_run_below_it_can_be_cancelled_anywhere(how: str) -> None:
    async def a_run_with_a_run(cancellable: Cancellable) -> None:
        stage = NestingStage()
        stage.release.set()
        if how == "map":
            nested = one_step("/builtin/map", {"$literal": {"workflow": WAITS, "items": ["x", "y"]}})
        else:
            nested = below(f"/w/{how}", WAITS, "x")
        await swept(cancellable, stage, nested)

    report = cancel_everywhere(a_run_with_a_run)
    assert report.injections > 30


def test_a_runtime_can_be_cancelled_anywhere_while_it_starts_runs_and_ends() -> None:
    async def a_runtime(cancellable: Cancellable) -> None:
        stage, store, seen = Stage(), OpenRunStore(), Seen()
        stage.release.set()
        with cancellable:
            async with open_runtime(workers={"w": stage.worker}, run_store=store, on_event=seen) as runtime:
                await runtime.run(WAITS, "x")
        ended_in_order(store, seen)
        assert sorted(stage.began) == sorted(stage.ended)
        assert len(seen.of(WorkerStarted)) <= len(seen.of(WorkerEnded)) <= 1

    report = cancel_everywhere(a_runtime)
    assert report.injections > 30


def test_a_blob_is_stored_whole_or_not_at_all_wherever_its_writer_is_cancelled() -> None:
    async def a_put(cancellable: Cancellable) -> None:
        stage, blobs = Stage(), MemoryBlobStore()
        put_ids: list[str] = []

        @stage.component
        async def puts(context: Context) -> None:
            put_ids.append(await context.put_blob(["blob"]))

        async with open_runtime(workers={"w": stage.worker}, blob_store=blobs) as runtime:
            with cancellable:
                await runtime.run(one_step("/w/puts", {}))
            for blob_id in put_ids:
                assert await blobs.get(blob_id) == Blob(b'["blob"]', "data")

    assert cancel_everywhere(a_put).injections > 10
