"""The configuration file: plugins, the routes that lead to them, and how failed attempts are repeated.

The keys are those of the public releases, whose files can be read as they are. What they know and this
runtime does not have costs only the components that need it, and is said in :attr:`Config.warnings`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

from stepflow_trio.errors import ConfigError, FlowInvalid, PathInvalid
from stepflow_trio.flows.diagnostics import Diagnostic, DiagnosticKind, Place, printable
from stepflow_trio.flows.paths import JsonPath, parse_path, render_path
from stepflow_trio.flows.source import Source, read_source
from stepflow_trio.flows.source_text import SourceLimits
from stepflow_trio.flows.suggestions import closest, did_you_mean
from stepflow_trio.protocol.json_types import json_type
from stepflow_trio.runtime.environment import substitute
from stepflow_trio.runtime.retries import Backoff, Constant, Exponential, Fibonacci, RetryPolicy
from stepflow_trio.runtime.routing import Condition, Route, Rule, route_faults

__all__ = [
    "DEFAULT_CONFIG",
    "FILE_NAMES",
    "BuiltinPluginConfig",
    "Config",
    "PluginConfig",
    "StdioPluginConfig",
    "UnsupportedPluginConfig",
    "find_config",
    "read_config",
    "read_config_file",
]

FILE_NAMES = ("stepflow-config.yml", "stepflow-config.yaml", "stepflow_config.yml", "stepflow_config.yaml")
"""What a configuration file is called where none is named."""

_PLUGIN_TYPES = ("stepflow", "builtin", "mock", "mcp")
_STDIO_KEYS = ("type", "transport", "command", "args", "env")
_RULE_KEYS = ("plugin", "component", "conditions", "componentAllow", "componentDeny")
_NARROWING = ("conditions", "componentAllow", "componentDeny")
"""Keys that keep components away from a rule: misspelled, they would let in what the author shut out."""

_NOT_READ: dict[str, tuple[str, object]] = {
    "storageConfig": ("blobs and runs are kept in memory", {"type": "inMemory"}),
    "stateStore": ("blobs and runs are kept in memory", {"type": "inMemory"}),
    "leaseManager": ("this runtime shares its runs with no other", {"type": "noOp"}),
    "recovery": ("runs that were interrupted are not taken up again", {"enabled": False}),
    "blobApi": ("workers read and write blobs over their own connection", {"enabled": False}),
}
"""Keys of the public releases that have no effect: what is done instead, and the value that asks for that."""

_TOP_KEYS = ("workingDirectory", "plugins", "routes", "retry", *_NOT_READ)
_MAX_COUNT = 2**32 - 1
_MAX_DELAY_MS = 2**64 - 1
_MAX_LISTED = 100
"""Problems in one error."""

_QUOTATION = re.compile(r"""(['"])(?![<\\])(?:(?!\1).){2,}\1""")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinPluginConfig:
    """The components that this runtime brings along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StdioPluginConfig:
    """A worker process that speaks over its stdin and stdout.

    ``env`` is its whole environment. It may hold secrets, so that it is not shown in the ``repr``.
    """

    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    working_directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsupportedPluginConfig:
    """A plugin of a kind that this runtime cannot run: using one of its components fails, for ``reason``."""

    type: str
    reason: str


PluginConfig: TypeAlias = BuiltinPluginConfig | StdioPluginConfig | UnsupportedPluginConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a configuration says. Its routes can be used, and lead to its plugins."""

    plugins: Mapping[str, PluginConfig]
    routes: tuple[Route, ...]
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    warnings: tuple[str, ...] = ()
    """What has no effect although it is there, each with its ``file:line:column``."""
    source: str
    """The file's name."""


DEFAULT_CONFIG = Config(
    plugins={"builtin": BuiltinPluginConfig()},
    routes=(Route("/builtin/{*component}", (Rule(plugin="builtin"),)),),
    source="<default>",
)
"""What holds where there is no configuration: the builtin components, under ``/builtin/``."""


def find_config(flow_path: Path | None, cwd: Path) -> Path | None:
    """The configuration file that belongs to a flow: in the flow's directory, else in ``cwd``, else none.

    Raises:
        ConfigError: one directory holds two of the names of `FILE_NAMES`.
    """
    for directory in [cwd] if flow_path is None else [cwd / flow_path.parent, cwd]:
        found = [directory / name for name in FILE_NAMES if os.path.lexists(directory / name)]
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            raise ConfigError(
                f"there are {names}: remove all but one, or name the one to use", str(directory)
            )
        if found:
            return found[0]
    return None


def read_config_file(path: str | os.PathLike[str], *, environ: Mapping[str, str] | None = None) -> Config:
    """Read a configuration file, YAML or JSON; relative paths in it start from its directory.

    ``environ`` has the values for ``$VAR`` and its kin. By default those are this process's environment, and
    ``STEPFLOW_PYTHON`` where that does not say otherwise: the interpreter that runs this, so that a worker in
    Python finds what is installed beside it.

    Raises:
        ConfigError: the file cannot be read, or see `read_config`.
    """
    if environ is None:
        environ = {"STEPFLOW_PYTHON": sys.executable, **os.environ}
    name = os.fspath(path)
    try:
        with Path(name).open("rb") as file:
            text = file.read(SourceLimits().max_bytes + 1)
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise ConfigError(f"the configuration cannot be read: {why}", name) from exc
    return read_config(text, name=name, directory=Path(name).absolute().parent, environ=environ)


def read_config(text: str | bytes, *, name: str, directory: Path, environ: Mapping[str, str]) -> Config:
    """Read a configuration from YAML 1.2 or JSON text.

    Args:
        text: the file's content.
        name: the file's name, for messages; one that ends in ``.json`` makes JSON the only format.
        directory: where workers are started, unless ``workingDirectory`` says otherwise.
        environ: the variables that commands, arguments and environments of workers may refer to.

    Raises:
        ConfigError: something in it cannot be used as written. All that is wrong is in the one message, a
            line for each with its ``file:line:column`` and its key; no value of an ``env`` is.
    """
    try:
        source = read_source(text, name=name)
    except FlowInvalid as exc:
        raise _config_error([_Problem(d.place, _said(d)) for d in _diagnostics(exc)]) from None
    return _Reader(source, directory, environ).config()


@dataclass(frozen=True, slots=True)
class _Problem:
    place: Place
    text: str


def _config_error(problems: list[_Problem]) -> ConfigError:
    lines = [f"{printable(str(problem.place))}: {problem.text}" for problem in problems[:_MAX_LISTED]]
    if len(problems) > _MAX_LISTED:
        lines.append(f"and {len(problems) - _MAX_LISTED:,} more")
    place = printable(str(problems[0].place))
    return ConfigError("\n".join(lines).removeprefix(f"{place}: "), place)


def _diagnostics(exc: FlowInvalid) -> tuple[Diagnostic, ...]:
    return cast("tuple[Diagnostic, ...]", exc.diagnostics)


def _said(diagnostic: Diagnostic) -> str:
    """What was wrong with the text, without what it quotes from values: that may be a secret."""
    message, suggestion = diagnostic.message, diagnostic.suggestion
    if diagnostic.kind in (DiagnosticKind.SYNTAX_ERROR, DiagnosticKind.NOT_JSON):
        match diagnostic.path:
            case ("plugins", _, "env" | "args", *_):
                message, suggestion = "this is not a plain string", "put it in quotes"
            case _:
                message = _QUOTATION.sub("'…'", message)
    return _at_key(diagnostic.path, f"{message}; {suggestion}" if suggestion else message)


def _at_key(path: JsonPath, message: str) -> str:
    key = render_path(path).removeprefix("$").removeprefix(".")
    return f"{printable(key)}: {message}" if key else message


class _Reader:
    """Reads one configuration and collects all that is wrong with it.

    Its methods return something of the right type even then: what they return is used only if nothing was.
    """

    def __init__(self, source: Source, directory: Path, environ: Mapping[str, str]) -> None:
        self._source = source
        self._directory = directory
        self._environ = environ
        self._problems: list[_Problem] = []
        self._warnings: list[_Problem] = []
        self._plugin_names: list[str] | None = None
        """None where it is not known what plugins there are."""

    def config(self) -> Config:
        fields = self._object(self._source.value, ())
        self._ignore_others(fields, (), _TOP_KEYS)
        if (working_directory := fields.get("workingDirectory")) is not None:
            self._set_directory(working_directory)
        given_plugins = self._required_object(fields, "plugins")
        plugins = {name: self._plugin(value, ("plugins", name)) for name, value in given_plugins.items()}
        if isinstance(fields.get("plugins"), dict):
            self._plugin_names = list(plugins)
        routes = self._routes(self._required_object(fields, "routes"))
        routed = {rule.plugin for route in routes for rule in route.rules}
        for name in plugins.keys() - routed:
            self._warn(("plugins", name), "no route leads to this plugin", at_key=True)
        retry = self._retry(fields.get("retry"))
        self._refuse_faulty_text(plugins)
        if self._problems:
            raise _config_error(_in_order(self._problems))
        return Config(
            plugins=plugins,
            routes=routes,
            retry=retry,
            warnings=tuple(f"{printable(str(w.place))}: {w.text}" for w in _in_order(self._warnings)),
            source=self._source.name,
        )

    def _set_directory(self, value: object) -> None:
        path = ("workingDirectory",)
        directory = self._string(value, path)
        if "\0" in directory:
            self._problem(path, "holds a NUL character, which no directory's name does")
        self._directory = self._directory / directory

    def _refuse_faulty_text(self, plugins: Mapping[str, PluginConfig]) -> None:
        """Count what reading the text went past, such as a duplicate key, as a problem.

        Except inside a plugin that is not run anyway: a mock's behaviours have inputs as keys, which JSON
        cannot represent.
        """
        for diagnostic in self._source.diagnostics:
            match diagnostic.path:
                case ("plugins", str(name), _, *_) if isinstance(plugins.get(name), UnsupportedPluginConfig):
                    continue
                case _:
                    self._problems.append(_Problem(diagnostic.place, _said(diagnostic)))

    # ---- plugins -----------------------------------------------------------------------------------------

    def _plugin(self, value: object, path: JsonPath) -> PluginConfig:
        fields = self._object(value, path)
        if not isinstance(value, dict):
            return BuiltinPluginConfig()
        match fields.get("type"):
            case "builtin":
                self._ignore_others(fields, path, ("type",))
            case "stepflow":
                return self._stepflow_plugin(fields, path)
            case "mock" | "mcp" as kind:
                return self._unsupported(path, kind, f"{kind} plugins are not supported by this runtime")
            case None:
                self._missing(fields, path, "type")
            case str(kind):
                self._problem((*path, "type"), _one_of(kind, _PLUGIN_TYPES))
            case kind:
                self._string(kind, (*path, "type"))
        return BuiltinPluginConfig()

    def _stepflow_plugin(self, fields: dict[str, Any], path: JsonPath) -> PluginConfig:
        match fields.get("transport"):
            case "stdio":
                return self._stdio_plugin(fields, path)
            case "http":
                reason = "workers over HTTP are not supported by this runtime"
                return self._unsupported(path, "stepflow", reason)
            case None if fields.get("url") is not None:
                reason = "a worker at a URL speaks HTTP, which is not supported by this runtime"
                return self._unsupported(path, "stepflow", reason)
            case None if fields.get("command") is not None:
                reason = (
                    "without `transport: stdio` a worker speaks HTTP, which is not supported by this runtime"
                )
                return self._unsupported(path, "stepflow", reason)
            case None:
                self._missing(fields, path, "command")
            case str(transport):
                self._problem((*path, "transport"), _one_of(transport, ("stdio", "http")))
            case transport:
                self._string(transport, (*path, "transport"))
        return BuiltinPluginConfig()

    def _stdio_plugin(self, fields: dict[str, Any], path: JsonPath) -> StdioPluginConfig:
        self._ignore_others(fields, path, _STDIO_KEYS)
        command = ""
        if fields.get("command") is None:
            self._missing(fields, path, "command")
        else:
            command = self._substituted(fields["command"], (*path, "command"))
            if command == "":
                self._problem((*path, "command"), "is empty: name the program to start")
        args = [self._substituted(arg, at) for at, arg in self._items(fields, path, "args")]
        env: dict[str, str] = {}
        given_env = {} if fields.get("env") is None else self._object(fields["env"], (*path, "env"))
        for name, value in given_env.items():
            if not name or "=" in name or "\0" in name:
                # Not shown: after the `=` of a variable that is written the shell's way stands its value.
                place = self._source.place((*path, "env", name), at_key=True)
                message = "this is no variable's name: write NAME: value"
                self._problems.append(_Problem(place, _at_key((*path, "env"), message)))
            else:
                env[name] = self._substituted(value, (*path, "env", name)) or ""
        return StdioPluginConfig(
            command=command or "",
            args=tuple(arg or "" for arg in args),
            env=env,
            working_directory=self._directory,
        )

    def _substituted(self, value: object, path: JsonPath) -> str | None:
        """A text with its variables replaced; None if it cannot be."""
        if not isinstance(value, str):
            self._string(value, path)
            return None
        try:
            text = substitute(value, self._environ)
        except ValueError as exc:
            self._problem(path, str(exc))
            return None
        if "\0" in text:
            self._problem(path, "holds a NUL character, which cannot be passed to a process")
        return text

    def _unsupported(self, path: JsonPath, kind: str, reason: str) -> UnsupportedPluginConfig:
        self._warn(path, f"{reason}: its components cannot be used", at_key=True)
        return UnsupportedPluginConfig(type=kind, reason=reason)

    # ---- routes ------------------------------------------------------------------------------------------

    def _routes(self, fields: dict[str, Any]) -> tuple[Route, ...]:
        routes: list[Route] = []
        for pattern, value in fields.items():
            path = ("routes", pattern)
            rules = [self._rule(rule, (*path, index)) for index, rule in enumerate(self._array(value, path))]
            if not rules and isinstance(value, list):
                self._warn(path, "has no rules, so it leads nowhere", at_key=True)
            routes.append(Route(pattern, tuple(rules)))
        for fault in route_faults(routes):
            self._problem(("routes", *fault.path), fault.message, at_key=len(fault.path) == 1)
        return tuple(routes)

    def _rule(self, value: object, path: JsonPath) -> Rule:
        fields = self._object(value, path)
        for key in fields:
            if key not in _RULE_KEYS and _seems_to_narrow(key):
                hint = did_you_mean(key, _NARROWING) or f"write one of {', '.join(_NARROWING)}"
                self._problem((*path, key), f"is no key of a rule; {hint}", at_key=True)
        self._ignore_others(fields, path, _RULE_KEYS)
        plugin = component = None
        if fields.get("plugin") is not None:
            plugin = self._string(fields["plugin"], (*path, "plugin"))
            self._check_plugin(fields["plugin"], (*path, "plugin"))
        elif isinstance(value, dict):
            self._missing(fields, path, "plugin")
        if fields.get("component") is not None:
            component = self._string(fields["component"], (*path, "component"))
        return Rule(
            plugin=plugin or "",
            component=component,
            conditions=tuple(
                self._condition(condition, at) for at, condition in self._items(fields, path, "conditions")
            ),
            component_allow=self._components(fields, path, "componentAllow"),
            component_deny=self._components(fields, path, "componentDeny"),
        )

    def _check_plugin(self, name: object, path: JsonPath) -> None:
        if isinstance(name, str) and self._plugin_names is not None and name not in self._plugin_names:
            listed = ", ".join(map(printable, self._plugin_names[:10])) or "none"
            hint = did_you_mean(name, self._plugin_names) or f"there are: {listed}"
            self._problem(path, f'no plugin "{printable(name)}" is configured; {hint}')

    def _condition(self, value: object, path: JsonPath) -> Condition:
        fields = self._object(value, path)
        input_path: JsonPath = ()
        if isinstance(value, dict):
            self._ignore_others(fields, path, ("path", "value"))
            if fields.get("path") is None:
                self._missing(fields, path, "path")
            if "value" not in fields:
                self._missing(fields, path, "value")
        if fields.get("path") is not None:
            try:
                input_path = parse_path(self._string(fields["path"], (*path, "path")))
            except PathInvalid as exc:
                self._problem((*path, "path"), exc.why)
        return Condition(path=input_path, value=fields.get("value"))

    def _components(self, fields: dict[str, Any], path: JsonPath, key: str) -> tuple[str, ...] | None:
        if fields.get(key) is None:
            return None
        return tuple(self._string(component, at) for at, component in self._items(fields, path, key))

    # ---- retries -----------------------------------------------------------------------------------------

    def _retry(self, value: object) -> RetryPolicy:
        if value is None:
            return RetryPolicy()
        fields = self._object(value, ("retry",))
        self._ignore_others(fields, ("retry",), ("transportMaxRetries", "backoff"))
        retries = self._whole_number(fields, ("retry",), "transportMaxRetries", 3, _MAX_COUNT)
        return RetryPolicy(transport_max_retries=retries, backoff=self._backoff(fields.get("backoff")))

    def _backoff(self, value: object) -> Backoff:
        path = ("retry", "backoff")
        if value is None:
            return Fibonacci()
        fields = self._object(value, path)
        match fields.get("type"):
            case "constant":
                self._ignore_others(fields, path, ("type", "delayMs"))
                return Constant(delay_s=self._delay_s(fields, path, "delayMs", 1000))
            case "fibonacci":
                self._ignore_others(fields, path, ("type", "minDelayMs", "maxDelayMs"))
                shortest, longest = self._delay_range_s(fields, path)
                return Fibonacci(min_delay_s=shortest, max_delay_s=longest)
            case "exponential":
                self._ignore_others(fields, path, ("type", "minDelayMs", "maxDelayMs", "factor"))
                shortest, longest = self._delay_range_s(fields, path)
                return Exponential(
                    min_delay_s=shortest, max_delay_s=longest, factor=self._factor(fields.get("factor"), path)
                )
            case None:
                if isinstance(value, dict):
                    self._missing(fields, path, "type")
            case str(kind):
                self._problem((*path, "type"), _one_of(kind, ("fibonacci", "exponential", "constant")))
            case kind:
                self._string(kind, (*path, "type"))
        return Fibonacci()

    def _delay_range_s(self, fields: dict[str, Any], path: JsonPath) -> tuple[float, float]:
        shortest = self._delay_s(fields, path, "minDelayMs", 1000)
        longest = self._delay_s(fields, path, "maxDelayMs", 10_000)
        if longest < shortest:
            given = "minDelayMs" if fields.get("minDelayMs") is not None else "maxDelayMs"
            self._warn((*path, given), f"maxDelayMs is less than minDelayMs: every delay is {longest:g} s")
        return shortest, longest

    def _delay_s(self, fields: dict[str, Any], path: JsonPath, key: str, default_ms: int) -> float:
        return self._whole_number(fields, path, key, default_ms, _MAX_DELAY_MS) / 1000

    def _factor(self, value: object, path: JsonPath) -> float:
        if value is None:
            return 2.0
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value <= _MAX_COUNT:
            return float(value)
        self._problem((*path, "factor"), f"must be a number from 1 to {_MAX_COUNT}: delays do not shrink")
        return 2.0

    def _whole_number(self, fields: dict[str, Any], path: JsonPath, key: str, default: int, most: int) -> int:
        value: object = fields.get(key)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most:
            return value
        self._problem((*path, key), f"must be a whole number from 0 to {most}")
        return default

    # ---- any value ---------------------------------------------------------------------------------------

    def _object(self, value: object, path: JsonPath) -> dict[str, Any]:
        """The value where it is an object, else an empty one."""
        if isinstance(value, dict):
            return cast("dict[str, Any]", value)
        self._wrong_type(path, value, "an object with keys")
        return {}

    def _required_object(self, fields: dict[str, Any], key: str) -> dict[str, Any]:
        """The object under a key of the whole configuration, else an empty one."""
        if fields.get(key) is not None:
            return self._object(fields[key], (key,))
        if isinstance(self._source.value, dict):
            self._missing(fields, (), key)
        return {}

    def _array(self, value: object, path: JsonPath) -> list[object]:
        """The value where it is a list, else an empty one."""
        if isinstance(value, list):
            return cast("list[object]", value)
        self._wrong_type(path, value, "a list")
        return []

    def _items(
        self, fields: Mapping[str, Any], path: JsonPath, key: str
    ) -> Iterator[tuple[JsonPath, object]]:
        """The members, each with its path, of the list under a key that need not be there."""
        members = [] if fields.get(key) is None else self._array(fields[key], (*path, key))
        for index, member in enumerate(members):
            yield (*path, key, index), member

    def _string(self, value: object, path: JsonPath) -> str:
        """The value where it is a string, else an empty one."""
        if isinstance(value, str):
            return value
        self._wrong_type(path, value, "a string")
        return ""

    def _wrong_type(self, path: JsonPath, value: object, wanted: str) -> None:
        hint = "; put it in quotes" if wanted == "a string" and isinstance(value, (bool, int, float)) else ""
        # A value that is not written has no place of its own, so its key's is shown.
        self._problem(path, f"must be {wanted}, not {json_type(value)}{hint}", at_key=value is None)

    def _missing(self, fields: Mapping[str, Any], path: JsonPath, key: str) -> None:
        """A key that must be there is not; perhaps it is there under a misspelled name."""
        hint = closest(key, fields)
        suggestion = f'; is "{printable(hint)}" meant to be it?' if hint is not None and hint != key else ""
        place = self._source.place(path, at_key=True)
        self._problems.append(_Problem(place, _at_key((*path, key), f"is missing{suggestion}")))

    def _ignore_others(self, fields: Mapping[str, Any], path: JsonPath, known: Collection[str]) -> None:
        """Warn of keys that nobody reads, and of those that only other runtimes read."""
        for key, value in fields.items():
            if not path and key in _NOT_READ:
                instead, harmless = _NOT_READ[key]
                if value is not None and value != harmless:
                    self._warn((key,), f"is ignored: {instead}", at_key=True)
            elif key not in known:
                hint = did_you_mean(key, known)
                self._warn(
                    (*path, key),
                    f"is ignored: there is no such key here{'; ' + hint if hint else ''}",
                    at_key=True,
                )

    def _problem(self, path: JsonPath, message: str, *, at_key: bool = False) -> None:
        self._problems.append(_Problem(self._source.place(path, at_key=at_key), _at_key(path, message)))

    def _warn(self, path: JsonPath, message: str, *, at_key: bool = False) -> None:
        self._warnings.append(_Problem(self._source.place(path, at_key=at_key), _at_key(path, message)))


def _in_order(problems: Iterable[_Problem]) -> list[_Problem]:
    return sorted(problems, key=lambda problem: (problem.place.line, problem.place.column, problem.text))


def _one_of(found: str, known: Collection[str]) -> str:
    hint = did_you_mean(found, known) or f"write one of {', '.join(known)}"
    return f'"{printable(found)}" is unknown; {hint}'


def _seems_to_narrow(key: str) -> bool:
    return closest(key, _RULE_KEYS) in _NARROWING or re.search("allow|deny|condition", key, re.I) is not None
