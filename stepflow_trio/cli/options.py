"""Options that several commands have, each with one meaning. Needs click and nothing that takes longer."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

CONTEXT = {"help_option_names": ["-h", "--help"]}


def value_option(*names: str, env: str | None = None, **settings: Any) -> Callable[[CommandT], CommandT]:
    """An option with a value, which may be given once: of two values neither is what was meant.

    Where it is not given, the environment variable ``env`` counts, unless it is empty.
    """

    def only_once(context: click.Context, parameter: click.Parameter, values: tuple[Any, ...]) -> Any:
        if len(values) > 1:
            raise click.BadParameter(f"given {len(values)} times; it can have one value", context, parameter)
        if values:
            return values[0]
        if env is None or not (given := os.environ.get(env)):
            return None
        try:
            return parameter.type.convert(given, parameter, context)
        except click.BadParameter as exc:
            raise click.BadParameter(f"{env}: {exc.message}", context, parameter) from None

    return click.option(*names, multiple=True, callback=only_once, **settings)


def json_option(command: CommandT) -> CommandT:
    """``--json``: both streams are for programs."""

    def speak(context: click.Context, parameter: click.Parameter, is_given: bool) -> None:
        if is_given:
            from stepflow_trio.cli.notices import speak_json

            speak_json(True)

    return click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=speak,
        help="JSON alone: a value on stdout, an object a line on stderr.",
    )(command)


def config_option(command: CommandT) -> CommandT:
    """``--config``."""
    return value_option(
        "--config",
        metavar="FILE",
        help="Plugins and routes. By default stepflow-config.yml, beside the flow or here.",
    )(command)


def flow_argument(command: CommandT) -> CommandT:
    """A flow, named as an argument or, as the public releases have it, with an option."""

    @functools.wraps(command)
    def with_flow(*, flow: str | None, flow_option: str | None, **options: Any) -> Any:
        if flow is not None and flow_option is not None:
            raise click.UsageError("FLOW and --flow name the flow twice.")
        named = flow if flow is not None else flow_option
        if named is None:
            raise click.MissingParameter(param_hint="'FLOW'", param_type="argument")
        return command(flow=named, **options)

    option = value_option("--flow", "flow_option", metavar="FILE", help="The flow, in place of FLOW.")
    return click.argument("flow", metavar="FLOW", required=False)(option(with_flow))  # pyright: ignore[reportReturnType]: it takes what command does and more


def run_options(command: CommandT) -> CommandT:
    """What a run is given and where its results go: of ``run`` and of ``submit``."""
    options = [
        value_option(
            "--input", metavar="FILE", help="The input, JSON or YAML by the file's suffix; - is stdin."
        ),
        value_option("--input-json", metavar="JSON", help="The input itself."),
        value_option("--input-yaml", metavar="YAML", help="The input itself."),
        value_option(
            "--stdin-format",
            type=click.Choice(["json", "yaml"]),
            help="What comes from stdin: json by default. Without any input option the input is read from "
            "there.",
        ),
        value_option("--inputs", metavar="FILE", help="A batch: one input a line, JSON; - is stdin."),
        value_option(
            "--max-concurrency",
            "--max-concurrent",
            metavar="N",
            type=click.IntRange(min=1),
            help="Items of a batch that run at once.",
        ),
        value_option("--variables", metavar="FILE", help="The flow's variables, an object; - is stdin."),
        value_option("--variables-json", metavar="JSON", help="The variables themselves."),
        value_option("--variables-yaml", metavar="YAML", help="The variables themselves."),
        click.option(
            "--env-variables",
            is_flag=True,
            help="Take variables that are not given from the environment: what env_var in their schema "
            "names, else STEPFLOW_VAR_<NAME>. JSON, or else text.",
        ),
        value_option(
            "--overrides",
            metavar="FILE",
            help='Changes to steps, {"steps": {id: {"value": …}}}: the value is merged into the step.',
        ),
        value_option("--overrides-json", metavar="JSON", help="The overrides themselves."),
        value_option("--overrides-yaml", metavar="YAML", help="The overrides themselves."),
        value_option("--output", metavar="FILE", help="Write the result there instead of to stdout."),
        click.option("--quiet", "-q", is_flag=True, help="Say only what goes wrong."),
        click.option("--exit-zero-on-failed-run", is_flag=True, help="Exit with 0 also when the run fails."),
    ]
    for option in reversed(options):
        command = option(command)
    return command
