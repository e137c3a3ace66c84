"""How a plugin of type ``mock`` is written: components, and what each comes to on which input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from stepflow_trio.flows.json_keys import key_of_value, value_of_key
from stepflow_trio.flows.paths import JsonPath
from stepflow_trio.flows.results import Failed, FlowError, Success
from stepflow_trio.runtime.config_values import ConfigValues, one_of

__all__ = ["MockBehavior", "MockComponent", "MockFault", "MockPluginConfig", "read_mock"]

_MIN_CODE, _MAX_CODE = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class MockFault:
    """The component breaks, as one that crashes does: with an error that is not its own."""

    why: str


MockBehavior: TypeAlias = Success | Failed | MockFault


@dataclass(frozen=True, slots=True, kw_only=True)
class MockComponent:
    """A component that is only said to be there."""

    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    behaviors: Mapping[str, MockBehavior] = field(default_factory=dict[str, MockBehavior])
    """What it comes to, by its input: the keys are what
    :func:`~stepflow_trio.flows.json_keys.key_of_value` makes of inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MockPluginConfig:
    """Components that answer what the configuration says, by their paths."""

    components: Mapping[str, MockComponent] = field(default_factory=dict[str, MockComponent])


def read_mock(values: ConfigValues, fields: dict[str, Any], path: JsonPath) -> MockPluginConfig:
    """Read a plugin of type ``mock``; of what is wrong with it the values take note."""
    values.ignore_others(fields, path, ("type", "components"))
    if fields.get("components") is None:
        values.missing(fields, path, "components")
        return MockPluginConfig()
    given = values.object(fields["components"], (*path, "components"))
    for name in given:
        if not name.startswith("/"):
            message = "does not begin with /, as the paths that routes lead to do"
            values.warn((*path, "components", name), message, at_key=True)
    return MockPluginConfig(
        components={
            name: _component(values, component, (*path, "components", name))
            for name, component in given.items()
        }
    )


def _component(values: ConfigValues, value: object, path: JsonPath) -> MockComponent:
    fields = values.object(value, path)
    behaviors: dict[str, MockBehavior] = {}
    if isinstance(value, dict):
        values.ignore_others(fields, path, ("input_schema", "output_schema", "behaviors"))
        if fields.get("behaviors") is None:
            values.missing(fields, path, "behaviors")
        else:
            at = (*path, "behaviors")
            for key, behavior in values.object(fields["behaviors"], at).items():
                _add_behavior(values, behaviors, key, behavior, (*at, key))
    return MockComponent(
        input_schema=_schema(values, fields, path, "input_schema"),
        output_schema=_schema(values, fields, path, "output_schema"),
        behaviors=behaviors,
    )


def _schema(values: ConfigValues, fields: dict[str, Any], path: JsonPath, key: str) -> dict[str, Any] | None:
    return None if fields.get(key) is None else values.object(fields[key], (*path, key))


def _add_behavior(
    values: ConfigValues, behaviors: dict[str, MockBehavior], key: str, value: object, path: JsonPath
) -> None:
    try:
        input_key = key_of_value(value_of_key(key))
    except ValueError as exc:
        values.problem(path, f"no input is like this key: {exc}", at_key=True)
        return
    if input_key in behaviors:
        values.problem(path, "this input stands here twice", at_key=True)
    behaviors[input_key] = _behavior(
        values, values.object(value, path), path, is_object=isinstance(value, dict)
    )


def _behavior(
    values: ConfigValues, fields: dict[str, Any], path: JsonPath, *, is_object: bool
) -> MockBehavior:
    match fields:
        case {"outcome": "success"}:
            values.ignore_others(fields, path, ("outcome", "result"))
            if "result" not in fields:
                values.missing(fields, path, "result")
            return Success(fields.get("result"))
        case {"outcome": "failed"}:
            values.ignore_others(fields, path, ("outcome", "error"))
            if fields.get("error") is None:
                values.missing(fields, path, "error")
                return Failed(FlowError(0, ""))
            return Failed(_error(values, fields["error"], (*path, "error")))
        case {"outcome": str(outcome)}:
            values.problem((*path, "outcome"), one_of(outcome, ("success", "failed")))
        case {"outcome": outcome}:
            values.string(outcome, (*path, "outcome"))
        case {"error": error}:
            values.ignore_others(fields, path, ("error",))
            return MockFault(values.string(error, (*path, "error")))
        case _ if is_object:
            values.missing(fields, path, "outcome")
        case _:
            pass
    return MockFault("")


def _error(values: ConfigValues, value: object, path: JsonPath) -> FlowError:
    fields = values.object(value, path)
    code, message = 0, ""
    if isinstance(value, dict):
        values.ignore_others(fields, path, ("code", "message", "data"))
        match fields.get("code"):
            case None:
                values.missing(fields, path, "code")
            case int(number) if not isinstance(number, bool) and _MIN_CODE <= number <= _MAX_CODE:
                code = number
            case _:
                values.problem((*path, "code"), "must be a whole number of 64 bits")
        if fields.get("message") is None:
            values.missing(fields, path, "message")
        else:
            message = values.string(fields["message"], (*path, "message"))
    return FlowError(code, message, fields.get("data"))
