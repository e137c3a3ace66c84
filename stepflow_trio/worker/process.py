"""A process whose main job is a worker: the signals that end it, and the descriptors that it may open."""

from __future__ import annotations

import os
import resource
import select
import signal
import threading
import time
from collections.abc import AsyncIterator, Generator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

import trio

from stepflow_trio.engine.ending import one_exception
from stepflow_trio.transports.stdio import end_process

if TYPE_CHECKING:  # not what a stdio worker waits for
    from stepflow_trio.transports.http.hosting import HttpHost

BLOCKED_GRACE_S = 5.0
"""A process that has not ended so long after it should have is blocked, and ends by force."""

MAX_DESCRIPTORS = 65_536
"""The soft limit is raised so far, where the hard one allows it: each connection takes one."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve_until_signal(http: AbstractAsyncContextManager[HttpHost], drain_s: float) -> None:
    """Serve as the main job of this process until SIGTERM or SIGINT ends it; see `Worker.run_http`.

    Args:
        http: opens the server.
        drain_s: how long it lets what is in flight finish.

    Raises:
        ConfigError, BindFailed: it cannot be opened.
    """
    stop = trio.Event()
    with ending_signals(drain_s) as signals, one_exception():
        async with trio.open_nursery() as nursery:

            async def heed_signals() -> None:
                async for signum in signals:
                    if stop.is_set() and signum == signal.SIGINT:
                        nursery.cancel_scope.cancel(reason="a second signal will not wait")
                    stop.set()

            nursery.start_soon(heed_signals)
            async with http as host:
                _tell_port(host.port)
                await stop.wait()
            nursery.cancel_scope.cancel(reason="all that was in flight has ended")


def _tell_port(port: int) -> None:
    """Print the line that a runtime waits for, and nothing after it."""
    os.write(1, b'{"port": %d}\n' % port)
    os.dup(1)  # kept open: a runtime that sees its end may stop reading stderr as well, which then fills
    os.dup2(2, 1)


@contextmanager
def ending_signals(drain_s: float) -> Generator[AsyncIterator[int]]:
    """Receive SIGTERM and SIGINT as :func:`trio.open_signal_receiver` does.

    Should the block last ``drain_s + BLOCKED_GRACE_S`` longer than the first of them, or ``BLOCKED_GRACE_S``
    longer than a second SIGINT, the process is ended (``os._exit``, 128 + the signal's number): then a
    component blocks the event loop.
    """
    noted, note = os.pipe()
    guard = threading.Thread(target=_guard_end, args=(noted, drain_s), name="signal guard", daemon=True)
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        trios = signal.getsignal(signal.SIGTERM)

        def note_signal(signum: int, frame: FrameType | None) -> None:
            # It runs also where the event loop does not.
            os.write(note, bytes([signum]))
            if callable(trios):
                trios(signum, frame)

        guard.start()
        for signum in _SIGNALS:
            signal.signal(signum, note_signal)
        try:
            yield signals
        finally:
            for signum in _SIGNALS:
                signal.signal(signum, trios)
            os.write(note, b"\0")
            guard.join()
            os.close(note)
            os.close(noted)


def _guard_end(noted: int, drain_s: float) -> None:
    """In a thread of its own: the event loop may be what does not run any more."""
    watch = select.poll()
    watch.register(noted, select.POLLIN)
    signum, grace_s, deadline = 0, 0.0, float("inf")
    while watch.poll(None if not signum else max(0.0, deadline - time.monotonic()) * 1000):
        came = os.read(noted, 1)[0]
        if not came:
            return
        if not signum or came == signal.SIGINT:
            grace = BLOCKED_GRACE_S + (0 if signum else drain_s)
            if time.monotonic() + grace < deadline:
                signum, grace_s, deadline = came, grace, time.monotonic() + grace
    name = signal.Signals(signum).name
    why = f"the worker has not ended {grace_s:g} s after {name}: a component blocks the event loop; exiting"
    end_process(why, 128 + signum)


def allow_many_descriptors() -> None:
    """Raise the soft limit of open descriptors towards the hard one, to ``MAX_DESCRIPTORS`` at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # some systems have a lower bound, which they do not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
