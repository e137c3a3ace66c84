"""The bytes of one server connection, at the cost of one system call where one will do."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress

import trio

RECEIVE_BYTES = 64 * 2**10
"""Asked for in one read."""

SEND_BYTES = 64 * 2**10
"""Given at once to a stream that does not tell what it has taken: one that takes it slowly is seen to."""

LINGER_S = 2.0
LINGER_BYTES = 2**20
"""Behind the last answer so much is read and thrown away, for so long, unless the client closes before: to
close over unread bytes resets the connection, and a reset can take the answer away from the client."""

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""A value of ``SO_LINGER``: closing drops what the client has not taken."""


class Wire:
    """A stream to a client, which it owns; a socket is read and written without trio's detours.

    Receiving from a socket waits before it reads, for the one who answers requests has nearly always read
    all there was. Sending writes before it waits, for there is nearly always room; so :meth:`send` is a
    checkpoint only where it must wait. One task may receive while another sends.
    """

    def __init__(self, stream: trio.abc.Stream, *, send_timeout_s: float) -> None:
        self._stream = stream
        self._send_timeout_s = send_timeout_s
        self._is_socket = isinstance(stream, trio.SocketStream)
        self._fd = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else -1
        self._closed = False

    async def receive(self) -> bytes:
        """Wait for bytes and return some; none where the client has closed, or nothing can come any more.

        Cancelling loses no byte.
        """
        while not self._closed:
            try:
                if not self._is_socket:
                    return bytes(await self._stream.receive_some(RECEIVE_BYTES))
                await trio.lowlevel.wait_readable(self._fd)
                # If it was closed meanwhile, its number may be another's now: hence −1, not the number.
                return os.read(self._fd, RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                break
        return b""

    def receive_nowait(self) -> bytes:
        """Return what a socket has received already, or nothing."""
        if self._is_socket:
            with suppress(OSError):
                return os.read(self._fd, RECEIVE_BYTES)
        return b""

    async def send(self, data: bytes) -> None:
        """Send all of it, waiting where the client is slow.

        If it does not end well, by a cancellation either, the connection is closed: nobody knows how much of
        the data arrived.

        Raises:
            BrokenPipeError: the client is gone, or took no bytes for ``send_timeout_s``.
        """
        try:
            if self._is_socket:
                await self._send_to_socket(data)
            else:
                for start in range(0, len(data), SEND_BYTES):
                    with trio.fail_after(self._send_timeout_s):
                        await self._stream.send_all(memoryview(data)[start : start + SEND_BYTES])
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            await self.abort()
            raise BrokenPipeError("the client has closed the connection") from exc
        except trio.TooSlowError:
            await self.abort()
            raise BrokenPipeError(f"the client took no bytes for {self._send_timeout_s:g} s") from None
        except BaseException:
            await self.abort()
            raise

    async def _send_to_socket(self, data: bytes) -> None:
        sent = 0
        while True:
            try:
                sent += os.write(self._fd, memoryview(data)[sent:] if sent else data)
            except BlockingIOError:
                with trio.fail_after(self._send_timeout_s):
                    await trio.lowlevel.wait_writable(self._fd)
            if sent == len(data):
                return

    async def send_eof(self) -> None:
        """Tell the client that no more comes, where the stream can."""
        if isinstance(self._stream, trio.abc.HalfCloseableStream) and not self._closed:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_eof()

    async def close(self) -> None:
        """Close now, also when cancelled; twice is once. Whoever receives is given nothing."""
        if not self._closed:
            self._closed = True
            self._fd = -1
            await trio.aclose_forcefully(self._stream)

    async def abort(self) -> None:
        """Close now, dropping what the client has not taken: it sees a reset, which no end can be."""
        if isinstance(self._stream, trio.SocketStream) and not self._closed:
            with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        await self.close()
