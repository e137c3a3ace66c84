"""Where blobs and the histories of runs are kept: the interfaces, and the stores in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from weakref import WeakValueDictionary

import trio
from msgspec import Struct, field

from stepflow_trio.errors import BlobNotFound
from stepflow_trio.flows.results import Failed
from stepflow_trio.protocol import blobs
from stepflow_trio.runtime.events import ItemEnded, RunEnded, RunEvent, RunStarted
from stepflow_trio.runtime.run_log import (
    EventShapes,
    ItemRecord,
    PackedRunLog,
    RecordedEvent,
    RunItems,
    RunLog,
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


class RunRecord(Struct, kw_only=True, gc=False):
    """How a run stands. ``status``: running, completed, failed or cancelled; the last three are final."""

    run_id: str
    flow_id: str
    flow_name: str | None
    parent_run_id: str | None
    created_at: datetime
    items: Sequence[ItemRecord]
    inputs: Sequence[Any] = ()
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    overrides: Mapping[str, Any] | None = None
    max_concurrency: int = 1
    root_run_id: str = ""
    """The topmost run above it, or itself."""
    depth: int = 0
    idempotency_key: str | None = None
    submission_digest: str | None = None
    """Of a submission with a key: only whoever knows it can tell whether another one is the same."""
    status: str = "running"
    completed_at: datetime | None = None
    finished_items: int = 0
    """Items that have a result."""
    failed_items: int = 0
    """Items that failed."""
    last_seq: int = 0
    """The number of its latest event."""


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

    Of an item that has ended there remain its input, its result, and 16 bytes for each of its events; of its
    steps' results only failures.
    """

    def __init__(self) -> None:
        self._runs: dict[str, RunRecord] = {}
        self._logs: dict[str, RunLog | PackedRunLog] = {}
        self._shapes: WeakValueDictionary[str, EventShapes] = WeakValueDictionary()
        """By flows, as long as there is a run of one."""
        self._below: dict[str, list[str]] = {}
        self._by_key: dict[str, str] = {}

    async def append(self, event: RunEvent) -> None:
        """See :meth:`RunStore.append`. Nobody else gets a turn."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if isinstance(event, RunStarted):
            self._begin(event)
        record = self._runs[event.run_id]
        log = self._logs[event.run_id]
        if isinstance(log, PackedRunLog):
            log = self._logs[event.run_id] = log.unpacked()
            record.items = RunItems(log)
        record.last_seq = log.append(event)
        if isinstance(event, ItemEnded):
            record.finished_items += 1
            record.failed_items += isinstance(event.result, Failed)
        elif isinstance(event, RunEnded):
            record.status, record.completed_at = event.status, event.at
            self._logs[event.run_id] = packed = log.packed()
            record.items, record.inputs = RunItems(packed), tuple(record.inputs)

    def _begin(self, event: RunStarted) -> None:
        shapes = self._shapes.get(event.flow_id)
        if shapes is None:
            shapes = self._shapes[event.flow_id] = EventShapes()
        log = self._logs[event.run_id] = RunLog(event.at, shapes, len(event.inputs))
        self._runs[event.run_id] = RunRecord(
            run_id=event.run_id,
            flow_id=event.flow_id,
            flow_name=event.flow_name,
            parent_run_id=event.parent_run_id,
            created_at=event.at,
            items=RunItems(log),
            inputs=event.inputs,
            variables=event.variables,
            overrides=event.overrides,
            max_concurrency=event.max_concurrency,
            root_run_id=event.root_run_id or event.run_id,
            depth=event.depth,
            idempotency_key=event.idempotency_key,
            submission_digest=event.submission_digest,
        )
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
        log = self._logs.get(run_id)
        found: list[RecordedEvent] = []
        for event in () if log is None else log.unpacked().read(after, limit, item_index):
            found.append(event)
            if len(found) % _LOOKED_AT_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return found

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
            del self._logs[deleted]
            pending += self._below.pop(deleted, ())
            if record.idempotency_key is not None:
                del self._by_key[record.idempotency_key]
        return True


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
