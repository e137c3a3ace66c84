"""What a bare server does: decode `components/execute`, add, encode; also as an ASGI application."""

import msgspec


class Numbers(msgspec.Struct):
    a: int
    b: int


class Params(msgspec.Struct):
    component: str
    input: Numbers


class Request(msgspec.Struct):
    id: str
    method: str
    params: Params


_decoder = msgspec.json.Decoder(Request)
_encoder = msgspec.json.Encoder()


def answer(body: bytes) -> bytes:
    request = _decoder.decode(body)
    output = {"c": request.params.input.a + request.params.input.b}
    return _encoder.encode({"jsonrpc": "2.0", "id": request.id, "result": {"output": output}})


async def app(scope, receive, send) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    content = answer(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})
