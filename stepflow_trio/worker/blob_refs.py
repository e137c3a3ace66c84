"""References to blobs in what components take and return (docs/protocol.md, section 6)."""

from __future__ import annotations

import base64
import logging
from collections import Counter
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any, cast

import trio

from stepflow_trio.errors import ErrorCode, RpcError, StepflowError
from stepflow_trio.protocol import blobs, codec
from stepflow_trio.protocol.blob_refs import (
    MAX_ROUNDS,
    BlobRef,
    Place,
    find_refs,
    large_fields,
    root_place,
)
from stepflow_trio.worker.blob_client import BlobClient
from stepflow_trio.worker.outputs import json_path

MAX_REFS = 4096
"""References that are resolved in one input. A few small blobs that name each other many times over would
otherwise stand for more than any machine could hold."""

MAX_RESOLVED_BYTES = 256 * 2**20
"""Content that is put into one input, counted as often as it is put there."""

_log = logging.getLogger("stepflow_trio.worker")


async def resolve_input(input: Any, client: BlobClient) -> Any:
    """A component's input with content in the place of each reference to a blob, also of those in content.

    The input's own containers are changed. ``binary`` content becomes base64 text, as it is in JSON. What
    looks like a reference and is none is left as it is. Without a reference this is no checkpoint.

    Raises:
        RpcError: −32300, a blob could not be read, or is not there: the runtime may try again; −32004, the
            references stand for what cannot be put into an input. The data name the blob and the JSON path.
    """
    return await _Resolving(client).resolve(input)


class _Resolving:
    """One input while its references are resolved."""

    def __init__(self, client: BlobClient) -> None:
        self._client = client
        self._refs_left = MAX_REFS
        self._bytes_left = MAX_RESOLVED_BYTES

    async def resolve(self, input: Any) -> Any:
        root = root_place(input)
        found = self._search([root])
        for _ in range(MAX_ROUNDS):
            if not found:
                return root.value
            contents = await self._fetch(found)
            for place, ref in found:
                # Decoded for each place: what a component changes in one must not change in another.
                place.put(_decode(contents[ref.blob_id], place, ref))
            found = self._search(place for place, _ in found)
        if found:
            place, ref = found[0]
            why = f"blobs that refer to blobs are followed {MAX_ROUNDS} times, not further"
            raise _refused(ErrorCode.INVALID_VALUE, why, place, ref)
        return root.value

    def _search(self, places: Iterable[Place]) -> list[tuple[Place, BlobRef]]:
        every = chain.from_iterable(map(find_refs, places))
        found = list(islice(every, self._refs_left + 1))
        if len(found) > self._refs_left:
            why = f"an input may have {MAX_REFS} references to blobs, not more"
            raise _refused(ErrorCode.INVALID_VALUE, why, *found[-1])
        self._refs_left -= len(found)
        return found

    async def _fetch(self, found: list[tuple[Place, BlobRef]]) -> dict[str, bytes]:
        """The content of every blob, each fetched once; the first failure ends it."""
        times = Counter(ref.blob_id for _, ref in found)
        contents: dict[str, bytes] = {}
        failures: list[RpcError] = []

        async def fetch(place: Place, ref: BlobRef) -> None:
            try:
                contents[ref.blob_id] = content = (await self._client.get_content(ref.blob_id)).content
            except StepflowError as exc:
                failure = _refused(ErrorCode.TRANSPORT_ERROR, f"it cannot be read: {exc}", place, ref)
                failure.__cause__ = exc
            else:
                self._bytes_left -= len(content) * times[ref.blob_id]
                if self._bytes_left >= 0:
                    return
                why = f"the blobs of an input may have {MAX_RESOLVED_BYTES} bytes together, not more"
                failure = _refused(ErrorCode.INVALID_VALUE, why, place, ref)
            failures.append(failure)
            nursery.cancel_scope.cancel(reason="a blob of the input cannot be had")

        async with trio.open_nursery() as nursery:
            for place, ref in {ref.blob_id: (place, ref) for place, ref in found}.values():
                nursery.start_soon(fetch, place, ref)
        if failures:
            raise failures[0]
        return contents


def _decode(content: bytes, place: Place, ref: BlobRef) -> Any:
    if ref.blob_type == blobs.BINARY:
        return base64.b64encode(content).decode("ascii")
    try:
        # As deep as the input could be without references.
        return codec.decode_json(content, max_nesting=codec.MAX_NESTING - len(place.path))
    except ValueError as exc:
        why = f"its content cannot be put there: {exc}"
        raise _refused(ErrorCode.INVALID_VALUE, why, place, ref) from exc


def _refused(code: ErrorCode, why: str, place: Place, ref: BlobRef) -> RpcError:
    path = json_path(place.path)
    message = f"the input refers to blob {ref.blob_id} at {path}: {why}"
    return RpcError(code, message, {"blob_id": ref.blob_id, "path": path})


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
