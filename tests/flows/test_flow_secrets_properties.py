"""For any value: no secret string survives, what is not secret stays, and twice is as good as once."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.flows.reader import flow_from_json
from stepflow_trio.flows.secrets import REDACTED, FlowSecrets, SecretTexts, redact, secret_strings

# Few letters, so that secrets overlap, contain one another and stand in the values; none of them is in what
# stands for a secret.
secrets = st.text('ab\n "%ö', min_size=4, max_size=40)
texts = st.lists(st.one_of(st.text('ab\n "%ö', max_size=12), st.text(max_size=5)), max_size=4)


@st.composite
def texts_with_secrets(draw: st.DrawFn, known: list[str]) -> str:
    pieces = draw(texts)
    for secret in draw(st.lists(st.sampled_from(known), max_size=3)) if known else ():
        pieces.insert(draw(st.integers(0, len(pieces))), secret)
    return "".join(pieces)


def values(strings: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    scalars = st.one_of(st.none(), st.booleans(), st.integers(), strings)
    return st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(strings, inner, max_size=4)),
        max_leaves=12,
    )


def strings_in(value: Any) -> list[str]:
    match value:
        case str():
            return [value]
        case dict():
            pairs = cast("dict[str, Any]", value).items()
            return [found for pair in pairs for part in pair for found in strings_in(part)]
        case list():
            return [found for item in cast("list[Any]", value) for found in strings_in(item)]
        case _:
            return []


@given(st.data(), st.lists(secrets, max_size=6), st.integers(0, 600))
def test_no_secret_string_survives(data: st.DataObject, known: list[str], others: int) -> None:
    value = data.draw(values(texts_with_secrets(known)))
    # With many, they are looked for in another way.
    texts = SecretTexts([*known, *(f"zz{n:04}" for n in range(others))])
    shown = redact(value, None, texts)
    for text in strings_in(shown):
        for secret in known:
            assert secret not in text
    assert redact(shown, None, texts) == shown


@given(st.data(), st.lists(secrets, max_size=6))
def test_both_ways_to_look_for_secrets_find_the_same(data: st.DataObject, known: list[str]) -> None:
    text = data.draw(texts_with_secrets(known)) + " " * 300
    few = SecretTexts(known)
    many = SecretTexts([*known, *(f"zz{n:04}" for n in range(400))])
    assert few.redact(text) == many.redact(text)


HEAD = "0123456789abcdefghijklmnop"
tails = st.text("xy", max_size=12)


def agreeing(a: str, b: str) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@given(st.lists(tails, min_size=1, max_size=40), st.lists(tails, max_size=3), st.text("xyz", max_size=12))
def test_of_secrets_that_begin_alike_the_one_is_hidden_that_is_there_the_longest(
    first: list[str], later: list[str], there: str
) -> None:
    texts = SecretTexts(HEAD + tail for tail in first)
    assert texts.redact(HEAD) == REDACTED
    texts.add(HEAD + tail for tail in later)
    longest = max(agreeing(there, tail) for tail in [*first, *later])
    assert texts.redact(f"<{HEAD}{there}") == f"<{REDACTED}{there[longest:]}"
    assert texts.redact(f"<{HEAD}{there}>{HEAD[:24]}") == f"<{REDACTED}{there[longest:]}>{REDACTED}"


@given(values(st.text(max_size=8)), st.lists(secrets, max_size=4))
def test_what_holds_no_secret_is_the_same_object(value: Any, known: list[str]) -> None:
    there = "\n".join(strings_in(value))
    known = [secret for secret in known if len(secret.strip()) >= 4 and secret.strip()[:4] not in there]
    assert redact(value, None, SecretTexts(known)) is value


FLOW = flow_from_json(
    {
        "name": "f",
        "description": "d",
        "schemas": {
            "properties": {
                "input": {
                    "properties": {"s": {"is_secret": True}, "n": {"$ref": "#"}},
                    "items": {"anyOf": [{"$ref": "#"}, {"type": "string"}]},
                }
            }
        },
        "steps": [],
    }
)


def model(value: Any) -> Any:
    """The input with its secret places replaced, said in another way."""
    match value:
        case dict():
            members = cast("dict[str, Any]", value).items()
            return {k: REDACTED if k == "s" else model(x) if k == "n" else x for k, x in members}
        case list():
            return [model(item) for item in cast("list[Any]", value)]
        case _:
            return value


@given(values(st.sampled_from(["s", "n", "x", "secret string", "short"])))
def test_exactly_the_places_that_the_schema_names_are_replaced(value: Any) -> None:
    found = FlowSecrets.of(FLOW)
    assert found is not None
    assert redact(value, found.input, SecretTexts()) == model(value)
    at_places = set(secret_strings(value, found.input))
    assert at_places <= set(strings_in(value))
    texts = SecretTexts(at_places)
    for text in strings_in(redact(value, found.input, texts)):
        assert not any(secret in text for secret in at_places if len(secret) >= 4)
