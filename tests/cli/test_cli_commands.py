"""The commands beside ``run``, and what they cost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_process import COMMAND, CONFIG, Finished

import stepflow_trio
from stepflow_trio.cli.commands import commands
from stepflow_trio.flows.source import read_source

Cli = Callable[..., Finished]
WriteFlow = Callable[..., Path]


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["run", "-h"]])
def test_help_imports_nothing_that_only_a_run_needs(arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv[1:] = {arguments!r}
from stepflow_trio.cli import main
try:
    main()
finally:
    print(sorted(sys.modules), file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=20)
    assert ran.returncode == 0, ran.stderr
    imported = set(json.loads(ran.stderr.replace("'", '"')))
    heavy = {"trio", "msgspec", "rich", "ruamel.yaml", "logging", "asyncio", "importlib.metadata"}
    assert not heavy & imported


def test_the_version_is_the_package_s(cli: Cli) -> None:
    assert cli("--version") == Finished(0, f"stepflow-trio {stepflow_trio.__version__}\n", "")


def test_without_a_command_there_is_help(cli: Cli) -> None:
    ran = cli()
    assert ran.code == 2
    assert "list-components" in ran.stdout + ran.stderr


@pytest.mark.parametrize("dialect", ["0.8", "0.9", "0.11"])
def test_the_schema_of_each_dialect_is_json(cli: Cli, dialect: str) -> None:
    ran = cli("schema", "--dialect", dialect)
    assert (ran.code, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)["title"] == f"Stepflow protocol, dialect {dialect}"
    assert cli("schema").stdout == cli("schema", "--dialect", "0.11").stdout


def test_validate_finds_nothing_wrong_with_a_good_flow(cli: Cli, flow: WriteFlow) -> None:
    given = flow("/crew/echo")
    ran = cli("validate", given, "--config", CONFIG)
    assert ran == Finished(0, f"{given}: 0 errors, 0 warnings\n", "")


def test_validate_prints_everything_it_finds_with_its_place(
    cli: Cli, flow: WriteFlow, tmp_path: Path
) -> None:
    given = flow("/crwe/echo", "{ a: { $variable: x } }", more="    metdata: {}\n    colour: red\n")
    config = tmp_path / "config.yml"
    text = CONFIG.read_text(encoding="utf-8").replace("\nroutes:", "\nrecovery: {}\nroutes:")
    config.write_text(text, encoding="utf-8")
    ran = cli("validate", given, "--config", config)
    assert (ran.code, ran.stderr) == (2, "")
    assert re.search(rf"^{given}:7:5: error: .*\n +7 \|     metdata: ", ran.stdout, re.MULTILINE)
    given.write_text(given.read_text(encoding="utf-8").replace("    metdata: {}\n", ""), encoding="utf-8")
    ran = cli("validate", given, "--config", config)
    assert re.search(rf"^{given}:5:16: error: .*did you mean /crew/echo\?", ran.stdout, re.MULTILINE)
    assert re.search(rf"^{given}:7:5: warning: ", ran.stdout, re.MULTILINE)
    assert re.search(rf"^{config}:\d+:\d+: warning: recovery: ", ran.stdout, re.MULTILINE)
    assert ran.stdout.endswith(f"{given}: 1 error, 3 warnings\n")


def test_validate_reports_the_flow_and_the_configuration_at_once(cli: Cli, tmp_path: Path) -> None:
    flow, config = tmp_path / "flow.yaml", tmp_path / "config.yml"
    flow.write_text("steps: 1\n", encoding="utf-8")
    config.write_text("plugins: 1\n", encoding="utf-8")
    ran = cli("validate", flow, "--config", config)
    assert ran.code == 2
    assert f"{flow}:1:8: error: " in ran.stdout
    assert f"{config}:1:10: " in ran.stdout


def test_validate_takes_a_rule_s_conditions_to_hold(cli: Cli, flow: WriteFlow, tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    text = CONFIG.read_text(encoding="utf-8").replace(
        "- plugin: crew\n", "- plugin: crew\n      conditions: [{ path: $.kind, value: fast }]\n"
    )
    config.write_text(text, encoding="utf-8")
    assert cli("validate", flow("/crew/echo"), "--config", config).code == 0


def test_components_are_listed_by_the_path_that_a_flow_names(cli: Cli) -> None:
    ran = cli("list-components", "--config", CONFIG)
    assert (ran.code, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(line.split()[0] for line in lines)
    assert "/crew/hang                Blocks the event loop: nothing but a signal ends it." in lines
    assert any(line.startswith("/builtin/put_blob ") for line in lines)
    ran = cli("list-components", "--config", CONFIG, "--format", "json", "--schemas")
    listed = {entry["component"]: entry for entry in json.loads(ran.stdout)["components"]}
    assert listed["/crew/chatter"]["plugin"] == "crew"
    assert listed["/crew/chatter"]["input_schema"]["properties"] == {"lines": {"type": "integer"}}


def test_a_plugin_that_cannot_be_asked_costs_only_its_own_components(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    text = CONFIG.read_text(encoding="utf-8").replace("${STEPFLOW_PYTHON}", "no-such-program")
    config.write_text(text, encoding="utf-8")
    ran = cli("list-components", "--config", config)
    assert ran.code == 1
    assert "/builtin/put_blob" in ran.stdout
    assert ran.stderr.startswith("error: plugin crew cannot be asked: ")
    assert "no-such-program" in ran.stderr


def test_without_a_configuration_there_are_the_builtin_components(cli: Cli, tmp_path: Path) -> None:
    ran = cli("list-components", cwd=tmp_path)
    assert ran.code == 0
    assert all(line.startswith("/builtin/") for line in ran.stdout.splitlines())


def test_the_command_is_installed_under_its_name() -> None:
    script = Path(sys.executable).with_name("stepflow-trio")
    ran = subprocess.run([script, "--version"], capture_output=True, encoding="utf-8", timeout=20)
    same = subprocess.run([*COMMAND, "--version"], capture_output=True, encoding="utf-8", timeout=20)
    assert (ran.returncode, ran.stdout) == (0, same.stdout)


@pytest.mark.parametrize("name", ["", *sorted(commands.commands)])
def test_help_comes_at_once(name: str) -> None:
    def best_of_five(*arguments: str) -> float:
        took: list[float] = []
        for _ in range(5):
            before = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True, timeout=20)
            took.append(time.perf_counter() - before)
        return min(took)

    # 150 ms where Python itself needs 15; on a machine that is busy both take longer.
    allowed = 10 * best_of_five("-c", "pass")
    assert best_of_five("-m", "stepflow_trio", *([name] if name else []), "--help") < allowed


def test_what_no_route_leads_to_is_listed_unless_it_is_to_be_left_out(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text(
        "plugins: { b: { type: builtin } }\nroutes: { /b/put_blob: [{ plugin: b, component: /put_blob }] }\n",
        encoding="utf-8",
    )
    lines = cli("list-components", "--config", config).stdout.splitlines()
    assert lines[0].startswith("/b/put_blob ")
    assert len(lines) == 8
    assert all(" of plugin b, which no route leads to " in line for line in lines[1:])
    ran = cli("list-components", "--config", config, "--hide-unreachable")
    assert ran.stdout.splitlines() == [re.sub(" {2,}", "  ", lines[0])]
    listed = json.loads(cli("list-components", "--config", config, "--json").stdout)["components"]
    assert [each.get("unreachable") for each in listed if not each["component"]] == sorted(
        line.split()[0] for line in lines[1:]
    )
    as_yaml = cli("list-components", "--config", config, "--format", "yaml").stdout
    assert read_source(as_yaml, name="listed.yaml").value == {"components": listed}
