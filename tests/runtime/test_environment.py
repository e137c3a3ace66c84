"""Variables in configuration texts: what is replaced, what is a default, what is malformed."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stepflow_trio.runtime.environment import UnsetVariable, substitute

ENVIRON = {"HOST": "example.org", "EMPTY": "", "TRICKY": "$HOST ${HOST} } $$", "_x1": "under"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$HOST", "example.org"),
        ("${HOST}", "example.org"),
        ("http://$HOST/${HOST}:80", "http://example.org/example.org:80"),
        ("$HOST.$_x1-${_x1}", "example.org.under-under"),
        ("${EMPTY}|$EMPTY|", "||"),
    ],
)
def test_a_variable_is_replaced_with_and_without_braces(text, expected):
    assert substitute(text, ENVIRON) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${HOST:other}", "example.org"),
        ("${NONE:other}", "other"),
        ("${NONE:}", ""),
        ("${NONE:a:b}", "a:b"),
        ("${HOST:-other}", "example.org"),
        ("${NONE:-other}", "other"),
        ("${NONE:-}", ""),
        ("${NONE:--v}", "-v"),
        ("a${NONE:b}c${NONE:-d}e", "abcde"),
    ],
)
def test_a_default_stands_for_an_unset_variable_in_both_ways_to_write_it(text, expected):
    assert substitute(text, ENVIRON) == expected


def test_an_empty_variable_gives_way_to_the_shells_default_and_not_to_the_other():
    assert substitute("${EMPTY:-other}", ENVIRON) == "other"
    assert substitute("${EMPTY:other}", ENVIRON) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('${NONE:{"a": {"b": 1}}}', '{"a": {"b": 1}}'),
        ("${NONE:-{}}", "{}"),
        ("${NONE:<$HOST>}", "<example.org>"),
        ("${NONE:${NADA:-${HOST}}/x}", "example.org/x"),
        ("${NONE:{${HOST}}}", "{example.org}"),
        ("${NONE:$$5}", "$5"),
        ("{}${NONE:x}}{", "{}x}{"),
    ],
)
def test_a_default_may_hold_pairs_of_braces_and_variables(text, expected):
    assert substitute(text, ENVIRON) == expected


def test_two_dollar_signs_are_one_and_a_backslash_is_itself():
    assert substitute("$$HOST costs $$5 $$$HOST", ENVIRON) == "$HOST costs $5 $example.org"
    assert substitute(r"\d+\$HOST", ENVIRON) == r"\d+\example.org"


def test_what_a_value_holds_is_not_looked_at_again():
    assert substitute("$TRICKY${TRICKY:d}${NONE:$TRICKY}", ENVIRON) == "$HOST ${HOST} } $$" * 3


@pytest.mark.parametrize("text", ["$NONE", "a ${NONE} b", "${NADA:$NONE}", "${EMPTY:-${NONE}}"])
def test_an_unset_variable_without_a_default_is_named(text):
    with pytest.raises(
        UnsetVariable, match=r"^the environment variable NONE is not set: .*\$\{NONE:-"
    ) as raised:
        substitute(text, ENVIRON)
    assert raised.value.name == "NONE"


def test_a_default_that_is_not_used_may_name_unset_variables_but_must_be_well_formed():
    assert substitute("${HOST:$NONE${NADA}${NADA:$NONE}}", ENVIRON) == "example.org"
    with pytest.raises(ValueError, match="at offset 7"):
        substitute("${HOST:$}", ENVIRON)


@pytest.mark.parametrize(
    ("text", "offset", "what"),
    [
        ("ab${", 2, "takes the name of a variable"),
        ("${}", 0, "takes the name of a variable"),
        ("x${1x}", 1, "takes the name of a variable"),
        ("${A-b}", 0, "takes the name of a variable"),
        ("${ÄHOST}", 0, "takes the name of a variable"),
        ("${HOST", 0, "never closed"),
        ("a${HOST:b", 1, "never closed"),
        ("${HOST:{}", 0, "never closed"),
        ("${HOST:${NONE:}", 0, "never closed"),
        ("^a$", 2, r"written \$\$"),
        ("$5", 0, r"written \$\$"),
        ("a $ b", 2, r"written \$\$"),
    ],
)
def test_malformed_text_is_refused_with_its_offset_and_what_to_write(text, offset, what):
    with pytest.raises(ValueError, match=f"^at offset {offset}: .*{what}"):
        substitute(text, ENVIRON)


def test_a_name_is_ascii_and_ends_where_another_character_begins():
    assert substitute("$HOSTé", {"HOST": "a", "HOSTé": "b"}) == "aé"


def test_very_deep_defaults_are_no_problem():
    assert substitute("${A:" * 20_000 + "x" + "}" * 20_000, {}) == "x"


pieces = st.sampled_from(
    [
        "$",
        "{",
        "}",
        "${",
        "$$",
        ":",
        ":-",
        "-",
        "HOST",
        "EMPTY",
        "NONE",
        "1",
        "é",
        " ",
        "\n",
        "${HOST:",
        "${NONE:-",
    ]
)


def substituted(text, environ):
    """What came of it, or what was said against it."""
    try:
        return substitute(text, environ), ""
    except ValueError as exc:
        return None, str(exc)


@given(st.lists(pieces).map("".join) | st.text())
@example("${NONE:" + "{" * 100)
def test_any_text_gives_a_string_or_a_value_error(text):
    result, message = substituted(text, ENVIRON)
    assert isinstance(result, str) is (message == "")


@given(st.text(st.characters(exclude_characters="$")))
def test_text_without_a_dollar_sign_is_unchanged(text):
    assert substitute(text, ENVIRON) == text


@given(st.text())
def test_doubling_the_dollar_signs_takes_their_meaning_away(text):
    assert substitute(text.replace("$", "$$"), {}) == text


@given(st.lists(pieces).map("".join), st.text(min_size=4))
def test_no_message_quotes_a_value(text, value):
    _, message = substituted(text, {"HOST": f"<<{value}>>"})
    assert f"<<{value}>>" not in message
