"""The runtime's own components, and the flows of the public releases that use them."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import trio
from runtime_stage import OpenRunStore, Seen, Stage, flow, one_step, open_descriptors, retrying, step

from stepflow_trio import ErrorCode, RpcError, RunFailed, open_runtime
from stepflow_trio.flows.model import flow_id
from stepflow_trio.flows.reader import flow_from_json, read_flow_file
from stepflow_trio.flows.results import Success
from stepflow_trio.flows.source import Source, read_source
from stepflow_trio.runtime import builtin
from stepflow_trio.runtime.events import StepStarted

ECHO = one_step("/w/echo", {"value": {"$input": "$"}})


async def run_one(component: str, input: Any, **more: Any) -> Any:
    async with open_runtime(workers={"w": Stage().worker}, **more) as runtime:
        return await runtime.run(one_step(component, {"$literal": input}))


async def failure_of(component: str, input: Any, **more: Any) -> RunFailed:
    with pytest.raises(RunFailed) as caught:
        await run_one(component, input, **more)
    return caught.value


# ---- /create_messages -----------------------------------------------------------------------------------


async def test_messages_are_built_of_a_prompt_and_instructions(autojump_clock: Any) -> None:
    assert await run_one("/builtin/create_messages", {"user_prompt": "hi"}) == {
        "messages": [{"role": "user", "content": "hi"}]
    }
    instructed = {"user_prompt": "hi", "system_instructions": "be brief"}
    assert await run_one("/builtin/create_messages", instructed) == {
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    }


@pytest.mark.parametrize(
    ("component", "input", "where"),
    [
        ("create_messages", {"user_prompt": 1}, "$.user_prompt"),
        ("create_messages", {}, "user_prompt"),
        ("create_messages", [], "object"),
        ("put_blob", {"data": 1}, "blob_type"),
        ("map", {"workflow": ECHO, "items": 3}, "$.items"),
        ("map", {"workflow": ECHO, "items": [], "max_concurrency": 0}, "max_concurrency"),
        ("iterate", {"flow": [], "initial_input": 1}, "$.flow"),
        ("map", {"workflow": {"steps": 1}, "items": []}, "workflow cannot be run"),
        ("load_file", {"path": __file__, "format": "toml"}, "toml"),
    ],
)
async def test_an_input_that_does_not_fit_is_a_bad_request_that_names_the_place(
    autojump_clock: Any, component: str, input: Any, where: str
) -> None:
    failure = await failure_of(f"/builtin/{component}", input)
    assert failure.code == ErrorCode.BAD_REQUEST
    assert where in failure.message
    assert trio.current_time() == 0


async def test_an_unknown_builtin_is_named_with_the_closest_one(autojump_clock: Any) -> None:
    failure = await failure_of("/builtin/put_blub", {})
    assert failure.code == ErrorCode.COMPONENT_NOT_FOUND
    assert "/put_blob" in failure.message


async def test_every_builtin_says_what_it_takes_and_what_it_returns(
    autojump_clock: Any, tmp_path: Path
) -> None:
    """What it returns fits that, and has every field of it."""
    path = tmp_path / "a.json"
    path.write_text("[1]", encoding="utf-8")
    given = {
        "create_messages": {"user_prompt": "hi"},
        "put_blob": {"data": ECHO, "blob_type": "flow"},
        "get_blob": {"blob_id": flow_id(flow_from_json(ECHO))},
        "load_file": {"path": str(path)},
        "eval": {"flow_id": flow_id(flow_from_json(ECHO)), "input": 1},
        "map": {"workflow": ECHO, "items": [1]},
        "iterate": {"flow": ECHO, "initial_input": {"result": 1}},
    }
    stored = one_step(
        "/builtin/put_blob", {"$literal": {"data": flow_from_json(ECHO).to_json(), "blob_type": "flow"}}
    )
    async with open_runtime(workers={"w": Stage().worker}) as runtime:
        await runtime.run(stored)
        infos = {listed.path: listed.info for listed in await runtime.list_components()}
        for name, input in given.items():
            info = infos.pop(f"/builtin/{name}")
            output = await runtime.run(one_step(f"/builtin/{name}", {"$literal": input}))
            for schema, value in ((info.input_schema, input), (info.output_schema, output)):
                assert schema is not None
                assert "$ref" not in str(schema)
                jsonschema_rs.validate(schema, value)
                assert value.keys() <= schema["properties"].keys()
            assert output.keys() == set(info.output_schema["required"])
    assert set(infos) == {"/builtin/openai", *(path for path in infos if path.startswith("/w/"))}


# ---- blobs ----------------------------------------------------------------------------------------------


async def test_blobs_are_put_and_got(autojump_clock: Any) -> None:
    both = flow(
        step("put", "/builtin/put_blob", {"data": {"$input": "$"}, "blob_type": "data"}),
        step("get", "/builtin/get_blob", {"blob_id": {"$step": "put", "path": "blob_id"}}),
        output=[{"$step": "put"}, {"$step": "get"}],
    )
    async with open_runtime() as runtime:
        put, got = await runtime.run(both, {"message": "Hello, blobs!", "number": 42})
    assert list(put) == ["blob_id"]
    assert got == {"data": {"message": "Hello, blobs!", "number": 42}}


# ---- /eval ----------------------------------------------------------------------------------------------


async def test_eval_runs_a_stored_flow_and_returns_even_its_failure_as_a_value(autojump_clock: Any) -> None:
    store = OpenRunStore()

    def evaluating(of: Any) -> Any:
        return flow(
            step("put", "/builtin/put_blob", {"$literal": {"data": of, "blob_type": "flow"}}),
            step("eval", "/builtin/eval", {"flow_id": {"$step": "put", "path": "blob_id"}, "input": 5}),
        )

    async with open_runtime(workers={"w": Stage().worker}, run_store=store) as runtime:
        good = await runtime.run(evaluating(ECHO))
        bad = await runtime.run(evaluating(one_step("/w/nope")))
    assert good["result"] == {"outcome": "success", "result": 5}
    assert bad["result"]["outcome"] == "failed"
    assert bad["result"]["error"]["code"] == ErrorCode.COMPONENT_NOT_FOUND
    parents = {record.run_id: record.parent_run_id for record in store.records}
    assert [parents[value["run_id"]] for value in (good, bad)] == [
        record.run_id for record in store.records if record.parent_run_id is None
    ]


# ---- /map -----------------------------------------------------------------------------------------------


async def test_map_runs_a_flow_for_each_item_and_counts(autojump_clock: Any) -> None:
    stage = Stage()

    @stage.component
    async def only_even(number: int) -> int:
        if number % 2:
            raise RpcError(-32150, "odd")
        return number

    mapped = one_step("/w/only_even", {"number": {"$input": "$"}})
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        items = {"$literal": {"workflow": mapped, "items": [0, 1, 2]}}
        assert await runtime.run(one_step("/builtin/map", items)) == {
            "results": [
                {"outcome": "success", "result": 0},
                {"outcome": "failed", "error": {"code": -32150, "message": "odd"}},
                {"outcome": "success", "result": 2},
            ],
            "successful": 2,
            "failed": 1,
        }


async def test_map_of_nothing_is_nothing(autojump_clock: Any) -> None:
    assert await run_one("/builtin/map", {"workflow": ECHO, "items": []}) == {
        "results": [],
        "successful": 0,
        "failed": 0,
    }


@pytest.mark.parametrize(("max_concurrency", "takes_s"), [(None, 1), (1, 6), (2, 3), (6, 1)])
async def test_map_heeds_max_concurrency(
    autojump_clock: Any, max_concurrency: int | None, takes_s: float
) -> None:
    sleeps = one_step("/w/sleep", {"seconds": {"$input": "$"}})
    await run_one("/builtin/map", {"workflow": sleeps, "items": [1] * 6, "max_concurrency": max_concurrency})
    assert trio.current_time() == takes_s


# ---- /iterate -------------------------------------------------------------------------------------------


def counting_to(limit: int) -> tuple[Stage, Any]:
    stage = Stage()

    @stage.component
    async def count(number: int) -> Any:
        return {"result": number} if number >= limit else {"next": number + 1}

    return stage, one_step("/w/count", {"number": {"$input": "$"}})


@pytest.mark.parametrize(
    ("more", "comes_to"),
    [
        ({}, {"result": 3, "iterations": 4, "terminated": False}),
        ({"max_iterations": 4}, {"result": 3, "iterations": 4, "terminated": False}),
        ({"max_iterations": 3}, {"result": 3, "iterations": 3, "terminated": True}),
        ({"max_iterations": 0}, {"result": 0, "iterations": 0, "terminated": True}),
    ],
)
async def test_iterate_goes_on_with_next_until_there_is_a_result(
    autojump_clock: Any, more: Any, comes_to: Any
) -> None:
    stage, counted = counting_to(3)
    asked = {"flow": counted, "initial_input": 0, **more}
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        assert await runtime.run(one_step("/builtin/iterate", {"$literal": asked})) == comes_to


async def test_iterate_fails_on_a_flow_that_says_neither_result_nor_next(autojump_clock: Any) -> None:
    failure = await failure_of("/builtin/iterate", {"flow": ECHO, "initial_input": {"other": 1}})
    assert failure.code == ErrorCode.BAD_REQUEST
    assert "iteration 1" in failure.message


async def test_iterate_takes_no_negative_limit(autojump_clock: Any) -> None:
    asked = {"flow": ECHO, "initial_input": {"result": 1}, "max_iterations": -1}
    failure = await failure_of("/builtin/iterate", asked)
    assert failure.code == ErrorCode.BAD_REQUEST
    assert "$.max_iterations" in failure.message


async def test_iterate_fails_as_its_flow_does(autojump_clock: Any) -> None:
    stage = Stage()

    @stage.component
    async def fails() -> None:
        raise RpcError(-32150, "broken", {"a": 1})

    asked = {"flow": one_step("/w/fails", {}), "initial_input": 0}
    async with open_runtime(workers={"w": stage.worker}) as runtime:
        with pytest.raises(RunFailed) as caught:
            await runtime.run(one_step("/builtin/iterate", {"$literal": asked}))
    assert (caught.value.code, caught.value.message, caught.value.data) == (-32150, "broken", {"a": 1})


async def test_a_transport_failure_in_an_iteration_is_not_retried_once_more_around_it(
    autojump_clock: Any,
) -> None:
    """The run below has had the whole transport budget."""
    stage, seen = Stage(), Seen()

    @stage.component
    async def fails() -> None:
        raise RpcError(ErrorCode.TRANSPORT_ERROR, "unreachable")

    asked = {"flow": one_step("/w/fails", {}), "initial_input": 0}
    async with open_runtime(retrying(3), workers={"w": stage.worker}, on_event=seen) as runtime:
        with pytest.raises(RunFailed, match="unreachable"):
            await runtime.run(one_step("/builtin/iterate", {"$literal": asked}))
    assert [event.component for event in seen.of(StepStarted)] == ["/builtin/iterate"] + ["/w/fails"] * 4


# ---- /load_file -----------------------------------------------------------------------------------------
# Files are read in threads, so these run on the real clock.


@pytest.mark.parametrize(
    ("name", "format", "content", "data", "read_as"),
    [
        ("a.json", None, '{"a": [1, null]}', {"a": [1, None]}, "json"),
        ("a.yaml", None, "a: no\nb: 12:30\n", {"a": "no", "b": "12:30"}, "yaml"),
        ("a.YML", None, "- 1\n", [1], "yaml"),
        ("a.txt", None, "ä: 1\n", "ä: 1\n", "text"),
        ("noending", None, "{}", "{}", "text"),
        ("a.txt", "json", "{}", {}, "json"),
        ("a.json", "text", "{}", "{}", "text"),
        ("empty.txt", None, "", "", "text"),
    ],
)
async def test_a_file_is_read_as_its_ending_or_the_format_says(
    tmp_path: Path, name: str, format: str | None, content: str, data: Any, read_as: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    loaded = await run_one("/builtin/load_file", {"path": str(path), "format": format})
    assert loaded == {
        "data": data,
        "metadata": {
            "resolved_path": str(path.resolve()),
            "size_bytes": len(content.encode()),
            "format": read_as,
        },
    }


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b'{"a": NaN}', "nan"),
        ("a.json", b'{"a": 1, "a": 2}', '"a" is already'),
        ("a.json", b"{", "a.json:1"),
        ("a.yaml", b"a: .inf", "inf"),
        ("a.yaml", b"a: [", "a.yaml:1"),
        ("a.yaml", b"1: 2", "keys are strings"),
        ("a.txt", b"\xff\xfe", "utf-8"),
    ],
)
async def test_a_file_that_does_not_hold_what_it_should_is_a_bad_request(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    failure = await failure_of("/builtin/load_file", {"path": str(path)})
    assert failure.code == ErrorCode.BAD_REQUEST
    assert says in failure.message


async def test_a_file_is_parsed_where_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def read(text: str, *, name: str) -> Source:
        threads.append(threading.get_ident())
        return read_source(text, name=name)

    monkeypatch.setattr(builtin, "read_source", read)
    (tmp_path / "a.yaml").write_text("a: 1")
    assert (await run_one("/builtin/load_file", {"path": str(tmp_path / "a.yaml")}))["data"] == {"a": 1}
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


@pytest.mark.parametrize("what", ["nothing", "directory", "fifo", "nul"])
async def test_what_is_no_file_is_a_bad_request_and_never_a_hang(tmp_path: Path, what: str) -> None:
    path = tmp_path / "it"
    if what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    given = "a\0b" if what == "nul" else str(path)
    with trio.fail_after(5):
        failure = await failure_of("/builtin/load_file", {"path": given})
    assert failure.code == ErrorCode.BAD_REQUEST
    assert "cannot read" in failure.message


@pytest.mark.parametrize("over", [0, 1])
async def test_a_file_over_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: int
) -> None:
    monkeypatch.setattr(builtin, "MAX_FILE_BYTES", 1000)
    path = tmp_path / "a.txt"
    path.write_text("x" * (1000 + over))
    if over:
        failure = await failure_of("/builtin/load_file", {"path": str(path)})
        assert "1000 bytes" in failure.message
    else:
        assert len((await run_one("/builtin/load_file", {"path": str(path)}))["data"]) == 1000


# ---- the flows of the public releases -------------------------------------------------------------------

FOLDER = Path(__file__).parents[2].parent / "shared" / "peers" / "flows"
PUBLISHED = [path for path in sorted(FOLDER.rglob("*.yaml")) if "config" not in path.name]


def holds(expected: Any, actual: Any) -> bool:
    """The published test command's idea of a match: objects may hold more."""
    if isinstance(expected, dict):
        return isinstance(actual, dict) and all(
            key in actual and holds(value, actual[key]) for key, value in expected.items()
        )
    if isinstance(expected, list):
        return isinstance(actual, list) and len(expected) == len(actual) and all(map(holds, expected, actual))
    return type(expected) is type(actual) and expected == actual


@pytest.mark.skipif(not PUBLISHED, reason="the flows of the public releases are not here")
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
async def test_the_flows_of_the_public_releases_come_to_what_they_say(
    autojump_clock: Any, path: Path
) -> None:
    read = read_flow_file(path)
    assert read.test is not None
    async with open_runtime(path.parent / "stepflow-config.yml") as runtime:
        for case in read.test["cases"]:
            run = await runtime.submit(read, [case["input"]])
            await run.wait()
            [result] = run.results
            assert result is not None
            assert holds(case["output"], result.to_json()), case["name"]
            if isinstance(result, Success):
                assert flow_id(flow_from_json(read.to_json())) == run.flow_id


async def test_what_cannot_be_loaded_leaves_no_descriptor(tmp_path: Path) -> None:
    async with open_runtime() as runtime:
        before = open_descriptors()
        for path in (tmp_path, tmp_path / "none", "/dev/null"):
            with pytest.raises(RunFailed, match="cannot read"):
                await runtime.run(one_step("/builtin/load_file", {"path": str(path)}))
        assert open_descriptors() == before
