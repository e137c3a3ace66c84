"""Whatever two ends do to each other, in whatever order: every call ends once, and nothing is left."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing
from engine_stage import connected, eager_link_pair, offering
from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow_trio.engine import Connection, Limits, RequestContext
from stepflow_trio.errors import CallFailed, CallTimeout, ErrorCode
from stepflow_trio.testing import Faults, FaultyLink, memory_link_pair
from stepflow_trio.testing.scheduler import scheduler_order

CALL, CANCEL, NOTIFY, STEP, WAIT = range(5)

ENDS = {
    "answered",
    "cancelled",
    "timed out",
    f"failed with {-32_123}",
    f"failed with {ErrorCode.OVERLOADED.value}",
    f"failed with {ErrorCode.INTERNAL_ERROR.value}",  # a callback timed out or failed
}

# An operation is a few small numbers, which shrink well: what to do, at which end, and how.
OPERATIONS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 7), st.integers(0, 3)), max_size=40
)
LIMITS = st.builds(
    Limits,
    max_calls=st.sampled_from([1, 3, 100]),
    max_handlers=st.sampled_from([2, 100]),
    max_waiting=st.sampled_from([0, 1, 100]),
    max_outbox_bytes=st.sampled_from([400, 10_000]),
    write_bytes=st.sampled_from([1, 1000]),
)


class Player:
    """Plays operations on both ends and counts how its calls end."""

    def __init__(self, ends: tuple[Connection, Connection], nursery: trio.Nursery) -> None:
        self.ends = ends
        self.nursery = nursery
        self.scopes: list[trio.CancelScope] = []
        self.asked = 0
        self.ended: list[str] = []

    async def play(self, what: int, end: int, how: int, much: int) -> None:
        if what == CALL:
            scope = trio.CancelScope()
            self.scopes.append(scope)
            self.asked += 1
            self.nursery.start_soon(self._call, self.ends[end], scope, how, much)
        elif what == CANCEL and self.scopes:
            self.scopes[how % len(self.scopes)].cancel()
        elif what == NOTIFY:
            self.ends[end].notify_nowait("tell", ["x" * how * 20])
        elif what == STEP:
            for _ in range(much):
                await trio.lowlevel.checkpoint()
        elif what == WAIT:
            await trio.sleep(much)

    async def _call(self, end: Connection, scope: trio.CancelScope, how: int, much: int) -> None:
        method = ["work", "inline", "call_back", "fail"][how % 4]
        params = {"steps": much, "padding": "x" * 10 * how}
        outcome = "cancelled"
        with scope:
            try:
                result = await end.call(method, params, timeout_s=much if how > 5 else None)
                assert result == params
                outcome = "answered"
            except CallTimeout:
                outcome = "timed out"
            except CallFailed as exc:
                outcome = f"failed with {exc.code}"
        self.ended.append(outcome)


async def _work(params: Any, _context: RequestContext) -> Any:
    for _ in range(params["steps"]):
        await trio.lowlevel.checkpoint()
    await trio.sleep(params["steps"] / 2)
    return params


async def _call_back(params: Any, context: RequestContext) -> Any:
    # With its own deadline: ends that are full of each other's callbacks would wait for each other for ever.
    return await context.connection.call("work", params, timeout_s=5)


async def _fail(_params: Any, _context: RequestContext) -> Any:
    await trio.lowlevel.checkpoint()
    raise CallFailed(-32_123, "failed on purpose")


HANDLERS = offering(work=_work, inline=lambda params, _: params, call_back=_call_back, fail=_fail)


@settings(max_examples=300, deadline=None)
@given(
    operations=OPERATIONS,
    limits=st.tuples(LIMITS, LIMITS),
    delay_s=st.sampled_from([0.0, 0.1]),
    capacity=st.sampled_from([1, 1000]),
    eager=st.booleans(),
    seed=st.integers(0, 3),
)
def test_every_call_ends_once_and_both_ends_are_as_good_as_before(
    operations: list[tuple[int, int, int, int]],
    limits: tuple[Limits, Limits],
    delay_s: float,
    capacity: int,
    eager: bool,
    seed: int,
) -> None:
    async def main() -> None:
        near_link, far_link = (eager_link_pair if eager else memory_link_pair)(capacity=capacity)
        links = near_link, far_link
        if delay_s:
            links = FaultyLink(near_link, sending=Faults(delay_s=delay_s)), far_link
        async with connected(
            HANDLERS, HANDLERS, links=links, near_limits=limits[0], far_limits=limits[1]
        ) as ends:
            async with trio.open_nursery() as nursery:
                player = Player(ends, nursery)
                for operation in operations:
                    await player.play(*operation)
            assert len(player.ended) == player.asked
            assert set(player.ended) <= ENDS
            await trio.sleep(60)
            for end in ends:
                statistics = end.statistics()
                assert end.loss is None
                assert (statistics.calls_waiting, statistics.calls_abandoned) == (0, 0)
                assert (statistics.requests_running, statistics.requests_waiting) == (0, 0)
                assert (statistics.outbox_frames, statistics.outbox_bytes) == (0, 0)
                assert set(statistics.dropped) <= {"late_answer", "late_cancel"}
                assert await end.call("echo", ["control"]) == ["control"]

    with scheduler_order(seed):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
