"""What ends a worker's processes where this process is killed and cannot do so itself.

A worker over stdio sees its stdin's end. One over HTTP has nothing of the kind, and may be written in any
language. So a shell waits beside it, in a session of its own, for the end of a pipe that this process holds
open as long as it lives, and then ends the worker's process group. The kernel's parent-death signal would not
do: it comes when the *thread* ends that started the worker, and reaches only the first process of a group.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager, suppress

import trio

from stepflow_trio.engine.ending import last_words

SHELL = "/bin/sh"
"""POSIX says that it is there; it is ready in a millisecond."""

_SCRIPT = """
read -r group || exit 0
read -r _
kill -s TERM -- "-$group" || exit 0
for _ in 1 2 3; do
    sleep 1
    kill -s 0 -- "-$group" || exit 0
done
kill -s KILL -- "-$group"
"""

REAP_WAIT_S = 1.0
"""A killed shell is gone in milliseconds. One that the kernel holds on to is not waited for longer."""

_log = logging.getLogger("stepflow_trio.transports")


class OrphanGuard:
    """Ends a process group when this process dies; :func:`open_orphan_guard` makes it."""

    def __init__(self, lifeline: int | None) -> None:
        self._lifeline = lifeline

    def watch(self, group: int) -> None:
        """End this group of processes (SIGTERM, SIGKILL three seconds later) should this process die.

        May be called once. Does not block.
        """
        if self._lifeline is not None:
            # BrokenPipeError: somebody has killed the shell.
            with suppress(BrokenPipeError):
                os.write(self._lifeline, b"%d\n" % group)


@asynccontextmanager
async def open_orphan_guard() -> AsyncGenerator[OrphanGuard]:
    """Have a guard for as long as the block lasts; left in whichever way, the guard ends no one any more.

    Where there is no shell, the block goes on without a guard, and the log says so.
    """
    with ExitStack() as closing:
        guard, shell = await _start(closing)
        try:
            yield guard
        finally:
            if shell is not None:
                # Before the lifeline is closed, for that would be its signal.
                shell.kill()
                await last_words(shell.wait, within_s=REAP_WAIT_S)


async def _start(closing: ExitStack) -> tuple[OrphanGuard, trio.Process | None]:
    try:
        reader, lifeline = os.pipe()
        closing.callback(os.close, lifeline)
        try:
            shell = await trio.lowlevel.open_process(
                [SHELL, "-c", _SCRIPT],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", os.defpath)},
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(reader)
    except OSError as exc:
        _log.warning("a worker would outlive this process if that were killed: %s: %s", SHELL, exc)
        return OrphanGuard(None), None
    return OrphanGuard(lifeline), shell
