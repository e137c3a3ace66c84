"""What a result must be to be what a test case expects, and where it is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.errors import ErrorCode
from stepflow_trio.flows.expectations import Difference, DifferenceKind, differences, normalised, revised
from stepflow_trio.flows.results import Failed, FlowError, FlowResult, Success

CHANGED, MISSING, UNEXPECTED = DifferenceKind.CHANGED, DifferenceKind.MISSING, DifferenceKind.UNEXPECTED

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
NAMES = st.sampled_from(["a", "b", "run_id", "backtrace", "result", "outcome"]) | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4)
)
RESULTS: st.SearchStrategy[FlowResult] = st.builds(Success, VALUES) | st.builds(
    Failed, st.builds(FlowError, st.integers(-3, 3), st.text(max_size=3), VALUES)
)


def between(expected: Any, actual: Any) -> list[tuple[Any, ...]]:
    """The differences of two results of runs that succeeded: path below the result, kind, both values."""
    return [
        (d.path[1:], d.kind, d.expected, d.actual) for d in differences(Success(expected), Success(actual))
    ]


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (None, None),
        ({}, {"a": 1}),
        ({"a": {"b": 1}}, {"c": 2, "a": {"b": 1, "d": 3}}),
        ([{"a": 1}, 2], [{"a": 1, "b": 2}, 2]),
        ({"run_id": "one"}, {"run_id": "another"}),
        ([{"deep": {"run_id": "one"}}], [{"deep": {"run_id": "another"}}]),
        ({"backtrace": "there"}, {}),
        ({"backtrace": 1}, {"backtrace": 2}),
        (-32100, ErrorCode.COMPONENT_FAILED),
    ],
)
def test_a_result_fits_what_it_has_all_members_of(expected: Any, actual: Any) -> None:
    assert between(expected, actual) == []


@pytest.mark.parametrize(
    ("expected", "actual", "found"),
    [
        ({"a": 1}, {}, (("a",), MISSING, 1, None)),
        ({"a": None}, {}, (("a",), MISSING, None, None)),
        ({"a": 1}, {"a": 2}, (("a",), CHANGED, 1, 2)),
        ([1, 2], [1], ((1,), MISSING, 2, None)),
        ([1], [1, 2], ((1,), UNEXPECTED, None, 2)),
        ([1, 2], [2, 1], ((0,), CHANGED, 1, 2)),
        ({"a": []}, {"a": {}}, (("a",), CHANGED, [], {})),
        ({}, None, ((), CHANGED, {}, None)),
        (1, 1.0, ((), CHANGED, 1, 1.0)),
        (True, 1, ((), CHANGED, True, 1)),
        (0, False, ((), CHANGED, 0, False)),
        ("1", 1, ((), CHANGED, "1", 1)),
        ({"run_id": "one"}, {"run_id": 1}, (("run_id",), CHANGED, "one", 1)),
        ({"run_id": "one"}, {}, (("run_id",), MISSING, "one", None)),
        ({"run_id": 1}, {"run_id": 2}, (("run_id",), CHANGED, 1, 2)),
    ],
)
def test_a_result_that_does_not_fit_differs_at_a_path(
    expected: Any, actual: Any, found: tuple[Any, ...]
) -> None:
    assert between(expected, actual)[0] == found


def test_every_place_that_differs_is_found_in_the_order_of_the_expectation() -> None:
    expected = {"c": 1, "a": [1, {"x": 1}, 3, 4], "b": "same"}
    actual = {"a": [1, {"x": 2}, 3.0], "b": "same", "c": 2}
    assert [path for path, *_ in between(expected, actual)] == [("c",), ("a", 1, "x"), ("a", 2), ("a", 3)]


@pytest.mark.parametrize(
    ("expected", "actual", "note"),
    [
        (1, 1.0, "1 is an integer, 1.0 a number"),
        (2.0, 2, "2 is an integer, 2.0 a number"),
        (1, 2.5, ""),
        ("a", "b", ""),
        ("a", 1, "expected a string, there is a number"),
        (True, 1, "expected a boolean, there is a number"),
        ([], None, "expected an array, there is null"),
    ],
)
def test_a_difference_says_what_the_values_do_not_show(expected: Any, actual: Any, note: str) -> None:
    (found,) = differences(Success(expected), Success(actual))
    assert found.note == note


def failure(code: int = -32100, message: str = "no", data: Any = None) -> Failed:
    return Failed(FlowError(code, message, data))


def test_a_failure_fits_one_with_the_same_code_message_and_expected_data() -> None:
    assert differences(failure(), failure(data={"more": 1})) == []
    assert differences(failure(data={"a": 1}), failure(data={"a": 1, "stack": []})) == []
    assert [d.path for d in differences(failure(data={"a": 1}), failure())] == [("error", "data")]
    assert [d.path for d in differences(failure(code=-1), failure())] == [("error", "code")]
    assert [d.path for d in differences(failure(message="yes"), failure())] == [("error", "message")]


def test_a_run_that_ended_the_other_way_differs_in_that_and_shows_what_it_came_to() -> None:
    assert differences(Success({"a": 1}), failure()) == [
        Difference(path=("outcome",), kind=CHANGED, expected="success", actual="failed"),
        Difference(path=("error",), kind=UNEXPECTED, actual={"code": -32100, "message": "no"}),
    ]
    assert [d.path for d in differences(failure(), Success(7))] == [("outcome",), ("result",)]


@given(RESULTS)
def test_every_result_fits_itself_and_itself_without_what_differs_from_run_to_run(result: FlowResult) -> None:
    assert differences(result, result) == []
    assert differences(revised(None, result), result) == []
    assert differences(result, revised(None, result)) == []


@given(RESULTS, RESULTS)
def test_a_revised_expectation_is_one_that_the_result_fits(expected: FlowResult, actual: FlowResult) -> None:
    after = revised(expected, actual)
    assert differences(after, actual) == []
    assert revised(after, actual) == after


@given(VALUES, VALUES)
def test_two_values_that_fit_each_other_are_equal_but_for_what_differs_from_run_to_run(
    one: Any, other: Any
) -> None:
    if not between(one, other) and not between(other, one):
        assert normalised(one) == normalised(other)


def test_a_revised_expectation_leaves_open_what_was_open() -> None:
    expected = Success({"b": 1, "a": [{"x": 1}], "gone": 1})
    actual = Success({"a": [{"x": 2, "at": "12:30"}], "b": 2, "took_s": 0.1})
    after = revised(expected, actual)
    assert after == Success({"b": 2, "a": [{"x": 2}]})
    assert list(after.to_json()["result"]) == ["b", "a"]


def test_an_expectation_that_there_was_none_of_is_all_of_the_result() -> None:
    result = Success({"run_id": "5f", "backtrace": "…", "a": [{"run_id": 7, "backtrace": 1}]})
    clean = {"run_id": "00000000-0000-0000-0000-000000000000", "a": [{"run_id": 7}]}
    assert revised(None, result) == Success(clean)
    assert revised(failure(), result) == Success(clean)
    assert revised(Success([1]), Success([1, 2])) == Success([1, 2])
