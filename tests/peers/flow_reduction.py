"""The smallest flow in which what was found in a large one can still be seen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from differential_stage import Case

WITHIN_S = 30


def reduced(case: Case, is_still_so: Callable[[Case], bool]) -> Case:
    """The smallest case that can be had from this one by taking parts away while ``is_still_so``.

    It is the smallest that was found within `WITHIN_S`.
    """
    give_up_at = time.monotonic() + WITHIN_S
    while True:
        size = _size(case)
        for smaller in _smaller(case):
            if _size(smaller) >= size:
                continue
            if time.monotonic() > give_up_at:
                return case
            if is_still_so(smaller):
                case = smaller
                break
        else:
            return case


def _size(case: Case) -> int:
    return len(json.dumps([case.flow, [*case.inputs], dict(case.variables), case.overrides]))


def _smaller(case: Case) -> Iterator[Case]:
    """The case with one part less, the large parts first."""
    flow = case.flow
    for index in range(len(case.inputs) if len(case.inputs) > 1 else 0):
        yield replace(case, inputs=[*case.inputs[:index], *case.inputs[index + 1 :]])
    if case.overrides is not None:
        yield replace(case, overrides=None)
        yield from (replace(case, overrides=overrides) for overrides in _edits(case.overrides))
    steps: Sequence[dict[str, Any]] = flow["steps"]
    for index, step in enumerate(steps):
        rest = {**flow, "steps": [*steps[:index], *steps[index + 1 :]]}
        yield replace(case, flow=_without_references(rest, step["id"]))
    for name in case.variables:
        yield replace(case, variables={n: value for n, value in case.variables.items() if n != name})
    for index, value in enumerate(case.inputs):
        for smaller in _edits(value):
            yield replace(case, inputs=[*case.inputs[:index], smaller, *case.inputs[index + 1 :]])
    for key in ("output", "schemas"):
        for smaller in _edits(flow.get(key)):
            yield replace(case, flow={**flow, key: smaller})
    for index, step in enumerate(steps):
        for key, value in step.items():
            if key in ("onError", "mustExecute"):
                smaller_steps = [{k: v for k, v in step.items() if k != key}]
            elif key == "input":
                smaller_steps = [{**step, key: smaller} for smaller in _edits(value)]
            else:
                continue
            for smaller in smaller_steps:
                yield replace(case, flow={**flow, "steps": [*steps[:index], smaller, *steps[index + 1 :]]})


def _edits(value: Any) -> Iterator[Any]:
    """A value with a part replaced by null or by a part of that part, or taken away; the outermost first."""
    if value is not None:
        yield None
    members = _members(value)
    yield from (member for _, member in members)
    for key, _ in members:
        yield _with(value, key, remove=True)
    for key, member in members:
        for smaller in _edits(member):
            yield _with(value, key, smaller)


def _members(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return [*value.items()]
    return [*enumerate(value)] if isinstance(value, list) else []


def _with(value: Any, key: Any, member: Any = None, *, remove: bool = False) -> Any:
    copy = dict(value) if isinstance(value, Mapping) else list(value)
    if remove:
        del copy[key]
    else:
        copy[key] = member
    return copy


def _without_references(value: Any, step: str) -> Any:
    if isinstance(value, Mapping):
        if value.get("$step") == step:
            return None
        return {key: _without_references(member, step) for key, member in value.items()}
    return [_without_references(member, step) for member in value] if isinstance(value, list) else value
