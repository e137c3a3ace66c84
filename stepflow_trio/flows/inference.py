"""The schemas that a flow does not declare, as they follow from its components and expressions.

A step's schema is its component's, the output's that of its expression. The input's is what the components
demand of the places where they are given a part of it; where two demand what no value can be, that is a
conflict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from stepflow_trio.flows.alternatives import alternatives, conjunction, element, member
from stepflow_trio.flows.diagnostics import DiagnosticKind, Finding
from stepflow_trio.flows.expressions import (
    ArrayOf,
    Coalesce,
    Expression,
    If,
    InputRef,
    ObjectOf,
    VariableRef,
)
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.paths import JsonPath, render_path
from stepflow_trio.flows.schema_documents import DEFINITIONS, SchemaPool, flow_part, subschemas
from stepflow_trio.flows.subtyping import Verdict, subtype
from stepflow_trio.flows.type_check import TypeCheck
from stepflow_trio.flows.types import ANYTHING, shown, union, widened

__all__ = ["Inference", "infer_schemas"]

_NULL: dict[str, Any] = {"type": "null"}
_MAX_ELEMENTS = 1000
"""A path to an element further on says nothing of those before it."""


class Inference(msgspec.Struct, frozen=True):
    """What `infer_schemas` comes to."""

    schemas: dict[str, Any] | None
    """The flow's ``schemas``, completed; what it declares stays as it is. None where nothing is known."""
    conflicts: tuple[Finding, ...] = ()
    """Parts of the input of which different steps demand what no value can be."""


def infer_schemas(flow: Flow, types: TypeCheck) -> Inference:
    """Complete the schemas of a flow with the types that were found for it."""
    writer = _Writer(flow, types.pool)
    conflicts: list[Finding] = []
    if flow_part(flow.schemas, "input") is None:
        demands = _Demands(types.pool)
        for position, step in enumerate(flow.steps):
            demands.collect(step.input, types.steps[step.id].taken, ("steps", position, "input"), step.id)
        declared = writer.gathered("output")
        demands.collect(flow.output, declared, ("output",), "")
        if demands.root.is_read:
            writer.add("input", demands.schema(demands.root, (), conflicts))
    if flow_part(flow.schemas, "output") is None:
        writer.add("output", widened(types.output))
    for step_id, step in types.steps.items():
        if step.declared is None and step.offered is not None:
            writer.add_step(step_id, step.offered)
    return Inference(writer.schemas(), tuple(conflicts))


# ---- what is demanded of the input ------------------------------------------------------------------


class _Demand(msgspec.Struct, frozen=True):
    """What one place in the flow demands of what it reads."""

    schema: Any
    step_id: str
    """Empty for the output."""
    at: JsonPath


class _Node:
    """A part of the input: what is demanded of it, and of its own parts."""

    __slots__ = ("demands", "is_needed", "is_read", "parts")

    def __init__(self) -> None:
        self.demands: list[_Demand] = []
        self.parts: dict[str | int, _Node] = {}
        self.is_needed = False
        """Whether some expression that is always evaluated reads it."""
        self.is_read = False


class _Demands:
    def __init__(self, pool: SchemaPool) -> None:
        self._pool = pool
        self.root = _Node()

    def collect(
        self, expression: Expression, demanded: Any, at: JsonPath, step_id: str, *, always: bool = True
    ) -> None:
        """Note what an expression reads of the input, and what is demanded of it there."""
        match expression:
            case InputRef(path=path):
                self._note(path, _Demand(demanded, step_id, (*at, "$input")), is_needed=always)
            case ArrayOf(items=items):
                for index, item in enumerate(items):
                    self.collect(item, self._part(demanded, index), (*at, index), step_id, always=always)
            case ObjectOf(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    self.collect(value, self._part(demanded, key), (*at, key), step_id, always=always)
            case If(condition=condition, then=then, otherwise=otherwise):
                self.collect(condition, ANYTHING, (*at, "$if"), step_id, always=False)
                self.collect(then, demanded, (*at, "then"), step_id, always=False)
                if otherwise is not None:
                    self.collect(otherwise, demanded, (*at, "else"), step_id, always=False)
            case Coalesce(items=items):
                for index, item in enumerate(items):
                    # All but the last may be null; a part that is missing fails the first of them.
                    its = demanded if index == len(items) - 1 else union([demanded, _NULL])
                    where = (*at, "$coalesce", index)
                    self.collect(item, its, where, step_id, always=always and index == 0)
            case VariableRef(default=default) if default is not None:
                self.collect(default, demanded, (*at, "default"), step_id, always=False)
            case _:
                pass

    def _part(self, demanded: Any, key: str | int) -> Any:
        """What is demanded of a member or an element."""
        found = alternatives(demanded, self._pool)
        if found is None:
            return ANYTHING
        wanted = "array" if isinstance(key, int) else "object"
        parts = [
            element(each.facts, key) if isinstance(key, int) else member(each.facts, key)[0]
            for each in found
            if each.type == wanted and each.values is None
        ]
        return union(parts) if parts else ANYTHING

    def _note(self, path: JsonPath, demand: _Demand, *, is_needed: bool) -> None:
        node = self.root
        for key in (None, *path):
            if key is not None:
                if isinstance(key, int) and key >= _MAX_ELEMENTS:
                    return
                node = node.parts.setdefault(key, _Node())
            node.is_read = True
            node.is_needed = node.is_needed or is_needed
        if demand.schema is not False:
            node.demands.append(demand)

    def schema(self, node: _Node, path: JsonPath, conflicts: list[Finding]) -> Any:
        """What all demands on a part of the input come to."""
        demands = [demand for demand in node.demands if demand.schema is not ANYTHING and demand.schema != {}]
        kept: list[_Demand] = []
        for demand in demands:
            if any(subtype(other.schema, demand.schema, self._pool).verdict is Verdict.YES for other in kept):
                continue
            clash = next((k for k in kept if self._is_impossible(k.schema, demand.schema)), None)
            if clash is not None:
                conflicts.append(_conflict(path, clash, demand))
                continue
            kept = [
                k for k in kept if subtype(demand.schema, k.schema, self._pool).verdict is not Verdict.YES
            ]
            kept.append(demand)
        schemas = [demand.schema for demand in kept]
        of_parts = self._of_parts(node, path, conflicts)
        if of_parts is not None and not any(
            subtype(schema, of_parts, self._pool).verdict is Verdict.YES for schema in schemas
        ):
            schemas.append(of_parts)
        return conjunction(schemas)

    def _of_parts(self, node: _Node, path: JsonPath, conflicts: list[Finding]) -> Any:
        names = [key for key in node.parts if isinstance(key, str)]
        if names:
            members: dict[str, Any] = {}
            for name in names:
                schema = self.schema(node.parts[name], (*path, name), conflicts)
                members[name] = {} if schema is ANYTHING else schema
            needed = [name for name in names if node.parts[name].is_needed]
            of_members: dict[str, Any] = {"type": "object", "properties": members}
            return {**of_members, "required": needed} if needed else of_members
        if not node.parts:
            return None
        indices = [key for key in node.parts if isinstance(key, int)]
        elements: list[Any] = [{}] * (max(indices) + 1)
        for index in indices:
            schema = self.schema(node.parts[index], (*path, index), conflicts)
            elements[index] = {} if schema is ANYTHING else schema
        least = max((index + 1 for index in indices if node.parts[index].is_needed), default=0)
        return {"type": "array", "prefixItems": elements, **({"minItems": least} if least else {})}

    def _is_impossible(self, one: Any, other: Any) -> bool:
        return subtype(one, other, self._pool).is_disjoint or subtype(other, one, self._pool).is_disjoint


def _conflict(path: JsonPath, one: _Demand, other: _Demand) -> Finding:
    def who(demand: _Demand) -> str:
        return f'step "{demand.step_id}"' if demand.step_id else "the output"

    where = "the input" if not path else f"{render_path(path)} of the input"
    message = (
        f"{who(other)} demands {shown(other.schema)} of {where}, {who(one)} {shown(one.schema)}: "
        "no value is both"
    )
    data = {
        "step_id": other.step_id,
        "expected": shown(one.schema),
        "actual": shown(other.schema),
        "detail": f"{who(one)} and {who(other)} read {render_path(path)} of the input",
    }
    return Finding(DiagnosticKind.TYPE_MISMATCH, message, other.at, "", data=data)


# ---- writing schemas into a flow --------------------------------------------------------------------


class _Writer:
    """Puts gathered schemas into a flow's, with the definitions that they need."""

    def __init__(self, flow: Flow, pool: SchemaPool) -> None:
        self._pool = pool
        self._flow = flow
        schemas: Mapping[str, Any] = flow.schemas or {}
        self._definitions = dict(_object(schemas.get("$defs")))
        self._properties = dict(_object(schemas.get("properties")))
        self._steps = dict(_object(_object(self._properties.get("steps")).get("properties")))
        self._names: dict[str, str] = {}
        self._named_only: list[str] = []

    def gathered(self, name: str) -> Any:
        document = flow_part(self._flow.schemas, name)
        return self._pool.gather(document) if document is not None else ANYTHING

    def add(self, name: str, schema: Any) -> None:
        if _says_something(schema):
            self._properties[name] = self._written(schema)

    def add_step(self, step_id: str, schema: Any) -> None:
        if _says_something(schema):
            self._steps[step_id] = self._written(schema)

    def schemas(self) -> dict[str, Any] | None:
        while self._named_only:
            name = self._named_only.pop()
            self._definitions[self._names[name]] = self._written(self._pool.definitions[name])
        order = ("input", "output", "variables")
        properties = {name: self._properties[name] for name in order if name in self._properties}
        if self._steps:
            properties["steps"] = {"type": "object", "properties": self._steps}
        if not properties and not self._definitions:
            return None
        written: dict[str, Any] = {"type": "object"}
        if self._definitions:
            written["$defs"] = self._definitions
        if properties:
            written["properties"] = properties
        return written

    def _written(self, schema: Any) -> Any:
        """A copy whose references name definitions of the flow."""
        if not isinstance(schema, dict):
            return schema
        written = cast("dict[str, Any]", json.loads(json.dumps(schema)))
        pending = [written]
        while pending:
            part = pending.pop()
            ref: object = part.get("$ref")
            name = ref.removeprefix(DEFINITIONS) if isinstance(ref, str) else ""
            if name in self._pool.definitions:
                part["$ref"] = self._reference(name)
            inner = [cast("dict[str, Any]", s) for _, s in subschemas(part) if isinstance(s, dict)]
            pending.extend(inner)
        return written

    def _reference(self, name: str) -> str:
        place = self._pool.places.get(name, ())
        if place[:1] == ("schemas",):
            # It is the flow's own.
            return "#/" + "/".join(str(key).replace("~", "~0").replace("/", "~1") for key in place)
        if name not in self._names:
            number, free = 1, name
            while free in self._definitions:
                number += 1
                free = f"{name}-{number}"
            self._names[name] = free
            self._definitions[free] = True  # taken, until it is written
            self._named_only.append(name)
        return f"#/schemas/$defs/{self._names[name]}"


def _says_something(schema: Any) -> bool:
    return isinstance(schema, dict) and bool(cast("dict[str, Any]", schema))


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
