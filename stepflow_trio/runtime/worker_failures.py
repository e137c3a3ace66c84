"""What goes wrong with a plugin's worker, as failed attempts of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from stepflow_trio.errors import (
    CallFailed,
    CallTimeout,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    ErrorCode,
    Overloaded,
    RemoteProtocolError,
    RpcError,
    SpawnFailed,
    StepflowError,
    WorkerExited,
)
from stepflow_trio.flows.results import FlowError
from stepflow_trio.runtime.plugins import FailureKind, StepFailure, failure_from, kind_of_code

__all__ = ["WorkerFailures", "http_status_of", "is_local_lack"]

_UNAUTHORIZED = 401
"""Of HTTP: without a token that the server knows."""

_UNAUTHORIZED_HINT = "bearerTokenFile or bearerTokenEnv says which token to send"
_SHOWN_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFailures:
    """Says of an error in dealing with one worker what the step fails with, and who may try again."""

    plugin: str
    """What the configuration calls it."""
    title: str
    """What people are told that it is."""
    exit_hint: str = ""
    """What may be wrong with a process that ended before it was ready."""

    def before_ready(self, exc: StepflowError) -> StepFailure:
        """The failure of a step for which no worker could be made ready."""
        match exc:
            case RpcError():
                # It is the worker that refuses, and not a component.
                retry_after_s = exc.retry_after_s if isinstance(exc, Overloaded) else 0.0
                error = FlowError(exc.code, f"{self.title}: {exc.message}", exc.data)
                return StepFailure(error, kind_of_code(exc.code), retry_after_s=retry_after_s)
            case WorkerExited():
                # One that ended by itself would do so again.
                ended_by_itself = (exc.returncode or 0) >= 0
                kind = FailureKind.FINAL if ended_by_itself else FailureKind.TRANSPORT
                return StepFailure(self._exit_error(exc, self.exit_hint), kind)
            case CallTimeout():
                message = f"{self.title} did not answer {exc.method} within {exc.after_s:g} s"
                return StepFailure(FlowError(ErrorCode.CONNECT_TIMED_OUT, message), FailureKind.FINAL)
            case _:
                return self._in_general(exc)

    def of_call(self, exc: StepflowError, *, divides_codes: bool) -> StepFailure:
        """The failure of a step that a worker was asked to execute.

        ``divides_codes``: the code of an answer says who may try again (docs/protocol.md, section 5).
        """
        match exc:
            case CallFailed():
                kind = kind_of_code(exc.code)
                if not divides_codes:
                    # What is not JSON-RPC's own came from the component's execution, so a step that says that
                    # it wants to be retried is.
                    is_of_json_rpc = -32768 <= exc.code <= -32600
                    kind = FailureKind.FINAL if is_of_json_rpc else FailureKind.COMPONENT
                retry_after_s = exc.retry_after_s if isinstance(exc, Overloaded) else 0.0
                error = FlowError(exc.code, exc.message, exc.data)
                return StepFailure(error, kind, retry_after_s=retry_after_s)
            case RpcError():
                return failure_from(exc)
            case _:
                return self._in_general(exc)

    def _in_general(self, exc: StepflowError) -> StepFailure:
        text = f"{self.title}: {exc}"
        match exc:
            case RemoteProtocolError():
                hint = f"; {_UNAUTHORIZED_HINT}" if http_status_of(exc) == _UNAUTHORIZED else ""
                error = FlowError(exc.code, f"{self.title}: {exc.message}{hint}", exc.data)
                return StepFailure(error, kind_of_code(exc.code))
            case SpawnFailed():
                kind = FailureKind.TRANSPORT if exc.is_transient else FailureKind.FINAL
                code = ErrorCode.CONNECT_TIMED_OUT if exc.is_late else ErrorCode.SPAWN_FAILED
                return StepFailure(FlowError(code, text), kind)
            case ConfigError():
                message = f"plugin {self.plugin!r} cannot be used: {exc}"
                return StepFailure(FlowError(ErrorCode.CONFIGURATION_ERROR, message), FailureKind.FINAL)
            case WorkerExited():
                error = self._exit_error(exc)
            case ConnectFailed() if is_local_lack(exc):
                error = FlowError(ErrorCode.TRANSPORT_ERROR, text)
            case ConnectFailed(is_late=True):
                error = FlowError(ErrorCode.CONNECT_TIMED_OUT, text)
            case ConnectionLost():
                error = FlowError(ErrorCode.CONNECTION_LOST, text)
            case CallTimeout():
                error = FlowError(ErrorCode.TRANSPORT_ERROR, text)
            case _:
                return StepFailure(FlowError(ErrorCode.RUNTIME_INTERNAL, text), FailureKind.FINAL)
        return StepFailure(error, FailureKind.TRANSPORT)

    def _exit_error(self, exc: WorkerExited, hint: str = "") -> FlowError:
        last = f": {exc.stderr[-1]}" if exc.stderr else ""
        data = {"returncode": exc.returncode, "stderr": list(exc.stderr[-_SHOWN_LINES:])}
        return FlowError(ErrorCode.CONNECTION_LOST, f"{self.title}: {exc.summary}{last}{hint}", data)


def is_local_lack(exc: BaseException | None) -> bool:
    """Whether this machine had no connection to make, which tells nothing of the worker."""
    return isinstance(exc, ConnectFailed) and exc.is_local


def http_status_of(exc: CallFailed | RemoteProtocolError) -> object:
    """The status of HTTP that was all the answer; None where there was more, or none."""
    data: object = exc.data
    return cast("dict[str, object]", data).get("status") if isinstance(data, dict) else None
