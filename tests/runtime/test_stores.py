"""What every store must do; the stores in memory do it."""

from __future__ import annotations

import hashlib
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from stepflow_trio.errors import BlobNotFound
from stepflow_trio.flows.results import Failed, FlowError, Success
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
from stepflow_trio.runtime.stores import (
    Blob,
    BlobStore,
    MemoryBlobStore,
    MemoryRunStore,
    RunQuery,
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


async def test_deleted_content_is_gone(blob_store: BlobStore) -> None:
    blob_id = await blob_store.put(b"1", blobs.DATA)
    assert await blob_store.delete(blob_id)
    assert not await blob_store.delete(blob_id)
    with pytest.raises(BlobNotFound):
        await blob_store.get(blob_id)


async def test_the_ids_of_one_type_come_in_pages_the_latest_first(blob_store: BlobStore) -> None:
    flows = [await blob_store.put(b"flow %d" % n, blobs.FLOW) for n in range(5)]
    await blob_store.put(b"data", blobs.DATA)
    assert await blob_store.list_ids(blobs.FLOW, limit=2) == ([flows[4], flows[3]], 5)
    assert await blob_store.list_ids(blobs.FLOW, limit=9, offset=3) == ([flows[1], flows[0]], 5)
    assert await blob_store.list_ids(blobs.BINARY, limit=9) == ([], 0)


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
        StepStarted(run_id="run", item_index=0, at=AT, step_id="s", component="/c", attempt=1),
        StepEnded(run_id="run", item_index=0, at=AT, step_id="s", result=Success(1)),
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


# ---- what happened in a run -----------------------------------------------------------------------------


def item_story(index: int, value: Any = None) -> list[RunEvent]:
    """A step that needs two attempts, and its item's end."""
    at: dict[str, Any] = {"run_id": "run", "item_index": index, "at": AT}
    return [
        StepStarted(**at, step_id="s", component="/c", attempt=1),
        StepRetrying(**at, step_id="s", attempt=1, delay_s=1.5, error=FlowError(1, "not yet")),
        StepStarted(**at, step_id="s", component="/c", attempt=2),
        StepEnded(**at, step_id="s", result=Success(value)),
        ItemEnded(**at, result=Success(value)),
    ]


async def test_events_are_numbered_from_one_without_gaps_and_read_from_any(run_store: RunStore) -> None:
    await append(run_store, started(inputs=2), started("other"), *item_story(0), *item_story(1))
    await append(run_store, RunEnded(run_id="run", at=AT, status="completed"))
    whole = await run_store.events("run")
    assert [event.seq for event in whole] == list(range(1, 13))
    assert [event.kind for event in whole[:6]] == [
        "runStarted",
        "stepStarted",
        "stepRetrying",
        "stepStarted",
        "stepEnded",
        "itemEnded",
    ]
    for after in range(14):
        assert await run_store.events("run", after=after) == whole[after:]
        assert await run_store.events("run", after=after, limit=3) == whole[after : after + 3]
    assert [event.seq for event in await run_store.events("other")] == [1]
    assert await run_store.events("nobody") == []
    record = await run_store.get("run")
    assert record is not None
    assert record.last_seq == 12


async def test_the_events_of_an_item_are_read_alone(run_store: RunStore) -> None:
    stories = [item_story(index) for index in range(3)]
    interleaved = [event for several in zip(*stories, strict=True) for event in several]
    await append(run_store, started(inputs=4), *interleaved)
    for index in range(3):
        found = await run_store.events("run", item_index=index)
        assert [event.kind for event in found] == [
            "stepStarted", "stepRetrying", "stepStarted", "stepEnded", "itemEnded",
        ]  # fmt: skip
        assert {event.item_index for event in found} == {index}
        assert await run_store.events("run", item_index=index, after=found[2].seq) == found[3:]
        assert await run_store.events("run", item_index=index, limit=2) == found[:2]
    assert await run_store.events("run", item_index=3) == []


async def test_what_failed_keeps_its_error_and_what_succeeded_its_item_s_result(run_store: RunStore) -> None:
    await append(run_store, started(), *item_story(0, "value")[:-1])
    assert (await run_store.events("run"))[-1].result == Success("value")
    await append(run_store, item_story(0, "value")[-1])
    events = await run_store.events("run")
    assert events[2].result == Failed(FlowError(1, "not yet"))
    assert events[-1].result == Success("value")


async def test_a_finished_item_costs_its_result_and_little_more() -> None:
    store = MemoryRunStore()
    items = 2_000
    await append(store, started(inputs=items))
    tracemalloc.start()
    try:
        for index in range(items):
            *steps, end = item_story(index, "x" * 10_000)
            await append(store, *steps)
            await append(store, ItemEnded(run_id="run", item_index=index, at=end.at, result=Success(None)))  # type: ignore[union-attr]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / items < 1_500, "five events, and not the 10,000 bytes of the step's result"


# ---- finding and removing runs --------------------------------------------------------------------------


def below(run_id: str, parent: str, root: str, depth: int) -> RunStarted:
    return replace(started(run_id, parent_run_id=parent), root_run_id=root, depth=depth)


async def ids(store: RunStore, **query: Any) -> list[str]:
    return [record.run_id for record in (await store.list_runs(RunQuery(**query))).runs]


async def test_runs_are_found_by_what_is_asked_of_them(run_store: RunStore) -> None:
    await append(run_store, started("a"), below("b", "a", "a", 1), below("c", "b", "a", 2), started("d"))
    await append(run_store, RunEnded(run_id="b", at=AT, status="failed"))
    assert await ids(run_store) == ["d", "c", "b", "a"]
    assert await ids(run_store, status="failed") == ["b"]
    assert await ids(run_store, root_run_id="a") == ["c", "b", "a"]
    assert await ids(run_store, root_run_id="a", max_depth=1) == ["b", "a"]
    assert await ids(run_store, parent_run_id="a") == ["b"]
    assert await ids(run_store, roots_only=True) == ["d", "a"]
    assert await ids(run_store, flow_name="name", limit=2, offset=1) == ["c", "b"]
    assert await ids(run_store, flow_name="no") == []
    assert (await run_store.list_runs(RunQuery(limit=1))).total == 4
    assert await ids(run_store, limit=0) == []


async def test_a_deleted_run_is_gone_with_its_key_and_all_below_it(run_store: RunStore) -> None:
    keyed = replace(started("a"), idempotency_key="k")
    await append(run_store, keyed, below("b", "a", "a", 1), below("c", "b", "a", 2), started("d"))
    found = await run_store.find_by_key("k")
    assert found is not None
    assert found.run_id == "a"
    assert await run_store.delete("c")
    assert await ids(run_store) == ["d", "b", "a"]
    assert await run_store.delete("a")
    assert await ids(run_store) == ["d"]
    assert await run_store.find_by_key("k") is None
    for run_id in "abc":
        assert await run_store.get(run_id) is None
        assert await run_store.events(run_id) == []
        assert not await run_store.delete(run_id)
