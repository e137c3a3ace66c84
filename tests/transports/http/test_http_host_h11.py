"""The h11 host: what only it promises of answers and refusals, and what applications do wrong."""

from __future__ import annotations

import time
from typing import Any

import h11
import pytest
import trio
import trio.testing
from http_stage import (
    echo,
    memory_client,
    open_memory_server,
    part,
    read_body,
    start,
)
from raw_http import CutShort, chunked, request
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.transports.http.asgi import Message, Receive, Scope, Send
from stepflow_trio.transports.http.limits import HttpServerLimits

# What only this host promises of answers and refusals.


async def test_an_answer_in_one_part_has_its_length_and_goes_out_in_one_piece() -> None:
    async with open_memory_server(echo) as server, memory_client(server) as client:
        await client.send(request("POST", body=b"12345"))
        whole = bytes(await client.stream.receive_some(10_000))
        assert b"content-length: 5\r\n" in whole
        assert b"transfer-encoding" not in whole
        assert whole.endswith(b"\r\n\r\n12345")


async def test_the_start_of_an_answer_waits_for_the_first_part_of_its_body() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 200, (b"x-canary", b"1"))
        raise ValueError

    async with open_memory_server(app) as server, memory_client(server) as client:
        await client.send(request())
        assert (await client.response()).status == 500


async def test_a_body_that_came_along_unread_does_not_cost_the_connection() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"no")

    messages = [
        request("POST", body=b"x" * 1000),
        request("POST", "/", "Transfer-Encoding: chunked") + chunked(b"abc"),
        request("GET"),
    ]
    async with open_memory_server(app) as server, memory_client(server) as client:
        for message in messages * 2:
            await client.send(message)
            response = await client.response()
            assert response.body == b"no"
            assert not response.closes
        await client.send(request("POST", "/", "Content-Length: 2") + b"1")
        response = await client.response()
        assert response.body == b"no"
        assert response.closes
        assert await client.is_closed()


STATUSES = {
    431: b"GET / HTTP/1.1\r\nHost: l\r\nX: " + b"x" * 20_000,
    400: b"GET / HTTP/1.1\r\nHost: l\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    501: b"GET / HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: gzip\r\n\r\n",
    505: b"GET / HTTP/1.2\r\nHost: l\r\n\r\n",
    413: b"POST / HTTP/1.1\r\nHost: l\r\nContent-Length: 99999999999\r\n\r\n",
}


@pytest.mark.parametrize("status", STATUSES)
async def test_a_refusal_says_why(status: int) -> None:
    async with open_memory_server(echo) as server, memory_client(server) as client:
        await client.send(STATUSES[status])
        response = await client.response()
        assert response.status == status
        assert response.headers[b"content-type"] == b"application/json"
        assert response.body.startswith(b'{"code":%d,"message":"' % status)
        assert response.closes
        assert await client.is_closed()


async def test_connect_is_not_served() -> None:
    async with open_memory_server(echo) as server, memory_client(server) as client:
        await client.send(b"CONNECT elsewhere:80 HTTP/1.1\r\nHost: elsewhere:80\r\n\r\n")
        assert (await client.response()).status == 501


async def test_an_asterisk_is_a_path() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, scope["path"].encode())

    async with open_memory_server(app) as server, memory_client(server) as client:
        await client.send(b"OPTIONS * HTTP/1.1\r\nHost: l\r\n\r\n")
        assert (await client.response()).body == b"*"


async def test_lines_may_end_in_lf_alone_and_headers_be_folded() -> None:
    headers: list[tuple[bytes, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers.extend(scope["headers"])
        await echo(scope, receive, send)

    async with open_memory_server(app) as server, memory_client(server) as client:
        await client.send(b"POST / HTTP/1.1\nHost: l\nContent-Length: 3\nX: a\n b\n\nabc")
        assert (await client.response()).body == b"abc"
    assert headers == [(b"host", b"l"), (b"content-length", b"3"), (b"x", b"a b")]


async def test_the_date_is_made_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.9
    monkeypatch.setattr(time, "time", lambda: now)
    dates: list[bytes] = []
    async with open_memory_server(echo) as server, memory_client(server) as client:
        for now in (1_700_000_000.9, 1_700_000_000.95, 1_700_000_001.0):  # noqa: B007 - the clock reads it
            await client.send(request())
            dates.append((await client.response()).headers[b"date"])
    first, second = b"Tue, 14 Nov 2023 22:13:20 GMT", b"Tue, 14 Nov 2023 22:13:21 GMT"
    assert dates == [first, first, second]


async def test_an_application_may_set_the_date_itself() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 200, (b"date", b"today"))
        await part(send, b"")

    async with open_memory_server(app) as server, memory_client(server) as client:
        await client.send(request())
        assert (await client.response()).headers[b"date"] == b"today"


# The application's mistakes.


def starting(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def parting(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


MISTAKES: dict[str, list[Message]] = {
    "body first": [parting(b"abc")],
    "two starts": [starting(), starting()],
    "an unknown message": [{"type": "http.response.push"}],
    "a message of another kind": [{"type": "websocket.accept"}],
    "an informational status": [starting(status=100), parting(b"")],
    "no status": [starting(status=20), parting(b"")],
    "a line break in a value": [starting((b"x", b"a\r\nset-cookie: b")), parting(b"")],
    "LF in a value": [starting((b"x", b"a\nb")), parting(b"")],
    "NUL in a value": [starting((b"x", b"a\0")), parting(b"")],
    "a line break in a name": [starting((b"x: y\r\nz", b"a")), parting(b"")],
    "no name": [starting((b"", b"a")), parting(b"")],
    "a name in capitals": [starting((b"X", b"a")), parting(b"")],
    "two lengths": [starting((b"content-length", b"1"), (b"content-length", b"1")), parting(b"a")],
    "no length": [starting((b"content-length", b"-1")), parting(b"")],
    "too much": [starting((b"content-length", b"2")), parting(b"abc")],
    "too little": [starting((b"content-length", b"4")), parting(b"abc")],
}


@pytest.mark.parametrize("messages", MISTAKES.values(), ids=MISTAKES)
async def test_a_mistake_in_the_answer_is_told_to_the_application_and_not_sent(
    messages: list[Message], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages[:-1]:
            await send(message)
        with pytest.raises(LocalProtocolError):
            await send(messages[-1])

    async with open_memory_server(app) as server, memory_client(server) as client:
        await client.send(request())
        assert (await client.response()).status == 500
    assert "did not answer" in caplog.text


async def test_too_late_a_message_is_told_to_the_application_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stale: list[tuple[Receive, Send]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for earlier_receive, earlier_send in stale:
            assert (await earlier_receive())["type"] == "http.disconnect"
            with pytest.raises(LocalProtocolError):
                await earlier_send(parting(b"for another request"))
        stale.append((receive, send))
        await start(send)
        await part(send, b"abc")
        for message in (starting(), parting(b"more")):
            with pytest.raises(LocalProtocolError):
                await send(message)

    async with open_memory_server(app) as server, memory_client(server) as client:
        for _ in range(3):
            await client.send(request())
            response = await client.response()
            assert (response.status, response.body) == (200, b"abc")
    assert not caplog.records


async def test_an_exception_behind_the_answer_costs_nothing_but_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)
        raise ValueError("late")

    async with open_memory_server(app) as server, memory_client(server) as client:
        for _ in range(2):
            await client.send(request("POST", body=b"abc"))
            assert (await client.response()).body == b"abc"
            await wait_all_tasks_blocked()
    assert caplog.text.count("incident") == 2


async def test_what_an_application_raises_when_it_is_cancelled_ends_no_server(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("while it was cancelled")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled)
            nursery.start_soon(trio.sleep_forever)

    limits = HttpServerLimits(drain_s=1)
    async with open_memory_server(app, limits) as server, memory_client(server) as client:
        await client.send(request())
        await wait_all_tasks_blocked()
        server.stop.set()
        await server.wait_ended()
    assert "incident" in caplog.text


async def test_a_cancelled_send_closes_the_connection(autojump_clock: trio.testing.MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"", more=True)
        with trio.move_on_after(1):
            await part(send, b"torn", more=True)
        with pytest.raises(BrokenPipeError):
            await part(send, b"behind what is torn", more=True)
        await trio.sleep(1000)  # it is not the application's end that ends the connection

    async with open_memory_server(app) as server, memory_client(server, lockstep=True) as client:
        await client.send(request())
        assert (await client.head())[0] == 200
        await trio.sleep(2)
        began = trio.current_time()
        with pytest.raises(CutShort):
            await client.take(1000)
        assert trio.current_time() == began


@pytest.mark.parametrize("watches", [False, True])
async def test_an_application_that_fails_because_the_client_went_is_not_a_failure(
    watches: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ended = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal ended
        await read_body(receive)
        if watches:
            assert (await receive())["type"] == "http.disconnect"
        try:
            async with trio.open_nursery():
                await start(send)
                while True:
                    await part(send, b"x", more=True)
        finally:
            ended += 1

    async with open_memory_server(app) as server:
        async with memory_client(server) as client:
            await client.send(request())
            if not watches:
                assert (await client.head())[0] == 200
            else:
                await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert ended == 1
    assert not caplog.records


async def test_a_client_that_went_before_its_refusal_or_continuation_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ends: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        ends.append((await receive())["type"])

    async with open_memory_server(app) as server:
        for message in (b"\0\0\r\n\r\n", request("POST", "/", "Expect: 100-continue", "Content-Length: 3")):
            async with memory_client(server) as client:
                await client.send(message)
            await wait_all_tasks_blocked()
    assert ends == ["http.disconnect"]
    assert not caplog.records


async def test_nobody_is_told_to_continue_within_an_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"go on: ", more=True)
        await part(send, await read_body(receive))

    async with open_memory_server(app) as server, memory_client(server) as client:
        await client.send(request("POST", "/", "Expect: 100-continue", "Content-Length: 3"))
        assert (await client.head())[0] == 200
        assert await client.chunk() == b"go on: "
        await wait_all_tasks_blocked()
        await client.send(b"abc")
        assert await client.chunk() == b"abc"
        assert await client.chunk() == b""


async def test_a_defect_in_the_parser_costs_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    next_event = h11.Connection.next_event

    def fail_at_times(connection: h11.Connection) -> Any:
        event = next_event(connection)
        if isinstance(event, h11.Request) and event.target == b"/defect":
            raise RuntimeError("a defect")
        return event

    monkeypatch.setattr(h11.Connection, "next_event", fail_at_times)
    async with open_memory_server(echo) as server, memory_client(server) as other:
        async with memory_client(server) as client:
            await client.send(request("GET", "/defect"))
            assert await client.is_closed()
        await other.send(request("POST", body=b"abc"))
        assert (await other.response()).body == b"abc"
    assert "incident" in caplog.text
