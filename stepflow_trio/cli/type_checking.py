"""What the type commands have in common: asking the workers for schemas, and checking a flow by them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stepflow_trio.cli.interruption import run_until_signal
from stepflow_trio.errors import RpcError
from stepflow_trio.flows.diagnostics import Diagnostic
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.source import Source
from stepflow_trio.flows.type_check import TypeCheck, check_types
from stepflow_trio.protocol.payloads import ComponentInfo
from stepflow_trio.runtime import ListedComponent, open_runtime
from stepflow_trio.runtime.config import Config
from stepflow_trio.runtime.routing import Router


@dataclass(frozen=True, slots=True)
class CheckedTypes:
    """A flow's types, and what stood in the way of knowing more."""

    types: TypeCheck
    diagnostics: list[Diagnostic]
    problems: list[str]
    """One line for each plugin of the flow's steps that could not be asked."""


def check_flow_types(flow: Flow, source: Source, config: Config, *, strict: bool) -> CheckedTypes:
    """Start the configured workers, ask what their components take and return, and check the flow by it.

    Raises:
        ConfigError: the configuration cannot be used.
        Interrupted: a signal came; no worker is left.
    """

    async def ask() -> tuple[list[ListedComponent], dict[str, str]]:
        async with open_runtime(config) as runtime:
            return await runtime.list_components(), runtime.plugin_problems

    listed, problems = run_until_signal(ask)
    infos: dict[str, ComponentInfo] = {}
    for component in listed:
        known = infos.setdefault(component.path, component.info)
        if known is not component.info:
            # Which of them a step means depends on its input: nothing is known of either.
            infos[component.path] = ComponentInfo(component=known.component)
    plugins = _plugins_of(flow, config)
    needed = {plugin for of_step in plugins.values() for plugin in of_step}
    asked = {path for path, of_step in plugins.items() if of_step and of_step.isdisjoint(problems)}
    types = check_types(flow, infos, strict=strict, asked=asked)
    return CheckedTypes(
        types,
        [source.diagnostic(finding) for finding in types.findings],
        [
            f"plugin {plugin} cannot be asked what its components take and return: {problem}"
            for plugin, problem in sorted(problems.items())
            if plugin in needed
        ],
    )


def _plugins_of(flow: Flow, config: Config) -> dict[str, set[str]]:
    """The plugins that each component of a flow's steps may go to, whatever their inputs are."""
    plugins: dict[str, set[str]] = {step.component: set() for step in flow.steps}
    for route in config.routes:
        for rule in route.rules:
            router = Router([replace(route, rules=(replace(rule, conditions=()),))])
            for step in flow.steps:
                try:
                    plugins[step.component].add(router.resolve(step.component, None).plugin)
                except RpcError:
                    continue
    return plugins
