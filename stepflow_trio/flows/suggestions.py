"""The known name that an unknown one was probably meant to be."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

__all__ = ["closest", "did_you_mean"]

_MAX_CANDIDATES = 500
"""Names compared at most: a suggestion is a courtesy and never the slow part of an error."""

_MAX_NAME_LENGTH = 100


def closest(name: str, known: Iterable[object]) -> str | None:
    """The one of ``known`` that ``name`` is most likely a misspelling of, or None.

    A misspelling has one letter too many, too few, wrong or swapped with its neighbour; two of these in a
    name of six letters or more, three from eleven on. Case counts for nothing. What is not a string in
    ``known`` is passed over, and only the first few hundred names of about the same length are compared.
    """
    if not name or len(name) > _MAX_NAME_LENGTH:
        return None
    most = 1 if len(name) <= 5 else 2 if len(name) <= 10 else 3
    similar = (k for k in known if isinstance(k, str) and k and abs(len(k) - len(name)) <= most)
    ranked = (
        (_edits(name.casefold(), candidate.casefold()), candidate)
        for candidate in itertools.islice(similar, _MAX_CANDIDATES)
    )
    edits, best = min(ranked, default=(most + 1, ""), key=lambda pair: pair[0])
    # A name of one or two letters is that close to nearly every other one.
    return best if edits <= most and edits < len(name) else None


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """``did you mean "…"?`` for the closest of ``known``, or the empty string."""
    match = closest(name, known)
    return f'did you mean "{match}"?' if match is not None else ""


def _edits(left: str, right: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours between two texts."""
    before: list[int] = []
    above = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        row = [i]
        for j, b in enumerate(right, 1):
            least = min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and b == left[i - 2]:
                least = min(least, before[j - 2] + 1)
            row.append(least)
        before, above = above, row
    return above[-1]
