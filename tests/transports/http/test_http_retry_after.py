"""When a server that is at its limit wants to be asked again."""

from __future__ import annotations

import math
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.transports.http.client import HttpHeaders
from stepflow_trio.transports.http.retry_after import MAX_RETRY_AFTER_S, retry_after_s

NOW = 784111777.0
"""Sun, 06 Nov 1994 08:49:37 GMT."""


def wanted(value: bytes, *, name: bytes = b"retry-after", now: float = NOW) -> float | None:
    return retry_after_s(HttpHeaders([(name, value)]), now=now)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0.0),
        (b"7", 7.0),
        (b"007", 7.0),
        (b"0.25", 0.25),
        (b"86400", MAX_RETRY_AFTER_S),
        (b"86401", MAX_RETRY_AFTER_S),
        (b"9" * 400, MAX_RETRY_AFTER_S),
    ],
)
def test_seconds_are_a_number_bounded_to_a_day(value: bytes, seconds: float) -> None:
    assert wanted(value) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"Sun, 06 Nov 1994 08:50:07 GMT", 30.0),
        (b"Sunday, 06-Nov-94 08:50:07 GMT", 30.0),
        (b"Sun Nov  6 08:50:07 1994", 30.0),
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        (b"Sat, 05 Nov 1994 08:49:37 GMT", 0.0),
        (b"Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER_S),
    ],
)
def test_a_date_in_each_of_its_three_formats_is_so_long_from_now(value: bytes, seconds: float) -> None:
    assert wanted(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        b"", b" ", b"-1", b"+1", b"1e3", b"1_0", b".5", b"5.", b"nan", b"inf", b"0x10", b"7, 7", b"7s",
        b"soon", "٣".encode(), b"\xff", b"\x007", b"7\n", b"Sun, 06 Nov 1994",
        b"Sun, 99 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 1994 25:49:37 GMT", b"Sun, 06 Nov " + b"9" * 5000 + b" 08:49:37 GMT",
        b"Sun, 06 Nov 0000 08:49:37 GMT", b"Sun, 06 Nov 1994 08:49:37 +99999999", b"Nov", b",,,", b"GMT",
        b"Sun, 06 Nvo 1994 08:49:37 GMT", b"Sun, 06 Anf 1994 08:49:37 GMT", b"Sun Nov 6 08:50:07 1994",
        b"9" * 401,
    ],
)  # fmt: skip
def test_what_is_neither_says_nothing(value: bytes) -> None:
    assert wanted(value) is None


def test_milliseconds_are_more_exact_where_they_can_be_read() -> None:
    both = [(b"retry-after", b"7"), (b"retry-after-ms", b"50")]
    assert retry_after_s(HttpHeaders(both), now=NOW) == 0.05
    assert wanted(b"250.5", name=b"retry-after-ms") == 0.2505
    assert wanted(b"100000", name=b"retry-after-ms") == 100.0
    assert wanted(b"9" * 400, name=b"retry-after-ms") == MAX_RETRY_AFTER_S
    unreadable = [(b"retry-after", b"7"), (b"retry-after-ms", b"Sun, 06 Nov 1994 08:50:07 GMT")]
    assert retry_after_s(HttpHeaders(unreadable), now=NOW) == 7.0
    assert retry_after_s(HttpHeaders([]), now=NOW) is None


@given(st.one_of(st.binary(max_size=60), st.text("SunNov0123456789GMT:,-+ .", max_size=40).map(str.encode)))
def test_whatever_a_server_says_is_a_time_to_wait_or_nothing(value: bytes) -> None:
    seconds = wanted(value)
    assert seconds is None or (0 <= seconds <= MAX_RETRY_AFTER_S and math.isfinite(seconds))


@given(st.integers(0, 2**33), st.integers(-100_000, 100_000))
def test_a_date_is_as_far_off_as_it_was_made(now: int, seconds: int) -> None:
    value = formatdate(max(0, now + seconds), usegmt=True).encode()
    expected = min(max(float(max(0, now + seconds) - now), 0.0), MAX_RETRY_AFTER_S)
    assert wanted(value, now=now) == expected
