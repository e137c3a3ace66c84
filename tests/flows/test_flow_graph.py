"""What the graph of a flow says: who reads what of whom, and how surely."""

import pytest

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.flows.builder import FlowBuilder, coalesce, if_, literal
from stepflow_trio.flows.expressions import StepRef
from stepflow_trio.flows.graph import NodeKind, flow_graph
from stepflow_trio.flows.model import Fail, Flow, Retry, Step, UseDefault


def steps(*ids, **settings):
    builder = FlowBuilder()
    return builder, *(builder.add_step(id, component="/x/y", **settings) for id in ids)


def edges(builder):
    """The edges by the names of their ends."""
    graph = flow_graph(builder.build())
    names = [node.name for node in graph.nodes]
    return {(names[edge.source], names[edge.target]): edge for edge in graph.edges}


def only_edge(value, **settings):
    builder, a = steps("a", **settings)
    return edges(builder.set_output(value(builder, a)))["a", "output"]


def test_the_nodes_are_what_is_read_then_the_steps_then_the_output():
    builder, a, b = steps("a", "b")
    assert [node.name for node in flow_graph(builder.build()).nodes] == ["a", "b", "output"]
    builder.set_output([builder.variable("v", default=builder.input["x"]), a, b])
    graph = flow_graph(builder.build())
    assert [node.name for node in graph.nodes] == ["input", "variables", "a", "b", "output"]
    assert [node.kind for node in graph.nodes][-2:] == [NodeKind.STEP, NodeKind.OUTPUT]
    assert [node.component for node in graph.nodes] == ["", "", "/x/y", "/x/y", ""]


def test_an_edge_has_all_that_its_target_reads_of_its_source_and_where_it_goes():
    builder, a = steps("a")
    builder.set_output({"x": a["t"]["u"], "y": [a, a["t"]["u"], a[0]], "z": builder.variable("v", 1)["w"]})
    by_ends = edges(builder)
    edge = by_ends["a", "output"]
    assert [(use.path, use.reader) for use in edge.uses] == [
        (("t", "u"), ("x",)),
        ((), ("y", 0)),
        (("t", "u"), ("y", 1)),
        ((0,), ("y", 2)),
    ]
    assert edge.labels == ["t.u", "(all)", "[0]"]
    assert edge.details[:2] == ["$.t.u → $.x", "$ → $.y[0]"]
    assert by_ends["variables", "output"].labels == ["v.w"]


def test_what_is_read_as_a_whole_has_no_label():
    assert only_edge(lambda b, a: [a, a]).labels == []
    assert only_edge(lambda b, a: a["it's.x"]).labels == [r"['it\'s.x']"]


@pytest.mark.parametrize(
    ("value", "is_conditional"),
    [
        (lambda b, a: a, False),
        (lambda b, a: if_(a, 1, 2), False),
        (lambda b, a: if_(1, a), True),
        (lambda b, a: if_(1, 2, a), True),
        (lambda b, a: coalesce(a, 1), False),
        (lambda b, a: coalesce(1, a), True),
        (lambda b, a: b.variable("v", default=a), True),
        (lambda b, a: [if_(1, a), a], False),
        (lambda b, a: if_(1, [{"k": coalesce(a)}]), True),
        (lambda b, a: if_(coalesce(1, a), 1), True),
    ],
)
def test_an_edge_is_conditional_where_all_of_its_uses_are(value, is_conditional):
    assert only_edge(value).is_conditional is is_conditional


def test_what_decides_a_choice_is_labelled_as_its_condition():
    edge = only_edge(lambda b, a: if_(a["ok"], if_({"k": a}, a["x"])))
    assert edge.labels == ["if ok", "if", "x"]
    assert [use.decides for use in edge.uses] == [True, True, False]
    assert edge.details == [
        "if $.ok → $",
        "if $ → $.k (conditional)",
        "$.x → $ (conditional)",
    ]


def test_a_literal_reads_nothing():
    builder, _ = steps("a")
    assert edges(builder.set_output(literal({"$step": "a"}))) == {}


@pytest.mark.parametrize(
    ("settings", "notes", "has_default"),
    [
        ({}, [], False),
        ({"on_error": Fail()}, [], False),
        ({"on_error": Retry(1)}, ["up to 1 retry"], False),
        ({"on_error": Retry(2000)}, ["up to 2,000 retries"], False),
        ({"on_error": Retry(0)}, [], False),
        ({"on_error": UseDefault()}, ["if it fails: null"], True),
        ({"on_error": UseDefault("x" * 90), "must_execute": True}, ["must execute", "…"], True),
    ],
)
def test_a_node_says_what_its_failure_means_and_its_edges_whether_there_is_a_default(
    settings, notes, has_default
):
    builder, a = steps("a", **settings)
    graph = flow_graph(builder.set_output(a).build())
    assert len(graph.nodes[0].notes) == len(notes)
    assert all(
        said in note and len(note) < 40 for said, note in zip(notes, graph.nodes[0].notes, strict=True)
    )
    assert graph.edges[0].has_default is has_default


def test_a_step_that_nothing_can_need_never_runs():
    builder, a, b, c = steps("a", "b", "c")
    builder.add_step("d", component="/x/y", input=[a, if_(1, b)])
    builder.add_step("e", component="/x/y", input=builder.step("d"), must_execute=True)
    builder.add_step("f", component="/x/y", input=c)
    graph = flow_graph(builder.build())
    assert [node.name for node in graph.nodes if node.never_runs] == ["c", "f"]
    assert graph.nodes[2].notes == ["never runs"]


def test_a_step_that_must_execute_leads_to_the_output_unless_that_needs_it_anyway():
    builder, a, _ = steps("a", "b", must_execute=True)
    builder.add_step("c", component="/x/y", input=a)
    builder.set_output(builder.step("c"))
    by_ends = edges(builder)
    assert set(by_ends) == {("a", "c"), ("c", "output"), ("b", "output")}
    edge = by_ends["b", "output"]
    assert (edge.uses, edge.is_conditional, edge.has_default, edge.labels) == ((), False, False, [])


def test_plugins_are_numbered_as_they_appear():
    builder = FlowBuilder()
    for number, component in enumerate(["/b/x", "/a/y", "/b/z", "/c"]):
        builder.add_step(f"s{number}", component=component)
    assert flow_graph(builder.build()).plugins == {"b": 0, "a": 1, "c": 2}


def test_control_characters_are_shown_escaped():
    builder = FlowBuilder()
    a = builder.add_step("a\nb\x1b", component="/x/\u202e")
    graph = flow_graph(builder.set_output(a["\x00"]).build())
    assert (graph.nodes[0].name, graph.nodes[0].component) == (r"a\nb\x1b", r"/x/\u202e")
    assert graph.edges[0].labels == [r"\x00"]


def test_a_flow_made_by_hand_that_reads_what_is_not_there_is_refused():
    late = Flow(steps=(Step(id="a", component="/x", input=StepRef("b")), Step(id="b", component="/x")))
    with pytest.raises(LocalProtocolError, match='step "a" reads "b", which is no step before it'):
        flow_graph(late)
    with pytest.raises(LocalProtocolError, match='the output reads "c"'):
        flow_graph(Flow(output=StepRef("c")))
