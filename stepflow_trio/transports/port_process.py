"""Workers over HTTP as child processes: start one, learn its port, keep what it logs, end it for certain."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import cast

import trio

from stepflow_trio.errors import SpawnFailed
from stepflow_trio.protocol.codec import decode_json
from stepflow_trio.transports.descriptors import DescriptorStream
from stepflow_trio.transports.orphan_guard import open_orphan_guard
from stepflow_trio.transports.process import (
    ChildOutput,
    ChildProcess,
    StopLadder,
    ended_for_certain,
    start_child,
)

PORT_TIMEOUT_S = 30.0
"""A worker that has not said its port by then is given up; as long as the public runtimes wait."""

EXIT_NOTICE_S = 1.0
"""After a worker's stdout has closed, how long its exit is waited for before it counts as alive."""


class PortProcess(ChildProcess):
    """A worker's process that says where it can be reached; see :func:`open_port_process`."""

    def __init__(
        self,
        process: trio.Process,
        command: Sequence[str],
        stdout: DescriptorStream,
        stderr: DescriptorStream,
        *,
        on_log_line: Callable[[str], object] | None,
    ) -> None:
        super().__init__(process, command, stderr, on_log_line=on_log_line)
        self._port: int | None = None
        self._port_known = trio.Event()
        self.read_as_log(ChildOutput(stdout), self._take_stdout_line, self._port_known.set)

    async def wait_port(self, timeout_s: float = PORT_TIMEOUT_S) -> int:
        """Wait until it has said its port.

        Raises:
            WorkerExited: it ended before it did, whatever of its group is still there.
            SpawnFailed: it closed its stdout, or ``timeout_s`` seconds have passed, without it.
        """
        with trio.move_on_after(timeout_s):
            await self._port_known.wait()
        if self._port is not None:
            return self._port
        is_late = not self._port_known.is_set()
        if is_late:
            what = f'it wrote no line such as {{"port": 8080}} to its stdout within {timeout_s:g} s'
        elif await self.wait_exited(EXIT_NOTICE_S) is not None:
            raise self.exit_error()
        else:
            what = 'it closed its stdout without having written a line such as {"port": 8080}'
        raise SpawnFailed(self.command, what + self.last_lines(), is_late=is_late)

    def last_lines(self) -> str:
        """What it last wrote to stderr, to be added to an error."""
        last = "".join(f"\n  | {line}" for line in self.stderr_tail[-20:])
        return f"; the last lines of its stderr:{last}" if last else "; it wrote nothing to stderr"

    def _take_stdout_line(self, line: str) -> None:
        port = None if self._port_known.is_set() else port_in(line)
        if port is None:
            self.take_log_line(line)
        else:
            self._port = port
            self._port_known.set()


def port_in(line: str) -> int | None:
    """The port that a line such as ``{"port": 8080}`` says, further keys or not; None for any other line."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        said = decode_json(line.encode())
    except ValueError:
        return None
    port: object = cast("dict[str, object]", said).get("port")
    if isinstance(port, int) and not isinstance(port, bool) and 0 < port < 2**16:
        return port
    return None


@asynccontextmanager
async def open_port_process(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | os.PathLike[str],
    ladder: StopLadder | None = None,
    on_log_line: Callable[[str], object] | None = None,
) -> AsyncGenerator[PortProcess]:
    """Start a worker over HTTP, and end it with the block.

    It is started and ended as :func:`~stepflow_trio.transports.process.open_process_link` says, but that its
    stdin is empty, so that the ladder begins with SIGTERM. It must write one line ``{"port": N}`` to its
    stdout (docs/protocol.md, section 4). Its other lines there and those of its stderr, from first to last,
    are log lines: ``on_log_line`` hears each as it comes, and must be quick.

    Should this process be killed, the worker's process group gets SIGTERM at once, and SIGKILL three seconds
    later (:mod:`~stepflow_trio.transports.orphan_guard`).

    Raises:
        SpawnFailed: the program was not found, or cannot be run; it says why.
    """
    with ExitStack() as closing:
        async with open_orphan_guard() as guard:
            process, (stdout, stderr) = await start_child(command, env, cwd, closing, with_stdin=False)
            guard.watch(process.pid)
            worker = PortProcess(process, command, stdout, stderr, on_log_line=on_log_line)
            async with ended_for_certain(worker, ladder or StopLadder()):
                yield worker
