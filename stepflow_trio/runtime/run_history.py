"""What is known of runs, whether at work or over, and what can be done with them by their ids."""

from __future__ import annotations

import math
from functools import partial

import trio

from stepflow_trio.errors import RunNotFound, StateConflict
from stepflow_trio.runtime.events import StepProgressed
from stepflow_trio.runtime.progress import StepsAtWork
from stepflow_trio.runtime.run_log import RecordedEvent
from stepflow_trio.runtime.run_watch import RunChanges, RunWatch
from stepflow_trio.runtime.runs import Runs
from stepflow_trio.runtime.stores import RunPage, RunQuery, RunRecord, RunStore


class RunHistory:
    """The runs of a runtime by their ids; :attr:`Runtime.history`."""

    def __init__(self, store: RunStore, runs: Runs, changes: RunChanges, at_work: StepsAtWork) -> None:
        self._store = store
        self._runs = runs
        self._at_work = at_work
        self._watch = partial(RunWatch, store=store, runs=runs, changes=changes, at_work=at_work)

    async def get(self, run_id: str) -> RunRecord:
        """How a run stands.

        Raises:
            RunNotFound: there is none.
        """
        record = await self._store.get(run_id)
        if record is None:
            raise RunNotFound(run_id)
        return record

    async def list_runs(self, query: RunQuery | None = None) -> RunPage:
        """The runs that fit, the latest first, and how many there are in all."""
        return await self._store.list_runs(query or RunQuery())

    async def events(self, run_id: str, *, item_index: int | None = None) -> list[RecordedEvent]:
        """All that is on record of a run, or of one of its items, in order; see :class:`RecordedEvent`."""
        return await self._store.events(run_id, item_index=item_index)

    async def next_events(self, run_id: str, *, after: int = 0) -> list[RecordedEvent]:
        """What happened in a run behind its event of number ``after``: 256 events at most, in order.

        Waits until there is something. Empty where nothing more comes, for the run is over. No event is lost
        or comes twice if ``after`` is the number of the last one that was received. Cancelling loses none.

        Raises:
            RunNotFound: there is no such run.
        """
        page = await self._watch(run_id, after=after, with_progress=False).next_page()
        return [event for event in page if isinstance(event, RecordedEvent)]

    def watch(self, run_id: str, *, after: int = 0) -> RunWatch:
        """What happens in a run, as it happens: an async iterator of each recorded event behind the one of
        number ``after``, and of the progress that steps report. It ends when the run is over.

        Of the recorded ones none is lost and none comes twice. Progress is not on record: whoever is behind
        gets the latest of each step that is at work, and whoever is not, that of each step at most every
        0.1 s; it comes after the beginning of its step, and never after the end of that.

        Reading raises :class:`RunNotFound` where there is no such run. Cancelling a read loses nothing, and
        nothing has to be closed.
        """
        return self._watch(run_id, after=after)

    def progress(self, run_id: str) -> list[StepProgressed]:
        """The latest report of each step of a run that is at work and has reported."""
        return self._at_work.reports_of(run_id)

    async def wait(self, run_id: str, *, within_s: float = math.inf) -> RunRecord:
        """Wait until a run is over, but at most so long; return how it stands then.

        Raises:
            RunNotFound: there is no such run.
        """
        run = self._runs.active(run_id)
        if run is not None:
            with trio.move_on_after(within_s):
                await run.wait()
        return await self.get(run_id)

    async def cancel(self, run_id: str, *, within_s: float = math.inf) -> RunRecord:
        """Cancel a run, wait until it has ended, but at most so long, and return how it stands then.

        It is cancelled even if this is cancelled while it waits.

        Raises:
            RunNotFound: there is no such run.
            StateConflict: it is over already, or ended by itself while it was being cancelled.
        """
        record = await self.get(run_id)
        run = self._runs.active(run_id)
        if record.status != "running" or run is None:
            raise StateConflict(f"run {run_id} cannot be cancelled: it is {record.status}")
        run.cancel()
        record = await self.wait(run_id, within_s=within_s)
        if record.status not in ("running", "cancelled"):
            raise StateConflict(f"run {run_id} cannot be cancelled: it is {record.status}")
        return record

    async def delete(self, run_id: str) -> None:
        """Remove a run that is over, and all runs below it.

        Raises:
            RunNotFound: there is no such run.
            StateConflict: it, or a run below it, is at work.
        """
        await self.get(run_id)
        if self._runs.is_at_work(run_id):
            what = f"run {run_id}, or one below it, is at work: cancel it, or wait until it is over"
            raise StateConflict(what)
        if not await self._store.delete(run_id):
            raise RunNotFound(run_id)
