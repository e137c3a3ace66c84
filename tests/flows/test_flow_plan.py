import time

import pytest

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.flows.expressions import If, StepRef
from stepflow_trio.flows.model import Flow, Step
from stepflow_trio.flows.plan import Plan, PreparedFlow, StepStatus
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.flows.results import Failed, FlowError, Success

BOOM = FlowError(-32100, "boom")
OTHER = FlowError(-32101, "other")


def ref(step, path=None):
    return {"$step": step} if path is None else {"$step": step, "path": path}


def step(name, value=None, **more):
    return {"id": name, "component": "/x", "input": value, **more}


def plan_of(output, *steps, input=None, variables=None, schemas=None):
    flow = flow_from_json({"steps": list(steps), "output": output, "schemas": schemas})
    return Plan(PreparedFlow(flow, variables), input)


def ready(plan):
    return {r.step.id: r.input for r in plan.take_ready()}


# Which steps run


def test_a_flow_without_steps_is_over_at_once():
    plan = plan_of({"x": {"$input": "a"}}, input={"a": 1})
    assert plan.result == Success({"x": 1})
    assert plan.take_ready() == []


def test_a_step_runs_when_its_input_is_known_and_is_handed_out_once():
    plan = plan_of(ref("b"), step("a", {"$input": "$"}), step("b", {"v": ref("a", "$.k")}), input=7)
    assert ready(plan) == {"a": 7}
    assert ready(plan) == {}
    assert plan.running == {"a"}
    plan.record("a", Success({"k": "x"}))
    assert plan.running == frozenset()
    assert ready(plan) == {"b": {"v": "x"}}
    assert plan.result is None
    plan.record("b", Success("end"))
    assert plan.result == Success("end")


def test_steps_that_nothing_needs_never_run():
    plan = plan_of(1, step("a"), step("b", ref("a")))
    assert ready(plan) == {}
    assert plan.result == Success(1)
    assert plan.statuses() == {"a": StepStatus.SKIPPED, "b": StepStatus.SKIPPED}


def test_independent_steps_are_ready_together_in_the_order_of_the_flow():
    plan = plan_of([ref("c"), ref("a"), ref("b")], step("a"), step("b"), step("c"))
    assert list(ready(plan)) == ["a", "b", "c"]


def test_a_must_execute_step_and_what_it_needs_run_beside_the_output():
    plan = plan_of(1, step("a"), step("b", ref("a"), mustExecute=True), step("c", mustExecute=False))
    assert ready(plan) == {"a": None}
    plan.record("a", Success(1))
    assert ready(plan) == {"b": 1}
    assert plan.result is None
    plan.record("b", Success(2))
    assert plan.result == Success(1)


def test_a_branch_chosen_by_a_step_is_scheduled_in_an_input():
    chooser = {"$if": ref("c"), "then": ref("t"), "else": ref("e")}
    for value, taken, other in ((True, "t", "e"), (None, "e", "t")):
        plan = plan_of(ref("last"), step("c"), step("t"), step("e"), step("last", chooser))
        assert list(ready(plan)) == ["c"]
        plan.record("c", Success(value))
        assert list(ready(plan)) == [taken]
        plan.record(taken, Success("chosen"))
        assert ready(plan) == {"last": "chosen"}
        plan.record("last", Success("end"))
        assert plan.result == Success("end")
        assert plan.statuses()[other] is StepStatus.SKIPPED


def test_a_branch_chosen_by_a_step_is_scheduled_in_the_output():
    plan = plan_of(
        {"$if": ref("c", "$.ok"), "then": ref("t"), "else": ref("e")}, step("c"), step("t"), step("e")
    )
    assert list(ready(plan)) == ["c"]
    plan.record("c", Success({"ok": False}))
    assert list(ready(plan)) == ["e"]
    plan.record("e", Success(3))
    assert plan.result == Success(3)


def test_a_coalesce_over_steps_runs_them_one_after_the_other():
    plan = plan_of({"$coalesce": [ref("a"), ref("b"), ref("c")]}, step("a"), step("b"), step("c"))
    assert list(ready(plan)) == ["a"]
    plan.record("a", Success(None))
    assert list(ready(plan)) == ["b"]
    plan.record("b", Success(2))
    assert plan.result == Success(2)


def test_a_condition_that_failed_takes_the_other_branch():
    plan = plan_of({"$if": ref("a"), "then": 1, "else": ref("b")}, step("a"), step("b"))
    assert list(ready(plan)) == ["a"]
    plan.record("a", Failed(BOOM))
    assert list(ready(plan)) == ["b"]
    plan.record("b", Success(2))
    assert plan.result == Success(2)


# Failures


def test_a_failure_reaches_the_output_through_steps_that_then_do_not_run():
    plan = plan_of(ref("c"), step("a"), step("b", [ref("a")]), step("c", {"x": ref("b", "$.y")}))
    assert list(ready(plan)) == ["a"]
    plan.record("a", Failed(BOOM))
    assert ready(plan) == {}
    assert plan.result == Failed(BOOM)
    assert set(plan.statuses().values()) == {StepStatus.FAILED}


def test_nothing_fails_fast():
    plan = plan_of([ref("a"), ref("c")], step("a"), step("b"), step("c", ref("b")))
    assert list(ready(plan)) == ["a", "b"]
    plan.record("a", Failed(BOOM))
    assert plan.result is None
    plan.record("b", Success(1))
    assert ready(plan) == {"c": 1}
    assert plan.result is None
    plan.record("c", Failed(OTHER))
    assert plan.result == Failed(BOOM)


def test_a_step_whose_input_fails_fails_without_running():
    plan = plan_of(ref("a"), step("a", {"$input": "$.gone"}), input={})
    assert ready(plan) == {}
    assert plan.result is not None
    assert plan.result.error.code == -32200
    assert plan.result_of("a") == plan.result


@pytest.mark.parametrize("default", [{"defaultValue": {"x": 1}}, {}])
def test_use_default_turns_whatever_the_execution_failed_with_into_the_default(default):
    plan = plan_of(ref("a"), step("a", onError={"action": "useDefault", **default}))
    ready(plan)
    plan.record("a", Failed(FlowError(-32300, "worker died")))
    value = default.get("defaultValue")
    assert plan.result == plan.result_of("a") == Success(value)
    assert plan.statuses() == {"a": StepStatus.COMPLETED}


def test_use_default_does_not_hide_that_the_input_could_not_be_had():
    on_error = {"action": "useDefault", "defaultValue": 1}
    plan = plan_of(
        {"$if": ref("a"), "then": "a", "else": ref("c")},
        step("a", {"$input": "$.gone"}, onError=on_error),
        step("b"),
        step("c", ref("b"), onError=on_error),
        input={},
    )
    assert list(ready(plan)) == ["b"]
    plan.record("b", Failed(BOOM))
    assert plan.result == Failed(BOOM)
    assert set(plan.statuses().values()) == {StepStatus.FAILED}


def test_retry_is_the_executors_affair_and_the_recorded_failure_is_final():
    plan = plan_of(ref("a"), step("a", onError={"action": "retry"}))
    ready(plan)
    plan.record("a", Failed(BOOM))
    assert plan.result == Failed(BOOM)


def test_a_failed_must_execute_step_fails_the_run():
    plan = plan_of(1, step("a"), step("b", mustExecute=True), step("c", mustExecute=True))
    assert list(ready(plan)) == ["b", "c"]
    plan.record("c", Failed(OTHER))
    plan.record("b", Failed(BOOM))
    assert plan.result == Failed(BOOM)


def test_a_must_execute_step_whose_input_fails_fails_the_run():
    plan = plan_of(1, step("a", {"$variable": "gone"}, mustExecute=True))
    assert isinstance(plan.result, Failed)
    assert plan.result.error.code == -32200


def test_the_outputs_own_failure_goes_before_that_of_a_must_execute_step():
    plan = plan_of(ref("a"), step("a"), step("b", mustExecute=True))
    ready(plan)
    plan.record("b", Failed(OTHER))
    plan.record("a", Failed(BOOM))
    assert plan.result == Failed(BOOM)


def test_a_must_execute_step_with_a_default_does_not_fail_the_run():
    plan = plan_of(1, step("a", mustExecute=True, onError={"action": "useDefault"}))
    ready(plan)
    plan.record("a", Failed(BOOM))
    assert plan.result == Success(1)


# Variables


def test_variables_come_from_the_run_then_the_schema_then_the_inline_default():
    schemas = {
        "properties": {
            "variables": {
                "properties": {
                    "given": {"type": "string", "default": "schema"},
                    "defaulted": {"type": "string", "default": "schema"},
                    "inline": {"type": "object"},
                }
            }
        }
    }
    names = ("given", "defaulted", "inline")
    output = {name: {"$variable": name, "default": "inline"} for name in names}
    plan = plan_of(output, variables={"given": "run"}, schemas=schemas)
    assert plan.result == Success({"given": "run", "defaulted": "schema", "inline": "inline"})


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, ""),
        ({"type": "number"}, 0),
        ({"type": "integer"}, 0),
        ({"type": "boolean"}, False),
        ({"type": ["string", "null"]}, None),
        ({"type": "string", "default": None}, None),
    ],
)
def test_a_variable_that_is_not_required_has_an_implicit_default_by_its_type(schema, value):
    variables = {"properties": {"v": schema}}
    plan = plan_of({"$variable": "v"}, schemas={"properties": {"variables": variables}})
    assert plan.result == Success(value)


@pytest.mark.parametrize("schema", [{"type": "object"}, {"type": "array"}, {"type": ["string"]}, {}, True])
def test_other_types_have_no_implicit_default(schema):
    variables = {"properties": {"v": schema}}
    plan = plan_of({"$variable": "v"}, schemas={"properties": {"variables": variables}})
    assert plan.result is not None
    assert plan.result.error.code == -32200


def test_a_required_variable_has_no_implicit_default_but_may_have_an_explicit_one():
    variables = {"properties": {"v": {"type": "string"}, "w": {"default": 1}}, "required": ["v", "w"]}
    schemas = {"properties": {"variables": variables}}
    assert isinstance(plan_of({"$variable": "v"}, schemas=schemas).result, Failed)
    assert plan_of({"$variable": "w"}, schemas=schemas).result == Success(1)


# Values, states and misuse


def test_values_are_shared_not_copied():
    big = {"list": [1]}
    plan = plan_of([ref("a"), {"$input": "$"}], step("a", {"$input": "$"}), input=big)
    [started] = plan.take_ready()
    assert started.input is big
    plan.record("a", Success(big))
    assert plan.result is not None
    assert all(value is big for value in plan.result.result)


def test_statuses_follow_a_step_through_its_life():
    plan = plan_of(ref("b"), step("a"), step("b", ref("a")), step("c"))
    states = StepStatus
    assert plan.statuses() == {"a": states.RUNNABLE, "b": states.BLOCKED, "c": states.BLOCKED}
    plan.take_ready()
    assert plan.statuses()["a"] is states.RUNNING
    plan.record("a", Success(1))
    assert plan.statuses() == {"a": states.COMPLETED, "b": states.RUNNABLE, "c": states.BLOCKED}
    plan.take_ready()
    plan.record("b", Failed(BOOM))
    assert plan.statuses() == {"a": states.COMPLETED, "b": states.FAILED, "c": states.SKIPPED}


def test_recording_a_step_that_is_not_running_is_refused_and_changes_nothing():
    plan = plan_of(ref("bet"), step("alpha"), step("bet", ref("alpha")))
    for name, why in (
        ("alpha", 'step "alpha" was not started: it is runnable'),
        ("bet", 'step "bet" was not started: it is blocked'),
        ("alhpa", 'the flow has no step "alhpa"; did you mean "alpha"?'),
    ):
        with pytest.raises(LocalProtocolError) as caught:
            plan.record(name, Success(1))
        assert str(caught.value) == why
    ready(plan)
    plan.record("alpha", Success(1))
    with pytest.raises(LocalProtocolError, match="has its result already"):
        plan.record("alpha", Success(2))
    assert ready(plan) == {"bet": 1}


def test_a_reference_to_no_step_fails_with_32201():
    flow = Flow(steps=(Step(id="alpha", component="/x"),), output=StepRef("alhpa"))
    result = Plan(PreparedFlow(flow), None).result
    assert result == Failed(FlowError(-32201, 'the flow has no step "alhpa"; did you mean "alpha"?'))


def test_steps_that_wait_for_each_other_are_an_error_at_once_not_a_hang():
    ring = (
        Step(id="a", component="/x", input=StepRef("c")),
        Step(id="b", component="/x", input=StepRef("a")),
        Step(id="c", component="/x", input=StepRef("b")),
    )
    with pytest.raises(LocalProtocolError, match="wait for each other in a ring: a, b, c"):
        Plan(PreparedFlow(Flow(steps=ring, output=StepRef("b"))), None)


def test_a_ring_that_a_choice_leads_into_is_an_error_when_it_does():
    chosen = If(StepRef("first"), then=StepRef("a"))
    steps = (
        Step(id="first", component="/x"),
        Step(id="a", component="/x", input=StepRef("b")),
        Step(id="b", component="/x", input=StepRef("a")),
    )
    plan = Plan(PreparedFlow(Flow(steps=steps, output=chosen)), None)
    assert list(ready(plan)) == ["first"]
    with pytest.raises(LocalProtocolError, match="wait for each other in a ring: a, b"):
        plan.record("first", Success(1))


def test_a_plan_is_rebuilt_by_replaying_its_results():
    steps = (step("a"), step("b", ref("a")), step("c", {"$if": ref("b"), "then": ref("d")}), step("e"))
    flow = flow_from_json({"steps": [step("d"), *steps], "output": [ref("c"), ref("e")]})
    results = [
        ("a", Success(1)),
        ("e", Failed(BOOM)),
        ("b", Success(True)),
        ("d", Success(4)),
        ("c", Success(5)),
    ]
    original = Plan(PreparedFlow(flow), None)
    original.take_ready()
    for count, (name, result) in enumerate(results):
        original.record(name, result)
        original.take_ready()
        rebuilt = Plan(PreparedFlow(flow), None)
        rebuilt.take_ready()
        for done, outcome in results[: count + 1]:
            rebuilt.record(done, outcome)
            rebuilt.take_ready()
        assert rebuilt.statuses() == original.statuses()
        assert rebuilt.running == original.running
        assert rebuilt.result == original.result
    assert original.result == Failed(BOOM)


# Size

N = 10_000


def run_through(flow, result):
    """Run a plan to its end; the seconds it took and how many steps ran."""
    before = time.perf_counter()
    plan = Plan(PreparedFlow(flow), {})
    ran = 0
    while plan.result is None:
        for started in plan.take_ready():
            plan.record(started.step.id, result)
            ran += 1
    return time.perf_counter() - before, ran


SHAPES = {
    "chain": ([step(f"s{i}", {"x": ref(f"s{i - 1}")} if i else {}) for i in range(N)], ref(f"s{N - 1}")),
    "fan": ([step(f"s{i}") for i in range(N)], [ref(f"s{i}") for i in range(N)]),
    "coalesce": ([step(f"s{i}") for i in range(N)], {"$coalesce": [ref(f"s{i}") for i in range(N)]}),
    "choices": (
        [step(f"s{i}") for i in range(N)],
        [
            {"$if": ref(f"s{i}"), "then": 1, "else": {"$if": ref(f"s{N - i - 1}"), "then": 2}}
            for i in range(N)
        ],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_ten_thousand_steps_are_planned_in_linear_time(shape):
    steps, output = SHAPES[shape]
    flow = flow_from_json({"steps": steps, "output": output})
    taken, ran = run_through(flow, Success(None))
    assert ran == N
    assert taken < 2  # about 0.1 s; a plan that rescans takes minutes


def test_a_failure_at_the_head_of_a_long_chain_settles_all_of_it():
    steps, output = SHAPES["chain"]
    plan = Plan(PreparedFlow(flow_from_json({"steps": steps, "output": output})), {})
    plan.take_ready()
    plan.record("s0", Failed(BOOM))
    assert plan.result == Failed(BOOM)


def test_an_input_that_cannot_be_evaluated_names_its_step_and_a_failed_step_is_quoted_unchanged() -> None:
    flow = flow_from_json(
        {
            "steps": [
                {"id": "first", "component": "/x", "input": {"$input": "absent"}},
                {"id": "second", "component": "/x", "input": {"$step": "first"}},
            ],
            "output": {"$step": "second"},
        }
    )
    plan = Plan(PreparedFlow(flow), {})
    assert isinstance(plan.result, Failed)
    assert plan.result.error.message.startswith("the input of step first: ")
    assert "second" not in plan.result.error.message
