"""Without a Stepflow SDK: FastAPI on uvicorn; runs in stepflow-py 0.11.2's environment."""

import json
import os
import socket

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

app = FastAPI()


@app.post("/")
async def execute(request: Request) -> JSONResponse:
    message = await request.json()
    numbers = message["params"]["input"]
    result = {"output": {"c": numbers["a"] + numbers["b"]}}
    return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "result": result})


# Not create_server: asyncio switches Nagle's algorithm off only where a socket says that it is TCP.
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
listener.bind(("127.0.0.1", 0))
listener.listen(128)
os.write(1, json.dumps({"port": listener.getsockname()[1]}).encode() + b"\n")
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
