"""MCP servers for tests: in plain Python, ready in 20 ms, and breaking any rule that they are told to."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from runtime_stage import Seen

from stepflow_trio.runtime.config import Config, McpPluginConfig
from stepflow_trio.runtime.events import WorkerLine
from stepflow_trio.runtime.retries import Constant, RetryPolicy
from stepflow_trio.runtime.routing import Route, Rule
from stepflow_trio.runtime.timeouts import Timeouts

RAW = """
import json, os, signal, sys, time
signal.alarm(60)  # for a test that fails

def send(**message):
    os.write(1, json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\\n")

def answer(request, **result):
    send(id=request["id"], result=result)

def text(request, text, **more):
    answer(request, content=[{"type": "text", "text": text}], **more)

def say(line):
    os.write(2, line.encode() + b"\\n")

def tool(name, **more):
    return {"name": name, "inputSchema": {"type": "object"}, **more}

def requests(*tools):
    for line in sys.stdin:
        message = json.loads(line)
        method = message.get("method")
        if method == "initialize":
            info = {"name": "raw", "version": "1"}
            answer(message, protocolVersion="2025-06-18", capabilities={"tools": {}}, serverInfo=info)
        elif method == "tools/list" and tools:
            answer(message, tools=list(tools))
        elif method != "notifications/initialized":
            yield message
"""


def server(cwd: Path, script: str, **env: str) -> McpPluginConfig:
    """A server whose script follows :data:`RAW`."""
    path = cwd / f"server_{len(list(cwd.iterdir()))}.py"
    path.write_text(RAW + textwrap.dedent(script), encoding="utf-8")
    return McpPluginConfig(
        command=sys.executable, args=("-I", "-S", str(path)), env=env, working_directory=cwd
    )


def serving(plugin: McpPluginConfig, *, retries: int = 0, connect_s: float = 30.0) -> Config:
    """Its tools at /mcp/…"""
    return Config(
        plugins={"mcp": plugin},
        routes=(Route("/mcp/{*component}", (Rule(plugin="mcp"),)),),
        retry=RetryPolicy(transport_max_retries=retries, backoff=Constant(delay_s=0.0), jitter=0.0),
        timeouts=Timeouts(connect_s=connect_s),
        source="of a test",
    )


def lines_of(seen: Seen) -> list[str]:
    """What the server wrote beside the protocol."""
    return [event.text for event in seen.of(WorkerLine)]
