"""What goes wrong around the hypercorn host: in applications, parsers and listeners, and when it stops."""

from __future__ import annotations

import errno
import logging
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
from hostile_stage import ask, memory_client, open_memory_host
from http2_stage import make_certificate, open_tls_server
from http_stage import MemoryServer, Server, echo, open_server, part, read_body, start
from raw_http import CutShort, RawClient, connected, request
from trio.testing import MockClock, wait_all_tasks_blocked

from stepflow_trio.errors import ConfigError, LocalProtocolError
from stepflow_trio.transports.http import hypercorn_host
from stepflow_trio.transports.http.asgi import Message, Receive, Scope, Send
from stepflow_trio.transports.http.hypercorn_host import serve_hypercorn
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import TlsFiles

open_memory_server = partial(open_memory_host, "hypercorn")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificate(tmp_path_factory.mktemp("tls"))


# ---- the application's mistakes


def starting(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def parting(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


MISTAKES: dict[str, list[Message]] = {
    "body first": [parting(b"abc")],
    "two starts": [starting(), starting()],
    "an unknown message": [{"type": "http.response.push"}],
    "a message of another kind": [{"type": "websocket.accept"}],
    "no status": [{"type": "http.response.start"}, parting(b"")],
    "an informational status": [starting(status=100), parting(b"")],
    "a status of two digits": [starting(status=20), parting(b"")],
    "a line break in a value": [starting((b"x", b"a\r\nset-cookie: b")), parting(b"")],
    "LF in a value": [starting((b"x", b"a\nb")), parting(b"")],
    "NUL in a value": [starting((b"x", b"a\0")), parting(b"")],
    "a line break in a name": [starting((b"x: y\r\nz", b"a")), parting(b"")],
    "no name": [starting((b"", b"a")), parting(b"")],
    "a pseudo header": [starting((b":status", b"204")), parting(b"")],
    "two lengths": [starting((b"content-length", b"1"), (b"content-length", b"1")), parting(b"a")],
    "no length": [starting((b"content-length", b"-1")), parting(b"")],
    "too much": [starting((b"content-length", b"2")), parting(b"abc")],
    "too little": [starting((b"content-length", b"4")), parting(b"abc")],
}


@pytest.mark.parametrize("http", ["1.1", "2"])
@pytest.mark.parametrize("messages", MISTAKES.values(), ids=MISTAKES)
async def test_a_mistake_in_the_answer_is_told_to_the_application_and_not_sent(
    http: str, messages: list[Message], tls: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[LocalProtocolError] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages[:-1]:
            await send(message)
        with pytest.raises(LocalProtocolError) as caught:
            await send(messages[-1])
        told.append(caught.value)

    async with open_tls_server(app, tls) as server:
        if http == "2":
            assert (await (await server.connect()).get()).status == 500
        else:
            client = RawClient(await server.connect_tls("http/1.1"))
            await client.send(request())
            assert (await client.response()).status == 500
    assert len(told) == 1
    assert "did not answer" in caplog.text


async def test_what_comes_too_late_is_told_to_the_application_and_harms_nobody() -> None:
    stale: list[tuple[Receive, Send]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stale.append((receive, send))
        await start(send)
        await part(send, b"abc")
        for message in (starting(), parting(b"more")):
            with pytest.raises(LocalProtocolError, match="complete"):
                await send(message)
        with pytest.raises(LocalProtocolError, match="complete"):
            await stale[0][1](parting(b"for another request"))
        assert (await stale[0][0]())["type"] == "http.disconnect"

    async with open_memory_server(app) as server, memory_client(server) as client:
        for _ in range(3):
            await client.send(request())
            response = await client.response()
            assert (response.status, response.body) == (200, b"abc")


async def test_an_exception_behind_the_answer_costs_nothing_but_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)
        raise ValueError("late")

    async with open_memory_server(app) as server, memory_client(server) as client:
        for _ in range(2):
            await ask(client)
            await wait_all_tasks_blocked()
    assert caplog.text.count("incident") == 2


async def test_what_an_application_raises_when_it_is_cancelled_is_logged_and_ends_no_server(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
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

    async with (
        open_memory_server(app, HttpServerLimits(drain_s=1)) as server,
        memory_client(server) as client,
    ):
        await client.send(request())
        await wait_all_tasks_blocked()
        server.stop.set()
        await server.wait_ended()
    assert "incident" in caplog.text


async def test_an_application_that_is_cancelled_in_send_has_torn_nothing(autojump_clock: MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        sent = 0
        for _ in range(5):
            with trio.move_on_after(1):
                while True:
                    await part(send, b"%05d" % sent * 10_000, more=True)
                    sent += 1
        await part(send, b"end of %d" % sent)

    async with open_memory_server(app) as server, memory_client(server, lockstep=True) as client:
        await client.send(request())
        await client.head()
        await trio.sleep(10)
        number = 0
        while not (chunk := await client.chunk()).startswith(b"end"):
            assert chunk == b"%05d" % number * 10_000
            number += 1
        assert chunk == b"end of %d" % number


async def test_an_application_that_fails_because_the_client_went_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        assert (await receive())["type"] == "http.disconnect"
        async with trio.open_nursery():
            await start(send)

    async with open_memory_server(app) as server:
        async with memory_client(server) as client:
            await client.send(request())
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
    assert not caplog.records


# ---- defects, listeners and sockets


@pytest.mark.parametrize("where", ["reading", "writing"])
async def test_a_defect_costs_one_connection(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    next_event, send_part = h11.Connection.next_event, hypercorn_host._Connection._send_part

    def fail_in_reading(connection: h11.Connection) -> Any:
        event = next_event(connection)
        if isinstance(event, h11.Request) and event.target == b"/reading":
            raise RuntimeError("a defect")
        return event

    async def fail_in_writing(connection: Any, data: bytes) -> None:
        if b"/writing" in data:
            raise RuntimeError("a defect")
        await send_part(connection, data)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 200, (b"path", scope["raw_path"]))
        await part(send, await read_body(receive))

    monkeypatch.setattr(h11.Connection, "next_event", fail_in_reading)
    monkeypatch.setattr(hypercorn_host._Connection, "_send_part", fail_in_writing)
    async with open_memory_server(app) as server, memory_client(server) as other:
        async with memory_client(server) as client:
            await client.send(request("GET", f"/{where}"))
            assert await client.is_closed()
        await ask(other)
    assert "a connection failed, incident" in caplog.text


async def test_what_has_arrived_before_the_stop_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [socket.socket() for _ in range(3)]
    drain = hypercorn_host._Server.drain

    def send_and_drain(server: Any) -> None:
        for client in clients:
            client.sendall(request("POST", body=b"in time"))
        drain(server)

    monkeypatch.setattr(hypercorn_host._Server, "drain", send_and_drain)
    async with open_server("hypercorn", echo) as server:
        for client in clients:
            client.connect(("127.0.0.1", server.port))
        async with connected(server.port) as last:  # the others were accepted before it
            await ask(last)
            server.stop.set()
            for client in clients:
                client.setblocking(False)
                async with trio.SocketStream(trio.socket.from_stdlib_socket(client)) as stream:
                    response = await RawClient(stream).response()
                    assert (response.body, response.closes) == (b"in time", True)
            assert await last.is_closed()
        await server.wait_ended()


async def test_a_unix_socket_has_clients_without_address_and_no_bound_for_each(tmp_path: Path) -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await echo(scope, receive, send)

    path = tmp_path / "socket"
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen()
    server = Server(0)
    async with trio.open_nursery() as nursery:
        limits = HttpServerLimits(max_connections_per_peer=1)
        nursery.start_soon(
            lambda: server.run(serve_hypercorn, app, [trio.SocketListener(sock)], limits=limits)
        )
        async with await trio.open_unix_socket(path) as first, await trio.open_unix_socket(path) as second:
            await ask(RawClient(first))
            await ask(RawClient(second))
        server.cancel()
    assert [scope["client"] for scope in scopes] == [None, None]


async def test_a_server_that_runs_out_of_descriptors_goes_on(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_memory_server(echo) as server:
        accept, failures = server.listener.accept, [errno.EMFILE, errno.ENFILE]

        async def fail_twice() -> Any:
            if failures:
                raise OSError(number := failures.pop(), os.strerror(number))
            return await accept()

        server.listener.accept = fail_twice  # type: ignore[method-assign]
        for _ in range(3):
            async with memory_client(server) as client:
                await ask(client)
    assert caplog.text.count("cannot accept a connection") == 2


async def test_a_listener_that_does_not_work_ends_the_server_and_closes_all() -> None:
    good, bad = (
        await trio.open_tcp_listeners(0, host="127.0.0.1"),
        await trio.open_tcp_listeners(0, host="127.0.0.1"),
    )

    async def accept() -> trio.SocketStream:
        raise OSError(errno.EINVAL, "broken")

    bad[0].accept = accept  # type: ignore[method-assign]
    with pytest.raises(OSError, match="broken"):
        await serve_hypercorn(echo, [*good, *bad], limits=HttpServerLimits(), stop=trio.Event())
    assert good[0].socket.fileno() == bad[0].socket.fileno() == -1


async def test_a_certificate_that_cannot_be_used_is_said_and_the_listeners_are_closed(tmp_path: Path) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    tls = TlsFiles(certificate=tmp_path / "none.pem", private_key=tmp_path / "none.key")
    with pytest.raises(ConfigError, match=r"none\.pem"):
        await serve_hypercorn(echo, listeners, limits=HttpServerLimits(), stop=trio.Event(), tls=tls)
    assert listeners[0].socket.fileno() == -1


async def test_dead_clients_are_noticed_by_the_system() -> None:
    accepted: list[trio.SocketStream] = []
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    accept = listener.accept

    async def accept_and_keep() -> trio.SocketStream:
        accepted.append(await accept())
        return accepted[-1]

    listener.accept = accept_and_keep  # type: ignore[method-assign]
    server = Server(0)
    async with trio.open_nursery() as nursery:
        limits = HttpServerLimits(send_timeout_s=7)

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await server.run(serve_hypercorn, echo, [listener], limits=limits, task_status=task_status)

        await nursery.start(run)
        async with connected(listener.socket.getsockname()[1]) as client:
            await ask(client)
            [stream] = accepted
            assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
            assert stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        server.cancel()


async def test_stopping_in_the_middle_of_everything_leaves_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(0.1)
        await echo(scope, receive, send)

    cut: list[bytes] = []

    async def hurry(server: MemoryServer, delay_s: float) -> None:
        await trio.sleep(delay_s)
        try:
            async with memory_client(server) as client:
                await client.send_while_possible(request("POST", body=b"abc") * 3)
                while True:
                    assert (await client.response()).body == b"abc"
        except CutShort as short:
            cut.append(short.received)
        except trio.BrokenResourceError:
            pass

    for stop_s in (0, 0.05, 0.1, 0.15, 0.2, 0.25):
        async with (
            open_memory_server(app, HttpServerLimits(drain_s=1)) as server,
            trio.open_nursery() as nursery,
        ):
            for number in range(10):
                nursery.start_soon(hurry, server, number * 0.03)
            await trio.sleep(stop_s)
            server.stop.set()
            began = trio.current_time()
            await server.wait_ended()
            assert trio.current_time() - began <= 1
    assert set(cut) == {b""}, "an answer was cut though there was time for it"
    assert not caplog.records
