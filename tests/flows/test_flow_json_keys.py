"""Keys that are JSON values: mappings, lists and scalars of YAML, texts of JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.flows.json_keys import key_of_value, keys_are_inputs, value_of_key
from stepflow_trio.flows.reader import examine_flow
from stepflow_trio.flows.source import read_source

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def at_k(path: tuple[str | int, ...]) -> bool:
    return path == ("k",)


def keys_of(text: str, name: str = "a.yaml") -> list[Any]:
    source = read_source(text, name=name, json_keys_at=at_k)
    assert source.diagnostics == ()
    return [value_of_key(key) for key in source.value["k"]]


@given(JSON)
def test_a_key_stands_for_the_value_that_it_was_made_of(value: Any) -> None:
    key = key_of_value(value)
    assert json.dumps(value_of_key(key), sort_keys=True) == json.dumps(value, sort_keys=True)
    assert key_of_value(value_of_key(key)) == key


@given(st.text())
def test_every_text_is_a_key_that_stands_for_one_value(text: str) -> None:
    value = value_of_key(text)
    if isinstance(value, str) and value == text:
        assert key_of_value(text) == text
    else:
        assert key_of_value(text) != text


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": [True]}, {"b": [True], "a": 1}, True),
        (1, 1.0, False),
        (1, True, False),
        (1, "1", False),
        (None, "null", False),
        ([1, 2], [2, 1], False),
        ("ä", "ä", True),
        (1e2, 100.0, True),
    ],
)
def test_equal_keys_are_equal_json(one: Any, other: Any, same: bool) -> None:
    assert (key_of_value(one) == key_of_value(other)) is same


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_what_json_does_not_have_has_no_key(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        key_of_value(value)


def test_keys_of_yaml_keep_their_types() -> None:
    text = """\
k:
  { input: "a" }: 1
  [1, { b: null }]: 2
  null: 3
  1: 4
  1.0: 5
  "1": 6
  plain text: 7
  yes: 8
  true: 9
  '{"input": "a"}': 10
  ? a: 1
    b: 2
  : 11
  &anchor [x]: 12
"""
    assert keys_of(text) == [
        {"input": "a"}, [1, {"b": None}], None, 1, 1.0, "1", "plain text", "yes", True, '{"input": "a"}',
        {"a": 1, "b": 2}, ["x"],
    ]  # fmt: skip


def test_a_merge_key_still_merges() -> None:
    text = "base: &base { a: 1 }\nk:\n  <<: *base\n  { b: 1 }: 2\n"
    assert keys_of(text) == ["a", {"b": 1}]


def test_keys_of_json_are_texts_of_json_or_themselves() -> None:
    text = r'{"k": {"{\"input\": \"a\"}": 1, "a": 2, "1": 3, "\"1\"": 4, "NaN": 5}}'
    assert keys_of(text, "a.json") == [{"input": "a"}, "a", 1, "1", "NaN"]


def test_a_value_behind_such_a_key_has_its_place() -> None:
    text = "k:\n  { input: a }:\n    wrong: 1\n"
    source = read_source(text, name="a.yaml", json_keys_at=at_k)
    [key] = source.value["k"]
    assert str(source.place(("k", key), at_key=True)) == "a.yaml:2:3"
    assert str(source.place(("k", key, "wrong"))) == "a.yaml:3:12"


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("other:\n  {a: 1}: 2\n", "a.yaml:2:3", "this key is an object; keys are strings here"),
        ("k:\n  x:\n    7: 2\n", "a.yaml:3:5", "this key is a number; keys are strings here"),
        ("k:\n  { {x: 1}: 2 }: 8\n", "a.yaml:2:5", "this key is an object; keys are strings here"),
        ("k:\n  { {k: {}, k: {}}: 2 }: 8\n", "a.yaml:2:13", 'the key "k" is already'),
        ("k:\n  .nan: 1\n", "a.yaml:2:3", "this key is not JSON"),
        ("k:\n  {a: 1}: 1\n  {a: 1}: 2\n", "a.yaml:3:3", "is already in line 2"),
    ],
)
def test_elsewhere_and_inside_of_keys_keys_are_strings(text: str, place: str, says: str) -> None:
    source = read_source(text, name="a.yaml", json_keys_at=at_k)
    found = source.diagnostics[0]
    assert str(found.place) == place
    assert says in found.message


def test_a_flow_may_hold_a_mock_in_the_configuration_of_its_tests() -> None:
    text = """\
output: 1
test:
  config:
    plugins:
      mock:
        type: mock
        components:
          /one: { behaviors: { { input: a }: { outcome: success, result: 1 } } }
    routes: { "/mock/{c}": [{ plugin: mock }] }
"""
    reading = examine_flow(text, name="a.yaml")
    assert [found for found in reading.diagnostics if found.level != "warning"] == []
    assert reading.flow is not None
    assert reading.flow.test is not None
    component = reading.flow.test["config"]["plugins"]["mock"]["components"]["/one"]
    assert [value_of_key(key) for key in component["behaviors"]] == [{"input": "a"}]
    misplaced = examine_flow("output: {{a: 1}: 2}\n", name="a.yaml")
    assert "keys are strings here" in str(misplaced.diagnostics[-1])


def test_inputs_are_keys_only_where_a_mock_says_what_it_does() -> None:
    assert keys_are_inputs(("plugins", "m", "components", "/x", "behaviors"))
    assert keys_are_inputs(("test", "config", "plugins", "m", "components", "/x", "behaviors"))
    assert keys_are_inputs(("plugins", "m", "component", "/x", "behaviours"))
    for path in [
        (),
        ("plugins",),
        ("plugins", "m", "components", "/x"),
        ("plugins", "m", "components", "/x", "input_schema"),
        ("steps", 0, "behaviors"),
    ]:
        assert not keys_are_inputs(path)
