"""The three generations on the wire, and how two ends find the one they share (docs/protocol.md, section 1).

Only ``initialize`` is spelled differently; everything else differs in which methods exist. The key that
the runtime used tells the worker, the key that the worker answered with tells the runtime.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

from stepflow_trio.errors import ErrorCode, RemoteProtocolError, RpcError
from stepflow_trio.protocol.methods import split_validation_error

PROTOCOL_VERSION = 1
"""The only version there is."""

CANCEL = "cancel"
PROGRESS = "progress"
BATCH = "batch"
DEADLINE = "deadline"
EXTENSIONS = (CANCEL, PROGRESS, BATCH, DEADLINE)
"""What this implementation understands beyond the specification (docs/protocol.md, section 8):
``$/cancelRequest``, progress with a run id, arrays of messages, ``timeout_s`` in ``components/execute``."""

TransportKind: TypeAlias = Literal["stdio", "http"]


class Dialect(enum.Enum):
    """A generation of the protocol, by the first release that spoke it."""

    V0_8 = "0.8"
    """stdio era: snake_case ``initialize``; ``blobs/*`` and ``flows/*`` callbacks."""
    V0_9 = "0.9"
    """HTTP: snake_case ``initialize``; ``blobs/*`` and ``runs/*`` callbacks."""
    V0_11 = "0.11"
    """Releases 0.10.0 to 0.11.x: camelCase ``initialize``; blobs travel over HTTP where there is a URL."""

    @property
    def has_runs(self) -> bool:
        """Whether the runtime answers ``runs/submit`` and ``runs/get`` (else ``flows/*``)."""
        return self is not Dialect.V0_8


class Hello(Struct, frozen=True, kw_only=True):
    """What a runtime says of itself in ``initialize``."""

    dialect: Dialect
    version: int
    blob_api_url: str | None = None
    blob_threshold: int | None = None
    extensions: frozenset[str] = frozenset()
    announced: bool = False
    """Whether it announced extensions at all: only then may the answer carry ours."""
    assumed: bool = False
    """Whether it has said nothing so far, and the rest is a guess."""


class Welcome(Struct, frozen=True, kw_only=True):
    """What a worker answers."""

    dialect: Dialect
    version: int
    supports_blob_refs: bool = False
    extensions: frozenset[str] = frozenset()


class _Capabilities(Struct, frozen=True, rename="camel"):
    blob_api_url: str | None = None
    blob_threshold: int | None = None
    extensions: list[str] | None = None


class _InitializeParams(Struct, frozen=True):
    camel_version: int | UnsetType = msgspec.field(name="runtimeProtocolVersion", default=UNSET)
    snake_version: int | UnsetType = msgspec.field(name="runtime_protocol_version", default=UNSET)
    capabilities: _Capabilities | None = None


class _InitializeResult(Struct, frozen=True):
    camel_version: int | UnsetType = msgspec.field(name="serverProtocolVersion", default=UNSET)
    snake_version: int | UnsetType = msgspec.field(name="server_protocol_version", default=UNSET)
    supports_blob_refs: bool = msgspec.field(name="supportsBlobRefs", default=False)
    extensions: list[str] | None = None


def write_initialize_params(
    dialect: Dialect | None,
    *,
    extensions: Iterable[str] = EXTENSIONS,
    blob_api_url: str | None = None,
    blob_threshold: int | None = None,
) -> dict[str, Any]:
    """The params of ``initialize``.

    With ``dialect`` None the version stands there in both spellings, for a worker whose generation is not
    known yet: a public stdio worker does not answer at all to the spelling it does not know, and every
    generation ignores fields it does not know.
    """
    params: dict[str, Any] = {}
    if dialect in (None, Dialect.V0_11):
        params["runtimeProtocolVersion"] = PROTOCOL_VERSION
    if dialect is not Dialect.V0_11:
        params["runtime_protocol_version"] = PROTOCOL_VERSION
    if capabilities := write_capabilities(
        extensions=extensions, blob_api_url=blob_api_url, blob_threshold=blob_threshold
    ):
        params["capabilities"] = capabilities
    return params


def write_capabilities(
    *,
    extensions: Iterable[str] = EXTENSIONS,
    blob_api_url: str | None = None,
    blob_threshold: int | None = None,
) -> dict[str, Any]:
    """What a runtime says of itself in ``initialize``, and over HTTP with every request."""
    capabilities: dict[str, Any] = {}
    if blob_api_url is not None:
        capabilities["blobApiUrl"] = blob_api_url
    if blob_threshold is not None:
        capabilities["blobThreshold"] = blob_threshold
    if names := sorted(extensions):
        capabilities["extensions"] = names
    return capabilities


def read_capabilities(capabilities: Any) -> Hello:
    """Understand what :func:`write_capabilities` wrote, as a worker that was not initialized may have to.

    Raises:
        RpcError: −32602, it does not fit.
    """
    return read_initialize_params(
        {"runtimeProtocolVersion": PROTOCOL_VERSION, "capabilities": capabilities}, "http"
    )


def read_initialize_params(params: Any, transport: TransportKind) -> Hello:
    """Understand ``initialize`` as a worker.

    Raises:
        RpcError: −32602 where the params do not fit, −32006 where the version is not 1.
    """
    try:
        read = msgspec.convert({} if params is UNSET else params, _InitializeParams)
    except msgspec.ValidationError as exc:
        problem, path = split_validation_error(exc)
        message = f"Invalid params for initialize: {problem} at {path}"
        raise RpcError(ErrorCode.INVALID_PARAMS, message, {"path": path, "detail": problem}) from exc
    if read.camel_version is not UNSET:
        dialect, version = Dialect.V0_11, read.camel_version
    elif read.snake_version is not UNSET:
        dialect = Dialect.V0_8 if transport == "stdio" else Dialect.V0_9
        version = read.snake_version
    else:
        detail = "neither runtimeProtocolVersion nor runtime_protocol_version is given"
        raise RpcError(
            ErrorCode.INVALID_PARAMS, f"Invalid params for initialize: {detail}", {"detail": detail}
        )
    if version != PROTOCOL_VERSION:
        raise RpcError(
            ErrorCode.VERSION_MISMATCH,
            f"Protocol version {version} is not supported",
            {"supported_versions": [PROTOCOL_VERSION], "requested_version": version},
        )
    capabilities = read.capabilities or _Capabilities()
    return Hello(
        dialect=dialect,
        version=version,
        blob_api_url=capabilities.blob_api_url,
        blob_threshold=capabilities.blob_threshold,
        extensions=frozenset(capabilities.extensions or ()),
        announced=capabilities.extensions is not None,
    )


def write_initialize_result(
    hello: Hello, *, extensions: Iterable[str] = EXTENSIONS, supports_blob_refs: bool = False
) -> dict[str, Any]:
    """The result of ``initialize``, in the words of the runtime that sent ``hello``."""
    result: dict[str, Any] = {}
    if hello.dialect is Dialect.V0_11:
        result["serverProtocolVersion"] = PROTOCOL_VERSION
        if supports_blob_refs:
            result["supportsBlobRefs"] = True
    else:
        result["server_protocol_version"] = PROTOCOL_VERSION
    if hello.announced:
        result["extensions"] = sorted(extensions)
    return result


def read_initialize_result(result: Any, transport: TransportKind) -> Welcome:
    """Understand a worker's answer to ``initialize``.

    Raises:
        RemoteProtocolError: it does not fit (−32303), or the worker speaks another version (−32006).
    """
    try:
        read = msgspec.convert(result, _InitializeResult)
    except msgspec.ValidationError as exc:
        problem, path = split_validation_error(exc)
        message = f"the worker's result of initialize does not fit: {problem} at {path}"
        raise RemoteProtocolError(message, code=ErrorCode.GARBLED_MESSAGE) from exc
    if read.camel_version is not UNSET:
        dialect, version = Dialect.V0_11, read.camel_version
    elif read.snake_version is not UNSET:
        dialect = Dialect.V0_8 if transport == "stdio" else Dialect.V0_9
        version = read.snake_version
    else:
        message = "the worker's result of initialize names no protocol version"
        raise RemoteProtocolError(message, code=ErrorCode.GARBLED_MESSAGE)
    if version != PROTOCOL_VERSION:
        raise RemoteProtocolError(
            f"the worker speaks protocol version {version}; only {PROTOCOL_VERSION} exists",
            code=ErrorCode.VERSION_MISMATCH,
            data={"supported_versions": [PROTOCOL_VERSION], "requested_version": version},
        )
    return Welcome(
        dialect=dialect,
        version=version,
        supports_blob_refs=read.supports_blob_refs,
        extensions=frozenset(read.extensions or ()),
    )
