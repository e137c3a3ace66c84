"""Our runtime with the public SDK whose workers speak over HTTP: stepflow-py 0.9.2 and 0.11.2.

The workers are those of ``workers/sdk_http.py``, started by the runtime and beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from orchestrator import configuration, given, one_step, open_worker, plugin_of
from releases import WORKERS, needs, sdk_python

from stepflow_trio import ErrorCode, RunFailed, Runtime, open_runtime
from stepflow_trio.flows.results import Success
from stepflow_trio.runtime.config import read_config
from stepflow_trio.runtime.events import (
    Event,
    RunEnded,
    StepRetrying,
    WorkerEnded,
    WorkerLine,
    WorkerStarted,
)

SDKS = ["0.9.2", "0.11.2"]

pytestmark = needs(*(f"stepflow-py-{sdk}" for sdk in SDKS))

HELLO = {"message": "Hello, blobs!", "number": 42, "nested": {"array": [1, 2, 3], "boolean": True}}
HELLO_ID = "868591347a854ba1d0f4875b2dd44e1e8335052af03725a9819f89e0142318b0"

# The whole of the first plane, and a character of another.
CHARACTERS = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000), 0x1F600, 0x10FFFF]))


class Seen(list[Event]):
    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]


class Peer:
    """A public SDK, and the worker of it that runs as long as the module's tests."""

    def __init__(self, sdk: str, port: int) -> None:
        self.sdk = sdk
        self.port = port
        self.command = command_of(sdk)
        self.is_old = sdk == "0.9.2"
        self.failed = -32003 if self.is_old else -32100


def command_of(sdk: str) -> list[str | Path]:
    return [sdk_python(sdk), WORKERS / "sdk_http.py"]


@pytest.fixture(scope="module", params=SDKS)
def peer(request: pytest.FixtureRequest) -> Generator[Peer]:
    with open_worker(command_of(request.param)) as (_, port):
        yield Peer(request.param, port)


@pytest.fixture(params=["subprocess", "remote"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@asynccontextmanager
async def runtime_with(
    where: list[str | Path] | int | dict[str, Any],
    seen: Seen | None = None,
    *,
    retries: int = 0,
    within_s: float = 30,
    env: dict[str, str] | None = None,
    **more: Any,
) -> AsyncGenerator[Runtime]:
    """A runtime whose plugin ``sdk`` is the worker with this command, at this port, or so configured."""
    plugin = where if isinstance(where, dict) else plugin_of(where, **(env or {}))
    config = configuration({"sdk": plugin}, **more)
    config["retry"]["transportMaxRetries"] = retries
    text = json.dumps(config)
    read = read_config(text, name="config.json", directory=WORKERS, environ={})
    assert read.warnings == ()
    with trio.fail_after(within_s):
        async with open_runtime(read, on_event=seen) as runtime:
            yield runtime


async def failure_of(runtime: Runtime, flow: Any, input: Any = None) -> RunFailed:
    with pytest.raises(RunFailed) as caught:
        await runtime.run(flow, input)
    return caught.value


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(15):
        while not condition():  # noqa: ASYNC110 — what is waited for happens in another process
            await trio.sleep(0.01)


ADD = one_step("/sdk/add", {"a": {"$input": "$"}, "b": 1})


# ---- what it offers -------------------------------------------------------------------------------------


async def test_its_components_are_listed_with_their_schemas(peer: Peer) -> None:
    async with runtime_with(peer.port) as runtime:
        listed = {component.path: component for component in await runtime.list_components()}
        assert runtime.plugin_problems == {}
    add = listed["/sdk/add"]
    assert (add.plugin, add.info.component, add.info.description) == ("sdk", "/add", "add two")
    assert add.info.input_schema is not None
    assert add.info.input_schema["$defs"]["In"]["required"] == ["a", "b"]
    assert "/sdk/udf" in listed


async def test_a_component_is_executed_and_told_where_it_is(peer: Peer, mode: str) -> None:
    where = peer.port if mode == "remote" else peer.command
    seen = Seen()
    async with runtime_with(where, seen, env={"GIVEN": "this"}) as runtime:
        assert await runtime.run(ADD, 41) == {"c": 42}
        run = await runtime.submit(given("/sdk/who"), [None])
        await run.wait()
        [result] = run.results
        assert isinstance(result, Success)
        told = result.result
        assert (told["run_id"], told["flow_id"], told["step_id"]) == (run.id, run.flow_id, "only")
        assert told["attempt"] == 1
        if mode == "subprocess":
            assert told["pid"] == seen.of(WorkerStarted)[0].pid
            # Python itself adds the locale that it coerces to.
            environ = {key: value for key, value in told["environ"].items() if key != "LC_CTYPE"}
            assert environ == {"GIVEN": "this"}


async def test_500_calls_at_once_each_get_their_own_answer(peer: Peer) -> None:
    async with runtime_with(peer.port) as runtime:
        run = await runtime.submit(ADD, range(500), max_concurrency=200)
        await run.wait()
        assert run.results == [Success({"c": n + 1}) for n in range(500)]


@pytest.mark.parametrize("size", [100_000, 3_000_000, 20_000_000])
async def test_a_large_output_arrives(peer: Peer, size: int) -> None:
    """E6, E28: 0.11.2 makes a blob of what is over 1 MiB; here the blob API takes it."""
    async with runtime_with(peer.port) as runtime:
        assert await runtime.run(given("/sdk/large", size=size)) == {"text": "x" * size}


# ---- characters -----------------------------------------------------------------------------------------


async def test_every_kind_of_character_survives_in_plain_answers(peer: Peer) -> None:
    value = {"text": CHARACTERS, CHARACTERS[:3000]: "key"}
    async with runtime_with(peer.port) as runtime:
        assert await runtime.run(given("/sdk/echo", value=value)) == {"value": value}


async def test_every_kind_of_character_survives_in_an_event_stream(peer: Peer) -> None:
    """It comes as raw UTF-8, wherever the chunks cut it."""
    value = {"text": CHARACTERS, CHARACTERS[:3000]: "key"}
    flow = one_step("/sdk/echo", {"value": {"$input": "$"}})
    async with runtime_with(peer.port) as runtime:
        stored = await runtime.run(given("/builtin/put_blob", data=flow, blob_type="flow"))
        asks = given("/sdk/evaluate", flow_id=stored["blob_id"], input=value)
        for _ in range(5):
            assert await runtime.run(asks) == {"value": {"value": value}}


async def test_every_kind_of_character_survives_in_a_blob(peer: Peer) -> None:
    async with runtime_with(peer.port) as runtime:
        assert (await runtime.run(given("/sdk/keep", data=CHARACTERS)))["data"] == CHARACTERS


# ---- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (given("/sdk/boom", text="bad é"), "Component execution failed: bad é"),
        (given("/sdk/refuses", code=-32110, message="no", data={"sku": 7}), "Component execution failed: no"),
        (
            given("/sdk/add", a="x", b=1),
            "Component execution failed: Expected `int`, got `str` - at `$.a`",
        ),
    ],
    ids=["raises", "raises with a code of its own", "wrong input"],
)
async def test_its_errors_are_shown_as_they_came(peer: Peer, flow: Any, message: str) -> None:
    """E12: what code and data its component gave is lost within it."""
    async with runtime_with(peer.port) as runtime:
        failure = await failure_of(runtime, flow)
        assert (failure.code, failure.message, failure.data) == (peer.failed, message, {})
        assert await runtime.run(ADD, 1) == {"c": 2}


async def test_an_error_that_comes_with_an_http_error_is_read(peer: Peer) -> None:
    async with runtime_with(peer.port) as runtime:
        failure = await failure_of(runtime, given("/sdk/nope"))
        assert (failure.code, failure.message) == (
            -32001,
            "Component 'Component '/nope' not found' not found",
        )
        assert await runtime.run(ADD, 1) == {"c": 2}


async def test_a_step_that_says_so_is_retried_in_the_same_worker(peer: Peer, mode: str) -> None:
    """What public orchestrators up to 0.10 do with any error, they do by starting the worker anew."""
    seen = Seen()
    async with runtime_with(peer.port if mode == "remote" else peer.command, seen) as runtime:
        retried = one_step("/sdk/flaky", {"until": 3}, onError={"action": "retry"})
        assert await runtime.run(retried) == {"attempt": 3}
        assert [event.error.message for event in seen.of(StepRetrying)] == [
            "Component execution failed: attempt 1",
            "Component execution failed: attempt 2",
        ]
        assert (await failure_of(runtime, given("/sdk/flaky", until=2))).code == peer.failed
    assert len(seen.of(WorkerStarted)) <= 1


# ---- what it asks for -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [HELLO, {"b": [1.5, "é", None]}, [], "text", 1e-7], ids=type)
async def test_it_stores_a_blob_and_reads_it_again(peer: Peer, data: Any) -> None:
    async with runtime_with(peer.port) as runtime:
        kept = await runtime.run(given("/sdk/keep", data=data))
        assert kept["data"] == data
        if data is HELLO:
            assert kept["blob_id"] == HELLO_ID
        # What it has stored is what others read.
        assert await runtime.run(given("/builtin/get_blob", blob_id=kept["blob_id"])) == {"data": data}


async def test_a_blob_that_there_is_not_is_an_error_in_its_component(peer: Peer) -> None:
    async with runtime_with(peer.port) as runtime:
        failure = await failure_of(runtime, given("/sdk/fetch", blob_id="0" * 64))
        assert failure.code == peer.failed
        assert ("-32005" if peer.is_old else "404") in failure.message
        assert await runtime.run(ADD, 1) == {"c": 2}


async def test_it_runs_a_flow_by_id(peer: Peer) -> None:
    async with runtime_with(peer.port) as runtime:
        stored = await runtime.run(given("/builtin/put_blob", data=ADD, blob_type="flow"))
        asks = given("/sdk/evaluate", flow_id=stored["blob_id"], input=5)
        assert await runtime.run(asks) == {"value": {"c": 6}}


async def test_a_flow_that_fails_or_is_not_there_is_an_error_in_its_component(peer: Peer) -> None:
    async with runtime_with(peer.port) as runtime:
        flow = given("/sdk/boom", text="inner")
        stored = await runtime.run(given("/builtin/put_blob", data=flow, blob_type="flow"))
        failure = await failure_of(runtime, given("/sdk/evaluate", flow_id=stored["blob_id"], input=5))
        assert failure.code == peer.failed
        assert "Component execution failed: inner" in failure.message
        failure = await failure_of(runtime, given("/sdk/evaluate", flow_id="0" * 64, input=5))
        assert "-32005" in failure.message


@pytest.mark.parametrize("sdk", ["0.11.2"])
async def test_a_flow_that_it_runs_by_value_keeps_its_on_error(sdk: str) -> None:
    """E13: it writes the key as ``on_error``."""
    flow = given("/sdk/boom", text="inner")
    flow["steps"][0]["onError"] = {"action": "useDefault", "defaultValue": 7}
    async with runtime_with(command_of(sdk)) as runtime:
        assert await runtime.run(given("/sdk/evaluate_given", flow=flow, input=None)) == {"value": 7}


async def test_it_submits_a_run_and_waits_for_it_later(peer: Peer) -> None:
    async with runtime_with(peer.port) as runtime:
        stored = await runtime.run(given("/builtin/put_blob", data=ADD, blob_type="flow"))
        told = await runtime.run(given("/sdk/runs", flow_id=stored["blob_id"], inputs=[1, 2, 3]))
        early, late = told["early"], told["late"]
        assert (early["status"], early["items"]["total"]) == ("running", 3)
        assert (late["runId"], late["status"], late["flowName"]) == (early["runId"], "completed", "tested")
        assert late["items"] == {"total": 3, "completed": 3, "running": 0, "failed": 0, "cancelled": 0}
        assert [item["itemIndex"] for item in late["results"]] == [0, 1, 2]
        assert [item["result"]["result"] for item in late["results"]] == [{"c": 2}, {"c": 3}, {"c": 4}]


async def test_overrides_of_a_run_that_it_submits_are_heeded(peer: Peer) -> None:
    """E4. The generation of 0.9 has no ``steps`` around them."""
    overrides: Any = {"only": {"value": {"input": {"a": 40}}}}
    if not peer.is_old:
        overrides = {"steps": overrides}
    async with runtime_with(peer.port) as runtime:
        stored = await runtime.run(given("/builtin/put_blob", data=ADD, blob_type="flow"))
        asks = given("/sdk/runs", flow_id=stored["blob_id"], inputs=[1], overrides=overrides)
        assert (await runtime.run(asks))["late"]["results"][0]["result"]["result"] == {"c": 41}


async def test_100_callbacks_of_components_at_once_are_all_answered(peer: Peer, mode: str) -> None:
    """E10, E25: every event stream of 0.11.2 ends in an exception there, and without its last chunk."""
    seen = Seen()
    async with runtime_with(peer.port if mode == "remote" else peer.command, seen) as runtime:
        stored = await runtime.run(given("/builtin/put_blob", data=ADD, blob_type="flow"))
        flow = one_step("/sdk/evaluate", {"flow_id": stored["blob_id"], "input": {"$input": "$"}})
        run = await runtime.submit(flow, range(100), max_concurrency=20)
        await run.wait()
        assert run.results == [Success({"value": {"c": n + 1}}) for n in range(100)]
    if mode == "subprocess":
        complaints = [
            line for line in seen.of(WorkerLine) if "was created in a different Context" in line.text
        ]
        assert bool(complaints) is not peer.is_old


async def test_callbacks_find_the_one_of_two_workers_that_they_belong_to(peer: Peer) -> None:
    with open_worker(peer.command) as (_, other):
        urls = [f"http://127.0.0.1:{port}" for port in (peer.port, other)]
        async with runtime_with({"type": "stepflow", "urls": urls}) as runtime:
            run = await runtime.submit(given("/sdk/sleeps", seconds=0.1), range(20), max_concurrency=20)
            await run.wait()
            pids = {result.result["pid"] for result in run.results if isinstance(result, Success)}
            assert len(pids) == 2
            stored = await runtime.run(given("/builtin/put_blob", data=ADD, blob_type="flow"))
            asks = one_step("/sdk/evaluate", {"flow_id": stored["blob_id"], "input": {"$input": "$"}})
            run = await runtime.submit(asks, range(40), max_concurrency=10)
            await run.wait()
            assert run.results == [Success({"value": {"c": n + 1}}) for n in range(40)]


async def test_asked_for_a_session_that_it_does_not_know_it_is_spoken_to_without_one(peer: Peer) -> None:
    plugin = {**plugin_of(peer.port), "session": "always"}
    async with runtime_with(plugin) as runtime:
        assert await runtime.run(ADD, 1) == {"c": 2}
        assert (await runtime.run(given("/sdk/keep", data=1)))["data"] == 1


# ---- references to blobs --------------------------------------------------------------------------------


@pytest.mark.parametrize("sdk", ["0.11.2"])
async def test_what_is_large_goes_by_reference_both_ways(sdk: str) -> None:
    text = "é" * 2000
    async with runtime_with(command_of(sdk), blobApi={"blobThreshold": 1000}) as runtime:
        steps = [
            {"id": "large", "component": "/sdk/large", "input": {"size": 5000}},
            {"id": "back", "component": "/sdk/echo", "input": {"there": {"$step": "large"}, "here": text}},
        ]
        done = await runtime.run({"steps": steps, "output": {"$step": "back"}})
        assert done == {"there": {"text": "x" * 5000}, "here": text}


# ---- its death and its deafness -------------------------------------------------------------------------


async def test_it_is_killed_in_a_call_and_started_again_for_attempt_2(peer: Peer) -> None:
    seen = Seen()
    async with runtime_with(peer.command, seen, retries=1) as runtime:
        other = await runtime.submit(given("/sdk/sleeps", seconds=0.3), [None])
        done = await runtime.run(given("/sdk/dies", times=1))
        assert done["attempt"] == 2
        await other.wait()
        first, second = (event.pid for event in seen.of(WorkerStarted))
        assert (done["pid"], other.results) == (second, [Success({"pid": second})])
        assert first != second
        assert "killed by signal 9" in seen.of(WorkerEnded)[0].detail
        assert {event.error.code for event in seen.of(StepRetrying)} == {ErrorCode.CONNECTION_LOST}


@pytest.mark.parametrize("sdk", SDKS)
async def test_started_again_beside_the_runtime_it_is_told_everything_again(sdk: str) -> None:
    """E19."""
    command = command_of(sdk)
    with open_worker(command) as (process, port):
        async with runtime_with(port, retries=3) as runtime:
            assert (await runtime.run(given("/sdk/keep", data=1)))["data"] == 1
            process.kill()
            process.wait()
            failure = await failure_of(runtime, ADD, 1)
            assert failure.code == ErrorCode.CONNECTION_LOST
            with open_worker(command, port):
                assert (await runtime.run(given("/sdk/keep", data=2)))["data"] == 2


async def test_a_run_is_cancelled_at_once_although_its_component_goes_on(peer: Peer, tmp_path: Path) -> None:
    """E3: it does not mind that the connection of its request was closed."""
    mark = tmp_path / "mark"
    seen = Seen()
    async with runtime_with(peer.port, seen) as runtime:
        with trio.move_on_after(20) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(runtime.run, given("/sdk/sleeps", seconds=1, mark=str(mark)))
                await until(mark.exists)
                scope.cancel()
        await until(lambda: seen.of(RunEnded))
        assert seen.of(RunEnded)[-1].status == "cancelled"
        assert mark.read_text() == "began\n"
        assert await runtime.run(ADD, 1) == {"c": 2}
        await until(lambda: mark.read_text() == "began\ndone\n")
        assert await runtime.run(ADD, 2) == {"c": 3}


async def test_its_runs_below_are_cancelled_with_the_run(peer: Peer, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    seen = Seen()
    async with runtime_with(peer.port, seen) as runtime:
        slow = given("/sdk/sleeps", seconds=0.5, mark=str(mark))
        stored = await runtime.run(given("/builtin/put_blob", data=slow, blob_type="flow"))
        seen.clear()
        with trio.move_on_after(20) as scope:
            async with trio.open_nursery() as nursery:
                asks = given("/sdk/evaluate", flow_id=stored["blob_id"], input=None)
                nursery.start_soon(runtime.run, asks)
                await until(mark.exists)
                scope.cancel()
        await until(lambda: len(seen.of(RunEnded)) == 2)
        assert [event.status for event in seen.of(RunEnded)] == ["cancelled", "cancelled"]


async def test_a_plain_function_holds_up_everybody_in_it(peer: Peer, tmp_path: Path) -> None:
    """E9."""
    mark = tmp_path / "mark"
    async with runtime_with(peer.port) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(runtime.run, given("/sdk/blocks", seconds=0.3, mark=str(mark)))
        await until(mark.exists)
        assert await runtime.run(ADD, 1) == {"c": 2}
        assert mark.read_text() == "began\ndone\n"


async def test_leaving_the_runtime_ends_it_whatever_it_is_doing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    seen = Seen()
    async with runtime_with(command_of("0.11.2"), seen) as runtime:
        await runtime.submit(given("/sdk/blocks", seconds=60, mark=str(mark)), [None])
        await until(mark.exists)
    [started] = seen.of(WorkerStarted)
    with pytest.raises(ProcessLookupError):
        os.kill(started.pid, 0)


async def test_a_worker_that_never_says_its_port_is_given_up_with_what_it_said() -> None:
    silent = ["/bin/sh", "-c", "echo cannot start >&2; exit 3"]
    async with runtime_with(silent) as runtime:  # pyright: ignore[reportArgumentType]
        failure = await failure_of(runtime, ADD, 1)
        assert failure.code in (ErrorCode.SPAWN_FAILED, ErrorCode.CONNECTION_LOST)
        assert "cannot start" in failure.message
