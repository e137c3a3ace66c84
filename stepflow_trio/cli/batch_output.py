"""Where a batch's results go: a line each, as soon as it and all before it are there."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stepflow_trio.cli.patient_output import PatientOutput, unwritable
from stepflow_trio.cli.standard_output import require_stdout
from stepflow_trio.flows.results import FlowResult
from stepflow_trio.protocol.codec import encode_json
from stepflow_trio.runtime.events import Event, ItemEnded, RunStarted


class BatchOutput(PatientOutput):
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
