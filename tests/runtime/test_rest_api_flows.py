"""Flows over the REST API: stored, checked, read, listed, deleted; the server's own pages."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from rest_stage import Client, open_client
from runtime_stage import Stage, flow, one_step, step

from stepflow_trio.flows.model import flow_id
from stepflow_trio.flows.reader import examine_flow_json, flow_from_json

ECHO = one_step("/w/echo", {"value": {"$input": "$"}})


@pytest.fixture
async def client() -> AsyncGenerator[Client]:
    async with open_client() as client:
        yield client


async def test_the_server_says_that_it_is_healthy(client: Client, autojump_clock: Any) -> None:
    health = await client.get("/health")
    assert health["status"] == "healthy"
    assert health["version"] == "0.1.0"


async def test_components_are_listed_by_the_path_that_a_flow_names(
    client: Client, autojump_clock: Any
) -> None:
    listed = {each["component"]: each for each in (await client.get("/components"))["components"]}
    assert listed["/w/echo"]["plugin"] == "w"
    assert "input_schema" in listed["/w/echo"]
    bare = (await client.get("/components?includeSchemas=false"))["components"]
    assert {each["component"] for each in bare} == set(listed)
    assert not any("input_schema" in each or "output_schema" in each for each in bare)


async def test_a_plugin_that_cannot_be_asked_is_named_and_costs_only_its_own_components(
    autojump_clock: Any,
) -> None:
    class Silent:
        async def serve(self, link: Any) -> None:
            await link.aclose()

    async with open_client() as client:
        assert (await client.get("/components"))["problems"] == {}
    stage = Stage()
    stage.worker.serve = Silent().serve  # type: ignore[method-assign]
    async with open_client(stage) as client:
        answer = await client.get("/components")
    assert list(answer["problems"]) == ["w"]
    assert any(each["component"] == "/builtin/put_blob" for each in answer["components"])


async def test_a_stored_flow_has_the_id_of_its_normal_form_and_is_read_as_it_is(
    client: Client, autojump_clock: Any
) -> None:
    id_ = await client.store(ECHO)
    assert id_ == flow_id(flow_from_json(ECHO))
    assert await client.get(f"/flows/{id_}") == {"flow": ECHO, "flowId": id_, "allExamples": []}
    assert (await client.get(f"/flows/sha256:{id_}"))["flowId"] == id_


async def test_a_dry_run_says_what_would_be_stored_and_stores_nothing(
    client: Client, autojump_clock: Any
) -> None:
    reply = await client.call("POST", "/flows", {"flow": ECHO, "dryRun": True})
    assert reply.json["stored"] is False
    assert reply.json["flowId"] == flow_id(flow_from_json(ECHO))
    assert (await client.call("GET", f"/flows/{reply.json['flowId']}")).status == 404


async def test_what_is_fatal_is_answered_with_an_id_and_diagnostics_and_not_stored(
    client: Client, autojump_clock: Any
) -> None:
    bad = flow(step("a", "/w/echo", {"$step": "zz"}), step("a", "/w/echo"))
    reply = await client.call("POST", "/flows", {"flow": bad})
    assert (reply.status, reply.json["stored"]) == (200, False)
    found = reply.json["diagnostics"]
    assert found["numFatal"] == 2
    assert {each["kind"] for each in found["diagnostics"] if each["level"] == "fatal"} == {
        "undefinedStepReference",
        "duplicateStepId",
    }
    assert (await client.call("GET", f"/flows/{reply.json['flowId']}")).status == 404


async def test_a_flow_with_an_error_is_stored_and_read_but_not_run(
    client: Client, autojump_clock: Any
) -> None:
    bad = one_step("no-slash")
    reply = await client.call("POST", "/flows", {"flow": bad})
    assert (reply.json["stored"], reply.json["diagnostics"]["numError"]) == (True, 1)
    id_ = reply.json["flowId"]
    assert (await client.get(f"/flows/{id_}"))["flow"] == bad
    run = await client.call("POST", "/runs", {"flowId": id_, "input": [1]})
    assert run.status == 400
    assert "no-slash" in run.message


MISSPELLED = [
    {**ECHO, "ouput": 1, "output": None},
    {"steps": [{"id": "a", "component": "/w/echo", "inptu": {"value": 1}}], "output": {"$step": "a"}},
    {"steps": [], "output": {"$if": True, "then": 1, "esle": 2}},
    one_step("/w/echo", {"value": 1}, onError={"action": "retry", "maxRetry": 2}),
]


@pytest.mark.parametrize("misspelled", MISSPELLED, ids=str)
async def test_a_flow_with_a_misspelled_field_is_not_stored_without_it(
    client: Client, autojump_clock: Any, misspelled: dict[str, Any]
) -> None:
    misspelled = {key: value for key, value in misspelled.items() if value is not None}
    for more in ({}, {"dryRun": True}):
        reply = await client.call("POST", "/flows", {"flow": misspelled, **more})
        assert (reply.status, reply.json["stored"]) == (200, False)
        found = reply.json["diagnostics"]
        assert (found["numFatal"], found["numError"]) == (0, 1)
        assert any("did you mean" in each["formatted"] for each in found["diagnostics"])
        assert (await client.get("/flows"))["total"] == 0
    # Nor does its id lead to the flow without that field, once somebody has stored it.
    reading = examine_flow_json(misspelled)
    assert reading.flow is not None
    await client.store(reading.flow.to_json())
    id_ = reply.json["flowId"]
    assert (await client.call("GET", f"/flows/{id_}")).status == 404
    assert (await client.call("POST", "/runs", {"flowId": id_, "input": [1]})).status == 404


async def test_a_blob_of_a_flow_with_a_misspelled_field_keeps_it_and_is_not_run(
    client: Client, autojump_clock: Any
) -> None:
    body = {"data": MISSPELLED[1], "blobType": "flow"}
    blob_id = (await client.call("POST", "/blobs", body)).json["blobId"]
    assert (await client.get(f"/blobs/{blob_id}"))["data"] == MISSPELLED[1]
    run = await client.call("POST", "/runs", {"flowId": blob_id, "input": [1]})
    assert run.status == 400
    assert 'did you mean "input"?' in run.message


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"flow": {"steps": [{"id": 1, "component": "/c"}]}}, 422, "$.steps[0].id"),
        ({"flow": {"steps": [{"id": "a"}]}}, 422, "component"),
        ({"flow": []}, 422, "$.flow"),
        ({"flow": None}, 422, "$.flow"),
        ({}, 422, "flow"),
        ([], 422, "$"),
        ({"flow": {}, "dryRun": "yes"}, 422, "$.dryRun"),
        (b"{", 400, "not JSON"),
        (b"\xff", 400, "UTF-8"),
        (b'{"flow": {"a": NaN}}', 400, "not JSON"),
        (b'{"flow":' + b"[" * 300 + b"]" * 300 + b"}", 400, "nest"),
    ],
)
async def test_what_is_no_flow_is_refused_with_its_place(
    client: Client, autojump_clock: Any, body: Any, status: int, says: str
) -> None:
    reply = await client.call("POST", "/flows", body)
    assert reply.status == status
    assert says in reply.message


async def test_examples_are_the_flow_s_own_and_the_inputs_of_its_tests(
    client: Client, autojump_clock: Any
) -> None:
    given = {
        **ECHO,
        "examples": [{"name": "one", "description": "the first", "input": 1}],
        "test": {"cases": [{"name": "two", "input": 2, "output": {"outcome": "success", "result": 2}}]},
    }
    id_ = await client.store(given)
    assert (await client.get(f"/flows/{id_}"))["allExamples"] == [
        {"name": "one", "description": "the first", "input": 1},
        {"name": "two", "input": 2},
    ]


async def test_variables_are_said_with_their_schema_and_their_environment_variables(
    client: Client, autojump_clock: Any
) -> None:
    variables = {
        "type": "object",
        "properties": {"key": {"type": "string", "env_var": "API_KEY"}, "size": {"type": "integer"}},
    }
    schemas = {"type": "object", "properties": {"variables": variables}}
    id_ = await client.store({**ECHO, "schemas": schemas})
    assert await client.get(f"/flows/{id_}/variables") == {
        "flowId": id_,
        "schema": variables,
        "envVars": {"key": "API_KEY"},
    }
    plain = await client.store(ECHO)
    assert await client.get(f"/flows/{plain}/variables") == {"flowId": plain, "envVars": {}}


async def test_flows_are_listed_in_pages_the_latest_first(client: Client, autojump_clock: Any) -> None:
    ids = [await client.store({**ECHO, "name": f"flow {n}"}) for n in range(5)]
    await client.call("POST", "/blobs", {"data": {"no": "flow"}})
    reply = await client.call("GET", "/flows?limit=2&offset=1")
    assert [each["flowId"] for each in reply.json["flows"]] == [ids[3], ids[2]]
    assert [each["name"] for each in reply.json["flows"]] == ["flow 3", "flow 2"]
    assert reply.json["total"] == 5
    assert reply.headers[b"x-total-count"] == b"5"


async def test_a_deleted_flow_is_gone(client: Client, autojump_clock: Any) -> None:
    id_ = await client.store(ECHO)
    assert (await client.call("DELETE", f"/flows/{id_}")).status == 200
    for method in ("GET", "DELETE"):
        assert (await client.call(method, f"/flows/{id_}")).status == 404
    assert (await client.call("POST", "/runs", {"flowId": id_, "input": [1]})).status == 404
    assert (await client.get("/flows"))["total"] == 0


async def test_a_flow_is_not_deleted_while_a_run_of_it_is_at_work(
    client: Client, autojump_clock: Any
) -> None:
    waiting = one_step("/w/wait", {"name": "x"})
    run = await client.submit(waiting, None)
    reply = await client.call("DELETE", f"/flows/{run['flowId']}")
    assert reply.status == 409
    assert "at work" in reply.message
    client.stage.release.set()
    await client.get(f"/runs/{run['runId']}?wait=true")
    assert (await client.call("DELETE", f"/flows/{run['flowId']}")).status == 200
    assert (await client.get(f"/runs/{run['runId']}"))["status"] == "completed"
    assert (await client.call("GET", f"/runs/{run['runId']}/flow")).status == 404
    assert set((await client.get(f"/runs/{run['runId']}/steps?itemIndex=0"))["steps"]) == {"only"}


async def test_what_is_stored_as_data_is_not_deleted_as_a_flow(client: Client, autojump_clock: Any) -> None:
    stored = (await client.call("POST", "/blobs", {"data": ECHO})).json["blobId"]
    assert (await client.call("DELETE", f"/flows/{stored}")).status == 404
    assert (await client.get(f"/blobs/{stored}"))["data"] == ECHO


async def test_blobs_are_served_beside_it(client: Client, autojump_clock: Any) -> None:
    stored = (await client.call("POST", "/blobs", {"data": [1]})).json["blobId"]
    assert await client.get(f"/blobs/{stored}") == {"data": [1], "blobType": "data", "blobId": stored}
    assert (await client.call("GET", f"/blobs/{'0' * 64}")).status == 404


async def test_the_document_describes_every_route_once(client: Client, autojump_clock: Any) -> None:
    assert client.openapi is not None
    document = client.openapi.document
    assert document["openapi"] == "3.1.0"
    described = {
        (method.upper(), path) for path, operations in document["paths"].items() for method in operations
    }
    public = {
        ("GET", "/health"),
        ("POST", "/blobs"),
        ("GET", "/blobs/{blob_id}"),
        ("GET", "/components"),
        ("GET", "/runs"),
        ("POST", "/runs"),
        ("GET", "/runs/{run_id}"),
        ("DELETE", "/runs/{run_id}"),
        ("GET", "/runs/{run_id}/items"),
        ("GET", "/runs/{run_id}/flow"),
        ("GET", "/runs/{run_id}/steps"),
        ("POST", "/runs/{run_id}/cancel"),
        ("POST", "/flows"),
        ("GET", "/flows/{flow_id}"),
        ("DELETE", "/flows/{flow_id}"),
        ("GET", "/flows/{flow_id}/variables"),
    }
    ours = {("GET", "/flows"), ("GET", "/runs/{run_id}/events"), ("GET", "/openapi.json")}
    assert described == public | ours
    operations = [each["operationId"] for path in document["paths"].values() for each in path.values()]
    assert len(set(operations)) == len(operations)
    creation = document["paths"]["/runs"]["post"]
    assert [each["name"] for each in creation["parameters"]] == ["Idempotency-Key"]
    listing = document["paths"]["/runs"]["get"]["parameters"]
    assert {each["name"] for each in listing} == {
        "status", "flowName", "rootRunId", "parentRunId", "rootsOnly", "maxDepth", "limit", "offset",
    }  # fmt: skip


async def test_a_head_is_answered_like_a_get_without_its_body(client: Client, autojump_clock: Any) -> None:
    got, head = await client.call("GET", "/openapi.json"), await client.call("HEAD", "/openapi.json")
    assert (head.status, head.body) == (200, b"")
    assert head.headers[b"content-length"] == got.headers[b"content-length"]
