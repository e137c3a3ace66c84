"""The event stream of a session, as a client reads it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import trio

from stepflow_trio.engine.link import Arrival
from stepflow_trio.errors import ConnectionLost, ErrorCode, LossReason, RemoteProtocolError
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.sse import EventParser, EventRejected, ServerEvent
from stepflow_trio.transports.http.client import HttpResponse

OPENING_TIMEOUT_S = 5.0
"""A server has to accept the stream, and say where to POST to, by then; as in the public releases."""

FIELDS_BYTES = 256
"""What an event may have besides its message."""

SILENT_HEARTBEATS = 3
"""After so many heartbeats that did not come the server is taken for dead."""


class Opening(msgspec.Struct, frozen=True):
    """The first event: where to POST to, and what is ours: what the worker understands, and its heartbeat."""

    endpoint: str
    extensions: list[str] = []
    heartbeat_s: float = msgspec.field(name="heartbeatS", default=0.0)
    max_post_bytes: int = msgspec.field(name="maxPostBytes", default=0)
    """The longest body that it takes; 0: it does not say."""


class EventStream:
    """The messages of a session's stream.

    Args:
        response: the response that carries it.
        max_event_bytes: the longest message read.
    """

    def __init__(self, response: HttpResponse, *, max_event_bytes: int) -> None:
        self._response = response
        self._parser = EventParser(max_event_bytes + FIELDS_BYTES)
        self._events: list[ServerEvent | EventRejected] = []
        self._rejection: EventRejected | None = None  # behind which nothing can be read any more
        self._patience_s = float("inf")

    async def read_opening(self) -> Opening:
        """Wait for the first event.

        Raises:
            RemoteProtocolError: it is another one.
            ConnectionLost: the stream ended.
        """
        while not self._events:
            await self._read()
        event = self._events.pop(0)
        if not isinstance(event, ServerEvent) or event.type != "endpoint":
            message = "the session does not begin with an event `endpoint`"
            raise RemoteProtocolError(message, code=ErrorCode.GARBLED_MESSAGE)
        try:
            opening = msgspec.convert(codec.decode_json(event.data), Opening)
        except ValueError as exc:
            message = f"the first event of the session cannot be read: {exc}"
            raise RemoteProtocolError(message, code=ErrorCode.GARBLED_MESSAGE) from exc
        if opening.heartbeat_s > 0:
            self._patience_s = SILENT_HEARTBEATS * opening.heartbeat_s
        return opening

    async def receive(self) -> Sequence[Arrival]:
        """Wait for messages; return all that have come. Cancelling loses none.

        Raises:
            ConnectionLost: the stream has ended or failed, an event was too long, or heartbeats have stopped.
        """
        while True:
            arrived: list[Arrival] = []
            for event in self._events:
                if isinstance(event, EventRejected):
                    self._rejection = event
                elif event.type == "message":
                    arrived.append(event.data)
            self._events.clear()
            if arrived:
                return arrived
            if self._rejection is not None:
                raise ConnectionLost(LossReason.PROTOCOL_VIOLATION, self._rejection.detail)
            await self._read()

    async def _read(self) -> None:
        with trio.move_on_after(self._patience_s) as patience:
            chunk = await self._response.receive_some()
            if not chunk:
                raise ConnectionLost(LossReason.PEER_CLOSED, "the worker ended the session")
            self._events += self._parser.feed(chunk)
        if patience.cancelled_caught:
            detail = f"the session's stream brought nothing for {self._patience_s:g} s"
            raise ConnectionLost(LossReason.IDLE_TIMEOUT, detail)
