"""URLs: read in one way only, and refused with what is wrong and nothing that is secret."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.errors import ConfigError
from stepflow_trio.transports.http.urls import HttpUrl


@pytest.mark.parametrize(
    ("text", "expected", "authority"),
    [
        ("http://worker", ("http", "worker", 80, "/"), "worker"),
        ("http://worker/", ("http", "worker", 80, "/"), "worker"),
        ("HTTP://Worker.Test:8080/A/b%20c", ("http", "worker.test", 8080, "/A/b%20c"), "worker.test:8080"),
        ("https://worker", ("https", "worker", 443, "/"), "worker"),
        ("https://worker:443/x", ("https", "worker", 443, "/x"), "worker"),
        ("https://worker:80/x", ("https", "worker", 80, "/x"), "worker:80"),
        ("http://127.0.0.1:1", ("http", "127.0.0.1", 1, "/"), "127.0.0.1:1"),
        ("http://[::1]:65535/", ("http", "::1", 65535, "/"), "[::1]:65535"),
        ("http://[0:0:0:0:0:0:0:1]", ("http", "::1", 80, "/"), "[::1]"),
        ("http://my_worker-1.internal.", ("http", "my_worker-1.internal.", 80, "/"), "my_worker-1.internal."),
        ("http://3com.test/a@b:c", ("http", "3com.test", 80, "/a@b:c"), "3com.test"),
        ("http://xn--bcher-kva.example", ("http", "xn--bcher-kva.example", 80, "/"), "xn--bcher-kva.example"),
    ],
)
def test_a_url_is_read_into_its_parts(text: str, expected: tuple[str, str, int, str], authority: str) -> None:
    url = HttpUrl.parse(text)
    assert (url.scheme, url.host, url.port, url.path) == expected
    assert url.authority == authority
    assert url.origin == f"{url.scheme}://{authority}"
    assert str(url) == url.origin + url.path
    assert url.is_tls == (url.scheme == "https")
    assert HttpUrl.parse(str(url)) == url


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "does not begin with http:// or https://"),
        ("worker:8080", "does not begin with"),
        ("//worker", "does not begin with"),
        ("http:/worker", "does not begin with"),
        ("ftp://worker", "only http and https"),
        ("unix:///run/x", "only http and https"),
        ("http://", "it has no host"),
        ("http:///path", "it has no host"),
        ("http://:80", "it has no host"),
        ("http://worker/a b", "it has a space"),
        (" http://worker", "it has a space"),
        ("http://worker\n", r"the character '\n'"),
        ("http://wor\tker", r"the character '\t'"),
        ("http://w\0", r"the character '\x00'"),
        ("http://worker\\@evil", "the character"),
        ("http://bücher.example", "xn-- form"),
        ("http://worker/ü", "percent-encode a path"),
        ("http://worker?x=1", "it has a query or a fragment"),
        ("http://worker/#x", "it has a query or a fragment"),
        ("http://worker:", "its port is no number from 1 to 65535"),
        ("http://worker:0", "its port"),
        ("http://worker:65536", "its port"),
        ("http://worker:8_0", "its port"),
        ("http://worker:+80", "its port"),
        ("http://worker:080000", "its port"),
        ("http://worker:80:90", "more than a host and a port"),
        ("http://::1", "an IPv6 address goes into brackets"),
        ("http://[::1", "more than a host and a port"),
        ("http://[::1]x", "more than a host and a port"),
        ("http://[1.2.3.4]", "in brackets is no IPv6"),
        ("http://[fe80::1%25eth0]", "names an interface"),
        ("http://2130706433", "no IPv4 address of four decimal parts"),
        ("http://0x7f000001", "no IPv4"),
        ("http://127.1", "no IPv4"),
        ("http://0177.0.0.1", "no IPv4"),
        ("http://127.0.0.1.", "no IPv4"),
        ("http://1.2.3.256", "no IPv4"),
        ("http://-worker", "its host is no name"),
        ("http://worker-", "its host is no name"),
        ("http://wor..ker", "its host is no name"),
        ("http://wor%20ker", "its host is no name"),
        ("http://" + "a" * 64, "its host is no name"),
        ("http://" + ".".join(["a" * 60] * 5), "its host is no name"),
        ("http://*", "its host is no name"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        HttpUrl.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://canary:canary@worker/",
        "http://canary@worker/",
        "http://user:canary@[::1]:80/",
        "http://user:can/ary@worker",
        "http://user:can?ary@worker",
        "http://user:can#ary@worker",
        "ftp://user:canary@worker",
        "user:canary@worker",
        "http://user:canary@ worker",
        "canary://canary@worker",
        "http://worker/?token=canary",
        "http://worker:bad?token=canary",
        "http://a@b@canary@worker",
    ],
)
def test_no_error_shows_a_user_name_a_password_or_a_query(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HttpUrl.parse(text)
    for part in ("canary", "ary@", "can/", "can?", "user:"):
        assert part not in str(caught.value)


def test_an_endless_url_is_shown_in_part() -> None:
    with pytest.raises(ConfigError) as caught:
        HttpUrl.parse("x" * 10_000)
    assert len(str(caught.value)) < 400


@given(st.text(max_size=40) | st.text("htps:/@?#[]1.%\\ a-", max_size=30).map("http://".__add__))
def test_any_text_is_a_url_or_a_documented_error(text: str) -> None:
    try:
        url = HttpUrl.parse(text)
    except ConfigError:
        return
    assert HttpUrl.parse(str(url)) == url
    assert str(url).isascii()
    assert "@" not in url.authority


def test_a_url_cannot_be_changed() -> None:
    url = HttpUrl.parse("http://worker")
    with pytest.raises(dataclasses.FrozenInstanceError):
        url.host = "other"  # type: ignore[misc]
    assert {url: 1}[HttpUrl.parse("http://worker/")] == 1
