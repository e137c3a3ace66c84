"""The worker of the command line's tests: one component for each way in which a step can go."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import trio

from stepflow_trio import ComponentError, Context, Worker

worker = Worker()


@worker.component(inline=True)
def echo(value: Any) -> Any:
    return value


@worker.component(inline=True)
def refuse(why: str = "not today") -> None:
    raise ComponentError(why, code=-32110, data={"asked": True})


@worker.component
async def refuse_at_first(context: Context) -> int:
    if context.attempt == 1:
        raise ComponentError("not yet", code=-32110)
    return context.attempt


@worker.component(inline=True)
def chatter(lines: int) -> str:
    sys.stdout.write("this is printed to stdout\n")
    for number in range(lines):
        sys.stderr.write(f"line {number} \x1b[31mred\x1b[0m\n")
    return "said"


@worker.component
async def wait(context: Context) -> None:
    context.progress(0.25, "a quarter \x1b[2J done")
    sys.stderr.write("waiting\n")
    await trio.sleep_forever()


@worker.component
async def wait_if(wait: bool) -> str:
    if wait:
        sys.stderr.write("waiting\n")
        await trio.sleep_forever()
    return "done"


@worker.component(inline=True)
def run_tool() -> None:
    raise ComponentError(
        "the tool failed", code=-32110, data={"stderr": "usage:\n  tool\n", "suggestion": "give it a file"}
    )


@worker.component(inline=True)
def hang() -> None:
    """Blocks the event loop: nothing but a signal ends it."""
    sys.stderr.write("hanging\n")
    time.sleep(60)  # noqa: TID251 — a worker that behaves badly


@worker.component(inline=True)
def die() -> None:
    sys.stderr.write("dying\n")
    os._exit(7)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        # Says that it is there, and then never speaks the protocol.
        Path(sys.argv[1]).write_text(str(os.getpid()), encoding="utf-8")
        time.sleep(60)  # noqa: TID251 — likewise
    worker.run_stdio()
