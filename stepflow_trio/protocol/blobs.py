"""Blob ids: what content is called (docs/protocol.md, section 6)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any, Final, cast

from stepflow_trio.protocol import codec

DATA: Final = "data"
FLOW: Final = "flow"
BINARY: Final = "binary"

MAX_BLOB_BYTES = 100 * 2**20
"""Largest blob that travels over HTTP: 100 MiB, by default. Public runtimes take 2 MiB."""

_BLOB_ID = re.compile(r"[0-9a-f]{64}\Z", re.ASCII)
# Begins with one character, for which a search runs through large texts as fast as through memory.
_MAY_HAVE_EXPONENT = re.compile(rb"e(?<=[0-9]e)[0-9]{2,3}(?![^,\]}])")
_STRING_OR_EXPONENT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[0-9]e(?=[0-9])')


def normalize_blob_id(text: str) -> str | None:
    """The id without the ``sha256:`` prefix that some peers write; None where it is no blob id."""
    bare = text.removeprefix("sha256:")
    return bare if _BLOB_ID.match(bare) else None


def normalize_blob_type(text: str) -> str | None:
    """``data``, ``flow`` or ``binary``; old peers also write ``Json``. None for any other."""
    lowered = text.lower()
    if lowered == "json":
        return DATA
    return lowered if lowered in (DATA, FLOW, BINARY) else None


def blob_content(data: Any, blob_type: str) -> bytes:
    """The bytes that are stored and hashed: compact JSON, or what the base64 text of ``binary`` stands for.

    Raises:
        ValueError: binary data are no base64 text.
        LocalProtocolError: other data are no JSON.
    """
    if blob_type != BINARY:
        return as_hashed(codec.encode_json(data))
    if type(data) is not str:
        raise ValueError("binary blob data must be base64 text")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ValueError(f"binary blob data are no base64: {exc}") from None


def as_hashed(text: bytes) -> bytes:
    """Compact JSON as the public releases spell it, so that ids are theirs: 1e+16, where ours is 1e16."""
    if _MAY_HAVE_EXPONENT.search(text) is None:
        return text
    return _STRING_OR_EXPONENT.sub(lambda m: m[0] + b"+" if m[0].endswith(b"e") else m[0], text)


def blob_id(content: bytes) -> str:
    """The lower-case hex SHA-256 of the content."""
    return hashlib.sha256(content).hexdigest()


def may_be_content(id_: str, data: Any, blob_type: str) -> bool:
    """Whether ``data``, as decoded from a message, can be what ``id_`` stands for.

    Exact for binary data and for JSON without fractions or huge integers. Those are spelled differently by
    different encoders, so that the text which was hashed cannot be told any more: they pass.
    """
    bare = normalize_blob_id(id_)
    kind = normalize_blob_type(blob_type)
    if bare is None or kind is None:
        return True  # an old peer's own naming, which says nothing about the content
    try:
        content = blob_content(data, kind)
    except ValueError:
        return False
    return blob_id(content) == bare or (kind != BINARY and _is_spelled_freely(data))


def _is_spelled_freely(value: Any) -> bool:
    pending: list[Any] = [value]
    while pending:
        part = pending.pop()
        if type(part) is list:
            pending.extend(cast("list[Any]", part))
        elif type(part) is dict:
            pending.extend(cast("dict[str, Any]", part).values())
        elif type(part) is float or (type(part) is int and not -(2**63) <= part < 2**64):
            return True
    return False
