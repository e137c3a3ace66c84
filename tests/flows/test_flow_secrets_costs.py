"""What it costs to look for many secrets, also for those that begin alike, as tokens of one issuer do."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from stepflow_trio.flows.secrets import REDACTED, SecretTexts

HEAD = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
"""How all tokens begin that are signed in the same way."""


def tokens(count: int) -> list[str]:
    chance = random.Random(7)  # noqa: S311 — not to be kept from anybody
    return [f"{HEAD}{chance.randbytes(60).hex()}" for _ in range(count)]


def cpu_s(work: Callable[[], object]) -> float:
    """The least of some attempts: what else the machine does makes it more, never less."""
    took: list[float] = []
    for _ in range(3):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return min(took)


def test_a_text_takes_no_longer_where_sixteen_times_as_many_secrets_begin_alike() -> None:
    known = tokens(16_000)
    text = " ".join(known[:1000])
    few, many = SecretTexts(known[:1000]), SecretTexts(known)
    assert many.redact(text) == " ".join([REDACTED] * 1000)
    # By the logarithm it is some 1.4 times; one after the other it was 16.
    assert cpu_s(lambda: many.redact(text)) < 5 * cpu_s(lambda: few.redact(text))


@pytest.mark.parametrize("lines", [False, True])
def test_secrets_that_come_one_by_one_cost_no_more_each_the_more_there_are(*, lines: bool) -> None:
    def one_by_one(count: int) -> None:
        texts = SecretTexts()
        for token in tokens(count):
            # As each of the keys that are files does, it has a line that all have.
            texts.add([f"-----BEGIN A KEY-----\n{token}" if lines else token])
            assert texts.redact(token) == REDACTED

    small, large = cpu_s(lambda: one_by_one(500)), cpu_s(lambda: one_by_one(4000))
    # 8 times as many; one after the other they took 64 times as long.
    assert large < 20 * small
