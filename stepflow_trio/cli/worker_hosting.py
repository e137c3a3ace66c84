"""``stepflow-trio worker``: the worker that a module holds, found and served."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from stepflow_trio.cli.bind_check import require_guarded
from stepflow_trio.cli.component_display import component_lines
from stepflow_trio.cli.exits import Unusable, shows_tracebacks
from stepflow_trio.cli.log_notices import NoticeHandler
from stepflow_trio.cli.notices import complain, speaks_json
from stepflow_trio.cli.standard_output import write_json, write_line
from stepflow_trio.flows.suggestions import did_you_mean
from stepflow_trio.worker.process import allow_many_descriptors, serve_until_signal
from stepflow_trio.worker.worker import Worker

_FILE_MODULE = "stepflow_components"
"""What a file's module is called, which has no name of its own that is sure to be free."""


def host_worker(
    target: str,
    *,
    over_http: bool,
    host: str | None,
    port: int | None,
    bearer_token_file: str | None,
    allowed_host: tuple[str, ...],
    allow_insecure_bind: bool,
) -> int:
    """Serve a worker until the runtime hangs up or a signal comes; return the exit code.

    Raises:
        Unusable: there is no such worker, or it cannot be served so.
        ConfigError: the address or the file of tokens cannot be used.
        BindFailed: it cannot listen there.
    """
    host = host or "127.0.0.1"
    if over_http:
        require_guarded(
            host,
            bearer_token_file=bearer_token_file,
            allow_insecure_bind=allow_insecure_bind,
            what="run its components",
        )
    worker = find_worker(target)
    # Why a component failed is nowhere but in the log.
    logging.basicConfig(handlers=[NoticeHandler(with_tracebacks=True)], level=logging.WARNING)
    if not over_http:
        if sys.stdin is not None and sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison]: it is, when closed at the start
            text = "this is for a runtime, which speaks to it on stdin; Ctrl-C ends it"
            complain(f"{text}. --list shows its components, --http serves over HTTP", level="info")
        worker.run_stdio()
        return 0
    import trio  # here: a stdio worker needs none of it

    from stepflow_trio.transports.http.bearer import BearerTokens
    from stepflow_trio.transports.http.limits import HttpServerLimits
    from stepflow_trio.transports.http.security import HttpSecurity

    bearer = None if bearer_token_file is None else BearerTokens.from_file(bearer_token_file)
    security = HttpSecurity(allowed_hosts=allowed_host, bearer=bearer)
    limits = HttpServerLimits()
    http = worker.open_http(
        host, port or 0, security=security, allow_insecure_bind=allow_insecure_bind, http_limits=limits
    )
    allow_many_descriptors()
    trio.run(serve_until_signal, http, limits.drain_s)
    return 0


def list_worker(target: str) -> int:
    """Print a worker's components, and return the exit code.

    Raises:
        Unusable: there is no such worker.
    """
    components = find_worker(target).components
    listed: list[dict[str, Any]] = [
        {"component": component.path, "description": component.description} for component in components
    ]
    if speaks_json():
        for written, component in zip(listed, components, strict=True):
            written |= {
                "input_schema": component.input_schema,
                "output_schema": component.output_schema,
            }
        write_json({"components": listed})
    else:
        for line in component_lines(listed):
            write_line(line)
    for component in components:
        for problem in component.problems:
            complain(f"warning: {problem}", level="warning")
    return 0


def find_worker(target: str) -> Worker:
    """The worker that ``package.module:name`` or ``path/file.py:name`` names.

    Without a name it is the only one that the module holds. A file's directory, and the current one, are
    where its imports are looked for too.

    Raises:
        Unusable: the module cannot be imported, or holds no such worker; what it holds is said.
    """
    where, _, name = target.partition(":")
    if not where:
        raise Unusable("names no module; write package.module:name or path/file.py:name", target)
    with _stdout_as_stderr():
        module = _file_module(where) if _is_path(where) else _module(where, target)
    return _named(module, name, target) if name else _only(module, target)


@contextmanager
def _stdout_as_stderr() -> Generator[None]:
    """What is printed in the block, by whatever, goes to stderr: stdout is the protocol's."""
    try:
        kept = os.dup(1)
    except OSError:  # there is none
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]: it is, when closed at the start
            sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _is_path(where: str) -> bool:
    return where.endswith(".py") or "/" in where


def _file_module(where: str) -> ModuleType:
    path = Path(where)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "there is no such file"
        raise Unusable(f"{what}; looked in {path.absolute().parent}", where)
    sys.path.insert(0, str(path.absolute().parent))
    spec = importlib.util.spec_from_file_location(_FILE_MODULE, path)
    if spec is None or spec.loader is None:
        raise Unusable("is no Python file; its name must end in .py", where)
    module = importlib.util.module_from_spec(spec)
    # Classes look their module up by its name, to read their annotations.
    sys.modules[_FILE_MODULE] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as exc:
        raise _failed_import(exc, where) from exc
    return module


def _module(where: str, target: str) -> ModuleType:
    if not all(part.isidentifier() for part in where.split(".")):
        raise Unusable("is neither the name of a module nor a file whose name ends in .py", where)
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (where == exc.name or where.startswith(exc.name + ".")):
            hint = f"; for a file write {where}.py" if Path(f"{where}.py").is_file() else ""
            looked = f"there is no module {exc.name!r} in {Path.cwd()} or where Python {sys.prefix} looks"
            raise Unusable(f"{looked}{hint}", target) from exc
        raise _failed_import(exc, where) from exc
    except (Exception, SystemExit) as exc:
        raise _failed_import(exc, where) from exc


def _failed_import(exc: Exception | SystemExit, where: str) -> Unusable:
    """That a module cannot be imported, and the line in it that raised, if it is not further down."""
    import traceback

    if shows_tracebacks():
        complain("".join(traceback.format_exception(exc)).rstrip("\n"))
    if isinstance(exc, SyntaxError) and exc.filename:
        place = f"{exc.filename}:{exc.lineno or 0}:{exc.offset or 0}"
        return Unusable(f"cannot be imported: {type(exc).__name__}: {exc.msg}", place)
    frames = [
        frame
        for frame in traceback.extract_tb(exc.__traceback__)
        if not frame.filename.startswith("<frozen") and frame.filename not in (__file__, importlib.__file__)
    ]
    own = [frame for frame in frames if not frame.filename.startswith(sys.prefix)] or frames
    place = f"{own[-1].filename}:{own[-1].lineno}" if own else where
    hint = "" if shows_tracebacks() else "; set STEPFLOW_DEBUG=1 to see its traceback"
    return Unusable(f"cannot be imported: {type(exc).__name__}: {exc}{hint}", place)


def _named(module: ModuleType, name: str, target: str) -> Worker:
    if not hasattr(module, name):
        raise Unusable(f"there is no {name!r} in it{_what_there_is(module, name)}", target)
    value = getattr(module, name)
    if not isinstance(value, Worker):
        what = "the class" if isinstance(value, type) else "of type"
        kind = value.__name__ if isinstance(value, type) else type(value).__name__
        raise Unusable(f"{name} is {what} {kind}, and no Worker{_what_there_is(module, name)}", target)
    return value


def _only(module: ModuleType, target: str) -> Worker:
    found = _workers(module)
    if not found:
        raise Unusable(f"there is no Worker in it{_what_there_is(module, '')}", target)
    different = {id(worker) for worker in found.values()}
    if len(different) > 1:
        examples = ", ".join(f"{target}:{name}" for name in found)
        raise Unusable(f"there are {len(different)} Workers in it; name one: {examples}", target)
    return next(iter(found.values()))


def _workers(module: ModuleType) -> dict[str, Worker]:
    return {name: value for name, value in vars(module).items() if isinstance(value, Worker)}


def _what_there_is(module: ModuleType, name: str) -> str:
    workers = _workers(module)
    if not workers:
        return "" if name == "" else "; it holds no Worker"
    return f"; {did_you_mean(name, workers) or 'its Workers are ' + ', '.join(workers)}"
