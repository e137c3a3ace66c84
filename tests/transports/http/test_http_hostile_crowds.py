"""Hundreds of slow and stalled clients, beside some that are served as if they were alone."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, suppress
from statistics import median

import pytest
import trio
from hostile_stage import ask, percentile
from http_stage import Server, echo, open_server, part, read_body, start
from raw_http import CutShort, RawClient, connected, request

from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.limits import HttpServerLimits

SLOW_CLIENTS = 500
ROUNDS = 5
ASKED_IN_A_ROUND = 200

NOISE_S = 0.01
"""Within which a latency may be, whatever it was without the crowd: other processes need their time too."""

STREAMS = 500
STALLED = 50
EVENT_S = 0.5

MIB = 2**20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def many_descriptors() -> Generator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 3 * STREAMS
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"needs {needed} descriptors, and only {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def connect_narrow(port: int) -> RawClient:
    """A client into which little fits that it does not read."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
    await sock.connect(("127.0.0.1", port))
    return RawClient(trio.SocketStream(sock))


def report(numbers: str) -> None:
    print(numbers)  # noqa: T201 - for whoever runs this with -s


# ---- slow in everything


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    """Echoes, but at ``/large`` there is more to read."""
    if scope["path"] != "/large":
        await echo(scope, receive, send)
        return
    with suppress(OSError):
        await start(send)
        for _ in range(64):
            await part(send, bytes(2**16), more=True)
        await part(send, b"")


SLOW_CROWD = """
import contextlib, os, socket, sys, trio

port, count = map(int, sys.argv[1:])
HEADS = [
    b"",
    b"POST / HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: 1000000\\r\\n\\r\\n",
    b"GET /large HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n",
]

async def be_slow(number):
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
    await sock.connect(("127.0.0.1", port))
    stream = trio.SocketStream(sock)
    await stream.send_all(HEADS[number % 3])
    await trio.sleep(number / count)
    for byte in b"GET / HTTP/1.1\\r\\nX: " + b"y" * 1000:
        if number % 3 == 2:
            await stream.receive_some(1)
        else:
            await stream.send_all(bytes([byte]))
        await trio.sleep(1)

async def main():
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(be_slow, number)
        await trio.sleep(1)
        os.write(1, b"slow")

trio.run(main)
"""
"""Clients in a process of their own, for they would take turns of the server's thread: each of them slow in a
request's headers, in its body or in reading the answer, with a byte a second."""


@asynccontextmanager
async def slow_crowd(port: int) -> AsyncGenerator[None]:
    command = [sys.executable, "-c", SLOW_CROWD, str(port), str(SLOW_CLIENTS)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    async with process.stdout:
        assert await process.stdout.receive_some() == b"slow"
        try:
            yield
        finally:
            process.kill()
            await process.wait()


async def latency_s(port: int) -> float:
    """The 99th percentile of a client that asks again and again."""
    taken: list[float] = []
    async with connected(port) as client:
        for _ in range(ASKED_IN_A_ROUND):
            began = trio.current_time()
            await ask(client)
            taken.append(trio.current_time() - began)
    return percentile(taken, 0.99)


async def test_slow_clients_slow_down_nobody_else(host: str) -> None:
    limits = HttpServerLimits(header_timeout_s=60, body_grace_s=60, send_timeout_s=60, keep_alive_s=60)
    alone: list[float] = []
    beside: list[float] = []
    async with open_server(host, large, limits) as server:
        await latency_s(server.port)
        alone += [await latency_s(server.port) for _ in range(ROUNDS)]
        async with slow_crowd(server.port):
            beside += [await latency_s(server.port) for _ in range(ROUNDS)]
        alone += [await latency_s(server.port) for _ in range(ROUNDS)]
    report(f"{host}: p99 {median(alone) * 1000:.2f} ms alone, {median(beside) * 1000:.2f} ms beside")
    assert median(beside) < max(2 * median(alone), NOISE_S)


# ---- event streams


class Events:
    """Streams an event now and then to ``/events``, and as many as can be to ``/flood``; else it echoes."""

    def __init__(self) -> None:
        self.floods = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in ("/events", "/flood"):
            await echo(scope, receive, send)
            return
        await read_body(receive)
        await start(send, 200, (b"content-type", b"text/event-stream"))
        is_flood = scope["path"] == "/flood"
        self.floods += is_flood
        try:
            while True:
                await part(send, b"data: %b\n\n" % bytes(2**15 if is_flood else 100), more=True)
                if not is_flood:
                    await trio.sleep(EVENT_S)
        except OSError:
            pass
        finally:
            self.floods -= is_flood


async def test_stalled_readers_of_event_streams_cost_nobody_else_anything(host: str) -> None:
    """Of 500 streams 50 are not read. The others get each event in time, memory is bounded, the stalled ones
    are closed, and the shutdown waits for nobody longer than it may."""
    app = Events()
    gaps: list[float] = []
    received = [0] * (STREAMS - STALLED)

    async def listen(number: int, server: Server, opened: trio.Semaphore) -> None:
        async with connected(server.port) as client:
            await client.send(request("GET", "/events"))
            assert (await client.head())[0] == 200
            opened.release()
            last = trio.current_time()
            while await client.chunk():
                gaps.append(trio.current_time() - last)
                last = trio.current_time()
                received[number] += 1

    async def listen_until_cut(number: int, server: Server, opened: trio.Semaphore) -> None:
        with suppress(CutShort):
            await listen(number, server, opened)

    limits = HttpServerLimits(send_timeout_s=2, drain_s=1)
    rss = resident_bytes()
    async with open_server(host, app, limits) as server, trio.open_nursery() as nursery:
        opened = trio.Semaphore(0)
        stalled = [await connect_narrow(server.port) for _ in range(STALLED)]
        for client in stalled:
            await client.send(request("GET", "/flood"))
        for number in range(STREAMS - STALLED):
            nursery.start_soon(listen_until_cut, number, server, opened)
        for _ in range(STREAMS - STALLED):
            await opened.acquire()
        assert app.floods == STALLED
        gaps.clear()
        grown = resident_bytes() - rss
        with trio.fail_after(20):
            async with connected(server.port) as client:
                while app.floods:  # for as long as the stalled ones are tolerated
                    await ask(client)
                    await trio.sleep(0.05)
        before = list(received)
        await trio.sleep(3 * EVENT_S)
        assert min(now - then for now, then in zip(received, before, strict=True)) >= 2
        grown = max(grown, resident_bytes() - rss)
        began = trio.current_time()
        server.stop.set()
        await server.wait_ended()
        took = trio.current_time() - began
        nursery.cancel_scope.cancel()
    for client in stalled:
        await client.aclose()
    jitter = percentile(gaps, 0.99) - EVENT_S
    report(f"{host}: jitter {jitter * 1000:.0f} ms, {grown / MIB:.0f} MiB more, stopped in {took:.2f} s")
    assert jitter < 1
    assert grown < 128 * MIB
    assert limits.drain_s <= took < limits.drain_s + 1
