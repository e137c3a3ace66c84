"""A plugin whose components are the tools of an MCP server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import trio

from stepflow_trio.errors import CallTimeout, ConfigError, ErrorCode, RpcError
from stepflow_trio.flows.suggestions import did_you_mean
from stepflow_trio.protocol.json_types import json_type
from stepflow_trio.protocol.payloads import ComponentInfo, Observability
from stepflow_trio.runtime import hosted_worker
from stepflow_trio.runtime.events import Observer, WorkerLine
from stepflow_trio.runtime.hosted_worker import HostedWorker, Started
from stepflow_trio.runtime.launchers import process_launcher
from stepflow_trio.runtime.mcp_package import INSTALL_MCP, why_no_mcp
from stepflow_trio.runtime.plugin_config import McpPluginConfig
from stepflow_trio.runtime.worker_failures import WorkerFailures
from stepflow_trio.transports.orphan_guard import open_orphan_guard

if TYPE_CHECKING:
    from stepflow_trio.runtime.mcp_session import McpSession  # imports the package, which need not be there

__all__ = ["McpPlugin"]

_PATH_HINT = "; it was given no PATH: if it needs one, write `env: { PATH: $PATH }`"


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
        connect_timeout_s: float,
    ) -> None:
        self.name = name
        self._observe = observe
        self._launch_process = process_launcher(name, config, observe)
        exit_hint = "" if "PATH" in config.env else _PATH_HINT
        self._server = HostedWorker(
            self._launch,
            self._open_session,
            WorkerFailures(plugin=name, title=f"MCP server {name}", exit_hint=exit_hint),
            nursery=nursery,
            observe=observe,
            connect_timeout_s=connect_timeout_s,
        )

    def start(self) -> None:
        """Start the server now, unless it runs, so that it is ready when it is needed. Waits for nothing."""
        self._server.start()

    def stop(self) -> None:
        """End the server in order. No call may follow. Waits for nothing."""
        self._server.stop()

    @property
    def problem(self) -> str | None:
        """Why the server could not be started the last time that it was tried."""
        return self._server.problem

    async def list_components(self) -> list[ComponentInfo]:
        """The server's tools; see :meth:`Plugin.list_components`."""

        async def ask(session: McpSession) -> list[ComponentInfo]:
            await _list_tools(session)
            return list(session.tools.values())

        return await self._server.call(ask)

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

        Cancelling it tells the server, and leaves at once. A server that then answers nothing is replaced.
        """
        tool = component.removeprefix("/")

        async def ask(session: McpSession) -> Any:
            if tool not in session.tools:
                await _list_tools(session)  # tools come and go
            if tool not in session.tools:
                hint = did_you_mean(tool, session.tools)
                message = f"the MCP server {self.name} has no tool {tool!r}{f'; {hint}' if hint else ''}"
                raise RpcError(ErrorCode.COMPONENT_NOT_FOUND, message)
            if input is not None and not isinstance(input, dict):
                message = f"the tool {tool} takes an object with its arguments, not {json_type(input)}"
                raise RpcError(ErrorCode.INVALID_VALUE, message, {"path": "$"})
            return await session.call_tool(tool, cast("dict[str, Any]", input or {}))

        return await self._server.call(ask)

    @asynccontextmanager
    async def _launch(self) -> AsyncGenerator[Started]:
        await _load_package()
        # Not every server ends with its stdin.
        async with self._launch_process() as started, open_orphan_guard() as guard:
            if started.pid is not None:
                guard.watch(started.pid)
            yield started

    def _open_session(self, started: Started) -> AbstractAsyncContextManager[McpSession]:
        from stepflow_trio.runtime.mcp_session import (
            open_mcp_session,
        )  # here: the package is there, and loaded

        return open_mcp_session(started.link, self._take_line)

    def _take_line(self, line: str) -> None:
        self._observe(WorkerLine(plugin=self.name, text=line))

    def __repr__(self) -> str:
        return f"<McpPlugin {self._server!r}>"


async def _load_package() -> None:
    """Import what opens a session. The package takes a third of a second, so a thread does it.

    Raises:
        ConfigError: the package is not there, or cannot be imported.
    """

    def load() -> None:
        import stepflow_trio.runtime.mcp_session  # pyright: ignore[reportUnusedImport] # noqa: F401 — the extra, loaded here

    if lack := why_no_mcp():
        raise ConfigError(lack)
    try:
        await trio.to_thread.run_sync(load)
    except ImportError as exc:
        raise ConfigError(f"the package mcp cannot be imported ({exc}): {INSTALL_MCP}") from exc


async def _list_tools(session: McpSession) -> None:
    timeout_s = hosted_worker.LIST_TIMEOUT_S
    with trio.move_on_after(timeout_s):
        await session.list_tools()
        return
    raise CallTimeout("tools/list", timeout_s)
