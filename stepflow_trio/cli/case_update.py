"""``stepflow-trio test --update``: what the cases of a file came to becomes what they expect."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepflow_trio.cli.case_finding import FlowTests
from stepflow_trio.cli.case_running import CaseResult
from stepflow_trio.cli.case_secrets import CaseSecrets
from stepflow_trio.cli.case_text import CannotRewrite, with_outputs
from stepflow_trio.errors import ErrorCode, StepflowError, is_transport_code
from stepflow_trio.flows.expectations import revised
from stepflow_trio.flows.results import Failed, FlowResult


class CannotUpdate(StepflowError):
    """A file was left as it is; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What became of the cases of a file that have not passed, by their index."""

    updated: frozenset[int] = frozenset()
    """They expect what they came to."""
    left: Mapping[int, str] = field(default_factory=dict[int, str])
    """Why each of the others was left as it is."""


def update_expectations(tests: FlowTests, results: Iterable[CaseResult]) -> Update:
    """Let the cases that have not passed expect what they came to, in their file.

    Everything else in the file stays as it is, byte for byte. It is replaced by a new one with the same
    permissions, at once: whoever reads it meanwhile sees the old one or the new one. What the flow's schemas
    call secret is not written.
    """
    left: dict[int, str] = {}
    outputs: dict[int, Any] = {}
    secrets = CaseSecrets(tests)
    for result in results:
        if result.has_passed:
            continue
        case, reached = result.case, result.result
        if reached is None:
            left[case.index] = "the flow did not run"
        elif why := _why_not(case.expected, reached):
            left[case.index] = why
        elif secrets.are_in(output := revised(case.expected, reached), case):
            left[case.index] = "the flow's schemas call a part of its output secret: write it by hand"
        else:
            outputs[case.index] = output.to_json()
    text, refused = _rewritten(tests, outputs)
    try:
        if text != tests.text:
            replace_file(Path(tests.path), text, was=tests.text)
    except CannotUpdate as exc:
        return Update(left={**left, **dict.fromkeys(outputs, str(exc)), **refused})
    return Update(updated=frozenset(outputs.keys() - refused.keys()), left={**left, **refused})


def _rewritten(tests: FlowTests, outputs: Mapping[int, Any]) -> tuple[bytes, dict[int, str]]:
    """The file's text with the outputs in it; and of those that it cannot take, why not."""
    if not outputs:
        return tests.text, {}
    with contextlib.suppress(CannotRewrite):
        return with_outputs(tests.text, outputs, name=tests.path), {}
    # One of them is to blame; the others need not wait for it.
    text = tests.text
    refused: dict[int, str] = {}
    for index, output in outputs.items():
        try:
            text = with_outputs(text, {index: output}, name=tests.path)
        except CannotRewrite as exc:
            refused[index] = str(exc)
    return text, refused


def _why_not(expected: FlowResult | None, reached: FlowResult) -> str | None:
    """Why a result is nothing to expect; None: it is something."""
    if not isinstance(reached, Failed):
        return None
    code = reached.error.code
    is_of_ours = code in (ErrorCode.RUNTIME_INTERNAL, ErrorCode.RUN_TIMED_OUT, ErrorCode.REQUEST_CANCELLED)
    if not is_of_ours and not is_transport_code(code):
        return None
    if isinstance(expected, Failed) and expected.error.code == code:
        return None
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
