"""A link over a session: one event stream brings everything, and a POST carries all that waits to be sent."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence

import trio

from stepflow_trio.engine.link import Arrival
from stepflow_trio.errors import ConnectionLost, ErrorCode, LocalProtocolError
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.dialects import TransportKind
from stepflow_trio.protocol.messages import ErrorObject
from stepflow_trio.protocol.peer import Unanswerable
from stepflow_trio.transports.http.client import HttpClient
from stepflow_trio.transports.http.events import EventStream
from stepflow_trio.transports.http.retry_after import retry_after_s

MAX_ERROR_BYTES = 64 * 2**10

POST_BYTES = 512 * 2**10
"""Messages go together into one POST until it is so long; proxies take no more than about 1 MiB at first."""

PIECE_BYTES = 64 * 2**10
"""A body is sent in such pieces, so that it can be seen whether the worker takes them."""

ATTEMPTS = 5
MAX_PAUSE_S = 5.0
"""A POST that is refused for the time being is sent so often, with pauses of so many seconds at most."""

_log = logging.getLogger("stepflow_trio.transports.http")


class SessionLink:
    """Speaks with a worker that understands lines (docs/protocol.md, section 4).

    What queues up while a POST is in flight goes with the next one; answers come on the stream as they are
    made. So it is a stream in both directions, and all rules of stdio hold. It ends when the stream does.
    A message that is too long for the worker fails alone.

    Args:
        client: how to reach the worker.
        target: the session's endpoint, relative to the worker's URL.
        headers: sent with every POST.
        stream: the session's events.
        max_post_bytes: the longest body that the worker takes.
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
        self._refused: list[Arrival] = []
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
        while not self._closed:
            if self._refused:
                refused, self._refused = self._refused, []
                return refused
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
            if len(frame) > self._max_post_bytes:
                await self._refuse(
                    frame, f"the worker takes {self._max_post_bytes} bytes at most", progressed
                )
                continue
            if waiting and size + len(frame) > min(POST_BYTES, self._max_post_bytes):
                await self._post(waiting, progressed)
                waiting, size = [], 0
            waiting.append(frame)
            size += len(frame) + 1
        if waiting:
            await self._post(waiting, progressed)

    async def _post(self, frames: list[bytes], progressed: Callable[[], object]) -> None:
        body = b"\n".join(frames)
        status, pause_s, said = await self._post_once(body, progressed)
        for _ in range(ATTEMPTS - 1):
            if status not in (429, 503):
                break
            await trio.sleep(pause_s)
            status, pause_s, said = await self._post_once(body, progressed)
        if status == 413 and len(frames) > 1:
            for frame in frames:
                await self._post([frame], progressed)
        elif status == 413:
            await self._refuse(frames[0], f"the worker refused it: HTTP 413 {said!r}", progressed)
        elif status != 202:
            raise trio.BrokenResourceError(f"the worker refused messages: HTTP {status} {said!r}")

    async def _post_once(self, body: bytes, progressed: Callable[[], object]) -> tuple[int, float, str]:
        if self._closed:
            raise trio.ClosedResourceError("this link is closed")
        headers, content = self._headers, body
        if len(body) > PIECE_BYTES:
            headers = [*headers, (b"content-length", b"%d" % len(body))]
            content = _in_pieces(body, progressed)
        try:
            async with self._client.request("POST", self._target, headers=headers, body=content) as response:
                said = await response.read(MAX_ERROR_BYTES)
        except ConnectionLost as exc:
            raise trio.BrokenResourceError(str(exc)) from exc
        progressed()
        wanted_s = retry_after_s(response.headers, now=time.time())
        pause_s = 1.0 if wanted_s is None else min(wanted_s, MAX_PAUSE_S)
        return response.status, pause_s, said[:200].decode("utf-8", "replace")

    async def _refuse(self, frame: bytes, why: str, progressed: Callable[[], object]) -> None:
        """Have a message that the worker does not take fail where it came from."""
        what = codec.outline(frame)
        problem = f"a message of {len(frame)} bytes cannot be sent: {why}; store large data as blobs"
        if what.id is None:
            _log.warning("notification %s was dropped: %s", what.method, problem)
        elif what.method is None:
            error = ErrorObject(ErrorCode.INTERNAL_ERROR, f"The answer cannot be sent: {problem}")
            await self._post([codec.encode_failure(error, what.id)], progressed)
        else:
            self._refused.append(Unanswerable(what.id, LocalProtocolError(problem)))
            self._receiving.cancel(reason="a request was refused")

    async def aclose(self) -> None:
        """Close; see :class:`~stepflow_trio.engine.link.Link`."""
        self._closed = True
        self._receiving.cancel(reason="the link is closed")
        await trio.lowlevel.checkpoint()


async def _in_pieces(body: bytes, progressed: Callable[[], object]) -> AsyncGenerator[bytes]:
    view = memoryview(body)
    for start in range(0, len(body), PIECE_BYTES):
        yield bytes(view[start : start + PIECE_BYTES])
        progressed()
