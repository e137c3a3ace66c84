"""`stepflow-trio test --update`: the new outputs are in the file, and nothing else in it is another byte."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_process import CONFIG, Finished
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.cli.case_finding import FlowTests, find_tests
from stepflow_trio.cli.case_running import CaseResult
from stepflow_trio.cli.case_text import CannotRewrite, with_outputs
from stepflow_trio.cli.case_update import CannotUpdate, Update, replace_file, update_expectations
from stepflow_trio.errors import ErrorCode
from stepflow_trio.flows.expectations import differences
from stepflow_trio.flows.results import Failed, FlowError, FlowResult, Success
from stepflow_trio.flows.source import read_source

Cli = Callable[..., Finished]

NEW = {"outcome": "success", "result": {"list": [1, {"a": [2]}], "text": "one\ntwo", "no": "no"}}


def rewritten(before: str, *indices: int, name: str = "flow.yaml", new: Any = NEW) -> str:
    return with_outputs(before.encode(), dict.fromkeys(indices or (0,), new), name=name).decode()


# ---- the text -----------------------------------------------------------------------------------------

YAML = """\
# The whole file is odd on purpose.
name:   "odd"     # in quotes
'description': 'a very long line, a very long line, a very long line, a very long line, a very long line, yes'
x-shared: &shared   {one: 1,   two: [1,2 ,3]}
steps: []
output: {$input: $}
test:   # of it
  cases:
    # before
    - name: block     # a name
      input: *shared
      output:         # what it was
        # stays
        outcome: success   # goes
        result: 1

    - {name: flow, input: {<<: *shared}, output: {outcome: success, result: [ 1 ]}}   # stays

    - name: missing
      description: >-
        folded
        text

      input: |
        literal
    - &me
      name: alias
      output: *gone   # stays
      input: "x"
    - name: empty
      output:   # stays
      input: 0x10

  # behind the cases
metadata: {  odd: yes }
# the end"""

YAML_WITH_GONE = YAML.replace("steps: []", "gone: &gone {outcome: success, result: 0}\nsteps: []")


def test_a_flow_full_of_everything_keeps_every_byte_but_its_outputs() -> None:
    value = {"outcome": "success", "result": {"a": [1]}}
    lines = "outcome: success\n{indent}result:\n{indent}  a:\n{indent}    - 1"
    below = "\n        " + lines.format(indent=" " * 8)
    expected = YAML_WITH_GONE
    for old, new in [
        ("outcome: success   # goes\n        result: 1", lines.format(indent=" " * 8)),
        ("output: {outcome: success, result: [ 1 ]}", "output: {outcome: success, result: {a: [1]}}"),
        ("        literal", "        literal\n      output:" + below),
        ("output: *gone   # stays", "output:   # stays" + below),
        ("output:   # stays\n      input: 0x10", f"output:   # stays{below}\n      input: 0x10"),
    ]:
        assert expected.count(old) == 1
        expected = expected.replace(old, new)
    assert rewritten(YAML_WITH_GONE, 0, 1, 2, 3, 4, new=value) == expected


@pytest.mark.parametrize("line_end", ["\r\n", "\r", "\n"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n# end"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_the_last_one_and_a_byte_order_mark_stay(line_end: str, end: str, mark: str) -> None:
    before = f"output: 1\ntest:\n  cases:\n  - name: x\n    input: 1{end}"
    after = (
        "output: 1\ntest:\n  cases:\n  - name: x\n    input: 1\n    output:\n      outcome: success\n"
        f"      result:\n      - 1\n      - 2{end}"
    )
    new = {"outcome": "success", "result": [1, 2]}
    assert rewritten(mark + before.replace("\n", line_end), new=new) == mark + after.replace("\n", line_end)


CASE = "test:\n  cases:\n  - name: x\n    input: 1\n"
WITH_ANCHOR = CASE + "    output: &o {outcome: success, result: 3}\n"
LINES = "    output:\n      outcome: success\n      result:\n      - 1\n"
KEEPING = "test:\n  cases:\n  - name: x\n    input: |+\n      a\n\n\n"
MERGING = "b: &b {input: 1, output: {outcome: failed}}\ntest:\n  cases:\n  - <<: *b\n    name: x\n"
WIDE = "test:\n    cases:\n        - name: x\n          input: 1\n"
WIDE_LINES = (
    "          output:\n              outcome: success\n              result:\n                  - 1\n"
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (CASE, CASE + LINES),
        # As wide as the file has it, and dashes where it has them.
        (WIDE, WIDE + WIDE_LINES),
        ("test: {cases: [{name: x, input: 1}]}", "test: {cases: [{name: x, input: 1, output: NEW}]}"),
        ("test: {cases: [{output: , name: x}]}", "test: {cases: [{output: NEW , name: x}]}"),
        ("test: {cases: [{output: null, name: x}]}", "test: {cases: [{output: NEW, name: x}]}"),
        ("test:\n  cases: [{name: x,}] # c\n", "test:\n  cases: [{name: x, output: NEW,}] # c\n"),
        # What others may refer to by an anchor keeps it.
        (WITH_ANCHOR, WITH_ANCHOR.replace("{outcome: success, result: 3}", "NEW")),
        # A scalar that keeps the lines behind it keeps them.
        (KEEPING + "name: n\n", KEEPING + LINES + "name: n\n"),
        # Of a case that has its fields from elsewhere, this one is its own.
        (MERGING, MERGING + LINES),
    ],
)
def test_the_layout_of_yaml_is_kept(before: str, after: str) -> None:
    written = rewritten(before, new={"outcome": "success", "result": [1]})
    assert written == after.replace("NEW", "{outcome: success, result: [1]}")


@pytest.mark.parametrize("indent", [2, 3, "\t", None])
@pytest.mark.parametrize("where", ["missing", "first", "last"])
def test_the_layout_of_json_is_kept(indent: int | str | None, where: str) -> None:
    def flow(new: Any) -> str:
        case: dict[str, Any] = {"name": "ä", "input": {"a": []}}
        output = {} if new is None else {"output": new}
        case = {**output, **case} if where == "first" else {**case, **output}
        cases = [{"name": "before", "input": 1}, case, {"name": "behind", "input": 1}]
        return json.dumps({"test": {"cases": cases}, "output": 1}, indent=indent, ensure_ascii=False) + "\n"

    old = None if where == "missing" else {"outcome": "failed", "error": {"code": 1, "message": "m"}}
    assert rewritten(flow(old), 1, name="flow.json") == flow(NEW)


def test_an_output_on_one_line_of_json_stays_on_one() -> None:
    case = '{"name":"x","input":1,"output":{"outcome":"success","result":1}}'
    before = f'{{\n  "test": {{"cases": [\n    {case}\n  ]}}\n}}'
    after = before.replace('"result":1', '"result":[1,2]')
    assert rewritten(before, name="f.json", new={"outcome": "success", "result": [1, 2]}) == after


@pytest.mark.parametrize(
    "before",
    [
        "c: &c {name: x, input: 1}\ntest: {cases: [*c]}\n",
        "c: &c [{name: x, input: 1}]\ntest: {cases: *c}\n",
        "t: &t {cases: [{name: x, input: 1}]}\ntest: *t\n",
        WITH_ANCHOR.replace("3", "&r 3") + "  - name: y\n    input: *r\n",
        WITH_ANCHOR + "  - name: y\n    input: 1\n    output: *o\n",
    ],
)
def test_an_output_that_cannot_be_changed_alone_is_left(before: str) -> None:
    with pytest.raises(CannotRewrite, match="by hand"):
        rewritten(before)


ODD_TEXTS = ["no", "~", "00123", "1e3", "0x1F", "12:30", ".inf", "=", "<<", "- a", "a: b", "#", " x "]
ODD_LINES = ["a\n b\n", "\n", "a\n\n", "\u2028", "\x85", "\r\n", "\t\n"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from([*ODD_TEXTS, *ODD_LINES])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)


@given(
    JSON, st.sampled_from([YAML_WITH_GONE, json.dumps({"test": {"cases": [{"name": "x", "input": 1}] * 5}})])
)
def test_any_output_can_be_written_and_the_lines_around_it_stay(value: Any, before: str) -> None:
    new = {"outcome": "success", "result": value}
    for index in range(5):
        written = rewritten(before, index, new=new)
        cases = read_source(written, name="flow.yaml").value["test"]["cases"]
        assert json.dumps(cases[index]["output"], sort_keys=True) == json.dumps(new, sort_keys=True)
        if before is YAML_WITH_GONE:
            kept = written.split("\n")
            assert kept[:9] == before.split("\n")[:9]
            assert kept[-3:] == before.split("\n")[-3:]


# ---- the file -----------------------------------------------------------------------------------------


@pytest.fixture
def tests(tmp_path: Path) -> FlowTests:
    (tmp_path / "flow.yaml").write_text(
        "output: 1\ntest:\n  cases:\n"
        "  - {name: a, input: 1, output: {outcome: success, result: {kept: 1}}}\n"
        "  - {name: b, input: 1}\n"
        "  - {name: c, input: 1, output: {outcome: failed, error: {code: -32300, message: m}}}\n",
        encoding="utf-8",
    )
    (found,) = find_tests([str(tmp_path)]).files
    assert isinstance(found, FlowTests)
    return found


def came_to(tests: FlowTests, index: int, result: FlowResult | None) -> CaseResult:
    case = tests.cases[index]
    found = differences(case.expected, result) if case.expected is not None and result is not None else ()
    return CaseResult(case=case, duration_s=0, result=result, differences=tuple(found))


def outputs(tests: FlowTests) -> list[Any]:
    cases = read_source(Path(tests.path).read_bytes(), name="flow.yaml").value["test"]["cases"]
    return [case.get("output") for case in cases]


def test_an_update_changes_what_is_expected_and_leaves_open_what_was_open(tests: FlowTests) -> None:
    result = Success({"kept": 2, "took_s": 0.5})
    update = update_expectations(tests, [came_to(tests, 0, result), came_to(tests, 1, result)])
    assert update == Update(updated=frozenset({0, 1}))
    assert [output["result"] for output in outputs(tests)[:2]] == [{"kept": 2}, {"kept": 2, "took_s": 0.5}]


def test_a_case_that_has_passed_is_left_alone(tests: FlowTests) -> None:
    before = Path(tests.path).stat()
    assert update_expectations(tests, [came_to(tests, 0, Success({"kept": 1}))]) == Update()
    assert Path(tests.path).stat() == before


@pytest.mark.parametrize(
    "result",
    [
        None,
        Failed(FlowError(ErrorCode.SPAWN_FAILED, "no worker")),
        Failed(FlowError(ErrorCode.TRANSPORT_ERROR, "gone")),
        Failed(FlowError(ErrorCode.RUNTIME_INTERNAL, "ours")),
        Failed(FlowError(ErrorCode.REQUEST_CANCELLED, "cancelled")),
        Failed(FlowError(ErrorCode.RUN_TIMED_OUT, "late")),
    ],
)
def test_what_kept_a_flow_from_running_is_never_expected(tests: FlowTests, result: FlowResult | None) -> None:
    before = Path(tests.path).read_bytes()
    update = update_expectations(tests, [came_to(tests, 1, result)])
    assert not update.updated
    why = update.left[1]
    assert why in ("the flow did not run",) or why.startswith("code -32")
    assert Path(tests.path).read_bytes() == before


def test_a_failure_of_a_component_is_expected_and_of_a_kind_that_was_expected_already(
    tests: FlowTests,
) -> None:
    refused = Failed(FlowError(ErrorCode.COMPONENT_FAILED, "no"))
    lost = Failed(FlowError(ErrorCode.TRANSPORT_ERROR, "other words"))
    update = update_expectations(tests, [came_to(tests, 1, refused), came_to(tests, 2, lost)])
    assert update == Update(updated=frozenset({1, 2}))
    assert [output["error"] for output in outputs(tests)[1:]] == [
        {"code": -32100, "message": "no"},
        {"code": -32300, "message": "other words"},
    ]


def test_a_file_that_was_changed_meanwhile_is_not_overwritten(tests: FlowTests) -> None:
    path = Path(tests.path)
    path.write_bytes(path.read_bytes() + b"# mine\n")
    changed = path.read_bytes()
    update = update_expectations(tests, [came_to(tests, 1, Success(1))])
    assert update == Update(left={1: "the file was changed meanwhile"})
    assert path.read_bytes() == changed
    assert [found.name for found in path.parent.iterdir()] == ["flow.yaml"]


def test_a_file_is_replaced_with_its_permissions_and_where_a_link_leads(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    replace_file(link, b"new", was=b"old")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert len([*tmp_path.iterdir()]) == 2


def test_a_file_that_cannot_be_written_stays_whole_and_nothing_is_left_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flow.yaml"
    path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CannotUpdate, match="the file cannot be written: No space left on device"):
        replace_file(path, b"new", was=b"old")
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


# ---- the command --------------------------------------------------------------------------------------


def test_an_update_makes_all_cases_pass(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text(
        "name: n\ndescription: d\n"
        "output: { $if: { $input: $.echo }, then: { $input: $ } }\n"
        "test:\n  cases:\n"
        "    # echoes\n"
        "    - { name: one, input: { echo: 1 }, output: { outcome: success, result: { echo: 2 } } }\n"
        "    - name: two\n      input: { echo: null }\n",
        encoding="utf-8",
    )
    before = path.read_text(encoding="utf-8")
    ran = cli("test", "flow.yaml", "--config", CONFIG, "--update", "--no-diff", cwd=tmp_path)
    assert (ran.code, "updated flow.yaml: one" in ran.stdout) == (0, True)
    assert re.sub(r"\(.*\)", "(…)", ran.stdout.splitlines()[-1]) == "2 cases in 1 file: 2 updated (…)"
    added = "\n      output:\n        outcome: success\n        result: null\n"
    assert path.read_text(encoding="utf-8") == (
        before.replace(
            "{ outcome: success, result: { echo: 2 } }", "{outcome: success, result: {echo: 1}}"
        ).removesuffix("\n")
        + added
    )
    assert cli("test", "flow.yaml", "--config", CONFIG, cwd=tmp_path).code == 0
