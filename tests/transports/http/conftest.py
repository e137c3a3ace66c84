"""Which hosts a test of HTTP hosts runs on: all of them."""

from __future__ import annotations

import pytest
from http_stage import HOSTS


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    """The name of a host; see ``http_stage.HOSTS``."""
    return request.param
