"""What is stored over REST is what runs: its id, its paths, and that a step must execute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from rest_stage import open_client
from runtime_stage import Stage, flow, one_step, step

from stepflow_trio.flows.model import flow_id
from stepflow_trio.flows.reader import flow_from_json

METADATA = {f"key{number}": {"b": [number], "a": {"z": 1, "y": 2}} for number in range(20)}
DEFINITIONS = {f"Type{number}": {"type": "object", "title": f"t{number}"} for number in range(20)}
MANY_KEYS = {
    **flow(step("only", "/w/echo", {"value": 1}, metadata=METADATA)),
    "metadata": METADATA,
    "schemas": {"type": "object", "$defs": DEFINITIONS, "properties": {"input": {}}},
}


async def test_a_flow_with_many_metadata_and_definitions_has_one_id_in_every_runtime(
    autojump_clock: Any,
) -> None:
    ids: set[str] = set()
    for _ in range(3):
        async with open_client() as client:
            ids |= {await client.store(json.loads(json.dumps(MANY_KEYS))) for _ in range(10)}
            assert (await client.get("/flows"))["total"] == 1
    assert len(ids) == 1


def test_a_flow_has_the_same_id_in_processes_that_hash_differently() -> None:
    script = (
        "import json, sys\n"
        "from stepflow_trio.flows.model import flow_id\n"
        "from stepflow_trio.flows.reader import flow_from_json\n"
        "print(flow_id(flow_from_json(json.load(sys.stdin))), hash('x'))\n"
    )
    said: set[tuple[str, str]] = set()
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(MANY_KEYS),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        said.add(tuple(run.stdout.split()))  # type: ignore[arg-type]
    assert {id_ for id_, _ in said} == {flow_id(flow_from_json(MANY_KEYS))}
    assert len({hashed for _, hashed in said}) == 2


ODD_KEYS = ["a.b", "a['b']", "it's", 'say "x"', "", " ", "$", "$.a", "[0]", "0", "ä", "a\\b", "\n", "*", ".."]
DECOYS = {"a": {"b": "decoy", "['b']": "decoy"}, "b": "decoy", "it": "decoy"}


def quoted(key: str, quote: str = '"') -> str:
    escaped = key.replace("\\", "\\\\").replace(quote, f"\\{quote}")
    return f"$[{quote}{escaped}{quote}]"


def single_quoted(key: str) -> str:
    return quoted(key, "'")


@pytest.mark.parametrize("spell", [quoted, single_quoted])
@pytest.mark.parametrize("key", ODD_KEYS)
async def test_a_path_with_an_odd_key_means_the_same_after_it_was_stored(
    autojump_clock: Any, key: str, spell: Any
) -> None:
    path = spell(key)
    tested = flow(
        step("all", "/w/echo", {"value": {"$input": "$"}}),
        step("one", "/w/echo", {"value": {"$step": "all", "path": path}}),
        output={"step": {"$step": "one"}, "input": {"$input": path}},
    )
    async with open_client() as client:
        run = await client.submit(tested, {**DECOYS, key: "right"}, wait=True)
        came_to = {"outcome": "success", "result": {"step": "right", "input": "right"}}
        assert run["results"][0]["result"] == came_to
        # Read back and stored once more it is the same flow.
        read = (await client.get(f"/flows/{run['flowId']}"))["flow"]
        assert await client.store(read) == run["flowId"]
        again = await client.submit(read, {**DECOYS, key: "right"}, wait=True)
        assert again["results"] == [{**run["results"][0], "completedAt": again["results"][0]["completedAt"]}]


async def test_a_path_without_a_dollar_sign_is_one_key_whatever_is_in_it(autojump_clock: Any) -> None:
    async with open_client() as client:
        run = await client.submit(
            one_step("/w/echo", {"value": {"$input": "a.b"}}), {**DECOYS, "a.b": 1}, wait=True
        )
        assert run["results"][0]["result"] == {"outcome": "success", "result": 1}


@pytest.mark.parametrize("wait", [True, False])
async def test_a_run_whose_must_execute_step_fails_is_failed_with_its_error(
    autojump_clock: Any, wait: bool
) -> None:
    stage = Stage()

    @stage.component
    async def fails() -> None:
        raise ValueError("must not")

    tested = flow(
        step("aside", "/w/fails", {}, mustExecute=True), step("main", "/w/echo", {"value": 1}),
        output={"$step": "main"},
    )  # fmt: skip
    async with open_client(stage) as client:
        run = await client.submit(tested, None, wait=wait)
        ended = await client.get(f"/runs/{run['runId']}?wait=true")
        assert (ended["status"], ended["items"]["failed"]) == ("failed", 1)
        (item,) = (await client.get(f"/runs/{run['runId']}/items"))["items"]
        assert item["result"]["outcome"] == "failed"
        assert item["result"]["error"]["message"] == "ValueError: must not"
        assert (await client.get("/runs?status=failed"))["total"] == 1


@pytest.mark.parametrize("max_concurrency", [0, -1, "1", 1.5, True])
async def test_a_max_concurrency_that_is_none_is_refused_and_the_server_goes_on(
    autojump_clock: Any, max_concurrency: Any
) -> None:
    async with open_client() as client:
        flow_id = await client.store(one_step("/w/echo", {"value": 1}))
        for wait in (True, False):
            body = {"flowId": flow_id, "input": [1], "maxConcurrency": max_concurrency, "wait": wait}
            reply = await client.call("POST", "/runs", body)
            assert reply.status in (400, 422)
            assert "max" in reply.message
        assert (await client.get("/runs"))["total"] == 0
        body = {"flowId": flow_id, "input": [1, 2], "maxConcurrency": 1, "wait": True}
        assert (await client.call("POST", "/runs", body)).json["status"] == "completed"
