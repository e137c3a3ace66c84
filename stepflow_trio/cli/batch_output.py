"""Where a batch's results go: a line each, as soon as it and all before it are there."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import trio

from stepflow_trio.cli.standard_output import raise_stdout_error, require_stdout
from stepflow_trio.errors import StepflowError
from stepflow_trio.flows.results import FlowResult
from stepflow_trio.protocol.codec import encode_json
from stepflow_trio.runtime.events import Event, ItemEnded, RunStarted


class BatchOutput:
    """Writes results in the order of the inputs; `open_batch_output` makes it.

    What one write takes fits into a pipe that has room, so a reader that is slow holds nothing up.
    """

    def __init__(self, descriptor: int, path: Path | None) -> None:
        self._descriptor = descriptor
        self._path = path
        self._run_id: str | None = None
        self._next_index = 0
        self._held: dict[int, FlowResult] = {}
        """Results behind an item that is not finished."""
        self._unwritten = bytearray()
        self._more = trio.Event()
        self.lines_written = 0

    def observe(self, event: Event) -> None:
        """Take in an event: the results of the first run's items."""
        if isinstance(event, RunStarted) and self._run_id is None:
            self._run_id = event.run_id
        elif isinstance(event, ItemEnded) and event.run_id == self._run_id:
            self.take(event.item_index, event.result)

    def take(self, index: int, result: FlowResult) -> None:
        """Take in an item's result, unless it is there already. Writes nothing."""
        if index < self._next_index:
            return
        self._held.setdefault(index, result)
        while self._next_index in self._held:
            self._unwritten += encode_json(self._held.pop(self._next_index).to_json()) + b"\n"
            self._next_index += 1
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
            raise _unwritable(self._path, exc) from exc
        self.lines_written += self._unwritten.count(b"\n", 0, taken)
        del self._unwritten[:taken]


@contextmanager
def open_batch_output(path: Path | None) -> Generator[BatchOutput]:
    """Where a batch's results go for as long as the block lasts: an emptied file, or None: stdout.

    Raises:
        StepflowError: it cannot be written.
    """
    if path is None:
        require_stdout()
        yield BatchOutput(sys.stdout.fileno(), None)
        return
    try:
        file = path.open("wb", buffering=0)
    except OSError as exc:
        raise _unwritable(path, exc) from exc
    with file:
        yield BatchOutput(file.fileno(), path)


def _unwritable(path: Path, exc: OSError) -> StepflowError:
    return StepflowError(f"{path} cannot be written: {exc.strerror}")
