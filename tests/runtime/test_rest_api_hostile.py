"""The REST API against what nobody should send: it says what is wrong, and goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_stage import Client, open_client
from runtime_stage import one_step
from trio.testing import wait_all_tasks_blocked

from stepflow_trio.runtime.rest_api import RestApi
from stepflow_trio.runtime.rest_api.application import BODIES_AT_ONCE
from stepflow_trio.testing import Cancellable, cancel_everywhere

ECHO = one_step("/w/echo", {"value": {"$input": "$"}})
RUN = "00000000-0000-0000-0000-000000000007"


@pytest.fixture
async def client() -> AsyncGenerator[Client]:
    async with open_client() as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/health", b"GET, HEAD"),
        ("PUT", "/runs", b"GET, HEAD, POST"),
        ("PATCH", f"/runs/{RUN}", b"DELETE, GET, HEAD"),
        ("GET", f"/runs/{RUN}/cancel", b"POST"),
        ("POST", f"/runs/{RUN}/events", b"GET, HEAD"),
        ("DELETE", "/flows", b"GET, HEAD, POST"),
        ("OPTIONS", "/flows", b"GET, HEAD, POST"),
        ("GE T", "/flows", b"GET, HEAD, POST"),
    ],
)
async def test_another_method_is_answered_with_those_that_there_are(
    client: Client, autojump_clock: Any, method: str, path: str, allow: bytes
) -> None:
    reply = await client.call(method, path)
    assert (reply.status, reply.headers[b"allow"]) == (405, allow)
    assert allow.decode() in reply.message


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//",
        "/nope",
        "/runs//items",
        f"/runs/{RUN}/nope",
        "/flows/a/b/c",
        "/health/x",
        "/../etc",
        "/ä",
    ],
)
async def test_another_path_is_not_found(client: Client, autojump_clock: Any, path: str) -> None:
    reply = await client.call("GET", path)
    assert reply.status == 404
    assert "openapi.json" in reply.message or "/api/v1" in reply.message


@pytest.mark.parametrize("path", ["/flows", "/runs"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({b"content-type": b"text/plain"}, 415),
        ({b"content-type": b""}, 415),
        ({b"content-type": b"application/json;charset=utf-8"}, 422),
        ({b"content-type": b"Application/JSON"}, 422),
        ({b"content-encoding": b"gzip"}, 415),
        ({b"content-length": b"99999999999"}, 413),
        ({b"content-length": b"9" * 5000}, 413),
    ],
)
async def test_a_body_that_is_not_said_to_be_json_is_refused(
    client: Client, autojump_clock: Any, path: str, headers: dict[bytes, bytes], status: int
) -> None:
    reply = await client.call("POST", path, b"{}", headers=headers)
    assert reply.status == status
    assert reply.message


async def test_a_body_at_the_limit_is_taken_and_one_byte_more_is_not(autojump_clock: Any) -> None:
    async with open_client() as client:
        client.app = RestApi(client.runtime, max_body_bytes=1000)
        for size, status in ((1000, 422), (1001, 413)):
            body = b"{}" + b" " * (size - 2)
            for pieces in (1, 7):
                reply = await client.call("POST", "/flows", body, pieces=pieces)
                assert reply.status == status
            unsaid = await client.call(
                "POST", "/flows", body, pieces=7, headers={b"content-length": b"", b"transfer-encoding": b"x"}
            )
            assert unsaid.status == status


async def test_what_is_being_received_is_bounded_in_all(autojump_clock: Any) -> None:
    async with open_client() as client:
        app = RestApi(client.runtime, max_body_bytes=1000)
        stuck = trio.Event()
        statuses: list[int] = []

        async def upload() -> None:
            sent = False

            async def receive() -> dict[str, Any]:
                nonlocal sent
                if not sent:
                    sent = True
                    return {"type": "http.request", "body": b"x" * 999, "more_body": True}
                await stuck.wait()
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            headers = [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
            scope = {"type": "http", "method": "POST", "path": "/api/v1/flows", "headers": headers}
            await app(scope, receive, send)

        async with trio.open_nursery() as nursery:
            for _ in range(BODIES_AT_ONCE + 2):
                nursery.start_soon(upload)
            await wait_all_tasks_blocked()
            assert statuses == [503, 503]
            stuck.set()
        assert sorted(statuses) == [400] * BODIES_AT_ONCE + [503] * 2
        client.app = app
        assert (await client.call("POST", "/flows", {"flow": ECHO})).status == 200


async def test_too_many_items_are_refused_before_there_are_any(client: Client, autojump_clock: Any) -> None:
    flow_id = await client.store(ECHO)
    body = b'{"flowId":"%b","input":[%b]}' % (flow_id.encode(), b",".join([b"0"] * 1_000_001))
    reply = await client.call("POST", "/runs", body)
    assert (reply.status, "$.input" in reply.message) == (422, True)


async def test_a_client_that_leaves_within_its_body_leaves_nothing(
    client: Client, autojump_clock: Any
) -> None:
    calls = 0

    async def receive() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 1:
            return {"type": "http.request", "body": b'{"flow": {', "more_body": True}
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError("there is nobody to answer")

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/api/v1/flows", "headers": headers}
    await client.app(scope, receive, send)
    assert (await client.get("/flows"))["total"] == 0


async def test_nothing_that_is_sent_reaches_a_message_raw(client: Client, autojump_clock: Any) -> None:
    reply = await client.call("GET", "/runs/\x1b[31m" + "x" * 10_000)
    assert reply.status == 400
    assert "\x1b" not in reply.message
    assert len(reply.body) < 1000


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["flowId", "input", "overrides", "variables", "maxConcurrency", "timeoutSecs", "flow", "dryRun", "steps",
     "id", "component", "output", "$step", "value", "schemas", "metadata", "examples", "test", "name"]
)  # fmt: skip
BODIES = (
    st.binary(max_size=60)
    | JSON_VALUES.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(FIELDS, JSON_VALUES, max_size=8).map(lambda value: json.dumps(value).encode())
    | st.dictionaries(FIELDS, JSON_VALUES, max_size=8).map(lambda value: json.dumps({"flow": value}).encode())
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["/flows", "/runs", f"/runs/{RUN}/cancel"]), BODIES), max_size=5))
def test_whatever_a_body_says_the_answer_is_described_and_no_fault_of_ours(
    requests: list[tuple[str, bytes]],
) -> None:
    async def main() -> None:
        async with open_client() as client:
            for path, body in requests:
                reply = await client.call("POST", path, body)
                assert reply.status < 500, reply.body
            assert (await client.get("/health"))["status"] == "healthy"

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


QUERIES = st.dictionaries(
    st.sampled_from(["status", "flowName", "rootRunId", "limit", "offset", "maxDepth", "rootsOnly", "after",
                     "wait", "timeoutSecs", "itemIndex", "itemLimit", "itemOffset", "includeSchemas",
                     "other"]),
    st.text(max_size=12) | st.integers().map(str),
    max_size=5,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(
        ["/runs", "/flows", "/components", f"/runs/{RUN}", f"/runs/{RUN}/steps", f"/runs/{RUN}/events"]
    ),
    QUERIES,
    st.binary(max_size=8),
)
def test_whatever_a_query_says_the_answer_is_described_and_no_fault_of_ours(
    path: str, query: dict[str, str], tail: bytes
) -> None:
    from urllib.parse import urlencode

    async def main() -> None:
        async with open_client() as client:
            text = urlencode(query) + "&" + tail.decode("latin-1")
            reply = await client.call("GET", f"{path}?{text}")
            assert reply.status in (200, 400, 404), reply.body

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_submission_cancelled_anywhere_is_a_run_or_none() -> None:
    async def scenario(case: Cancellable) -> None:
        async with open_client() as client:
            flow_id = await client.store(ECHO)
            body = {"flowId": flow_id, "input": [1], "wait": True}
            headers = {b"idempotency-key": b"k"}
            with case:
                await client.call("POST", "/runs", body, headers=headers)
            again = await client.call("POST", "/runs", body, headers=headers)
            assert again.json["status"] == "completed"
            listed = await client.get("/runs")
            assert [each["runId"] for each in listed["runs"]] == [again.json["runId"]]

    cancel_everywhere(scenario)
