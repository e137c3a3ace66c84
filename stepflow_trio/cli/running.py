"""``stepflow-trio run``: a flow over configured workers, progress on stderr, results on stdout."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import trio

from stepflow_trio.cli.exits import FAILED
from stepflow_trio.cli.failures import Failures
from stepflow_trio.cli.interruption import Interrupted, run_until_signal
from stepflow_trio.cli.notices import complain
from stepflow_trio.cli.reporting import Reporter, open_reporter
from stepflow_trio.cli.run_arguments import RunArguments
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.flows.model import UseDefault
from stepflow_trio.flows.results import FlowResult
from stepflow_trio.runtime import Run, open_runtime
from stepflow_trio.runtime.events import Event, Observer


def run_flow(arguments: RunArguments) -> int:
    """Run a flow with each input, write the results, say why if one failed, and return the exit code.

    Raises:
        Interrupted: a signal cancelled the run, and no worker is left. Of a batch, the results before the
            first unfinished item were written; nothing otherwise.
        BrokenPipeError: nobody reads stdout any more; a batch was cancelled.
        StepflowError: the results cannot be written; a batch was cancelled.
    """
    failures = Failures(arguments.flow, input_lines=arguments.input_lines, quiet=arguments.quiet)
    if arguments.is_batch:
        results = _run_batch(arguments, failures)
    else:
        results = _run_until_signal(arguments, [failures.observe])
        arguments.output.write(results[0])
    why = failures.why(results)
    if why is None:
        return 0
    why.show()
    return FAILED


def _run_batch(arguments: RunArguments, failures: Failures) -> list[FlowResult]:
    with arguments.output.open_batch() as output:
        # Lines that progress would be drawn over wait for its end.
        is_covered = arguments.output.is_on_screen and not arguments.quiet
        writers = [] if is_covered else [output.keep_writing]

        def follow(run: Run) -> None:
            output.results = run.results

        try:
            results = _run_until_signal(
                arguments, [failures.observe, output.observe], *writers, on_submitted=follow
            )
        except Interrupted:
            with suppress(BrokenPipeError):
                output.finish()
            written, of = output.lines_written, len(arguments.inputs)
            complain(f"{written:,} of {of:,} results written", level="info", written=written, of=of)
            raise
        for index, result in enumerate(results):
            output.take(index, result)
        output.finish()
    return results


def _run_until_signal(
    arguments: RunArguments,
    observers: Sequence[Observer],
    *tasks: Callable[[], Awaitable[object]],
    on_submitted: Callable[[Run], object] = lambda run: None,
) -> list[FlowResult]:
    """Run the flow while ``tasks`` run, which are cancelled when it is over."""
    reporters: list[Reporter] = []
    with_default = {step.id for step in arguments.flow.steps if isinstance(step.on_error, UseDefault)}

    async def run() -> list[FlowResult | None]:
        # Opened in here, so that the terminal is as it was before a signal can end the process.
        with (
            open_reporter(
                quiet=arguments.quiet, input_lines=arguments.input_lines, with_default=with_default
            ) as reporter,
            one_exception(),
        ):
            reporters.append(reporter)

            def observe(event: Event) -> None:
                for observer in (*observers, reporter.observe):
                    observer(event)

            async with trio.open_nursery() as nursery:
                for task in (reporter.keep_showing, *tasks):
                    nursery.start_soon(task)
                async with open_runtime(
                    arguments.config, on_event=observe, enforce_schemas=arguments.enforce_schemas
                ) as runtime:
                    submitted = await runtime.submit(
                        arguments.flow,
                        arguments.inputs,
                        variables=arguments.variables,
                        overrides=arguments.overrides,
                        max_concurrency=arguments.max_concurrency,
                        timeout_s=math.inf if arguments.timeout_s is None else arguments.timeout_s,
                    )
                    on_submitted(submitted)
                    await submitted.wait()
                nursery.cancel_scope.cancel(reason="the run is over")
        return submitted.results

    def announce_end(number: int) -> None:
        for reporter in reporters:
            reporter.warn("interrupted: ending the run and its workers")

    return [result for result in run_until_signal(run, on_signal=announce_end) if result is not None]
