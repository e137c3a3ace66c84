"""A worker in a process of its own, whose pipes are used badly: nothing is cut off, nothing gets stuck."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import IO, Any

import pytest

WORKER = """
import logging
import trio
from stepflow_trio import Worker

logging.basicConfig(level=logging.INFO)
worker = Worker()


@worker.component(inline=True)
def times(text: str, count: int = 1) -> str:
    return text * count


@worker.component
async def slowly(number: int) -> int:
    await trio.sleep(0.3)
    return number


worker.run_stdio()
"""

Process = subprocess.Popen[bytes]


@pytest.fixture
def process(tmp_path: Path) -> Generator[Process]:
    """A worker that is initialized; nobody reads its stderr."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        killer = threading.Timer(50, process.kill)
        killer.start()
        try:
            write(process, {"id": 0, "method": "initialize", "params": {"runtimeProtocolVersion": 1}})
            assert read(process)["id"] == 0
            write(process, {"method": "initialized", "params": {}})
            yield process
        finally:
            killer.cancel()
            process.kill()


def line_of(message: dict[str, Any]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"


def pipe(found: IO[bytes] | None) -> IO[bytes]:
    assert found is not None
    return found


def write(process: Process, *messages: dict[str, Any]) -> None:
    pipe(process.stdin).write(b"".join(map(line_of, messages)))
    pipe(process.stdin).flush()


def read(process: Process) -> dict[str, Any]:
    line = pipe(process.stdout).readline()
    assert line.endswith(b"\n"), f"cut off after {len(line)} bytes"
    return json.loads(line)


def execute(id_: int, component: str, **input: Any) -> dict[str, Any]:
    params = {"component": component, "input": input, "attempt": 1, "observability": {}}
    return {"id": id_, "method": "components/execute", "params": params}


def outputs(answers: Iterable[dict[str, Any]]) -> dict[int, Any]:
    return {answer["id"]: answer["result"]["output"] for answer in answers}


@pytest.mark.parametrize("size", [65_535, 65_536, 70_000, 1_048_577, 10_000_000])
def test_an_answer_of_any_length_is_whole_and_the_next_one_too(process: Process, size: int) -> None:
    write(process, execute(1, "/times", text="x", count=size), execute(2, "/times", text="y"))
    found = outputs(read(process) for _ in range(2))
    assert len(found[1]) == size
    assert found[2] == "y"


def test_who_reads_nothing_until_all_is_asked_gets_every_answer(process: Process) -> None:
    count, length = 5_000, 2_000  # 10 MB: more than any pipe holds
    write(process, *(execute(number, "/times", text="x", count=length) for number in range(1, count + 1)))
    found = outputs(read(process) for _ in range(count))
    assert found == dict.fromkeys(range(1, count + 1), "x" * length)


def test_a_request_of_megabytes_is_read(process: Process) -> None:
    for size in (600_000, 5_000_000):
        write(process, execute(1, "/times", text="ä" * size))
        assert read(process)["result"]["output"] == "ä" * size


def test_what_is_in_flight_when_stdin_ends_is_answered(process: Process) -> None:
    write(process, *(execute(number, "/slowly", number=number) for number in range(1, 101)))
    pipe(process.stdin).close()
    found = outputs(map(json.loads, pipe(process.stdout).read().splitlines()))
    assert found == {number: number for number in range(1, 101)}
    assert process.wait(20) == 0


def test_requests_fill_no_stderr_that_nobody_reads(process: Process) -> None:
    count = 3_000
    write(process, *(execute(number, "/times", text="x") for number in range(1, count + 1)))
    assert outputs(read(process) for _ in range(count)) == dict.fromkeys(range(1, count + 1), "x")


@pytest.mark.parametrize("line", [b"{\n", b"[]\n", b'"x"\n', b"\xff\xfe\n", b'{"jsonrpc":"2.0","id":7}\n'])
def test_a_line_that_is_no_message_is_answered_and_the_next_is_served(process: Process, line: bytes) -> None:
    pipe(process.stdin).write(line)
    write(process, execute(1, "/times", text="x"))
    first, second = read(process), read(process)
    assert first["error"]["code"] in (-32700, -32600)
    assert second["result"]["output"] == "x"


def test_an_unknown_method_is_answered(process: Process) -> None:
    write(process, {"id": "a", "method": "components/lost", "params": {}})
    answer = read(process)
    assert (answer["id"], answer["error"]["code"]) == ("a", -32601)
