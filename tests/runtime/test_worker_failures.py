"""What errors in dealing with a worker are to the steps that needed it, whatever kind of worker it is."""

from __future__ import annotations

from typing import Any

import pytest

from stepflow_trio.errors import (
    CallFailed,
    CallTimeout,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    ErrorCode,
    LocalProtocolError,
    LossReason,
    Overloaded,
    RemoteProtocolError,
    RpcError,
    SpawnFailed,
    StepflowError,
    WorkerExited,
)
from stepflow_trio.runtime.plugins import FailureKind
from stepflow_trio.runtime.worker_failures import WorkerFailures

FINAL, COMPONENT, TRANSPORT = FailureKind.FINAL, FailureKind.COMPONENT, FailureKind.TRANSPORT
FAILURES = WorkerFailures(plugin="w", title="worker w", exit_hint="; is it there?")


@pytest.mark.parametrize(
    ("exc", "kind", "code", "message"),
    [
        (CallFailed(-32001, "no licence", [1]), FINAL, -32001, "worker w: no licence"),
        (RpcError(ErrorCode.VERSION_MISMATCH, "too old"), FINAL, -32006, "worker w: too old"),
        (CallTimeout("initialize", 0.5), FINAL, -32305, "worker w did not answer initialize within 0.5 s"),
        (SpawnFailed("x", "not there"), FINAL, -32301, "worker w: cannot start worker 'x': not there"),
        (
            SpawnFailed("x", "no memory", is_transient=True),
            TRANSPORT,
            -32301,
            "worker w: cannot start worker 'x': no memory",
        ),
        (SpawnFailed("x", "slow", is_late=True), FINAL, -32305, "worker w: cannot start worker 'x': slow"),
        (ConfigError("no file"), FINAL, -32008, "plugin 'w' cannot be used: no file"),
        (
            WorkerExited("x", 3, ["a", "b"]),
            FINAL,
            -32302,
            "worker w: 'x' exited with code 3: b; is it there?",
        ),
        (WorkerExited("x", -9), TRANSPORT, -32302, "worker w: 'x' was killed by signal 9; is it there?"),
        (ConnectFailed("u", "refused"), TRANSPORT, -32302, "worker w: cannot connect to u: refused"),
        (ConnectFailed("u", "slow", is_late=True), TRANSPORT, -32305, "worker w: cannot connect to u: slow"),
    ],
)
def test_where_no_worker_could_be_made_ready_the_step_fails_with_why(
    exc: StepflowError, kind: FailureKind, code: int, message: str
) -> None:
    failure = FAILURES.before_ready(exc)
    assert (failure.kind, failure.error.code, failure.error.message) == (kind, code, message)


@pytest.mark.parametrize(
    ("exc", "kind", "code", "message"),
    [
        (RpcError(ErrorCode.COMPONENT_FAILED, "no"), COMPONENT, -32100, "no"),
        (
            CallTimeout("components/list", 30),
            TRANSPORT,
            -32300,
            "worker w: components/list: no answer within 30 s",
        ),
        (WorkerExited("x", 3, ["a", "b"]), TRANSPORT, -32302, "worker w: 'x' exited with code 3: b"),
        (
            ConnectionLost(LossReason.PROTOCOL_VIOLATION, "no JSON"),
            TRANSPORT,
            -32302,
            "worker w: connection lost (protocol_violation): no JSON",
        ),
        (
            ConnectFailed("u", "no files", is_local=True),
            TRANSPORT,
            -32300,
            "worker w: cannot connect to u: no files",
        ),
        (
            RemoteProtocolError("odd", code=ErrorCode.GARBLED_MESSAGE),
            TRANSPORT,
            -32303,
            "worker w: odd",
        ),
        (
            RemoteProtocolError("HTTP 401", data={"status": 401}),
            FINAL,
            -32600,
            "worker w: HTTP 401; bearerTokenFile or bearerTokenEnv says which token to send",
        ),
        (ConfigError("no file"), FINAL, -32008, "plugin 'w' cannot be used: no file"),
        (LocalProtocolError("too deep"), FINAL, -32202, "worker w: too deep"),
    ],
)
def test_a_call_that_failed_is_a_failed_attempt(
    exc: StepflowError, kind: FailureKind, code: int, message: str
) -> None:
    for divides_codes in (True, False):
        failure = FAILURES.of_call(exc, divides_codes=divides_codes)
        assert (failure.kind, failure.error.code, failure.error.message) == (kind, code, message)


@pytest.mark.parametrize(
    ("code", "divided", "undivided"),
    [
        (-32600, FINAL, FINAL),
        (-32768, FINAL, FINAL),
        (-32769, FINAL, COMPONENT),
        (-32599, FINAL, COMPONENT),
        (-32000, FINAL, COMPONENT),
        (-32100, COMPONENT, COMPONENT),
        (-32300, TRANSPORT, COMPONENT),
        (7, FINAL, COMPONENT),
    ],
)
def test_an_answer_s_code_says_who_may_try_again_only_where_its_table_does(
    code: int, divided: FailureKind, undivided: FailureKind
) -> None:
    exc = CallFailed(code, "no", {"a": 1})
    for divides_codes, kind in ((True, divided), (False, undivided)):
        failure = FAILURES.of_call(exc, divides_codes=divides_codes)
        assert failure.kind is kind
        assert (failure.error.code, failure.error.message, failure.error.data) == (code, "no", {"a": 1})


@pytest.mark.parametrize("is_ready", [False, True])
def test_a_worker_at_its_limit_says_when_to_try_again(is_ready: bool) -> None:
    data: Any = {"retry_after_s": 7.0}
    exc = Overloaded(ErrorCode.OVERLOADED, "later", data)
    failure = FAILURES.of_call(exc, divides_codes=True) if is_ready else FAILURES.before_ready(exc)
    assert (failure.kind, failure.retry_after_s, failure.error.data) == (TRANSPORT, 7.0, data)


def test_a_process_that_ended_leaves_the_last_twenty_lines_of_its_stderr() -> None:
    lines = [str(number) for number in range(30)]
    failure = FAILURES.of_call(WorkerExited("x", 1, lines), divides_codes=True)
    assert failure.error.data == {"returncode": 1, "stderr": lines[-20:]}
