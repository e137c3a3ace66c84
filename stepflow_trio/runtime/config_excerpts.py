"""Which lines of a configuration may be shown beside what is wrong in them: those without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from stepflow_trio.flows.diagnostics import Diagnostic
from stepflow_trio.runtime.config_values import Problem

__all__ = ["with_excerpts"]

_MAY_HOLD_SECRETS = re.compile(
    r"\benv|\barg|\bheaders\b|token|bearer|authorization|password|secret|api[-_]?key|credential|://[^/\s]*@",
    re.IGNORECASE,
)
_INDENTED = re.compile(r"( *)((?:- +)*)")


def with_excerpts(problems: Iterable[Problem], text: str | bytes) -> tuple[Diagnostic, ...]:
    """The problems as diagnostics, in the order given, each with its line unless that may hold a secret.

    Judged is the text and not what it says, which is not known where it cannot be read: lines with names such
    as ``env`` and ``token``, and all that stands below them, further in.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found: list[Diagnostic] = []
    for problem in problems:
        diagnostic = problem.diagnostic()
        if _may_hold_secrets(lines, diagnostic.place.line - 1):
            place = msgspec.structs.replace(diagnostic.place, excerpt="")
            diagnostic = msgspec.structs.replace(diagnostic, place=place)
        found.append(diagnostic)
    return tuple(found)


def _may_hold_secrets(lines: list[str], index: int) -> bool:
    if not 0 <= index < len(lines):
        return True
    if _MAY_HOLD_SECRETS.search(lines[index]):
        return True
    depth = _depth(lines[index])
    if not depth and index and lines[0].lstrip().startswith(("{", "[")):
        # JSON that is not indented: nothing says where it stands.
        return any(map(_MAY_HOLD_SECRETS.search, lines[:index]))
    for line in reversed(lines[:index]):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if _depth(line) < depth:
            if _MAY_HOLD_SECRETS.search(line):
                return True
            depth = _depth(line)
    return False


def _depth(line: str) -> float:
    """How far in a line's key stands. An item of a list is further in than the key that it belongs to."""
    found = _INDENTED.match(line)
    if found is None:
        return 0
    return len(found[1]) + (0.5 if found[2] or line.strip() == "-" else 0)
