"""The configuration file: plugins, the routes that lead to them, and how failed attempts are repeated.

The keys are those of the public releases, whose files can be read as they are. What they know and this
runtime does not have costs only the components that need it, and is said in :attr:`Config.warnings`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from stepflow_trio.errors import ConfigError, FlowInvalid, PathInvalid
from stepflow_trio.flows.diagnostics import Diagnostic, DiagnosticKind, printable
from stepflow_trio.flows.json_keys import keys_are_inputs
from stepflow_trio.flows.paths import JsonPath, parse_path
from stepflow_trio.flows.source import Source, read_source
from stepflow_trio.flows.source_text import SourceLimits
from stepflow_trio.flows.suggestions import closest, did_you_mean
from stepflow_trio.runtime.config_excerpts import with_excerpts
from stepflow_trio.runtime.config_values import ConfigValues, Problem, config_error, in_order, one_of, said
from stepflow_trio.runtime.plugin_config import (
    BuiltinPluginConfig,
    HttpProcessPluginConfig,
    McpPluginConfig,
    MockPluginConfig,
    PluginConfig,
    PluginReader,
    RemotePluginConfig,
    StdioPluginConfig,
    is_this_machine,
)
from stepflow_trio.runtime.retries import Backoff, Constant, Exponential, Fibonacci, RetryPolicy
from stepflow_trio.runtime.routing import Condition, Route, Rule, route_faults
from stepflow_trio.runtime.timeouts import Timeouts
from stepflow_trio.transports.http.bearer import BearerTokens

__all__ = [
    "DEFAULT_CONFIG",
    "FILE_NAMES",
    "BlobApiConfig",
    "BuiltinPluginConfig",
    "Config",
    "HttpProcessPluginConfig",
    "McpPluginConfig",
    "MockPluginConfig",
    "PluginConfig",
    "RemotePluginConfig",
    "StdioPluginConfig",
    "find_config",
    "read_config",
    "read_config_file",
    "the_one_file",
]

FILE_NAMES = ("stepflow-config.yml", "stepflow-config.yaml", "stepflow_config.yml", "stepflow_config.yaml")
"""What a configuration file is called where none is named."""

_RULE_KEYS = ("plugin", "component", "conditions", "componentAllow", "componentDeny")
_NARROWING = ("conditions", "componentAllow", "componentDeny")
"""Keys that keep components away from a rule: misspelled, they would let in what the author shut out."""

_NOT_READ: dict[str, tuple[str, object]] = {
    "storageConfig": ("blobs and runs are kept in memory", {"type": "inMemory"}),
    "stateStore": ("blobs and runs are kept in memory", {"type": "inMemory"}),
    "leaseManager": ("this runtime shares its runs with no other", {"type": "noOp"}),
    "recovery": ("runs that were interrupted are not taken up again", {"enabled": False}),
}
"""Keys of the public releases that have no effect: what is done instead, and the value that asks for that."""

_TOP_KEYS = ("workingDirectory", "plugins", "routes", "retry", "timeouts", "blobApi")
_BLOB_API_KEYS = (
    "enabled", "url", "blobThreshold", "bind", "allowInsecureBind", "bearerTokenFile", "bearerTokenEnv"
)  # fmt: skip
_MAX_COUNT = 2**32 - 1
_MAX_DELAY_MS = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobApiConfig:
    """Where workers over HTTP read and write blobs."""

    enabled: bool | None = None
    """Whether it is served here. None: if a plugin speaks HTTP."""

    url: str | None = None
    """Where workers find it. None: where it is served."""

    blob_threshold_bytes: int = 2**20
    """Fields of inputs and outputs that are longer travel as blobs, with workers that support it; 0: none."""

    bind: str = "127.0.0.1:0"
    """Where it is served; port 0: a free one."""

    allow_insecure_bind: bool = False
    """Whether ``bind`` may be an address that other machines reach, though no token is asked for."""

    bearer: BearerTokens | None = None
    """What to ask workers for; or it is in a file:"""
    bearer_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a configuration says. Its routes can be used, and lead to its plugins or to those named beside."""

    plugins: Mapping[str, PluginConfig]
    routes: tuple[Route, ...]
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeouts: Timeouts = field(default_factory=Timeouts)
    blob_api: BlobApiConfig = field(default_factory=BlobApiConfig)
    warnings: tuple[str, ...] = ()
    """What has no effect although it is there, each with its ``file:line:column``."""
    diagnostics: tuple[Diagnostic, ...] = ()
    """The same, with all that is known of it."""
    source: str
    """The file's name."""

    @property
    def needs_blob_api(self) -> bool:
        """Whether the blob API is asked for, or a plugin has workers that may be told of it."""
        over_http = (HttpProcessPluginConfig, RemotePluginConfig)
        return self.blob_api.enabled or any(isinstance(plugin, over_http) for plugin in self.plugins.values())


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
        if (found := the_one_file(directory, FILE_NAMES)) is not None:
            return found
    return None


def the_one_file(directory: Path, names: Iterable[str]) -> Path | None:
    """The file in a directory that has one of these names, or None.

    Raises:
        ConfigError: there are several.
    """
    found = [directory / name for name in names if os.path.lexists(directory / name)]
    if len(found) > 1:
        there_are = " and ".join(path.name for path in found)
        raise ConfigError(
            f"there are {there_are}: remove all but one, or name the one to use", str(directory)
        )
    return found[0] if found else None


def read_config_file(
    path: str | os.PathLike[str],
    *,
    environ: Mapping[str, str] | None = None,
    other_plugins: Collection[str] = (),
) -> Config:
    """Read a configuration file, YAML or JSON; relative paths in it start from its directory.

    For ``environ`` and ``other_plugins`` see `read_config`.

    Raises:
        ConfigError: the file cannot be read, or see `read_config`.
    """
    name = os.fspath(path)
    try:
        with Path(name).open("rb") as file:
            text = file.read(SourceLimits().max_bytes + 1)
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise ConfigError(f"the configuration cannot be read: {why}", name) from exc
    directory = Path(name).absolute().parent
    return read_config(text, name=name, directory=directory, environ=environ, other_plugins=other_plugins)


def read_config(
    text: str | bytes,
    *,
    name: str,
    directory: Path,
    environ: Mapping[str, str] | None = None,
    other_plugins: Collection[str] = (),
    at: JsonPath = (),
) -> Config:
    """Read a configuration from YAML 1.2 or JSON text.

    Args:
        text: the file's content.
        name: the file's name, for messages; one that ends in ``.json`` makes JSON the only format.
        directory: where workers are started, unless ``workingDirectory`` says otherwise.
        environ: the variables that commands, arguments and environments of workers may refer to with ``$VAR``
            and its kin. By default those are this process's environment, and ``STEPFLOW_PYTHON`` where that
            does not say otherwise: the interpreter that runs this, so that a worker in Python finds what is
            installed beside it.
        other_plugins: names that routes may lead to although they stand under no plugin here, such as those
            of workers in this process.
        at: where in the text the configuration is, such as in a flow; by default it is all of it.

    Raises:
        ConfigError: something in it cannot be used as written. All that is wrong is in the one message, a
            line for each with its ``file:line:column`` and its key; no value of an ``env`` is.
    """
    try:
        source = read_source(text, name=name, json_keys_at=keys_are_inputs)
    except FlowInvalid as exc:
        raise _with_diagnostics([said(found) for found in _diagnostics(exc)], text) from None
    if environ is None:
        environ = {"STEPFLOW_PYTHON": sys.executable, **os.environ}
    return _Reader(ConfigValues(source.part(at), environ), directory, other_plugins, text).config()


def _with_diagnostics(problems: Sequence[Problem], text: str | bytes) -> ConfigError:
    error = config_error(problems)
    error.diagnostics = with_excerpts(in_order(problems), text)
    return error


def _diagnostics(exc: FlowInvalid) -> tuple[Diagnostic, ...]:
    return cast("tuple[Diagnostic, ...]", exc.diagnostics)


class _Reader:
    """Reads one configuration; of what is wrong with it the values take note."""

    def __init__(
        self, values: ConfigValues, directory: Path, other_plugins: Collection[str], text: str | bytes
    ) -> None:
        self._values = values
        self._text = text
        self._source: Source = values.source
        self._directory = directory
        self._other_plugins = other_plugins
        self._plugin_names: list[str] | None = None
        """None where it is not known what plugins there are."""

    def config(self) -> Config:
        fields = self._values.object(self._source.value, ())
        self._ignore_others(fields)
        if (working_directory := fields.get("workingDirectory")) is not None:
            self._set_directory(working_directory)
        reader = PluginReader(self._values, self._directory)
        given_plugins = self._required_object(fields, "plugins")
        plugins = {name: reader.read(value, ("plugins", name)) for name, value in given_plugins.items()}
        if isinstance(fields.get("plugins"), dict):
            self._plugin_names = [*plugins, *self._other_plugins]
        routes = self._routes(self._required_object(fields, "routes"))
        routed = {rule.plugin for route in routes for rule in route.rules}
        for name in plugins.keys() - routed:
            message = "no route leads to this plugin"
            self._values.warn(("plugins", name), message, at_key=True, kind=DiagnosticKind.UNUSED_PLUGIN)
        retry = self._retry(fields.get("retry"))
        timeouts = self._timeouts(fields.get("timeouts"))
        blob_api = self._blob_api(fields.get("blobApi"), reader)
        # What reading the text went past, such as a duplicate key.
        self._values.problems.extend(map(said, self._source.diagnostics))
        if self._values.problems:
            raise _with_diagnostics(self._values.problems, self._text)
        return Config(
            plugins=plugins,
            routes=routes,
            retry=retry,
            timeouts=timeouts,
            blob_api=blob_api,
            warnings=self._values.warnings,
            diagnostics=with_excerpts(self._values.cautions, self._text),
            source=self._source.name,
        )

    def _ignore_others(self, fields: Mapping[str, Any]) -> None:
        """Warn of keys that nobody reads, and of those that only other runtimes read."""
        for key, (instead, harmless) in _NOT_READ.items():
            if fields.get(key) is not None and fields[key] != harmless:
                self._values.warn((key,), f"is ignored: {instead}", at_key=True)
        self._values.ignore_others(
            {key: None for key in fields if key not in _NOT_READ}, (), (*_TOP_KEYS, *_NOT_READ)
        )

    def _required_object(self, fields: dict[str, Any], key: str) -> dict[str, Any]:
        """The object under a key of the whole configuration, else an empty one."""
        if fields.get(key) is not None:
            return self._values.object(fields[key], (key,))
        if isinstance(self._source.value, dict):
            self._values.missing(fields, (), key)
        return {}

    def _set_directory(self, value: object) -> None:
        path = ("workingDirectory",)
        directory = self._values.string(value, path)
        if "\0" in directory:
            self._values.problem(path, "holds a NUL character, which no directory's name does")
        self._directory = self._directory / directory

    # ---- the blob API ------------------------------------------------------------------------------------

    def _blob_api(self, value: object, reader: PluginReader) -> BlobApiConfig:
        path = ("blobApi",)
        if value is None:
            return BlobApiConfig()
        fields = self._values.object(value, path)
        reader.ignore_others(fields, path, _BLOB_API_KEYS)
        url = None
        if fields.get("url") is not None:
            text = self._values.substituted(fields["url"], (*path, "url"))
            url = None if text is None else reader.url(text, (*path, "url"))
        bind = BlobApiConfig().bind
        if fields.get("bind") is not None:
            bind = self._values.substituted(fields["bind"], (*path, "bind")) or bind
        default_bytes = BlobApiConfig().blob_threshold_bytes
        bearer, bearer_file = reader.bearer(fields, path)
        config = BlobApiConfig(
            enabled=self._values.boolean(fields, path, "enabled"),
            url=None if url is None else str(url).rstrip("/"),
            blob_threshold_bytes=self._values.whole_number(
                fields, path, "blobThreshold", default_bytes, _MAX_COUNT
            ),
            bind=bind,
            allow_insecure_bind=self._values.boolean(fields, path, "allowInsecureBind") or False,
            bearer=bearer,
            bearer_file=bearer_file,
        )
        if fields.get("bind") is not None and config.enabled is not False:
            self._check_bind(config, (*path, "bind"), has_url=fields.get("url") is not None)
        return config

    def _check_bind(self, config: BlobApiConfig, path: JsonPath, *, has_url: bool) -> None:
        from stepflow_trio.transports.http.hosting import TcpBind, UnixBind, parse_bind  # here: few need it

        try:
            place = parse_bind(config.bind)
        except ConfigError as exc:
            self._values.problem(path, exc.message)
            return
        if isinstance(place, UnixBind) and not has_url:
            self._values.problem(path, "workers are told a URL, which this has not: say it in blobApi.url")
        if not isinstance(place, TcpBind) or is_this_machine(place.host):
            return
        if config.bearer is None and config.bearer_file is None and not config.allow_insecure_bind:
            message = (
                "other machines reach this, and whoever does could read and write blobs: ask for a token "
                "(bearerTokenFile, bearerTokenEnv), or say allowInsecureBind: true"
            )
            self._values.problem(path, message)
        if place.host in ("0.0.0.0", "::") and not has_url:  # noqa: S104 — it is only named here
            message = "workers are told of a loopback address: say in blobApi.url what they reach"
            self._values.warn(path, message)

    # ---- routes ------------------------------------------------------------------------------------------

    def _routes(self, fields: dict[str, Any]) -> tuple[Route, ...]:
        routes: list[Route] = []
        for pattern, value in fields.items():
            path = ("routes", pattern)
            rules = [
                self._rule(rule, (*path, index)) for index, rule in enumerate(self._values.array(value, path))
            ]
            if not rules and isinstance(value, list):
                self._values.warn(path, "has no rules, so it leads nowhere", at_key=True)
            routes.append(Route(pattern, tuple(rules)))
        for fault in route_faults(routes):
            self._values.problem(("routes", *fault.path), fault.message, at_key=len(fault.path) == 1)
        return tuple(routes)

    def _rule(self, value: object, path: JsonPath) -> Rule:
        fields = self._values.object(value, path)
        for key in fields:
            if key not in _RULE_KEYS and _seems_to_narrow(key):
                hint = did_you_mean(key, _NARROWING) or f"write one of {', '.join(_NARROWING)}"
                self._values.problem((*path, key), f"is no key of a rule; {hint}", at_key=True)
        self._values.ignore_others(fields, path, _RULE_KEYS)
        plugin = component = None
        if fields.get("plugin") is not None:
            plugin = self._values.string(fields["plugin"], (*path, "plugin"))
            self._check_plugin(fields["plugin"], (*path, "plugin"))
        elif isinstance(value, dict):
            self._values.missing(fields, path, "plugin")
        if fields.get("component") is not None:
            component = self._values.string(fields["component"], (*path, "component"))
        return Rule(
            plugin=plugin or "",
            component=component,
            conditions=tuple(
                self._condition(condition, at)
                for at, condition in self._values.items(fields, path, "conditions")
            ),
            component_allow=self._components(fields, path, "componentAllow"),
            component_deny=self._components(fields, path, "componentDeny"),
        )

    def _check_plugin(self, name: object, path: JsonPath) -> None:
        if isinstance(name, str) and self._plugin_names is not None and name not in self._plugin_names:
            listed = ", ".join(map(printable, self._plugin_names[:10])) or "none"
            hint = did_you_mean(name, self._plugin_names) or f"there are: {listed}"
            message = f'no plugin "{printable(name)}" is configured; {hint}'
            self._values.problem(path, message, kind=DiagnosticKind.INVALID_ROUTE_REFERENCE)

    def _condition(self, value: object, path: JsonPath) -> Condition:
        fields = self._values.object(value, path)
        input_path: JsonPath = ()
        if isinstance(value, dict):
            self._values.ignore_others(fields, path, ("path", "value"))
            if fields.get("path") is None:
                self._values.missing(fields, path, "path")
            if "value" not in fields:
                self._values.missing(fields, path, "value")
        if fields.get("path") is not None:
            try:
                input_path = parse_path(self._values.string(fields["path"], (*path, "path")))
            except PathInvalid as exc:
                self._values.problem((*path, "path"), exc.why)
        return Condition(path=input_path, value=fields.get("value"))

    def _components(self, fields: dict[str, Any], path: JsonPath, key: str) -> tuple[str, ...] | None:
        if fields.get(key) is None:
            return None
        return tuple(
            self._values.string(component, at) for at, component in self._values.items(fields, path, key)
        )

    # ---- retries -----------------------------------------------------------------------------------------

    def _retry(self, value: object) -> RetryPolicy:
        if value is None:
            return RetryPolicy()
        fields = self._values.object(value, ("retry",))
        self._values.ignore_others(fields, ("retry",), ("transportMaxRetries", "backoff"))
        retries = self._values.whole_number(fields, ("retry",), "transportMaxRetries", 3, _MAX_COUNT)
        return RetryPolicy(transport_max_retries=retries, backoff=self._backoff(fields.get("backoff")))

    def _timeouts(self, value: object) -> Timeouts:
        path, default = ("timeouts",), Timeouts()
        if value is None:
            return default
        fields = self._values.object(value, path)
        self._values.ignore_others(fields, path, ("stepSecs", "runSecs", "connectSecs"))
        return Timeouts(
            step_s=self._values.seconds(fields, path, "stepSecs", default.step_s),
            run_s=self._values.seconds(fields, path, "runSecs", default.run_s),
            connect_s=self._values.seconds(fields, path, "connectSecs", default.connect_s),
        )

    def _backoff(self, value: object) -> Backoff:
        path = ("retry", "backoff")
        if value is None:
            return Fibonacci()
        fields = self._values.object(value, path)
        match fields.get("type"):
            case "constant":
                self._values.ignore_others(fields, path, ("type", "delayMs"))
                return Constant(delay_s=self._delay_s(fields, path, "delayMs", 1000))
            case "fibonacci":
                self._values.ignore_others(fields, path, ("type", "minDelayMs", "maxDelayMs"))
                shortest, longest = self._delay_range_s(fields, path)
                return Fibonacci(min_delay_s=shortest, max_delay_s=longest)
            case "exponential":
                self._values.ignore_others(fields, path, ("type", "minDelayMs", "maxDelayMs", "factor"))
                shortest, longest = self._delay_range_s(fields, path)
                return Exponential(
                    min_delay_s=shortest, max_delay_s=longest, factor=self._factor(fields.get("factor"), path)
                )
            case None:
                if isinstance(value, dict):
                    self._values.missing(fields, path, "type")
            case str(kind):
                self._values.problem((*path, "type"), one_of(kind, ("fibonacci", "exponential", "constant")))
            case kind:
                self._values.string(kind, (*path, "type"))
        return Fibonacci()

    def _delay_range_s(self, fields: dict[str, Any], path: JsonPath) -> tuple[float, float]:
        shortest = self._delay_s(fields, path, "minDelayMs", 1000)
        longest = self._delay_s(fields, path, "maxDelayMs", 10_000)
        if longest < shortest:
            given = "minDelayMs" if fields.get("minDelayMs") is not None else "maxDelayMs"
            self._values.warn(
                (*path, given), f"maxDelayMs is less than minDelayMs: every delay is {longest:g} s"
            )
        return shortest, longest

    def _delay_s(self, fields: dict[str, Any], path: JsonPath, key: str, default_ms: int) -> float:
        return self._values.whole_number(fields, path, key, default_ms, _MAX_DELAY_MS) / 1000

    def _factor(self, value: object, path: JsonPath) -> float:
        if value is None:
            return 2.0
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value <= _MAX_COUNT:
            return float(value)
        self._values.problem(
            (*path, "factor"), f"must be a number from 1 to {_MAX_COUNT}: delays do not shrink"
        )
        return 2.0


def _seems_to_narrow(key: str) -> bool:
    return closest(key, _RULE_KEYS) in _NARROWING or re.search("allow|deny|condition", key, re.I) is not None
