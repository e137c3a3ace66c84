"""A peer that says what the test tells it to, right or wrong."""

from __future__ import annotations

from typing import Any

import trio
from msgspec import UNSET

from stepflow_trio.engine.link import Arrival, Link
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.protocol.messages import (
    Decoded,
    ErrorObject,
    Failure,
    Notification,
    Request,
    RequestId,
    Success,
)
from stepflow_trio.protocol.peer import Unanswerable

__all__ = ["ScriptedPeer", "UnexpectedMessage"]


class UnexpectedMessage(AssertionError):
    """What came, or that nothing came, is not what the test expected."""


class ScriptedPeer:
    """The far end of a link as frames: it answers nothing by itself and breaks any rule it is told to.

    Args:
        link: the far end's link.
        within_s: how long an expected message may take before the expectation fails.
    """

    def __init__(self, link: Link, *, within_s: float = 60.0) -> None:
        self._link = link
        self._within_s = within_s
        self._unread: list[Arrival] = []
        self._ended = False
        self.received: list[Decoded | FrameRejected | Unanswerable] = []
        """Everything read so far, in order."""

    # ---- what comes ---------------------------------------------------------------------------------

    async def receive(self) -> Decoded | FrameRejected | Unanswerable | None:
        """Wait for the next message, whatever it is; None is the end.

        Raises:
            UnexpectedMessage: nothing came within ``within_s``.
        """
        if not self._unread and not self._ended:
            with trio.move_on_after(self._within_s) as patience:
                self._unread = [*await self._link.receive()]
                self._ended = not self._unread
            if patience.cancelled_caught:
                raise UnexpectedMessage(f"nothing came within {self._within_s:g} s")
        if not self._unread:
            return None
        frame = self._unread.pop(0)
        message = codec.decode(frame) if isinstance(frame, bytes) else frame
        self.received.append(message)
        return message

    async def expect(self, method: str) -> Request:
        """Wait for the next message, which is a request of ``method``.

        Raises:
            UnexpectedMessage: it is something else, or nothing came.
        """
        message = await self.receive()
        if not isinstance(message, Request) or message.method != method:
            raise UnexpectedMessage(f"expected request {method}, got {message!r}")
        return message

    async def expect_notification(self, method: str) -> Notification:
        """Wait for the next message, which is a notification of ``method``.

        Raises:
            UnexpectedMessage: it is something else, or nothing came.
        """
        message = await self.receive()
        if not isinstance(message, Notification) or message.method != method:
            raise UnexpectedMessage(f"expected notification {method}, got {message!r}")
        return message

    async def expect_result(self, id_: RequestId) -> Any:
        """Wait for the next message, which answers request ``id_``; return the result.

        Raises:
            UnexpectedMessage: it is something else, or nothing came.
        """
        message = await self.receive()
        if not isinstance(message, Success) or not _same_id(message.id, id_):
            raise UnexpectedMessage(f"expected a result for {id_!r}, got {message!r}")
        return message.result

    async def expect_error(self, id_: RequestId | None, code: int | None = None) -> ErrorObject:
        """Wait for the next message, which fails request ``id_``, with ``code`` if that is given.

        Raises:
            UnexpectedMessage: it is something else, or nothing came.
        """
        message = await self.receive()
        if (
            not isinstance(message, Failure)
            or not _same_id(message.id, id_)
            or code not in (None, message.error.code)
        ):
            raise UnexpectedMessage(f"expected error {code or ''} for {id_!r}, got {message!r}")
        return message.error

    async def expect_nothing(self, *, for_s: float = 1.0) -> None:
        """Wait for ``for_s`` seconds, in which nothing comes.

        Raises:
            UnexpectedMessage: something came, or the end.
        """
        with trio.move_on_after(for_s):
            raise UnexpectedMessage(f"expected nothing, got {await self.receive()!r}")

    async def expect_end(self) -> None:
        """Wait for the end, which is what comes next.

        Raises:
            UnexpectedMessage: something else came, or nothing.
        """
        if (message := await self.receive()) is not None:
            raise UnexpectedMessage(f"expected the end, got {message!r}")

    # ---- what goes ----------------------------------------------------------------------------------

    async def send_raw(self, *frames: bytes) -> None:
        """Send the frames, whatever they hold; over a memory link they arrive as one read."""
        await self._link.send(frames, lambda: None)

    async def request(self, method: str, params: Any = UNSET, *, id_: RequestId) -> None:
        """Send a request; its answer is to be expected with :meth:`expect_result` or :meth:`expect_error`."""
        await self.send_raw(codec.encode_request(method, params, id_))

    async def notify(self, method: str, params: Any = UNSET) -> None:
        """Send a notification."""
        await self.send_raw(codec.encode_notification(method, params))

    async def answer(self, request: Request, result: Any) -> None:
        """Answer a request that was expected."""
        await self.send_raw(codec.encode_success(result, request.id))

    async def fail(self, request: Request, code: int, message: str = "failed", data: Any = UNSET) -> None:
        """Answer a request with an error."""
        await self.send_raw(codec.encode_failure(ErrorObject(code, message, data), request.id))

    async def close(self) -> None:
        """Close both directions."""
        await self._link.aclose()


def _same_id(one: RequestId | None, other: RequestId | None) -> bool:
    # 1 == True and 7 is not "7": ids are the same only if their types are.
    return type(one) is type(other) and one == other
