"""Plugins of type mock: how they are written, and what their components come to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from runtime_stage import Seen, failure_of, flow, one_step, retrying, step

from stepflow_trio import ErrorCode, open_runtime
from stepflow_trio.errors import ConfigError
from stepflow_trio.flows.results import Failed, FlowError, Success
from stepflow_trio.flows.secrets import REDACTED
from stepflow_trio.runtime.config import Config, read_config
from stepflow_trio.runtime.events import StepStarted
from stepflow_trio.runtime.mock_config import MockComponent, MockFault, MockPluginConfig


def read(text: str, name: str = "c.yml") -> Config:
    return read_config(text, name=name, directory=Path("/"), environ={})


def mocking(components: str) -> Config:
    """A configuration whose plugin has these components, at /mock/…"""
    lines = "".join(f"      {line}\n" for line in components.strip("\n").split("\n"))
    return read(
        "plugins:\n  mock:\n    type: mock\n    components:\n"
        f"{lines}routes:\n  '/mock/{{*component}}': [{{ plugin: mock }}]\n"
    )


def behaving(behaviors: str) -> Config:
    """One component, /it."""
    return mocking("/it:\n  behaviors:\n" + "\n".join(f"    {line}" for line in behaviors.split("\n")))


# ---- how it is written ----------------------------------------------------------------------------------


def test_a_mock_is_read_with_schemas_and_one_behavior_for_each_input() -> None:
    config = mocking(
        """
/one:
  input_schema: { type: object }
  output_schema: { type: string }
  behaviors:
    { input: a }: { outcome: success, result: b }
    [1, null]: { outcome: failed, error: { code: 8, message: no, data: { x: 1 } } }
    "text": { error: broken }
/two:
  behaviors: {}
"""
    )
    assert config.warnings == ()
    assert config.plugins["mock"] == MockPluginConfig(
        components={
            "/one": MockComponent(
                input_schema={"type": "object"},
                output_schema={"type": "string"},
                behaviors={
                    '{"input":"a"}': Success("b"),
                    "[1,null]": Failed(FlowError(8, "no", {"x": 1})),
                    "text": MockFault("broken"),
                },
            ),
            "/two": MockComponent(),
        }
    )


def test_json_says_the_same_as_yaml() -> None:
    behaviors = {'{"b": [1], "a": 2}': {"outcome": "success", "result": 1}, "plain": {"error": "broken"}}
    config = {
        "plugins": {"mock": {"type": "mock", "components": {"/it": {"behaviors": behaviors}}}},
        "routes": {"/mock/{*c}": [{"plugin": "mock"}]},
    }
    plugin = read(json.dumps(config), "c.json").plugins["mock"]
    yaml = behaving("{ a: 2, b: [1] }: { outcome: success, result: 1 }\nplain: { error: broken }")
    assert plugin == yaml.plugins["mock"]


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ("/it: «1", "components./it: must be an object with keys, not a number"),
        ("«/it: {}", "components./it.behaviors: is missing"),
        ("«/it: { behaviours: {} }", 'components./it.behaviors: is missing; is "behaviours" meant to be it?'),
        ("/it: { behaviors: «[] }", "behaviors: must be an object with keys, not an array"),
        ("/it: { input_schema: «1, behaviors: {} }", "input_schema: must be an object with keys"),
        ("/it: { behaviors: { { a: 1 }: «1 } }", "must be an object with keys, not a number"),
        ("/it: { behaviors: { «{ a: 1 }: {} } }", "outcome: is missing"),
        ("/it: { behaviors: { «x: { outcom: success, result: 1 } } }", 'is "outcom" meant to be it?'),
        ("/it: { behaviors: { x: { outcome: «sucess } } }", 'did you mean "success"?'),
        ("/it: { behaviors: { x: { outcome: «skipped } } }", "write one of success, failed"),
        ("/it: { behaviors: { x: { outcome: «1 } } }", "outcome: must be a string"),
        ("/it: { behaviors: { «x: { outcome: success } } }", "result: is missing"),
        ("/it: { behaviors: { «x: { outcome: failed } } }", "error: is missing"),
        ("/it: { behaviors: { x: { outcome: failed, error: «text } } }", "error: must be an object"),
        ("/it: { behaviors: { x: { outcome: failed, «error: { message: m } } } }", "error.code: is missing"),
        ("/it: { behaviors: { x: { outcome: failed, «error: { code: 1 } } } }", "error.message: is missing"),
        ("/it: { behaviors: { x: { outcome: failed, error: { code: «1.5, message: m } } } }", "whole number"),
        (
            "/it: { behaviors: { x: { outcome: failed, error: { code: «true, message: m } } } }",
            "whole number",
        ),
        (
            "/it: { behaviors: { x: { outcome: failed, error: { code: 1, message: «2 } } } }",
            "must be a string",
        ),
        ("/it: { behaviors: { x: { error: «{ code: 1 } } } }", "error: must be a string, not an object"),
        ("/it: { behaviors: { 1: { error: e }, «1: { error: e } } }", "is already in line 5"),
        ("/it: { input_schema: { «{ a: 1 }: 2 }, behaviors: {} }", "keys are strings here"),
    ],
)
def test_what_cannot_be_used_as_written_is_said_with_its_place(components: str, message: str) -> None:
    column = components.index("«") + 7
    with pytest.raises(ConfigError) as caught:
        mocking(components.replace("«", ""))
    assert caught.value.place == f"c.yml:5:{column}"
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("components", "behaviors", "path"),
    [("components", "behaviours", "components./it.behaviors"), ("component", "behaviors", "components")],
)
def test_a_misspelled_key_above_inputs_is_all_that_is_complained_of(
    components: str, behaviors: str, path: str
) -> None:
    text = f"""\
plugins:
  m:
    type: mock
    {components}:
      /it:
        {behaviors}:
          {{ a: 1 }}: {{ outcome: success, result: 1 }}
          2: {{ outcome: success, result: 1 }}
          null: {{ outcome: success, result: 1 }}
routes: {{}}
"""
    with pytest.raises(ConfigError) as caught:
        read(text)
    wrong = behaviors if path.endswith("behaviors") else components
    assert caught.value.message == f'plugins.m.{path}: is missing; is "{wrong}" meant to be it?'


def test_two_spellings_of_one_input_in_json_are_refused() -> None:
    behaviors = {'{"a":1,"b":2}': {"error": "e"}, '{"b":2,"a":1}': {"error": "e"}}
    config = {
        "plugins": {"m": {"type": "mock", "components": {"/it": {"behaviors": behaviors}}}},
        "routes": {},
    }
    with pytest.raises(ConfigError, match="this input stands here twice"):
        read(json.dumps(config), "c.json")


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ("«it: { behaviors: {} }", "components.it: does not begin with /"),
        (
            "/it: { behaviors: {}, «behaviour: {} }",
            'is ignored: there is no such key here; did you mean "behav',
        ),
        ("/it: { behaviors: { x: { outcome: success, result: 1, «resul: 2 } } }", 'did you mean "result"?'),
        (
            "/it: { behaviors: { x: { outcome: failed, error: { code: 1, message: m, «date: 1 } } } }",
            'did you mean "data"?',
        ),
    ],
)
def test_what_has_no_effect_is_warned_of(components: str, message: str) -> None:
    column = components.index("«") + 7
    [warning] = mocking(components.replace("«", "")).warnings
    assert warning.startswith(f"c.yml:5:{column}: ")
    assert message in warning


def test_a_mock_without_components_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"plugins\.m\.components: is missing"):
        read("plugins: { m: { type: mock } }\nroutes: {}\n")


# ---- what its components come to ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "input", "fits"),
    [
        ("{ a: 1, b: 2 }", {"b": 2, "a": 1}, True),
        ("{ a: 1 }", {"a": 1, "b": None}, False),
        ("1", 1, True),
        ("1", 1.0, False),
        ("1", "1", False),
        ('"1"', "1", True),
        ("null", None, True),
        ("true", True, True),
        ("true", 1, False),
        ("[x, [y]]", ["x", ["y"]], True),
        ("text", "text", True),
        ('"{}"', "{}", True),
        ('"{}"', {}, False),
    ],
)
async def test_an_input_has_the_behavior_of_exactly_that_input(
    autojump_clock: Any, key: str, input: Any, fits: bool
) -> None:
    async with open_runtime(behaving(f"{key}: {{ outcome: success, result: found }}")) as runtime:
        if fits:
            assert await runtime.run(one_step("/mock/it"), input) == "found"
        else:
            failure = await failure_of(runtime, one_step("/mock/it"), input)
            assert "No behavior defined" in failure.data["stack"][0]["attachments"][2]


async def test_an_input_without_a_behavior_fails_as_in_the_public_releases_and_is_never_retried(
    autojump_clock: Any,
) -> None:
    seen = Seen()
    config = retrying(3, base=behaving("{ a: 1 }: { outcome: success, result: 1 }"))
    eager = flow(step("it", "/mock/it", onError={"action": "retry", "maxRetries": 3}))
    async with open_runtime(config, on_event=seen) as runtime:
        failure = await failure_of(runtime, eager, {"z": "ä", "a": 1.0})
    assert (failure.code, failure.message) == (-32300, 'step "it" failed')
    assert failure.data == {
        "stack": [
            {
                "error": 'step "it" failed',
                "attachments": [
                    "Component: /it",
                    "Component execution failed for step 'it'",
                    'No behavior defined for /it on {"z":"ä","a":1.0}',
                ],
            },
            {"error": "error executing user-defined function"},
        ]
    }
    assert len(seen.of(StepStarted)) == 1
    assert trio.current_time() == 0


async def test_the_input_that_is_quoted_is_rid_of_secret_texts_and_not_of_numbers(
    autojump_clock: Any,
) -> None:
    secret = {"is_secret": True}
    tried = {
        **flow(step("it", "/mock/it", {"$input": "$"})),
        "schemas": {"properties": {"input": {"properties": {"word": secret, "pin": secret}}}},
    }
    async with open_runtime(behaving("1: { outcome: success, result: 1 }")) as runtime:
        run = await runtime.submit(tried, [{"word": 'a "quoted"\tword', "pin": 4711}])
        await run.wait()
    [result] = run.results
    assert isinstance(result, Failed)
    said = json.dumps(result.error.data)
    assert REDACTED in said
    assert "quoted" not in said
    assert "4711" in said, "as the documentation says"


async def test_a_component_that_is_said_to_break_breaks_likewise(autojump_clock: Any) -> None:
    async with open_runtime(behaving("1: { error: out of paper }")) as runtime:
        failure = await failure_of(runtime, one_step("/mock/it"), 1)
    assert (failure.code, failure.message) == (-32300, 'step "only" failed')
    assert failure.data["stack"][0]["attachments"][2] == "out of paper"


@pytest.mark.parametrize(
    ("code", "attempts"), [(8, 1), (-32000, 1), (-32100, 3), (-32150, 3), (-32300, 2), (-32600, 1)]
)
async def test_a_failure_keeps_its_code_which_says_who_may_try_again(
    autojump_clock: Any, code: int, attempts: int
) -> None:
    seen = Seen()
    config = behaving(f"1: {{ outcome: failed, error: {{ code: {code}, message: no, data: [1] }} }}")
    eager = flow(step("it", "/mock/it", onError={"action": "retry", "maxRetries": 2}))
    async with open_runtime(retrying(1, base=config), on_event=seen) as runtime:
        failure = await failure_of(runtime, eager, 1)
    assert (failure.code, failure.message, failure.data) == (code, "no", [1])
    assert len(seen.of(StepStarted)) == attempts


async def test_what_becomes_of_a_result_does_not_change_the_next_one(autojump_clock: Any) -> None:
    async with open_runtime(behaving("1: { outcome: success, result: { list: [] } }")) as runtime:
        first = await runtime.run(one_step("/mock/it"), 1)
        first["list"].append("changed")
        assert await runtime.run(one_step("/mock/it"), 1) == {"list": []}


async def test_a_component_that_is_not_mocked_is_named_with_the_closest_that_is(autojump_clock: Any) -> None:
    async with open_runtime(behaving("1: { error: e }")) as runtime:
        failure = await failure_of(runtime, one_step("/mock/if"), 1)
    assert failure.code == ErrorCode.COMPONENT_NOT_FOUND
    assert failure.message == 'there is no mocked component /if; did you mean "/it"?'


async def test_mocked_components_are_listed_with_their_schemas(autojump_clock: Any) -> None:
    config = mocking(
        "/a: { input_schema: { type: string }, output_schema: {}, behaviors: {} }\n/b: { behaviors: {} }"
    )
    async with open_runtime(config) as runtime:
        listed = {component.path: component.info for component in await runtime.list_components()}
    assert {path: (info.input_schema, info.output_schema) for path, info in listed.items()} == {
        "/mock/a": ({"type": "string"}, {}),
        "/mock/b": (None, None),
    }
