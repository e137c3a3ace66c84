"""A runtime in the process of its application, told by lines of stdin what to run.

A line is ``{"flow", "input": [...], "runs_at_once", "seconds"}``: runs with one item each from the list,
until the time is up, or with ``runs_at_once`` 0 one batch of the whole list. The answer is a line with what
they came to. The argument is the runtime's configuration.
"""

import json
import sys
import time
from itertools import count
from typing import Any

import trio

from stepflow_trio import open_runtime
from stepflow_trio.flows.reader import flow_from_json


async def main() -> None:
    async with open_runtime(sys.argv[1]) as runtime:
        print(json.dumps({"port": 0}), flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            asked = json.loads(line)
            flow, inputs = flow_from_json(asked["flow"]), asked["input"]
            answers: list[tuple[int, Any]] = []
            numbers = count()
            began = time.perf_counter()

            async def run_until(until: float) -> None:
                while time.perf_counter() < until or not answers:  # noqa: B023 - used in this turn only
                    number = next(numbers) % len(inputs)  # noqa: B023
                    answers.append((number, await runtime.run(flow, inputs[number])))  # noqa: B023

            if asked["runs_at_once"]:
                async with trio.open_nursery() as nursery:
                    for _ in range(asked["runs_at_once"]):
                        nursery.start_soon(run_until, began + asked["seconds"])
                seconds = time.perf_counter() - began
            else:
                run = await runtime.submit(flow, inputs)
                await run.wait()
                seconds = time.perf_counter() - began
                answers += enumerate(getattr(result, "result", result) for result in run.results)
            print(json.dumps({"seconds": seconds, "answers": answers}, default=repr), flush=True)


trio.run(main)
