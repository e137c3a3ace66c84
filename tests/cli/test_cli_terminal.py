"""Progress on a terminal: it moves while the run does, and the terminal is left as it was found."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from cli_process import CONFIG, DEADLINE_S, IN_FOREGROUND, is_alive

WriteFlow = Callable[..., Path]

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class Terminal:
    """A command under a terminal of its own, which is its controlling one."""

    def __init__(
        self, *arguments: object, term: str = "xterm-256color", rows: int = 24, columns: int = 100
    ) -> None:
        self._near, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environ = {
            k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
        }

        self.process = subprocess.Popen(
            [*IN_FOREGROUND, *map(str, arguments)],
            stdin=far,
            stdout=far,
            stderr=far,
            env={**environ, "TERM": term},
            start_new_session=True,
        )
        os.close(far)
        self.output = ""

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read what is shown, without its escape sequences, until it holds ``pattern``."""
        give_up_at = time.monotonic() + DEADLINE_S
        while (found := re.search(pattern, ESCAPE_SEQUENCE.sub("", self.output))) is None:
            assert self._read(give_up_at), f"the terminal never showed {pattern!r}, but:\n{self.output}"
        return found

    def type(self, text: str) -> None:
        os.write(self._near, text.encode())

    def finish(self) -> int:
        give_up_at = time.monotonic() + DEADLINE_S
        while self._read(give_up_at):
            pass
        return self.process.wait(timeout=DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._near)

    def _read(self, give_up_at: float) -> bool:
        ready, _, _ = select.select([self._near], [], [], max(0.0, give_up_at - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._near, 65536)
        except OSError:  # how Linux says that the last process has closed the other end
            return False
        self.output += data.decode(errors="replace")
        return bool(data)


@pytest.fixture
def terminal() -> Generator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_terminal(*arguments: object, **settings: object) -> Terminal:
        opened.append(Terminal(*arguments, **settings))  # pyright: ignore[reportArgumentType]
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


def run_arguments(flow: Path) -> list[object]:
    return ["run", "--flow", flow, "--config", CONFIG, "--input-json", "1"]


def test_a_running_step_shows_how_far_it_is_and_ctrl_c_gives_the_terminal_back(
    terminal: Callable[..., Terminal], flow: WriteFlow
) -> None:
    shown = terminal(*run_arguments(flow("/crew/wait")))
    pid = int(shown.wait_for(r"worker crew started, pid (\d+)")[1])
    # How long it has been running, its component, a bar, and what the worker says, made harmless.
    shown.wait_for(r"only +\d\.\d\d s +/crew/wait +\S+ +25% a quarter +done")
    shown.wait_for(r"0 steps done, 1 running")
    assert HIDE_CURSOR in shown.output
    assert "\x1b[2J" not in shown.output
    shown.type("\x03")
    assert shown.finish() == 130
    assert "interrupted: ending the run and its workers" in shown.output
    assert shown.output.rindex(SHOW_CURSOR) > shown.output.rindex(HIDE_CURSOR)
    assert "Traceback" not in shown.output
    assert not is_alive(pid)


def test_what_is_over_scrolls_by_and_the_result_comes_last(
    terminal: Callable[..., Terminal], flow: WriteFlow
) -> None:
    shown = terminal(*run_arguments(flow("/crew/chatter", "{ lines: 3 }")))
    assert shown.finish() == 0
    plain = ESCAPE_SEQUENCE.sub("", shown.output)
    for number in range(3):
        assert f"crew | line {number}" in plain
    assert re.search(r"✓ only  \d+\.\d+ s  /crew/chatter\r\n", plain)
    assert re.search(r"✓ completed: 1 step in \d+\.\d+ s", plain)
    assert plain.endswith('{\r\n  "outcome": "success",\r\n  "result": "said"\r\n}\r\n')
    assert shown.output.rindex(SHOW_CURSOR) > shown.output.rindex(HIDE_CURSOR)


def test_a_failure_is_shown_where_it_happened_and_once_more_at_the_end(
    terminal: Callable[..., Terminal], flow: WriteFlow
) -> None:
    shown = terminal(*run_arguments(flow("/crew/refuse")))
    assert shown.finish() == 1
    plain = ESCAPE_SEQUENCE.sub("", shown.output)
    assert re.search(r"✗ only failed after \d+\.\d+ s: not today \(code -32110\)", plain)
    assert "run failed in step only (/crew/refuse): not today (code -32110)\r\n" in plain
    assert "✓ completed" not in plain


def test_more_running_steps_than_rows_are_counted(
    terminal: Callable[..., Terminal], flow: WriteFlow, tmp_path: Path
) -> None:
    inputs = tmp_path / "inputs.jsonl"
    inputs.write_text("1\n" * 50, encoding="utf-8")
    shown = terminal("run", "--flow", flow("/crew/wait"), "--config", CONFIG, "--inputs", inputs, rows=12)
    shown.wait_for(r"input line \d+: only +\d+\.\d+ s +/crew/wait[^\n]*\r\n +and 44 more steps\r\n +━+ +0%")
    shown.wait_for(r"0 of 50 items; 0 steps done, 50 running")
    shown.type("\x03")
    assert shown.finish() == 130


def test_a_narrow_terminal_shows_the_step_and_how_far_it_is(
    terminal: Callable[..., Terminal], flow: WriteFlow
) -> None:
    shown = terminal(*run_arguments(flow("/crew/wait")), columns=40)
    shown.wait_for(r"only +\d\.\d\d s +25% a quarter")
    shown.type("\x03")
    assert shown.finish() == 130


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_move_its_cursor_gets_a_log(
    terminal: Callable[..., Terminal], flow: WriteFlow, term: str
) -> None:
    shown = terminal(*run_arguments(flow("/crew/echo", "{ value: 1 }")), term=term)
    assert shown.finish() == 0
    assert "\x1b" not in shown.output
    assert "step only completed in" in shown.output


def test_a_worker_at_a_terminal_says_that_it_waits_for_a_runtime(terminal: Callable[..., Terminal]) -> None:
    shown = terminal("worker", CONFIG.with_name("worker.py"))
    shown.wait_for("this is for a runtime, which speaks to it on stdin; Ctrl-C ends it. --list shows its")
    shown.type("\x04")
    assert shown.finish() == 0


def test_without_an_input_a_terminal_is_asked_for_one_and_not_read(
    terminal: Callable[..., Terminal], flow: WriteFlow
) -> None:
    shown = terminal("run", "--flow", flow("/crew/wait"), "--config", CONFIG)
    assert shown.finish() == 2
    assert "There is no input: give --input, --input-json or --input-yaml, or pipe it in." in shown.output


def test_a_batch_has_a_bar_its_rate_and_the_time_that_is_left(
    terminal: Callable[..., Terminal], flow: WriteFlow, tmp_path: Path
) -> None:
    inputs = tmp_path / "inputs.jsonl"
    inputs.write_text("false\n" * 30 + "true\n" + "null\n" * 9, encoding="utf-8")
    given = flow("/crew/wait_if", "{ wait: { $input: $ } }")
    shown = terminal("run", given, "--config", CONFIG, "--inputs", inputs, "--output", tmp_path / "out")
    shown.wait_for(r" +━+[╸╺]*━* +97%\r\n +39 of 40 items, 9 failed, [\d.]+/s, \d+\.\d\d s left; 39 steps")
    shown.type("\x03")
    assert shown.finish() == 130
    assert "input line 31: only" in ESCAPE_SEQUENCE.sub("", shown.output)
    assert "39 of 40 results" not in shown.output, "the one behind which they wait is the 31st"
