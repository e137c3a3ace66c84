"""Every host: what is not HTTP, or too much of it, is refused, and costs nobody but its sender."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing
from http_stage import echo, memory_client, open_memory_server, open_server, part, read_body, start
from raw_http import CutShort, RawClient, chunked, connected, request

from stepflow_trio.transports.http.accepting import MAX_TURNED_AWAY
from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.limits import HttpServerLimits

HOST = b"Host: localhost\r\n"

NO_HTTP = {
    "zeros": bytes(100),
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "HTTP/3.0": b"GET / HTTP/3.0\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "no version": b"GET / \r\n" + HOST + b"\r\n",
    "a space too many": b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target beyond ASCII": b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method beyond ASCII": b"G\xcbT / HTTP/1.1\r\n" + HOST + b"\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST * 2 + b"\r\n",
    "a header without colon": b"GET / HTTP/1.1\r\n" + HOST + b"header\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length : 0\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n",
    "CR in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\rb\r\n\r\n",
    "an empty name": b"GET / HTTP/1.1\r\n" + HOST + b": a\r\n\r\n",
    "a length below zero": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
    "a length with a sign": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\na",
    "a length in words": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: one\r\n\r\na",
    "a length in other digits": b"POST / HTTP/1.1\r\n" + HOST + "Content-Length: ١\r\n\r\na".encode(),
    "a length of many digits": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: %b\r\n\r\n" % (b"9" * 500),
    "two lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "two lengths in one": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 2\r\n\r\nab",
    "length and chunks": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "chunks over 1.0": b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another coding": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n",
    "a coding before chunks": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "chunks twice": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n",
    "a coding like chunks": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
}

NO_BODY = {
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "a size in words": b"three\r\nabc\r\n0\r\n\r\n",
    "a size below zero": b"-1\r\nabc\r\n0\r\n\r\n",
    "a size with a prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "a size of many digits": b"%b\r\nabc" % (b"f" * 500),
    "more than its size": b"3\r\nabcdef\r\n0\r\n\r\n",
    "no end of line": b"3\r\nabc0\r\n\r\n",
    "an endless extension": b"3;" + b"e" * 100_000,
    "an endless trailer": b"0\r\n" + b"T: t\r\n" * 100_000,
}


async def assert_still_serves(port: int) -> None:
    async with connected(port) as client:
        await client.send(request("POST", "/healthy", body=b"still here"))
        assert (await client.response()).body == b"still here"


async def refusal(client: RawClient, message: bytes) -> int:
    """Send that; the status of the refusal, or 0 where the connection was closed without one."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_while_possible, message)
        try:
            response = await client.response()
        except CutShort as cut:
            return -1 if cut.received else 0
    assert await client.is_closed()
    assert len(response.body) < 200
    return response.status


@pytest.mark.parametrize("message", NO_HTTP.values(), ids=NO_HTTP)
async def test_what_is_not_http_is_refused_before_the_application_sees_it(host: str, message: bytes) -> None:
    paths: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        paths.append(scope["path"])
        await echo(scope, receive, send)

    async with open_server(host, app) as server:
        async with connected(server.port) as client:
            assert await refusal(client, message) in (0, 400, 413, 501, 505)
        await assert_still_serves(server.port)
    assert paths == ["/healthy"]


@pytest.mark.parametrize("body", NO_BODY.values(), ids=NO_BODY)
async def test_a_body_that_is_none_is_refused_and_ends_the_request(host: str, body: bytes) -> None:
    ends: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await echo(scope, receive, send)
            ends.append("whole")
        except EOFError:
            ends.append("cut")

    async with open_server(host, app) as server:
        async with connected(server.port) as client:
            message = request("POST", "/", "Transfer-Encoding: chunked") + body
            assert await refusal(client, message) in (0, 400, 413, 431)
        await assert_still_serves(server.port)
    assert ends == ["cut", "whole"]


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_refusal_behind_an_answer_leaves_the_answer_whole(host: str, times: int) -> None:
    async with open_server(host, echo) as server, connected(server.port) as client:
        await client.send(request("POST", body=b"good") * times + b"\0\0\0\r\n\r\n")
        for _ in range(times):
            response = await client.response()
            assert (response.status, response.body) == (200, b"good")
        assert await refusal(client, b"") in (0, 400)


async def test_refusals_say_nothing_that_came_from_the_client(host: str) -> None:
    async with open_server(host, echo) as server:
        for message in (
            b"GET /canary HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: l\r\ncanary\r\n\r\n",
            b"canary / / /\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: canary\r\n\r\n",
            request("POST", "/canary", "Transfer-Encoding: chunked") + b"canary\r\n",
        ):
            async with connected(server.port) as client:
                await client.send(message)
                assert b"canary" not in await client.rest()


def headers_of(size: int) -> bytes:
    """A request whose line and headers take up that many bytes."""
    empty = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \r\n\r\n"
    return empty.replace(b"X: ", b"X: " + b"x" * (size - len(empty)))


async def test_headers_are_bounded(host: str) -> None:
    limits = HttpServerLimits(max_header_bytes=4096)
    async with open_server(host, echo, limits) as server:
        for cut in (1000, 5000):
            for size, statuses in ((4096, (200,)), (4097, (431, 0)), (50_000, (431, 0))):
                message = headers_of(size)
                assert len(message) == size
                async with connected(server.port) as client:
                    await client.send(message[:cut])
                    await client.send_while_possible(message[cut:])
                    try:
                        assert (await client.response()).status in statuses
                    except CutShort:
                        assert 0 in statuses
        await assert_still_serves(server.port)


async def test_a_body_is_bounded(host: str) -> None:
    limits = HttpServerLimits(max_body_bytes=100_000)
    sizes: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(receive)
        except EOFError:
            return
        sizes.append(len(body))
        await start(send)
        await part(send, b"%d" % len(body))

    def in_chunks(size: int) -> bytes:
        chunks = [bytes(3000)] * (size // 3000) + [bytes(size % 3000 or 1)]
        return request("POST", "/", "Transfer-Encoding: chunked") + chunked(*chunks)

    async with open_server(host, app, limits) as server:
        for message in (request("POST", body=bytes(100_000)), in_chunks(100_000)):
            async with connected(server.port) as client:
                await client.send(message)
                assert (await client.response()).body == b"100000"
        for message in (
            request("POST", body=bytes(100_001)),
            request("POST", body=bytes(1_000_000)),
            in_chunks(100_001),
            in_chunks(500_000),
        ):
            async with connected(server.port) as client, trio.open_nursery() as nursery:
                nursery.start_soon(client.send_while_possible, message)
                assert (await client.response()).status == 413
        async with connected(server.port) as client:
            # Not a byte of it needs to come for that.
            await client.send(b"POST / HTTP/1.1\r\nHost: l\r\nContent-Length: 100001\r\n\r\n")
            assert (await client.response()).status == 413
        async with connected(server.port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: l\r\nContent-Length: 99999999999999999999\r\n\r\n")
            assert (await client.response()).status in (400, 413)
    assert sizes == [100_000, 100_000]


async def test_a_client_reads_that_its_body_is_too_large_after_it_has_sent_it(host: str) -> None:
    limits = HttpServerLimits(max_body_bytes=1000)
    async with open_server(host, echo, limits) as server:
        for message in (
            request("POST", body=bytes(200_000)),
            request("POST", "/", "Transfer-Encoding: chunked") + chunked(bytes(200_000)),
        ):
            async with connected(server.port) as client:
                await client.send(message)
                assert (await client.response()).status == 413
                assert await client.is_closed()


@pytest.mark.parametrize(
    "begin",
    [b"GET / HTTP/1.1\r\nHost: l", b"G", b"\r\n"[:1]],
    ids=["in a header", "in the method", "before the method"],
)
async def test_a_slow_head_is_refused(host: str, begin: bytes) -> None:
    limits = HttpServerLimits(header_timeout_s=0.1)
    async with open_server(host, echo, limits) as server:
        async with connected(server.port) as client:
            await client.send(begin)
            assert await refusal(client, b"") in (0, 400, 408)
        await assert_still_serves(server.port)


async def test_a_slow_body_is_refused(host: str) -> None:
    limits = HttpServerLimits(body_grace_s=0.1)
    ends: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await echo(scope, receive, send)
        except EOFError:
            ends.append("cut")

    async with open_server(host, app, limits) as server:
        for headers in ("Content-Length: 10", "Transfer-Encoding: chunked"):
            async with connected(server.port) as client:
                await client.send(request("POST", "/", headers) + b"3")
                assert await refusal(client, b"") == 408
        await assert_still_serves(server.port)
    assert ends == ["cut"] * 2


async def test_an_idle_connection_is_closed(host: str) -> None:
    limits = HttpServerLimits(keep_alive_s=0.5)
    async with open_server(host, echo, limits) as server, connected(server.port) as silent:
        async with connected(server.port) as client:
            await client.send(request("POST", body=b"abc"))
            assert (await client.response()).body == b"abc"
            assert await client.rest() == b""
        assert await silent.rest() == b""


async def test_a_connection_takes_a_bounded_number_of_requests(host: str) -> None:
    limits = HttpServerLimits(max_requests_per_connection=3)
    async with open_server(host, echo, limits) as server, connected(server.port) as client:
        for number in range(3):
            await client.send(request("POST", body=b"abc"))
            response = await client.response()
            assert response.body == b"abc"
            assert response.closes == (number == 2)
        assert await client.is_closed()


async def test_connections_are_bounded(host: str) -> None:
    for limits in (HttpServerLimits(max_connections=2), HttpServerLimits(max_connections_per_peer=2)):
        async with open_server(host, echo, limits) as server:
            async with connected(server.port) as first, connected(server.port) as second:
                for client in (first, second):
                    await client.send(request("POST", body=b"in"))
                    assert (await client.response()).body == b"in"
                async with connected(server.port) as third:
                    await third.send(request("POST", "Expect: 100-continue", body=b"x" * 10_000))
                    refused = await third.response()
                    assert (refused.status, refused.closes) == (503, True)
                    assert refused.headers[b"retry-after"] == b"1"
                    assert await third.is_closed()
                for client in (first, second):
                    await client.send(request("POST", body=b"still in"))
                    assert (await client.response()).body == b"still in"
            while True:
                async with connected(server.port) as client:
                    await client.send_while_possible(request("POST", body=b"in now"))
                    response = await client.response()
                    if response.status == 200:
                        assert response.body == b"in now"
                        break
                    # The server has not noticed yet that the others left.


async def test_whoever_is_over_the_bound_and_says_nothing_is_closed_soon(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limits = HttpServerLimits(max_connections=1)
    async with open_memory_server(echo, limits) as server, memory_client(server) as first:
        await first.send(request("POST", body=b"in"))
        assert (await first.response()).body == b"in"
        async with memory_client(server) as second:
            assert await second.is_closed()
        assert trio.current_time() < 2


async def test_of_those_over_the_bound_not_all_are_told_why(autojump_clock: trio.testing.MockClock) -> None:
    limits = HttpServerLimits(max_connections=1)
    async with (
        open_memory_server(echo, limits) as server,
        memory_client(server) as first,
        AsyncExitStack() as others,
    ):
        await first.send(request("POST", body=b"in"))
        assert (await first.response()).body == b"in"
        over: list[RawClient] = []
        for _ in range(100):
            over.append(await others.enter_async_context(memory_client(server)))
            await trio.testing.wait_all_tasks_blocked()
        for number, client in enumerate(reversed(over)):
            assert await client.is_closed()
            assert (trio.current_time() > 0) == (number >= 100 - MAX_TURNED_AWAY)


async def test_a_healthy_client_is_served_beside_hostile_ones(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)

    async def flood(*_: object) -> None:
        message = request("POST", body=b"x" * 1000)
        while True:
            async with connected(server.port) as client:
                for _ in range(20):
                    await client.send_while_possible(message * 20)

    async def attack(message: bytes) -> None:
        while True:
            async with connected(server.port) as client:
                await client.send_while_possible(message)
                with trio.move_on_after(0.05):
                    await client.is_closed()

    messages = [
        *NO_HTTP.values(),
        request("POST", "/", "Transfer-Encoding: chunked") + b"1\r\na\r\n" * 10_000,
        request("POST", "/", "Transfer-Encoding: chunked") + b"f" * 1000,
        headers_of(200_000),
        b"GET / HT",
        request("GET", "/", "Expect: 100-continue", "Content-Length: 9"),
    ]
    async with open_server(host, echo) as server, trio.open_nursery() as hostile:
        for message in messages:
            hostile.start_soon(attack, message)
        hostile.start_soon(flood)
        async with connected(server.port) as client:
            for number in range(100):
                await client.send(request("POST", body=b"%d" % number))
                assert (await client.response()).body == b"%d" % number
        hostile.cancel_scope.cancel()
