"""What a route shuts out is never executed, and a condition on what is not there does not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runtime_stage import Stage, failure_of, one_step

from stepflow_trio import Worker, open_runtime
from stepflow_trio.runtime.config import read_config

CONFIG = """
plugins:
  builtin: {type: builtin}
routes:
  /open/{*component}:
    - plugin: w
  /deny/{*component}:
    - plugin: w
      componentDeny: [/secret]
  /allow/{*component}:
    - plugin: w
      componentAllow: [/public]
  /conditional/{*component}:
    - plugin: other
      conditions: [{path: $.kind.name, value: special}]
    - plugin: w
"""


def offering(said: list[Any], name: str) -> Worker:
    worker = Worker()

    def offer(component: str) -> None:
        async def run(input: Any) -> str:
            said.append(input)
            return f"{name} {component}"

        worker.add_component(run, path=f"/{component}")

    offer("secret")
    offer("public")
    return worker


@pytest.fixture
def said() -> list[Any]:
    return []


@pytest.fixture
def config(tmp_path: Path) -> Any:
    return read_config(
        CONFIG, name="config.yml", directory=tmp_path, environ={}, other_plugins={"w", "other"}
    )


@pytest.mark.parametrize(("path", "is_open"), [
    ("/open/secret", True),
    ("/deny/secret", False),
    ("/deny/public", True),
    ("/allow/secret", False),
    ("/allow/public", True),
])  # fmt: skip
async def test_a_single_rule_without_conditions_keeps_to_its_lists(
    config: Any, said: list[Any], path: str, is_open: bool
) -> None:
    workers = {"w": offering(said, "w"), "other": offering(said, "other")}
    async with open_runtime(config, workers=workers) as runtime:
        if is_open:
            assert await runtime.run(one_step(path), {}) == f"w {path.rsplit('/', 1)[1]}"
        else:
            failure = await failure_of(runtime, one_step(path), {})
            assert "/secret" in failure.message
            assert said == []


@pytest.mark.parametrize(("input", "plugin"), [
    ({"kind": {"name": "special"}}, "other"),
    ({"kind": {"name": "plain"}}, "w"),
    ({"kind": {}}, "w"),
    ({"kind": None}, "w"),
    ({}, "w"),
    ([1], "w"),
    (None, "w"),
])  # fmt: skip
async def test_a_condition_on_what_is_not_there_leads_to_the_next_rule(
    config: Any, said: list[Any], input: Any, plugin: str
) -> None:
    workers = {"w": offering(said, "w"), "other": offering(said, "other")}
    async with open_runtime(config, workers=workers) as runtime:
        assert await runtime.run(one_step("/conditional/public"), input) == f"{plugin} public"


async def test_what_no_rule_leads_to_says_which_there_are(config: Any, said: list[Any]) -> None:
    stage = Stage()
    async with open_runtime(config, workers={"w": stage.worker, "other": stage.worker}) as runtime:
        failure = await failure_of(runtime, one_step("/opne/echo"), {})
    assert "/open/" in failure.message
