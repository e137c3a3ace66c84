"""A guarded server on real sockets, with each host: who is answered, who is refused, and mutual TLS."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import h2.connection
import h2.events
import pytest
import trio
from raw_http import CutShort, RawClient, Response, request

from stepflow_trio.errors import ConfigError
from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.bearer import BearerTokens
from stepflow_trio.transports.http.hosting import HttpHost, open_http_host
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import (
    HttpSecurity,
    TlsFiles,
    client_ssl_context,
    server_ssl_context,
)

TOKENS = HttpSecurity(bearer=BearerTokens("canary-0123456789abcdef"))


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


BINDS = [
    "127.0.0.1:0",
    "localhost:0",
    pytest.param("[::1]:0", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6")),
]


async def greet(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


async def get(stream: trio.abc.Stream, host: str) -> Response:
    client = RawClient(stream)
    try:
        with trio.fail_after(20):
            await client.send(request().replace(b"localhost", host.encode(), 1))
            return await client.response()
    finally:
        await client.aclose()


@asynccontextmanager
async def opened(**options: Any) -> AsyncGenerator[HttpHost]:
    limits = HttpServerLimits(drain_s=0)
    async with open_http_host(greet, limits=limits, **options) as host:
        yield host


REAL_HOSTS = ["h11", "hypercorn"]


@pytest.mark.parametrize("name", REAL_HOSTS)
@pytest.mark.parametrize("bind", BINDS)
async def test_requests_are_answered_at_its_url_and_refused_by_other_names(name: str, bind: str) -> None:
    async with opened(bind=bind, host=name) as host:
        where = "127.0.0.1" if "localhost" in bind else bind.rpartition(":")[0].strip("[]")

        async def status(name: str) -> int:
            return (await get(await trio.open_tcp_stream(where, host.port), name)).status

        assert await status(host.url.removeprefix("http://")) == 200
        assert await status(f"localhost:{host.port}") == 200
        assert await status("localhost") == 421
        assert await status("evil.example") == 421
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream(where, host.port)


@pytest.mark.parametrize("name", REAL_HOSTS)
async def test_requests_are_answered_over_a_unix_socket(name: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with opened(bind=f"unix:{path}", host=name):
        assert (await get(await trio.open_unix_socket(path), "localhost")).body == b"hello"
        assert (await get(await trio.open_unix_socket(path), "evil.example")).status == 421


@pytest.mark.parametrize("name", REAL_HOSTS)
async def test_duplicate_hosts_and_other_targets_are_refused_on_the_wire(name: str) -> None:
    async with opened(host=name) as host:

        async def status(line: str, *headers: str) -> int:
            client = RawClient(await trio.open_tcp_stream("127.0.0.1", host.port))
            try:
                with trio.fail_after(20):
                    await client.send("\r\n".join([line, *headers, "", ""]).encode())
                    return (await client.response()).status
            finally:
                await client.aclose()

        own = f"Host: localhost:{host.port}"
        assert await status("GET / HTTP/1.1", own) == 200
        assert await status("GET / HTTP/1.1", own, own) == 400
        assert await status("GET / HTTP/1.1", own, "Host: evil.example") == 400
        assert await status("GET / HTTP/1.1", own, "host: evil.example") == 400
        assert await status("GET / HTTP/1.1") == 400
        assert await status("GET / HTTP/1.0") == 400
        assert await status("GET http://evil.example/ HTTP/1.1", own) in (400, 421)
        assert await status("GET / HTTP/1.1", own, "Origin: null") == 403
        assert await status(f"GET http://localhost:{host.port}/ HTTP/1.1", own) == 200


@pytest.mark.parametrize("name", REAL_HOSTS)
async def test_a_client_that_sends_a_large_body_with_a_wrong_token_still_reads_the_refusal(name: str) -> None:
    async with opened(host=name, security=TOKENS) as host:
        client = RawClient(await trio.open_tcp_stream("127.0.0.1", host.port))
        own = f"localhost:{host.port}"
        body = request("POST", body=b"x" * 2_000_000).replace(b"localhost", own.encode(), 1)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def send() -> None:
                    with suppress(trio.BrokenResourceError):  # the server has had enough
                        await client.send(body)

                response = await client.response()
                nursery.cancel_scope.cancel()
        await client.aclose()
        assert response.status == 401
        assert response.headers[b"www-authenticate"] == b"Bearer"


@pytest.mark.parametrize("name", REAL_HOSTS)
async def test_no_token_is_in_any_log_repr_or_answer(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("the application's mistake")

    seen: list[object] = [TOKENS]
    async with open_http_host(fail, host=name, security=TOKENS, limits=HttpServerLimits(drain_s=0)) as host:
        seen.append(host)
        for token, status in (("canary-0123456789abcdef", 500), ("canary-of-somebody-else", 401)):
            client = RawClient(await trio.open_tcp_stream("127.0.0.1", host.port))
            own = [f"Host: localhost:{host.port}", f"Authorization: Bearer {token}"]
            with trio.fail_after(20):
                await client.send("\r\n".join(["GET / HTTP/1.1", *own, "", ""]).encode())
                answer = await client.response()
            await client.aclose()
            assert answer.status == status
            seen.append(answer)
    assert "the application's mistake" in caplog.text
    assert "canary" not in caplog.text + repr(seen)


# ---- TLS --------------------------------------------------------------------------------------------


class Certificates:
    """Made on the spot: authorities, and what they have signed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for ca in ("ca", "other-ca"):
            self._make(ca, "basicConstraints=critical,CA:TRUE")
        for name, ca in (("server", "ca"), ("client", "ca"), ("stranger", "other-ca")):
            self._make(
                name, "subjectAltName=DNS:localhost,IP:127.0.0.1", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key"
            )

    def _make(self, name: str, extension: str, *signer: str) -> None:
        command = (
            f"openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 30 -subj /CN={name}"
        )
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-addext", extension]
        subprocess.run([*command.split(), *files, *signer], cwd=self.path, check=True, capture_output=True)

    def pem(self, name: str) -> Path:
        return self.path / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.path / f"{name}.key"

    def server(self, client_ca: str | None = None) -> TlsFiles:
        return TlsFiles(
            certificate=self.pem("server"),
            private_key=self.key("server"),
            client_ca=None if client_ca is None else self.pem(client_ca),
        )

    def client(self, name: str | None = None, *, trusts: str = "ca") -> ssl.SSLContext:
        return client_ssl_context(
            server_ca=self.pem(trusts),
            certificate=None if name is None else self.pem(name),
            private_key=None if name is None else self.key(name),
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


async def get_by_tls(host: HttpHost, context: ssl.SSLContext, name: str = "localhost") -> Response:
    plain = await trio.open_tcp_stream("127.0.0.1", host.port)
    stream = trio.SSLStream(plain, context, server_hostname=name, https_compatible=True)
    return await get(stream, f"localhost:{host.port}")


async def test_a_server_with_a_certificate_speaks_tls_and_asks_for_tokens_as_any(made: Certificates) -> None:
    async with opened(tls=made.server(), bind="localhost:0") as host:
        assert host.url == f"https://localhost:{host.port}"
        assert (await get_by_tls(host, made.client())).body == b"hello"
    async with opened(tls=made.server(), security=TOKENS) as host:
        assert (await get_by_tls(host, made.client())).status == 401


async def test_a_client_checks_the_servers_authority_and_name(made: Certificates) -> None:
    async with opened(tls=made.server()) as host:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await get_by_tls(host, made.client(trusts="other-ca"))
        assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value.__cause__)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await get_by_tls(host, made.client(), "worker.internal")
        assert "Hostname mismatch" in str(caught.value.__cause__)
        assert (await get_by_tls(host, made.client())).status == 200


async def test_mutual_tls_serves_only_clients_with_a_certificate_of_the_right_authority(
    made: Certificates,
) -> None:
    async with opened(tls=made.server(client_ca="ca"), bind="0.0.0.0:0") as host:
        for context in (made.client(), made.client("stranger")):
            # With TLS 1.3 a client learns of it when it reads.
            with pytest.raises((trio.BrokenResourceError, CutShort)):
                await get_by_tls(host, context)
        assert (await get_by_tls(host, made.client("client"))).body == b"hello"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(":authority", "localhost:PORT")], "200"),
        ([(":authority", "LOCALHOST:PORT"), ("x-other", "x")], "200"),
        ([("host", "localhost:PORT")], "200"),
        ([(":authority", "evil.example")], "421"),
        ([("host", "evil.example")], "421"),
        ([(":authority", "localhost")], "421"),
        ([(":authority", "localhost:PORT"), ("origin", "https://evil.example")], "403"),
    ],
)
async def test_over_http_2_the_authority_is_the_host(
    headers: list[tuple[str, str]], status: str, made: Certificates
) -> None:
    context = made.client()
    context.set_alpn_protocols(["h2"])
    async with opened(tls=made.server()) as host:
        plain = await trio.open_tcp_stream("127.0.0.1", host.port)
        async with trio.SSLStream(
            plain, context, server_hostname="localhost", https_compatible=True
        ) as stream:
            connection = h2.connection.H2Connection()
            connection.initiate_connection()
            request = [(":method", "GET"), (":scheme", "https"), (":path", "/"), *headers]
            request = [(name, value.replace("PORT", str(host.port))) for name, value in request]
            connection.send_headers(1, request, end_stream=True)
            with trio.fail_after(20):
                await stream.send_all(connection.data_to_send())
                answer: dict[bytes, bytes] = {}
                while not answer:
                    for event in connection.receive_data(await stream.receive_some()):
                        if isinstance(event, h2.events.ResponseReceived):
                            answer = dict(event.headers or [])
    assert answer[b":status"] == status.encode()


def test_old_versions_of_tls_are_not_spoken(made: Certificates) -> None:
    for context in (server_ssl_context(made.server()), made.client()):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_COMPRESSION


@pytest.mark.parametrize("role", ["certificate", "private_key", "client_ca"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path, made: path.unlink(), "cannot be read: No such file or directory"),
        (lambda path, made: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
        (lambda path, made: path.write_bytes(b""), "holds no PEM (certificate|private key) that can be used"),
        (lambda path, made: path.write_bytes(b"\xff" * 99), "holds no PEM (certificate|private key)"),
        (lambda path, made: path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n"), "holds no PEM"),
    ],
    ids=["missing", "directory", "empty", "bytes", "cut"],
)
async def test_a_file_that_cannot_be_used_is_named_before_anything_is_bound(
    spoil: Any, message: str, role: str, made: Certificates, tmp_path: Path
) -> None:
    files = {
        "certificate": made.pem("server"),
        "private_key": made.key("server"),
        "client_ca": made.pem("ca"),
    }
    copy = tmp_path / "copy"
    copy.write_bytes(files[role].read_bytes())
    spoil(copy, made)
    files[role] = copy
    with pytest.raises(ConfigError, match=message) as caught:
        async with opened(tls=TlsFiles(**files), bind="fd://4000"):
            raise AssertionError
    assert caught.value.place == str(copy)


def test_a_key_of_another_certificate_is_named_with_it(made: Certificates) -> None:
    files = TlsFiles(certificate=made.pem("server"), private_key=made.key("client"))
    with pytest.raises(ConfigError, match=r"does not belong to certificate .*server\.pem") as caught:
        server_ssl_context(files)
    assert caught.value.place == str(made.key("client"))


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_passphrase(
    made: Certificates, tmp_path: Path
) -> None:
    key = tmp_path / "encrypted.key"
    command = [
        "openssl",
        "pkey",
        "-in",
        made.key("server"),
        "-aes128",
        "-passout",
        "pass:canary",
        "-out",
        key,
    ]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(ConfigError, match="without a passphrase") as caught:
        server_ssl_context(TlsFiles(certificate=made.pem("server"), private_key=key))
    assert caught.value.place == str(key)


def test_a_client_shows_a_certificate_with_its_key_or_none(made: Certificates) -> None:
    with pytest.raises(ConfigError, match="certificate is given without private_key"):
        client_ssl_context(certificate=made.pem("client"))
    with pytest.raises(ConfigError, match="private_key is given without certificate"):
        client_ssl_context(private_key=made.key("client"))
    assert client_ssl_context().get_ca_certs() is not None
