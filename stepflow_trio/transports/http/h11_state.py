"""What the HTTP/1.1 connections of one server share."""

from __future__ import annotations

import logging

import trio

from stepflow_trio.transports.http.asgi import AsgiApp
from stepflow_trio.transports.http.h11_heads import KnownHeads
from stepflow_trio.transports.http.http_date import HttpDate
from stepflow_trio.transports.http.limits import HttpServerLimits

log = logging.getLogger("stepflow_trio.transports")


class ServerState:
    """The application, its limits, which connections are idle, and whether the server is stopping."""

    def __init__(self, app: AsgiApp, limits: HttpServerLimits) -> None:
        self.app = app
        self.limits = limits
        self.known_heads = KnownHeads()
        self.date = HttpDate()
        self.stopping = False
        self.idle: dict[trio.CancelScope, float] = {}
        """Of each connection that waits for a request, the scope to cancel, and since when; oldest first."""

    async def close_idle(self) -> None:
        """Close the connections that wait for a request for ``keep_alive_s``. Runs for ever.

        One timer for all of them, for setting one per request costs as much as two headers.
        """
        keep_alive_s = self.limits.keep_alive_s
        while True:
            now = trio.current_time()
            next_due = now + keep_alive_s
            for scope, since in self.idle.items():
                if since + keep_alive_s > now:
                    next_due = since + keep_alive_s
                    break
                scope.cancel()
            await trio.sleep_until(next_due)

    def stop(self) -> None:
        """Close the connections that wait for a request, and each other one after the answer that it owes."""
        self.stopping = True
        for scope in self.idle:
            scope.cancel()
