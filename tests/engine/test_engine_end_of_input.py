"""What each role does when the peer has closed its end: nothing more arrives; somebody may still listen."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from engine_stage import Recorder, offering, scripted
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.engine import Limits, RequestContext, open_connection
from stepflow_trio.errors import ConnectionLost, ErrorCode, LossReason
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.peer import Role
from stepflow_trio.testing import Faults, ScriptedPeer, memory_link_pair

ANSWERING_ROLES = pytest.mark.parametrize("role", [Role.WORKER, Role.PLAIN], ids=lambda role: role.value)
ROLES = pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)


@ROLES
async def test_at_the_end_of_input_pending_calls_fail_at_once(autojump_clock: Any, role: Role) -> None:
    recorder = Recorder()
    handshake = 2 if role is Role.WORKER else 0
    async with scripted(
        offering(wait=recorder.wait),
        role=role,
        receiving=Faults(end_after=handshake + 1),
        limits=Limits(max_calls=2),
    ) as (connection, peer):
        began = trio.current_time()
        failed: list[str] = []

        async def call(name: str) -> None:
            with pytest.raises(ConnectionLost) as caught:
                await connection.call(name)
            assert caught.value.reason is LossReason.PEER_CLOSED
            failed.append(name)

        async with trio.open_nursery() as nursery:
            for n in range(6):
                nursery.start_soon(call, f"call {n}")
            await wait_all_tasks_blocked()
            await peer.request("wait", id_=1)
        assert len(failed) == 6, "those that waited for a place too"
        with pytest.raises(ConnectionLost):
            await connection.call("another")
        assert trio.current_time() == began
        assert (connection.loss is None) == (role is not Role.RUNTIME)


@ANSWERING_ROLES
async def test_at_the_end_of_input_what_is_in_flight_is_finished_and_sent(
    autojump_clock: Any, role: Role
) -> None:
    async def work(params: Any, context: RequestContext) -> Any:
        await trio.sleep(1)
        await context.connection.notify("progress", ["half done"])
        assert context.connection.notify_nowait("progress", ["nearly done"])
        await trio.sleep(1)
        return params

    handshake = 2 if role is Role.WORKER else 0
    async with scripted(
        offering(work=work),
        role=role,
        receiving=Faults(end_after=handshake + 3),
        limits=Limits(max_handlers=2),
    ) as (connection, peer):
        began = trio.current_time()
        await peer.send_raw(*(codec.encode_request("work", [n], n) for n in range(3)))
        loss = await connection.wait_lost()
        assert (loss.reason, trio.current_time()) == (LossReason.PEER_CLOSED, began + 4)
        results: list[Any] = []
        while not isinstance(message := await peer.receive(), type(None)) and len(results) < 9:
            results.append(getattr(message, "result", getattr(message, "params", None)))
            if len(results) == 9:
                break
        assert sorted(result[0] for result in results if isinstance(result[0], int)) == [0, 1, 2]
        assert [result[0] for result in results].count("half done") == 3


@ANSWERING_ROLES
async def test_finishing_after_the_end_of_input_takes_at_most_drain_s(
    autojump_clock: Any, role: Role
) -> None:
    recorder = Recorder()
    handshake = 2 if role is Role.WORKER else 0
    async with scripted(
        offering(wait=recorder.wait),
        role=role,
        receiving=Faults(end_after=handshake + 1),
        limits=Limits(drain_s=3),
    ) as (connection, peer):
        began = trio.current_time()
        await peer.request("wait", id_=1)
        loss = await connection.wait_lost()
        assert (loss.reason, trio.current_time()) == (LossReason.PEER_CLOSED, began + 3)
        await wait_all_tasks_blocked()
        assert recorder.cancelled == [1]


@ANSWERING_ROLES
async def test_at_the_end_of_input_with_nothing_in_flight_the_connection_is_over_at_once(
    autojump_clock: Any, role: Role
) -> None:
    handshake = 2 if role is Role.WORKER else 0
    async with scripted(role=role, receiving=Faults(end_after=handshake)) as (connection, _):
        began = trio.current_time()
        await connection.wait_lost()
        assert trio.current_time() == began


async def test_a_runtime_is_lost_at_the_end_of_input_whatever_is_in_flight(autojump_clock: Any) -> None:
    recorder = Recorder()
    async with scripted(offering(wait=recorder.wait), role=Role.RUNTIME, receiving=Faults(end_after=1)) as (
        connection,
        peer,
    ):
        began = trio.current_time()
        await peer.request("wait", id_=1)
        loss = await connection.wait_lost()
        await wait_all_tasks_blocked()
        assert (loss.reason, trio.current_time()) == (LossReason.PEER_CLOSED, began)
        assert recorder.cancelled == [1]


async def test_calls_that_were_not_sent_before_the_end_of_input_are_withdrawn(autojump_clock: Any) -> None:
    released, recorder = trio.Event(), Recorder()
    async with scripted(
        offering(wait=recorder.wait),
        receiving=Faults(end_after=3),
        sending=Faults(stall_after=0, released=released),
    ) as (connection, peer):

        async def call() -> None:
            with pytest.raises(ConnectionLost):
                await connection.call("never sent")

        async with trio.open_nursery() as nursery:
            await peer.request("wait", id_=1)
            await peer.request("echo", ["first out"], id_=2)
            await wait_all_tasks_blocked()
            nursery.start_soon(call)
            await wait_all_tasks_blocked()
            assert connection.statistics().outbox_frames == 1
            await peer.notify("the last thing said")
        recorder.release.set()
        released.set()
        assert await peer.expect_result(2) == ["first out"]
        assert await peer.expect_result(1) is None
        await connection.wait_lost()
        await peer.expect_nothing()


async def test_requests_that_come_while_draining_are_refused(autojump_clock: Any) -> None:
    recorder = Recorder()
    async with trio.open_nursery() as nursery:
        link, far_link = memory_link_pair()
        peer = ScriptedPeer(far_link)

        async def owner() -> None:
            async with open_connection(link, offering(wait=recorder.wait)):
                await peer.request("wait", id_=1)
                await wait_all_tasks_blocked()

        nursery.start_soon(owner)
        await wait_all_tasks_blocked()
        await peer.request("echo", id_=2)
        error = await peer.expect_error(2, ErrorCode.OVERLOADED)
        assert error.message == "Shutting down"
        assert error.data["retry_after_s"] > 0
        recorder.release.set()
        await peer.expect_result(1)
        await peer.expect_end()


async def test_at_the_end_of_input_callers_that_wait_for_room_fail_at_once(autojump_clock: Any) -> None:
    recorder = Recorder()
    async with scripted(
        offering(wait=recorder.wait),
        receiving=Faults(end_after=2),
        sending=Faults(stall_after=0),
        limits=Limits(max_outbox_bytes=1),
    ) as (connection, peer):
        began = trio.current_time()
        await peer.request("wait", id_=1)
        connection.notify_nowait("being written")
        await wait_all_tasks_blocked()
        connection.notify_nowait("queued")

        async def call() -> None:
            with pytest.raises(ConnectionLost):
                await connection.call("waits for room")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await wait_all_tasks_blocked()
            await peer.notify("the last thing said")
        assert trio.current_time() == began
        assert connection.loss is None


async def test_a_connection_that_is_lost_while_draining_waits_no_longer(autojump_clock: Any) -> None:
    recorder = Recorder()
    released = trio.Event()
    began = trio.current_time()
    async with (
        trio.open_nursery() as nursery,
        scripted(
            offering(wait=recorder.wait), receiving=Faults(stall_after=1, released=released, fail_after=2)
        ) as (_, peer),
    ):
        await peer.send_raw(*(codec.encode_request("wait", [], n) for n in range(2)))
        await wait_all_tasks_blocked()
        nursery.start_soon(_after, 1, released)
    assert trio.current_time() == began + 1
    assert recorder.running == 0


async def _after(delay_s: float, event: trio.Event) -> None:
    await trio.sleep(delay_s)
    event.set()
