"""Workers of this library that serve HTTP in processes of their own, and runtimes that use them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from stepflow_trio import Runtime, Worker, open_runtime
from stepflow_trio.runtime.config import Config, read_config
from stepflow_trio.runtime.events import Event, WorkerLine
from stepflow_trio.transports.port_process import PortProcess, open_port_process

SCRIPT = '''
import os, sys
from pathlib import Path
import trio
from stepflow_trio import BearerTokens, ComponentError, Context, HttpSecurity, TlsFiles, Worker

given = os.environ
worker = Worker()


def say(text):
    print(text, file=sys.stderr, flush=True)


@worker.component(inline=True)
def echo(value: object) -> object:
    return value


@worker.component
async def echo_field(value: str) -> dict:
    """Its input and output have a field that may be so large that it travels as a blob."""
    return {"value": value, "length": len(value)}


@worker.component
async def pid() -> int:
    return os.getpid()


@worker.component
async def attempt(context: Context) -> list:
    return [context.attempt, os.getpid()]


@worker.component
async def fail(code: int) -> None:
    raise ComponentError("nicht möglich", code=code, data={"why": "weil"})


@worker.component
async def crash() -> None:
    raise KeyError("oops")


@worker.component
async def call(flow: dict, input: object, context: Context) -> list:
    """What a flow says that the runtime runs for it."""
    context.progress(0.25, "calling back")
    output = await context.evaluate_flow(flow, input)
    context.progress(0.75, "hat geantwortet: ä")
    return [os.getpid(), output]


@worker.component
async def keep(data: object, context: Context) -> list:
    """A blob, stored and read."""
    blob_id = await context.put_blob(data)
    return [blob_id, await context.get_blob(blob_id) == data]


@worker.component
async def hold() -> None:
    """Is at it for ever."""
    await at_it("hold")


@worker.component
async def first_time(context: Context) -> list:
    """Is at it for ever, unless this is another attempt."""
    if context.attempt == 1:
        await at_it("first_time")
    return [context.attempt, os.getpid()]


here = 0
all_here = trio.Event()


@worker.component
async def together(count: int) -> bool:
    """Whether so many executions are at it at the same time, in the end."""
    global here
    here += 1
    if here == count:
        all_here.set()
    with trio.move_on_after(3):
        await all_here.wait()
    return all_here.is_set()


async def at_it(what):
    say(what + " began")
    try:
        await trio.sleep_forever()
    finally:
        say(what + " ended")


if __name__ == "__main__":
    security = tls = None
    if "TOKEN" in given:
        security = HttpSecurity(bearer=BearerTokens.from_environment("TOKEN"))
    if "CERTIFICATE" in given:
        client_ca = Path(given["CLIENT_CA"]) if "CLIENT_CA" in given else None
        tls = TlsFiles(
            certificate=Path(given["CERTIFICATE"]), private_key=Path(given["KEY"]), client_ca=client_ca
        )
    worker.run_http(
        port=int(given.get("PORT", 0)),
        http_host="hypercorn" if tls else given.get("HOST", "auto"),
        security=security,
        tls=tls,
    )
'''


class Log(list[str]):
    """Lines that workers have written."""

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
    """A worker that somebody else has started."""

    def __init__(self, process: PortProcess, port: int, log: Log, scheme: str) -> None:
        self.process = process
        self.port = port
        self.log = log
        self.url = f"{scheme}://127.0.0.1:{port}"

    def send(self, signum: signal.Signals) -> None:
        os.kill(self.process.pid, signum)


def command_in(directory: Path) -> list[str]:
    """What starts a worker."""
    script = directory / "own_worker.py"
    script.write_text(SCRIPT, encoding="utf-8")
    return [sys.executable, str(script)]


@asynccontextmanager
async def open_worker(directory: Path, **env: str) -> AsyncGenerator[WorkerProcess]:
    """A worker as long as the block lasts; ``env`` says how it serves."""
    log = Log()
    async with open_port_process(command_in(directory), env=env, cwd=directory, on_log_line=log) as process:
        scheme = "https" if "CERTIFICATE" in env else "http"
        yield WorkerProcess(process, await process.wait_port(), log, scheme)


def config_with(
    directory: Path,
    plugin: Mapping[str, Any],
    *,
    retries: int = 0,
    environ: Mapping[str, str] | None = None,
    **more: Any,
) -> Config:
    """Read as from a file: ``plugin`` at ``/w/…``, and the builtin ones."""
    config = {
        "plugins": {"w": {"type": "stepflow", **plugin}, "builtin": {"type": "builtin"}},
        "routes": {"/w/{*component}": [{"plugin": "w"}], "/builtin/{*component}": [{"plugin": "builtin"}]},
        "retry": {"transportMaxRetries": retries, "backoff": {"type": "constant", "delayMs": 10}},
        **more,
    }
    read = read_config(json.dumps(config), name="c.json", directory=directory, environ=environ or {})
    assert read.warnings == ()
    return read


class Seen(list[Event]):
    """What a runtime told; the lines of its workers are in ``log``."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self._more = trio.lowlevel.ParkingLot()

    def __call__(self, event: Event) -> None:
        self.append(event)
        self._more.unpark_all()
        if isinstance(event, WorkerLine):
            self.log(event.text)

    def of(self, kind: type[Any]) -> list[Any]:
        """The events of one kind."""
        return [event for event in self if isinstance(event, kind)]

    async def wait_for(self, kind: type[Any]) -> Any:
        """Wait for the first event of this kind."""
        while not (found := self.of(kind)):
            await self._more.park()
        return found[0]


class Stage:
    """A runtime over one or two workers, and how to see what happens in them."""

    def __init__(self, runtime: Runtime, seen: Seen, workers: list[WorkerProcess]) -> None:
        self.runtime = runtime
        self.seen = seen
        self.workers = workers
        self.logs = [worker.log for worker in workers] or [seen.log]

    async def run(self, component: str, input: Any = None) -> Any:
        """What a component says to this input."""
        return await self.runtime.run(calling(component), input)

    async def wait_said(self, line: str) -> int:
        """Wait until a worker has written this line; which one?"""
        async with trio.open_nursery() as nursery:
            found: list[int] = []

            async def wait(index: int, log: Log) -> None:
                await log.wait_for(line)
                found.append(index)
                nursery.cancel_scope.cancel()

            for index, log in enumerate(self.logs):
                nursery.start_soon(wait, index, log)
        return found[0]


MODES = ["session", "posts", "url", "url-session", "urls", "hypercorn"]
"""Started by the runtime, and reached in a session or by plain POSTs; started beside it, by plain POSTs but
for one session, and in the end behind the other host."""


@asynccontextmanager
async def open_stage(
    mode: str, directory: Path, *, workers: Mapping[str, Worker] | None = None, **config: Any
) -> AsyncGenerator[Stage]:
    """A runtime whose workers are reached as ``mode`` says; see :data:`MODES`. Limited to half a minute."""
    seen = Seen()
    started: list[WorkerProcess] = []
    plugin: dict[str, Any]
    with trio.fail_after(30):
        async with AsyncExitStack() as stack:
            if mode in ("session", "posts"):
                command, *args = command_in(directory)
                session = "auto" if mode == "session" else "never"
                plugin = {"command": command, "args": args, "session": session}
            else:
                env = {"HOST": "hypercorn"} if mode == "hypercorn" else {}
                opened = [open_worker(directory, **env) for _ in range(2 if mode == "urls" else 1)]
                started = [await stack.enter_async_context(each) for each in opened]
                if mode == "urls":
                    plugin = {"urls": [worker.url for worker in started]}
                else:
                    session = "always" if mode == "url-session" else "auto"
                    plugin = {"url": started[0].url, "session": session}
            read = config_with(directory, plugin, **config)
            runtime = await stack.enter_async_context(open_runtime(read, on_event=seen, workers=workers))
            yield Stage(runtime, seen, started)


def calling(component: str, plugin: str = "w") -> dict[str, Any]:
    """A flow of one step, `only`, that calls this component with the run's input."""
    step = {"id": "only", "component": f"/{plugin}/{component}", "input": {"$input": "$"}}
    return {"steps": [step], "output": {"$step": "only"}}


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another process or the kernel does."""
    while not condition():  # noqa: ASYNC110 — nothing says when it happens
        await trio.sleep(0.01)
