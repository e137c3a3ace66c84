"""``stepflow-trio serve``: the configured runtime behind its REST API, until a signal ends it."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import trio

from stepflow_trio.cli.bind_check import require_guarded
from stepflow_trio.cli.configuration import read_configuration, read_configuration_from_stdin
from stepflow_trio.cli.interruption import heeded_signals
from stepflow_trio.cli.log_notices import NoticeHandler
from stepflow_trio.cli.notices import complain, show_diagnostic
from stepflow_trio.cli.server_log import ServerLog
from stepflow_trio.cli.standard_output import write_json_line
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.protocol import blobs
from stepflow_trio.runtime import open_runtime
from stepflow_trio.runtime.rest_api import RestApi
from stepflow_trio.runtime.rest_api.application import HEALTH_PATH
from stepflow_trio.transports.http.bearer import BearerTokens
from stepflow_trio.transports.http.hosting import HttpHost, open_http_host
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import HttpSecurity
from stepflow_trio.worker.process import allow_many_descriptors

NEW_OBJECTS_BETWEEN_COLLECTIONS = 20_000
"""Each collection takes some milliseconds then."""


def serve_configured(
    config_path: str | None,
    *,
    config_stdin: bool,
    host: str,
    port: int,
    bearer_token_file: str | None,
    allowed_hosts: list[str],
    allow_insecure_bind: bool,
    enforce_schemas: bool,
    log_level: str,
) -> int:
    """Serve until SIGINT or SIGTERM comes; print ``{"port": N}`` to stdout when requests are taken.

    Then requests in flight may finish, the runs that are at work are cancelled and the workers ended. A
    second signal ends it at once.

    Raises:
        Unusable: other machines could reach it without a token, and nothing says that this is meant.
        ConfigError: the configuration, the file of tokens or an address cannot be used.
        BindFailed: it cannot listen there.
    """
    require_guarded(
        host,
        bearer_token_file=bearer_token_file,
        allow_insecure_bind=allow_insecure_bind,
        what="run anything",
    )
    allow_many_descriptors()
    least = logging.getLevelNamesMapping()[log_level.upper()]
    logging.basicConfig(handlers=[NoticeHandler()], level=max(least, logging.WARNING))
    config = (
        read_configuration_from_stdin() if config_stdin else read_configuration(config_path, beside=Path())
    )
    for warning in config.diagnostics:
        show_diagnostic(warning)
    bearer = None if bearer_token_file is None else BearerTokens.from_file(bearer_token_file)
    security = HttpSecurity(allowed_hosts=allowed_hosts, bearer=bearer, open_paths=(HEALTH_PATH,))
    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    log = ServerLog(least)

    @asynccontextmanager
    async def open_server() -> AsyncGenerator[HttpHost]:
        async with open_runtime(config, on_event=log.observe, enforce_schemas=enforce_schemas) as runtime:
            api = RestApi(runtime)
            async with open_http_host(
                api,
                bind=bind,
                limits=HttpServerLimits(max_body_bytes=blobs.MAX_BLOB_BYTES),
                security=security,
                allow_insecure_bind=allow_insecure_bind,
                drain=api.drain,
            ) as http:
                yield http

    with _rare_collections():
        trio.run(_serve, open_server)
    return 0


@contextmanager
def _rare_collections() -> Generator[None]:
    """Spare the garbage collector what is no garbage.

    What was imported stays as long as the server. And runs that are at work hold some thousand objects, which
    all count as old before they are over, if they are looked at as often as is the default.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS_BETWEEN_COLLECTIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def _serve(open_server: Callable[[], AbstractAsyncContextManager[HttpHost]]) -> None:
    stop = trio.Event()
    with trio.open_signal_receiver(*heeded_signals()) as signals, one_exception():
        async with trio.open_nursery() as nursery:

            async def heed_signals() -> None:
                async for _ in signals:
                    if stop.is_set():
                        nursery.cancel_scope.cancel(reason="a second signal came")
                        return
                    text = "stopping: requests in flight may finish; once more ends them at once"
                    complain(text, level="info", event="stopping")
                    stop.set()

            nursery.start_soon(heed_signals)
            async with open_server() as http:
                write_json_line({"port": http.port})
                url = f"{http.url}/api/v1"
                complain(f"serving {url}", level="info", event="serving", url=url)
                await stop.wait()
            nursery.cancel_scope.cancel(reason="the server has ended")
