"""A link over byte streams: what goes into one write, what an overlong line does, and its faults."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.transports.descriptors import DescriptorStream
from stepflow_trio.transports.streams import SEND_BYTES, DescriptorLink, StreamLink


class RecordingStream(trio.abc.Stream):
    """Takes writes as they come; gives back ``incoming`` in the pieces that it is made of."""

    def __init__(self, *incoming: bytes) -> None:
        self.writes: list[bytes] = []
        self.buffers: list[object] = []
        self.incoming = [*incoming]
        self.closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.writes.append(bytes(data))
        self.buffers.append(data.obj if isinstance(data, memoryview) else data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.incoming.pop(0) if self.incoming else b""

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


def ignore() -> None:
    pass


async def test_frames_that_wait_together_go_into_one_write() -> None:
    stream = RecordingStream()
    await StreamLink(stream, stream).send([b"1", b"2", b"3"], ignore)
    assert stream.writes == [b"1\n2\n3\n"]


@pytest.mark.parametrize("size", [SEND_BYTES - 2, SEND_BYTES - 1, SEND_BYTES, SEND_BYTES + 1, 3 * SEND_BYTES])
async def test_no_write_is_longer_than_its_bound_and_each_counts_as_progress(size: int) -> None:
    stream = RecordingStream()
    progress: list[int] = []
    frames = [b"a", b"x" * size, b"b"]
    await StreamLink(stream, stream).send(frames, lambda: progress.append(len(stream.writes)))
    assert b"".join(stream.writes) == b"a\n" + b"x" * size + b"\nb\n"
    assert max(map(len, stream.writes)) <= SEND_BYTES
    assert progress == list(range(1, len(stream.writes) + 1))


async def test_a_large_frame_is_written_from_where_it_lies() -> None:
    stream = RecordingStream()
    frame = b"x" * (10 * SEND_BYTES)
    await StreamLink(stream, stream).send([frame], ignore)
    assert sum(buffer is frame for buffer in stream.buffers) == 10


@pytest.mark.parametrize("size", [100, 101])
async def test_a_line_over_the_limit_is_rejected_and_the_next_one_is_received(size: int) -> None:
    stream = RecordingStream(b"x" * size + b"\n", b"2\n")
    link = StreamLink(stream, stream, max_frame_bytes=100)
    (first,) = await link.receive()
    assert first == b"x" * size if size == 100 else isinstance(first, FrameRejected)
    assert await link.receive() == [b"2"]
    assert await link.receive() == []


@given(
    frames=st.lists(st.binary(min_size=1).map(lambda frame: frame.hex().encode()), max_size=8),
    cuts=st.lists(st.integers(1, 40), max_size=8),
)
def test_however_the_bytes_are_cut_the_same_frames_arrive(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frame + b"\n" for frame in frames)
    pieces: list[bytes] = []
    for cut in cuts:
        pieces.append(data[:cut])
        data = data[cut:]
    stream = RecordingStream(*(piece for piece in [*pieces, data] if piece))
    received: list[bytes | FrameRejected] = []

    async def receive() -> None:
        link = StreamLink(stream, stream)
        while more := await link.receive():
            received.extend(more)

    trio.run(receive)
    assert received == frames


@pytest.mark.parametrize("fault", [OSError("torn"), trio.BrokenResourceError("torn")])
async def test_what_the_streams_raise_passes_through(fault: Exception) -> None:
    class Failing(RecordingStream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            raise fault

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            raise fault

    link = StreamLink(Failing(), Failing())
    with pytest.raises(type(fault), match="torn"):
        await link.receive()
    with pytest.raises(type(fault), match="torn"):
        await link.send([b"1"], ignore)


async def test_both_streams_are_closed_although_closing_one_fails() -> None:
    class FailsToClose(RecordingStream):
        async def aclose(self) -> None:
            await super().aclose()
            raise OSError("cannot close")

    receive, send = RecordingStream(), FailsToClose()
    with pytest.raises(OSError, match="cannot close"):
        await StreamLink(receive, send).aclose()
    assert receive.closed
    assert send.closed


async def test_a_cancelled_send_has_written_a_part_and_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = trio.testing.lockstep_stream_pair()
    link = StreamLink(near, near)
    progress: list[None] = []
    with trio.move_on_after(1) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.send, [b"x" * (4 * SEND_BYTES)], lambda: progress.append(None))
            assert await far.receive_some(SEND_BYTES) == b"x" * SEND_BYTES
    assert scope.cancelled_caught
    assert len(progress) == 1


async def test_over_a_descriptor_whatever_the_peer_takes_of_a_large_frame_is_progress() -> None:
    (unused, other_end), (reader, writer) = os.pipe(), os.pipe()
    link = DescriptorLink(DescriptorStream(unused), DescriptorStream(writer))
    progress: list[None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.send, [b"x" * (4 * SEND_BYTES)], lambda: progress.append(None))
        await trio.testing.wait_all_tasks_blocked()
        for taken in range(5):
            assert len(progress) == taken + 1
            os.read(reader, os.sysconf("SC_PAGESIZE"))  # a pipe gives its room back by the page
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await link.aclose()
    os.close(reader)
    os.close(other_end)


def test_a_link_says_what_it_is_over() -> None:
    stream: Callable[[], RecordingStream] = RecordingStream
    assert "RecordingStream" in repr(StreamLink(stream(), stream()))
