import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow_trio.flows.paths import NothingThere, resolve
from stepflow_trio.flows.schema_documents import SchemaDocument, SchemaPool
from stepflow_trio.flows.types import (
    ANYTHING,
    Presence,
    constant,
    part_of,
    read_at,
    shown,
    tuple_of,
    union,
    widened,
    with_members,
    without_null,
)

STRING, INTEGER, NUMBER, NULL = ({"type": name} for name in ("string", "integer", "number", "null"))
PERSON = {
    "type": "object",
    "properties": {"name": STRING, "tags": {"type": "array", "items": STRING}, "boss": {"$ref": "#/$defs/P"}},
    "required": ["name"],
    "additionalProperties": False,
}
SCHEMA = {
    "anyOf": [
        {"$ref": "#/$defs/P"},
        {"type": "array", "prefixItems": [INTEGER], "items": STRING, "minItems": 1},
    ],
    "$defs": {"P": PERSON},
}


def gathered(schema):
    pool = SchemaPool()
    return pool.gather(SchemaDocument(schema)), pool


@pytest.mark.parametrize(
    ("types", "united"),
    [
        ([STRING], STRING),
        ([STRING, STRING], STRING),
        ([STRING, NULL], {"type": ["string", "null"]}),
        ([INTEGER, NUMBER], NUMBER),
        ([INTEGER, NULL, NUMBER], {"type": ["null", "number"]}),
        ([STRING, ANYTHING], ANYTHING),
        ([STRING, {}], ANYTHING),
        ([], False),
        ([False, STRING], STRING),
        ([{"const": 1}, {"const": True}, {"const": 1}], {"anyOf": [{"const": 1}, {"const": True}]}),
        ([{"anyOf": [STRING, PERSON]}, NULL], {"anyOf": [STRING, PERSON, NULL]}),
    ],
)
def test_a_union_has_every_form_once(types, united):
    assert union(types) == united


@pytest.mark.parametrize(
    ("schema", "rest"),
    [
        (STRING, STRING),
        (NULL, False),
        ({"const": None}, False),
        ({"type": ["string", "null"]}, STRING),
        ({"type": ["string", "null"], "minLength": 1}, {"type": "string", "minLength": 1}),
        ({"type": ["string", "integer", "null"]}, {"type": ["string", "integer"]}),
        ({"anyOf": [STRING, NULL]}, STRING),
        (
            {"anyOf": [{"const": 1}, NULL, PERSON], "title": "t"},
            {"title": "t", "anyOf": [{"const": 1}, PERSON]},
        ),
        (ANYTHING, ANYTHING),
    ],
)
def test_a_type_without_null_is_what_is_left(schema, rest):
    assert without_null(schema, SchemaPool()) == rest


@pytest.mark.parametrize(
    ("path", "presence", "type_"),
    [
        ((), Presence.THERE, None),
        (("name",), Presence.MAYBE, STRING),
        (("tags", 3), Presence.MAYBE, STRING),
        (("boss", "boss", "name"), Presence.MAYBE, STRING),
        ((0,), Presence.MAYBE, INTEGER),
        ((5,), Presence.MAYBE, STRING),
        (("nmae",), Presence.ABSENT, False),
        (("name", "length"), Presence.ABSENT, False),
        (("tags", "x"), Presence.ABSENT, False),
    ],
)
def test_a_path_leads_through_the_forms_that_have_it(path, presence, type_):
    schema, pool = gathered(SCHEMA)
    part = read_at(schema, path, pool)
    assert part.presence is presence
    if type_ is not None:
        assert part.type == type_


@pytest.mark.parametrize(
    ("schema", "key", "presence"),
    [
        ({"type": "object", "properties": {"a": STRING}, "required": ["a"]}, "a", Presence.THERE),
        ({"type": "object", "properties": {"a": STRING}}, "a", Presence.MAYBE),
        ({"type": "object", "properties": {"a": STRING}}, "b", Presence.ABSENT),
        ({"type": "object", "properties": {"a": STRING}, "additionalProperties": True}, "b", Presence.MAYBE),
        ({"type": "object", "patternProperties": {"^b": STRING}}, "b", Presence.MAYBE),
        ({"type": "object", "properties": {"a": {}}, "required": ["b"]}, "b", Presence.THERE),
        ({"type": "object"}, "a", Presence.UNDESCRIBED),
        ({}, "a", Presence.UNDESCRIBED),
        ({"type": "array", "items": STRING, "minItems": 2}, 1, Presence.THERE),
        ({"type": "array", "items": STRING, "maxItems": 2}, 2, Presence.ABSENT),
        ({"type": "array"}, 0, Presence.UNDESCRIBED),
        ({"enum": [{"a": 1}, {"b": 1}]}, "a", Presence.MAYBE),
        ({"const": {"a": 1}}, "a", Presence.THERE),
        ({"const": {"a": 1}}, "b", Presence.ABSENT),
        ({"$ref": "#/$defs/none"}, "a", Presence.UNDESCRIBED),
        (STRING, "a", Presence.ABSENT),
    ],
)
def test_a_part_is_there_maybe_there_not_described_or_absent(schema, key, presence):
    written, pool = gathered(schema)
    assert part_of(written, key, pool).presence is presence


@pytest.mark.parametrize(
    ("path", "reached", "why"),
    [
        (("nmae",), (), 'has no field "nmae"; did you mean "name"?'),
        (("boss", "nmae"), ("boss",), 'has no field "nmae"; did you mean "name"?'),
        (("name", "first"), ("name",), "is a string, which has no fields"),
        (("name", 0), ("name",), "is a string, which has no elements"),
    ],
)
def test_a_path_that_leads_nowhere_says_how_far_it_leads_and_why(path, reached, why):
    schema, pool = gathered(SCHEMA)
    part = read_at(schema, path, pool)
    assert (part.reached, part.why) == (reached, why)


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (ANYTHING, "any"),
        ({}, "any"),
        (False, "never"),
        (STRING, "string"),
        ({"type": ["string", "null"]}, "string | null"),
        ({"type": "array", "items": STRING}, "string[]"),
        ({"type": "array", "items": {"type": ["string", "null"]}}, "(string | null)[]"),
        ({"type": "array", "items": PERSON}, "{name: string, tags?: string[], boss?: P}[]"),
        ({"type": "array"}, "any[]"),
        ({"type": "object"}, "object"),
        ({"type": "object", "additionalProperties": INTEGER}, "{[name]: integer}"),
        ({"$ref": "#/$defs/Person"}, "Person"),
        ({"enum": ["a", 1]}, '"a" | 1'),
        (union([constant(1), constant(None)]), "1 | null"),
        (
            with_members({"a": tuple_of([constant("x"), ANYTHING]), "b": with_members({})}),
            '{a: ["x", any], b: {}}',
        ),
        ({"allOf": [STRING, {"minLength": 1}]}, "string & any"),
    ],
)
def test_a_type_is_shown_in_a_line(type_, text):
    assert shown(type_) == text


def test_a_type_that_is_a_definition_is_shown_as_what_it_is():
    schema, pool = gathered({"$ref": "#/$defs/P", "$defs": {"P": PERSON}})
    assert shown(schema, pool) == "{name: string, tags?: string[], boss?: P}"


@pytest.mark.parametrize(
    ("type_", "wide"),
    [
        (constant(1), INTEGER),
        (constant(1.5), NUMBER),
        (constant([]), {"type": "array"}),
        (constant([1, "a", 2]), {"type": "array", "items": {"type": ["integer", "string"]}}),
        (
            constant({"a": None}),
            {"type": "object", "properties": {"a": NULL}, "required": ["a"]},
        ),
        (union([constant("a"), constant("b"), NULL]), {"type": ["string", "null"]}),
        (
            tuple_of([constant(True), PERSON]),
            {"type": "array", "items": {"anyOf": [{"type": "boolean"}, PERSON]}},
        ),
        (
            with_members({"a": constant(1), "b": ANYTHING}),
            {"type": "object", "properties": {"a": INTEGER, "b": {}}, "required": ["a", "b"]},
        ),
    ],
)
def test_a_type_is_widened_to_what_one_would_declare(type_, wide):
    assert widened(type_) == wide


def test_what_somebody_declared_is_not_widened():
    for declared in (
        PERSON,
        {"const": 1},
        {"enum": [1, 2]},
        {"type": "array", "prefixItems": [STRING], "minItems": 1},
    ):
        assert widened(declared) is declared


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["a", "b", 1.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)


def schemas_of(value):
    """Schemas that a value is valid by."""
    choices = [st.just({}), st.just(True), st.just({"const": value}), st.just({"enum": [0, value, "z"]})]
    if isinstance(value, dict):
        members = st.fixed_dictionaries({name: schemas_of(each) for name, each in value.items()})
        required = st.lists(st.sampled_from(sorted(value)), unique=True) if value else st.just([])
        choices.append(
            st.builds(
                lambda properties, names, more: {
                    "type": "object", "properties": properties, "required": names, **more
                },
                members,
                required,
                st.sampled_from([{}, {"additionalProperties": False}, {"additionalProperties": {}}]),
            )
        )  # fmt: skip
        choices.append(st.just({"type": "object"}))
        if value:
            choices.append(
                members.map(lambda properties: {"properties": dict([next(iter(properties.items()))])})
            )
    elif isinstance(value, list):
        elements = st.tuples(*map(schemas_of, value)).map(list)
        choices.append(
            elements.map(
                lambda each: (
                    {"type": "array", "prefixItems": each, "items": False} if each else {"type": "array"}
                )
            )
        )
        choices.append(
            elements.map(lambda each: {"type": "array", "items": {"anyOf": [*each, {"type": "null"}]}})
        )
    else:
        names = {
            type(None): ["null"],
            bool: ["boolean"],
            str: ["string"],
            int: ["integer"],
            float: ["number"],
        }
        choices.append(st.just({"type": names[type(value)]}))
    plain = st.one_of(choices)
    return (
        plain
        | plain.map(lambda schema: {"anyOf": [{"type": "string", "minLength": 9}, schema]})
        | plain.map(lambda schema: {"allOf": [schema, {"title": "t"}]})
    )


PATHS = st.lists(st.sampled_from(["a", "b", "c", 0, 1, 2]), max_size=3).map(tuple)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_what_is_at_a_path_of_a_value_has_the_type_that_the_path_has(data):
    value = data.draw(JSON)
    schema = data.draw(schemas_of(value))
    assert jsonschema_rs.validator_for(schema).is_valid(value)
    path = data.draw(PATHS)
    written, pool = gathered(schema)
    part = read_at(written, path, pool)
    found = resolve(value, path)
    if isinstance(found, NothingThere):
        assert part.presence is not Presence.THERE
    elif part.presence is Presence.ABSENT:
        # Said of what a schema with members does not mention, though it does not rule it out.
        assert len(path) > len(part.reached)
    else:
        assert jsonschema_rs.validator_for(pool.standing_alone(part.type)).is_valid(found)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_value_that_is_not_null_fits_its_type_without_null(data):
    value = data.draw(JSON.filter(lambda value: value is not None))
    written, pool = gathered(data.draw(schemas_of(value)))
    rest = jsonschema_rs.validator_for(pool.standing_alone(without_null(written, pool)))
    assert rest.is_valid(value)


@given(JSON)
def test_a_value_fits_its_own_type_and_that_widened(value):
    assert jsonschema_rs.validator_for(widened(constant(value))).is_valid(value)
