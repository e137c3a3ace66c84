"""How fast does a stdio worker answer, and what does it cost to have one?

One driver, which only writes prepared lines and counts answers, drives every worker in turn; a round is one
turn of each, so that a machine that slows down slows all of them. Printed are medians over the rounds, and
the ratio to stepflow-py 0.7.0 in the same run. Every answer is checked after the clock has stopped.

    python benchmarks/stdio_worker.py [--rounds 5] [--requests 20000] [--json FILE]

stepflow-py 0.7.0 must be in a virtual environment of its own: `bash .ci/peers` makes it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
PEERS = Path(os.environ.get("STEPFLOW_TRIO_PEERS", Path.home() / ".cache" / "stepflow-trio" / "peers"))
PEER_PYTHON = PEERS / "stepflow-py-0.7.0" / "bin" / "python"
IN_FLIGHT = (1, 64, 512)


class Candidate:
    """A worker's command, and the component that it is asked for."""

    def __init__(self, name: str, command: Sequence[str], component: str) -> None:
        self.name = name
        self.command = list(command)
        self.component = component


def candidates() -> list[Candidate]:
    ours = [sys.executable, str(HERE / "workers" / "ours.py")]
    listed = [
        Candidate("stepflow_trio, async def", ours, "/add"),
        Candidate("stepflow_trio, inline", ours, "/add_inline"),
        Candidate("stepflow_trio, thread", ours, "/add_in_thread"),
    ]
    if PEER_PYTHON.exists():
        peer = [str(PEER_PYTHON), str(HERE / "workers" / "stepflow_py_0_7.py")]
        listed.append(Candidate("stepflow-py 0.7.0", peer, "/add"))
    else:
        print(f"stepflow-py 0.7.0 is left out: {PEER_PYTHON} does not exist", file=sys.stderr)
    return listed


class Driver:
    """A runtime that knows only pipes and lines."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        began = time.perf_counter()
        self.process = subprocess.Popen(
            candidate.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", "")},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.exchange([line("initialize", "init", {"runtime_protocol_version": 1})], 1)
        self.start_s = time.perf_counter() - began
        os.write(self.stdin, b'{"jsonrpc":"2.0","method":"initialized","params":{}}\n')
        os.set_blocking(self.stdin, False)
        self.idle_kib = resident_kib(self.process.pid)

    def exchange(self, lines: Sequence[bytes], in_flight: int) -> tuple[float, bytes]:
        """Send the lines with so many unanswered at most; return the seconds and all answers."""
        answers: list[bytes] = []
        sent = answered = 0
        unsent = memoryview(b"")
        poll = select.poll()
        poll.register(self.stdout, select.POLLIN)
        waits_to_write = False
        began = time.perf_counter()
        while answered < len(lines):
            if not unsent and sent < len(lines) and sent - answered < in_flight:
                count = min(in_flight - (sent - answered), len(lines) - sent)
                unsent = memoryview(b"".join(lines[sent : sent + count]))
                sent += count
            if unsent:
                with contextlib.suppress(BlockingIOError):
                    unsent = unsent[os.write(self.stdin, unsent) :]
            if bool(unsent) is not waits_to_write:
                waits_to_write = bool(unsent)
                if waits_to_write:
                    poll.register(self.stdin, select.POLLOUT)
                else:
                    poll.unregister(self.stdin)
            for fd, _ in poll.poll(10_000) or self.give_up():
                if fd == self.stdout:
                    data = os.read(self.stdout, 1 << 20)
                    if not data:
                        self.give_up()
                    answers.append(data)
                    answered += data.count(b"\n")
        return time.perf_counter() - began, b"".join(answers)

    def give_up(self) -> list[tuple[int, int]]:
        raise SystemExit(f"{self.candidate.name}: no answer within 10 s (exit code {self.process.poll()})")

    def close(self) -> None:
        os.close(self.stdin)
        self.process.stdin = None
        self.process.wait(10)
        os.close(self.stdout)
        self.process.stdout = None


def line(method: str, id_: object, params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id_, "method": method, "params": params}).encode() + b"\n"


def requests(component: str, count: int) -> list[bytes]:
    observability = {"run_id": "01a1ff82-1900-78a1-9ba6-c11477158f0e", "flow_id": None, "step_id": "s"}
    return [
        line(
            "components/execute",
            number,
            {
                "component": component,
                "input": {"a": number, "b": 1},
                "attempt": 1,
                "observability": observability,
            },
        )
        for number in range(count)
    ]


def check(answers: bytes, count: int) -> None:
    outputs = {}
    for text in answers.splitlines():
        answer = json.loads(text)
        outputs[answer["id"]] = answer["result"]["output"]["c"]
    assert outputs == {number: number + 1 for number in range(count)}, "wrong or missing answers"


def resident_kib(pid: int) -> int:
    for entry in Path(f"/proc/{pid}/status").read_text().splitlines():
        if entry.startswith("VmRSS:"):
            return int(entry.split()[1])
    raise SystemExit("this system does not tell a process's resident memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20_000, help="a turn, pipelined")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()

    tested = candidates()
    figures: dict[str, dict[str, list[float]]] = {c.name: {} for c in tested}
    for _ in range(options.rounds):
        for candidate in tested:
            driver = Driver(candidate)
            own = figures[candidate.name]
            own.setdefault("start to ready, s", []).append(driver.start_s)
            own.setdefault("idle memory, MiB", []).append(driver.idle_kib / 1024)
            driver.exchange(requests(candidate.component, 200), 1)
            for in_flight in IN_FLIGHT:
                count = options.requests if in_flight > 1 else options.requests // 8
                seconds, answers = driver.exchange(requests(candidate.component, count), in_flight)
                check(answers, count)
                own.setdefault(f"{in_flight} in flight, requests/s", []).append(count / seconds)
            driver.close()

    medians = {
        name: {what: statistics.median(values) for what, values in own.items()}
        for name, own in figures.items()
    }
    baseline = medians.get("stepflow-py 0.7.0")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"{options.rounds} rounds, medians")
    for what in next(iter(medians.values())):
        print(f"\n{what}")
        for name, own in medians.items():
            low, high = min(figures[name][what]), max(figures[name][what])
            ratio = f"  {own[what] / baseline[what]:6.2f} x" if baseline else ""
            digits = 3 if own[what] < 10 else 0
            print(f"  {name:26} {own[what]:10,.{digits}f}  ({low:,.{digits}f} to {high:,.{digits}f}){ratio}")
    if options.json:
        options.json.write_text(json.dumps({"medians": medians, "rounds": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
