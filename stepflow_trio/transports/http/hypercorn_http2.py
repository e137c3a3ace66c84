"""hypercorn's HTTP/2, corrected where it harms: what it does with requests, not with sockets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, Updated
from hypercorn.protocol import events as stream_events
from hypercorn.protocol.h2 import H2Protocol, StreamBuffer
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup
from hypercorn.utils import filter_pseudo_headers
from hyperframe.frame import GoAwayFrame

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.transports.http.accepting import Address
from stepflow_trio.transports.http.hypercorn_call import AppCall, Owner, answer_headers, json_answer, log
from stepflow_trio.transports.http.request_limits import Refused, check_head

MAX_STREAMS = 100
"""Requests at once on one connection. Each may hold a stream's window of its body unread."""

MAX_CALLS = 2 * MAX_STREAMS
"""Calls of the application at once for one connection: more of them than requests only where a client resets
requests faster than the application gives them up."""

_WINDOW_BYTES = 2**16 - 1
_VISIBLE = frozenset(range(0x21, 0x7F))
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


class Http2(H2Protocol):
    """HTTP/2 of one connection.

    Here a request ends with what it did wrong, where hypercorn ends the connection and more: what comes
    behind an answer, resets, methods and paths that are not ASCII. An answer that the application leaves
    short is reset, a request whose body nobody needs any more too. Each stream is read as the application
    takes it, without holding up the others. The client's priorities are ignored (RFC 9113, section 5.3).
    Not spoken are CONNECT and WebSocket (501), and server push.
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
        self._service = owner.service
        codes = h2.settings.SettingCodes
        # Twice the bound, for this one's measure counts 32 bytes more for each header, and breaking it ends
        # the connection: what is a little over our bound is answered 431.
        header_bytes = 2 * owner.service.limits.max_header_bytes
        self.connection.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                codes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                codes.MAX_HEADER_LIST_SIZE: header_bytes,
            },
        )
        self.connection.decoder.max_header_list_size = header_bytes
        self._calls: dict[int, AppCall] = {}
        self._uploads: set[int] = set()
        self._sending: dict[int, trio.CancelScope] = {}
        self._is_retiring = False
        self._requests = 0

    receive_bytes = 16 * 2**10
    """To ask for in one read, which is parsed without giving other tasks a turn."""

    is_backed_up = False
    is_end_ambiguous = False

    @property
    def is_idle(self) -> bool:
        """Whether there is no request that is not answered."""
        return not self.streams and not self.stream_buffers

    # ---- what comes

    async def initiate(self, headers: Any = None, settings: bytes | None = None) -> None:
        """Begin the connection."""
        await super().initiate(headers, settings)
        # Or those of whose bodies the applications take nothing would hold up all others.
        self.connection.increment_flow_control_window(MAX_STREAMS * _WINDOW_BYTES)
        await self._flush()

    async def handle(self, event: Event) -> None:
        """Take what has come."""
        if not isinstance(event, Closed):
            await self._owner.wait_writable()  # who asks on and on, and reads no answer, is not read
        await super().handle(event)
        if isinstance(event, Closed):
            for stream_id in list(self.stream_buffers):
                await self._forget_buffer(stream_id)  # or who sends would wait there for ever

    async def resume(self) -> None:
        """Nothing waits here."""

    async def _handle_events(self, events: Sequence[h2.events.Event]) -> None:
        widened: set[int | None] = set()
        for event in events:
            if self._owner.is_closing:
                return
            match event:
                case h2.events.RequestReceived():
                    await self._begin(event)
                case h2.events.DataReceived():
                    await self._take(event)
                case h2.events.StreamEnded():
                    self._uploads.discard(event.stream_id)
                    if stream := self.streams.get(event.stream_id):
                        await stream.handle(stream_events.EndBody(event.stream_id))
                case h2.events.StreamReset():
                    self._uploads.discard(event.stream_id)
                    await self._forget(event.stream_id)
                case h2.events.WindowUpdated():
                    widened.add(event.stream_id or None)
                case h2.events.RemoteSettingsChanged():
                    widened.add(None)
                case h2.events.ConnectionTerminated():
                    await self.send(Closed())  # h2 sends nothing any more behind it
                case _:
                    pass
        # Not for each event: one of the whole connection's makes every stream look again.
        for stream_id in (None,) if None in widened else widened:
            await self._window_updated(stream_id)
        await self._flush()

    async def _take(self, event: h2.events.DataReceived) -> None:
        stream = self.streams.get(event.stream_id)
        unread = len(event.data) if stream is not None else 0
        self._acknowledge(event.flow_controlled_length - unread, event.stream_id)
        if stream is not None:
            await stream.handle(stream_events.Body(event.stream_id, event.data))

    async def _begin(self, event: h2.events.RequestReceived) -> None:
        stream_id = event.stream_id
        errors = h2.errors.ErrorCodes
        if len(self._owner.calls) >= MAX_CALLS:
            log.warning("a client resets its requests faster than they can be given up")
            self.connection.close_connection(errors.ENHANCE_YOUR_CALM)
            await self._flush()
            await self.send(Closed())
            return
        if not event.stream_ended:
            self._uploads.add(stream_id)
        if self._is_retiring:
            self._reset(stream_id, errors.REFUSED_STREAM)
            return
        head = {name: value for name, value in event.headers if name[:1] == b":"}
        method, target = head.get(b":method", b""), head.get(b":path", b"")
        is_path = target[:1] in (b"/", b"*") and _VISIBLE.issuperset(target)
        if not _TOKEN.issuperset(method) or not method or not (is_path or method == b"CONNECT"):
            self._reset(stream_id, errors.PROTOCOL_ERROR)
            return
        try:
            check_head(method, target, event.headers, self._service.limits)
        except Refused as refused:
            self._send_whole(stream_id, refused.status, refused.content)
        else:
            await self._create_stream(event)
        self._requests += 1
        if self._requests >= self._service.limits.max_requests_per_connection:
            await self.retire()

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        stream_id = request.stream_id
        head = dict(request.headers)
        self._calls[stream_id] = call = AppCall(self._owner, self, stream_id)
        self.streams[stream_id] = call.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            cast("TaskGroup", call),
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            stream_id,
        )
        self.stream_buffers[stream_id] = StreamBuffer(self.context.event_class)
        self.priority.insert_stream(stream_id)
        self.priority.block(stream_id)
        await self.send(Updated(idle=False))
        await call.stream.handle(
            stream_events.Request(
                stream_id,
                headers=filter_pseudo_headers(cast("Any", request.headers)),
                http_version="2",
                method=head[b":method"].decode("ascii"),
                raw_path=head[b":path"],
                state=self.connection_state,
            )
        )

    async def time_out(self) -> None:
        """Nothing has come for too long."""
        self._send_goaway()
        await self.send(Closed())

    async def retire(self) -> None:
        """Take no more requests, and close, now or when those that there are have been answered."""
        if not self._is_retiring:
            self._is_retiring = True
            self._send_goaway()
        await self._settle()

    def _send_goaway(self) -> None:
        # h2 would send nothing after a GOAWAY of its own, not even what it owes.
        last = self.connection.highest_inbound_stream_id
        goaway = GoAwayFrame(0, last_stream_id=last, error_code=h2.errors.ErrorCodes.NO_ERROR)
        self._owner.write(self.connection.data_to_send() + goaway.serialize())

    # ---- what goes

    def body_wanted(self, call: AppCall) -> None:
        """The application waits for the body: it comes, as far as the stream's window goes."""

    def taken(self, call: AppCall, taken_bytes: int) -> None:
        """The application has taken so much of the body: as much may come."""
        self._acknowledge(taken_bytes, call.stream_id)
        self._owner.write(self.connection.data_to_send())

    async def stream_send(self, event: stream_events.Event) -> None:
        """Send a part of an answer, waiting until the client lets it through."""
        if isinstance(event, stream_events.StreamClosed):
            # The last bytes may still be in its buffer.
            await self._forget_call(event.stream_id)
            return
        if isinstance(event, stream_events.Response):
            await self._send_head(event)
            return
        # The rest waits until the client lets it through. What the client takes of it moves the deadline.
        timeout_s = self._service.limits.send_timeout_s
        with trio.CancelScope(deadline=trio.current_time() + timeout_s) as scope:
            self._sending[event.stream_id] = scope
            try:
                await super().stream_send(event)
            finally:
                self._sending.pop(event.stream_id, None)
        if scope.cancelled_caught:
            log.debug("a client took no bytes of an answer for %g s", timeout_s)
            await self._cut(event.stream_id, h2.errors.ErrorCodes.CANCEL)

    async def _send_head(self, event: stream_events.Response) -> None:
        headers, _ = answer_headers(event.headers, self._service.date())
        try:
            self.connection.send_headers(event.stream_id, [(b":status", b"%d" % event.status_code), *headers])
        except (h2.exceptions.StreamClosedError, h2.exceptions.NoSuchStreamError):
            return
        except h2.exceptions.ProtocolError as exc:
            raise LocalProtocolError(f"the answer is not valid HTTP: {exc}") from exc
        await self._flush()

    async def _send_data(self, stream_id: int) -> None:
        await self._owner.wait_writable()
        buffer = self.stream_buffers.get(stream_id)
        if buffer is None:
            return  # it went while this waited
        try:
            window = self.connection.local_flow_control_window(stream_id)
            room = max(0, min(window, self.connection.max_outbound_frame_size))
            if buffer.buffer and not room:
                self.priority.block(stream_id)
                return
            data = await buffer.pop(room)
            if not data and not buffer.complete:
                self.priority.block(stream_id)
                return
            self.connection.send_data(stream_id, data, end_stream=buffer.complete)
        except h2.exceptions.ProtocolError as exc:
            log.debug("an answer cannot be sent any more: %s", exc)
            await self._forget(stream_id)
            return
        if stream_id in self._sending:
            self._sending[stream_id].deadline = trio.current_time() + self._service.limits.send_timeout_s
        if buffer.complete:
            await self._forget_buffer(stream_id)
            self._stop_upload(stream_id)
            await self._settle()
        await self._flush()

    async def answer_instead(self, call: AppCall, status: int, content: Mapping[str, object]) -> None:
        """Answer in the application's place, or reset the stream where it has begun to."""
        if call.has_begun:
            await self._cut(call.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        else:
            self._send_whole(call.stream_id, status, content)
            await self._forget(call.stream_id)

    def _send_whole(self, stream_id: int, status: int, content: Mapping[str, object]) -> None:
        headers, body = json_answer(content)
        headers, _ = answer_headers(headers, self._service.date())
        try:
            if self.connection.local_flow_control_window(stream_id) < len(body):
                body = b""
                headers = [each for each in headers if each[0] != b"content-length"]
            self.connection.send_headers(stream_id, [(b":status", b"%d" % status), *headers])
            self.connection.send_data(stream_id, body, end_stream=True)
        except h2.exceptions.ProtocolError as exc:
            log.debug("an answer came too late: %s", exc)
        self._stop_upload(stream_id)

    async def _cut(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        """End a stream whose answer is not complete."""
        self._reset(stream_id, code)
        await self._forget(stream_id)

    async def _forget(self, stream_id: int) -> None:
        """Nothing more is to be done for this stream."""
        await self._forget_buffer(stream_id)
        await self._forget_call(stream_id)

    async def _forget_call(self, stream_id: int) -> None:
        if call := self._calls.pop(stream_id, None):
            call.leave()
            await self._close_stream(stream_id)
            await self._flush()
            await self._settle()

    def _stop_upload(self, stream_id: int) -> None:
        """Have the client send no more of a body whose request is answered (RFC 9113, section 8.1)."""
        if stream_id in self._uploads:
            self._uploads.discard(stream_id)
            self._reset(stream_id, h2.errors.ErrorCodes.NO_ERROR)

    def _reset(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        self._uploads.discard(stream_id)
        try:
            self.connection.reset_stream(stream_id, code)
        except h2.exceptions.ProtocolError as exc:
            log.debug("a stream that is to be reset is closed already: %s", exc)

    def _acknowledge(self, taken_bytes: int, stream_id: int) -> None:
        try:
            self.connection.acknowledge_received_data(taken_bytes, stream_id)
        except h2.exceptions.ProtocolError as exc:
            log.debug("nothing more is read on a connection that has ended: %s", exc)

    async def _forget_buffer(self, stream_id: int) -> None:
        if buffer := self.stream_buffers.pop(stream_id, None):
            await buffer.close()
            self.priority.remove_stream(stream_id)

    async def _settle(self) -> None:
        """Note whether there is nothing to do; then a connection that retires is closed."""
        await self.send(Updated(idle=self.is_idle))
        if self._is_retiring and self.is_idle:
            await self._flush()
            await self.send(Closed())
