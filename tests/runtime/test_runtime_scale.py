"""What large batches and many runs cost: no more for each the more there are."""

from __future__ import annotations

import gc
import time
import tracemalloc
from typing import Any

import pytest
import trio
from runtime_stage import INPUT, Stage, flow, one_step, step
from trio.testing import wait_all_tasks_blocked

from stepflow_trio import Runtime, open_runtime
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.runtime.stores import RunQuery

STEPS = 10


def chain_of_builtin_steps() -> dict[str, Any]:
    def stores(number: int, data: Any) -> dict[str, Any]:
        return step(f"s{number}", "/builtin/put_blob", {"data": data, "blob_type": "data"})

    return flow(stores(0, INPUT), *(stores(n, {"$step": f"s{n - 1}"}) for n in range(1, STEPS)))


async def cpu_s(runtime: Runtime, tested: Any, items: int) -> float:
    """CPU seconds for each item of a batch."""
    began = time.process_time()
    run = await runtime.submit(tested, list(range(items)))
    await run.wait()
    took = time.process_time() - began
    assert run.status == "completed"
    return took / items


async def test_an_item_of_a_batch_of_thousands_costs_about_what_one_of_a_hundred_does() -> None:
    tested = chain_of_builtin_steps()
    async with open_runtime() as runtime:
        await cpu_s(runtime, tested, 100)
        of_100 = min([await cpu_s(runtime, tested, 100) for _ in range(3)])
        of_2000 = min([await cpu_s(runtime, tested, 2000) for _ in range(2)])
    assert of_2000 < 2.5 * of_100


async def test_a_finished_run_costs_little_memory_and_a_deleted_one_none() -> None:
    runs, tested = 400, flow_from_json(one_step("/w/echo", {"value": INPUT}))
    async with open_runtime(workers={"w": Stage().worker}) as runtime:

        async def run_many(count: int) -> int:
            for number in range(count):
                await runtime.run(tested, number)
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        async def delete_all() -> int:
            for record in (await runtime.history.list_runs(RunQuery())).runs:
                await runtime.history.delete(record.run_id)
            del record
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            await run_many(runs)
            empty = await delete_all()
            kept, left = await run_many(runs) - empty, await delete_all() - empty
        finally:
            tracemalloc.stop()
    assert kept / runs < 3_500
    assert left / runs < 20, "what was deleted is still held"


async def test_a_batch_of_a_hundred_items_and_all_parallel_steps_of_one_are_in_flight_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage, names = Stage(), [f"s{number}" for number in range(100)]
    parallel = flow(
        *(step(name, "/w/wait", {"name": name}) for name in names), output=[{"$step": name} for name in names]
    )
    async with open_runtime(workers={"w": stage.worker}) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(runtime.run, parallel)
        await wait_all_tasks_blocked()
        assert sorted(stage.began) == sorted(names)
        batch = await runtime.submit(one_step("/w/wait", {"name": INPUT}), names)
        await wait_all_tasks_blocked()
        assert len(stage.began) == 200
        stage.release.set()
        await batch.wait()


@pytest.mark.parametrize("items", [1, 30])
async def test_the_bound_of_a_batch_is_for_its_items_and_not_for_their_steps(
    autojump_clock: trio.testing.MockClock, items: int
) -> None:
    stage = Stage()
    names = [f"s{number}" for number in range(20)]
    parallel = flow(
        *(step(name, "/w/sleep", {"seconds": 1}) for name in names),
        output=[{"$step": name} for name in names],
    )
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        batch = await runtime.submit(parallel, [None] * items, max_concurrency=items)
        await batch.wait()
    assert trio.current_time() == 1
