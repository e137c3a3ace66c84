"""Errors of handlers and of peers: what is told, what stays in the log, and that nobody else suffers."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from engine_stage import connected, offering, scripted
from msgspec import UNSET
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.engine import Handlers, Limits, RequestContext
from stepflow_trio.errors import (
    CallCancelled,
    CallFailed,
    ComponentError,
    ErrorCode,
    LocalProtocolError,
    Overloaded,
    RemoteProtocolError,
    RpcError,
)
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.protocol.methods import COMPONENTS_EXECUTE, COMPONENTS_LIST, PROGRESS_UPDATE
from stepflow_trio.protocol.payloads import ExecuteParams, ExecuteResult, ListParams
from stepflow_trio.testing import Faults

CANARY = "what only our log may hold"
INLINE = pytest.mark.parametrize("inline", [True, False], ids=["inline", "in a task"])


def raising(exc: Exception, *, inline: bool) -> Handlers:
    def at_once(_params: Any, _context: RequestContext) -> Any:
        raise exc

    async def later(_params: Any, _context: RequestContext) -> Any:
        await trio.lowlevel.checkpoint()
        raise exc

    return offering(fail=at_once if inline else later)


def returning(result: Any, *, inline: bool) -> Handlers:
    async def later(_params: Any, _context: RequestContext) -> Any:
        return result

    return offering(give=(lambda _params, _context: result) if inline else later)


# ---- what a handler raises ------------------------------------------------------------------------------


@INLINE
@pytest.mark.parametrize(
    "exc",
    [LookupError(CANARY), ExceptionGroup(CANARY, [ValueError(CANARY)]), LocalProtocolError(CANARY)],
    ids=lambda exc: type(exc).__name__,
)
async def test_an_unforeseen_exception_is_an_incident_whose_text_never_travels(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture, inline: bool, exc: Exception
) -> None:
    async with scripted(raising(exc, inline=inline)) as (_, peer):
        await peer.request("fail", {"canary": CANARY}, id_=1)
        error = await peer.expect_error(1, ErrorCode.INTERNAL_ERROR)
        assert error.message == "Internal error"
        assert set(error.data) == {"incident"}
        assert CANARY not in str(error)
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert error.data["incident"] in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[1] is exc
        await peer.request("echo", [1], id_=2)
        assert await peer.expect_result(2) == [1]


async def test_each_incident_has_an_id_of_its_own(autojump_clock: Any) -> None:
    async with scripted(raising(ValueError(), inline=True)) as (_, peer):
        incidents = set()
        for n in range(10):
            await peer.request("fail", id_=n)
            incidents.add((await peer.expect_error(n)).data["incident"])
        assert len(incidents) == 10


@INLINE
@pytest.mark.parametrize(
    "exc",
    [
        RpcError(-32001, "Component not found", {"available": ["/a"]}),
        RpcError(-1, "no data"),
        RpcError(7, "empty data", {}),
        ComponentError("no widgets left", data={"sku": 7}, code=-32110),
        CallFailed(-32005, "relayed from a callback", [1], method="blobs/get"),
    ],
    ids=str,
)
async def test_an_rpc_error_travels_unchanged(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture, inline: bool, exc: RpcError
) -> None:
    async with connected(raising(exc, inline=inline)) as (near, _):
        with pytest.raises(CallFailed) as caught:
            await near.call("fail")
        error = caught.value
        assert (error.code, error.message, error.data) == (exc.code, exc.message, exc.data)
        assert error.method == "fail"
        assert caplog.records == []


async def test_codes_that_have_an_exception_of_their_own_get_it(autojump_clock: Any) -> None:
    async with connected(raising(RpcError(-32304, "full", {"retry_after_s": 2.5}), inline=True)) as (near, _):
        with pytest.raises(Overloaded) as overloaded:
            await near.call("fail")
        assert overloaded.value.retry_after_s == 2.5
    async with connected(raising(RpcError(-32800, "gone"), inline=True)) as (near, _):
        with pytest.raises(CallCancelled):
            await near.call("fail")


@INLINE
@pytest.mark.parametrize("data", [object(), {"x": {1, 2, object()}}, "\ud800"], ids=repr)
async def test_an_rpc_error_that_cannot_be_said_is_an_incident(
    autojump_clock: Any, inline: bool, data: Any
) -> None:
    async with scripted(raising(RpcError(-32001, "odd", data), inline=inline)) as (_, peer):
        await peer.request("fail", id_=1)
        await peer.expect_error(1, ErrorCode.INTERNAL_ERROR)
        await peer.request("echo", [1], id_=2)
        assert await peer.expect_result(2) == [1]


async def test_one_failing_request_among_1000_concurrent_ones_fails_alone(autojump_clock: Any) -> None:
    async def work(params: Any, _context: RequestContext) -> Any:
        await trio.lowlevel.checkpoint()
        if params["n"] == 500:
            raise ZeroDivisionError(CANARY)
        await trio.lowlevel.checkpoint()
        return params["n"]

    async with connected(offering(work=work)) as (near, far):
        results: list[int] = []
        failures: list[CallFailed] = []

        async def call(n: int) -> None:
            try:
                results.append(await near.call("work", {"n": n}))
            except CallFailed as exc:
                failures.append(exc)

        async with trio.open_nursery() as nursery:
            for n in range(1000):
                nursery.start_soon(call, n)
        assert sorted(results) == [n for n in range(1000) if n != 500]
        assert [failure.code for failure in failures] == [ErrorCode.INTERNAL_ERROR]
        assert far.loss is near.loss is None


# ---- what a handler returns -----------------------------------------------------------------------------


def _cyclic() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


@INLINE
@pytest.mark.parametrize(
    "result",
    [object(), {"a": object()}, "\ud800", {(1, 2): 3}, _cyclic(), UNSET, [UNSET], 1 << 20_000, lambda: 1],
    ids=[
        "object",
        "nested object",
        "surrogate",
        "tuple key",
        "cycle",
        "UNSET",
        "nested UNSET",
        "huge",
        "function",
    ],
)
async def test_a_result_that_is_no_json_is_an_incident_and_the_connection_lives(
    autojump_clock: Any, inline: bool, result: Any
) -> None:
    async with scripted(returning(result, inline=inline)) as (connection, peer):
        await peer.request("give", id_=1)
        await peer.expect_error(1, ErrorCode.INTERNAL_ERROR)
        await peer.request("echo", [1], id_=1)
        assert await peer.expect_result(1) == [1]
        assert connection.statistics().requests_running == 0


@INLINE
@pytest.mark.parametrize("result", [None, False, 0, "", [], {}, 1.5, "é\u2028"], ids=repr)
async def test_any_json_is_a_result(autojump_clock: Any, inline: bool, result: Any) -> None:
    async with connected(returning(result, inline=inline)) as (near, _):
        assert await near.call("give") == result


async def test_a_result_that_is_no_json_inside_a_batch_answers_the_batch(autojump_clock: Any) -> None:
    async with scripted(returning(object(), inline=True)) as (_, peer):
        requests = [codec.encode_request("give", [], 1), codec.encode_request("echo", [], 2)]
        await peer.send_raw(codec.encode_batch(requests))
        batch: Any = await peer.receive()
        assert batch.items[0].error.code == ErrorCode.INTERNAL_ERROR
        assert batch.items[1].result == []


# ---- what is asked for wrongly --------------------------------------------------------------------------


async def test_an_unknown_method_is_refused_with_the_closest_name(autojump_clock: Any) -> None:
    async with connected(offering(evaluate=lambda _p, _c: 1)) as (near, far):
        with pytest.raises(CallFailed) as caught:
            await near.call("evalute")
        assert caught.value.code == ErrorCode.METHOD_NOT_FOUND
        assert caught.value.data == {"method": "evalute", "suggestion": "evaluate"}
        with pytest.raises(CallFailed) as caught:
            await near.call("x" * 10_000)
        assert caught.value.data == {"method": "x" * 200}
        assert far.statistics().requests_running == 0


async def test_params_that_do_not_fit_are_refused_with_their_path(autojump_clock: Any) -> None:
    handlers = Handlers()
    handlers.on_request(COMPONENTS_EXECUTE, lambda params, _: ExecuteResult(params.input))
    async with connected(handlers) as (near, _):
        with pytest.raises(CallFailed) as caught:
            await near.call("components/execute", {"component": 7, "input": None})
        assert caught.value.code == ErrorCode.INVALID_PARAMS
        assert caught.value.data["path"] == "$.component"
        result = await near.call(COMPONENTS_EXECUTE, ExecuteParams(component="/echo", input={"n": 1}))
        assert result == ExecuteResult({"n": 1})


@pytest.mark.parametrize(
    "params",
    [object(), {"a": {1: object()}}, "\ud800", _cyclic()],
    ids=["object", "nested", "surrogate", "cycle"],
)
async def test_params_that_are_no_json_are_our_mistake_and_nothing_is_sent(
    autojump_clock: Any, params: Any
) -> None:
    async with scripted() as (connection, peer):
        for attempt in (
            connection.call("ask", params),
            connection.call("ask", params, timeout_s=1),
            connection.notify("tell", params),
        ):
            with pytest.raises(LocalProtocolError):
                await attempt
        with pytest.raises(LocalProtocolError):
            connection.notify_nowait("tell", params)
        await peer.expect_nothing()
        statistics = connection.statistics()
        assert (statistics.calls_waiting, statistics.outbox_bytes) == (0, 0)


async def test_a_call_that_cannot_be_encoded_gives_its_place_to_the_next(autojump_clock: Any) -> None:
    async with (
        scripted(limits=Limits(max_calls=1)) as (connection, peer),
        trio.open_nursery() as nursery,
    ):
        results: list[Any] = []

        async def call(name: str, params: Any) -> None:
            try:
                results.append(await connection.call(name, params))
            except LocalProtocolError:
                results.append("cannot be encoded")

        nursery.start_soon(call, "first", [])
        first = await peer.expect("first")
        nursery.start_soon(call, "second", object())
        await wait_all_tasks_blocked()
        nursery.start_soon(call, "third", [])
        await wait_all_tasks_blocked()
        await peer.answer(first, 1)
        await peer.answer(await peer.expect("third"), 3)
        await wait_all_tasks_blocked()
        assert sorted(results, key=repr) == ["cannot be encoded", 1, 3]


# ---- what a peer answers wrongly ------------------------------------------------------------------------


async def test_a_result_that_does_not_fit_the_method_is_the_peers_mistake(autojump_clock: Any) -> None:
    wrong = {"components": [{"component": "/a"}, {"component": 5}]}
    async with connected(offering({"components/list": lambda _p, _c: wrong})) as (near, _):
        with pytest.raises(RemoteProtocolError) as caught:
            await near.call(COMPONENTS_LIST, ListParams())
        assert caught.value.code == ErrorCode.GARBLED_MESSAGE
        assert caught.value.data == {"path": "$.components[1].component"}
        assert await near.call("components/list") == wrong
        assert near.statistics().calls_waiting == 0


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"nul",
        b"[]",
        b"5",
        b'{"jsonrpc":"2.0"}',
        b'{"jsonrpc":"2.0","method":7,"id":1}',
        b"\xff\xfe",
        b"[" * 5000,
    ],
    ids=repr,
)
async def test_any_bytes_are_answered_or_dropped_and_the_connection_lives(
    autojump_clock: Any, frame: bytes
) -> None:
    async with scripted() as (connection, peer):
        await peer.send_raw(frame)
        message: Any = await peer.receive()
        assert message.error.code in (ErrorCode.PARSE_ERROR, ErrorCode.INVALID_REQUEST)
        await peer.request("echo", [1], id_=2)
        assert await peer.expect_result(2) == [1]
        assert connection.loss is None


async def test_bytes_that_are_no_frame_are_answered_and_the_stream_goes_on(autojump_clock: Any) -> None:
    def reject(_frame: bytes) -> list[Any]:
        return [FrameRejected("a line is longer than 9 bytes")]

    async with scripted(receiving=Faults(instead={1: reject})) as (_, peer):
        await peer.notify("too long")
        error = await peer.expect_error(None, ErrorCode.INVALID_REQUEST)
        assert error.data == {"detail": "a line is longer than 9 bytes"}
        await peer.request("echo", [1], id_=2)
        assert await peer.expect_result(2) == [1]


# ---- notifications --------------------------------------------------------------------------------------


async def test_a_notification_handler_that_fails_is_logged_and_answered_by_nobody(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    handlers = offering()

    def fail(_params: Any, _connection: Any) -> None:
        raise LookupError(CANARY)

    handlers.on_raw_notification("hum", fail)
    async with scripted(handlers) as (connection, peer):
        await peer.notify("hum")
        await peer.expect_nothing()
        (record,) = caplog.records
        assert "'hum'" in record.getMessage()
        assert connection.loss is None


async def test_a_notification_whose_params_do_not_fit_is_dropped(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "stepflow_trio.engine")  # higher, a peer could flood the log
    heard: list[Any] = []
    handlers = offering()
    handlers.on_notification(PROGRESS_UPDATE, lambda params, _: heard.append(params))
    async with scripted(handlers) as (_, peer):
        for params in (
            {"step_id": "s", "progress": 2.0},
            {"step_id": 5},
            ["s", 1],
            {"step_id": "s", "progress": 0.5},
        ):
            await peer.notify("progress_update", params)
        await peer.expect_nothing()
        assert [(update.step_id, update.progress) for update in heard] == [("s", 0.5)]
        assert len(caplog.records) == 3
        assert "$.progress" in caplog.records[0].getMessage()


def test_a_method_has_one_handler() -> None:
    handlers = offering()
    handlers.on_raw_notification("hum", lambda _p, _c: None)
    with pytest.raises(ValueError, match="'echo' has a handler already"):
        handlers.on_raw_request("echo", lambda _p, _c: None)
    with pytest.raises(ValueError, match="'hum' has a handler already"):
        handlers.on_raw_notification("hum", lambda _p, _c: None)
