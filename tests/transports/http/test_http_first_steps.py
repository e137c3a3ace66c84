"""What somebody who begins with HTTP gets wrong, and what the transports say to it."""

from __future__ import annotations

import inspect
import os
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from test_http_hosting_sockets import Certificates

from stepflow_trio import BearerTokens, HttpSecurity, SecretStr, TlsFiles, Worker, open_http_link
from stepflow_trio.errors import ConfigError, ConnectionLost, RemoteProtocolError
from stepflow_trio.protocol import dialects
from stepflow_trio.transports.http.client import open_http_client
from stepflow_trio.transports.http.security import client_ssl_context, server_ssl_context

TOKEN = "0123456789abcdef"  # noqa: S105 — nobody's


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


async def get(url: str, path: str = "/health", **more: Any) -> int:
    async with open_http_client(url, **more) as client, client.request("GET", path) as response:
        await response.read()
    return response.status


# ---- tokens ---------------------------------------------------------------------------------------------


def test_help_on_tokens_shows_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inspect.signature(BearerTokens.from_environment).parameters["environ"].default is None
    monkeypatch.setenv("NEWCOMERS_TOKEN", TOKEN)
    assert BearerTokens.from_environment("NEWCOMERS_TOKEN").accept(b"Bearer " + TOKEN.encode())


@pytest.mark.parametrize("bearer", [TOKEN, SecretStr(TOKEN), BearerTokens(TOKEN)])
async def test_a_client_takes_its_token_as_a_plain_text_too(bearer: Any) -> None:
    security = HttpSecurity(bearer=BearerTokens(TOKEN), open_paths=[])
    async with Worker().open_http(security=security) as http:
        assert await get(http.url, bearer=bearer) == 200
        capabilities = dialects.write_capabilities()
        async with open_http_link(http.url, capabilities=capabilities, bearer=bearer, sessions="always"):
            pass


async def test_what_is_no_token_is_named_by_its_type_alone() -> None:
    wrong: Any = [TOKEN]
    with pytest.raises(ConfigError, match="bearer is a list; it takes a text") as refused:
        async with open_http_client("http://localhost", bearer=wrong):
            raise AssertionError
    assert TOKEN not in str(refused.value)
    text: Any = TOKEN
    with pytest.raises(ConfigError, match=r"bearer is a str; it must be BearerTokens\(…\)"):
        HttpSecurity(bearer=text)


async def test_a_refused_session_names_the_url_and_why() -> None:
    async with Worker().open_http(security=HttpSecurity(bearer=BearerTokens(TOKEN))) as http:
        with pytest.raises(RemoteProtocolError) as refused:
            async with open_http_link(http.url, capabilities={}):
                raise AssertionError
    assert str(refused.value) == (
        f"{http.url}/ refused a session: "
        "HTTP 401: this server asks for a token: send one header Authorization: Bearer <token>"
    )


async def test_a_session_mode_that_is_none_is_told_the_others() -> None:
    mode: Any = "sometimes"
    with pytest.raises(ValueError, match="'sometimes'; it must be one of never, auto, always"):
        async with open_http_link("http://localhost", capabilities={}, sessions=mode):
            raise AssertionError


# ---- files of TLS ---------------------------------------------------------------------------------------


def test_files_of_tls_may_be_named_by_texts(made: Certificates) -> None:
    files = TlsFiles(
        certificate=os.fspath(made.pem("server")), private_key=str(made.key("server")), client_ca="ca.pem"
    )
    assert files == TlsFiles(
        certificate=made.pem("server"), private_key=made.key("server"), client_ca=Path("ca.pem")
    )
    assert isinstance(files.certificate, Path)
    assert "client_ca=" in repr(files)
    server_ssl_context(TlsFiles(certificate=files.certificate, private_key=files.private_key))
    names = str(made.pem("ca")), str(made.pem("client")), str(made.key("client"))
    assert client_ssl_context(server_ca=names[0], certificate=names[1], private_key=names[2])


async def test_what_stands_for_tls_and_is_not_is_told_what_does(made: Certificates) -> None:
    number: Any = 5
    with pytest.raises(ConfigError, match="private_key is a int; it must be the path of a PEM file"):
        TlsFiles(certificate="x", private_key=number)
    with pytest.raises(ConfigError, match="server_ca is a int; it must be the path"):
        client_ssl_context(server_ca=number)
    files: Any = made.server()
    with pytest.raises(ConfigError, match=r"tls is a TlsFiles; .*client_ssl_context\(server_ca=…"):
        async with open_http_link("https://localhost", capabilities={}, tls=files):
            raise AssertionError
    context: Any = ssl.create_default_context()
    with pytest.raises(ConfigError, match=r"tls is a SSLContext; a server takes TlsFiles\(…\)"):
        async with Worker().open_http(tls=context):
            raise AssertionError
    with pytest.raises(ConfigError, match=r"tls is a SSLContext; for a server it must be TlsFiles"):
        server_ssl_context(context)


# ---- the wrong scheme, the wrong certificate ------------------------------------------------------------


@pytest.mark.parametrize("shown", [None, "stranger"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_certificate_that_is_missing_or_not_trusted_is_suspected(
    made: Certificates, shown: str | None, version: ssl.TLSVersion
) -> None:
    context = made.client(shown)
    context.maximum_version = version
    async with Worker().open_http("localhost", tls=made.server(client_ca="ca")) as http:
        with pytest.raises(ConnectionLost, match=r"may ask for a client certificate: tls\.certificate, "):
            await get(http.url, tls=context)
        assert await get(http.url, tls=made.client("client")) == 200


@pytest.mark.parametrize("host", ["h11", "hypercorn"])
async def test_tls_where_there_is_none_and_none_where_there_is_are_suspected(
    made: Certificates, host: Any
) -> None:
    async with Worker().open_http("localhost", http_host=host) as http:
        with pytest.raises(ConnectionLost, match=r"does not speak TLS there: http:// \?"):
            await get(http.url.replace("http:", "https:"))
    async with Worker().open_http("localhost", tls=made.server()) as http:
        with pytest.raises(ConnectionLost, match=r"may speak TLS there: https:// \?"):
            await get(http.url.replace("https:", "http:"))


async def test_an_authority_that_is_not_known_is_told_where_it_is_named(made: Certificates) -> None:
    async with Worker().open_http("localhost", tls=made.server()) as http:
        with pytest.raises(ConnectionLost, match=r"; tls\.ca names the authority to trust"):
            await get(http.url)
        with pytest.raises(ConnectionLost, match=r"Hostname mismatch[^;]*$"):
            await get(
                "https://worker.internal",
                tls=made.client(),
                connect=partial(trio.open_tcp_stream, "127.0.0.1", http.port),
            )


async def test_a_server_that_has_answered_before_is_not_suspected_of_tls() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        asked = await stream.receive_some()
        if b"/health" in asked:
            await stream.send_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, serve, listeners)
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with open_http_client(url) as client:
            async with client.request("GET", "/health"):
                pass
            with pytest.raises(ConnectionLost, match=r"closed the connection without an answer$"):
                async with client.request("GET", "/other"):
                    raise AssertionError
        nursery.cancel_scope.cancel()
