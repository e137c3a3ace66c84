"""How deep and how large a value may become that a flow puts together.

A value of a flow shares its parts with the values that it was made of. So one that is built from itself again
and again takes little memory until somebody writes it as JSON, or walks down into it: by then it is too late.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from stepflow_trio.flows.expressions import ArrayOf, Coalesce, Expression, If, ObjectOf, VariableRef
from stepflow_trio.protocol.codec import MAX_NESTING
from stepflow_trio.protocol.lines import MAX_FRAME_BYTES

__all__ = ["excess_of", "puts_together"]


def puts_together(expression: Expression) -> bool:
    """Whether an expression may come to a value that is deeper or larger than those it refers to."""
    match expression:
        case ArrayOf() | ObjectOf():
            return True
        case If(then=then, otherwise=otherwise):
            return puts_together(then) or (otherwise is not None and puts_together(otherwise))
        case Coalesce(items=items):
            return any(map(puts_together, items))
        case VariableRef(default=default):
            return default is not None and puts_together(default)
        case _:
            return False


def excess_of(value: Any) -> str | None:
    """What no message could carry of a value: "it nests deeper than …", "it is larger than …"; else None.

    It takes time in proportion to the parts that are there, each counted once however often it is shared,
    and no recursion. The size is that of the JSON text, or somewhat less.
    """
    if not isinstance(value, (dict, list)):
        return None
    known: dict[int, tuple[int, int]] = {}
    pending: list[dict[str, Any] | list[Any]] = [value]
    while pending:
        part = pending[-1]
        nesting, size = 0, 2
        is_known = True
        members: Iterable[Any] = part.values() if isinstance(part, dict) else part
        for member in members:
            if isinstance(member, (dict, list)):
                inner = cast("dict[str, Any] | list[Any]", member)
                measured = known.get(id(inner))
                if measured is None:
                    is_known = False
                    pending.append(inner)
                else:
                    nesting = max(nesting, measured[0])
                    size += measured[1]
            elif isinstance(member, str):
                size += len(member)
        if not is_known:
            continue
        pending.pop()
        if isinstance(part, dict):
            size += sum(map(len, part))
        nesting, size = nesting + 1, size + 2 * len(part)
        if nesting > MAX_NESTING:
            return f"it nests deeper than {MAX_NESTING} levels"
        if size > MAX_FRAME_BYTES:
            return f"it is larger than {MAX_FRAME_BYTES:,} bytes"
        known[id(part)] = nesting, size
    return None
