"""The h11 host: its times to the second, the turns that others get, and what is sent ahead."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from http_stage import (
    echo,
    memory_client,
    open_memory_server,
    open_server,
    part,
    read_body,
    start,
)
from raw_http import CutShort, chunked, connected, request
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.transports.http import h11_connection, h11_cycle
from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.limits import HttpServerLimits

# Times.


async def test_an_idle_connection_is_closed_on_time(autojump_clock: trio.testing.MockClock) -> None:
    limits = HttpServerLimits(keep_alive_s=15)
    async with open_memory_server(echo, limits) as server:
        closed_at: dict[str, float] = {}

        async def be_idle(name: str, *, from_s: float, uses: list[float]) -> None:
            await trio.sleep_until(start_s + from_s)
            async with memory_client(server) as client:
                for at_s in uses:
                    await trio.sleep_until(start_s + at_s)
                    await client.send(request("POST", body=b"abc"))
                    assert (await client.response()).body == b"abc"
                assert await client.is_closed()
                closed_at[name] = trio.current_time() - start_s

        start_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: be_idle("unused", from_s=0, uses=[]))
            nursery.start_soon(lambda: be_idle("later", from_s=4, uses=[]))
            nursery.start_soon(lambda: be_idle("used", from_s=0, uses=[3, 17.5]))
            nursery.start_soon(lambda: be_idle("much later", from_s=100, uses=[101]))
        assert closed_at == {"unused": 15, "later": 19, "used": 32.5, "much later": 116}


async def test_a_request_that_comes_at_the_last_moment_is_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limits = HttpServerLimits(keep_alive_s=15)
    async with open_memory_server(echo, limits) as server, memory_client(server) as client:
        await trio.sleep(14.999)
        await client.send(request("POST", body=b"abc"))
        response = await client.response()
        assert response.body == b"abc"
        assert not response.closes


async def test_a_slow_head_is_refused_on_time(autojump_clock: trio.testing.MockClock) -> None:
    limits = HttpServerLimits(keep_alive_s=15, header_timeout_s=10)
    async with open_memory_server(echo, limits) as server:
        for pause_s, ahead in ((14, b""), (0, request("POST", body=b"first"))):
            begun = trio.current_time()
            async with memory_client(server) as client:
                await trio.sleep(pause_s)
                await client.send(ahead + b"GET / HTTP/1.1\r\n")
                if ahead:
                    assert (await client.response()).body == b"first"
                for _ in range(9):
                    await trio.sleep(1)
                    await client.send(b"X: x\r\n")
                response = await client.response()
                assert response.status == 408
                assert trio.current_time() - begun == pause_s + 10
                assert await client.is_closed()


@pytest.mark.parametrize("chunks", [False, True])
async def test_a_body_has_the_grace_and_the_time_for_its_bytes(
    chunks: bool, autojump_clock: trio.testing.MockClock
) -> None:
    limits = HttpServerLimits(body_grace_s=10, min_body_rate=1000)

    def bytes_of(size: int) -> bytes:
        return b"%x\r\n%b\r\n" % (size, bytes(size)) if chunks else bytes(size)

    framing = "Transfer-Encoding: chunked" if chunks else "Content-Length: 50000"
    async with open_memory_server(echo, limits) as server:
        async with memory_client(server) as client:
            # At the rate, after all of the grace was used up but a moment: 50 s more.
            await client.send(request("POST", "/", framing))
            await trio.sleep(9.9)
            for _ in range(50):
                await client.send(bytes_of(1000))
                await trio.sleep(1)
            if chunks:
                await client.send(b"0\r\n\r\n")
            assert len((await client.response()).body) == 50_000
        async with memory_client(server) as client:
            began = trio.current_time()
            await client.send(request("POST", "/", framing))
            for _ in range(8):
                await client.send(bytes_of(500))
                await trio.sleep(1)
            response = await client.response()
            assert response.status == 408
            assert response.closes
            assert trio.current_time() - began == pytest.approx(10 + 4)  # four seconds' worth came
            assert await client.is_closed()


async def test_the_time_of_an_application_is_not_the_clients(autojump_clock: trio.testing.MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            await trio.sleep(100)
            with trio.move_on_after(0.5):
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message["body"]
                more = message["more_body"]
        await start(send)
        await part(send, body)

    limits = HttpServerLimits(body_grace_s=10)
    async with open_memory_server(app, limits) as server, memory_client(server) as client:
        await client.send(request("POST", "/", "Content-Length: 2") + b"a")
        await trio.sleep(1000)
        await client.send(b"b")
        assert (await client.response()).body == b"ab"
    async with open_memory_server(app, limits) as server, memory_client(server) as client:
        began = trio.current_time()
        await client.send(request("POST", "/", "Content-Length: 2"))
        assert (await client.response()).status == 408
        # Of ten seconds none was left at the 21st time.
        assert trio.current_time() - began == 20 * 100.5 + 100


async def test_a_client_that_takes_nothing_loses_its_connection_on_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ended_at: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"first", more=True)
        with pytest.raises(BrokenPipeError):
            await part(send, b"second", more=True)
        ended_at.append(trio.current_time())
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(BrokenPipeError):
            await part(send, b"third", more=True)
        await trio.sleep(1000)  # it is not the application's end that ends the connection

    limits = HttpServerLimits(send_timeout_s=30)
    async with open_memory_server(app, limits) as server, memory_client(server, lockstep=True) as client:
        await client.send(request())
        assert (await client.head())[0] == 200
        assert await client.chunk() == b"first"
        began = trio.current_time()
        await trio.sleep(60)
        assert ended_at == [began + 30]
        with pytest.raises(CutShort):
            await client.take(1000)
        assert trio.current_time() == began + 60


async def test_a_client_that_takes_a_little_keeps_its_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    large = b"x" * 10 * 2**16

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, large)

    limits = HttpServerLimits(send_timeout_s=30)
    async with open_memory_server(app, limits) as server, memory_client(server, lockstep=True) as client:
        await client.send(request())
        _, headers = await client.head()
        assert headers[b"content-length"] == b"%d" % len(large)
        body = b""
        while len(body) < len(large):
            await trio.sleep(25)
            body += await client.take(2**16)
        assert body == large


async def test_a_task_in_receive_is_told_at_once_that_the_client_has_gone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told_at: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        while (await receive())["type"] != "http.disconnect":
            pass
        told_at.append(trio.current_time())

    async with open_memory_server(app) as server:
        for ahead in (b"", request() * 5, b"\0" * 200_000):
            async with memory_client(server) as client:
                await client.send(request("POST", body=b"abc"))
                await client.send(ahead)
                await trio.sleep(1000)
                gone_at = trio.current_time()
            await wait_all_tasks_blocked()
            assert told_at == [gone_at]
            told_at.clear()


async def test_a_stopping_server_cancels_on_time(autojump_clock: trio.testing.MockClock) -> None:
    ends: dict[str, float] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await trio.sleep(float(scope["query_string"]))
            await echo(scope, receive, send)
        finally:
            ends[scope["path"]] = trio.current_time() - stopped_at

    async with (
        open_memory_server(app, HttpServerLimits(drain_s=5)) as server,
        memory_client(server) as quick,
        memory_client(server) as slow,
        memory_client(server) as idle,
    ):
        await quick.send(request("POST", "/quick?3", body=b"abc"))
        await slow.send(request("POST", "/slow?6", body=b"abc"))
        await wait_all_tasks_blocked()
        stopped_at = trio.current_time()
        server.stop.set()
        assert await idle.is_closed()
        assert trio.current_time() == stopped_at
        response = await quick.response()
        assert response.body == b"abc"
        assert response.closes
        with pytest.raises(CutShort):
            await slow.response()
        await server.wait_ended()
        assert trio.current_time() == stopped_at + 5
    assert ends == {"/quick": 3, "/slow": 5}


async def test_a_stopping_server_ends_with_its_last_answer(autojump_clock: trio.testing.MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"a", more=True)
        await trio.sleep(2)
        await part(send, b"b")

    async with open_memory_server(app, HttpServerLimits(drain_s=50)) as server:
        async with memory_client(server) as client:
            await client.send(request())
            assert (await client.head())[0] == 200
            server.stop.set()
            assert [await client.chunk(), await client.chunk(), await client.chunk()] == [b"a", b"b", b""]
            began = trio.current_time()
            assert await client.is_closed()
            assert trio.current_time() == began
        await server.wait_ended()
        assert trio.current_time() == began


async def test_a_closing_connection_is_read_for_a_while(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_server(echo) as server:
        async with memory_client(server) as client:
            await client.send(request("GET", "/", "Connection: close"))
            assert (await client.response()).status == 200
            assert await client.is_closed()  # in our direction
            began = trio.current_time()
            await trio.sleep(h11_connection.LINGER_S - 0.1)
            await client.send(b"still taken")
            await trio.sleep(0.2)
            with pytest.raises(trio.BrokenResourceError):
                await client.send(b"no more")
            assert trio.current_time() - began < h11_connection.LINGER_S + 0.2
        async with memory_client(server) as client:
            await client.send(request("GET", "/", "Connection: close"))
            assert (await client.response()).status == 200
            for _ in range(h11_connection.LINGER_BYTES // 2**16):
                await client.send(bytes(2**16))
                await wait_all_tasks_blocked()
            with pytest.raises(trio.BrokenResourceError):
                await client.send(b"no more")


# Turns.


class Turns:
    """Counts the turns that another task gets."""

    def __init__(self) -> None:
        self.taken = 0

    async def take(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            self.taken += 1


async def test_requests_sent_ahead_leave_turns_to_others() -> None:
    turns = Turns()
    async with open_server("h11", echo) as server, connected(server.port) as client:
        await client.send(request("POST", body=b"abc") * 400)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turns.take)
            for _ in range(400):
                assert (await client.response()).body == b"abc"
            nursery.cancel_scope.cancel()
        assert turns.taken >= 350


async def test_an_answer_without_end_leaves_turns_to_others_and_can_be_cancelled() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        while True:
            await part(send, b"x", more=True)

    turns = Turns()
    async with open_server("h11", app) as server, connected(server.port) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turns.take)
            await client.send(request())
            assert (await client.head())[0] == 200
            for _ in range(1000):
                assert await client.chunk() == b"x"
            nursery.cancel_scope.cancel()
        assert turns.taken > 100


async def test_tiny_chunks_leave_turns_to_others() -> None:
    async with open_memory_server(echo) as server, memory_client(server) as client:
        message = request("POST", "/", "Transfer-Encoding: chunked") + chunked(*[b"x"] * 10_000)
        turns = Turns()
        async with trio.open_nursery() as nursery:
            await client.send(message)
            nursery.start_soon(turns.take)
            assert len((await client.response()).body) == 10_000
            nursery.cancel_scope.cancel()
        assert turns.taken >= 10_000 // h11_cycle.MAX_PIECES


# What was sent ahead.


@pytest.mark.parametrize("extra", [0, 1])
async def test_what_is_sent_ahead_is_kept_up_to_a_bound(extra: int) -> None:
    release = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/next":
            await echo(scope, receive, send)
            return
        await read_body(receive)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)  # as whoever watches for the client's end does
            await release.wait()
            await start(send)
            await part(send, b"first")

    following = request("POST", "/next", body=b"x" * 60_000)
    following = request(
        "POST", "/next", body=b"x" * (60_000 + h11_cycle.MAX_AHEAD_BYTES - len(following) + extra)
    )
    async with open_memory_server(app) as server, memory_client(server) as client:
        await client.send(request("POST", body=b"abc"))
        await wait_all_tasks_blocked()
        await client.send(following)
        await wait_all_tasks_blocked()
        release.set()
        response = await client.response()
        assert response.body == b"first"
        if extra:
            assert response.closes
            assert await client.is_closed()
        else:
            assert len((await client.response()).body) == len(following) - following.index(b"x" * 100)
