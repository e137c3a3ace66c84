import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.errors import PathInvalid
from stepflow_trio.flows.paths import NothingThere, parse_path, render_path, resolve


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", ()),
        ("$", ()),
        ("  $  ", ()),
        ("a", ("a",)),
        ("$.a", ("a",)),
        ("$.a.b[0].c", ("a", "b", 0, "c")),
        ("$['a']", ("a",)),
        ('$["a"]', ("a",)),
        ("$[ 0 ][ 'a' ]", (0, "a")),
        ("$..a", ("a",)),
        ("$.a.", ("a",)),
        ("$.with space.x-y", ("with space", "x-y")),
        ("$['a.b']", ("a.b",)),
        ("$['']", ("",)),
        ("$['a]b']", ("a]b",)),
        (r"$['it\'s \\ here']", (r"it's \ here",)),
        (r"$['a\nb']", (r"a\nb",)),
        ("$.é", ("é",)),
    ],
)
def test_a_path_is_read_into_its_fields_and_indices(text, path):
    assert parse_path(text) == path


@pytest.mark.parametrize("text", ["a.b", "a[0]", "'a'", " a"])
def test_a_text_that_does_not_start_with_a_dollar_is_one_field_name(text):
    assert parse_path(text) == (text,)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("$a", "expected '.' or '[' at character 2, not 'a'"),
        ("$[0]a", "expected '.' or '[' at character 5, not 'a'"),
        ("$[*]", "wildcards are not supported"),
        ("$[?(@.a)]", "filters are not supported"),
        ("$[-1]", "cannot be negative"),
        ("$[0:2]", "slices are not supported"),
        ("$['a", "the bracket opened at character 2 is never closed"),
        ("$[a]", "expected an index"),
        ("$[" + "9" * 5000 + "]", "expected an index"),
    ],
)
def test_what_is_outside_the_subset_is_refused_with_the_reason(text, why):
    with pytest.raises(PathInvalid) as caught:
        parse_path(text)
    assert why in caught.value.why


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), "$"),
        (("a",), "$.a"),
        (("a", 0, "b c"), "$.a[0].b c"),
        (("a.b",), "$['a.b']"),
        (("",), "$['']"),
        (("a[0]",), "$['a[0]']"),
        ((" a", "a ", 0), "$. a.a [0]"),
        (("a", "a "), "$.a['a ']"),
        (("it's",), "$.it's"),
        (("it's.",), r"$['it\'s.']"),
    ],
)
def test_a_field_is_quoted_only_where_it_would_read_back_as_something_else(path, text):
    assert render_path(path) == text


@given(st.lists(st.text() | st.integers(0, 10**15)).map(tuple))
def test_every_path_survives_being_written_and_read(path):
    assert parse_path(render_path(path)) == path


@given(st.text())
def test_any_text_is_a_path_or_invalid(text):
    try:
        path = parse_path(text)
    except PathInvalid:
        return
    assert parse_path(render_path(path)) == path


def test_resolving_shares_the_value_that_it_finds():
    value = {"a": [{"b": {"deep": 1}}]}
    assert resolve(value, ("a", 0, "b")) is value["a"][0]["b"]


@pytest.mark.parametrize(
    ("value", "path", "reached", "why"),
    [
        ({"name": 1}, ("nmae",), (), "the object at $ has no field 'nmae'; did you mean 'name'?"),
        ({"a": {"x": 1}}, ("a", "b"), ("a",), "the object at $.a has no field 'b'"),
        ({"a": {"b": 1}}, ("a.b",), (), "did you mean the path '$.a.b'?"),
        ({"a": None}, ("a", "b"), ("a",), "$.a is null, which has no field 'b'"),
        ({"a": [1]}, ("a", 1), ("a",), "the array at $.a has 1 element, so none at index 1"),
        ({"a": [1]}, ("a", "0"), ("a",), "$.a is an array, which has no field '0'"),
        ({"0": 1}, (0,), (), "$ is an object, which has no index 0"),
        ("text", (0,), (), "$ is a string, which has no index 0"),
        (True, ("a",), (), "$ is a boolean, which has no field 'a'"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_broke(value, path, reached, why):
    nothing = resolve(value, path)
    assert isinstance(nothing, NothingThere)
    assert nothing.reached == reached
    assert why in nothing.why


def test_a_suggestion_is_found_in_time_among_very_many_fields():
    value = {f"field_{i}": i for i in range(200_000)}
    assert isinstance(resolve(value, ("feild_7",)), NothingThere)
