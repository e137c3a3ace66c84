"""A request as the API's functions see it, and how it is answered."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec
import trio

from stepflow_trio.engine.ending import one_exception
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.methods import split_validation_error
from stepflow_trio.runtime.rest_api.errors import ApiError, ClientGone, shown
from stepflow_trio.runtime.rest_api.fields import choices, misspelled
from stepflow_trio.transports.http.asgi import Message, Receive, Scope, Send

JSON = b"application/json"

DISCARD_S = 10.0
"""So long what is left of a refused body is received, so that its sender comes to read why."""

_ENTRIES_BETWEEN_TURNS = 200
_MAX_QUERY_FIELDS = 32
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}", re.ASCII)
_BODY_HEADERS = frozenset((b"content-length", b"transfer-encoding"))

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; ``content`` is JSON, or nothing."""

    status: int
    content: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()


def json_answer(status: int, payload: object, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    """An answer whose body is JSON."""
    return Answer(status, codec.encode_json(payload), ((b"content-type", JSON), *headers))


class LongList:
    """A list in an answer that may have many entries: each is encoded when it is added, for all of them at
    once would hold up everybody else.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._entries: list[bytes] = []

    async def append(self, entry: object) -> None:
        """Add an entry. Other tasks get a turn after some."""
        self._entries.append(codec.encode_json(entry))
        if len(self._entries) % _ENTRIES_BETWEEN_TURNS == 0:
            await trio.lowlevel.checkpoint()

    def answer(self, status: int, others: object, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
        """An answer whose body has the list, under its name, behind all ``others``; those are some."""
        head = codec.encode_json(others).removesuffix(b"}")
        content = b'%b,"%b":[%b]}' % (head, self._name.encode(), b",".join(self._entries))
        return Answer(status, content, ((b"content-type", JSON), *headers))


class Request:
    """One request; ``parameters`` are those of its path."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        self.parameters: Mapping[str, str] = {}
        self.headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            known = self.headers.get(name)
            self.headers[name] = value if known is None else known + b"," + value
        self._query: bytes = scope.get("query_string", b"")
        self._receive = receive
        self.received = trio.Event()
        """Set when the whole body was received, or there is none."""
        if self.method in ("GET", "HEAD", "DELETE") and _BODY_HEADERS.isdisjoint(self.headers):
            self.received.set()

    def run_id(self) -> str:
        """The run that the path names, spelled as we do. Raises `ApiError` 400."""
        return as_run_id(self.parameters["run_id"], "the run's id")

    def query(self, type: type[ValueT]) -> ValueT:
        """The query's fields. Those that nobody knows are passed over, but for misspelled ones. Raises
        `ApiError` 400."""
        fields: dict[str, str] = {}
        try:
            text = self._query.decode("ascii")
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_QUERY_FIELDS)
        except ValueError as exc:
            raise ApiError(400, f"the query cannot be read: {exc}") from exc
        for name, value in pairs:
            if name in fields:
                raise ApiError(400, f"{shown(name)} stands in the query twice")
            fields[name] = value
        wrong = misspelled(fields, type)
        if wrong is not None:
            raise ApiError(400, f"the query does not fit: {wrong}")
        try:
            return msgspec.convert(fields, type, strict=False)
        except msgspec.ValidationError as exc:
            problem, at = split_validation_error(exc)
            name = at.removeprefix("$.")
            words = choices(type, name, fields.get(name))
            raise ApiError(400, f"the query does not fit: {problem} at {name}{words}") from exc

    async def json(self, type: type[ValueT], receive_body: ReceiveBody) -> ValueT:
        """The body; fields that nobody knows are passed over. Raises `ApiError` 400 where it is no JSON, 415
        where it is said to be none, 422 where it does not fit, or has a misspelled field."""
        media_type = self.headers.get(b"content-type", b"").split(b";", 1)[0].strip().lower()
        if media_type != JSON:
            raise ApiError(415, "the body must be application/json, and say so in content-type")
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ApiError(415, "the body must not be compressed")
        text = await receive_body(self)
        try:
            value = codec.decode_json(text)
        except ValueError as exc:
            raise ApiError(400, f"the body is not JSON: {exc}") from exc
        wrong = misspelled(value, type)
        if wrong is not None:
            raise ApiError(422, f"the request does not fit: {wrong}")
        try:
            return msgspec.convert(value, type)
        except msgspec.ValidationError as exc:
            problem, at = split_validation_error(exc)
            raise ApiError(422, f"the request does not fit: {problem} at {at}") from exc

    async def receive(self) -> bytes:
        """The next piece of the body. Raises `ClientGone`."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        if not message.get("more_body", False):
            self.received.set()
        return message.get("body", b"")

    async def while_connected(self, act: Callable[[], Awaitable[ValueT]]) -> ValueT:
        """What ``act`` returns; it is cancelled when the client goes away. Raises `ClientGone`."""
        results: list[ValueT] = []
        with one_exception():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_gone, nursery.cancel_scope)
                results.append(await act())
                nursery.cancel_scope.cancel(reason="it is done")
        if not results:
            raise ClientGone
        return results[0]

    async def _cancel_when_gone(self, scope: trio.CancelScope) -> None:
        try:
            while True:
                await self.receive()
        except ClientGone:
            scope.cancel(reason="the client went away")

    async def answer(self, answer: Answer, send: Send) -> None:
        """Send a whole answer. What is left of the body is received meanwhile: some hosts want that."""
        headers = [*answer.headers, (b"content-length", b"%d" % len(answer.content))]
        start: Message = {"type": "http.response.start", "status": answer.status, "headers": headers}
        body = b"" if self.method == "HEAD" else answer.content

        async def send_beside_the_body() -> None:
            await send(start)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            # Before the answer's end, at which a host may close what still brings a body.
            with trio.move_on_after(DISCARD_S):
                await self.received.wait()
            await send({"type": "http.response.body", "body": b""})

        if self.received.is_set():
            await send(start)
            await send({"type": "http.response.body", "body": body})
        else:
            await self.while_connected(send_beside_the_body)


ReceiveBody = Callable[[Request], Awaitable[bytes]]


def as_run_id(text: str, what: str) -> str:
    """A run's id as we spell it. Raises `ApiError` 400."""
    if not _UUID.fullmatch(text):
        raise ApiError(400, f"{what} is a UUID, not {shown(text)}")
    return str(uuid.UUID(text))
