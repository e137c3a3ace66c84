"""Every host: how clients, applications and the server itself end, and that each end costs only its own."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
import trio
from http_stage import echo, open_server, part, read_body, seeing, start
from raw_http import CutShort, RawClient, connected, request

from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.limits import HttpServerLimits

PROMPT_S = 1.0
"""Ten times what is promised: the machine may be busy."""


def reset(client: RawClient) -> None:
    """Close the connection with a reset."""
    assert isinstance(client.stream, trio.SocketStream)
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.stream.socket.close()


# The client goes.


@pytest.mark.parametrize("how", ["closes", "resets", "closes its sending side"])
@pytest.mark.parametrize(
    "ahead",
    [b"", b"GET / HT", request("POST", body=b"ahead") * 3, bytes(1000) * 100, b"x" * 300_000],
    ids=["nothing", "half a request", "requests", "zeros", "much"],
)
async def test_a_silent_application_is_told_that_the_client_has_gone(
    host: str, how: str, ahead: bytes
) -> None:
    app, begun, gone = seeing(at="/silent")
    async with open_server(host, app) as server:
        async with connected(server.port) as client:
            await client.send(request("POST", "/silent", body=b"abc"))
            await begun.wait()
            if ahead:
                with trio.move_on_after(0.2):  # a host may leave the rest unread
                    await client.send(ahead)
            if how == "closes":
                await client.aclose()
            elif how == "resets":
                reset(client)
            else:
                assert isinstance(client.stream, trio.SocketStream)
                await client.stream.send_eof()
            with trio.fail_after(PROMPT_S):
                await gone.wait()
        async with connected(server.port) as client:
            await client.send(request("POST", body=b"next"))
            assert (await client.response()).body == b"next"


@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
async def test_the_application_is_told_that_the_rest_of_a_body_will_not_come(host: str, framing: str) -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await read_body(receive)
        except EOFError:
            assert (await receive())["type"] == "http.disconnect"
            ended.set()

    async with open_server(host, app) as server:
        async with connected(server.port) as client:
            await client.send(request("POST", "/", framing) + b"3\r\nabc\r\n"[:8])
        with trio.fail_after(PROMPT_S):
            await ended.wait()


async def test_sending_to_a_client_that_has_gone_ends_soon_and_does_no_harm(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/stream":
            await echo(scope, receive, send)
            return
        await read_body(receive)
        await start(send)
        await part(send, b"begun", more=True)
        while (await receive())["type"] != "http.disconnect":
            pass
        try:
            for _ in range(100):
                await part(send, b"x" * 100_000, more=True)
            await part(send, b"")
        finally:
            ended.set()

    async with open_server(host, app) as server:
        async with connected(server.port) as client:
            await client.send(request("GET", "/stream"))
            assert (await client.head())[0] == 200
        with trio.fail_after(PROMPT_S):
            await ended.wait()
        async with connected(server.port) as client:
            await client.send(request("POST", body=b"next"))
            assert (await client.response()).body == b"next"
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_a_client_that_does_not_read_loses_its_connection(host: str) -> None:
    ended: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/stream":
            await echo(scope, receive, send)
            return
        await read_body(receive)

        async def stream() -> None:
            await start(send)
            try:
                for _ in range(10_000):
                    await part(send, b"x" * 100_000, more=True)
            except OSError:
                ended.append("send")
            nursery.cancel_scope.cancel()

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            ended.append("receive")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream)
            nursery.start_soon(watch)

    limits = HttpServerLimits(send_timeout_s=0.3)
    async with open_server(host, app, limits) as server, connected(server.port) as client:
        await client.send(request("GET", "/stream"))
        while not ended:
            async with connected(server.port) as other:
                await other.send(request("POST", body=b"meanwhile"))
                assert (await other.response()).body == b"meanwhile"
        with pytest.raises(CutShort):
            await client.response()


# The application fails.


class CanaryError(Exception):
    pass


async def raise_plainly() -> None:
    raise CanaryError("canary: the secret")


async def raise_in_a_group() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_plainly)
        nursery.start_soon(trio.sleep_forever)


@pytest.mark.parametrize("fail", [raise_plainly, raise_in_a_group])
async def test_an_exception_before_the_answer_is_a_500(
    host: str, fail: Callable[[], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/ok":
            await echo(scope, receive, send)
            return
        await read_body(receive)
        await fail()

    async with open_server(host, app) as server:
        async with connected(server.port) as client:
            await client.send(request("POST", body=b"abc"))
            assert (await client.head())[0] == 500
            assert b"canary" not in await client.rest()
        async with connected(server.port) as client:
            await client.send(request("HEAD"))
            assert (await client.response(to="HEAD")).status == 500
            assert await client.is_closed()
        async with connected(server.port) as client:
            await client.send(request("POST", "/ok", body=b"next"))
            assert (await client.response()).body == b"next"
    errors = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(errors) == 2
    for error in errors:
        assert "incident" in error.getMessage()
        assert error.exc_info is not None
    assert "CanaryError" in caplog.text


@pytest.mark.parametrize("framing", ["chunks", "length", "1.0"])
@pytest.mark.parametrize("fails", [False, True])
async def test_an_answer_that_ends_too_early_is_seen_to_be_cut(
    host: str, framing: str, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/ok":
            await echo(scope, receive, send)
            return
        await read_body(receive)
        await start(send, 200, *([(b"content-length", b"10")] if framing == "length" else []))
        await part(send, b"canary", more=True)
        if fails:
            await raise_plainly()

    async with open_server(host, app) as server:
        async with connected(server.port) as client:
            await client.send(request(version="1.0" if framing == "1.0" else "1.1"))
            with pytest.raises(CutShort):
                await client.response()
        async with connected(server.port) as client:
            await client.send(request("POST", "/ok", body=b"next"))
            assert (await client.response()).body == b"next"
    [error] = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert "incident" in error.getMessage()


async def test_an_application_that_does_not_answer_is_a_500(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)

    async with open_server(host, app) as server, connected(server.port) as client:
        await client.send(request())
        assert (await client.head())[0] == 500
    assert "incident" in caplog.text


async def test_one_failure_among_many_requests_costs_no_other(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    together = trio.Event()
    waiting = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 50:
            together.set()
        await together.wait()
        if scope["path"] == "/7":
            await raise_in_a_group()
        await echo(scope, receive, send)

    statuses: dict[int, int] = {}

    async def ask(number: int) -> None:
        async with connected(server.port) as client:
            await client.send(request("POST", f"/{number}", body=b"abc"))
            statuses[number] = (await client.response()).status

    async with open_server(host, app) as server, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(ask, number)
    assert statuses == {number: 500 if number == 7 else 200 for number in range(50)}


# The server stops.


async def test_a_stopping_server_closes_idle_connections_and_ends(host: str) -> None:
    async with (
        open_server(host, echo, HttpServerLimits(drain_s=20)) as server,
        connected(server.port) as used,
        connected(server.port) as unused,
    ):
        await used.send(request("POST", body=b"abc"))
        assert (await used.response()).body == b"abc"
        server.stop.set()
        with trio.fail_after(5):
            await server.wait_ended()
        assert await used.is_closed()
        assert await unused.is_closed()


async def test_a_stopping_server_answers_what_is_in_flight_and_takes_no_more(host: str) -> None:
    begun, release = trio.Event(), trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await release.wait()
        await echo(scope, receive, send)

    async with open_server(host, app) as server, connected(server.port) as client:
        await client.send(request("POST", body=b"abc"))
        await begun.wait()
        server.stop.set()
        while True:
            try:
                async with connected(server.port):
                    await trio.lowlevel.checkpoint()
            except OSError:
                break
        assert not server.ended
        release.set()
        response = await client.response()
        assert response.body == b"abc"
        assert response.closes
        await client.aclose()
        await server.wait_ended()


@pytest.mark.parametrize("drain_s", [0, 0.2])
async def test_a_stopping_server_waits_no_longer_than_it_may(host: str, drain_s: float) -> None:
    begun = {path: trio.Event() for path in ("/silent", "/body", "/stream")}
    cancelled: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun[scope["path"]].set()
        try:
            if scope["path"] == "/silent":
                await trio.sleep_forever()
            if scope["path"] == "/body":
                await read_body(receive)
            await start(send)
            while True:
                await part(send, b"x" * 100_000, more=True)
        except trio.Cancelled:
            cancelled.append(scope["path"])
            raise

    async with (
        open_server(host, app, HttpServerLimits(drain_s=drain_s)) as server,
        connected(server.port) as silent,
        connected(server.port) as body,
        connected(server.port) as stream,
        connected(server.port) as head,
    ):
        await silent.send(request("GET", "/silent"))
        await body.send(request("POST", "/body", "Content-Length: 9"))
        await stream.send(request("GET", "/stream"))
        await head.send(b"GET / HTTP/1.1\r\nHo")
        for event in begun.values():
            await event.wait()
        started = trio.current_time()
        server.stop.set()
        await server.wait_ended()
        assert trio.current_time() - started < drain_s + 1 + PROMPT_S
        for client in (silent, body, stream, head):
            with pytest.raises(CutShort):
                await client.response()
    assert {"/silent", "/stream"} <= set(cancelled)


async def test_a_cancelled_server_is_gone_at_once(host: str) -> None:
    begun = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/":
            await echo(scope, receive, send)
            return
        begun.set()
        await start(send)
        while True:
            await part(send, b"x" * 100_000, more=True)

    async with (
        open_server(host, app) as server,
        connected(server.port) as idle,
        connected(server.port) as stalled,
    ):
        await idle.send(request())
        assert (await idle.response()).status == 200
        await stalled.send(request("GET", "/stream"))
        await begun.wait()
        with trio.fail_after(PROMPT_S):
            server.cancel()
            await server.wait_ended()
        with trio.fail_after(PROMPT_S):
            assert await idle.is_closed()
            with pytest.raises(CutShort):
                await stalled.response()
        await idle.aclose()
        await stalled.aclose()
        [again] = await trio.open_tcp_listeners(server.port, host="127.0.0.1")
        await again.aclose()
