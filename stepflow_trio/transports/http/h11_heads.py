"""Heads of requests, read by h11 and checked; and remembered, for a client sends the same one again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple
from urllib.parse import unquote

import h11

from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.request_limits import check_head, check_http1_framing, origin_form

MAX_KNOWN_HEADS = 1024
"""Enough for a few clients whose bodies have many lengths; the one that was remembered first is forgotten."""

MAX_KNOWN_HEAD_BYTES = 2048
"""A head that is longer is read each time."""

_NEEDS_H11 = frozenset({b"connection", b"transfer-encoding", b"expect", b"upgrade"})
"""With one of these, how the connection goes on does not follow from the head's bytes alone."""


class Head(NamedTuple):
    """What a request's head says, checked."""

    method: bytes
    target: bytes
    is_http_1_0: bool
    closes: bool
    """Whether the client wants the connection closed behind the answer."""
    scope: dict[str, Any]
    """Its part of the application's scope."""


def read_head(request: h11.Request, limits: HttpServerLimits) -> Head:
    """Read and check a head.

    Raises:
        Refused: it asks for what is not done.
    """
    method, target, version = request.method, request.target, request.http_version
    headers = [(name.lower(), value) for name, value in request.headers.raw_items()]
    check_head(method, target, headers, limits)
    check_http1_framing(version, headers)
    if target[:1] != b"/":
        target = origin_form(target, b"http", dict(headers).get(b"host"))
    path, _, query = target.partition(b"?")
    scope = {
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": version.decode("ascii"),
        "method": method.decode("ascii"),
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "headers": headers,
    }
    closes = any(name == b"connection" and b"close" in value.lower() for name, value in headers)
    return Head(method, target, version == b"1.0", closes, scope)


class KnownHeads:
    """Heads by their bytes, of requests whose body's length they tell and that leave nothing to decide.

    h11 has read each of them once, and what it said about the same bytes then holds now.
    """

    def __init__(self) -> None:
        self._heads: OrderedDict[bytes, tuple[Head, int]] = OrderedDict()

    def whole_request(self, data: bytes) -> tuple[Head, bytes] | None:
        """The head and the body, where ``data`` is one whole request with a head that is known."""
        end = data.find(b"\r\n\r\n") + 4
        known = self._heads.get(data[:end])
        if known is None or len(data) - end != known[1]:
            return None
        head = known[0]
        scope = head.scope.copy()
        scope["headers"] = scope["headers"].copy()
        return head._replace(scope=scope), data[end:]

    def remember(self, head_bytes: bytes, head: Head) -> None:
        """Remember a head by its bytes, of which h11 has said that they are it, if it is of the kind."""
        end = len(head_bytes)
        if head_bytes.find(b"\r\n\r\n") + 4 != end:
            return  # lines that end otherwise: where it ends then, is for h11 to say each time
        headers: list[tuple[bytes, bytes]] = head.scope["headers"]
        names = {name for name, _ in headers}
        if end > MAX_KNOWN_HEAD_BYTES or head.is_http_1_0 or names & _NEEDS_H11:
            return
        lengths = [value for name, value in headers if name == b"content-length"]
        if len(lengths) != 1:
            return
        kept = head._replace(scope={**head.scope, "headers": headers.copy()})
        self._heads[head_bytes] = kept, int(lengths[0])
        if len(self._heads) > MAX_KNOWN_HEADS:
            self._heads.popitem(last=False)
