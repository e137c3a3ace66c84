"""The Stepflow protocol on trio: workers, the runtime, and the JSON-RPC engine between them.

* Offer Python functions to any Stepflow runtime: :class:`Worker`, :class:`Context`.
* Run flows over workers in any language: :func:`open_runtime`.
* Speak JSON-RPC 2.0 with exact cancellation over any transport: :func:`open_connection`.

Every exception is in :mod:`stepflow_trio.errors`, whose docstring shows the tree.

A name is imported from its room when it is first used: so a worker's process does not pay for the runtime,
nor ``--help`` for either.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepflow_trio.engine import Connection as Connection
    from stepflow_trio.engine import Handlers as Handlers
    from stepflow_trio.engine import Limits as Limits
    from stepflow_trio.engine import Link as Link
    from stepflow_trio.engine import RequestContext as RequestContext
    from stepflow_trio.engine import open_connection as open_connection
    from stepflow_trio.errors import CallFailed as CallFailed
    from stepflow_trio.errors import CallTimeout as CallTimeout
    from stepflow_trio.errors import ComponentError as ComponentError
    from stepflow_trio.errors import ConfigError as ConfigError
    from stepflow_trio.errors import ConnectionLost as ConnectionLost
    from stepflow_trio.errors import ErrorCode as ErrorCode
    from stepflow_trio.errors import FlowInvalid as FlowInvalid
    from stepflow_trio.errors import LossReason as LossReason
    from stepflow_trio.errors import RpcError as RpcError
    from stepflow_trio.errors import RunCancelled as RunCancelled
    from stepflow_trio.errors import RunFailed as RunFailed
    from stepflow_trio.errors import StepflowError as StepflowError
    from stepflow_trio.flows.builder import FlowBuilder as FlowBuilder
    from stepflow_trio.flows.builder import StepHandle as StepHandle
    from stepflow_trio.flows.builder import Value as Value
    from stepflow_trio.flows.builder import coalesce as coalesce
    from stepflow_trio.flows.builder import if_ as if_
    from stepflow_trio.flows.builder import literal as literal
    from stepflow_trio.flows.model import Fail as Fail
    from stepflow_trio.flows.model import Retry as Retry
    from stepflow_trio.flows.model import UseDefault as UseDefault
    from stepflow_trio.protocol.peer import Role as Role
    from stepflow_trio.runtime import Run as Run
    from stepflow_trio.runtime import Runtime as Runtime
    from stepflow_trio.runtime import open_runtime as open_runtime
    from stepflow_trio.runtime.rest_api import RestApi as RestApi
    from stepflow_trio.transports.http.bearer import BearerTokens as BearerTokens
    from stepflow_trio.transports.http.bearer import SecretStr as SecretStr
    from stepflow_trio.transports.http.limits import HttpClientLimits as HttpClientLimits
    from stepflow_trio.transports.http.limits import HttpServerLimits as HttpServerLimits
    from stepflow_trio.transports.http.links import open_http_link as open_http_link
    from stepflow_trio.transports.http.outbound_urls import OutboundPolicy as OutboundPolicy
    from stepflow_trio.transports.http.security import HttpSecurity as HttpSecurity
    from stepflow_trio.transports.http.security import TlsFiles as TlsFiles
    from stepflow_trio.transports.http.security import client_ssl_context as client_ssl_context
    from stepflow_trio.transports.memory import memory_link_pair as memory_link_pair
    from stepflow_trio.worker import Context as Context
    from stepflow_trio.worker import Worker as Worker

__version__ = "0.1.0"

_ROOMS = {
    "engine": "Connection Handlers Limits Link RequestContext open_connection",
    "errors": "CallFailed CallTimeout ComponentError ConfigError ConnectionLost ErrorCode FlowInvalid "
    "LossReason RpcError RunCancelled RunFailed StepflowError",
    "flows.builder": "FlowBuilder StepHandle Value coalesce if_ literal",
    "flows.model": "Fail Retry UseDefault",
    "protocol.peer": "Role",
    "runtime": "Run Runtime open_runtime",
    "runtime.rest_api": "RestApi",
    "transports.http.bearer": "BearerTokens SecretStr",
    "transports.http.limits": "HttpClientLimits HttpServerLimits",
    "transports.http.links": "open_http_link",
    "transports.http.outbound_urls": "OutboundPolicy",
    "transports.http.security": "HttpSecurity TlsFiles client_ssl_context",
    "transports.memory": "memory_link_pair",
    "worker": "Context Worker",
}
_ROOM_OF = {name: f"stepflow_trio.{room}" for room, names in _ROOMS.items() for name in names.split()}

__all__ = list(_ROOM_OF)  # pyright: ignore[reportUnsupportedDunderAll]: it reads the imports above instead


def __getattr__(name: str) -> object:
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(room), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOM_OF])
