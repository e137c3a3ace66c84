"""Workers at URLs without a network, in virtual time: they are there, well, busy or broken as a test says."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import trio

from stepflow_trio.engine import Handlers, Link, RequestContext, open_connection
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.engine.link import Arrival
from stepflow_trio.errors import ConnectFailed, ConnectionLost, ErrorCode, LossReason, RpcError
from stepflow_trio.protocol import methods
from stepflow_trio.protocol.payloads import (
    ComponentInfo,
    ExecuteParams,
    ExecuteResult,
    ListParams,
    ListResult,
)
from stepflow_trio.protocol.peer import Role, Unanswerable
from stepflow_trio.runtime.hosted_worker import Started
from stepflow_trio.transports.memory import memory_link_pair


class HttpMemoryLink:
    """A link in memory that counts as one over HTTP."""

    kind: Literal["http"] = "http"
    cancels_by_closing = True

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loss: ConnectionLost | None = None

    def lose_next_answer(self, loss: ConnectionLost | None = None) -> None:
        """The request whose answer comes next fails on its way; the link goes on."""
        detail = "the stream ended before the answer came"
        self._loss = loss or ConnectionLost(LossReason.STREAM_ERROR, detail)

    async def receive(self) -> Sequence[Arrival]:
        arrived = list(await self._link.receive())
        if self._loss is not None:
            loss, self._loss = self._loss, None
            [frame] = arrived
            assert isinstance(frame, bytes)
            return [Unanswerable(json.loads(frame)["id"], loss)]
        return arrived

    async def send(self, frames: Sequence[bytes], progressed: Callable[[], object]) -> None:
        await self._link.send(frames, progressed)

    async def aclose(self) -> None:
        await self._link.aclose()


class FoundWorker:
    """A worker that was reached."""

    pid: int | None = None
    unfinished_bytes: int = 0

    def __init__(self, link: HttpMemoryLink) -> None:
        self.link = link
        self.is_suspect = False
        self.is_over = False
        self.ended: ConnectionLost | None = None
        self.has_ended = trio.Event()

    async def wait_ended(self) -> ConnectionLost:
        await self.has_ended.wait()
        assert self.ended is not None
        return self.ended

    async def explain(self, loss: ConnectionLost) -> ConnectionLost:
        return self.ended or loss


class Site:
    """A worker at a URL, without a network: it is there, well, busy or broken as a test says."""

    def __init__(self, name: str) -> None:
        self.url = f"http://{name}/"
        self.name = name
        self.is_there = True
        self.is_within_reach = True
        """False: this machine has no connection to make to it."""
        self.is_well = True
        self.version = 1
        self.refuses_for_s: float | None = None
        self.components = ["/x"]
        self.list_delay_s = 0.0
        self.initialize_delay_s = 0.0
        self.answer: Callable[[Any], Any] = lambda _input: name
        self.has_begun = 0
        self.running = 0
        self.cancelled = 0
        self.release: trio.Event | None = None
        self.probed_at: list[float] = []
        self.starts: list[FoundWorker] = []
        self.pid: int | None = None
        self._far_links: list[Link] = []

    async def _connect(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self.is_within_reach:
            raise ConnectFailed(self.url, "no more files", is_local=True)
        if not self.is_there:
            raise ConnectFailed(self.url, "connection refused")

    async def check_health(self) -> None:
        self.probed_at.append(trio.current_time())
        await self._connect()
        if not self.is_well:
            raise ConnectionLost(LossReason.STREAM_ERROR, "GET /health was answered with HTTP 503")

    @asynccontextmanager
    async def launch(self) -> AsyncGenerator[Started]:
        await self._connect()
        near, far = memory_link_pair()
        with one_exception():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve, far)
                started = FoundWorker(HttpMemoryLink(near))
                started.pid = self.pid
                self.starts.append(started)
                try:
                    yield started
                finally:
                    started.is_over = True
                    nursery.cancel_scope.cancel()

    async def die(self) -> None:
        """End every connection, and take no more."""
        self.is_there = False
        for link in self._far_links:
            await link.aclose()

    async def _serve(self, link: Link) -> None:
        self._far_links.append(link)
        handlers = Handlers()
        handlers.on_raw_request("initialize", self._initialize)
        handlers.on_request(methods.COMPONENTS_EXECUTE, self._execute)
        handlers.on_request(methods.COMPONENTS_LIST, self._list)
        async with open_connection(link, handlers, role=Role.WORKER) as connection:
            connection.peer_extensions = frozenset({"cancel"})
            await connection.wait_lost()

    async def _initialize(self, _params: Any, _request: RequestContext) -> dict[str, Any]:
        if self.initialize_delay_s:
            await trio.sleep(self.initialize_delay_s)
            raise RpcError(ErrorCode.INVALID_PARAMS, "what is that?")
        if self.refuses_for_s is not None:
            raise RpcError(ErrorCode.OVERLOADED, "later", {"retry_after_s": self.refuses_for_s})
        return {"serverProtocolVersion": self.version}

    async def _execute(self, params: ExecuteParams, _request: RequestContext) -> ExecuteResult:
        self.has_begun += 1
        self.running += 1
        try:
            if self.release is not None:
                await self.release.wait()
            return ExecuteResult(self.answer(params.input))
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _list(self, _params: ListParams, _request: RequestContext) -> ListResult:
        await trio.sleep(self.list_delay_s)
        return ListResult([ComponentInfo(component=path) for path in self.components])
