"""`add` on the public stepflow-py 0.11.2, started as its documentation does; runs in its own environment."""

import asyncio  # noqa: TID251 - stepflow-py runs on it

import msgspec
from stepflow_py.worker import StepflowContext, StepflowServer

server = StepflowServer()


class In(msgspec.Struct):
    a: int
    b: int


class Out(msgspec.Struct):
    c: int


class Run(msgspec.Struct):
    run: str


class Told(msgspec.Struct):
    run: str
    completed: int


@server.component
def add(input: In) -> Out:
    return Out(c=input.a + input.b)


@server.component
async def ask(input: Run, context: StepflowContext) -> Told:
    status = await context.get_run(input.run)
    return Told(run=status.runId, completed=status.items.completed)


asyncio.run(server.run())
