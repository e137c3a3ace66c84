"""Values as YAML 1.2 that reads back as what they were."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

from stepflow_trio.errors import FlowInvalid
from stepflow_trio.flows.source import read_source


def yaml_document(value: Any) -> bytes:
    """A value as a document in block style; it reads back as it was."""
    text = emitted(new_emitter(in_ascii=False), value)
    try:
        reads_back = json.dumps(read_source(text, name="written.yaml").value) == json.dumps(value)
    except FlowInvalid:
        reads_back = False
    # The emitter writes some control characters as they are, which changes them or cannot be read.
    text = text if reads_back else emitted(new_emitter(in_ascii=True), value)
    return text.encode("utf-8", "backslashreplace")


def new_emitter(*, in_ascii: bool, in_brackets: bool = False) -> Any:
    """ruamel's emitter: members in their order, no aliases, texts of several lines as such where they can be.

    Args:
        in_ascii: write all other characters as escapes, and texts of several lines in quotes.
        in_brackets: write mappings and lists in flow style, not a line for each member.
    """
    from ruamel.yaml import YAML  # here: what is written as JSON needs none

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = in_brackets
    yaml.sort_base_mapping_type_on_output = False
    yaml.allow_unicode = not in_ascii
    yaml.width = 100
    representer: Any = yaml.representer
    representer.ignore_aliases = lambda _: True  # pyright: ignore[reportUnknownLambdaType]: any value

    def represent_text(representer: Any, text: str) -> Any:
        # The emitter falls back to quotes where lines cannot stand as they are, but for control characters.
        style = "|" if "\n" in text and not in_ascii else None
        return representer.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    # The representer's own table: its class's is everybody's.
    representer.yaml_representers = {**representer.yaml_representers, str: represent_text}
    return yaml


def emitted(emitter: Any, value: Any) -> str:
    """A value as the emitter writes it."""
    text = StringIO()
    emitter.dump(value, text)
    return text.getvalue()
