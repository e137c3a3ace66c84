"""New expected outputs in the text of a flow, of which everything else stays as it is, byte for byte."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from stepflow_trio.cli.text_spans import Span, json_spans, yaml_spans
from stepflow_trio.cli.yaml_text import emitted, new_emitter
from stepflow_trio.errors import FlowInvalid
from stepflow_trio.flows.source import read_source

_BY_HAND = "write its output by hand"


class CannotRewrite(Exception):
    """An output cannot be put into the text; says why and what to do."""


def with_outputs(text: bytes, outputs: Mapping[int, Any], *, name: str) -> bytes:
    """The text of a flow whose test cases of these indices expect these outputs.

    An output is replaced as a whole, in the style that it had, or is put behind the last field of its case.
    The text is read again before it is returned: it says what it said before, and the new outputs.

    Args:
        text: a flow that can be read, in YAML or JSON.
        outputs: by the index of the case.
        name: the file's name.

    Raises:
        CannotRewrite: there is no way to change these outputs alone, such as where cases share one by alias.
    """
    whole = text.decode("utf-8")
    plain = whole.removeprefix("\ufeff")
    lines = plain.replace("\r\n", "\n").replace("\r", "\n")
    promised = _promised(text, outputs, name)
    is_json, root = _spans(lines)
    for style in [_json_value] if is_json else [_block_yaml, _ascii_yaml, _json_in_yaml]:
        edits = _edits(lines, root, outputs, style, is_json=is_json)
        edited = _edited(plain, edits)
        written = whole[: len(whole) - len(plain)] + edited
        try:
            if _canonical(read_source(written, name=name).value) == promised:
                return written.encode("utf-8")
        except FlowInvalid:
            continue
    raise CannotRewrite(f"no change to the text changes it alone: {_BY_HAND}")


def _promised(text: bytes, outputs: Mapping[int, Any], name: str) -> str:
    """What the new text must say. Made anew, since what stands behind an alias is shared."""
    value: Any = json.loads(json.dumps(read_source(text, name=name).value))
    for index, output in outputs.items():
        value["test"]["cases"][index]["output"] = output
    return _canonical(value)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _spans(text: str) -> tuple[bool, Span]:
    try:
        return True, json_spans(text)
    except ValueError:
        return False, yaml_spans(text)


# ---- where ------------------------------------------------------------------------------------------------

_Edit: TypeAlias = tuple[int, int, str]
"""From, to, and what is to be there."""

_Style: TypeAlias = "Callable[[Any, _Layout], str]"


class _Layout:
    """How the surroundings of an output are laid out."""

    def __init__(self, *, indent: str = "", is_flow: bool, step: str = "  ", dash_offset: int = 0) -> None:
        self.indent = indent
        """Of the lines behind the first."""
        self.is_flow = is_flow
        """Whether it is in brackets, in YAML on one line."""
        self.step = step
        """What each level is indented by; empty: there are no lines."""
        self.dash_offset = dash_offset
        """How far the dashes of a list in YAML are indented."""
        self.gap = " "
        """What stands behind a colon or a comma in JSON."""


def _edits(text: str, root: Span, outputs: Mapping[int, Any], style: _Style, *, is_json: bool) -> list[_Edit]:
    test_key, test = _member(root, "test")
    cases_key, cases = _member(test, "cases")
    column, below = _column(text, test_key.start), _column(text, cases_key.start)
    step = below - column if not test.is_flow and below > column else 2
    dash_offset = 0 if cases.is_flow else max(_column(text, cases.start) - below, 0)
    edits: list[_Edit] = []
    for index, output in outputs.items():
        case = cases.items[index]
        if case.kind != "mapping":
            raise CannotRewrite(f"test case {index + 1} is an alias: {_BY_HAND}")
        layout = _Layout(is_flow=case.is_flow, step=" " * step, dash_offset=dash_offset)
        edit = _edit_json if is_json else _edit_yaml
        edits += edit(text, case, output, style, layout)
    return edits


def _edit_json(text: str, case: Span, output: Any, style: _Style, layout: _Layout) -> list[_Edit]:
    first_key, first = case.members[0]
    layout.gap = " " if text[first_key.end : first.start].endswith(" ") else ""
    layout.step = ""
    found = case.member("output")
    old = case if found is None else found[1]
    if "\n" in text[old.start : old.end]:
        layout.indent = _indent(text, first_key.start)
        layout.step = layout.indent.removeprefix(_indent(text, case.start)) or "  "
    if found is not None:
        return [(found[1].start, found[1].end, style(output, layout))]
    end = case.members[-1][1].end
    between = "\n" + layout.indent if layout.step else layout.gap
    return [(end, end, f',{between}"output":{layout.gap}{style(output, layout)}')]


def _edit_yaml(text: str, case: Span, output: Any, style: _Style, layout: _Layout) -> list[_Edit]:
    found = case.member("output")
    colon = text.find(":", found[0].end) + 1 if found is not None else 0
    if layout.is_flow:
        if found is not None and found[1].start == found[1].end:
            return [(colon, colon, f" {style(output, layout)}")]
        if found is not None:
            return [(found[1].content_start, found[1].end, style(output, layout))]
        end = case.members[-1][1].end
        return [(end, end, f", output: {style(output, layout)}")]
    column = " " * _column(text, case.content_start)
    if found is None:
        layout.indent = column + layout.step
        written = f"{column}output:\n{layout.indent}{style(output, layout)}"
        return [_lines_behind(text, case.members[-1][1], written)]
    old = found[1]
    if old.kind == "mapping":
        layout.is_flow = old.is_flow
        layout.indent = " " * _column(text, old.content_start)
        return [(old.content_start, old.end, style(output, layout))]
    # Nothing, null or an alias: it goes, and what is behind it in its line, such as a comment, stays.
    layout.indent = column + layout.step
    written = f"{layout.indent}{style(output, layout)}"
    return [(colon, max(old.end, colon), ""), _lines_behind(text, old, written)]


def _lines_behind(text: str, last: Span, written: str) -> _Edit:
    """``written`` as lines of its own behind the line, or lines, of ``last``."""
    end = last.full_end if last.keeps_blank_lines else last.end
    if end > 0 and text[end - 1] == "\n":
        return (end, end, f"{written}\n")
    line_end = text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    return (line_end, line_end, f"\n{written}")


def _member(span: Span, name: str) -> tuple[Span, Span]:
    found = span.member(name) if span.kind == "mapping" else None
    if found is None or found[1].kind == "alias":
        raise CannotRewrite(f'"{name}" comes from an alias: {_BY_HAND}')
    return found


def _column(text: str, at: int) -> int:
    return at - (text.rfind("\n", 0, at) + 1)


def _indent(text: str, at: int) -> str:
    """The white space that its line starts with."""
    before = text[text.rfind("\n", 0, at) + 1 : at]
    return before[: len(before) - len(before.lstrip())]


def _edited(text: str, edits: list[_Edit]) -> str:
    """``text`` with edits whose places are counted with every line end as one character."""
    pairs = [found.start() - number for number, found in enumerate(re.finditer("\r\n", text))]
    line_end = "\r\n" if pairs else "\n" if "\n" in text or "\r" not in text else "\r"
    for start, end, written in sorted(edits, reverse=True):
        before = text[: start + bisect.bisect_left(pairs, start)]
        behind = text[end + bisect.bisect_left(pairs, end) :]
        text = before + written.replace("\n", line_end) + behind
    return text


# ---- what -------------------------------------------------------------------------------------------------


def _json_value(value: Any, layout: _Layout) -> str:
    if not layout.step:
        return json.dumps(value, ensure_ascii=False, separators=("," + layout.gap, ":" + layout.gap))
    text = json.dumps(value, ensure_ascii=False, indent=layout.step)
    return text.replace("\n", "\n" + layout.indent)


def _json_in_yaml(value: Any, layout: _Layout) -> str:
    return json.dumps(value)


def _block_yaml(value: Any, layout: _Layout) -> str:
    return _yaml(value, layout, in_ascii=False)


def _ascii_yaml(value: Any, layout: _Layout) -> str:
    return _yaml(value, layout, in_ascii=True)


def _yaml(value: Any, layout: _Layout, *, in_ascii: bool) -> str:
    emitter = new_emitter(in_ascii=in_ascii, in_brackets=layout.is_flow)
    emitter.width = 2**31
    emitter.brace_single_entry_mapping_in_flow_sequence = True
    dash = layout.dash_offset
    emitter.indent(mapping=len(layout.step), sequence=dash + 2, offset=dash)
    lines = emitted(emitter, value).rstrip("\n").split("\n")
    return "\n".join([lines[0], *(layout.indent + line if line else line for line in lines[1:])])
