"""docs/design.md, Cancellation: who leaves when, what is sent, what is answered."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import trio
from engine_stage import Recorder, connected, offering, scripted
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.engine import Connection, Limits, RequestContext, open_connection
from stepflow_trio.errors import CallCancelled, CallTimeout, ErrorCode
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.peer import Role
from stepflow_trio.testing import Faults, ScriptedPeer, byte_link_pair

ROLES = pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
CANCELLED = ErrorCode.REQUEST_CANCELLED


def request(id_: int | str, method: str = "wait", params: Any = ()) -> bytes:
    return codec.encode_request(method, list(params), id_)


def cancel(id_: Any) -> bytes:
    return codec.encode_notification("$/cancelRequest", {"id": id_})


# ---- 1: one request, one scope, registered before its task starts ---------------------------------------


@ROLES
async def test_a_cancellation_in_the_same_read_as_its_request_is_not_lost(
    autojump_clock: Any, role: Role
) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait), role=role) as (_, peer):
        await peer.send_raw(request(1), cancel(1), request(2, "echo"))
        assert await peer.expect_result(2) == []
        await peer.expect_error(1, CANCELLED)
        assert recorder.began == recorder.cancelled == [1]


async def test_a_cancellation_in_the_next_read_is_not_lost(autojump_clock: Any) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait)) as (_, peer):
        await peer.send_raw(request(1))
        await trio.lowlevel.checkpoint()
        await peer.send_raw(cancel(1))
        await peer.expect_error(1, CANCELLED)
        assert recorder.running == 0


@pytest.mark.parametrize("chunk_bytes", [*range(1, 12), 40, 54, 55, 56, 57, 100, 200])
async def test_a_cancellation_is_not_lost_however_the_bytes_are_cut(
    autojump_clock: Any, chunk_bytes: int
) -> None:
    recorder = Recorder()
    near, far = byte_link_pair(chunk_bytes=chunk_bytes)
    async with open_connection(near, offering(wait=recorder.wait)):
        peer = ScriptedPeer(far)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send_raw, request(1), cancel(1), request(2, "echo"))
            answers: list[Any] = [await peer.receive(), await peer.receive()]
        assert sorted(answer.id for answer in answers) == [1, 2]
        assert recorder.began == recorder.cancelled == [1]


@pytest.mark.parametrize("max_handlers", [1, 10], ids=["waiting", "running"])
async def test_a_cancellation_inside_the_batch_of_its_request_is_not_lost(
    autojump_clock: Any, max_handlers: int
) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait), limits=Limits(max_handlers=max_handlers)) as (_, peer):
        await peer.send_raw(request("first"))
        await peer.send_raw(b"[" + request(1) + b"," + cancel(1) + b"]")
        batch: Any = await peer.receive()
        assert [(item.id, item.error.code) for item in batch.items] == [(1, CANCELLED)]


@pytest.mark.parametrize("method", ["echo", "nope"], ids=["answered at once", "refused at once"])
async def test_a_cancellation_inside_the_batch_of_a_request_that_needs_no_task_is_late(
    autojump_clock: Any, method: str
) -> None:
    async with scripted() as (connection, peer):
        await peer.send_raw(b"[" + request(1, method) + b"," + cancel(1) + b"]")
        batch: Any = await peer.receive()
        assert len(batch.items) == 1
        await peer.request("echo", [2], id_=2)
        assert await peer.expect_result(2) == [2]
        assert connection.loss is None


async def test_a_request_that_waits_for_a_handler_is_cancelled_without_having_begun(
    autojump_clock: Any,
) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait), limits=Limits(max_handlers=1)) as (connection, peer):
        await peer.send_raw(*(request(n) for n in range(1, 5)))
        await peer.send_raw(cancel(3))
        await peer.expect_error(3, CANCELLED)
        assert connection.statistics().requests_waiting == 2
        recorder.release.set()
        for n in (1, 2, 4):
            await peer.expect_result(n)
        assert recorder.began == [1, 2, 4]


async def test_cancelling_waiting_requests_does_not_search_their_queue(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, count, comparisons = Recorder(), 500, 0

    def compare(one: object, other: object) -> bool:
        nonlocal comparisons
        comparisons += 1
        return one is other

    monkeypatch.setattr(RequestContext, "__eq__", compare, raising=False)
    async with scripted(offering(wait=recorder.wait), limits=Limits(max_handlers=1)) as (_, peer):
        await peer.send_raw(*(request(n) for n in range(count)))
        await peer.send_raw(*(cancel(n) for n in reversed(range(1, count))))
        for n in reversed(range(1, count)):
            await peer.expect_error(n, CANCELLED)
        assert comparisons <= count
        recorder.release.set()
        await peer.expect_result(0)


@pytest.mark.parametrize(
    "params", [b'{"id":99}', b'{"id":"1"}', b'{"id":true}', b'{"id":1.0}', b'{"id":null}', b"{}", b"[1]"]
)
async def test_a_cancellation_of_what_is_not_in_flight_has_no_effect_and_is_counted(
    autojump_clock: Any, params: bytes
) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait)) as (connection, peer):
        await peer.send_raw(
            request(1), b'{"jsonrpc":"2.0","method":"$/cancelRequest","params":' + params + b"}"
        )
        await wait_all_tasks_blocked()
        assert recorder.running == 1
        assert sum(connection.statistics().dropped.values()) == 1
        recorder.release.set()
        await peer.expect_result(1)


# ---- 2: a cancelled caller leaves at once ---------------------------------------------------------------


async def test_cancel_while_the_write_is_not_started_sends_nothing(autojump_clock: Any) -> None:
    async with scripted() as (connection, peer):
        with trio.CancelScope() as caller:
            caller.cancel()
            await connection.call("ask")
        assert caller.cancelled_caught
        await peer.expect_nothing()
        assert connection.statistics().frames_sent == 0
        assert connection.statistics().calls_waiting == connection.statistics().calls_abandoned == 0


async def test_cancel_while_the_write_is_blocked_behind_another_withdraws_the_frame(
    autojump_clock: Any,
) -> None:
    async with scripted(sending=Faults(stall_after=0)) as (connection, peer), trio.open_nursery() as nursery:
        nursery.start_soon(connection.call, "first")
        await wait_all_tasks_blocked()
        with trio.CancelScope() as caller:
            nursery.start_soon(connection.call, "third")
            nursery.start_soon(_cancel_when_blocked, caller)
            await connection.call("second")
        statistics = connection.statistics()
        assert (statistics.outbox_frames, statistics.calls_waiting, statistics.calls_abandoned) == (1, 2, 0)
        assert statistics.outbox_bytes == len(codec.encode_request("third", codec.UNSET, 3))
        nursery.cancel_scope.cancel()
    assert peer.received == []


async def test_cancel_while_the_write_is_begun_finishes_the_frame_and_then_tells_the_peer(
    autojump_clock: Any,
) -> None:
    released = trio.Event()
    async with scripted(sending=Faults(stall_after=0, released=released)) as (connection, peer):
        with trio.CancelScope() as caller:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_blocked, caller)
                await connection.call("ask", {"whole": True})
        assert caller.cancelled_caught
        assert connection.statistics().calls_abandoned == 1
        released.set()
        asked = await peer.expect("ask")
        assert asked.params == {"whole": True}
        told = await peer.expect_notification("$/cancelRequest")
        assert told.params == {"id": asked.id}


@ROLES
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "not announced"])
async def test_cancel_after_the_write_is_delivered_tells_only_a_peer_that_understands(
    autojump_clock: Any, role: Role, announced: bool
) -> None:
    async with scripted(role=role) as (connection, peer):
        connection.peer_extensions = frozenset({"cancel"} if announced else ())
        with trio.CancelScope() as caller:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_when_blocked, caller)
                await connection.call("ask")
        asked = await peer.expect("ask")
        if announced:
            told = await peer.expect_notification("$/cancelRequest")
            assert told.params == {"id": asked.id}
        else:
            await peer.expect_nothing()
        await peer.answer(asked, "late")
        await wait_all_tasks_blocked()
        assert connection.statistics().dropped == {"late_answer": 1}
        assert connection.statistics().calls_abandoned == 0


@pytest.mark.parametrize("timeout_s", [0.0, 2.0])
async def test_a_caller_whose_peer_never_reads_leaves_exactly_at_its_timeout(
    autojump_clock: Any, timeout_s: float
) -> None:
    async with scripted(sending=Faults(stall_after=0)) as (connection, _):
        began = trio.current_time()
        with pytest.raises(CallTimeout, match=f"ask: no answer within {timeout_s:g} s") as caught:
            await connection.call("ask", timeout_s=timeout_s)
        assert trio.current_time() == began + timeout_s
        assert (caught.value.method, caught.value.after_s) == ("ask", timeout_s)
        assert not isinstance(caught.value, trio.Cancelled)
        assert connection.statistics().calls_waiting == 0


async def test_callers_that_wait_for_a_place_or_for_room_leave_at_once_too(autojump_clock: Any) -> None:
    limits = Limits(max_calls=1, max_outbox_bytes=1)
    async with (
        scripted(sending=Faults(stall_after=0), limits=limits) as (connection, _),
        trio.open_nursery() as nursery,
    ):
        began = trio.current_time()
        nursery.start_soon(connection.call, "holds the place")
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await connection.call("waits for a place")
        nursery.start_soon(connection.notify, "fills the outbox")
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await connection.call("waits for room")
        with trio.move_on_after(1):
            await connection.notify("waits for room")
        assert trio.current_time() == began + 3
        statistics = connection.statistics()
        assert (statistics.calls_waiting, statistics.outbox_frames) == (1, 1)
        nursery.cancel_scope.cancel()


async def test_an_answer_in_time_is_no_timeout_and_one_too_late_is(autojump_clock: Any) -> None:
    async def slow(_params: Any, _context: RequestContext) -> str:
        await trio.sleep(1)
        return "done"

    async with connected(offering(slow=slow)) as (near, far):
        assert await near.call("slow", timeout_s=1.5) == "done"
        with pytest.raises(CallTimeout):
            await near.call("slow", timeout_s=0.5)
        await wait_all_tasks_blocked()
        assert far.statistics().requests_running == 0
        assert await near.call("slow") == "done"


async def test_a_result_of_null_is_a_result_and_no_timeout(autojump_clock: Any) -> None:
    async with connected(offering(nothing=lambda _p, _c: None)) as (near, _):
        assert await near.call("nothing", timeout_s=1) is None


async def test_an_outer_cancellation_passes_through_a_call_untouched(autojump_clock: Any) -> None:
    async with scripted() as (connection, _):
        for timeout_s in (None, 5, 1):
            with trio.CancelScope(deadline=trio.current_time() + 1) as outer:
                with pytest.raises(trio.Cancelled) as caught:
                    await connection.call("ask", timeout_s=timeout_s)
                raise caught.value
            assert outer.cancelled_caught


# ---- 3: a cancelled handler, and everything it began, is gone -------------------------------------------


@ROLES
async def test_a_cancelled_handler_runs_its_finally_blocks_and_is_answered(
    autojump_clock: Any, role: Role
) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait), role=role) as (connection, peer):
        await peer.request("wait", id_="a")
        await wait_all_tasks_blocked()
        assert connection.statistics().requests_running == 1
        await peer.notify("$/cancelRequest", {"id": "a"})
        error = await peer.expect_error("a", CANCELLED)
        assert error.message == "Request cancelled"
        assert recorder.cancelled == recorder.ended == ["a"]
        assert connection.statistics().requests_running == 0
        await peer.notify("$/cancelRequest", {"id": "a"})
        await peer.expect_nothing()


async def test_the_answer_waits_for_the_finally_blocks(autojump_clock: Any) -> None:
    async def tidy(_params: Any, _context: RequestContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)

    async with scripted(offering(tidy=tidy)) as (_, peer):
        await peer.request("tidy", id_=1)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        await peer.send_raw(cancel(1))
        await peer.expect_error(1, CANCELLED)
        assert trio.current_time() == began + 3


@pytest.mark.parametrize("outcome", ["returns", "raises"])
async def test_a_handler_that_ends_otherwise_is_answered_with_how_it_ended_and_once(
    autojump_clock: Any, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def stubborn(_params: Any, _context: RequestContext) -> str:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if outcome == "raises":
                raise LookupError("cleaning up failed") from None
            return "finished all the same"

    async with scripted(offering(stubborn=stubborn)) as (_, peer):
        await peer.request("stubborn", id_=1)
        await wait_all_tasks_blocked()
        await peer.send_raw(cancel(1))
        if outcome == "raises":
            await peer.expect_error(1, ErrorCode.INTERNAL_ERROR)
        else:
            assert await peer.expect_result(1) == "finished all the same"
        await peer.expect_nothing()


async def test_cancelling_a_caller_cancels_the_whole_tree_across_both_connections(
    autojump_clock: Any,
) -> None:
    # near → far → near → far: each handler waits for a callback of its own over the same connection.
    ended: list[str] = []

    async def descend(params: Any, context: RequestContext) -> Any:
        depth = params["depth"]
        try:
            if depth == 0:
                await trio.sleep_forever()
            return await context.connection.call("descend", {"depth": depth - 1})
        finally:
            ended.append(f"depth {depth}")

    async with connected(offering(descend=descend), offering(descend=descend)) as (near, far):
        with pytest.raises(CallTimeout):
            await near.call("descend", {"depth": 5}, timeout_s=1)
        await wait_all_tasks_blocked()
        assert sorted(ended) == [f"depth {depth}" for depth in range(6)]
        for end in (near, far):
            statistics = end.statistics()
            assert (statistics.requests_running, statistics.calls_waiting) == (0, 0)
            assert statistics.calls_abandoned == 0, "the late answers have come"
        assert await near.call("echo", [1]) == [1]


async def test_a_cancellation_travels_along_a_chain_of_connections(autojump_clock: Any) -> None:
    # caller → relay → relay → worker, as a sub-run does over several processes.
    recorder = Recorder()
    onwards: list[Connection] = []

    def relay(to: int) -> Any:
        async def pass_on(params: Any, _context: RequestContext) -> Any:
            return await onwards[to].call("work", params)

        return offering(work=pass_on)

    async with (
        connected(offering(work=recorder.wait)) as (to_worker, at_worker),
        connected(relay(0)) as (to_last, _),
        connected(relay(1)) as (to_first, _),
        trio.open_nursery() as nursery,
    ):
        onwards += [to_worker, to_last]
        nursery.start_soon(to_first.call, "work")
        await wait_all_tasks_blocked()
        assert recorder.running == 1
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
        assert recorder.cancelled == [1]
        assert at_worker.statistics().requests_running == 0


async def test_a_callee_that_says_cancelled_fails_the_call_and_is_no_cancellation_here(
    autojump_clock: Any,
) -> None:
    async with scripted() as (connection, peer), trio.open_nursery() as nursery:
        nursery.start_soon(_fail_the_next, peer, CANCELLED)
        with pytest.raises(CallCancelled):
            await connection.call("ask")
        assert await _echo(connection, peer, nursery) == "still here"


# ---- the answer and the cancellation meet ---------------------------------------------------------------


@pytest.mark.parametrize("delays", list(itertools.product(range(4), range(7))), ids=str)
async def test_an_answer_that_meets_a_cancellation_at_any_point_leaves_the_connection_usable(
    autojump_clock: Any, delays: tuple[int, int]
) -> None:
    handler_delay, caller_delay = delays

    async def soon(_params: Any, _context: RequestContext) -> str:
        for _ in range(handler_delay):
            await trio.lowlevel.checkpoint()
        return "answer"

    async with connected(offering(soon=soon)) as (near, far):
        results: list[Any] = []
        with trio.CancelScope() as caller:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_after, caller, caller_delay)
                results.append(await near.call("soon"))
        assert results == ([] if caller.cancelled_caught and not results else ["answer"])
        await wait_all_tasks_blocked()
        for end in (near, far):
            statistics = end.statistics()
            assert (statistics.calls_waiting, statistics.calls_abandoned) == (0, 0)
            assert statistics.requests_running == 0
            assert set(statistics.dropped) <= {"late_answer", "late_cancel"}
        assert await near.call("echo", [1]) == [1]


@pytest.mark.parametrize("answer_first", [True, False])
async def test_an_answer_and_a_cancellation_in_one_batch_of_the_scheduler_end_the_call_once(
    autojump_clock: Any, answer_first: bool
) -> None:
    async with scripted() as (connection, peer), trio.open_nursery() as nursery:
        results: list[Any] = []

        async def call() -> None:
            results.append(await connection.call("ask"))

        with trio.CancelScope() as caller:
            async with trio.open_nursery() as inner:
                inner.start_soon(call)
                asked = await peer.expect("ask")
                if answer_first:
                    await peer.answer(asked, 1)
                    caller.cancel()
                else:
                    caller.cancel()
                    await _shielded_answer(peer, asked)
        await wait_all_tasks_blocked()
        statistics = connection.statistics()
        assert len(results) + statistics.dropped.get("late_answer", 0) == 1
        nursery.cancel_scope.cancel()


async def test_a_cancellation_while_the_answer_cannot_be_written_gives_exactly_one_answer(
    autojump_clock: Any,
) -> None:
    released = trio.Event()
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait), sending=Faults(stall_after=0, released=released)) as (
        connection,
        peer,
    ):
        await peer.send_raw(request(1))
        await wait_all_tasks_blocked()
        recorder.release.set()
        await wait_all_tasks_blocked()
        await peer.send_raw(cancel(1))
        await wait_all_tasks_blocked()
        assert connection.statistics().dropped == {"late_cancel": 1}
        released.set()
        assert await peer.expect_result(1) == []
        await peer.expect_nothing()


async def test_an_id_is_free_again_before_its_answer_is_written(autojump_clock: Any) -> None:
    released = trio.Event()
    async with scripted(sending=Faults(stall_after=0, released=released)) as (_, peer):
        for n in range(3):
            await peer.request("echo", [n], id_=1)
            await wait_all_tasks_blocked()
        released.set()
        for n in range(3):
            assert await peer.expect_result(1) == [n]


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def _cancel_after(scope: trio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def _shielded_answer(peer: ScriptedPeer, asked: Any) -> None:
    with trio.CancelScope(shield=True):
        await peer.answer(asked, 1)


async def _fail_the_next(peer: ScriptedPeer, code: int) -> None:
    await peer.fail(await peer.expect("ask"), code)


async def _echo(connection: Connection, peer: ScriptedPeer, nursery: trio.Nursery) -> Any:
    async def answer() -> None:
        await peer.answer(await peer.expect("ask"), "still here")

    nursery.start_soon(answer)
    return await connection.call("ask")
