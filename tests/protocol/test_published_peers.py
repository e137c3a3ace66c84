"""What we send, against the schemas that were published; what public peers sent, against what we read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from payload_instances import BY_NAME, INSTANCES, wire

from stepflow_trio.errors import ErrorCode
from stepflow_trio.protocol import codec, dialects, methods, payloads
from stepflow_trio.protocol.dialects import Dialect, Hello
from stepflow_trio.protocol.messages import ErrorObject, Failure, Malformed, Notification, Request, Success
from stepflow_trio.protocol.peer import Dropped, InboundRequest, Peer, Phase, Reply, Role
from stepflow_trio.protocol.schema import methods_of

SHARED = Path(__file__).parents[2].parent / "shared"
PUBLISHED = SHARED / "peers" / "schemas"
TRANSCRIPTS = SHARED / "peers" / "transcripts"
needs_schemas = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published schemas are not here")
needs_transcripts = pytest.mark.skipif(not TRANSCRIPTS.is_dir(), reason="the recordings are not here")


FILES = {Dialect.V0_8: "0.8.0", Dialect.V0_9: "0.9.0", Dialect.V0_11: "0.11.1"}

EVERYWHERE = {
    "components/list": ("ComponentListParams", "ListComponentsResult"),
    "components/info": ("ComponentInfoParams", "ComponentInfoResult"),
    "components/execute": ("ComponentExecuteParams", "ComponentExecuteResult"),
}
INFERENCE = {"components/infer_schema": ("ComponentInferSchemaParams", "ComponentInferSchemaResult")}
BLOBS = {"blobs/put": ("PutBlobParams", "PutBlobResult"), "blobs/get": ("GetBlobParams", "GetBlobResult")}
RUNS = {
    "runs/submit": ("SubmitRunProtocolParams", "RunStatusProtocol"),
    "runs/get": ("GetRunProtocolParams", "RunStatusProtocol"),
}
FLOWS = {
    "flows/evaluate": ("EvaluateFlowParams", "EvaluateFlowResult"),
    "flows/get_metadata": ("GetFlowMetadataParams", "GetFlowMetadataResult"),
    "flows/submit_batch": ("SubmitBatchParams", "SubmitBatchResult"),
    "flows/get_batch": ("GetBatchParams", "GetBatchResult"),
}
DEFINITIONS: dict[Dialect, dict[str, tuple[str, str]]] = {
    Dialect.V0_8: EVERYWHERE | BLOBS | FLOWS,
    Dialect.V0_9: EVERYWHERE | INFERENCE | BLOBS | RUNS,
    Dialect.V0_11: EVERYWHERE | INFERENCE | RUNS,
}


def published(dialect: Dialect) -> dict[str, Any]:
    document = json.loads((PUBLISHED / f"protocol-{FILES[dialect]}.json").read_text(encoding="utf-8"))
    return without_empty_all_of(document)


def without_empty_all_of(node: Any) -> Any:
    """0.9.0 says ``{"allOf": []}`` for "anything", which draft 2020-12 does not allow."""
    if isinstance(node, dict):
        return {
            key: without_empty_all_of(value) for key, value in node.items() if (key, value) != ("allOf", [])
        }
    if isinstance(node, list):
        return [without_empty_all_of(value) for value in node]
    return node


def validator(document: dict[str, Any], name: str) -> jsonschema_rs.Validator:
    assert name in document["$defs"]
    schema = {"$schema": document["$schema"], "$ref": f"#/$defs/{name}", "$defs": document["$defs"]}
    return jsonschema_rs.validator_for(schema)


@needs_schemas
@pytest.mark.parametrize("dialect", Dialect)
def test_every_method_of_the_published_schema_exists_in_its_dialect(dialect: Dialect) -> None:
    names = set(published(dialect)["$defs"]["Method"]["enum"]) - {methods.INITIALIZE, methods.INITIALIZED}
    assert names == set(DEFINITIONS[dialect])
    assert names <= {method.name for method in methods_of(dialect)}


@needs_schemas
@pytest.mark.parametrize(
    ("dialect", "name"),
    [(dialect, name) for dialect, names in DEFINITIONS.items() for name in names],
    ids=lambda value: value if isinstance(value, str) else value.value,
)
def test_everything_that_a_method_sends_is_valid_by_the_published_schema(dialect: Dialect, name: str) -> None:
    document = published(dialect)
    for definition, instances in zip(DEFINITIONS[dialect][name], INSTANCES[BY_NAME[name]], strict=True):
        check = validator(document, definition)
        for instance in instances:
            check.validate(wire(instance))


@needs_schemas
def test_a_submission_without_a_key_is_valid_where_the_key_did_not_exist() -> None:
    params = payloads.SubmitRunParams(flow_id="f", inputs=[])
    validator(published(Dialect.V0_9), "SubmitRunProtocolParams").validate(wire(params))
    assert not validator(published(Dialect.V0_11), "SubmitRunProtocolParams").is_valid(wire(params))


@needs_schemas
@pytest.mark.parametrize("dialect", Dialect)
def test_every_initialization_is_valid_by_the_published_schema(dialect: Dialect) -> None:
    document = published(dialect)
    ask, tell = validator(document, "InitializeParams"), validator(document, "InitializeResult")
    for known in (dialect, None):
        ask.validate(wire(dialects.write_initialize_params(known)))
        ask.validate(wire(dialects.write_initialize_params(known, extensions=())))
        ask.validate(
            wire(dialects.write_initialize_params(known, blob_api_url="http://x/blobs", blob_threshold=0))
        )
    for announced in (False, True):
        hello = Hello(dialect=dialect, version=1, announced=announced)
        tell.validate(wire(dialects.write_initialize_result(hello)))
        tell.validate(wire(dialects.write_initialize_result(hello, supports_blob_refs=True)))


@needs_schemas
@pytest.mark.parametrize("dialect", [Dialect.V0_9, Dialect.V0_11], ids=lambda d: d.value)
def test_every_frame_is_valid_by_the_published_schema(dialect: Dialect) -> None:
    """0.8.0 is left out: its ``oneOf`` of all params fits no request, since several always match."""
    document = published(dialect)
    request, success = validator(document, "MethodRequest"), validator(document, "MethodSuccess")
    failure, notification = validator(document, "MethodError"), validator(document, "Notification")
    whole = jsonschema_rs.validator_for(document)
    for name in DEFINITIONS[dialect]:
        for id_ in (7, -(2**63), "i1"):
            for params in INSTANCES[BY_NAME[name]][0]:
                frame = json.loads(codec.encode_request(name, params, id_))
                request.validate(frame)
            for result in INSTANCES[BY_NAME[name]][1]:
                frame = json.loads(codec.encode_success(result, id_))
                success.validate(frame)
                whole.validate(frame)
            for code in ErrorCode:
                for error in (ErrorObject(code, "x"), ErrorObject(code, "x", {"a": None})):
                    failure.validate(json.loads(codec.encode_failure(error, id_)))
    notification.validate(json.loads(codec.encode_notification(methods.INITIALIZED, {})))
    assert not request.is_valid({"jsonrpc": "2.0", "id": True, "method": "components/list"})


@needs_schemas
def test_our_error_codes_are_the_published_ones_and_five_of_our_own() -> None:
    codes = set(published(Dialect.V0_11)["$defs"]["ErrorCode"]["enum"])
    assert {int(code) for code in ErrorCode} - codes == {
        ErrorCode.STEP_TIMED_OUT,
        ErrorCode.RUN_TIMED_OUT,
        ErrorCode.OVERLOADED,
        ErrorCode.CONNECT_TIMED_OUT,
        ErrorCode.REQUEST_CANCELLED,
    }
    assert codes <= {int(code) for code in ErrorCode}


# ---- what public peers really said ------------------------------------------------------------------


def transcript(name: str) -> list[tuple[str, bytes]]:
    """The messages of a recording, as (who → whom, frame), in their order."""
    found: list[tuple[str, bytes]] = []
    direction = ""
    for line in (TRANSCRIPTS / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("####"):
            direction = "runtime" if "runtime->worker" in line else "worker"
        elif line.startswith(("runtime->worker ", "worker->runtime ")):
            who, _, text = line.partition(" ")
            found.append((who.partition("->")[0], text.encode()))
        elif (text := line.removeprefix("data: ")).startswith("{") and '"jsonrpc"' in text:
            found.append((direction, text.encode()))
    return found


STDIO = "stdio-worker-0.7.0.log"
RECORDINGS = [STDIO, "http-orchestrator-0.9.0-worker-0.9.2.log", "http-orchestrator-0.11.1-worker-0.11.2.log"]


@needs_transcripts
@pytest.mark.parametrize("name", RECORDINGS)
def test_every_message_that_a_public_peer_sent_is_understood(name: str) -> None:
    """The one line that is no JSON was sent on purpose."""
    messages = [(who, text, codec.decode(text)) for who, text in transcript(name)]
    assert len(messages) > 15
    bad = [text for _, text, message in messages if type(message) is Malformed]
    assert bad == ([b'{"jsonrpc":"2.0", bad json'] if name == STDIO else [])

    asked: dict[Any, Request] = {}
    answered = 0
    for who, _, message in messages:
        if type(message) is Request:
            asked[who, message.id] = message
            if message.method == methods.INITIALIZE:
                dialects.read_initialize_params(message.params, "stdio" if name == STDIO else "http")
            elif message.method in BY_NAME:
                BY_NAME[message.method].read_params(message.params)
        elif type(message) is Success:
            request = asked["worker" if who == "runtime" else "runtime", message.id]
            answered += 1
            if request.method == methods.INITIALIZE:
                dialects.read_initialize_result(message.result, "stdio" if name == STDIO else "http")
            else:
                BY_NAME[request.method].read_result(message.result)
        elif type(message) is Failure:
            answered += 1
        elif type(message) is Notification:
            assert message.method == methods.INITIALIZED
    assert answered > 5


@needs_transcripts
def test_a_recorded_connection_replays_through_a_worker_and_its_answers_are_known_to_the_runtime() -> None:
    worker, runtime = Peer(Role.WORKER), Peer(Role.PLAIN)
    lines = transcript(STDIO)
    running: dict[Any, InboundRequest] = {}
    refused: list[bytes] = []
    for who, text in lines:
        if who == "worker":
            message = codec.decode(text)
            if type(message) in (Success, Failure) and message.id in running:
                request = running.pop(message.id)
                worker.answer(request, {})
            (event,) = runtime.receive(text)
            # Its ids are the recorded runtime's, not ours: what matters is that each line is a message.
            assert not isinstance(event, Reply)
            assert not (isinstance(event, Dropped) and event.why == "malformed_answer")
            continue
        (event,) = worker.receive(text)
        if type(event) is InboundRequest:
            running[event.id] = event
        elif type(event) is Reply:
            refused.append(text)
    assert worker.phase is Phase.READY
    assert [json.loads(text)["method"] for text in refused[:1]] == ["components/list"], "before initialize"
    assert refused[1:] == [b'{"jsonrpc":"2.0", bad json']
    assert [request.method for request in running.values()] == ["no/such"], "which that worker never answered"
