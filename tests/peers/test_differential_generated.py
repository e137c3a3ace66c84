"""Flows that nobody has written: the public orchestrator and our runtime come to the same.

``STEPFLOW_TRIO_DIFFERENTIAL_EXAMPLES`` is how many are run; if it is set, they are others each time.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from differential_stage import RELEASE, Case, Pair, open_pair
from flow_reduction import reduced
from flow_strategies import FlowRun, flow_runs
from hypothesis import HealthCheck, Phase, given, settings
from releases import needs

EXAMPLES = os.environ.get("STEPFLOW_TRIO_DIFFERENTIAL_EXAMPLES")

pytestmark = [*needs(f"stepflow-orchestrator-{RELEASE}"), pytest.mark.timeout(0 if EXAMPLES else 120)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Generator[Pair]:
    with open_pair(tmp_path_factory.mktemp("server")) as opened:
        yield opened


def test_generated_flows_come_to_the_same(pair: Pair) -> None:
    @settings(
        max_examples=int(EXAMPLES or 800),
        derandomize=EXAMPLES is None,
        database=None,
        deadline=None,
        # What is found is made smaller by `reduced`, which knows what a flow is and takes seconds.
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(flow_runs())
    def check(run: FlowRun) -> None:
        case = Case(run.flow, run.inputs, run.variables, run.overrides)
        report = pair.report(case)
        if report is not None:
            kind = report.partition("\n")[0].partition(":")[0]
            small = reduced(case, lambda one: (pair.report(one, patience_s=2) or "").startswith(kind))
            pytest.fail(pair.report(small) or report, pytrace=False)

    check()
