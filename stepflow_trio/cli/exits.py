"""How every command ends: its exit code, and what stderr says about an error.

==== =========================================================================================
0    success
1    the run failed, or the command could not be carried out, or nobody reads what it prints
2    it was used wrongly: the arguments, or a flow, a configuration, an input that cannot be used
130  interrupted with Ctrl-C; 143 by SIGTERM, 129 by SIGHUP
==== =========================================================================================

A user's error is one block on stderr, its place first. The traceback of an error of our own is shown where
``STEPFLOW_DEBUG`` is set.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import click

from stepflow_trio.cli.interruption import Interrupted
from stepflow_trio.cli.plain_text import plain_lines
from stepflow_trio.errors import ConfigError, FlowInvalid, StepflowError

FAILED = 1
MISUSED = 2


class Unusable(Exception):
    """Something that the user gave cannot be used; the text says what, where and what to do."""


def run_command_line(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name, report how it went wrong, and return the exit code."""
    from stepflow_trio.cli.commands import commands

    try:
        code = commands.main(list(arguments), prog_name="stepflow-trio", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (FlowInvalid, ConfigError, Unusable) as exc:
        complain(str(exc))
        return MISUSED
    except Interrupted as exc:
        return 128 + exc.number
    except BrokenPipeError:
        return FAILED
    except StepflowError as exc:
        complain(f"error: {exc}")
        return FAILED
    except Exception as exc:  # noqa: BLE001 — an error of our own, which must not look like the user's
        _report_internal_error(exc)
        return FAILED
    return code if isinstance(code, int) else 0


def complain(text: str) -> None:
    """Write an error or a warning to stderr; what a terminal would act on is made visible."""
    with contextlib.suppress(OSError):  # the exit code still says it
        click.echo("\n".join(plain_lines(text)), err=True)


def shows_tracebacks() -> bool:
    """Whether the environment asks for the tracebacks of internal errors."""
    return os.environ.get("STEPFLOW_DEBUG", "") not in ("", "0")


def _report_internal_error(exc: Exception) -> None:
    if shows_tracebacks():
        import traceback

        click.echo("".join(traceback.format_exception(exc)), err=True, nl=False)
    summary = f"{type(exc).__name__}: {exc}".splitlines()[0]
    hint = "" if shows_tracebacks() else "; set STEPFLOW_DEBUG=1 to see where it comes from"
    complain(f"internal error: {summary}{hint}")
