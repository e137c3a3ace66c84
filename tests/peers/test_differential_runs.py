"""What runs come to, on the public orchestrator and on our runtime: failures, retries, overrides, batches,
runs below runs, blobs, and the ids of both."""

from __future__ import annotations

import math
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from differential_stage import RELEASE, TRANSPORT_RETRIES, Case, Pair, open_configured_pair, open_pair
from releases import needs

from stepflow_trio.flows.diagnostics import DiagnosticKind
from stepflow_trio.flows.reader import examine_flow_file
from stepflow_trio.flows.source import read_source

pytestmark = needs(f"stepflow-orchestrator-{RELEASE}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Generator[Pair]:
    with open_pair(tmp_path_factory.mktemp("server")) as opened:
        yield opened


def step(id_: str, component: str, input: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": id_, "component": component, "input": input, **more}


def flow(*steps: dict[str, Any], output: Any = None) -> dict[str, Any]:
    """A flow whose output is the last step's result unless said otherwise."""
    return {"steps": [*steps], "output": {"$step": steps[-1]["id"]} if output is None else output}


# ---- what a step fails with -----------------------------------------------------------------------------

CODES = [
    -32100,
    -32103,
    -32110,
    -32150,
    -32199,
    -32099,
    -32200,
    -32000,
    -32001,
    -32003,
    -32600,
    -32603,
    -32700,
]
CODES += [0, 1, 8, 500, -1, -32300, -32303, -32399, -32299, -32400, 2**31, -(2**40)]
ON_ERRORS: list[Any] = [
    None,
    {"action": "fail"},
    {"action": "retry"},
    {"action": "retry", "maxRetries": None},
    {"action": "retry", "maxRetries": 0},
    {"action": "retry", "maxRetries": 2},
]
DEFAULTS: list[Any] = [
    {"action": "useDefault"},
    {"action": "useDefault", "defaultValue": None},
    {"action": "useDefault", "defaultValue": {"$step": "is data", "k": [1.0]}},
    {"action": "useDefault", "defaultValue": 0, "maxRetries": 3},
]


def is_transport(code: int) -> bool:
    return -32399 <= code <= -32300


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("on_error", ON_ERRORS, ids=str)
def test_a_step_that_fails(pair: Pair, code: int, on_error: Any) -> None:
    for data in [{}, {"data": None}, {"data": {"$x": [1, None]}}, {"message": ""}]:
        pair.compare(
            Case(flow(step("s", "/w/fail", {"code": code, "message": "é\n", **data}, onError=on_error)))
        )


@pytest.mark.parametrize("until", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("code", [-32100, -32199, -32300, -32099, 8])
@pytest.mark.parametrize("on_error", ON_ERRORS, ids=str)
def test_a_step_that_fails_at_first(pair: Pair, until: int, code: int, on_error: Any) -> None:
    ours = pair.compare(Case(flow(step("s", "/w/flaky", {"until": until, "code": code}, onError=on_error))))
    if is_transport(code):
        assert (ours.status == "completed") is (until <= TRANSPORT_RETRIES + 1)


@pytest.mark.parametrize("code", [code for code in CODES if not is_transport(code)])
@pytest.mark.parametrize("on_error", DEFAULTS, ids=str)
def test_a_default(pair: Pair, code: int, on_error: Any) -> None:
    failing = step("s", "/w/fail", {"code": code}, onError=on_error)
    pair.compare(Case(flow(failing)))
    pair.compare(Case(flow(failing, step("t", "/w/echo", {"x": {"$step": "s", "path": "k"}}))))
    pair.compare(Case(flow(failing, output={"$coalesce": [{"$step": "s", "path": "$.k"}, "null"]})))


@pytest.mark.parametrize("on_error", [*ON_ERRORS, *DEFAULTS], ids=str)
@pytest.mark.parametrize(
    "component", ["/w/add", "/w/nope", "/builtin/put_blob", "/builtin/map", "/builtin/nope"]
)
def test_a_component_that_cannot_work_with_its_input_or_is_not_there(
    pair: Pair, component: str, on_error: Any
) -> None:
    for input in [None, {}, [], "text", {"a": "1", "b": 2}]:
        pair.compare(Case(flow(step("s", component, input, onError=on_error))))


@pytest.mark.parametrize("on_error", [*ON_ERRORS, *DEFAULTS], ids=str)
def test_a_step_that_reads_a_failed_one(pair: Pair, on_error: Any) -> None:
    failing = step("bad", "/w/fail", {"code": -32150, "data": 1})
    for input in [{"$step": "bad"}, [1, {"x": {"$step": "bad", "path": "a"}}], {"$input": "gone"}]:
        readers = [step("a", "/w/echo", input, onError=on_error), step("b", "/w/echo", {"$step": "a"})]
        pair.compare(Case(flow(failing, *readers), [{}]))
        pair.compare(
            Case(flow(failing, *readers, output={"$if": {"$step": "b"}, "then": 1, "else": 0}), [{}])
        )


# ---- mustExecute ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("must", [True, False, None])
def test_must_execute(pair: Pair, must: bool | None) -> None:
    first = step("first", "/w/echo", 1)
    for more in [
        {"component": "/w/echo"},
        {"component": "/w/fail", "input": {}},
        {"input": {"$input": "gone"}},
    ]:
        last = {**step("last", "/w/echo", {"$step": "first"}, mustExecute=must), **more}
        pair.compare(Case(flow(first, last, output="done"), [{}]))
        pair.compare(Case(flow(first, last), [{}]))
        defaulted = {**last, "onError": {"action": "useDefault", "defaultValue": 1}}
        pair.compare(Case(flow(first, defaulted, output="done"), [{}]))


def test_several_must_execute(pair: Pair) -> None:
    late = step("late", "/w/late", {"ms": 5}, mustExecute=True)
    bad = step("bad", "/w/fail", {"message": "bad"}, mustExecute=True)
    worse = step("worse", "/w/fail", {"message": "worse"}, mustExecute=True)
    for steps in [[late, bad, worse], [worse, late, bad], [bad, late], [late]]:
        pair.compare(Case(flow(*steps, output={"$input": "$"}), [1, None]))
        pair.compare(Case(flow(*steps, output={"$input": "$.gone"}), [1, None]))


# ---- batches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 25])
def test_a_batch_of_mixed_outcomes(pair: Pair, count: int) -> None:
    mixed = flow(
        step("sum", "/w/add", {"a": {"$input": "$.n"}, "b": 1}),
        step("late", "/w/late", {"ms": {"$input": "$.ms"}, "value": {"$step": "sum"}}),
        output={"$if": {"$input": "$.wanted"}, "then": {"$step": "late"}, "else": {"$input": "$.n"}},
    )
    inputs: list[Any] = [
        {"n": n if n % 5 else "no number", "ms": (7 * n) % 4, "wanted": n % 3} for n in range(count)
    ]
    for n in range(0, count, 4):
        inputs[n]["wanted"] = False
    if count > 2:
        inputs[1], inputs[2] = None, {"wanted": True}
    pair.compare(Case(mixed, inputs))


# ---- overrides ------------------------------------------------------------------------------------------

BASE = flow(
    step("a", "/w/echo", {"x": {"$input": "k"}, "y": [1, 2]}, metadata={"note": 1}),
    step("b", "/w/fail", {"code": -32150}, onError={"action": "useDefault", "defaultValue": {"d": 1}}),
    step("c", "/w/echo", {"$step": "a", "path": "y"}),
    step("d", "/w/fail", mustExecute=True, onError={"action": "useDefault"}),
    output=[{"$step": "a"}, {"$step": "b"}, {"$step": "c"}],
)


@pytest.mark.parametrize(
    "steps",
    [
        {},
        {"a": {"value": {"input": {"x": 5}}}},
        {"a": {"value": {"input": {"x": None}}}},
        {"a": {"value": {"input": {"y": None, "z": {"new": None, "other": 1}}}}},
        {"a": {"value": {"input": None}}},
        {"a": {"value": {"input": [1, None]}}},
        {"a": {"value": {"input": "$.k"}}},
        {"a": {"value": {"input": {"x": {"$input": None, "$literal": {"a": 1}}}}}},
        {"a": {"value": {"input": {"x": {"$coalesce": [None, 5]}}}}},
        {"a": {"value": {"component": "/w/null"}}, "c": {"value": {"input": {"path": None}}}},
        {"a": {"$type": "merge_patch", "value": {"component": "/w/fail", "input": {"code": 8}}}},
        {"b": {"value": {"onError": None}}},
        {"b": {"value": {"onError": {"defaultValue": None}}}},
        {"b": {"value": {"onError": {"defaultValue": {"d": None, "e": 2}}}}},
        {"b": {"value": {"onError": {"action": "fail"}}}},
        {
            "b": {
                "value": {
                    "onError": {"action": "retry", "maxRetries": 1},
                    "component": "/w/flaky",
                    "input": {"until": 2},
                }
            }
        },
        {"c": {"value": {"input": {"$step": "b", "path": "$.d"}}}},
        {"c": {"value": {"mustExecute": True, "metadata": {"x": 1}}}},
        {"d": {"value": {"mustExecute": False}}},
        {"d": {"value": {"mustExecute": None}}},
        {"d": {"value": {"onError": None}}},
        {"a": {"value": {}}},
        {"a": {"value": {"component": None}}},
        {"a": {"value": {"id": None}}},
        {"a": {"value": 5}},
        {"a": {"value": None}},
        {"a": {"value": {"onError": {"maxRetries": 1}}}},
        {"a": {"value": {"onError": {"action": "skip"}}}},
        {"a": {"value": {"mustExecute": "yes"}}},
        {"a": {"value": {"input": {"$if": True}}}},
        {"a": {"$type": "json_patch", "value": []}},
        {"a": {"$type": "other", "value": {}}},
        {"a": {}},
        {"gone": {"value": {"input": 1}}},
        {"a": {"value": {"input": {"$step": "c"}}}},
        {"a": {"value": {"input": {"$step": "gone"}}}},
        {"a": {"value": {"input": {"$step": "a"}}}},
    ],
    ids=str,
)
def test_overrides(pair: Pair, steps: dict[str, Any]) -> None:
    pair.compare(Case(BASE, [{"k": "of input"}, {}], overrides={"steps": steps}))


@pytest.mark.parametrize("overrides", [{"steps": None}, {"steps": []}, {"a": {"value": {}}}], ids=str)
def test_overrides_of_another_shape(pair: Pair, overrides: Any) -> None:
    pair.compare(Case(BASE, [{}], overrides=overrides))


# ---- runs below runs ------------------------------------------------------------------------------------

INNER = flow(
    step("a", "/w/add", {"a": {"$input": "$"}, "b": 1}),
    step("b", "/w/echo", {"$step": "a"}, onError={"action": "useDefault", "defaultValue": "defaulted"}),
)


@pytest.mark.parametrize("items", [[], [1], [1, "x", None, 2.5, [3]], [{"a": 1}] * 12], ids=len)
def test_map(pair: Pair, items: list[Any]) -> None:
    each = step("each", "/builtin/map", {"workflow": {"$literal": INNER}, "items": {"$input": "$"}})
    pair.compare(Case(flow(each), [items]))
    pair.compare(Case(flow(each, output={"$step": "each", "path": "$.results[1].result"}), [items]))
    limited = {**each, "input": {**each["input"], "max_concurrency": 1}}
    pair.compare(Case(flow(limited, output={"$step": "each", "path": "failed"}), [items]))


COUNTING = {"steps": [step("a", "/w/add", {"a": {"$input": "$"}, "b": 1})]}


@pytest.mark.parametrize(
    "output",
    [
        {"next": {"$step": "a"}},
        {"result": {"$step": "a"}},
        {"result": None, "next": 1},
        {"next": None},
        {"other": {"$step": "a"}},
        [{"$step": "a"}],
        None,
        {"next": {"$input": "$.gone"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("limit", [0, 1, 3])
def test_iterate(pair: Pair, output: Any, limit: int) -> None:
    inner = {"$literal": {**COUNTING, "output": output}}
    for start in [0, "x"]:
        asked = {"flow": inner, "initial_input": start, "max_iterations": limit}
        for on_error in [None, {"action": "retry", "maxRetries": 1}, {"action": "useDefault"}]:
            pair.compare(Case(flow(step("s", "/builtin/iterate", asked, onError=on_error))))


@pytest.mark.parametrize("input", [1, "x", None])
def test_eval(pair: Pair, input: Any) -> None:
    put = step("put", "/builtin/put_blob", {"data": {"$literal": INNER}, "blob_type": "flow"})
    run = step("run", "/builtin/eval", {"flow_id": {"$step": "put", "path": "blob_id"}, "input": input})
    pair.compare(Case(flow(put, run)))
    pair.compare(Case(flow(put, run, output={"$step": "run", "path": "$.result.result"})))


def test_runs_three_deep(pair: Pair) -> None:
    deepest = {"$literal": INNER}
    middle = flow(step("each", "/builtin/map", {"workflow": deepest, "items": {"$input": "$"}}))
    put = step("put", "/builtin/put_blob", {"data": {"$literal": middle}, "blob_type": "flow"})
    run = step("run", "/builtin/eval", {"flow_id": {"$step": "put", "path": "blob_id"}, "input": [1, "x"]})
    outer = flow(put, run, output={"next": {"$step": "run", "path": "result"}})
    asked = {"flow": {"$literal": outer}, "initial_input": 0, "max_iterations": 1}
    pair.compare(Case(flow(step("s", "/builtin/iterate", asked))))


@pytest.mark.parametrize(
    "input", [{"user_prompt": "é"}, {"user_prompt": "", "system_instructions": ""}, {}, {"user_prompt": 1}]
)
def test_create_messages(pair: Pair, input: Any) -> None:
    pair.compare(Case(flow(step("s", "/builtin/create_messages", input))))
    pair.compare(Case(flow(step("s", "/builtin/create_messages", {**input, "system_instructions": None}))))


# ---- blobs and ids --------------------------------------------------------------------------------------

DATA: list[Any] = [
    *(None, True, False, 0, -1, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, "", "é", [], {}, [[]], {"": {}}),
    *(0.1, -0.0, 0.0, 1.0, 1e15, 1e16, 123456789012345680.0, 1e-5, 1e-6, 1.5e-7, 1e21, 1e22, 5e-324, math.pi),
    *(1.7976931348623157e308, -1e300, 1e100, 0.30000000000000004, 100000.0, 12345678.9),
    '\x00\x01\b\t\n\x0b\f\r\x1f "\\/\x7f\x80\x9f\xa0\u2028\u2029',
    "\ud7ff\ue000\ufeff\ufffd\uffff\U00010000\U0010ffff",
    {"b": 1, "a": [1, {"z": None, "y": "1e16"}], "\U0001f40d": {"é": 1e16}, "\n": '"1e17"', "1e18": [1e18]},
]


@pytest.mark.parametrize("data", DATA, ids=ascii)
def test_a_blob_has_one_id(pair: Pair, data: Any) -> None:
    assert pair.ours.blob_id(data) == pair.public.blob_id(data)
    put = step("put", "/builtin/put_blob", {"data": {"$literal": data}, "blob_type": "data"})
    get = step("get", "/builtin/get_blob", {"blob_id": {"$step": "put", "path": "$.blob_id"}})
    pair.compare(Case(flow(put, get, output=[{"$step": "put"}, {"$step": "get"}])))
    through = step("put", "/builtin/put_blob", {"data": {"$input": "$"}, "blob_type": "data"})
    pair.compare(Case(flow(through, get, output=[{"$step": "put"}, {"$step": "get"}]), [data]))


@pytest.mark.parametrize("kind", ["data", "flow"])
def test_a_blob_of_any_type(pair: Pair, kind: str) -> None:
    put = step("put", "/builtin/put_blob", {"data": {"$literal": {"output": 1, "x": 2}}, "blob_type": kind})
    get = step("get", "/builtin/get_blob", {"blob_id": {"$step": "put", "path": "$.blob_id"}})
    pair.compare(Case(flow(put, get)))


@pytest.mark.parametrize(
    "input", [{}, {"data": 1}, {"data": 1, "blob_type": "x"}, {"blob_type": "data"}], ids=str
)
def test_a_blob_that_cannot_be_stored(pair: Pair, input: Any) -> None:
    pair.compare(Case(flow(step("put", "/builtin/put_blob", input))))


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"name": "n", "description": "d", "version": "v", "steps": [], "output": None},
        {"name": None, "description": None, "version": None, "schemas": None, "steps": None, "output": None},
        {"test": None, "examples": None, "metadata": None},
        {"schemas": {}, "metadata": {}, "examples": []},
        {"output": 1, "name": "order", "x": "unknown", "schema": "https://stepflow.org/schemas/v1/flow.json"},
        {"metadata": {"one": {"b": 1, "a": [None, 1e16]}}},
        {
            "examples": [
                {"name": "e", "input": None},
                {"input": {"b": 1, "a": 2}, "description": "d", "name": "f"},
            ]
        },
        {"test": {"cases": [{"name": "c", "input": 1, "output": {"outcome": "success", "result": None}}]}},
        {"test": {"cases": [{"input": {}, "name": "c", "description": None}]}},
        {
            "test": {
                "cases": [
                    {
                        "name": "c",
                        "input": 0,
                        "output": {"outcome": "failed", "error": {"code": 1, "message": "m"}},
                    }
                ]
            }
        },
        {"test": {"config": {"plugins": {}}, "cases": None}},
        {"test": {"configFile": "f.yml"}},
        {"steps": [step("a", "/x", None, onError={"action": "fail"})]},
        {"steps": [step("a", "/x", {}, onError={"action": "useDefault", "defaultValue": None})]},
        {
            "steps": [
                step("a", "/x", [], onError={"action": "useDefault", "defaultValue": {"b": 1, "a": 1e16}})
            ]
        },
        {"steps": [step("a", "/x", 0, onError={"action": "retry"})]},
        {"steps": [step("a", "/x", False, onError={"action": "retry", "maxRetries": None})]},
        {"steps": [step("a", "/x", "", onError={"maxRetries": 4, "action": "retry"})]},
        {"steps": [step("a", "/x", onError=None, mustExecute=None, metadata=None)]},
        {"steps": [step("a", "/x", mustExecute=False, metadata={})]},
        {
            "steps": [
                {
                    "metadata": {"k": 1},
                    "mustExecute": True,
                    "input": 1,
                    "component": "/x",
                    "id": "a",
                    "unknown": 2,
                }
            ]
        },
        {"output": {"$if": None, "then": None, "else": None}},
        {"output": {"else": 1, "then": {"$input": None}, "$if": {"$input": ""}}},
        {"output": {"$coalesce": [], "x": 1}},
        {"output": {"default": None, "$variable": "v"}},
        {"output": {"$variable": "$['v'][0]", "default": {"$input": "$"}}},
        {"output": {"$literal": {"$input": "$", "b": 1, "a": [1e16, -0.0]}, "x": 1}},
        {"output": {"b": [{"$input": "a b"}, {"$input": "$[0]['x'].y..z"}], "a": {"$x": {}}}},
        {"steps": [step("a", "/x")], "output": {"path": "k", "$step": "a"}},
        {"steps": [step("a", "/x")], "output": [{"$step": "a", "path": ""}, {"$step": "a", "path": None}]},
        {
            "schemas": {
                "type": "object",
                "properties": {"output": {"type": "string"}, "input": {"b": 1, "a": 2}},
            }
        },
        {
            "schemas": {
                "properties": {"variables": {"type": "object", "properties": {}}},
                "x": 1,
                "$defs": {"t": {}},
            }
        },
        {"schemas": {"properties": {"steps": {"properties": {"b": {"type": "null"}, "a": True}}}}},
        {"schemas": {"properties": {"steps": {"type": "object", "properties": {}}}}},
        {"schemas": {"type": "object", "properties": {"input": True, "output": False}}},
        {"schemas": {"type": "object", "title": "t", "required": ["input"], "properties": {"input": {}}}},
    ],
    ids=str,
)
def test_a_flow_has_one_id(pair: Pair, written: dict[str, Any]) -> None:
    pair.compare(Case({"steps": [], **written}, []))


@pytest.mark.parametrize(
    "written",
    [
        {"steps": {}},
        {"steps": [1]},
        {"steps": [{"id": "a"}]},
        {"steps": [{"component": "/x"}]},
        {"steps": [{"id": 1, "component": "/x"}]},
        {"steps": [{"id": "a", "component": None}]},
        {"steps": [step("a", "/x", onError={})]},
        {"steps": [step("a", "/x", onError="fail")]},
        {"steps": [step("a", "/x", onError={"action": "ignore"})]},
        {"steps": [step("a", "/x", onError={"action": "retry", "maxRetries": -1})]},
        {"steps": [step("a", "/x", onError={"action": "retry", "maxRetries": 1.0})]},
        {"steps": [step("a", "/x", onError={"action": "retry", "maxRetries": 2**32})]},
        {"steps": [step("a", "/x", mustExecute=1)]},
        {"steps": [step("a", "/x", metadata=[])]},
        {"steps": [step("a", "/x"), step("a", "/x")]},
        {"steps": [step("", "/x")]},
        {"steps": [step(" ", "/x")]},
        {"steps": [step("a", "/x", {"$step": "a"})]},
        {"steps": [step("a", "/x", {"$step": "b"}), step("b", "/x")]},
        {"steps": [step("a", "/x", {"$step": "b"}), step("b", "/x", {"$step": "a"})]},
        {"name": 1},
        {"description": ["d"]},
        {"version": 1.0},
        {"metadata": 1},
        {"examples": {}},
        {"examples": [{"name": "e"}]},
        {"test": {"cases": [{"input": 1}]}},
        {"test": {"cases": [{"name": "c"}]}},
        {"test": {"cases": [{"name": "c", "input": 1, "output": {"outcome": "skipped"}}]}},
        {"schemas": []},
        {"schemas": {"input": {"type": "string"}}},
    ],
    ids=str,
)
def test_a_flow_that_cannot_be_read_is_refused_by_both(pair: Pair, written: dict[str, Any]) -> None:
    assert pair.compare(Case({"steps": [], **written}, [])).refused


# ---- the flows that they publish ------------------------------------------------------------------------

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "peers" / "flows"
FOLDERS = sorted(path.parent for path in PUBLISHED.glob("*/stepflow-config.yml"))


@pytest.mark.skipif(not FOLDERS, reason=f"there are no published flows at {PUBLISHED}")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_published_flows(folder: Path, tmp_path: Path) -> None:
    with open_configured_pair(tmp_path, folder / "stepflow-config.yml") as published:
        for path in sorted(folder.glob("*.yaml")):
            reading = examine_flow_file(path)
            # Fields of earlier releases, which ours reads and theirs drops.
            is_old = any(found.kind is DiagnosticKind.OLD_SYNTAX for found in reading.diagnostics)
            written = read_source(path.read_bytes(), name=path.name).value
            for each in written["test"]["cases"]:
                published.compare(Case(written, [each["input"]]), has_one_id=not is_old)
