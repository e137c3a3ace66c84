"""A worker that a plugin is made of: started when it is first needed, and again when it has died or hangs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeAlias, TypeVar

import trio

from stepflow_trio.engine import Link
from stepflow_trio.errors import (
    CallTimeout,
    ConnectionLost,
    LossReason,
    StepflowError,
)
from stepflow_trio.protocol import methods
from stepflow_trio.protocol.messages import RequestId
from stepflow_trio.runtime.events import STOPPED, Observer, WorkerEnded, WorkerStarted
from stepflow_trio.runtime.plugins import StepFailure
from stepflow_trio.runtime.worker_failures import WorkerFailures, is_local_lack

__all__ = ["HostedWorker", "Launcher", "Session", "Started"]

LIST_TIMEOUT_S = 30.0
"""A worker that has not said by then what it offers is not waited for."""

CANCEL_GRACE_S = 5.0
"""A worker that has not ended a cancelled execution by then is replaced by a new one."""

STALLED_FRAME_S = 30.0
"""A worker that sends nothing for so long in the middle of a message has lost the rest of it: it is replaced.
As long as the engine waits by default for a worker that takes nothing."""

_log = logging.getLogger("stepflow_trio.runtime")


class Started(Protocol):
    """A worker that runs, before anything was said."""

    @property
    def link(self) -> Link:
        """The way to it."""
        ...

    @property
    def pid(self) -> int | None:
        """Its process, if that was started here for it alone."""
        ...

    @property
    def unfinished_bytes(self) -> int:
        """How much of a message it has sent whose end has not come."""
        ...

    @property
    def is_suspect(self) -> bool:
        """Whether new calls should go to a new start, though the connection is not lost: the worker could not
        be reached over it, or is another one by now."""
        ...

    async def wait_ended(self) -> ConnectionLost:
        """Wait until it has ended in a way that its link does not tell; for ever where that tells all."""
        ...

    async def explain(self, loss: ConnectionLost) -> ConnectionLost:
        """Why its connection was lost, or a call in it, as exactly as can be known."""
        ...


Launcher: TypeAlias = Callable[[], AbstractAsyncContextManager[Started]]
"""Starts or finds a worker for as long as the block lasts; what was started ends on the way out.

Entering raises a :class:`StepflowError` where it cannot be used: :class:`SpawnFailed` where it could not be
started, :class:`ConnectionLost` where it is not to be reached.
"""


class Session(Protocol):
    """What is said over the link of one start of a worker, as far as its host has to know."""

    @property
    def loss(self) -> ConnectionLost | None:
        """Why it is over; None while it is not."""
        ...

    @property
    def abandoned_calls(self) -> frozenset[RequestId]:
        """The calls that were given up after they were sent, and of which it is not known that they ended."""
        ...

    @property
    def frames_received(self) -> int:
        """How many messages have come."""
        ...

    @property
    def divides_codes(self) -> bool:
        """Whether the code of an answer says who may try again; asked once it is introduced."""
        ...

    async def introduce(self) -> None:
        """Say who both are; must come first.

        Raises:
            StepflowError: nothing can be asked of this worker, and why.
        """
        ...

    async def probe(self) -> None:
        """Ask anything, and wait for the answer, which may be an error.

        Raises:
            ConnectionLost: it does not answer any more.
            StepflowError: it has answered.
        """
        ...

    def lose(self, reason: LossReason, detail: str) -> None:
        """End it. The first reason counts."""
        ...

    async def wait_lost(self) -> ConnectionLost:
        """Wait until it is over; return why."""
        ...


SessionT = TypeVar("SessionT", bound=Session)
ResultT = TypeVar("ResultT")


@dataclass(eq=False)
class _Start(Generic[SessionT]):
    """One start of the worker."""

    outcome: trio.Event = field(default_factory=trio.Event)
    """Set when it is ready or could not be."""
    started: Started | None = None
    session: SessionT | None = None
    """Set once it is ready."""
    failure: StepflowError | None = None
    live_calls: int = 0
    stop: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    retired: bool = False
    watched: frozenset[RequestId] = frozenset()

    @property
    def is_usable(self) -> bool:
        """Whether a new call may go to it, or wait for it to be ready."""
        if self.retired or self.failure is not None:
            return False
        if self.started is not None and self.started.is_suspect:
            return False
        return self.session is None or self.session.loss is None

    @property
    def is_elsewhere(self) -> bool:
        """Whether it was found, and not started here as a process."""
        return self.started is not None and self.started.pid is None


class HostedWorker(Generic[SessionT]):
    """Has a worker that calls can be made to, as long as ``nursery`` is open.

    Args:
        launcher: how to start or find the worker.
        open_session: what is said with one that was started; nothing is said before it is introduced.
        failures: what errors are to steps.
        nursery: where the worker's tasks live.
        observe: told when workers start and end.
        connect_timeout_s: a worker that is not introduced by then is given up.
    """

    def __init__(
        self,
        launcher: Launcher,
        open_session: Callable[[Started], AbstractAsyncContextManager[SessionT]],
        failures: WorkerFailures,
        *,
        nursery: trio.Nursery,
        observe: Observer,
        connect_timeout_s: float,
    ) -> None:
        self._launcher = launcher
        self._open_session = open_session
        self._failures = failures
        self._nursery = nursery
        self._observe = observe
        self._connect_timeout_s = connect_timeout_s
        self._current_start: _Start[SessionT] | None = None
        self.problem: str | None = None
        """Why the worker could not be started the last time that it was tried."""

    def start(self) -> None:
        """Start the worker now, unless it runs, so that it is ready when it is needed. Waits for nothing."""
        self._current()

    def stop(self) -> None:
        """End the worker in order; :meth:`_host` does it. No call may follow. Waits for nothing."""
        if self._current_start is not None:
            self._current_start.stop.set()
            if self._current_start.session is None:
                self._current_start.scope.cancel(reason="the worker is to stop before it was ready")

    @property
    def is_ready(self) -> bool:
        """Whether a call can be sent without waiting for the worker to start."""
        start = self._current_start
        return start is not None and start.session is not None and start.is_usable

    async def call(self, ask: Callable[[SessionT], Awaitable[ResultT]]) -> ResultT:
        """Make the worker ready unless it is, and return what ``ask`` does.

        Raises:
            StepFailure: it could not be made ready, and ``ask`` was not called; or for what ``ask`` raised.
        """
        start = self._current()
        # Counted before the first wait: a worker that is given up meanwhile stays for whoever is on the way.
        start.live_calls += 1
        try:
            if not start.outcome.is_set():
                await start.outcome.wait()
            if start.session is None:
                closing = ConnectionLost(LossReason.LOCAL_CLOSE, "the runtime is shutting down")
                failure = start.failure or closing
                # Not raised itself: its traceback would grow with everybody who has waited.
                raise await self._failure(failure, start) from failure
            try:
                return await ask(start.session)
            except StepflowError as exc:
                if isinstance(exc, ConnectionLost) and not is_local_lack(exc) and start.is_elsewhere:
                    # Whoever answers at a URL next may have to be told anew what was agreed on.
                    start.retired = True
                raise await self._failure(exc, start) from exc
        finally:
            start.live_calls -= 1
            if start.session is not None:
                self._look_after(start, start.session)

    async def _failure(self, exc: StepflowError, start: _Start[SessionT]) -> StepFailure:
        if isinstance(exc, ConnectionLost) and start.started is not None:
            exc = await start.started.explain(exc)
        if start.session is None:
            return self._failures.before_ready(exc)
        return self._failures.of_call(exc, divides_codes=start.session.divides_codes)

    # ---- starting -----------------------------------------------------------------------------------

    def _current(self) -> _Start[SessionT]:
        start = self._current_start
        if start is None or not start.is_usable:
            if start is not None:
                self._retire(start)
            start = self._current_start = _Start[SessionT]()
            self._nursery.start_soon(self._host, start, name=self._failures.title)
        return start

    def _retire(self, start: _Start[SessionT]) -> None:
        """Send it nothing new, and stop it as soon as what was sent is answered."""
        start.retired = True
        if not start.live_calls:
            start.stop.set()

    async def _host(self, start: _Start[SessionT]) -> None:
        """Own one start of the worker, from spawning to reaping."""
        detail = STOPPED
        try:
            with start.scope:
                async with self._launcher() as started, self._open_session(started) as session:
                    start.started = started
                    try:
                        await self._introduce(session)
                    except StepflowError as exc:
                        # Told at once: ending a worker that would not start can take a while.
                        failure = await started.explain(exc) if isinstance(exc, ConnectionLost) else exc
                        start.failure = failure
                        self.problem = str(failure)
                        start.outcome.set()
                        if failure is exc:
                            raise
                        raise failure from exc
                    start.session = session
                    start.outcome.set()
                    self.problem = None
                    self._observe(WorkerStarted(plugin=self._failures.plugin, pid=started.pid))
                    await _until_lost_or(start.stop, started, session)
                    if session.loss is not None:
                        detail = str(await started.explain(session.loss))
        except StepflowError as exc:
            detail = self.problem = str(exc)
            start.failure = exc
        except Exception as exc:  # noqa: BLE001 — whatever it is, it costs this worker and not the runtime
            _log.error("%s failed", self._failures.title, exc_info=exc)
            detail = self.problem = f"{type(exc).__name__}: {exc}"
            start.failure = ConnectionLost(LossReason.STREAM_ERROR, detail)
        finally:
            start.outcome.set()
            self._observe(WorkerEnded(plugin=self._failures.plugin, detail=detail))

    async def _introduce(self, session: SessionT) -> None:
        with trio.move_on_after(self._connect_timeout_s):
            await session.introduce()
            return
        raise CallTimeout(methods.INITIALIZE, self._connect_timeout_s)

    # ---- ending -------------------------------------------------------------------------------------

    def _look_after(self, start: _Start[SessionT], session: SessionT) -> None:
        """After every call: watch cancelled executions, and stop a worker that nobody needs any more."""
        unwatched = session.abandoned_calls - start.watched
        if unwatched and session.loss is None:
            start.watched |= unwatched
            self._nursery.start_soon(self._expect_end, start, session, unwatched)
        if start.retired and not start.live_calls:
            start.stop.set()

    async def _expect_end(
        self, start: _Start[SessionT], session: SessionT, calls: frozenset[RequestId]
    ) -> None:
        """Give the worker its grace to end cancelled executions; then give the worker up."""
        answers = False
        with trio.move_on_after(CANCEL_GRACE_S):
            with trio.move_on_after(CANCEL_GRACE_S / 10):
                await session.wait_lost()
            if session.loss is None and calls & session.abandoned_calls:
                # Is it only this component, or the whole worker that is stuck? Any answer will tell.
                with contextlib.suppress(StepflowError):
                    await session.probe()
                answers = True
            await session.wait_lost()
        start.watched -= calls
        if session.loss is not None or not calls & session.abandoned_calls:
            return
        start.retired = True
        if answers:
            # Others may be at work in it: they finish there, and new calls go to a new worker.
            self._look_after(start, session)
        else:
            detail = f"it answers nothing, {CANCEL_GRACE_S:g} s after an execution in it was cancelled"
            session.lose(LossReason.IDLE_TIMEOUT, detail)

    def __repr__(self) -> str:
        start = self._current_start
        if start is None:
            state = "not started"
        elif start.session is None:
            state = "starting" if start.failure is None else repr(start.failure)
        else:
            state = "running" if start.session.loss is None else repr(start.session.loss)
        return f"<{self._failures.title}: {state}>"


async def _until_lost_or(stop: trio.Event, started: Started, session: Session) -> None:
    async with trio.open_nursery() as nursery:

        async def end_on_stop() -> None:
            await stop.wait()
            nursery.cancel_scope.cancel(reason="the worker is to stop")

        async def lose_at_end() -> None:
            loss = await started.wait_ended()
            session.lose(loss.reason, loss.detail)

        nursery.start_soon(end_on_stop)
        nursery.start_soon(lose_at_end)
        if started.pid is not None and started.link.kind == "stdio":
            nursery.start_soon(_lose_when_stalled, started, session)
        await session.wait_lost()
        nursery.cancel_scope.cancel(reason="the connection is lost")


async def _lose_when_stalled(started: Started, session: Session) -> None:
    """Public workers cut messages off. Who waits for what was in one would wait for ever."""
    seen: tuple[int, int] | None = None
    while True:
        await trio.sleep(STALLED_FRAME_S)
        now = started.unfinished_bytes, session.frames_received
        if now == seen and started.unfinished_bytes:
            detail = f"it has sent nothing for {STALLED_FRAME_S:g} s, {now[0]:,} bytes into a message"
            session.lose(LossReason.PROTOCOL_VIOLATION, detail)
            return
        seen = now
