import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepflow_trio.errors import FlowInvalid
from stepflow_trio.flows.diagnostics import DiagnosticKind
from stepflow_trio.flows.reader import read_flow
from stepflow_trio.flows.source import read_source, source_of_value
from stepflow_trio.flows.source_text import SourceLimits


def value_of(text, name="f.yaml"):
    source = read_source(text, name=name)
    assert source.diagnostics == ()
    return source.value


def faults_of(text, name="f.yaml", **limits):
    """Everything found, as (line, column, kind, message)."""
    try:
        found = read_source(text, name=name, limits=SourceLimits(**limits)).diagnostics
    except FlowInvalid as exc:
        found = exc.diagnostics
    assert found
    return [(d.place.line, d.place.column, d.kind, d.message) for d in found]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("00123", "00123"),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", "017"),
        ("-7", -7),
        ("+7", 7),
        ("1.50", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("NaN", "NaN"),
        ("'1'", "1"),
        ('"\\u00e9\\n"', "é\n"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("! 1", "1"),
        ("<<", "<<"),
        ("|\n  a\n  b\n", "a\nb\n"),
    ],
)
def test_a_scalar_is_read_by_the_core_schema_of_yaml_1_2(written, value):
    read = value_of(f"a: {written}")["a"]
    assert read == value
    assert type(read) is type(value)


def test_anchors_aliases_and_merge_keys_are_resolved():
    text = """\
base: &base {a: 1, b: 2}
other: &other {b: 3, c: 4}
merged: {<<: *base, b: 9}
both:
  <<: [*base, *other]
quoted: {"<<": 1}
again: *base
"""
    value = value_of(text)
    assert value["merged"] == {"a": 1, "b": 9}
    assert value["both"] == {"a": 1, "b": 2, "c": 4}
    assert value["quoted"] == {"<<": 1}
    assert value["again"] is value["base"]


def test_crlf_cr_and_a_byte_order_mark_change_nothing():
    lines = ["a:", "  b: 1", "c: |", "  x", "  y", ""]
    expected = value_of("\n".join(lines))
    for end in ("\r\n", "\r"):
        assert value_of(b"\xef\xbb\xbf" + end.join(lines).encode()) == expected
    for end in ("\n", "\r\n", "\r"):
        text = "\ufeff" + end.join(['{"a": 1,', ' "b": 2', "}", ""])
        source = read_source(text, name="f.json")
        assert (source.value, str(source.place(("b",)))) == ({"a": 1, "b": 2}, "f.json:2:7")


@pytest.mark.parametrize("name", ["f.json", "f.yaml", "<flow>"])
def test_json_is_read_as_json_whatever_the_source_is_called(name):
    text = '{"a": "\\ud83d\\ude00\\/", "b": [1, 1.0, -0.0, true, null]}'
    assert value_of(text, name) == {"a": "😀/", "b": [1, 1.0, -0.0, True, None]}


@pytest.mark.parametrize("text", ["{a: 1}", '{"a": 1,}', '{"a": 1} # yaml'])
def test_yaml_that_starts_like_json_is_read_as_yaml_from_a_yaml_file(text):
    assert value_of(text, "f.yml") == {"a": 1}


def test_a_json_file_is_not_read_as_yaml():
    assert faults_of("a: 1", "f.json") == [
        (1, 1, DiagnosticKind.SYNTAX_ERROR, "this is not JSON: Expecting value")
    ]


@pytest.mark.parametrize(
    ("text", "name", "fault"),
    [
        ("", "f.yaml", (1, 1, DiagnosticKind.SYNTAX_ERROR, "the text is empty")),
        ("# only a comment\n", "f.yaml", (1, 1, DiagnosticKind.SYNTAX_ERROR, "the text is empty")),
        ("a: 1\n---\nb: 2\n", "f.yaml", (2, 1, DiagnosticKind.SYNTAX_ERROR, "a second YAML document")),
        ("a:\n\tb: 1\n", "f.yaml", (2, 1, DiagnosticKind.SYNTAX_ERROR, "found character '\\t'")),
        ("a: b: c\n", "f.yaml", (1, 5, DiagnosticKind.SYNTAX_ERROR, "mapping values are not allowed here")),
        ("a: 'b\n", "f.yaml", (2, 1, DiagnosticKind.SYNTAX_ERROR, "found unexpected end of stream")),
        ("a: b\x00c\n", "f.yaml", (1, 5, DiagnosticKind.SYNTAX_ERROR, "character U+0000 is not allowed")),
        ("a: *b\n", "f.yaml", (1, 4, DiagnosticKind.SYNTAX_ERROR, "there is no anchor &b before this alias")),
        ("a: &a [*a]\n", "f.yaml", (1, 8, DiagnosticKind.SYNTAX_ERROR, "inside its own anchor &a")),
        ('{"a": 1,\n "b" 2}', "f.json", (2, 6, DiagnosticKind.SYNTAX_ERROR, "this is not JSON")),
        (b"a: \xff\n", "f.yaml", (1, 4, DiagnosticKind.UNREADABLE, "byte 0xff at offset 3 is not UTF-8")),
        ("é: 1\n".encode() + b"b: \xe9", "f.yaml", (2, 4, DiagnosticKind.UNREADABLE, "at offset 9")),
        ("a: 1".encode("utf-16"), "f.yaml", (0, 0, DiagnosticKind.UNREADABLE, "the text is UTF-16")),
        ("a: .inf", "f.yaml", (1, 4, DiagnosticKind.NOT_JSON, "JSON has no inf")),
        ("a: .NaN", "f.yaml", (1, 4, DiagnosticKind.NOT_JSON, "JSON has no nan")),
        ('{"a": [NaN]}', "f.json", (1, 8, DiagnosticKind.NOT_JSON, "JSON has no nan")),
        (
            '{"a": 1e400}',
            "f.json",
            (1, 7, DiagnosticKind.NOT_JSON, "JSON has no inf, nor numbers that large"),
        ),
        ('{"a": ' + "9" * 5000 + "}", "f.json", (1, 7, DiagnosticKind.NOT_JSON, "this number is too long")),
        ("a: " + "9" * 5000, "f.yaml", (1, 4, DiagnosticKind.NOT_JSON, "JSON has no inf")),
        ("a: 0x" + "f" * 5000, "f.yaml", (1, 4, DiagnosticKind.NOT_JSON, "this number is too large")),
        ('{"a": "\\ud800"}', "f.json", (1, 7, DiagnosticKind.NOT_JSON, "half a surrogate pair")),
        ('a: "\\ud800"', "f.yaml", (1, 4, DiagnosticKind.NOT_JSON, "half a surrogate pair")),
        ("a: !!binary aGk=", "f.yaml", (1, 4, DiagnosticKind.NOT_JSON, "the tag !!binary has no meaning")),
        ("a: !!timestamp 2024-01-01", "f.yaml", (1, 4, DiagnosticKind.NOT_JSON, "the tag !!timestamp")),
        ("a: !!set {x}", "f.yaml", (1, 4, DiagnosticKind.NOT_JSON, "the tag !!set has no meaning")),
        ("a: !own [1]", "f.yaml", (1, 4, DiagnosticKind.NOT_JSON, "the tag !own has no meaning")),
        ("a: !!int x", "f.yaml", (1, 4, DiagnosticKind.NOT_JSON, "'x' is not a value of type !!int")),
        ("a: {<<: 1}", "f.yaml", (1, 9, DiagnosticKind.WRONG_TYPE, "a merge key (<<) takes a mapping")),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line_and_column(text, name, fault):
    [(line, column, kind, message)] = faults_of(text, name)
    assert (line, column, kind) == fault[:3]
    assert fault[3] in message


@pytest.mark.parametrize("name", ["f.yaml", "f.json"])
def test_every_duplicate_key_is_found_with_its_place_and_its_path(name):
    text = '{"a": 1,\n "b": [{"x": 1,\n        "x": {"x": 1}}],\n "a": 3}'
    with_paths = [(d.place.line, d.place.column, d.path) for d in read_source(text, name=name).diagnostics]
    assert with_paths == [(3, 9, ("b", 0, "x")), (4, 2, ("a",))]
    yaml = "a: 1\nb:\n- x: 1\n  x: {x: 1}\na: 3\n"
    assert faults_of(yaml) == [
        (4, 3, DiagnosticKind.DUPLICATE_KEY, 'the key "x" is already in line 3'),
        (5, 1, DiagnosticKind.DUPLICATE_KEY, 'the key "a" is already in line 1'),
    ]


def test_every_key_that_is_not_a_string_is_found():
    text = "1: a\ntrue: b\n? [c]\n: d\nok: {null: e}\n"
    assert [(line, column, message.partition(";")[0]) for line, column, _, message in faults_of(text)] == [
        (1, 1, "this key is a number"),
        (2, 1, "this key is a boolean"),
        (3, 3, "this key is an array"),
        (5, 6, "this key is null"),
    ]
    assert read_source(text, name="f.yaml").diagnostics[0].suggestion == 'write it in quotes: "1"'


@pytest.mark.parametrize("name", ["f.yaml", "f.json"])
def test_the_bounds_hold_at_n_and_break_at_n_plus_1(name):
    nested = "[" * 4 + "]" * 4
    assert read_source(f'{{"a": {nested}}}', name=name, limits=SourceLimits(max_depth=5)).value
    [(line, _, kind, message)] = faults_of(f'{{"a": {nested}}}', name, max_depth=4)
    assert (line, kind) == (1, DiagnosticKind.LIMIT_EXCEEDED)
    assert "more than 4 deep" in message

    text = '{"é": 1}'
    assert read_source(text, name=name, limits=SourceLimits(max_bytes=9)).value
    assert faults_of(text, name, max_bytes=8) == [
        (0, 0, DiagnosticKind.LIMIT_EXCEEDED, "9 bytes are more than the 8 allowed")
    ]


def test_aliases_count_for_what_they_stand_for():
    text = "a: &a [1, 2, 3]\nb: [*a, *a]\n"
    assert read_source(text, name="f", limits=SourceLimits(max_alias_nodes=8)).value
    assert faults_of(text, max_alias_nodes=7) == [
        (2, 9, DiagnosticKind.LIMIT_EXCEEDED, "the aliases up to here stand for more than 7 values")
    ]


def test_aliases_of_what_holds_aliases_count_in_full():
    text = "a: &a [1]\nb: &b [*a, *a]\nc: [*b]\n"
    assert read_source(text, name="f", limits=SourceLimits(max_alias_nodes=9)).value
    assert faults_of(text, max_alias_nodes=8)[0][:2] == (3, 5)


def test_depth_is_counted_behind_aliases():
    text = "a: &a [[1]]\nb: &b [*a]\nc: [*b]\n"
    assert read_source(text, name="f", limits=SourceLimits(max_depth=5)).value
    assert [fault[2] for fault in faults_of(text, max_depth=4)] == [DiagnosticKind.LIMIT_EXCEEDED]


def billion_laughs():
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{" * 100_000,
        "[\n" * 100_000,
        "- " * 100_000,
        '{"a":' * 100_000,
        "[" * 100_000 + "]" * 100_000,
        billion_laughs(),
        "\t" * 1000,
        "\x00" * 1000,
        b"\xff" * 1000,
        "a: " + "&a " * 1000,
        "? " * 10_000,
        "!" * 10_000,
        '"' + "\\" * 9999,
        "%YAML 9.9\n---\na: 1",
        "%TAG ! tag:x,2000:\n---\na: !b 1",
        '"\\UFFFFFFFF"',
    ],
    ids=lambda text: repr(text[:8]),
)
def test_hostile_text_is_refused_quickly(text):
    for name in ("f.yaml", "f.json", "<flow>"):
        before = time.perf_counter()
        assert faults_of(text, name)
        assert time.perf_counter() - before < 5


PIECES = st.sampled_from(
    [
        *"[]{}:,-?&*!|>'\"%@`#<~ \n\t\r\\0aé",
        "a: ",
        "- ",
        "<<: ",
        "*a",
        "&a ",
        "!!int ",
        '"\\u',
        "---\n",
        "1.",
        "\ud800",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=40).map("".join) | st.text() | st.binary())
def test_any_text_at_all_is_read_or_refused(text):
    for name in ("f.yaml", "f.json"):
        try:
            source = read_source(text, name=name)
        except FlowInvalid as exc:
            str(exc).encode()
        else:
            if not source.diagnostics:
                json.dumps(source.value, allow_nan=False).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON.filter(lambda value: isinstance(value, dict)), st.sampled_from([None, 2]))
def test_json_text_is_read_as_the_value_that_it_is(value, indent):
    text = json.dumps(value, indent=indent)
    assert json.dumps(value_of(text, "f.json")) == json.dumps(value)


def paths_of(value, path=()):
    yield path
    members = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, member in members:
        yield from paths_of(member, (*path, key))


@given(JSON.filter(lambda value: isinstance(value, dict) and value))
def test_the_place_of_every_value_in_json_text_is_where_that_value_starts(value):
    text = json.dumps(value, indent=1)
    source = read_source(text, name="f.json")
    lines = text.split("\n")
    for path in paths_of(value):
        place = source.place(path)
        inner = value
        for part in path:
            inner = inner[part]
        assert lines[place.line - 1].startswith(json.dumps(inner)[:1], place.column - 1)
        if path and isinstance(path[-1], str):
            key = source.place(path, at_key=True)
            assert lines[key.line - 1].startswith(json.dumps(path[-1]) + ":", key.column - 1)


def test_places_in_yaml_are_those_of_keys_values_and_anchored_content():
    source = read_source("a:\n  - b: x\n  - *later\n".replace("*later", "c"), name="f.yaml")
    assert str(source.place(("a",))) == "f.yaml:2:3"
    assert str(source.place(("a",), at_key=True)) == "f.yaml:1:1"
    assert str(source.place(("a", 0, "b"))) == "f.yaml:2:8"
    assert str(source.place(("a", 1))) == "f.yaml:3:5"
    assert str(source.place(("a", 0, "gone"))) == "f.yaml:2:5"
    assert str(source.place(("gone",))) == "f.yaml:1:1"
    shared = read_source("x: &x {k: 1}\ny: *x\nz:\n  <<: *x\n", name="f.yaml")
    assert str(shared.place(("y",))) == "f.yaml:2:4"
    assert str(shared.place(("y", "k"))) == "f.yaml:1:11"
    assert str(shared.place(("z", "k"), at_key=True)) == "f.yaml:1:8"


def shared_too_often():
    value = [1]
    for _ in range(60):
        value = [value, value]
    return value


def ring():
    value = {}
    value["a"] = [value]
    return value


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        ({"a": (1,)}, ("a",), "this is a Python tuple, which JSON does not have"),
        ({"a": b""}, ("a",), "this is a Python bytes, which JSON does not have"),
        ({"a": {1: 2}}, ("a",), "the key 1 is a number; keys are strings"),
        ({"a": [float("nan")]}, ("a", 0), "JSON has no nan"),
        ({"a": 10**400}, ("a",), "this number is too large"),
        ({"\ud800": 1}, (), "half a surrogate pair"),
        (object(), (), "this is a Python object"),
        (ring(), ("a", 0) * 64, "nested more than 128 deep"),
        (shared_too_often(), (), "there are more than"),
    ],
    ids=range(9),
)
def test_a_python_value_that_is_not_json_is_refused_with_its_path(value, path, message):
    limits = SourceLimits(max_bytes=10_000)
    with pytest.raises(FlowInvalid) as caught:
        source_of_value(value, name="f", limits=limits)
    [found] = caught.value.diagnostics
    assert found.path == path
    assert message in found.message


def test_a_large_json_text_is_read_and_searched_in_time():
    value = {"steps": [{"id": f"s{i}", "input": {"a": [1, 2.5, "x"], "b": None}} for i in range(20_000)]}
    text = json.dumps(value)
    before = time.perf_counter()
    source = read_source(text, name="f.json")
    assert str(source.place(("steps", 19_999, "id"))).startswith("f.json:1:")
    assert time.perf_counter() - before < 10


def test_a_text_in_one_long_line_is_not_copied_for_every_finding() -> None:
    steps = ",".join(
        f'{{"id":"s{n}","component":"/x","inputs":{{"text":"{"y" * 1000}"}}}}' for n in range(200)
    )
    with pytest.raises(FlowInvalid) as caught:
        read_flow('{"steps":[' + steps + "]}", name="long.json")
    assert len(caught.value.diagnostics) >= 200
    assert all(len(found.place.excerpt) <= 10_000 for found in caught.value.diagnostics)
    assert all(found.place.column > 1 for found in caught.value.diagnostics)


@pytest.mark.parametrize(
    ("text", "column"),
    [('{"a": 1,}', 8), ("[1 , ]", 4), ('{"a": [1,\n]}', 9), ('[{"a": 1,}, 2]', 9)],
)
def test_a_comma_after_the_last_member_is_pointed_at(text, column):
    with pytest.raises(FlowInvalid) as caught:
        read_source(text, name="f.json")
    [found] = caught.value.diagnostics
    assert found.message == "this is not JSON: there is a comma after the last member"
    assert (found.place.line, found.place.column) == (1, column)


def test_a_part_of_a_source_has_its_own_paths_and_the_places_of_the_whole():
    whole = read_source("a:\n  - {b: {c: 1, c: 2}}\nx: 1\n", name="f.yaml")
    part = whole.part(("a", 0, "b"))
    assert part.value == {"c": 2}
    assert str(part.place(())) == "f.yaml:2:9"
    assert str(part.place(("c",))) == str(whole.place(("a", 0, "b", "c")))
    (repeated,) = part.diagnostics
    assert (repeated.path, repeated.place) == (("c",), whole.diagnostics[0].place)
    assert whole.part(("x",)).diagnostics == ()
    assert whole.part(()) is whole
