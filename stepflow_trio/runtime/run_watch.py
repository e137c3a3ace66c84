"""What happens in a run, as it happens: for whoever waits for it or reads along."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import trio

from stepflow_trio.errors import RunNotFound
from stepflow_trio.runtime.events import StepProgressed
from stepflow_trio.runtime.progress import StepsAtWork
from stepflow_trio.runtime.run_log import RecordedEvent
from stepflow_trio.runtime.runs import Runs
from stepflow_trio.runtime.stores import RunStore

EVENTS_AT_ONCE = 256
"""A reader of events holds so many of them."""

PROGRESS_INTERVAL_S = 0.1
"""Who watches a run is told of progress so often at most; of each step the latest."""


class RunChanges:
    """Wakes those who wait for something to happen in a run."""

    def __init__(self) -> None:
        self._next: dict[str, trio.Event] = {}
        self._next_or_progress: dict[str, trio.Event] = {}

    def next_of(self, run_id: str, *, or_progress: bool = False) -> trio.Event:
        """Set when something has happened in the run, or it is no longer at work. Only of one that is.

        With ``or_progress`` also when a step has progressed.
        """
        waiting = self._next_or_progress if or_progress else self._next
        return waiting.setdefault(run_id, trio.Event())

    def note(self, run_id: str) -> None:
        """Something has happened in the run, and is on record; or it is no longer at work."""
        event = self._next.pop(run_id, None)
        if event is not None:
            event.set()
        self.note_progress(run_id)

    def note_progress(self, run_id: str) -> None:
        """A step of the run has progressed."""
        event = self._next_or_progress.pop(run_id, None)
        if event is not None:
            event.set()


class RunWatch:
    """What happens in a run, behind one of its events: an async iterator; :meth:`RunHistory.watch`.

    Nothing is left behind by one that is not read to its end, and cancelling a read loses nothing.
    """

    def __init__(
        self,
        run_id: str,
        *,
        after: int,
        store: RunStore,
        runs: Runs,
        changes: RunChanges,
        at_work: StepsAtWork,
        with_progress: bool = True,
    ) -> None:
        self._run_id = run_id
        self._after = after
        self._store = store
        self._runs = runs
        self._changes = changes
        self._at_work = at_work
        self._reported = 0
        """The number of the latest report that was given."""
        self._reports_from = -math.inf if with_progress else math.inf
        """Before this time no further reports are given."""
        self._page: Iterator[RecordedEvent | StepProgressed] = iter(())

    def __aiter__(self) -> RunWatch:
        return self

    async def __anext__(self) -> RecordedEvent | StepProgressed:
        """What happened next. Raises :class:`RunNotFound`: there is no such run."""
        event = next(self._page, None)
        if event is None:
            self._page = iter(await self.next_page())
            event = next(self._page, None)
        if event is None:
            raise StopAsyncIteration
        return event

    async def next_page(self) -> Sequence[RecordedEvent | StepProgressed]:
        """All that has happened since the last page, or the first 256 recorded events of it.

        Waits until there is something. Empty where nothing more comes, for the run is over.

        Raises:
            RunNotFound: there is no such run.
        """
        while True:
            takes_reports = trio.current_time() >= self._reports_from
            # All three before the events are read: what happens from here on is among them, or wakes us; of a
            # run that is over already, they are all there are; and a step that has reported had begun.
            changed = None
            if self._runs.active(self._run_id) is not None:
                changed = self._changes.next_of(self._run_id, or_progress=takes_reports)
            number = self._at_work.last_number
            reports = self._at_work.reported_since(self._run_id, self._reported) if takes_reports else []
            record = await self._store.get(self._run_id)
            if record is None:
                raise RunNotFound(self._run_id)
            is_over = record.status != "running"
            found = await self._store.events(self._run_id, after=self._after, limit=EVENTS_AT_ONCE)
            if found:
                self._after = found[-1].seq
            page: list[RecordedEvent | StepProgressed] = [*found]
            if reports and len(found) < EVENTS_AT_ONCE:
                self._reported = number
                # The end of a step that is still at work is not on record.
                reported = [report for step, report in reports if step.report is not None]
                if reported:
                    self._reports_from = trio.current_time() + PROGRESS_INTERVAL_S
                    page += reported
            if page:
                return page
            if is_over or changed is None:
                return []
            with trio.move_on_at(math.inf if takes_reports else self._reports_from):
                await changed.wait()
