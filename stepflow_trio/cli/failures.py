"""Why a run failed: the message that the command ends with."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from stepflow_trio.cli.notices import complain
from stepflow_trio.cli.plain_text import count
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.results import Failed, FlowError, FlowResult
from stepflow_trio.runtime.events import (
    Event,
    ItemEnded,
    RunEnded,
    RunStarted,
    StepEnded,
    StepStarted,
    WorkerEnded,
    WorkerLine,
)

_STDERR_LINES = 20
"""Of what an error has from a stderr, so many lines are shown, the last ones."""

_REMEMBERED_LINES = 1000
"""Of what workers wrote last, so much is remembered, so as not to show it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRun:
    """Why a run failed, for people and for programs."""

    text: str
    message: str
    code: int
    hint: str | None
    run_id: str | None
    step: str | None
    failed_items: int
    items: int
    input_line: int | None
    """Of a batch, the line of the first input that failed."""

    def show(self) -> None:
        """Say it on stderr."""
        complain(
            self.text,
            message=self.message,
            code=self.code,
            hint=self.hint,
            event="run_failed",
            run_id=self.run_id,
            step_id=self.step,
            failed_items=self.failed_items,
            total_items=self.items,
            input_line=self.input_line,
        )


class Failures:
    """Takes in what happens, to know in which step the command's run failed.

    Args:
        flow: what is run.
        input_lines: of a batch, the line in the inputs' file that each item comes from; empty otherwise.
        quiet: what a worker wrote to stderr is shown when it has ended, instead of as it comes.
    """

    def __init__(self, flow: Flow, *, input_lines: Sequence[int], quiet: bool) -> None:
        self._components = {step.id: step.component for step in flow.steps}
        self._input_lines = input_lines
        self._quiet = quiet
        self._shown: deque[str] = deque(maxlen=_REMEMBERED_LINES)
        self._run_id: str | None = None
        self._is_over = False
        self._failed_steps: dict[int, list[tuple[str, FlowError]]] = {}
        """By item, the steps that failed in it; of items that are over, only those of the first to fail."""
        self._first: int | None = None

    def observe(self, event: Event) -> None:
        """Take in an event."""
        match event:
            case RunStarted() if self._run_id is None:
                self._run_id = event.run_id
            case StepStarted() if event.run_id == self._run_id:
                self._components[event.step_id] = event.component
            case StepEnded(result=Failed(error)) if event.run_id == self._run_id:
                self._failed_steps.setdefault(event.item_index, []).append((event.step_id, error))
            case ItemEnded() if event.run_id == self._run_id:
                self._end_item(event)
            case WorkerLine() if not self._quiet:
                self._shown.append(event.text)
            case RunEnded() if event.run_id == self._run_id:
                self._is_over = True
            case WorkerEnded() if self._quiet and not self._is_over:
                self._shown.extend(line.removeprefix("  | ") for line in event.detail.split("\n"))
            case _:
                pass

    def why(self, results: Sequence[FlowResult]) -> FailedRun | None:
        """Why the run failed, and in which step; None where it did not."""
        failed = [(index, result.error) for index, result in enumerate(results) if isinstance(result, Failed)]
        if not failed:
            return None
        index, error = failed[0]
        where = ""
        if self._input_lines:
            line = self._input_lines[index]
            where = (
                f": {len(failed):,} of {count(len(results), 'item')} failed, the first at input line {line}"
            )
        step_id = next((step for step, its in self._failed_steps.get(index, ()) if its == error), None)
        if step_id is not None:
            component = self._components.get(step_id)
            where += f" in step {step_id}{f' ({component})' if component else ''}"
        lines = [f"run failed{where}: {error.message} (code {error.code})"]
        lines += [f"  {hint}" for hint in _suggestion(error)]
        if (why := fault_of(error)) is not None:
            lines.append(f"  {why}")
        stderr = _stderr_tail(error)
        if any(line not in error.message and line not in self._shown for line in stderr):
            lines += [f"  | {line}" for line in stderr]
        hints = _suggestion(error)
        return FailedRun(
            text="\n".join(lines),
            message=error.message,
            code=error.code,
            hint=hints[0] if hints else None,
            run_id=self._run_id,
            step=step_id,
            failed_items=len(failed),
            items=len(results),
            input_line=self._input_lines[index] if self._input_lines else None,
        )

    def _end_item(self, event: ItemEnded) -> None:
        index = event.item_index
        if isinstance(event.result, Failed) and (self._first is None or index < self._first):
            if self._first is not None:
                self._failed_steps.pop(self._first, None)
            self._first = index
        else:
            self._failed_steps.pop(index, None)


def fault_of(error: FlowError) -> str | None:
    """What the error's data says of a component that broke, unless its message does."""
    stack: Any = _detail(error, "stack")
    first = cast("list[Any]", stack)[0] if isinstance(stack, list) and stack else None
    found: Any = cast("dict[str, Any]", first).get("attachments") if isinstance(first, dict) else None
    last = cast("list[Any]", found)[-1] if isinstance(found, list) and found else None
    return last if isinstance(last, str) and last not in error.message else None


def _suggestion(error: FlowError) -> list[str]:
    """What the error's data says to do instead, unless its message does."""
    found = _detail(error, "suggestion")
    return [found] if isinstance(found, str) and found and found not in error.message else []


def _stderr_tail(error: FlowError) -> list[str]:
    """The last lines of the stderr that the error's data has, as a list of lines or as a text."""
    found = _detail(error, "stderr")
    if isinstance(found, str):
        found = found.rstrip().split("\n") if found.strip() else []
    lines = cast("list[Any]", found) if isinstance(found, list) else []
    return [line for line in lines if isinstance(line, str)][-_STDERR_LINES:]


def _detail(error: FlowError, name: str) -> object:
    data: Any = error.data
    return cast("dict[str, Any]", data).get(name) if isinstance(data, dict) else None
