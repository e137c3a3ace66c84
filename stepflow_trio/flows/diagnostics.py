"""What can be wrong with a flow, and how it is shown: what, where and what to do instead.

Kinds and codes are those of the public Stepflow releases where one fits; x9xx are ours. The thousands give
the level: 1xxx is a warning, 2xxx an error, 3xxx fatal. A flow with a fatal diagnostic cannot be represented;
one with an error can, but should not be run.
"""

from __future__ import annotations

import enum
import unicodedata
from typing import Any, Literal

import msgspec

from stepflow_trio.flows.paths import JsonPath, render_path

__all__ = ["Diagnostic", "DiagnosticKind", "Finding", "Place", "printable"]

Level = Literal["warning", "error", "fatal"]

_MAX_MESSAGE = 600
_MAX_EXCERPT = 160
"""Characters of a source line shown at most, around the fault."""


class DiagnosticKind(enum.Enum):
    """A kind's name and its code."""

    UNREACHABLE_STEP = ("unreachableStep", 1000)
    MISSING_FLOW_NAME = ("missingFlowName", 1001)
    MISSING_FLOW_DESCRIPTION = ("missingFlowDescription", 1002)
    UNVALIDATED_FIELD_ACCESS = ("unvalidatedFieldAccess", 1003)
    """A path into what no schema describes. Experimental: there may be nothing wrong with it."""
    MISSING_VARIABLE_SCHEMA = ("missingVariableSchema", 1004)
    UNTYPED_COMPONENT_OUTPUT = ("untypedComponentOutput", 1100)
    """Nobody says what a component returns."""
    TYPE_CHECK_INDETERMINATE = ("typeCheckIndeterminate", 1101)
    """A value that may fit, or may not."""
    NO_PLUGINS_CONFIGURED = ("noPluginsConfigured", 1200)
    NO_ROUTING_RULES_CONFIGURED = ("noRoutingRulesConfigured", 1201)
    UNUSED_PLUGIN = ("unusedPlugin", 1202)
    """A plugin that no route leads to."""
    UNKNOWN_FIELD = ("unknownField", 1900)
    """Ours: a field that nobody reads."""
    OLD_SYNTAX = ("oldSyntax", 1901)
    """Ours: an earlier release's way to write it; read where its meaning is plain."""
    BARE_PATH = ("barePath", 1902)
    """Ours: a path without ``$`` that looks like several segments but is one field name."""
    SETTING_WITHOUT_EFFECT = ("settingWithoutEffect", 1903)
    """Ours: what a configuration says and this runtime does not do, or does otherwise."""
    REPEATED_CASE_NAME = ("repeatedCaseName", 1904)
    """Ours: two test cases have one name, so that nothing can name one of them."""

    INVALID_SUBFLOW_LITERAL = ("invalidSubflowLiteral", 2003)
    """A flow inside a step's input that cannot be read as one."""
    UNDEFINED_VARIABLE = ("undefinedVariable", 2004)
    UNDEFINED_REQUIRED_VARIABLE = ("undefinedRequiredVariable", 2005)
    TYPE_MISMATCH = ("typeMismatch", 2100)
    """A value that does not fit what takes it."""
    UNKNOWN_PROPERTY_IN_PATH = ("unknownPropertyInPath", 2101)
    """A path to what, by its schema, is not there."""
    INVALID_ROUTE_REFERENCE = ("invalidRouteReference", 2200)
    """A route to a plugin that is not there."""
    INVALID_COMPONENT = ("invalidComponent", 2500)
    MISSPELLED_FIELD = ("misspelledField", 2900)
    """Ours: an unknown field that is all but certainly a known one with a typing error."""
    INVALID_SCHEMA = ("invalidSchema", 2901)
    """Ours: a schema that no value can be checked against."""
    INVALID_SETTING = ("invalidSetting", 2902)
    """Ours: what a configuration says cannot be used."""
    UNLISTED_COMPONENT = ("unlistedComponent", 2903)
    """Ours: a component that its worker, asked for all that it has, did not list."""

    DUPLICATE_STEP_ID = ("duplicateStepId", 3000)
    EMPTY_STEP_ID = ("emptyStepId", 3001)
    SELF_REFERENCE = ("selfReference", 3002)
    UNDEFINED_STEP_REFERENCE = ("undefinedStepReference", 3003)
    INVALID_REFERENCE_EXPRESSION = ("invalidReferenceExpression", 3004)
    SYNTAX_ERROR = ("syntaxError", 3900)
    """Ours: the text is neither YAML nor JSON."""
    DUPLICATE_KEY = ("duplicateKey", 3901)
    """Ours: a mapping has a key twice."""
    LIMIT_EXCEEDED = ("limitExceeded", 3902)
    """Ours: too large, too deeply nested, or too much repetition by YAML aliases."""
    WRONG_TYPE = ("wrongType", 3903)
    """Ours: a field has a value of another type or outside its range."""
    MISSING_FIELD = ("missingField", 3904)
    """Ours: a required field is absent."""
    UNREADABLE = ("unreadable", 3905)
    """Ours: the file cannot be read, or is not UTF-8 text."""
    REFERENCE_CYCLE = ("referenceCycle", 3906)
    """Ours: steps that wait for each other in a ring."""
    FORWARD_REFERENCE = ("forwardReference", 3907)
    """Ours: a step refers to a later step."""
    NOT_JSON = ("notJson", 3908)
    """Ours: a value that JSON cannot represent."""

    @property
    def code(self) -> int:
        """The number that identifies the kind on the wire."""
        return self.value[1]

    @property
    def level(self) -> Level:
        """How serious it is, by the code's thousands."""
        return "fatal" if self.code >= 3000 else "error" if self.code >= 2000 else "warning"

    @property
    def is_experimental(self) -> bool:
        """Whether it is given where nothing need be wrong."""
        return self is DiagnosticKind.UNVALIDATED_FIELD_ACCESS


class Place(msgspec.Struct, frozen=True):
    """A place in a source: ``line`` and ``column`` count from 1 and are 0 where the source has no text."""

    name: str
    line: int = 0
    column: int = 0
    excerpt: str = ""
    """The line, or the part of a long one that is around the column."""
    excerpt_from: int = 0
    """Characters of the line before ``excerpt``."""
    is_cut: bool = False
    """Whether the line goes on behind ``excerpt``."""

    def __str__(self) -> str:
        return f"{self.name}:{self.line}:{self.column}" if self.line else self.name


class Finding(msgspec.Struct, frozen=True):
    """A diagnostic before its place in the source is known."""

    kind: DiagnosticKind
    message: str
    path: JsonPath = ()
    suggestion: str = ""
    at_key: bool = False
    """Point at the key of ``path``'s last segment, not at its value."""
    data: dict[str, Any] = {}
    """The parts of the message, for programs: those of the public releases where the kind is theirs."""


class Diagnostic(msgspec.Struct, frozen=True, kw_only=True):
    """One thing found in a flow.

    ``message`` says what is wrong, ``path`` where in the flow's value, ``place`` where in its source, and
    ``suggestion`` what to write instead, or nothing.
    """

    kind: DiagnosticKind
    message: str
    path: JsonPath = ()
    place: Place
    suggestion: str = ""
    data: dict[str, Any] = {}
    """`Finding.data`."""

    @property
    def code(self) -> int:
        """`DiagnosticKind.code`."""
        return self.kind.code

    @property
    def level(self) -> Level:
        """`DiagnosticKind.level`."""
        return self.kind.level

    def to_json(self) -> dict[str, Any]:
        """The object that the REST API shows; ``formatted`` is the message without its source excerpt.

        ``{"kind", "code", "level", "formatted", "data"?, "path"?, "experimental"?}``. Ours: ``suggestion``,
        which is in ``formatted`` too, and ``place``, ``{"source", "line", "column"}``, where there is a text.
        """
        shown: dict[str, Any] = {
            "kind": self.kind.value[0],
            "code": self.code,
            "level": self.level,
            "formatted": f"{self.message}; {self.suggestion}" if self.suggestion else self.message,
        }
        if self.data:
            shown["data"] = self.data
        if self.path:
            shown["path"] = render_path(self.path)
        if self.kind.is_experimental:
            shown["experimental"] = True
        if self.suggestion:
            shown["suggestion"] = self.suggestion
        if self.place.line:
            place = self.place
            shown["place"] = {"source": place.name, "line": place.line, "column": place.column}
        return shown

    def __str__(self) -> str:
        """``file:line:column: level: message``, the source line with a caret, and the suggestion."""
        level = "warning" if self.level == "warning" else "error"
        where = printable(render_path(self.path))
        # Of a configuration's faults, the message begins with where.
        at = "" if self.message.startswith(f"{where.removeprefix('$.')}: ") else f" at {where}"
        lines = [f"{printable(str(self.place))}: {level}: {self.message} [{self.code}{at}]"]
        lines += _excerpt_lines(self.place)
        if self.suggestion:
            lines.append(f"      = {self.suggestion}")
        return "\n".join(lines)


def _excerpt_lines(place: Place) -> list[str]:
    """The line that a place is in, cut around it, and a caret below the character."""
    if not place.line or not place.excerpt.strip():
        return []
    line, column = place.excerpt, place.column - place.excerpt_from
    start = max(0, min(column - _MAX_EXCERPT // 2, len(line) - _MAX_EXCERPT))
    shown = line[start : start + _MAX_EXCERPT]
    before = "…" if start or place.excerpt_from else ""
    after = "…" if start + _MAX_EXCERPT < len(line) or place.is_cut else ""
    left = before + _visible(shown[: column - 1 - start])
    right = _visible(shown[column - 1 - start :].rstrip())
    margin = f"{place.line:>5} | "
    below = " " * (len(margin) - 2) + "| "
    return [margin + left + right + after, below + " " * _columns(left) + "^"]


def _visible(text: str) -> str:
    """``text`` with a sign of the same width for each character that would not be seen, or do something."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _sign_of(c) for c in text)


def _sign_of(character: str) -> str:
    number = ord(character)
    if character == " ":
        return character
    return chr(0x2400 + number) if number < 0x20 else "\u2421" if number == 0x7F else "\ufffd"


def _columns(text: str) -> int:
    """How many columns a terminal shows it in."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def printable(text: str) -> str:
    """``text`` cut to a bearable length, with everything escaped that a terminal or a log stumbles over."""
    if len(text) > _MAX_MESSAGE:
        text = f"{text[: _MAX_MESSAGE - 20]} … {text[-17:]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
