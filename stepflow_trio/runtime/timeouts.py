"""How long things may take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stepflow_trio.errors import ConfigError

__all__ = ["Timeouts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Bounds of a runtime, in seconds; infinity is none. What exceeds one fails with a code of its own.

    Raises:
        ConfigError: one of them is not more than 0.
    """

    step_s: float = math.inf
    """One attempt of a step: −32104, which a step that says ``onError: retry`` tries again. The step's own
    ``timeoutSecs`` goes before."""
    run_s: float = math.inf
    """A run that no run has submitted, with all that it submits: −32203 for each item that has not ended."""
    connect_s: float = 30.0
    """A worker, until it has said its port, and from then on until it has answered ``initialize``: −32305."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, but must be more than 0")
