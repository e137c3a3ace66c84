"""Event streams: read by the whole standard however they are cut, written in the one form everybody reads."""

from __future__ import annotations

import gc
import itertools
import json
import re
import time
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stepflow_trio.errors import LocalProtocolError
from stepflow_trio.protocol.lines import MAX_FRAME_BYTES
from stepflow_trio.protocol.sse import (
    COMMENT_PING,
    EventParser,
    EventRejected,
    ServerEvent,
    escape_non_ascii,
    write_event,
)

FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck))
MIB = 2**20

Parsed = list[ServerEvent | EventRejected]


def parsed(*chunks: bytes, limit: int = MAX_FRAME_BYTES) -> Parsed:
    """What a fresh parser makes of the chunks."""
    parser = EventParser(limit)
    return [event for chunk in chunks for event in parser.feed(chunk)]


def bytewise(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


def event(data: str, type: str = "message", id: str = "", retry_ms: int | None = None) -> ServerEvent:
    return ServerEvent(data=data.encode(), type=type, id=id, retry_ms=retry_ms)


# ---- the cases of web-platform-tests, eventsource/format-* -------------------------------------------

LONG = "x" * 2048
CASES: dict[str, tuple[str, list[ServerEvent]]] = {
    "bom": ("\ufeffdata:1\n\n\ufeffdata:2\n\ndata:3\n\n", [event("1"), event("3")]),
    "bom-2": ("\ufeff\ufeffdata:1\n\ndata:2\n\ndata:3\n\n", [event("2"), event("3")]),
    "comments": (
        f"data:1\r:\0\n:\r\ndata:2\n:{LONG}\rdata:3\n:data:fail\r:{LONG}\ndata:4\n\n",
        [event("1\n2\n3\n4")],
    ),
    "data-before-final-empty-line": (
        "retry:1000\ndata:test1\n\nid:test\ndata:test2",
        [event("test1", retry_ms=1000)],
    ),
    "event-data": (
        "data:msg\ndata: msg\n\n:\nfalsefield:msg\n\nfalsefield:msg\nData:data\n\ndata\n\ndata:end\n\n",
        [event("msg\nmsg"), event(""), event("end")],
    ),
    "field-data": ("data:\n\ndata\ndata\n\ndata:test\n\n", [event(""), event("\n"), event("test")]),
    "field-event": ("event:test\ndata:x\n\ndata:x\n\n", [event("x", "test"), event("x")]),
    "field-event-empty": ("event: \ndata:data\n\n", [event("data")]),
    "field-name-event": ("data:1\nevent: test\n\nevent:\ndata:2\n\n", [event("1", "test"), event("2")]),
    "field-id": ("id: …\nretry: 200\ndata: hello\n\n", [event("hello", id="…", retry_ms=200)]),
    "field-id-2": (
        "id: …\nretry: 200\ndata: hello\n\ndata: …\n\ndata: …\n\n",
        [event(data, id="…", retry_ms=200) for data in ("hello", "…", "…")],
    ),
    "field-id-3, persists": ("id: 1\ndata: 1\n\ndata: 2\n\n", [event("1", id="1"), event("2", id="1")]),
    "field-id-3, changes": (
        "id: 1\ndata: 1\n\nid: 2\ndata: 2\n\ndata:3\n\n",
        [event("1", id="1"), event("2", id="2"), event("3", id="2")],
    ),
    "field-id-3, resets": (
        "id: 1\ndata: 1\n\nid:\ndata:2\n\ndata:3\n\n",
        [event("1", id="1"), event("2"), event("3")],
    ),
    "field-id-null": (
        "id: a\ndata:1\n\nid: \0\0\ndata: hello\n\n",
        [event(d, id="a") for d in ("1", "hello")],
    ),
    "field-parsing": (
        (
            "data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\r"
            "data:\r\n data:32\ndata:4\n\n"
        ),
        [event("\0\n 2\n1\n3\n\n4")],
    ),
    "field-retry": ("retry:02000\ndata:x\n\n", [event("x", retry_ms=2000)]),
    "field-retry-bogus": ("retry:2000\nretry:1000x\ndata:x\n\n", [event("x", retry_ms=2000)]),
    "field-retry-empty": ("retry:1000\nretry\ndata:test\n\n", [event("test", retry_ms=1000)]),
    "field-unknown": (
        "data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n",
        [event("test\n\ntest")],
    ),
    "leading-space": ("data:\ttest\rdata: \ndata:test\n\n", [event("\ttest\n\ntest")]),
    "newlines": ("data:test\r\ndata\ndata:test\r\n\r", [event("test\n\ntest")]),
    "null-character": ("data:\0\n\n\n\n", [event("\0")]),
    "utf-8": ("data:ok…\n\n", [event("ok…")]),
}
LINE_ENDS: dict[str, tuple[str, ...]] = {
    "as written": (),
    "LF": ("\n",),
    "CR": ("\r",),
    "CRLF": ("\r\n",),
    "mixed": ("\n", "\r", "\r\n"),  # in this order no CR and LF of two lines become one line end
}


@pytest.mark.parametrize("ends", LINE_ENDS)
@pytest.mark.parametrize("case", CASES)
def test_the_cases_of_web_platform_tests_hold_at_every_byte_split_and_with_every_line_end(
    case: str, ends: str
) -> None:
    text, expected = CASES[case]
    if LINE_ENDS[ends]:
        given_ends = itertools.cycle(LINE_ENDS[ends])
        text = re.sub(r"\r\n|\r|\n", lambda _: next(given_ends), text)
    stream = text.encode()
    assert parsed(stream) == expected
    assert parsed(*bytewise(stream)) == expected
    for cut in range(len(stream)):
        assert parsed(stream[:cut], stream[cut:]) == expected


# ---- the rest of the standard -----------------------------------------------------------------------


def test_an_event_is_complete_with_its_blank_line_and_not_one_byte_later() -> None:
    for end in (b"\n\n", b"\r\r", b"\r\n\r", b"\n\r"):
        parser = EventParser()
        assert parser.feed(b"data: 1" + end[:-1]) == []
        assert parser.feed(end[-1:]) == [event("1")]


def test_a_line_feed_right_behind_a_carriage_return_in_the_next_read_ends_no_second_line() -> None:
    assert parsed(b"data: 1\r", b"\ndata: 2\r", b"\n\r", b"\n") == [event("1\n2")]
    assert parsed(b"data: 1\r", b"", b"\n\n") == [event("1")]
    assert parsed(b"data: 1\r", b"\n", b"\n") == [event("1")]


def test_an_event_without_a_data_field_is_none_and_its_type_goes_with_it() -> None:
    assert parsed(b"event: a\n\ndata: 1\n\n") == [event("1")]


def test_an_id_counts_also_where_its_event_has_no_data() -> None:
    assert parsed(b"id: 7\n\ndata: 1\n\n") == [event("1", id="7")]


def test_an_event_that_the_stream_cuts_off_is_none_whichever_line_is_the_last() -> None:
    assert parsed(b"data: 1\n\ndata: 2\n") == [event("1")]
    assert parsed(b"data: 1\n\ndata: 2") == [event("1")]
    assert parsed(b"\xef\xbb") == []


@pytest.mark.parametrize("value", ["-1", "+1", "1.0", "1e3", " 1 ", "1_0", "\u0661", "", "\u00b2"])
def test_a_retry_that_is_not_all_ascii_digits_is_ignored(value: str) -> None:
    assert parsed(f"retry: {value}\ndata: 1\n\n".encode()) == [event("1")]


def test_a_retry_of_any_number_of_digits_is_read() -> None:
    assert parsed(b"retry: " + b"0" * 10_000 + b"5\ndata: 1\n\n") == [event("1", retry_ms=5)]
    assert parsed(b"retry: 0\ndata: 1\n\n") == [event("1", retry_ms=0)]
    [huge] = parsed(b"retry: " + b"9" * 10_000 + b"\ndata: 1\n\n")
    assert isinstance(huge, ServerEvent)
    assert huge.retry_ms == 10**18 - 1


def test_bytes_that_are_no_utf_8_reach_the_json_decoder_as_they_came_and_are_replaced_elsewhere() -> None:
    assert parsed(b"event: a\xff\nid: \xe2\x80\ndata: \xff\xe2\x80\n\n") == [
        ServerEvent(data=b"\xff\xe2\x80", type="a\ufffd", id="\ufffd")
    ]


def by_the_standard(stream: bytes) -> list[ServerEvent]:
    """The steps of the standard one by one, over the decoded text."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    *lines, _ = re.split(r"\r\n|\r|\n", text)
    found: list[ServerEvent] = []
    data, type_, last_id, retry_ms = "", "", "", None
    for line in lines:
        if not line:
            if data:
                found.append(event(data[:-1], type_ or "message", last_id, retry_ms))
            data, type_ = "", ""
            continue
        name, colon, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if not name and colon:
            continue
        if name == "data":
            data += value + "\n"
        elif name == "event":
            type_ = value
        elif name == "id" and "\0" not in value:
            last_id = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            retry_ms = int(value)
    return found


PIECES = [
    b"\n", b"\r\n", b"\r", b"\n\n", b":", b" ", b"data", b"data: ", b"data:x", b"event:", b"event: e", b"id",
    b"id: 1", b"id:\0", b"retry: 1", b"retry:", b"x", b"\xef\xbb\xbf", b"\xef", b"\xe2\x80", b"\xff", b"\0",
]  # fmt: skip
STREAM = st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)


def decoded(events: Parsed) -> list[ServerEvent]:
    return [
        event(each.data.decode("utf-8", "replace"), each.type, each.id, each.retry_ms)
        for each in events
        if isinstance(each, ServerEvent)
    ]


@settings(FUZZ, max_examples=500)
@given(STREAM, st.lists(st.integers(0, 200), max_size=12), st.integers(0, 40))
@example(b"data\r\ndata\r\n\r\n", [5, 12], 100)
@example(b"\xef\xbb\xbf\ndata\n\n", [1], 100)
@example(b"data\n\ndata:xxxx\n\n", [10], 9)
def test_how_the_stream_is_cut_never_changes_what_comes_out(
    stream: bytes, cuts: list[int], limit: int
) -> None:
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    chunks = [stream[start:end] for start, end in pairwise(places)]
    assert decoded(parsed(stream)) == by_the_standard(stream)
    bounded = parsed(stream, limit=limit)
    assert parsed(*chunks, limit=limit) == bounded
    assert parsed(*bytewise(stream), limit=limit) == bounded
    assert all(isinstance(each, ServerEvent) for each in bounded[:-1])


@settings(FUZZ)
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_no_bytes_at_all_make_it_raise(chunks: list[bytes]) -> None:
    assert decoded(parsed(*chunks)) == by_the_standard(b"".join(chunks))


# ---- the bound --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "size"),
    [
        (b"data: 12345", 11),
        (b"data: 123\ndata: 45", 17),
        (b"event: a\nid: 1\ndata: 1", 20),
        (b"data", 4),
        (b"data\ndata\ndata", 12),
        (b":" + b"c" * 100 + b"\ndata: 1\n:" + b"c" * 100, 7),
        (b"other: 123\nother: 123\ndata: 1", 10),
        (b"data: 1\nother: 1", 15),
        (b"retry: 1\ndata: 1", 8),
    ],
)
def test_an_event_may_be_as_large_as_the_bound_and_not_one_byte_larger(lines: bytes, size: int) -> None:
    stream = b"data\n\n" + lines + b"\n\ndata\n\n"
    [first, second, _] = parsed(stream, limit=size)
    assert isinstance(second, ServerEvent)
    rejected = EventRejected(f"an event is larger than {size - 1} bytes")
    for chunks in ([stream], bytewise(stream)):
        *before, last = parsed(*chunks, limit=size - 1)
        assert last == rejected
        assert before == ([first] if size > 4 else [])


def test_an_event_is_rejected_as_soon_as_it_is_too_large_and_not_when_its_line_ends() -> None:
    parser = EventParser(10)
    assert parser.feed(b"data: 12\nda") == []
    assert parser.feed(b"t") == [EventRejected("an event is larger than 10 bytes")]


def test_nothing_comes_after_a_rejection() -> None:
    parser = EventParser(4)
    assert parser.feed(b"data:") == [EventRejected("an event is larger than 4 bytes")]
    assert parser.feed(b"1\n\ndata\n\n") == []


def test_many_small_events_are_within_the_bound_however_many_they_are() -> None:
    assert len(parsed(b"id: 1\ndata: 1\n\n" * 1000, limit=12)) == 1000
    assert len(parsed(b":\nevent: x\n" * 1000, limit=9)) == 1
    assert parsed(COMMENT_PING * 1000, limit=1) == []


# ---- time and memory --------------------------------------------------------------------------------


def test_an_event_of_60_mib_in_small_reads_takes_linear_time() -> None:
    chunk = b"x" * 2**16
    parser = EventParser()
    assert parser.feed(b"data: ") == []
    started = time.process_time()
    for _ in range(60 * MIB // len(chunk)):
        assert parser.feed(chunk) == []
    (found,) = parser.feed(b"\n\n")
    elapsed_s = time.process_time() - started
    assert isinstance(found, ServerEvent)
    assert len(found.data) == 60 * MIB
    # It takes 0.1 s here. Joining or searching again at every read would touch 28 GiB.
    assert elapsed_s < 3


def test_many_short_lines_in_one_read_take_linear_time() -> None:
    started = time.process_time()
    assert len(parsed(b"data: 1\n\n" * (MIB // 8))) == MIB // 8
    [found] = parsed(b"data\n" * (MIB // 2) + b"\n")
    assert isinstance(found, ServerEvent)
    assert len(found.data) == MIB // 2 - 1
    assert parsed(b"\n" * 4 * MIB) == []
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("chunk", "reads"),
    [(b":" + b"x" * 2**16, 1024), (b"x" * 2**16, 64), (b"data: xy\n" * 8192, 32), (b"data\n", MIB // 32)],
)
def test_no_stream_makes_us_keep_more_than_a_few_times_the_bound(chunk: bytes, reads: int) -> None:
    parser = EventParser(MIB)
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(reads):
            parser.feed(bytes(bytearray(chunk)))  # a new object each time, as from a socket
        assert tracemalloc.get_traced_memory()[1] < 3 * MIB
    finally:
        tracemalloc.stop()


# ---- writing ----------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=10,
)


def compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def test_an_event_is_written_as_old_readers_know_it() -> None:
    assert write_event(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert write_event(b"{}", "endpoint") == b"event: endpoint\ndata: {}\n\n"
    assert COMMENT_PING == b": ping\n\n"


@settings(FUZZ)
@given(st.lists(st.tuples(JSON, st.none() | st.sampled_from(["message", "endpoint", "é"])), max_size=4))
def test_what_is_written_is_read_back(events: list[tuple[object, str | None]]) -> None:
    stream = COMMENT_PING.join(write_event(compact(value), type_) for value, type_ in events)
    expected = [ServerEvent(data=compact(value), type=type_ or "message") for value, type_ in events]
    assert parsed(stream) == expected
    assert parsed(*bytewise(stream)) == expected


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_what_is_no_line_cannot_be_written(end: str) -> None:
    with pytest.raises(LocalProtocolError, match="one line"):
        write_event(f"1{end}2".encode())
    with pytest.raises(LocalProtocolError, match="one line"):
        write_event(b"1", f"a{end}b")


@settings(FUZZ, max_examples=300)
@given(JSON, st.sampled_from([None, 1, "\t"]))
@example({'é"\\\\"\\u0001\x01\x02\x7f\n\t\r/\\é\\u0002': "\U0001f600\ud7ff\ue000\U00010000\U0010ffff"}, 1)
@example("\\né\\", None)
def test_escaped_json_is_ascii_and_means_the_same(value: object, indent: int | str | None) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=indent).encode()
    escaped = escape_non_ascii(text)
    assert escaped.isascii()
    assert json.loads(escaped) == json.loads(text)
    assert escape_non_ascii(escaped) is escaped
    if not text.isascii():
        assert escaped == json.dumps(value, indent=indent).encode()


def test_text_that_is_ascii_already_is_the_same_object() -> None:
    text = b'{"a":"\\u00e9"}'
    assert escape_non_ascii(text) is text


def test_characters_beyond_the_basic_plane_become_surrogate_pairs() -> None:
    assert escape_non_ascii('["é","\U0001f600"]'.encode()) == b'["\\u00e9","\\ud83d\\ude00"]'


def test_json_that_is_no_utf_8_is_refused_with_its_place() -> None:
    with pytest.raises(LocalProtocolError, match="at byte 2"):
        escape_non_ascii(b'["\xff"]')
