"""What a request may be and use up, for a host whose HTTP library does not see to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from stepflow_trio.transports.http.limits import HttpServerLimits

HEADER_LINE_BYTES = len(": \r\n")
"""What a header takes on a line of its own besides its name and value."""


class Refused(Exception):
    """A request that is answered without the application.

    ``what`` tells the client why, and holds nothing that came from it.
    """

    def __init__(self, status: int, what: str) -> None:
        super().__init__(status, what)
        self.status = status
        self.what = what

    @property
    def content(self) -> dict[str, object]:
        """The answer's JSON."""
        return {"code": self.status, "message": self.what}


class OpenConnections:
    """How many connections are open, in all and from each address."""

    def __init__(self, limits: HttpServerLimits) -> None:
        self._limits = limits
        self._total = 0
        self._of_peer: Counter[str] = Counter()

    def admit(self, peer: str | None) -> bool:
        """Count one more if it may be; say whether. ``peer`` is None where clients have no address."""
        if self._total >= self._limits.max_connections:
            return False
        if peer is not None:
            if self._of_peer[peer] >= self._limits.max_connections_per_peer:
                return False
            self._of_peer[peer] += 1
        self._total += 1
        return True

    def release(self, peer: str | None) -> None:
        """Count one less: one that was admitted has ended."""
        self._total -= 1
        if peer is not None:
            self._of_peer[peer] -= 1
            if not self._of_peer[peer]:
                del self._of_peer[peer]


class BodyBudget:
    """The bytes and the time that one request's body may take. It starts when its headers are complete.

    ``now`` is in seconds, of whatever clock :attr:`deadline` is to be compared with.
    """

    __slots__ = ("_counted_from", "_limits", "_received_bytes", "_start")

    def __init__(self, limits: HttpServerLimits, now: float) -> None:
        self._limits = limits
        self._start = now
        self._received_bytes = 0
        self._counted_from = 0

    @property
    def deadline(self) -> float:
        """When it is too slow: after ``body_grace_s``, and later with every byte that comes."""
        at_least_s = (self._received_bytes - self._counted_from) / self._limits.min_body_rate
        return self._start + self._limits.body_grace_s + at_least_s

    def spend(self, received_bytes: int) -> None:
        """Note that so many bytes have come.

        Raises:
            Refused: with them it is over ``max_body_bytes``.
        """
        self._received_bytes += received_bytes
        if self._received_bytes > self._limits.max_body_bytes:
            raise _too_large(self._limits)

    def restart(self, now: float) -> None:
        """Give it its time anew, because not the client was slow."""
        self._start = now
        self._counted_from = self._received_bytes


def check_head(
    method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]], limits: HttpServerLimits
) -> None:
    """Check what concerns every version of HTTP: the sizes, and that the method is one for a server.

    Raises:
        Refused: nothing can be done for this request.
    """
    header_bytes = len(method) + len(target) + len("  HTTP/1.1\r\n\r\n")
    for name, value in headers:
        header_bytes += len(name) + len(value) + HEADER_LINE_BYTES
        if name == b"content-length" and _is_over(value, limits.max_body_bytes):
            raise _too_large(limits)
    if header_bytes > limits.max_header_bytes:
        raise Refused(431, f"the request line and headers are over {limits.max_header_bytes} bytes")
    if method == b"CONNECT":
        raise Refused(501, "this is not a proxy")


def check_http1_framing(version: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Check that there is one way only to read where the request ends (RFC 9112, section 6.3).

    Raises:
        Refused: there are two, one of which a proxy before us may have taken; or this is another HTTP.
    """
    if version not in (b"1.0", b"1.1"):
        raise Refused(505, "HTTP/1.1 is spoken here; HTTP/2 is, where TLS has agreed on it")
    names = {name for name, _ in headers}
    if b"transfer-encoding" in names and (b"content-length" in names or version == b"1.0"):
        raise Refused(400, "transfer-encoding does not go with content-length or HTTP/1.0")


def origin_form(target: bytes, scheme: bytes, host: bytes | None) -> bytes:
    """``/path?query`` of a request's target, which may be a whole URL (RFC 9112, section 3.2).

    Raises:
        Refused: it is a URL of another host than ``Host`` names, or none of these.
    """
    if target[:1] == b"/" or target == b"*":
        return target
    found_scheme, _, rest = target.partition(b"://")
    ends = [at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0]
    end = min(ends, default=len(rest))
    authority, path = rest[:end], rest[end:]
    if found_scheme.lower() != scheme or host is None or authority.lower() != host.lower():
        raise Refused(
            400, "the request's target must be a path, or the URL of one on the host that `Host` names"
        )
    return path if path[:1] == b"/" else b"/" + path


def _too_large(limits: HttpServerLimits) -> Refused:
    return Refused(413, f"the body is over {limits.max_body_bytes} bytes")


def _is_over(digits: bytes, bound: int) -> bool:
    # No more digits than that are made a number: the time of that grows with their square.
    return digits.isdigit() and (len(digits.lstrip(b"0")) > len(str(bound)) or int(digits) > bound)
