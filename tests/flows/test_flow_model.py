import hashlib
import json

import msgspec
import pytest

from stepflow_trio.flows.model import Fail, Flow, Retry, Step, UseDefault, flow_id
from stepflow_trio.flows.reader import flow_from_json, read_flow

FULL = """\
metadata: {z: 1, a: 2, $x: null}
examples: [{input: 1, name: e, description: null, tag: x}]
test:
  cases:
  - {input: {b: 1}, name: c, output: {result: 2, outcome: success}, extra: 1}
  config: {plugins: {}}
output: {z: {path: x, $step: b, note: gone}, a: {$input: "$['k.l']"}}
steps:
- metadata: {y: 1, b: 2}
  input: {$if: {$input: c}, else: null, then: {$variable: v}}
  onError: {maxRetries: 3, action: retry}
  component: /x/y
  id: a
- {id: b, component: /z, input: null, mustExecute: false, onError: {action: fail}, metadata: {}, unknown: 1}
schemas:
  title: t
  properties: {output: {type: string}, input: true, variables: null, steps: {properties: {a: {}}}}
  $defs: {B: {}, A: {}}
version: "2"
description: d
name: n
"""

NORMAL = {
    "name": "n",
    "description": "d",
    "version": "2",
    "schemas": {
        "type": "object",
        "$defs": {"B": {}, "A": {}},
        "properties": {
            "input": True,
            "output": {"type": "string"},
            "steps": {"type": "object", "properties": {"a": {}}},
        },
    },
    "steps": [
        {
            "id": "a",
            "component": "/x/y",
            "onError": {"action": "retry", "maxRetries": 3},
            "input": {"$if": {"$input": "$.c"}, "then": {"$variable": "$.v"}, "else": None},
            "metadata": {"y": 1, "b": 2},
        },
        {"id": "b", "component": "/z", "onError": {"action": "fail"}, "mustExecute": False},
    ],
    "output": {"z": {"$step": "b", "path": "$.x"}, "a": {"$input": "$['k.l']"}},
    "test": {
        "config": {"plugins": {}},
        "cases": [{"name": "c", "input": {"b": 1}, "output": {"outcome": "success", "result": 2}}],
    },
    "examples": [{"name": "e", "input": 1}],
    "metadata": {"z": 1, "a": 2, "$x": None},
}


def test_the_normal_form_has_the_specified_order_and_drops_what_says_nothing():
    # Compared as text: the order of the keys is part of the form.
    assert json.dumps(read_flow(FULL).to_json()) == json.dumps(NORMAL)


def test_reading_the_normal_form_gives_the_same_flow():
    flow = read_flow(FULL)
    again = flow_from_json(flow.to_json())
    assert msgspec.structs.replace(again, warnings=()) == msgspec.structs.replace(flow, warnings=())


def test_the_normal_form_of_nothing_is_empty():
    assert Flow().to_json() == {}
    assert flow_from_json({"steps": [], "metadata": {}, "schemas": {"type": "object"}}).to_json() == {}


@pytest.mark.parametrize(
    ("on_error", "written"),
    [
        (Fail(), None),
        (Fail(explicit=True), {"action": "fail"}),
        (UseDefault(None), {"action": "useDefault"}),
        (UseDefault({"a": 1}), {"action": "useDefault", "defaultValue": {"a": 1}}),
        (Retry(2), {"action": "retry", "maxRetries": 2}),
        (Retry(3, explicit=False), {"action": "retry"}),
    ],
)
def test_on_error_is_written_as_it_was_said(on_error, written):
    assert Step(id="a", component="/a", on_error=on_error).to_json().get("onError") == written


def test_the_flow_id_is_the_sha256_of_the_compact_normal_form():
    text = json.dumps(NORMAL, separators=(",", ":")).encode()
    assert flow_id(read_flow(FULL)) == hashlib.sha256(text).hexdigest()


def test_the_flow_id_spells_numbers_as_the_public_releases_do():
    text = '{"steps":[{"id":"a","component":"/x","input":1e+16}],"output":{"$step":"a"}}'
    value = {"steps": [{"id": "a", "component": "/x", "input": 1e16}], "output": {"$step": "a"}}
    assert flow_id(flow_from_json(value)) == hashlib.sha256(text.encode()).hexdigest()


def test_the_hash_of_a_known_value_is_the_public_releases():
    # A blob's id, published in a test flow of the public releases: the same hash of the same encoding.
    value = {
        "message": "Hello, blobs!",
        "number": 42,
        "nested": {"array": [1, 2, 3], "boolean": True},
    }
    expected = "868591347a854ba1d0f4875b2dd44e1e8335052af03725a9819f89e0142318b0"
    assert hashlib.sha256(msgspec.json.encode(value)).hexdigest() == expected


def test_texts_that_mean_the_same_flow_have_one_id():
    spread = 'output:\n  $step: "a" # comment\n  path: b\nsteps:\n  - {component: /x, id: a}\nowner: me\n'
    compact = '{"steps":[{"id":"a","component":"/x"}],"output":{"$step":"a","path":"$.b"}}'
    assert flow_id(read_flow(spread)) == flow_id(read_flow(compact))


def test_paths_that_differ_have_different_ids():
    ids = {
        flow_id(flow_from_json({"output": {"$input": path}})) for path in ("$.a.b", "$['a.b']", "$['']", "$")
    }
    assert len(ids) == 4


def test_metadata_with_many_keys_has_a_stable_id():
    value = {"metadata": {f"k{i}": i for i in range(50)}}
    assert len({flow_id(flow_from_json(json.loads(json.dumps(value)))) for _ in range(10)}) == 1


def test_records_cannot_be_changed():
    with pytest.raises(AttributeError):
        read_flow("name: n").name = "m"
