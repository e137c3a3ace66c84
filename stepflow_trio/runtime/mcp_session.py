"""A session with an MCP server over the pipes of its process.

The session is that of the package ``mcp``, which only this module imports; the pipes are ours.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Self, cast

import anyio
import mcp_types as types
import trio
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from stepflow_trio.engine.ending import one_exception
from stepflow_trio.engine.limits import Limits
from stepflow_trio.engine.link import Arrival, Link
from stepflow_trio.errors import (
    CallFailed,
    ConnectionLost,
    ErrorCode,
    LossReason,
    RemoteProtocolError,
    RpcError,
    StepflowError,
)
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.protocol.messages import RequestId
from stepflow_trio.protocol.payloads import ComponentInfo

__all__ = ["McpSession", "open_mcp_session"]

MAX_TOOLS = 10_000
MAX_PAGES = 1_000
"""A server that goes on listing tools beyond either is not listened to: its list may have no end."""

MAX_UNSENT_MESSAGES = 256
"""Messages that wait until the server reads; who has more to say waits. Cancellations never do."""

_SHOWN_LINE_CHARS = 1000
_SHOWN_TEXT_CHARS = 2000
_CANCELLED = "notifications/cancelled"
_METHOD_NOT_FOUND = -32601

_MAY_BE_A_MESSAGE = re.compile(rb'\s*(?:\[\s*)?\{(?s:.*)"jsonrpc"')
"""What cannot be read and looks so is a message or a batch, and no line that belongs elsewhere."""

_KNOWN_FAULTS = {
    "initialize": (
        ErrorCode.VERSION_MISMATCH,
        ("Unsupported protocol version from the server", "No mutually supported modern protocol version"),
    ),
    "tools/call": (
        ErrorCode.COMPONENT_FAILED,
        ("Tool ", "Invalid schema for tool ", "Invalid structured content returned by tool "),
    ),
}
"""The beginnings of what the package says, in a plain RuntimeError, of faults of the server."""

_log = logging.getLogger("stepflow_trio.runtime")


class McpSession:
    """What can be asked of a server; :func:`open_mcp_session` makes it. Any number of tasks may ask at once.

    Cancelling a call tells the server and waits for nothing.
    """

    divides_codes = False
    """Its codes do not say who may try again."""

    def __init__(self, session: ClientSession, pipes: _Pipes) -> None:
        self._session = session
        self._pipes = pipes
        self._calls_abandoned = 0
        self.abandoned_calls: frozenset[RequestId] = frozenset()
        """Numbers of calls that were given up since the server answered a :meth:`probe`."""
        self.tools: dict[str, ComponentInfo] = {}
        """Of each tool, by its name, what it takes and returns, as of the last :meth:`list_tools`."""

    @property
    def loss(self) -> ConnectionLost | None:
        """Why the session is over; None while it is not."""
        return self._pipes.loss

    @property
    def frames_received(self) -> int:
        """How many lines have come."""
        return self._pipes.frames_received

    async def introduce(self) -> None:
        """Agree with the server on a version of the protocol, and ask for its tools; must come first.

        Raises:
            StepflowError: as :meth:`call_tool` does, or there is no version that both know.
        """
        with self._said("initialize"):
            try:
                await self._session.initialize()
            except MCPError as refusal:
                if refusal.code != _METHOD_NOT_FOUND:
                    raise
                # The youngest generation has no handshake.
                try:
                    await self._session.discover()
                except MCPError as exc:
                    raise refusal from exc
        await self.list_tools()

    async def list_tools(self) -> None:
        """Ask for all tools, page after page. Raises as :meth:`call_tool` does."""
        capabilities = self._session.server_capabilities
        if capabilities is None or capabilities.tools is None:
            self.tools = {}
            return
        listed: list[types.Tool] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            with self._said("tools/list"):
                params = None if cursor is None else types.PaginatedRequestParams(cursor=cursor)
                page = await self._session.list_tools(params=params)
            listed += page.tools
            if len(listed) > MAX_TOOLS:
                raise _garbled(f"tools/list: more than {MAX_TOOLS:,} tools")
            cursor = page.next_cursor
            if cursor is None:
                break
        else:
            raise _garbled(f"tools/list: more than {MAX_PAGES:,} pages")
        self.tools = {
            tool.name: ComponentInfo(
                component=f"/{tool.name}",
                description=tool.description or tool.title,
                input_schema=tool.input_schema,
                output_schema=tool.output_schema,
            )
            for tool in listed
        }

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        """Call a tool and return its structured content, or its content where it gives no other.

        Raises:
            RpcError: −32100, the tool says that it failed; its content is the data.
            CallFailed: the server refused the call.
            RpcError: −32202, the package failed in a way that nobody knows; the log has it by incident.
            RemoteProtocolError: the answer is not what MCP says.
            ConnectionLost: the session ended before the answer came.
        """
        with self._said("tools/call"):
            result = await self._session.call_tool(name, arguments, allow_input_required=True)
        if isinstance(result, types.InputRequiredResult):
            message = f"the tool {name} asks for input while it runs, which nobody here can give"
            raise RpcError(ErrorCode.COMPONENT_FAILED, message)
        content = [
            block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content
        ]
        if result.is_error:
            said = "\n".join(block["text"] for block in content if block.get("type") == "text")
            message = said[:_SHOWN_TEXT_CHARS] or f"the tool {name} failed"
            raise RpcError(ErrorCode.COMPONENT_FAILED, message, content)
        return content if result.structured_content is None else result.structured_content

    async def probe(self) -> None:
        """Ask whether it is there. If it answers, it has heard of all calls that were given up before.

        MCP wants no answer to those, so that their silence says nothing. Raises as :meth:`call_tool` does.
        """
        told = self.abandoned_calls
        try:
            with self._said("ping"):
                await self._session.send_ping()
        except (CallFailed, RemoteProtocolError):
            self.abandoned_calls -= told
            raise
        self.abandoned_calls -= told

    def lose(self, reason: LossReason, detail: str) -> None:
        """End the session. The first reason counts."""
        self._pipes.lose(reason, detail)

    async def wait_lost(self) -> ConnectionLost:
        """Wait until the session is over; return why."""
        return await self._pipes.wait_lost()

    @contextmanager
    def _said(self, method: str) -> Generator[None]:
        """Make errors of the package errors of ours, and take note of what is given up."""
        try:
            yield
        except trio.Cancelled:
            if method != "ping":
                self._calls_abandoned += 1
                self.abandoned_calls |= {self._calls_abandoned}
            raise
        except MCPError as exc:
            loss = self._pipes.loss
            if loss is not None:
                raise ConnectionLost(loss.reason, loss.detail) from exc
            raise CallFailed(exc.code, exc.message, exc.data, method=method) from exc
        except ValidationError as exc:
            first = exc.errors(include_input=False, include_url=False)[0]
            at = ".".join(map(str, first["loc"]))
            message = f"{method}: the answer is not what MCP says: {first['msg']} at {at or 'its root'}"
            raise _garbled(message) from exc
        except StepflowError:
            raise
        except Exception as exc:
            code, known = _KNOWN_FAULTS.get(method, (ErrorCode.RUNTIME_INTERNAL, ()))
            if type(exc) is RuntimeError and str(exc).startswith(known):
                raise RpcError(code, f"{method}: {str(exc)[:_SHOWN_TEXT_CHARS]}") from exc
            incident = secrets.token_hex(4)
            _log.error("%s to an MCP server failed, incident %s", method, incident, exc_info=exc)
            message = f"{method} failed, incident {incident}: the log says more"
            raise RpcError(ErrorCode.RUNTIME_INTERNAL, message, {"incident": incident}) from exc


@asynccontextmanager
async def open_mcp_session(link: Link, on_other_line: Callable[[str], object]) -> AsyncGenerator[McpSession]:
    """Speak MCP over ``link`` as long as the block lasts; nothing is said before it is asked for.

    ``on_other_line`` hears each line from the server that is none of JSON-RPC: servers print on stdout what
    belongs on stderr. A message that cannot be read, or that MCP does not know, ends the session: an answer
    may be lost with it.
    """
    pipes = _Pipes(link, on_other_line)
    session = ClientSession(
        _Incoming(pipes),
        _Outgoing(pipes),
        client_info=types.Implementation(name="stepflow-trio", version=_own_version()),
    )
    with one_exception():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipes.write, name="write to an MCP server")
            try:
                with one_exception():  # it has a nursery as well
                    async with session:
                        try:
                            yield McpSession(session, pipes)
                        finally:
                            pipes.lose(LossReason.LOCAL_CLOSE, "the session was closed")
            finally:
                nursery.cancel_scope.cancel(reason="the session is over")


def _own_version() -> str:
    try:
        return importlib.metadata.version("stepflow-trio")
    except importlib.metadata.PackageNotFoundError:
        return "0"


class _Pipes:
    """A server's stdin and stdout, message by message."""

    def __init__(self, link: Link, on_other_line: Callable[[str], object]) -> None:
        self._link = link
        self._on_other_line = on_other_line
        self._received: deque[SessionMessage] = deque()
        self._unsent: deque[bytes] = deque()
        self._has_unsent = trio.lowlevel.ParkingLot()
        self._has_room = trio.lowlevel.ParkingLot()
        self._lost = trio.Event()
        self.loss: ConnectionLost | None = None
        self.frames_received = 0

    def lose(self, reason: LossReason, detail: str) -> None:
        """It is over. The first reason counts."""
        if self.loss is None:
            self.loss = ConnectionLost(reason, detail)
            self._lost.set()
            self._has_room.unpark_all()

    async def wait_lost(self) -> ConnectionLost:
        await self._lost.wait()
        return cast("ConnectionLost", self.loss)

    async def receive(self) -> SessionMessage | None:
        """The next message; None at the end."""
        while not self._received and self.loss is None:
            try:
                frames = await self._link.receive()
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self.lose(LossReason.STREAM_ERROR, f"reading failed: {exc!r}")
                break
            if not frames:
                self.lose(LossReason.PEER_CLOSED, "the server closed its stdout")
            self.frames_received += len(frames)
            for frame in frames:
                self._take(frame)
        return self._received.popleft() if self._received else None

    def _take(self, frame: Arrival) -> None:
        if not isinstance(frame, bytes):
            # What has no ends was cut off by the stream's own, which comes next, and has better reasons.
            if isinstance(frame, FrameRejected) and frame.head:
                self.lose(LossReason.PROTOCOL_VIOLATION, frame.detail)
            return
        try:
            value = codec.decode_json(frame)
        except ValueError as exc:
            if _MAY_BE_A_MESSAGE.match(frame):
                detail = f"the server's message cannot be read: {exc}: {_shown(frame)}"
                self.lose(LossReason.PROTOCOL_VIOLATION, detail)
                return
            value = None
        # Protocol version 2025-03-26 has batches.
        messages = cast("list[Any]", value) if isinstance(value, list) else [value]
        if any(map(_is_of_json_rpc, messages)):
            for message in messages:
                self._take_message(message, frame)
        elif line := _shown(frame):
            self._on_other_line(line)

    def _take_message(self, value: Any, frame: bytes) -> None:
        try:
            message = types.jsonrpc_message_adapter.validate_python(value, by_name=False)
        except ValidationError:
            detail = f"the server says what is no message of MCP: {_shown(frame)}"
            self.lose(LossReason.PROTOCOL_VIOLATION, detail)
            return
        self._received.append(SessionMessage(message))

    async def send(self, message: types.JSONRPCMessage) -> None:
        """Queue a message, once there is room.

        Raises:
            anyio.BrokenResourceError: it is over; what the package expects.
            LocalProtocolError: the message nests deeper than we would read.
        """
        frame = codec.encode_json(message.model_dump(mode="json", by_alias=True, exclude_unset=True))
        if getattr(message, "method", None) != _CANCELLED:
            while len(self._unsent) >= MAX_UNSENT_MESSAGES and self.loss is None:
                await self._has_room.park()
        if self.loss is not None:
            raise anyio.BrokenResourceError
        self._unsent.append(frame)
        self._has_unsent.unpark()

    async def write(self) -> None:
        """Send what is queued until it is over."""
        timeout_s = Limits().send_timeout_s
        try:
            while self.loss is None:
                while not self._unsent:
                    await self._has_unsent.park()
                frames = [*self._unsent]
                self._unsent.clear()
                self._has_room.unpark_all()
                with trio.CancelScope(deadline=trio.current_time() + timeout_s) as scope:

                    def progressed(scope: trio.CancelScope = scope) -> None:
                        scope.deadline = trio.current_time() + timeout_s

                    await self._link.send(frames, progressed)
                if scope.cancelled_caught:
                    self.lose(LossReason.SEND_STALLED, f"the server took no bytes for {timeout_s:g} s")
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self.lose(LossReason.STREAM_ERROR, f"writing failed: {exc!r}")


def _garbled(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, code=ErrorCode.GARBLED_MESSAGE)


def _is_of_json_rpc(value: Any) -> bool:
    return isinstance(value, dict) and not {"jsonrpc", "id"}.isdisjoint(cast("dict[str, Any]", value))


def _shown(frame: bytes) -> str:
    text = frame[: 4 * _SHOWN_LINE_CHARS].decode("utf-8", "backslashreplace")[:_SHOWN_LINE_CHARS].strip()
    return "".join(character if character.isprintable() else " " for character in text)


class _Stream:
    """What the package's two kinds of streams have in common. The pipes are closed by their owner."""

    def __init__(self, pipes: _Pipes) -> None:
        self._pipes = pipes

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        pass


class _Incoming(_Stream):
    """What the server says; ends when the pipes do."""

    async def receive(self) -> SessionMessage | Exception:
        message = await self._pipes.receive()
        if message is None:
            raise anyio.EndOfStream
        return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        message = await self._pipes.receive()
        if message is None:
            raise StopAsyncIteration
        return message


class _Outgoing(_Stream):
    """What the server is told."""

    async def send(self, item: SessionMessage, /) -> None:
        await self._pipes.send(item.message)
