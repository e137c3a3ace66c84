"""Expressions that need the same steps whatever these come to, made into functions for all items of a run.

What an expression without ``$if`` and ``$coalesce`` needs is known before anything runs: all steps that it
names. Once their results are there its value follows in one go, without the bookkeeping that
`stepflow_trio.flows.evaluation` does for one whose needs depend on what its parts come to. The values and
the failures are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from stepflow_trio.flows.evaluation import missing, read_step, variable_value
from stepflow_trio.flows.expressions import (
    ArrayOf,
    Constant,
    Expression,
    InputRef,
    Literal,
    ObjectOf,
    StepRef,
    VariableRef,
)
from stepflow_trio.flows.paths import NothingThere, resolve
from stepflow_trio.flows.results import FlowError, FlowResult

__all__ = ["EagerExpression", "eager_expression"]

_Value: TypeAlias = Callable[[Any, Mapping[str, FlowResult]], Any]
"""The value, or the failure, from the run's input and the results of all the steps that it needs."""


class EagerExpression:
    """An expression as the steps that it needs and a function."""

    __slots__ = ("needs", "value")

    def __init__(self, needs: tuple[str, ...], value: _Value) -> None:
        self.needs = needs
        """Each step once, in the order of the expression."""
        self.value = value


def eager_expression(expression: Expression, variables: Mapping[str, Any]) -> EagerExpression | None:
    """The expression with these variables; None where what it needs depends on what its parts come to."""
    needs: dict[str, None] = {}
    value = _function(expression, variables, needs)
    return EagerExpression(tuple(needs), value) if value is not None else None


def _function(expression: Expression, variables: Mapping[str, Any], needs: dict[str, None]) -> _Value | None:
    match expression:
        case Constant(value=value) | Literal(value=value):
            return _always(value)
        case StepRef():
            needs[expression.step] = None
            return _of_step(expression)
        case InputRef():
            return _of_input(expression)
        case VariableRef():
            # The same for every item, as variables are a run's.
            value = variable_value(expression, variables)
            if not isinstance(value, FlowError) or expression.default is None:
                return _always(value)
            return _function(expression.default, variables, needs)
        case ArrayOf(items=items):
            members = [_function(member, variables, needs) for member in items]
            known = [member for member in members if member is not None]
            return _array(known) if len(known) == len(members) else None
        case ObjectOf(keys=keys, values=values):
            members = [_function(member, variables, needs) for member in values]
            named = [(k, member) for k, member in zip(keys, members, strict=True) if member is not None]
            return _object(named) if len(named) == len(members) else None
        case _:
            return None


def _always(value: Any) -> _Value:
    return lambda _input, _results: value


def _of_step(reference: StepRef) -> _Value:
    step = reference.step
    return lambda _input, results: read_step(reference, results[step])


def _of_input(reference: InputRef) -> _Value:
    path = reference.path

    def value(input: Any, _results: Mapping[str, FlowResult]) -> Any:
        found = resolve(input, path)
        return missing("input", path, found) if isinstance(found, NothingThere) else found

    return value


def _array(members: list[_Value]) -> _Value:
    def value(input: Any, results: Mapping[str, FlowResult]) -> Any:
        made: list[Any] = []
        for member in members:
            part = member(input, results)
            if type(part) is FlowError:
                return part
            made.append(part)
        return made

    return value


def _object(members: list[tuple[str, _Value]]) -> _Value:
    def value(input: Any, results: Mapping[str, FlowResult]) -> Any:
        made: dict[str, Any] = {}
        for key, member in members:
            part = member(input, results)
            if type(part) is FlowError:
                return part
            made[key] = part
        return made

    return value
