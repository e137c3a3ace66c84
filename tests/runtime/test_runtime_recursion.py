"""Components that run their own flow: what waits never stands in the way of what it waits for."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from runtime_stage import INPUT, failure_of, flow, one_step, step

from stepflow_trio import Context, ErrorCode, Worker, open_runtime
from stepflow_trio.runtime.runs import MAX_DEPTH


def recursive(worker: Worker) -> None:
    @worker.component
    def descend(depth: int, width: int, context: Context) -> int:
        """How many executions of it there were, itself counted."""
        if depth == 0:
            return 1
        inputs = [{"depth": depth - 1, "width": 1}] * width
        items = trio.from_thread.run(context.evaluate_run, context.flow_id, inputs)
        return 1 + sum(item.result["result"] for item in items)


@pytest.mark.parametrize("places", [1, 4])
async def test_threads_that_wait_for_their_own_flow_64_deep_and_3_wide_need_no_more_places_than_there_are(
    places: int,
) -> None:
    worker = Worker(max_threads=places)
    recursive(worker)
    async with open_runtime(workers={"my": worker}) as runtime:
        with trio.fail_after(30):
            count = await runtime.run(one_step("/my/descend"), {"depth": MAX_DEPTH, "width": 3})
    assert count == 1 + 3 * MAX_DEPTH


async def test_one_more_thread_than_the_default_pool_may_wait_for_runs_on_the_same_worker() -> None:
    worker = Worker()

    @worker.component
    def leaf(value: int) -> int:
        return value

    @worker.component
    def waits(input: Any, context: Context) -> Any:
        return trio.from_thread.run(context.evaluate_flow, one_step("/my/leaf"), input)

    names = [f"s{number}" for number in range(41)]
    steps = [step(name, "/my/waits") for name in names]
    async with open_runtime(workers={"my": worker}) as runtime:
        with trio.fail_after(30):
            output = await runtime.run(flow(*steps, output=[{"$step": name} for name in names]), {"value": 7})
    assert output == [7] * 41


async def test_a_flow_that_runs_itself_for_ever_in_threads_fails_and_the_worker_works_on() -> None:
    worker = Worker(max_threads=2)
    recursive(worker)
    async with open_runtime(workers={"my": worker}) as runtime:
        with trio.fail_after(30):
            failure = await failure_of(runtime, one_step("/my/descend"), {"depth": 1_000, "width": 1})
            assert await runtime.run(one_step("/my/descend", INPUT), {"depth": 2, "width": 2}) == 5
    assert failure.code in (ErrorCode.INVALID_VALUE, ErrorCode.COMPONENT_FAILED)
