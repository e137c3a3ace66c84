"""Blob references: ``{"$blob": id, "blobType"?, "size"?}`` where data would be (docs/protocol.md, section 6).

Who stores and fetches the blobs is another matter. Here stands what a reference is, how content takes its
place, and which data are to be replaced by one.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, cast

from msgspec import Struct

from stepflow_trio.protocol import blobs, codec

MAX_ROUNDS = 8
"""A blob's content may hold references itself, and so on, so many times over."""

MAX_REFS = 4096
"""References that are resolved in one value. A few small blobs that name each other many times over would
otherwise stand for more than any machine could hold."""

MAX_RESOLVED_BYTES = 256 * 2**20
"""Content that is put into one value, counted as often as it is put there."""

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


def has_refs(value: Any) -> bool:
    """Whether there is a reference anywhere in a value."""
    return next(_find(_Place([value], 0, None)), None) is not None


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


class RefInvalid(Exception):
    """A reference cannot be resolved, now or later: ``why``. It stands at ``path``."""

    def __init__(self, why: str, path: tuple[str | int, ...], ref: BlobRef) -> None:
        super().__init__(why, path, ref)
        self.why = why
        self.path = path
        self.ref = ref


class Resolution:
    """A value in which content takes the place of references, also of those in content.

    As long as something is :attr:`wanted`, fetch it and give it to :meth:`take`. The value's own containers
    are changed. ``binary`` content becomes base64 text, as it is in JSON.

    Raises:
        RefInvalid: there are more than :data:`MAX_REFS` references.
    """

    def __init__(self, value: Any) -> None:
        self._root = _Place([value], 0, None)
        self._refs_left = MAX_REFS
        self._bytes_left = MAX_RESOLVED_BYTES
        self._rounds_left = MAX_ROUNDS
        self._found: list[tuple[_Place, BlobRef]] = []
        self._times: Counter[str] = Counter()
        self._contents: dict[str, bytes] = {}
        self._search([self._root])

    @property
    def value(self) -> Any:
        """The value as it is by now."""
        return self._root.value

    @property
    def wanted(self) -> dict[str, tuple[str | int, ...]]:
        """The ids of the blobs to be fetched now, each with the path of one reference to it."""
        return {ref.blob_id: place.path for place, ref in self._found if ref.blob_id not in self._contents}

    def take(self, blob_id: str, content: bytes) -> None:
        """Content of a wanted blob, verified. After the last one, what that refers to is wanted.

        Raises:
            RefInvalid: content is no JSON or does not fit where it is to go, or the references stand for more
                than :data:`MAX_RESOLVED_BYTES`, :data:`MAX_REFS` or :data:`MAX_ROUNDS` allow.
        """
        self._contents[blob_id] = content
        self._bytes_left -= len(content) * self._times[blob_id]
        if self._bytes_left < 0:
            place, ref = next(each for each in self._found if each[1].blob_id == blob_id)
            why = f"what is referred to has more than {MAX_RESOLVED_BYTES} bytes together"
            raise RefInvalid(why, place.path, ref)
        if len(self._contents) == len(self._times):
            for place, ref in self._found:
                # Decoded for each place: what is changed in one must not change in another.
                place.put(_decoded(self._contents[ref.blob_id], place, ref))
            self._search([place for place, _ in self._found])

    def _search(self, places: list[_Place]) -> None:
        every = chain.from_iterable(map(_find, places))
        self._found = list(islice(every, self._refs_left + 1))
        self._times = Counter(ref.blob_id for _, ref in self._found)
        self._contents = {}
        if not self._found:
            return
        place, ref = self._found[-1]
        if len(self._found) > self._refs_left:
            raise RefInvalid(f"there are more than {MAX_REFS} references to blobs", place.path, ref)
        if not self._rounds_left:
            raise RefInvalid(f"blobs refer to blobs more than {MAX_ROUNDS} times over", place.path, ref)
        self._refs_left -= len(self._found)
        self._rounds_left -= 1


def _decoded(content: bytes, place: _Place, ref: BlobRef) -> Any:
    if ref.blob_type == blobs.BINARY:
        return base64.b64encode(content).decode("ascii")
    try:
        # As deep as the value could be without references.
        return codec.decode_json(content, max_nesting=codec.MAX_NESTING - len(place.path))
    except ValueError as exc:
        raise RefInvalid(f"its content cannot be put there: {exc}", place.path, ref) from exc


class _Place(Struct, frozen=True):
    """A place in data."""

    container: dict[str, Any] | list[Any]
    key: str | int
    outer: _Place | None
    """Where the container stands; None: around the whole value."""

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


def _find(start: _Place) -> Iterator[tuple[_Place, BlobRef]]:
    """Every reference in what stands at ``start``, itself included, and its place."""
    pending = [start]
    while pending:
        at = pending.pop()
        value = at.value
        if (ref := read_ref(value)) is not None:
            yield at, ref
        elif type(value) is dict:
            fields = cast("dict[str, Any]", value)
            pending.extend(
                _Place(fields, key, at) for key, item in fields.items() if type(item) in _CONTAINERS
            )
        elif type(value) is list:
            items = cast("list[Any]", value)
            pending.extend(
                _Place(items, index, at) for index, item in enumerate(items) if type(item) in _CONTAINERS
            )
