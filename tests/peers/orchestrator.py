"""The public orchestrator as a process: started, driven over its REST interface, and gone at the end."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

from releases import server_binary

START_S = 30
ANSWER_S = 20
STOP_S = 10


class Refused(Exception):
    """The orchestrator answered with an HTTP error."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status}: {body}")
        self.status = status


class NotStarted(Exception):
    """The server ended instead of listening; its release, and what it said."""


class Orchestrator:
    """A running server; its workers are those of the configuration that it was started with."""

    def __init__(self, release: str, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self.release = release
        self.version = tuple(map(int, release.split(".")))
        self.process = process
        self.port = port
        self._log = log
        self._log_seen = 0

    # ---- REST -------------------------------------------------------------------------------------------

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """One call; the JSON that came."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        try:
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, f"/api/v1{path}", content, {"content-type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status >= 300:
            raise Refused(response.status, text)
        return json.loads(text)

    def store(self, flow: Mapping[str, Any]) -> str:
        """Store a flow; its id."""
        stored = self.request("POST", "/flows", {"flow": flow})
        assert stored["flowId"], stored
        return stored["flowId"]

    def results(self, flow: Mapping[str, Any], inputs: Sequence[Any] = (None,), **more: Any) -> list[Any]:
        """Run a flow with these inputs; the flow result of each, in their order."""
        # 0.9 always waits, and does not know the word.
        wait = {"wait": True} if self.version >= (0, 10) else {}
        body = {"flowId": self.store(flow), "input": list(inputs), **wait, **more}
        run_id = self.request("POST", "/runs", body)["runId"]
        items = self.request("GET", f"/runs/{run_id}/items")["items"]
        return [item["result"] for item in sorted(items, key=lambda item: item["itemIndex"])]

    def run(self, flow: Mapping[str, Any], input: Any = None) -> Any:
        """Run a flow that succeeds; its result."""
        [result] = self.results(flow, [input])
        assert result["outcome"] == "success", result
        return result["result"]

    def failure(self, flow: Mapping[str, Any], input: Any = None) -> dict[str, Any]:
        """Run a flow that fails; its error."""
        [result] = self.results(flow, [input])
        assert result["outcome"] == "failed", result
        return result["error"]

    def blob(self, data: Any) -> str:
        """Store data as a blob; its id. From 0.10."""
        return self.request("POST", "/blobs", {"data": data, "blobType": "data"})["blobId"]

    # ---- its log and its processes ----------------------------------------------------------------------

    def new_log(self) -> str:
        """What it has logged since this was last asked."""
        text = "".join(file.read_text(errors="replace") for file in sorted(self._log.glob("*")))
        new, self._log_seen = text[self._log_seen :], len(text)
        return new

    def processes(self) -> list[int]:
        """It and its workers: all that runs in the session that it was started in."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    state, _, _, session = (entry / "stat").read_text().rpartition(") ")[2].split()[:4]
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(entry.name))
        return found

    def end(self, how: signal.Signals, *, grace_s: float = 0) -> list[int]:
        """End the server with this signal; those of its processes that outlived it by ``grace_s`` seconds.

        They are gone as well now.
        """
        self.process.send_signal(how)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        left = [pid for pid in self.processes() if not is_gone(pid, within_s=grace_s)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            assert is_gone(pid, within_s=STOP_S)
        return left


def is_gone(pid: int, *, within_s: float) -> bool:
    """Whether a process, ours or not, has ended or does so in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within_s)[0])
    finally:
        os.close(descriptor)


@contextmanager
def open_orchestrator(
    release: str, directory: Path, config: Mapping[str, Any] | Path, *, leaves: bool = False
) -> Generator[Orchestrator]:
    """A server of this release with this configuration, or that of a file, its log below ``directory``.

    No process of it is left in the end; unless ``leaves``, it must have ended all of its own by itself.
    """
    directory.mkdir(parents=True, exist_ok=True)
    configuration = config if isinstance(config, Path) else directory / "stepflow-config.json"
    if not isinstance(config, Path):
        configuration.write_text(json.dumps(config))
    log = directory / "log"
    command = [str(server_binary(release)), "--port", "0", "--config", str(configuration)]
    command += ["--log-destination", "file", "--log-file", str(log), "--other-log-level", "warn"]
    errors = directory / "stderr"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
        ) as process,
    ):
        orchestrator = Orchestrator(release, process, 0, log)
        left: list[int] = []
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise NotStarted(release, errors.read_text() + orchestrator.new_log())
            orchestrator.port = json.loads(line)["port"]
            assert orchestrator.request("GET", "/health")["version"] == release
            yield orchestrator
        finally:
            was_ended = process.poll() is not None
            left = orchestrator.end(signal.SIGTERM, grace_s=0 if was_ended else STOP_S)
    assert leaves or not left, f"stepflow-server {release} left processes: {left}"


@contextmanager
def open_worker(command: Sequence[str | Path], port: int = 0) -> Generator[tuple[subprocess.Popen[str], int]]:
    """A worker that nobody but the test owns, and the port that it said it listens on."""
    with subprocess.Popen([*map(str, command), str(port)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, f"{command} ended without a port"
            yield process, json.loads(line)["port"]
        finally:
            process.kill()


class WorkerError(NamedTuple):
    """The error that a worker answered with, as far as the orchestrator tells it."""

    code: int
    message: str
    data: Any


def worker_error(error: Mapping[str, Any]) -> WorkerError:
    """What a worker said, of the error of a run: up to 0.10 it is text in a stack."""
    if error["code"] != 500:
        return WorkerError(error["code"], error["message"], error.get("data"))
    last = error["data"]["stack"][-1]["error"]
    said = re.fullmatch(r"component server error\((-?\d+)\): (.*)", last, re.DOTALL)
    assert said, last
    return WorkerError(int(said[1]), said[2], None)


def until(condition: Callable[[], object], *, within_s: float = 20) -> None:
    """Wait for what happens in another process."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.01)  # noqa: TID251 — what is waited for happens in another process


def plugin_of(where: Sequence[str | Path] | int, **env: str) -> dict[str, Any]:
    """The configuration of a worker: its command, or the port of one that runs."""
    if isinstance(where, int):
        return {"type": "stepflow", "url": f"http://127.0.0.1:{where}"}
    command, *arguments = map(str, where)
    return {"type": "stepflow", "command": command, "args": arguments, "env": env}


def configuration(plugins: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A configuration with these plugins, each with its components below its name."""
    return {
        "plugins": {**plugins, "builtin": {"type": "builtin"}},
        "routes": {f"/{name}/{{*component}}": [{"plugin": name}] for name in [*plugins, "builtin"]},
        "retry": {"transportMaxRetries": 3, "backoff": {"type": "constant", "delayMs": 10}},
        **more,
    }


def one_step(component: str, input: Any, **more: Any) -> dict[str, Any]:
    """A flow of one step."""
    step = {"id": "only", "component": component, "input": input, **more}
    return {"name": "tested", "steps": [step], "output": {"$step": "only"}}


def given(component: str, /, **input: Any) -> dict[str, Any]:
    """A flow of one step with this input."""
    return one_step(component, {"$literal": input})
