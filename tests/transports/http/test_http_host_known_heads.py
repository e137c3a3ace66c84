"""The h11 host answers a request whose head it knows exactly as it answered the first one like it."""

from __future__ import annotations

import h11
import pytest
from http_stage import echo, memory_client, open_memory_server, part, read_body, start
from hypothesis import given
from hypothesis import strategies as st
from raw_http import chunked, request

from stepflow_trio.transports.http import h11_heads
from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.h11_heads import KnownHeads, read_head
from stepflow_trio.transports.http.limits import HttpServerLimits


def remembered(data: bytes) -> KnownHeads:
    """The table after ``data`` came first on a connection."""
    http = h11.Connection(h11.SERVER)
    http.receive_data(data)
    event = http.next_event()
    assert isinstance(event, h11.Request)
    heads = KnownHeads()
    heads.remember(data[: len(data) - len(http.trailing_data[0])], read_head(event, HttpServerLimits()))
    return heads


POST = request("POST", "/a%20b?c=d", "X-Canary: 1", body=b"12345")


def test_a_known_head_says_what_h11_said_of_it() -> None:
    http = h11.Connection(h11.SERVER)
    http.receive_data(POST)
    event = http.next_event()
    assert isinstance(event, h11.Request)
    found = remembered(POST).whole_request(POST[:-5] + b"54321")
    assert found == (read_head(event, HttpServerLimits()), b"54321")


def test_what_an_application_does_to_its_scope_is_not_remembered() -> None:
    heads = remembered(POST)
    found = heads.whole_request(POST)
    assert found is not None
    found[0].scope["headers"].clear()
    found[0].scope["path"] = "/elsewhere"
    again = heads.whole_request(POST)
    assert again is not None
    assert again[0].scope["path"] == "/a b"
    assert again[0].scope["headers"]


@given(st.integers(0, len(POST)), st.binary(max_size=8))
def test_only_a_whole_request_and_nothing_else_is_taken_for_one(cut: int, more: bytes) -> None:
    heads = remembered(POST)
    data = POST[:cut] + more
    found = heads.whole_request(data)
    is_one = data[: len(POST) - 5] == POST[:-5] and len(data) == len(POST)
    assert (found is not None) == is_one


@pytest.mark.parametrize(
    "data",
    [
        request("POST", "/", "Transfer-Encoding: chunked") + chunked(b"abc"),
        request("POST", "/", "Connection: close", body=b"abc"),
        request("POST", "/", "Connection: keep-alive", body=b"abc"),
        request("POST", "/", "Expect: 100-continue", body=b"abc"),
        request("POST", "/", "Connection: upgrade", "Upgrade: h2c", body=b"abc"),
        request("POST", "/", "X-Long: " + "x" * h11_heads.MAX_KNOWN_HEAD_BYTES, body=b"abc"),
        request("GET"),
        request("POST", body=b"abc").replace(b"HTTP/1.1", b"HTTP/1.0"),
        request("POST", body=b"abc").replace(b"\r\n", b"\n"),
        request("POST", body=b"abc\r\n\r\n").replace(b"\r\n", b"\n", 9),
        b"POST / HTTP/1.1\nHost: l\nContent-Length: 7\n\nabc\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: l\r\nContent-Length: 7\n\r\nabc\r\n\r\n",
    ],
)
def test_a_head_that_leaves_something_to_decide_is_read_each_time(data: bytes) -> None:
    assert remembered(data).whole_request(data) is None


def test_no_more_heads_are_remembered_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h11_heads, "MAX_KNOWN_HEADS", 3)
    heads = KnownHeads()
    messages = [request("POST", f"/{n}", body=b"abc") for n in range(5)]
    for message in messages:
        http = h11.Connection(h11.SERVER)
        http.receive_data(message)
        event = http.next_event()
        assert isinstance(event, h11.Request)
        head_bytes = message[: len(message) - len(http.trailing_data[0])]
        heads.remember(head_bytes, read_head(event, HttpServerLimits()))
    assert [heads.whole_request(message) is not None for message in messages] == [
        False,
        False,
        True,
        True,
        True,
    ]


async def test_a_body_that_looks_like_the_end_of_a_head_is_a_body() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        await start(send)
        await part(send, scope["path"].encode() + body)

    head = b"POST /a HTTP/1.1\nHost: 127.0.0.1\nContent-Length: 4\n\n"
    both = head + b"\r\n\r\n" + b"GET /b HTTP/1.1\nHost: 127.0.0.1\n\n"
    async with open_memory_server(app) as server, memory_client(server) as client:
        for _ in range(2):
            await client.send(both)
            assert [(await client.response()).body for _ in range(2)] == [b"/a\r\n\r\n", b"/b"]


async def test_requests_with_known_and_unknown_heads_take_turns_on_a_connection() -> None:
    known = [b"first", b"other", b"third"]
    async with open_memory_server(echo) as server, memory_client(server) as client:
        for body in known:
            await client.send(request("POST", body=body))
            assert (await client.response()).body == body
            await client.send(request("POST", "/", "Transfer-Encoding: chunked") + chunked(b"in ", b"pieces"))
            assert (await client.response()).body == b"in pieces"
            whole = request("POST", body=body)
            await client.send(whole + whole[:-3])
            await client.send(whole[-3:])
            assert [(await client.response()).body for _ in range(2)] == [body, body]


async def test_what_a_client_sends_ahead_of_a_known_request_is_answered_after_it() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        if body == b"watch":
            # Until what is sent ahead has come, for the client to be seen as gone behind it.
            assert (await receive())["type"] == "http.disconnect"
            return
        await start(send)
        await part(send, body)

    async with open_memory_server(app) as server, memory_client(server) as client:
        for _ in range(2):
            await client.send(request("POST", body=b"12345"))
            assert (await client.response()).body == b"12345"
        await client.send(request("POST", body=b"watch"))
        await client.send(request("POST", body=b"ahead"))


async def test_a_body_that_nobody_receives_does_not_cost_the_connection() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"no")

    async with open_memory_server(app) as server, memory_client(server) as client:
        for _ in range(3):
            await client.send(request("POST", body=b"12345"))
            assert (await client.response()).body == b"no"
