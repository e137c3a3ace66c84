"""One exchange: what the client writes, whatever form the answer has, however its bytes come and end."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

import pytest
import trio
import trio.testing
from scripted_server import URL, Peer, Wire, answer, answering, post, read_all, scripted

from stepflow_trio.errors import (
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    LocalProtocolError,
    LossReason,
)
from stepflow_trio.transports.http.bearer import RECHECK_S, BearerTokens, SecretStr
from stepflow_trio.transports.http.client import HttpHeaders, open_http_client

TOKEN = "canary-0123456789abcdef=="  # noqa: S105 — nobody's


@pytest.fixture(params=["memory", "socket"])
def wire(request: pytest.FixtureRequest) -> Wire:
    return request.param


# ---- what is written --------------------------------------------------------------------------------


async def test_a_request_is_written_as_one_piece_with_its_headers_in_order(autojump_clock: object) -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.stream.receive_some(2**16))
        await peer.send(answer(b"3"))
        await trio.sleep_forever()

    async with scripted(script) as server, server.client(bearer=SecretStr(TOKEN)) as client:
        headers = [("Content-Type", "application/json"), (b"X-Bytes", b"\xff")]
        async with client.request("POST", "/a?b=c%20d", headers=headers, body=b"[1,2]") as response:
            assert (response.status, response.headers.get(b"content-length")) == (200, b"1")
            assert await response.read() == b"3"
    head = (
        b"POST /a?b=c%20d HTTP/1.1\r\nHost: worker.test:8000\r\nAuthorization: Bearer "
        + TOKEN.encode()
        + b"\r\n"
        b"Content-Type: application/json\r\nX-Bytes: \xff\r\nContent-Length: 5\r\n\r\n"
    )
    assert [bytes(each) for each in seen] == [head + b"[1,2]"]


@pytest.mark.parametrize(
    ("method", "length"), [("GET", None), ("HEAD", None), ("POST", "0"), ("PUT", "0"), ("DELETE", None)]
)
async def test_only_a_method_that_is_about_a_body_says_that_there_is_none(
    method: str, length: str | None
) -> None:
    async def script(peer: Peer) -> None:
        request = await peer.request()
        assert request.headers.get("content-length") == length
        await peer.send(answer(b""))

    async with scripted(script) as server, server.client() as client, client.request(method, "/"):
        pass


@pytest.mark.parametrize("target", ["", "a", "http://elsewhere.test/", "/a b", "/é", "/a\r\nX: y", "*", "?a"])
async def test_a_target_that_is_no_path_is_refused_and_its_query_is_not_shown(target: str) -> None:
    async with scripted(answering(answer())) as server, server.client() as client:
        with pytest.raises(LocalProtocolError, match="a target is a path") as caught:
            async with client.request("GET", target + "?sessionId=canary\n"):
                pytest.fail("it was sent")
        assert "canary" not in str(caught.value)
    assert server.peers == []


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (("Host", "x"), "'Host' is the client's own"),
        ((b"content-length", b"1"), "b'content-length' is the client's own"),
        (("Transfer-Encoding", "chunked"), "own to set"),
        (("Connection", "close"), "own to set"),
        (("Upgrade", "h2c"), "own to set"),
        (("Authorization", "Basic canary"), "own to set"),
        (("X Y", "canary"), "'X Y', or its value"),
        (("X-Y", "canary\r\nZ: 1"), "'X-Y', or its value"),
        (("X-Y", "canary\0"), "'X-Y', or its value"),
        (("X-Y", "canäry canary"), "'X-Y', or its value"),
    ],
)
async def test_a_header_that_cannot_be_sent_is_named_and_its_value_is_not(
    header: tuple[str, str] | tuple[bytes, bytes], problem: str
) -> None:
    async with scripted(answering(answer())) as server, server.client(bearer=SecretStr(TOKEN)) as client:
        with pytest.raises(LocalProtocolError, match=problem) as caught:
            async with client.request("POST", "/", headers=[("Accept", "*/*"), header]):
                pytest.fail("it was sent")
        assert "canary" not in str(caught.value)
        assert await post(client, headers=[("Accept", "*/*")]) == (200, b"ok")


@pytest.mark.parametrize("method", ["", "GE T", "CONNECT", "GET\r\n"])
async def test_a_method_that_cannot_be_sent_is_refused(method: str) -> None:
    async with scripted(answering(answer())) as server, server.client() as client:
        with pytest.raises(LocalProtocolError):
            async with client.request(method, "/"):
                pytest.fail("it was sent")
    assert server.peers == []


@pytest.mark.parametrize(
    "echo",
    [
        "%s\r\n\r\n",
        "HTTP/1.1 %s\r\n\r\n",
        "HTTP/1.1 200 OK\r\nAuthorization Bearer %s\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx%s\r\n",
    ],
)
async def test_the_token_is_in_no_repr_no_error_and_no_log_even_if_the_server_sends_it_back(
    echo: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = "0123456789abcdef" * 2  # hexadecimal, so that it looks like a chunk's size
    async with (
        scripted(answering((echo % token).encode())) as server,
        server.client(bearer=SecretStr(token)) as client,
    ):
        with pytest.raises(ConnectionLost) as caught:
            await post(client)
        shown = [repr(client), repr(caught.value), caplog.text, *traceback.format_exception(caught.value)]
    assert not [text for text in shown if token in text]


async def test_a_token_that_is_none_is_refused_before_it_could_be_shown() -> None:
    with pytest.raises(ConfigError, match="bearer token holds a character") as caught:
        async with open_http_client(URL, bearer=SecretStr("canary token\r\nX: y")):
            pytest.fail("it was opened")
    assert "canary" not in str(caught.value)


async def test_each_request_bears_the_token_that_its_file_has_by_then(
    tmp_path: Path, autojump_clock: object
) -> None:
    seen: list[str] = []

    async def script(peer: Peer) -> None:
        while True:
            seen.append((await peer.request()).headers["authorization"])
            await peer.send(answer())

    file = tmp_path / "token"
    file.write_text("a" * 20)
    file.chmod(0o600)
    async with scripted(script) as server, server.client(bearer=BearerTokens.from_file(file)) as client:
        await post(client)
        file.write_text("b" * 20)
        await trio.sleep(RECHECK_S)
        await post(client)
        assert len(server.peers) == 1, "over the same connection"
    assert seen == ["Bearer " + "a" * 20, "Bearer " + "b" * 20]


# ---- the forms of an answer -------------------------------------------------------------------------

HEADERS = b"Content-Type: a/b\r\nX: 1\r\nx: 2\r\n"
ANSWERS: dict[str, tuple[str, bytes, int, bytes, bool]] = {
    # method, the answer's bytes, status, body, whether the connection is kept
    "length": (
        "POST",
        b"HTTP/1.1 200 OK\r\n" + HEADERS + b"Content-Length: 5\r\n\r\nhello",
        200,
        b"hello",
        True,
    ),
    "empty": ("POST", b"HTTP/1.1 202 Accepted\r\n" + HEADERS + b"Content-Length: 0\r\n\r\n", 202, b"", True),
    "chunked": (
        "POST",
        b"HTTP/1.1 200 OK\r\n" + HEADERS + b"Transfer-Encoding: chunked\r\n\r\n"
        b"3\r\nhel\r\n002;x=y\r\nlo\r\n0\r\nTrailer: 1\r\n\r\n",
        200,
        b"hello",
        True,
    ),
    "chunked, empty": (
        "POST",
        b"HTTP/1.1 200 OK\r\n" + HEADERS + b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
        200,
        b"",
        True,
    ),
    "until close": ("POST", b"HTTP/1.1 200 OK\r\n" + HEADERS + b"\r\nhello", 200, b"hello", False),
    "last": (
        "POST",
        b"HTTP/1.1 200 OK\r\n" + HEADERS + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",
        200,
        b"hello",
        False,
    ),
    "1.0": (
        "POST",
        b"HTTP/1.0 200 OK\r\n" + HEADERS + b"Content-Length: 5\r\n\r\nhello",
        200,
        b"hello",
        False,
    ),
    "head": ("HEAD", b"HTTP/1.1 200 OK\r\n" + HEADERS + b"Content-Length: 5\r\n\r\n", 200, b"", True),
    "head, chunked": (
        "HEAD",
        b"HTTP/1.1 200 OK\r\n" + HEADERS + b"Transfer-Encoding: chunked\r\n\r\n",
        200,
        b"",
        True,
    ),
    "204": ("POST", b"HTTP/1.1 204 No Content\r\n" + HEADERS + b"\r\n", 204, b"", True),
    "304": ("GET", b"HTTP/1.1 304 \r\n" + HEADERS + b"Content-Length: 5\r\n\r\n", 304, b"", True),
    "informational": (
        "POST",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\n" + HEADERS + b"Content-Length: 5\r\n\r\nhello",
        200,
        b"hello",
        True,
    ),
    "redirect": (
        "POST",
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://elsewhere.test/\r\n"
        + HEADERS
        + b"Content-Length: 0"
        b"\r\n\r\n",
        307,
        b"",
        True,
    ),
    "error": ("POST", b"HTTP/1.1 500\r\n" + HEADERS + b"Content-Length: 5\r\n\r\nwrong", 500, b"wrong", True),
    "bare line feeds": (
        "POST",
        b"HTTP/1.1 200 OK\n" + HEADERS + b"Content-Length: 5\n\nhello",
        200,
        b"hello",
        True,
    ),
    "both framings": (
        "POST",
        b"HTTP/1.1 200 OK\r\n" + HEADERS + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n0\r\n\r\n",
        200,
        b"hello",
        False,
    ),
    "garbage behind": (
        "POST",
        b"HTTP/1.1 200 OK\r\n" + HEADERS + b"Content-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n",
        200,
        b"hello",
        False,
    ),
    "garbage behind 204": ("POST", b"HTTP/1.1 204 No Content\r\n" + HEADERS + b"\r\nhello", 204, b"", False),
}


@pytest.mark.parametrize("form", ANSWERS)
@pytest.mark.parametrize("bytewise", [False, True])
async def test_every_form_of_answer_is_read_and_its_connection_kept_where_it_may_be(
    form: str, bytewise: bool, wire: Wire, autojump_clock: object
) -> None:
    method, raw, status, body, is_kept = ANSWERS[form]

    async def script(peer: Peer) -> None:
        if peer.number == 0:
            await peer.request()
            await (peer.send_bytewise(raw) if bytewise else peer.send(raw))
            if form == "until close":
                return
        await answering(answer(b"next"))(peer)

    async with scripted(script, wire) as server, server.client() as client:
        async with client.request(method, "/") as response:
            assert response.status == status
            assert response.headers.get(b"content-type") == b"a/b"
            assert response.headers.get(b"x") == b"1, 2"
            assert response.headers.get(b"y") is None
            assert b"".join(await read_all(response)) == body
            assert await response.receive_some() == b""
            assert await response.read() == b""
            await trio.sleep(1)  # what comes behind has come, too
        if wire == "memory" and "behind" in form and bytewise:
            # Only a socket can be asked what has come since: here it is found in the next answer's place.
            return
        is_kept_here = client.idle_connections == 1
        assert await post(client) == (200, b"next")
        if form.startswith("garbage") and bytewise:
            assert len(server.peers) == 2
        else:
            assert is_kept_here == is_kept
            assert len(server.peers) == (1 if is_kept else 2)
        assert client.open_connections == client.idle_connections == 1


def test_headers_are_shown_without_values() -> None:
    headers = HttpHeaders([(b"a", b"canary"), (b"b", b"2")])
    assert repr(headers) == "<HttpHeaders a, b>"


async def test_a_body_is_received_as_it_comes(autojump_clock: object) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b"one", b"two"):
            await trio.sleep(1)
            await peer.send(b"3\r\n" + piece + b"\r\n")
        await trio.sleep(1)
        await peer.send(b"0\r\n\r\n")
        await peer.wait_gone()

    async with scripted(script) as server, server.client() as client:
        async with client.request("POST", "/") as response:
            assert trio.current_time() == 0
            for piece in (b"one", b"two", b""):
                assert await response.receive_some() == piece
            assert trio.current_time() == 3
        assert client.idle_connections == 1


async def test_receiving_can_be_cancelled_and_taken_up_again(wire: Wire, autojump_clock: object) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(b"hello")[:-5])
        for byte in b"hello":
            await trio.sleep(1)
            await peer.send(bytes([byte]))
        await peer.wait_gone()

    async with scripted(script, wire) as server, server.client() as client:
        async with client.request("POST", "/") as response:
            received = b""
            while len(received) < 5:
                with trio.move_on_after(0.3):
                    received += await response.receive_some()
            assert received == b"hello"
        assert client.idle_connections == 1


async def test_a_body_is_for_the_request_s_block_only() -> None:
    async with scripted(answering(answer(b"hello"))) as server, server.client() as client:
        async with client.request("POST", "/") as response:
            pass
        with pytest.raises(LocalProtocolError, match="within its request's block"):
            await response.read()
        assert repr(response) == "<HttpResponse 200>"


async def test_a_small_answer_that_nobody_reads_does_not_cost_the_connection(wire: Wire) -> None:
    async with (
        scripted(answering(answer(b'""', status="202 Accepted")), wire) as server,
        server.client() as client,
    ):
        for _ in range(3):
            async with client.request("POST", "/", body=b"{}") as response:
                assert response.status == 202
        assert len(server.peers) == 1


async def test_leaving_before_the_end_closes_the_connection_at_once(
    wire: Wire, autojump_clock: object
) -> None:
    gone: list[float] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await peer.wait_gone()
        gone.append(trio.current_time())

    async with scripted(script, wire) as server, server.client() as client:
        async with client.request("POST", "/") as response:
            assert await response.receive_some() == b"a"
            await trio.sleep(1)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(2):
            async with client.request("POST", "/"):
                await trio.sleep_forever()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(KeyError):
            async with client.request("POST", "/"):
                raise KeyError
        await trio.testing.wait_all_tasks_blocked()
        assert gone == [1, 3, 3]
        assert (client.open_connections, server.live) == (0, 0)


# ---- answers that are none --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["length", "chunked", "until close", "informational", "204"])
async def test_an_answer_cut_at_any_byte_is_a_lost_connection_and_never_a_shorter_answer(
    form: str, wire: Wire
) -> None:
    _, raw, status, body, _ = ANSWERS[form]
    head_bytes = raw.index(b"\r\n\r\n", raw.rindex(HEADERS)) + 4
    for cut in range(len(raw)):

        async def script(peer: Peer, cut: int = cut) -> None:
            await peer.request()
            await peer.send(raw[:cut])

        async with scripted(script, wire) as server, server.client() as client:
            if form == "until close" and cut >= head_bytes:
                # Without a length there is no telling.
                assert await post(client) == (status, body[: cut - head_bytes])
                continue
            with pytest.raises(ConnectionLost) as caught:
                await post(client)
            # With sockets the request may have been on its way still: then it is a reset.
            assert caught.value.reason in (LossReason.PEER_CLOSED, LossReason.STREAM_ERROR)
            assert not isinstance(caught.value, ConnectFailed)
            if caught.value.reason is LossReason.PEER_CLOSED:
                where = (
                    "without an answer" if cut == 0 else "head" if cut < head_bytes else "body is cut short"
                )
                assert where in caught.value.detail
            assert client.open_connections == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x00\xa5 this is TLS \r\n\r\n",
        b"garbage\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 \xff\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA B: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 100 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"9" * 30 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nno colon\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_a_protocol_violation_and_costs_its_connection_only(
    raw: bytes, autojump_clock: object
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await peer.send(raw)
            await trio.sleep_forever()
        await peer.send(answer())

    async with scripted(script) as server, server.client() as client:
        with pytest.raises(ConnectionLost, match=r"no HTTP/1\.1") as caught:
            await post(client, timeout_s=1)
        assert caught.value.reason is LossReason.PROTOCOL_VIOLATION
        assert len(str(caught.value)) < 200
        assert client.open_connections == 0
        assert await post(client) == (200, b"ok")


async def test_an_exception_in_the_block_comes_out_as_it_is(wire: Wire) -> None:
    async with scripted(answering(answer()), wire) as server:
        for body in (b"", b"x" * 2**16):
            with pytest.raises(KeyError):
                async with server.client() as client, client.request("POST", "/", body=body):
                    raise KeyError
