"""The commands and their options. Each imports what it needs when it runs: ``--help`` needs only click."""

from __future__ import annotations

import functools
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


def _flow_argument(command: CommandT) -> CommandT:
    """A flow, named as an argument or, as the public releases have it, with an option."""

    @functools.wraps(command)
    def with_flow(*, flow: str | None, flow_option: str | None, **options: Any) -> Any:
        if flow is not None and flow_option is not None:
            raise click.UsageError("FLOW and --flow name the flow twice.")
        named = flow if flow is not None else flow_option
        if named is None:
            raise click.MissingParameter(param_hint="'FLOW'", param_type="argument")
        return command(flow=named, **options)

    option = _value_option("--flow", "flow_option", metavar="FILE", help="The flow, in place of FLOW.")
    return click.argument("flow", metavar="FLOW", required=False)(option(with_flow))  # pyright: ignore[reportReturnType]: it takes what command does and more


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
@_flow_argument
@_config_option
@click.option(
    "--type-check", is_flag=True, help="Check the types, too. The workers are started to ask for theirs."
)
@click.option("--strict", is_flag=True, help="With --type-check: warn of what cannot be checked.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def validate(flow: str, config: str | None, *, type_check: bool, strict: bool, as_json: bool) -> int:
    """Say what is wrong with a flow.

    And with its configuration, and which steps no route of it leads to. Nothing is started. Everything found
    is printed to stdout with its place; the exit code is 2 if any of it is an error.
    """
    from stepflow_trio.cli.validation import validate_files

    if strict and not type_check:
        raise click.UsageError("--strict goes with --type-check.")
    return validate_files(flow, config, type_check=type_check, strict=strict, as_json=as_json)


@commands.command(context_settings=CONTEXT)
@_flow_argument
@_config_option
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    is_flag=False,
    flag_value="",
    help="Write the flow there instead of to stdout; without a FILE beside it, as <flow>.inferred.yaml.",
)
@click.option("--show-step-inputs", is_flag=True, help="Say what each step is given, and what it takes.")
@click.option("--strict", is_flag=True, help="Warn of what cannot be checked.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object, with all that was found.")
def infer(flow: str, config: str | None, **options: Any) -> int:
    """Complete a flow with the schemas that it does not declare.

    Those of its input, its output and its steps, as they follow from what the components take and return.
    The configuration's workers are started to ask them. What is wrong with the types is said on stderr; the
    exit code is 2 if any of it is an error, and the flow is written all the same.
    """
    from stepflow_trio.cli.inference import infer_flow

    return infer_flow(flow, config, **options)


@commands.command(context_settings=CONTEXT)
@click.argument("flow", metavar="FLOW")
@_value_option(
    "--format",
    type=click.Choice(["svg", "png", "mermaid", "dot"]),
    help="By default what the suffix of --output says, else svg. png needs stepflow-trio[visualize].",
)
@_value_option("--output", metavar="FILE", help="Write the drawing there; - is stdout, and the default.")
@click.option("--force", is_flag=True, help="Overwrite the file if it is there.")
@click.option("--no-details", is_flag=True, help="Only the steps' ids and the arrows between them.")
def visualize(flow: str, format: str | None, output: str | None, *, force: bool, no_details: bool) -> int:
    """Draw a flow: its steps and what they read.

    Each step is below all that it reads, with its component; what is read of it stands at the arrow. Dashed
    arrows are those that an $if or a $coalesce may do without.
    """
    from stepflow_trio.cli.visualize import draw_flow

    return draw_flow(flow, format=format, output=output, overwrites=force, details=not no_details)


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


@commands.command(context_settings=CONTEXT)
@_config_option
@_value_option("--port", metavar="N", type=click.IntRange(0, 65535), help="7840 by default; 0: a free one.")
@_value_option("--host", metavar="ADDRESS", help="Where to listen: 127.0.0.1 by default, this machine alone.")
@_value_option(
    "--bearer-token-file", metavar="FILE", help="Ask clients for a token that is in it; only yours to read."
)
@click.option(
    "--allowed-host", metavar="NAME", multiple=True, help="A name that clients reach it by. May be repeated."
)
@click.option("--allow-insecure-bind", is_flag=True, help="Let other machines in without a token.")
def serve(config: str | None, port: int | None, host: str | None, **options: Any) -> int:
    """Serve the REST API at /api/v1.

    \b
    stdout: {"port": N} when requests are taken
    stderr: what the workers write to their stderr, warnings, errors

    SIGINT or SIGTERM ends it with exit code 0, after the requests that are in flight; runs that are at work
    then are cancelled.
    """
    from stepflow_trio.cli.serving import serve_configured

    return serve_configured(
        config,
        host=host or "127.0.0.1",
        port=7840 if port is None else port,
        bearer_token_file=options["bearer_token_file"],
        allowed_hosts=list(options["allowed_host"]),
        allow_insecure_bind=options["allow_insecure_bind"],
    )


@commands.command(context_settings=CONTEXT)
@_value_option("--url", metavar="URL", help="The server: http://127.0.0.1:7840 by default.")
@_value_option("--flow", metavar="FILE", required=True, help="The flow, YAML or JSON.")
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
    "--max-concurrency",
    "--max-concurrent",
    metavar="N",
    type=click.IntRange(min=1),
    help="Items of a batch that run at once.",
)
@_value_option("--variables", metavar="FILE", help="The flow's variables, an object; - is stdin.")
@_value_option("--variables-json", metavar="JSON", help="The variables themselves.")
@_value_option("--variables-yaml", metavar="YAML", help="The variables themselves.")
@_value_option("--output", metavar="FILE", help="Write the result there instead of to stdout.")
@_value_option("--bearer-token-file", metavar="FILE", help="The token that the server asks for.")
@click.option("--wait/--no-wait", default=True, help="Wait for the result: the default; or print the run.")
@click.option("--quiet", "-q", is_flag=True, help="Do not show the run's id.")
@click.option("--exit-zero-on-failed-run", is_flag=True, help="Exit with 0 also when the run fails.")
def submit(
    *,
    url: str | None,
    bearer_token_file: str | None,
    wait: bool,
    exit_zero_on_failed_run: bool,
    **options: Any,
) -> int:
    """Run a flow on a server.

    \b
    stdout: the result as `run` prints it; with --no-wait the run, as the server describes it
    stderr: the run's id, errors

    Interrupted, it leaves the run as it is.
    """
    from stepflow_trio.cli.run_arguments import SubmitArguments
    from stepflow_trio.cli.submission import submit_flow

    code = submit_flow(
        SubmitArguments.read(**options),
        url=url or "http://127.0.0.1:7840",
        bearer_token_file=bearer_token_file,
        is_waited_for=wait,
    )
    return 0 if exit_zero_on_failed_run else code
