"""The HTTP/1.1 client: one origin, kept connections, streaming both ways, bounds and deadlines everywhere."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from typing import TypeAlias, cast, final

import h11
import trio

from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import (
    CallTimeout,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    LocalProtocolError,
    LossReason,
    StepflowError,
)
from stepflow_trio.transports.http.bearer import BearerTokens, SecretStr, as_secret, authorization
from stepflow_trio.transports.http.dead_peers import notice_dead_peers
from stepflow_trio.transports.http.limits import HttpClientLimits
from stepflow_trio.transports.http.pool import (
    ConnectionPool,
    HttpConnection,
    close_by_force,
    is_own_lack,
    why_failed,
)
from stepflow_trio.transports.http.tls_hints import first_answer_hint, handshake_hint
from stepflow_trio.transports.http.urls import REQUEST_TARGET, HttpUrl

SMALL_BODY_BYTES = 16 * 2**10
"""A request's body up to this size is sent before the answer is looked for: the system's buffers hold it. A
larger one is sent by a task of its own, for the server may answer before it has read it."""

LAST_ANSWER_S = 1.0
"""A server that takes no more of a request may have said why. So long its answer is waited for."""

Body: TypeAlias = bytes | AsyncIterable[bytes]
Connect: TypeAlias = Callable[[], Awaitable[trio.abc.Stream]]

_OWN_HEADERS = frozenset([b"host", b"connection", b"transfer-encoding", b"upgrade", b"expect", b"te"])
_BODY_METHODS = frozenset(["POST", "PUT", "PATCH"])
"""These say ``content-length: 0`` where they have no body (RFC 9110, section 8.6)."""


@final
class HttpHeaders:
    """The headers of an answer, as they came but for their names, which are in lower case."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        self._items = list(items)

    def get(self, name: bytes) -> bytes | None:
        """The value of ``name``, given in lower case; where it came more than once, with commas between."""
        values = [value for each, value in self._items if each == name]
        return b", ".join(values) if values else None

    @property
    def media_type(self) -> bytes:
        """The content type in lower case, without its parameters; empty where there is none."""
        return (self.get(b"content-type") or b"").split(b";", 1)[0].strip().lower()

    def __repr__(self) -> str:
        return f"<HttpHeaders {', '.join(name.decode('ascii') for name, _ in self._items)}>"


@final
class HttpResponse:
    """An answer whose body is still to be received; to be used in the block of :meth:`HttpClient.request`."""

    def __init__(self, head: h11.Response, connection: HttpConnection, *, max_body_bytes: int) -> None:
        self.status = head.status_code
        """Of any class: redirects are not followed."""
        self.headers = HttpHeaders(head.headers)
        self._connection: HttpConnection | None = connection
        self._max_body_bytes = max_body_bytes
        self._has_ended = False

    async def receive_some(self) -> bytes:
        """Receive a piece of the body, 64 KiB at most; empty at its end, and whenever called again.

        Cancelling loses no byte. A checkpoint only where it must wait.

        Raises:
            ConnectionLost: the connection ended before the body did, or what comes is no HTTP/1.1.
            LocalProtocolError: the request's block was left before.
        """
        while not self._has_ended:
            if self._connection is None:
                raise LocalProtocolError("a body can be received within its request's block only")
            event = await self._connection.next_event()
            if type(event) is h11.EndOfMessage:
                self._has_ended = True
            elif type(event) is h11.Data and event.data:
                return bytes(event.data)
        return b""

    async def read(self, max_bytes: int | None = None) -> bytes:
        """Receive the rest of the body.

        Args:
            max_bytes: of it. By default the client's ``max_body_bytes``.

        Raises:
            ConnectionLost: as above, or the body is larger (``protocol_violation``).
            LocalProtocolError: the request's block was left before.
        """
        limit = self._max_body_bytes if max_bytes is None else max_bytes
        body: bytes | bytearray = await self.receive_some()
        while len(body) <= limit:
            more = await self.receive_some()
            if not more:
                return bytes(body)
            if isinstance(body, bytes):
                body = bytearray(body)
            body += more
        raise ConnectionLost(LossReason.PROTOCOL_VIOLATION, f"the answer's body is larger than {limit} bytes")

    def end(self) -> None:
        """The request's block is left: nothing more is received."""
        self._connection = None

    def __repr__(self) -> str:
        return f"<HttpResponse {self.status}>"


class HttpClient:
    """Sends requests to one origin; :func:`open_http_client` makes it. Any number of tasks may use it."""

    def __init__(
        self,
        url: HttpUrl,
        pool: ConnectionPool,
        *,
        limits: HttpClientLimits,
        tls: ssl.SSLContext | None,
        bearer: SecretStr | BearerTokens | None,
        connect: Connect | None,
    ) -> None:
        self.url = url
        """What it was opened with. Requests name their whole target themselves."""
        self._pool = pool
        self._limits = limits
        self._tls = tls
        self._connect = connect or self._connect_over_tcp
        self._host = url.authority.encode()
        self._has_answered = False
        self._bearer = bearer
        self._own_headers = _OWN_HEADERS if bearer is None else _OWN_HEADERS | {b"authorization"}

    @property
    def open_connections(self) -> int:
        """Connections that are open or being opened."""
        return self._pool.open_connections

    @property
    def idle_connections(self) -> int:
        """Of the open ones those that no request uses."""
        return self._pool.idle_connections

    @asynccontextmanager
    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Sequence[tuple[str | bytes, str | bytes]] = (),
        body: Body = b"",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[HttpResponse]:
        """Send a request. The block begins when the answer's status and headers are there.

        When it is left, the connection is kept for another request if the answer has come to its end, and is
        closed at once otherwise: so is a call cancelled. It may be cancelled at any time, also while it waits
        for a connection or makes one; what was cancelled before it began sends nothing.

        A body larger than 16 KiB, or of unknown length, is sent while the answer is waited for and read. An
        answer other than 2xx that comes before it was sent whole stops it.

        No request is sent twice, except where the server cannot have seen a byte of the first: a connection
        that was kept too long.

        Args:
            method: in capitals.
            target: path and query, as they travel.
            headers: besides Host, Authorization (where the client has a token) and those that say how the
                body is framed.
            body: bytes, or pieces of them; those are sent chunked, unless ``headers`` have a
                ``content-length``. An async generator is closed.
            timeout_s: for all of it, the block included.

        Raises:
            ConnectFailed: there could be no connection within ``connect_timeout_s``; nothing was sent.
            ConnectionLost: the connection ended before the answer did, the server took no bytes for
                ``send_timeout_s``, what comes is no HTTP/1.1 or too large, or the client is closed.
            CallTimeout: ``timeout_s`` are over.
            LocalProtocolError: it cannot be written as an HTTP/1.1 request; nothing was sent, unless it is
                the length of ``body`` that is not what ``headers`` say.
        """
        head = self._head(method, target, headers, body)
        patience = _Patience(f"{method} {target.partition('?')[0]}", timeout_s)
        small_body = body if isinstance(body, bytes) and len(body) <= SMALL_BODY_BYTES else None
        with patience.scope:
            connection = await self._begin(head, small_body, patience)
            try:
                sending = self._sending(connection, body, patience) if small_body is None else nullcontext()
                async with sending as sender:
                    answer = await self._receive_head(connection)
                    patience.answer_has_begun()
                    if sender is not None and answer.status_code >= 300:
                        sender.stop()
                    response = HttpResponse(answer, connection, max_body_bytes=self._limits.max_body_bytes)
                    try:
                        yield response
                    finally:
                        response.end()
            finally:
                await self._pool.give_back(connection)
        if patience.scope.cancelled_caught:
            raise patience.failure()

    def _head(
        self, method: str, target: str, headers: Sequence[tuple[str | bytes, str | bytes]], body: Body
    ) -> h11.Request:
        if not REQUEST_TARGET.fullmatch(target):
            what = f"not {target.partition('?')[0]!r}"
            raise LocalProtocolError(f"a target is a path from its first slash on, percent-encoded, {what}")
        if method == "CONNECT":
            raise LocalProtocolError("CONNECT is for proxies, and this client knows none")
        items = [(b"Host", self._host)]
        if self._bearer is not None:
            items.append((b"Authorization", authorization(self._bearer)))
        own = self._own_headers | {b"content-length"} if isinstance(body, bytes) else self._own_headers
        try:
            for name, value in headers:
                item = _as_bytes(name), _as_bytes(value)
                if item[0].lower() in own:
                    raise LocalProtocolError(f"header {name!r} is the client's own to set")
                items.append(item)
            if isinstance(body, bytes):
                if body or method in _BODY_METHODS:
                    items.append((b"Content-Length", b"%d" % len(body)))
            elif not any(name.lower() == b"content-length" for name, _ in items):
                items.append((b"Transfer-Encoding", b"chunked"))
            return h11.Request(method=method, target=target, headers=items)
        except (h11.LocalProtocolError, UnicodeEncodeError):
            raise LocalProtocolError(_why_not_written(method, headers)) from None

    async def _begin(self, head: h11.Request, body: bytes | None, patience: _Patience) -> HttpConnection:
        """Send the head, and the body if it is small, over a connection that the caller then gives back."""
        connection = await self._pool.take()
        was_kept = connection is not None
        while True:
            if connection is None:
                connection = await self._open(patience)
            try:
                await trio.lowlevel.checkpoint_if_cancelled()
                data = [connection.begin(head)]
                if body is not None:
                    data += [*connection.body_bytes(body), connection.end_bytes()]
                patience.allow(self._limits.send_timeout_s, self._send_stalled)
                await connection.send(b"".join(data))
            except ConnectionLost as lost:
                if connection.has_sent:
                    patience.sending_failed(lost)
                    return connection
                failure = lost
            except BaseException:
                await self._pool.give_back(connection)
                raise
            else:
                patience.allow_all()
                return connection
            # Not a byte was taken. A connection that was kept had ended unseen, and another one may do.
            await self._pool.drop(connection)
            if not was_kept:
                self._pool.free_place()
                raise ConnectFailed(self.url.origin, failure.detail) from failure
            connection, was_kept = None, False

    async def _open(self, patience: _Patience) -> HttpConnection:
        """Open a connection into a place that is taken already. If that fails, the place is free."""
        try:
            patience.allow(self._limits.connect_timeout_s, self._connecting_took_too_long)
            connection = await self._connect_through_tls()
        except BaseException:
            self._pool.free_place()
            raise
        await self._pool.add(connection)
        return connection

    async def _connect_through_tls(self) -> HttpConnection:
        try:
            transport = await self._connect()
            if isinstance(transport, trio.SocketStream):
                notice_dead_peers(transport.socket, self._limits.send_timeout_s)
        except (OSError, trio.BrokenResourceError) as exc:
            raise ConnectFailed(self.url.origin, why_failed(exc), is_local=is_own_lack(exc)) from exc
        if self._tls is None:
            return HttpConnection(transport, transport, limits=self._limits)
        try:
            # Not https_compatible: a body that only the connection's end ends would not be seen to be cut.
            stream = trio.SSLStream(transport, self._tls, server_hostname=self.url.host)
            await stream.do_handshake()
        except trio.BrokenResourceError as exc:
            await close_by_force(transport)
            why = f"TLS: {why_failed(exc)}{handshake_hint(exc)}"
            raise ConnectFailed(self.url.origin, why) from exc
        except BaseException:
            await close_by_force(transport)
            raise
        return HttpConnection(stream, transport, limits=self._limits)

    async def _connect_over_tcp(self) -> trio.abc.Stream:
        return await trio.open_tcp_stream(self.url.host, self.url.port)

    async def _receive_head(self, connection: HttpConnection) -> h11.Response:
        try:
            while True:
                event = await connection.next_event()
                if type(event) is h11.Response:
                    self._has_answered = True
                    return event
        except ConnectionLost as lost:
            hint = ""
            if not self._has_answered and lost.reason is not LossReason.LOCAL_CLOSE:
                hint = first_answer_hint(connection.answer_begins, is_tls=self.url.is_tls)
            if not hint:
                raise
            raise ConnectionLost(lost.reason, lost.detail + hint) from (lost.__cause__ or lost)

    @asynccontextmanager
    async def _sending(
        self, connection: HttpConnection, body: Body, patience: _Patience
    ) -> AsyncGenerator[_BodySender]:
        sender = _BodySender(connection, body, patience, self._limits)
        with one_exception():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.send)
                yield sender
                nursery.cancel_scope.cancel()

    def _send_stalled(self) -> ConnectionLost:
        return _send_stalled(self._limits)

    def _connecting_took_too_long(self) -> ConnectionLost:
        why = f"no connection within {self._limits.connect_timeout_s:g} s"
        return ConnectFailed(self.url.origin, why, is_late=True)

    def __repr__(self) -> str:
        return (
            f"<HttpClient {self.url.origin}: {self.open_connections} connections, {self.idle_connections} of "
            f"them idle, {self._pool.waiting} requests waiting for one>"
        )


@asynccontextmanager
async def open_http_client(
    url: str | HttpUrl,
    *,
    limits: HttpClientLimits | None = None,
    tls: ssl.SSLContext | None = None,
    bearer: SecretStr | BearerTokens | str | None = None,
    connect: Connect | None = None,
) -> AsyncGenerator[HttpClient]:
    """Open a client for the origin of ``url``. Nothing is connected before the first request.

    Leaving the block closes all connections at once; requests that are still under way in other tasks are
    raised ``ConnectionLost`` (``local_close``). Proxies that the environment names are not used.

    Args:
        url: http or https. Its path is not added to the targets of requests.
        limits: what the client may use up.
        tls: for https, where the system's certificate authorities are not the ones to trust, or the server
            wants a certificate of ours: what ``client_ssl_context`` makes.
        bearer: the token that every request bears, and nothing else shows. Of tokens in a file, each request
            bears the one that is current when it is sent.
        connect: makes the byte stream, under TLS if that is used, in the place of TCP to the URL's host. What
            it raises of :class:`~stepflow_trio.errors.StepflowError` reaches the caller of ``request``.

    Raises:
        ConfigError: ``url`` cannot be used, ``bearer`` is no token, or ``tls`` is no ``ssl.SSLContext`` or is
            given for http.
    """
    if isinstance(url, str):
        url = HttpUrl.parse(url)
    if tls is not None and not isinstance(tls, ssl.SSLContext):  # pyright: ignore[reportUnnecessaryIsInstance]: callers are not all checked
        raise ConfigError(
            f"tls is a {type(tls).__name__}; a client takes an ssl.SSLContext, such as "
            "client_ssl_context(server_ca=…, certificate=…, private_key=…) makes"
        )
    if tls is None and url.is_tls:
        tls = ssl.create_default_context()
    elif tls is not None and not url.is_tls:
        raise ConfigError(
            f"TLS settings are given for {url.origin}, which would be reached without: write https"
        )
    if bearer is not None:
        bearer = as_secret(bearer)
        authorization(bearer)  # what is wrong with it is said now
    limits = limits or HttpClientLimits()
    pool = ConnectionPool(limits)
    client = HttpClient(url, pool, limits=limits, tls=tls, bearer=bearer, connect=connect)
    with one_exception():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.close_expired)
            try:
                yield client
            finally:
                nursery.cancel_scope.cancel()
                await pool.aclose()


class _Patience:
    """The one cancel scope of a request. Its deadline moves from phase to phase, never beyond the whole's."""

    def __init__(self, what: str, timeout_s: float | None) -> None:
        self._what = what
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._ends_at = trio.current_time() + self._timeout_s
        self._late: Callable[[], StepflowError] | None = None
        self._failure: StepflowError | None = None
        self._answer_has_begun = False
        self.scope = trio.CancelScope(deadline=self._ends_at)

    def allow(self, within_s: float, late: Callable[[], StepflowError]) -> None:
        """From now on wait ``within_s``; ``late`` makes the error for when that has passed."""
        self.scope.deadline = min(self._ends_at, trio.current_time() + within_s)
        self._late = late

    def allow_all(self) -> None:
        """From now on wait until the whole's end."""
        self.scope.deadline = self._ends_at

    def answer_has_begun(self) -> None:
        """The answer's head has come: what else it takes to send the request no longer matters."""
        self._answer_has_begun = True
        if self.scope.deadline != self._ends_at:
            self.allow_all()

    def sending_failed(self, lost: ConnectionLost) -> None:
        """The server takes no more of the request. It may have said why, but will not much later."""
        if not self._answer_has_begun:
            self.allow(LAST_ANSWER_S, lambda: lost)

    def end(self, failure: StepflowError) -> None:
        """End the request with ``failure``."""
        self._failure = failure
        self.scope.cancel(reason="the request has failed")

    def failure(self) -> StepflowError:
        """What the request has failed with, when its scope was cancelled."""
        if self._failure is not None:
            return self._failure
        if self._late is None or self.scope.deadline == self._ends_at:
            return CallTimeout(self._what, self._timeout_s)
        return self._late()


class _BodySender:
    """Sends a body in a task of its own, until it is cancelled or :meth:`stop` is called."""

    def __init__(
        self, connection: HttpConnection, body: Body, patience: _Patience, limits: HttpClientLimits
    ) -> None:
        self._connection = connection
        self._body = body
        self._patience = patience
        self._limits = limits
        self._scope = trio.CancelScope()
        self._is_stopped = False

    def stop(self) -> None:
        """Send nothing more, and so leave the request unfinished."""
        self._is_stopped = True
        self._scope.cancel(reason="the rest of the request is not wanted")

    async def send(self) -> None:
        """Send the body to its end. What its source raises passes through.

        Raises:
            LocalProtocolError: its length is not what the headers say.
        """
        with self._scope:
            if isinstance(self._body, bytes):
                await self._send_piece(self._body)
            else:
                async with _closed_afterwards(self._body) as body:
                    async for piece in body:
                        await self._send_piece(piece)
            await self._send_piece(None)
        if self._scope.cancelled_caught and not self._is_stopped:
            self._patience.end(_send_stalled(self._limits))

    async def _send_piece(self, piece: bytes | None) -> None:
        try:
            parts = [self._connection.end_bytes()] if piece is None else self._connection.body_bytes(piece)
        except h11.LocalProtocolError as exc:
            raise LocalProtocolError(f"the body's length is not what content-length says: {exc}") from None
        if piece is not None and len(piece) <= SMALL_BODY_BYTES:
            parts = [b"".join(parts)]
        self._progressed()
        try:
            for part in parts:
                await self._connection.send(part, self._progressed)
        except ConnectionLost as lost:
            self._patience.sending_failed(lost)
            self.stop()
            await trio.lowlevel.checkpoint()
        self._scope.deadline = math.inf  # where the body comes from may take its time

    def _progressed(self) -> None:
        self._scope.deadline = trio.current_time() + self._limits.send_timeout_s


def _closed_afterwards(body: AsyncIterable[bytes]) -> AbstractAsyncContextManager[AsyncIterable[bytes]]:
    if isinstance(body, AsyncGenerator):
        return aclosing(cast("AsyncGenerator[bytes]", body))
    return nullcontext(body)


def _send_stalled(limits: HttpClientLimits) -> ConnectionLost:
    return ConnectionLost(
        LossReason.SEND_STALLED, f"the server took no bytes for {limits.send_timeout_s:g} s"
    )


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode("ascii") if isinstance(text, str) else text


def _why_not_written(method: str, headers: Sequence[tuple[str | bytes, str | bytes]]) -> str:
    for name, value in headers:
        try:
            h11.Request(
                method="GET", target="/", headers=[(b"Host", b""), (_as_bytes(name), _as_bytes(value))]
            )
        except (h11.LocalProtocolError, UnicodeEncodeError):
            return f"header {name!r}, or its value, holds what no header may"  # a value may be secret
    return f"the method {method!r} cannot be sent, or two headers contradict each other"
