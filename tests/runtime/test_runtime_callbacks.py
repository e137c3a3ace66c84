"""What workers ask of the runtime, as it travels: blobs, runs, the flows of the stdio era, and progress."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trio
from runtime_stage import OpenRunStore, RawWorker, Seen, Stage, flow, one_step, step
from trio.testing import wait_all_tasks_blocked

from stepflow_trio import CallFailed, Connection, Context, ErrorCode, RunFailed, Worker, open_runtime
from stepflow_trio.engine import Handlers, Link, open_connection
from stepflow_trio.flows.results import Success
from stepflow_trio.protocol.payloads import ExecuteParams
from stepflow_trio.protocol.peer import Role
from stepflow_trio.runtime.events import RunEnded, RunStarted, StepProgressed
from stepflow_trio.runtime.stores import Blob, MemoryBlobStore

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "peers" / "schemas"

HELLO = {"message": "Hello, blobs!", "number": 42, "nested": {"array": [1, 2, 3], "boolean": True}}
HELLO_ID = "868591347a854ba1d0f4875b2dd44e1e8335052af03725a9819f89e0142318b0"

ECHO = one_step("/w/echo", {"value": {"$input": "$"}})
WAITS = one_step("/w/wait", {"name": {"$input": "$"}})
SLEEPS = one_step("/w/sleep", {"seconds": {"$input": "$"}})
FAILS = one_step("/w/nope")
UNKNOWN = "0" * 64

Calls = Callable[[Connection, ExecuteParams], Awaitable[Any]]


@cache
def published(release: str, definition: str) -> Any:
    """The validator of a definition as it was published, or None where it is not at hand."""
    path = PUBLISHED / f"protocol-{release}.json"
    if not path.is_file():
        return None
    import jsonschema_rs

    document = json.loads(path.read_text(encoding="utf-8"))
    return jsonschema_rs.validator_for({"$ref": f"#/$defs/{definition}", "$defs": document["$defs"]})


def as_published(release: str, definition: str, value: Any) -> Any:
    validator = published(release, definition)
    if validator is not None:
        validator.validate(value)
    return value


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published schemas are not here")
def test_the_published_schemas_are_checked_against() -> None:
    with pytest.raises(ValueError, match="runId"):
        as_published("0.11.1", "RunStatusProtocol", {})


async def calling(
    act: Calls, *, welcome: dict[str, Any] | None = None, stage: Stage | None = None, **more: Any
) -> Any:
    """Run one component that does ``act``; return what it returned."""
    workers = {"raw": RawWorker(act, welcome), "w": (stage or Stage()).worker}
    async with open_runtime(workers=workers, **more) as runtime:
        return await runtime.run(one_step("/raw/x"))


async def refused(connection: Connection, method: str, params: Any) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        await connection.call(method, params)
    return caught.value


# ---- blobs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "blob_type", "content"),
    [
        (HELLO, "data", None),
        ({"b": 1, "a": "ä\u2028/\x7f"}, "data", '{"b":1,"a":"ä\u2028/\x7f"}'),
        (None, "data", "null"),
        ([1.5, -0.0, 10**20], "data", None),
        (ECHO, "flow", None),
        ("AAEC/w==", "binary", b"\x00\x01\x02\xff"),
        ("", "binary", b""),
        (1, "Json", "1"),
    ],
    ids=["hello", "order and text", "null", "numbers", "flow", "binary", "empty", "old name"],
)
async def test_a_blob_comes_back_as_it_was_put_and_is_called_by_its_hash(
    autojump_clock: Any, data: Any, blob_type: str, content: Any
) -> None:
    async def act(connection: Connection, _params: ExecuteParams) -> Any:
        put = await connection.call("blobs/put", {"data": data, "blob_type": blob_type})
        as_published("0.8.0", "PutBlobResult", put)
        got = await connection.call("blobs/get", {"blob_id": put["blob_id"]})
        if blob_type != "binary":  # which the release of that schema did not have
            as_published("0.8.0", "GetBlobResult", got)
        assert got == {"data": data, "blob_type": {"Json": "data"}.get(blob_type, blob_type)}
        with_prefix = await connection.call("blobs/get", {"blob_id": f"sha256:{put['blob_id']}"})
        assert with_prefix == got
        return put["blob_id"]

    blob_id = await calling(act)
    if data is HELLO:
        assert blob_id == HELLO_ID
    if content is not None:
        raw = content.encode() if isinstance(content, str) else content
        assert blob_id == hashlib.sha256(raw).hexdigest()


async def test_the_same_content_is_stored_once_with_its_first_type(autojump_clock: Any) -> None:
    async def act(connection: Connection, _params: ExecuteParams) -> Any:
        ids = [
            await connection.call(
                "blobs/put", {"data": base64.b64encode(b"[1]").decode(), "blob_type": "binary"}
            ),
            await connection.call("blobs/put", {"data": [1], "blob_type": "data"}),
        ]
        return ids, await connection.call("blobs/get", ids[1])

    (first, second), got = await calling(act)
    assert first == second
    assert got == {"data": "WzFd", "blob_type": "binary"}


@pytest.mark.parametrize(
    ("params", "code", "says"),
    [
        ({"data": 1, "blob_type": "nonsense"}, ErrorCode.INVALID_VALUE, "nonsense"),
        ({"data": "no base64!", "blob_type": "binary"}, ErrorCode.INVALID_VALUE, "base64"),
        ({"data": 5, "blob_type": "binary"}, ErrorCode.INVALID_VALUE, "base64"),
        ({"blob_type": "data"}, ErrorCode.INVALID_PARAMS, "data"),
        ([1], ErrorCode.INVALID_PARAMS, "object"),
    ],
    ids=["type", "base64", "binary that is no text", "no data", "no object"],
)
async def test_a_blob_that_cannot_be_stored_is_refused(
    autojump_clock: Any, params: Any, code: int, says: str
) -> None:
    async def act(connection: Connection, _params: ExecuteParams) -> None:
        error = await refused(connection, "blobs/put", params)
        assert (error.code, says in error.message) == (code, True)

    await calling(act)


@pytest.mark.parametrize("blob_id", [UNKNOWN, "../../etc/passwd", "", "x" * 10_000, HELLO_ID.upper()])
async def test_an_unknown_blob_is_not_found(autojump_clock: Any, blob_id: str) -> None:
    async def act(connection: Connection, _params: ExecuteParams) -> None:
        error = await refused(connection, "blobs/get", {"blob_id": blob_id})
        assert error.code == ErrorCode.NOT_FOUND
        assert error.data == {"blob_id": blob_id[:80]}
        assert len(error.message) < 200

    await calling(act)


async def test_a_blob_whose_content_was_changed_is_an_error_and_never_silent(autojump_clock: Any) -> None:
    class Rotten(MemoryBlobStore):
        async def get(self, blob_id: str) -> Blob:
            blob = await super().get(blob_id)
            return Blob(blob.content + b" ", blob.blob_type)

    async def act(connection: Connection, _params: ExecuteParams) -> None:
        put = await connection.call("blobs/put", {"data": [1]})
        error = await refused(connection, "blobs/get", put)
        assert error.code == ErrorCode.RUNTIME_INTERNAL
        assert "damaged" in error.message

    await calling(act, blob_store=Rotten())


async def test_a_blob_that_one_worker_stored_is_read_by_another(autojump_clock: Any) -> None:
    writer, reader = Worker(), Worker()

    @writer.component
    async def write(context: Context) -> list[str]:
        return [await context.put_blob({"n": 1}), await context.put_blob(b"\x00\xff")]

    @reader.component
    async def read(ids: list[str], context: Context) -> list[Any]:
        values = [await context.get_blob(blob_id) for blob_id in ids]
        return [values[0], list(values[1])]

    over = flow(step("a", "/writer/write", {}), step("b", "/reader/read", {"ids": {"$step": "a"}}))
    async with open_runtime(workers={"writer": writer, "reader": reader}) as runtime:
        assert await runtime.run(over) == [{"n": 1}, [0, 255]]


# ---- runs -----------------------------------------------------------------------------------------------


async def stored(connection: Connection, of: Any) -> str:
    return (await connection.call("blobs/put", {"data": of, "blob_type": "flow"}))["blob_id"]


async def submit(connection: Connection, params: ExecuteParams, of: Any, inputs: Any, **more: Any) -> Any:
    """``runs/submit`` as dialect 0.11 writes it; the status is checked against what was published."""
    status = await connection.call(
        "runs/submit",
        {
            "flowId": of if isinstance(of, str) else await stored(connection, of),
            "inputs": inputs,
            "subflowKey": str(uuid.uuid4()),
            "observability": {"run_id": params.observability.run_id},
            **more,
        },
    )
    return as_published("0.11.1", "RunStatusProtocol", status)


async def get_run(connection: Connection, run_id: str, **more: Any) -> Any:
    status = await connection.call("runs/get", {"runId": run_id, **more})
    return as_published("0.11.1", "RunStatusProtocol", status)


def without_times(status: Any) -> Any:
    assert status["createdAt"].endswith("Z")
    kept = {key: value for key, value in status.items() if key not in ("createdAt", "completedAt")}
    if "results" in kept:
        kept["results"] = [{k: v for k, v in item.items() if k != "completedAt"} for item in kept["results"]]
    return kept


async def test_a_run_that_is_waited_for_comes_with_its_results(autojump_clock: Any) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> Any:
        return await submit(connection, params, ECHO, ["a", "b"], wait=True)

    status = await calling(act)
    assert "completedAt" in status
    assert without_times(status) == {
        "runId": status["runId"],
        "flowId": hashlib.sha256(json.dumps(ECHO, separators=(",", ":")).encode()).hexdigest(),
        "flowName": "tested",
        "status": "completed",
        "items": {"total": 2, "completed": 2, "running": 0, "failed": 0, "cancelled": 0},
        "results": [
            {"itemIndex": 0, "status": "completed", "result": {"outcome": "success", "result": "a"}},
            {"itemIndex": 1, "status": "completed", "result": {"outcome": "success", "result": "b"}},
        ],
    }


async def test_a_run_that_is_not_waited_for_is_running_and_comes_without_results(autojump_clock: Any) -> None:
    stage = Stage()

    async def act(connection: Connection, params: ExecuteParams) -> Any:
        status = await submit(connection, params, WAITS, ["a", "b"])
        assert "results" not in status
        assert "completedAt" not in status
        return status

    status = await calling(act, stage=stage)
    assert status["status"] == "running"
    assert status["items"] == {"total": 2, "completed": 0, "running": 2, "failed": 0, "cancelled": 0}


async def test_a_failed_item_is_reported_with_its_error(autojump_clock: Any) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> Any:
        return await submit(connection, params, FAILS, [None], wait=True)

    status = await calling(act)
    assert status["status"] == "failed"
    assert status["items"] == {"total": 1, "completed": 0, "running": 0, "failed": 1, "cancelled": 0}
    [item] = status["results"]
    assert item["status"] == "failed"
    assert item["result"]["outcome"] == "failed"
    assert item["result"]["error"]["code"] == ErrorCode.COMPONENT_NOT_FOUND


@pytest.mark.parametrize(("timeout", "waited"), [({"timeoutSecs": 7}, 7), ({"timeoutSecs": 0}, 0), ({}, 300)])
@pytest.mark.parametrize("method", ["submit", "get"])
async def test_waiting_ends_with_status_running_when_the_time_is_over(
    autojump_clock: Any, method: str, timeout: Any, waited: float
) -> None:
    stage = Stage()

    async def act(connection: Connection, params: ExecuteParams) -> Any:
        began = trio.current_time()
        if method == "submit":
            status = await submit(connection, params, WAITS, ["x"], wait=True, **timeout)
        else:
            submitted = await submit(connection, params, WAITS, ["x"])
            status = await get_run(connection, submitted["runId"], wait=True, includeResults=True, **timeout)
        assert (status["status"], status["results"]) == ("running", [])
        assert trio.current_time() - began == waited
        stage.release.set()
        return (await get_run(connection, status["runId"], wait=True))["status"]

    assert await calling(act, stage=stage) == "completed"


async def test_waiting_for_a_run_ends_when_the_run_does(autojump_clock: Any) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> Any:
        submitted = await submit(connection, params, SLEEPS, [3])
        assert (await get_run(connection, submitted["runId"]))["status"] == "running"
        status = await get_run(connection, submitted["runId"], wait=True)
        assert "results" not in status
        return [status["status"], trio.current_time()]

    assert await calling(act) == ["completed", 3]


@pytest.mark.parametrize(
    ("order", "indices"),
    [
        ("by_index", [0, 1, 2]),
        ("byIndex", [0, 1, 2]),
        (None, [0, 1, 2]),
        ("by_completion", [1, 2, 0]),
        ("byCompletion", [1, 2, 0]),
    ],
)
async def test_results_come_in_the_order_that_was_asked_for(
    autojump_clock: Any, order: str | None, indices: list[int]
) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> Any:
        submitted = await submit(connection, params, SLEEPS, [3, 1, 2])
        asked = {"resultOrder": order} if order else {}
        status = await get_run(connection, submitted["runId"], wait=True, includeResults=True, **asked)
        return [item["itemIndex"] for item in status["results"]]

    assert await calling(act) == indices


async def test_results_are_there_as_soon_as_their_items_have_ended(autojump_clock: Any) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> Any:
        submitted = await submit(connection, params, SLEEPS, [9, 1, 2])
        await trio.sleep(5)
        status = await get_run(connection, submitted["runId"], includeResults=True)
        assert status["items"] == {"total": 3, "completed": 2, "running": 1, "failed": 0, "cancelled": 0}
        return [item["itemIndex"] for item in status["results"]]

    assert await calling(act) == [1, 2]


async def test_max_concurrency_of_a_submission_holds(autojump_clock: Any) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> Any:
        await submit(connection, params, SLEEPS, [1] * 6, maxConcurrency=2, wait=True)
        return trio.current_time()

    assert await calling(act) == 3


async def test_overrides_change_the_flow_of_this_run_only(autojump_clock: Any) -> None:
    def overriding(value: Any) -> Any:
        return {"steps": {"only": {"$type": "merge_patch", "value": {"input": {"value": value}}}}}

    async def act(connection: Connection, params: ExecuteParams) -> Any:
        statuses = [
            await submit(connection, params, ECHO, [1], wait=True, overrides=overriding("patched")),
            await submit(connection, params, ECHO, [1], wait=True),
        ]
        assert statuses[0]["flowId"] == statuses[1]["flowId"]
        return [status["results"][0]["result"]["result"] for status in statuses]

    assert await calling(act) == ["patched", 1]


def patching(**override: Any) -> dict[str, Any]:
    return {"overrides": {"steps": {"only": override}}}


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        ({"maxConcurrency": 0}, ErrorCode.INVALID_PARAMS, "at least 1"),
        ({"maxConcurrency": -1}, ErrorCode.INVALID_PARAMS, "maxConcurrency"),
        ({"overrides": {"steps": {"onyl": {"value": {}}}}}, ErrorCode.INVALID_VALUE, '"onyl"'),
        ({"overrides": {"steps": 1}}, ErrorCode.INVALID_VALUE, "overrides"),
        (patching(**{"$type": "json_patch", "value": []}), ErrorCode.INVALID_VALUE, "merge_patch"),
        (patching(value={"component": None}), ErrorCode.INVALID_VALUE, "component"),
        ({"inputs": "none"}, ErrorCode.INVALID_PARAMS, "inputs"),
        ({"flowId": UNKNOWN}, ErrorCode.NOT_FOUND, UNKNOWN),
        ({"flowId": "nonsense"}, ErrorCode.NOT_FOUND, "nonsense"),
        ({"timeoutSecs": -1, "wait": True}, ErrorCode.INVALID_PARAMS, "timeoutSecs"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_submission_that_cannot_be_is_refused_and_starts_nothing(
    autojump_clock: Any, more: Any, code: int, says: str
) -> None:
    store = OpenRunStore()

    async def act(connection: Connection, _params: ExecuteParams) -> None:
        params = {"flowId": await stored(connection, ECHO), "inputs": [1], "subflowKey": "k", **more}
        error = await refused(connection, "runs/submit", params)
        assert error.code == code
        assert says in error.message

    await calling(act, run_store=store)
    assert len(store.records) == 1


async def test_what_is_no_flow_cannot_be_run(autojump_clock: Any) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> None:
        for data in ({"steps": 1}, [1], "text"):
            blob = await connection.call("blobs/put", {"data": data, "blob_type": "data"})
            error = await refused(
                connection, "runs/submit", {"flowId": blob["blob_id"], "inputs": [1], "subflowKey": "k"}
            )
            assert error.code == ErrorCode.INVALID_VALUE
            assert error.data == {"flow_id": blob["blob_id"]}

    await calling(act)


@pytest.mark.parametrize("run_id", [UNKNOWN, "", str(uuid.uuid4())])
async def test_an_unknown_run_is_not_found(autojump_clock: Any, run_id: str) -> None:
    async def act(connection: Connection, _params: ExecuteParams) -> None:
        error = await refused(connection, "runs/get", {"runId": run_id, "wait": True})
        assert error.code == ErrorCode.NOT_FOUND
        assert error.data == {"run_id": run_id}

    await calling(act)


async def test_a_cancelled_run_says_so_of_itself_and_of_the_items_that_had_not_ended(
    autojump_clock: Any,
) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> Any:
        with trio.move_on_after(5):
            await submit(connection, params, SLEEPS, [1, 9], wait=True)
        await wait_all_tasks_blocked()
        return await get_run(connection, store.records[1].run_id, wait=True, includeResults=True)

    store = OpenRunStore()
    status = await calling(act, run_store=store)
    assert status["status"] == "cancelled"
    assert status["items"] == {"total": 2, "completed": 1, "running": 0, "failed": 0, "cancelled": 1}
    assert without_times(status)["results"] == [
        {"itemIndex": 0, "status": "completed", "result": {"outcome": "success", "result": 1}},
        {"itemIndex": 1, "status": "cancelled"},
    ]


async def test_a_run_below_sees_the_variables_of_the_run_above(autojump_clock: Any) -> None:
    asks = one_step("/w/echo", {"value": {"$variable": "$.who"}})

    async def act(connection: Connection, params: ExecuteParams) -> Any:
        status = await submit(connection, params, asks, [None], wait=True)
        return status["results"][0]["result"]["result"]

    workers = {"raw": RawWorker(act), "w": Stage().worker}
    async with open_runtime(workers=workers) as runtime:
        assert await runtime.run(one_step("/raw/x"), variables={"who": "me"}) == "me"


async def test_a_run_that_is_submitted_while_the_runtime_closes_never_begins_and_its_record_says_so(
    autojump_clock: Any,
) -> None:
    class SlowStore(OpenRunStore):
        async def append(self, event: Any) -> None:
            await trio.sleep(1)
            await super().append(event)

    class Unasked:
        """Submits a run by itself, as soon as it is initialized."""

        async def serve(self, link: Link) -> None:
            handlers = Handlers()
            handlers.on_raw_request("initialize", lambda _params, _request: {"serverProtocolVersion": 1})
            async with open_connection(link, handlers, role=Role.WORKER) as connection:
                await trio.sleep(1)
                flow_id = await stored(connection, WAITS)
                submitted = {"flowId": flow_id, "inputs": ["x"], "subflowKey": KEY}
                statuses.append((await connection.call("runs/submit", submitted))["status"])

    statuses: list[str] = []
    store, stage = SlowStore(), Stage()
    async with open_runtime(workers={"u": Unasked(), "w": stage.worker}, run_store=store):
        await trio.sleep(1.5)
    assert store.statuses == ["cancelled"]
    assert statuses == ["cancelled"]
    assert stage.began == []


async def test_a_run_whose_submitter_s_run_is_cancelled_while_it_is_recorded_never_begins(
    autojump_clock: Any,
) -> None:
    stage, store = Stage(), SlowRunStore(RunStarted)

    async def act(connection: Connection, params: ExecuteParams) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 9):
            await submit(connection, params, WAITS, ["x"])

    workers = {"raw": RawWorker(act), "w": stage.worker}
    async with open_runtime(workers=workers, run_store=store) as runtime:
        run = await runtime.submit(one_step("/raw/x"), [None])
        await trio.sleep(0.5)
        run.cancel()
        await trio.sleep(5)
        assert store.statuses == ["cancelled", "cancelled"]
        assert stage.began == []


# ---- subflow keys ---------------------------------------------------------------------------------------

KEY = "5f1d4a7e-3c55-4b3c-9f1b-111111111111"


async def test_the_same_key_means_the_same_run_while_it_is_at_work_and_when_it_is_completed(
    autojump_clock: Any,
) -> None:
    stage = Stage()

    async def act(connection: Connection, params: ExecuteParams) -> Any:
        statuses: list[Any] = []

        async def submit_once() -> None:
            statuses.append(await submit(connection, params, WAITS, ["x"], subflowKey=KEY, wait=True))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(submit_once)
            await wait_all_tasks_blocked()
            stage.release.set()
        await submit_once()
        return [status["runId"] for status in statuses]

    run_ids = await calling(act, stage=stage)
    assert len(run_ids) == 6
    assert len(set(run_ids)) == 1
    assert stage.began == ["x"]


class SlowRunStore(OpenRunStore):
    """Takes a second to record an event of one kind, and fails as often as it is told to."""

    def __init__(self, event: type, failures: int = 0) -> None:
        super().__init__()
        self.event = event
        self.failures = failures

    async def append(self, event: Any) -> None:
        if isinstance(event, self.event) and self.records:
            await trio.sleep(1)
            if self.failures:
                self.failures -= 1
                raise OSError("disk full")
        await super().append(event)


async def test_whoever_finds_a_run_by_its_key_waits_until_it_is_on_record(autojump_clock: Any) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> Any:
        flow_id = await stored(connection, ECHO)
        run_ids: list[str] = []

        async def submit_once() -> None:
            run_ids.append((await submit(connection, params, flow_id, [1], subflowKey=KEY))["runId"])

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(submit_once)
        return run_ids

    run_ids = await calling(act, run_store=SlowRunStore(RunStarted))
    assert len(run_ids) == 5
    assert len(set(run_ids)) == 1


async def test_a_run_that_could_not_be_recorded_is_started_anew_under_its_key(autojump_clock: Any) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> Any:
        flow_id = await stored(connection, ECHO)
        outcomes: list[Any] = []

        async def submit_once() -> None:
            try:
                status = await submit(connection, params, flow_id, [1], subflowKey=KEY, wait=True)
            except CallFailed as exc:
                outcomes.append(exc.code)
            else:
                outcomes.append(status["status"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit_once)
            nursery.start_soon(submit_once)
        await submit_once()
        return outcomes

    outcomes = await calling(act, run_store=SlowRunStore(RunStarted, failures=1))
    assert sorted(outcomes, key=str) == [ErrorCode.INTERNAL_ERROR, "completed", "completed"]


async def test_a_run_that_is_being_cancelled_is_not_taken_for_the_one_that_is_submitted(
    autojump_clock: Any,
) -> None:
    stage = Stage()

    async def act(connection: Connection, params: ExecuteParams) -> Any:
        flow_id = await stored(connection, WAITS)
        with trio.move_on_after(5):
            await submit(connection, params, flow_id, ["x"], subflowKey=KEY, wait=True)
        stage.release.set()
        return (await submit(connection, params, flow_id, ["x"], subflowKey=KEY, wait=True))["status"]

    store = SlowRunStore(RunEnded)
    assert await calling(act, stage=stage, run_store=store) == "completed"
    assert store.statuses == ["completed", "cancelled", "completed"]


async def test_another_key_is_another_run(autojump_clock: Any) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> Any:
        keys = [KEY, str(uuid.uuid4()), None]
        return [
            (await submit(connection, params, ECHO, [1], subflowKey=key, wait=True))["runId"]
            for key in [*keys, None]
        ]

    assert len(set(await calling(act))) == 4


async def test_a_run_that_failed_is_run_again_under_the_same_key(autojump_clock: Any) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> Any:
        first = await submit(connection, params, FAILS, [1], subflowKey=KEY, wait=True)
        again = await submit(connection, params, FAILS, [1], subflowKey=KEY, wait=True)
        return [first["runId"], again["runId"], first["status"]]

    first, again, status = await calling(act)
    assert first != again
    assert status == "failed"


async def test_a_run_that_was_given_up_is_run_again_under_the_same_key(autojump_clock: Any) -> None:
    stage = Stage()

    async def act(connection: Connection, params: ExecuteParams) -> Any:
        with trio.move_on_after(1):
            await submit(connection, params, WAITS, ["x"], subflowKey=KEY, wait=True)
        stage.release.set()
        return (await submit(connection, params, WAITS, ["x"], subflowKey=KEY, wait=True))["status"]

    assert await calling(act, stage=stage) == "completed"
    assert stage.began == ["x", "x"]


@pytest.mark.parametrize("what", ["inputs", "flow", "overrides"])
async def test_the_same_key_for_another_submission_is_another_run(autojump_clock: Any, what: str) -> None:
    """Public workers make keys that repeat: from the run and a counter, whatever the item and the step."""
    other: dict[str, Any] = {
        "inputs": {"inputs": [True]},
        "flow": {"of": one_step("/w/echo", {"value": True})},
        "overrides": {"overrides": {"steps": {"only": {"value": {"input": {"value": True}}}}}},
    }[what]

    async def act(connection: Connection, params: ExecuteParams) -> Any:
        submission: dict[str, Any] = {"of": ECHO, "inputs": [1], "subflowKey": KEY, "wait": True}
        return [
            (await submit(connection, params, **{**submission, **more}))["results"][0]["result"]["result"]
            for more in ({}, other)
        ]

    one, two = await calling(act)
    assert one == 1
    assert two is True


async def test_the_same_key_in_another_run_is_another_run(autojump_clock: Any) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> Any:
        return (await submit(connection, params, ECHO, [1], subflowKey=KEY, wait=True))["runId"]

    async with open_runtime(workers={"raw": RawWorker(act), "w": Stage().worker}) as runtime:
        assert await runtime.run(one_step("/raw/x")) != await runtime.run(one_step("/raw/x"))


async def test_items_of_one_run_each_have_their_own_runs_below(autojump_clock: Any) -> None:
    stage = Stage()

    @stage.component
    async def below(value: Any, context: Context) -> Any:
        return await context.evaluate_flow(ECHO, value)

    async with open_runtime(workers={"w": stage.worker}) as runtime:
        run = await runtime.submit(one_step("/w/below", {"value": {"$input": "$"}}), [1, 2, 3])
        await run.wait()
        assert run.results == [Success(1), Success(2), Success(3)]


async def test_equal_items_of_one_run_do_not_share_a_run_below(autojump_clock: Any) -> None:
    stage = Stage()

    @stage.component
    async def below(context: Context) -> Any:
        return (await context.submit_run(WAITS, ["x"])).run_id

    async with open_runtime(workers={"w": stage.worker}) as runtime:
        run = await runtime.submit(one_step("/w/below", {}), [None] * 3)
        await run.wait()
        await wait_all_tasks_blocked()
        assert len({repr(result) for result in run.results}) == 3
        assert stage.began == ["x", "x", "x"]


async def test_a_step_that_is_executed_again_finds_the_runs_of_its_first_attempt(autojump_clock: Any) -> None:
    stage = Stage()
    found: list[list[str]] = []

    @stage.component
    async def flaky(context: Context) -> Any:
        found.append([(await context.submit_run(WAITS, [name], wait=True)).run_id for name in ("one", "two")])
        if context.attempt == 1:
            raise ValueError("try again")
        return "done"

    stage.release.set()
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        assert await runtime.run(one_step("/w/flaky", {}, onError={"action": "retry"})) == "done"
    assert stage.began == ["one", "two"]
    assert len(found) == 2
    assert found[0] == found[1]


# ---- the flows of dialect 0.8 ---------------------------------------------------------------------------

OLD = {"server_protocol_version": 1}


def about(params: ExecuteParams) -> dict[str, Any]:
    return {"run_id": params.observability.run_id, "flow_id": params.observability.flow_id}


async def test_evaluate_returns_success_and_failure_as_results(autojump_clock: Any) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> Any:
        results: list[Any] = []
        for of in (ECHO, FAILS):
            asked = {"flow_id": await stored(connection, of), "input": 5, "observability": about(params)}
            evaluated = await connection.call("flows/evaluate", asked)
            results.append(as_published("0.8.0", "EvaluateFlowResult", evaluated)["result"])
        return results

    success, failure = await calling(act, welcome=OLD)
    assert success == {"outcome": "success", "result": 5}
    assert failure["outcome"] == "failed"
    assert failure["error"]["code"] == ErrorCode.COMPONENT_NOT_FOUND


async def test_evaluate_takes_its_overrides_without_steps_around_them(autojump_clock: Any) -> None:
    async def act(connection: Connection, params: ExecuteParams) -> Any:
        return await connection.call(
            "flows/evaluate",
            {
                "flow_id": await stored(connection, ECHO),
                "input": 5,
                "overrides": {"only": {"value": {"input": {"value": 6}}}},
            },
        )

    assert await calling(act, welcome=OLD) == {"result": {"outcome": "success", "result": 6}}


async def test_a_batch_is_submitted_got_and_waited_for(autojump_clock: Any) -> None:
    stage = Stage()

    async def act(connection: Connection, params: ExecuteParams) -> None:
        flow_id = await stored(connection, WAITS)
        submitted = await connection.call(
            "flows/submit_batch",
            {"flow_id": flow_id, "inputs": ["a", "b"], "max_concurrency": 1, "observability": about(params)},
        )
        as_published("0.8.0", "SubmitBatchResult", submitted)
        assert submitted["total_runs"] == 2
        batch_id = submitted["batch_id"]
        await wait_all_tasks_blocked()
        running = await connection.call("flows/get_batch", {"batch_id": batch_id})
        as_published("0.8.0", "GetBatchResult", running)
        assert "outputs" not in running
        assert (running["details"]["status"], running["details"]["running_runs"]) == ("running", 2)
        assert stage.began == ["a"]
        stage.release.set()
        ended = await connection.call(
            "flows/get_batch", {"batch_id": batch_id, "wait": True, "include_results": True}
        )
        as_published("0.8.0", "GetBatchResult", ended)
        details = {k: v for k, v in ended["details"].items() if k not in ("created_at", "completed_at")}
        assert details == {
            "batch_id": batch_id,
            "flow_id": flow_id,
            "flow_name": "tested",
            "total_runs": 2,
            "status": "completed",
            "completed_runs": 2,
            "running_runs": 0,
            "failed_runs": 0,
            "cancelled_runs": 0,
            "paused_runs": 0,
        }
        assert ended["outputs"] == [
            {"batch_input_index": 0, "status": "completed", "result": {"outcome": "success", "result": "a"}},
            {"batch_input_index": 1, "status": "completed", "result": {"outcome": "success", "result": "b"}},
        ]

    await calling(act, welcome=OLD, stage=stage)


async def test_an_unknown_batch_and_an_unknown_flow_are_not_found(autojump_clock: Any) -> None:
    async def act(connection: Connection, _params: ExecuteParams) -> None:
        requests: tuple[tuple[str, dict[str, Any]], ...] = (
            ("flows/get_batch", {"batch_id": UNKNOWN}),
            ("flows/evaluate", {"flow_id": UNKNOWN, "input": 1}),
            ("flows/submit_batch", {"flow_id": UNKNOWN, "inputs": []}),
            ("flows/get_metadata", {"flow_id": UNKNOWN}),
        )
        for method, asked in requests:
            assert (await refused(connection, method, asked)).code == ErrorCode.NOT_FOUND

    await calling(act, welcome=OLD)


@pytest.mark.parametrize(
    ("step_id", "step_metadata"), [("only", {"owner": "me"}), ("other", None), (None, None)]
)
async def test_metadata_are_those_of_the_flow_and_of_the_step(
    autojump_clock: Any, step_id: str | None, step_metadata: Any
) -> None:
    of = {**one_step("/w/echo", metadata={"owner": "me"}), "metadata": {"team": "us"}}

    async def act(connection: Connection, _params: ExecuteParams) -> Any:
        asked = {"flow_id": await stored(connection, of), "step_id": step_id}
        return as_published(
            "0.8.0", "GetFlowMetadataResult", await connection.call("flows/get_metadata", asked)
        )

    metadata = await calling(act, welcome=OLD)
    assert metadata["flow_metadata"] == {"team": "us"}
    assert metadata.get("step_metadata") == step_metadata


async def test_our_worker_in_dialect_0_8_reaches_the_same_runs(autojump_clock: Any) -> None:
    """Its runtime speaks 0.8, whose names for runs are others."""
    stage = Stage()

    async def act(connection: Connection, params: ExecuteParams) -> Any:
        from stepflow_trio.protocol.dialects import Dialect, Hello

        old = Hello(dialect=Dialect.V0_8, version=1)
        context = Context(connection, old, component="/x", observability=params.observability)
        value = await context.evaluate_flow(ECHO, 7)
        with pytest.raises(RunFailed):
            await context.evaluate_flow(FAILS, 7)
        status = await context.submit_run(ECHO, [1, 2], wait=True)
        return [value, status.status, [item.result for item in status.results or []]]

    assert await calling(act, welcome=OLD, stage=stage) == [
        7,
        "completed",
        [{"outcome": "success", "result": 1}, {"outcome": "success", "result": 2}],
    ]


# ---- progress -------------------------------------------------------------------------------------------


async def test_progress_is_told_to_the_observer_in_order(autojump_clock: Any) -> None:
    seen, run_ids = Seen(), list[str | None]()

    async def act(connection: Connection, params: ExecuteParams) -> None:
        run_ids.append(run_id := params.observability.run_id)
        for progress in (
            {"step_id": "only", "progress": 0, "run_id": run_id},
            {"step_id": "only", "progress": 0.5, "message": "half"},
            {"step_id": "only", "progress": 1.5},
            {"progress": 1},
            {"step_id": "only", "progress": 1, "more": "ignored"},
        ):
            await connection.notify("progress_update", progress)
        await connection.call("blobs/put", {"data": 1})

    await calling(act, on_event=seen)
    assert [(e.step_id, e.fraction, e.message) for e in seen.of(StepProgressed)] == [
        ("only", 0, None),
        ("only", 0.5, "half"),
        ("only", 1, None),
    ]
    assert [(event.run_id, event.item_index) for event in seen.of(StepProgressed)] == [(run_ids[0], 0)] * 3


async def test_a_method_that_does_not_exist_is_refused_with_the_closest_name(autojump_clock: Any) -> None:
    async def act(connection: Connection, _params: ExecuteParams) -> None:
        error = await refused(connection, "blobs/puts", {})
        assert error.code == ErrorCode.METHOD_NOT_FOUND
        assert error.data["suggestion"] == "blobs/put"

    await calling(act)


async def test_1000_callbacks_at_once_are_all_answered(autojump_clock: Any) -> None:
    async def act(connection: Connection, _params: ExecuteParams) -> Any:
        ids: dict[int, str] = {}

        async def put(n: int) -> None:
            ids[n] = (await connection.call("blobs/put", {"data": n}))["blob_id"]

        async with trio.open_nursery() as nursery:
            for n in range(1000):
                nursery.start_soon(put, n)
        return [ids[n] for n in range(1000)]

    assert await calling(act) == [hashlib.sha256(str(n).encode()).hexdigest() for n in range(1000)]
