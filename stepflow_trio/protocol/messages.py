"""The messages of JSON-RPC 2.0 as records (docs/protocol.md, section 1).

Field order is the order on the wire, which is that of the examples in the JSON-RPC 2.0 specification.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, TypeGuard, final

from msgspec import UNSET, Struct, UnsetType

RequestId: TypeAlias = int | str
"""An id as it travels: ``7`` and ``"7"`` are different ids, and no other JSON type is one."""

MIN_ID, MAX_ID = -(2**63), 2**63 - 1
"""The published schemas give integer ids the format int64; a larger one would not survive most peers."""

MAX_ID_CHARS = 4096
"""Longest text accepted as an id: it is repeated in every answer, which must stay small enough to be sent."""


@final
class ErrorObject(Struct, frozen=True):
    """The ``error`` member of an error response."""

    code: int
    message: str
    data: Any = UNSET


@final
class Request(Struct, frozen=True):
    """Asks for an answer. ``params`` is an object, an array or absent."""

    method: str
    params: dict[str, Any] | list[Any] | UnsetType
    id: RequestId


@final
class Notification(Struct, frozen=True):
    """Asks for none."""

    method: str
    params: dict[str, Any] | list[Any] | UnsetType = UNSET


@final
class Success(Struct, frozen=True):
    """The answer to request ``id``."""

    result: Any
    id: RequestId


@final
class Failure(Struct, frozen=True):
    """The other answer; ``id`` is None where the id of the message it is about could not be read."""

    error: ErrorObject
    id: RequestId | None


@final
class Malformed(Struct, frozen=True):
    """What arrived is no JSON-RPC message.

    ``error`` says so in the words of the specification; ``id`` is the message's own where it has a readable
    one. ``is_response`` is true for something that was meant as an answer: it must not be answered itself.
    """

    error: ErrorObject
    id: RequestId | None = None
    is_response: bool = False


@final
class Batch(Struct, frozen=True):
    """A JSON array of messages, in their order. Never empty."""

    items: tuple[Request | Notification | Success | Failure | Malformed, ...]


Message: TypeAlias = Request | Notification | Success | Failure
Decoded: TypeAlias = Message | Malformed | Batch


def is_answer(message: Decoded) -> TypeGuard[Success | Failure | Malformed]:
    """Whether a message was meant as an answer, though it may be malformed."""
    return type(message) in (Success, Failure) or (type(message) is Malformed and message.is_response)


class WireRequest(Struct, frozen=True):
    """A request as it is written."""

    jsonrpc: Literal["2.0"]
    method: str
    params: Any
    id: RequestId


class WireNotification(Struct, frozen=True):
    """A notification as it is written."""

    jsonrpc: Literal["2.0"]
    method: str
    params: Any


class WireSuccess(Struct, frozen=True):
    """A result as it is written."""

    jsonrpc: Literal["2.0"]
    result: Any
    id: RequestId


class WireFailure(Struct, frozen=True):
    """An error as it is written."""

    jsonrpc: Literal["2.0"]
    error: ErrorObject
    id: RequestId | None
