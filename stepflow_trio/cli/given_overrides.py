"""Overrides as the user gives them: checked in full before anything starts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from stepflow_trio.cli.exits import Unusable
from stepflow_trio.errors import RpcError
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.overrides import apply_overrides
from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.flows.suggestions import did_you_mean
from stepflow_trio.protocol.json_types import json_type

_SHAPE = '{"steps": {"<step id>": {"value": {…}}}}'


def overridden(flow: Flow, overrides: Any, *, option: str, flow_path: str) -> Flow:
    """The flow with the overrides applied.

    Raises:
        Unusable: they are no overrides, or name a step that the flow does not have.
        FlowInvalid: the flow could not be run with them; each fault with its JSON path.
    """
    for fields, at, known in _objects(overrides, option):
        for key in fields:
            if key not in known:
                hint = did_you_mean(key, known) or f"overrides are {_SHAPE}"
                raise Unusable(f'"{key}" is no key of {at}; {hint}', option)
    try:
        value = apply_overrides(flow.to_json(), overrides)
    except RpcError as exc:
        raise Unusable(exc.message, option) from exc
    return flow_from_json(value, name=f"{Path(flow_path)} with {option}")


def _objects(overrides: Any, option: str) -> Iterable[tuple[dict[str, Any], str, tuple[str, ...]]]:
    """The objects that overrides are made of, where each is, and the keys that it may have."""
    whole = _object(overrides, "overrides", option)
    yield whole, "overrides", ("steps",)
    for step_id, override in _object(whole.get("steps", {}), "steps", option).items():
        at = f'the override of step "{step_id}"'
        fields = _object(override, at, option)
        yield fields, at, ("$type", "value")
        _object(fields.get("value", {}), f"the value of {at}", option)


def _object(value: Any, what: str, option: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unusable(f"{what} must be an object, not {json_type(value)}; overrides are {_SHAPE}", option)
    return cast("dict[str, Any]", value)
