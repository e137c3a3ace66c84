"""Where the public releases are that ``bash .ci/peers`` installs, and how a test says that it needs some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PEERS = Path(os.environ.get("STEPFLOW_TRIO_PEERS", Path.home() / ".cache" / "stepflow-trio" / "peers"))
WORKERS = Path(__file__).parent / "workers"


def sdk_python(release: str) -> Path:
    """The interpreter that has stepflow-py of this release."""
    return PEERS / f"stepflow-py-{release}" / "bin" / "python"


def server_binary(release: str) -> Path:
    """The server that stepflow-orchestrator of this release brings along."""
    installed = PEERS / f"stepflow-orchestrator-{release}"
    [binary] = installed.glob("lib/python*/site-packages/stepflow_orchestrator/bin/stepflow-server")
    return binary


def needs(*names: str) -> list[pytest.MarkDecorator]:
    """The marks of tests that drive these releases, such as ``stepflow-py-0.7.0``."""
    missing = [name for name in names if not (PEERS / name / "installed").exists()]
    reason = f"{', '.join(missing)} not in {PEERS}: `bash .ci/peers` installs what is missing"
    return [pytest.mark.peer, pytest.mark.skipif(bool(missing), reason=reason)]
