"""``--env-variables``: values of a flow's variables from the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from stepflow_trio.cli.exits import Unusable
from stepflow_trio.flows.expressions import VariableRef, walk_expression
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.variables import declared_variables, variable_defaults
from stepflow_trio.protocol import codec

PREFIX = "STEPFLOW_VAR_"


def with_environment(flow: Flow, given: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """``given``, and for each other variable of the flow the value that the environment has.

    The variable's schema names where (``env_var``), else it is ``STEPFLOW_VAR_<NAME>``: the name in capitals,
    with ``_`` for what is no letter or digit. The value counts as JSON if it is any, else as a text; also
    where the schema wants nothing but a text and the JSON is something else.

    Raises:
        Unusable: variables that the flow needs are nowhere; each is named, with both ways to give it.
    """
    declared = declared_variables(flow.schemas) or {}
    found = dict(given)
    missing: list[str] = []
    required = _member(_member(_member(flow.schemas, "properties"), "variables"), "required") or ()
    references, defaults = referenced_variables(flow), variable_defaults(flow.schemas)
    for name in dict.fromkeys([*declared, *references]):
        if name in found:
            continue
        variable = _variable_of(name, declared.get(name))
        if variable in environ:
            found[name] = _value(environ[variable], declared.get(name))
        elif name not in defaults and (name in required or references.get(name)):
            missing.append(
                f"variable {name!r} has no value: set {variable} in the environment, or give it with "
                f"--variables-json '{{\"{name}\": …}}'"
            )
    if missing:
        raise Unusable("; ".join(missing), "--env-variables")
    return found


def referenced_variables(flow: Flow) -> dict[str, bool]:
    """The variables that a flow reads, and whether there is a place where it does so without a default."""
    found: dict[str, bool] = {}
    for expression in (*(step.input for step in flow.steps), flow.output):
        for _, node in walk_expression(expression):
            if isinstance(node, VariableRef):
                found[node.name] = found.get(node.name, False) or node.default is None
    return found


def _variable_of(name: str, declared: Any) -> str:
    named = _member(declared, "env_var")
    if isinstance(named, str) and named:
        return named
    return PREFIX + re.sub(r"[^A-Z0-9]", "_", name.upper())


def _value(text: str, declared: Any) -> Any:
    try:
        value = codec.decode_json(text.encode("utf-8", "surrogateescape"))
    except ValueError:
        return text
    return text if _member(declared, "type") == "string" and not isinstance(value, str) else value


def _member(value: Any, key: str) -> Any:
    return cast("dict[str, Any]", value).get(key) if isinstance(value, dict) else None
