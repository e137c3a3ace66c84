"""Where the values of a YAML or JSON text begin and end, as they are written: aliases stay what they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

_SPACE = re.compile(r"[ \t\n\r]*")
_KEEPING = re.compile(r"[|>][1-9]?\+")


@dataclass(slots=True)
class Span:
    """A value's place: offsets in a text whose lines end with a line feed alone."""

    kind: Literal["scalar", "alias", "mapping", "sequence"]
    start: int
    end: int = 0
    """Behind its last character that is no white space."""
    content_start: int = 0
    """Where it begins without its anchor and tag."""
    is_flow: bool = False
    """Whether it is in brackets."""
    text: str = ""
    """What a scalar says."""
    members: list[tuple[Span, Span]] = field(default_factory=list["tuple[Span, Span]"])
    """A mapping's keys and values."""
    items: list[Span] = field(default_factory=list["Span"])
    """A sequence's."""
    keeps_blank_lines: bool = False
    """Whether blank lines behind it belong to it."""
    full_end: int = 0
    """Behind these."""

    def member(self, name: str) -> tuple[Span, Span] | None:
        """The key and the value of this name that are written in it."""
        for key, value in self.members:
            if key.kind == "scalar" and key.text == name:
                return key, value
        return None


def json_spans(text: str) -> Span:
    """The places of a JSON text's values.

    Raises:
        ValueError: it is not JSON.
    """
    span = _json_value(text, _SPACE.match(text).end(), json.JSONDecoder())  # pyright: ignore[reportOptionalMemberAccess]: it fits nothing, too
    if text[span.end :].strip():
        raise ValueError("there is more than one value")
    return span


def _json_value(text: str, at: int, decoder: json.JSONDecoder) -> Span:
    opening = text[at : at + 1]
    if opening not in ("{", "[") or not opening:
        value, end = decoder.raw_decode(text, at)
        return Span("scalar", at, end, at, text=value if isinstance(value, str) else "")
    span = Span("mapping" if opening == "{" else "sequence", at, content_start=at, is_flow=True)
    closing = "}" if opening == "{" else "]"
    at = _behind_space(text, at + 1)
    while text[at : at + 1] != closing:
        if opening == "{":
            key = _json_value(text, at, decoder)
            at = _behind(text, key.end, ":")
            value = _json_value(text, at, decoder)
            span.members.append((key, value))
        else:
            value = _json_value(text, at, decoder)
            span.items.append(value)
        at = _behind_space(text, value.end)
        if text[at : at + 1] != closing:
            at = _behind(text, at, ",")
    span.end = at + 1
    return span


def _behind_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _behind(text: str, at: int, sign: str) -> int:
    at = _behind_space(text, at)
    if text[at : at + 1] != sign:
        raise ValueError(f"there is no {sign} at {at}")
    return _behind_space(text, at + 1)


def yaml_spans(text: str) -> Span:
    """The places of the values of a YAML text, which is one that can be read."""
    from ruamel.yaml import YAML  # here: a flow in JSON needs none

    events: Iterator[Any] = YAML(typ="safe", pure=True).parse(text)  # pyright: ignore[reportUnknownMemberType]: ruamel's annotations are partial
    for event in events:
        if type(event).__name__ == "DocumentStartEvent":
            break
    return _yaml_value(text, next(events), events, 0)


def _yaml_value(text: str, event: Any, events: Iterator[Any], behind: int) -> Span:
    """The value that starts with ``event``; ``behind`` is where the one before it ends."""
    start, end = event.start_mark.index, event.end_mark.index
    match type(event).__name__:
        case "AliasEvent":
            return Span("alias", start, end, start)
        case "ScalarEvent":
            if not text[start:end].strip():
                # Nothing is written, and the parser is at whatever comes next.
                return Span("scalar", behind, behind, behind, text=event.value, full_end=behind)
            is_block = event.style in ("|", ">")
            return Span(
                "scalar",
                start,
                start + len(text[start:end].rstrip()) if is_block else end,
                start,
                text=event.value,
                keeps_blank_lines=is_block and _KEEPING.search(text, start, end) is not None,
                full_end=end,
            )
        case name:
            span = Span("mapping" if name == "MappingStartEvent" else "sequence", start)
            return _collection(text, span, event, events)


def _collection(text: str, span: Span, start: Any, events: Iterator[Any]) -> Span:
    span.is_flow = bool(start.flow_style)
    last = span.start
    while True:
        event = next(events)
        if type(event).__name__ in ("MappingEndEvent", "SequenceEndEvent"):
            break
        if span.kind == "sequence":
            value = _yaml_value(text, event, events, last)
            span.items.append(value)
        else:
            key = _yaml_value(text, event, events, last)
            value = _yaml_value(text, next(events), events, key.end)
            span.members.append((key, value))
        last = value.end
        span.keeps_blank_lines, span.full_end = value.keeps_blank_lines, value.full_end
    if span.is_flow:
        span.end = span.full_end = event.end_mark.index
        span.keeps_blank_lines = False
        span.content_start = start.end_mark.index - 1
    else:
        span.end = last
        first = span.members[0][0] if span.members else span.items[0] if span.items else None
        span.content_start = first.start if first is not None else span.start
    return span
