"""Every transport's link keeps what ``stepflow_trio.engine.link.Link`` says, seen from either end."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from stepflow_trio.engine.link import Link
from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.transports.memory import memory_link_pair
from stepflow_trio.transports.process import PIPE_BYTES, open_process_link
from stepflow_trio.transports.stdio import open_stdio_link
from stepflow_trio.transports.streams import StreamLink


@dataclass
class Pair:
    near: Link
    far: Link
    send_raw: Callable[[bytes], Awaitable[object]] | None = None
    """Sends bytes from the far end to the near one."""
    close_near: Callable[[], Awaitable[object]] | None = None
    """Ends the near link and what keeps its descriptors."""


@asynccontextmanager
async def memory() -> AsyncGenerator[Pair]:
    near, far = memory_link_pair(capacity=4)
    yield Pair(near, far)


@asynccontextmanager
async def memory_streams() -> AsyncGenerator[Pair]:
    near, far = trio.testing.memory_stream_pair()
    yield Pair(StreamLink(near, near), StreamLink(far, far), far.send_all)


@asynccontextmanager
async def lockstep_streams() -> AsyncGenerator[Pair]:
    near, far = trio.testing.lockstep_stream_pair()
    yield Pair(StreamLink(near, near), StreamLink(far, far), far.send_all)


@asynccontextmanager
async def sockets() -> AsyncGenerator[Pair]:
    near, far = (trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in socket.socketpair())
    async with near, far:
        yield Pair(StreamLink(near, near), StreamLink(far, far), far.send_all)


RELAY = """
import os, socket, sys, threading
far = socket.socket(socket.AF_UNIX)
far.connect(sys.argv[1])

def carry_in():
    while data := os.read(0, 65536):
        far.sendall(data)
    far.shutdown(socket.SHUT_WR)

def carry_out():
    while data := far.recv(65536):
        while data:
            data = data[os.write(1, data):]
    os.close(1)

back = threading.Thread(target=carry_out, daemon=True)
back.start()
carry_in()
back.join()
"""


@asynccontextmanager
async def process(tmp_path: Path) -> AsyncGenerator[Pair]:
    """The far end is that of a socket; the worker carries bytes between it and its stdin and stdout."""
    address = str(tmp_path / "far")
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(address)
        listener.listen()
        command = [sys.executable, "-I", "-S", "-c", RELAY, address]
        async with open_process_link(command, env={}, cwd=tmp_path) as worker:
            connection, _ = await listener.accept()
            async with trio.SocketStream(connection) as far:
                yield Pair(worker.link, StreamLink(far, far), far.send_all)


@asynccontextmanager
async def own_stdio() -> AsyncGenerator[Pair]:
    """This process's own stdin and stdout, which are pipes for the time being."""
    async with AsyncExitStack() as stack:
        stdin, to_near = os.pipe()
        from_near, stdout = os.pipe()
        kept = os.dup(0), os.dup(1)

        def put_back() -> None:
            for fd, original in enumerate(kept):
                os.dup2(original, fd)
                os.close(original)

        stack.callback(put_back)
        for fd, pipe in enumerate((stdin, stdout)):
            os.dup2(pipe, fd)
            os.close(pipe)
        receive, send = trio.lowlevel.FdStream(from_near), trio.lowlevel.FdStream(to_near)
        await stack.enter_async_context(receive)
        await stack.enter_async_context(send)
        claim = await stack.enter_async_context(AsyncExitStack())
        near = await claim.enter_async_context(open_stdio_link())

        async def close_near() -> None:
            await claim.aclose()
            for fd, original in enumerate(kept):
                os.dup2(original, fd)

        yield Pair(near, StreamLink(receive, send), send.send_all, close_near)


BYTE_TRANSPORTS = ["memory_streams", "lockstep_streams", "sockets", "process", "own_stdio"]
TRANSPORTS = ["memory", *BYTE_TRANSPORTS]


@pytest.fixture
def open_pair(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[[], AbstractAsyncContextManager[Pair]]:
    makers: dict[str, Callable[[], AbstractAsyncContextManager[Pair]]] = {
        "memory": memory,
        "memory_streams": memory_streams,
        "lockstep_streams": lockstep_streams,
        "sockets": sockets,
        "process": lambda: process(tmp_path),
        "own_stdio": own_stdio,
    }
    return makers[request.param]


every_transport = pytest.mark.parametrize("open_pair", TRANSPORTS, indirect=True)
every_byte_transport = pytest.mark.parametrize("open_pair", BYTE_TRANSPORTS, indirect=True)
every_bounded_transport = pytest.mark.parametrize(
    "open_pair", [name for name in TRANSPORTS if name != "memory_streams"], indirect=True
)
OpenPair = Callable[[], AbstractAsyncContextManager[Pair]]


def ignore() -> None:
    pass


async def send_for_ever(link: Link) -> None:
    while True:
        await link.send([b"x" * 100_000], ignore)


async def receive_frames(link: Link, number: int) -> list[bytes | FrameRejected]:
    frames: list[bytes | FrameRejected] = []
    while len(frames) < number:
        more = await link.receive()
        assert more, f"the link ended after {len(frames)} of {number} frames"
        frames += more
    return frames


@every_transport
async def test_frames_arrive_whole_and_in_order_both_ways_at_once(open_pair: OpenPair) -> None:
    sent = [b'{"n":%d,"pad":"%s"}' % (n, b"x" * (n % 97)) for n in range(500)]
    async with open_pair() as pair:
        received: dict[str, list[bytes | FrameRejected]] = {}

        async def receive(name: str, link: Link) -> None:
            received[name] = await receive_frames(link, len(sent))

        async def send(link: Link) -> None:
            for start in range(0, len(sent), 7):
                await link.send(sent[start : start + 7], ignore)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, "near", pair.near)
            nursery.start_soon(receive, "far", pair.far)
            nursery.start_soon(send, pair.near)
            nursery.start_soon(send, pair.far)
        assert received == {"near": sent, "far": sent}


@every_transport
async def test_a_frame_of_8_mib_goes_both_ways_between_small_ones_and_its_progress_is_told(
    open_pair: OpenPair,
) -> None:
    sent = [b"1", os.urandom(4 * 2**20).hex().encode(), b"2", b"3"]
    async with open_pair() as pair:
        for sender, receiver in ((pair.near, pair.far), (pair.far, pair.near)):
            progress: list[None] = []

            async def send(link: Link, progress: list[None]) -> None:
                await link.send(sent, lambda: progress.append(None))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, sender, progress)
                assert await receive_frames(receiver, len(sent)) == sent
            if isinstance(sender, StreamLink):
                assert len(progress) >= 8 * 2**20 / PIPE_BYTES


@every_transport
async def test_a_cancelled_receive_loses_nothing(open_pair: OpenPair) -> None:
    sent = [b"%d" % n * 50 for n in range(300)]
    chance = random.Random(1)  # noqa: S311 — no secret
    cancelled = 0
    async with open_pair() as pair:
        for sender, receiver in ((pair.near, pair.far), (pair.far, pair.near)):
            received: list[bytes | FrameRejected] = []
            scope = trio.CancelScope()

            async def send(link: Link) -> None:
                for frame in sent:
                    await link.send([frame], ignore)

            async def interrupt() -> None:
                while True:
                    for _ in range(chance.randrange(4)):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()  # noqa: B023 — the one of the moment is meant
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, sender)
                nursery.start_soon(interrupt)
                while len(received) < len(sent):
                    with trio.CancelScope() as scope:
                        received += await receiver.receive()
                    cancelled += scope.cancelled_caught
                nursery.cancel_scope.cancel()
            assert received == sent
    assert cancelled


@every_transport
async def test_closing_one_end_ends_the_other_after_what_was_sent(open_pair: OpenPair) -> None:
    async with open_pair() as pair:
        close_near = pair.close_near or pair.near.aclose
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.near.send, [b"1", b"2"], ignore)
            assert await receive_frames(pair.far, 2) == [b"1", b"2"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close_near)
            assert await pair.far.receive() == []
        assert await pair.far.receive() == []


@every_transport
async def test_sending_to_a_closed_end_fails(open_pair: OpenPair) -> None:
    async with open_pair() as pair:
        await (pair.close_near or pair.near.aclose)()
        with pytest.raises((OSError, trio.BrokenResourceError)):
            await send_for_ever(pair.far)


@every_bounded_transport
async def test_a_closed_link_says_so_and_closing_wakes_its_own_tasks(open_pair: OpenPair) -> None:
    async with open_pair() as pair:
        woken: list[str] = []

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await pair.near.receive()
            woken.append("receiver")

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await send_for_ever(pair.near)
            woken.append("sender")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.02)
            await pair.near.aclose()
        assert sorted(woken) == ["receiver", "sender"]
        with pytest.raises(trio.ClosedResourceError):
            await pair.near.receive()
        with pytest.raises(trio.ClosedResourceError):
            await pair.near.send([b"1"], ignore)
        await pair.near.aclose()


@every_transport
async def test_a_cancelled_close_closes(open_pair: OpenPair) -> None:
    async with open_pair() as pair:
        with trio.CancelScope() as scope:
            scope.cancel()
            await pair.near.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await pair.near.receive()


@every_bounded_transport
async def test_a_send_that_nobody_takes_can_be_cancelled(open_pair: OpenPair) -> None:
    async with open_pair() as pair:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.near.send, [b"x" * 3_000_000] * 8, ignore)
                await trio.testing.wait_all_tasks_blocked(0.02)
                scope.cancel()
        assert scope.cancelled_caught


@every_transport
async def test_receiving_and_closing_are_checkpoints(open_pair: OpenPair) -> None:
    async with open_pair() as pair:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.far.send, [b"1"], ignore)
            with trio.testing.assert_checkpoints():
                await pair.near.receive()
        with trio.testing.assert_checkpoints():
            await pair.near.aclose()


@every_byte_transport
async def test_frames_torn_at_every_byte_arrive_whole(open_pair: OpenPair) -> None:
    async with open_pair() as pair:
        assert pair.send_raw is not None

        async def dribble() -> None:
            for byte in b'{"a":1}\n\r\n  \n{"\xc3\xa4":2}\r\n':
                await pair.send_raw(bytes([byte]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dribble)
            assert await receive_frames(pair.near, 2) == [b'{"a":1}', b'{"\xc3\xa4":2}']


@every_byte_transport
async def test_half_a_line_at_the_end_is_reported_once_and_then_the_end(open_pair: OpenPair) -> None:
    async with open_pair() as pair:

        async def send() -> None:
            assert pair.send_raw is not None
            await pair.send_raw(b'{"a":1}\n{"b":')
            await pair.far.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await receive_frames(pair.near, 2) == [
                b'{"a":1}',
                FrameRejected("the stream ended 5 bytes into a line"),
            ]
            assert await pair.near.receive() == []
            assert await pair.near.receive() == []
