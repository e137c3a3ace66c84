"""Newline framing: what comes out depends on the bytes, never on how they were cut."""

from __future__ import annotations

import gc
import time
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stepflow_trio.protocol.lines import EDGE_BYTES, MAX_FRAME_BYTES, FrameRejected, LineFramer

FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck))
MIB = 2**20


def feed_all(framer: LineFramer, chunks: list[bytes]) -> list[bytes | FrameRejected]:
    found: list[bytes | FrameRejected] = []
    for chunk in chunks:
        found.extend(framer.feed(chunk))
    return found


def lines(*chunks: bytes, limit: int = 100) -> list[bytes | FrameRejected]:
    """What a fresh framer makes of the chunks and the end of the stream."""
    framer = LineFramer(limit)
    return [*feed_all(framer, list(chunks)), *framer.feed_eof()]


def too_long(limit: int, line: bytes) -> FrameRejected:
    edge = min(EDGE_BYTES, limit // 2)
    return FrameRejected(f"a line is longer than {limit} bytes", line[:edge], line[len(line) - edge :])


def cut_short(size: int) -> FrameRejected:
    return FrameRejected(f"the stream ended {size} bytes into a line")


# ---- the property -----------------------------------------------------------------------------------

STREAM = st.lists(
    st.sampled_from(
        [b"\n", b"\r\n", b"\r", b" ", b"\t", b"a", b"{}", b"abcdefg", b"\x00\xff", "é".encode(), b"12345678"]
    ),
    max_size=24,
).map(b"".join)  # fmt: skip


def reference(stream: bytes, limit: int) -> list[bytes | FrameRejected]:
    """The whole stream at once, line by line."""
    *whole, rest = stream.split(b"\n")
    found: list[bytes | FrameRejected] = []
    for line in whole:
        if len(line) > limit:
            found.append(too_long(limit, line))
        elif line.strip(b" \t\r"):
            found.append(line.strip(b" \t\r"))
    if len(rest) > limit:
        found.append(too_long(limit, rest))
    elif rest.strip(b" \t\r"):
        found.append(cut_short(len(rest.strip(b" \t\r"))))
    return found


@settings(FUZZ, max_examples=500)
@given(STREAM, st.lists(st.integers(0, 200), max_size=12), st.integers(0, 12))
@example(b"a\r\nb", [2], 4)
@example(b"12345678\nabc\n", [3], 7)
@example(b"12345678abc\nabc\n", [8, 9, 10], 7)
def test_how_the_stream_is_cut_never_changes_what_comes_out(
    stream: bytes, cuts: list[int], limit: int
) -> None:
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    chunks = [stream[start:end] for start, end in pairwise(places)]
    bytewise = [bytes([byte]) for byte in stream]
    expected = reference(stream, limit)
    assert lines(stream, limit=limit) == expected
    assert lines(*chunks, limit=limit) == expected
    assert lines(*bytewise, limit=limit) == expected
    assert lines(b"", *[piece for chunk in chunks for piece in (chunk, b"")], limit=limit) == expected


@settings(FUZZ, max_examples=150)
@given(st.lists(STREAM, max_size=8), st.integers(0, 12))
def test_no_more_than_the_limit_is_ever_kept(chunks: list[bytes], limit: int) -> None:
    framer = LineFramer(limit)
    for chunk in chunks:
        framer.feed(chunk)
        assert framer.buffered_bytes <= limit
    framer.feed_eof()
    assert framer.buffered_bytes == 0


# ---- by example -------------------------------------------------------------------------------------


def test_a_frame_is_what_stands_before_a_newline() -> None:
    assert lines(b'{"a":1}\n{"b":2}\n') == [b'{"a":1}', b'{"b":2}']


def test_a_frame_may_arrive_in_pieces_and_pieces_may_hold_several_frames() -> None:
    framer = LineFramer()
    assert framer.feed(b'{"a"') == []
    assert framer.buffered_bytes == 4
    assert framer.feed(b':1}\n{"b":2}\n{"c"') == [b'{"a":1}', b'{"b":2}']
    assert framer.buffered_bytes == 4
    assert framer.feed(b":3}\n") == [b'{"c":3}']
    assert framer.buffered_bytes == 0
    assert framer.feed_eof() == []


def test_frames_are_plain_bytes() -> None:
    assert [type(found) for found in lines(b"a\nb", b"c\n")] == [bytes, bytes]


def test_a_carriage_return_before_the_newline_is_no_part_of_the_frame_even_across_reads() -> None:
    assert lines(b"a\r\nb\r\n") == [b"a", b"b"]
    assert lines(b"a\r", b"\nb", b"\r", b"\n") == [b"a", b"b"]


def test_a_carriage_return_alone_ends_nothing() -> None:
    assert lines(b"a\rb\n") == [b"a\rb"]


def test_white_space_around_a_frame_is_dropped_and_white_space_inside_kept() -> None:
    assert lines(b' \t{"a": 1}\t \r\n') == [b'{"a": 1}']


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b" \n", b"\t\n", b" \t\r\n", b"\n\n\n"])
def test_blank_lines_are_dropped(blank: bytes) -> None:
    assert lines(blank) == []
    assert lines(b"a\n" + blank + b"b\n") == [b"a", b"b"]
    assert lines(*[bytes([byte]) for byte in blank], b"a\n") == [b"a"]


@pytest.mark.parametrize("separator", [b"\x0b", b"\x0c", b"\x1c", b"\x85", "\u2028".encode(), b"\x00"])
def test_nothing_but_a_newline_ends_a_line(separator: bytes) -> None:
    assert lines(b"a" + separator + b"b\n") == [b"a" + separator + b"b"]


def test_bytes_that_are_no_text_pass_as_they_are() -> None:
    assert lines(b"\xff\xfe\x00\n", b"\xc3", b"\xa9\n") == [b"\xff\xfe\x00", "é".encode()]


@pytest.mark.parametrize("cut", range(12))
def test_a_line_of_exactly_the_limit_passes_and_one_byte_more_does_not(cut: int) -> None:
    for ending in (b"\n", b"x\n"):
        line = b"12345678" + ending
        expected = [b"12345678"] if ending == b"\n" else [too_long(8, b"12345678x")]
        assert lines(line[:cut], line[cut:], limit=8) == expected


def test_all_that_stands_before_the_newline_counts_against_the_limit() -> None:
    assert lines(b"1234567\r\n", limit=8) == [b"1234567"]
    assert lines(b"12345678\r\n", limit=8) == [too_long(8, b"12345678\r")]
    assert lines(b" " * 9 + b"\n", limit=8) == [too_long(8, b" " * 9)]
    assert lines(b" " * 9, limit=8) == [too_long(8, b" " * 9)]


def test_a_long_line_is_reported_when_it_ends_and_only_once() -> None:
    framer = LineFramer(8)
    assert framer.feed(b"12345678") == []
    assert framer.feed(b"9") == []
    assert framer.feed(b"0123456789" * 10) == []
    assert framer.buffered_bytes == 8
    assert framer.feed(b"end\n") == [FrameRejected("a line is longer than 8 bytes", b"1234", b"9end")]
    assert framer.buffered_bytes == 0
    assert framer.feed(b"a\n") == [b"a"]


@pytest.mark.parametrize("size", [1, 100, 256, 257, 999, 1001, 5000])
def test_of_a_long_line_both_ends_are_kept_and_nothing_else(size: int) -> None:
    line = bytes(i % 10 + 48 for i in range(5000))
    framer = LineFramer(1000)
    assert feed_all(framer, [line[i : i + size] for i in range(0, len(line), size)]) == []
    assert framer.buffered_bytes == 512
    [rejected] = framer.feed(b"\n")
    assert isinstance(rejected, FrameRejected)
    assert (rejected.head, rejected.tail) == (line[:256], line[-256:])


def test_the_line_behind_a_long_one_is_good_in_the_same_read() -> None:
    long = b"123456789"
    assert lines(b"a\n123456789\nb\n", limit=8) == [b"a", too_long(8, long), b"b"]
    assert lines(b"123456789\n123456789\nb\n", limit=8) == [too_long(8, long), too_long(8, long), b"b"]


def test_the_line_behind_a_long_one_is_good_in_a_later_read() -> None:
    long = b"1234567890"
    assert lines(b"12345", b"67890", b"12345\nb", b"c\n", limit=8) == [too_long(8, long + b"12345"), b"bc"]
    assert lines(b"1234567890", b"\n", b"b\n", limit=8) == [too_long(8, long), b"b"]
    assert lines(b"1234567890", b"1234567890\n1234567890", b"\nb\n", limit=8) == [
        too_long(8, long + long),
        too_long(8, long),
        b"b",
    ]


def test_a_limit_of_zero_lets_nothing_pass_but_blank_lines() -> None:
    assert lines(b"\n\na\n\n", limit=0) == [too_long(0, b"a")]


def test_the_end_of_the_stream_within_a_line_is_reported() -> None:
    assert lines(b"a\n{") == [b"a", cut_short(1)]
    assert lines(b'{"a"', b":1} ") == [cut_short(7)]


@pytest.mark.parametrize("rest", [b"", b"\r", b" ", b" \t\r"])
def test_the_end_of_the_stream_after_whole_lines_is_no_fault(rest: bytes) -> None:
    assert lines(b"a\n" + rest) == [b"a"]


def test_a_long_line_is_reported_once_where_the_stream_ends_within_it() -> None:
    assert lines(b"123456789", limit=8) == [too_long(8, b"123456789")]
    assert lines(b"1234", b"56789", b"", limit=8) == [too_long(8, b"123456789")]


def test_after_the_end_a_framer_is_as_good_as_new() -> None:
    for before in (b"", b"half", b"123456789"):
        framer = LineFramer(8)
        framer.feed(before)
        framer.feed_eof()
        assert framer.buffered_bytes == 0
        assert framer.feed_eof() == []
        assert framer.feed(b"a\n") == [b"a"]


def test_by_default_a_frame_may_have_64_mib() -> None:
    assert MAX_FRAME_BYTES == 64 * MIB
    assert LineFramer().feed(b"x" * 70_000 + b"\n") == [b"x" * 70_000]


# ---- time and memory --------------------------------------------------------------------------------


def test_a_line_of_64_mib_in_small_reads_takes_linear_time() -> None:
    chunk = b"x" * 2**16
    framer = LineFramer()
    started = time.process_time()
    for _ in range(64 * MIB // len(chunk)):
        assert framer.feed(chunk) == []
    (found,) = framer.feed(b"\n")
    elapsed_s = time.process_time() - started
    assert len(found) == 64 * MIB  # pyright: ignore[reportArgumentType]: these are bytes
    # It takes 0.1 s here. Joining again at every read would copy 32 GiB.
    assert elapsed_s < 3


def test_many_short_lines_in_one_read_take_linear_time() -> None:
    started = time.process_time()
    assert len(LineFramer().feed(b"{}\n" * MIB)) == MIB
    assert LineFramer().feed(b"\n" * 4 * MIB) == []
    assert time.process_time() - started < 5


def traced_peak(limit: int, chunk: bytes, reads: int) -> int:
    framer = LineFramer(limit)
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(reads):
            framer.feed(bytes(bytearray(chunk)))  # a new object each time, as from a socket
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_endless_line_costs_no_memory_once_it_is_skipped() -> None:
    assert traced_peak(MIB, b"x" * 2**16, 64) < 3 * MIB


def test_a_line_that_trickles_in_costs_about_its_own_size() -> None:
    """A peer must not make us keep an object for every two bytes that it sends."""
    assert traced_peak(MIB, b"xy", MIB // 8) < MIB
