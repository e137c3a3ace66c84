"""The worker's HTTP endpoint as one ASGI application (docs/protocol.md, section 4)."""

from __future__ import annotations

import logging
import re
import time
import uuid
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol
from urllib.parse import parse_qs

import trio
from msgspec import UNSET

from stepflow_trio.engine import Handlers, Limits, open_connection
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import ConfigError, RpcError
from stepflow_trio.protocol import codec, dialects
from stepflow_trio.protocol.lines import LineFramer
from stepflow_trio.protocol.messages import (
    Batch,
    Decoded,
    ErrorObject,
    Malformed,
    Request,
    RequestId,
    is_answer,
)
from stepflow_trio.protocol.peer import Role
from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.bodies import Bodies
from stepflow_trio.transports.http.exchange import (
    SSE_HEADERS,
    Exchange,
    Refusal,
    exchange_key,
    overloaded,
    send_accepted,
    send_json,
)
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.sessions import Session

CAPABILITIES_HEADER = b"stepflow-capabilities"
"""Ours: what ``initialize`` says of the runtime, repeated with every request, so that a worker behind a
balancer, started anew, or shared by several runtimes knows it (docs/protocol.md, section 4)."""

INSTANCE_HEADER = b"stepflow-instance-id"

JSON = b"application/json"
JSON_LINES = b"application/x-ndjson"

_SESSION_IS_OVER = "the session is over: open another one"
_INSTANCE_ID = re.compile(r"[!-~]{1,200}")

_log = logging.getLogger("stepflow_trio.transports")


class Served(Protocol):
    """What one runtime is served."""

    @property
    def handlers(self) -> Handlers:
        """What it may ask for."""
        ...

    @property
    def peer_extensions(self) -> frozenset[str]:
        """What it understands beyond the specification."""
        ...


class Service(Protocol):
    """What an endpoint serves: a :class:`~stepflow_trio.Worker` does."""

    def served(self, capabilities: bytes | None, client: str | None) -> Served:
        """Who sends this request: by what it says of itself, else whoever initialized last.

        Raises:
            RpcError: what it says of itself cannot be understood.
        """
        ...

    def new_session(self, client: str | None) -> Served:
        """Somebody who opens a session, and is not initialized."""
        ...


class HttpEndpoint:
    """The ASGI application. Each request is served in its own call; nothing else runs.

    It trusts its host to guard it (:func:`~stepflow_trio.transports.http.hosting.open_http_host` does), and
    to keep the bounds of ``http_limits`` that concern bytes on the wire.

    Args:
        service: what is served.
        limits: the bounds of each session and of each request outside of one; requests in flight, all
            together, are ``max_handlers``.
        http_limits: the bounds of HTTP.
        instance_id: tells this process from the others behind a balancer; random by default.
        name: what ``/health`` calls this service.

    Raises:
        ConfigError: ``instance_id`` is nothing that a header could hold.
    """

    def __init__(
        self,
        service: Service,
        *,
        limits: Limits | None = None,
        http_limits: HttpServerLimits | None = None,
        instance_id: str | None = None,
        name: str = "stepflow-trio",
    ) -> None:
        self._service = service
        self._limits = limits or Limits()
        self._http_limits = http_limits or HttpServerLimits()
        if instance_id is not None and not _INSTANCE_ID.fullmatch(instance_id):
            message = (
                f"instance_id is {instance_id!r:.250}; it takes up to 200 ASCII characters without spaces"
            )
            raise ConfigError(message)
        self.instance_id = instance_id or str(uuid.uuid4())
        self._instance_id = self.instance_id.encode("ascii")
        self._name = name
        self._bodies = Bodies(self._http_limits)
        self._exchanges: dict[str, Exchange] = {}
        self._sessions: dict[str, tuple[Session, Served]] = {}
        self._in_flight = 0
        self._stopping = trio.Event()
        self._idle = trio.lowlevel.ParkingLot()
        self._answered = trio.lowlevel.ParkingLot()
        self.unmatched_answers = 0
        """Answers that no callback waited for: they came late, or from somebody else."""

    # ---- its life -----------------------------------------------------------------------------------

    def stop(self) -> None:
        """Refuse new requests with 503 from now on. What is in flight goes on; sessions drain and end."""
        self._stopping.set()

    async def wait_idle(self) -> None:
        """Wait until nothing is in flight and no session is open."""
        while self._in_flight or self._sessions:
            await self._idle.park()

    async def drain(self) -> None:
        """Stop, and wait until nothing is in flight and no session is open."""
        self.stop()
        await self.wait_idle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await _refuse_kind(scope["type"], receive, send)
            return
        try:
            try:
                await self._serve(scope, receive, send)
            except Refusal as refusal:
                await refusal.send(send)
        except (OSError, trio.BrokenResourceError) as exc:
            _log.debug("a client went away before its answer was sent: %r", exc)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        method: str = scope["method"]
        path: str = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        if method == "POST" and path == "/":
            await self._post(scope, receive, send)
        elif path == "/health" and method in ("GET", "HEAD"):
            # To a balancer, a worker that ends is one to lead nobody to any more.
            await send_json(send, 503 if self._stopping.is_set() else 200, self._health())
        elif path == "/runtime/events" and method == "GET":
            await self._open_session(scope, receive, send)
        elif allowed := {"/": b"POST", "/health": b"GET, HEAD", "/runtime/events": b"GET"}.get(path):
            raise Refusal(405, f"{path} takes {allowed.decode()}", headers=[(b"allow", allowed)])
        else:
            raise Refusal(404, "the endpoint is POST /; there are GET /health and GET /runtime/events")

    def _health(self) -> bytes:
        return codec.encode_json(
            {
                "status": "stopping" if self._stopping.is_set() else "healthy",
                "instanceId": self.instance_id,
                "timestamp": datetime.fromtimestamp(time.time(), UTC).isoformat(),
                "service": self._name,
            }
        )

    # ---- POST ---------------------------------------------------------------------------------------

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._bodies.receive(receive)
        headers = dict(scope["headers"])
        found = self._find_session(scope["query_string"]) if scope["query_string"] else None
        session = found[0] if found else None
        media_type = _media_type(headers)
        if media_type == JSON_LINES and session is not None:
            with self._bodies.holding(body):
                await self._take_lines(session, body)
            await send_accepted(send)
            return
        if media_type != JSON:
            raise Refusal(415, "the body must be application/json")
        _check_accept(headers, scope)
        message = self._decode(body, session)
        del body
        if message is None:
            await send_accepted(send)
            return
        served = found[1] if found else self._served(headers, scope, message)
        self._check_room(message)
        exchange = Exchange(
            served.handlers,
            peer_extensions=served.peer_extensions,
            limits=self._limits,
            session=session,
        )
        self._in_flight += 1
        try:
            is_answered = await exchange.respond(
                message,
                receive,
                send,
                instance_id=self._instance_id,
                heartbeat_s=self._http_limits.heartbeat_s,
                register=self._exchanges,
            )
        finally:
            self._in_flight -= 1
            self._wake_if_idle()
            self._answered.unpark_all()
        if session is not None and not is_answered:
            raise Refusal(404, _SESSION_IS_OVER, id_=_id_of(message))

    def _decode(self, body: bytes, session: Session | None) -> Decoded | None:
        """The message, without the answers in it, which are handed to the callbacks that wait for them."""
        message = codec.decode(body)
        if type(message) is Request:
            return message
        rest = self._take_answers(message, session)
        if type(message) is Malformed:
            raise Refusal(400, message.error, id_=message.id)
        return rest

    def _served(self, headers: dict[bytes, bytes], scope: Scope, message: Decoded) -> Served:
        try:
            return self._service.served(headers.get(CAPABILITIES_HEADER), _address(scope))
        except RpcError as exc:
            data = UNSET if exc.data is None else exc.data
            raise Refusal(400, ErrorObject(exc.code, exc.message, data), id_=_id_of(message)) from exc

    def _check_room(self, message: Decoded) -> None:
        if self._stopping.is_set():
            raise overloaded("Shutting down", _id_of(message))
        if self._in_flight >= self._limits.max_handlers:
            raise overloaded("Too many requests are in flight", _id_of(message))

    def _take_answers(self, message: Decoded, session: Session | None) -> Decoded | None:
        """Hand answers to the callbacks that wait for them; return what is left of the message."""
        if type(message) is Batch:
            left = tuple(item for item in message.items if not is_answer(item))
            for item in message.items:
                self._take_answers(item, session)
            return Batch(left) if left else None
        if not is_answer(message):
            return message
        exchange = self._exchanges.get(exchange_key(message.id))
        if exchange is None or exchange.session is not session:
            self.unmatched_answers += 1
            _log.debug("dropped an answer to %r, which no callback waits for", message.id)
        else:
            exchange.take([message])
        return None

    # ---- sessions -----------------------------------------------------------------------------------

    def _find_session(self, query: bytes) -> tuple[Session, Served]:
        try:
            ids = parse_qs(query.decode("ascii", "replace"), max_num_fields=16).get("sessionId", [])
        except ValueError:  # more fields than that
            ids = []
        found = self._sessions.get(ids[0]) if len(ids) == 1 else None
        if found is None:
            raise Refusal(404, "there is no such session, or it is over: open another one")
        return found

    async def _take_lines(self, session: Session, body: bytes) -> None:
        """Take a session's messages, one a line; what they bring about goes to its stream."""
        frames = LineFramer(self._http_limits.max_body_bytes).feed(body + b"\n")
        try:
            await session.deliver(frames, len(body))
        except trio.BrokenResourceError as exc:
            raise Refusal(404, _SESSION_IS_OVER) from exc

    async def _open_session(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._stopping.is_set():
            raise overloaded("Shutting down")
        if len(self._sessions) >= self._http_limits.max_sessions:
            raise overloaded("Too many sessions are open")
        served = self._service.new_session(_address(scope))
        session = Session(send)
        self._sessions[session.id] = session, served
        headers = [*SSE_HEADERS, (INSTANCE_HEADER, self._instance_id)]
        opening = {
            "endpoint": f"/?sessionId={session.id}",
            "extensions": sorted(dialects.EXTENSIONS),
            "heartbeatS": self._http_limits.heartbeat_s,
            "maxPostBytes": self._http_limits.max_body_bytes,
        }
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await session.send_opening(codec.encode_json(opening))
            with one_exception():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, receive, session)
                    if self._http_limits.heartbeat_s:
                        nursery.start_soon(session.keep_alive, self._http_limits.heartbeat_s)
                    async with (
                        open_connection(
                            session, served.handlers, role=Role.WORKER, limits=self._limits
                        ) as connection,
                        trio.open_nursery() as waiting,
                    ):
                        waiting.start_soon(self._end_wait_when_stopping, session, waiting.cancel_scope)
                        await connection.wait_lost()
                        waiting.cancel_scope.cancel(reason="the session is over")
                    nursery.cancel_scope.cancel(reason="the session is over")
        finally:
            session.end()
            for exchange in [each for each in self._exchanges.values() if each.session is session]:
                exchange.end_with_session()
            del self._sessions[session.id]
            self._wake_if_idle()
        await send({"type": "http.response.body", "body": b""})

    async def _end_wait_when_stopping(self, session: Session, scope: trio.CancelScope) -> None:
        await self._stopping.wait()
        # The connection itself lets its lines finish, but knows nothing of requests that were POSTed alone.
        with trio.move_on_after(self._limits.drain_s):
            while any(each.session is session for each in self._exchanges.values()):
                await self._answered.park()
        scope.cancel(reason="the endpoint is stopping")

    async def _watch(self, receive: Receive, session: Session) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        session.end()

    def _wake_if_idle(self) -> None:
        if not (self._in_flight or self._sessions):
            self._idle.unpark_all()

    def __repr__(self) -> str:
        return f"<HttpEndpoint: {self._in_flight} requests in flight, {len(self._sessions)} sessions>"


def _media_type(headers: dict[bytes, bytes]) -> bytes:
    content_type = headers.get(b"content-type", b"")
    return JSON if content_type == JSON else content_type.split(b";")[0].strip().lower()


def _check_accept(headers: dict[bytes, bytes], scope: Scope) -> None:
    accept = headers.get(b"accept")
    if accept is not None and not _accepts_both(accept):
        every = b",".join(value for name, value in scope["headers"] if name == b"accept")
        if not _accepts_both(every):
            raise Refusal(406, "the answer is application/json or text/event-stream: accept both")


@lru_cache(maxsize=256)
def _accepts_both(accept: bytes) -> bool:
    """Whether an Accept header takes JSON as well as an event stream."""
    accepted: set[bytes] = set()
    for part in accept.lower().split(b","):
        media_range, *parameters = [piece.strip() for piece in part.split(b";")]
        if not any(piece.startswith(b"q=") and not piece[2:].strip(b"0.") for piece in parameters):
            accepted.add(media_range)
    return bool(accepted & {b"*/*", b"application/*", JSON}) and bool(
        accepted & {b"*/*", b"text/*", b"text/event-stream"}
    )


def _id_of(message: Decoded) -> RequestId | None:
    return message.id if type(message) is Request else None


def _address(scope: Scope) -> str | None:
    client = scope.get("client")
    return client[0] if client else None


async def _refuse_kind(kind: str, receive: Receive, send: Send) -> None:
    """Answer what is not an HTTP request: nothing is done at start and stop, and no socket opened."""
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1000})
    elif kind == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
