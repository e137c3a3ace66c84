"""How many values of a type fit what a schema demands of single values, and how such answers add up."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec

from stepflow_trio.flows.alternatives import Alternative, alternatives, bounds, length_limits
from stepflow_trio.flows.paths import JsonPath
from stepflow_trio.flows.schema_documents import SchemaPool
from stepflow_trio.flows.schema_problems import alternatives_in_words, type_in_words, value_in_words

__all__ = [
    "ALL_FIT",
    "MAX_PROBLEMS",
    "Fit",
    "Fits",
    "Problem",
    "as_possible",
    "count_fit",
    "in_all_respects",
    "is_whole",
    "joined",
    "listed_fit",
    "none_fits",
    "number_fits",
    "of_some",
    "one_form",
    "string_fits",
    "unknown_fit",
    "weakened",
]

MAX_PROBLEMS = 10
"""Reasons that are kept."""


class Problem(msgspec.Struct, frozen=True):
    """One place at which values of a schema do not fit, or may not."""

    path: JsonPath
    """Where in the value; ``"*"`` stands for any element of an array and any other member of an object."""
    why: str
    """A sentence without its subject, which is what is at ``path``."""


class Fits(enum.Enum):
    """How many of the values fit."""

    ALL = enum.auto()
    UNKNOWN = enum.auto()
    NOT_ALL = enum.auto()
    """At least one does not."""
    NONE = enum.auto()


class Fit(msgspec.Struct, frozen=True):
    """An answer and its reasons."""

    fits: Fits
    problems: tuple[Problem, ...] = ()


ALL_FIT = Fit(Fits.ALL)


def unknown_fit(path: JsonPath, why: str) -> Fit:
    """Nobody can say."""
    return Fit(Fits.UNKNOWN, (Problem(path, why),))


def none_fits(path: JsonPath, why: str) -> Fit:
    """No value fits."""
    return Fit(Fits.NONE, (Problem(path, why),))


def in_all_respects(fits: Iterable[Fit]) -> Fit:
    """Of values that must fit several schemas."""
    found = list(fits)
    for worst in (Fits.NONE, Fits.NOT_ALL, Fits.UNKNOWN):
        if any(fit.fits is worst for fit in found):
            bad = (Fits.NONE, Fits.NOT_ALL) if worst is not Fits.UNKNOWN else (Fits.UNKNOWN,)
            problems = [problem for fit in found if fit.fits in bad for problem in fit.problems]
            return Fit(worst, tuple(problems[:MAX_PROBLEMS]))
    return ALL_FIT


def weakened(fit: Fit) -> Fit:
    """The same, of values of which nobody knows that there are any."""
    return Fit(Fits.UNKNOWN, fit.problems) if fit.fits in (Fits.NONE, Fits.NOT_ALL) else fit


def of_some(fit: Fit) -> Fit:
    """The same, of a part that not every value has."""
    return Fit(Fits.NOT_ALL, fit.problems) if fit.fits is Fits.NONE else fit


def joined(fits: Fits, found: Iterable[Fit]) -> Fit:
    """An answer with the reasons of several."""
    return Fit(fits, tuple(problem for fit in found for problem in fit.problems)[:MAX_PROBLEMS])


def as_possible(problem: Problem, path: JsonPath) -> Problem:
    """The problem of one alternative among others, at ``path``."""
    if problem.path != path:
        return problem
    for verb, possible in (("is ", "may be "), ("has ", "may have "), ("lacks ", "may lack ")):
        if problem.why.startswith(verb):
            return Problem(path, possible + problem.why.removeprefix(verb))
    return problem


def listed_fit(sub: Alternative, values: list[Any], path: JsonPath) -> Fit:
    """How a type fits a list of values."""
    why = f"is {type_in_words(sub.type)}, where only {alternatives_in_words(values)} fits"
    listed = alternatives({"enum": values}, SchemaPool()) or []
    if ("number" if sub.type == "integer" else sub.type) in {each.type for each in listed}:
        return unknown_fit(path, why)
    return none_fits(path, why)


def one_form(fits: Sequence[Fit], path: JsonPath, *, is_exclusive: bool) -> Fit:
    """Of forms of which at least one, or exactly one, must fit."""
    possible = [fit for fit in fits if fit.fits is not Fits.NONE]
    if not possible:
        # Of several reasons the one that is about a part says more than that it is something else altogether.
        best = max(fits, key=lambda fit: len(fit.problems[0].path) if fit.problems else 0, default=None)
        if best is not None and best.problems and len(best.problems[0].path) > len(path):
            return best
        whys = dict.fromkeys(problem.why for fit in fits for problem in fit.problems)
        return Fit(Fits.NONE, tuple(Problem(path, why) for why in whys))
    if len(possible) == 1:
        return possible[0]
    if not is_exclusive and any(fit.fits is Fits.ALL for fit in possible):
        return ALL_FIT
    return unknown_fit(
        path, "may fit none of its forms" if not is_exclusive else "may not fit exactly one form"
    )


def number_fits(sub: Alternative, sup: dict[str, Any], path: JsonPath) -> list[Fit]:
    """How a number's range and multiples fit."""
    fits: list[Fit] = []
    whole = sub.type == "integer"
    lower, upper = bounds(sub.facts, whole=whole)
    least, most = bounds((sup,), whole=whole)
    if lower < least or upper > most:
        why = "may be out of range"
        is_apart = lower[0] > most[0] or upper[0] < least[0]
        fits.append(none_fits(path, "is out of range") if is_apart else unknown_fit(path, why))
    divisor: object = sup.get("multipleOf")
    if divisor is not None:
        own = [fact.get("multipleOf") for fact in sub.facts] + [1 if whole else None]
        if not any(_divides(divisor, multiple) for multiple in own):
            fits.append(unknown_fit(path, f"may be no multiple of {value_in_words(divisor)}"))
    return fits


def is_whole(number: object) -> bool:
    """Whether it is a number without a fraction."""
    if isinstance(number, float):
        return number.is_integer()
    return isinstance(number, int) and not isinstance(number, bool)


def _divides(divisor: object, multiple: object) -> bool:
    if not (is_whole(divisor) and is_whole(multiple)):
        return divisor == multiple
    return int(cast("float", multiple)) % int(cast("float", divisor)) == 0


def string_fits(sub: Alternative, sup: dict[str, Any], path: JsonPath) -> list[Fit]:
    """How a string's length and pattern fit."""
    fits = [count_fit(sub.facts, sup, "Length", path, "characters")]
    pattern: object = sup.get("pattern")
    if pattern is not None and not any(fact.get("pattern") == pattern for fact in sub.facts):
        fits.append(unknown_fit(path, f"may not match the pattern {pattern}"))
    return fits


def count_fit(
    facts: Sequence[dict[str, Any]],
    sup: dict[str, Any],
    what: str,
    path: JsonPath,
    things: str,
    at_least: float = 0,
    at_most: float = math.inf,
) -> Fit:
    """How many characters, elements or fields there are, and how many there may be."""
    least, most = length_limits(facts, what)
    least, most = max(least, at_least), min(most, at_most)
    demanded, allowed = length_limits((sup,), what)
    if least >= demanded and most <= allowed:
        return ALL_FIT
    if most < demanded:
        return none_fits(path, f"has fewer than {demanded:g} {things}")
    if least > allowed:
        return none_fits(path, f"has more than {allowed:g} {things}")
    if least < demanded:
        return unknown_fit(path, f"may have fewer than {demanded:g} {things}")
    return unknown_fit(path, f"may have more than {allowed:g} {things}")
