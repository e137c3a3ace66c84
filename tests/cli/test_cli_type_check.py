"""``validate --type-check``: what the workers take and return, against what the flow gives them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_process import CONFIG, Finished

Cli = Callable[..., Finished]
WriteFlow = Callable[..., Path]


def test_a_flow_whose_types_fit_passes(cli: Cli, flow: WriteFlow) -> None:
    given = flow("/crew/chatter", "{ lines: 3 }")
    ran = cli("validate", given, "--type-check", "--config", CONFIG)
    assert ran == Finished(0, f"{given}: 0 errors, 0 warnings\n", "")


def test_what_does_not_fit_is_an_error_with_its_place(cli: Cli, flow: WriteFlow) -> None:
    given = flow("/crew/chatter", '{ lines: "3", loud: true }')
    assert cli("validate", given, "--config", CONFIG).code == 0
    ran = cli("validate", "--flow", given, "--type-check", "--config", CONFIG)
    assert (ran.code, ran.stderr) == (2, "")
    assert ran.stdout.startswith(
        f'{given}:6:21: error: the input of step "only" does not fit /crew/chatter: '
        "$.lines is a string, where an integer fits [2100 at $.steps[0].input.lines]\n"
    )
    assert ran.stdout.endswith(f"{given}: 1 error, 0 warnings\n")


def test_strictness_adds_warnings_and_fails_nothing(cli: Cli, flow: WriteFlow) -> None:
    given = flow("/crew/echo", "{ value: { $input: $.x } }")
    assert cli("validate", given, "--type-check", "--config", CONFIG).stdout.endswith(
        "0 errors, 0 warnings\n"
    )
    ran = cli("validate", given, "--type-check", "--strict", "--config", CONFIG)
    assert ran.code == 0
    assert f"{given}:6:31: warning: path $.x into the input cannot be checked" in ran.stdout
    assert f"{given}:5:16: warning: /crew/echo does not say what it returns" in ran.stdout
    assert ran.stdout.endswith(f"{given}: 0 errors, 2 warnings\n")


@pytest.mark.parametrize("checked", [["--type-check"], []])
def test_everything_can_be_had_as_json(cli: Cli, flow: WriteFlow, checked: list[str]) -> None:
    given = flow("/crew/chatter", "{ lines: { $variable: n } }")
    ran = cli("validate", given, *checked, "--json", "--config", CONFIG)
    said = json.loads(ran.stdout)
    assert (said["numFatal"], said["numError"], said["numWarning"]) == (0, 0, 1)
    [warning] = said["diagnostics"]
    assert (warning["kind"], warning["code"], warning["level"]) == ("missingVariableSchema", 1004, "warning")
    assert warning["place"] == {"source": str(given), "line": 6, "column": 34}
    nothing = {"diagnostics": [], "numFatal": 0, "numError": 0, "numWarning": 0}
    assert said["configuration"] == {**nothing, "unavailable": []}


def test_json_says_what_is_wrong_with_the_configuration(cli: Cli, flow: WriteFlow, tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("plugins: 1\n", encoding="utf-8")
    ran = cli("validate", flow("/crew/echo"), "--json", "--config", config)
    assert ran.code == 2
    error, wrong = json.loads(ran.stdout)["configuration"]["diagnostics"]
    assert (error["kind"], error["code"]) == ("missingField", 3904)
    assert wrong["place"] == {"source": str(config), "line": 1, "column": 10}


def test_a_worker_that_cannot_be_asked_makes_the_check_incomplete(
    cli: Cli, flow: WriteFlow, tmp_path: Path
) -> None:
    config = tmp_path / "config.yml"
    text = CONFIG.read_text(encoding="utf-8").replace("${STEPFLOW_PYTHON}", "no-such-program")
    config.write_text(text, encoding="utf-8")
    ran = cli("validate", flow("/crew/echo"), "--type-check", "--config", config)
    assert ran.code == 1
    assert "warning: plugin crew cannot be asked what its components take and return: " in ran.stdout
    # One that the flow does not need is not missed.
    given = flow("/builtin/put_blob", "{ data: 1, blob_type: data }")
    assert cli("validate", given, "--type-check", "--config", config).code == 0


def test_a_path_that_leads_to_several_plugins_by_its_input_has_no_types(
    cli: Cli, flow: WriteFlow, tmp_path: Path
) -> None:
    config = tmp_path / "config.yml"
    text = CONFIG.read_text(encoding="utf-8").replace(
        "args: [worker.py]", f"args: [{CONFIG.parent / 'worker.py'}]"
    )
    crew = text.partition("  crew:\n")[2].partition("routes:")[0]
    rule = "- plugin: other\n      conditions: [{ path: $.lines, value: 1 }]\n    - plugin: crew\n"
    text = text.replace("routes:", f"  other:\n{crew}routes:").replace("- plugin: crew\n", rule)
    config.write_text(text, encoding="utf-8")
    ran = cli(
        "validate", flow("/crew/chatter", "{ lines: x }"), "--type-check", "--strict", "--config", config
    )
    assert ran.code == 0
    assert "/crew/chatter does not say what it returns" in ran.stdout


def test_a_component_that_its_worker_does_not_list_is_an_error(cli: Cli, flow: WriteFlow) -> None:
    given = flow("/crew/chater", "{ lines: 3 }")
    ran = cli("validate", given, "--type-check", "--config", CONFIG)
    assert ran.code == 2
    assert f"{given}:5:16: error: there is no /crew/chater: its worker does not list it [2903 " in ran.stdout
    assert 'did you mean "/crew/chatter"?' in ran.stdout


def test_a_component_of_a_worker_that_cannot_be_asked_is_no_error(
    cli: Cli, flow: WriteFlow, tmp_path: Path
) -> None:
    config = tmp_path / "config.yml"
    config.write_text(
        "plugins:\n"
        f"  gone: {{ type: stepflow, transport: stdio, command: {sys.executable}, args: [-c, pass] }}\n"
        'routes: { "/gone/{*component}": [{ plugin: gone }] }\n',
        encoding="utf-8",
    )
    ran = cli("validate", flow("/gone/it", "{}"), "--type-check", "--config", config)
    assert ran.code == 1
    assert "0 errors, 1 warning" in ran.stdout


def test_nothing_is_started_for_a_flow_that_is_wrong_already(cli: Cli, flow: WriteFlow) -> None:
    given = flow("/crew/die", "{ $step: nowhere }")
    ran = cli("validate", given, "--type-check", "--config", CONFIG)
    assert (ran.code, ran.stderr) == (2, "")
    assert ran.stdout.endswith(f"{given}: 1 error, 0 warnings\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["validate", "f.yaml", "--strict"], "--strict goes with --type-check."),
        (["validate", "f.yaml", "--flow", "g.yaml"], "FLOW and --flow name the flow twice."),
        (["validate", "--flow", "f.yaml", "--flow", "g.yaml"], "given 2 times"),
        (["validate", "--type-check"], "Missing argument 'FLOW'."),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    cli_here: Cli, arguments: list[str], complaint: str
) -> None:
    ran = cli_here(*arguments)
    assert ran.code == 2
    assert complaint in ran.stderr
