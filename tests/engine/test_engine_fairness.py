"""Nobody waits for ever, and nothing stays behind: the writer, the lanes, and who waits for room."""

from __future__ import annotations

import fcntl
import gc
import os
import weakref
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from stepflow_trio.engine import Handlers, Limits, open_connection
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.messages import Success
from stepflow_trio.testing import byte_link_pair
from stepflow_trio.transports.descriptors import DescriptorStream
from stepflow_trio.transports.memory import memory_link_pair
from stepflow_trio.transports.streams import StreamLink


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="the size of pipes cannot be set here")
async def test_a_send_that_is_done_as_its_time_is_up_leaves_the_writer_at_work(mock_clock: MockClock) -> None:
    far_reads, near_writes = os.pipe()
    near_reads, far_writes = os.pipe()
    fcntl.fcntl(near_writes, fcntl.F_SETPIPE_SZ, 4096)
    link = StreamLink(DescriptorStream(near_reads), DescriptorStream(near_writes))
    async with (
        DescriptorStream(far_reads) as far,
        DescriptorStream(far_writes),
        open_connection(link, Handlers(), limits=Limits(send_timeout_s=30, drain_s=0)) as connection,
    ):
        connection.notify_nowait("first", ["y" * 6000])
        await wait_all_tasks_blocked()
        got = os.read(far_reads, 65536)
        mock_clock.jump(30)
        await wait_all_tasks_blocked()
        connection.notify_nowait("second", [])
        while b'"second"' not in got:
            got += await far.receive_some()
        assert connection.loss is None


async def test_a_peer_that_asks_without_end_does_not_keep_our_call_from_being_sent() -> None:
    near, far = byte_link_pair()
    handlers = Handlers()

    async def large(_params: Any, _context: Any) -> str:
        return "x" * 100_000

    handlers.on_raw_request("large", large)
    async with open_connection(near, handlers, limits=Limits(drain_s=0)) as connection:
        answered = asked = 0

        async def ask(count: int) -> None:
            nonlocal asked
            frames = [codec.encode_request("large", [], asked + number) for number in range(count)]
            asked += count
            await far.send(frames, lambda: None)

        async with trio.open_nursery() as nursery:

            async def keep_asking() -> None:
                nonlocal answered
                await ask(10)
                while True:
                    for frame in await far.receive():
                        assert isinstance(frame, bytes)
                        if isinstance(codec.decode(frame), Success):
                            answered += 1
                            assert answered < 500, "our call is starved"
                            await ask(1)
                        else:
                            nursery.cancel_scope.cancel()
                            return

            nursery.start_soon(keep_asking)
            for _ in range(200):
                await trio.lowlevel.checkpoint()
            nursery.start_soon(connection.call, "ours")


class Tracked(dict[str, Any]):
    """A dict that can be watched."""


@pytest.mark.parametrize("in_task", [False, True])
async def test_what_was_answered_is_gone_without_the_garbage_collector(
    in_task: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[Tracked]] = []
    handlers = Handlers()

    def plain(params: Any, context: Any) -> None:
        context.inbound.params = Tracked()
        seen.append(weakref.ref(context.inbound.params))

    async def task(params: Any, context: Any) -> None:
        plain(params, context)

    handlers.on_raw_request("ask", task if in_task else plain)
    near, far = memory_link_pair()
    async with open_connection(far, handlers), open_connection(near, Handlers()) as connection:
        gc.disable()
        try:
            for _ in range(3):
                await connection.call("ask", {})
            await wait_all_tasks_blocked()
            assert [ref() for ref in seen] == [None, None, None]
        finally:
            gc.enable()


async def test_callers_that_wait_for_room_are_woken_one_by_one(autojump_clock: MockClock) -> None:
    near, far = memory_link_pair(capacity=1)
    handlers = Handlers()
    handlers.on_raw_request("ask", lambda _params, _context: None)
    limits = Limits(max_outbox_bytes=200, write_bytes=100)
    steps = 0

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal steps
            steps += 1

    async with open_connection(far, handlers), open_connection(near, Handlers(), limits=limits) as connection:
        counter = Steps()
        trio.lowlevel.add_instrument(counter)
        async with trio.open_nursery() as nursery:
            for _ in range(400):
                nursery.start_soon(connection.call, "ask", {})
        trio.lowlevel.remove_instrument(counter)
    assert steps / 400 < 40
