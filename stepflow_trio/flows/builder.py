"""Flows written in Python: the same `Flow` that the reader makes of YAML, with references that are objects.

::

    builder = FlowBuilder(name="report", description="Counts the words of a text.")
    load = builder.add_step("load", component="/files/load", input={"path": builder.input["path"]})
    count = builder.add_step("count", component="/text/count", input={"text": load["lines"][0]})
    flow = builder.set_output({"words": count["words"]}).build()

A `Value` stands for something that is known only in a run. It can be anywhere inside the dicts and lists of an
input or the output; everything else there is what it would be in YAML, so that ``{"$step": "load"}`` is a
reference as well, unless `literal` makes it data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

from msgspec import UNSET, UnsetType

from stepflow_trio.errors import FlowInvalid, PathInvalid
from stepflow_trio.flows.diagnostics import Diagnostic, DiagnosticKind, Finding, Place, printable
from stepflow_trio.flows.expressions import (
    Constant,
    Expression,
    InputRef,
    ObjectOf,
    StepRef,
    VariableRef,
    walk_expression,
)
from stepflow_trio.flows.flow_shape import shape_flow
from stepflow_trio.flows.model import Flow, OnError, UseDefault
from stepflow_trio.flows.paths import JsonPath, parse_path, render_path
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.flows.source import source_of_value
from stepflow_trio.flows.source_text import SourceLimits
from stepflow_trio.flows.suggestions import did_you_mean

__all__ = ["FlowBuilder", "Reference", "StepHandle", "Valuable", "Value", "coalesce", "if_", "literal"]

Valuable: TypeAlias = (
    "None | bool | int | float | str | Value | Sequence[Valuable] | Mapping[str, Valuable]"
)
"""What an input or an output may be made of: JSON, tuples included, with a `Value` anywhere in it."""

_NAME = "<flow>"
_MAX_DEPTH = SourceLimits().max_depth
_MAX_INDEX = 10**18
"""From here on an index cannot be written in a path."""


class Value:
    """Something that is known only in a run: a reference, a choice, or data that is taken verbatim.

    The static methods make values without a builder; whether their steps exist is checked where they are
    added to one. A value is immutable. It cannot be compared, formatted, iterated over or asked for its truth,
    all of which are a `TypeError`: that is a component's work, or `if_`'s.
    """

    __slots__ = ("_json", "_owners")

    def __init__(self, json: dict[str, Any], owners: Mapping[FlowBuilder, str]) -> None:
        self._json = json
        """The expression as plain JSON."""
        self._owners = owners
        """The builders that its references came from, each with one of these references in words."""

    @staticmethod
    def step(id: str, path: str | None = None) -> Reference:
        """``$step``: the result of a step, or what is at ``path``, a path as a flow writes it.

        Raises:
            FlowInvalid: it is no path.
        """
        return _reference({"$step": id, "path": path}, {"$step": ("id", id), "path": ("path", path)}, {})

    @staticmethod
    def input(path: str | None = None) -> Reference:
        """``$input``: the run's input, or what is at ``path``, a path as a flow writes it.

        Raises:
            FlowInvalid: it is no path.
        """
        return _reference({"$input": "$" if path is None else path}, {"$input": ("path", path)}, {})

    @staticmethod
    def variable(path: str, default: Valuable | UnsetType = UNSET) -> Reference:
        """``$variable``: the variable called ``path``, or what is at a path that begins with its name.

        ``default`` counts where there is nothing.

        Raises:
            FlowInvalid: it is no path, or the default no JSON.
        """
        return _variable(path, default, {})

    @staticmethod
    def literal(value: Valuable) -> Value:
        """`literal`."""
        return literal(value)

    @staticmethod
    def if_(condition: Valuable, then: Valuable, else_: Valuable | UnsetType = UNSET) -> Value:
        """`if_`."""
        return if_(condition, then, else_)

    @staticmethod
    def coalesce(*values: Valuable) -> Value:
        """`coalesce`."""
        return coalesce(*values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._json!r})"

    # What would silently be a constant of the flow, if Python's defaults for any object were left standing.

    def __bool__(self) -> bool:
        self._unknown("be asked for its truth", "choose with if_(condition, then, else_)")

    def __eq__(self, other: object) -> bool:
        self._unknown("be compared", "compare in a component")

    __hash__ = None  # type: ignore[assignment] # what has no equality has no hash

    def __format__(self, format_spec: str) -> str:
        self._unknown("be part of a text", "make the text in a component")

    def __iter__(self) -> NoReturn:
        self._unknown("be iterated over", "run a flow for each item with /builtin/map")

    def _unknown(self, what: str, instead: str) -> NoReturn:
        raise TypeError(f"{self!r} is known only in a run, so it cannot {what} here: {instead}")


class Reference(Value):
    """A value that is looked up: ``reference["field"]`` and ``reference[0]`` refer to what is inside it."""

    __slots__ = ("_path", "_path_key")

    def __init__(
        self, json: dict[str, Any], owners: Mapping[FlowBuilder, str], path_key: str, path: JsonPath
    ) -> None:
        super().__init__(json, owners)
        self._path_key = path_key
        """Where the expression has its path."""
        self._path = path

    def __getitem__(self, key: str | int) -> Reference:
        """What the field or index ``key`` leads to; any text is one field, dots and quotes included.

        Raises:
            PathInvalid: it is neither a field's name nor an index that counts from the start.
        """
        if isinstance(key, str):
            key = str.__str__(key)
        elif type(key) is not int or not 0 <= key < _MAX_INDEX:
            why = "a segment of a path is a field's name or an index, which counts from the start"
            raise PathInvalid(f"{render_path(self._path)}[{key!r}]", why)
        path = (*self._path, key)
        json = {**self._json, self._path_key: render_path(path)}
        return Reference(json, self._owners, self._path_key, path)

    if not TYPE_CHECKING:  # a type checker knows by itself that there is no such attribute

        def __getattr__(self, name: str) -> NoReturn:
            hint = f": a field of the value is written [{name!r}]"
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}")


class StepHandle(Reference):
    """A step of a builder: it stands for the step's result."""

    __slots__ = ("_builder", "id")

    def __init__(self, builder: FlowBuilder, id: str) -> None:
        super().__init__({"$step": id}, {builder: f'step "{id}"'}, "path", ())
        self._builder = builder
        self.id = id
        """The step's id."""

    def get_references(self) -> list[StepRef | InputRef | VariableRef]:
        """Everything that the step's input refers to, in the order of the text."""
        return self._builder.get_references(self.id)


def literal(value: Valuable) -> Value:
    """``$literal``: ``value`` as it is, also where it looks like an expression.

    Raises:
        FlowInvalid: it is no JSON, or has a `Value` in it.
    """
    given = _Given()
    json = {"$literal": given.take(value, "value", ("output", "$literal"), plain="a literal is data")}
    given.check({"output": json})
    return Value(json, {})


def if_(condition: Valuable, then: Valuable, else_: Valuable | UnsetType = UNSET) -> Value:
    """``$if``: ``then``, unless the condition is null, false or fails; then ``else_``, or null without it.

    Everything else is true, ``0``, ``""``, ``[]`` and ``{}`` included. Only the branch that is taken has its
    steps run.

    Raises:
        FlowInvalid: something in it is no JSON.
    """
    given = _Given()
    json = {
        "$if": given.take(condition, "condition", ("output", "$if")),
        "then": given.take(then, "then", ("output", "then")),
    }
    if else_ is not UNSET:
        json["else"] = given.take(else_, "else_", ("output", "else"))
    given.check({"output": json})
    return Value(json, given.owners)


def coalesce(*values: Valuable) -> Value:
    """``$coalesce``: the first that is not null, or null. It goes no further than it must.

    Raises:
        FlowInvalid: something in it is no JSON.
    """
    given = _Given()
    json = {"$coalesce": given.take(values, "values", ("output", "$coalesce"))}
    given.check({"output": json})
    return Value(json, given.owners)


class FlowBuilder:
    """Makes a flow, step by step.

    Every method takes a copy of what it is given, and raises `FlowInvalid` for what is wrong with it, with its
    place in the arguments and in the flow: a value that is no JSON, a step that does not exist (yet: a step
    reads earlier ones only), an id twice, a handle of another builder, a component that is no path. Nothing is
    added then. What can be known only of a whole flow is checked by `build`.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        description: str | None = None,
        version: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        given = _Given()
        texts = {"name": name, "description": description, "version": version}
        head = {field: given.take(text, field, (field,)) for field, text in texts.items()}
        head["metadata"] = given.take(metadata, "metadata", ("metadata",), plain="metadata is data")
        given.check(head)
        self._head = {field: value for field, value in head.items() if value is not None}
        self._schemas: dict[str, Any] = {}
        self._definitions: dict[str, Any] = {}
        self._steps: dict[str, dict[str, Any]] = {}
        self._inputs: dict[str, Expression] = {}
        self._step_schemas: dict[str, Any] = {}
        self._output: Any = None
        self._output_has_fields = True
        self._kept: dict[str, Any] = {}
        """What a loaded flow has that a builder only passes on."""

    @classmethod
    def load(cls, flow: Flow) -> FlowBuilder:
        """A builder that holds all of ``flow``, to be looked through or added to.

        Raises:
            FlowInvalid: the flow, made by hand, is none that could be read.
        """
        written = flow_from_json(flow.to_json()).to_json()
        builder = cls()
        builder._head = {
            field: written[field] for field in ("name", "description", "version", "metadata") if field in written
        }
        builder._kept = {field: written[field] for field in ("test", "examples") if field in written}
        schemas: dict[str, Any] = written.get("schemas", {})
        builder._definitions = dict(schemas.get("$defs", {}))
        builder._schemas = dict(schemas.get("properties", {}))
        builder._step_schemas = dict(builder._schemas.pop("steps", {}).get("properties", {}))
        for step in written.get("steps", []):
            builder._insert_step(step, _Given())
        if "output" in written:
            builder.set_output(written["output"])
        return builder

    @property
    def input(self) -> Reference:
        """``$input``: the run's input."""
        return Reference({"$input": "$"}, {self: "the input"}, "$input", ())

    def variable(self, path: str, default: Valuable | UnsetType = UNSET) -> Reference:
        """`Value.variable`."""
        return _variable(path, default, {self: f'variable "{path}"'})

    def step(self, id: str) -> StepHandle:
        """The handle of a step that was added.

        Raises:
            FlowInvalid: there is none of that id.
        """
        if id not in self._steps:
            message = f"there is no step {_quoted(id)}"
            undefined = Finding(
                DiagnosticKind.UNDEFINED_STEP_REFERENCE, message, (), did_you_mean(id, self._steps)
            )
            raise _invalid([undefined])
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
            output_schema: the JSON Schema of its result.
            metadata: an object of yours.

        Raises:
            FlowInvalid: any of it is wrong by itself, or refers to what does not exist.
        """
        at = ("steps", len(self._steps))
        given = _Given()
        step = {
            "id": given.take(id, "id", (*at, "id")),
            "component": given.take(component, "component", (*at, "component")),
            "onError": self._taken_policy(on_error, given, (*at, "onError")),
            "input": given.take(input, "input", (*at, "input")),
            "mustExecute": given.take(must_execute, "must_execute", (*at, "mustExecute")),
            "metadata": given.take(metadata, "metadata", (*at, "metadata"), plain="metadata is data"),
        }
        schema = None
        if output_schema is not None:
            schema = self._taken_schema(("steps", "properties", id), output_schema, "output_schema")
        self._insert_step({field: value for field, value in step.items() if value is not None}, given)
        if schema is not None:
            self._step_schemas[id] = schema
        return StepHandle(self, id)

    def set_output(self, output: Valuable) -> FlowBuilder:
        """Say what the run comes to, in place of whatever the output was; returns the builder.

        Raises:
            FlowInvalid: it is no JSON, or refers to what does not exist.
        """
        given = _Given()
        json = given.take(output, "output", ("output",))
        expression = given.check({"output": json}).output
        self._check_references(expression, given, ("output",))
        self._output = json
        self._output_has_fields = json is None or (isinstance(json, dict) and _is_object(expression))
        return self

    def add_output_field(self, key: str, value: Valuable) -> FlowBuilder:
        """Add a field to the output, which is an object or not there yet; returns the builder.

        Raises:
            FlowInvalid: the value is no JSON or refers to what does not exist, or the output has such a field
                already, or can have none.
        """
        given = _Given()
        field = {
            given.take(key, "key", ("output",)): given.take(value, "value", ("output", key)),
        }
        expression = given.check({"output": field}).output
        problem = ""
        kind = DiagnosticKind.INVALID_REFERENCE_EXPRESSION
        if not self._output_has_fields:
            problem = "the output has been set to something that is no object with fields"
        elif not _is_object(expression):
            problem = f"with a field {_quoted(key)} the output would be an expression"
        elif self._output is not None and key in self._output:
            kind, problem = DiagnosticKind.DUPLICATE_KEY, f"the output has a field {_quoted(key)} already"
        if problem:
            raise given.invalid([Finding(kind, problem, ("output",))])
        self._check_references(expression, given, ("output",))
        self._output = {**(self._output or {}), **field}
        return self

    def set_input_schema(self, schema: Mapping[str, Any] | bool) -> FlowBuilder:
        """Say by a JSON Schema what the run's input is; returns the builder."""
        self._schemas["input"] = self._taken_schema(("input",), schema, "schema")
        return self

    def set_output_schema(self, schema: Mapping[str, Any] | bool) -> FlowBuilder:
        """Say by a JSON Schema what the run comes to; returns the builder."""
        self._schemas["output"] = self._taken_schema(("output",), schema, "schema")
        return self

    def set_variables_schema(self, schema: Mapping[str, Any] | bool) -> FlowBuilder:
        """Declare the variables, as the properties of an object's JSON Schema; returns the builder."""
        self._schemas["variables"] = self._taken_schema(("variables",), schema, "schema")
        return self

    def set_schema_definitions(self, definitions: Mapping[str, Any]) -> FlowBuilder:
        """Name schemas that others refer to with ``{"$ref": "#/schemas/$defs/<name>"}``; returns the builder."""
        given = _Given()
        at = ("schemas", "$defs")
        json = given.take(definitions, "definitions", at, plain="a schema is data")
        given.check({"schemas": {"type": "object", "$defs": json}})
        self._definitions = json
        return self

    def get_references(self, step: str | None = None) -> list[StepRef | InputRef | VariableRef]:
        """Everything that the flow refers to, or one step's input, each time it does, in the order of the text.

        Raises:
            FlowInvalid: there is no step of that id.
        """
        if step is None:
            output = _Given().check({"output": self._output}).output
            expressions = [*self._inputs.values(), output]
        else:
            expressions = [self._inputs[self.step(step).id]]
        nodes = (node for expression in expressions for _, node in walk_expression(expression))
        return [node for node in nodes if isinstance(node, (StepRef, InputRef, VariableRef))]

    def build(self) -> Flow:
        """The flow as it stands, which the builder can go on from.

        It has gone through the reader, with the same checks; what is merely odd is in its ``warnings``.

        Raises:
            FlowInvalid: it cannot be run, for example because of a variable that was not declared.
        """
        schemas: dict[str, Any] = {"type": "object"}
        if self._definitions:
            schemas["$defs"] = self._definitions
        properties = dict(self._schemas)
        if self._step_schemas:
            properties["steps"] = {"type": "object", "properties": dict(self._step_schemas)}
        if properties:
            schemas["properties"] = properties
        document = {**self._head, "steps": list(self._steps.values()), "output": self._output, **self._kept}
        if len(schemas) > 1:
            document["schemas"] = schemas
        return flow_from_json(document, name=_NAME)

    def _insert_step(self, step: dict[str, Any], given: _Given) -> None:
        """Take a step as it is written, once it has been found to be right."""
        position = len(self._steps)
        [checked] = given.check({"steps": [step]}, position=position).steps
        at = ("steps", position)
        if checked.id in self._steps:
            message = f"the step id {_quoted(checked.id)} is that of another step already"
            raise given.invalid([Finding(DiagnosticKind.DUPLICATE_STEP_ID, message, (*at, "id"))])
        self._check_references(checked.input, given, (*at, "input"))
        self._steps[checked.id] = step
        self._inputs[checked.id] = checked.input

    def _check_references(self, expression: Expression, given: _Given, at: JsonPath) -> None:
        """Whether all that an expression refers to is this builder's and there."""
        findings = [
            Finding(
                DiagnosticKind.INVALID_REFERENCE_EXPRESSION,
                f"{reference} is another builder's",
                path,
                "take the values from the builder that they are added to",
            )
            for path, value in given.values
            for owner, reference in value._owners.items()  # pyright: ignore[reportPrivateUsage]: one module
            if owner is not self
        ]
        foreign = {finding.path for finding in findings}
        for path, node in walk_expression(expression, at=at):
            if isinstance(node, StepRef) and node.step not in self._steps:
                # A value of another builder is wrong whether or not there happens to be a step of that id.
                if any(path[: len(start)] == start for start in foreign):
                    continue
                hint = did_you_mean(node.step, self._steps) or "a step reads earlier steps only: add it before"
                message = f"there is no step {_quoted(node.step)} yet"
                findings.append(
                    Finding(DiagnosticKind.UNDEFINED_STEP_REFERENCE, message, (*path, "$step"), hint)
                )
        if findings:
            raise given.invalid(findings)

    def _taken_schema(self, part: tuple[str, ...], schema: object, argument: str) -> Any:
        given = _Given()
        json = given.take(schema, argument, ("schemas", "properties", *part), plain="a schema is data")
        wrapped = json
        for name in reversed(("properties", *part)):
            wrapped = {name: wrapped}
        given.check({"schemas": wrapped})
        return json

    @staticmethod
    def _taken_policy(policy: OnError | None, given: _Given, at: JsonPath) -> Any:
        """``on_error`` as a flow has it; what is none of the policies is left for the check to refuse."""
        if policy is None or not hasattr(policy, "to_json"):
            return given.take(policy, "on_error", at)
        written: Any = given.take(policy.to_json(), "on_error", at, plain="a default is data")
        if isinstance(policy, UseDefault) and policy.value is not None:
            given.name(policy.value, "on_error.value", (*at, "defaultValue"))
        return written


class _Given:
    """Arguments on their way into a flow: their JSON, the values in them, and how Python calls their parts."""

    def __init__(self) -> None:
        self.values: list[tuple[JsonPath, Value]] = []
        """Each `Value` that was given, with its place in the flow."""
        self._names: dict[JsonPath, tuple[str, object]] = {}
        self._findings: list[Finding] = []
        self._copies: dict[int, tuple[object, Any]] = {}

    @property
    def owners(self) -> dict[FlowBuilder, str]:
        """The builders of the values that were given."""
        owners: dict[FlowBuilder, str] = {}
        for _, value in self.values:
            owners.update(value._owners)  # pyright: ignore[reportPrivateUsage]: one module
        return owners

    def name(self, value: object, argument: str, at: JsonPath) -> None:
        """Say that what is at ``at`` in the flow is, in Python, ``value`` of ``argument``."""
        self._names[at] = (argument, value)

    def take(self, value: object, argument: str, at: JsonPath, *, plain: str = "") -> Any:
        """``value`` as JSON of its own; what is no JSON stays in it, for `check` to refuse.

        ``plain`` says why it must hold no `Value`; empty: it may.
        """
        self.name(value, argument, at)
        return self._copy(value, at, plain)

    def _copy(self, value: object, at: JsonPath, plain: str) -> Any:
        if isinstance(value, Value):
            if plain:
                message = f"{plain}: there is no value of a run in it"
                self._findings.append(Finding(DiagnosticKind.NOT_JSON, message, at))
                return None
            self.values.append((at, value))
            return value._json  # pyright: ignore[reportPrivateUsage]: one module
        if isinstance(value, str):
            return str.__str__(value)  # the text itself of a subclass such as an enum
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, (int, float)):
            return int(value) if isinstance(value, int) else float(value)
        if not isinstance(value, (Mapping, Sequence)) or isinstance(value, (bytes, bytearray, memoryview)):
            return value
        if len(at) > _MAX_DEPTH:
            message = f"dicts and lists are nested more than {_MAX_DEPTH} deep here"
            hint = "does one contain itself?"
            raise self.invalid([Finding(DiagnosticKind.LIMIT_EXCEEDED, message, at, hint)])
        # By identity, so that what is shared many times over is gone through once.
        if id(value) not in self._copies:
            self._copies[id(value)] = (value, self._copy_members(value, at, plain))
        return self._copies[id(value)][1]

    def _copy_members(self, value: object, at: JsonPath, plain: str) -> Any:
        if isinstance(value, Mapping):
            fields = cast("Mapping[object, object]", value)
            return {
                str.__str__(key) if isinstance(key, str) else key: self._copy(
                    member, (*at, cast("str", key)), plain
                )
                for key, member in fields.items()
            }
        members = cast("Sequence[object]", value)
        return [self._copy(member, (*at, index), plain) for index, member in enumerate(members)]

    def check(self, part: dict[str, Any], *, position: int = 0) -> Flow:
        """The flow that has only ``part``, whose steps start at ``position``.

        Raises:
            FlowInvalid: there are errors in that part by itself.
        """
        findings = self._findings
        try:
            source_of_value(part, name=_NAME)
        except FlowInvalid as exc:
            findings = [*findings, *exc.diagnostics]
        flow = Flow()
        if not findings:
            flow = shape_flow(part, findings.append)
        errors = [finding for finding in findings if finding.kind.level != "warning"]
        if errors:
            raise self.invalid(errors, position=position)
        return flow

    def invalid(self, findings: Iterable[Finding | Diagnostic], *, position: int = 0) -> FlowInvalid:
        """The exception that says, of each finding, where in Python's arguments it is."""
        named: list[Finding] = []
        for found in findings:
            path = found.path
            if position and path[:1] == ("steps",) and found in findings:
                path = ("steps", position, *path[2:])
            place = self._place(path)
            message = f"{place}: {found.message}" if place else found.message
            named.append(Finding(found.kind, message, path, found.suggestion))
        return _invalid(named)

    def _place(self, path: JsonPath) -> str:
        """How Python calls what is at ``path`` in the flow: ``input["items"][0]``."""
        starts = [start for start in self._names if path[: len(start)] == start]
        if not starts:
            return ""
        start = max(starts, key=len)
        text, value = self._names[start]
        for part in path[len(start) :]:
            try:
                value = cast("Any", value)[part] if isinstance(value, (Mapping, Sequence)) else UNSET
            except LookupError:
                break
            if value is UNSET:
                break
            text += f"[{part!r}]"
        return text


def _reference(
    written: dict[str, str | None],
    names: dict[str, tuple[str, object]],
    owners: Mapping[FlowBuilder, str],
) -> Reference:
    """A reference of which any part may be wrong; absent parts are None."""
    given = _Given()
    json = {
        key: given.take(value, names[key][0], ("output", key)) for key, value in written.items() if value is not None
    }
    given.check({"output": json})
    path_key = "path" if "$step" in json else "$input"
    return Reference(json, owners, path_key, parse_path(json.get(path_key, "$")))


def _variable(path: str, default: Valuable | UnsetType, owners: dict[FlowBuilder, str]) -> Reference:
    given = _Given()
    json = {"$variable": given.take(path, "path", ("output", "$variable"))}
    if default is not UNSET:
        json["default"] = given.take(default, "default", ("output", "default"))
    given.check({"output": json})
    return Reference(json, {**given.owners, **owners}, "$variable", parse_path(path))


def _is_object(expression: Expression) -> bool:
    return isinstance(expression, (Constant, ObjectOf))


def _quoted(name: str) -> str:
    return f'"{name}"'


def _invalid(findings: Iterable[Finding]) -> FlowInvalid:
    return FlowInvalid(
        [
            Diagnostic(
                kind=found.kind,
                message=printable(found.message),
                path=found.path,
                place=Place(_NAME),
                suggestion=printable(found.suggestion),
            )
            for found in findings
        ]
    )
