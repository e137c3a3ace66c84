import pytest

from stepflow_trio.flows.diagnostics import DiagnosticKind as Kind
from stepflow_trio.flows.reader import examine_flow, examine_flow_json

GOOD = {"steps": [{"id": "a", "component": "/x"}], "output": {"$step": "a"}}


def found(component, given, *, level=None):
    step = {"id": "s", "component": component, "input": given}
    reading = examine_flow_json({"name": "n", "description": "d", "steps": [step], "output": {"$step": "s"}})
    return [(d.kind, d.path[3:], d.message) for d in reading.diagnostics if level in (None, d.level)]


@pytest.mark.parametrize(
    ("component", "field", "beside"),
    [
        ("/builtin/put_blob", "data", {"blob_type": "flow"}),
        ("/put_blob", "data", {"blob_type": {"$literal": "Flow"}}),
        ("/builtin/map", "workflow", {"items": {"$input": "$"}}),
        ("/builtin/iterate", "flow", {"initial_input": 1}),
    ],
)
@pytest.mark.parametrize("is_wrapped", [True, False])
def test_a_flow_that_is_written_out_for_a_builtin_component_is_checked(component, field, beside, is_wrapped):
    def given(flow):
        return {**beside, field: {"$literal": flow} if is_wrapped else flow}

    at = (field, "$literal") if is_wrapped else (field,)
    plain = {"steps": [{"id": "a", "component": "/x", "mustExecute": True}]}
    assert found(component, given(GOOD if is_wrapped else plain)) == []
    assert found(component, given({"steps": [{"id": "a"}]}), level="error") == [
        (
            Kind.INVALID_SUBFLOW_LITERAL,
            (*at, "steps", 0),
            'this cannot be read as a flow: a step needs a "component"',
        )
    ]


def test_what_the_public_releases_say_of_any_flow_is_said_of_an_inner_one_as_well():
    inner = {
        "steps": [*GOOD["steps"], {"id": "a", "component": "x/y", "compnent": 1}],
        "output": {"$step": "b"},
    }
    kinds = [kind for kind, _, _ in found("/builtin/map", {"workflow": {"$literal": inner}})]
    assert {Kind.DUPLICATE_STEP_ID, Kind.UNDEFINED_STEP_REFERENCE, Kind.INVALID_COMPONENT} < set(kinds)
    assert Kind.MISSING_FLOW_NAME not in kinds


def test_what_is_found_inside_has_its_place_in_the_text():
    text = """\
name: n
description: d
steps:
- id: put
  component: /builtin/put_blob
  input:
    blob_type: flow
    data:
      $literal:
        schemas: {properties: {input: {type: strng}}}
        steps:
        - {id: a, component: /x, onSkip: 1}
        output: {$step: b}
output: {$step: put}
"""
    places = [(str(d.place), d.kind) for d in examine_flow(text, name="f.yaml").diagnostics if d.code != 1000]
    assert places == [
        ("f.yaml:10:46", Kind.INVALID_SCHEMA),
        ("f.yaml:12:34", Kind.OLD_SYNTAX),
        ("f.yaml:13:25", Kind.UNDEFINED_STEP_REFERENCE),
    ]


def test_flows_inside_flows_inside_flows_are_checked():
    flow = {"steps": 1}
    for _ in range(10):
        step = {"id": "m", "component": "/builtin/map", "input": {"workflow": {"$literal": flow}}}
        flow = {"steps": [step], "output": {"$step": "m"}}
    [error] = [d for d in examine_flow_json(flow).diagnostics if d.level != "warning"]
    assert error.kind is Kind.INVALID_SUBFLOW_LITERAL
    assert len(error.path) == 10 * 5 + 1


@pytest.mark.parametrize(
    ("component", "given"),
    [
        ("/builtin/put_blob", {"data": {"steps": 1}, "blob_type": "data"}),
        ("/builtin/put_blob", {"data": {"steps": 1}, "blob_type": {"$input": "$.type"}}),
        ("/builtin/put_blob", {"data": {"$input": "$.flow"}, "blob_type": "flow"}),
        ("/builtin/put_blob", {"$literal": {"data": {"steps": 1}, "blob_type": "flow"}}),
        ("/builtin/put_blob", {"$input": "$"}),
        ("/builtin/eval", {"flow_id": {"steps": 1}}),
        ("/mine/map", {"workflow": {"steps": 1}}),
    ],
)
def test_what_need_not_be_a_flow_is_not_read_as_one(component, given):
    assert found(component, given) == []
