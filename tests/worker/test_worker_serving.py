"""What a runtime sees of a worker, over a memory link."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
from serving_stage import RUN, SPAN, execute, serving
from trio.testing import wait_all_tasks_blocked

from stepflow_trio import ComponentError, Context, Worker
from stepflow_trio.engine import Handlers, Limits, open_connection
from stepflow_trio.errors import CallFailed, ConnectionLost, ErrorCode, LocalProtocolError
from stepflow_trio.protocol import dialects, methods
from stepflow_trio.protocol.payloads import ProgressParams, PutBlobResult
from stepflow_trio.protocol.peer import Role
from stepflow_trio.testing import ScriptedPeer
from stepflow_trio.transports.memory import memory_link_pair


async def test_a_request_before_initialization_is_refused_and_initialization_still_works() -> None:
    near, far = memory_link_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Worker().serve, far)
        async with open_connection(near, Handlers(), role=Role.RUNTIME) as connection:
            with pytest.raises(CallFailed) as caught:
                await connection.call("components/list", {})
            assert caught.value.code == ErrorCode.NOT_INITIALIZED
            answer = await connection.call("initialize", {"runtime_protocol_version": 1})
            assert answer == {"server_protocol_version": 1}
        nursery.cancel_scope.cancel()


async def test_another_protocol_version_is_refused_with_the_supported_ones() -> None:
    near, far = memory_link_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Worker().serve, far)
        async with open_connection(near, Handlers(), role=Role.RUNTIME) as connection:
            with pytest.raises(CallFailed) as caught:
                await connection.call("initialize", {"runtimeProtocolVersion": 2})
            assert caught.value.code == ErrorCode.VERSION_MISMATCH
            assert caught.value.data == {"supported_versions": [1], "requested_version": 2}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["async", "thread", "inline"])
async def test_every_kind_of_function_is_executed_and_its_failure_carries_type_and_message(kind: str) -> None:
    worker = Worker()

    def divide(a: int, b: int) -> float:
        return a / b

    async def divide_async(a: int, b: int) -> float:
        return divide(a, b)

    if kind == "async":
        worker.add_component(divide_async, path="/divide")
    else:
        worker.add_component(divide, path="/divide", inline=kind == "inline")
    async with serving(worker) as connection:
        assert await execute(connection, "/divide", {"a": 6, "b": 4}) == 1.5
        with pytest.raises(CallFailed) as caught:
            await execute(connection, "/divide", {"a": 6, "b": 0})
        assert caught.value.code == ErrorCode.COMPONENT_FAILED
        assert caught.value.message == "ZeroDivisionError: division by zero"
        assert "traceback" not in caught.value.data
        assert await execute(connection, "/divide", {"a": 1, "b": 1}) == 1


async def test_tracebacks_travel_only_with_debug() -> None:
    worker = Worker(debug=True)

    @worker.component
    async def fails() -> None:
        raise RuntimeError("inside")

    async with serving(worker) as connection:
        with pytest.raises(CallFailed) as caught:
            await execute(connection, "/fails", {})
    assert 'raise RuntimeError("inside")' in caught.value.data["traceback"]


async def test_an_error_class_of_the_author_arrives_unchanged() -> None:
    class OutOfStock(ComponentError):
        code = -32110

    worker = Worker()

    @worker.component
    async def order() -> None:
        async with trio.open_nursery():
            raise OutOfStock("no widgets", data={"sku": 7})

    async with serving(worker) as connection:
        with pytest.raises(CallFailed) as caught:
            await execute(connection, "/order", None)
    assert (caught.value.code, caught.value.message, caught.value.data) == (-32110, "no widgets", {"sku": 7})


async def test_an_input_that_does_not_fit_names_the_json_path_and_the_component_does_not_run() -> None:
    worker, ran = Worker(), []

    @worker.component
    async def add(a: int, b: int) -> int:
        ran.append(a)
        return a + b

    async with serving(worker) as connection:
        with pytest.raises(CallFailed) as caught:
            await execute(connection, "/add", {"a": 1, "b": "two"})
    assert caught.value.code == ErrorCode.INVALID_INPUT_SCHEMA
    assert caught.value.data["path"] == "$.b"
    assert ran == []


@pytest.mark.parametrize(
    ("value", "path"),
    [(float("nan"), "$.x"), (float("inf"), "$.x"), ("\ud800", "$.x"), ({1, 2}, "$.x"), (b"raw", "$.x")],
)
async def test_an_output_that_is_no_json_is_a_failure_with_its_path_and_never_null(
    value: Any, path: str
) -> None:
    worker = Worker()

    @worker.component
    async def odd() -> Any:
        return {"x": value}

    async with serving(worker) as connection:
        with pytest.raises(CallFailed) as caught:
            await execute(connection, "/odd", {})
        assert caught.value.code == ErrorCode.COMPONENT_FAILED
        assert caught.value.data["path"] == path
        assert connection.loss is None


async def test_an_unknown_component_is_answered_with_what_exists_and_the_closest_name() -> None:
    worker = Worker()

    @worker.component
    async def summarize(text: str) -> str:
        return text

    async with serving(worker) as connection:
        with pytest.raises(CallFailed) as caught:
            await execute(connection, "/sumarize", {})
    assert caught.value.code == ErrorCode.COMPONENT_NOT_FOUND
    assert caught.value.data["available_components"] == ["/summarize"]
    assert "/summarize" in caught.value.data["suggestion"]


async def test_components_are_listed_with_schema_and_docstring_and_patterns_too() -> None:
    worker = Worker()

    @worker.component("/models/{name}")
    async def predict(name: str, x: float) -> float:
        """Predict something.

        With a model.
        """
        return x

    async with serving(worker) as connection:
        [info] = (await connection.call(methods.COMPONENTS_LIST, methods.p.ListParams())).components
        assert await execute(connection, "/models/linear", {"x": 2}) == 2
    assert info.component == "/models/{name}"
    assert info.description == "Predict something.\n\nWith a model."
    assert info.input_schema is not None
    assert info.input_schema["required"] == ["x"]


async def test_blobs_and_progress_reach_the_runtime_while_the_component_runs() -> None:
    worker = Worker()

    @worker.component
    async def store(context: Context) -> dict[str, Any]:
        context.progress(0.25, "storing")
        blob_id = await Context.current().put_blob({"a": 1})
        return {"blob": blob_id, "run": context.run_id, "step": context.step_id, "attempt": context.attempt}

    handlers, heard = Handlers(), []

    async def put(params: Any, _request: Any) -> PutBlobResult:
        assert params.data == {"a": 1}
        return PutBlobResult("5e43")

    handlers.on_request(methods.BLOBS_PUT, put)
    handlers.on_notification(methods.PROGRESS_UPDATE, lambda params, _connection: heard.append(params))
    async with serving(worker, handlers) as connection:
        output = await execute(connection, "/store", {}, attempt=3)
    assert output == {"blob": "5e43", "run": RUN, "step": "step", "attempt": 3}
    [said] = heard
    assert said == ProgressParams(
        step_id="step", progress=0.25, message="storing", run_id=RUN, span_id=SPAN
    ), "the runtime knows by the span which item it is about"


async def test_progress_is_not_sent_to_a_runtime_that_did_not_ask_for_it() -> None:
    worker = Worker()

    @worker.component
    async def work(context: Context) -> None:
        context.progress(0.5)

    handlers, heard = Handlers(), []
    handlers.on_notification(methods.PROGRESS_UPDATE, lambda params, _connection: heard.append(params))
    async with serving(worker, handlers, hello={"runtime_protocol_version": 1}) as connection:
        assert await execute(connection, "/work", {}) is None
    assert heard == []


async def test_a_component_in_a_thread_reports_progress_and_calls_back() -> None:
    worker = Worker()

    @worker.component
    def work(context: Context) -> str:
        context.progress(1)
        return trio.from_thread.run(context.put_blob, [1])

    handlers, heard = Handlers(), []
    handlers.on_request(methods.BLOBS_PUT, lambda _params, _request: PutBlobResult("5e43"))
    handlers.on_notification(methods.PROGRESS_UPDATE, lambda params, _connection: heard.append(params))
    async with serving(worker, handlers) as connection:
        assert await execute(connection, "/work", {}) == "5e43"
    assert [params.progress for params in heard] == [1]


async def test_there_is_no_current_context_outside_a_component() -> None:
    with pytest.raises(LookupError, match="no component is running"):
        Context.current()


async def test_a_cancelled_execution_runs_its_finally_blocks_and_takes_its_callback_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    worker, seen = Worker(), []

    @worker.component
    async def waits(context: Context) -> None:
        try:
            await context.put_blob("x")
        finally:
            seen.append("component")

    handlers = Handlers()

    async def put(_params: Any, _request: Any) -> PutBlobResult:
        try:
            await trio.sleep_forever()
        finally:
            seen.append("callback")

    handlers.on_request(methods.BLOBS_PUT, put)
    async with serving(worker, handlers) as connection:
        with trio.move_on_after(1) as scope:
            await execute(connection, "/waits", {})
        assert scope.cancelled_caught
        assert trio.current_time() == 1
        await wait_all_tasks_blocked()
        assert seen == ["component", "callback"]
        assert connection.statistics().requests_running == 0
        assert connection.statistics().calls_abandoned == 0


async def test_threads_are_bounded_and_a_cancelled_one_is_left_behind() -> None:
    worker, release, running = Worker(max_threads=1), threading.Event(), threading.Event()

    @worker.component
    def block() -> str:
        running.set()
        release.wait(10)
        return "done"

    async with serving(worker) as connection:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(execute, connection, "/block", {})
                await trio.to_thread.run_sync(running.wait, 10)
                nursery.cancel_scope.cancel()
            await wait_all_tasks_blocked(0.05)
            assert connection.statistics().calls_abandoned == 0, "the cancelled execution was not answered"
            running.clear()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(execute, connection, "/block", {})
                await wait_all_tasks_blocked(0.05)
                assert not running.is_set(), "the pool's only place is still taken"
                release.set()
        finally:
            release.set()


async def test_the_remaining_time_is_known_to_the_component(autojump_clock: trio.testing.MockClock) -> None:
    worker = Worker()

    @worker.component
    async def when(context: Context) -> Any:
        return context.deadline

    async with serving(worker) as connection:
        assert await execute(connection, "/when", {}) is None
        now = trio.current_time()
        assert await execute(connection, "/when", {}, timeout_s=12.5) == pytest.approx(now + 12.5)
        assert await execute(connection, "/when", {}, timeout_s=3) == pytest.approx(now + 3)


async def test_one_bad_component_does_not_hide_the_others() -> None:
    worker = Worker()

    async def bad(x: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821 — that is the test
        raise NotImplementedError

    async def good(x: int) -> int:
        return x

    worker.add_component(bad)
    worker.add_component(good)
    async with serving(worker) as connection:
        listed = (await connection.call(methods.COMPONENTS_LIST, methods.p.ListParams())).components
        assert [info.component for info in listed] == ["/bad", "/good"]
        assert await execute(connection, "/good", {"x": 3}) == 3
        with pytest.raises(CallFailed) as caught:
            await execute(connection, "/bad", {"x": 3})
        assert caught.value.code == ErrorCode.CONFIGURATION_ERROR
        assert "Missing" in caught.value.message


def test_a_path_taken_twice_is_an_error_at_once() -> None:
    worker = Worker()

    async def one() -> None:
        raise NotImplementedError

    worker.add_component(one, path="/a")
    with pytest.raises(LocalProtocolError, match="/a"):
        worker.add_component(one, path="/a")


async def test_what_is_in_flight_when_the_runtime_hangs_up_is_cancelled_after_the_drain_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    worker, ended = Worker(limits=Limits(drain_s=3)), []

    @worker.component
    async def work(seconds: float) -> None:
        try:
            await trio.sleep(seconds)
        finally:
            ended.append((seconds, trio.current_time()))

    near, far = memory_link_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.serve, far)
        async with open_connection(
            near, Handlers(), role=Role.RUNTIME, limits=Limits(drain_s=0)
        ) as connection:
            await connection.call("initialize", {"runtimeProtocolVersion": 1})
            await connection.notify("initialized", {})
            async with trio.open_nursery() as calls:

                async def call() -> None:
                    with pytest.raises(ConnectionLost):
                        await execute(connection, "/work", {"seconds": 60})

                calls.start_soon(call)
                await wait_all_tasks_blocked()
                await near.aclose()
    assert ended == [(60, 3)]


class _Unheard(BaseException):
    """Neither an Exception nor one of Python's own: the cancellations of other libraries are such."""


def offer(worker: Worker, kind: str, function: Callable[[], Any]) -> None:
    """``function`` at ``/it``, as a component of this kind."""

    async def in_task() -> Any:
        return function()

    async def in_nursery() -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_task)

    if kind in ("async", "nursery"):
        worker.add_component(in_task if kind == "async" else in_nursery, path="/it")
    else:
        worker.add_component(function, path="/it", inline=kind == "inline")


@pytest.mark.parametrize("kind", ["async", "nursery", "thread", "inline"])
@pytest.mark.parametrize(
    "error",
    [SystemExit(3), GeneratorExit(3), _Unheard(3)],
    ids=lambda error: type(error).__name__,
)
async def test_a_component_that_raises_what_ends_programs_fails_and_the_worker_lives_on(
    kind: str, error: BaseException
) -> None:
    def leave() -> None:
        raise error

    worker = Worker()
    offer(worker, kind, leave)
    async with serving(worker) as connection:
        for _ in range(2):
            with pytest.raises(CallFailed) as caught:
                await execute(connection, "/it", {})
            assert caught.value.code == ErrorCode.COMPONENT_FAILED
            assert caught.value.message == f"{type(error).__name__}: 3"


@pytest.mark.parametrize("kind", ["async", "nursery", "thread", "inline"])
async def test_ctrl_c_in_a_component_ends_the_worker(kind: str) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    worker = Worker()
    offer(worker, kind, interrupted)
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 — it comes out of the worker's task
        async with serving(worker) as connection:
            with pytest.raises(ConnectionLost):
                await execute(connection, "/it", {})
    assert caught.value.subgroup(KeyboardInterrupt) is not None


@pytest.mark.parametrize("error", [None, SystemExit, GeneratorExit, ValueError])
async def test_what_a_cancelled_component_raises_beside_is_neither_its_answer_nor_the_end_of_its_worker(
    autojump_clock: trio.testing.MockClock, error: type[BaseException] | None
) -> None:
    worker = Worker()

    @worker.component
    async def work() -> None:
        if error is None:
            await trio.sleep_forever()

        async def raise_at_the_end() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise error or AssertionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(raise_at_the_end)
            nursery.start_soon(trio.sleep_forever)

    near, far = memory_link_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.serve, far)
        peer = ScriptedPeer(near)
        await peer.request("initialize", dialects.write_initialize_params(None), id_=0)
        await peer.expect_result(0)
        await peer.notify("initialized", {})
        for id_ in (1, 2):
            params = {"component": "/work", "input": {}, "attempt": 1, "observability": {}}
            await peer.request("components/execute", params, id_=id_)
            await wait_all_tasks_blocked()
            await peer.notify("$/cancelRequest", {"id": id_})
            await peer.expect_error(id_, ErrorCode.REQUEST_CANCELLED)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("inline", [False, True])
async def test_a_plain_function_that_forgets_how_to_await_is_told(inline: bool) -> None:
    worker = Worker()

    def store(context: Context) -> Any:
        return context.put_blob(1)

    worker.add_component(store, inline=inline)
    async with serving(worker) as connection:
        with pytest.raises(CallFailed, match=r"trio\.from_thread\.run\(context\.put_blob"):
            await execute(connection, "/store", {})


async def test_a_context_is_of_no_use_when_its_execution_is_over() -> None:
    worker, kept = Worker(), []

    @worker.component
    async def keep(context: Context) -> None:
        kept.append(context)

    async with serving(worker) as connection:
        await execute(connection, "/keep", {})
        with pytest.raises(LocalProtocolError, match="is over"):
            await kept[0].put_blob(1)
        kept[0].progress(0.5)


class _Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("error", "code", "message", "data"),
    [
        (ComponentError("\ud800", code=-32110), -32110, "\\ud800", None),
        (
            ComponentError("x", code=-32110, data={"at": object()}),
            -32110,
            "x",
            {"left_out": "the error's data: the output is not JSON"},
        ),
        (_Speechless(), -32100, "_Speechless: (its text cannot be had: RuntimeError)", None),
        (ValueError("y" * 100_000), -32100, "ValueError: " + "y" * (65_536 - 12) + "…", None),
    ],
)
async def test_an_error_that_cannot_be_sent_as_it_is_keeps_its_code(
    error: Exception, code: int, message: str, data: Any
) -> None:
    worker = Worker()

    @worker.component
    async def fail() -> None:
        raise error

    async with serving(worker) as connection:
        with pytest.raises(CallFailed) as caught:
            await execute(connection, "/fail", {})
    assert (caught.value.code, caught.value.message) == (code, message)
    if data is not None:
        assert caught.value.data["left_out"].startswith(data["left_out"])
