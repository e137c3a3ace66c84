"""What a plugin is to the runtime: something that executes components."""

from __future__ import annotations

import enum
from typing import Any, Protocol

from stepflow_trio.errors import RpcError, StepflowError, is_component_code, is_transport_code
from stepflow_trio.flows.results import FlowError
from stepflow_trio.protocol.payloads import ComponentInfo, Observability


class FailureKind(enum.Enum):
    """Who may try again (docs/protocol.md, sections 5 and 7)."""

    FINAL = "final"
    """Nobody."""
    COMPONENT = "component"
    """A step that says ``onError: retry``."""
    TRANSPORT = "transport"
    """The runtime, within the transport budget."""


class StepFailure(StepflowError):
    """One attempt of a step failed with ``error``."""

    def __init__(self, error: FlowError, kind: FailureKind, *, retry_after_s: float = 0.0) -> None:
        super().__init__(error.message)
        self.error = error
        self.kind = kind
        self.retry_after_s = retry_after_s
        """The earliest time for another attempt, in seconds from now, where the worker gave one."""


def kind_of_code(code: int) -> FailureKind:
    """Who may try again after this code of the 0.11 table."""
    if is_transport_code(code):
        return FailureKind.TRANSPORT
    return FailureKind.COMPONENT if is_component_code(code) else FailureKind.FINAL


def failure_from(exc: RpcError) -> StepFailure:
    """An error object as a failed attempt."""
    return StepFailure(FlowError(exc.code, exc.message, exc.data), kind_of_code(exc.code))


class Plugin(Protocol):
    """Executes components under paths of its own, such as ``/add``."""

    async def list_components(self) -> list[ComponentInfo]:
        """What it offers.

        Raises:
            StepFailure: it cannot say now.
        """
        ...

    async def execute(
        self,
        component: str,
        input: Any,
        *,
        attempt: int,
        observability: Observability,
        deadline: float,
    ) -> Any:
        """Execute a component once and return its output.

        Args:
            component: the component's path within this plugin.
            input: decoded JSON.
            attempt: 1 on the first execution of the step.
            observability: run, flow and step.
            deadline: when the run is given up, on ``trio.current_time()``'s clock; infinity: never.

        Cancelling it cancels the component.

        Raises:
            StepFailure: the attempt failed.
        """
        ...
