"""HTTP/1.1 of the hypercorn host, in virtual time: what is not promised by every host, or not as exactly."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from hostile_stage import ask, memory_client, open_memory_host
from http2_stage import make_certificate, open_tls_server
from http_stage import echo, open_server, part, read_body, start
from raw_http import CutShort, RawClient, chunked, connected, request
from trio.testing import MockClock, wait_all_tasks_blocked

from stepflow_trio.transports.http import hypercorn_host, hypercorn_http1
from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import TlsFiles

open_memory_server = partial(open_memory_host, "hypercorn")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificate(tmp_path_factory.mktemp("tls"))


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


async def test_an_application_that_sends_without_end_leaves_turns_to_others() -> None:
    turns, turns_taken = Turns(), trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        before = turns.taken
        for _ in range(1000):
            await part(send, b"x", more=True)
        assert turns.taken - before > 900
        turns_taken.set()

    async with (
        open_server("hypercorn", app) as server,
        connected(server.port) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(turns.take)
        await client.send(request())
        with pytest.raises(CutShort):
            await client.response()
        nursery.cancel_scope.cancel()
    assert turns_taken.is_set()


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


# ---- what is read, and how


async def test_lines_may_end_in_lf_alone_and_headers_be_folded() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await echo(scope, receive, send)

    async with open_memory_server(app) as server, memory_client(server) as client:
        await client.send(b"GET / HTTP/1.1\nHost: localhost\nX: a\n  b\n\n")
        assert (await client.response()).status == 200
    assert (b"x", b"a b") in seen[0]["headers"]


async def test_connect_is_not_spoken_and_an_asterisk_is_a_path() -> None:
    async with open_memory_server(echo) as server, memory_client(server) as client:
        await client.send(request("OPTIONS", "*"))
        assert (await client.response()).status == 200
        await client.send(request("CONNECT", "localhost:80"))
        response = await client.response()
        assert (response.status, response.body) == (501, b'{"code": 501, "message": "this is not a proxy"}')


async def test_a_target_may_be_a_url_of_the_scheme_and_host(tls: TlsFiles) -> None:
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["raw_path"])
        await echo(scope, receive, send)

    async with open_tls_server(app, tls) as server:
        for target, status in (("https://localhost/x?y", 200), ("http://localhost/x", 400)):
            client = RawClient(await server.connect_tls("http/1.1"))
            await client.send(request("GET", target))
            assert (await client.response()).status == status
            await client.aclose()
    assert seen == [b"/x"]
