"""Calls an ASGI application in this process: no sockets, so that time is virtual and bytes are exact."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from stepflow_trio.protocol.sse import EventParser
from stepflow_trio.transports.http.asgi import AsgiApp, Message

HEADERS = {
    b"host": b"testserver",
    b"content-type": b"application/json",
    b"accept": b"application/json, text/event-stream",
}


class Response:
    """What the application has answered so far."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.started = trio.Event()
        self.ended = trio.Event()
        """Set when the application's call is over, however it ended."""
        self.is_complete = False
        self._send_body, self._body = trio.open_memory_channel[bytes](10_000)
        self._parser = EventParser(2**26)
        self._events: list[Any] = []

    async def take(self, message: Message) -> None:
        """The application's ``send``."""
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message["headers"])
            self.started.set()
        else:
            self._send_body.send_nowait(message.get("body", b""))
            if not message.get("more_body"):
                self.is_complete = True
                self._send_body.close()

    async def next_chunk(self) -> bytes:
        """What the application wrote next, write for write."""
        return await self._body.receive()

    async def read(self) -> bytes:
        """All the rest of the answer."""
        return b"".join([chunk async for chunk in self._body])

    async def json(self) -> Any:
        """The answer as JSON."""
        return json.loads(await self.read())

    async def next_event(self) -> Any:
        """The next event of the stream: its type and its data as JSON. None at the end."""
        while not self._events:
            try:
                chunk = await self._body.receive()
            except trio.EndOfChannel:
                return None
            self._events += [(event.type, json.loads(event.data)) for event in self._parser.feed(chunk)]
        return self._events.pop(0)

    async def next_message(self) -> Any:
        """The JSON of the next event, which is a message."""
        event = await self.next_event()
        if event is None:
            return None
        kind, message = event
        assert kind == "message"
        return message

    def close(self) -> None:
        """Wake who reads: nothing more comes."""
        self._send_body.close()


@asynccontextmanager
async def request(
    app: AsgiApp,
    method: str,
    target: str = "/",
    body: bytes | dict[str, Any] | list[Any] = b"",
    *,
    headers: Mapping[bytes, bytes | None] | None = None,
    pieces: int = 1,
    client: str = "127.0.0.1",
) -> AsyncGenerator[Response]:
    """Call the application; leaving the block is the client going away.

    ``headers`` are set over `HEADERS`; None removes one. The body comes in ``pieces`` pieces.
    """
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    path, _, query = target.partition("?")
    given = {**HEADERS, **(headers or {})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name, value) for name, value in given.items() if value is not None],
        "client": (client, 50_000),
        "server": ("127.0.0.1", 80),
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

    response = Response()

    async def send(message: Message) -> None:
        if gone.is_set():
            raise OSError("the client is gone")
        await response.take(message)

    async def call() -> None:
        try:
            await app(scope, receive, send)
        finally:
            response.ended.set()
            response.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        try:
            yield response
        finally:
            gone.set()


async def post(
    app: AsgiApp, body: bytes | dict[str, Any] | list[Any], target: str = "/", **options: Any
) -> Any:
    """POST and return the status, and the JSON of the answer, or None where there is none."""
    async with request(app, "POST", target, body, **options) as response:
        content = await response.read()
        return response.status, json.loads(content) if content else None
