"""The fast HTTP host: HTTP/1.1 on trio and h11, for loopback and for whoever wants its speed."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from stepflow_trio.engine.ending import one_exception
from stepflow_trio.transports.http.accepting import Address, serve_connections
from stepflow_trio.transports.http.asgi import AsgiApp
from stepflow_trio.transports.http.h11_connection import serve_connection
from stepflow_trio.transports.http.h11_state import ServerState
from stepflow_trio.transports.http.limits import HttpServerLimits


async def serve_h11(
    app: AsgiApp,
    listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
    *,
    limits: HttpServerLimits,
    stop: trio.Event,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` on these listeners, which it owns and closes, until ``stop`` is set.

    Then it closes the listeners and the connections without a request at once, lets requests in flight
    finish for ``limits.drain_s``, cancels them, and returns. Cancelled, it closes everything at once. Either
    way an application that holds out against its cancellation is waited for.

    No client and no exception of the application ends it. An exception before the answer's beginning is
    answered 500; after it the connection is closed, short of the answer's end. The log has it, by incident.
    ``lifespan`` is not sent; ``websocket`` does not occur. How a connection is served is said at
    :func:`~stepflow_trio.transports.http.h11_connection.serve_connection`.

    Raises:
        OSError: a listener does not work any more.
    """
    state = ServerState(app, limits)

    async def serve(stream: trio.abc.Stream, client: Address | None, server: Address | None) -> None:
        await serve_connection(stream, state, client=client, server=server)

    with one_exception():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(state.close_idle)
            await serve_connections(
                serve, listeners, limits=limits, stop=stop, drain=state.stop, task_status=task_status
            )
            nursery.cancel_scope.cancel()
