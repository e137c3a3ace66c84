"""Running test cases: one runtime for each configuration, so many cases at once, results as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import trio

from stepflow_trio.cli.case_finding import Case, FlowTests
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import BindFailed, ConfigError, StepflowError
from stepflow_trio.flows.expectations import Difference, differences
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.results import Failed, FlowError, FlowResult
from stepflow_trio.runtime import open_runtime
from stepflow_trio.runtime.config import Config
from stepflow_trio.runtime.events import Event, Observer, RunStarted, StepEnded
from stepflow_trio.runtime.runtime import Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """What a test case came to."""

    case: Case
    duration_s: float
    result: FlowResult | None = None
    """None: the flow did not run to its end; ``problem`` says why."""
    problem: str | None = None
    differences: tuple[Difference, ...] = ()
    """Where the result is not what is expected; empty where nothing is."""
    failed_step: str | None = None
    """Of a run that failed, the step that it failed in."""

    @property
    def has_passed(self) -> bool:
        """Whether the result is what is expected."""
        return self.result is not None and self.case.expected is not None and not self.differences


@dataclass(slots=True, eq=False)
class FileRun:
    """The cases of one file on their way."""

    tests: FlowTests
    results: dict[int, CaseResult] = field(default_factory=dict[int, CaseResult])
    """By the case's index."""
    refusal: StepflowError | None = None
    """Why none of them could be run."""
    ended: trio.Event = field(default_factory=trio.Event)

    def take(self, result: CaseResult) -> None:
        """Take in what a case came to."""
        self.results[result.case.index] = result
        if len(self.results) == len(self.tests.cases):
            self.ended.set()

    def refuse(self, why: StepflowError) -> None:
        """None of the cases can be run."""
        self.refusal = why
        self.ended.set()


@dataclass(frozen=True, slots=True)
class ConfiguredRuns:
    """The files whose cases share a configuration, and so a runtime and its workers."""

    config: Config
    files: Sequence[FileRun]


async def run_cases(groups: Sequence[ConfiguredRuns], *, max_concurrency: int, observe: Observer) -> None:
    """Run all cases, ``max_concurrency`` at once; each file's end is told by its ``ended``.

    A runtime is opened when the first case of its configuration can begin, and closed after the last. What
    goes wrong with a plugin costs the cases that need it; with a runtime, its own files.

    Args:
        groups: what to run, in this order.
        max_concurrency: cases at once, of all groups together.
        observe: told what happens as long as there are cases at work: not of workers that end after them.
    """
    slots = trio.Semaphore(max_concurrency)
    with one_exception():
        async with trio.open_nursery() as nursery:
            for group in groups:
                await nursery.start(_run_group, group, slots, observe)


async def _run_group(
    group: ConfiguredRuns,
    slots: trio.Semaphore,
    observe: Observer,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the cases of a group; started when all of them are."""
    watch = _Watch(observe)
    is_open = False
    try:
        async with open_runtime(group.config, on_event=watch.observe) as runtime:
            is_open = True
            try:
                with one_exception():
                    async with trio.open_nursery() as nursery:
                        for file in group.files:
                            # Each run stores its flow: without the tests, which it does not depend on.
                            flow = msgspec.structs.replace(file.tests.flow, test=None)
                            for case in file.tests.cases:
                                await slots.acquire()
                                nursery.start_soon(_run_case, runtime, flow, file, case, slots, watch)
                        task_status.started()
            finally:
                watch.is_over = True
    except (ConfigError, BindFailed) as exc:
        if is_open:
            raise
        for file in group.files:
            file.refuse(exc)
        task_status.started()


async def _run_case(
    runtime: Runtime, flow: Flow, file: FileRun, case: Case, slots: trio.Semaphore, watch: _Watch
) -> None:
    began_at = trio.current_time()
    result: FlowResult | None = None
    problem: str | None = None
    failed_step: str | None = None
    try:
        run = await runtime.submit(flow, [case.input], variables=case.variables)
        await run.wait_as_owner()
    except StepflowError as exc:
        problem = str(exc)
    else:
        result = run.results[0]
        steps = watch.failed_steps.pop(run.id, [])
        if result is None:
            problem = "the run was cancelled"
        elif isinstance(result, Failed):
            failed_step = next((step for step, error in steps if error == result.error), None)
    finally:
        slots.release()
    found = differences(case.expected, result) if case.expected is not None and result is not None else ()
    file.take(
        CaseResult(
            case=case,
            duration_s=trio.current_time() - began_at,
            result=result,
            problem=problem,
            differences=tuple(found),
            failed_step=failed_step,
        )
    )


class _Watch:
    """Watches a runtime: in which steps its cases fail."""

    def __init__(self, observe: Observer) -> None:
        self._observe = observe
        self.is_over = False
        self.failed_steps: dict[str, list[tuple[str, FlowError]]] = {}
        """By run, of those that no component submitted."""

    def observe(self, event: Event) -> None:
        match event:
            case RunStarted(parent_run_id=None):
                self.failed_steps[event.run_id] = []
            case StepEnded(result=Failed(error)) if event.run_id in self.failed_steps:
                self.failed_steps[event.run_id].append((event.step_id, error))
            case _:
                pass
        if not self.is_over:
            self._observe(event)
