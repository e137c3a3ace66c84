"""The bare ASGI application on one of this library's hosts; the argument says which: h11 or hypercorn."""

import json
import os
import sys

import trio
from http_add import app

from stepflow_trio.transports.http.hosting import open_http_host


async def main() -> None:
    async with open_http_host(app, host=sys.argv[1]) as host:
        os.write(1, json.dumps({"port": host.port}).encode() + b"\n")
        await trio.sleep_forever()


trio.run(main)
