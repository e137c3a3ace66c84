"""A worker of ours over HTTP, for the public orchestrators.

``sdk_http.py`` offers what it can of the same on the public SDK.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import trio

from stepflow_trio import ComponentError, Context, Worker

worker = Worker()


def note(mark: str | None, word: str) -> None:
    """Note in the file ``mark`` how far the component is."""
    if mark is not None:
        with Path(mark).open("a") as file:
            file.write(f"{word}\n")


@worker.component(description="add two")
async def add(a: int, b: int) -> dict[str, int]:
    return {"c": a + b}


@worker.component
async def echo(input: dict[str, Any]) -> dict[str, Any]:
    return input


@worker.component
async def boom(text: str) -> None:
    raise RuntimeError(text)


@worker.component
async def refuses(code: int, message: str, data: Any) -> None:
    raise ComponentError(message, code=code, data=data)


@worker.component
async def flaky(ctx: Context, until: int, code: int = -32100) -> dict[str, int]:
    if ctx.attempt < until:
        raise ComponentError(f"attempt {ctx.attempt}", code=code)
    return {"attempt": ctx.attempt}


@worker.component
async def who(ctx: Context) -> dict[str, Any]:
    ctx.progress(0.5)
    return {
        "run_id": ctx.run_id,
        "flow_id": ctx.flow_id,
        "step_id": ctx.step_id,
        "trace_id": ctx.trace_id,
        "span_id": ctx.span_id,
        "attempt": ctx.attempt,
        "pid": os.getpid(),
        "environ": dict(os.environ),
    }


@worker.component
async def keep(ctx: Context, data: Any) -> dict[str, Any]:
    blob_id = await ctx.put_blob(data)
    return {"blob_id": blob_id, "data": await ctx.get_blob(blob_id)}


@worker.component
async def keep_bytes(ctx: Context, hex: str) -> dict[str, Any]:
    blob_id = await ctx.put_blob(bytes.fromhex(hex))
    return {"blob_id": blob_id, "hex": (await ctx.get_blob(blob_id)).hex()}


@worker.component
async def keep_many(ctx: Context, count: int) -> list[str]:
    found = [""] * count

    async def keep_one(n: int) -> None:
        found[n] = await ctx.get_blob(await ctx.put_blob(f"blob {n}"))

    async with trio.open_nursery() as nursery:
        for n in range(count):
            nursery.start_soon(keep_one, n)
    return found


@worker.component
async def fetch(ctx: Context, blob_id: str) -> dict[str, Any]:
    return {"data": await ctx.get_blob(blob_id)}


@worker.component
async def evaluate(ctx: Context, flow_id: str, input: Any) -> dict[str, Any]:
    return {"value": await ctx.evaluate_flow(flow_id, input)}


@worker.component
async def evaluate_given(ctx: Context, flow: dict[str, Any], input: Any) -> dict[str, Any]:
    return {"value": await ctx.evaluate_flow(flow, input)}


@worker.component
async def runs(
    ctx: Context,
    flow_id: str,
    inputs: list[Any],
    max_concurrency: int | None = None,
    overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    early = await ctx.submit_run(flow_id, inputs, max_concurrency=max_concurrency, overrides=overrides)
    late = await ctx.get_run(early.run_id, wait=True, include_results=True)
    return {
        "early": [early.run_id, early.status, early.items.total],
        "late": [late.run_id, late.status, late.items.total],
        "results": [item.result for item in late.results or ()],
    }


@worker.component
async def large(size: int) -> dict[str, str]:
    return {"text": "x" * size}


@worker.component
async def length(text: str) -> dict[str, int]:
    return {"length": len(text)}


@worker.component
async def sleeps(seconds: float, mark: str | None = None) -> dict[str, int]:
    note(mark, "began")
    try:
        await trio.sleep(seconds)
    except trio.Cancelled:
        note(mark, "cancelled")
        raise
    note(mark, "done")
    return {"pid": os.getpid()}


@worker.component
def blocks(seconds: float, mark: str | None = None) -> dict[str, int]:
    note(mark, "began")
    time.sleep(seconds)  # noqa: TID251 — that it blocks is what it is for
    note(mark, "done")
    return {"pid": os.getpid()}


@worker.component
async def dies(ctx: Context, times: int) -> dict[str, int]:
    if ctx.attempt <= times:
        os.kill(os.getpid(), 9)
    return {"attempt": ctx.attempt, "pid": os.getpid()}


if __name__ == "__main__":
    worker.run_http(port=int(sys.argv[1]) if sys.argv[1:] else 0)
