"""Which URLs that a peer names are requested: none that leads to what the peer itself cannot reach.

A runtime tells its workers where its blobs are (docs/protocol.md, section 6). Whoever may call a worker could
so make it request whatever the worker's machine reaches: its loopback services, the cloud's metadata.
"""

from __future__ import annotations

import enum
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import trio

from stepflow_trio.errors import ConfigError, ConnectFailed, UrlRefused
from stepflow_trio.transports.http.pool import is_own_lack, why_failed
from stepflow_trio.transports.http.urls import HttpUrl

CONNECT_ADDRESS_S = 3.0
"""An address that is silent for so long is given up for the next one."""

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class Reach(enum.Enum):
    """From where an address can be reached, and so who may name it."""

    LOOPBACK = "loopback"
    """This machine alone: a peer on this machine may name it."""
    PRIVATE = "private"
    """A private network: a peer on this machine or a private network may name it, or one that is known."""
    PUBLIC = "public"
    """Everywhere: any peer may name it."""
    FORBIDDEN = "forbidden"
    """Link-local addresses, where clouds keep their credentials, and what is no host: nobody may name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundPolicy:
    """Which URLs of peers are requested.

    Raises:
        ConfigError: one of ``allowed_origins`` is no http or https origin.
    """

    allowed_origins: Sequence[str] = ()
    """Such as ``http://blobs.internal:7837``. Given, these alone are requested, whoever names them and
    wherever they lead, :attr:`Reach.FORBIDDEN` aside. Behind a reverse proxy, where every peer seems to be on
    this machine, they should be given."""

    def __post_init__(self) -> None:
        if isinstance(self.allowed_origins, str):
            raise ConfigError("allowed_origins is one string; it must be a list of them")
        for origin in self.allowed_origins:
            url = HttpUrl.parse(origin)
            if url.path != "/":
                raise ConfigError(f"allowed_origins has {str(url)!r}; an origin has no path: {url.origin}")

    async def resolve(
        self, url: HttpUrl, *, peer_host: str | None, peer_is_authenticated: bool = False
    ) -> list[str]:
        """The addresses of ``url``, to connect to one of them, and to nothing else.

        The name is looked up once, here: were it looked up again to connect, its owner could give another
        address then. A redirect leads to a URL that was not looked at, so none must be followed.

        ``peer_host`` is the IP address of the peer that named the URL; a peer over a pipe or a Unix socket is
        at ``127.0.0.1``. None: it is not known, and counts as a stranger. A peer that bore a token or a
        certificate is authenticated.

        Cancelling leaves at once; how long a lookup may take is for the caller to bound.

        Raises:
            UrlRefused: this peer may not name it.
            ConnectFailed: its host has no address.
        """
        allowed = {HttpUrl.parse(origin).origin for origin in self.allowed_origins}
        if allowed and url.origin not in allowed:
            raise UrlRefused(url.origin, "it is none of the allowed_origins")
        may_name = set(Reach) - {Reach.FORBIDDEN} if allowed else _may_name(peer_host, peer_is_authenticated)
        addresses = await _look_up(url)
        for address in addresses:
            # One that is refused refuses all: whoever mixes them wants it to be tried.
            if (reach := reach_of(address)) not in may_name:
                raise UrlRefused(url.origin, f"its address {address} {_WHY_NOT[reach]}")
        return [str(address) for address in addresses]

    async def connect(
        self, url: HttpUrl, *, peer_host: str | None, peer_is_authenticated: bool = False
    ) -> trio.SocketStream:
        """A connection to one of the addresses that :meth:`resolve` gives, tried in their order.

        It is what an HTTP client is to be opened with (its argument ``connect``), so that none of its
        connections leads elsewhere.

        Raises:
            UrlRefused: this peer may not name it.
            ConnectFailed: its host has no address, or none of them accepts.
        """
        failures: list[str] = []
        is_local = True
        for address in await self.resolve(
            url, peer_host=peer_host, peer_is_authenticated=peer_is_authenticated
        ):
            try:
                with trio.fail_after(CONNECT_ADDRESS_S):
                    return await trio.open_tcp_stream(address, url.port)
            except (OSError, trio.TooSlowError) as exc:
                is_local = is_local and is_own_lack(exc)
                failures.append(
                    f"{address}: {why_failed(exc) if isinstance(exc, OSError) else 'it is silent'}"
                )
        raise ConnectFailed(url.origin, "; ".join(failures), is_local=is_local)


def reach_of(address: _Address) -> Reach:
    """From where ``address`` can be reached. One that carries an IPv4 address in itself counts as that."""
    if isinstance(address, ipaddress.IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            carried = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if carried is not None:
            return reach_of(carried)
    for network, reach in _NETWORKS:
        if address in network:
            return reach
    return Reach.PUBLIC if address.version == 4 or address in _GLOBAL_UNICAST else Reach.FORBIDDEN


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

_REACHES = {
    # The metadata services of clouds that are not link-local stand in front.
    Reach.FORBIDDEN: """
        100.100.100.200/32 168.63.129.16/32 192.0.0.0/24 fd00:ec2::/32 fd20:ce::254/128 fd00:42::42/128
        169.254.0.0/16 0.0.0.0/8 224.0.0.0/4 240.0.0.0/4 fe80::/10 ff00::/8 2001::/32
    """,
    Reach.LOOPBACK: "127.0.0.0/8 ::1/128",
    Reach.PRIVATE: "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 198.18.0.0/15 fc00::/7",
}
_NETWORKS = [(ipaddress.ip_network(each), reach) for reach, them in _REACHES.items() for each in them.split()]
"""The first that holds an address tells its reach (RFC 6890)."""

_WHY_NOT = {
    Reach.FORBIDDEN: "is link-local, or no host at all",
    Reach.LOOPBACK: (
        "is this machine itself, which only a peer on it may name; "
        "the operator can list the URL in allowed_origins"
    ),
    Reach.PRIVATE: (
        "is in a private network, which a peer outside of one may name only with a bearer token or a "
        "certificate; the operator can list the URL in allowed_origins"
    ),
}


def _may_name(peer_host: str | None, peer_is_authenticated: bool) -> set[Reach]:
    try:
        where = None if peer_host is None else reach_of(ipaddress.ip_address(peer_host))
    except ValueError:
        where = None
    if where is Reach.LOOPBACK:
        return {Reach.PUBLIC, Reach.PRIVATE, Reach.LOOPBACK}
    if where is Reach.PRIVATE or peer_is_authenticated:
        return {Reach.PUBLIC, Reach.PRIVATE}
    return {Reach.PUBLIC}


async def _look_up(url: HttpUrl) -> list[_Address]:
    try:
        found = await trio.socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise ConnectFailed(url.origin, f"this name has no address: {why}") from exc
    # Each once, in the resolver's order.
    return list(dict.fromkeys(ipaddress.ip_address(each[4][0]) for each in found))
