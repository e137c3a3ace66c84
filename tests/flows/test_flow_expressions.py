import pytest

from stepflow_trio.flows.diagnostics import DiagnosticKind
from stepflow_trio.flows.evaluation import Evaluation
from stepflow_trio.flows.expressions import (
    ArrayOf,
    Constant,
    Literal,
    ObjectOf,
    StepRef,
    expression_to_json,
    parse_expression,
    static_needs,
    walk_expression,
)
from stepflow_trio.flows.results import Failed, FlowError, Success

BOOM = FlowError(-32100, "boom", {"why": 1})


def parse(value):
    findings = []
    tree = parse_expression(value, findings.append)
    assert findings == []
    return tree


def findings_of(value):
    findings = []
    parse_expression(value, findings.append, at=("output",))
    return [(f.kind, f.path, f.message) for f in findings]


def start(value, *, input=None, variables=None, results=None):
    return Evaluation(
        parse(value), input=input, variables=variables or {}, results={} if results is None else results
    )


def value_of(value, **known):
    outcome = start(value, **known).outcome
    assert isinstance(outcome, Success), outcome
    return outcome.result


def error_of(value, **known):
    outcome = start(value, **known).outcome
    assert isinstance(outcome, Failed), outcome
    return outcome.error


# What is an expression


@pytest.mark.parametrize(
    "value",
    [None, 1, "$step", [], {}, {"a": [1, {"b": None}]}, {"$unknown": 1}, {"$from": "a"}, {"step": "a"}],
)
def test_plain_json_is_its_own_value_and_kept_as_one_constant(value):
    tree = parse(value)
    assert type(tree) is Constant
    assert tree.value is value
    assert value_of(value) is value


def test_constant_parts_beside_an_expression_are_shared_not_copied():
    big = {"list": [1, 2, 3]}
    tree = parse({"big": big, "in": {"$input": "$"}})
    assert isinstance(tree, ObjectOf)
    assert tree.values[0] == Constant(big)
    assert value_of({"big": big, "in": {"$input": "$"}})["big"] is big


@pytest.mark.parametrize(
    ("keys", "result"),
    [
        (("$literal", "$if", "$coalesce", "$step", "$input", "$variable"), "literal"),
        (("$if", "$coalesce", "$step", "$input", "$variable"), "then"),
        (("$coalesce", "$step", "$input", "$variable"), "coalesced"),
        (("$step", "$input", "$variable"), "step"),
        (("$input", "$variable"), "input"),
        (("$variable",), "variable"),
    ],
)
def test_the_first_key_in_order_of_priority_decides_and_the_others_are_ignored(keys, result):
    everything = {
        "$variable": "v",
        "$input": "$",
        "$step": "s",
        "$coalesce": ["coalesced"],
        "$if": True,
        "$literal": "literal",
    }
    value = {key: everything[key] for key in reversed(keys)}
    if keys[0] == "$if":
        value["then"] = "then"
    findings = []
    tree = parse_expression(value, findings.append)
    assert {f.kind for f in findings} <= {DiagnosticKind.UNKNOWN_FIELD}
    assert len(findings) == len(keys) - 1
    outcome = Evaluation(
        tree, input="input", variables={"v": "variable"}, results={"s": Success("step")}
    ).outcome
    assert outcome == Success(result)


# $literal


def test_a_literal_is_verbatim_expressions_inside_it_included():
    assert value_of({"$literal": {"$step": "s", "x": [{"$literal": 1}]}}) == {
        "$step": "s",
        "x": [{"$literal": 1}],
    }
    assert static_needs(parse({"$literal": {"$step": "s"}})) == frozenset()


# $step


def test_a_step_without_a_path_is_its_whole_result_shared():
    result = {"a": [1]}
    assert value_of({"$step": "s"}, results={"s": Success(result)}) is result


@pytest.mark.parametrize("path", ["$", "", None])
def test_the_root_path_of_a_step_is_its_whole_result(path):
    assert value_of({"$step": "s", "path": path}, results={"s": Success([1])}) == [1]


def test_a_path_reads_inside_a_steps_result():
    results = {"s": Success({"a": [{"b.c": 7}]})}
    assert value_of({"$step": "s", "path": "$.a[0]['b.c']"}, results=results) == 7


def test_a_null_step_result_is_null_at_every_path():
    assert value_of({"$step": "s", "path": "$.a.b[3]"}, results={"s": Success(None)}) is None


def test_a_missing_path_in_a_step_fails_with_32200_and_says_where_it_broke():
    error = error_of({"$step": "s", "path": "$.a.nmae"}, results={"s": Success({"a": {"name": 1}})})
    assert error.code == -32200
    assert error.message == (
        'path $.a.nmae not found in the result of step "s": '
        "the object at $.a has no field 'nmae'; did you mean 'name'?"
    )


def test_a_failed_step_propagates_its_error_unchanged():
    assert error_of({"$step": "s", "path": "$.a"}, results={"s": Failed(BOOM)}) is BOOM
    assert error_of({"a": [{"$step": "s"}]}, results={"s": Failed(BOOM)}) is BOOM


# $input


@pytest.mark.parametrize("path", ["$", "", None])
def test_the_whole_input_is_dollar_the_empty_text_or_null(path):
    assert value_of({"$input": path}, input={"a": 1}) == {"a": 1}


def test_a_path_reads_inside_the_input():
    assert value_of({"$input": "a"}, input={"a": 1}) == 1
    assert value_of({"$input": "$.a[1]"}, input={"a": [1, 2]}) == 2


def test_a_deeper_path_into_a_null_input_fails_unlike_that_of_a_step():
    assert error_of({"$input": "$.a"}, input=None).code == -32200
    assert error_of({"$input": "$.a.b"}, input={"a": None}).code == -32200


def test_a_null_in_the_input_is_a_value():
    assert value_of({"$input": "$.a"}, input={"a": None}) is None


# $variable


def test_a_variable_is_named_by_the_first_segment_of_its_path():
    variables = {"v": {"a": [5]}}
    assert value_of({"$variable": "v"}, variables=variables) == {"a": [5]}
    assert value_of({"$variable": "$.v.a[0]"}, variables=variables) == 5


def test_a_variable_without_a_value_takes_its_inline_default():
    assert value_of({"$variable": "v", "default": {"x": {"$input": "$"}}}, input=3) == {"x": 3}
    assert value_of({"$variable": "v", "default": None}) is None


def test_a_missing_path_in_a_variable_takes_the_inline_default():
    assert value_of({"$variable": "$.v.b", "default": 1}, variables={"v": {"a": 2}}) == 1
    assert value_of({"$variable": "$.v.b", "default": 1}, variables={"v": None}) == 1


def test_a_variable_that_is_null_is_a_value_and_takes_no_default():
    assert value_of({"$variable": "v", "default": 1}, variables={"v": None}) is None


def test_a_variable_with_neither_value_nor_default_fails_with_32200():
    error = error_of({"$variable": "tmeout"}, variables={"timeout": 1})
    assert error.code == -32200
    assert error.message == 'variable "tmeout" has neither a value nor a default; did you mean "timeout"?'
    assert error_of({"$variable": "$.v.a"}, variables={"v": {}}).code == -32200


def test_a_default_that_needs_a_step_needs_it_only_when_it_is_used():
    value = {"$variable": "v", "default": {"$step": "s"}}
    assert start(value, variables={"v": 1}).waiting_for == frozenset()
    assert start(value).waiting_for == {"s"}


# $if


@pytest.mark.parametrize("condition", [0, "", [], {}, True, 1, "false"])
def test_everything_but_null_and_false_is_true(condition):
    assert value_of({"$if": {"$literal": condition}, "then": "yes", "else": "no"}) == "yes"


@pytest.mark.parametrize("condition", [None, False])
def test_null_and_false_are_false(condition):
    assert value_of({"$if": condition, "then": "yes", "else": "no"}) == "no"


def test_a_condition_that_fails_is_false_and_its_error_is_swallowed():
    value = {"$if": {"$step": "s"}, "then": "yes", "else": "no"}
    assert value_of(value, results={"s": Failed(BOOM)}) == "no"
    assert value_of({"$if": {"$input": "$.a"}, "then": "yes", "else": "no"}, input={}) == "no"


def test_an_if_without_else_is_null():
    assert value_of({"$if": False, "then": 1}) is None


def test_a_failure_in_the_taken_branch_propagates_and_one_in_the_other_does_not():
    failing = {"$input": "$.gone"}
    assert error_of({"$if": True, "then": failing, "else": 1}, input={}).code == -32200
    assert value_of({"$if": False, "then": failing, "else": 1}, input={}) == 1


# $coalesce


def test_coalesce_is_its_first_item_that_is_not_null():
    assert value_of({"$coalesce": [None, {"$input": "$.a"}, 0, 1]}, input={"a": None}) == 0


def test_coalesce_of_nulls_or_of_nothing_is_null():
    assert value_of({"$coalesce": [None, None]}) is None
    assert value_of({"$coalesce": []}) is None


def test_a_failure_in_coalesce_propagates_and_does_not_fall_through():
    value = {"$coalesce": [None, {"$step": "s"}, 1]}
    assert error_of(value, results={"s": Failed(BOOM)}) is BOOM
    assert value_of({"$coalesce": [2, {"$step": "s"}]}, results={"s": Failed(BOOM)}) == 2


# Objects and arrays


def test_members_are_evaluated_in_place_and_order_is_kept():
    value = {"z": [{"$input": "$.a"}, "x"], "a": {"$input": "$.b"}}
    result = value_of(value, input={"a": 1, "b": 2})
    assert result == {"z": [1, "x"], "a": 2}
    assert list(result) == ["z", "a"]


def test_of_several_failures_the_first_in_the_text_is_the_result():
    other = FlowError(2, "other")
    results = {"a": Failed(BOOM), "b": Failed(other)}
    assert error_of([{"$step": "b"}, {"$step": "a"}], results=results) is other


# Step by step


def test_an_if_needs_its_condition_first_and_then_the_taken_branch_alone():
    value = {"$if": {"$step": "c"}, "then": {"$step": "t"}, "else": {"$step": "e"}}
    for taken, condition in (("t", True), ("e", False)):
        results = {}
        evaluation = start(value, results=results)
        assert evaluation.take_needs() == ["c"]
        results["c"] = Success(condition)
        evaluation.supply("c")
        assert evaluation.outcome is None
        assert evaluation.take_needs() == [taken]
        results[taken] = Success("value")
        evaluation.supply(taken)
        assert evaluation.outcome == Success("value")
        assert evaluation.take_needs() == []


def test_coalesce_needs_its_items_one_by_one():
    results = {}
    evaluation = start(
        {"x": {"$coalesce": [{"$step": "a"}, {"$step": "b"}, {"$step": "c"}]}}, results=results
    )
    assert evaluation.waiting_for == {"a"}
    results["a"] = Success(None)
    evaluation.supply("a")
    assert evaluation.waiting_for == {"b"}
    results["b"] = Success(0)
    evaluation.supply("b")
    assert evaluation.outcome == Success({"x": 0})


def test_members_of_arrays_and_objects_are_needed_together_and_each_once():
    evaluation = start([{"$step": "a"}, {"x": {"$step": "b"}}, {"$step": "a", "path": "$.k"}])
    assert evaluation.take_needs() == ["a", "b"]
    assert evaluation.take_needs() == []


def test_one_members_wait_does_not_hold_up_the_choice_of_another():
    results = {}
    value = [{"$step": "slow"}, {"$if": {"$step": "fast"}, "then": {"$step": "next"}}]
    evaluation = start(value, results=results)
    assert evaluation.take_needs() == ["slow", "fast"]
    results["fast"] = Success(True)
    evaluation.supply("fast")
    assert evaluation.take_needs() == ["next"]


def test_a_failure_cuts_no_other_member_short():
    results = {}
    value = [{"$step": "a"}, {"$if": {"$step": "b"}, "then": {"$step": "c"}}]
    evaluation = start(value, results=results)
    for step, result, waiting in (
        ("a", Failed(BOOM), {"b"}),
        ("b", Success(True), {"c"}),
        ("c", Success(1), set()),
    ):
        assert evaluation.outcome is None
        results[step] = result
        evaluation.supply(step)
        assert evaluation.waiting_for == waiting
    assert evaluation.outcome == Failed(BOOM)


def test_choices_nested_in_choices_are_made_one_after_the_other():
    inner = {"$if": {"$step": "b"}, "then": {"$coalesce": [{"$step": "c"}, {"k": {"$step": "d"}}]}}
    results = {}
    evaluation = start({"$if": {"$coalesce": [{"$step": "a"}]}, "then": [inner]}, results=results)
    for step, result in (("a", 1), ("b", 1), ("c", None), ("d", "end")):
        assert evaluation.take_needs() == [step]
        results[step] = Success(result)
        evaluation.supply(step)
    assert evaluation.outcome == Success([{"k": "end"}])


def test_a_step_that_nobody_waits_for_changes_nothing():
    evaluation = start({"$step": "a"})
    evaluation.supply("b")
    assert evaluation.waiting_for == {"a"}


# Parsing and writing


def test_static_needs_are_all_steps_of_all_branches():
    value = {
        "$if": {"$step": "a"},
        "then": [{"$coalesce": [{"$step": "b"}, {"$variable": "v", "default": {"$step": "c"}}]}],
        "else": {"x": {"$step": "d"}, "y": {"$literal": {"$step": "no"}}},
    }
    assert static_needs(parse(value)) == {"a", "b", "c", "d"}


def test_every_node_is_walked_with_its_path_in_the_order_of_the_text():
    value = {"x": {"$if": {"$step": "a"}, "then": [1, {"$coalesce": [{"$step": "b"}]}], "else": None}}
    walked = list(walk_expression(parse(value), at=("output",)))
    assert [path for path, node in walked if isinstance(node, StepRef)] == [
        ("output", "x", "$if"),
        ("output", "x", "then", 1, "$coalesce", 0),
    ]
    assert [type(node) for _, node in walked].count(ArrayOf) == 1


@pytest.mark.parametrize(
    ("value", "normal"),
    [
        ({"$step": "a", "path": "b"}, {"$step": "a", "path": "$.b"}),
        ({"$step": "a", "path": "$"}, {"$step": "a"}),
        ({"$step": "a", "path": "$['b.c']"}, {"$step": "a", "path": "$['b.c']"}),
        ({"$step": "a", "path": "$['']"}, {"$step": "a", "path": "$['']"}),
        ({"$input": None}, {"$input": "$"}),
        ({"$input": "a"}, {"$input": "$.a"}),
        ({"$variable": "v", "default": None}, {"$variable": "$.v", "default": None}),
        ({"$variable": "$.v[0]"}, {"$variable": "$.v[0]"}),
        ({"then": 1, "$if": {"$input": "a"}}, {"$if": {"$input": "$.a"}, "then": 1}),
        ({"$if": True, "then": 1, "else": None}, {"$if": True, "then": 1, "else": None}),
        ({"$coalesce": [[{"$input": "a"}], 1]}, {"$coalesce": [[{"$input": "$.a"}], 1]}),
        ({"$literal": {"path": "b"}}, {"$literal": {"path": "b"}}),
        ({"b": {"$literal": 1}, "a": [None]}, {"b": {"$literal": 1}, "a": [None]}),
    ],
)
def test_the_normal_form_writes_paths_one_way_and_reads_back_the_same(value, normal):
    tree = parse(value)
    written = expression_to_json(tree)
    assert written == normal
    assert list(written) == list(normal)
    assert parse(written) == tree


INVALID = DiagnosticKind.INVALID_REFERENCE_EXPRESSION


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        ({"$step": 1}, ("$step",), "$step takes a step's id, not a number"),
        ({"$step": "a", "path": 1}, ("path",), "a path is a string, not a number"),
        ({"$step": "a", "path": "$.x[*]"}, ("path",), "wildcards are not supported"),
        ({"$input": "$x"}, ("$input",), "expected '.' or '['"),
        ({"$input": {}}, ("$input",), "a path is a string, not an object"),
        ({"$variable": "$"}, ("$variable",), "$variable needs a variable's name"),
        ({"$variable": "$[0]"}, ("$variable",), "$variable needs a variable's name"),
        ({"$variable": None}, ("$variable",), "$variable needs a variable's name"),
        ({"$variable": 3}, ("$variable",), "a path is a string, not a number"),
        ({"$if": 1}, (), 'an $if needs a "then"'),
        ({"$coalesce": {"a": 1}}, ("$coalesce",), "$coalesce takes an array"),
    ],
)
def test_a_malformed_expression_is_found_at_its_path(value, path, message):
    [(kind, at, said)] = findings_of([value])
    assert (kind, at) == (INVALID, ("output", 0, *path))
    assert message in said


def test_everything_malformed_in_an_expression_is_found_in_one_go():
    value = {
        "a": {"$if": {"$step": 1}, "then": {"$input": "$*"}, "else": [{"$coalesce": 1}]},
        "b": {"$if": 1},
    }
    assert [path for _, path, _ in findings_of(value)] == [
        ("output", "a", "$if", "$step"),
        ("output", "a", "then", "$input"),
        ("output", "a", "else", 0, "$coalesce"),
        ("output", "b"),
    ]


def test_a_misspelled_companion_key_is_an_error_and_a_foreign_one_a_warning():
    assert findings_of({"$step": "a", "paht": "x"})[0][:2] == (
        DiagnosticKind.MISSPELLED_FIELD,
        ("output", "paht"),
    )
    assert findings_of({"$step": "a", "comment": "x"})[0][:2] == (
        DiagnosticKind.UNKNOWN_FIELD,
        ("output", "comment"),
    )


def test_a_bare_path_that_looks_like_several_fields_is_a_warning():
    findings = []
    tree = parse_expression({"$step": "a", "path": "b.c"}, findings.append)
    assert tree == StepRef("a", ("b.c",))
    [finding] = findings
    assert finding.kind is DiagnosticKind.BARE_PATH
    assert finding.suggestion == """write "$.b.c" for several fields, or "$['b.c']" for that one"""


@pytest.mark.parametrize(
    ("old", "today"),
    [
        ({"$from": {"step": "a"}}, {"$step": "a"}),
        ({"$from": {"step": "a"}, "path": "b"}, {"$step": "a", "path": "$.b"}),
        ({"$from": {"workflow": "input"}, "path": "b"}, {"$input": "$.b"}),
        ({"$from": {"workflow": "input"}}, {"$input": "$"}),
        ({"$from": {"variable": "v"}, "path": "b", "default": 1}, {"$variable": "$.v.b", "default": 1}),
    ],
)
def test_the_references_of_release_0_8_are_read_as_todays_with_a_warning(old, today):
    findings = []
    tree = parse_expression(old, findings.append)
    assert expression_to_json(tree) == today
    [finding] = findings
    assert finding.kind is DiagnosticKind.OLD_SYNTAX
    assert finding.path == ("$from",)


def test_what_only_resembles_an_old_reference_is_data():
    for source in (1, "a", {}, {"table": "x"}):
        assert isinstance(parse({"$from": source}), Constant)


def test_an_old_reference_that_cannot_be_read_is_data_with_a_warning():
    for source in ({"workflow": "x"}, {"step": 1}, {"step": "a", "b": 1}, {"variable": "v", "path": "x"}):
        findings = []
        assert isinstance(parse_expression({"$from": source}, findings.append), Constant)
        [finding] = findings
        assert (finding.kind, finding.path) == (DiagnosticKind.OLD_SYNTAX, ("$from",))
        assert "cannot be read as one" in finding.message


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("$stepp", "$step"),
        ("$Input", "$input"),
        ("$varaible", "$variable"),
        ("$literl", "$literal"),
        ("$var", "$variable"),
        ("$vars", "$variable"),
        ("$variables", "$variable"),
        ("$inputs", "$input"),
        ("$steps", "$step"),
        ("$stepId", "$step"),
    ],
)
def test_data_under_a_misspelled_expression_key_is_a_warning_that_names_the_one_meant(key, meant):
    findings = []
    assert isinstance(parse_expression({"x": {key: "a"}}, findings.append), Constant)
    [finding] = findings
    assert (finding.kind, finding.path) == (DiagnosticKind.UNKNOWN_FIELD, ("x", key))
    assert finding.suggestion == f'did you mean "{meant}"?'


def test_keys_with_a_dollar_that_are_everyday_data_are_not_warned_of():
    for key in ("$id", "$ref", "$defs", "$schema", "$blob", "$set", "$type", "$in", "$or", "$comment"):
        assert isinstance(parse({key: "a"}), Constant)


def test_literal_parts_keep_their_wrapper_in_the_tree():
    assert parse({"$literal": 1}) == Literal(1)
