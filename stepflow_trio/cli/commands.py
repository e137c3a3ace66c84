"""The commands and their options. Each imports what it needs when it runs: ``--help`` needs only click."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from stepflow_trio import __version__

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

CONTEXT = {"help_option_names": ["-h", "--help"]}


def _only_once(context: click.Context, parameter: click.Parameter, values: tuple[Any, ...]) -> Any:
    if len(values) > 1:
        raise click.BadParameter(f"given {len(values)} times; it can have one value", context, parameter)
    return values[0] if values else None


def _value_option(*names: str, **settings: Any) -> Callable[[CommandT], CommandT]:
    """An option with a value, which may be given once: of two values neither is what was meant."""
    return click.option(*names, multiple=True, callback=_only_once, **settings)


def _config_option(command: CommandT) -> CommandT:
    return _value_option(
        "--config",
        metavar="FILE",
        help="Plugins and routes. By default stepflow-config.yml, beside the flow or here.",
    )(command)


@click.group(context_settings=CONTEXT, no_args_is_help=True)
@click.version_option(__version__, message="%(prog)s %(version)s")
def commands() -> None:
    """Run Stepflow flows: steps of a YAML file, executed by workers in any language.

    Exit codes: 0 success, 1 the run failed, 2 wrong usage or an invalid file, 130 interrupted.
    Errors of stepflow-trio's own show a traceback where STEPFLOW_DEBUG=1 is set.
    """


@commands.command(context_settings=CONTEXT)
@_value_option("--flow", metavar="FILE", required=True, help="The flow, YAML or JSON.")
@_config_option
@_value_option("--input", metavar="FILE", help="The input, JSON or YAML by the file's suffix; - is stdin.")
@_value_option("--input-json", metavar="JSON", help="The input itself.")
@_value_option("--input-yaml", metavar="YAML", help="The input itself.")
@_value_option(
    "--stdin-format",
    type=click.Choice(["json", "yaml"]),
    help="What comes from stdin: json by default. Without any input option the input is read from there.",
)
@_value_option("--inputs", metavar="FILE", help="A batch: one input a line, JSON; - is stdin.")
@_value_option(
    "--max-concurrency", metavar="N", type=click.IntRange(min=1), help="Items of a batch that run at once."
)
@_value_option("--variables", metavar="FILE", help="The flow's variables, an object; - is stdin.")
@_value_option("--variables-json", metavar="JSON", help="The variables themselves.")
@_value_option("--variables-yaml", metavar="YAML", help="The variables themselves.")
@_value_option("--output", metavar="FILE", help="Write the result there instead of to stdout.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress, only what goes wrong.")
@click.option("--exit-zero-on-failed-run", is_flag=True, help="Exit with 0 also when the run fails.")
def run(*, exit_zero_on_failed_run: bool, **options: Any) -> int:
    """Run a flow and print its result.

    \b
    stdout: the result, {"outcome": "success", "result": …} or {"outcome": "failed", "error": …};
            for a batch one a line, in the order of the inputs, each as soon as those before it are there
    stderr: the run's id, progress, what the workers write to their stderr, errors
    """
    from stepflow_trio.cli.run_arguments import RunArguments
    from stepflow_trio.cli.running import run_flow

    code = run_flow(RunArguments.read(**options))
    return 0 if exit_zero_on_failed_run else code


@commands.command(context_settings=CONTEXT)
@click.argument("flow", metavar="FLOW")
@_config_option
def validate(flow: str, config: str | None) -> int:
    """Say what is wrong with a flow.

    And with its configuration, and which steps no route of it leads to. Nothing is started. Everything found
    is printed to stdout with its place; the exit code is 2 if any of it is an error.
    """
    from stepflow_trio.cli.validation import validate_files

    return validate_files(flow, config)


@commands.command(context_settings=CONTEXT)
@_value_option(
    "--dialect",
    type=click.Choice(["0.8", "0.9", "0.11"]),
    help="The generation of the protocol, by its first release: 0.11 by default.",
)
def schema(dialect: str | None) -> None:
    """Print the JSON Schema of every message."""
    import json

    from stepflow_trio.cli.standard_output import write_line
    from stepflow_trio.protocol.dialects import Dialect
    from stepflow_trio.protocol.schema import message_schema

    described = message_schema(Dialect(dialect) if dialect else Dialect.V0_11)
    write_line(json.dumps(described, indent=2, ensure_ascii=False))


@commands.command("list-components", context_settings=CONTEXT)
@_config_option
@_value_option("--format", type=click.Choice(["pretty", "json"]), help="pretty by default.")
@click.option("--schemas", is_flag=True, help="Show what each takes and returns.")
def list_components(config: str | None, format: str | None, *, schemas: bool) -> int:
    """List what the workers offer.

    Each component with the path that a flow's step names. The configuration's workers are started to ask
    them; one that cannot be asked is named on stderr, and makes the exit code 1.
    """
    from stepflow_trio.cli.component_listing import list_configured_components

    return list_configured_components(config, as_json=format == "json", with_schemas=schemas)
