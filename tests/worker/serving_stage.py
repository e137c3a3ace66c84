"""The stage on which a worker is served over a memory link, and the runtime's end of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import trio

from stepflow_trio import Worker
from stepflow_trio.engine import Connection, Handlers, open_connection
from stepflow_trio.protocol import dialects, methods
from stepflow_trio.protocol.payloads import ExecuteParams, Observability
from stepflow_trio.protocol.peer import Role
from stepflow_trio.transports.memory import memory_link_pair

RUN = "01a1ff82-1900-78a1-9ba6-c11477158f0e"
SPAN = "00f067aa0ba902b7"


@asynccontextmanager
async def serving(
    worker: Worker, handlers: Handlers | None = None, *, hello: dict[str, Any] | None = None
) -> AsyncGenerator[Connection]:
    near, far = memory_link_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.serve, far)
        async with open_connection(near, handlers or Handlers(), role=Role.RUNTIME) as connection:
            params = dialects.write_initialize_params(None) if hello is None else hello
            welcome = dialects.read_initialize_result(await connection.call("initialize", params), "stdio")
            connection.peer_extensions = welcome.extensions
            await connection.notify("initialized", {})
            yield connection
        nursery.cancel_scope.cancel()


async def execute(connection: Connection, component: str, input: Any, **more: Any) -> Any:
    observability = Observability(run_id=RUN, step_id="step", span_id=SPAN)
    params = ExecuteParams(component=component, input=input, observability=observability, **more)
    return (await connection.call(methods.COMPONENTS_EXECUTE, params)).output
