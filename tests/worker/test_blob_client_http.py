"""Blobs over real sockets: the client, both hosts, and the blob API behind them."""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
import trio

from stepflow_trio.errors import CallFailed, ConfigError, ConnectFailed, ConnectionLost, ErrorCode, UrlRefused
from stepflow_trio.protocol.blobs import MAX_BLOB_BYTES
from stepflow_trio.runtime.blob_api import BlobApi
from stepflow_trio.runtime.stores import Blob, MemoryBlobStore
from stepflow_trio.transports.http.bearer import BearerTokens, SecretStr
from stepflow_trio.transports.http.hosting import HttpHost, open_http_host
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.outbound_urls import OutboundPolicy
from stepflow_trio.transports.http.security import HttpSecurity
from stepflow_trio.worker.blob_client import MAX_CLIENTS, BlobClient, BlobClients, open_blob_clients
from stepflow_trio.worker.blob_refs import offload_output, resolve_input

LOCAL = "127.0.0.1"
MiB = 2**20


@pytest.fixture(params=["h11", "hypercorn"])
def host(request: pytest.FixtureRequest) -> Literal["h11", "hypercorn"]:
    return request.param


@asynccontextmanager
async def serving(
    store: MemoryBlobStore | None = None, host: Any = "h11", **more: Any
) -> AsyncGenerator[HttpHost]:
    app = BlobApi(store or MemoryBlobStore())
    limits = HttpServerLimits(max_body_bytes=MAX_BLOB_BYTES, drain_s=0.1)
    with trio.fail_after(40):
        async with open_http_host(app, host=host, limits=limits, **more) as found:
            yield found


@asynccontextmanager
async def connected(host: Any, store: MemoryBlobStore | None = None) -> AsyncGenerator[BlobClient]:
    async with (
        serving(store, host) as found,
        open_blob_clients() as clients,
        clients.client_for(f"{found.url}/api/v1/blobs", peer_host=LOCAL) as client,
    ):
        yield client


async def test_blobs_of_every_kind_go_there_and_back(host: Any) -> None:
    async with connected(host) as client:
        for value in (None, {"b": 1, "a": [1.5, "ä"]}, "x" * 300_000):
            assert await client.get(await client.put(value)) == value
        for content in (b"", b"\x00\xff" * 300_000):
            assert await client.get(await client.put_binary(content)) == content
        with pytest.raises(CallFailed) as caught:
            await client.get("0" * 64)
        assert caught.value.code == ErrorCode.NOT_FOUND


async def test_a_blob_larger_than_a_message_goes_there_and_back(host: Any) -> None:
    content = bytes(range(256)) * (70 * MiB // 256)
    async with connected(host) as client:
        blob_id = await client.put_binary(content)
        assert blob_id == hashlib.sha256(content).hexdigest()
        assert await client.get(blob_id) == content


async def test_many_go_at_the_same_time(host: Any) -> None:
    async with connected(host) as client:

        async def go(n: int) -> None:
            value = {"n": n, "text": str(n) * 20_000}
            assert await client.get(await client.put(value)) == value

        async with trio.open_nursery() as nursery:
            for n in range(50):
                nursery.start_soon(go, n)


async def test_inputs_and_outputs_travel_by_reference(host: Any) -> None:
    async with connected(host) as client:
        output = {"small": 1, "large": ["x" * 2_000_000]}
        offloaded = await offload_output(output, client, 1_000_000)
        assert list(offloaded["large"]) == ["$blob", "size"]
        assert await resolve_input(offloaded, client) == output


async def test_a_body_that_is_too_long_is_told_so_while_it_is_sent(host: Any) -> None:
    store = MemoryBlobStore()
    app = BlobApi(store, max_blob_bytes=MiB)
    with trio.fail_after(40):
        async with (
            open_http_host(app, host=host) as found,
            open_blob_clients() as clients,
            clients.client_for(f"{found.url}/api/v1/blobs", peer_host=LOCAL) as client,
        ):
            with pytest.raises(CallFailed, match="413: the body is longer than 1048576 bytes"):
                await client.put_binary(b"x" * 20 * MiB)
            assert await client.get(await client.put(1)) == 1
    assert len(store._blobs) == 1


async def test_an_upload_that_breaks_off_stores_nothing(host: Any) -> None:
    store = MemoryBlobStore()
    async with serving(store, host) as found:
        stream = await trio.open_tcp_stream(LOCAL, found.port)
        head = (
            f"POST /api/v1/blobs HTTP/1.1\r\nhost: {LOCAL}:{found.port}\r\n"
            "content-type: application/octet-stream\r\ncontent-length: 1000\r\n\r\n"
        )
        await stream.send_all(head.encode() + b"x" * 999)
        await stream.aclose()
        async with (
            open_blob_clients() as clients,
            clients.client_for(f"{found.url}/api/v1/blobs", peer_host=LOCAL) as client,
        ):
            blob_id = await client.put(1)
        assert list(store._blobs) == [blob_id]


async def test_a_slow_reader_gets_all_of_it_while_others_are_served(host: Any) -> None:
    store = MemoryBlobStore()
    content = b"0123456789abcdef" * (20 * MiB // 16)
    blob_id = await store.put(content, "binary")
    async with (
        serving(store, host) as found,
        open_blob_clients() as clients,
        clients.client_for(f"{found.url}/api/v1/blobs", peer_host=LOCAL) as client,
    ):
        stream = await trio.open_tcp_stream(LOCAL, found.port)
        head = (
            f"GET /api/v1/blobs/{blob_id} HTTP/1.1\r\nhost: {LOCAL}:{found.port}\r\n"
            "accept: application/octet-stream\r\nconnection: close\r\n\r\n"
        )
        await stream.send_all(head.encode())
        received = bytearray()
        while part := await stream.receive_some(MiB):
            received += part
            if len(received) % 7 == 0:
                assert await client.get(await client.put(len(received))) == len(received)
        assert received.endswith(b"\r\n\r\n" + content)
        await stream.aclose()


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd", "%2e%2e/%2e%2e/x", "..%2f..%2fx", "%00", "%ff" * 20, "x" * 5000, "%D9%A3" * 64,
        "%0d%0ax:y", "0" * 63, "0" * 65, "A" * 64, "sha256%3A" + "0" * 63,
    ],
)  # fmt: skip
async def test_no_hostile_path_reaches_the_store(host: Any, name: str) -> None:
    class Asked(MemoryBlobStore):
        async def get(self, blob_id: str) -> Blob:
            raise AssertionError(blob_id)

    async with serving(Asked(), host) as found:
        stream = await trio.open_tcp_stream(LOCAL, found.port)
        head = f"GET /api/v1/blobs/{name} HTTP/1.1\r\nhost: {LOCAL}:{found.port}\r\nconnection: close\r\n\r\n"
        await stream.send_all(head.encode())
        received = b""
        with contextlib.suppress(trio.BrokenResourceError):
            while part := await stream.receive_some():
                received += part
        assert received.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
        await stream.aclose()


# ---- which servers are asked ----------------------------------------------------------------------------


@asynccontextmanager
async def clients(**more: Any) -> AsyncGenerator[BlobClients]:
    with trio.fail_after(20):
        async with open_blob_clients(**more) as opened:
            yield opened


async def test_a_stranger_may_not_name_a_server_on_this_machine() -> None:
    async with serving() as found, clients() as opened:
        url = f"{found.url}/api/v1/blobs"
        for peer_host in ("203.0.113.7", "10.0.0.7", None):
            async with opened.client_for(url, peer_host=peer_host) as client:
                with pytest.raises(UrlRefused, match="this machine itself"):
                    await client.put(1)
        async with opened.client_for(url, peer_host=LOCAL) as client:
            assert await client.get(await client.put(1)) == 1


async def test_nobody_may_name_where_clouds_keep_their_credentials() -> None:
    async with (
        clients() as opened,
        opened.client_for("http://169.254.169.254/latest", peer_host=LOCAL) as client,
    ):
        with pytest.raises(UrlRefused):
            await client.get("0" * 64)


async def test_a_name_is_looked_up_for_each_connection_and_what_was_looked_at_is_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = ["127.0.0.1", "169.254.169.254"]

    async def getaddrinfo(*_args: Any, **_more: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), 0))]

    async with serving(security=HttpSecurity(allowed_hosts=["blobs.internal"])) as found, clients() as opened:
        with monkeypatch.context() as patched:
            patched.setattr(trio.socket, "getaddrinfo", getaddrinfo)
            url = f"http://blobs.internal:{found.port}/api/v1/blobs"
            async with opened.client_for(url, peer_host=LOCAL) as client:
                open_tcp_stream = trio.open_tcp_stream

                async def connect_to(address: Any, port: int) -> trio.SocketStream:
                    assert address == LOCAL, "the name itself is not connected to"
                    patched.undo()
                    stream = await open_tcp_stream(address, port)
                    patched.setattr(trio.socket, "getaddrinfo", getaddrinfo)
                    return stream

                patched.setattr(trio, "open_tcp_stream", connect_to)
                assert await client.get(await client.put(1)) == 1
                assert len(answers) == 1
                async with opened.client_for(url, peer_host="127.0.0.2") as other:
                    with pytest.raises(UrlRefused):
                        await other.put(1)


@pytest.mark.parametrize(
    "url", ["", "blobs", "ftp://x/", "http://u:secret@x/", "http:///x", "http://x/?q=1", "http://0x7f.1/"]
)
async def test_what_is_no_url_is_refused_at_once(url: str) -> None:
    async with clients() as opened:
        with pytest.raises(ConfigError) as caught:
            async with opened.client_for(url, peer_host=LOCAL):
                pass
        assert "secret" not in str(caught.value)


async def test_a_server_that_is_not_there_is_said_so() -> None:
    with socket.socket() as taken:
        taken.bind((LOCAL, 0))
        async with (
            clients() as opened,
            opened.client_for(f"http://{LOCAL}:{taken.getsockname()[1]}/b", peer_host=LOCAL) as client,
        ):
            with pytest.raises(ConnectFailed):
                await client.put(1)


async def test_a_token_goes_to_the_origin_that_it_is_for_and_to_no_other() -> None:
    guarded = HttpSecurity(bearer=BearerTokens("t" * 40))
    seen: list[Any] = []
    app = BlobApi(MemoryBlobStore())

    async def nosy(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(value for name, value in scope["headers"] if name == b"authorization")
        await app(scope, receive, send)

    async with serving(security=guarded) as found, open_http_host(nosy) as other:
        async with clients(bearers={found.url: SecretStr("t" * 40)}) as opened:
            async with opened.client_for(f"{found.url}/api/v1/blobs", peer_host=LOCAL) as client:
                assert await client.get(await client.put(1)) == 1
            async with opened.client_for(f"{other.url}/api/v1/blobs", peer_host=LOCAL) as client:
                assert await client.get(await client.put(1)) == 1
        async with (
            clients() as opened,
            opened.client_for(f"{found.url}/api/v1/blobs", peer_host=LOCAL) as client,
        ):
            with pytest.raises(CallFailed) as caught:
                await client.put(1)
            assert caught.value.code == ErrorCode.CONFIGURATION_ERROR
    assert seen == []


async def test_only_the_origins_that_the_operator_allows_are_asked() -> None:
    async with serving() as found, clients(policy=OutboundPolicy(allowed_origins=[found.url])) as opened:
        async with opened.client_for(f"{found.url}/api/v1/blobs", peer_host="203.0.113.7") as client:
            assert await client.get(await client.put(1)) == 1
        async with opened.client_for("http://127.0.0.1:1/b", peer_host=LOCAL) as client:
            with pytest.raises(UrlRefused, match="allowed_origins"):
                await client.put(1)


# ---- who keeps what open --------------------------------------------------------------------------------


async def test_one_server_is_one_client_however_many_ask_for_it() -> None:
    async with clients() as opened:
        found: list[BlobClient] = []

        async def ask() -> None:
            async with opened.client_for("http://127.0.0.1:1/b", peer_host=LOCAL) as client:
                found.append(client)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert len({id(client) for client in found}) == 1


async def use(opened: BlobClients, ports: range) -> None:
    for port in ports:
        async with opened.client_for(f"http://127.0.0.1:{port}/b", peer_host=LOCAL):
            pass


async def test_only_so_many_servers_are_remembered() -> None:
    async with serving() as found, clients() as opened:
        url = f"{found.url}/api/v1/blobs"
        async with opened.client_for(url, peer_host=LOCAL) as first:
            pass
        await use(opened, range(1, MAX_CLIENTS + 1))
        assert len(opened._open) == MAX_CLIENTS
        with pytest.raises(ConnectionLost):
            await first.put(1)
        async with opened.client_for(url, peer_host=LOCAL) as again:
            assert await again.get(await again.put(1)) == 1


async def test_a_client_in_use_is_not_forgotten_however_many_others_are_asked_for() -> None:
    async with serving() as found, clients() as opened:
        async with opened.client_for(f"{found.url}/api/v1/blobs", peer_host=LOCAL) as first:
            await use(opened, range(1, 2 * MAX_CLIENTS))
            assert len(opened._open) == MAX_CLIENTS
            assert await first.get(await first.put(1)) == 1
        async with contextlib.AsyncExitStack() as used:
            for port in range(1, 2 * MAX_CLIENTS):
                url = f"http://127.0.0.1:{port}/b"
                await used.enter_async_context(opened.client_for(url, peer_host=LOCAL))
            assert len(opened._open) == 2 * MAX_CLIENTS - 1, "all of them are in use"
        assert len(opened._open) == MAX_CLIENTS


async def test_leaving_the_block_ends_what_is_under_way() -> None:
    class Silent(MemoryBlobStore):
        async def get(self, blob_id: str) -> Blob:
            await trio.sleep_forever()
            raise AssertionError

    async with serving(Silent()) as found, trio.open_nursery() as nursery:
        ended = trio.Event()

        async def read(client: BlobClient) -> None:
            with pytest.raises(ConnectionLost):
                await client.get("0" * 64)
            ended.set()

        async with (
            clients() as opened,
            opened.client_for(f"{found.url}/api/v1/blobs", peer_host=LOCAL) as client,
        ):
            nursery.start_soon(read, client)
            await trio.testing.wait_all_tasks_blocked(0.1)
        await ended.wait()
