"""Where blobs and the histories of runs are kept: the interfaces, and the stores in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import trio

from stepflow_trio.errors import BlobNotFound
from stepflow_trio.flows.results import FlowResult, Success
from stepflow_trio.protocol import blobs
from stepflow_trio.runtime.events import ItemEnded, RunEnded, RunEvent, RunStarted

_HASHED_AT_ONCE = 2**20


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
    status: str = "running"
    completed_at: datetime | None = None

    @property
    def finished_items(self) -> int:
        """Items that have a result."""
        return sum(item.result is not None for item in self.items)

    @property
    def failed_items(self) -> int:
        """Items that failed."""
        return sum(item.result is not None and not isinstance(item.result, Success) for item in self.items)


class RunStore(Protocol):
    """Keeps the histories of runs."""

    async def append(self, event: RunEvent) -> None:
        """Record an event: it is on record when this returns, and is not when this is cancelled."""
        ...

    async def get(self, run_id: str) -> RunRecord | None:
        """How a run stands; None if there is none."""
        ...


class MemoryRunStore:
    """Histories in memory: of a finished item only the result is kept."""

    def __init__(self) -> None:
        self._runs: dict[str, RunRecord] = {}
        self._completions = 0

    async def append(self, event: RunEvent) -> None:
        """See :meth:`RunStore.append`."""
        await trio.lowlevel.checkpoint()
        match event:
            case RunStarted():
                self._runs[event.run_id] = RunRecord(
                    event.run_id,
                    event.flow_id,
                    event.flow_name,
                    event.parent_run_id,
                    event.at,
                    [ItemRecord() for _ in event.inputs],
                )
            case ItemEnded():
                self._completions += 1
                item = self._runs[event.run_id].items[event.item_index]
                item.result, item.completed_at = event.result, event.at
                item.completion_order = self._completions
            case RunEnded():
                record = self._runs[event.run_id]
                record.status, record.completed_at = event.status, event.at
            case _:
                pass

    async def get(self, run_id: str) -> RunRecord | None:
        """See :meth:`RunStore.get`."""
        await trio.lowlevel.checkpoint()
        return self._runs.get(run_id)


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
