"""What tests of processes look at: descriptors, children, and the ends of processes that are no children."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import trio


def open_files() -> list[str]:
    """What this process has open, without the descriptor that lists it."""
    found: list[str] = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(f"{number} {Path(f'/proc/self/fd/{number}').readlink()}")
        except FileNotFoundError:
            continue
    return sorted(name for name in found if "/fd" not in name)


def has_children() -> bool:
    """Whether this process has a child, running or not reaped."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


class Lifelines:
    """Processes that connect to ``path`` and keep the connection: its end proves theirs, in the kernel."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()

    async def accept(self) -> trio.SocketStream:
        """Wait for the next process to connect."""
        listener = trio.socket.from_stdlib_socket(self._listener)
        connection, _ = await listener.accept()
        return trio.SocketStream(connection)

    def close(self) -> None:
        self._listener.close()


async def wait_dead(lifeline: trio.SocketStream) -> None:
    """Wait until the process at the other end is gone."""
    async with lifeline:
        try:
            while await lifeline.receive_some(4096):
                pass
        except trio.BrokenResourceError:
            pass
