"""One request and its answer over HTTP/1.1: what an application is given to receive from and send to."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress

import h11
import trio

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.transports.http.answers import Answer, last_answer
from stepflow_trio.transports.http.asgi import Message, Scope
from stepflow_trio.transports.http.h11_heads import Head
from stepflow_trio.transports.http.h11_state import ServerState, log
from stepflow_trio.transports.http.request_limits import Refused
from stepflow_trio.transports.http.wire import Wire

MAX_AHEAD_BYTES = 64 * 2**10
"""Kept of what a client sends behind the request that is being answered. It is read, for only behind it can
be seen that the client has gone; who sends more loses the connection after the answer."""

MAX_PIECES = 256
"""Chunks of a body that are parsed without giving other tasks a turn."""

JOIN_BYTES = 64 * 2**10
"""A body up to this size goes out in one write with what is around it."""

# The bytes of answers are made elsewhere, in a third of the time. Of an answer, h11 needs to know that there
# was one, before it takes the next request.
_AN_ANSWER = h11.Response(status_code=204, headers=[])
_ITS_END = h11.EndOfMessage()

_CONTINUE = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")

_MALFORMED = {
    431: "the request line and headers are too long",
    501: "no transfer-encoding but chunked is known",
}


class Cycle:
    """Calls the application for one request, whose body is still to be received unless it came as a whole.

    :meth:`receive` and :meth:`send` keep ASGI's promises to it.

    The client counts as gone when it closes, even its sending side alone: ``receive`` then returns
    ``http.disconnect`` at once, and ``send`` raises ``BrokenPipeError``. While the application does not
    receive, nobody looks. After the end of the answer ``receive`` returns ``http.disconnect`` too, also to
    a task that was waiting in it.

    The answer's start is held back until the first part of its body, so that an answer in one part goes
    out in one write. Who wants the client to see it earlier sends an empty part with ``more_body``.
    """

    __slots__ = (
        "_ahead_bytes",
        "_answer",
        "_begun",
        "_body_bytes",
        "_body_ended",
        "_complete",
        "_gone",
        "_http",
        "_is_last",
        "_method",
        "_receiving",
        "_start",
        "_state",
        "_target",
        "_waited_s",
        "_whole_body",
        "_wire",
    )

    def __init__(
        self,
        head: Head,
        whole_body: bytes | None,
        http: h11.Connection,
        wire: Wire,
        state: ServerState,
        *,
        is_last: bool,
    ) -> None:
        self._http = http
        self._wire = wire
        self._state = state
        self._method = head.method
        self._target = head.target
        self._answer = Answer(head.method, is_http_1_0=head.is_http_1_0)
        # As soon as it is known that the connection closes behind the answer.
        self._is_last = is_last or head.closes

        self._whole_body = whole_body
        self._body_ended = whole_body is not None
        self._body_bytes = 0
        self._waited_s = 0.0
        self._ahead_bytes = 0
        self._receiving: trio.CancelScope | None = None

        self._start: Message | None = None
        self._begun = False
        self._complete = False
        self._gone = False

    async def run(self, scope: Scope) -> bool:
        """Answer the request. Returns whether the connection is ready for another one."""
        came_whole = self._whole_body is not None
        try:
            await self._call_application(scope)
        finally:
            if self._begun and not self._complete:
                # Where the connection's end would be the body's, a reset says that it is not.
                await (self._wire.abort() if self._answer.ends_with_connection else self._wire.close())
        return self._is_reusable(came_whole=came_whole)

    async def _call_application(self, scope: Scope) -> None:
        incident: str | None = None
        try:
            await self._state.app(scope, self.receive, self.send)
        except* Exception as failures:  # noqa: BLE001 - whatever it raises, the server goes on
            if not self._gone or failures.split(OSError)[1] is not None:  # those `send` has raised
                incident = self._log_incident("failed", failures)
        if not (self._complete or self._gone):
            incident = incident or self._log_incident("did not answer", None)
            await self._answer_instead(500, {"code": 500, "message": "internal error", "incident": incident})

    def _log_incident(self, what: str, failures: ExceptionGroup[Exception] | None) -> str:
        incident = secrets.token_hex(4)
        path = self._target.partition(b"?")[0]  # a query may hold what is secret, as the id of a session is
        request = f"{self._method.decode()} {path[:200].decode()}"
        log.error("the application %s: %s, incident %s", what, request, incident, exc_info=failures)
        return incident

    # The request's body, and whether the client is still there.

    async def receive(self) -> Message:
        """The next part of the request's body; after its end, wait until the client goes.

        Cancelling loses nothing.
        """
        if not (self._gone or self._complete):
            if self._whole_body is not None:
                body, self._whole_body = self._whole_body, None
                return {"type": "http.request", "body": body, "more_body": False}
            try:
                if self._body_ended:
                    await self._watch()
                elif message := await self._receive_body():
                    return message
            except h11.RemoteProtocolError as exc:
                await self._refuse(malformed(exc))
            except Refused as refused:
                await self._refuse(refused)
            except BrokenPipeError:
                self._lose()
        return {"type": "http.disconnect"}

    async def _receive_body(self) -> Message | None:
        pieces: list[bytes] = []
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Data):
                pieces.append(event.data)
                self._body_bytes += len(event.data)
                if self._body_bytes > self._state.limits.max_body_bytes:
                    raise Refused(413, f"the body is over {self._state.limits.max_body_bytes} bytes")
                if len(pieces) < MAX_PIECES:
                    continue
                await trio.lowlevel.cancel_shielded_checkpoint()
            elif isinstance(event, h11.EndOfMessage):
                self._body_ended = True
            elif not pieces:
                if await self._receive_more():
                    continue
                return None
            return {"type": "http.request", "body": b"".join(pieces), "more_body": not self._body_ended}

    async def _receive_more(self) -> bool:
        """Wait for bytes of the body. False: the client is gone, or the answer complete."""
        if self._http.they_are_waiting_for_100_continue and not self._begun:
            await self._wire.send(self._http.send(_CONTINUE))
        limits = self._state.limits
        # Only the time counts in which the client could send: an application may be slow to receive.
        allowed_s = limits.body_grace_s + self._body_bytes / limits.min_body_rate - self._waited_s
        began = trio.current_time()
        with trio.CancelScope(deadline=began + allowed_s) as self._receiving:
            try:
                data = await self._wire.receive()
            finally:
                self._waited_s += trio.current_time() - began
            if data:
                self._http.receive_data(data)
                return True
            self._gone = True
        if not (self._gone or self._complete):
            raise Refused(408, "the body comes too slowly")
        return False

    async def _watch(self) -> None:
        """Wait until the client is gone, or the answer complete."""
        with trio.CancelScope() as self._receiving:
            while data := await self._wire.receive():
                self._ahead_bytes += len(data)
                if self._ahead_bytes <= MAX_AHEAD_BYTES:
                    self._http.receive_data(data)
                else:
                    self._is_last = True
            self._gone = True

    def _lose(self) -> None:
        self._gone = True
        self._wake_receiver()

    def _wake_receiver(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()

    def _is_reusable(self, *, came_whole: bool) -> bool:
        """Whether another request may come; if so, prepare for it."""
        http = self._http
        if self._gone or self._is_last:
            return False
        if came_whole:
            return True  # h11 has seen nothing of it
        if not self._discard_received():
            return False
        http.send(_AN_ANSWER)
        http.send(_ITS_END)
        if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
            return False
        http.start_next_cycle()
        return True

    def _discard_received(self) -> bool:
        """Drop what has come of a body that nobody received. Returns whether the body has ended."""
        with suppress(h11.RemoteProtocolError):
            for _ in range(MAX_PIECES):
                if self._body_ended:
                    break
                event = self._http.next_event()
                self._body_ended = isinstance(event, h11.EndOfMessage)
                if not isinstance(event, h11.Data):
                    break
        return self._body_ended

    # The answer.

    async def send(self, message: Message) -> None:
        """Send the answer's start or a part of its body. A checkpoint behind each part but the last.

        Raises:
            BrokenPipeError: the client is gone, or took no bytes for ``send_timeout_s``; nobody needs the
                rest of the answer.
            LocalProtocolError: this makes no valid HTTP answer. Nothing of the message was sent.
        """
        if self._gone:
            raise BrokenPipeError("the client has closed the connection")
        if self._complete:
            raise LocalProtocolError(f"the answer is complete: {message['type']} comes too late")
        if message["type"] == "http.response.start":
            if self._start is not None:
                raise LocalProtocolError("the answer has begun: http.response.start comes once")
            self._start = message
        elif message["type"] == "http.response.body":
            await self._send_body(message.get("body", b""), is_end=not message.get("more_body", False))
        else:
            raise LocalProtocolError(f"an answer has no message of type {message['type']!r}")

    async def _send_body(self, body: bytes, *, is_end: bool) -> None:
        if self._start is None:
            raise LocalProtocolError("the answer's body comes before http.response.start")
        pieces = [] if self._begun else [self._head(self._start, body if is_end else None)]
        pieces += self._answer.part(body, is_end=is_end)
        self._begun = True
        if len(body) <= JOIN_BYTES:
            pieces = [b"".join(pieces)]
        try:
            for piece in pieces:
                if piece:
                    await self._wire.send(piece)
        except BaseException:
            self._lose()
            raise
        if is_end:
            self._complete = True
            self._wake_receiver()
        else:
            await trio.lowlevel.checkpoint()

    def _head(self, start: Message, only_part: bytes | None) -> bytes:
        will_not_read_on = only_part is not None and not (self._body_ended or self._discard_received())
        if self._state.stopping or will_not_read_on:
            self._is_last = True
        head = self._answer.head(start, only_part=only_part, date=self._state.date(), closes=self._is_last)
        self._is_last = self._answer.closes
        return head

    async def _refuse(self, refused: Refused) -> None:
        await self._answer_instead(refused.status, refused.content)

    async def _answer_instead(self, status: int, content: Mapping[str, object]) -> None:
        """Answer in place of the application, to which the client is gone from now on."""
        may_answer = not (self._begun or self._gone)
        self._is_last = True
        self._lose()
        if may_answer:
            answer = last_answer(status, content, to=self._method, date=self._state.date())
            with suppress(BrokenPipeError):
                await self._wire.send(answer)


def malformed(exc: h11.RemoteProtocolError) -> Refused:
    """What a client is told that does not speak HTTP: nothing of what it said, nor of the parser's words."""
    log.debug("a client sent what is not HTTP: %s", exc)
    status = exc.error_status_hint
    return Refused(status, _MALFORMED.get(status, "this is not HTTP"))
