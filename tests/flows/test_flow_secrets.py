"""What a flow's schemas call secret is found in its values, and taken out of texts."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from stepflow_trio.flows.diagnostics import DiagnosticKind
from stepflow_trio.flows.paths import render_path
from stepflow_trio.flows.reader import examine_flow_json, flow_from_json
from stepflow_trio.flows.results import FlowError
from stepflow_trio.flows.schemas import FlowSchemas
from stepflow_trio.flows.secrets import (
    REDACTED,
    FlowSecrets,
    SecretTexts,
    redact,
    redact_error,
    secret_strings,
    without_values,
)

SECRET = {"is_secret": True}
TOKEN = "tok-5f2e91"  # noqa: S105 — it is to look like one

PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq/hkiG9w0BAQEF\nAASCBKcwggSjAgEAAoIBAQ+7\n-----END KEY-----\n"


def secrets_of(*, defs: Any = None, **parts: Any) -> FlowSecrets | None:
    steps = parts.pop("steps", {})
    schemas: dict[str, Any] = {"type": "object", "$defs": defs or {}, "properties": parts}
    if steps:
        schemas["properties"]["steps"] = {"properties": steps}
    flow = {
        "name": "f",
        "description": "d",
        "schemas": schemas,
        "steps": [{"id": id_, "component": "/x/y"} for id_ in steps],
        "output": [{"$step": id_} for id_ in steps],
    }
    return FlowSecrets.of(flow_from_json(flow))


def shown(schema: Any, value: Any, *, defs: Any = None) -> Any:
    """An input as it is shown, by its places only."""
    secrets = secrets_of(input=schema, defs=defs)
    assert secrets is not None
    return redact(value, secrets.input, SecretTexts())


# ---- places -----------------------------------------------------------------------------------------------


def test_a_flow_whose_schemas_say_nothing_of_secrets_has_none() -> None:
    assert secrets_of(input={"properties": {"a": {"is_secret": False}, "b": {"is_secret": "true"}}}) is None
    assert FlowSecrets.of(flow_from_json({"name": "f", "description": "d", "steps": []})) is None


def test_every_part_of_a_flow_can_have_secrets() -> None:
    secrets = secrets_of(
        input=SECRET, output=SECRET, variables={"properties": {"v": SECRET}}, steps={"s": SECRET, "t": {}}
    )
    assert secrets is not None
    assert redact(1, secrets.input, SecretTexts()) == REDACTED
    assert redact(1, secrets.output, SecretTexts()) == REDACTED
    assert redact({"v": 1, "w": 2}, secrets.variables, SecretTexts()) == {"v": REDACTED, "w": 2}
    assert redact(1, secrets.part("steps.s"), SecretTexts()) == REDACTED
    assert secrets.part("steps.t") is None


PLACES: list[tuple[Any, Any, Any]] = [
    ({"properties": {"a": SECRET}}, {"a": {"b": 1}, "c": 2}, {"a": REDACTED, "c": 2}),
    ({"properties": {"a": {"properties": {"b": SECRET}}}}, {"a": {"b": 1}}, {"a": {"b": REDACTED}}),
    (
        {"additionalProperties": SECRET, "properties": {"a": {}}},
        {"a": 1, "b": 2},
        {"a": 1, "b": REDACTED},
    ),
    ({"patternProperties": {"^x-": SECRET}}, {"x-a": 1, "b": 2}, {"x-a": REDACTED, "b": 2}),
    (
        {"patternProperties": {"^x-": {}}, "additionalProperties": SECRET},
        {"x-a": 1, "b": 2},
        {"x-a": 1, "b": REDACTED},
    ),
    ({"items": SECRET}, [1, None], [REDACTED, REDACTED]),
    ({"prefixItems": [{}, SECRET]}, [1, 2, 3], [1, REDACTED, 3]),
    ({"prefixItems": [True, {}], "items": SECRET}, [1, 2, 3], [1, 2, REDACTED]),
    (
        {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{}, SECRET]},
        [1, 2],
        [1, REDACTED],
    ),
    ({"contains": {"properties": {"a": SECRET}}}, [{"a": 1}, 2], [{"a": REDACTED}, 2]),
    ({"propertyNames": SECRET}, {"name": 1, "b": 2}, {REDACTED: 1, f"{REDACTED} 2": 2}),
    ({"allOf": [{}, {"properties": {"a": SECRET}}]}, {"a": 1}, {"a": REDACTED}),
    ({"anyOf": [{"type": "null"}, SECRET]}, 1, REDACTED),
    ({"oneOf": [{"type": "integer"}, {"type": "string", **SECRET}]}, 1, REDACTED),
    ({"if": {}, "then": {"properties": {"a": SECRET}}}, {"a": 1}, {"a": REDACTED}),
    ({"dependentSchemas": {"b": {"properties": {"a": SECRET}}}}, {"a": 1}, {"a": REDACTED}),
    ({"properties": {"a": SECRET}}, ["a"], ["a"]),
    ({"items": SECRET}, {"a": 1}, {"a": 1}),
]


@pytest.mark.parametrize(("schema", "value", "expected"), PLACES)
def test_a_place_is_found_through_every_keyword(schema: Any, value: Any, expected: Any) -> None:
    assert shown(schema, value) == expected


def test_references_are_followed_within_a_part_and_to_the_flows_definitions() -> None:
    schema = {"$defs": {"own": SECRET}, "items": {"$ref": "#/$defs/own"}}
    assert shown(schema, [1]) == [REDACTED]
    schema = {"properties": {"a": {"$ref": "#/schemas/$defs/token"}}}
    assert shown(schema, {"a": 1}, defs={"token": SECRET}) == {"a": REDACTED}


def test_a_schema_that_refers_to_itself_is_followed_as_deep_as_the_value_goes() -> None:
    tree = {"properties": {"key": SECRET, "below": {"items": {"$ref": "#"}}}}
    value: dict[str, Any] = {"key": 1, "below": [{"key": 2, "below": []}, {"n": 3}]}
    assert shown(tree, value) == {"key": REDACTED, "below": [{"key": REDACTED, "below": []}, {"n": 3}]}


def test_branches_that_lead_to_the_same_place_cost_nothing_more() -> None:
    below = {"items": {"$ref": "#"}}
    schema = {"anyOf": [below, {"allOf": [below, {"items": {"$ref": "#"}}]}], "properties": {"k": SECRET}}
    # Of the schema 2¹⁰⁰ paths lead there.
    value, expected = {"k": 1}, {"k": REDACTED}
    for _ in range(100):
        value, expected = [value], [expected]
    assert shown(schema, value) == expected


def test_a_pattern_is_matched_as_the_validator_matches_it() -> None:
    assert shown({"patternProperties": {r"^\p{Lu}+$": SECRET}}, {"ÄÖ": 1, "äö": 2}) == {
        "ÄÖ": REDACTED,
        "äö": 2,
    }


# ---- strings ----------------------------------------------------------------------------------------------


def test_strings_anywhere_in_a_secret_are_secret_and_keys_of_secret_objects_are_not() -> None:
    secrets = secrets_of(input={"properties": {"a": SECRET, "names": {"propertyNames": SECRET}}})
    assert secrets is not None
    value = {"a": {"user": "alice", "keys": ["k-1", 5]}, "names": {"bob": "x"}, "c": "plain"}
    assert sorted(secret_strings(value, secrets.input)) == ["alice", "bob", "k-1"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f"bearer {TOKEN}", f"bearer {REDACTED}"),
        ([{"url": f"http://x/?k={TOKEN}&n=1"}], [{"url": f"http://x/?k={REDACTED}&n=1"}]),
        ({TOKEN: 1, f"a{TOKEN}b": 2}, {REDACTED: 1, f"a{REDACTED}b": 2}),
        ({TOKEN: 1, REDACTED: 2, f"{REDACTED} 2": 3}, {f"{REDACTED} 3": 1, REDACTED: 2, f"{REDACTED} 2": 3}),
        (TOKEN * 3, REDACTED),
        (TOKEN[:-1], TOKEN[:-1]),
        (12345, 12345),
    ],
)
def test_a_secret_string_is_hidden_wherever_it_occurs(value: Any, expected: Any) -> None:
    assert redact(value, None, SecretTexts([TOKEN])) == expected


def test_overlapping_secrets_leave_nothing_of_each_other() -> None:
    assert SecretTexts(["abcdef", "defghi", "cdef"]).redact("-abcdefghi-") == f"-{REDACTED}-"
    assert SecretTexts(["abcdefgh", "cdef", "bcd"]).redact("abcdefghi") == f"{REDACTED}i"
    assert SecretTexts(["abcd", "abcdefgh"]).redact("abcdefgh abcdxx") == f"{REDACTED} {REDACTED}xx"


def test_what_is_too_short_is_hidden_at_its_place_only() -> None:
    texts = SecretTexts(["abc", ""])
    assert len(texts) == 0
    assert texts.redact("abcabc") == "abcabc"


@pytest.mark.parametrize("secret", ['p"a\\s ß/ö', "tab\tand\nline", " blank around ", "50% + 50%"])
def test_a_secret_is_found_as_json_python_and_urls_write_it(secret: str) -> None:
    texts = SecretTexts([secret])
    written = [
        json.dumps({"a": secret}),
        json.dumps([secret], ensure_ascii=False),
        repr(secret),
        f"https://u:{quote(secret, '')}@h/",
        f"https://h/{quote(secret)}",
        f"https://h/?q={quote_plus(secret).lower()}",
        f"stripped: {secret.strip()}.",
    ]
    for text in written:
        assert REDACTED in texts.redact(text), text
        assert texts.redact(text).count(REDACTED) == 1


def test_each_line_of_a_secret_of_several_lines_is_hidden() -> None:
    texts = SecretTexts([PEM])
    for line in PEM.splitlines():
        assert texts.redact(f"12:00 {line}") == f"12:00 {REDACTED}"


def test_the_beginning_of_a_longer_secret_is_hidden_where_a_text_was_cut_off() -> None:
    texts = SecretTexts([PEM.replace("\n", ""), "x" * 100])
    for length in (24, 30, 60, 99):
        assert texts.redact("x" * length + "…") == REDACTED + "…"
    assert texts.redact("x" * 23) == "x" * 23


@pytest.mark.parametrize("others", [0, 5000])
def test_a_text_of_ten_megabytes_is_looked_through_in_one_go(others: int) -> None:
    texts = SecretTexts(
        [TOKEN, "a" * 24 + "b" * 1_000_000, "aaaa", *(f"other-{n:06}" for n in range(others))]
    )
    text = "aab" * 3_000_000 + "b" * 1_000_000 + TOKEN
    began = time.process_time()
    assert texts.redact(text) == text.removesuffix(TOKEN) + REDACTED
    assert texts.redact("a" * 1_000_000) == REDACTED
    assert time.process_time() - began < 15


def test_what_nothing_is_changed_in_is_shared() -> None:
    value = {"a": [1, {"b": "x"}], "c": [TOKEN]}
    found = redact(value, None, SecretTexts([TOKEN]))
    assert found == {"a": [1, {"b": "x"}], "c": [REDACTED]}
    assert found["a"] is value["a"]
    assert redact(value, None, SecretTexts(["another"])) is value
    error = FlowError(1, "m", {"a": 1})
    assert redact_error(error, SecretTexts([TOKEN])) is error


def test_an_error_is_rid_of_secrets_in_its_message_and_its_data() -> None:
    error = FlowError(-32100, f"no {TOKEN}", {"stack": [f"at {TOKEN}"]})
    expected = FlowError(-32100, f"no {REDACTED}", {"stack": [f"at {REDACTED}"]})
    assert redact_error(error, SecretTexts([TOKEN])) == expected


def test_a_value_that_is_too_deep_to_be_looked_through_is_hidden() -> None:
    value: Any = TOKEN
    for _ in range(100_000):
        value = [value]
    assert redact(value, None, SecretTexts([TOKEN])) == REDACTED


# ---- schemas ----------------------------------------------------------------------------------------------


def test_a_misfit_at_a_secret_place_says_which_rule_and_nothing_of_the_value() -> None:
    flow = flow_from_json(
        {
            "name": "f",
            "description": "d",
            "schemas": {
                "properties": {
                    "input": {
                        "properties": {
                            "word": {"enum": ["hunter22", "swordfish"], **SECRET},
                            "keys": {"additionalProperties": {"type": "integer"}, **SECRET},
                            "n": {"type": "integer"},
                        }
                    }
                }
            },
            "steps": [],
        }
    )
    schemas = FlowSchemas(flow)
    near = schemas.check_input({"word": "swordfisch"})
    assert near is not None
    assert near.message == "the input does not fit its schema: $.word does not fit, and is secret"
    assert near.data["schema"] == "$.schemas.properties.input.properties.word.enum"
    below = schemas.check_input({"keys": {"alice": "x"}})
    assert below is not None
    assert "alice" not in json.dumps(below.to_json())
    assert below.data["path"] == "$.keys"
    plain = schemas.check_input({"n": "x"})
    assert plain is not None
    assert plain.message.endswith("$.n is a string, where an integer fits")


def test_the_schema_of_variables_is_shown_without_the_values_of_secrets() -> None:
    schema = {
        "default": {"a": "hunter22", "b": 1},
        "properties": {
            "a": {"type": "string", "is_secret": True, "default": "hunter22", "examples": ["hunter23"]},
            "b": {"default": 1},
            "c": {"$ref": "#/schemas/$defs/token", "const": "hunter24"},
            "d": {"items": {"anyOf": [{"const": "hunter25", **SECRET}, {"type": "null"}]}},
            "e": {**SECRET, "properties": {"f": {"default": "hunter26"}}},
        },
    }
    secrets = secrets_of(variables=schema, defs={"token": SECRET})
    assert secrets is not None
    found = without_values(schema, secrets.variables)
    assert "hunter2" not in json.dumps(found)
    assert found["default"] == {"a": REDACTED, "b": 1}
    assert found["properties"]["a"]["is_secret"] is True
    assert found["properties"]["b"] == {"default": 1}
    assert without_values(schema, None) is schema


@pytest.mark.parametrize(
    ("schemas", "path", "suggestion"),
    [
        ({"properties": {"steps": {"additionalProperties": SECRET}}}, "steps.additionalProperties", "<id>"),
        ({"properties": {"steps": {"patternProperties": {"a": SECRET}}}}, "steps.patternProperties", "<id>"),
        ({"properties": {"steps": {"properties": {"a": {}}, **SECRET}}}, "steps.is_secret", "<id>"),
        ({"additionalProperties": SECRET}, "additionalProperties", "input: …"),
        (SECRET, "is_secret", "input: …"),
    ],
)
def test_schemas_where_nobody_reads_them_are_warned_of(schemas: Any, path: str, suggestion: str) -> None:
    steps = [{"id": "a", "component": "/x/y"}]
    flow = {"name": "f", "description": "d", "schemas": schemas, "steps": steps, "output": {"$step": "a"}}
    [warning] = examine_flow_json(flow).diagnostics
    assert (warning.kind, warning.level) == (DiagnosticKind.UNKNOWN_FIELD, "warning")
    assert render_path(warning.path).endswith(f".{path}")
    assert warning.message.endswith("it is ignored")
    assert suggestion in warning.suggestion


def test_what_a_schema_may_say_beside_its_parts_is_not_warned_of() -> None:
    beside: dict[str, Any] = {
        "type": "object",
        "title": "T",
        "required": ["a"],
        "additionalProperties": False,
    }
    schemas: dict[str, Any] = {**beside, "properties": {"steps": {**beside, "properties": {"a": {}}}}}
    steps = [{"id": "a", "component": "/x/y"}]
    flow: dict[str, Any] = {
        "name": "f",
        "description": "d",
        "schemas": schemas,
        "steps": steps,
        "output": {"$step": "a"},
    }
    assert examine_flow_json(flow).diagnostics == ()
