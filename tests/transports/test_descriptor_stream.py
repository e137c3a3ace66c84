"""The stream under the stdio and process links."""

from __future__ import annotations

import os

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from stepflow_trio.transports.descriptors import DescriptorStream


def pair() -> tuple[DescriptorStream, DescriptorStream]:
    reader, writer = os.pipe()
    return DescriptorStream(reader), DescriptorStream(writer)


async def test_bytes_arrive_and_the_end_is_empty() -> None:
    reader, writer = pair()
    async with reader:
        async with writer:
            await writer.send_all(b"frames")
            with assert_checkpoints():
                assert await reader.receive_some(3) == b"fra"
            assert await reader.receive_some() == b"mes"
        assert await reader.receive_some() == b""


async def test_sending_more_than_the_pipe_holds_waits_for_the_reader() -> None:
    reader, writer = pair()
    data = os.urandom(300_000)
    received = bytearray()
    async with reader, writer, trio.open_nursery() as nursery:
        nursery.start_soon(writer.send_all, data)
        await wait_all_tasks_blocked()
        while len(received) < len(data):
            received += await reader.receive_some()
    assert received == data


async def test_cancelled_while_waiting_it_loses_no_byte() -> None:
    reader, writer = pair()
    async with reader, writer:
        with trio.move_on_after(0):
            await reader.receive_some()
        await writer.send_all(b"x")
        with trio.CancelScope() as scope:
            scope.cancel()
            await reader.receive_some()
        assert scope.cancelled_caught
        assert await reader.receive_some() == b"x"


async def test_writing_to_nobody_is_a_broken_resource() -> None:
    reader, writer = pair()
    await reader.aclose()
    async with writer:
        with pytest.raises(trio.BrokenResourceError, match="Broken pipe"):
            await writer.send_all(b"x")


async def test_closing_wakes_who_waits_and_nothing_works_afterwards() -> None:
    reader, writer = pair()
    async with writer, trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await reader.receive_some()

        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        reader.close()
    assert reader.fileno() == -1
    with pytest.raises(trio.ClosedResourceError):
        await reader.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await writer.send_all(b"x")
    reader.close()


async def test_blocking_is_put_back_as_it_was() -> None:
    reader, writer = os.pipe()
    twin = os.dup(reader)
    stream = DescriptorStream(reader)
    assert not os.get_blocking(twin)
    await stream.aclose()
    assert os.get_blocking(twin)
    os.close(twin)
    os.close(writer)
