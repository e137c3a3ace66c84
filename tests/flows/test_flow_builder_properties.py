"""A built flow against one written by hand, and its runs against plain recursion in Python."""

from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow_trio.flows.builder import FlowBuilder, Value, coalesce, if_, literal
from stepflow_trio.flows.model import Fail, Retry, UseDefault
from stepflow_trio.flows.paths import render_path
from stepflow_trio.flows.plan import Plan, PreparedFlow
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.flows.results import Failed, FlowError, Success

KEYS = ["a", "a.b", "it's", 'say "x"', "[0]", "", "$"]
TREE = {key: [{other: f"{key}/{other}" for other in KEYS}, None, False, 0] for key in KEYS}
"""What the input, each variable that is set, and each step's result are."""

PATHS = st.one_of(
    st.just([]),
    st.tuples(st.sampled_from([*KEYS, "none"])).map(list),
    st.tuples(st.sampled_from(KEYS), st.integers(0, 4)).map(list),
    st.tuples(st.sampled_from(KEYS), st.just(0), st.sampled_from(KEYS)).map(list),
)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-1, 1) | st.sampled_from(["", "x", "$"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from([*KEYS, "$if", "then"]), inner, max_size=2)
    ),
    max_leaves=4,
)
PLAIN = DATA.filter(lambda data: "$if" not in repr(data))


def trees(leaves):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(lambda items: ("list", items)),
            st.dictionaries(st.sampled_from(KEYS), inner, max_size=3).map(lambda fields: ("dict", fields)),
            st.tuples(st.just("if"), inner, inner, inner),
            st.tuples(st.just("if"), inner, inner, st.none()),
            st.lists(inner, max_size=3).map(lambda items: ("coalesce", items)),
            st.tuples(st.just("variable"), st.sampled_from(["v", "gone"]), PATHS, inner),
        ),
        max_leaves=6,
    )


def leaves(steps):
    kinds = [
        st.tuples(st.just("data"), PLAIN),
        st.tuples(st.just("literal"), DATA),
        st.tuples(st.just("input"), PATHS),
        st.tuples(st.just("variable"), st.sampled_from(["v", "gone"]), PATHS, st.none()),
    ]
    if steps:
        kinds.append(st.tuples(st.just("step"), st.sampled_from(steps), PATHS))
    return st.one_of(kinds)


POLICIES = st.sampled_from([None, Fail(True), Retry(0), Retry(5), UseDefault(), UseDefault({"k": [1]})])


@st.composite
def flows(draw):
    """The inputs and policies of some steps by id, and an output."""
    steps = {}
    for number in range(draw(st.integers(0, 4))):
        tree, policy = draw(trees(leaves(list(steps)))), draw(POLICIES)
        steps[f"s.{number}'"] = tree, policy, draw(st.sampled_from([None, True, False]))
    return steps, draw(trees(leaves(list(steps))))


def built_value(tree, builder):
    """A tree by means of the builder."""
    match tree:
        case "data", value:
            return value
        case "literal", value:
            return literal(value)
        case "input", path:
            return inside(builder.input, path)
        case "step", id, path:
            return inside(builder.step(id) if len(path) % 2 else Value.step(id), path)
        case "variable", name, path, None:
            return inside(builder.variable(name), path)
        case "variable", name, path, default:
            return inside(builder.variable(name, default=built_value(default, builder)), path)
        case "if", condition, then, None:
            return if_(built_value(condition, builder), built_value(then, builder))
        case "if", condition, then, otherwise:
            return if_(*(built_value(part, builder) for part in (condition, then, otherwise)))
        case "coalesce", items:
            return coalesce(*(built_value(item, builder) for item in items))
        case "list", items:
            return tuple(built_value(item, builder) for item in items)
        case "dict", fields:
            return {key: built_value(member, builder) for key, member in fields.items()}


def inside(reference, path):
    for part in path:
        reference = reference[part]
    return reference


def written_value(tree):
    """A tree as a flow writes it."""
    match tree:
        case "data", value:
            return value
        case "literal", value:
            return {"$literal": value}
        case "input", path:
            return {"$input": render_path(tuple(path))}
        case "step", id, path:
            return {"$step": id, **({"path": render_path(tuple(path))} if path else {})}
        case "variable", name, path, default:
            written = {"$variable": render_path((name, *path))}
            return written if default is None else {**written, "default": written_value(default)}
        case "if", condition, then, otherwise:
            written = {"$if": written_value(condition), "then": written_value(then)}
            return written if otherwise is None else {**written, "else": written_value(otherwise)}
        case "coalesce", items:
            return {"$coalesce": [written_value(item) for item in items]}
        case "list", items:
            return [written_value(item) for item in items]
        case "dict", fields:
            return {key: written_value(member) for key, member in fields.items()}


class Failure(Exception):
    pass


def value_of(tree, steps):
    """What a tree comes to where every step that is in ``steps`` comes to what it says, or fails."""
    match tree:
        case (("data" | "literal"), value):
            return value
        case "input", path:
            return found(TREE, path)
        case "step", id, path:
            result = settled(id, steps)
            return None if result is None else found(result, path)
        case "variable", name, path, default:
            try:
                if name == "v":
                    return found(TREE, path)
                raise Failure
            except Failure:
                if default is None:
                    raise
            return value_of(default, steps)
        case "if", condition, then, otherwise:
            try:
                holds = value_of(condition, steps)
            except Failure:
                holds = False
            if holds is not None and holds is not False:
                return value_of(then, steps)
            return None if otherwise is None else value_of(otherwise, steps)
        case "coalesce", items:
            for item in items:
                if (value := value_of(item, steps)) is not None:
                    return value
            return None
        case "list", items:
            return [value_of(item, steps) for item in items]
        case "dict", fields:
            return {key: value_of(member, steps) for key, member in fields.items()}


def found(value, path):
    for part in path:
        if not isinstance(value, list if isinstance(part, int) else dict):
            raise Failure
        try:
            value = value[part]
        except LookupError:
            raise Failure from None
    return value


def settled(id, steps):
    """A step's result: the tree where its input is a list or an object, null for null, or else it fails."""
    tree, policy, _ = steps[id]
    input = value_of(tree, steps)
    if isinstance(input, (list, dict)):
        return TREE
    if input is None:
        return None
    if isinstance(policy, UseDefault):
        return policy.value
    raise Failure


def run(flow):
    plan = Plan(PreparedFlow(flow, {"v": TREE}), TREE)
    while plan.result is None:
        for ready in plan.take_ready():
            if isinstance(ready.input, (list, dict)):
                result = Success(TREE)
            elif ready.input is None:
                result = Success(None)
            else:
                result = Failed(FlowError(-32100, "boom"))
            plan.record(ready.step.id, result)
    return plan.result


@settings(max_examples=100, deadline=None)
@given(flows())
def test_a_built_flow_is_the_written_one_reads_back_equal_and_runs_as_python_would(drawn):
    steps, output = drawn
    builder = FlowBuilder(name="n", description="d")
    written = {"name": "n", "description": "d", "steps": [], "output": written_value(output)}
    for id, (tree, policy, must_execute) in steps.items():
        builder.add_step(
            id, component="/x", input=built_value(tree, builder), on_error=policy, must_execute=must_execute
        )
        step = {"id": id, "component": "/x", "input": written_value(tree), "mustExecute": must_execute}
        written["steps"].append(step if policy is None else {**step, "onError": policy.to_json()})
    flow = builder.set_output(built_value(output, builder)).build()

    assert flow == flow_from_json(written)
    assert flow_from_json(flow.to_json()) == flow
    assert FlowBuilder.load(flow).build() == flow
    try:
        expected = Success(value_of(output, steps))
        for id, (_, _, must_execute) in steps.items():
            if must_execute:
                settled(id, steps)
    except Failure:
        assert isinstance(run(flow), Failed)
    else:
        assert run(flow) == expected
