"""One call of the application under hypercorn's protocols, and what they and it need of the connection."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Event
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.typing import AppWrapper

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.transports.http.answers import BODILESS_STATUSES
from stepflow_trio.transports.http.asgi import AsgiApp, Message, Scope
from stepflow_trio.transports.http.http_date import HttpDate
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.request_limits import BodyBudget, Refused

_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"[^\0\r\n]*")

log = logging.getLogger("stepflow_trio.transports")


class ClientGone(BrokenPipeError):
    """What an application's ``send`` raises where nobody is there to receive."""


class Service:
    """What the connections of one server have in common."""

    def __init__(self, app: AsgiApp, limits: HttpServerLimits) -> None:
        self.app = app
        self.limits = limits
        self.is_stopping = False
        self.date = HttpDate()


class Owner(Protocol):
    """A connection, as its protocol and its calls of the application need it."""

    service: Service
    is_closing: bool
    calls: set[AppCall]
    """Those that have not returned."""
    uploads: set[AppCall]
    """Those of them whose request's body has not come to its end."""

    def spawn(self, func: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Start a task that ends with the connection."""
        ...

    def write(self, data: bytes) -> None:
        """Have bytes sent, in order, as soon as the client takes them."""
        ...

    async def send(self, event: Event) -> None:
        """Write bytes, close behind what was written, or note whether there is anything to do.

        Never waits, so that whoever sends is not cancelled halfway.
        """
        ...

    async def wait_writable(self) -> None:
        """Wait while the client has to take too much of what was written. Not always a checkpoint."""
        ...

    def resume_reading(self) -> None:
        """Look again whether the protocol is backed up, or has something to go on with."""
        ...

    def note_head_begun(self) -> None:
        """A request's first bytes have come, and not its last header."""
        ...


class HttpProtocol(Protocol):
    """What a call of the application needs of the protocol in which its request came."""

    def body_wanted(self, call: AppCall) -> None:
        """The application waits for more of the body."""
        ...

    def taken(self, call: AppCall, taken_bytes: int) -> None:
        """The application has taken so much of the body, or will never."""
        ...

    async def answer_instead(self, call: AppCall, status: int, content: Mapping[str, object]) -> None:
        """Answer in the application's place, or where it has begun to, cut its answer off."""
        ...


class AppCall:
    """The application's call for one request: what it receives and sends.

    To hypercorn's ``HTTPStream``, which makes ASGI of a protocol's events, this is a task group in which to
    start the application. In place of hypercorn's queue of ten messages, whose filling stops the whole
    connection, here a body is gathered as it comes; ``taken`` is told how much of it the application took,
    and it is the protocol's matter to let no more come than may.

    The client counts as gone when it closes, even its sending side alone, or resets the request. Then
    :meth:`receive` returns ``http.disconnect`` at once, and :meth:`send` raises. So they do behind the end of
    the answer, and where the request was refused while it came.
    """

    def __init__(self, owner: Owner, protocol: HttpProtocol, stream_id: int) -> None:
        self._owner = owner
        self._protocol = protocol
        self.stream_id = stream_id
        self.stream: HTTPStream
        self.budget = BodyBudget(owner.service.limits, trio.current_time())
        self.unread_bytes = 0
        self._unread: list[bytes] = []
        self.is_body_complete = False
        self._is_end_told = False
        self._is_gone = False
        self._start: Message | None = None
        self.is_answered_at_once = False
        """Whether the answer's start and its whole body come together."""
        self._wake: trio.Event | None = None

    @property
    def has_begun(self) -> bool:
        """Whether something of the answer has been sent."""
        return self.stream.state is not ASGIHTTPState.REQUEST

    # ---- what hypercorn calls

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Any], Awaitable[None]]:
        """Start the application; return what its messages are to be put into."""
        scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}
        scope["extensions"] = {}  # server push, early hints and trailers: nothing here needs their risks
        self._app_send = send
        self._owner.calls.add(self)
        self._owner.uploads.add(self)
        self._owner.spawn(self._run, scope)
        return self.put

    async def put(self, message: Message) -> None:
        """Take a message for the application; never waits."""
        if message["type"] == "http.disconnect":
            self.leave()
            return
        body: bytes = message["body"]
        if self._is_gone:
            self._protocol.taken(self, len(body))
        elif body:
            self.unread_bytes += len(body)
            self._unread.append(body)
            try:
                self.budget.spend(len(body))
            except Refused as refused:
                await self.refuse(refused)
        if not message["more_body"]:
            self.is_body_complete = True
            self._owner.uploads.discard(self)
        self._wake_receiver()

    # ---- what the connection calls

    async def check_upload(self, now: float) -> None:
        """Refuse the request if its body comes too slowly, and it is not the application that is slow."""
        if self.budget.deadline > now:
            return
        if self.unread_bytes:
            self.budget.restart(now)
        else:
            await self.refuse(Refused(408, "the body comes too slowly"))

    async def refuse(self, refused: Refused) -> None:
        """Answer in the application's place, or cut its answer off. The application finds the client gone."""
        if not self._is_gone:
            self.leave()
            await self._protocol.answer_instead(self, refused.status, refused.content)

    def leave(self) -> None:
        """The client is gone, for all that the application needs to know."""
        if not self._is_gone:
            self._is_gone = True
            self._owner.uploads.discard(self)
            self._protocol.taken(self, self.unread_bytes)
            self.unread_bytes = 0
            self._unread.clear()
            self._wake_receiver()

    # ---- what the application calls

    async def receive(self) -> Message:
        """The next part of the request's body; after its end, wait until the client goes.

        A checkpoint. Cancelling loses nothing.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not (self._unread or self._is_gone or (self.is_body_complete and not self._is_end_told)):
            if not self.is_body_complete:
                self._protocol.body_wanted(self)
            if self._wake is None:
                self._wake = trio.Event()
            await self._wake.wait()
        if self._is_gone:
            await trio.lowlevel.checkpoint()  # nothing else stops who asks and asks
            return {"type": "http.disconnect"}
        body = self._unread[0] if len(self._unread) == 1 else b"".join(self._unread)
        self._unread.clear()
        self.unread_bytes = 0
        self._is_end_told = self.is_body_complete
        if body:
            self._protocol.taken(self, len(body))
        return {"type": "http.request", "body": body, "more_body": not self._is_end_told}

    async def send(self, message: Message) -> None:
        """Send the answer's start or a part of its body. Waits, before it sends, until the client takes more.

        The start goes out with the first part, so that an answer in one part has a length. Who wants the
        client to see it earlier sends an empty part with ``more_body``.

        A checkpoint, behind each part but the last too. Cancelling may leave a part unsent, never half of it.

        Raises:
            ClientGone: the client has closed, or took no bytes for ``send_timeout_s``; nobody needs the rest
                of the answer.
            LocalProtocolError: this makes no valid answer.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._owner.wait_writable()
        kind = message["type"]
        if self.stream.state is ASGIHTTPState.CLOSED:
            raise LocalProtocolError(f"the answer is complete: {kind} comes too late")
        if self._is_gone or self._owner.is_closing:
            raise ClientGone("the client has closed the connection")
        if kind == "http.response.start":
            if self._start is not None:
                raise LocalProtocolError("the answer has begun: http.response.start comes once")
            self._start = message
            return
        if kind != "http.response.body":
            raise LocalProtocolError(f"an answer has no message of type {kind!r}")
        if self._start is None:
            raise LocalProtocolError("the answer's body comes before http.response.start")
        try:
            if not self.has_begun:
                await self._app_send(self._with_length(self._start, message))
            await self._app_send(message)
        except (h11.LocalProtocolError, LookupError, TypeError, ValueError) as exc:
            raise LocalProtocolError(f"the answer is not valid HTTP: {exc}") from exc
        if message.get("more_body", False):
            await trio.lowlevel.checkpoint()  # nothing else stops who sends and sends

    def _with_length(self, start: Message, first: Message) -> Message:
        self.is_answered_at_once = not first.get("more_body", False)
        status = start["status"]
        if not 200 <= status <= 999:
            raise ValueError(f"{status!r} is no status of an answer")
        if not self.is_answered_at_once or status in BODILESS_STATUSES:
            return start
        body: bytes = first.get("body", b"")
        headers: list[tuple[bytes, bytes]] = [*start.get("headers", ())]
        lengths = [value for name, value in headers if name.lower() == b"content-length"]
        if self.stream.scope["method"] == "HEAD":
            if lengths or not body:  # to HEAD, no body says nothing about the length that GET would get
                return start
        elif lengths:
            if len(lengths) > 1 or int(lengths[0]) != len(body):
                raise ValueError(
                    f"its content-length is {b', '.join(lengths)!r}, and its body {len(body)} bytes"
                )
            return start
        return {**start, "headers": [*headers, (b"content-length", b"%d" % len(body))]}

    async def _run(self, scope: Scope) -> None:
        incident = ""
        try:
            await self._owner.service.app(scope, self.receive, self.send)
        except* ClientGone:
            pass
        except* Exception as failures:  # noqa: BLE001 - whatever it was, the server goes on
            incident = _log_incident("failed", scope, failures)
        finally:
            self._owner.calls.discard(self)
        if not self._is_gone:
            incident = incident or _log_incident("did not answer", scope, None)
            self.leave()
            content = {"code": 500, "message": "internal error", "incident": incident}
            await self._protocol.answer_instead(self, 500, content)

    def _wake_receiver(self) -> None:
        if self._wake is not None:
            self._wake.set()
            self._wake = None


def _log_incident(what: str, scope: Scope, failures: ExceptionGroup[Exception] | None) -> str:
    incident = secrets.token_hex(4)
    request = f"{scope['method']} {scope['raw_path'][:200].decode('ascii')}"
    log.error("the application %s: %s, incident %s", what, request, incident, exc_info=failures)
    return incident


def answer_headers(
    given: Iterable[tuple[bytes, bytes]], date: bytes
) -> tuple[list[tuple[bytes, bytes]], bool]:
    """An answer's headers, and whether the application wants it to be the connection's last.

    What ASGI makes the server's matter, ``connection`` and ``transfer-encoding``, is left out.

    Raises:
        ValueError: there is what no header can hold. HTTP/2's compression would come out of step over it.
    """
    headers: list[tuple[bytes, bytes]] = []
    is_last = has_date = False
    for raw_name, value in given:
        name = raw_name.lower()
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"this is no header: {name!r}: {value!r}")
        if name == b"connection":
            is_last |= b"close" in value.lower()
        elif name != b"transfer-encoding":
            has_date |= name == b"date"
            headers.append((name, value))
    if not has_date:
        headers.append((b"date", date))
    return headers, is_last


def json_answer(content: Mapping[str, object]) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The headers and the body of an answer that is not the application's."""
    body = json.dumps(content).encode()
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))], body
