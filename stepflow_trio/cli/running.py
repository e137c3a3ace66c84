"""``stepflow-trio run``: a flow over configured workers, progress on stderr, results on stdout."""

from __future__ import annotations

import trio

from stepflow_trio.cli.exits import FAILED, complain
from stepflow_trio.cli.interruption import run_until_signal
from stepflow_trio.cli.plain_text import count
from stepflow_trio.cli.reporting import Reporter, open_reporter
from stepflow_trio.cli.run_arguments import RunArguments
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.flows.results import Failed, FlowResult
from stepflow_trio.runtime import open_runtime


def run_flow(arguments: RunArguments) -> int:
    """Run a flow with each input, write the results, say why if one failed, and return the exit code.

    Raises:
        Interrupted: a signal cancelled the run. Nothing was written, and no worker is left.
    """
    reporters: list[Reporter] = []

    async def run() -> list[FlowResult | None]:
        # Opened in here, so that the terminal is as it was before a signal can end the process.
        with open_reporter(quiet=arguments.quiet) as reporter, one_exception():
            reporters.append(reporter)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reporter.keep_showing)
                async with open_runtime(arguments.config, on_event=reporter.observe) as runtime:
                    submitted = await runtime.submit(
                        arguments.flow,
                        arguments.inputs,
                        variables=arguments.variables,
                        max_concurrency=arguments.max_concurrency,
                    )
                    await submitted.wait()
                nursery.cancel_scope.cancel(reason="the run is over")
        return submitted.results

    def announce_end(number: int) -> None:
        for reporter in reporters:
            reporter.warn("interrupted: ending the run and its workers")

    ended = run_until_signal(run, on_signal=announce_end)
    results = [result for result in ended if result is not None]
    arguments.output.write(results, is_batch=arguments.is_batch)
    failures = [result.error for result in results if isinstance(result, Failed)]
    if not failures:
        return 0
    how_many = ""
    if arguments.is_batch:
        how_many = f"{len(failures):,} of {count(len(results), 'item')} failed, the first with: "
    complain(f"run failed: {how_many}{failures[0].message} (code {failures[0].code})")
    return FAILED
