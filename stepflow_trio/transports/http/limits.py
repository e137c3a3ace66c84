"""What HTTP may use up, each bound with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass, fields

from stepflow_trio.protocol.lines import MAX_FRAME_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpServerLimits:
    """The bounds of one server. All of them hold against hostile clients; raise them knowingly.

    Raises:
        ValueError: a bound is not a positive number.
    """

    max_header_bytes: int = 16 * 2**10
    """A request's line and headers. Over it: 431."""

    max_body_bytes: int = MAX_FRAME_BYTES
    """A request's body. Over it: 413."""

    max_receiving_bytes: int = 8 * MAX_FRAME_BYTES
    """Of bodies that are still coming, of all requests together. Over it: 503."""

    max_sessions: int = 256
    """Open at once. Over it: 503."""

    max_connections: int = 16_384
    """Open at once; each takes a descriptor. Over it, a new one is answered 503 and closed."""

    max_connections_per_peer: int = 16_384
    """Open at once from one address: as many as the calls of one of our runtimes."""

    max_requests_per_connection: int = 10_000
    """Then the answer says ``connection: close``, so that balancers spread their load anew."""

    keep_alive_s: float = 15.0
    """A connection between two requests is closed after so long; longer than our own client waits."""

    header_timeout_s: float = 10.0
    """From a request's first byte to the end of its headers. Over it: 408."""

    body_grace_s: float = 10.0
    """A body may take so long, and the time that it needs at ``min_body_rate``. Over it: 408."""

    min_body_rate: int = 64 * 2**10
    """Bytes a second."""

    send_timeout_s: float = 30.0
    """A client that takes no bytes for so long loses its connection."""

    heartbeat_s: float = 15.0
    """An event stream on which nothing was sent for so long gets a comment; 0: never."""

    drain_s: float = 5.0
    """Requests in flight may finish for so long when the server stops; then they are cancelled."""

    tls_handshake_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        _check_positive(self, may_be_zero=("heartbeat_s", "drain_s"))


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpClientLimits:
    """The bounds of one client.

    Raises:
        ValueError: a bound is not a positive number.
    """

    max_connections: int = 256
    """Open at once to one server. A further request waits for one of them."""

    max_idle_connections: int = 64
    """Kept open between requests."""

    keep_alive_s: float = 4.0
    """A connection that was not used for so long is closed: before the public workers do it, after 5."""

    connect_timeout_s: float = 10.0
    """Name lookup, TCP and TLS together."""

    send_timeout_s: float = 30.0
    """A server that takes no bytes for so long loses the connection."""

    max_header_bytes: int = 64 * 2**10
    """An answer's status line and headers."""

    max_body_bytes: int = MAX_FRAME_BYTES
    """An answer's body, where it is read whole."""

    max_event_bytes: int = MAX_FRAME_BYTES
    """One event of an event stream."""

    def __post_init__(self) -> None:
        _check_positive(self)


def _check_positive(limits: HttpServerLimits | HttpClientLimits, may_be_zero: tuple[str, ...] = ()) -> None:
    for each in fields(limits):
        value = getattr(limits, each.name)
        if not (value > 0 or (value == 0 and each.name in may_be_zero)):
            raise ValueError(f"{each.name} must be positive, not {value}")
