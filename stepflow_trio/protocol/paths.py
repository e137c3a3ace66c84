"""Component paths: which registered pattern a path belongs to.

A pattern is a path whose segments may be parameters::

    /add                 one path
    /models/{name}       `{name}` stands for exactly one segment, never empty
    /fs/{*path}          `{*path}` stands for everything that is left, never empty; it comes last

Where several patterns fit a path, a path registered as it is wins; otherwise the first segment in which two
patterns differ decides: a literal before `{x}`, `{x}` before `{*x}`. What a parameter captured is passed on
exactly as it came: nothing is decoded, normalised or resolved, so `..`, `%2e` and NUL reach the component.
"""

from __future__ import annotations

import dataclasses
from typing import Generic, TypeVar

from stepflow_trio.errors import LocalProtocolError

T = TypeVar("T")

_COMPARED_CHARS = 200  # a name that somebody mistyped; what is longer than this is not one


def with_leading_slash(path: str) -> str:
    """`add` → `/add`; a path that starts with a slash is returned as it is."""
    return path if path.startswith("/") else "/" + path


def parameter_names(pattern: str) -> tuple[str, ...]:
    """The names of a pattern's parameters, from left to right.

    Raises:
        LocalProtocolError: the pattern is malformed: an empty segment, braces that do not enclose a whole
            segment, a name that is no identifier or comes twice, or `{*x}` before the end.
    """
    return tuple(s.name for s in _parse(pattern) if isinstance(s, _Parameter))


class PathTable(Generic[T]):
    """Patterns, each with a value; finds the value for a path.

    Matching visits each position of the registered patterns at most once and never looks beyond the longest
    of them, so a hostile path costs no more than being split at its slashes.
    """

    __slots__ = ("_exact", "_patterns", "_root")

    def __init__(self) -> None:
        self._exact: dict[str, T] = {}
        self._root: _Node[T] = _Node()
        self._patterns: dict[str, T] = {}

    def add(self, pattern: str, value: T) -> None:
        """Register `value` under `pattern`; a missing leading slash is added.

        Raises:
            LocalProtocolError: the pattern is malformed (see `parameter_names`), or one of the same shape is
                registered already: `/models/{name}` and `/models/{id}` fit the same paths.
        """
        segments = _parse(pattern)
        pattern = with_leading_slash(pattern)
        names = tuple(s.name for s in segments if isinstance(s, _Parameter))
        if not names:
            if pattern in self._exact:
                raise LocalProtocolError(f"component path {pattern!r} is registered already")
            self._exact[pattern] = value
        else:
            node = self._root
            rest = isinstance(segments[-1], _Parameter) and segments[-1].takes_rest
            for segment in segments[:-1] if rest else segments:
                node = node.child(segment)
            other = node.rest if rest else node.leaf
            if other is not None:
                raise LocalProtocolError(
                    f"component path {pattern!r} fits the same paths as {other.pattern!r}, registered before"
                )
            leaf = _Leaf(pattern, names, value)
            if rest:
                node.rest = leaf
            else:
                node.leaf = leaf
        self._patterns[pattern] = value

    def match(self, path: str) -> tuple[T, dict[str, str]] | None:
        """The value of the pattern that fits `path`, and what its parameters captured; None if none fits."""
        path = with_leading_slash(path)
        if path in self._exact:
            return self._exact[path], {}
        segments = path.split("/")
        # Depth first, the preferred branch on top: what is popped later is the backtracking. `rest` tells an
        # entry that the end of the pattern takes all that is left.
        pending: list[tuple[_Node[T], int, tuple[str, ...], bool]] = [(self._root, 1, (), False)]
        while pending:
            node, at, captured, rest = pending.pop()
            if rest and node.rest is not None:
                return node.rest.matched((*captured, "/".join(segments[at:])))
            if at == len(segments):
                if node.leaf is not None:
                    return node.leaf.matched(captured)
                continue
            segment = segments[at]
            if node.rest is not None and (segment or at + 1 < len(segments)):
                pending.append((node, at, captured, True))
            if node.parameter is not None and segment:
                pending.append((node.parameter, at + 1, (*captured, segment), False))
            literal = node.literals.get(segment)
            if literal is not None:
                pending.append((literal, at + 1, captured, False))
        return None

    def patterns(self) -> list[str]:
        """Every registered pattern, in the order of registration."""
        return list(self._patterns)

    def values(self) -> list[T]:
        """The value of every registered pattern, in the order of registration."""
        return list(self._patterns.values())

    def closest(self, path: str, n: int = 3) -> list[str]:
        """Up to `n` registered patterns that look like `path`, the likeliest first."""
        import difflib  # here, as a worker's start-up does not need it

        if len(path) > _COMPARED_CHARS:
            return []
        return difflib.get_close_matches(with_leading_slash(path), list(self._patterns), n)


@dataclasses.dataclass(slots=True, frozen=True)
class _Parameter:
    name: str
    takes_rest: bool


@dataclasses.dataclass(slots=True, frozen=True)
class _Leaf(Generic[T]):
    pattern: str
    names: tuple[str, ...]
    value: T

    def matched(self, captured: tuple[str, ...]) -> tuple[T, dict[str, str]]:
        return self.value, dict(zip(self.names, captured, strict=True))


class _Node(Generic[T]):
    """A position that patterns share. Names live in the leaves, so each pattern captures under its own."""

    __slots__ = ("leaf", "literals", "parameter", "rest")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] = {}
        self.parameter: _Node[T] | None = None
        self.leaf: _Leaf[T] | None = None
        self.rest: _Leaf[T] | None = None

    def child(self, segment: str | _Parameter) -> _Node[T]:
        if isinstance(segment, str):
            return self.literals.setdefault(segment, _Node())
        if self.parameter is None:
            self.parameter = _Node()
        return self.parameter


def _parse(pattern: str) -> list[str | _Parameter]:
    def malformed(why: str) -> LocalProtocolError:
        return LocalProtocolError(f"component path {pattern!r} {why}")

    texts = with_leading_slash(pattern).split("/")[1:]
    segments: list[str | _Parameter] = []
    names: set[str] = set()
    for at, text in enumerate(texts):
        if not text:
            raise malformed("has an empty segment: leave out the extra slash")
        if "{" not in text and "}" not in text:
            segments.append(text)
            continue
        inner = text[1:-1]
        if not (text.startswith("{") and text.endswith("}")) or "{" in inner or "}" in inner:
            raise malformed(
                f"has braces in {text!r} that do not enclose a whole segment, as in '/models/{{name}}'"
            )
        takes_rest = inner.startswith("*")
        name = inner[1:] if takes_rest else inner
        if not name.isidentifier():
            raise malformed(f"has a parameter {text!r} whose name is not a Python identifier")
        if name in names:
            raise malformed(f"has two parameters named {name!r}")
        if takes_rest and at != len(texts) - 1:
            raise malformed(f"has {text!r} before its end: it takes all that is left, so nothing can follow")
        names.add(name)
        segments.append(_Parameter(name, takes_rest))
    return segments
