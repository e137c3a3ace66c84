"""The house's walls: who may import whom, and what appears only where it belongs.

Every check reads the source as a tree, so that nothing has to run (or be on a taken path) to be seen.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stepflow_trio

ROOM = "stepflow_trio"
PACKAGE = Path(stepflow_trio.__file__).parent

TOP = "(the package itself)"
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "protocol": {"errors"},
    "flows": {"errors", "protocol"},
    "engine": {"errors", "protocol"},
    "transports": {"errors", "protocol", "engine"},
    "worker": {"errors", "protocol", "engine", "transports"},
    "runtime": {"errors", "protocol", "engine", "transports", "flows"},
    "testing": {"errors", "protocol", "engine", "transports", "flows", "worker", "runtime"},
    "cli": {"errors", "protocol", "engine", "transports", "flows", "worker", "runtime", "testing", TOP},
    TOP: {"errors", "protocol", "engine", "transports", "flows", "worker", "runtime"},
    "__main__": {"cli"},
}

THIRD_PARTY: dict[str, set[str]] = {
    "errors": set(),
    "protocol": {"msgspec"},
    "flows": {"msgspec", "ruamel", "jsonschema_rs"},
}
"""What a room that does no I/O may use besides the standard library. Other rooms are not restricted."""

CLOCKS_LOGS_AND_IO = {
    "_thread", "asyncio", "concurrent", "http", "io", "logging", "multiprocessing", "os", "pathlib", "queue",
    "random", "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile",
    "threading", "time", "urllib", "uuid",
}  # fmt: skip
"""Of the standard library, what a room without I/O, clock and chance does not touch."""

LOADS_FILES = {"flows": {"io", "os", "pathlib"}}
"""A flow is read from the path that its reader is given."""

MSGSPEC_JSON_DESCRIBES = {"schema", "schema_components"}
"""What ``msgspec.json`` offers that touches types only: no value passes, so that any room may use it."""

MSGSPEC_JSON_ELSEWHERE = {
    ("flows/model.py", "encode"): "hashes a flow's normal form, nothing travels",
}
"""Other uses of ``msgspec.json`` outside the codec, each with its reason."""

SHIELD_ROOM = "engine"
"""Where the one function lives that may shield, because it has a deadline."""


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', 0)}"


def module_name(path: Path, root: Path = PACKAGE) -> str:
    parts = [ROOM, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else TOP


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[ast.AST, str]]:
    """Every module that a source names in an import, wherever it stands: in functions and under
    ``TYPE_CHECKING`` too, relative or absolute, or as the text given to ``import_module``."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield node, alias.name
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    parents = module.split(".")
                    kept = len(parents) - node.level + is_package
                    base = ".".join([*parents[:kept], *([base] if base else [])])
                if base == ROOM:  # `from stepflow_trio import errors` names a room, not the package
                    for alias in node.names:
                        yield node, f"{base}.{alias.name}"
                else:
                    yield node, base
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node, name
            case _:
                pass


def forbidden_imports(path: Path, root: Path = PACKAGE) -> list[str]:
    module = module_name(path, root)
    room = room_of(module)
    problems: list[str] = []
    if room not in MAY_IMPORT:
        return [f"{path.relative_to(root.parent)}:1: there is no room called {room!r}"]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node, name in imported(tree, module, path.name == "__init__.py"):
        where = f"{path.relative_to(root.parent)}:{getattr(node, 'lineno', 0)}"
        head = name.partition(".")[0]
        if head == ROOM:
            target = room_of(name)
            if target not in MAY_IMPORT:  # a name that the package itself holds, such as its version
                target = TOP
            if target != room and target not in MAY_IMPORT[room]:
                problems.append(f"{where}: {room} must not import {name}")
        elif room in THIRD_PARTY:
            if head not in sys.stdlib_module_names and head not in THIRD_PARTY[room]:
                problems.append(f"{where}: {room} must not import {name}, it stands without third parties")
            elif head in CLOCKS_LOGS_AND_IO - LOADS_FILES.get(room, set()):
                problems.append(f"{where}: {room} must not import {name}, it has no I/O, clock or chance")
    return problems


def test_every_module_imports_only_from_its_left() -> None:
    problems = [problem for path in sources() for problem in forbidden_imports(path)]
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("protocol/a.py", "import stepflow_trio.engine.link", "stepflow_trio.engine.link"),
        ("protocol/a.py", "from stepflow_trio.engine import link", "stepflow_trio.engine"),
        ("protocol/a.py", "from stepflow_trio import engine", "stepflow_trio.engine"),
        ("protocol/a.py", "from ..engine import link", "stepflow_trio.engine"),
        ("protocol/a.py", "from .. import engine", "stepflow_trio.engine"),
        ("protocol/__init__.py", "from ..engine import link", "stepflow_trio.engine"),
        ("protocol/a.py", "import stepflow_trio", "stepflow_trio"),
        ("worker/a.py", "from stepflow_trio import __version__", "stepflow_trio.__version__"),
        ("protocol/a.py", "importlib.import_module('stepflow_trio.engine')", "stepflow_trio.engine"),
        ("protocol/a.py", "if TYPE_CHECKING:\n    import trio", "trio"),
        ("protocol/a.py", "def f():\n    import logging", "logging"),
        ("flows/a.py", "from stepflow_trio.runtime import runs", "stepflow_trio.runtime"),
        ("flows/a.py", "import time", "time"),
        ("worker/a.py", "from stepflow_trio.runtime import runs", "stepflow_trio.runtime"),
        ("runtime/a.py", "from stepflow_trio.worker import serve", "stepflow_trio.worker"),
        ("engine/a.py", "from stepflow_trio.testing import links", "stepflow_trio.testing"),
        ("testing/a.py", "from stepflow_trio.cli import main", "stepflow_trio.cli"),
        ("__init__.py", "from stepflow_trio.testing import links", "stepflow_trio.testing"),
        ("errors.py", "import msgspec", "msgspec"),
        ("attic/a.py", "", "attic"),
    ],
)
def test_the_walk_sees_a_forbidden_import_however_it_is_written(
    tmp_path: Path, file: str, line: str, complaint: str
) -> None:
    root = tmp_path / ROOM
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"from __future__ import annotations\n{line}\n", encoding="utf-8")
    (problem,) = forbidden_imports(path, root)
    expected_line = 1 if complaint == "attic" else 2 + line.count("\n")
    assert problem.startswith(f"{ROOM}/{file}:{expected_line}: ")
    assert complaint in problem


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("protocol/a.py", "from stepflow_trio.errors import RpcError"),
        ("protocol/a.py", "from stepflow_trio import errors"),
        ("protocol/a.py", "from . import messages"),
        ("protocol/a.py", "import msgspec, re, collections.abc"),
        ("flows/a.py", "from ruamel.yaml import YAML"),
        ("cli/a.py", "from stepflow_trio.testing import fuzz"),
        ("cli/a.py", "from stepflow_trio import __version__"),
        ("engine/a.py", "import trio, time"),
        ("__init__.py", "from stepflow_trio.worker import component"),
    ],
)
def test_the_walk_lets_pass_what_is_allowed(tmp_path: Path, file: str, line: str) -> None:
    root = tmp_path / ROOM
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line, encoding="utf-8")
    assert forbidden_imports(path, root) == []


@pytest.mark.parametrize("room", ["protocol", "flows"])
def test_a_room_without_io_can_be_imported_where_trio_cannot(room: str) -> None:
    modules = [module_name(path) for path in sources() if room_of(module_name(path)) == room]
    assert modules
    # A bare package object stands in for ours, whose own __init__ re-exports rooms that do need trio.
    code = f"""
import importlib, sys, types
package = types.ModuleType({ROOM!r})
package.__path__ = [{str(PACKAGE)!r}]
sys.modules.update({ROOM}=package, trio=None, logging=None, asyncio=None)
for name in {modules!r}:
    importlib.import_module(name)
print(len([name for name in sys.modules if name.startswith({ROOM + "." + room!r})]))
"""
    ran = subprocess.run([sys.executable, "-Ic", code], capture_output=True, encoding="utf-8", timeout=30)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == len(modules)


def test_the_protocol_loads_no_heavy_library_on_the_way() -> None:
    heavy = ["ruamel", "rich", "click", "pydantic", "attrs", "attr", "hypothesis"]
    code = f"""
import importlib, sys, types
package = types.ModuleType({ROOM!r})
package.__path__ = [{str(PACKAGE)!r}]
sys.modules[{ROOM!r}] = package
for name in {[module_name(p) for p in sources() if room_of(module_name(p)) == "protocol"]!r}:
    importlib.import_module(name)
print(sorted(set({heavy!r}) & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-Ic", code], capture_output=True, encoding="utf-8", timeout=30)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr


def shields(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="shield", value=value) if not _is_false(value):
                yield value
            case ast.Assign(targets=targets, value=value) if not _is_false(value):
                yield from (t for t in targets if isinstance(t, ast.Attribute) and t.attr == "shield")
            case _:
                pass


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def test_at_most_one_place_shields_and_it_is_in_the_engine() -> None:
    found = [
        (room_of(module_name(path)), place(path, node))
        for path in sources()
        for node in shields(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert len(found) <= 1, f"a shield needs a deadline, so only one function may set one: {found}"
    assert all(room == SHIELD_ROOM for room, _ in found), found


@pytest.mark.parametrize(
    "code", ["trio.CancelScope(shield=True)", "trio.move_on_after(1, shield=flag)", "scope.shield = True"]
)
def test_a_shield_is_seen_however_it_is_written(code: str) -> None:
    assert len(list(shields(ast.parse(code)))) == 1


def msgspec_json_uses(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(
                value=ast.Attribute(value=ast.Name(id="msgspec"), attr="json"), attr=attribute
            ):
                yield node, attribute
            case ast.Import(names=names):
                yield from ((node, "*") for alias in names if alias.name.startswith("msgspec.json"))
            case ast.ImportFrom(module="msgspec", names=names):
                yield from ((node, "*") for alias in names if alias.name == "json")
            case ast.ImportFrom(module="msgspec.json"):
                yield node, "*"
            case _:
                pass


def test_what_travels_is_encoded_and_decoded_by_the_codec_alone() -> None:
    problems: list[str] = []
    unused = set(MSGSPEC_JSON_ELSEWHERE)
    for path in sources():
        file = path.relative_to(PACKAGE).as_posix()
        if file == "protocol/codec.py":
            continue
        for node, attribute in msgspec_json_uses(ast.parse(path.read_text(encoding="utf-8"))):
            unused.discard((file, attribute))
            if attribute not in MSGSPEC_JSON_DESCRIBES and (file, attribute) not in MSGSPEC_JSON_ELSEWHERE:
                problems.append(f"{place(path, node)}: msgspec.json.{attribute} outside protocol/codec.py")
    assert not problems, "\n" + "\n".join(problems)
    assert not unused, f"no longer used, so no longer to be listed: {sorted(unused)}"


@pytest.mark.parametrize(
    "code",
    [
        "msgspec.json.decode(b'1')",
        "import msgspec.json",
        "import msgspec.json as j",
        "from msgspec import json",
        "from msgspec.json import Encoder",
    ],
)
def test_a_use_of_the_json_codec_is_seen_however_it_is_written(code: str) -> None:
    assert len(list(msgspec_json_uses(ast.parse(code)))) == 1


def test_every_source_file_fits_on_one_desk() -> None:
    long = [
        f"{place(path, ast.Pass(lineno=lines))}: {lines} lines"
        for path in sources()
        if (lines := path.read_text(encoding="utf-8").count("\n")) > 600
    ]
    assert not long, long
