"""What JSON calls the types of Python values."""

from __future__ import annotations


def json_type(value: object) -> str:
    """The JSON name of a value's type, with its article: ``an object``, ``null``."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "an object"
        case _:
            return f"a Python {type(value).__name__}"
