"""hypercorn's HTTP/1.1, corrected where it harms: what it does with requests, not with sockets."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import events as stream_events
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup

from stepflow_trio.transports.http.accepting import Address
from stepflow_trio.transports.http.hypercorn_call import AppCall, Owner, answer_headers, json_answer, log
from stepflow_trio.transports.http.request_limits import Refused, check_head, check_http1_framing, origin_form

AHEAD_BYTES = 64 * 2**10
"""Kept of a body that the application has not received, and of what stands behind a request in answer."""

EVENTS_PER_TURN = 256
"""Parsed without giving other tasks a turn."""

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_IN_REQUEST = (h11.IDLE, h11.SEND_BODY)
_BEHIND_LAST_REQUEST = (h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)  # what comes there is ignored (RFC 9112, 9.6)


class Http1(H11Protocol):
    """HTTP/1.1 and 1.0 of one connection.

    Where hypercorn, waiting with a request behind the one in answer, reads no more, this reads on, or nobody
    would see the client go. Not spoken are WebSocket and HTTP/2 over ``Upgrade`` (they are ignored, as
    RFC 9110, section 7.8 allows), nor HTTP/2 without TLS (505).

    Reads strictly, with two leniences of h11: a line may end in LF alone, and a header may be folded.
    """

    def __init__(
        self,
        owner: Owner,
        config: Config,
        context: WorkerContext,
        *,
        ssl: bool,
        client: Address | None,
        server: Address | None,
    ) -> None:
        super().__init__(
            cast("AppWrapper", None),
            config,
            cast("Any", context),
            cast("TaskGroup", owner),
            ConnectionState({}),
            ssl,
            cast("Any", client),  # for a Unix socket an address has no port
            cast("Any", server),
            owner.send,
        )
        self._owner = owner
        self._http = cast("h11.Connection", self.connection)  # for good: there is no WebSocket here
        self._service = owner.service
        self._scheme = b"https" if ssl else b"http"
        self._method = b""
        self._call: AppCall | None = None
        self._is_paused = False
        self._ahead_bytes = 0
        self._is_last = False
        self._requests = 0

    receive_bytes = 64 * 2**10
    """To ask for in one read."""

    @property
    def is_idle(self) -> bool:
        """Whether there is no request that is not answered."""
        return self.stream is None

    @property
    def is_backed_up(self) -> bool:
        """Whether nothing is to be read before the application has taken more."""
        return self._call is not None and self._call.unread_bytes >= AHEAD_BYTES

    @property
    def is_end_ambiguous(self) -> bool:
        """Whether only a reset tells the client that this answer has been cut off."""
        return self._http.our_state is h11.SEND_BODY and self._http.their_http_version == b"1.0"

    # ---- what comes

    async def handle(self, event: Event) -> None:
        """Take what has come."""
        if not isinstance(event, RawData):
            await super().handle(event)
            return
        their_state = self._http.their_state
        if their_state in _BEHIND_LAST_REQUEST:
            return
        if their_state not in _IN_REQUEST:
            self._ahead_bytes += len(event.data)
            if self._ahead_bytes > AHEAD_BYTES:
                self._is_last = True
            if self._is_last:
                return
        self._http.receive_data(event.data)
        await self._handle_events()

    async def resume(self) -> None:
        """Go on behind a request that has been answered."""
        if self.is_idle and self._is_paused:
            self._is_paused = False
            self._ahead_bytes = 0
            await self._handle_events()

    async def _handle_events(self) -> None:
        try:
            await self._parse()
        except h11.RemoteProtocolError as exc:
            log.debug("a client sent what is not HTTP: %s", exc)
            await self._refuse(Refused(exc.error_status_hint, "malformed request"))
        except Refused as refused:
            await self._refuse(refused)

    async def _parse(self) -> None:
        parsed = 0
        while not self._owner.is_closing and self._http.their_state not in _BEHIND_LAST_REQUEST:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                await self.send(Updated(idle=False))
                await self._create_stream(event)
            elif isinstance(event, h11.Data) and self.stream is not None:
                await self.stream.handle(stream_events.Body(STREAM_ID, event.data))
            elif isinstance(event, h11.EndOfMessage) and self.stream is not None:
                await self.stream.handle(stream_events.EndBody(STREAM_ID))
            else:
                self._is_paused = event is h11.PAUSED
                break
            parsed += 1
            if not parsed % EVENTS_PER_TURN:
                await trio.lowlevel.checkpoint()
        if self.stream is None and self._http.trailing_data[0]:
            self._owner.note_head_begun()

    async def _create_stream(self, request: h11.Request) -> None:
        self._method = request.method
        headers = list(request.headers)
        check_http1_framing(request.http_version, headers)
        check_head(request.method, request.target, headers, self._service.limits)
        host = next((value for name, value in headers if name == b"host"), None)
        target = origin_form(request.target, self._scheme, host)
        self._call = call = AppCall(self._owner, self, STREAM_ID)
        self.stream = call.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            cast("TaskGroup", call),
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        self._requests += 1
        await self.stream.handle(
            stream_events.Request(
                STREAM_ID,
                headers=headers,
                http_version=request.http_version.decode("ascii"),
                method=request.method.decode("ascii"),
                raw_path=target,
                state=self.connection_state,
            )
        )

    async def _refuse(self, refused: Refused) -> None:
        if self._call is not None and self.stream is not None:
            await self._call.refuse(refused)
        else:
            await self.answer_instead(None, refused.status, refused.content)

    async def time_out(self) -> None:
        """Nothing has come for too long, or the headers come too slowly."""
        if self._http.trailing_data[0]:
            await self._refuse(Refused(408, "the request's headers come too slowly"))
        await self.send(Closed())

    async def retire(self) -> None:
        """Close, now or after the answer that is owed."""
        self._is_last = True
        if self.is_idle:
            await self.send(Closed())

    # ---- what goes

    def body_wanted(self, call: AppCall) -> None:
        """The application waits for the body: who expects ``100 Continue`` shall send it."""
        if self._http.they_are_waiting_for_100_continue:
            response = h11.InformationalResponse(status_code=100, headers=[], reason=_REASONS[100])
            self._owner.write(self._http.send(response))

    def taken(self, call: AppCall, taken_bytes: int) -> None:
        """The application has taken so much of the body."""
        if taken_bytes >= AHEAD_BYTES:
            self._owner.resume_reading()

    async def stream_send(self, event: stream_events.Event) -> None:
        """Send a part of the answer."""
        if isinstance(event, stream_events.Response):
            self._owner.write(self._http.send(self._head(event)))
        else:
            await super().stream_send(event)

    def _head(self, event: stream_events.Response) -> h11.Response:
        headers, is_last = answer_headers(event.headers, self._service.date())
        limits, call = self._service.limits, self._call
        if (
            is_last
            or self._requests >= limits.max_requests_per_connection
            or (call is not None and call.is_answered_at_once and not call.is_body_complete)
        ):
            self._is_last = True
        if self._is_last:
            headers.append((b"connection", b"close"))
        status = event.status_code
        return h11.Response(status_code=status, headers=headers, reason=_REASONS.get(status, b""))

    async def answer_instead(self, call: AppCall | None, status: int, content: Mapping[str, object]) -> None:
        """Answer in the application's place, if it has not begun to. The connection's last act."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._is_last = True
            headers, body = json_answer(content)
            head = self._head(stream_events.Response(STREAM_ID, headers=headers, status_code=status))
            events = [head, *([] if self._method == b"HEAD" else [h11.Data(data=body)]), h11.EndOfMessage()]
            for event in events:
                self._owner.write(self._http.send(event) or b"")
        await self._close_stream()
        await self.send(Closed())

    async def _maybe_recycle(self) -> None:
        http = self._http
        await self._close_stream()
        self._call = None
        if self._is_last or http.our_state is not h11.DONE or http.their_state is not h11.DONE:
            await self.send(Closed())
            return
        self._method = b""
        http.start_next_cycle()
        await self.send(Updated(idle=True))
        if self._is_paused:
            self._owner.resume_reading()
