"""What expressions come to, on the public orchestrator and on our runtime: each form with each operand,
paths, variables and laziness."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
from differential_stage import RELEASE, Case, Pair, open_pair
from releases import needs

pytestmark = needs(f"stepflow-orchestrator-{RELEASE}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Generator[Pair]:
    with open_pair(tmp_path_factory.mktemp("server")) as opened:
        yield opened


INPUT: dict[str, Any] = {
    "k": "of input",
    "null": None,
    "a b": 1,
    "l": [0, [1, {"k": "deep"}], None],
    "$step": "data",
    "$k": "data",
    "0": "zero",
    "o": {"o": {"o": True}, "null": None},
}
STEPS = [
    {"id": "ok", "component": "/w/echo", "input": {"$input": "$"}},
    {"id": "null", "component": "/w/null"},
    {"id": "no", "component": "/w/echo", "input": False},
    {"id": "bad", "component": "/w/fail", "input": {"code": -32150, "message": "bad", "data": [1]}},
    {"id": "worse", "component": "/w/echo", "input": {"$input": "$.gone"}},
    {"id": "late", "component": "/w/late", "input": {"ms": 5, "value": "late"}},
]


def case(output: Any, **more: Any) -> Case:
    """An output over these steps and this input."""
    return Case({"steps": STEPS, "output": output}, [INPUT], **more)


# ---- every form with every operand ----------------------------------------------------------------------

OPERANDS: dict[str, Any] = {
    "a step": {"$step": "ok"},
    "a field of a step": {"$step": "ok", "path": "$.l[1][1].k"},
    "a null field of a step": {"$step": "ok", "path": "null"},
    "a missing field of a step": {"$step": "ok", "path": "gone"},
    "a field below a null one": {"$step": "ok", "path": "$.null.k"},
    "a step that is null": {"$step": "null"},
    "a field of a step that is null": {"$step": "null", "path": "$.a[0].b"},
    "a step that is false": {"$step": "no"},
    "a field of a step that is false": {"$step": "no", "path": "k"},
    "a failed step": {"$step": "bad"},
    "a field of a failed step": {"$step": "bad", "path": "k"},
    "a step without an input": {"$step": "worse"},
    "a late step": {"$step": "late"},
    "the input": {"$input": "$"},
    "a field of the input": {"$input": "k"},
    "a null field of the input": {"$input": "null"},
    "a missing field of the input": {"$input": "gone"},
    "a variable": {"$variable": "set"},
    "a variable that is null": {"$variable": "none"},
    "a variable that is not there": {"$variable": "gone"},
    "a variable with a default": {"$variable": "gone", "default": {"$input": "k"}},
    "a variable with a default that is null": {"$variable": "gone", "default": None},
    "a variable with a default that fails": {"$variable": "gone", "default": {"$input": "gone"}},
    "a literal": {"$literal": {"$step": "bad", "x": [{"$input": "gone"}]}},
    "null": None,
    "false": False,
    "true": True,
    "zero": 0,
    "an empty text": "",
    "an empty array": [],
    "an empty object": {},
    "an array with a failure": [1, {"$step": "bad"}, {"$input": "gone"}],
    "an object with a failure": {"a": {"$input": "gone"}, "b": {"$step": "bad"}},
}

FORMS: dict[str, Callable[[Any], Any]] = {
    "alone": lambda x: x,
    "in an array": lambda x: [0, x, [x]],
    "in an object": lambda x: {"b": 0, "a": x, "c": {"$x": x}},
    "before a failure": lambda x: [x, {"$step": "worse"}],
    "after a failure": lambda x: {"z": {"$step": "bad"}, "a": x},
    "a condition": lambda x: {"$if": x, "then": "yes", "else": "no"},
    "a condition without else": lambda x: {"$if": x, "then": "yes"},
    "the condition of a condition": lambda x: {"$if": {"$if": x, "then": False, "else": 0}, "then": "yes"},
    "then": lambda x: {"$if": True, "then": x, "else": "no"},
    "else": lambda x: {"$if": {"$input": "null"}, "then": "yes", "else": x},
    "not then": lambda x: {"$if": False, "then": x, "else": "no"},
    "not else": lambda x: {"$if": 0, "then": "yes", "else": x},
    "coalesced first": lambda x: {"$coalesce": [x, "last"]},
    "coalesced after null": lambda x: {"$coalesce": [None, {"$input": "null"}, x, "last"]},
    "coalesced last": lambda x: {"$coalesce": [None, x]},
    "not coalesced": lambda x: {"$coalesce": ["first", x]},
    "twice": lambda x: [x, {"$coalesce": [x]}],
}


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_form_with_an_operand(pair: Pair, form: str, operand: str) -> None:
    value = FORMS[form](OPERANDS[operand])
    pair.compare(case(value, variables={"set": {"k": 1}, "none": None}))


@pytest.mark.parametrize("operand", OPERANDS)
def test_an_operand_as_the_input_of_a_step(pair: Pair, operand: str) -> None:
    reader = {"id": "reader", "component": "/w/echo", "input": {"x": OPERANDS[operand]}}
    defaulted = {**reader, "id": "defaulted", "onError": {"action": "useDefault", "defaultValue": 0}}
    whole = {"id": "whole", "component": "/w/echo", "input": OPERANDS[operand]}
    for output in [{"$step": "reader"}, {"$step": "defaulted"}, {"$step": "whole"}]:
        flow = {"steps": [*STEPS, reader, defaulted, whole], "output": output}
        pair.compare(Case(flow, [INPUT], variables={"set": {"k": 1}, "none": None}))


# ---- what is an expression, and what is data ------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {"$literal": 1, "$if": True, "then": 2},
        {"$if": True, "then": 2, "$coalesce": [3], "$step": "bad"},
        {"$coalesce": [3], "$step": "bad", "$input": "gone"},
        {"$step": "no", "$input": "k", "$variable": "gone"},
        {"$variable": "gone", "$input": "k"},
        {"$input": "$.l", "path": "$[0]"},
        {"$step": "ok", "default": 1, "else": 2, "x": {"$step": "bad"}},
        {"$x": {"$input": "k"}, "$": 1, "$$step": "ok", "$STEP": "ok"},
        {"$ref": "#/x", "$id": [{"$input": "k"}]},
        {"path": "$.k", "then": {"$input": "k"}, "else": None, "default": 0},
        {"$literal": None},
        {"$literal": {"$literal": {"$literal": 1}}},
        {"$coalesce": []},
        {"$if": {"$literal": {"$input": "gone"}}, "then": {"$literal": {"$step": "gone"}}},
        {"$if": True, "then": None, "else": None},
        {"": {"$input": "k"}, "é": 1, "\U0001f40d": 2, "\x00": 3},
        [[], [[]], {}, {"a": {}}],
        "$.k",
        "{$input: k}",
    ],
    ids=str,
)
def test_what_is_an_expression(pair: Pair, value: Any) -> None:
    pair.compare(case(value))


@pytest.mark.parametrize(
    "value",
    [
        {"$if": True},
        {"$coalesce": {"a": 1}},
        {"$coalesce": None},
        {"$step": 1},
        {"$step": None},
        {"$step": ["ok"]},
        {"$input": 1},
        {"$input": ["k"]},
        {"$step": "ok", "path": 1},
        {"$variable": {"a": 1}},
        {"$input": "$k"},
        {"$input": "$.a[-1]"},
        {"$input": "$.a[*]"},
        {"$input": "$.a[?(@.b)]"},
        {"$input": "$.a[0:1]"},
        {"$input": "$.a[0"},
        {"$input": "$['a]"},
        {"$input": "$[a]"},
        {"$input": "$.a]"},
        {"$input": "$[]"},
        {"$input": "$[0]k"},
        {"$step": "gone"},
        {"$if": {"$step": "gone"}, "then": 1},
        {"$literal": 1, "then": 2},
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused_by_both(pair: Pair, value: Any) -> None:
    pair.compare(case(value))


# ---- paths ----------------------------------------------------------------------------------------------

PATHS = [
    *("$", "", None, "$.", "$..", " $ ", "$.k", "k", "$..k", "$.k.", "$.k..", "$['k']", '$["k"]', "$[ 'k' ]"),
    *("$.l[0]", "$.l[1][1].k", "$.l[1][1]['k']", "$.l.[0]", "$['l'][1]", "$.l[ 1 ]", "$.l[01]", "$.l[7]"),
    *(
        "$.l['0']",
        "$.l.0",
        "$.0",
        "0",
        "$['0']",
        "$[0]",
        "$.k[0]",
        "$.k.k",
        "$.null",
        "$.null.k",
        "$.null[0]",
    ),
    *(
        "$.a b",
        "a b",
        "$['a b']",
        "$.$step",
        "$['$step']",
        "$.$k",
        "$k",
        "gone",
        "$.gone.k",
        "$.o.o.o",
        "$.o.o.k",
    ),
    *("$.o['o'].o.o", " k", "l", "$.l[999999999999]", "$ .k", "K", "é", "$.é", "'k'"),
]


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_path(pair: Pair, path: str | None) -> None:
    pair.compare(case({"$input": path}))
    pair.compare(case({"$step": "ok", "path": path}))
    pair.compare(case({"$if": {"$input": path}, "then": True, "else": False}))
    pair.compare(Case({"steps": [], "output": {"$input": path}}, [None, False, "k", [INPUT], 0]))


@pytest.mark.parametrize(
    "path", ["$.v", "v", "$['v']", "$.v.k", "$.v.l[0]", "$.v.gone", "$.v[0]", "$.v['k']", " v"]
)
@pytest.mark.parametrize("default", [{}, {"default": None}, {"default": {"$input": "k"}}], ids=str)
def test_a_path_into_a_variable(pair: Pair, path: str, default: dict[str, Any]) -> None:
    for value in [{"k": 1, "l": [None]}, None, "text", [5]]:
        pair.compare(case({"$variable": path, **default}, variables={"v": value}))
    pair.compare(case({"$variable": path, **default}))


# ---- variables ------------------------------------------------------------------------------------------

DECLARATIONS: dict[str, Any] = {
    **{
        f"a {kind}": {"type": kind}
        for kind in ("string", "number", "integer", "boolean", "object", "array", "null")
    },
    "nullable": {"type": ["string", "null"]},
    "null alone": {"type": ["null"]},
    "a union": {"type": ["string", "integer"]},
    "untyped": {},
    "with a default": {"type": "string", "default": "declared"},
    "with a null default": {"type": "string", "default": None},
    "with a default of another type": {"type": "integer", "default": {"k": [1]}},
    "an enum": {"enum": ["a", "b"]},
    "a const": {"const": 1},
    "described": {"description": "d", "type": "string", "env_var": "HOME"},
}


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
@pytest.mark.parametrize("declaration", DECLARATIONS)
def test_a_declared_variable(pair: Pair, declaration: str, required: bool) -> None:
    variables = {"type": "object", "properties": {"v": DECLARATIONS[declaration]}}
    if required:
        variables["required"] = ["v"]
    schemas = {"type": "object", "properties": {"variables": variables}}
    for output in [
        {"$variable": "v"},
        {"$variable": "v", "default": "inline"},
        {"$variable": "$.v.k", "default": "inline"},
        {"$variable": "$.v.k"},
    ]:
        flow = {"schemas": schemas, "steps": [], "output": output}
        pair.compare(Case(flow))
        for value in [None, "given", {"k": "of given"}]:
            pair.compare(Case(flow, variables={"v": value, "other": 1}))


# ---- laziness -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("input", [None, False, 0, "", [], {}, True, "x"], ids=repr)
def test_only_the_steps_of_the_branch_that_is_taken_run(pair: Pair, input: Any) -> None:
    steps = [
        {"id": "first", "component": "/w/echo", "input": 1},
        {"id": "then", "component": "/w/echo", "input": {"$step": "first"}},
        {"id": "else", "component": "/w/fail", "input": {}},
        {"id": "nobody's", "component": "/w/fail", "input": {"$step": "else"}},
        {
            "id": "inside",
            "component": "/w/echo",
            "input": {"$if": {"$input": "$"}, "then": {"$step": "then"}, "else": {"$step": "else"}},
        },
    ]
    branches = {"then": {"$step": "then"}, "else": {"$step": "else"}}
    for output in [
        {"$if": {"$input": "$"}, **branches},
        {"$if": {"$if": {"$input": "$"}, "then": False, "else": True}, **branches},
        {"$if": {"$input": "$"}, "then": {"$step": "then"}},
        {"$coalesce": [{"$input": "$"}, {"$step": "then"}]},
        {"$coalesce": [{"$if": {"$input": "$"}, "then": None, "else": 1}, {"$step": "else"}]},
        {"$step": "inside"},
        [{"$step": "inside"}, {"$if": {"$input": "$"}, **branches}],
    ]:
        pair.compare(Case({"steps": steps, "output": output}, [input]))


def test_a_failure_cuts_nothing_short(pair: Pair) -> None:
    steps = [*STEPS, {"id": "after", "component": "/w/echo", "input": {"$step": "late"}}]
    pair.compare(Case({"steps": steps, "output": [{"$step": "bad"}, {"$step": "after"}]}, [INPUT]))
