"""What is known of runs, whether at work or over, and what can be done with them by their ids."""

from __future__ import annotations

import hmac
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import trio

from stepflow_trio.errors import KeyReused, RunNotFound, StateConflict
from stepflow_trio.flows.json_keys import key_of_value
from stepflow_trio.runtime.events import StepProgressed
from stepflow_trio.runtime.progress import StepsAtWork
from stepflow_trio.runtime.run_log import RecordedEvent
from stepflow_trio.runtime.runs import DEFAULT_MAX_CONCURRENCY, Runs
from stepflow_trio.runtime.stores import RunPage, RunQuery, RunRecord, RunStore

EVENTS_AT_ONCE = 256
"""A reader of events holds so many of them."""

PROGRESS_INTERVAL_S = 0.1
"""Who watches a run is told of progress so often at most; of each step the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What makes two submissions the same one."""

    flow_id: str
    inputs: Sequence[Any]
    variables: Mapping[str, Any]
    overrides: Mapping[str, Any] | None = None
    max_concurrency: int | None = None

    def digest(self, key: str) -> str:
        """What is kept of it under an idempotency key, in 64 hex digits: the same for the same submission.

        The order of an object's members does not count. What was submitted cannot be read from it, though
        whoever has the key and all else of a submission can try what a short secret in it might be.
        """
        submitted = [
            self.flow_id,
            list(self.inputs),
            dict(self.variables),
            self.overrides,
            self.max_concurrency or DEFAULT_MAX_CONCURRENCY,
        ]
        return hmac.digest(key.encode(), key_of_value(submitted).encode(), "sha256").hex()


Submit: TypeAlias = Callable[[str], Awaitable[str]]
"""Starts a run with this digest of its submission, and returns its id when it is on record."""


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


class RunHistory:
    """The runs of a runtime by their ids; :attr:`Runtime.history`."""

    def __init__(self, store: RunStore, runs: Runs, changes: RunChanges, at_work: StepsAtWork) -> None:
        self._store = store
        self._runs = runs
        self._at_work = at_work
        self._watch = partial(RunWatch, store=store, runs=runs, changes=changes, at_work=at_work)
        self._keys_in_use: dict[str, trio.Event] = {}

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
        if self._is_at_work(run_id):
            what = f"run {run_id}, or one below it, is at work: cancel it, or wait until it is over"
            raise StateConflict(what)
        if not await self._store.delete(run_id):
            raise RunNotFound(run_id)

    async def submit_once(self, key: str, digest: str, submit: Submit) -> str:
        """The id of the run that ``submit`` starts, or of the one that it started when ``key`` came before.

        Raises:
            KeyReused: that was for another submission.
        """
        while (other := self._keys_in_use.get(key)) is not None:
            await other.wait()
        done = self._keys_in_use[key] = trio.Event()
        try:
            known = await self._store.find_by_key(key)
            if known is None:
                return await submit(digest)
            if digest != known.submission_digest:
                raise KeyReused(key, known.run_id)
            return known.run_id
        finally:
            del self._keys_in_use[key]
            done.set()

    def _is_at_work(self, run_id: str) -> bool:
        return self._runs.active(run_id) is not None
