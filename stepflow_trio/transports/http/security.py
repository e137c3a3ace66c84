"""Who may reach an HTTP server of ours: names it answers to, web pages, bearer tokens, certificates."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeAlias

import trio

from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import ConfigError
from stepflow_trio.transports.http.asgi import AsgiApp, Receive, Scope, Send
from stepflow_trio.transports.http.bearer import BearerTokens
from stepflow_trio.transports.http.urls import DEFAULT_PORTS

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
"""What this machine calls itself: no page from elsewhere has one of these names."""

_MAX_KNOWN_HOSTS = 256
"""Spellings of the Host header that are remembered as allowed; there are more only if somebody plays."""

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::(0|[1-9][0-9]{0,4}))?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://((?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]+)?)")

_Server: TypeAlias = tuple[str, int | None] | None

_log = logging.getLogger("stepflow_trio.transports.http")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSecurity:
    """Which requests :func:`guard` lets pass. What it says by default is on by default.

    Raises:
        ConfigError: a name, an origin or a path is not written as one.
    """

    allowed_hosts: Sequence[str] = ()
    """Names that the server answers to besides ``localhost``, ``127.0.0.1``, ``[::1]`` and the address that
    the client reached, each with the bound port: ``worker.internal`` (at any port), ``worker.internal:8443``,
    or ``*``: any, so that nothing protects from DNS rebinding."""

    allowed_origins: Sequence[str] = ()
    """Web pages that may call: ``https://console.example``, as a browser's Origin header says it. There is no
    ``*``, and no CORS headers are sent."""

    bearer: BearerTokens | None = None
    """Tokens of which a client must bear one. None: whoever reaches the server may call."""

    open_paths: Sequence[str] = ("/health",)
    """Paths that need no token: balancers probe them."""

    def __post_init__(self) -> None:
        for name in ("allowed_hosts", "allowed_origins", "open_paths"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} is one string; it must be a list of them")
        if self.bearer is not None and not isinstance(self.bearer, BearerTokens):  # pyright: ignore[reportUnnecessaryIsInstance]: callers are not all checked
            raise ConfigError(f"bearer is a {type(self.bearer).__name__}; it must be BearerTokens(…)")
        for host in self.allowed_hosts:
            _allowed_host(host)
        for origin in self.allowed_origins:
            _allowed_origin(origin)
        for path in self.open_paths:
            if not path.startswith("/"):
                raise ConfigError(f"open_paths has {path!r}; a path begins with /")


def guard(app: AsgiApp, security: HttpSecurity) -> AsgiApp:
    """``app``, reached only by requests that ``security`` allows.

    Refused are, in this order and with a JSON body that says how the operator allows it:

    - 400: a request without exactly one Host header.
    - 421: a Host, or a host in an absolute request target, that is not this server's name (DNS rebinding).
    - 403: a web page whose origin is not allowed, or a request that a page of another site caused.
    - 401: no token, or one that is not valid, where tokens are asked for.

    What is no HTTP request (ASGI scopes of another type than ``http``) is passed on as it is, unguarded.
    """
    refusal_of = _Rules(security).refusal_of

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        refusal = refusal_of(scope) if scope["type"] == "http" else None
        if refusal is None:
            await app(scope, receive, send)
        else:
            await _refuse(refusal, receive, send)

    return guarded


class _Refusal:
    """An answer that does not depend on the request, so that nothing of it is echoed."""

    def __init__(self, status: int, error: str, *headers: tuple[bytes, bytes]) -> None:
        self.status = status
        self.error = error
        self.body = f'{{"code":{status},"message":"{error}"}}'.encode("ascii")
        self.headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self.body)),
            (b"cache-control", b"no-store"),
            *headers,
        ]


_NOT_ONE_HOST = _Refusal(400, "a request must have exactly one Host header")
_NOT_OUR_NAME = _Refusal(
    421,
    "this server does not answer to the host and port that the request names; "
    "its operator can add them to allowed_hosts",
)
_WEB_PAGE = _Refusal(
    403,
    "requests of web pages are refused, except from the origins that the operator lists in allowed_origins",
)
_NO_TOKEN = _Refusal(
    401,
    "this server asks for a token: send one header Authorization: Bearer <token>",
    (b"www-authenticate", b"Bearer"),
)
_WRONG_TOKEN = _Refusal(401, "the bearer token is not one of this server's", (b"www-authenticate", b"Bearer"))

_OWN_SITE = frozenset({b"same-origin", b"none"})
"""What a browser's ``Sec-Fetch-Site`` says when no other site caused the request."""

_EXAMINED = frozenset({b"host", b"authorization", b"origin", b"sec-fetch-site"})


class _Rules:
    """``HttpSecurity`` made ready for one pass over each request's headers."""

    def __init__(self, security: HttpSecurity) -> None:
        self._bearer = security.bearer
        self._open_paths = frozenset(security.open_paths)
        self._origins = frozenset(_allowed_origin(origin) for origin in security.allowed_origins)
        self._allows_any_host = "*" in security.allowed_hosts
        self._hosts = frozenset(_allowed_host(host) for host in security.allowed_hosts)
        self._known: set[tuple[bytes, str, _Server]] = set()

    def refusal_of(self, scope: Scope) -> _Refusal | None:
        """Why this request is refused; None: it is not."""
        host: bytes | None = None
        authorization: bytes | None = None
        is_page = is_foreign = is_caused_elsewhere = False
        for name, value in scope["headers"]:
            if name in _EXAMINED:
                if name == b"host":
                    if host is not None:
                        return _NOT_ONE_HOST
                    host = value
                elif name == b"authorization":
                    # Of two it would not be clear which one counts: then none does.
                    authorization = value if authorization is None else b""
                elif name == b"origin":
                    is_page = True
                    is_foreign = is_foreign or value not in self._origins
                elif value not in _OWN_SITE:
                    is_caused_elsewhere = True
        if host is None:
            return _NOT_ONE_HOST
        path: str = scope["path"]
        if not (self._allows_any_host or self._is_named_by(host, scope)):
            return _NOT_OUR_NAME
        if path[:1] != "/" and not self._allows_target(scope):
            return _NOT_OUR_NAME
        if is_foreign or (is_caused_elsewhere and not is_page):
            return _WEB_PAGE
        if self._bearer is not None and path not in self._open_paths:
            if authorization is None:
                return _NO_TOKEN
            if not self._bearer.accept(authorization):
                return _WRONG_TOKEN
        return None

    def _is_named_by(self, host: bytes, scope: Scope) -> bool:
        server = scope.get("server")
        key = (host, scope.get("scheme", "http"), None if server is None else tuple(server))
        if key in self._known:
            return True
        is_ours = self._is_ours(*key)
        if is_ours and len(self._known) < _MAX_KNOWN_HOSTS:
            self._known.add(key)
        return is_ours

    def _is_ours(self, host: bytes, scheme: str, server: _Server) -> bool:
        named = _HOST.fullmatch(host.decode("latin-1").lower())
        if named is None:
            return False
        name = _normal_name(named)
        port = int(named[3]) if named[3] else DEFAULT_PORTS.get(scheme)
        if (name, None) in self._hosts or (name, port) in self._hosts:
            return True
        if server is None or server[1] is None:  # a Unix socket
            return name in LOOPBACK_NAMES and not named[3]
        return port == server[1] and (name in LOOPBACK_NAMES or name == _normal_address(server[0]))

    def _allows_target(self, scope: Scope) -> bool:
        """Whether a target that is no path (RFC 9112, section 3.2) names this server."""
        target: bytes = scope.get("raw_path") or scope["path"].encode()
        scheme, mark, rest = target.partition(b"://")
        if not mark:
            return target == b"*"
        if scheme.lower() not in (b"http", b"https"):
            return False
        return self._allows_any_host or self._is_named_by(re.split(rb"[/?]", rest, maxsplit=1)[0], scope)


def _normal_name(named: re.Match[str]) -> str:
    return _normal_address(named[1]) if named[1] else named[2]


def _normal_address(text: str) -> str:
    """An IP address in the one form that all its spellings share; any other text as it is."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    return str(getattr(address, "ipv4_mapped", None) or address)


def _allowed_host(entry: str) -> tuple[str, int | None]:
    named = _HOST.fullmatch(entry.lower())
    if entry != "*" and (named is None or int(named[3] or 1) not in range(1, 2**16)):
        hint = "; an IPv6 address stands in brackets" if entry.count(":") > 1 else ""
        raise ConfigError(
            f"allowed_hosts has {entry!r}; it takes hosts with or without a port, such as worker.internal or "
            f"worker.internal:8443, and * for any{hint}"
        )
    return (entry, None) if named is None else (_normal_name(named), int(named[3]) if named[3] else None)


def _allowed_origin(entry: str) -> bytes:
    written = _ORIGIN.fullmatch(entry.lower())
    if written is None:
        raise ConfigError(
            f"allowed_origins has {entry!r}; it takes what a browser sends as the origin of a page that you "
            "trust, such as https://console.example or http://localhost:3000, without a path"
        )
    scheme, authority = written[1], written[2]
    return f"{scheme}://{authority.removesuffix(f':{DEFAULT_PORTS.get(scheme)}')}".encode()


async def _refuse(refusal: _Refusal, receive: Receive, send: Send) -> None:
    _log.info("a request was answered with %d: %s", refusal.status, refusal.error)
    start = {"type": "http.response.start", "status": refusal.status, "headers": refusal.headers}
    with one_exception():
        async with trio.open_nursery() as nursery:
            # hypercorn sends nothing while the body that nobody takes fills its queue.
            nursery.start_soon(_discard_body, receive)
            await send(start)
            await send({"type": "http.response.body", "body": refusal.body})
            nursery.cancel_scope.cancel(reason="the refusal was sent")


async def _discard_body(receive: Receive) -> None:
    while (await receive()).get("more_body", False):
        pass


@dataclass(frozen=True, slots=True, init=False)
class TlsFiles:
    """The PEM files with which a server speaks TLS. They are read when the server starts.

    Raises:
        ConfigError: what is given for a file is no path.
    """

    certificate: Path
    """Its certificate, followed by those of the authorities between it and the root."""

    private_key: Path
    """Without a passphrase."""

    client_ca: Path | None
    """The authorities of clients. Given, a client without a certificate of theirs is not served."""

    def __init__(
        self,
        *,
        certificate: str | os.PathLike[str],
        private_key: str | os.PathLike[str],
        client_ca: str | os.PathLike[str] | None = None,
    ) -> None:
        set_field = partial(object.__setattr__, self)  # it is frozen
        set_field("certificate", _path("certificate", certificate))
        set_field("private_key", _path("private_key", private_key))
        set_field("client_ca", None if client_ca is None else _path("client_ca", client_ca))


def server_ssl_context(
    tls: TlsFiles, *, alpn_protocols: Sequence[str] = ("h2", "http/1.1")
) -> ssl.SSLContext:
    """TLS 1.2 or newer as a server, with the files of ``tls``.

    Raises:
        ConfigError: a file is missing or cannot be read, holds nothing of its kind, or the key is not that of
            the certificate. Its ``place`` is the file.
    """
    if not isinstance(tls, TlsFiles):  # pyright: ignore[reportUnnecessaryIsInstance]: callers are not all checked
        raise ConfigError(f"tls is a {type(tls).__name__}; for a server it must be TlsFiles(…)")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _use_certificate(context, tls.certificate, tls.private_key)
    if tls.client_ca is not None:
        _trust(context, tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return _finish(context, alpn_protocols)


def client_ssl_context(
    *,
    server_ca: str | os.PathLike[str] | None = None,
    certificate: str | os.PathLike[str] | None = None,
    private_key: str | os.PathLike[str] | None = None,
) -> ssl.SSLContext:
    """TLS 1.2 or newer as a client that checks the server's name and certificate.

    All three are paths of PEM files. ``server_ca`` are the authorities to trust instead of the system's.
    ``certificate`` is shown, and proved with ``private_key``, to a server that asks for it (mutual TLS).

    Raises:
        ConfigError: as :func:`server_ssl_context` says, or only one of the certificate and its key is given.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if server_ca is None:
        context.load_default_certs()
    else:
        _trust(context, _path("server_ca", server_ca))
    if certificate is not None and private_key is not None:
        _use_certificate(context, _path("certificate", certificate), _path("private_key", private_key))
    elif certificate is not None or private_key is not None:
        given, missing = (
            ("certificate", "private_key") if certificate is not None else ("private_key", "certificate")
        )
        raise ConfigError(f"{given} is given without {missing}: a client shows both or none")
    return _finish(context, ["http/1.1"])


def _finish(context: ssl.SSLContext, alpn_protocols: Sequence[str]) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([*alpn_protocols])
    return context


def _use_certificate(context: ssl.SSLContext, certificate: Path, private_key: Path) -> None:
    # OpenSSL does not say which of the two files is at fault: the certificate is tried alone first.
    _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate)
    _check_readable(private_key)
    try:
        context.load_cert_chain(certificate, private_key, password=partial(_refuse_passphrase, private_key))
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            what = f"this private key does not belong to certificate {certificate}"
        else:
            what = f"it holds no PEM private key that can be used: {exc.reason}"
        raise ConfigError(what, str(private_key)) from exc


def _refuse_passphrase(private_key: Path) -> NoReturn:
    # Without this OpenSSL would ask for it on the terminal.
    raise ConfigError("the private key is encrypted; write one without a passphrase", str(private_key))


def _trust(context: ssl.SSLContext, ca: Path) -> None:
    _check_readable(ca)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as exc:
        raise ConfigError(f"it holds no PEM certificate that can be used: {exc.reason}", str(ca)) from exc


def _path(name: str, given: str | os.PathLike[str]) -> Path:
    try:
        return Path(given)
    except TypeError:
        raise ConfigError(f"{name} is a {type(given).__name__}; it must be the path of a PEM file") from None


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise ConfigError(f"the file cannot be read: {why}", str(path)) from exc
