"""Where results go: stdout or a file."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

from stepflow_trio.cli.batch_output import BatchOutput, open_batch_output
from stepflow_trio.cli.exits import Unusable
from stepflow_trio.cli.standard_output import write_stdout
from stepflow_trio.errors import StepflowError
from stepflow_trio.flows.results import FlowResult
from stepflow_trio.protocol.codec import encode_json


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

    def write(self, result: FlowResult) -> None:
        """Write the result of a run that is no batch.

        Raises:
            BrokenPipeError: nobody reads stdout any more.
            StepflowError: it could not be written.
        """
        if self._path is None and _is_terminal(sys.stdout):
            # For a reader: as many lines as it has members.
            data = json.dumps(result.to_json(), indent=2, ensure_ascii=False).encode() + b"\n"
        else:
            data = encode_json(result.to_json()) + b"\n"
        if self._path is None:
            write_stdout(data)
            return
        try:
            self._path.write_bytes(data)
        except OSError as exc:
            raise StepflowError(f"{self._path} cannot be written: {exc.strerror}") from exc

    def open_batch(self) -> AbstractContextManager[BatchOutput]:
        """Where the results of a batch go while the block lasts; see `open_batch_output`."""
        return open_batch_output(self._path)

    @property
    def is_on_screen(self) -> bool:
        """Whether it goes where progress is shown, so that each would write over the other."""
        return self._path is None and _is_terminal(sys.stdout) and _is_terminal(sys.stderr)


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether it is one; None: it was closed when this process started."""
    return stream is not None and stream.isatty()
