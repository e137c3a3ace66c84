"""The pool: bounded and fair, no dead connection handed out, nothing lost however requests end."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio
import trio.testing
from scripted_server import ClientGone, Peer, ScriptedServer, Wire, answer, answering, post, scripted

from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import CallTimeout, ConnectFailed, ConnectionLost, LossReason
from stepflow_trio.testing import Cancellable, RandomSample, cancel_everywhere
from stepflow_trio.transports.http.client import HttpClient
from stepflow_trio.transports.http.limits import HttpClientLimits


@pytest.fixture(params=["memory", "socket"])
def wire(request: pytest.FixtureRequest) -> Wire:
    return request.param


def slow(seconds: float) -> Callable[[Peer], object]:
    """Answers each request after so long."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await trio.sleep(seconds)
            await peer.send(answer())

    return script


# ---- which connection a request gets ----------------------------------------------------------------


async def test_one_connection_carries_one_request_after_another(wire: Wire) -> None:
    async with scripted(answering(answer()), wire) as server, server.client() as client:
        for _ in range(20):
            assert await post(client) == (200, b"ok")
            assert (client.open_connections, client.idle_connections) == (1, 1)
        assert len(server.peers) == 1
        assert repr(client) == (
            "<HttpClient http://worker.test:8000: 1 connections, 1 of them idle, 0 requests waiting for one>"
        )


async def test_there_are_never_more_connections_than_the_bound(wire: Wire, autojump_clock: object) -> None:
    limits = HttpClientLimits(max_connections=3, max_idle_connections=2)
    async with scripted(slow(1), wire) as server, server.client(limits=limits) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(post, client)
            for busy in (3, 3, 3, 1):
                await trio.testing.wait_all_tasks_blocked()
                assert client.open_connections == min(3, busy + client.idle_connections)
                assert len(server.peers) == 3
                await trio.sleep(1)
        assert trio.current_time() == 4
        await trio.testing.wait_all_tasks_blocked()
        assert (client.open_connections, client.idle_connections, server.live) == (2, 2, 2)


async def test_who_waits_is_served_in_the_order_of_coming(wire: Wire, autojump_clock: object) -> None:
    limits = HttpClientLimits(max_connections=2)
    served: list[int] = []

    async with scripted(slow(1), wire) as server, server.client(limits=limits) as client:

        async def call(number: int) -> None:
            # Each gives its connection back, and asks for one again before the others have run.
            for turn in range(2):
                assert await post(client) == (200, b"ok")
                served.append(10 * turn + number)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(call, number)
                await trio.testing.wait_all_tasks_blocked()
    assert [sorted(served[at : at + 2]) for at in range(0, 12, 2)] == [
        [0, 1], [2, 3], [4, 5], [10, 11], [12, 13], [14, 15],
    ]  # fmt: skip


async def test_of_idle_connections_the_last_used_is_the_next_used(autojump_clock: object) -> None:
    seen: list[tuple[int, int]] = []

    async def script(peer: Peer) -> None:
        while True:
            size = len((await peer.request()).body)
            seen.append((size, peer.number))
            await trio.sleep(size)
            await peer.send(answer())

    async with scripted(script) as server, server.client() as client:
        async with trio.open_nursery() as nursery:
            for size in (1, 3, 2):
                nursery.start_soon(post, client, b"x" * size)
        await post(client, b"x" * 4)
    assert dict(seen)[4] == dict(seen)[3] != dict(seen)[2]


async def test_a_waiter_that_is_cancelled_has_taken_nothing(wire: Wire, autojump_clock: object) -> None:
    limits = HttpClientLimits(max_connections=1)
    async with scripted(slow(10), wire) as server, server.client(limits=limits) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, client)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(CallTimeout):
                await post(client, timeout_s=2)
            with trio.move_on_after(3):
                await post(client)
            assert trio.current_time() == 5
            assert await post(client) == (200, b"ok")
        assert trio.current_time() == 20
        assert len(server.peers) == 1


async def test_a_place_goes_to_the_next_waiter_when_connecting_fails(autojump_clock: object) -> None:
    async with scripted(slow(1)) as server:
        attempts = 0

        async def connect() -> trio.abc.Stream:
            nonlocal attempts
            attempts += 1
            await trio.sleep(1)
            if attempts < 3:
                raise OSError("not yet")
            return await server.connect()

        outcomes: list[object] = []

        async def call(client: HttpClient) -> None:
            try:
                outcomes.append(await post(client))
            except ConnectFailed as exc:
                outcomes.append(exc.why)

        limits = HttpClientLimits(max_connections=1)
        server_connect, server.connect = server.connect, connect  # type: ignore[method-assign]
        async with server.client(limits=limits) as client:
            server.connect = server_connect  # type: ignore[method-assign]
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(call, client)
        assert outcomes == ["not yet", "not yet", (200, b"ok"), (200, b"ok")]


# ---- idle connections -------------------------------------------------------------------------------


async def test_an_idle_connection_is_closed_on_time(wire: Wire, autojump_clock: object) -> None:
    gone: list[float] = []

    async def script(peer: Peer) -> None:
        try:
            while True:
                await trio.sleep(len((await peer.request()).body))
                await peer.send(answer())
        except ClientGone:
            gone.append(trio.current_time())

    async with scripted(script, wire) as server, server.client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, client, b"x")
            nursery.start_soon(post, client, b"xxx")
        assert (client.idle_connections, trio.current_time()) == (2, 3)
        await trio.sleep(100)
        assert gone == [5, 7]  # each 4 s after its last use
        assert (client.open_connections, server.live) == (0, 0)
        assert await post(client, b"xxx") == (200, b"ok")
        await trio.sleep(3.999)
        assert client.idle_connections == 1
        await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked()
        assert client.open_connections == 0


async def test_a_connection_that_expired_while_the_process_stood_still_is_not_used(
    autojump_clock: object,
) -> None:
    async with scripted(answering(answer()), "memory") as server, server.client() as client:
        assert await post(client) == (200, b"ok")
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(4)  # before anything else could run
        assert await post(client) == (200, b"ok")
        assert len(server.peers) == 2


async def test_a_connection_that_the_server_closed_is_not_used(autojump_clock: object) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer())
        await trio.sleep(1)

    async with scripted(script, "socket") as server, server.client() as client:
        for number in (1, 2, 3):
            assert await post(client) == (200, b"ok")
            assert (len(server.peers), client.idle_connections) == (number, 1)
            await trio.sleep(2)


async def test_a_connection_on_which_something_came_unasked_is_not_used(autojump_clock: object) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer())
        await trio.sleep(1)
        await peer.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await trio.sleep_forever()

    async with scripted(script, "socket") as server, server.client() as client:
        for number in (1, 2, 3):
            assert await post(client) == (200, b"ok")
            assert len(server.peers) == number
            await trio.sleep(2)


def refuse_writes(stream: trio.abc.Stream) -> None:
    """Let the next write fail before a byte is taken, which could not be seen before."""
    assert isinstance(stream, trio.SocketStream)
    stream.socket.shutdown(trio.socket.SHUT_WR)


@pytest.mark.parametrize("size", [10, 2**20])
async def test_a_request_of_which_nothing_was_taken_goes_over_another_connection(size: int) -> None:
    bodies: list[int] = []

    async def script(peer: Peer) -> None:
        while True:
            bodies.append(len((await peer.request()).body))
            await peer.send(answer())

    async with scripted(script, "socket") as server, server.client() as client:
        assert await post(client) == (200, b"ok")
        refuse_writes(server.client_ends[0])
        assert await post(client, b"x" * size) == (200, b"ok")
        assert bodies == [2, size]
        assert (len(server.peers), client.open_connections, client.idle_connections) == (2, 1, 1)


async def test_a_new_connection_that_takes_nothing_has_failed() -> None:
    async with scripted(answering(answer()), "socket") as server:

        async def connect() -> trio.abc.Stream:
            near = await server_connect()
            refuse_writes(near)
            return near

        server_connect, server.connect = server.connect, connect  # type: ignore[method-assign]
        async with server.client() as client:
            with pytest.raises(ConnectFailed, match="sending failed: Broken pipe"):
                await post(client)
            assert (len(server.peers), client.open_connections) == (1, 0)


async def test_a_request_that_may_have_arrived_is_not_sent_again(wire: Wire) -> None:
    requests = 0

    async def script(peer: Peer) -> None:
        nonlocal requests
        for turn in range(2):
            await peer.request()
            requests += 1
            if turn == 0:
                await peer.send(answer())

    async with scripted(script, wire) as server, server.client() as client:
        assert await post(client) == (200, b"ok")
        with pytest.raises(ConnectionLost, match="closed the connection without an answer"):
            await post(client)
        assert (requests, len(server.peers), client.open_connections) == (2, 1, 0)
        assert await post(client) == (200, b"ok")


# ---- the end ----------------------------------------------------------------------------------------


async def test_leaving_the_client_s_block_ends_every_request(wire: Wire, autojump_clock: object) -> None:
    losses: list[ConnectionLost] = []

    async def call(client: HttpClient, body: bytes) -> None:
        with pytest.raises(ConnectionLost) as caught:
            await post(client, body)
        losses.append(caught.value)

    limits = HttpClientLimits(max_connections=3)
    async with scripted(slow(100), wire) as server, trio.open_nursery() as nursery:
        async with server.client(limits=limits) as client:
            for size in (1, 2**20, 2, 3, 4):
                nursery.start_soon(call, client, b"x" * size)
            await trio.sleep(1)
            assert repr(client).endswith("3 connections, 0 of them idle, 2 requests waiting for one>")
        await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == 1
        assert [loss.reason for loss in losses] == [LossReason.LOCAL_CLOSE] * 5
        assert len(server.peers) == 3  # nobody who waited made another one
        assert (client.open_connections, client.idle_connections) == (0, 0)
        with pytest.raises(ConnectionLost, match="client is closed"):
            await post(client)


async def test_a_connection_that_is_made_while_the_client_ends_is_closed(autojump_clock: object) -> None:
    async with scripted(answering(answer())) as server, trio.open_nursery() as nursery:

        async def connect() -> trio.abc.Stream:
            await trio.sleep(2)
            return await server_connect()

        async def call(client: HttpClient) -> None:
            with pytest.raises(ConnectionLost, match="client is closed"):
                await post(client)

        server_connect, server.connect = server.connect, connect  # type: ignore[method-assign]
        async with server.client() as client:
            nursery.start_soon(call, client)
            await trio.sleep(1)
        assert client.open_connections == 1
        await trio.sleep(2)
        assert (client.open_connections, server.live, len(server.peers)) == (0, 0, 1)


async def test_what_the_client_s_block_raises_comes_out_as_it_is() -> None:
    async with scripted(answering(answer())) as server:
        with pytest.raises(KeyError):
            async with server.client() as client, client.request("GET", "/"):
                raise KeyError
        await trio.testing.wait_all_tasks_blocked()
        assert server.live == 0


# ---- cancelled anywhere -----------------------------------------------------------------------------


async def assert_as_good_as_new(client: HttpClient, server: ScriptedServer) -> None:
    """Nothing is in use, nothing is lost, and the next request works."""
    assert client.open_connections == client.idle_connections
    await trio.sleep(1.5)  # scripts that are asleep see the end when they wake up
    assert client.open_connections == server.live
    assert await post(client, timeout_s=5) == (200, b"ok")


@pytest.mark.parametrize("max_connections", [1, 7])
@pytest.mark.parametrize("seed", range(3))
async def test_a_storm_of_cancellations_loses_no_place(
    seed: int, max_connections: int, wire: Wire, autojump_clock: object
) -> None:
    chance = random.Random(seed)  # noqa: S311 — no secret

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await trio.sleep(chance.random() / 10)
            if chance.random() < 0.1 and len(request.body) != 2:
                return
            raw = answer(b"x" * 1000, *(["Connection: close"] if chance.random() < 0.1 else []))
            if len(request.body) == 2:  # that of the last request
                raw = answer()
            await peer.send(raw[:500])
            if chance.random() < 0.5:
                await trio.sleep(chance.random() / 10)
            await peer.send(raw[500:])

    outcomes = {"answered": 0, "cancelled": 0, "lost": 0}

    async def call(client: HttpClient) -> None:
        await trio.sleep(chance.random())
        with trio.move_on_after(chance.random() * 2) as scope:
            try:
                body = b"x" * chance.choice([3, 1000, 2**17])
                assert await post(client, body) == (200, b"x" * 1000)
                outcomes["answered"] += 1
            except ConnectionLost:
                outcomes["lost"] += 1
        outcomes["cancelled"] += scope.cancelled_caught

    async with scripted(script, wire) as server:

        async def connect() -> trio.abc.Stream:
            await trio.sleep(chance.random() / 100)
            if chance.random() < 0.05:
                raise OSError("no connection this time")
            return await server_connect()

        server_connect, server.connect = server.connect, connect  # type: ignore[method-assign]
        limits = HttpClientLimits(max_connections=max_connections)
        async with server.client(limits=limits) as client:
            async with trio.open_nursery() as nursery:
                for _ in range(300):
                    nursery.start_soon(call, client)
            assert sum(outcomes.values()) == 300
            assert min(outcomes.values()) > 0
            server.connect = server_connect  # type: ignore[method-assign]
            await trio.testing.wait_all_tasks_blocked()
            assert client.open_connections == client.idle_connections <= max_connections
            await trio.sleep(10)
            assert (client.open_connections, server.live) == (0, 0)
            chance.seed(5)
            for _ in range(20):
                try:
                    assert await post(client, b"{}") == (200, b"ok")
                except ConnectFailed:
                    continue


async def test_a_request_that_is_cancelled_before_it_began_sends_nothing_and_costs_no_connection(
    wire: Wire,
) -> None:
    seen: list[str] = []

    async def script(peer: Peer) -> None:
        while True:
            seen.append((await peer.request()).line)
            await peer.send(answer())

    async with scripted(script, wire) as server, server.client() as client:
        await post(client)
        with trio.CancelScope() as scope:
            scope.cancel()
            await post(client)
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert (len(seen), client.idle_connections) == (1, 1)
        await post(client)
        assert (len(seen), len(server.peers)) == (2, 1)


async def a_first_request(cancellable: Cancellable) -> None:
    async with scripted(answering(answer())) as server, server.client() as client:
        with cancellable:
            assert await post(client) == (200, b"ok")
        await assert_as_good_as_new(client, server)


async def a_request_over_a_kept_connection(cancellable: Cancellable) -> None:
    async with scripted(answering(answer())) as server, server.client() as client:
        await post(client)
        with cancellable:
            async with client.request("POST", "/", timeout_s=3) as response:
                assert await response.read() == b"ok"
        await assert_as_good_as_new(client, server)


async def a_large_body(cancellable: Cancellable) -> None:
    async with scripted(answering(answer())) as server, server.client() as client:
        with cancellable:
            assert await post(client, b"x" * 2**18) == (200, b"ok")
        await assert_as_good_as_new(client, server)


async def a_wait_for_a_place(cancellable: Cancellable) -> None:
    limits = HttpClientLimits(max_connections=1)
    async with scripted(slow(1)) as server, server.client(limits=limits) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, client)
            await trio.testing.wait_all_tasks_blocked()
            with cancellable:
                assert await post(client) == (200, b"ok")
            assert await post(client) == (200, b"ok")
        await assert_as_good_as_new(client, server)


async def two_that_wait_and_a_connection_that_is_dropped(cancellable: Cancellable) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await trio.sleep(1)
        await peer.send(answer(b"ok", "Connection: close"))

    limits = HttpClientLimits(max_connections=1)
    async with scripted(script) as server, server.client(limits=limits) as client:
        with cancellable, one_exception():
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(post, client)
        assert client.open_connections == 0
        await trio.sleep(2)
        assert server.live == 0
        assert await post(client) == (200, b"ok")


async def a_stream_that_is_left_early(cancellable: Cancellable) -> None:
    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if request.body:
                await peer.send(answer())
                continue
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(4):
                await peer.send(b"1\r\na\r\n")
                await trio.sleep(1)

    async with scripted(script) as server, server.client() as client:
        with cancellable:
            async with client.request("GET", "/") as response:
                for _ in range(3):
                    assert await response.receive_some() == b"a"
        await assert_as_good_as_new(client, server)


@pytest.mark.parametrize(
    "scenario",
    [
        a_first_request,
        a_request_over_a_kept_connection,
        a_large_body,
        a_wait_for_a_place,
        two_that_wait_and_a_connection_that_is_dropped,
        a_stream_that_is_left_early,
    ],
)
def test_a_request_can_be_cancelled_anywhere(scenario: Callable[[Cancellable], object]) -> None:
    for seed in range(3):
        report = cancel_everywhere(scenario, seed=seed)  # type: ignore[arg-type]
        assert report.caught >= 3


def test_a_client_can_be_cancelled_anywhere() -> None:
    async def scenario(cancellable: Cancellable) -> None:
        limits = HttpClientLimits(max_connections=2)
        async with scripted(slow(1)) as server:
            with cancellable, one_exception():
                async with server.client(limits=limits) as client, trio.open_nursery() as nursery:
                    for _ in range(5):
                        nursery.start_soon(post, client)
            await trio.sleep(1.5)
            assert server.live == 0

    assert cancel_everywhere(scenario, strategy=RandomSample(100)).caught > 10
