"""The time of day as HTTP has it."""

from __future__ import annotations

import time
from email.utils import formatdate


class HttpDate:
    """Makes the value of ``date`` headers, once a second."""

    def __init__(self) -> None:
        self._value = b""
        self._second = -1

    def __call__(self) -> bytes:
        """The value now."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._value = formatdate(second, usegmt=True).encode()
        return self._value
