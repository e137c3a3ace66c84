"""A link over a session: one event stream brings everything, and a POST carries all that waits to be sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from stepflow_trio.engine.link import Arrival
from stepflow_trio.errors import ConnectionLost
from stepflow_trio.protocol.dialects import TransportKind
from stepflow_trio.transports.http.client import HttpClient
from stepflow_trio.transports.http.events import EventStream

MAX_ERROR_BYTES = 64 * 2**10


class SessionLink:
    """Speaks with a worker that understands lines (docs/protocol.md, section 4).

    What queues up while a POST is in flight goes with the next one; answers come on the stream as they are
    made. So it is a stream in both directions, and all rules of stdio hold. It ends when the stream does.

    Args:
        client: how to reach the worker.
        target: the session's endpoint, relative to the worker's URL.
        headers: sent with every POST.
        stream: the session's events.
        max_post_bytes: the longest body sent, unless a single message is longer.
    """

    def __init__(
        self,
        client: HttpClient,
        *,
        target: str,
        headers: Sequence[tuple[bytes, bytes]],
        stream: EventStream,
        max_post_bytes: int,
    ) -> None:
        self._client = client
        self._target = target
        self._headers = [(b"content-type", b"application/x-ndjson"), *headers]
        self._stream = stream
        self._max_post_bytes = max_post_bytes
        self._closed = False
        self._receiving = trio.CancelScope()

    @property
    def kind(self) -> TransportKind:
        """HTTP."""
        return "http"

    @property
    def is_suspect(self) -> bool:
        """Never: the session ends with the instance that it was opened with."""
        return False

    async def receive(self) -> Sequence[Arrival]:
        """Wait for events; see :class:`~stepflow_trio.engine.link.Link`."""
        if self._closed:
            raise trio.ClosedResourceError("this link is closed")
        with trio.CancelScope() as self._receiving:
            try:
                return await self._stream.receive()
            except ConnectionLost as exc:
                raise trio.BrokenResourceError(str(exc)) from exc
        raise trio.ClosedResourceError("this link is closed")

    async def send(self, frames: Sequence[bytes], progressed: Callable[[], object]) -> None:
        """POST the frames, one a line; see :class:`~stepflow_trio.engine.link.Link`."""
        waiting: list[bytes] = []
        size = 0
        for frame in frames:
            if waiting and size + len(frame) > self._max_post_bytes:
                await self._post(b"\n".join(waiting), progressed)
                waiting, size = [], 0
            waiting.append(frame)
            size += len(frame) + 1
        if waiting:
            await self._post(b"\n".join(waiting), progressed)

    async def _post(self, body: bytes, progressed: Callable[[], object]) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this link is closed")
        try:
            async with self._client.request(
                "POST", self._target, headers=self._headers, body=body
            ) as response:
                said = await response.read(MAX_ERROR_BYTES)
        except ConnectionLost as exc:
            raise trio.BrokenResourceError(str(exc)) from exc
        if response.status != 202:
            text = said[:200].decode("utf-8", "replace")
            raise trio.BrokenResourceError(f"the worker refused messages: HTTP {response.status} {text!r}")
        progressed()

    async def aclose(self) -> None:
        """Close; see :class:`~stepflow_trio.engine.link.Link`."""
        self._closed = True
        self._receiving.cancel(reason="the link is closed")
        await trio.lowlevel.checkpoint()
