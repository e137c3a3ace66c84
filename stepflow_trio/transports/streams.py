"""A link over byte streams: one JSON text a line (docs/protocol.md, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from stepflow_trio.protocol.dialects import TransportKind
from stepflow_trio.protocol.lines import MAX_FRAME_BYTES, FrameRejected, LineFramer
from stepflow_trio.transports.descriptors import DescriptorStream

RECEIVE_BYTES = 64 * 2**10
"""Asked for in one read; what a pipe holds by default."""

SEND_BYTES = 64 * 2**10
"""A frame this large goes into a write of its own. A stream that does not tell what it has taken is given no
more at once, so that a peer that takes a large frame slowly is seen to take it."""


class StreamLink:
    """Frames over a pair of byte streams, which it owns; a :class:`~stepflow_trio.engine.link.Link`.

    A line that is over ``max_frame_bytes``, or that the stream's end cuts off, is received as
    :class:`~stepflow_trio.protocol.lines.FrameRejected`. What the streams raise passes through:
    ``trio.BrokenResourceError`` where the peer is gone, ``trio.ClosedResourceError`` where this link is
    closed, before the call or during it.
    """

    def __init__(
        self,
        receive_stream: trio.abc.ReceiveStream,
        send_stream: trio.abc.SendStream,
        *,
        max_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> None:
        self._receive_stream = receive_stream
        self._send_stream = send_stream
        self._framer = LineFramer(max_frame_bytes)

    @property
    def kind(self) -> TransportKind:
        """A lasting connection, both ways, counts as stdio."""
        return "stdio"

    @property
    def unfinished_bytes(self) -> int:
        """How much of a frame has been received whose end has not."""
        return self._framer.buffered_bytes

    async def receive(self) -> list[bytes | FrameRejected]:
        """Wait for frames; see :class:`~stepflow_trio.engine.link.Link`. Cancelling loses no byte."""
        while True:
            data = await self._receive_stream.receive_some(RECEIVE_BYTES)
            if not data:
                return [*self._framer.feed_eof()]
            if frames := self._framer.feed(bytes(data)):
                return frames

    async def send(self, frames: Sequence[bytes], progressed: Callable[[], object]) -> None:
        """Send the frames; see :class:`~stepflow_trio.engine.link.Link`.

        Small frames go together into one write; a large one is written from where it lies.
        """
        small: list[bytes] = []
        for frame in frames:
            if len(frame) < SEND_BYTES:
                small.append(frame)
            else:
                await self._write(b"".join(small), progressed)
                await self._write(frame, progressed)
                small.clear()
            small.append(b"\n")
        await self._write(b"".join(small), progressed)

    async def _write(self, data: bytes, progressed: Callable[[], object]) -> None:
        with memoryview(data) as view:
            for start in range(0, len(data), SEND_BYTES):
                with view[start : start + SEND_BYTES] as part:
                    await self._send_stream.send_all(part)
                progressed()

    async def aclose(self) -> None:
        """Close both streams; see :class:`~stepflow_trio.engine.link.Link`."""
        try:
            await self._send_stream.aclose()
        finally:
            await self._receive_stream.aclose()

    def __repr__(self) -> str:
        return f"<StreamLink over {self._receive_stream!r} and {self._send_stream!r}>"


class DescriptorLink(StreamLink):
    """Frames over a pair of byte streams of which the sending one is a descriptor's; an
    :class:`~stepflow_trio.engine.link.EagerLink`.
    """

    def __init__(
        self,
        receive_stream: trio.abc.ReceiveStream,
        send_stream: DescriptorStream,
        *,
        max_frame_bytes: int = MAX_FRAME_BYTES,
    ) -> None:
        super().__init__(receive_stream, send_stream, max_frame_bytes=max_frame_bytes)
        self._descriptor = send_stream
        self._unsent = b""

    def send_nowait(self, frames: Sequence[bytes]) -> bool:
        """Send as far as there is room; see :class:`~stepflow_trio.engine.link.EagerLink`."""
        data = b"\n".join([*frames, b""])
        try:
            self._unsent = data[self._descriptor.send_nowait(data) :]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._unsent = data
        return not self._unsent

    async def send(self, frames: Sequence[bytes], progressed: Callable[[], object]) -> None:
        """Send the rest of what :meth:`send_nowait` has begun, and the frames."""
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            await self._write(unsent, progressed)
        await super().send(frames, progressed)

    async def _write(self, data: bytes, progressed: Callable[[], object]) -> None:
        await self._descriptor.send_all(data, progressed)
