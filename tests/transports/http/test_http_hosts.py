"""Every host, over real sockets: applications are given what ASGI says, clients what HTTP says."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from http_stage import echo, open_server, part, read_body, start
from raw_http import chunked, connected, request

from stepflow_trio.transports.http.asgi import Receive, Scope, Send


async def test_the_scope_has_all_that_asgi_promises(host: str) -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await echo(scope, receive, send)

    async with open_server(host, app) as server, connected(server.port) as client:
        await client.send(
            request("PUT", "/a%20b/%C3%A9?x=%201&y", "X-Twice: 1", "x-tWICE:   two words \t", body=b"")
        )
        assert (await client.response()).status == 200
        near = client.stream.socket.getsockname()
    [scope] = scopes
    assert scope["type"] == "http"
    assert scope["asgi"]["version"].startswith("3.")
    assert scope["asgi"]["spec_version"] >= "2.3"
    assert scope["http_version"] == "1.1"
    assert scope["method"] == "PUT"
    assert scope["scheme"] == "http"
    assert scope["path"] == "/a b/é"
    assert scope["raw_path"] == b"/a%20b/%C3%A9"
    assert scope["query_string"] == b"x=%201&y"
    assert scope["root_path"] == ""
    assert [tuple(header) for header in scope["headers"]] == [
        (b"host", b"localhost"),
        (b"x-twice", b"1"),
        (b"x-twice", b"two words"),
        (b"content-length", b"0"),
    ]
    assert {type(each) for header in scope["headers"] for each in header} == {bytes}
    assert tuple(scope["client"]) == near
    assert tuple(scope["server"]) == ("127.0.0.1", server.port)


async def test_a_target_may_be_a_url_of_the_host(host: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"%b %b" % (scope["raw_path"], scope["query_string"]))

    async with open_server(host, app) as server, connected(server.port) as client:
        for target, seen in [
            ("http://localhost/a?b", b"/a b"),
            ("HTTP://LOCALHOST?b/c", b"/ b/c"),
            ("http://localhost", b"/ "),
        ]:
            await client.send(request("GET", target))
            assert (await client.response()).body == seen
        await client.send(request("GET", "http://elsewhere/a"))
        assert (await client.response()).status == 400


BODY = bytes(range(256)) * 3


@pytest.mark.parametrize("cut", [1, 7, 64, 10_000])
@pytest.mark.parametrize(
    "message",
    [
        request("POST", body=BODY),
        request("POST", "/", "Transfer-Encoding: chunked") + chunked(BODY),
        request("POST", "/", "Transfer-Encoding: chunked")
        + chunked(*(BODY[i : i + 3] for i in range(0, 768, 3))),
        request("POST", "/", "transfer-encoding: Chunked")
        + b'300;name="a value"\r\n%b\r\n0\r\nA-Trailer: x\r\n\r\n' % BODY,
    ],
    ids=["length", "one chunk", "chunks", "extension and trailer"],
)
async def test_a_body_arrives_however_it_is_cut(host: str, message: bytes, cut: int) -> None:
    async with open_server(host, echo) as server, connected(server.port) as client:
        for begin in range(0, len(message), cut):
            await client.send(message[begin : begin + cut])
        assert (await client.response()).body == BODY
        await client.send(request("POST", body=b"another"))
        assert (await client.response()).body == b"another"


async def test_large_bodies_pass_both_ways(host: str) -> None:
    large = bytes(range(256)) * 2**14
    async with open_server(host, echo) as server, connected(server.port) as client:
        for message in (
            request("POST", body=large),
            request("POST", "/", "Transfer-Encoding: chunked") + chunked(large[: 2**20], large[2**20 :]),
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, message)
                assert (await client.response()).body == large


async def test_receiving_may_be_cancelled_at_any_time_and_loses_nothing(host: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            with trio.move_on_after(0.0005):
                message = await receive()
                assert message["type"] == "http.request"
                body += message["body"]
                more = message["more_body"]
            await trio.lowlevel.checkpoint()
        await start(send)
        await part(send, body)

    message = request("POST", "/", "Transfer-Encoding: chunked") + chunked(*[BODY] * 50)
    async with open_server(host, app) as server, connected(server.port) as client:
        for begin in range(0, len(message), 1000):
            await client.send(message[begin : begin + 1000])
            with trio.move_on_after(0.001):
                await trio.sleep_forever()
        assert (await client.response()).body == BODY * 50


async def test_a_connection_serves_one_request_after_the_other(host: str) -> None:
    async with open_server(host, echo) as server, connected(server.port) as client:
        for number in range(20):
            await client.send(request("POST", body=b"%d" % number))
            response = await client.response()
            assert response.body == b"%d" % number
            assert not response.closes


async def test_requests_sent_ahead_are_answered_in_order(host: str) -> None:
    calls: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(scope["path"])
        await echo(scope, receive, send)
        calls.append("answered")

    messages = [
        request("POST", "/1", body=b"one"),
        request("GET", "/2"),
        request("POST", "/3", "Transfer-Encoding: chunked") + chunked(b"th", b"ree"),
        request("POST", "/4", body=b"four"),
    ]
    async with open_server(host, app) as server, connected(server.port) as client:
        await client.send(b"".join(messages))
        assert [(await client.response()).body for _ in messages] == [b"one", b"", b"three", b"four"]
    assert calls == ["/1", "answered", "/2", "answered", "/3", "answered", "/4", "answered"]


async def test_an_answer_says_its_date_and_not_who_serves(host: str) -> None:
    async with open_server(host, echo) as server, connected(server.port) as client:
        await client.send(request("POST", body=b"12345"))
        response = await client.response()
        assert response.headers[b"date"].endswith(b" GMT")
        assert b"server" not in response.headers


async def test_headers_of_the_application_reach_the_client_in_order(host: str) -> None:
    given = [
        (b"x-b", b"2"),
        (b"set-cookie", b"a=1"),
        (b"x-a", b"1; \xe9"),
        (b"set-cookie", b"b=2"),
        (b"x-e", b""),
    ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 203, *given)
        await part(send, b"")

    async with open_server(host, app) as server, connected(server.port) as client:
        await client.send(request())
        lines = (await client.take_through(b"\r\n\r\n")).split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 203 ")
    headers = [
        (name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines[1:-2])
    ]
    assert [header for header in headers if header in given] == given


async def test_parts_of_an_answer_reach_the_client_as_they_are_sent(host: str) -> None:
    go_on = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 200, (b"content-type", b"text/event-stream"))
        await part(send, b"", more=True)
        await go_on.wait()
        await part(send, b"first", more=True)
        await part(send, b"second" * 20_000, more=True)
        await part(send, b"", more=True)
        await part(send, b"last")

    async with open_server(host, app) as server, connected(server.port) as client:
        await client.send(request())
        status, headers = await client.head()
        assert (status, headers[b"transfer-encoding"]) == (200, b"chunked")
        go_on.set()
        body = b""
        while chunk := await client.chunk():
            body += chunk
        assert body == b"first" + b"second" * 20_000 + b"last"
        await client.send(request())
        assert (await client.response()).body == body


async def test_a_streamed_answer_may_say_its_length(host: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 200, (b"content-length", b"6"))
        await part(send, b"abc", more=True)
        await part(send, b"def", more=True)
        await part(send, b"")

    async with open_server(host, app) as server, connected(server.port) as client:
        for _ in range(2):
            await client.send(request())
            response = await client.response()
            assert response.body == b"abcdef"
            assert b"transfer-encoding" not in response.headers


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("with_length", [False, True])
async def test_head_gets_headers_and_no_body(host: str, streamed: bool, with_length: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 200, *([(b"content-length", b"6")] if with_length else []))
        if streamed:
            await part(send, b"abc", more=True)
            await part(send, b"def")
        else:
            await part(send, b"abcdef")

    async with open_server(host, app) as server, connected(server.port) as client:
        for method in ("HEAD", "GET", "HEAD", "GET"):
            await client.send(request(method))
            response = await client.response(to=method)
            assert response.status == 200
            assert response.body == (b"abcdef" if method == "GET" else b"")
            if with_length:
                assert response.headers[b"content-length"] == b"6"


@pytest.mark.parametrize("status", [204, 304])
async def test_some_answers_have_no_body(host: str, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, status)
        await part(send, b"")

    async with open_server(host, app) as server, connected(server.port) as client:
        for _ in range(2):
            await client.send(request())
            response = await client.response()
            assert response.status == status
            assert b"content-length" not in response.headers
            assert b"transfer-encoding" not in response.headers


@pytest.mark.parametrize("streamed", [False, True])
async def test_http_1_0_knows_no_chunks_and_closes(host: str, streamed: bool) -> None:
    versions: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        versions.append(scope["http_version"])
        body = await read_body(receive)
        await start(send)
        await part(send, body, more=streamed)
        if streamed:
            await part(send, b"")

    async with open_server(host, app) as server, connected(server.port) as client:
        await client.send(b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc")
        response = await client.response()
        assert b"transfer-encoding" not in response.headers
        assert response.body == b"abc"
        assert await client.is_closed()
    assert versions == ["1.0"]


async def test_a_client_may_close_the_connection(host: str) -> None:
    async with open_server(host, echo) as server, connected(server.port) as client:
        await client.send(request("POST", "/", "Connection: close", body=b"abc"))
        response = await client.response()
        assert response.body == b"abc"
        assert response.closes
        assert await client.is_closed()


async def test_the_application_may_close_the_connection(host: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 200, (b"connection", b"close"))
        await part(send, b"abc")

    async with open_server(host, app) as server, connected(server.port) as client:
        await client.send(request())
        response = await client.response()
        assert response.body == b"abc"
        assert response.closes
        assert await client.is_closed()


async def test_bytes_behind_a_last_request_do_no_harm(host: str) -> None:
    async with open_server(host, echo) as server:
        for last in (request("GET", "/", "Connection: close"), request("GET", "/", version="1.0")):
            async with connected(server.port) as client:
                await client.send(last + b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"\0trailing" * 100)
                assert (await client.response()).status == 200
                assert await client.is_closed()
        async with connected(server.port) as client:
            await client.send(request("POST", body=b"still there"))
            assert (await client.response()).body == b"still there"


async def test_an_upgrade_is_not_taken_up(host: str) -> None:
    async with open_server(host, echo) as server, connected(server.port) as client:
        for _ in range(2):
            for upgrade in ("websocket", "h2c", "HTTP/9"):
                headers = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {upgrade}", "HTTP2-Settings: !")
                await client.send(request("POST", "/", *headers, body=b"as it is"))
                response = await client.response()
                assert (response.status, response.body) == (200, b"as it is")


async def test_a_client_is_told_to_continue_when_the_body_is_wanted(host: str) -> None:
    async with open_server(host, echo) as server, connected(server.port) as client:
        for _ in range(2):
            await client.send(
                b"POST / HTTP/1.1\r\nHost: l\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
            )
            status, headers = await client.head()
            assert (status, headers) == (100, {})
            await client.send(b"abc")
            response = await client.response()
            assert (response.status, response.body) == (200, b"abc")


async def test_a_client_that_does_not_wait_to_continue_is_not_told_to(host: str) -> None:
    async with open_server(host, echo) as server, connected(server.port) as client:
        await client.send(request("POST", "/", "Expect: 100-continue", body=b"abc"))
        status, _ = await client.head()
        assert status == 200


async def test_a_client_is_not_told_to_continue_what_nobody_wants(host: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 403)
        await part(send, b"no")

    async with open_server(host, app) as server, connected(server.port) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: l\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        status, _ = await client.head()
        assert status == 403
        assert b"no" in await client.take_through(b"no")


@pytest.mark.parametrize("size", [0, 10, 100_000, 2**20])
async def test_an_answer_arrives_though_nobody_received_the_body(host: str, size: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 403)
        await part(send, b"no")

    async with open_server(host, app) as server:
        async with connected(server.port) as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_while_possible, request("POST", body=bytes(size)))
                response = await client.response()
                assert (response.status, response.body) == (403, b"no")
            if response.closes:
                assert await client.is_closed()
            else:
                await client.send(request())
                assert (await client.response()).body == b"no"
        async with connected(server.port) as client:
            await client.send(request())
            assert (await client.response()).body == b"no"


async def test_receiving_after_the_answer_is_told_that_it_is_over(host: str) -> None:
    messages: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await start(send)
        await part(send, b"")
        messages.append((await receive())["type"])

    async with open_server(host, app) as server, connected(server.port) as client:
        for _ in range(2):
            await client.send(request())
            await client.response()
        await client.send(request())
        await client.response()
    assert messages[:2] == ["http.disconnect"] * 2


async def test_a_task_that_receives_is_told_when_the_answer_is_complete(host: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)

        async def watch() -> None:
            assert (await receive())["type"] == "http.disconnect"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.lowlevel.checkpoint()
            await start(send)
            await part(send, b"1", more=True)
            await part(send, b"2")

    async with open_server(host, app) as server, connected(server.port) as client:
        for _ in range(3):
            await client.send(request("POST", body=b"abc"))
            response = await client.response()
            assert (response.status, response.body) == (200, b"12")


async def test_a_silent_application_holds_up_nobody_else(host: str) -> None:
    release = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await release.wait()
        await echo(scope, receive, send)

    async with (
        open_server(host, app) as server,
        connected(server.port) as slow,
        connected(server.port) as other,
    ):
        await slow.send(request("GET", "/slow"))
        for _ in range(5):
            await other.send(request("POST", body=b"quick"))
            assert (await other.response()).body == b"quick"
        release.set()
        assert (await slow.response()).status == 200


async def test_the_application_is_called_for_requests_and_for_nothing_else(host: str) -> None:
    kinds: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kinds.append(scope["type"])
        await echo(scope, receive, send)

    async with open_server(host, app) as server:
        async with connected(server.port):
            pass
        async with connected(server.port) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: loc")
        async with connected(server.port) as client:
            await client.send(request())
            await client.response()
            await client.send(b"\r\n\r\n\0")
            await client.rest()
        server.stop.set()
        await server.wait_ended()
    assert kinds == ["http"]
