"""Blobs over HTTP: what workers of dialect 0.11 call at ``blobApiUrl`` (docs/protocol.md, section 6)."""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec
import trio
from msgspec import Struct

from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import ErrorCode, RpcError
from stepflow_trio.protocol import blobs, codec
from stepflow_trio.protocol.methods import split_validation_error
from stepflow_trio.runtime.callbacks import store_blob, verified_blob
from stepflow_trio.runtime.stores import Blob, BlobStore
from stepflow_trio.transports.http.asgi import Message, Receive, Scope, Send

BLOB_API_PATH = "/api/v1/blobs"
"""Where the public releases serve it."""

PIECE_BYTES = 3 * 2**15
"""Content is sent in pieces of 96 KiB, 128 KiB as base64 text (hence a multiple of 3): a reader that is slow
holds one of them."""

UPLOADS_AT_ONCE = 8
"""Uploads that are being received may hold so many times ``max_blob_bytes`` together; over it: 503."""

RETRY_AFTER_S = 1

MAX_FILENAME_CHARS = 255
"""What file systems take."""

DISCARD_S = 10.0
"""So long what is left of a refused body is received, so that its sender comes to read why."""

JSON = b"application/json"
OCTET_STREAM = b"application/octet-stream"

_STATUS: dict[int, int] = {ErrorCode.NOT_FOUND: 404, ErrorCode.INVALID_VALUE: 400}
_BODY_HEADERS = frozenset((b"content-length", b"transfer-encoding"))
_SAFE_FILENAME = re.compile(r"[\w .,;=()@+~^!#$&'{}\[\]-]*", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_log = logging.getLogger("stepflow_trio.runtime")

_Headers = list[tuple[bytes, bytes]]


class BlobApi:
    """The ASGI application.

    ``POST {path}`` stores: JSON ``{data, blobType?, filename?}``, or a body of ``application/octet-stream``
    itself as ``binary``, named by ``X-Blob-Filename``. The answer is ``{blobId, filename?}``.
    ``GET {path}/{id}`` reads: ``{data, blobType, blobId, filename?}``, where ``binary`` is base64 text, or
    the content itself with ``Accept: application/octet-stream``. Errors are ``{code, message}`` with the HTTP
    status as code.

    An id is the same whichever way the content came, ``blobs/put`` included. What is read is verified against
    its id. The host guards it, and has to take bodies of ``max_blob_bytes``: one whose own bound is smaller
    answers 413 first.

    Args:
        store: where the blobs are.
        path: where it is served.
        max_blob_bytes: the longest body that is taken. JSON needs several times as much memory while it is
            read, binary content no more than it has.

    Raises:
        ValueError: ``path`` does not begin with a slash, or ends with one.
    """

    def __init__(
        self, store: BlobStore, *, path: str = BLOB_API_PATH, max_blob_bytes: int = blobs.MAX_BLOB_BYTES
    ) -> None:
        if not path.startswith("/") or path.endswith("/"):
            raise ValueError(f"path begins with a slash and does not end with one, unlike {path!r}")
        if max_blob_bytes < 1:
            raise ValueError(f"max_blob_bytes must be at least 1, not {max_blob_bytes}")
        self._store = store
        self._path = path
        self._max_blob_bytes = max_blob_bytes
        self._receiving_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or as much as the client stays for. Of half an upload nothing is stored."""
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            headers[name] = headers[name] + b"," + value if name in headers else value
        # A reader rarely sends a body, and then says so; asking for it would cost each of them a little.
        has_body = not _BODY_HEADERS.isdisjoint(headers) or scope["method"] not in ("GET", "HEAD")
        body = _Body(receive, is_expected=has_body)
        try:
            answer = await self._answer(scope, headers, body)
        except _Refused as refused:
            answer = refused.answer()
        except _ClientGone:
            return
        await _send(answer, body, send, is_head=scope["method"] == "HEAD")

    async def _answer(self, scope: Scope, headers: dict[bytes, bytes], body: _Body) -> _Answer:
        method: str = scope["method"]
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == self._path:
            if method != "POST":
                raise _Refused(405, f"{path} takes POST", [(b"allow", b"POST")])
            return await self._store_blob(headers, body)
        if path.startswith(f"{self._path}/"):
            if method not in ("GET", "HEAD"):
                raise _Refused(405, "a blob can only be read", [(b"allow", b"GET, HEAD")])
            wants_content = OCTET_STREAM in _media_types(headers.get(b"accept", b""))
            return await self._read_blob(path[len(self._path) + 1 :], wants_content=wants_content)
        raise _Refused(404, f"blobs are stored by POST {self._path} and read by GET {self._path}/{{id}}")

    # ---- storing ------------------------------------------------------------------------------------

    async def _store_blob(self, headers: dict[bytes, bytes], body: _Body) -> _Answer:
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise _Refused(415, "the body must not be compressed")
        media_type = _media_types(headers.get(b"content-type", b""))
        if media_type == [OCTET_STREAM]:
            filename = _checked_filename(_text(headers.get(b"x-blob-filename")), "X-Blob-Filename")
            content = await self._receive(headers, body)
            blob_id = await self._store.put(content, blobs.BINARY, filename)
        elif media_type == [JSON]:
            blob_id, filename = await self._store_json(await self._receive(headers, body))
        else:
            raise _Refused(415, "the body must be application/json or application/octet-stream")
        result = _StoreBlobResponse(blob_id=blob_id, filename=filename)
        return _Answer(200, [(b"content-type", JSON)], codec.encode_json(result))

    async def _store_json(self, text: bytes) -> tuple[str, str | None]:
        try:
            request = msgspec.convert(codec.decode_json(text), _StoreBlobRequest)
        except msgspec.ValidationError as exc:
            problem, at = split_validation_error(exc)
            raise _Refused(400, f"the request does not fit: {problem} at {at}") from exc
        except ValueError as exc:
            raise _Refused(400, f"the body is not JSON: {exc}") from exc
        filename = _checked_filename(request.filename, "$.filename")
        kind = blobs.normalize_blob_type(request.blob_type)
        if kind is None:
            shown = ascii(request.blob_type[:40])
            raise _Refused(400, f"a blob is data, flow or binary, not {shown} at $.blobType")
        try:
            return await store_blob(self._store, request.data, kind, filename), filename
        except RpcError as exc:
            raise _Refused(_STATUS.get(exc.code, 500), f"{exc.message} at $.data") from exc

    async def _receive(self, headers: dict[bytes, bytes], body: _Body) -> bytes:
        announced = headers.get(b"content-length", b"")
        too_long = _Refused(
            413, f"the body is longer than {self._max_blob_bytes} bytes, the most that is taken"
        )
        if announced.isdigit() and int(announced) > self._max_blob_bytes:
            raise too_long
        content = io.BytesIO()  # hands over what it holds without a copy
        size = 0
        try:
            while not body.is_ended:
                piece = await body.receive()
                size += len(piece)
                self._receiving_bytes += len(piece)
                if size > self._max_blob_bytes:
                    raise too_long
                if self._receiving_bytes > UPLOADS_AT_ONCE * self._max_blob_bytes:
                    retry_after = [(b"retry-after", b"%d" % RETRY_AFTER_S)]
                    raise _Refused(503, "too much is being uploaded at once: try again", retry_after)
                content.write(piece)
            return content.getvalue()
        finally:
            self._receiving_bytes -= size

    # ---- reading ------------------------------------------------------------------------------------

    async def _read_blob(self, text: str, *, wants_content: bool) -> _Answer:
        blob_id = blobs.normalize_blob_id(text)
        if blob_id is None:
            raise _Refused(404, f"Blob {text[:80]!a} not found: an id is 64 lower-case hex digits")
        try:
            blob = await verified_blob(self._store, blob_id)
        except RpcError as exc:
            status = _STATUS.get(exc.code, 500)
            if status == 500:
                _log.error("%s", exc.message)
            raise _Refused(status, exc.message) from exc
        headers = [(b"x-content-type-options", b"nosniff")]
        if wants_content:
            headers += [(b"content-type", OCTET_STREAM), (b"x-blob-type", blob.blob_type.encode())]
            if blob.filename is not None:
                headers.append((b"content-disposition", _disposition(blob.filename)))
            return _Answer(200, headers, blob.content)
        before, after = _around_data(blob_id, blob)
        headers.append((b"content-type", JSON))
        return _Answer(
            200, headers, blob.content, before=before, after=after, as_base64=blob.blob_type == blobs.BINARY
        )

    def __repr__(self) -> str:
        return f"<BlobApi {self._path}: {self._receiving_bytes} bytes are being received>"


class _StoreBlobRequest(Struct, frozen=True, kw_only=True, rename="camel"):
    data: Any
    blob_type: str = blobs.DATA
    filename: str | None = None


class _StoreBlobResponse(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    blob_id: str
    filename: str | None = None


class _AfterData(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    blob_type: str
    blob_id: str
    filename: str | None = None


def _around_data(blob_id: str, blob: Blob) -> tuple[bytes, bytes]:
    """What stands before and after a blob's content in JSON: so it is never decoded, nor held twice."""
    after = codec.encode_json(_AfterData(blob_type=blob.blob_type, blob_id=blob_id, filename=blob.filename))
    quote_mark = b'"' if blob.blob_type == blobs.BINARY else b""
    return b'{"data":' + quote_mark, quote_mark + b"," + after[1:]


class _ClientGone(Exception):
    """There is nobody to answer."""


class _Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, headers: _Headers | None = None) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.headers: _Headers = headers or []

    def answer(self) -> _Answer:
        """The error as the public releases shape it."""
        text = codec.encode_json({"code": self.status, "message": self.message})
        return _Answer(self.status, [(b"content-type", JSON), *self.headers], text)


@dataclass(slots=True)
class _Answer:
    status: int
    headers: _Headers
    content: bytes
    before: bytes = b""
    after: bytes = b""
    as_base64: bool = False

    @property
    def size(self) -> int:
        """Bytes of the whole body."""
        length = len(self.content)
        return len(self.before) + (-(-length // 3) * 4 if self.as_base64 else length) + len(self.after)

    def pieces(self) -> Iterator[bytes]:
        """The body; its ends go with the first and the last piece of the content."""
        last = max(0, len(self.content) - 1) // PIECE_BYTES * PIECE_BYTES
        for start in range(0, last + 1, PIECE_BYTES):
            piece = self.content[start : start + PIECE_BYTES]
            if self.as_base64:
                piece = base64.b64encode(piece)
            if start == 0:
                piece = self.before + piece
            yield piece + self.after if start == last else piece


class _Body:
    """A request's body; ``whole`` is set when all of it was received, or there is none."""

    def __init__(self, receive: Receive, *, is_expected: bool) -> None:
        self._receive = receive
        self.whole = trio.Event()
        if not is_expected:
            self.whole.set()

    @property
    def is_ended(self) -> bool:
        """Whether all of it was received."""
        return self.whole.is_set()

    async def receive(self) -> bytes:
        """The next piece of it."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        if not message.get("more_body", False):
            self.whole.set()
        return message.get("body", b"")

    async def discard(self, scope: trio.CancelScope) -> None:
        """Receive what comes until the client goes away; that cancels ``scope``."""
        try:
            while True:
                await self.receive()
        except _ClientGone:
            scope.cancel(reason="the client went away")


async def _send(answer: _Answer, body: _Body, send: Send, *, is_head: bool) -> None:
    headers = [*answer.headers, (b"content-length", b"%d" % answer.size)]
    start: Message = {"type": "http.response.start", "status": answer.status, "headers": headers}
    pieces = iter(()) if is_head else answer.pieces()
    try:
        if body.is_ended and (is_head or len(answer.content) <= PIECE_BYTES):
            await send(start)
            await send({"type": "http.response.body", "body": next(pieces, b"")})
            return
        with one_exception():
            async with trio.open_nursery() as nursery:
                # Whatever comes is received while something is sent: some hosts send nothing before that.
                nursery.start_soon(body.discard, nursery.cancel_scope)
                await send(start)
                for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                # Before the answer's end, at which a host may close what still brings a body.
                with trio.move_on_after(DISCARD_S):
                    await body.whole.wait()
                await send({"type": "http.response.body", "body": b""})
                nursery.cancel_scope.cancel(reason="the answer was sent")
    except OSError as exc:
        _log.debug("a client went away before it had its answer: %r", exc)


def _media_types(header: bytes) -> list[bytes]:
    return [item.split(b";", 1)[0].strip().lower() for item in header.split(b",")]


def _text(value: bytes | None) -> str | None:
    """A header's text: UTF-8, as clients of today write it, or else Latin-1."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _checked_filename(filename: str | None, place: str) -> str | None:
    if filename is not None and (len(filename) > MAX_FILENAME_CHARS or _CONTROL.search(filename)):
        raise _Refused(
            400,
            f"a file name has at most {MAX_FILENAME_CHARS} characters, none of them a control character, "
            f"unlike that at {place}",
        )
    return filename


def _disposition(filename: str) -> bytes:
    """``Content-Disposition`` (RFC 6266) for a name that anybody may have chosen: without its directories."""
    name = re.split(r"[/\\]", filename)[-1]
    if _SAFE_FILENAME.fullmatch(name):
        return f'attachment; filename="{name}"'.encode("ascii")
    plain = "".join(char if _SAFE_FILENAME.fullmatch(char) else "_" for char in name)
    # After RFC 8187, so that no character can end the parameter or the header.
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}".encode("ascii")
