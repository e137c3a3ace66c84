"""What a flow is: immutable records, their normal form as JSON, and the id that follows from it."""

from __future__ import annotations

from typing import Any

import msgspec

from stepflow_trio.flows.diagnostics import Diagnostic
from stepflow_trio.flows.expressions import Constant, Expression, expression_to_json
from stepflow_trio.protocol import blobs

__all__ = ["Fail", "Flow", "OnError", "Retry", "Step", "UseDefault", "flow_id"]

DEFAULT_MAX_RETRIES = 3
"""Retries of a step that says ``onError: {action: retry}`` and no number."""

MAX_TIMEOUT_S = 2**31
"""The longest time that can be given to a step or a run, in seconds: some 68 years."""


# No matter of the garbage collector (`gc=False`): what they hold does not lead back to them.


class Fail(msgspec.Struct, frozen=True, gc=False):
    """``onError: {action: fail}``: the step fails."""

    explicit: bool = False
    """Whether the flow says so; only then is it in the normal form."""

    def to_json(self) -> dict[str, Any]:
        """``{"action": "fail"}``."""
        return {"action": "fail"}


class UseDefault(msgspec.Struct, frozen=True, gc=False):
    """``onError: {action: useDefault}``: ``value`` takes the place of what the component failed with."""

    value: Any = None

    def to_json(self) -> dict[str, Any]:
        """``{"action": "useDefault", "defaultValue"?}``; a value of null is left out."""
        written: dict[str, Any] = {"action": "useDefault"}
        if self.value is not None:
            written["defaultValue"] = self.value
        return written


class Retry(msgspec.Struct, frozen=True, gc=False):
    """``onError: {action: retry}``: it is tried again up to ``max_retries`` times, then the step fails."""

    max_retries: int = DEFAULT_MAX_RETRIES
    explicit: bool = True
    """Whether the flow says the number; only then is it in the normal form."""

    def to_json(self) -> dict[str, Any]:
        """``{"action": "retry", "maxRetries"?}``."""
        written: dict[str, Any] = {"action": "retry"}
        if self.explicit:
            written["maxRetries"] = self.max_retries
        return written


OnError = Fail | UseDefault | Retry


class Step(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One call of a component."""

    id: str
    component: str
    """The component's path, such as ``/builtin/eval``."""
    input: Expression = Constant(None)
    on_error: OnError = Fail()
    must_execute: bool | None = None
    """True: it runs even if the output does not need it. None where the flow says nothing, which means no."""
    timeout_s: float | None = None
    """How many seconds one attempt may take; public releases ignore it. None where the flow says nothing."""
    metadata: dict[str, Any] = {}

    def to_json(self) -> dict[str, Any]:
        """The normal form: fields in the specification's order, without those that say nothing."""
        written: dict[str, Any] = {"id": self.id, "component": self.component}
        if self.on_error != Fail():
            written["onError"] = self.on_error.to_json()
        if self.input != Constant(None):
            written["input"] = expression_to_json(self.input)
        if self.must_execute is not None:
            written["mustExecute"] = self.must_execute
        if self.timeout_s is not None:
            written["timeoutSecs"] = self.timeout_s
        if self.metadata:
            written["metadata"] = self.metadata
        return written


class Flow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A flow as it was read: immutable, all of its expressions parsed, its other parts plain JSON.

    The plain parts (``schemas``, ``test``, ``examples``, ``metadata``) are shared, not copied: do not change
    them. They hold only what the specification knows; ``schemas``, ``test`` and ``examples`` are None where
    the flow has none.
    """

    name: str | None = None
    description: str | None = None
    version: str | None = None
    schemas: dict[str, Any] | None = None
    """``{"type": "object", "$defs"?, "properties"?: {"input"?, "output"?, "variables"?, "steps"?}}``."""
    steps: tuple[Step, ...] = ()
    output: Expression = Constant(None)
    test: dict[str, Any] | None = None
    """``{"configFile"?, "config"?, "cases"?: […]}``, each case
    ``{"name", "description"?, "input", "variables"?, "output"?}``."""
    examples: list[dict[str, Any]] | None = None
    """``[{"name", "description"?, "input"}]``."""
    metadata: dict[str, Any] = {}
    warnings: tuple[Diagnostic, ...] = ()
    """What was odd about its source, though not wrong. No part of the normal form."""

    def to_json(self) -> dict[str, Any]:
        """The normal form: fields in the specification's order, without those that say nothing.

        Paths are normalised without loss; the keys of metadata and of data keep their order. Reading it gives
        an equal flow, save for ``warnings``.
        """
        written: dict[str, Any] = {}
        for field in ("name", "description", "version", "schemas"):
            value = getattr(self, field)
            if value is not None:
                written[field] = value
        if self.steps:
            written["steps"] = [step.to_json() for step in self.steps]
        if self.output != Constant(None):
            written["output"] = expression_to_json(self.output)
        if self.test is not None:
            written["test"] = self.test
        if self.examples is not None:
            written["examples"] = self.examples
        if self.metadata:
            written["metadata"] = self.metadata
        return written


def flow_id(flow: Flow) -> str:
    """The SHA-256, in lower-case hexadecimal, of the normal form as compact JSON in UTF-8.

    Two texts that mean the same flow have one id, whatever their layout, comments and unknown fields.
    """
    return blobs.blob_id(blobs.as_hashed(msgspec.json.encode(flow.to_json())))
