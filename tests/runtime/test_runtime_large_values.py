"""Values of ten megabytes go every way there is: in flows, inputs, outputs and blobs."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
from rest_stage import Client, events_of, open_client
from runtime_stage import INPUT, Stage, flow, one_step, own_plugin, processes, running, step

from stepflow_trio import Context, ErrorCode, RunFailed, open_runtime
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.runtime.rest_api import RestApi
from stepflow_trio.transports.http.client import HttpClient, open_http_client
from stepflow_trio.transports.http.hosting import open_http_host

TEN_MEGABYTES = {"text": "äöü…" * 1_111_112, "list": list(range(1000))}
ECHO = one_step("/w/echo", {"value": {"$input": "$"}})
ECHO_TWICE = flow(
    step("first", "/w/echo", {"value": {"$input": "$"}}),
    step("second", "/w/echo", {"value": {"$step": "first", "path": "$.text"}}),
)


def test_ten_megabytes_are_ten_megabytes() -> None:
    assert len(json.dumps(TEN_MEGABYTES, ensure_ascii=False).encode()) > 10_000_000


async def test_over_rest_in_a_flow_in_an_input_and_in_every_kind_of_answer(autojump_clock: Any) -> None:
    async with open_client() as client:
        literal = one_step("/w/echo", {"value": {"$literal": TEN_MEGABYTES}})
        assert (await client.get(f"/flows/{await client.store(literal)}"))["flow"]["steps"] == literal[
            "steps"
        ]
        assert await result_of(client, literal, None) == TEN_MEGABYTES
        assert await result_of(client, ECHO_TWICE, TEN_MEGABYTES) == TEN_MEGABYTES["text"]


async def result_of(client: Client, tested: dict[str, Any], input: Any) -> Any:
    """The result that every answer about the run says."""
    run = await client.submit(tested, input, wait=True)
    (at_once,) = run["results"]
    (item,) = (await client.get(f"/runs/{run['runId']}/items"))["items"]
    assert at_once["result"] == item["result"]
    events = await client.call("GET", f"/runs/{run['runId']}/events")
    (ended,) = [event for event in events_of(events.body) if event["type"] == "itemEnded"]
    assert ended["result"] == item["result"]
    return at_once["result"]["result"]


@asynccontextmanager
async def served(host: Literal["h11", "hypercorn"]) -> AsyncGenerator[HttpClient]:
    with trio.fail_after(50):
        async with (
            open_runtime(workers={"w": Stage().worker}) as runtime,
            open_http_host(RestApi(runtime), host=host) as found,
            open_http_client(found.url) as client,
        ):
            yield client


async def call(client: HttpClient, path: str, body: Any) -> Any:
    content = json.dumps(body).encode()
    headers = [("content-type", "application/json")]
    async with client.request("POST", f"/api/v1{path}", headers=headers, body=content) as response:
        answer = json.loads(await response.read())
        assert response.status == 200, answer
        return answer


@pytest.mark.parametrize("host", ["h11", "hypercorn"])
async def test_over_rest_on_a_socket(host: Literal["h11", "hypercorn"]) -> None:
    async with served(host) as client:
        literal = one_step("/w/echo", {"value": {"$literal": TEN_MEGABYTES}})
        for tested, input, output in (
            (ECHO, TEN_MEGABYTES, TEN_MEGABYTES),
            (literal, None, TEN_MEGABYTES),
        ):
            flow_id = (await call(client, "/flows", {"flow": tested}))["flowId"]
            run = await call(client, "/runs", {"flowId": flow_id, "input": [input], "wait": True})
            assert run["results"][0]["result"] == {"outcome": "success", "result": output}
            blob = await call(client, "/blobs", {"data": TEN_MEGABYTES, "blobType": "data"})
            async with client.request("GET", f"/api/v1/blobs/{blob['blobId']}") as response:
                assert json.loads(await response.read())["data"] == TEN_MEGABYTES


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_from_a_worker_over_stdio_and_in_its_blobs(tmp_path: Path, kind: str) -> None:
    script = f"""
    @worker.component
    {kind} echo(value: object) -> object:
        return value

    @worker.component
    async def keep(value: object, context: Context) -> object:
        return await context.get_blob(await context.put_blob(value))
    """
    async with running(processes(w=own_plugin(tmp_path, script))) as runtime:
        for component in ("echo", "keep"):
            tested = one_step(f"/w/{component}", {"value": {"$input": "$"}})
            assert await runtime.run(tested, TEN_MEGABYTES) == TEN_MEGABYTES


async def test_from_a_component_that_runs_a_flow_with_them(autojump_clock: Any) -> None:
    stage = Stage()

    @stage.component
    async def calls(value: Any, context: Context) -> Any:
        return await context.evaluate_flow(ECHO, value)

    async with open_runtime(workers={"w": stage.worker}) as runtime:
        tested = one_step("/w/calls", {"value": {"$input": "$"}})
        assert await runtime.run(tested, TEN_MEGABYTES) == TEN_MEGABYTES


@pytest.mark.parametrize(
    ("output", "says"),
    [([INPUT, INPUT], "larger than 67,108,864 bytes"), ([INPUT], "nests deeper than 128 levels")],
)
async def test_a_value_that_grows_out_of_itself_fails_before_anybody_writes_it(
    autojump_clock: Any, output: Any, says: str
) -> None:
    grows = {"output": {"next": output}}
    input = {"initial_input": 0, "max_iterations": 20_000, "flow": {"$literal": grows}}
    schema = {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#/schemas/$defs/T"}}]}
    schemas = {"type": "object", "$defs": {"T": schema}}
    for more in ({}, {"schemas": schemas}):
        tested = one_step("/builtin/iterate", input) | more
        async with open_runtime() as runtime:
            with pytest.raises(RunFailed, match=says) as caught:
                await runtime.run(tested)
            assert caught.value.code in (ErrorCode.INVALID_VALUE, ErrorCode.BAD_REQUEST)


async def test_a_value_that_grows_from_step_to_step_fails_too(autojump_clock: Any) -> None:
    async with open_runtime() as runtime:
        through = await runtime.flows.put(flow_from_json({"output": INPUT}))
        steps = [step("s0", "/builtin/eval", {"flow_id": through, "input": 0})]
        for index in range(1, 100):
            before = {"$step": f"s{index - 1}", "path": "$.result.result"}
            steps.append(step(f"s{index}", "/builtin/eval", {"flow_id": through, "input": [before, before]}))
        with pytest.raises(RunFailed, match="cannot be the input of a run: it is larger than") as caught:
            await runtime.run(flow(*steps))
        assert caught.value.code == ErrorCode.BAD_REQUEST
