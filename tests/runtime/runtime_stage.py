"""What the runtime's tests share: flows in few words, workers that say what happens in them, open stores."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from stepflow_trio import Context, RunFailed, Runtime, Worker, open_runtime
from stepflow_trio.engine import Connection, Handlers, Link, RequestContext, open_connection
from stepflow_trio.protocol import methods
from stepflow_trio.protocol.payloads import ExecuteParams, ExecuteResult
from stepflow_trio.protocol.peer import Role
from stepflow_trio.runtime.config import DEFAULT_CONFIG, Config, StdioPluginConfig
from stepflow_trio.runtime.events import Event
from stepflow_trio.runtime.retries import Backoff, Constant, RetryPolicy
from stepflow_trio.runtime.routing import Route, Rule
from stepflow_trio.runtime.stores import MemoryRunStore, RunRecord

INPUT = {"$input": "$"}

EventT = TypeVar("EventT")


def step(id_: str, component: str, input: Any = INPUT, **more: Any) -> dict[str, Any]:
    """A step; its input is the run's unless said otherwise."""
    return {"id": id_, "component": component, "input": input, **more}


def flow(*steps: dict[str, Any], output: Any = None, name: str = "tested") -> dict[str, Any]:
    """A flow whose output is the last step's result unless said otherwise."""
    if output is None:
        output = {"$step": steps[-1]["id"]}
    return {"name": name, "description": "of a test", "steps": list(steps), "output": output}


def one_step(component: str, input: Any = INPUT, **more: Any) -> dict[str, Any]:
    """A flow of one step, `only`."""
    return flow(step("only", component, input, **more))


def retrying(
    retries: int = 3, *, backoff: Backoff | None = None, jitter: float = 0.0, base: Config = DEFAULT_CONFIG
) -> Config:
    """A configuration with this transport budget, and one second between attempts unless said otherwise."""
    policy = RetryPolicy(
        transport_max_retries=retries, backoff=backoff or Constant(delay_s=1.0), jitter=jitter
    )
    return Config(plugins=base.plugins, routes=base.routes, retry=policy, source=base.source)


class Stage:
    """A worker whose components begin, end and are cancelled where a test can see it."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.began: list[str] = []
        self.ended: list[str] = []
        self.cancelled: list[str] = []
        self.attempts: list[int] = []
        self.times: list[float] = []
        self.run_ids: list[str | None] = []
        self.deadlines: list[float | None] = []
        self.release = trio.Event()
        self.has_begun = trio.Event()
        self.worker.add_component(self._echo, path="/echo", inline=True)
        self.worker.add_component(self._wait, path="/wait")
        self.worker.add_component(self._sleep, path="/sleep")

    def component(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Offer one more."""
        return self.worker.component(function)

    def _echo(self, value: Any) -> Any:
        return value

    async def _wait(self, name: str, context: Context) -> str:
        """Waits for ``release``."""
        self._note(name, context)
        try:
            await self.release.wait()
        except trio.Cancelled:
            self.cancelled.append(name)
            raise
        finally:
            self.ended.append(name)
        return name

    async def _sleep(self, seconds: float) -> float:
        await trio.sleep(seconds)
        return seconds

    def _note(self, name: str, context: Context) -> None:
        self.began.append(name)
        self.attempts.append(context.attempt)
        self.times.append(trio.current_time())
        self.run_ids.append(context.run_id)
        self.deadlines.append(context.deadline)
        self.has_begun.set()


class Seen(list[Event]):
    """An observer that keeps what it is told."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[EventT]) -> list[EventT]:
        """The events of one kind."""
        return [event for event in self if isinstance(event, kind)]


class OpenRunStore(MemoryRunStore):
    """A store that tests can look into without awaiting."""

    @property
    def records(self) -> list[RunRecord]:
        """Every run, in the order of submission."""
        return list(self._runs.values())

    @property
    def statuses(self) -> list[str]:
        """How every run stands, in the order of submission."""
        return [record.status for record in self.records]


Act = Callable[[Connection, ExecuteParams], Awaitable[Any]]


class RawWorker:
    """A worker that says on the wire exactly what a test wants it to: ``act`` is what its executions do.

    Args:
        act: gets the connection, for its own requests, and the execution's params; returns the output.
        welcome: its answer to ``initialize``; by its key the runtime knows the dialect. It gives up its own
            requests in the runtime's way (``$/cancelRequest``), whatever it says here.
    """

    def __init__(self, act: Act, welcome: dict[str, Any] | None = None) -> None:
        self._act = act
        self._welcome = welcome or {"serverProtocolVersion": 1}

    async def serve(self, link: Link) -> None:
        handlers = Handlers()
        handlers.on_raw_request("initialize", self._initialize)
        handlers.on_request(methods.COMPONENTS_EXECUTE, self._execute)
        async with open_connection(link, handlers, role=Role.WORKER) as connection:
            await connection.wait_lost()

    def _initialize(self, _params: Any, request: RequestContext) -> dict[str, Any]:
        request.connection.peer_extensions = frozenset({"cancel"})
        return self._welcome

    async def _execute(self, params: ExecuteParams, request: RequestContext) -> ExecuteResult:
        return ExecuteResult(await self._act(request.connection, params))


# ---- processes ------------------------------------------------------------------------------------------

RAW = """
import json, os, signal, sys, time
signal.alarm(60)  # for a test that fails

def send(**message):
    os.write(1, json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\\n")

def answer(request, output):
    send(id=request["id"], result={"output": output})

def executions(result={"serverProtocolVersion": 1}):
    for line in sys.stdin:
        message = json.loads(line)
        method = message.get("method") if type(message) is dict else None
        if method == "initialize":
            send(id=message["id"], result=result)
        elif method == "components/execute":
            yield message
"""
"""The beginning of a worker in plain Python, which is ready in 20 ms and breaks any rule it is told to."""


def raw_plugin(cwd: Path, script: str, **env: str) -> StdioPluginConfig:
    """A worker whose script follows :data:`RAW`."""
    path = cwd / f"worker_{len(list(cwd.iterdir()))}.py"
    path.write_text(RAW + textwrap.dedent(script), encoding="utf-8")
    return StdioPluginConfig(
        command=sys.executable, args=("-I", "-S", str(path)), env=env, working_directory=cwd
    )


def own_plugin(cwd: Path, script: str, **env: str) -> StdioPluginConfig:
    """A worker of this library: ``script`` registers components on ``worker``."""
    path = cwd / f"worker_{len(list(cwd.iterdir()))}.py"
    head = "import os, sys, time\nimport trio\nfrom stepflow_trio import Context, Worker\nworker = Worker()\n"
    tail = "\nif __name__ == '__main__':\n    worker.run_stdio()\n"
    path.write_text(head + textwrap.dedent(script) + tail, encoding="utf-8")
    return StdioPluginConfig(command=sys.executable, args=(str(path),), env=env, working_directory=cwd)


def processes(retries: int = 0, *, delay_s: float = 0.0, **plugins: StdioPluginConfig) -> Config:
    """Each plugin at ``/<its name>/…``, and the builtin ones."""
    routes = tuple(Route(f"/{name}/{{*component}}", (Rule(plugin=name),)) for name in plugins)
    base = Config(
        plugins={**DEFAULT_CONFIG.plugins, **plugins},
        routes=(*DEFAULT_CONFIG.routes, *routes),
        source="of a test",
    )
    return retrying(retries, backoff=Constant(delay_s=delay_s), base=base)


@asynccontextmanager
async def running(config: Config, **more: Any) -> AsyncGenerator[Runtime]:
    """A runtime, for at most 20 seconds."""
    with trio.fail_after(20):
        async with open_runtime(config, **more) as runtime:
            yield runtime


async def failure_of(runtime: Runtime, *run: Any) -> RunFailed:
    with pytest.raises(RunFailed) as caught:
        await runtime.run(*run)
    return caught.value


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 — what is waited for happens in another process
            await trio.sleep(0.005)


def open_descriptors() -> list[str]:
    """What this process has open, without the descriptor that lists it."""
    found: list[str] = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(f"{number} {Path(f'/proc/self/fd/{number}').readlink()}")
    return sorted(name for name in found if "/fd" not in name)


def has_children() -> bool:
    """Whether this process has a child, running or not reaped."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
