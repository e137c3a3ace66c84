"""Serves an ASGI application where it is told to: binds, guards, chooses the host, and says the URL."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import re
import socket
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import trio

from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import BindFailed, ConfigError
from stepflow_trio.transports.http.asgi import AsgiApp
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import HttpSecurity, TlsFiles, guard, server_ssl_context

HostName: TypeAlias = Literal["auto", "h11", "hypercorn"]

BACKLOG_CONNECTIONS = 4096
"""Connections that the kernel keeps until they are accepted, unless it has a lower bound of its own. Those of
a burst that it does not keep try again after a second."""

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", re.ASCII)
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 — a client on this machine reaches it there

_FAMILIES = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}

_log = logging.getLogger("stepflow_trio.transports.http")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpHost:
    """A server that takes requests, while the block of :func:`open_http_host` lasts."""

    port: int
    """The port that it is bound to; 0: a Unix socket has none."""

    url: str
    """Where a client on this machine finds it: ``http://127.0.0.1:43211``, or ``unix:/path``."""


@asynccontextmanager
async def open_http_host(
    app: AsgiApp,
    *,
    bind: str = "127.0.0.1:0",
    host: HostName = "auto",
    limits: HttpServerLimits | None = None,
    security: HttpSecurity | None = None,
    tls: TlsFiles | None = None,
    allow_insecure_bind: bool = False,
    drain: Callable[[], Awaitable[object]] | None = None,
) -> AsyncGenerator[HttpHost]:
    """Serve ``app``, guarded by ``security``, as long as the block lasts.

    ``bind`` is ``host:port`` or ``[::1]:port``, where port 0 takes a free one and ``localhost`` is 127.0.0.1;
    ``unix:/path``, a socket that only this user can connect to, removed at the end; or ``fd://3``, a
    listening socket that was inherited and is closed at the end. One address is bound, of one family.

    ``host`` is what speaks HTTP: ``h11``, the faster one, for clients on this machine; ``hypercorn``, which
    knows TLS and HTTP/2; ``auto``: h11 where only this machine can connect and there is no TLS.

    When the block begins, connections are accepted. When it ends in order, requests in flight may finish for
    ``limits.drain_s``. When it is cancelled or an exception leaves it, all connections are closed at once.

    ``drain`` is what comes first when the block ends in order, while new connections are still accepted, for
    an application that needs them to finish. Then the server ends as above; ``limits.drain_s`` is the time
    that both may take together.

    Raises:
        ConfigError: ``bind`` is not written as above; a file of ``tls`` cannot be used; ``h11`` is to speak
            TLS; or other machines could connect, neither bearer tokens nor client certificates are asked for,
            and ``allow_insecure_bind`` does not say that this is meant.
        BindFailed: the address is in use or not this machine's, the file is not the socket of a server that
            has ended, or the descriptor is no listening socket.
    """
    place = parse_bind(bind)
    security = security or HttpSecurity()
    limits = limits or HttpServerLimits()
    _check_host(host, tls)
    if tls is not None:
        server_ssl_context(tls)  # here its errors come before anything is bound
    with ExitStack() as closing:
        listening = await _listen(place, closing)
        is_local = _is_local(listening)
        if not is_local:
            _check_open_bind(bind, security, tls, allow_insecure_bind)
        found = _host_of(place, listening, "http" if tls is None else "https")

        stop = trio.Event()
        guarded = guard(app, security)
        listeners = [trio.SocketListener(listening)]
        # Each host is imported where it is needed: a worker must start fast.
        if host == "h11" or (host == "auto" and is_local and tls is None):
            from stepflow_trio.transports.http.h11_host import serve_h11

            serve = partial(serve_h11, guarded, listeners, limits=limits, stop=stop)
        else:
            from stepflow_trio.transports.http.hypercorn_host import serve_hypercorn

            serve = partial(serve_hypercorn, guarded, listeners, limits=limits, stop=stop, tls=tls)
        with one_exception():
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, name="serve HTTP")
                yield found
                if drain is not None:
                    nursery.cancel_scope.deadline = trio.current_time() + limits.drain_s
                    await drain()
                stop.set()


# ---- what a bind says -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TcpBind:
    """``host:port``."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixBind:
    """``unix:/path``."""

    path: str


@dataclass(frozen=True, slots=True)
class FdBind:
    """``fd://N``."""

    fd: int


def parse_bind(bind: str) -> TcpBind | UnixBind | FdBind:
    """Read where to listen, as :func:`open_http_host` describes it.

    Raises:
        ConfigError: it is not written so; with what to write instead.
    """
    if bind.startswith("unix:"):
        path = bind.removeprefix("unix:")
        if not path or "\0" in path:
            raise ConfigError(f"bind is {bind!r}; a path follows unix:, such as unix:/run/worker.sock")
        return UnixBind(str(Path(path).absolute()))
    if bind.startswith("fd:"):
        number = bind.removeprefix("fd://")
        if not (number.isascii() and number.isdigit() and len(number) < 8):
            raise ConfigError(f"bind is {bind!r}; the number of a descriptor follows fd://, such as fd://3")
        return FdBind(int(number))
    written = _ADDRESS.fullmatch(bind)
    if written is None or int(written[3]) >= 2**16 or (written[1] and _ip(written[1]) is None):
        raise ConfigError(f"bind is {bind!r}; {_how_to_bind(bind)}")
    return TcpBind(written[1] or written[2], int(written[3]))


def _how_to_bind(bind: str) -> str:
    host, _, port = bind.rpartition(":")
    if "://" in bind:
        return "it takes host:port, not a URL"
    if _ip(bind) is not None and ":" not in bind:
        return f"it names no port: {bind}:0 takes a free one"
    if host in ("", "*") and bind.lstrip("*:").isdecimal():
        port = bind.lstrip("*:")
        return f"name the address too: 127.0.0.1:{port} for this machine alone, 0.0.0.0:{port} for every one"
    if host.count(":") > 1 and "[" not in bind and port.isdecimal():
        return f"an IPv6 address stands in brackets: [{host}]:{port}"
    if port.isascii() and port.isdecimal() and int(port) >= 2**16:
        return f"ports go up to {2**16 - 1}"
    return "it takes host:port, [IPv6 address]:port, unix:/path or fd://N"


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


# ---- who can reach it -------------------------------------------------------------------------------


def _check_host(host: str, tls: TlsFiles | None) -> None:
    if host not in ("auto", "h11", "hypercorn"):
        raise ConfigError(f"host is {host!r}; it must be auto, h11 or hypercorn")
    if host == "h11" and tls is not None:
        raise ConfigError("the h11 host speaks no TLS: leave host at auto, or say hypercorn")


def _check_open_bind(
    bind: str, security: HttpSecurity, tls: TlsFiles | None, allow_insecure_bind: bool
) -> None:
    if security.bearer is not None or (tls is not None and tls.client_ca is not None):
        return
    if not allow_insecure_bind:
        raise ConfigError(
            f"bind is {bind!r}, which other machines can reach, and whoever does could call: ask for bearer "
            "tokens (security=HttpSecurity(bearer=…)) or client certificates (tls=TlsFiles(…, client_ca=…)), "
            "bind 127.0.0.1, or say allow_insecure_bind=True"
        )
    _log.warning("%s is open to other machines without bearer tokens or client certificates", bind)


def _is_local(listening: trio.socket.SocketType) -> bool:
    """Whether only this machine can connect to it."""
    if listening.family == socket.AF_UNIX:
        return True
    ip = ipaddress.ip_address(listening.getsockname()[0])
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


# ---- sockets ----------------------------------------------------------------------------------------


async def _listen(place: TcpBind | UnixBind | FdBind, closing: ExitStack) -> trio.socket.SocketType:
    """What ``closing`` closes, and removes where it is a Unix socket."""
    match place:
        case TcpBind():
            listening = await _listen_tcp(place)
        case UnixBind():
            listening = trio.socket.from_stdlib_socket(_listen_unix(place, closing))
        case FdBind():
            listening = trio.socket.from_stdlib_socket(_adopt(place))
    closing.callback(listening.close)
    return listening


async def _listen_tcp(place: TcpBind) -> trio.socket.SocketType:
    name = _authority(place.host, place.port)
    address = place.host
    if address == "localhost":
        address = "127.0.0.1"
    elif _ip(address) is None:
        try:
            found = await trio.socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:  # UnicodeError: a label is too long to be looked up
            why = exc.strerror if isinstance(exc, OSError) else exc
            raise BindFailed(name, f"this name has no address: {why}") from exc
        address = str(found[0][4][0])
    try:
        [listener] = await trio.open_tcp_listeners(place.port, host=address, backlog=BACKLOG_CONNECTIONS)
    except OSError as exc:
        why = {
            errno.EADDRINUSE: "another program listens there already; port 0 takes a free port",
            errno.EADDRNOTAVAIL: f"{address} is not an address of this machine",
            errno.EACCES: "this user may not take that port; those from 1024 on are free to all",
        }.get(exc.errno or 0, _why(exc))
        raise BindFailed(name, why) from exc
    return listener.socket


def _listen_unix(place: UnixBind, closing: ExitStack) -> socket.socket:
    path = place.path
    listening = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        listening.bind(path)
        try:
            # Nobody can connect before it listens, so nobody slips in while it is open to others.
            Path(path).chmod(0o600)
            listening.listen(BACKLOG_CONNECTIONS)
            closing.callback(_unlink, path, _identity(path))
        except BaseException:
            os.unlink(path)
            raise
    except BaseException as exc:
        listening.close()
        if isinstance(exc, OSError):
            raise BindFailed(f"unix:{path}", _why(exc)) from exc
        raise
    return listening


def _remove_stale(path: str) -> None:
    """Remove the socket that a server which was killed has left; let anything else be."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise BindFailed(f"unix:{path}", "a file that is no socket is in its place, and is left alone")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                os.unlink(path)
            return
        except BlockingIOError:  # there is somebody, who has much to do
            pass
    raise BindFailed(f"unix:{path}", "another program listens there already")


def _identity(path: str) -> tuple[int, int, int]:
    """What a file of the same name does not share, even if it was given the same inode."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino, status.st_ctime_ns


def _unlink(path: str, identity: tuple[int, int, int]) -> None:
    # Another server may have replaced it meanwhile.
    with suppress(OSError):
        if _identity(path) == identity:
            os.unlink(path)


def _adopt(place: FdBind) -> socket.socket:
    name = f"fd://{place.fd}"
    try:
        adopted = socket.socket(fileno=place.fd)
    except OSError as exc:
        why = {errno.EBADF: "it is not open", errno.ENOTSOCK: "it is no socket"}
        raise BindFailed(name, why.get(exc.errno or 0, _why(exc))) from exc
    is_stream = adopted.family in _FAMILIES and adopted.type == socket.SOCK_STREAM
    if not (is_stream and adopted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
        adopted.detach()  # it stays its owner's
        raise BindFailed(name, "it is a socket, but does not listen for connections")
    adopted.set_inheritable(False)
    return adopted


def _why(exc: OSError) -> str:
    return exc.strerror or str(exc)


def _host_of(place: TcpBind | UnixBind | FdBind, listening: trio.socket.SocketType, scheme: str) -> HttpHost:
    bound = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return HttpHost(port=0, url=f"unix:{os.fsdecode(bound)}")
    name, port = place.host if isinstance(place, TcpBind) else bound[0], bound[1]
    return HttpHost(port=port, url=f"{scheme}://{_authority(_ANY_ADDRESS.get(name, name), port)}")


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
