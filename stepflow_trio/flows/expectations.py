"""Whether a run came to what a test case expects, and where not.

An expectation is partial: of an object it names the members that count, and says nothing of others. Arrays
have the same members in the same order; scalars are equal and of one type, so that 1 is not 1.0. Two names
differ from run to run, wherever they stand: of ``run_id`` only whether it is a string counts, and
``backtrace`` does not count at all.
"""

from __future__ import annotations

import enum
from typing import Any, cast

import msgspec

from stepflow_trio.flows.paths import JsonPath
from stepflow_trio.flows.results import FlowResult, flow_result_from_json
from stepflow_trio.protocol.json_types import json_type

__all__ = ["Difference", "DifferenceKind", "differences", "normalised", "revised"]

_RUN_ID = "run_id"
_NO_RUN_ID = "00000000-0000-0000-0000-000000000000"
_BACKTRACE = "backtrace"


class DifferenceKind(enum.Enum):
    """In which way two values differ at a path."""

    CHANGED = "changed"
    MISSING = "missing"
    """It is expected, and nothing is there."""
    UNEXPECTED = "unexpected"
    """It is there, and nothing is expected: an array is too long, or a run ended the other way."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One place where a result is not what is expected."""

    path: JsonPath
    """From the result, ``{"outcome": …, …}``."""
    kind: DifferenceKind
    expected: Any = None
    """Null where nothing is."""
    actual: Any = None
    """Null where nothing is there."""
    note: str = ""
    """What the two values alone do not show."""


def differences(expected: FlowResult, actual: FlowResult) -> list[Difference]:
    """Where ``actual`` is not what is expected, in the order of the expectation; empty if it fits.

    A failure fits one with the same code and message, and with the data that is expected, if any is.
    """
    wanted, there = expected.to_json(), actual.to_json()
    if wanted["outcome"] == there["outcome"]:
        found: list[Difference] = []
        _compare(wanted, there, (), found)
        return found
    part = "result" if "result" in there else "error"
    return [
        _changed(("outcome",), wanted["outcome"], there["outcome"]),
        Difference(path=(part,), kind=DifferenceKind.UNEXPECTED, actual=there[part]),
    ]


def revised(expected: FlowResult | None, actual: FlowResult) -> FlowResult:
    """The expectation that ``actual`` fits, made of one that it may not fit, or of none.

    What ``expected`` leaves open, and its members' order, stay as they are.
    """
    there = normalised(actual.to_json())
    if expected is None or type(expected) is not type(actual):
        return flow_result_from_json(there)
    return flow_result_from_json(_revised(expected.to_json(), there))


def normalised(value: Any) -> Any:
    """``value`` without what differs from run to run; see the head of this module."""
    if isinstance(value, dict):
        return {
            name: _NO_RUN_ID if name == _RUN_ID and isinstance(member, str) else normalised(member)
            for name, member in cast("dict[str, Any]", value).items()
            if name != _BACKTRACE
        }
    if isinstance(value, list):
        return [normalised(member) for member in cast("list[Any]", value)]
    return value


def _compare(expected: Any, actual: Any, path: JsonPath, found: list[Difference]) -> None:
    if isinstance(expected, dict) and isinstance(actual, dict):
        _compare_objects(cast("dict[str, Any]", expected), cast("dict[str, Any]", actual), path, found)
    elif isinstance(expected, list) and isinstance(actual, list):
        _compare_arrays(cast("list[Any]", expected), cast("list[Any]", actual), path, found)
    elif not _is_same(expected, actual):  # pyright: ignore[reportUnknownArgumentType]: any JSON
        found.append(_changed(path, expected, actual))


def _compare_objects(
    expected: dict[str, Any], actual: dict[str, Any], path: JsonPath, found: list[Difference]
) -> None:
    for name, member in expected.items():
        if name == _BACKTRACE:
            continue
        if name not in actual:
            found.append(Difference(path=(*path, name), kind=DifferenceKind.MISSING, expected=member))
        elif not (name == _RUN_ID and isinstance(member, str) and isinstance(actual[name], str)):
            _compare(member, actual[name], (*path, name), found)


def _compare_arrays(expected: list[Any], actual: list[Any], path: JsonPath, found: list[Difference]) -> None:
    for index, (wanted, there) in enumerate(zip(expected, actual, strict=False)):
        _compare(wanted, there, (*path, index), found)
    found += [
        Difference(path=(*path, index), kind=DifferenceKind.MISSING, expected=expected[index])
        for index in range(len(actual), len(expected))
    ]
    found += [
        Difference(path=(*path, index), kind=DifferenceKind.UNEXPECTED, actual=actual[index])
        for index in range(len(expected), len(actual))
    ]


def _is_same(expected: object, actual: object) -> bool:
    # A boolean is an integer to Python, and an enumeration's member, such as an error code, is one indeed.
    for kind in (bool, int, float):
        if isinstance(expected, kind) or isinstance(actual, kind):
            return isinstance(expected, kind) and isinstance(actual, kind) and expected == actual
    return expected == actual


def _changed(path: JsonPath, expected: Any, actual: Any) -> Difference:
    return Difference(
        path=path,
        kind=DifferenceKind.CHANGED,
        expected=expected,
        actual=actual,
        note=_note(expected, actual),
    )


def _note(expected: Any, actual: Any) -> str:
    kinds = json_type(expected), json_type(actual)
    if kinds[0] != kinds[1]:
        return f"expected {kinds[0]}, there is {kinds[1]}"
    if expected == actual:
        whole, other = (expected, actual) if isinstance(expected, int) else (actual, expected)
        return f"{whole} is an integer, {other} a number"
    return ""


def _revised(expected: Any, actual: Any) -> Any:
    if isinstance(expected, dict) and isinstance(actual, dict):
        wanted, there = cast("dict[str, Any]", expected), cast("dict[str, Any]", actual)
        return {name: _revised(wanted[name], there[name]) for name in wanted if name in there}
    if isinstance(expected, list) and isinstance(actual, list):
        members, others = cast("list[Any]", expected), cast("list[Any]", actual)
        if len(members) == len(others):
            return [_revised(*pair) for pair in zip(members, others, strict=True)]
    return cast("Any", actual)
