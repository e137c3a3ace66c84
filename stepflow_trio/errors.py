"""Every exception that this library raises on purpose.

Tree::

    StepflowError
    ├── ProtocolError
    │   ├── LocalProtocolError     we were used wrongly: the mistake is on this side
    │   └── RemoteProtocolError    the peer broke the protocol (code, data)
    ├── RpcError                   a JSON-RPC error object (code, message, data)
    │   ├── CallFailed             the peer answered our call with it (method)
    │   │   ├── CallCancelled      the peer says that the call was cancelled, −32800
    │   │   └── Overloaded         the peer is at its limit, −32304 (retry_after_s)
    │   ├── ComponentError         a component raises it; its fields reach the run's result unchanged
    │   └── InputInvalid, OutputInvalid    in ``stepflow_trio.worker``: what does not fit, and its JSON path
    ├── CallTimeout                no answer within the time given (method, after_s)
    ├── ConnectionLost             the connection ended while it was needed (reason)
    │   ├── ConnectFailed          there could be none, so that nothing was sent (origin, why)
    │   └── WorkerExited           because the worker's process ended (returncode, stderr)
    ├── SpawnFailed                a worker's process could not be started (command)
    ├── BindFailed                 a server cannot listen where it was told to (bind)
    ├── UrlRefused                 a URL that a peer named is not requested (origin)
    ├── FlowInvalid                a flow cannot be run as written (diagnostics)
    ├── PathInvalid                a JSON path is not written as one (path, why)
    ├── ConfigError                a configuration file cannot be used as written (place)
    ├── RunFailed                  a run ended with a failure (code, message, data, run_id)
    │   └── RunCancelled           it was cancelled
    ├── BlobNotFound               nothing is stored under this blob id (blob_id)
    ├── FlowNotFound               no flow is stored under this id (flow_id)
    ├── RunNotFound                there is no run of this id (run_id)
    └── StateConflict              how a run or a flow stands forbids what was asked
        └── KeyReused              an idempotency key came back with another submission (key, run_id)

Cancellation is never one of these: ``trio.Cancelled`` always passes through untouched.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

__all__ = [
    "BindFailed",
    "BlobNotFound",
    "CallCancelled",
    "CallFailed",
    "CallTimeout",
    "ComponentError",
    "ConfigError",
    "ConnectFailed",
    "ConnectionLost",
    "ErrorCode",
    "FlowInvalid",
    "FlowNotFound",
    "KeyReused",
    "LocalProtocolError",
    "LossReason",
    "Overloaded",
    "PathInvalid",
    "ProtocolError",
    "RemoteProtocolError",
    "RpcError",
    "RunCancelled",
    "RunFailed",
    "RunNotFound",
    "SpawnFailed",
    "StateConflict",
    "StepflowError",
    "UrlRefused",
    "WorkerExited",
]


class ErrorCode(enum.IntEnum):
    """The error codes of protocol generation 0.11, and those that are ours.

    Peers of generation 0.8 and 0.9 used an older table with other meanings, so a code from such a peer
    is carried as it came and never looked up here.
    """

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL_ERROR = -32603

    WORKER_ERROR = -32000
    COMPONENT_NOT_FOUND = -32001
    NOT_INITIALIZED = -32002
    INVALID_INPUT_SCHEMA = -32003
    INVALID_VALUE = -32004
    NOT_FOUND = -32005
    VERSION_MISMATCH = -32006
    DEPENDENCY_ERROR = -32007
    CONFIGURATION_ERROR = -32008

    COMPONENT_FAILED = -32100
    COMPONENT_VALUE_ERROR = -32101
    RESOURCE_UNAVAILABLE = -32102
    BAD_REQUEST = -32103
    STEP_TIMED_OUT = -32104
    """Ours. An attempt of a step took longer than it may; ``onError: retry`` repeats it."""

    UNDEFINED_FIELD = -32200
    ENTITY_NOT_FOUND = -32201
    RUNTIME_INTERNAL = -32202
    RUN_TIMED_OUT = -32203
    """Ours. The run took longer than it may: nothing of it is repeated."""

    TRANSPORT_ERROR = -32300
    SPAWN_FAILED = -32301
    CONNECTION_LOST = -32302
    GARBLED_MESSAGE = -32303
    OVERLOADED = -32304
    """Ours. In the transport range, so that every runtime retries it; data: ``{"retry_after_s": …}``."""
    CONNECT_TIMED_OUT = -32305
    """Ours. A worker was not there in time: its process, its port, or its answer to ``initialize``."""

    REQUEST_CANCELLED = -32800
    """Ours, with LSP's number: the request was cancelled before it was answered."""


def is_component_code(code: int) -> bool:
    """Whether a step that says ``onError: retry`` retries this code (−32100 … −32199)."""
    return -32199 <= code <= -32100


def is_transport_code(code: int) -> bool:
    """Whether this code is retried within the transport budget (−32300 … −32399)."""
    return -32399 <= code <= -32300


class LossReason(enum.Enum):
    """Why a connection ended."""

    LOCAL_CLOSE = "local_close"
    """This side left the connection's ``async with`` block."""
    PEER_CLOSED = "peer_closed"
    """The peer closed its end, or its process ended."""
    STREAM_ERROR = "stream_error"
    """Reading or writing the stream failed."""
    PROTOCOL_VIOLATION = "protocol_violation"
    """The peer sent what the connection cannot recover from, such as a frame over the size limit."""
    IDLE_TIMEOUT = "idle_timeout"
    """Nothing arrived for ``idle_timeout_s``."""
    SEND_STALLED = "send_stalled"
    """The peer accepted no bytes for ``send_timeout_s``, or let more than the outbox's bound pile up."""


class StepflowError(Exception):
    """The base of every exception of this library."""


class ProtocolError(StepflowError):
    """Something was said that the protocol forbids; see the two subclasses for whose fault it was."""


class LocalProtocolError(ProtocolError):
    """This side was about to break the protocol: a mistake in the calling code."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol.

    ``code`` is the JSON-RPC code that describes it, ``data`` what else is known (such as a byte offset).
    """

    def __init__(self, message: str, *, code: int = ErrorCode.INVALID_REQUEST, data: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = int(code)
        self.data = data


class RpcError(StepflowError):
    """A JSON-RPC error object: an integer ``code``, a ``message`` and optional JSON ``data``."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(code, message, data)
        self.code = int(code)
        self.message = message
        self.data = data

    def __str__(self) -> str:
        return f"{self.message} (code {self.code})"


class CallFailed(RpcError):
    """The peer answered a call with an error; ``method`` is the method that was called."""

    def __init__(self, code: int, message: str, data: Any = None, *, method: str = "") -> None:
        super().__init__(code, message, data)
        self.method = method

    def __str__(self) -> str:
        return f"{self.method}: {super().__str__()}" if self.method else super().__str__()


class CallCancelled(CallFailed):
    """The peer answered that the call was cancelled on its side (−32800)."""


class Overloaded(CallFailed):
    """The peer is at its limit (−32304): try again after ``retry_after_s`` seconds."""

    @property
    def retry_after_s(self) -> float:
        """The peer's own hint, or 1.0 where it gave none."""
        hint: object = self.data.get("retry_after_s") if isinstance(self.data, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]: data is any JSON
        if isinstance(hint, (int, float)) and not isinstance(hint, bool) and 0 <= hint < float("inf"):
            return float(hint)
        return 1.0


class ComponentError(RpcError):
    """Raise it in a component to fail with a code, a message and data of your own.

    All three reach the run's result unchanged. Subclass it and set ``code`` to name an error of yours::

        class OutOfStock(ComponentError):
            code = -32110

        raise OutOfStock("no widgets left", data={"sku": 7})

    Codes −32110 … −32199 are the component author's; a step with ``onError: retry`` retries them.
    ``data`` must be JSON.
    """

    code: int = ErrorCode.COMPONENT_FAILED

    def __init__(self, message: str, *, data: Any = None, code: int | None = None) -> None:
        super().__init__(type(self).code if code is None else code, message, data)


class CallTimeout(StepflowError):
    """A call was not answered within ``after_s`` seconds. The call is over; a late answer is dropped."""

    def __init__(self, method: str, after_s: float) -> None:
        super().__init__(method, after_s)
        self.method = method
        self.after_s = after_s

    def __str__(self) -> str:
        return f"{self.method}: no answer within {self.after_s:g} s"


class ConnectionLost(StepflowError):
    """The connection is over; ``reason`` says why, ``detail`` what exactly happened."""

    def __init__(self, reason: LossReason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"connection lost ({self.reason.value}){': ' + self.detail if self.detail else ''}"


class ConnectFailed(ConnectionLost):
    """No connection to ``origin`` could be made; ``why`` says what stood in its way.

    Nothing was sent, so that whatever was to be sent may be sent to another server. ``is_local`` says that it
    was this machine which had none to make, being out of descriptors, say: it tells nothing of the server.
    ``is_late`` says that the time for it was up.
    """

    def __init__(self, origin: str, why: str, *, is_local: bool = False, is_late: bool = False) -> None:
        super().__init__(LossReason.STREAM_ERROR, why)
        self.origin = origin
        self.why = why
        self.is_local = is_local
        self.is_late = is_late

    def __str__(self) -> str:
        return f"cannot connect to {self.origin}: {self.why}"


class WorkerExited(ConnectionLost):
    """The worker's process ended by itself.

    ``returncode`` is its exit code (negative: the signal that killed it), ``stderr`` the last lines that it
    wrote there.
    """

    def __init__(self, command: str, returncode: int | None, stderr: Sequence[str] = ()) -> None:
        self.command = command
        self.returncode = returncode
        self.stderr = tuple(stderr)
        if returncode is None:
            how = "closed its stdout"
        elif returncode < 0:
            how = f"was killed by signal {-returncode}"
        else:
            how = f"exited with code {returncode}"
        self.summary = f"{command!r} {how}"
        """What happened, in one line."""
        last = "".join(f"\n  | {line}" for line in self.stderr[-20:])
        tail = f"; the last lines of its stderr:{last}" if last else "; it wrote nothing to stderr"
        super().__init__(LossReason.PEER_CLOSED, f"worker {self.summary}{tail}")


class SpawnFailed(StepflowError):
    """A worker's process could not be started; ``command`` is what was tried.

    ``is_transient`` says that it may work later: the system was out of something. A command that does not
    exist stays so. ``is_late`` says that it was not ready in the time that it had.
    """

    def __init__(self, command: str, why: str, *, is_transient: bool = False, is_late: bool = False) -> None:
        super().__init__(command, why)
        self.command = command
        self.why = why
        self.is_transient = is_transient
        self.is_late = is_late

    def __str__(self) -> str:
        return f"cannot start worker {self.command!r}: {self.why}"


class BindFailed(StepflowError):
    """A server cannot listen at ``bind``; ``why`` says what stands in its way."""

    def __init__(self, bind: str, why: str) -> None:
        super().__init__(bind, why)
        self.bind = bind
        self.why = why

    def __str__(self) -> str:
        return f"cannot listen on {self.bind}: {self.why}"


class UrlRefused(StepflowError):
    """A URL that a peer named is not requested; ``why`` says what forbids it and what would be allowed.

    ``origin`` is its scheme, host and port; empty where it cannot be read as a URL.
    """

    def __init__(self, origin: str, why: str) -> None:
        super().__init__(origin, why)
        self.origin = origin
        self.why = why

    def __str__(self) -> str:
        return f"{self.origin} is not requested: {self.why}" if self.origin else self.why


class FlowInvalid(StepflowError):
    """A flow cannot be run as written. ``diagnostics`` lists everything found, each with its place."""

    def __init__(self, diagnostics: Sequence[Any]) -> None:
        super().__init__(tuple(diagnostics))
        self.diagnostics = tuple(diagnostics)

    def __str__(self) -> str:
        return "\n".join(str(d) for d in self.diagnostics) or "the flow is invalid"


class PathInvalid(StepflowError):
    """``path`` is not written as a JSON path; ``why`` says where it goes wrong and what would be right."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"JSON path {self.path!r}: {self.why}"


class ConfigError(StepflowError):
    """A configuration cannot be used as written; ``place`` is ``file:line:column`` or a key path.

    ``diagnostics`` lists all that is wrong with a file, each with its place; empty where it is no file's.
    """

    def __init__(self, message: str, place: str = "", diagnostics: Sequence[Any] = ()) -> None:
        super().__init__(message, place)
        self.message = message
        self.place = place
        self.diagnostics = tuple(diagnostics)

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


class RunFailed(StepflowError):
    """A run ended with a failure; ``code``, ``message`` and ``data`` are those of its result."""

    def __init__(self, code: int, message: str, data: Any = None, *, run_id: str = "") -> None:
        super().__init__(code, message, data)
        self.code = code
        self.message = message
        self.data = data
        self.run_id = run_id

    def __str__(self) -> str:
        return f"{self.message} (code {self.code})"


class RunCancelled(RunFailed):
    """The run was cancelled before it ended."""


class BlobNotFound(StepflowError):
    """Nothing is stored under ``blob_id``."""

    def __init__(self, blob_id: str) -> None:
        super().__init__(blob_id)
        self.blob_id = blob_id

    def __str__(self) -> str:
        return f"no blob {self.blob_id!r} is stored"


class FlowNotFound(StepflowError):
    """No flow is stored under ``flow_id``."""

    def __init__(self, flow_id: str) -> None:
        super().__init__(flow_id)
        self.flow_id = flow_id

    def __str__(self) -> str:
        return f"no flow {self.flow_id!r} is stored"


class RunNotFound(StepflowError):
    """There is no run ``run_id``: there never was, or it was deleted."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"there is no run {self.run_id}"


class StateConflict(StepflowError):
    """What was asked does not go with how a run or a flow stands; the text says how that is."""


class KeyReused(StateConflict):
    """``key`` was given with ``run_id``'s submission before, and now with another one."""

    def __init__(self, key: str, run_id: str) -> None:
        super().__init__(key, run_id)
        self.key = key
        self.run_id = run_id

    def __str__(self) -> str:
        return (
            f"idempotency key {self.key[:80]!r} was used for run {self.run_id}, which was another "
            "submission: a new one needs a new key"
        )
