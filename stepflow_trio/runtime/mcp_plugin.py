"""A plugin whose components are the tools of an MCP server: its process, its session, its restarts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import trio

from stepflow_trio.errors import (
    CallFailed,
    CallTimeout,
    ConfigError,
    ConnectionLost,
    ErrorCode,
    LossReason,
    RemoteProtocolError,
    RpcError,
    SpawnFailed,
    StepflowError,
    WorkerExited,
)
from stepflow_trio.flows.results import FlowError
from stepflow_trio.flows.suggestions import did_you_mean
from stepflow_trio.protocol.json_types import json_type
from stepflow_trio.protocol.payloads import ComponentInfo, Observability
from stepflow_trio.runtime.events import Observer, WorkerEnded, WorkerLine, WorkerStarted
from stepflow_trio.runtime.launchers import EXIT_NOTICE_S
from stepflow_trio.runtime.mcp_package import INSTALL_MCP, why_no_mcp
from stepflow_trio.runtime.plugin_config import McpPluginConfig
from stepflow_trio.runtime.plugins import FailureKind, StepFailure, failure_from, kind_of_code
from stepflow_trio.runtime.timeouts import Timeouts
from stepflow_trio.transports.orphan_guard import open_orphan_guard
from stepflow_trio.transports.process import WorkerProcess, open_process_link
from stepflow_trio.transports.streams import DescriptorLink

if TYPE_CHECKING:
    from stepflow_trio.runtime.mcp_session import McpSession  # imports the package, which need not be there

__all__ = ["McpPlugin"]

_OpenSession: TypeAlias = Callable[
    [DescriptorLink, Callable[[str], object]], "AbstractAsyncContextManager[McpSession]"
]

_log = logging.getLogger("stepflow_trio.runtime")


@dataclass(eq=False)
class _Server:
    """One start of the server."""

    ready: trio.Event = field(default_factory=trio.Event)
    """Set when it can be asked, or never can be."""
    session: McpSession | None = None
    failure: StepflowError | None = None
    """Why it can no longer be asked, or never could be."""
    over: trio.Event = field(default_factory=trio.Event)
    """Set when ``failure`` is all that can be known."""
    stop: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class McpPlugin:
    """Executes the tools of an MCP server, which it starts when first needed, and again when it has died.

    Args:
        name: what the configuration calls it.
        config: the server.
        nursery: where the server's tasks live; the plugin is of use as long as it is open.
        observe: told when the server starts and ends, and what it writes beside the protocol.
        connect_timeout_s: a server that has not listed its tools by then is given up.
    """

    def __init__(
        self,
        name: str,
        config: McpPluginConfig,
        *,
        nursery: trio.Nursery,
        observe: Observer,
        connect_timeout_s: float = Timeouts().connect_s,
    ) -> None:
        self.name = name
        self._config = config
        self._nursery = nursery
        self._observe = observe
        self._connect_timeout_s = connect_timeout_s
        self._server: _Server | None = None
        self.problem: str | None = None
        """Why the server could not be started the last time that it was tried."""

    def start(self) -> None:
        """Start the server now, unless it runs, so that it is ready when it is needed. Waits for nothing."""
        self._current()

    def stop(self) -> None:
        """End the server in order. No call may follow. Waits for nothing."""
        if self._server is not None:
            self._server.stop.set()
            if self._server.session is None:
                self._server.scope.cancel(reason="the server is to stop before it was ready")

    async def list_components(self) -> list[ComponentInfo]:
        """The server's tools; see :meth:`Plugin.list_components`."""
        server, session = await self._ready()
        try:
            with trio.fail_after(self._connect_timeout_s):
                await session.list_tools()
        except trio.TooSlowError:
            failure = CallTimeout("tools/list", self._connect_timeout_s)
            raise self._failure(failure, is_ready=True) from None
        except StepflowError as exc:
            raise await self._failure_of_call(exc, server) from exc
        return list(session.tools.values())

    async def execute(
        self,
        component: str,
        input: Any,
        *,
        attempt: int,
        observability: Observability,
        deadline: float,
    ) -> Any:
        """Call a tool; see :meth:`Plugin.execute`.

        Cancelling it tells the server, and leaves at once.
        """
        server, session = await self._ready()
        tool = component.removeprefix("/")
        try:
            if tool not in session.tools:
                await session.list_tools()  # tools come and go
            if tool not in session.tools:
                hint = did_you_mean(tool, session.tools)
                message = f"the MCP server {self.name} has no tool {tool!r}{f'; {hint}' if hint else ''}"
                raise RpcError(ErrorCode.COMPONENT_NOT_FOUND, message)
            if input is not None and not isinstance(input, dict):
                message = f"the tool {tool} takes an object with its arguments, not {json_type(input)}"
                raise RpcError(ErrorCode.INVALID_VALUE, message, {"path": "$"})
            return await session.call_tool(tool, cast("dict[str, Any]", input or {}))
        except StepflowError as exc:
            raise await self._failure_of_call(exc, server) from exc

    async def _ready(self) -> tuple[_Server, McpSession]:
        server = self._current()
        await server.ready.wait()
        if server.session is None:
            closing = ConnectionLost(LossReason.LOCAL_CLOSE, "the runtime is shutting down")
            failure = server.failure or closing
            raise self._failure(failure, is_ready=False) from failure
        return server, server.session

    # ---- the process --------------------------------------------------------------------------------

    def _current(self) -> _Server:
        server = self._server
        if server is None or server.failure is not None:
            server = self._server = _Server()
            self._nursery.start_soon(self._host, server, name=f"MCP server {self.name}")
        return server

    async def _host(self, server: _Server) -> None:
        """Own one start of the server, from spawning to reaping."""
        detail = "it was stopped"
        try:
            with server.scope:
                open_session = await _load()
                async with (
                    open_process_link(
                        [self._config.command, *self._config.args],
                        env=self._config.env,
                        cwd=self._config.working_directory,
                        on_stderr_line=self._take_line,
                    ) as process,
                    open_orphan_guard() as guard,  # not every server ends with its stdin
                    open_session(process.link, self._take_line) as session,
                ):
                    guard.watch(process.pid)
                    try:
                        await self._introduce(session)
                    except StepflowError as exc:
                        # Told at once: ending a server that would not start can take a while.
                        self._give_up(server, await _explained(exc, process))
                        raise
                    server.session = session
                    server.ready.set()
                    self.problem = None
                    self._observe(WorkerStarted(plugin=self.name, pid=process.pid))
                    loss = await _lost_or_stopped(session, server.stop)
                    if loss is not None:
                        server.failure = loss
                        server.failure = await _explained(loss, process)
                        server.over.set()
                        detail = str(server.failure)
        except StepflowError as exc:
            detail = self._give_up(server, server.failure or exc)
        except Exception as exc:  # noqa: BLE001 — whatever it is, it costs this server and not the runtime
            _log.error("MCP server %s failed", self.name, exc_info=exc)
            detail = self.problem = f"{type(exc).__name__}: {exc}"
            server.failure = ConnectionLost(LossReason.STREAM_ERROR, detail)
        finally:
            server.ready.set()
            server.over.set()
            self._observe(WorkerEnded(plugin=self.name, detail=detail))

    def _give_up(self, server: _Server, failure: StepflowError) -> str:
        """It could not be started: tell who waits for it; return why."""
        server.failure = failure
        self.problem = self._failure(failure, is_ready=False).error.message
        server.ready.set()
        return self.problem

    async def _introduce(self, session: McpSession) -> None:
        with trio.move_on_after(self._connect_timeout_s):
            await session.introduce()
            await session.list_tools()
            return
        raise CallTimeout("initialize", self._connect_timeout_s)

    def _take_line(self, line: str) -> None:
        self._observe(WorkerLine(plugin=self.name, text=line))

    # ---- failures -----------------------------------------------------------------------------------

    async def _failure_of_call(self, exc: StepflowError, server: _Server) -> StepFailure:
        if isinstance(exc, ConnectionLost):
            await server.over.wait()
            exc = server.failure or exc
        return self._failure(exc, is_ready=True)

    def _failure(self, exc: StepflowError, *, is_ready: bool) -> StepFailure:
        title = f"MCP server {self.name}"
        kind = FailureKind.FINAL
        match exc:
            case CallFailed() if is_ready:
                # Its codes are not divided by who may retry. What is not JSON-RPC's own came from the tool.
                kind = FailureKind.FINAL if -32768 <= exc.code <= -32600 else FailureKind.COMPONENT
                error = FlowError(exc.code, exc.message, exc.data)
            case RpcError() if is_ready:
                return failure_from(exc)
            case RpcError():
                error = FlowError(exc.code, f"{title}: {exc.message}", exc.data)
            case RemoteProtocolError():
                kind = kind_of_code(exc.code)
                error = FlowError(exc.code, f"{title}: {exc.message}", exc.data)
            case CallTimeout():
                message = f"{title} did not answer {exc.method} within {exc.after_s:g} s"
                error = FlowError(ErrorCode.CONNECT_TIMED_OUT, message)
            case SpawnFailed():
                kind = FailureKind.TRANSPORT if exc.is_transient else FailureKind.FINAL
                error = FlowError(ErrorCode.SPAWN_FAILED, f"{title}: {exc}")
            case ConfigError():
                message = f"plugin {self.name!r} cannot be used: {exc}"
                error = FlowError(ErrorCode.CONFIGURATION_ERROR, message)
            case WorkerExited():
                # One that ended by itself before it was ready would do so again.
                ended_by_itself = not is_ready and (exc.returncode or 0) >= 0
                kind = FailureKind.FINAL if ended_by_itself else FailureKind.TRANSPORT
                last = f": {exc.stderr[-1]}" if exc.stderr else ""
                hint = "" if is_ready or "PATH" in self._config.env else _PATH_HINT
                data = {"returncode": exc.returncode, "stderr": list(exc.stderr[-20:])}
                error = FlowError(ErrorCode.CONNECTION_LOST, f"{title}: {exc.summary}{last}{hint}", data)
            case ConnectionLost():
                kind = FailureKind.TRANSPORT
                is_garbled = exc.reason is LossReason.PROTOCOL_VIOLATION
                code = ErrorCode.GARBLED_MESSAGE if is_garbled else ErrorCode.CONNECTION_LOST
                error = FlowError(code, f"{title}: {exc}")
            case _:
                error = FlowError(ErrorCode.RUNTIME_INTERNAL, f"{title}: {exc}")
        return StepFailure(error, kind)

    def __repr__(self) -> str:
        server = self._server
        if server is None:
            state = "not started"
        else:
            state = repr(server.failure) if server.failure is not None else "running"
        return f"<McpPlugin {self.name}: {state}>"


_PATH_HINT = "; it was given no PATH: if it needs one, write `env: { PATH: $PATH }`"


async def _load() -> _OpenSession:
    """What opens a session. The package takes a third of a second to import, so a thread does it.

    Raises:
        ConfigError: the package is not there, or cannot be imported.
    """

    def load() -> _OpenSession:
        from stepflow_trio.runtime.mcp_session import open_mcp_session  # here: the package is an extra

        return open_mcp_session

    if lack := why_no_mcp():
        raise ConfigError(lack)
    try:
        return await trio.to_thread.run_sync(load)
    except ImportError as exc:
        raise ConfigError(f"the package mcp cannot be imported ({exc}): {INSTALL_MCP}") from exc


async def _explained(exc: StepflowError, process: WorkerProcess) -> StepflowError:
    """Why the session was lost, as exactly as can be known."""
    if not isinstance(exc, ConnectionLost):
        return exc
    if exc.reason not in (LossReason.PEER_CLOSED, LossReason.STREAM_ERROR):
        return exc
    returncode = await process.wait_exited(EXIT_NOTICE_S)
    is_known = returncode is not None or exc.reason is LossReason.PEER_CLOSED
    return process.exit_error() if is_known else exc


async def _lost_or_stopped(session: McpSession, stop: trio.Event) -> ConnectionLost | None:
    """Wait until the session is over, and return why; or until it is to stop, and return None."""
    async with trio.open_nursery() as nursery:

        async def end_on_stop() -> None:
            await stop.wait()
            nursery.cancel_scope.cancel(reason="the server is to stop")

        nursery.start_soon(end_on_stop)
        loss = await session.wait_lost()
        nursery.cancel_scope.cancel(reason="the session is over")
        return loss
    return None
