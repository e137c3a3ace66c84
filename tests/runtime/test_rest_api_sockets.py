"""The REST API over sockets, on both hosts, guarded as a worker's endpoint is."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
import trio
from runtime_stage import Stage, one_step

from stepflow_trio import BearerTokens, HttpSecurity, HttpServerLimits, open_runtime
from stepflow_trio.errors import ConfigError
from stepflow_trio.protocol.sse import EventParser, ServerEvent
from stepflow_trio.runtime.rest_api import RestApi
from stepflow_trio.transports.http.client import HttpClient, open_http_client
from stepflow_trio.transports.http.hosting import open_http_host

HostName = Literal["h11", "hypercorn"]

ECHO = one_step("/w/echo", {"value": {"$input": "$"}})
TOKEN = "a-token-of-the-tests"  # noqa: S105 — of no server
JSON = ("content-type", "application/json")

pytestmark = pytest.mark.parametrize("host", ["h11", "hypercorn"])


@asynccontextmanager
async def serving(
    host: HostName, stage: Stage, security: HttpSecurity | None = None, **limits: Any
) -> AsyncGenerator[tuple[HttpClient, RestApi]]:
    with trio.fail_after(30):
        async with open_runtime(workers={"w": stage.worker}) as runtime:
            app = RestApi(runtime, max_body_bytes=limits.pop("max_json_bytes", 2**26))
            bounds = HttpServerLimits(**limits)
            async with (
                open_http_host(app, host=host, security=security, limits=bounds) as found,
                open_http_client(found.url) as client,
            ):
                yield client, app


async def call(
    client: HttpClient, method: str, path: str, body: Any = None, *headers: tuple[str, str]
) -> tuple[int, Any]:
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    given = [JSON, *headers] if body is not None else list(headers)
    async with client.request(method, f"/api/v1{path}", headers=given, body=content) as response:
        text = await response.read()
        return response.status, json.loads(text) if text else None


async def start_run(client: HttpClient, flow: dict[str, Any], *inputs: Any, **more: Any) -> dict[str, Any]:
    _, stored = await call(client, "POST", "/flows", {"flow": flow})
    _, run = await call(client, "POST", "/runs", {"flowId": stored["flowId"], "input": inputs, **more})
    return run


async def test_a_run_from_its_flow_to_its_deletion(host: HostName) -> None:
    async with serving(host, Stage()) as (client, _):
        run = await start_run(client, ECHO, 1, "ä", wait=True)
        assert [each["result"]["result"] for each in run["results"]] == [1, "ä"]
        path = f"/runs/{run['runId']}"
        assert (await call(client, "GET", path))[1]["status"] == "completed"
        assert await call(client, "DELETE", path) == (200, None)
        assert (await call(client, "GET", path))[0] == 404
        assert (await call(client, "GET", f"{path}/events"))[0] == 404


async def test_events_arrive_while_the_run_is_at_work_and_are_taken_up_again(host: HostName) -> None:
    stage = Stage()
    async with serving(host, stage) as (client, _):
        run = await start_run(client, one_step("/w/wait", {"name": {"$input": "$"}}), "x", "y", "z")
        seen: list[str] = []
        while True:
            headers = [("last-event-id", seen[-1])] if seen else []
            target = f"/api/v1/runs/{run['runId']}/events"
            async with client.request("GET", target, headers=headers) as response:
                assert response.headers.get(b"content-type") == b"text/event-stream"
                parser = EventParser()
                found: list[ServerEvent] = []
                while not found:
                    chunk = await response.receive_some()
                    assert chunk
                    found = [each for each in parser.feed(chunk) if isinstance(each, ServerEvent)]
            seen += [each.id for each in found]
            if len(seen) >= 4:
                stage.release.set()
            if found[-1].type == "runEnded":
                break
        assert seen == [str(number) for number in range(1, 12)]
        async with client.request("GET", f"{target}?after=11") as response:
            assert (response.status, await response.read()) == (204, b"")


async def test_cancelling_reaches_the_component(host: HostName) -> None:
    stage = Stage()
    async with serving(host, stage) as (client, _):
        run = await start_run(client, one_step("/w/wait", {"name": "x"}), None)
        await stage.has_begun.wait()
        status, answer = await call(client, "POST", f"/runs/{run['runId']}/cancel")
        assert (status, answer["status"]) == (200, "cancelled")
        assert stage.cancelled == ["x"]


async def test_a_client_that_leaves_a_stream_or_a_wait_is_noticed(host: HostName) -> None:
    stage = Stage()
    async with serving(host, stage) as (client, _):
        run = await start_run(client, one_step("/w/wait", {"name": "x"}), None)
        for path in ("events", "?wait=true"):
            target = f"/api/v1/runs/{run['runId']}" + (path if path[0] == "?" else f"/{path}")
            with trio.move_on_after(0.2):
                async with client.request("GET", target) as response:
                    while True:
                        await response.receive_some()
        assert (await call(client, "GET", f"/runs/{run['runId']}"))[1]["status"] == "running"
        stage.release.set()


async def test_an_open_stream_ends_in_order_and_does_not_hold_up_the_end_of_its_server(
    host: HostName,
) -> None:
    stage, chunks = Stage(), list[bytes]()

    async def read(url: str, task_status: trio.TaskStatus[None]) -> None:
        async with open_http_client(url) as client:
            run = await start_run(client, one_step("/w/wait", {"name": "x"}), None)
            await stage.has_begun.wait()
            async with client.request("GET", f"/api/v1/runs/{run['runId']}/events?after=2") as stream:
                task_status.started()
                while chunk := await stream.receive_some():
                    chunks.append(chunk)
                chunks.append(b"the end")

    with trio.fail_after(60):
        async with open_runtime(workers={"w": stage.worker}) as runtime, trio.open_nursery() as nursery:
            api, limits = RestApi(runtime), HttpServerLimits(drain_s=40)
            async with open_http_host(api, host=host, limits=limits, drain=api.drain) as found:
                await nursery.start(read, found.url)
                began = trio.current_time()
            assert trio.current_time() - began < 20
    assert chunks[-1] == b"the end"


async def test_a_body_that_is_too_large_is_refused_and_the_connection_goes_on(host: HostName) -> None:
    async with serving(host, Stage(), max_json_bytes=10_000) as (client, _):
        for _ in range(2):
            status, answer = await call(client, "POST", "/flows", b"[" + b" " * 2_000_000 + b"]")
            assert (status, answer["code"]) == (413, 413)
        assert (await call(client, "GET", "/health"))[0] == 200


async def test_without_a_token_there_is_health_and_nothing_else(host: HostName) -> None:
    security = HttpSecurity(bearer=BearerTokens(TOKEN), open_paths=("/api/v1/health",))
    async with serving(host, Stage(), security) as (client, _):
        assert (await call(client, "GET", "/health"))[0] == 200
        for path in ("/runs", "/openapi.json", "/components", "/blobs/x", "/runs/x/events"):
            status, answer = await call(client, "GET", path)
            assert (status, answer["code"]) == (401, 401)
            assert "asks for a token" in answer["message"]
        assert (await call(client, "GET", "/runs", None, ("authorization", f"Bearer {TOKEN}")))[0] == 200


async def test_web_pages_of_others_are_refused(host: HostName) -> None:
    async with serving(host, Stage()) as (client, _):
        assert (await call(client, "GET", "/runs", None, ("origin", "https://elsewhere.example")))[0] == 403
        status, answer = await call(client, "GET", "/runs", None, ("sec-fetch-site", "cross-site"))
        assert (status, answer["code"]) == (403, 403)
        assert "web pages" in answer["message"]


async def test_other_machines_are_not_let_in_without_a_token(host: HostName) -> None:
    async with open_runtime() as runtime:
        with pytest.raises(ConfigError, match="allow_insecure_bind"):
            async with open_http_host(RestApi(runtime), host=host, bind="0.0.0.0:0"):
                pass
