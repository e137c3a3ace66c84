"""What is known of runs, whether at work or over, and what can be done with them by their ids."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import trio

from stepflow_trio.errors import KeyReused, RunNotFound, StateConflict
from stepflow_trio.protocol import codec
from stepflow_trio.runtime.runs import DEFAULT_MAX_CONCURRENCY, Runs
from stepflow_trio.runtime.stores import RecordedEvent, RunPage, RunQuery, RunRecord, RunStore

EVENTS_AT_ONCE = 256
"""A reader of events holds so many of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What makes two submissions the same one."""

    flow_id: str
    inputs: Sequence[Any]
    variables: Mapping[str, Any]
    overrides: Mapping[str, Any] | None = None
    max_concurrency: int | None = None

    def is_of(self, record: RunRecord) -> bool:
        """Whether this is what a run was submitted with."""
        mine = (self.inputs, self.variables, self.overrides, self.max_concurrency or DEFAULT_MAX_CONCURRENCY)
        its = (record.inputs, record.variables, record.overrides, record.max_concurrency)
        return self.flow_id == record.flow_id and codec.encode_json(mine) == codec.encode_json(its)


Submit: TypeAlias = Callable[[], Awaitable[str]]
"""Starts a run, and returns its id when it is on record."""


class RunChanges:
    """Wakes those who wait for something to happen in a run."""

    def __init__(self) -> None:
        self._next: dict[str, trio.Event] = {}

    def next_of(self, run_id: str) -> trio.Event:
        """Set when something has happened in the run, or it is no longer at work. Only of one that is."""
        return self._next.setdefault(run_id, trio.Event())

    def note(self, run_id: str) -> None:
        """Something has happened in the run, and is on record; or it is no longer at work."""
        event = self._next.pop(run_id, None)
        if event is not None:
            event.set()


class RunHistory:
    """The runs of a runtime by their ids; :attr:`Runtime.history`."""

    def __init__(self, store: RunStore, runs: Runs, changes: RunChanges) -> None:
        self._store = store
        self._runs = runs
        self._changes = changes
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
        while True:
            # Both before the events are read: what happens from here on is among them, or wakes us; and of a
            # run that is over already, they are all there are.
            changed = self._changes.next_of(run_id) if self._is_at_work(run_id) else None
            is_over = (await self.get(run_id)).status != "running"
            found = await self._store.events(run_id, after=after, limit=EVENTS_AT_ONCE)
            if found:
                return found
            if is_over or changed is None:
                return []
            await changed.wait()

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

    async def submit_once(self, key: str, submission: Submission, submit: Submit) -> str:
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
                return await submit()
            if not submission.is_of(known):
                raise KeyReused(key, known.run_id)
            return known.run_id
        finally:
            del self._keys_in_use[key]
            done.set()

    def _is_at_work(self, run_id: str) -> bool:
        return self._runs.active(run_id) is not None
