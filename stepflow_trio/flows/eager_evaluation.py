"""Expressions that need the same steps whatever these come to, made ready once for all items of a run.

What an expression without ``$if`` and ``$coalesce`` needs is known before anything runs: all steps that it
names. Once their results are there its value follows in one go, without the bookkeeping that
`stepflow_trio.flows.evaluation` does for one whose needs depend on what its parts come to. The values and
the failures are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

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
from stepflow_trio.flows.paths import JsonPath, NothingThere, resolve
from stepflow_trio.flows.results import FlowError, FlowResult

__all__ = ["EagerExpression", "eager_expression"]


class EagerExpression(msgspec.Struct, frozen=True, gc=False):
    """An expression whose needs are known."""

    needs: tuple[str, ...]
    """The steps that it needs, each once, in the order of the expression."""
    root: _Node
    """Once they have results, its ``value(input, results)`` is the value, or the failure as a `FlowError`."""


def eager_expression(expression: Expression, variables: Mapping[str, Any]) -> EagerExpression | None:
    """The expression with these variables; None where what it needs depends on what its parts come to."""
    needs: dict[str, None] = {}
    root = _node(expression, variables, needs)
    return EagerExpression(tuple(needs), root) if root is not None else None


def _node(expression: Expression, variables: Mapping[str, Any], needs: dict[str, None]) -> _Node | None:
    match expression:
        case Constant(value=value) | Literal(value=value):
            return _Always(value)
        case StepRef():
            needs[expression.step] = None
            return _OfStep(expression)
        case InputRef(path=path):
            return _OfInput(path)
        case VariableRef():
            # The same for every item, as variables are a run's.
            value = variable_value(expression, variables)
            if not isinstance(value, FlowError) or expression.default is None:
                return _Always(value)
            return _node(expression.default, variables, needs)
        case ArrayOf(items=items):
            members = [_node(member, variables, needs) for member in items]
            known = tuple(member for member in members if member is not None)
            return _Array(known) if len(known) == len(members) else None
        case ObjectOf(keys=keys, values=values):
            members = [_node(member, variables, needs) for member in values]
            named = tuple((k, member) for k, member in zip(keys, members, strict=True) if member is not None)
            return _Object(named) if len(named) == len(members) else None
        case _:
            return None


class _Always(msgspec.Struct, frozen=True, gc=False):
    known: Any

    def value(self, _input: Any, _results: Mapping[str, FlowResult]) -> Any:
        return self.known


class _OfStep(msgspec.Struct, frozen=True, gc=False):
    reference: StepRef

    def value(self, _input: Any, results: Mapping[str, FlowResult]) -> Any:
        return read_step(self.reference, results[self.reference.step])


class _OfInput(msgspec.Struct, frozen=True, gc=False):
    path: JsonPath

    def value(self, input: Any, _results: Mapping[str, FlowResult]) -> Any:
        found = resolve(input, self.path)
        return missing("input", self.path, found) if isinstance(found, NothingThere) else found


class _Array(msgspec.Struct, frozen=True, gc=False):
    members: tuple[_Node, ...]

    def value(self, input: Any, results: Mapping[str, FlowResult]) -> Any:
        made: list[Any] = []
        for member in self.members:
            part = member.value(input, results)
            if type(part) is FlowError:
                return part
            made.append(part)
        return made


class _Object(msgspec.Struct, frozen=True, gc=False):
    members: tuple[tuple[str, _Node], ...]

    def value(self, input: Any, results: Mapping[str, FlowResult]) -> Any:
        made: dict[str, Any] = {}
        for key, member in self.members:
            part = member.value(input, results)
            if type(part) is FlowError:
                return part
            made[key] = part
        return made


_Node = _Always | _OfStep | _OfInput | _Array | _Object
