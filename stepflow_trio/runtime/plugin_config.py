"""The kinds of plugins that a configuration can name, and how each is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from stepflow_trio.errors import ConfigError
from stepflow_trio.flows.diagnostics import printable
from stepflow_trio.flows.paths import JsonPath
from stepflow_trio.runtime.config_values import ConfigValues, is_token_key, one_of
from stepflow_trio.runtime.mcp_package import why_no_mcp
from stepflow_trio.runtime.mock_config import MockPluginConfig, read_mock
from stepflow_trio.transports.http.bearer import BearerTokens
from stepflow_trio.transports.http.urls import REQUEST_TARGET, HttpUrl

if TYPE_CHECKING:
    from stepflow_trio.transports.http.links import SessionMode  # h11 is loaded where it is needed

__all__ = [
    "BuiltinPluginConfig",
    "ClientTls",
    "HealthCheck",
    "HttpProcessPluginConfig",
    "McpPluginConfig",
    "MockPluginConfig",
    "PluginConfig",
    "PluginReader",
    "RemotePluginConfig",
    "StdioPluginConfig",
]

_PLUGIN_TYPES = ("stepflow", "builtin", "mock", "mcp")
_SESSION_MODES = ("auto", "never", "always")
_PROCESS_KEYS = ("type", "transport", "command", "args", "env")
_MCP_KEYS = ("type", "command", "args", "env")
_HTTP_PROCESS_KEYS = (*_PROCESS_KEYS, "healthCheck", "session")
_REMOTE_KEYS = (
    "type", "transport", "url", "urls", "session", "bearerTokenFile", "bearerTokenEnv", "tls", "healthCheck"
)  # fmt: skip

MAX_URLS = 256
"""More workers than that belong behind a balancer of their own."""

_MAX_MS = 24 * 60 * 60 * 1000
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


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
class HealthCheck:
    """How to ask a worker over HTTP whether it takes requests."""

    path: str = "/health"
    """Answered with 2xx by one that does."""

    timeout_s: float = 60.0
    """So long after it has said its port, a worker that was started here may take until it does."""

    retry_delay_s: float = 0.1
    """Between two questions of one that was started here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProcessPluginConfig:
    """A worker process that is started here and speaks HTTP; ``env`` as for :class:`StdioPluginConfig`."""

    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    working_directory: Path
    health_check: HealthCheck = field(default_factory=HealthCheck)
    session: SessionMode = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """PEM files for connections to ``https`` workers."""

    ca: Path | None = None
    """Whom to trust, in the place of the system's certificate authorities."""
    certificate: Path | None = None
    """What this side shows, where the worker asks for it; with ``private_key``."""
    private_key: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePluginConfig:
    """Workers that somebody else has started, alike, at one URL or at several."""

    urls: tuple[str, ...]
    session: SessionMode = "auto"
    """``auto`` is ``never`` here: a balancer could lead to another worker than the session's."""
    bearer: BearerTokens | None = None
    """What to send as ``Authorization``; or it is in a file:"""
    bearer_file: Path | None = None
    tls: ClientTls | None = None
    health_check: HealthCheck = field(default_factory=HealthCheck)


@dataclass(frozen=True, slots=True, kw_only=True)
class McpPluginConfig:
    """An MCP server that speaks over its stdin and stdout; ``env`` as for :class:`StdioPluginConfig`."""

    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    working_directory: Path


PluginConfig: TypeAlias = (
    BuiltinPluginConfig
    | StdioPluginConfig
    | HttpProcessPluginConfig
    | RemotePluginConfig
    | MockPluginConfig
    | McpPluginConfig
)


class PluginReader:
    """Reads the members of ``plugins``.

    Args:
        values: takes note of what is wrong.
        directory: where workers run and relative paths begin.
    """

    def __init__(self, values: ConfigValues, directory: Path) -> None:
        self._values = values
        self._directory = directory

    def read(self, value: object, path: JsonPath) -> PluginConfig:
        """One plugin; of what was wrong with it the values have taken note."""
        fields = self._values.object(value, path)
        if not isinstance(value, dict):
            return BuiltinPluginConfig()
        match fields.get("type"):
            case "builtin":
                self._values.ignore_others(fields, path, ("type",))
            case "stepflow":
                return self._worker(fields, path)
            case "mock":
                return read_mock(self._values, fields, path)
            case "mcp":
                return self._mcp(fields, path)
            case None:
                self._values.missing(fields, path, "type")
            case str(kind):
                self._values.problem((*path, "type"), one_of(kind, _PLUGIN_TYPES))
            case kind:
                self._values.string(kind, (*path, "type"))
        return BuiltinPluginConfig()

    def _worker(self, fields: dict[str, Any], path: JsonPath) -> PluginConfig:
        match fields.get("transport"):
            case "stdio":
                return self._stdio(fields, path)
            case None | "http":
                if fields.get("url") is not None or fields.get("urls") is not None:
                    return self._remote(fields, path)
                return self._http_process(fields, path)
            case str(transport):
                self._values.problem((*path, "transport"), one_of(transport, ("stdio", "http")))
            case transport:
                self._values.string(transport, (*path, "transport"))
        return BuiltinPluginConfig()

    # ---- workers that are started here -------------------------------------------------------------------

    def _stdio(self, fields: dict[str, Any], path: JsonPath) -> StdioPluginConfig:
        self._values.ignore_others(fields, path, _PROCESS_KEYS)
        command, args, env = self._command(fields, path)
        return StdioPluginConfig(command=command, args=args, env=env, working_directory=self._directory)

    def _mcp(self, fields: dict[str, Any], path: JsonPath) -> McpPluginConfig:
        self._values.ignore_others(fields, path, _MCP_KEYS)
        if lack := why_no_mcp():
            self._values.warn(path, f"its components cannot be used: {lack}", at_key=True)
        command, args, env = self._command(fields, path)
        return McpPluginConfig(command=command, args=args, env=env, working_directory=self._directory)

    def _http_process(self, fields: dict[str, Any], path: JsonPath) -> HttpProcessPluginConfig:
        self._values.ignore_others(fields, path, _HTTP_PROCESS_KEYS)
        command, args, env = self._command(fields, path)
        return HttpProcessPluginConfig(
            command=command,
            args=args,
            env=env,
            working_directory=self._directory,
            health_check=self._health_check(fields, path, ("path", "timeoutMs", "retryDelayMs")),
            session=self._session(fields, path),
        )

    def _command(
        self, fields: dict[str, Any], path: JsonPath
    ) -> tuple[str, tuple[str, ...], Mapping[str, str]]:
        values = self._values
        command: str | None = ""
        if fields.get("command") is None:
            values.missing(fields, path, "command")
        else:
            command = values.substituted(fields["command"], (*path, "command"))
            if command == "":
                values.problem((*path, "command"), "is empty: name the program to start")
        args = [values.substituted(arg, at) for at, arg in values.items(fields, path, "args")]
        env: dict[str, str] = {}
        given_env = {} if fields.get("env") is None else values.object(fields["env"], (*path, "env"))
        for name, value in given_env.items():
            if not name or "=" in name or "\0" in name:
                # Not shown: after the `=` of a variable that is written the shell's way stands its value.
                message = "this is no variable's name: write NAME: value"
                values.problem_with_key((*path, "env", name), message)
            else:
                env[name] = values.substituted(value, (*path, "env", name)) or ""
        return command or "", tuple(arg or "" for arg in args), env

    # ---- workers that somebody else has started ----------------------------------------------------------

    def _remote(self, fields: dict[str, Any], path: JsonPath) -> RemotePluginConfig:
        values = self._values
        for key in fields.keys() & {"command", "args", "env"}:
            message = "a worker at a URL is not started here: remove this, or the URL"
            values.problem((*path, key), message, at_key=True)
        self.ignore_others(fields, path, (*_REMOTE_KEYS, "command", "args", "env"))
        urls = self._urls(fields, path)
        tls = self._tls(fields, path)
        bearer, bearer_file = self.bearer(fields, path)
        plain = next((url for url in urls if not url.is_tls), None)
        if tls is not None and plain is not None:
            message = (
                f"is for https://, but {plain.origin} would be reached without: write https://, or remove it"
            )
            values.problem((*path, "tls"), message, at_key=True)
        if bearer is not None or bearer_file is not None:
            for url in urls:
                if url.scheme == "http" and not is_this_machine(url.host):
                    key = "bearerTokenFile" if bearer_file is not None else "bearerTokenEnv"
                    message = f"the token travels unencrypted to {url.host}: use https://"
                    values.warn((*path, key), message, at_key=True)
                    break
        return RemotePluginConfig(
            urls=tuple(map(str, urls)),
            session=self._session(fields, path),
            bearer=bearer,
            bearer_file=bearer_file,
            tls=tls,
            health_check=self._health_check(fields, path, ("path",)),
        )

    def _urls(self, fields: dict[str, Any], path: JsonPath) -> list[HttpUrl]:
        values = self._values
        if fields.get("urls") is None:
            places: list[tuple[JsonPath, object]] = [((*path, "url"), fields["url"])]
        else:
            places = list(values.items(fields, path, "urls"))
            if fields.get("url") is not None:
                values.problem((*path, "url"), "there is urls as well: put all of them there", at_key=True)
            elif not places and isinstance(fields["urls"], list):
                values.problem((*path, "urls"), "is empty: name where the workers are")
            elif len(places) > MAX_URLS:
                values.problem((*path, "urls"), f"has {len(places)} URLs, {MAX_URLS} is the most")
        urls: dict[str, HttpUrl] = {}
        for at, value in places:
            text = values.substituted(value, at)
            if text is None:
                continue
            url = self.url(text, at)
            if url is not None and str(url) in urls:
                values.problem(at, "this URL stands here twice")
            elif url is not None:
                urls[str(url)] = url
        return list(urls.values())

    def url(self, text: str, path: JsonPath) -> HttpUrl | None:
        """A URL as it was written at ``path``, variables replaced; None if it is none."""
        try:
            return HttpUrl.parse(text)
        except ConfigError as exc:
            self._values.problem(path, exc.message)
            return None

    def ignore_others(self, fields: dict[str, Any], path: JsonPath, known: tuple[str, ...]) -> None:
        """Warn of keys that nobody reads, and refuse those that a token stands under."""
        tokens = [key for key in fields if key not in known and is_token_key(key)]
        for key in tokens:
            self._values.problem(
                (*path, key),
                "a token has no place in this file, which is copied and shown: put it into a file that "
                "bearerTokenFile names, or into an environment variable that bearerTokenEnv names",
                at_key=True,
            )
        self._values.ignore_others(fields, path, (*known, *tokens))

    def bearer(self, fields: dict[str, Any], path: JsonPath) -> tuple[BearerTokens | None, Path | None]:
        """The tokens of the environment variable, or the file of them, that the fields name."""
        values = self._values
        file, variable = fields.get("bearerTokenFile"), fields.get("bearerTokenEnv")
        if file is not None and variable is not None:
            message = "there is bearerTokenFile as well: only one of them can be used"
            values.problem((*path, "bearerTokenEnv"), message, at_key=True)
        bearer_file = self._file(fields, path, "bearerTokenFile")
        if variable is None:
            return None, bearer_file
        name = values.string(variable, (*path, "bearerTokenEnv"))
        if isinstance(variable, str):
            if not _VARIABLE.fullmatch(name):
                # Not shown: it could be the token itself.
                message = "must be the name of an environment variable, such as WORKER_TOKEN"
                values.problem((*path, "bearerTokenEnv"), message)
            else:
                try:
                    return BearerTokens.from_environment(name, values.environ), bearer_file
                except ConfigError as exc:
                    values.problem((*path, "bearerTokenEnv"), str(exc))
        return None, bearer_file

    def _tls(self, fields: dict[str, Any], path: JsonPath) -> ClientTls | None:
        if fields.get("tls") is None:
            return None
        at = (*path, "tls")
        given = self._values.object(fields["tls"], at)
        self._values.ignore_others(given, at, ("ca", "certificate", "privateKey"))
        for key, other in (("certificate", "privateKey"), ("privateKey", "certificate")):
            if given.get(key) is not None and given.get(other) is None:
                self._values.problem((*at, key), f"needs {other} beside it", at_key=True)
        return ClientTls(
            ca=self._file(given, at, "ca"),
            certificate=self._file(given, at, "certificate"),
            private_key=self._file(given, at, "privateKey"),
        )

    # ---- what workers over HTTP share --------------------------------------------------------------------

    def _session(self, fields: dict[str, Any], path: JsonPath) -> SessionMode:
        return cast("SessionMode", self._values.choice(fields, path, "session", _SESSION_MODES, "auto"))

    def _health_check(self, fields: dict[str, Any], path: JsonPath, known: tuple[str, ...]) -> HealthCheck:
        if fields.get("healthCheck") is None:
            return HealthCheck()
        at = (*path, "healthCheck")
        given = self._values.object(fields["healthCheck"], at)
        self._values.ignore_others(given, at, known)
        target = "/health"
        if given.get("path") is not None:
            target = self._values.string(given["path"], (*at, "path"))
            if isinstance(given["path"], str) and not REQUEST_TARGET.fullmatch(target):
                shown = printable(target[:80])
                message = f'"{shown}" is no path: it begins with / and has no spaces, such as /health'
                self._values.problem((*at, "path"), message)
        timeout_ms = self._values.whole_number(given, at, "timeoutMs", 60_000, _MAX_MS)
        delay_ms = self._values.whole_number(given, at, "retryDelayMs", 100, _MAX_MS)
        return HealthCheck(path=target, timeout_s=timeout_ms / 1000, retry_delay_s=delay_ms / 1000)

    def _file(self, fields: dict[str, Any], path: JsonPath, key: str) -> Path | None:
        if fields.get(key) is None:
            return None
        name = self._values.substituted(fields[key], (*path, key))
        if name == "":
            self._values.problem((*path, key), "is empty: name the file")
        return self._directory / (name or "")


def is_this_machine(host: str) -> bool:
    """Whether a URL's host can only be this machine."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
