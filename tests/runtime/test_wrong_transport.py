"""A configuration that names the wrong transport, URL or token for a worker is told which would be right."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import trio
from http_plugin_stage import over_http, raw_http_plugin, started_worker
from runtime_stage import has_children, one_step, processes, raw_plugin

from stepflow_trio import BearerTokens, ErrorCode, HttpSecurity, RunFailed, Worker, open_runtime
from stepflow_trio.runtime.config import Config, HttpProcessPluginConfig, RemotePluginConfig

TOKEN = "0123456789abcdef"  # noqa: S105 — nobody's


@pytest.fixture(autouse=True)
def nothing_is_left() -> Generator[None]:
    yield
    assert not has_children()


async def failure_of(config: Config) -> RunFailed:
    with trio.fail_after(60):
        async with open_runtime(config) as runtime:
            with pytest.raises(RunFailed) as failed:
                await runtime.run(one_step("/w/x"))
    return failed.value


SAYS_PORT = """
import os, time
os.write(1, b'starting\\n')
os.write(1, b'{"port": 8080}\\n')
time.sleep(100)
"""


async def test_a_worker_over_http_that_is_started_as_one_over_stdio_is_told_apart_at_once(
    tmp_path: Path,
) -> None:
    failure = await failure_of(processes(3, delay_s=60, w=raw_plugin(tmp_path, SAYS_PORT)))
    assert failure.code == ErrorCode.CONFIGURATION_ERROR
    assert failure.message == (
        "plugin 'w' cannot be used: it serves HTTP (run_http): leave out `transport: stdio`"
    )


async def test_a_worker_over_stdio_may_write_a_port_once_it_has_spoken(tmp_path: Path) -> None:
    script = """
for request in executions():
    print('{"port": 8080}', flush=True)
    answer(request, 1)
"""
    async with open_runtime(processes(w=raw_plugin(tmp_path, script))) as runtime:
        assert await runtime.run(one_step("/w/x")) == 1
        assert await runtime.run(one_step("/w/x")) == 1


async def test_a_worker_over_stdio_that_is_started_as_one_over_http_is_told_apart(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys; from stepflow_trio import Worker; print('bye', file=sys.stderr); Worker().run_stdio()"
    )
    config = HttpProcessPluginConfig(command=sys.executable, args=(str(script),), working_directory=tmp_path)
    failure = await failure_of(over_http(3, delay_s=60, w=config))
    assert failure.code == ErrorCode.SPAWN_FAILED
    assert "it ended without serving: does it call worker.run_http()? A worker with run_stdio() needs " in (
        failure.message
    )
    assert failure.message.endswith("needs `transport: stdio`; the last lines of its stderr:\n  | bye")


async def test_the_command_that_serves_over_stdio_is_told_the_option_for_http(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("from stepflow_trio import Worker\nworker = Worker()\n")
    args = ("-m", "stepflow_trio", "worker", "shop.py")
    config = HttpProcessPluginConfig(command=sys.executable, args=args, working_directory=tmp_path)
    failure = await failure_of(over_http(3, delay_s=60, w=config))
    assert failure.code == ErrorCode.SPAWN_FAILED
    assert "without serving HTTP: add --http to its args, or say `transport: stdio`" in failure.message


def at(url: str, **more: Any) -> Config:
    return over_http(3, w=RemotePluginConfig(urls=(url,), **more))


@pytest.mark.parametrize("status", [403, 421])
async def test_a_refused_probe_says_what_the_server_says(tmp_path: Path, status: int) -> None:
    script = f"Worker.health = lambda self: self.reply({status}, {{'error': 'not my name'}})\nserve()"
    async with started_worker(tmp_path, script) as (url, _):
        failure = await failure_of(at(url))
    said = f"GET /health was answered with HTTP {status}: not my name"
    assert failure.message == f"worker w at {url}: connection lost (stream_error): {said}"


async def test_who_lacks_a_token_is_told_where_it_is_named() -> None:
    for open_paths in ([], ["/health"]):
        security = HttpSecurity(bearer=BearerTokens(TOKEN), open_paths=open_paths)
        async with Worker().open_http(security=security) as http:
            failure = await failure_of(at(http.url + "/"))
        assert f"worker w at {http.url}/" in failure.message
        assert "HTTP 401: this server asks for a token: send one header" in failure.message
        assert failure.message.endswith("; bearerTokenFile or bearerTokenEnv says which token to send")


async def test_a_refusal_before_anything_was_agreed_on_names_the_worker_and_its_url() -> None:
    async with Worker().open_http() as http:
        failure = await failure_of(at(http.url + "/below"))
    assert failure.message.startswith(f"worker w at {http.url}/below: the endpoint is POST /; ")


async def test_what_a_component_says_stays_as_it_is(tmp_path: Path) -> None:
    script = "Worker.execute = lambda self, input: self.fail(-32100, 'not today')\nserve()"
    failure = await failure_of(over_http(w=raw_http_plugin(tmp_path, script)))
    assert failure.message == "not today"
