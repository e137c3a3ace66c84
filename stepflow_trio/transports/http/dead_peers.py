"""Has the kernel find out that the host at the other end of a connection is gone without a word."""

from __future__ import annotations

import socket
from contextlib import suppress

import trio

PROBES = 3


def notice_dead_peers(connection: trio.socket.SocketType, after_s: float) -> None:
    """Have a connection, or those of a listener, fail where nothing comes back from the peer for so long.

    A peer that is there and silent answers the kernel's probes, and may go on to be silent.
    """
    with suppress(OSError, AttributeError):  # an option that this system or this kind of socket lacks
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(after_s / 2)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, round(after_s / 2 / PROBES)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(after_s * 1000)))
