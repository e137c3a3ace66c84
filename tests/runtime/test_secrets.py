"""What a flow's schemas call secret is in nothing that the runtime tells, and in all that it is for."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from rest_stage import Client, open_client
from runtime_stage import (
    OpenRunStore,
    RawWorker,
    Seen,
    Stage,
    flow,
    own_plugin,
    processes,
    raw_plugin,
    retrying,
    running,
    step,
    until,
)

import stepflow_trio
from stepflow_trio import ComponentError, Connection, Context, ErrorCode, RunFailed, open_runtime
from stepflow_trio.errors import KeyReused
from stepflow_trio.flows.results import Failed, FlowError, Success
from stepflow_trio.flows.secrets import REDACTED
from stepflow_trio.protocol.payloads import ExecuteParams
from stepflow_trio.runtime.events import (
    ItemEnded,
    RunStarted,
    StepEnded,
    StepProgressed,
    StepRetrying,
    WorkerEnded,
    WorkerLine,
)
from stepflow_trio.runtime.redaction import LOGGERS, REMEMBERED_STRINGS, Redaction

KEY = "canary-variable-7f3a"
"""Given as a variable."""
WORD = "canary input/ö 52%"
"""Given in the input."""
TOKEN = "canary-token-" + "9b1e" * 40
"""Returned by a component."""
PIN = 47110815

SECRET = {"is_secret": True}
SCHEMAS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "input": {"properties": {"word": SECRET, "pin": SECRET}},
        "variables": {
            "properties": {"key": {"type": "string", **SECRET, "default": "canary-default"}, "plain": {}}
        },
        "steps": {"properties": {"fetch": {"properties": {"token": SECRET}}}},
    },
}
INPUT = {"word": WORD, "pin": PIN, "plain": "shown"}
VARIABLES = {"key": KEY, "plain": "shown"}


def secret_flow(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**flow(*steps, **more), "schemas": SCHEMAS}


class Components:
    """Components that do with secrets what they should not."""

    def __init__(self) -> None:
        self.stage = Stage()
        self.true: list[Any] = []
        self.stage.component(self.fetch)
        self.stage.component(self.crash)
        self.stage.component(self.moody)
        self.stage.component(self.report)
        self.stage.component(self.below)

    async def fetch(self) -> dict[str, Any]:
        return {"token": TOKEN, "url": f"https://x/?key={TOKEN}", "n": 1}

    async def crash(self, value: Any) -> None:
        try:
            raise ValueError(f"cause {value}")
        except ValueError as exc:
            raise RuntimeError(f"cannot do {json.dumps(value)}") from exc

    async def moody(self, value: Any, context: Context) -> str:
        if context.attempt < 3:
            raise ComponentError(f"not with {value}", data={"seen": [value], str(value): 1})
        return "better"

    async def report(self, value: str, context: Context) -> str:
        context.progress(0.5, "x" * 990 + value)
        await trio.sleep(1)
        return value

    async def below(self, inner: dict[str, Any], value: Any, context: Context) -> Any:
        """What is said of a run that it submits, in every way to ask."""
        status = await context.submit_run(inner, [value, value])
        while (await context.get_run(status.run_id)).status == "running":  # noqa: ASYNC110 — as components may
            await trio.sleep(1)
        waited = await context.get_run(status.run_id, wait=True, include_results=True, by_completion=True)
        self.true += [item.result for item in waited.results or ()]
        submitted = await context.submit_run(inner, [value], wait=True)
        self.true += [item.result for item in submitted.results or ()]
        result = await context.evaluate_flow(inner, value)
        self.true.append({"outcome": "success", "result": result})
        return result


def told_by(*sinks: Any) -> str:
    """All that was told, however it is written."""
    return "\n".join(sink if isinstance(sink, str) else repr(sink) for sink in sinks)


def leaks(told: str) -> list[str]:
    """What of the secrets is in it, with a bit of what is around."""
    forms = "canary|52%|52%25|c3%b6|9b1e9b1e|47110815"
    return [told[max(0, found.start() - 200) : found.end() + 60] for found in re.finditer(forms, told, re.I)]


async def everything(client: Client, run_ids: Iterable[str]) -> str:
    """What the REST API says of runs."""
    said: list[Any] = [await client.get("/runs"), await client.get("/components?includeSchemas=true")]
    for run_id in run_ids:
        said.append(await client.get(f"/runs/{run_id}"))
        said.append(await client.get(f"/runs/{run_id}/items"))
        said.append(await client.get(f"/runs/{run_id}/steps"))
        said += [
            await client.get(f"/runs/{run_id}/steps?itemIndex={item['itemIndex']}")
            for item in said[-2]["items"]
        ]
        stream = await client.call("GET", f"/runs/{run_id}/events")
        said.append(stream.body.decode())
    return "\n".join(json.dumps(each, ensure_ascii=False) for each in said)


@asynccontextmanager
async def observed(
    caplog: pytest.LogCaptureFixture,
) -> AsyncGenerator[tuple[Client, Components, OpenRunStore, Seen]]:
    components, store, seen = Components(), OpenRunStore(), Seen()
    caplog.set_level(logging.DEBUG)
    async with open_client(components.stage, run_store=store, on_event=seen, config=retrying(1)) as client:
        yield client, components, store, seen


async def all_told(client: Client, store: OpenRunStore, seen: Seen, caplog: pytest.LogCaptureFixture) -> str:
    ids = [record.run_id for record in store.records]
    events = [await store.events(run_id) for run_id in ids]
    items = [[*record.items] for record in store.records]
    return told_by(seen, store.records, items, events, caplog.text, await everything(client, ids))


# ---- the canary -------------------------------------------------------------------------------------------


async def test_a_secret_is_in_no_sink_and_in_the_result(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    every = [{"$input": "$.word"}, {"$variable": "key"}, {"$step": "fetch", "path": "token"}]
    inner = secret_flow(step("echo", "/w/echo", {"value": {"$literal": {"inner": [WORD, KEY, TOKEN]}}}))
    tried = secret_flow(
        step("fetch", "/w/fetch", {}),
        step("echo", "/w/echo", {"value": {"all": every, "pin": {"$input": "$.pin"}}}),
        step("moody", "/w/moody", {"value": every[0]}, onError={"action": "retry", "maxRetries": 5}),
        step("report", "/w/report", {"value": every[2]}),
        step("below", "/w/below", {"inner": {"$literal": inner}, "value": every}),
        step(
            "crash",
            "/w/crash",
            {"value": every},
            onError={"action": "useDefault", "defaultValue": "went wrong"},
        ),
        step("gone", "/w/echo", {"value": {"$step": "echo", "path": "$.all.word"}}, mustExecute=False),
        output={
            "echo": {"$step": "echo", "path": "all"},
            **{name: {"$step": name} for name in ("moody", "crash", "report", "below", "fetch")},
        },
    )
    async with observed(caplog) as (client, components, store, seen):
        result = await client.runtime.run(tried, INPUT, variables=VARIABLES)
        true = [WORD, KEY, TOKEN]
        assert result["echo"] == true
        assert result["fetch"] == {"token": TOKEN, "url": f"https://x/?key={TOKEN}", "n": 1}
        assert result["report"] == TOKEN
        assert result["below"] == {"inner": true}
        assert components.true == [{"outcome": "success", "result": {"inner": true}}] * 4
        assert (result["moody"], result["crash"]) == ("better", "went wrong")
        told = await all_told(client, store, seen, caplog)
        # PIN is a number: hidden at its place, and shown where a component returned it.
        echoed = next(
            e for e in seen.of(StepEnded) if e.step_id == "echo" and e.run_id == store.records[0].run_id
        )
        assert echoed.result == Success({"all": [REDACTED] * 3, "pin": PIN})
        told = told.replace(repr(echoed.result), "").replace(f'"pin": {PIN}', "").replace(f"'pin': {PIN}", "")
        assert leaks(told) == []
        # All of this was really looked at.
        assert "cannot do" in caplog.text
        assert len(seen.of(StepRetrying)) == 2
        assert len(seen.of(StepProgressed)) == 1
        assert len(store.records) == 4
        record = store.records[0]
        assert list(record.inputs) == [{"word": REDACTED, "pin": REDACTED, "plain": "shown"}]
        assert record.variables == {"key": REDACTED, "plain": "shown"}


async def test_a_failure_is_rid_of_secrets_wherever_it_goes(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fails = secret_flow(step("crash", "/w/crash", {"value": [{"$input": "$.word"}, {"$variable": "key"}]}))
    async with observed(caplog) as (client, _, store, seen):
        with pytest.raises(RunFailed) as caught:
            await client.runtime.run(fails, INPUT, variables=VARIABLES)
        assert caught.value.message == f'RuntimeError: cannot do ["{REDACTED}", "{REDACTED}"]'
        told = await all_told(client, store, seen, caplog)
        assert leaks(told + "".join(traceback.format_exception(caught.value))) == []
        assert "RuntimeError: cannot do" in caplog.text


async def test_the_rest_api_shows_what_is_on_record(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    echoes = secret_flow(step("echo", "/w/echo", {"value": {"$input": "$.word"}}))
    async with observed(caplog) as (client, _, store, seen):
        answer = await client.submit(echoes, INPUT, variables=VARIABLES, wait=True)
        assert answer["results"][0]["result"] == {"outcome": "success", "result": REDACTED}
        fails = await client.submit(
            echoes,
            INPUT,
            variables=VARIABLES,
            wait=True,
            overrides={"steps": {"echo": {"value": {"component": "/w/crash", "metadata": {"note": KEY}}}}},
        )
        assert REDACTED in fails["results"][0]["result"]["error"]["message"]
        assert leaks(told_by(answer, fails, await all_told(client, store, seen, caplog))) == []


async def test_overrides_of_a_step_that_is_called_like_a_secret_still_name_it(autojump_clock: Any) -> None:
    echoes = secret_flow(step("echo", "/w/echo", {"value": 1}))
    overrides = {"steps": {"echo": {"value": {"metadata": {"note": "merge_patch echo"}}}}}
    async with open_client() as client:
        for key in ("echo", "merge_patch"):
            ran = await client.submit(echoes, {}, variables={"key": key}, wait=True, overrides=overrides)
            details = await client.get(f"/runs/{ran['runId']}")
            assert [each["status"] for each in details["itemDetails"][0]["steps"]] == ["completed"]
            [shown] = details["overrides"]["steps"].values()
            assert REDACTED in shown["value"]["metadata"]["note"]


async def test_secrets_are_hidden_where_schemas_are_not_enforced(autojump_clock: Any) -> None:
    seen = Seen()
    async with open_client(on_event=seen, enforce_schemas=False) as client:
        echoes = secret_flow(step("echo", "/w/echo", {"value": {"$input": "$.word"}}))
        assert await client.runtime.run(echoes, INPUT, variables={"key": 5}) == WORD
    assert leaks(told_by(seen)) == []


async def test_variables_are_listed_without_their_secret_defaults(autojump_clock: Any) -> None:
    async with open_client() as client:
        flow_id = await client.store(secret_flow(step("echo", "/w/echo")))
        shown = await client.get(f"/flows/{flow_id}/variables")
    assert shown["schema"]["properties"]["key"] == {"type": "string", "is_secret": True, "default": REDACTED}


async def test_a_default_of_the_schema_is_as_secret_as_a_value(autojump_clock: Any) -> None:
    seen = Seen()
    async with open_client(on_event=seen) as client:
        echoes = secret_flow(step("echo", "/w/echo", {"value": {"$variable": "key"}}))
        assert await client.runtime.run(echoes, INPUT) == "canary-default"
    assert [event.result for event in seen.of(ItemEnded)] == [Success(REDACTED)]


async def test_inputs_that_do_not_fit_are_refused_without_being_quoted(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    strict = {
        "properties": {
            "variables": {"properties": {"key": {"enum": ["a", "b"], **SECRET}}},
            "input": {"properties": {"map": {"additionalProperties": {"type": "integer"}, **SECRET}}},
        }
    }
    tried = {**flow(step("echo", "/w/echo")), "schemas": strict}
    async with observed(caplog) as (client, _, store, seen):
        for input, variables in (({}, {"key": KEY}), ({"map": {"canary-name": "x"}}, {"key": "a"})):
            with pytest.raises(RunFailed) as caught:
                await client.runtime.run(tried, input, variables=variables)
            assert caught.value.code == ErrorCode.INVALID_INPUT_SCHEMA
            assert caught.value.message.endswith("does not fit, and is secret")
            assert leaks(json.dumps(caught.value.data)) == []
        assert leaks(await all_told(client, store, seen, caplog)) == []


# ---- runs above and below ---------------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["eval", "map", "iterate"])
async def test_a_secret_stays_one_when_it_is_handed_down_and_when_it_comes_back_up(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture, component: str
) -> None:
    # Its schemas speak of the token only, and those above it of the word only.
    inner = {
        **flow(
            step("fetch", "/w/fetch", {}),
            step("echo", "/w/echo", {"value": {"$input": "$"}}),
            output={"result": [{"$step": "fetch"}, {"$step": "echo"}]},
        ),
        "schemas": {"properties": {"steps": SCHEMAS["properties"]["steps"]}},
    }
    async with observed(caplog) as (client, _, store, seen):
        literal = {"$literal": inner}
        given = {
            "eval": {"flow_id": await client.store(inner), "input": {"$input": "$.word"}},
            "map": {"workflow": literal, "items": [{"$input": "$.word"}]},
            "iterate": {"flow": literal, "initial_input": {"$input": "$.word"}},
        }[component]
        outer = {
            **flow(step("below", f"/builtin/{component}", given)),
            "schemas": {"properties": {"input": SCHEMAS["properties"]["input"]}},
        }
        result = json.dumps(await client.runtime.run(outer, INPUT), ensure_ascii=False)
        assert result.count(TOKEN) == 2
        assert WORD in result
        assert len(store.records) == 2
        assert leaks(await all_told(client, store, seen, caplog)) == []


async def test_variables_that_are_handed_down_are_hidden_at_their_places(autojump_clock: Any) -> None:
    schemas = {"properties": {"variables": {"properties": {"pin": SECRET, "n": {}}}}}
    inner = flow(step("echo", "/w/echo", {"value": 1}))
    outer = {
        **flow(step("below", "/builtin/map", {"workflow": {"$literal": inner}, "items": [1]})),
        "schemas": schemas,
    }
    store = OpenRunStore()
    async with open_client(run_store=store) as client:
        await client.runtime.run(outer, None, variables={"pin": PIN, "n": 1})
    assert [record.variables for record in store.records] == [{"pin": REDACTED, "n": 1}] * 2


async def test_an_overs_secrets_are_no_longer_those_of_a_run_that_has_none(autojump_clock: Any) -> None:
    """Else whoever submits runs could find out, guess by guess, what other runs' secrets are."""
    seen = Seen()
    stage = Stage()
    async with open_runtime(workers={"w": stage.worker}, on_event=seen) as runtime:
        waits = await runtime.submit(
            secret_flow(step("wait", "/w/wait", {"name": "x"})), [INPUT], variables=VARIABLES
        )
        assert await runtime.run(flow(step("echo", "/w/echo", {"value": {"$input": "$"}})), KEY) == KEY
        waits.cancel()
        await waits.wait()
    assert Success(KEY) in [event.result for event in seen.of(ItemEnded)]


async def test_an_old_workers_batch_has_true_results(autojump_clock: Any) -> None:
    got: list[Any] = []

    async def act(connection: Connection, params: ExecuteParams) -> Any:
        put = await connection.call("blobs/put", {"data": inner, "blob_type": "flow"})
        named = {"observability": {"run_id": params.observability.run_id}}
        batch = await connection.call(
            "flows/submit_batch", {"flow_id": put["blob_id"], "inputs": [1], **named}
        )
        asked = {"batch_id": batch["batch_id"], "wait": True, "include_results": True}
        got.append((await connection.call("flows/get_batch", asked))["outputs"])
        evaluated = {"flow_id": put["blob_id"], "input": 1, **named}
        got.append(await connection.call("flows/evaluate", evaluated))
        return None

    inner = secret_flow(step("fetch", "/w/fetch", {}))
    seen = Seen()
    workers: dict[str, Any] = {"raw": RawWorker(act), "w": Components().stage.worker}
    async with open_runtime(workers=workers, on_event=seen) as runtime:
        await runtime.run(flow(step("raw", "/raw/x")))
    assert [json.dumps(each).count(TOKEN) for each in got] == [2, 2]
    assert leaks(told_by(seen)) == []


async def test_results_of_runs_that_hide_nothing_are_not_kept(autojump_clock: Any) -> None:
    held: list[int] = []

    class Looking(Components):
        async def below(self, inner: dict[str, Any], value: Any, context: Context) -> Any:
            for each in (inner, flow(step("echo", "/w/echo", {"value": 1}))):
                await context.submit_run(each, [value], wait=True)
                run = runtime._runs.active(context.run_id)  # pyright: ignore[reportPrivateUsage]: not to be seen else
                held.append(len(run.hidden_results) if run is not None else -1)

    inner = {**flow(step("fetch", "/w/fetch", {})), "schemas": {"properties": {"output": SECRET}}}
    async with open_runtime(workers={"w": Looking().stage.worker}) as runtime:
        await runtime.run(flow(step("below", "/w/below", {"inner": {"$literal": inner}, "value": 1})), None)
    assert held == [1, 1]


# ---- processes --------------------------------------------------------------------------------------------


async def test_what_a_process_writes_is_rid_of_the_secrets_of_all_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = """
        @worker.component
        async def shout(value: str) -> str:
            print("got", value, file=sys.stderr, flush=True)
            print(repr(value), file=sys.stderr, flush=True)
            return "done"

        @worker.component
        async def die(value: str) -> str:
            print("dying with", value, file=sys.stderr, flush=True)
            os._exit(3)
    """
    seen, store = Seen(), OpenRunStore()
    caplog.set_level(logging.DEBUG)
    async with running(processes(w=own_plugin(tmp_path, script)), on_event=seen, run_store=store) as runtime:
        shouts = secret_flow(step("shout", "/w/shout", {"value": {"$input": "$.word"}}))
        assert await runtime.run(shouts, INPUT) == "done"
        # Read when the run is over, most often.
        await until(lambda: len(seen.of(WorkerLine)) >= 2)
        dies = secret_flow(step("die", "/w/die", {"value": {"$variable": "key"}}))
        with pytest.raises(RunFailed) as caught:
            await runtime.run(dies, INPUT, variables=VARIABLES)
        assert f"dying with {REDACTED}" in json.dumps(caught.value.data)
        # A run that knows nothing of it fails with the worker that quotes it.
        with pytest.raises(RunFailed) as other:
            await runtime.run(flow(step("die", "/w/die", {"value": {"$input": "$"}})), "nothing")
        await until(lambda: len(seen.of(WorkerEnded)) >= 2)
        problems = runtime.plugin_problems
    lines = [line.text for line in seen.of(WorkerLine)]
    assert f"got {REDACTED}" in lines
    told = told_by(seen, store.records, caplog.text, problems, other.value.data, caught.value.data)
    assert leaks(told) == []


async def test_another_runs_failure_does_not_quote_a_workers_last_words(tmp_path: Path) -> None:
    script = f"""
        for request in executions():
            if request["params"]["input"] == "write":
                sys.stderr.write("kept {KEY}\\n")
                sys.stderr.flush()
                answer(request, 1)
            else:
                os._exit(1)
    """
    seen = Seen()
    async with running(processes(w=raw_plugin(tmp_path, script)), on_event=seen) as runtime:
        writes = secret_flow(step("x", "/w/x", "write"))
        await runtime.run(writes, INPUT, variables=VARIABLES)
        with pytest.raises(RunFailed) as caught:
            await runtime.run(flow(step("x", "/w/x", "die")))
        assert f"kept {REDACTED}" in json.dumps(caught.value.data)
    assert leaks(told_by(seen, caught.value.data)) == []


# ---- the log ----------------------------------------------------------------------------------------------


def test_all_loggers_of_the_package_are_guarded() -> None:
    package = Path(stepflow_trio.__file__).parent
    named = {
        name
        for path in package.rglob("*.py")
        for name in re.findall(r'getLogger\("([\w.]+)"\)', path.read_text("utf-8"))
    }
    # Handlers are added to the topmost one, and nothing is logged to it.
    assert named - {"stepflow_trio"} <= set(LOGGERS)


async def test_a_log_record_comes_to_its_handlers_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    redaction = Redaction()
    await begin(redaction, "r", {"word": WORD})
    log = logging.getLogger("stepflow_trio.engine")
    with redaction.guarding_logs():
        try:
            raise ValueError(WORD)
        except ValueError:
            log.exception("failed with %s and %d", WORD, 5)
        log.warning("plain %s", "words", exc_info=KeyError("k"))
    assert leaks(caplog.text) == []
    assert f"failed with {REDACTED} and 5" in caplog.text
    assert f"ValueError: {REDACTED}" in caplog.text
    first, second = caplog.records
    assert first.exc_info is None
    assert second.args == ("words",)
    assert second.exc_info is not None
    log.warning("after the block: %s", WORD)
    assert WORD in caplog.records[-1].getMessage()


# ---- what is remembered -----------------------------------------------------------------------------------


async def begin(redaction: Redaction, run_id: str, *inputs: Any) -> RunStarted:
    """A run whose start is on record; as it is recorded."""
    from stepflow_trio.flows.reader import flow_from_json
    from stepflow_trio.flows.secrets import FlowSecrets

    places = FlowSecrets.of(flow_from_json(secret_flow(step("a", "/x/y"), step("fetch", "/x/y"))))
    redaction.begin(run_id, places, {})
    return await redaction.started(start_of(run_id, *inputs))


def start_of(run_id: str, *inputs: Any) -> RunStarted:
    return RunStarted(
        run_id=run_id,
        at=datetime.now(UTC),
        flow_id="f",
        flow_name="f",
        inputs=inputs,
        variables={},
        max_concurrency=1,
        root_run_id=run_id,
    )


async def test_secrets_of_runs_at_work_are_remembered_however_many_come_and_go() -> None:
    redaction = Redaction()
    await begin(redaction, "long", {"word": "the-long-one"})
    for number in range(5):
        words = [{"word": f"{number}-{n:06}"} for n in range(REMEMBERED_STRINGS)]
        await begin(redaction, "short", *words)
        assert redaction.end("short") is False
    assert redaction.text("the-long-one 4-000001") == f"{REDACTED} {REDACTED}"
    assert redaction.text("0-000001") == "0-000001"
    redaction.end("long")


async def test_secrets_of_runs_that_are_over_are_remembered_for_a_while() -> None:
    redaction = Redaction()
    for number in range(2):
        await begin(
            redaction, "short", *({"word": f"{number}-{n:06}"} for n in range(REMEMBERED_STRINGS - 1000))
        )
        redaction.end("short")
    assert redaction.text("0-000001 1-000001") == f"{REDACTED} {REDACTED}"


async def test_a_submission_that_hides_nothing_is_recorded_as_it_is() -> None:
    redaction = Redaction()
    await begin(redaction, "r", {"word": WORD})
    event = ItemEnded(run_id="other", item_index=0, at=None, result=Success(WORD))  # type: ignore[arg-type]
    assert redaction.recorded(event) is event
    redaction.begin("plain", None, {})
    start = start_of("plain", WORD)
    assert await redaction.started(start) is start
    event = ItemEnded(run_id="plain", item_index=0, at=None, result=Success(WORD))  # type: ignore[arg-type]
    assert redaction.recorded(event) is event
    failed = Failed(FlowError(ErrorCode.COMPONENT_FAILED, WORD))
    assert redaction.failure("plain", failed) is failed


# ---- repeated submissions ---------------------------------------------------------------------------------


async def test_a_repeated_submission_is_known_though_its_record_hides_what_it_was(
    autojump_clock: Any,
) -> None:
    store, seen = OpenRunStore(), Seen()
    async with open_client(run_store=store, on_event=seen) as client:
        flow_id = await client.store(secret_flow(step("echo", "/w/echo", {"value": {"$input": "$.word"}})))

        async def submit(input: Any, **more: Any) -> str:
            return await client.runtime.submit_stored(flow_id, [input], idempotency_key="k", **more)

        first = await submit(INPUT, variables=VARIABLES)
        turned = dict(reversed(INPUT.items()))
        assert await submit(turned, variables=VARIABLES, max_concurrency=100) == first
        different: list[tuple[Any, dict[str, Any]]] = [
            ({**INPUT, "word": REDACTED}, {"variables": VARIABLES}),
            ({**INPUT, "word": WORD + "x"}, {"variables": VARIABLES}),
            (INPUT, {"variables": {**VARIABLES, "key": REDACTED}}),
            (INPUT, {"variables": VARIABLES, "max_concurrency": 2}),
            (
                INPUT,
                {"variables": VARIABLES, "overrides": {"steps": {"echo": {"value": {"mustExecute": True}}}}},
            ),
        ]
        for input, more in different:
            with pytest.raises(KeyReused):
                await submit(input, **more)
        assert len(store.records) == 1
    [started] = seen.of(RunStarted)
    assert started.submission_digest == store.records[0].submission_digest
    assert re.fullmatch("[0-9a-f]{64}", started.submission_digest or "")
