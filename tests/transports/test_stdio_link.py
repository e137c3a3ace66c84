"""This process's own stdin and stdout: whatever they are, only frames pass, and they are given back."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import textwrap
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from process_stage import Lifelines, wait_dead

import stepflow_trio
from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.transports.stdio import ORPHAN_EXIT_CODE, _FileStream, open_stdio_link

ROOT = str(Path(stepflow_trio.__file__).parents[1])


def ignore() -> None:
    pass


@contextmanager
def standard_streams(stdin: int, stdout: int) -> Generator[None]:
    """Let this process have them as its descriptors 0 and 1 for a while; they stay the caller's.

    Within the test, not in a fixture: between the two pytest puts its own capture into descriptor 1.
    """
    kept = [os.dup(0), os.dup(1)]
    try:
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        yield
    finally:
        for fd, original in enumerate(kept):
            os.dup2(original, fd)
            os.close(original)


class Ends:
    """What the test holds of a pair of standard streams."""

    def __init__(self, files: ExitStack) -> None:
        self.open: set[int] = set()
        files.callback(lambda: [self.close(fd) for fd in [*self.open]])
        self.files = files
        self.stdin = self.stdout = -1
        self.write: Callable[[bytes], object] = lambda _: None
        self.hang_up: Callable[[], object] = lambda: None
        self.read: Callable[[], bytes] = lambda: b""

    def own(self, fd: int) -> int:
        self.open.add(fd)
        return fd

    def close(self, fd: int) -> None:
        if fd in self.open:
            self.open.remove(fd)
            os.close(fd)


def pipes(ends: Ends, _: Path) -> None:
    ends.stdin, writer = map(ends.own, os.pipe())
    reader, ends.stdout = map(ends.own, os.pipe())
    ends.write = lambda data: os.write(writer, data)
    ends.hang_up = lambda: ends.close(writer)
    ends.read = lambda: os.read(reader, 65536)


def one_socket(ends: Ends, _: Path) -> None:
    near, far = socket.socketpair()
    ends.stdin = ends.stdout = ends.own(near.detach())
    ends.files.enter_context(far)
    ends.write = far.sendall
    ends.hang_up = lambda: far.shutdown(socket.SHUT_WR)
    ends.read = lambda: far.recv(65536)


def terminal(ends: Ends, _: Path) -> None:
    master, slave = map(ends.own, pty.openpty())
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    ends.stdin = ends.stdout = slave
    ends.write = lambda data: os.write(master, data)
    ends.hang_up = lambda: os.write(master, b"\x04")
    ends.read = lambda: os.read(master, 65536)


def regular_files(ends: Ends, folder: Path) -> None:
    requests, answers = folder / "requests.jsonl", folder / "answers.jsonl"
    requests.touch()
    ends.stdin = ends.own(os.open(requests, os.O_RDONLY))
    ends.stdout = ends.own(os.open(answers, os.O_WRONLY | os.O_CREAT))
    ends.write = requests.write_bytes
    ends.read = answers.read_bytes


KINDS = {make.__name__: make for make in (pipes, one_socket, terminal, regular_files)}


@pytest.fixture(params=KINDS)
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Ends]:
    with ExitStack() as files:
        made = Ends(files)
        KINDS[request.param](made, tmp_path)
        yield made


@pytest.fixture
def piped(tmp_path: Path) -> Generator[Ends]:
    with ExitStack() as files:
        made = Ends(files)
        pipes(made, tmp_path)
        yield made


# ---- whatever stdin and stdout are ----------------------------------------------------------------------


async def test_frames_pass_whatever_stdin_and_stdout_are(ends: Ends) -> None:
    with standard_streams(ends.stdin, ends.stdout):
        ends.write(b'{"a":1}\n{"b":2}\n')
        ends.hang_up()
        async with open_stdio_link() as link:
            frames = await link.receive()
            if len(frames) == 1:  # a terminal hands out one line at a time
                frames += await link.receive()
            assert frames == [b'{"a":1}', b'{"b":2}']
            await link.send([b'{"c":3}', b'{"d":4}'], ignore)
            assert ends.read() == b'{"c":3}\n{"d":4}\n'
            assert await link.receive() == []


@pytest.mark.parametrize("blocking", [True, False])
async def test_stdin_and_stdout_are_given_back_as_they_were(ends: Ends, blocking: bool) -> None:
    with standard_streams(ends.stdin, ends.stdout):
        os.set_blocking(0, blocking)
        os.set_blocking(1, blocking)
        before = [os.fstat(fd) for fd in (0, 1, 2)]
        ends.write(b"1\n")
        async with open_stdio_link() as link:
            assert await link.receive() == [b"1"]
            assert os.path.samestat(os.fstat(1), os.fstat(2))
            assert os.path.samestat(os.fstat(0), os.stat(os.devnull))
        assert all(os.path.samestat(os.fstat(fd), before[fd]) for fd in (0, 1, 2))
        assert [os.get_blocking(0), os.get_blocking(1)] == [blocking, blocking]
        assert os.get_inheritable(0)
        assert os.get_inheritable(1)
        os.write(1, b"still here\n")
        assert ends.read().endswith(b"still here\n")


@pytest.mark.parametrize("ends", ["pipes", "terminal", "regular_files"], indirect=True)
async def test_other_holders_of_what_can_be_reopened_never_see_it_non_blocking(ends: Ends) -> None:
    with standard_streams(ends.stdin, ends.stdout):
        async with open_stdio_link():
            assert os.get_blocking(ends.stdin)
            assert os.get_blocking(ends.stdout)


async def test_where_nothing_can_be_reopened_the_flags_are_put_back(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path.startswith("/dev/fd/"):
            raise PermissionError("another user's pipe")
        return open_file(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse)
    ends.write(b"1\n")
    with standard_streams(ends.stdin, ends.stdout):
        async with open_stdio_link() as link:
            assert await link.receive() == [b"1"]
            await link.send([b"2"], ignore)
        assert ends.read() == b"2\n"
        assert [os.get_blocking(0), os.get_blocking(1)] == [True, True]


async def test_a_claim_cancelled_in_the_middle_of_everything_gives_all_back(ends: Ends) -> None:
    with standard_streams(ends.stdin, ends.stdout):
        with trio.CancelScope() as scope:
            async with open_stdio_link() as link, trio.open_nursery() as nursery:
                nursery.start_soon(link.receive)
                nursery.start_soon(link.send, [b"x" * 3_000_000], ignore)
                await trio.testing.wait_all_tasks_blocked(0.01)
                scope.cancel()
        assert os.path.samestat(os.fstat(0), os.fstat(ends.stdin))
        assert os.path.samestat(os.fstat(1), os.fstat(ends.stdout))
        assert os.get_blocking(0)
        assert os.get_blocking(1)


async def test_nothing_comes_from_dev_null_and_everything_fits_into_it() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        with standard_streams(null, null):
            async with open_stdio_link() as link:
                assert await link.receive() == []
                await link.send([b"x" * 100_000], ignore)
    finally:
        os.close(null)


async def test_a_full_disk_breaks_the_link() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with standard_streams(0, full):
            async with open_stdio_link() as link:
                with pytest.raises(trio.BrokenResourceError, match="No space left"):
                    await link.send([b"1"], ignore)
    finally:
        os.close(full)


async def test_a_file_is_read_and_written_although_components_hold_every_thread(tmp_path: Path) -> None:
    with ExitStack() as files:
        ends = Ends(files)
        regular_files(ends, tmp_path)
        limiter = trio.to_thread.current_default_thread_limiter()
        with standard_streams(ends.stdin, ends.stdout):
            ends.write(b"1\n")
            async with open_stdio_link() as link, trio.open_nursery() as nursery:
                for holder in range(int(limiter.total_tokens)):
                    limiter.acquire_on_behalf_of_nowait(holder)
                assert await link.receive() == [b"1"]
                await link.send([b"2"], ignore)
                for holder in range(int(limiter.total_tokens)):
                    limiter.release_on_behalf_of(holder)
                nursery.cancel_scope.cancel()
        assert ends.read() == b"2\n"


async def test_a_file_that_is_closed_while_a_thread_reads_it_keeps_its_number_until_then() -> None:
    reader, writer = os.pipe()
    stream = _FileStream(reader)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await stream.aclose()
        os.fstat(reader)
        os.write(writer, b"1")
        os.close(writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)


# ---- the claim ------------------------------------------------------------------------------------------


async def test_a_second_claim_is_refused_and_one_after_the_first_is_not(piped: Ends) -> None:
    with standard_streams(piped.stdin, piped.stdout):
        async with open_stdio_link():
            with pytest.raises(LocalProtocolError, match="already"):
                async with open_stdio_link():
                    pass
        piped.write(b"1\n")
        async with open_stdio_link() as link:
            assert await link.receive() == [b"1"]


@pytest.mark.parametrize(("fd", "name"), [(0, "stdin"), (1, "stdout")])
async def test_a_closed_standard_stream_is_refused_and_the_other_left_alone(
    piped: Ends, fd: int, name: str
) -> None:
    with standard_streams(piped.stdin, piped.stdout):
        os.close(fd)
        with pytest.raises(LocalProtocolError, match=f"{name} .* is closed"):
            async with open_stdio_link():
                pass
        assert os.path.samestat(os.fstat(1 - fd), os.fstat((piped.stdout, piped.stdin)[fd]))
        os.dup2((piped.stdin, piped.stdout)[fd], fd)
        async with open_stdio_link():
            pass


async def test_no_child_inherits_the_descriptors_of_the_link(piped: Ends) -> None:
    async def descriptors_of_a_child() -> bytes:
        code = "import os; print(*(n for n in range(300) if os.path.exists(f'/proc/self/fd/{n}')))"
        command = [sys.executable, "-I", "-S", "-c", code]
        return (await trio.run_process(command, close_fds=False, capture_stdout=True, stdin=None)).stdout

    with standard_streams(piped.stdin, piped.stdout):
        before = await descriptors_of_a_child()
        async with open_stdio_link():
            assert await descriptors_of_a_child() == before


async def test_with_stderr_closed_prints_go_nowhere(piped: Ends) -> None:
    with standard_streams(piped.stdin, piped.stdout):
        kept = os.dup(2)
        try:
            os.close(2)
            async with open_stdio_link() as link:
                os.write(1, b"lost\n")
                await link.send([b"1"], ignore)
            assert piped.read() == b"1\n"
        finally:
            os.dup2(kept, 2)
            os.close(kept)


# ---- nothing but frames on stdout -----------------------------------------------------------------------


def script(code: str) -> list[str]:
    """The command that runs ``code`` with what a worker needs."""
    head = f"import sys; sys.path.insert(0, {ROOT!r})\n"
    head += "import os, trio\nfrom stepflow_trio.transports.stdio import open_stdio_link\n"
    return [sys.executable, "-c", head + textwrap.dedent(code)]


def test_whatever_is_printed_goes_to_stderr_and_stdout_carries_frames_alone() -> None:
    code = """
        import ctypes, subprocess
        print("1 before, in the buffer")

        async def main():
            async with open_stdio_link() as link:
                print("2 python")
                os.write(1, b"3 os.write\\n")
                os.system("echo 4 os.system")
                subprocess.run(["sh", "-c", "echo 5 child; cat"])
                sys.stdout.buffer.write(b"6 binary\\n")
                ctypes.CDLL(None).printf(b"7 C\\n")
                while frames := await link.receive():
                    await link.send(frames, lambda: None)
                sys.stdout.write("8 without newline")

        trio.run(main)
        print("after")
    """
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(script(code), input=b"[1]\n[2]\n", capture_output=True, timeout=30, env=environ)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"[1]\n[2]\nafter\n"
    printed = done.stderr.decode().splitlines()
    assert printed[:5] == ["1 before, in the buffer", "2 python", "3 os.write", "4 os.system", "5 child"]
    assert printed[5:] == ["6 binary", "8 without newline7 C"]


def test_the_buffering_of_python_stdout_is_put_back() -> None:
    code = """
        async def main():
            async with open_stdio_link() as link:
                assert sys.stdout.line_buffering

        assert not sys.stdout.line_buffering
        trio.run(main)
        assert not sys.stdout.line_buffering
    """
    done = subprocess.run(script(code), stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_does_not_become_the_controlling_one() -> None:
    master, slave = pty.openpty()
    code = """
        async def main():
            async with open_stdio_link() as link:
                controlling_terminal = open("/proc/self/stat").read().rpartition(") ")[2].split()[4]
                await link.send([controlling_terminal.encode()], lambda: None)

        trio.run(main)
    """
    try:
        done = subprocess.run(
            script(code), stdin=slave, stdout=subprocess.PIPE, start_new_session=True, timeout=30
        )
    finally:
        os.close(master)
        os.close(slave)
    assert done.stdout == b"0\n"


# ---- orphans --------------------------------------------------------------------------------------------

WORKER = """
import os, signal, socket, sys, trio
signal.alarm(30)  # for a test that fails
sys.path.insert(0, sys.argv[1])
from stepflow_trio.transports.stdio import open_stdio_link
lifeline = socket.socket(socket.AF_UNIX)
lifeline.connect(sys.argv[2])

async def main():
    async with open_stdio_link(orphan_grace_s=float(sys.argv[4])) as link:
        await link.send([b"1"], lambda: None)
        while sys.argv[3] == "blocked":
            pass
        while await link.receive():
            pass

trio.run(main)
"""

RUNTIME = """
import os, sys, trio
sys.path.insert(0, sys.argv[2])
from stepflow_trio.transports.process import open_process_link

async def main():
    command = [sys.executable, "-c", *sys.argv[1:]]
    async with open_process_link(command, env={}, cwd="/") as worker:
        assert await worker.link.receive() == [b"1"]
        os.write(1, b"ready")
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize("event_loop", ["idle", "blocked"])
async def test_a_worker_ends_soon_after_its_runtime_is_killed(lifelines: Lifelines, event_loop: str) -> None:
    # An idle worker sees the end of its input. Only a blocked one needs the guard, so only there it is quick.
    grace_s = {"idle": "1000", "blocked": "0.1"}[event_loop]
    command = [sys.executable, "-c", RUNTIME, WORKER, ROOT, lifelines.path, event_loop, grace_s]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as runtime:  # noqa: ASYNC220 — the test waits for it
        lifeline = await lifelines.accept()
        assert runtime.stdout is not None
        assert runtime.stdout.read(5) == b"ready"
        runtime.send_signal(signal.SIGKILL)
        await wait_dead(lifeline)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_blocked_worker_whose_stdin_hung_up_says_so_and_exits(lifelines: Lifelines, kind: str) -> None:
    near, far = socket.socketpair()
    with near, far:
        command = [sys.executable, "-c", WORKER, ROOT, lifelines.path, "blocked", "0.05"]
        stdin = subprocess.PIPE if kind == "pipe" else near.fileno()
        with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
            near.close()
            assert worker.stdout is not None
            assert worker.stderr is not None
            assert worker.stdout.read(2) == b"1\n"
            if worker.stdin is not None:
                worker.stdin.close()
            else:
                far.shutdown(socket.SHUT_WR)
            assert worker.wait(10) == ORPHAN_EXIT_CODE
            assert b"has not ended: exiting" in worker.stderr.read()


async def test_the_guard_lets_a_worker_end_in_order_and_ends_with_it(piped: Ends) -> None:
    with standard_streams(piped.stdin, piped.stdout):
        async with open_stdio_link(orphan_grace_s=1000) as link:
            assert "orphan guard" in [thread.name for thread in threading.enumerate()]
            piped.hang_up()
            assert await link.receive() == []
        assert "orphan guard" not in [thread.name for thread in threading.enumerate()]


async def test_the_guard_ends_with_the_block_although_a_forked_child_lives_on(piped: Ends) -> None:
    with standard_streams(piped.stdin, piped.stdout):
        release, releaser = os.pipe()
        async with open_stdio_link(orphan_grace_s=1000):
            child = os.fork()
            if child == 0:
                signal.alarm(30)  # for a test that fails
                os.read(release, 1)
                os._exit(0)
        os.write(releaser, b"1")
        assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222 — it has been told to end
        os.close(release)
        os.close(releaser)


async def test_a_file_cannot_hang_up_and_needs_no_guard(tmp_path: Path) -> None:
    with ExitStack() as files:
        ends = Ends(files)
        regular_files(ends, tmp_path)
        with standard_streams(ends.stdin, ends.stdout):
            async with open_stdio_link(orphan_grace_s=0) as link:
                assert await link.receive() == []
                assert "orphan guard" not in [thread.name for thread in threading.enumerate()]
