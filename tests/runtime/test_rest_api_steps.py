"""What is seen of steps and items over the REST API, while they are at work and after."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from rest_stage import Client, open_client
from runtime_stage import Stage, flow, one_step, retrying, step

from stepflow_trio import ComponentError, Context
from stepflow_trio.runtime.rest_api import requests, runs

ECHO = one_step("/w/echo", {"value": {"$input": "$"}})
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)


def at(seconds: float) -> str:
    """A time on the clock of these tests, which stands at 0 when they begin."""
    return (EPOCH + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def make_stage() -> Stage:
    stage = Stage()

    @stage.component
    async def report(seconds: float, context: Context) -> float:
        context.progress(0.25, f"{seconds:g} s to go")
        await trio.sleep(seconds)
        context.progress(0.75)
        await trio.sleep(seconds)
        return seconds

    @stage.component
    async def third_time(context: Context) -> int:
        context.progress(context.attempt / 10)
        await trio.sleep(1)
        if context.attempt < 3:
            raise ComponentError(f"not at attempt {context.attempt}", code=-32110)
        return context.attempt

    return stage


@pytest.fixture
async def client() -> AsyncGenerator[Client]:
    began = trio.current_time()
    async with open_client(
        make_stage(),
        config=retrying(0),  # a second between attempts
        now=lambda: EPOCH + timedelta(seconds=trio.current_time() - began),
    ) as client:
        yield client


async def steps_of(client: Client, run: dict[str, Any], item: int = 0) -> dict[str, Any]:
    """The steps of an item, which are the same ones in the run's details, as far as they began."""
    steps = (await client.get(f"/runs/{run['runId']}/steps?itemIndex={item}"))["steps"]
    details = await client.get(f"/runs/{run['runId']}?itemOffset={item}&itemLimit=1")
    [details_of_item] = details["itemDetails"]
    assert details_of_item["itemIndex"] == item
    for each in details_of_item["steps"]:
        assert steps[each["stepId"]] == each
    begun = {each["stepId"] for each in details_of_item["steps"]}
    assert {id_ for id_, each in steps.items() if each["status"] not in ("blocked", "skipped")} == begun
    return steps


async def test_a_step_shows_how_far_its_component_is(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(one_step("/w/report", {"seconds": {"$input": "$"}}), 2, 10)
    await trio.sleep(3)
    running = {"stepId": "only", "status": "running", "component": "/w/report", "attempt": 1}
    assert (await steps_of(client, run))["only"] == {
        **running, "startedAt": at(0), "progress": {"fraction": 0.75, "at": at(2)}
    }  # fmt: skip
    assert (await steps_of(client, run, 1))["only"] == {
        **running, "startedAt": at(0), "progress": {"fraction": 0.25, "at": at(0), "message": "10 s to go"}
    }  # fmt: skip
    await trio.sleep(2)
    assert (await steps_of(client, run))["only"] == {
        "stepId": "only",
        "status": "completed",
        "component": "/w/report",
        "attempt": 1,
        "startedAt": at(0),
        "completedAt": at(4),
    }


async def test_without_an_item_the_steps_of_the_only_one_are_shown_in_full(
    client: Client, autojump_clock: Any
) -> None:
    run = await client.submit(one_step("/w/report", {"seconds": {"$input": "$"}}), 2)
    for seconds in (0, 3, 5):
        await trio.sleep(seconds)
        steps = await client.get(f"/runs/{run['runId']}/steps")
        assert steps == await client.get(f"/runs/{run['runId']}/steps?itemIndex=0")
        assert ("progress" in steps["steps"]["only"]) == (seconds < 5)
    several = await client.submit(one_step("/w/report", {"seconds": {"$input": "$"}}), 2, 2)
    await trio.sleep(1)
    [step] = (await client.get(f"/runs/{several['runId']}/steps"))["steps"].values()
    assert step == {"stepId": "only", "component": "/w/report", "status": "running"}


async def test_a_step_that_is_tried_again_shows_why_and_when(client: Client, autojump_clock: Any) -> None:
    again = one_step("/w/third_time", {}, onError={"action": "retry", "maxRetries": 3})
    run = await client.submit(again, 1)
    await trio.sleep(1.5)
    error = {"code": -32110, "message": "not at attempt 1"}
    known = {"stepId": "only", "status": "running", "component": "/w/third_time", "startedAt": at(0)}
    assert (await steps_of(client, run))["only"] == {
        **known, "attempt": 1, "lastError": error, "nextAttemptAt": at(2)
    }  # fmt: skip
    await trio.sleep(1)
    assert (await steps_of(client, run))["only"] == {
        **known, "attempt": 2, "lastError": error, "progress": {"fraction": 0.2, "at": at(2)}
    }  # fmt: skip
    await trio.sleep(3)
    assert (await steps_of(client, run))["only"] == {
        **known, "status": "completed", "attempt": 3, "completedAt": at(5)
    }  # fmt: skip


async def test_a_cancelled_run_s_steps_wait_for_nothing(client: Client, autojump_clock: Any) -> None:
    again = one_step("/w/third_time", {}, onError={"action": "retry", "maxRetries": 3})
    run = await client.submit(again, 1)
    await trio.sleep(1.5)
    await client.call("POST", f"/runs/{run['runId']}/cancel")
    step = (await steps_of(client, run))["only"]
    assert (step["status"], step["result"]["error"]["code"]) == ("failed", -32800)
    ended = await client.get(f"/runs/{run['runId']}")
    assert step["completedAt"] == ended["completedAt"] == at(1.5)
    assert step.keys().isdisjoint({"nextAttemptAt", "lastError", "progress"})


async def test_a_result_is_there_while_its_item_is_at_work_and_a_failure_for_ever(
    client: Client, autojump_clock: Any
) -> None:
    @client.stage.component
    async def fails() -> None:
        raise ComponentError("no", code=-32110)

    three = flow(
        step("good", "/w/echo", {"value": {"$input": "$"}}),
        step("bad", "/w/fails", {}, onError={"action": "useDefault", "defaultValue": 7}),
        step("slow", "/w/sleep", {"seconds": {"$step": "good"}}),
        output=[{"$step": "bad"}, {"$step": "slow"}],
    )
    run = await client.submit(three, 5)
    await trio.sleep(1)
    steps = await steps_of(client, run)
    assert steps["good"]["result"] == {"outcome": "success", "result": 5}
    assert steps["bad"]["result"] == {"outcome": "success", "result": 7}
    await trio.sleep(10)
    steps = await steps_of(client, run)
    assert "result" not in steps["good"]
    assert (steps["bad"]["status"], steps["bad"]["result"]["result"]) == ("completed", 7)
    story = (await client.call("GET", f"/runs/{run['runId']}/events")).body
    assert story.count(b"-32110") == 1, "what it came to is on record too"


async def test_items_show_their_results_as_they_come(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(one_step("/w/sleep", {"seconds": {"$input": "$"}}), 1, 3, 2)
    ended: list[list[int]] = []
    for _ in range(4):
        await trio.sleep(0.9)
        items = (await client.get(f"/runs/{run['runId']}/items"))["items"]
        assert [each["itemIndex"] for each in items] == [0, 1, 2]
        assert all(("result" in each) == (each["status"] == "completed") for each in items)
        ended.append([each["itemIndex"] for each in items if each["status"] == "completed"])
    assert ended == [[], [0], [0, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("query", "indices"),
    [
        ("", [0, 1, 2, 3, 4]),
        ("?itemLimit=2", [0, 1]),
        ("?itemOffset=3", [3, 4]),
        ("?itemLimit=2&itemOffset=2", [2, 3]),
        ("?itemLimit=9&itemOffset=4", [4]),
        ("?itemLimit=0", []),
        ("?itemOffset=5", []),
        ("?itemOffset=99999999999", []),
        ("?wait=true&itemLimit=1", [0]),
    ],
)
async def test_a_run_shows_the_items_that_are_asked_for(
    client: Client, autojump_clock: Any, query: str, indices: list[int]
) -> None:
    run = await client.submit(ECHO, *"abcde", wait=True)
    details = await client.get(f"/runs/{run['runId']}{query}")
    assert [each["itemIndex"] for each in details["itemDetails"]] == indices
    assert [each["input"] for each in details["itemDetails"]] == ["abcde"[index] for index in indices]
    assert details["items"]["total"] == 5


@pytest.mark.parametrize("query", ["itemLimit=-1", "itemOffset=-1", "itemLimit=x", "itemOffset=1.5"])
async def test_a_portion_that_is_none_is_refused(client: Client, autojump_clock: Any, query: str) -> None:
    run = await client.submit(ECHO, 1, wait=True)
    assert (await client.call("GET", f"/runs/{run['runId']}?{query}")).status == 400


@pytest.mark.parametrize("path", ["", "/items", "/steps"])
async def test_a_long_answer_lets_others_have_their_turns(
    client: Client, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(requests, "_ENTRIES_BETWEEN_TURNS", 10)
    monkeypatch.setattr(runs, "_ITEMS_BETWEEN_TURNS", 10)
    run = await client.submit(ECHO, *range(1000), wait=True)
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        await client.get(f"/runs/{run['runId']}{path}")
        nursery.cancel_scope.cancel()
    assert turns > 100
