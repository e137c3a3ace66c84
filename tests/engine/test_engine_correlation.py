"""docs/design.md, Correlation: one answer per request, to the id as it came, whatever the peer does."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import trio
from engine_stage import Recorder, connected, offering, scripted
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.engine import RequestContext
from stepflow_trio.errors import CallFailed, ErrorCode, RemoteProtocolError
from stepflow_trio.protocol.messages import Request
from stepflow_trio.protocol.peer import Role
from stepflow_trio.testing import Faults, dropped, duplicated, garbled

ROLES = pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)


@ROLES
@pytest.mark.parametrize("id_", [7, "7", 0, -1, "", "é\u0000", 2**63 - 1, -(2**63)], ids=repr)
async def test_a_request_is_answered_with_its_id_as_it_came_type_included(
    autojump_clock: Any, role: Role, id_: int | str
) -> None:
    async with scripted(role=role) as (_, peer):
        await peer.request("echo", {"n": 1}, id_=id_)
        assert await peer.expect_result(id_) == {"n": 1}


async def test_7_and_the_string_7_are_two_requests_in_flight_at_once(autojump_clock: Any) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait)) as (_, peer):
        await peer.request("wait", ["number"], id_=7)
        await peer.request("wait", ["string"], id_="7")
        await wait_all_tasks_blocked()
        assert sorted(recorder.began, key=repr) == ["7", 7]
        await peer.notify("$/cancelRequest", {"id": "7"})
        await peer.expect_error("7", ErrorCode.REQUEST_CANCELLED)
        recorder.release.set()
        assert await peer.expect_result(7) == ["number"]


@ROLES
async def test_an_id_in_flight_used_again_is_an_invalid_request_and_the_first_is_unharmed(
    autojump_clock: Any, role: Role
) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait), role=role) as (_, peer):
        await peer.request("wait", ["first"], id_=1)
        await peer.request("echo", ["second"], id_=1)
        error = await peer.expect_error(1, ErrorCode.INVALID_REQUEST)
        assert "still in flight" in error.data["detail"]
        recorder.release.set()
        assert await peer.expect_result(1) == ["first"]
        await peer.request("echo", ["third"], id_=1)
        assert await peer.expect_result(1) == ["third"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
async def test_answers_may_come_in_any_order(autojump_clock: Any, order: tuple[int, ...]) -> None:
    async with scripted() as (connection, peer), trio.open_nursery() as nursery:
        results: dict[int, Any] = {}

        async def call(number: int) -> None:
            results[number] = await connection.call("ask", {"number": number})

        for number in range(4):
            nursery.start_soon(call, number)
        asked = [await peer.expect("ask") for _ in range(4)]
        for index in order:
            request = asked[index]
            await peer.answer(request, {"answer to": request.params})
        await wait_all_tasks_blocked()
        assert results == {number: {"answer to": {"number": number}} for number in range(4)}


async def test_the_same_id_both_ways_at_once_means_two_requests(autojump_clock: Any) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait)) as (connection, peer), trio.open_nursery() as nursery:
        results: list[Any] = []

        async def call() -> None:
            results.append(await connection.call("ask"))

        nursery.start_soon(call)
        request = await peer.expect("ask")
        await peer.request("wait", ["theirs"], id_=request.id)
        await wait_all_tasks_blocked()
        assert (connection.statistics().calls_waiting, connection.statistics().requests_running) == (1, 1)
        await peer.answer(request, "ours")
        await wait_all_tasks_blocked()
        assert results == ["ours"]
        assert recorder.running == 1
        recorder.release.set()
        assert await peer.expect_result(request.id) == ["theirs"]


@ROLES
async def test_a_late_a_second_and_an_unknown_answer_are_counted_and_harm_nobody(
    autojump_clock: Any, role: Role
) -> None:
    async with scripted(role=role) as (connection, peer), trio.open_nursery() as nursery:
        connection.peer_extensions = frozenset()
        with trio.CancelScope() as caller:
            nursery.start_soon(_cancel_when_blocked, caller)
            await connection.call("given up")
        late = await peer.expect("given up")

        results: list[Any] = []
        nursery.start_soon(_call_into, results, connection, "ask")
        request = await peer.expect("ask")
        await peer.answer(late, "late")
        await peer.answer(late, "later still")
        await peer.answer(Request("ask", [], 4711), "never asked")
        await peer.answer(Request("ask", [], str(request.id)), "the id is a number")
        await peer.fail(Request("ask", [], 4712), -1)
        await peer.send_raw(
            b'{"jsonrpc":"2.0","result":1,"id":true}', b'{"jsonrpc":"2.0","result":1,"id":1.0}'
        )
        await peer.send_raw(b'{"jsonrpc":"2.0","error":{"code":-32700,"message":"?"},"id":null}')
        await peer.answer(request, "right")
        await peer.answer(request, "second")
        await wait_all_tasks_blocked()
        assert results == ["right"]
        assert connection.statistics().dropped == {
            "late_answer": 1,
            "unknown_answer": 5,
            "malformed_answer": 2,
            "peer_rejection": 1,
        }
        assert connection.loss is None


async def test_call_ids_are_never_used_again(autojump_clock: Any) -> None:
    async with scripted() as (connection, peer), trio.open_nursery() as nursery:
        ids: list[Any] = []
        for _ in range(5):
            nursery.start_soon(_call_into, [], connection, "ask")
            request = await peer.expect("ask")
            ids.append(request.id)
            await peer.answer(request, None)
        assert len(set(ids)) == 5


async def test_a_lost_answer_fails_only_its_own_caller(autojump_clock: Any) -> None:
    async with (
        scripted(receiving=Faults(instead={1: dropped, 2: duplicated})) as (connection, peer),
        trio.open_nursery() as nursery,
    ):
        unanswered, answered = [], []
        nursery.start_soon(_call_into, unanswered, connection, "lost")
        lost = await peer.expect("lost")
        nursery.start_soon(_call_into, answered, connection, "ask")
        request = await peer.expect("ask")
        await peer.answer(lost, 1)
        await peer.answer(request, 2)
        await wait_all_tasks_blocked()
        assert (unanswered, answered) == ([], [2])
        assert connection.statistics().dropped == {"unknown_answer": 1}
        await peer.answer(lost, 3)
        await wait_all_tasks_blocked()
        assert unanswered == [3]


@pytest.mark.parametrize(
    "answer",
    [
        b'{"jsonrpc":"2.0","result":1,"error":{"code":1,"message":"x"},"id":%d}',
        b'{"jsonrpc":"2.0","error":{"code":"1","message":"x"},"id":%d}',
        b'{"jsonrpc":"1.0","result":1,"id":%d}',
        b'{"jsonrpc":"2.0","error":"x","id":%d}',
    ],
)
async def test_a_garbled_answer_fails_its_call_only(autojump_clock: Any, answer: bytes) -> None:
    async with scripted() as (connection, peer), trio.open_nursery() as nursery:
        results: list[Any] = []
        nursery.start_soon(_call_into, results, connection, "ask")
        request = await peer.expect("ask")
        nursery.start_soon(_answer_next, peer, answer)
        with pytest.raises(RemoteProtocolError, match="garbled is no JSON-RPC response") as caught:
            await connection.call("garbled")
        assert caught.value.code == ErrorCode.GARBLED_MESSAGE
        await peer.answer(request, "fine")
        await wait_all_tasks_blocked()
        assert results == ["fine"]


async def test_what_is_neither_a_request_nor_an_answer_is_refused_and_answers_nobody(
    autojump_clock: Any,
) -> None:
    async with scripted() as (connection, peer), trio.open_nursery() as nursery:
        results: list[Any] = []
        nursery.start_soon(_call_into, results, connection, "ask")
        request = await peer.expect("ask")
        await peer.send_raw(b'{"jsonrpc":"2.0","id":%d}' % request.id)
        await peer.expect_error(request.id, ErrorCode.INVALID_REQUEST)
        assert results == []
        await peer.answer(request, "fine")
        await wait_all_tasks_blocked()
        assert results == ["fine"]


async def test_a_frame_that_is_no_json_is_answered_and_the_next_one_is_read(autojump_clock: Any) -> None:
    async with scripted(receiving=Faults(instead={1: garbled})) as (_, peer):
        await peer.request("echo", [1], id_=1)
        error = await peer.expect_error(None, ErrorCode.PARSE_ERROR)
        assert error.data["frame_bytes"] > 0
        await peer.request("echo", [2], id_=1)
        assert await peer.expect_result(1) == [2]


async def test_100_callers_at_once_each_get_their_own_answer(autojump_clock: Any) -> None:
    async def late(params: Any, _: RequestContext) -> Any:
        for _ in range(params % 7):
            await trio.lowlevel.checkpoint()
        return params * params

    def method(params: Any, context: RequestContext) -> Any:
        return late(params["n"], context)

    async with connected(offering(square=method), offering(square=method)) as ends:
        results: dict[tuple[int, int], int] = {}

        async def call(end: int, n: int) -> None:
            results[end, n] = await ends[end].call("square", {"n": n})

        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(call, 0, n)
                nursery.start_soon(call, 1, n)
        assert results == {(end, n): n * n for end in range(2) for n in range(100)}
        for end in ends:
            statistics = end.statistics()
            assert (statistics.calls_waiting, statistics.requests_running, statistics.dropped) == (0, 0, {})


async def test_a_batch_is_answered_as_one_array_and_once(autojump_clock: Any) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait)) as (_, peer):
        await peer.send_raw(
            b'[{"jsonrpc":"2.0","method":"wait","id":1},{"jsonrpc":"2.0","method":"echo","params":[2],"id":2},'
            b'{"jsonrpc":"2.0","method":"nope","id":3},{"jsonrpc":"2.0","method":"hum"},5]'
        )
        await wait_all_tasks_blocked()
        recorder.release.set()
        batch: Any = await peer.receive()
        assert [getattr(item, "id", "?") for item in batch.items] == [1, 2, 3, None]
        assert batch.items[1].result == [2]
        assert batch.items[2].error.code == ErrorCode.METHOD_NOT_FOUND


async def test_an_error_answer_carries_code_message_and_data_to_the_caller(autojump_clock: Any) -> None:
    async with scripted() as (connection, peer), trio.open_nursery() as nursery:
        nursery.start_soon(_fail_next, peer, -32123, "no stock", {"sku": 7})
        with pytest.raises(CallFailed) as caught:
            await connection.call("buy")
        error = caught.value
        assert (error.code, error.message, error.data, error.method) == (
            -32123,
            "no stock",
            {"sku": 7},
            "buy",
        )


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def _call_into(results: list[Any], connection: Any, method: str) -> None:
    results.append(await connection.call(method))


async def _answer_next(peer: Any, answer: bytes) -> None:
    request = await peer.expect("garbled")
    await peer.send_raw(answer % request.id)


async def _fail_next(peer: Any, code: int, message: str, data: Any) -> None:
    await peer.fail(await peer.expect("buy"), code, message, data)
