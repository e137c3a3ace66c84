"""The schema that we print: what we send is valid by it, and what is wrong is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from payload_instances import INSTANCES, wire

from stepflow_trio.errors import ErrorCode
from stepflow_trio.protocol import codec, dialects, methods
from stepflow_trio.protocol.dialects import Dialect, Hello
from stepflow_trio.protocol.messages import MAX_ID, MIN_ID, ErrorObject
from stepflow_trio.protocol.payloads import ProgressParams
from stepflow_trio.protocol.peer import Peer, Role
from stepflow_trio.protocol.schema import message_schema, methods_of

SCHEMAS = {dialect: message_schema(dialect) for dialect in Dialect}
CHECKS = {dialect: jsonschema_rs.validator_for(schema) for dialect, schema in SCHEMAS.items()}
IDS = [7, 0, -1, MAX_ID, MIN_ID, "i1", ""]

EACH = pytest.mark.parametrize("dialect", Dialect, ids=lambda dialect: dialect.value)


def definition(dialect: Dialect, name: str) -> jsonschema_rs.Validator:
    """The schema of one of the results, which a response does not name."""
    schema = {**SCHEMAS[dialect], "$ref": f"#/$defs/{name}"}
    del schema["oneOf"]
    return jsonschema_rs.validator_for(schema)


def nodes(node: Any) -> Iterator[Any]:
    yield node
    if isinstance(node, (dict, list)):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from nodes(inner)


# ---- the document -----------------------------------------------------------------------------------


@EACH
def test_the_schema_is_a_schema_of_draft_2020_12(dialect: Dialect) -> None:
    assert SCHEMAS[dialect]["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert jsonschema_rs.meta.is_valid(SCHEMAS[dialect])
    assert json.loads(json.dumps(SCHEMAS[dialect], allow_nan=False)) == SCHEMAS[dialect], "it is plain JSON"
    assert dialect.value in SCHEMAS[dialect]["title"]


@EACH
def test_the_schema_refers_to_nothing_outside_itself_and_defines_nothing_in_vain(dialect: Dialect) -> None:
    schema = SCHEMAS[dialect]
    refs = {node["$ref"] for node in nodes(schema) if isinstance(node, dict) and "$ref" in node}
    assert all(ref.startswith("#/$defs/") for ref in refs)
    named = {ref.removeprefix("#/$defs/") for ref in refs}
    assert named <= set(schema["$defs"])
    results = {method.result.__name__ for method in methods_of(dialect)} | {"InitializeResult"}
    assert set(schema["$defs"]) == named | results


@EACH
def test_every_object_that_holds_something_is_described(dialect: Dialect) -> None:
    for name, found in SCHEMAS[dialect]["$defs"].items():
        assert {"type", "anyOf", "oneOf"} & set(found), name


def test_the_schema_of_the_newest_dialect_is_the_default() -> None:
    assert message_schema() == SCHEMAS[Dialect.V0_11]


def test_each_schema_is_made_anew() -> None:
    message_schema()["$defs"].clear()
    assert message_schema() == SCHEMAS[Dialect.V0_11]


def test_runs_came_after_flows() -> None:
    names = {dialect: {method.name for method in methods_of(dialect)} for dialect in Dialect}
    assert names[Dialect.V0_9] == names[Dialect.V0_11]
    assert names[Dialect.V0_8] - names[Dialect.V0_11] == {
        "flows/evaluate", "flows/get_metadata", "flows/submit_batch", "flows/get_batch",
    }  # fmt: skip
    assert names[Dialect.V0_11] - names[Dialect.V0_8] == {"runs/submit", "runs/get"}


# ---- what we send -----------------------------------------------------------------------------------


@EACH
def test_every_request_that_we_send_is_valid(dialect: Dialect) -> None:
    for method in methods_of(dialect):
        for params in INSTANCES[method][0]:
            for id_ in IDS:
                CHECKS[dialect].validate(json.loads(codec.encode_request(method.name, params, id_)))


@EACH
def test_every_result_that_we_send_is_valid(dialect: Dialect) -> None:
    for method in methods_of(dialect):
        for result in INSTANCES[method][1]:
            definition(dialect, method.result.__name__).validate(wire(result))
            for id_ in IDS:
                CHECKS[dialect].validate(json.loads(codec.encode_success(result, id_)))


@EACH
def test_every_initialization_that_we_send_is_valid(dialect: Dialect) -> None:
    for known in (dialect, None):
        for more in ({}, {"extensions": ()}, {"blob_api_url": "http://x", "blob_threshold": 0}):
            params = dialects.write_initialize_params(known, **more)
            CHECKS[dialect].validate(json.loads(codec.encode_request("initialize", params, 1)))
    for announced in (False, True):
        for refs in (False, True):
            hello = Hello(dialect=dialect, version=1, announced=announced)
            result = dialects.write_initialize_result(hello, supports_blob_refs=refs)
            definition(dialect, "InitializeResult").validate(wire(result))
            CHECKS[dialect].validate(json.loads(codec.encode_success(result, "i1")))


@EACH
def test_every_notification_that_we_send_is_valid(dialect: Dialect) -> None:
    peer = Peer(Role.PLAIN)
    cancel = peer.abandon(peer.call("m")[0])
    assert cancel is not None
    progress = [
        ProgressParams(step_id="s", progress=0.0),
        ProgressParams(step_id="s", progress=1.0, message="x", run_id="r"),
    ]
    for frame in (
        cancel,
        codec.encode_notification(methods.INITIALIZED, {}),
        codec.encode_notification(methods.INITIALIZED, {"params may": "be absent"}),
        *(codec.encode_notification(methods.PROGRESS_UPDATE.name, params) for params in progress),
    ):
        CHECKS[dialect].validate(json.loads(frame))


@EACH
def test_every_error_that_we_send_is_valid(dialect: Dialect) -> None:
    for code in (*ErrorCode, 0, 1, MAX_ID, MIN_ID):
        for error in (ErrorObject(code, ""), ErrorObject(code, "x", None), ErrorObject(code, "x", [1])):
            for id_ in (*IDS, None):
                CHECKS[dialect].validate(json.loads(codec.encode_failure(error, id_)))
    for bad in (b"{", b"1", b"[]", b'{"id":1,"id":2}', b'{"jsonrpc":"2.0","method":1,"id":"a"}'):
        for event in Peer().receive(bad):
            CHECKS[dialect].validate(json.loads(event.frame))  # pyright: ignore[reportAttributeAccessIssue]: all are replies


@EACH
def test_params_that_hold_nothing_may_be_left_out(dialect: Dialect) -> None:
    for frame in (
        b'{"jsonrpc":"2.0","method":"components/list","id":1}',
        b'{"jsonrpc":"2.0","method":"initialized"}',
    ):
        CHECKS[dialect].validate(json.loads(frame))
    assert not CHECKS[dialect].is_valid({"jsonrpc": "2.0", "method": "components/info", "id": 1})


# ---- what is wrong ----------------------------------------------------------------------------------

EXECUTE = {"component": "/a", "input": 1}
ANY_TIME: list[Any] = [
    None, 1, "x", [], {}, {"jsonrpc": "2.0"},
    {"jsonrpc": "2.0", "id": 1},
    {"jsonrpc": "1.0", "method": "components/list", "params": {}, "id": 1},
    {"method": "components/list", "params": {}, "id": 1},
    {"jsonrpc": "2.0", "method": "components/list", "params": {}},
    {"jsonrpc": "2.0", "method": "components/list", "params": [], "id": 1},
    {"jsonrpc": "2.0", "method": "components/list", "params": {}, "id": True},
    {"jsonrpc": "2.0", "method": "components/list", "params": {}, "id": 1.5},
    {"jsonrpc": "2.0", "method": "components/list", "params": {}, "id": None},
    {"jsonrpc": "2.0", "method": "components/list", "params": {}, "id": 2**63},
    {"jsonrpc": "2.0", "method": "components/list", "params": {}, "id": []},
    {"jsonrpc": "2.0", "method": "no/such", "params": {}, "id": 1},
    {"jsonrpc": "2.0", "method": "components/info", "params": {}, "id": 1},
    {"jsonrpc": "2.0", "method": "components/info", "params": {"component": 1}, "id": 1},
    {"jsonrpc": "2.0", "method": "components/execute", "params": {"component": "/a"}, "id": 1},
    {"jsonrpc": "2.0", "method": "components/execute", "params": {**EXECUTE, "attempt": -1}, "id": 1},
    {"jsonrpc": "2.0", "method": "components/execute", "params": {**EXECUTE, "attempt": "1"}, "id": 1},
    {"jsonrpc": "2.0", "method": "initialize", "params": {}, "id": 1},
    {"jsonrpc": "2.0", "method": "initialized", "params": {}, "id": 1},
    {"jsonrpc": "2.0", "method": "initialized", "params": []},
    {"jsonrpc": "2.0", "method": "progress_update", "params": {"step_id": "s"}},
    {"jsonrpc": "2.0", "method": "progress_update", "params": {"step_id": "s", "progress": 1.5}},
    {"jsonrpc": "2.0", "method": "progress_update"},
    {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {}},
    {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": True}},
    {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": 1}, "id": 1},
    {"jsonrpc": "2.0", "result": 1},
    {"jsonrpc": "2.0", "result": 1, "id": None},
    {"jsonrpc": "2.0", "result": 1, "id": True},
    {"jsonrpc": "2.0", "result": 1, "error": {"code": 1, "message": "x"}, "id": 1},
    {"jsonrpc": "2.0", "error": {"code": 1, "message": "x"}},
    {"jsonrpc": "2.0", "error": {"code": "1", "message": "x"}, "id": 1},
    {"jsonrpc": "2.0", "error": {"code": 1}, "id": 1},
    {"jsonrpc": "2.0", "error": {"message": "x"}, "id": 1},
    {"jsonrpc": "2.0", "error": "x", "id": 1},
    {"jsonrpc": "2.0", "error": None, "id": 1},
    {"jsonrpc": "2.0", "method": "components/list", "params": {}, "result": 1, "id": 1},
    {"jsonrpc": "2.0", "method": "components/list", "error": {"code": 1, "message": "x"}, "id": 1},
    {"jsonrpc": "2.0", "method": "initialized", "params": {}, "result": 1},
]  # fmt: skip


@EACH
@pytest.mark.parametrize("message", ANY_TIME, ids=json.dumps)
def test_what_is_wrong_is_invalid(dialect: Dialect, message: Any) -> None:
    assert not CHECKS[dialect].is_valid(message)


@EACH
def test_a_method_of_another_dialect_is_invalid(dialect: Dialect) -> None:
    here = {method.name for method in methods_of(dialect)}
    for method in methods.METHODS:
        frame = json.loads(codec.encode_request(method.name, INSTANCES[method][0][0], 1))
        assert CHECKS[dialect].is_valid(frame) == (method.name in here)


def test_initialize_is_spelled_as_the_dialect_spells_it() -> None:
    def ask(key: str) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "method": "initialize", "params": {key: 1}, "id": 1}

    for dialect in Dialect:
        camel = dialect is Dialect.V0_11
        assert CHECKS[dialect].is_valid(ask("runtimeProtocolVersion")) == camel
        assert CHECKS[dialect].is_valid(ask("runtime_protocol_version")) == (not camel)
        assert definition(dialect, "InitializeResult").is_valid({"serverProtocolVersion": 1}) == camel
        assert definition(dialect, "InitializeResult").is_valid({"server_protocol_version": 1}) != camel


def test_initialize_is_described_down_to_its_capabilities() -> None:
    def ask(key: str, version: int, capabilities: Any) -> dict[str, Any]:
        params = {key: version, "capabilities": capabilities}
        return {"jsonrpc": "2.0", "method": "initialize", "params": params, "id": 1}

    newest, oldest = CHECKS[Dialect.V0_11], CHECKS[Dialect.V0_8]
    for capabilities in (None, {}, {"blobApiUrl": None, "blobThreshold": None, "extensions": []}):
        assert newest.is_valid(ask("runtimeProtocolVersion", 1, capabilities))
    for wrong in ([], {"blobApiUrl": 1}, {"blobThreshold": "1"}, {"blobThreshold": -1}, {"extensions": "x"}):
        assert not newest.is_valid(ask("runtimeProtocolVersion", 1, wrong))
    assert not newest.is_valid(ask("runtimeProtocolVersion", -1, {}))
    assert not oldest.is_valid(ask("runtime_protocol_version", 1, {"extensions": [1]}))
    assert oldest.is_valid(ask("runtime_protocol_version", 1, {"blobApiUrl": 1})), "it knows no such key"
    result = definition(Dialect.V0_11, "InitializeResult")
    assert result.is_valid({"serverProtocolVersion": 0, "supportsBlobRefs": True, "extensions": ["x"]})
    assert not result.is_valid({"serverProtocolVersion": 1, "supportsBlobRefs": "yes"})
    assert not result.is_valid({"serverProtocolVersion": -1})


def test_codes_are_explained_where_we_know_what_they_mean() -> None:
    def explanation(dialect: Dialect) -> str | None:
        return SCHEMAS[dialect]["$defs"]["Error"]["properties"]["code"].get("description")

    assert explanation(Dialect.V0_8) is explanation(Dialect.V0_9) is None
    known = explanation(Dialect.V0_11)
    assert known is not None
    assert "-32304: overloaded" in known
    assert known.count(";") == len(ErrorCode) - 1


@EACH
def test_a_field_left_out_of_what_we_send_is_missed_where_it_is_required(dialect: Dialect) -> None:
    for method in methods_of(dialect):
        schema = SCHEMAS[dialect]["$defs"][method.params.__name__]
        whole = json.loads(codec.encode_request(method.name, INSTANCES[method][0][-1], 1))
        for key in whole["params"]:
            params = {name: value for name, value in whole["params"].items() if name != key}
            is_valid = CHECKS[dialect].is_valid({**whole, "params": params})
            assert is_valid == (key not in schema.get("required", ())), (method.name, key)
