"""One runtime's connection to a worker: what it is answered."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable, iscoroutine
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import outcome
import trio

from stepflow_trio.engine import Connection, Handlers, RequestContext
from stepflow_trio.errors import CallFailed, ConfigError, ErrorCode, RpcError
from stepflow_trio.protocol import codec, dialects, methods
from stepflow_trio.protocol.blob_refs import has_refs
from stepflow_trio.protocol.dialects import Dialect, Hello, TransportKind
from stepflow_trio.protocol.paths import PathTable
from stepflow_trio.protocol.payloads import (
    ComponentInfo,
    ExecuteParams,
    ExecuteResult,
    InferSchemaParams,
    InferSchemaResult,
    InfoParams,
    InfoResult,
    ListParams,
    ListResult,
)
from stepflow_trio.worker.component import Component
from stepflow_trio.worker.context import Context
from stepflow_trio.worker.outputs import OutputInvalid, check_output
from stepflow_trio.worker.threads import ThreadPlace, ThreadPool, call_in_thread

if TYPE_CHECKING:
    from stepflow_trio.worker.blob_client import BlobClient, BlobClients

_log = logging.getLogger("stepflow_trio.worker")

_BELOW_COMPONENTS = tuple(
    f"{directory}{os.sep}"
    for directory in (Path(trio.__file__).parent, Path(outcome.__file__).parent, Path(__file__).parent)
)
"""What calls components: its frames are of no use to their authors."""

MAX_MESSAGE_CHARS = 65_536
"""Of a component's error message so much is sent; what is longer belongs into a blob or the log."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a runtime has said of itself, and where it was when it said so."""

    hello: Hello
    client: str | None
    """The address that it called from, where it called over a network."""


class Agreement:
    """What the last runtime that introduced itself has said. Sessions may share one."""

    def __init__(self) -> None:
        hello = Hello(dialect=Dialect.V0_11, version=dialects.PROTOCOL_VERSION, assumed=True)
        self.last = Introduction(hello, None)


class Session:
    """Answers one runtime.

    Args:
        components: what it may execute.
        threads: where components that are plain functions run.
        transport: how it is reached.
        debug: tell it the tracebacks of components.
        hello: what it has said of itself, where that is known already.
        client: the address that it calls from, where it calls over a network.
        is_authenticated: it bore a token or a certificate.
        blob_clients: for blobs that it has at a URL.
    """

    def __init__(
        self,
        components: PathTable[Component],
        *,
        threads: ThreadPool,
        transport: TransportKind,
        debug: bool,
        hello: Hello | None = None,
        client: str | None = None,
        is_authenticated: bool = False,
        blob_clients: BlobClients | None = None,
    ) -> None:
        self._components = components
        self._threads = threads
        self._transport: TransportKind = transport
        self._debug = debug
        self._client = client
        self._is_authenticated = is_authenticated
        self._blob_clients = blob_clients
        self.agreement = Agreement()
        """What was negotiated; kept here, and nowhere else."""
        if hello is not None:
            self._meet(hello)
        self.handlers = self._make_handlers()
        """The methods that a worker offers."""

    @property
    def peer_extensions(self) -> frozenset[str]:
        """What the runtime understands beyond the specification."""
        return self.agreement.last.hello.extensions

    def _make_handlers(self) -> Handlers:
        handlers = Handlers()
        handlers.on_raw_request(methods.INITIALIZE, self._initialize)
        handlers.on_raw_notification(methods.INITIALIZED, _ignore)
        handlers.on_request(methods.COMPONENTS_LIST, self._list)
        handlers.on_request(methods.COMPONENTS_INFO, self._info)
        handlers.on_request(methods.COMPONENTS_EXECUTE, self._execute)
        handlers.on_request(methods.COMPONENTS_INFER_SCHEMA, self._infer_schema)
        return handlers

    def _initialize(self, params: Any, request: RequestContext) -> dict[str, Any]:
        hello = dialects.read_initialize_params(params, self._transport)
        self._meet(hello)
        request.connection.peer_extensions = hello.extensions
        return dialects.write_initialize_result(hello, supports_blob_refs=self._blob_clients is not None)

    def _meet(self, hello: Hello) -> None:
        """Rely on what a runtime says of itself from now on.

        Raises:
            RpcError: −32602, its blobs are at what is no URL.
        """
        if self._blob_clients is not None and hello.blob_api_url is not None:
            from stepflow_trio.transports.http.urls import HttpUrl  # only where there is HTTP at all

            try:
                HttpUrl.parse(hello.blob_api_url)
            except ConfigError as exc:
                raise RpcError(ErrorCode.INVALID_PARAMS, f"blobApiUrl cannot be used: {exc}") from exc
        self.agreement.last = Introduction(hello, self._client)

    def _list(self, _params: ListParams, _request: RequestContext) -> ListResult:
        return ListResult([_info_of(component) for component in self._components.values()])

    def _info(self, params: InfoParams, _request: RequestContext) -> InfoResult:
        component, _ = self._find(params.component)
        return InfoResult(_info_of(component))

    def _infer_schema(self, params: InferSchemaParams, _request: RequestContext) -> InferSchemaResult:
        component, _ = self._find(params.component)
        return InferSchemaResult(output_schema=component.output_schema)

    def _find(self, path: str) -> tuple[Component, Mapping[str, str]]:
        found = self._components.match(path)
        if found is None:
            shown = path if len(path) <= 200 else path[:200] + "…"
            data: dict[str, Any] = {"component": shown, "available_components": self._components.patterns()}
            if close := self._components.closest(path, 1):
                data["suggestion"] = f"did you mean {close[0]}?"
            raise RpcError(ErrorCode.COMPONENT_NOT_FOUND, f"Component {shown} not found", data)
        return found

    def _execute(
        self, params: ExecuteParams, request: RequestContext
    ) -> ExecuteResult | Coroutine[Any, Any, ExecuteResult]:
        component, path_params = self._find(params.component)
        timeout_s = params.timeout_s
        met = self.agreement.last
        context = Context(
            request.connection,
            met.hello,
            component=params.component,
            attempt=params.attempt,
            observability=params.observability,
            deadline=trio.current_time() + timeout_s if isinstance(timeout_s, float) else None,
        )
        has_blob_api = self._blob_clients is not None and met.hello.blob_api_url is not None
        if component.kind != "inline" or (has_blob_api and has_refs(params.input)):
            return self._execute_in_task(component, params.input, context, path_params, met)
        token = context.enter()
        try:
            args, kwargs = component.bind(params.input, context, path_params)
            output = check_output(_call_plain(component.fn, args, kwargs))
        except KeyboardInterrupt:
            raise  # as in _run()
        except BaseException as exc:
            raise self._failure(exc, component, context) from exc
        finally:
            context.leave(token)
        threshold = met.hello.blob_threshold
        if has_blob_api and threshold and len(codec.encode_json(output)) > threshold:
            return self._offload_in_task(output, met)
        return ExecuteResult(output)

    async def _execute_in_task(
        self,
        component: Component,
        input: Any,
        context: Context,
        path_params: Mapping[str, str],
        met: Introduction,
    ) -> ExecuteResult:
        async with self._blob_client(met) as client:
            output = await self._run(component, input, context, path_params, client)
            return await _offload(output, client, met)

    async def _run(
        self,
        component: Component,
        input: Any,
        context: Context,
        path_params: Mapping[str, str],
        client: BlobClient | None,
    ) -> Any:
        if client is not None:
            from stepflow_trio.worker.blob_refs import resolve_input  # only where there is HTTP at all

            context.use_blobs(client)
            input = await resolve_input(input, client)
        token = context.enter()
        try:
            args, kwargs = component.bind(input, context, path_params)
            if component.kind == "async":
                output = component.fn(*args, **kwargs)
                if isawaitable(output):  # not where a decorator made a plain function of an async one
                    output = await output
            elif component.kind == "inline":
                output = _call_plain(component.fn, args, kwargs)
            else:
                place = ThreadPlace(self._threads)
                context.use_thread(place)
                output = await call_in_thread(partial(_call_plain, component.fn, args, kwargs), place)
            return check_output(output)
        except BaseException as exc:
            if (rest := _not_its_own(exc)) is not None:
                raise rest  # noqa: B904 — a part of what is being handled
            raise self._failure(exc, component, context) from exc
        finally:
            context.leave(token)

    async def _offload_in_task(self, output: Any, met: Introduction) -> ExecuteResult:
        async with self._blob_client(met) as client:
            return await _offload(output, client, met)

    def _blob_client(self, met: Introduction) -> AbstractAsyncContextManager[BlobClient | None]:
        """How to reach the runtime's blobs, where they are at a URL. It has the rights of who named that."""
        if self._blob_clients is None or met.hello.blob_api_url is None:
            return nullcontext()
        return self._blob_clients.client_for(
            met.hello.blob_api_url, peer_host=met.client, peer_is_authenticated=self._is_authenticated
        )

    def _failure(self, exc: BaseException, component: Component, context: Context) -> RpcError:
        """What the runtime is told: an error that the author meant, or the type and message of any other."""
        exc = _only_leaf(exc)
        if isinstance(exc, RpcError) and not isinstance(exc, CallFailed):
            return _sayable(exc.code, exc.message, exc.data)
        kind = type(exc).__name__
        raised = (type(exc), exc, _from_component_on(exc.__traceback__))
        _log.error("component %s failed (run %s)", component.path, context.run_id, exc_info=raised)
        data: dict[str, Any] = {"component": context.component, "exception": kind}
        if isinstance(exc, CallFailed):
            data["cause"] = {"code": exc.code, "message": exc.message, "data": exc.data}
        if self._debug:
            data["traceback"] = "".join(traceback.format_exception(*raised))
        try:
            text = str(exc)
        except Exception as unsayable:  # noqa: BLE001 — the author's own __str__ may do anything
            text = f"(its text cannot be had: {type(unsayable).__name__})"
        return _sayable(ErrorCode.COMPONENT_FAILED, f"{kind}: {text}" if text else kind, data)


async def _offload(output: Any, client: BlobClient | None, met: Introduction) -> ExecuteResult:
    """The result, with its large fields stored as blobs."""
    if client is None or not met.hello.blob_threshold:
        return ExecuteResult(output)
    from stepflow_trio.worker.blob_refs import offload_output

    return ExecuteResult(await offload_output(output, client, met.hello.blob_threshold))


def _sayable(code: int, message: str, data: Any) -> RpcError:
    """An error that can be sent: its code always arrives, whatever its author put beside it."""
    if len(message) > MAX_MESSAGE_CHARS:
        message = message[:MAX_MESSAGE_CHARS] + "…"
    message = message.encode("utf-8", "backslashreplace").decode("utf-8")
    try:
        return RpcError(code, message, check_output(data))
    except OutputInvalid as exc:
        return RpcError(code, message, {"left_out": f"the error's data: {exc.message}"})


def _not_its_own(exc: BaseException) -> BaseException | None:
    """What is no failure of the component, though it came out of it: a cancellation, and Ctrl-C.

    Ctrl-C comes wherever the process happens to be. If a component's code could make a failure of it, the
    worker would live on. All else is a failure, also what ends a program elsewhere, such as SystemExit.
    """
    if isinstance(exc, BaseExceptionGroup):
        return cast("BaseExceptionGroup[BaseException]", exc).subgroup((trio.Cancelled, KeyboardInterrupt))
    return exc if isinstance(exc, (trio.Cancelled, KeyboardInterrupt)) else None


def _only_leaf(exc: BaseException) -> BaseException:
    """What a component's own nursery wrapped, where it is one exception."""
    while isinstance(exc, BaseExceptionGroup):
        inside = cast("BaseExceptionGroup[BaseException]", exc).exceptions
        if len(inside) != 1:
            break
        exc = inside[0]
    return cast("BaseException", exc)


def _from_component_on(raised: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames that lead to the component's function; whole, if it has no others."""
    found = raised
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_BELOW_COMPONENTS):
        found = found.tb_next
    return found or raised


def _call_plain(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    output = function(*args, **kwargs)
    if iscoroutine(output):
        output.close()
        raise TypeError(
            f"a plain function cannot await {output.__qualname__}: call it through "
            f"trio.from_thread.run(context.put_blob, …), or make the component async"
        )
    return output


def _info_of(component: Component) -> ComponentInfo:
    return ComponentInfo(
        component=component.path,
        description=component.description,
        input_schema=component.input_schema,
        output_schema=component.output_schema,
    )


def _ignore(_params: Any, _connection: Connection) -> None:
    """``initialized`` is understood by the peer table; nothing else follows from it."""
