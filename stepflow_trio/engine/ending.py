"""How things end: last words under a deadline, and one exception out of a nursery."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

import trio


async def last_words(act: Callable[[], Awaitable[object]], *, within_s: float) -> bool:
    """Do one thing although this task may be cancelled. False if it was not done within ``within_s``.

    The only place in the package that shields from cancellation, so that every shield has a deadline.
    """
    with trio.CancelScope(shield=True, deadline=trio.current_time() + within_s) as scope:
        await act()
    return not scope.cancelled_caught


@contextmanager
def one_exception() -> Generator[None]:
    """Around a nursery: a group of one, cancellations aside, comes out as that one.

    Only the group that the nursery itself makes is opened; a group that the code inside raised stays one.
    An exception ends the block as well as ``Cancelled`` does, so nothing goes on that was cancelled.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        failures = [exc for exc in group.exceptions if not isinstance(exc, trio.Cancelled)]
        if len(failures) > 1:
            raise
        only = (failures or group.exceptions)[0]
        context = only.__context__
        try:
            raise only
        finally:
            # `raise` has just recorded the group as the context of what the group contained.
            only.__context__ = context
            del only, failures, group
