"""A worker on the public stepflow-py 0.7.0, with what its SDK offers; runs in that release's own environment.

It is a program of that SDK's users, not of ours: names, types and the ``context`` parameter are its rules.
"""

import asyncio  # noqa: TID251 — that SDK runs on it
import os
import time

import msgspec
from stepflow_py import StepflowContext, StepflowStdioServer

server = StepflowStdioServer()


class In(msgspec.Struct):
    a: int
    b: int


class Out(msgspec.Struct):
    c: int


@server.component(description="add two")
def add(input: In) -> Out:
    return Out(c=input.a + input.b)


@server.component
def boom(input: dict) -> dict:
    raise RuntimeError(input["text"])


@server.component
async def flaky(input: dict, context: StepflowContext) -> dict:
    if context.attempt < input["until"]:
        raise RuntimeError(f"attempt {context.attempt}")
    return {"attempt": context.attempt}


@server.component
async def who(input: dict, context: StepflowContext) -> dict:
    return {
        "run_id": context.run_id,
        "flow_id": context.flow_id,
        "step_id": context.step_id,
        "attempt": context.attempt,
        "pid": os.getpid(),
        "environ": dict(os.environ),
    }


@server.component
async def keep(input: dict, context: StepflowContext) -> dict:
    blob_id = await context.put_blob(input["data"])
    return {"blob_id": blob_id, "data": await context.get_blob(blob_id)}


@server.component
async def fetch(input: dict, context: StepflowContext) -> dict:
    return {"data": await context.get_blob(input["blob_id"])}


@server.component
async def evaluate(input: dict, context: StepflowContext) -> dict:
    return {"value": await context.evaluate_flow(input["flow"], input["input"])}


@server.component
async def evaluate_by_id(input: dict, context: StepflowContext) -> dict:
    return {"value": await context.evaluate_flow_by_id(input["flow_id"], input["input"])}


@server.component
async def batch(input: dict, context: StepflowContext) -> dict:
    batch_id = await context.submit_batch(input["flow"], input["inputs"], input.get("max_concurrency"))
    early, _ = await context.get_batch(batch_id)
    details, outputs = await context.get_batch(batch_id, wait=True, include_results=True)
    return {"early": early, "details": details, "outputs": outputs}


@server.component
async def evaluate_batch(input: dict, context: StepflowContext) -> dict:
    return {"values": await context.evaluate_batch(input["flow"], input["inputs"])}


@server.component
async def metadata(input: dict, context: StepflowContext) -> dict:
    return await context.get_metadata(input.get("step_id"))


@server.component
async def large(input: dict) -> dict:
    return {"text": "x" * input["size"]}


@server.component
async def sleeps(input: dict, context: StepflowContext) -> dict:
    await asyncio.sleep(input["seconds"])
    return {"pid": os.getpid()}


@server.component
def blocks(input: dict) -> dict:
    time.sleep(input["seconds"])  # noqa: TID251 — that it blocks is what it is for
    return {}


@server.component
async def dies(input: dict, context: StepflowContext) -> dict:
    if context.attempt <= input["times"]:
        os.kill(os.getpid(), 9)
    return {"attempt": context.attempt}


server.run()
