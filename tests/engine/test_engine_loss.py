"""docs/design.md, Cancellation: how a connection is lost, and what that does to everything it carried."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import trio
from engine_stage import Recorder, connected, offering, scripted
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.engine import Connection, Limits, RequestContext
from stepflow_trio.engine.link_connection import LAST_WORDS_S
from stepflow_trio.errors import CallFailed, ConnectionLost, LossReason
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.messages import Request
from stepflow_trio.protocol.peer import Phase, Role
from stepflow_trio.testing import Faults, FaultyLink, ScriptedPeer, memory_link_pair

ANSWERING_ROLES = pytest.mark.parametrize("role", [Role.WORKER, Role.PLAIN], ids=lambda role: role.value)
ROLES = pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)

# What each reason takes: limits, faults of the link, and what happens once everything waits.
Act = Callable[[Connection, ScriptedPeer], Any]


async def _nothing(_connection: Connection, _peer: ScriptedPeer) -> None:
    pass


async def _peer_closes(_connection: Connection, peer: ScriptedPeer) -> None:
    await peer.close()


async def _peer_floods(connection: Connection, peer: ScriptedPeer) -> None:
    while connection.loss is None:
        await peer.send_raw(b"no JSON")
        await wait_all_tasks_blocked()


async def _owner_gives_up(connection: Connection, _peer: ScriptedPeer) -> None:
    connection.lose(LossReason.PROTOCOL_VIOLATION, "the peer speaks another version")


HOW_LOST: dict[str, tuple[LossReason, Limits, Faults, Faults, Act]] = {
    "the peer closes": (LossReason.PEER_CLOSED, Limits(), Faults(), Faults(), _peer_closes),
    "receiving fails": (LossReason.STREAM_ERROR, Limits(), Faults(fail_after=1), Faults(), _nothing),
    "sending fails": (LossReason.STREAM_ERROR, Limits(), Faults(), Faults(fail_after=1), _nothing),
    "the owner sees a violation": (
        LossReason.PROTOCOL_VIOLATION, Limits(), Faults(), Faults(), _owner_gives_up,
    ),
    "silence": (LossReason.IDLE_TIMEOUT, Limits(idle_timeout_s=7), Faults(), Faults(), _nothing),
    "the peer takes nothing": (
        LossReason.SEND_STALLED, Limits(send_timeout_s=7), Faults(), Faults(stall_after=1), _nothing,
    ),
    "the peer sends and never reads": (
        LossReason.SEND_STALLED, Limits(max_outbox_bytes=1000), Faults(), Faults(stall_after=0), _peer_floods,
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", HOW_LOST)
async def test_a_lost_connection_ends_everything_it_carried_with_the_reason(
    autojump_clock: Any, how: str
) -> None:
    reason, limits, receiving, sending, act = HOW_LOST[how]
    recorder = Recorder()
    losses: list[ConnectionLost] = []
    callback_ends: list[str] = []

    async def call(connection: Connection) -> None:
        try:
            await connection.call("call")
        except ConnectionLost as exc:
            losses.append(exc)

    async def handler(params: Any, context: RequestContext) -> Any:
        if params == ["with a callback"]:
            try:
                await context.connection.call("callback")
            except trio.Cancelled:
                callback_ends.append("cancelled")
                raise
            except ConnectionLost:
                callback_ends.append("lost")
                raise
        return await recorder.wait(params, context)

    async with scripted(offering(work=handler), limits=limits, receiving=receiving, sending=sending) as (
        connection,
        peer,
    ):
        async with trio.open_nursery() as nursery:
            await peer.send_raw(codec.encode_request("work", ["with a callback"], "with a callback"))
            if receiving.fail_after is None:
                await peer.send_raw(codec.encode_request("work", ["alone"], "alone"))
            nursery.start_soon(call, connection)
            nursery.start_soon(call, connection)
            await wait_all_tasks_blocked()
            await act(connection, peer)
            loss = await connection.wait_lost()
            assert loss.reason is reason
            await wait_all_tasks_blocked()
            assert [exc.reason for exc in losses] == [reason] * 2
            # A peer that only closed its end may still listen: the handler goes on, without its callback.
            # And where receiving fails, that happens before the callback is made.
            refused = how in ("the peer closes", "receiving fails")
            assert callback_ends == ["lost" if refused else "cancelled"]
            assert recorder.running == 0
            statistics = connection.statistics()
            assert statistics.phase is Phase.CLOSED
            assert (statistics.calls_waiting, statistics.calls_abandoned) == (0, 0)
            assert (statistics.requests_running, statistics.requests_waiting) == (0, 0)
            assert (statistics.outbox_frames, statistics.outbox_bytes) == (0, 0)
        for attempt in (connection.call("x"), connection.notify("x")):
            with pytest.raises(ConnectionLost) as caught:
                await attempt
            assert caught.value.reason is reason
            assert str(caught.value).startswith(f"connection lost ({reason.value}): ")
        with pytest.raises(ConnectionLost):
            connection.notify_nowait("x")
        assert connection.loss is loss
        assert f"lost: {reason.value}" in repr(connection)
    assert connection.loss is loss, "the first reason stays"


def test_every_reason_is_tried() -> None:
    tried = {reason for reason, *_ in HOW_LOST.values()}
    assert tried == set(LossReason) - {LossReason.LOCAL_CLOSE}, "LOCAL_CLOSE: test_engine_ownership.py"


async def test_waiters_are_woken_before_anything_else_runs(autojump_clock: Any) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait), limits=Limits(max_handlers=1, max_calls=5)) as (
        connection,
        peer,
    ):
        losses: list[ConnectionLost] = []

        async def call() -> None:
            with pytest.raises(ConnectionLost) as caught:
                await connection.call("ask")
            losses.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(15):
                nursery.start_soon(call)
            await wait_all_tasks_blocked()
            await peer.send_raw(*(codec.encode_request("wait", [], n) for n in range(3)))
            await wait_all_tasks_blocked()
            # No await between these lines: the tables are empty and every caller is scheduled already.
            connection.lose(LossReason.PROTOCOL_VIOLATION, "enough")
            statistics = connection.statistics()
            assert (statistics.calls_waiting, statistics.requests_waiting) == (0, 0)
            runnable = trio.lowlevel.current_statistics().tasks_runnable
            assert runnable >= 16, "5 callers, 10 that wait for a place, one handler"
        assert len(losses) == 15
        assert len({id(loss) for loss in losses}) == 15, "each caller has an exception of its own"
        assert recorder.cancelled == [0]


async def test_losing_twice_changes_nothing(autojump_clock: Any) -> None:
    async with scripted() as (connection, _):
        connection.lose(LossReason.IDLE_TIMEOUT, "first")
        connection.lose(LossReason.STREAM_ERROR, "second")
        loss = await connection.wait_lost()
        assert (loss.reason, loss.detail) == (LossReason.IDLE_TIMEOUT, "first")


async def test_callers_that_wait_for_a_place_or_room_are_woken_by_the_loss(autojump_clock: Any) -> None:
    limits = Limits(max_calls=1, max_outbox_bytes=1)
    async with scripted(limits=limits, sending=Faults(stall_after=0)) as (connection, _):
        lost: list[str] = []

        async def expect_loss(name: str, act: Callable[[], Any]) -> None:
            with pytest.raises(ConnectionLost):
                await act()
            lost.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_loss, "in flight", lambda: connection.call("a"))
            await wait_all_tasks_blocked()
            nursery.start_soon(expect_loss, "place", lambda: connection.call("b"))
            await wait_all_tasks_blocked()
            await connection.notify("fills the outbox")
            nursery.start_soon(expect_loss, "room", lambda: connection.call("c"))
            nursery.start_soon(expect_loss, "notification", lambda: connection.notify("d"))
            await wait_all_tasks_blocked()
            assert lost == []
            connection.lose(LossReason.STREAM_ERROR, "cut")
        assert sorted(lost) == ["in flight", "notification", "place", "room"]


async def test_what_arrives_in_the_batch_behind_the_loss_is_dropped(autojump_clock: Any) -> None:
    # One array holds three things at once; the first of them fills the outbox of a peer that does not read.
    recorder = Recorder()
    limits = Limits(max_handlers=1, max_outbox_bytes=100)
    async with scripted(offering(wait=recorder.wait), limits=limits, sending=Faults(stall_after=1)) as (
        connection,
        peer,
    ):
        answers: list[Any] = []
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                try:
                    answers.append(await connection.call("ask"))
                except ConnectionLost as exc:
                    answers.append(exc.reason)

            nursery.start_soon(call)
            asked = await peer.expect("ask")
            await peer.send_raw(codec.encode_request("wait", [], 1), codec.encode_request("wait", [], 2))
            await wait_all_tasks_blocked()
            while connection.statistics().outbox_bytes < 200:
                await peer.send_raw(b"no JSON")
                await wait_all_tasks_blocked()
            cancel_waiting = codec.encode_notification("$/cancelRequest", {"id": 2})
            answer = codec.encode_success("in time", asked.id)
            begun_too_late = codec.encode_request("wait", [], 3)
            await peer.send_raw(codec.encode_batch([cancel_waiting, begun_too_late, answer]))
            loss = await connection.wait_lost()
        assert loss.reason is LossReason.SEND_STALLED
        assert answers == [LossReason.SEND_STALLED]
        assert recorder.began == recorder.cancelled == [1]
        assert connection.statistics().outbox_frames == 0
        assert connection.statistics().dropped == {}


@pytest.mark.parametrize("writing", [True, False])
async def test_a_lost_connection_reads_and_writes_no_more(autojump_clock: Any, writing: bool) -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with scripted(sending=Faults(stall_after=0)) as (connection, peer):
        assert trio.lowlevel.current_statistics().tasks_living == tasks + 2
        if writing:
            connection.notify_nowait("never taken")
        await wait_all_tasks_blocked()
        connection.lose(LossReason.IDLE_TIMEOUT, "enough")
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        await peer.request("echo", id_=1)
        await peer.expect_nothing()
        assert connection.statistics().frames_received == 0


async def test_giving_up_many_calls_at_once_overruns_no_outbox(autojump_clock: Any) -> None:
    async with scripted(limits=Limits(max_outbox_bytes=200)) as (connection, peer):
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(connection.call, "ask")
            asked = [(await peer.expect("ask")).id for _ in range(50)]
            nursery.cancel_scope.cancel()
        assert connection.loss is None
        given_up = [(await peer.expect_notification("$/cancelRequest")).params for _ in range(50)]
        assert sorted(params["id"] for params in given_up) == asked  # type: ignore[call-overload]
        assert connection.loss is None


async def any_request(peer: ScriptedPeer) -> Request:
    request = await peer.receive()
    assert isinstance(request, Request)
    return request


# ---- the peer takes nothing any more --------------------------------------------------------------------


async def test_answers_that_the_peer_gave_before_it_went_away_still_count(autojump_clock: Any) -> None:
    # It answered and ended; we write to it before we have read that.
    async with scripted(receiving=Faults(delay_s=0.1), sending=Faults(fail_after=2)) as (connection, peer):
        async with trio.open_nursery() as nursery:
            results: list[Any] = []

            async def call(name: str) -> None:
                results.append(await connection.call(name))

            nursery.start_soon(call, "a")
            nursery.start_soon(call, "b")
            for _ in range(2):
                await peer.answer(await any_request(peer), "in time")
            await peer.close()
            await connection.notify("into the void")
        assert results == ["in time", "in time"]
        assert (await connection.wait_lost()).reason is LossReason.PEER_CLOSED


async def test_a_peer_that_takes_nothing_and_says_nothing_is_lost_soon(autojump_clock: Any) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait), sending=Faults(fail_after=0)) as (connection, peer):
        await peer.request("wait", id_=1)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        with pytest.raises(ConnectionLost, match="writing failed: OSError"):
            await connection.call("ask")
        assert trio.current_time() == began + LAST_WORDS_S
        await wait_all_tasks_blocked()
        assert recorder.cancelled == [1]


async def test_an_end_whose_peer_is_gone_both_ways_finishes_nothing(
    autojump_clock: Any,
) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait)) as (connection, peer):
        began = trio.current_time()
        await peer.request("wait", id_=1)
        await wait_all_tasks_blocked()
        await peer.close()
        connection.notify_nowait("into the void")
        await connection.wait_lost()
        await wait_all_tasks_blocked()
        assert trio.current_time() == began
        assert recorder.cancelled == [1]


# ---- the link fails at any frame ------------------------------------------------------------------------


@pytest.mark.parametrize("fail_after", range(14))
@pytest.mark.parametrize("direction", ["receiving", "sending"])
async def test_wherever_the_link_fails_every_call_ends_and_nothing_is_left(
    autojump_clock: Any, direction: str, fail_after: int
) -> None:
    ended: list[str] = []
    began = 0

    async def descend(params: Any, context: RequestContext) -> Any:
        nonlocal began
        began += 1
        try:
            depth = params["depth"]
            return 0 if depth == 0 else await context.connection.call("descend", {"depth": depth - 1})
        finally:
            ended.append("handler")

    link, far_link = memory_link_pair()
    faulty = FaultyLink(link, **{direction: Faults(fail_after=fail_after)})
    handlers = offering(descend=descend)
    with trio.fail_after(5):
        async with connected(
            handlers, handlers, links=(faulty, far_link), far_limits=Limits(drain_s=1)
        ) as ends:
            outcomes: list[str] = []

            async def call(end: Connection) -> None:
                try:
                    assert await end.call("descend", {"depth": 3}) == 0
                    outcomes.append("answered")
                except ConnectionLost as exc:
                    outcomes.append(exc.reason.value)
                except CallFailed as exc:
                    outcomes.append(f"failed with {exc.code}")

            async with trio.open_nursery() as nursery:
                for end in (*ends, *ends):
                    nursery.start_soon(call, end)
                if direction == "receiving" and fail_after > 12:
                    nursery.start_soon(ends[1].notify, "one more")
                await ends[0].wait_lost()
                await ends[0].link.aclose()
            assert len(outcomes) == 4
            # −32603: their handler lost its callback, and there was still time to say so.
            assert set(outcomes) <= {"answered", "stream_error", "peer_closed", "failed with -32603"}
            await ends[1].wait_lost()
    assert began == len(ended)


# ---- exactly when ---------------------------------------------------------------------------------------


async def test_a_peer_that_takes_nothing_is_given_up_after_exactly_send_timeout_s(
    autojump_clock: Any,
) -> None:
    async with scripted(sending=Faults(stall_after=0), limits=Limits(send_timeout_s=5)) as (connection, _):
        await trio.sleep(100)
        began = trio.current_time()
        with pytest.raises(ConnectionLost, match=r"send_stalled.*accepted no bytes for 5 s"):
            await connection.call("ask")
        assert trio.current_time() == began + 5


async def test_between_writes_no_time_counts(autojump_clock: Any) -> None:
    async with connected(near_limits=Limits(send_timeout_s=5), far_limits=Limits(send_timeout_s=5)) as (
        near,
        _,
    ):
        for _ in range(3):
            assert await near.call("echo", [1]) == [1]
            await trio.sleep(100)


async def test_a_peer_that_takes_a_little_in_time_is_kept(autojump_clock: Any) -> None:
    async with scripted(sending=Faults(delay_s=4.9), limits=Limits(send_timeout_s=5)) as (connection, peer):
        for n in range(20):
            await connection.notify("tick", [n])
        for n in range(20):
            assert (await peer.expect_notification("tick")).params == [n]
        assert connection.loss is None


async def test_silence_is_counted_from_the_last_frame(autojump_clock: Any) -> None:
    async with scripted(limits=Limits(idle_timeout_s=5)) as (connection, peer):
        began = trio.current_time()
        for _ in range(3):
            await trio.sleep(4.9)
            await peer.notify("tick")
        loss = await connection.wait_lost()
        assert loss.reason is LossReason.IDLE_TIMEOUT
        assert trio.current_time() == pytest.approx(began + 3 * 4.9 + 5)


async def test_a_peer_that_stops_reading_does_not_hold_up_the_end(autojump_clock: Any) -> None:
    with trio.fail_after(1.5):
        async with scripted(sending=Faults(stall_after=0), limits=Limits(drain_s=1, send_timeout_s=60)) as (
            connection,
            _,
        ):
            with trio.move_on_after(0.25):
                await connection.call("ask")


async def test_the_far_end_sees_the_end_when_the_block_is_left(autojump_clock: Any) -> None:
    async with connected() as (near, far):
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(ConnectionLost, match=re.escape("connection lost (")):
                    await far.call("never")

            never = trio.Event()
            near._handlers.on_raw_request("never", lambda _p, _c: never.wait())
            nursery.start_soon(call)
            await wait_all_tasks_blocked()
            near.lose(LossReason.PROTOCOL_VIOLATION, "enough")
            await near.link.aclose()
        assert (await far.wait_lost()).reason is LossReason.PEER_CLOSED
