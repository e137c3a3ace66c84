"""``worker``: which worker a target names, and that it is served as a configuration or a balancer expects."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_process import Finished, Started

from stepflow_trio.cli.exits import Unusable
from stepflow_trio.cli.worker_hosting import find_worker

Cli = Callable[..., Finished]
Start = Callable[..., Started]

ONE = """\
from __future__ import annotations
import os
print("printed while it is imported")
os.write(1, b"and written\\n")
from dataclasses import dataclass
from stepflow_trio import Worker
worker = Worker()

@dataclass
class Order:
    pieces: int

@worker.component
async def twice(order: Order) -> int:
    \"\"\"Twice as many.

    And more.\"\"\"
    print("said aloud")
    return 2 * order.pieces

@worker.component
async def odd(x: "Unknown") -> None: ...
"""

CONFIG = """\
plugins:
  one:
    type: stepflow
    transport: stdio
    command: {python}
    args: [-m, stepflow_trio, worker, {target}]
    env: {{ PYTHONPATH: {path} }}
routes:
  /one/{{*component}}:
    - plugin: one
"""

FLOW = """\
name: f
description: d
steps:
  - id: s
    component: /one/twice
    input: { pieces: 4 }
output: { $step: s }
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "one.py": ONE,
        "package_of_tests/__init__.py": "",
        "package_of_tests/part.py": "from one import worker\n",
        "none.py": "worker = 3\n",
        "two.py": "from stepflow_trio import Worker\na = Worker()\nb = Worker()\nsame = a\n",
        "broken.py": "x = 1\ny = (\n",
        "raises.py": "def f():\n    raise ValueError('no')\nf()\n",
        "needs.py": "import not_there_at_all\n",
        "exits.py": "import sys\n\nsys.exit(3)\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "target", ["one.py", "one.py:worker", "./one.py", "one", "one:worker", "package_of_tests.part"]
)
def test_a_target_is_a_file_or_a_module_with_or_without_the_name(
    cli: Cli, project: Path, target: str
) -> None:
    ran = cli("worker", "--list", target, cwd=project)
    assert (ran.code, ran.stdout) == (0, "/twice  Twice as many.\n/odd\n")
    assert "printed while it is imported\n" in ran.stderr
    assert "\nwarning: component /odd: parameter 'x': " in ran.stderr


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("two.py", "two.py: error: there are 2 Workers in it; name one: two.py:a, two.py:b, two.py:same"),
        ("none.py", "none.py: error: there is no Worker in it"),
        ("none.py:worker", "none.py:worker: error: worker is of type int, and no Worker; it holds no Worker"),
        ("one.py:wroker", "one.py:wroker: error: there is no 'wroker' in it; did you mean \"worker\"?"),
        ("two.py:zzz", "two.py:zzz: error: there is no 'zzz' in it; its Workers are a, b, same"),
        ("one.py:Worker", "one.py:Worker: error: Worker is the class Worker, and no Worker; did you mean"),
        ("nowhere.py", "nowhere.py: error: there is no such file; looked in "),
        ("./", "./: error: is a directory; looked in "),
        (".", ".: error: is neither the name of a module nor a file"),
        (":worker", ":worker: error: names no module; write package.module:name or path/file.py:name"),
        ("no_such_module", "no_such_module: error: there is no module 'no_such_module' in "),
        ("one.part", "one.part: error: there is no module 'one.part'"),
        ("broken.py", "/broken.py:2:5: error: cannot be imported: SyntaxError: '(' was never closed"),
        ("raises.py", "/raises.py:2: error: cannot be imported: ValueError: no; set STEPFLOW_DEBUG=1"),
        ("exits.py", "/exits.py:3: error: cannot be imported: SystemExit: 3"),
        ("exits", "/exits.py:3: error: cannot be imported: SystemExit: 3"),
        ("needs", "/needs.py:1: error: cannot be imported: ModuleNotFoundError: No module named 'not_there"),
    ],
)
def test_a_target_that_is_none_is_told_what_was_looked_for_and_found(
    project: Path, monkeypatch: pytest.MonkeyPatch, target: str, says: str
) -> None:
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv("STEPFLOW_DEBUG", raising=False)
    try:
        with pytest.raises(Unusable) as caught:
            find_worker(target)
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]
    assert says in str(caught.value)


def test_why_a_component_failed_is_said_from_its_own_line_on(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from stepflow_trio import Worker\nworker = Worker()\n\n"
        "@worker.component\ndef sell():\n    raise ValueError('sold out')\n",
        encoding="utf-8",
    )
    command = {"command": sys.executable, "args": ["-m", "stepflow_trio", "worker", "shop.py"]}
    plugin = {"type": "stepflow", "transport": "stdio", **command}
    config = {"plugins": {"shop": plugin}, "routes": {"/shop/{*c}": [{"plugin": "shop"}]}}
    (tmp_path / "stepflow-config.yml").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "flow.yaml").write_text(FLOW.replace("/one/twice", "/shop/sell"), encoding="utf-8")
    ran = cli("run", "flow.yaml", "--input-json", "1", cwd=tmp_path)
    assert ran.code == 1
    frames = [line for line in ran.stderr.splitlines() if ", line " in line]
    assert [frame.partition('"')[2] for frame in frames] == [f'{tmp_path / "shop.py"}", line 6, in sell']


def test_what_is_wrong_with_a_target_has_its_place_in_json_too(cli: Cli, project: Path) -> None:
    ran = cli("worker", "broken.py", "--json", cwd=project)
    assert (ran.code, ran.stdout) == (2, "")
    assert json.loads(ran.stderr) == {
        "level": "error",
        "message": "cannot be imported: SyntaxError: '(' was never closed",
        "place": {"file": str(project / "broken.py"), "line": 2, "column": 5},
    }


@pytest.mark.parametrize("is_http", [False, True])
def test_a_configuration_can_start_it_and_what_it_prints_is_no_protocol(
    cli: Cli, project: Path, is_http: bool
) -> None:
    config, flow = project / "stepflow-config.yml", project / "flow.yaml"
    target = "one.py, --http" if is_http else "one.py"
    path = os.pathsep.join(sys.path)
    text = CONFIG.format(python=sys.executable, target=target, path=json.dumps(path))
    config.write_text(text.replace("    transport: stdio\n", "") if is_http else text, encoding="utf-8")
    flow.write_text(FLOW, encoding="utf-8")
    ran = cli("run", flow, "--input-json", "1", cwd=project)
    assert (ran.code, ran.stdout) == (0, '{"outcome":"success","result":8}\n'), ran.stderr
    assert "one | printed while it is imported\n" in ran.stderr
    assert "one | and written\n" in ran.stderr
    assert "one | said aloud\n" in ran.stderr


def test_over_http_it_says_its_port_and_asks_for_its_token(start: Start, project: Path) -> None:
    tokens = project / "token"
    tokens.write_text("a-token-of-the-tests", encoding="utf-8")
    tokens.chmod(0o600)
    started = start("worker", "one.py", "--http", "--bearer-token-file", tokens, cwd=project)
    assert started.process.stdout is not None
    port = json.loads(started.process.stdout.readline())["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", data=b"{}")
    caught.value.close()
    assert caught.value.code == 401
    started.signal_until_over(signal.SIGTERM)
    assert started.finish().code == 0


def test_where_it_cannot_listen_is_said(cli: Cli, project: Path) -> None:
    ran = cli("worker", "one.py", "--http", "--host", "0.0.0.0", cwd=project)  # noqa: S104 — refused
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: --host 0.0.0.0 lets other machines in, and whoever reaches it ")


def test_a_port_that_is_taken_is_said(cli: Cli, project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = cli("worker", "one.py", "--http", "--port", taken.getsockname()[1], cwd=project)
    assert (ran.code, ran.stdout) == (1, "")
    assert "error: cannot listen on 127.0.0.1:" in ran.stderr
