"""How fast does a worker answer over HTTP, and what does it cost?

The same `add` on this library's two hosts, on stepflow-py 0.11.2 as its documentation starts it, on FastAPI
by hand, and on what the hosts are made of: a bare hypercorn application and a bare loop over h11. The server
has one core and the driver another; a round is one turn of each server, so that a machine that slows down
slows all of them. Printed are medians over the rounds, and medians of the ratios within a round, both of
requests/s and of the server's CPU time per request: the second hardly depends on what else the machine does.
Every answer is checked, by wrk as it comes, otherwise after the clock has stopped.

    python benchmarks/http_worker.py [--rounds 5] [--seconds 2] [--only NAME]... [--json FILE]

stepflow-py 0.11.2 must be in a virtual environment of its own, which also has FastAPI and uvicorn:
`bash .ci/peers` makes it. wrk is a package of most systems: `apt-get install wrk`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from http_drivers import (
    HELLO,
    Callbacks,
    GaveUpError,
    Turn,
    body_of,
    drive_link,
    drive_posts,
    drive_session,
    drive_wrk,
    events,
    execute,
    identifier,
    message,
)

WORKERS = Path(__file__).parent / "workers"
PEERS = Path(os.environ.get("STEPFLOW_TRIO_PEERS", Path.home() / ".cache" / "stepflow-trio" / "peers"))
PEER_PYTHON = PEERS / "stepflow-py-0.11.2" / "bin" / "python"
PEER = "stepflow-py 0.11.2"
BARE_H11, BARE_HYPERCORN = "bare h11", "bare hypercorn"
CORES = sorted(os.sched_getaffinity(0))

NUMBERS = [{"a": number, "b": 1} for number in range(4096)]
SUMS = [{"c": number + 1} for number in range(4096)]
RUNS = [{"run": identifier(number)} for number in range(4096)]
STATUSES = [{"run": identifier(number), "completed": number} for number in range(4096)]


@dataclass(frozen=True)
class Candidate:
    """A server's command, what it is asked for, and the bare server that it is made of."""

    name: str
    command: Sequence[str]
    component: str = "/add"
    bare: str = ""
    is_worker: bool = False
    """Knows the whole protocol, and not just one method."""
    has_callbacks: bool = False
    """Offers `/ask`, which calls back."""
    has_sessions: bool = False


@dataclass(frozen=True)
class Figure:
    """What one turn gave."""

    per_second: float
    server_us: float
    """CPU time of the server per request."""
    driver_load: float
    """CPU time of the driver, of its time. Near 1 it is the driver that is measured."""


@dataclass
class Results:
    """By candidate, and for the figures by measure before that; one value for each round."""

    start_s: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    idle_mib: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    figures: dict[str, dict[str, list[Figure]]] = field(default_factory=dict[str, dict[str, list[Figure]]])


Drive: TypeAlias = "Callable[[Server, float], Turn]"
"""Asks a server for so many seconds, and checks what it answered."""


@dataclass(frozen=True)
class Measure:
    title: str
    drive: Drive
    against: str
    """The measure of stepflow-py and of the bare server that this one is compared with."""
    suits: Callable[[Candidate], bool] = lambda _: True


def candidates() -> list[Candidate]:
    listed = [
        Candidate(BARE_H11, [sys.executable, str(WORKERS / "bare_h11.py")]),
        Candidate(BARE_HYPERCORN, [sys.executable, str(WORKERS / "bare_hypercorn.py")]),
    ]
    for host, bare in ("h11", BARE_H11), ("hypercorn", BARE_HYPERCORN):
        command = [sys.executable, str(WORKERS / "our_host.py"), host]
        listed.append(Candidate(f"bare application, our {host} host", command, bare=bare))
        command = [sys.executable, str(WORKERS / "ours_http.py"), host]
        for kind, component in ("inline", "/add_inline"), ("async def", "/add"), ("thread", "/add_in_thread"):
            name = f"stepflow_trio on {host}, {kind}"
            own = Candidate(name, command, component, bare, is_worker=True, has_sessions=True)
            listed.append(replace(own, has_callbacks=kind == "async def"))
    if PEER_PYTHON.exists():
        command = [str(PEER_PYTHON), str(WORKERS / "stepflow_py_0_11.py")]
        listed.insert(0, Candidate(PEER, command, is_worker=True, has_callbacks=True))
        command = [str(PEER_PYTHON), str(WORKERS / "fastapi_by_hand.py")]
        listed.insert(1, Candidate("FastAPI by hand", command))
    else:
        print(f"{PEER} and FastAPI are left out: {PEER_PYTHON} does not exist", file=sys.stderr)
    return listed


def measures(seconds: float) -> list[Measure]:
    listed = [Measure(plain(count), posts(count), plain(count)) for count in (1, 64, 512)]
    if seconds < 1:
        print("wrk is left out: it takes whole seconds", file=sys.stderr)
    elif shutil.which("wrk"):
        title = "wrk with 64 connections, requests/s"
        listed.append(Measure(title, wrk, title))
    else:
        print("wrk is left out: it is not installed", file=sys.stderr)
    for count in (64, 512):
        own = Measure(f"a session, {count} in flight, requests/s", session(count), plain(count), has_sessions)
        both = f"a session with our own client, {count} in flight, requests/s"
        listed += [own, replace(own, title=both, drive=link(count))]
    for count in (1, 64):
        title = f"{count} with a callback each, round trips/s"
        listed.append(Measure(title, callbacks(count), title, has_callbacks))
    own = Measure("a session, 64 with a callback each", session(64, calls_back=True), title, has_both)
    both = "a session with our own client, 64 with a callback each"
    return [*listed, own, replace(own, title=both, drive=link(64, calls_back=True))]


def has_sessions(candidate: Candidate) -> bool:
    return candidate.has_sessions


def has_callbacks(candidate: Candidate) -> bool:
    return candidate.has_callbacks


def has_both(candidate: Candidate) -> bool:
    return candidate.has_sessions and candidate.has_callbacks


def plain(connections: int) -> str:
    return f"{connections} connection{'s' if connections > 1 else ''}, requests/s"


def posts(connections: int) -> Drive:
    def drive(server: Server, seconds: float) -> Turn:
        turn = drive_posts(server.port, server.adds, connections, seconds)
        for number, response in turn.answers:
            check(response, body_of(response), number, SUMS[number])
        return turn

    return drive


def wrk(server: Server, seconds: float) -> Turn:
    return drive_wrk(server.port, server.adds[7], '"output":{"c":8}', 64, seconds)


def callbacks(connections: int) -> Drive:
    def drive(server: Server, seconds: float) -> Turn:
        turn = drive_posts(server.port, server.asks, connections, seconds, Callbacks)
        for number, response in turn.answers:
            check(response, events(body_of(response))[-1], number, STATUSES[number])
        check_acceptances(turn)
        return turn

    return drive


def session(in_flight: int, *, calls_back: bool = False) -> Drive:
    def drive(server: Server, seconds: float) -> Turn:
        bodies, outputs = (server.asks, STATUSES) if calls_back else (server.adds, SUMS)
        turn = drive_session(server.port, bodies, in_flight, seconds)
        for number, answer in turn.answers:
            check(b"HTTP/1.1 200 ", answer, number, outputs[number])
        check_acceptances(turn)
        return turn

    return drive


def link(in_flight: int, *, calls_back: bool = False) -> Drive:
    def drive(server: Server, seconds: float) -> Turn:
        component = "/ask" if calls_back else server.candidate.component
        inputs, outputs = (RUNS, STATUSES) if calls_back else (NUMBERS, SUMS)
        turn = drive_link(server.port, component, inputs, in_flight, seconds)
        for number, result in turn.results:
            if result != {"output": outputs[number]}:
                raise GaveUpError(f"a wrong answer to request {number}: {result}")
        return turn

    return drive


def check(response: bytes, answer: bytes, number: int, output: object) -> None:
    told = json.loads(answer)
    if not response.startswith(b"HTTP/1.1 200 ") or told.pop("jsonrpc") != "2.0":
        raise GaveUpError(f"not an answer: {response!r}")
    if told != {"id": identifier(number), "result": {"output": output}}:
        raise GaveUpError(f"a wrong answer to request {number}: {told}")


def check_acceptances(turn: Turn) -> None:
    if wrong := [response for response in turn.acceptances if not response.startswith(b"HTTP/1.1 202 ")]:
        raise GaveUpError(f"not accepted: {wrong[0]!r}")


class Server:
    """One server's process on the first core, ready when it has answered once."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.adds = execute(candidate.component, NUMBERS)
        self.asks = execute("/ask", RUNS)
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        began = time.perf_counter()
        self.process = subprocess.Popen(
            candidate.command,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={"PATH": os.environ.get("PATH", "")},
        )
        os.sched_setaffinity(self.process.pid, CORES[:1])
        try:
            self.port = self.wait_announced()
            if candidate.is_worker:
                drive_posts(self.port, [message("initialize", HELLO, "initialize")], 1, 0)
            posts(1)(self, 0)
        except BaseException:
            self.close()
            raise
        self.start_s = time.perf_counter() - began
        self.idle_mib = self.resident_mib()

    def wait_announced(self) -> int:
        assert self.process.stdout is not None
        announced = self.process.stdout.readline()
        return json.loads(announced)["port"] if announced else self.give_up("it ended")

    def give_up(self, why: str) -> int:
        self.log.seek(0)
        said = self.log.read()[-4000:].decode(errors="replace")
        raise SystemExit(f"{shlex.join(self.process.args)}: {why}\n{said}")

    def cpu_s(self) -> float:
        """The CPU time of all its threads, in user and system mode."""
        after_name = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def measure(self, measure: Measure, seconds: float) -> Figure:
        began_s = self.cpu_s()
        try:
            turn = measure.drive(self, seconds)
        except (GaveUpError, OSError) as exc:
            self.give_up(f"{measure.title}: {exc}")
            raise
        server_us = (self.cpu_s() - began_s) / turn.answered * 1e6
        return Figure(turn.answered / turn.seconds, server_us, turn.driver_s / turn.seconds)

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def run(tested: list[Candidate], asked: list[Measure], rounds: int, seconds: float) -> Results:
    results = Results()
    os.sched_setaffinity(0, CORES[-1:])
    for number in range(1, rounds + 1):
        for candidate in tested:
            print(f"round {number} of {rounds}: {candidate.name}", file=sys.stderr)
            with closing(Server(candidate)) as server:
                results.start_s.setdefault(candidate.name, []).append(server.start_s)
                results.idle_mib.setdefault(candidate.name, []).append(server.idle_mib)
                posts(8)(server, seconds / 4)
                for measure in asked:
                    if measure.suits(candidate):
                        of_measure = results.figures.setdefault(measure.title, {})
                        of_measure.setdefault(candidate.name, []).append(server.measure(measure, seconds))
    return results


def spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:9,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratio(values: Sequence[float], baselines: Sequence[float]) -> str:
    """The median of the ratios within each round."""
    if not baselines:
        return f"{'':8}"
    return f"{statistics.median(v / b for v, b in zip(values, baselines, strict=True)):6.2f} x"


def show(
    results: Results, tested: list[Candidate], asked: list[Measure], rounds: int, seconds: float
) -> None:
    command = shlex.join(["python", "benchmarks/http_worker.py", *sys.argv[1:]])
    print(f"$ {command}\n{platform.machine()}, Python {platform.python_version()}, ", end="")
    pinned = f"server on core {CORES[0]}, driver on core {CORES[-1]}" if CORES[1:] else "one core for both"
    print(f"{pinned}, {rounds} rounds of {seconds:g} s, medians")
    for title, own, digits in ("start to ready, s", results.start_s, 2), ("idle, MiB", results.idle_mib, 0):
        print(f"\n{title}")
        for name, values in own.items():
            print(f"  {name:35} {spread(values, digits)}")
    bare_of = {candidate.name: candidate.bare for candidate in tested}
    for measure in asked:
        if measure.title not in results.figures:
            continue
        compared = results.figures.get(measure.against, {})
        print(f"\n{measure.title:69} {'x peer':>8} {'x bare':>8} ", end="")
        print(f"{'CPU us each':>11} {'x peer':>8} {'x bare':>8}  driver's load")
        for name, own in results.figures[measure.title].items():
            rates, costs = [f.per_second for f in own], [f.server_us for f in own]
            bases = [compared.get(base, []) for base in (PEER, bare_of[name])]
            by_rate = " ".join(ratio(rates, [f.per_second for f in base]) for base in bases)
            by_cost = " ".join(ratio(costs, [f.server_us for f in base]) for base in bases)
            load = statistics.median(f.driver_load for f in own)
            print(f"  {name:35} {spread(rates, 0):31} {by_rate} ", end="")
            print(f"{statistics.median(costs):11,.1f} {by_cost}  {load:6.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="a turn; wrk takes whole ones")
    parser.add_argument("--only", action="append", help="servers whose name holds this; may be repeated")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    tested = [c for c in candidates() if not options.only or any(part in c.name for part in options.only)]
    asked = measures(options.seconds)
    results = run(tested, asked, options.rounds, options.seconds)
    show(results, tested, asked, options.rounds, options.seconds)
    if options.json:
        options.json.write_text(json.dumps(asdict(results), indent=1) + "\n")


if __name__ == "__main__":
    main()
