"""The command line: arguments and printing only. A command imports what it needs when it runs."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run ``stepflow-trio`` with this process's arguments, and exit; `exits` lists the exit codes."""
    # In this order: a signal during the imports that follow ends the process in silence.
    from stepflow_trio.cli.interruption import exit_on_signals

    exit_on_signals()
    from stepflow_trio.cli.exits import run_command_line

    sys.exit(run_command_line(sys.argv[1:]))
