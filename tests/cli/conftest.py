"""Fixtures of the command line's tests."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from cli_process import COMMAND, DEADLINE_S, Finished, Started

from stepflow_trio.cli.exits import run_command_line


@pytest.fixture
def start() -> Generator[Callable[..., Started]]:
    """Start a command; what still runs at the end of the test is killed."""
    with contextlib.ExitStack() as ending:

        def start_command(*arguments: object, **settings: Any) -> Started:
            started = Started(*arguments, **settings)

            def end() -> None:
                if started.process.poll() is None:
                    started.signal(signal.SIGKILL)
                for stream in (started.process.stdout, started.process.stderr, started.process.stdin):
                    if stream is not None:
                        stream.close()
                started.process.wait()

            ending.callback(end)
            return started

        yield start_command


@pytest.fixture
def cli() -> Callable[..., Finished]:
    """Run a command to its end."""

    def run(*arguments: object, stdin: str = "", **settings: Any) -> Finished:
        ran = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            input=stdin.encode(),
            capture_output=True,
            timeout=DEADLINE_S,
            **settings,
        )
        return Finished(ran.returncode, ran.stdout.decode(), ran.stderr.decode())

    return run


@pytest.fixture
def cli_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Finished]:
    """Run a command to its end in this process and in ``tmp_path``: for those that end before they begin."""

    def run(*arguments: object, stdin: str = "") -> Finished:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = run_command_line([str(argument) for argument in arguments])
        return Finished(code, *capsys.readouterr())

    return run


@pytest.fixture
def flow(tmp_path: Path) -> Callable[..., Path]:
    """Write a flow of one step: its id is ``only``, and its output is the flow's."""

    def write(component: str, input: str = "{}", *, more: str = "") -> Path:
        path = tmp_path / "flow.yaml"
        text = (
            f"name: test\ndescription: A flow of the tests.\n"
            f"steps:\n  - id: only\n    component: {component}\n    input: {input}\n{more}"
            f"output: {{ $step: only }}\n"
        )
        path.write_text(text, encoding="utf-8")
        return path

    return write
