"""Reading and writing flows without holding up what else the runtime does, however large they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import trio

MANY_STEPS = 1000
"""A flow of fewer is read in some ten milliseconds."""

ResultT = TypeVar("ResultT")


async def beside_the_loop(flow: Any, work: Callable[[], ResultT]) -> ResultT:
    """What ``work`` returns: in a thread where ``flow``, read or as JSON, has many steps, else at once.

    Cancelled, it leaves the thread to itself, so ``work`` must change nothing. Without many steps this is no
    checkpoint.
    """
    is_json = isinstance(flow, dict)
    steps: object = cast("dict[str, Any]", flow).get("steps") if is_json else getattr(flow, "steps", ())
    if isinstance(steps, (list, tuple)) and len(cast("list[Any]", steps)) >= MANY_STEPS:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)
    return work()
