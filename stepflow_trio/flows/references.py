"""Checks on what a flow's expressions refer to: steps, in order and without rings, and variables."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from stepflow_trio.flows.diagnostics import DiagnosticKind, Finding
from stepflow_trio.flows.expressions import StepRef, VariableRef, static_needs, walk_expression
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.paths import JsonPath
from stepflow_trio.flows.schema_documents import flow_part
from stepflow_trio.flows.suggestions import did_you_mean
from stepflow_trio.flows.variables import declared_variables, variable_defaults

__all__ = ["check_references"]

_MAX_SUGGESTIONS = 100
"""Undefined steps for which a similar name is looked up: each look-up takes about a millisecond."""

_MAX_RING_SHOWN = 12


def check_references(flow: Flow) -> Iterator[Finding]:
    """What is wrong or odd about the references of a flow whose step ids are distinct."""
    yield from _step_references(flow)
    yield from _variable_references(flow)
    yield from _unreachable_steps(flow)
    yield from _schemas_of_no_step(flow)


def _references(flow: Flow) -> Iterator[tuple[int, JsonPath, StepRef | VariableRef]]:
    """Every reference, with the position of the step that makes it; the output's is behind the last."""
    for position, step in enumerate(flow.steps):
        for path, node in walk_expression(step.input, at=("steps", position, "input")):
            if isinstance(node, (StepRef, VariableRef)):
                yield position, path, node
    for path, node in walk_expression(flow.output, at=("output",)):
        if isinstance(node, (StepRef, VariableRef)):
            yield len(flow.steps), path, node


def _step_references(flow: Flow) -> Iterator[Finding]:
    # Of steps with one id, which is reported elsewhere, the first counts.
    position_of = {step.id: position for position, step in reversed(list(enumerate(flow.steps)))}
    references = list(_references(flow))
    needs: list[list[int]] = [[] for _ in range(len(flow.steps) + 1)]
    for position, _, node in references:
        if isinstance(node, StepRef) and node.step in position_of:
            needs[position].append(position_of[node.step])
    ring_of = _rings(needs)
    suggestions = 0
    shown_rings: set[int] = set()
    for position, path, node in references:
        if not isinstance(node, StepRef):
            continue
        here = (*path, "$step")
        own_id = flow.steps[position].id if position < len(flow.steps) else "workflow_output"
        reader = f'step "{own_id}"' if position < len(flow.steps) else "the output"
        target = position_of.get(node.step)
        if target is None:
            suggestions += 1
            hint = did_you_mean(node.step, position_of) if suggestions <= _MAX_SUGGESTIONS else ""
            message = f'{reader} refers to step "{node.step}", which does not exist'
            data = {"from_step": own_id, "referenced_step": node.step}
            yield Finding(DiagnosticKind.UNDEFINED_STEP_REFERENCE, message, here, hint, data=data)
        elif target == position:
            message = f"{reader} refers to itself"
            yield Finding(DiagnosticKind.SELF_REFERENCE, message, here, data={"step_id": own_id})
        elif target > position:
            ring = ring_of[position]
            if ring != ring_of[target]:
                message = f'{reader} refers to step "{node.step}", which comes later'
                hint = f'move "{node.step}" before it: a step may read earlier steps only'
                yield Finding(DiagnosticKind.FORWARD_REFERENCE, message, here, hint)
            elif ring not in shown_rings:
                shown_rings.add(ring)
                members = [flow.steps[p].id for p in _shortest_ring(needs, position, target)]
                yield Finding(
                    DiagnosticKind.REFERENCE_CYCLE,
                    f"steps wait for each other in a ring: {_shown_ring(members)}",
                    here,
                    "a step may read earlier steps only: take one of these references away",
                )


def _shown_ring(members: list[str]) -> str:
    if len(members) > _MAX_RING_SHOWN:
        members = [*members[: _MAX_RING_SHOWN - 2], "…", *members[-2:]]
    return " → ".join(members)


def _shortest_ring(needs: list[list[int]], start: int, second: int) -> list[int]:
    """The ring of the fewest steps that begins with a reference from ``start`` to ``second``."""
    came_from: dict[int, int] = {second: start}
    queue = deque([second])
    while start not in came_from:
        position = queue.popleft()
        for needed in needs[position]:
            if needed not in came_from:
                came_from[needed] = position
                queue.append(needed)
    ring = [start]
    position = came_from[start]
    while position != start:
        ring.append(position)
        position = came_from[position]
    return [start, *reversed(ring[1:]), start]


def _rings(needs: list[list[int]]) -> list[int]:
    """For each step a number that it shares with exactly those steps with which it forms rings.

    Tarjan's strongly connected components, without recursion: a chain can be any length.
    """
    index: list[int | None] = [None] * len(needs)
    low = [0] * len(needs)
    ring: list[int] = [-1] * len(needs)
    stack: list[int] = []
    count = 0
    for root in range(len(needs)):
        if index[root] is not None:
            continue
        work: list[tuple[int, Iterator[int]]] = [(root, iter(needs[root]))]
        index[root] = low[root] = count
        count += 1
        stack.append(root)
        while work:
            at, rest = work[-1]
            for needed in rest:
                known = index[needed]
                if known is None:
                    index[needed] = low[needed] = count
                    count += 1
                    stack.append(needed)
                    work.append((needed, iter(needs[needed])))
                    break
                if ring[needed] < 0:
                    low[at] = min(low[at], known)
            else:
                work.pop()
                if work:
                    below = work[-1][0]
                    low[below] = min(low[below], low[at])
                if low[at] == index[at]:
                    while True:
                        member = stack.pop()
                        ring[member] = at
                        if member == at:
                            break
    return ring


def _variable_references(flow: Flow) -> Iterator[Finding]:
    declared = declared_variables(flow.schemas)
    defaults = variable_defaults(flow.schemas)
    seen: set[str] = set()
    for position, path, node in _references(flow):
        if not isinstance(node, VariableRef):
            continue
        here = (*path, "$variable")
        if declared is None:
            if not seen:
                message = "the flow reads variables but has no schema for them"
                hint = "declare them in schemas.properties.variables"
                yield Finding(DiagnosticKind.MISSING_VARIABLE_SCHEMA, message, here, hint)
            seen.add(node.name)
        elif node.name not in declared:
            has_default = node.default is not None or node.name in defaults
            kind = (
                DiagnosticKind.UNDEFINED_VARIABLE
                if has_default
                else DiagnosticKind.UNDEFINED_REQUIRED_VARIABLE
            )
            message = f'variable "{node.name}" is not in schemas.properties.variables'
            hint = did_you_mean(node.name, declared) or "declare it there"
            own_id = flow.steps[position].id if position < len(flow.steps) else "workflow_output"
            data = {"variable": node.name, "context": f"step '{own_id}'"}
            yield Finding(kind, message, here, hint, data=data)


def _unreachable_steps(flow: Flow) -> Iterator[Finding]:
    step_of = {step.id: step for step in flow.steps}
    pending = [*static_needs(flow.output), *(step.id for step in flow.steps if step.must_execute)]
    reached = set(pending)
    while pending:
        step = step_of.get(pending.pop())
        if step is not None:
            fresh = static_needs(step.input) - reached
            reached |= fresh
            pending.extend(fresh)
    for position, step in enumerate(flow.steps):
        if step.id not in reached:
            message = f'step "{step.id}" never runs: neither the output nor a mustExecute step needs it'
            here = ("steps", position)
            yield Finding(DiagnosticKind.UNREACHABLE_STEP, message, here, data={"step_id": step.id})


def _schemas_of_no_step(flow: Flow) -> Iterator[Finding]:
    ids = [step.id for step in flow.steps]
    known = set(ids)
    steps = flow_part(flow.schemas, "steps")
    declared: dict[str, Any] = steps.root["properties"] if steps is not None else {}
    for step_id in declared:
        if step_id not in known:
            message = f'this schema is for no step: there is no "{step_id}"'
            here = ("schemas", "properties", "steps", "properties", step_id)
            hint = did_you_mean(step_id, ids)
            yield Finding(DiagnosticKind.UNKNOWN_FIELD, message, here, hint, at_key=True)
