"""What hostile clients and the tests about them need: servers of every kind, and a healthy client beside."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from http_stage import HOSTS, MemoryServer
from raw_http import RawClient, Response, connected, request

from stepflow_trio.transports.http.asgi import AsgiApp
from stepflow_trio.transports.http.limits import HttpServerLimits

HEALTHY_S = 5
"""A healthy client waits no longer for an answer, whatever the others do."""

MESSAGES = int(os.environ.get("STEPFLOW_HOSTILE_MESSAGES", "4000"))
"""How many mutated messages are sent in all. A campaign sends 50,000 and more."""

SEED = int(os.environ.get("STEPFLOW_HOSTILE_SEED", "20260"))


@asynccontextmanager
async def open_memory_host(
    host: str, app: AsgiApp, limits: HttpServerLimits | None = None, **rest: Any
) -> AsyncGenerator[MemoryServer]:
    """Serve ``app`` with the host of that name over memory streams: time may be virtual."""
    server = MemoryServer()
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[None]) -> None:
            options = {"limits": limits or HttpServerLimits(), "task_status": task_status, **rest}
            await server.run(HOSTS[host], app, [server.listener], **options)

        await nursery.start(run)
        try:
            yield server
        finally:
            server.cancel()


@asynccontextmanager
async def memory_client(server: MemoryServer, *, lockstep: bool = False) -> AsyncGenerator[RawClient]:
    """A connection to it; with ``lockstep`` one without buffers, so that a send ends when all is received."""
    listener = server.listener
    client = RawClient(listener.connect_lockstep() if lockstep else listener.connect())
    try:
        yield client
    finally:
        await client.aclose()


async def ask(client: RawClient, body: bytes = b"healthy") -> Response:
    """One exchange of a healthy client with an application that echoes."""
    with trio.fail_after(HEALTHY_S):
        await client.send(request("POST", body=body))
        response = await client.response()
    assert (response.status, response.body) == (200, body)
    return response


async def assert_healthy(port: int) -> None:
    """A new client is served."""
    async with connected(port) as client:
        await ask(client)


@asynccontextmanager
async def healthy_client(connect: Callable[[], Awaitable[trio.abc.Stream]]) -> AsyncGenerator[list[float]]:
    """While the block runs, a client asks on and on, on one connection. Yields how long each answer took."""
    latencies: list[float] = []
    stop = trio.Event()

    async def ask_on() -> None:
        client = RawClient(await connect())
        try:
            while not stop.is_set():
                began = trio.current_time()
                response = await ask(client)
                latencies.append(trio.current_time() - began)
                if response.closes:
                    await client.aclose()
                    client = RawClient(await connect())
                with trio.move_on_after(0.002):
                    await stop.wait()
        finally:
            await client.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_on)
        yield latencies
        stop.set()
    assert latencies


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def mutated(message: bytes, rng: random.Random, tokens: list[bytes]) -> bytes:
    """The message with a few small things wrong with it."""
    data = bytearray(message)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 16, 200)))
        match rng.randrange(8):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.randrange(256)
            case 2:
                data[at:at] = rng.randbytes(rng.choice((1, 2, 9, 100)))
            case 3:
                del data[at:end]
            case 4:
                data[at:at] = data[at:end] * rng.choice((1, 2, 50))
            case 5:
                del data[at:]
            case 6:
                data[at:end] = rng.choice(tokens)
            case _:
                data[at:at] = rng.choice(tokens)
    return bytes(data)


async def throw(stream: trio.abc.Stream, data: bytes, rng: random.Random) -> None:
    """Send what nobody should, in one piece or several, and leave in one of the ways of clients."""
    try:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError), trio.fail_after(HEALTHY_S):
            cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 0, 1, 3))))
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                await stream.send_all(data[start:end])
                if cuts:
                    await trio.lowlevel.checkpoint()
            if rng.random() < 0.3:
                return
            if isinstance(stream, trio.abc.HalfCloseableStream):
                await stream.send_eof()
                while await stream.receive_some(2**16):
                    pass
    finally:
        await trio.aclose_forcefully(stream)
