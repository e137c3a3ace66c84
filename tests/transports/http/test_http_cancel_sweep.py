"""HTTP under cancellation: each scenario is cancelled at every scheduler step, at either end.

``STEPFLOW_SWEEP_SCALE`` multiplies the number of orders of the scheduler, as for the engine's own sweep.
"""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from link_stage import Server, execute, offered, open_stage
from trio.testing import wait_all_tasks_blocked
from worker_stage import Stage

from stepflow_trio.engine import Handlers, LinkConnection, RequestContext, open_connection
from stepflow_trio.errors import CallTimeout
from stepflow_trio.protocol import dialects
from stepflow_trio.protocol.peer import Role
from stepflow_trio.testing import AllPoints, Cancellable, RandomSample, Scenario, cancel_everywhere
from stepflow_trio.transports.http.client import open_http_client
from stepflow_trio.transports.http.h11_connection import serve_connection
from stepflow_trio.transports.http.h11_state import ServerState
from stepflow_trio.transports.http.limits import HttpClientLimits, HttpServerLimits
from stepflow_trio.transports.http.links import SessionMode, open_http_link

SCALE = int(os.environ.get("STEPFLOW_SWEEP_SCALE", "1"))


async def assert_as_good_as_before(stage: Stage, connection: LinkConnection, server: Server) -> None:
    """Nothing of what was cancelled is left at either end, and the next call is answered."""
    await trio.sleep(20)  # past every deadline of the pool
    statistics = connection.statistics()
    assert connection.loss is None
    assert (statistics.calls_waiting, statistics.calls_abandoned) == (0, 0)
    assert (statistics.requests_running, statistics.requests_waiting) == (0, 0)
    assert set(statistics.dropped) <= {"late_answer", "late_cancel", "unknown_answer"}
    assert "0 requests in flight" in repr(stage.endpoint)
    assert server.open_connections <= 1, "at most the stream of the session"
    assert await execute(connection, "/add", a=1, b=2) == 3
    assert await execute(connection, "/ask", text="next") == "b" * 64


async def a_call(cancellable: Cancellable, *, sessions: SessionMode) -> None:
    stage = Stage()
    async with open_stage(stage, sessions) as (connection, server):
        with cancellable:
            stage.release.set()
            assert await execute(connection, "/wait", text="x") == "x"
        await assert_as_good_as_before(stage, connection, server)


async def a_call_that_calls_back(cancellable: Cancellable, *, sessions: SessionMode) -> None:
    stage = Stage()
    async with open_stage(stage, sessions) as (connection, server):
        with cancellable:
            assert await execute(connection, "/ask", text="x") == "b" * 64
        await assert_as_good_as_before(stage, connection, server)
        assert stage.log.count("ask ended") <= 2


async def a_call_that_times_out_in_its_callback(cancellable: Cancellable, *, sessions: SessionMode) -> None:
    stage = Stage()
    running = 0

    async def put_blob(params: Any, _context: RequestContext) -> Any:
        nonlocal running
        if params["data"] == {"text": "next"}:
            return {"blob_id": "b" * 64}
        running += 1
        try:
            await trio.sleep_forever()
        finally:
            running -= 1

    handlers = Handlers()
    handlers.on_raw_request("blobs/put", put_blob)
    async with open_stage(stage, sessions, handlers) as (connection, server):
        with cancellable, suppress(CallTimeout):
            await execute(connection, "/ask", timeout_s=1, text="x")
        await assert_as_good_as_before(stage, connection, server)
        assert running == 0


async def calls_that_wait_for_a_connection(cancellable: Cancellable) -> None:
    """More calls than the pool has connections."""
    stage = Stage()
    async with open_stage(stage, "never", limits=HttpClientLimits(max_connections=1)) as (connection, server):
        with cancellable:
            stage.release.set()
            async with trio.open_nursery() as nursery:
                for text in "abc":
                    nursery.start_soon(partial(execute, connection, "/wait", text=text))
        await assert_as_good_as_before(stage, connection, server)


async def opening_and_leaving(cancellable: Cancellable, *, sessions: SessionMode) -> None:
    stage = Stage()
    async with trio.open_nursery() as nursery:
        server = Server(stage.endpoint, nursery)
        with cancellable:
            async with (
                open_http_link(
                    "http://worker.test",
                    capabilities=dialects.write_capabilities(),
                    sessions=sessions,
                    connect=server.connect,
                ) as link,
                open_connection(link, offered(), role=Role.RUNTIME) as connection,
            ):
                await connection.call("initialize", dialects.write_initialize_params(None))
                await connection.notify("initialized", {})
                await execute(connection, "/ask", text="x")
        await trio.sleep(20)
        assert server.open_connections == 0
        assert "0 requests in flight, 0 sessions" in repr(stage.endpoint)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def served(stage: Stage) -> AsyncGenerator[Server]:
    async with trio.open_nursery() as nursery:
        yield Server(stage.endpoint, nursery)
        nursery.cancel_scope.cancel()


async def the_endpoints_own_end(cancellable: Cancellable, *, sessions: SessionMode) -> None:
    """The server's tasks are cancelled, and the caller at the other end is told."""
    stage = Stage()
    outcomes: list[str] = []
    with cancellable:
        async with served(stage) as server:
            async with (
                open_http_link(
                    "http://worker.test",
                    capabilities=dialects.write_capabilities(),
                    sessions=sessions,
                    connect=server.connect,
                ) as link,
                open_connection(link, offered(), role=Role.RUNTIME) as connection,
            ):
                await connection.call("initialize", dialects.write_initialize_params(None))
                await connection.notify("initialized", {})
                outcomes.append(await execute(connection, "/ask", text="x"))
            stage.endpoint.stop()
            await stage.endpoint.wait_idle()
    await wait_all_tasks_blocked()
    assert "0 requests in flight, 0 sessions" in repr(stage.endpoint)
    assert outcomes in ([], ["b" * 64])


async def a_request_of_the_client(cancellable: Cancellable) -> None:
    stage = Stage()
    async with (
        served(stage) as server,
        open_http_client("http://worker.test", connect=server.connect) as client,
    ):
        with cancellable:
            async with client.request("GET", "/health") as response:
                assert b"healthy" in await response.read()
        async with client.request("GET", "/health") as response:
            assert response.status == 200
            await response.read()
        assert client.open_connections == client.idle_connections == 1


async def a_request_over_tls(cancellable: Cancellable, *, certificates: tuple[Path, Path]) -> None:
    """The handshake, the request, and the end of a connection that is TLS at both ends."""
    stage = Stage()
    certificate, key = certificates
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate, key)
    ours = ssl.create_default_context(cafile=certificate)
    async with trio.open_nursery() as nursery:
        state = ServerState(stage.endpoint, HttpServerLimits())

        async def connect() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            near, far = trio.testing.memory_stream_pair()
            tls = trio.SSLStream(far, theirs, server_side=True, https_compatible=True)
            nursery.start_soon(serve_connection, tls, state)
            return trio.SSLStream(near, ours, server_hostname="localhost", https_compatible=True)

        async with open_http_client("http://localhost", connect=connect) as client:
            with cancellable:
                async with client.request("GET", "/health") as response:
                    assert b"healthy" in await response.read()
            async with client.request("GET", "/health") as response:
                assert b"healthy" in await response.read()
            assert client.open_connections == client.idle_connections == 1
        await trio.sleep(20)
        assert "0 requests in flight" in repr(stage.endpoint)
        nursery.cancel_scope.cancel()


SCENARIOS: list[Scenario] = [
    calls_that_wait_for_a_connection,
    a_request_of_the_client,
    *(
        partial(scenario, sessions=sessions)
        for scenario in (
            a_call,
            a_call_that_calls_back,
            a_call_that_times_out_in_its_callback,
            opening_and_leaving,
            the_endpoints_own_end,
        )
        for sessions in ("never", "auto")
    ),
]


def name_of(scenario: Any) -> str:
    if isinstance(scenario, partial):
        how = "session" if scenario.keywords["sessions"] == "auto" else "posts"
        return f"{scenario.func.__name__}, {how}"
    return scenario.__name__


@pytest.mark.parametrize("scenario", SCENARIOS, ids=name_of)
def test_nothing_is_left_wherever_it_is_cancelled(scenario: Scenario) -> None:
    for seed in range(2 * SCALE):
        strategy = RandomSample(25, seed) if seed else AllPoints()
        # The scenarios themselves wait for the pool's deadlines.
        report = cancel_everywhere(scenario, strategy=strategy, seed=seed, within_s=30)
        assert report.caught


def test_nothing_is_left_of_a_request_over_tls_wherever_it_is_cancelled(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 30 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    scenario = partial(a_request_over_tls, certificates=(certificate, key))
    assert cancel_everywhere(scenario, within_s=30).caught
