"""Components that answer what a configuration says, for trying a flow out without its workers."""

from __future__ import annotations

import copy
from typing import Any

import trio

from stepflow_trio.errors import ErrorCode
from stepflow_trio.flows.json_keys import key_of_value
from stepflow_trio.flows.results import Failed, FlowError, Success
from stepflow_trio.flows.suggestions import did_you_mean
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.payloads import ComponentInfo, Observability
from stepflow_trio.runtime.mock_config import MockPluginConfig
from stepflow_trio.runtime.plugins import FailureKind, StepFailure, kind_of_code

__all__ = ["MockPlugin"]

_MAX_SHOWN_CHARS = 1000
"""Of an input that a message quotes."""


class MockPlugin:
    """Answers as configured, at once; whoever retries what fails gets the same answer again."""

    def __init__(self, config: MockPluginConfig) -> None:
        self._components = config.components

    async def list_components(self) -> list[ComponentInfo]:
        """What is configured; see :meth:`Plugin.list_components`."""
        await trio.lowlevel.checkpoint()
        return [
            ComponentInfo(
                component=path, input_schema=component.input_schema, output_schema=component.output_schema
            )
            for path, component in self._components.items()
        ]

    async def execute(
        self,
        component: str,
        input: Any,
        *,
        attempt: int,
        observability: Observability,
        deadline: float,
    ) -> Any:
        """Answer as configured for exactly this input; see :meth:`Plugin.execute`."""
        await trio.lowlevel.checkpoint()
        known = self._components.get(component)
        if known is None:
            hint = did_you_mean(component, self._components)
            message = f"there is no mocked component {component}{f'; {hint}' if hint else ''}"
            raise StepFailure(FlowError(ErrorCode.COMPONENT_NOT_FOUND, message), FailureKind.FINAL)
        match known.behaviors.get(key_of_value(input)):
            case Success(result):
                # The next one is to get the same, whatever becomes of this.
                return copy.deepcopy(result)
            case Failed(error):
                raise StepFailure(error, kind_of_code(error.code))
            case None:
                why = f"No behavior defined for {component} on {_shown(input)}"
            case fault:
                why = fault.why
        raise StepFailure(_fault(component, observability.step_id or "", why), FailureKind.FINAL)


def _fault(component: str, step_id: str, why: str) -> FlowError:
    """What the public releases say of a component that breaks, word for word: tests of flows expect it."""
    failed = f'step "{step_id}" failed'
    attachments = [f"Component: {component}", f"Component execution failed for step '{step_id}'", why]
    stack = [
        {"error": failed, "attachments": attachments},
        {"error": "error executing user-defined function"},
    ]
    return FlowError(ErrorCode.TRANSPORT_ERROR, failed, {"stack": stack})


def _shown(input: Any) -> str:
    text = codec.encode_json(input).decode()
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…"
