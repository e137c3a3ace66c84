"""How a plugin's workers are reached over HTTP: started as a process, or found at a URL."""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from stepflow_trio.engine import Limits
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import ConnectionLost, LossReason, SpawnFailed, StepflowError, WorkerExited
from stepflow_trio.runtime.events import Observer, WorkerLine
from stepflow_trio.runtime.hosted_worker import Launcher, Started
from stepflow_trio.runtime.launchers import EXIT_NOTICE_S, never
from stepflow_trio.runtime.plugin_config import (
    HealthCheck,
    HttpProcessPluginConfig,
    RemotePluginConfig,
)
from stepflow_trio.transports.http.bearer import BearerTokens
from stepflow_trio.transports.http.client import HttpClient, open_http_client
from stepflow_trio.transports.http.limits import HttpClientLimits
from stepflow_trio.transports.http.links import HttpLink, open_http_link
from stepflow_trio.transports.http.post_link import shown_answer
from stepflow_trio.transports.http.security import client_ssl_context
from stepflow_trio.transports.http.urls import HttpUrl
from stepflow_trio.transports.port_process import PortProcess, open_port_process

__all__ = ["RemoteAccess", "http_process_launcher", "remote_launcher"]

PROBE_TIMEOUT_S = 5.0
"""A worker that does not say within so long that it is healthy is not, or is too busy to be given more."""

MIN_RETRY_DELAY_S = 0.01
"""Between two probes, whatever the configuration says: asking costs both sides time."""

LINK_LIMITS = HttpClientLimits(max_connections=Limits().max_calls)
"""As many connections as there can be calls: one that waits for a run keeps its own, and a step of that run
may need another to the same worker. Were there fewer, they could wait for each other for ever."""

_WORKER_COMMAND = re.compile(r"\bstepflow[-_]trio\W+worker\b(?!.*--http\b)")
"""What serves over stdio unless it is told otherwise."""

_MAX_HEALTH_BYTES = 64 * 2**10
_NO_SUCH_PATH = (404, 405)
_UNAUTHORIZED = 401

_log = logging.getLogger("stepflow_trio.runtime")


async def check_health(client: HttpClient, path: str, *, may_be_missing: bool = False) -> None:
    """Ask a worker once whether it takes requests.

    With ``may_be_missing``, one that has nothing at ``path`` is taken to be well: it answers.

    Raises:
        ConnectionLost: it cannot be reached, answers with another status than 2xx, or has not answered within
            `PROBE_TIMEOUT_S`.
    """
    with trio.move_on_after(PROBE_TIMEOUT_S):
        async with client.request("GET", path, headers=[(b"accept", b"application/json")]) as response:
            # Read in any case, so that the connection can carry the next request.
            body = await response.read(_MAX_HEALTH_BYTES)
        if 200 <= response.status < 300 or (may_be_missing and response.status in _NO_SUCH_PATH):
            return
        detail = f"GET {path} was answered with {shown_answer(response.status, body)}"
        if response.status == _UNAUTHORIZED:
            detail += "; bearerTokenFile or bearerTokenEnv says which token to send"
        raise ConnectionLost(LossReason.STREAM_ERROR, detail)
    raise ConnectionLost(LossReason.IDLE_TIMEOUT, f"GET {path} was not answered within {PROBE_TIMEOUT_S:g} s")


# ---- processes ------------------------------------------------------------------------------------------


class _StartedProcess:
    """A worker that was started here."""

    def __init__(self, process: PortProcess, link: HttpLink) -> None:
        self._process = process
        self._link = link
        self.link = link
        self.pid: int | None = process.pid
        self.unfinished_bytes = 0

    @property
    def is_suspect(self) -> bool:
        return self._link.is_suspect

    async def wait_ended(self) -> ConnectionLost:
        await self._process.wait_exited()
        return self._process.exit_error()

    async def explain(self, loss: ConnectionLost) -> ConnectionLost:
        if loss.reason not in (LossReason.PEER_CLOSED, LossReason.STREAM_ERROR):
            return loss
        returncode = await self._process.wait_exited(EXIT_NOTICE_S)
        return loss if returncode is None else self._process.exit_error()


def http_process_launcher(
    plugin: str,
    config: HttpProcessPluginConfig,
    observe: Observer,
    *,
    capabilities: Mapping[str, Any],
    port_timeout_s: float,
) -> Launcher:
    """Start the configured command; wait for its port and until it is healthy, then open a link to it.

    What it writes to stdout and stderr, its port aside, goes to ``observe`` line by line. ``capabilities``
    are said with every request. ``port_timeout_s`` is how long it may take to say its port.
    """

    @asynccontextmanager
    async def launch() -> AsyncGenerator[Started]:
        async with (
            open_port_process(
                [config.command, *config.args],
                env=config.env,
                cwd=config.working_directory,
                on_log_line=lambda line: observe(WorkerLine(plugin=plugin, text=line)),
            ) as process,
            AsyncExitStack() as opened,
        ):
            url = f"http://127.0.0.1:{await _port_of(process, port_timeout_s)}"
            try:
                await _wait_healthy(process, url, config.health_check)
                way = open_http_link(
                    url, capabilities=capabilities, sessions=config.session, limits=LINK_LIMITS
                )
                link = await opened.enter_async_context(way)
            except ConnectionLost as exc:
                if await process.wait_exited(EXIT_NOTICE_S) is not None:
                    raise process.exit_error() from exc
                raise
            yield _StartedProcess(process, link)

    return launch


async def _port_of(process: PortProcess, timeout_s: float) -> int:
    try:
        return await process.wait_port(timeout_s)
    except WorkerExited as exc:
        if exc.returncode != 0:
            raise
        # What one over stdio does, for its stdin is empty.
        why = (
            "it ended without serving: does it call worker.run_http()? "
            "A worker with run_stdio() needs `transport: stdio`"
        )
        if _WORKER_COMMAND.search(process.command):
            why = "it ended without serving HTTP: add --http to its args, or say `transport: stdio`"
        raise SpawnFailed(process.command, why + process.last_lines()) from exc


async def _wait_healthy(process: PortProcess, url: str, check: HealthCheck) -> None:
    """Wait until the worker is healthy.

    Raises:
        WorkerExited: it ended.
        SpawnFailed: it was not healthy within the time that the configuration gives it.
    """
    last = ""
    with one_exception():
        async with open_http_client(url) as client, trio.open_nursery() as nursery:

            async def fail_on_exit() -> None:
                await process.wait_exited()
                raise process.exit_error()

            nursery.start_soon(fail_on_exit)
            with trio.move_on_after(check.timeout_s) as patience:
                while True:
                    try:
                        await check_health(client, check.path)
                        break
                    except StepflowError as exc:
                        last = str(exc)
                    await trio.sleep(max(check.retry_delay_s, MIN_RETRY_DELAY_S))
            nursery.cancel_scope.cancel(reason="the worker is healthy, or is not in time")
    if patience.cancelled_caught:
        why = f"it was not healthy {check.timeout_s:g} s after it had said its port: {last}"
        raise SpawnFailed(process.command, why, is_late=True)


# ---- workers at a URL -----------------------------------------------------------------------------------


class RemoteAccess:
    """What a configuration says of how to reach a plugin's workers at their URLs.

    Files are read when they are needed first, so that what is wrong with them costs only that plugin.

    Args:
        config: the plugin.
        capabilities: what is said with every request.
    """

    def __init__(self, config: RemotePluginConfig, *, capabilities: Mapping[str, Any]) -> None:
        self._config = config
        self._capabilities = capabilities
        self._bearer = config.bearer
        self._instances: set[bytes] = set()
        self._tls: ssl.SSLContext | None = None

    async def check_health(self, url: HttpUrl) -> None:
        """Ask the worker at ``url`` once whether it takes requests.

        Raises:
            ConnectionLost: it does not.
            ConfigError: a file that says who this side is, or whom to trust, cannot be used.
        """
        async with open_http_client(url, tls=self._tls_context(), bearer=self._tokens()) as client:
            path = url.path.rstrip("/") + self._config.health_check.path
            await check_health(client, path, may_be_missing=True)

    def open_link(self, url: HttpUrl) -> AbstractAsyncContextManager[HttpLink]:
        """A link to the worker at ``url``. Raises as :meth:`check_health` does."""
        return open_http_link(
            url,
            capabilities=self._capabilities,
            sessions="always" if self._config.session == "always" else "never",
            limits=LINK_LIMITS,
            tls=self._tls_context(),
            bearer=self._tokens(),
            instances=self._instances,
        )

    def _tokens(self) -> BearerTokens | None:
        if self._bearer is None and self._config.bearer_file is not None:
            self._bearer = BearerTokens.from_file(self._config.bearer_file)
        return self._bearer

    def _tls_context(self) -> ssl.SSLContext | None:
        if self._tls is None and self._config.tls is not None:
            files = self._config.tls
            self._tls = client_ssl_context(
                server_ca=files.ca, certificate=files.certificate, private_key=files.private_key
            )
        return self._tls


class _StartedElsewhere:
    """A worker that somebody else has started."""

    def __init__(self, link: HttpLink) -> None:
        self._link = link
        self.link = link
        self.pid: int | None = None
        self.unfinished_bytes = 0

    @property
    def is_suspect(self) -> bool:
        return self._link.is_suspect

    async def wait_ended(self) -> ConnectionLost:
        return await never()

    async def explain(self, loss: ConnectionLost) -> ConnectionLost:
        await trio.lowlevel.checkpoint()
        return loss


def remote_launcher(url: HttpUrl, access: RemoteAccess) -> Launcher:
    """See that the worker at ``url`` is healthy, and open a link to it."""

    @asynccontextmanager
    async def launch() -> AsyncGenerator[Started]:
        await access.check_health(url)
        async with access.open_link(url) as link:
            yield _StartedElsewhere(link)

    return launch
