"""Subtyping against a validator: what is proven holds, and what is denied can be shown.

The schemas use few names and few values, so that a pool of values holds an example of nearly everything they
can say; what hypothesis finds is looked for in the pool.
"""

import itertools

import jsonschema_rs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stepflow_trio.flows.schema_documents import SchemaDocument, SchemaPool
from stepflow_trio.flows.subtyping import Verdict, subtype

SCALARS = [None, True, False, 0, 1, 2, 7, -3, -3.5, 0.5, 1.5, 2.5, "", "a", "b", "ab", "abc", "zzzz"]
SMALL = [None, True, 1, 1.5, 7, "a", "abc", [], {}, {"a": 1}, ["a"]]
NESTED = [*SCALARS, [], {}, *([x] for x in SMALL), *({"a": x} for x in SMALL), *({"b": x} for x in SMALL)]
PAIRS = [*itertools.product(SCALARS, repeat=2), *itertools.product(SMALL, repeat=2)]
ARRAYS = [[], *([x] for x in NESTED), *([x, y] for x, y in PAIRS), *([x, x, x] for x in SCALARS)]
OBJECTS = [
    {},
    *({name: x} for name in "ab" for x in NESTED),
    *({"a": x, "b": y} for x, y in PAIRS),
    *({"a": x, "b": y, "c": z} for x, y, z in itertools.product([None, 1, "a", {}, 1.5, True, []], repeat=3)),
]
POOL = [*SCALARS, *ARRAYS, *OBJECTS, {"a": {"a": {"a": 1}}}, {"a": {"a": {"a": "x"}}}, {"a": {"b": {"a": 1}}}]
LEVELS = 1
"""Members and elements inside each other of which the pool has examples."""


def levels(schema):
    """How deep a schema describes."""
    if isinstance(schema, list):
        return max(map(levels, schema), default=0)
    if not isinstance(schema, dict):
        return 0
    inner = [
        *schema.get("properties", {}).values(),
        *schema.get("prefixItems", ()),
        schema.get("items"),
        schema.get("additionalProperties"),
    ]
    beside = [schema.get(keyword, ()) for keyword in ("anyOf", "oneOf", "allOf")]
    below = max(map(levels, inner)) + 1 if any(each is not None for each in inner) else 0
    return max(below, *map(levels, beside))


def optional(**keywords):
    return st.fixed_dictionaries({}, optional=keywords)


NUMBERS = st.sampled_from([0, 1, 2, -3, 1.5])
LENGTHS = st.integers(0, 3)
VALUES = st.sampled_from([None, True, False, 0, 1, 1.0, 7, 1.5, "a", "b", "abc", [], {}, [1], {"a": 1}])
NAMES = st.sampled_from(["a", "b"])


def described(schema, inner):
    """The members and elements that a schema describes."""
    return optional(
        properties=st.dictionaries(NAMES, inner, max_size=2),
        required=st.lists(NAMES, unique=True, max_size=2),
        additionalProperties=inner | st.just(False),
        items=inner,
        prefixItems=st.lists(inner, min_size=1, max_size=2),
        minItems=st.integers(0, 2),
        maxItems=st.integers(0, 2),
    ).map(lambda more: {**schema, **more})


def schemas(*, has_not):
    types = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
    leaves = (
        st.booleans()
        | st.just({})
        | types.map(lambda name: {"type": name})
        | st.lists(types, min_size=1, max_size=3, unique=True).map(lambda names: {"type": names})
        | st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values})
        | VALUES.map(lambda value: {"const": value})
        | optional(type=st.just("integer") | st.just("number"), minimum=NUMBERS, exclusiveMaximum=NUMBERS)
        | optional(type=st.just("string"), minLength=LENGTHS, maxLength=LENGTHS)
    )
    if has_not:
        # Whether there is any value of these is not always seen.
        leaves |= optional(
            type=st.just("integer"), exclusiveMinimum=NUMBERS, maximum=NUMBERS, multipleOf=st.just(2)
        )
        leaves |= optional(type=st.just("string"), maxLength=LENGTHS, pattern=st.just("^a"))

    def combine(inner):
        lists = st.lists(inner, min_size=1, max_size=3)
        combined = (
            st.just("object").flatmap(lambda name: described({"type": name}, inner))
            | st.just("array").flatmap(lambda name: described({"type": name}, inner))
            | described({}, inner)
            | lists.map(lambda each: {"anyOf": each})
            | lists.map(lambda each: {"allOf": each})
            | lists.map(lambda each: {"oneOf": each})
            | st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1] if both_objects(pair) else pair[0])
        )
        more = inner.map(lambda schema: {"not": schema}) | st.tuples(inner, inner, inner).map(
            lambda three: {"if": three[0], "then": three[1], "else": three[2]}
        )
        more |= inner.map(lambda schema: {"type": "object", "patternProperties": {"^[ab]": schema}})
        more |= st.just({"type": "object", "propertyNames": {"const": "a"}})
        more |= st.just({"type": "object", "maxProperties": 1}) | st.just(
            {"type": "object", "minProperties": 1}
        )
        return combined | more if has_not else combined

    return st.recursive(leaves, combine, max_leaves=6)


def both_objects(pair):
    return isinstance(pair[0], dict) and isinstance(pair[1], dict)


ANY_SCHEMA = schemas(has_not=True)
PLAIN_SCHEMA = schemas(has_not=False)


def compare(sub, sup):
    pool = SchemaPool()
    return subtype(pool.gather(SchemaDocument(sub)), pool.gather(SchemaDocument(sup)), pool)


def counterexamples(sub, sup):
    """Values that fit the one and not the other."""
    fits, other = jsonschema_rs.validator_for(sub), jsonschema_rs.validator_for(sup)
    candidates = itertools.chain(POOL, made_for(sub) if isinstance(sub, dict) else ())
    return [value for value in candidates if fits.is_valid(value) and not other.is_valid(value)]


def made_for(schema):
    """Arrays and objects that differ in one place from what a schema describes first."""
    for form in [each for keyword in ("anyOf", "oneOf", "allOf") for each in schema.get(keyword, ())]:
        if isinstance(form, dict):
            yield from made_for(form)
    prefix, rest = schema.get("prefixItems", []), schema.get("items", True)
    members, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for length in range(4):
        for values in one_by_one([*prefix, *[rest] * 4][:length]):
            yield list(values)
        for names in itertools.combinations("abc", length):
            for values in one_by_one([members.get(name, others) for name in names]):
                yield dict(zip(names, values, strict=True))


def one_by_one(schemas):
    fitting = []
    for schema in schemas:
        check = jsonschema_rs.validator_for(schema)
        fitting.append([value for value in NESTED if check.is_valid(value)])
    if all(fitting):
        first = [values[0] for values in fitting]
        yield first
        for place, values in enumerate(fitting):
            yield from ([*first[:place], value, *first[place + 1 :]] for value in values)


def common(sub, sup):
    fits, other = jsonschema_rs.validator_for(sub), jsonschema_rs.validator_for(sup)
    return [value for value in POOL if fits.is_valid(value) and other.is_valid(value)]


@settings(max_examples=400, deadline=None)
@given(ANY_SCHEMA, ANY_SCHEMA)
def test_every_value_of_a_proven_subtype_fits_the_supertype(sub, sup):
    answer = compare(sub, sup)
    if answer.verdict is Verdict.YES:
        assert answer.problems == ()
        assert counterexamples(sub, sup) == []
    else:
        assert answer.problems != ()


@settings(max_examples=300, deadline=None)
@given(ANY_SCHEMA, ANY_SCHEMA)
def test_schemas_that_are_said_to_have_nothing_in_common_do_not(sub, sup):
    answer = compare(sub, sup)
    if answer.is_disjoint:
        assert answer.verdict is Verdict.NO
        assert common(sub, sup) == []


@settings(max_examples=400, deadline=None)
@given(PLAIN_SCHEMA, PLAIN_SCHEMA)
def test_of_a_denied_subtype_there_is_a_value_that_does_not_fit(sub, sup):
    assume(levels(sub) <= LEVELS)
    if compare(sub, sup).verdict is Verdict.NO:
        # Of a schema without values nothing is claimed.
        assert counterexamples(sub, sup) or not common(sub, True)


@settings(max_examples=200, deadline=None)
@given(ANY_SCHEMA)
def test_a_schema_is_never_denied_to_fit_itself(schema):
    assert compare(schema, schema).verdict is Verdict.YES
    pool = SchemaPool()
    copied = pool.gather(SchemaDocument({"allOf": [schema, {"title": "same"}]}))
    assert subtype(copied, pool.gather(SchemaDocument(schema)), pool).verdict is not Verdict.NO
