"""The pages of docs/ say what is true: their Python runs, their flows and configurations are used."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from documents import Page

from stepflow_trio import RunFailed, open_runtime
from stepflow_trio.errors import RpcError
from stepflow_trio.flows.diagnostics import DiagnosticKind
from stepflow_trio.flows.reader import examine_flow
from stepflow_trio.flows.results import Failed, Success
from stepflow_trio.runtime import events
from stepflow_trio.runtime.config import FILE_NAMES, Config, StdioPluginConfig, read_config
from stepflow_trio.runtime.hosted_worker import CANCEL_GRACE_S
from stepflow_trio.runtime.routing import Router
from stepflow_trio.runtime.runs import MAX_DEPTH
from stepflow_trio.transports.http.limits import HttpClientLimits, HttpServerLimits
from stepflow_trio.worker.worker import MAX_THREADS

ROOT = Path(__file__).parent.parent
PAGES = [
    Page(ROOT / "docs" / name)
    for name in (
        "flows.md",
        "configuration.md",
        "workers.md",
        "embedding.md",
        "http.md",
        "building.md",
        "rest.md",
        "testing.md",
    )
]
FLOWS, CONFIGURATION, WORKERS, EMBEDDING, HTTP, _, REST, _ = PAGES
ENVIRON = {"HOME": "/home/ann", "EMPTY": "", "PATH": "/bin", "STEPFLOW_PYTHON": "python"}

EXAMPLE = re.compile(
    r"^# (?P<input>.+?)(?: with (?P<variables>.+?))? → (?P<fails>fails: )?(?P<result>.+)$", re.M
)
ROUTED = re.compile(r"^# (?P<path>/\S+)(?: (?P<input>\{.*\}))? → (?P<target>.+)$", re.M)
MOCKED = re.compile(r"^# (?P<path>/\S+) (?P<input>.+?) (?P<how>gives|fails:) (?P<what>.+)$", re.M)
SUBSTITUTED = re.compile(r"^ +(?P<name>\w+): .*?# → (?P<value>.*)$", re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_of_a_page_runs_and_prints_what_its_comments_say(
    page: Page, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    page.run_python(capsys)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Page) -> None:
    page.check_links()


def is_configuration(text: str) -> bool:
    return re.search("^plugins:", text, re.M) is not None


async def test_every_flow_comes_to_what_is_said_under_it(autojump_clock: trio.abc.Clock) -> None:
    (worker_code,) = FLOWS.blocks("python")
    names: dict[str, Any] = {}
    exec(compile(worker_code, FLOWS.name, "exec"), names)  # noqa: S102 — ours
    flows = [text for page in PAGES for text in page.blocks("yaml") if not is_configuration(text)]
    async with open_runtime(workers={"demo": names["worker"]}) as runtime:
        for text in flows:
            reading = examine_flow(text, name=FLOWS.name)
            odd = {found.kind for found in reading.diagnostics}
            assert odd <= {DiagnosticKind.MISSING_FLOW_NAME, DiagnosticKind.MISSING_FLOW_DESCRIPTION}, text
            examples = list(EXAMPLE.finditer(text))
            assert examples, text
            for example in examples:
                input, variables = json.loads(example["input"]), json.loads(example["variables"] or "{}")
                try:
                    came_to = await runtime.run(reading.runnable_flow(), input, variables=variables)
                except RunFailed as failure:
                    came_to = failure
                if example["fails"]:
                    assert isinstance(came_to, RunFailed), example[0]
                    assert came_to.message.startswith(example["result"])
                else:
                    assert came_to == json.loads(example["result"]), example[0]


def test_the_diagnostic_that_is_shown_is_the_one_that_is_given() -> None:
    (shown,) = FLOWS.blocks("text")
    steps = "steps:\n" + "".join(
        f"  - id: {name}\n    component: /demo/add\n    input: {{}}\n" for name in ("first", "second")
    )
    text = f"{steps}output:\n  total: {{$step: secnd}}\n"
    diagnostics = examine_flow(text, name="flow.yaml").diagnostics
    assert str(next(found for found in diagnostics if found.level == "fatal")) == shown.rstrip("\n")


def test_the_command_that_makes_a_body_of_a_flow_in_yaml_does(tmp_path: Path) -> None:
    [command] = [text.partition(" |\n")[0] for text in REST.blocks("sh") if text.startswith("python -c ")]
    (tmp_path / "flow.yaml").write_text("steps: []\noutput: { $input: a }\n", encoding="utf-8")
    arguments = [sys.executable, *shlex.split(command)[1:]]
    ran = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(ran.stdout)["flow"]["output"] == {"$input": "$.a"}


def test_every_code_of_a_diagnostic_exists() -> None:
    known = {kind.code for kind in DiagnosticKind}
    assert {int(code) for code in re.findall(r"\((\d{4})\)", FLOWS.text)} <= known


def configurations(page: Page, tmp_path: Path) -> Iterator[tuple[str, Config]]:
    for text in filter(is_configuration, page.blocks("yaml")):
        yield text, read_config(text, name=page.name, directory=tmp_path, environ=ENVIRON)


def test_every_configuration_is_read_and_used_without_a_warning(tmp_path: Path) -> None:
    routed = 0
    for page in (CONFIGURATION, WORKERS, EMBEDDING):
        for text, config in configurations(page, tmp_path):
            assert config.warnings == (), text
            router = Router(config.routes)
            for example in ROUTED.finditer(text):
                routed += 1
                try:
                    target = router.resolve(example["path"], json.loads(example["input"] or "null"))
                except RpcError:
                    assert example["target"] == "nothing", example[0]
                else:
                    assert example["target"] == f"{target.plugin} {target.component}"
    assert routed > 0


async def test_mocks_come_to_what_the_comments_say(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    checked = 0
    for text, config in configurations(CONFIGURATION, tmp_path):
        for example in MOCKED.finditer(text):
            checked += 1
            step = {"id": "only", "component": example["path"], "input": {"$input": "$"}}
            flow = {"steps": [step], "output": {"$step": "only"}}
            async with open_runtime(config) as runtime:
                run = await runtime.submit(flow, [json.loads(example["input"])])
                await run.wait()
            [result] = run.results
            if example["how"] == "gives":
                assert result == Success(json.loads(example["what"])), example[0]
            else:
                assert isinstance(result, Failed), example[0]
                assert result.error.message == example["what"]
    assert checked > 0


def test_substitution_gives_what_the_comments_say(tmp_path: Path) -> None:
    checked = 0
    for text, config in configurations(CONFIGURATION, tmp_path):
        for plugin in config.plugins.values():
            if isinstance(plugin, StdioPluginConfig):
                for example in SUBSTITUTED.finditer(text):
                    checked += 1
                    assert plugin.env[example["name"]] == example["value"]
    assert checked > 0


async def test_the_table_of_builtins_is_what_there_is() -> None:
    rows = re.findall(r"^\| `(/builtin/\w+)` \| ([^|]*) \|", CONFIGURATION.text, re.M)
    said = {path: re.findall(r"`(\w+)`(\??)", fields) for path, fields in rows}
    async with open_runtime() as runtime:
        listed = await runtime.list_components()
    offered: dict[str, list[tuple[str, str]]] = {}
    for component in listed:
        schema = typing.cast("dict[str, Any]", component.info.input_schema)
        offered[component.path] = [
            (name, "" if name in schema["required"] else "?") for name in schema["properties"]
        ]
    assert said == offered


def test_the_names_of_configuration_files_are_those_looked_for() -> None:
    assert all(f"`{name}`" in CONFIGURATION.text for name in FILE_NAMES)


def test_the_table_of_events_is_what_there_is() -> None:
    rows = re.findall(r"^\| `([A-Z]\w+)` \| ([^|]*) \|", EMBEDDING.text, re.M)
    said = {name: set(re.findall(r"`(\w+)`", fields)) for name, fields in rows}
    known = {kind.__name__: set(kind.__struct_fields__) for kind in typing.get_args(events.Event)}
    assert said == known


def test_the_bounds_of_workers_are_the_code_s() -> None:
    assert re.findall(r"At most (\d+) threads", WORKERS.text) == [str(MAX_THREADS)]
    assert re.findall(r"nest at most (\d+) deep", WORKERS.text) == [str(MAX_DEPTH)]
    assert re.findall(r"not gone (\d+) seconds later", WORKERS.text) == [f"{CANCEL_GRACE_S:g}"]


@pytest.mark.parametrize("limits", [HttpServerLimits, HttpClientLimits])
def test_the_tables_of_limits_over_http_are_those_of_the_code(limits: type[Any]) -> None:
    _, _, behind = HTTP.text.partition(f"`{limits.__name__}`:")
    table = behind.partition("\n\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([\d,.]+) \| .+ \|$", table, re.M)
    said = {name: float(value.replace(",", "")) for name, value in rows}
    assert said == dataclasses.asdict(limits())
