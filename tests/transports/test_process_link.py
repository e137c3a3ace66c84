"""A worker's process: how it is started, what is kept of it, and that it ends whatever happens."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from process_stage import Lifelines, has_children, open_files, wait_dead

from stepflow_trio.engine import Handlers, Limits, open_connection
from stepflow_trio.errors import LossReason, SpawnFailed, WorkerExited
from stepflow_trio.protocol.peer import Role
from stepflow_trio.transports.descriptors import DescriptorStream
from stepflow_trio.transports.process import (
    PIPE_BYTES,
    STDERR_LINE_BYTES,
    STDERR_TAIL_LINES,
    ChildOutput,
    StopLadder,
    WorkerProcess,
    open_process_link,
)

Python = Callable[..., list[str]]

ECHO = """
import os
while data := os.read(0, 65536):
    os.write(1, data)
"""

LIFELINE = """
import os, signal, socket, sys, time
signal.alarm(30)  # for a test that fails
lifeline = socket.socket(socket.AF_UNIX)
lifeline.connect(sys.argv[1])
"""

IGNORES_EOF = LIFELINE + "\nsignal.pause()\n"
IGNORES_EOF_AND_TERM = (
    LIFELINE
    + "\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.write(1, b'1\\n')\nwhile True: signal.pause()\n"
)

QUICK = StopLadder(stdin_grace_s=0.1, term_grace_s=0.1, cancelled_grace_s=0.1)
SLOW = StopLadder(stdin_grace_s=20, term_grace_s=20, cancelled_grace_s=20)


def ignore() -> None:
    pass


async def ask(worker: WorkerProcess, frame: bytes) -> bytes:
    await worker.link.send([frame], ignore)
    (answer,) = await worker.link.receive()
    assert isinstance(answer, bytes)
    return answer


# ---- starting -------------------------------------------------------------------------------------------


async def test_a_worker_gets_exactly_the_environment_and_directory_that_are_given(
    python: Python, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    script = """
        import json, os
        environ = open("/proc/self/environ", "rb").read().decode()
        fds = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
        print(json.dumps([environ, os.getcwd(), sorted(fds), os.getsid(0) == os.getpgrp() == os.getpid()]))
    """
    leaky, other_end = os.pipe()
    os.set_inheritable(leaky, True)
    try:
        async with open_process_link(python(script), env={"A": "1", "B": "ä =x"}, cwd=tmp_path) as worker:
            (frame,) = await worker.link.receive()
    finally:
        os.close(leaky)
        os.close(other_end)
    assert json.loads(frame) == ["A=1\0B=ä =x\0", str(tmp_path), ["0", "1", "2"], True]


async def test_a_worker_may_have_no_environment_at_all(python: Python, tmp_path: Path) -> None:
    script = "print(repr(open('/proc/self/environ').read()))"
    async with open_process_link(python(script), env={}, cwd=tmp_path) as worker:
        assert await worker.link.receive() == [b"''"]


async def test_the_program_is_found_on_our_path_and_a_path_counts_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    program = folder / "stepflow-test-worker"
    program.write_text("#!/bin/sh\necho $0\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    for name, cwd in (
        (program.name, "/"),
        (f"./{program.name}", folder),
        (f"programs/{program.name}", tmp_path),
    ):
        async with open_process_link([name], env={}, cwd=cwd) as worker:
            (frame,) = await worker.link.receive()
        assert isinstance(frame, bytes)
        assert frame.replace(b"/./", b"/") == os.fsencode(program)


async def test_the_pipes_of_a_worker_are_large(python: Python, tmp_path: Path) -> None:
    import fcntl

    script = "import fcntl, os; print(fcntl.fcntl(0, 1032), fcntl.fcntl(1, 1032))"
    assert fcntl.F_GETPIPE_SZ == 1032
    async with open_process_link(python(script), env={}, cwd=tmp_path) as worker:
        # Where many pipes are open already the system refuses, and that is all right.
        assert await worker.link.receive() in ([b"%d %d" % (PIPE_BYTES, PIPE_BYTES)], [b"65536 65536"])


def spawn_failure(tmp_path: Path, name: str) -> tuple[list[str], Path, list[str]]:
    """A command that cannot be started, its working directory, and what the error must say."""
    (tmp_path / "worker.py").write_text("print()\n", encoding="utf-8")
    (tmp_path / "no-shebang").write_text("print()\n", encoding="utf-8")
    (tmp_path / "no-shebang").chmod(0o755)
    (tmp_path / "bad-shebang").write_text("#! /opt/nowhere/python3 -u\n", encoding="utf-8")
    (tmp_path / "bad-shebang").chmod(0o755)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    return {
        "empty": ([], tmp_path, ["the command is empty"]),
        "no name": ([""], tmp_path, ["name is empty"]),
        "not on PATH": (["shh"], tmp_path, ["'shh' was not found on PATH (", os.environ["PATH"], "'sh'"]),
        "in cwd only": (["worker.py"], tmp_path, ["not found on PATH", "write './worker.py'"]),
        "no file": (["./workers.py"], tmp_path, [f"{tmp_path}/./workers.py", "nearest", "'worker.py'"]),
        "no folder": (["/nowhere/at/all"], tmp_path, ["there is no file '/nowhere/at/all'"]),
        "dangling": (["./dangling"], tmp_path, ["link to 'nowhere'"]),
        "directory": (["./folder"], tmp_path, ["/folder' is a directory"]),
        "device": (["/dev/null"], tmp_path, ["'/dev/null' is not a regular file"]),
        "not executable": (["./worker.py"], tmp_path, ["not executable", "chmod +x"]),
        "no interpreter": (["./bad-shebang"], tmp_path, ["'/opt/nowhere/python3' in its first line"]),
        "no format": (["./no-shebang"], tmp_path, ["neither a program for this machine nor a script"]),
        "cwd missing": (["sh"], tmp_path / "nope", ["working directory", "nope' does not exist"]),
        "cwd a file": (["sh"], tmp_path / "worker.py", ["worker.py' is not a directory"]),
        "null byte": (["sh", "a\0b"], tmp_path, ["null byte"]),
        "too long": (["sh", "x" * 2**21], tmp_path, ["Argument list too long"]),
        "unspeakable": (["sh", "\ud800"], tmp_path, ["surrogates not allowed"]),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "empty", "no name", "not on PATH", "in cwd only", "no file", "no folder", "dangling", "directory",
        "device", "not executable", "no interpreter", "no format", "cwd missing", "cwd a file", "null byte",
        "too long", "unspeakable",
    ],
)  # fmt: skip
async def test_what_cannot_be_started_says_what_was_tried_and_why(tmp_path: Path, name: str) -> None:
    command, cwd, expected = spawn_failure(tmp_path, name)
    with pytest.raises(SpawnFailed) as failed:
        async with open_process_link(command, env={}, cwd=cwd):
            raise AssertionError("started")
    for words in expected:
        assert words in str(failed.value)
    assert not failed.value.is_transient


async def test_a_command_as_one_string_and_a_bad_variable_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpawnFailed, match="one string"):
        async with open_process_link("sh -c true", env={}, cwd=tmp_path):
            pass
    with pytest.raises(SpawnFailed, match="illegal environment variable name"):
        async with open_process_link(["sh"], env={"A=B": "1"}, cwd=tmp_path):
            pass


async def test_running_out_of_descriptors_is_transient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(trio.lowlevel, "open_process", fail)
    with pytest.raises(SpawnFailed, match="Too many open files") as failed:
        async with open_process_link(["sh"], env={}, cwd=tmp_path):
            pass
    assert failed.value.is_transient


@pytest.mark.parametrize("pipes_there_are", [0, 1, 2])
async def test_when_there_are_not_descriptors_enough_for_its_pipes_nothing_is_started(
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
        async with open_process_link(python(ECHO), env={}, cwd=tmp_path):
            raise AssertionError("started")
    assert failed.value.is_transient


async def test_once_it_runs_it_does_not_matter_that_there_are_no_descriptors_left(
    python: Python, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    class TheLast(subprocess.Popen[bytes]):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]
            resource.setrlimit(resource.RLIMIT_NOFILE, (4, limits[1]))

    monkeypatch.setattr(subprocess, "Popen", TheLast)
    try:
        async with open_process_link(python(ECHO), env={}, cwd=tmp_path, ladder=SLOW) as worker:
            with pytest.raises(OSError, match="Too many open files"):
                os.pipe()
            assert await ask(worker, b"1") == b"1"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert worker.returncode == 0


# ---- stderr ---------------------------------------------------------------------------------------------


async def test_the_last_lines_of_stderr_are_kept_and_each_is_heard(python: Python, tmp_path: Path) -> None:
    script = """
        import sys
        for n in range(250):
            print("line", n, file=sys.stderr)
        print("no newline", end="", file=sys.stderr)
        sys.exit(3)
    """
    heard: list[str] = []
    async with open_process_link(python(script), env={}, cwd=tmp_path, on_stderr_line=heard.append) as worker:
        assert await worker.wait_exited() == 3
        assert worker.stderr_tail == (*(f"line {n}" for n in range(151, 250)), "no newline")
        assert len(worker.stderr_tail) == STDERR_TAIL_LINES
        error = worker.exit_error()
    assert heard == [*(f"line {n}" for n in range(250)), "no newline"]
    assert isinstance(error, WorkerExited)
    assert (error.returncode, error.stderr) == (3, worker.stderr_tail)
    assert "exited with code 3" in str(error)


async def test_a_hostile_stderr_line_is_cut_and_escaped(python: Python, tmp_path: Path) -> None:
    script = r"""
        import os
        os.write(2, b"\x1b[31mred\x1b[0m\rover\x00\x9b \xff\t\xc2\x9b\xe2\x80\xae\xe2\x80\xa8 \xc3\xa4\r\n")
        os.write(2, b"x" * 1_000_000 + b"\n")
        os.write(2, b"y" * 8192 + b"\n\nend\n")
    """
    async with open_process_link(python(script), env={}, cwd=tmp_path) as worker:
        await worker.wait_exited()
        escaped, cut, whole, blank, end = worker.stderr_tail
    assert escaped == "\\x1b[31mred\\x1b[0m\\rover\\x00\\x9b \\xff\t\\x9b\\u202e\\u2028 ä"
    assert cut == "x" * STDERR_LINE_BYTES + f" … ({1_000_000 - STDERR_LINE_BYTES} bytes more)"
    assert (whole, blank, end) == ("y" * 8192, "", "end")


async def test_a_worker_that_floods_stderr_is_not_held_up(python: Python, tmp_path: Path) -> None:
    script = "import os\nfor _ in range(200): os.write(2, b'noise ' * 5000 + b'\\n')\n" + ECHO
    async with open_process_link(python(script), env={}, cwd=tmp_path) as worker:
        assert await ask(worker, b"1") == b"1"


async def test_a_failing_stderr_callback_is_logged_and_stops_nothing(
    python: Python, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(line: str) -> None:
        raise RuntimeError("callback")

    script = "import os; os.write(2, b'1\\n2\\n')\n" + ECHO.lstrip()
    async with open_process_link(python(script), env={}, cwd=tmp_path, on_stderr_line=fail) as worker:
        assert await ask(worker, b"1") == b"1"
    assert worker.stderr_tail == ("1", "2")
    assert [record.getMessage() for record in caplog.records] == ["on_log_line failed"] * 2


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_worker_that_says_much_at_its_end_is_read_to_the_end(
    python: Python, tmp_path: Path, cancelled: bool
) -> None:
    script = (
        ECHO + "\nfor _ in range(100): os.write(2, b'farewell ' * 5000 + b'\\n')\nos.write(2, b'done\\n')\n"
    )
    with trio.CancelScope() as scope:
        async with open_process_link(python(script), env={}, cwd=tmp_path, ladder=SLOW) as worker:
            await ask(worker, b"1")
            if cancelled:
                scope.cancel()
                await trio.lowlevel.checkpoint()
    assert worker.returncode == 0
    assert worker.stderr_tail[-1] == "done"


# ---- the end, by itself ---------------------------------------------------------------------------------


async def test_what_a_worker_wrote_before_it_ended_is_received(python: Python, tmp_path: Path) -> None:
    script = "import os; os.write(1, b'1\\n2\\nhal'); os._exit(7)"
    async with open_process_link(python(script), env={}, cwd=tmp_path) as worker:
        assert worker.returncode is None or worker.returncode == 7
        assert await worker.wait_exited() == 7
        first, second, half = await worker.link.receive() + await worker.link.receive()
        assert (first, second) == (b"1", b"2")
        assert not isinstance(half, bytes)
        assert await worker.link.receive() == []
    assert "exited with code 7" in str(worker.exit_error())


async def test_a_worker_killed_by_a_signal_says_which(python: Python, tmp_path: Path) -> None:
    async with open_process_link(python(ECHO), env={}, cwd=tmp_path) as worker:
        assert worker.returncode is None
        os.kill(worker.pid, signal.SIGSEGV)
        assert await worker.link.receive() == []
        assert await worker.wait_exited() == -signal.SIGSEGV
        assert "was killed by signal 11" in str(worker.exit_error())


async def test_waiting_for_the_exit_can_be_limited(python: Python, tmp_path: Path) -> None:
    async with open_process_link(python(ECHO), env={}, cwd=tmp_path) as worker:
        assert await worker.wait_exited(0.01) is None
        assert "closed its stdout" in str(worker.exit_error())


async def test_a_connection_over_a_dead_worker_is_lost_as_closed_by_the_peer(
    python: Python, tmp_path: Path
) -> None:
    async with (
        open_process_link(python("import os; os.read(0, 10); os._exit(3)"), env={}, cwd=tmp_path) as worker,
        open_connection(worker.link, Handlers(), role=Role.RUNTIME) as connection,
    ):
        await connection.notify("wake up")
        assert (await connection.wait_lost()).reason is LossReason.PEER_CLOSED
        assert await worker.wait_exited() == 3


GRANDCHILD = """
import os, signal, socket, sys
if os.fork() == 0:
    signal.alarm(30)  # for a test that fails
    if sys.argv[2] == "outside":
        os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(1, b"grandchild\\n")
    lifeline = socket.socket(socket.AF_UNIX)
    lifeline.connect(sys.argv[1])
    lifeline.recv(1)
    os._exit(0)
os.read(0, 1)
os._exit(5)
"""


async def test_when_a_worker_ends_its_group_is_killed_and_the_link_ends(
    python: Python, tmp_path: Path, lifelines: Lifelines
) -> None:
    command = python(GRANDCHILD, lifelines.path, "inside")
    async with open_process_link(command, env={}, cwd=tmp_path, ladder=SLOW) as worker:
        lifeline = await lifelines.accept()
        assert await ask(worker, b"") == b"grandchild"
        assert await worker.link.receive() == []
        await wait_dead(lifeline)
        assert await worker.wait_exited() == 5


async def test_when_the_block_ends_the_group_is_killed_with_the_worker(
    python: Python, tmp_path: Path, lifelines: Lifelines
) -> None:
    command = python(
        GRANDCHILD.replace("os.read(0, 1)", "os.read(0, 1) or signal.pause()"), lifelines.path, "inside"
    )
    async with open_process_link(command, env={}, cwd=tmp_path, ladder=QUICK) as worker:
        lifeline = await lifelines.accept()
    assert worker.returncode == -signal.SIGTERM
    await wait_dead(lifeline)


@pytest.mark.parametrize("received", ["before the end", "after the end"])
async def test_a_process_that_left_the_group_keeps_nobody_waiting(
    python: Python, tmp_path: Path, lifelines: Lifelines, received: str
) -> None:
    command = python(GRANDCHILD, lifelines.path, "outside")
    async with open_process_link(command, env={}, cwd=tmp_path, ladder=SLOW) as worker:
        lifeline = await lifelines.accept()
        await worker.link.send([b""], ignore)
        if received == "after the end":
            await worker.wait_exited()
        assert await worker.link.receive() == [b"grandchild"]
        assert await worker.link.receive() == []
        assert await worker.wait_exited() == 5
    await lifeline.send_all(b"end")
    await wait_dead(lifeline)


async def test_output_that_is_read_in_the_moment_of_the_end_is_counted_once() -> None:
    for _ in range(20):
        reader, writer = os.pipe()
        bell, ringer = os.pipe()
        async with trio.lowlevel.FdStream(bell) as ending:
            output = ChildOutput(DescriptorStream(reader))

            async def end(ending: trio.lowlevel.FdStream, output: ChildOutput) -> None:
                await ending.receive_some(1)
                output.end()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(end, ending, output)
                nursery.start_soon(ring, writer, ringer)
                # Both are woken by the same poll, in one order or the other.
                assert await output.receive_some() == b"last"
            assert await output.receive_some() == b""
            await output.aclose()
        os.close(writer)
        os.close(ringer)


async def test_what_others_write_between_the_end_and_the_read_keeps_nobody_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    reader, writer = os.pipe()

    class ReadLate(DescriptorStream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.wait_readable(self.fileno())
            output.end()
            os.write(writer, b" and more")
            return os.read(self.fileno(), 100)

    output = ChildOutput(ReadLate(reader))
    os.write(writer, b"last")
    with trio.fail_after(1):
        assert await output.receive_some() == b"last and more"
        assert await output.receive_some() == b""
    await output.aclose()
    os.close(writer)


async def ring(*pipes: int) -> None:
    await trio.testing.wait_all_tasks_blocked()
    for pipe in pipes:
        os.write(pipe, b"last")


async def test_a_process_that_left_the_group_and_writes_on_and_on_keeps_nobody_waiting(
    python: Python, tmp_path: Path, lifelines: Lifelines
) -> None:
    script = """
        import os, signal, socket, sys, threading
        for fd in (1, 2):
            if os.fork() == 0:
                signal.alarm(30)  # for a test that fails
                os.setsid()
                lifeline = socket.socket(socket.AF_UNIX)
                lifeline.connect(sys.argv[1])
                def shout():
                    while True:
                        os.write(fd, b"shout\\n" * 1000)
                threading.Thread(target=shout, daemon=True).start()
                lifeline.recv(1)
                os._exit(0)
        os.read(0, 1)
    """
    async with open_process_link(python(script, lifelines.path), env={}, cwd=tmp_path, ladder=SLOW) as worker:
        shouters = [await lifelines.accept(), await lifelines.accept()]
        await worker.link.send([b""], ignore)
        while await worker.link.receive():
            pass
        assert await worker.wait_exited() == 0
    for lifeline in shouters:
        await lifeline.send_all(b"end")
        await wait_dead(lifeline)


async def test_a_worker_that_closed_its_stdout_is_still_ended(
    python: Python, tmp_path: Path, lifelines: Lifelines
) -> None:
    command = python(LIFELINE + "\nos.close(1)\nsignal.pause()\n", lifelines.path)
    async with open_process_link(command, env={}, cwd=tmp_path, ladder=QUICK) as worker:
        lifeline = await lifelines.accept()
        assert await worker.link.receive() == []
    assert worker.returncode == -signal.SIGTERM
    await wait_dead(lifeline)


# ---- the stop ladder ------------------------------------------------------------------------------------


async def test_a_worker_that_ends_with_its_stdin_is_given_the_time_for_it(
    python: Python, tmp_path: Path
) -> None:
    async with open_process_link(python(ECHO), env={}, cwd=tmp_path, ladder=SLOW) as worker:
        await ask(worker, b"1")
    assert worker.returncode == 0


async def test_the_ladder_copes_with_a_connection_that_closed_the_link_before(
    python: Python, tmp_path: Path
) -> None:
    async with open_process_link(python(ECHO), env={}, cwd=tmp_path, ladder=SLOW) as worker:
        async with open_connection(worker.link, Handlers(), role=Role.PLAIN):
            pass
        assert await worker.wait_exited() == 0
    assert worker.returncode == 0


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize(
    ("script", "returncode", "at_least_s"),
    [(IGNORES_EOF, -signal.SIGTERM, 0.1), (IGNORES_EOF_AND_TERM, -signal.SIGKILL, 0.2)],
)
async def test_the_ladder_is_walked_down_in_bounded_time(
    python: Python,
    tmp_path: Path,
    lifelines: Lifelines,
    script: str,
    returncode: int,
    at_least_s: float,
    cancelled: bool,
) -> None:
    if cancelled:
        ladder = StopLadder(stdin_grace_s=30, term_grace_s=30, cancelled_grace_s=0.1)
    else:
        ladder = StopLadder(stdin_grace_s=0.1, term_grace_s=0.1, cancelled_grace_s=30)
    with trio.CancelScope() as scope:
        async with open_process_link(
            python(script, lifelines.path), env={}, cwd=tmp_path, ladder=ladder
        ) as worker:
            lifeline = await lifelines.accept()
            if script is IGNORES_EOF_AND_TERM:
                assert await worker.link.receive() == [b"1"]
            began = time.monotonic()
            if cancelled:
                scope.cancel()
                await trio.lowlevel.checkpoint()
    assert at_least_s <= time.monotonic() - began < at_least_s + 5
    assert scope.cancelled_caught == cancelled
    assert worker.returncode == returncode
    await wait_dead(lifeline)


async def test_a_block_that_is_cancelled_while_it_is_left_hurries(
    python: Python, tmp_path: Path, lifelines: Lifelines
) -> None:
    ladder = StopLadder(stdin_grace_s=30, term_grace_s=30, cancelled_grace_s=0.1)
    began = time.monotonic()
    with trio.move_on_after(0.3) as scope:
        async with open_process_link(
            python(IGNORES_EOF_AND_TERM, lifelines.path), env={}, cwd=tmp_path, ladder=ladder
        ) as worker:
            lifeline = await lifelines.accept()
            assert await worker.link.receive() == [b"1"]
    assert scope.cancelled_caught
    assert time.monotonic() - began < 5
    assert worker.returncode == -signal.SIGKILL
    await wait_dead(lifeline)


async def test_a_worker_that_is_stopped_like_a_job_is_killed(python: Python, tmp_path: Path) -> None:
    async with open_process_link(python(ECHO), env={}, cwd=tmp_path, ladder=QUICK) as worker:
        await ask(worker, b"1")
        os.kill(worker.pid, signal.SIGSTOP)
    assert worker.returncode in (-signal.SIGTERM, -signal.SIGKILL)


async def test_a_worker_that_stops_reading_loses_its_connection_and_is_ended(
    python: Python, tmp_path: Path
) -> None:
    limits = Limits(send_timeout_s=0.1)
    async with open_process_link(python(ECHO), env={}, cwd=tmp_path, ladder=QUICK) as worker:
        os.kill(worker.pid, signal.SIGSTOP)
        async with open_connection(worker.link, Handlers(), role=Role.RUNTIME, limits=limits) as connection:
            await connection.notify("too_much", {"pad": "x" * 4 * PIPE_BYTES})
            assert (await connection.wait_lost()).reason is LossReason.SEND_STALLED
    assert worker.returncode == -signal.SIGKILL


async def test_a_worker_can_be_stopped_within_its_block(python: Python, tmp_path: Path) -> None:
    async with open_process_link(python(ECHO), env={}, cwd=tmp_path) as worker:
        await worker.stop(SLOW)
        assert worker.returncode == 0
        with pytest.raises(trio.ClosedResourceError):
            await worker.link.receive()


async def test_the_exception_of_the_block_comes_out_as_it_is(python: Python, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with open_process_link(python(ECHO), env={}, cwd=tmp_path):
            raise LookupError("mine")
    with pytest.raises(ExceptionGroup, match="mine"):
        async with open_process_link(python(ECHO), env={}, cwd=tmp_path):
            raise ExceptionGroup("mine", [LookupError()])


async def test_the_exception_of_the_block_comes_out_although_the_ladder_is_cancelled(
    python: Python, tmp_path: Path, lifelines: Lifelines
) -> None:
    ladder = StopLadder(stdin_grace_s=30, term_grace_s=30, cancelled_grace_s=0.1)
    mine = LookupError("mine")
    began = time.monotonic()
    with pytest.raises(LookupError) as failed, trio.CancelScope() as scope:  # noqa: PT012 — `mine` is meant
        async with open_process_link(
            python(IGNORES_EOF_AND_TERM, lifelines.path), env={}, cwd=tmp_path, ladder=ladder
        ) as worker:
            lifeline = await lifelines.accept()
            assert await worker.link.receive() == [b"1"]
            scope.deadline = trio.current_time() + 0.1
            raise mine
    assert failed.value is mine
    assert mine.__context__ is None
    assert scope.cancel_called
    assert not scope.cancelled_caught
    assert time.monotonic() - began < 5
    assert worker.returncode == -signal.SIGKILL
    await wait_dead(lifeline)


@pytest.mark.parametrize("name", ["stdin_grace_s", "term_grace_s", "cancelled_grace_s"])
@pytest.mark.parametrize("value", [-1, math.nan])
def test_a_grace_is_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        StopLadder(**{name: value})


# ---- cancellation ---------------------------------------------------------------------------------------


class CancelAtStep(trio.abc.Instrument):
    """Cancels ``scope`` before the given scheduler step of the run."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self.steps_left = step
        self.scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps_left -= 1
        if self.steps_left == 0:
            self.scope.cancel()


ANSWERS_ONCE = LIFELINE + "\nos.write(1, os.read(0, 9))\nsignal.pause()\n"


@pytest.mark.parametrize(
    ("script", "ladder"),
    [
        (ECHO, StopLadder(cancelled_grace_s=20)),
        (ANSWERS_ONCE, StopLadder(stdin_grace_s=0.01, term_grace_s=20, cancelled_grace_s=0.01)),
        (IGNORES_EOF_AND_TERM, StopLadder(stdin_grace_s=0.01, term_grace_s=0.01)),
    ],
)
async def test_cancelled_at_any_step_no_process_and_no_descriptor_is_left(
    python: Python, tmp_path: Path, lifelines: Lifelines, script: str, ladder: StopLadder
) -> None:
    command = python(script, lifelines.path)
    before = open_files()
    step, completed = 0, False
    while not completed:
        step += 1
        with trio.CancelScope() as scope:
            canceller = CancelAtStep(step, scope)
            trio.lowlevel.add_instrument(canceller)
            try:
                async with open_process_link(command, env={}, cwd=tmp_path, ladder=ladder) as worker:
                    assert await ask(worker, b"1") == b"1"
                completed = canceller.steps_left > 0
            finally:
                trio.lowlevel.remove_instrument(canceller)
        assert not has_children(), f"cancelled at step {step}"
        assert open_files() == before, f"cancelled at step {step}"
    assert step > 20


async def test_cancelled_while_the_system_starts_it_no_process_is_left(
    python: Python, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    with trio.CancelScope() as scope:

        class CancelledMeanwhile(subprocess.Popen[bytes]):
            def __init__(self, *args: object, **kwargs: object) -> None:
                super().__init__(*args, **kwargs)  # type: ignore[call-overload]
                started.append(self.pid)
                trio.from_thread.run_sync(scope.cancel)

        monkeypatch.setattr(subprocess, "Popen", CancelledMeanwhile)
        async with open_process_link(python(ECHO), env={}, cwd=tmp_path, ladder=SLOW):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert len(started) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


async def test_many_workers_at_once_end_together(python: Python, tmp_path: Path) -> None:
    codes: list[int | None] = []

    async def one(number: int) -> None:
        async with open_process_link(python(ECHO), env={}, cwd=tmp_path) as worker:
            assert await ask(worker, b"%d" % number) == b"%d" % number
        codes.append(worker.returncode)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(partial(one, number))
    assert codes == [0] * 20
