"""``stepflow-trio test``: the test cases that flows carry, run and compared with what they expect."""

from __future__ import annotations

import sys
import time
from collections.abc import Hashable, Sequence
from contextlib import suppress

import trio

from stepflow_trio.cli.case_configuration import CaseConfigs
from stepflow_trio.cli.case_finding import (
    FlowTests,
    FoundTests,
    NotLoaded,
    choose_cases,
    find_tests,
    require_cases,
)
from stepflow_trio.cli.case_report import (
    CaseReport,
    FileReport,
    Status,
    Tally,
    TextReport,
    is_colourful,
    report_json,
)
from stepflow_trio.cli.case_running import ConfiguredRuns, FileRun, run_cases
from stepflow_trio.cli.case_secrets import CaseSecrets
from stepflow_trio.cli.case_update import Update, update_expectations
from stepflow_trio.cli.exits import FAILED, MISUSED
from stepflow_trio.cli.interruption import Interrupted, run_until_signal
from stepflow_trio.cli.line_writer import LineWriter
from stepflow_trio.cli.notices import complain, show_diagnostic, speaks_json
from stepflow_trio.cli.plain_text import count
from stepflow_trio.cli.reporting import open_reporter
from stepflow_trio.cli.route_check import unreachable_steps
from stepflow_trio.cli.run_arguments import NOT_SHOWN
from stepflow_trio.cli.standard_output import require_stdout, write_json, write_line
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import ConfigError, FlowInvalid
from stepflow_trio.runtime.config import DEFAULT_CONFIG, Config
from stepflow_trio.runtime.events import Event, WorkerEnded, WorkerLine


def run_flow_tests(
    paths: Sequence[str],
    *,
    config: str | None,
    patterns: Sequence[str],
    updates: bool,
    shows_diff: bool,
    max_concurrency: int,
    quiet: bool,
) -> int:
    """Run the test cases of the flows at ``paths``, say what each came to, and return the exit code.

    That is 2 where a flow or a configuration cannot be used, whatever the cases came to; else 1 where a case
    failed or could not be run; else 0. With ``--json`` stdout is one document, written at the end.

    Args:
        paths: flows, and directories with flows.
        config: the configuration of all of them, if not the one of each.
        patterns: names of cases to run, with wildcards; none: all.
        updates: let cases that fail expect what they came to, in their files.
        shows_diff: say where a result is not what is expected.
        max_concurrency: cases at once.
        quiet: pass over the cases that passed, warnings of flows and configurations, and what workers write
            to stderr.

    Raises:
        Unusable: there is nothing to test, or a path or a pattern leads nowhere.
        Interrupted: a signal came; no worker is left, and what had ended was reported.
        BrokenPipeError: nobody reads stdout any more.
        StepflowError: it cannot be written.
    """
    require_stdout()
    began_at = time.monotonic()
    found = choose_cases(find_tests(paths), patterns)
    require_cases(found, paths)
    session = _Session(found, config, quiet=quiet)
    text = None if speaks_json() else TextReport(shows_diff=shows_diff, quiet=quiet, in_colour=is_colourful())
    session.run(text, max_concurrency=max_concurrency, updates=updates)
    tally = session.tally
    tally.duration_s = time.monotonic() - began_at
    if text is None:
        write_json(report_json(session.reports, tally))
    else:
        write_line(tally.line())
    if tally.not_loaded:
        return MISUSED
    return FAILED if tally.errors or tally.cases["failed"] else 0


class _Session:
    """What is tested, and what was said of it so far."""

    def __init__(self, found: FoundTests, config: str | None, *, quiet: bool) -> None:
        self._quiet = quiet
        self._entries: list[FileReport | FileRun] = []
        """In the order in which they are reported."""
        self._configs: dict[Hashable, Config] = {}
        self._groups: dict[Hashable, list[FileRun]] = {}
        self._names: dict[FileRun, str | None] = {}
        """Of their configurations' files."""
        self.reports: list[FileReport] = []
        self.tally = Tally()
        configs = CaseConfigs(config)
        for file in found.files:
            self._entries.append(
                FileReport(path=file.path, error=file.why)
                if isinstance(file, NotLoaded)
                else self._prepared(file, configs)
            )

    def _prepared(self, tests: FlowTests, configs: CaseConfigs) -> FileReport | FileRun:
        if not self._quiet:
            for warning in tests.flow.warnings:
                if warning.kind not in NOT_SHOWN:
                    show_diagnostic(warning)
        try:
            found = configs.of(tests.path, tests.text, tests.flow, tests.source)
        except ConfigError as exc:
            return FileReport(path=tests.path, error=exc)
        name = None if found.config is DEFAULT_CONFIG else found.config.source
        if unreachable := unreachable_steps(tests.flow, tests.path, found.config):
            return FileReport(path=tests.path, config=name, error=FlowInvalid(unreachable))
        if found.key not in self._configs:
            self._configs[found.key] = found.config
            if not self._quiet:
                for warning in found.config.diagnostics:
                    show_diagnostic(warning)
        run = FileRun(tests)
        self._groups.setdefault(found.key, []).append(run)
        self._names[run] = name
        return run

    def run(self, text: TextReport | None, *, max_concurrency: int, updates: bool) -> None:
        """Run everything; report each file, in order, as soon as it and all before it have ended."""
        output = LineWriter(sys.stdout.fileno()) if text is not None else None
        groups = [ConfiguredRuns(self._configs[key], files) for key, files in self._groups.items()]

        async def run() -> None:
            # Its warnings and the ends of its workers are shown, and no progress: cases are reported.
            with open_reporter(quiet=True), one_exception():
                async with trio.open_nursery() as nursery:
                    if output is not None:
                        nursery.start_soon(output.keep_writing)
                    await self._run_and_report(groups, text, output, max_concurrency, updates=updates)
                    nursery.cancel_scope.cancel(reason="all cases have ended")

        def announce_end(number: int) -> None:
            complain("interrupted: ending the cases and their workers", level="info")

        try:
            run_until_signal(run, on_signal=announce_end)
        except Interrupted:
            if text is not None and output is not None:
                # What has ended and waits for a case before it.
                for entry in self._entries[len(self.reports) :]:
                    report = entry if isinstance(entry, FileReport) else self._report_of(entry, Update())
                    self._put(output, text, report)
                with suppress(BrokenPipeError):
                    output.finish()
            runs = list(self._names)
            ended, of = sum(len(run.results) for run in runs), sum(len(run.tests.cases) for run in runs)
            complain(f"{ended:,} of {count(of, 'case')} had ended", level="info", ended=ended, of=of)
            raise
        if output is not None:
            output.finish()

    async def _run_and_report(
        self,
        groups: Sequence[ConfiguredRuns],
        text: TextReport | None,
        output: LineWriter | None,
        max_concurrency: int,
        *,
        updates: bool,
    ) -> None:
        with one_exception():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._report, text, output, updates)
                await run_cases(groups, max_concurrency=max_concurrency, observe=self._show_workers)

    async def _report(self, text: TextReport | None, output: LineWriter | None, updates: bool) -> None:
        for entry in self._entries:
            report = entry if isinstance(entry, FileReport) else await self._ended(entry, updates=updates)
            self.reports.append(report)
            self.tally.add(report)
            if text is not None and output is not None:
                self._put(output, text, report)

    def _put(self, output: LineWriter, text: TextReport, report: FileReport) -> None:
        output.put("".join(f"{line}\n" for line in text.lines(report)).encode("utf-8", "replace"))

    async def _ended(self, run: FileRun, *, updates: bool) -> FileReport:
        await run.ended.wait()
        if run.refusal is not None:
            return FileReport(path=run.tests.path, config=self._names[run], error=run.refusal)
        update = Update()
        if updates:
            # In a thread: it reads, parses and writes files. It is not cut off in the middle.
            results = [run.results[case.index] for case in run.tests.cases]
            update = await trio.to_thread.run_sync(update_expectations, run.tests, results)
        return self._report_of(run, update)

    def _report_of(self, run: FileRun, update: Update) -> FileReport:
        """What became of the cases of a file, as far as they have ended."""
        results = [run.results[case.index] for case in run.tests.cases if case.index in run.results]
        cases: list[CaseReport] = []
        secrets = CaseSecrets(run.tests)
        for result in map(secrets.hidden, results):
            index = result.case.index
            status: Status = (
                "passed" if result.has_passed else "updated" if index in update.updated else "failed"
            )
            cases.append(CaseReport(result=result, status=status, remark=update.left.get(index, "")))
        return FileReport(path=run.tests.path, config=self._names[run], cases=cases)

    def _show_workers(self, event: Event) -> None:
        match event:
            case WorkerLine() if not self._quiet:
                line = f"{event.plugin} | {event.text}"
                complain(line, level="info", message=event.text, event="worker_line", plugin=event.plugin)
            case WorkerEnded():
                # Its last lines were shown as they came.
                detail = event.detail if self._quiet else event.detail.partition("; the last lines of")[0]
                text = f"worker {event.plugin} ended: {detail}"
                complain(text, level="warning", event="worker_ended", plugin=event.plugin)
            case _:
                pass
