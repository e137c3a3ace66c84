"""``stepflow-trio run``: a flow over configured workers, progress on stderr, results on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from stepflow_trio.cli.exits import FAILED, complain
from stepflow_trio.cli.interruption import run_until_signal
from stepflow_trio.cli.plain_text import count
from stepflow_trio.cli.reporting import Reporter, open_reporter
from stepflow_trio.cli.results_output import ResultsOutput
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.results import Failed, FlowResult
from stepflow_trio.runtime import open_runtime
from stepflow_trio.runtime.config import Config


def run_flow(
    flow: Flow,
    config: Config,
    inputs: Sequence[Any],
    *,
    variables: dict[str, Any],
    max_concurrency: int | None,
    is_batch: bool,
    output: ResultsOutput,
    quiet: bool,
) -> int:
    """Run a flow with each input, write the results, say why if one failed, and return the exit code.

    Raises:
        Interrupted: a signal cancelled the run. Nothing was written, and no worker is left.
    """
    with open_reporter(quiet=quiet) as reporter:

        async def run() -> list[FlowResult | None]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reporter.keep_showing)
                async with open_runtime(config, on_event=reporter.observe) as runtime:
                    submitted = await runtime.submit(
                        flow, inputs, variables=variables, max_concurrency=max_concurrency
                    )
                    await submitted.wait()
                nursery.cancel_scope.cancel(reason="the run is over")
            return submitted.results

        ended = run_until_signal(run, on_signal=lambda number: _announce_end(reporter))
    results = [result for result in ended if result is not None]
    output.write(results, is_batch=is_batch)
    failures = [result.error for result in results if isinstance(result, Failed)]
    if not failures:
        return 0
    how_many = f"{len(failures):,} of {count(len(results), 'item')} failed, the first with: " if is_batch else ""
    complain(f"run failed: {how_many}{failures[0].message} (code {failures[0].code})")
    return FAILED


def _announce_end(reporter: Reporter) -> None:
    reporter.warn("interrupted: ending the run and its workers")
