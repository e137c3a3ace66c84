"""Event streams of other people's workers are read as the standard says, however the network cuts them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from link_stage import offered, open_link

from stepflow_trio.engine import open_connection
from stepflow_trio.protocol.peer import Role
from stepflow_trio.transports.http.asgi import AsgiApp, Receive, Scope, Send

RESULT = {"text": "ä€😀\u2028 é", "list": ["ß"] * 5}
ANSWER = f'{{"jsonrpc":"2.0","id":ID,"result":{json.dumps(RESULT, ensure_ascii=False)}}}'
IN_LINES = ANSWER.replace(",", ",\n").split("\n")

Cut = Callable[[bytes], list[bytes]]


def whole(content: bytes) -> list[bytes]:
    return [content]


def into_bytes(content: bytes) -> list[bytes]:
    return [content[at : at + 1] for at in range(len(content))]


def within_every_character(content: bytes) -> list[bytes]:
    """Cut behind the first byte of each character that has several."""
    cuts = [at + 1 for at, byte in enumerate(content) if byte >= 0xC0]
    return [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]


def at_random(content: bytes) -> list[bytes]:
    draw = random.Random(7)  # noqa: S311 — no secret
    cuts = sorted(draw.sample(range(1, len(content)), min(20, len(content) - 1)))
    return [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]


def streaming(text: str, cut: Cut) -> AsgiApp:
    """Answers every POST with this stream, in pieces, with the request's id in the place of ``ID``."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        request = json.loads((await receive())["body"])
        content = text.replace("ID", json.dumps(request.get("id"))).encode()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in cut(content):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


async def result_of(app: AsgiApp) -> Any:
    async with (
        open_link(app) as (link, _),
        open_connection(link, offered(), role=Role.RUNTIME) as connection,
    ):
        await connection.notify("initialized", {})
        return await connection.call("m")


@pytest.mark.parametrize("cut", [whole, into_bytes, within_every_character, at_random])
@pytest.mark.parametrize(
    "text",
    [
        f"data: {ANSWER}\n\n",
        f"data:{ANSWER}\n\n",
        f"data: {ANSWER}\r\n\r\n",
        f"data: {ANSWER}\r\r",
        "".join(f"data: {line}\n" for line in IN_LINES) + "\n",
        "".join(f"data:{line}\r\n" for line in IN_LINES) + "\r\n",
        f"\ufeff: a comment\nevent: message\nid: 7\nretry: 10\nodd: field\ndata: {ANSWER}\n\n",
        f"data: no JSON\n\ndata: {ANSWER}\n\n",
        f": ping\n\n: ping\n\ndata: {ANSWER}\n\ndata: never read",
    ],
    ids=[
        "plain",
        "no-space",
        "crlf",
        "cr",
        "many-lines",
        "many-lines-crlf",
        "all-fields",
        "garbage",
        "pings",
    ],
)
async def test_an_event_stream_means_the_same_however_it_is_written_and_cut(text: str, cut: Cut) -> None:
    assert await result_of(streaming(text, cut)) == RESULT
