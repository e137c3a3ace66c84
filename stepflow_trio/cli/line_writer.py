"""Lines on their way to stdout or a file while a run goes on: whoever reads them slowly holds nothing up."""

from __future__ import annotations

import os
import select
from pathlib import Path

import trio

from stepflow_trio.cli.standard_output import raise_stdout_error
from stepflow_trio.errors import StepflowError


class LineWriter:
    """Writes what it was given, in that order, as soon as it is taken.

    What one write takes fits into a pipe that has room, so a reader that is slow holds nothing up.

    Args:
        descriptor: where to.
        path: the file that it is; None: stdout.
    """

    def __init__(self, descriptor: int, path: Path | None = None) -> None:
        self._descriptor = descriptor
        self._path = path
        self._unwritten = bytearray()
        self._more = trio.Event()
        self.lines_written = 0

    def put(self, data: bytes) -> None:
        """Take something to write. Writes nothing."""
        self._unwritten += data
        self._more.set()

    async def keep_writing(self) -> None:
        """Write what there is as soon as it can be taken, until cancelled.

        Raises:
            BrokenPipeError: nobody reads stdout any more.
            StepflowError: it cannot be written.
        """
        while True:
            while self._unwritten:
                try:
                    await trio.lowlevel.wait_writable(self._descriptor)
                except PermissionError:  # a regular file: always
                    await trio.lowlevel.checkpoint()
                self._write_some()
            self._more = trio.Event()
            await self._more.wait()

    def finish(self) -> None:
        """Write what is left, however long it takes.

        Raises:
            BrokenPipeError: nobody reads stdout any more.
            StepflowError: it cannot be written.
        """
        while self._unwritten:
            self._write_some()

    def _write_some(self) -> None:
        try:
            taken = os.write(self._descriptor, self._unwritten[: select.PIPE_BUF])
        except OSError as exc:
            if self._path is None:
                raise_stdout_error(exc)
            raise unwritable(self._path, exc) from exc
        self.lines_written += self._unwritten.count(b"\n", 0, taken)
        del self._unwritten[:taken]


def unwritable(path: Path, exc: OSError) -> StepflowError:
    """That a file cannot be written, and why."""
    return StepflowError(f"{path} cannot be written: {exc.strerror}")
