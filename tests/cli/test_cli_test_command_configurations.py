"""Which configuration the cases of `stepflow-trio test` run with, and how runtimes are shared."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from cli_process import PROJECT, Finished

from stepflow_trio import Worker, open_runtime
from stepflow_trio.cli import case_running
from stepflow_trio.cli.case_configuration import CaseConfigs
from stepflow_trio.cli.case_finding import FlowTests, find_tests
from stepflow_trio.cli.case_running import ConfiguredRuns, FileRun, run_cases
from stepflow_trio.errors import ConfigError
from stepflow_trio.runtime.config import DEFAULT_CONFIG

Cli = Callable[..., Finished]


def mock_of(answer: str) -> str:
    """A configuration whose /a says which one it is."""
    behaviors = f"{{ null: {{ outcome: success, result: {answer} }} }}"
    plugin = f"{{ type: mock, components: {{ /a: {{ behaviors: {behaviors} }} }} }}"
    return f"{{ plugins: {{ m: {plugin} }}, routes: {{ '/{{*component}}': [{{ plugin: m }}] }} }}"


def write_flow(path: Path, test: str = "") -> Path:
    path.write_text(
        "name: n\ndescription: d\nsteps: [{ id: a, component: /a }]\noutput: { $step: a }\n"
        f"test:\n  cases: [{{ name: who, input: null }}]\n{test}",
        encoding="utf-8",
    )
    return path


def answers(ran: Finished) -> dict[str, Any]:
    """What the case of each file came to."""
    files = json.loads(ran.stdout)["files"]
    return {file["path"]: file["cases"][0]["actual"].get("result") for file in files}


def test_the_configuration_is_the_first_that_there_is_of_five(cli: Cli, tmp_path: Path) -> None:
    """Each is taken away in turn."""
    here = tmp_path / "here"
    here.mkdir()
    beside = tmp_path / "flows"
    beside.mkdir()
    for path, name in [
        (tmp_path / "given.yml", "given"),
        (beside / "named.yml", "named"),
        (beside / "stepflow_config.test.yaml", "for tests"),
        (beside / "stepflow-config.yml", "beside"),
        (here / "stepflow-config.yml", "here"),
    ]:
        path.write_text(mock_of(name), encoding="utf-8")
    write_flow(beside / "a.yaml", "  configFile: named.yml\n")
    write_flow(beside / "b.yaml", f"  config: {mock_of('inline')}\n")
    write_flow(beside / "c.yaml")
    a, b, c = (f"../flows/{name}.yaml" for name in "abc")
    run = partial(cli, "test", "../flows", "--json", cwd=here)
    assert answers(run("--config", "../given.yml")) == {a: "given", b: "given", c: "given"}
    assert answers(run()) == {a: "named", b: "inline", c: "for tests"}
    (beside / "stepflow_config.test.yaml").unlink()
    assert answers(run())[c] == "beside"
    (beside / "stepflow-config.yml").unlink()
    assert answers(run())[c] == "here"


def read_tests(path: Path) -> FlowTests:
    (found,) = find_tests([str(path)]).files
    assert isinstance(found, FlowTests)
    return found


def config_of(path: Path, given: str | None = None) -> Any:
    found = read_tests(path)
    return CaseConfigs(given).of(found.path, found.text, found.flow, found.source)


def test_without_any_configuration_there_are_the_builtin_components(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_of(write_flow(tmp_path / "a.yaml")).config is DEFAULT_CONFIG


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("  config: 5\n", "a.yaml:7:11: must be an object with keys, not a number"),
        (
            "  config:\n    plugins: { m: { type: mok } }\n    routes: {}\n",
            'a.yaml:8:27: plugins.m.type: "mok" is unknown',
        ),
        ("  stepflow_config:\n    plugins: {}\n", "a.yaml:8:5: routes: is missing"),
        ("  configFile: nowhere.yml\n", 'a.yaml:7:15: test.configFile: there is no file "'),
        ("  configFile: a.yml\n  config: {}\n", "a.yaml:5:1: test has a config and a configFile: remove one"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_told_with_its_place_in_the_flow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_flow(Path("a.yaml"), test)
    with pytest.raises(ConfigError) as caught:
        config_of(Path("a.yaml"))
    assert str(caught.value).startswith(said)


def test_two_configurations_for_tests_in_one_directory_are_one_too_many(tmp_path: Path) -> None:
    for name in ("stepflow-config.test.yml", "stepflow_config.test.yaml"):
        (tmp_path / name).write_text(mock_of("x"), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"there are stepflow-config\.test\.yml and stepflow_config\.test\.yaml"
    ):
        config_of(write_flow(tmp_path / "a.yaml"))


def test_a_configuration_that_cannot_be_used_fails_its_own_flows_with_exit_code_2(
    cli: Cli, tmp_path: Path
) -> None:
    write_flow(tmp_path / "a.yaml", "  config: { plugins: {}, routes: 5 }\n")
    write_flow(tmp_path / "b.yaml", f"  config: {mock_of('b')}\n")
    ran = cli("test", ".", "--no-diff", cwd=tmp_path)
    assert ran.code == 2
    lines = ran.stdout.splitlines()
    assert lines[0] == "error   a.yaml: its configuration cannot be used"
    assert lines[1].strip().startswith("a.yaml:7:34: routes: must be an object with keys, not a number")
    assert lines[-1].startswith("1 case in 1 file: 1 failed; 1 file could not be tested")


def test_a_plugin_that_does_not_start_fails_only_the_cases_that_need_it(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "stepflow-config.yml").write_text(
        "plugins:\n  builtin: { type: builtin }\n"
        "  broken: { type: stepflow, transport: stdio, command: /nowhere/at/all }\n"
        "routes:\n  /builtin/{*component}: [{ plugin: builtin }]\n"
        "  /broken/{*component}: [{ plugin: broken }]\n"
        "retry: { transportMaxRetries: 0 }\n",
        encoding="utf-8",
    )
    (tmp_path / "flow.yaml").write_text(
        """\
name: n
description: d
steps:
  - { id: bad, component: /broken/x }
  - { id: good, component: /builtin/put_blob, input: { data: 1, blob_type: data } }
output: { $if: { $input: $.bad }, then: { $step: bad }, else: { $literal: fine } }
test:
  cases:
    - { name: needs it, input: { bad: true }, output: { outcome: success, result: fine } }
    - { name: does not, input: { bad: null }, output: { outcome: success, result: fine } }
""",
        encoding="utf-8",
    )
    ran = cli("test", "flow.yaml", "--update", cwd=tmp_path)
    assert ran.code == 1
    assert "failed  flow.yaml: needs it" in ran.stdout
    assert "passed  flow.yaml: does not" in ran.stdout
    assert "not updated: code -32301 says that the flow was kept from running" in ran.stdout
    assert "worker broken ended: cannot start worker" in ran.stderr


def test_flows_with_one_configuration_share_its_workers(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(
        "import os\nfrom stepflow_trio import Worker\nworker = Worker()\n"
        "@worker.component\ndef pid() -> int:\n    return os.getpid()\n"
        "worker.run_stdio()\n",
        encoding="utf-8",
    )
    config = (PROJECT / "stepflow-config.yml").read_text(encoding="utf-8")
    for name in ("stepflow-config.yml", "other.yml"):
        (tmp_path / name).write_text(config, encoding="utf-8")
    for name, more in [
        ("a", ""),
        ("b", "  configFile: ./stepflow-config.yml\n"),
        ("c", "  configFile: other.yml\n"),
    ]:
        flow = write_flow(tmp_path / f"{name}.yaml", more)
        text = flow.read_text(encoding="utf-8").replace("component: /a", "component: /crew/pid, input: {}")
        flow.write_text(text, encoding="utf-8")
    pids = answers(cli("test", ".", "--json", cwd=tmp_path))
    assert pids["a.yaml"] == pids["b.yaml"]
    assert isinstance(pids["c.yaml"], int)
    assert pids["c.yaml"] != pids["a.yaml"]


# ---- so many at once ----------------------------------------------------------------------------------


def runs_of(directory: Path, *files: str, cases: int) -> list[FileRun]:
    """Flows of so many cases; each comes to its number after that many seconds."""
    runs: list[FileRun] = []
    for name in files:
        listed = "\n".join(
            f"    - {{ name: c{n}, input: {{ n: {n} }}, output: {{ outcome: success, result: {n} }} }}"
            for n in range(1, cases + 1)
        )
        path = directory / name
        path.write_text(
            "name: n\ndescription: d\nsteps: [{ id: s, component: /demo/sleep, input: { $input: $ } }]\n"
            f"output: {{ $step: s }}\ntest:\n  cases:\n{listed}\n",
            encoding="utf-8",
        )
        runs.append(FileRun(read_tests(path)))
    return runs


@pytest.mark.parametrize(("max_concurrency", "took_s"), [(1, 12), (2, 7), (100, 3)])
async def test_so_many_cases_run_at_once_over_all_configurations(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.abc.Clock,
    max_concurrency: int,
    took_s: float,
) -> None:
    running = most = opened = 0
    worker = Worker()

    @worker.component
    async def sleep(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(n)
        running -= 1
        return n

    def open_with_worker(*arguments: Any, **settings: Any) -> Any:
        nonlocal opened
        opened += 1
        return open_runtime(*arguments, workers={"demo": worker}, **settings)

    monkeypatch.setattr(case_running, "open_runtime", open_with_worker)
    first, second = runs_of(tmp_path, "a.yaml", "b.yaml", cases=3)
    groups = [ConfiguredRuns(DEFAULT_CONFIG, [first]), ConfiguredRuns(DEFAULT_CONFIG, [second])]
    began_at = trio.current_time()
    await run_cases(groups, max_concurrency=max_concurrency, observe=lambda event: None)
    assert trio.current_time() - began_at == took_s
    assert most == min(max_concurrency, 6)
    assert opened == 2
    for run in (first, second):
        assert [run.results[n].has_passed for n in range(3)] == [True] * 3
        assert [run.results[n].duration_s for n in range(3)] == [1, 2, 3]
