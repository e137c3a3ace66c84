"""What answers an array of messages, and how much of it a connection holds until it is whole."""

from __future__ import annotations

from typing import cast, final

from stepflow_trio.errors import ErrorCode
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import MAX_FRAME_BYTES
from stepflow_trio.protocol.messages import ErrorObject

MAX_BATCHED_BYTES = MAX_FRAME_BYTES // 2
"""Answers held on a connection until the rest of their batches is answered: 32 MiB. What one batch holds then
fits into one frame, with as much room again for the errors that take the place of further answers."""

BATCHES_FULL = ErrorObject(
    ErrorCode.OVERLOADED, "Too many answers wait for the rest of their batches", {"retry_after_s": 1.0}
)
_UNFIT_FOR_BATCH = ErrorObject(
    ErrorCode.INTERNAL_ERROR,
    "Internal error",
    {"detail": "the answer is too large or nests too deep for a batch: ask outside of one"},
)
_BATCH_TOO_LARGE = ErrorObject(
    ErrorCode.INTERNAL_ERROR,
    "Internal error",
    {"detail": "the answers to a batch are too large to be sent together"},
)


@final
class BatchedBytes:
    """How much of the answers to all unfinished batches is held, and how much may be."""

    __slots__ = ("held", "limit")

    def __init__(self, limit: int) -> None:
        self.held = 0
        self.limit = limit


@final
class BatchAnswer:
    """The answers to one array of requests, sent as one array in the order of the requests."""

    __slots__ = ("_bytes", "_frames", "_missing", "_own_bytes")

    def __init__(self, batched_bytes: BatchedBytes) -> None:
        self._frames: list[bytes | None] = []
        self._missing = 0
        self._bytes = batched_bytes
        self._own_bytes = 0

    def reserve(self) -> int:
        """The place of one more answer. All are reserved before the first one is filled."""
        self._frames.append(None)
        self._missing += 1
        return len(self._frames) - 1

    def unfit(self, frame: bytes) -> ErrorObject | None:
        """The error to fill in where ``frame`` is too large, too deep or would be held beyond the limit.

        The error itself is not held to the limit: there is one at most for each request in flight.
        """
        if len(frame) > self._bytes.limit or codec.nests_deeper(frame, codec.MAX_NESTING - 1):
            return _UNFIT_FOR_BATCH
        return BATCHES_FULL if self._bytes.held + len(frame) > self._bytes.limit else None

    def fill(self, slot: int, frame: bytes) -> bytes | None:
        """Hold ``frame`` in its place; return the whole answer if it was the last one missing."""
        self._frames[slot] = frame
        self._missing -= 1
        if self._missing:
            self._own_bytes += len(frame)
            self._bytes.held += len(frame)
            return None
        self._bytes.held -= self._own_bytes
        whole = codec.encode_batch(cast("list[bytes]", self._frames))
        self._frames.clear()  # the requests, which may be kept for longer, hold on to this
        # The ids alone, which are the peer's, may be so large.
        return whole if len(whole) <= MAX_FRAME_BYTES else codec.encode_failure(_BATCH_TOO_LARGE, None)
