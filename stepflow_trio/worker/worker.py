"""A worker: Python functions offered as Stepflow components."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import trio

from stepflow_trio.engine import Connection, Limits, Link, open_connection
from stepflow_trio.errors import BindFailed, ConfigError, ConnectionLost, LossReason
from stepflow_trio.protocol.paths import PathTable
from stepflow_trio.protocol.peer import Role
from stepflow_trio.transports.stdio import open_stdio_link
from stepflow_trio.worker.component import Component, define_component
from stepflow_trio.worker.context import Context
from stepflow_trio.worker.process import BLOCKED_GRACE_S, allow_many_descriptors, serve_until_signal
from stepflow_trio.worker.session import Session
from stepflow_trio.worker.threads import MAX_THREADS, ThreadPool

if TYPE_CHECKING:
    from stepflow_trio.protocol.dialects import Hello
    from stepflow_trio.transports.http.bearer import SecretStr
    from stepflow_trio.transports.http.endpoint import HttpEndpoint
    from stepflow_trio.transports.http.hosting import HttpHost
    from stepflow_trio.transports.http.limits import HttpServerLimits
    from stepflow_trio.transports.http.outbound_urls import OutboundPolicy
    from stepflow_trio.transports.http.security import HttpSecurity, TlsFiles
    from stepflow_trio.worker.blob_client import BlobClients

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_log = logging.getLogger("stepflow_trio.worker")


class Worker:
    """Hosts components and serves them to runtimes.

    Register functions with :meth:`component`, then serve: :meth:`run_stdio` or :meth:`run_http` for a script,
    :meth:`serve_stdio` or :meth:`open_http` inside a trio application, or hand the worker to a runtime in the
    same process::

        worker = Worker()

        @worker.component
        async def add(a: int, b: int) -> int:
            return a + b

    Args:
        max_threads: components in plain functions that run at once; the others wait. One that waits for the
            runtime is not counted. Beyond 1,000 more threads, an execution that needs one is refused
            (−32304).
        limits: the bounds of each connection.
        debug: send tracebacks of failed components to the runtime.
    """

    def __init__(
        self, *, max_threads: int = MAX_THREADS, limits: Limits | None = None, debug: bool = False
    ) -> None:
        self._components: PathTable[Component] = PathTable()
        self._threads = ThreadPool(max_threads)
        self._limits = limits or Limits()
        self._debug = debug

    @overload
    def component(self, function: FunctionT, /) -> FunctionT: ...

    @overload
    def component(
        self, path: str | None = None, /, *, description: str | None = None, inline: bool = False
    ) -> Callable[[FunctionT], FunctionT]: ...

    def component(
        self,
        function_or_path: Any = None,
        /,
        *,
        description: str | None = None,
        inline: bool = False,
    ) -> Any:
        """Offer a function as a component; it stays usable as it is.

        An ``async def`` runs as a task. A plain function runs in a thread of a bounded pool, or with
        ``inline`` on the event loop: then it costs no thread and no task, and must not block.

        Args:
            function_or_path: the function, or the component's path. By default the path is the function's
                name. ``/models/{name}`` and ``/fs/{*path}`` hand what they match over as keyword arguments.
            description: by default the docstring.
            inline: run a plain function on the event loop.

        Raises:
            LocalProtocolError: the path is taken or malformed, or the function cannot be a component.
        """

        def register(function: FunctionT) -> FunctionT:
            path = None if function_or_path is function else function_or_path
            self.add_component(function, path=path, description=description, inline=inline)
            return function

        if function_or_path is None or isinstance(function_or_path, str):
            return register
        return register(function_or_path)

    def add_component(
        self,
        function: Callable[..., Any],
        *,
        path: str | None = None,
        description: str | None = None,
        inline: bool = False,
    ) -> Component:
        """Offer a function as a component; :meth:`component` without the decorator."""
        component = define_component(
            function, path=path, description=description, inline=inline, context_type=Context
        )
        self._components.add(component.path, component)
        return component

    @property
    def components(self) -> list[Component]:
        """Everything offered, in the order of registration."""
        return self._components.values()

    async def serve(self, link: Link) -> ConnectionLost:
        """Serve one runtime over ``link`` until the connection is over; return why it is.

        When the runtime hangs up, what is in flight may finish for ``limits.drain_s`` seconds. Cancelling
        ends it at once.
        """
        async with self._open_connection(link) as connection:
            return await connection.wait_lost()

    async def serve_stdio(self) -> ConnectionLost:
        """Serve the runtime that started this process over stdin and stdout; return when it hangs up.

        For the time being, stdout belongs to the protocol: what anything in this process prints goes to
        stderr. Installs no signal handlers.

        Raises:
            LocalProtocolError: stdin and stdout are being served already.
        """
        async with open_stdio_link() as link:
            return await self.serve(link)

    def run_stdio(self) -> None:
        """Serve over stdin and stdout as the main job of this process; return when the runtime hangs up.

        SIGTERM and SIGINT end it in order: what is in flight may finish for ``limits.drain_s`` seconds. The
        process also ends when the runtime was killed while a component blocks the event loop.
        """
        trio.run(self._run_stdio)

    async def _run_stdio(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with (
                open_stdio_link(orphan_grace_s=self._limits.drain_s + BLOCKED_GRACE_S) as link,
                self._open_connection(link) as connection,
                trio.open_nursery() as nursery,
            ):

                async def stop_on_signal() -> None:
                    async for _ in signals:
                        nursery.cancel_scope.cancel(reason="a signal asked this process to end")

                nursery.start_soon(stop_on_signal)
                loss = await connection.wait_lost()
                if loss.reason is not LossReason.PEER_CLOSED:
                    _log.error("%s", loss)
                nursery.cancel_scope.cancel(reason="the runtime hung up")

    def http_endpoint(
        self,
        *,
        http_limits: HttpServerLimits | None = None,
        instance_id: str | None = None,
        blob_clients: BlobClients | None = None,
        clients_are_known: bool = False,
    ) -> HttpEndpoint:
        """This worker as an ASGI application, for a host of yours that runs on trio.

        It serves every runtime that reaches it: who may is the host's business; :meth:`open_http` minds that.

        Args:
            http_limits: the bounds of HTTP that concern the endpoint.
            instance_id: tells this process from others behind a balancer; random by default.
            blob_clients: for runtimes that have their blobs at a URL, as those of the public releases from
                0.10 on do (:func:`stepflow_trio.worker.blob_client.open_blob_clients`). Without them, blobs
                are asked for with callbacks.
            clients_are_known: the host lets nobody through without a token or a certificate; then runtimes
                may also name URLs of blobs in private networks.
        """
        from stepflow_trio.transports.http.endpoint import HttpEndpoint  # not what a stdio worker waits for
        from stepflow_trio.worker.http_service import HttpService

        def new_session(hello: Hello | None, client: str | None) -> Session:
            return Session(
                self._components,
                threads=self._threads,
                transport="http",
                debug=self._debug,
                hello=hello,
                client=client,
                is_authenticated=clients_are_known,
                blob_clients=blob_clients,
            )

        return HttpEndpoint(
            HttpService(new_session), limits=self._limits, http_limits=http_limits, instance_id=instance_id
        )

    @asynccontextmanager
    async def open_http(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        http_host: Literal["auto", "h11", "hypercorn"] = "auto",
        security: HttpSecurity | None = None,
        tls: TlsFiles | None = None,
        allow_insecure_bind: bool = False,
        http_limits: HttpServerLimits | None = None,
        instance_id: str | None = None,
        blob_urls: OutboundPolicy | None = None,
        blob_bearers: Mapping[str, SecretStr | str] | None = None,
    ) -> AsyncGenerator[HttpHost]:
        """Serve runtimes over HTTP for as long as the block lasts; ``url`` of what it yields says where.

        Leaving in order refuses new requests, and lets what is in flight finish, until the last byte of its
        answer is sent, for ``http_limits.drain_s`` seconds in all; then it is cancelled. Leaving with an
        exception or cancelled cancels it at once.

        Args:
            host: the address to listen on.
            port: the port; 0 takes a free one.
            http_host: ``h11`` is the faster, ``hypercorn`` speaks HTTP/2 and TLS. By default the first for
                loopback addresses without TLS, the second for all others.
            security: who may call; by default whoever reaches it under its own address, and no web page.
            tls: certificate, key, and whose certificates clients must present.
            allow_insecure_bind: listen beyond loopback although everybody may call.
            http_limits: the bounds of HTTP.
            instance_id: tells this process from the others behind a balancer; random by default.
            blob_urls: which URLs of blobs runtimes may name.
            blob_bearers: tokens for those, by origin, such as ``http://runtime.internal:7837``.

        Raises:
            TypeError: ``host`` is no text: a lone port is ``port=8080``.
            ConfigError: the address, ``http_host``, a file of ``tls`` or the id cannot be used, or everybody
                could call.
            BindFailed: the address is taken, or not this machine's.
        """
        from stepflow_trio.transports.http.bearer import SecretStr
        from stepflow_trio.transports.http.hosting import open_http_host
        from stepflow_trio.transports.http.limits import HttpServerLimits
        from stepflow_trio.worker.blob_client import open_blob_clients

        _check_place(host, http_host, tls)
        bearers = {
            at: SecretStr(it) if isinstance(it, str) else it for at, it in (blob_bearers or {}).items()
        }
        limits = http_limits or HttpServerLimits()
        shown = f"[{host}]" if ":" in host else host
        async with open_blob_clients(policy=blob_urls, bearers=bearers) as blob_clients:
            endpoint = self.http_endpoint(
                http_limits=limits,
                instance_id=instance_id,
                blob_clients=blob_clients,
                clients_are_known=bool(
                    (security and security.bearer) or (tls is not None and tls.client_ca is not None)
                ),
            )
            async with open_http_host(
                endpoint,
                bind=f"{shown}:{port}",
                host=http_host,
                limits=limits,
                security=security,
                tls=tls,
                allow_insecure_bind=allow_insecure_bind,
                drain=endpoint.drain,  # with the server still open: for answers to callbacks
            ) as http:
                yield http

    def run_http(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        http_host: Literal["auto", "h11", "hypercorn"] = "auto",
        security: HttpSecurity | None = None,
        tls: TlsFiles | None = None,
        allow_insecure_bind: bool = False,
        http_limits: HttpServerLimits | None = None,
        instance_id: str | None = None,
        blob_urls: OutboundPolicy | None = None,
        blob_bearers: Mapping[str, SecretStr | str] | None = None,
    ) -> None:
        """Serve over HTTP as the main job of this process; see :meth:`open_http` for the arguments.

        Prints one line ``{"port": N}`` to stdout once it accepts connections, for the runtime that has
        started it; from then on, what anything in this process prints goes to stderr. SIGTERM and SIGINT end
        it in order; SIGINT once more, at once. Where a component blocks the event loop, the process is ended
        by force: ``http_limits.drain_s`` and 5 s after the first signal, or 5 s after a second SIGINT. The
        soft limit of open descriptors is raised to 65,536, as far as the hard one allows.

        Raises:
            TypeError: ``host`` is no text: a lone port is ``port=8080``.
            RuntimeError: trio runs already; :meth:`open_http` is for that.
            SystemExit: it cannot be served so; with what :meth:`open_http` raises as its message, for stderr.
        """
        from stepflow_trio.transports.http.limits import HttpServerLimits  # not what a stdio worker waits for

        if trio.lowlevel.in_trio_run():
            raise RuntimeError(
                "run_http() starts trio, which runs already: use `async with worker.open_http()`"
            )
        allow_many_descriptors()
        limits = http_limits or HttpServerLimits()
        http = self.open_http(
            host,
            port,
            http_host=http_host,
            security=security,
            tls=tls,
            allow_insecure_bind=allow_insecure_bind,
            http_limits=limits,
            instance_id=instance_id,
            blob_urls=blob_urls,
            blob_bearers=blob_bearers,
        )
        try:
            trio.run(serve_until_signal, http, limits.drain_s)
        except (ConfigError, BindFailed) as exc:
            raise SystemExit(str(exc)) from exc

    def _open_connection(self, link: Link) -> AbstractAsyncContextManager[Connection]:
        session = Session(self._components, threads=self._threads, transport=link.kind, debug=self._debug)
        return open_connection(link, session.handlers, role=Role.WORKER, limits=self._limits)

    def __repr__(self) -> str:
        return f"<Worker: {', '.join(self._components.patterns()) or 'no components'}>"


def _check_place(host: object, http_host: str, tls: TlsFiles | None) -> None:
    if not isinstance(host, str):
        hint = f": for a port say port={host}" if isinstance(host, int) else ""
        raise TypeError(f"host is {host!r}, but must be an address such as '127.0.0.1'{hint}")
    if http_host not in ("auto", "h11", "hypercorn"):
        raise ConfigError(f"http_host is {http_host!r}; it must be auto, h11 or hypercorn")
    from stepflow_trio.transports.http.security import TlsFiles  # not what a stdio worker waits for

    if tls is not None and not isinstance(tls, TlsFiles):  # pyright: ignore[reportUnnecessaryIsInstance]: callers are not all checked
        raise ConfigError(f"tls is a {type(tls).__name__}; a server takes TlsFiles(…)")
    if http_host == "h11" and tls is not None:
        raise ConfigError("http_host is h11, which speaks no TLS: leave it at auto, or say hypercorn")
