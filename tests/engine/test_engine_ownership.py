"""docs/design.md, Ownership: leaving the block leaves nothing, and one exception comes out of it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import trio
import trio.testing
from engine_stage import Recorder, connected, offering, scripted
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.engine import Limits, RequestContext, open_connection
from stepflow_trio.engine.link_connection import LAST_WORDS_S
from stepflow_trio.errors import ConnectionLost, LossReason
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.peer import Role
from stepflow_trio.testing import Faults, ScriptedPeer, memory_link_pair
from stepflow_trio.testing.scheduler import scheduler_order


class OfTheBody(Exception):
    """What the block itself raises."""


# ---- the exception that comes out -----------------------------------------------------------------------


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with a handler and a call"])
async def test_the_bodys_exception_comes_out_bare_and_is_the_same_object(
    autojump_clock: Any, busy: bool
) -> None:
    recorder, mine = Recorder(), OfTheBody("mine")
    link, far_link = memory_link_pair()
    peer = ScriptedPeer(far_link)
    began = trio.current_time()

    async def failing(nursery: trio.Nursery) -> None:
        async with open_connection(link, offering(wait=recorder.wait)) as connection:
            if busy:
                await peer.request("wait", id_=1)
                nursery.start_soon(_expect_loss, connection, LossReason.LOCAL_CLOSE)
                await wait_all_tasks_blocked()
            raise mine

    async with trio.open_nursery() as nursery:
        with pytest.raises(OfTheBody) as caught:
            await failing(nursery)
    assert caught.value is mine
    assert mine.__cause__ is None
    assert mine.__context__ is None
    assert recorder.cancelled == ([1] if busy else [])
    assert trio.current_time() == began, "with an exception nothing is waited for"


async def test_the_bodys_exception_comes_out_although_the_task_is_cancelled(autojump_clock: Any) -> None:
    recorder = Recorder()

    async def cancelled_and_failing() -> None:
        with trio.CancelScope() as outer:
            async with scripted(offering(wait=recorder.wait)) as (_, peer):
                await peer.request("wait", id_=1)
                await wait_all_tasks_blocked()
                outer.cancel()
                raise OfTheBody

    with pytest.raises(OfTheBody):
        await cancelled_and_failing()


async def test_a_group_that_the_body_raises_comes_out_as_it_is(autojump_clock: Any) -> None:
    group = ExceptionGroup("mine", [OfTheBody("one")])
    with pytest.raises(ExceptionGroup) as caught:
        async with scripted():
            raise group
    assert repr(caught.value) == repr(group)


async def test_a_cancelled_block_passes_it_on_and_waits_for_nothing(
    autojump_clock: Any,
) -> None:
    recorder = Recorder()
    began = trio.current_time()
    with trio.CancelScope() as outer:
        async with scripted(
            offering(wait=recorder.wait), limits=Limits(max_handlers=1), sending=Faults(stall_after=0)
        ) as (connection, peer):
            await peer.send_raw(*(codec.encode_request("wait", [], n) for n in range(3)))
            await wait_all_tasks_blocked()
            outer.cancel()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()  # the handlers end before the block does
    assert outer.cancelled_caught
    assert trio.current_time() == began
    assert recorder.began == recorder.cancelled == [0], "what waited for a place never began"
    assert connection.statistics().requests_running == 0


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
async def test_leaving_a_lost_connection_raises_nothing_of_its_own(autojump_clock: Any, role: Role) -> None:
    async with scripted(role=role) as (connection, peer):
        await peer.close()
        assert (await connection.wait_lost()).reason is LossReason.PEER_CLOSED


# ---- leaving in order -----------------------------------------------------------------------------------


async def test_leaving_leaves_no_task_and_closes_the_link(autojump_clock: Any) -> None:
    recorder = Recorder()
    link, far_link = memory_link_pair()
    peer = ScriptedPeer(far_link)
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with open_connection(link, offering(wait=recorder.wait), limits=Limits(drain_s=1)):
        await peer.send_raw(*(codec.encode_request("wait", [], n) for n in range(10)))
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == tasks + 12
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert recorder.running == 0
    with pytest.raises(trio.ClosedResourceError):
        await link.receive()
    await peer.expect_end()


async def test_handlers_that_finish_while_draining_are_answered_and_so_are_their_callbacks(
    autojump_clock: Any,
) -> None:
    async def work(params: Any, context: RequestContext) -> Any:
        await trio.sleep(1)
        return await context.connection.call("callback", params)

    link, far_link = memory_link_pair()
    peer = ScriptedPeer(far_link)
    began = trio.current_time()

    async def owner() -> None:
        async with open_connection(link, offering(work=work), limits=Limits(max_handlers=1)):
            await peer.send_raw(*(codec.encode_request("work", [n], n) for n in range(3)))
            await wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(owner)
        for n in range(3):
            await peer.answer(await peer.expect("callback"), ["called back", n])
            assert await peer.expect_result(n) == ["called back", n]
        await peer.expect_end()
    assert trio.current_time() == began + 3


@pytest.mark.parametrize("drain_s", [0.0, 2.5])
async def test_leaving_waits_at_most_drain_s_and_then_cancels(autojump_clock: Any, drain_s: float) -> None:
    recorder = Recorder()
    began = trio.current_time()
    async with scripted(offering(wait=recorder.wait), limits=Limits(drain_s=drain_s)) as (_, peer):
        await peer.request("wait", id_=1)
        await wait_all_tasks_blocked()
    assert trio.current_time() == began + drain_s
    assert recorder.cancelled == [1]


async def test_leaving_with_nothing_in_flight_waits_for_nothing(autojump_clock: Any) -> None:
    began = trio.current_time()
    async with connected() as (near, far):
        await near.call("echo", [1])
        await far.call("echo", [1])
        await near.notify("bye")
    assert trio.current_time() == began


async def test_what_was_queued_before_leaving_is_sent(autojump_clock: Any) -> None:
    link, far_link = memory_link_pair()
    peer = ScriptedPeer(far_link)
    async with open_connection(link, offering()) as connection:
        for n in range(10):
            assert connection.notify_nowait("tick", [n])
    for n in range(10):
        assert (await peer.expect_notification("tick")).params == [n]
    await peer.expect_end()


@pytest.mark.parametrize("seed", range(20))
def test_a_call_withdrawn_while_leaving_is_not_waited_for(seed: int) -> None:
    # The writer wakes for a frame that is gone again: whoever waits for the outbox to be empty must be told.
    async def main() -> float:
        began = trio.current_time()
        async with trio.open_nursery() as nursery, scripted() as (connection, _):
            caller = trio.CancelScope()

            async def call() -> None:
                with caller, contextlib.suppress(ConnectionLost):
                    await connection.call("ask")

            async def cancel() -> None:
                await trio.lowlevel.checkpoint()
                caller.cancel()

            nursery.start_soon(call)
            nursery.start_soon(cancel)
            await trio.lowlevel.checkpoint()
        return trio.current_time() - began

    with scheduler_order(seed):
        assert trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0)) == 0


async def test_calls_of_other_tasks_end_with_the_block(autojump_clock: Any) -> None:
    async with trio.open_nursery() as nursery, scripted() as (connection, _):
        for _ in range(3):
            nursery.start_soon(_expect_loss, connection, LossReason.LOCAL_CLOSE)
        await wait_all_tasks_blocked()
    await _expect_loss(connection, LossReason.LOCAL_CLOSE)
    assert (await connection.wait_lost()).detail == "this side closed the connection"


async def test_entering_never_waits_for_the_peer(autojump_clock: Any) -> None:
    began = trio.current_time()
    async with scripted(receiving=Faults(stall_after=0), sending=Faults(stall_after=0)):
        assert trio.current_time() == began


async def test_connections_one_after_another_share_nothing(
    autojump_clock: Any,
) -> None:
    handlers = offering()
    for n in range(3):
        async with connected(handlers) as (near, _):
            assert await near.call("echo", [n]) == [n]
            assert near.statistics().frames_sent == 1


# ---- last words -----------------------------------------------------------------------------------------


async def test_a_cancelled_block_still_tells_the_peer_which_calls_it_gives_up(autojump_clock: Any) -> None:
    link, far_link = memory_link_pair()
    peer = ScriptedPeer(far_link)
    with trio.CancelScope() as outer:
        async with (
            open_connection(link, offering()) as connection,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(connection.call, "ask")
            await wait_all_tasks_blocked()
            nursery.start_soon(connection.call, "not begun")
            outer.cancel()
    asked = await peer.expect("ask")
    assert (await peer.expect_notification("$/cancelRequest")).params == {"id": asked.id}
    await peer.expect_end()


async def test_last_words_do_not_change_why_the_connection_is_lost(autojump_clock: Any) -> None:
    link, far_link = memory_link_pair(capacity=1)
    began = trio.current_time()

    async def failing(nursery: trio.Nursery) -> None:
        async with open_connection(link, offering()) as connection:
            nursery.start_soon(_expect_loss, connection, LossReason.LOCAL_CLOSE)
            await wait_all_tasks_blocked()
            connection.notify_nowait("nobody reads this")
            raise OfTheBody

    async with trio.open_nursery() as nursery:
        with pytest.raises(OfTheBody):
            await failing(nursery)
    assert trio.current_time() - began <= LAST_WORDS_S
    await far_link.aclose()


async def _expect_loss(connection: Any, reason: LossReason) -> None:
    with pytest.raises(ConnectionLost) as caught:
        await connection.call("never answered")
    assert caught.value.reason is reason
