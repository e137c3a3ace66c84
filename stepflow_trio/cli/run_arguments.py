"""The options of ``run`` and ``submit`` as what they stand for: a flow, inputs, variables, overrides."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stepflow_trio.cli.configuration import read_configuration
from stepflow_trio.cli.env_variables import referenced_variables, with_environment
from stepflow_trio.cli.given_overrides import overridden
from stepflow_trio.cli.given_values import (
    STDIN,
    Format,
    quoting_nothing,
    read_json_lines,
    read_stdin,
    read_text_value,
    read_value,
    require_object,
)
from stepflow_trio.cli.notices import complain, show_diagnostic, written_place
from stepflow_trio.cli.results_output import ResultsOutput
from stepflow_trio.cli.route_check import unreachable_steps
from stepflow_trio.errors import FlowInvalid
from stepflow_trio.flows.diagnostics import DiagnosticKind
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.reader import read_flow_file
from stepflow_trio.flows.secrets import FlowSecrets
from stepflow_trio.flows.suggestions import did_you_mean
from stepflow_trio.flows.variables import declared_variables
from stepflow_trio.runtime.config import Config

NOT_SHOWN = (DiagnosticKind.MISSING_FLOW_NAME, DiagnosticKind.MISSING_FLOW_DESCRIPTION)
"""Warnings that ``validate`` gives, and that nobody wants at every run."""

_FROM_STDIN = ("input", "inputs", "variables", "overrides")
"""Options whose file may be ``-``."""

_SOURCES = {
    "flow": "the flow",
    "input": "the input",
    "inputs": "the file of inputs",
    "variables": "the file of variables",
    "overrides": "the file of overrides",
}
"""What the files are that options name."""

_NO_INPUT = "There is no input: give --input, --input-json or --input-yaml, or pipe it in."


@dataclass(frozen=True, slots=True, kw_only=True)
class InputArguments:
    """What a run is given, and where its results go."""

    flow: Flow
    """As it is written, without the overrides."""
    inputs: list[Any]
    is_batch: bool
    input_lines: list[int]
    """Of a batch, the line that each input comes from; empty otherwise."""
    variables: dict[str, Any]
    overrides: dict[str, Any] | None
    max_concurrency: int | None
    output: ResultsOutput
    quiet: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunArguments(InputArguments):
    """Everything that a run needs."""

    config: Config
    timeout_s: float | None
    enforce_schemas: bool

    @classmethod
    def read(cls, *, timeout: float | None, no_schema_checks: bool, **options: Any) -> RunArguments:
        """Read all files that the options name, the flow first and stdin last.

        Raises:
            click.UsageError: the options contradict each other.
            FlowInvalid: the flow, an input or the variables say nothing that can be used.
            ConfigError: the configuration does.
            Unusable: a file cannot be read, overrides do not fit, or the output cannot be written.
        """
        given = _Given(options)
        flow_path: str = options["flow"]
        flow = _read_flow(given)
        config = read_configuration(options["config"], beside=Path(flow_path))
        # What a configuration says and nobody reads is most often why things go wrong: quiet or not.
        for warning in config.diagnostics:
            show_diagnostic(warning)
        if not given.overrides_option:
            _require_routes(flow, flow_path, config)
        fields = given.read(flow, config_path=config.source)
        if given.overrides_option:
            # An override may lead a step elsewhere.
            _require_routes(given.runs, f"{flow_path} with {given.overrides_option}", config)
        return cls(config=config, timeout_s=timeout, enforce_schemas=not no_schema_checks, **fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitArguments(InputArguments):
    """Everything that a run on a server needs."""

    @classmethod
    def read(cls, **options: Any) -> SubmitArguments:
        """As `RunArguments.read`, without a configuration."""
        given = _Given(options)
        return cls(**given.read(_read_flow(given)))


def _require_routes(flow: Flow, flow_path: str, config: Config) -> None:
    if unreachable := unreachable_steps(flow, flow_path, config):
        raise FlowInvalid(unreachable)


def _read_flow(given: _Given) -> Flow:
    """The flow, whose warnings are shown."""
    flow = read_flow_file(given.options["flow"])
    _show_warnings(flow, given.options)
    return flow


def _show_warnings(flow: Flow, options: Mapping[str, Any], *, but: Collection[str] = ()) -> None:
    for found in flow.warnings:
        if found.kind not in NOT_SHOWN and found.message not in but and not options.get("quiet"):
            show_diagnostic(found)


class _Given:
    """The options that were given; raises `click.UsageError` where they contradict each other."""

    def __init__(self, options: dict[str, Any]) -> None:
        given = {name: value for name, value in options.items() if value is not None}
        input_option = _only_one_of(given, "input", "input_json", "input_yaml", "inputs")
        variables_option = _only_one_of(given, "variables", "variables_json", "variables_yaml")
        overrides_option = _only_one_of(given, "overrides", "overrides_json", "overrides_yaml")
        if "max_concurrency" in given and input_option != "inputs":
            raise click.UsageError("--max-concurrency is for a batch: it goes with --inputs.")
        readers = [f"--{name}" for name in _FROM_STDIN if given.get(name) == STDIN]
        if input_option is None:
            if sys.stdin is not None and sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison]: stdin is None when closed at the start
                raise click.UsageError(_NO_INPUT)
            given["input"] = STDIN
            readers.insert(0, "the input")
        if len(readers) > 1:
            raise click.UsageError(f"stdin can be read once, but is to be {' and '.join(readers)}.")
        if "stdin_format" in given and (not readers or input_option == "inputs"):
            raise click.UsageError("--stdin-format is for an input from stdin, which this command has not.")

        self.options = given
        self._is_input_implied = input_option is None
        self._variables_option = variables_option
        self.overrides_option = _written(overrides_option) if overrides_option else None

    def read(self, flow: Flow, *, config_path: str | None = None) -> dict[str, Any]:
        """The fields of `InputArguments`, read from the files that the options name; checked by the flow."""
        given = self.options
        self.runs = flow
        """What runs: the flow, with the overrides."""
        output = ResultsOutput(given.get("output"))
        sources = {what: given.get(option) for option, what in _SOURCES.items()}
        sources["the configuration"] = config_path
        output.require_other_than({what: path for what, path in sources.items() if path})
        stdin_format: Format = given.get("stdin_format", "json")
        is_batch = "inputs" in given
        secrets = FlowSecrets.of(flow)
        with quoting_nothing(if_any_of=secrets and secrets.input):
            lines = read_json_lines(given["inputs"]) if is_batch else {}
        option = self._variables_option
        with quoting_nothing(if_any_of=secrets and secrets.variables):
            value: Any = _given_value(given, "variables", stdin_format) if option else {}
        variables = require_object(value, what=_written(option or "variables"))
        _warn_of_unknown(variables, flow, option=_written(option or "variables"))
        if given.get("env_variables"):
            variables = with_environment(flow, variables, os.environ)
        overrides: Any = None
        if self.overrides_option is not None:
            overrides = _given_value(given, "overrides", stdin_format)
            self.runs = overridden(flow, overrides, option=self.overrides_option, flow_path=given["flow"])
            _show_warnings(self.runs, given, but={found.message for found in flow.warnings})
        with quoting_nothing(if_any_of=secrets and secrets.input):
            inputs = list(lines.values()) if is_batch else [self._input(stdin_format)]
        return {
            "flow": flow,
            "inputs": inputs,
            "is_batch": is_batch,
            "input_lines": list(lines),
            "variables": variables,
            "overrides": overrides,
            "max_concurrency": given.get("max_concurrency"),
            "output": output,
            "quiet": bool(given.get("quiet")),
        }

    def _input(self, stdin_format: Format) -> Any:
        if self._is_input_implied:
            # Whoever redirects stdin from /dev/null, as services do, has given nothing.
            text = read_stdin()
            if not text.strip():
                raise click.UsageError(_NO_INPUT)
            return read_text_value(text, name="<stdin>", format=stdin_format)
        return _given_value(self.options, "input", stdin_format)


def _warn_of_unknown(variables: dict[str, Any], flow: Flow, *, option: str) -> None:
    """Say which variables a flow that declares its variables does not have."""
    declared = declared_variables(flow.schemas)
    if declared is None:
        return
    known = {**declared, **referenced_variables(flow)}
    for name in (name for name in variables if name not in known):
        hint = did_you_mean(name, known)
        message = f'the flow has no variable "{name}"'
        text = f"{option}: warning: {message}{'; ' + hint if hint else ''}"
        place = written_place(option)
        complain(text, level="warning", message=message, hint=hint or None, place=place)


def _given_value(given: dict[str, Any], name: str, stdin_format: Format) -> Any:
    if name in given:
        return read_value(given[name], stdin_format=stdin_format)
    format: Format = "json" if f"{name}_json" in given else "yaml"
    option = f"{name}_{format}"
    return read_text_value(given[option], name=_written(option), format=format)


def _only_one_of(given: dict[str, Any], *names: str) -> str | None:
    """Which of the options was given; raises `click.UsageError` where more than one was."""
    found = [name for name in names if name in given]
    if len(found) > 1:
        raise click.UsageError(f"{' and '.join(map(_written, found))} exclude each other.")
    return found[0] if found else None


def _written(name: str) -> str:
    return "--" + name.replace("_", "-")
