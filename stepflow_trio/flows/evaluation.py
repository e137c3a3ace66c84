"""Giving an expression its value while the results of steps come in one by one.

Laziness is exact: a step is needed only once it is certain that the value depends on it. An ``$if`` needs
first what its condition needs and then what the taken branch needs; a ``$coalesce`` needs its next item only
when the one before came to null. The members of arrays and objects are evaluated side by side, and a failure
among them cuts nothing short, so which steps are needed never depends on the order in which results arrive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepflow_trio.errors import ErrorCode
from stepflow_trio.flows.expressions import (
    ArrayOf,
    Coalesce,
    Constant,
    Expression,
    If,
    InputRef,
    Literal,
    ObjectOf,
    StepRef,
    VariableRef,
)
from stepflow_trio.flows.paths import JsonPath, NothingThere, render_path, resolve
from stepflow_trio.flows.results import Failed, FlowError, FlowResult, Success
from stepflow_trio.flows.suggestions import did_you_mean

__all__ = ["Evaluation", "missing", "read_step", "variable_value"]

_UNDEFINED = int(ErrorCode.UNDEFINED_FIELD)


class _Pending:
    """A node of the tree whose value waits for a step, and who waits for it in turn."""

    __slots__ = ("expression", "members", "parent", "slot", "waiting")

    def __init__(self, expression: Expression) -> None:
        self.expression = expression
        self.parent: _Pending | None = None
        self.slot = 0
        """Which member of its parent this is."""
        self.members: list[Any] = []
        """Of an array or object: the values that are known, and this class where they are not."""
        self.waiting = 0
        """Of an array or object: how many members are not known. Of a $coalesce: which item is next."""


class Evaluation:
    """One expression on its way to a value.

    Every node of the expression is visited once, however many steps it waits for and in whichever order they
    come. Values are shared with the input and the results, never copied.

    Args:
        expression: what to evaluate.
        input: the run's input.
        variables: the variables by name, schema defaults included.
        results: the results of steps, known by now or to come. It is kept and read again: whoever adds a
            result that is waited for calls `supply`.
    """

    __slots__ = ("_input", "_leaves", "_needs", "_results", "_variables", "outcome")

    def __init__(
        self,
        expression: Expression,
        *,
        input: Any,
        variables: Mapping[str, Any],
        results: Mapping[str, FlowResult],
    ) -> None:
        self._input = input
        self._variables = variables
        self._results = results
        self._leaves: dict[str, list[tuple[_Pending, StepRef]]] = {}
        self._needs: list[str] = []
        self.outcome: FlowResult | None = None
        """The value, or the failure; None while a step's result is missing."""
        value = self._start(expression)
        if not isinstance(value, _Pending):
            self._conclude(value)

    @property
    def waiting_for(self) -> frozenset[str]:
        """The steps whose results are missing now; more may follow."""
        return frozenset(self._leaves)

    def take_needs(self) -> list[str]:
        """The steps that became needed since the last call, each once, in the order of the expression."""
        needs, self._needs = self._needs, []
        return needs

    def supply(self, step: str) -> None:
        """The result of ``step`` is known now; where it is not waited for, nothing changes."""
        for leaf, reference in self._leaves.pop(step, ()):
            self._deliver(leaf, read_step(reference, self._results[step]))

    def _start(self, expression: Expression) -> Any:
        """The expression's value, or the failure, or what is pending of it."""
        match expression:
            case Constant(value=value) | Literal(value=value):
                return value
            case StepRef(step=step):
                result = self._results.get(step)
                if result is not None:
                    return read_step(expression, result)
                leaf = _Pending(expression)
                if step not in self._leaves:
                    self._leaves[step] = []
                    self._needs.append(step)
                self._leaves[step].append((leaf, expression))
                return leaf
            case InputRef(path=path):
                found = resolve(self._input, path)
                return missing("input", path, found) if isinstance(found, NothingThere) else found
            case VariableRef():
                return self._variable(expression)
            case ArrayOf(items=items):
                return self._start_members(expression, items)
            case ObjectOf(values=values):
                return self._start_members(expression, values)
            case If(condition=condition):
                value = self._start(condition)
                if isinstance(value, _Pending):
                    return _adopted(_Pending(expression), value)
                return self._branch(expression, value)
            case Coalesce():
                return self._next_item(_Pending(expression), expression)

    def _start_members(self, expression: ArrayOf | ObjectOf, members: tuple[Expression, ...]) -> Any:
        values = [self._start(member) for member in members]
        waiting = [slot for slot, value in enumerate(values) if isinstance(value, _Pending)]
        if not waiting:
            return _assembled(expression, values)
        node = _Pending(expression)
        node.members = values
        node.waiting = len(waiting)
        for slot in waiting:
            _adopted(node, values[slot], slot)
        return node

    def _branch(self, expression: If, condition: Any) -> Any:
        # Everything but null, false and a failure is true: 0, "", [] and {} are.
        holds = condition is not None and condition is not False and not isinstance(condition, FlowError)
        if holds:
            return self._start(expression.then)
        return self._start(expression.otherwise) if expression.otherwise is not None else None

    def _next_item(self, node: _Pending, expression: Coalesce) -> Any:
        while node.waiting < len(expression.items):
            value = self._start(expression.items[node.waiting])
            node.waiting += 1
            if isinstance(value, _Pending):
                return _adopted(node, value)
            if value is not None:
                return value
        return None

    def _variable(self, expression: VariableRef) -> Any:
        value = variable_value(expression, self._variables)
        if isinstance(value, FlowError) and expression.default is not None:
            return self._start(expression.default)
        return value

    def _deliver(self, node: _Pending, value: Any) -> None:
        """Give a pending node its value, and its parents theirs as far as that decides them."""
        while (parent := node.parent) is not None:
            expression = parent.expression
            if isinstance(expression, (ArrayOf, ObjectOf)):
                parent.members[node.slot] = value
                parent.waiting -= 1
                if parent.waiting:
                    return
                value = _assembled(expression, parent.members)
            elif isinstance(expression, If):
                value = self._branch(expression, value)
            elif isinstance(expression, Coalesce) and value is None:
                value = self._next_item(parent, expression)
            if isinstance(value, _Pending):
                # The branch stands in for its $if from here on, and a $coalesce for itself.
                value.parent, value.slot = parent.parent, parent.slot
                return
            node = parent
        self._conclude(value)

    def _conclude(self, value: Any) -> None:
        self.outcome = Failed(value) if isinstance(value, FlowError) else Success(value)


def _adopted(parent: _Pending, child: _Pending, slot: int = 0) -> _Pending:
    child.parent, child.slot = parent, slot
    return parent


def _assembled(expression: ArrayOf | ObjectOf, values: list[Any]) -> Any:
    for value in values:
        if isinstance(value, FlowError):
            return value
    if isinstance(expression, ObjectOf):
        return dict(zip(expression.keys, values, strict=True))
    return values


def read_step(reference: StepRef, result: FlowResult) -> Any:
    """What a reference comes to once its step is finished: a value, or a failure."""
    if isinstance(result, Failed):
        return result.error
    # A result that is null is null at every path, so that $coalesce can follow it.
    if result.result is None or not reference.path:
        return result.result
    found = resolve(result.result, reference.path)
    if isinstance(found, NothingThere):
        return missing(f'the result of step "{reference.step}"', reference.path, found)
    return found


def variable_value(reference: VariableRef, variables: Mapping[str, Any]) -> Any:
    """What a variable has at the path, or the failure that it has nothing there; without the default."""
    name = reference.name
    if name in variables:
        value = resolve(variables[name], reference.path)
        return (
            missing(f'variable "{name}"', reference.path, value) if isinstance(value, NothingThere) else value
        )
    hint = did_you_mean(name, variables)
    message = f'variable "{name}" has neither a value nor a default'
    return FlowError(_UNDEFINED, f"{message}; {hint}" if hint else message)


def missing(what: str, path: JsonPath, nothing: NothingThere) -> FlowError:
    """The failure of a path that leads nowhere."""
    return FlowError(
        ErrorCode.UNDEFINED_FIELD, f"path {render_path(path)} not found in {what}: {nothing.why}"
    )
