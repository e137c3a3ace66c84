"""This process's own stdin and stdout as a link, kept clean of everything else that writes there."""

from __future__ import annotations

import fcntl
import io
import os
import select
import stat
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import NoReturn, TextIO, TypeVar

import trio

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.protocol.lines import MAX_FRAME_BYTES
from stepflow_trio.transports.descriptors import DescriptorStream
from stepflow_trio.transports.streams import RECEIVE_BYTES, DescriptorLink, StreamLink

T = TypeVar("T")

ORPHAN_EXIT_CODE = 1
"""The exit code of a worker that :func:`open_stdio_link` has ended because it was orphaned."""

# Descriptors 0 and 1 belong to the whole process, so the claim on them does too.
_claimed = threading.Lock()


@asynccontextmanager
async def open_stdio_link(
    *, max_frame_bytes: int = MAX_FRAME_BYTES, orphan_grace_s: float | None = None
) -> AsyncGenerator[StreamLink]:
    """Claim this process's stdin and stdout for a link, for as long as the block lasts.

    Meanwhile descriptor 1 is stderr and descriptor 0 is ``/dev/null``, for this process and what it starts:
    what Python, C code or a child process prints goes to stderr, and so does what was printed before but
    lies in a buffer still. Leaving the block closes the link and gives both descriptors back as they were,
    flags included; so the other end sees stdout's end when the process ends. Pipes, sockets, terminals,
    regular files and ``/dev/null`` will do on either side.

    With ``orphan_grace_s`` the process is ended (``os._exit``) that many seconds after the other end of a
    stdin that is a pipe or a socket has hung up, should the block last so long: a component that blocks the
    event loop would otherwise outlive a runtime that was killed.

    Raises:
        LocalProtocolError: stdin and stdout are claimed already, or one of them is closed.
    """
    with _claim(orphan_grace_s) as (stdin, stdout):
        if isinstance(stdout, DescriptorStream):
            link = DescriptorLink(stdin, stdout, max_frame_bytes=max_frame_bytes)
        else:
            link = StreamLink(stdin, stdout, max_frame_bytes=max_frame_bytes)
        try:
            yield link
        finally:
            await link.aclose()


@contextmanager
def _claim(orphan_grace_s: float | None) -> Generator[tuple[trio.abc.ReceiveStream, trio.abc.SendStream]]:
    if not _claimed.acquire(blocking=False):
        raise LocalProtocolError(
            "stdin and stdout carry a link of this process already: leave its block before opening another"
        )
    with ExitStack() as claim:
        claim.callback(_claimed.release)
        for fd, name in ((0, "stdin"), (1, "stdout")):
            if not _is_open(fd):
                raise LocalProtocolError(f"{name} (descriptor {fd}) is closed: it cannot carry a link")
        stderr = 2 if _is_open(2) else None
        with open(os.devnull, "r+b", buffering=0) as null:
            stdin = claim.enter_context(_diverted(0, onto=null.fileno()))
            stdout = claim.enter_context(_diverted(1, onto=stderr or null.fileno()))
        claim.enter_context(_line_buffered_stdout())
        if orphan_grace_s is not None and _hangs_up(stdin):
            claim.enter_context(_ending_orphan(stdin, orphan_grace_s))
        yield _open_stream(stdin, os.O_RDONLY), _open_stream(stdout, os.O_WRONLY)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@contextmanager
def _diverted(fd: int, *, onto: int) -> Generator[int]:
    """Make ``fd`` another descriptor's twin for a while; yield a private descriptor of what it was."""
    private = _duplicate(fd)
    try:
        os.dup2(onto, fd)
        yield private
    finally:
        os.dup2(private, fd)
        os.close(private)


# ---- what is printed meanwhile --------------------------------------------------------------------------


@contextmanager
def _line_buffered_stdout() -> Generator[None]:
    """Let prints reach stderr line by line, in order with what is logged there, and none come later.

    Changing the buffering also flushes what was printed earlier: stderr is the better place for that too.
    """
    stdout: TextIO | None = sys.stdout
    was_line_buffered = _set_line_buffering(stdout, True)
    try:
        yield
    finally:
        _flush(stdout)
        _flush_c_stdout()
        _set_line_buffering(stdout, was_line_buffered)


def _set_line_buffering(file: object, on: bool) -> bool:
    """Return what it was."""
    was_on = on
    # OSError, ValueError: there is still something to be flushed, and that cannot be.
    with suppress(OSError, ValueError):
        if isinstance(file, io.TextIOWrapper):
            was_on = file.line_buffering
            file.reconfigure(line_buffering=on)
    return was_on


def _flush(file: TextIO | None) -> None:
    # ValueError: somebody has closed it. There is none in a program without a console.
    with suppress(OSError, ValueError):
        if file is not None:
            file.flush()


def _flush_c_stdout() -> None:
    """What C code has printed into its own buffer would otherwise follow the frames at exit."""
    with suppress(ImportError, OSError, ValueError):
        import ctypes  # here: a worker does not need it to be ready

        libc = ctypes.CDLL(None)
        name = "__stdoutp" if sys.platform == "darwin" else "stdout"
        libc.fflush(ctypes.c_void_p.in_dll(libc, name))


# ---- streams over whatever stdin and stdout are ---------------------------------------------------------


def _open_stream(fd: int, access: int) -> trio.abc.Stream:
    # Whether a file blocks is a property that all its descriptors share, in other processes too. A stream
    # puts it back as it found it; so of two over one socket, the one opened last is to be closed first.
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return DescriptorStream(_duplicate(fd))
    if stat.S_ISFIFO(mode) or os.isatty(fd):
        return DescriptorStream(_reopen(fd, access))
    return _FileStream(_duplicate(fd))


def _duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _reopen(fd: int, access: int) -> int:
    """Open the same pipe or terminal once more where the system can.

    A duplicate shares its flags with every process that has the file: made non-blocking, it would make
    the terminal's stderr so too, and leave the shell's like that if this process is killed.
    """
    try:
        own = os.open(f"/dev/fd/{fd}", access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return _duplicate(fd)
    try:
        return _duplicate(own)
    finally:
        os.close(own)


class _FileStream(trio.abc.Stream):
    """A file that the kernel cannot wait for, such as a regular one: read and written in threads.

    A read or write that has begun is completed, cancelled or not. So cancelling loses nothing.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._busy = False
        self._closed = False
        # Its own: components may hold every thread of the common one while they wait for this stream.
        self._limiter = trio.CapacityLimiter(1)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._in_thread(partial(os.read, self._fd, max_bytes or RECEIVE_BYTES))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                with view[sent:] as rest:
                    sent += await self._in_thread(partial(os.write, self._fd, rest))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._closed = True
        self._close_if_idle()
        await trio.lowlevel.checkpoint()

    async def _in_thread(self, act: Callable[[], T]) -> T:
        if self._closed:
            raise trio.ClosedResourceError("this stream is closed")
        self._busy = True
        try:
            return await trio.to_thread.run_sync(act, limiter=self._limiter)
        except OSError as exc:
            raise trio.BrokenResourceError(str(exc)) from exc
        finally:
            self._busy = False
            self._close_if_idle()

    def _close_if_idle(self) -> None:
        # A thread that is about to use the descriptor must not find another file under its number.
        if self._closed and not self._busy and self._fd != -1:
            fd, self._fd = self._fd, -1
            os.close(fd)


# ---- orphans --------------------------------------------------------------------------------------------


def _hangs_up(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


@contextmanager
def _ending_orphan(stdin: int, grace_s: float) -> Generator[None]:
    stop, stopper = os.pipe()
    guard = threading.Thread(
        target=_guard_against_orphaning, args=(stdin, stop, grace_s), name="orphan guard", daemon=True
    )
    guard.start()
    try:
        yield
    finally:
        # Written to, not closed: a child that was forked without exec holds it open as well.
        os.write(stopper, b"\n")
        guard.join()
        os.close(stopper)
        os.close(stop)


def _guard_against_orphaning(stdin: int, stop: int, grace_s: float) -> None:
    """In a thread of its own: the event loop may be what does not run any more."""
    watch = select.poll()
    watch.register(stop, select.POLLIN)
    # A hang-up is always reported. A socket whose other end has only stopped sending says POLLRDHUP, and
    # that is what a closed pipe means as well.
    watch.register(stdin, getattr(select, "POLLRDHUP", 0))
    if any(fd == stop for fd, _ in watch.poll()):
        return
    watch.unregister(stdin)
    if watch.poll(grace_s * 1000):
        return
    end_process(f"stdin was closed {grace_s:g} s ago and the worker has not ended: exiting", ORPHAN_EXIT_CODE)


def end_process(last_word: str, exit_code: int) -> NoReturn:
    """End this process at once, whatever it is at, and say so on stderr where that cannot block."""
    stderr = select.poll()
    stderr.register(2, select.POLLOUT)
    if stderr.poll(0):  # whoever reads it may be stuck
        with suppress(OSError):
            os.write(2, f"{last_word}\n".encode())
    os._exit(exit_code)
