"""docs/design.md, Flow control: the reader awaits nobody, all is bounded, nothing is stuck for ever."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from engine_stage import Recorder, connected, offering, scripted
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.engine import Limits, RequestContext
from stepflow_trio.errors import CallFailed, ErrorCode, LossReason, Overloaded
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.messages import Failure, Request
from stepflow_trio.testing import Faults, byte_link_pair, memory_link_pair

# ---- the reader -----------------------------------------------------------------------------------------


async def test_a_flood_is_refused_while_the_callbacks_of_running_handlers_are_answered(
    autojump_clock: Any,
) -> None:
    async def work(params: Any, context: RequestContext) -> Any:
        return await context.connection.call("callback", params)

    async with scripted(offering(work=work), limits=Limits(max_handlers=2, max_waiting=3)) as (
        connection,
        peer,
    ):
        await peer.send_raw(*(codec.encode_request("work", [n], n) for n in range(100)))
        callbacks: list[Request] = []
        refused: list[Failure] = []
        for _ in range(97):
            message = await peer.receive()
            if isinstance(message, Request):
                callbacks.append(message)
            else:
                assert isinstance(message, Failure)
                refused.append(message)
        assert [failure.id for failure in refused] == list(range(5, 100))
        assert {failure.error.code for failure in refused} == {ErrorCode.OVERLOADED}
        assert all(failure.error.data == {"retry_after_s": 1.0} for failure in refused)
        assert connection.statistics().requests_refused == 95
        results = []
        for n in range(5):
            callback = callbacks[n]
            await peer.answer(callback, "answered in the middle of the flood")
            while len(results) <= n:
                message = await peer.receive()
                if isinstance(message, Request):
                    callbacks.append(message)
                else:
                    results.append(message)
        assert sorted(result.id for result in results) == [0, 1, 2, 3, 4]
        await peer.request("echo", [1], id_="afterwards")
        assert await peer.expect_result("afterwards") == [1]


async def test_the_caller_is_told_when_to_come_back(autojump_clock: Any) -> None:
    recorder = Recorder()
    limits = Limits(max_handlers=1, max_waiting=0)
    async with (
        connected(offering(wait=recorder.wait), far_limits=limits) as (near, _),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(near.call, "wait")
        await wait_all_tasks_blocked()
        with pytest.raises(Overloaded) as caught:
            await near.call("wait")
        assert isinstance(caught.value, CallFailed)
        recorder.release.set()
        await trio.sleep(caught.value.retry_after_s)
        await near.call("wait")


async def test_requests_begin_in_the_order_of_their_arrival(autojump_clock: Any) -> None:
    began: list[Any] = []

    async def work(_params: Any, context: RequestContext) -> None:
        began.append(context.id)
        await trio.lowlevel.checkpoint()

    async with scripted(offering(work=work), limits=Limits(max_handlers=1)) as (_, peer):
        await peer.send_raw(*(codec.encode_request("work", [], n) for n in range(50)))
        for n in range(50):
            await peer.expect_result(n)
        assert began == list(range(50))


async def test_two_ends_that_flood_each_other_with_tiny_outboxes_both_finish(autojump_clock: Any) -> None:
    # Each end's callers and handlers compete for one byte of outbox and a link of one frame.
    limits = Limits(max_outbox_bytes=1, max_handlers=8, max_calls=5, write_bytes=1)

    async def give_back(params: Any, _context: RequestContext) -> Any:
        return params

    async def bounce(params: Any, context: RequestContext) -> Any:
        depth = params["depth"]
        return depth if depth == 0 else await context.connection.call("bounce", {"depth": depth - 1})

    handlers = offering(bounce=bounce, give_back=give_back)
    async with connected(
        handlers, handlers, links=memory_link_pair(capacity=1), near_limits=limits, far_limits=limits
    ) as ends:
        results: list[list[int]] = []

        async def call(end: int) -> None:
            results.append(await ends[end].call("give_back", [end]))

        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(call, n % 2)
        assert sorted(results) == [[0]] * 50 + [[1]] * 50
        assert await ends[0].call("bounce", {"depth": 4}) == 0
        assert ends[0].loss is ends[1].loss is None


# ---- the writer -----------------------------------------------------------------------------------------


async def test_replies_and_cancellations_overtake_queued_calls(autojump_clock: Any) -> None:
    released, recorder = trio.Event(), Recorder()
    async with (
        scripted(offering(wait=recorder.wait), sending=Faults(stall_after=1, released=released)) as (
            connection,
            peer,
        ),
        trio.open_nursery() as nursery,
    ):
        caller = trio.CancelScope()

        async def given_up() -> None:
            with caller:
                await connection.call("sent")

        nursery.start_soon(given_up)
        sent = await peer.expect("sent")
        nursery.start_soon(connection.call, "being written")
        await wait_all_tasks_blocked()
        for _ in range(50):
            nursery.start_soon(connection.call, "queued")
        await wait_all_tasks_blocked()
        await peer.request("echo", ["answer"], id_="e")
        await wait_all_tasks_blocked()
        caller.cancel()
        await connection.notify("news")
        released.set()
        await peer.expect("being written")
        assert await peer.expect_result("e") == ["answer"]
        assert (await peer.expect_notification("$/cancelRequest")).params == {"id": sent.id}
        await peer.expect_notification("news")
        for _ in range(50):
            await peer.expect("queued")
        nursery.cancel_scope.cancel()


async def test_100_callers_share_a_slow_link_of_tiny_chunks(autojump_clock: Any) -> None:
    began = trio.current_time()
    async with connected(links=byte_link_pair(chunk_bytes=64, delay_s=0.001)) as ends:
        results: list[Any] = []

        async def call(n: int) -> None:
            results.append(await ends[n % 2].call("echo", {"n": n, "text": "é" * n}))

        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(call, n)
        assert sorted(result["n"] for result in results) == list(range(100))
        assert all(len(result["text"]) == result["n"] for result in results)
    assert 0.1 < trio.current_time() - began < 10


async def test_many_large_answers_to_a_slow_reader_wait_in_their_handlers(autojump_clock: Any) -> None:
    # Together they are 25 times what the outbox holds: none may be lost, and they must not pile up either.
    most = 0

    async def large(_params: Any, context: RequestContext) -> str:
        nonlocal most
        await trio.sleep(1)
        most = max(most, context.connection.statistics().outbox_bytes)
        return "x" * 1000

    async with scripted(
        offering(large=large),
        limits=Limits(max_outbox_bytes=2000),
        sending=Faults(delay_s=1),
    ) as (connection, peer):
        await peer.send_raw(*(codec.encode_request("large", [], n) for n in range(50)))
        for _ in range(50):
            message: Any = await peer.receive()
            assert message.result == "x" * 1000
            most = max(most, connection.statistics().outbox_bytes)
        assert connection.loss is None
    assert 2000 <= most < 2000 + 1100


async def test_an_answer_larger_than_the_outbox_is_sent_all_the_same(autojump_clock: Any) -> None:
    async with connected(near_limits=Limits(max_outbox_bytes=10), far_limits=Limits(max_outbox_bytes=10)) as (
        near,
        _,
    ):
        text = "x" * 10_000
        assert await near.call("echo", [text]) == [text]
        await near.notify("tell", [text])
        assert await near.call("echo", [text]) == [text]


async def test_a_notification_larger_than_the_reserve_waits_for_room_and_is_sent(autojump_clock: Any) -> None:
    released = trio.Event()
    async with scripted(
        limits=Limits(max_outbox_bytes=100), sending=Faults(stall_after=0, released=released)
    ) as (connection, peer):
        await connection.notify("being written")
        await wait_all_tasks_blocked()
        await connection.notify("small")
        await connection.notify("large", ["x" * 1000])
        assert connection.loss is None
        released.set()
        await peer.expect_notification("being written")
        await peer.expect_notification("small")
        await peer.expect_notification("large")


async def test_a_peer_that_sends_and_never_reads_cannot_use_up_memory(
    autojump_clock: Any,
) -> None:
    async with scripted(
        sending=Faults(stall_after=0), limits=Limits(max_outbox_bytes=10_000, send_timeout_s=1e9)
    ) as (connection, peer):
        most = sent = 0
        while connection.loss is None:
            await peer.request("echo", ["x" * 100], id_=sent)
            await wait_all_tasks_blocked()
            sent += 1
            most = max(most, connection.statistics().outbox_bytes)
        assert connection.loss.reason is LossReason.SEND_STALLED
        assert 20_000 <= most < 20_000 + 200
        assert connection.statistics().outbox_bytes == 0


async def test_handlers_of_a_peer_that_never_reads_keep_their_places(autojump_clock: Any) -> None:
    # The pushback for requests that take a task: the peer is refused, and not lost, until send_timeout_s.
    async def work(_params: Any, _context: RequestContext) -> str:
        await trio.lowlevel.checkpoint()
        return "x" * 1000

    limits = Limits(max_handlers=5, max_waiting=5, max_outbox_bytes=1000, send_timeout_s=100)
    async with scripted(offering(work=work), sending=Faults(stall_after=0), limits=limits) as (
        connection,
        peer,
    ):
        for n in range(20):
            await peer.request("work", id_=n)
            await wait_all_tasks_blocked()
        statistics = connection.statistics()
        assert (statistics.requests_running, statistics.requests_waiting) == (5, 5)
        assert statistics.requests_refused == 8, "20, less one written, one queued, 5 running, 5 waiting"
        assert statistics.outbox_bytes < 1000 + 8 * 200 + 1100
        assert (await connection.wait_lost()).reason is LossReason.SEND_STALLED


# ---- nobody who waits is forgotten ----------------------------------------------------------------------


async def test_room_made_by_a_withdrawn_call_is_for_everyone_whom_it_fits(autojump_clock: Any) -> None:
    async with (
        scripted(sending=Faults(stall_after=0), limits=Limits(max_outbox_bytes=1000)) as (connection, _),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(connection.call, "being written")
        await wait_all_tasks_blocked()
        with trio.CancelScope() as large:
            sent: list[int] = []

            async def notify(n: int) -> None:
                await connection.notify("small", [n])
                sent.append(n)

            async def give_up() -> None:
                await wait_all_tasks_blocked()
                assert sent == []
                large.cancel()

            for n in range(5):
                nursery.start_soon(notify_after_block, notify, n)
            nursery.start_soon(give_up_after_block, give_up)
            await connection.call("large", ["x" * 2000])
        await wait_all_tasks_blocked()
        assert sorted(sent) == list(range(5))
        nursery.cancel_scope.cancel()


async def notify_after_block(notify: Any, n: int) -> None:
    await wait_all_tasks_blocked(0.001)
    await notify(n)


async def give_up_after_block(give_up: Any) -> None:
    await wait_all_tasks_blocked(0.002)
    await give_up()


async def test_a_place_that_its_next_caller_does_not_take_goes_to_the_one_after(autojump_clock: Any) -> None:
    # B is woken for the place, then has to wait for room and gives up: C must not wait for ever.
    released = trio.Event()
    async with (
        scripted(
            limits=Limits(max_calls=1, max_outbox_bytes=100),
            sending=Faults(stall_after=1, released=released),
        ) as (connection, peer),
        trio.open_nursery() as nursery,
    ):
        results: list[Any] = []

        async def call(name: str) -> None:
            results.append(await connection.call(name))

        nursery.start_soon(call, "A")
        asked = await peer.expect("A")
        b_gives_up = trio.CancelScope()

        async def b() -> None:
            with b_gives_up:
                await call("B")

        nursery.start_soon(b)
        await wait_all_tasks_blocked()
        nursery.start_soon(call, "C")
        await wait_all_tasks_blocked()
        await connection.notify("being written")
        await wait_all_tasks_blocked()
        await connection.notify("fills the outbox", ["x" * 100])
        await peer.answer(asked, "a")
        await wait_all_tasks_blocked()
        assert results == ["a"]
        b_gives_up.cancel()
        await wait_all_tasks_blocked()
        released.set()
        await peer.expect_notification("being written")
        await peer.expect_notification("fills the outbox")
        await peer.answer(await peer.expect("C"), "c")
        await wait_all_tasks_blocked()
        assert results == ["a", "c"]


async def test_a_place_that_is_given_up_goes_to_the_next(autojump_clock: Any) -> None:
    async with scripted(limits=Limits(max_calls=1)) as (connection, peer), trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def call_first() -> None:
            with first:
                await connection.call("first")

        nursery.start_soon(call_first)
        await peer.expect("first")
        nursery.start_soon(connection.call, "second")
        await wait_all_tasks_blocked()
        first.cancel()
        await peer.expect_notification("$/cancelRequest")
        await peer.expect("second")
        nursery.cancel_scope.cancel()


async def test_callers_get_their_places_in_the_order_in_which_they_came(autojump_clock: Any) -> None:
    async with scripted(limits=Limits(max_calls=1)) as (connection, peer), trio.open_nursery() as nursery:
        nursery.start_soon(connection.call, "ask", [0])
        for n in range(1, 10):
            await wait_all_tasks_blocked()
            nursery.start_soon(connection.call, "ask", [n])
        await wait_all_tasks_blocked()
        for n in range(10):
            asked = await peer.expect("ask")
            assert asked.params == [n]
            await peer.answer(asked, None)


async def test_calls_given_up_while_the_peer_stalls_leave_nothing_behind(autojump_clock: Any) -> None:
    # One caller that stays in front and one behind must not keep the withdrawn ones between them alive.
    async with (
        scripted(sending=Faults(stall_after=0), limits=Limits(send_timeout_s=1e9)) as (connection, _),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(connection.call, "being written")
        await wait_all_tasks_blocked()
        nursery.start_soon(connection.call, "stays")
        await wait_all_tasks_blocked()
        scopes: list[trio.CancelScope] = []

        async def call(scope: trio.CancelScope) -> None:
            with scope:
                await connection.call("given up")

        for _ in range(100):
            scopes.append(trio.CancelScope())
            nursery.start_soon(call, scopes[-1])
            await wait_all_tasks_blocked()
            if len(scopes) > 1:
                scopes.pop(0).cancel()
        await wait_all_tasks_blocked()
        statistics = connection.statistics()
        assert (statistics.outbox_frames, statistics.calls_waiting) == (2, 3)
        nursery.cancel_scope.cancel()
