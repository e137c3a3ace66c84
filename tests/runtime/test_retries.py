"""Delays before retries: the three backoffs, their caps, and the jitter."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.errors import ConfigError
from stepflow_trio.runtime.retries import Constant, Exponential, Fibonacci, RetryPolicy


def seeded(seed):
    return random.Random(seed)  # noqa: S311 — jitter is no secret


def delays(backoff, count=9):
    return [backoff.base_delay_s(retry) for retry in range(1, count + 1)]


def test_fibonacci_is_1_1_2_3_5_8_and_then_10_seconds():
    assert delays(Fibonacci()) == [1, 1, 2, 3, 5, 8, 10, 10, 10]
    assert delays(Fibonacci(min_delay_s=0.5, max_delay_s=3), 7) == [0.5, 0.5, 1, 1.5, 2.5, 3, 3]


def test_exponential_multiplies_up_to_its_cap():
    assert delays(Exponential(), 6) == [1, 2, 4, 8, 10, 10]
    assert delays(Exponential(min_delay_s=0.25, max_delay_s=100, factor=3), 4) == [0.25, 0.75, 2.25, 6.75]
    assert delays(Exponential(factor=1), 3) == [1, 1, 1]


def test_constant_is_always_the_same():
    assert delays(Constant(), 3) == [1, 1, 1]
    assert delays(Constant(delay_s=0.2), 3) == [0.2, 0.2, 0.2]


@pytest.mark.parametrize("backoff", [Fibonacci, Exponential])
def test_the_cap_goes_before_a_longer_first_delay_and_zero_stays_zero(backoff):
    assert delays(backoff(min_delay_s=20, max_delay_s=10), 3) == [10, 10, 10]
    assert delays(backoff(min_delay_s=0), 3) == [0, 0, 0]
    assert delays(backoff(max_delay_s=0), 3) == [0, 0, 0]


@pytest.mark.parametrize(
    "backoff", [Fibonacci(), Fibonacci(min_delay_s=5e-324), Exponential(factor=1.5), Exponential(factor=1e9)]
)
def test_a_retry_count_of_millions_costs_nothing(backoff):
    assert backoff.base_delay_s(4_000_000_000) == 10
    assert replace(backoff, min_delay_s=0).base_delay_s(4_000_000_000) == 0


def test_the_default_is_three_transport_retries_with_fibonacci_and_a_tenth_of_jitter():
    assert RetryPolicy() == RetryPolicy(transport_max_retries=3, backoff=Fibonacci(), jitter=0.1)


def test_the_same_randomness_gives_the_same_delays_and_one_number_is_drawn_for_each():
    policy, one, other = RetryPolicy(), seeded(5), seeded(5)
    assert [policy.delay_s(retry, one) for retry in range(1, 9)] == [
        policy.delay_s(retry, other) for retry in range(1, 9)
    ]
    fresh = seeded(5)
    for _ in range(8):
        fresh.random()
    assert one.random() == fresh.random()


def test_without_jitter_the_delay_is_the_backoffs():
    policy = RetryPolicy(jitter=0)
    assert [policy.delay_s(retry, seeded(retry)) for retry in range(1, 8)] == [1, 1, 2, 3, 5, 8, 10]


def test_jitter_goes_both_ways_and_still_spreads_at_the_cap():
    policy, randomness = RetryPolicy(), seeded(1)
    third = [policy.delay_s(3, randomness) for _ in range(1000)]
    assert 1.8 <= min(third) < 1.81
    assert 2.19 < max(third) <= 2.2
    capped = [policy.delay_s(50, randomness) for _ in range(1000)]
    assert 9 <= min(capped) < 9.01
    assert 9.99 < max(capped) <= 10
    assert len(set(capped)) == 1000
    constant = [RetryPolicy(backoff=Constant()).delay_s(1, randomness) for _ in range(1000)]
    assert min(constant) < 0.91
    assert max(constant) > 1.09


seconds = st.floats(0, 1e12)
backoffs = st.one_of(
    st.builds(Fibonacci, min_delay_s=seconds, max_delay_s=seconds),
    st.builds(Exponential, min_delay_s=seconds, max_delay_s=seconds, factor=st.floats(1, 1e300)),
    st.builds(Constant, delay_s=seconds),
)


@given(backoffs, st.floats(0, 1), st.integers(1, 10_000), st.integers())
def test_a_delay_is_within_its_jitter_and_never_over_the_cap(backoff, jitter, retry, seed):
    base = backoff.base_delay_s(retry)
    delay = RetryPolicy(backoff=backoff, jitter=jitter).delay_s(retry, seeded(seed))
    assert base * (1 - jitter) <= delay <= min(base * (1 + jitter), backoff.max_delay_s)


@given(backoffs, st.integers(1, 200))
def test_delays_never_shrink(backoff, retry):
    assert 0 <= backoff.base_delay_s(retry) <= backoff.base_delay_s(retry + 1) < math.inf


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Fibonacci(min_delay_s=-1), "min_delay_s is -1"),
        (lambda: Fibonacci(max_delay_s=math.inf), "max_delay_s is inf"),
        (lambda: Exponential(min_delay_s=math.nan), "min_delay_s is nan"),
        (lambda: Exponential(max_delay_s=-0.5), "max_delay_s is -0.5"),
        (lambda: Exponential(factor=0.5), "factor is 0.5, but must be 1 or more"),
        (lambda: Exponential(factor=math.nan), "factor is nan"),
        (lambda: Constant(delay_s=-2), "delay_s is -2"),
        (lambda: RetryPolicy(transport_max_retries=-1), "transport_max_retries is -1"),
        (lambda: RetryPolicy(jitter=1.5), "jitter is 1.5"),
    ],
)
def test_what_makes_no_delay_is_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
