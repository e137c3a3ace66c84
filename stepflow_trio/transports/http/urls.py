"""The URLs that a client may be given."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from stepflow_trio.errors import ConfigError

DEFAULT_PORTS = {"http": 80, "https": 443}
"""Of a URL, and of a Host header, that names none."""

REQUEST_TARGET = re.compile(r"/[!-~]*")
"""A path from its first slash on, with a query or without, percent-encoded."""

_SHOWN_CHARS = 200
_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?(?P<fragment>#.*)?",
    re.IGNORECASE,
)
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[^:]*))?")
_HOST_NAME = re.compile(
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.?"
)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpUrl:
    """An http or https URL without userinfo, query and fragment; :meth:`parse` makes it."""

    scheme: Literal["http", "https"]
    host: str
    """A name in lower case, or an IP address, an IPv6 one without its brackets."""
    port: int
    path: str = "/"
    """As it was given, percent-encoding included; ``/`` where there was none."""

    @classmethod
    def parse(cls, text: str) -> HttpUrl:
        """Read ``text``.

        Refused as well is what others would read in another way: spaces and control characters, backslashes,
        and numbers as a host that are no IPv4 address of four decimal parts.

        Raises:
            ConfigError: it is none that can be used; the message never shows a user name, password or query.
        """
        if bad := next((char for char in text if not "!" <= char <= "~" or char == "\\"), None):
            what = "a space" if bad == " " else f"the character {bad!a}"
            hint = "; write a host name in its xn-- form, and percent-encode a path" if bad > "~" else ""
            raise _invalid(text, f"it has {what}, which no URL may have{hint}")
        parts = _URL.fullmatch(text)
        if parts is None:
            raise _invalid(text, "it does not begin with http:// or https://")
        scheme = parts["scheme"].lower()
        if scheme not in DEFAULT_PORTS:
            raise _invalid(text, "only http and https can be used")
        if "@" in parts["authority"]:
            raise _invalid(text, "it has a user name before the host, which is not used; give a bearer token")
        if parts["query"] is not None or parts["fragment"] is not None:
            raise _invalid(text, "it has a query or a fragment, to which no path can be added")
        place = _AUTHORITY.fullmatch(parts["authority"])
        if place is None:
            raise _invalid(text, "it has more than a host and a port; an IPv6 address goes into brackets")
        return cls(
            scheme="https" if scheme == "https" else "http",
            host=_host(text, place["host"].lower()),
            port=_port(text, place["port"], DEFAULT_PORTS[scheme]),
            path=parts["path"] or "/",
        )

    @property
    def is_tls(self) -> bool:
        """Whether the scheme is https."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """Host and port as a ``Host`` header has them: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """The URL without its path."""
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return self.origin + self.path


def _host(text: str, host: str) -> str:
    if not host:
        raise _invalid(text, "it has no host")
    if host.startswith("["):
        try:
            address = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise _invalid(text, "what stands in brackets is no IPv6 address") from None
        if address.scope_id is not None:
            raise _invalid(text, "its IPv6 address names an interface, which means nothing to a server")
        return str(address)
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise _invalid(
                text, "its host ends in a number but is no IPv4 address of four decimal parts"
            ) from None
    if len(host) > 253 or _HOST_NAME.fullmatch(host) is None:
        raise _invalid(text, "its host is no name of letters, digits, hyphens and dots")
    return host


def _port(text: str, port: str | None, default: int) -> int:
    if port is None:
        return default
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise _invalid(text, "its port is no number from 1 to 65535")
    return int(port)


def _invalid(text: str, why: str) -> ConfigError:
    return ConfigError(f"{_shown(text)!r} cannot be used as a URL: {why}")


def _shown(text: str) -> str:
    """``text`` without what may be secret in it, however it is meant to be divided."""
    before, has_user, shown = text.rpartition("@")
    if has_user:
        scheme = before.partition("://")[0]
        shown = f"{scheme}://…@{shown}" if scheme.lower() in DEFAULT_PORTS else f"…@{shown}"
    shown, has_query, _ = shown.partition("?")
    shown += "?…" if has_query else ""
    return shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + "…"
