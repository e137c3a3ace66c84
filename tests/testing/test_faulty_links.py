"""The faulty links and the scripted peer do what they say, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.engine import Link
from stepflow_trio.errors import ErrorCode
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.protocol.messages import ErrorObject, Malformed
from stepflow_trio.testing import (
    Faults,
    FaultyLink,
    ScriptedPeer,
    UnexpectedMessage,
    byte_link_pair,
    dropped,
    duplicated,
    garbled,
    memory_link_pair,
)


def nothing() -> None:
    pass


async def receive_all(link: Link) -> list[bytes | FrameRejected]:
    received: list[bytes | FrameRejected] = []
    while frames := await link.receive():
        received += frames
    return received


# ---- faulty links ---------------------------------------------------------------------------------------


async def test_without_faults_frames_pass_both_ways_one_by_one(autojump_clock: Any) -> None:
    link, far = memory_link_pair()
    faulty = FaultyLink(link)
    await far.send([b"1", b"2"], nothing)
    assert [await faulty.receive(), await faulty.receive()] == [[b"1"], [b"2"]]
    await faulty.send([b"3", b"4"], nothing)
    assert await far.receive() == [b"3", b"4"]
    assert (faulty.frames_received, faulty.frames_sent, faulty.kind) == (2, 2, link.kind)
    await faulty.aclose()
    assert await far.receive() == []


@pytest.mark.parametrize("direction", ["receiving", "sending"])
async def test_frames_are_dropped_doubled_and_garbled_by_their_number(
    autojump_clock: Any, direction: str
) -> None:
    link, far = memory_link_pair()
    faults = Faults(instead={1: dropped, 2: duplicated, 3: garbled, 4: lambda frame: [frame, b"more"]})
    faulty = FaultyLink(link, **{direction: faults})
    sender, receiver = (far, faulty) if direction == "receiving" else (faulty, far)
    await sender.send([b"aa", b"bb", b"cc", b"dd", b"ee"], nothing)
    await sender.aclose()
    assert await receive_all(receiver) == [b"bb", b"bb", b"c", b"dd", b"more", b"ee"]


async def test_each_frame_takes_its_delay_and_progress_is_told_after_it(autojump_clock: Any) -> None:
    link, far = memory_link_pair()
    faulty = FaultyLink(link, receiving=Faults(delay_s=2), sending=Faults(delay_s=3))
    began = trio.current_time()
    progress: list[float] = []
    await faulty.send([b"1", b"2"], lambda: progress.append(trio.current_time() - began))
    assert progress[-1] == 6
    assert 3 in progress
    await far.send([b"1", b"2"], nothing)
    await faulty.receive()
    await faulty.receive()
    assert trio.current_time() == began + 6 + 4


@pytest.mark.parametrize("direction", ["receiving", "sending"])
async def test_a_direction_stalls_until_it_is_released(autojump_clock: Any, direction: str) -> None:
    link, far = memory_link_pair()
    released = trio.Event()
    faulty = FaultyLink(link, **{direction: Faults(stall_after=1, released=released)})
    sender, receiver = (far, faulty) if direction == "receiving" else (faulty, far)
    received: list[Any] = []

    async def receive() -> None:
        received.extend(await receive_all(receiver))

    async def send() -> None:
        await sender.send([b"1", b"2"], nothing)
        await sender.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        nursery.start_soon(receive)
        await trio.sleep(1000)
        assert received == []
        released.set()
    assert received == [b"1", b"2"]


async def test_a_direction_stalls_for_ever_fails_or_ends_after_so_many_frames(autojump_clock: Any) -> None:
    link, far = memory_link_pair()
    await far.send([b"1", b"2", b"3"], nothing)
    with trio.move_on_after(1000) as patience:
        await FaultyLink(link, receiving=Faults(stall_after=0)).receive()
    assert patience.cancelled_caught
    faulty = FaultyLink(link, receiving=Faults(fail_after=1), sending=Faults(fail_after=0))
    assert await faulty.receive() == [b"1"]
    with pytest.raises(OSError, match="on purpose after 1 frames"):
        await faulty.receive()
    with pytest.raises(OSError, match="on purpose after 0 frames"):
        await faulty.send([b"x"], nothing)
    await far.send([b"4"], nothing)
    ended = FaultyLink(link, receiving=Faults(end_after=1))
    assert [await ended.receive(), await ended.receive(), await ended.receive()] == [[b"4"], [], []]


async def test_cancelling_a_delayed_receive_loses_no_frame(autojump_clock: Any) -> None:
    link, far = memory_link_pair()
    faulty = FaultyLink(link, receiving=Faults(delay_s=5))
    await far.send([b"1", b"2"], nothing)
    for _ in range(3):
        with trio.move_on_after(1):
            await faulty.receive()
    assert [await faulty.receive(), await faulty.receive()] == [[b"1"], [b"2"]]


async def test_what_is_no_frame_passes_as_it_is(autojump_clock: Any) -> None:
    near, far = byte_link_pair(chunk_bytes=2)
    faulty = FaultyLink(near, receiving=Faults(instead={1: garbled}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.send, [b"frame"], nothing)
        assert await faulty.receive() == [b"fr"]
    rejected = FrameRejected("too long")
    assert Faults(instead={1: garbled}).replace(rejected, 1) == (rejected,)


# ---- byte links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [1, 3, 1000])
async def test_byte_links_carry_frames_however_they_are_cut(autojump_clock: Any, chunk_bytes: int) -> None:
    near, far = byte_link_pair(chunk_bytes=chunk_bytes, delay_s=0.5)
    began = trio.current_time()

    async def send() -> None:
        await near.send([b"one", b"two"], nothing)
        await near.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await receive_all(far) == [b"one", b"two"]
    chunks = -(-8 // chunk_bytes)
    assert trio.current_time() == began + chunks * 0.5


async def test_a_send_that_is_cancelled_over_byte_links_leaves_a_torn_frame(autojump_clock: Any) -> None:
    near, far = byte_link_pair(chunk_bytes=2, delay_s=1)

    async def send() -> None:
        with trio.move_on_after(2.5):
            await near.send([b"a frame"], nothing)
        await near.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        (torn,) = await receive_all(far)
    assert isinstance(torn, FrameRejected)


# ---- the scripted peer ----------------------------------------------------------------------------------


async def test_a_scripted_peer_reads_and_says_what_it_is_told(autojump_clock: Any) -> None:
    link, far = memory_link_pair()
    peer = ScriptedPeer(far)
    await link.send(
        [
            codec.encode_request("ask", [1], 7),
            codec.encode_notification("tell", [2]),
            codec.encode_success("result", "id"),
            codec.encode_failure(ErrorObject(-5, "no", None), 8),
            b"what?",
        ],
        nothing,
    )
    asked = await peer.expect("ask")
    assert (asked.id, asked.params) == (7, [1])
    assert (await peer.expect_notification("tell")).params == [2]
    assert await peer.expect_result("id") == "result"
    assert (await peer.expect_error(8, -5)).message == "no"
    assert isinstance(await peer.receive(), Malformed)
    assert len(peer.received) == 5
    await peer.answer(asked, "done")
    await peer.fail(asked, ErrorCode.INTERNAL_ERROR, "oh", {"n": 1})
    await peer.request("ask", id_="a")
    await peer.notify("tell", {})
    await peer.send_raw(b"{", b"}")
    assert await link.receive() == [
        codec.encode_success("done", 7),
        codec.encode_failure(ErrorObject(-32603, "oh", {"n": 1}), 7),
        b'{"jsonrpc":"2.0","method":"ask","id":"a"}',
        b'{"jsonrpc":"2.0","method":"tell","params":{}}',
        b"{",
        b"}",
    ]
    await peer.close()
    assert await link.receive() == []


@pytest.mark.parametrize(
    ("frame", "expectation"),
    [
        (codec.encode_request("ask", [], 1), lambda peer: peer.expect("tell")),
        (codec.encode_notification("ask", []), lambda peer: peer.expect("ask")),
        (codec.encode_request("tell", [], 1), lambda peer: peer.expect_notification("tell")),
        (codec.encode_success(1, "7"), lambda peer: peer.expect_result(7)),
        (codec.encode_success(1, 1), lambda peer: peer.expect_result(True)),
        (codec.encode_success(1, 7), lambda peer: peer.expect_error(7)),
        (codec.encode_failure(ErrorObject(-1, "x"), 7), lambda peer: peer.expect_result(7)),
        (codec.encode_failure(ErrorObject(-1, "x"), 7), lambda peer: peer.expect_error(7, -2)),
        (codec.encode_failure(ErrorObject(-1, "x"), None), lambda peer: peer.expect_error(7)),
        (codec.encode_success(1, 7), lambda peer: peer.expect_nothing()),
        (codec.encode_success(1, 7), lambda peer: peer.expect_end()),
        (None, lambda peer: peer.expect_end()),
        (None, lambda peer: peer.expect("ask")),
    ],
)
async def test_a_scripted_peer_fails_where_it_is_told_something_else(
    autojump_clock: Any, frame: bytes | None, expectation: Any
) -> None:
    link, far = memory_link_pair()
    peer = ScriptedPeer(far, within_s=3)
    if frame is not None:
        await link.send([frame], nothing)
    with pytest.raises(UnexpectedMessage, match=r"expected|nothing came within 3 s"):
        await expectation(peer)


async def test_a_scripted_peer_sees_the_end_and_goes_on_seeing_it(autojump_clock: Any) -> None:
    link, far = memory_link_pair()
    peer = ScriptedPeer(far)
    await peer.expect_nothing(for_s=5)
    await link.aclose()
    await peer.expect_end()
    await peer.expect_end()
    assert await peer.receive() is None
