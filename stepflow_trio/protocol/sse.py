"""Event streams (``text/event-stream``): read by the whole grammar of WHATWG's HTML standard, section 9.2,
written in the one form that every public reader knows (docs/protocol.md, section 4).
"""

from __future__ import annotations

from json.encoder import encode_basestring_ascii
from typing import final

from msgspec import Struct

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.protocol.lines import MAX_FRAME_BYTES

COMMENT_PING = b": ping\n\n"
"""A comment, which readers skip: it shows that the stream is alive. Old readers cut at blank lines."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_RETRY_DIGITS = 18
"""Of a ``retry`` field so many are read: more of them mean thirty million years or longer all the same."""
_PUT_BACK = (("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t"), ("\\u0001", '"'), ("\\u0002", "\\"))


@final
class ServerEvent(Struct, frozen=True, kw_only=True, gc=False):
    """One event of a stream.

    ``data`` are its data lines with ``\\n`` between them, as bytes: the JSON decoder then says exactly where
    they are no UTF-8, which after decoding with U+FFFD it could not. ``id`` is the stream's last event id and
    ``retry_ms`` its latest reconnection time when the event ended; both outlast the event that set them.
    """

    data: bytes
    type: str = "message"
    id: str = ""
    retry_ms: int | None = None


@final
class EventRejected(Struct, frozen=True):
    """The stream holds an event that is too large. Nothing comes after this: the stream is to be given up."""

    detail: str


class EventParser:
    """Cuts a byte stream into events.

    However the stream is cut into :meth:`feed` calls, the concatenated results are the same. The time is
    linear in the stream's length. No more than a few times ``max_event_bytes`` are kept: that is what an
    event's lines may have in all, not counting their ends, comments, and fields that the standard does not
    know. An event that the stream's end cuts off is no event.
    """

    def __init__(self, max_event_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._first_bytes: bytes | None = b""  # the stream's, while they may become a byte order mark
        self._after_cr = False
        self._rejected = False
        self._unfinished = bytearray()  # of the last line; a list of the pieces could cost many times more
        self._event_bytes = 0
        self._type = ""
        self._data: bytes | bytearray | None = None
        self._last_id = ""
        self._retry_ms: int | None = None
        self.comments = 0
        """Comments that have come: what keeps a silent stream alive."""

    def feed(self, data: bytes) -> list[ServerEvent | EventRejected]:
        """Take the next bytes; return the events they complete. Never raises."""
        if self._rejected or not data:
            return []
        if self._first_bytes is not None:
            data = self._first_bytes + data
            if len(data) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(data):
                self._first_bytes = data
                return []
            self._first_bytes = None
            data = data.removeprefix(_BYTE_ORDER_MARK)
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return self._take_lines(data)

    def _take_lines(self, data: bytes) -> list[ServerEvent | EventRejected]:
        *lines, rest = data.split(b"\n")
        events: list[ServerEvent | EventRejected] = []
        for line in lines:
            if self._unfinished:
                self._unfinished += line
                line = bytes(self._unfinished)  # noqa: PLW2901 — the whole line takes its last piece's place
                self._unfinished.clear()
            if not line:
                if self._data is not None:
                    events.append(
                        ServerEvent(
                            data=bytes(self._data),
                            type=self._type or "message",
                            id=self._last_id,
                            retry_ms=self._retry_ms,
                        )
                    )
                    self._data = None
                self._type = ""
                self._event_bytes = 0
            elif line.startswith(b":"):
                self.comments += 1
            else:
                if self._event_bytes + len(line) > self._max_event_bytes:
                    return [*events, self._reject()]
                self._take_field(line)
        if rest:
            self._unfinished += rest
            if self._unfinished.startswith(b":"):
                del self._unfinished[1:]
            elif self._event_bytes + len(self._unfinished) > self._max_event_bytes:
                return [*events, self._reject()]
        return events

    def _take_field(self, line: bytes) -> None:
        if line.startswith(b"data: "):  # nearly always
            name, value = b"data", line[6:]
        else:
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
        if name == b"data":
            self._event_bytes += len(line)
            if self._data is None:
                self._data = value
            else:
                if isinstance(self._data, bytes):
                    self._data = bytearray(self._data)
                self._data += b"\n"
                self._data += value
        elif name == b"event":
            self._event_bytes += len(line)
            self._type = value.decode("utf-8", "replace")
        elif name == b"id":
            self._event_bytes += len(line)
            if b"\0" not in value:
                self._last_id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            self._retry_ms = int(value.lstrip(b"0")[:_RETRY_DIGITS] or b"0")

    def _reject(self) -> EventRejected:
        self._rejected = True
        self._unfinished.clear()
        self._data = None
        return EventRejected(f"an event is larger than {self._max_event_bytes} bytes")


def write_event(data: bytes, type: str | None = None) -> bytes:
    """One event with one data line: ``data: <data>`` and a blank line, after ``event: <type>`` if given.

    Give JSON through :func:`escape_non_ascii` first: public runtimes lose a piece of the stream that ends
    inside a character.

    Raises:
        LocalProtocolError: ``data`` or ``type`` holds a line end.
    """
    if b"\n" in data or b"\r" in data:
        raise LocalProtocolError("the data of an event must be one line: write JSON in its compact form")
    if type is None:
        return b"data: %b\n\n" % data
    if "\n" in type or "\r" in type:
        raise LocalProtocolError(f"the type of an event must be one line, not {type!r}")
    return b"event: %b\ndata: %b\n\n" % (type.encode(), data)


def escape_non_ascii(json: bytes) -> bytes:
    """Valid JSON text with each character beyond ASCII as ``\\uXXXX``, as two of them beyond U+FFFF.

    Text that is ASCII already is returned as it is, the same object.

    Raises:
        LocalProtocolError: ``json`` is no UTF-8; the message has the byte offset.
    """
    if json.isascii():
        return json
    try:
        text = json.decode()
    except UnicodeDecodeError as exc:
        raise LocalProtocolError(f"JSON text must be UTF-8: {exc.reason} at byte {exc.start}") from None
    # The standard library's encoder escapes at C speed, but takes its input for the inside of a string, not
    # for JSON text. So what it would escape again is hidden from it, behind characters that JSON text never
    # holds as they are; and line ends and tabs, which stand between tokens only, are put back. No other
    # backslash is in its output than of an escape of its own, until the last step.
    escaped = encode_basestring_ascii(text.replace('"', "\1").replace("\\", "\2"))[1:-1]
    for escape, character in _PUT_BACK:
        escaped = escaped.replace(escape, character)
    return escaped.encode("ascii")
