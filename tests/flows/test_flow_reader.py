import itertools
import json
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow_trio.errors import FlowInvalid
from stepflow_trio.flows.diagnostics import DiagnosticKind as Kind
from stepflow_trio.flows.expressions import InputRef, StepRef
from stepflow_trio.flows.model import Fail, Flow, Retry, UseDefault
from stepflow_trio.flows.reader import (
    examine_flow,
    examine_flow_json,
    flow_from_json,
    read_flow,
    read_flow_file,
)

NAMED = "name: n\ndescription: d\n"


def invalid(text, name="flow.yaml"):
    with pytest.raises(FlowInvalid) as caught:
        read_flow(text, name=name)
    assert all(d.level != "warning" for d in caught.value.diagnostics)
    return caught.value.diagnostics


def places(text, name="flow.yaml"):
    """Every error as (line, column, kind)."""
    return [(d.place.line, d.place.column, d.kind) for d in invalid(text, name)]


def only_warning(text):
    [warning] = read_flow(NAMED + text, name="flow.yaml").warnings
    assert warning.level == "warning"
    return warning


def test_a_flow_is_read_with_all_of_its_parts():
    flow = read_flow(
        """\
schema: https://stepflow.org/schemas/v1/flow.json
name: n
description: d
version: "1"
schemas: {type: object, properties: {input: {type: object}}}
steps:
- id: a
  component: /builtin/eval
  onError: {action: useDefault, defaultValue: [1]}
  input: {$input: x}
  mustExecute: true
  metadata: {k: 1}
- id: b
  component: /b
  onError: {action: retry, maxRetries: 5}
output: {$step: a, path: $.y}
test: {cases: [{name: t, input: 1, output: {outcome: success, result: 2, more: 3}}]}
examples: [{name: e, input: null}]
metadata: {z: 1, a: 2}
""",
    )
    first, second = flow.steps
    assert (first.id, first.component, first.input) == ("a", "/builtin/eval", InputRef(("x",)))
    assert (first.on_error, first.must_execute, first.metadata) == (UseDefault([1]), True, {"k": 1})
    assert (second.on_error, second.must_execute) == (Retry(5), None)
    assert flow.output == StepRef("a", ("y",))
    assert (flow.name, flow.description, flow.version) == ("n", "d", "1")
    assert flow.schemas == {"type": "object", "properties": {"input": {"type": "object"}}}
    assert flow.test == {"cases": [{"name": "t", "input": 1, "output": {"outcome": "success", "result": 2}}]}
    assert flow.examples == [{"name": "e", "input": None}]
    assert [warning.kind for warning in flow.warnings] == [Kind.UNREACHABLE_STEP]


@pytest.mark.parametrize(
    ("on_error", "read"),
    [
        ("null", Fail()),
        ("{action: fail}", Fail(explicit=True)),
        ("{action: useDefault}", UseDefault(None)),
        ("{action: retry}", Retry(3, explicit=False)),
        ("{action: retry, maxRetries: null}", Retry(3, explicit=False)),
        ("{action: retry, maxRetries: 0}", Retry(0)),
    ],
)
def test_on_error_says_what_happens_to_a_failed_step(on_error, read):
    flow = read_flow(f"steps: [{{id: a, component: /a, onError: {on_error}}}]\noutput: {{$step: a}}")
    assert flow.steps[0].on_error == read


def test_explicit_null_is_absent():
    fields = ("name", "description", "version", "schemas", "steps", "output", "test", "examples", "metadata")
    bare = msgspec.structs.replace(flow_from_json(dict.fromkeys(fields)), warnings=())
    assert bare == Flow()


def test_a_diagnostic_shows_its_place_the_line_a_caret_and_what_to_do():
    text = """\
steps:
- id: fetch
  component: /http/get
output:
  body: { $step: ftech, path: $.body }
"""
    [diagnostic] = invalid(text)
    assert str(diagnostic) == (
        'flow.yaml:5:18: error: the output refers to step "ftech", which does not exist '
        "[3003 at $.output.body.$step]\n"
        "    5 |   body: { $step: ftech, path: $.body }\n"
        "      |                  ^\n"
        '      = did you mean "fetch"?'
    )
    assert diagnostic.to_json() == {
        "kind": "undefinedStepReference",
        "code": 3003,
        "level": "fatal",
        "formatted": 'the output refers to step "ftech", which does not exist; did you mean "fetch"?',
        "data": {"from_step": "workflow_output", "referenced_step": "ftech"},
        "path": "$.output.body.$step",
        "suggestion": 'did you mean "fetch"?',
        "place": {"source": "flow.yaml", "line": 5, "column": 18},
    }


def test_everything_wrong_is_found_in_one_go_in_the_order_of_the_source():
    text = """\
name: 7
stepz: []
steps:
- id: a
  component: nope
  onError: {action: explode}
- id: a
  compnent: /x
- component: /x
  input: {$step: b, path: 3}
- id: ""
  component: /x
  mustExecute: maybe
- not a step
- id: c
  component: /x
  input: {$if: {$step: c}}
output: {x: {$step: gone}, x: 1}
"""
    assert places(text) == [
        (1, 7, Kind.WRONG_TYPE),
        (5, 14, Kind.INVALID_COMPONENT),
        (6, 21, Kind.WRONG_TYPE),
        (7, 3, Kind.MISSING_FIELD),
        (7, 7, Kind.DUPLICATE_STEP_ID),
        (8, 3, Kind.MISSPELLED_FIELD),
        (9, 3, Kind.MISSING_FIELD),
        (10, 18, Kind.UNDEFINED_STEP_REFERENCE),
        (10, 27, Kind.INVALID_REFERENCE_EXPRESSION),
        (11, 7, Kind.EMPTY_STEP_ID),
        (13, 16, Kind.WRONG_TYPE),
        (14, 3, Kind.WRONG_TYPE),
        (17, 10, Kind.INVALID_REFERENCE_EXPRESSION),
        (17, 24, Kind.SELF_REFERENCE),
        (18, 28, Kind.DUPLICATE_KEY),
    ]


def test_json_has_places_and_python_values_have_paths():
    value = {"steps": [{"id": "a", "component": "a"}], "output": {"$step": "a"}}
    [diagnostic] = invalid(json.dumps(value, indent=1), "flow.json")
    assert str(diagnostic.place) == "flow.json:5:17"
    [diagnostic] = [d for d in examine_flow_json(value, name="api").diagnostics if d.level == "error"]
    assert str(diagnostic) == (
        'api: error: "a" is not a component\'s path: that starts with "/" [2500 at $.steps[0].component]\n'
        '      = write "/<plugin>/a", such as "/builtin/eval"'
    )


def test_a_flow_with_errors_can_be_examined_but_not_run():
    reading = examine_flow("steps: [{id: a, component: a/b}]\noutput: {$step: a}")
    assert reading.flow is not None
    assert [d.kind for d in reading.diagnostics if d.level == "error"] == [Kind.INVALID_COMPONENT]
    with pytest.raises(FlowInvalid):
        reading.runnable_flow()
    assert examine_flow("steps: 1").flow is None
    assert [d.kind for d in examine_flow("[").diagnostics] == [Kind.SYNTAX_ERROR]
    assert [d.kind for d in examine_flow_json({1: 2}).diagnostics] == [Kind.NOT_JSON]


# Shape


@pytest.mark.parametrize(
    ("text", "place", "message", "suggestion"),
    [
        ("null", (1, 1), "the flow is empty", "steps"),
        ("[]", (1, 1), "a flow is an object, not an array", "steps"),
        ("version: 1.0", (1, 10), "version is a string, not a number", 'version: "1.0"'),
        ("name: true", (1, 7), "name is a string, not a boolean", 'name: "true"'),
        ("steps: {a: {component: /a}}", (1, 8), "steps is an array, not an object", "with a dash"),
        ("metadata: []", (1, 11), "metadata is an object, not an array", ""),
        ("schema: {}", (1, 1), 'a flow has no field "schema"', 'did you mean "schemas"?'),
        ("schemas: {input: {}}", (1, 11), "stands beside, not inside", "properties: {input: …}"),
        (
            "schemas: {properties: {input: 1}}",
            (1, 31),
            "a schema is an object or a boolean, not a number",
            "",
        ),
        ("schemas: {properties: {inptu: {}}}", (1, 24), "has no field", 'did you mean "input"?'),
        ("steps: [{id: a, component: /a, onError: fail}]", (1, 41), "onError is an object", "{action: fail}"),
        (
            "steps: [{id: a, component: /a, onError: {}}]",
            (1, 41),
            'onError needs an "action"',
            "",
        ),
        (
            "steps: [{id: a, component: /a, onError: {action: rety}}]",
            (1, 50),
            'no action "rety"',
            'did you mean "retry"?',
        ),
        (
            "steps: [{id: a, component: /a, onError: {action: skip}}]",
            (1, 50),
            'no action "skip"',
            'did you mean "useDefault"?',
        ),
        (
            "steps: [{id: a, component: /a, onError: {action: retry, maxRetries: -1}}]",
            (1, 69),
            "a whole number from 0 to 4,294,967,295",
            "",
        ),
        ("steps: [{id: 1, component: /a}]", (1, 14), "id is a string, not a number", 'id: "1"'),
        ("steps: [{id: a, component: eval}]", (1, 28), '"eval" is not a component\'s path', "/builtin/eval"),
        ("steps: [{id: a, component: x/y}]", (1, 28), '"x/y" is not a component\'s path', '"/x/y"'),
        ("steps: [{id: a, component: ''}]", (1, 28), '"" is not a component\'s path', ""),
        ("test: {cases: [{name: t}]}", (1, 16), 'a test case needs an "input"', "input: null"),
        (
            "test: {cases: [{name: t, input: 1, output: {outcome: skipped}}]}",
            (1, 44),
            'not "skipped"',
            "outcome: success",
        ),
        ("examples: [{input: 1}]", (1, 12), 'an example needs a "name"', ""),
        ("examples: {}", (1, 11), "examples is an array, not an object", "with a dash"),
    ],
)
def test_a_wrong_shape_is_named_with_its_place_and_what_to_write(text, place, message, suggestion):
    [diagnostic] = invalid(text)
    assert (diagnostic.place.line, diagnostic.place.column) == place
    assert message in diagnostic.message
    assert suggestion in diagnostic.suggestion


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("stpes: []", "steps"),
        ("ouput: 1", "output"),
        ("Metadata: {}", "metadata"),
        ("exmaples: []", "examples"),
        ("steps: [{id: a, component: /a, inputs: 1}]", "input"),
        ("steps: [{id: a, component: /a, onerror: null}]", "onError"),
        ("steps: [{id: a, component: /a, must-execute: true}]", "mustExecute"),
        ("steps: [{id: a, component: /a, onError: {action: retry, maxRetires: 1}}]", "maxRetries"),
        ("steps: [{id: a, component: /a, onError: {action: retry, maxRetry: 1}}]", "maxRetries"),
        ("steps: [{id: a, component: /a, onError: {action: retry, retries: 1}}]", "maxRetries"),
        ("steps: [{id: a, component: /a, onError: {action: useDefault, default: 1}}]", "defaultValue"),
        ("steps: [{id: a, component: /a, onError: {action: useDefault, value: 1}}]", "defaultValue"),
        ("test: {case: []}", "cases"),
    ],
)
def test_a_misspelled_field_is_an_error_that_names_the_one_meant(text, meant):
    [diagnostic] = invalid(text)
    assert diagnostic.kind is Kind.MISSPELLED_FIELD
    assert diagnostic.suggestion == f'did you mean "{meant}"?'


def test_an_unknown_field_is_a_warning_and_no_part_of_the_flow():
    warning = only_warning("owner: me\noutput: 1\n")
    assert (warning.kind, str(warning.place)) == (Kind.UNKNOWN_FIELD, "flow.yaml:3:1")
    assert warning.suggestion == "keep notes and tools' data in metadata"
    assert "owner" not in read_flow(NAMED + "owner: me").to_json()


def test_a_near_miss_beside_the_real_field_is_only_unknown():
    assert only_warning("output: 1\noutputs: 2\n").kind is Kind.UNKNOWN_FIELD


def test_a_duplicate_step_id_names_the_step_that_has_it_first():
    step = {"component": "/x"}
    ids = ("a", "b", "c", "b", "b")
    value = {"steps": [{**step, "id": i} for i in ids], "output": {"$step": "b"}}
    value["steps"][2]["input"] = {"$step": "b"}
    assert found(value) == [
        (Kind.DUPLICATE_STEP_ID, ("steps", position, "id"), 'the step id "b" is already that of $.steps[1]')
        for position in (3, 4)
    ]


def test_a_name_of_one_letter_has_no_misspelling():
    [diagnostic] = invalid("steps: [{id: a, component: /a}]\noutput: {$step: b}")
    assert diagnostic.suggestion == ""


# Earlier syntax


@pytest.mark.parametrize("style", [("inputSchema", "outputSchema"), ("input_schema", "output_schema")])
def test_earlier_schema_fields_are_read_into_schemas_with_a_warning(style):
    flow = read_flow(
        f"{NAMED}{style[0]}: {{type: string}}\n{style[1]}: {{type: number}}\n"
        f"steps: [{{id: a, component: /a, {style[1]}: {{type: 'null'}}, {style[0]}: {{}}}}]\n"
        "output: {$step: a}"
    )
    assert flow.schemas == {
        "type": "object",
        "properties": {
            "input": {"type": "string"},
            "output": {"type": "number"},
            "steps": {"type": "object", "properties": {"a": {"type": "null"}}},
        },
    }
    assert [w.kind for w in flow.warnings] == [Kind.OLD_SYNTAX] * 4


def test_the_schemas_of_today_win_over_earlier_fields():
    flow = read_flow("inputSchema: {type: string}\nschemas: {properties: {input: {type: number}}}")
    assert flow.schemas == {"type": "object", "properties": {"input": {"type": "number"}}}


def test_snake_case_fields_are_read_as_camel_case_with_a_warning():
    flow = read_flow(
        NAMED + "steps: [{id: a, component: /a, must_execute: true,"
        " on_error: {action: use_default, default_value: 7}}]\noutput: {$step: a}"
    )
    assert flow.steps[0].must_execute is True
    assert flow.steps[0].on_error == UseDefault(7)
    assert [w.kind for w in flow.warnings] == [Kind.OLD_SYNTAX] * 4


def test_the_name_of_today_wins_over_the_earlier_one():
    for pair in ("mustExecute: true, must_execute: false", "must_execute: false, mustExecute: true"):
        flow = read_flow(f"steps: [{{id: a, component: /a, {pair}}}]")
        assert flow.steps[0].must_execute is True


@pytest.mark.parametrize("field", ["skip", "skipIf", "skip_if", "onSkip", "on_skip"])
def test_skipping_is_gone_with_a_warning_that_says_what_to_write(field):
    step = "steps: [{{id: a, component: /a, {}: {}}}]\noutput: {{$step: a}}"
    warning = only_warning(step.format(field, "true"))
    assert (warning.kind, warning.path) == (Kind.OLD_SYNTAX, ("steps", 0, field))
    assert "choose with $if or $coalesce" in warning.suggestion
    assert read_flow(NAMED + step.format(field, "null")).warnings == ()


def test_old_references_are_read_with_a_warning():
    flow = read_flow(NAMED + "output: {$from: {workflow: input}, path: x}")
    assert flow.output == InputRef(("x",))
    [warning] = flow.warnings
    assert (warning.kind, str(warning.place)) == (Kind.OLD_SYNTAX, "<flow>:3:10")
    assert warning.suggestion == 'write {"$input": "$.x"}'


def test_old_fields_of_test_configurations_are_read_with_a_warning():
    flow = read_flow(NAMED + "test: {stepflow_config: {plugins: {}}, servers: {a: {command: x}}}")
    assert flow.test == {"config": {"plugins": {}}}
    assert [w.kind for w in flow.warnings] == [Kind.OLD_SYNTAX] * 2


# References


def flow_of(**inputs):
    steps = [
        {"id": name, "component": "/x", "input": [{"$step": n} for n in needs]}
        for name, needs in inputs.items()
    ]
    return {"steps": steps, "output": [{"$step": name} for name in inputs]}


def found(value):
    return [(d.kind, d.path, d.message) for d in examine_flow_json(value).diagnostics if d.level == "fatal"]


def test_a_reference_to_a_later_step_says_which_to_move():
    [(kind, path, message)] = found(flow_of(a="b", b=""))
    assert (kind, path) == (Kind.FORWARD_REFERENCE, ("steps", 0, "input", 0, "$step"))
    assert message == 'step "a" refers to step "b", which comes later'


def test_a_ring_of_steps_is_one_error_that_names_its_members():
    assert [m for _, _, m in found(flow_of(a="b", b="a"))] == [
        "steps wait for each other in a ring: a → b → a"
    ]
    [(kind, path, message)] = found(flow_of(a="d", b="a", c="b", d="c", e="d"))
    assert kind is Kind.REFERENCE_CYCLE
    assert path == ("steps", 0, "input", 0, "$step")
    assert message == "steps wait for each other in a ring: a → d → c → b → a"


def test_a_ring_is_reported_once_however_many_references_close_it():
    assert len(found(flow_of(a="bc", b="ca", c="ab"))) == 1


def test_two_rings_and_a_forward_reference_between_them_are_three_errors():
    kinds = [kind for kind, _, _ in found(flow_of(a="bc", b="a", c="d", d="c"))]
    assert sorted(kinds, key=lambda k: k.code) == [
        Kind.REFERENCE_CYCLE,
        Kind.REFERENCE_CYCLE,
        Kind.FORWARD_REFERENCE,
    ]


def test_a_step_that_refers_to_itself_is_named():
    assert [(k, m) for k, _, m in found(flow_of(a="a"))] == [
        (Kind.SELF_REFERENCE, 'step "a" refers to itself')
    ]


def test_references_are_checked_in_every_branch_and_default_but_not_in_literals():
    value = {
        "steps": [],
        "output": {
            "$if": {"$step": "a"},
            "then": {"$coalesce": [{"$step": "b"}]},
            "else": {"$variable": "v", "default": [{"$step": "c"}, {"$literal": {"$step": "d"}}]},
        },
    }
    assert [path for _, path, _ in found(value)] == [
        ("output", "$if", "$step"),
        ("output", "then", "$coalesce", 0, "$step"),
        ("output", "else", "default", 0, "$step"),
    ]


@given(st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=1, max_size=8))
def test_a_flow_is_accepted_exactly_if_all_references_point_back(needs):
    needs = [[n % len(needs) for n in each] for each in needs]
    names = "abcdefgh"
    value = flow_of(**{names[i]: "".join(names[n] for n in each) for i, each in enumerate(needs)})
    errors = found(value)
    assert bool(errors) == any(n >= i for i, each in enumerate(needs) for n in each)
    for kind, _, message in errors:
        if kind is Kind.REFERENCE_CYCLE:
            ring = message.removeprefix("steps wait for each other in a ring: ").split(" → ")
            assert ring[0] == ring[-1]
            assert len(set(ring)) == len(ring) - 1 >= 2
            assert all(names.index(b) in needs[names.index(a)] for a, b in itertools.pairwise(ring))


def test_steps_that_nothing_needs_are_warned_of_and_mandatory_ones_are_not():
    step = {"component": "/x"}
    value = {
        "steps": [
            {**step, "id": "a"},
            {**step, "id": "b", "input": {"$step": "a"}},
            {**step, "id": "c"},
            {**step, "id": "d", "mustExecute": True, "input": {"$step": "c"}},
        ],
        "output": 1,
    }
    assert [(w.kind, w.path) for w in flow_from_json(value).warnings if w.code == 1000] == [
        (Kind.UNREACHABLE_STEP, ("steps", 0)),
        (Kind.UNREACHABLE_STEP, ("steps", 1)),
    ]


def test_variables_are_checked_against_their_schema():
    declared = "schemas: {properties: {variables: {properties: {timeout: {type: string}}}}}\n"
    assert read_flow(NAMED + declared + "output: {$variable: timeout}").warnings == ()
    [missing] = invalid(declared + "output: {$variable: $.tmeout.x}")
    assert (missing.kind, missing.suggestion) == (Kind.UNDEFINED_REQUIRED_VARIABLE, 'did you mean "timeout"?')
    [other] = invalid(declared + "output: {$variable: other, default: 1}")
    assert (other.kind, other.suggestion) == (Kind.UNDEFINED_VARIABLE, "declare it there")
    undeclared = only_warning("output: [{$variable: a}, {$variable: b}]")
    assert undeclared.kind is Kind.MISSING_VARIABLE_SCHEMA


def test_a_missing_name_and_description_are_warnings():
    assert [w.kind for w in read_flow("name: ' '\n").warnings] == [
        Kind.MISSING_FLOW_DESCRIPTION,
        Kind.MISSING_FLOW_NAME,
    ]


# Files and robustness


def test_a_file_is_read_under_its_own_name(tmp_path):
    path = tmp_path / "flow.yaml"
    path.write_text("steps: 1\n", encoding="utf-8")
    with pytest.raises(FlowInvalid) as caught:
        read_flow_file(path)
    assert str(caught.value.diagnostics[0].place) == f"{path}:1:8"
    path.write_text("name: n\n", encoding="utf-8")
    assert read_flow_file(str(path)).name == "n"


@pytest.mark.parametrize(
    ("name", "why"),
    [("missing.yaml", "No such file or directory"), (".", "Is a directory"), ("a\0b", "null byte")],
)
def test_a_file_that_cannot_be_read_is_an_invalid_flow(tmp_path, name, why):
    with pytest.raises(FlowInvalid) as caught:
        read_flow_file(f"{tmp_path}/{name}")
    [diagnostic] = caught.value.diagnostics
    assert diagnostic.kind is Kind.UNREADABLE
    assert why in diagnostic.message
    assert "\0" not in str(caught.value)


def test_a_text_that_is_wrong_everywhere_is_reported_within_bounds():
    value = {"steps": [{"id": f"s{i}", "component": "x", "input": {"$step": f"t{i}"}} for i in range(20_000)]}
    before = time.perf_counter()
    diagnostics = examine_flow(json.dumps(value), name="f.json").diagnostics
    assert time.perf_counter() - before < 10
    assert len(diagnostics) == 1001
    assert any(d.message == "59,002 more findings are not shown" for d in diagnostics)


@pytest.mark.parametrize("depth", [127, 128, 400, 100_000])
def test_nesting_is_bounded_at_128_before_anything_recurses(depth):
    brackets = "[" * (depth - 1) + '{"$input":"$"}' + "]" * (depth - 1)
    for name in ("f.json", "f.yaml"):
        [*kinds] = (d.kind for d in examine_flow(f'{{"output": {brackets}}}', name=name).diagnostics)
        if depth + 1 <= 128:
            assert kinds == [Kind.MISSING_FLOW_NAME, Kind.MISSING_FLOW_DESCRIPTION]
        else:
            assert kinds == [Kind.LIMIT_EXCEEDED]


def test_no_flood_of_warnings_hides_an_error():
    value = {f"note_{i}": i for i in range(1200)} | {"steps": 1}
    kinds = [d.kind for d in examine_flow_json(value).diagnostics]
    assert len(kinds) == 1001
    assert kinds.count(Kind.WRONG_TYPE) == 1


def test_an_endless_name_is_shown_in_part():
    [diagnostic] = invalid(json.dumps({"output": {"$step": "x" * 10**6}}))
    assert len(str(diagnostic)) < 1500


def test_control_characters_and_half_surrogates_never_reach_the_terminal():
    value = {"steps": [{"id": "a\x1b[31m", "component": "\x07"}, {"id": "a\x1b[31m", "component": "/x"}]}
    reading = examine_flow(json.dumps(value), name="\udcff.json")
    shown = "\n".join(str(d) for d in reading.diagnostics)
    assert set(filter(lambda c: not c.isprintable(), shown)) == {"\n"}


FLOW_KEYS = ["steps", "output", "schemas", "properties", "test", "cases", "metadata", "examples", "name"]
STEP_KEYS = ["id", "component", "input", "onError", "action"]
EXPRESSION_KEYS = ["$step", "path", "$if", "then", "$coalesce", "$from", "$variable", "default"]
KEYS = st.sampled_from([*FLOW_KEYS, *STEP_KEYS, *EXPRESSION_KEYS])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["a", "$", "$.a", "/x", "retry", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_json_object_is_a_flow_or_invalid_and_its_normal_form_is_stable(value):
    reading = examine_flow_json(value)
    if any(d.level != "warning" for d in reading.diagnostics):
        with pytest.raises(FlowInvalid):
            flow_from_json(value)
        return
    flow = flow_from_json(value)
    normal = flow.to_json()
    again = flow_from_json(normal)
    assert again.to_json() == normal
    assert msgspec.structs.replace(again, warnings=()) == msgspec.structs.replace(flow, warnings=())


@settings(max_examples=300, deadline=None)
@given(st.text() | st.binary() | st.dictionaries(KEYS, VALUES, max_size=4).map(json.dumps))
def test_any_text_is_a_flow_or_invalid(text):
    for name in ("f.yaml", "f.json"):
        reading = examine_flow(text, name=name)
        "".join(map(str, reading.diagnostics)).encode()
        if any(d.level != "warning" for d in reading.diagnostics):
            with pytest.raises(FlowInvalid):
                read_flow(text, name=name)
        else:
            assert isinstance(read_flow(text, name=name), Flow)
