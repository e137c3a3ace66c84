"""Workers of this library as processes, and Debian's nginx before them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from stepflow_trio.engine.ending import last_words
from stepflow_trio.transports.port_process import PortProcess, open_port_process

NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))

WORKER = '''
import os, sys
import trio
from stepflow_trio import Context, Worker
from stepflow_trio.transports.http.security import HttpSecurity

NAME = sys.argv[1]
worker = Worker()
INNER = {"steps": [], "output": {"$input": "$"}}


def say(text):
    print(text, file=sys.stderr, flush=True)


@worker.component
async def who() -> str:
    return NAME


@worker.component
async def ask(text: str, context: Context) -> list:
    """What the runtime says, and who asked it."""
    return [NAME, await context.evaluate_flow(INNER, text)]


@worker.component
async def first_time(context: Context) -> list:
    """Is at it for ever, unless this is another attempt."""
    if context.attempt > 1:
        return [NAME, context.attempt]
    await at_it("first_time")


@worker.component
async def hold(aloud: bool, context: Context) -> None:
    """Is at it for ever, on an event stream where it is so `aloud`."""
    if aloud:
        context.progress(0.5, "holding")
    await at_it("hold")


async def at_it(what):
    say(what + " began")
    try:
        await trio.sleep_forever()
    finally:
        say(what + " ended")


@worker.component(inline=True)
def echo(value: str) -> str:
    return value


if __name__ == "__main__":
    security = HttpSecurity(allowed_hosts=["workers.internal"])
    worker.run_http(security=security, instance_id=NAME)
'''

CONFIGURATION = """
daemon off; pid nginx.pid; error_log stderr warn; worker_processes 1; {user}
events {{ worker_connections 1024; }}
http {{
    access_log off; client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    {site}
}}
"""
"""What only a test says, so that nginx stays in its directory, and ends with it."""

WORKER_UPSTREAM = """
    upstream worker-{name} {{
        server 127.0.0.1:{port};
        keepalive 32;
        keepalive_timeout 10s;
    }}
"""

SITE = """
    # Calls go to whoever has least to do; connections to them are kept, for less than the 15 s after
    # which a worker closes one that is idle: of two ends that close one, a request may be lost.
    upstream workers {{
        least_conn;
        {servers}
        keepalive 32;
        keepalive_timeout 10s;
    }}
    {upstreams}

    # What belongs to a call or a session that is under way goes to the worker that it is in.
    map $http_stepflow_instance_id $worker {{
        default workers;
        {instances}
    }}

    server {{
        listen 127.0.0.1:{port};

        location / {{
            proxy_pass http://$worker;
            proxy_http_version {http_version};
            proxy_set_header Connection "";
            proxy_set_header Host workers.internal;  # in allowed_hosts of the workers
            client_max_body_size 64m;                # 1m, unless said
            proxy_read_timeout 1d;                   # 60s, unless said: a component may be silent for longer
        }}
    }}
"""
"""What an operator would write. Buffering is on: event streams say that they are not to be buffered."""


class Log(list[str]):
    """The lines that a process has written."""

    def __init__(self) -> None:
        super().__init__()
        self._more = trio.lowlevel.ParkingLot()

    def __call__(self, line: str) -> None:
        self.append(line)
        self._more.unpark_all()

    async def wait_for(self, line: str) -> None:
        """Wait until this line has come."""
        while line not in self:
            await self._more.park()


class WorkerProcess:
    """A worker that runs."""

    def __init__(self, name: str, process: PortProcess, port: int, log: Log) -> None:
        self.name = name
        self.process = process
        self.port = port
        self.log = log

    def kill(self) -> None:
        """As the kernel does when memory is short."""
        os.kill(self.process.pid, signal.SIGKILL)


@asynccontextmanager
async def open_worker(name: str, directory: Path) -> AsyncGenerator[WorkerProcess]:
    """A worker with this instance id, as long as the block lasts."""
    script = directory / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    log = Log()
    command = [sys.executable, str(script), name]
    async with open_port_process(command, env={}, cwd=directory, on_log_line=log) as process:
        yield WorkerProcess(name, process, await process.wait_port(), log)


@asynccontextmanager
async def open_nginx(
    workers: Sequence[WorkerProcess], directory: Path, http_version: str
) -> AsyncGenerator[int]:
    """nginx before these workers, as long as the block lasts; yields its port.

    It inherits its listening socket, as when its program is replaced: so the port is its own from the
    beginning, and connections wait until it is ready.
    """
    assert NGINX is not None
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        port = listening.getsockname()[1]
        site = SITE.format(
            port=port,
            http_version=http_version,
            servers=" ".join(f"server 127.0.0.1:{worker.port};" for worker in workers),
            upstreams="".join(WORKER_UPSTREAM.format(name=each.name, port=each.port) for each in workers),
            instances=" ".join(f'"{worker.name}" worker-{worker.name};' for worker in workers),
        )
        user = "user root;" if os.geteuid() == 0 else ""
        file = directory / "nginx.conf"
        file.write_text(CONFIGURATION.format(user=user, site=site), encoding="utf-8")
        process = await trio.lowlevel.open_process(
            [NGINX, "-p", str(directory), "-c", str(file), "-e", "stderr"],
            stdin=subprocess.DEVNULL,
            env={"NGINX": f"{listening.fileno()};"},
            pass_fds=[listening.fileno()],
        )
    try:
        yield port
    finally:
        process.terminate()
        await last_words(process.wait, within_s=10)


@asynccontextmanager
async def open_stage(
    directory: Path, *, http_version: str = "1.1"
) -> AsyncGenerator[tuple[int, dict[str, WorkerProcess]]]:
    """nginx's port, and the two workers behind it, to which it speaks this version: ``a`` and ``b``."""
    with trio.fail_after(25):
        async with (
            open_worker("a", directory) as a,
            open_worker("b", directory) as b,
            open_nginx([a, b], directory, http_version) as port,
        ):
            yield port, {"a": a, "b": b}
