"""A batch's results are written as they come, in order, and what was finished outlives an interrupt."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from cli_process import CONFIG, Started
from hypothesis import given
from hypothesis import strategies as st
from test_cli_progress import item_ended, run_started

from stepflow_trio.cli.results_output import BatchOutput, open_batch_output
from stepflow_trio.errors import StepflowError
from stepflow_trio.flows.results import FlowResult, Success

Start = Callable[..., Started]
WriteFlow = Callable[..., Path]

DONE = '{"outcome":"success","result":"done"}\n'


@pytest.fixture
def batch(flow: WriteFlow, tmp_path: Path) -> list[object]:
    """Arguments that run four items, the third of which never ends."""
    inputs = tmp_path / "in.jsonl"
    inputs.write_text("false\nfalse\ntrue\nfalse\n", encoding="utf-8")
    return [
        "run",
        "--flow",
        flow("/crew/wait_if", "{ wait: { $input: $ } }"),
        "--config",
        CONFIG,
        "--inputs",
        inputs,
    ]


def wait_until_three_are_over(command: Started) -> None:
    command.wait_for(r"\(3 of 4\) completed")
    command.wait_for(r"crew \| waiting")


def test_results_are_on_stdout_while_others_are_still_worked_for(start: Start, batch: list[object]) -> None:
    command = start(*batch)
    assert command.process.stdout is not None
    assert [command.process.stdout.readline().decode() for _ in range(2)] == [DONE, DONE]
    wait_until_three_are_over(command)
    assert command.process.poll() is None
    command.signal(signal.SIGKILL)
    assert command.finish().stdout == ""


@pytest.mark.parametrize("to_file", [False, True])
def test_an_interrupt_leaves_the_results_before_the_first_unfinished_item(
    start: Start, batch: list[object], tmp_path: Path, to_file: bool
) -> None:
    output = tmp_path / "out.jsonl"
    command = start(*batch, *(["--output", output] if to_file else []))
    wait_until_three_are_over(command)
    command.signal(signal.SIGINT)
    ended = command.finish()
    assert ended.code == 130
    assert ended.stderr.endswith("2 of 4 results written\n")
    assert (output.read_text(encoding="utf-8") if to_file else ended.stdout) == DONE * 2


def test_a_reader_that_goes_away_ends_the_batch(start: Start, batch: list[object]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as nobody:
        command = start(*batch, "-q", stdout=nobody)
        assert command.process.wait(20) == 1
    assert command.process.stderr is not None
    assert command.process.stderr.read() == b""


@given(st.permutations(range(6)), st.integers(0, 6))
def test_at_every_moment_the_finished_prefix_can_be_written(order: list[int], ended: int) -> None:
    reading, writing = os.pipe()
    try:
        output = BatchOutput(writing, None)
        results: list[FlowResult | None] = [None] * 6
        output.results = results
        output.observe(run_started("r", items=6))
        output.observe(run_started("sub", items=6))
        for index in order[:ended]:
            output.observe(item_ended("sub", index, Success("of another run")))
            results[index] = Success(index)
            output.observe(item_ended("r", index, Success("without its secrets")))
        output.finish()
        prefix = next(n for n in range(7) if n not in order[:ended])
        assert output.lines_written == prefix
        written = os.read(reading, 65536) if prefix else b""
        assert [json.loads(line)["result"] for line in written.splitlines()] == list(range(prefix))
        for index in range(6):
            output.take(index, Success(index))
        output.finish()
        assert output.lines_written == 6
    finally:
        os.close(reading)
        os.close(writing)


async def test_a_reader_that_takes_nothing_holds_up_neither_the_run_nor_its_cancellation() -> None:
    reading, writing = os.pipe()
    text = "x" * 300_000
    parts: list[bytes] = []
    try:
        output = BatchOutput(writing, None)
        output.results = [Success(text)]
        output.observe(run_started("r"))
        output.observe(item_ended("r", 0, Success("without its secrets")))
        with trio.move_on_after(0.05):
            await output.keep_writing()
        assert output.lines_written == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(output.keep_writing)
            while not b"".join(parts).endswith(b"\n"):
                parts.append(await trio.to_thread.run_sync(os.read, reading, 65536))
            nursery.cancel_scope.cancel()
    finally:
        os.close(reading)
        os.close(writing)
    assert output.lines_written == 1
    assert json.loads(b"".join(parts))["result"] == text


def test_a_full_disk_is_an_error_that_names_the_file() -> None:
    with open_batch_output(Path("/dev/full")) as output:
        output.take(0, Success(1))
        with pytest.raises(StepflowError, match="/dev/full cannot be written: No space left on device"):
            output.finish()
