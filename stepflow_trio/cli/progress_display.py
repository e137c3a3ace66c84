"""Progress on a terminal: what has happened scrolls by, what is happening stands below and moves."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import trio
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stepflow_trio.cli.notices import Level
from stepflow_trio.cli.plain_text import count, duration, plain_line, plain_lines
from stepflow_trio.cli.run_state import RunState, WatchedRun, WatchedStep, ended_worker
from stepflow_trio.flows.results import Failed
from stepflow_trio.runtime.events import (
    Event,
    ItemEnded,
    RunEnded,
    RunStarted,
    StepEnded,
    StepProgressed,
    StepRetrying,
    StepStarted,
    WorkerEnded,
    WorkerLine,
    WorkerStarted,
)

REDRAW_INTERVAL_S = 0.1
"""Often enough to look alive; whatever happens in between costs no drawing."""

BAR_WIDTH = 20

BATCH_BAR_WIDTH = 60

SHOWN_AFTER_S = 0.2
"""Of a batch, a step has a row if it has run for so long: those that are over at once would only flicker."""

WIDE_COLUMNS = 72
"""A terminal with fewer shows neither a step's component nor its bar: how far it is stands there anyway."""

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ASCII_SPINNER = "|/-\\"


class ProgressDisplay:
    """Draws to stderr, which must be a terminal, from when it is made until `close`."""

    def __init__(self, input_lines: Sequence[int] = (), *, with_default: Collection[str] = ()) -> None:
        self._state = RunState(input_lines, with_default=with_default)
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._has_unicode = self._console.encoding.lower().startswith("utf")
        self._lines: list[Text] = []
        self._label_width = 0
        """Of the column in which finished steps are listed: the longest label so far."""
        self._is_broken = False
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def observe(self, event: Event) -> None:
        """Take in an event; it is shown at the next redrawing."""
        match event:
            case RunStarted() | ItemEnded() | RunEnded():
                self._observe_run(event)
            case StepStarted() | StepProgressed():
                step = self._state.take_step(event)
                if step is not None and not step.run.is_batch:
                    self._label_width = max(self._label_width, len(step.label))
            case StepRetrying() | StepEnded():
                self._observe_step(event)
            case WorkerStarted():
                self._say("·", f"worker {event.plugin} started" + (f", pid {event.pid}" if event.pid else ""))
            case WorkerLine():
                self._lines.append(Text.assemble((f"{event.plugin} | ", "cyan"), plain_line(event.text)))
            case WorkerEnded() if not self._state.is_over:
                self._say("!", ended_worker(event), "yellow")
            case _:
                pass

    def warn(self, text: str, *, level: Level = "warning") -> None:
        """Show something that is no event."""
        self._lines += [Text(line, "yellow") for line in plain_lines(text)]

    async def keep_showing(self) -> None:
        """Redraw until cancelled."""
        while True:
            self._redraw()
            await trio.sleep(REDRAW_INTERVAL_S)

    def close(self) -> None:
        """Show what is left, remove what moves, and give the terminal back."""
        self._state.steps.clear()
        self._redraw(is_last=True)
        try:
            self._live.stop()
        except OSError:
            self._is_broken = True

    # ---- what scrolls by ------------------------------------------------------------------------------

    def _observe_run(self, event: RunStarted | ItemEnded | RunEnded) -> None:
        run = self._state.take_run(event)
        if run is None:
            return
        if isinstance(event, RunStarted):
            if run.is_main:
                self._lines.append(Text(f"run_id: {event.run_id}"))
        elif isinstance(event, ItemEnded):
            if run.is_batch and isinstance(event.result, Failed):
                error = event.result.error
                named = f"{run.name + ': ' if run.name else ''}{run.item_name(event.item_index)}"
                self._say("✗", f"{named} failed: {error.message} (code {error.code})", "red")
        elif run.is_main and event.status == "completed":
            done = [count(run.total_items, "item")] if run.is_batch else []
            # Not every server says of a run which steps it had.
            done += [count(run.ended_steps, "step")] if run.ended_steps else []
            what = f": {', '.join(done)}" if done else ""
            self._say("✓", f"completed{what} in {duration(self._state.now())}", "green")

    def _observe_step(self, event: StepRetrying | StepEnded) -> None:
        step = self._state.take_step(event)
        if step is None:
            return
        took = duration(self._state.now() - step.started_at)
        if isinstance(event, StepRetrying):
            again = f"attempt {event.attempt + 1} in {duration(event.delay_s)}"
            text = f"{step.label} failed, {again}: {event.error.message} (code {event.error.code})"
            self._say("↻", text, "yellow")
        elif isinstance(event.result, Failed):
            error = event.result.error
            how = f"{step.how_it_failed(self._state.now())}: {error.message} (code {error.code})"
            style = "yellow" if step.has_default else "red"
            self._say("✗", f"{step.label} {how}{step.what_follows}", style)
        elif step.run.is_main and not step.run.is_batch:
            self._say("✓", f"{step.label:{self._label_width}}  {took:>6}  {step.component}", "green")

    def _say(self, sign: str, text: str, style: str = "dim") -> None:
        sign = sign if self._has_unicode else {"✓": "+", "✗": "x", "↻": "~", "·": "-"}.get(sign, sign)
        first, *others = plain_lines(text)
        self._lines.append(Text.assemble((f"{sign} ", style), (first, "" if style == "green" else style)))
        self._lines += [Text(f"  {line}", style) for line in others]

    # ---- what moves -----------------------------------------------------------------------------------

    def _redraw(self, *, is_last: bool = False) -> None:
        if self._is_broken:
            return
        lines, self._lines = self._lines, []
        try:
            # One write for all that has scrolled by; a flood of lines costs one redrawing.
            if lines:
                self._console.print(Text("\n").join(lines), soft_wrap=True)
            self._live.update(Text("") if is_last else self._moving_part(), refresh=True)
        except OSError:
            # The terminal is gone; the run goes on, its result has its own way out.
            self._is_broken = True

    def _moving_part(self) -> Group | Text:
        main = self._state.main
        if main is None:
            return Text(f"{self._spinner()} starting")
        steps = list(self._state.steps.values())
        if main.is_batch:
            latest = self._state.now() - SHOWN_AFTER_S
            steps = [step for step in steps if step.started_at <= latest]
        fitting = max(1, self._console.size.height - (5 if main.is_batch else 4))
        shown = steps if len(steps) <= fitting else steps[: fitting - 1]
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=40)
        table.add_column(no_wrap=True, justify="right", min_width=6)
        if is_wide := self._console.size.width >= WIDE_COLUMNS:
            table.add_column(no_wrap=True, overflow="ellipsis", style="dim", max_width=40)
            table.add_column(no_wrap=True, width=BAR_WIDTH)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for step in shown:
            table.add_row(*self._row(step, is_wide=is_wide))
        parts: list[Table | Text] = [table] if shown else []
        if len(shown) < len(steps):
            parts.append(Text(f"  and {len(steps) - len(shown):,} more steps", "dim"))
        if main.is_batch and self._has_begun(main):
            parts.append(self._batch_bar(main))
        parts.append(Text(self._summary(), "dim", no_wrap=True, overflow="ellipsis"))
        return Group(*parts)

    def _row(self, step: WatchedStep, *, is_wide: bool) -> list[Text | ProgressBar]:
        now = self._state.now()
        message = plain_line(step.message)
        if step.waits_until is not None:
            message = f"attempt {step.attempt + 1} in {duration(max(0.0, step.waits_until - now))}"
        elif step.attempt > 1:
            message = f"attempt {step.attempt} {message}".rstrip()
        row: list[Text | ProgressBar] = [
            Text(self._spinner(), "cyan"),
            Text(plain_line(step.label)),
            Text(duration(now - step.started_at)),
        ]
        if is_wide:
            row.append(Text(plain_line(step.component)))
            row.append(Text() if step.fraction is None else ProgressBar(1.0, step.fraction, BAR_WIDTH))
        percent = "" if step.fraction is None else f"{step.fraction:.0%} "
        row.append(Text(percent + message))
        return row

    def _batch_bar(self, run: WatchedRun) -> Table:
        """How much of a batch is done, as wide as the terminal allows."""
        width = min(BATCH_BAR_WIDTH, max(1, self._console.size.width - 8))
        share = run.ended_items / run.total_items if run.total_items else 1.0
        row = Table.grid(padding=(0, 1))
        row.add_row(" ", ProgressBar(1.0, share, width), Text(f"{int(share * 100):>3}%"))
        return row

    def _summary(self) -> str:
        run = self._state.main
        if run is None:
            return ""
        if not self._has_begun(run):
            return f"  {duration(self._state.now())}"
        summary = f"{count(run.ended_steps, 'step')} done, {len(self._state.steps)} running"
        if run.is_batch:
            summary = f"{self._state.batch_summary(run)}; {summary}"
        return f"  {summary}, {duration(self._state.now())}"

    def _has_begun(self, run: WatchedRun) -> bool:
        """Whether anything is known to have happened in it: not every server says so before its end."""
        return bool(self._state.steps or run.ended_steps or run.ended_items)

    def _spinner(self) -> str:
        frames = _SPINNER if self._has_unicode else _ASCII_SPINNER
        return frames[int(self._state.now() / REDRAW_INTERVAL_S) % len(frames)]
