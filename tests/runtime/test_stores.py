"""What every store must do; the stores in memory do it."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio

from stepflow_trio.errors import BlobNotFound
from stepflow_trio.flows.results import Failed, FlowError, Success
from stepflow_trio.protocol import blobs
from stepflow_trio.runtime.events import ItemEnded, RunEnded, RunEvent, RunStarted, StepEnded, StepStarted
from stepflow_trio.runtime.stores import (
    Blob,
    BlobStore,
    MemoryBlobStore,
    MemoryRunStore,
    RunStore,
    put_json,
    results_in_order,
)

AT = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture(params=[MemoryBlobStore])
def blob_store(request: pytest.FixtureRequest) -> BlobStore:
    return request.param()


@pytest.fixture(params=[MemoryRunStore])
def run_store(request: pytest.FixtureRequest) -> RunStore:
    return request.param()


def started(run_id: str = "run", inputs: int = 1, parent_run_id: str | None = None) -> RunStarted:
    return RunStarted(
        run_id=run_id,
        at=AT,
        flow_id="f",
        flow_name="name",
        inputs=[None] * inputs,
        variables={},
        max_concurrency=1,
        parent_run_id=parent_run_id,
    )


def ended(index: int, result: Any = None, run_id: str = "run", after_s: float = 0) -> ItemEnded:
    at = AT + timedelta(seconds=after_s)
    return ItemEnded(run_id=run_id, item_index=index, at=at, result=result or Success(index))


async def append(store: RunStore, *events: RunEvent) -> None:
    for event in events:
        await store.append(event)


# ---- blobs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"null", b"\x00\xff" * 1000])
async def test_content_is_kept_under_its_sha_256(blob_store: BlobStore, content: bytes) -> None:
    blob_id = await blob_store.put(content, blobs.BINARY)
    assert blob_id == hashlib.sha256(content).hexdigest()
    assert await blob_store.get(blob_id) == Blob(content, blobs.BINARY)


async def test_the_same_content_keeps_its_first_type(blob_store: BlobStore) -> None:
    first = await blob_store.put(b"1", blobs.DATA)
    assert await blob_store.put(b"1", blobs.BINARY) == first
    assert await blob_store.get(first) == Blob(b"1", blobs.DATA)


async def test_an_unknown_id_is_not_found(blob_store: BlobStore) -> None:
    with pytest.raises(BlobNotFound) as caught:
        await blob_store.get("0" * 64)
    assert caught.value.blob_id == "0" * 64


async def test_a_put_that_is_cancelled_before_it_begins_stores_nothing(blob_store: BlobStore) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await blob_store.put(b"1", blobs.DATA)
    with pytest.raises(BlobNotFound):
        await blob_store.get(blobs.blob_id(b"1"))


async def test_data_are_stored_as_compact_json_and_binary_as_its_bytes(blob_store: BlobStore) -> None:
    data = await blob_store.get(await put_json(blob_store, {"b": [1, "ä"], "a": None}))
    assert data == Blob('{"b":[1,"ä"],"a":null}'.encode(), blobs.DATA)
    binary = await blob_store.get(await put_json(blob_store, "AP8=", blobs.BINARY))
    assert binary == Blob(b"\x00\xff", blobs.BINARY)
    with pytest.raises(ValueError, match="base64"):
        await put_json(blob_store, "no base64!", blobs.BINARY)


# ---- runs -----------------------------------------------------------------------------------------------


async def test_a_run_is_on_record_from_its_start_to_its_end(run_store: RunStore) -> None:
    assert await run_store.get("run") is None
    await append(run_store, started(inputs=2, parent_run_id="above"))
    record = await run_store.get("run")
    assert record is not None
    assert (record.run_id, record.flow_id, record.flow_name, record.parent_run_id) == (
        "run",
        "f",
        "name",
        "above",
    )
    assert (record.status, record.created_at, record.completed_at) == ("running", AT, None)
    assert (len(record.items), record.finished_items, record.failed_items) == (2, 0, 0)

    failed = Failed(FlowError(1, "no"))
    await append(run_store, ended(1, failed, after_s=1), ended(0, after_s=2))
    end = AT + timedelta(seconds=3)
    await append(run_store, RunEnded(run_id="run", at=end, status="failed"))
    record = await run_store.get("run")
    assert record is not None
    assert [item.result for item in record.items] == [Success(0), failed]
    assert [item.completed_at for item in record.items] == [AT + timedelta(seconds=s) for s in (2, 1)]
    assert (record.status, record.completed_at) == ("failed", end)
    assert (record.finished_items, record.failed_items) == (2, 1)


async def test_steps_leave_the_run_s_record_as_it_is(run_store: RunStore) -> None:
    await append(
        run_store,
        started(),
        StepStarted(run_id="run", item_index=0, step_id="s", component="/c", attempt=1),
        StepEnded(run_id="run", item_index=0, step_id="s", result=Success(1)),
    )
    record = await run_store.get("run")
    assert record is not None
    assert (record.status, record.finished_items) == ("running", 0)


async def test_runs_do_not_mix(run_store: RunStore) -> None:
    await append(run_store, started("one"), started("two"), ended(0, run_id="two"))
    one, two = await run_store.get("one"), await run_store.get("two")
    assert one is not None
    assert two is not None
    assert (one.finished_items, two.finished_items) == (0, 1)


async def test_results_come_by_index_or_as_they_were_completed(run_store: RunStore) -> None:
    await append(run_store, started(inputs=4), ended(2), ended(0), ended(3))
    record = await run_store.get("run")
    assert record is not None
    assert [index for index, _ in results_in_order(record)] == [0, 2, 3]
    assert [index for index, _ in results_in_order(record, by_completion=True)] == [2, 0, 3]


@pytest.mark.parametrize(
    "event",
    [started(), ended(0), RunEnded(run_id="run", at=AT, status="completed")],
    ids=lambda e: type(e).__name__,
)
async def test_what_is_cancelled_while_it_is_appended_is_not_on_record(
    run_store: RunStore, event: RunEvent
) -> None:
    if not isinstance(event, RunStarted):
        await append(run_store, started())
    with trio.CancelScope() as scope:
        scope.cancel()
        await run_store.append(event)
    assert scope.cancelled_caught
    record = await run_store.get("run")
    if isinstance(event, RunStarted):
        assert record is None
    else:
        assert record is not None
        assert (record.status, record.finished_items) == ("running", 0)
