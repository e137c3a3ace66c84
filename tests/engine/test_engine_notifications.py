"""Notifications, handlers without a task, contexts, statistics and reprs."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest
import trio
from engine_stage import Recorder, connected, offering, scripted
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from stepflow_trio.engine import Connection, Limits, RequestContext, open_connection
from stepflow_trio.errors import ErrorCode, LossReason
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.messages import ErrorObject
from stepflow_trio.protocol.methods import PROGRESS_UPDATE
from stepflow_trio.protocol.payloads import ProgressParams
from stepflow_trio.protocol.peer import Phase, Role
from stepflow_trio.testing import Faults, ScriptedPeer, memory_link_pair

# ---- notifications --------------------------------------------------------------------------------------


async def test_notifications_arrive_in_order_before_the_calls_made_after_them(autojump_clock: Any) -> None:
    async with scripted() as (connection, peer), trio.open_nursery() as nursery:
        await connection.notify("a", [1])
        assert connection.notify_nowait("b", [2])
        await connection.notify(PROGRESS_UPDATE, ProgressParams(step_id="s", progress=0.5))
        nursery.start_soon(connection.call, "ask")
        assert (await peer.expect_notification("a")).params == [1]
        assert (await peer.expect_notification("b")).params == [2]
        assert (await peer.expect_notification("progress_update")).params == {"step_id": "s", "progress": 0.5}
        await peer.expect("ask")
        nursery.cancel_scope.cancel()


async def test_notifications_are_heard_in_order_with_what_comes_around_them(autojump_clock: Any) -> None:
    heard: list[Any] = []
    handlers = offering(ask=lambda params, _context: heard.append(params))
    handlers.on_raw_notification("tell", lambda params, _connection: heard.append(params))
    async with scripted(handlers) as (connection, peer):
        await peer.notify("tell", [1])
        await peer.request("ask", [2], id_=1)
        await peer.notify("nobody hears this", [3])
        await peer.notify("tell", [4])
        await peer.expect_result(1)
        await peer.expect_nothing()
        assert heard == [[1], [2], [4]]
        assert connection.statistics().frames_received == 4


async def test_a_notification_handler_is_given_its_connection(autojump_clock: Any) -> None:
    given: list[Connection] = []
    handlers = offering()
    handlers.on_raw_notification("tell", lambda _params, connection: given.append(connection))
    async with scripted(handlers) as (connection, peer):
        await peer.notify("tell")
        await wait_all_tasks_blocked()
        assert given == [connection]


async def test_notify_waits_for_room_and_notify_nowait_says_that_there_is_none(autojump_clock: Any) -> None:
    released = trio.Event()
    async with scripted(
        sending=Faults(stall_after=0, released=released), limits=Limits(max_outbox_bytes=1)
    ) as (connection, peer):
        sent: list[int] = []

        async def notify(n: int) -> None:
            await connection.notify("tick", [n])
            sent.append(n)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(notify, 0)
            await wait_all_tasks_blocked()
            nursery.start_soon(notify, 1)
            await wait_all_tasks_blocked()
            nursery.start_soon(notify, 2)
            await wait_all_tasks_blocked()
            assert sent == [0, 1], "one is being written, one lies in the outbox"
            assert connection.notify_nowait("tick", [3]) is False
            released.set()
        for n in range(3):
            assert (await peer.expect_notification("tick")).params == [n]
        assert connection.notify_nowait("tick", [4]) is True
        assert (await peer.expect_notification("tick")).params == [4]


async def test_notify_and_call_are_checkpoints(autojump_clock: Any) -> None:
    async with connected() as (near, _):
        with assert_checkpoints():
            await near.notify("tell")
        with assert_checkpoints():
            await near.call("echo")
        with trio.CancelScope() as scope:
            scope.cancel()
            await near.notify("not sent")
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert near.statistics().frames_sent == 2


@pytest.mark.parametrize("role", [Role.WORKER, Role.RUNTIME], ids=lambda role: role.value)
async def test_before_initialization_nothing_is_heard_and_nothing_else_is_answered(
    autojump_clock: Any, role: Role
) -> None:
    heard: list[Any] = []
    handlers = offering(initialize=lambda _p, _c: {})
    handlers.on_raw_notification("tell", lambda params, _connection: heard.append(params))
    link, far_link = memory_link_pair()
    peer = ScriptedPeer(far_link)
    async with open_connection(link, handlers, role=role) as connection:
        assert connection.statistics().phase is Phase.NEW
        await peer.notify("tell", ["early"])
        await peer.request("echo", id_=1)
        await peer.expect_error(1, ErrorCode.NOT_INITIALIZED)
        assert heard == []
        if role is Role.WORKER:
            await peer.request("initialize", id_=2)
            await peer.expect_result(2)
            assert connection.statistics().phase is Phase.INITIALIZING
            await peer.notify("initialized")
        else:
            await connection.notify("initialized")
            await peer.expect_notification("initialized")
        await peer.notify("tell", ["in time"])
        await peer.request("echo", id_=3)
        await peer.expect_result(3)
        assert heard == [["in time"]]
        assert connection.statistics().phase is Phase.READY


# ---- handlers -------------------------------------------------------------------------------------------


async def test_an_inline_handler_costs_no_task_and_answers_within_the_read(autojump_clock: Any) -> None:
    tasks: list[int] = []

    def inline(_params: Any, context: RequestContext) -> Any:
        tasks.append(trio.lowlevel.current_statistics().tasks_living)
        return [context.id, context.method, context.scope]

    async with scripted(offering(inline=inline)) as (connection, peer):
        living = trio.lowlevel.current_statistics().tasks_living
        await peer.send_raw(*(codec.encode_request("inline", [], n) for n in range(100)))
        for n in range(100):
            assert await peer.expect_result(n) == [n, "inline", None]
        assert set(tasks) == {living}
        assert connection.statistics().requests_running == 0


async def test_inline_handlers_answer_although_every_place_is_taken_only_in_their_turn(
    autojump_clock: Any,
) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait), limits=Limits(max_handlers=1)) as (connection, peer):
        await peer.request("wait", id_=1)
        await peer.request("echo", [2], id_=2)
        await wait_all_tasks_blocked()
        assert connection.statistics().requests_waiting == 1
        recorder.release.set()
        await peer.expect_result(1)
        assert await peer.expect_result(2) == [2]


async def test_a_handlers_task_is_named_for_its_method_and_its_context_knows_the_request(
    autojump_clock: Any,
) -> None:
    async def work(_params: Any, context: RequestContext) -> Any:
        return [trio.lowlevel.current_task().name, context.id, context.method, repr(context)]

    async with scripted(offering(work=work)) as (_, peer):
        await peer.request("work", id_="x")
        assert await peer.expect_result("x") == ["work", "x", "work", "<RequestContext 'x' work>"]


async def test_what_one_handler_puts_into_its_context_no_other_one_sees(autojump_clock: Any) -> None:
    # The second request waits for a place and begins when the first one ends; the third is answered inline.
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")

    async def work(params: Any, _context: RequestContext) -> str:
        seen = who.get()
        who.set(params[0])
        await trio.lowlevel.checkpoint()
        return seen

    def inline(params: Any, _context: RequestContext) -> str:
        seen = who.get()
        who.set(params[0])
        return seen

    who.set("the owner")
    async with scripted(offering(work=work, inline=inline), limits=Limits(max_handlers=1)) as (_, peer):
        await peer.send_raw(
            *(codec.encode_request("work" if n % 2 else "inline", [f"handler {n}"], n) for n in range(6))
        )
        for n in range(6):
            assert await peer.expect_result(n) == "the owner"


# ---- what a connection says of itself -------------------------------------------------------------------


async def test_statistics_and_repr_say_what_is_there(autojump_clock: Any) -> None:
    recorder, released = Recorder(), trio.Event()
    async with scripted(
        offering(wait=recorder.wait),
        limits=Limits(max_handlers=2, max_waiting=3),
        sending=Faults(stall_after=1, released=released),
    ) as (connection, peer):
        empty = connection.statistics()
        assert (empty.phase, empty.calls_waiting, empty.requests_running, empty.frames_sent) == (
            Phase.READY, 0, 0, 0,
        )  # fmt: skip
        assert repr(connection) == (
            "<Connection plain ready: 0 calls waiting, 0 requests running, 0 waiting, 0 bytes to send>"
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.call, "first")
            await peer.expect("first")
            nursery.start_soon(connection.call, "being written")
            await wait_all_tasks_blocked()
            nursery.start_soon(connection.call, "queued")
            await peer.send_raw(*(codec.encode_request("wait", [], n) for n in range(6)))
            await wait_all_tasks_blocked()
            now = connection.statistics()
            refusal = len(peer_refusal(5))
            queued = len(codec.encode_request("queued", codec.UNSET, 3))
            assert (now.calls_waiting, now.calls_abandoned) == (3, 0)
            assert (now.requests_running, now.requests_waiting, now.requests_refused) == (2, 3, 1)
            assert (now.outbox_frames, now.outbox_bytes) == (2, queued + refusal)
            assert (now.frames_sent, now.frames_received) == (1, 6)
            assert repr(connection) == (
                "<Connection plain ready: 3 calls waiting, 2 requests running, 3 waiting, "
                f"{queued + refusal} bytes to send>"
            )
            with trio.CancelScope() as caller:
                caller.cancel()
                await connection.call("withdrawn")
            assert connection.statistics().outbox_frames == 2
            released.set()
            recorder.release.set()
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        after = connection.statistics()
        assert (after.calls_waiting, after.calls_abandoned, after.requests_running) == (0, 2, 0)
        assert (after.outbox_frames, after.outbox_bytes) == (0, 0)
        assert connection.loss is None
    assert repr(connection).startswith(f"<Connection plain lost: {LossReason.LOCAL_CLOSE.value}: ")


async def test_statistics_are_a_snapshot(autojump_clock: Any) -> None:
    async with scripted() as (connection, peer):
        before = connection.statistics()
        await peer.send_raw(b'{"jsonrpc":"2.0","result":1,"id":99}')
        await wait_all_tasks_blocked()
        assert before.dropped == {}
        assert connection.statistics().dropped == {"unknown_answer": 1}
        with pytest.raises(AttributeError):
            before.frames_sent = 5  # type: ignore[misc]


def peer_refusal(id_: int) -> bytes:
    return codec.encode_failure(
        ErrorObject(-32304, "Too many requests are waiting", {"retry_after_s": 1.0}), id_
    )
