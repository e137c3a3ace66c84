"""The bytes of answers: a client of h11 reads out of them what the application put in."""

from __future__ import annotations

from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.transports.http.answers import Answer, last_answer

DATE = b"Tue, 14 Nov 2023 22:13:20 GMT"
SERVERS_OWN = (b"connection", b"transfer-encoding", b"content-length")

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=12).map(str.encode)
values = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f\x85\xa0"), max_size=12
).map(lambda text: text.encode("latin-1"))
headers = st.lists(st.tuples(names.filter(lambda name: name not in SERVERS_OWN), values), max_size=6)
statuses = st.sampled_from([200, 201, 202, 204, 299, 304, 400, 404, 500, 503, 999])
parts = st.lists(st.binary(max_size=40), min_size=1, max_size=5)


def encode(answer: Answer, start: dict[str, Any], bodies: list[bytes], *, closes: bool = False) -> bytes:
    only_part = bodies[0] if len(bodies) == 1 else None
    pieces = [answer.head(start, only_part=only_part, date=DATE, closes=closes)]
    for number, body in enumerate(bodies, 1):
        pieces += answer.part(body, is_end=number == len(bodies))
    return b"".join(pieces)


def read(data: bytes, method: str, *, to_the_end: bool) -> tuple[h11.Response, bytes, h11.Connection]:
    """What a client reads, to whom this comes, and then, perhaps, the connection's end."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "l")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    if to_the_end:
        client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data), event
        body += event.data
    assert client.trailing_data[0] == b""
    return response, body, client


@given(
    method=st.sampled_from(["GET", "HEAD", "POST"]),
    status=statuses,
    headers=headers,
    bodies=parts,
    with_length=st.booleans(),
    closes=st.booleans(),
    is_http_1_0=st.booleans(),
)
def test_a_client_reads_what_the_application_said(
    method: str,
    status: int,
    headers: list[tuple[bytes, bytes]],
    bodies: list[bytes],
    with_length: bool,
    closes: bool,
    is_http_1_0: bool,
) -> None:
    length = [(b"content-length", b"%d" % len(b"".join(bodies)))] if with_length else []
    start = {"status": status, "headers": [*headers, *length]}
    answer = Answer(method.encode(), is_http_1_0=is_http_1_0)
    data = encode(answer, start, bodies, closes=closes)
    ends_with_connection = answer.ends_with_connection
    response, body, client = read(data, method, to_the_end=ends_with_connection)
    assert response.status_code == status
    seen = [(bytes(name), bytes(value)) for name, value in response.headers]
    assert [header for header in seen if header in headers] == headers
    assert [name for name, _ in seen].count(b"date") == max(1, [name for name, _ in headers].count(b"date"))
    is_bodiless = method == "HEAD" or status in (204, 304)
    assert body == (b"" if is_bodiless else b"".join(bodies))
    assert answer.closes == (closes or is_http_1_0)
    assert ((b"connection", b"close") in seen) == answer.closes
    assert ends_with_connection == (is_http_1_0 and not is_bodiless and not with_length and len(bodies) > 1)
    if is_http_1_0:
        assert b"transfer-encoding" not in dict(seen)
    if not answer.closes:
        assert client.their_state is h11.DONE, "the next answer may follow"


@given(headers=st.lists(st.tuples(st.binary(max_size=6), st.binary(max_size=6)), min_size=1, max_size=3))
def test_headers_of_any_bytes_are_sent_as_they_are_or_refused(headers: list[tuple[bytes, bytes]]) -> None:
    try:
        data = encode(Answer(b"GET", is_http_1_0=False), {"status": 200, "headers": headers}, [b"abc"])
    except LocalProtocolError:
        return
    response, body, _ = read(data, "GET", to_the_end=False)
    assert body == b"abc"
    seen = {bytes(name) for name, _ in response.headers}
    assert seen - {b"date", b"content-length"} <= {name for name, _ in headers}


@pytest.mark.parametrize("value", [b"close", b"Close", b"keep-alive, close"])
def test_the_application_may_close(value: bytes) -> None:
    answer = Answer(b"GET", is_http_1_0=False)
    data = encode(answer, {"status": 200, "headers": [(b"connection", value)]}, [b""])
    assert answer.closes
    assert data.count(b"connection:") == 1


def test_what_is_the_servers_is_left_out() -> None:
    given_headers = [(b"connection", b"keep-alive, x"), (b"transfer-encoding", b"gzip"), (b"x", b"y")]
    data = encode(Answer(b"GET", is_http_1_0=False), {"status": 200, "headers": given_headers}, [b"abc"])
    assert data == (b"HTTP/1.1 200 OK\r\nx: y\r\ndate: " + DATE + b"\r\ncontent-length: 3\r\n\r\nabc")


def test_a_large_body_is_not_copied() -> None:
    body = b"x" * 1000
    for bodies in ([body], [body, b""]):
        answer = Answer(b"GET", is_http_1_0=False)
        answer.head({"status": 200}, only_part=body if len(bodies) == 1 else None, date=DATE, closes=False)
        assert any(piece is body for piece in answer.part(body, is_end=len(bodies) == 1))


def test_an_empty_part_ends_no_chunked_body() -> None:
    answer = Answer(b"GET", is_http_1_0=False)
    answer.head({"status": 200}, only_part=None, date=DATE, closes=False)
    assert answer.part(b"", is_end=False) == []
    assert b"".join(answer.part(b"", is_end=True)) == b"0\r\n\r\n"


@pytest.mark.parametrize("body", [b"", b"abc"])
def test_no_body_to_head_says_nothing_about_its_length(body: bytes) -> None:
    data = encode(Answer(b"HEAD", is_http_1_0=False), {"status": 200}, [body])
    assert (b"content-length: " in data) == bool(body)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_last_answer_is_whole_and_closes(method: bytes) -> None:
    data = last_answer(413, {"code": 413, "message": "too much"}, to=method, date=DATE)
    response, body, client = read(data, method.decode(), to_the_end=False)
    assert response.status_code == 413
    assert body == (b'{"code":413,"message":"too much"}' if method == b"GET" else b"")
    assert client.their_state is h11.MUST_CLOSE
