"""A link over plain POSTs: each of our requests is one of HTTP, too (docs/protocol.md, section 4)."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import trio
from msgspec import UNSET

from stepflow_trio.engine.connection import RETRY_AFTER_S
from stepflow_trio.engine.link import Arrival
from stepflow_trio.errors import (
    ConnectFailed,
    ConnectionLost,
    ErrorCode,
    LossReason,
    Overloaded,
    RemoteProtocolError,
    StepflowError,
)
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.dialects import TransportKind
from stepflow_trio.protocol.messages import (
    Batch,
    ErrorObject,
    Failure,
    Malformed,
    Notification,
    Request,
    RequestId,
    Success,
    is_answer,
)
from stepflow_trio.protocol.peer import CANCEL_REQUEST, Unanswerable
from stepflow_trio.protocol.sse import EventParser, EventRejected
from stepflow_trio.transports.http.client import HttpClient, HttpResponse
from stepflow_trio.transports.http.retry_after import retry_after_s

Headers: TypeAlias = list[tuple[bytes, bytes]]

END_OF_STREAM_S = 1.0
"""After its answer, an event stream should end at once. One that does not costs its connection."""

ONE_WAY_TIMEOUT_S = 30.0
"""What gets no answer but 202 is given up after so long: nothing happens for it meanwhile."""

MAX_CALLBACKS = 1024
"""Callbacks of one request that wait for answers at once. A further one is refused with −32304."""

MIN_PATIENCE_S = 45.0
"""A stream that has had heartbeats is given up after three that did not come, but not earlier than this."""

MAX_ERROR_BYTES = 64 * 2**10
"""Read of the body of an answer that is an error of HTTP."""

_MAX_QUOTED_CHARS = 200

_BEARER = re.compile(r"bearer\s+[A-Za-z0-9._~+/-]{8,}=*", re.IGNORECASE)

_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Of a proxy or a server in trouble: another attempt may succeed. Other statuses stay what they are."""

_log = logging.getLogger("stepflow_trio.transports")


class _Exchange:
    """One request of ours while HTTP carries it."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.instance_id: bytes | None = None
        self.asked_back: dict[RequestId, trio.CancelScope] = {}
        """Callbacks that wait for their answers, and the scopes in which those are sent."""

    @property
    def headers(self) -> Headers:
        """What leads an answer to a callback to the instance that waits for it."""
        return [(b"stepflow-instance-id", self.instance_id)] if self.instance_id else []


class PostLink:
    """Carries each request in an exchange of its own, a task of ``nursery``.

    What a worker calls back while it works comes as events on the answer; our answers to that go as POSTs
    with the instance id of the answer. A cancellation (``$/cancelRequest``) closes the connection that
    carries the request, and whatever was called back because of it is cancelled here. A request that fails
    on its way fails alone: the link goes on.

    Args:
        client: how to reach the worker.
        short_client: the same, for what gets no answer; it never waits for a request to end.
        target: where to POST to, relative to the worker's URL.
        headers: sent with every POST.
        nursery: where exchanges run; their owner cancels it when it closes the link.
        max_event_bytes: the longest event read.
        has_session: whether callbacks come on a session's stream, and not with the answers.
        instances: the ids of instances that are known already; others are added.
    """

    def __init__(
        self,
        client: HttpClient,
        short_client: HttpClient,
        *,
        target: str,
        headers: Sequence[tuple[bytes, bytes]],
        nursery: trio.Nursery,
        max_event_bytes: int,
        has_session: bool = False,
        instances: set[bytes] | None = None,
    ) -> None:
        self._has_session = has_session
        self._client = client
        self._short_client = short_client
        self._target = target
        self._headers: Headers = [
            (b"content-type", b"application/json"),
            (b"accept", b"application/json, text/event-stream"),
            *headers,
        ]
        self._nursery = nursery
        self._max_event_bytes = max_event_bytes
        self._arrived: deque[Arrival] = deque()
        self._readable = trio.lowlevel.ParkingLot()
        self._exchanges: dict[RequestId, _Exchange] = {}
        self._asking: dict[RequestId, RequestId] = {}
        """By each callback that waits for an answer, the request of ours that it is made for."""
        self._announced: trio.Event | None = None
        """Set when the last notification has arrived: what was sent after it goes out after it."""
        self._failure: BaseException | None = None
        self._instances: set[bytes] = set() if instances is None else instances
        self.is_suspect = False
        """Whether the worker could not be reached, or another instance answers in its place: what was agreed
        on in ``initialize`` is then not known there."""

    @property
    def kind(self) -> TransportKind:
        """HTTP."""
        return "http"

    @property
    def cancels_by_closing(self) -> bool:
        """It does; see :class:`~stepflow_trio.engine.link.CancellingLink`."""
        return True

    # ---- what the engine does -----------------------------------------------------------------------

    async def receive(self) -> Sequence[Arrival]:
        """Wait for what answers and event streams bring; see :class:`~stepflow_trio.engine.link.Link`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._arrived and self._failure is None:
            await self._readable.park()
        if not self._arrived:
            raise cast("BaseException", self._failure)
        arrived = [*self._arrived]
        self._arrived.clear()
        return arrived

    async def send(self, frames: Sequence[bytes], progressed: Callable[[], object]) -> None:
        """Start an exchange for each frame; see :class:`~stepflow_trio.engine.link.Link`. Never waits."""
        for frame in frames:
            self._send(frame)
        progressed()

    async def aclose(self) -> None:
        """Cancel all exchanges; see :class:`~stepflow_trio.engine.link.Link`."""
        self.fail(trio.ClosedResourceError("this link is closed"))
        for exchange in [*self._exchanges.values()]:
            exchange.scope.cancel(reason="the link is closed")
        await trio.lowlevel.checkpoint()

    def fail(self, failure: BaseException) -> None:
        """End the link: what has arrived can still be received, then ``failure`` is raised."""
        if self._failure is None:
            self._failure = failure
        self._readable.unpark_all()

    def arrive(self, *arrivals: Arrival) -> None:
        """Hand over what has come."""
        self._arrived.extend(arrivals)
        self._readable.unpark()

    # ---- what is sent -------------------------------------------------------------------------------

    def _send(self, frame: bytes) -> None:
        if self._failure is not None:
            raise trio.BrokenResourceError("the link is over") from self._failure
        what = codec.outline(frame)
        if what.method is None:
            self._answer_back(cast("RequestId", what.id), frame)
        elif what.id is not None:
            exchange = self._exchanges[what.id] = _Exchange()
            self._nursery.start_soon(self._run, exchange, what.id, what.method, frame, self._announced)
        elif what.method == CANCEL_REQUEST:
            notification = cast("Notification", codec.decode(frame))
            id_ = cast("dict[str, Any]", notification.params)["id"]
            if id_ in self._exchanges:
                self._exchanges[id_].scope.cancel(reason="the caller has given the request up")
        else:
            before, self._announced = self._announced, trio.Event()
            self._nursery.start_soon(self._notify, what.method, frame, before, self._announced)

    async def _run(
        self, exchange: _Exchange, id_: RequestId, method: str, frame: bytes, before: trio.Event | None
    ) -> None:
        end = Unanswerable(id_, ConnectionLost(LossReason.LOCAL_CLOSE, "the request was given up"))
        try:
            with exchange.scope:
                if before is not None:
                    await before.wait()
                async with self._client.request(
                    "POST", self._target, headers=self._headers, body=frame
                ) as response:
                    if await self._read_answer(response, exchange, id_, method):
                        return
                    detail = "the worker's event stream ended before the answer came"
                    end = Unanswerable(id_, ConnectionLost(LossReason.STREAM_ERROR, detail))
        except StepflowError as exc:
            if isinstance(exc, ConnectFailed) and not exc.is_local:
                self.is_suspect = True
            end = Unanswerable(id_, exc)
        finally:
            del self._exchanges[id_]
            while exchange.asked_back:  # what it called back ends with it
                callback, answering = exchange.asked_back.popitem()
                del self._asking[callback]
                answering.cancel(reason="the request that asked for this answer is over")
                self.arrive(Notification(CANCEL_REQUEST, {"id": callback}))
        self.arrive(end)

    def _answer_back(self, callback: RequestId, frame: bytes) -> None:
        """Send our answer to what the worker asked while it was at a request of ours."""
        cause = self._asking.get(callback)
        if cause is not None:
            exchange = self._exchanges[cause]
            self._nursery.start_soon(self._send_answer, exchange, cause, callback, frame)
        elif self._has_session:
            self._nursery.start_soon(self._send_answer_in_session, frame)

    async def _send_answer(
        self, exchange: _Exchange, cause: RequestId, callback: RequestId, frame: bytes
    ) -> None:
        if callback not in exchange.asked_back:
            return  # what asked for it ended meanwhile
        with exchange.asked_back[callback]:
            problem = await self._post_one_way(frame, exchange.headers)
            if problem is not None:
                # The component would wait for it for ever.
                detail = f"an answer to what the component asked did not reach it: {problem}"
                self.arrive(Unanswerable(cause, ConnectionLost(LossReason.STREAM_ERROR, detail)))
                exchange.scope.cancel(reason="its callback cannot be answered")
            elif exchange.asked_back.pop(callback, None) is not None:
                del self._asking[callback]

    async def _send_answer_in_session(self, frame: bytes) -> None:
        problem = await self._post_one_way(frame, [])
        if problem is not None:
            # Whose callback it is that now waits for ever, only the worker knows.
            self.fail(trio.BrokenResourceError(f"an answer did not reach the worker: {problem}"))

    async def _notify(
        self, method: str, frame: bytes, before: trio.Event | None, arrived: trio.Event
    ) -> None:
        try:
            if before is not None:
                await before.wait()
            problem = await self._post_one_way(frame, [])
            if problem is not None:
                _log.warning("notification %s did not reach the worker: %s", method, problem)
        finally:
            arrived.set()
            if self._announced is arrived:
                self._announced = None

    async def _post_one_way(self, frame: bytes, headers: Headers) -> str | None:
        """POST what gets no answer; return what went wrong, if anything did."""
        try:
            async with self._short_client.request(
                "POST",
                self._target,
                headers=[*self._headers, *headers],
                body=frame,
                timeout_s=ONE_WAY_TIMEOUT_S,
            ) as response:
                body = await response.read(MAX_ERROR_BYTES)
        except StepflowError as exc:
            return str(exc)
        return None if response.status < 300 else shown_answer(response.status, body)

    # ---- what comes ---------------------------------------------------------------------------------

    async def _read_answer(
        self, response: HttpResponse, exchange: _Exchange, id_: RequestId, method: str
    ) -> bool:
        """Hand over what a response brings. False where it ends without the answer.

        Raises:
            StepflowError: the request has failed; there will be no answer.
        """
        if response.status == 200 and response.headers.media_type == b"text/event-stream":
            return await self._read_events(response, exchange, id_)
        body = await response.read(None if response.status == 200 else MAX_ERROR_BYTES)
        if response.status == 202 or (not body and response.status < 300):
            message = f"the worker took {method} for something that needs no answer (HTTP {response.status})"
            raise RemoteProtocolError(message, code=ErrorCode.GARBLED_MESSAGE)
        message = _answer_to(id_, body, is_error=response.status >= 300)
        if message is None:
            raise _http_error(response, method, body)
        self.arrive(message)
        return True

    async def _read_events(self, response: HttpResponse, exchange: _Exchange, id_: RequestId) -> bool:
        self._meet(exchange, response.headers.get(b"stepflow-instance-id"))
        parser = EventParser(self._max_event_bytes)
        pulse = _Pulse()
        while chunk := await pulse.receive(response):
            comments = parser.comments
            events = parser.feed(chunk)
            pulse.beat(is_heartbeat=parser.comments > comments)
            for event in events:
                if type(event) is EventRejected:
                    raise RemoteProtocolError(event.detail, code=ErrorCode.GARBLED_MESSAGE)
                message = codec.decode(event.data)
                if type(message) is Batch:
                    for item in message.items:
                        if type(item) is Request:
                            await self._ask_back(item, exchange, id_)
                        elif not is_answer(item):
                            self.arrive(item)
                elif type(message) is Request:
                    await self._ask_back(message, exchange, id_)
                elif type(message) is Malformed and not is_answer(message) and b'"method"' in event.data:
                    # It may be a callback, for whose answer the component would wait for ever.
                    problem = f"an event cannot be read: {message.error.message} {message.error.data}"
                    raise RemoteProtocolError(problem, code=ErrorCode.GARBLED_MESSAGE)
                elif not is_answer(message):
                    self.arrive(message)
                elif message.id != id_:
                    _log.debug("the worker answered %.80r on the stream of %r", message.id, id_)
                else:
                    self.arrive(message)
                    with trio.move_on_after(END_OF_STREAM_S):
                        # Its end makes the connection fit for the next request.
                        while await response.receive_some():
                            pass
                    return True
        return False

    def _meet(self, exchange: _Exchange, instance_id: bytes | None) -> None:
        exchange.instance_id = instance_id
        if instance_id is not None:
            if self._instances and instance_id not in self._instances:
                self.is_suspect = True
            self._instances.add(instance_id)

    async def _ask_back(self, callback: Request, exchange: _Exchange, id_: RequestId) -> None:
        if len(exchange.asked_back) >= MAX_CALLBACKS:
            # Read on: the answer, or what ends the others, may stand behind it.
            data = {"retry_after_s": RETRY_AFTER_S}
            error = ErrorObject(ErrorCode.OVERLOADED, "Too many callbacks wait for their answers", data)
            await self._post_one_way(codec.encode_failure(error, callback.id), exchange.headers)
            return
        if callback.id in self._asking:
            message = f"the worker calls back with id {callback.id!r:.80}, which is still in flight"
            raise RemoteProtocolError(message, code=ErrorCode.INVALID_REQUEST)
        self._asking[callback.id] = id_
        exchange.asked_back[callback.id] = trio.CancelScope()
        self.arrive(callback)


class _Pulse:
    """Whether a stream lives: once it has had a heartbeat, further ones are expected."""

    def __init__(self) -> None:
        self._patience_s = float("inf")
        self._last_came = trio.current_time()

    async def receive(self, response: HttpResponse) -> bytes:
        """The next piece of the stream; empty at its end.

        Raises:
            ConnectionLost: nothing came for longer than three heartbeats take.
        """
        chunk = None
        with trio.move_on_after(self._patience_s):
            chunk = await response.receive_some()
        if chunk is None:
            detail = f"the worker's event stream brought nothing for {self._patience_s:g} s"
            raise ConnectionLost(LossReason.IDLE_TIMEOUT, detail)
        return chunk

    def beat(self, *, is_heartbeat: bool) -> None:
        """Note that something has come, and whether a heartbeat was in it."""
        now = trio.current_time()
        if is_heartbeat:
            self._patience_s = max(MIN_PATIENCE_S, 3 * (now - self._last_came))
        self._last_came = now


def _answer_to(id_: RequestId, body: bytes, *, is_error: bool) -> Success | Failure | Malformed | None:
    """The answer to ``id_`` that a response's body holds; None where a status of HTTP is all that it says.

    Public workers answer what they refuse with an error without its id, or without anything else around it.
    """
    message = codec.decode(body)
    if (type(message) is Success or type(message) is Failure) and message.id == id_:
        return message
    if type(message) is Failure and message.id is None:
        return Failure(message.error, id_)
    if is_error:
        match _json_in(body):
            case {"error": {"code": int() as code, "message": str() as text, **rest}} if (
                type(code) is int and -(2**53) < code < 2**53
            ):
                return Failure(ErrorObject(code, text, rest.get("data", UNSET)), id_)
            case _:
                return None
    detail = message.error.data if type(message) is Malformed else "it answers another request"
    error = ErrorObject(ErrorCode.GARBLED_MESSAGE, "not an answer to this request", detail)
    return Malformed(error, id_, is_response=True)


def _http_error(response: HttpResponse, method: str, body: bytes) -> StepflowError:
    """What a status without a JSON-RPC answer means for the request."""
    said = f"the worker refused {method}: {shown_answer(response.status, body)}"
    if response.status in (429, 503):
        wanted_s = retry_after_s(response.headers, now=time.time())
        data = None if wanted_s is None else {"retry_after_s": wanted_s}
        return Overloaded(ErrorCode.OVERLOADED, said, data, method=method)
    if response.status in _TRANSIENT_STATUSES:
        return ConnectionLost(LossReason.STREAM_ERROR, said)
    return RemoteProtocolError(said, data={"status": response.status})


def shown_answer(status: int, body: bytes) -> str:
    """A refusal in the server's own words: its status, and what its body says where that is a text.

    Of a JSON object with a ``message``, as ours answer, or an ``error``, as others do, it is that.
    """
    text = _error_in(body) or body[: 4 * _MAX_QUOTED_CHARS].decode("utf-8", "replace").strip()
    text = "".join(character if character.isprintable() else " " for character in text)[:_MAX_QUOTED_CHARS]
    text = _BEARER.sub("Bearer …", text)  # of a server that shows what it was sent
    return f"HTTP {status}{': ' if text else ''}{text}"


def _error_in(body: bytes) -> str:
    match _json_in(body):
        case {"message": str() as error} | {"error": str() as error}:
            return error
        case _:
            return ""


def _json_in(body: bytes) -> Any:
    try:
        return codec.decode_json(body)
    except ValueError:
        return None
