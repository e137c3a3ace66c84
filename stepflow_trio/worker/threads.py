"""Places for the threads that plain components run in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar, cast

import trio

from stepflow_trio.errors import ErrorCode, RpcError

MAX_THREADS = 40
"""Components in plain functions that run at once: as many as trio's own pool, for most of them wait for
something. One that waits for the runtime is not counted meanwhile."""

MAX_WAITING_THREADS = 1_000
"""Threads beyond those, of components that wait for the runtime. What they wait for may need a thread
itself: where there are so many, another one is refused, for waiting could be for ever."""

RETRY_AFTER_S = 1.0
"""The hint that goes with the refusal."""

ResultT = TypeVar("ResultT")


async def call_in_thread(call: Callable[[], ResultT], place: ThreadPlace) -> ResultT:
    """Call it in a thread that has this place.

    A thread cannot be cancelled. It is left behind with its result ignored, and has its place until it ends.

    Raises:
        RpcError: −32304, there can be no further thread.
    """
    has_begun = False

    def in_thread() -> ResultT:
        nonlocal has_begun
        has_begun = True
        return call()

    try:
        limiter = cast("trio.CapacityLimiter", place)  # documented to do: it has the two methods that count
        return await trio.to_thread.run_sync(in_thread, limiter=limiter, abandon_on_cancel=True)
    except RuntimeError as exc:
        if has_begun:
            raise
        raise _no_thread(f"The system starts no further thread for this worker: {exc}") from exc


def _no_thread(message: str) -> RpcError:
    return RpcError(ErrorCode.OVERLOADED, message, {"retry_after_s": RETRY_AFTER_S})


class ThreadPool:
    """Who may have a thread, and who of those with one may run. It is used by one event loop at a time.

    Args:
        max_running: threads that run at once. :data:`MAX_WAITING_THREADS` more may wait for the runtime.
    """

    def __init__(self, max_running: int) -> None:
        if max_running < 1:
            raise ValueError(f"max_threads must be at least 1, not {max_running}")
        self._max_running = max_running
        self._max_threads = max_running + MAX_WAITING_THREADS
        self._threads = 0
        self._running = 0
        self._newcomers = trio.lowlevel.ParkingLot()
        self._returners = trio.lowlevel.ParkingLot()

    @property
    def threads(self) -> int:
        """How many there are, also those whose execution was given up."""
        return self._threads

    @property
    def running(self) -> int:
        """How many of them do not wait for the runtime."""
        return self._running

    async def begin(self) -> None:
        """Wait until another thread may be started; it runs.

        Raises:
            RpcError: −32304, there are as many as there may be.
        """
        await self._wait_to_run(self._newcomers)
        if self._threads >= self._max_threads:
            self.pause()
            raise _no_thread(f"All {self._threads} threads of this worker are taken by components that wait")
        self._threads += 1

    def end(self, *, is_running: bool) -> None:
        """A thread has ended."""
        self._threads -= 1
        if is_running:
            self.pause()

    def pause(self) -> None:
        """A thread no longer runs: another may."""
        self._running -= 1
        if self._running < self._max_running:
            # Who has a thread goes first: so what was begun is finished, and threads stay few.
            for _ in (self._returners if self._returners else self._newcomers).unpark():
                self._running += 1

    async def resume(self) -> None:
        """Wait until a thread that was paused may run again. Cancelled, it runs at once."""
        try:
            await self._wait_to_run(self._returners)
        except BaseException:
            self._running += 1  # for nobody keeps it from running: it is counted, if over the bound
            raise

    async def _wait_to_run(self, lot: trio.lowlevel.ParkingLot) -> None:
        if self._running < self._max_running:
            self._running += 1
        else:
            await lot.park()  # whoever wakes it has counted it

    def __repr__(self) -> str:
        return f"<ThreadPool: {self._threads} threads, {self._running} of {self._max_running} running>"


class ThreadPlace:
    """One execution's place in the pool: the ``limiter`` of its ``trio.to_thread.run_sync``.

    It is given back while the component waits for the runtime, in one callback or in several, which threads
    of its own make. At the end it goes back when the thread ends, however long the execution is over.
    """

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._is_held = False
        self._has_ended = False
        self._is_returning = False
        self._returned = trio.lowlevel.ParkingLot()
        self._callbacks: set[trio.CancelScope] = set()

    async def acquire_on_behalf_of(self, _borrower: object) -> None:
        """Wait for a place; raises what :meth:`ThreadPool.begin` does."""
        await self._pool.begin()
        self._is_held = True

    def release_on_behalf_of(self, _borrower: object) -> None:
        """The thread has ended."""
        self._has_ended = True
        self._pool.end(is_running=self._is_held)
        self._is_held = False

    @asynccontextmanager
    async def given_back(self) -> AsyncGenerator[trio.CancelScope]:
        """Around a callback. It is left with the place, or at once when it is cancelled."""
        with trio.CancelScope() as scope:
            self._callbacks.add(scope)
            if self._is_held:
                self._is_held = False
                self._pool.pause()
            try:
                yield scope
            finally:
                self._callbacks.discard(scope)
                if self._is_needed:
                    await self._take_back()

    def cancel_callbacks(self) -> None:
        """The execution is over: trio runs a thread's callbacks in tasks of their own, which end now."""
        for scope in self._callbacks:
            scope.cancel(reason="the execution is over")

    @property
    def _is_needed(self) -> bool:
        return not (self._is_held or self._callbacks or self._has_ended)

    async def _take_back(self) -> None:
        if self._is_returning:  # another callback of this thread waits for the same place
            await self._returned.park()
            return
        self._is_returning = True
        try:
            await self._pool.resume()
        finally:
            self._is_returning = False
            self._returned.unpark_all()
            if self._is_needed:
                self._is_held = True
            else:  # while this waited, the thread ended or another callback began
                self._pool.pause()
