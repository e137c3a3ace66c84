"""A worker on the public SDK whose workers speak over HTTP, stepflow-py 0.9.2 or 0.11.2; runs in that
release's own environment.

It is a program of that SDK's users, not of ours: names, types and the ``context`` parameter are its rules.
``http_worker.py`` offers the same components on ours.
"""

import asyncio  # noqa: TID251 — that SDK runs on it
import os
import sys
import time
from pathlib import Path

import msgspec
from stepflow_py.worker import Flow, StepflowContext, StepflowServer
from stepflow_py.worker.exceptions import StepflowFailed

server = StepflowServer()


class In(msgspec.Struct):
    a: int
    b: int


class Out(msgspec.Struct):
    c: int


def note(input: dict, word: str) -> None:
    """Note in the file ``mark`` how far the component is."""
    if "mark" in input:
        with Path(input["mark"]).open("a") as file:
            file.write(f"{word}\n")


@server.component(description="add two")
def add(input: In) -> Out:
    return Out(c=input.a + input.b)


@server.component
def echo(input: dict) -> dict:
    return input


@server.component
def boom(input: dict) -> dict:
    raise RuntimeError(input["text"])


@server.component
def refuses(input: dict) -> dict:
    raise StepflowFailed(input["code"], input["message"], input["data"])


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
    return {"value": await context.evaluate_flow_by_id(input["flow_id"], input["input"])}


@server.component
async def evaluate_given(input: dict, context: StepflowContext) -> dict:
    flow = Flow.from_dict(input["flow"])
    return {"value": await context.evaluate_flow(flow, input["input"])}


@server.component
async def runs(input: dict, context: StepflowContext) -> dict:
    early = await context.submit_run_by_id(
        input["flow_id"], input["inputs"], overrides=input.get("overrides")
    )
    late = await context.get_run(early.runId, wait=True, include_results=True)
    return {"early": msgspec.to_builtins(early), "late": msgspec.to_builtins(late)}


@server.component
def large(input: dict) -> dict:
    return {"text": "x" * input["size"]}


@server.component
async def sleeps(input: dict, context: StepflowContext) -> dict:
    note(input, "began")
    await asyncio.sleep(input["seconds"])
    note(input, "done")
    return {"pid": os.getpid()}


@server.component
def blocks(input: dict) -> dict:
    note(input, "began")
    time.sleep(input["seconds"])  # noqa: TID251 — that it blocks is what it is for
    note(input, "done")
    return {"pid": os.getpid()}


@server.component
async def dies(input: dict, context: StepflowContext) -> dict:
    if context.attempt <= input["times"]:
        os.kill(os.getpid(), 9)
    return {"attempt": context.attempt, "pid": os.getpid()}


asyncio.run(server.run(port=int(sys.argv[1]) if sys.argv[1:] else 0))
