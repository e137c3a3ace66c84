"""Workers over HTTP in plain Python, as processes that break any rule they are told to."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from stepflow_trio.runtime.config import (
    DEFAULT_CONFIG,
    Config,
    HttpProcessPluginConfig,
    PluginConfig,
)
from stepflow_trio.runtime.retries import Constant, RetryPolicy
from stepflow_trio.runtime.routing import Route, Rule
from stepflow_trio.transports.port_process import PortProcess, open_port_process
from stepflow_trio.transports.process import StopLadder

QUICK = StopLadder(stdin_grace_s=0.3, term_grace_s=0.3, cancelled_grace_s=0.2)

RAW_HTTP = """
import http.server, json, os, signal, sys, threading, time
signal.alarm(60)  # for a test that fails
said = []

class Worker(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def reply(self, status, body=None, **headers):
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def answer(self, result):
        self.reply(200, {"jsonrpc": "2.0", "id": self.message["id"], "result": result})

    def fail(self, code, message, status=200, data=None):
        error = {"code": code, "message": message, "data": data}
        self.reply(status, {"jsonrpc": "2.0", "id": self.message["id"], "error": error})

    def do_GET(self):
        if self.path == "/health":
            self.health()
        else:
            self.reply(404, {})

    def do_POST(self):
        self.message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.params = self.message.get("params")
        method = self.message["method"]
        said.append(method)
        if "id" not in self.message:
            self.reply(202)
        elif method == "initialize":
            self.initialize()
        elif method == "components/list":
            self.answer({"components": [{"component": "/x"}]})
        else:
            self.execute(self.params["input"])

    def health(self):
        self.reply(200, {"status": "healthy"})

    def initialize(self):
        self.answer({"serverProtocolVersion": 1})

    def execute(self, input):
        self.answer({"output": [self.params["attempt"], os.getpid()]})

    def log_message(self, *_):
        pass

def serve(port=0):
    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128
    server = Server(("127.0.0.1", port), Worker)
    os.write(1, b'{"port": %d}\\n' % server.server_port)
    server.serve_forever()
"""
"""The beginning of such a worker; a script that follows it may redefine methods of ``Worker``."""


def raw_http_command(cwd: Path, script: str = "serve()") -> list[str]:
    """A command that starts the worker whose script follows :data:`RAW_HTTP`."""
    path = cwd / f"http_worker_{len(list(cwd.iterdir()))}.py"
    path.write_text(RAW_HTTP + textwrap.dedent(script), encoding="utf-8")
    return [sys.executable, "-I", "-S", str(path)]


def raw_http_plugin(cwd: Path, script: str = "serve()", **more: Any) -> HttpProcessPluginConfig:
    """That worker as a plugin that is started by the runtime."""
    command, *args = raw_http_command(cwd, script)
    return HttpProcessPluginConfig(command=command, args=tuple(args), working_directory=cwd, **more)


@asynccontextmanager
async def started_worker(cwd: Path, script: str = "serve()") -> AsyncGenerator[tuple[str, PortProcess]]:
    """That worker, started by somebody else; its URL and its process."""
    async with open_port_process(raw_http_command(cwd, script), env={}, cwd=cwd, ladder=QUICK) as process:
        yield f"http://127.0.0.1:{await process.wait_port()}/", process


def over_http(retries: int = 0, *, delay_s: float = 0.0, **plugins: PluginConfig) -> Config:
    """Each plugin at ``/<its name>/…``, and the builtin ones."""
    routes = tuple(Route(f"/{name}/{{*component}}", (Rule(plugin=name),)) for name in plugins)
    return Config(
        plugins={**DEFAULT_CONFIG.plugins, **plugins},
        routes=(*DEFAULT_CONFIG.routes, *routes),
        retry=RetryPolicy(transport_max_retries=retries, backoff=Constant(delay_s=delay_s), jitter=0.0),
        source="of a test",
    )
