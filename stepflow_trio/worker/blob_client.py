"""Blobs over HTTP, as a client of ``blobApiUrl`` (docs/protocol.md, section 6)."""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import msgspec
import trio
from msgspec import Struct

from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import CallFailed, CallTimeout, ErrorCode, Overloaded, RemoteProtocolError
from stepflow_trio.protocol import blobs, codec, methods
from stepflow_trio.protocol.methods import split_validation_error
from stepflow_trio.transports.http.bearer import SecretStr
from stepflow_trio.transports.http.client import HttpClient, HttpHeaders, open_http_client
from stepflow_trio.transports.http.outbound_urls import OutboundPolicy
from stepflow_trio.transports.http.retry_after import retry_after_s
from stepflow_trio.transports.http.urls import HttpUrl
from stepflow_trio.worker.outputs import check_output

MAX_REQUESTS = 16
"""Requests that one client has open at once; further ones wait for a place."""

PATIENCE_S = 30.0
"""A server may be silent for so long."""

MIN_RATE = 64 * 2**10
"""Bytes a second at which an upload may go before it counts as stuck."""

ATTEMPTS = 4
"""Tries where the server says that it is at its limit: 503, or 429."""

MAX_PAUSE_S = 5.0
"""At most so long a server is waited for before the next try, whatever it asks for."""

MAX_CLIENTS = 64
"""Blob APIs that are known at once; of those that nobody uses, the one not used for longest is forgotten."""

_JSON = b"application/json"
_OCTET_STREAM = b"application/octet-stream"
_WANTED = b"application/octet-stream, application/json;q=0.5"

_SHOWN_CHARS = 500
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_CODES = {
    401: ErrorCode.CONFIGURATION_ERROR,
    403: ErrorCode.CONFIGURATION_ERROR,
    404: ErrorCode.NOT_FOUND,
    421: ErrorCode.CONFIGURATION_ERROR,
}


class BlobContent(Struct, frozen=True):
    """A blob as it is stored: JSON text, or the bytes of ``binary``."""

    content: bytes
    blob_type: str

    def value(self) -> Any:
        """``bytes`` for ``binary``, else the JSON value.

        Raises:
            RemoteProtocolError: the content is no JSON.
        """
        if self.blob_type == blobs.BINARY:
            return self.content
        try:
            return codec.decode_json(self.content)
        except ValueError as exc:
            message = f"a blob of type {self.blob_type} is not JSON: {exc}"
            raise RemoteProtocolError(message, code=ErrorCode.GARBLED_MESSAGE) from exc


class BlobClient:
    """Stores and reads blobs. Any number of tasks may use it at once; cancelling leaves at once.

    Ids are taken from the server, which alone knows how it spells numbers; content that is read is verified
    against its id.

    Every method raises :class:`CallFailed` where the server refuses, with the code that the callbacks of
    other dialects would answer (−32005: there is no such blob); :class:`Overloaded` where it is still at its
    limit after some tries; :class:`CallTimeout` where it is silent; :class:`ConnectionLost` where the
    connection cannot be made, or ends; :class:`UrlRefused` where the peer that named the URL may not do so;
    and :class:`RemoteProtocolError` where what is answered is no answer.

    Args:
        http: sends the requests.
        target: the path of ``blobApiUrl``.
        max_blob_bytes: the longest content that is read.
    """

    def __init__(self, http: HttpClient, target: str, *, max_blob_bytes: int = blobs.MAX_BLOB_BYTES) -> None:
        self._http = http
        self._target = target.rstrip("/")
        self._max_blob_bytes = max_blob_bytes
        self._places = trio.Semaphore(MAX_REQUESTS)

    # ---- storing ------------------------------------------------------------------------------------

    async def put(self, data: Any, blob_type: str = blobs.DATA) -> str:
        """Store data as JSON, and return their id.

        Raises:
            OutputInvalid: the data are no JSON; the JSON path is named, and nothing was sent.
        """
        return await self.put_json(codec.encode_json(check_output(data)), blob_type)

    async def put_json(self, text: bytes, blob_type: str = blobs.DATA) -> str:
        """Store what is JSON text already, and return its id."""
        body = codec.encode_json({"data": msgspec.Raw(text), "blobType": blob_type})
        return await self._put(body, [(b"content-type", _JSON)])

    async def put_binary(self, content: bytes) -> str:
        """Store bytes as type ``binary``, and return their id."""
        return await self._put(content, [(b"content-type", _OCTET_STREAM)])

    async def _put(self, body: bytes, headers: list[tuple[bytes, bytes]]) -> str:
        method = methods.BLOBS_PUT.name
        answer = await self._ask(method, "POST", self._target, headers, body)
        try:
            stored = msgspec.convert(codec.decode_json(answer.body), _Stored)
        except ValueError as exc:
            _garbled(method, f"what is no answer: {_problem(exc)}")
        blob_id = blobs.normalize_blob_id(stored.blob_id)
        return blob_id or _garbled(method, f"what is no blob id: {stored.blob_id[:80]!a}")

    # ---- reading ------------------------------------------------------------------------------------

    async def get(self, blob_id: str) -> Any:
        """Read a blob: ``bytes`` for type ``binary``, else the JSON value."""
        return (await self.get_content(blob_id)).value()

    async def get_content(self, blob_id: str) -> BlobContent:
        """Read a blob as it is stored.

        Raises:
            CallFailed: also where ``blob_id`` is no blob id; then nothing is sent.
        """
        method = methods.BLOBS_GET.name
        bare = blobs.normalize_blob_id(blob_id)
        if bare is None:
            data = {"blob_id": blob_id[:80]}
            message = f"Blob {blob_id[:80]!a} not found: an id is 64 lower-case hex digits"
            raise CallFailed(ErrorCode.NOT_FOUND, message, data, method=method)
        answer = await self._ask(method, "GET", f"{self._target}/{bare}", [(b"accept", _WANTED)])
        if answer.media_type == _JSON:  # a server that has no other form for data
            return _from_json(method, bare, answer.body)
        kind = blobs.normalize_blob_type(answer.blob_type)
        if kind is None:
            _garbled(method, f"content without a type that is known: {answer.blob_type[:40]!a}")
        if answer.sha256 != bare:
            _garbled(method, f"other content than what the id {bare} stands for")
        return BlobContent(answer.body, kind)

    # ---- beneath ------------------------------------------------------------------------------------

    async def _ask(
        self, method: str, verb: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes = b""
    ) -> _Answer:
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._ask_once(method, verb, target, headers, body)
            except Overloaded as exc:
                # Nothing was done, and to store or read a blob twice is the same as once.
                pause_s = min(exc.retry_after_s, MAX_PAUSE_S)
            await trio.sleep(pause_s)
        return await self._ask_once(method, verb, target, headers, body)

    async def _ask_once(
        self, method: str, verb: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> _Answer:
        async with self._places:
            answer = await self._exchange(method, verb, target, headers, body)
        if not answer.is_success:
            raise _refusal(method, answer)
        return answer

    async def _exchange(
        self, method: str, verb: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> _Answer:
        began = trio.current_time()
        patience_s = PATIENCE_S + len(body) / MIN_RATE
        with trio.CancelScope(deadline=began + patience_s) as scope:
            async with self._http.request(verb, target, headers=headers, body=body) as response:
                received = io.BytesIO()  # hands over what it holds without a copy
                digest = hashlib.sha256()
                while piece := await response.receive_some():
                    if received.tell() + len(piece) > self._max_blob_bytes:
                        _garbled(method, f"more than the {self._max_blob_bytes} bytes that are read")
                    received.write(piece)
                    digest.update(piece)
                    scope.deadline = began + patience_s + received.tell() / MIN_RATE
                return _Answer(response.status, response.headers, received.getvalue(), digest.hexdigest())
        raise CallTimeout(method, trio.current_time() - began)

    def __repr__(self) -> str:
        return f"<BlobClient {self._target}>"


class BlobClients:
    """Clients for the blob APIs that runtimes name; :func:`open_blob_clients` makes it."""

    def __init__(
        self, nursery: trio.Nursery, policy: OutboundPolicy, bearers: Mapping[str, SecretStr]
    ) -> None:
        self._nursery = nursery
        self._policy = policy
        self._bearers = bearers
        self._opening = trio.Lock()
        self._open: OrderedDict[tuple[str, str | None, bool], _Held] = OrderedDict()

    @asynccontextmanager
    async def client_for(
        self, url: str, *, peer_host: str | None, peer_is_authenticated: bool = False
    ) -> AsyncGenerator[BlobClient]:
        """The client for ``url``, which the peer at ``peer_host`` named. It is of use within the block.

        Entering is a checkpoint only at the first time. Nothing is connected yet; a URL that this peer may
        not name fails its requests: UrlRefused.

        Raises:
            ConfigError: ``url`` cannot be used.
        """
        key = (url, peer_host, peer_is_authenticated)
        if key not in self._open:
            async with self._opening:
                if key not in self._open:
                    parsed = HttpUrl.parse(url)
                    self._open[key] = await self._nursery.start(self._hold_open, parsed, *key[1:])
        held = self._open[key]
        self._open.move_to_end(key)
        held.users += 1
        self._forget_unused()
        try:
            yield held.client
        finally:
            held.users -= 1
            self._forget_unused()

    def _forget_unused(self) -> None:
        if len(self._open) <= MAX_CLIENTS:
            return
        for key, held in [*self._open.items()]:
            if not held.users:
                del self._open[key]
                held.scope.cancel(reason="other blob APIs were asked for since")
                if len(self._open) <= MAX_CLIENTS:
                    break

    async def _hold_open(
        self,
        url: HttpUrl,
        peer_host: str | None,
        peer_is_authenticated: bool,
        *,
        task_status: trio.TaskStatus[_Held],
    ) -> None:
        # Looked up anew for each connection, and connected to what was looked at, not to the name.
        connect = partial(
            self._policy.connect, url, peer_host=peer_host, peer_is_authenticated=peer_is_authenticated
        )
        bearer = self._bearers.get(url.origin)
        with trio.CancelScope() as scope:
            async with open_http_client(url, bearer=bearer, connect=connect) as http:
                task_status.started(_Held(BlobClient(http, url.path), scope))
                await trio.sleep_forever()


@asynccontextmanager
async def open_blob_clients(
    *, policy: OutboundPolicy | None = None, bearers: Mapping[str, SecretStr] | None = None
) -> AsyncGenerator[BlobClients]:
    """Clients for blob APIs, as long as the block lasts. Leaving it ends what is under way.

    Args:
        policy: which URLs of runtimes are requested.
        bearers: tokens by the origin that they are for, such as ``http://runtime.internal:7837``. No other
            server is sent one.
    """
    with one_exception():
        async with trio.open_nursery() as nursery:
            yield BlobClients(nursery, policy or OutboundPolicy(), bearers or {})
            nursery.cancel_scope.cancel(reason="the clients are closed")


@dataclass(slots=True)
class _Held:
    """A client that is open, and how many use it."""

    client: BlobClient
    scope: trio.CancelScope
    users: int = 0


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: HttpHeaders
    body: bytes
    sha256: str

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def media_type(self) -> bytes:
        return (self.headers.get(b"content-type") or b"").split(b";", 1)[0].strip().lower()

    @property
    def blob_type(self) -> str:
        return (self.headers.get(b"x-blob-type") or b"").decode("latin-1")


class _Stored(Struct, frozen=True, rename="camel"):
    blob_id: str


class _Read(Struct, frozen=True, rename="camel"):
    data: Any
    blob_type: str


class _Error(Struct, frozen=True):
    """Blob servers say ``message``; what stands before one may say ``error``."""

    message: str = ""
    error: str = ""


def _from_json(method: str, blob_id: str, text: bytes) -> BlobContent:
    try:
        read = msgspec.convert(codec.decode_json(text), _Read)
        kind = blobs.normalize_blob_type(read.blob_type)
        if kind is None:
            raise ValueError(f"there is no blob type {read.blob_type[:40]!a}")
        if not blobs.may_be_content(blob_id, read.data, kind):
            raise ValueError(f"other content than what the id {blob_id} stands for")
        return BlobContent(blobs.blob_content(read.data, kind), kind)
    except ValueError as exc:
        _garbled(method, f"what is no blob: {_problem(exc)}")


def _refusal(method: str, answer: _Answer) -> CallFailed:
    status = answer.status
    try:
        read = msgspec.convert(codec.decode_json(answer.body), _Error)
        said = read.message or read.error
    except ValueError:
        said = answer.body[:_SHOWN_CHARS].decode("utf-8", "replace")
    said = _CONTROL.sub("?", said[:_SHOWN_CHARS])
    message = f"the blob server answered {status}{': ' if said else ''}{said}"
    data: dict[str, Any] = {"http_status": status}
    if status in (429, 503):
        wanted_s = retry_after_s(answer.headers, now=time.time())
        if wanted_s is not None:
            data["retry_after_s"] = wanted_s
        return Overloaded(ErrorCode.OVERLOADED, message, data, method=method)
    code = _CODES.get(status, ErrorCode.INVALID_VALUE)
    if status >= 500:
        code = ErrorCode.RUNTIME_INTERNAL
    elif status < 400:
        code = ErrorCode.CONFIGURATION_ERROR  # no redirect is followed
    return CallFailed(code, message, data, method=method)


def _garbled(method: str, what: str) -> NoReturn:
    raise RemoteProtocolError(f"{method}: the blob server answered {what}", code=ErrorCode.GARBLED_MESSAGE)


def _problem(exc: ValueError) -> str:
    if not isinstance(exc, msgspec.ValidationError):
        return str(exc)
    problem, at = split_validation_error(exc)
    return f"{problem} at {at}"
