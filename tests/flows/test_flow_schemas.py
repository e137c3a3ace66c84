import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow_trio.errors import FlowInvalid
from stepflow_trio.flows.diagnostics import DiagnosticKind as Kind
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.reader import examine_flow, read_flow
from stepflow_trio.flows.schemas import FlowSchemas

USER = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "boss": {"$ref": "#/schemas/$defs/User"}},
    "required": ["name"],
    "additionalProperties": False,
}


def schemas_of(*, defs=None, enforce_schemas=True, **parts):
    written = {"type": "object", "properties": parts}
    if defs:
        written["$defs"] = defs
    return FlowSchemas(Flow(schemas=written), enforce_schemas=enforce_schemas)


def misfit(schema, value):
    """Where a value does not fit an input's schema, and why."""
    error = schemas_of(input=schema, defs={"User": USER}).check_input(value)
    return (error.data["path"], error.data["misfits"][0]["problem"]) if error is not None else None


def test_each_value_is_held_to_its_own_schema_with_its_own_code():
    schemas = schemas_of(
        input={"type": "string"},
        output={"type": "null"},
        variables={"properties": {"v": {"type": "boolean"}}},
        steps={"type": "object", "properties": {"a": {"type": "integer"}, "b": None}},
    )
    assert schemas.check_input("x") is schemas.check_output(None) is None
    assert schemas.check_variables({"v": True}) is schemas.check_step_output("a", 1) is None
    found = [
        schemas.check_input(1),
        schemas.check_variables({"v": 1}),
        schemas.check_step_output("a", "x"),
        schemas.check_output(1),
    ]
    assert [(error.code, error.message) for error in found] == [
        (-32003, "the input does not fit its schema: $ is a number, where a string fits"),
        (-32003, "the variables do not fit their schema: $.v is a number, where a boolean fits"),
        (-32101, 'the output of step "a" does not fit its schema: $ is a string, where an integer fits'),
        (-32004, "the output does not fit its schema: $ is a number, where null fits"),
    ]
    assert found[2].data == {
        "path": "$",
        "schema": "$.schemas.properties.steps.properties.a.type",
        "misfits": [
            {
                "path": "$",
                "schema": "$.schemas.properties.steps.properties.a.type",
                "problem": "is a string, where an integer fits",
            }
        ],
    }


def test_what_has_no_schema_fits():
    schemas = FlowSchemas(Flow())
    assert schemas.check_input(1) is schemas.check_variables({"v": 1}) is None
    assert schemas.check_step_output("a", 1) is schemas.check_output(1) is None
    assert schemas_of(steps={"properties": {"a": False}}).check_step_output("b", 1) is None


def test_not_enforced_schemas_take_everything_even_where_they_cannot_be_used():
    schemas = schemas_of(input=False, output={"$ref": "#/nowhere"}, enforce_schemas=False)
    assert schemas.check_input(1) is schemas.check_output(1) is None


@pytest.mark.parametrize(
    ("schema", "value", "found"),
    [
        ({"type": "integer"}, 1.0, None),
        ({"type": "integer"}, 10**30, None),
        ({"type": "integer"}, 1.5, ("$", "is not a whole number, where an integer fits")),
        ({"type": "string"}, None, ("$", "is null, where a string fits")),
        ({"type": ["string", "null"]}, True, ("$", "is a boolean, where a string or null fits")),
        ({"enum": ["red", "green"]}, "gren", ("$", 'is not "red" or "green"; did you mean "green"?')),
        ({"enum": list(range(20))}, "x", ("$", "is not one of 0, 1, 2, 3, 4, 5, 6, 7, …")),
        ({"const": {"a": 1}}, 1, ("$", 'is not {"a": 1}')),
        ({"items": {"type": "string"}}, ["a", 1], ("$[1]", "is a number, where a string fits")),
        ({"properties": {"a b": {"minLength": 2}}}, {"a b": "x"}, ("$.a b", "has fewer than 2 characters")),
        ({"required": ["name"]}, {}, ("$", 'lacks the field "name"')),
        ({"required": ["name"]}, {"nmae": 1}, ("$", 'lacks the field "name"; is "nmae" meant for it?')),
        ({"required": ["a"], "properties": {"b": {}}}, {"b": 1}, ("$", 'lacks the field "a"')),
        (
            {"properties": {"name": {}}, "additionalProperties": False},
            {"nmae": 1},
            ("$", 'has the field "nmae", which is not known; did you mean "name"?'),
        ),
        (
            {"additionalProperties": False},
            {"a": 1, "b": 2},
            ("$", 'has the field "a" and 1 more that are not known'),
        ),
        ({"properties": {"a": False}}, {"a": 1}, ("$.a", "may not be there")),
        ({"minimum": 3}, 2, ("$", "is less than 3")),
        ({"exclusiveMaximum": 3}, 3, ("$", "is not less than 3")),
        ({"multipleOf": 5}, 3, ("$", "is not a multiple of 5")),
        ({"pattern": "^a"}, "b", ("$", "does not match the pattern ^a")),
        ({"maxItems": 1}, [1, 2], ("$", "has more than 1 items")),
        ({"uniqueItems": True}, [1, 1], ("$", "has an item twice")),
        ({"contains": {"type": "string"}}, [1], ("$", "has no item of the kind that it must contain")),
        ({"propertyNames": {"pattern": "^a"}}, {"b": 1}, ("$", "has a field whose name does not fit")),
        ({"not": {"type": "null"}}, None, ("$", "is of a kind that is ruled out")),
        ({"format": "email"}, "no address", None),
        (
            {"anyOf": [{"type": "string"}, {"type": "array"}, {"type": "null"}]},
            1,
            ("$", "is a number, where an array, a string or null fits"),
        ),
        (
            {"anyOf": [{"type": "null"}, {"properties": {"a": {"type": "string"}}, "type": "object"}]},
            {"a": 1},
            ("$.a", "is a number, where a string fits"),
        ),
        ({"oneOf": [{"const": 1}, {"type": "string"}]}, 2, ("$", "is none of a string or 1")),
        (
            {"oneOf": [{"type": "integer"}, {"minimum": 1}]},
            1,
            ("$", "fits more than one of the forms of which exactly one must fit"),
        ),
        (
            {"$ref": "#/schemas/$defs/User"},
            {"name": "a", "boss": {"name": 1}},
            ("$.boss.name", "is a number, where a string fits"),
        ),
        ({"$ref": "#/$defs/User"}, {"name": "a", "boss": {"name": "b"}}, None),
    ],
)  # fmt: skip
def test_a_misfit_says_where_it_is_and_what_would_fit(schema, value, found):
    assert misfit(schema, value) == found


def test_the_place_in_the_schema_is_where_the_flow_has_it():
    schemas = schemas_of(input={"properties": {"u": {"$ref": "#/schemas/$defs/User"}}}, defs={"User": USER})
    error = schemas.check_input({"u": {"name": 1}})
    assert error.data["schema"] == "$.schemas.$defs.User.properties.name.type"


def test_no_value_of_the_input_is_ever_said():
    secret = "s3cr3t-" * 3
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"enum": [1]},
            "c": {"pattern": "^x"},
            "d": {"const": 1},
        },
        "anyOf": [{"properties": {"e": {"type": "null"}}}, {"properties": {"e": {"maxLength": 1}}}],
    }
    error = schemas_of(input=schema).check_input(dict.fromkeys("abcde", secret))
    assert len(error.data["misfits"]) >= 4
    assert "s3cr3t" not in str(error)


def test_of_many_misfits_ten_are_listed_and_all_are_counted():
    schemas = schemas_of(input={"items": {"type": "string"}})
    error = schemas.check_input(list(range(50)))
    assert error.message.endswith("$[0] is a number, where a string fits, and 49 more problems")
    assert len(error.data["misfits"]) == 10
    assert schemas.check_input([1, 2]).message.endswith("and 1 more problem")


def test_a_huge_value_costs_no_more_than_its_first_misfit():
    schemas = schemas_of(input={"items": {"type": "string"}})
    error = schemas.check_input(list(range(300_000)))
    assert error.data["misfits"] == [
        {
            "path": "$[0]",
            "schema": "$.schemas.properties.input.items.type",
            "problem": "is a number, where a string fits",
        }
    ]


# Variables


VARIABLES = {
    "type": "object",
    "properties": {"size": {"type": "integer", "default": 3}, "name": {"type": "string", "minLength": 1}},
    "required": ["size", "region"],
    "additionalProperties": {"type": "string"},
}


def test_a_required_variable_must_be_given_or_have_a_default():
    schemas = schemas_of(variables=VARIABLES)
    assert schemas.check_variables({"region": "x"}) is None
    assert schemas.check_variables({}).data["misfits"][0]["problem"] == 'lacks the field "region"'


def test_the_empty_value_of_a_variable_that_is_not_given_is_not_checked():
    assert schemas_of(variables={**VARIABLES, "required": []}).check_variables({}) is None


def test_of_inherited_variables_only_those_count_that_the_flow_declares():
    schemas = schemas_of(variables={**VARIABLES, "required": [], "additionalProperties": False})
    assert schemas.check_variables({"other": 1}, inherited=True) is None
    assert schemas.check_variables({"other": 1}) is not None
    assert schemas.check_variables({"size": "x", "other": 1}, inherited=True).data["path"] == "$.size"


# Schemas that cannot be used


@pytest.mark.parametrize(
    ("schema", "path", "message", "suggestion"),
    [
        ("{type: strng}", ".type", 'it is not "array", "boolean"', ""),
        ("{properties: []}", ".properties", "it is an array, where an object fits", ""),
        ("{required: name}", ".required", "it is a string, where an array fits", ""),
        ("{items: {minimum: '3'}}", ".items.minimum", "it is a string, where a number fits", ""),
        ("{properties: {a: {$ref: '#/$defs/Usr'}}}", ".properties.a.$ref", "leads nowhere", '"#/$defs/User"'),
        ("{$ref: '#/schemas/$defs/Usr'}", ".$ref", "leads nowhere", '"#/schemas/$defs/User"'),
        ("{$ref: 'https://example.org/x.json'}", ".$ref", "leads out of the flow", "#/schemas/$defs/<name>"),
        ("{$ref: 'file:///etc/passwd'}", ".$ref", "leads out of the flow", ""),
        ("{$schema: 'http://example.org/mine'}", ".$schema", "not known", "draft/2020-12/schema"),
        ("{pattern: '('}", ".pattern", "it is not a regular expression", ""),
    ],
)
def test_a_schema_that_cannot_be_used_is_an_error_with_its_place(schema, path, message, suggestion):
    text = f"schemas:\n  $defs: {{User: {{}}}}\n  properties:\n    input: {schema}\n"
    [found] = [d for d in examine_flow(text, name="f.yaml").diagnostics if d.level == "error"]
    assert found.kind is Kind.INVALID_SCHEMA
    assert found.to_json()["path"] == f"$.schemas.properties.input{path}"
    assert found.place.line == 4
    assert message in found.message
    assert suggestion in found.suggestion


def test_a_wrong_schema_in_an_earlier_release_s_place_is_found_there():
    text = (
        "steps:\n- id: a\n  component: /a\n  outputSchema: {type: nul}\n"
        "input_schema:\n  type: strin\noutput: {$step: a}\n"
    )
    found = [d for d in examine_flow(text, name="f.yaml").diagnostics if d.kind is Kind.INVALID_SCHEMA]
    assert [(str(d.place), d.to_json()["path"]) for d in found] == [
        ("f.yaml:4:24", "$.steps[0].outputSchema.type"),
        ("f.yaml:6:9", "$.input_schema.type"),
    ]


def test_a_wrong_shared_definition_is_found_where_it_is():
    text = "schemas:\n  $defs:\n    A: {type: 1}\n  properties: {input: {$ref: '#/schemas/$defs/A'}}\n"
    [found] = [d for d in examine_flow(text, name="f.yaml").diagnostics if d.level == "error"]
    assert (str(found.place), found.to_json()["path"]) == ("f.yaml:3:15", "$.schemas.$defs.A.type")


def test_a_flow_that_was_not_read_is_refused_for_schemas_that_cannot_be_used():
    with pytest.raises(FlowInvalid) as caught:
        schemas_of(input={"type": "strng"})
    assert [d.kind for d in caught.value.diagnostics] == [Kind.INVALID_SCHEMA]


def test_a_schema_for_a_step_that_does_not_exist_is_warned_of():
    text = (
        "name: n\ndescription: d\n"
        "schemas: {properties: {steps: {properties: {fetch: {}, fecth: {}}}}}\n"
        "steps: [{id: fetch, component: /a}]\noutput: {$step: fetch}\n"
    )
    [warning] = read_flow(text, name="f.yaml").warnings
    assert (warning.kind, str(warning.place)) == (Kind.UNKNOWN_FIELD, "f.yaml:3:56")
    assert warning.suggestion == 'did you mean "fetch"?'


@pytest.mark.parametrize(
    ("dialect", "schema", "value", "fits"),
    [
        ("http://json-schema.org/draft-07/schema#", {"items": [{"type": "string"}]}, [1], False),
        ("http://json-schema.org/draft-07/schema", {"items": [{"type": "string"}]}, ["a", 1], True),
        (
            "http://json-schema.org/draft-07/schema#",
            {"definitions": {"A": {"type": "string"}}, "$ref": "#/definitions/A", "minLength": 5},
            "a",
            True,
        ),
        ("http://json-schema.org/draft-04/schema#", {"minimum": 1, "exclusiveMinimum": True}, 1, False),
        (
            "https://json-schema.org/draft/2019-09/schema",
            {"items": {"$ref": "#"}, "type": "array"},
            [[1]],
            False,
        ),
    ],
)
def test_a_schema_is_of_the_draft_that_it_names(dialect, schema, value, fits):
    assert (misfit({"$schema": dialect, **schema}, value) is None) == fits


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"not": {"$ref": "#"}},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    ],
)
def test_a_schema_that_is_nothing_but_itself_ends_nothing(schema):
    misfit(schema, {"a": [1]})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "ab", 1.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
KEYWORDS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "array", "string", "integer", ["null", "number"]]),
        "required": st.lists(st.sampled_from("abc"), unique=True),
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "minLength": st.integers(0, 2),
        "maximum": st.integers(-2, 2),
        "maxItems": st.integers(0, 2),
        "additionalProperties": st.booleans(),
        "uniqueItems": st.booleans(),
    },
)
WRITTEN = st.recursive(
    KEYWORDS,
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            "items": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=3),
            "oneOf": st.lists(inner, min_size=1, max_size=3),
            "not": inner,
            "type": st.sampled_from(["object", "array"]),
            "unevaluatedProperties": st.just(False),
        },
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(WRITTEN, VALUES)
def test_a_value_is_refused_exactly_if_the_validator_does_and_every_misfit_has_a_place(schema, value):
    error = schemas_of(input=schema).check_input(value)
    assert (error is None) == jsonschema_rs.validator_for(schema).is_valid(value)
    for found in error.data["misfits"] if error is not None else ():
        assert found["path"].startswith("$")
        assert found["schema"].startswith("$.schemas.properties.input")
        assert found["problem"]
