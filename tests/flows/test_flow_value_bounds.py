"""A value that a flow puts together is measured by what it would be as JSON, in the time of what it is."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.flows.value_bounds import excess_of, puts_together

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
DEEP = "it nests deeper than 128 levels"
LARGE = "it is larger than 67,108,864 bytes"


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def doubled(times: int) -> Any:
    value: Any = {"n": 0}
    for _ in range(times):
        value = [value, value]
    return value


@given(JSON)
def test_what_a_message_can_carry_has_no_excess(value: Any) -> None:
    assert excess_of(value) is None


@pytest.mark.parametrize(
    ("value", "excess"),
    [
        (nested(128), None),
        (nested(129), DEEP),
        (nested(20_000), DEEP),
        ({"a": [nested(126)]}, None),
        ({"a": [nested(127)]}, DEEP),
        (doubled(20), None),
        (doubled(24), LARGE),
        (doubled(120), LARGE),
        (["x" * 2**26], LARGE),
        ({"x" * 2**26: 1}, LARGE),
        ("x" * 2**27, None),
    ],
)
def test_what_no_message_could_carry_is_said(value: Any, excess: str | None) -> None:
    began = time.thread_time()
    assert excess_of(value) == excess
    assert time.thread_time() - began < 2, "shared parts were counted one by one"


def test_the_size_is_never_more_than_that_of_the_text() -> None:
    for times in range(12):
        text = json.dumps(doubled(times), separators=(",", ":"))
        assert len(text) == 10 * 2**times - 3
    largest = max(times for times in range(40) if 10 * 2**times - 3 <= 2**26)
    assert excess_of(doubled(largest)) is None
    assert excess_of(doubled(largest + 2)) == LARGE


@pytest.mark.parametrize(
    ("output", "does"),
    [
        ({"$input": "$"}, False),
        ({"$literal": [1]}, False),
        ({"$step": "a", "path": "x"}, False),
        ([{"$input": "$"}], True),
        ({"$if": True, "then": {"$input": "$"}, "else": {"x": {"$input": "$"}}}, True),
        ({"$if": True, "then": {"$input": "$"}}, False),
        ({"$coalesce": [{"$input": "$"}, [{"$input": "$"}]]}, True),
        ({"$variable": "v", "default": [{"$input": "$"}]}, True),
    ],
)
def test_only_what_puts_values_together_can_exceed_them(output: Any, does: bool) -> None:
    steps = [{"id": "a", "component": "/x", "input": None}]
    assert puts_together(flow_from_json({"steps": steps, "output": output}).output) is does
