"""What is answered where a request cannot be done: ``{code, message}``, the code being the HTTP status."""

from __future__ import annotations

from collections.abc import Sequence

from stepflow_trio.errors import (
    ErrorCode,
    FlowInvalid,
    FlowNotFound,
    KeyReused,
    RpcError,
    RunNotFound,
    StateConflict,
    StepflowError,
)
from stepflow_trio.flows.diagnostics import printable

_STATUS_OF_CODE: dict[int, int] = {
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.INVALID_VALUE: 400,
    ErrorCode.INVALID_INPUT_SCHEMA: 400,
}


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.headers = tuple(headers)


class ClientGone(Exception):
    """There is nobody to answer."""


def api_error(exc: StepflowError) -> ApiError | None:
    """The answer that an exception of the runtime stands for; None where it is a fault of ours."""
    match exc:
        case RunNotFound() | FlowNotFound():
            status = 404
        case KeyReused():
            status = 422
        case StateConflict():
            status = 409
        case FlowInvalid():
            status = 400
        case RpcError() if exc.code in _STATUS_OF_CODE:
            return ApiError(_STATUS_OF_CODE[exc.code], exc.message)
        case _:
            return None
    return ApiError(status, str(exc))


def shown(text: str) -> str:
    """What a client wrote, in the form in which a message may quote it."""
    return f'"{printable(text[:80])}"'
