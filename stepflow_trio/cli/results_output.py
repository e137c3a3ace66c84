"""Where the results of a run go: stdout or a file; of a batch a line each, as soon as it can be written."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TextIO

from stepflow_trio.cli.exits import Unusable
from stepflow_trio.cli.line_writer import LineWriter, unwritable
from stepflow_trio.cli.standard_output import require_stdout, write_json, write_stdout
from stepflow_trio.flows.results import FlowResult
from stepflow_trio.protocol.codec import encode_json
from stepflow_trio.runtime.events import Event, ItemEnded, RunStarted


class ResultsOutput:
    """Writes flow results as JSON: one value, or for a batch one a line.

    Made before the run, so that an output that cannot be written is found before the work is done.

    Args:
        path: the file; None: stdout.

    Raises:
        Unusable: the file could not be written.
    """

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path is not None else None
        if path is None or self._path is None:
            return
        directory = self._path.parent
        if self._path.is_dir():
            raise Unusable("is a directory; --output names a file", path)
        if not directory.is_dir():
            raise Unusable(f"there is no directory {directory}", path)
        if not os.access(self._path if self._path.exists() else directory, os.W_OK):
            raise Unusable("may not be written", path)

    def require_other_than(self, sources: Mapping[str, str]) -> None:
        """Raise `Unusable` where writing would overwrite one of the files that are read, by what they are."""
        if self._path is None or not self._path.is_file():
            return
        for what, source in sources.items():
            if os.path.isfile(source) and self._path.samefile(source):
                raise Unusable(f"is {what} itself, which would be overwritten", str(self._path))

    def write(self, result: FlowResult) -> None:
        """Write the result of a run that is no batch.

        Raises:
            BrokenPipeError: nobody reads stdout any more.
            StepflowError: it could not be written.
        """
        if self._path is None and _is_terminal(sys.stdout):
            # For a reader: as many lines as it has members.
            write_json(result.to_json())
            return
        data = encode_json(result.to_json()) + b"\n"
        if self._path is None:
            write_stdout(data)
            return
        try:
            self._path.write_bytes(data)
        except OSError as exc:
            raise unwritable(self._path, exc) from exc

    def open_batch(self) -> AbstractContextManager[BatchOutput]:
        """Where the results of a batch go while the block lasts; see `open_batch_output`."""
        return open_batch_output(self._path)

    @property
    def is_on_screen(self) -> bool:
        """Whether it goes where progress is shown, so that each would write over the other."""
        return self._path is None and _is_terminal(sys.stdout) and _is_terminal(sys.stderr)


class BatchOutput(LineWriter):
    """Writes results in the order of the inputs; `open_batch_output` makes it."""

    def __init__(self, descriptor: int, path: Path | None) -> None:
        super().__init__(descriptor, path)
        self.results: Sequence[FlowResult | None] = ()
        """The run's, item by item. Those of events are without secrets: they only say that one is there."""
        self._run_id: str | None = None
        self._next_index = 0
        self._held: dict[int, FlowResult] = {}
        """Results behind an item that is not finished."""

    def observe(self, event: Event) -> None:
        """Take in an event: the results of the first run's items."""
        if isinstance(event, RunStarted) and self._run_id is None:
            self._run_id = event.run_id
        elif isinstance(event, ItemEnded) and event.run_id == self._run_id:
            result = self.results[event.item_index] if self.results else None
            if result is not None:
                self.take(event.item_index, result)

    def take(self, index: int, result: FlowResult) -> None:
        """Take in an item's result, unless it is there already. Writes nothing."""
        if index < self._next_index:
            return
        self._held.setdefault(index, result)
        while self._next_index in self._held:
            self.put(encode_json(self._held.pop(self._next_index).to_json()) + b"\n")
            self._next_index += 1


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
        raise unwritable(path, exc) from exc
    with file:
        yield BatchOutput(file.fileno(), path)


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether it is one; None: it was closed when this process started."""
    return stream is not None and stream.isatty()
