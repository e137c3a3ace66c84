"""The bytes of an HTTP/1.1 answer, out of what an ASGI application sends. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.protocol import codec
from stepflow_trio.transports.http.asgi import Message

_STATUS_LINES: dict[int, bytes] = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}
_is_name = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-z]+").fullmatch
_is_value = re.compile(rb"[\t\x20-\x7e\x80-\xff]*").fullmatch
_is_length = re.compile(rb"[0-9]{1,19}").fullmatch
BODILESS_STATUSES = (204, 304)
"""Answers that never have a body."""


class Answer:
    """Encodes one answer: :meth:`head` once, then :meth:`part` until the end.

    A body without ``content-length`` gets one if it has one part, else is sent in chunks; HTTP/1.0 knows no
    chunks, there the connection's end is the body's. Answers to HEAD, 204 and 304 have no body, whatever
    the application sends.
    """

    def __init__(self, method: bytes, *, is_http_1_0: bool) -> None:
        self.closes = is_http_1_0
        """Whether the connection ends with this answer; as :meth:`head` says."""
        self._is_to_head = method == b"HEAD"
        self._is_http_1_0 = is_http_1_0
        self._is_bodiless = False
        self._is_chunked = False
        self._left: int | None = None  # of the length that was promised

    def head(self, start: Message, *, only_part: bytes | None, date: bytes, closes: bool) -> bytes:
        """The status line and headers.

        Args:
            start: the ``http.response.start``. Of ``connection`` only ``close`` counts in it, and
                ``transfer-encoding`` does not, for it is the server's.
            only_part: the body, if it comes in one part.
            date: for the ``date`` header, if there is none.
            closes: the connection ends with this answer. Over HTTP/1.0 it always does.

        Raises:
            LocalProtocolError: this is no valid HTTP.
        """
        status: int = start["status"]
        if not 200 <= status <= 999:
            raise LocalProtocolError(f"the status of an answer is between 200 and 999, not {status!r}")
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        has_date = False
        for name, value in start.get("headers", ()):
            if not _is_name(name):
                raise LocalProtocolError(f"{name!r} is no name of a header; they are lower-case here")
            if not _is_value(value):
                raise LocalProtocolError(f"the header {name!r} cannot have the value {value!r}")
            if name == b"content-length":
                if self._left is not None or not _is_length(value):
                    raise LocalProtocolError(f"content-length is one number, not {value!r}")
                self._left = int(value)
            elif name == b"date":
                has_date = True
            elif name == b"connection":
                closes = closes or b"close" in value.lower()
                continue
            elif name == b"transfer-encoding":
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        if not has_date:
            lines.append(b"date: %b\r\n" % date)
        lines.append(self._framing(status, only_part))
        self.closes = self.closes or closes
        lines.append(b"connection: close\r\n\r\n" if self.closes else b"\r\n")
        return b"".join(lines)

    def _framing(self, status: int, only_part: bytes | None) -> bytes:
        if status in BODILESS_STATUSES:
            self._is_bodiless = True
            return b""
        self._is_bodiless = self._is_to_head
        if self._left is not None:
            return b""
        # An empty body to HEAD says nothing about the one that GET would get.
        if only_part or (only_part is not None and not self._is_to_head):
            self._left = len(only_part)
            return b"content-length: %d\r\n" % self._left
        if self._is_http_1_0:
            return b""
        self._is_chunked = True
        return b"transfer-encoding: chunked\r\n"

    @property
    def ends_with_connection(self) -> bool:
        """Whether nothing but the connection's end says where the body ends."""
        return self._left is None and not self._is_chunked and not self._is_bodiless

    def part(self, body: bytes, *, is_end: bool) -> list[bytes]:
        """What goes out for a part of the body; ``body`` itself is not copied.

        Raises:
            LocalProtocolError: it does not make up the ``content-length`` that was promised.
        """
        if self._is_bodiless:
            return []
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (is_end and self._left):
                raise LocalProtocolError(f"the body is {abs(self._left)} bytes off its content-length")
            return [body]
        if not self._is_chunked:
            return [body]
        pieces = [b"%x\r\n" % len(body), body, b"\r\n"] if body else []
        return [*pieces, b"0\r\n\r\n"] if is_end else pieces


def last_answer(status: int, content: Mapping[str, object], *, to: bytes, date: bytes) -> bytes:
    """A whole answer in JSON to this method, behind which the connection closes."""
    answer = Answer(to, is_http_1_0=False)
    body = codec.encode_json(content)
    start = {"status": status, "headers": [(b"content-type", b"application/json")]}
    head = answer.head(start, only_part=body, date=date, closes=True)
    return b"".join([head, *answer.part(body, is_end=True)])
