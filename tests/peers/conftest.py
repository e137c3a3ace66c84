"""What the tests with public releases share: a failure shows what the orchestrator logged during the test."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from orchestrator import Orchestrator


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for value in item.funcargs.values():
        if isinstance(value, Orchestrator):
            log = value.new_log()
            if report.failed:
                report.sections.append((f"stepflow-server {value.release}", log[-20_000:]))
    return report
