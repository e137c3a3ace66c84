"""YAML 1.2 (core schema) to plain JSON values with their places.

What YAML has beyond JSON is resolved (anchors, aliases, merge keys), read as the string that it is (dates) or
refused by name (tags, and keys that are not strings where none are asked for). The parser's events are
composed here, not by the parser's own loader: it knows no bounds, builds dates, and reports one fault at a
time.
"""

from __future__ import annotations

import re
from typing import Any, cast

import msgspec

from stepflow_trio.errors import FlowInvalid
from stepflow_trio.flows.diagnostics import Diagnostic, DiagnosticKind
from stepflow_trio.flows.json_keys import JsonKeysAt, key_of_value
from stepflow_trio.flows.paths import JsonPath
from stepflow_trio.flows.source_text import Mark, SourceLimits, SourceText
from stepflow_trio.protocol.json_types import json_type

__all__ = ["YamlReading", "read_yaml"]

_TAG_PREFIX = "tag:yaml.org,2002:"
_SCALAR_TAGS = {"str", "int", "float", "bool", "null"}

_PLAIN_START = frozenset("-+.0123456789nNtTfF~")
_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
# A leading zero makes a string ("00123" is an identifier, not 123), as the public releases read it.
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_MAX_INTEGER_DIGITS = 4000

_NO_KEY: Any = object()
_DROPPED_KEY: Any = object()

_HINTS = (
    ("'\\t'", "indent with spaces: YAML allows no tabs there"),
    ("mapping values are not allowed", "put a text that contains ': ' in quotes, and check the indentation"),
    ("expected <block end>", "check the indentation of this line and of the ones above it"),
    ("found unexpected end of stream", "a quote or bracket is never closed"),
    ("'@'", "put the text in quotes"),
    ("'`'", "put the text in quotes"),
    ("'%'", "put the text in quotes"),
)


class YamlReading(msgspec.Struct):
    """What a text says: its value, the value's marks, and the faults that reading went past."""

    value: Any
    mark: Mark
    diagnostics: list[Diagnostic]


def read_yaml(
    source: SourceText, limits: SourceLimits, json_keys_at: JsonKeysAt | None = None
) -> YamlReading:
    """Read a text of exactly one document.

    Duplicate keys, keys that are not strings and unknown tags are collected. Where ``json_keys_at`` says so,
    every key is given as `key_of_value` writes it. Raises `FlowInvalid` for a syntax error, a second
    document, an empty text, or a bound that is exceeded.
    """
    # Imported here: the parser takes a third of a worker's start-up time, and a worker reads no flows.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.reader import ReaderError

    composer = _Composer(source, limits, json_keys_at)
    events: Any = YAML(typ="safe", pure=True).parse(source.text)  # pyright: ignore[reportUnknownMemberType]: ruamel's annotations are partial
    while True:
        try:
            event = next(events, None)
        except MarkedYAMLError as exc:
            raise _syntax_error(source, exc) from None
        except ReaderError as exc:
            fault: Any = exc
            raise source.fault(
                DiagnosticKind.SYNTAX_ERROR,
                f"character U+{fault.character:04X} is not allowed in YAML",
                fault.position,
                suggestion="remove it, or write it as an escape in double quotes",
            ) from None
        except Exception as exc:
            # The parser has strays for malformed text: ValueError, IndexError, AttributeError, and others.
            why = f"this is not YAML ({type(exc).__name__}: {exc})"
            raise source.fault(DiagnosticKind.SYNTAX_ERROR, why, composer.reached) from exc
        if event is None:
            return composer.reading()
        composer.take(event)


def _syntax_error(source: SourceText, exc: Any) -> FlowInvalid:
    mark = exc.problem_mark or exc.context_mark
    said = [part for part in (exc.context, exc.problem) if part]
    message = " ".join(", ".join(said).split()) or "this is not YAML"
    hint = next((hint for sign, hint in _HINTS if sign in message), "")
    return source.fault(
        DiagnosticKind.SYNTAX_ERROR, message, mark.index if mark is not None else 0, suggestion=hint
    )


class _Frame:
    """A collection that is being read."""

    __slots__ = ("anchor", "at", "items", "key", "key_at", "marks", "merges", "merging", "size")

    def __init__(self, at: int, anchor: str | None, items: list[Any] | dict[str, Any]) -> None:
        self.at = at
        self.anchor = anchor
        self.items = items
        self.marks: Any = [] if isinstance(items, list) else {}
        self.key: Any = _NO_KEY
        self.key_at = at
        self.merging = False
        self.merges: list[_Node] = []
        self.size = 1


class _Node:
    """A value that has been read: with its places, and how many values it is with aliases followed."""

    __slots__ = ("mark", "merges", "size", "text", "value")

    def __init__(
        self, value: object, mark: Mark, *, size: int = 1, text: str = "", merges: bool = False
    ) -> None:
        self.value = value
        self.mark = mark
        self.size = size
        self.text = text
        """A scalar as it is written."""
        self.merges = merges
        """As a key, it is the merge key."""


class _Composer:
    """Events in, one value out."""

    def __init__(self, source: SourceText, limits: SourceLimits, json_keys_at: JsonKeysAt | None) -> None:
        self._source = source
        self._limits = limits
        self._json_keys_at = json_keys_at
        self._frames: list[_Frame] = []
        self._anchors: dict[str, _Node | None] = {}
        self._alias_nodes = 0
        self._root: _Node | None = None
        self._documents = 0
        self._diagnostics: list[Diagnostic] = []
        self.reached = 0
        """Offset of the last event, for faults that carry no place of their own."""

    def take(self, event: Any) -> None:
        at = self.reached = event.start_mark.index
        match type(event).__name__:
            case "ScalarEvent":
                merges = event.value == "<<" and event.implicit[0]
                node = _Node(self._scalar(event, at), Mark(at), text=event.value, merges=merges)
                self._remember(event.anchor, node)
                self._add(node, at)
            case "MappingStartEvent":
                self._open(event, at, {})
            case "SequenceStartEvent":
                self._open(event, at, [])
            case "MappingEndEvent" | "SequenceEndEvent":
                self._close()
            case "AliasEvent":
                self._add(self._alias(event.anchor, at), at)
            case "DocumentStartEvent":
                self._documents += 1
                if self._documents > 1:
                    raise self._source.fault(
                        DiagnosticKind.SYNTAX_ERROR,
                        "a second YAML document starts here",
                        at,
                        suggestion="put each document in a file of its own",
                    )
            case _:
                pass

    def reading(self) -> YamlReading:
        if self._root is None:
            raise self._source.fault(DiagnosticKind.SYNTAX_ERROR, "the text is empty", 0)
        return YamlReading(self._root.value, self._root.mark, self._diagnostics)

    def _scalar(self, event: Any, at: int) -> Any:
        text: str = event.value
        tag: str | None = event.tag
        if tag is None:
            return _plain_value(text) if event.implicit[0] else text
        if tag == "!":
            return text
        name = tag.removeprefix(_TAG_PREFIX)
        if not tag.startswith(_TAG_PREFIX) or name not in _SCALAR_TAGS:
            self._refuse_tag(tag, at)
            return text
        if name == "str":
            return text
        value = _plain_value(text)
        if name == "float" and isinstance(value, int) and not isinstance(value, bool):
            return float(text)
        if not _has_tag_type(value, name):
            self._found(DiagnosticKind.NOT_JSON, f"{text[:40]!r} is not a value of type !!{name}", at)
        return value

    def _open(self, event: Any, at: int, items: list[Any] | dict[str, Any]) -> None:
        tag: str | None = event.tag
        if tag is not None and tag not in ("!", _TAG_PREFIX + ("map" if isinstance(items, dict) else "seq")):
            self._refuse_tag(tag, at)
        if len(self._frames) >= self._limits.max_depth:
            # The value's depth is checked again later, aliases followed; here it bounds the parser's work.
            raise self._source.fault(
                DiagnosticKind.LIMIT_EXCEEDED,
                f"collections are nested more than {self._limits.max_depth} deep here",
                at,
                path=self._path(),
            )
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._frames.append(_Frame(at, event.anchor, items))

    def _close(self) -> None:
        frame = self._frames.pop()
        value, marks = frame.items, frame.marks
        if frame.merges and isinstance(value, dict):
            value, marks = _merged(value, marks, frame.merges)
        node = _Node(value, Mark(frame.at, marks), size=frame.size)
        self._remember(frame.anchor, node)
        self._add(node, frame.at)

    def _add(self, node: _Node, at: int) -> None:
        if not self._frames:
            self._root = node
            return
        frame = self._frames[-1]
        frame.size += node.size
        if isinstance(frame.items, list):
            frame.items.append(node.value)
            frame.marks.append(node.mark)
        elif frame.key is _NO_KEY:
            frame.key_at, frame.merging = at, node.merges
            frame.key = self._key(node, at)
        else:
            self._add_field(frame, node, at)
            frame.key = _NO_KEY

    def _key(self, node: _Node, at: int) -> Any:
        if self._has_json_keys():
            try:
                return key_of_value(node.value)
            except ValueError as exc:
                self._found(DiagnosticKind.NOT_JSON, f"this key is not JSON: {exc}", at)
                return _DROPPED_KEY
        if isinstance(node.value, str):
            return node.value
        message = f"this key is {json_type(node.value)}; keys are strings here"
        quoted = f'write it in quotes: "{node.text[:40]}"' if node.text else ""
        self._found(DiagnosticKind.NOT_JSON, message, at, quoted)
        return _DROPPED_KEY

    def _has_json_keys(self) -> bool:
        if self._json_keys_at is None:
            return False
        path = self._path()
        # Shorter than that it is inside of a key, and no path leads there.
        return len(path) == len(self._frames) - 1 and self._json_keys_at(path)

    def _add_field(self, frame: _Frame, node: _Node, at: int) -> None:
        key: Any = frame.key
        fields = cast("dict[str, Any]", frame.items)
        if key is _DROPPED_KEY:
            return
        if frame.merging:
            self._merge(frame, node, at)
            return
        if key in fields:
            first = self._source.place(frame.marks[key][0])
            self._found(
                DiagnosticKind.DUPLICATE_KEY, f'the key "{key}" is already in line {first.line}', frame.key_at
            )
        fields[key] = node.value
        frame.marks[key] = (frame.key_at, node.mark)

    def _merge(self, frame: _Frame, node: _Node, at: int) -> None:
        nodes = [node]
        value: object = node.value
        if isinstance(value, list):
            values, marks = cast("list[object]", value), cast("list[Mark]", node.mark.members)
            nodes = [_Node(value, mark) for value, mark in zip(values, marks, strict=True)]
        for each in nodes:
            if isinstance(each.value, dict):
                frame.merges.append(each)
            else:
                self._found(
                    DiagnosticKind.WRONG_TYPE,
                    f"a merge key (<<) takes a mapping or a list of mappings, not {json_type(each.value)}",
                    at,
                )

    def _remember(self, anchor: str | None, node: _Node) -> None:
        if anchor is not None:
            self._anchors[anchor] = node

    def _alias(self, anchor: str, at: int) -> _Node:
        node = self._anchors.get(anchor)
        if node is None:
            inside = anchor in self._anchors
            raise self._source.fault(
                DiagnosticKind.SYNTAX_ERROR,
                f"the alias *{anchor} stands inside its own anchor &{anchor}"
                if inside
                else f"there is no anchor &{anchor} before this alias",
                at,
                path=self._path(),
            )
        self._alias_nodes += node.size
        if self._alias_nodes > self._limits.max_alias_nodes:
            raise self._source.fault(
                DiagnosticKind.LIMIT_EXCEEDED,
                f"the aliases up to here stand for more than {self._limits.max_alias_nodes:,} values",
                at,
                path=self._path(),
            )
        return _Node(node.value, Mark(at, node.mark.members), size=node.size)

    def _refuse_tag(self, tag: str, at: int) -> None:
        shown = tag.replace(_TAG_PREFIX, "!!")
        self._found(
            DiagnosticKind.NOT_JSON,
            f"the tag {shown} has no meaning in a flow, whose values are those of JSON",
            at,
            "remove the tag; write binary data in base64 and dates as strings",
        )

    def _found(self, kind: DiagnosticKind, message: str, at: int, suggestion: str = "") -> None:
        self._diagnostics.append(
            self._source.diagnostic(kind, message, at, path=self._path(), suggestion=suggestion)
        )

    def _path(self) -> JsonPath:
        path: list[str | int] = []
        for frame in self._frames:
            if isinstance(frame.items, list):
                path.append(len(frame.items))
            elif isinstance(frame.key, str):
                path.append(frame.key)
            else:
                break
        return tuple(path)


def _merged(fields: dict[str, Any], marks: Any, merges: list[_Node]) -> tuple[dict[str, Any], Any]:
    """The mapping with what it merges: its own keys win, then the earlier of the merged mappings."""
    values: dict[str, Any] = {}
    places: dict[str, tuple[int, Mark]] = {}
    for node in reversed(merges):
        values.update(cast("dict[str, Any]", node.value))
        places.update(cast("dict[str, tuple[int, Mark]]", node.mark.members or {}))
    values.update(fields)
    places.update(marks)
    return values, places


def _plain_value(text: str) -> Any:
    """A plain scalar by YAML 1.2's core schema."""
    if text and text[0] not in _PLAIN_START:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) <= _MAX_INTEGER_DIGITS else float(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _OCTAL_OR_HEX.fullmatch(text):
        return int(text, 0)
    return text


def _has_tag_type(value: object, name: str) -> bool:
    match name:
        case "null":
            return value is None
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case _:
            return isinstance(value, float)
