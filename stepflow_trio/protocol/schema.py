"""JSON Schema of every message, one document a dialect (printed by ``stepflow-trio schema``)."""

from __future__ import annotations

from typing import Any

import msgspec

from stepflow_trio.errors import ErrorCode
from stepflow_trio.protocol import methods
from stepflow_trio.protocol.dialects import EXTENSIONS, Dialect
from stepflow_trio.protocol.messages import MAX_ID, MIN_ID
from stepflow_trio.protocol.methods import Method
from stepflow_trio.protocol.peer import CANCEL_REQUEST

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/$defs/{name}"

_ONLY_0_8 = {
    methods.FLOWS_EVALUATE,
    methods.FLOWS_GET_METADATA,
    methods.FLOWS_SUBMIT_BATCH,
    methods.FLOWS_GET_BATCH,
}


def methods_of(dialect: Dialect) -> list[Method[Any, Any]]:
    """The methods that exist in a dialect, ``initialize`` apart."""
    hidden = {methods.RUNS_SUBMIT, methods.RUNS_GET} if not dialect.has_runs else _ONLY_0_8
    return [method for method in methods.METHODS if method not in hidden]


def message_schema(dialect: Dialect = Dialect.V0_11) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one message of ``dialect``; a batch is an array of such.

    Every request is described with its params; results are under ``$defs`` by their names, since a response
    does not say which method it answers.
    """
    existing = methods_of(dialect)
    types = [t for method in existing for t in (method.params, method.result)]
    types.append(methods.PROGRESS_UPDATE.params)
    _, defs = msgspec.json.schema_components(types, ref_template=_REF)
    defs = dict(defs)
    defs["RequestId"] = {
        "anyOf": [{"type": "string"}, {"type": "integer", "minimum": MIN_ID, "maximum": MAX_ID}]
    }
    defs["InitializeParams"], defs["InitializeResult"] = _initialize(dialect)
    defs["CancelParams"] = {
        "type": "object",
        "properties": {"id": {"$ref": "#/$defs/RequestId"}},
        "required": ["id"],
    }
    defs["Error"] = _error(dialect)
    requests = [_request(m.name, m.params.__name__, m.direction.value, m.result.__name__) for m in existing]
    for method, schema in zip(existing, requests, strict=True):
        if not any(field.required for field in msgspec.structs.fields(method.params)):
            schema["required"].remove("params")
    requests.insert(
        0, _request("initialize", "InitializeParams", methods.Direction.TO_WORKER.value, "InitializeResult")
    )
    notifications = [
        _notification("initialized", None, "Ends initialization."),
        _notification(methods.PROGRESS_UPDATE.name, "ProgressParams", "How far a step is."),
        _notification(CANCEL_REQUEST, "CancelParams", "Gives up a request that is in flight."),
    ]
    defs["Request"] = {"oneOf": requests}
    defs["Notification"] = {"oneOf": notifications}
    defs["Success"] = _object(result={}, id={"$ref": "#/$defs/RequestId"})
    defs["Failure"] = _object(
        error={"$ref": "#/$defs/Error"}, id={"anyOf": [{"$ref": "#/$defs/RequestId"}, {"type": "null"}]}
    )
    return {
        "$schema": _DRAFT,
        "title": f"Stepflow protocol, dialect {dialect.value}",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in ("Request", "Notification", "Success", "Failure")],
        "$defs": defs,
    }


def _object(**members: Any) -> dict[str, Any]:
    properties = {"jsonrpc": {"const": "2.0"}, **members}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _request(method: str, params: str, direction: str, result: str) -> dict[str, Any]:
    schema = _object(
        method={"const": method}, params={"$ref": f"#/$defs/{params}"}, id={"$ref": "#/$defs/RequestId"}
    )
    return {"title": method, "description": f"{direction}; answered with {result}.", **schema}


def _notification(method: str, params: str | None, description: str) -> dict[str, Any]:
    schema = _object(
        method={"const": method}, params={"$ref": f"#/$defs/{params}"} if params else {"type": "object"}
    )
    if params is None:
        schema["required"].remove("params")
    absent = {"anyOf": [{"required": [key]} for key in ("id", "result", "error")]}
    return {"title": method, "description": description, **schema, "not": absent}


def _initialize(dialect: Dialect) -> tuple[dict[str, Any], dict[str, Any]]:
    camel = dialect is Dialect.V0_11
    ask = "runtimeProtocolVersion" if camel else "runtime_protocol_version"
    tell = "serverProtocolVersion" if camel else "server_protocol_version"
    names = {"type": "array", "items": {"type": "string", "examples": list(EXTENSIONS)}}
    capabilities: dict[str, Any] = {"type": "object", "properties": {"extensions": names}}
    version = {"type": "integer", "minimum": 0}
    result: dict[str, Any] = {tell: version, "extensions": names}
    if camel:
        capabilities["properties"]["blobApiUrl"] = {"type": ["string", "null"]}
        capabilities["properties"]["blobThreshold"] = {"type": ["integer", "null"], "minimum": 0}
        result["supportsBlobRefs"] = {"type": "boolean", "default": False}
    params = {
        ask: version,
        "observability": {"anyOf": [{"$ref": "#/$defs/Observability"}, {"type": "null"}]},
        "capabilities": {"anyOf": [capabilities, {"type": "null"}]},
    }
    return (
        {"type": "object", "properties": params, "required": [ask]},
        {"type": "object", "properties": result, "required": [tell]},
    )


def _error(dialect: Dialect) -> dict[str, Any]:
    code: dict[str, Any] = {"type": "integer"}
    if dialect is Dialect.V0_11:
        names = "; ".join(f"{member.value}: {member.name.lower().replace('_', ' ')}" for member in ErrorCode)
        code["description"] = names
    return {
        "type": "object",
        "properties": {"code": code, "message": {"type": "string"}, "data": {}},
        "required": ["code", "message"],
    }
