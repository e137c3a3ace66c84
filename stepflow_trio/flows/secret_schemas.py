"""Where in values a schema says ``is_secret: true``, as something that is walked along with a value.

All schemas that speak about a value are taken together, as a set: so a value is looked through once, however
many branches and references lead to the same place, and however deep a schema refers to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from stepflow_trio.flows.schema_documents import SchemaDocument
from stepflow_trio.flows.schema_validator import compiled

__all__ = ["SecretPlaces", "secret_places"]

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_OF_THE_SAME = ("if", "then", "else")
_LISTS_OF_THE_SAME = ("allOf", "anyOf", "oneOf")
_MAPS_OF_THE_SAME = ("dependentSchemas", "dependencies")
_OF_OTHER_FIELDS = ("additionalProperties", "unevaluatedProperties")
_OF_FURTHER_ITEMS = ("items", "additionalItems", "unevaluatedItems")


class _Schema:
    """What one schema says; the schemas in it by their numbers."""

    __slots__ = (
        "every_item", "fields", "first_items", "further_items", "is_secret", "names", "other_fields",
        "patterns", "same",
    )  # fmt: skip

    def __init__(self) -> None:
        self.is_secret = False
        self.same: list[int] = []
        """For the value itself."""
        self.fields: dict[str, int] = {}
        self.patterns: list[tuple[Callable[[str], bool], int]] = []
        self.other_fields: list[int] = []
        self.names: list[int] = []
        self.first_items: list[int] = []
        self.further_items: list[int] = []
        self.every_item: list[int] = []

    def all_below(self) -> Iterable[int]:
        yield from self.same
        yield from self.fields.values()
        yield from (number for _, number in self.patterns)
        yield from self.other_fields
        yield from self.names
        yield from self.first_items
        yield from self.further_items
        yield from self.every_item


class SecretPlaces:
    """What is secret of a value, and in it; `secret_places` makes it."""

    __slots__ = ("_fields", "_numbers", "_owner", "has_secret_names", "is_secret")

    def __init__(self, owner: SecretSchemas, numbers: frozenset[int]) -> None:
        self._owner = owner
        self._numbers = numbers
        self._fields: dict[str, SecretPlaces | None] = {}
        """Of the names that schemas know; there are no others, so that input does not make it grow."""
        said = [owner.schemas[number] for number in numbers]
        self.is_secret = any(schema.is_secret for schema in said)
        """Whether all of the value is."""
        names = (name for schema in said for name in schema.names)
        self.has_secret_names = any(owner.schemas[number].is_secret for number in owner.closed(names))
        """Whether the names of an object's fields are."""

    def field(self, name: str) -> SecretPlaces | None:
        """Of an object's field; None if there is nothing secret in it."""
        if name in self._fields:
            return self._fields[name]
        numbers: list[int] = []
        is_known = False
        for number in self._numbers:
            schema = self._owner.schemas[number]
            is_other = True
            if name in schema.fields:
                is_other, is_known = False, True
                numbers.append(schema.fields[name])
            for matches, inner in schema.patterns:
                if matches(name):
                    is_other = False
                    numbers.append(inner)
            if is_other:
                numbers += schema.other_fields
        places = self._owner.joined(numbers)
        if is_known:
            self._fields[name] = places
        return places

    def item(self, index: int) -> SecretPlaces | None:
        """Of an array's item; None if there is nothing secret in it."""
        numbers: list[int] = []
        for number in self._numbers:
            schema = self._owner.schemas[number]
            if index < len(schema.first_items):
                numbers.append(schema.first_items[index])
            else:
                numbers += schema.further_items
            numbers += schema.every_item
        return self._owner.joined(numbers)


class SecretSchemas:
    """Schemas of one flow, read for what they say of secrets; `secret_places` makes it."""

    def __init__(self) -> None:
        self.schemas: list[_Schema] = []
        self._numbers: dict[tuple[int, int], int] = {}
        """By the identities of a document's root and of a schema in it."""
        self._unread: list[tuple[SchemaDocument, dict[str, Any], _Schema]] = []
        self._telling: set[int] = set()
        """Those from which one is reached that says that something is secret."""
        self._places: dict[frozenset[int], SecretPlaces] = {}

    def read(self, document: SchemaDocument) -> list[int]:
        """Read a document, and all that it refers to."""
        numbers = self._number(document, document.root)
        # A queue, not recursion: a chain of references can be any length.
        while self._unread:
            self._read(*self._unread.pop())
        return numbers

    def find_telling(self) -> None:
        """Called once, when all is read."""
        above: dict[int, list[int]] = {}
        for number, schema in enumerate(self.schemas):
            for inner in schema.all_below():
                above.setdefault(inner, []).append(number)
        pending = [number for number, schema in enumerate(self.schemas) if schema.is_secret]
        while pending:
            number = pending.pop()
            if number not in self._telling:
                self._telling.add(number)
                pending += above.get(number, ())
        self._numbers.clear()  # identities mean nothing from here on

    def joined(self, numbers: Iterable[int]) -> SecretPlaces | None:
        """What is secret of a value for which all these schemas are."""
        together = self.closed(numbers)
        if not together:
            return None
        places = self._places.get(together)
        if places is None:
            places = self._places[together] = SecretPlaces(self, together)
        return places

    def closed(self, numbers: Iterable[int]) -> frozenset[int]:
        """With all that they say of the same value, as far as it has to do with secrets."""
        pending = [number for number in numbers if number in self._telling]
        found: set[int] = set()
        while pending:
            number = pending.pop()
            if number not in found:
                found.add(number)
                pending.extend(x for x in self.schemas[number].same if x in self._telling)
        return frozenset(found)

    def _number(self, document: SchemaDocument, schema: object) -> list[int]:
        if not isinstance(schema, dict):
            return []
        key = (id(document.root), id(schema))  # pyright: ignore[reportUnknownArgumentType]: any JSON
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.schemas)
            self.schemas.append(_Schema())
            self._unread.append((document, cast("dict[str, Any]", schema), self.schemas[-1]))
        return [number]

    def _nothing(self) -> int:
        """A schema that says nothing, where one holds a place."""
        self.schemas.append(_Schema())
        return len(self.schemas) - 1

    def _read(self, document: SchemaDocument, fields: dict[str, Any], said: _Schema) -> None:
        def of(schema: object) -> list[int]:
            return self._number(document, schema)

        def members(keyword: str) -> Iterable[tuple[str, Any]]:
            value: object = fields.get(keyword)
            return cast("dict[str, Any]", value).items() if isinstance(value, dict) else ()

        def listed(keyword: str) -> Iterable[Any]:
            value: object = fields.get(keyword)
            return cast("list[Any]", value) if isinstance(value, list) else ()

        said.is_secret = fields.get("is_secret") is True
        for keyword in _REFERENCES:
            ref: object = fields.get(keyword)
            found = document.find(ref) if isinstance(ref, str) else None
            if found is not None:
                said.same += self._number(found[0], found[2])
        for keyword in _OF_THE_SAME:
            said.same += of(fields.get(keyword))
        for keyword in _LISTS_OF_THE_SAME:
            for schema in listed(keyword):
                said.same += of(schema)
        for keyword in _MAPS_OF_THE_SAME:
            for _, schema in members(keyword):
                said.same += of(schema)
        for name, schema in members("properties"):
            for number in of(schema):
                said.fields[name] = number
        for pattern, schema in members("patternProperties"):
            said.patterns += [(_matcher(pattern), number) for number in of(schema)]
        for keyword in _OF_OTHER_FIELDS:
            said.other_fields += of(fields.get(keyword))
        said.names += of(fields.get("propertyNames"))
        for schema in (*listed("prefixItems"), *listed("items")):
            said.first_items += of(schema) or [self._nothing()]
        for keyword in _OF_FURTHER_ITEMS:
            said.further_items += of(fields.get(keyword))
        said.every_item += of(fields.get("contains"))


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a name matches, by the validator's regular expressions; what is none matches everything."""
    try:
        validator = compiled({"type": "string", "pattern": pattern})
    except ValueError:
        return lambda name: True
    return validator.is_valid


def secret_places(documents: Mapping[str, SchemaDocument]) -> dict[str, SecretPlaces]:
    """What is secret of a value, for each of a flow's schemas that says that something is."""
    schemas = SecretSchemas()
    read = {name: schemas.read(document) for name, document in documents.items()}
    schemas.find_telling()
    found = {name: schemas.joined(numbers) for name, numbers in read.items()}
    return {name: places for name, places in found.items() if places is not None}
