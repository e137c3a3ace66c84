"""DESIGN section 4, Ownership: leaving the block leaves nothing, and one exception comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from engine_stage import Recorder, connected, offering, scripted
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.engine import Limits, RequestContext, open_connection
from stepflow_trio.errors import ConnectionLost, ErrorCode, LossReason
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.peer import Role
from stepflow_trio.testing import Faults, ScriptedPeer, memory_link_pair


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
    async with trio.open_nursery() as nursery:
        with pytest.raises(OfTheBody) as caught:
            async with open_connection(link, offering(wait=recorder.wait)) as connection:
                if busy:
                    await peer.request("wait", id_=1)
                    nursery.start_soon(_expect_loss, connection, LossReason.LOCAL_CLOSE)
                    await wait_all_tasks_blocked()
                raise mine
    assert caught.value is mine
    assert mine.__cause__ is None
    assert mine.__context__ is None
    assert recorder.cancelled == ([1] if busy else [])
    assert trio.current_time() == began, "with an exception nothing is waited for"


async def test_the_bodys_exception_comes_out_although_the_task_is_cancelled(autojump_clock: Any) -> None:
    recorder = Recorder()
    with pytest.raises(OfTheBody), trio.CancelScope() as outer:
        async with scripted(offering(wait=recorder.wait)) as (_, peer):
            await peer.request("wait", id_=1)
            await wait_all_tasks_blocked()
            outer.cancel()
            raise OfTheBody


async def test_a_group_that_the_body_raises_comes_out_as_it_is(autojump_clock: Any) -> None:
    group = ExceptionGroup("mine", [OfTheBody("one")])
    with pytest.raises(ExceptionGroup) as caught:
        async with scripted():
            raise group
    assert repr(caught.value) == repr(group)


async def test_a_cancelled_block_passes_the_cancellation_on_and_waits_for_nothing(autojump_clock: Any) -> None:
    recorder = Recorder()
    began = trio.current_time()
    with trio.CancelScope() as outer:
        async with scripted(
            offering(wait=recorder.wait), limits=Limits(max_handlers=1), sending=Faults(stall_after=0)
        ) as (_, peer):
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


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
async def test_leaving_a_lost_connection_raises_nothing_of_its_own(autojump_clock: Any, role: Role) -> None:
    async with scripted(role=role) as (connection, peer):
        await peer.close()
        assert (await connection.wait_lost()).reason is LossReason.PEER_CLOSED


async def _expect_loss(connection: Any, reason: LossReason) -> None:
    with pytest.raises(ConnectionLost) as caught:
        await connection.call("never answered")
    assert caught.value.reason is reason


_ = (ErrorCode, Callable, RequestContext, connected)
