"""Bodies of requests: sent while the answer comes, and no longer than anybody wants them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import pytest
import trio
import trio.testing
from scripted_server import URL, Peer, Wire, answer, answering, post, read_all, scripted

from stepflow_trio.errors import CallTimeout, ConnectionLost, LocalProtocolError, LossReason
from stepflow_trio.transports.http.client import SMALL_BODY_BYTES, open_http_client

LARGE = b"x" * (5 * 2**20)


@pytest.fixture(params=["memory", "socket"])
def wire(request: pytest.FixtureRequest) -> Wire:
    return request.param


async def pieces(*given: bytes) -> AsyncGenerator[bytes]:
    for each in given:
        yield each
        await trio.lowlevel.checkpoint()


async def echo_length(peer: Peer) -> None:
    while True:
        request = await peer.request()
        framing = request.headers.get("transfer-encoding", request.headers.get("content-length"))
        await peer.send(answer(f"{framing} {len(request.body)}".encode()))


@pytest.mark.parametrize("size", [0, 1, SMALL_BODY_BYTES, SMALL_BODY_BYTES + 1, 2**20, len(LARGE)])
async def test_a_body_of_any_size_arrives_whole_and_the_connection_is_kept(size: int, wire: Wire) -> None:
    async with scripted(echo_length, wire) as server, server.client() as client:
        for _ in range(3):
            assert await post(client, b"x" * size) == (200, f"{size} {size}".encode())
        assert (len(server.peers), client.idle_connections) == (1, 1)


async def test_pieces_are_sent_chunked_as_they_come_and_empty_ones_are_not_the_end(wire: Wire) -> None:
    async with scripted(echo_length, wire) as server, server.client() as client:
        for _ in range(2):
            async with client.request("POST", "/", body=pieces(b"abc", b"", LARGE, b"", b"d")) as response:
                assert await response.read() == f"chunked {len(LARGE) + 4}".encode()
        assert await post(client, b"abc") == (200, b"3 3")
        assert len(server.peers) == 1


async def test_pieces_whose_length_is_known_are_sent_with_it(wire: Wire) -> None:
    async with scripted(echo_length, wire) as server, server.client() as client:
        headers = [("Content-Length", "5")]
        async with client.request("PUT", "/", headers=headers, body=pieces(b"abc", b"de")) as response:
            assert await response.read() == b"5 5"
        assert client.idle_connections == 1


@pytest.mark.parametrize("given", [(b"abcd",), (b"abc", b"def"), ()])
async def test_a_length_that_is_wrong_is_the_caller_s_mistake_and_costs_the_connection(
    given: tuple[bytes, ...], wire: Wire
) -> None:
    async with scripted(echo_length, wire) as server, server.client() as client:
        with pytest.raises(LocalProtocolError, match="length is not what content-length says"):
            async with client.request("PUT", "/", headers=[(b"content-length", b"3")], body=pieces(*given)):
                pytest.fail("there was an answer")
        assert client.open_connections == 0
        assert await post(client, b"abc") == (200, b"3 3")


async def test_what_the_source_of_a_body_raises_comes_out_and_the_request_is_cut(wire: Wire) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"abc"
        raise KeyError("spoilt")

    async with scripted(echo_length, wire) as server, server.client() as client:
        with pytest.raises(KeyError, match="spoilt"):
            async with client.request("PUT", "/", body=source()):
                pytest.fail("there was an answer")
        await trio.testing.wait_all_tasks_blocked()
        assert (client.open_connections, server.live) == (0, 0)


async def test_a_slow_source_is_no_stalled_server(wire: Wire, autojump_clock: object) -> None:
    async def source() -> AsyncIterator[bytes]:
        for _ in range(3):
            await trio.sleep(100)
            yield b"abc"

    async with scripted(echo_length, wire) as server, server.client() as client:
        async with client.request("PUT", "/", body=source()) as response:
            assert await response.read() == b"chunked 9"
        assert trio.current_time() == 300
        with pytest.raises(CallTimeout):
            async with client.request("PUT", "/", body=source(), timeout_s=150):
                pytest.fail("there was an answer")
        assert client.open_connections == 0


class Source:
    """A body without end; says when it was closed."""

    def __init__(self, *, pace_s: float = 0) -> None:
        self.is_closed = False
        self._pace_s = pace_s
        self.body = self._body()

    async def _body(self) -> AsyncGenerator[bytes]:
        try:
            while True:
                await trio.sleep(self._pace_s)
                yield b"x" * 2**14
        finally:
            self.is_closed = True


# ---- an answer before the end of the request --------------------------------------------------------


async def test_both_directions_flow_at_once(wire: Wire) -> None:
    size = 16 * 2**20

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 2**16):
            await peer.send(await peer.take(2**16))
        await answering(answer())(peer)

    async with scripted(script, wire) as server, server.client() as client:
        received = 0
        async with client.request("POST", "/", body=b"x" * size) as response:
            # More than any buffer holds comes back before the last of it was sent.
            while piece := await response.receive_some():
                received += len(piece)
        assert received == size
        assert await post(client) == (200, b"ok")
        assert len(server.peers) == 1


@pytest.mark.parametrize("status", ["307 Elsewhere", "413 Too Large", "503 Not Now"])
async def test_an_answer_that_wants_no_more_of_the_request_stops_it_and_is_read(
    status: str, wire: Wire, autojump_clock: object
) -> None:
    taken = 0

    async def script(peer: Peer) -> None:
        nonlocal taken
        await peer.head()
        await peer.take(2**16)
        await peer.send(answer(b"no more", status=status)[:-1])
        await trio.sleep(5)
        await peer.send(b"e")
        while True:
            taken += len(await peer.take(1))

    source = Source()
    async with scripted(script, wire) as server, server.client() as client:
        async with client.request("POST", "/", body=source.body) as response:
            assert trio.current_time() == 0
            assert await response.read() == b"no more"
            assert trio.current_time() == 5
            assert source.is_closed
        await trio.testing.wait_all_tasks_blocked()
        assert (client.open_connections, server.live) == (0, 0)
    assert taken < 2**23  # what was on its way


@pytest.mark.parametrize("size", [10, SMALL_BODY_BYTES, len(LARGE)])
@pytest.mark.parametrize("reads_the_head", [False, True])
async def test_an_answer_is_heard_although_the_server_has_closed_with_it(
    size: int, reads_the_head: bool, wire: Wire
) -> None:
    async def script(peer: Peer) -> None:
        if reads_the_head:
            await peer.head()
        await peer.send(answer(b"too large", "Connection: close", status="413 Content Too Large"))

    async with scripted(script, wire) as server, server.client() as client:
        for _ in range(2):
            assert await post(client, b"x" * size) == (413, b"too large")
            assert client.open_connections == 0


@pytest.mark.parametrize("size", [10, len(LARGE)])
async def test_a_server_that_closes_without_an_answer_is_a_lost_connection(size: int, wire: Wire) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()

    async with scripted(script, wire) as server, server.client() as client:
        with pytest.raises(ConnectionLost) as caught:
            await post(client, b"x" * size)
        assert caught.value.reason in (LossReason.PEER_CLOSED, LossReason.STREAM_ERROR)
        assert client.open_connections == 0


@pytest.mark.parametrize("size", [10, len(LARGE)])
async def test_a_server_that_takes_no_more_and_says_nothing_is_given_a_second(
    size: int, autojump_clock: object
) -> None:
    near, far = trio.testing.memory_stream_pair()
    far.receive_stream.close()

    async def connect() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return near

    async with open_http_client(URL, connect=connect) as client:
        with pytest.raises(ConnectionLost, match="sending failed") as caught:
            await post(client, b"x" * size)
        assert caught.value.reason is LossReason.STREAM_ERROR
        assert trio.current_time() == 1
        assert client.open_connections == 0


async def test_an_answer_that_has_begun_goes_on_where_the_server_takes_no_more(
    autojump_clock: object,
) -> None:
    near, far = trio.testing.memory_stream_pair()

    async def connect() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return near

    source = Source()
    async with open_http_client(URL, connect=connect) as client:
        await far.send_all(answer(b"early")[:-5])
        async with client.request("POST", "/", body=source.body) as response:
            far.receive_stream.close()
            await trio.sleep(100)
            assert source.is_closed
            await far.send_all(b"early")
            assert await response.read() == b"early"
        assert client.open_connections == 0


async def test_leaving_ends_what_is_still_being_sent(wire: Wire, autojump_clock: object) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(answer(b"enough"))
        await trio.sleep(10)
        while True:
            await peer.take(1)

    for leave in ("in order", "raising", "cancelled"):
        source = Source(pace_s=0.3)
        async with scripted(script, wire) as server, server.client() as client:
            began = trio.current_time()
            with trio.move_on_after(1):
                try:
                    async with client.request("POST", "/", body=source.body) as response:
                        assert await read_all(response) == [b"enough"]
                        if leave == "raising":
                            raise KeyError
                        if leave == "cancelled":
                            await trio.sleep_forever()
                except KeyError:
                    assert leave == "raising"
            assert trio.current_time() - began == (1 if leave == "cancelled" else 0)
            assert source.is_closed
            assert client.open_connections == 0
            await trio.sleep(20)
            assert server.live == 0


async def test_a_connection_of_whose_request_the_last_bytes_are_missing_is_not_kept(
    autojump_clock: object,
) -> None:
    near, far = trio.testing.lockstep_stream_pair()

    async def connect() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return near

    async def serve() -> None:
        peer = Peer(far, 0)
        await peer.head()
        assert await peer.take(8) == b"3\r\nabc\r\n"
        await peer.send(answer(b"enough"))  # and the end of the request is not taken

    async with trio.open_nursery() as nursery, open_http_client(URL, connect=connect) as client:
        nursery.start_soon(serve)
        async with client.request("POST", "/", body=pieces(b"abc")) as response:
            assert await response.read() == b"enough"
            await trio.testing.wait_all_tasks_blocked()  # the end of the request waits to be taken
        assert client.open_connections == 0
