"""A plugin that is a Stepflow worker: its process, task or URL, its connection, its restarts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import trio
from msgspec import UNSET, UnsetType

from stepflow_trio.engine import Connection, Handlers, Limits, Link, LinkConnection, open_connection
from stepflow_trio.engine.link import EagerLink
from stepflow_trio.errors import (
    CallFailed,
    CallTimeout,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    ErrorCode,
    LossReason,
    Overloaded,
    RemoteProtocolError,
    RpcError,
    SpawnFailed,
    StepflowError,
    WorkerExited,
)
from stepflow_trio.flows.results import FlowError
from stepflow_trio.protocol import dialects, methods
from stepflow_trio.protocol.dialects import Dialect, Welcome
from stepflow_trio.protocol.messages import RequestId
from stepflow_trio.protocol.payloads import ComponentInfo, ExecuteParams, ListParams, Observability
from stepflow_trio.protocol.peer import Role
from stepflow_trio.runtime.blob_refs import offload_input, resolve_output
from stepflow_trio.runtime.events import Observer, WorkerEnded, WorkerStarted
from stepflow_trio.runtime.first_words import FirstWords
from stepflow_trio.runtime.plugins import FailureKind, StepFailure, failure_from, kind_of_code
from stepflow_trio.runtime.progress import StepsAtWork
from stepflow_trio.runtime.stores import BlobStore
from stepflow_trio.runtime.timeouts import Timeouts

ResultT = TypeVar("ResultT")

_log = logging.getLogger("stepflow_trio.runtime")

LIST_TIMEOUT_S = 30.0
"""A worker that has not said by then what it offers is not waited for."""

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


Launcher = Callable[[], AbstractAsyncContextManager[Started]]
"""Starts or finds a worker for as long as the block lasts; what was started ends on the way out.

Entering raises a :class:`StepflowError` where it cannot be used: :class:`SpawnFailed` where it could not be
started, :class:`ConnectionLost` where it is not to be reached.
"""


@dataclass(frozen=True, slots=True)
class BlobOffer:
    """What workers are told of blobs."""

    url: str
    """Where they are stored and read over HTTP."""
    threshold_bytes: int
    """Fields that are longer may be replaced by references; 0: none are."""
    store: BlobStore | None = None
    """What is behind the URL; None: somebody else's, so that no references can be used."""


_SERVES_HTTP = "it serves HTTP (run_http): leave out `transport: stdio`"
_UNAUTHORIZED_HINT = "bearerTokenFile or bearerTokenEnv says which token to send"

_UNREADABLE = (400, 422)
"""Statuses of HTTP for a body that was not understood."""

_UNAUTHORIZED = 401
"""Of HTTP: without a token that the server knows."""


@dataclass(eq=False)
class _Instance:
    """One start of the worker."""

    outcome: trio.Event = field(default_factory=trio.Event)
    """Set when it is initialized or could not be."""
    connection: LinkConnection | None = None
    started: Started | None = None
    welcome: Welcome | None = None
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
        return self.connection is None or self.connection.loss is None


class WorkerPlugin:
    """Executes components on a worker that it starts when first needed, and again when it has died.

    Args:
        name: what the configuration calls it.
        launcher: how to start or find the worker.
        handlers: what the worker may ask of the runtime.
        nursery: where the worker's tasks live; the plugin is of use as long as it is open.
        observe: told when workers start and end.
        limits: the bounds of each connection.
        connect_timeout_s: a worker that has not answered ``initialize`` by then is given up.
        blobs: what the worker is told of blobs.
        url: where it is, if that is at a URL.
        at_work: told which execution is sent over which connection.
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
        connect_timeout_s: float = Timeouts().connect_s,
        blobs: BlobOffer | None = None,
        url: str | None = None,
        at_work: StepsAtWork | None = None,
    ) -> None:
        self.name = name
        self._title = name if url is None else f"{name} at {url}"
        self._launcher = launcher
        self._handlers = handlers
        self._nursery = nursery
        self._observe = observe
        self._limits = limits
        self._connect_timeout_s = connect_timeout_s
        self._blobs = blobs
        self._at_work = at_work
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

    @property
    def is_ready(self) -> bool:
        """Whether a call can be sent without waiting for the worker to start."""
        instance = self._instance
        return instance is not None and instance.connection is not None and instance.is_usable

    async def wait_ready(self) -> None:
        """Start the worker unless it runs, and wait until calls can be sent to it.

        Raises:
            StepFailure: it could not be started. Nothing was sent that would have to be repeated.
        """
        await self._with_worker(_ask_nothing)

    async def list_components(self) -> list[ComponentInfo]:
        """What the worker offers; see :meth:`Plugin.list_components`."""

        async def ask(connection: Connection, _welcome: Welcome) -> list[ComponentInfo]:
            listed = await connection.call(methods.COMPONENTS_LIST, ListParams(), timeout_s=LIST_TIMEOUT_S)
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

        async def ask(connection: Connection, welcome: Welcome) -> Any:
            store = self._store_for(welcome)
            timeout_s: float | UnsetType = UNSET
            if deadline != float("inf") and dialects.DEADLINE in connection.peer_extensions:
                timeout_s = max(0.0, deadline - trio.current_time())
            given = input
            if store is not None and self._blobs is not None:
                given = await offload_input(input, store, self._blobs.threshold_bytes)
            params = ExecuteParams(
                component=component,
                input=given,
                attempt=attempt,
                observability=observability,
                timeout_s=timeout_s,
            )
            if self._at_work is not None:
                self._at_work.sent(observability, connection)
            output = (await connection.call(methods.COMPONENTS_EXECUTE, params)).output
            return output if store is None else await resolve_output(output, store)

        return await self._with_worker(ask)

    def _store_for(self, welcome: Welcome) -> BlobStore | None:
        """Where the blobs are that inputs and outputs refer to; None: with this worker they do not."""
        return self._blobs.store if self._blobs is not None and welcome.supports_blob_refs else None

    async def _with_worker(self, ask: Callable[[Connection, Welcome], Awaitable[ResultT]]) -> ResultT:
        instance = self._current()
        # Counted before the first wait: a worker that is given up meanwhile stays for whoever is on the way.
        instance.live_calls += 1
        try:
            if not instance.outcome.is_set():
                await instance.outcome.wait()
            if instance.connection is None or instance.welcome is None:
                closing = ConnectionLost(LossReason.LOCAL_CLOSE, "the runtime is shutting down")
                failure = instance.failure or closing
                # Not raised itself: its traceback would grow with everybody who has waited.
                raise await self._failure(failure, instance) from failure
            try:
                return await ask(instance.connection, instance.welcome)
            except StepflowError as exc:
                if isinstance(exc, ConnectionLost) and not is_local_lack(exc) and _is_elsewhere(instance):
                    # Whoever answers at a URL next may have to be told anew what was agreed on.
                    instance.retired = True
                raise await self._failure(exc, instance) from exc
        finally:
            instance.live_calls -= 1
            if instance.connection is not None:
                self._look_after(instance, instance.connection)

    # ---- starting -----------------------------------------------------------------------------------

    def _current(self) -> _Instance:
        instance = self._instance
        if instance is None or not instance.is_usable:
            if instance is not None:
                self._retire(instance)
            instance = self._instance = _Instance()
            self._nursery.start_soon(self._host, instance, name=f"worker {self._title}")
        return instance

    def _retire(self, instance: _Instance) -> None:
        """Send it nothing new, and stop it as soon as what was sent is answered."""
        instance.retired = True
        if not instance.live_calls:
            instance.stop.set()

    async def _host(self, instance: _Instance) -> None:
        """Own one start of the worker, from spawning to reaping."""
        detail = "it was stopped"
        try:
            with instance.scope:
                async with (
                    self._launcher() as started,
                    open_connection(
                        words := _first_words(started),
                        self._handlers,
                        role=Role.RUNTIME,
                        limits=self._limits,
                    ) as connection,
                ):
                    instance.started = started
                    try:
                        instance.welcome = await _initialize(connection, self._blobs, self._connect_timeout_s)
                    except StepflowError as exc:
                        # Told at once: ending a worker that would not start can take a while.
                        if isinstance(words, FirstWords) and words.serves_http:
                            explained = ConfigError(_SERVES_HTTP)
                        elif isinstance(exc, ConnectionLost):
                            explained = await started.explain(exc)
                        else:
                            explained = exc
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
            _log.error("worker %s failed", self._title, exc_info=exc)
            detail = self.problem = f"{type(exc).__name__}: {exc}"
            instance.failure = ConnectionLost(LossReason.STREAM_ERROR, detail)
        finally:
            instance.outcome.set()
            self._observe(WorkerEnded(plugin=self.name, detail=detail))

    # ---- ending -------------------------------------------------------------------------------------

    def _look_after(self, instance: _Instance, connection: LinkConnection) -> None:
        """After every call: watch cancelled executions, and stop a worker that nobody needs any more."""
        unwatched = connection.abandoned_calls - instance.watched
        if unwatched and connection.loss is None:
            instance.watched |= unwatched
            self._nursery.start_soon(self._expect_end, instance, connection, unwatched)
        if instance.retired and not instance.live_calls:
            instance.stop.set()

    async def _expect_end(
        self, instance: _Instance, connection: LinkConnection, calls: frozenset[RequestId]
    ) -> None:
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
                # Before it is ready it is the worker that refuses, and not a component.
                whose = "" if instance.connection is not None else f"worker {self._title}: "
                error = FlowError(exc.code, whose + exc.message, exc.data)
                retry_after_s = exc.retry_after_s if isinstance(exc, Overloaded) else 0.0
                return StepFailure(error, _kind_of_answer(exc, instance), retry_after_s=retry_after_s)
            case RpcError():
                return failure_from(exc)
            case RemoteProtocolError():
                message = f"worker {self._title}: {exc.message}"
                if _status_of(exc) == _UNAUTHORIZED:
                    message += f"; {_UNAUTHORIZED_HINT}"
                return StepFailure(FlowError(exc.code, message, exc.data), kind_of_code(exc.code))
            case WorkerExited() if instance.connection is None and (exc.returncode or 0) >= 0:
                # It ended by itself before it was ready: it would do so again.
                return StepFailure(self._exit_error(exc), FailureKind.FINAL)
            case CallTimeout() if instance.connection is None:
                message = f"worker {self._title} did not answer {exc.method} within {exc.after_s:g} s"
                return StepFailure(FlowError(ErrorCode.CONNECT_TIMED_OUT, message), FailureKind.FINAL)
            case SpawnFailed():
                kind = FailureKind.TRANSPORT if exc.is_transient else FailureKind.FINAL
                code = ErrorCode.CONNECT_TIMED_OUT if exc.is_late else ErrorCode.SPAWN_FAILED
                return StepFailure(FlowError(code, str(exc)), kind)
            case ConfigError():
                message = f"plugin {self.name!r} cannot be used: {exc}"
                return StepFailure(FlowError(ErrorCode.CONFIGURATION_ERROR, message), FailureKind.FINAL)
            case WorkerExited():
                error = self._exit_error(exc)
            case ConnectFailed() if is_local_lack(exc):
                error = FlowError(ErrorCode.TRANSPORT_ERROR, f"worker {self._title}: {exc}")
            case ConnectFailed(is_late=True):
                error = FlowError(ErrorCode.CONNECT_TIMED_OUT, f"worker {self._title}: {exc}")
            case ConnectionLost():
                error = FlowError(ErrorCode.CONNECTION_LOST, f"worker {self._title}: {exc}")
            case CallTimeout():
                error = FlowError(ErrorCode.TRANSPORT_ERROR, f"worker {self._title}: {exc}")
            case _:
                return StepFailure(FlowError(ErrorCode.RUNTIME_INTERNAL, str(exc)), FailureKind.FINAL)
        return StepFailure(error, FailureKind.TRANSPORT)

    def _exit_error(self, exc: WorkerExited) -> FlowError:
        last = f": {exc.stderr[-1]}" if exc.stderr else ""
        data = {"returncode": exc.returncode, "stderr": list(exc.stderr[-20:])}
        return FlowError(ErrorCode.CONNECTION_LOST, f"worker {self._title}: {exc.summary}{last}", data)

    def __repr__(self) -> str:
        instance = self._instance
        state = "not started" if instance is None else repr(instance.connection or instance.failure)
        return f"<WorkerPlugin {self._title}: {state}>"


def is_local_lack(exc: BaseException | None) -> bool:
    """Whether this machine had no connection to make, which tells nothing of the worker."""
    return isinstance(exc, ConnectFailed) and exc.is_local


def _is_elsewhere(instance: _Instance) -> bool:
    return instance.started is not None and instance.started.pid is None


def _first_words(started: Started) -> Link:
    link = started.link
    is_process = started.pid is not None and link.kind == "stdio"
    return FirstWords(link) if is_process and isinstance(link, EagerLink) else link


async def _ask_nothing(_connection: Connection, _welcome: Welcome) -> None:
    pass


async def _initialize(connection: LinkConnection, blobs: BlobOffer | None, timeout_s: float) -> Welcome:
    """Introduce the runtime (docs/protocol.md, section 2).

    A worker over HTTP may refuse a message that is spelled for all generations at once. Then it gets what the
    public runtimes of each send, and nothing of ours.

    Raises:
        CallTimeout: however it is spelled, there is no answer within ``timeout_s`` seconds.
        StepflowError: as a call does.
    """
    kind = connection.link.kind
    url = None if blobs is None else blobs.url
    threshold = None if blobs is None else blobs.threshold_bytes
    params = dialects.write_initialize_params(None, blob_api_url=url, blob_threshold=threshold)
    further = [
        dialects.write_initialize_params(
            Dialect.V0_11, extensions=(), blob_api_url=url, blob_threshold=threshold
        ),
        dialects.write_initialize_params(Dialect.V0_9, extensions=()),
    ]
    with trio.move_on_after(timeout_s):
        while True:
            try:
                result = await connection.call(methods.INITIALIZE, params)
                break
            except (CallFailed, RemoteProtocolError) as exc:
                if kind != "http" or not further or not _is_about_spelling(exc):
                    raise
                _log.debug("initialize is tried in another spelling: %s", exc)
                params = further.pop(0)
        welcome = dialects.read_initialize_result(result, kind)
        connection.peer_extensions = welcome.extensions
        await connection.notify(methods.INITIALIZED, {})
        return welcome
    raise CallTimeout(methods.INITIALIZE, timeout_s)


def _is_about_spelling(exc: CallFailed | RemoteProtocolError) -> bool:
    """Whether a refusal of ``initialize`` may mean that its params were not understood."""
    if exc.code in (ErrorCode.INVALID_PARAMS, ErrorCode.INVALID_REQUEST):
        return _status_of(exc) in (None, *_UNREADABLE)
    return False


def _status_of(exc: CallFailed | RemoteProtocolError) -> object:
    """The status of HTTP that was all the answer; None where there was more, or none."""
    data: object = exc.data
    return cast("dict[str, object]", data).get("status") if isinstance(data, dict) else None


async def _until_lost_or(stop: trio.Event, started: Started, connection: LinkConnection) -> None:
    async with trio.open_nursery() as nursery:

        async def end_on_stop() -> None:
            await stop.wait()
            nursery.cancel_scope.cancel(reason="the worker is to stop")

        async def lose_at_end() -> None:
            loss = await started.wait_ended()
            connection.lose(loss.reason, loss.detail)

        nursery.start_soon(end_on_stop)
        nursery.start_soon(lose_at_end)
        if started.pid is not None and connection.link.kind == "stdio":
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
