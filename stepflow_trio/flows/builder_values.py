"""What stands, in a flow written in Python, for something that is known only in a run: see `builder`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

import msgspec
from msgspec import UNSET, UnsetType

from stepflow_trio.errors import FlowInvalid, PathInvalid
from stepflow_trio.flows.diagnostics import Diagnostic, DiagnosticKind, Finding, Place, printable
from stepflow_trio.flows.flow_shape import shape_flow
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.paths import JsonPath, parse_path, render_path
from stepflow_trio.flows.source import source_of_value
from stepflow_trio.flows.source_text import SourceLimits

__all__ = [
    "FLOW_NAME",
    "GivenArguments",
    "Reference",
    "Valuable",
    "Value",
    "coalesce",
    "if_",
    "invalid",
    "literal",
]

Valuable: TypeAlias = "bool | int | float | str | Value | Sequence[Valuable] | Mapping[str, Valuable] | None"
"""What an input or an output may be made of: JSON, tuples included, with a `Value` anywhere in it."""

FLOW_NAME = "<flow>"
"""What a flow that is being built is called in diagnostics."""

_LIMITS = SourceLimits()
_MAX_INDEX = 10**18
"""From here on an index cannot be written in a path."""


class Value:
    """Something that is known only in a run: a reference, a choice, or data that is taken verbatim.

    The static methods make values without a builder; whether their steps exist is checked where they are
    added to one. A value is immutable. To compare it, iterate over it, make it part of a text or ask for its
    truth is a `TypeError`: that is work for a component, or for `if_`.
    """

    __slots__ = ("_json", "_owners")

    def __init__(self, json: dict[str, Any], owners: Mapping[object, str]) -> None:
        self._json = json
        self._owners = owners

    def to_json(self) -> dict[str, Any]:
        """The expression as plain JSON, which is shared and must not be changed."""
        return self._json

    @property
    def owners(self) -> Mapping[object, str]:
        """The builders that the references in it are of, each with one of these references in words."""
        return self._owners

    @staticmethod
    def step(id: str, path: str | None = None) -> Reference:
        """``$step``: the result of a step, or what is at ``path``, a path as a flow writes it.

        Raises:
            FlowInvalid: it is no path.
        """
        given = GivenArguments()
        json = {"$step": given.take(id, "id", ("output", "$step"))}
        if path is not None:
            json["path"] = given.take(path, "path", ("output", "path"))
        given.check({"output": json})
        return Reference(json, {}, "path", parse_path(path or ""))

    @staticmethod
    def input(path: str = "$") -> Reference:
        """``$input``: what is at ``path``, a path as a flow writes it, in the run's input.

        Raises:
            FlowInvalid: it is no path.
        """
        given = GivenArguments()
        json = {"$input": given.take(path, "path", ("output", "$input"))}
        given.check({"output": json})
        return Reference(json, {}, "$input", parse_path(path))

    @staticmethod
    def variable(path: str, default: Valuable | UnsetType = UNSET) -> Reference:
        """``$variable``: the variable called ``path``, or what is at a path that begins with its name.

        ``default`` counts where there is nothing.

        Raises:
            FlowInvalid: it is no such path, or the default no JSON.
        """
        given = GivenArguments()
        json = {"$variable": given.take(path, "path", ("output", "$variable"))}
        if default is not UNSET:
            json["default"] = given.take(default, "default", ("output", "default"))
        given.check({"output": json})
        return Reference(json, given.owners, "$variable", parse_path(path))

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

    # What Python has for every object would silently make a constant of the flow here.

    def __bool__(self) -> bool:
        raise self._unknown("be asked for its truth", "choose with if_(condition, then, else_)")

    def __eq__(self, other: object) -> bool:
        raise self._unknown("be compared", "compare in a component")

    __hash__ = object.__hash__

    def __format__(self, format_spec: str) -> str:
        raise self._unknown("be part of a text", "make the text in a component")

    def __iter__(self) -> NoReturn:
        raise self._unknown("be iterated over", "run a flow for each item with /builtin/map")

    def _unknown(self, what: str, instead: str) -> TypeError:
        return TypeError(f"{self!r} is known only in a run, so it cannot {what}: {instead}")


class Reference(Value):
    """A value that is looked up: ``reference["field"]`` and ``reference[0]`` refer to what is inside it."""

    __slots__ = ("_path", "_path_key")

    def __init__(
        self, json: dict[str, Any], owners: Mapping[object, str], path_key: str, path: JsonPath
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

    def owned_by(self, owner: object, reference: str) -> Reference:
        """The same reference, as one of a builder's: ``reference`` is what to call it."""
        return Reference(self._json, {**self._owners, owner: reference}, self._path_key, self._path)

    if not TYPE_CHECKING:  # type checkers know by themselves that there is no such attribute

        def __getattr__(self, name: str) -> NoReturn:
            hint = f"a field of the value is written [{name!r}]"
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}; {hint}")


def literal(value: Valuable) -> Value:
    """``$literal``: ``value`` as it is, also where it looks like an expression.

    Raises:
        FlowInvalid: it is no JSON, or has a `Value` in it.
    """
    given = GivenArguments()
    json = {"$literal": given.take_data(value, "value", ("output", "$literal"))}
    given.check({"output": json})
    return Value(json, {})


def if_(condition: Valuable, then: Valuable, else_: Valuable | UnsetType = UNSET) -> Value:
    """``$if``: ``then``, unless the condition is null, false or fails; then ``else_``, or null without it.

    Everything else is true, ``0``, ``""``, ``[]`` and ``{}`` included. Only of the branch that is taken the
    steps are run.

    Raises:
        FlowInvalid: something in it is no JSON.
    """
    given = GivenArguments()
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
    given = GivenArguments()
    json = {"$coalesce": given.take(values, "values", ("output", "$coalesce"))}
    given.check({"output": json})
    return Value(json, given.owners)


class GivenArguments:
    """The arguments of a call on their way into a flow: as JSON, and with what Python calls each part."""

    def __init__(self) -> None:
        self.values: list[tuple[JsonPath, Value]] = []
        """Each `Value` that was given, with its place in the flow."""
        self._names: dict[JsonPath, tuple[str, object]] = {}
        self._findings: list[Finding] = []
        self._copies: dict[int, tuple[object, Any, int]] = {}
        """By identity what was copied, its copy, and how many values it holds."""
        self._count = 0

    @property
    def owners(self) -> dict[object, str]:
        """The builders of the values that were given."""
        return {owner: reference for _, value in self.values for owner, reference in value.owners.items()}

    def name(self, value: object, argument: str, at: JsonPath) -> None:
        """Say that what is at ``at`` in the flow is, in Python, the ``value`` of ``argument``."""
        self._names[at] = (argument, value)

    def take(self, value: object, argument: str, at: JsonPath) -> Any:
        """A copy of ``value`` as JSON, each `Value` in it as its expression.

        What is no JSON stays in it, for `check` to refuse; what contains itself, or holds more than any flow,
        is `FlowInvalid` at once.
        """
        self.name(value, argument, at)
        return self._copy(value, at)

    def take_data(self, value: object, argument: str, at: JsonPath) -> Any:
        """`take` of what holds no `Value`, or else `check` refuses it."""
        before = len(self.values)
        taken = self.take(value, argument, at)
        for path, _ in self.values[before:]:
            message = "no expression is evaluated in here, so there can be no value of a run"
            self._findings.append(Finding(DiagnosticKind.NOT_JSON, message, path))
        return taken

    def check(self, part: dict[str, Any], *, first_step: int = 0) -> Flow:
        """The flow that has only ``part``, the first of whose steps is the ``first_step``-th of the whole.

        Raises:
            FlowInvalid: there is an error in that part by itself.
        """
        found: list[Finding | Diagnostic] = []
        flow = Flow()
        try:
            source_of_value(part, name=FLOW_NAME)
        except FlowInvalid as exc:
            found += exc.diagnostics
        else:
            flow = shape_flow(part, found.append)
        findings = list(self._findings)
        for each in found:
            if each.kind.level != "warning":
                path = each.path
                if path[:1] == ("steps",):
                    path = ("steps", first_step, *path[2:])
                findings.append(Finding(each.kind, each.message, path, each.suggestion))
        if findings:
            raise self.invalid(findings)
        return flow

    def invalid(self, findings: Iterable[Finding]) -> FlowInvalid:
        """The exception that says, of each finding, which part of which argument it is about."""
        named: list[Finding] = []
        for found in findings:
            place = self._place(found.path)
            message = f"{place}: {found.message}" if place else found.message
            named.append(msgspec.structs.replace(found, message=message))
        return invalid(named)

    def _copy(self, value: object, at: JsonPath) -> Any:
        self._count += 1
        match value:
            case Value():
                self.values.append((at, value))
                return value.to_json()
            case str():
                return str.__str__(value)  # the text itself of what is more than a text, such as an enum
            case None | bool():
                return value
            case int():
                return int(value)
            case float():
                return float(value)
            case bytes() | bytearray() | memoryview():
                return cast("object", value)
            case Mapping() | Sequence():
                return self._copy_container(cast("Mapping[object, object] | Sequence[object]", value), at)
            case _:
                return value

    def _copy_container(self, value: Mapping[object, object] | Sequence[object], at: JsonPath) -> Any:
        if len(at) > _LIMITS.max_depth:
            message = f"dicts and lists are nested more than {_LIMITS.max_depth} deep here"
            raise self._exceeded(message, at, "does one contain itself?")
        known = self._copies.get(id(value))
        if known is not None:
            # What is shared is gone through once: it can stand for more than there is time or room for.
            _, copy, size = known
            self._count += size
            if self._count > _LIMITS.max_bytes:
                raise self._exceeded(f"there are more than {_LIMITS.max_bytes:,} values", at)
            return copy
        before = self._count
        if isinstance(value, Mapping):
            copy = {
                str.__str__(key) if isinstance(key, str) else key: self._copy(member, (*at, cast("str", key)))
                for key, member in value.items()
            }
        else:
            copy = [self._copy(member, (*at, index)) for index, member in enumerate(value)]
        self._copies[id(value)] = (value, copy, self._count - before)
        return copy

    def _exceeded(self, message: str, at: JsonPath, hint: str = "") -> FlowInvalid:
        return self.invalid([Finding(DiagnosticKind.LIMIT_EXCEEDED, message, at, hint)])

    def _place(self, path: JsonPath) -> str:
        """What Python calls the innermost thing at ``path`` that was given: ``input['items'][0]``."""
        starts = [start for start in self._names if path[: len(start)] == start]
        if not starts:
            return ""
        start = max(starts, key=len)
        text, value = self._names[start]
        for part in path[len(start) :]:
            if isinstance(value, Mapping) and part in value:
                value = cast("Mapping[object, object]", value)[part]
            elif isinstance(value, Sequence) and isinstance(part, int):
                value = cast("Sequence[object]", value)[part]
            else:
                break
            text += f"[{part!r}]"
        return text


def invalid(findings: Iterable[Finding]) -> FlowInvalid:
    """The exception for findings in a flow that is being built."""
    return FlowInvalid(
        [
            Diagnostic(
                kind=found.kind,
                message=printable(found.message),
                path=found.path,
                place=Place(FLOW_NAME),
                suggestion=printable(found.suggestion),
            )
            for found in findings
        ]
    )
