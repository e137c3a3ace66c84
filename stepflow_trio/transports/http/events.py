"""The event stream of a session, as a client reads it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import trio

from stepflow_trio.engine.link import Arrival
from stepflow_trio.errors import ConnectionLost, ErrorCode, LossReason, RemoteProtocolError
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.protocol.sse import EventParser, EventRejected, ServerEvent
from stepflow_trio.transports.http.client import HttpResponse

OPENING_TIMEOUT_S = 5.0
"""A server that accepted the stream has to say by then where to POST to, as in the public releases."""

SILENT_HEARTBEATS = 3
"""After so many heartbeats that did not come the server is taken for dead."""


class Opening(msgspec.Struct, frozen=True):
    """The first event: where to POST to, and what is ours: what the worker understands, and its heartbeat."""

    endpoint: str
    extensions: list[str] = []
    heartbeat_s: float = msgspec.field(name="heartbeatS", default=0.0)


class EventStream:
    """The messages of a session's stream.

    Args:
        response: the response that carries it.
        max_event_bytes: the longest event read; a longer one is skipped and reported.
    """

    def __init__(self, response: HttpResponse, *, max_event_bytes: int) -> None:
        self._response = response
        self._parser = EventParser(max_event_bytes)
        self._events: list[ServerEvent | EventRejected] = []
        self._patience_s = float("inf")

    async def read_opening(self) -> Opening:
        """Wait for the first event.

        Raises:
            RemoteProtocolError: it did not come in time, or is another one.
            ConnectionLost: the stream ended.
        """
        with trio.move_on_after(OPENING_TIMEOUT_S):
            while not self._events:
                await self._read()
            event = self._events.pop(0)
            if isinstance(event, ServerEvent) and event.type == "endpoint":
                try:
                    opening = msgspec.convert(codec.decode_json(event.data), Opening)
                except ValueError as exc:
                    message = f"the first event of the session cannot be read: {exc}"
                    raise RemoteProtocolError(message, code=ErrorCode.GARBLED_MESSAGE) from exc
                if opening.heartbeat_s > 0:
                    self._patience_s = SILENT_HEARTBEATS * opening.heartbeat_s
                return opening
        message = f"no event `endpoint` came first, within {OPENING_TIMEOUT_S:g} s"
        raise RemoteProtocolError(message, code=ErrorCode.GARBLED_MESSAGE)

    async def receive(self) -> Sequence[Arrival]:
        """Wait for messages; return all that have come. Cancelling loses none.

        Raises:
            ConnectionLost: the stream has ended or failed, or its heartbeats have stopped.
        """
        while True:
            arrived: list[Arrival] = []
            for event in self._events:
                if isinstance(event, EventRejected):
                    arrived.append(FrameRejected(event.detail))
                elif event.type == "message":
                    arrived.append(event.data)
            self._events.clear()
            if arrived:
                return arrived
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
