"""One HTTP/1.1 connection: each of its requests is one call of the application, in the connection's task."""

from __future__ import annotations

import secrets
from typing import Any

import h11
import trio

from stepflow_trio.transports.http.accepting import Address
from stepflow_trio.transports.http.answers import last_answer
from stepflow_trio.transports.http.h11_cycle import Cycle, malformed
from stepflow_trio.transports.http.h11_heads import Head, read_head
from stepflow_trio.transports.http.h11_state import ServerState, log
from stepflow_trio.transports.http.request_limits import Refused
from stepflow_trio.transports.http.wire import LINGER_BYTES, LINGER_S, Wire


async def serve_connection(
    stream: trio.abc.Stream,
    state: ServerState,
    *,
    client: Address | None = None,
    server: Address | None = None,
) -> None:
    """Answer the requests of one connection until it ends, and close it.

    Reads strictly, with two leniences of h11: a line may end in LF alone, and a header may be folded.
    Refused are ``content-length`` beside ``transfer-encoding`` (400), a target that names another host than
    ``Host`` does (400), CONNECT (501), and HTTP versions other than 1.0 and 1.1 (505).

    Nothing that a client sends or an application raises comes out. Cancelling closes the connection at once.
    """
    connection = _Connection(stream, state, client, server)
    try:
        await connection.serve()
    except* BrokenPipeError:
        pass
    except* Exception as failures:  # noqa: BLE001 - the other connections go on
        log.error("a connection failed, incident %s", secrets.token_hex(4), exc_info=failures)
    finally:
        await connection.wire.close()


class _Connection:
    def __init__(
        self, stream: trio.abc.Stream, state: ServerState, client: Address | None, server: Address | None
    ) -> None:
        limits = state.limits
        self.wire = Wire(stream, send_timeout_s=limits.send_timeout_s)
        self._state = state
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.max_header_bytes)
        self._scope: dict[str, Any] = {
            "type": "http",
            "scheme": "http",
            "root_path": "",
            "client": client,
            "server": server,
        }
        self._requests_left = limits.max_requests_per_connection
        self._idling = trio.CancelScope()  # cancelled only while this waits for a request

    async def serve(self) -> None:
        """Answer requests until one is the last, or none is awaited any more."""
        try:
            if not await self._answer_all():
                return
        except (Refused, h11.RemoteProtocolError) as exc:
            refused = exc if isinstance(exc, Refused) else malformed(exc)
            content = refused.content
            await self.wire.send(last_answer(refused.status, content, to=b"", date=self._state.date()))
        await self._linger()

    async def _answer_all(self) -> bool:
        """Returns whether an answer was the last thing, not a wait."""
        request = None
        with self._idling:
            while True:
                request = None  # should the next line be cancelled
                request = await self._next_request()
                if request is None:
                    return False
                if self._idling.cancel_called:
                    break  # it came at the last moment; out of the scope with it, which would cancel it
                self._requests_left -= 1
                if not await self._answer(*request, is_last=self._requests_left <= 0):
                    return True
        # Waiting is over, for its time is, or the server stops. What had arrived by then counts.
        request = request or self._received_request()
        return request is not None and not await self._answer(*request, is_last=True)

    async def _answer(self, head: Head, whole_body: bytes | None, *, is_last: bool) -> bool:
        cycle = Cycle(head, whole_body, self._http, self.wire, self._state, is_last=is_last)
        return await cycle.run({**self._scope, **head.scope})

    async def _next_request(self) -> tuple[Head, bytes | None] | None:
        """The next request: its head, and its body if that came with it. None: the connection ends before."""
        request = await self._next_parsed()
        if isinstance(request, h11.Request):
            return read_head(request, self._state.limits), None
        return request

    async def _next_parsed(self) -> h11.Request | tuple[Head, bytes] | None:
        http = self._http
        if http.trailing_data[0]:
            event = http.next_event()
            if isinstance(event, h11.Request):
                await trio.lowlevel.checkpoint()  # it came with the one before it: other tasks' turn
                return event
        elif self._state.stopping:
            return None
        else:
            idle = self._state.idle
            idle[self._idling] = trio.current_time()
            try:
                data = await self.wire.receive()
            finally:
                del idle[self._idling]
            if not data:
                return None
            if whole := self._state.known_heads.whole_request(data):
                return whole
            http.receive_data(data)
            event = http.next_event()
            if isinstance(event, h11.Request):
                head_bytes = data[: len(data) - len(http.trailing_data[0])]
                self._state.known_heads.remember(head_bytes, read_head(event, self._state.limits))
                return event
        with trio.move_on_after(self._state.limits.header_timeout_s):
            while data := await self.wire.receive():
                http.receive_data(data)
                event = http.next_event()
                if isinstance(event, h11.Request):
                    return event
            return None
        raise Refused(408, "the request's headers come too slowly")

    def _received_request(self) -> tuple[Head, None] | None:
        """The request that has arrived, though nobody has read it yet."""
        if data := self.wire.receive_nowait():
            self._http.receive_data(data)
        event = self._http.next_event()
        return (read_head(event, self._state.limits), None) if isinstance(event, h11.Request) else None

    async def _linger(self) -> None:
        await self.wire.send_eof()
        left = LINGER_BYTES
        with trio.move_on_after(LINGER_S):
            while left > 0 and (data := await self.wire.receive()):
                left -= len(data)
