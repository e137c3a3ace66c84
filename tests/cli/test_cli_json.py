"""``--json``: stdout is JSON alone, and stderr one JSON object a line, whatever is said."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_process import CONFIG, Finished

Cli = Callable[..., Finished]
WriteFlow = Callable[..., Path]


def said(ran: Finished) -> list[dict[str, Any]]:
    """What stderr says."""
    objects = [json.loads(line) for line in ran.stderr.splitlines()]
    for one in objects:
        assert one["level"] in ("info", "warning", "error")
        assert isinstance(one["message"], str)
    return objects


def events(ran: Finished) -> list[str]:
    return [one["event"] for one in said(ran) if "event" in one]


def test_a_run_says_its_progress_as_events(cli: Cli, flow: WriteFlow) -> None:
    ran = cli("run", flow("/crew/chatter", "{ lines: 1 }"), "--config", CONFIG, "--input-json", "1", "--json")
    assert (ran.code, ran.stdout) == (0, '{"outcome":"success","result":"said"}\n')
    [started, step, worker, *lines, done, ended] = [one for one in said(ran) if "event" in one]
    assert (started["event"], started["total_items"]) == ("run_started", 1)
    assert (step["event"], step["step_id"], step["component"]) == ("step_started", "only", "/crew/chatter")
    assert (worker["event"], worker["plugin"]) == ("worker_started", "crew")
    assert {(one["event"], one["plugin"]) for one in lines} == {("worker_line", "crew")}
    assert (done["event"], done["step_id"]) == ("step_completed", "only")
    assert (ended["event"], ended["status"], ended["run_id"]) == ("run_ended", "completed", started["run_id"])


def test_a_failed_run_says_why_with_its_code_and_step(cli: Cli, flow: WriteFlow) -> None:
    ran = cli("run", flow("/crew/run_tool"), "--config", CONFIG, "--input-json", "1", "--json", "--quiet")
    assert (ran.code, json.loads(ran.stdout)["outcome"]) == (1, "failed")
    last = said(ran)[-1]
    assert (last["level"], last["event"], last["code"]) == ("error", "run_failed", -32110)
    assert (last["message"], last["hint"]) == ("the tool failed", "give it a file")
    assert last["step_id"] == "only"


def test_of_a_large_batch_it_says_the_first_failures_and_counts_the_others(
    cli: Cli, flow: WriteFlow, tmp_path: Path
) -> None:
    inputs = tmp_path / "in.jsonl"
    inputs.write_text("\n1" * 100, encoding="utf-8")
    ran = cli("run", flow("/crew/refuse"), "--config", CONFIG, "--inputs", inputs, "--json")
    assert ran.code == 1
    assert all(json.loads(line)["outcome"] == "failed" for line in ran.stdout.splitlines())
    failures = [one for one in said(ran) if one.get("event") == "item_failed"]
    assert len(failures) == 20
    for one in failures:
        assert (one["code"], one["input_line"]) == (-32110, one["item_index"] + 2)
    last = said(ran)[-1]
    assert (last["failed_items"], last["total_items"], last["input_line"]) == (100, 100, 2)


@pytest.mark.parametrize(
    ("arguments", "place", "code"),
    [
        (["--input-json", "{1}"], {"file": "--input-json", "line": 1, "column": 2}, 3900),
        (["--input", "none.json"], {"file": "none.json"}, None),
        (["--input-json", "1", "--config", "none.yml"], {"file": "none.yml"}, None),
        (["--input-json", "1", "--config", "bad.yml"], {"file": "bad.yml", "line": 2, "column": 10}, 3903),
        (["--input-json", "1", "--flow", "odd.yaml"], {"file": "odd.yaml", "line": 3, "column": 18}, 3003),
    ],
)
def test_an_error_has_its_place_and_its_code(
    cli_here: Cli, tmp_path: Path, arguments: list[str], place: dict[str, Any], code: int | None
) -> None:
    (tmp_path / "good.yaml").write_text("name: n\ndescription: d\noutput: 1\n", encoding="utf-8")
    (tmp_path / "odd.yaml").write_text("name: n\ndescription: d\noutput: { $step: x }\n", encoding="utf-8")
    (tmp_path / "bad.yml").write_text("routes: {}\nplugins: 1\n", encoding="utf-8")
    if "--flow" not in arguments:
        arguments = ["good.yaml", *arguments]
    ran = cli_here("run", "--json", *arguments)
    assert (ran.code, ran.stdout) == (2, "")
    [error] = [one for one in said(ran) if one["level"] == "error"]
    assert "error: " not in error["message"]
    assert error.get("code") == code
    assert error["place"] == place


@pytest.mark.parametrize(
    "arguments",
    [["run", "--json", "--flwo", "x"], ["run", "--flwo", "x", "--json"], ["serve", "--json", "x"]],
)
def test_wrong_usage_is_an_object_too(cli_here: Cli, arguments: list[str]) -> None:
    ran = cli_here(*arguments)
    assert (ran.code, ran.stdout) == (2, "")
    [error] = said(ran)
    assert error["level"] == "error"
    assert error["usage"].startswith(f"stepflow-trio {arguments[0]} ")


def test_without_it_the_next_command_speaks_to_people_again(cli_here: Cli) -> None:
    assert cli_here("run", "--json", "none.yaml", "--input-json", "1").stderr.startswith("{")
    assert cli_here("run", "none.yaml", "--input-json", "1").stderr.startswith("none.yaml: error: ")


def test_lists_and_schemas_are_json_on_stdout(cli: Cli) -> None:
    ran = cli("list-components", "--json", "--config", CONFIG)
    assert "/crew/echo" in {each["component"] for each in json.loads(ran.stdout)["components"]}
    assert ran.stderr == ""
    assert json.loads(cli("schema", "--json").stdout)["title"]


def test_a_plugin_that_cannot_be_asked_is_named(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    text = CONFIG.read_text(encoding="utf-8").replace("${STEPFLOW_PYTHON}", "no-such-program")
    config.write_text(text, encoding="utf-8")
    ran = cli("list-components", "--json", "--config", config)
    assert ran.code == 1
    [error] = [one for one in said(ran) if one["level"] == "error"]
    assert error["plugin"] == "crew"


def test_a_drawing_is_a_value_or_the_name_of_its_file(cli: Cli, flow: WriteFlow, tmp_path: Path) -> None:
    given = flow("/crew/echo")
    plain = cli("visualize", given, "--format", "dot").stdout
    drawn = json.loads(cli("visualize", given, "--format", "dot", "--json").stdout)
    assert drawn == {"format": "dot", "drawing": plain}
    target = tmp_path / "flow.dot"
    drawn = json.loads(cli("visualize", given, "--output", target, "--json").stdout)
    assert drawn == {"format": "dot", "file": str(target)}
    assert target.read_text(encoding="utf-8") == plain


def test_a_drawing_in_pixels_is_in_base64(cli: Cli, flow: WriteFlow) -> None:
    pytest.importorskip("resvg_py")
    drawn = json.loads(cli("visualize", flow("/crew/echo"), "--format", "png", "--json").stdout)
    assert base64.b64decode(drawn["drawing"]).startswith(b"\x89PNG")


def test_validate_names_what_is_odd_about_a_configuration(cli: Cli, flow: WriteFlow, tmp_path: Path) -> None:
    config = tmp_path / "config.yml"

    def kinds_of(text: str) -> set[tuple[str, int]]:
        config.write_text(text, encoding="utf-8")
        ran = cli("validate", given, "--json", "--config", config)
        assert ran.stderr == ""
        found = json.loads(ran.stdout)["configuration"]
        assert len(found["diagnostics"]) == found["numError"] + found["numWarning"] + found["numFatal"]
        return {(each["kind"], each["code"]) for each in found["diagnostics"]}

    given = flow("/crew/echo")
    assert kinds_of("plugins: {}\nroutes: {}\n") == {
        ("noPluginsConfigured", 1200),
        ("noRoutingRulesConfigured", 1201),
    }
    unused = (
        "plugins: { b: { type: builtin }, c: { type: builtin } }\nroutes: { '/b/{*x}': [{ plugin: b }] }\n"
    )
    assert kinds_of(unused) == {("unusedPlugin", 1202)}
    assert kinds_of(unused.replace("plugin: b", "plugin: bb")) == {("invalidRouteReference", 2200)}
    assert kinds_of(unused + "colour: 1\nrecovery: {}\n") == {
        ("unusedPlugin", 1202),
        ("unknownField", 1900),
        ("settingWithoutEffect", 1903),
    }
    assert kinds_of(unused + "retry: { transportMaxRetries: x }\n") == {("invalidSetting", 2902)}


def test_infer_is_one_object_and_says_the_rest_on_stderr(cli: Cli, flow: WriteFlow, tmp_path: Path) -> None:
    target = tmp_path / "inferred.json"
    given = flow("/crew/echo", "{ value: 1 }")
    ran = cli("infer", given, "--config", CONFIG, "--json", "--output", target)
    assert (ran.code, ran.stdout) == (0, "")
    assert json.loads(target.read_text(encoding="utf-8"))["flow"]["name"] == "test"
    [written] = said(ran)
    assert (written["level"], written["file"]) == ("info", str(target))
