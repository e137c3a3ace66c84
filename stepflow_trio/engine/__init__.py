"""JSON-RPC connections on trio: a :class:`Link` and a ``Peer`` become calls, callbacks and handlers."""

from stepflow_trio.engine.connection import Connection
from stepflow_trio.engine.handlers import Handlers, RequestContext
from stepflow_trio.engine.limits import Limits
from stepflow_trio.engine.link import Link
from stepflow_trio.engine.link_connection import LinkConnection, open_connection
from stepflow_trio.engine.statistics import ConnectionStatistics

__all__ = [
    "Connection",
    "ConnectionStatistics",
    "Handlers",
    "Limits",
    "Link",
    "LinkConnection",
    "RequestContext",
    "open_connection",
]
