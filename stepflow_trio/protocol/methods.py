"""Every method of the protocol: its name, who calls whom, what goes in and what comes out."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import msgspec
from msgspec import UNSET

from stepflow_trio.errors import ErrorCode, RemoteProtocolError, RpcError
from stepflow_trio.protocol import payloads as p

ParamsT = TypeVar("ParamsT")
ResultT = TypeVar("ResultT")

_PATH = re.compile(r" - at `(?P<path>[^`]*)`$")


class Direction(enum.Enum):
    """Who sends the request."""

    TO_WORKER = "runtime → worker"
    TO_RUNTIME = "worker → runtime"


@dataclass(frozen=True, slots=True)
class Method(Generic[ParamsT, ResultT]):
    """A request and its answer, typed.

    ``liberal`` rewrites params or results of older shapes; it is tried only on what does not fit at first.
    """

    name: str
    direction: Direction
    params: type[ParamsT]
    result: type[ResultT]
    liberal: Callable[[Any], Any] | None = None

    def read_params(self, params: Any) -> ParamsT:
        """Convert decoded params.

        Raises:
            RpcError: −32602, naming the JSON path that does not fit.
        """
        try:
            return self._convert({} if params is UNSET else params, self.params)
        except msgspec.ValidationError as exc:
            problem, path = split_validation_error(exc)
            message = f"Invalid params for {self.name}: {problem} at {path}"
            data = {"method": self.name, "path": path, "detail": problem}
            raise RpcError(ErrorCode.INVALID_PARAMS, message, data) from exc

    def read_result(self, result: Any) -> ResultT:
        """Convert a decoded result.

        Raises:
            RemoteProtocolError: −32303, naming the JSON path that does not fit.
        """
        try:
            return self._convert(result, self.result)
        except msgspec.ValidationError as exc:
            problem, path = split_validation_error(exc)
            message = f"the peer's result of {self.name} does not fit: {problem} at {path}"
            raise RemoteProtocolError(message, code=ErrorCode.GARBLED_MESSAGE, data={"path": path}) from exc

    def _convert(self, value: Any, to: type[Any]) -> Any:
        try:
            return msgspec.convert(value, to)
        except msgspec.ValidationError:
            if self.liberal is None:
                raise
            return msgspec.convert(self.liberal(value), to)


@dataclass(frozen=True, slots=True)
class NotificationMethod(Generic[ParamsT]):
    """A notification, typed."""

    name: str
    direction: Direction
    params: type[ParamsT]


def split_validation_error(exc: msgspec.ValidationError) -> tuple[str, str]:
    """What does not fit, and the JSON path where."""
    text = str(exc)
    found = _PATH.search(text)
    return (text[: found.start()], found["path"]) if found else (text, "$")


def _component_as_path(params: Any) -> Any:
    """Read ``{"component": {"name": …, "path"?: …}}`` as the path string too."""
    match params:
        case {"component": {"path": str() as path}}:
            pass
        case {"component": {"name": str() as name}}:
            path = name
        case _:
            return params
    return {**cast("dict[str, Any]", params), "component": path if path.startswith("/") else f"/{path}"}


def _names_as_components(result: Any) -> Any:
    """Read list entries that say ``name`` for ``component``, and an info that does."""
    match result:
        case {"components": list()}:
            entries = cast("list[Any]", result["components"])
            return {"components": [_name_as_component(entry) for entry in entries]}
        case {"info": _}:
            return {"info": _name_as_component(result["info"])}
        case _:
            return _component_as_path(result)


def _name_as_component(entry: Any) -> Any:
    match entry:
        case {"component": {}}:
            return _component_as_path(entry)
        case {"component": _}:
            return entry
        case {"name": str() as name}:
            return {**cast("dict[str, Any]", entry), "component": name}
        case _:
            return entry


_W, _R = Direction.TO_WORKER, Direction.TO_RUNTIME

COMPONENTS_LIST = Method("components/list", _W, p.ListParams, p.ListResult, _names_as_components)
COMPONENTS_INFO = Method("components/info", _W, p.InfoParams, p.InfoResult, _names_as_components)
COMPONENTS_EXECUTE = Method("components/execute", _W, p.ExecuteParams, p.ExecuteResult, _component_as_path)
COMPONENTS_INFER_SCHEMA = Method(
    "components/infer_schema", _W, p.InferSchemaParams, p.InferSchemaResult, _component_as_path
)
BLOBS_PUT = Method("blobs/put", _R, p.PutBlobParams, p.PutBlobResult)
BLOBS_GET = Method("blobs/get", _R, p.GetBlobParams, p.GetBlobResult)
RUNS_SUBMIT = Method("runs/submit", _R, p.SubmitRunParams, p.RunStatus)
RUNS_GET = Method("runs/get", _R, p.GetRunParams, p.RunStatus)
FLOWS_EVALUATE = Method("flows/evaluate", _R, p.EvaluateFlowParams, p.EvaluateFlowResult)
FLOWS_GET_METADATA = Method("flows/get_metadata", _R, p.FlowMetadataParams, p.FlowMetadataResult)
FLOWS_SUBMIT_BATCH = Method("flows/submit_batch", _R, p.SubmitBatchParams, p.SubmitBatchResult)
FLOWS_GET_BATCH = Method("flows/get_batch", _R, p.GetBatchParams, p.GetBatchResult)

PROGRESS_UPDATE = NotificationMethod("progress_update", _R, p.ProgressParams)

INITIALIZE = "initialize"
INITIALIZED = "initialized"

METHODS: tuple[Method[Any, Any], ...] = (
    COMPONENTS_LIST,
    COMPONENTS_INFO,
    COMPONENTS_EXECUTE,
    COMPONENTS_INFER_SCHEMA,
    BLOBS_PUT,
    BLOBS_GET,
    RUNS_SUBMIT,
    RUNS_GET,
    FLOWS_EVALUATE,
    FLOWS_GET_METADATA,
    FLOWS_SUBMIT_BATCH,
    FLOWS_GET_BATCH,
)
"""Every request but ``initialize``, whose shape depends on the dialect
(:mod:`stepflow_trio.protocol.dialects`)."""
