"""A worker: Python functions offered as Stepflow components."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar, overload

import trio

from stepflow_trio.engine import Connection, Limits, Link, open_connection
from stepflow_trio.errors import ConnectionLost, LossReason
from stepflow_trio.protocol.paths import PathTable
from stepflow_trio.protocol.peer import Role
from stepflow_trio.transports.stdio import open_stdio_link
from stepflow_trio.worker.component import Component, define_component
from stepflow_trio.worker.context import Context
from stepflow_trio.worker.session import Session

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

MAX_THREADS = 40
"""Components in plain functions that run at once: as many as trio's own pool. Most of them wait for
something; and one that waits for a run keeps its place, which a step of that run may need."""

_log = logging.getLogger("stepflow_trio.worker")

ORPHAN_GRACE_S = 5.0
"""A worker that is still there so long after its connection should be over is blocked, and ends by force."""


class Worker:
    """Hosts components and serves them to runtimes.

    Register functions with :meth:`component`, then serve: :meth:`run_stdio` for a script,
    :meth:`serve_stdio` inside a nursery, or hand the worker to a runtime in the same process::

        worker = Worker()

        @worker.component
        async def add(a: int, b: int) -> int:
            return a + b

    Args:
        max_threads: components in plain functions that run at once; the others wait.
        limits: the bounds of each connection.
        debug: send tracebacks of failed components to the runtime.
    """

    def __init__(
        self, *, max_threads: int = MAX_THREADS, limits: Limits | None = None, debug: bool = False
    ) -> None:
        self._components: PathTable[Component] = PathTable()
        self._threads = trio.CapacityLimiter(max_threads)
        self._limits = limits or Limits()
        self._debug = debug

    @overload
    def component(self, function: FunctionT, /) -> FunctionT: ...

    @overload
    def component(
        self, path: str | None = None, /, *, description: str | None = None, inline: bool = False
    ) -> Callable[[FunctionT], FunctionT]: ...

    def component(
        self,
        function_or_path: Any = None,
        /,
        *,
        description: str | None = None,
        inline: bool = False,
    ) -> Any:
        """Offer a function as a component; it stays usable as it is.

        An ``async def`` runs as a task. A plain function runs in a thread of a bounded pool, or with
        ``inline`` on the event loop: then it costs no thread and no task, and must not block.

        Args:
            function_or_path: the function, or the component's path. By default the path is the function's
                name. ``/models/{name}`` and ``/fs/{*path}`` hand what they match over as keyword arguments.
            description: by default the docstring.
            inline: run a plain function on the event loop.

        Raises:
            LocalProtocolError: the path is taken or malformed, or the function cannot be a component.
        """

        def register(function: FunctionT) -> FunctionT:
            path = None if function_or_path is function else function_or_path
            self.add_component(function, path=path, description=description, inline=inline)
            return function

        if function_or_path is None or isinstance(function_or_path, str):
            return register
        return register(function_or_path)

    def add_component(
        self,
        function: Callable[..., Any],
        *,
        path: str | None = None,
        description: str | None = None,
        inline: bool = False,
    ) -> Component:
        """Offer a function as a component; :meth:`component` without the decorator."""
        component = define_component(
            function, path=path, description=description, inline=inline, context_type=Context
        )
        self._components.add(component.path, component)
        return component

    @property
    def components(self) -> list[Component]:
        """Everything offered, in the order of registration."""
        return self._components.values()

    async def serve(self, link: Link) -> ConnectionLost:
        """Serve one runtime over ``link`` until the connection is over; return why it is.

        When the runtime hangs up, what is in flight may finish for ``limits.drain_s`` seconds. Cancelling
        ends it at once.
        """
        async with self._open_connection(link) as connection:
            return await connection.wait_lost()

    async def serve_stdio(self) -> ConnectionLost:
        """Serve the runtime that started this process over stdin and stdout; return when it hangs up.

        For the time being, stdout belongs to the protocol: what anything in this process prints goes to
        stderr. Installs no signal handlers.

        Raises:
            LocalProtocolError: stdin and stdout are being served already.
        """
        async with open_stdio_link() as link:
            return await self.serve(link)

    def run_stdio(self) -> None:
        """Serve over stdin and stdout as the main job of this process; return when the runtime hangs up.

        SIGTERM and SIGINT end it in order: what is in flight may finish for ``limits.drain_s`` seconds. The
        process also ends when the runtime was killed while a component blocks the event loop.
        """
        trio.run(self._run_stdio)

    async def _run_stdio(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with (
                open_stdio_link(orphan_grace_s=self._limits.drain_s + ORPHAN_GRACE_S) as link,
                self._open_connection(link) as connection,
                trio.open_nursery() as nursery,
            ):

                async def stop_on_signal() -> None:
                    async for _ in signals:
                        nursery.cancel_scope.cancel(reason="a signal asked this process to end")

                nursery.start_soon(stop_on_signal)
                loss = await connection.wait_lost()
                if loss.reason is not LossReason.PEER_CLOSED:
                    _log.error("%s", loss)
                nursery.cancel_scope.cancel(reason="the runtime hung up")

    def _open_connection(self, link: Link) -> AbstractAsyncContextManager[Connection]:
        session = Session(self._components, threads=self._threads, transport=link.kind, debug=self._debug)
        return open_connection(link, session.handlers(), role=Role.WORKER, limits=self._limits)

    def __repr__(self) -> str:
        return f"<Worker: {', '.join(self._components.patterns()) or 'no components'}>"
