"""Workers as child processes: start one, talk to it, keep what it says on stderr, and end it for certain."""

from __future__ import annotations

import array
import fcntl
import logging
import os
import shlex
import signal
import subprocess
import termios
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import trio

from stepflow_trio.engine.ending import last_words, one_exception
from stepflow_trio.errors import SpawnFailed, WorkerExited
from stepflow_trio.protocol.lines import MAX_FRAME_BYTES
from stepflow_trio.transports.descriptors import DescriptorStream
from stepflow_trio.transports.programs import TRANSIENT_ERRORS, find_program, why_not_started
from stepflow_trio.transports.streams import RECEIVE_BYTES, DescriptorLink

STDERR_TAIL_LINES = 100
"""The last lines of stderr that are kept (docs/protocol.md, section 3)."""

STDERR_LINE_BYTES = 8 * 2**10
"""Kept of one line of a log; the rest of a longer one is counted and dropped."""

PIPE_BYTES = 2**20
"""Asked for stdin and stdout each: the most that Linux grants an unprivileged process."""

KILL_WAIT_S = 2.0
"""A killed process is gone in milliseconds. One that the kernel holds on to is not waited for longer."""

_log = logging.getLogger("stepflow_trio.transports")


@dataclass(frozen=True, slots=True, kw_only=True)
class StopLadder:
    """How a worker's process is ended: stdin is closed; then SIGTERM, then SIGKILL, to its whole group."""

    stdin_grace_s: float = 5.0
    """Between closing stdin and SIGTERM: what is in flight may finish."""

    term_grace_s: float = 3.0
    """Between SIGTERM and SIGKILL."""

    cancelled_grace_s: float = 1.0
    """At most so long each of the two when the block is cancelled, for then somebody waits to leave."""

    def __post_init__(self) -> None:
        for name in ("stdin_grace_s", "term_grace_s", "cancelled_grace_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")

    @property
    def longest_s(self) -> float:
        """The longest that walking it down can take."""
        return self.stdin_grace_s + self.term_grace_s + KILL_WAIT_S

    def hurried(self) -> StopLadder:
        """The ladder of a cancelled block."""
        return StopLadder(
            stdin_grace_s=min(self.stdin_grace_s, self.cancelled_grace_s),
            term_grace_s=min(self.term_grace_s, self.cancelled_grace_s),
        )


class ChildProcess:
    """A process of a group of its own, which is sure to end inside :func:`ended_for_certain`.

    Args:
        process: as it was started.
        command: what was started.
        stderr: the end of the pipe that its stderr goes to.
        on_log_line: hears every line that is kept in the log; must be quick.
    """

    def __init__(
        self,
        process: trio.Process,
        command: Sequence[str],
        stderr: DescriptorStream,
        *,
        on_log_line: Callable[[str], object] | None,
    ) -> None:
        self._process = process
        self._returncode: int | None = None
        self._outputs: list[ChildOutput] = []
        self._logs: list[_Log] = []
        self._logs_read = trio.Event()
        self._stderr_tail: deque[str] = deque(maxlen=STDERR_TAIL_LINES)
        self._on_log_line = on_log_line
        self.command = shlex.join(command)
        """What was started, as one would type it."""
        self.read_as_log(ChildOutput(stderr), self._take_stderr_line)

    def read_as_log(
        self,
        output: ChildOutput,
        take_line: Callable[[str], object],
        take_end: Callable[[], object] = lambda: None,
    ) -> None:
        """Have :meth:`read_logs` read this as well, give each line to ``take_line``, and tell of its end."""
        self.ends_with_process(output)
        self._logs.append(_Log(output, take_line, take_end))

    def ends_with_process(self, output: ChildOutput) -> None:
        """Let this end when the process does, whoever else holds it open."""
        self._outputs.append(output)

    @property
    def pid(self) -> int:
        """The id of the process and of its group."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code (negative: the signal that killed it); None while it is not known to have ended."""
        return self._returncode

    @property
    def stderr_tail(self) -> tuple[str, ...]:
        """The last lines of its stderr, control characters escaped."""
        return tuple(self._stderr_tail)

    def exit_error(self) -> WorkerExited:
        """How it ended, for those who needed it; whole once :meth:`wait_exited` has returned."""
        return WorkerExited(self.command, self._returncode, self.stderr_tail)

    async def wait_exited(self, timeout_s: float = float("inf")) -> int | None:
        """Wait until the process has ended and its logs have been read.

        Returns:
            Its exit code; None if ``timeout_s`` seconds did not suffice.
        """
        with trio.move_on_after(timeout_s):
            await self._process.wait()
            self._note_exit()
            await self._logs_read.wait()
        return self._returncode

    async def stop(self, ladder: StopLadder) -> None:
        """Walk down the ladder until the process has ended. Leaving its block does this anyway."""
        await self.hang_up(ladder)
        if self._returncode is not None:
            return
        self._signal_group(signal.SIGTERM)
        if await self.wait_exited(ladder.term_grace_s) is not None:
            return
        self._signal_group(signal.SIGKILL)
        if await self.wait_exited(KILL_WAIT_S) is None:
            _log.error(
                "process %d (%s) is still there %g s after SIGKILL", self.pid, self.command, KILL_WAIT_S
            )

    async def hang_up(self, ladder: StopLadder) -> None:
        """The ladder's first rung: what ends this kind of process without a signal; nothing does."""

    async def read_logs(self) -> None:
        """Read its logs to their end, for a full pipe would stop it. One task must always be at it."""
        with one_exception():
            async with trio.open_nursery() as nursery:
                for log in self._logs:
                    nursery.start_soon(log.read, name="read a child's log")
        self._logs_read.set()

    def take_log_line(self, line: str) -> None:
        """Tell ``on_log_line``."""
        if self._on_log_line is not None:
            try:
                self._on_log_line(line)
            except Exception:  # noqa: BLE001 — logs must be read on, whatever is done with them
                _log.exception("on_log_line failed")

    def _take_stderr_line(self, line: str) -> None:
        self._stderr_tail.append(line)
        self.take_log_line(line)

    def _note_exit(self) -> None:
        if self._returncode is None:
            self._returncode = self._process.returncode
            # At once: while the rest of the group lives, its number is not given to another; were nobody
            # left, the system would have to run through all numbers in these few instructions.
            self._signal_group(signal.SIGKILL)
            for output in self._outputs:
                output.end()

    def _signal_group(self, signum: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signum)

    def __repr__(self) -> str:
        state = "running" if self._returncode is None else f"ended: {self._returncode}"
        return f"<{type(self).__name__} {self.pid} {state}: {self.command}>"


class WorkerProcess(ChildProcess):
    """A worker's process, while the block of :func:`open_process_link` lasts."""

    def __init__(
        self,
        process: trio.Process,
        command: Sequence[str],
        stdin: DescriptorStream,
        stdout: DescriptorStream,
        stderr: DescriptorStream,
        *,
        max_frame_bytes: int,
        on_log_line: Callable[[str], object] | None,
    ) -> None:
        super().__init__(process, command, stderr, on_log_line=on_log_line)
        output = ChildOutput(stdout)
        self.ends_with_process(output)
        self.link = DescriptorLink(output, stdin, max_frame_bytes=max_frame_bytes)
        """Its stdin and stdout. When the process ends, what it has written can still be received."""

    async def hang_up(self, ladder: StopLadder) -> None:
        """Close its stdin, and give it the time to finish."""
        await self.link.aclose()
        await self.wait_exited(ladder.stdin_grace_s)


@asynccontextmanager
async def open_process_link(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | os.PathLike[str],
    ladder: StopLadder | None = None,
    on_stderr_line: Callable[[str], object] | None = None,
    max_frame_bytes: int = MAX_FRAME_BYTES,
) -> AsyncGenerator[WorkerProcess]:
    """Start a worker, and end it with the block.

    The program is looked for on this process's ``PATH``, a path counts from ``cwd``. It runs in a session
    of its own, with exactly the environment ``env`` and no descriptors but its stdin, stdout and stderr.
    ``on_stderr_line`` hears each line of its stderr as it comes; it must be quick.

    When the process ends, by itself or not, whoever is left in its process group is killed, and the link
    ends after what was written until then, even if a process outside the group holds the pipe open.

    Leaving the block walks down ``ladder``: in order, or with an exception, it waits as long as the
    graces say; when cancelled, at most ``cancelled_grace_s`` on either rung. Whatever happens, no process
    of the group is left, the process is reaped, and the link is closed. Cancelled while starting, there is
    no process either. The exception that comes out is the block's own, even if the ladder is cancelled;
    only where the block ended in order does that cancellation come out.

    Raises:
        SpawnFailed: the program was not found, or cannot be run; it says why.
    """
    ladder = ladder or StopLadder()
    with ExitStack() as closing:
        process, (stdin, stdout, stderr) = await start_child(command, env, cwd, closing, with_stdin=True)
        worker = WorkerProcess(
            process,
            command,
            stdin,
            stdout,
            stderr,
            max_frame_bytes=max_frame_bytes,
            on_log_line=on_stderr_line,
        )
        async with ended_for_certain(worker, ladder):
            yield worker


async def start_child(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: str | os.PathLike[str],
    closing: ExitStack,
    *,
    with_stdin: bool,
) -> tuple[trio.Process, list[DescriptorStream]]:
    """Start a program in a session of its own; see :func:`open_process_link`.

    No checkpoint lies between its start and the return: the caller's next step must be
    :func:`ended_for_certain`. Without ``with_stdin`` its stdin is empty.

    Returns:
        The process, and this side's ends of the pipes to its stdin (``with_stdin``), stdout and stderr, which
        ``closing`` closes.

    Raises:
        SpawnFailed: nothing was started.
    """
    if isinstance(command, str):
        raise SpawnFailed(command, "it is one string: give the program and its arguments as a list")
    typed = shlex.join(command)
    if not command:
        raise SpawnFailed(typed, "the command is empty")
    try:
        program = await trio.to_thread.run_sync(find_program, command[0], os.fspath(cwd))
    except (OSError, ValueError) as exc:
        raise SpawnFailed(typed, str(exc)) from exc
    try:
        with ExitStack() as childs:
            # Made before the process is: once that runs, nothing may fail any more.
            stdin = [_open_pipe(closing, childs, to_child=True)] if with_stdin else []
            stdout = _open_pipe(closing, childs, to_child=False)
            stderr = _open_pipe(closing, childs, to_child=False)
            for own, _ in stdin:
                # Then messages travel over them, and not only what is logged.
                _enlarge(own)
                _enlarge(stdout[0])
            # No checkpoint lies between the start in a thread, which is waited for even when cancelled,
            # and the return.
            process = await trio.lowlevel.open_process(
                [program, *command[1:]],
                stdin=stdin[0][1] if stdin else subprocess.DEVNULL,
                stdout=stdout[1],
                stderr=stderr[1],
                env=dict(env),
                cwd=os.fspath(cwd),
                start_new_session=True,
            )
            return process, [own for own, _ in (*stdin, stdout, stderr)]
    except (OSError, ValueError) as exc:
        is_transient = isinstance(exc, OSError) and exc.errno in TRANSIENT_ERRORS
        raise SpawnFailed(typed, why_not_started(exc, program), is_transient=is_transient) from exc


@asynccontextmanager
async def ended_for_certain(child: ChildProcess, ladder: StopLadder) -> AsyncGenerator[None]:
    """Read a child's logs while the block lasts, and end it with the block; see :func:`open_process_link`."""
    try:
        with one_exception():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child.read_logs, name="read a child's logs")
                nursery.start_soon(child.wait_exited, name="wait for a child's exit")
                yield
                nursery.cancel_scope.cancel(reason="the block has ended")
    except BaseException:
        # It ends what was cancelled as well as `Cancelled` does, which would hide it.
        with suppress(trio.Cancelled):
            await _end_for_certain(child, ladder)
        raise
    else:
        await _end_for_certain(child, ladder)


async def _end_for_certain(child: ChildProcess, ladder: StopLadder) -> None:
    try:
        await _end(child, ladder)
    finally:
        if child.returncode is None:
            hurried = ladder.hurried()
            # One second more than it can take, so that it ends by itself.
            await last_words(partial(_end, child, hurried), within_s=hurried.longest_s + 1)


async def _end(child: ChildProcess, ladder: StopLadder) -> None:
    with one_exception():
        async with trio.open_nursery() as nursery:
            # One that has much to say at its end must not wait for a reader.
            nursery.start_soon(child.read_logs, name="read a child's logs")
            await child.stop(ladder)
            nursery.cancel_scope.cancel(reason="the process has ended")


def _open_pipe(closing: ExitStack, childs: ExitStack, *, to_child: bool) -> tuple[DescriptorStream, int]:
    """This side's end, which is closed with ``closing``, and the child's, which is closed with ``childs``."""
    reader, writer = os.pipe()
    own, given = (writer, reader) if to_child else (reader, writer)
    childs.callback(os.close, given)
    stream = DescriptorStream(own)
    closing.callback(stream.close)
    return stream, given


def _enlarge(pipe: DescriptorStream) -> None:
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        # Refused where this user's pipes hold much already: then it is only slower.
        with suppress(OSError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


class ChildOutput(trio.abc.ReceiveStream):
    """A pipe from a child. After the child's end it yields what lies in it, whoever else holds it open."""

    def __init__(self, pipe: DescriptorStream) -> None:
        self._pipe = pipe
        self._left: int | None = None
        self._waiting: trio.CancelScope | None = None

    def end(self) -> None:
        """The child is gone: what lies in the pipe now is the rest."""
        if self._left is None and self._pipe.fileno() != -1:
            unread = array.array("i", [0])
            fcntl.ioctl(self._pipe.fileno(), termios.FIONREAD, unread)
            self._left = unread[0]
            if self._waiting is not None:
                self._waiting.cancel(reason="the child is gone")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes; return some, or none at the end. Cancelling loses no byte."""
        while self._left is None:
            with trio.CancelScope() as self._waiting:
                return self._counted(await self._pipe.receive_some(max_bytes))
        if self._left <= 0:
            await trio.lowlevel.checkpoint()
            return b""
        return self._counted(await self._pipe.receive_some(min(max_bytes or RECEIVE_BYTES, self._left)))

    def _counted(self, data: bytes) -> bytes:
        # The end may have come between the moment when data were there and the one when they were read. What
        # others have written in between is then among them, and more is read than was left.
        if self._left is not None:
            self._left -= len(data)
        return data

    async def aclose(self) -> None:
        """Close the pipe."""
        await self._pipe.aclose()

    def __repr__(self) -> str:
        return f"<pipe {self._pipe.fileno()} from a child>"


class _Log:
    """Reads one output of a child line by line."""

    def __init__(
        self, output: ChildOutput, take_line: Callable[[str], object], take_end: Callable[[], object]
    ) -> None:
        self._output = output
        self._take_line = take_line
        self._take_end = take_end
        self._lines = _LogLines()

    async def read(self) -> None:
        """Read to the end. Cancelling loses nothing."""
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await self._output.receive_some(RECEIVE_BYTES):
                for line in self._lines.feed(data):
                    self._take_line(line)
        for line in self._lines.feed_eof():
            self._take_line(line)
        self._take_end()


class _LogLines:
    """Cuts what a worker logs into lines for people and terminals, however hostile the worker is."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._dropped_bytes = 0

    def feed(self, data: bytes) -> list[str]:
        *ends, rest = data.split(b"\n")
        lines: list[str] = []
        for end in ends:
            self._keep(end)
            lines.append(self._finish())
        self._keep(rest)
        return lines

    def feed_eof(self) -> list[str]:
        return [self._finish()] if self._line else []

    def _keep(self, part: bytes) -> None:
        room = STDERR_LINE_BYTES - len(self._line)
        self._line += part[:room]
        self._dropped_bytes += max(0, len(part) - room)

    def _finish(self) -> str:
        text = bytes(self._line).removesuffix(b"\r").decode(errors="backslashreplace")
        if self._dropped_bytes:
            text += f" … ({self._dropped_bytes} bytes more)"
        self._line.clear()
        self._dropped_bytes = 0
        return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable() or character == "\t":
        return character
    return character.encode("unicode_escape").decode()
