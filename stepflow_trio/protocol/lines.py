"""Newline framing: one JSON text a line (docs/protocol.md, section 3)."""

from __future__ import annotations

from typing import final

from msgspec import Struct

MAX_FRAME_BYTES = 64 * 2**20
"""Longest frame accepted: 64 MiB. Larger data travel as blobs."""

EDGE_BYTES = 256
"""How much of each end of a line that is too long is kept: there stands the id of the call it answers."""


@final
class FrameRejected(Struct, frozen=True):
    """Bytes that are no frame, and why. The stream goes on behind them.

    ``head`` and ``tail`` are the ends of a line that is too long, at most :data:`EDGE_BYTES` each.
    """

    detail: str
    head: bytes = b""
    tail: bytes = b""


class LineFramer:
    """Cuts a byte stream into lines.

    However the stream is cut into :meth:`feed` calls, the concatenated results are the same. Each byte is
    looked at once. No more than ``max_frame_bytes`` are kept: of a line with more before its ``\\n`` only the
    ends are, and it is reported once, when it ends.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._edge_bytes = min(EDGE_BYTES, max_frame_bytes // 2)
        self._kept = bytearray()  # a list of the pieces could cost many times their size
        self._skipping = False  # the line is too long, and its two ends are what is kept

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the unfinished line that are kept."""
        return len(self._kept)

    def feed(self, data: bytes) -> list[bytes | FrameRejected]:
        """Take the next bytes; return the frames they complete. Never raises.

        A frame comes without its ``\\n`` or ``\\r\\n``; blank lines are dropped.
        """
        *ends, rest = data.split(b"\n")
        frames: list[bytes | FrameRejected] = []
        for end in ends:
            if self._kept or self._skipping:
                self._keep(end)
                line = bytes(self._kept)
                self._kept.clear()
            else:
                line = end
            if self._skipping or len(line) > self._max_frame_bytes:
                self._skipping = False
                frames.append(self._too_long(line))
            elif line := line.strip(b" \t\r"):
                frames.append(line)
        if rest:
            self._keep(rest)
        return frames

    def feed_eof(self) -> list[FrameRejected]:
        """Say that the stream has ended: an unfinished line is reported, for it may be half a message."""
        kept, is_too_long = bytes(self._kept), self._skipping
        self._kept.clear()
        self._skipping = False
        if is_too_long:
            return [self._too_long(kept)]
        kept = kept.strip(b" \t\r")
        return [FrameRejected(f"the stream ended {len(kept)} bytes into a line")] if kept else []

    def _keep(self, part: bytes) -> None:
        self._kept += part
        if self._skipping or len(self._kept) > self._max_frame_bytes:
            self._skipping = True
            del self._kept[self._edge_bytes : len(self._kept) - self._edge_bytes]

    def _too_long(self, line: bytes) -> FrameRejected:
        edge = self._edge_bytes
        detail = f"a line is longer than {self._max_frame_bytes} bytes"
        return FrameRejected(detail, line[:edge], line[len(line) - edge :])
