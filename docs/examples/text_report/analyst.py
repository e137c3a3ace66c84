"""The worker `analyst`: reads the text that `reader` stored, and counts, measures and compares."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations

import trio

from stepflow_trio import Context, Worker

worker = Worker()

COMMON_WORDS = """
a all an and as at be but by for had he her his i if in is it its no not of on or out she so that the
there they this to up was were what when which with you
"""
COMMON = frozenset(COMMON_WORDS.split())


@dataclass
class WordCount:
    word: str
    count: int


@dataclass
class Words:
    total: int
    different: int
    most_frequent: list[WordCount]


@dataclass
class Readability:
    sentences: int
    words_per_sentence: float
    reading_ease: float
    """After Flesch: 0 is a contract, 100 is a nursery rhyme."""


@dataclass
class Echo:
    left: str
    right: str
    likeness: float


@worker.component
async def word_frequencies(text_id: str, context: Context, top: int = 10) -> Words:
    """Count the words; the commonest ones of English are left out of `most_frequent`."""
    paragraphs: list[str] = await context.get_blob(text_id)
    counts: Counter[str] = Counter()
    for number, paragraph in enumerate(paragraphs, 1):
        counts.update(words_of(paragraph))
        context.progress(number / len(paragraphs), f"{counts.total():,} words")
        await trio.lowlevel.checkpoint()  # others may run, and a cancellation is taken here
    telling = sorted((-count, word) for word, count in counts.items() if word not in COMMON)
    return Words(
        total=counts.total(),
        different=len(counts),
        most_frequent=[WordCount(word, -count) for count, word in telling[:top]],
    )


@worker.component
async def readability(text_id: str, context: Context) -> Readability:
    """Measure how hard the text is to read."""
    sentences = sentences_of(await context.get_blob(text_id))
    words = [word for sentence in sentences for word in words_of(sentence)]
    syllables = sum(max(1, len(re.findall("[aeiouy]+", word.removesuffix("e")))) for word in words)
    per_sentence = len(words) / len(sentences)
    return Readability(
        sentences=len(sentences),
        words_per_sentence=per_sentence,
        reading_ease=206.835 - 1.015 * per_sentence - 84.6 * syllables / len(words),
    )


@worker.component
async def echoes(text_id: str, context: Context, most: int = 3) -> list[Echo]:
    """Compare every sentence with every other one and return the pairs that are most alike.

    This is the work that takes a while, so it is done in a thread and says how far it is.
    """
    sentences = [s for s in sentences_of(await context.get_blob(text_id)) if 4 <= len(s.split()) <= 40]

    def compare() -> list[Echo]:
        found: list[Echo] = []
        pairs = list(combinations(dict.fromkeys(sentences), 2))
        for number, (left, right) in enumerate(pairs):
            if number % 100 == 0:
                trio.from_thread.check_cancelled()
                context.progress(number / len(pairs), f"pair {number:,} of {len(pairs):,}")
            likeness = SequenceMatcher(None, left, right, autojunk=False).ratio()
            if likeness > 0.5:
                found.append(Echo(left, right, round(likeness, 3)))
        return sorted(found, key=lambda echo: (-echo.likeness, echo.left))[:most]

    return await trio.to_thread.run_sync(compare)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Za-z]+(?:’[a-z]+)?", text)]


def sentences_of(paragraphs: list[str]) -> list[str]:
    """The sentences of all paragraphs, without quotation marks."""
    plain = (re.sub("[“”()]", "", paragraph) for paragraph in paragraphs)
    return [s.strip() for paragraph in plain for s in re.split(r"(?<=[.!?])\s+", paragraph) if s.strip()]


if __name__ == "__main__":
    worker.run_stdio()
