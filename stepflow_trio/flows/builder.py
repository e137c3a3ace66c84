"""Flows written in Python: the same `Flow` that the reader makes of YAML, with references that are objects.

::

    builder = FlowBuilder(name="report", description="Counts the words of a text.")
    load = builder.add_step("load", component="/files/load", input={"path": builder.input["path"]})
    count = builder.add_step("count", component="/text/count", input={"text": load["lines"][0]})
    flow = builder.set_output({"words": count["words"]}).build()

A `Value` stands for something that is known only in a run. It can be anywhere inside the dicts and lists of
an input or the output. Everything else there is what it would be in YAML, so that ``{"$step": "load"}`` is a
reference as well, unless `literal` makes it data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET, UnsetType

from stepflow_trio.flows.builder_values import (
    FLOW_NAME,
    GivenArguments,
    Reference,
    Valuable,
    Value,
    coalesce,
    if_,
    invalid,
    literal,
)
from stepflow_trio.flows.diagnostics import DiagnosticKind, Finding
from stepflow_trio.flows.expressions import (
    Constant,
    Expression,
    InputRef,
    ObjectOf,
    StepRef,
    VariableRef,
    walk_expression,
)
from stepflow_trio.flows.model import Flow, OnError, Step, UseDefault
from stepflow_trio.flows.paths import JsonPath
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.flows.suggestions import did_you_mean
from stepflow_trio.protocol.json_types import json_type

__all__ = ["FlowBuilder", "Reference", "StepHandle", "Valuable", "Value", "coalesce", "if_", "literal"]

AnyReference = StepRef | InputRef | VariableRef


class StepHandle(Reference):
    """A step of a builder: it stands for the step's result."""

    __slots__ = ("_builder", "id")

    def __init__(self, builder: FlowBuilder, id: str) -> None:
        super().__init__({"$step": id}, {builder: f'step "{id}"'}, "path", ())
        self._builder = builder
        self.id = id
        """The step's id."""

    def get_references(self) -> list[AnyReference]:
        """Everything that the step's input refers to, in the order of the text."""
        return self._builder.get_references(self.id)


class FlowBuilder:
    """Makes a flow, step by step.

    Every method takes a copy of what it is given, and raises `FlowInvalid` for what is wrong with it, with
    its place in the arguments and in the flow: a value that is no JSON, a step that does not exist (yet: a
    step reads earlier ones only), an id twice, a handle of another builder, a component that is no path.
    Nothing is added then. What can be known only of a whole flow is checked by `build`.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        description: str | None = None,
        version: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        given = GivenArguments()
        texts = {"name": name, "description": description, "version": version}
        head = {field: given.take_data(text, field, (field,)) for field, text in texts.items()}
        head["metadata"] = given.take_data(metadata, "metadata", ("metadata",))
        given.check(head)
        self._head = _without_none(head)
        self._schemas: dict[str, Any] = {}
        self._definitions: dict[str, Any] = {}
        self._steps: dict[str, dict[str, Any]] = {}
        self._inputs: dict[str, Expression] = {}
        self._step_schemas: dict[str, Any] = {}
        self._output: Any = None
        self._output_takes_fields = True
        self._kept: dict[str, Any] = {}
        """What a loaded flow has that a builder only passes on."""

    @classmethod
    def load(cls, flow: Flow) -> FlowBuilder:
        """A builder that holds all of ``flow``, to be looked through or added to.

        Raises:
            FlowInvalid: the flow was made by hand, and is none that could be read.
        """
        written = flow_from_json(flow.to_json()).to_json()
        builder = cls()
        for field in ("name", "description", "version", "metadata"):
            if field in written:
                builder._head[field] = written[field]
        for field in ("test", "examples"):
            if field in written:
                builder._kept[field] = written[field]
        schemas: dict[str, Any] = written.get("schemas", {})
        builder._definitions = dict(schemas.get("$defs", {}))
        builder._schemas = dict(schemas.get("properties", {}))
        builder._step_schemas = dict(builder._schemas.pop("steps", {}).get("properties", {}))
        for step in written.get("steps", []):
            builder._insert(builder._checked_step(step, GivenArguments()), step)
        if "output" in written:
            builder.set_output(written["output"])
        return builder

    @property
    def input(self) -> Reference:
        """``$input``: the run's input."""
        return Reference({"$input": "$"}, {self: "the input"}, "$input", ())

    def variable(self, path: str, default: Valuable | UnsetType = UNSET) -> Reference:
        """`Value.variable`, of this builder."""
        return Value.variable(path, default).owned_by(self, f'variable "{path}"')

    def step(self, id: str) -> StepHandle:
        """The handle of a step that was added.

        Raises:
            FlowInvalid: there is none of that id.
        """
        if id not in self._steps:
            message, hint = f'there is no step "{id}"', did_you_mean(id, self._steps)
            raise invalid([Finding(DiagnosticKind.UNDEFINED_STEP_REFERENCE, message, (), hint)])
        return StepHandle(self, id)

    @property
    def steps(self) -> tuple[StepHandle, ...]:
        """The handles of all steps, in order."""
        return tuple(StepHandle(self, id) for id in self._steps)

    def add_step(
        self,
        id: str,
        *,
        component: str,
        input: Valuable = None,
        on_error: OnError | None = None,
        must_execute: bool | None = None,
        timeout_s: float | None = None,
        output_schema: Mapping[str, Any] | bool | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> StepHandle:
        """Add a step behind those that there are.

        Args:
            id: unique in the flow.
            component: its path, such as ``/builtin/eval``.
            input: any JSON with values in it.
            on_error: `Fail`, `Retry` or `UseDefault`; None says nothing, which means `Fail`.
            must_execute: True: it runs even if nothing needs it.
            timeout_s: how many seconds one attempt may take; None: as long as the runtime lets it.
            output_schema: the JSON Schema of its result.
            metadata: an object of yours.

        Raises:
            FlowInvalid: any of it is wrong by itself, or refers to what does not exist.
        """
        at = ("steps", len(self._steps))
        given = GivenArguments()
        step = _without_none(
            {
                "id": given.take_data(id, "id", (*at, "id")),
                "component": given.take_data(component, "component", (*at, "component")),
                "onError": _take_policy(on_error, given, (*at, "onError")),
                "input": given.take(input, "input", (*at, "input")),
                "mustExecute": given.take_data(must_execute, "must_execute", (*at, "mustExecute")),
                "timeoutSecs": given.take_data(timeout_s, "timeout_s", (*at, "timeoutSecs")),
                "metadata": given.take_data(metadata, "metadata", (*at, "metadata")),
            }
        )
        checked = self._checked_step(step, given)
        if output_schema is not None:
            place = ("steps", "properties", checked.id)
            self._step_schemas[checked.id] = _taken_schema(output_schema, "output_schema", place)
        self._insert(checked, step)
        return StepHandle(self, checked.id)

    def set_output(self, output: Valuable) -> FlowBuilder:
        """Say what the run comes to, in place of whatever the output was; returns the builder.

        Raises:
            FlowInvalid: it is no JSON, or refers to what does not exist.
        """
        given = GivenArguments()
        json = given.take(output, "output", ("output",))
        expression = given.check({"output": json}).output
        self._check_references(expression, given, ("output",))
        self._output = json
        self._output_takes_fields = json is None or (isinstance(json, dict) and _is_data(expression))
        return self

    def add_output_field(self, key: str, value: Valuable) -> FlowBuilder:
        """Add a field to the output, which is an object or not there yet; returns the builder.

        Raises:
            FlowInvalid: the value is no JSON or refers to what does not exist, or the output has such a field
                already, or can have none.
        """
        given = GivenArguments()
        taken_key = given.take_data(key, "key", ("output",))
        field = {taken_key: given.take(value, "value", ("output", key))}
        expression = given.check({"output": field}).output
        kind, problem = DiagnosticKind.INVALID_REFERENCE_EXPRESSION, ""
        if not self._output_takes_fields:
            problem = "the output was set to something that is no object with fields"
        elif not _is_data(expression):
            problem = f'with a field "{key}" the output would be an expression'
        elif self._output is not None and taken_key in self._output:
            kind, problem = DiagnosticKind.DUPLICATE_KEY, f'the output has a field "{key}" already'
        if problem:
            raise given.invalid([Finding(kind, problem, ("output",))])
        self._check_references(expression, given, ("output",))
        self._output = {**(self._output or {}), **field}
        return self

    def set_input_schema(self, schema: Mapping[str, Any] | bool) -> FlowBuilder:
        """Say by a JSON Schema what the run's input is; returns the builder."""
        self._schemas["input"] = _taken_schema(schema, "schema", ("input",))
        return self

    def set_output_schema(self, schema: Mapping[str, Any] | bool) -> FlowBuilder:
        """Say by a JSON Schema what the run comes to; returns the builder."""
        self._schemas["output"] = _taken_schema(schema, "schema", ("output",))
        return self

    def set_variables_schema(self, schema: Mapping[str, Any] | bool) -> FlowBuilder:
        """Declare the variables, as the properties of an object's JSON Schema; returns the builder."""
        self._schemas["variables"] = _taken_schema(schema, "schema", ("variables",))
        return self

    def set_schema_definitions(self, definitions: Mapping[str, Any]) -> FlowBuilder:
        """Name schemas, for others to refer to as ``#/schemas/$defs/<name>``; returns the builder."""
        given = GivenArguments()
        at = ("schemas", "$defs")
        json = given.take_data(definitions, "definitions", at)
        given.check({"schemas": {"$defs": json}})
        _require_schemas({(*at, name): schema for name, schema in json.items()}, given)
        self._definitions = json
        return self

    def get_references(self, step: str | None = None) -> list[AnyReference]:
        """Everything that the flow, or the input of one step, refers to, in the order of the text.

        What is referred to several times is in it as often.

        Raises:
            FlowInvalid: there is no step of that id.
        """
        if step is None:
            output = GivenArguments().check({"output": self._output}).output
            expressions = [*self._inputs.values(), output]
        else:
            expressions = [self._inputs[self.step(step).id]]
        nodes = (node for expression in expressions for _, node in walk_expression(expression))
        return [node for node in nodes if isinstance(node, (StepRef, InputRef, VariableRef))]

    def build(self) -> Flow:
        """The flow as it stands; the builder can go on from there.

        It has gone through the reader, with the same checks; what is merely odd is in its ``warnings``.

        Raises:
            FlowInvalid: it cannot be run, for example because it reads a variable that is not declared.
        """
        schemas: dict[str, Any] = {}
        if self._definitions:
            schemas["$defs"] = self._definitions
        properties = dict(self._schemas)
        if self._step_schemas:
            properties["steps"] = {"type": "object", "properties": dict(self._step_schemas)}
        if properties:
            schemas["properties"] = properties
        document = {**self._head, "steps": list(self._steps.values()), "output": self._output, **self._kept}
        if schemas:
            document["schemas"] = {"type": "object", **schemas}
        return flow_from_json(document, name=FLOW_NAME)

    def _checked_step(self, written: dict[str, Any], given: GivenArguments) -> Step:
        """The next step, unless something is wrong with it."""
        position = len(self._steps)
        [step] = given.check({"steps": [written]}, first_step=position).steps
        at = ("steps", position)
        if step.id in self._steps:
            message = f'there is a step "{step.id}" already'
            raise given.invalid([Finding(DiagnosticKind.DUPLICATE_STEP_ID, message, (*at, "id"))])
        self._check_references(step.input, given, (*at, "input"))
        return step

    def _insert(self, step: Step, written: dict[str, Any]) -> None:
        self._steps[step.id] = written
        self._inputs[step.id] = step.input

    def _check_references(self, expression: Expression, given: GivenArguments, at: JsonPath) -> None:
        """Raise `FlowInvalid` unless all that an expression refers to is there, and this builder's."""
        hint = "take values from the builder that they are given to"
        findings = [
            Finding(
                DiagnosticKind.INVALID_REFERENCE_EXPRESSION, f"this is {what} of another builder", path, hint
            )
            for path, value in given.values
            for owner, what in value.owners.items()
            if owner is not self
        ]
        foreign = [finding.path for finding in findings]
        for path, node in walk_expression(expression, at=at):
            # What is another builder's is wrong whether or not there happens to be a step of that id.
            if isinstance(node, StepRef) and node.step not in self._steps:
                if any(path[: len(start)] == start for start in foreign):
                    continue
                hint = did_you_mean(node.step, self._steps) or "a step reads earlier steps only: add it first"
                message = f'there is no step "{node.step}"'
                kind = DiagnosticKind.UNDEFINED_STEP_REFERENCE
                findings.append(Finding(kind, message, (*path, "$step"), hint))
        if findings:
            raise given.invalid(findings)


def _take_policy(policy: OnError | None, given: GivenArguments, at: JsonPath) -> Any:
    """``on_error`` as a flow has it; what is none of the policies is left for the check to refuse."""
    if not isinstance(policy, OnError):
        return given.take_data(policy, "on_error", at)
    written = given.take_data(policy.to_json(), "on_error", at)
    given.name(policy, "on_error", at)
    if isinstance(policy, UseDefault):
        given.name(policy.value, "on_error.value", (*at, "defaultValue"))
    return written


def _taken_schema(schema: object, argument: str, part: JsonPath) -> Any:
    given = GivenArguments()
    at = ("schemas", "properties", *part)
    json = given.take_data(schema, argument, at)
    wrapped: Any = json
    for name in reversed(at):
        wrapped = {name: wrapped}
    given.check(wrapped)
    _require_schemas({at: json}, given)
    return json


def _require_schemas(schemas: dict[JsonPath, Any], given: GivenArguments) -> None:
    """Raise `FlowInvalid` for what is no schema. The reader leaves that to those who use them."""
    findings = [
        Finding(
            DiagnosticKind.WRONG_TYPE, f"a schema is an object or a boolean, not {json_type(schema)}", path
        )
        for path, schema in schemas.items()
        if not isinstance(schema, (dict, bool))
    ]
    if findings:
        raise given.invalid(findings)


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _is_data(expression: Expression) -> bool:
    """Of an object: whether it is one, and not an expression."""
    return isinstance(expression, (Constant, ObjectOf))
