"""What was found out about the flows that were used lately, so that using one again costs less."""

from __future__ import annotations

from typing import Generic, TypeVar

from stepflow_trio.flows.model import Flow

MAX_STEPS = 50_000
"""Of all flows together of which something is kept: what is kept of a step is some thousand bytes at most."""

MAX_FLOWS = 256

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class RecentFlows(Generic[KeyT, ValueT]):
    """Values by keys, each about a flow; as long as there is room, what was used last the longest.

    A flow is kept as long as its value, so that its identity (``id(flow)``) is a good key.
    """

    def __init__(self) -> None:
        self._kept: dict[KeyT, tuple[Flow, ValueT]] = {}
        self._steps = 0

    def get(self, key: KeyT) -> ValueT | None:
        """What is kept under this key."""
        found = self._kept.pop(key, None)
        if found is None:
            return None
        self._kept[key] = found
        return found[1]

    def put(self, key: KeyT, flow: Flow, value: ValueT) -> None:
        """Keep a value about a flow."""
        self.drop(key)
        self._kept[key] = flow, value
        self._steps += len(flow.steps)
        while len(self._kept) > MAX_FLOWS or self._steps > MAX_STEPS:
            self.drop(next(iter(self._kept)))

    def drop(self, key: KeyT) -> None:
        """Keep nothing under this key."""
        found = self._kept.pop(key, None)
        if found is not None:
            self._steps -= len(found[0].steps)
