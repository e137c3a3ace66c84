"""How every command ends: its exit code, and what stderr says about an error.

==== =========================================================================================
0    success
1    the run failed, or the command could not be carried out, or nobody reads what it prints
2    it was used wrongly: the arguments, or a flow, a configuration, an input that cannot be used
130  interrupted with Ctrl-C; 143 by SIGTERM, 129 by SIGHUP
==== =========================================================================================

A user's error is one block on stderr, its place first; with ``--json`` it is an object (`notices`). The
traceback of an error of our own is shown where ``STEPFLOW_DEBUG`` is set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from stepflow_trio.cli.interruption import Interrupted
from stepflow_trio.cli.notices import complain, show_invalid, speak_json, speaks_json, written_place
from stepflow_trio.cli.standard_error import finish_errors
from stepflow_trio.errors import ConfigError, FlowInvalid, StepflowError

FAILED = 1
MISUSED = 2


class Unusable(Exception):
    """Something that the user gave cannot be used; the text says what, where and what to do.

    Args:
        message: what is wrong and what to do.
        place: the file, or the option, that it is about.
    """

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message, place)
        self.message = message
        self.place = place

    def __str__(self) -> str:
        return f"{self.place}: error: {self.message}" if self.place else f"error: {self.message}"


def run_command_line(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name, report how it went wrong, and return the exit code."""
    speak_json(False)
    try:
        return _exit_code(arguments)
    finally:
        finish_errors()


def _exit_code(arguments: Sequence[str]) -> int:
    from stepflow_trio.cli.commands import commands

    try:
        code = commands.main(list(arguments), prog_name="stepflow-trio", standalone_mode=False)
    except click.ClickException as exc:
        _show_misuse(exc, wants_json=speaks_json() or "--json" in arguments)
        return exc.exit_code
    except (FlowInvalid, ConfigError) as exc:
        show_invalid(exc)
        return MISUSED
    except Unusable as exc:
        complain(str(exc), message=exc.message, place=written_place(exc.place))
        return MISUSED
    except Interrupted as exc:
        return 128 + exc.number
    except BrokenPipeError:
        return FAILED
    except StepflowError as exc:
        complain(f"error: {exc}", code=getattr(exc, "code", None))
        return FAILED
    except Exception as exc:  # noqa: BLE001 — an error of our own, which must not look like the user's
        _report_internal_error(exc)
        return FAILED
    return code if isinstance(code, int) else 0


def _show_misuse(exc: click.ClickException, *, wants_json: bool) -> None:
    if not wants_json:
        exc.show()
        return
    speak_json(True)
    context = exc.ctx if isinstance(exc, click.UsageError) else None
    usage = context.get_usage().removeprefix("Usage: ") if context is not None else None
    complain(exc.format_message(), usage=usage)


def shows_tracebacks() -> bool:
    """Whether the environment asks for the tracebacks of internal errors."""
    return os.environ.get("STEPFLOW_DEBUG", "") not in ("", "0")


def _report_internal_error(exc: Exception) -> None:
    if shows_tracebacks():
        import traceback

        complain("".join(traceback.format_exception(exc)).rstrip("\n"))
    summary = f"{type(exc).__name__}: {exc}".splitlines()[0]
    hint = "" if shows_tracebacks() else "; set STEPFLOW_DEBUG=1 to see where it comes from"
    complain(f"internal error: {summary}{hint}")
