"""The expression language: plain JSON in which ``{"$step": …}`` and its kin stand for values to come.

An object is an expression if it has one of the keys below; the first that it has, in this order, decides, and
other keys but its own companions are ignored. Any other key that starts with ``$`` is plain data.

========================================  ==========================================================
``$literal: v``                           ``v`` as it is, expressions inside it included
``$if: c, then: a, else?: b``             ``a`` unless ``c`` is null, false or fails; else ``b`` or null
``$coalesce: [a, b, …]``                  the first that is not null; null where all are; fails with the first
                                          that fails before that
``$step: id, path?``                      the step's result, or what is at ``path`` in it
``$input: path``                          what is at ``path`` in the run's input
``$variable: path, default?``             the variable named first in ``path``, else ``default``
========================================  ==========================================================

Expressions are parsed once, to an immutable tree; `stepflow_trio.flows.evaluation` gives them values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec

from stepflow_trio.errors import PathInvalid
from stepflow_trio.flows.diagnostics import DiagnosticKind, Finding
from stepflow_trio.flows.paths import JsonPath, parse_path, render_path
from stepflow_trio.flows.suggestions import closest
from stepflow_trio.protocol.json_types import json_type

__all__ = [
    "ArrayOf",
    "Coalesce",
    "Constant",
    "Expression",
    "If",
    "InputRef",
    "Literal",
    "ObjectOf",
    "StepRef",
    "VariableRef",
    "expression_to_json",
    "parse_expression",
    "static_needs",
    "walk_expression",
]


# Trees of them are large, and no matter of the garbage collector (`gc=False`): nothing in one leads back up.


class Constant(msgspec.Struct, frozen=True, gc=False):
    """Plain JSON with no expression anywhere in it."""

    value: Any


class Literal(msgspec.Struct, frozen=True, gc=False):
    """``$literal``: its value, verbatim."""

    value: Any


class StepRef(msgspec.Struct, frozen=True, gc=False):
    """``$step``: what is at ``path`` in the result of ``step``."""

    step: str
    path: JsonPath = ()


class InputRef(msgspec.Struct, frozen=True, gc=False):
    """``$input``: what is at ``path`` in the run's input."""

    path: JsonPath = ()


class VariableRef(msgspec.Struct, frozen=True, gc=False):
    """``$variable``: what is at ``path`` in the variable ``name``, else ``default`` (None: there is none)."""

    name: str
    path: JsonPath = ()
    default: Expression | None = None


class If(msgspec.Struct, frozen=True, gc=False):
    """``$if``: without ``otherwise``, null."""

    condition: Expression
    then: Expression
    otherwise: Expression | None = None


class Coalesce(msgspec.Struct, frozen=True, gc=False):
    """``$coalesce``."""

    items: tuple[Expression, ...]


class ArrayOf(msgspec.Struct, frozen=True, gc=False):
    """An array with an expression somewhere in it."""

    items: tuple[Expression, ...]


class ObjectOf(msgspec.Struct, frozen=True, gc=False):
    """An object with an expression somewhere in it."""

    keys: tuple[str, ...]
    values: tuple[Expression, ...]


Expression = Constant | Literal | StepRef | InputRef | VariableRef | If | Coalesce | ArrayOf | ObjectOf

Report = Callable[[Finding], None]

_COMPANIONS: dict[str, tuple[str, ...]] = {
    "$literal": (),
    "$if": ("then", "else"),
    "$coalesce": (),
    "$step": ("path",),
    "$input": (),
    "$variable": ("default",),
}
"""Every expression's key, in order of priority, and the keys that are read beside it."""


_EARLIER_SOURCES = frozenset({"step", "workflow", "variable"})
"""What ``$from`` named in release 0.8."""

_OTHER_NAMES = {
    "$var": "$variable",
    "$vars": "$variable",
    "$lit": "$literal",
    "$stepId": "$step",
    "$step_id": "$step",
}
"""What expressions are called by mistake, though it is no misspelling."""

_TELLING = tuple(key for key in _COMPANIONS if len(key) > len("$if"))
"""Those whose misspellings are not everyday keys, as ``$id`` is."""


def parse_expression(value: Any, report: Report, *, at: JsonPath = ()) -> Expression:
    """Parse plain JSON, in one pass over it.

    What is wrong is reported with its path, which starts with ``at``; the faulty part reads as null, so that
    everything that is wrong is found. Parts without expressions are kept as they are, not copied.
    """
    return _Parser(report).parse(value, at)


class _Parser:
    def __init__(self, report: Report) -> None:
        self._report = report

    def parse(self, value: Any, at: JsonPath) -> Expression:
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            for key in _COMPANIONS:
                if key in fields:
                    return self._expression(key, fields, at)
            if "$from" in fields:
                modern = self._modern(fields, at)
                if modern is not None:
                    return modern
            self._check_data(fields, at)
            members = tuple(self.parse(member, (*at, name)) for name, member in fields.items())
            return Constant(fields) if _all_constant(members) else ObjectOf(tuple(fields), members)
        if isinstance(value, list):
            items = cast("list[Any]", value)
            members = tuple(self.parse(member, (*at, index)) for index, member in enumerate(items))
            return Constant(items) if _all_constant(members) else ArrayOf(members)
        return Constant(value)

    def _expression(self, key: str, fields: dict[str, Any], at: JsonPath) -> Expression:
        self._check_companions(key, fields, at)
        subject = fields[key]
        match key:
            case "$literal":
                return Literal(subject)
            case "$if":
                return self._if(fields, at)
            case "$coalesce":
                return self._coalesce(subject, (*at, key))
            case "$step":
                return self._step(subject, fields.get("path"), at)
            case "$input":
                return InputRef(self._path(subject, (*at, key)))
            case _:
                return self._variable(subject, fields, at)

    def _if(self, fields: dict[str, Any], at: JsonPath) -> Expression:
        condition = self.parse(fields["$if"], (*at, "$if"))
        then: Expression = Constant(None)
        if "then" in fields:
            then = self.parse(fields["then"], (*at, "then"))
        else:
            self._invalid('an $if needs a "then"', at, "add then: <the value where the condition holds>")
        otherwise = self.parse(fields["else"], (*at, "else")) if "else" in fields else None
        return If(condition, then, otherwise)

    def _coalesce(self, subject: Any, at: JsonPath) -> Expression:
        if not isinstance(subject, list):
            self._invalid(f"$coalesce takes an array of expressions, not {json_type(subject)}", at)
            return Constant(None)
        items = cast("list[Any]", subject)
        return Coalesce(tuple(self.parse(item, (*at, index)) for index, item in enumerate(items)))

    def _step(self, subject: Any, path: Any, at: JsonPath) -> Expression:
        where = self._path(path, (*at, "path"))
        if not isinstance(subject, str):
            self._invalid(f"$step takes a step's id, not {json_type(subject)}", (*at, "$step"))
            return Constant(None)
        return StepRef(subject, where)

    def _variable(self, subject: Any, fields: dict[str, Any], at: JsonPath) -> Expression:
        path = self._path(subject, (*at, "$variable"))
        default = self.parse(fields["default"], (*at, "default")) if "default" in fields else None
        if path and isinstance(path[0], str):
            return VariableRef(path[0], path[1:], default)
        if subject is None or isinstance(subject, str):
            self._invalid("$variable needs a variable's name first in its path", (*at, "$variable"))
        return Constant(None)

    def _path(self, text: Any, at: JsonPath) -> JsonPath:
        if text is None:
            return ()
        if not isinstance(text, str):
            self._invalid(f"a path is a string, not {json_type(text)}", at)
            return ()
        try:
            path = parse_path(text)
        except PathInvalid as exc:
            self._invalid(str(exc), at)
            return ()
        if not text.lstrip().startswith("$") and ("." in text or "[" in text):
            message = f'without a leading $, the path "{text}" is the one field of that name'
            suggestion = f'write "$.{text}" for several fields, or "{render_path(path)}" for that one'
            self._report(Finding(DiagnosticKind.BARE_PATH, message, at, suggestion))
        return path

    def _modern(self, fields: dict[str, Any], at: JsonPath) -> Expression | None:
        """An expression of release 0.8, ``{"$from": {…}, "path"?}``, as today's; None if it is not one."""
        source: object = fields["$from"]
        if not isinstance(source, dict) or len(cast("dict[str, Any]", source)) != 1:
            return None
        kind, subject = next(iter(cast("dict[str, Any]", source).items()))
        known = kind in ("step", "variable") or (kind == "workflow" and subject == "input")
        if not known or not isinstance(subject, str):
            return None
        path = self._path(fields.get("path"), (*at, "path"))
        modern: Expression
        if kind == "step":
            modern = StepRef(subject, path)
        elif kind == "workflow":
            modern = InputRef(path)
        else:
            default = self.parse(fields["default"], (*at, "default")) if "default" in fields else None
            modern = VariableRef(subject, path, default)
        written = json.dumps(expression_to_json(modern), ensure_ascii=False)
        message = "$from is the reference of release 0.8; it is read as today's"
        self._report(
            Finding(DiagnosticKind.OLD_SYNTAX, message, (*at, "$from"), f"write {written}", at_key=True)
        )
        for gone in ("onSkip", "on_skip"):
            if fields.get(gone) is not None:
                message = f"{gone} is not read: steps are no longer skipped"
                suggestion = "use $coalesce for a value that may be null"
                self._report(
                    Finding(DiagnosticKind.OLD_SYNTAX, message, (*at, gone), suggestion, at_key=True)
                )
        return modern

    def _check_data(self, fields: dict[str, Any], at: JsonPath) -> None:
        """Warn of an object that is data and looks as if it were meant as an expression."""
        for name in fields:
            if not name.startswith("$"):
                continue
            meant = _OTHER_NAMES.get(name) or closest(name, _TELLING)
            if meant is not None:
                message = f'"{name}" is no expression: the object is data'
                suggestion = f'did you mean "{meant}"?'
                here = (*at, name)
                self._report(Finding(DiagnosticKind.UNKNOWN_FIELD, message, here, suggestion, at_key=True))
            elif name == "$from" and isinstance(fields[name], dict) and _EARLIER_SOURCES & {*fields[name]}:
                message = "this looks like a reference of release 0.8 and cannot be read as one: it is data"
                suggestion = "write $step, $input or $variable; wrap it in $literal if it is data"
                here = (*at, name)
                self._report(Finding(DiagnosticKind.OLD_SYNTAX, message, here, suggestion, at_key=True))

    def _check_companions(self, key: str, fields: dict[str, Any], at: JsonPath) -> None:
        companions = _COMPANIONS[key]
        if len(fields) == 1:
            return
        for name in fields:
            if name == key or name in companions:
                continue
            meant = closest(name, (c for c in companions if c not in fields))
            if meant is not None:
                kind, message = DiagnosticKind.MISSPELLED_FIELD, f'"{name}" means nothing beside {key}'
                suggestion = f'did you mean "{meant}"?'
            else:
                kind = DiagnosticKind.UNKNOWN_FIELD
                message = f'"{name}" is ignored: an object with {key} is an expression'
                suggestion = "wrap the object in $literal if it is data"
            self._report(Finding(kind, message, (*at, name), suggestion, at_key=True))

    def _invalid(self, message: str, at: JsonPath, suggestion: str = "") -> None:
        self._report(Finding(DiagnosticKind.INVALID_REFERENCE_EXPRESSION, message, at, suggestion))


def _all_constant(members: tuple[Expression, ...]) -> bool:
    return all(type(member) is Constant for member in members)


def expression_to_json(expression: Expression) -> Any:
    """The normal form: keys without meaning are gone, and paths are as `render_path` writes them."""
    match expression:
        case Constant(value=value):
            return value
        case Literal(value=value):
            return {"$literal": value}
        case StepRef(step=step, path=path):
            return {"$step": step, "path": render_path(path)} if path else {"$step": step}
        case InputRef(path=path):
            return {"$input": render_path(path)}
        case VariableRef(name=name, path=path, default=default):
            variable: dict[str, Any] = {"$variable": render_path((name, *path))}
            if default is not None:
                variable["default"] = expression_to_json(default)
            return variable
        case If(condition=condition, then=then, otherwise=otherwise):
            conditional = {"$if": expression_to_json(condition), "then": expression_to_json(then)}
            if otherwise is not None:
                conditional["else"] = expression_to_json(otherwise)
            return conditional
        case Coalesce(items=items):
            return {"$coalesce": [expression_to_json(item) for item in items]}
        case ArrayOf(items=items):
            return [expression_to_json(item) for item in items]
        case ObjectOf(keys=keys, values=values):
            return {key: expression_to_json(value) for key, value in zip(keys, values, strict=True)}


def walk_expression(expression: Expression, *, at: JsonPath = ()) -> Iterator[tuple[JsonPath, Expression]]:
    """Every node of the tree with its path in the flow, outermost first, in the order of the text."""
    pending: list[tuple[JsonPath, Expression]] = [(at, expression)]
    while pending:
        path, node = pending.pop()
        yield path, node
        if type(node) is not Constant:
            pending.extend(reversed(list(_children(path, node))))


def static_needs(expression: Expression) -> frozenset[str]:
    """The ids of all steps that the expression can need, whichever branches are taken."""
    return frozenset(node.step for _, node in walk_expression(expression) if type(node) is StepRef)


def _children(path: JsonPath, node: Expression) -> Iterator[tuple[JsonPath, Expression]]:
    match node:
        case ArrayOf(items=items):
            yield from (((*path, index), item) for index, item in enumerate(items))
        case ObjectOf(keys=keys, values=values):
            yield from (((*path, key), value) for key, value in zip(keys, values, strict=True))
        case Coalesce(items=items):
            yield from (((*path, "$coalesce", index), item) for index, item in enumerate(items))
        case If(condition=condition, then=then, otherwise=otherwise):
            yield (*path, "$if"), condition
            yield (*path, "then"), then
            if otherwise is not None:
                yield (*path, "else"), otherwise
        case VariableRef(default=default) if default is not None:
            yield (*path, "default"), default
        case _:
            pass
