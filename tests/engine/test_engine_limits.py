"""Every limit at n and at n+1. The table is checked against the fields of ``Limits``: none is forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
from engine_stage import Recorder, offering, scripted
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.engine import Limits, RequestContext, open_connection
from stepflow_trio.errors import ErrorCode, LossReason
from stepflow_trio.protocol import codec
from stepflow_trio.testing import Faults, FaultyLink, memory_link_pair


async def max_calls() -> None:
    async with scripted(limits=Limits(max_calls=3)) as (connection, peer), trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(connection.call, "ask")
        asked = [await peer.expect("ask") for _ in range(3)]
        await peer.expect_nothing()
        assert connection.statistics().calls_waiting == 3
        await peer.answer(asked[1], None)
        fourth = await peer.expect("ask")
        assert fourth.id == asked[2].id + 1  # type: ignore[operator]
        nursery.cancel_scope.cancel()


async def max_handlers() -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait), limits=Limits(max_handlers=3)) as (connection, peer):
        await peer.send_raw(*(codec.encode_request("wait", [], n) for n in range(4)))
        await wait_all_tasks_blocked()
        statistics = connection.statistics()
        assert (recorder.running, statistics.requests_running, statistics.requests_waiting) == (3, 3, 1)
        await peer.notify("$/cancelRequest", {"id": 1})
        await peer.expect_error(1, ErrorCode.REQUEST_CANCELLED)
        await wait_all_tasks_blocked()
        assert (recorder.running, connection.statistics().requests_waiting) == (3, 0)
        recorder.release.set()
        assert sorted(recorder.began) == [0, 1, 2, 3]


async def max_waiting() -> None:
    for allowed in (0, 3):
        recorder = Recorder()
        limits = Limits(max_handlers=1, max_waiting=allowed)
        async with scripted(offering(wait=recorder.wait), limits=limits) as (connection, peer):
            await peer.send_raw(*(codec.encode_request("wait", [], n) for n in range(1 + allowed)))
            await peer.expect_nothing()
            assert connection.statistics().requests_waiting == allowed
            await peer.request("wait", id_="one too many")
            error = await peer.expect_error("one too many", ErrorCode.OVERLOADED)
            assert error.data["retry_after_s"] > 0
            assert connection.statistics().requests_refused == 1
            recorder.release.set()
            for n in range(1 + allowed):
                await peer.expect_result(n)
            await peer.request("echo", id_="again")
            await peer.expect_result("again")


async def max_outbox_bytes() -> None:
    frame = codec.encode_notification("tell", ["x" * 100])
    for bytes_more, has_room in ((1, True), (0, False)):
        released = trio.Event()
        limits = Limits(max_outbox_bytes=2 * len(frame) + bytes_more)
        async with scripted(limits=limits, sending=Faults(stall_after=0, released=released)) as (
            connection,
            _,
        ):
            await connection.notify("being written")
            await wait_all_tasks_blocked()
            for _ in range(2):
                assert connection.notify_nowait("tell", ["x" * 100])
            assert connection.statistics().outbox_bytes == 2 * len(frame)
            assert connection.notify_nowait("tell") is has_room
            for send in (connection.notify("tell"), connection.call("ask", timeout_s=5)):
                with trio.move_on_after(1) as patience:
                    await send
                assert patience.cancelled_caught
            released.set()


async def write_bytes() -> None:
    notification = codec.encode_notification("tell", ["x" * 100])
    call = codec.encode_request("ask", ["x" * 100], 1)
    for frame, bytes_more, frames_each in (
        (notification, 0, 3),
        (notification, 1, 4),
        (call, 0, 3),
        (call, 1, 4),
    ):
        writes: list[int] = []

        class Counting(FaultyLink):
            async def send(self, frames: Sequence[bytes], progressed: Callable[[], object]) -> None:
                writes.append(len(frames))  # noqa: B023 — used up within the turn
                await super().send(frames, progressed)

        link, far_link = memory_link_pair()
        released = trio.Event()
        counting = Counting(link, sending=Faults(stall_after=0, released=released))
        limits = Limits(write_bytes=3 * len(frame) + bytes_more)
        async with (
            open_connection(counting, offering(), limits=limits) as connection,
            trio.open_nursery() as nursery,
        ):
            await connection.notify("being written while the others queue")
            await wait_all_tasks_blocked()
            for _ in range(9):
                if frame is notification:
                    assert connection.notify_nowait("tell", ["x" * 100])
                else:
                    nursery.start_soon(connection.call, "ask", ["x" * 100])
            await wait_all_tasks_blocked()
            released.set()
            await wait_all_tasks_blocked()
            assert writes == [1, *{3: [3, 3, 3], 4: [4, 4, 1]}[frames_each]]
            assert len(await far_link.receive()) == 10
            nursery.cancel_scope.cancel()


async def send_timeout_s() -> None:
    for takes_s, is_kept in ((2.9, True), (3.0, False), (3.1, False)):
        began = trio.current_time()
        async with scripted(sending=Faults(delay_s=takes_s), limits=Limits(send_timeout_s=3)) as (
            connection,
            _,
        ):
            connection.notify_nowait("tell")
            await trio.sleep(10)
            assert (connection.loss is None) == is_kept
            if not is_kept:
                loss = await connection.wait_lost()
                assert loss.reason is LossReason.SEND_STALLED
        assert trio.current_time() == began + 10


async def drain_s() -> None:
    for takes_s, is_answered in ((2.9, True), (3.1, False)):
        ended: list[str] = []

        async def work(_params: Any, _context: RequestContext) -> str:
            try:
                await trio.sleep(takes_s)  # noqa: B023 — used up within the turn
            except trio.Cancelled:
                ended.append("cancelled")  # noqa: B023 — likewise
                raise
            return "done"

        began = trio.current_time()
        async with scripted(offering(work=work), limits=Limits(drain_s=3)) as (_, peer):
            await peer.request("work", id_=1)
            await wait_all_tasks_blocked()
        assert trio.current_time() == began + min(takes_s, 3)
        if is_answered:
            assert await peer.expect_result(1) == "done"
        else:
            assert ended == ["cancelled"]
        await peer.expect_end()


async def idle_timeout_s() -> None:
    for pause_s, is_kept in ((2.9, True), (3.1, False)):
        async with scripted(limits=Limits(idle_timeout_s=3)) as (connection, peer):
            for _ in range(3):
                await trio.sleep(pause_s)
                await peer.notify("tell")
            assert (connection.loss is None) == is_kept
    async with scripted(limits=Limits(idle_timeout_s=None)) as (connection, _):
        await trio.sleep(86_000)
        assert connection.loss is None


TABLE: dict[str, Callable[[], Awaitable[None]]] = {
    test.__name__: test
    for test in (
        max_calls, max_handlers, max_waiting, max_outbox_bytes, write_bytes, send_timeout_s, drain_s,
        idle_timeout_s,
    )
}  # fmt: skip
FIELDS = [field.name for field in dataclasses.fields(Limits)]


@pytest.mark.parametrize("field", FIELDS)
async def test_a_limit_holds_at_n_and_at_n_plus_1(autojump_clock: Any, field: str) -> None:
    await TABLE[field]()


def test_the_table_names_nothing_that_is_gone() -> None:
    assert set(TABLE) == set(FIELDS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (name, value)
            for name in ("max_calls", "max_handlers", "max_outbox_bytes", "write_bytes")
            for value in (0, -1)
        ),
        ("max_waiting", -1),
        *(
            (name, value)
            for name in ("send_timeout_s", "drain_s", "idle_timeout_s")
            for value in (-0.1, float("nan"))
        ),
        ("send_timeout_s", None),
        ("drain_s", None),
    ],
)
def test_a_limit_that_means_nothing_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} must"):
        Limits(**{field: value})


def test_the_least_and_the_endless_are_limits_too() -> None:
    Limits(max_calls=1, max_handlers=1, max_waiting=0, max_outbox_bytes=1, write_bytes=1)
    Limits(send_timeout_s=float("inf"), drain_s=0, idle_timeout_s=None)
