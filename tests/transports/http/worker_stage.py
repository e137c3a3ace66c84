"""A worker behind its endpoint, for tests of either end of HTTP."""

from __future__ import annotations

from typing import Any

import trio

from stepflow_trio import ComponentError, Context, Worker
from stepflow_trio.transports.http.endpoint import HttpEndpoint

EXTENSIONS = {b"stepflow-capabilities": b'{"extensions":["cancel","progress"]}'}


def execute(component: str, id_: Any = 1, **input_: Any) -> dict[str, Any]:
    params = {
        "component": component,
        "input": input_,
        "attempt": 1,
        "observability": {"run_id": "6c0c2ba5-b157-4353-a4b8-1e5b9d55cd71", "step_id": "s"},
    }
    return {"jsonrpc": "2.0", "id": id_, "method": "components/execute", "params": params}


class Stage:
    """A worker, its endpoint, and what its components did."""

    def __init__(self, **endpoint: Any) -> None:
        self.worker = Worker(limits=endpoint.pop("limits", None))
        self.started = trio.Event()
        self.release = trio.Event()
        self.log: list[str] = []

        @self.worker.component(inline=True)
        def add(a: int, b: int) -> int:
            return a + b

        @self.worker.component
        async def wait(text: str = "") -> str:
            self.started.set()
            try:
                await self.release.wait()
            except trio.Cancelled:
                self.log.append("cancelled")
                raise
            return text

        @self.worker.component
        async def ask(text: str, context: Context) -> str:
            self.started.set()
            try:
                return await context.put_blob({"text": text})
            finally:
                self.log.append("ask ended")

        @self.worker.component
        async def report(context: Context) -> str:
            context.progress(0.5, "half")
            await self.release.wait()
            return "done"

        @self.worker.component
        async def fail() -> None:
            await trio.lowlevel.checkpoint()
            raise ComponentError("no", code=-32111, data={"why": "because"})

        self.endpoint: HttpEndpoint = self.worker.http_endpoint(**endpoint)
