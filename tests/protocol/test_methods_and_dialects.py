"""What methods carry, in every generation of the protocol: read liberally, written as specified."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from payload_instances import BY_NAME, INSTANCES, wire

from stepflow_trio.errors import ErrorCode, RemoteProtocolError, RpcError
from stepflow_trio.protocol import dialects, methods
from stepflow_trio.protocol import payloads as p
from stepflow_trio.protocol.dialects import Dialect, TransportKind, Welcome
from stepflow_trio.protocol.methods import Direction, Method

FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=100)
ALL = pytest.mark.parametrize("method", methods.METHODS, ids=[method.name for method in methods.METHODS])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def test_every_method_has_instances_that_set_nothing_and_everything() -> None:
    assert set(INSTANCES) == set(methods.METHODS)
    assert len(BY_NAME) == len(methods.METHODS)
    for method, (params, results) in INSTANCES.items():
        for kind, instances in ((method.params, params), (method.result, results)):
            assert all(type(instance) is kind for instance in instances)
            fields = msgspec.structs.fields(kind)
            left = {
                field.name
                for field in fields
                if all(getattr(i, field.name) == field.default for i in instances)
            }
            assert not left, f"{kind.__name__}: no instance sets {left}"
            assert {key for i in instances for key in wire(i)} == {field.encode_name for field in fields}


# ---- reading ----------------------------------------------------------------------------------------


@ALL
def test_what_is_written_is_read_as_it_was(method: Method[Any, Any]) -> None:
    params, results = INSTANCES[method]
    for instance in params:
        assert method.read_params(wire(instance)) == instance
    for instance in results:
        assert method.read_result(wire(instance)) == instance


@ALL
def test_unknown_fields_are_ignored(method: Method[Any, Any]) -> None:
    params, results = INSTANCES[method]
    assert method.read_params({**wire(params[-1]), "x-new": 1, "Component": 2}) == params[-1]
    assert method.read_result({**wire(results[-1]), "x-new": 1, "meta": {}}) == results[-1]


@ALL
def test_a_missing_field_is_named(method: Method[Any, Any]) -> None:
    params, results = INSTANCES[method]
    for field in msgspec.structs.fields(method.params):
        given = {key: value for key, value in wire(params[-1]).items() if key != field.encode_name}
        if not field.required:
            method.read_params(given)
            continue
        with pytest.raises(
            RpcError, match=f"Invalid params for {method.name}: .*`{field.encode_name}` at \\$"
        ) as caught:
            method.read_params(given)
        assert caught.value.code == ErrorCode.INVALID_PARAMS
        assert caught.value.data["method"] == method.name
        assert caught.value.data["path"] == "$"
    for field in msgspec.structs.fields(method.result):
        given = {key: value for key, value in wire(results[-1]).items() if key != field.encode_name}
        if not field.required:
            method.read_result(given)
            continue
        with pytest.raises(
            RemoteProtocolError, match=f"{method.name} does not fit: .*`{field.encode_name}`"
        ) as garbled:
            method.read_result(given)
        assert garbled.value.code == ErrorCode.GARBLED_MESSAGE


@ALL
def test_null_and_absent_mean_the_same_in_optional_fields(method: Method[Any, Any]) -> None:
    params, results = INSTANCES[method]
    for kind, read, instance in (
        (method.params, method.read_params, params[0]),
        (method.result, method.read_result, results[0]),
    ):
        optional = {f.encode_name: None for f in msgspec.structs.fields(kind) if f.default is None}
        assert read({**optional, **wire(instance)}) == instance


def test_absent_params_are_an_empty_object() -> None:
    assert methods.COMPONENTS_LIST.read_params(UNSET) == p.ListParams()
    with pytest.raises(RpcError, match="component"):
        methods.COMPONENTS_INFO.read_params(UNSET)


EXECUTE = {"component": "/a", "input": 1}


@pytest.mark.parametrize(
    ("method", "params", "path", "problem"),
    [
        (methods.COMPONENTS_LIST, [], "$", "array"),
        (methods.COMPONENTS_INFO, ["/a"], "$", "array"),
        (methods.COMPONENTS_EXECUTE, {"component": 1, "input": 1}, "$.component", "int"),
        (methods.COMPONENTS_EXECUTE, {**EXECUTE, "attempt": 1.0}, "$.attempt", "float"),
        (methods.COMPONENTS_EXECUTE, {**EXECUTE, "attempt": True}, "$.attempt", "bool"),
        (methods.COMPONENTS_EXECUTE, {**EXECUTE, "attempt": "1"}, "$.attempt", "str"),
        (methods.COMPONENTS_EXECUTE, {**EXECUTE, "attempt": -1}, "$.attempt", ">= 0"),
        (methods.COMPONENTS_EXECUTE, EXECUTE | {"observability": [{}]}, "$.observability", "array"),
        (methods.BLOBS_GET, {"blob_id": "", "observability": {"run_id": 5}}, "$.observability.run_id", "int"),
        (methods.COMPONENTS_EXECUTE, {**EXECUTE, "observability": None}, "$.observability", "null"),
        (methods.COMPONENTS_EXECUTE, {**EXECUTE, "timeout_s": 10**400}, "$.timeout_s", "range"),
        (methods.COMPONENTS_EXECUTE, {**EXECUTE, "timeout_s": "2"}, "$.timeout_s", "str"),
        (methods.BLOBS_PUT, {"data": 1, "blob_type": None}, "$.blob_type", "null"),
        (methods.RUNS_SUBMIT, {"flowId": "f", "inputs": {}}, "$.inputs", "object"),
        (methods.RUNS_SUBMIT, {"flow_id": "f", "inputs": []}, "$", "flowId"),
        (methods.RUNS_GET, {"runId": "r", "resultOrder": "random"}, "$.resultOrder", "random"),
        (methods.RUNS_GET, {"runId": "r", "wait": 1}, "$.wait", "int"),
    ],
)  # fmt: skip
def test_params_that_do_not_fit_are_refused_with_the_place_and_the_problem(
    method: Method[Any, Any], params: Any, path: str, problem: str
) -> None:
    with pytest.raises(RpcError) as caught:
        method.read_params(params)
    assert type(caught.value) is RpcError
    assert caught.value.code == ErrorCode.INVALID_PARAMS
    assert caught.value.data["path"] == path
    assert problem in caught.value.data["detail"]
    assert method.name in caught.value.message
    assert path in caught.value.message


@pytest.mark.parametrize(
    ("method", "result", "path"),
    [
        (methods.COMPONENTS_LIST, None, "$"),
        (methods.COMPONENTS_LIST, {"components": {}}, "$.components"),
        (methods.COMPONENTS_LIST, {"components": [{"component": "/a"}, {}]}, "$.components[1]"),
        (methods.COMPONENTS_LIST, {"components": [{"component": 1}]}, "$.components[0].component"),
        (methods.COMPONENTS_EXECUTE, [], "$"),
        (methods.RUNS_GET, {**wire(INSTANCES[methods.RUNS_GET][1][0]), "items": {}}, "$.items"),
    ],
)  # fmt: skip
def test_results_that_do_not_fit_are_the_peer_s_fault_and_name_the_place(
    method: Method[Any, Any], result: Any, path: str
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        method.read_result(result)
    assert caught.value.code == ErrorCode.GARBLED_MESSAGE
    assert caught.value.data == {"path": path}
    assert path in caught.value.message


def outcome(read: Callable[..., object], *arguments: Any) -> object:
    """The type of what was read, or the code of the documented exception."""
    try:
        return type(read(*arguments))
    except (RpcError, RemoteProtocolError) as exc:
        return exc.code


@settings(FUZZ)
@given(st.sampled_from(methods.METHODS), JSON, st.lists(st.tuples(st.integers(0, 9), JSON), max_size=3))
def test_any_json_as_params_or_result_is_read_or_refused_as_documented(
    method: Method[Any, Any], value: Any, changes: list[tuple[int, Any]]
) -> None:
    params, results = wire(INSTANCES[method][0][-1]), wire(INSTANCES[method][1][-1])
    for message in (params, results):
        for where, new in changes:
            if message:
                message[list(message)[where % len(message)]] = new
    for message in (value, params, results):
        assert outcome(method.read_params, message) in (method.params, ErrorCode.INVALID_PARAMS)
        assert outcome(method.read_result, message) in (method.result, ErrorCode.GARBLED_MESSAGE)


# ---- older shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "path"),
    [
        ({"name": "data_processor"}, "/data_processor"),
        ({"name": "/data_processor"}, "/data_processor"),
        ({"name": "x", "path": "/p/x"}, "/p/x"),
        ({"name": "x", "path": "p/x"}, "/p/x"),
        ({"path": "/p"}, "/p"),
        ({"name": "x", "path": None}, "/x"),
        ({"name": "x", "plugin": "y"}, "/x"),
        ("/as/it/is", "/as/it/is"),
        ("as-it-is", "as-it-is"),
    ],
)
def test_a_component_may_be_given_as_an_object_with_its_name(component: Any, path: str) -> None:
    given = {"component": component, "input": {"x": 1}, "input_schema": {}, "attempt": 3}
    before = json.dumps(given)
    assert methods.COMPONENTS_INFO.read_params({"component": component}).component == path
    executed = methods.COMPONENTS_EXECUTE.read_params(given)
    assert (executed.component, executed.input, executed.attempt) == (path, {"x": 1}, 3)
    assert methods.COMPONENTS_INFER_SCHEMA.read_params(given).component == path
    assert json.dumps(given) == before, "what was decoded is not changed"


@pytest.mark.parametrize("component", [{}, {"name": 1}, {"path": 1}, {"id": "x"}, [], None, 7])
def test_a_component_without_a_name_is_refused(component: Any) -> None:
    with pytest.raises(RpcError) as caught:
        methods.COMPONENTS_EXECUTE.read_params({"component": component, "input": 1})
    assert caught.value.data["path"] == "$.component"


def test_a_list_may_say_name_for_component() -> None:
    result = {
        "components": [
            {"component": "/a"},
            {"name": "b", "description": "x"},
            {"component": {"name": "c"}, "input_schema": {}},
            {"component": "/d", "name": "ignored"},
        ]
    }
    read = methods.COMPONENTS_LIST.read_result(result)
    assert read.components == [
        p.ComponentInfo(component="/a"),
        p.ComponentInfo(component="b", description="x"),
        p.ComponentInfo(component="/c", input_schema={}),
        p.ComponentInfo(component="/d"),
    ]


def test_an_info_may_say_name_for_component() -> None:
    for info in ({"name": "a"}, {"component": {"path": "a"}}):
        assert methods.COMPONENTS_INFO.read_result({"info": info}).info.component in ("a", "/a")
    for info, problem in (
        (None, "got `null` at $.info"),
        ([], "got `array` at $.info"),
        ({"name": 1}, "missing required field `component` at $.info"),
        ({"component": {}}, "got `object` at $.info.component"),
    ):
        with pytest.raises(RemoteProtocolError, match=re.escape(problem)):
            methods.COMPONENTS_INFO.read_result({"info": info})


@pytest.mark.parametrize("order", ["by_index", "by_completion", "byIndex", "byCompletion"])
def test_the_order_of_results_may_be_spelled_both_ways(order: str) -> None:
    assert methods.RUNS_GET.read_params({"runId": "r", "resultOrder": order}).result_order == order


def test_defaults_are_those_of_the_specification() -> None:
    executed = methods.COMPONENTS_EXECUTE.read_params({"component": "/a", "input": 1})
    assert (executed.attempt, executed.observability, executed.timeout_s) == (1, p.Observability(), UNSET)
    submitted = methods.RUNS_SUBMIT.read_params({"flowId": "f", "inputs": []})
    assert (submitted.wait, submitted.max_concurrency, submitted.timeout_secs) == (False, None, None)
    asked = methods.RUNS_GET.read_params({"runId": "r"})
    assert (asked.wait, asked.include_results, asked.result_order) == (False, False, "by_index")
    assert methods.BLOBS_PUT.read_params({"data": 1}).blob_type == "data"


def test_progress_lies_between_nothing_and_everything() -> None:
    for progress in (0, 0.5, 1):
        read = msgspec.convert({"step_id": "s", "progress": progress}, methods.PROGRESS_UPDATE.params)
        assert read.progress == progress
    for progress in (-0.1, 1.1, 10**400, None, "1", True):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"step_id": "s", "progress": progress}, methods.PROGRESS_UPDATE.params)


# ---- writing ----------------------------------------------------------------------------------------


def test_what_is_absent_is_not_written_and_what_is_required_is() -> None:
    assert wire(p.ListParams()) == {}
    assert wire(p.ExecuteParams(component="/a", input=None)) == {
        "component": "/a", "input": None, "attempt": 1, "observability": {},
    }  # fmt: skip
    assert wire(p.GetBlobParams(blob_id="x")) == {"blob_id": "x"}
    assert wire(p.ItemStatistics(total=0)) == {
        "total": 0, "completed": 0, "running": 0, "failed": 0, "cancelled": 0,
    }  # fmt: skip
    assert wire(p.PutBlobParams(data=1))["blob_type"] == "data"
    assert wire(p.GetRunParams(run_id="r")) == {"runId": "r"}


def test_the_deadline_is_written_only_where_it_is_given() -> None:
    assert "timeout_s" not in wire(p.ExecuteParams(component="/a", input=None))
    assert wire(p.ExecuteParams(component="/a", input=None, timeout_s=0.0))["timeout_s"] == 0.0


def test_directions_are_those_of_the_specification() -> None:
    to_worker = {m.name for m in methods.METHODS if m.direction is Direction.TO_WORKER}
    assert to_worker == {
        "components/list",
        "components/info",
        "components/execute",
        "components/infer_schema",
    }
    assert methods.PROGRESS_UPDATE.direction is Direction.TO_RUNTIME


# ---- initialize -------------------------------------------------------------------------------------

TRANSPORTS: tuple[TransportKind, ...] = ("stdio", "http")
CAMEL_ASKS = {"runtimeProtocolVersion": 1}
SNAKE_ASKS = {"runtime_protocol_version": 1}


@pytest.mark.parametrize(
    ("params", "transport", "dialect"),
    [
        (SNAKE_ASKS, "stdio", Dialect.V0_8),
        (SNAKE_ASKS, "http", Dialect.V0_9),
        (CAMEL_ASKS, "stdio", Dialect.V0_11),
        (CAMEL_ASKS, "http", Dialect.V0_11),
        (CAMEL_ASKS | SNAKE_ASKS, "stdio", Dialect.V0_11),
        (CAMEL_ASKS | SNAKE_ASKS, "http", Dialect.V0_11),
    ],
)
def test_the_key_that_the_runtime_used_tells_the_worker_its_dialect(
    params: dict[str, Any], transport: TransportKind, dialect: Dialect
) -> None:
    hello = dialects.read_initialize_params(params, transport)
    assert (hello.dialect, hello.version) == (dialect, 1)
    assert (hello.blob_api_url, hello.blob_threshold, hello.extensions) == (None, None, frozenset())
    assert not hello.announced
    observed = {**params, "observability": {"trace_id": "0" * 32}, "new": 1, "capabilities": None}
    assert dialects.read_initialize_params(observed, transport) == hello


@pytest.mark.parametrize(
    ("result", "transport", "dialect"),
    [
        ({"server_protocol_version": 1}, "stdio", Dialect.V0_8),
        ({"server_protocol_version": 1}, "http", Dialect.V0_9),
        ({"serverProtocolVersion": 1}, "stdio", Dialect.V0_11),
        ({"serverProtocolVersion": 1}, "http", Dialect.V0_11),
        ({"serverProtocolVersion": 1, "server_protocol_version": 1, "new": []}, "http", Dialect.V0_11),
    ],
)
def test_the_key_that_the_worker_answered_with_tells_the_runtime_its_dialect(
    result: dict[str, Any], transport: TransportKind, dialect: Dialect
) -> None:
    welcome = Welcome(dialect=dialect, version=1)
    assert dialects.read_initialize_result(result, transport) == welcome
    assert dialects.read_initialize_result({**result, "extensions": None}, transport) == welcome


def test_only_generation_0_8_lacks_runs() -> None:
    assert [dialect for dialect in Dialect if not dialect.has_runs] == [Dialect.V0_8]


def test_the_version_is_written_as_the_generation_spells_it_and_in_both_spellings_to_an_unknown_one() -> None:
    def spellings(dialect: Dialect | None) -> set[str]:
        return set(dialects.write_initialize_params(dialect, extensions=()))

    assert spellings(Dialect.V0_8) == spellings(Dialect.V0_9) == {"runtime_protocol_version"}
    assert spellings(Dialect.V0_11) == {"runtimeProtocolVersion"}
    assert spellings(None) == {"runtime_protocol_version", "runtimeProtocolVersion"}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("known", [*Dialect, None])
def test_what_a_runtime_says_of_itself_reaches_the_worker_and_back(
    known: Dialect | None, transport: TransportKind
) -> None:
    params = wire(
        dialects.write_initialize_params(
            known, extensions={"cancel", "x"}, blob_api_url="http://x/blobs", blob_threshold=5
        )
    )
    hello = dialects.read_initialize_params(params, transport)
    assert (hello.blob_api_url, hello.blob_threshold) == ("http://x/blobs", 5)
    assert (hello.extensions, hello.announced) == ({"cancel", "x"}, True)
    result = wire(dialects.write_initialize_result(hello, extensions=("batch",), supports_blob_refs=True))
    welcome = dialects.read_initialize_result(result, transport)
    assert welcome.dialect is hello.dialect
    assert welcome.extensions == {"batch"}
    assert welcome.supports_blob_refs is (hello.dialect is Dialect.V0_11)
    plain = dialects.write_initialize_result(dialects.Hello(dialect=hello.dialect, version=1))
    assert set(plain.values()) == {1}, "the version and nothing else"
    assert not dialects.read_initialize_result(plain, transport).supports_blob_refs


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("asks", [CAMEL_ASKS, SNAKE_ASKS])
def test_extensions_are_announced_only_to_a_runtime_that_announced_its_own(
    asks: dict[str, Any], transport: TransportKind
) -> None:
    for capabilities in (None, {}, {"blobApiUrl": None}, {"extensions": None}):
        hello = dialects.read_initialize_params({**asks, "capabilities": capabilities}, transport)
        assert not hello.announced
        assert "extensions" not in dialects.write_initialize_result(hello)
    for extensions in ([], ["unknown"], ["cancel", "cancel"]):
        hello = dialects.read_initialize_params(
            {**asks, "capabilities": {"extensions": extensions}}, transport
        )
        assert hello.announced
        assert hello.extensions == set(extensions)
        result = dialects.write_initialize_result(hello)
        assert result["extensions"] == ["batch", "cancel", "deadline", "progress"]


def test_our_extensions_are_announced_in_every_dialect_unless_there_are_none() -> None:
    for dialect in (*Dialect, None):
        params = dialects.write_initialize_params(dialect)
        assert params["capabilities"] == {"extensions": ["batch", "cancel", "deadline", "progress"]}
        assert "capabilities" not in dialects.write_initialize_params(dialect, extensions=())


@pytest.mark.parametrize("version", [0, 2, 99, -1, 2**64])
@pytest.mark.parametrize("key", ["runtimeProtocolVersion", "runtime_protocol_version"])
def test_a_worker_refuses_another_version_and_says_which_it_knows(key: str, version: int) -> None:
    with pytest.raises(RpcError, match=str(version)) as caught:
        dialects.read_initialize_params({key: version}, "stdio")
    assert caught.value.code == ErrorCode.VERSION_MISMATCH == -32006
    assert caught.value.data == {"supported_versions": [1], "requested_version": version}


@pytest.mark.parametrize("version", [0, 2, 7])
@pytest.mark.parametrize("key", ["serverProtocolVersion", "server_protocol_version"])
def test_a_runtime_refuses_a_worker_of_another_version(key: str, version: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"version {version}") as caught:
        dialects.read_initialize_result({key: version}, "stdio")
    assert caught.value.code == ErrorCode.VERSION_MISMATCH


@pytest.mark.parametrize(
    "params",
    [
        UNSET, {}, [], [1], {"protocolVersion": 1}, {"runtimeProtocolVersion": "1"},
        {"runtimeProtocolVersion": 1.0}, {"runtimeProtocolVersion": True}, {"runtimeProtocolVersion": None},
        {"runtime_protocol_version": [1]}, {**CAMEL_ASKS, "capabilities": []},
        {**CAMEL_ASKS, "capabilities": {"blobApiUrl": 1}},
        {**CAMEL_ASKS, "capabilities": {"blobThreshold": "1"}},
        {**CAMEL_ASKS, "capabilities": {"extensions": "cancel"}},
        {**CAMEL_ASKS, "capabilities": {"extensions": [1]}},
    ],
)  # fmt: skip
def test_an_initialize_that_does_not_fit_is_refused_as_invalid_params(params: Any) -> None:
    with pytest.raises(RpcError, match="initialize") as caught:
        dialects.read_initialize_params(params, "stdio")
    assert caught.value.code == ErrorCode.INVALID_PARAMS
    assert caught.value.data["detail"]


def test_an_initialize_without_a_version_is_told_which_keys_there_are() -> None:
    for params in (UNSET, {}, {"capabilities": {}}):
        with pytest.raises(RpcError, match="neither runtimeProtocolVersion nor runtime_protocol_version"):
            dialects.read_initialize_params(params, "stdio")


@pytest.mark.parametrize(
    "result",
    [
        None, {}, [], 1, "1", {"version": 1}, {"serverProtocolVersion": "1"}, {"serverProtocolVersion": 1.0},
        {"server_protocol_version": None}, {"serverProtocolVersion": 1, "supportsBlobRefs": "yes"},
        {"serverProtocolVersion": 1, "extensions": "cancel"},
        {"serverProtocolVersion": 1, "extensions": [None]},
    ],
)  # fmt: skip
def test_a_welcome_that_does_not_fit_is_the_worker_s_fault(result: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="initialize") as caught:
        dialects.read_initialize_result(result, "stdio")
    assert caught.value.code == ErrorCode.GARBLED_MESSAGE


@settings(FUZZ)
@given(
    st.sampled_from([CAMEL_ASKS, SNAKE_ASKS, {}]),
    st.dictionaries(st.sampled_from(["capabilities", "observability", "runtimeProtocolVersion"]), JSON),
    st.dictionaries(st.sampled_from(["blobApiUrl", "blobThreshold", "extensions"]), JSON),
    st.sampled_from(TRANSPORTS),
)
def test_any_json_is_understood_by_both_ends_or_refused_as_documented(
    asks: dict[str, Any], more: dict[str, Any], capabilities: dict[str, Any], transport: TransportKind
) -> None:
    for params in ({**asks, **more}, {**asks, "capabilities": capabilities}, more.get("capabilities")):
        asked = outcome(dialects.read_initialize_params, params, transport)
        assert asked in (dialects.Hello, ErrorCode.INVALID_PARAMS, ErrorCode.VERSION_MISMATCH)
        told = outcome(dialects.read_initialize_result, params, transport)
        assert told in (Welcome, ErrorCode.GARBLED_MESSAGE, ErrorCode.VERSION_MISMATCH)
