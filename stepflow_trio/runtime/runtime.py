"""The runtime: what an application opens to run flows over workers."""

from __future__ import annotations

import logging
import os
import random
import re
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import trio

from stepflow_trio.engine import Handlers, Limits
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import (
    ConfigError,
    ErrorCode,
    FlowInvalid,
    LocalProtocolError,
    RunCancelled,
    RunFailed,
)
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.overrides import apply_overrides
from stepflow_trio.flows.reader import flow_from_json, read_flow_file
from stepflow_trio.flows.results import Failed
from stepflow_trio.flows.source import source_of_value
from stepflow_trio.flows.suggestions import did_you_mean
from stepflow_trio.protocol.payloads import ComponentInfo
from stepflow_trio.runtime.callbacks import Callbacks
from stepflow_trio.runtime.config import DEFAULT_CONFIG, Config, read_config_file
from stepflow_trio.runtime.events import Event, Observer, RunEvent, RunStarted, StepProgressed
from stepflow_trio.runtime.executor import Executor
from stepflow_trio.runtime.large_flows import beside_the_loop
from stepflow_trio.runtime.launchers import ServesLink
from stepflow_trio.runtime.plugin_making import HostedPlugin, PluginMaker
from stepflow_trio.runtime.plugins import Plugin, StepFailure
from stepflow_trio.runtime.progress import StepsAtWork
from stepflow_trio.runtime.redaction import Redaction
from stepflow_trio.runtime.routing import Route, Router, Rule
from stepflow_trio.runtime.run_history import RunHistory
from stepflow_trio.runtime.run_watch import RunChanges
from stepflow_trio.runtime.runs import Run, Runs
from stepflow_trio.runtime.stored_flows import StoredFlows
from stepflow_trio.runtime.stores import BlobStore, MemoryBlobStore, MemoryRunStore, RunStore
from stepflow_trio.runtime.submissions import Submission, SubmissionsByKey
from stepflow_trio.runtime.worker_plugin import BlobOffer

_log = logging.getLogger("stepflow_trio.runtime")

_CHECKED_AT_ONCE = 500
"""Inputs that are looked at before other tasks get a turn."""

_PLUGIN_NAME = re.compile(r"[^/{}\s]+")
"""Of a worker of this process: a segment of the paths of its components."""

FlowLike: TypeAlias = Flow | Mapping[str, Any] | str | os.PathLike[str]
"""A flow that was read, a flow as JSON, or the path of a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedComponent:
    """A component that flows can use."""

    path: str
    """How a flow's step names it; empty where none can, for no route leads to it."""
    plugin: str
    info: ComponentInfo


class Runtime:
    """Runs flows; :func:`open_runtime` makes it."""

    def __init__(
        self,
        *,
        runs: Runs,
        plugins: Mapping[str, Plugin],
        router: Router,
        blob_store: BlobStore,
        history: RunHistory,
        submissions: SubmissionsByKey,
        redaction: Redaction,
    ) -> None:
        self._runs = runs
        self._plugins = plugins
        self._router = router
        self.blob_store = blob_store
        self.flows = StoredFlows(blob_store, runs)
        """The flows that can be run by their ids: all that were stored or submitted."""
        self._submissions = submissions
        self.history = history
        """All runs by their ids, whether at work or over."""
        self._redaction = redaction
        self._unlisted: dict[str, str] = {}

    async def run(
        self,
        flow: FlowLike,
        input: Any = None,
        *,
        variables: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a flow once and return its result; ``variables`` and ``overrides`` are those of :meth:`submit`.

        Cancelled, it cancels the run: every component that is at work for it, and every run that they
        submitted. A deadline around the call is the run's deadline, and workers are told how much is left.

        Raises:
            FlowInvalid: the flow cannot be run as written, or as overridden; nothing was started.
            RpcError: −32004, the overrides do not fit the flow.
            LocalProtocolError: the input or a variable is not JSON, or the runtime's block has been left.
            RunFailed: the run failed; ``code``, ``message`` and ``data`` are those of its result.
            RunCancelled: somebody else cancelled the run.
        """
        deadline = trio.current_effective_deadline()
        run = await self.submit(flow, [input], variables=variables, overrides=overrides, deadline=deadline)
        await run.wait_as_owner()
        result = run.results[0]
        if result is None:
            raise RunCancelled(ErrorCode.REQUEST_CANCELLED, "the run was cancelled", run_id=run.id)
        if isinstance(result, Failed):
            error = result.error
            raise RunFailed(error.code, error.message, error.data, run_id=run.id)
        return result.result

    async def submit(
        self,
        flow: FlowLike,
        inputs: Sequence[Any],
        *,
        variables: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
        max_concurrency: int | None = None,
        timeout_s: float = float("inf"),
        deadline: float = float("inf"),
    ) -> Run:
        """Start a run with one item per input; return as soon as it is recorded.

        The run lives in the runtime's block, not in the caller's scopes: cancel it with :meth:`Run.cancel`.

        Args:
            flow: the flow.
            inputs: one input for each item.
            variables: values of the flow's variables.
            overrides: changes to the flow's steps, ``{"steps": {id: {"value": …}}}``.
            max_concurrency: items in flight at once, 100 by default.
            timeout_s: how long it may take, in seconds from now on.
            deadline: when to give it up, on ``trio.current_time()``'s clock; the earlier one counts.

        Raises:
            FlowInvalid: the flow cannot be run as written, or as overridden; nothing was started.
            RpcError: −32004, the overrides do not fit the flow.
            LocalProtocolError: an input or a variable is not JSON, or the runtime's block has been left.
            TypeError: ``inputs`` is one value and not a sequence of them.
            ValueError: ``max_concurrency`` is less than 1.
        """
        began_at = trio.current_time()
        if max_concurrency is not None and max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, not {max_concurrency}")
        if not isinstance(inputs, Sequence) or isinstance(inputs, (str, bytes)):  # pyright: ignore[reportUnnecessaryIsInstance]: callers are not all checked
            raise TypeError(f"inputs is a list with one input for each item, not {type(inputs).__name__}")
        read = await beside_the_loop(flow, lambda: _read_flow(flow))
        await _check_inputs(inputs)
        variables = dict(variables or {})
        _check_json(variables, "<variables>")
        runs = read
        if overrides:
            runs = await beside_the_loop(
                read, lambda: flow_from_json(apply_overrides(read.to_json(), overrides))
            )
        # Stored, so that components can name the flow that they run in.
        return await self._runs.submit(
            runs,
            await self.flows.put(read),
            inputs,
            variables=variables,
            overrides=overrides,
            max_concurrency=max_concurrency,
            deadline=min(deadline, began_at + timeout_s),
            timeout_s=timeout_s if began_at + timeout_s <= deadline else None,
        )

    async def submit_stored(
        self,
        flow_id: str,
        inputs: Sequence[Any],
        *,
        variables: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
        max_concurrency: int | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Start a run of a flow that is stored, as :meth:`submit` does, and return its id.

        With an ``idempotency_key`` that came before with the same submission it returns the id of that run,
        as long as there is a record of it.

        Args:
            flow_id: the flow's.
            inputs: one input for each item.
            variables: values of the flow's variables.
            overrides: changes to the flow's steps, ``{"steps": {id: {"value": …}}}``.
            max_concurrency: items in flight at once, 100 by default.
            idempotency_key: names the submission, so that it can be repeated without a second run.

        Raises:
            FlowNotFound: no flow is stored under this id.
            RpcError: −32004, the flow cannot be run, or the overrides do not fit it.
            KeyReused: the key came before, with another submission.
            LocalProtocolError: an input or a variable is not JSON, or the runtime's block has been left.
            ValueError: ``max_concurrency`` is less than 1.
        """
        if max_concurrency is not None and max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, not {max_concurrency}")
        variables = dict(variables or {})
        await _check_inputs(inputs)
        _check_json(variables, "<variables>")
        flow, known_id = await self.flows.get_to_run(flow_id, overrides)

        async def submit(digest: str | None = None) -> str:
            run = await self._runs.submit(
                flow,
                known_id,
                inputs,
                variables=variables,
                max_concurrency=max_concurrency,
                overrides=overrides,
                idempotency_key=idempotency_key,
                submission_digest=digest,
            )
            return run.id

        if idempotency_key is None:
            return await submit()
        submission = Submission(
            flow_id=known_id,
            inputs=inputs,
            variables=variables,
            overrides=overrides,
            max_concurrency=max_concurrency,
        )
        digest = submission.digest(idempotency_key)
        return await self._submissions.submit_once(idempotency_key, digest, submit)

    async def list_components(self, *, with_unreachable: bool = False) -> list[ListedComponent]:
        """Every component that flows can use now, by path. Starts workers that do not run.

        ``with_unreachable`` also those that no route leads to, at the end and without a path.

        A plugin that cannot say is left out; :attr:`plugin_problems` says why.

        Raises:
            LocalProtocolError: the runtime's block has been left.
        """
        self._runs.check_open()
        listed: list[ListedComponent] = []

        async def list_plugin(name: str, plugin: Plugin) -> None:
            try:
                components = await plugin.list_components()
            except StepFailure as failure:
                self._unlisted[name] = failure.error.message
                return
            self._unlisted.pop(name, None)
            for info in components:
                paths = self._router.exposed_paths(name, info.component)
                listed.extend(ListedComponent(path=path, plugin=name, info=info) for path in paths)
                if with_unreachable and not paths:
                    listed.append(ListedComponent(path="", plugin=name, info=info))

        async with trio.open_nursery() as nursery:
            for name, plugin in self._plugins.items():
                nursery.start_soon(list_plugin, name, plugin)
        return sorted(listed, key=lambda it: (not it.path, it.path, it.plugin, it.info.component))

    @property
    def plugin_problems(self) -> dict[str, str]:
        """Plugins whose worker could not be started or asked the last time, and why."""
        problems = dict(self._unlisted)
        for name, plugin in self._plugins.items():
            if isinstance(plugin, HostedPlugin) and plugin.problem is not None:
                problems[name] = plugin.problem
        return {name: self._redaction.text(problem) for name, problem in problems.items()}

    def __repr__(self) -> str:
        return f"<Runtime: plugins {', '.join(self._plugins)}>"


@asynccontextmanager
async def open_runtime(
    config: Config | str | os.PathLike[str] | None = None,
    *,
    workers: Mapping[str, ServesLink] | None = None,
    on_event: Observer | None = None,
    blob_store: BlobStore | None = None,
    run_store: RunStore | None = None,
    limits: Limits | None = None,
    enforce_schemas: bool = True,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    randomness: random.Random | None = None,
) -> AsyncGenerator[Runtime]:
    """Run a runtime for as long as the block lasts.

    Everything it does is done by tasks of this block: it has no globals and installs no signal handlers.
    Configured workers are started at once, in the background; one that cannot be started costs only its own
    components. Leaving the block, in whichever way, cancels the runs that are at work and ends the workers
    and their processes; the exception that comes out is the block's own.

    Args:
        config: plugins, routes, retries, or the path of a configuration file, whose ``$VAR`` are taken from
            this process's environment; without it, the builtin components at ``/builtin/…``.
        workers: workers of this process by plugin name. Configured routes may lead to them; where none leads
            to a name, the worker's components are at ``/<name>/…``.
        on_event: called with everything that happens, as it happens; must be quick. What it raises is logged.
        blob_store: where blobs are kept; in memory by default.
        run_store: where the histories of runs are kept; in memory by default.
        limits: the bounds of each worker's connection.
        enforce_schemas: whether inputs, variables, steps' outputs and outputs must fit the schemas of their
            flow; False lets everything pass, as the public releases do.
        now: the clock for what is recorded.
        new_id: makes run ids.
        randomness: for the jitter of retries and of probes.

    Raises:
        ConfigError: the configuration cannot be read, a name is used for two plugins or cannot stand in a
            path, ``workers`` are none, or the routes cannot be used or lead to no plugin.
        BindFailed: the blob API, for workers over HTTP, cannot listen where the configuration says.
    """
    workers = {} if workers is None else workers
    if not isinstance(workers, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]: callers are not all checked
        raise ConfigError(f"workers is {workers!r}; it must be a dict, such as {{'demo': Worker()}}")
    if config is None:
        config = DEFAULT_CONFIG
    elif not isinstance(config, Config):
        config = read_config_file(config, other_plugins=[*workers])
        for warning in config.warnings:
            _log.warning("%s", warning)
    for name, worker in workers.items():
        if isinstance(worker, type) or not hasattr(worker, "serve"):
            raise ConfigError(f"workers[{name!r}] is {worker!r}; it must be a Worker, such as Worker()")
        if name in config.plugins:
            raise ConfigError(f"plugin {name!r} is configured, and given as a worker of this process too")
    routed = {rule.plugin for route in config.routes for rule in route.rules}
    for name in workers:
        is_segment = isinstance(name, str) and _PLUGIN_NAME.fullmatch(name)  # pyright: ignore[reportUnnecessaryIsInstance]: callers are not all checked
        if name not in routed and not is_segment:
            what = "its components would be at /<name>/…, so it can have no /, {, } or white space"
            raise ConfigError(f"workers has the name {name!r}: {what}")
    own_routes = [
        Route(pattern=f"/{name}/{{*component}}", rules=(Rule(plugin=name),))
        for name in workers
        if name not in routed
    ]
    for name in sorted(routed - workers.keys() - config.plugins.keys()):
        hint = did_you_mean(name, [*config.plugins, *workers])
        what = "is neither configured nor given as a worker of this process"
        raise ConfigError(f"a route leads to plugin {name!r}, which {what}{f'; {hint}' if hint else ''}")
    router = Router([*config.routes, *own_routes])
    blob_store = blob_store or MemoryBlobStore()
    run_store = run_store or MemoryRunStore()
    changes = RunChanges()
    at_work = StepsAtWork()
    redaction = Redaction()

    def observe(event: Event) -> None:
        if on_event is not None:
            try:
                on_event(event)
            except Exception:  # noqa: BLE001 — what happened has happened, whatever is made of it
                _log.exception("on_event failed with %r", event)

    async def record(event: RunEvent) -> None:
        if not redaction.is_idle:
            is_start = isinstance(event, RunStarted)
            event = await redaction.started(event) if is_start else redaction.recorded(event)
        await run_store.append(event)
        changes.note(event.run_id)
        observe(event)

    def observe_worker(event: Event) -> None:
        observe(redaction.told(event))

    def note_progress(event: StepProgressed) -> None:
        changes.note_progress(event.run_id)
        observe(event)

    randomness = randomness or random.Random()  # noqa: S311 — jitter
    plugins: dict[str, Plugin] = {}
    executor = Executor(
        plugins, router, config.retry, config.timeouts, record, at_work, now=now, randomness=randomness
    )
    async with AsyncExitStack() as opened:
        offer: BlobOffer | None = None
        if config.needs_blob_api:
            # Here, for h11 is loaded where it is needed.
            from stepflow_trio.runtime.http_plugins import open_blob_api

            offer = await opened.enter_async_context(open_blob_api(config.blob_api, blob_store))
        with redaction.guarding_logs(), one_exception():
            async with trio.open_nursery() as worker_nursery:
                try:
                    with one_exception():
                        async with trio.open_nursery() as run_nursery:
                            runs = Runs(
                                executor,
                                record,
                                nursery=run_nursery,
                                now=now,
                                new_id=new_id,
                                on_left=changes.note,
                                redaction=redaction,
                                run_timeout_s=config.timeouts.run_s,
                                enforce_schemas=enforce_schemas,
                            )
                            handlers = Handlers()
                            Callbacks(
                                blob_store, run_store, runs, at_work, note_progress, redaction, now=now
                            ).register(handlers)
                            maker = PluginMaker(
                                blob_store=blob_store,
                                runs=runs,
                                handlers=handlers,
                                nursery=worker_nursery,
                                observe=observe_worker,
                                limits=limits or Limits(),
                                timeouts=config.timeouts,
                                at_work=at_work,
                                randomness=randomness,
                                offer=offer,
                            )
                            for name, worker in workers.items():
                                plugins[name] = maker.of_worker(name, worker)
                            for name, plugin_config in config.plugins.items():
                                plugins[name] = maker.of_config(name, plugin_config)
                            for plugin in plugins.values():
                                if isinstance(plugin, HostedPlugin):
                                    plugin.start()
                            try:
                                yield Runtime(
                                    runs=runs,
                                    plugins=plugins,
                                    router=router,
                                    blob_store=blob_store,
                                    history=RunHistory(run_store, runs, changes, at_work),
                                    submissions=SubmissionsByKey(run_store),
                                    redaction=redaction,
                                )
                            finally:
                                runs.close()
                finally:
                    for plugin in plugins.values():
                        if isinstance(plugin, HostedPlugin):
                            plugin.stop()


def _read_flow(flow: FlowLike) -> Flow:
    if isinstance(flow, Flow):
        return flow
    if isinstance(flow, Mapping):
        return flow_from_json(dict(flow))
    return read_flow_file(flow)


async def _check_inputs(inputs: Sequence[Any]) -> None:
    for index, input in enumerate(inputs):
        _check_json(input, f"<input {index}>")
        if index % _CHECKED_AT_ONCE == _CHECKED_AT_ONCE - 1:
            await trio.lowlevel.checkpoint()


def _check_json(value: Any, name: str) -> None:
    """Refuse what an encoder would quietly make something else of, such as NaN, sets and bytes."""
    try:
        source_of_value(value, name=name)
    except FlowInvalid as exc:
        raise LocalProtocolError(f"not JSON: {exc}") from exc
