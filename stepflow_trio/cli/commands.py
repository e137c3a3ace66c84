"""The commands and their options. Each imports what it needs when it runs: ``--help`` needs only click."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from stepflow_trio import __version__
from stepflow_trio.cli.options import (
    CONTEXT,
    config_option,
    flow_argument,
    json_option,
    run_options,
    value_option,
)


@click.group(context_settings=CONTEXT, no_args_is_help=True)
@click.version_option(__version__, message="%(prog)s %(version)s")
def commands() -> None:
    """Run Stepflow flows: steps of a YAML file, executed by workers in any language.

    Exit codes: 0 success, 1 the run failed, 2 wrong usage or an invalid file, 130 interrupted.

    With --json, which every command has, stdout is only JSON, and all that is otherwise said to people on
    stderr is one JSON object a line: {"level", "message", "place"?, "hint"?, "code"?, …}.

    Errors of stepflow-trio's own show a traceback where STEPFLOW_DEBUG=1 is set.
    """


@commands.command(context_settings=CONTEXT)
@flow_argument
@config_option
@run_options
@value_option(
    "--timeout",
    metavar="SECS",
    type=click.FloatRange(min=0, min_open=True),
    help="Give the run up after so many seconds: what is unfinished then has failed (code -32203).",
)
@click.option("--no-schema-checks", is_flag=True, help="Run, whether or not values fit the flow's schemas.")
@json_option
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
@flow_argument
@config_option
@click.option(
    "--type-check", is_flag=True, help="Check the types, too. The workers are started to ask for theirs."
)
@click.option("--strict", is_flag=True, help="With --type-check: warn of what cannot be checked.")
@json_option
def validate(flow: str, config: str | None, *, type_check: bool, strict: bool) -> int:
    """Say what is wrong with a flow.

    And with its configuration, and which steps no route of it leads to. Nothing is started. Everything found
    is printed to stdout with its place; the exit code is 2 if any of it is an error.
    """
    from stepflow_trio.cli.validation import validate_files

    if strict and not type_check:
        raise click.UsageError("--strict goes with --type-check.")
    return validate_files(flow, config, type_check=type_check, strict=strict)


@commands.command(context_settings=CONTEXT)
@flow_argument
@config_option
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
@json_option
def infer(flow: str, config: str | None, **options: Any) -> int:
    """Complete a flow with the schemas that it does not declare.

    Those of its input, its output and its steps, as they follow from what the components take and return.
    The configuration's workers are started to ask them. What is wrong with the types is said on stderr; the
    exit code is 2 if any of it is an error, and the flow is written all the same. With --json all of that
    is one object.
    """
    from stepflow_trio.cli.inference import infer_flow

    return infer_flow(flow, config, **options)


@commands.command(context_settings=CONTEXT)
@flow_argument
@value_option(
    "--format",
    type=click.Choice(["svg", "png", "mermaid", "dot"]),
    help="By default what the suffix of --output says, else svg. png needs stepflow-trio[visualize].",
)
@value_option("--output", metavar="FILE", help="Write the drawing there; - is stdout, and the default.")
@click.option("--force", is_flag=True, help="Overwrite the file if it is there.")
@click.option("--no-servers", is_flag=True, help="Not which component each step calls.")
@click.option("--no-details", is_flag=True, help="Only the steps' ids and the arrows between them.")
@json_option
def visualize(
    flow: str,
    format: str | None,
    output: str | None,
    *,
    force: bool,
    no_servers: bool,
    no_details: bool,
) -> int:
    """Draw a flow: its steps and what they read.

    Each step is below all that it reads, with its component; what is read of it stands at the arrow. Dashed
    arrows are those that an $if or a $coalesce may do without. With --json stdout is an object with the
    format and the drawing, a PNG's in base64, or with the name of its file.
    """
    from stepflow_trio.cli.visualize import draw_flow

    return draw_flow(
        flow,
        format=format,
        output=output,
        overwrites=force,
        details=not no_details,
        servers=not no_servers,
    )


@commands.command(context_settings=CONTEXT)
@value_option(
    "--dialect",
    type=click.Choice(["0.8", "0.9", "0.11"]),
    help="The generation of the protocol, by its first release: 0.11 by default.",
)
@json_option
def schema(dialect: str | None) -> None:
    """Print the JSON Schema of every message."""
    from stepflow_trio.cli.standard_output import write_json
    from stepflow_trio.protocol.dialects import Dialect
    from stepflow_trio.protocol.schema import message_schema

    described = message_schema(Dialect(dialect) if dialect else Dialect.V0_11)
    write_json(described)


@commands.command("list-components", context_settings=CONTEXT)
@config_option
@value_option("--format", type=click.Choice(["pretty", "json", "yaml"]), help="pretty by default.")
@click.option("--schemas", is_flag=True, help="Show what each takes and returns.")
@click.option("--hide-unreachable", is_flag=True, help="Leave out what no route leads to.")
@json_option
def list_components(config: str | None, format: str | None, *, schemas: bool, hide_unreachable: bool) -> int:
    """List what the workers offer.

    Each component with the path that a flow's step names, and those that no step can name, for no route leads
    to them. The configuration's workers are started to ask them; one that cannot be asked is named on stderr,
    and makes the exit code 1. --json is --format json with it.
    """
    from stepflow_trio.cli.component_listing import list_configured_components
    from stepflow_trio.cli.notices import speaks_json

    if speaks_json() and format not in (None, "json"):
        raise click.UsageError(f"--json and --format {format} exclude each other.")
    return list_configured_components(
        config,
        format="json" if speaks_json() else format or "pretty",
        with_schemas=schemas,
        with_unreachable=not hide_unreachable,
    )


@commands.command(context_settings=CONTEXT)
@value_option(
    "--config",
    metavar="FILE",
    env="STEPFLOW_CONFIG",
    help="Plugins and routes. By default what STEPFLOW_CONFIG names, else stepflow-config.yml here.",
)
@click.option("--config-stdin", is_flag=True, help="Read the configuration from stdin, as JSON.")
@value_option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65535),
    env="STEPFLOW_PORT",
    help="Where to listen; 0: a free one. By default what STEPFLOW_PORT says, else 7840.",
)
@value_option("--host", metavar="ADDRESS", help="Where to listen: 127.0.0.1 by default, this machine alone.")
@value_option(
    "--bearer-token-file", metavar="FILE", help="Ask clients for a token that is in it; only yours to read."
)
@click.option(
    "--allowed-host", metavar="NAME", multiple=True, help="A name that clients reach it by. May be repeated."
)
@click.option("--allow-insecure-bind", is_flag=True, help="Let other machines in without a token.")
@click.option("--no-schema-checks", is_flag=True, help="Run, whether or not values fit the flows' schemas.")
@value_option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    env="STEPFLOW_LOG_LEVEL",
    help="What is said on stderr: info by default, each run's start and end; debug: each step's, too.",
)
@json_option
def serve(config: str | None, port: int | None, host: str | None, **options: Any) -> int:
    """Serve the REST API at /api/v1.

    \b
    stdout: {"port": N} when requests are taken
    stderr: the runs that start and end, what the workers write to their stderr, warnings, errors

    SIGINT or SIGTERM ends it with exit code 0, after the requests that are in flight; runs that are at work
    then are cancelled.
    """
    from stepflow_trio.cli.serving import serve_configured

    if options["config_stdin"]:
        if click.get_current_context().get_parameter_source("config") is ParameterSource.COMMANDLINE:
            raise click.UsageError("--config and --config-stdin exclude each other.")
        config = None
    return serve_configured(
        config,
        config_stdin=options["config_stdin"],
        host=host or "127.0.0.1",
        port=7840 if port is None else port,
        bearer_token_file=options["bearer_token_file"],
        allowed_hosts=list(options["allowed_host"]),
        allow_insecure_bind=options["allow_insecure_bind"],
        enforce_schemas=not options["no_schema_checks"],
        log_level=options["log_level"] or "info",
    )


@commands.command(context_settings=CONTEXT)
@click.argument("target", metavar="TARGET")
@click.option("--list", "lists", is_flag=True, help="Print its components and exit, without serving them.")
@click.option("--http", "over_http", is_flag=True, help="Serve over HTTP; by default over stdin and stdout.")
@value_option("--host", metavar="ADDRESS", help="With --http, where to listen: 127.0.0.1 by default.")
@value_option(
    "--port", metavar="N", type=click.IntRange(0, 65535), help="With --http: a free one by default."
)
@value_option(
    "--bearer-token-file", metavar="FILE", help="With --http: ask runtimes for a token that is in it."
)
@click.option(
    "--allowed-host", metavar="NAME", multiple=True, help="With --http: a name that runtimes reach it by."
)
@click.option("--allow-insecure-bind", is_flag=True, help="With --http: let other machines in, no token.")
@json_option
def worker(target: str, *, lists: bool, over_http: bool, **options: Any) -> int:
    """Serve the components of a worker that a module holds.

    TARGET is package.module:name or path/to/file.py:name; without :name it is the one Worker in there.

    \b
    stdout: over stdio the protocol and nothing else; over HTTP {"port": N} when requests are taken
    stderr: what the components print or log, errors

    In a configuration: command: ${STEPFLOW_PYTHON}, args: [-m, stepflow_trio, worker, components.py].
    """
    from stepflow_trio.cli.worker_hosting import host_worker, list_worker

    if lists:
        return list_worker(target)
    given = [name for name, value in options.items() if value]
    if given and not over_http:
        raise click.UsageError(f"--{given[0].replace('_', '-')} goes with --http.")
    return host_worker(target, over_http=over_http, **options)


@commands.command(context_settings=CONTEXT)
@value_option("--url", metavar="URL", help="The server: http://127.0.0.1:7840 by default.")
@flow_argument
@run_options
@value_option("--bearer-token-file", metavar="FILE", help="The token that the server asks for.")
@click.option("--wait/--no-wait", default=True, help="Wait for the result: the default; or print the run.")
@json_option
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
    stderr: the run's id, progress, errors

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


@commands.command(context_settings=CONTEXT)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@value_option(
    "--config", metavar="FILE", help="The configuration of all flows, in place of those that they have."
)
@click.option(
    "--case",
    "cases",
    metavar="NAME",
    multiple=True,
    help="Only cases of this name, with * for anything. May be repeated.",
)
@click.option("--update", is_flag=True, help="Let cases that fail expect what they came to, in their files.")
@click.option("--diff/--no-diff", default=True, help="Say where results are not as expected: the default.")
@value_option(
    "--max-concurrency",
    metavar="N",
    type=click.IntRange(min=1),
    help="Cases that run at once: 10 by default.",
)
@click.option(
    "--quiet",
    "-q",
    is_flag=True,
    help="Nothing of cases that pass, and no warnings of flows or configurations.",
)
@json_option
def test(paths: tuple[str, ...], config: str | None, **options: Any) -> int:
    """Run the test cases that flows carry.

    PATH is a flow, or a directory: all flows in and below it are tested. A flow's configuration is what its
    test: says (configFile or config), else stepflow-config.test.yml beside it, else what `run` uses.

    \b
    stdout: a line for each case, what it should have come to, and a summary; with --json one document
    stderr: what the workers write to their stderr, warnings, errors

    Exit codes: 0 all cases passed, or were updated; 1 a case failed; 2 wrong usage, or a flow or a
    configuration cannot be used, whatever the cases came to; 130 interrupted.
    """
    from stepflow_trio.cli.case_testing import run_flow_tests

    return run_flow_tests(
        paths,
        config=config,
        patterns=options["cases"],
        updates=options["update"],
        shows_diff=options["diff"],
        max_concurrency=options["max_concurrency"] or 10,
        quiet=options["quiet"],
    )
