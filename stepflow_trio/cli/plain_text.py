"""Text from elsewhere, made safe for a terminal and for a log of one line per event."""

from __future__ import annotations

import re

_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
"""Colours, cursor movements and window titles (ECMA-48 CSI and OSC sequences)."""

_MAX_LINE = 10_000
"""Characters of one line that are shown."""


def plain_line(text: str) -> str:
    """``text`` as one line: without escape sequences, other control characters visible."""
    if len(text) > _MAX_LINE:
        text = f"{text[:_MAX_LINE]} … ({len(text) - _MAX_LINE:,} more characters)"
    if text.isprintable():
        return text
    text = _ESCAPE_SEQUENCE.sub("", text.expandtabs())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def plain_lines(text: str) -> list[str]:
    """The lines of ``text``, each as `plain_line` shows it."""
    return [plain_line(line) for line in text.split("\n")]


def duration(seconds: float) -> str:
    """``0.12 s``, ``12.3 s``, ``2 min 05 s`` or ``1 h 02 min``."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def count(number: int, thing: str) -> str:
    """``1 item``, ``1,200 items``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
