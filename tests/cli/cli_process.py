"""The command line as its users have it: a process, its exit code, its stdout and its stderr."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parent / "project"
CONFIG = PROJECT / "stepflow-config.yml"

DEADLINE_S = 60.0
"""For what takes a fraction of a second on a machine that has nothing else to do."""

COMMAND = [sys.executable, "-m", "stepflow_trio"]

# Whoever runs the tests in the background has SIGINT ignored, which children inherit.
IN_FOREGROUND = [sys.executable, "-I", "-S", str(PROJECT / "in_foreground.py"), *COMMAND]


@dataclass(frozen=True)
class Finished:
    code: int
    stdout: str
    stderr: str


class Started:
    """A command that runs, in a session of its own as under a terminal."""

    def __init__(self, *arguments: object, prefix: Sequence[str] = (), **settings: Any) -> None:
        self.process = subprocess.Popen(
            [*prefix, *IN_FOREGROUND, *map(str, arguments)],
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "start_new_session": True,
                **settings,
            },
        )
        self._stderr = b""

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read stderr until it holds ``pattern``."""
        assert self.process.stderr is not None
        give_up_at = time.monotonic() + DEADLINE_S
        while (found := re.search(pattern, self._stderr.decode())) is None:
            ready, _, _ = select.select([self.process.stderr], [], [], give_up_at - time.monotonic())
            data = os.read(self.process.stderr.fileno(), 65536) if ready else b""
            assert data, f"stderr never said {pattern!r}, but:\n{self._stderr.decode()}"
            self._stderr += data
        return found

    def signal(self, number: int) -> None:
        """Send a signal as a terminal does: to the whole process group."""
        os.killpg(self.process.pid, number)

    def signal_until_over(self, number: int) -> None:
        """Send a signal, and again if need be.

        Python heeds one that comes in the microseconds before a call that blocks only with the next one.
        """
        give_up_at = time.monotonic() + DEADLINE_S
        while self.process.poll() is None and time.monotonic() < give_up_at:
            self.signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)

    def finish(self) -> Finished:
        stdout, stderr = self.process.communicate(timeout=DEADLINE_S)
        return Finished(self.process.returncode, stdout.decode(), (self._stderr + (stderr or b"")).decode())


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
