"""Each scenario is cancelled at every scheduler step, under several orders of the scheduler.

``STEPFLOW_SWEEP_SCALE`` multiplies the number of orders, and of points in the scenarios that are sampled:
1 is for every day, 100 for a long campaign. A failure prints how to replay its one point.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import pytest
import trio
from engine_stage import Recorder, connected, eager_link_pair, offering
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.engine import Connection, Handlers, Limits, RequestContext, open_connection
from stepflow_trio.engine.link import EagerLink
from stepflow_trio.errors import CallTimeout, ConnectionLost, LossReason
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.protocol.peer import Phase, Role
from stepflow_trio.testing import (
    AllPoints,
    Cancellable,
    CancelStrategy,
    RandomSample,
    Scenario,
    byte_link_pair,
    cancel_everywhere,
    memory_link_pair,
)

SCALE = int(os.environ.get("STEPFLOW_SWEEP_SCALE", "1"))


# ---- what must hold after each cancellation -------------------------------------------------------------


async def assert_as_good_as_before(near: Connection, far: Connection) -> None:
    """Nothing is left in any table, no half frame came, and the next call is answered."""
    await trio.sleep(2)  # what is on its way arrives, however slow the link
    for end in (near, far):
        statistics = end.statistics()
        assert end.loss is None
        assert (statistics.calls_waiting, statistics.calls_abandoned) == (0, 0), end
        assert (statistics.requests_running, statistics.requests_waiting) == (0, 0), end
        assert (statistics.outbox_frames, statistics.outbox_bytes) == (0, 0), end
        assert set(statistics.dropped) <= {"late_answer", "late_cancel"}, "no half frame, no stray answer"
    assert await near.call("echo", ["next"]) == ["next"]
    assert await far.call("echo", ["next"]) == ["next"]


class Tree:
    """Handlers that call back and forth, and what became of them."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0

    async def descend(self, params: Any, context: RequestContext) -> Any:
        self.begun += 1
        try:
            if params["depth"] == 0:
                await trio.sleep(0.01)
                return "bottom"
            return await context.connection.call("descend", {"depth": params["depth"] - 1})
        finally:
            self.ended += 1

    @property
    def handlers(self) -> Handlers:
        return offering(descend=self.descend)

    @property
    def running(self) -> int:
        return self.begun - self.ended


async def slowly(params: Any, _context: RequestContext) -> Any:
    await trio.sleep(0.01)
    return params


# ---- the scenarios --------------------------------------------------------------------------------------


async def a_call(cancellable: Cancellable) -> None:
    async with connected(offering(slowly=slowly)) as (near, far):
        with cancellable:
            assert await near.call("slowly", [1]) == [1]
        await assert_as_good_as_before(near, far)


async def a_call_over_bytes(cancellable: Cancellable) -> None:
    async with connected(offering(slowly=slowly), links=byte_link_pair(chunk_bytes=16)) as (near, far):
        with cancellable:
            assert await near.call("slowly", [1]) == [1]
        await assert_as_good_as_before(near, far)


async def a_call_with_a_timeout(cancellable: Cancellable) -> None:
    recorder = Recorder()
    async with connected(offering(wait=recorder.wait)) as (near, far):
        with cancellable:
            with pytest.raises(CallTimeout):
                await near.call("wait", timeout_s=0.5)
            assert await near.call("echo", timeout_s=0.5) is None
        await assert_as_good_as_before(near, far)
        assert recorder.running == 0


async def a_call_whose_answer_and_timeout_meet(cancellable: Cancellable) -> None:
    async with connected(offering(slowly=slowly)) as (near, far):
        with cancellable, suppress(CallTimeout):
            assert await near.call("slowly", [1], timeout_s=0.01) == [1]
        await assert_as_good_as_before(near, far)


async def callbacks_inside_a_call(cancellable: Cancellable) -> None:
    tree = Tree()
    async with connected(tree.handlers, tree.handlers) as (near, far):
        with cancellable:
            assert await near.call("descend", {"depth": 4}) == "bottom"
        await assert_as_good_as_before(near, far)
        assert tree.running == 0


async def a_call_through_a_relay(cancellable: Cancellable) -> None:
    recorder = Recorder()

    async def finish(params: Any, context: RequestContext) -> Any:
        with trio.move_on_after(0.01):
            return await recorder.wait(params, context)
        return "finished"

    async with connected(offering(work=finish)) as (relay_out, worker):

        async def relay(params: Any, _context: RequestContext) -> Any:
            return await relay_out.call("work", params)

        async with connected(offering(work=relay)) as (near, relay_in):
            with cancellable:
                assert await near.call("work") == "finished"
            await assert_as_good_as_before(near, relay_in)
            await assert_as_good_as_before(relay_out, worker)
            assert recorder.running == 0


async def calls_answered_by_the_reader_itself(cancellable: Cancellable) -> None:
    tree = Tree()
    async with connected(tree.handlers, tree.handlers, links=eager_link_pair(capacity=1)) as (near, far):
        assert isinstance(near.link, EagerLink)
        with cancellable:
            async with trio.open_nursery() as nursery:
                for n in range(3):
                    nursery.start_soon(near.call, "echo", [n])
                    nursery.start_soon(far.call, "echo", [n])
                nursery.start_soon(near.call, "descend", {"depth": 1})
        await assert_as_good_as_before(near, far)
        assert tree.running == 0


async def fan_out(cancellable: Cancellable) -> None:
    tree = Tree()
    limits = Limits(max_handlers=20, max_calls=30, max_outbox_bytes=500)
    async with connected(
        tree.handlers, tree.handlers, near_limits=limits, links=memory_link_pair(capacity=2)
    ) as (near, far):
        with cancellable:
            async with trio.open_nursery() as nursery:
                for n in range(100):
                    nursery.start_soon(near.call, "descend", {"depth": n % 2})
        await assert_as_good_as_before(near, far)
        assert tree.running == 0


async def an_initialization(cancellable: Cancellable) -> None:
    link, far_link = memory_link_pair()
    async with (
        open_connection(far_link, offering(initialize=slowly), role=Role.WORKER) as worker,
        open_connection(link, offering(), role=Role.RUNTIME) as runtime,
    ):

        async def initialize() -> None:
            assert await runtime.call("initialize", {}) == {}
            await runtime.notify("initialized")
            assert await runtime.call("echo", [1]) == [1]

        runtime.peer_extensions = frozenset({"cancel"})
        with cancellable:
            await initialize()
        await wait_all_tasks_blocked()
        assert worker.statistics().requests_running == runtime.statistics().calls_waiting == 0
        if worker.statistics().phase is not Phase.READY:
            await initialize()
        assert worker.statistics().phase is runtime.statistics().phase is Phase.READY


async def notifications_that_wait_for_room(cancellable: Cancellable) -> None:
    heard: list[int] = []
    handlers = offering()
    handlers.on_raw_notification("tell", lambda params, _connection: heard.append(params[0]))
    sent = 0
    async with connected(
        handlers, near_limits=Limits(max_outbox_bytes=1, write_bytes=1), links=memory_link_pair(capacity=1)
    ) as (near, far):
        with cancellable:
            for n in range(10):
                await near.notify("tell", [n])
                sent += 1
        await assert_as_good_as_before(near, far)
        assert heard == list(range(sent)), "all that were queued, and none that was cancelled"


async def a_megabyte_over_a_slow_link(cancellable: Cancellable) -> None:
    async with connected(
        offering({"blobs/put": lambda params, _: len(params["data"])}),
        links=byte_link_pair(chunk_bytes=8192, delay_s=0.001),
    ) as (near, far):
        with cancellable:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(near.call, "echo", ["beside it"])
                assert await near.call("blobs/put", {"data": "x" * 2**20}) == 2**20
        await assert_as_good_as_before(near, far)


async def a_full_house(cancellable: Cancellable) -> None:
    limits = Limits(max_calls=1, max_outbox_bytes=50)
    async with connected(offering(slowly=slowly), near_limits=limits) as (near, far):
        async with trio.open_nursery() as nursery:
            results: list[Any] = []

            async def call(n: int) -> None:
                results.append(await near.call("slowly", [n]))

            for n in range(3):
                nursery.start_soon(call, n)
            with cancellable:
                await near.call("slowly", ["cancelled"])
            for n in range(3, 6):
                nursery.start_soon(call, n)
        assert sorted(results) == [[n] for n in range(6)], "nobody else is forgotten"
        await assert_as_good_as_before(near, far)


async def a_block_that_ends(cancellable: Cancellable) -> None:
    # The connection itself is cancelled, from before it opens until it has drained and closed.
    tree, opened = Tree(), False
    link, far_link = memory_link_pair()
    async with open_connection(far_link, tree.handlers, limits=Limits(drain_s=1)) as far:
        with cancellable:
            async with (
                open_connection(link, tree.handlers, limits=Limits(drain_s=1)) as near,
                trio.open_nursery() as nursery,
            ):
                opened = True
                nursery.start_soon(far.call, "descend", {"depth": 0})
                assert await near.call("descend", {"depth": 2}) == "bottom"
        if opened:
            assert (await far.wait_lost()).reason is LossReason.PEER_CLOSED
        await wait_all_tasks_blocked()
        assert tree.running == 0
        statistics = far.statistics()
        assert (statistics.calls_waiting, statistics.requests_running) == (0, 0)


async def a_block_that_drains(cancellable: Cancellable) -> None:
    recorder = Recorder()
    lost_because: list[LossReason] = []
    link, far_link = memory_link_pair()
    async with open_connection(far_link, offering()) as far, trio.open_nursery() as nursery:

        async def ask() -> None:
            try:
                assert await far.call("wait", ["drained"]) == ["drained"]
            except ConnectionLost as exc:
                lost_because.append(exc.reason)

        async def owner() -> None:
            async with open_connection(link, offering(wait=recorder.wait)):
                nursery.start_soon(ask)
                await wait_all_tasks_blocked()
                nursery.start_soon(release)

        async def release() -> None:
            await trio.sleep(0.01)
            recorder.release.set()

        with cancellable:
            await owner()
        recorder.release.set()
        await wait_all_tasks_blocked()
        assert recorder.running == 0
        assert far.statistics().calls_waiting == 0
    assert set(lost_because) <= {LossReason.PEER_CLOSED}


async def a_torn_frame(cancellable: Cancellable) -> None:
    # Only where the whole connection is cancelled may a frame be torn; then nothing follows it.
    link, far_link = byte_link_pair(chunk_bytes=16, delay_s=0.01)
    arrived: list[bytes | FrameRejected] = []

    async def listen() -> None:
        while frames := await far_link.receive():
            arrived.extend(frames)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        with cancellable:
            async with open_connection(link, offering()) as connection:
                for n in range(3):
                    await connection.notify("tell", [n, "x" * 100])
    whole = [frame for frame in arrived if isinstance(frame, bytes)]
    assert whole == [codec.encode_notification("tell", [n, "x" * 100]) for n in range(len(whole))]
    assert len(arrived) - len(whole) <= 1
    assert arrived[: len(whole)] == whole, "a torn frame is the last"


async def a_lost_connection(cancellable: Cancellable) -> None:
    # The peer goes away while calls and handlers are under way, and at the same time this side is cancelled.
    tree = Tree()
    lost_because: list[LossReason] = []
    link, far_link = memory_link_pair()
    near_handlers = tree.handlers
    async with trio.open_nursery() as nursery:
        leave = trio.Event()

        async def far_owner() -> None:
            async with open_connection(far_link, tree.handlers, limits=Limits(drain_s=0)) as far:
                far.notify_nowait("hello")
                await leave.wait()

        async def leave_soon() -> None:
            for _ in range(6):
                await trio.lowlevel.checkpoint()
            leave.set()

        nursery.start_soon(far_owner)
        async with open_connection(link, near_handlers) as near:
            with cancellable:
                nursery.start_soon(leave_soon)
                try:
                    await near.call("descend", {"depth": 3})
                except ConnectionLost as exc:
                    lost_because.append(exc.reason)
            leave.set()
            await near.wait_lost()
            assert near.statistics().calls_waiting == 0
            with pytest.raises(ConnectionLost):
                await near.call("echo")
    assert tree.running == 0
    assert set(lost_because) <= {LossReason.PEER_CLOSED}


# ---- the sweep ------------------------------------------------------------------------------------------

EVERYWHERE: list[Scenario] = [
    a_call,
    a_call_over_bytes,
    a_call_with_a_timeout,
    a_call_whose_answer_and_timeout_meet,
    callbacks_inside_a_call,
    calls_answered_by_the_reader_itself,
    a_call_through_a_relay,
    an_initialization,
    notifications_that_wait_for_room,
    a_full_house,
    a_block_that_ends,
    a_block_that_drains,
    a_torn_frame,
    a_lost_connection,
]
SAMPLED: list[Scenario] = [fan_out, a_megabyte_over_a_slow_link]


@pytest.mark.parametrize("seed", range(4 * SCALE))
@pytest.mark.parametrize("scenario", EVERYWHERE, ids=lambda scenario: scenario.__name__)
def test_a_scenario_may_be_cancelled_at_every_step(scenario: Scenario, seed: int) -> None:
    sweep(scenario, AllPoints(), seed)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scenario", SAMPLED, ids=lambda scenario: scenario.__name__)
def test_a_large_scenario_may_be_cancelled_at_any_step(scenario: Scenario, seed: int) -> None:
    sweep(scenario, RandomSample(40 * SCALE, seed), seed)


def sweep(scenario: Scenario, strategy: CancelStrategy, seed: int) -> None:
    report = cancel_everywhere(scenario, strategy=strategy, seed=seed)
    assert report.caught >= 4, f"the sweep is hollow: {report}"
