"""Branches that a step's result chooses are begun the moment it is there, wherever the choice is written."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from runtime_stage import Seen, Stage, failure_of, flow, step

from stepflow_trio import open_runtime
from stepflow_trio.runtime.events import StepStarted


def result(name: str, path: str = "$") -> dict[str, Any]:
    return {"$step": name, "path": path}


def choice(condition: Any, then: Any, otherwise: Any) -> dict[str, Any]:
    return {"$if": condition, "then": then, "else": otherwise}


@pytest.fixture
def stage() -> Stage:
    stage = Stage()

    @stage.component
    async def say(value: Any, seconds: float = 1) -> Any:
        """Returns the value after a while."""
        await trio.sleep(seconds)
        return value

    return stage


def says(id_: str, value: Any) -> dict[str, Any]:
    return step(id_, "/w/say", {"value": value})


def begun(seen: Seen, item: int = 0) -> list[tuple[str, float]]:
    """The steps that were begun, each with the seconds since the first one was."""
    events = [event for event in seen.of(StepStarted) if event.item_index == item]
    return [(event.step_id, (event.at - events[0].at).total_seconds()) for event in events]


INPUT_IS = {"$input": "$"}


@pytest.mark.parametrize(("decision", "branch"), [(True, "yes"), (False, "no"), (None, "no"), (0, "yes")])
@pytest.mark.parametrize("place", ["input", "output"])
async def test_the_branch_that_a_step_s_result_chooses_begins_at_once_and_the_other_never(
    autojump_clock: Any, stage: Stage, place: str, decision: Any, branch: str
) -> None:
    steps = [says("decision", INPUT_IS), says("yes", "y"), says("no", "n")]
    chosen = choice(result("decision"), result("yes"), result("no"))
    tested = flow(*steps, output=chosen) if place == "output" else flow(*steps, says("last", {"got": chosen}))
    seen = Seen()
    async with open_runtime(workers={"w": stage.worker}, on_event=seen) as runtime:
        output = await runtime.run(tested, decision)
    assert output == (branch[0] if place == "output" else {"got": branch[0]})
    expected = [("decision", 0), (branch, 1)] + [("last", 2)] * (place == "input")
    assert [name for name, _ in begun(seen)] == [name for name, _ in expected]
    assert trio.current_time() == len(expected), "each began when the one before it had ended"


@pytest.mark.parametrize("place", ["input", "output"])
async def test_a_coalesce_begins_the_next_step_at_once_when_one_comes_to_null(
    autojump_clock: Any, stage: Stage, place: str
) -> None:
    names = [f"s{number}" for number in range(6)]
    steps = [says(name, 7 if name == "s4" else None) for name in names]
    first = {"$coalesce": [result(name) for name in names]}
    tested = flow(*steps, output=first) if place == "output" else flow(*steps, says("last", first))
    seen = Seen()
    async with open_runtime(workers={"w": stage.worker}, on_event=seen) as runtime:
        assert await runtime.run(tested) == 7
    assert [name for name, _ in begun(seen)] == ["s0", "s1", "s2", "s3", "s4"] + ["last"] * (place == "input")
    assert trio.current_time() == 5 + (place == "input")


async def test_a_failed_condition_begins_the_other_branch_at_once(autojump_clock: Any, stage: Stage) -> None:
    @stage.component
    async def fails() -> None:
        await trio.sleep(1)
        raise ValueError

    tested = flow(
        step("decision", "/w/fails", {}), says("yes", "y"), says("no", "n"),
        output=choice(result("decision"), result("yes"), result("no")),
    )  # fmt: skip
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        assert await runtime.run(tested) == "n"
    assert trio.current_time() == 2


async def test_a_branch_that_fails_fails_the_run_at_once(autojump_clock: Any, stage: Stage) -> None:
    @stage.component
    async def fails() -> None:
        raise ValueError("the branch")

    tested = flow(
        says("decision", True), step("yes", "/w/fails", {}), says("no", "n"),
        output=choice(result("decision"), result("yes"), result("no")),
    )  # fmt: skip
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        failure = await failure_of(runtime, tested)
    assert failure.message == "ValueError: the branch"
    assert trio.current_time() == 1


def chain(length: int) -> dict[str, Any]:
    """Each link is a decision by the one before it between two steps; the output is a decision, too."""
    steps = [says("d0", INPUT_IS)]
    for number in range(1, length):
        above = result(f"d{number - 1}")
        steps.append(says(f"yes{number}", False))
        steps.append(says(f"no{number}", True))
        steps.append(says(f"d{number}", choice(above, result(f"yes{number}"), result(f"no{number}"))))
    steps += [says("high", "high"), says("low", "low")]
    return flow(*steps, output=choice(result(f"d{length - 1}"), result("high"), result("low")))


async def test_a_chain_of_decisions_takes_no_longer_than_its_steps(autojump_clock: Any, stage: Stage) -> None:
    length, seen = 50, Seen()
    async with open_runtime(workers={"w": stage.worker}, on_event=seen) as runtime:
        assert await runtime.run(chain(length), True) == "low"
    assert trio.current_time() == 1 + 2 * (length - 1) + 1
    assert len(seen.of(StepStarted)) == 1 + 2 * (length - 1) + 1, "of two branches one is executed"


def nested(depth: int, condition: str = "d0") -> Any:
    if depth == 0:
        return result("leaf")
    inner = nested(depth - 1, f"d{depth}")
    return choice(result(condition), {"deep": inner}, "not reached")


async def test_a_choice_within_a_choice_takes_no_longer_than_its_steps(
    autojump_clock: Any, stage: Stage
) -> None:
    depth = 20
    steps = [says(f"d{number}", True) for number in range(depth + 1)] + [says("leaf", "leaf")]
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        output = await runtime.run(flow(*steps, output=nested(depth)))
    for _ in range(depth):
        output = output["deep"]
    assert output == "leaf"
    assert trio.current_time() == depth + 1


async def test_each_item_of_a_batch_takes_its_own_branches_at_the_same_time(
    autojump_clock: Any, stage: Stage
) -> None:
    length, inputs, seen = 10, [number % 3 == 0 for number in range(100)], Seen()
    async with open_runtime(workers={"w": stage.worker}, on_event=seen) as runtime:
        run = await runtime.submit(chain(length), inputs)
        await run.wait()
    # A decision turns the one before it round, and the length is even.
    results = [end.to_json()["result"] for end in run.results if end is not None]
    assert results == ["low" if decision else "high" for decision in inputs]
    assert trio.current_time() == 2 * length
    for index, decision in enumerate(inputs):
        names = [name for name, _ in begun(seen, index)]
        assert len(names) == 2 * length
        assert ("yes1" in names) is decision
