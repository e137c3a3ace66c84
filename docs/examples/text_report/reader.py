"""The worker `reader`: loads a text, finds what is spoken in it, and writes the report."""

from __future__ import annotations

import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from stepflow_trio import ComponentError, Context, Worker

worker = Worker()

LINE_WIDTH = 78


class TextMissing(ComponentError):
    """The text that a flow asks for is not there. Codes from −32110 on are ours to give."""

    code = -32110


@dataclass
class Loaded:
    text_id: str
    title: str
    paragraphs: int
    characters: int


@dataclass
class Quotations:
    count: int
    words: int
    longest: str
    questions: list[str]


@worker.component
async def load_text(path: str, context: Context) -> Loaded:
    """Read a text file, store its paragraphs as a blob, and return the blob's id and the first facts."""
    try:
        text = await trio.Path(path).read_text(encoding="utf-8")
    except OSError as exc:
        raise TextMissing(f"cannot read {path}: {exc.strerror}", data={"path": path}) from exc
    title, _, body = text.partition("\n")
    paragraphs = [paragraph for line in body.splitlines() if (paragraph := line.strip())]
    print(f"{Path(path).name}: {len(paragraphs)} paragraphs", file=sys.stderr)
    # Whoever needs the text fetches it by this id: it does not travel through the flow's data again.
    text_id = await context.put_blob(paragraphs)
    return Loaded(text_id=text_id, title=title.strip(), paragraphs=len(paragraphs), characters=len(body))


@worker.component
async def quotations(text_id: str, context: Context) -> Quotations:
    """Find what is said between “ and ”."""
    paragraphs: list[str] = await context.get_blob(text_id)
    spoken = [part.strip(" ,;—") for paragraph in paragraphs for part in re.findall("“([^”]*)”", paragraph)]
    return Quotations(
        count=len(spoken),
        words=sum(len(part.split()) for part in spoken),
        longest=max(spoken, key=len, default=""),
        questions=[part for part in spoken if part.endswith("?") and len(part.split()) <= 6],
    )


@worker.component
def render_report(
    title: str,
    words: dict[str, Any],
    readability: dict[str, Any],
    quotations: dict[str, Any],
    echoes: list[dict[str, Any]],
) -> list[str]:
    """Put everything together as lines of text. A plain function: it runs in a thread of the worker's."""
    frequent = ", ".join(f"{entry['word']} ({entry['count']})" for entry in words["most_frequent"])
    share = 100 * quotations["words"] / max(1, words["total"])
    lines = [
        title,
        "=" * len(title),
        f"{words['total']:,} words, {words['different']:,} different ones.",
        f"Most frequent: {frequent}.",
        f"{readability['sentences']} sentences, {readability['words_per_sentence']:.1f} words on average.",
        f"Reading ease: {readability['reading_ease']:.0f} of 100.",
        f"{quotations['count']} quotations make up {share:.0f} % of the text.",
        f"Short questions: {' '.join(quotations['questions'])}",
    ]
    lines += [f"Echo: “{echo['left']}” — “{echo['right']}”" for echo in echoes]
    return [part for line in lines for part in textwrap.wrap(line, LINE_WIDTH, subsequent_indent="  ")]


if __name__ == "__main__":
    worker.run_stdio()
