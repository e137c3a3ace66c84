"""What of a flow's values is secret by its schemas, and values without what is secret.

A schema that says ``is_secret: true`` makes the whole value that it is for secret, wherever it is reached
from the schema of the flow's ``input``, ``variables``, ``output`` or a step's output: through properties,
items, references, and ``allOf``, ``anyOf``, ``oneOf`` and the like, of which every branch counts, whether or
not the value fits it.

Two things are hidden: what is at a secret place, whatever it is; and, in every other text, the strings that
are found at secret places. What a component makes of a secret (a hash, its length, its first half) is another
value, which nobody here knows.
"""

from __future__ import annotations

import json
import re
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping
from itertools import compress, count
from typing import Any, cast

from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.results import FlowError
from stepflow_trio.flows.schema_documents import flow_parts
from stepflow_trio.flows.secret_schemas import SecretPlaces, secret_places
from stepflow_trio.flows.variables import variable_defaults

__all__ = [
    "MIN_SECRET_CHARACTERS",
    "REDACTED",
    "FlowSecrets",
    "SecretPlaces",
    "SecretTexts",
    "redact",
    "redact_error",
    "secret_strings",
    "without_values",
]

REDACTED = "[REDACTED]"
"""What stands where something secret was."""

MIN_SECRET_CHARACTERS = 4
"""A shorter string at a secret place is hidden there only. Taken out of every text it would leave nothing
readable, and the gaps would tell what it is."""

MIN_LINE_CHARACTERS = 8
"""A secret of several lines, such as a private key, comes line by line in logs: each of its lines from this
length on is hidden too."""

CUT_CHARACTERS = 24
"""So much of a longer secret's beginning is hidden even if what follows is missing or different: messages are
cut off, and what is left of the secret would show."""

_MAX_SPELLED_CHARACTERS = 8192
"""Of a longer secret only the spelling is known that it has itself."""

_MAX_KEYS_SOUGHT = 500
"""So many are looked for one after the other, which is quick; of more, which ones begin at each position."""

_MANY_NEW = 16
"""If of so many spellings one is new, all are sorted again; fewer are put in their places."""

_PLAIN = re.compile(r"[A-Za-z0-9_.\-]+")
"""Spelled the same in JSON, in Python and in a URL."""

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~")
_ENCODED = re.compile("%[0-9A-F]{2}")


class FlowSecrets:
    """The secret places of a flow's values; :meth:`of` makes it. None stands for: nothing is secret there."""

    __slots__ = ("_parts", "default_variables", "input", "output", "variables")

    def __init__(self, flow: Flow) -> None:
        self._parts = secret_places(dict(flow_parts(flow.schemas)))
        self.input = self.part("input")
        self.variables = self.part("variables")
        self.output = self.part("output")
        self.default_variables = variable_defaults(flow.schemas) if self.variables is not None else {}
        """What the schema gives variables that a run does not."""

    @classmethod
    def of(cls, flow: Flow) -> FlowSecrets | None:
        """A flow's secret places; None, and cheaply, where none of its schemas speaks of secrets."""
        if flow.schemas is None or not _speaks_of_secrets(flow.schemas):
            return None
        return cls(flow)

    def part(self, name: str) -> SecretPlaces | None:
        """Of ``input``, ``variables``, ``output``, or ``steps.<id>``: what that step's component returns."""
        return self._parts.get(name)


class SecretTexts:
    """Strings that are secret, to take them out of texts. They can become more, never less.

    Found is a secret as it is, without the blanks around it, as JSON and Python escape it, and as it is
    written in a URL; see also :data:`MIN_LINE_CHARACTERS` and :data:`CUT_CHARACTERS`. Not found is what is
    encoded in another way, such as base64.

    A text takes time in proportion to its length: once more for each secret that overlaps others there, and
    a little more, as the logarithm, the more secrets there are that begin with the same
    :data:`CUT_CHARACTERS`. How many others there are makes no difference. Each takes some 500 bytes, and
    2,000 where JSON and URLs write it otherwise.
    """

    __slots__ = ("_by_key", "_known", "_lengths", "_spelled")

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._known: set[str] = set()
        self._spelled: set[str] = set()
        self._by_key: dict[str, str | _Alike] = {}
        """The spellings by how they begin: the first CUT_CHARACTERS of each, or all of a shorter one. With
        many there is no object for each that the collector of garbage has to look at."""
        self._lengths: dict[tuple[str, ...], tuple[int, ...]] = {}
        """Of what begins with these MIN_SECRET_CHARACTERS, how long the keys are."""
        self.add(secrets)

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def add(self, secrets: Iterable[str]) -> list[str]:
        """Take in what is secret, too; what of it is new and long enough to be looked for."""
        new: list[str] = []
        for secret in secrets:
            if len(secret) < MIN_SECRET_CHARACTERS or secret in self._known:
                continue
            self._known.add(secret)
            new.append(secret)
            for spelling in _spellings(secret):
                if spelling not in self._spelled:
                    self._spelled.add(spelling)
                    self._add_spelling(spelling)
        return new

    def _add_spelling(self, spelling: str) -> None:
        key = spelling[:CUT_CHARACTERS]
        alike = self._by_key.get(key)
        if alike is None:
            self._by_key[key] = spelling
            head = tuple(key[:MIN_SECRET_CHARACTERS])
            lengths = self._lengths.get(head, ())
            if len(key) not in lengths:
                self._lengths[head] = (*lengths, len(key))
        elif isinstance(alike, str):
            self._by_key[key] = _Alike([alike, spelling])
        else:
            alike.add(spelling)

    def redact(self, text: str) -> str:
        """``text`` with every secret in it replaced; the same object where there is none."""
        if not self._known or len(text) < MIN_SECRET_CHARACTERS:
            return text
        found = sorted(self._found(text))
        if not found:
            return text
        parts: list[str] = []
        written_to = 0
        start, end = found[0]
        for next_start, next_end in found[1:]:
            if next_start > end:
                parts += (text[written_to:start], REDACTED)
                written_to, start = end, next_start
            end = max(end, next_end)
        parts += (text[written_to:start], REDACTED, text[end:])
        return "".join(parts)

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        """Where secrets begin and end; they may overlap, but not one with itself."""
        if len(self._by_key) <= min(len(text), _MAX_KEYS_SOUGHT):
            for key, alike in self._by_key.items():
                at = text.find(key)
                while at >= 0:
                    end = at + _longest_agreement(text, at, key, alike)
                    yield at, end
                    at = text.find(key, end)
            return
        ends: dict[str, int] = {}
        lengths_of = self._lengths
        # In one pass without a line of Python for each character, for almost no position begins a secret.
        beginnings = zip(text, text[1:], text[2:], text[3:], strict=False)
        for at in compress(count(), map(lengths_of.__contains__, beginnings)):
            for length in lengths_of[tuple(text[at : at + MIN_SECRET_CHARACTERS])]:
                key = text[at : at + length]
                alike = self._by_key.get(key)
                if alike is not None and ends.get(key, 0) <= at:
                    ends[key] = end = at + _longest_agreement(text, at, key, alike)
                    yield at, end


def _longest_agreement(text: str, at: int, key: str, alike: str | _Alike) -> int:
    """How far ``text`` agrees, from ``at`` on, with a spelling that begins with ``key``, which is there."""
    if isinstance(alike, str):
        return _agreement(text, at, alike, len(key))
    return alike.agreement(text, at)


class _Alike:
    """Spellings with the same first CUT_CHARACTERS."""

    __slots__ = ("_sorted", "_spellings")

    def __init__(self, spellings: list[str]) -> None:
        self._spellings = spellings
        self._sorted = 0
        """So many of them are in order."""

    def add(self, spelling: str) -> None:
        """Take in one that is not among them."""
        self._spellings.append(spelling)

    def agreement(self, text: str, at: int) -> int:
        """How far ``text`` agrees, from ``at`` on, with the one that it agrees with the longest.

        What all of them begin with is there.
        """
        if self._sorted < len(self._spellings):
            self._sort()
        # Where the text would stand among them, the one before or the one behind agrees the longest. The
        # search sees both, and compares what is not known to agree with all that are left.
        low, high = 0, len(self._spellings)
        low_agrees = high_agrees = longest = CUT_CHARACTERS
        while low < high:
            middle = (low + high) // 2
            spelling = self._spellings[middle]
            agrees = _agreement(text, at, spelling, min(low_agrees, high_agrees))
            longest = max(longest, agrees)
            if agrees < len(spelling) and text[at + agrees : at + agrees + 1] < spelling[agrees]:
                high, high_agrees = middle, agrees
            else:
                low, low_agrees = middle + 1, agrees
        return longest

    def _sort(self) -> None:
        new = self._spellings[self._sorted :]
        if len(new) * _MANY_NEW > len(self._spellings):
            self._spellings.sort()
        else:
            del self._spellings[self._sorted :]
            for spelling in new:
                insort(self._spellings, spelling)
        self._sorted = len(self._spellings)


def _agreement(text: str, at: int, spelling: str, known: int) -> int:
    """How many characters of ``text``, from ``at`` on, are as the spelling begins; ``known`` of them are."""
    agrees, step = known, 64
    while step and agrees < len(spelling):
        if text.startswith(spelling[agrees : agrees + step], at + agrees):
            agrees = min(agrees + step, len(spelling))
            step *= 2
        else:
            step //= 2
    return agrees


def redact(value: Any, places: SecretPlaces | None, texts: SecretTexts) -> Any:
    """JSON without what is secret in it: what is at the ``places``, and every one of the ``texts``.

    Keys are texts too; those that become the same are numbered. What nothing is changed in is the same
    object, not a copy. A value that nests too deep to be looked through is hidden as a whole.
    """
    try:
        return _redacted(value, places, texts)
    except RecursionError:
        return REDACTED


def redact_error(error: FlowError, texts: SecretTexts) -> FlowError:
    """The error without the secret ``texts`` in its message and its data; the same object if it has none."""
    message, data = texts.redact(error.message), redact(error.data, None, texts)
    if message is error.message and data is error.data:
        return error
    return FlowError(error.code, message, data)


def secret_strings(value: Any, places: SecretPlaces | None) -> Iterator[str]:
    """All strings at the secret places of a JSON value, also those inside secret objects and arrays.

    The keys of a secret object are not among them: they are names, which stand everywhere.
    """
    pending: list[tuple[Any, SecretPlaces | None]] = [(value, places)]
    while pending:
        part, at = pending.pop()
        if at is None:
            continue
        if isinstance(part, str):
            if at.is_secret:
                yield part
        elif isinstance(part, dict):
            members = cast("dict[str, Any]", part)
            if at.has_secret_names:
                yield from members
            pending.extend((x, at if at.is_secret else at.field(name)) for name, x in members.items())
        elif isinstance(part, list):
            items = enumerate(cast("list[Any]", part))
            pending.extend((x, at if at.is_secret else at.item(index)) for index, x in items)


def without_values(schema: Any, places: SecretPlaces | None) -> Any:
    """A schema for people to read: no ``default``, ``examples`` or ``const`` of what is secret is shown."""
    if places is None or not isinstance(schema, dict):
        return schema
    texts = SecretTexts()
    written: dict[str, Any] = {}
    for keyword, value in cast("dict[str, Any]", schema).items():
        shown: Any = value
        if keyword in ("default", "const"):
            shown = redact(value, places, texts)
        elif keyword == "examples" and isinstance(value, list):
            shown = [redact(example, places, texts) for example in cast("list[Any]", value)]
        elif keyword in ("properties", "patternProperties") and isinstance(value, dict):
            members = cast("dict[str, Any]", value).items()
            shown = {name: without_values(x, _inside(places, places.field(name))) for name, x in members}
        elif keyword in ("allOf", "anyOf", "oneOf") and isinstance(value, list):
            shown = [without_values(branch, places) for branch in cast("list[Any]", value)]
        elif keyword == "items":
            shown = without_values(value, _inside(places, places.item(0)))
        written[keyword] = shown
    return written


def _inside(outer: SecretPlaces, inner: SecretPlaces | None) -> SecretPlaces | None:
    return outer if outer.is_secret else inner


def _redacted(value: Any, places: SecretPlaces | None, texts: SecretTexts) -> Any:
    if places is not None and places.is_secret:
        return REDACTED
    if type(value) is str:
        return texts.redact(value)
    if type(value) is dict:
        return _redacted_object(cast("dict[str, Any]", value), places, texts)
    if type(value) is list:
        items: list[Any] | None = None
        for index, item in enumerate(cast("list[Any]", value)):
            shown = _redacted(item, places.item(index) if places is not None else None, texts)
            if shown is not item:
                items = items if items is not None else list(cast("list[Any]", value))
                items[index] = shown
        return cast("list[Any]", value) if items is None else items
    return value


def _redacted_object(
    value: dict[str, Any], places: SecretPlaces | None, texts: SecretTexts
) -> dict[str, Any]:
    has_secret_names = places is not None and places.has_secret_names
    written: dict[str, Any] = {}
    times: dict[str, int] = {}
    is_changed = False
    for name, member in value.items():
        shown = _redacted(member, places.field(name) if places is not None else None, texts)
        shown_name = REDACTED if has_secret_names else texts.redact(name)
        if shown is not member or shown_name is not name:
            is_changed = True
        if shown_name is not name:
            plain = shown_name
            while shown_name in written or shown_name in value:
                times[plain] = times.get(plain, 1) + 1
                shown_name = f"{plain} {times[plain]}"
        written[shown_name] = shown
    return written if is_changed else value


def _spellings(secret: str) -> list[str]:
    """How a secret may be written in a text, each once."""
    if _PLAIN.fullmatch(secret) or len(secret) > _MAX_SPELLED_CHARACTERS:
        return [secret]
    parts = [secret, secret.strip()]
    lines = secret.split("\n")
    if len(lines) > 1:
        parts += [line for each in lines if len(line := each.strip()) >= MIN_LINE_CHARACTERS]
    spelled: dict[str, None] = {}
    for part in parts:
        if len(part) < MIN_SECRET_CHARACTERS:
            continue
        spelled[part] = None
        for escaped in (json.dumps(part), json.dumps(part, ensure_ascii=False), repr(part)):
            spelled[escaped[1:-1]] = None
        in_url = _in_url(part)
        for encoded in (in_url, in_url.replace("%2F", "/"), in_url.replace("%20", "+")):
            spelled[encoded] = None
            spelled[_ENCODED.sub(lambda found: found[0].lower(), encoded)] = None
    return list(spelled)


def _in_url(text: str) -> str:
    """With every character percent-encoded that may have to be."""
    return "".join(
        chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass")
    )


def _speaks_of_secrets(schemas: Mapping[str, Any]) -> bool:
    pending: list[Any] = [schemas]
    while pending:
        part: object = pending.pop()
        if isinstance(part, dict):
            fields = cast("dict[str, Any]", part)
            if fields.get("is_secret") is True:
                return True
            pending.extend(fields.values())
        elif isinstance(part, list):
            pending.extend(cast("list[Any]", part))
    return False
