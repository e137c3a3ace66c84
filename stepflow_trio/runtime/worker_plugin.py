"""A plugin that is a Stepflow worker: at the end of a link, over which both ask each other."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from msgspec import UNSET, UnsetType

from stepflow_trio.engine import Handlers, Limits, Link, LinkConnection, open_connection
from stepflow_trio.engine.link import EagerLink
from stepflow_trio.errors import (
    CallFailed,
    ConfigError,
    ConnectionLost,
    ErrorCode,
    LossReason,
    RemoteProtocolError,
)
from stepflow_trio.protocol import dialects, methods
from stepflow_trio.protocol.dialects import Dialect, Welcome
from stepflow_trio.protocol.messages import RequestId
from stepflow_trio.protocol.payloads import ComponentInfo, ExecuteParams, ListParams, Observability
from stepflow_trio.protocol.peer import Role
from stepflow_trio.runtime import hosted_worker
from stepflow_trio.runtime.blob_refs import offload_input, resolve_output
from stepflow_trio.runtime.events import Observer
from stepflow_trio.runtime.first_words import FirstWords
from stepflow_trio.runtime.hosted_worker import HostedWorker, Launcher, Started
from stepflow_trio.runtime.progress import StepsAtWork
from stepflow_trio.runtime.stores import BlobStore
from stepflow_trio.runtime.worker_failures import WorkerFailures, http_status_of

__all__ = ["BlobOffer", "WorkerPlugin"]

_SERVES_HTTP = "it serves HTTP (run_http): leave out `transport: stdio`"

_UNREADABLE = (400, 422)
"""Statuses of HTTP for a body that was not understood."""

_log = logging.getLogger("stepflow_trio.runtime")


@dataclass(frozen=True, slots=True)
class BlobOffer:
    """What workers are told of blobs."""

    url: str
    """Where they are stored and read over HTTP."""
    threshold_bytes: int
    """Fields that are longer may be replaced by references; 0: none are."""
    store: BlobStore | None = None
    """What is behind the URL; None: somebody else's, so that no references can be used."""


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
        connect_timeout_s: float,
        blobs: BlobOffer | None = None,
        url: str | None = None,
        at_work: StepsAtWork | None = None,
    ) -> None:
        self.name = name
        self._handlers = handlers
        self._limits = limits
        self._blobs = blobs
        self._at_work = at_work
        title = f"worker {name}" if url is None else f"worker {name} at {url}"
        self._worker = HostedWorker(
            launcher,
            self._open_session,
            WorkerFailures(plugin=name, title=title),
            nursery=nursery,
            observe=observe,
            connect_timeout_s=connect_timeout_s,
        )

    def start(self) -> None:
        """Start the worker now, unless it runs, so that it is ready when it is needed. Waits for nothing."""
        self._worker.start()

    def stop(self) -> None:
        """End the worker in order. No call may follow. Waits for nothing."""
        self._worker.stop()

    @property
    def problem(self) -> str | None:
        """Why the worker could not be started the last time that it was tried."""
        return self._worker.problem

    @property
    def is_ready(self) -> bool:
        """Whether a call can be sent without waiting for the worker to start."""
        return self._worker.is_ready

    async def wait_ready(self) -> None:
        """Start the worker unless it runs, and wait until calls can be sent to it.

        Raises:
            StepFailure: it could not be started. Nothing was sent that would have to be repeated.
        """
        await self._worker.call(_ask_nothing)

    async def list_components(self) -> list[ComponentInfo]:
        """What the worker offers; see :meth:`Plugin.list_components`."""

        async def ask(session: _WorkerSession) -> list[ComponentInfo]:
            listed = await session.connection.call(
                methods.COMPONENTS_LIST, ListParams(), timeout_s=hosted_worker.LIST_TIMEOUT_S
            )
            return listed.components

        return await self._worker.call(ask)

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

        async def ask(session: _WorkerSession) -> Any:
            connection = session.connection
            store = self._store_for(session.welcome)
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

        return await self._worker.call(ask)

    def _store_for(self, welcome: Welcome) -> BlobStore | None:
        """Where the blobs are that inputs and outputs refer to; None: with this worker they do not."""
        return self._blobs.store if self._blobs is not None and welcome.supports_blob_refs else None

    @asynccontextmanager
    async def _open_session(self, started: Started) -> AsyncGenerator[_WorkerSession]:
        link = _first_words(started)
        async with open_connection(
            link, self._handlers, role=Role.RUNTIME, limits=self._limits
        ) as connection:
            yield _WorkerSession(connection, link, self._blobs)

    def __repr__(self) -> str:
        return f"<WorkerPlugin {self._worker!r}>"


class _WorkerSession:
    """A connection to one start of the worker."""

    welcome: Welcome
    """What was agreed on; there once it is introduced."""

    def __init__(self, connection: LinkConnection, link: Link, blobs: BlobOffer | None) -> None:
        self.connection = connection
        self._link = link
        self._blobs = blobs

    @property
    def loss(self) -> ConnectionLost | None:
        return self.connection.loss

    @property
    def abandoned_calls(self) -> frozenset[RequestId]:
        return self.connection.abandoned_calls

    @property
    def frames_received(self) -> int:
        return self.connection.statistics().frames_received

    @property
    def divides_codes(self) -> bool:
        """The older tables do not."""
        return self.welcome.dialect is Dialect.V0_11

    async def introduce(self) -> None:
        """Introduce the runtime (docs/protocol.md, section 2).

        A worker over HTTP may refuse a message that is spelled for all generations at once. Then it gets what
        the public runtimes of each send, and nothing of ours.
        """
        try:
            result = await self._initialize()
        except ConnectionLost as exc:
            if isinstance(self._link, FirstWords) and self._link.serves_http:
                raise ConfigError(_SERVES_HTTP) from exc
            raise
        self.welcome = dialects.read_initialize_result(result, self._link.kind)
        self.connection.peer_extensions = self.welcome.extensions
        await self.connection.notify(methods.INITIALIZED, {})

    async def _initialize(self) -> Any:
        url = None if self._blobs is None else self._blobs.url
        threshold = None if self._blobs is None else self._blobs.threshold_bytes
        params = dialects.write_initialize_params(None, blob_api_url=url, blob_threshold=threshold)
        further = [
            dialects.write_initialize_params(
                Dialect.V0_11, extensions=(), blob_api_url=url, blob_threshold=threshold
            ),
            dialects.write_initialize_params(Dialect.V0_9, extensions=()),
        ]
        while True:
            try:
                return await self.connection.call(methods.INITIALIZE, params)
            except (CallFailed, RemoteProtocolError) as exc:
                if self._link.kind != "http" or not further or not _is_about_spelling(exc):
                    raise
                _log.debug("initialize is tried in another spelling: %s", exc)
                params = further.pop(0)

    async def probe(self) -> None:
        await self.connection.call(methods.COMPONENTS_LIST, ListParams())

    def lose(self, reason: LossReason, detail: str) -> None:
        self.connection.lose(reason, detail)

    async def wait_lost(self) -> ConnectionLost:
        return await self.connection.wait_lost()


def _first_words(started: Started) -> Link:
    link = started.link
    is_process = started.pid is not None and link.kind == "stdio"
    return FirstWords(link) if is_process and isinstance(link, EagerLink) else link


async def _ask_nothing(_session: _WorkerSession) -> None:
    pass


def _is_about_spelling(exc: CallFailed | RemoteProtocolError) -> bool:
    """Whether a refusal of ``initialize`` may mean that its params were not understood."""
    if exc.code in (ErrorCode.INVALID_PARAMS, ErrorCode.INVALID_REQUEST):
        return http_status_of(exc) in (None, *_UNREADABLE)
    return False
