"""``stepflow-trio test --update``: what the cases of a file came to becomes what they expect."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepflow_trio.cli.case_running import CaseResult
from stepflow_trio.cli.case_text import CannotRewrite, with_outputs
from stepflow_trio.cli.flow_tests import FlowTests
from stepflow_trio.errors import ErrorCode, StepflowError, is_transport_code
from stepflow_trio.flows.expectations import revised
from stepflow_trio.flows.results import Failed, FlowResult


class CannotUpdate(StepflowError):
    """A file was left as it is; the text says why."""


def update_expectations(tests: FlowTests, results: Iterable[CaseResult]) -> dict[int, str]:
    """Let the cases that have not passed expect what they came to, in their file.

    Everything else in the file stays as it is, byte for byte. It is replaced by a new one with the same
    permissions, at once: whoever reads it meanwhile sees the old one or the new one.

    Returns:
        For each case that has not passed, by its index, why it was left as it is; or the empty string.
    """
    outcomes: dict[int, str] = {}
    outputs: dict[int, Any] = {}
    for result in results:
        if result.has_passed:
            continue
        case, reached = result.case, result.result
        outcomes[case.index] = why = _why_not(case.expected, reached)
        if reached is not None and not why:
            outputs[case.index] = revised(case.expected, reached).to_json()
    try:
        _write_outputs(tests, outputs, outcomes)
    except CannotUpdate as exc:
        outcomes |= dict.fromkeys(outputs, str(exc))
    return outcomes


def _write_outputs(tests: FlowTests, outputs: dict[int, Any], outcomes: dict[int, str]) -> None:
    """Put the outputs into the file; of those that it cannot take, say so in ``outcomes``."""
    if not outputs:
        return
    try:
        text = with_outputs(tests.text, outputs, name=tests.path)
    except CannotRewrite:
        # One of them is to blame; the others need not wait for it.
        text = tests.text
        for index, output in outputs.items():
            try:
                text = with_outputs(text, {index: output}, name=tests.path)
            except CannotRewrite as exc:
                outcomes[index] = str(exc)
    if text != tests.text:
        replace_file(Path(tests.path), text, was=tests.text)


def _why_not(expected: FlowResult | None, reached: FlowResult | None) -> str:
    """Why a result is nothing to expect, or the empty string."""
    if reached is None:
        return "the flow did not run"
    if not isinstance(reached, Failed):
        return ""
    code = reached.error.code
    is_of_ours = code in (ErrorCode.RUNTIME_INTERNAL, ErrorCode.RUN_TIMED_OUT, ErrorCode.REQUEST_CANCELLED)
    if not is_of_ours and not is_transport_code(code):
        return ""
    if isinstance(expected, Failed) and expected.error.code == code:
        return ""
    return f"code {code} says that the flow was kept from running, not what it comes to"


def replace_file(path: Path, text: bytes, *, was: bytes) -> None:
    """Replace what is in a file, at once and durably; its permissions stay, and so do links to it.

    Raises:
        CannotUpdate: it holds something else than ``was`` by now, or cannot be written.
    """
    try:
        real = path.resolve(strict=True)
        if real.read_bytes() != was:
            raise CannotUpdate("the file was changed meanwhile")
        if not os.access(real, os.W_OK):
            raise CannotUpdate("the file may not be written")
        descriptor, beside = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), stat.S_IMODE(real.stat().st_mode))
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, real)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
    except OSError as exc:
        raise CannotUpdate(f"the file cannot be written: {exc.strerror}") from exc
