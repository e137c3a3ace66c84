"""One POST to the endpoint: a connection of its own, whose frames go into one HTTP answer."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from stepflow_trio.engine import Connection, Handlers, Limits
from stepflow_trio.engine.connection import RETRY_AFTER_S
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import ErrorCode, LossReason
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.messages import Decoded, ErrorObject, RequestId
from stepflow_trio.protocol.peer import Peer
from stepflow_trio.protocol.sse import COMMENT_PING, escape_non_ascii, write_event
from stepflow_trio.transports.http.asgi import Receive, Send

if TYPE_CHECKING:
    from stepflow_trio.transports.http.sessions import Session

SSE_HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # or nginx would keep the events to itself
]

_KEY_CHARS = 32


class Exchange(Connection):
    """What one POST asks, and what is asked back because of it.

    Its own calls have ids that begin with :attr:`key`, 128 random bits: so the answers to them, which come as
    POSTs of their own, find it, and nobody else's do.
    """

    def __init__(
        self,
        handlers: Handlers,
        *,
        peer_extensions: frozenset[str],
        limits: Limits,
        session: Session | None = None,
    ) -> None:
        self.session = session
        self.key = secrets.token_hex(_KEY_CHARS // 2)
        super().__init__(handlers, peer=Peer(id_prefix=f"{self.key}-"), limits=limits)
        self._peer.peer_extensions = peer_extensions

    async def respond(
        self,
        message: Decoded,
        receive: Receive,
        send: Send,
        *,
        instance_id: bytes,
        heartbeat_s: float,
        register: dict[str, Exchange],
    ) -> bool:
        """Answer the POST that brought ``message``; return whether at least the answer's beginning was sent.

        The answer is JSON, unless the runtime is called or told something meanwhile: then it is an event
        stream from there on, which ends with the answer; in a session those go to its stream instead. When
        the client goes away, or the session ends, what was asked is cancelled and not answered.
        """
        self.take([message])
        frames = self.take_outgoing()
        answer = _Answer(send, instance_id, self.session)
        if self.is_idle:
            # Whatever was asked is answered already: there is nothing to watch for and nothing to wait for.
            await answer.send_frames(frames, is_last=True)
            return True
        register[self.key] = self
        try:
            with one_exception():
                async with trio.open_nursery() as nursery:
                    self.run_in(nursery)
                    # A handler that waits for nothing is done after a turn or two, and needs no watching.
                    for _ in range(2):
                        await trio.lowlevel.checkpoint()
                        if self.is_settled:
                            break
                    else:
                        nursery.start_soon(self._watch, receive)
                    try:
                        await self._send_as_it_comes(frames, answer, heartbeat_s)
                    except (OSError, trio.BrokenResourceError) as exc:  # of the POST, or the session's stream
                        self.lose(LossReason.PEER_CLOSED, f"the client went away: {exc!r}")
                    if nursery.child_tasks:
                        nursery.cancel_scope.cancel(reason="the answer is sent")
        finally:
            del register[self.key]
            self.lose(LossReason.LOCAL_CLOSE, "the request is over")
        return answer.has_begun

    def end_with_session(self) -> None:
        """Cancel what was asked: the session that it belongs to is over."""
        self.lose(LossReason.PEER_CLOSED, "the session is over")

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.lose(LossReason.PEER_CLOSED, "the client went away")

    async def _send_as_it_comes(self, frames: list[bytes], answer: _Answer, heartbeat_s: float) -> None:
        while self.loss is None:
            is_last = self.is_idle
            await answer.send_frames(frames, is_last=is_last)
            if is_last:
                return
            if answer.is_stream and heartbeat_s:
                with trio.move_on_after(heartbeat_s) as patience:
                    await self.wait_outgoing()
                if patience.cancelled_caught:
                    await answer.send_heartbeat()
            else:
                await self.wait_outgoing()
            frames = self.take_outgoing()


class _Answer:
    """One HTTP answer, which is JSON until it has to be an event stream."""

    def __init__(self, send: Send, instance_id: bytes, session: Session | None) -> None:
        self._send = send
        self._instance_id = instance_id
        self._session = session
        self.is_stream = False
        self.has_begun = False

    async def send_frames(self, frames: Sequence[bytes], *, is_last: bool) -> None:
        """Send frames; with ``is_last``, the last of them is the answer to what was asked."""
        if self._session is not None:
            said, frames = (frames[:-1], frames[-1:]) if is_last else (frames, ())
            if said:
                await self._session.say(said)
        self.has_begun = self.has_begun or is_last or bool(frames)
        if is_last and not self.is_stream and len(frames) <= 1:
            await (send_json(self._send, 200, frames[0]) if frames else send_accepted(self._send))
            return
        if frames and not self.is_stream:
            self.is_stream = True
            headers = [*SSE_HEADERS, (b"stepflow-instance-id", self._instance_id)]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        # One event a write: public runtimes up to 0.11.1 read no event that is cut in the wrong place.
        for number, frame in enumerate(frames, start=1):
            await self._send(
                {
                    "type": "http.response.body",
                    "body": write_event(escape_non_ascii(frame)),
                    "more_body": not (is_last and number == len(frames)),
                }
            )

    async def send_heartbeat(self) -> None:
        """Keep an event stream alive."""
        await self._send({"type": "http.response.body", "body": COMMENT_PING, "more_body": True})


async def send_json(
    send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Send a whole answer."""
    length = b"%d" % len(body)
    fixed = [(b"content-type", b"application/json"), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fixed})
    await send({"type": "http.response.body", "body": body})


async def send_accepted(send: Send) -> None:
    """Say that a notification or an answer has arrived; nothing follows from that."""
    await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


class Refusal(Exception):
    """A request that is answered with an error status, whose body is a JSON-RPC error: runtimes show it."""

    def __init__(
        self,
        status: int,
        why: str | ErrorObject,
        *,
        id_: RequestId | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(status, why)
        self._status = status
        self._error = ErrorObject(ErrorCode.INVALID_REQUEST, why) if isinstance(why, str) else why
        self._id = id_
        self._headers = headers

    async def send(self, send: Send) -> None:
        """Answer so."""
        await send_json(send, self._status, codec.encode_failure(self._error, self._id), self._headers)


def overloaded(why: str, id_: RequestId | None = None) -> Refusal:
    """The refusal of what may be asked for again a little later."""
    error = ErrorObject(ErrorCode.OVERLOADED, why, {"retry_after_s": RETRY_AFTER_S})
    return Refusal(503, error, id_=id_, headers=[(b"retry-after", b"%d" % RETRY_AFTER_S)])


def exchange_key(id_: object) -> str:
    """The key of the exchange whose call has this id, if any has."""
    return id_[:_KEY_CHARS] if isinstance(id_, str) else ""
