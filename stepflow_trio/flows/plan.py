"""The scheduler of one run, as a pure data structure: step results in, steps to start out."""

from __future__ import annotations

import enum
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from stepflow_trio.errors import ErrorCode, LocalProtocolError
from stepflow_trio.flows.eager_evaluation import EagerExpression, eager_expression
from stepflow_trio.flows.evaluation import Evaluation
from stepflow_trio.flows.expressions import Expression
from stepflow_trio.flows.model import Flow, Step, UseDefault
from stepflow_trio.flows.results import Failed, FlowError, FlowResult, Success
from stepflow_trio.flows.suggestions import did_you_mean
from stepflow_trio.flows.value_bounds import puts_together
from stepflow_trio.flows.variables import variable_defaults

__all__ = ["Plan", "PreparedFlow", "ReadyStep", "StepStatus"]


class StepStatus(enum.Enum):
    """Where a step of a run stands."""

    BLOCKED = "blocked"
    """It waits for other steps, or nobody has needed it yet."""
    RUNNABLE = "runnable"
    """It may start."""
    RUNNING = "running"
    """It was handed out and has no result yet."""
    COMPLETED = "completed"
    """It succeeded, if only with its default."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """The run is over and did not need it."""


class ReadyStep(msgspec.Struct, frozen=True, gc=False):
    """A step that may start now, and the value of its input."""

    step: Step
    input: Any


class PreparedFlow:
    """What the plans of one flow have in common, found out once: for all items of a run.

    Args:
        flow: one without fatal diagnostics; references to steps that do not exist fail with −32201.
        variables: the run's variables; the flow's schema defaults stand behind them.
    """

    def __init__(self, flow: Flow, variables: Mapping[str, Any] | None = None) -> None:
        self.flow = flow
        self.variables = {**variable_defaults(flow.schemas), **(variables or {})}
        """With the schema's defaults behind them."""
        self.position = {step.id: index for index, step in enumerate(flow.steps)}
        self.must_execute = [step for step in flow.steps if step.must_execute]
        self._inputs: list[EagerExpression | UnsetType | None] = [UNSET] * len(flow.steps)
        self.puts_output_together = puts_together(flow.output)
        self.output = eager_expression(flow.output, self.variables)
        """None: what the output needs depends on results."""

    def input_of(self, position: int) -> EagerExpression | None:
        """The input of the step at this position; None: what it needs depends on results."""
        known = self._inputs[position]
        if known is UNSET:
            known = eager_expression(self.flow.steps[position].input, self.variables)
            self._inputs[position] = known
        return known


class Plan:
    """Decides which steps of one run start when, and what the run comes to.

    A step runs if the output, a step that runs, or ``mustExecute`` needs it, and as soon as its input is
    known. Nothing fails fast: what is needed runs to its end. A step whose input cannot be evaluated fails
    without running, whatever its ``onError`` says; ``onError: useDefault`` turns what its execution failed
    with into its default; a failure reaches everyone who reads that step. The run fails with the output's
    failure, else with that of the first ``mustExecute`` step that failed.

    It is deterministic: a plan of the same flow, input and variables that is given the same results, in an
    order in which they can occur, is in the same state. So a run is rebuilt by replaying the results on a new
    plan, taking what is ready before each. All calls together take time in proportion to the flow's size.

    Args:
        prepared: the flow and the run's variables.
        input: the run's input. Inputs and results are shared, not copied, and must not be changed.
        at_once: how many evaluations are done in one call at most. Then :attr:`is_behind` tells whether some
            are left: :meth:`catch_up` does them, and only then does `take_ready` give all that may start.

    Raises:
        LocalProtocolError: if steps wait for each other in a ring, which the flow's reader refuses.

    """

    def __init__(self, prepared: PreparedFlow, input: Any, *, at_once: int = sys.maxsize) -> None:
        self._prepared = prepared
        self._flow = prepared.flow
        self._position = self._prepared.position
        self._input = input
        self._at_once = at_once
        self._results: dict[str, FlowResult] = {}
        self._step_errors: set[int] = set()  # the identities of the errors in it
        self._waiters: dict[str, list[_Waiter]] = {}
        self._demanded: deque[str] = deque()
        self._settled: deque[str] = deque()
        self._supplied: deque[tuple[_Waiter, str]] = deque()
        self._open: set[str] = set()
        self._ready: dict[str, ReadyStep] = {}
        self._running: set[str] = set()
        self._result: FlowResult | None = None
        self._output: FlowResult | None = None

        for step in self._prepared.must_execute:
            self._demand(step.id)
        self._evaluate(self._flow.output, self._prepared.output, None)
        self._advance()

    @property
    def result(self) -> FlowResult | None:
        """What the run came to; None until everything that it needs is finished."""
        return self._result

    @property
    def running(self) -> frozenset[str]:
        """The steps that were handed out and have no result yet."""
        return frozenset(self._running)

    @property
    def is_behind(self) -> bool:
        """Whether evaluations are left for `catch_up`."""
        return bool(self._supplied or self._settled or self._demanded)

    def catch_up(self) -> None:
        """Do evaluations that are left, as many as are done at once."""
        if self.is_behind:
            self._advance()

    def take_ready(self) -> list[ReadyStep]:
        """The steps that may start now and were not handed out before, in the order of the flow."""
        ready = list(self._ready.values())
        if len(ready) > 1:
            ready.sort(key=lambda r: self._position[r.step.id])
        self._running.update(self._ready)
        self._ready.clear()
        return ready

    def record(self, step_id: str, result: FlowResult) -> None:
        """Take the final result of a step that `take_ready` handed out, after whatever retries it had.

        Raises `LocalProtocolError`, and changes nothing, for any other step.
        """
        if step_id not in self._running:
            raise LocalProtocolError(self._why_not_running(step_id))
        self._running.remove(step_id)
        if isinstance(result, Failed):
            on_error = self._flow.steps[self._position[step_id]].on_error
            if isinstance(on_error, UseDefault):
                result = Success(on_error.value)
        self._settle(step_id, result)
        self._advance()

    def result_of(self, step_id: str) -> FlowResult | None:
        """What a step came to, its default applied; None as long as it is not finished, or never needed."""
        return self._results.get(step_id)

    def statuses(self) -> dict[str, StepStatus]:
        """Where every step stands, in the order of the flow."""
        return {step.id: self._status(step.id) for step in self._flow.steps}

    def _status(self, step_id: str) -> StepStatus:
        result = self._results.get(step_id)
        if result is not None:
            return StepStatus.COMPLETED if isinstance(result, Success) else StepStatus.FAILED
        if step_id in self._running:
            return StepStatus.RUNNING
        if step_id in self._ready:
            return StepStatus.RUNNABLE
        return StepStatus.BLOCKED if self._result is None else StepStatus.SKIPPED

    def _demand(self, step_id: str) -> None:
        if step_id not in self._open and step_id not in self._results:
            self._open.add(step_id)
            self._demanded.append(step_id)

    def _evaluate(self, expression: Expression, eager: EagerExpression | None, step: Step | None) -> None:
        waiter = _Waiter(step, eager)
        if eager is not None:
            results = self._results
            for needed in eager.needs:
                if needed not in results:
                    waiter.missing += 1
                    self._wait_for(needed, waiter)
            if not waiter.missing:
                self._conclude(waiter, eager.root.value(self._input, results))
            return
        waiter.evaluation = Evaluation(
            expression, input=self._input, variables=self._prepared.variables, results=self._results
        )
        self._follow(waiter, waiter.evaluation)

    def _wait_for(self, step_id: str, waiter: _Waiter) -> None:
        waiters = self._waiters.get(step_id)
        if waiters is None:
            self._waiters[step_id] = [waiter]
        else:
            waiters.append(waiter)
        self._demand(step_id)

    def _supply(self, waiter: _Waiter, step_id: str) -> None:
        """One of the steps that it waits for has its result."""
        if waiter.eager is not None:
            waiter.missing -= 1
            if not waiter.missing:
                self._conclude(waiter, waiter.eager.root.value(self._input, self._results))
        elif waiter.evaluation is not None:
            waiter.evaluation.supply(step_id)
            self._follow(waiter, waiter.evaluation)

    def _follow(self, waiter: _Waiter, evaluation: Evaluation) -> None:
        """Demand what an evaluation needs by now, and act on its outcome, once there is one."""
        for needed in evaluation.take_needs():
            self._wait_for(needed, waiter)
        if evaluation.outcome is not None:
            outcome = evaluation.outcome
            self._conclude(waiter, outcome.error if isinstance(outcome, Failed) else outcome.result)

    def _conclude(self, waiter: _Waiter, value: Any) -> None:
        """Act on the value of an input or of the output, or on the failure that it is."""
        step = waiter.step
        if step is None:
            self._output = Failed(value) if isinstance(value, FlowError) else Success(value)
        elif not isinstance(value, FlowError):
            self._ready[step.id] = ReadyStep(step, value)
        else:
            if id(value) not in self._step_errors:
                # Not another step's error, which travels unchanged: say whose input could not be had.
                message = f"the input of step {step.id}: {value.message}"
                value = FlowError(value.code, message, value.data)
            self._settle(step.id, Failed(value))

    def _settle(self, step_id: str, result: FlowResult) -> None:
        if isinstance(result, Failed):
            self._step_errors.add(id(result.error))
        self._results[step_id] = result
        self._open.remove(step_id)
        self._settled.append(step_id)

    def _advance(self) -> None:
        """Work off what has been demanded and settled. Queues, not recursion: a chain can be any length."""
        left = self._at_once
        supplied, settled, demanded = self._supplied, self._settled, self._demanded
        while supplied or settled or demanded:
            if not left:
                return
            left -= 1
            if supplied:
                self._supply(*supplied.popleft())
            elif settled:
                step_id = settled.popleft()
                waiters = self._waiters.pop(step_id, ())
                if len(waiters) == 1:
                    self._supply(waiters[0], step_id)
                else:
                    supplied.extend([(waiter, step_id) for waiter in waiters])
            else:
                self._begin(demanded.popleft())
        if not self._open:
            self._result = self._run_result()
        elif not self._ready and not self._running:
            stuck = ", ".join(sorted(self._open, key=lambda s: self._position[s])[:5])
            raise LocalProtocolError(f"these steps of the flow wait for each other in a ring: {stuck}")

    def _begin(self, step_id: str) -> None:
        position = self._position.get(step_id)
        if position is not None:
            step = self._flow.steps[position]
            self._evaluate(step.input, self._prepared.input_of(position), step)
            return
        hint = did_you_mean(step_id, self._position)
        message = f'the flow has no step "{step_id}"'
        error = FlowError(int(ErrorCode.ENTITY_NOT_FOUND), f"{message}; {hint}" if hint else message)
        self._settle(step_id, Failed(error))

    def _run_result(self) -> FlowResult:
        output = self._output
        if output is None:
            raise LocalProtocolError("the flow's output waits for no step and has no value")
        if isinstance(output, Success):
            for step in self._prepared.must_execute:
                if isinstance(result := self._results[step.id], Failed):
                    return result
        return output

    def _why_not_running(self, step_id: str) -> str:
        if step_id not in self._position:
            hint = did_you_mean(step_id, self._position)
            return f'the flow has no step "{step_id}"{"; " + hint if hint else ""}'
        if step_id in self._results:
            return f'step "{step_id}" has its result already'
        return f'step "{step_id}" was not started: it is {self._status(step_id).value}'


class _Waiter:
    """A step whose input is being evaluated, None: the flow's output; and how."""

    __slots__ = ("eager", "evaluation", "missing", "step")

    def __init__(self, step: Step | None, eager: EagerExpression | None) -> None:
        self.step = step
        self.eager = eager
        self.missing = 0
        """How many of the steps that `eager` needs have no result."""
        self.evaluation: Evaluation | None = None
        """Where it is not `eager`."""
