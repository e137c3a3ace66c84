"""References to blobs at the runtime's end: resolved in outputs, put into inputs."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from stepflow_trio.errors import ErrorCode, RpcError
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.blob_refs import MAX_ROUNDS
from stepflow_trio.runtime.blob_refs import offload_input, resolve_output
from stepflow_trio.runtime.stores import Blob, MemoryBlobStore, put_json


async def ref(store: MemoryBlobStore, value: Any, kind: str = "data") -> dict[str, Any]:
    return {"$blob": await put_json(store, value, kind), "blobType": kind}


async def test_what_was_put_into_an_input_is_what_an_output_resolves_to() -> None:
    store = MemoryBlobStore()
    given = {"z": 1, "large": {"b": ["x" * 100], "a": 1.5}, "also": "ä" * 60}
    before = codec.encode_json(given)
    offloaded = await offload_input(given, store, 100)
    assert codec.encode_json(given) == before
    assert list(offloaded) == ["z", "large", "also"]
    assert offloaded["large"] == {"$blob": next(iter(store._blobs)), "size": 118}
    assert codec.encode_json(await resolve_output(offloaded, store)) == before


@pytest.mark.parametrize("threshold", [0, 200])
async def test_an_input_without_large_fields_is_given_as_it_is(threshold: int) -> None:
    with trio.testing.assert_no_checkpoints():
        for value in ({"a": "x" * 198}, ["x" * 500], None):
            assert await offload_input(value, MemoryBlobStore(), threshold) is value
            assert await resolve_output(value, MemoryBlobStore()) is value


async def test_references_are_resolved_wherever_they_are_and_in_content_too() -> None:
    store = MemoryBlobStore()
    inner = await ref(store, "aGk=", "binary")
    output = [{"deep": await ref(store, {"n": inner})}, {"$blob": "no id"}]
    assert await resolve_output(output, store) == [{"deep": {"n": "aGk="}}, {"$blob": "no id"}]


async def test_a_missing_blob_and_a_damaged_one_are_errors_that_may_be_retried() -> None:
    store = MemoryBlobStore()
    with pytest.raises(RpcError) as caught:
        await resolve_output({"a b": [{"$blob": "0" * 64}]}, store)
    assert caught.value.code == ErrorCode.TRANSPORT_ERROR
    assert caught.value.data == {"blob_id": "0" * 64, "path": "$.a b[0]"}
    assert caught.value.message.endswith(f"Blob {'0' * 64} not found")
    damaged = await ref(store, [1])
    store._blobs[damaged["$blob"]] = Blob(b"[2]", "data")
    with pytest.raises(RpcError, match="damaged") as caught:
        await resolve_output(damaged, store)
    assert caught.value.code == ErrorCode.TRANSPORT_ERROR


async def test_references_that_go_on_too_long_are_an_error_that_is_not_retried() -> None:
    store = MemoryBlobStore()
    value = await ref(store, 0)
    for _ in range(MAX_ROUNDS):
        value = await ref(store, [value])
    with pytest.raises(RpcError, match=f"{MAX_ROUNDS} times") as caught:
        await resolve_output(value, store)
    assert caught.value.code == ErrorCode.INVALID_VALUE
