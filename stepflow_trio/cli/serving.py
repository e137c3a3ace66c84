"""``stepflow-trio serve``: the configured runtime behind its REST API, until a signal ends it."""

from __future__ import annotations

import ipaddress
import json
import logging
import sys
from pathlib import Path
from typing import Any

import trio

from stepflow_trio.cli.configuration import read_configuration
from stepflow_trio.cli.exits import Unusable, complain
from stepflow_trio.cli.interruption import heeded_signals
from stepflow_trio.cli.plain_text import plain_line
from stepflow_trio.cli.standard_output import write_line
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.protocol import blobs
from stepflow_trio.runtime import open_runtime
from stepflow_trio.runtime.config import Config
from stepflow_trio.runtime.events import Event, WorkerEnded, WorkerLine, WorkerStarted
from stepflow_trio.runtime.rest_api import RestApi
from stepflow_trio.runtime.rest_api.application import HEALTH_PATH
from stepflow_trio.transports.http.bearer import BearerTokens
from stepflow_trio.transports.http.hosting import open_http_host
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import HttpSecurity
from stepflow_trio.worker.process import allow_many_descriptors


def serve_configured(
    config_path: str | None,
    *,
    host: str,
    port: int,
    bearer_token_file: str | None,
    allowed_hosts: list[str],
    allow_insecure_bind: bool,
) -> int:
    """Serve until SIGINT or SIGTERM comes; print ``{"port": N}`` to stdout when requests are taken.

    Then requests in flight may finish, the runs that are at work are cancelled and the workers ended. A
    second signal ends it at once.

    Raises:
        Unusable: other machines could reach it without a token, and nothing says that this is meant.
        ConfigError: the configuration, the file of tokens or an address cannot be used.
        BindFailed: it cannot listen there.
    """
    if bearer_token_file is None and not allow_insecure_bind and _lets_others_in(host):
        raise Unusable(
            f"--host {host} lets other machines in, and whoever reaches the server could run anything: give "
            "--bearer-token-file, or say --allow-insecure-bind"
        )
    allow_many_descriptors()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(message)s")
    config = read_configuration(config_path, beside=Path())
    for warning in config.warnings:
        complain(warning)
    bearer = None if bearer_token_file is None else BearerTokens.from_file(bearer_token_file)
    security = HttpSecurity(allowed_hosts=allowed_hosts, bearer=bearer, open_paths=(HEALTH_PATH,))
    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    trio.run(_serve, config, bind, security, allow_insecure_bind)
    return 0


async def _serve(config: Config, bind: str, security: HttpSecurity, allow_insecure_bind: bool) -> None:
    stop = trio.Event()
    with trio.open_signal_receiver(*heeded_signals()) as signals, one_exception():
        async with trio.open_nursery() as nursery:

            async def heed_signals() -> None:
                async for _ in signals:
                    if stop.is_set():
                        nursery.cancel_scope.cancel(reason="a second signal came")
                        return
                    complain("stopping: requests in flight may finish; once more ends them at once")
                    stop.set()

            nursery.start_soon(heed_signals)
            async with (
                open_runtime(config, on_event=_show) as runtime,
                open_http_host(
                    RestApi(runtime),
                    bind=bind,
                    limits=HttpServerLimits(max_body_bytes=blobs.MAX_BLOB_BYTES),
                    security=security,
                    allow_insecure_bind=allow_insecure_bind,
                ) as host,
            ):
                write_line(json.dumps({"port": host.port}))
                complain(f"serving {host.url}/api/v1")
                await stop.wait()
            nursery.cancel_scope.cancel(reason="the server has ended")


def _lets_others_in(host: str) -> bool:
    """Whether it is an address that other machines reach; of a name, the server finds out."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _show(event: Event) -> None:
    text: Any = None
    match event:
        case WorkerStarted():
            text = f"worker {event.plugin} is ready"
        case WorkerEnded():
            text = f"worker {event.plugin} ended: {event.detail}"
        case WorkerLine():
            text = f"{event.plugin}: {plain_line(event.text)}"
        case _:
            return
    complain(text)
