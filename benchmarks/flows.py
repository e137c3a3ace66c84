"""How many steps a second does a runtime execute, and what does an item that has ended cost?

Flows of one step, of ten in a chain and of ten side by side, on this library's runtime with its workers over
stdio and over HTTP, and on the public stepflow-orchestrator 0.11.1 with workers of stepflow-py 0.11.2; and of
the runtimes' own components alone. Each as one run at a time, as 32 runs at once, and as one batch. Both
runtimes are servers of their own, asked by one driver over REST, with their histories in memory and their
logs at warnings; ours also as it is embedded in an application. A round is one turn of each system, so that a
machine that slows down slows all of them. Printed are medians over the rounds, medians of the ratios within a
round, and the processor time of runtime and workers per step. Every answer is checked after the clock has
stopped.

    python benchmarks/flows.py [--rounds 3] [--seconds 1] [--items 1000] [--series 100 1000 …]
                               [--memory-items 10000] [--only NAME]... [--json FILE]

The releases must be in virtual environments of their own: `bash .ci/peers` makes them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from http_drivers import GaveUpError, body_of, drive_posts

WORKERS = Path(__file__).parent / "workers"
PEERS = Path(os.environ.get("STEPFLOW_TRIO_PEERS", Path.home() / ".cache" / "stepflow-trio" / "peers"))
PEER_PYTHON = PEERS / "stepflow-py-0.11.2" / "bin" / "python"
PEER_SERVER = "stepflow-orchestrator-0.11.1"
PEER, PEER_BUILTIN = (
    "stepflow-orchestrator 0.11.1, stepflow-py 0.11.2",
    "stepflow-orchestrator 0.11.1, builtin",
)
LONG_S = 600
INPUTS_AT_HAND = 1024


# ---- flows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """How the steps of a flow stand."""

    name: str
    steps: int
    side_by_side: bool = False


SHAPES = [Shape("1 step", 1), Shape("10 in a chain", 10), Shape("10 side by side", 10, side_by_side=True)]


def adding(component: str, shape: Shape) -> dict[str, Any]:
    """Adds to a number once a step."""

    def step(number: int) -> dict[str, Any]:
        first = number == 0 or shape.side_by_side
        a = {"$input": "$.a"} if first else {"$step": f"s{number - 1}", "path": "$.c"}
        return {
            "id": f"s{number}",
            "component": component,
            "input": {"a": a, "b": number if shape.side_by_side else 1},
        }

    return written(shape, step, "$.c")


def sums(number: int, shape: Shape) -> Any:
    """What ``adding`` comes to with the input of this number."""
    if shape.side_by_side:
        return {f"s{step}": number + step for step in range(shape.steps)}
    return number + shape.steps


def messaging(component: str, shape: Shape) -> dict[str, Any]:
    """Makes a message of a text, and one of that."""

    def step(number: int) -> dict[str, Any]:
        first = number == 0 or shape.side_by_side
        text = {"$input": "$.text"} if first else {"$step": f"s{number - 1}", "path": TEXT}
        return {"id": f"s{number}", "component": component, "input": {"user_prompt": text}}

    return written(shape, step, TEXT)


TEXT = "$.messages[0].content"


def texts(number: int, shape: Shape) -> Any:
    """What ``messaging`` comes to with the input of this number."""
    text = f"Say hello to number {number}."
    return {f"s{step}": text for step in range(shape.steps)} if shape.side_by_side else text


def written(shape: Shape, step: Callable[[int], dict[str, Any]], path: str) -> dict[str, Any]:
    output: dict[str, Any] = {"$step": f"s{shape.steps - 1}", "path": path}
    if shape.side_by_side:
        output = {f"s{number}": {"$step": f"s{number}", "path": path} for number in range(shape.steps)}
    return {"name": shape.name, "steps": [step(number) for number in range(shape.steps)], "output": output}


# ---- systems --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A runtime, how it is reached, and the component that its flows use."""

    name: str
    way: str
    """theirs; ours, which is as theirs a server asked over REST; embedded."""
    peer: str
    """Whom it is compared with."""
    worker: Sequence[str] = ()
    """Of its only plugin; without one flows use builtin components."""
    transport: str = "stdio"
    component: str = "/builtin/create_messages"

    def flow(self, shape: Shape) -> dict[str, Any]:
        return (adding if self.worker else messaging)(self.component, shape)

    def input(self, number: int) -> dict[str, Any]:
        return {"a": number} if self.worker else {"text": f"Say hello to number {number}."}

    def output(self, number: int, shape: Shape) -> Any:
        return (sums if self.worker else texts)(number, shape)

    def config(self) -> dict[str, Any]:
        plugins: dict[str, Any] = {"builtin": {"type": "builtin"}}
        routes = {"/builtin/{*component}": [{"plugin": "builtin"}]}
        if self.worker:
            command, *arguments = self.worker
            env = {"PATH": os.environ.get("PATH", "")}
            plugins["w"] = {"type": "stepflow", "command": command, "args": arguments, "env": env}
            if self.transport == "stdio":
                plugins["w"]["transport"] = "stdio"
            routes["/w/{*component}"] = [{"plugin": "w"}]
        return {"plugins": plugins, "routes": routes}

    def command(self, config: Path) -> list[str]:
        if self.way == "embedded":
            return [sys.executable, str(WORKERS / "embedded_runtime.py"), str(config)]
        if self.way == "ours":
            serve = [sys.executable, "-m", "stepflow_trio", "serve", "--port", "0", "--config", str(config)]
            return [*serve, "--log-level", "warning"]
        logs = ["--log-level", "warn", "--other-log-level", "warn", "--log-destination", "file"]
        logs += ["--log-file", str(config.parent / "log")]
        return [str(peer_server()), "--port", "0", "--config", str(config), *logs]


def peer_server() -> Path | None:
    found = (PEERS / PEER_SERVER).glob("lib/python*/site-packages/stepflow_orchestrator/bin/stepflow-server")
    return next(found, None)


def candidates() -> list[Candidate]:
    listed: list[Candidate] = []
    if peer_server() is not None and PEER_PYTHON.exists():
        worker = [str(PEER_PYTHON), str(WORKERS / "stepflow_py_0_11.py")]
        listed.append(Candidate(PEER, "theirs", PEER, worker, "http", "/w/add"))
    else:
        print(f"the public releases are left out: they are not all in {PEERS}", file=sys.stderr)
    for way, suffix in ("ours", ""), ("embedded", ", embedded"):
        for transport, program in ("stdio", "ours.py"), ("http", "ours_http.py"):
            worker = [sys.executable, str(WORKERS / program), *(["h11"] if transport == "http" else [])]
            for kind, component in ("inline", "/w/add_inline"), ("async def", "/w/add"):
                name = f"stepflow_trio, {transport}, {kind}{suffix}"
                listed.append(Candidate(name, way, PEER, worker, transport, component))
    if peer_server() is not None:
        listed.append(Candidate(PEER_BUILTIN, "theirs", PEER_BUILTIN))
    listed.append(Candidate("stepflow_trio, builtin", "ours", PEER_BUILTIN))
    listed.append(Candidate("stepflow_trio, builtin, embedded", "embedded", PEER_BUILTIN))
    return listed


class System:
    """A runtime's process, in a session of its own with its workers, ready when a flow has succeeded."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.directory = tempfile.TemporaryDirectory()
        self.flow_ids: dict[str, str] = {}
        config = Path(self.directory.name) / "stepflow-config.json"
        config.write_text(json.dumps(candidate.config()))
        self.errors = (Path(self.directory.name) / "stderr").open("w+")
        self.process = subprocess.Popen(
            candidate.command(config),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
        )
        try:
            self.port = json.loads(self.line())["port"]
            self.turn(SHAPES[0], 0, 0, 1)
        except BaseException:
            self.close()
            raise

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise GaveUpError(f"{self.candidate.name} ended: {self.errors.read()[-4000:]}")
        return line

    def request(self, method: str, path: str, body: Any) -> Any:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=LONG_S)
        with closing(connection):
            content = json.dumps(body).encode()
            connection.request(method, f"/api/v1{path}", content, {"content-type": "application/json"})
            response = connection.getresponse()
            return checked_answer(response.status, response.read())

    def turn(self, shape: Shape, runs_at_once: int, seconds: float, items: int) -> tuple[int, float]:
        """Runs of one item for so long; with ``runs_at_once`` 0 one batch. The steps, and the time."""
        first = time.monotonic_ns() % 1_000_000
        numbers = range(first, first + (items if not runs_at_once else INPUTS_AT_HAND))
        inputs = [self.candidate.input(number) for number in numbers]
        if self.candidate.way == "embedded":
            took, answers = self.turn_embedded(shape, inputs, runs_at_once, seconds)
        elif runs_at_once:
            took, answers = self.turn_posts(shape, inputs, runs_at_once, seconds)
        else:
            flow_id = self.stored(shape)
            began = time.perf_counter()
            asked = {"flowId": flow_id, "input": inputs, "wait": True, "timeoutSecs": LONG_S}
            run = self.request("POST", "/runs", asked)
            took = time.perf_counter() - began
            answers = outputs(run)
        for index, output in answers:
            expected = self.candidate.output(numbers[index], shape)
            if output != expected:
                raise GaveUpError(f"{self.candidate.name}: {output} where {expected} was expected")
        if not runs_at_once and [index for index, _ in answers] != list(range(items)):
            raise GaveUpError(f"{self.candidate.name}: {len(answers)} results of {items}")
        return len(answers) * shape.steps, took

    def turn_embedded(
        self, shape: Shape, inputs: list[Any], runs_at_once: int, seconds: float
    ) -> tuple[float, list[tuple[int, Any]]]:
        asked = {"flow": self.candidate.flow(shape), "input": inputs}
        assert self.process.stdin is not None
        told = {**asked, "runs_at_once": runs_at_once, "seconds": seconds}
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.line())
        return answer["seconds"], [(index, output) for index, output in answer["answers"]]

    def turn_posts(
        self, shape: Shape, inputs: list[Any], runs_at_once: int, seconds: float
    ) -> tuple[float, list[tuple[int, Any]]]:
        flow_id = self.stored(shape)
        bodies = [json.dumps({"flowId": flow_id, "input": [i], "wait": True}).encode() for i in inputs]
        turn = drive_posts(self.port, bodies, runs_at_once, seconds, target=b"/api/v1/runs")
        answers: list[tuple[int, Any]] = []
        for number, response in turn.answers:
            status = int(response.split(None, 2)[1])
            [(_, output)] = outputs(checked_answer(status, body_of(response)))
            answers.append((number, output))
        return turn.seconds, answers

    def stored(self, shape: Shape) -> str:
        if shape.name not in self.flow_ids:
            answer = self.request("POST", "/flows", {"flow": self.candidate.flow(shape)})
            self.flow_ids[shape.name] = answer["flowId"]
        return self.flow_ids[shape.name]

    def pids(self) -> list[int]:
        """The runtime and its workers."""
        found = [self.process.pid]
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(entry.read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == self.process.pid:
                found.append(int(entry.parent.name))
        return found

    def cpu_s(self) -> float:
        """Of runtime and workers, in user and system mode."""
        total = 0
        for pid in self.pids():
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(after_name[11]) + int(after_name[12])
        return total / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Of the runtime alone."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.errors.close()
        self.directory.cleanup()


class TooMuchError(Exception):
    """The server does not take a body of this length."""


def checked_answer(status: int, content: bytes) -> Any:
    if status == 413:
        raise TooMuchError(content)
    if status != 200:
        raise GaveUpError(f"HTTP {status}: {content[:2000]!r}")
    return json.loads(content)


def outputs(run: dict[str, Any]) -> list[tuple[int, Any]]:
    """What the items of a run came to, by their indices."""
    if run["status"] != "completed":
        raise GaveUpError(f"a run is {run['status']}: {json.dumps(run)[:2000]}")
    results = sorted(run["results"], key=lambda item: item["itemIndex"])
    return [(item["itemIndex"], item["result"]["result"]) for item in results]


# ---- measures -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """What one turn gave."""

    steps_per_s: float
    cpu_us: float
    """Of runtime and workers, per step."""


@dataclass
class Results:
    """By measure and then by candidate; one value for each round."""

    figures: dict[str, dict[str, list[Figure]]] = field(default_factory=dict[str, dict[str, list[Figure]]])
    series: dict[str, dict[str, list[Figure]]] = field(default_factory=dict[str, dict[str, list[Figure]]])
    item_bytes: dict[str, dict[str, list[float]]] = field(default_factory=dict[str, dict[str, list[float]]])

    def add(self, to: dict[str, dict[str, list[Figure]]], title: str, name: str, figure: Figure) -> None:
        to.setdefault(title, {}).setdefault(name, []).append(figure)


def measured(system: System, shape: Shape, runs_at_once: int, seconds: float, items: int) -> Figure:
    began_s = system.cpu_s()
    steps, took = 0, 0.0
    while took < seconds or not steps:
        more, seconds_more = system.turn(shape, runs_at_once, seconds, items)
        steps, took = steps + more, took + seconds_more
    return Figure(steps / took, (system.cpu_s() - began_s) / steps * 1e6)


def run(tested: list[Candidate], options: argparse.Namespace) -> Results:
    results = Results()
    loads = [(1, "one run at a time"), (32, "32 runs at once"), (0, f"one batch of {options.items:,}")]
    for number in range(1, options.rounds + 1):
        for candidate in tested:
            print(f"round {number} of {options.rounds}: {candidate.name}", file=sys.stderr)
            with closing(System(candidate)) as system:
                for shape in SHAPES:
                    system.turn(shape, 4, options.seconds / 4, 0)
                    for runs_at_once, load in loads:
                        figure = measured(system, shape, runs_at_once, options.seconds, options.items)
                        results.add(results.figures, f"{shape.name}, {load}", candidate.name, figure)
        of_runtimes = [candidate for candidate in tested if not candidate.worker]
        for candidate in of_runtimes if options.series else ():
            print(f"round {number} of {options.rounds}: batches, {candidate.name}", file=sys.stderr)
            with closing(System(candidate)) as system:
                add_series(results, system, options.series)
        for candidate in of_runtimes if options.memory_items else ():
            print(f"round {number} of {options.rounds}: memory, {candidate.name}", file=sys.stderr)
            for shape in SHAPES[:2]:
                with closing(System(candidate)) as system:
                    title = f"{shape.name}, bytes an item"
                    own = results.item_bytes.setdefault(title, {}).setdefault(candidate.name, [])
                    own.append(bytes_an_item(system, shape, options.memory_items))
    return results


def add_series(results: Results, system: System, sizes: Iterable[int]) -> None:
    """Batches of these sizes, without those that would take a minute, by the ones before, or are refused."""
    for shape in SHAPES[:2]:
        slowest = float("inf")
        for size in sorted(sizes):
            if size * shape.steps / slowest > 60:
                continue
            try:
                figure = measured(system, shape, 0, 0.2, size)
            except TooMuchError as exc:
                print(f"{system.candidate.name} does not take {size:,} items: {exc}", file=sys.stderr)
                continue
            # A rate that falls goes on falling: with the square of the size, if it is in proportion to it.
            slowest = figure.steps_per_s if system.candidate.way != "theirs" else figure.steps_per_s / 3
            results.add(results.series, f"{shape.name}, {size:,} items", system.candidate.name, figure)


def bytes_an_item(system: System, shape: Shape, items: int) -> float:
    """How much a runtime grows with each item that has ended, in batches of 1,000."""
    for _ in range(3):
        system.turn(shape, 0, 0, min(items, 1000))
    began = system.resident_bytes()
    for _ in range(max(1, items // 1000)):
        system.turn(shape, 0, 0, min(items, 1000))
    return (system.resident_bytes() - began) / items


def spread(values: Sequence[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:9,.0f} ({low:,.0f} to {high:,.0f})"


def ratio(values: Sequence[float], baselines: Sequence[float]) -> str:
    """The median of the ratios within each round."""
    if not baselines:
        return f"{'':8}"
    return f"{statistics.median(v / b for v, b in zip(values, baselines, strict=True)):6.2f} x"


def show(results: Results, tested: list[Candidate], options: argparse.Namespace) -> None:
    command = shlex.join(["python", "benchmarks/flows.py", *sys.argv[1:]])
    print(
        f"$ {command}\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ",
        end="",
    )
    print(f"{options.rounds} rounds of {options.seconds:g} s, medians")
    peer_of = {candidate.name: candidate.peer for candidate in tested}
    for title, figures in [*results.figures.items(), *results.series.items()]:
        print(f"\n{title + ', steps/s':75} {'x peer':>8} {'CPU us a step':>15} {'x peer':>8}")
        for name, own in figures.items():
            compared = figures.get(peer_of[name], [])
            rates, costs = [f.steps_per_s for f in own], [f.cpu_us for f in own]
            by_rate = ratio(rates, [f.steps_per_s for f in compared])
            by_cost = ratio(costs, [f.cpu_us for f in compared]) if all(f.cpu_us for f in compared) else ""
            print(f"  {name:48} {spread(rates):24} {by_rate} {statistics.median(costs):15,.1f} {by_cost}")
    for title, grown in results.item_bytes.items():
        print(f"\n{title}")
        for name, values in grown.items():
            print(f"  {name:48} {spread(values):24} {ratio(values, grown.get(peer_of[name], []))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1, help="a turn, at least")
    parser.add_argument("--items", type=int, default=1000, help="of a batch")
    sizes = [100, 1000, 3000, 10_000, 100_000]
    parser.add_argument("--series", type=int, nargs="*", default=sizes, help="sizes of batches to compare")
    parser.add_argument("--memory-items", type=int, default=10_000, help="0: memory is not measured")
    parser.add_argument("--only", action="append", help="systems whose name holds this; may be repeated")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    tested = [c for c in candidates() if not options.only or any(part in c.name for part in options.only)]
    results = run(tested, options)
    show(results, tested, options)
    if options.json:
        options.json.write_text(json.dumps(asdict(results), indent=1) + "\n")


if __name__ == "__main__":
    main()
