"""HTTP/1.1 of the hypercorn host, in virtual time: what is not promised by every host, or not as exactly."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
from hostile_stage import ask, open_memory_host
from http2_stage import make_certificate, open_tls_server
from http_stage import MemoryServer, Server, echo, open_server, part, read_body, start
from raw_http import CutShort, RawClient, chunked, connected, request
from trio.testing import MockClock, wait_all_tasks_blocked

from stepflow_trio.errors import ConfigError, LocalProtocolError
from stepflow_trio.transports.http import hypercorn_host, hypercorn_http1
from stepflow_trio.transports.http.asgi import AsgiApp, Message, Receive, Scope, Send
from stepflow_trio.transports.http.hypercorn_host import serve_hypercorn
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import TlsFiles


@asynccontextmanager
async def open_memory_server(
    app: AsgiApp, limits: HttpServerLimits | None = None
) -> AsyncGenerator[MemoryServer]:
    async with open_memory_host("hypercorn", app, limits) as server:
        yield server


@asynccontextmanager
async def memory_client(server: MemoryServer, *, lockstep: bool = False) -> AsyncGenerator[RawClient]:
    listener = server.listener
    client = RawClient(listener.connect_lockstep() if lockstep else listener.connect())
    try:
        yield client
    finally:
        await client.aclose()


# ---- times


async def test_an_idle_connection_is_closed_on_time(autojump_clock: MockClock) -> None:
    async with open_memory_server(echo, HttpServerLimits(keep_alive_s=7)) as server:
        async with memory_client(server) as client:
            assert await client.is_closed()
            assert trio.current_time() == 7
        async with memory_client(server) as client:
            for _ in range(3):
                await trio.sleep(6)
                await ask(client)
            began = trio.current_time()
            assert await client.is_closed()
            assert trio.current_time() == began + 7


async def test_a_slow_head_is_refused_on_time_counted_from_its_first_byte(autojump_clock: MockClock) -> None:
    limits = HttpServerLimits(keep_alive_s=7, header_timeout_s=5)
    async with open_memory_server(echo, limits) as server, memory_client(server) as client:
        await ask(client)
        await trio.sleep(6)
        began = trio.current_time()
        for byte in b"GET":
            await client.send(bytes([byte]))
            await trio.sleep(1)
        assert (await client.response()).status == 408
        assert trio.current_time() == began + 5


async def test_a_head_in_pieces_behind_a_whole_request_is_timed_too(autojump_clock: MockClock) -> None:
    limits = HttpServerLimits(header_timeout_s=5)
    async with open_memory_server(echo, limits) as server, memory_client(server) as client:
        await client.send(request("POST", body=b"whole") + b"GET / HT")
        assert (await client.response()).body == b"whole"
        assert (await client.response()).status == 408
        assert trio.current_time() == 5


async def test_a_body_has_the_grace_and_the_time_for_its_bytes(autojump_clock: MockClock) -> None:
    limits = HttpServerLimits(body_grace_s=2, min_body_rate=100)
    async with open_memory_server(echo, limits) as server, memory_client(server) as client:
        await client.send(request("POST", "/", "Content-Length: 1000"))
        for _ in range(9):
            await trio.sleep(1)
            await client.send(b"x" * 99)
        # 891 bytes have come: their time is 8.91 s, and with the grace 10.91 s.
        assert (await client.response()).status == 408
        assert trio.current_time() == pytest.approx(10.91)
    async with open_memory_server(echo, limits) as server, memory_client(server) as client:
        await client.send(request("POST", "/", "Content-Length: 1000"))
        for _ in range(10):
            await trio.sleep(1)
            await client.send(b"x" * 100)
        assert len((await client.response()).body) == 1000


async def test_an_application_may_take_its_time_with_a_body(autojump_clock: MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(1000)
        await echo(scope, receive, send)

    async with (
        open_memory_server(app) as server,
        memory_client(server) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(client.send, request("POST", body=b"x" * 2**20))
        assert len((await client.response()).body) == 2**20


async def test_a_client_that_takes_nothing_loses_its_connection_on_time(autojump_clock: MockClock) -> None:
    ended_at: list[tuple[str, float]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def watch() -> None:
            assert (await receive())["type"] == "http.disconnect"
            ended_at.append(("receive", trio.current_time()))

        await read_body(receive)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await start(send)
            try:
                while True:
                    await part(send, b"x" * 10_000, more=True)
                    sent_at = trio.current_time()
            except BrokenPipeError:
                ended_at.append(("send", trio.current_time()))
            assert sent_at < trio.current_time(), "the part that waited was said to be sent"

    limits = HttpServerLimits(send_timeout_s=30)
    async with open_memory_server(app, limits) as server, memory_client(server, lockstep=True) as client:
        await client.send(request())
        assert (await client.head())[0] == 200
        await client.chunk()
        began = trio.current_time()
        await trio.sleep(60)
        assert sorted(ended_at) == [("receive", began + 30), ("send", began + 30)]
        with pytest.raises(CutShort):
            await client.take(2**20)


async def test_a_client_that_takes_a_little_keeps_its_connection(autojump_clock: MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"x" * 10 * 2**16)

    limits = HttpServerLimits(send_timeout_s=30, keep_alive_s=5)
    async with open_memory_server(app, limits) as server, memory_client(server, lockstep=True) as client:
        await client.send(request())
        await client.head()
        received = 0
        while received < 10 * 2**16:
            await trio.sleep(25)
            received += len(await client.take(2**16))
        assert await client.is_closed()  # for it was idle meanwhile, as far as requests go


async def test_a_stopping_server_cancels_on_time_and_ends_with_its_last_answer(
    autojump_clock: MockClock,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(float(scope["path"][1:]))
        await echo(scope, receive, send)

    for needed_s, taken_s in ((2, 2), (4, 3)):
        async with (
            open_memory_server(app, HttpServerLimits(drain_s=3)) as server,
            memory_client(server) as idle,
            memory_client(server) as busy,
        ):
            await ask_path(idle, "/0")
            await busy.send(request("GET", f"/{needed_s}"))
            await wait_all_tasks_blocked()
            began = trio.current_time()
            server.stop.set()
            assert await idle.is_closed()
            assert trio.current_time() == began
            if needed_s == taken_s:
                assert (await busy.response()).closes
            assert await busy.is_closed()
            await busy.aclose()
            await server.wait_ended()
            assert trio.current_time() == began + taken_s


async def ask_path(client: RawClient, path: str) -> None:
    await client.send(request("GET", path))
    assert (await client.response()).status == 200


async def test_a_closing_connection_is_read_for_a_while(autojump_clock: MockClock) -> None:
    async with open_memory_server(echo) as server:
        async with memory_client(server) as client:
            await client.send(request("GET", "/", "Connection: close"))
            assert (await client.response()).status == 200
            assert await client.is_closed()  # in our direction
            await trio.sleep(hypercorn_host.LINGER_S - 0.1)
            await client.send(b"still taken")
            await trio.sleep(0.2)
            with pytest.raises(trio.BrokenResourceError):
                await client.send(b"no more")
        async with memory_client(server) as client:
            await client.send(request("GET", "/", "Connection: close"))
            assert (await client.response()).status == 200
            for _ in range(hypercorn_host.LINGER_BYTES // 2**16):
                await client.send(bytes(2**16))
                await wait_all_tasks_blocked()
            with pytest.raises(trio.BrokenResourceError):
                await client.send(b"no more")


# ---- bounds, and other tasks' turns


class Turns:
    """Counts the turns that another task gets."""

    def __init__(self) -> None:
        self.taken = 0

    async def take(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            self.taken += 1


async def test_a_body_that_nobody_receives_waits_with_the_client() -> None:
    let_go = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await let_go.wait()
        await echo(scope, receive, send)

    pieces_sent = 0

    async def send_on(client: RawClient) -> None:
        nonlocal pieces_sent
        await client.send(request("POST", "/", f"Content-Length: {64 * 2**14}"))
        for _ in range(64):
            await client.send(bytes(2**14))
            pieces_sent += 1

    async with (
        open_memory_server(app) as server,
        memory_client(server, lockstep=True) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(send_on, client)
        await wait_all_tasks_blocked()
        assert pieces_sent == hypercorn_http1.AHEAD_BYTES // 2**14
        let_go.set()
        assert len((await client.response()).body) == 64 * 2**14


async def test_what_is_sent_ahead_is_kept_up_to_a_bound_and_the_client_is_still_watched() -> None:
    gone = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/silent":
            await read_body(receive)
            assert (await receive())["type"] == "http.disconnect"
            gone.set()
        else:
            await echo(scope, receive, send)

    async with open_memory_server(app) as server:
        async with memory_client(server) as client:
            await client.send(request("GET", "/silent"))
            await wait_all_tasks_blocked()
            for _ in range(20):
                await client.send(bytes(2**14))
                await wait_all_tasks_blocked()
        with trio.fail_after(1):
            await gone.wait()


async def test_who_sends_too_much_ahead_loses_the_connection_after_the_answer() -> None:
    let_go = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await let_go.wait()
        await echo(scope, receive, send)

    async with open_memory_server(app) as server, memory_client(server) as client:
        await client.send(request("POST", body=b"first"))
        await wait_all_tasks_blocked()
        for _ in range(5):
            await client.send(request("POST", body=bytes(2**14)))
            await wait_all_tasks_blocked()
        let_go.set()
        response = await client.response()
        assert (response.body, response.closes) == (b"first", True)
        assert await client.is_closed()


async def test_an_application_that_sends_without_end_leaves_turns_to_others_and_can_be_cancelled() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        while True:
            await part(send, b"x", more=True)

    turns = Turns()
    async with (
        open_server("hypercorn", app) as server,
        connected(server.port) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(turns.take)
        await client.send(request())
        assert (await client.head())[0] == 200
        for _ in range(1000):
            assert await client.chunk() == b"x"
        nursery.cancel_scope.cancel()
    assert turns.taken > 500


async def test_an_application_that_asks_without_end_whether_the_client_is_there_can_be_cancelled() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            await receive()

    async with open_memory_server(app) as server:
        async with memory_client(server) as client:
            await client.send(request())
            await wait_all_tasks_blocked()
        for _ in range(100):
            await trio.lowlevel.checkpoint()


async def test_tiny_chunks_leave_turns_to_others() -> None:
    turns = Turns()
    async with open_memory_server(echo) as server, memory_client(server) as client:
        message = request("POST", "/", "Transfer-Encoding: chunked") + chunked(*[b"x"] * 10_000)
        async with trio.open_nursery() as nursery:
            await client.send(message)
            nursery.start_soon(turns.take)
            assert len((await client.response()).body) == 10_000
            nursery.cancel_scope.cancel()
        assert turns.taken >= 10_000 // hypercorn_http1.EVENTS_PER_TURN


async def test_a_connection_counts_as_long_as_its_application_runs() -> None:
    let_go = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/holds-out":
            await let_go.wait()
        await echo(scope, receive, send)

    async with open_memory_server(app, HttpServerLimits(max_connections=1)) as server:
        async with memory_client(server) as client:
            await client.send(request("GET", "/holds-out"))
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        async with memory_client(server) as client:
            assert await client.is_closed()
        let_go.set()
        await wait_all_tasks_blocked()
        async with memory_client(server) as client:
            await ask(client)


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


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificate(tmp_path_factory.mktemp("tls"))


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
