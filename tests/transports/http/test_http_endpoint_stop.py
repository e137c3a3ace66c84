"""How a worker that serves HTTP stops: what it had answered still reaches its clients."""

from __future__ import annotations

import json
import socket
from typing import Literal, cast

import pytest
import trio
import trio.testing
from http_stage import PATIENCE_S
from raw_http import RawClient
from worker_stage import execute

from stepflow_trio import Worker
from stepflow_trio.transports.http.limits import HttpServerLimits

LARGE = 8 * 2**20
"""More than a socket takes whose other end reads nothing yet."""


async def ask(port: int, component: str) -> RawClient:
    """A connection over which a component was called, whose own buffers are small."""
    with socket.socket() as near:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=near.detach())))
    await stream.socket.connect(("127.0.0.1", port))
    body = json.dumps(execute(component)).encode()
    head = f"POST / HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
    await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return RawClient(stream)


async def test_a_stop_leaves_a_slow_reader_the_time_to_get_its_answer(host: str) -> None:
    worker = Worker()
    made = trio.Event()

    @worker.component
    async def large() -> str:
        made.set()
        return "x" * LARGE

    leave = trio.Event()

    async def serve(task_status: trio.TaskStatus[int]) -> None:
        name = cast("Literal['h11', 'hypercorn']", host)
        limits = HttpServerLimits(drain_s=PATIENCE_S)
        async with worker.open_http(http_host=name, http_limits=limits) as http:
            task_status.started(http.port)
            await leave.wait()

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            port: int = await nursery.start(serve)
            client = await ask(port, "/large")
            await made.wait()
            leave.set()
            await trio.testing.wait_all_tasks_blocked(0.05)
            response = await client.response(to="POST")
            assert len(json.loads(response.body)["result"]["output"]) == LARGE
            await client.aclose()


@pytest.mark.parametrize("component", ["/large", "/hold"])
async def test_a_stop_takes_no_longer_than_drain_s_whatever_is_in_flight(host: str, component: str) -> None:
    worker = Worker()
    at_it = trio.Event()

    @worker.component
    async def large() -> str:
        at_it.set()
        return "x" * LARGE

    @worker.component
    async def hold() -> None:
        at_it.set()
        await trio.sleep_forever()

    name = cast("Literal['h11', 'hypercorn']", host)
    limits = HttpServerLimits(drain_s=0.3, send_timeout_s=PATIENCE_S)
    with trio.fail_after(PATIENCE_S / 2):
        async with worker.open_http(http_host=name, http_limits=limits) as http:
            client = await ask(http.port, component)
            await at_it.wait()
            began = trio.current_time()
        assert trio.current_time() - began > 0.2
        await client.aclose()
