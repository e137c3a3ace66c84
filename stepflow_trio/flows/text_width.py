"""How wide a text will about be when it is drawn, without asking a font."""

from __future__ import annotations

import unicodedata

__all__ = ["monospace_width", "sans_width"]

_WIDTHS = {
    0.40: " '.,:;|/\\ijlIJ-f()[]!rt`",
    0.60: '"*_?cszL',
    0.75: "$0123456789{}aekovyxbdghnpquEFTCPSYZ",
    0.86: "ABKRVXDGHNOQU#+<=>^~&",
    1.05: "@Mmw%",
    1.15: "W",
}
"""Widths in em of DejaVu Sans Bold, rounded up: of what browsers choose for sans-serif, the widest."""

_WIDTH_OF = {character: width for width, characters in _WIDTHS.items() for character in characters}


def sans_width(text: str, size: float) -> float:
    """Of a text in a bold sans-serif font of that size, in the size's unit: never too little by much."""
    return size * sum(_WIDTH_OF.get(character) or _em(character, 0.8) for character in text)


def monospace_width(text: str, size: float) -> float:
    """`sans_width` in a monospace font."""
    return size * sum(_em(character, 0.61) for character in text)


def _em(character: str, usual: float) -> float:
    if unicodedata.combining(character):
        return 0.0
    return usual if unicodedata.east_asian_width(character) not in "WF" else 1.25
