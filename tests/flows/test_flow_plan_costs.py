"""What a plan costs, in function calls: those are the same on a slow day."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from stepflow_trio.flows.plan import Plan, PreparedFlow
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.flows.results import Success


def step(index: int, input: Any) -> dict[str, Any]:
    return {"id": f"s{index}", "component": "/x", "input": input}


def ref(index: int) -> dict[str, Any]:
    return {"$step": f"s{index}", "path": "$.k"}


def chain(steps: int) -> dict[str, Any]:
    listed = [step(i, {"a": ref(i - 1) if i else {"$input": "$.k"}, "b": 1}) for i in range(steps)]
    return {"steps": listed, "output": ref(steps - 1)}


def side_by_side(steps: int) -> dict[str, Any]:
    return {
        "steps": [step(i, {"a": {"$input": "$.k"}}) for i in range(steps)],
        "output": [ref(i) for i in range(steps)],
    }


def from_one(steps: int) -> dict[str, Any]:
    """The first is what all others read."""
    listed = [step(i, [ref(0)] if i else None) for i in range(steps)]
    return {"steps": listed, "output": [ref(i) for i in range(steps)]}


def layered(steps: int, width: int = 20) -> dict[str, Any]:
    """Each reads two of the layer before."""

    def input(i: int) -> Any:
        before = (i // width - 1) * width
        return [ref(before + i % width), ref(before + (i + 1) % width)] if i >= width else None

    return {
        "steps": [step(i, input(i)) for i in range(steps)],
        "output": [ref(i) for i in range(steps - width, steps)],
    }


def choices(steps: int) -> dict[str, Any]:
    listed = [
        step(i, {"$if": ref(i - 1), "then": ref(i - 1), "else": 0} if i else None) for i in range(steps)
    ]
    return {"steps": listed, "output": {"$coalesce": [None, ref(steps - 1)]}}


def calls_of(act: Callable[[], object]) -> int:
    """How many functions are called, builtin ones among them."""
    counted = 0

    def count(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
    return counted


def run_through(flow: PreparedFlow, at_once: int = sys.maxsize) -> list[str]:
    """The steps in the order in which they were handed out, each recorded before the next is asked for."""
    plan = Plan(flow, {"k": {"k": 1}}, at_once=at_once)
    handed_out: list[str] = []
    while plan.result is None:
        if plan.is_behind:
            plan.catch_up()
            continue
        ready = plan.take_ready()
        handed_out += [each.step.id for each in ready]
        for each in ready:
            while plan.is_behind:
                plan.catch_up()
            plan.record(each.step.id, Success({"k": each.input}))
    return handed_out


@pytest.mark.parametrize("shape", [chain, side_by_side, from_one, layered, choices])
def test_a_step_costs_the_same_in_a_flow_of_two_thousand(shape: Callable[[int], Any]) -> None:
    small, large = (PreparedFlow(flow_from_json(shape(steps))) for steps in (200, 2000))
    for flow in small, large:
        run_through(flow)
    assert calls_of(lambda: run_through(large)) < 10.5 * calls_of(lambda: run_through(small))


def test_a_step_of_a_chain_costs_few_calls() -> None:
    flow = PreparedFlow(flow_from_json(chain(1000)))
    run_through(flow)
    assert calls_of(lambda: run_through(flow)) / 1000 < 50


def test_what_the_plans_of_a_flow_have_in_common_is_found_out_once() -> None:
    flow = flow_from_json(chain(100))
    prepared = PreparedFlow(flow)
    first = calls_of(lambda: Plan(prepared, {"k": 1}))
    assert calls_of(lambda: Plan(prepared, {"k": 1})) < 0.6 * first


@pytest.mark.parametrize("shape", [chain, side_by_side, from_one, layered, choices])
@pytest.mark.parametrize("at_once", [1, 7])
def test_a_plan_that_does_little_at_once_hands_out_the_same_steps_in_the_same_order(
    shape: Callable[[int], Any], at_once: int
) -> None:
    flow = PreparedFlow(flow_from_json(shape(100)))
    assert run_through(flow, at_once) == run_through(flow)


def test_no_call_does_more_than_it_should_at_once() -> None:
    """However many steps begin with the run, or behind one step."""
    for shape in side_by_side, from_one:
        flow = PreparedFlow(flow_from_json(shape(2000)))
        run_through(flow)
        plan = Plan(flow, {"k": 1}, at_once=100)
        most = 0
        while plan.is_behind:
            most = max(most, calls_of(plan.catch_up))
        for each in plan.take_ready()[:1]:
            most = max(most, calls_of(lambda: plan.record(each.step.id, Success({"k": 1}))))  # noqa: B023
            while plan.is_behind:
                most = max(most, calls_of(plan.catch_up))
        assert most < 100 * 50
