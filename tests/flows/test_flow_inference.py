import jsonschema_rs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow_trio.flows.diagnostics import DiagnosticKind as Kind
from stepflow_trio.flows.inference import infer_schemas
from stepflow_trio.flows.reader import examine_flow, flow_from_json
from stepflow_trio.flows.schemas import FlowSchemas
from stepflow_trio.flows.type_check import check_types
from stepflow_trio.protocol.payloads import ComponentInfo

STRING, INTEGER, NUMBER, NULL = ({"type": name} for name in ("string", "integer", "number", "null"))


def takes(input_schema, output_schema=None):
    return ComponentInfo(component="/c", input_schema=input_schema, output_schema=output_schema)


def fields(*required, **properties):
    return {"type": "object", "properties": properties, "required": [*required]}


MESSAGE = {
    "$defs": {"Message": fields("text", text=STRING, reply={"$ref": "#/$defs/Message"})},
    "$ref": "#/$defs/Message",
}
COMPONENTS = {
    "/x/add": takes(fields("a", "b", a=INTEGER, b=NUMBER), INTEGER),
    "/x/greet": takes(STRING, STRING),
    "/x/message": takes({"type": "array", "items": {"$ref": "#/$defs/M"}, "$defs": {"M": STRING}}, MESSAGE),
    "/x/untyped": takes(None),
}


def infer(steps=(), output=None, schemas=None):
    value = {"steps": list(steps), "output": output}
    if schemas is not None:
        value["schemas"] = schemas
    flow = flow_from_json(value)
    inference = infer_schemas(flow, check_types(flow, COMPONENTS))
    completed = msgspec.structs.replace(flow, schemas=inference.schemas).to_json()
    # What was inferred is a flow again, and its schemas can be used.
    FlowSchemas(flow_from_json(completed))
    return inference


def inferred_input(*steps, output=None):
    """The input's schema; a step is a component and its input."""
    inference = infer(
        [
            {"id": f"s{i}", "component": component, "input": given}
            for i, (component, given) in enumerate(steps)
        ],
        output=[output, *({"$step": f"s{i}"} for i in range(len(steps)))],
    )
    assert inference.conflicts == ()
    return (inference.schemas or {}).get("properties", {}).get("input")


def test_what_a_flow_does_not_declare_is_filled_in():
    inference = infer(
        [
            {"id": "sum", "component": "/x/add", "input": {"a": {"$input": "$.n"}, "b": 1}},
            {"id": "other", "component": "/x/untyped"},
        ],
        output={"sum": {"$step": "sum"}, "unit": "m", "other": {"$step": "other"}},
    )
    assert inference.schemas == {
        "type": "object",
        "properties": {
            "input": {"type": "object", "properties": {"n": INTEGER}, "required": ["n"]},
            "output": {
                "type": "object",
                "properties": {"sum": INTEGER, "unit": STRING, "other": {}},
                "required": ["sum", "unit", "other"],
            },
            "steps": {"type": "object", "properties": {"sum": INTEGER}},
        },
    }


def test_what_a_flow_declares_stays_as_it_is():
    schemas = {
        "type": "object",
        "$defs": {"Text": STRING},
        "properties": {
            "input": {"properties": {"n": {}}},
            "output": {"$ref": "#/schemas/$defs/Text"},
            "variables": {"properties": {"v": STRING}},
            "steps": {"type": "object", "properties": {"a": {"$ref": "#/schemas/$defs/Text"}}},
        },
    }
    steps = [{"id": "a", "component": "/x/greet", "input": {"$input": "$.n"}}]
    assert infer(steps, {"$step": "a"}, schemas).schemas == schemas


def test_nothing_is_made_of_nothing():
    assert infer().schemas == {"type": "object", "properties": {"output": NULL}}
    flow = flow_from_json({"steps": [{"id": "a", "component": "/x/untyped"}], "output": {"$step": "a"}})
    assert infer_schemas(flow, check_types(flow, COMPONENTS)).schemas is None


def test_definitions_of_components_become_the_flow_s():
    inference = infer(
        [{"id": "m", "component": "/x/message", "input": {"$input": "$.texts"}}],
        {"$step": "m", "path": "reply"},
        {"$defs": {"Message": NULL}, "properties": {"variables": {"properties": {}}}},
    )
    assert inference.schemas["$defs"] == {
        "Message": NULL,
        "M": STRING,
        "Message-2": fields("text", text=STRING, reply={"$ref": "#/schemas/$defs/Message-2"}),
    }
    assert inference.schemas["properties"]["steps"]["properties"]["m"] == {
        "$ref": "#/schemas/$defs/Message-2"
    }
    assert inference.schemas["properties"]["input"]["properties"]["texts"] == {
        "type": "array",
        "items": {"$ref": "#/schemas/$defs/M"},
    }


def test_a_definition_of_the_flow_s_own_keeps_its_place():
    schemas = {
        "$defs": {"Text": STRING},
        "properties": {"steps": {"properties": {"a": fields("t", t={"$ref": "#/$defs/Text"})}}},
    }
    inference = infer([{"id": "a", "component": "/x/untyped"}], {"x": {"$step": "a", "path": "t"}}, schemas)
    assert inference.schemas["properties"]["output"] == fields("x", x={"$ref": "#/schemas/$defs/Text"})
    assert inference.schemas["$defs"] == {"Text": STRING}


@pytest.mark.parametrize(
    ("steps", "schema"),
    [
        ([("/x/untyped", 1)], None),
        ([("/x/greet", {"$input": "$"})], STRING),
        ([("/x/greet", {"$input": "$.a.b"})], fields("a", a=fields("b", b=STRING))),
        ([("/x/untyped", {"$input": "$.a"})], fields("a", a={})),
        (
            [("/x/add", {"a": {"$input": "$.n"}, "b": {"$input": "$.m"}})],
            fields("n", "m", n=INTEGER, m=NUMBER),
        ),
        # Of several demands the narrowest counts, and both where neither is.
        (
            [("/x/add", {"a": 1, "b": {"$input": "$.n"}}), ("/x/add", {"a": {"$input": "$.n"}, "b": 1})],
            fields("n", n=INTEGER),
        ),
        (
            [("/x/add", {"a": {"$input": "$.n"}, "b": 1}), ("/x/add", {"a": 1, "b": {"$input": "$.n"}})],
            fields("n", n=INTEGER),
        ),
        # What is not always read is not required.
        (
            [("/x/greet", {"$if": {"$input": "$.c"}, "then": {"$input": "$.x"}, "else": {"$input": "$.y"}})],
            {"type": "object", "properties": {"c": {}, "x": STRING, "y": STRING}},
        ),
        (
            [("/x/greet", {"$coalesce": [{"$input": "$.x"}, {"$input": "$.y"}]})],
            fields("x", x={"type": ["string", "null"]}, y=STRING),
        ),
        (
            [("/x/greet", {"$variable": "v", "default": {"$input": "$.x"}})],
            {"type": "object", "properties": {"x": STRING}},
        ),
        (
            [("/x/greet", {"$input": "$.l[1]"})],
            fields("l", l={"type": "array", "prefixItems": [{}, STRING], "minItems": 2}),
        ),
        ([("/x/message", [{"$input": "$.x"}])], fields("x", x={"$ref": "#/schemas/$defs/M"})),
    ],
)
def test_the_input_s_schema_is_what_the_components_demand_of_it(steps, schema):
    assert inferred_input(*steps) == schema


def test_what_the_output_is_declared_to_be_is_a_demand_as_well():
    inference = infer((), {"a": {"$input": "$.x"}}, {"properties": {"output": fields("a", a=STRING)}})
    assert inference.schemas["properties"]["input"] == fields("x", x=STRING)


def test_demands_that_no_value_meets_are_a_conflict():
    text = """\
steps:
- {id: a, component: /x/greet, input: {$input: $.n}}
- {id: b, component: /x/add, input: {a: {$input: $.n}, b: {$input: $.m.k}}}
output: [{$step: a}, {$step: b}, {$input: $.m}]
"""
    reading = examine_flow(text, name="flow.yaml")
    flow = reading.runnable_flow()
    [conflict] = map(reading.source.diagnostic, infer_schemas(flow, check_types(flow, COMPONENTS)).conflicts)
    assert conflict.kind is Kind.TYPE_MISMATCH
    assert str(conflict.place) == "flow.yaml:3:50"
    assert conflict.message == (
        'step "b" demands integer of $.n of the input, step "a" string: no value is both'
    )


def test_a_part_and_the_whole_of_the_input_may_both_be_demanded():
    inference = infer(
        [
            {"id": "a", "component": "/x/add", "input": {"$input": "$"}},
            {"id": "b", "component": "/x/greet", "input": {"$input": "$.name"}},
        ],
        [{"$step": "a"}, {"$step": "b"}],
    )
    check = jsonschema_rs.validator_for(inference.schemas["properties"]["input"])
    assert check.is_valid({"a": 1, "b": 1.5, "name": "x"})
    assert not check.is_valid({"a": 1, "b": 1.5})
    assert not check.is_valid({"a": "x", "b": 1.5, "name": "x"})


PATHS = st.sampled_from(["$", "$.a", "$.b", "$.a.c", "$.b[0]", "$.b[1].c", "$.a.c.d"])
GIVEN = st.recursive(
    PATHS.map(lambda path: {"$input": path}) | st.sampled_from([1, "x", None]),
    lambda inner: (
        st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2)
        | st.lists(inner, min_size=1, max_size=2).map(lambda items: {"$coalesce": items})
        | st.builds(lambda c, a, b: {"$if": c, "then": a, "else": b}, inner, inner, inner)
    ),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(COMPONENTS)), GIVEN), max_size=3), GIVEN)
def test_whatever_is_inferred_can_be_enforced_and_stays_when_more_is_inferred(steps, output):
    written = [{"id": f"s{i}", "component": c, "input": given} for i, (c, given) in enumerate(steps)]
    read = [output, *({"$step": f"s{i}"} for i in range(len(steps)))]
    first = infer(written, read).schemas
    again = infer(written, read, first).schemas
    assert {name: again["properties"][name] for name in first["properties"]} == first["properties"]
