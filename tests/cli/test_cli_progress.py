"""What events become: the state behind both ways of showing progress, and the lines of the log."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.cli.plain_text import count, duration, plain_line
from stepflow_trio.cli.progress_log import ProgressLog
from stepflow_trio.cli.reporting import open_reporter
from stepflow_trio.cli.run_state import RunState
from stepflow_trio.errors import WorkerExited
from stepflow_trio.flows.results import Failed, FlowError, Success
from stepflow_trio.runtime.events import (
    Event,
    ItemEnded,
    RunEnded,
    RunStarted,
    StepEnded,
    StepProgressed,
    StepRetrying,
    StepStarted,
    WorkerEnded,
    WorkerLine,
    WorkerStarted,
)

NOW = datetime(2025, 1, 1, tzinfo=UTC)
DONE = Success(None)
BROKEN = Failed(FlowError(-32100, "broken"))


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def run_started(run_id: str, items: int = 1, name: str | None = None) -> RunStarted:
    return RunStarted(
        run_id=run_id, at=NOW, flow_id="f", flow_name=name, inputs=[None] * items, variables={},
        max_concurrency=1,
    )  # fmt: skip


def step_started(run_id: str, step_id: str, item: int = 0, attempt: int = 1) -> StepStarted:
    return StepStarted(
        run_id=run_id, item_index=item, at=NOW, step_id=step_id, component="/c", attempt=attempt
    )


def step_ended(run_id: str, step_id: str, item: int = 0, result: Success | Failed = DONE) -> StepEnded:
    return StepEnded(run_id=run_id, item_index=item, at=NOW, step_id=step_id, result=result)


def step_retrying(run_id: str, step_id: str, item: int = 0, delay_s: float = 1.0) -> StepRetrying:
    return StepRetrying(
        run_id=run_id, item_index=item, at=NOW, step_id=step_id, attempt=1, delay_s=delay_s,
        error=BROKEN.error,
    )  # fmt: skip


def item_ended(run_id: str, item: int = 0, result: Success | Failed = DONE) -> ItemEnded:
    return ItemEnded(run_id=run_id, item_index=item, at=NOW, result=result)


def run_ended(run_id: str, status: str) -> RunEnded:
    return RunEnded(run_id=run_id, at=NOW, status=status)


def progressed(
    run_id: str, step_id: str, fraction: float, message: str = "", item: int = 0
) -> StepProgressed:
    return StepProgressed(
        run_id=run_id, item_index=item, at=NOW, step_id=step_id, fraction=fraction, message=message
    )


def logged(capsys: pytest.CaptureFixture[str], *events: Event | float) -> list[str]:
    """The lines that a log writes for the events; a number lets so many seconds pass."""
    clock = Clock()
    log = ProgressLog(clock=clock)
    for event in events:
        if isinstance(event, float):
            clock.seconds += event
        else:
            log.observe(event)
    return capsys.readouterr().err.splitlines()


def test_a_log_says_each_thing_once_with_the_time_since_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert logged(
        capsys,
        run_started("r1", name="f"), WorkerStarted(plugin="w", pid=7), WorkerLine(plugin="w", text="hi\tyou"),
        step_started("r1", "a"), 0.5, step_ended("r1", "a"),
        step_started("r1", "b"), 70.0, step_ended("r1", "b", result=BROKEN),
        item_ended("r1", result=BROKEN), run_ended("r1", "failed"),
        WorkerEnded(plugin="w", detail="it was stopped"),
    ) == [
        "run_id: r1",
        "[    0.00 s] run started, 1 item",
        "[    0.00 s] worker w started, pid 7",
        "[    0.00 s] w | hi     you",
        "[    0.00 s] step a started (/c)",
        "[    0.50 s] step a completed in 0.50 s",
        "[    0.50 s] step b started (/c)",
        "[   70.50 s] step b failed after 1 min 10 s: broken (code -32100)",
        "[   70.50 s] run failed",
    ]  # fmt: skip


def test_progress_is_logged_once_a_second_however_often_it_is_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = logged(
        capsys, run_started("r1"), step_started("r1", "a"), progressed("r1", "a", 0.1),
        0.9, progressed("r1", "a", 0.3), 0.2, progressed("r1", "a", 0.4, "busy"), progressed("r1", "a", 0.5),
        0.9, progressed("r1", "a", 0.6), 0.2, progressed("r1", "a", 1.0),
    )  # fmt: skip
    assert lines[3:] == ["[    1.10 s] step a 40% busy", "[    2.20 s] step a 100%"]


def test_a_worker_s_end_is_told_while_the_run_needs_it_and_not_what_it_said_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = logged(
        capsys, run_started("r1"), step_started("r1", "a"),
        WorkerEnded(plugin="w", detail=str(WorkerExited("w", 7, ["last", "words"]))),
        step_retrying("r1", "a", delay_s=2.0),
        2.0, step_started("r1", "a", attempt=2),
    )  # fmt: skip
    assert lines[3:] == [
        "[    0.00 s] worker w ended: connection lost (peer_closed): worker 'w' exited with code 7",
        "[    0.00 s] step a failed, attempt 2 in 2.00 s: broken (code -32100)",
        "[    2.00 s] step a started (/c, attempt 2)",
    ]


def test_of_a_batch_the_items_are_logged_and_of_their_steps_what_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = logged(
        capsys, run_started("r1", items=2), step_started("r1", "a", 0), step_started("r1", "a", 1),
        step_ended("r1", "a", 1), item_ended("r1", 1),
        step_ended("r1", "a", 0, BROKEN), item_ended("r1", 0, BROKEN),
    )  # fmt: skip
    assert lines[1:] == [
        "[    0.00 s] run started, 2 items",
        "[    0.00 s] run item 1 (1 of 2) completed",
        "[    0.00 s] step item 0: a failed after 0.00 s: broken (code -32100)",
        "[    0.00 s] run item 0 (2 of 2) failed: broken (code -32100)",
    ]


def test_runs_that_components_submit_are_told_from_the_command_s_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = logged(
        capsys, run_started("r1", name="outer"), run_started("0123456789", name="inner"),
        step_started("0123456789", "a"), step_ended("0123456789", "a"),
        run_ended("0123456789", "completed"), WorkerEnded(plugin="w", detail="gone"),
    )  # fmt: skip
    assert lines == [
        "run_id: r1",
        "[    0.00 s] run started, 1 item",
        "[    0.00 s] inner 01234567 started, 1 item",
        "[    0.00 s] step inner 01234567: a started (/c)",
        "[    0.00 s] step inner 01234567: a completed in 0.00 s",
        "[    0.00 s] inner 01234567 completed",
        "[    0.00 s] worker w ended: gone",
    ]


def test_progress_belongs_to_the_step_of_its_item() -> None:
    state = RunState()
    state.take_run(run_started("r1", items=3))
    first = state.take_step(step_started("r1", "a", 0))
    second = state.take_step(step_started("r1", "a", 1))
    assert state.take_step(progressed("r1", "a", 0.5, item=1)) is second
    assert state.take_step(progressed("r1", "a", 0.7, item=0)) is first
    assert state.take_step(progressed("r1", "a", 0.9, item=2)) is None
    assert (first and first.fraction, second and second.fraction) == (0.7, 0.5)


@pytest.mark.parametrize(
    "event",
    [
        step_started("r2", "a"), step_ended("r1", "b"), step_ended("r2", "b", result=BROKEN),
        progressed("r1", "b", 0.5), progressed("r2", "a", 0.5),
        step_retrying("r1", "a", item=3),
        item_ended("r2"), run_ended("r2", "failed"),
    ],
)  # fmt: skip
def test_events_about_what_never_started_change_nothing(
    event: Event, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(logged(capsys, run_started("r1"), step_started("r1", "a"), event)) == 3


def test_nothing_is_kept_of_what_is_over() -> None:
    state = RunState()
    state.take_run(run_started("r1", items=3))
    for item in range(3):
        state.take_step(step_started("r1", "a", item))
        state.take_step(step_ended("r1", "a", item))
    state.take_run(run_ended("r1", "completed"))
    assert not state.steps
    assert not state._runs


def test_the_package_s_warnings_are_shown_and_their_tracebacks_are_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STEPFLOW_DEBUG", raising=False)
    log = logging.getLogger("stepflow_trio.runtime")
    with open_reporter(quiet=True):
        log.info("not this")
        try:
            raise ValueError("inside")
        except ValueError:
            log.exception("step %s failed", "a\x1b[31m")
    assert capsys.readouterr().err == "error: step a failed\nValueError: inside\n"
    assert not logging.getLogger("stepflow_trio").handlers


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain “text” ✓", "plain “text” ✓"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07bell\x07", r"bell\x07"),
        ("a\rb\u202ec", r"a\rb\u202ec"),
        ("a\tb", "a       b"),
        ("x" * 10_001, "x" * 10_000 + " … (1 more characters)"),
    ],
)
def test_text_from_elsewhere_cannot_move_the_cursor(text: str, shown: str) -> None:
    assert plain_line(text) == shown


@given(st.text())
def test_whatever_is_shown_is_one_line_of_printable_characters(text: str) -> None:
    assert plain_line(text).isprintable()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0.00 s"),
        (9.994, "9.99 s"),
        (9.996, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7320.0, "2 h 02 min"),
    ],
)
def test_durations_have_the_precision_that_is_of_use(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_things_are_counted() -> None:
    assert (count(1, "item"), count(0, "item"), count(1200, "item")) == ("1 item", "0 items", "1,200 items")


def test_of_a_large_batch_the_log_has_the_first_failures_and_now_and_then_how_far_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    events: list[Event | float] = [run_started("r1", items=1000)]
    for item in range(1000):
        result = BROKEN if item < 30 else DONE
        events += [step_started("r1", "a", item), step_ended("r1", "a", item, result), 0.1]
        events += [item_ended("r1", item, result)]
    lines = logged(capsys, *events, run_ended("r1", "failed"))
    failures = [line for line in lines if "(code -32100)" in line]
    assert len(failures) == 20
    assert failures[-1].endswith("broken (code -32100); further failures are only counted")
    at = r"\[ +\d+\.\d+ s\] run at \d+ of 1,000 items, 30 failed, 10/s, [\w. ]+ left"
    assert 20 < sum(re.fullmatch(at, line) is not None for line in lines) < 40
    assert 30 < len(lines) < 70
    assert lines[-1] == "[  100.00 s] run failed: 1,000 of 1,000 items, 30 failed, 10/s"


def test_the_time_that_is_left_is_what_the_rest_takes_at_the_rate_so_far() -> None:
    clock = Clock()
    state = RunState(clock=clock)
    clock.seconds += 5.0
    run = state.take_run(run_started("r1", items=8))
    assert run is not None
    clock.seconds += 0.4
    state.take_run(item_ended("r1", 0))
    assert state.batch_summary(run) == "1 of 8 items"
    clock.seconds += 3.6
    state.take_run(item_ended("r1", 1, BROKEN))
    assert state.batch_summary(run) == "2 of 8 items, 1 failed, 0.5/s, 12.0 s left"


def test_a_step_that_fails_without_being_executed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    lines = logged(capsys, run_started("r1"), step_ended("r1", "a", result=BROKEN))
    assert lines[2:] == ["[    0.00 s] step a failed: broken (code -32100)"]


def test_a_failure_whose_place_a_default_takes_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    log = ProgressLog(with_default={"a"}, clock=Clock())
    for event in (run_started("r1"), step_started("r1", "a"), step_ended("r1", "a", result=BROKEN)):
        log.observe(event)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "[    0.00 s] step a failed after 0.00 s: broken (code -32100); its default is used"


def test_a_worker_that_cannot_be_started_is_told_once_where_only_problems_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_reporter(quiet=True) as reporter:
        reporter.observe(run_started("r1"))
        for event in (
            *[WorkerEnded(plugin="w", detail="cannot connect")] * 3,
            WorkerEnded(plugin="w", detail="refused"),
            WorkerStarted(plugin="w", pid=1),
            *[WorkerEnded(plugin="w", detail="gone")] * 2,
        ):
            reporter.observe(event)
    assert capsys.readouterr().err.splitlines() == [
        "worker w did not start: cannot connect",
        "worker w did not start: refused",
        "worker w ended: gone",
        "worker w ended: gone",
    ]
