"""What commands say goes to stderr through here: whoever reads it late, or never, holds nothing up.

As long as stderr takes what is written, it is written at once. What it does not take is kept for a thread to
write when it does, up to a bound; beyond it lines are dropped and counted.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

MAX_UNWRITTEN_BYTES = 2**20
"""So much is kept of what nobody reads."""

PATIENCE_S = 2.0
"""At a command's end, what is left is given up when none of it was taken for so long."""

ToldGap: TypeAlias = Callable[[int], str]
"""What to say in place of so many lines."""


class ErrorWriter:
    """Writes to a descriptor what may be lost. Its methods may be called in any thread, and never raise."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._changed = threading.Condition()  # its lock lets a finalizer log while a line is put
        self._unwritten: deque[bytes | _Gap] = deque()
        self._unwritten_bytes = 0
        self._at = 0
        """So much of the first of them is written."""
        self._is_draining = False
        self._is_broken = False

    def put(self, data: bytes, told_gap: ToldGap) -> None:
        """Write lines now or later, or drop them; ``told_gap`` says how many were. Never waits."""
        with self._changed:
            if self._is_broken:
                return
            if not self._unwritten:
                data = data[self._write(data, is_patient=False) :]
            elif self._unwritten_bytes + len(data) > MAX_UNWRITTEN_BYTES:
                gap = self._unwritten[-1]
                if not isinstance(gap, _Gap):
                    gap = _Gap(told_gap)
                    self._unwritten.append(gap)
                gap.lines += data.count(b"\n")
                return
            if data and not self._is_broken:
                self._unwritten.append(data)
                self._unwritten_bytes += len(data)
                self._start_draining()

    def finish(self) -> None:
        """Wait until all is written, or none of it was taken for `PATIENCE_S` seconds."""
        with self._changed:
            while self._unwritten:
                if not self._changed.wait(PATIENCE_S):
                    return

    def _start_draining(self) -> None:
        if not self._is_draining:
            # It waits where nothing can end the wait, and so must not keep the process.
            thread = threading.Thread(target=self._drain, name="stderr", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be started: the next line tries again
                thread.start()
                self._is_draining = True

    def _drain(self) -> None:
        """Write what is left, until nothing is; in a thread."""
        while True:
            with self._changed:
                if self._is_broken or not self._unwritten:
                    self._is_draining = False
                    return
                first = self._unwritten[0]
                if isinstance(first, _Gap):
                    first = self._unwritten[0] = first.told()
                    self._unwritten_bytes += len(first)
            taken = self._write(first[self._at : self._at + select.PIPE_BUF], is_patient=True)
            with self._changed:
                self._at += taken
                if self._at == len(first) and self._unwritten:
                    self._unwritten.popleft()
                    self._unwritten_bytes -= len(first)
                    self._at = 0
                self._changed.notify_all()

    def _write(self, data: bytes, *, is_patient: bool) -> int:
        """Write what is taken at once, or if ``is_patient`` all of it; how much that was."""
        written = 0
        try:
            while written < len(data) and self._is_writable(None if is_patient else 0):
                # What one write takes fits into a pipe that has room.
                written += os.write(self._descriptor, data[written : written + select.PIPE_BUF])
        except BlockingIOError:
            pass
        except OSError:
            # Nobody will ever read it; the exit code still says how it went.
            with self._changed:
                self._is_broken = True
                self._unwritten.clear()
        return written

    def _is_writable(self, timeout_ms: int | None) -> bool:
        watch = select.poll()
        watch.register(self._descriptor, select.POLLOUT)
        return bool(watch.poll(timeout_ms))


class _Gap:
    """Where lines were dropped."""

    def __init__(self, told_gap: ToldGap) -> None:
        self._told_gap = told_gap
        self.lines = 0

    def told(self) -> bytes:
        return self._told_gap(self.lines).encode() + b"\n"


_writers: dict[int, ErrorWriter] = {}
"""By descriptor."""


def write_error(text: str, told_gap: ToldGap) -> None:
    """Write a line, or several, to stderr, as far as it takes them; see `ErrorWriter.put`."""
    stream = sys.stderr
    if stream is None:  # pyright: ignore[reportUnnecessaryComparison]: it is, when closed at the start
        return
    text += "\n"
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # it is no file
        with contextlib.suppress(OSError, ValueError):
            stream.write(text)
        return
    if descriptor not in _writers:
        _writers[descriptor] = ErrorWriter(descriptor)
    _writers[descriptor].put(text.encode(stream.encoding, "backslashreplace"), told_gap)


def finish_errors() -> None:
    """Let what was said be read, as far as anybody reads it; see `ErrorWriter.finish`."""
    for writer in _writers.values():
        writer.finish()
    _writers.clear()
