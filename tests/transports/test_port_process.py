"""A worker over HTTP as a process: how it says its port, what is kept of it, and that nothing outlives us."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from process_stage import Lifelines, has_children, open_files, wait_dead

from stepflow_trio.errors import SpawnFailed, WorkerExited
from stepflow_trio.transports import orphan_guard
from stepflow_trio.transports.port_process import open_port_process, port_in
from stepflow_trio.transports.process import StopLadder

Python = Callable[..., list[str]]

BEGIN = """
import os, signal, socket, sys, time
signal.alarm(30)  # for a test that fails
def say(text): os.write(1, text.encode())
def log(text): os.write(2, text.encode())
def live():
    while True: signal.pause()
"""
LIFELINE = """
lifeline = socket.socket(socket.AF_UNIX)
lifeline.connect(sys.argv[1])
"""
QUICK = StopLadder(term_grace_s=0.1, cancelled_grace_s=0.1)
SLOW = StopLadder(stdin_grace_s=20, term_grace_s=20, cancelled_grace_s=20)


async def lines_until(lines: list[str], last: str) -> None:
    with trio.fail_after(20):
        while last not in lines:  # noqa: ASYNC110 — what is waited for happens in another process
            await trio.sleep(0.005)


# ---- the port -------------------------------------------------------------------------------------------


async def test_the_port_is_told_and_every_other_line_is_a_log_line(python: Python, tmp_path: Path) -> None:
    script = """
        say('loading\\n{"port": "soon"}\\n{"port": 0}\\n{\\n')
        say('{"port": 40')
        log("warm\\n")
        time.sleep(0.05)
        say('01, "pid": 1}\\n')
        say('{"port": 4002}\\n')
        live()
        """
    lines: list[str] = []
    command = python(BEGIN + textwrap.dedent(script))
    async with open_port_process(command, env={}, cwd=tmp_path, on_log_line=lines.append, ladder=QUICK) as it:
        assert await it.wait_port() == 4001
        assert await it.wait_port() == 4001
        await lines_until(lines, '{"port": 4002}')
    assert sorted(lines) == ["loading", "warm", "{", '{"port": "soon"}', '{"port": 0}', '{"port": 4002}']
    assert it.stderr_tail == ("warm",)


@pytest.mark.parametrize(
    ("line", "port"),
    [
        ('{"port": 8080}', 8080),
        (' {"port":1}\t', 1),
        ('{"port": 65535, "host": "127.0.0.1"}', 65535),
        ('{"port": 65536}', None),
        ('{"port": 0}', None),
        ('{"port": -1}', None),
        ('{"port": 80.0}', None),
        ('{"port": true}', None),
        ('{"port": "8080"}', None),
        ('{"Port": 8080}', None),
        ('{"port": 8080} now', None),
        ('INFO {"port": 8080}', None),
        ('[{"port": 8080}]', None),
        ("{" * 1000, None),
        ("8080", None),
        ("", None),
    ],
)
def test_only_an_object_with_a_port_s_number_says_a_port(line: str, port: int | None) -> None:
    assert port_in(line) == port


async def test_what_it_logs_after_its_port_is_read_on_for_ever(python: Python, tmp_path: Path) -> None:
    script = """
        say('{"port": 1}\\n')
        for number in range(300):
            say("x" * 10_000 + "\\n")
            log("y" * 10_000 + "\\n")
        say("done\\n")
        live()
        """
    lines: list[str] = []
    command = python(BEGIN + textwrap.dedent(script))
    async with open_port_process(command, env={}, cwd=tmp_path, on_log_line=lines.append, ladder=QUICK) as it:
        await it.wait_port()
        await lines_until(lines, "done")
    assert len(lines) == 601


@pytest.mark.parametrize("logs", [True, False])
async def test_one_that_says_no_port_in_time_is_refused_with_what_it_wrote_to_stderr(
    python: Python, tmp_path: Path, logs: bool
) -> None:
    script = ('log("no free port\\n")\n' if logs else "") + 'say("started\\n")\nlive()\n'
    lines: list[str] = []
    command = python(BEGIN + script)
    async with open_port_process(command, env={}, cwd=tmp_path, on_log_line=lines.append, ladder=QUICK) as it:
        for line in ["started", "no free port"][: 2 if logs else 1]:
            await lines_until(lines, line)
        with pytest.raises(SpawnFailed, match=r'no line such as \{"port": 8080\} .* within 0.1 s') as refused:
            await it.wait_port(0.1)
    assert not refused.value.is_transient
    assert str(refused.value).endswith("\n  | no free port" if logs else "it wrote nothing to stderr")


async def test_one_that_ends_before_its_port_is_told_of_at_once(python: Python, tmp_path: Path) -> None:
    script = 'say("{")\nlog("no module\\n")\nos._exit(3)\n'
    began = trio.current_time()
    async with open_port_process(python(BEGIN + script), env={}, cwd=tmp_path, ladder=SLOW) as it:
        with pytest.raises(WorkerExited) as ended:
            await it.wait_port()
    assert (ended.value.returncode, ended.value.stderr) == (3, ("no module",))
    assert trio.current_time() - began < 15


async def test_one_that_ends_is_told_of_although_another_process_holds_its_stdout(
    python: Python, tmp_path: Path, lifelines: Lifelines
) -> None:
    script = """
        reader, writer = os.pipe()
        if os.fork():
            os.read(reader, 1)
            os._exit(4)
        os.setsid()
        os.write(writer, b"1")
        lifeline.recv(1)  # it has a session of its own, and so is not ours to end: the test does
        """
    script = LIFELINE + textwrap.dedent(script)
    command = python(BEGIN + script, lifelines.path)
    async with open_port_process(command, env={}, cwd=tmp_path, ladder=SLOW) as it:
        with pytest.raises(WorkerExited, match="code 4"):
            await it.wait_port()
    lifeline = await lifelines.accept()
    await lifeline.send_all(b"1")
    await wait_dead(lifeline)


async def test_one_that_closes_its_stdout_and_lives_is_refused(python: Python, tmp_path: Path) -> None:
    async with open_port_process(python(BEGIN + "os.close(1)\nlive()\n"), env={}, cwd=tmp_path) as it:
        with pytest.raises(SpawnFailed, match="closed its stdout"):
            await it.wait_port()


async def test_closing_stdout_after_the_port_costs_nothing(python: Python, tmp_path: Path) -> None:
    script = """
        say('{"port": 1}\\n')
        os.close(1)
        log("still here\\n")
        live()
        """
    lines: list[str] = []
    command = python(BEGIN + textwrap.dedent(script))
    async with open_port_process(command, env={}, cwd=tmp_path, on_log_line=lines.append, ladder=QUICK) as it:
        assert await it.wait_port() == 1
        await lines_until(lines, "still here")
        assert it.returncode is None


# ---- how it is started ----------------------------------------------------------------------------------


async def test_it_has_the_given_environment_an_empty_stdin_and_a_session_of_its_own(
    python: Python, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    script = """
        environ = open("/proc/self/environ").read()
        fds = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
        say(repr([environ, os.read(0, 9), sorted(fds), os.getsid(0) == os.getpid(), os.getcwd()]) + "\\n")
        """
    lines: list[str] = []
    command = python(BEGIN + textwrap.dedent(script))
    async with open_port_process(command, env={"A": "1"}, cwd=tmp_path, on_log_line=lines.append) as it:
        await it.wait_exited()
    assert lines == [repr(["A=1\0", b"", ["0", "1", "2"], True, str(tmp_path)])]


async def test_a_program_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpawnFailed, match="there is no file"):
        async with open_port_process(["./worker"], env={}, cwd=tmp_path):
            raise AssertionError("started")


@pytest.mark.parametrize("pipes_there_are", [0, 1, 2])
async def test_when_there_are_not_descriptors_enough_nothing_is_started(
    python: Python, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipes_there_are: int
) -> None:
    make, made = os.pipe, 0

    def make_pipe() -> tuple[int, int]:
        nonlocal made
        if made == pipes_there_are:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made += 1
        return make()

    monkeypatch.setattr(os, "pipe", make_pipe)
    with pytest.raises(SpawnFailed, match="Too many open files") as failed:
        async with open_port_process(python(BEGIN), env={}, cwd=tmp_path):
            raise AssertionError("started")
    assert failed.value.is_transient


# ---- its end --------------------------------------------------------------------------------------------


async def test_it_is_asked_to_end_with_a_signal_and_waited_for(python: Python, tmp_path: Path) -> None:
    script = """
        def end(*_):
            log("ended in order\\n")
            os._exit(0)
        signal.signal(signal.SIGTERM, end)
        say('{"port": 1}\\n')
        live()
        """
    command = python(BEGIN + textwrap.dedent(script))
    async with open_port_process(command, env={}, cwd=tmp_path, ladder=SLOW) as it:
        await it.wait_port()
    assert (it.returncode, it.stderr_tail) == (0, ("ended in order",))


async def test_one_that_does_not_listen_is_killed_with_its_whole_group(
    python: Python, tmp_path: Path, lifelines: Lifelines
) -> None:
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.fork()\n" + LIFELINE + "live()\n"
    command = python(BEGIN + script, lifelines.path)
    async with open_port_process(command, env={}, cwd=tmp_path, ladder=QUICK) as it:
        both = [await lifelines.accept() for _ in range(2)]
    assert it.returncode == -signal.SIGKILL
    for lifeline in both:
        await wait_dead(lifeline)


class CancelAtStep(trio.abc.Instrument):
    """Cancels ``scope`` before the given scheduler step of the run."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self.steps_left = step
        self.scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps_left -= 1
        if self.steps_left == 0:
            self.scope.cancel()


async def test_cancelled_at_any_step_no_process_and_no_descriptor_is_left(
    python: Python, tmp_path: Path
) -> None:
    command = python(BEGIN + "say('{\"port\": 1}\\n')\nlive()\n")
    before = open_files()
    step, completed = 0, False
    while not completed:
        step += 1
        with trio.CancelScope() as scope:
            canceller = CancelAtStep(step, scope)
            trio.lowlevel.add_instrument(canceller)
            try:
                async with open_port_process(command, env={}, cwd=tmp_path) as it:
                    assert await it.wait_port() == 1
                completed = canceller.steps_left > 0
            finally:
                trio.lowlevel.remove_instrument(canceller)
        assert not has_children(), f"cancelled at step {step}"
        assert open_files() == before, f"cancelled at step {step}"
    assert step > 20


# ---- orphans --------------------------------------------------------------------------------------------

PARENT = """
import sys, trio
from stepflow_trio.transports.port_process import open_port_process

async def main():
    async with open_port_process(sys.argv[1:], env={}, cwd="."):
        await trio.sleep_forever()

trio.run(main)
"""


def end_of(lifeline: socket.socket) -> bytes:
    """What a process said until it ended: the end of the line proves that, in the kernel."""
    said = b""
    while data := lifeline.recv(100):
        said += data
    return said


@pytest.mark.parametrize("listens", [True, False])
def test_a_worker_and_its_children_end_when_this_process_is_killed(
    python: Python, tmp_path: Path, lifelines: Lifelines, listens: bool
) -> None:
    how = "lambda *_: (lifeline.send(b'asked'), os._exit(0))" if listens else "signal.SIG_IGN"
    script = f"os.fork()\n{LIFELINE}\nsignal.signal(signal.SIGTERM, {how})\nlifeline.send(b'up ')\nlive()\n"
    worker = python(BEGIN + script, lifelines.path)
    with socket.socket(fileno=os.dup(lifelines._listener.fileno())) as listener:
        listener.settimeout(20)
        parent = subprocess.Popen([sys.executable, "-c", PARENT, *worker], cwd=tmp_path)
        try:
            both = [listener.accept()[0] for _ in range(2)]
            for lifeline in both:
                lifeline.settimeout(20)
                assert lifeline.recv(3) == b"up "
        finally:
            parent.kill()
            parent.wait()
        began = time.monotonic()
        for lifeline in both:
            with lifeline:
                assert end_of(lifeline) == (b"asked" if listens else b"")
    if not listens:
        assert time.monotonic() - began > 1, "it was given the time to listen"


async def test_a_guard_whose_block_has_ended_ends_nobody(python: Python) -> None:
    process = await trio.lowlevel.open_process(python(BEGIN + "live()"), start_new_session=True)
    async with orphan_guard.open_orphan_guard() as guard:
        guard.watch(process.pid)
    # Its shell is gone by now, so nothing can come later.
    assert process.poll() is None
    process.kill()
    await process.wait()


async def test_without_a_shell_a_worker_runs_and_the_log_says_what_is_missing(
    python: Python, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(orphan_guard, "SHELL", "/no/such/shell")
    async with open_port_process(
        python(BEGIN + "say('{\"port\": 1}\\n')\nlive()\n"), env={}, cwd=tmp_path
    ) as it:
        assert await it.wait_port() == 1
    assert "would outlive this process" in caplog.text
    assert "/no/such/shell" in caplog.text
