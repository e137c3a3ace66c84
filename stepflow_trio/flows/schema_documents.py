"""Schemas and what they refer to, gathered from several documents into one set of definitions.

A ``$ref`` is followed within the document that holds it, as ``#`` and ``#/…``. The schemas of a flow are
documents of their own inside a larger one: what such a part does not hold itself is looked up in the flow's
``schemas``, which every part can also name outright, as ``#/schemas/$defs/…``. Nothing is ever fetched.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec

from stepflow_trio.flows.paths import JsonPath

__all__ = ["DEFINITIONS", "SchemaDocument", "SchemaPool", "flow_part", "flow_parts", "subschemas"]

DEFINITIONS = "#/$defs/"
"""How a gathered schema refers to a definition of its pool; the name follows."""

_ONE_SCHEMA = frozenset(
    {
        "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames",
        "then", "unevaluatedItems", "unevaluatedProperties",
    }
)  # fmt: skip
_SCHEMA_LISTS = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_SCHEMA_MAPS = frozenset({"dependencies", "dependentSchemas", "patternProperties", "properties"})
_LEFT_OUT = frozenset({"$anchor", "$defs", "$dynamicAnchor", "$id", "$schema", "definitions", "id"})
"""What names a schema or holds others: it would have another meaning in another place."""

_REF_STANDS_ALONE = ("draft-03", "draft-04", "draft-06", "draft-07")
"""The drafts in which a ``$ref`` hides the keywords beside it."""

_PERCENT_ENCODED = re.compile(r"(?:%[0-9a-fA-F]{2})+")
_MISSING: Any = object()


class SchemaDocument(msgspec.Struct, frozen=True, eq=False):
    """A schema that ``#`` stands for in the references inside it."""

    root: Any
    at: JsonPath = ()
    """Where it is in the flow; nothing where it is not from a flow."""
    outer: SchemaDocument | None = None
    """The flow's ``schemas``, for a part of them."""

    def find(self, ref: str) -> tuple[SchemaDocument, JsonPath, Any] | None:
        """The document that holds what ``ref`` names, the path in it, and the schema, if there is one."""
        flow_schemas = self.outer or self
        tries = [(self, "#"), (flow_schemas, "#")]
        if flow_schemas.at:
            tries.insert(0, (flow_schemas, "#/schemas"))
        for document, prefix in tries:
            rest = ref.removeprefix(prefix)
            if rest != ref and rest[:1] in ("", "/"):
                path, found = _at_pointer(document.root, rest)
                if isinstance(found, (dict, bool)):
                    return document, path, cast("Any", found)
        return None


class SchemaPool:
    """Schemas whose references all name definitions of this pool, whichever documents they came from.

    The documents are not changed, and must not be while the pool is in use.
    """

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        """What is referred to, by name."""
        self.places: dict[str, JsonPath] = {}
        """Where in the flow each of them is."""
        self.unresolved: list[tuple[JsonPath, str]] = []
        """References that lead nowhere, each with its place. They are left as they are."""
        self._names: dict[tuple[int, JsonPath], str] = {}
        self._documents: list[SchemaDocument] = []  # kept, so that their ids stay theirs
        self._named_only: deque[tuple[str, SchemaDocument, JsonPath, Any]] = deque()

    def gather(self, document: SchemaDocument) -> Any:
        """The document's root, with everything that it refers to in the pool's definitions."""
        written = self._rewritten(document.root, document, document.at)
        # A queue, not recursion: a chain of definitions can be any length.
        while self._named_only:
            name, holder, at, schema = self._named_only.popleft()
            self.definitions[name] = self._rewritten(schema, holder, at)
        return written

    def target(self, ref: object) -> Any:
        """The definition that a gathered schema refers to; None where the reference leads nowhere."""
        return self.definitions.get(ref.removeprefix(DEFINITIONS)) if isinstance(ref, str) else None

    def standing_alone(self, schema: Any) -> Any:
        """A gathered schema as a document of its own, with the definitions that it needs."""
        needed: dict[str, Any] = {}
        pending = [schema]
        while pending:
            for _, part in _with_subschemas(pending.pop()):
                ref: object = part.get("$ref")
                name = ref.removeprefix(DEFINITIONS) if isinstance(ref, str) else ""
                if name in self.definitions and name not in needed:
                    needed[name] = self.definitions[name]
                    pending.append(needed[name])
        return {**cast("dict[str, Any]", schema), "$defs": needed} if needed else schema

    def place_of(self, pointer: JsonPath, at: JsonPath) -> JsonPath:
        """Where in the flow is what a validator found at ``pointer`` in a schema that is at ``at``."""
        if len(pointer) >= 2 and pointer[0] == "$defs" and isinstance(pointer[1], str):
            return (*self.places.get(pointer[1], ()), *pointer[2:])
        return (*at, *pointer)

    def _rewritten(self, schema: Any, document: SchemaDocument, at: JsonPath) -> Any:
        if not isinstance(schema, dict):
            return schema
        fields = cast("dict[str, Any]", schema)
        ref: object = fields.get("$ref")
        if isinstance(ref, str) and _hides_siblings(document):
            return {"$ref": self._named(ref, document, at)}
        written: dict[str, Any] = {}
        for keyword, value in fields.items():
            if keyword in _LEFT_OUT:
                continue
            if keyword == "$ref" and isinstance(value, str):
                written[keyword] = self._named(value, document, at)
            elif keyword in _SCHEMA_LISTS and isinstance(value, list):
                items = enumerate(cast("list[Any]", value))
                written[keyword] = [self._rewritten(x, document, (*at, keyword, i)) for i, x in items]
            elif keyword in _SCHEMA_MAPS and isinstance(value, dict):
                members = cast("dict[str, Any]", value).items()
                written[keyword] = {k: self._rewritten(x, document, (*at, keyword, k)) for k, x in members}
            elif keyword in _ONE_SCHEMA:
                written[keyword] = self._rewritten(value, document, (*at, keyword))
            else:
                written[keyword] = value
        return written

    def _named(self, ref: str, document: SchemaDocument, at: JsonPath) -> str:
        """The reference within the pool that means what ``ref`` does in its document."""
        found = document.find(ref)
        if found is None:
            self.unresolved.append(((*at, "$ref"), ref))
            return ref
        holder, path, schema = found
        known = self._names.get((id(holder.root), path))
        if known is not None:
            return DEFINITIONS + known
        name = self._free_name(path, schema)
        place = (*holder.at, *path)
        self._documents.append(holder)
        self._names[id(holder.root), path] = name
        self.definitions[name] = True  # taken, until it is gathered
        self.places[name] = place
        self._named_only.append((name, holder, place, schema))
        return DEFINITIONS + name

    def _free_name(self, path: JsonPath, schema: Any) -> str:
        title: object = cast("dict[str, Any]", schema).get("title") if isinstance(schema, dict) else None
        # Plain enough to stand in a pointer as it is.
        stem = str(path[-1] if path else title or "Root")
        stem = "".join(c if c.isalnum() and c.isascii() else "_" for c in stem) or "_"
        name, number = stem, 1
        while name in self.definitions:
            number += 1
            name = f"{stem}-{number}"
        return name


def flow_part(schemas: Mapping[str, Any] | None, name: str) -> SchemaDocument | None:
    """The schema of a flow's ``input``, ``output`` or ``variables``; None where the flow has none."""
    properties: object = (schemas or {}).get("properties")
    part: object = cast("dict[str, Any]", properties).get(name) if isinstance(properties, dict) else None
    if part is None:
        return None
    return SchemaDocument(part, ("schemas", "properties", name), SchemaDocument(schemas, ("schemas",)))


def flow_parts(schemas: Mapping[str, Any] | None) -> Iterator[tuple[str, SchemaDocument]]:
    """Every schema of a flow: ``input``, ``output``, ``variables``, and each step's as ``steps.<id>``."""
    for name in ("input", "output", "variables"):
        part = flow_part(schemas, name)
        if part is not None:
            yield name, part
    steps = flow_part(schemas, "steps")
    for_steps: object = steps.root.get("properties") if steps is not None else None
    if steps is not None and isinstance(for_steps, dict):
        for step_id, schema in cast("dict[str, Any]", for_steps).items():
            if schema is not None:
                yield (
                    f"steps.{step_id}",
                    SchemaDocument(schema, (*steps.at, "properties", step_id), steps.outer),
                )


def subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[JsonPath, Any]]:
    """The schemas directly inside a schema, each with its path; definitions are not among them."""
    for keyword, value in schema.items():
        if keyword in _SCHEMA_LISTS and isinstance(value, list):
            yield from (((keyword, i), x) for i, x in enumerate(cast("list[Any]", value)))
        elif keyword in _SCHEMA_MAPS and isinstance(value, dict):
            yield from (((keyword, k), x) for k, x in cast("dict[str, Any]", value).items())
        elif keyword in _ONE_SCHEMA:
            yield (keyword,), value


def _with_subschemas(schema: Any) -> Iterator[tuple[JsonPath, dict[str, Any]]]:
    pending: list[tuple[JsonPath, Any]] = [((), schema)]
    while pending:
        path, part = pending.pop()
        if isinstance(part, dict):
            fields = cast("dict[str, Any]", part)
            yield path, fields
            pending.extend(((*path, *inner), x) for inner, x in subschemas(fields))


def _hides_siblings(document: SchemaDocument) -> bool:
    root: object = document.root
    draft: object = cast("dict[str, Any]", root).get("$schema") if isinstance(root, dict) else None
    return isinstance(draft, str) and any(old in draft for old in _REF_STANDS_ALONE)


def _at_pointer(value: Any, pointer: str) -> tuple[JsonPath, Any]:
    """What a JSON pointer, as a URI fragment writes it, leads to, and the same as a path."""
    path: list[str | int] = []
    for token in pointer.split("/")[1:]:
        name = _PERCENT_ENCODED.sub(_decoded, token).replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            path.append(name)
            value = cast("dict[str, Any]", value).get(name, _MISSING)
        elif isinstance(value, list) and name.isascii() and name.isdecimal() and len(name) < 10:
            path.append(int(name))
            items = cast("list[Any]", value)
            value = items[int(name)] if int(name) < len(items) else _MISSING
        else:
            return (), _MISSING
    return tuple(path), value


def _decoded(encoded: re.Match[str]) -> str:
    return bytes.fromhex(encoded[0].replace("%", "")).decode("utf-8", "replace")
