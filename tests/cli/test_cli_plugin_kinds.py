"""Commands with a configuration whose plugins are no workers: mocks and MCP servers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_process import Finished

Cli = Callable[..., Finished]

MOCK = """\
plugins:
  shop:
    type: mock
    components:
      /price:
        input_schema: { type: object }
        output_schema: { type: number }
        behaviors:
          { item: tea }: { outcome: success, result: 2.5 }
routes: { "/shop/{*component}": [{ plugin: shop }] }
"""

FLOW = """\
name: prices
description: of a test
schemas: { type: object, properties: { input: { type: object } } }
steps:
  - id: price
    component: /shop/price
    input: { $input: $ }
output: { $step: price }
"""

SERVER = """\
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    match request.get("method"):
        case "initialize":
            info = {"name": "raw", "version": "1"}
            result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}
        case "tools/list":
            tool = {"name": "now", "description": "The time.", "inputSchema": {"type": "object"}}
            result = {"tools": [tool]}
        case _:
            continue
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
"""


@pytest.fixture
def mocked(tmp_path: Path) -> Path:
    (tmp_path / "stepflow-config.yml").write_text(MOCK, encoding="utf-8")
    (tmp_path / "flow.yaml").write_text(FLOW, encoding="utf-8")
    return tmp_path


def test_mocked_components_are_listed_with_their_schemas(cli: Cli, mocked: Path) -> None:
    ran = cli("list-components", "--format", "json", "--schemas", cwd=mocked)
    assert ran.code == 0
    assert json.loads(ran.stdout) == {
        "components": [
            {
                "component": "/shop/price",
                "plugin": "shop",
                "input_schema": {"type": "object"},
                "output_schema": {"type": "number"},
            }
        ]
    }


def test_a_flow_runs_over_mocks_and_its_types_are_theirs(cli: Cli, mocked: Path) -> None:
    flow = mocked / "flow.yaml"
    ran = cli("run", "-q", "--flow", flow, "--input-json", '{"item": "tea"}')
    assert (ran.code, json.loads(ran.stdout)) == (0, {"outcome": "success", "result": 2.5})
    ran = cli("run", "-q", "--flow", flow, "--input-json", '{"item": "rum"}')
    assert ran.code == 1
    assert json.loads(ran.stdout)["error"]["message"] == 'step "price" failed'
    assert '\n  No behavior defined for /price on {"item":"rum"}\n' in ran.stderr + "\n"
    assert cli("validate", flow, "--type-check").code == 0
    assert "type: number" in cli("infer", flow).stdout


def test_the_tools_of_an_mcp_server_are_listed(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="the extra `mcp` is not installed")
    (tmp_path / "server.py").write_text(SERVER, encoding="utf-8")
    config = {
        "plugins": {"clock": {"type": "mcp", "command": sys.executable, "args": ["server.py"]}},
        "routes": {"/clock/{*tool}": [{"plugin": "clock"}]},
    }
    (tmp_path / "stepflow-config.yml").write_text(json.dumps(config), encoding="utf-8")
    ran = cli("list-components", cwd=tmp_path)
    assert (ran.code, ran.stdout) == (0, "/clock/now  The time.\n")
