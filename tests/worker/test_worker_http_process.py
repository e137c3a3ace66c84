"""A worker over HTTP as a process of its own: what it prints, and how signals end it."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from stepflow_trio.transports.port_process import PortProcess, open_port_process

BLOCKED = "a component blocks the event loop; exiting"

SCRIPT = '''
import resource, signal, sys, time
import trio
from stepflow_trio import Worker
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.worker import process

process.BLOCKED_GRACE_S = 0.3
worker = Worker()


@worker.component(inline=True)
def block() -> None:
    """The event loop, for ever."""
    print("began", file=sys.stderr, flush=True)
    while True:
        time.sleep(1000)


@worker.component(inline=True)
def descriptors() -> list:
    return resource.getrlimit(resource.RLIMIT_NOFILE)


@worker.component
async def hold() -> str:
    """Until it is released with SIGUSR1."""
    with trio.open_signal_receiver(signal.SIGUSR1) as released:
        print("began", file=sys.stderr, flush=True)
        try:
            async for _ in released:
                break
        finally:
            print("ended", file=sys.stderr, flush=True)
    return "held"


if __name__ == "__main__":
    print("about to serve", file=sys.stderr)
    worker.run_http(port=int(sys.argv[1]), http_limits=HttpServerLimits(drain_s=float(sys.argv[2])))
'''


class Log(list[str]):
    """The lines that a process has written."""

    def __init__(self) -> None:
        super().__init__()
        self._more = trio.lowlevel.ParkingLot()

    def __call__(self, line: str) -> None:
        self.append(line)
        self._more.unpark_all()

    async def wait_for(self, line: str) -> None:
        while line not in self:
            await self._more.park()


def command(directory: Path, *, port: int = 0, drain_s: float = 20) -> list[str]:
    script = directory / "worker.py"
    script.write_text(SCRIPT, encoding="utf-8")
    return [sys.executable, str(script), str(port), str(drain_s)]


@asynccontextmanager
async def holding(
    directory: Path, *, drain_s: float = 1000, component: str = "/hold"
) -> AsyncGenerator[tuple[PortProcess, Log, trio.SocketStream]]:
    """A worker that is at a request; the connection will have the answer. Limited to 20 s."""
    params = {"component": component, "input": {}, "attempt": 1, "observability": {}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "components/execute", "params": params})
    log = Log()
    with trio.fail_after(20):
        async with open_port_process(
            command(directory, drain_s=drain_s), env={}, cwd=directory, on_log_line=log
        ) as process:
            stream = await trio.open_tcp_stream("127.0.0.1", await process.wait_port())
            async with stream:
                head = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                head = head.replace("localhost", f"localhost:{stream.socket.getpeername()[1]}")
                await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                await log.wait_for("began")
                yield process, log, stream


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_lets_it_finish_what_it_is_at(tmp_path: Path, signum: signal.Signals) -> None:
    async with holding(tmp_path) as (process, log, stream):
        os.kill(process.pid, signum)
        await refused(stream.socket.getpeername()[1])
        os.kill(process.pid, signal.SIGUSR1)
        answer = await stream.receive_some(65_536)
        assert b'"output":"held"' in answer
        assert await process.wait_exited() == 0
    assert log == ["about to serve", "began", "ended"]


async def test_what_takes_too_long_is_cancelled(tmp_path: Path) -> None:
    async with holding(tmp_path, drain_s=0.2) as (process, log, stream):
        os.kill(process.pid, signal.SIGINT)
        assert await stream.receive_some(65_536) == b""
        assert await process.wait_exited() == 0
    assert log == ["about to serve", "began", "ended"]


async def test_a_second_ctrl_c_ends_it_at_once_and_without_a_traceback(tmp_path: Path) -> None:
    async with holding(tmp_path) as (process, log, stream):
        os.kill(process.pid, signal.SIGINT)
        # Until it has seen that one: of two equal signals the kernel may keep only one.
        await refused(stream.socket.getpeername()[1])
        os.kill(process.pid, signal.SIGINT)
        assert await process.wait_exited() == 0
    assert log == ["about to serve", "began", "ended"]


async def test_a_second_sigterm_changes_nothing(tmp_path: Path) -> None:
    async with holding(tmp_path) as (process, log, stream):
        os.kill(process.pid, signal.SIGTERM)
        await refused(stream.socket.getpeername()[1])
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGUSR1)
        assert b'"output":"held"' in await stream.receive_some(65_536)
        assert await process.wait_exited() == 0
    assert log == ["about to serve", "began", "ended"]


async def test_a_component_that_blocks_does_not_keep_it_from_ending(tmp_path: Path) -> None:
    async with holding(tmp_path, drain_s=0.1, component="/block") as (process, log, _):
        os.kill(process.pid, signal.SIGTERM)
        assert await process.wait_exited() == 128 + signal.SIGTERM
    assert log[2:] == [
        "the worker has not ended 0.4 s after SIGTERM: a component blocks the event loop; exiting"
    ]


async def test_a_second_ctrl_c_ends_it_soon_though_a_component_blocks_it(tmp_path: Path) -> None:
    async with holding(tmp_path, component="/block") as (process, log, _):
        while True:  # of two equal signals the kernel may keep only one
            os.kill(process.pid, signal.SIGINT)
            with trio.move_on_after(0.2):
                assert await process.wait_exited() == 128 + signal.SIGINT
                break
    assert log[2:] == [
        "the worker has not ended 0.3 s after SIGINT: a component blocks the event loop; exiting"
    ]


async def test_it_takes_as_many_descriptors_as_it_may(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with open_port_process(
        ["sh", "-c", 'ulimit -Sn 64; exec "$@"', "sh", *command(tmp_path)],
        env={"PATH": os.environ["PATH"]},
        cwd=tmp_path,
        on_log_line=Log(),
    ) as process:
        port = await process.wait_port()
        params = {"component": "/descriptors", "input": {}, "attempt": 1, "observability": {}}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "components/execute", "params": params})
        head = f"POST / HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            answer = await stream.receive_some(65_536)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["result"]["output"] == [min(hard, 65_536), hard]


async def refused(port: int) -> None:
    """Wait until the worker takes no new requests."""
    request = f"GET /runtime/events HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode()
    status = b""
    while b" 503 " not in status:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request)
            status = await stream.receive_some(30)


def test_a_port_that_is_taken_is_said_on_stderr_and_nothing_on_stdout(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            command(tmp_path, port=port), capture_output=True, text=True, env={}, timeout=20
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "about to serve\n"
        f"cannot listen on 127.0.0.1:{port}: another program listens there already; "
        "port 0 takes a free port\n"
    )
