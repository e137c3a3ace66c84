"""What signals do: end the process at once while it has nothing to clean up, else cancel the main task."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TypeVar

ResultT = TypeVar("ResultT")

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A signal ended the command; everything it had started is gone."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_on_signals() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP end this process at once, with code 128 + signal.

    A signal that is ignored stays ignored, as ``nohup`` and a shell's background jobs want it.
    """
    for number in heeded_signals():
        signal.signal(number, _exit_at_once)


def run_until_signal(
    main: Callable[[], Awaitable[ResultT]], *, on_signal: Callable[[int], object] = lambda number: None
) -> ResultT:
    """Run ``main`` on trio; the first signal is told to ``on_signal`` and cancels it.

    Further signals are kept until ``main`` has cleaned up, which it does within bounds of its own.

    Raises:
        Interrupted: a signal came, whatever ``main`` made of its cancellation.
    """
    import trio

    from stepflow_trio.engine.ending import one_exception

    arrived: list[int] = []
    results: list[ResultT] = []

    async def supervise() -> None:
        with trio.open_signal_receiver(*heeded_signals()) as signals:
            try:
                with one_exception():
                    async with trio.open_nursery() as nursery:

                        async def cancel_on_signal() -> None:
                            async for number in signals:
                                arrived.append(number)
                                on_signal(number)
                                nursery.cancel_scope.cancel(reason=f"signal {number}")
                                return

                        nursery.start_soon(cancel_on_signal)
                        results.append(await main())
                        nursery.cancel_scope.cancel(reason="the command is done")
            except Exception as exc:
                if arrived:
                    raise Interrupted(arrived[0]) from exc
                raise
        if arrived:
            raise Interrupted(arrived[0])

    trio.run(supervise)
    return results[0]


def heeded_signals() -> list[signal.Signals]:
    """SIGHUP, SIGINT and SIGTERM, but for those that this process was told to ignore."""
    return [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    # An exception could be raised, and lost, anywhere: in an import, a callback, a finalizer.
    os._exit(128 + number)
