"""References to blobs in what components take and return (docs/protocol.md, section 6)."""

from __future__ import annotations

import logging
from typing import Any, cast

import trio

from stepflow_trio.errors import ErrorCode, RpcError, StepflowError
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.blob_refs import BlobRef, RefInvalid, Resolution, large_fields
from stepflow_trio.worker.blob_client import BlobClient
from stepflow_trio.worker.outputs import json_path

_log = logging.getLogger("stepflow_trio.worker")


async def resolve_input(input: Any, client: BlobClient) -> Any:
    """A component's input with content in the place of each reference to a blob, also of those in content.

    The input's own containers are changed. ``binary`` content becomes base64 text, as it is in JSON. What
    looks like a reference and is none is left as it is. Without a reference this is no checkpoint.

    Raises:
        RpcError: −32300, a blob could not be read, or is not there: the runtime may try again; −32004, the
            references stand for what cannot be put into an input. The data name the blob and the JSON path.
    """
    try:
        resolution = Resolution(input)
        while wanted := resolution.wanted:
            await _fetch(wanted, resolution, client)
    except RefInvalid as exc:
        raise _refused(ErrorCode.INVALID_VALUE, exc.why, exc.path, exc.ref.blob_id) from exc
    return resolution.value


async def _fetch(
    wanted: dict[str, tuple[str | int, ...]], resolution: Resolution, client: BlobClient
) -> None:
    """Fetch all at the same time; the first failure ends it."""
    failures: list[Exception] = []

    async def fetch(blob_id: str, path: tuple[str | int, ...]) -> None:
        failure: Exception
        try:
            resolution.take(blob_id, (await client.get_content(blob_id)).content)
        except RefInvalid as exc:
            failure = exc
        except StepflowError as exc:
            failure = _refused(ErrorCode.TRANSPORT_ERROR, f"it cannot be read: {exc}", path, blob_id)
            failure.__cause__ = exc
        else:
            return
        failures.append(failure)
        nursery.cancel_scope.cancel(reason="a blob of the input cannot be had")

    async with trio.open_nursery() as nursery:
        for blob_id, path in wanted.items():
            nursery.start_soon(fetch, blob_id, path)
    if failures:
        raise failures[0]


def _refused(code: ErrorCode, why: str, at: tuple[str | int, ...], blob_id: str) -> RpcError:
    path = json_path(at)
    message = f"the input refers to blob {blob_id} at {path}: {why}"
    return RpcError(code, message, {"blob_id": blob_id, "path": path})


async def offload_output(output: Any, client: BlobClient, threshold: int) -> Any:
    """A component's output with references in the place of its larger fields, which are stored as blobs.

    ``output`` is what :func:`~stepflow_trio.worker.outputs.check_output` returned; it is not changed. A field
    is large if it has more than ``threshold`` bytes as JSON; 0: none is. A field that cannot be stored now
    stays as it is, and a line in the log says why. Without a large field this is no checkpoint.
    """
    if threshold <= 0:
        return output
    fields: Any = output
    if type(output) is not dict:
        text = codec.encode_json(output)
        if len(text) <= threshold:
            return output
        fields = codec.decode_json(text)  # of a record, what is written
    large = large_fields(fields, threshold)
    if not large:
        return cast("Any", output)
    refs: dict[str, Any] = {}

    async def store(key: str, text: bytes) -> None:
        try:
            blob_id = await client.put_json(text)
        except StepflowError as exc:
            _log.warning("an output's field of %d bytes is sent as it is, not as a blob: %s", len(text), exc)
        else:
            refs[key] = BlobRef(blob_id=blob_id, size=len(text)).to_json()

    async with trio.open_nursery() as nursery:
        for key, text in large.items():
            nursery.start_soon(store, key, text)
    return {**fields, **refs}
