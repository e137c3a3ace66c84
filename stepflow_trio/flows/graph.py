"""A flow as a graph: its steps, its input and its output, and what each reads of the others."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from functools import cached_property

from msgspec import Struct

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.flows.diagnostics import printable
from stepflow_trio.flows.expressions import (
    ArrayOf,
    Coalesce,
    Expression,
    If,
    InputRef,
    ObjectOf,
    StepRef,
    VariableRef,
)
from stepflow_trio.flows.model import Flow, Retry, Step, UseDefault
from stepflow_trio.flows.paths import JsonPath, render_path

__all__ = ["FlowGraph", "GraphEdge", "GraphNode", "NodeKind", "Use", "flow_graph", "shortened"]

_MAX_DEFAULT = 24
"""Characters of a default value that a node shows."""


class NodeKind(enum.Enum):
    """What a node stands for."""

    INPUT = "input"
    VARIABLES = "variables"
    STEP = "step"
    OUTPUT = "output"


class GraphNode(Struct, frozen=True):
    """The run's input, its variables, its output, or one step."""

    kind: NodeKind
    step: Step | None = None
    never_runs: bool = False
    """Of a step: neither the output nor a step with ``mustExecute`` can need it."""

    @property
    def name(self) -> str:
        """The step's id, or the kind."""
        return printable(self.step.id) if self.step is not None else self.kind.value

    @property
    def component(self) -> str:
        """The component's path; empty for what is no step."""
        return printable(self.step.component) if self.step is not None else ""

    @property
    def notes(self) -> list[str]:
        """What else there is to say of a step, a few words each."""
        if self.step is None:
            return []
        notes = ["must execute"] if self.step.must_execute else []
        match self.step.on_error:
            case UseDefault(value=value):
                default = json.dumps(value, ensure_ascii=False)
                notes.append(f"if it fails: {shortened(printable(default), _MAX_DEFAULT)}")
            case Retry(max_retries=retries) if retries:
                notes.append(f"up to {retries:,} {'retry' if retries == 1 else 'retries'}")
            case _:
                pass
        return [*notes, "never runs"] if self.never_runs else notes


class Use(Struct, frozen=True):
    """One place where an expression reads a step's result, the input or a variable."""

    path: JsonPath
    """What is read of it; of the variables, beginning with the variable's name."""
    reader: JsonPath
    """Where in the reader's input, or in the output, the value goes."""
    is_conditional: bool
    """It is read only if an ``$if``, a ``$coalesce`` or a missing variable comes to that."""
    decides: bool
    """It is read for the condition of an ``$if``."""

    @property
    def label(self) -> str:
        """What is read, in short: ``text.lines[0]``; empty for the whole value."""
        path = printable(render_path(self.path)).removeprefix("$").removeprefix(".")
        return f"if {path}".rstrip() if self.decides else path


class GraphEdge(Struct, frozen=True):
    """All that one node reads of another, by their positions among the nodes.

    Without ``uses`` it leads from a step to the output, which does not need it: the step must be executed,
    and the run fails if it does.
    """

    source: int
    target: int
    uses: tuple[Use, ...] = ()
    has_default: bool = False
    """What is read may be the default that the step has for its failure."""

    @property
    def is_conditional(self) -> bool:
        """Whether the target can do without the source."""
        return bool(self.uses) and all(use.is_conditional for use in self.uses)

    @property
    def labels(self) -> list[str]:
        """Each thing that is read, once; empty where that is only the whole."""
        labels = list(dict.fromkeys(use.label for use in self.uses))
        return [label or "(all)" for label in labels] if labels != [""] else []

    @property
    def details(self) -> list[str]:
        """Each use, a line: ``text_id → text``."""
        return [
            f"{'if ' if use.decides else ''}{printable(render_path(use.path))} → "
            f"{printable(render_path(use.reader))}{' (conditional)' if use.is_conditional else ''}"
            for use in self.uses
        ]


class FlowGraph(Struct, frozen=True, dict=True):
    """The nodes in the order of the flow, input and variables first, the output last; and their edges."""

    name: str | None
    description: str | None
    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]
    """In the order of their targets."""

    @cached_property
    def plugins(self) -> dict[str, int]:
        """The first segments of the components' paths, numbered in the order in which they appear."""
        firsts = (node.component.split("/")[1] for node in self.nodes if node.component.startswith("/"))
        return {name: number for number, name in enumerate(dict.fromkeys(firsts))}


def flow_graph(flow: Flow) -> FlowGraph:
    """The graph of a flow. Input and variables are in it where something reads them.

    Raises:
        LocalProtocolError: a step reads one that is not before it, which the reader of flows refuses.
    """
    read: list[list[tuple[str | NodeKind, Use]]] = [list(_reads(step.input)) for step in flow.steps]
    read.append(list(_reads(flow.output)))
    used = {source for uses in read for source, _ in uses}
    nodes = [GraphNode(kind) for kind in (NodeKind.INPUT, NodeKind.VARIABLES) if kind in used]
    position: dict[str | NodeKind, int] = {node.kind: index for index, node in enumerate(nodes)}
    edges: list[GraphEdge] = []
    for target, uses in enumerate(read, len(nodes)):
        by_source: dict[str | NodeKind, list[Use]] = {}
        for source, use in uses:
            by_source.setdefault(source, []).append(use)
        step = flow.steps[target - len(nodes)] if target < len(nodes) + len(flow.steps) else None
        for source, its_uses in by_source.items():
            if source not in position:
                reader = f'step "{step.id}"' if step is not None else "the output"
                raise LocalProtocolError(f'{reader} reads "{source}", which is no step before it')
            edges.append(GraphEdge(position[source], target, tuple(its_uses)))
        if step is not None:
            position[step.id] = target
    first_step, output = len(nodes), len(nodes) + len(flow.steps)
    needed_by_output = _needed(edges, [output])
    must_execute = [index for index, step in enumerate(flow.steps, first_step) if step.must_execute]
    edges += [GraphEdge(index, output) for index in must_execute if index not in needed_by_output]
    needed = _needed(edges, [output])
    defaults = {i for i, step in enumerate(flow.steps, first_step) if isinstance(step.on_error, UseDefault)}
    nodes += [
        GraphNode(NodeKind.STEP, step, index not in needed)
        for index, step in enumerate(flow.steps, first_step)
    ]
    return FlowGraph(
        flow.name,
        flow.description,
        (*nodes, GraphNode(NodeKind.OUTPUT)),
        tuple(
            GraphEdge(edge.source, edge.target, edge.uses, bool(edge.uses) and edge.source in defaults)
            for edge in edges
        ),
    )


def _needed(edges: list[GraphEdge], wanted: list[int]) -> set[int]:
    """The nodes that the wanted ones read, directly or not, and these themselves."""
    sources: dict[int, list[int]] = {}
    for edge in edges:
        sources.setdefault(edge.target, []).append(edge.source)
    needed = set(wanted)
    while wanted:
        fresh = [source for source in sources.get(wanted.pop(), ()) if source not in needed]
        needed.update(fresh)
        wanted.extend(fresh)
    return needed


def _reads(
    expression: Expression, at: JsonPath = (), *, is_conditional: bool = False, decides: bool = False
) -> Iterator[tuple[str | NodeKind, Use]]:
    """Everything that an expression reads, with where from."""

    def inner(member: Expression, *, place: JsonPath = at, sure: bool = True, condition: bool = False):
        return _reads(member, place, is_conditional=is_conditional or not sure, decides=decides or condition)

    match expression:
        case StepRef(step=step, path=path):
            yield step, Use(path, at, is_conditional, decides)
        case InputRef(path=path):
            yield NodeKind.INPUT, Use(path, at, is_conditional, decides)
        case VariableRef(name=name, path=path, default=default):
            yield NodeKind.VARIABLES, Use((name, *path), at, is_conditional, decides)
            if default is not None:
                yield from inner(default, sure=False)
        case If(condition=condition, then=then, otherwise=otherwise):
            yield from inner(condition, condition=True)
            yield from inner(then, sure=False)
            if otherwise is not None:
                yield from inner(otherwise, sure=False)
        case Coalesce(items=items):
            for index, item in enumerate(items):
                yield from inner(item, sure=index == 0)
        case ArrayOf(items=items):
            for index, item in enumerate(items):
                yield from inner(item, place=(*at, index))
        case ObjectOf(keys=keys, values=values):
            for key, value in zip(keys, values, strict=True):
                yield from inner(value, place=(*at, key))
        case _:
            pass


def shortened(text: str, length: int) -> str:
    """``text``, or its start and its end around an ellipsis, so that it has ``length`` characters at most."""
    if len(text) <= length:
        return text
    end = length // 3
    return f"{text[: length - end - 1]}…{text[len(text) - end :]}"
