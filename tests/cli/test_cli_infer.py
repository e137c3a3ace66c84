"""``infer``: a flow with the schemas that follow from its components."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_process import CONFIG, Finished
from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow_trio.cli.inference import flow_text
from stepflow_trio.flows.reader import flow_from_json, read_flow, read_flow_file
from stepflow_trio.flows.source import read_source

Cli = Callable[..., Finished]
WriteFlow = Callable[..., Path]

INFERRED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "input": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
        "output": {"type": "string"},
        "steps": {"type": "object", "properties": {"only": {"type": "string"}}},
    },
}


@pytest.fixture
def chatter(flow: WriteFlow) -> Path:
    return flow("/crew/chatter", "{ lines: { $input: $.n } }")


def test_the_completed_flow_goes_to_stdout_and_nothing_else(cli: Cli, chatter: Path) -> None:
    ran = cli("infer", chatter, "--config", CONFIG)
    assert (ran.code, ran.stderr) == (0, "")
    completed = read_flow(ran.stdout, name="out.yaml")
    assert completed.schemas == INFERRED
    assert completed.steps == read_flow_file(chatter).steps
    # Nothing is left to be inferred.
    chatter.write_text(ran.stdout, encoding="utf-8")
    assert cli("infer", "--flow", chatter, "--config", CONFIG).stdout == ran.stdout


def test_what_steps_are_given_is_said_on_stderr_and_the_flow_stays_the_flow(
    cli: Cli, chatter: Path, tmp_path: Path
) -> None:
    ran = cli("infer", chatter, "--config", CONFIG, "--show-step-inputs")
    assert (ran.code, ran.stderr.split(":")[0]) == (0, "only")
    assert read_flow(ran.stdout, name="out.yaml").schemas == INFERRED
    for name in ("out.yaml", "out.json"):
        written = tmp_path / name
        assert cli("infer", chatter, "--config", CONFIG, "--show-step-inputs", "-o", written).code == 0
        assert read_flow_file(written).schemas == INFERRED


def test_a_flow_in_json_is_completed_as_json(cli: Cli, chatter: Path, tmp_path: Path) -> None:
    written = tmp_path / "flow.json"
    written.write_text(json.dumps(read_flow_file(chatter).to_json()), encoding="utf-8")
    ran = cli("infer", written, "--config", CONFIG)
    assert json.loads(ran.stdout)["schemas"] == INFERRED


def test_the_output_can_be_a_file_beside_the_flow_or_any_other(
    cli: Cli, chatter: Path, tmp_path: Path
) -> None:
    ran = cli("infer", "--flow", chatter, "--config", CONFIG, "--output")
    beside = tmp_path / "flow.inferred.yaml"
    assert ran == Finished(0, "", f"{beside} written: 0 errors\n")
    assert read_flow_file(beside).schemas == INFERRED
    ran = cli("infer", chatter, "--config", CONFIG, f"--output={tmp_path / 'other.json'}")
    assert ran.code == 0
    assert json.loads((tmp_path / "other.json").read_text(encoding="utf-8"))["schemas"] == INFERRED


def test_what_is_wrong_with_the_types_is_said_on_stderr_and_the_flow_is_written(
    cli: Cli, flow: WriteFlow
) -> None:
    more = "  - { id: again, component: /crew/refuse, input: { why: { $input: $.n } }, mustExecute: true }\n"
    given = flow("/crew/chatter", "{ lines: { $input: $.n } }", more=more)
    ran = cli("infer", given, "--config", CONFIG)
    assert ran.code == 2
    assert ran.stderr.startswith(
        f'{given}:7:67: error: step "again" demands string of $.n of the input, step "only" integer: '
        "no value is both [2100 at $.steps[1].input.why.$input]\n"
    )
    assert read_flow(ran.stdout, name="out.yaml").schemas == {
        **INFERRED,
        "properties": {
            **INFERRED["properties"],
            "steps": {
                "type": "object",
                "properties": {"only": {"type": "string"}, "again": {"type": "null"}},
            },
        },
    }


def test_what_each_step_is_given_and_takes_can_be_shown(cli: Cli, flow: WriteFlow) -> None:
    given = flow("/crew/chatter", "{ lines: 3, loud: { $input: $.x } }")
    ran = cli("infer", given, "--config", CONFIG, "--show-step-inputs", "--strict")
    assert ran.code == 0
    assert "only: given {lines: 3, loud: any}, takes {lines: integer}\n" in ran.stderr
    assert f"{given}:6:40: warning: path $.x into the input cannot be checked" in ran.stderr


def test_everything_can_be_had_as_one_json_object(cli: Cli, chatter: Path) -> None:
    ran = cli("infer", chatter, "--config", CONFIG, "--json", "--show-step-inputs")
    assert (ran.code, ran.stderr) == (0, "")
    said = json.loads(ran.stdout)
    assert said["flow"]["schemas"] == INFERRED
    assert (said["diagnostics"], said["numError"], said["unavailable"]) == ([], 0, [])
    assert said["stepInputs"] == {"only": {"given": "{lines: any}", "taken": "{lines: integer}"}}


def test_the_flow_itself_is_never_overwritten(cli: Cli, chatter: Path) -> None:
    before = chatter.read_text(encoding="utf-8")
    ran = cli("infer", chatter, "--config", CONFIG, "-o", chatter)
    assert ran == Finished(2, "", f"{chatter}: error: is the flow itself, whose comments would be lost\n")
    assert chatter.read_text(encoding="utf-8") == before


def test_an_output_that_cannot_be_written_is_an_error(cli: Cli, chatter: Path, tmp_path: Path) -> None:
    ran = cli("infer", chatter, "--config", CONFIG, "-o", tmp_path)
    assert (ran.code, ran.stderr) == (2, f"{tmp_path}: error: is a directory; --output names a file\n")
    ran = cli("infer", chatter, "--config", CONFIG, "-o", tmp_path / "no" / "where.yaml")
    assert ran.code == 1
    assert "cannot be written: No such file or directory" in ran.stderr


def test_a_flow_that_is_wrong_is_refused_before_anything_starts(cli: Cli, flow: WriteFlow) -> None:
    ran = cli("infer", flow("/crew/die", "{ $step: nowhere }"), "--config", CONFIG)
    assert (ran.code, ran.stdout) == (2, "")
    assert '"nowhere", which does not exist' in ran.stderr


def test_a_worker_that_cannot_be_asked_makes_the_inference_incomplete(
    cli: Cli, chatter: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yml"
    text = CONFIG.read_text(encoding="utf-8").replace("${STEPFLOW_PYTHON}", "no-such-program")
    config.write_text(text, encoding="utf-8")
    ran = cli("infer", chatter, "--config", config)
    assert ran.code == 1
    assert ran.stderr.startswith("warning: plugin crew cannot be asked what its components take and return: ")
    assert read_flow(ran.stdout, name="out.yaml").steps


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(
        ["yes", "no", "007", "1.0", "1e3", "0x1f", "2020-01-01", "null", "~", "<<", "=", "- x", "a: b"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
            | st.sampled_from(["yes", "1", "<<", "~"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_a_flow_that_is_written_reads_back_as_it_was(value: Any) -> None:
    flow = flow_from_json({"metadata": {"x": value}, "output": {"$literal": value}}).to_json()
    for suffix in ("yaml", "json"):
        source = read_source(flow_text(flow, suffix=f".{suffix}"), name=f"out.{suffix}")
        assert source.diagnostics == ()
        assert source.value == flow
        assert json.dumps(source.value) == json.dumps(flow)
