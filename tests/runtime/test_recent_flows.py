"""What is kept of flows that were used lately, and that what is gone is not used any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
from runtime_stage import flow, one_step, step

from stepflow_trio import open_runtime
from stepflow_trio.errors import FlowNotFound
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.runtime.large_flows import MANY_STEPS, beside_the_loop
from stepflow_trio.runtime.recent_flows import MAX_FLOWS, MAX_STEPS, RecentFlows

MESSAGES = "/builtin/create_messages"
PROMPT = {"user_prompt": "hello"}


def steps(count: int) -> dict[str, Any]:
    return flow(*(step(f"s{index}", MESSAGES, PROMPT) for index in range(count)))


def test_what_was_used_last_is_kept_the_longest() -> None:
    recent: RecentFlows[int, int] = RecentFlows()
    known = Flow()
    for number in range(MAX_FLOWS):
        recent.put(number, known, number)
    assert recent.get(0) == 0
    recent.put(MAX_FLOWS, known, MAX_FLOWS)
    assert (recent.get(0), recent.get(1), recent.get(2)) == (0, None, 2)


def test_large_flows_make_room_for_one_another() -> None:
    recent: RecentFlows[str, str] = RecentFlows()
    one_step_of_all = flow_from_json(steps(1)).steps
    large = Flow(steps=one_step_of_all * (MAX_STEPS // 2))
    for key in "abc":
        recent.put(key, large, key)
        recent.put(key, large, key)
    assert [recent.get(key) for key in "abc"] == [None, "b", "c"]
    recent.put("too large", Flow(steps=one_step_of_all * (MAX_STEPS + 1)), "")
    assert [recent.get(key) for key in ("b", "c", "too large")] == [None, None, None]
    recent.put("a", large, "a")
    recent.drop("a")
    assert recent.get("a") is None


async def test_a_flow_that_was_run_and_deleted_is_not_found() -> None:
    async with open_runtime() as runtime:
        flow_id = await runtime.flows.put(flow_from_json(one_step(MESSAGES, PROMPT)))
        for _ in range(2):
            await runtime.history.wait(await runtime.submit_stored(flow_id, [None]))
        await runtime.flows.delete(flow_id)
        with pytest.raises(FlowNotFound):
            await runtime.submit_stored(flow_id, [None])


async def test_a_flow_that_was_deleted_is_stored_again_when_it_is_submitted_again() -> None:
    async with open_runtime() as runtime:
        tested = flow_from_json(one_step(MESSAGES, PROMPT))
        for _ in range(2):
            run = await runtime.submit(tested, [None])
            await run.wait()
            assert await runtime.flows.get(run.flow_id) == tested
            await runtime.flows.delete(run.flow_id)


async def test_overrides_of_one_submission_are_not_those_of_the_next() -> None:
    async with open_runtime() as runtime:
        flow_id = await runtime.flows.put(flow_from_json(one_step(MESSAGES, PROMPT)))
        said: list[Any] = []
        for text in None, "other", None:
            patch = {"steps": {"only": {"value": {"input": {"user_prompt": text}}}}} if text else None
            run_id = await runtime.submit_stored(flow_id, [None], overrides=patch)
            record = await runtime.history.wait(run_id)
            said.append(record.items[0].result.result["messages"][0]["content"])  # type: ignore[union-attr]
        assert said == ["hello", "other", "hello"]


async def test_runs_of_one_flow_have_the_variables_that_each_was_given() -> None:
    tested = flow_from_json({"steps": [], "output": {"$variable": "v", "default": 0}})
    async with open_runtime() as runtime:
        given: list[dict[str, Any]] = [{}, {"v": 1}, {}, {"v": 2}]
        assert [await runtime.run(tested, variables=each) for each in given] == [0, 1, 0, 2]


@pytest.mark.parametrize("read", [lambda value: value, flow_from_json], ids=["JSON", "read"])
async def test_a_large_flow_is_looked_at_in_a_thread_and_a_small_one_here(
    read: Callable[[Any], Any],
) -> None:
    assert await beside_the_loop(read(steps(MANY_STEPS - 1)), threading.get_ident) == threading.get_ident()
    assert await beside_the_loop(read(steps(MANY_STEPS)), threading.get_ident) != threading.get_ident()


async def test_a_large_flow_runs_as_it_is_given_and_as_it_is_stored() -> None:
    large = steps(MANY_STEPS)
    async with open_runtime() as runtime:
        with trio.fail_after(20):
            assert (await runtime.run(large))["messages"][0]["content"] == "hello"
            flow_id = await runtime.flows.put(flow_from_json(large))
            record = await runtime.history.wait(await runtime.submit_stored(flow_id, [None]))
        assert record.status == "completed"
