"""What is JSON and what is not: one verdict for each text, written from RFC 8259.

Cases are named as in the public suites: ``y_`` must be accepted, ``n_`` must be refused, and ``i_`` is left
to the implementation; each of those carries the verdict that we chose, and why.

Each case is judged three times: as a text of its own, as a whole frame, and inside a message, in a field that
nobody reads. The verdict must be the same, or what one reader skips could hide what another one trips over.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stepflow_trio.errors import ErrorCode
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.messages import Batch, Malformed, Success


def nested(depth: int, *, inner: bytes = b"", opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + inner + closing * depth


def list_of(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


ACCEPTED: list[tuple[str, bytes, Any]] = [
    # literals
    ("y_null", b"null", None),
    ("y_true", b"true", True),
    ("y_false", b"false", False),
    # white space: the four characters of section 2, around every token
    ("y_space_around", b" \t\r\n1\n\r\t ", 1),
    ("y_space_inside", b"[\n1\t,\r2 ]", [1, 2]),
    ("y_space_in_object", b'{ "a" \n:\t1\r, "b" : 2 }', {"a": 1, "b": 2}),
    ("y_space_only_in_brackets", b"[ ]", []),
    ("y_space_only_in_braces", b"{\n}", {}),
    # numbers: section 6
    ("y_zero", b"0", 0),
    ("y_minus_zero_is_an_integer", b"-0", 0),
    ("y_minus_zero_float", b"-0.0", -0.0),
    ("y_minus_zero_exponent", b"-0e1", -0.0),
    ("y_one", b"1", 1),
    ("y_negative", b"-1", -1),
    ("y_ten", b"10", 10),
    ("y_many_zeros", b"1000000000000000000", 10**18),
    ("y_fraction", b"0.5", 0.5),
    ("y_fraction_zero", b"1.0", 1.0),
    ("y_fraction_trailing_zeros", b"1.500", 1.5),
    ("y_exponent", b"1e2", 100.0),
    ("y_exponent_capital", b"1E2", 100.0),
    ("y_exponent_plus", b"1e+2", 100.0),
    ("y_exponent_minus", b"1e-2", 0.01),
    ("y_exponent_zero", b"1e0", 1.0),
    ("y_exponent_leading_zeros", b"1e002", 100.0),
    ("y_zero_exponent", b"0e1", 0.0),
    ("y_fraction_and_exponent", b"-12.5e-1", -1.25),
    ("y_int64_max", b"9223372036854775807", 2**63 - 1),
    ("y_int64_min", b"-9223372036854775808", -(2**63)),
    ("y_int64_above", b"9223372036854775808", 2**63),
    ("y_uint64_max", b"18446744073709551615", 2**64 - 1),
    ("y_uint64_above", b"18446744073709551616", 2**64),
    ("y_int64_below", b"-9223372036854775809", -(2**63) - 1),
    ("y_above_2_53", b"9007199254740993", 2**53 + 1),
    ("y_largest_double", b"1.7976931348623157e308", 1.7976931348623157e308),
    ("y_smallest_normal_double", b"2.2250738585072014e-308", 2.2250738585072014e-308),
    ("y_smallest_double", b"5e-324", 5e-324),
    ("y_halfway_rounds_to_even", b"9007199254740993.0", 9007199254740992.0),
    ("y_long_fraction", b"0.1" + b"0" * 500, 0.1),
    # strings: section 7
    ("y_empty_string", b'""', ""),
    ("y_ascii", b'"abc"', "abc"),
    ("y_space_string", b'" "', " "),
    ("y_delete_is_no_control", b'"\x7f"', "\x7f"),
    ("y_escape_quote", rb'"\""', '"'),
    ("y_escape_backslash", rb'"\\"', "\\"),
    ("y_escape_slash", rb'"\/"', "/"),
    ("y_bare_slash", b'"/"', "/"),
    ("y_escape_b", rb'"\b"', "\b"),
    ("y_escape_f", rb'"\f"', "\f"),
    ("y_escape_n", rb'"\n"', "\n"),
    ("y_escape_r", rb'"\r"', "\r"),
    ("y_escape_t", rb'"\t"', "\t"),
    ("y_escape_all", rb'"\"\\\/\b\f\n\r\t"', '"\\/\b\f\n\r\t'),
    ("y_escape_nul", rb'"\u0000"', "\0"),
    ("y_escape_hex_lower", rb'"\u00e9"', "é"),
    ("y_escape_hex_upper", rb'"\u00E9"', "é"),
    ("y_escape_hex_mixed", rb'"\u20aC"', "€"),
    ("y_escape_letter", rb'"\u0061"', "a"),
    ("y_escape_quote_as_hex", rb'"\u0022"', '"'),
    ("y_escape_backslash_as_hex", rb'"\u005C"', "\\"),
    ("y_escape_pair", rb'"\ud83d\ude00"', "😀"),
    ("y_escape_pair_upper", rb'"\uD83D\uDE00"', "😀"),
    ("y_escape_first_pair", rb'"\ud800\udc00"', "\U00010000"),
    ("y_escape_last_pair", rb'"\udbff\udfff"', "\U0010ffff"),
    ("y_two_pairs", rb'"\ud83d\ude00\ud83d\ude00"', "😀😀"),
    ("y_escape_nonchar_fffe", rb'"\ufffe"', "\ufffe"),
    ("y_escape_nonchar_ffff", rb'"\uffff"', "\uffff"),
    ("y_escape_replacement", rb'"\ufffd"', "\ufffd"),
    ("y_escape_line_separators", rb'"\u2028\u2029"', "\u2028\u2029"),
    ("y_backslashes_before_quote", rb'"\\\\"', "\\\\"),
    ("y_escaped_u_is_no_escape", rb'"\\u0061"', "\\u0061"),
    ("y_utf8_two_bytes", b'"\xc3\xa9"', "é"),
    ("y_utf8_two_bytes_first", b'"\xc2\x80"', "\x80"),
    ("y_utf8_three_bytes", b'"\xe2\x82\xac"', "€"),
    ("y_utf8_three_bytes_first", b'"\xe0\xa0\x80"', "\u0800"),
    ("y_utf8_three_bytes_last", b'"\xef\xbf\xbf"', "\uffff"),
    ("y_utf8_before_surrogates", b'"\xed\x9f\xbf"', "\ud7ff"),
    ("y_utf8_after_surrogates", b'"\xee\x80\x80"', "\ue000"),
    ("y_utf8_four_bytes", b'"\xf0\x9f\x98\x80"', "😀"),
    ("y_utf8_four_bytes_first", b'"\xf0\x90\x80\x80"', "\U00010000"),
    ("y_utf8_last_character", b'"\xf4\x8f\xbf\xbf"', "\U0010ffff"),
    ("y_utf8_bare_line_separators", b'"\xe2\x80\xa8\xe2\x80\xa9"', "\u2028\u2029"),
    ("y_bom_inside_string", b'"\xef\xbb\xbf"', "\ufeff"),
    ("y_comment_inside_string", b'"/* a */ // b"', "/* a */ // b"),
    ("y_utf8_combining_is_kept_apart", b'["\xc3\xa9","e\xcc\x81"]', ["é", "e\u0301"]),
    # arrays: section 5
    ("y_empty_array", b"[]", []),
    ("y_array", b"[1,true,null]", [1, True, None]),
    ("y_array_of_empties", b'[[],{},""]', [[], {}, ""]),
    ("y_array_of_arrays", b"[[[]],[]]", [[[]], []]),
    ("y_array_ends_with_newline", b"[1]\n", [1]),
    ("y_brackets_in_string", b'["]]]}}}[[[{{{"]', ["]]]}}}[[[{{{"]),
    ("y_brackets_after_escaped_quote", rb'["\"]]]"]', ['"]]]']),
    ("y_brackets_after_backslash", rb'["\\",[]]', ["\\", []]),
    # objects: section 4
    ("y_empty_object", b"{}", {}),
    ("y_object", b'{"a":1}', {"a": 1}),
    ("y_object_empty_key", b'{"":0}', {"": 0}),
    ("y_object_escaped_key", rb'{"\u0061":1}', {"a": 1}),
    ("y_object_nul_key", rb'{"\u0000":1}', {"\0": 1}),
    ("y_object_non_ascii_key", '{"ключ":1}'.encode(), {"ключ": 1}),
    ("y_object_keys_keep_their_order", b'{"b":1,"a":2}', {"b": 1, "a": 2}),
    ("y_object_keys_differ_in_case", b'{"a":1,"A":2}', {"a": 1, "A": 2}),
    ("y_object_key_looks_like_proto", b'{"__proto__":1,"constructor":2}', {"__proto__": 1, "constructor": 2}),
    ("y_long_string", b'"' + b"x" * 100_000 + b'"', "x" * 100_000),
    ("y_many_brackets_in_a_string", b'"' + b"[" * 100_000 + b'"', "[" * 100_000),
    ("y_many_flat_arrays", b"[" + b",".join([b"[]"] * 1000) + b"]", [[]] * 1000),
    ("y_unbalanced_brackets_in_strings", b'["' + b"[" * 500 + b'","}}"]', ["[" * 500, "}}"]),
]  # fmt: skip

REFUSED: list[tuple[str, bytes]] = [
    ("n_empty", b""),
    ("n_space_only", b" "),
    ("n_newline_only", b"\n"),
    # literals
    ("n_null_capital", b"Null"),
    ("n_true_capital", b"True"),
    ("n_true_shouted", b"TRUE"),
    ("n_true_cut", b"tru"),
    ("n_false_cut", b"fals"),
    ("n_null_cut", b"nul"),
    ("n_null_long", b"nulll"),
    ("n_true_glued", b"truefalse"),
    ("n_none", b"None"),
    ("n_undefined", b"undefined"),
    ("n_nan", b"NaN"),
    ("n_nan_lower", b"nan"),
    ("n_infinity", b"Infinity"),
    ("n_minus_infinity", b"-Infinity"),
    ("n_inf", b"inf"),
    ("n_bare_word", b"abc"),
    # numbers
    ("n_minus", b"-"),
    ("n_plus", b"+"),
    ("n_plus_one", b"+1"),
    ("n_two_minus", b"--1"),
    ("n_minus_space_one", b"- 1"),
    ("n_leading_zero", b"01"),
    ("n_leading_zeros", b"00"),
    ("n_minus_leading_zero", b"-01"),
    ("n_leading_zero_fraction", b"01.5"),
    ("n_dot", b"."),
    ("n_no_integer_part", b".5"),
    ("n_minus_no_integer_part", b"-.5"),
    ("n_no_fraction", b"1."),
    ("n_no_fraction_zero", b"0."),
    ("n_no_fraction_exponent", b"1.e5"),
    ("n_two_dots", b"1.2.3"),
    ("n_dot_minus", b"1.-2"),
    ("n_no_exponent", b"1e"),
    ("n_no_exponent_plus", b"1e+"),
    ("n_no_exponent_minus", b"1E-"),
    ("n_exponent_only", b"e5"),
    ("n_two_exponents", b"1e5e5"),
    ("n_exponent_fraction", b"1e5.5"),
    ("n_exponent_two_signs", b"1e+-5"),
    ("n_hex", b"0x1F"),
    ("n_hex_upper", b"0XFF"),
    ("n_octal", b"0o17"),
    ("n_binary", b"0b11"),
    ("n_underscore", b"1_000"),
    ("n_space_inside", b"1 000"),
    ("n_thousands_comma", b"1,000"),
    ("n_decimal_comma", b"1,5"),
    ("n_letter_behind", b"1a"),
    ("n_currency", b"1$"),
    ("n_long_suffix", b"1L"),
    ("n_float_suffix", b"1.0f"),
    ("n_full_width_digit", "１".encode()),
    ("n_arabic_digit", "١".encode()),
    ("n_unicode_minus", "−1".encode()),
    ("n_fraction_half", "½".encode()),
    ("n_superscript", "1²".encode()),
    # strings
    ("n_lone_quote", b'"'),
    ("n_unclosed", b'"abc'),
    ("n_unopened", b'abc"'),
    ("n_single_quotes", b"'a'"),
    ("n_backticks", b"`a`"),
    ("n_typographic_quotes", "“a”".encode()),
    ("n_two_strings", b'"a""b"'),
    ("n_three_quotes", b'"""'),
    ("n_raw_nul", b'"\x00"'),
    ("n_raw_tab", b'"\t"'),
    ("n_raw_newline", b'"\n"'),
    ("n_raw_return", b'"\r"'),
    ("n_raw_escape", b'"\x1b"'),
    ("n_raw_unit_separator", b'"\x1f"'),
    ("n_escape_cut", b'"\\'),
    ("n_escape_closes_nothing", b'"\\"'),
    ("n_odd_backslashes", b'"\\\\\\"'),
    ("n_escape_a", rb'"\a"'),
    ("n_escape_v", rb'"\v"'),
    ("n_escape_zero", rb'"\0"'),
    ("n_escape_x", rb'"\x41"'),
    ("n_escape_single_quote", rb'"\'"'),
    ("n_escape_capital_u", rb'"\U0041"'),
    ("n_escape_capital_n", rb'"\N"'),
    ("n_escape_newline", b'"\\\n"'),
    ("n_escape_emoji", b'"\\\xf0\x9f\x98\x80"'),
    ("n_hex_none", rb'"\u"'),
    ("n_hex_one", rb'"\u1"'),
    ("n_hex_three", rb'"\u123"'),
    ("n_hex_cut", rb'"\u12'),
    ("n_hex_not_hex", rb'"\u00g1"'),
    ("n_hex_sign", rb'"\u+123"'),
    ("n_hex_space", rb'"\u 123"'),
    ("n_hex_braces", rb'"\u{61}"'),
    ("n_hex_full_width", '"\\u１２３４"'.encode()),
    ("n_pair_cut", rb'"\ud83d\u"'),
    ("n_pair_cut_hex", rb'"\ud83d\ude0"'),
    # encoding: section 8.1
    ("n_latin1", b'"\xe9"'),
    ("n_stray_continuation", b'"\x80"'),
    ("n_stray_continuation_last", b'"\xbf"'),
    ("n_overlong_slash_2", b'"\xc0\xaf"'),
    ("n_overlong_slash_3", b'"\xe0\x80\xaf"'),
    ("n_overlong_slash_4", b'"\xf0\x80\x80\xaf"'),
    ("n_overlong_nul", b'"\xc0\x80"'),
    ("n_overlong_quote", b'"\xc0\xa2"'),
    ("n_overlong_largest_2", b'"\xc1\xbf"'),
    ("n_overlong_largest_3", b'"\xe0\x9f\xbf"'),
    ("n_overlong_largest_4", b'"\xf0\x8f\xbf\xbf"'),
    ("n_utf8_high_surrogate", b'"\xed\xa0\x80"'),
    ("n_utf8_low_surrogate", b'"\xed\xbf\xbf"'),
    ("n_cesu8_pair", b'"\xed\xa0\xbd\xed\xb8\x80"'),
    ("n_utf8_cut_2", b'"\xc3"'),
    ("n_utf8_cut_3", b'"\xe2\x82"'),
    ("n_utf8_cut_4", b'"\xf0\x9f\x98"'),
    ("n_utf8_cut_at_the_end", b'"\xf0\x9f\x98'),
    ("n_utf8_above_unicode", b'"\xf4\x90\x80\x80"'),
    ("n_utf8_five_bytes", b'"\xf8\x88\x80\x80\x80"'),
    ("n_utf8_six_bytes", b'"\xfc\x84\x80\x80\x80\x80"'),
    ("n_byte_fe", b'"\xfe"'),
    ("n_byte_ff", b'"\xff"'),
    ("n_bad_utf8_in_key", b'{"\xff":1}'),
    ("n_bad_utf8_outside_strings", b"[1]\xff"),
    ("n_utf16_le", '"a"'.encode("utf-16-le")),
    ("n_utf16_be", '"a"'.encode("utf-16-be")),
    ("n_utf16_bom", '"a"'.encode("utf-16")),
    ("n_utf32_le", '"a"'.encode("utf-32-le")),
    # white space that is none of the four
    ("n_space_form_feed", b"\x0c1"),
    ("n_space_vertical_tab", b"\x0b1"),
    ("n_space_nul_behind", b"1\x00"),
    ("n_space_nul_before", b"\x001"),
    ("n_space_no_break", "\xa01".encode()),
    ("n_space_em", "[\u20031]".encode()),
    ("n_space_ideographic", "1\u3000".encode()),
    ("n_space_zero_width", "\u200b1".encode()),
    ("n_space_line_separator", "[1,\u20282]".encode()),
    ("n_space_next_line", "1\x85".encode()),
    ("n_space_word_joiner", "\u20601".encode()),
    ("n_space_bom_behind", b"1\xef\xbb\xbf"),
    ("n_space_bom_inside", b"[\xef\xbb\xbf1]"),
    ("n_space_control", b"[\x1f1]"),
    # arrays
    ("n_array_unclosed", b"["),
    ("n_array_unclosed_value", b"[1"),
    ("n_array_unclosed_comma", b"[1,"),
    ("n_array_unopened", b"]"),
    ("n_array_closed_twice", b"[1]]"),
    ("n_array_closed_by_brace", b"[1}"),
    ("n_array_trailing_comma", b"[1,]"),
    ("n_array_leading_comma", b"[,1]"),
    ("n_array_comma_only", b"[,]"),
    ("n_array_two_commas", b"[1,,2]"),
    ("n_array_no_comma", b"[1 2]"),
    ("n_array_no_comma_strings", b'["a" "b"]'),
    ("n_array_colon", b"[1:2]"),
    ("n_array_semicolon", b"[1;2]"),
    ("n_array_spread", b"[...1]"),
    ("n_array_star", b"[*]"),
    ("n_array_nested_unclosed", b"[[1]"),
    # objects
    ("n_object_unclosed", b"{"),
    ("n_object_unclosed_key", b'{"a"'),
    ("n_object_unclosed_colon", b'{"a":'),
    ("n_object_unclosed_value", b'{"a":1'),
    ("n_object_unclosed_comma", b'{"a":1,'),
    ("n_object_unopened", b"}"),
    ("n_object_closed_by_bracket", b'{"a":1]'),
    ("n_object_closed_twice", b'{"a":1}}'),
    ("n_object_trailing_comma", b'{"a":1,}'),
    ("n_object_leading_comma", b'{,"a":1}'),
    ("n_object_two_commas", b'{"a":1,,"b":2}'),
    ("n_object_no_colon", b'{"a" 1}'),
    ("n_object_two_colons", b'{"a"::1}'),
    ("n_object_equals", b'{"a"=1}'),
    ("n_object_no_value", b'{"a":}'),
    ("n_object_no_key", b"{:1}"),
    ("n_object_key_only", b'{"a"}'),
    ("n_object_key_unquoted", b"{a:1}"),
    ("n_object_key_single_quotes", b"{'a':1}"),
    ("n_object_key_number", b"{1:1}"),
    ("n_object_key_null", b"{null:1}"),
    ("n_object_key_array", b"{[]:1}"),
    ("n_object_semicolon", b'{"a":1;"b":2}'),
    ("n_object_no_comma", b'{"a":1 "b":2}'),
    # what stands behind or between
    ("n_two_values", b"1 2"),
    ("n_two_objects", b"{}{}"),
    ("n_two_objects_on_two_lines", b"{}\n{}"),
    ("n_trailing_comma", b"1,"),
    ("n_trailing_word", b"{} x"),
    ("n_trailing_semicolon", b"{};"),
    ("n_comment_block", b"/* a */ 1"),
    ("n_comment_block_behind", b"1 /**/"),
    ("n_comment_line", b"1 // a"),
    ("n_comment_line_inside", b"[1 // a\n]"),
    ("n_comment_hash", b"# a\n1"),
    ("n_jsonp", b"f({})"),
    ("n_parenthesis", b"(1)"),
    ("n_anti_hijacking_prefix", b")]}'\n{}"),
    ("n_record_separator", b"\x1e{}\n"),
    ("n_xml", b"<a/>"),
    ("n_lone_comma", b","),
    ("n_lone_colon", b":"),
    ("n_lone_backslash", b"\\"),
    ("n_many_open_brackets", b"[" * 100_000),
    ("n_many_open_objects", b'{"a":' * 100_000),
    ("n_many_closing_brackets", b"]" * 100_000),
]  # fmt: skip

# What RFC 8259 leaves open. The verdict is the value that comes out, or REFUSE.
REFUSE = object()
OPEN: list[tuple[str, bytes, Any, str]] = [
    ("i_bom", b"\xef\xbb\xbf1", REFUSE, "section 8.1: must not be sent; no public peer sends one"),
    ("i_bom_before_object", b"\xef\xbb\xbf{}", REFUSE, "as above"),
    ("i_lone_high_surrogate", rb'"\ud800"', REFUSE, "it could not be sent on, stored or printed as UTF-8"),
    ("i_lone_low_surrogate", rb'"\udc00"', REFUSE, "as above"),
    ("i_high_surrogate_then_letter", rb'"\ud800a"', REFUSE, "as above"),
    ("i_high_surrogate_then_escape", rb'"\ud800\n"', REFUSE, "as above"),
    ("i_high_surrogate_then_bmp", rb'"\ud800\u0061"', REFUSE, "as above"),
    ("i_two_high_surrogates", rb'"\ud800\ud800"', REFUSE, "as above"),
    ("i_swapped_surrogates", rb'"\ude00\ud83d"', REFUSE, "as above"),
    ("i_high_surrogate_then_pair", rb'"\ud83d\ud83d\ude00"', REFUSE, "as above"),
    ("i_lone_surrogate_in_key", rb'{"\ud800":1}', REFUSE, "as above"),
    ("i_1e400", b"1e400", REFUSE, "infinity could not be sent on; silently changing a number is worse"),
    ("i_minus_1e400", b"-1e400", REFUSE, "as above"),
    ("i_overflow_by_rounding", b"1.7976931348623159e308", REFUSE, "as above"),
    ("i_overflow_long_exponent", b"1e" + b"9" * 400, REFUSE, "as above"),
    ("i_overflow_long_integer_part", b"1" + b"0" * 400 + b".0", REFUSE, "as above"),
    ("i_underflow", b"1e-400", 0.0, "the nearest double is zero"),
    ("i_minus_underflow", b"-1e-400", -0.0, "the nearest double is minus zero"),
    ("i_zero_huge_exponent", b"0e999999", 0.0, "zero, whatever the exponent"),
    ("i_precision_lost", b"0.1000000000000000055511151231257827021181583404541015625", 0.1, "doubles"),
    ("i_int_100_digits", b"1" + b"0" * 99, 10**99, "integers keep every digit"),
    ("i_int_4300_digits", b"7" * 4300, int("7" * 4300), "the most digits that Python reads by default"),
    ("i_int_4301_digits", b"7" * 4301, REFUSE, "more cost quadratic time"),
    ("i_int_5000_digits", b"7" * 5000, REFUSE, "as above"),
    ("i_minus_int_5000_digits", b"-" + b"7" * 5000, REFUSE, "as above"),
    ("i_duplicate_keys", b'{"a":1,"a":2}', {"a": 2}, "section 4: the last one is what most readers take"),
    ("i_duplicate_keys_by_escape", rb'{"a":1,"\u0061":2}', {"a": 2}, "as above"),
    ("i_duplicate_keys_same_value", b'{"a":1,"a":1}', {"a": 1}, "as above"),
    ("i_nesting_127", nested(127), list_of(127), "section 9 allows a limit; ours is 128"),
    ("i_nesting_128", nested(128), list_of(128), "as above"),
    ("i_nesting_129", nested(129), REFUSE, "as above"),
    ("i_nesting_100000", nested(100_000), REFUSE, "as above"),
    ("i_nesting_objects_129", nested(129, inner=b"1", opening=b'{"a":', closing=b"}"), REFUSE, "as above"),
    ("i_nesting_mixed_130", nested(65, opening=b'[{"a":', closing=b"}]", inner=b"1"), REFUSE, "as above"),
    ("i_nesting_mixed_256", nested(128, opening=b'{"a":[', closing=b"]}"), REFUSE, "as above"),
    ("i_nesting_129_among_shallow", b"[[]," + nested(128) + b",{}]", REFUSE, "as above"),
    ("i_nesting_129_behind_strings", b'["[",' + nested(128) + b',"]"]', REFUSE, "as above"),
]  # fmt: skip

ALL_ACCEPTED = ACCEPTED + [
    (name, text, value) for name, text, value, _ in OPEN if value is not REFUSE and "nesting" not in name
]
ALL_REFUSED = REFUSED + [(name, text) for name, text, value, _ in OPEN if value is REFUSE]
NAMES = [name for name, *_ in [*ACCEPTED, *REFUSED, *OPEN]]


def ids(cases: list[Any]) -> list[str]:
    return [case[0] for case in cases]


def same(left: Any, right: Any) -> bool:
    """Equal in type too: 1 is not 1.0 nor true, 0.0 not -0.0, and keys stand in the same order."""
    return repr(left) == repr(right)


def test_the_table_is_large_enough_and_names_each_case_once() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 150
    assert all(reason for *_, reason in OPEN)
    assert len({text for _, text, *_ in [*ACCEPTED, *REFUSED, *OPEN]}) == len(NAMES), "a text stands twice"


@pytest.mark.parametrize(("name", "text", "value"), ACCEPTED, ids=ids(ACCEPTED))
def test_what_is_json_is_accepted_and_means_this(name: str, text: bytes, value: Any) -> None:
    assert same(codec.decode_json(text), value), name


@pytest.mark.parametrize(("name", "text"), REFUSED, ids=ids(REFUSED))
def test_what_is_no_json_is_refused_with_a_message(name: str, text: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        codec.decode_json(text)
    assert type(caught.value) is ValueError, f"{name}: no exception of a library passes the codec"


@pytest.mark.parametrize(("name", "text", "value", "reason"), OPEN, ids=ids(OPEN))
def test_what_the_specification_leaves_open_is_decided(
    name: str, text: bytes, value: Any, reason: str
) -> None:
    if value is REFUSE:
        with pytest.raises(ValueError, match=r".") as caught:
            codec.decode_json(text)
        assert type(caught.value) is ValueError
    else:
        assert same(codec.decode_json(text), value), (name, reason)


@pytest.mark.parametrize(("name", "text"), ALL_REFUSED, ids=ids(ALL_REFUSED))
def test_a_frame_that_is_no_json_is_a_parse_error_and_says_how_long_it_was(name: str, text: bytes) -> None:
    message = codec.decode(text)
    assert type(message) is Malformed, name
    assert (message.error.code, message.error.message) == (ErrorCode.PARSE_ERROR, "Parse error")
    assert message.error.data["frame_bytes"] == len(text)
    assert message.error.data["detail"]
    assert (message.id, message.is_response) == (None, False)
    assert 0 <= message.error.data.get("byte_offset", 0) <= len(text)


@pytest.mark.parametrize(("name", "text", "value"), ACCEPTED, ids=ids(ACCEPTED))
def test_a_frame_that_is_json_is_never_a_parse_error(name: str, text: bytes, value: Any) -> None:
    message = codec.decode(text)
    if type(value) is list and value:
        assert type(message) is Batch, name
        assert all(type(item) is Malformed for item in message.items)
    else:
        assert type(message) is Malformed, name
        assert message.error.code == ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(("name", "text", "value"), ALL_ACCEPTED, ids=ids(ALL_ACCEPTED))
def test_the_verdict_is_the_same_inside_a_message(name: str, text: bytes, value: Any) -> None:
    read = codec.decode(b'{"jsonrpc":"2.0","id":1,"result":' + text + b"}")
    assert type(read) is Success, name
    assert same(read.result, value)
    skipped = codec.decode(b'{"jsonrpc":"2.0","extra":' + text + b',"id":1,"result":0}')
    assert type(skipped) is Success


@pytest.mark.parametrize(("name", "text"), ALL_REFUSED, ids=ids(ALL_REFUSED))
def test_a_field_that_nobody_reads_cannot_hide_what_is_no_json(name: str, text: bytes) -> None:
    for frame in (
        b'{"jsonrpc":"2.0","id":1,"result":' + text + b"}",
        b'{"jsonrpc":"2.0","extra":' + text + b',"id":1,"result":0}',
        b'[{"jsonrpc":"2.0","extra":' + text + b',"id":1,"result":0}]',
    ):
        message = codec.decode(frame)
        assert type(message) is Malformed, name
        assert message.error.code == ErrorCode.PARSE_ERROR


@pytest.mark.parametrize(
    ("text", "offset"),
    [(b'{"a":tru}', 8), (b"[1,2,x]", 5), (b'"\xff"', 1), (b"\xff", 0), (b'{"a":1} x', 8), (b'["\\x"]', 3)],
)
def test_a_parse_error_names_the_byte_where_reading_stopped(text: bytes, offset: int) -> None:
    message = codec.decode(text)
    assert type(message) is Malformed
    # The decoder counts what it has taken in: the byte itself, or the one behind it.
    assert offset <= message.error.data["byte_offset"] <= offset + 1


# ---- the same verdict as an independent reader ------------------------------------------------------

PIECES = [
    "{", "}", "[", "]", ",", ":", '"a"', '"b"', '""', "0", "-0", "1", "-1", "01", "1.5", "1e2", "1e", "-",
    "+1", ".5", "true", "false", "null", "tru", "NaN", "Infinity", "undefined", "123456789", "é", '"é"',
    " ", "\n", "\t", "\r", "\x0b", "\x00", "\ufeff", "\xa0", '"', "\\", '"\\n"', '"\\x"', '"\\u0041"',
    '"\\u00"', '"\t"', "//", "/**/", "'", "'a'",
]  # fmt: skip


def refuse_constant(name: str) -> Any:
    raise ValueError(name)


def finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(text)
    return number


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@example("[1,]")
@example("1e2001")
@example('{"a":1,}')
@example("\ufeff1")
def test_any_text_of_json_like_pieces_gets_the_verdict_of_the_standard_library(text: str) -> None:
    try:
        expected = json.loads(text, parse_constant=refuse_constant, parse_float=finite)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            codec.decode_json(text.encode())
    else:
        assert same(codec.decode_json(text.encode()), expected)
