"""Whether every value of one schema fits another: structural subtyping on JSON Schema, in three values.

``YES`` is a proof: whatever is valid by the one is valid by the other. ``NO`` means that the one describes
values that do not fit: of another type, without a required member, with a member that may not be there or
does not fit in turn. What neither is proven nor described is ``INDETERMINATE``:

* what a schema says nothing about, such as the members of ``{"type": "object"}``;
* a member that is described and not required, where it is required: components often leave no such member
  out, and their schemas do not say so;
* what depends on single values: lengths, ranges, patterns, and lists of values. It is ``NO`` only where no
  value can fit, or a listed one does not.

An integer is a number. Recursive schemas are compared as far as they are unrolled by what they describe.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec

from stepflow_trio.flows.alternatives import (
    ASSERTIONS,
    Alternative,
    Conjunction,
    alternatives,
    bounds,
    element,
    length_limits,
    member,
    named_members,
    prefix_length,
    required_members,
    types_of,
)
from stepflow_trio.flows.fits import (
    ALL_FIT,
    MAX_PROBLEMS,
    Fit,
    Fits,
    Problem,
    as_possible,
    count_fit,
    in_all_respects,
    is_whole,
    joined,
    listed_fit,
    none_fits,
    number_fits,
    of_some,
    one_form,
    string_fits,
    unknown_fit,
    weakened,
)
from stepflow_trio.flows.paths import JsonPath
from stepflow_trio.flows.schema_documents import SchemaPool
from stepflow_trio.flows.schema_problems import (
    explain,
    type_in_words,
    types_in_words,
    value_in_words,
)
from stepflow_trio.flows.schema_validator import compiled
from stepflow_trio.flows.suggestions import closest

__all__ = ["Problem", "Subtyping", "Verdict", "subtype"]

_MAX_COMPARISONS = 20_000
"""What two schemas of hundreds of members each need, many times over."""

_MAX_DEPTH = 50
"""Of comparisons inside each other."""


class Verdict(enum.Enum):
    """What is known of a subtype."""

    YES = "yes"
    NO = "no"
    INDETERMINATE = "indeterminate"


class Subtyping(msgspec.Struct, frozen=True):
    """The answer of `subtype`."""

    verdict: Verdict
    problems: tuple[Problem, ...] = ()
    """Why it is not ``YES``."""
    is_disjoint: bool = False
    """With ``NO``: no value at all fits both."""


def subtype(sub: Any, sup: Any, pool: SchemaPool) -> Subtyping:
    """Whether every value that is valid by ``sub`` is valid by ``sup``; both were gathered in ``pool``."""
    fit = _Comparison(pool).compare(sub, sup, ())
    verdict = {Fits.ALL: Verdict.YES, Fits.UNKNOWN: Verdict.INDETERMINATE}.get(fit.fits, Verdict.NO)
    problems = tuple(dict.fromkeys(fit.problems))[:MAX_PROBLEMS]
    return Subtyping(verdict, problems, fit.fits is Fits.NONE)


class _Comparison:
    def __init__(self, pool: SchemaPool) -> None:
        self._pool = pool
        self._left = _MAX_COMPARISONS
        self._depth = 0
        self._under_way: set[tuple[object, object]] = set()
        self._validators: dict[int, tuple[Any, Any, Any]] = {}

    def compare(self, sub: Any, sup: Any, path: JsonPath) -> Fit:
        if sub is sup or _accepts_everything(sup) or _same(sub, sup):
            return ALL_FIT
        if not (isinstance(sub, (dict, bool)) and isinstance(sup, (dict, bool))):
            return unknown_fit(path, "has a schema that cannot be read")
        key = (_identity(sub), _identity(sup))
        if key in self._under_way:
            # It holds unless something else in it does not, which is reported there.
            return ALL_FIT
        self._left -= 1
        if self._left < 0 or self._depth >= _MAX_DEPTH:
            return unknown_fit(path, "is too intricate to be compared")
        found = alternatives(sub, self._pool)
        if found is None:
            return unknown_fit(path, "has too many forms to be compared")
        self._under_way.add(key)
        self._depth += 1
        try:
            return self._all_alternatives(found, sup, path)
        finally:
            self._depth -= 1
            self._under_way.discard(key)

    def _all_alternatives(self, found: Sequence[Alternative], sup: Any, path: JsonPath) -> Fit:
        fits: list[Fit] = []
        for alternative in found:
            fit = self._alternative(alternative, sup, path)
            if fit.fits in (Fits.NONE, Fits.NOT_ALL):
                if self._is_empty(alternative, 0):
                    continue
                if not (
                    alternative.is_described and alternative.is_exact and self._has_no_rival(alternative)
                ):
                    fit = weakened(fit)
            fits.append(fit)
        if not fits or all(fit.fits is Fits.ALL for fit in fits):
            return ALL_FIT
        if all(fit.fits is Fits.NONE for fit in fits):
            why = self._all_of_other_types(found, sup) if len(fits) > 1 else ""
            return none_fits(path, why) if why else joined(Fits.NONE, fits)
        bad = [fit for fit in fits if fit.fits in (Fits.NONE, Fits.NOT_ALL)]
        if not bad:
            if not any(alternative.is_described for alternative in found):
                return unknown_fit(path, "may be anything")
            open_ = [fit for fit in fits if fit.fits is Fits.UNKNOWN]
            if len(fits) > 1:
                open_ = [Fit(fit.fits, tuple(as_possible(p, path) for p in fit.problems)) for fit in open_]
            return joined(Fits.UNKNOWN, open_)
        if len(fits) > 1:
            bad = [Fit(fit.fits, tuple(as_possible(p, path) for p in fit.problems)) for fit in bad]
        return joined(Fits.NOT_ALL, bad)

    def _all_of_other_types(self, found: Sequence[Alternative], sup: Any) -> str:
        """Why nothing fits, where that is because of its type; the empty string otherwise."""
        seen: set[str] = set()
        while isinstance(sup, dict):
            keywords = cast("dict[str, Any]", sup)
            ref: object = keywords.get("$ref")
            if "type" in keywords:
                allowed = types_of(keywords)
                types = {each.type for each in found}
                if any(name in allowed or (name == "integer" and "number" in allowed) for name in types):
                    return ""
                return f"is {types_in_words(types)}, where {types_in_words(allowed)} fits"
            if not isinstance(ref, str) or ref in seen:
                return ""
            seen.add(ref)
            sup = self._pool.target(ref)
        return ""

    def _alternative(self, sub: Alternative, sup: Any, path: JsonPath) -> Fit:
        """How the values of one alternative fit."""
        if sup is False:
            return none_fits(path, "may not be there")
        if _accepts_everything(sup):
            return ALL_FIT
        if not isinstance(sup, dict):
            return unknown_fit(path, "is to fit a schema that cannot be read")
        keywords = cast("dict[str, Any]", sup)
        if sub.values is not None:
            return self._values(sub, sub.values, keywords, path)
        self._left -= 1
        if self._left < 0 or self._depth >= _MAX_DEPTH:
            return unknown_fit(path, "is too intricate to be compared")
        self._depth += 1
        try:
            return in_all_respects(self._respects(sub, keywords, path))
        finally:
            self._depth -= 1

    def _values(self, sub: Alternative, values: Sequence[Any], sup: dict[str, Any], path: JsonPath) -> Fit:
        """Values that are known are held to the schema, each as it is."""
        schema, validator = self._validator(sup)
        if validator is None:
            return unknown_fit(path, "is to fit a schema that cannot be read")
        problems: list[Problem] = []
        misfits = 0
        for value in values:
            errors = list(validator.iter_errors(value))
            misfits += bool(errors)
            for error in errors:
                misfit = explain(error, value, schema)
                why = misfit.why
                if len(values) > 1 and not misfit.path:
                    why = f"may be {value_in_words(value)}, which {why}"
                problems.append(Problem((*path, *misfit.path), why))
        if not misfits:
            return ALL_FIT
        if misfits == len(values):
            return Fit(Fits.NONE, tuple(problems))
        is_any_boolean = sub.type == "boolean" and len(values) == 2
        return Fit(Fits.UNKNOWN if is_any_boolean else Fits.NOT_ALL, tuple(problems))

    def _validator(self, schema: dict[str, Any]) -> tuple[Any, Any]:
        known = self._validators.get(id(schema))
        if known is None:
            alone = self._pool.standing_alone(schema)
            try:
                validator = compiled(alone)
            except ValueError:
                validator = None
            # The schema is kept, so that its id stays its own.
            known = self._validators[id(schema)] = (schema, alone, validator)
        return known[1], known[2]

    def _respects(self, sub: Alternative, sup: dict[str, Any], path: JsonPath) -> list[Fit]:
        """How the alternative fits each thing that a schema demands."""
        fits = [self._type(sub, sup, path)]
        if fits[0].fits is Fits.NONE:
            return fits
        for keyword in ("const", "enum"):
            if keyword in sup:
                options: object = [sup["const"]] if keyword == "const" else sup["enum"]
                if isinstance(options, list):
                    fits.append(listed_fit(sub, cast("list[Any]", options), path))
        ref: object = sup.get("$ref")
        if isinstance(ref, str):
            target = self._pool.target(ref)
            if target is None:
                fits.append(unknown_fit(path, "is to fit a schema that cannot be found"))
            else:
                fits.append(self._alternative(sub, target, path))
        for keyword in ("allOf", "anyOf", "oneOf"):
            members: object = sup.get(keyword)
            if isinstance(members, list):
                each = [self._alternative(sub, schema, path) for schema in cast("list[Any]", members)]
                if keyword == "allOf":
                    fits += each
                else:
                    fits.append(one_form(each, path, is_exclusive=keyword == "oneOf"))
        if "not" in sup:
            excluded = self._alternative(sub, sup["not"], path).fits
            if excluded is Fits.ALL:
                fits.append(none_fits(path, "is of a kind that is ruled out"))
            elif excluded is not Fits.NONE:
                fits.append(unknown_fit(path, "may be of a kind that is ruled out"))
        match sub.type:
            case "number" | "integer":
                fits += number_fits(sub, sup, path)
            case "string":
                fits += string_fits(sub, sup, path)
            case "array":
                fits += self._array(sub, sup, path)
            case "object":
                fits += self._object(sub, sup, path)
            case _:
                pass
        depends = [keyword for keyword in _NOT_COMPARED if keyword in sup]
        fits += [unknown_fit(path, f"may not fit {keyword}") for keyword in depends]
        return fits

    def _type(self, sub: Alternative, sup: dict[str, Any], path: JsonPath) -> Fit:
        allowed = types_of(sup)
        if sub.type in allowed or (sub.type == "integer" and "number" in allowed):
            return ALL_FIT
        why = f"is {type_in_words(sub.type)}, where {types_in_words(allowed)} fits"
        if sub.type != "number" or "integer" not in allowed:
            return none_fits(path, why)
        multiples = [fact["multipleOf"] for fact in sub.facts if "multipleOf" in fact]
        if any(is_whole(multiple) for multiple in multiples):
            return ALL_FIT
        lower, upper = bounds(sub.facts, whole=False)
        has_fractions = not multiples and upper[0] - lower[0] >= 1
        return Fit(Fits.NOT_ALL if has_fractions else Fits.UNKNOWN, (Problem(path, why),))

    # ---- arrays and objects -------------------------------------------------------------------------

    def _array(self, sub: Alternative, sup: dict[str, Any], path: JsonPath) -> list[Fit]:
        facts, ours = sub.facts, (sup,)
        least, most = length_limits(facts, "Items")
        fits = [count_fit(facts, sup, "Items", path, "elements")]
        prefix = max(prefix_length(facts), prefix_length(ours))
        for index in range(prefix + 1):
            schema = element(facts, index)
            if index >= most or self._has_no_values(schema, 0):
                break
            where = index if index < prefix else "*"
            fit = self.compare(schema, element(ours, index), (*path, where))
            fits.append(fit if index < least else of_some(fit))
        if (
            sup.get("uniqueItems") is True
            and most > 1
            and not any(f.get("uniqueItems") is True for f in facts)
        ):
            fits.append(unknown_fit(path, "may have an element twice"))
        return fits

    def _object(self, sub: Alternative, sup: dict[str, Any], path: JsonPath) -> list[Fit]:
        facts, theirs = sub.facts, (sup,)
        present = required_members(facts)
        has_room = length_limits(facts, "Properties")[1] == math.inf
        names = dict.fromkeys([*present, *named_members(facts), *named_members(theirs)])
        required = required_members(theirs)
        fits = [self._has(facts, present, name, required, path) for name in required]
        for name in names:
            schema, is_mentioned = member(facts, name)
            if schema is False and name not in present:
                continue
            demanded = member(theirs, name)[0]
            if demanded is False:
                if self._has_no_values(schema, 0):
                    continue
                fit = none_fits(path, _unexpected(name, theirs, present))
            else:
                fit = self.compare(schema, demanded, (*path, name))
            if name not in present:
                fit = of_some(fit) if is_mentioned and has_room else weakened(fit)
            fits.append(fit)
        others = self._other_members(facts, sup, path)
        fits += others if has_room else [weakened(fit) for fit in others]
        fits.append(
            count_fit(facts, sup, "Properties", path, "fields", len(present), self._most_members(facts))
        )
        return fits

    def _has(
        self,
        facts: Sequence[dict[str, Any]],
        present: Sequence[str],
        name: str,
        required: Sequence[str],
        path: JsonPath,
    ) -> Fit:
        """Whether there is a member that is required."""
        if name in present:
            return ALL_FIT
        schema, is_mentioned = member(facts, name)
        if schema is False:
            meant = closest(name, [known for known in named_members(facts) if known not in required])
            hint = f'; is "{meant}" meant for it?' if meant is not None else ""
            return none_fits(path, f"lacks the field {value_in_words(name)}{hint}")
        if not is_mentioned and named_members(facts):
            why = f"lacks the field {value_in_words(name)} as far as it is described"
            return Fit(Fits.NOT_ALL, (Problem(path, why),))
        return unknown_fit(path, f"may lack the field {value_in_words(name)}")

    def _other_members(
        self, facts: Sequence[dict[str, Any]], sup: dict[str, Any], path: JsonPath
    ) -> list[Fit]:
        """How the members fit that neither side names."""
        schema, is_mentioned = member(facts, None)
        patterns = _patterns(facts)
        if schema is False and not patterns:
            return []
        demanded = [member((sup,), None)[0], *(its for _, its in _patterns((sup,)))]
        here = (*path, "*")
        fits: list[Fit] = []
        if schema is not False:
            for its in demanded:
                fit = self.compare(schema, its, here)
                fits.append(of_some(fit) if is_mentioned and its is demanded[0] else weakened(fit))
        # A member of which only the name's pattern is known may be any that the other side names.
        all_demanded = [*demanded, *(member((sup,), name)[0] for name in named_members((sup,)))]
        for _, own in patterns:
            fits += [weakened(self.compare(own, its, here)) for its in all_demanded]
        return fits

    def _most_members(self, facts: Sequence[dict[str, Any]]) -> float:
        if member(facts, None)[0] is not False or _patterns(facts):
            return math.inf
        return len([name for name in named_members(facts) if member(facts, name)[0] is not False])

    # ---- whether there are any values ---------------------------------------------------------------

    def _is_empty(self, alternative: Alternative, depth: int) -> bool:
        """Whether no value is described, as far as that is easily seen."""
        facts = alternative.facts
        if any(self._alternative(alternative, its, ()).fits is Fits.ALL for its in alternative.rivals):
            return True
        if alternative.values is not None or depth > 5:
            return False
        match alternative.type:
            case "number" | "integer":
                lower, upper = bounds(facts, whole=alternative.type == "integer")
                return lower[0] > upper[0] or (lower[0] == upper[0] and (lower[1] > 0 or upper[1] < 0))
            case "string":
                least, most = length_limits(facts, "Length")
                return least > most
            case "array":
                least, most = length_limits(facts, "Items")
                needed = range(int(min(least, prefix_length(facts) + 1)))
                return least > most or any(self._has_no_values(element(facts, i), depth) for i in needed)
            case "object":
                least, most = length_limits(facts, "Properties")
                present = required_members(facts)
                most = min(most, self._most_members(facts))
                return max(least, len(present)) > most or any(
                    self._has_no_values(member(facts, name)[0], depth) for name in present
                )
            case _:
                return False

    def _has_no_values(self, schema: Any, depth: int) -> bool:
        found = alternatives(schema, self._pool)
        return found is not None and all(self._is_empty(each, depth + 1) for each in found)

    def _has_no_rival(self, alternative: Alternative) -> bool:
        """Whether no other form of its ``oneOf`` takes its values away."""
        return all(self._alternative(alternative, its, ()).fits is Fits.NONE for its in alternative.rivals)


_NOT_COMPARED = (
    "if", "contains", "dependencies", "dependentRequired", "dependentSchemas", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef",
)  # fmt: skip


def _accepts_everything(schema: Any) -> bool:
    if isinstance(schema, dict):
        return ASSERTIONS.isdisjoint(cast("dict[str, Any]", schema))
    return schema is True


def _same(left: Any, right: Any) -> bool:
    # 1 == True == 1.0 in Python, and not in a schema.
    return left == right and json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def _identity(schema: Any) -> object:
    if isinstance(schema, Conjunction):
        return tuple(id(part) for part in schema["allOf"])
    return id(cast("object", schema)) if isinstance(schema, dict) else schema


def _unexpected(name: str, theirs: Sequence[dict[str, Any]], present: Sequence[str]) -> str:
    meant = closest(name, [known for known in named_members(theirs) if known not in present])
    hint = f'; did you mean "{meant}"?' if meant is not None else ""
    return f"has the field {value_in_words(name)}, which is not known{hint}"


def _patterns(facts: Iterable[dict[str, Any]]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for fact in facts:
        patterns: object = fact.get("patternProperties")
        if isinstance(patterns, dict):
            found += cast("dict[str, Any]", patterns).items()
    return found
