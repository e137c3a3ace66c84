"""From a plain value to the records of a flow: which fields there are, what they may hold, and what they were
called in earlier releases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import msgspec

from stepflow_trio.errors import RemoteProtocolError
from stepflow_trio.flows.diagnostics import DiagnosticKind, Finding
from stepflow_trio.flows.expressions import Constant, Expression, parse_expression
from stepflow_trio.flows.model import MAX_TIMEOUT_S, Fail, Flow, OnError, Retry, Step, UseDefault
from stepflow_trio.flows.paths import JsonPath, NothingThere, render_path, resolve
from stepflow_trio.flows.results import flow_result_from_json
from stepflow_trio.flows.suggestions import closest
from stepflow_trio.protocol.json_types import json_type

__all__ = ["misspelled_step_fields", "path_as_written", "shape_flow"]

_MAX_RETRIES = 2**32 - 1


class _Known(msgspec.Struct, frozen=True):
    """The fields of one kind of object."""

    what: str
    names: tuple[str, ...]
    renamed: dict[str, str] = {}
    """Earlier names, read as the name of today."""
    gone: dict[str, str] = {}
    """Earlier fields that are not read as such, and what to write today."""
    silent: tuple[str, ...] = ()
    """Fields that nobody reads and that are fine."""
    mistaken: dict[str, str] = {}
    """What fields are called by mistake, though it is no misspelling."""
    instead: str = ""
    """What to do with a field that there is not."""


_NO_SKIP = "steps are no longer skipped: choose with $if or $coalesce where the result is read"
_TO_SCHEMAS = "it is read as schemas.properties.{}: write it there"

_FLOW = _Known(
    "a flow",
    ("name", "description", "version", "schemas", "steps", "output", "test", "examples", "metadata"),
    gone={
        "inputSchema": _TO_SCHEMAS.format("input"),
        "input_schema": _TO_SCHEMAS.format("input"),
        "outputSchema": _TO_SCHEMAS.format("output"),
        "output_schema": _TO_SCHEMAS.format("output"),
        "variables": _TO_SCHEMAS.format("variables"),
    },
)
_STEP = _Known(
    "a step",
    ("id", "component", "onError", "input", "mustExecute", "timeoutSecs", "metadata"),
    renamed={"on_error": "onError", "must_execute": "mustExecute", "timeout_secs": "timeoutSecs"},
    gone={
        "outputSchema": _TO_SCHEMAS.format("steps.properties.<id>"),
        "output_schema": _TO_SCHEMAS.format("steps.properties.<id>"),
        "inputSchema": "the component says what its input is: remove it",
        "input_schema": "the component says what its input is: remove it",
        "skip": _NO_SKIP,
        "skipIf": _NO_SKIP,
        "skip_if": _NO_SKIP,
        "onSkip": _NO_SKIP,
        "on_skip": _NO_SKIP,
    },
)
_ON_ERROR = _Known(
    "onError",
    ("action", "defaultValue", "maxRetries"),
    renamed={"default_value": "defaultValue", "max_retries": "maxRetries"},
    mistaken={
        "default": "defaultValue",
        "value": "defaultValue",
        "maxRetry": "maxRetries",
        "max_retry": "maxRetries",
        "retries": "maxRetries",
    },
)
_ACTIONS = {"fail": "fail", "useDefault": "useDefault", "retry": "retry", "use_default": "useDefault"}
_TEST = _Known(
    "test",
    ("configFile", "config", "cases"),
    renamed={"config_file": "configFile", "stepflow_config": "config", "stepflowConfig": "config"},
    gone={"servers": "start workers from the plugins of config or configFile"},
)
_CASE = _Known("a test case", ("name", "description", "input", "variables", "output"))
_EXAMPLE = _Known("an example", ("name", "description", "input"))
_SCHEMAS = _Known(
    "schemas",
    ("type", "$defs", "properties"),
    silent=("$schema", "title", "description", "required"),
    instead="only its parts are read: properties: {input: …, variables: …, steps: …, output: …}",
)
_STEP_SCHEMAS = _Known(
    "schemas.properties.steps",
    ("type", "properties"),
    silent=_SCHEMAS.silent,
    instead="only the schemas of steps are read, each by its step: properties: {<id>: …}",
)
_SCHEMA_PARTS = _Known("schemas.properties", ("input", "output", "variables", "steps"))

# A field's value and the path that it was found at, which may be an earlier name.
_Fields = dict[str, tuple[Any, JsonPath]]


def shape_flow(value: Any, report: Callable[[Finding], None]) -> Flow:
    """The flow that ``value`` describes.

    What is wrong is reported and read as if it were absent, so that everything that is wrong is found; with a
    fatal finding the flow is good for further checks only.
    """
    return _Shaper(report).flow(value)


def misspelled_step_fields(patch: Mapping[str, Any]) -> list[Finding]:
    """The fields of a part of a step that are all but certainly known ones with a typing error."""
    findings: list[Finding] = []
    _Shaper(findings.append).check_step_fields(dict(patch))
    return [found for found in findings if found.kind is DiagnosticKind.MISSPELLED_FIELD]


class _Shaper:
    def __init__(self, report: Callable[[Finding], None]) -> None:
        self._report = report

    def flow(self, value: Any) -> Flow:
        if not isinstance(value, dict):
            message = "the flow is empty" if value is None else f"a flow is an object, not {json_type(value)}"
            self._found(DiagnosticKind.WRONG_TYPE, message, (), "write at least steps: and output:")
            return Flow()
        raw = cast("dict[str, Any]", value)
        # `schema:` names the format in files of every release.
        fields = self._fields(raw, (), _FLOW, also_fine=("schema",) if _is_text(raw.get("schema")) else ())
        steps, step_schemas = self._steps(fields)
        return Flow(
            name=self._text(fields, "name"),
            description=self._text(fields, "description"),
            version=self._text(fields, "version"),
            schemas=self._schemas(fields, _earlier_schemas(raw), step_schemas),
            steps=steps,
            output=self._expression(fields, "output"),
            test=self._test(fields),
            examples=self._examples(fields),
            metadata=self._object(fields, "metadata") or {},
        )

    def _steps(self, fields: _Fields) -> tuple[tuple[Step, ...], dict[str, Any]]:
        """The steps, and the output schemas that they have in the manner of earlier releases."""
        steps: list[Step] = []
        schemas: dict[str, Any] = {}
        first_with: dict[str, int] = {}
        for item, at in self._items(fields, "steps"):
            if not isinstance(item, dict):
                self._found(DiagnosticKind.WRONG_TYPE, f"a step is an object, not {json_type(item)}", at)
                steps.append(Step(id="", component=""))
                continue
            raw = cast("dict[str, Any]", item)
            step = self._step(raw, at)
            steps.append(step)
            if not step.id:
                continue
            if step.id in first_with:
                earlier = render_path((*at[:-1], first_with[step.id]))
                message = f'the step id "{step.id}" is already that of {earlier}'
                self._found(DiagnosticKind.DUPLICATE_STEP_ID, message, (*at, "id"), data={"step_id": step.id})
            first_with.setdefault(step.id, len(steps) - 1)
            schema = raw.get("outputSchema", raw.get("output_schema"))
            if schema is not None:
                schemas[step.id] = schema
        return tuple(steps), schemas

    def _step(self, raw: dict[str, Any], at: JsonPath) -> Step:
        fields = self._fields(raw, at, _STEP)
        step_id = self._required_text(fields, "id", at, "a step")
        if step_id is not None and not step_id.strip():
            self._found(DiagnosticKind.EMPTY_STEP_ID, "the step's id is empty", (*at, "id"))
        component = self._required_text(fields, "component", at, "a step")
        if component is not None and not component.startswith("/"):
            message = f'"{component}" is not a component\'s path: that starts with "/"'
            hint, data = _slashed(component), {"step_id": step_id or "", "component": component}
            self._found(DiagnosticKind.INVALID_COMPONENT, message, (*at, "component"), hint, data=data)
        return Step(
            id=step_id or "",
            component=component or "",
            input=self._expression(fields, "input"),
            on_error=self._on_error(fields),
            must_execute=self._boolean(fields, "mustExecute"),
            timeout_s=self._timeout_s(fields),
            metadata=self._object(fields, "metadata") or {},
        )

    def check_step_fields(self, raw: dict[str, Any]) -> None:
        """Report the fields that a step, or its ``onError``, does not have."""
        on_error, at = self._fields(raw, (), _STEP).get("onError", (None, ()))
        if isinstance(on_error, dict):
            self._fields(cast("dict[str, Any]", on_error), at, _ON_ERROR)

    def _timeout_s(self, step: _Fields) -> float | None:
        value, at = step.get("timeoutSecs", (None, ()))
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_TIMEOUT_S:
            message = f"timeoutSecs is a number of seconds, more than 0 and at most {MAX_TIMEOUT_S:,}"
            self._found(DiagnosticKind.WRONG_TYPE, message, at)
            return None
        return value

    def _on_error(self, step: _Fields) -> OnError:
        value, at = step.get("onError", (None, ()))
        if value is None:
            return Fail()
        if not isinstance(value, dict):
            message = f"onError is an object, not {json_type(value)}"
            action = f"{{action: {value}}}" if isinstance(value, str) and value in _ACTIONS else "{action: …}"
            self._found(DiagnosticKind.WRONG_TYPE, message, at, f"write onError: {action}")
            return Fail()
        fields = self._fields(cast("dict[str, Any]", value), at, _ON_ERROR)
        action = self._required_text(fields, "action", at, "onError")
        if action is None:
            return Fail()
        if action not in _ACTIONS:
            meant = closest(action, _ACTIONS) or ("useDefault" if action == "skip" else None)
            message = f'onError knows no action "{action}": it is fail, useDefault or retry'
            hint = f'did you mean "{meant}"?' if meant else ""
            self._found(DiagnosticKind.WRONG_TYPE, message, (*at, "action"), hint)
            return Fail()
        if action != _ACTIONS[action]:
            message = f'the action "{action}" is read as "{_ACTIONS[action]}"'
            self._found(DiagnosticKind.OLD_SYNTAX, message, (*at, "action"), f"write {_ACTIONS[action]}")
        match _ACTIONS[action]:
            case "useDefault":
                return UseDefault(fields.get("defaultValue", (None, ()))[0])
            case "retry":
                return self._retry(fields)
            case _:
                return Fail(explicit=True)

    def _retry(self, fields: _Fields) -> Retry:
        value, at = fields.get("maxRetries", (None, ()))
        if value is None:
            return Retry(explicit=False)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_RETRIES:
            message = f"maxRetries is a whole number from 0 to {_MAX_RETRIES:,}"
            self._found(DiagnosticKind.WRONG_TYPE, message, at)
            return Retry(explicit=False)
        return Retry(value)

    def _schemas(
        self, flow: _Fields, earlier: dict[str, Any], step_schemas: dict[str, Any]
    ) -> dict[str, Any] | None:
        parts: dict[str, Any] = dict(earlier)
        steps = dict(step_schemas)
        defs: dict[str, Any] | None = None
        schemas = self._object(flow, "schemas")
        if schemas is not None:
            at = flow["schemas"][1]
            flat = () if isinstance(schemas.get("properties"), dict) else _SCHEMA_PARTS.names
            for name in flat:
                if name in schemas:
                    message = f'"{name}" stands beside, not inside, the properties of schemas'
                    hint = f"write schemas: {{type: object, properties: {{{name}: …}}}}"
                    self._found(DiagnosticKind.WRONG_TYPE, message, (*at, name), hint, at_key=True)
            fields = self._fields(schemas, at, _SCHEMAS, also_fine=(*flat, *_bounds(schemas)))
            defs = self._object(fields, "$defs")
            known = self._object(fields, "properties")
            if known is not None:
                found = self._fields(known, fields["properties"][1], _SCHEMA_PARTS)
                for name in ("input", "output", "variables"):
                    schema = self._schema(found, name)
                    if schema is not None:
                        parts[name] = schema
                steps.update(self._step_schemas(found))
        properties = {name: parts[name] for name in ("input", "output", "variables") if name in parts}
        if steps:
            properties["steps"] = {"type": "object", "properties": steps}
        if not defs and not properties:
            return None
        written: dict[str, Any] = {"type": "object"}
        if defs:
            written["$defs"] = defs
        if properties:
            written["properties"] = properties
        return written

    def _step_schemas(self, parts: _Fields) -> dict[str, Any]:
        steps = self._object(parts, "steps")
        if steps is None:
            return {}
        fields = self._fields(steps, parts["steps"][1], _STEP_SCHEMAS, also_fine=_bounds(steps))
        return self._object(fields, "properties") or {}

    def _schema(self, fields: _Fields, name: str) -> Any:
        value, at = fields.get(name, (None, ()))
        if value is not None and not isinstance(value, (dict, bool)):
            message = f"a schema is an object or a boolean, not {json_type(value)}"
            self._found(DiagnosticKind.WRONG_TYPE, message, at)
            return None
        return cast("Any", value)

    def _test(self, flow: _Fields) -> dict[str, Any] | None:
        test = self._object(flow, "test")
        if test is None:
            return None
        fields = self._fields(test, flow["test"][1], _TEST)
        written: dict[str, Any] = {}
        config_file = self._text(fields, "configFile")
        if config_file is not None:
            written["configFile"] = config_file
        if fields.get("config", (None, ()))[0] is not None:
            written["config"] = fields["config"][0]
        cases = [self._case(item, at) for item, at in self._items(fields, "cases")]
        if cases:
            written["cases"] = cases
            self._check_case_names(cases, fields["cases"][1])
        return written

    def _check_case_names(self, cases: list[dict[str, Any]], at: JsonPath) -> None:
        first_with: dict[str, int] = {}
        for index, case in enumerate(cases):
            name = case.get("name")
            if name in first_with:
                message = f'the name "{name}" is already that of {render_path((*at, first_with[name]))}'
                hint = "give each test case a name of its own"
                self._found(DiagnosticKind.REPEATED_CASE_NAME, message, (*at, index, "name"), hint)
            elif name is not None:
                first_with[name] = index

    def _case(self, item: Any, at: JsonPath) -> dict[str, Any]:
        written, fields = self._named_input(item, at, _CASE)
        # Ours: the public releases run a case without variables.
        variables = self._object(fields, "variables")
        if variables is not None:
            written["variables"] = variables
        output, output_at = fields.get("output", (None, ()))
        if output is not None:
            try:
                written["output"] = flow_result_from_json(output).to_json()
            except RemoteProtocolError as exc:
                hint = "{outcome: success, result: …} or {outcome: failed, error: {code: …, message: …}}"
                self._found(DiagnosticKind.WRONG_TYPE, exc.message, output_at, hint)
        return written

    def _examples(self, flow: _Fields) -> list[dict[str, Any]] | None:
        if flow.get("examples", (None, ()))[0] is None:
            return None
        return [self._named_input(item, at, _EXAMPLE)[0] for item, at in self._items(flow, "examples")]

    def _named_input(self, item: Any, at: JsonPath, known: _Known) -> tuple[dict[str, Any], _Fields]:
        """What test cases and examples have in common: a name, a description and an input."""
        if not isinstance(item, dict):
            self._found(DiagnosticKind.WRONG_TYPE, f"{known.what} is an object, not {json_type(item)}", at)
            return {}, {}
        fields = self._fields(cast("dict[str, Any]", item), at, known)
        written: dict[str, Any] = {}
        name = self._required_text(fields, "name", at, known.what)
        if name is not None:
            written["name"] = name
        description = self._text(fields, "description")
        if description is not None:
            written["description"] = description
        if "input" in fields:
            written["input"] = fields["input"][0]
        else:
            message = f'{known.what} needs an "input"'
            self._found(DiagnosticKind.MISSING_FIELD, message, at, "write input: null for none")
        return written, fields

    def _fields(
        self, raw: dict[str, Any], at: JsonPath, known: _Known, *, also_fine: tuple[str, ...] = ()
    ) -> _Fields:
        """The known fields of an object under their names of today; what else it has is reported."""
        fields: _Fields = {}
        for name, value in raw.items():
            here = (*at, name)
            if name in known.names:
                fields[name] = (value, here)
            elif name in known.renamed:
                today = known.renamed[name]
                message = f'"{name}" is now called "{today}"'
                self._found(DiagnosticKind.OLD_SYNTAX, message, here, f"write {today}", at_key=True)
                if today not in raw:
                    fields[today] = (value, here)
            elif name in known.gone:
                if value is not None:
                    message = f'"{name}" is no longer a field of {known.what}'
                    self._found(DiagnosticKind.OLD_SYNTAX, message, here, known.gone[name], at_key=True)
            elif name not in known.silent and name not in also_fine:
                self._unknown(name, here, known, raw)
        return fields

    def _unknown(self, name: str, at: JsonPath, known: _Known, raw: Mapping[str, Any]) -> None:
        free = [n for n in known.names if n not in raw]
        meant = known.mistaken.get(name)
        if meant not in free:
            meant = closest(name, free)
        if meant is not None:
            message = f'{known.what} has no field "{name}"'
            self._found(DiagnosticKind.MISSPELLED_FIELD, message, at, f'did you mean "{meant}"?', at_key=True)
        else:
            message = f'{known.what} has no field "{name}": it is ignored'
            in_metadata = "keep notes and tools' data in metadata" if "metadata" in known.names else ""
            hint = known.instead or in_metadata
            self._found(DiagnosticKind.UNKNOWN_FIELD, message, at, hint, at_key=True)

    def _text(self, fields: _Fields, name: str) -> str | None:
        value, at = fields.get(name, (None, ()))
        if value is None or isinstance(value, str):
            return value
        is_scalar = isinstance(value, (int, float))
        hint = f'put it in quotes: {name}: "{str(value).lower() if isinstance(value, bool) else value}"'
        message = f"{name} is a string, not {json_type(value)}"
        self._found(DiagnosticKind.WRONG_TYPE, message, at, hint if is_scalar else "")
        return None

    def _required_text(self, fields: _Fields, name: str, at: JsonPath, what: str) -> str | None:
        if fields.get(name, (None, ()))[0] is None:
            self._found(
                DiagnosticKind.MISSING_FIELD,
                f'{what} needs {"an" if name[0] in "aeiou" else "a"} "{name}"',
                at,
            )
            return None
        return self._text(fields, name)

    def _boolean(self, fields: _Fields, name: str) -> bool | None:
        value, at = fields.get(name, (None, ()))
        if value is None or isinstance(value, bool):
            return value
        message = f"{name} is true or false, not {json_type(value)}"
        self._found(DiagnosticKind.WRONG_TYPE, message, at)
        return None

    def _object(self, fields: _Fields, name: str) -> dict[str, Any] | None:
        value, at = fields.get(name, (None, ()))
        if value is None or isinstance(value, dict):
            return cast("dict[str, Any] | None", value)
        self._found(DiagnosticKind.WRONG_TYPE, f"{name} is an object, not {json_type(value)}", at)
        return None

    def _items(self, fields: _Fields, name: str) -> Iterable[tuple[Any, JsonPath]]:
        value, at = fields.get(name, (None, ()))
        if value is None:
            return
        if not isinstance(value, list):
            message = f"{name} is an array, not {json_type(value)}"
            hint = "start every item with a dash" if isinstance(value, dict) else ""
            self._found(DiagnosticKind.WRONG_TYPE, message, at, hint)
            return
        for index, item in enumerate(cast("list[Any]", value)):
            yield item, (*at, index)

    def _expression(self, fields: _Fields, name: str) -> Expression:
        if name not in fields:
            return Constant(None)
        value, at = fields[name]
        return parse_expression(value, self._report, at=at)

    def _found(
        self,
        kind: DiagnosticKind,
        message: str,
        at: JsonPath,
        suggestion: str = "",
        *,
        at_key: bool = False,
        data: dict[str, Any] | None = None,
    ) -> None:
        self._report(Finding(kind, message, at, suggestion, at_key, data or {}))


def _earlier_schemas(raw: dict[str, Any]) -> dict[str, Any]:
    """The schemas that a flow has where earlier releases had them."""
    found: dict[str, Any] = {}
    for part in ("input", "output"):
        schema = raw.get(f"{part}Schema", raw.get(f"{part}_schema"))
        if isinstance(schema, dict):
            found[part] = schema
    if isinstance(raw.get("variables"), dict):
        found["variables"] = raw["variables"]
    return found


def path_as_written(value: Any, path: JsonPath) -> JsonPath:
    """A path into a flow's schemas, or to where ``value`` has that schema in an earlier release's manner."""
    raw = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    match path:
        case ("schemas", "properties", "steps", "properties", step_id, *rest):
            part = path[:5]
            earlier = [
                ("steps", index, name)
                for index, step in enumerate(cast("list[Any]", raw.get("steps") or []))
                if isinstance(step, dict) and cast("dict[str, Any]", step).get("id") == step_id
                for name in ("outputSchema", "output_schema")
            ]
        case ("schemas", "properties", str(name), *rest):
            part = path[:3]
            earlier = [(f"{name}Schema",), (f"{name}_schema",), (name,)]
        case _:
            return path
    if isinstance(resolve(raw, part), NothingThere):
        for its in earlier:
            if not isinstance(resolve(raw, its), NothingThere):
                return (*its, *rest)
    return path


def _bounds(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that are fine in a schema with named parts, as long as they say nothing about further ones."""
    name = "additionalProperties"
    return (name,) if isinstance(schema.get(name), bool) else ()


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _slashed(component: str) -> str:
    if "/" in component:
        return f'write "/{component}"'
    return f'write "/<plugin>/{component}", such as "/builtin/eval"' if component else ""
