"""Arguments with which a worker cannot serve HTTP: each is named, and what would do instead."""

from __future__ import annotations

from typing import Any

import pytest

from stepflow_trio import SecretStr, Worker
from stepflow_trio.errors import ConfigError


def test_a_port_in_the_place_of_the_address_is_told_from_one() -> None:
    port: Any = 8087
    with pytest.raises(TypeError, match=r"host is 8087, but must be an address .*: for a port say port=8087"):
        Worker().run_http(port)


async def test_run_http_inside_trio_names_open_http() -> None:
    with pytest.raises(RuntimeError, match=r"use `async with worker\.open_http\(\)`"):
        Worker().run_http()


async def test_a_wrong_http_host_is_called_by_its_name() -> None:
    name: Any = "uvicorn"
    with pytest.raises(ConfigError, match=r"^http_host is 'uvicorn'; it must be auto, h11 or hypercorn$"):
        async with Worker().open_http(http_host=name):
            raise AssertionError


@pytest.mark.parametrize("bearer", ["0123456789abcdef", SecretStr("0123456789abcdef")])
async def test_tokens_for_blobs_may_be_texts(bearer: Any) -> None:
    async with Worker().open_http(blob_bearers={"http://127.0.0.1:1": bearer}) as http:
        assert http.port
