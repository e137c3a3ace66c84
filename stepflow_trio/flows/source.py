"""Text to a plain JSON value whose every part knows its place: one door for YAML and JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, cast

import msgspec

from stepflow_trio.errors import FlowInvalid
from stepflow_trio.flows.diagnostics import Diagnostic, DiagnosticKind, Finding, Place, printable
from stepflow_trio.flows.json_keys import JsonKeysAt
from stepflow_trio.flows.paths import JsonPath
from stepflow_trio.flows.source_text import Mark, SourceLimits, SourceText
from stepflow_trio.flows.yaml_source import read_yaml
from stepflow_trio.protocol.json_types import json_type

__all__ = ["Source", "read_source", "source_of_value"]

_LOOKS_LIKE_JSON = re.compile(r'\s*\{\s*["}]')
_STARTS_WITH_BRACE = re.compile(r"\s*\{")
_YAML_SUFFIXES = (".yaml", ".yml")

_JSON_TOKEN = re.compile(r'[\[\]{}]|"[^"\\]*(?:\\.[^"\\]*)*"|[^\s\[\]{},:"]+', re.DOTALL)
_LONG_NUMBER = re.compile(r"[0-9]{4000,}")
_MAX_NUMBER = 1 << 1024
"""From here on a number is no finite double; nobody on the wire could read it."""
_MAX_FAULTS = 100


class Source:
    """A plain value, the places of its parts, and what was wrong with its text although it could be read."""

    def __init__(
        self,
        name: str,
        value: Any,
        *,
        text: SourceText | None = None,
        starts_at: int = 0,
        marks: Callable[[], Mark] | None = None,
    ) -> None:
        self.name = name
        self.value = value
        self.diagnostics: tuple[Diagnostic, ...] = ()
        self._text = text
        self._starts_at = starts_at
        self._find_marks = marks
        self._mark: Mark | None = None

    def place(self, path: JsonPath, *, at_key: bool = False) -> Place:
        """Where the value at ``path`` starts, or its key.

        The innermost value that exists, where the path leads nowhere, such as to a missing field.
        """
        if self._text is None or self._find_marks is None:
            return Place(self.name)
        fields: object = self.value
        if not path or (isinstance(fields, dict) and path[0] not in fields):
            # Needs no marks: most flows have nothing wrong with them but that they lack a description.
            return self._text.place(self._starts_at)
        if self._mark is None:
            self._mark = self._find_marks()
        return self._text.place(self._mark.find(path, at_key=at_key))

    def diagnostic(self, finding: Finding) -> Diagnostic:
        """A finding with its place."""
        return Diagnostic(
            kind=finding.kind,
            message=printable(finding.message),
            path=finding.path,
            place=self.place(finding.path, at_key=finding.at_key),
            suggestion=printable(finding.suggestion),
            data=finding.data,
        )

    def part(self, path: JsonPath) -> Source:
        """The value at ``path``, which must be there, as a source whose paths start at it.

        Places, and the diagnostics of what is in it, are those of this one.
        """
        if not path:
            return self
        value: Any = self.value
        mark = self._mark or (self._find_marks() if self._find_marks is not None else Mark(0))
        for name in path:
            value = value[name]
            members: Any = mark.members
            if members is not None:
                mark = members[name][1] if isinstance(name, str) else members[name]
        part = Source(self.name, value, text=self._text, starts_at=mark.at, marks=lambda: mark)
        part.diagnostics = tuple(
            msgspec.structs.replace(found, path=found.path[len(path) :])
            for found in self.diagnostics
            if found.path[: len(path)] == path
        )
        return part


def read_source(
    text: str | bytes,
    *,
    name: str,
    limits: SourceLimits | None = None,
    json_keys_at: JsonKeysAt | None = None,
) -> Source:
    """Read YAML 1.2 or JSON.

    A name that ends in ``.json``, or a text that starts as a JSON object, is read as JSON; everything else is
    YAML. What is wrong but can be read past, such as a duplicate key, is in the source's ``diagnostics``.
    Where ``json_keys_at`` says that a mapping's keys are JSON values, `json_keys.value_of_key` reads them.
    Raises `FlowInvalid` for a syntax error, bytes that are not UTF-8, or a bound that is exceeded.
    """
    limits = limits or SourceLimits()
    plain = _decoded(text, name, limits)
    source = SourceText(name, plain)
    reading = _read_either(source, limits, json_keys_at)
    faults = _json_faults(reading.value, limits)
    reading.diagnostics = (*reading.diagnostics, *map(reading.diagnostic, faults))
    if any(fault.kind is DiagnosticKind.LIMIT_EXCEEDED for fault in faults):
        raise FlowInvalid(reading.diagnostics)
    return reading


def source_of_value(value: Any, *, name: str, limits: SourceLimits | None = None) -> Source:
    """Take a plain value as it is: no copy is made, so it must not be changed afterwards.

    Raises `FlowInvalid` where something in it is not JSON, or a bound is exceeded.
    """
    source = Source(name, value)
    faults = _json_faults(value, limits or SourceLimits())
    if faults:
        raise FlowInvalid([source.diagnostic(fault) for fault in faults])
    return source


def _decoded(text: str | bytes, name: str, limits: SourceLimits) -> str:
    if isinstance(text, str):
        length = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    else:
        length = len(text)
    if length > limits.max_bytes:
        message = f"{length:,} bytes are more than the {limits.max_bytes:,} allowed"
        raise _unread(name, DiagnosticKind.LIMIT_EXCEEDED, message)
    if isinstance(text, bytes):
        if text.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise _unread(name, DiagnosticKind.UNREADABLE, "the text is UTF-16", "save it as UTF-8")
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as exc:
            before = SourceText(name, text[: exc.start].decode("utf-8"))
            raise before.fault(
                DiagnosticKind.UNREADABLE,
                f"byte 0x{text[exc.start]:02x} at offset {exc.start} is not UTF-8 ({exc.reason})",
                exc.start,
                suggestion="save the text as UTF-8",
            ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _unread(name: str, kind: DiagnosticKind, message: str, suggestion: str = "") -> FlowInvalid:
    return FlowInvalid([Diagnostic(kind=kind, message=message, place=Place(name), suggestion=suggestion)])


def _read_either(source: SourceText, limits: SourceLimits, json_keys_at: JsonKeysAt | None) -> Source:
    named_yaml = source.name.endswith(_YAML_SUFFIXES)
    looks_like_json = _LOOKS_LIKE_JSON.match(source.text) is not None
    if source.name.endswith(".json") or (looks_like_json and not named_yaml):
        return _read_json(source, limits)
    if _STARTS_WITH_BRACE.match(source.text):
        # Most such texts are JSON, which is read a hundred times faster; the rest is YAML's {flow: mapping}.
        try:
            return _read_json(source, limits)
        except FlowInvalid:
            pass
    yaml = read_yaml(source, limits, json_keys_at)
    reading = Source(source.name, yaml.value, text=source, starts_at=yaml.mark.at, marks=lambda: yaml.mark)
    reading.diagnostics = tuple(yaml.diagnostics)
    return reading


def _read_json(source: SourceText, limits: SourceLimits) -> Source:
    has_duplicates = False

    def fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal has_duplicates
        found = dict(pairs)
        if len(found) != len(pairs):
            has_duplicates = True
        return found

    try:
        value = json.loads(source.text, object_pairs_hook=fields)
    except json.JSONDecodeError as exc:
        # Where there is a comma too many, Python's releases point to different places.
        before = source.text[: exc.pos + 1].rstrip(" \t\r\n]}")
        if before.endswith(",") and source.text[len(before) :].lstrip()[:1] in ("]", "}"):
            why, at = "there is a comma after the last member", len(before) - 1
        else:
            why, at = exc.msg, exc.pos
        raise source.fault(DiagnosticKind.SYNTAX_ERROR, f"this is not JSON: {why}", at) from None
    except RecursionError:
        raise _too_deep(source, limits) from None
    except ValueError:
        number = _LONG_NUMBER.search(source.text)
        raise source.fault(
            DiagnosticKind.NOT_JSON, "this number is too long", number.start() if number else 0
        ) from None
    starts_at = len(source.text) - len(source.text.lstrip())
    reading = Source(
        source.name, value, text=source, starts_at=starts_at, marks=lambda: _json_marks(source)[0]
    )
    if has_duplicates:
        reading.diagnostics = tuple(_json_marks(source)[1])
    return reading


def _too_deep(source: SourceText, limits: SourceLimits) -> FlowInvalid:
    depth = offset = 0
    for token in _JSON_TOKEN.finditer(source.text):
        if token[0] in "[{":
            depth += 1
            if depth > limits.max_depth:
                offset = token.start()
                break
        elif token[0] in "]}":
            depth -= 1
    message = f"objects and arrays are nested more than {limits.max_depth} deep here"
    return source.fault(DiagnosticKind.LIMIT_EXCEEDED, message, offset)


class _JsonFrame:
    """An object or array whose members' places are being collected."""

    __slots__ = ("members", "name", "name_at")

    def __init__(self, members: list[Mark] | dict[str, tuple[int, Mark]]) -> None:
        self.members = members
        self.name: str | None = None
        self.name_at = 0


def _json_marks(source: SourceText) -> tuple[Mark, list[Diagnostic]]:
    """The places of a text that has been read as JSON, and its duplicate keys.

    Apart from reading, because it takes ten times longer and most flows have nothing wrong with them.
    """
    root: list[Mark] = []
    frames = [_JsonFrame(root)]
    duplicates: list[Diagnostic] = []
    for token in _JSON_TOKEN.finditer(source.text):
        text, at = token[0], token.start()
        frame = frames[-1]
        if text in ("]", "}"):
            frames.pop()
            frames[-1].name = None
            continue
        mark = Mark(at)
        if isinstance(frame.members, list):
            frame.members.append(mark)
        elif frame.name is None:
            frame.name, frame.name_at = cast("str", json.loads(text)), at
            continue
        else:
            if frame.name in frame.members:
                first = source.place(frame.members[frame.name][0])
                duplicates.append(
                    source.diagnostic(
                        DiagnosticKind.DUPLICATE_KEY,
                        f'the key "{frame.name}" is already in line {first.line}',
                        frame.name_at,
                        path=_path_of(frames),
                    )
                )
            frame.members[frame.name] = (frame.name_at, mark)
            if text not in ("[", "{"):
                frame.name = None
        if text in ("[", "{"):
            inner: list[Mark] | dict[str, tuple[int, Mark]] = [] if text == "[" else {}
            mark.members = inner
            frames.append(_JsonFrame(inner))
    return root[0], duplicates


def _path_of(frames: list[_JsonFrame]) -> JsonPath:
    return tuple(
        len(frame.members) - 1 if isinstance(frame.members, list) else frame.name or ""
        for frame in frames[1:]
    )


def _json_faults(value: Any, limits: SourceLimits) -> list[Finding]:
    """What in ``value`` is not JSON, or more than the bounds allow; at most the first hundred."""
    if type(value) not in (dict, list):
        why = _scalar_fault(value)
        return [Finding(DiagnosticKind.NOT_JSON, why)] if why else []
    faults: list[Finding] = []
    nodes = 0
    containers: list[tuple[JsonPath, Any]] = [((), value)]
    while containers and len(faults) < _MAX_FAULTS:
        path, container = containers.pop()
        if len(path) >= limits.max_depth:
            deep = f"objects and arrays are nested more than {limits.max_depth} deep here"
            return [*faults, Finding(DiagnosticKind.LIMIT_EXCEEDED, deep, path)]
        nodes += len(container)
        if nodes > limits.max_bytes:
            # No text within the bound holds as many; a Python value whose parts are shared can.
            many = f"there are more than {limits.max_bytes:,} values"
            return [*faults, Finding(DiagnosticKind.LIMIT_EXCEEDED, many)]
        inner: list[tuple[JsonPath, Any]] = []
        is_object = type(container) is dict
        members = cast("Iterable[tuple[Any, Any]]", container.items() if is_object else enumerate(container))
        for key, member in members:
            if is_object and (why := _key_fault(key)):
                faults.append(Finding(DiagnosticKind.NOT_JSON, why, path))
            elif type(member) in (dict, list):
                inner.append(((*path, key), member))
            elif why := _scalar_fault(member):
                faults.append(Finding(DiagnosticKind.NOT_JSON, why, (*path, key)))
        containers.extend(reversed(inner))
    return faults


def _key_fault(key: object) -> str:
    if type(key) is not str:
        return f"the key {key!r:.60} is {json_type(key)}; keys are strings"
    return "" if _is_unicode(key) else f"the key {key!r:.60} holds half a surrogate pair"


def _scalar_fault(value: object) -> str:
    """Why a value that is no object and no array is not JSON, or the empty string."""
    kind = type(value)
    if kind is str:
        return "" if _is_unicode(cast("str", value)) else "this string holds half a surrogate pair"
    if value is None or kind is bool:
        return ""
    if kind is int:
        return "" if -_MAX_NUMBER < cast("int", value) < _MAX_NUMBER else "this number is too large"
    if kind is float:
        return "" if math.isfinite(cast("float", value)) else f"JSON has no {value}, nor numbers that large"
    return (
        f"this is {json_type(value)}, which JSON does not have; use plain dicts, lists, strings and numbers"
    )


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
