"""A plugin that is a Stepflow worker: its process or task, its connection, its restarts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import trio
from msgspec import UNSET, UnsetType

from stepflow_trio.engine import Connection, Handlers, Limits, Link, open_connection
from stepflow_trio.errors import (
    CallFailed,
    CallTimeout,
    ConnectionLost,
    ErrorCode,
    LossReason,
    Overloaded,
    RemoteProtocolError,
    SpawnFailed,
    StepflowError,
    WorkerExited,
)
from stepflow_trio.flows.results import FlowError
from stepflow_trio.protocol import dialects, methods
from stepflow_trio.protocol.dialects import Dialect, Welcome
from stepflow_trio.protocol.payloads import ComponentInfo, ExecuteParams, ListParams, Observability
from stepflow_trio.protocol.peer import Role
from stepflow_trio.runtime.events import Observer, WorkerEnded, WorkerStarted
from stepflow_trio.runtime.plugins import FailureKind, StepFailure, kind_of_code

ResultT = TypeVar("ResultT")

_log = logging.getLogger("stepflow_trio.runtime")

START_TIMEOUT_S = 30.0
"""A worker that has not answered ``initialize`` by then is given up. Upstream waits as long for its port."""

CANCEL_GRACE_S = 5.0
"""A worker that has not ended a cancelled execution by then is replaced by a new one."""


STALLED_FRAME_S = 30.0
"""A worker that sends nothing for so long in the middle of a message has lost the rest of it: it is replaced.
As long as the engine waits by default for a worker that takes nothing."""


class Started(Protocol):
    """A worker that runs, before anything was said."""

    @property
    def link(self) -> Link:
        """The way to it."""
        ...

    @property
    def pid(self) -> int | None:
        """Its process; None: it is in this one."""
        ...

    @property
    def unfinished_bytes(self) -> int:
        """How much of a message it has sent whose end has not come."""
        ...

    async def explain(self, loss: ConnectionLost) -> ConnectionLost:
        """Why its connection was lost, as exactly as can be known."""
        ...


Launcher = Callable[[], AbstractAsyncContextManager[Started]]
"""Starts a worker for as long as the block lasts, and ends it on the way out.

Entering raises :class:`SpawnFailed` where it cannot be started.
"""


_CLOSING = ConnectionLost(LossReason.LOCAL_CLOSE, "the runtime is shutting down")


@dataclass(eq=False)
class _Instance:
    """One start of the worker."""

    outcome: trio.Event = field(default_factory=trio.Event)
    """Set when it is initialized or could not be."""
    connection: Connection | None = None
    started: Started | None = None
    welcome: Welcome | None = None
    failure: StepflowError | None = None
    live_calls: int = 0
    stop: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    retired: bool = False
    watched: frozenset[int] = frozenset()

    @property
    def is_usable(self) -> bool:
        """Whether a new call may go to it, or wait for it to be ready."""
        if self.retired or self.failure is not None:
            return False
        return self.connection is None or self.connection.loss is None


class WorkerPlugin:
    """Executes components on a worker that it starts when first needed, and again when it has died.

    Args:
        name: what the configuration calls it.
        launcher: how to start the worker.
        handlers: what the worker may ask of the runtime.
        nursery: where the worker's tasks live; the plugin is of use as long as it is open.
        observe: told when workers start and end.
        limits: the bounds of each connection.
    """

    def __init__(
        self,
        name: str,
        launcher: Launcher,
        handlers: Handlers,
        *,
        nursery: trio.Nursery,
        observe: Observer,
        limits: Limits,
    ) -> None:
        self.name = name
        self._launcher = launcher
        self._handlers = handlers
        self._nursery = nursery
        self._observe = observe
        self._limits = limits
        self._instance: _Instance | None = None
        self.problem: str | None = None
        """Why the worker could not be started the last time that it was tried."""

    def start(self) -> None:
        """Start the worker now, unless it runs, so that it is ready when it is needed. Waits for nothing."""
        self._current()

    def stop(self) -> None:
        """End the worker in order; :meth:`_host` does it. No call may follow. Waits for nothing."""
        if self._instance is not None:
            self._instance.stop.set()
            if self._instance.connection is None:
                self._instance.scope.cancel(reason="the worker is to stop before it was ready")

    async def list_components(self) -> list[ComponentInfo]:
        """What the worker offers; see :meth:`Plugin.list_components`."""

        async def ask(connection: Connection) -> list[ComponentInfo]:
            listed = await connection.call(methods.COMPONENTS_LIST, ListParams(), timeout_s=START_TIMEOUT_S)
            return listed.components

        return await self._with_worker(ask)

    async def execute(
        self,
        component: str,
        input: Any,
        *,
        attempt: int,
        observability: Observability,
        deadline: float,
    ) -> Any:
        """Execute a component on the worker; see :meth:`Plugin.execute`."""

        async def ask(connection: Connection) -> Any:
            timeout_s: float | UnsetType = UNSET
            if deadline != float("inf") and dialects.DEADLINE in connection.peer_extensions:
                timeout_s = max(0.0, deadline - trio.current_time())
            params = ExecuteParams(
                component=component,
                input=input,
                attempt=attempt,
                observability=observability,
                timeout_s=timeout_s,
            )
            return (await connection.call(methods.COMPONENTS_EXECUTE, params)).output

        return await self._with_worker(ask)

    async def _with_worker(self, ask: Callable[[Connection], Awaitable[ResultT]]) -> ResultT:
        instance = self._current()
        # Counted before the first wait: a worker that is given up meanwhile stays for whoever is on the way.
        instance.live_calls += 1
        try:
            await instance.outcome.wait()
            if instance.connection is None:
                raise instance.failure or _CLOSING
            return await ask(instance.connection)
        except StepflowError as exc:
            raise await self._failure(exc, instance) from exc
        finally:
            instance.live_calls -= 1
            if instance.connection is not None:
                self._look_after(instance, instance.connection)

    # ---- starting -----------------------------------------------------------------------------------

    def _current(self) -> _Instance:
        instance = self._instance
        if instance is None or not instance.is_usable:
            instance = self._instance = _Instance()
            self._nursery.start_soon(self._host, instance, name=f"worker {self.name}")
        return instance

    async def _host(self, instance: _Instance) -> None:
        """Own one start of the worker, from spawning to reaping."""
        detail = "it was stopped"
        try:
            with instance.scope:
                async with (
                    self._launcher() as started,
                    open_connection(
                        started.link, self._handlers, role=Role.RUNTIME, limits=self._limits
                    ) as connection,
                ):
                    instance.started = started
                    try:
                        instance.welcome = await _initialize(connection)
                    except StepflowError as exc:
                        # Told at once: ending a worker that would not start can take a while.
                        explained = await started.explain(exc) if isinstance(exc, ConnectionLost) else exc
                        instance.failure = explained
                        self.problem = str(explained)
                        instance.outcome.set()
                        raise explained from exc
                    instance.connection = connection
                    instance.outcome.set()
                    self.problem = None
                    self._observe(WorkerStarted(plugin=self.name, pid=started.pid))
                    await _until_lost_or(instance.stop, started, connection)
                    if connection.loss is not None:
                        detail = str(await started.explain(connection.loss))
        except StepflowError as exc:
            detail = self.problem = str(exc)
            instance.failure = exc
        except Exception as exc:  # noqa: BLE001 — whatever it is, it costs this worker and not the runtime
            _log.error("worker %s failed", self.name, exc_info=exc)
            detail = self.problem = f"{type(exc).__name__}: {exc}"
            instance.failure = ConnectionLost(LossReason.STREAM_ERROR, detail)
        finally:
            instance.outcome.set()
            self._observe(WorkerEnded(plugin=self.name, detail=detail))

    # ---- ending -------------------------------------------------------------------------------------

    def _look_after(self, instance: _Instance, connection: Connection) -> None:
        """After every call: watch cancelled executions, and stop a worker that nobody needs any more."""
        unwatched = connection.abandoned_calls - instance.watched
        if unwatched and connection.loss is None:
            instance.watched |= unwatched
            self._nursery.start_soon(self._expect_end, instance, connection, unwatched)
        if instance.retired and not instance.live_calls:
            instance.stop.set()

    async def _expect_end(self, instance: _Instance, connection: Connection, calls: frozenset[int]) -> None:
        """Give the worker its grace to end cancelled executions; then give the worker up."""
        answers = False
        with trio.move_on_after(CANCEL_GRACE_S):
            with trio.move_on_after(CANCEL_GRACE_S / 10):
                await connection.wait_lost()
            if connection.loss is None and calls & connection.abandoned_calls:
                # Is it only this component, or the whole worker that is stuck? Any answer will tell.
                with contextlib.suppress(CallFailed, ConnectionLost, RemoteProtocolError):
                    await connection.call(methods.COMPONENTS_LIST, ListParams())
                answers = True
            await connection.wait_lost()
        instance.watched -= calls
        if connection.loss is not None or not calls & connection.abandoned_calls:
            return
        instance.retired = True
        if answers:
            # Others may be at work in it: they finish there, and new calls go to a new worker.
            self._look_after(instance, connection)
        else:
            detail = f"it answers nothing, {CANCEL_GRACE_S:g} s after an execution in it was cancelled"
            connection.lose(LossReason.IDLE_TIMEOUT, detail)

    # ---- failures -----------------------------------------------------------------------------------

    async def _failure(self, exc: StepflowError, instance: _Instance) -> StepFailure:
        if isinstance(exc, ConnectionLost) and instance.started is not None:
            exc = await instance.started.explain(exc)
        match exc:
            case CallFailed():
                error = FlowError(exc.code, exc.message, exc.data)
                retry_after_s = exc.retry_after_s if isinstance(exc, Overloaded) else 0.0
                return StepFailure(error, _kind_of_answer(exc, instance), retry_after_s=retry_after_s)
            case RemoteProtocolError():
                kind = kind_of_code(exc.code)
                return StepFailure(FlowError(exc.code, f"worker {self.name}: {exc.message}", exc.data), kind)
            case WorkerExited() if instance.connection is None and (exc.returncode or 0) >= 0:
                # It ended by itself before it was ready: it would do so again.
                return StepFailure(self._exit_error(exc), FailureKind.FINAL)
            case CallTimeout() if instance.connection is None:
                message = f"worker {self.name} did not answer initialize within {exc.after_s:g} s"
                return StepFailure(FlowError(ErrorCode.TRANSPORT_ERROR, message), FailureKind.FINAL)
            case SpawnFailed():
                kind = FailureKind.TRANSPORT if exc.is_transient else FailureKind.FINAL
                return StepFailure(FlowError(ErrorCode.SPAWN_FAILED, str(exc)), kind)
            case WorkerExited():
                error = self._exit_error(exc)
            case ConnectionLost():
                error = FlowError(ErrorCode.CONNECTION_LOST, f"worker {self.name}: {exc}")
            case CallTimeout():
                error = FlowError(ErrorCode.TRANSPORT_ERROR, f"worker {self.name}: {exc}")
            case _:
                return StepFailure(FlowError(ErrorCode.RUNTIME_INTERNAL, str(exc)), FailureKind.FINAL)
        return StepFailure(error, FailureKind.TRANSPORT)

    def _exit_error(self, exc: WorkerExited) -> FlowError:
        last = f": {exc.stderr[-1]}" if exc.stderr else ""
        data = {"returncode": exc.returncode, "stderr": list(exc.stderr[-20:])}
        return FlowError(ErrorCode.CONNECTION_LOST, f"worker {self.name}: {exc.summary}{last}", data)

    def __repr__(self) -> str:
        instance = self._instance
        state = "not started" if instance is None else repr(instance.connection or instance.failure)
        return f"<WorkerPlugin {self.name}: {state}>"


async def _initialize(connection: Connection) -> Welcome:
    """Introduce the runtime (docs/protocol.md, section 2)."""
    kind = connection.link.kind
    result = await connection.call(
        methods.INITIALIZE, dialects.write_initialize_params(None), timeout_s=START_TIMEOUT_S
    )
    welcome = dialects.read_initialize_result(result, kind)
    connection.peer_extensions = welcome.extensions
    await connection.notify(methods.INITIALIZED, {})
    return welcome


async def _until_lost_or(stop: trio.Event, started: Started, connection: Connection) -> None:
    async with trio.open_nursery() as nursery:

        async def end_on_stop() -> None:
            await stop.wait()
            nursery.cancel_scope.cancel(reason="the worker is to stop")

        nursery.start_soon(end_on_stop)
        if started.pid is not None:
            nursery.start_soon(_lose_when_stalled, started, connection)
        await connection.wait_lost()
        nursery.cancel_scope.cancel(reason="the connection is lost")


async def _lose_when_stalled(started: Started, connection: Connection) -> None:
    """Public workers cut messages off. Who waits for what was in one would wait for ever."""
    seen: tuple[int, int] | None = None
    while True:
        await trio.sleep(STALLED_FRAME_S)
        now = started.unfinished_bytes, connection.statistics().frames_received
        if now == seen and started.unfinished_bytes:
            detail = f"it has sent nothing for {STALLED_FRAME_S:g} s, {now[0]:,} bytes into a message"
            connection.lose(LossReason.PROTOCOL_VIOLATION, detail)
            return
        seen = now


def _kind_of_answer(exc: CallFailed, instance: _Instance) -> FailureKind:
    if instance.welcome is None or instance.welcome.dialect is Dialect.V0_11:
        return kind_of_code(exc.code)
    # The older table does not divide by who may retry. What is not JSON-RPC's own came from the component's
    # execution, so a step that says that it wants to be retried is.
    return FailureKind.FINAL if -32768 <= exc.code <= -32600 else FailureKind.COMPONENT
