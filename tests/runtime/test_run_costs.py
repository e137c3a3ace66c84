"""What steps, items and runs cost, in calls, tasks, events and bytes: those are the same on a slow day."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from runtime_stage import OpenRunStore, Stage, one_step

from stepflow_trio import Context, Runtime, open_runtime
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.runtime.events import Event, ItemEnded, RunEnded
from stepflow_trio.runtime.run_log import PackedRunLog, RunLog
from stepflow_trio.runtime.runs import Run

COMPONENT = "/builtin/create_messages"
TEXT = "$.messages[0].content"


def chain(steps: int) -> Flow:
    def text(index: int) -> dict[str, Any]:
        return {"$step": f"s{index - 1}", "path": TEXT} if index else {"$input": "$.text"}

    listed = [
        {"id": f"s{index}", "component": COMPONENT, "input": {"user_prompt": text(index)}}
        for index in range(steps)
    ]
    return flow_from_json({"steps": listed, "output": {"$step": f"s{steps - 1}", "path": TEXT}})


def side_by_side(steps: int) -> Flow:
    input = {"user_prompt": {"$input": "$.text"}}
    listed = [{"id": f"s{index}", "component": COMPONENT, "input": input} for index in range(steps)]
    return flow_from_json({"steps": listed, "output": [{"$step": f"s{index}"} for index in range(steps)]})


def inputs(items: int) -> list[Any]:
    return [{"text": f"number {index:06}"} for index in range(items)]


async def done(runtime: Runtime, flow: Flow, items: list[Any], **more: Any) -> Run:
    run = await runtime.submit(flow, items, **more)
    await run.wait()
    assert run.status == "completed"
    return run


class Scheduler(trio.abc.Instrument):
    """Counts tasks, their turns, and the calls between two looks at the outside world."""

    def __init__(self) -> None:
        self.spawned = self.turns = self.calls = self.most_calls = 0
        self._before = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.spawned += 1

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.turns += 1

    def after_io_wait(self, timeout: float) -> None:
        self._before = self.calls

    def before_io_wait(self, timeout: float) -> None:
        self.most_calls = max(self.most_calls, self.calls - self._before)

    def count(self, _frame: Any, event: str, _arg: Any) -> None:
        self.calls += event in ("call", "c_call")


@contextmanager
def watched(*, calls: bool = False) -> Generator[Scheduler]:
    scheduler = Scheduler()
    trio.lowlevel.add_instrument(scheduler)
    if calls:
        sys.setprofile(scheduler.count)
    try:
        yield scheduler
    finally:
        sys.setprofile(None)
        trio.lowlevel.remove_instrument(scheduler)


# ---- steps ----------------------------------------------------------------------------------------------


async def test_a_chain_of_any_length_stays_in_one_task_and_takes_one_turn_a_step() -> None:
    async with open_runtime() as runtime:
        seen: dict[int, tuple[int, int]] = {}
        for steps in 10, 110:
            with watched() as scheduler:
                await done(runtime, chain(steps), inputs(1))
            seen[steps] = scheduler.spawned, scheduler.turns
        assert seen[110][0] == seen[10][0]
        assert 90 < seen[110][1] - seen[10][1] < 110


async def test_of_steps_side_by_side_all_but_one_get_a_task() -> None:
    async with open_runtime() as runtime:
        with watched() as alone:
            await done(runtime, side_by_side(1), inputs(1))
        with watched() as together:
            await done(runtime, side_by_side(101), inputs(1))
        assert together.spawned - alone.spawned == 100


async def test_a_step_is_two_events_and_an_item_one_more() -> None:
    store = OpenRunStore()
    async with open_runtime(run_store=store) as runtime:
        await done(runtime, chain(7), inputs(11))
        assert store.records[0].last_seq == 1 + 11 * (2 * 7 + 1) + 1


async def test_a_flow_of_thousands_of_steps_lets_others_have_their_turns() -> None:
    """At some 10 million calls a second, 100,000 of them are 10 ms."""
    for make in chain, side_by_side:
        async with open_runtime() as runtime:
            flow = make(5000)
            await done(runtime, flow, inputs(1))
            with watched(calls=True) as scheduler:
                await done(runtime, flow, inputs(1))
            assert scheduler.most_calls < 100_000


# ---- items ----------------------------------------------------------------------------------------------


async def test_an_item_costs_the_same_in_a_batch_of_two_thousand() -> None:
    async with open_runtime() as runtime:
        flow = chain(3)
        await done(runtime, flow, inputs(200))
        calls: dict[int, int] = {}
        for items in 200, 2000:
            with watched(calls=True) as scheduler:
                await done(runtime, flow, inputs(items))
            calls[items] = scheduler.calls
        assert calls[2000] < 10.5 * calls[200]


async def test_a_batch_lets_others_have_their_turns() -> None:
    """Also one whose items have nothing to execute, or all fail before they begin."""
    nothing = flow_from_json({"steps": [], "output": {"$input": "$.text"}})
    no_route = flow_from_json({"steps": [{"id": "a", "component": "/x/y"}], "output": {"$step": "a"}})
    async with open_runtime() as runtime:
        for flow in chain(1), nothing, no_route:
            with watched(calls=True) as scheduler:
                run = await runtime.submit(flow, inputs(2000))
                await run.wait()
            assert all(run.results)
            assert scheduler.most_calls < 50_000


async def test_a_finished_item_costs_its_result_and_less_than_three_hundred_bytes() -> None:
    """Besides its input, which is the submitter's. Its result here is a short string in a `Success`."""
    async with open_runtime() as runtime:
        flow, given = chain(3), inputs(2000)
        await done(runtime, flow, given[:100])
        gc.collect()
        tracemalloc.start()
        try:
            await done(runtime, flow, given)
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert held / 2000 < 300


async def test_a_finished_run_leaves_little_to_the_garbage_collector() -> None:
    """It goes through all that it tracks again and again: a server has many runs."""
    async with open_runtime() as runtime:
        flow = chain(3)
        for each in inputs(20):
            await runtime.run(flow, each)
        gc.collect()
        gc.disable()
        try:
            before = len(gc.get_objects())
            for each in inputs(100):
                await runtime.run(flow, each)
            assert gc.collect() < 10, "runs leave cycles behind"
            assert len(gc.get_objects()) - before <= 3 * 100
        finally:
            gc.enable()


async def test_two_runs_at_once_progress_alike() -> None:
    ended: list[str] = []
    over: list[int] = []

    def observe(event: Event) -> None:
        if isinstance(event, ItemEnded):
            ended.append(event.run_id)
        elif isinstance(event, RunEnded):
            over.append(len(ended))

    async with open_runtime(on_event=observe) as runtime:
        runs = [await runtime.submit(chain(5), inputs(1000)) for _ in range(2)]
        for run in runs:
            await run.wait()
    first, last = over
    assert last == 2000
    assert first > 1800, "one was through when the other had hardly begun"


async def test_a_small_run_does_not_wait_for_the_items_of_a_large_one() -> None:
    async with open_runtime() as runtime:
        large = await runtime.submit(chain(5), inputs(1000))
        await runtime.run(chain(2), {"text": "small"})
        assert sum(result is not None for result in large.results) < 500
        await large.wait()


@pytest.mark.parametrize("items", [10, 200, 5_000])
async def test_the_items_of_a_run_are_looked_at_once_and_only_for_their_results(
    monkeypatch: pytest.MonkeyPatch, items: int
) -> None:
    unpacked: list[object] = []
    looked_at: list[int] = []
    unpack, item = PackedRunLog.unpacked, RunLog.item
    monkeypatch.setattr(PackedRunLog, "unpacked", lambda log: unpacked.append(log) or unpack(log))
    monkeypatch.setattr(RunLog, "item", lambda log, index: looked_at.append(index) or item(log, index))
    stage = Stage()

    @stage.component
    async def count(run_id: str, with_results: bool, context: Context) -> int:
        status = await context.get_run(run_id, include_results=with_results)
        return status.items.cancelled

    async with open_runtime(workers={"w": stage.worker}) as runtime:
        run = await runtime.submit(one_step("/w/wait", {"name": "it"}), [None] * items, max_concurrency=1)
        await stage.has_begun.wait()
        run.cancel()
        await run.wait()
        for with_results, looks in [(False, 0), (True, items)]:
            unpacked.clear()
            looked_at.clear()
            asked = {"run_id": run.id, "with_results": with_results}
            assert await runtime.run(one_step("/w/count", asked)) == items
            assert (len(looked_at), len(unpacked) <= 1) == (looks, True)
