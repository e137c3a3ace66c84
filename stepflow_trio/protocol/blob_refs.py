"""Blob references: ``{"$blob": id, "blobType"?, "size"?}`` where data would be (docs/protocol.md, section 6).

Who stores and fetches the blobs is another matter. Here stands what a reference is, where in data there are
some, and which data are to be replaced by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from msgspec import Struct

from stepflow_trio.protocol import blobs, codec

MAX_ROUNDS = 8
"""A blob's content may hold references itself, and so on, so many times over."""

_REF = "$blob"
_KEYS = frozenset((_REF, "blobType", "size"))
_CONTAINERS: frozenset[type] = frozenset((dict, list))


class BlobRef(Struct, frozen=True, kw_only=True):
    """What stands for a blob's content."""

    blob_id: str
    """64 lower-case hex digits."""
    blob_type: str = blobs.DATA
    size: int | None = None
    """Bytes of the content as JSON; whoever wrote the reference says so."""

    def to_json(self) -> dict[str, Any]:
        """The reference as it is written: ``data`` is the type that needs no name."""
        written: dict[str, Any] = {_REF: self.blob_id}
        if self.blob_type != blobs.DATA:
            written["blobType"] = self.blob_type
        if self.size is not None:
            written["size"] = self.size
        return written


class Place(Struct, frozen=True):
    """A place in data."""

    container: dict[str, Any] | list[Any]
    key: str | int
    outer: Place | None
    """Where the container stands; None: it is what :func:`root_place` put around the data."""

    @property
    def path(self) -> tuple[str | int, ...]:
        """Field names and indices that lead here."""
        parts: list[str | int] = []
        at = self
        while at.outer is not None:
            parts.append(at.key)
            at = at.outer
        return tuple(reversed(parts))

    @property
    def value(self) -> Any:
        """What stands here."""
        return cast("dict[str | int, Any]", self.container)[self.key]

    def put(self, value: Any) -> None:
        """Replace what stands here, in the data themselves."""
        cast("dict[str | int, Any]", self.container)[self.key] = value


def read_ref(value: Any) -> BlobRef | None:
    """The reference that ``value`` is; None where it is data.

    An object with a key that references do not have is data: it would be lost. So is one whose id, type or
    size is none.
    """
    if type(value) is not dict or _REF not in value:
        return None
    fields = cast("dict[str, Any]", value)
    id_, type_, size = fields[_REF], fields.get("blobType", blobs.DATA), fields.get("size")
    blob_id = blobs.normalize_blob_id(id_) if type(id_) is str else None
    blob_type = blobs.normalize_blob_type(type_) if type(type_) is str else None
    is_size = size is None or (type(size) is int and size >= 0)
    if blob_id is None or blob_type is None or not is_size or not fields.keys() <= _KEYS:
        return None
    return BlobRef(blob_id=blob_id, blob_type=blob_type, size=size)


def root_place(value: Any) -> Place:
    """The place of a whole value."""
    return Place([value], 0, None)


def find_refs(start: Place) -> Iterator[tuple[Place, BlobRef]]:
    """Every reference in what stands at ``start``, itself included, and its place.

    References are not followed: what one stands for is found once it was put in its place.
    """
    pending = [start]
    while pending:
        at = pending.pop()
        value = at.value
        if (ref := read_ref(value)) is not None:
            yield at, ref
        elif type(value) is dict:
            fields = cast("dict[str, Any]", value)
            pending.extend(
                Place(fields, key, at) for key, item in fields.items() if type(item) in _CONTAINERS
            )
        elif type(value) is list:
            items = cast("list[Any]", value)
            pending.extend(
                Place(items, index, at) for index, item in enumerate(items) if type(item) in _CONTAINERS
            )


def has_refs(value: Any) -> bool:
    """Whether there is a reference anywhere in a value."""
    return next(find_refs(root_place(value)), None) is not None


def large_fields(output: Any, threshold: int) -> dict[str, bytes]:
    """Which fields of an object are longer than ``threshold`` bytes as JSON, each with that JSON text.

    None are where ``output`` is no dict, or ``threshold`` is 0. References are left as they are.

    Raises:
        LocalProtocolError: a field is no JSON.
    """
    if type(output) is not dict or threshold <= 0:
        return {}
    large: dict[str, bytes] = {}
    for key, value in cast("dict[str, Any]", output).items():
        if read_ref(value) is None and len(text := codec.encode_json(value)) > threshold:
            large[key] = text
    return large
