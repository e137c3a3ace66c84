"""The bodies of the requests that an endpoint receives, and the memory that they take together."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import trio

from stepflow_trio.transports.http.asgi import Receive
from stepflow_trio.transports.http.exchange import Refusal, overloaded
from stepflow_trio.transports.http.limits import HttpServerLimits


class Bodies:
    """Receives bodies, each whole, and holds no more of them at once than ``max_receiving_bytes``."""

    def __init__(self, limits: HttpServerLimits) -> None:
        self._limits = limits
        self.held_bytes = 0
        """Of bodies that have come in part."""

    async def receive(self, receive: Receive) -> bytes:
        """A request's whole body. It is received to its end also where it is refused, or the answer might be
        lost with the connection.

        Raises:
            Refusal: 413, it is longer than ``max_body_bytes``; 503, there is no room for it just now.
            trio.BrokenResourceError: the client went away before it had come.
        """
        message = await receive()
        body: bytes = message.get("body", b"")
        if not message.get("more_body") and len(body) <= self._limits.max_body_bytes:
            return body
        refusal: Refusal | None = None
        pieces: list[bytes] = []
        size = held = 0
        try:
            while True:
                size += len(body)
                refusal = refusal or self._refusal(size, len(body))
                if refusal is None:
                    pieces.append(body)
                    held += len(body)
                    self.held_bytes += len(body)
                elif held:
                    pieces.clear()
                    self.held_bytes -= held
                    held = 0
                if not message.get("more_body"):
                    break
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise trio.BrokenResourceError("the client went away while it sent its request")
                body = message.get("body", b"")
        finally:
            self.held_bytes -= held
        if refusal is not None:
            raise refusal
        return b"".join(pieces)

    @contextmanager
    def holding(self, body: bytes) -> Generator[None]:
        """Count a body that has come for as long as the block lasts.

        Raises:
            Refusal: 503, there is no room for it just now.
        """
        if refusal := self._refusal(0, len(body)):
            raise refusal
        self.held_bytes += len(body)
        try:
            yield
        finally:
            self.held_bytes -= len(body)

    def _refusal(self, size: int, more_bytes: int) -> Refusal | None:
        if size > self._limits.max_body_bytes:
            return Refusal(413, f"the body is longer than {self._limits.max_body_bytes} bytes")
        if self.held_bytes + more_bytes > self._limits.max_receiving_bytes:
            return overloaded("Too many bytes of requests are being received")
        return None
