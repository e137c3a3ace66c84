"""What a run is given and what it comes to, held to the flow's schemas.

====================================  ====================================================================
``schemas.properties.input``          the run's input
``schemas.properties.variables``      the run's variables, with the defaults that the schema declares
``schemas.properties.steps.<id>``     what the component of that step returned
``schemas.properties.output``         the flow's output
====================================  ====================================================================

Schemas are JSON Schema of the draft that their ``$schema`` names, 2020-12 without it. References lead to
other parts of the flow's schemas only: nothing is ever fetched. ``format`` is a remark, not a rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import msgspec

from stepflow_trio.errors import ErrorCode, FlowInvalid
from stepflow_trio.flows.diagnostics import DiagnosticKind, Finding
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.paths import JsonPath, render_path
from stepflow_trio.flows.results import FlowError
from stepflow_trio.flows.schema_documents import SchemaDocument, SchemaPool, flow_parts
from stepflow_trio.flows.schema_problems import Misfit, explain
from stepflow_trio.flows.schema_validator import compiled
from stepflow_trio.flows.secrets import FlowSecrets, SecretPlaces
from stepflow_trio.flows.source import Source
from stepflow_trio.flows.suggestions import did_you_mean
from stepflow_trio.flows.variables import declared_variables

__all__ = ["FlowSchemas", "check_flow_schemas"]

_MAX_MISFITS = 10
"""Places of one value that are listed in an error's data."""

_MAX_VALUES_LISTED_FROM = 10_000
"""Of a value with more parts than this only one misfit is given: the validator collects all or one."""

_DRAFTS = (
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema#",
    "http://json-schema.org/draft-06/schema#",
    "http://json-schema.org/draft-04/schema#",
)


class FlowSchemas:
    """Checks values against one flow's schemas; what has no schema fits.

    Every check returns the failure that a value stands for, or None. The failure's message names one place
    that does not fit, by its JSON path, and its data are ``{"path", "schema", "misfits": [{"path", "schema",
    "problem"}]}``: paths in the value and in the flow. Neither holds the value itself.

    Args:
        flow: the flow.
        enforce_schemas: False makes every value fit, as in the protocol's public releases.

    Raises:
        FlowInvalid: a schema cannot be used; `check_flow_schemas` says why.
    """

    def __init__(self, flow: Flow, *, enforce_schemas: bool = True) -> None:
        schemas = flow.schemas if enforce_schemas else None
        self._parts: dict[str, _Part] = {}
        self.secrets = FlowSecrets.of(flow)
        """Where its values are secret; None: nowhere. That holds whether or not schemas are enforced."""
        self._declared, self._defaults = _variables_of(schemas)
        faults: list[Finding] = []
        for name, part in _compiled_parts(schemas, faults.append):
            self._parts[name] = part
        if faults:
            raise FlowInvalid([Source(flow.name or "<flow>", None).diagnostic(fault) for fault in faults])

    def check_input(self, value: Any) -> FlowError | None:
        """−32003 if the run's input does not fit."""
        return self._check(
            "input", value, ErrorCode.INVALID_INPUT_SCHEMA, "the input does not fit its schema"
        )

    def check_variables(self, variables: Mapping[str, Any], *, inherited: bool = False) -> FlowError | None:
        """−32003 if the run's variables do not fit, as where one that is required has no value.

        Of variables that are ``inherited`` from a run above, which has a schema of its own for them, only
        those count that this flow declares.
        """
        if "variables" not in self._parts:
            return None
        given = {name: v for name, v in variables.items() if not inherited or name in self._declared}
        values = {**self._defaults, **given}
        what = "the variables do not fit their schema"
        return self._check("variables", values, ErrorCode.INVALID_INPUT_SCHEMA, what)

    def check_step_output(self, step_id: str, value: Any) -> FlowError | None:
        """−32101 if a component's output does not fit: its failure, which ``onError: retry`` tries again."""
        if not self._parts:
            return None
        what = f'the output of step "{step_id}" does not fit its schema'
        return self._check(f"steps.{step_id}", value, ErrorCode.COMPONENT_VALUE_ERROR, what)

    def check_output(self, value: Any) -> FlowError | None:
        """−32004 if the flow's output does not fit."""
        return self._check("output", value, ErrorCode.INVALID_VALUE, "the output does not fit its schema")

    def _check(self, name: str, value: Any, code: ErrorCode, what: str) -> FlowError | None:
        part = self._parts.get(name)
        misfits = part.misfits(value) if part is not None else []
        if not misfits:
            return None
        places = self.secrets.part(name) if self.secrets is not None else None
        if places is not None:
            misfits = [_without_secret(misfit, places) for misfit in misfits]
        listed = [
            {"path": render_path(at), "schema": render_path(place), "problem": why}
            for at, place, why in misfits[:_MAX_MISFITS]
        ]
        first, others = listed[0], len(misfits) - 1
        more = f", and {others} more problem{'s' * (others > 1)}" if others else ""
        message = f"{what}: {first['path']} {first['problem']}{more}"
        return FlowError(
            int(code), message, {"path": first["path"], "schema": first["schema"], "misfits": listed}
        )


class _Part(msgspec.Struct, frozen=True, eq=False):
    """One schema of a flow, ready to check values."""

    document: dict[str, Any] | bool
    """The schema with all that it refers to, as the validator has it."""
    validator: Any
    place_of: Callable[[JsonPath], JsonPath]

    def misfits(self, value: Any) -> list[tuple[JsonPath, JsonPath, str]]:
        """What does not fit: where in the value, where in the flow, and why."""
        try:
            if self.validator.is_valid(value):
                return []
            errors: list[Any] = []
            if not _is_large(value):
                errors = list(self.validator.iter_errors(value))
            else:
                self.validator.validate(value)
        except ValueError as exc:
            if not hasattr(exc, "instance_path"):
                # Such as a nesting that the validator cannot take.
                return [((), self.place_of(()), f"cannot be checked: {exc}")]
            errors = [exc]
        found: list[Misfit] = [explain(error, value, self.document) for error in errors]
        return [(misfit.path, self.place_of(misfit.pointer), misfit.why) for misfit in found]


def _without_secret(
    misfit: tuple[JsonPath, JsonPath, str], places: SecretPlaces
) -> tuple[JsonPath, JsonPath, str]:
    """The misfit, of which nothing is said but its place in the schema if it is, or is in, what is secret."""
    path, place, _ = misfit
    at: SecretPlaces | None = places
    for depth in range(len(path) + 1):
        if at is None:
            return misfit
        if at.is_secret:
            return path[:depth], place, "does not fit, and is secret"
        if depth < len(path):
            part = path[depth]
            at = at.item(part) if isinstance(part, int) else at.field(part)
    return misfit


def check_flow_schemas(schemas: Mapping[str, Any] | None) -> Iterator[Finding]:
    """What keeps a flow's schemas from being used: no JSON Schema, or a reference that leads nowhere."""
    faults: list[Finding] = []
    for _ in _compiled_parts(schemas, faults.append):
        pass
    yield from faults


def _compiled_parts(
    schemas: Mapping[str, Any] | None, report: Callable[[Finding], None]
) -> Iterator[tuple[str, _Part]]:
    pool = SchemaPool()
    known = 0
    for name, document in flow_parts(schemas):
        gathered = pool.gather(document)
        for at, ref in itertools.islice(pool.unresolved, known, None):
            report(_unresolved(at, ref, schemas))
        known, before = len(pool.unresolved), known
        if known == before:
            part = _compiled(gathered, document, pool, report)
            if part is not None:
                yield name, part


def _compiled(
    gathered: Any, document: SchemaDocument, pool: SchemaPool, report: Callable[[Finding], None]
) -> _Part | None:
    alone: Any = pool.standing_alone(gathered)
    root: object = document.root
    dialect: object = cast("dict[str, Any]", root).get("$schema") if isinstance(root, dict) else None
    if dialect is not None:
        if dialect not in _DRAFTS and f"{dialect}#" not in _DRAFTS:
            message = "this draft of JSON Schema is not known"
            hint = f"write one of {', '.join(_DRAFTS)}, or leave it out"
            at = (*document.at, "$schema")
            report(Finding(DiagnosticKind.INVALID_SCHEMA, message, at, hint))
            return None
        alone = {"$schema": dialect, **alone}

    def place_of(pointer: JsonPath) -> JsonPath:
        return pool.place_of(pointer, document.at)

    try:
        validator = compiled(alone)
    except ValueError as exc:
        at, why = document.at, f": {exc}"
        if hasattr(exc, "instance_path"):
            misfit = explain(exc, alone, {})
            at, why = place_of(misfit.path), f": it {misfit.why}"
        report(Finding(DiagnosticKind.INVALID_SCHEMA, f"this is not JSON Schema{why}", at))
        return None
    return _Part(alone, validator, place_of)


def _unresolved(at: JsonPath, ref: str, schemas: Mapping[str, Any] | None) -> Finding:
    if not ref.startswith("#"):
        message = f"the reference {ref!r} leads out of the flow, where nothing is fetched"
        hint = "put the schema into schemas.$defs and refer to it as #/schemas/$defs/<name>"
    else:
        message = f"the reference {ref!r} leads nowhere"
        shared: object = (schemas or {}).get("$defs")
        names = list(cast("dict[str, Any]", shared)) if isinstance(shared, dict) else []
        hint = did_you_mean(ref, [f"#/schemas/$defs/{name}" for name in names])
        hint = hint or did_you_mean(ref, [f"#/$defs/{name}" for name in names])
    return Finding(DiagnosticKind.INVALID_SCHEMA, message, at, hint)


def _variables_of(schemas: Mapping[str, Any] | None) -> tuple[frozenset[str], dict[str, Any]]:
    """The names of the declared variables, and the values that the schema itself gives them."""
    declared = declared_variables(dict(schemas) if schemas is not None else None) or {}
    defaults = {
        name: cast("dict[str, Any]", schema)["default"]
        for name, schema in declared.items()
        if isinstance(schema, dict) and "default" in schema
    }
    return frozenset(declared), defaults


def _is_large(value: Any) -> bool:
    left = _MAX_VALUES_LISTED_FROM
    pending: list[Any] = [value]
    while pending:
        part: object = pending.pop()
        if isinstance(part, dict):
            members = list(cast("dict[str, Any]", part).values())
        elif isinstance(part, list):
            members = cast("list[Any]", part)
        else:
            continue
        left -= len(members)
        if left < 0:
            return True
        pending.extend(members)
    return False
