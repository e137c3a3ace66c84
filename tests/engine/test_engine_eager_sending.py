"""What the reader, or a caller, sends itself, where the link can send without waiting."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.engine import Connection, Handlers, Limits, open_connection
from stepflow_trio.engine.link import EagerLink
from stepflow_trio.errors import LossReason
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import LineFramer
from stepflow_trio.protocol.messages import Success
from stepflow_trio.transports.descriptors import DescriptorStream
from stepflow_trio.transports.memory import memory_link_pair
from stepflow_trio.transports.streams import DescriptorLink

LARGE = "x" * 100_000
"""More than a pipe holds."""


class Far:
    """The far end of two pipes, as bytes."""

    def __init__(self, read: int, write: int) -> None:
        self.reads = DescriptorStream(read)
        self.writes = DescriptorStream(write)
        self._framer = LineFramer()

    async def ask(self, method: str, ids: range) -> None:
        await self.writes.send_all(b"".join(codec.encode_request(method, {}, id_) + b"\n" for id_ in ids))

    async def answers(self, count: int) -> list[Any]:
        taken: list[Any] = []
        while len(taken) < count:
            for frame in self._framer.feed(await self.reads.receive_some(10_000)):
                assert isinstance(frame, bytes)
                answer = codec.decode(frame)
                assert type(answer) is Success, answer
                taken.append((answer.id, answer.result))
        return taken


@asynccontextmanager
async def connected(*, limits: Limits | None = None) -> AsyncGenerator[tuple[Connection, Far]]:
    near_reads, far_writes = os.pipe()
    far_reads, near_writes = os.pipe()
    far = Far(far_reads, far_writes)
    handlers = Handlers()
    handlers.on_raw_request("small", lambda _params, context: context.id)
    handlers.on_raw_request("large", lambda _params, _context: LARGE)

    async def later(_params: Any, context: Any) -> Any:
        return context.id

    handlers.on_raw_request("later", later)
    link = DescriptorLink(DescriptorStream(near_reads), DescriptorStream(near_writes))
    async with far.reads, far.writes:
        async with open_connection(link, handlers, limits=limits) as connection:
            yield connection, far
        await wait_all_tasks_blocked(0.01)  # what lies in the pipe is read before that is closed


def test_a_descriptor_link_is_eager_and_a_memory_link_is_not() -> None:
    reads, writes = os.pipe()
    link = DescriptorLink(DescriptorStream(reads), DescriptorStream(writes))
    assert isinstance(link, EagerLink)
    assert not isinstance(memory_link_pair()[0], EagerLink)


async def test_a_lone_request_is_answered_without_a_turn_of_the_writer() -> None:
    async with connected() as (connection, far):
        await far.ask("small", range(1))
        assert await far.answers(1) == [(0, 0)]
        assert connection.statistics().frames_sent == 1


class Writers(trio.abc.Instrument):
    """Counts the turns of the tasks that write."""

    def __init__(self) -> None:
        self.turns = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.turns += task.name == "write frames"


async def test_a_lone_call_is_sent_without_a_turn_of_the_writer_and_further_ones_in_one_write() -> None:
    async with connected() as (connection, _far), trio.open_nursery() as nursery:
        await wait_all_tasks_blocked()
        writers = Writers()
        trio.lowlevel.add_instrument(writers)
        nursery.start_soon(connection.call, "first")
        await wait_all_tasks_blocked()
        assert (connection.statistics().frames_sent, writers.turns) == (1, 0)
        for _ in range(3):
            nursery.start_soon(connection.call, "further")
        await wait_all_tasks_blocked()
        assert (connection.statistics().frames_sent, writers.turns) == (4, 1)
        trio.lowlevel.remove_instrument(writers)
        nursery.cancel_scope.cancel()


async def test_a_lone_call_of_who_is_cancelled_already_sends_nothing() -> None:
    async with connected() as (connection, _):
        with trio.move_on_after(0) as scope:
            await connection.call("nothing")
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert connection.statistics().frames_sent == 0
        assert connection.statistics().calls_abandoned == 0


async def test_answers_that_the_pipe_does_not_hold_arrive_whole_and_in_order() -> None:
    async with connected() as (connection, far), trio.open_nursery() as nursery:
        nursery.start_soon(far.ask, "large", range(5))
        await wait_all_tasks_blocked()
        nursery.start_soon(far.ask, "small", range(5, 10))
        await wait_all_tasks_blocked()
        assert connection.statistics().outbox_frames == 5, "they were not kept behind what was begun"
        answers = await far.answers(10)
    assert answers == [*((id_, LARGE) for id_ in range(5)), *((id_, id_) for id_ in range(5, 10))]


async def test_answers_of_tasks_come_behind_what_the_reader_has_begun() -> None:
    async with connected() as (_, far):
        await far.ask("large", range(1))
        await far.ask("later", range(1, 4))
        await wait_all_tasks_blocked()
        answers = await far.answers(4)
    assert answers[0] == (0, LARGE)
    assert sorted(answers[1:]) == [(1, 1), (2, 2), (3, 3)]


async def test_leaving_in_order_waits_for_the_rest_of_an_answer() -> None:
    async with trio.open_nursery() as nursery, connected() as (_, far):
        await far.ask("large", range(1))
        await wait_all_tasks_blocked()
        received: list[Any] = []

        async def read() -> None:
            received.extend(await far.answers(1))

        nursery.start_soon(read)
    assert received == [(0, LARGE)]


async def test_a_peer_that_stops_reading_in_the_middle_of_an_answer_loses_the_connection() -> None:
    async with connected(limits=Limits(send_timeout_s=0.05)) as (connection, far):
        await far.ask("large", range(1))
        with trio.fail_after(5):
            loss = await connection.wait_lost()
    assert loss.reason is LossReason.SEND_STALLED


async def test_an_answer_to_nobody_loses_the_connection_and_raises_nothing() -> None:
    async with connected() as (connection, far):
        await far.reads.aclose()
        await far.ask("small", range(1))
        with trio.fail_after(5):
            loss = await connection.wait_lost()
    assert loss.reason in (LossReason.STREAM_ERROR, LossReason.PEER_CLOSED)


async def test_answers_of_a_peer_that_reads_no_more_still_count() -> None:
    async with connected() as (connection, far), trio.open_nursery() as nursery:
        results: list[Any] = []

        async def call() -> None:
            results.append(await connection.call("ask"))

        nursery.start_soon(call)
        await far.reads.receive_some(10_000)
        await far.reads.aclose()
        await far.ask("small", range(7, 8))
        await wait_all_tasks_blocked()  # the reader has found that it cannot answer
        await far.writes.send_all(codec.encode_success("in time", 1) + b"\n")
        await wait_all_tasks_blocked()
        assert results == ["in time"]
        await far.writes.aclose()
        with trio.fail_after(5):
            assert (await connection.wait_lost()).reason is LossReason.PEER_CLOSED


@pytest.mark.parametrize("count", [1, 500])
async def test_many_answers_go_out_in_few_writes(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = 0
    write = DescriptorStream.send_nowait

    def counting(self: DescriptorStream, data: bytes) -> int:
        nonlocal writes
        writes += 1
        return write(self, data)

    monkeypatch.setattr(DescriptorStream, "send_nowait", counting)
    async with connected() as (_, far):
        await far.ask("small", range(count))
        assert len(await far.answers(count)) == count
    assert writes == 1
