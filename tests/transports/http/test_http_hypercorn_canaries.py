"""Canaries: what the hypercorn host uses of hypercorn beyond its documentation, as it was when it was read.

One of these fails where an upgrade changes such a thing. Then read the change, see whether what is said of it
in ``transports/http/hypercorn_*.py`` still holds, and write down here what is so now.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypercorn.config
import hypercorn.events
import hypercorn.protocol.events
import hypercorn.protocol.h2
import hypercorn.protocol.h11
import hypercorn.protocol.http_stream
import hypercorn.trio.worker_context
import hypercorn.utils
import pytest
import trio
from hypercorn.protocol.h2 import H2Protocol, StreamBuffer
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream

from stepflow_trio.transports.http.hypercorn_http1 import Http1
from stepflow_trio.transports.http.hypercorn_http2 import Http2

REPLACED: dict[type, dict[str, str]] = {
    H11Protocol: {
        "handle": "feeds the parser; a Closed closes the stream",
        "_handle_events": "stops reading while a request waits behind another, and answers what is not HTTP",
        "_create_stream": "makes WebSockets and HTTPStreams",
        "stream_send": "makes h11's events of a stream's; Response is replaced",
        "_maybe_recycle": "prepares for the next request, or closes",
    },
    H2Protocol: {
        "initiate": "sends the settings, and starts send_task",
        "handle": "feeds the parser; a Closed closes the streams, and leaves who waits in a buffer waiting",
        "_handle_events": "fails with a KeyError for data behind an answer",
        "_create_stream": "fails for methods and paths that are not ASCII, and for CONNECT without a path",
        "stream_send": "fills and drains buffers; Response and StreamClosed are replaced",
        "_send_data": "sends from a buffer what the window allows",
    },
}
"""What is replaced, and what it does where it was: what it is replaced with was written beside it."""

USED: dict[type, dict[str, str]] = {
    H11Protocol: {
        "__init__": "keeps its arguments, and makes the h11 connection",
        "_close_stream": "tells the stream, and forgets it",
        "_send_h11_event": "sends bytes; fails for what is no valid answer",
    },
    H2Protocol: {
        "__init__": "keeps its arguments, and makes the h2 connection, the priorities and the buffers",
        "send_task": "sends for whichever stream is not blocked; ends when closed is set, and has_data",
        "_flush": "sends what h2 has to send",
        "_window_updated": "unblocks streams",
        "_close_stream": "tells the stream, and forgets it",
    },
    StreamBuffer: {
        "__init__": "is empty and not complete",
        "push": "takes bytes, then waits where there are many",
        "pop": "takes bytes out; wakes who waits in push, even where it takes nothing",
        "drain": "waits until it is empty",
        "close": "empties it, and wakes who waits",
        "set_complete": "says that nothing more comes",
    },
    HTTPStream: {
        "__init__": "keeps its arguments; its state is REQUEST",
        "handle": "makes ASGI's scope and messages; gives the scope to the task group's spawn_app",
        "app_send": "sends ASGI's messages, and never waits between the bytes of a head and its own state",
        "_send_closed": "sends the body's end, is CLOSED then, and says so",
    },
}
"""What is used as it is, and what of it is relied upon."""

FINGERPRINTS = {
    "H11Protocol.handle": "3b56e0674474",
    "H11Protocol._handle_events": "bd4a76b2837e",
    "H11Protocol._create_stream": "a2338a57ab34",
    "H11Protocol.stream_send": "56a36254a368",
    "H11Protocol._maybe_recycle": "3ac53f52bc4e",
    "H2Protocol.initiate": "fc365390735c",
    "H2Protocol.handle": "c67e89eb79af",
    "H2Protocol._handle_events": "3378aef0a234",
    "H2Protocol._create_stream": "91eb123ddf24",
    "H2Protocol.stream_send": "d8fc824e2770",
    "H2Protocol._send_data": "a89ce4286f36",
    "H11Protocol.__init__": "c7c989fd6a35",
    "H11Protocol._close_stream": "378930655d7b",
    "H11Protocol._send_h11_event": "5e40283daa30",
    "H2Protocol.__init__": "d577a96e2eb6",
    "H2Protocol.send_task": "3f55a5376640",
    "H2Protocol._flush": "1a771e85178d",
    "H2Protocol._window_updated": "80fdf9db83dd",
    "H2Protocol._close_stream": "a29254979164",
    "StreamBuffer.__init__": "d6c8c726e2c0",
    "StreamBuffer.push": "4ca8ee7b0fec",
    "StreamBuffer.pop": "9eb73c883389",
    "StreamBuffer.drain": "48e7a2a9a7be",
    "StreamBuffer.close": "f6a32abdf982",
    "StreamBuffer.set_complete": "2f03411ed03f",
    "HTTPStream.__init__": "c51a65fea53d",
    "HTTPStream.handle": "6ed2e34c5e70",
    "HTTPStream.app_send": "c806044b9973",
    "HTTPStream._send_closed": "9aaf2e1ac611",
}
"""Of the code of each of these."""


def fingerprint(function: Callable[..., Any]) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]


def cases() -> list[Any]:
    return [
        pytest.param(owner, name, what, id=f"{owner.__name__}.{name}")
        for table in (REPLACED, USED)
        for owner, names in table.items()
        for name, what in names.items()
    ]


def test_hypercorn_is_the_version_that_was_read() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))["project"]
    pins = [pin for pin in project["dependencies"] if pin.startswith("hypercorn")]
    assert pins == ["hypercorn==0.18.0"], "the host builds on this version's insides: pin it"
    assert importlib.metadata.version("hypercorn") == "0.18.0", (
        "another hypercorn than the pinned one is installed"
    )


@pytest.mark.parametrize(("owner", "name", "what"), cases())
def test_what_is_used_or_replaced_is_as_it_was_read(owner: type, name: str, what: str) -> None:
    function = getattr(owner, name, None)
    where = f"hypercorn's {owner.__name__}.{name}, which {what},"
    assert function is not None, f"{where} is gone: see who called it, and what does its work now"
    found = fingerprint(function)
    expected = FINGERPRINTS[f"{owner.__name__}.{name}"]
    assert found == expected, (
        f"{where} has changed. Read the change; where this still holds, its fingerprint is now {found!r}"
    )


def test_everything_that_the_host_overrides_is_watched() -> None:
    for ours, theirs in ((Http1, H11Protocol), (Http2, H2Protocol)):
        overridden = {
            name for name in vars(ours) if hasattr(theirs, name) and inspect.isfunction(vars(ours)[name])
        }
        assert overridden - {"__init__"} == set(REPLACED[theirs])


def test_hypercorns_classes_are_made_with_the_arguments_that_the_host_gives() -> None:
    protocol = "self app config context task_group connection_state ssl client server send"
    expected = {
        H11Protocol: protocol,
        H2Protocol: protocol,
        HTTPStream: "self app config context task_group ssl client server send stream_id",
        StreamBuffer: "self event_class",
        hypercorn.trio.worker_context.WorkerContext: "self max_requests",
        hypercorn.protocol.events.Request: "self stream_id headers http_version method raw_path state",
        hypercorn.protocol.events.Response: "self stream_id headers status_code",
        hypercorn.protocol.events.Body: "self stream_id data",
        hypercorn.protocol.events.EndBody: "self stream_id",
        hypercorn.protocol.events.StreamClosed: "self stream_id",
        hypercorn.events.RawData: "self data address",
        hypercorn.events.Closed: "self",
        hypercorn.events.Updated: "self idle",
    }
    for each, arguments in expected.items():
        found = " ".join(inspect.signature(each.__init__).parameters)
        assert found == arguments, f"hypercorn's {each.__name__} is made with other arguments: {found}"


async def test_a_buffer_tells_what_it_holds_and_whether_that_is_all() -> None:
    buffer = StreamBuffer(hypercorn.trio.worker_context.WorkerContext(None).event_class)
    await buffer.push(b"abc")
    assert (buffer.buffer, buffer.complete) == (b"abc", False)
    buffer.set_complete()
    assert (await buffer.pop(2), buffer.complete) == (b"ab", False)
    assert (await buffer.pop(2), buffer.complete) == (b"c", True)
    await buffer.drain()


async def test_a_stream_starts_the_application_through_its_task_group_and_is_in_known_states() -> None:
    started: list[tuple[Any, ...]] = []
    put: list[dict[str, Any]] = []

    class TaskGroup:
        async def spawn_app(self, *arguments: Any) -> Callable[..., Any]:
            started.append(arguments)
            return self.put

        async def put(self, message: dict[str, Any]) -> None:
            put.append(message)

    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    events = hypercorn.protocol.events
    config = hypercorn.config.Config()
    context: Any = hypercorn.trio.worker_context.WorkerContext(None)
    group: Any = TaskGroup()
    app: Any = object()
    stream = HTTPStream(app, config, context, group, True, ("::1", 1), None, send, 7)
    state: Any = {}
    await stream.handle(events.Request(7, [(b"host", b"x")], "2", "POST", b"/a?b", state))
    await stream.handle(events.Body(7, b"body"))
    await stream.handle(events.EndBody(7))
    ((app_given, config_given, scope, app_send),) = started
    assert (app_given, config_given) == (app, config)
    assert (scope["scheme"], scope["raw_path"], scope["query_string"]) == ("https", b"/a", b"b")
    assert put == [
        {"type": "http.request", "body": b"body", "more_body": True},
        {"type": "http.request", "body": b"", "more_body": False},
    ]
    assert stream.state is ASGIHTTPState.REQUEST
    await app_send({"type": "http.response.start", "status": 200, "headers": []})
    assert stream.state is ASGIHTTPState.RESPONSE
    await app_send({"type": "http.response.body", "body": b"answer"})
    assert stream.state is ASGIHTTPState.CLOSED
    assert sent == [
        events.Response(7, [], 200),
        events.Body(7, b"answer"),
        events.EndBody(7),
        events.StreamClosed(7),
    ]
    await stream.handle(events.StreamClosed(7))
    assert put[2:] == [{"type": "http.disconnect"}]


async def test_nothing_waits_between_the_head_of_an_answer_and_the_streams_state() -> None:
    # The host relies on it: whoever is cancelled in `send` is so before its message, or behind it.
    config = hypercorn.config.Config()
    context: Any = hypercorn.trio.worker_context.WorkerContext(None)

    class Group:
        async def spawn_app(self, *arguments: Any) -> Any: ...

    async def send(event: Any) -> None: ...

    group: Any = Group()
    app: Any = None
    stream = HTTPStream(app, config, context, group, False, None, None, send, 1)
    state: Any = {}
    await stream.handle(hypercorn.protocol.events.Request(1, [], "1.1", "GET", b"/", state))
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.app_send({"type": "http.response.start", "status": 200, "headers": []})
        assert stream.state is ASGIHTTPState.RESPONSE
    assert not scope.cancelled_caught


def test_the_configuration_says_what_the_host_relies_on() -> None:
    config = hypercorn.config.Config()
    assert config.server_names == [], "or requests are answered 404 before the application is asked"
    assert config.root_path == ""
    assert config.h2_max_inbound_frame_size == 2**14
    assert config.accesslog is None
    assert config._log is None


def test_pseudo_headers_become_host_and_go() -> None:
    headers = [(b":method", b"GET"), (b":authority", b"here"), (b"x", b"y")]
    assert hypercorn.utils.filter_pseudo_headers(headers) == [(b"host", b"here"), (b"x", b"y")]
