"""The one door to the JSON Schema validator: whatever a schema refers to, nothing is fetched."""

from __future__ import annotations

from typing import Any

__all__ = ["compiled", "schema_fault"]


def compiled(schema: Any) -> Any:
    """A validator of jsonschema-rs for a document, of the draft that its ``$schema`` names.

    Raises `ValueError`, most often jsonschema-rs's own ``ValidationError``, for what is no JSON Schema, and
    for references that lead out of it.
    """
    # Imported here: a flow without schemas does not need it, and a worker reads no flows.
    import jsonschema_rs

    return jsonschema_rs.validator_for(schema, validate_formats=False, retriever=_fetch_nothing)


def schema_fault(schema: Any) -> str:
    """Why a document is no JSON Schema, or the empty string; where its references lead does not matter."""
    try:
        compiled(schema)
    except ValueError as exc:
        kind: Any = getattr(exc, "kind", None)
        if kind is not None and kind.name == "$ref":
            return ""
        return str(exc).partition("\n")[0]
    return ""


def _fetch_nothing(uri: str) -> Any:
    raise ValueError(f"{uri} is not fetched")
