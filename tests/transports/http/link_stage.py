"""A runtime's connection to an endpoint over HTTP, in memory: virtual time, and every byte of it real."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from worker_stage import Stage

from stepflow_trio.engine import Handlers, LinkConnection, RequestContext, open_connection
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.protocol import dialects
from stepflow_trio.protocol.peer import Role
from stepflow_trio.transports.http.asgi import AsgiApp
from stepflow_trio.transports.http.h11_connection import serve_connection
from stepflow_trio.transports.http.h11_state import ServerState
from stepflow_trio.transports.http.limits import HttpClientLimits, HttpServerLimits
from stepflow_trio.transports.http.links import HttpLink, SessionMode, open_http_link
from stepflow_trio.transports.http.post_link import PostLink
from stepflow_trio.transports.http.session_link import SessionLink


class Server:
    """An ASGI application behind our h11 host, in memory; counts its connections."""

    def __init__(self, app: AsgiApp, nursery: trio.Nursery) -> None:
        self._state = ServerState(app, HttpServerLimits())
        self._nursery = nursery
        self.open_connections = 0
        self.refuses = False

    async def connect(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if self.refuses:
            raise ConnectionRefusedError("nobody listens there")
        near, far = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._serve, far)
        return near

    async def _serve(self, stream: trio.abc.Stream) -> None:
        self.open_connections += 1
        try:
            await serve_connection(stream, self._state)
        finally:
            self.open_connections -= 1


@asynccontextmanager
async def open_link(
    app: AsgiApp,
    sessions: SessionMode = "never",
    limits: HttpClientLimits | None = None,
    url: str = "http://worker.test",
    instances: set[bytes] | None = None,
) -> AsyncGenerator[tuple[HttpLink, Server]]:
    capabilities = dialects.write_capabilities()
    with one_exception():
        async with trio.open_nursery() as nursery:
            server = Server(app, nursery)
            async with open_http_link(
                url,
                capabilities=capabilities,
                sessions=sessions,
                limits=limits,
                connect=server.connect,
                instances=instances,
            ) as link:
                yield link, server
            nursery.cancel_scope.cancel()


def offered(asked: list[Any] | None = None) -> Handlers:
    handlers = Handlers()

    async def put_blob(params: Any, _context: RequestContext) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        if asked is not None:
            asked.append(params["data"])
        return {"blob_id": "b" * 64}

    handlers.on_raw_request("blobs/put", put_blob)
    return handlers


@asynccontextmanager
async def open_stage(
    stage: Stage,
    sessions: SessionMode,
    handlers: Handlers | None = None,
    limits: HttpClientLimits | None = None,
) -> AsyncGenerator[tuple[LinkConnection, Server]]:
    """A runtime's connection to the stage's worker, initialized."""
    async with (
        open_link(stage.endpoint, sessions, limits) as (link, server),
        open_connection(link, handlers or offered(), role=Role.RUNTIME) as connection,
    ):
        assert isinstance(link, PostLink if sessions == "never" else SessionLink)
        result = await connection.call("initialize", dialects.write_initialize_params(None))
        connection.peer_extensions = dialects.read_initialize_result(result, "http").extensions
        await connection.notify("initialized", {})
        yield connection, server


async def execute(
    connection: LinkConnection, component: str, timeout_s: float | None = None, **input_: Any
) -> Any:
    params = {
        "component": component,
        "input": input_,
        "attempt": 1,
        "observability": {"step_id": "s", "run_id": "r"},
    }
    return (await connection.call("components/execute", params, timeout_s=timeout_s))["output"]
