"""Environment variables in the texts of a configuration (docs/protocol.md, section 3).

================== ==================================================================================
``$VAR``           its value
``${VAR}``         likewise
``${VAR:text}``    its value, or ``text`` where it is not set
``${VAR:-text}``   its value, or ``text`` where it is not set or empty, as in a shell
``$$``             a dollar sign
================== ==================================================================================

A default may hold braces in pairs, and variables of its own. A backslash is a backslash. What the values
of variables hold is not looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["UnsetVariable", "substitute"]

_TOKEN = re.compile(
    r"""
      (?P<dollar> \$\$ )
    | \$\{ (?P<braced> [A-Za-z_][A-Za-z0-9_]* ) (?P<then> :-? | \} )
    | \$ (?P<bare> [A-Za-z_][A-Za-z0-9_]* )
    | (?P<brace> [{}] )
    | (?P<stray> \$ )
    """,
    re.VERBOSE,
)
_UNCLOSED = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\Z")


class UnsetVariable(ValueError):
    """The variable ``name`` is not set, and the text gives no default for it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"the environment variable {self.name} is not set: set it, or give a default as in "
            f"${{{self.name}:-default}}; a dollar sign itself is written $$"
        )


@dataclass(slots=True)
class _Default:
    """A default that is being read, up to the brace that closes it."""

    opened_at: int
    value: str | None
    """The variable's value; None: the default takes its place."""
    is_used: bool
    """Whether the default ends up in the result, so that what it names must be set."""
    before: list[str]
    """What the text in front of the variable came to."""
    open_braces: int = 0


def substitute(text: str, environ: Mapping[str, str]) -> str:
    """``text`` with its variables replaced; one without a dollar sign comes back unchanged.

    No message quotes more of the text than a variable's name: the rest may be a secret.

    Raises:
        UnsetVariable: a variable is not set and has no default, and does not stand in a default that is not
            used itself.
        ValueError: a dollar sign is not written as above; with its offset and what to write instead.
    """
    parts: list[str] = []
    defaults: list[_Default] = []
    end = 0
    for token in _TOKEN.finditer(text):
        parts.append(text[end : token.start()])
        end = token.end()
        is_used = not defaults or defaults[-1].is_used
        if token["brace"] and defaults:
            default = defaults[-1]
            if token["brace"] == "{":
                default.open_braces += 1
            elif default.open_braces:
                default.open_braces -= 1
            else:
                defaults.pop()
                came_to = "".join(parts) if default.value is None else default.value
                parts = default.before
                parts.append(came_to)
                continue
            parts.append(token["brace"])
        elif token["brace"]:
            parts.append(token["brace"])
        elif token["dollar"]:
            parts.append("$")
        elif token["stray"]:
            raise ValueError(_fault(text, token.start()))
        elif token["then"] in (":", ":-"):
            value = environ.get(token["braced"])
            if value == "" and token["then"] == ":-":
                value = None
            defaults.append(_Default(token.start(), value, is_used and value is None, parts))
            parts = []
        else:
            name = token["bare"] or token["braced"]
            value = environ.get(name)
            if value is None and is_used:
                raise UnsetVariable(name)
            parts.append(value or "")
    if defaults:
        raise ValueError(_never_closed(defaults[-1].opened_at))
    parts.append(text[end:])
    return "".join(parts)


def _fault(text: str, at: int) -> str:
    if _UNCLOSED.match(text, at):
        return _never_closed(at)
    if text.startswith("${", at):
        return (
            f"at offset {at}: `${{` takes the name of a variable, then `}}` or `:`, as in ${{HOME}} or "
            "${PORT:-8080}; a dollar sign itself is written $$"
        )
    return f"at offset {at}: no variable's name follows the dollar sign; a dollar sign itself is written $$"


def _never_closed(at: int) -> str:
    return f"at offset {at}: the `${{` that starts here is never closed: add a `}}`"
