"""Checking a flow's types: what each step is given against what its component takes, before anything runs.

Types are JSON Schemas. A step's input has the type of its expression; a step's result has the type that
``schemas.properties.steps`` declares, else the one that its component offers, with the default of
``onError: useDefault`` beside it; a run's input and its variables have the types that the flow declares.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.flows.diagnostics import DiagnosticKind, Finding
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
from stepflow_trio.flows.model import Flow, Step, UseDefault
from stepflow_trio.flows.paths import JsonPath, render_path
from stepflow_trio.flows.schema_documents import SchemaDocument, SchemaPool, flow_parts
from stepflow_trio.flows.schema_validator import schema_fault
from stepflow_trio.flows.subtyping import Problem, Subtyping, Verdict, subtype
from stepflow_trio.flows.suggestions import did_you_mean
from stepflow_trio.flows.types import (
    ANYTHING,
    Presence,
    can_be_null,
    constant,
    read_at,
    shown,
    tuple_of,
    union,
    with_members,
    without_null,
)
from stepflow_trio.flows.variables import declared_variables, variable_defaults
from stepflow_trio.protocol.paths import PathTable
from stepflow_trio.protocol.payloads import ComponentInfo

__all__ = ["StepTypes", "TypeCheck", "check_types"]

Report = Callable[[Finding], None]

_NULL_INPUT = Constant(None)


class StepTypes(msgspec.Struct, frozen=True):
    """The types of one step."""

    given: Any
    """Of its input expression."""
    taken: Any
    """Of what its component takes."""
    result: Any
    """Of what others read, a default included."""
    declared: Any = None
    """Of its result, by the flow; None where the flow does not say."""
    offered: Any = None
    """Of its result, by its component; None where the component does not say."""


class TypeCheck(msgspec.Struct, frozen=True):
    """What came of checking a flow's types."""

    findings: tuple[Finding, ...]
    steps: dict[str, StepTypes]
    """By step id, in the order of the flow."""
    output: Any
    """The type of the output expression."""
    pool: SchemaPool
    """What the types refer to."""


def check_types(
    flow: Flow,
    components: Mapping[str, ComponentInfo],
    *,
    strict: bool = False,
    asked: Collection[str] = (),
) -> TypeCheck:
    """Check the types of a flow that was read without errors.

    Args:
        flow: the flow.
        components: what is known of components, by the path that a step names; ``{name}`` and ``{*name}`` in
            a path are parameters. A component that is not among them takes and returns anything.
        strict: whether to warn of what cannot be checked: components without an output schema (1100), values
            that may not fit (1101), paths into what is not described (1003).
        asked: paths of components whose workers have all listed what they have. One of them that is not
            among ``components`` does not exist.

    What is certain to be wrong for some values is found either way: 2100 for a value that does not fit, 2101
    for a path that leads nowhere, 2903 for a component that does not exist.
    """
    return _Checker(flow, components, strict=strict, asked=asked).check()


class _Checker:
    def __init__(
        self, flow: Flow, components: Mapping[str, ComponentInfo], *, strict: bool, asked: Collection[str]
    ) -> None:
        self._flow = flow
        self._components = components
        self._asked = asked
        self._table = _table_of(components)
        self._strict = strict
        self._findings: list[Finding] = []
        self._pool = SchemaPool()
        self._gathered: dict[int, Any] = {}
        self._parts = {name: self._pool.gather(document) for name, document in flow_parts(flow.schemas)}

    def check(self) -> TypeCheck:
        pool = self._pool
        results: dict[str, Any] = {}
        steps: dict[str, StepTypes] = {}
        for position, step in enumerate(self._flow.steps):
            at: JsonPath = ("steps", position)
            expressions = self._expressions(results, step.id)
            given = expressions.type_of(step.input, (*at, "input"))
            types = self._step(step, at, given)
            steps[step.id] = types
            results[step.id] = types.result
        output = self._expressions(results, "").type_of(self._flow.output, ("output",))
        if (declared := self._parts.get("output")) is not None:
            fit = subtype(output, declared, pool)
            what = "the output does not fit schemas.properties.output"
            self._report_misfit(fit, what, self._flow.output, ("output",), ("", declared, output))
        return TypeCheck(tuple(self._findings), steps, output, pool)

    def _expressions(self, results: Mapping[str, Any], step_id: str) -> _Expressions:
        return _Expressions(
            self._flow, self._pool, self._parts, results, self._findings.append, step_id, strict=self._strict
        )

    def _step(self, step: Step, at: JsonPath, given: Any) -> StepTypes:
        info = self._component(step.component)
        taken = self._schema_of(info.input_schema if info is not None else None, step, at)
        offered = self._schema_of(info.output_schema if info is not None else None, step, at)
        if info is None:
            self._report_unlisted(step, at)
        if taken is not None:
            fit = subtype(given, taken, self._pool)
            if fit.verdict is not Verdict.YES and step.input == _NULL_INPUT:
                # What takes an object without required members is most often content with null.
                empty = subtype(with_members({}), taken, self._pool)
                fit = empty if empty.verdict is Verdict.YES else fit
            what = f'the input of step "{step.id}" does not fit {step.component}'
            self._report_misfit(fit, what, step.input, (*at, "input"), (step.id, taken, given))
        declared = self._parts.get(f"steps.{step.id}")
        if declared is not None and offered is not None:
            self._check_declared(step, at, declared, offered)
        if declared is None and offered is None and info is not None and self._strict:
            message = f"{step.component} does not say what it returns"
            self._report(
                DiagnosticKind.UNTYPED_COMPONENT_OUTPUT,
                message,
                (*at, "component"),
                f'declare it in schemas.properties.steps.properties["{step.id}"]',
                {"step_id": step.id, "component": step.component},
            )
        result = declared if declared is not None else offered if offered is not None else ANYTHING
        if isinstance(step.on_error, UseDefault):
            result = union([result, constant(step.on_error.value)])
        return StepTypes(
            given, taken if taken is not None else ANYTHING, result, declared=declared, offered=offered
        )

    def _report_unlisted(self, step: Step, at: JsonPath) -> None:
        hint = did_you_mean(step.component, self._components)
        if step.component in self._asked and hint:
            kind = DiagnosticKind.UNLISTED_COMPONENT
            message = f"there is no {step.component}: its worker does not list it"
        elif step.component in self._asked:
            # Public workers do not list what they offer under a pattern.
            kind = DiagnosticKind.UNTYPED_COMPONENT_OUTPUT
            message = f"{step.component} is not among the components that its worker lists"
            hint = "it does not exist, unless it is meant by a pattern that the worker keeps to itself"
        elif self._components and (hint or self._strict):
            kind = DiagnosticKind.UNTYPED_COMPONENT_OUTPUT
            message = f"{step.component} is not among the components that the workers list"
            hint = hint or "it may well exist: its worker could not be asked"
        else:
            return
        data = {"step_id": step.id, "component": step.component}
        self._report(kind, message, (*at, "component"), hint, data)

    def _check_declared(self, step: Step, at: JsonPath, declared: Any, offered: Any) -> None:
        """A declaration may say more than the component does, but nothing that never comes true."""
        fit = subtype(offered, declared, self._pool)
        if fit.is_disjoint:
            what = f'{step.component} never returns what is declared for step "{step.id}"'
            where = ("schemas", "properties", "steps", "properties", step.id)
            for problem in fit.problems:
                self._mismatch(f"{what}: {_problem(problem)}", where, (step.id, declared, offered), problem)

    def _component(self, path: str) -> ComponentInfo | None:
        if path in self._components:
            return self._components[path]
        found = self._table.match(path)
        return found[0] if found is not None else None

    def _schema_of(self, schema: dict[str, Any] | None, step: Step, at: JsonPath) -> Any:
        """A component's schema, gathered; None where there is none that can be used."""
        if schema is None:
            return None
        # The components keep their schemas, so that the ids stay theirs.
        if id(schema) not in self._gathered:
            fault = schema_fault(schema)
            if fault:
                message = f"a schema of {step.component} is no JSON Schema, and nothing is checked by it"
                data = {"step_id": step.id, "component": step.component}
                kind = DiagnosticKind.UNTYPED_COMPONENT_OUTPUT
                self._report(kind, f"{message}: {fault}", (*at, "component"), "", data)
            gathered = None if fault else self._pool.gather(SchemaDocument(schema))
            # What takes or returns anything says as little as what says nothing.
            self._gathered[id(schema)] = gathered if gathered != {} else None
        return self._gathered[id(schema)]

    def _report_misfit(
        self,
        fit: Subtyping,
        what: str,
        expression: Expression,
        at: JsonPath,
        types: tuple[str, Any, Any],
    ) -> None:
        if fit.verdict is Verdict.NO:
            for problem in fit.problems:
                where = _place_in(expression, problem.path, at)
                self._mismatch(f"{what}: {_problem(problem)}", where, types, problem)
        elif fit.verdict is Verdict.INDETERMINATE and self._strict:
            what = what.replace("does not fit", "may not fit")
            for problem in fit.problems:
                where = _place_in(expression, problem.path, at)
                message = f"{what}: {_problem(problem)}"
                data = {"step_id": types[0], "reason": _problem(problem)}
                self._report(DiagnosticKind.TYPE_CHECK_INDETERMINATE, message, where, "", data)

    def _mismatch(self, message: str, at: JsonPath, types: tuple[str, Any, Any], problem: Problem) -> None:
        step_id, expected, actual = types
        data = {
            "step_id": step_id,
            "expected": shown(expected, self._pool),
            "actual": shown(actual, self._pool),
            "detail": _problem(problem),
        }
        self._report(DiagnosticKind.TYPE_MISMATCH, message, at, "", data)

    def _report(
        self, kind: DiagnosticKind, message: str, at: JsonPath, suggestion: str, data: dict[str, Any]
    ) -> None:
        self._findings.append(Finding(kind, message, at, suggestion, data=data))


class _Expressions:
    """Gives expressions their types, as far as the steps before them have theirs."""

    def __init__(
        self,
        flow: Flow,
        pool: SchemaPool,
        parts: Mapping[str, Any],
        results: Mapping[str, Any],
        report: Report,
        step_id: str,
        *,
        strict: bool,
    ) -> None:
        self._pool = pool
        self._results = results
        self._input = parts.get("input", ANYTHING)
        self._variables = declared_variables(flow.schemas) or {}
        self._variable_defaults = variable_defaults(flow.schemas)
        self._variables_type = parts.get("variables", ANYTHING)
        self._report = report
        self._step_id = step_id
        self._strict = strict

    def type_of(self, expression: Expression, at: JsonPath) -> Any:
        """The type of an expression that is at ``at`` in the flow; reports paths in it that lead nowhere."""
        match expression:
            case Constant(value=value) | Literal(value=value):
                return constant(value)
            case ArrayOf(items=items):
                return tuple_of([self.type_of(item, (*at, index)) for index, item in enumerate(items)])
            case ObjectOf(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                return with_members({key: self.type_of(value, (*at, key)) for key, value in pairs})
            case StepRef(step=step, path=path):
                return self._step(step, path, at)
            case InputRef(path=path):
                return self._read(self._input, path, (*at, "$input"), "the input")
            case VariableRef():
                return self._variable(expression, at)
            case If():
                return self._if(expression, at)
            case Coalesce(items=items):
                return self._coalesce(items, at)

    def _step(self, step: str, path: JsonPath, at: JsonPath) -> Any:
        result = self._results.get(step, ANYTHING)
        where = (*at, "path")
        if not path:
            return result
        if result is not ANYTHING and can_be_null(result, self._pool):
            # A result that is null is null at every path.
            rest = without_null(result, self._pool)
            if rest is False:
                return constant(None)
            return union([self._read(rest, path, where, f'the result of step "{step}"'), constant(None)])
        return self._read(result, path, where, f'the result of step "{step}"')

    def _variable(self, expression: VariableRef, at: JsonPath) -> Any:
        name, path, default = expression.name, expression.path, expression.default
        fallback = self.type_of(default, (*at, "default")) if default is not None else None
        if name not in self._variables:
            return fallback if fallback is not None else ANYTHING
        declared = read_at(self._variables_type, (name,), self._pool).type
        if name in self._variable_defaults:
            # It may be the empty value of its type, which need not fit the rest of its schema.
            default_type = constant(self._variable_defaults[name])
            if subtype(default_type, declared, self._pool).verdict is not Verdict.YES:
                declared = union([declared, default_type])
        if fallback is None:
            return self._read(declared, path, (*at, "$variable"), f'variable "{name}"')
        found = read_at(declared, path, self._pool)
        if found.presence is Presence.ABSENT:
            return fallback
        never_falls_back = found.presence is Presence.THERE and name in self._variable_defaults
        return found.type if never_falls_back else union([found.type, fallback])

    def _if(self, expression: If, at: JsonPath) -> Any:
        self.type_of(expression.condition, (*at, "$if"))
        then = self.type_of(expression.then, (*at, "then"))
        otherwise = constant(None)
        if expression.otherwise is not None:
            otherwise = self.type_of(expression.otherwise, (*at, "else"))
        if isinstance(expression.condition, (Constant, Literal)):
            value = expression.condition.value
            return then if value is not None and value is not False else otherwise
        return union([then, otherwise])

    def _coalesce(self, items: Sequence[Expression], at: JsonPath) -> Any:
        types = [self.type_of(item, (*at, "$coalesce", index)) for index, item in enumerate(items)]
        chosen: list[Any] = []
        for type_ in types:
            chosen.append(without_null(type_, self._pool))
            if type_ is not ANYTHING and not can_be_null(type_, self._pool):
                return union(chosen)
        return union([*chosen, constant(None)])

    def _read(self, type_: Any, path: JsonPath, at: JsonPath, what: str) -> Any:
        """The type of what is at ``path``."""
        part = read_at(type_, path, self._pool)
        rendered = render_path(path)
        if part.presence is Presence.ABSENT:
            message = f"path {rendered} leads nowhere in {what}: {render_path(part.reached)} {part.why}"
            missing = str(path[len(part.reached)])
            data = {"step_id": self._step_id, "path": rendered, "property": missing}
            self._report(Finding(DiagnosticKind.UNKNOWN_PROPERTY_IN_PATH, message, at, "", data=data))
            return ANYTHING
        if self._strict and path:
            data = {"step_id": self._step_id, "field": rendered}
            if part.presence is Presence.UNDESCRIBED:
                why = f"{render_path(part.reached)} is not described there"
                message = f"path {rendered} into {what} cannot be checked: {why}"
                kind = DiagnosticKind.UNVALIDATED_FIELD_ACCESS
                self._report(Finding(kind, message, at, "", data={**data, "reason": why}))
            elif part.presence is Presence.MAYBE:
                why = f"what is at {rendered} in {what} may be missing"
                kind = DiagnosticKind.TYPE_CHECK_INDETERMINATE
                self._report(Finding(kind, why, at, "", data={"step_id": self._step_id, "reason": why}))
        return part.type


def _table_of(components: Mapping[str, ComponentInfo]) -> PathTable[ComponentInfo]:
    table: PathTable[ComponentInfo] = PathTable()
    for path, info in components.items():
        try:
            table.add(path, info)
        except LocalProtocolError:
            # Two that fit the same paths: which of them it is, is the worker's to say.
            continue
    return table


def _problem(problem: Problem) -> str:
    return f"{render_path(problem.path).replace('.*', '[*]')} {problem.why}"


def _place_in(expression: Expression, path: JsonPath, at: JsonPath) -> JsonPath:
    """The place in the flow of what is at ``path`` in an expression's value, or of what it is read from."""
    for index, key in enumerate(path):
        match expression:
            case ObjectOf(keys=keys, values=values) if key in keys:
                expression, at = values[keys.index(key)], (*at, key)
            case ArrayOf(items=items) if isinstance(key, int) and key < len(items):
                expression, at = items[key], (*at, key)
            case Literal():
                return (*at, "$literal", *path[index:])
            case Constant():
                return (*at, *path[index:])
            case _:
                return at
    return at
