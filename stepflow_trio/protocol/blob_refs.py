"""Blob references: ``{"$blob": id, "blobType"?: …, "size"?: n}`` in the place of data (docs/protocol.md, section 6).

Who fetches and stores the blobs is another matter: here stands what a reference is, where references are,
and which data are to be replaced by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard, cast

from msgspec import Struct

from stepflow_trio.protocol import blobs, codec

BLOB_REF_KEY = "$blob"

MAX_ROUNDS = 8
"""Content may hold references again, so many times over."""

_KEYS = frozenset((BLOB_REF_KEY, "blobType", "size"))

_Trail = tuple["_Trail", "str | int"] | tuple[()]


class BlobRef(Struct, frozen=True, kw_only=True):
    """What stands for a blob's content."""

    blob_id: str
    """64 hex digits."""
    blob_type: str = blobs.DATA
    size: int | None = None
    """Bytes of the content, as whoever wrote the reference says."""

    def to_json(self) -> dict[str, Any]:
        """The reference as it is written: ``data`` is the type that is not named."""
        written: dict[str, Any] = {BLOB_REF_KEY: self.blob_id}
        if self.blob_type != blobs.DATA:
            written["blobType"] = self.blob_type
        if self.size is not None:
            written["size"] = self.size
        return written


class Place(Struct, frozen=True):
    """Where a reference stands: ``container[key]``."""

    container: dict[str, Any] | list[Any]
    key: str | int
    ref: BlobRef
    trail: Any

    @property
    def path(self) -> tuple[str | int, ...]:
        """Field names and indices that lead here from the container that was searched first."""
        parts: list[str | int] = [self.key]
        trail: _Trail = self.trail
        while trail:
            trail, part = trail
            parts.append(part)
        return tuple(reversed(parts))

    def replace(self, content: Any) -> Iterator[Place]:
        """Put content in the reference's place; return where there are references in it."""
        cast("dict[str | int, Any]", self.container)[self.key] = content
        return _search(content, self.container, self.key, self.trail)


def blob_ref(value: Any) -> BlobRef | None:
    """The reference that ``value`` is; None where it is data.

    An object with further keys is data, and so is one with what is no blob id, no type of blobs or no size.
    """
    if type(value) is not dict or BLOB_REF_KEY not in value:
        return None
    fields = cast("dict[str, Any]", value)
    id_, type_, size = fields[BLOB_REF_KEY], fields.get("blobType"), fields.get("size")
    blob_id = blobs.normalize_blob_id(id_) if type(id_) is str else None
    blob_type = blobs.normalize_blob_type(type_) if type(type_) is str else None
    if (
        blob_id is None
        or (blob_type is None and type_ is not None)
        or not (size is None or (type(size) is int and size >= 0))
        or not fields.keys() <= _KEYS
    ):
        return None
    return BlobRef(blob_id=blob_id, blob_type=blob_type or blobs.DATA, size=size)
