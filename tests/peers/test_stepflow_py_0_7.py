"""The runtime with the last public SDK whose workers speak over stdio: stepflow-py 0.7.0, dialect 0.8.

``bash .ci/peers`` installs it, in an environment of its own.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from releases import WORKERS, needs, sdk_python

from stepflow_trio import CallFailed, ErrorCode, RunFailed, Runtime, open_runtime
from stepflow_trio.engine import Handlers, open_connection
from stepflow_trio.flows.results import Failed, Success
from stepflow_trio.protocol import dialects, methods
from stepflow_trio.protocol.payloads import InfoParams
from stepflow_trio.protocol.peer import Role
from stepflow_trio.runtime import hosted_worker, launchers
from stepflow_trio.runtime.config import BuiltinPluginConfig, Config, StdioPluginConfig
from stepflow_trio.runtime.events import (
    Event,
    RunEnded,
    StepRetrying,
    StepStarted,
    WorkerEnded,
    WorkerLine,
    WorkerStarted,
)
from stepflow_trio.runtime.retries import Constant, RetryPolicy
from stepflow_trio.runtime.routing import Route, Rule
from stepflow_trio.transports.process import StopLadder, open_process_link

PYTHON = sdk_python("0.7.0")
SCRIPT = WORKERS / "sdk_0_7.py"

pytestmark = needs("stepflow-py-0.7.0")

QUICK = StopLadder(stdin_grace_s=0.5, term_grace_s=0.5, cancelled_grace_s=0.2)

HELLO = {"message": "Hello, blobs!", "number": 42, "nested": {"array": [1, 2, 3], "boolean": True}}
HELLO_ID = "868591347a854ba1d0f4875b2dd44e1e8335052af03725a9819f89e0142318b0"


@pytest.fixture(autouse=True)
def no_process_is_left() -> Generator[None]:
    yield
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)


@pytest.fixture(autouse=True)
def quick_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "open_process_link", partial(open_process_link, ladder=QUICK))


class Seen(list[Event]):
    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]


@asynccontextmanager
async def peer(
    seen: Seen | None = None, *, retries: int = 0, env: Mapping[str, str] | None = None, within_s: float = 20
) -> AsyncGenerator[Runtime]:
    """A runtime whose plugin ``sdk`` is the public worker, for at most ``within_s`` seconds."""
    worker = StdioPluginConfig(
        command=str(PYTHON), args=(str(SCRIPT),), env=env or {}, working_directory=SCRIPT.parent
    )
    config = Config(
        plugins={"sdk": worker, "builtin": BuiltinPluginConfig()},
        routes=(
            Route("/sdk/{*component}", (Rule(plugin="sdk"),)),
            Route("/builtin/{*component}", (Rule(plugin="builtin"),)),
        ),
        retry=RetryPolicy(transport_max_retries=retries, backoff=Constant(delay_s=0.01)),
        source="of a test",
    )
    with trio.fail_after(within_s):
        async with open_runtime(config, on_event=seen) as runtime:
            yield runtime


def one_step(component: str, input: Any, **more: Any) -> dict[str, Any]:
    step = {"id": "only", "component": f"/sdk/{component}", "input": input, **more}
    return {"name": "tested", "steps": [step], "output": {"$step": "only"}}


def given(component: str, **input: Any) -> dict[str, Any]:
    return one_step(component, {"$literal": input})


async def failure_of(runtime: Runtime, flow: Any) -> RunFailed:
    with pytest.raises(RunFailed) as caught:
        await runtime.run(flow)
    return caught.value


ADD = one_step("add", {"a": {"$input": "$"}, "b": 1})


# ---- what it offers -------------------------------------------------------------------------------------


async def test_its_components_are_listed_with_their_schemas() -> None:
    async with peer() as runtime:
        listed = {component.path: component for component in await runtime.list_components()}
        assert runtime.plugin_problems == {}
    add = listed["/sdk/add"]
    assert (add.plugin, add.info.component, add.info.description) == ("sdk", "/add", "add two")
    assert add.info.input_schema is not None
    assert add.info.input_schema["$defs"]["In"]["required"] == ["a", "b"]
    assert add.info.output_schema is not None
    assert "/sdk/udf" in listed


async def test_it_introduces_itself_in_its_dialect_and_describes_a_component() -> None:
    command = [str(PYTHON), str(SCRIPT)]
    with trio.fail_after(20):
        async with (
            open_process_link(command, env={}, cwd=SCRIPT.parent, ladder=QUICK) as process,
            open_connection(process.link, Handlers(), role=Role.RUNTIME) as connection,
        ):
            result = await connection.call("initialize", dialects.write_initialize_params(None))
            welcome = dialects.read_initialize_result(result, "stdio")
            assert (welcome.dialect, welcome.extensions) == (dialects.Dialect.V0_8, frozenset())
            await connection.notify("initialized", {})
            described = await connection.call(methods.COMPONENTS_INFO, InfoParams("/add"))
            assert (described.info.component, described.info.description) == ("/add", "add two")
            assert described.info.output_schema is not None
            with pytest.raises(CallFailed) as caught:
                await connection.call(methods.COMPONENTS_INFO, InfoParams("/nope"))
            assert caught.value.code == -32001


async def test_a_component_is_executed_and_told_where_it_is() -> None:
    seen = Seen()
    async with peer(seen, env={"GIVEN": "this"}) as runtime:
        assert await runtime.run(ADD, 41) == {"c": 42}
        run = await runtime.submit(given("who"), [None])
        await run.wait()
        [result] = run.results
        assert isinstance(result, Success)
        told = result.result
        assert (told["run_id"], told["flow_id"], told["step_id"]) == (run.id, run.flow_id, "only")
        assert told["attempt"] == 1
        assert told["pid"] == seen.of(WorkerStarted)[0].pid
        # Python itself adds the locale that it coerces to.
        assert {k: v for k, v in told["environ"].items() if k != "LC_CTYPE"} == {"GIVEN": "this"}


async def test_1000_calls_at_once_each_get_their_own_answer() -> None:
    seen = Seen()
    async with peer(seen) as runtime:
        run = await runtime.submit(ADD, range(1000), max_concurrency=1000)
        await run.wait()
        assert run.results == [Success({"c": n + 1}) for n in range(1000)]
    assert len(seen.of(WorkerStarted)) == 1


async def test_what_it_logs_is_read_so_that_it_is_never_held_up() -> None:
    """Its default logging fills an unread stderr pipe after 143 requests."""
    seen = Seen()
    async with peer(seen, env={"STEPFLOW_LOG_LEVEL": "DEBUG"}) as runtime:
        for n in range(300):
            assert await runtime.run(ADD, n) == {"c": n + 1}


# ---- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flow", "code", "message", "data"),
    [
        (given("boom", text="bad thing"), -32003, "Component execution failed: bad thing", {}),
        (
            given("nope"),
            -32001,
            "Component 'Component '/nope' not found' not found",
            {"component": "Component '/nope' not found"},
        ),
        (
            given("add", a="x", b=1),
            -32003,
            "Component execution failed: Expected `int`, got `str` - at `$.a`",
            {},
        ),
    ],
    ids=["raises", "unknown component", "wrong input"],
)
async def test_its_errors_are_shown_as_they_came(flow: Any, code: int, message: str, data: Any) -> None:
    async with peer() as runtime:
        failure = await failure_of(runtime, flow)
        assert (failure.code, failure.message, failure.data) == (code, message, data)
        assert await runtime.run(ADD, 1) == {"c": 2}


async def test_a_step_that_says_so_is_retried_after_its_errors_whose_codes_are_of_the_old_table() -> None:
    seen = Seen()
    async with peer(seen) as runtime:
        retried = one_step("flaky", {"until": 3}, onError={"action": "retry"})
        assert await runtime.run(retried) == {"attempt": 3}
        assert [event.error.message for event in seen.of(StepRetrying)] == [
            "Component execution failed: attempt 1",
            "Component execution failed: attempt 2",
        ]
        assert (await failure_of(runtime, given("flaky", until=2))).code == -32003


async def test_an_error_is_retried_no_more_often_than_the_step_says() -> None:
    seen = Seen()
    async with peer(seen) as runtime:
        retried = one_step("flaky", {"until": 9}, onError={"action": "retry", "maxRetries": 1})
        failure = await failure_of(runtime, retried)
        assert failure.message == "Component execution failed: attempt 2"
        defaulting = one_step("flaky", {"until": 9}, onError={"action": "useDefault", "defaultValue": 7})
        assert await runtime.run(defaulting) == 7


# ---- what it asks for -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [HELLO, {"a": 1, "b": [1.5, "é", None]}, [], "text", 12345678901234567890123]
)
async def test_it_stores_a_blob_and_reads_it_again(data: Any) -> None:
    async with peer() as runtime:
        kept = await runtime.run(given("keep", data=data))
        assert kept["data"] == data
        if data is HELLO:
            assert kept["blob_id"] == HELLO_ID
        # What it has stored is what others read.
        got = {"id": "got", "component": "/builtin/get_blob", "input": {"blob_id": kept["blob_id"]}}
        assert await runtime.run({"steps": [got], "output": {"$step": "got"}}) == {"data": data}


async def test_a_blob_that_there_is_not_is_an_error_in_its_component() -> None:
    async with peer() as runtime:
        failure = await failure_of(runtime, given("fetch", blob_id="0" * 64))
        assert failure.code == -32003
        assert "code=-32005" in failure.message
        assert await runtime.run(ADD, 1) == {"c": 2}


async def test_it_evaluates_a_flow_by_value_and_by_id() -> None:
    async with peer() as runtime:
        assert await runtime.run(given("evaluate", flow=ADD, input=5)) == {"value": {"c": 6}}
        stored = await runtime.run(given("keep", data=ADD))
        by_id = given("evaluate_by_id", flow_id=stored["blob_id"], input=6)
        assert await runtime.run(by_id) == {"value": {"c": 7}}


async def test_a_flow_that_fails_or_is_not_there_is_an_error_in_its_component() -> None:
    async with peer() as runtime:
        failure = await failure_of(runtime, given("evaluate", flow=given("boom", text="inner"), input=5))
        assert failure.message == "Component execution failed: Component execution failed: inner"
        failure = await failure_of(runtime, given("evaluate_by_id", flow_id="0" * 64, input=5))
        assert "code=-32005" in failure.message


async def test_it_submits_a_batch_and_gets_its_details_and_outputs() -> None:
    async with peer() as runtime:
        batch = await runtime.run(given("batch", flow=ADD, inputs=[1, 2, 3], max_concurrency=2))
        early, details = batch["early"], batch["details"]
        assert early["batch_id"] == details["batch_id"]
        assert (early["total_runs"], early["status"]) == (3, "running")
        assert (details["status"], details["flow_name"]) == ("completed", "tested")
        counts = (
            "total_runs",
            "completed_runs",
            "running_runs",
            "failed_runs",
            "cancelled_runs",
            "paused_runs",
        )
        assert [details[count] for count in counts] == [3, 3, 0, 0, 0, 0]
        assert [output["result"]["result"] for output in batch["outputs"]] == [{"c": 2}, {"c": 3}, {"c": 4}]
        assert [output["batch_input_index"] for output in batch["outputs"]] == [0, 1, 2]


async def test_it_evaluates_a_batch_whose_failures_are_told_by_index() -> None:
    async with peer() as runtime:
        values = await runtime.run(given("evaluate_batch", flow=ADD, inputs=[1, 2]))
        assert values == {"values": [{"c": 2}, {"c": 3}]}
        failure = await failure_of(runtime, given("evaluate_batch", flow=ADD, inputs=[1, "x"]))
        assert "Run at index 1 failed" in failure.message


async def test_it_reads_the_metadata_of_its_flow_and_step() -> None:
    asks = {**one_step("metadata", {}, metadata={"owner": "me"}), "metadata": {"team": "us"}}
    async with peer() as runtime:
        assert await runtime.run(asks) == {"flow_metadata": {"team": "us"}, "step_metadata": {"owner": "me"}}
        elsewhere = {**one_step("metadata", {"step_id": "other"}), "metadata": {"team": "us"}}
        assert await runtime.run(elsewhere) == {"flow_metadata": {"team": "us"}}


async def test_100_callbacks_of_components_at_once_are_all_answered() -> None:
    async with peer() as runtime:
        run = await runtime.submit(one_step("keep", {"data": {"n": {"$input": "$"}}}), range(100))
        await run.wait()
        data = [result.result["data"] for result in run.results if isinstance(result, Success)]
        assert data == [{"n": n} for n in range(100)]


# ---- large answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [65_000, 66_000, 900_000])
async def test_an_answer_that_its_usual_pipe_would_cut_off_arrives_through_ours(size: int) -> None:
    """It cuts off what its stdout does not take at once: ours takes 1 MiB, in place of 64 KiB."""
    async with peer() as runtime:
        for _ in range(3):
            assert await runtime.run(given("large", size=size)) == {"text": "x" * size}


def is_garbled(result: Any) -> bool:
    return isinstance(result, Failed) and result.error.code == ErrorCode.GARBLED_MESSAGE


async def test_an_answer_that_it_cuts_off_fails_and_what_runs_into_it_does_not_hang_either() -> None:
    """Behind the cut stands, as chance has it, an error for the same call or nothing but the next answer."""
    seen = Seen()
    async with peer(seen) as runtime:
        large = await runtime.submit(given("large", size=50_000_000), [None])
        with trio.move_on_after(1):
            await large.wait()
        behind = await runtime.submit(ADD, [1])
        await large.wait()
        await behind.wait()
        assert is_garbled(large.results[0])
        assert is_garbled(behind.results[0]) or behind.results == [Success({"c": 2})]
        assert await runtime.run(ADD, 2) == {"c": 3}
    assert len(seen.of(WorkerStarted)) == 1


async def test_an_answer_that_it_cuts_off_with_nothing_behind_it_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosted_worker, "STALLED_FRAME_S", 0.3)
    seen = Seen()
    async with peer(seen, retries=1) as runtime:
        failure = await failure_of(runtime, given("large", size=50_000_000))
        assert failure.code in (ErrorCode.CONNECTION_LOST, ErrorCode.GARBLED_MESSAGE)
        assert "bytes into a message" in failure.message or "is no JSON-RPC response" in failure.message
        assert len(seen.of(StepStarted)) == 2
        assert await runtime.run(ADD, 2) == {"c": 3}


async def test_an_input_that_is_larger_than_it_can_read_ends_it_and_is_told_of() -> None:
    """A line of more than 512 KiB ends it."""
    seen = Seen()
    async with peer(seen) as runtime:
        failure = await failure_of(runtime, given("boom", text="x" * 600_000))
        assert failure.code == ErrorCode.CONNECTION_LOST
        assert "exited with code 1" in failure.message
        assert any("limit" in line for line in failure.data["stderr"])
        assert await runtime.run(ADD, 2) == {"c": 3}


# ---- its death and its deafness -------------------------------------------------------------------------


async def test_it_is_killed_in_a_call_and_started_again_for_attempt_2() -> None:
    seen = Seen()
    async with peer(seen, retries=1) as runtime:
        other = await runtime.submit(given("sleeps", seconds=0.3), [None])
        assert await runtime.run(given("dies", times=1)) == {"attempt": 2}
        await other.wait()
        first, second = (event.pid for event in seen.of(WorkerStarted))
        assert other.results == [Success({"pid": second})]
        assert first != second
        assert "killed by signal 9" in seen.of(WorkerEnded)[0].detail
        assert {event.error.code for event in seen.of(StepRetrying)} == {ErrorCode.CONNECTION_LOST}


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 — what is waited for happens in another process
            await trio.sleep(0.01)


async def test_a_run_is_cancelled_at_once_although_it_cannot_be_told() -> None:
    """It knows no cancellation: the component goes on, its answer comes late, and the worker is kept."""
    seen = Seen()
    async with peer(seen) as runtime:
        assert await runtime.run(ADD, 1) == {"c": 2}
        began = trio.current_time()
        with trio.move_on_after(0.1) as scope:
            await runtime.run(given("sleeps", seconds=0.5))
        assert scope.cancelled_caught
        assert trio.current_time() - began < 0.4
        await until(lambda: len(seen.of(RunEnded)) == 2)
        assert seen.of(RunEnded)[-1].status == "cancelled"
        await trio.sleep(0.6)
        assert await runtime.run(ADD, 1) == {"c": 2}
    assert len(seen.of(WorkerStarted)) == 1
    assert [event.status for event in seen.of(RunEnded)] == ["completed", "cancelled", "completed"]


@pytest.mark.parametrize("component", ["sleeps", "blocks"])
async def test_a_component_that_goes_on_after_the_grace_costs_the_worker_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch, component: str
) -> None:
    monkeypatch.setattr(hosted_worker, "CANCEL_GRACE_S", 0.2)
    seen = Seen()
    async with peer(seen) as runtime:
        assert await runtime.run(ADD, 1) == {"c": 2}
        with trio.move_on_after(0.05):
            await runtime.run(given(component, seconds=60))
        await until(lambda: seen.of(WorkerEnded))
        assert await runtime.run(ADD, 2) == {"c": 3}
        first, second = (event.pid for event in seen.of(WorkerStarted))
        assert first != second
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)


async def test_its_runs_below_are_cancelled_with_the_run_that_it_is_not_told_of() -> None:
    seen = Seen()
    async with peer(seen) as runtime:
        slow = given("sleeps", seconds=0.4)
        for component in ("evaluate", "batch"):
            assert await runtime.run(ADD, 1) == {"c": 2}
            seen.clear()
            with trio.move_on_after(0.2):
                await runtime.run(given(component, flow=slow, input=None, inputs=[None]))
            await until(lambda: len(seen.of(RunEnded)) == 2)
            assert [event.status for event in seen.of(RunEnded)] == ["cancelled", "cancelled"]


async def test_leaving_the_runtime_ends_it_whatever_it_is_doing() -> None:
    seen = Seen()
    async with peer(seen) as runtime:
        assert await runtime.run(ADD, 1) == {"c": 2}
        await runtime.submit(given("blocks", seconds=60), [None])
        await trio.sleep(0.05)
    [started] = seen.of(WorkerStarted)
    with pytest.raises(ProcessLookupError):
        os.kill(started.pid, 0)
    assert isinstance(seen[-1], (WorkerEnded, WorkerLine))
