"""Fields of requests that nobody knows: the misspelled are pointed out, the others passed over."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from rest_stage import Client, open_client
from runtime_stage import one_step

from stepflow_trio.runtime.rest_api import payloads
from stepflow_trio.runtime.rest_api.fields import misspelled

ECHO = one_step("/w/echo", {"value": {"$input": "$"}})
PUBLISHED = Path(__file__).parents[2].parent / "shared" / "peers" / "schemas" / "openapi-0.11.1.json"


@pytest.fixture
async def client() -> AsyncGenerator[Client]:
    async with open_client() as client:
        yield client


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"varaibles": {}}, 'there is no field "varaibles"; did you mean "variables"?'),
        ({"Wait": True}, 'there is no field "Wait"; did you mean "wait"?'),
        ({"max_concurrency": 1}, 'did you mean "maxConcurrency"?'),
        (
            {"overrides": {"steps": {}, "stpes": {}}},
            None,
        ),
        (
            {"overrides": {"steps": {"only": {"value": {}, "$typ": "merge_patch"}}}},
            'there is no field "$typ" at $.overrides.steps.only; did you mean "$type"?',
        ),
    ],
    ids=str,
)
async def test_a_misspelled_field_of_a_body_is_refused(
    client: Client, autojump_clock: Any, more: dict[str, Any], says: str | None
) -> None:
    body = {"flowId": await client.store(ECHO), "input": [1], **more}
    reply = await client.call("POST", "/runs", body)
    if says is None:
        assert reply.status == 202  # the field that it is close to is there too
        return
    assert reply.status == 422
    assert says in reply.message
    assert (await client.get("/runs"))["total"] == 0


@pytest.mark.parametrize(
    "value",
    [{"componet": "/w/other"}, {"inputs": {"value": 2}}, {"onError": {"action": "retry", "retries": 2}}],
)
async def test_a_misspelled_field_of_a_patched_step_is_refused_with_its_place(
    client: Client, autojump_clock: Any, value: dict[str, Any]
) -> None:
    body = {
        "flowId": await client.store(ECHO),
        "input": [1],
        "overrides": {"steps": {"only": {"value": value}}},
    }
    reply = await client.call("POST", "/runs", body)
    assert reply.status == 400
    assert reply.message.startswith("overrides.steps.only.value.")
    assert "did you mean" in reply.message
    assert (await client.get("/runs"))["total"] == 0


async def test_fields_that_are_close_to_none_are_passed_over(client: Client, autojump_clock: Any) -> None:
    reply = await client.call("POST", "/flows", {"flow": ECHO, "comment": "mine", "x": 1})
    assert reply.json["stored"]
    body = {"flowId": reply.json["flowId"], "input": [1], "traceparent": "00-1-2-01", "owner": {"a": 1}}
    body["overrides"] = {"note": 1, "steps": {"only": {"value": {}, "why": "a try"}}}
    run = await client.call("POST", "/runs", body)
    assert run.status == 202
    assert (await client.call("GET", f"/runs/{run.json['runId']}?foo=1&cache=no")).status == 200
    assert (await client.call("GET", "/runs?foo=1")).status == 200


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/runs?Status=running", 'there is no field "Status"; did you mean "status"?'),
        ("/runs?flow_name=x", 'did you mean "flowName"?'),
        ("/flows?limt=1", 'did you mean "limit"?'),
        ("/components?includeSchema=false", 'did you mean "includeSchemas"?'),
        ("/runs?status=foo", "it is one of cancelled, completed, failed, paused, recoveryFailed, running"),
        ("/runs?status=complete", 'did you mean "completed"?'),
    ],
)
async def test_a_query_that_is_misspelled_is_refused(
    client: Client, autojump_clock: Any, path: str, says: str
) -> None:
    reply = await client.call("GET", path)
    assert reply.status == 400
    assert says in reply.message


async def test_a_run_is_waited_for_in_fractions_of_a_second(client: Client, autojump_clock: Any) -> None:
    sleeps = await client.store(one_step("/w/sleep", {"seconds": 60}))
    body = {"flowId": sleeps, "input": [1], "wait": True, "timeoutSecs": 0.25}
    began = trio.current_time()
    reply = await client.call("POST", "/runs", body)
    assert (reply.status, reply.json["status"]) == (200, "running")
    assert trio.current_time() - began == pytest.approx(0.25)  # pyright: ignore[reportUnknownMemberType]
    await client.get(f"/runs/{reply.json['runId']}?wait=true&timeoutSecs=1.5")
    assert trio.current_time() - began == pytest.approx(1.75)  # pyright: ignore[reportUnknownMemberType]
    for wrong in ("nan", "inf", "-0.5", "true", "1s"):
        refused = await client.call("GET", f"/runs/{reply.json['runId']}?wait=true&timeoutSecs={wrong}")
        assert refused.status == 400
    for value in (True, "1", -1, 1e300):
        assert (await client.call("POST", "/runs", {**body, "timeoutSecs": value})).status == 422


def published_fields() -> Iterator[tuple[str, dict[str, Any]]]:
    """For each of our types the fields that the public releases have for it."""
    document = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    schemas = document["components"]["schemas"]
    for name in ("StoreFlowRequest", "CreateRunRequest", "StoreBlobRequest"):
        yield name, dict.fromkeys(schemas[name]["properties"])
    of_paths = {
        "ListRunsQuery": "/api/v1/runs",
        "GetRunQuery": "/api/v1/runs/{run_id}",
        "ItemsQuery": "/api/v1/runs/{run_id}/items",
        "StepsQuery": "/api/v1/runs/{run_id}/steps",
        "ComponentsQuery": "/api/v1/components",
        "PageQuery": "/api/v1/flows",
    }
    for name, path in of_paths.items():
        parameters = document["paths"].get(path, {}).get("get", {}).get("parameters", ())
        yield name, {each["name"]: "1" for each in parameters if each["in"] == "query"}


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published schemas are not here")
def test_no_field_that_the_public_releases_know_is_taken_for_a_misspelling() -> None:
    checked = 0
    for name, fields in published_fields():
        type_ = getattr(payloads, name)
        for field in fields:
            checked += 1
            assert misspelled({field: fields[field]}, type_) is None, (name, field)
    assert checked > 10
