"""Over TCP and TLS: names, ports, certificates, and ends that are cut."""

from __future__ import annotations

import errno
import os
import resource
import socket
import ssl
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from scripted_server import Peer, Script, ScriptedServer, Wire, answer, answering, post, scripted

from stepflow_trio.errors import ConfigError, ConnectFailed, ConnectionLost, LossReason
from stepflow_trio.testing import Cancellable, RandomSample, cancel_everywhere
from stepflow_trio.transports.http.client import HttpClient, open_http_client
from stepflow_trio.transports.http.limits import HttpClientLimits

LARGE = b"x" * (5 * 2**20)


@asynccontextmanager
async def listening(script: Script, host: str = "127.0.0.1") -> AsyncGenerator[int]:
    """A scripted server at a TCP port; leaving the block cancels its scripts."""

    async def serve(stream: trio.SocketStream) -> None:
        server.live += 1
        peer = Peer(stream, len(server.peers))
        server.peers.append(peer)
        await server.run(peer)

    async with trio.open_nursery() as nursery:
        server = ScriptedServer(nursery, script, "socket")
        listeners = await trio.open_tcp_listeners(0, host=host)
        await nursery.start(trio.serve_listeners, serve, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


# ---- TCP --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bind", "name"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost"), ("::1", "[::1]")]
)
async def test_requests_go_over_tcp_by_address_and_by_name(bind: str, name: str) -> None:
    if bind == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await peer.send(answer(f"{request.headers['host']} {len(request.body)}".encode()))

    async with listening(script, bind) as port, open_http_client(f"http://{name}:{port}") as client:
        for body in (b"", b"x", LARGE):
            assert await post(client, body) == (200, f"{name}:{port} {len(body)}".encode())
        assert client.open_connections == 1


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_a_port_at_which_nobody_listens_is_a_failed_connection() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with open_http_client(url + "/secret") as client:
            with pytest.raises(ConnectFailed) as caught:
                await post(client)
        assert str(caught.value) == f"cannot connect to {url}: Connection refused"
        assert (caught.value.origin, caught.value.reason) == (url, LossReason.STREAM_ERROR)


async def test_a_process_that_is_out_of_descriptors_says_so() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with listening(answering(answer())) as port, open_http_client(f"http://127.0.0.1:{port}") as client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_free_number(), limits[1]))
        try:
            with pytest.raises(ConnectFailed, match="Too many open files") as caught:
                await post(client)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert caught.value.is_local
        assert await post(client) == (200, b"ok")


def next_free_number() -> int:
    number = os.dup(0)
    os.close(number)
    return number


async def test_a_name_that_nobody_has_is_a_failed_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*args: object, **kwargs: object) -> object:
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr("trio._highlevel_open_tcp_stream.getaddrinfo", getaddrinfo)
    async with open_http_client("http://nobody.invalid") as client:
        with pytest.raises(ConnectFailed, match="Name or service not known"):
            await post(client)


async def test_an_answer_is_heard_although_the_server_cut_the_request_off() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(answer(b"too large", "Connection: close", status="413 Content Too Large"))
        # Closed with bytes unread: TCP sends a reset behind the answer.

    async with listening(script) as port, open_http_client(f"http://127.0.0.1:{port}") as client:
        assert await post(client, LARGE) == (413, b"too large")
        assert client.open_connections == 0


async def test_a_reset_is_a_lost_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        assert isinstance(peer.stream, trio.SocketStream)
        peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async with listening(script) as port, open_http_client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(ConnectionLost, match="Connection reset by peer") as caught:
            await post(client)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ECONNRESET


# ---- TLS --------------------------------------------------------------------------------------------

TLS_URL = "https://localhost:8000"


class Certificates:
    """A certificate authority, a certificate for ``localhost`` of it, and one for another name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # From Python 3.13 on both are looked at closely.
        self._make("ca", ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"])
        for name in ("localhost", "elsewhere.test"):
            usual = [f"subjectAltName=DNS:{name}", "basicConstraints=critical,CA:FALSE"]
            self._make(name, usual, "-CA", "ca.pem", "-CAkey", "ca.key")

    def _make(self, name: str, extensions: list[str], *signer: str) -> None:
        made = [
            "openssl",
            "req",
            "-x509",
            "-nodes",
            "-days",
            "30",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ]
        files = [
            "-subj",
            f"/CN={name}",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.pem",
        ]
        for extension in extensions:
            files += ["-addext", extension]
        subprocess.run([*made, *files, *signer], cwd=self._path, check=True, capture_output=True)

    def server(self, name: str = "localhost") -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._path / f"{name}.pem", self._path / f"{name}.key")
        return context

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._path / "ca.pem")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def over_tls(script: Script, context: ssl.SSLContext) -> Script:
    """The script, spoken under TLS; its end is the connection's, without a word."""

    async def tls_script(peer: Peer) -> None:
        stream = trio.SSLStream(peer.stream, context, server_side=True)
        try:
            await script(Peer(stream, peer.number))
        except trio.BrokenResourceError:
            return  # the client did not like the certificate

    return tls_script


@asynccontextmanager
async def tls_client(server: ScriptedServer, certificates: Certificates) -> AsyncGenerator[HttpClient]:
    async with open_http_client(TLS_URL, connect=server.connect, tls=certificates.client()) as client:
        yield client


async def test_requests_go_over_tls_and_tcp(certificates: Certificates) -> None:
    script = over_tls(answering(answer(b"first"), answer(LARGE)), certificates.server())
    async with (
        listening(script) as port,
        open_http_client(f"https://localhost:{port}", tls=certificates.client()) as client,
    ):
        assert await post(client) == (200, b"first")
        assert await post(client, LARGE) == (200, LARGE)
        assert client.open_connections == 1


@pytest.mark.parametrize("wire", ["memory", "socket"])
async def test_a_connection_under_tls_carries_requests_of_every_size(
    wire: Wire, certificates: Certificates, autojump_clock: object
) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.send(answer(b"%d" % len((await peer.request()).body)))

    async with (
        scripted(over_tls(script, certificates.server()), wire) as server,
        tls_client(server, certificates) as client,
    ):
        for size in (0, 10, 2**20):
            assert await post(client, b"x" * size) == (200, b"%d" % size)
        assert (len(server.peers), client.idle_connections) == (1, 1)
        await trio.sleep(5)
        assert (client.open_connections, server.live) == (0, 0)


@pytest.mark.parametrize(
    ("name", "trusts", "why"),
    [
        ("localhost", False, "unable to get local issuer|self-signed"),
        ("elsewhere.test", True, "Hostname mismatch"),
    ],
)
async def test_a_certificate_that_is_not_trusted_is_a_failed_connection(
    name: str, trusts: bool, why: str, certificates: Certificates
) -> None:
    tls = certificates.client() if trusts else None
    async with scripted(over_tls(answering(answer()), certificates.server(name)), "socket") as server:
        async with open_http_client(TLS_URL, connect=server.connect, tls=tls) as client:
            with pytest.raises(ConnectFailed, match=f"TLS: .*certificate verify failed: .*({why})"):
                await post(client)
            assert client.open_connections == 0
        await trio.testing.wait_all_tasks_blocked()
        assert server.live == 0


async def test_a_server_that_knows_no_tls_is_a_failed_connection(certificates: Certificates) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with scripted(script, "socket") as server, tls_client(server, certificates) as client:
        with pytest.raises(ConnectFailed, match="TLS: "):
            await post(client)
        assert client.open_connections == 0


async def test_a_handshake_that_stalls_is_cut_off_with_the_rest_of_connecting(
    certificates: Certificates, autojump_clock: object
) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.take(1)

    async with scripted(script, "socket") as server, tls_client(server, certificates) as client:
        with pytest.raises(ConnectFailed, match="no connection within 10 s"):
            await post(client)
        assert trio.current_time() == 10
        await trio.testing.wait_all_tasks_blocked()
        assert (client.open_connections, server.live) == (0, 0)


@pytest.mark.parametrize("says_goodbye", [True, False])
async def test_a_body_without_length_is_whole_only_if_tls_ended_in_order(
    says_goodbye: bool, certificates: Certificates
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        if says_goodbye:
            await peer.stream.aclose()

    async with (
        scripted(over_tls(script, certificates.server()), "socket") as server,
        tls_client(server, certificates) as client,
    ):
        if says_goodbye:
            assert await post(client) == (200, b"hello")
        else:
            with pytest.raises(ConnectionLost, match="receiving failed"):
                await post(client)
        assert client.open_connections == 0


async def test_a_kept_connection_that_ended_under_tls_is_not_used(
    certificates: Certificates, autojump_clock: object
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer())
        await trio.sleep(1)

    async with (
        scripted(over_tls(script, certificates.server()), "socket") as server,
        tls_client(server, certificates) as client,
    ):
        for number in (1, 2, 3):
            assert await post(client) == (200, b"ok")
            assert len(server.peers) == number
            await trio.sleep(2)


def test_a_request_over_tls_can_be_cancelled_anywhere(certificates: Certificates) -> None:
    server_side = certificates.server()

    async def scenario(cancellable: Cancellable) -> None:
        async with (
            scripted(over_tls(answering(answer()), server_side)) as server,
            tls_client(server, certificates) as client,
        ):
            with cancellable:
                assert await post(client, b"x" * 2**15) == (200, b"ok")
            await trio.testing.wait_all_tasks_blocked()
            assert client.open_connections == client.idle_connections == server.live
            assert await post(client) == (200, b"ok")

    assert cancel_everywhere(scenario, strategy=RandomSample(60)).caught > 10


async def test_tls_settings_for_http_are_refused_lest_they_be_thought_to_work() -> None:
    with pytest.raises(ConfigError, match="write https"):
        async with open_http_client("http://localhost", tls=ssl.create_default_context()):
            pytest.fail("it was opened")


async def test_limits_can_be_given(autojump_clock: object) -> None:
    async def connect() -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    limits = HttpClientLimits(connect_timeout_s=0.5)
    async with open_http_client("http://localhost", connect=connect, limits=limits) as client:
        with pytest.raises(ConnectFailed, match=r"within 0\.5 s"):
            await post(client)
