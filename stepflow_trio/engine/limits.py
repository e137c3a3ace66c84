"""What a connection may use up, each bound with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one connection. All of them hold against a hostile peer; raise them knowingly."""

    max_calls: int = 16_384
    """Our calls that wait for an answer. A further caller waits for a place in its own task."""

    max_handlers: int = 16_384
    """The peer's requests that are being handled at once, each in a task of its own. A handler keeps its
    place while it waits for a callback, such as a run whose steps need places here too: so there are as many
    as calls can wait."""

    max_waiting: int = 16_384
    """The peer's requests that wait for a handler. A further one is answered −32304 (overloaded): left
    unread, it would block the answers behind it that the running handlers wait for."""

    max_outbox_bytes: int = 64 * 2**20
    """Frames that wait to be sent. Once they are so many, callers wait and handlers keep their places until
    there is room again. What nobody can wait with (answers given by the reader itself) may use as much
    again; then the connection is lost as ``send_stalled``, for the peer sends without reading."""

    write_bytes: int = 256 * 2**10
    """Frames go together into one write until it is so long; about what four pipe buffers hold."""

    send_timeout_s: float = 30.0
    """A peer that accepts no bytes for so long loses the connection."""

    drain_s: float = 5.0
    """What is in flight may finish for so long when the connection ends in order; then it is cancelled."""

    idle_timeout_s: float | None = None
    """Without any frame from the peer for so long the connection is lost. None: never. Nothing keeps an
    idle stdio connection busy, so only transports with a heartbeat set it."""

    def __post_init__(self) -> None:
        for name in ("max_calls", "max_handlers", "max_outbox_bytes", "write_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_waiting < 0:
            raise ValueError(f"max_waiting must not be negative, not {self.max_waiting}")
        for name in ("send_timeout_s", "drain_s", "idle_timeout_s"):
            value = getattr(self, name)
            if value is None and name == "idle_timeout_s":
                continue
            if value is None or not value >= 0:
                raise ValueError(f"{name} must be a number of seconds, not {value}")
