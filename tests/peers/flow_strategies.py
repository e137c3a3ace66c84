"""Hypothesis strategies for flows whose outcome follows from their text: steps in any shape, every kind of
expression, failures, retries, defaults, variables, overrides and runs below runs.

They use the components of ``workers/differential_worker.py`` under ``/w/`` and the builtin ones. A flow is
always one that can be run. It shrinks towards few steps and constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from hypothesis import strategies as st
from workers.differential_worker import VALUES

from stepflow_trio.flows.expressions import (
    ArrayOf,
    Coalesce,
    Expression,
    If,
    ObjectOf,
    VariableRef,
    parse_expression,
    static_needs,
)
from stepflow_trio.flows.overrides import apply_overrides

Json = Any
Draw = Callable[[st.SearchStrategy[Any]], Any]

KEYS = ["k", "l", "a b", "é", "ab-c", "0", "$step", "$x", "then"]
"""Names of fields: each is itself again when a path with it is written and read."""

INPUTS: list[Json] = [
    {},
    {"k": 1, "l": [1, {"k": None}], "a b": False},
    {"k": {"k": {"l": [[], {"k": "deep"}]}}, "é": None, "$step": "s0"},
    None,
    [0, {"k": "in a list"}],
    "text",
    0,
    False,
]

VARIABLES: dict[str, Json] = {"set": {"k": [1, None]}, "k": "of k", "none": None, "a b": 0}
"""What a run may set."""

DECLARED: dict[str, Json] = {
    "set": {"type": "object"},
    "text": {"type": "string"},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "flag": {"type": "boolean"},
    "nullable": {"type": ["string", "null"]},
    "union": {"type": ["string", "integer"]},
    "array": {"type": "array"},
    "untyped": {},
    "defaulted": {"type": "object", "default": {"k": [0]}},
    "null by default": {"type": "string", "default": None},
    "k": {"type": "string", "default": "declared"},
    "none": {"type": "string", "default": "not none"},
    "a b": {"type": "integer"},
}
"""What a flow may declare."""

COMPONENT_CODES = [-32100, -32103, -32110, -32199]
FINAL_CODES = [-32000, -32001, -32099, -32200, -32600, -32000000, 0, 8, 2**40]
TRANSPORT_CODES = [-32300, -32302, -32399]

scalars = st.sampled_from(
    [None, False, True, 0, 1, -7, 0.5, 1.0, 1e16, "", "a", "$", "$.k", "é\U0001f40d", 2**53 + 1, -0.0]
)
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS[:5]), inner, max_size=3),
    max_leaves=4,
)
"""Plain JSON without anything that reads as an expression."""

data = st.recursive(
    scalars | st.sampled_from([{"$input": "k"}, {"$step": "s0"}, {"$if": True}, {"$literal": 1}]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=4,
)
"""JSON for where nothing is evaluated."""


@dataclass(frozen=True)
class Scope:
    """What an expression may refer to."""

    steps: Sequence[str] = ()
    variables: Sequence[str] = ()
    """Those that may be set or declared."""
    undeclared: Sequence[str] = ("gone",)
    """Those that nobody declares."""
    reproducible: Sequence[str] = ()
    """Of the steps those whose results have no words of a runtime's own in them."""
    is_top: bool = False
    """Whether it is that of a run by itself, and not of one below a step."""


@st.composite
def path_texts(draw: Draw) -> str:
    """A path in one of the ways to write it."""
    parts = draw(st.lists(st.sampled_from([*KEYS[:6], 0, 1, 7]), max_size=3))
    if len(parts) == 1 and isinstance(parts[0], str) and draw(st.booleans()):
        return parts[0]
    text = "$"
    for part in parts:
        if isinstance(part, int):
            text += draw(st.sampled_from([f"[{part}]", f"[ {part} ]"]))
        else:
            text += draw(
                st.sampled_from([f".{part}", f"['{part}']", f'["{part}"]', f"..{part}", f'[ "{part}" ]'])
            )
    return text + draw(st.sampled_from(["", "", "", "."]))


@cache
def expressions(scope: Scope, depth: int = 3) -> st.SearchStrategy[Json]:
    """An expression of any kind."""
    references = [input_references(), variable_references(scope, depth)]
    if scope.steps:
        # Twice, for what flows are about is what steps say to each other.
        references += [step_references(scope), step_references(scope)]
    simple = st.one_of(scalars, *references)
    if not depth:
        return simple
    inner = st.deferred(lambda: expressions(scope, depth - 1))
    return st.one_of(
        simple,
        *references,
        st.fixed_dictionaries({"$literal": data}),
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([key for key in KEYS if key != "$step"]), inner, max_size=3),
        conditionals(inner),
        st.fixed_dictionaries({"$coalesce": st.lists(inner, max_size=3)}),
        with_siblings(inner),
    )


@cache
def input_references() -> st.SearchStrategy[Json]:
    """A reference to the input."""
    return st.fixed_dictionaries({"$input": path_texts() | st.sampled_from(["$", "", None])})


@st.composite
def step_references(draw: Draw, scope: Scope) -> Json:
    """A reference to a step."""
    reference: dict[str, Json] = {"$step": draw(st.sampled_from(scope.steps))}
    if draw(st.booleans()):
        reference["path"] = draw(path_texts() | st.sampled_from(["$.k", "$.attempt", "", None]))
    return reference


@st.composite
def variable_references(draw: Draw, scope: Scope, depth: int) -> Json:
    """A reference to a variable that is set, declared, both or neither."""
    names = [*scope.variables, *scope.undeclared]
    if not names:
        return None
    name = draw(st.sampled_from(names))
    forms = [f"$.{name}", f"$['{name}']", name, f"$.{name}.k", f"$.{name}.k[0]", f"$.{name}.gone"]
    reference: dict[str, Json] = {"$variable": draw(st.sampled_from(forms))}
    if draw(st.booleans()):
        # Without a step: what a default needs is not seen there.
        reference["default"] = draw(expressions(replace(scope, steps=()), max(depth - 2, 0)))
    return reference


@st.composite
def conditionals(draw: Draw, inner: st.SearchStrategy[Json]) -> Json:
    """An ``$if``, with an ``else`` or without."""
    conditional = {"$if": draw(inner), "then": draw(inner)}
    if draw(st.booleans()):
        conditional["else"] = draw(inner)
    return conditional


@st.composite
def with_siblings(draw: Draw, inner: st.SearchStrategy[Json]) -> Json:
    """An expression with keys beside it that mean nothing there, or whose priority is less."""
    by_priority = {
        "$literal": data,
        "$if": inner,
        "$coalesce": st.lists(inner, max_size=2),
        "$input": st.just("k"),
    }
    present = draw(st.lists(st.sampled_from(list(by_priority)), min_size=1, max_size=3, unique=True))
    others = draw(st.lists(st.sampled_from(["$x", "y", "path"]), max_size=1))
    keys = draw(st.permutations([*present, *others, *(["then"] if "$if" in present else [])]))
    return {key: draw(by_priority.get(key, inner)) for key in keys}


@st.composite
def on_errors(draw: Draw, *, may_default: bool) -> Json:
    """What a step does when its component fails."""
    actions: list[Json] = [None, {"action": "fail"}, {"action": "retry"}]
    actions += [{"action": "retry", "maxRetries": n} for n in (None, 0, 1, 1, 2, 2)]
    if may_default:
        actions += [{"action": "useDefault"}, {"action": "useDefault", "defaultValue": draw(data)}] * 2
    return draw(st.sampled_from(actions))


@st.composite
def steps(draw: Draw, id_: str, scope: Scope, depth: int) -> list[dict[str, Json]]:
    """A step of any component, and before it what it needs."""
    kinds = ["echo", "echo", "echo", "value", "fail", "flaky", "flaky"]
    kinds += ["add", "null", "late", "put_blob", "messages"]
    before: list[dict[str, Json]] = []
    kind = draw(st.sampled_from([*kinds, "map", "iterate", "eval"] if depth else kinds))
    step: dict[str, Json] = {"id": id_, "component": f"/w/{kind}"}
    may_default = True
    match kind:
        case "value":
            step["input"] = {"name": draw(st.sampled_from([name for name in VALUES if name != "long"]))}
        case "fail" | "flaky":
            codes = draw(st.sampled_from([COMPONENT_CODES, COMPONENT_CODES, FINAL_CODES, TRANSPORT_CODES]))
            # There, a default takes the place of the transport's retries.
            may_default = codes is not TRANSPORT_CODES
            step["input"] = {"code": draw(st.sampled_from(codes))}
            if kind == "flaky":
                # The first attempts that no more than the usual numbers of retries reach.
                step["input"]["until"] = draw(st.sampled_from([1, 2, 2, 3, 3, 4, 5]))
            elif draw(st.booleans()):
                step["input"] |= {
                    "message": draw(st.sampled_from(["", "é\n"])),
                    "data": draw(expressions(scope, 1)),
                }
        case "add":
            step["input"] = {"a": draw(expressions(scope, 1)), "b": draw(st.integers(-2, 2))}
        case "late":
            step["input"] = {"ms": draw(st.sampled_from([0, 1, 5])), "value": draw(expressions(scope, 2))}
        case "messages":
            step["component"] = "/builtin/create_messages"
            instructions = draw(st.sampled_from([None, "", "s"]))
            step["input"] = {"user_prompt": "é", "system_instructions": instructions}
        case "put_blob":
            step["component"] = "/builtin/put_blob"
            # What is stored is named by its content, and that must be the same on every runtime.
            content = expressions(replace(scope, steps=scope.reproducible), 2)
            step["input"] = {"data": draw(content), "blob_type": "data"}
        case "map":
            items = draw(st.lists(expressions(scope, 1), max_size=3))
            step["component"] = "/builtin/map"
            step["input"] = {"workflow": {"$literal": draw(flows(depth=depth - 1))}, "items": items}
        case "iterate":
            inner = draw(flows(depth=0))
            result = draw(st.sampled_from(["result", "next", "next", "other"]))
            inner["output"] = {result: inner["output"]}
            step["component"] = "/builtin/iterate"
            limit = draw(st.integers(0, 3))
            start = draw(expressions(scope, 1))
            step["input"] = {"flow": {"$literal": inner}, "initial_input": start, "max_iterations": limit}
        case "eval":
            stored = {"data": {"$literal": draw(flows(depth=depth - 1))}, "blob_type": "flow"}
            before = [{"id": f"{id_}_flow", "component": "/builtin/put_blob", "input": stored}]
            step["component"] = "/builtin/eval"
            flow_id = {"$step": before[0]["id"], "path": "blob_id"}
            step["input"] = {"flow_id": flow_id, "input": draw(expressions(scope, 1))}
        case _:
            step["input"] = draw(expressions(scope, 3))
    on_error = draw(on_errors(may_default=may_default))
    if on_error is not None:
        step["onError"] = on_error
    if scope.is_top and draw(st.integers(0, 4)) == 4:
        step["mustExecute"] = draw(st.sampled_from([True, True, False, None]))
    return [*before, step]


@st.composite
def flows(
    draw: Draw, *, depth: int = 1, max_steps: int = 8, scope: Scope = Scope(), schemas: Json = None
) -> dict[str, Json]:
    """A flow; ``depth`` is how many levels of runs there may be below it."""
    ids: list[str] = []
    reproducible: list[str] = []
    written: list[dict[str, Json]] = []
    for index in range(draw(st.integers(0 if depth == 0 else 1, max_steps if depth else min(max_steps, 3)))):
        id_ = f"s{index}"
        earlier = replace(scope, steps=tuple(ids), reproducible=tuple(reproducible))
        written += draw(steps(id_, earlier, depth))
        ids.append(id_)
        if written[-1]["component"] in ("/w/value", "/w/null", "/w/flaky", "/w/add"):
            reproducible.append(id_)
    output = draw(expressions(replace(scope, steps=tuple(ids)), 3))
    seen = draw(st.lists(st.sampled_from(ids), unique=True)) if ids and draw(st.booleans()) else []
    if seen:
        # What each of them came to, whatever becomes of the others.
        said = {id_: {"$if": {"$step": id_}, "then": {"$step": id_}, "else": "no"} for id_ in seen}
        output = {"seen": said} if draw(st.booleans()) else {"output": output, "seen": said}
    flow: dict[str, Json] = {"schemas": schemas} if schemas is not None else {}
    return without_dynamic_branches({**flow, "steps": written, "output": output})


def without_dynamic_branches(
    flow: dict[str, Json], patched: dict[str, Json] | None = None
) -> dict[str, Json]:
    """The flow, with an output that needs at once whatever a choice by a step's result may come to need.

    The public orchestrator never starts a step that only such a choice comes to need. ``patched`` is the flow
    that really runs, where that is another one.
    """
    guarded: set[str] = set()
    for one in (flow, patched or flow):
        for value in [*(step.get("input") for step in one["steps"]), one["output"]]:
            guarded |= _guarded(parse_expression(value, lambda _: None))
    if not guarded:
        return flow
    # A condition takes a failure for false, so nothing else comes of it.
    ran = [{"$if": {"$step": id_}, "then": True, "else": False} for id_ in sorted(guarded)]
    return {**flow, "output": {"value": flow["output"], "true": ran}}


def _guarded(expression: Expression) -> frozenset[str]:
    """The steps that are needed, if at all, only once a step has its result."""
    match expression:
        case If(condition=condition, then=then, otherwise=otherwise):
            branches = [then] if otherwise is None else [then, otherwise]
            see = static_needs if static_needs(condition) else _guarded
            return _guarded(condition).union(*map(see, branches))
        case Coalesce(items=items):
            found: frozenset[str] = frozenset()
            is_dynamic = False
            for item in items:
                found |= static_needs(item) if is_dynamic else _guarded(item)
                is_dynamic = is_dynamic or bool(static_needs(item))
            return found
        case VariableRef(default=default) if default is not None:
            return static_needs(default)
        case ArrayOf(items=members) | ObjectOf(values=members):
            return frozenset().union(*map(_guarded, members))
        case _:
            return frozenset()


@dataclass(frozen=True)
class FlowRun:
    """A flow and what it is run with."""

    flow: dict[str, Json]
    inputs: list[Json]
    variables: dict[str, Json] = field(default_factory=dict[str, Json])
    overrides: Mapping[str, Json] | None = None


@st.composite
def flow_runs(draw: Draw) -> FlowRun:
    """A flow with inputs, variables that it may declare, and overrides of its steps."""
    declared = draw(st.none() | st.lists(st.sampled_from(list(DECLARED)), unique=True, max_size=5))
    variables = draw(st.dictionaries(st.sampled_from(list(VARIABLES)), st.none(), max_size=3))
    variables = {name: VARIABLES[name] for name in variables}
    schemas = None
    if declared is not None:
        required = draw(st.lists(st.sampled_from(declared), unique=True)) if declared else []
        properties = {name: DECLARED[name] for name in declared}
        declaration = {"type": "object", "properties": properties, "required": required}
        schemas = {"type": "object", "properties": {"variables": declaration}}
    # Where there is a declaration, to read what is not in it is an error.
    if declared is None:
        scope = Scope(variables=tuple(variables), undeclared=("k", "gone"), is_top=True)
    else:
        scope = Scope(variables=tuple(declared), undeclared=(), is_top=True)
    flow = draw(flows(scope=scope, schemas=schemas))
    inputs = draw(st.lists(st.sampled_from(INPUTS), min_size=1, max_size=3))
    overrides = None
    if flow["steps"] and draw(st.integers(0, 2)) == 2:
        overrides = draw(overrides_of(flow, scope))
        flow = without_dynamic_branches(flow, apply_overrides(flow, overrides))
    return FlowRun(flow, inputs, variables, overrides)


@st.composite
def overrides_of(draw: Draw, flow: dict[str, Json], scope: Scope) -> Mapping[str, Json]:
    """Changes to some of the flow's steps."""
    patches: dict[str, Json] = {}
    ids = [step["id"] for step in flow["steps"]]
    for index in draw(st.lists(st.integers(0, len(ids) - 1), unique=True, max_size=3)):
        earlier = replace(scope, steps=tuple(ids[:index]))
        patch: dict[str, Json] = {}
        if draw(st.booleans()):
            patch["component"] = "/w/echo"
        if draw(st.booleans()):
            fields = st.sampled_from(["code", "until", "a", "value", "k"])
            values = st.none() | expressions(earlier, 1)
            patch["input"] = draw(expressions(earlier, 2) | st.dictionaries(fields, values, max_size=2))
        if draw(st.booleans()):
            patch["onError"] = draw(st.sampled_from([None, {"action": "fail"}, {"maxRetries": None}]))
        if draw(st.booleans()):
            patch["mustExecute"] = draw(st.sampled_from([None, True, False]))
        patches[ids[index]] = {"value": patch} | draw(st.sampled_from([{}, {"$type": "merge_patch"}]))
    return {"steps": patches}
