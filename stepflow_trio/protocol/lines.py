"""Newline framing: one JSON text a line (docs/protocol.md, section 3)."""

from __future__ import annotations

from typing import final

from msgspec import Struct

MAX_FRAME_BYTES = 64 * 2**20
"""Longest frame accepted: 64 MiB. Larger data travel as blobs."""


@final
class FrameRejected(Struct, frozen=True):
    """Bytes that are no frame, and why. The stream goes on behind them."""

    detail: str


class LineFramer:
    """Cuts a byte stream into lines.

    However the stream is cut into :meth:`feed` calls, the concatenated results are the same. Each byte is
    looked at once. No more than ``max_frame_bytes`` are kept: a line with more before its ``\\n`` is reported
    once, when it crosses the limit, and skipped up to its end.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._kept = bytearray()  # a list of the pieces could cost many times their size
        self._skipping = False

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
                self._keep(end, frames)
                if self._skipping:
                    self._skipping = False
                    continue
                line = bytes(self._kept)
                self._kept.clear()
            elif len(end) > self._max_frame_bytes:
                frames.append(self._too_long())
                continue
            else:
                line = end
            line = line.strip(b" \t\r")
            if line:
                frames.append(line)
        if rest:
            self._keep(rest, frames)
        return frames

    def feed_eof(self) -> list[FrameRejected]:
        """Say that the stream has ended: an unfinished line is reported, for it may be half a message."""
        kept = self._kept.strip(b" \t\r")
        self._kept.clear()
        self._skipping = False
        return [FrameRejected(f"the stream ended {len(kept)} bytes into a line")] if kept else []

    def _keep(self, part: bytes, frames: list[bytes | FrameRejected]) -> None:
        if self._skipping:
            return
        if len(self._kept) + len(part) > self._max_frame_bytes:
            self._skipping = True
            self._kept.clear()
            frames.append(self._too_long())
        else:
            self._kept += part

    def _too_long(self) -> FrameRejected:
        return FrameRejected(f"a line is longer than {self._max_frame_bytes} bytes")
