"""What a step, or a whole run, came to: success with a value, or failure with an error."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from stepflow_trio.errors import ErrorCode, RemoteProtocolError
from stepflow_trio.protocol.json_types import json_type

__all__ = ["Failed", "FlowError", "FlowResult", "Success", "flow_result_from_json"]


# No matter of the garbage collector (`gc=False`): what they hold is JSON, which never refers back to them.


class FlowError(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A failure as data: an integer ``code``, a ``message`` and optional JSON ``data``."""

    code: int
    message: str
    data: Any = None

    def to_json(self) -> dict[str, Any]:
        """``{"code", "message", "data"?}``; data that is null is left out."""
        # A code of our own is an enumeration's member, which is not of JSON's types.
        error: dict[str, Any] = {"code": int(self.code), "message": self.message}
        if self.data is not None:
            error["data"] = self.data
        return error


class Success(msgspec.Struct, frozen=True, tag_field="outcome", tag="success", gc=False):
    """It succeeded with the JSON value ``result``."""

    result: Any

    def to_json(self) -> dict[str, Any]:
        """``{"outcome": "success", "result": …}``."""
        return {"outcome": "success", "result": self.result}


class Failed(msgspec.Struct, frozen=True, tag_field="outcome", tag="failed", gc=False):
    """It failed with ``error``."""

    error: FlowError

    def to_json(self) -> dict[str, Any]:
        """``{"outcome": "failed", "error": {…}}``."""
        return {"outcome": "failed", "error": self.error.to_json()}


FlowResult = Success | Failed


def flow_result_from_json(value: object) -> FlowResult:
    """Read what `Success.to_json` or `Failed.to_json` wrote; unknown fields are ignored.

    Raises `RemoteProtocolError` that names the field that is wrong.
    """
    result = _object(value, "$")
    match result.get("outcome"):
        case "success":
            if "result" not in result:
                raise _wrong('$ has "outcome": "success" but no "result"')
            return Success(result["result"])
        case "failed":
            error = _object(result.get("error"), "$.error")
            code, message = error.get("code"), error.get("message")
            if not isinstance(code, int) or isinstance(code, bool):
                raise _wrong(f"$.error.code must be an integer, not {json_type(code)}")
            if not isinstance(message, str):
                raise _wrong(f"$.error.message must be a string, not {json_type(message)}")
            return Failed(FlowError(code, message, error.get("data")))
        case outcome:
            raise _wrong(f'$.outcome must be "success" or "failed", not {_shown(outcome)}')


def _object(value: object, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(f"{at} must be an object, not {json_type(value)}")
    return cast("dict[str, Any]", value)


def _shown(value: object) -> str:
    return f'"{value[:40]}"' if isinstance(value, str) else json_type(value)


def _wrong(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"not a flow result: {message}", code=ErrorCode.INVALID_PARAMS)
