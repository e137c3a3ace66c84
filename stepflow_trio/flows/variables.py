"""What a flow's ``schemas.properties.variables`` says about its variables."""

from __future__ import annotations

from typing import Any, cast

__all__ = ["declared_variables", "variable_defaults"]

_IMPLICIT_DEFAULTS: dict[str, Any] = {"string": "", "number": 0, "integer": 0, "boolean": False}
"""What a variable that is not required is, by its type, where neither run nor schema gives a value."""


def declared_variables(schemas: dict[str, Any] | None) -> dict[str, Any] | None:
    """Each declared variable with its schema; None where the flow has no variables' schema."""
    schema = _object(_object(schemas).get("properties")).get("variables")
    return _object(_object(schema).get("properties")) if schema is not None else None


def variable_defaults(schemas: dict[str, Any] | None) -> dict[str, Any]:
    """The value of each variable that a run does not set: its ``default``, else its type's implicit one.

    A variable that is ``required``, or whose type has no implicit default, has no entry.
    """
    schema = _object(_object(_object(schemas).get("properties")).get("variables"))
    listed: object = schema.get("required")
    required = cast("list[object]", listed) if isinstance(listed, list) else []
    defaults: dict[str, Any] = {}
    for name, declared in _object(schema.get("properties")).items():
        variable = _object(declared)
        kind: object = variable.get("type")
        if "default" in variable:
            defaults[name] = variable["default"]
        elif name in required:
            continue
        elif isinstance(kind, list) and "null" in kind:
            defaults[name] = None
        elif isinstance(kind, str) and kind in _IMPLICIT_DEFAULTS:
            defaults[name] = _IMPLICIT_DEFAULTS[kind]
    return defaults


def _object(value: object) -> dict[str, Any]:
    """``value`` where it is an object, else an empty one: schemas are read leniently."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
