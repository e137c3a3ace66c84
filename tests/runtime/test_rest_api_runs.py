"""Runs over the REST API: started, looked at, listed, cancelled, deleted; keys that repeat submissions."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import trio
from rest_stage import Client, open_client
from runtime_stage import Stage, flow, one_step, retrying, step
from trio.testing import wait_all_tasks_blocked

from stepflow_trio import ComponentError, Context
from stepflow_trio.errors import RunNotFound, StateConflict
from stepflow_trio.runtime.runs import DEFAULT_MAX_CONCURRENCY

ECHO = one_step("/w/echo", {"value": {"$input": "$"}})
WAIT = one_step("/w/wait", {"name": {"$input": "$"}})
NOBODY = str(uuid.UUID(int=7))


@pytest.fixture
async def client() -> AsyncGenerator[Client]:
    async with open_client() as client:
        yield client


async def test_a_run_is_answered_at_once_and_found_by_its_id(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(WAIT, "x")
    assert run["status"] == "running"
    assert run["items"] == {"total": 1, "completed": 0, "running": 1, "failed": 0, "cancelled": 0}
    assert run["rootRunId"] == run["runId"]
    assert "results" not in run
    client.stage.release.set()
    ended = await client.get(f"/runs/{run['runId']}?wait=true")
    assert (ended["status"], ended["flowName"]) == ("completed", "tested")
    [only] = ended["itemDetails"][0]["steps"]
    assert (only["stepId"], only["status"], only["attempt"]) == ("only", "completed", 1)


async def test_waiting_for_a_run_brings_its_results(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(ECHO, 1, {"a": None}, None, wait=True)
    assert run["status"] == "completed"
    assert [each["result"] for each in run["results"]] == [
        {"outcome": "success", "result": value} for value in (1, {"a": None}, None)
    ]
    items = await client.get(f"/runs/{run['runId']}/items")
    assert (items["itemCount"], items["items"]) == (3, run["results"])


async def test_a_wait_that_takes_too_long_is_answered_with_a_run_that_goes_on(
    client: Client, autojump_clock: Any
) -> None:
    run = await client.submit(WAIT, "x", wait=True, timeoutSecs=7)
    assert (trio.current_time(), run["status"]) == (7, "running")
    assert "results" not in run
    again = await client.get(f"/runs/{run['runId']}?wait=true&timeoutSecs=3")
    assert (trio.current_time(), again["status"]) == (10, "running")
    assert (await client.get(f"/runs/{run['runId']}?wait=true"))["status"] == "running"
    assert trio.current_time() == 310


async def test_a_client_that_leaves_while_it_waits_leaves_the_run_as_it_is(
    client: Client, autojump_clock: Any
) -> None:
    body = {"flowId": await client.store(WAIT), "input": ["x"], "wait": True}
    async with client.exchange("POST", "/runs", body) as exchange:
        await client.stage.has_begun.wait()
    assert exchange.ended.is_set()
    assert trio.current_time() <= 0.1, "nothing of the request goes on"
    assert client.stage.cancelled == []
    client.stage.release.set()
    [run] = (await client.get("/runs"))["runs"]
    assert (await client.get(f"/runs/{run['runId']}?wait=true"))["status"] == "completed"


async def test_a_run_without_items_is_completed(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(ECHO, wait=True)
    assert (run["status"], run["items"]["total"], run["results"]) == ("completed", 0, [])
    steps = await client.get(f"/runs/{run['runId']}/steps")
    assert steps["steps"]["only"]["status"] == "skipped"


async def test_a_failed_item_fails_its_run_and_keeps_its_error(client: Client, autojump_clock: Any) -> None:
    @client.stage.component
    async def fails() -> None:
        raise ComponentError("no", data={"sku": 7}, code=-32110)

    run = await client.submit(one_step("/w/fails", {}), 1, wait=True)
    assert (run["status"], run["items"]["failed"]) == ("failed", 1)
    error = {"code": -32110, "message": "no", "data": {"sku": 7}}
    assert run["results"][0]["result"] == {"outcome": "failed", "error": error}
    steps = (await client.get(f"/runs/{run['runId']}/steps?itemIndex=0"))["steps"]
    assert steps["only"]["status"] == "failed"
    assert steps["only"]["result"] == {"outcome": "failed", "error": error}


async def test_overrides_are_applied_and_shown(client: Client, autojump_clock: Any) -> None:
    overrides = {"steps": {"only": {"value": {"input": {"value": {"$literal": "other"}}}}}}
    run = await client.submit(ECHO, 1, wait=True, overrides=overrides)
    assert run["results"][0]["result"]["result"] == "other"
    shown = (await client.get(f"/runs/{run['runId']}"))["overrides"]
    assert shown["steps"]["only"] == {"$type": "merge_patch", **overrides["steps"]["only"]}
    assert (await client.get(f"/runs/{run['runId']}/flow"))["flow"] == ECHO


async def test_variables_and_max_concurrency_reach_the_run(client: Client, autojump_clock: Any) -> None:
    named = one_step("/w/wait", {"name": {"$variable": "name"}})
    run = await client.submit(named, 1, 2, 3, variables={"name": "v"}, maxConcurrency=2)
    await wait_all_tasks_blocked()
    assert client.stage.began == ["v", "v"]
    client.stage.release.set()
    assert (await client.get(f"/runs/{run['runId']}?wait=true"))["status"] == "completed"


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        ({"flowId": "0" * 64}, 404, "no flow"),
        ({"flowId": "abc"}, 404, "no flow"),
        ({"overrides": {"steps": {"onyl": {"value": {}}}}}, 400, 'did you mean "only"'),
        ({"overrides": {"steps": {"only": {"$type": "json_patch", "value": []}}}}, 400, "json_patch"),
        ({"overrides": {"steps": {"only": {}}}}, 422, "$.overrides"),
        ({"overrides": {"steps": {"only": {"value": {"component": "x"}}}}}, 400, "component"),
        ({"overrides": []}, 422, "$.overrides"),
        ({"maxConcurrency": 0}, 400, "at least 1"),
        ({"maxConcurrency": -1}, 422, "$.maxConcurrency"),
        ({"maxConcurrency": 2**70}, 422, "$.maxConcurrency"),
        ({"timeoutSecs": "1"}, 422, "$.timeoutSecs"),
        ({"timeoutSecs": -1}, 422, "$.timeoutSecs"),
        ({"input": {}}, 422, "$.input"),
        ({"input": None}, 422, "$.input"),
        ({"variables": []}, 422, "$.variables"),
        ({"wait": "true"}, 422, "$.wait"),
    ],
)
async def test_a_submission_that_does_not_fit_starts_nothing(
    client: Client, autojump_clock: Any, more: dict[str, Any], status: int, says: str
) -> None:
    body = {"flowId": await client.store(ECHO), "input": [1], **more}
    reply = await client.call("POST", "/runs", body)
    assert reply.status == status
    assert says in reply.message
    assert (await client.get("/runs"))["total"] == 0


async def test_explicit_nulls_are_as_good_as_nothing(client: Client, autojump_clock: Any) -> None:
    nulls = dict.fromkeys(("overrides", "variables", "maxConcurrency", "wait", "timeoutSecs"))
    assert (await client.submit(ECHO, 1, **nulls))["status"] == "running"


# ---- steps and items while they are at work -------------------------------------------------------------


async def test_steps_and_items_are_seen_while_they_are_at_work(client: Client, autojump_clock: Any) -> None:
    two = flow(
        step("a", "/w/echo", {"value": {"$input": "$"}}),
        step("b", "/w/wait", {"name": {"$step": "a"}}),
        step("c", "/w/echo", {"value": {"$step": "b"}}),
        step("unused", "/w/echo", {"value": 1}),
        output={"$step": "c"},
    )
    run = await client.submit(two, "x", "y")
    await wait_all_tasks_blocked()
    steps = (await client.get(f"/runs/{run['runId']}/steps?itemIndex=0"))["steps"]
    assert [each["status"] for each in steps.values()] == ["completed", "running", "blocked", "blocked"]
    assert steps["a"]["result"] == {"outcome": "success", "result": "x"}
    assert (steps["b"]["attempt"], steps["b"]["component"]) == (1, "/w/wait")
    assert steps["b"]["startedAt"] >= steps["a"]["completedAt"]
    details = await client.get(f"/runs/{run['runId']}")
    assert [(each["input"], each["status"]) for each in details["itemDetails"]] == [
        ("x", "running"),
        ("y", "running"),
    ]
    items = await client.get(f"/runs/{run['runId']}/items")
    assert [each["status"] for each in items["items"]] == ["running", "running"]
    together = (await client.get(f"/runs/{run['runId']}/steps"))["steps"]
    assert {id_: each["status"] for id_, each in together.items()} == {
        "a": "completed", "b": "running", "c": "blocked", "unused": "blocked",
    }  # fmt: skip
    client.stage.release.set()
    await client.get(f"/runs/{run['runId']}?wait=true")
    steps = (await client.get(f"/runs/{run['runId']}/steps?itemIndex=0"))["steps"]
    assert [each["status"] for each in steps.values()] == ["completed"] * 3 + ["skipped"]
    assert "result" not in steps["a"], "a finished item costs its own result"


async def test_an_item_s_result_is_there_before_its_run_has_ended(
    client: Client, autojump_clock: Any
) -> None:
    mixed = one_step("/w/sleep", {"seconds": {"$input": "$"}})
    run = await client.submit(mixed, 5, 1)
    await trio.sleep(2)
    items = (await client.get(f"/runs/{run['runId']}/items"))["items"]
    assert [each["status"] for each in items] == ["running", "completed"]
    assert items[1]["result"] == {"outcome": "success", "result": 1}
    assert (await client.get(f"/runs/{run['runId']}"))["items"]["completed"] == 1


async def test_attempts_are_counted(autojump_clock: Any) -> None:
    async with open_client() as client:

        @client.stage.component
        async def third_time(context: Context) -> int:
            if context.attempt < 3:
                raise ComponentError("not yet")
            return context.attempt

        retried = one_step("/w/third_time", {}, onError={"action": "retry", "maxRetries": 3})
        run = await client.submit(retried, 1, wait=True)
        steps = (await client.get(f"/runs/{run['runId']}/steps?itemIndex=0"))["steps"]
    assert (steps["only"]["status"], steps["only"]["attempt"]) == ("completed", 3)


async def test_a_step_that_took_its_default_is_completed_and_one_without_an_input_failed(
    client: Client,
    autojump_clock: Any,
) -> None:
    @client.stage.component
    async def fails() -> None:
        raise ComponentError("no")

    given = flow(
        step("soft", "/w/fails", {}, onError={"action": "useDefault", "defaultValue": 3}),
        step("blind", "/w/echo", {"value": {"$input": "$.missing"}}),
        output={"soft": {"$step": "soft"}, "blind": {"$step": "blind"}},
    )
    run = await client.submit(given, {}, wait=True)
    steps = (await client.get(f"/runs/{run['runId']}/steps?itemIndex=0"))["steps"]
    assert steps["soft"]["status"] == "completed"
    assert steps["soft"]["result"] == {"outcome": "success", "result": 3}
    assert (steps["blind"]["status"], steps["blind"]["attempt"]) == ("failed", 0)
    assert "missing" in steps["blind"]["result"]["error"]["message"]


async def test_a_default_that_an_override_gave_counts(client: Client, autojump_clock: Any) -> None:
    @client.stage.component
    async def fails() -> None:
        raise ComponentError("no")

    patch = {"onError": {"action": "useDefault", "defaultValue": 3}}
    overrides = {"steps": {"only": {"value": patch}}}
    run = await client.submit(one_step("/w/fails", {}), 1, wait=True, overrides=overrides)
    assert run["status"] == "completed"
    steps = (await client.get(f"/runs/{run['runId']}/steps?itemIndex=0"))["steps"]
    assert steps["only"]["result"] == {"outcome": "success", "result": 3}
    details = await client.get(f"/runs/{run['runId']}")
    [only] = details["itemDetails"][0]["steps"]
    assert (only["stepId"], only["status"]) == ("only", "completed")


async def test_of_all_items_together_a_step_has_its_worst_status(client: Client, autojump_clock: Any) -> None:
    @client.stage.component
    async def fails_at(number: int) -> int:
        if number == 2:
            raise ComponentError("no")
        return number

    run = await client.submit(one_step("/w/fails_at", {"number": {"$input": "$"}}), 1, 2, 3, wait=True)
    together = (await client.get(f"/runs/{run['runId']}/steps"))["steps"]
    assert together == {"only": {"stepId": "only", "component": "/w/fails_at", "status": "failed"}}
    steps = [(await client.get(f"/runs/{run['runId']}/steps?itemIndex={n}"))["steps"] for n in range(3)]
    assert [each["only"]["status"] for each in steps] == ["completed", "failed", "completed"]


async def test_items_come_in_pages(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(ECHO, *range(10), wait=True)
    reply = await client.call("GET", f"/runs/{run['runId']}/items?limit=3&offset=8")
    assert [each["itemIndex"] for each in reply.json["items"]] == [8, 9]
    assert (reply.json["itemCount"], reply.headers[b"x-total-count"]) == (10, b"10")
    assert (await client.get(f"/runs/{run['runId']}/items?offset=99"))["items"] == []
    assert len((await client.get(f"/runs/{run['runId']}/items?limit=4"))["items"]) == 4


# ---- listing --------------------------------------------------------------------------------------------


async def test_runs_are_listed_in_pages_the_latest_first(client: Client, autojump_clock: Any) -> None:
    ids = [(await client.submit(ECHO, n, wait=True))["runId"] for n in range(5)]
    reply = await client.call("GET", "/runs?limit=2&offset=1")
    assert [each["runId"] for each in reply.json["runs"]] == [ids[3], ids[2]]
    assert (reply.json["total"], reply.headers[b"x-total-count"]) == (5, b"5")
    # An offset counts without a limit too.
    assert [each["runId"] for each in (await client.get("/runs?offset=3"))["runs"]] == [ids[1], ids[0]]
    assert (await client.get("/runs?limit=0"))["runs"] == []


async def test_runs_are_found_by_what_is_asked_of_them(client: Client, autojump_clock: Any) -> None:
    inner = flow(step("i", "/w/echo", {"value": 1}), name="inner")
    outer = one_step("/builtin/map", {"workflow": {"$literal": inner}, "items": [1]})
    done = (await client.submit({**ECHO, "name": "done"}, 1, wait=True))["runId"]
    parent = (await client.submit({**outer, "name": "outer"}, 1, wait=True))["runId"]
    busy = (await client.submit({**WAIT, "name": "busy"}, "x"))["runId"]
    [child] = [each["runId"] for each in (await client.get("/runs?flowName=inner"))["runs"]]

    async def ids(query: str) -> list[str]:
        listed = await client.get(f"/runs?{query}")
        assert listed["total"] == len(listed["runs"])
        return [each["runId"] for each in listed["runs"]]

    assert await ids("") == [busy, child, parent, done]
    assert await ids("status=running") == [busy]
    assert await ids("status=paused") == []
    assert await ids("flowName=done") == [done]
    assert await ids(f"rootRunId={parent}") == [child, parent]
    assert await ids(f"rootRunId={parent}&maxDepth=0") == [parent]
    assert await ids(f"parentRunId={parent}") == [child]
    assert await ids("rootsOnly=true") == [busy, parent, done]
    assert await ids("maxDepth=0") == [busy, parent, done]
    assert await ids("maxDepth=1&status=completed") == [child, parent, done]
    assert await ids(f"rootRunId={parent.upper().replace('-', '')}") == [child, parent]
    shown = await client.get(f"/runs/{child}")
    assert (shown["parentRunId"], shown["rootRunId"]) == (parent, parent)


@pytest.mark.parametrize(
    "query",
    ["limit=x", "limit=-1", "limit=1001", "offset=-1", "offset=99999999999999999999", "status=over",
     "rootsOnly=maybe", "maxDepth=1.5", "rootRunId=7", "parentRunId=", "limit=1&limit=2", "flowName=%ff",
     "&".join(f"a{n}=1" for n in range(99))],
)  # fmt: skip
async def test_a_query_that_does_not_fit_is_refused(client: Client, autojump_clock: Any, query: str) -> None:
    reply = await client.call("GET", f"/runs?{query}")
    assert reply.status == 400, reply.body
    assert reply.message


# ---- ends -----------------------------------------------------------------------------------------------


async def test_cancelling_a_run_cancels_the_components_that_are_at_work_for_it(
    client: Client, autojump_clock: Any
) -> None:
    run = await client.submit(WAIT, "x", "y")
    await wait_all_tasks_blocked()
    reply = await client.call("POST", f"/runs/{run['runId']}/cancel")
    assert (reply.status, reply.json["status"]) == (200, "cancelled")
    assert sorted(client.stage.cancelled) == ["x", "y"]
    assert reply.json["items"]["cancelled"] == 2
    client.stage.release.set()
    await wait_all_tasks_blocked()
    ended = await client.get(f"/runs/{run['runId']}")
    assert ended["status"] == "cancelled", "what was cancelled stays cancelled"
    assert [each["status"] for each in ended["itemDetails"]] == ["cancelled", "cancelled"]
    steps = (await client.get(f"/runs/{run['runId']}/steps?itemIndex=0"))["steps"]
    assert steps["only"]["status"] == "failed"
    assert steps["only"]["result"]["error"]["code"] == -32800


async def test_cancelling_reaches_the_runs_that_components_submitted(
    client: Client, autojump_clock: Any
) -> None:
    outer = one_step("/builtin/map", {"workflow": {"$literal": WAIT}, "items": ["x", "y"]})
    run = await client.submit(outer, None)
    await wait_all_tasks_blocked()
    await client.call("POST", f"/runs/{run['runId']}/cancel")
    assert sorted(client.stage.cancelled) == ["x", "y"]
    assert {each["status"] for each in (await client.get("/runs"))["runs"]} == {"cancelled"}


async def test_a_cancellation_goes_on_when_who_asked_for_it_leaves(
    client: Client, autojump_clock: Any
) -> None:
    release = trio.Event()

    @client.stage.component
    async def stubborn() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await release.wait()

    run = await client.submit(one_step("/w/stubborn", {}), None)
    await wait_all_tasks_blocked()
    async with client.exchange("POST", f"/runs/{run['runId']}/cancel"):
        await wait_all_tasks_blocked()
    release.set()
    assert (await client.get(f"/runs/{run['runId']}?wait=true"))["status"] == "cancelled"


async def test_a_run_that_is_over_is_not_cancelled(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(ECHO, 1, wait=True)
    reply = await client.call("POST", f"/runs/{run['runId']}/cancel")
    assert (reply.status, "completed" in reply.message) == (409, True)


async def test_a_deleted_run_is_gone_with_the_runs_below_it(client: Client, autojump_clock: Any) -> None:
    outer = one_step("/builtin/map", {"workflow": {"$literal": ECHO}, "items": [1]})
    run = await client.submit(outer, 1, wait=True)
    other = await client.submit(ECHO, 1, wait=True)
    assert (await client.get("/runs"))["total"] == 3
    assert (await client.call("DELETE", f"/runs/{run['runId']}")).status == 200
    assert [each["runId"] for each in (await client.get("/runs"))["runs"]] == [other["runId"]]
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/items"), ("GET", "/events")):
        assert (await client.call(method, f"/runs/{run['runId']}{path}")).status == 404


async def test_a_run_at_work_is_not_deleted(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(WAIT, "x")
    reply = await client.call("DELETE", f"/runs/{run['runId']}")
    assert (reply.status, "at work" in reply.message) == (409, True)
    assert client.stage.cancelled == []


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "?wait=true"), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/items"),
     ("GET", "/flow"), ("GET", "/steps"), ("GET", "/events")],
)  # fmt: skip
async def test_a_run_that_there_is_not_is_not_found_and_an_id_that_is_none_refused(
    client: Client, autojump_clock: Any, method: str, path: str
) -> None:
    reply = await client.call(method, f"/runs/{NOBODY}{path}")
    assert (reply.status, NOBODY in reply.message) == (404, True)
    for id_ in ("7", NOBODY[:-1], NOBODY + "0", "１" * 32, "%00", "{" + NOBODY + "}"):
        reply = await client.call(method, f"/runs/{id_}{path}")
        assert (reply.status, "UUID" in reply.message) == (400, True)


async def test_an_item_that_there_is_not_is_refused(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(ECHO, 1, wait=True)
    reply = await client.call("GET", f"/runs/{run['runId']}/steps?itemIndex=1")
    assert (reply.status, "item 1" in reply.message) == (400, True)


# ---- idempotency keys -----------------------------------------------------------------------------------


def keyed(key: str) -> dict[str, Any]:
    return {"headers": {b"idempotency-key": key.encode("latin-1")}}


async def test_the_same_key_with_the_same_body_is_the_same_run(client: Client, autojump_clock: Any) -> None:
    body = {"flowId": await client.store(ECHO), "input": [1], "variables": {"a": 1}}
    first = await client.call("POST", "/runs", body, **keyed("k"))
    again = await client.call("POST", "/runs", {**body, "wait": True}, **keyed("k"))
    spelled = {**body, "maxConcurrency": DEFAULT_MAX_CONCURRENCY}
    third = await client.call("POST", "/runs", spelled, **keyed("k"))
    assert first.json["runId"] == again.json["runId"] == third.json["runId"]
    assert (again.status, again.json["status"]) == (200, "completed")
    other = await client.call("POST", "/runs", body, **keyed("l"))
    none = await client.call("POST", "/runs", body)
    assert len({first.json["runId"], other.json["runId"], none.json["runId"]}) == 3


@pytest.mark.parametrize(
    "change",
    [{"input": [2]}, {"input": [1, 1]}, {"input": [True]}, {"variables": {"a": 2}}, {"maxConcurrency": 3},
     {"overrides": {"steps": {"only": {"value": {"metadata": {"a": 1}}}}}}],
)  # fmt: skip
async def test_the_same_key_with_another_body_is_refused(
    client: Client, autojump_clock: Any, change: dict[str, Any]
) -> None:
    body = {"flowId": await client.store(ECHO), "input": [1]}
    first = await client.call("POST", "/runs", body, **keyed("k"))
    reply = await client.call("POST", "/runs", {**body, **change}, **keyed("k"))
    assert reply.status == 422
    assert first.json["runId"] in reply.message
    assert (await client.get("/runs"))["total"] == 1


async def test_a_key_given_many_times_at_once_starts_one_run(client: Client, autojump_clock: Any) -> None:
    body = {"flowId": await client.store(WAIT), "input": ["x"]}
    ids: set[str] = set()

    async def submit() -> None:
        ids.add((await client.call("POST", "/runs", body, **keyed("k"))).json["runId"])

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(submit)
    assert len(ids) == 1
    assert client.stage.began == ["x"]


async def test_a_submission_that_was_refused_leaves_its_key_free_as_does_a_deleted_run(
    client: Client,
    autojump_clock: Any,
) -> None:
    body = {"flowId": await client.store(ECHO), "input": [1]}
    assert (await client.call("POST", "/runs", {**body, "flowId": "0" * 64}, **keyed("k"))).status == 404
    first = await client.call("POST", "/runs", {**body, "wait": True}, **keyed("k"))
    await client.call("DELETE", f"/runs/{first.json['runId']}")
    second = await client.call("POST", "/runs", {**body, "input": [2]}, **keyed("k"))
    assert second.json["runId"] != first.json["runId"]


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "ä"])
async def test_a_key_that_is_none_is_refused(client: Client, autojump_clock: Any, key: str) -> None:
    body = {"flowId": await client.store(ECHO), "input": [1]}
    reply = await client.call("POST", "/runs", body, **keyed(key))
    assert (reply.status, "Idempotency-Key" in reply.message) == (400, True)
    assert (await client.call("POST", "/runs", body, **keyed("x" * 255))).status == 202


# ---- the same without HTTP ------------------------------------------------------------------------------


async def test_the_history_says_the_same_to_those_who_embed_the_runtime(
    client: Client, autojump_clock: Any
) -> None:
    history = client.runtime.history
    run = await client.runtime.submit(WAIT, ["x"])
    assert (await history.wait(run.id, within_s=1)).status == "running"
    assert (await history.cancel(run.id)).status == "cancelled"
    with pytest.raises(StateConflict):
        await history.cancel(run.id)
    await history.delete(run.id)
    for act in (history.get, history.cancel, history.delete, history.wait, history.next_events):
        with pytest.raises(RunNotFound):
            await act(run.id)


async def test_a_broken_store_is_answered_with_an_incident_and_no_detail(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_client(Stage(), config=retrying()) as client:

        async def broken(*_args: Any, **_more: Any) -> Any:
            raise RuntimeError("the secret path /var/lib")

        client.runtime.history.list_runs = broken  # type: ignore[method-assign]
        reply = await client.call("GET", "/runs")
    assert reply.status == 500
    assert "secret" not in reply.message
    incident = reply.message.split("incident ")[1].split(":")[0]
    assert incident in caplog.text
