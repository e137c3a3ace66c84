"""Errors on their way over the wire: what a caller is raised, and what a peer is told."""

from __future__ import annotations

import logging
import secrets

from msgspec import UNSET

from stepflow_trio.errors import (
    CallCancelled,
    CallFailed,
    ErrorCode,
    Overloaded,
    RemoteProtocolError,
    RpcError,
    StepflowError,
)
from stepflow_trio.protocol.messages import ErrorObject
from stepflow_trio.protocol.peer import AnsweredWithError, InboundRequest

_KINDS: dict[int, type[CallFailed]] = {
    ErrorCode.OVERLOADED: Overloaded,
    ErrorCode.REQUEST_CANCELLED: CallCancelled,
}

_log = logging.getLogger("stepflow_trio.engine")


def failure_of_call(event: AnsweredWithError) -> StepflowError:
    """What the caller is raised: the peer's error, or that its answer cannot be read."""
    error, method = event.error, event.call.method
    data = None if error.data is UNSET else error.data
    if event.garbled:
        message = f"the peer's answer to {method} is no JSON-RPC response: {data}"
        return RemoteProtocolError(message, code=ErrorCode.GARBLED_MESSAGE, data=data)
    return _KINDS.get(error.code, CallFailed)(error.code, error.message, data, method=method)


def error_for_peer(exc: Exception, inbound: InboundRequest) -> ErrorObject:
    """What the peer is told. The text of an exception that nobody meant to send stays in our log."""
    if isinstance(exc, RpcError):
        return ErrorObject(exc.code, exc.message, UNSET if exc.data is None else exc.data)
    incident = secrets.token_hex(4)
    _log.error("request %r %s failed, incident %s", inbound.id, inbound.method, incident, exc_info=exc)
    return ErrorObject(ErrorCode.INTERNAL_ERROR, "Internal error", {"incident": incident})
