"""The values of a configuration file, taken out one by one; what is wrong with them is collected."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from stepflow_trio.errors import ConfigError
from stepflow_trio.flows.diagnostics import Diagnostic, DiagnosticKind, Place, printable
from stepflow_trio.flows.model import MAX_TIMEOUT_S
from stepflow_trio.flows.paths import JsonPath, render_path
from stepflow_trio.flows.source import Source
from stepflow_trio.flows.suggestions import closest, did_you_mean
from stepflow_trio.protocol.json_types import json_type
from stepflow_trio.runtime.environment import substitute

__all__ = ["ConfigValues", "Problem", "config_error", "is_token_key", "one_of", "said"]

_MAX_LISTED = 100
"""Problems in one error."""

_QUOTATION = re.compile(r"""(['"])(?![<\\])(?:(?!\1).){2,}\1""")

_TOKEN_KEY = re.compile("token|bearer|authorization|password|secret|apikey", re.IGNORECASE)


def is_token_key(key: str) -> bool:
    """Whether what stands under a key of this name may be a secret, even if the key is not one of ours."""
    return _TOKEN_KEY.search(key.replace("_", "").replace("-", "")) is not None


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, or has no effect, at a place."""

    place: Place
    text: str
    kind: DiagnosticKind = DiagnosticKind.INVALID_SETTING
    path: JsonPath = ()

    def diagnostic(self) -> Diagnostic:
        """It as a diagnostic."""
        return Diagnostic(kind=self.kind, message=printable(self.text), path=self.path, place=self.place)

    def __str__(self) -> str:
        return f"{printable(str(self.place))}: {self.text}"


def config_error(problems: Iterable[Problem]) -> ConfigError:
    """One error that lists the problems in the order of the file."""
    ordered = in_order(problems)
    lines = [str(problem) for problem in ordered[:_MAX_LISTED]]
    if len(ordered) > _MAX_LISTED:
        lines.append(f"and {len(ordered) - _MAX_LISTED:,} more")
    place = printable(str(ordered[0].place))
    return ConfigError("\n".join(lines).removeprefix(f"{place}: "), place)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """The problems in the order of the file."""
    return sorted(problems, key=lambda problem: (problem.place.line, problem.place.column, problem.text))


def said(diagnostic: Diagnostic) -> Problem:
    """What was wrong with the text, without what it quotes from values: that may be a secret."""
    message, suggestion = diagnostic.message, diagnostic.suggestion
    if diagnostic.kind in (DiagnosticKind.SYNTAX_ERROR, DiagnosticKind.NOT_JSON):
        match diagnostic.path:
            case ("plugins", _, "env" | "args", *_):
                message, suggestion = "this is not a plain string", "put it in quotes"
            case ("plugins", _, str(key), *_) if is_token_key(key):
                message, suggestion = "this is not a plain string", "put it in quotes"
            case _:
                message = _QUOTATION.sub("'…'", message)
    text = f"{message}; {suggestion}" if suggestion else message
    return Problem(diagnostic.place, _at_key(diagnostic.path, text), diagnostic.kind, diagnostic.path)


def _at_key(path: JsonPath, message: str) -> str:
    key = render_path(path).removeprefix("$").removeprefix(".")
    return f"{printable(key)}: {message}" if key else message


def one_of(found: str, known: Collection[str]) -> str:
    """That ``found`` is none of the values that can stand there."""
    hint = did_you_mean(found, known) or f"write one of {', '.join(known)}"
    return f'"{printable(found)}" is unknown; {hint}'


class ConfigValues:
    """Reads values and collects all that is wrong with them.

    Its methods return something of the right type even then: what they return is used only if nothing was.
    """

    def __init__(self, source: Source, environ: Mapping[str, str]) -> None:
        self.source = source
        self.environ = environ
        self.problems: list[Problem] = []
        self._warnings: list[Problem] = []

    @property
    def warnings(self) -> tuple[str, ...]:
        """What has no effect, in the order of the file."""
        return tuple(map(str, in_order(self._warnings)))

    @property
    def cautions(self) -> list[Problem]:
        """`warnings`, with all that is known of them."""
        return in_order(self._warnings)

    # ---- values of a type --------------------------------------------------------------------------------

    def object(self, value: object, path: JsonPath) -> dict[str, Any]:
        """The value where it is an object, else an empty one."""
        if isinstance(value, dict):
            return cast("dict[str, Any]", value)
        self._wrong_type(path, value, "an object with keys")
        return {}

    def array(self, value: object, path: JsonPath) -> list[Any]:
        """The value where it is a list, else an empty one."""
        if isinstance(value, list):
            return cast("list[Any]", value)
        self._wrong_type(path, value, "a list")
        return []

    def string(self, value: object, path: JsonPath) -> str:
        """The value where it is a string, else an empty one."""
        if isinstance(value, str):
            return value
        self._wrong_type(path, value, "a string")
        return ""

    def substituted(self, value: object, path: JsonPath) -> str | None:
        """A text with its variables replaced; None if it cannot be."""
        if not isinstance(value, str):
            self.string(value, path)
            return None
        try:
            text = substitute(value, self.environ)
        except ValueError as exc:
            self.problem(path, str(exc))
            return None
        if "\0" in text:
            self.problem(path, "holds a NUL character, which cannot be passed to a process")
        return text

    # ---- values under a key that need not be there -------------------------------------------------------

    def items(self, fields: Mapping[str, Any], path: JsonPath, key: str) -> Iterator[tuple[JsonPath, object]]:
        """The members, each with its path, of a list."""
        members = [] if fields.get(key) is None else self.array(fields[key], (*path, key))
        for index, member in enumerate(members):
            yield (*path, key, index), member

    def choice(
        self, fields: Mapping[str, Any], path: JsonPath, key: str, known: Collection[str], default: str
    ) -> str:
        """One of some words."""
        match fields.get(key):
            case None:
                return default
            case str(word) if word in known:
                return word
            case str(word):
                self.problem((*path, key), one_of(word, known))
            case other:
                self.string(other, (*path, key))
        return default

    def boolean(self, fields: Mapping[str, Any], path: JsonPath, key: str) -> bool | None:
        """True, false, or neither."""
        value: object = fields.get(key)
        if value is None or isinstance(value, bool):
            return value
        self._wrong_type((*path, key), value, "true or false")
        return None

    def whole_number(
        self, fields: Mapping[str, Any], path: JsonPath, key: str, default: int, most: int
    ) -> int:
        """A whole number from 0 to ``most``."""
        value: object = fields.get(key)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most:
            return value
        self.problem((*path, key), f"must be a whole number from 0 to {most}")
        return default

    def seconds(self, fields: Mapping[str, Any], path: JsonPath, key: str, default: float) -> float:
        """A time: a number of seconds that is more than 0."""
        value: object = fields.get(key)
        if value is None:
            return default
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= MAX_TIMEOUT_S:
            return float(value)
        self.problem((*path, key), f"must be a number of seconds, more than 0 and at most {MAX_TIMEOUT_S:,}")
        return default

    # ---- what is wrong -----------------------------------------------------------------------------------

    def missing(self, fields: Mapping[str, Any], path: JsonPath, key: str) -> None:
        """A key that must be there is not; perhaps it is there under a misspelled name."""
        hint = closest(key, fields)
        suggestion = f'; is "{printable(hint)}" meant to be it?' if hint is not None and hint != key else ""
        place = self.source.place(path, at_key=True)
        text = _at_key((*path, key), f"is missing{suggestion}")
        self.problems.append(Problem(place, text, DiagnosticKind.MISSING_FIELD, (*path, key)))

    def ignore_others(self, fields: Mapping[str, Any], path: JsonPath, known: Collection[str]) -> None:
        """Warn of keys that nobody reads."""
        for key in fields:
            if key not in known:
                hint = did_you_mean(key, known)
                text = f"is ignored: there is no such key here{'; ' + hint if hint else ''}"
                self.warn((*path, key), text, at_key=True, kind=DiagnosticKind.UNKNOWN_FIELD)

    def problem(
        self,
        path: JsonPath,
        message: str,
        *,
        at_key: bool = False,
        kind: DiagnosticKind = DiagnosticKind.INVALID_SETTING,
    ) -> None:
        """Something cannot be used as written."""
        place = self.source.place(path, at_key=at_key)
        self.problems.append(Problem(place, _at_key(path, message), kind, path))

    def problem_with_key(self, path: JsonPath, message: str) -> None:
        """A key is wrong that is not to be shown: ``path`` ends with it, the message's with its parent."""
        place = self.source.place(path, at_key=True)
        self.problems.append(Problem(place, _at_key(path[:-1], message), path=path[:-1]))

    def warn(
        self,
        path: JsonPath,
        message: str,
        *,
        at_key: bool = False,
        kind: DiagnosticKind = DiagnosticKind.SETTING_WITHOUT_EFFECT,
    ) -> None:
        """Something has no effect."""
        place = self.source.place(path, at_key=at_key)
        self._warnings.append(Problem(place, _at_key(path, message), kind, path))

    def _wrong_type(self, path: JsonPath, value: object, wanted: str) -> None:
        hint = "; put it in quotes" if wanted == "a string" and isinstance(value, (bool, int, float)) else ""
        # A value that is not written has no place of its own, so its key's is shown.
        message = f"must be {wanted}, not {json_type(value)}{hint}"
        self.problem(path, message, at_key=value is None, kind=DiagnosticKind.WRONG_TYPE)
