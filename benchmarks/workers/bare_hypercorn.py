"""A bare ASGI application on hypercorn's own trio server, as its documentation starts it."""

import json
import os
import socket

import trio
from http_add import app
from hypercorn.config import Config
from hypercorn.trio import serve

listener = socket.create_server(("127.0.0.1", 0), backlog=128)
os.write(1, json.dumps({"port": listener.getsockname()[1]}).encode() + b"\n")
config = Config()
config.bind = [f"fd://{listener.detach()}"]
trio.run(serve, app, config)
