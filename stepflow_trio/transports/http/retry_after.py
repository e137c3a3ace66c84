"""When a server that is at its limit wants to be asked again (RFC 9110, section 10.2.3)."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from stepflow_trio.transports.http.client import HttpHeaders

__all__ = ["MAX_RETRY_AFTER_S", "retry_after_s"]

MAX_RETRY_AFTER_S = 86_400.0
"""What is more counts as a day."""

_NUMBER = re.compile(rb"[0-9]+(\.[0-9]+)?")
_MAX_SIZE = 400
"""Of a value: what is longer is no time to wait."""

_TIME = rb"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES = tuple(
    re.compile(pattern)
    for pattern in (
        rb"[A-Z][a-z]{2}, (?P<day>[0-9]{2}) (?P<month>[A-Z][a-z]{2}) (?P<year>[0-9]{4}) " + _TIME + rb" GMT",
        rb"[A-Z][a-z]+, (?P<day>[0-9]{2})-(?P<month>[A-Z][a-z]{2})-(?P<year>[0-9]{2}) " + _TIME + rb" GMT",
        rb"[A-Z][a-z]{2} (?P<month>[A-Z][a-z]{2}) (?P<day>[ 0-9][0-9]) " + _TIME + rb" (?P<year>[0-9]{4})",
    )
)
"""The format of today, and the two that are to be read, too (section 5.6.7)."""
_MONTHS = b"JanFebMarAprMayJunJulAugSepOctNovDec"


def retry_after_s(headers: HttpHeaders, *, now: float) -> float | None:
    """In how many seconds an answer's headers ask for another attempt; from 0 to MAX_RETRY_AFTER_S.

    ``Retry-After`` has them as a number, which may have decimals, or is a date, to which it is so long from
    ``now``, in seconds since 1970: 0 where that is over. Where it can be read, ``Retry-After-Ms`` counts
    before, a number of milliseconds, as some APIs send it. None: they say nothing, or nothing of the kind.
    """
    milliseconds = _number(headers.get(b"retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, MAX_RETRY_AFTER_S)
    value = headers.get(b"retry-after")
    seconds = _number(value)
    if seconds is None:
        at = _date(value)
        seconds = None if at is None else max(at - now, 0.0)
    return None if seconds is None else min(seconds, MAX_RETRY_AFTER_S)


def _number(value: bytes | None) -> float | None:
    return float(value) if value and len(value) <= _MAX_SIZE and _NUMBER.fullmatch(value) else None


def _date(value: bytes | None) -> float | None:
    found = next((found for pattern in _DATES if (found := pattern.fullmatch(value or b""))), None)
    if found is None:
        return None
    month, out_of_step = divmod(_MONTHS.find(found["month"]), 3)
    if out_of_step:
        return None
    year = int(found["year"])
    if len(found["year"]) == 2:
        year += 2000 if year < 70 else 1900
    try:
        at = datetime(
            year, month + 1, *(int(found[part]) for part in ("day", "hour", "minute", "second")), tzinfo=UTC
        )
    except ValueError:
        return None
    return at.timestamp()
