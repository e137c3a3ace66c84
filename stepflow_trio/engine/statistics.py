"""What a connection tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from stepflow_trio.protocol.peer import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStatistics:
    """What a connection holds and has seen, at one moment."""

    phase: Phase
    calls_waiting: int
    calls_abandoned: int
    """Given up, and the peer has not answered yet."""
    requests_running: int
    requests_waiting: int
    outbox_frames: int
    outbox_bytes: int
    frames_sent: int
    frames_received: int
    requests_refused: int
    """Answered −32304."""
    dropped: dict[str, int]
    """What arrived and had no effect, by kind: ``late_answer``, ``unknown_answer``, ``late_cancel``, …"""
