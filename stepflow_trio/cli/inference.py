"""``stepflow-trio infer``: a flow with the schemas that follow from its components."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from stepflow_trio.cli.configuration import read_configuration
from stepflow_trio.cli.exits import FAILED, MISUSED, Unusable
from stepflow_trio.cli.line_writer import unwritable
from stepflow_trio.cli.notices import complain, show_diagnostic, speaks_json
from stepflow_trio.cli.plain_text import count
from stepflow_trio.cli.standard_output import json_document, write_stdout
from stepflow_trio.cli.type_checking import check_flow_types
from stepflow_trio.cli.validation import diagnostics_json
from stepflow_trio.cli.yaml_text import yaml_document
from stepflow_trio.errors import FlowInvalid
from stepflow_trio.flows.inference import infer_schemas
from stepflow_trio.flows.reader import examine_flow_file
from stepflow_trio.flows.type_check import TypeCheck
from stepflow_trio.flows.types import shown

BESIDE_THE_FLOW = ""
"""As an output: ``<flow>.inferred.<suffix>``."""


def infer_flow(
    flow_path: str,
    config_path: str | None,
    *,
    output: str | None,
    show_step_inputs: bool,
    strict: bool,
) -> int:
    """Check a flow's types, write it with the schemas that it does not declare, and return the exit code.

    With ``--json`` what is written is one object with the flow and the diagnostics.

    Args:
        flow_path: the flow.
        config_path: its configuration, if not the one that is found.
        output: the file to write; None: stdout.
        show_step_inputs: say on stderr what each step is given and takes.
        strict: warn of what cannot be checked.

    Raises:
        FlowInvalid: the flow is wrong, types apart; nothing was started.
        ConfigError: the configuration cannot be used.
        Unusable: the output cannot be written where it is to go.
        StepflowError: it could not be written.
        Interrupted: a signal came while workers were asked; no worker is left.
    """
    target = _target(flow_path, output)
    reading = examine_flow_file(flow_path)
    flow = reading.runnable_flow()
    if reading.source is None:
        raise FlowInvalid(reading.diagnostics)
    config = read_configuration(config_path, beside=Path(flow_path))
    for warning in config.diagnostics:
        show_diagnostic(warning)
    checked = check_flow_types(flow, reading.source, config, strict=strict)
    inference = infer_schemas(flow, checked.types)
    found = [*checked.diagnostics, *map(reading.source.diagnostic, inference.conflicts)]
    completed = msgspec.structs.replace(flow, schemas=inference.schemas).to_json()
    if speaks_json():
        value: dict[str, Any] = {
            "flow": completed,
            **diagnostics_json(found),
            "unavailable": checked.problems,
        }
        if show_step_inputs:
            value["stepInputs"] = _step_inputs(checked.types)
        written = json_document(value)
    else:
        written = flow_text(completed, suffix=(target or Path(flow_path)).suffix)
        for diagnostic in found:
            show_diagnostic(diagnostic)
        if show_step_inputs:
            for step_id, types in _step_inputs(checked.types).items():
                complain(f"{step_id}: given {types['given']}, takes {types['taken']}", level="info")
    for problem in checked.problems:
        complain(f"warning: {problem}", level="warning")
    _write(written, target)
    errors = sum(diagnostic.level != "warning" for diagnostic in found)
    if target is not None:
        complain(f"{target} written: {count(errors, 'error')}", level="info", file=str(target))
    return MISUSED if errors else FAILED if checked.problems else 0


def _target(flow_path: str, output: str | None) -> Path | None:
    if output is None:
        return None
    flow = Path(flow_path)
    target = (
        Path(output) if output != BESIDE_THE_FLOW else flow.with_suffix(f".inferred{flow.suffix or '.yaml'}")
    )
    if target.exists() and flow.exists() and target.samefile(flow):
        raise Unusable("is the flow itself, whose comments would be lost", str(target))
    if target.is_dir():
        raise Unusable("is a directory; --output names a file", str(target))
    return target


def _step_inputs(types: TypeCheck) -> dict[str, dict[str, str]]:
    return {
        step_id: {"given": shown(step.given, types.pool), "taken": shown(step.taken, types.pool)}
        for step_id, step in types.steps.items()
    }


def flow_text(flow: Any, *, suffix: str) -> bytes:
    """A flow as JSON for the suffix ``.json``, as YAML for any other."""
    return json_document(flow) if suffix.lower() == ".json" else yaml_document(flow)


def _write(data: bytes, target: Path | None) -> None:
    if target is None:
        write_stdout(data)
        return
    try:
        target.write_bytes(data)
    except OSError as exc:
        raise unwritable(target, exc) from exc
