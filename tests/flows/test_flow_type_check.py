import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow_trio.flows.diagnostics import DiagnosticKind as Kind
from stepflow_trio.flows.evaluation import Evaluation
from stepflow_trio.flows.reader import examine_flow, flow_from_json
from stepflow_trio.flows.results import Failed, Success
from stepflow_trio.flows.type_check import check_types
from stepflow_trio.flows.types import shown
from stepflow_trio.protocol.payloads import ComponentInfo

STRING, INTEGER, NUMBER, NULL = ({"type": name} for name in ("string", "integer", "number", "null"))


def takes(input_schema, output_schema=None):
    return ComponentInfo(component="/c", input_schema=input_schema, output_schema=output_schema)


def fields(*required, **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": [*required],
        "additionalProperties": False,
    }


USER = {
    "$ref": "#/$defs/User",
    "$defs": {
        "User": {
            "type": "object",
            "properties": {
                "name": STRING,
                "age": {"anyOf": [INTEGER, NULL]},
                "boss": {"anyOf": [{"$ref": "#/$defs/User"}, NULL]},
                "tags": {"type": "array", "items": STRING},
            },
            "required": ["name", "age", "boss", "tags"],
        }
    },
}
COMPONENTS = {
    "/x/add": takes(fields("a", "b", a=INTEGER, b=NUMBER), INTEGER),
    "/x/user": takes({"type": "object"}, USER),
    "/x/greet": takes(STRING, STRING),
    "/x/maybe": takes(None, {"type": ["string", "null"]}),
    "/x/nobody": takes(None, {"anyOf": [USER, NULL], "$defs": USER["$defs"]}),
    "/x/untyped": takes(None),
    "/x/anything": takes({}, {}),
    "/x/wrong": takes({"type": "strng"}, {"properties": []}),
    "/x/shout": takes(fields(loud={"type": "boolean", "default": True}), STRING),
    "/models/{name}": takes(STRING, fields("text", text=STRING)),
}


def check(text, *, strict=False, components=COMPONENTS):
    """What is found in a flow whose steps are named after the lines of ``text``."""
    reading = examine_flow(text, name="flow.yaml")
    types = check_types(reading.runnable_flow(), components, strict=strict)
    return [reading.source.diagnostic(finding) for finding in types.findings]


def found(text, **options):
    return [(d.kind, str(d.place).removeprefix("flow.yaml:"), d.message) for d in check(text, **options)]


def test_a_flow_whose_types_fit_has_nothing_wrong():
    text = """\
schemas:
  properties:
    input: {type: object, properties: {n: {type: integer}}, required: [n]}
    output: {type: string}
steps:
- {id: user, component: /x/user, input: {}}
- {id: sum, component: /x/add, input: {a: {$input: n}, b: {$coalesce: [{$step: user, path: age}, 1.5]}}}
- {id: hi, component: /x/greet, input: {$step: user, path: name}}
- {id: both, component: /x/greet, input: {$if: {$step: sum}, then: {$step: hi}, else: no}}
- {id: model, component: /models/gpt, input: {$step: both}}
output: {$step: model, path: text}
"""
    assert found(text, strict=True) == []


def test_what_does_not_fit_points_at_the_part_of_the_input_that_is_wrong():
    text = """\
steps:
- id: sum
  component: /x/add
  input:
    a: ten
    b:
      $literal: [1]
- id: more
  component: /x/add
  input: {a: {$step: sum}, c: 1}
output: {$step: more}
"""
    assert [(place, message) for _, place, message in found(text)] == [
        ("5:8", 'the input of step "sum" does not fit /x/add: $.a is a string, where an integer fits'),
        ("7:7", 'the input of step "sum" does not fit /x/add: $.b is an array, where a number fits'),
        (
            "10:10",
            'the input of step "more" does not fit /x/add: $ lacks the field "b"',
        ),
        ("10:10", 'the input of step "more" does not fit /x/add: $ has the field "c", which is not known'),
    ]


def test_a_mismatch_has_the_parts_of_its_message_as_data():
    [diagnostic] = check("steps: [{id: a, component: /x/greet, input: 1}]\noutput: {$step: a}")
    assert diagnostic.to_json() == {
        "kind": "typeMismatch",
        "code": 2100,
        "level": "error",
        "formatted": 'the input of step "a" does not fit /x/greet: $ is a number, where a string fits',
        "data": {
            "step_id": "a",
            "expected": "string",
            "actual": "1",
            "detail": "$ is a number, where a string fits",
        },
        "path": "$.steps[0].input",
        "place": {"source": "flow.yaml", "line": 1, "column": 45},
    }


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("{$step: user, path: name}", None),
        ("{$step: user, path: age}", "$ is an integer or null, where a string fits"),
        ("{$step: user, path: $.boss.name}", None),
        ("{$step: maybe}", "$ may be null, where a string fits"),
        ("{$step: nobody, path: name}", "$ may be null, where a string fits"),
        ("{$coalesce: [{$step: nobody, path: name}, x]}", None),
        ("{$coalesce: [{$step: maybe}, x]}", None),
        ("{$coalesce: [{$step: maybe}, 1]}", "$ may be a number, where a string fits"),
        ("{$coalesce: [{$step: maybe}]}", "$ may be null, where a string fits"),
        ("{$if: {$step: maybe}, then: x, else: y}", None),
        ("{$if: {$step: maybe}, then: x}", "$ may be null, where a string fits"),
        ("{$if: 0, then: x}", None),
        ("{$if: null, then: 1, else: x}", None),
        ("{$literal: x}", None),
        ("{$literal: {$step: user}}", "$ is an object, where a string fits"),
        ("{$input: $.deep.text}", None),
        ("{$input: $.deep.number}", "$ is a number, where a string fits"),
        ("{$variable: text}", None),
        ("{$variable: count}", "$ is an integer, where a string fits"),
        ("{$variable: nothing}", "$ may be null, where a string fits"),
        ("{$variable: nothing, default: x}", "$ may be null, where a string fits"),
        ("{$variable: $.object.text, default: 1}", "$ may be a number, where a string fits"),
        ("{$step: untyped, path: $.any.thing}", None),
        ("{$step: defaulted}", "$ may be null, where a string fits"),
        ("{$step: replaced}", None),
        ("{$step: declared}", None),
    ],
)
def test_an_expression_has_the_type_of_what_it_can_come_to(expression, problem):
    text = f"""\
schemas:
  properties:
    input: {{properties: {{deep: {{properties: {{text: {{type: string}}, number: {{type: number}}}}}}}}}}
    variables:
      properties:
        text: {{type: string}}
        count: {{type: integer, default: 1}}
        nothing: {{type: ["string", "null"]}}
        object: {{type: object, properties: {{text: {{type: string}}}}}}
    steps: {{properties: {{declared: {{type: string}}}}}}
steps:
- {{id: user, component: /x/user, input: {{}}}}
- {{id: maybe, component: /x/maybe}}
- {{id: nobody, component: /x/nobody}}
- {{id: untyped, component: /x/untyped}}
- {{id: defaulted, component: /x/greet, input: x, onError: {{action: useDefault}}}}
- {{id: replaced, component: /x/greet, input: x, onError: {{action: useDefault, defaultValue: y}}}}
- {{id: declared, component: /x/untyped}}
- {{id: reads, component: /x/greet, input: {expression}}}
output: [{{$step: reads}}, {{$step: untyped}}, {{$step: user}}, {{$step: maybe}}, {{$step: nobody}}]
"""
    said = [d.data["detail"] for d in check(text) if d.kind is Kind.TYPE_MISMATCH]
    assert said == ([problem] if problem is not None else [])


@pytest.mark.parametrize(
    ("reference", "key", "message"),
    [
        (
            "{$step: user, path: $.nmae}",
            "path",
            'in the result of step "user": $ has no field "nmae"; did you mean "name"?',
        ),
        (
            "{$step: user, path: $.boss.boss.nmae}",
            "path",
            'in the result of step "user": $.boss.boss has no field "nmae"; did you mean "name"?',
        ),
        (
            "{$step: user, path: $.name.first}",
            "path",
            'in the result of step "user": $.name is a string, which has no fields',
        ),
        (
            "{$step: user, path: '$.tags[0][1]'}",
            "path",
            'in the result of step "user": $.tags[0] is a string, which has no elements',
        ),
        (
            "{$input: $.txet}",
            "$input",
            'in the input: $ has no field "txet"; did you mean "text"?',
        ),
        (
            "{$variable: $.v.b}",
            "$variable",
            'in variable "v": $ has no field "b"',
        ),
    ],
)
def test_a_path_that_leads_nowhere_is_an_error_at_the_path(reference, key, message):
    text = f"""\
schemas:
  properties:
    input: {{properties: {{text: {{}}}}}}
    variables: {{properties: {{v: {{properties: {{a: {{}}}}}}}}}}
steps:
- {{id: user, component: /x/user, input: {{}}}}
output: [{{$step: user}}, {reference}]
"""
    [diagnostic] = check(text)
    assert diagnostic.kind is Kind.UNKNOWN_PROPERTY_IN_PATH
    path = diagnostic.data["path"]
    assert diagnostic.message == f"path {path} leads nowhere {message}"
    assert diagnostic.path == ("output", 1, key)
    assert diagnostic.place.line == 7


def test_the_output_is_held_to_what_the_flow_declares():
    text = """\
schemas: {properties: {output: {properties: {sum: {type: string}}, required: [sum, more]}}}
steps: [{id: sum, component: /x/add, input: {a: 1, b: 2}}]
output: {sum: {$step: sum}}
"""
    assert found(text) == [
        (
            Kind.TYPE_MISMATCH,
            "3:9",
            'the output does not fit schemas.properties.output: $ lacks the field "more"',
        ),
        (
            Kind.TYPE_MISMATCH,
            "3:15",
            "the output does not fit schemas.properties.output: $.sum is an integer, where a string fits",
        ),
    ]


def test_what_is_declared_of_a_step_counts_for_more_than_what_its_component_says():
    text = """\
schemas: {{properties: {{steps: {{properties: {{a: {{type: {}}}}}}}}}}}
steps:
- {{id: a, component: /x/maybe}}
- {{id: b, component: /x/greet, input: {{$step: a}}}}
output: {{$step: b}}
"""
    never = '/x/maybe never returns what is declared for step "a"'
    assert found(text.format("string")) == []
    assert [(place, message) for _, place, message in found(text.format("integer"))] == [
        ("1:48", f"{never}: $ is a string or null, where an integer fits"),
        ("4:39", 'the input of step "b" does not fit /x/greet: $ is an integer, where a string fits'),
    ]


def test_a_step_without_an_input_gives_its_component_nothing_or_an_empty_object():
    assert found("steps: [{id: a, component: /x/shout}]\noutput: {$step: a}") == []
    [mismatch] = found("steps: [{id: a, component: /x/greet}]\noutput: {$step: a}")
    assert mismatch[2].endswith("$ is null, where a string fits")


def test_strictness_warns_of_what_cannot_be_checked_and_finds_no_further_errors():
    text = """\
steps:
- {id: a, component: /x/untyped}
- {id: b, component: /x/greet, input: {$step: a, path: $.x}}
- {id: c, component: /x/add, input: {$input: $}}
- {id: d, component: /nowhere/at/all}
- {id: e, component: /x/anything}
output: [{$step: b}, {$step: c}, {$step: d}, {$step: e}]
"""
    assert found(text) == []
    strict = check(text, strict=True)
    assert {d.level for d in strict} == {"warning"}
    assert [(d.kind, d.place.line) for d in strict] == [
        (Kind.UNTYPED_COMPONENT_OUTPUT, 2),
        (Kind.UNVALIDATED_FIELD_ACCESS, 3),
        (Kind.TYPE_CHECK_INDETERMINATE, 3),
        (Kind.TYPE_CHECK_INDETERMINATE, 4),
        (Kind.UNTYPED_COMPONENT_OUTPUT, 5),
        (Kind.UNTYPED_COMPONENT_OUTPUT, 6),
    ]
    access = strict[1].to_json()
    assert access["experimental"] is True
    assert access["data"] == {"step_id": "b", "field": "$.x", "reason": "$ is not described there"}


def test_a_component_that_is_not_listed_is_warned_of_where_another_has_nearly_its_name():
    text = (
        "steps: [{id: a, component: /x/gret}, {id: b, component: /other}]\noutput: [{$step: a}, {$step: b}]"
    )
    [warning] = check(text)
    assert (warning.kind, warning.place.column, warning.suggestion) == (
        Kind.UNTYPED_COMPONENT_OUTPUT,
        28,
        'did you mean "/x/greet"?',
    )
    assert check(text, components={}) == []


def test_a_component_that_its_worker_was_asked_for_and_lists_under_nearly_its_name_is_an_error():
    steps = [{"id": "a", "component": "/x/gret"}, {"id": "b", "component": "/x/untyped"}]
    flow = flow_from_json({"steps": steps, "output": {"$step": "a"}})
    [finding] = check_types(flow, COMPONENTS, asked={"/x/gret", "/x/untyped"}).findings
    assert (finding.kind, finding.path) == (Kind.UNLISTED_COMPONENT, ("steps", 0, "component"))
    assert (finding.kind.code, finding.kind.level) == (2903, "error")
    assert finding.suggestion == 'did you mean "/x/greet"?'
    [alone] = check_types(flow, {}, asked={"/x/gret"}).findings
    assert alone.kind is Kind.UNTYPED_COMPONENT_OUTPUT, "public workers list no patterns: it may be there"


def test_a_schema_of_a_component_that_is_none_is_warned_of_and_says_nothing():
    text = "steps: [{id: a, component: /x/wrong, input: 1}]\noutput: {$step: a, path: x}"
    warnings = check(text)
    assert [(d.kind, d.place.column) for d in warnings] == [(Kind.UNTYPED_COMPONENT_OUTPUT, 28)] * 2
    assert "a schema of /x/wrong is no JSON Schema, and nothing is checked by it: " in warnings[0].message


def test_a_variable_is_what_is_declared_of_it_and_what_it_is_without_a_value():
    declared = {
        "text": STRING,
        "long": {"type": "string", "minLength": 1},
        "given": {"type": "integer", "default": "x"},
    }
    value = {
        "schemas": {"properties": {"variables": {"type": "object", "properties": declared}}},
        "output": [{"$variable": name} for name in declared],
    }
    types = check_types(flow_from_json(value), {})
    assert shown(types.output) == '[string, string | "", integer | "x"]'


def test_types_of_all_steps_and_of_the_output_are_given():
    flow = flow_from_json(
        {
            "steps": [
                {"id": "u", "component": "/x/user", "input": {"a": [1]}},
                {"id": "g", "component": "/x/greet", "input": {"$step": "u", "path": "name"}},
            ],
            "output": {"g": {"$step": "g"}},
        }
    )
    types = check_types(flow, COMPONENTS)
    assert [(name, shown(t.given), shown(t.taken), shown(t.result)) for name, t in types.steps.items()] == [
        ("u", '{"a": [1]}', "object", "User"),
        ("g", "string", "string", "string"),
    ]
    assert shown(types.output) == "{g: string}"


# Types against values


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["a", 1.5]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)


def described(value):
    """A schema that a value is valid by, and other values too."""
    match value:
        case dict():
            required = list(value)[:1]
            return {
                "type": "object",
                "properties": {k: described(v) for k, v in value.items()},
                "required": required,
            }
        case list():
            return (
                {"type": "array", "items": {"anyOf": [described(v) for v in value]}}
                if value
                else {"type": "array"}
            )
        case bool() | None:
            return {"type": ["boolean", "null"]}
        case int():
            return {"type": "integer", "minimum": -2}
        case float():
            return {"type": "number"}
        case _:
            return {"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]}


PATHS = st.sampled_from(["$", "$.a", "$.b", "$.a.b", "$[0]", "$.a[0]", "$[1].a"])
EXPRESSIONS = st.recursive(
    VALUES.map(lambda value: {"$literal": value})
    | st.builds(lambda step, path: {"$step": step, "path": path}, st.sampled_from("st"), PATHS)
    | PATHS.map(lambda path: {"$input": path})
    | PATHS.map(lambda path: {"$variable": "$.v" + path[1:]})
    | PATHS.map(lambda path: {"$variable": "$.v" + path[1:], "default": {"$input": path}})
    | st.just({"$variable": "w"}),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
        | st.lists(inner, min_size=1, max_size=3).map(lambda items: {"$coalesce": items})
        | st.builds(lambda c, a, b: {"$if": c, "then": a, "else": b}, inner, inner, inner)
        | st.builds(lambda c, a: {"$if": c, "then": a}, inner, inner)
    ),
    max_leaves=6,
)


@settings(max_examples=500, deadline=None)
@given(VALUES, VALUES, VALUES, VALUES, EXPRESSIONS)
def test_what_an_expression_comes_to_has_its_type(input_, step, other, variable, expression):
    flow = flow_from_json(
        {
            "schemas": {
                "properties": {
                    "input": described(input_),
                    "variables": {"properties": {"v": described(variable), "w": {"type": "string"}}},
                }
            },
            "steps": [
                {"id": "s", "component": "/s"},
                {"id": "t", "component": "/t", "onError": {"action": "useDefault", "defaultValue": other}},
            ],
            "output": expression,
        }
    )
    components = {"/s": takes(None, described(step)), "/t": takes(None, {"type": "integer"})}
    types = check_types(flow, components)
    type_ = jsonschema_rs.validator_for(types.pool.standing_alone(types.output))
    for second in (other, 3):
        results = {"s": Success(step), "t": Success(second)}
        outcome = Evaluation(
            flow.output, input=input_, variables={"v": variable, "w": ""}, results=results
        ).outcome
        if isinstance(outcome, Failed):
            continue
        assert type_.is_valid(outcome.result), (outcome.result, types.output)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "items", "anyOf", "required", "$ref", "enum", "oneOf", "minimum"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=4), JSON, max_size=3) | JSON, JSON)
def test_whatever_a_worker_calls_a_schema_is_borne(taken, offered):
    flow = flow_from_json(
        {
            "steps": [
                {"id": "a", "component": "/c", "input": {"x": {"$input": "$.y"}}},
                {"id": "b", "component": "/c", "input": {"$step": "a", "path": "$.items[0]"}},
            ],
            "output": {"$step": "b"},
        }
    )
    info = ComponentInfo(
        component="/c",
        input_schema=taken if isinstance(taken, dict) else None,
        output_schema=offered if isinstance(offered, dict) else None,
    )
    for finding in check_types(flow, {"/c": info}, strict=True).findings:
        str(finding.message).encode()
