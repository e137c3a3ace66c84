"""How a plugin's worker is started: as a process, or as a task of this one."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import NoReturn, Protocol

import trio

from stepflow_trio.engine import Link
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import ConnectionLost, LossReason
from stepflow_trio.runtime.config import McpPluginConfig, StdioPluginConfig
from stepflow_trio.runtime.events import Observer, WorkerLine
from stepflow_trio.runtime.hosted_worker import Launcher, Started
from stepflow_trio.transports.memory import memory_link_pair
from stepflow_trio.transports.process import WorkerProcess, open_process_link

_log = logging.getLogger("stepflow_trio.runtime")

EXIT_NOTICE_S = 1.0
"""After a worker's stdout has closed, how long to wait for its exit code before saying what happened."""


class ServesLink(Protocol):
    """What a worker in this process must do: :class:`stepflow_trio.Worker` does."""

    async def serve(self, link: Link) -> object:
        """Serve one runtime until the connection is over."""
        ...


async def never() -> NoReturn:
    """Wait to be cancelled."""
    await trio.sleep_forever()
    raise AssertionError("nobody wakes it")


class _StartedProcess:
    def __init__(self, process: WorkerProcess) -> None:
        self._process = process
        self.link: Link = process.link
        self.pid: int | None = process.pid
        self.is_suspect = False

    @property
    def unfinished_bytes(self) -> int:
        return self._process.link.unfinished_bytes

    async def wait_ended(self) -> ConnectionLost:
        return await never()

    async def explain(self, loss: ConnectionLost) -> ConnectionLost:
        if loss.reason not in (LossReason.PEER_CLOSED, LossReason.STREAM_ERROR):
            return loss
        returncode = await self._process.wait_exited(EXIT_NOTICE_S)
        # It lives on: then a stream that failed is all that there is to say.
        is_known = returncode is not None or loss.reason is LossReason.PEER_CLOSED
        return self._process.exit_error() if is_known else loss


class _StartedTask:
    def __init__(self, worker: ServesLink, link: Link, far_link: Link) -> None:
        self._worker = worker
        self._far_link = far_link
        self._fault: Exception | None = None
        self.link = link
        self.pid: int | None = None
        self.unfinished_bytes = 0
        self.is_suspect = False

    async def wait_ended(self) -> ConnectionLost:
        return await never()

    async def serve(self) -> None:
        """Let the worker serve. However it ends, the connection ends with it, and nothing else does."""
        try:
            await self._worker.serve(self._far_link)
        except Exception as exc:  # noqa: BLE001 — a broken worker costs only its own components
            self._fault = exc
            _log.error("a worker of this process failed", exc_info=exc)
        finally:
            await self._far_link.aclose()

    async def explain(self, loss: ConnectionLost) -> ConnectionLost:
        await trio.lowlevel.checkpoint()
        if self._fault is None:
            return loss
        return ConnectionLost(loss.reason, f"it failed: {type(self._fault).__name__}: {self._fault}")


def process_launcher(plugin: str, config: StdioPluginConfig | McpPluginConfig, observe: Observer) -> Launcher:
    """Start the configured command; its stderr goes to ``observe`` line by line."""

    @asynccontextmanager
    async def launch() -> AsyncGenerator[Started]:
        async with open_process_link(
            [config.command, *config.args],
            env=config.env,
            cwd=config.working_directory,
            on_stderr_line=lambda line: observe(WorkerLine(plugin=plugin, text=line)),
        ) as process:
            yield _StartedProcess(process)

    return launch


def task_launcher(worker: ServesLink) -> Launcher:
    """Serve a worker object in a task of this process, over a memory link."""

    @asynccontextmanager
    async def launch() -> AsyncGenerator[Started]:
        started = _StartedTask(worker, *memory_link_pair())
        with one_exception():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(started.serve)
                try:
                    yield started
                finally:
                    nursery.cancel_scope.cancel(reason="the runtime stops this worker")

    return launch
