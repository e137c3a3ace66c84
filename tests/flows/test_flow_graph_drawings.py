"""A flow's graph as SVG, Mermaid and DOT: complete, well-formed whatever it says, the same every time."""

import re
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow_trio.flows.builder import FlowBuilder, coalesce
from stepflow_trio.flows.dot_drawing import draw_dot
from stepflow_trio.flows.graph import flow_graph, shortened
from stepflow_trio.flows.mermaid_drawing import draw_mermaid
from stepflow_trio.flows.model import UseDefault
from stepflow_trio.flows.reader import read_flow_file
from stepflow_trio.flows.svg_drawing import draw_svg

DOCS = Path(__file__).parent.parent.parent / "docs"
EXAMPLE = DOCS / "examples" / "text_report" / "flow.yaml"
SVG = "{http://www.w3.org/2000/svg}"

ODD = [
    'a"b', "<script>", "&lt;", "]]>", "--", "`x`", "*b*", "_i_", "__x__", "1. x", "2) y", "- z", "+ z", "\\",
    "\\N", 'c\\"', "x\ny", "\x00\x1b[31m", "\u202ertl", "漢字", "e\u0301", "W" * 300, "[x](y)", "a|b", "{x}",
    "#quot;", "$x$", "%% c", "https://x.y", "a@b.c", " lead", "", "~~s~~", "../..", "href=javascript:x",
]  # fmt: skip


def svg(graph, **settings):
    return ET.fromstring(draw_svg(graph, **settings).text)  # noqa: S314 — our own


def texts(root):
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def tooltips(root):
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}title")]


def example():
    return flow_graph(read_flow_file(EXAMPLE))


def kinds():
    """A graph with every kind of node and arrow."""
    builder = FlowBuilder(name="kinds", description="word " * 60)
    a = builder.add_step("a", component="/p/a", input=builder.input, on_error=UseDefault(1))
    b = builder.add_step("b", component="/q/b", input={"v": builder.variable("v", 1)})
    builder.add_step("idle", component="/q/idle", input=a["x"])
    builder.add_step("must", component="/q/must", must_execute=True)
    return flow_graph(builder.set_output(coalesce(a, b["r"])).build())


def odd_graph(names):
    builder = FlowBuilder(name="".join(names))
    before = builder.input
    for number, name in enumerate(names):
        step = builder.add_step(f"{number}{name}", component=f"/x/{name}", input=before[name])
        before = step
    return flow_graph(builder.set_output(before).build())


# SVG


def test_the_drawing_has_every_step_with_its_component_and_what_is_read_of_it():
    root = svg(example())
    shown = texts(root)
    assert shown[:2] == ["text report", example().description]
    for node in example().nodes:
        assert node.name in shown
        assert node.component == "" or node.component in shown
    assert shown.count("text_id") == 5
    assert "if find_echoes" in shown
    assert "load → words\n$.text_id → $.text_id" in tooltips(root)
    assert "echoes → report\n$ → $.echoes (conditional)" in tooltips(root)


def test_without_details_there_are_ids_and_arrows_only():
    root = svg(example(), details=False)
    assert set(texts(root)) == {node.name for node in example().nodes} | {"read only if a choice comes to it"}
    assert len(list(root.iter(f"{SVG}path"))) > len(example().edges)


def test_each_kind_of_arrow_is_drawn_in_its_own_way_and_explained():
    root = svg(kinds())
    drawn = {
        element.findtext(f"{SVG}title").partition("\n")[0]: element.find(f"{SVG}path").get("class")
        for element in root.iter(f"{SVG}g")
        if element.find(f"{SVG}path") is not None and " → " in element.findtext(f"{SVG}title")
    }
    assert drawn == {
        "input → a": "edge",
        "variables → b": "edge",
        "a → idle": "edge default faint",
        "a → output": "edge default",
        "b → output": "edge conditional",
        "must → output": "edge control",
    }
    shown = texts(root)
    for meaning in ("read only if", "or the step's default", "must execute, though"):
        assert any(text.startswith(meaning) for text in shown)
    assert not any("or the step's default" in text for text in texts(svg(example())))


def test_the_same_graph_gives_the_same_text():
    for draw in (draw_svg, draw_mermaid, draw_dot):
        assert draw(kinds()) == draw(kinds())


def test_long_texts_are_cut_and_whole_in_the_tooltip():
    name = "".join(f"{number:04}" for number in range(100))
    builder = FlowBuilder()
    a = builder.add_step(name, component=f"/x/{name}")
    for number in range(9):
        builder.add_output_field(f"f{number}", a[f"{number}{name}"])
    drawing = draw_svg(flow_graph(builder.build()))
    root = ET.fromstring(drawing.text)  # noqa: S314 — our own
    assert max(map(len, texts(root))) < 60
    assert drawing.width < 600
    assert "+ 6 more" in texts(root)
    assert any(name in tooltip for tooltip in tooltips(root))
    assert any(f"$.8{name} → $.f8" in tooltip for tooltip in tooltips(root))


@pytest.mark.parametrize("name", ODD)
def test_no_text_of_a_flow_breaks_out_of_the_drawing(name):
    graph = odd_graph([name, "x"])
    plain = odd_graph(["x", "x"])
    root = svg(graph)
    assert [element.tag for element in root.iter()] == [element.tag for element in svg(plain).iter()]
    assert shortened(graph.nodes[1].name, 36) in texts(root)
    assert all(text.isprintable() for text in texts(root))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_any_flow_is_a_well_formed_drawing_in_one_piece(names):
    graph = odd_graph(names)
    svg(graph)
    lines = draw_mermaid(graph).splitlines()
    assert len(lines) == 4 + len(graph.nodes) + len(graph.edges) - (0 if "".join(names) else 3)
    assert draw_dot(graph).count("\n") == 4 + len(graph.nodes) + len(graph.edges) + bool("".join(names))


def test_five_hundred_steps_are_drawn_in_less_than_two_seconds():
    builder = FlowBuilder(name="many")
    handles = [builder.add_step("first", component="/x/y", input=builder.input["x"])]
    for number in range(499):
        read = {"a": handles[-1]["r"], "b": handles[number // 2]["s"], "c": handles[-(number % 7) - 1]}
        handles.append(builder.add_step(f"step_{number}", component="/x/y", input=read))
    flow = builder.set_output([handle["z"] for handle in handles[::10]]).build()
    began = time.process_time()
    drawing = draw_svg(flow_graph(flow))
    assert time.process_time() - began < 2
    assert drawing.text.count("<title>") > 500


def test_what_is_cut_is_named_at_its_end():
    builder = FlowBuilder()
    last = builder.add_step("s0", component="/x/y")
    handles = [last]
    for number in range(1, 80):
        last = builder.add_step(f"s{number}", component="/x/y", input=last)
        handles.append(last)
    graph = flow_graph(builder.set_output([handle["z"] for handle in handles]).build())
    assert "s0.z" in texts(svg(graph))
    assert texts(svg(graph, details=False)).count("s0") == 2


# Mermaid and DOT


def test_mermaid_says_the_same():
    assert draw_mermaid(kinds()) == (
        """\
---
title: "kinds"
---
flowchart TD
    n0(["input"])
    n1(["variables"])
    n2["a<br/>/p/a<br/>if it fails#58; 1"]
    n3["b<br/>/q/b"]
    n4["idle<br/>/q/idle<br/>never runs"]
    n5["must<br/>/q/must<br/>must execute"]
    n6(["output"])
    n0 --> n2
    n1 -->|"v"| n3
    n2 -->|"x"| n4
    n2 --> n6
    n3 -.->|"r"| n6
    n5 -.->|"must execute"| n6
    linkStyle 2,3 stroke:#c07a10
    classDef idle stroke-dasharray:3 3,opacity:0.6
    class n4 idle
"""
    )
    assert draw_mermaid(kinds(), details=False).splitlines()[:5] == [
        "flowchart TD",
        '    n0(["input"])',
        '    n1(["variables"])',
        '    n2["a"]',
        '    n3["b"]',
    ]


def test_the_drawing_on_the_page_is_the_one_that_is_made():
    text = (DOCS / "building.md").read_text(encoding="utf-8")
    assert re.findall("^```mermaid\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) == [draw_mermaid(example())]


@pytest.mark.parametrize("name", ODD)
def test_mermaid_reads_no_text_as_anything_but_text(name):
    text = draw_mermaid(odd_graph([name, "x"]))
    [label] = re.findall(r'^    n1\["(.*)"\]$', text, re.MULTILINE)
    bare = re.sub(r"#\d+;|<br/>", "·", label)
    assert not set(bare) & set('"#&<>`\\*~$@:')
    assert not re.search(r"\]\(|\d[.)]", bare)


def test_dot_says_the_same():
    lines = draw_dot(kinds()).splitlines()
    assert lines[0] == "digraph flow {"
    assert '    n2 [label="a\\n/p/a\\nif it fails: 1"];' in lines
    assert "    n0 -> n2;" in lines
    assert '    n3 -> n6 [label="r", style=dashed];' in lines
    assert "    n5 -> n6 [style=dotted];" in lines
    assert '    n2 -> n4 [label="x", color="#c07a10"];' in lines
    assert '    n2 [label="a"];' in draw_dot(kinds(), details=False).splitlines()


@pytest.mark.parametrize("name", ODD)
def test_dot_s_texts_are_quoted(name):
    [label] = re.findall(r"^    n1 \[label=(.*)\];$", draw_dot(odd_graph([name, "x"])), re.MULTILINE)
    assert re.fullmatch(r'"(?:[^"\\]|\\["\\n])*"', label)
