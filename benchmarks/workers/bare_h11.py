"""A loop over h11 on trio that knows one method of one protocol: as fast as a host on h11 can be."""

import json
import os

import h11
import trio
from http_add import answer

JSON = (b"content-type", b"application/json")


async def serve(stream: trio.SocketStream) -> None:
    connection = h11.Connection(h11.SERVER)
    body = b""
    async with stream:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                try:
                    connection.receive_data(await stream.receive_some())
                except trio.BrokenResourceError:
                    return
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                content = answer(body)
                headers = [JSON, (b"content-length", b"%d" % len(content))]
                answered = connection.send(h11.Response(status_code=200, headers=headers))
                answered += connection.send(h11.Data(content))
                answered += connection.send(h11.EndOfMessage())
                await stream.send_all(answered)
                body = b""
                connection.start_next_cycle()
            elif isinstance(event, h11.ConnectionClosed):
                return


async def main() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    os.write(1, json.dumps({"port": listener.socket.getsockname()[1]}).encode() + b"\n")
    await trio.serve_listeners(serve, [listener])


trio.run(main)
