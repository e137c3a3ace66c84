"""The Stepflow protocol on trio: workers, the runtime, and the JSON-RPC engine between them.

* Offer Python functions to any Stepflow runtime: :class:`Worker`, :class:`Context`.
* Run flows over workers in any language: :func:`open_runtime`.
* Speak JSON-RPC 2.0 with exact cancellation over any transport: :func:`open_connection`.

Every exception is in :mod:`stepflow_trio.errors`, whose docstring shows the tree.
"""

from stepflow_trio.engine import Connection, Handlers, Limits, Link, RequestContext, open_connection
from stepflow_trio.errors import (
    CallFailed,
    CallTimeout,
    ComponentError,
    ConfigError,
    ConnectionLost,
    ErrorCode,
    FlowInvalid,
    LossReason,
    RpcError,
    RunCancelled,
    RunFailed,
    StepflowError,
)
from stepflow_trio.runtime import Run, Runtime, open_runtime
from stepflow_trio.transports.memory import memory_link_pair
from stepflow_trio.worker import Context, Worker

__version__ = "0.1.0"

__all__ = [
    "CallFailed",
    "CallTimeout",
    "ComponentError",
    "ConfigError",
    "Connection",
    "ConnectionLost",
    "Context",
    "ErrorCode",
    "FlowInvalid",
    "Handlers",
    "Limits",
    "Link",
    "LossReason",
    "RequestContext",
    "RpcError",
    "Run",
    "RunCancelled",
    "RunFailed",
    "Runtime",
    "StepflowError",
    "Worker",
    "memory_link_pair",
    "open_connection",
    "open_runtime",
]
