"""Which URLs that a peer names are requested, and that only what was looked at is connected to."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.errors import ConfigError, ConnectFailed, UrlRefused
from stepflow_trio.transports.http.client import open_http_client
from stepflow_trio.transports.http.outbound_urls import OutboundPolicy, Reach, reach_of
from stepflow_trio.transports.http.urls import HttpUrl

LOOPBACK, PRIVATE, PUBLIC = "127.0.0.1", "10.0.0.5", "203.0.113.5"
STRANGERS = [PUBLIC, "2600::5", "::ffff:203.0.113.5", "fe80::5%eth0", "169.254.1.1", "no address", "", None]


class Names(trio.abc.HostnameResolver):
    """Answers with what it is told, one answer after another for the same name, and counts."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked: list[str] = []

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        await trio.lowlevel.checkpoint()
        name = host.decode()
        self.asked.append(name)
        if name not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return list(self._found(self.answers[name].pop(0), port))

    def _found(self, addresses: Iterable[str], port: int) -> Iterable[Any]:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for _ in range(2):
                yield (family, socket.SOCK_STREAM, 6, "", (address, port))

    async def getnameinfo(self, *_: Any) -> Any:
        raise AssertionError


@pytest.fixture
async def no_names() -> Names:
    """Nothing has an address but what is one."""
    names = Names()
    trio.socket.set_custom_hostname_resolver(names)
    return names


# ---- addresses --------------------------------------------------------------------------------------

FORBIDDEN = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "0.0.0.0",  # noqa: S104 — it is not bound
    "0.1.2.3",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "[fe80::1]",
    "[febf::1]",
    "[fec0::1]",
    "[fd00:ec2::254]",
    "[fd00:ec2::23]",
    "[fd20:ce::254]",
    "[fd00:42::42]",
    "[::]",
    "[ff02::1]",
    "[2001::1]",
    "[100::1]",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::169.254.169.254]",
    "[64:ff9b:1::a9fe:a9fe]",
    "[2002:a9fe:a9fe::1]",
    "[::169.254.169.254]",
    "[::127.0.0.1]",
]


@pytest.mark.parametrize("host", FORBIDDEN)
@pytest.mark.parametrize("policy", [OutboundPolicy(), None], ids=["any origin", "allowed origin"])
async def test_link_local_and_metadata_addresses_are_refused_to_everybody(
    policy: OutboundPolicy | None, host: str, no_names: Names
) -> None:
    url = f"http://{host}/latest/meta-data"
    policy = policy or OutboundPolicy(allowed_origins=[f"http://{host}"])
    for peer_host in (LOOPBACK, PRIVATE, PUBLIC, None):
        with pytest.raises(UrlRefused, match="is link-local, or no host at all"):
            await policy.resolve(HttpUrl.parse(url), peer_host=peer_host, peer_is_authenticated=True)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.8.9.10",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
    ],
)
async def test_this_machine_is_named_only_by_peers_on_it(host: str, no_names: Names) -> None:
    policy = OutboundPolicy()
    for peer_host in (LOOPBACK, "127.0.0.9", "::1", "::ffff:127.0.0.1"):
        [found] = await policy.resolve(HttpUrl.parse(f"http://{host}:8080/"), peer_host=peer_host)
        assert reach_of(ipaddress.ip_address(found)) is Reach.LOOPBACK
    for peer_host in (PRIVATE, *STRANGERS):
        for is_known in (True, False):
            with pytest.raises(UrlRefused, match=r"this machine itself.* allowed_origins"):
                await policy.resolve(
                    HttpUrl.parse(f"http://{host}:8080/"), peer_host=peer_host, peer_is_authenticated=is_known
                )


@pytest.mark.parametrize(
    "host",
    [
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "198.18.0.1",
        "[fd12::1]",
        "[fc00::1]",
        "[::ffff:10.1.2.3]",
        "[2002:c0a8:101::]",
    ],
)
async def test_private_networks_are_named_by_peers_in_one_and_by_those_that_are_known(
    host: str, no_names: Names
) -> None:
    policy = OutboundPolicy()
    url = f"http://{host}/"
    for peer_host in (LOOPBACK, "::1", PRIVATE, "fd00::7"):
        assert await policy.resolve(HttpUrl.parse(url), peer_host=peer_host)
    for peer_host in STRANGERS:
        assert await policy.resolve(HttpUrl.parse(url), peer_host=peer_host, peer_is_authenticated=True)
        with pytest.raises(UrlRefused, match="in a private network"):
            await policy.resolve(HttpUrl.parse(url), peer_host=peer_host)


@pytest.mark.parametrize(
    "host",
    ["203.0.113.9", "8.8.8.8", "172.15.0.1", "172.32.0.1", "100.128.0.1", "[2600::1]", "[64:ff9b::808:808]"],
)
async def test_public_addresses_are_named_by_everybody(host: str, no_names: Names) -> None:
    for peer_host in (LOOPBACK, PRIVATE, *STRANGERS):
        [found] = await OutboundPolicy().resolve(HttpUrl.parse(f"https://{host}/blobs"), peer_host=peer_host)
        assert found == host.strip("[]")


@given(st.ip_addresses())
def test_every_address_has_one_reach_and_its_mapped_form_the_same(address: Any) -> None:
    reach = reach_of(address)
    if address.version == 4:
        mapped = ipaddress.IPv6Address(f"::ffff:{address}")
        assert reach_of(mapped) is reach
    if reach is Reach.PUBLIC:
        assert not address.is_loopback
        assert not address.is_link_local
        assert not address.is_multicast
        assert not address.is_unspecified


# ---- spellings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://0177.1/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://127.0.0.01/",
        "http://0/",
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://169.254.43518/",
        "http://%31%32%37.0.0.1/",
        "http://①②⑦.⓪.⓪.①/",
        "http://127。0。0。1/",
        "http://[127.0.0.1]/",
        "http://localhost\\@blobs.example/",
        "http://user@blobs.example/",
        "http://user:canary@127.0.0.1/",
        "http://blobs.example:80@127.0.0.1/",
        "http://blobs.example#@127.0.0.1/",
        "http://blobs.example/#fragment",
        "http://blobs.example/?query",
        "http://127.0.0.1 .blobs.example/",
        "http://127.0.0.1\t/",
        "http://127.0.0.1\r\nx: y/",
        "http:///",
        "http://:80/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:65536/",
        "https:127.0.0.1/",
        "//127.0.0.1/",
        "/blobs",
        "",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "gopher://127.0.0.1:6379/_x",
        "unix:/run/blobs.sock",
        "data:,x",
    ],
)
def test_a_url_that_others_could_read_otherwise_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used as a URL") as caught:
        HttpUrl.parse(url)
    assert "canary" not in str(caught.value)


# ---- names ------------------------------------------------------------------------------------------


async def test_a_name_is_looked_up_once_and_what_was_looked_at_is_what_is_connected_to() -> None:
    names = Names(blobs_example=[[PUBLIC], ["169.254.169.254"], ["127.0.0.1"]])
    trio.socket.set_custom_hostname_resolver(names)
    policy = OutboundPolicy()
    assert await policy.resolve(HttpUrl.parse("http://blobs.example/"), peer_host=PUBLIC) == [PUBLIC]
    assert names.asked == ["blobs.example"]
    for why in ("169.254.169.254 is link-local", "127.0.0.1 is this machine itself"):
        with pytest.raises(UrlRefused, match=why) as caught:
            await policy.resolve(HttpUrl.parse("http://blobs.example/"), peer_host=PUBLIC)
        assert caught.value.origin == "http://blobs.example"


@pytest.mark.parametrize(
    "addresses",
    [
        [PUBLIC, "169.254.169.254"],
        ["169.254.169.254", PUBLIC],
        [PUBLIC, "10.0.0.1"],
        ["2600::1", "::ffff:127.0.0.1"],
        ["fe80::1%eth0"],
    ],
)
async def test_a_name_of_which_one_address_is_refused_is_refused(addresses: list[str]) -> None:
    trio.socket.set_custom_hostname_resolver(Names(blobs_example=[addresses]))
    with pytest.raises(UrlRefused):
        await OutboundPolicy().resolve(HttpUrl.parse("http://blobs.example/"), peer_host=PUBLIC)


async def test_a_name_with_several_addresses_gives_each_once_in_the_resolvers_order() -> None:
    addresses = ["2600::1", "203.0.113.9", "203.0.113.7"]
    trio.socket.set_custom_hostname_resolver(Names(blobs_example=[addresses]))
    assert (
        await OutboundPolicy().resolve(HttpUrl.parse("http://blobs.example/"), peer_host=PUBLIC) == addresses
    )


async def test_a_name_without_an_address_is_a_failure_to_connect(no_names: Names) -> None:
    for name in ("unknown.example", "localhost"):
        with pytest.raises(ConnectFailed, match="Name or service not known") as caught:
            await OutboundPolicy().resolve(HttpUrl.parse(f"http://{name}:7837/blobs"), peer_host=LOOPBACK)
        assert caught.value.origin == f"http://{name}:7837"


async def test_localhost_is_what_it_resolves_to() -> None:
    trio.socket.set_custom_hostname_resolver(Names(localhost=[["127.0.0.1", "::1"], ["127.0.0.1", "::1"]]))
    url = "http://localhost:7837/"
    assert await OutboundPolicy().resolve(HttpUrl.parse(url), peer_host=LOOPBACK) == ["127.0.0.1", "::1"]
    with pytest.raises(UrlRefused):
        await OutboundPolicy().resolve(HttpUrl.parse(url), peer_host=PRIVATE, peer_is_authenticated=True)


async def test_the_systems_resolver_is_asked() -> None:
    assert "127.0.0.1" in await OutboundPolicy().resolve(
        HttpUrl.parse("http://localhost:7837/"), peer_host=LOOPBACK
    )


async def test_cancelling_leaves_a_lookup_at_once(autojump_clock: trio.testing.MockClock) -> None:
    class Slow(Names):
        async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
            await trio.sleep_forever()

    trio.socket.set_custom_hostname_resolver(Slow())
    began = trio.current_time()
    with trio.move_on_after(3) as scope:
        await OutboundPolicy().resolve(HttpUrl.parse("http://blobs.example/"), peer_host=LOOPBACK)
    assert scope.cancelled_caught
    assert trio.current_time() - began == 3


# ---- connections ------------------------------------------------------------------------------------


async def test_a_connection_leads_to_an_address_that_was_looked_at_whatever_the_name_says_next() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        # 127.0.0.9 refuses: nobody listens there.
        names = Names(blobs_example=[["127.0.0.9", "127.0.0.1"], ["169.254.169.254"]])
        trio.socket.set_custom_hostname_resolver(names)
        url = HttpUrl.parse(f"http://blobs.example:{port}/")
        async with await OutboundPolicy().connect(url, peer_host=LOOPBACK) as stream:
            assert stream.socket.getpeername() == ("127.0.0.1", port)
        assert names.asked == ["blobs.example"]
        with pytest.raises(UrlRefused):
            await OutboundPolicy().connect(url, peer_host=LOOPBACK)


async def test_addresses_of_which_none_accepts_are_each_named(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def open_tcp_stream(host: str, port: int) -> trio.SocketStream:
        if host == "127.0.0.1":
            raise ConnectionRefusedError(111, "Connection refused")
        return await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", open_tcp_stream)
    trio.socket.set_custom_hostname_resolver(Names(blobs_example=[["127.0.0.1", PUBLIC]]))
    began = trio.current_time()
    with pytest.raises(ConnectFailed) as caught:
        await OutboundPolicy().connect(HttpUrl.parse("http://blobs.example/"), peer_host=LOOPBACK)
    assert caught.value.why == f"127.0.0.1: Connection refused; {PUBLIC}: it is silent"
    assert trio.current_time() - began == 3


@pytest.mark.parametrize("is_local", [True, False])
async def test_that_this_machine_had_no_connection_to_make_is_said(
    is_local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EMFILE if is_local else errno.ECONNREFUSED, "no"),
    ]

    async def open_tcp_stream(host: str, port: int) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        raise failures.pop(0)

    monkeypatch.setattr(trio, "open_tcp_stream", open_tcp_stream)
    trio.socket.set_custom_hostname_resolver(Names(blobs_example=[["127.0.0.1", PUBLIC]]))
    with pytest.raises(ConnectFailed) as caught:
        await OutboundPolicy().connect(HttpUrl.parse("http://blobs.example/"), peer_host=LOOPBACK)
    assert caught.value.is_local is is_local


async def test_a_client_that_connects_so_requests_what_is_allowed_and_nothing_else() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(
                b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n"
            )

    names = Names(blobs_example=[["127.0.0.1"], ["127.0.0.1"]])
    trio.socket.set_custom_hostname_resolver(names)
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(
            trio.serve_listeners, serve, await trio.open_tcp_listeners(0, host="127.0.0.1")
        )
        url = HttpUrl.parse(f"http://blobs.example:{listener.socket.getsockname()[1]}/blobs")

        async def status(peer_host: str) -> int:
            connect = partial(OutboundPolicy().connect, url, peer_host=peer_host)
            async with (
                open_http_client(url, connect=connect) as client,
                client.request("GET", "/blobs") as answer,
            ):
                return answer.status

        with trio.fail_after(20):
            assert await status(LOOPBACK) == 302, "a redirect was followed"
            with pytest.raises(UrlRefused):
                await status(PUBLIC)
        nursery.cancel_scope.cancel()
    assert names.asked == ["blobs.example"] * 2


# ---- the operator's word ----------------------------------------------------------------------------


async def test_what_the_operator_allows_is_requested_whoever_names_it_and_nothing_else() -> None:
    names = Names(blobs_internal=[["127.0.0.1"]] * 2, blobs_example=[[PUBLIC]])
    trio.socket.set_custom_hostname_resolver(names)
    policy = OutboundPolicy(allowed_origins=["http://127.0.0.1:7837", "https://Blobs.Internal:443/"])
    assert await policy.resolve(HttpUrl.parse("http://127.0.0.1:7837/api/v1/blobs"), peer_host=None) == [
        "127.0.0.1"
    ]
    assert await policy.resolve(HttpUrl.parse("https://blobs.internal/x"), peer_host=PUBLIC) == ["127.0.0.1"]
    for url in (
        "http://127.0.0.1:7838/",
        "https://127.0.0.1:7837/",
        "http://127.0.0.2:7837/",
        "http://blobs.internal/",
        "https://blobs.internal.evil.example/",
        "http://blobs.example/",
    ):
        with pytest.raises(UrlRefused, match="none of the allowed_origins"):
            await policy.resolve(HttpUrl.parse(url), peer_host=LOOPBACK, peer_is_authenticated=True)
    assert names.asked == ["blobs.internal"], "a name that is not allowed was looked up"


@pytest.mark.parametrize(
    ("origins", "message"),
    [
        ("http://blobs.internal", "allowed_origins is one string"),
        (["blobs.internal"], "'blobs.internal' cannot be used as a URL"),
        (["*"], "cannot be used as a URL"),
        (["http://user:canary@blobs.internal"], "user name"),
        (["http://blobs.internal/api"], "an origin has no path: http://blobs.internal"),
    ],
)
def test_an_allowed_origin_that_is_none_is_a_clear_error(origins: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        OutboundPolicy(allowed_origins=origins)
    assert "canary" not in str(caught.value)
