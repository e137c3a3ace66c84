"""Messages made member by member, so that any of them can be wrong."""

from __future__ import annotations

from stepflow_trio.errors import ErrorCode
from stepflow_trio.protocol.messages import Malformed


def frame(**members: str | None) -> bytes:
    """One object with these members as JSON text; those that are None are left out."""
    members = {"jsonrpc": '"2.0"', **members}
    pairs = (f'"{key}":{text}' for key, text in members.items() if text is not None)
    return f"{{{','.join(pairs)}}}".encode()


def malformed(message: object) -> Malformed:
    assert type(message) is Malformed, message
    assert message.error.code == ErrorCode.INVALID_REQUEST
    assert message.error.message == "Invalid Request"
    assert list(message.error.data) == ["detail"]
    return message
