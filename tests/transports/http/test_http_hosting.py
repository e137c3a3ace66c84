"""Where a server listens, who is kept out before it does, and which host speaks."""

from __future__ import annotations

import os
import socket
import stat
import sys
import types
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from stepflow_trio.errors import BindFailed, ConfigError
from stepflow_trio.transports.http.asgi import AsgiApp, Receive, Scope, Send
from stepflow_trio.transports.http.bearer import BearerTokens
from stepflow_trio.transports.http.hosting import (
    FdBind,
    HttpHost,
    TcpBind,
    UnixBind,
    open_http_host,
    parse_bind,
)
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import HttpSecurity, TlsFiles

TOKENS = HttpSecurity(bearer=BearerTokens("canary-0123456789abcdef"))


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


HAS_IPV6 = has_ipv6()


async def greet(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


async def never(*_: object) -> None:
    raise AssertionError("this must not be called")


class FakeHost:
    """Stands for both hosts: notes what it is given, and answers every request with what the app says."""

    def __init__(self) -> None:
        self.name = ""
        self.options: dict[str, Any] = {}
        self.app: AsgiApp = never
        self.sockets: list[trio.socket.SocketType] = []
        self.drained = False
        self.crash: Exception | None = None

    def serving_as(self, name: str) -> Callable[..., Any]:
        async def serve(
            app: AsgiApp,
            listeners: Sequence[trio.SocketListener],
            *,
            stop: trio.Event,
            task_status: trio.TaskStatus[None],
            **options: Any,
        ) -> None:
            self.name, self.app, self.options = name, app, options
            self.sockets = [listener.socket for listener in listeners]
            try:
                task_status.started()
                if self.crash:
                    raise self.crash
                await stop.wait()
                await trio.sleep(options["limits"].drain_s)
                self.drained = True
            finally:
                for each in self.sockets:
                    each.close()

        return serve


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """Takes the place of both hosts."""
    fake = FakeHost()
    for name in ("h11", "hypercorn"):
        module = types.ModuleType(name)
        setattr(module, f"serve_{name}", fake.serving_as(name))
        monkeypatch.setitem(sys.modules, f"stepflow_trio.transports.http.{name}_host", module)
    return fake


@asynccontextmanager
async def opened(**options: Any) -> AsyncGenerator[HttpHost]:
    limits = HttpServerLimits(drain_s=0)
    async with open_http_host(greet, limits=limits, **options) as host:
        yield host


# ---- what a bind says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bind", "place"),
    [
        ("127.0.0.1:0", TcpBind("127.0.0.1", 0)),
        ("0.0.0.0:65535", TcpBind("0.0.0.0", 65535)),  # noqa: S104 — it is only read
        ("localhost:8080", TcpBind("localhost", 8080)),
        ("worker-1.internal:8080", TcpBind("worker-1.internal", 8080)),
        ("[::1]:0", TcpBind("::1", 0)),
        ("[::]:8080", TcpBind("::", 8080)),
        ("[fe80::1%eth0]:8080", TcpBind("fe80::1%eth0", 8080)),
        ("unix:/run/worker.sock", UnixBind("/run/worker.sock")),
        ("unix:/with: colon", UnixBind("/with: colon")),
        ("fd://3", FdBind(3)),
    ],
)
def test_a_bind_is_read(bind: str, place: object) -> None:
    assert parse_bind(bind) == place


def test_a_relative_path_is_that_of_the_current_directory() -> None:
    assert parse_bind("unix:worker.sock") == UnixBind(str(Path.cwd() / "worker.sock"))


@pytest.mark.parametrize(
    ("bind", "message"),
    [
        ("", "it takes host:port"),
        ("8080", "name the address too: 127.0.0.1:8080 for this machine alone, 0.0.0.0:8080 for every one"),
        (":8080", "name the address too: 127.0.0.1:8080"),
        ("*:8080", "name the address too: 127.0.0.1:8080"),
        ("127.0.0.1", "it names no port: 127.0.0.1:0 takes a free one"),
        ("localhost", "it takes host:port"),
        ("localhost:", "it takes host:port"),
        ("localhost:http", "it takes host:port"),
        ("localhost:-1", "it takes host:port"),
        ("localhost:８０", "it takes host:port"),
        ("localhost:65536", "ports go up to 65535"),
        ("localhost:80800000", "ports go up to 65535"),
        ("::1:8080", "an IPv6 address stands in brackets: [::1]:8080"),
        ("[::1]", "it takes host:port"),
        ("[localhost]:80", "it takes host:port"),
        ("[:::1]:80", "it takes host:port"),
        ("http://localhost:8080", "it takes host:port, not a URL"),
        ("local host:80", "it takes host:port"),
        ("me@localhost:80", "it takes host:port"),
        ("unix:", "a path follows unix:"),
        ("unix:/a\0b", "a path follows unix:"),
        ("fd://", "the number of a descriptor follows fd://"),
        ("fd://x", "the number of a descriptor follows fd://"),
        ("fd://-1", "the number of a descriptor follows fd://"),
        ("fd:3x", "the number of a descriptor follows fd://"),
        ("fd://99999999999999999999", "the number of a descriptor follows fd://"),
    ],
)
async def test_a_bind_that_is_not_written_as_one_says_what_to_write(bind: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        async with open_http_host(never, bind=bind):
            raise AssertionError
    assert str(caught.value).startswith(f"bind is {bind!r}; ")
    assert message in str(caught.value)


# ---- who could connect ------------------------------------------------------------------------------

OPEN_BINDS = ["0.0.0.0:0", pytest.param("[::]:0", marks=pytest.mark.skipif(not HAS_IPV6, reason="no IPv6"))]
LOCAL_BINDS = [
    "127.0.0.1:0",
    "127.0.0.2:0",
    "localhost:0",
    pytest.param("[::1]:0", marks=pytest.mark.skipif(not HAS_IPV6, reason="no IPv6")),
]


@pytest.mark.parametrize("bind", OPEN_BINDS)
async def test_an_address_that_others_can_reach_is_refused_unless_they_must_prove_who_they_are(
    bind: str, fake: FakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError) as caught:
        async with opened(bind=bind):
            raise AssertionError
    for way_out in (bind, "bearer", "client_ca", "127.0.0.1", "allow_insecure_bind=True"):
        assert way_out in str(caught.value)
    assert not fake.name
    async with opened(bind=bind, security=TOKENS):
        assert fake.name == "hypercorn"
    assert not caplog.records
    async with opened(bind=bind, allow_insecure_bind=True):
        assert fake.name == "hypercorn"
    assert "open to other machines" in caplog.text


async def test_client_certificates_are_proof_enough_but_a_servers_own_is_not(
    fake: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepflow_trio.transports.http.hosting.server_ssl_context", lambda tls: None)
    files = {"certificate": tmp_path / "c", "private_key": tmp_path / "k"}
    with pytest.raises(ConfigError, match="client_ca"):
        async with opened(bind="0.0.0.0:0", tls=TlsFiles(**files)):
            raise AssertionError
    mutual = TlsFiles(**files, client_ca=tmp_path / "ca")
    async with opened(bind="0.0.0.0:0", tls=mutual):
        assert fake.options["tls"] is mutual


@pytest.mark.parametrize("bind", LOCAL_BINDS)
async def test_an_address_of_this_machine_alone_needs_no_proof(bind: str, fake: FakeHost) -> None:
    async with opened(bind=bind) as host:
        assert fake.name == "h11"
        assert host.port == fake.sockets[0].getsockname()[1] > 0
        assert host.url == f"http://{bind.removesuffix(':0')}:{host.port}"


async def test_an_address_for_all_is_found_on_this_machine_by_its_loopback_address(fake: FakeHost) -> None:
    async with opened(bind="0.0.0.0:0", security=TOKENS) as host:
        assert host.url == f"http://127.0.0.1:{host.port}"
    if HAS_IPV6:
        async with opened(bind="[::]:0", security=TOKENS) as host:
            assert host.url == f"http://[::1]:{host.port}"


async def test_a_name_is_judged_by_its_address(fake: FakeHost) -> None:
    class Resolver(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
            if host == b"unknown.internal":
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            address = {b"mine.internal": "127.0.0.2", b"open.internal": "0.0.0.0"}[host]  # noqa: S104
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        async def getnameinfo(self, *_: Any) -> Any:
            raise AssertionError

    trio.socket.set_custom_hostname_resolver(Resolver())
    async with opened(bind="mine.internal:0") as host:
        assert fake.sockets[0].getsockname()[0] == "127.0.0.2"
        assert host.url == f"http://mine.internal:{host.port}"
    with pytest.raises(ConfigError, match="other machines can reach"):
        async with opened(bind="open.internal:0"):
            raise AssertionError
    with pytest.raises(BindFailed, match="no address: Name or service not known") as caught:
        async with opened(bind="unknown.internal:0"):
            raise AssertionError
    assert caught.value.bind == "unknown.internal:0"
    with pytest.raises(BindFailed, match="no address"):
        async with opened(bind=f"{'a' * 64}.internal:0"):
            raise AssertionError


async def test_the_application_is_guarded_and_by_default_too(fake: FakeHost) -> None:
    async def status(*headers: tuple[bytes, bytes]) -> int:
        told: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            told.append(message)

        server = fake.sockets[0].getsockname()
        scope = {"type": "http", "path": "/", "scheme": "http", "server": server, "headers": headers}
        await fake.app(scope, receive, send)
        return told[0]["status"]

    async with opened() as host:
        assert await status((b"host", f"localhost:{host.port}".encode())) == 200
        assert await status((b"host", b"evil.example")) == 421
    async with opened(security=TOKENS) as host:
        assert await status((b"host", f"localhost:{host.port}".encode())) == 401


# ---- which host -------------------------------------------------------------------------------------


async def test_the_host_is_the_one_that_is_asked_for(fake: FakeHost) -> None:
    async with opened(host="hypercorn"):
        assert fake.name == "hypercorn"
        assert fake.options["tls"] is None
    async with opened(host="h11", bind="0.0.0.0:0", security=TOKENS):
        assert fake.name == "h11"
        assert "tls" not in fake.options
    with pytest.raises(ConfigError, match="host is 'uvicorn'; it must be auto, h11 or hypercorn"):
        async with opened(host="uvicorn"):
            raise AssertionError


async def test_h11_is_not_asked_to_speak_tls(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="h11 host speaks no TLS"):
        async with opened(host="h11", tls=TlsFiles(certificate=tmp_path / "c", private_key=tmp_path / "k")):
            raise AssertionError


# ---- how it ends ------------------------------------------------------------------------------------


async def test_when_the_block_ends_in_order_the_host_drains(
    fake: FakeHost, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_http_host(greet, limits=HttpServerLimits(drain_s=3)):
        began = trio.current_time()
    assert fake.drained
    assert trio.current_time() - began == 3


async def test_when_the_block_fails_the_host_is_cancelled_and_the_failure_comes_out_as_it_is(
    fake: FakeHost, autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    with pytest.raises(KeyError, match="mine"):
        async with open_http_host(greet, limits=HttpServerLimits(drain_s=3)):
            raise KeyError("mine")
    with trio.move_on_after(1) as scope:
        async with open_http_host(greet, limits=HttpServerLimits(drain_s=3)):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() - began == 1
    assert not fake.drained


async def test_when_the_host_fails_its_failure_comes_out_of_the_block(fake: FakeHost) -> None:
    fake.crash = KeyError("the host's")
    with pytest.raises(KeyError, match="the host's"):
        async with opened():
            await trio.sleep_forever()


async def test_a_host_that_cannot_be_imported_leaves_no_socket(
    fake: FakeHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "stepflow_trio.transports.http.h11_host", None)
    path = tmp_path / "socket"
    with pytest.raises(ImportError):
        async with opened(bind=f"unix:{path}"):
            raise AssertionError
    assert not path.exists()


# ---- TCP --------------------------------------------------------------------------------------------


async def test_a_port_in_use_is_a_clear_error(fake: FakeHost) -> None:
    async with opened() as host:
        with pytest.raises(BindFailed, match="another program listens there already") as caught:
            async with opened(bind=f"127.0.0.1:{host.port}"):
                raise AssertionError
    assert caught.value.bind == f"127.0.0.1:{host.port}"
    async with opened(bind=f"127.0.0.1:{host.port}"):
        pass


async def test_an_address_of_another_machine_is_a_clear_error(fake: FakeHost) -> None:
    with pytest.raises(BindFailed, match=r"192\.0\.2\.1 is not an address of this machine"):
        async with opened(bind="192.0.2.1:0", security=TOKENS):
            raise AssertionError


# ---- Unix sockets -----------------------------------------------------------------------------------


async def test_a_unix_socket_is_its_owners_alone_and_is_removed_at_the_end(
    fake: FakeHost, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    before = os.umask(0)
    try:
        async with opened(bind=f"unix:{path}") as host:
            assert (host.url, host.port, fake.name) == (f"unix:{path}", 0, "h11")
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            (await trio.open_unix_socket(path)).socket.close()
        assert not path.exists()
    finally:
        os.umask(before)


async def test_it_is_removed_however_the_block_ends_unless_another_has_taken_its_place(
    fake: FakeHost, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    with pytest.raises(KeyError):
        async with opened(bind=f"unix:{path}"):
            raise KeyError
    assert not path.exists()
    async with opened(bind=f"unix:{path}"):
        path.unlink()
    async with opened(bind=f"unix:{path}"):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.is_socket()


async def test_the_socket_of_a_server_that_was_killed_is_replaced(fake: FakeHost, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
    async with opened(bind=f"unix:{path}"):
        (await trio.open_unix_socket(path)).socket.close()


@pytest.mark.parametrize("is_busy", [False, True])
async def test_the_socket_of_a_server_that_lives_is_left_alone(
    is_busy: bool, fake: FakeHost, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as alive, socket.socket(socket.AF_UNIX) as waiting:
        alive.bind(str(path))
        alive.listen(0)
        if is_busy:
            waiting.connect(str(path))
        with pytest.raises(BindFailed, match="another program listens there already"):
            async with opened(bind=f"unix:{path}"):
                raise AssertionError
        assert path.is_socket()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("precious"), "a file that is no socket"),
        (lambda path: path.mkdir(), "a file that is no socket"),
        (lambda path: path.symlink_to("/nowhere"), "a file that is no socket"),
    ],
    ids=["file", "directory", "link"],
)
async def test_a_file_that_is_no_socket_is_left_alone(
    make: Callable[[Path], Any], message: str, fake: FakeHost, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    make(path)
    before = path.lstat()
    with pytest.raises(BindFailed, match=message) as caught:
        async with opened(bind=f"unix:{path}"):
            raise AssertionError
    assert caught.value.bind == f"unix:{path}"
    assert path.lstat() == before


async def test_a_socket_that_cannot_be_closed_to_others_is_not_left(
    fake: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chmod(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", chmod)
    path = tmp_path / "socket"
    with pytest.raises(BindFailed, match="Operation not permitted"):
        async with opened(bind=f"unix:{path}"):
            raise AssertionError
    assert not path.exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [("/nowhere/socket", "No such file or directory"), ("/" + "a" * 200, "too long")],
)
async def test_a_path_where_no_socket_can_be_is_a_clear_error(
    path: str, message: str, fake: FakeHost
) -> None:
    with pytest.raises(BindFailed, match=message):
        async with opened(bind=f"unix:{path}"):
            raise AssertionError


# ---- inherited sockets ------------------------------------------------------------------------------


async def test_an_inherited_socket_is_served_and_closed(fake: FakeHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inherited:
        port = inherited.getsockname()[1]
        fd = os.dup(inherited.fileno())
    os.set_inheritable(fd, True)
    async with opened(bind=f"fd://{fd}") as host:
        assert (host.url, fake.name) == (f"http://127.0.0.1:{port}", "h11")
        assert not os.get_inheritable(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


async def test_an_inherited_socket_that_others_can_reach_is_judged_as_any(fake: FakeHost) -> None:
    for options in ({}, {"security": TOKENS}):
        with socket.create_server(("0.0.0.0", 0)) as inherited:  # noqa: S104 — it is refused
            fd = os.dup(inherited.fileno())
        if options:
            async with opened(bind=f"fd://{fd}", **options):
                assert fake.name == "hypercorn"
        else:
            with pytest.raises(ConfigError, match="other machines can reach"):
                async with opened(bind=f"fd://{fd}"):
                    raise AssertionError


async def test_an_inherited_unix_socket_is_not_removed(fake: FakeHost, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    inherited = socket.socket(socket.AF_UNIX)
    inherited.bind(str(path))
    inherited.listen()
    async with opened(bind=f"fd://{inherited.detach()}") as host:
        assert (host.url, fake.name) == (f"unix:{path}", "h11")
    assert path.is_socket()


async def test_a_descriptor_that_is_no_listening_socket_is_a_clear_error_and_stays_open(
    fake: FakeHost, tmp_path: Path
) -> None:
    with (
        (tmp_path / "file").open("w") as file,
        socket.socket() as silent,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(("127.0.0.1", 0))
        for fd, message in [
            (file.fileno(), "it is no socket"),
            (silent.fileno(), "does not listen"),
            (datagrams.fileno(), "does not listen"),
            (4000, "it is not open"),
        ]:
            with pytest.raises(BindFailed, match=f"fd://{fd}: .*{message}"):
                async with opened(bind=f"fd://{fd}"):
                    raise AssertionError
            if fd != 4000:
                os.fstat(fd)
