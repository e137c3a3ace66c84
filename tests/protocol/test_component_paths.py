"""Component path patterns: which one fits a path, what it captures, what cannot be registered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.protocol.paths import PathTable, parameter_names


def table(*patterns):
    result = PathTable()
    for pattern in patterns:
        result.add(pattern, pattern)
    return result


def test_a_plain_path_matches_itself_and_captures_nothing():
    assert table("/add").match("/add") == ("/add", {})
    assert table("/add").match("/ad") is None
    assert table("/add").match("/add/more") is None


def test_a_missing_leading_slash_is_added_to_patterns_and_to_paths():
    assert table("add").match("add") == ("add", {})
    assert table("add").match("/add") == ("add", {})
    assert table("add", "models/{m}").patterns() == ["/add", "/models/{m}"]


def test_a_parameter_captures_exactly_one_segment_that_is_not_empty():
    models = table("/models/{name}")
    assert models.match("/models/gpt") == ("/models/{name}", {"name": "gpt"})
    assert models.match("/models/") is None
    assert models.match("/models") is None
    assert models.match("/models/a/b") is None


def test_a_rest_parameter_captures_one_segment_or_more_verbatim():
    files = table("/fs/{*path}")
    assert files.match("/fs/a") == ("/fs/{*path}", {"path": "a"})
    assert files.match("/fs/a/b//c/") == ("/fs/{*path}", {"path": "a/b//c/"})
    assert files.match("/fs/") is None
    assert files.match("/fs") is None


def test_literals_win_over_parameters_and_parameters_over_the_rest():
    t = table("/{*all}", "/{one}", "/models/{name}", "/models/gpt")
    assert t.match("/models/gpt")[0] == "/models/gpt"
    assert t.match("/models/other")[0] == "/models/{name}"
    assert t.match("/models")[0] == "/{one}"
    assert t.match("/models/a/b")[0] == "/{*all}"


def test_the_earliest_segment_decides_even_against_more_literals_later():
    assert table("/{a}/b/c", "/a/{b}/{c}").match("/a/b/c")[0] == "/a/{b}/{c}"


def test_a_dead_end_behind_a_literal_backtracks_to_the_parameter():
    t = table("/a/b/c", "/a/{x}/d", "/{y}/b/e", "/{*z}")
    assert t.match("/a/b/d") == ("/a/{x}/d", {"x": "b"})
    assert t.match("/a/b/e") == ("/{y}/b/e", {"y": "a"})
    assert t.match("/a/b/f") == ("/{*z}", {"z": "a/b/f"})


def test_patterns_that_share_a_position_capture_under_their_own_names():
    t = table("/models/{name}", "/models/{model_id}/run", "/models/{which}/{*rest}")
    assert t.match("/models/m") == ("/models/{name}", {"name": "m"})
    assert t.match("/models/m/run") == ("/models/{model_id}/run", {"model_id": "m"})
    assert t.match("/models/m/x/y")[1] == {"which": "m", "rest": "x/y"}


def test_patterns_and_values_come_in_the_order_of_registration():
    t = PathTable()
    t.add("/b/{x}", 2)
    t.add("/a", 1)
    assert t.patterns() == ["/b/{x}", "/a"]
    assert t.values() == [2, 1]


def test_the_closest_patterns_are_suggested_likeliest_first():
    t = table("/add", "/subtract", "/models/{name}")
    assert t.closest("/sbtract", 3) == ["/subtract"]
    assert t.closest("ad", 1) == ["/add"]
    assert t.closest("/completely/else", 3) == []
    assert t.closest("x" * 1_000_000, 3) == []


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("/", "empty segment"),
        ("", "empty segment"),
        ("/a//b", "empty segment"),
        ("/a/", "empty segment"),
        ("/{x", "whole segment"),
        ("/x}", "whole segment"),
        ("/v{x}", "whole segment"),
        ("/{x}{y}", "whole segment"),
        ("/{{x}}", "whole segment"),
        ("/{}", "identifier"),
        ("/{*}", "identifier"),
        ("/{1a}", "identifier"),
        ("/{a-b}", "identifier"),
        ("/{**a}", "identifier"),
        ("/{a}/{a}", "two parameters named 'a'"),
        ("/{a}/{*a}", "two parameters named 'a'"),
        ("/{*a}/b", "nothing can follow"),
    ],
)
def test_a_malformed_pattern_is_refused_and_the_message_says_why(pattern, complaint):
    t = table("/fine")
    with pytest.raises(LocalProtocolError, match=complaint):
        t.add(pattern, "new")
    with pytest.raises(LocalProtocolError, match=complaint):
        parameter_names(pattern)
    assert t.patterns() == ["/fine"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("/add", "add"), ("/m/{a}", "/m/{b}"), ("/m/{a}/x", "/m/{b}/x"), ("/fs/{*a}", "/fs/{*b}")],
)
def test_a_second_pattern_of_the_same_shape_is_refused(first, second):
    t = table(first)
    with pytest.raises(LocalProtocolError, match="registered"):
        t.add(second, "new")
    assert len(t.patterns()) == 1


def test_the_parameters_of_a_pattern_are_named_from_left_to_right():
    assert parameter_names("/a/{x}/b/{*y}") == ("x", "y")
    assert parameter_names("a") == ()


def test_hostile_paths_are_no_match_or_captured_verbatim():
    t = table("/a/{x}", "/fs/{*path}", "/{p}/{q}/{r}")
    long = "/".join(["s"] * 100_000)
    assert t.match("/a/" + long) is None
    assert t.match("/" * 100_000) is None
    assert t.match("/fs/" + long) == ("/fs/{*path}", {"path": long})
    for odd in ("..", ".", "\0", "%2e%2e", "\ud800", " ", "{x}", "é\n"):
        assert t.match(f"/a/{odd}") == ("/a/{x}", {"x": odd})
        assert t.match(f"/fs/../{odd}") == ("/fs/{*path}", {"path": f"../{odd}"})


def test_a_pattern_of_thousands_of_segments_needs_no_recursion():
    deep = "/" + "/".join([f"{{p{i}}}" if i % 2 else "a" for i in range(5000)])
    t = table(deep)
    path = "/" + "/".join(["a"] * 5000)
    assert len(t.match(path)[1]) == 2500
    assert t.match(path + "/a") is None


def test_backtracking_visits_each_position_once():
    # Each level offers a literal and a parameter, so 2**18 ways lead to the same miss.
    t = PathTable()
    for bits in range(2**10):
        segments = ["a" if bits >> i & 1 else f"{{p{i}}}" for i in range(10)]
        t.add("/" + "/".join(segments) + "/end", bits)
    assert t.match("/" + "a/" * 10 + "miss") is None
    assert t.match("/" + "a/" * 10 + "end")[0] == 2**10 - 1
    assert t.match("/" + "b/" * 10 + "end")[0] == 0


NAMES = st.sampled_from(["x", "y", "z"])
SEGMENTS = st.one_of(st.sampled_from(["a", "b"]), NAMES.map("{{{}}}".format))
PATTERNS = st.builds(
    lambda segments, rest: [*segments, *([f"{{*{rest}}}"] if rest else [])],
    st.lists(SEGMENTS, max_size=4),
    st.none() | NAMES,
)


def fits(pattern, path):
    """The rank of each segment and the captures, or None: the definition, as naive as it gets."""
    ranks, captures, left = [], {}, list(path)
    for segment in pattern:
        if segment.startswith("{*"):
            if not left or left == [""]:
                return None
            ranks.append(2)
            captures[segment[2:-1]] = "/".join(left)
            return ranks, captures
        if not left:
            return None
        got = left.pop(0)
        if segment.startswith("{"):
            if not got:
                return None
            ranks.append(1)
            captures[segment[1:-1]] = got
        elif segment != got:
            return None
        else:
            ranks.append(0)
    return None if left else (ranks, captures)


@given(
    patterns=st.lists(PATTERNS, max_size=12),
    paths=st.lists(st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=5), max_size=8),
)
def test_matching_agrees_with_the_naive_definition(patterns, paths):
    t, registered, shapes = PathTable(), [], set()
    for pattern in patterns:
        names = [s.strip("{*}") for s in pattern if s.startswith("{")]
        shape = tuple("{*}" if s.startswith("{*") else "{}" if s.startswith("{") else s for s in pattern)
        text = "/" + "/".join(pattern)
        if not pattern or len(names) != len(set(names)) or shape in shapes:
            with pytest.raises(LocalProtocolError):
                t.add(text, text)
        else:
            t.add(text, text)
            registered.append(pattern)
            shapes.add(shape)
    assert t.patterns() == ["/" + "/".join(p) for p in registered]
    for path in paths:
        found = [(*fit, p) for p in registered if (fit := fits(p, path)) is not None]
        best = min(found, key=lambda f: f[0], default=None)
        expected = None if best is None else ("/" + "/".join(best[2]), best[1])
        assert t.match("/" + "/".join(path)) == expected
