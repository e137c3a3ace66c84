"""References to blobs in what workers return and are given (docs/protocol.md, section 6)."""

from __future__ import annotations

from typing import Any, cast

from stepflow_trio.errors import ErrorCode, RpcError
from stepflow_trio.flows.paths import render_path
from stepflow_trio.protocol import blobs
from stepflow_trio.protocol.blob_refs import BlobRef, RefInvalid, Resolution, large_fields
from stepflow_trio.runtime.callbacks import verified_blob
from stepflow_trio.runtime.stores import BlobStore


async def resolve_output(output: Any, store: BlobStore) -> Any:
    """A worker's output with content in the place of each reference to a blob, also of those in content.

    The output's own containers are changed. Without a reference this is no checkpoint.

    Raises:
        RpcError: −32300, a blob is not there, or is damaged; −32004, the references stand for what cannot be
            put into an output. The data name the blob and the JSON path.
    """
    try:
        resolution = Resolution(output)
        while wanted := resolution.wanted:
            for blob_id, path in wanted.items():
                try:
                    blob = await verified_blob(store, blob_id)
                except RpcError as exc:
                    raise _refused(ErrorCode.TRANSPORT_ERROR, exc.message, path, blob_id) from exc
                resolution.take(blob_id, blob.content)
    except RefInvalid as exc:
        raise _refused(ErrorCode.INVALID_VALUE, exc.why, exc.path, exc.ref.blob_id) from exc
    return resolution.value


async def offload_input(input: Any, store: BlobStore, threshold: int) -> Any:
    """A component's input with references in the place of its larger fields, which are stored as blobs.

    For a worker that said ``supportsBlobRefs``. ``input`` is not changed. A field is large if it has more
    than ``threshold`` bytes as JSON; 0: none is. Without a large field this is no checkpoint.
    """
    large = large_fields(input, threshold)
    if not large:
        return input
    refs: dict[str, Any] = {}
    for key, text in large.items():
        refs[key] = BlobRef(blob_id=await store.put(text, blobs.DATA), size=len(text)).to_json()
    return {**cast("dict[str, Any]", input), **refs}


def _refused(code: ErrorCode, why: str, at: tuple[str | int, ...], blob_id: str) -> RpcError:
    path = render_path(at)
    message = f"the output refers to blob {blob_id} at {path}: {why}"
    return RpcError(code, message, {"blob_id": blob_id, "path": path})
