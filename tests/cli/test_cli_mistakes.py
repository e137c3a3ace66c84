"""What users get wrong, and what they are told: one block on stderr, its place first, and exit code 2."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from cli_process import CONFIG, Finished
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.cli.given_values import read_text_value
from stepflow_trio.errors import FlowInvalid

Cli = Callable[..., Finished]
WriteFlow = Callable[..., Path]

GOOD_FLOW = """\
name: good
description: Runs.
steps:
  - id: only
    component: /builtin/put_blob
    input: { blob_type: data, data: { $input: $ } }
output: { $step: only }
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "good.yaml": GOOD_FLOW,
        "not-yaml.yaml": "name: x\nsteps: [\n",
        "bad-step.yaml": GOOD_FLOW.replace("$step: only", "$step: olny"),
        "in.json": '{\n  "a": 1,\n  "b": [1, 2,]\n}',
        "nan.json": '{"a": {"b": NaN}}',
        "twice.json": '{"a": 1,\n "a": 2}',
        "bad.yaml": "a: 1\nb: [\n",
        "in.jsonl": '{"a": 1}\n\n{"a": 1]\n',
        "list.json": "[1]",
        "config.yml": "plugins:\n  builtin:\n    type: biultin\nroutes: {}\n",
        "empty.yml": "plugins: { b: { type: builtin } }\nroutes: { '/builtin/{*c}': [{ plugin: b }] }\n",
        "unset.yml": (
            "plugins:\n  w:\n    type: stepflow\n    transport: stdio\n    command: $NO_SUCH_THING\n"
            "routes: {}\n"
        ),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "link").symlink_to("good.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"name: \xff\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "begins", "also"),
    [
        (["--flow", "none.yaml"], "none.yaml: error: the file cannot be read: No such file", ""),
        (["--flow", "."], ".: error: the file cannot be read: Is a directory", ""),
        (["--flow", "not-yaml.yaml"], "not-yaml.yaml:3:1: error: ", ""),
        (["--flow", "binary.yaml"], "binary.yaml:1:7: error: byte 0xff", "save the text as UTF-8"),
        (["--flow", "bad-step.yaml"], "bad-step.yaml:7:18: error: ", 'did you mean "only"?'),
        (["--config", "none.yml"], "none.yml: the configuration cannot be read: No such file", ""),
        (["--config", "config.yml"], "config.yml:3:11: ", 'did you mean "builtin"?'),
        (["--config", "unset.yml"], "unset.yml:5:14: ", "NO_SUCH_THING is not set"),
        (["--input", "none.json"], "none.json: error: the file cannot be read: No such file", ""),
        (["--input", "in.json"], "in.json:3:13: error: this is not JSON", '"b": [1, 2,]\n'),
        (["--input", "nan.json"], "nan.json:1:13: error: JSON has no nan", "$.a.b"),
        (["--input", "twice.json"], 'twice.json:2:2: error: the key "a" is already in line 1', ""),
        (["--input", "bad.yaml"], "bad.yaml:3:1: error: ", ""),
        (["--input-json", "{'a': 1}"], "--input-json:1:2: error: this is not JSON", "^"),
        (["--input-json", "NaN"], "--input-json:1:1: error: JSON has no nan", ""),
        (["--input-json", '"\\ud800"'], "--input-json:1:1: error: ", "surrogate"),
        (["--input-json", ""], "--input-json:1:1: error: this is not JSON", ""),
        (["--input-yaml", "a: b: c"], "--input-yaml:1:5: error: ", ""),
        (["--input", "-"], "<stdin>:1:2: error: this is not JSON", "{a: 1}"),
        ([], "<stdin>:1:2: error: this is not JSON", "{a: 1}"),
        (["--inputs", "in.jsonl"], "in.jsonl:3:8: error: this is not JSON", '    3 | {"a": 1]\n'),
        (["--input-json", "1", "--variables", "list.json"], "--variables: error: must be an object", "array"),
        (["--input-json", "1", "--variables-json", "{"], "--variables-json:1:2: error: ", ""),
        (["--input-json", "1", "--output", "no/where"], "no/where: error: there is no directory no", ""),
        (["--input-json", "1", "--output", "."], ".: error: is a directory", ""),
        (
            ["--input-json", "1", "--output", "good.yaml"],
            "good.yaml: error: is the flow itself, which would",
            "",
        ),
        (["--input-json", "1", "--output", "link"], "link: error: is the flow itself, which would be", ""),
        (["--input", "in.json", "--output", "in.json"], "in.json: error: is the input itself", ""),
        (["--inputs", "in.jsonl", "--output", "./in.jsonl"], "in.jsonl: error: is the file of inputs", ""),
        (
            ["--input-json", "1", "--variables", "list.json", "--output", "list.json"],
            "list.json: error: is the file of variables itself",
            "",
        ),
        (
            ["--input-json", "1", "--config", "empty.yml", "--output", "empty.yml"],
            "empty.yml: error: is the configuration itself",
            "",
        ),
    ],
)
def test_what_cannot_be_used_is_named_with_its_place(
    cli_here: Cli, project: Path, arguments: list[str], begins: str, also: str
) -> None:
    if "--flow" not in arguments:
        arguments = ["--flow", "good.yaml", *arguments]
    elif "--input-json" not in arguments:
        arguments = [*arguments, "--input-json", "1"]
    ran = cli_here("run", *arguments, stdin="{a: 1}")
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.startswith(begins), ran.stderr
    assert also in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("stdin", ["", " \n"])
def test_an_empty_stdin_is_no_input(cli_here: Cli, project: Path, stdin: str) -> None:
    ran = cli_here("run", "--flow", "good.yaml", stdin=stdin)
    assert (ran.code, ran.stdout) == (2, "")
    assert "There is no input: give --input, --input-json or --input-yaml, or pipe it in." in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rnu"], "No such command 'rnu'."),
        (["run"], "Missing argument 'FLOW'."),
        (["run", "--flwo", "x"], "No such option '--flwo'. Did you mean '--flow'?"),
        (["run", "--flow", "x", "y"], "FLOW and --flow name the flow twice."),
        (["run", "x", "y"], "Got unexpected extra argument (y)"),
        (["run", "x", "--timeout", "0"], "0.0 is not in the range x>0."),
        (["run", "x", "--overrides-json", "{}", "--overrides", "y"], "--overrides and --overrides-json"),
        (["serve", "--config", "x", "--config-stdin"], "--config and --config-stdin exclude each other."),
        (["worker", "x", "--port", "1"], "--port goes with --http."),
        (["run", "--flow", "x", "--flow", "y"], "'--flow': given 2 times"),
        (["run", "--flow", "x", "--input", "a", "--input", "a"], "'--input': given 2 times"),
        (["run", "--flow", "x", "--input", "a", "--input-json", "1"], "--input and --input-json exclude"),
        (["run", "--flow", "x", "--input", "a", "--inputs", "b"], "--input and --inputs exclude each other."),
        (["run", "--flow", "x", "--input", "-", "--variables", "-"], "stdin can be read once"),
        (["run", "--flow", "x", "--variables", "-"], "stdin can be read once, but is to be the input and"),
        (["run", "--flow", "x", "--input", "a", "--max-concurrency", "2"], "it goes with --inputs"),
        (["run", "--flow", "x", "--inputs", "a", "--max-concurrency", "0"], "0 is not in the range x>=1."),
        (["submit", "--flow", "x", "--max-concurrency", "0"], "0 is not in the range x>=1."),
        (["test", "x", "--max-concurrency", "0"], "0 is not in the range x>=1."),
        (["run", "--flow", "x", "--input", "a", "--stdin-format", "yaml"], "--stdin-format is for an input"),
        (["run", "--flow", "x", "--stdin-format", "xml"], "'xml' is not one of 'json', 'yaml'."),
        (["validate"], "Missing argument 'FLOW'."),
        (["schema", "--dialect", "1.0"], "'1.0' is not one of '0.8', '0.9', '0.11'."),
    ],
)
def test_wrong_usage_is_answered_with_what_would_be_right(
    cli_here: Cli, arguments: list[str], says: str
) -> None:
    ran = cli_here(*arguments)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("Usage: stepflow-trio ")
    assert says in ran.stderr


@given(st.text() | st.binary(), st.sampled_from(["json", "yaml"]))
def test_any_text_at_all_is_a_value_or_is_refused(text: str | bytes, format: Literal["json", "yaml"]) -> None:
    with contextlib.suppress(FlowInvalid):
        read_text_value(text, name="given", format=format)


def test_warnings_are_shown_before_the_run_but_not_those_that_only_matter_to_the_flow_s_author(
    cli: Cli, tmp_path: Path
) -> None:
    odd = tmp_path / "odd.yaml"
    text = GOOD_FLOW.partition("steps")[2]
    odd.write_text(f"colour: blue\nsteps{text}", encoding="utf-8")
    ran = cli("run", "--flow", odd, "--input-json", "1")
    assert ran.code == 0
    assert ran.stderr.startswith(f"{odd}:1:1: warning: ")
    assert "no name" not in ran.stderr
    assert cli("run", "-q", "--flow", odd, "--input-json", "1").stderr == ""


def test_a_step_that_no_route_leads_to_is_an_error_before_anything_starts(
    cli_here: Cli, flow: WriteFlow, tmp_path: Path
) -> None:
    given = flow("/crew/echo")
    ran = cli_here("run", "--flow", given, "--input-json", "1")
    assert (ran.code, ran.stdout) == (2, "")
    said = ran.stderr.splitlines()
    assert said[0].startswith(f"{given}:5:16: error: Component /crew/echo not found: no route leads there")
    assert said[1:3] == ["    5 |     component: /crew/echo", "      |                ^"]
    assert said[3:] == [
        f"      = no stepflow-config.yml beside the flow or in {tmp_path}: use --config",
    ]
    empty = tmp_path / "empty.yml"
    empty.write_text("plugins: {}\nroutes: {}\n", encoding="utf-8")
    ran = cli_here("run", "--flow", given, "--input-json", "1", "--config", empty)
    assert (ran.code, len(ran.stderr.splitlines())) == (2, 3)


def test_a_flow_from_a_pipe_is_not_read_again_to_show_where_it_is_wrong(
    cli: Cli, flow: WriteFlow, tmp_path: Path
) -> None:
    text = flow("/crew/echo").read_text(encoding="utf-8")
    ran = cli("run", "--flow", "/dev/stdin", "--input-json", "1", stdin=text, cwd=tmp_path)
    assert ran.code == 2
    assert ran.stderr.startswith("/dev/stdin: error: Component /crew/echo not found")


@pytest.mark.parametrize("options", [[], ["--quiet"]])
def test_what_nobody_reads_in_a_configuration_is_always_said(
    cli: Cli, project: Path, options: list[str]
) -> None:
    config = project / "odd.yml"
    text = CONFIG.read_text(encoding="utf-8").replace("args: [worker.py]", "arguments: [worker.py]")
    config.write_text(text, encoding="utf-8")
    ran = cli("run", *options, "--flow", project / "good.yaml", "--config", config, "--input-json", "1")
    assert ran.code == 0
    assert f"{config}:8:5: warning: plugins.crew.arguments: is ignored" in ran.stderr


def test_a_configuration_beside_the_flow_counts_before_the_one_here(cli: Cli, project: Path) -> None:
    here = project / "here"
    here.mkdir()
    (project / "stepflow-config.yml").write_text("plugins: 1\n", encoding="utf-8")
    (here / "stepflow-config.yml").write_text("plugins: {}\nroutes: {}\n", encoding="utf-8")
    ran = cli("run", "--flow", "../good.yaml", "--input-json", "1", cwd=here)
    assert ran.code == 2
    assert "../stepflow-config.yml:1:10: error: plugins: " in ran.stderr
    (project / "stepflow-config.yml").unlink()
    ran = cli("run", "--flow", "../good.yaml", "--input-json", "1", cwd=here)
    assert ran.code == 2
    assert "no route leads there (routes: none)" in ran.stderr
    assert "use --config" not in ran.stderr


def test_an_error_of_our_own_is_one_line_unless_its_traceback_is_asked_for(
    cli: Cli, flow: WriteFlow, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "trio.py").write_text("raise ZeroDivisionError('one\\ntwo')", encoding="utf-8")
    path = os.pathsep.join([str(broken), *filter(None, [os.environ.get("PYTHONPATH")])])
    arguments = ["run", "--flow", flow("/builtin/put_blob"), "--input-json", "1", "--config", CONFIG]
    ran = cli(*arguments, env={**os.environ, "PYTHONPATH": path})
    assert (ran.code, ran.stdout) == (1, "")
    assert ran.stderr == (
        "internal error: ZeroDivisionError: one; set STEPFLOW_DEBUG=1 to see where it comes from\n"
    )
    ran = cli(*arguments, env={**os.environ, "PYTHONPATH": path, "STEPFLOW_DEBUG": "1"})
    assert ran.stderr.startswith("Traceback (most recent call last):")
    assert ran.stderr.endswith("internal error: ZeroDivisionError: one\n")
