"""What the cancel sweep asks of trio's scheduler; the only module that reads trio's private parts."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from trio._core import _run  # pyright: ignore[reportPrivateUsage]: there is no public way to ask what follows

_TRIO = str(Path(trio.__file__).parent)


@contextmanager
def scheduler_order(seed: int) -> Generator[None]:
    """The order in which runnable tasks take their steps follows from ``seed`` alone.

    The two names are those that trio's own Hypothesis plugin sets, for the same purpose.
    """
    scheduler: Any = _run
    before, state = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()  # noqa: SLF001 — see above
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001 — see above
    scheduler._r.seed(seed)  # noqa: SLF001 — see above
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before  # noqa: SLF001 — see above
        scheduler._r.setstate(state)  # noqa: SLF001 — see above


def is_thrown_cancelled(task: Any) -> bool:
    """Whether the step that ``task`` is about to take begins with ``Cancelled``."""
    return isinstance(getattr(task._next_send, "error", None), trio.Cancelled)  # noqa: SLF001 — as said on top


def reaches(scope: trio.CancelScope, task: Any) -> bool:
    """Whether a cancellation of ``scope`` reaches what ``task`` is doing: nothing between them shields."""
    status = task._cancel_status  # noqa: SLF001 — as said on top
    while status is not None and status._scope is not scope:  # noqa: SLF001 — as said on top
        if status._scope.shield:  # noqa: SLF001 — as said on top
            return False
        status = status._parent  # noqa: SLF001 — as said on top
    return status is not None


def all_tasks() -> set[trio.lowlevel.Task]:
    """Every task of this run, system tasks included."""
    return {task for task, _ in _walk()}


def task_tree() -> str:
    """Every task of this run with the place where it is, children under their parents."""
    return "\n".join(f"{'  ' * depth}{task.name} at {place_of(task)}" for task, depth in _walk())


def place_of(task: trio.lowlevel.Task) -> str:
    """Where a task is: the innermost line that is not trio's own."""
    place = "its beginning"
    for frame, line in task.iter_await_frames():
        path = frame.f_code.co_filename
        if not path.startswith(_TRIO):
            place = f"{path}:{line}"
    return place


def _walk() -> Iterator[tuple[trio.lowlevel.Task, int]]:
    root = trio.lowlevel.current_root_task()
    waiting = [] if root is None else [(root, 0)]
    while waiting:
        task, depth = waiting.pop()
        yield task, depth
        for nursery in task.child_nurseries:
            waiting += [(child, depth + 1) for child in nursery.child_tasks]
