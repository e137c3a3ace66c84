"""The examples of section 7 of the JSON-RPC 2.0 specification, answered in the specification's own bytes.

A small server is made of a plain peer and the methods that the examples call. White space outside strings is
all that may differ from what the specification prints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from stepflow_trio.errors import ErrorCode
from stepflow_trio.protocol.messages import ErrorObject
from stepflow_trio.protocol.peer import InboundRequest, Peer, Reply, Role


def subtract(minuend: float, subtrahend: float) -> float:
    return minuend - subtrahend


METHODS: dict[str, Callable[..., Any]] = {
    "subtract": subtract,
    "sum": lambda *numbers: sum(numbers),
    "get_data": lambda: ["hello", 5],
}


def serve(text: str) -> str:
    """What the server sends when it receives ``text``; "" where it sends nothing."""
    peer = Peer(Role.PLAIN, error_details=False)
    sent: list[bytes] = []
    for event in peer.receive(text.encode()):
        if type(event) is Reply:
            sent.append(event.frame)
        elif type(event) is InboundRequest:
            method = METHODS.get(event.method)
            if method is None:
                frame = peer.fail(event, ErrorObject(ErrorCode.METHOD_NOT_FOUND, "Method not found"))
            elif isinstance(event.params, dict):
                frame = peer.answer(event, method(**event.params))
            else:
                frame = peer.answer(event, method(*(event.params or [])))
            if frame is not None:
                sent.append(frame)
    assert peer.request_count == 0
    assert len(sent) <= 1
    return sent[0].decode() if sent else ""


def compact(text: str) -> str:
    """The text without white space outside strings."""
    return re.sub(r'("(?:[^"\\]|\\.)*")|\s+', r"\1", text)


EXAMPLES: list[tuple[str, str, str]] = [
    (
        "positional parameters",
        '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}',
        '{"jsonrpc": "2.0", "result": 19, "id": 1}',
    ),
    (
        "positional parameters, the other way round",
        '{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}',
        '{"jsonrpc": "2.0", "result": -19, "id": 2}',
    ),
    (
        "named parameters",
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        '{"jsonrpc": "2.0", "result": 19, "id": 3}',
    ),
    (
        "named parameters, the other way round",
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        '{"jsonrpc": "2.0", "result": 19, "id": 4}',
    ),
    ("a notification", '{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}', ""),
    ("a notification of an unknown method", '{"jsonrpc": "2.0", "method": "foobar"}', ""),
    (
        "a call of an unknown method",
        '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}',
        '{"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "1"}',
    ),
    (
        "invalid JSON",
        '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]',
        '{"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": null}',
    ),
    (
        "an invalid request object",
        '{"jsonrpc": "2.0", "method": 1, "params": "bar"}',
        '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}',
    ),
    (
        "a batch of invalid JSON",
        """[
  {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
  {"jsonrpc": "2.0", "method"
]""",
        '{"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": null}',
    ),
    (
        "an empty array",
        "[]",
        '{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}',
    ),
    (
        "an invalid batch that is not empty",
        "[1]",
        """[
  {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}
]""",
    ),
    (
        "an invalid batch",
        "[1,2,3]",
        """[
  {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},
  {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},
  {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null}
]""",
    ),
    (
        "a batch of everything",
        """[
  {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
  {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
  {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
  {"foo": "boo"},
  {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
  {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
]""",
        """[
  {"jsonrpc": "2.0", "result": 7, "id": "1"},
  {"jsonrpc": "2.0", "result": 19, "id": "2"},
  {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": null},
  {"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}, "id": "5"},
  {"jsonrpc": "2.0", "result": ["hello", 5], "id": "9"}
]""",
    ),
    (
        "a batch of notifications",
        """[
  {"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},
  {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}
]""",
        "",
    ),
]


@pytest.mark.parametrize(("name", "sent", "expected"), EXAMPLES, ids=[name for name, *_ in EXAMPLES])
def test_the_specification_s_example_gets_the_specification_s_answer(
    name: str, sent: str, expected: str
) -> None:
    assert serve(sent) == compact(expected), name


@pytest.mark.parametrize(("name", "sent", "expected"), EXAMPLES, ids=[name for name, *_ in EXAMPLES])
def test_the_answer_is_the_same_however_the_request_is_laid_out(name: str, sent: str, expected: str) -> None:
    assert serve(compact(sent)) == compact(expected), name
    assert serve(sent.replace("\n", "\r\n\t")) == compact(expected), name


def test_only_white_space_outside_strings_is_removed_for_the_comparison() -> None:
    assert compact('{ "a b" :\n[1, "c \\" d"]}') == '{"a b":[1,"c \\" d"]}'
    for _, _, expected in EXAMPLES:
        assert not expected or json.loads(compact(expected)) == json.loads(expected)


def test_every_example_of_the_section_is_here() -> None:
    assert len(EXAMPLES) == 15
