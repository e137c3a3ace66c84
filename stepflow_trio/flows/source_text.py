"""A source's text, the places in it, and the bounds on what is read from it."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from stepflow_trio.errors import FlowInvalid
from stepflow_trio.flows.diagnostics import Diagnostic, DiagnosticKind, Place, printable
from stepflow_trio.flows.paths import JsonPath

__all__ = ["Mark", "SourceLimits", "SourceText"]

MAX_EXCERPT_CHARS = 1_000
"""Of a longer line only the part around the place is kept."""


class SourceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a source may hold."""

    max_bytes: int = 16 * 2**20
    """Length of the UTF-8 text. The public releases take 2 MiB over HTTP; a generated flow can be larger."""
    max_depth: int = 128
    """Objects and arrays inside each other, counted after YAML aliases are followed: what the wire allows."""
    max_alias_nodes: int = 100_000
    """Values that YAML aliases and merge keys may add, so that a small file cannot stand for a huge one."""


class Mark:
    """Where a value of the source starts, and its members: in order, or by key with each key's offset."""

    __slots__ = ("at", "members")

    def __init__(self, at: int, members: Members | None = None) -> None:
        self.at = at
        self.members = members

    def find(self, path: JsonPath, *, at_key: bool) -> int:
        """The offset of the value at ``path`` or of its key, or of the innermost value that exists."""
        mark, offset = self, self.at
        for part in path:
            members = mark.members
            if isinstance(members, Mapping) and isinstance(part, str) and part in members:
                key_at, mark = members[part]
                offset = key_at if at_key else mark.at
            elif isinstance(members, Sequence) and isinstance(part, int) and 0 <= part < len(members):
                mark = members[part]
                offset = mark.at
            else:
                return mark.at
        return offset


Members = Mapping[str, tuple[int, Mark]] | Sequence[Mark]


class SourceText:
    """A named text with ``\\n`` line ends, and the places of its characters."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self._line_starts: list[int] | None = None

    def place(self, offset: int) -> Place:
        """The place of the character at ``offset``; an offset behind the end is the end."""
        if self._line_starts is None:
            self._line_starts = [0, *(found.end() for found in re.finditer("\n", self.text))]
        offset = max(0, min(offset, len(self.text)))
        line = bisect.bisect_right(self._line_starts, offset)
        start = self._line_starts[line - 1]
        end = self.text.find("\n", start)
        end = end if end >= 0 else len(self.text)
        # Every finding keeps its line: of a text in one line there would be as many copies as findings.
        first = start if end - start <= MAX_EXCERPT_CHARS else max(start, offset - MAX_EXCERPT_CHARS // 2)
        last = min(end, first + MAX_EXCERPT_CHARS)
        return Place(
            self.name,
            line,
            offset - start + 1,
            self.text[first:last],
            excerpt_from=first - start,
            is_cut=last < end,
        )

    def diagnostic(
        self, kind: DiagnosticKind, message: str, offset: int, *, path: JsonPath = (), suggestion: str = ""
    ) -> Diagnostic:
        """What was found at ``offset``."""
        return Diagnostic(
            kind=kind,
            message=printable(message),
            path=path,
            place=self.place(offset),
            suggestion=printable(suggestion),
        )

    def fault(self, kind: DiagnosticKind, message: str, offset: int, **more: Any) -> FlowInvalid:
        """The exception for a fault behind which nothing more can be read; see `diagnostic`."""
        return FlowInvalid([self.diagnostic(kind, message, offset, **more)])
