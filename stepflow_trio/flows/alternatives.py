"""What a schema describes, type by type: unions taken apart, conjunctions and references put together.

Every value that is valid by a schema is described by one of its alternatives. The opposite holds for those
that are ``exact``; the others leave out something that the schema demands.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import msgspec

from stepflow_trio.flows.schema_documents import SchemaPool
from stepflow_trio.flows.schema_validator import compiled

__all__ = [
    "ASSERTIONS",
    "Alternative",
    "Conjunction",
    "alternatives",
    "bounds",
    "conjunction",
    "element",
    "length_limits",
    "matches",
    "member",
    "named_members",
    "prefix_length",
    "required_members",
    "types_of",
]

_TYPES: tuple[str, ...] = ("null", "boolean", "number", "string", "array", "object")
_MAX_ALTERNATIVES = 100

_OF_TYPE: dict[str, frozenset[str]] = {
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "string": frozenset({"minLength", "maxLength", "pattern"}),
    "array": frozenset(
        {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains"}
    ),
    "object": frozenset(
        {
            "properties", "required", "additionalProperties", "patternProperties", "propertyNames",
            "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies",
        }
    ),
}  # fmt: skip
"""The keywords that say something of one type only."""

_NOT_FOLLOWED = frozenset(
    {
        "$dynamicRef", "$recursiveRef", "contains", "dependencies", "dependentRequired", "dependentSchemas",
        "else", "if", "maxContains", "minContains", "not", "propertyNames", "then", "unevaluatedItems",
        "unevaluatedProperties",
    }
)  # fmt: skip
"""What narrows a schema in ways that its alternatives do not show."""

_COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf"})
_OF_ANY_TYPE = frozenset({"type", "enum", "const"})
_OF_PARTS = _OF_TYPE["array"] | _OF_TYPE["object"]
_LOOKED_INTO = _COMBINING | _NOT_FOLLOWED | _OF_PARTS
_FACTS: frozenset[str] = _NOT_FOLLOWED | _OF_ANY_TYPE | _OF_PARTS | _OF_TYPE["number"] | _OF_TYPE["string"]
ASSERTIONS: frozenset[str] = _COMBINING | _FACTS
"""Every keyword that can make a value invalid. Others, ``format`` and unknown ones included, are remarks."""


class Alternative(msgspec.Struct, frozen=True, eq=False):
    """Values of one type, or a few values."""

    type: str
    """A type of JSON Schema; ``integer`` stands beside ``number``."""
    facts: tuple[dict[str, Any], ...] = ()
    """Schemas without combining keywords, all of which hold."""
    values: tuple[Any, ...] | None = None
    """Where there are only a few values of the type, or the schema lists some: all of them."""
    is_described: bool = True
    """Whether the schema says anything of this type, or just does not rule it out."""
    is_exact: bool = True
    rivals: tuple[Any, ...] = ()
    """The other forms of a ``oneOf``: what fits one of them is no value of this alternative."""


class Conjunction(dict[str, Any]):
    """``{"allOf": […]}``, made here of schemas that stand elsewhere."""


def conjunction(schemas: Iterable[Any]) -> Any:
    """The schema of values that fit all of ``schemas``."""
    needed = list({id(s): s for s in schemas if s is not True and s != {}}.values())
    if any(s is False for s in needed):
        return False
    return Conjunction(allOf=needed) if len(needed) > 1 else needed[0] if needed else True


class _Open:
    """An alternative that is being made."""

    __slots__ = ("choices", "facts", "is_exact", "pending", "refs", "rivals")

    def __init__(self, pending: list[Any]) -> None:
        self.pending = pending
        self.facts: list[dict[str, Any]] = []
        self.choices: list[tuple[str, list[Any]]] = []
        self.rivals: tuple[Any, ...] = ()
        self.refs: frozenset[str] = frozenset()
        self.is_exact = True

    def taking(self, option: Any, rivals: Sequence[Any]) -> _Open:
        fork = _Open([option])
        fork.facts, fork.choices = list(self.facts), list(self.choices)
        fork.refs, fork.is_exact = self.refs, self.is_exact
        fork.rivals = (*self.rivals, *rivals)
        return fork


def alternatives(schema: Any, pool: SchemaPool) -> list[Alternative] | None:
    """The alternatives of a gathered schema: none where no value fits; None where there are too many.

    A reference that leads nowhere may stand for anything.
    """
    found: list[Alternative] = []
    forks = [_Open([schema])]
    made = 0
    while forks:
        made += 1
        if made > _MAX_ALTERNATIVES or len(found) > _MAX_ALTERNATIVES:
            return None
        fork = forks.pop()
        if not _settle(fork, pool):
            continue
        if fork.choices:
            keyword, options = fork.choices.pop()
            for index, option in reversed(list(enumerate(options))):
                others = options[:index] + options[index + 1 :] if keyword == "oneOf" else []
                forks.append(fork.taking(option, others))
        else:
            found.extend(_by_type(fork))
    return found


def _settle(fork: _Open, pool: SchemaPool) -> bool:
    """Take in all that is pending; False where nothing fits it."""
    while fork.pending:
        schema = fork.pending.pop()
        if schema is False:
            return False
        if not isinstance(schema, dict):
            fork.is_exact = fork.is_exact and schema is True
            continue
        keywords = cast("dict[str, Any]", schema)
        if not _NOT_FOLLOWED.isdisjoint(keywords):
            fork.is_exact = False
        ref: object = keywords.get("$ref")
        if isinstance(ref, str):
            target = pool.target(ref)
            if target is None or ref in fork.refs:
                fork.is_exact = False
            else:
                fork.refs |= {ref}
                fork.pending.append(target)
        for keyword in ("allOf", "anyOf", "oneOf"):
            members: object = keywords.get(keyword)
            if isinstance(members, list):
                schemas = cast("list[Any]", members)
                if keyword == "allOf":
                    fork.pending.extend(schemas)
                else:
                    fork.choices.append((keyword, schemas))
        if not _FACTS.isdisjoint(keywords):
            fork.facts.append(keywords)
    return True


def _by_type(fork: _Open) -> Iterator[Alternative]:
    facts = tuple(fork.facts)
    listed = _listed_values(facts)
    # Of a list, the members of arrays and objects are not looked into.
    is_exact = fork.is_exact and (listed is None or all(_OF_PARTS.isdisjoint(fact) for fact in facts))
    states_type = listed is not None or any("type" in fact for fact in facts)
    for type_ in _intersection(types_of(fact) for fact in facts):
        values: tuple[Any, ...] | None = {"null": (None,), "boolean": (True, False)}.get(type_)
        if listed is not None:
            values = tuple(value for value in listed if type_ in _types_of_value(value))
            if not values:
                continue
        relevant = _OF_TYPE.get("number" if type_ == "integer" else type_, frozenset())
        is_described = states_type or any(not relevant.isdisjoint(fact) for fact in facts)
        yield Alternative(type_, facts, values, is_described, is_exact, fork.rivals)


def types_of(fact: dict[str, Any]) -> list[str]:
    """The types that a schema's ``type`` allows: all of them where it has none."""
    stated: object = fact.get("type")
    if isinstance(stated, str):
        return [stated]
    if isinstance(stated, list):
        return [name for name in cast("list[object]", stated) if isinstance(name, str)]
    return list(_TYPES)


def _intersection(allowed: Iterable[Sequence[str]]) -> list[str]:
    kept = list(_TYPES)
    for types in allowed:
        both: list[str] = []
        for left, right in itertools.product(kept, types):
            if left == right or (left == "number" and right == "integer"):
                both.append(right)
            elif left == "integer" and right == "number":
                both.append(left)
        kept = list(dict.fromkeys(both))
        if "number" in kept and "integer" in kept:
            kept.remove("integer")
    return kept


def _listed_values(facts: Sequence[dict[str, Any]]) -> list[Any] | None:
    """The values that the shortest list among ``facts`` leaves; None where there is none."""
    lists: list[list[Any]] = []
    for fact in facts:
        if "const" in fact:
            lists.append([fact["const"]])
        options: object = fact.get("enum")
        if isinstance(options, list):
            lists.append(cast("list[Any]", options))
    if not lists:
        return None
    shortest = min(lists, key=len)
    checks = [_validator({k: v for k, v in fact.items() if k not in _LOOKED_INTO}) for fact in facts]
    return [value for value in shortest if all(check is None or check.is_valid(value) for check in checks)]


def _validator(schema: dict[str, Any]) -> Any:
    try:
        return compiled(schema)
    except ValueError:
        return None


def _types_of_value(value: Any) -> tuple[str, ...]:
    match value:
        case None:
            return ("null",)
        case bool():
            return ("boolean",)
        case int():
            return ("integer", "number")
        case float():
            return ("integer", "number") if value.is_integer() else ("number",)
        case str():
            return ("string",)
        case list():
            return ("array",)
        case _:
            return ("object",)


# ---- what the facts of an alternative come to --------------------------------------------------------


def bounds(facts: Iterable[dict[str, Any]], *, whole: bool) -> tuple[tuple[float, int], tuple[float, int]]:
    """The least and the greatest number, each with 1 or −1 where it is itself excluded."""
    lower: tuple[float, int] = (-math.inf, 0)
    upper: tuple[float, int] = (math.inf, 0)
    for fact in facts:
        least, above = _number(fact.get("minimum")), _number(fact.get("exclusiveMinimum"))
        most, below = _number(fact.get("maximum")), _number(fact.get("exclusiveMaximum"))
        if least is not None:
            lower = max(lower, (math.ceil(least) if whole else least, 0))
        if above is not None:
            lower = max(lower, (math.floor(above) + 1, 0) if whole else (above, 1))
        if most is not None:
            upper = min(upper, (math.floor(most) if whole else most, 0))
        if below is not None:
            upper = min(upper, (math.ceil(below) - 1, 0) if whole else (below, -1))
    return lower, upper


def length_limits(facts: Iterable[dict[str, Any]], what: str) -> tuple[float, float]:
    """The least and the greatest of ``minLength`` and ``maxLength``, or what else is counted."""
    least, most = 0.0, math.inf
    for fact in facts:
        least = max(least, _number(fact.get(f"min{what}")) or 0)
        limit = _number(fact.get(f"max{what}"))
        most = most if limit is None else min(most, limit)
    return least, most


def _number(value: object) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def prefix_length(facts: Iterable[dict[str, Any]]) -> int:
    """How many of an array's first elements have schemas of their own."""
    return max((len(_prefix(fact)) for fact in facts), default=0)


def element(facts: Iterable[dict[str, Any]], index: int) -> Any:
    """The schema of an array's element."""
    schemas: list[Any] = []
    for fact in facts:
        prefix = _prefix(fact)
        if index < len(prefix):
            schemas.append(prefix[index])
        elif isinstance(fact.get("items"), list):
            schemas.append(fact.get("additionalItems", True))
        else:
            schemas.append(fact.get("items", True))
    return conjunction(schemas)


def _prefix(fact: dict[str, Any]) -> list[Any]:
    """The schemas of the first elements; until draft 2019-09, ``items`` held them."""
    for keyword in ("prefixItems", "items"):
        schemas: object = fact.get(keyword)
        if isinstance(schemas, list):
            return cast("list[Any]", schemas)
    return []


def required_members(facts: Iterable[dict[str, Any]]) -> list[str]:
    """The names of the members that an object must have."""
    names: dict[str, None] = {}
    for fact in facts:
        required: object = fact.get("required")
        if isinstance(required, list):
            names.update((name, None) for name in cast("list[object]", required) if isinstance(name, str))
    return list(names)


def member(facts: Iterable[dict[str, Any]], name: str | None) -> tuple[Any, bool]:
    """The schema of an object's member, and whether it is mentioned: by name, pattern, or as one of the rest.

    None stands for a member that no fact names and no pattern fits.
    """
    schemas: list[Any] = []
    is_mentioned = False
    for fact in facts:
        own: list[Any] = []
        properties: object = fact.get("properties")
        if name is not None and isinstance(properties, dict) and name in properties:
            own.append(cast("dict[str, Any]", properties)[name])
        patterns: object = fact.get("patternProperties")
        if name is not None and isinstance(patterns, dict):
            named = cast("dict[str, Any]", patterns).items()
            own += [schema for pattern, schema in named if matches(pattern, name)]
        if not own and "additionalProperties" in fact:
            own.append(fact["additionalProperties"])
        is_mentioned = is_mentioned or bool(own)
        schemas += own
    return conjunction(schemas), is_mentioned


def named_members(facts: Iterable[dict[str, Any]]) -> list[str]:
    """The names of the members that are described one by one."""
    names: dict[str, None] = {}
    for fact in facts:
        properties: object = fact.get("properties")
        if isinstance(properties, dict):
            names.update(dict.fromkeys(cast("dict[str, Any]", properties)))
    return list(names)


@functools.lru_cache(maxsize=1000)
def matches(pattern: str, text: str) -> bool:
    """Whether a pattern of a schema is found in a text; one that is none is found nowhere."""
    check = _validator({"pattern": pattern})
    return check is not None and check.is_valid(text)
