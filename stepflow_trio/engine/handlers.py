"""What a connection does with the peer's requests and notifications."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec
import trio
from msgspec import UNSET

from stepflow_trio.errors import ErrorCode, RpcError
from stepflow_trio.protocol.messages import RequestId
from stepflow_trio.protocol.methods import Method, NotificationMethod, split_validation_error
from stepflow_trio.protocol.peer import InboundRequest

if TYPE_CHECKING:
    from stepflow_trio.engine.connection import Connection

ParamsT = TypeVar("ParamsT")
ResultT = TypeVar("ResultT")


class RequestContext:
    """One request of the peer's while it is handled."""

    __slots__ = ("connection", "inbound", "scope")

    def __init__(self, connection: Connection, inbound: InboundRequest) -> None:
        self.connection = connection
        """Where it came from: call back through it."""
        self.inbound = inbound
        self.scope: trio.CancelScope | None = None
        """Cancelled when the peer gives the request up or the connection is lost. None while the request
        waits for a place, and for one that is answered without a task."""

    @property
    def id(self) -> RequestId:
        """The request's id as it came."""
        return self.inbound.id

    @property
    def method(self) -> str:
        """The method asked for."""
        return self.inbound.method

    def __repr__(self) -> str:
        return f"<RequestContext {self.id!r} {self.method}>"


RawHandler: TypeAlias = Callable[[Any, RequestContext], Any]
"""Takes decoded params (``msgspec.UNSET`` where there are none); returns the result or a coroutine of it."""


class Handlers:
    """The methods that one end offers.

    A handler is called in the reader. What it returns is the answer at once; if that is a coroutine, it is
    given a task with a cancel scope of its own and answers when it is done. So a plain function must be
    quick, and costs no task.

    A handler fails a request by raising: an :class:`RpcError` travels as it is, anything else as −32603 with
    an incident id, under which the log has the traceback.
    """

    def __init__(self) -> None:
        self._requests: dict[str, RawHandler] = {}
        self._notifications: dict[str, Callable[[Any, Connection], object]] = {}

    def on_request(
        self,
        method: Method[ParamsT, ResultT],
        handler: Callable[[ParamsT, RequestContext], ResultT | Coroutine[Any, Any, ResultT]],
    ) -> None:
        """Answer a method of the protocol; params that do not fit are answered −32602 with the JSON path."""
        read = method.read_params

        def typed(params: Any, context: RequestContext) -> Any:
            return handler(read(params), context)

        self.on_raw_request(method.name, typed)

    def on_raw_request(self, method: str, handler: RawHandler) -> None:
        """Answer any method, params as decoded."""
        if method in self._requests:
            raise ValueError(f"method {method!r} has a handler already")
        self._requests[method] = handler

    def on_notification(
        self, method: NotificationMethod[ParamsT], handler: Callable[[ParamsT, Connection], object]
    ) -> None:
        """Hear a notification; one whose params do not fit is dropped. The handler must be quick."""

        def typed(params: Any, connection: Connection) -> object:
            try:
                read = msgspec.convert({} if params is UNSET else params, method.params)
            except msgspec.ValidationError as exc:
                problem, path = split_validation_error(exc)
                raise RpcError(ErrorCode.INVALID_PARAMS, f"{method.name}: {problem} at {path}") from exc
            return handler(read, connection)

        self.on_raw_notification(method.name, typed)

    def on_raw_notification(self, method: str, handler: Callable[[Any, Connection], object]) -> None:
        """Hear any notification, params as decoded. The handler must be quick."""
        if method in self._notifications:
            raise ValueError(f"notification {method!r} has a handler already")
        self._notifications[method] = handler

    def for_request(self, method: str) -> RawHandler:
        """The handler of ``method``.

        Raises:
            RpcError: −32601, with the closest name there is.
        """
        handler = self._requests.get(method)
        if handler is None:
            data: dict[str, Any] = {"method": method[:200]}
            if close := difflib.get_close_matches(method[:200], self._requests, n=1):
                data["suggestion"] = close[0]
            raise RpcError(ErrorCode.METHOD_NOT_FOUND, "Method not found", data)
        return handler

    def for_notification(self, method: str) -> Callable[[Any, Connection], object] | None:
        """The handler of a notification, if there is one."""
        return self._notifications.get(method)
