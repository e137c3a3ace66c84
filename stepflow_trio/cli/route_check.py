"""Which of a flow's steps no route leads to: known before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stepflow_trio.errors import RpcError
from stepflow_trio.flows.diagnostics import Diagnostic, DiagnosticKind, Finding
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.source import Source, read_source
from stepflow_trio.runtime.config import DEFAULT_CONFIG, FILE_NAMES, Config
from stepflow_trio.runtime.routing import Router


def unreachable_steps(flow: Flow, flow_path: str, config: Config) -> list[Diagnostic]:
    """An error for each step whose component no route leads to, with its place in the flow's file.

    Conditions look at a step's input, which nobody knows yet: they are taken to hold. The last one says
    where a configuration was looked for, if there was none.
    """
    routes = [
        replace(route, rules=tuple(replace(rule, conditions=()) for rule in route.rules))
        for route in config.routes
    ]
    router = Router(routes)
    findings: list[Finding] = []
    for index, step in enumerate(flow.steps):
        try:
            router.resolve(step.component, None)
        except RpcError as exc:
            at = ("steps", index, "component")
            findings.append(Finding(DiagnosticKind.INVALID_COMPONENT, exc.message, at))
    if not findings:
        return []
    if config is DEFAULT_CONFIG:
        nowhere = f"no {FILE_NAMES[0]} beside the flow or in {Path.cwd()}: use --config"
        last = findings[-1]
        findings[-1] = Finding(last.kind, last.message, last.path, nowhere)
    # A pipe cannot be read twice: what came through one has no lines to show.
    is_there = Path(flow_path).is_file()
    source = (
        read_source(Path(flow_path).read_bytes(), name=flow_path) if is_there else Source(flow_path, None)
    )
    return [source.diagnostic(finding) for finding in findings]
