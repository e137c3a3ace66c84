"""The `add` component on the public stepflow-py 0.7.0; runs in that release's own environment."""

import msgspec
from stepflow_py import StepflowStdioServer

server = StepflowStdioServer()


class In(msgspec.Struct):
    a: int
    b: int


class Out(msgspec.Struct):
    c: int


@server.component
def add(input: In) -> Out:
    return Out(c=input.a + input.b)


server.run()
