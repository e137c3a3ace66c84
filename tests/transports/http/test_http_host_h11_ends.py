"""The h11 host at its ends: the last moment of a connection, sockets that fail, listeners."""

from __future__ import annotations

import errno
import logging
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from http_stage import (
    MemoryListener,
    MemoryServer,
    echo,
    memory_client,
    open_memory_server,
    open_server,
    part,
    start,
)
from raw_http import CutShort, RawClient, connected, request
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.h11_connection import serve_connection
from stepflow_trio.transports.http.h11_host import serve_h11
from stepflow_trio.transports.http.h11_state import ServerState
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.wire import Wire

# The moment of the end.


async def test_what_has_arrived_before_the_stop_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [socket.socket() for _ in range(3)]
    stop = ServerState.stop

    def send_and_stop(state: ServerState) -> None:
        for client in clients:
            client.sendall(request("POST", body=b"in time"))
        stop(state)

    monkeypatch.setattr(ServerState, "stop", send_and_stop)
    async with open_server("h11", echo) as server:
        for client in clients:
            client.connect(("127.0.0.1", server.port))
        async with connected(server.port) as last:  # the others were accepted before it
            await last.send(request())
            assert (await last.response()).status == 200
            server.stop.set()
            for client in clients:
                client.setblocking(False)
                async with trio.SocketStream(trio.socket.from_stdlib_socket(client)) as stream:
                    response = await RawClient(stream).response()
                    assert response.body == b"in time"
                    assert response.closes
            assert await last.is_closed()
        await server.wait_ended()


@pytest.mark.parametrize("why", ["stop", "idle for too long"])
async def test_a_request_that_comes_in_the_moment_of_the_end_is_answered(why: str) -> None:
    state = ServerState(echo, HttpServerLimits())
    near, far = trio.testing.memory_stream_pair()
    client = RawClient(near)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, far, state)
        await wait_all_tasks_blocked()
        far.receive_stream.put_data(request("POST", body=b"abc") + b"more")
        # The connection's task is woken by now, and has not had its turn.
        if why == "stop":
            state.stop()
        for scope in state.idle:
            scope.cancel()
        response = await client.response()
        assert response.body == b"abc"
        assert response.closes
        assert await client.is_closed()
        await client.aclose()


# A socket's bytes.


def socket_streams() -> tuple[trio.SocketStream, trio.SocketStream]:
    near, far = trio.socket.socketpair()
    return trio.SocketStream(near), trio.SocketStream(far)


async def test_a_socket_that_takes_nothing_is_given_up(mock_clock: trio.testing.MockClock) -> None:
    near, far = socket_streams()
    wire = Wire(far, send_timeout_s=30)

    async def send() -> None:
        with pytest.raises(BrokenPipeError, match="30 s"):
            await wire.send(bytes(2**24))

    async with near, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked(0.01)
        mock_clock.jump(29.9)
        await wait_all_tasks_blocked()
        assert far.socket.fileno() != -1
        mock_clock.jump(0.2)
        await wait_all_tasks_blocked()
        assert far.socket.fileno() == -1


async def test_a_socket_that_takes_a_little_at_a_time_is_not_given_up(
    mock_clock: trio.testing.MockClock,
) -> None:
    near, far = socket_streams()
    wire = Wire(far, send_timeout_s=30)
    received = 0
    async with near, far, trio.open_nursery() as nursery:
        nursery.start_soon(wire.send, bytes(2**21))
        await wait_all_tasks_blocked(0.01)
        while received < 2**21:
            mock_clock.jump(25)
            received += len(await near.receive_some(2**18))
            await wait_all_tasks_blocked(0.01)
    assert mock_clock.current_time() > 100


async def test_a_large_body_is_handed_on_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    large = bytes(2**20)
    sent: list[bytes] = []
    send = Wire.send

    async def send_and_note(wire: Wire, data: bytes) -> None:
        sent.append(data)
        await send(wire, data)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, large)

    monkeypatch.setattr(Wire, "send", send_and_note)
    async with open_memory_server(app) as server, memory_client(server) as client:
        await client.send(request())
        assert (await client.response()).body == large
    assert any(data is large for data in sent)


async def test_a_closed_socket_is_not_mistaken_for_one_of_the_same_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near, far = socket_streams()
    wire = Wire(far, send_timeout_s=1)
    number = far.socket.fileno()
    another, others_end = socket.socketpair()

    async def close_meanwhile(_: object) -> None:
        await wire.close()
        os.dup2(another.fileno(), number)
        others_end.send(b"another's")

    monkeypatch.setattr(trio.lowlevel, "wait_readable", close_meanwhile)
    try:
        assert await wire.receive() == b""
        with pytest.raises(BrokenPipeError):
            await wire.send(b"for somebody else")
        others_end.setblocking(False)
        with pytest.raises(BlockingIOError):
            others_end.recv(10)
    finally:
        os.close(number)
        another.close()
        others_end.close()
        await near.aclose()


# Listeners.


async def test_a_unix_socket_has_a_path_and_clients_without_address(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await echo(scope, receive, send)

    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(str(path))
    listening.listen()
    async with trio.open_nursery() as nursery:
        limits = HttpServerLimits(max_connections_per_peer=1)
        stop = trio.Event()
        nursery.start_soon(lambda: serve_h11(app, [trio.SocketListener(listening)], limits=limits, stop=stop))
        async with await trio.open_unix_socket(path) as one, await trio.open_unix_socket(path) as two:
            for stream in (one, two):
                client = RawClient(stream)
                await client.send(request("POST", body=b"abc"))
                assert (await client.response()).body == b"abc"
        stop.set()
    assert [scope["client"] for scope in scopes] == [None, None]
    assert scopes[0]["server"] == (str(path), None)


class FailingListener(MemoryListener):
    """Fails to accept, as often as it is told, with these errors."""

    def __init__(self, *failures: OSError) -> None:
        super().__init__()
        self.failures = list(failures)
        self.closed = False

    async def accept(self) -> trio.StapledStream[Any, Any]:
        if self.failures:
            await trio.lowlevel.checkpoint()
            raise self.failures.pop(0)
        return await super().accept()

    async def aclose(self) -> None:
        self.closed = True
        await super().aclose()


async def test_a_server_that_runs_out_of_descriptors_goes_on(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    listener = FailingListener(*[OSError(errno.EMFILE, "Too many open files")] * 3)
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        nursery.start_soon(lambda: serve_h11(echo, [listener], limits=HttpServerLimits(), stop=stop))
        client = RawClient(listener.connect())
        await client.send(request("POST", body=b"abc"))
        assert (await client.response()).body == b"abc"
        await client.aclose()
        stop.set()
    assert caplog.text.count("Too many open files") == 3


async def test_a_listener_that_does_not_work_ends_the_server() -> None:
    listeners = [MemoryListener(), FailingListener(OSError(errno.EINVAL, "not listening"))]
    with pytest.raises(OSError, match="not listening"):
        await serve_h11(echo, listeners, limits=HttpServerLimits(), stop=trio.Event())
    assert listeners[1].closed


async def test_several_listeners_are_served() -> None:
    listeners = [MemoryListener(), MemoryListener()]
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        nursery.start_soon(lambda: serve_h11(echo, listeners, limits=HttpServerLimits(), stop=stop))
        for listener in listeners:
            client = RawClient(listener.connect())
            await client.send(request("POST", body=b"abc"))
            assert (await client.response()).body == b"abc"
            await client.aclose()
        stop.set()


async def test_dead_clients_are_noticed_by_the_system() -> None:
    accepted: list[trio.SocketStream] = []
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    accept = listener.accept

    async def accept_and_keep() -> trio.SocketStream:
        accepted.append(await accept())
        return accepted[-1]

    listener.accept = accept_and_keep  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        limits = HttpServerLimits(send_timeout_s=7)
        await nursery.start(
            lambda task_status: serve_h11(
                echo, [listener], limits=limits, stop=trio.Event(), task_status=task_status
            )
        )
        async with connected(listener.socket.getsockname()[1]) as client:
            await client.send(request())
            assert (await client.response()).status == 200
            [stream] = accepted
            assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
            assert stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        nursery.cancel_scope.cancel()


async def test_stopping_in_the_middle_of_everything_leaves_nothing(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(0.1)
        await echo(scope, receive, send)

    received: list[bytes] = []
    refused: list[float] = []

    async def hurry(server: MemoryServer, delay_s: float) -> None:
        await trio.sleep(delay_s)
        try:
            async with memory_client(server) as client:
                await client.send_while_possible(request("POST", body=b"abc") * 3)
                while True:
                    assert (await client.response()).body == b"abc"
        except CutShort as cut:
            received.append(cut.received)
        except trio.BrokenResourceError:
            refused.append(delay_s)

    for stop_s in (0, 0.05, 0.1, 0.15, 0.2, 0.25):
        async with (
            open_memory_server(app, HttpServerLimits(drain_s=1)) as server,
            trio.open_nursery() as nursery,
        ):
            for number in range(10):
                nursery.start_soon(hurry, server, number * 0.03)
            await trio.sleep(stop_s)
            server.stop.set()
            await server.wait_ended()
    assert set(received) == {b""}, "each answer is whole, or there is none"
    assert refused
    assert not caplog.records
