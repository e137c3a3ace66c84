"""A run is held to its flow's schemas, unless the runtime is told not to."""

from __future__ import annotations

from typing import Any

import pytest
from runtime_stage import Stage, one_step, step
from runtime_stage import flow as flow_of

from stepflow_trio import RunFailed, open_runtime
from stepflow_trio.errors import ErrorCode, FlowInvalid
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.results import Failed, Success
from stepflow_trio.flows.schemas import FlowSchemas
from stepflow_trio.runtime.events import StepStarted

COUNT = {"type": "integer", "minimum": 0}


def with_schemas(flow: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {**flow, "schemas": {"type": "object", "properties": parts}}


ECHO = one_step("/w/echo", {"value": {"$input": "$"}})


async def test_an_input_that_does_not_fit_fails_its_item_before_any_step_starts(autojump_clock: Any) -> None:
    started: list[Any] = []
    async with open_runtime(
        workers={"w": Stage().worker},
        on_event=lambda event: started.append(event) if isinstance(event, StepStarted) else None,
    ) as runtime:
        run = await runtime.submit(with_schemas(ECHO, input=COUNT), [1, -1, "x", 2])
        await run.wait()
    outcomes = [result.to_json() if result is not None else None for result in run.results]
    assert [outcome["outcome"] for outcome in outcomes if outcome] == [
        "success",
        "failed",
        "failed",
        "success",
    ]
    assert {event.item_index for event in started} == {0, 3}
    assert run.status == "failed"


@pytest.mark.parametrize(
    ("part", "schema", "input", "variables", "code"),
    [
        ("input", {"type": "string"}, 1, {}, ErrorCode.INVALID_INPUT_SCHEMA),
        ("variables", {"properties": {"v": COUNT}}, 1, {"v": "x"}, ErrorCode.INVALID_INPUT_SCHEMA),
        ("variables", {"required": ["v"]}, 1, {}, ErrorCode.INVALID_INPUT_SCHEMA),
        ("steps", {"properties": {"only": {"type": "string"}}}, 1, {}, ErrorCode.COMPONENT_VALUE_ERROR),
        ("output", {"type": "string"}, 1, {}, ErrorCode.INVALID_VALUE),
    ],
)
async def test_what_does_not_fit_fails_the_run_with_its_code_or_passes_where_schemas_are_not_enforced(
    autojump_clock: Any, part: str, schema: Any, input: Any, variables: Any, code: ErrorCode
) -> None:
    step_id = ECHO["steps"][0]["id"]
    if part == "steps":
        schema = {"type": "object", "properties": {step_id: schema["properties"]["only"]}}
    flow = with_schemas(ECHO, **{part: schema})
    async with open_runtime(workers={"w": Stage().worker}) as runtime:
        with pytest.raises(RunFailed) as caught:
            await runtime.run(flow, input, variables=variables)
    assert caught.value.code == code
    assert caught.value.data["path"].startswith("$")
    async with open_runtime(workers={"w": Stage().worker}, enforce_schemas=False) as runtime:
        assert await runtime.run(flow, input, variables=variables) == input


async def test_an_output_that_does_not_fit_is_a_failure_of_the_component(autojump_clock: Any) -> None:
    again = {"action": "retry", "maxRetries": 2}
    instead = {"action": "useDefault", "defaultValue": 7}
    attempts: list[int] = []

    def note(event: Any) -> None:
        if isinstance(event, StepStarted):
            attempts.append(event.attempt)

    async with open_runtime(workers={"w": Stage().worker}, on_event=note) as runtime:
        for on_error, comes_to in ((again, None), (instead, 7)):
            flow = flow_of(
                {**step("a", "/w/echo", {"value": "x"}), "onError": on_error}, output={"$step": "a"}
            )
            flow = with_schemas(flow, steps={"type": "object", "properties": {"a": COUNT}})
            if comes_to is None:
                with pytest.raises(RunFailed) as caught:
                    await runtime.run(flow)
                assert caught.value.code == ErrorCode.COMPONENT_VALUE_ERROR
                assert attempts == [1, 2, 3]
            else:
                assert await runtime.run(flow) == comes_to


async def test_a_flow_whose_schemas_cannot_be_used_is_refused_at_once(autojump_clock: Any) -> None:
    flow = Flow(schemas={"properties": {"input": {"type": "strng"}}})
    async with open_runtime() as runtime:
        with pytest.raises(FlowInvalid):
            await runtime.run(flow)
        with pytest.raises(FlowInvalid):
            await runtime.run({"schemas": flow.schemas})
    async with open_runtime(enforce_schemas=False) as runtime:
        assert await runtime.run(flow) is None


async def test_a_run_below_another_is_held_to_what_its_own_flow_declares(autojump_clock: Any) -> None:
    inner = with_schemas(
        {"output": {"$variable": "v"}},
        input=COUNT,
        variables={"properties": {"v": COUNT}, "required": ["v"], "additionalProperties": False},
    )
    outer = one_step("/builtin/map", {"workflow": {"$literal": inner}, "items": [1, -1]})
    async with open_runtime() as runtime:
        result = await runtime.run(outer, variables={"v": 3, "other": "not the inner flow's"})
    assert [item["outcome"] for item in result["results"]] == ["success", "failed"]
    assert result["results"][0]["result"] == 3
    assert result["results"][1]["error"]["code"] == ErrorCode.INVALID_INPUT_SCHEMA


async def test_a_text_that_a_pattern_takes_too_long_for_costs_its_own_item(autojump_clock: Any) -> None:
    pattern = {"type": "string", "pattern": "^(a*)*\\1b$"}
    for part in ("input", "output"):
        tested = {"schemas": {"type": "object", "properties": {part: pattern}}, "output": {"$input": "$"}}
        async with open_runtime() as runtime:
            run = await runtime.submit(tested, ["b", "a" * 40, "ab"])
            await run.wait()
        assert [type(result) for result in run.results] == [Success, Failed, Success]
        assert run.status == "failed"
        [_, failed, _] = run.results
        assert isinstance(failed, Failed)
        assert "too many ways to match" in failed.error.message


async def test_a_fault_of_a_check_costs_its_own_item(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = FlowSchemas.check_output

    def faulty(self: FlowSchemas, value: Any) -> Any:
        if value == 2:
            raise KeyError("a fault of ours")
        return check(self, value)

    monkeypatch.setattr(FlowSchemas, "check_output", faulty)
    async with open_runtime() as runtime:
        run = await runtime.submit({"output": {"$input": "$"}}, [1, 2, 3])
        await run.wait()
    assert [type(result) for result in run.results] == [Success, Failed, Success]
