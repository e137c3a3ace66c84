"""The plugins whose workers are spoken to over HTTP, and the blob API that those workers use."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Any, TypeAlias

import trio

from stepflow_trio.protocol import blobs, dialects
from stepflow_trio.runtime.balancing import BalancedWorker, BalancingPlugin
from stepflow_trio.runtime.blob_api import BLOB_API_PATH, BlobApi
from stepflow_trio.runtime.config import BlobApiConfig, HttpProcessPluginConfig, RemotePluginConfig
from stepflow_trio.runtime.events import Observer
from stepflow_trio.runtime.http_launchers import RemoteAccess, http_process_launcher, remote_launcher
from stepflow_trio.runtime.plugin_config import is_this_machine
from stepflow_trio.runtime.stores import BlobStore
from stepflow_trio.runtime.worker_plugin import BlobOffer, WorkerPlugin
from stepflow_trio.transports.http.bearer import BearerTokens
from stepflow_trio.transports.http.hosting import open_http_host
from stepflow_trio.transports.http.limits import HttpServerLimits
from stepflow_trio.transports.http.security import HttpSecurity
from stepflow_trio.transports.http.urls import HttpUrl

__all__ = ["MakePlugin", "http_process_plugin", "open_blob_api", "remote_plugin"]

_log = logging.getLogger("stepflow_trio.runtime")


@asynccontextmanager
async def open_blob_api(config: BlobApiConfig, store: BlobStore) -> AsyncGenerator[BlobOffer | None]:
    """Serve blobs over HTTP while the block lasts, unless that is switched off; yield what workers are told.

    Raises:
        BindFailed: it cannot listen where the configuration says.
        ConfigError: other machines could reach it there without a token, and nothing says that this is meant;
            or the file of tokens cannot be used.
    """
    if config.enabled is False:
        yield None if config.url is None else BlobOffer(config.url, config.blob_threshold_bytes)
        return
    names = [] if config.url is None else [HttpUrl.parse(config.url).authority]
    bearer = config.bearer
    if config.bearer_file is not None:
        bearer = BearerTokens.from_file(config.bearer_file)
    async with open_http_host(
        BlobApi(store),
        bind=config.bind,
        limits=HttpServerLimits(max_body_bytes=blobs.MAX_BLOB_BYTES),
        security=HttpSecurity(allowed_hosts=names, bearer=bearer),
        allow_insecure_bind=config.allow_insecure_bind,
    ) as host:
        yield BlobOffer(config.url or host.url + BLOB_API_PATH, config.blob_threshold_bytes, store)


MakePlugin: TypeAlias = Callable[..., WorkerPlugin]
"""`WorkerPlugin` without what is the same for all plugins: still to be given are the name and the launcher,
``blobs`` and ``url``."""


def http_process_plugin(
    name: str,
    config: HttpProcessPluginConfig,
    make: MakePlugin,
    *,
    observe: Observer,
    offer: BlobOffer | None,
    port_timeout_s: float,
) -> WorkerPlugin:
    """A plugin whose worker is started here. ``offer`` is what the worker is told of blobs."""
    launcher = http_process_launcher(
        name, config, observe, capabilities=_capabilities(offer), port_timeout_s=port_timeout_s
    )
    return make(name, launcher, blobs=offer)


def remote_plugin(
    name: str,
    config: RemotePluginConfig,
    make: MakePlugin,
    *,
    nursery: trio.Nursery,
    randomness: Random,
    offer: BlobOffer | None,
) -> WorkerPlugin | BalancingPlugin:
    """A plugin whose workers are there already, at one URL or at several.

    They are not told of blobs that are served to this machine alone, unless they are on it.
    """
    urls = [HttpUrl.parse(url) for url in config.urls]
    elsewhere = [url for url in urls if not is_this_machine(url.host)]
    if offer is not None and elsewhere and is_this_machine(HttpUrl.parse(offer.url).host):
        _log.warning(
            "plugin %s: the worker at %s is not told of the blob API, which it could not reach at %s: "
            "set blobApi.bind and blobApi.url",
            name, elsewhere[0], offer.url,
        )  # fmt: skip
        offer = None
    access = RemoteAccess(config, capabilities=_capabilities(offer))
    plugins = [make(name, remote_launcher(url, access), blobs=offer, url=str(url)) for url in urls]
    if len(plugins) == 1:
        return plugins[0]
    workers = [
        BalancedWorker(url=str(url), plugin=plugin, check_health=partial(access.check_health, url))
        for url, plugin in zip(urls, plugins, strict=True)
    ]
    return BalancingPlugin(name, workers, nursery=nursery, randomness=randomness)


def _capabilities(offer: BlobOffer | None) -> dict[str, Any]:
    if offer is None:
        return dialects.write_capabilities()
    return dialects.write_capabilities(blob_api_url=offer.url, blob_threshold=offer.threshold_bytes)
