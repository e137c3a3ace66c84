"""A byte stream over one file descriptor, at the cost of one system call where one will do."""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

MAX_RECEIVE_BYTES = 64 * 2**10
"""Asked for in one read where the caller does not say; what a pipe holds by default."""


class DescriptorStream(trio.abc.Stream):
    """Reads or writes a pipe, socket or terminal, and owns its descriptor.

    It differs from ``trio.lowlevel.FdStream`` in what it does first. Receiving waits for data before it
    reads, for the one who answers requests has nearly always read all there was. Sending writes before it
    waits, for there is nearly always room; so :meth:`send_all` is a checkpoint only where it must wait.
    Together they save a fifth of what a lone request costs a worker (``benchmarks/stdio_worker.py``).

    Cancelling :meth:`receive_some` loses no byte; of what :meth:`send_all` was given some, all or nothing
    may have been written. Whether the file blocks is put back on closing as it was: every descriptor of the
    file shares that, in other processes too.
    """

    _fd = -1

    def __init__(self, fd: int) -> None:
        self._was_blocking = os.get_blocking(fd)
        self._fd = fd
        os.set_blocking(fd, False)

    def fileno(self) -> int:
        """The descriptor; −1 when closed."""
        return self._fd

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes; return some, or none at the end."""
        while True:
            self._check_open()
            await trio.lowlevel.wait_readable(self._fd)
            try:
                return os.read(self._fd, max_bytes or MAX_RECEIVE_BYTES)
            except BlockingIOError:
                continue  # another process that holds the same pipe was faster
            except OSError as exc:
                raise trio.BrokenResourceError(f"cannot read: {exc.strerror}") from exc

    async def send_all(
        self, data: bytes | bytearray | memoryview, progressed: Callable[[], object] | None = None
    ) -> None:
        """Write all of it, waiting where the pipe is full; call ``progressed`` whenever it took some."""
        with memoryview(data) as view:
            written = 0
            while written < len(view):
                self._check_open()
                try:
                    with view[written:] as rest:
                        written += os.write(self._fd, rest)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._fd)
                except OSError as exc:
                    raise trio.BrokenResourceError(f"cannot write: {exc.strerror}") from exc
                else:
                    if progressed is not None:
                        progressed()

    def send_nowait(self, data: bytes) -> int:
        """Write what there is room for; return how many bytes that was. Raises as :meth:`send_all` does."""
        self._check_open()
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise trio.BrokenResourceError(f"cannot write: {exc.strerror}") from exc

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room, or the other end is gone."""
        self._check_open()
        await trio.lowlevel.wait_writable(self._fd)

    def close(self) -> None:
        """Close the descriptor now; whoever waits for it is woken with ``trio.ClosedResourceError``."""
        if self._fd != -1:
            fd, self._fd = self._fd, -1
            trio.lowlevel.notify_closing(fd)
            os.set_blocking(fd, self._was_blocking)
            os.close(fd)

    def __del__(self) -> None:
        if self._fd != -1:
            os.close(self._fd)

    async def aclose(self) -> None:
        """Close the descriptor, also when cancelled."""
        self.close()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._fd == -1:
            raise trio.ClosedResourceError("this stream is closed")
