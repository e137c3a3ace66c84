"""The components of the differential tests: a process for the public orchestrator, and beside our runtime.

What they come to depends on nothing but their input and the attempt, so that both runtimes see the same.
"""

from __future__ import annotations

import sys
from typing import Any

import trio

from stepflow_trio import ComponentError, Context, Worker

VALUES: dict[str, Any] = {
    "null": None,
    "false": False,
    "zero": 0,
    "text": "t",
    "empty": "",
    "list": [0, None, {"k": 1}],
    "nested": {"k": {"k": None, "l": [1, {"k": "deep"}]}, "": 0, "a b": 1, "$step": "data"},
    "unicode": {"é\u2028\U0001f40d": ['"\\\b\f\n\r\t/\x00\x1f\x7f', "\ue000\uffff"]},
    "numbers": [0, -1, 2**53 + 1, -(2**63), 2**64 - 1, 0.5, -0.0, 1e16, 1e-5, 1e-6, 1.5e300],
    "long": "x" * 70_000,
}
"""What ``value`` returns, by name."""


def new_worker() -> Worker:
    """A worker with all of them."""
    worker = Worker()

    @worker.component(inline=True)
    def echo(input: Any) -> Any:
        return input

    @worker.component(inline=True)
    def null(input: Any) -> None:
        return None

    @worker.component(inline=True)
    def add(a: int, b: int) -> int:
        return a + b

    @worker.component(inline=True)
    def value(name: str) -> Any:
        return VALUES[name]

    @worker.component(inline=True)
    def fail(code: int = -32100, message: str = "failed", data: Any = None) -> None:
        raise ComponentError(message, code=code, data=data)

    @worker.component(inline=True)
    def flaky(context: Context, until: int, code: int = -32100) -> dict[str, int]:
        if context.attempt < until:
            raise ComponentError(f"attempt {context.attempt}", code=code)
        return {"attempt": context.attempt}

    @worker.component
    async def late(ms: int, value: Any = None) -> Any:
        await trio.sleep(ms / 1000)
        return value

    return worker


if __name__ == "__main__":
    new_worker().run_http(port=int(sys.argv[1]) if sys.argv[1:] else 0)
