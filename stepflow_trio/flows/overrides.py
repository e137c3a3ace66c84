"""Changes to a flow's steps for one run: JSON Merge Patch (RFC 7396), step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from stepflow_trio.errors import ErrorCode, RpcError
from stepflow_trio.flows.flow_shape import misspelled_step_fields
from stepflow_trio.flows.paths import render_path
from stepflow_trio.flows.suggestions import closest, did_you_mean

_OVERRIDES = ("steps",)
_OVERRIDE = ("$type", "value")


def apply_overrides(flow: Any, overrides: Mapping[str, Any] | None) -> Any:
    """A copy of ``flow``, a flow as JSON, with ``{"steps": {id: {"$type"?, "value"}}}`` applied.

    A null in a patch deletes what it stands for. What is not patched is shared with ``flow``. None, or an
    empty object, changes nothing. Keys that mean nothing are passed over, unless they are close to one that
    does.

    Raises:
        RpcError: −32004, the overrides are malformed, of another type than ``merge_patch``, name a step that
            the flow does not have, or have a misspelled key.
    """
    if not overrides:
        return flow
    _refuse_misspelled(overrides, _OVERRIDES, "overrides")
    patches: Any = overrides.get("steps")
    if not isinstance(patches, Mapping) or not isinstance(flow, dict):
        raise _refused('overrides must be {"steps": {step id: {"value": …}}}')
    patches = dict(cast("Mapping[str, Any]", patches))
    patched = dict(cast("dict[str, Any]", flow))
    steps: list[Any] = []
    ids: list[str] = []
    for step in cast("list[Any]", patched.get("steps") or []):
        step_id: Any = cast("dict[str, Any]", step).get("id") if isinstance(step, dict) else None
        if isinstance(step_id, str):
            ids.append(step_id)
        if isinstance(step_id, str) and step_id in patches:
            steps.append(merge_patch(step, _value_of(patches.pop(step_id), step_id)))
        else:
            steps.append(step)
    if patches:
        unknown = next(iter(patches))
        hint = did_you_mean(unknown, ids)
        raise _refused(
            f'overrides name step "{unknown}", which the flow does not have{f"; {hint}" if hint else ""}'
        )
    return {**patched, "steps": steps}


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396: ``patch`` applied to ``target``; neither is changed."""
    if not isinstance(patch, dict):
        return patch
    merged: dict[str, Any] = dict(cast("dict[str, Any]", target)) if isinstance(target, dict) else {}
    for key, value in cast("dict[str, Any]", patch).items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def _value_of(override: Any, step_id: str) -> Any:
    at = f"overrides{render_path(('steps', step_id))[1:]}"
    if isinstance(override, Mapping):
        override = cast("Mapping[str, Any]", override)
        _refuse_misspelled(override, _OVERRIDE, at)
    match override:
        case {"$type": kind} if kind != "merge_patch":
            raise _refused(f'the override of step "{step_id}" has type {kind!r}; only merge_patch exists')
        case {"value": value}:
            if isinstance(value, Mapping):
                _refuse_misspelled_fields(cast("Mapping[str, Any]", value), f"{at}.value")
            return cast("Any", value)
        case _:
            raise _refused(f'the override of step "{step_id}" has no "value"')


def _refuse_misspelled(fields: Mapping[str, Any], known: tuple[str, ...], at: str) -> None:
    for name in fields:
        if name not in known and (meant := closest(name, known)) is not None:
            raise _refused(f'{at} has no field "{name}"; did you mean "{meant}"?')


def _refuse_misspelled_fields(patch: Mapping[str, Any], at: str) -> None:
    for found in misspelled_step_fields(patch):
        raise _refused(f"{at}{render_path(found.path)[1:]}: {found.message}; {found.suggestion}")


def _refused(message: str) -> RpcError:
    return RpcError(ErrorCode.INVALID_VALUE, message)
