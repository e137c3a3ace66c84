import jsonschema_rs
import pytest

from stepflow_trio.flows.schema_documents import SchemaDocument, SchemaPool, flow_part, flow_parts

SCHEMAS = {
    "type": "object",
    "$defs": {"Name": {"type": "string"}, "Pair": {"items": {"$ref": "#/schemas/$defs/Name"}}},
    "properties": {
        "input": {
            "$defs": {"Own": {"type": "null"}},
            "properties": {
                "outright": {"$ref": "#/schemas/$defs/Name"},
                "own": {"$ref": "#/$defs/Own"},
                "shared": {"$ref": "#/$defs/Pair"},
            },
        },
        "output": {"type": "number"},
        "variables": {"properties": {"v": {}}},
        "steps": {"properties": {"a": {"type": "string"}, "b": None}},
    },
}


def gather(schema):
    pool = SchemaPool()
    return pool.gather(SchemaDocument(schema)), pool


def test_the_parts_of_a_flow_s_schemas_are_its_values_and_its_steps():
    assert [(name, document.at) for name, document in flow_parts(SCHEMAS)] == [
        ("input", ("schemas", "properties", "input")),
        ("output", ("schemas", "properties", "output")),
        ("variables", ("schemas", "properties", "variables")),
        ("steps.a", ("schemas", "properties", "steps", "properties", "a")),
    ]
    assert list(flow_parts(None)) == list(flow_parts({"type": "object"})) == []


def test_a_part_refers_to_itself_to_the_shared_definitions_and_to_all_outright():
    pool = SchemaPool()
    written = pool.gather(flow_part(SCHEMAS, "input"))
    assert pool.unresolved == []
    assert written == {
        "properties": {
            "outright": {"$ref": "#/$defs/Name"},
            "own": {"$ref": "#/$defs/Own"},
            "shared": {"$ref": "#/$defs/Pair"},
        }
    }
    assert pool.definitions == {
        "Name": {"type": "string"},
        "Own": {"type": "null"},
        "Pair": {"items": {"$ref": "#/$defs/Name"}},
    }
    assert pool.places == {
        "Name": ("schemas", "$defs", "Name"),
        "Own": ("schemas", "properties", "input", "$defs", "Own"),
        "Pair": ("schemas", "$defs", "Pair"),
    }


def test_definitions_of_several_documents_with_one_name_are_kept_apart():
    pool = SchemaPool()
    first = pool.gather(SchemaDocument({"$ref": "#/$defs/A", "$defs": {"A": {"type": "string"}}}))
    second = pool.gather(SchemaDocument({"$ref": "#/$defs/A", "$defs": {"A": {"type": "null"}}}))
    assert first != second
    assert pool.target(first["$ref"]) == {"type": "string"}
    assert pool.target(second["$ref"]) == {"type": "null"}


def test_a_document_that_is_gathered_twice_has_its_definitions_once():
    pool = SchemaPool()
    schema = {"$ref": "#/$defs/A", "$defs": {"A": {"type": "string"}}}
    assert pool.gather(SchemaDocument(schema)) == pool.gather(SchemaDocument(schema))
    assert len(pool.definitions) == 1


def test_a_schema_that_refers_to_itself_is_gathered_once():
    written, pool = gather({"title": "My tree", "properties": {"left": {"$ref": "#"}}})
    assert written == {"title": "My tree", "properties": {"left": {"$ref": "#/$defs/My_tree"}}}
    assert pool.definitions == {"My_tree": written}


@pytest.mark.parametrize(
    ("ref", "target"),
    [
        ("#/properties/a~1b/items", {"type": "null"}),
        ("#/properties/a%7E1b/items", {"type": "null"}),
        ("#/anyOf/1", {"type": "string"}),
        ("#/$defs/%C3%A4", True),
    ],
)
def test_a_reference_is_a_json_pointer_in_a_fragment(ref, target):
    schema = {
        "properties": {"a/b": {"items": {"type": "null"}}, "r": {"$ref": ref}},
        "anyOf": [{}, {"type": "string"}],
        "$defs": {"ä": True},
    }
    written, pool = gather(schema)
    assert pool.unresolved == []
    assert pool.target(written["properties"]["r"]["$ref"]) == target


@pytest.mark.parametrize(
    "ref",
    ["#/$defs/x", "#/anyOf/2", "#/anyOf/x", "#/type/x", "#anchor", "http://x/y", "other.json", "#/anyOf", ""],
)
def test_a_reference_that_leads_nowhere_is_left_and_named(ref):
    written, pool = gather({"anyOf": [{}, {"$ref": ref}], "type": "string"})
    assert written["anyOf"][1] == {"$ref": ref}
    assert pool.unresolved == [(("anyOf", 1, "$ref"), ref)]
    assert pool.target(ref) is None


def test_what_only_looks_like_a_reference_is_data():
    schema = {"const": {"$ref": "#/x"}, "enum": [{"$ref": "#/x"}], "default": {"$ref": "#/x"}}
    written, pool = gather(schema)
    assert (written, pool.unresolved) == (schema, [])
    written, pool = gather({"properties": {"$ref": {"type": "string"}}})
    assert pool.unresolved == []


def test_a_chain_of_definitions_can_be_any_length():
    chain = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(20_000)}
    written, pool = gather({"$ref": "#/$defs/d0", "$defs": {**chain, "d20000": {"type": "null"}}})
    assert len(pool.definitions) == 20_001
    assert len(pool.standing_alone(written)["$defs"]) == 20_001


def test_a_gathered_schema_stands_alone_with_what_it_needs():
    pool = SchemaPool()
    pool.gather(SchemaDocument({"$ref": "#/$defs/Other", "$defs": {"Other": {}}}))
    alone = pool.standing_alone(pool.gather(flow_part(SCHEMAS, "input")))
    assert set(alone["$defs"]) == {"Name", "Own", "Pair"}
    check = jsonschema_rs.validator_for(alone)
    assert check.is_valid({"outright": "x", "own": None, "shared": ["x"]})
    assert not check.is_valid({"shared": [1]})


def test_the_places_of_what_a_validator_found_are_those_in_the_flow():
    pool = SchemaPool()
    document = flow_part(SCHEMAS, "input")
    pool.gather(document)
    assert pool.place_of(("properties", "own", "$ref"), document.at) == (
        *document.at,
        "properties",
        "own",
        "$ref",
    )
    assert pool.place_of(("$defs", "Pair", "items"), document.at) == ("schemas", "$defs", "Pair", "items")


def test_identifiers_do_not_change_what_references_mean():
    schema = {
        "$id": "http://x/root",
        "properties": {"a": {"$id": "http://x/a", "items": {"$ref": "#/$defs/S"}}},
        "$defs": {"S": {"$anchor": "s", "type": "string"}},
    }
    written, pool = gather(schema)
    assert pool.unresolved == []
    assert not jsonschema_rs.validator_for(pool.standing_alone(written)).is_valid({"a": [1]})
