"""The plan against a reference that is too simple to be wrong: plain recursion over the flow's JSON."""

from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow_trio.flows.plan import Plan, PreparedFlow, StepStatus
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.flows.results import Failed, FlowError, Success

INPUT = {"yes": True, "no": False, "none": None, "text": "t"}
VARIABLES = {"v": {"k": 1}}


class Failure(Exception):
    def __init__(self, error):
        self.error = error


class Reference:
    """Runs a flow by recursion, running each step when somebody reads it."""

    def __init__(self, flow, outcomes):
        self.flow = flow
        self.steps = {step["id"]: step for step in flow["steps"]}
        self.outcomes = outcomes
        self.settled = {}
        self.executed = set()

    def run(self):
        for step in self.flow["steps"]:
            if step.get("mustExecute"):
                self.settle(step["id"])
        try:
            output = Success(self.value(self.flow["output"]))
        except Failure as failure:
            return Failed(failure.error)
        for step in self.flow["steps"]:
            if step.get("mustExecute") and isinstance(self.settled[step["id"]], Failed):
                return self.settled[step["id"]]
        return output

    def settle(self, name):
        if name not in self.settled:
            step = self.steps[name]
            try:
                self.value(step["input"])
                self.executed.add(name)
                result = self.outcomes[name]
                if isinstance(result, Failed) and step.get("onError", {}).get("action") == "useDefault":
                    result = Success(step["onError"].get("defaultValue"))
            except Failure as failure:
                result = Failed(failure.error)
            self.settled[name] = result
        return self.settled[name]

    def value(self, x):
        if isinstance(x, list):
            return self.members(x)
        if not isinstance(x, dict):
            return x
        if "$if" in x:
            try:
                condition = self.value(x["$if"])
            except Failure:
                condition = False
            holds = condition is not None and condition is not False
            return self.value(x["then"] if holds else x.get("else"))
        if "$coalesce" in x:
            for item in x["$coalesce"]:
                value = self.value(item)
                if value is not None:
                    return value
            return None
        if "$step" in x:
            result = self.settle(x["$step"])
            if isinstance(result, Failed):
                raise Failure(result.error)
            return None if result.result is None else self.at(result.result, x.get("path"))
        if "$input" in x:
            return self.at(INPUT, x["$input"])
        if "$variable" in x:
            if x["$variable"] == "v":
                return VARIABLES["v"]
            if "default" in x:
                return self.value(x["default"])
            raise Failure(FlowError(-32200, ""))
        return dict(zip(x, self.members(list(x.values())), strict=True))

    def members(self, members):
        values, failures = [], []
        for member in members:
            try:
                values.append(self.value(member))
            except Failure as failure:
                failures.append(failure)
        if failures:
            raise failures[0]
        return values

    def at(self, value, path):
        if path is None:
            return value
        if not isinstance(value, dict) or path not in value:
            raise Failure(FlowError(-32200, ""))
        return value[path]


class Opcodes:
    """Choices out of a string of bytes: far faster to draw than nested strategies, and it shrinks as well."""

    def __init__(self, data):
        self.data = iter(data)

    def choose(self, *options):
        return options[next(self.data, 0) % len(options)]


def expression(ops, earlier, depth=3):
    """An expression that may refer to the steps in ``earlier``."""
    kinds = ["constant", "input", "variable"]
    kinds += ["step", "step path", "step", "step path"] * bool(earlier)
    kinds += ["array", "object", "if", "if else", "coalesce", "default"] * bool(depth)

    def inner():
        return expression(ops, earlier, depth - 1)

    match ops.choose(*kinds):
        case "constant":
            return ops.choose(None, True, False, 0, 1, "")
        case "input":
            return {"$input": ops.choose("yes", "no", "none", "text", "gone")}
        case "variable":
            return {"$variable": ops.choose("v", "gone")}
        case "step":
            return {"$step": ops.choose(*earlier)}
        case "step path":
            return {"$step": ops.choose(*earlier), "path": ops.choose("k", "gone")}
        case "array":
            return [inner() for _ in range(ops.choose(0, 1, 2, 3))]
        case "object":
            return {key: inner() for key in ops.choose("", "a", "ab", "abc")}
        case "if":
            return {"$if": inner(), "then": inner()}
        case "if else":
            return {"$if": inner(), "then": inner(), "else": inner()}
        case "coalesce":
            return {"$coalesce": [inner() for _ in range(ops.choose(0, 1, 2, 3))]}
        case _:
            return {"$variable": "gone", "default": inner()}


def draw_flow(data):
    """A flow, and what each of its steps comes to if it runs."""
    ops = Opcodes(data)
    steps, outcomes = [], {}
    for index in range(ops.choose(0, 1, 2, 3, 4, 5, 6, 7)):
        name = f"s{index}"
        default = {"action": "useDefault", **ops.choose({}, {"defaultValue": {"k": 0}})}
        steps.append(
            {
                "id": name,
                "component": "/x",
                "input": expression(ops, list(outcomes)),
                "mustExecute": ops.choose(False, False, False, True),
                **ops.choose({}, {}, {"onError": default}),
            }
        )
        outcomes[name] = ops.choose(
            *(Success(value) for value in (None, False, True, 0, {"k": 5}, {"k": None}, [1])),
            *(Failed(FlowError(code, "failed")) for code in (1, 2, 3)),
        )
    return {"steps": steps, "output": expression(ops, list(outcomes))}, outcomes


def code_of(result):
    return result.error.code if isinstance(result, Failed) else result


@settings(max_examples=1500, deadline=None)
@given(st.binary(min_size=60, max_size=200), st.binary(max_size=30))
def test_a_plan_runs_the_steps_and_has_the_result_of_plain_recursion_in_any_order(flow_data, order_data):
    value, outcomes = draw_flow(flow_data)
    order = Opcodes(order_data)
    reference = Reference(value, outcomes)
    expected = reference.run()

    flow = flow_from_json(value)
    plan = Plan(PreparedFlow(flow, VARIABLES), INPUT)
    waiting, inputs, history = [], {}, []
    while plan.result is None:
        if not waiting or order.choose(True, True, False):
            for started in plan.take_ready():
                assert started.step.id not in inputs
                inputs[started.step.id] = started.input
                waiting.append(started.step.id)
        assert plan.running == set(waiting)
        name = order.choose(*waiting)
        waiting.remove(name)
        plan.record(name, outcomes[name])
        history.append(name)

    assert code_of(plan.result) == code_of(expected)
    assert set(inputs) == reference.executed
    assert not plan.running
    for name, settled in reference.settled.items():
        assert code_of(plan.result_of(name)) == code_of(settled)
    for name, input_value in inputs.items():
        assert input_value == reference.value(reference.steps[name]["input"])
    states = plan.statuses()
    assert {n for n, s in states.items() if s is StepStatus.SKIPPED} == set(outcomes) - set(reference.settled)

    rebuilt = Plan(PreparedFlow(flow, VARIABLES), INPUT)
    for name in history:
        rebuilt.take_ready()
        rebuilt.record(name, outcomes[name])
    assert rebuilt.result == plan.result
    assert rebuilt.statuses() == states
