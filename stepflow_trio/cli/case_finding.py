"""The test cases that flows carry: finding the files, reading the cases, choosing some of them."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from stepflow_trio.cli.case_configuration import CONFIGURATION_NAMES
from stepflow_trio.cli.exits import Unusable
from stepflow_trio.cli.plain_text import count
from stepflow_trio.errors import FlowInvalid
from stepflow_trio.flows.diagnostics import DiagnosticKind, Finding
from stepflow_trio.flows.model import Flow
from stepflow_trio.flows.reader import examine_flow
from stepflow_trio.flows.results import FlowResult, flow_result_from_json
from stepflow_trio.flows.source import Source
from stepflow_trio.flows.source_text import SourceLimits
from stepflow_trio.flows.suggestions import did_you_mean

_SUFFIXES = (".yml", ".yaml", ".json")

_MAY_BE_FLOW = re.compile(rb"""(?:^|[\s{,"'])(?:steps|tests?)["']?\s*:""")
"""What a text has that is a flow with tests, or was meant to be one. Most files need not be parsed."""

_LOOKS_LIKE_FLOW = re.compile(rb"""(?:^|[\s{,"'])(?:component|cases|outcome)["']?\s*:""")
"""What a text has besides that no other kind of file does, where it cannot be parsed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One test case."""

    index: int
    """Its place among the cases of its flow, from 0."""
    name: str
    input: Any
    variables: dict[str, Any]
    expected: FlowResult | None
    """None: it says none yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowTests:
    """A flow that has test cases."""

    path: str
    text: bytes
    """The file as it was read."""
    flow: Flow
    source: Source
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """A file that is meant to be a flow and cannot be read as one."""

    path: str
    why: FlowInvalid


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTests:
    """What there is to test, in the order of the paths that were given and in each by name."""

    files: tuple[FlowTests | NotLoaded, ...]
    without_cases: int
    """How many flows have none."""


def find_tests(paths: Sequence[str]) -> FoundTests:
    """Read the flows at ``paths``: files, and directories with all that is below them.

    Passed over are configuration files, files in a directory that plainly are no flows, directories there
    whose name starts with a dot, and what was found before under another name.

    Raises:
        Unusable: there is no such file or directory, or a directory cannot be read.
    """
    files: list[FlowTests | NotLoaded] = []
    without_cases = 0
    seen: set[str] = set()
    for path, is_named in _candidates(paths):
        if Path(path).name in CONFIGURATION_NAMES or (real := os.path.realpath(path)) in seen:
            continue
        seen.add(real)
        found = _read(path, is_named=is_named)
        if isinstance(found, FlowTests) and not found.cases:
            without_cases += 1
        elif found is not None:
            files.append(found)
    return FoundTests(files=tuple(files), without_cases=without_cases)


def choose_cases(found: FoundTests, patterns: Sequence[str]) -> FoundTests:
    """Only the cases whose name is one of ``patterns``, in which ``*`` and its kin stand for others.

    Files that cannot be read stay: nobody knows what cases they have.

    Raises:
        Unusable: a pattern fits no case.
    """
    if not patterns:
        return found
    names = {case.name: None for tests in found.files if isinstance(tests, FlowTests) for case in tests.cases}
    for pattern in patterns:
        if not any(_fits(name, pattern) for name in names):
            hint = did_you_mean(pattern, names) or _listed(list(names))
            raise Unusable(f'no test case is called "{pattern}"{"; " + hint if hint else ""}', "--case")
    files: list[FlowTests | NotLoaded] = []
    for tests in found.files:
        if isinstance(tests, NotLoaded):
            files.append(tests)
            continue
        cases = tuple(case for case in tests.cases if any(_fits(case.name, p) for p in patterns))
        if cases:
            files.append(replace(tests, cases=cases))
    return replace(found, files=tuple(files))


def require_cases(found: FoundTests, paths: Sequence[str]) -> None:
    """Raise `Unusable` where there is nothing to test, and nothing else to say either."""
    if found.files:
        return
    where = ", ".join(paths)
    flows = count(found.without_cases, "flow")
    have = "has" if found.without_cases == 1 else "have"
    why = f"{flows} there {have} no test: cases:" if found.without_cases else "there is no flow there"
    raise Unusable(f"no test case was found in {where}: {why}")


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _listed(names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return f"there are: {', '.join(names[:10])}{more}"


def _candidates(paths: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """The files that may be flows, and whether each was named."""
    for path in paths:
        if os.path.isdir(path):
            for found in _files_below(path):
                yield found, False
        elif os.path.lexists(path):
            yield path, True
        else:
            raise Unusable("there is no such file or directory", path)


def _files_below(directory: str) -> Iterator[str]:
    def refuse(exc: OSError) -> None:
        raise Unusable(f"the directory cannot be read: {exc.strerror}", exc.filename or directory) from exc

    for folder, subfolders, names in os.walk(directory, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.normpath(os.path.join(folder, name))
            # What is no file, such as a pipe, would be waited for.
            if name.lower().endswith(_SUFFIXES) and os.path.isfile(path):
                yield path


def _read(path: str, *, is_named: bool) -> FlowTests | NotLoaded | None:
    """The tests of a file, of which there may be none; None: it plainly is no flow."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(SourceLimits().max_bytes + 1)
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        unreadable = Finding(DiagnosticKind.UNREADABLE, f"the file cannot be read: {why}")
        return NotLoaded(path, FlowInvalid([Source(path, None).diagnostic(unreadable)]))
    if not is_named and _MAY_BE_FLOW.search(text) is None:
        return None
    reading = examine_flow(text, name=path)
    if not is_named:
        if reading.source is None and _LOOKS_LIKE_FLOW.search(text) is None:
            return None
        if reading.source is not None and not _is_flow(reading.source.value):
            return None
    try:
        flow = reading.runnable_flow()
    except FlowInvalid as exc:
        return NotLoaded(path, exc)
    source = cast("Source", reading.source)
    cases = tuple(_case(index, case) for index, case in enumerate((flow.test or {}).get("cases", ())))
    return FlowTests(path=path, text=text, flow=flow, source=source, cases=cases)


def _is_flow(value: object) -> bool:
    """Whether a value has what makes a flow, and nothing else, one. Other tools have steps and tests, too."""
    if not isinstance(value, dict):
        return False
    fields = cast("dict[str, Any]", value)
    steps: Any = fields.get("steps")
    if isinstance(steps, list) and any(
        isinstance(step, dict) and "component" in step for step in cast("list[Any]", steps)
    ):
        return True
    schema, test = fields.get("schema"), fields.get("test", fields.get("tests"))
    return (isinstance(test, dict) and "cases" in test) or (isinstance(schema, str) and "stepflow" in schema)


def _case(index: int, case: dict[str, Any]) -> Case:
    output = case.get("output")
    return Case(
        index=index,
        name=case["name"],
        input=case["input"],
        variables=case.get("variables") or {},
        expected=None if output is None else flow_result_from_json(output),
    )
