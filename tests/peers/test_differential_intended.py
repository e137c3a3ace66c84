"""Where our runtime is meant to come to something else than the public orchestrator: each test shows both.

``flow_strategies.py`` avoids these differences, or ``differential_stage.py`` takes them out. There are no
others; ``docs/peers.md`` lists them.
"""

from __future__ import annotations

from collections.abc import Generator
from http.client import RemoteDisconnected
from typing import Any

import pytest
from differential_stage import RELEASE, Case, Ours, Outcome, Pair, open_ours, open_pair, own_worker
from releases import needs

pytestmark = needs(f"stepflow-orchestrator-{RELEASE}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Generator[Pair]:
    with open_pair(tmp_path_factory.mktemp("server")) as opened:
        yield opened


@pytest.fixture(scope="module")
def enforcing() -> Generator[Ours]:
    """Our runtime as it is by default: it holds flows to their schemas."""
    with open_ours({"w": own_worker()}) as opened:
        yield opened


def step(id_: str, component: str, input: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": id_, "component": component, "input": input, **more}


ONE, TWO = step("one", "/w/echo", 1), step("two", "/w/echo", 2)
BAD = step("bad", "/w/fail", {"code": -32150, "message": "bad"})


def both(
    pair: Pair, *steps: dict[str, Any], output: Any, input: Any = None, **more: Any
) -> tuple[Outcome, Outcome]:
    """What a flow comes to there, and here."""
    case = Case({"steps": [*steps], "output": output}, [input], **more)
    return pair.public.outcome(case, patience_s=1), pair.ours.outcome(case)


def said(outcome: Outcome) -> Any:
    """The result of its one item, or the code and message of its failure."""
    [result] = outcome.results
    if result["outcome"] == "success":
        return result["result"]
    return result["error"]["code"], result["error"]["message"]


# ---- steps that only a result makes necessary (E1) ------------------------------------------------------

BRANCH = {"$if": {"$step": "one"}, "then": {"$step": "two"}}


@pytest.mark.parametrize(
    "output", [BRANCH, {"$coalesce": [{"$if": {"$step": "one"}, "then": None}, {"$step": "two"}]}], ids=str
)
def test_an_output_that_needs_a_step_because_of_a_result(pair: Pair, output: Any) -> None:
    public, ours = both(pair, ONE, TWO, output=output)
    assert said(public) == (-32202, "Step two not completed")
    assert public.steps == [{"one": "completed"}]
    assert said(ours) == 2


def test_an_input_that_needs_a_step_because_of_a_result(pair: Pair) -> None:
    public, ours = both(pair, ONE, TWO, step("reader", "/w/echo", BRANCH), output={"$step": "reader"})
    assert public.hangs
    assert said(ours) == 2


def test_a_condition_on_a_step_that_something_else_needs_too(pair: Pair) -> None:
    """It is taken for false before the step has run, so the steps of the wrong branch run."""
    choice = {**BRANCH, "else": {"$step": "other"}}
    public, ours = both(pair, ONE, TWO, step("other", "/w/echo"), output=[{"$step": "one"}, choice])
    assert said(public) == (-32202, "Step two not completed")
    assert public.steps == [{"one": "completed", "other": "completed"}]
    assert said(ours) == [1, 2]
    assert ours.steps == [{"one": "completed", "two": "completed"}]


def test_a_default_of_a_variable_that_needs_a_step(pair: Pair) -> None:
    public, ours = both(pair, ONE, output={"$variable": "gone", "default": {"$step": "one"}})
    assert said(public) == (-32202, "Step one not completed")
    assert said(ours) == 1


# ---- failures -------------------------------------------------------------------------------------------


def test_a_failed_step_that_must_be_executed(pair: Pair) -> None:
    """E16."""
    public, ours = both(pair, {**BAD, "mustExecute": True}, output="done")
    assert (public.status, said(public)) == ("completed", "done")
    assert (ours.status, said(ours)) == ("failed", (-32150, "bad"))


def test_a_failed_step_that_must_be_executed_in_a_run_below(pair: Pair) -> None:
    """E16."""
    inner = {"$literal": {"steps": [{**BAD, "mustExecute": True}], "output": "done"}}
    each = step("each", "/builtin/map", {"workflow": inner, "items": [1]})
    public, ours = both(pair, each, output={"$step": "each"})
    assert said(public)["results"] == [{"outcome": "success", "result": "done"}]
    assert said(ours)["results"] == [{"outcome": "failed", "error": {"code": -32150, "message": "bad"}}]


def test_a_default_does_not_take_the_place_of_the_retries_of_the_transport(pair: Pair) -> None:
    flaky = step("s", "/w/flaky", {"until": 2, "code": -32300}, onError={"action": "useDefault"})
    public, ours = both(pair, flaky, output={"$step": "s"})
    assert said(public) is None
    assert said(ours) == {"attempt": 2}


@pytest.mark.parametrize("on_error", [None, {"action": "useDefault", "defaultValue": 1}])
def test_a_component_to_which_no_route_leads(pair: Pair, on_error: Any) -> None:
    public, ours = both(pair, step("s", "/nowhere/x", onError=on_error), output={"$step": "s"})
    assert said(public) == (-32202, "error routing component")
    if on_error is None:
        code, message = said(ours)
        assert code == -32201
        assert "/nowhere/x not found" in message
    else:
        assert said(ours) == 1


@pytest.mark.parametrize(
    ("component", "input", "code"),
    [
        ("/builtin/put_blob", {"data": 1}, -32103),
        ("/builtin/map", {"items": []}, -32103),
        ("/builtin/iterate", {"flow": {"output": 1}, "initial_input": 0, "max_iterations": -1}, -32103),
        ("/builtin/nope", {}, -32001),
        ("/builtin/get_blob", {"blob_id": "0" * 64}, -32005),
    ],
)
def test_what_a_builtin_component_refuses(pair: Pair, component: str, input: Any, code: int) -> None:
    public, ours = both(pair, step("s", component, input), output={"$step": "s"})
    assert said(public) == (-32300, 'step "s" failed')
    assert said(ours)[0] == code


# ---- what is read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "public_value", "value"),
    [
        ("$['a.b']", "nested", "dotted"),
        ("a.b", "nested", "dotted"),
        ("$['']", "all", "empty"),
        ("$['a ']", {"b": "nested"}, "blank"),
    ],
)
def test_a_path_to_a_field_whose_name_needs_quotes(
    pair: Pair, path: str, public_value: Any, value: Any
) -> None:
    """E15: stored without the quotes, and read again as something else."""
    data = {"a": {"b": "nested"}, "a.b": "dotted", "": "empty", "a ": "blank"}
    public, ours = both(pair, output={"$input": path}, input=data)
    assert said(public) == (data if public_value == "all" else public_value)
    assert said(ours) == value
    assert public.flow_id != ours.flow_id


@pytest.mark.parametrize(
    ("path", "name"),
    [("$['a]b']", "a]b"), ("$['b[0]']", "b[0]"), (r"$['it\'s']", "it's"), (r'$["\\"]', "\\")],
)
def test_a_path_with_a_bracket_a_quote_or_a_backslash_in_quotes(pair: Pair, path: str, name: str) -> None:
    """E15."""
    public, ours = both(pair, output={"$input": path}, input={name: "found"})
    assert public.refused is not None or said(public)[0] == -32200
    assert said(ours) == "found"


@pytest.mark.parametrize(
    ("written", "public_result"),
    [
        # Misspelled: ignored there.
        (
            {"steps": [{**BAD, "onErorr": {"action": "useDefault"}}], "output": {"$step": "bad"}},
            (-32150, "bad"),
        ),
        ({"output": 1, "metdata": {}}, 1),
        ({"output": {"$if": True, "then": 1, "esle": 2}}, 1),
        # Cannot come to anything.
        ({"output": {"$variable": "$[0]"}}, (-32202, "Variable name must be a string")),
        ({"output": {"$variable": "$"}}, (-32202, "Variable path is empty")),
        (
            {
                "schemas": {"type": "object", "properties": {"variables": {"properties": {"v": {}}}}},
                "output": {"$variable": "w"},
            },
            (-32200, "Undefined variable: w"),
        ),
        ({"steps": [step("s", "w")], "output": {"$step": "s"}}, (-32202, "error routing component")),
        # Of another type than what it stands for.
        ({"output": 1, "test": []}, 1),
        ({"output": 1, "schemas": {"properties": {"input": "string"}}}, 1),
        ({"output": 1, "schemas": {"properties": {"input": {"type": "strnig"}}}}, 1),
    ],
    ids=str,
)
def test_a_flow_with_an_error_is_not_run(pair: Pair, written: dict[str, Any], public_result: Any) -> None:
    case = Case(written)
    assert said(pair.public.outcome(case)) == public_result
    assert pair.ours.outcome(case).refused is not None


@pytest.mark.parametrize(
    ("written", "public_result", "result"),
    [
        (
            {"output": {"$from": {"workflow": "input"}, "path": "k"}},
            {"$from": {"workflow": "input"}, "path": "k"},
            1,
        ),
        (
            {"steps": [{**BAD, "on_error": {"action": "useDefault"}}], "output": {"$step": "bad"}},
            (-32150, "bad"),
            None,
        ),
    ],
    ids=str,
)
def test_the_syntax_of_earlier_releases(
    pair: Pair, written: dict[str, Any], public_result: Any, result: Any
) -> None:
    case = Case(written, [{"k": 1}])
    assert said(pair.public.outcome(case)) == public_result
    assert said(pair.ours.outcome(case)) == result


def test_a_flow_with_two_keys_of_metadata(pair: Pair) -> None:
    """E14."""
    written = {"metadata": {"one": 1, "two": 2, "three": 3}, "output": 1}
    assert len({pair.public.store(written)["flowId"] for _ in range(20)}) > 1
    assert len({pair.ours.outcome(Case(written)).flow_id for _ in range(20)}) == 1


# ---- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "public_number"),
    [
        (2**64, 1.8446744073709552e19),
        (-(2**63) - 1, -9.223372036854775808e18),
        (123456789012345678901234567890, 1.2345678901234568e29),
        (9007199254740993.5, 9007199254740994.0),
    ],
)
def test_an_integer_of_more_than_64_bits(pair: Pair, number: Any, public_number: float) -> None:
    public, ours = both(pair, ONE, output={"$input": "$"}, input=number)
    assert said(public) == public_number
    assert type(said(public)) is float
    assert said(ours) == number
    assert type(said(ours)) is type(number)


# ---- runs below runs ------------------------------------------------------------------------------------


def test_variables_reach_the_runs_below(pair: Pair) -> None:
    inner = {"$literal": {"output": {"$variable": "v", "default": "unknown"}}}
    each = step("each", "/builtin/map", {"workflow": inner, "items": [1]})
    public, ours = both(
        pair, each, output={"$step": "each", "path": "$.results[0].result"}, variables={"v": "set"}
    )
    assert said(public) == "unknown"
    assert said(ours) == "set"


def test_eval_names_the_run_that_it_started(pair: Pair) -> None:
    """There, the run that it is in: both steps name the same one."""
    put = step("put", "/builtin/put_blob", {"data": {"$literal": {"output": 1}}, "blob_type": "flow"})
    asked = {"flow_id": {"$step": "put", "path": "blob_id"}, "input": 1}
    steps = [put, step("a", "/builtin/eval", asked), step("b", "/builtin/eval", asked)]
    ids = [{"$step": "a", "path": "run_id"}, {"$step": "b", "path": "run_id"}]
    public, ours = both(pair, *steps, output=ids)
    assert len(set(said(public))) == 1
    assert len(set(said(ours))) == 2


def test_map_with_no_items_at_once(pair: Pair) -> None:
    """There, it is one of the limits that have no effect."""
    asked = {"workflow": {"$literal": {"output": 1}}, "items": [1], "max_concurrency": 0}
    output = {"$step": "each", "path": "successful"}
    public, ours = both(pair, step("each", "/builtin/map", asked), output=output)
    assert said(public) == 1
    assert said(ours) == (-32103, "max_concurrency must be at least 1")


def test_no_items_at_once(pair: Pair) -> None:
    """E5: it ends the connection, there."""
    body = {"flowId": pair.public.store({"output": 1})["flowId"], "input": [1], "maxConcurrency": 0}
    with pytest.raises(RemoteDisconnected):
        pair.public.request("POST", "/runs", body)


# ---- schemas --------------------------------------------------------------------------------------------

TEXT, NUMBER = {"type": "string"}, {"type": "number"}


@pytest.mark.parametrize(
    ("properties", "code"),
    [
        ({"input": TEXT}, -32003),
        ({"variables": {"type": "object", "required": ["v"]}}, -32003),
        ({"variables": {"type": "object", "properties": {"w": TEXT}}}, -32003),
        ({"steps": {"type": "object", "properties": {"one": TEXT}}}, -32101),
        ({"output": TEXT}, -32004),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_its_schema(
    pair: Pair, enforcing: Ours, properties: dict[str, Any], code: int
) -> None:
    schemas = {"type": "object", "properties": properties}
    written = {"schemas": schemas, "steps": [ONE], "output": {"$step": "one"}}
    case = Case(written, [5], variables={"w": 5})
    assert said(pair.compare(case)) == 1
    assert said(enforcing.outcome(case))[0] == code


def test_a_value_that_fits_its_schema_makes_no_difference(pair: Pair, enforcing: Ours) -> None:
    properties = {"input": NUMBER, "output": NUMBER, "steps": {"properties": {"one": NUMBER}}}
    written = {"schemas": {"properties": properties}, "steps": [ONE], "output": {"$step": "one"}}
    assert pair.compare(Case(written, [5])) == enforcing.outcome(Case(written, [5]))


# ---- what is said of a flow -----------------------------------------------------------------------------

FLOWS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "all": {"name": "n", "description": "d", "steps": [ONE], "output": {"$step": "one"}},
    "no name": {"description": "d"},
    "never run": {"name": "n", "steps": [ONE, TWO], "output": {"$step": "one"}},
    "no slash": {"steps": [step("s", "w")], "output": {"$step": "s"}},
    "twice": {"steps": [ONE, ONE], "output": {"$step": "one"}},
    "no id": {"steps": [step("", "/w/x")], "output": 1},
    "itself": {"steps": [step("s", "/w/x", {"$step": "s"})], "output": {"$step": "s"}},
    "unknown": {"output": {"$step": "gone"}},
    "unknown in a branch": {"output": {"$if": False, "then": [{"$step": "gone"}]}},
    "undeclared": {
        "schemas": {"properties": {"variables": {"properties": {"v": TEXT}}}},
        "output": [{"$variable": "v"}, {"$variable": "w"}, {"$variable": "x", "default": 1}],
    },
    "no declaration": {"output": {"$variable": "v"}},
    "no subflow": {
        "steps": [step("s", "/builtin/put_blob", {"data": {"$literal": {"steps": 1}}, "blob_type": "flow"})],
        "output": {"$step": "s"},
    },
}


@pytest.mark.parametrize("name", FLOWS)
def test_what_is_said_of_a_flow_has_the_codes_of_the_public_releases(pair: Pair, name: str) -> None:
    """But for paths into what nobody describes, a remark that we only make on request."""
    public = pair.public.store(FLOWS[name])["diagnostics"]["diagnostics"]
    ours = pair.ours.findings(FLOWS[name])
    codes = {found["code"]: found["kind"] for found in public if found["code"] != 1003}
    assert codes == {found["code"]: found["kind"] for found in ours if found["code"] % 1000 < 900}


def test_what_is_said_of_a_step_that_comes_later_or_must_be_executed(pair: Pair) -> None:
    later = {"name": "n", "description": "d", "steps": [step("s", "/w/x", {"$step": "one"}), ONE]}
    later |= {"output": {"$step": "s"}}
    must = {"name": "n", "description": "d", "steps": [{**ONE, "mustExecute": True}], "output": 1}
    for written, public_codes, codes in [(later, [3003], [3907]), (must, [1000], [])]:
        public = pair.public.store(written)["diagnostics"]["diagnostics"]
        assert [found["code"] for found in public if found["code"] != 1003] == public_codes
        assert [found["code"] for found in pair.ours.findings(written)] == codes
