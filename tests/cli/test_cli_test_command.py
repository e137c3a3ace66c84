"""`stepflow-trio test`: which cases are found, what is said of them, and the exit code."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_process import CONFIG, Finished, Started, is_alive

Cli = Callable[..., Finished]

FLOW = """\
name: {name}
description: A flow of the tests.
output: {{ $input: $ }}
test:
  cases:
{cases}
"""


def write_flow(path: Path, *cases: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(f"    - {{ {case} }}" for case in cases)
    path.write_text(FLOW.format(name=path.stem, cases=lines), encoding="utf-8")
    return path


DONE = "{ outcome: success, result: done }"


def passing(name: str = "good") -> str:
    return f"name: {name}, input: 1, output: {{ outcome: success, result: 1 }}"


def failing(name: str = "bad") -> str:
    return (
        f"name: {name}, input: {{ a: 1, b: [x] }}, output: {{ outcome: success, result: {{ a: 2, b: [] }} }}"
    )


def without_times(text: str) -> str:
    return re.sub(r"\(\d.*\)", "(…)", text)


# ---- what is said -------------------------------------------------------------------------------------


def test_cases_that_pass_are_a_line_each_and_the_exit_code_is_0(cli: Cli, tmp_path: Path) -> None:
    write_flow(tmp_path / "flow.yaml", passing("one"), passing("two"))
    ran = cli("test", "flow.yaml", cwd=tmp_path)
    assert (ran.code, ran.stderr) == (0, "")
    assert without_times(ran.stdout) == (
        "passed  flow.yaml: one (…)\npassed  flow.yaml: two (…)\n2 cases in 1 file: 2 passed (…)\n"
    )


def test_a_case_that_fails_shows_what_differs_by_path_and_the_exit_code_is_1(
    cli: Cli, tmp_path: Path
) -> None:
    flow = write_flow(tmp_path / "flow.yaml", passing(), failing(), "name: new, input: 7")
    before = flow.read_bytes()
    ran = cli("test", "flow.yaml", cwd=tmp_path)
    assert ran.code == 1
    assert without_times(ran.stdout) == (
        "passed  flow.yaml: good (…)\n"
        "failed  flow.yaml: bad (…)\n"
        "          $.result.a\n"
        "            expected: 2\n"
        "            actual:   1\n"
        "          $.result.b[0]\n"
        "            expected: nothing\n"
        '            actual:   "x"\n'
        "failed  flow.yaml: new (…)\n"
        "          the case has no output to expect; --update writes what it came to\n"
        '          it came to: {"outcome": "success", "result": 7}\n'
        "3 cases in 1 file: 1 passed, 2 failed (…)\n"
    )
    assert flow.read_bytes() == before
    bare = cli("test", "flow.yaml", "--no-diff", "--quiet", cwd=tmp_path)
    assert without_times(bare.stdout) == (
        "failed  flow.yaml: bad (…)\n"
        "failed  flow.yaml: new (…)\n"
        "          the case has no output to expect; --update writes what it came to\n"
        "3 cases in 1 file: 1 passed, 2 failed (…)\n"
    )


def test_with_json_stdout_is_one_document_with_all_of_it(cli: Cli, tmp_path: Path) -> None:
    write_flow(tmp_path / "a.yaml", passing(), failing())
    (tmp_path / "b.yaml").write_text("steps: [{ id: x, component: /builtin/eval\n", encoding="utf-8")
    ran = cli("test", ".", "--json", cwd=tmp_path)
    assert (ran.code, ran.stderr) == (2, "")
    document: dict[str, Any] = json.loads(ran.stdout)
    assert isinstance(document["summary"].pop("durationSecs"), float)
    assert document["summary"] == {
        "files": 2, "filesNotTested": 1, "cases": 2, "passed": 1, "failed": 1, "updated": 0,
    }  # fmt: skip
    tested, broken = document["files"]
    assert (tested["path"], broken["path"], broken["cases"]) == ("a.yaml", "b.yaml", [])
    assert broken["error"]["message"].startswith("b.yaml:2:1: error: ")
    assert broken["error"]["diagnostics"][0]["place"]["line"] == 2
    good, bad = tested["cases"]
    assert isinstance(good.pop("durationSecs"), float)
    result = {"outcome": "success", "result": 1}
    assert good == {"name": "good", "status": "passed", "expected": result, "actual": result}
    assert bad["status"] == "failed"
    assert bad["differences"] == [
        {"path": "$.result.a", "kind": "changed", "expected": 2, "actual": 1},
        {"path": "$.result.b[0]", "kind": "unexpected", "actual": "x"},
    ]


def test_a_run_that_fails_is_told_with_the_step_that_it_failed_in(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(
        "name: n\ndescription: d\nsteps: [{ id: only, component: /crew/refuse, input: {} }]\n"
        "output: { $step: only }\n"
        "test: { cases: [\n"
        "  { name: works, input: 1, output: { outcome: success, result: 1 } },\n"
        "  { name: fails, input: 1,\n"
        "    output: { outcome: failed, error: { code: -32110, message: not today } } },\n"
        "] }\n",
        encoding="utf-8",
    )
    ran = cli("test", "flow.yaml", "--config", CONFIG, cwd=tmp_path)
    assert ran.code == 1
    assert without_times(ran.stdout) == (
        "failed  flow.yaml: works (…)\n"
        "          $.outcome\n"
        '            expected: "success"\n'
        '            actual:   "failed"\n'
        "          $.error\n"
        "            expected: nothing\n"
        '            actual:   {"code": -32110, "message": "not today", "data": {"asked": true}}\n'
        "          it failed in step only\n"
        "passed  flow.yaml: fails (…)\n"
        "2 cases in 1 file: 1 passed, 1 failed (…)\n"
    )


def test_schemas_are_enforced_and_a_case_can_have_variables(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(
        """\
name: n
description: d
schemas:
  type: object
  properties:
    input: { type: integer }
    variables: { type: object, properties: { town: { type: string } }, required: [town] }
output: { $variable: town }
test:
  cases:
    - { name: given, input: 1, variables: { town: Ulm }, output: { outcome: success, result: Ulm } }
    - { name: refused, input: text, variables: { town: Ulm }, output: { outcome: success, result: Ulm } }
""",
        encoding="utf-8",
    )
    ran = cli("test", "flow.yaml", cwd=tmp_path)
    assert (ran.code, ran.stderr) == (1, "")
    assert ran.stdout.startswith("passed  flow.yaml: given")
    assert "failed  flow.yaml: refused" in ran.stdout
    assert '"code": -32003, "message": "the input does not fit its schema' in ran.stdout


# ---- what is found ------------------------------------------------------------------------------------


def test_a_directory_is_searched_for_flows_with_tests_and_other_files_are_passed_over(
    cli: Cli, tmp_path: Path
) -> None:
    write_flow(tmp_path / "b.yml", passing())
    write_flow(tmp_path / "sub" / "c.yaml", passing())
    write_flow(tmp_path / ".hidden" / "d.yaml", failing())
    flow = {
        "output": 1,
        "test": {"cases": [{"name": "j", "input": 1, "output": {"outcome": "success", "result": 1}}]},
    }
    (tmp_path / "a.json").write_text(json.dumps(flow), encoding="utf-8")
    others = {
        "stepflow-config.yml": "plugins: { builtin: { type: builtin } }\nroutes: {}\n",
        "pipeline.yaml": "steps:\n  - script: make test\n",
        "template.yaml": "steps: {{ .Values.steps }}\n",
        "ci.yml": "test: { script: [make] }\n",
        "list.json": '["steps", {"test": {"cases": []}}]',
        "broken.json": '{"tests": [',
        "empty.yaml": "",
        "bytes.yaml": "steps: \udcff",
        "untested.yaml": "steps: []\noutput: 1\nschema: https://stepflow.org/schemas/v1/flow.json\n",
        "notes.txt": "test: { cases: [",
    }
    for name, text in others.items():
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    ran = cli("test", ".", "sub/c.yaml", "b.yml", cwd=tmp_path)
    assert without_times(ran.stdout) == (
        "passed  a.json: j (…)\npassed  b.yml: good (…)\npassed  sub/c.yaml: good (…)\n"
        "3 cases in 3 files: 3 passed (…)\n"
    )
    assert (ran.code, "error" in ran.stderr) == (0, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: n\ntest:\n  cases:\n  - name: x\n   input: 1\n", "5:4: error: "),
        (
            "steps:\n  - id: x\n    component: /builtin/eval\n    inputs: 1\n",
            '4:5: error: a step has no field "inputs"',
        ),
        ("output: 1\ntests: { cases: [{ name: x, input: 1 }] }\n", '2:1: error: a flow has no field "tests"'),
        ("output: 1\ntest: { cases: [{ name: x }] }\n", '2:17: error: a test case needs an "input"'),
        ("test: { cases: [{ name: x, input: 1, output: 5 }] }\n", "1:46: error: not a flow result"),
        (
            "steps: [{ id: x, component: /no/where }]\ntest: { cases: [{ name: x, input: 1 }] }\n",
            "1:29: error: ",
        ),
    ],
)
def test_a_flow_that_cannot_be_used_is_told_with_its_place_and_the_others_are_tested(
    cli_here: Cli, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    ran = cli_here("test", ".", "--json")
    assert ran.code == 2
    (broken,) = json.loads(ran.stdout)["files"]
    assert broken["error"]["message"].startswith(f"bad.yaml:{said}")


def test_a_flow_that_cannot_be_used_does_not_keep_others_from_being_tested(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("test:\n  cases: 5\n", encoding="utf-8")
    write_flow(tmp_path / "good.yaml", passing(), failing())
    ran = cli("test", ".", "-q", "--no-diff", cwd=tmp_path)
    assert ran.code == 2
    assert without_times(ran.stdout) == (
        "error   bad.yaml: cannot be used\n"
        "          bad.yaml:2:10: error: cases is an array, not a number [3903 at $.test.cases]\n"
        "              2 |   cases: 5\n"
        "                |          ^\n"
        "failed  good.yaml: bad (…)\n"
        "2 cases in 1 file: 1 passed, 1 failed; 1 file could not be tested (…)\n"
    )


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["nowhere.yaml"], "nowhere.yaml: error: there is no such file or directory\n"),
        (["."], "error: no test case was found in .: 1 flow there has no test: cases:\n"),
        (["plain.yaml"], "error: no test case was found in plain.yaml: 1 flow there has no test: cases:\n"),
        (["empty", "stepflow-config.yml"],
         "error: no test case was found in empty, stepflow-config.yml: there is no flow there\n"),
    ],
)  # fmt: skip
def test_nothing_to_test_is_a_mistake_that_says_where_was_looked(
    cli_here: Cli, tmp_path: Path, paths: list[str], said: str
) -> None:
    (tmp_path / "plain.yaml").write_text("steps: [{ id: x, component: /builtin/eval }]\n", encoding="utf-8")
    (tmp_path / "stepflow-config.yml").write_text("plugins: 1", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    assert cli_here("test", *paths) == Finished(2, "", said)


def test_a_named_file_that_is_no_flow_is_told_so(cli_here: Cli, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n", encoding="utf-8")
    ran = cli_here("test", "list.yaml", "--json")
    assert ran.code == 2
    assert "list.yaml:1:1: error: a flow is an object, not an array" in ran.stdout


# ---- choosing cases -----------------------------------------------------------------------------------


def test_cases_are_chosen_by_name_with_wildcards(cli: Cli, tmp_path: Path) -> None:
    write_flow(tmp_path / "a.yaml", passing("sum of none"), failing("sum of two"), passing("'[x]'"))
    write_flow(tmp_path / "b.yaml", failing("other"))
    ran = cli("test", ".", "--case", "sum of n*", "--case", "[x]", cwd=tmp_path)
    assert ran.code == 0
    assert without_times(ran.stdout) == (
        "passed  a.yaml: sum of none (…)\npassed  a.yaml: [x] (…)\n2 cases in 1 file: 2 passed (…)\n"
    )


def test_a_case_that_there_is_none_of_is_a_mistake_with_a_suggestion(cli_here: Cli, tmp_path: Path) -> None:
    write_flow(tmp_path / "a.yaml", passing("addition"), passing("division"))
    ran = cli_here("test", "a.yaml", "--case", "div*", "--case", "adition")
    said = '--case: error: no test case is called "adition"; did you mean "addition"?\n'
    assert ran == Finished(2, "", said)
    ran = cli_here("test", "a.yaml", "--case", "x*")
    said = '--case: error: no test case is called "x*"; there are: addition, division\n'
    assert ran == Finished(2, "", said)


def test_two_cases_of_one_name_are_warned_of_and_both_run(cli: Cli, tmp_path: Path) -> None:
    write_flow(tmp_path / "a.yaml", passing("same"), passing("other"), failing("same"))
    ran = cli("test", "a.yaml", "--no-diff", cwd=tmp_path)
    assert ran.code == 1
    assert ran.stderr.splitlines()[0] == (
        'a.yaml:8:15: warning: the name "same" is already that of $.test.cases[0] '
        "[1904 at $.test.cases[2].name]"
    )
    assert "3 cases in 1 file: 2 passed, 1 failed" in ran.stdout
    assert cli("test", "a.yaml", "--quiet", cwd=tmp_path).stderr == ""


def test_what_is_odd_about_a_configuration_is_said_unless_it_is_to_be_quiet(cli: Cli, tmp_path: Path) -> None:
    write_flow(tmp_path / "a.yaml", passing())
    config = (
        "plugins: { builtin: { type: builtin } }\nroutes: { '/builtin/{*c}': [{ plugin: builtin }] }\nx: 1\n"
    )
    (tmp_path / "stepflow-config.yml").write_text(config, encoding="utf-8")
    ran = cli("test", "a.yaml", cwd=tmp_path)
    assert (ran.code, ran.stderr.split(": ")[:2]) == (0, ["stepflow-config.yml:3:1", "warning"])
    ran = cli("test", "a.yaml", "--quiet", cwd=tmp_path)
    assert (ran.code, ran.stderr) == (0, "")


# ---- ending -------------------------------------------------------------------------------------------


def test_ctrl_c_says_how_far_it_was_and_leaves_no_worker(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    (tmp_path / "flow.yaml").write_text(
        "name: n\ndescription: d\n"
        "steps: [{ id: wait, component: /crew/wait_if, input: { wait: { $input: $ } } }]\n"
        "output: { $step: wait }\n"
        "test: { cases: [ { name: quick, input: false, output: { outcome: success, result: done } },\n"
        "                 { name: slow, input: true } ] }\n",
        encoding="utf-8",
    )
    before = (tmp_path / "flow.yaml").read_bytes()
    command = start("test", "flow.yaml", "--config", CONFIG, "--update", cwd=tmp_path)
    command.wait_for("crew . waiting")
    workers = children_of(command.process.pid)
    assert workers
    command.signal_until_over(signal.SIGINT)
    ended = command.finish()
    assert ended.code == 130
    assert "of 2 cases had ended" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not any(map(is_alive, workers))
    assert (tmp_path / "flow.yaml").read_bytes() == before


def test_ctrl_c_tells_of_cases_that_ended_behind_one_that_did_not(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    for name, is_slow in (("a", "true"), ("b", "false")):
        (tmp_path / f"{name}.yaml").write_text(
            "name: n\ndescription: d\n"
            "steps: [{ id: wait, component: /crew/wait_if, input: { wait: { $input: $ } } }]\n"
            "output: { $step: wait }\n"
            f"test: {{ cases: [{{ name: it, input: {is_slow}, output: {DONE} }},\n"
            "                  { name: never, input: true } ] }\n",
            encoding="utf-8",
        )
    # b's second case waits for the place of its first one.
    command = start("test", ".", "--config", CONFIG, "--max-concurrency", "3", cwd=tmp_path)
    for _ in range(3):
        command.wait_for("crew . waiting")
        command._stderr = command._stderr.partition(b"waiting")[2]
    command.signal_until_over(signal.SIGINT)
    ended = command.finish()
    assert (ended.code, without_times(ended.stdout)) == (130, "passed  b.yaml: it (…)\n")


def children_of(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text(encoding="ascii").split()]
