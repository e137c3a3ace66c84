"""What a run is given besides its input: variables of the environment, overrides, a time, no schemas."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_process import CONFIG, Finished

from stepflow_trio.cli.env_variables import with_environment
from stepflow_trio.cli.exits import Unusable
from stepflow_trio.cli.given_overrides import overridden
from stepflow_trio.errors import FlowInvalid
from stepflow_trio.flows.reader import flow_from_json

Cli = Callable[..., Finished]
WriteFlow = Callable[..., Path]


def flow_with(variables: dict[str, Any] | None, output: Any = 1, **more: Any) -> Any:
    schemas = {"type": "object", "properties": {"variables": {"type": "object", **(variables or {})}}}
    return flow_from_json({"schemas": schemas if variables is not None else None, "output": output, **more})


DECLARED = {
    "properties": {
        "plain": {},
        "text": {"type": "string"},
        "named": {"type": "number", "env_var": "MY_NUMBER"},
        "odd-näme.2": {"type": "object"},
        "optional": {"type": "integer"},
    },
    "required": ["text", "named"],
}


def test_a_variable_comes_from_where_its_schema_says_else_from_its_name() -> None:
    environ = {
        "STEPFLOW_VAR_PLAIN": "[1, 2]", "STEPFLOW_VAR_TEXT": "12", "MY_NUMBER": "1.5",
        "STEPFLOW_VAR_NAMED": "7", "STEPFLOW_VAR_ODD_N_ME_2": '{"a": null}', "STEPFLOW_VAR_OTHER": "x",
    }  # fmt: skip
    assert with_environment(flow_with(DECLARED), {}, environ) == {
        "plain": [1, 2],
        "text": "12",
        "named": 1.5,
        "odd-näme.2": {"a": None},
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("true", True),
        ("null", None),
        ('"a"', "a"),
        ("a", "a"),
        ("", ""),
        ("{a}", "{a}"),
        ("NaN", "NaN"),
    ],
)
def test_a_value_is_json_or_else_a_text(text: str, value: Any) -> None:
    flow = flow_with({"properties": {"v": {}}})
    assert with_environment(flow, {}, {"STEPFLOW_VAR_V": text}) == {"v": value}


def test_for_a_text_only_json_that_is_one_counts() -> None:
    flow = flow_with({"properties": {"v": {"type": "string"}}})
    assert with_environment(flow, {}, {"STEPFLOW_VAR_V": '"a"'}) == {"v": "a"}
    assert with_environment(flow, {}, {"STEPFLOW_VAR_V": "007"}) == {"v": "007"}
    assert with_environment(flow, {}, {"STEPFLOW_VAR_V": "[1]"}) == {"v": "[1]"}


def test_what_is_given_wins() -> None:
    environ = {"STEPFLOW_VAR_V": "1", "STEPFLOW_VAR_W": "2"}
    flow = flow_with({"properties": {"v": {}, "w": {}}})
    assert with_environment(flow, {"v": 3, "x": 4}, environ) == {"v": 3, "w": 2, "x": 4}


def test_what_a_flow_reads_without_declaring_it_counts_too() -> None:
    flow = flow_with(None, {"a": {"$variable": "$.v.deep"}, "b": {"$variable": "w", "default": 1}})
    assert with_environment(flow, {}, {"STEPFLOW_VAR_V": "{}"}) == {"v": {}}
    with pytest.raises(
        Unusable, match="variable 'v' has no value: set STEPFLOW_VAR_V in the environment, or"
    ):
        with_environment(flow, {}, {})


def test_what_is_missing_is_named_with_both_ways_to_give_it() -> None:
    with pytest.raises(Unusable) as caught:
        with_environment(flow_with(DECLARED), {}, {})
    assert str(caught.value) == (
        "--env-variables: error: variable 'text' has no value: set STEPFLOW_VAR_TEXT in the environment, or "
        "give it with --variables-json '{\"text\": …}'; variable 'named' has no value: set MY_NUMBER in the "
        "environment, or give it with --variables-json '{\"named\": …}'"
    )


STEPS = [
    {"id": "one", "component": "/b/x", "input": {"a": 1, "b": {"c": 2}}},
    {"id": "two", "component": "/b/y", "input": {"$step": "one"}},
]


def applied(overrides: Any) -> Any:
    flow = flow_with(None, {"$step": "two"}, steps=STEPS)
    return overridden(flow, overrides, option="--overrides", flow_path="f.yaml").to_json()["steps"]


def test_an_override_is_merged_into_its_step() -> None:
    value = {"component": "/b/z", "input": {"b": None, "d": [3]}}
    one, two = applied({"steps": {"one": {"value": value}}})
    assert one == {"id": "one", "component": "/b/z", "input": {"a": 1, "d": [3]}}
    assert two == STEPS[1]
    assert applied({"steps": {"one": {"$type": "merge_patch", "value": {}}}}) == STEPS
    assert applied({}) == STEPS


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], "overrides must be an object, not an array; overrides are "),
        ({"stpes": {}}, '"stpes" is no key of overrides; did you mean "steps"?'),
        ({"one": {"input": 1}}, '"one" is no key of overrides; overrides are {"steps": '),
        ({"steps": []}, "steps must be an object, not an array"),
        (
            {"steps": {"oen": {"value": {}}}},
            'name step "oen", which the flow does not have; did you mean "one"?',
        ),
        (
            {"steps": {"one": {"vlaue": {}}}},
            '"vlaue" is no key of the override of step "one"; did you mean "value"?',
        ),
        ({"steps": {"one": {}}}, 'the override of step "one" has no "value"'),
        ({"steps": {"one": {"value": 1}}}, 'the value of the override of step "one" must be an object'),
        ({"steps": {"one": {"$type": "json_patch", "value": {}}}}, "only merge_patch exists"),
    ],
)
def test_overrides_that_are_none_are_refused_with_what_would_be_right(overrides: Any, says: str) -> None:
    with pytest.raises(Unusable) as caught:
        applied(overrides)
    assert says in str(caught.value)
    assert str(caught.value).startswith("--overrides: error: ")


def test_a_flow_that_overrides_break_is_refused_with_the_json_path() -> None:
    with pytest.raises(FlowInvalid, match=r"f.yaml with --overrides: error: .*\$\.steps\[0\]\.input\.\$step"):
        applied({"steps": {"one": {"value": {"input": {"$step": "two"}}}}})


def test_what_an_override_says_and_nobody_reads_is_warned_of_once(cli: Cli, flow: WriteFlow) -> None:
    given = flow("/builtin/create_messages", "{ user_prompt: a }", more="    zork: 1\n")
    overrides = json.dumps({"steps": {"only": {"value": {"gadget": 2}}}})
    arguments = ["run", given, "--input-json", "1", "--overrides-json", overrides]
    ran = cli(*arguments)
    assert ran.code == 0
    assert ran.stderr.count('"gadget"') == ran.stderr.count('"zork"') == 1, ran.stderr
    assert f"{given} with --overrides-json: warning: " in ran.stderr
    assert "gadget" not in cli(*arguments, "-q").stderr


def test_a_run_takes_its_variables_and_its_overrides(cli: Cli, flow: WriteFlow, tmp_path: Path) -> None:
    given = flow("/crew/refuse", "{ value: { $variable: v, default: 0 } }")
    file = tmp_path / "overrides.yaml"
    file.write_text("steps: { only: { value: { component: /crew/echo } } }\n", encoding="utf-8")
    arguments = ["run", given, "--config", CONFIG, "--input-json", "1", "-q", "--env-variables"]
    ran = cli(*arguments, "--overrides", file, env={"PATH": "/bin", "STEPFLOW_VAR_V": "[7]"})
    assert (ran.code, ran.stdout, ran.stderr) == (0, '{"outcome":"success","result":[7]}\n', "")
    ran = cli(*arguments, "--overrides", "-", "--stdin-format", "yaml", stdin=file.read_text("utf-8"))
    assert (ran.code, ran.stdout) == (0, '{"outcome":"success","result":0}\n')


def test_an_override_may_lead_a_step_to_a_route_or_away_from_one(cli_here: Cli, flow: WriteFlow) -> None:
    given = flow("/nowhere/echo")
    arguments = ["run", given, "--input-json", "1", "-q", "--overrides-json"]
    to = '{"steps":{"only":{"value":{"component":"%s","input":{"data":1,"blob_type":"data"}}}}}'
    assert cli_here(*arguments, to % "/builtin/put_blob").code == 0
    ran = cli_here(*arguments, to % "/elsewhere")
    assert ran.code == 2
    assert ran.stderr.startswith(f"{given} with --overrides-json: error: Component /elsewhere not found")


def test_a_run_is_given_up_when_its_time_is_over(cli: Cli, flow: WriteFlow) -> None:
    before = time.monotonic()
    arguments = ["run", flow("/crew/wait"), "--config", CONFIG, "--input-json", "1", "--timeout", "1.5"]
    ran = cli(*arguments)
    assert (ran.code, json.loads(ran.stdout)["error"]["code"]) == (1, -32203)
    assert "run failed" in ran.stderr
    assert 1.5 <= time.monotonic() - before < 15


def test_schemas_are_checked_unless_that_is_switched_off(cli_here: Cli, tmp_path: Path) -> None:
    given = tmp_path / "flow.yaml"
    given.write_text(
        "name: n\ndescription: d\n"
        "schemas: { type: object, properties: { input: { type: string } } }\noutput: { $input: $ }\n",
        encoding="utf-8",
    )
    assert cli_here("run", given, "--input-json", "1", "-q").code == 1
    ran = cli_here("run", given, "--input-json", "1", "-q", "--no-schema-checks")
    assert (ran.code, ran.stdout) == (0, '{"outcome":"success","result":1}\n')


def test_a_variable_that_the_flow_does_not_have_is_warned_of(cli_here: Cli, flow: WriteFlow) -> None:
    declares = "schemas: { properties: { variables: { type: object, properties: { pieces: {} } } } }\n"
    given = ["--input-json", "1", "--variables-json", '{"piecse": 4}', "-q"]
    step = ("/builtin/put_blob", "{ blob_type: data, data: 1 }")
    ran = cli_here("run", flow(*step, more=declares), *given)
    assert ran.stderr == (
        '--variables-json: warning: the flow has no variable "piecse"; did you mean "pieces"?\n'
    )
    assert ran.code == 0
    # A flow that does not say which ones it has may have any.
    assert cli_here("run", flow(*step), *given).stderr == ""
