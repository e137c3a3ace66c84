"""Where the commands' configuration comes from."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from stepflow_trio.cli.given_values import read_stdin
from stepflow_trio.runtime.config import DEFAULT_CONFIG, Config, find_config, read_config, read_config_file


def read_configuration(path: str | None, *, beside: Path | None = None) -> Config:
    """Read the configuration at ``path``, or the one found beside a flow or here, or the default one.

    In it ``${STEPFLOW_PYTHON}`` is the interpreter that runs this, so that a worker in Python finds what is
    installed beside it; the environment may name another one.

    Raises:
        ConfigError: it cannot be read or used.
    """
    found = Path(path) if path is not None else find_config(beside, Path())
    return read_config_file(found) if found is not None else DEFAULT_CONFIG


def read_configuration_from_stdin() -> Config:
    """Read a configuration from stdin, JSON; relative paths in it start from the current directory.

    Raises:
        ConfigError: it cannot be used.
        Unusable: stdin cannot be read.
    """
    environ = {"STEPFLOW_PYTHON": sys.executable, **os.environ}
    return read_config(read_stdin(), name="<stdin>", directory=Path.cwd(), environ=environ)
