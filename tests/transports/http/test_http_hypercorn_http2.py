"""HTTP/2 of the hypercorn host: that each request is on its own, whatever another one does."""

from __future__ import annotations

import logging

import pytest
import trio
from http2_stage import (
    CALM,
    CANCEL,
    INTERNAL_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    Http2Client,
    StreamReset,
    make_certificate,
    open_tls_server,
    request_head,
)
from http_stage import echo, part, read_body, seeing, start
from hyperframe.frame import (
    DataFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from raw_http import RawClient, request

from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import TlsFiles


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificate(tmp_path_factory.mktemp("tls"))


# ---- what it is for


async def test_requests_of_one_connection_are_answered_each_when_it_is_ready(tls: TlsFiles) -> None:
    second_is_answered = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/first":
            await second_is_answered.wait()
        await echo(scope, receive, send)

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        first = await client.request("POST", "/first", body=b"1")
        assert (await client.post(b"2", "/second")).body == b"2"
        assert not client.answers[first].is_complete
        second_is_answered.set()
        assert (await client.response(first)).body == b"1"


async def test_an_application_sees_what_asgi_says_of_an_http2_request(tls: TlsFiles) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await echo(scope, receive, send)

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        stream_id = await client.request("POST", "/a%20b?c=%20", (b"x-y", b"z"), body=b"body")
        answer = await client.response(stream_id)
    assert answer.status == 200
    assert b"date" in answer.headers
    assert b"server" not in answer.headers
    scope = seen[0]
    assert (scope["type"], scope["http_version"], scope["method"], scope["scheme"]) == (
        "http",
        "2",
        "POST",
        "https",
    )
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"c=%20")
    assert scope["headers"] == [(b"host", b"localhost"), (b"x-y", b"z")]
    assert scope["asgi"]["version"] == "3.0"


async def test_who_agrees_on_http1_in_tls_or_on_nothing_is_served_http1(tls: TlsFiles) -> None:
    seen: list[tuple[str, str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["scheme"], scope["http_version"]))
        await echo(scope, receive, send)

    async with open_tls_server(app, tls) as server:
        for alpn in (["http/1.1"], ["something/else", "http/1.1"], []):
            client = RawClient(await server.connect_tls(*alpn))
            for _ in range(3):
                await client.send(request("POST", body=b"hello"))
                assert (await client.response()).body == b"hello"
            await client.aclose()
    assert set(seen) == {("https", "1.1")}


async def test_the_end_of_a_tls_connection_is_told_and_cannot_be_forged(tls: TlsFiles) -> None:
    async with open_tls_server(echo, tls) as server:
        stream = await server.connect_tls("http/1.1")
        stream._https_compatible = False  # raises where close_notify is missing
        await stream.send_all(request("POST", "/", "Connection: close", body=b"hello"))
        assert (await RawClient(stream).response()).body == b"hello"
        assert await stream.receive_some(1) == b""


async def test_a_large_body_passes_both_ways_as_the_windows_allow(tls: TlsFiles) -> None:
    body = bytes(range(256)) * 2**12
    async with open_tls_server(echo, tls) as server:
        client = await server.connect()
        assert (await client.post(body)).body == body


async def test_head_and_bodiless_answers_have_no_body(tls: TlsFiles) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 204 if scope["path"] == "/none" else 200)
        await part(send, b"" if scope["path"] == "/none" else b"not for HEAD")

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        for method, target, status in (("HEAD", "/", 200), ("GET", "/none", 204)):
            answer = await client.response(await client.request(method, target))
            assert (answer.status, answer.body) == (status, b"")
        assert (await client.get()).body == b"not for HEAD"


# ---- what goes wrong in an application


async def test_an_exception_before_the_answer_is_500_with_its_incident_and_after_its_start_a_reset(
    tls: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/good":
            await echo(scope, receive, send)
            return
        if scope["path"] == "/late":
            await start(send)
            await part(send, b"some", more=True)
        if scope["path"] != "/silent":
            raise ValueError("secret")

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        for target in ("/early", "/silent"):
            answer = await client.get(target)
            assert answer.status == 500
            assert b"internal error" in answer.body
            assert b"secret" not in answer.body
            incident = answer.body.decode().split('"')[-2]
            assert incident in caplog.text
        with pytest.raises(StreamReset) as caught:
            await client.get("/late")
        assert caught.value.code == INTERNAL_ERROR
        assert (await client.get("/good")).status == 200
    assert caplog.text.count("ValueError: secret") == 2
    assert {record.levelno for record in caplog.records if "incident" in record.message} == {logging.ERROR}


async def test_an_answer_left_short_is_reset(tls: TlsFiles) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"half", more=True)

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        with pytest.raises(StreamReset) as caught:
            await client.get()
        assert caught.value.code == INTERNAL_ERROR


# ---- clients that go


async def test_a_reset_request_is_a_disconnect_at_once_and_the_others_go_on(tls: TlsFiles) -> None:
    app, begun, gone = seeing(at="/silent")
    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        silent = await client.request("POST", "/silent", body=b"x")
        await begun.wait()
        await client.reset(silent)
        with trio.fail_after(1):
            await gone.wait()
        assert (await client.post(b"still here")).body == b"still here"


async def test_a_lost_connection_is_a_disconnect_for_each_of_its_requests(tls: TlsFiles) -> None:
    begun = 0
    gone = trio.Semaphore(0)
    all_begun = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal begun
        await read_body(receive)
        begun += 1
        if begun == 3:
            all_begun.set()
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(OSError, match="closed"):
            await start(send)
        gone.release()

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        for _ in range(3):
            await client.request()
        await all_begun.wait()
        await client.aclose()
        with trio.fail_after(1):
            for _ in range(3):
                await gone.acquire()


async def test_resets_faster_than_applications_give_up_end_the_connection_alone(tls: TlsFiles) -> None:
    running = most = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await echo(scope, receive, send)
        except EOFError:
            pass
        finally:
            running -= 1

    async with open_tls_server(app, tls) as server:
        attacker, healthy = await server.connect(), await server.connect()
        assert (await healthy.get()).status == 200
        frames = []
        for _ in range(500):
            frame = attacker.head(request_head("POST", "/"), end=False)
            frames += [frame, RstStreamFrame(frame.stream_id, error_code=CANCEL)]
        await attacker.send(*frames)
        assert await attacker.wait_goaway() == CALM
        await attacker.wait_ended()
        assert (await healthy.get()).status == 200
        await trio.testing.wait_all_tasks_blocked()
    assert running == 0
    assert most <= 200


async def test_resets_at_a_human_pace_never_end_a_connection(tls: TlsFiles) -> None:
    async with open_tls_server(echo, tls) as server:
        client = await server.connect()
        for _ in range(1100):  # more than hypercorn's priorities hold
            stream_id = await client.request("POST", more=True)
            await client.reset(stream_id)
            await trio.testing.wait_all_tasks_blocked()
        assert (await client.get()).status == 200


# ---- bounds


async def test_a_body_over_the_bound_is_refused_and_its_rest_is_not_wanted(tls: TlsFiles) -> None:
    app, _, _ = seeing(at="/silent")
    async with open_tls_server(app, tls, HttpServerLimits(max_body_bytes=1000)) as server:
        client = await server.connect()
        announced = await client.request("POST", "/silent", (b"content-length", b"1001"), more=True)
        assert (await client.response(announced)).status == 413
        assert client.answers[announced].reset == NO_ERROR
        sent = await client.request("POST", "/silent", body=b"x" * 1001, more=True)
        answer = await client.response(sent)
        assert (answer.status, answer.body) == (413, b'{"error": "the body is over 1000 bytes"}')
        assert answer.reset == NO_ERROR
        # What was on its way meanwhile harms nobody.
        await client.send(DataFrame(sent, b"more"), DataFrame(announced, b"more", flags=["END_STREAM"]))
        assert (await client.post(b"x" * 1000)).body == b"x" * 1000


async def test_an_answer_before_the_bodys_end_stops_the_upload(tls: TlsFiles) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 403)
        await part(send, b"no")

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        stream_id = await client.request("POST", body=b"x" * 100_000, more=True)
        answer = await client.response(stream_id)
        assert (answer.status, answer.body) == (403, b"no")
        while answer.reset is None:
            await client.receive()
        assert answer.reset == NO_ERROR
        assert (await client.get()).status == 403


async def test_a_body_that_comes_too_slowly_is_408_and_the_others_go_on(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    limits = HttpServerLimits(body_grace_s=2, min_body_rate=1000)
    async with open_tls_server(echo, tls, limits) as server:
        client = await server.connect()
        began = trio.current_time()
        slow = await client.request("POST", "/", more=True)
        good = await client.request("POST", "/", body=b"x" * 1000, more=True)
        assert (await client.response(slow)).status == 408
        assert trio.current_time() == began + 2
        await client.send_body(good, b"y" * 10)
        assert (await client.response(good)).status == 200


async def test_an_application_may_take_its_time_with_a_body(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(100)
        await echo(scope, receive, send)

    async with open_tls_server(app, tls, HttpServerLimits(body_grace_s=2)) as server:
        client = await server.connect()
        stream_id = await client.request("POST", body=b"x" * 10_000, more=True)
        await trio.sleep(99)
        await client.send_body(stream_id, b"y")
        assert (await client.response(stream_id)).body == b"x" * 10_000 + b"y"


async def test_bodies_that_nobody_takes_hold_up_no_other_request(tls: TlsFiles) -> None:
    let_go = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/later":
            await let_go.wait()
        await echo(scope, receive, send)

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        later: list[int] = []
        for _ in range(20):
            later.append(await client.request("POST", "/later", more=True))
            await client.send_body(later[-1], b"x" * (2**16 - 1), more=True)
        assert (await client.post(b"y" * 2**16)).body == b"y" * 2**16
        let_go.set()
        for stream_id in later:
            await client.send_body(stream_id, b"z" * 2**16)
        for stream_id in later:
            assert len((await client.response(stream_id)).body) == 2**17 - 1


async def test_a_client_that_takes_no_bytes_of_an_answer_has_its_stream_reset(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    failures: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/large":
            await echo(scope, receive, send)
            return
        await start(send)
        try:
            while True:
                await part(send, b"x" * 10_000, more=True)
        except OSError as exc:
            failures.append(exc)
            raise

    async with open_tls_server(app, tls, HttpServerLimits(send_timeout_s=3)) as server:
        client = await server.connect(takes_bodies=False)
        began = trio.current_time()
        with pytest.raises(StreamReset) as caught:
            await client.get("/large")
        assert (caught.value.code, len(caught.value.received)) == (CANCEL, 2**16 - 1)
        assert trio.current_time() == began + 3
        assert len(failures) == 1
        # The connection's window is used up, not its life: with a new one it goes on.
        await client.send(WindowUpdateFrame(0, window_increment=1000))
        assert (await client.post(b"hello")).body == b"hello"


async def test_a_client_that_takes_a_little_of_an_answer_keeps_its_stream(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"x" * 2**17)

    async with open_tls_server(app, tls, HttpServerLimits(send_timeout_s=30)) as server:
        client = await server.connect(takes_bodies=False)
        stream_id = await client.request()
        for _ in range(8):
            await trio.sleep(25)
            frames = [WindowUpdateFrame(each, window_increment=2**13 + 1) for each in (0, stream_id)]
            await client.send(*frames)
        assert (await client.response(stream_id)).body == b"x" * 2**17


async def test_a_lost_client_ends_an_answer_that_waits_for_it(tls: TlsFiles) -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        try:
            while True:
                await part(send, b"x" * 10_000, more=True)
        except OSError:
            ended.set()

    async with open_tls_server(app, tls) as server:
        client = await server.connect(takes_bodies=False)
        await client.request()
        await trio.testing.wait_all_tasks_blocked()
        assert not ended.is_set()
        await client.aclose()
        with trio.fail_after(1):
            await ended.wait()


async def test_who_asks_on_and_on_and_reads_no_answer_is_not_read(tls: TlsFiles) -> None:
    pings_sent = 0

    async def ping(client: Http2Client) -> None:
        nonlocal pings_sent
        while True:
            await client.send(*[PingFrame(0, b"12345678")] * 100)
            pings_sent += 100

    async with open_tls_server(echo, tls) as server, trio.open_nursery() as nursery:
        stream = server.tls(server.listener.connect_lockstep(), "h2")
        await stream.do_handshake()
        client = Http2Client(stream)
        nursery.start_soon(ping, client)
        await client.open()
        await trio.testing.wait_all_tasks_blocked()
        assert pings_sent * 17 < 3 * 2**16
        nursery.cancel_scope.cancel()


async def test_padding_uses_up_no_window(tls: TlsFiles) -> None:
    async with open_tls_server(echo, tls) as server:
        client = await server.connect()
        stream_id = await client.request("POST", more=True)
        for _ in range(10):
            await client.send(*[DataFrame(stream_id, b"x", flags=["PADDED"], pad_length=255)] * 100)
            await trio.testing.wait_all_tasks_blocked()
        await client.send_body(stream_id, b"")
        assert (await client.response(stream_id)).body == b"x" * 1000


async def test_an_answer_waits_in_the_application_not_in_memory(tls: TlsFiles) -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await start(send)
        while True:
            await part(send, b"x" * 10_000, more=True)
            sent += 10_000

    async with open_tls_server(app, tls) as server:
        client = await server.connect(takes_bodies=False)
        stream_id = await client.request()
        while len(client.answers[stream_id].body) < 2**16 - 1:
            await client.receive()
        for number in range(50):  # each of which makes the sender look again
            await client.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}))
            await client.send(PingFrame(0, b"%08d" % number))
            await trio.testing.wait_all_tasks_blocked()
        assert sent < 2**16 + 50_000


async def test_headers_over_the_bound_are_431_and_far_over_it_the_connections_end(tls: TlsFiles) -> None:
    async with open_tls_server(echo, tls, HttpServerLimits(max_header_bytes=2000)) as server:
        client = await server.connect()
        fixed = sum(len(name) + len(value) + 4 for name, value in request_head("GET", "/"))
        fixed += len("GET/") + len("  HTTP/1.1\r\n\r\n")
        for size, status in ((2000, 200), (2001, 431)):
            stream_id = await client.request("GET", "/", (b"x", b"y" * (size - fixed - 5)))
            assert (await client.response(stream_id)).status == status
        await client.request("GET", "/", (b"x", b"y" * 8000))
        assert await client.wait_goaway() == CALM
        await client.wait_ended()
        assert (await (await server.connect()).get()).status == 200


async def test_after_its_requests_a_connection_says_so_and_ends_when_they_are_answered(tls: TlsFiles) -> None:
    let_go = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/later":
            await let_go.wait()
        await echo(scope, receive, send)

    async with open_tls_server(app, tls, HttpServerLimits(max_requests_per_connection=3)) as server:
        client = await server.connect()
        later = await client.request("POST", "/later", body=b"later")
        assert (await client.get()).status == 200
        last = await client.request()
        assert await client.wait_goaway() == NO_ERROR
        assert client.goaway is not None
        assert client.goaway.last_stream_id == last
        too_late = await client.request()
        with pytest.raises(StreamReset) as caught:
            await client.response(too_late)
        assert caught.value.code == REFUSED_STREAM
        assert (await client.response(last)).status == 200
        let_go.set()
        assert (await client.response(later)).body == b"later"
        await client.wait_ended()


async def test_an_idle_connection_is_closed_with_a_goaway_and_noise_does_not_keep_it(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_tls_server(echo, tls, HttpServerLimits(keep_alive_s=5)) as server:
        client = await server.connect()
        assert (await client.get()).status == 200
        began = trio.current_time()
        for _ in range(4):
            await trio.sleep(1)
            await client.send(PingFrame(0, b"12345678"))
        assert await client.wait_goaway() == NO_ERROR
        await client.wait_ended()
        assert trio.current_time() == began + 5


async def test_a_handshake_that_takes_too_long_ends(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_tls_server(echo, tls, HttpServerLimits(tls_handshake_timeout_s=5)) as server:
        silent = server.listener.connect()
        assert await silent.receive_some(1) == b""
        assert trio.current_time() == 5
        cleartext = server.listener.connect()
        await cleartext.send_all(request())
        assert await RawClient(cleartext).is_closed()


# ---- what is not HTTP/2, or not wanted


@pytest.mark.parametrize(
    "head",
    [
        request_head("GE\xffT", "/"),
        request_head("", "/"),
        request_head("GET POST", "/"),
        request_head("GET", "/\xff"),
        request_head("GET", "/a b"),
        request_head("GET", "relative"),
    ],
)
async def test_a_request_that_is_none_is_reset_and_the_others_go_on(
    tls: TlsFiles, head: list[tuple[bytes, bytes]]
) -> None:
    async with open_tls_server(echo, tls) as server:
        client = await server.connect()
        frame = client.head(head)
        await client.send(frame)
        with pytest.raises(StreamReset) as caught:
            await client.response(frame.stream_id)
        assert caught.value.code == PROTOCOL_ERROR
        assert (await client.get()).status == 200


@pytest.mark.parametrize("extended", [False, True])
async def test_connect_is_not_spoken(tls: TlsFiles, extended: bool) -> None:
    head = [(b":method", b"CONNECT"), (b":authority", b"localhost")]
    if extended:
        head += [(b":protocol", b"websocket"), (b":scheme", b"https"), (b":path", b"/")]
    async with open_tls_server(echo, tls) as server:
        client = await server.connect()
        frame = client.head(head, end=False)
        await client.send(frame)
        assert (await client.response(frame.stream_id)).status == 501
        assert (await client.get()).status == 200


async def test_priorities_are_ignored_however_many(tls: TlsFiles) -> None:
    async with open_tls_server(echo, tls) as server:
        client = await server.connect()
        await client.send(
            *(PriorityFrame(2 * each + 1, depends_on=0, stream_weight=7) for each in range(1, 1500))
        )
        assert (await client.get()).status == 200


# ---- its end


async def test_stop_lets_requests_finish_refuses_new_ones_and_says_so(tls: TlsFiles) -> None:
    begun, let_go = trio.Event(), trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await let_go.wait()
        await echo(scope, receive, send)

    async with open_tls_server(app, tls) as server:
        busy, idle = await server.connect(), await server.connect()
        stream_id = await busy.request("POST", body=b"in flight")
        await begun.wait()
        await trio.testing.wait_all_tasks_blocked()
        server.stop.set()
        assert await idle.wait_goaway() == NO_ERROR
        await idle.wait_ended()
        assert await busy.wait_goaway() == NO_ERROR
        refused = await busy.request()
        with pytest.raises(StreamReset) as caught:
            await busy.response(refused)
        assert caught.value.code == REFUSED_STREAM
        let_go.set()
        assert (await busy.response(stream_id)).body == b"in flight"
        await busy.wait_ended()
        await server.wait_ended()


async def test_an_answer_that_ends_while_the_server_stops_is_whole(tls: TlsFiles) -> None:
    let_go = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await part(send, b"first", more=True)
        await let_go.wait()
        await part(send, b"")

    async with open_tls_server(app, tls) as server:
        client = await server.connect()
        stream_id = await client.request()
        while not client.answers[stream_id].body:
            await client.receive()
        server.stop.set()
        await client.wait_goaway()
        let_go.set()
        assert (await client.response(stream_id)).body == b"first"
        await server.wait_ended()


async def test_after_the_drain_requests_are_cancelled(
    tls: TlsFiles, autojump_clock: trio.testing.MockClock
) -> None:
    cancelled = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal cancelled
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled += 1
            raise

    async with open_tls_server(app, tls, HttpServerLimits(drain_s=3)) as server:
        client = await server.connect()
        await client.request()
        await client.request()
        await trio.sleep(1)
        server.stop.set()
        await server.wait_ended()
        assert trio.current_time() == 4
        assert cancelled == 2
        await client.wait_ended()
