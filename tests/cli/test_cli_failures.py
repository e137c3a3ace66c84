"""What the last message of a run that failed says: the step, the item, what to do, each thing once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cli_process import CONFIG, Finished
from test_cli_progress import item_ended, run_ended, run_started, step_ended

from stepflow_trio.cli.failures import Failures
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.flows.results import Failed, FlowError, Success
from stepflow_trio.runtime.events import Event, WorkerEnded, WorkerLine

Cli = Callable[..., Finished]
WriteFlow = Callable[..., Path]

BROKEN = Failed(FlowError(-32100, "broken"))
OTHER = Failed(FlowError(-32100, "other"))
DEAD = Failed(FlowError(-32302, "worker w died", {"stderr": ["first", "last"]}))
DONE = Success(None)


@pytest.fixture
def flow_of_two() -> Flow:
    steps = [{"id": "a", "component": "/shop/a"}, {"id": "b", "component": "/shop/b"}]
    return flow_from_json({"steps": steps, "output": {"$step": "b"}})


def said(
    flow: Flow,
    events: Sequence[Event],
    results: Sequence[Success | Failed],
    *,
    lines: list[int],
    quiet: bool = False,
) -> str | None:
    failures = Failures(flow, input_lines=lines, quiet=quiet)
    for event in events:
        failures.observe(event)
    why = failures.why(results)
    return None if why is None else why.text


def test_the_step_is_the_one_whose_error_is_the_run_s(flow_of_two: Flow) -> None:
    events = [
        run_started("r"), step_ended("r", "a", result=OTHER), run_started("sub"),
        step_ended("sub", "a", result=BROKEN), step_ended("r", "b", result=BROKEN),
        item_ended("r", result=BROKEN),
    ]  # fmt: skip
    assert (
        said(flow_of_two, events, [BROKEN], lines=[])
        == "run failed in step b (/shop/b): broken (code -32100)"
    )


def test_an_error_of_no_step_names_none(flow_of_two: Flow) -> None:
    events = [run_started("r"), step_ended("r", "a", result=OTHER), item_ended("r", result=BROKEN)]
    assert said(flow_of_two, events, [BROKEN], lines=[]) == "run failed: broken (code -32100)"
    assert said(flow_of_two, events, [DONE], lines=[]) is None


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_of_a_batch_the_first_item_that_failed_is_named_by_its_line(
    flow_of_two: Flow, order: tuple[int, int]
) -> None:
    errors = {1: ("b", BROKEN), 2: ("a", OTHER)}
    events: list[Event] = [run_started("r", items=3), item_ended("r", 0)]
    for item in order:
        step, error = errors[item]
        events += [step_ended("r", step, item, error), item_ended("r", item, error)]
    assert said(flow_of_two, events, [DONE, BROKEN, OTHER], lines=[1, 4, 5]) == (
        "run failed: 2 of 3 items failed, the first at input line 4 in step b (/shop/b): broken (code -32100)"
    )


@pytest.mark.parametrize(
    ("quiet", "events", "shows_tail"),
    [
        (False, [WorkerLine(plugin="w", text="first"), WorkerLine(plugin="w", text="last")], False),
        (False, [WorkerLine(plugin="w", text="first")], True),
        (True, [WorkerLine(plugin="w", text="first"), WorkerLine(plugin="w", text="last")], True),
        (True, [WorkerEnded(plugin="w", detail="it died:\n  | first\n  | last")], False),
        (
            True,
            [run_ended("r", "failed"), WorkerEnded(plugin="w", detail="it died:\n  | first\n  | last")],
            True,
        ),
    ],
)
def test_a_stderr_that_was_shown_is_not_shown_again(
    flow_of_two: Flow, quiet: bool, events: list[Event], shows_tail: bool
) -> None:
    text = said(flow_of_two, [run_started("r"), *events], [DEAD], lines=[], quiet=quiet)
    tail = "\n  | first\n  | last" if shows_tail else ""
    assert text == f"run failed: worker w died (code -32302){tail}"


def test_what_an_error_says_to_do_and_what_its_tool_said_follow_it(cli: Cli, flow: WriteFlow) -> None:
    ran = cli("run", "-q", "--flow", flow("/crew/run_tool"), "--config", CONFIG, "--input-json", "1")
    assert ran.stderr.splitlines() == [
        "run failed in step only (/crew/run_tool): the tool failed (code -32110)",
        "  give it a file",
        "  | usage:",
        "  |   tool",
    ]


@pytest.mark.parametrize("options", [[], ["--quiet"]])
def test_a_worker_that_dies_is_heard_once(cli: Cli, flow: WriteFlow, options: list[str]) -> None:
    ran = cli("run", *options, "--flow", flow("/crew/die"), "--config", CONFIG, "--input-json", "1")
    assert ran.code == 1
    assert "dying" in ran.stderr
    assert len(re.findall(r"\| dying$", ran.stderr, re.MULTILINE)) <= 1, ran.stderr
    assert "run failed in step only (/crew/die): worker crew: " in ran.stderr


@pytest.mark.parametrize("options", [[], ["--quiet"]])
def test_a_worker_that_ends_before_it_is_ready_is_heard_once(
    cli: Cli, flow: WriteFlow, tmp_path: Path, options: list[str]
) -> None:
    config = tmp_path / "config.yml"
    config.write_text(CONFIG.read_text(encoding="utf-8").replace("worker.py", "no-such.py"), encoding="utf-8")
    ran = cli("run", *options, "--flow", flow("/crew/echo"), "--config", config, "--input-json", "1")
    assert ran.code == 1
    assert "can't open file" in ran.stderr
    assert len(re.findall(r"\| .*can't open file", ran.stderr)) <= 1, ran.stderr
    assert "exited with code 2" in ran.stderr
