"""Flows written in Python: what they come to, and what is said where a mistake is made."""

import enum
import math
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import stepflow_trio
from stepflow_trio.errors import FlowInvalid, PathInvalid
from stepflow_trio.flows.builder import FlowBuilder, StepHandle, Value, coalesce, if_, literal
from stepflow_trio.flows.diagnostics import DiagnosticKind as Kind
from stepflow_trio.flows.expressions import InputRef, StepRef, VariableRef
from stepflow_trio.flows.model import Fail, Retry, UseDefault
from stepflow_trio.flows.reader import flow_from_json, read_flow

ROOT = Path(stepflow_trio.__file__).parent.parent


def named():
    return FlowBuilder(name="n", description="d")


def with_steps(*ids):
    builder = named()
    return builder, *(builder.add_step(id, component="/x/y") for id in ids)


def fault(make):
    """The one thing that is wrong with what ``make`` does."""
    with pytest.raises(FlowInvalid) as caught:
        make()
    [diagnostic] = caught.value.diagnostics
    return diagnostic


def output_json(value):
    """What a value comes to in a flow whose only step is ``a``."""
    builder, a = with_steps("a")
    return builder.set_output(value(builder, a)).build().to_json().get("output")


# What it builds


def test_a_built_flow_equals_the_one_that_is_read():
    builder = FlowBuilder(name="n", description="d", version="1", metadata={"k": [1]})
    builder.set_input_schema({"type": "object"})
    builder.set_output_schema(True)
    builder.set_variables_schema({"properties": {"v": {"type": "object"}}})
    builder.set_schema_definitions({"D": {"type": "string"}})
    a = builder.add_step(
        "a",
        component="/x/a",
        input={"text": builder.input["text"], "all": builder.input},
        on_error=Retry(2),
        must_execute=True,
        output_schema={"type": "array"},
        metadata={"m": None},
    )
    b = builder.add_step(
        "b",
        component="/x/b",
        input=[a[0]["deep"], {"v": builder.variable("v", default=[a])["w"], "n": 1.5}],
        on_error=UseDefault({"none": True}),
    )
    builder.add_step("c", component="/x/c", on_error=Fail())
    builder.set_output({"b": if_(a["ok"], b, else_=coalesce(a["x"], "none")), "c": Value.step("c", "$.r")})
    flow = builder.build()

    read = read_flow(
        """
        name: n
        description: d
        version: "1"
        metadata: {k: [1]}
        schemas:
          type: object
          $defs: {D: {type: string}}
          properties:
            input: {type: object}
            output: true
            variables: {properties: {v: {type: object}}}
            steps: {type: object, properties: {a: {type: array}}}
        steps:
        - id: a
          component: /x/a
          input: {text: {$input: $.text}, all: {$input: $}}
          onError: {action: retry, maxRetries: 2}
          mustExecute: true
          metadata: {m: null}
        - id: b
          component: /x/b
          input:
          - {$step: a, path: "$[0].deep"}
          - v: {$variable: $.v.w, default: [{$step: a}]}
            n: 1.5
          onError: {action: useDefault, defaultValue: {none: true}}
        - {id: c, component: /x/c, onError: {action: fail}}
        output:
          b: {$if: {$step: a, path: ok}, then: {$step: b}, else: {$coalesce: [{$step: a, path: x}, none]}}
          c: {$step: c, path: $.r}
        """
    )
    assert flow == read
    assert flow_from_json(flow.to_json()) == read
    assert flow.warnings == ()


@pytest.mark.parametrize(
    ("value", "json"),
    [
        (lambda b, a: b.input["x"][2], {"$input": "$.x[2]"}),
        (lambda b, a: Value.input("x"), {"$input": "$.x"}),
        (lambda b, a: Value.input()["x"], {"$input": "$.x"}),
        (lambda b, a: Value.step("a")["x"], {"$step": "a", "path": "$.x"}),
        (lambda b, a: Value.step("a", "$.x")[0], {"$step": "a", "path": "$.x[0]"}),
        (lambda b, a: b.step("a"), {"$step": "a"}),
        (lambda b, a: Value.if_(a, 1), {"$if": {"$step": "a"}, "then": 1}),
        (lambda b, a: if_(a, 1, None), {"$if": {"$step": "a"}, "then": 1, "else": None}),
        (lambda b, a: Value.coalesce(a, [a, 2]), {"$coalesce": [{"$step": "a"}, [{"$step": "a"}, 2]]}),
        (lambda b, a: coalesce(), {"$coalesce": []}),
        (lambda b, a: Value.literal({"$step": "b"}), {"$literal": {"$step": "b"}}),
        (lambda b, a: (1, (a["x"],)), [1, [{"$step": "a", "path": "$.x"}]]),
        (
            lambda b, a: {"k": [{"l": {"$step": "a", "path": "x"}}]},
            {"k": [{"l": {"$step": "a", "path": "$.x"}}]},
        ),
    ],
)
def test_each_kind_of_value_is_the_expression_of_its_name(value, json):
    assert output_json(value) == json


@pytest.mark.parametrize(
    ("variable", "json"),
    [
        (lambda of: of.variable("v"), {"$variable": "$.v"}),
        (lambda of: of.variable("v", default=None), {"$variable": "$.v", "default": None}),
        (lambda of: of.variable("a.b"), {"$variable": "$['a.b']"}),
        (lambda of: of.variable("$.a.b")[0], {"$variable": "$.a.b[0]"}),
    ],
)
def test_a_variable_has_a_name_a_path_and_a_default(variable, json):
    for make in (named(), Value):
        builder = make if isinstance(make, FlowBuilder) else named()
        assert builder.set_output(variable(make)).build().to_json()["output"] == json


@pytest.mark.parametrize("key", ["a.b", "it's", 'say "x"', "a[0]", "", " ", "$", "$.x", "\\", "ä\n", "0"])
def test_any_text_is_one_field_of_a_path(key):
    builder = named()
    builder.set_output([builder.input[key][key], builder.variable("v")[key]])
    [of_input, of_variable] = flow_from_json(builder.build().to_json()).output.items
    assert of_input == InputRef((key, key))
    assert of_variable == VariableRef("v", (key,))


def test_what_is_more_than_a_text_or_a_number_is_taken_as_that():
    class Colour(enum.StrEnum):
        RED = "red"

    class Size(enum.IntEnum):
        LARGE = 3

    class Seconds(float):
        pass

    class Old(str, enum.Enum):  # noqa: UP042 — formats otherwise than StrEnum
        KEY = "k"

    value = {Old.KEY: [Colour.RED, Size.LARGE, Seconds(1.5), True]}
    output = named().set_output(value).build().output.value
    assert output == {"k": ["red", 3, 1.5, True]}
    assert [type(v) for v in output["k"]] == [str, int, float, bool]
    assert FlowBuilder().input[Old.KEY].to_json() == {"$input": "$.k"}


def test_what_is_given_is_copied():
    builder = named()
    given = {"l": [1]}
    a = builder.add_step("a", component="/x/y", input=given, metadata=given, output_schema=given)
    chosen = if_(a, given)
    builder.set_output([given, chosen, literal(given)])
    before = builder.build()
    given["l"].append(2)
    given["m"] = 3
    assert builder.build() == before
    assert before.steps[0].input.value == {"l": [1]}


def test_what_is_shared_many_times_over_is_taken_in_no_time():
    value = "x"
    for _ in range(100):
        value = [value, value]
    with pytest.raises(FlowInvalid, match=r"more than .* values"):
        literal(value)


def test_a_builder_goes_on_after_building():
    builder, a = with_steps("a")
    first = builder.set_output(a).build()
    builder.add_step("b", component="/x/b", input=a)
    builder.set_output({"a": a}).add_output_field("b", builder.step("b"))
    assert [step.id for step in first.steps] == ["a"]
    assert first.output == StepRef("a")
    assert builder.build().to_json()["output"] == {"a": {"$step": "a"}, "b": {"$step": "b"}}


def test_the_output_grows_field_by_field():
    builder, a = with_steps("a")
    builder.add_output_field("x", a).add_output_field("y", 1)
    assert builder.build().to_json()["output"] == {"x": {"$step": "a"}, "y": 1}
    builder.set_output(None).add_output_field("z", 2)
    assert builder.build().to_json()["output"] == {"z": 2}


def test_a_flow_without_anything_can_be_built():
    assert FlowBuilder().build().to_json() == {}


FULL = """
name: n
description: d
version: "1"
metadata: {m: 1}
schemas:
  type: object
  $defs: {D: {}}
  properties: {input: {type: object}, variables: {properties: {v: {}}}, steps: {properties: {a: {}}}}
steps:
- {id: a, component: /x/a, input: {$input: "$['k.l']"}, onError: {action: retry}, mustExecute: false}
- {id: b, component: /x/b, input: [{$step: a, path: x}, {$variable: v}], metadata: {m: 1}}
output: {b: {$step: b}}
test: {cases: [{name: c, input: 1}]}
examples: [{name: e, input: 1}]
"""


def test_a_loaded_flow_is_all_there_and_can_be_added_to():
    flow = read_flow(FULL)
    builder = FlowBuilder.load(flow)
    assert builder.build() == flow
    assert [step.id for step in builder.steps] == ["a", "b"]
    c = builder.add_step("c", component="/x/c", input=builder.step("b")["y"], output_schema={})
    built = builder.add_output_field("c", c).build()
    assert built.steps[:2] == flow.steps
    assert list(built.schemas["properties"]["steps"]["properties"]) == ["a", "c"]
    assert built.output.values == (StepRef("b"), StepRef("c"))
    assert FlowBuilder.load(flow).build() == flow, "the loaded flow is as it was"


def test_the_references_of_a_step_and_of_a_flow_can_be_listed():
    builder = FlowBuilder.load(read_flow(FULL))
    of_a = [InputRef(("k.l",))]
    of_b = [StepRef("a", ("x",)), VariableRef("v")]
    assert builder.step("a").get_references() == of_a
    assert builder.get_references("b") == of_b
    assert builder.get_references() == [*of_a, *of_b, StepRef("b")]


def test_the_reader_s_warnings_are_the_flow_s():
    builder = FlowBuilder()
    builder.add_step("a", component="/x/a", input={"$input": "x.y", "note": 1})
    found = builder.build().warnings
    kinds = {Kind.MISSING_FLOW_NAME, Kind.MISSING_FLOW_DESCRIPTION, Kind.UNREACHABLE_STEP}
    assert {d.kind for d in found} == kinds | {Kind.BARE_PATH, Kind.UNKNOWN_FIELD}


# Mistakes, where they are made


def test_a_step_that_does_not_exist_is_named_with_the_one_that_was_meant():
    builder, _ = with_steps("load")
    where = {"items": [1, {"x": Value.step("laod")["y"]}]}
    found = fault(lambda: builder.add_step("b", component="/x/b", input=where))
    assert (found.kind, found.path) == (
        Kind.UNDEFINED_STEP_REFERENCE,
        ("steps", 1, "input", "items", 1, "x", "$step"),
    )
    assert found.message == """input['items'][1]['x']: there is no step "laod\""""
    assert found.suggestion == 'did you mean "load"?'
    found = fault(lambda: builder.set_output({"o": {"$step": "later"}}))
    assert found.message == """output['o']['$step']: there is no step "later\""""
    assert found.suggestion == "a step reads earlier steps only: add it first"
    found = fault(lambda: builder.add_output_field("o", if_(True, [Value.step("lod")])))
    assert found.message == """value: there is no step "lod\""""
    found = fault(lambda: builder.step("loda"))
    assert (found.message, found.suggestion) == ('there is no step "loda"', 'did you mean "load"?')


def test_all_that_is_wrong_with_a_step_is_said_at_once():
    builder = named()
    with pytest.raises(FlowInvalid) as caught:
        builder.add_step("a", component="/x", input=[Value.step("b"), {"c": Value.step("c")}])
    assert [d.message for d in caught.value.diagnostics] == [
        'input[0]: there is no step "b"',
        """input[1]['c']: there is no step "c\"""",
    ]


def test_an_id_twice_is_refused():
    builder, _ = with_steps("a")
    found = fault(lambda: builder.add_step("a", component="/x/y"))
    assert (found.kind, found.path) == (Kind.DUPLICATE_STEP_ID, ("steps", 1, "id"))
    assert found.message == 'id: there is a step "a" already'


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (lambda b: b.step("a"), 'step "a"'),
        (lambda b: b.step("a")["x"][0], 'step "a"'),
        (lambda b: b.input["x"], "the input"),
        (lambda b: b.variable("v", default=1)["w"], 'variable "v"'),
        (lambda b: if_(1, coalesce(b.step("a"))), 'step "a"'),
        (lambda b: Value.variable("v", default=b.step("a")), 'step "a"'),
    ],
)
@pytest.mark.parametrize("here", ["a", "b"])
def test_a_value_of_another_builder_is_refused_even_where_the_id_is_known(value, what, here):
    other, _ = with_steps("a")
    builder, _ = with_steps(here)
    found = fault(lambda: builder.add_step("c", component="/x", input={"k": [value(other)]}))
    assert found.kind is Kind.INVALID_REFERENCE_EXPRESSION
    assert found.message == f"input['k'][0]: this is {what} of another builder"
    assert fault(lambda: builder.set_output(value(other))).message.startswith("output: this is ")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [{1, 2}]}, "input['a'][0]: this is a Python set"),
        ({"a": b"x"}, "input['a']: this is a Python bytes"),
        ([object], "input[0]: this is a Python type"),
        ({"a": math.nan}, "input['a']: JSON has no nan"),
        ([0, "\ud800"], "input[1]: this string holds half a surrogate pair"),
        ({"a": {2: 3}}, "input['a']: the key 2 is a number; keys are strings"),
        (10**400, "input: this number is too large"),
        (lambda: 1, "input: this is a Python function"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place_in_the_arguments(value, message):
    found = fault(lambda: named().add_step("a", component="/x/y", input=value))
    assert found.message.startswith(message)
    for make in (lambda: coalesce(1, value), lambda: if_(1, 2, value), lambda: Value.variable("v", value)):
        assert fault(make).message.partition(":")[2] == found.message.partition(":")[2]


def test_a_key_that_is_a_value_is_refused():
    builder, a = with_steps("a")
    assert "keys are strings" in fault(lambda: builder.set_output({a: 1})).message


def test_what_contains_itself_is_refused():
    value = []
    value += [value, value]
    found = fault(lambda: named().set_output({"a": value}))
    assert found.kind is Kind.LIMIT_EXCEEDED
    assert found.message.startswith("output['a'][0][0][0]")
    assert found.suggestion == "does one contain itself?"


def test_what_is_nested_too_deeply_for_a_flow_is_refused_where_it_is_added():
    value = 1
    for _ in range(125):
        value = [value]
    builder = named()
    builder.add_step("a", component="/x/y", input=value)
    builder.build()
    found = fault(lambda: builder.add_step("b", component="/x/y", input=[value]))
    assert found.kind is Kind.LIMIT_EXCEEDED


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"component": "x/y"}, Kind.INVALID_COMPONENT, 'component: "x/y" is not a component\'s path'),
        ({"component": 5}, Kind.WRONG_TYPE, "component: component is a string, not a number"),
        ({"id": ""}, Kind.EMPTY_STEP_ID, "id: the step's id is empty"),
        ({"id": 7}, Kind.WRONG_TYPE, "id: id is a string, not a number"),
        ({"on_error": "retry"}, Kind.WRONG_TYPE, "on_error: onError is an object"),
        ({"on_error": Retry(-1)}, Kind.WRONG_TYPE, "on_error: maxRetries"),
        ({"on_error": UseDefault({"k": {1}})}, Kind.NOT_JSON, "on_error.value['k']: this is a Python set"),
        ({"must_execute": "yes"}, Kind.WRONG_TYPE, "must_execute: "),
        ({"metadata": []}, Kind.WRONG_TYPE, "metadata: "),
        ({"output_schema": []}, Kind.WRONG_TYPE, "output_schema: a schema is an object or a boolean"),
        (
            {"input": {"$step": 5}},
            Kind.INVALID_REFERENCE_EXPRESSION,
            "input['$step']: $step takes a step's id",
        ),
        ({"input": {"$if": 1, "the": 1}}, Kind.MISSPELLED_FIELD, "input['the']: "),
    ],
)
def test_a_step_that_is_wrong_in_itself_is_refused_and_not_added(settings, kind, message):
    builder = named()
    with pytest.raises(FlowInvalid) as caught:
        builder.add_step(**{"id": "a", "component": "/x/y", **settings})
    [found] = [d for d in caught.value.diagnostics if d.kind is kind]
    assert found.message.startswith(message)
    assert builder.steps == ()
    assert builder.build().schemas is None


@pytest.mark.parametrize(
    "make",
    [
        lambda a: literal({"x": a}),
        lambda a: named().add_step("b", component="/x", on_error=UseDefault([a])),
        lambda a: named().add_step("b", component="/x", metadata={"k": a}),
        lambda a: named().set_input_schema({"default": a}),
        lambda a: named().set_schema_definitions({"D": a}),
        lambda a: FlowBuilder(metadata={"k": a}),
    ],
)
def test_a_value_where_nothing_is_evaluated_is_refused(make):
    _, a = with_steps("a")
    found = fault(lambda: make(a))
    assert found.kind is Kind.NOT_JSON
    assert "no expression is evaluated in here" in found.message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowBuilder(name=1), "name: name is a string"),
        (lambda: named().set_variables_schema(["v"]), "schema: a schema is an object"),
        (lambda: named().set_schema_definitions({"D": 1}), "definitions"),
        (lambda: Value.step(1), "id: $step takes a step's id"),
        (lambda: Value.step("a", "$.x[*]"), "path: JSON path"),
        (lambda: Value.input("$.x["), "path: JSON path"),
        (lambda: Value.variable("$"), "path: $variable needs a variable's name"),
        (lambda: named().set_output([1]).add_output_field("x", 1), "the output was set to something"),
        (lambda: named().set_output(FlowBuilder().input), "output: this is the input of another builder"),
        (
            lambda: named().add_output_field("x", 1).add_output_field("x", 2),
            'the output has a field "x" already',
        ),
        (lambda: named().add_output_field("$literal", 1), 'with a field "$literal" the output would be'),
        (lambda: named().add_output_field(3, 1), "key: the key 3 is a number"),
    ],
)
def test_other_mistakes_are_refused_with_what_is_wrong(make, message):
    assert message in fault(make).message


def test_an_expression_as_output_takes_no_fields():
    builder, a = with_steps("a")
    for output in (a, if_(a, {}), {"$step": "a"}, 5):
        builder.set_output(output)
        assert "no object with fields" in fault(lambda: builder.add_output_field("x", 1)).message


@pytest.mark.parametrize("key", [-1, 10**18, True, None, 1.0, slice(1, 2)])
def test_what_is_no_segment_of_a_path_is_refused(key):
    with pytest.raises(PathInvalid, match=r"\$\.x\["):
        FlowBuilder().input["x"][key]


@pytest.mark.parametrize(
    ("use", "instead"),
    [
        (lambda v: 1 if v else 2, "if_"),
        (lambda v: v == 3, "compare in a component"),
        (lambda v: v != 3, "compare in a component"),
        (lambda v: 3 in [v], "compare in a component"),
        (lambda v: f"https://{v}", "make the text in a component"),
        (list, "/builtin/map"),
        (lambda v: 3 in v, "not iterable"),
        (lambda v: [*v], "/builtin/map"),
    ],
)
def test_python_s_own_operators_are_refused_since_the_value_is_not_known(use, instead):
    _, a = with_steps("a")
    for value in (a, a["x"], if_(a, 1)):
        with pytest.raises(TypeError, match=instead):
            use(value)


def test_a_field_is_not_an_attribute():
    _, a = with_steps("a")
    with pytest.raises(AttributeError, match=r"\['title'\]"):
        a.title  # noqa: B018 — reading it is the test
    assert not hasattr(a["x"], "__deepcopy__")


def test_what_a_whole_flow_lacks_is_said_when_it_is_built():
    builder = named().set_variables_schema({"properties": {"region": {}}})
    builder.set_output(builder.variable("regoin"))
    found = fault(builder.build)
    assert (found.kind, found.suggestion) == (
        Kind.UNDEFINED_REQUIRED_VARIABLE,
        'did you mean "region"?',
    )


def test_values_show_what_they_are():
    builder, a = with_steps("a")
    assert repr(a) == "StepHandle({'$step': 'a'})"
    assert repr(builder.input["x"]) == "Reference({'$input': '$.x'})"
    assert isinstance(a, StepHandle)
    assert a.id == "a"


def test_a_hundred_steps_more_cost_a_hundred_times_one():
    builder = named()
    last = builder.input
    for number in range(1000):
        last = builder.add_step(f"s{number}", component="/x/y", input={"x": last["y"]})
    assert len(builder.set_output(last).build().steps) == 1000


USER = """
from stepflow_trio import FlowBuilder, StepHandle, UseDefault, Value, coalesce, if_, literal
from stepflow_trio.flows.builder import Reference, Valuable

builder = FlowBuilder(name="n")
v = builder.variable("v", default=None)
a = builder.add_step("a", component="/x", input={"x": builder.input["x"], "y": [1, {"z": v[0]}]})
parts = {"a": 1, "b": a}
texts = [a["x"], a["y"][0], 3]


def joined(text: Reference, more: list[StepHandle]) -> dict[str, Valuable]:
    return {"text": text, "more": more}


chosen: Value = if_(a["ok"], parts, (texts, coalesce(a, {"k": literal({"$step": 1})})))
builder.add_step("b", component="/x", input=joined(a["t"], [a]), on_error=UseDefault({"k": [1]}))
flow = builder.set_output({"c": chosen}).add_output_field("x", texts).build()
"""

MISTAKES = """
builder.add_step("e", component="/x", input={"v": {1, 2}})
builder.add_step("e", component="/x", input={1: 2})
builder.add_step("e", input={})
chosen["x"]
a.title()
a["x"] + 1
a[1.5]
"""


def test_a_strict_type_checker_accepts_good_code_and_finds_mistakes(tmp_path):
    path = tmp_path / "user.py"
    path.write_text(USER.lstrip() + MISTAKES.lstrip(), encoding="utf-8")
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "pythonVersion": "3.11"}
    (tmp_path / "pyrightconfig.json").write_bytes(msgspec.json.encode(settings))
    ran = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", str(path)],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=50,
    )
    found = msgspec.json.decode(ran.stdout)["generalDiagnostics"]
    first = USER.lstrip().count("\n")
    lines = {each["range"]["start"]["line"] for each in found}
    assert lines == {first + index for index in range(MISTAKES.lstrip().count("\n"))}, found
