"""How often and how long after one another failed attempts are repeated (docs/protocol.md, section 7).

The delays are those of the public releases; the jitter is ours, so that what failed together does not come
back together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from stepflow_trio.errors import ConfigError

__all__ = ["Backoff", "Constant", "Exponential", "Fibonacci", "RetryPolicy"]


def _check_delay(name: str, delay_s: float) -> None:
    if not 0 <= delay_s < math.inf:
        raise ConfigError(f"{name} is {delay_s}, but must be a number of seconds from 0 on")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fibonacci:
    """``min_delay_s`` times 1, 1, 2, 3, 5, 8, …, but never more than ``max_delay_s``.

    Raises:
        ConfigError: a delay is negative or not finite.
    """

    min_delay_s: float = 1.0
    max_delay_s: float = 10.0

    def __post_init__(self) -> None:
        _check_delay("min_delay_s", self.min_delay_s)
        _check_delay("max_delay_s", self.max_delay_s)

    def base_delay_s(self, retry: int) -> float:
        """Seconds before the ``retry``-th retry, which counts from 1, without jitter."""
        delay = following = self.min_delay_s
        for _ in range(retry - 1):
            if not 0 < delay < self.max_delay_s:
                break
            delay, following = following, delay + following
        return min(delay, self.max_delay_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponential:
    """``min_delay_s`` times 1, ``factor``, ``factor``², …, but never more than ``max_delay_s``.

    Raises:
        ConfigError: a delay is negative or not finite, or the factor is less than 1 or not finite.
    """

    min_delay_s: float = 1.0
    max_delay_s: float = 10.0
    factor: float = 2.0

    def __post_init__(self) -> None:
        _check_delay("min_delay_s", self.min_delay_s)
        _check_delay("max_delay_s", self.max_delay_s)
        if not 1 <= self.factor < math.inf:
            raise ConfigError(f"factor is {self.factor}, but must be 1 or more: delays do not shrink")

    def base_delay_s(self, retry: int) -> float:
        """Seconds before the ``retry``-th retry, which counts from 1, without jitter."""
        if not self.min_delay_s:
            return 0.0
        try:
            delay = self.min_delay_s * float(self.factor) ** (retry - 1)
        except OverflowError:
            return self.max_delay_s
        return min(delay, self.max_delay_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """Always ``delay_s``. It has no cap, so jitter lengthens it as often as it shortens it.

    Raises:
        ConfigError: the delay is negative or not finite.
    """

    delay_s: float = 1.0

    def __post_init__(self) -> None:
        _check_delay("delay_s", self.delay_s)

    @property
    def max_delay_s(self) -> float:
        """No cap."""
        return math.inf

    def base_delay_s(self, retry: int) -> float:
        """Seconds before the ``retry``-th retry, which counts from 1, without jitter."""
        return self.delay_s


Backoff: TypeAlias = Fibonacci | Exponential | Constant


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The budget for transport errors, and the delays before every retry whatever its reason.

    ``jitter`` is the largest part of a delay that is added to it or taken off.

    Raises:
        ConfigError: the budget is negative, or the jitter is not between 0 and 1.
    """

    transport_max_retries: int = 3
    backoff: Backoff = Fibonacci()
    jitter: float = 0.1

    def __post_init__(self) -> None:
        if self.transport_max_retries < 0:
            raise ConfigError(f"transport_max_retries is {self.transport_max_retries}, but must be 0 or more")
        if not 0 <= self.jitter <= 1:
            raise ConfigError(f"jitter is {self.jitter}, but must be between 0 and 1")

    def delay_s(self, retry: int, random: Random) -> float:
        """Seconds to wait before the ``retry``-th retry of a step, which counts from 1.

        The backoff's delay d gives a time spread evenly over ``[d·(1 − jitter), d·(1 + jitter)]``, of which
        what lies over the backoff's ``max_delay_s`` is cut off before a time is drawn: at the cap the delays
        are still spread, in ``[cap·(1 − jitter), cap]``. One number is drawn from ``random``.
        """
        delay = self.backoff.base_delay_s(retry)
        longest = min(delay * (1 + self.jitter), self.backoff.max_delay_s)
        shortest = delay * (1 - self.jitter)
        # min() once more, as the sum may be rounded up past its own upper end.
        return min(shortest + (longest - shortest) * random.random(), longest)
