"""The REST API as its clients meet it, without sockets; every answer is held to the OpenAPI document."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import jsonschema_rs
import trio
from runtime_stage import Stage

from stepflow_trio import open_runtime
from stepflow_trio.protocol.sse import EventParser, ServerEvent
from stepflow_trio.runtime import Runtime
from stepflow_trio.runtime.rest_api import API_PATH, RestApi
from stepflow_trio.transports.http.asgi import AsgiApp, Message

JSON_BODY = {b"content-type": b"application/json"}


@dataclass
class Reply:
    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """What an error says; its code is the status."""
        assert self.json["code"] == self.status
        return self.json["message"]


class OpenApi:
    """Says what of an answer is not as the document says."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.checked: set[tuple[str, str, int]] = set()
        self._validators: dict[tuple[str, str, int], Any] = {}
        self._paths = [
            (re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))), path) for path in document["paths"]
        ]

    def check(self, method: str, path: str, reply: Reply) -> None:
        path = path.partition("?")[0].removeprefix(API_PATH)
        known = next((name for pattern, name in self._paths if pattern.fullmatch(path)), None)
        operation = self.document["paths"].get(known, {}).get(method.lower())
        if known is None or operation is None:
            assert reply.status in (404, 405), f"{method} {path} is not described, but answers {reply.status}"
            return
        described = operation["responses"].get(str(reply.status))
        assert described is not None, f"{method} {known}: {reply.status} is not described: {reply.body!r}"
        self.checked.add((method, known, reply.status))
        content = described.get("content")
        if content is None:
            assert reply.body == b""
            return
        ((media_type, schema),) = content.items()
        assert reply.headers[b"content-type"].decode() == media_type
        values: list[Any] = [reply.json] if media_type == "application/json" else events_of(reply.body)
        for value in values:
            self._validator(method, known, reply.status, schema["schema"]).validate(value)

    def _validator(self, method: str, path: str, status: int, schema: dict[str, Any]) -> Any:
        key = (method, path, status)
        if key not in self._validators:
            whole = {**schema, "components": self.document["components"]}
            self._validators[key] = jsonschema_rs.validator_for(whole, validate_formats=True)
        return self._validators[key]


def events_of(stream: bytes) -> list[Any]:
    """The data of the events of a whole stream."""
    return [json.loads(event.data) for event in EventParser().feed(stream) if isinstance(event, ServerEvent)]


class Exchange:
    """One request, and what has come of its answer so far."""

    def __init__(self) -> None:
        self.reply = Reply()
        self.ended = trio.Event()
        self.blocks_sends: trio.Event | None = None
        """While it is there and not set, the client takes nothing."""
        self._send, self._chunks = trio.open_memory_channel[bytes](100_000)
        self._parser = EventParser()
        self._events: list[ServerEvent] = []

    async def take(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if self.blocks_sends is not None:
            await self.blocks_sends.wait()
        if message["type"] == "http.response.start":
            self.reply.status = message["status"]
            self.reply.headers = dict(message["headers"])
        else:
            body = message.get("body", b"")
            self.reply.body += body
            self._send.send_nowait(body)

    def finish(self) -> None:
        self.ended.set()
        self._send.close()

    async def chunk(self) -> bytes | None:
        """What was sent next, send by send; None at the end."""
        try:
            return await self._chunks.receive()
        except trio.EndOfChannel:
            return None

    async def event(self) -> ServerEvent | None:
        """The next event of a stream; None at its end."""
        while not self._events:
            chunk = await self.chunk()
            if chunk is None:
                return None
            self._events += [e for e in self._parser.feed(chunk) if isinstance(e, ServerEvent)]
        return self._events.pop(0)


class Client:
    """Calls the application; what it answers must be what its OpenAPI document says."""

    def __init__(self, app: AsgiApp, runtime: Runtime, stage: Stage) -> None:
        self.app = app
        self.runtime = runtime
        self.stage = stage
        self.openapi: OpenApi | None = None

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        target: str,
        body: Any = None,
        headers: Mapping[bytes, bytes] | None = None,
        *,
        pieces: int = 1,
    ) -> AsyncGenerator[Exchange]:
        """Send a request; leaving the block is the client going away."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        given = {**(JSON_BODY if content else {}), b"host": b"test", **(headers or {})}
        if content:
            given.setdefault(b"content-length", b"%d" % len(content))
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": API_PATH + path,
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": list(given.items()),
        }
        size = -(-len(content) // pieces) or 1
        unread = [content[start : start + size] for start in range(0, len(content), size)] or [b""]
        gone = trio.Event()

        async def receive() -> Message:
            await trio.lowlevel.checkpoint()
            if unread:
                piece = unread.pop(0)
                return {"type": "http.request", "body": piece, "more_body": bool(unread)}
            await gone.wait()
            return {"type": "http.disconnect"}

        exchange = Exchange()

        async def send(message: Message) -> None:
            if gone.is_set():
                raise BrokenPipeError
            await exchange.take(message)

        async def call() -> None:
            try:
                await self.app(scope, receive, send)
            finally:
                exchange.finish()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            try:
                yield exchange
            finally:
                gone.set()

    async def call(self, method: str, target: str, body: Any = None, **options: Any) -> Reply:
        """Send a request and receive its whole answer."""
        async with self.exchange(method, target, body, **options) as exchange:
            await exchange.ended.wait()
        if self.openapi is not None and method != "HEAD":
            self.openapi.check(method, target, exchange.reply)
        return exchange.reply

    async def get(self, target: str, **options: Any) -> Any:
        """The JSON of what is there."""
        reply = await self.call("GET", target, **options)
        assert reply.status == 200, reply.body
        return reply.json

    async def store(self, flow: dict[str, Any]) -> str:
        """Store a flow; its id."""
        reply = await self.call("POST", "/flows", {"flow": flow})
        assert reply.json["stored"], reply.json
        return reply.json["flowId"]

    async def submit(self, flow: dict[str, Any], *inputs: Any, **more: Any) -> dict[str, Any]:
        """Start a run of a flow; what is answered."""
        body = {"flowId": await self.store(flow), "input": list(inputs), **more}
        reply = await self.call("POST", "/runs", body)
        assert reply.status == (200 if more.get("wait") else 202), reply.body
        return reply.json


@asynccontextmanager
async def open_client(stage: Stage | None = None, **settings: Any) -> AsyncGenerator[Client]:
    """A runtime with a stage's worker at ``/w/…``, and a client of its REST API."""
    stage = stage or Stage()
    async with open_runtime(workers={"w": stage.worker}, **settings) as runtime:
        client = Client(RestApi(runtime), runtime, stage)
        client.openapi = OpenApi(await client.get("/openapi.json"))
        yield client
