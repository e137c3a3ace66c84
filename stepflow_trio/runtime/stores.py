"""Where blobs and the histories of runs are kept: the interfaces, and the stores in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias

import trio
from msgspec import Struct
from msgspec.structs import replace

from stepflow_trio.errors import BlobNotFound
from stepflow_trio.flows.results import Failed, FlowResult, Success
from stepflow_trio.protocol import blobs
from stepflow_trio.runtime.events import (
    ItemEnded,
    RunEnded,
    RunEvent,
    RunStarted,
    StepEnded,
    StepRetrying,
    StepStarted,
)

_HASHED_AT_ONCE = 2**20
_LOOKED_AT_AT_ONCE = 2000


@dataclass(frozen=True, slots=True)
class Blob:
    """Stored content: JSON text for ``data`` and ``flow``, raw bytes for ``binary``."""

    content: bytes
    blob_type: str
    filename: str | None = None
    """What whoever stored it first called it; never used as a path."""


class BlobStore(Protocol):
    """Keeps content under its SHA-256."""

    async def put(self, content: bytes, blob_type: str, filename: str | None = None) -> str:
        """Store content and return its id. The same content is stored once, with its first type and name."""
        ...

    async def get(self, blob_id: str) -> Blob:
        """Read content by its id.

        Raises:
            BlobNotFound: nothing is stored under this id.
        """
        ...

    async def delete(self, blob_id: str) -> bool:
        """Remove content; False if nothing was stored under this id."""
        ...

    async def list_ids(self, blob_type: str, *, limit: int, offset: int = 0) -> tuple[list[str], int]:
        """The ids of a page of what was stored with this type, the latest first, and how many there are."""
        ...


class MemoryBlobStore:
    """Blobs in this process's memory, for as long as it lives."""

    def __init__(self) -> None:
        self._blobs: dict[str, Blob] = {}

    async def put(self, content: bytes, blob_type: str, filename: str | None = None) -> str:
        """See :meth:`BlobStore.put`."""
        blob_id = await id_of_content(content)
        self._blobs.setdefault(blob_id, Blob(content, blob_type, filename))
        return blob_id

    async def get(self, blob_id: str) -> Blob:
        """See :meth:`BlobStore.get`."""
        await trio.lowlevel.checkpoint()
        try:
            return self._blobs[blob_id]
        except KeyError:
            raise BlobNotFound(blob_id) from None

    async def delete(self, blob_id: str) -> bool:
        """See :meth:`BlobStore.delete`."""
        await trio.lowlevel.checkpoint()
        return self._blobs.pop(blob_id, None) is not None

    async def list_ids(self, blob_type: str, *, limit: int, offset: int = 0) -> tuple[list[str], int]:
        """See :meth:`BlobStore.list_ids`."""
        await trio.lowlevel.checkpoint()
        ids = [blob_id for blob_id, blob in self._blobs.items() if blob.blob_type == blob_type]
        ids.reverse()
        return ids[offset : offset + limit], len(ids)


@dataclass(slots=True)
class ItemRecord:
    """How one item of a run stands."""

    result: FlowResult | None = None
    completed_at: datetime | None = None
    completion_order: int = 0


@dataclass(slots=True)
class RunRecord:
    """How a run stands. ``status``: running, completed, failed or cancelled; the last three are final."""

    run_id: str
    flow_id: str
    flow_name: str | None
    parent_run_id: str | None
    created_at: datetime
    items: list[ItemRecord]
    inputs: Sequence[Any] = ()
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    overrides: Mapping[str, Any] | None = None
    max_concurrency: int = 1
    root_run_id: str = ""
    """The topmost run above it, or itself."""
    depth: int = 0
    idempotency_key: str | None = None
    status: str = "running"
    completed_at: datetime | None = None
    finished_items: int = 0
    """Items that have a result."""
    failed_items: int = 0
    """Items that failed."""
    last_seq: int = 0
    """The number of its latest event."""


EventKind: TypeAlias = Literal[
    "runStarted", "stepStarted", "stepRetrying", "stepEnded", "itemEnded", "runEnded"
]


class RecordedEvent(Struct, frozen=True, kw_only=True, gc=False):
    """An event of a run as it is on record; what does not apply to its kind is None."""

    seq: int
    """Its number in its run: 1, 2, 3, …"""
    at: datetime
    kind: EventKind
    item_index: int | None = None
    step_id: str | None = None
    component: str | None = None
    attempt: int | None = None
    delay_s: float | None = None
    """Of a ``stepRetrying``: how long until the next attempt."""
    status: str | None = None
    """Of what ended: completed or failed, a run's also cancelled."""
    result: FlowResult | None = None
    """What ended came to; of a ``stepRetrying`` the failure. A store may keep the success of a step only as
    long as its item is at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """Which runs to list: those that fit everything that is said."""

    status: str | None = None
    flow_name: str | None = None
    root_run_id: str | None = None
    """The runs below this one, and itself."""
    parent_run_id: str | None = None
    roots_only: bool = False
    max_depth: int | None = None
    """Of the nesting of runs; 0: those that no run submitted."""
    limit: int | None = None
    offset: int = 0

    def fits(self, record: RunRecord) -> bool:
        """Whether a run is one of these."""
        return (
            (self.status is None or record.status == self.status)
            and (self.flow_name is None or record.flow_name == self.flow_name)
            and (self.root_run_id is None or record.root_run_id == self.root_run_id)
            and (self.parent_run_id is None or record.parent_run_id == self.parent_run_id)
            and (not self.roots_only or record.parent_run_id is None)
            and (self.max_depth is None or record.depth <= self.max_depth)
        )


@dataclass(frozen=True, slots=True)
class RunPage:
    """Some of the runs that a query asks for, the latest first."""

    runs: list[RunRecord]
    total: int
    """All of them."""


class RunStore(Protocol):
    """Keeps the histories of runs. It is written by appending events; all else is read from these."""

    async def append(self, event: RunEvent) -> None:
        """Record an event: it is on record when this returns, and is not when this is cancelled."""
        ...

    async def get(self, run_id: str) -> RunRecord | None:
        """How a run stands; None if there is none."""
        ...

    async def find_by_key(self, idempotency_key: str) -> RunRecord | None:
        """The run that was submitted with this key; None if there is none."""
        ...

    async def list_runs(self, query: RunQuery) -> RunPage:
        """The runs that fit."""
        ...

    async def events(
        self, run_id: str, *, after: int = 0, limit: int | None = None, item_index: int | None = None
    ) -> list[RecordedEvent]:
        """What happened in a run behind its event of number ``after``, in order; nothing if there is no run.

        With ``item_index`` only what happened in that item.
        """
        ...

    async def delete(self, run_id: str) -> bool:
        """Remove a run that is over, with all runs below it; False if there is none."""
        ...


class MemoryRunStore:
    """Histories in memory.

    Of an item that has ended there remain its input, its result, and one small record for each of its
    events; of its steps' results only failures.
    """

    def __init__(self) -> None:
        self._runs: dict[str, RunRecord] = {}
        self._histories: dict[str, _History] = {}
        self._below: dict[str, list[str]] = {}
        self._by_key: dict[str, str] = {}
        self._completions = 0

    async def append(self, event: RunEvent) -> None:
        """See :meth:`RunStore.append`."""
        await trio.lowlevel.checkpoint()
        if isinstance(event, RunStarted):
            self._begin(event)
        record = self._runs[event.run_id]
        record.last_seq += 1
        self._histories[event.run_id].append(event, record.last_seq)
        if isinstance(event, ItemEnded):
            self._completions += 1
            item = record.items[event.item_index]
            item.result, item.completed_at = event.result, event.at
            item.completion_order = self._completions
            record.finished_items += 1
            record.failed_items += isinstance(event.result, Failed)
        elif isinstance(event, RunEnded):
            record.status, record.completed_at = event.status, event.at

    def _begin(self, event: RunStarted) -> None:
        self._runs[event.run_id] = RunRecord(
            run_id=event.run_id,
            flow_id=event.flow_id,
            flow_name=event.flow_name,
            parent_run_id=event.parent_run_id,
            created_at=event.at,
            items=[ItemRecord() for _ in event.inputs],
            inputs=event.inputs,
            variables=event.variables,
            overrides=event.overrides,
            max_concurrency=event.max_concurrency,
            root_run_id=event.root_run_id or event.run_id,
            depth=event.depth,
            idempotency_key=event.idempotency_key,
        )
        self._histories[event.run_id] = _History()
        if event.parent_run_id is not None:
            self._below.setdefault(event.parent_run_id, []).append(event.run_id)
        if event.idempotency_key is not None:
            self._by_key[event.idempotency_key] = event.run_id

    async def get(self, run_id: str) -> RunRecord | None:
        """See :meth:`RunStore.get`."""
        await trio.lowlevel.checkpoint()
        return self._runs.get(run_id)

    async def find_by_key(self, idempotency_key: str) -> RunRecord | None:
        """See :meth:`RunStore.find_by_key`."""
        await trio.lowlevel.checkpoint()
        run_id = self._by_key.get(idempotency_key)
        return None if run_id is None else self._runs[run_id]

    async def list_runs(self, query: RunQuery) -> RunPage:
        """See :meth:`RunStore.list_runs`."""
        found: list[RunRecord] = []
        for number, record in enumerate(reversed([*self._runs.values()])):
            if number % _LOOKED_AT_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            if query.fits(record):
                found.append(record)
        end = None if query.limit is None else query.offset + query.limit
        return RunPage(found[query.offset : end], len(found))

    async def events(
        self, run_id: str, *, after: int = 0, limit: int | None = None, item_index: int | None = None
    ) -> list[RecordedEvent]:
        """See :meth:`RunStore.events`."""
        await trio.lowlevel.checkpoint()
        history = self._histories.get(run_id)
        return [] if history is None else history.read(after, limit, item_index)

    async def delete(self, run_id: str) -> bool:
        """See :meth:`RunStore.delete`."""
        await trio.lowlevel.checkpoint()
        if run_id not in self._runs:
            return False
        parent_run_id = self._runs[run_id].parent_run_id
        if parent_run_id is not None and parent_run_id in self._below:
            self._below[parent_run_id].remove(run_id)
        pending = [run_id]
        while pending:
            deleted = pending.pop()
            record = self._runs.pop(deleted)
            del self._histories[deleted]
            pending += self._below.pop(deleted, ())
            if record.idempotency_key is not None:
                del self._by_key[record.idempotency_key]
        return True


class _History:
    """The events of one run, and where those of each item are."""

    def __init__(self) -> None:
        self._events: list[RecordedEvent] = []
        self._first: dict[int, int] = {}
        """Of each item, the position of its first event."""
        self._end: dict[int, int] = {}
        """Of each item that has ended, the position behind its last event."""
        self._successes: dict[int, list[int]] = {}
        """Of each item that is at work, the positions of the steps that succeeded."""

    def append(self, event: RunEvent, seq: int) -> None:
        if not isinstance(event, (RunStarted, RunEnded)):
            position, index = len(self._events), event.item_index
            if isinstance(event, StepStarted):
                self._first.setdefault(index, position)
            elif isinstance(event, StepEnded):
                self._first.setdefault(index, position)
                if isinstance(event.result, Success):
                    self._successes.setdefault(index, []).append(position)
            elif isinstance(event, ItemEnded):
                self._first.setdefault(index, position)
                self._end[index] = position + 1
                for at in self._successes.pop(index, ()):
                    self._events[at] = replace(self._events[at], result=None)
        self._events.append(recorded(event, seq))

    def read(self, after: int, limit: int | None, item_index: int | None) -> list[RecordedEvent]:
        # Events are numbered from 1 without gaps: the one of number n is at position n − 1.
        if item_index is None:
            return self._events[after : None if limit is None else after + limit]
        first, end = self._first.get(item_index, len(self._events)), self._end.get(item_index)
        found = [event for event in self._events[max(first, after) : end] if event.item_index == item_index]
        return found[:limit]


def recorded(event: RunEvent, seq: int) -> RecordedEvent:
    """An event as a store shows it."""
    # The most frequent ones first: this is done for each.
    if isinstance(event, StepEnded):
        return RecordedEvent(
            seq=seq,
            at=event.at,
            kind="stepEnded",
            item_index=event.item_index,
            step_id=event.step_id,
            status=status_of(event.result),
            result=event.result,
        )
    if isinstance(event, StepStarted):
        return RecordedEvent(
            seq=seq,
            at=event.at,
            kind="stepStarted",
            item_index=event.item_index,
            step_id=event.step_id,
            component=event.component,
            attempt=event.attempt,
        )
    if isinstance(event, ItemEnded):
        return RecordedEvent(
            seq=seq,
            at=event.at,
            kind="itemEnded",
            item_index=event.item_index,
            status=status_of(event.result),
            result=event.result,
        )
    if isinstance(event, StepRetrying):
        return RecordedEvent(
            seq=seq,
            at=event.at,
            kind="stepRetrying",
            item_index=event.item_index,
            step_id=event.step_id,
            attempt=event.attempt,
            delay_s=event.delay_s,
            result=Failed(event.error),
        )
    if isinstance(event, RunStarted):
        return RecordedEvent(seq=seq, at=event.at, kind="runStarted")
    return RecordedEvent(seq=seq, at=event.at, kind="runEnded", status=event.status)


def status_of(result: FlowResult) -> str:
    """completed or failed."""
    return "completed" if isinstance(result, Success) else "failed"


def results_in_order(record: RunRecord, *, by_completion: bool = False) -> Sequence[tuple[int, ItemRecord]]:
    """The finished items with their indices, by index or as they finished."""
    finished = [(index, item) for index, item in enumerate(record.items) if item.result is not None]
    if by_completion:
        finished.sort(key=lambda entry: entry[1].completion_order)
    return finished


async def put_json(
    store: BlobStore, data: Any, blob_type: str = blobs.DATA, filename: str | None = None
) -> str:
    """Store data as a peer sends them: JSON, or base64 text for ``binary``.

    Raises:
        ValueError: binary data are no base64 text.
        LocalProtocolError: other data are no JSON.
    """
    return await store.put(blobs.blob_content(data, blob_type), blob_type, filename)


async def id_of_content(content: bytes) -> str:
    """The id of content. Other tasks run while much of it is hashed."""
    digest = hashlib.sha256()
    with memoryview(content) as view:
        for start in range(0, len(view) or 1, _HASHED_AT_ONCE):
            digest.update(view[start : start + _HASHED_AT_ONCE])
            await trio.lowlevel.checkpoint()
    return digest.hexdigest()
