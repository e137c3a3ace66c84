"""Plugins of their configurations, and of workers of this process."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TypeAlias

import trio

from stepflow_trio.engine import Handlers, Limits
from stepflow_trio.runtime.balancing import BalancingPlugin
from stepflow_trio.runtime.builtin import BuiltinPlugin
from stepflow_trio.runtime.events import Observer
from stepflow_trio.runtime.launchers import ServesLink, process_launcher, task_launcher
from stepflow_trio.runtime.mcp_plugin import McpPlugin
from stepflow_trio.runtime.mock import MockPlugin
from stepflow_trio.runtime.plugin_config import (
    BuiltinPluginConfig,
    HttpProcessPluginConfig,
    McpPluginConfig,
    MockPluginConfig,
    PluginConfig,
    RemotePluginConfig,
    StdioPluginConfig,
)
from stepflow_trio.runtime.plugins import Plugin
from stepflow_trio.runtime.progress import StepsAtWork
from stepflow_trio.runtime.runs import Runs
from stepflow_trio.runtime.stores import BlobStore
from stepflow_trio.runtime.timeouts import Timeouts
from stepflow_trio.runtime.worker_plugin import BlobOffer, WorkerPlugin

__all__ = ["HostedPlugin", "PluginMaker"]

HostedPlugin: TypeAlias = WorkerPlugin | BalancingPlugin | McpPlugin
"""A plugin whose workers are started or found when the runtime opens, and left when it ends."""


class PluginMaker:
    """Makes the plugins of one runtime.

    Args:
        blob_store: the runtime's.
        runs: the runtime's.
        handlers: what workers may ask of the runtime.
        nursery: where workers' tasks live.
        observe: told when workers start and end.
        limits: the bounds of each worker's connection.
        timeouts: how long a worker may take to start.
        at_work: told which execution goes to which worker.
        randomness: for the jitter of probes.
        offer: what workers over HTTP are told of blobs.
    """

    def __init__(
        self,
        *,
        blob_store: BlobStore,
        runs: Runs,
        handlers: Handlers,
        nursery: trio.Nursery,
        observe: Observer,
        limits: Limits,
        timeouts: Timeouts,
        at_work: StepsAtWork,
        randomness: Random,
        offer: BlobOffer | None,
    ) -> None:
        self._blob_store = blob_store
        self._runs = runs
        self._nursery = nursery
        self._observe = observe
        self._randomness = randomness
        self._offer = offer
        self._connect_timeout_s = timeouts.connect_s
        self._make = partial(
            WorkerPlugin,
            handlers=handlers,
            nursery=nursery,
            observe=observe,
            limits=limits,
            connect_timeout_s=timeouts.connect_s,
            at_work=at_work,
        )

    def of_worker(self, name: str, worker: ServesLink) -> HostedPlugin:
        """A plugin over a worker of this process."""
        return self._make(name, task_launcher(worker))

    def of_config(self, name: str, config: PluginConfig) -> Plugin:
        """A configured plugin."""
        match config:
            case BuiltinPluginConfig():
                return BuiltinPlugin(self._blob_store, self._runs)
            case MockPluginConfig():
                return MockPlugin(config)
            case McpPluginConfig():
                return McpPlugin(
                    name,
                    config,
                    nursery=self._nursery,
                    observe=self._observe,
                    connect_timeout_s=self._connect_timeout_s,
                )
            case StdioPluginConfig():
                return self._make(name, process_launcher(name, config, self._observe))
            case HttpProcessPluginConfig():
                # Here, for h11 is loaded where it is needed.
                from stepflow_trio.runtime.http_plugins import http_process_plugin

                return http_process_plugin(
                    name,
                    config,
                    self._make,
                    observe=self._observe,
                    offer=self._offer,
                    port_timeout_s=self._connect_timeout_s,
                )
            case RemotePluginConfig():
                from stepflow_trio.runtime.http_plugins import remote_plugin  # here: as above

                return remote_plugin(
                    name,
                    config,
                    self._make,
                    nursery=self._nursery,
                    randomness=self._randomness,
                    offer=self._offer,
                )
