"""Changes to a flow's steps for one run."""

from __future__ import annotations

from typing import Any

import pytest

from stepflow_trio.errors import RpcError
from stepflow_trio.flows.overrides import apply_overrides

FLOW = {"steps": [{"id": "a", "component": "/x", "input": {"b": 1, "c": 2}}], "output": 1}


@pytest.mark.parametrize("overrides", [None, {}, {"steps": {}}])
def test_where_nothing_is_to_be_changed_the_flow_is_as_it_was(overrides: Any) -> None:
    assert apply_overrides(FLOW, overrides) == FLOW


def test_a_patch_is_merged_into_its_step_and_null_deletes() -> None:
    patch = {"input": {"b": None, "d": {"e": None, "f": 3}}, "component": "/y"}
    changed = apply_overrides(FLOW, {"steps": {"a": {"value": patch}}})
    assert changed["steps"] == [{"id": "a", "component": "/y", "input": {"c": 2, "d": {"f": 3}}}]
    assert FLOW["steps"] == [{"id": "a", "component": "/x", "input": {"b": 1, "c": 2}}]


@pytest.mark.parametrize(
    "overrides",
    [
        {"a": {"value": {}}},
        {"steps": None},
        {"steps": []},
        {"steps": {"a": {}}},
        {"steps": {"a": 1}},
        {"x": 1},
    ],
    ids=str,
)
def test_overrides_of_another_shape_are_refused_and_not_passed_over(overrides: Any) -> None:
    with pytest.raises(RpcError, match=r"overrides must be|has no"):
        apply_overrides(FLOW, overrides)


def test_a_step_that_is_not_there_is_named_with_the_closest_that_is() -> None:
    with pytest.raises(RpcError, match=r'step "aa", which the flow does not have; did you mean "a"\?'):
        apply_overrides(FLOW, {"steps": {"aa": {"value": {}}}})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stpes": {}}, 'overrides has no field "stpes"; did you mean "steps"?'),
        ({"steps": {}, "step": {}}, 'overrides has no field "step"; did you mean "steps"?'),
        ({"steps": {"a": {"vlaue": {}}}}, 'overrides.steps.a has no field "vlaue"; did you mean "value"?'),
        (
            {"steps": {"a": {"$typ": "merge_patch", "value": {}}}},
            'overrides.steps.a has no field "$typ"; did you mean "$type"?',
        ),
        (
            {"steps": {"a": {"value": {"componet": "/y"}}}},
            'overrides.steps.a.value.componet: a step has no field "componet"; did you mean "component"?',
        ),
        (
            {"steps": {"a": {"value": {"inputs": None}}}},
            'overrides.steps.a.value.inputs: a step has no field "inputs"; did you mean "input"?',
        ),
        (
            {"steps": {"a": {"value": {"onError": {"maxRetry": 1}}}}},
            'a.value.onError.maxRetry: onError has no field "maxRetry"; did you mean "maxRetries"?',
        ),
    ],
    ids=str,
)
def test_a_misspelled_key_of_overrides_is_refused_with_its_place(overrides: Any, message: str) -> None:
    step = {**FLOW["steps"][0], "onError": {"action": "retry", "maxRetries": 2}}  # pyright: ignore[reportIndexIssue, reportUnknownVariableType]
    with pytest.raises(RpcError) as caught:
        apply_overrides({"steps": [step]}, overrides)
    assert caught.value.code == -32004
    assert caught.value.message.endswith(message)


def test_a_key_of_overrides_that_means_nothing_is_passed_over() -> None:
    overrides = {"note": 1, "steps": {"a": {"value": {"metadata": {"inptu": 1}}, "why": "a try"}}}
    assert apply_overrides(FLOW, overrides)["steps"][0]["metadata"] == {"inptu": 1}
