import pytest

from stepflow_trio.flows.schema_documents import SchemaDocument, SchemaPool
from stepflow_trio.flows.subtyping import Verdict, subtype

YES, NO, INDETERMINATE = Verdict

STRING, INTEGER, NUMBER, NULL = ({"type": name} for name in ("string", "integer", "number", "null"))
TREE = {
    "$ref": "#/$defs/Tree",
    "$defs": {
        "Tree": {
            "type": "object",
            "properties": {
                "value": INTEGER,
                "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
            },
            "required": ["value", "children"],
            "additionalProperties": False,
        }
    },
}


def obj(*required, closed=True, **properties):
    schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    return {**schema, "additionalProperties": False} if closed else schema


def tree_of(value):
    tree = {**TREE["$defs"]["Tree"], "properties": {**TREE["$defs"]["Tree"]["properties"], "value": value}}
    return {"$ref": "#/$defs/Tree", "$defs": {"Tree": tree}}


def answer(sub, sup):
    pool = SchemaPool()
    return subtype(pool.gather(SchemaDocument(sub)), pool.gather(SchemaDocument(sup)), pool)


def problems(sub, sup):
    return [(problem.path, problem.why) for problem in answer(sub, sup).problems]


@pytest.mark.parametrize(
    ("sub", "sup", "verdict"),
    [
        # Types
        (STRING, STRING, YES),
        (INTEGER, NUMBER, YES),
        (NUMBER, INTEGER, NO),
        ({"type": "number", "multipleOf": 2}, INTEGER, YES),
        (STRING, INTEGER, NO),
        (STRING, {"type": ["string", "null"]}, YES),
        ({"type": ["string", "null"]}, STRING, NO),
        ({"type": ["integer", "null"]}, {"type": ["null", "number", "string"]}, YES),
        (NULL, {"type": ["string", "null"]}, YES),
        # Anything, and nothing
        (STRING, {}, YES),
        (STRING, True, YES),
        (STRING, {"title": "remark", "format": "date", "x-own": 1}, YES),
        ({}, STRING, INDETERMINATE),
        (True, STRING, INDETERMINATE),
        ({}, {}, YES),
        (False, STRING, YES),
        (STRING, False, NO),
        ({"allOf": [STRING, INTEGER]}, {"type": "array"}, YES),
        # Listed values
        ({"const": "a"}, {"enum": ["a", "b"]}, YES),
        ({"enum": ["a", "b"]}, STRING, YES),
        ({"enum": ["a", 1]}, STRING, NO),
        ({"enum": ["a", "c"]}, {"enum": ["a", "b"]}, NO),
        (STRING, {"enum": ["a", "b"]}, INDETERMINATE),
        (INTEGER, {"enum": ["a", "b"]}, NO),
        (INTEGER, {"const": 1.0}, INDETERMINATE),
        ({"type": "boolean"}, {"enum": [True, False]}, YES),
        ({"type": "boolean"}, {"const": True}, INDETERMINATE),
        ({"const": 1}, {"const": True}, NO),
        ({"const": True}, {"const": 1}, NO),
        ({"const": {"a": 1}}, obj("a", a=INTEGER), YES),
        ({"const": [1, "x"]}, {"type": "array", "items": INTEGER}, NO),
        # Ranges, lengths and patterns
        ({"type": "integer", "minimum": 1}, {"type": "integer", "exclusiveMinimum": 0}, YES),
        ({"type": "number", "minimum": 1}, {"type": "number", "exclusiveMinimum": 1}, INDETERMINATE),
        ({"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 5}, NO),
        (INTEGER, {"type": "integer", "minimum": 0}, INDETERMINATE),
        ({"type": "integer", "multipleOf": 6}, {"type": "integer", "multipleOf": 3}, YES),
        ({"type": "integer", "multipleOf": 3}, {"type": "integer", "multipleOf": 6}, INDETERMINATE),
        (STRING, {"type": "string", "minLength": 1}, INDETERMINATE),
        ({"type": "string", "maxLength": 2}, {"type": "string", "minLength": 3}, NO),
        ({"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "^a"}, YES),
        (STRING, {"type": "string", "pattern": "^a"}, INDETERMINATE),
        ({"const": "abc"}, {"type": "string", "pattern": "^a"}, YES),
        # Objects
        (obj("a", a=STRING), obj(a=STRING), YES),
        (obj("a", a=STRING), obj("a", a=INTEGER), NO),
        (obj(a=STRING), obj("a", a=STRING), INDETERMINATE),
        (obj(), obj("a", a=STRING), NO),
        (obj(b=STRING, closed=False), obj("a", a=STRING, closed=False), NO),
        ({"type": "object"}, obj("a", a=STRING, closed=False), INDETERMINATE),
        (obj("a", "b", a=STRING, b=STRING), obj(a=STRING), NO),
        (obj("a", "b", a=STRING, b=STRING), obj(a=STRING, closed=False), YES),
        (obj("a", a=STRING, closed=False), obj("a", a=STRING), INDETERMINATE),
        (obj("a", a=STRING, closed=False), obj(a=STRING, b=STRING, closed=False), INDETERMINATE),
        (
            {"type": "object", "additionalProperties": INTEGER},
            {"type": "object", "additionalProperties": NUMBER},
            YES,
        ),
        (
            {"type": "object", "additionalProperties": STRING},
            {"type": "object", "additionalProperties": NUMBER},
            NO,
        ),
        (obj("a", a=INTEGER), {"type": "object", "additionalProperties": NUMBER}, YES),
        (obj("x_a", x_a=INTEGER), {"type": "object", "patternProperties": {"^x_": STRING}}, NO),
        (obj("a"), {"type": "object", "minProperties": 1}, YES),
        (obj(a=STRING), {"type": "object", "maxProperties": 1}, YES),
        ({"properties": {"a": STRING}}, obj(a=STRING, closed=False), INDETERMINATE),
        (obj(a=STRING, closed=False), {"type": "object", "properties": {"b": False}}, INDETERMINATE),
        ({**obj("a", a=STRING, b=STRING), "maxProperties": 1}, obj(a=STRING, b=INTEGER), INDETERMINATE),
        # Arrays
        ({"type": "array", "items": INTEGER}, {"type": "array", "items": NUMBER}, YES),
        ({"type": "array", "items": STRING}, {"type": "array", "items": NUMBER}, NO),
        ({"type": "array"}, {"type": "array", "items": NUMBER}, INDETERMINATE),
        ({"type": "array", "items": STRING, "maxItems": 0}, {"type": "array", "items": NUMBER}, YES),
        (
            {"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 2},
            {"type": "array", "prefixItems": [STRING], "items": NUMBER},
            YES,
        ),
        ({"type": "array", "minItems": 1}, {"type": "array", "maxItems": 0}, NO),
        ({"type": "array"}, {"type": "array", "uniqueItems": True}, INDETERMINATE),
        # Unions and conjunctions
        (STRING, {"anyOf": [STRING, INTEGER]}, YES),
        (STRING, {"anyOf": [NULL, INTEGER]}, NO),
        ({"anyOf": [STRING, NULL]}, {"anyOf": [NULL, STRING, INTEGER]}, YES),
        ({"anyOf": [STRING, NULL]}, STRING, NO),
        ({"oneOf": [STRING, NULL]}, {"type": ["string", "null"]}, YES),
        (INTEGER, {"oneOf": [STRING, NUMBER]}, YES),
        (INTEGER, {"oneOf": [INTEGER, NUMBER]}, INDETERMINATE),
        (
            obj("k", k={"const": "b"}),
            {"oneOf": [obj("k", k={"const": "a"}), obj("k", k={"const": "b"})]},
            YES,
        ),
        (obj("k", k={"const": "c"}), {"oneOf": [obj("k", k={"const": "a"}), obj("k", k={"const": "b"})]}, NO),
        ({"allOf": [{"type": "object"}, obj("a", a=INTEGER)]}, obj("a", a=NUMBER), YES),
        (obj("a", "b", a=STRING, b=STRING), {"allOf": [{"required": ["a"]}, {"required": ["b"]}]}, YES),
        (obj("a", a=STRING), {"allOf": [{"required": ["a"]}, {"required": ["b"]}]}, NO),
        (INTEGER, {"not": STRING}, YES),
        (STRING, {"not": STRING}, NO),
        (INTEGER, {"if": STRING, "then": {"minLength": 1}}, INDETERMINATE),
        # References
        (TREE, TREE, YES),
        (TREE, tree_of(NUMBER), YES),
        (TREE, tree_of(STRING), NO),
        ({**TREE["$defs"]["Tree"], "$defs": TREE["$defs"]}, TREE, YES),
        ({"$defs": TREE["$defs"], **obj("value", value=INTEGER)}, TREE, NO),
        ({"$ref": "#/$defs/none"}, STRING, INDETERMINATE),
        (STRING, {"$ref": "#/$defs/none"}, INDETERMINATE),
        ({"$ref": "#"}, STRING, INDETERMINATE),
    ],
)
def test_a_pair_of_schemas_has_its_verdict(sub, sup, verdict):
    assert answer(sub, sup).verdict is verdict


@pytest.mark.parametrize(
    ("sub", "sup", "path", "why"),
    [
        (STRING, {"type": ["integer", "null"]}, (), "is a string, where an integer or null fits"),
        ({"type": ["string", "null"]}, STRING, (), "may be null, where a string fits"),
        ({}, STRING, (), "may be anything"),
        (
            obj("a", a=obj("b", b=STRING)),
            obj("a", a=obj("b", b=NUMBER)),
            ("a", "b"),
            "is a string, where a number",
        ),
        (
            {"type": "array", "items": STRING},
            {"type": "array", "items": NULL},
            ("*",),
            "is a string, where null fits",
        ),
        (
            obj("nmae", nmae=STRING),
            obj("name", name=STRING),
            (),
            'lacks the field "name"; is "nmae" meant for it?',
        ),
        (obj("nmae", nmae=STRING), obj(name=STRING), (), 'which is not known; did you mean "name"?'),
        (obj(a=STRING), obj("a", a=STRING), (), 'may lack the field "a"'),
        (STRING, {"enum": ["a", "b"]}, (), 'is a string, where only "a" or "b" fits'),
        ({"const": "gren"}, {"enum": ["red", "green"]}, (), 'is not "red" or "green"; did you mean "green"?'),
        (
            {"const": {"a": [1, "x"]}},
            obj(a={"type": "array", "items": INTEGER}),
            ("a", 1),
            "is a string, where an",
        ),
        ({"enum": ["a", "c"]}, {"const": "a"}, (), 'may be "c", which is not "a"'),
        ({"type": "string", "maxLength": 2}, {"minLength": 3}, (), "has fewer than 3 characters"),
        (
            obj("k", k=STRING),
            {"anyOf": [NULL, obj("k", k=INTEGER)]},
            ("k",),
            "is a string, where an integer fits",
        ),
        (TREE, tree_of(STRING), ("value",), "is an integer, where a string fits"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(sub, sup, path, why):
    assert why in "; ".join(said for at, said in problems(sub, sup) if at == path)


def test_everything_that_does_not_fit_is_named():
    sub = obj("a", "b", "c", a=STRING, b=STRING, c=STRING)
    sup = obj("a", "b", a=INTEGER, b=NULL)
    assert [at for at, _ in problems(sub, sup)] == [("a",), ("b",), ()]


def test_schemas_without_a_common_value_are_told_from_those_with_some():
    assert answer(STRING, INTEGER).is_disjoint
    assert answer(obj("a", a=STRING), obj("a", a=INTEGER)).is_disjoint
    for sub, sup in (
        ({"type": ["string", "null"]}, STRING),
        (NUMBER, INTEGER),
        (obj(a=STRING), obj(a=INTEGER)),
        ({"type": "array", "items": STRING}, {"type": "array", "items": NULL}),
    ):
        assert answer(sub, sup).verdict is NO
        assert not answer(sub, sup).is_disjoint


def test_a_member_that_only_one_form_of_a_union_has_wrong_is_found_in_both_places():
    sub = {"anyOf": [obj("a", a=STRING), obj("a", a=NULL)]}
    assert problems(sub, obj("a", a=STRING)) == [(("a",), "is null, where a string fits")]


def test_schemas_of_a_hundred_members_and_deep_unions_are_compared_quickly():
    wide = obj(*(f"m{i}" for i in range(100)), **{f"m{i}": {"anyOf": [STRING, NULL]} for i in range(100)})
    assert answer(wide, {**wide, "title": "again"}).verdict is YES
    many = {"anyOf": [obj("k", k={"const": i}) for i in range(80)]}
    assert answer(many, {**many, "title": "again"}).verdict is YES


def test_what_would_take_too_long_is_indeterminate():
    # Five members of five members …: neither too deep nor too wide, but too many.
    levels = 10
    tree = {"$defs": {"d0": STRING}, "$ref": f"#/$defs/d{levels}"}
    for i in range(levels):
        below = {"$ref": f"#/$defs/d{i}"}
        tree["$defs"][f"d{i + 1}"] = obj(*"abcde", **dict.fromkeys("abcde", below))
    other = {**tree, "$defs": {**tree["$defs"], "d0": {"type": ["string"], "minLength": 1}}}
    assert answer(tree, other).verdict is INDETERMINATE
    deep = {
        "$defs": {"d0": STRING, **{f"d{i + 1}": obj("a", a={"$ref": f"#/$defs/d{i}"}) for i in range(500)}}
    }
    shallow = {**deep, "$defs": {**deep["$defs"], "d0": INTEGER}}
    ref = {"$ref": "#/$defs/d500"}
    assert answer({**deep, **ref}, {**shallow, **ref}).verdict is INDETERMINATE
    combinations = {
        "allOf": [{"anyOf": [obj(**{f"a{i}": STRING}), obj(**{f"b{i}": STRING})]} for i in range(20)]
    }
    assert answer(combinations, STRING).verdict is INDETERMINATE


def test_drafts_before_2019_have_elements_and_references_of_their_own():
    old = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"S": STRING},
        "type": "array",
        "items": [{"$ref": "#/definitions/S", "type": "null"}],
        "additionalItems": False,
        "minItems": 1,
    }
    new = {"type": "array", "prefixItems": [STRING], "items": False, "minItems": 1}
    assert answer(old, new).verdict is YES
    assert answer(new, old).verdict is YES
