"""What an exchange may use up: sizes at their bounds and one byte beyond, and the time of every phase."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest
import trio
import trio.testing
from scripted_server import URL, Peer, ScriptedServer, Wire, answer, answering, post, scripted

from stepflow_trio.errors import CallTimeout, ConfigError, ConnectFailed, ConnectionLost, LossReason
from stepflow_trio.transports.http.client import open_http_client
from stepflow_trio.transports.http.limits import HttpClientLimits


@pytest.fixture(params=["memory", "socket"])
def wire(request: pytest.FixtureRequest) -> Wire:
    return request.param


# ---- bounds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 7, 1000])
@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_an_answer_s_head_may_be_as_large_as_its_bound_and_not_one_byte_larger(
    first: bytes, pieces: int, wire: Wire, autojump_clock: object
) -> None:
    raw = first + answer(b"x" * 5000, "X: " + "y" * 1000)
    size = raw.index(b"xxx")

    async def script(peer: Peer) -> None:
        await peer.request()
        for start in range(0, len(raw), len(raw) // pieces):
            await peer.send(raw[start : start + len(raw) // pieces])
            await trio.testing.wait_all_tasks_blocked()
        await peer.request()

    async with scripted(script, wire) as server:
        async with server.client(limits=HttpClientLimits(max_header_bytes=size)) as client:
            assert await post(client) == (200, b"x" * 5000)
        async with server.client(limits=HttpClientLimits(max_header_bytes=size - 1)) as client:
            with pytest.raises(ConnectionLost, match=f"head is larger than {size - 1} bytes") as caught:
                await post(client)
            assert caught.value.reason is LossReason.PROTOCOL_VIOLATION


async def test_informational_answers_without_end_are_one_head_that_is_too_large(wire: Wire) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        while True:
            await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")

    async with scripted(script, wire) as server, server.client() as client:
        with pytest.raises(ConnectionLost, match="head is larger than 65536 bytes"):
            await post(client)


@pytest.mark.parametrize("framing", ["length", "chunked", "until close"])
async def test_a_body_that_is_read_whole_may_be_as_large_as_its_bound(framing: str, wire: Wire) -> None:
    head = {
        "length": b"Content-Length: 1000\r\n\r\n",
        "chunked": b"Transfer-Encoding: chunked\r\n\r\n" + b"1f4\r\n" + b"x" * 500 + b"\r\n1f4\r\n",
        "until close": b"\r\n",
    }[framing]
    rest = b"x" * 500 + b"\r\n0\r\n\r\n" if framing == "chunked" else b"x" * 1000

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + head + rest)
        if framing != "until close":
            await script(peer)

    async with scripted(script, wire) as server:
        async with server.client(limits=HttpClientLimits(max_body_bytes=1000)) as client:
            assert await post(client) == (200, b"x" * 1000)
        async with server.client(limits=HttpClientLimits(max_body_bytes=999)) as client:
            with pytest.raises(ConnectionLost, match="body is larger than 999 bytes") as caught:
                await post(client)
            assert caught.value.reason is LossReason.PROTOCOL_VIOLATION
            async with client.request("POST", "/") as response:
                assert await response.read(1000) == b"x" * 1000
            with pytest.raises(ConnectionLost, match="body is larger than 999 bytes"):
                async with client.request("POST", "/") as response:
                    await response.read(999)


async def test_a_body_without_end_is_given_up_at_its_bound(wire: Wire, autojump_clock: object) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await peer.send(b"10000\r\n" + b"x" * 2**16 + b"\r\n")

    limits = HttpClientLimits(max_body_bytes=2**20)
    async with scripted(script, wire) as server, server.client(limits=limits) as client:
        with pytest.raises(ConnectionLost, match="larger than 1048576 bytes"):
            await post(client)
        await trio.testing.wait_all_tasks_blocked()
        assert (client.open_connections, server.live) == (0, 0)


# ---- deadlines --------------------------------------------------------------------------------------


async def test_connecting_has_a_deadline(autojump_clock: object) -> None:
    async def connect() -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    async with open_http_client(URL, connect=connect) as client:
        with pytest.raises(ConnectFailed, match="no connection within 10 s"):
            await post(client)
        assert trio.current_time() == 10
        with pytest.raises(CallTimeout, match="POST /: no answer within 3 s"):
            await post(client, timeout_s=3)
        assert trio.current_time() == 13
        assert client.open_connections == 0


@pytest.mark.parametrize(
    ("exc", "why"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (trio.BrokenResourceError("gone"), "gone"),
        (OSError("no address"), "no address"),
    ],
)
async def test_why_there_is_no_connection_is_said(exc: Exception, why: str) -> None:
    async def connect() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise exc

    async with open_http_client(URL, connect=connect) as client:
        with pytest.raises(ConnectFailed) as caught:
            await post(client)
        assert str(caught.value) == f"cannot connect to http://worker.test:8000: {why}"
        assert caught.value.__cause__ is exc
        assert client.open_connections == 0


def all_failed(*reasons: Exception) -> OSError:
    """What trio raises where a name has several addresses."""
    exc = OSError("all attempts to connect failed")
    exc.__cause__ = ExceptionGroup("all attempts to connect failed", reasons)
    return exc


OUT_OF_FILES = OSError(errno.EMFILE, "Too many open files")
REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


@pytest.mark.parametrize(
    ("exc", "is_local"),
    [
        (OUT_OF_FILES, True),
        (OSError(errno.ENFILE, "Too many open files in system"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOBUFS, "No buffer space available"), True),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), True),
        (all_failed(OUT_OF_FILES), True),
        (all_failed(OUT_OF_FILES, OUT_OF_FILES), True),
        (all_failed(REFUSED, OUT_OF_FILES), False),
        (REFUSED, False),
        (OSError("no address"), False),
        (trio.BrokenResourceError("gone"), False),
    ],
    ids=repr,
)
async def test_that_this_machine_had_no_connection_to_make_is_said(exc: Exception, is_local: bool) -> None:
    async def connect() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise exc

    async with open_http_client(URL, connect=connect) as client:
        with pytest.raises(ConnectFailed) as caught:
            await post(client)
    assert caught.value.is_local is is_local


async def test_an_error_of_this_library_s_in_connecting_passes_through() -> None:
    async def connect() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise ConfigError("not allowed")

    async with open_http_client(URL, connect=connect) as client:
        with pytest.raises(ConfigError, match="not allowed"):
            await post(client)
        assert client.open_connections == 0


async def to_a_full_buffer(server: ScriptedServer) -> trio.abc.Stream:
    near = await server.connect()
    assert isinstance(near, trio.SocketStream)
    with suppress(BlockingIOError):
        while True:
            os.write(near.socket.fileno(), b"x" * 2**16)
    return near


async def to_a_buffer_that_fills_up(server: ScriptedServer) -> trio.abc.Stream:
    return await server.connect()


async def to_nobody_who_reads(server: ScriptedServer) -> trio.abc.Stream:
    await trio.lowlevel.checkpoint()
    return trio.testing.lockstep_stream_pair()[0]


@pytest.mark.parametrize(
    ("connect", "size"),
    [
        (to_a_full_buffer, 100),
        (to_a_buffer_that_fills_up, 2**24),
        (to_nobody_who_reads, 100),
        (to_nobody_who_reads, 2**17),
    ],
)
async def test_a_server_that_takes_no_bytes_loses_the_connection(
    connect: Callable[[ScriptedServer], Awaitable[trio.abc.Stream]], size: int, autojump_clock: object
) -> None:
    async def script(peer: Peer) -> None:
        await trio.sleep_forever()

    async with (
        scripted(script, "socket") as server,
        open_http_client(URL, connect=partial(connect, server)) as client,
    ):
        with pytest.raises(ConnectionLost, match="took no bytes for 30 s") as caught:
            await post(client, b"x" * size)
        assert caught.value.reason is LossReason.SEND_STALLED
        assert trio.current_time() == 30
        with pytest.raises(CallTimeout):
            await post(client, b"x" * size, timeout_s=5)
        assert trio.current_time() == 35
        assert client.open_connections == 0


async def test_a_server_may_take_a_request_slowly_and_answer_late(wire: Wire, autojump_clock: object) -> None:
    body = b"x" * 2**20

    async def script(peer: Peer) -> None:
        taken = 0
        await peer.head()
        while taken < len(body):
            await trio.sleep(20)
            taken += len(await peer.take(min(2**18, len(body) - taken)))
        await trio.sleep(100)
        await peer.send(answer())
        await peer.wait_gone()

    async with scripted(script, wire) as server, server.client() as client:
        assert await post(client, body) == (200, b"ok")
        assert trio.current_time() == 180
        assert client.idle_connections == 1


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", answer(b"hello")[:-1]])
async def test_a_request_as_a_whole_has_a_deadline(sent: bytes, wire: Wire, autojump_clock: object) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(sent)
        await peer.wait_gone()

    async with scripted(script, wire) as server, server.client() as client:
        with pytest.raises(CallTimeout, match="POST /run: no answer within 7 s"):
            async with client.request("POST", "/run?sessionId=canary", timeout_s=7) as response:
                await response.read()
        assert trio.current_time() == 7
        await trio.testing.wait_all_tasks_blocked()
        assert (client.open_connections, server.live) == (0, 0)


async def test_the_deadline_holds_for_what_is_done_in_the_block_too(autojump_clock: object) -> None:
    async with scripted(answering(answer())) as server, server.client() as client:
        with pytest.raises(CallTimeout):  # noqa: PT012 — the block is what it is about
            async with client.request("POST", "/", timeout_s=7) as response:
                assert await response.read() == b"ok"
                await trio.sleep(8)
        assert trio.current_time() == 7
        assert client.idle_connections == 1  # the answer had come to its end


async def test_a_deadline_of_the_caller_s_own_is_not_ours_to_report(
    wire: Wire, autojump_clock: object
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await trio.sleep_forever()

    async with scripted(script, wire) as server, server.client() as client:
        with trio.move_on_after(3) as scope:
            await post(client, timeout_s=7)
        assert scope.cancelled_caught
        assert client.open_connections == 0
