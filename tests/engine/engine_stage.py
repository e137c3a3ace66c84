"""The stages on which the engine's tests play: two connections face to face, or one facing a script."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import trio
from msgspec import UNSET

from stepflow_trio.engine import Connection, Handlers, Limits, Link, RequestContext, open_connection
from stepflow_trio.protocol.lines import FrameRejected
from stepflow_trio.protocol.peer import Role
from stepflow_trio.testing import Faults, FaultyLink, ScriptedPeer, memory_link_pair
from stepflow_trio.transports.memory import MemoryLink

Handler = Callable[[Any, RequestContext], Any]


def offering(handlers: dict[str, Handler] | None = None, /, **more: Handler) -> Handlers:
    """Handlers for the methods of these names, and ``echo``."""
    offered = Handlers()
    for name, handler in {"echo": _echo, **(handlers or {}), **more}.items():
        offered.on_raw_request(name, handler)
    return offered


def _echo(params: Any, _context: RequestContext) -> Any:
    return None if params is UNSET else params


@asynccontextmanager
async def connected(
    far: Handlers | None = None,
    near: Handlers | None = None,
    *,
    links: tuple[Link, Link] | None = None,
    far_limits: Limits | None = None,
    near_limits: Limits | None = None,
) -> AsyncGenerator[tuple[Connection, Connection]]:
    """Two plain connections, each the other's peer: ``(near, far)``. The near one ends first."""
    near_link, far_link = links or memory_link_pair()
    async with (
        open_connection(far_link, far or offering(), limits=far_limits) as far_connection,
        open_connection(near_link, near or offering(), limits=near_limits) as near_connection,
    ):
        yield near_connection, far_connection


@asynccontextmanager
async def scripted(
    handlers: Handlers | None = None,
    *,
    role: Role = Role.PLAIN,
    limits: Limits | None = None,
    receiving: Faults | None = None,
    sending: Faults | None = None,
    capacity: int = 1024,
) -> AsyncGenerator[tuple[Connection, ScriptedPeer]]:
    """A connection, and a script as its peer. A runtime's or worker's connection is initialized already."""
    link, far_link = memory_link_pair(capacity=capacity)
    faulty = FaultyLink(link, receiving=receiving, sending=sending)
    peer = ScriptedPeer(far_link)
    offered = handlers or offering()
    if role is Role.WORKER:
        offered.on_raw_request("initialize", lambda _params, _context: {})
    async with open_connection(
        link if receiving is sending is None else faulty, offered, role=role, limits=limits
    ) as connection:
        if role is Role.RUNTIME:
            await connection.notify("initialized")
            await peer.expect_notification("initialized")
        elif role is Role.WORKER:
            await peer.request("initialize", id_="init")
            await peer.expect_result("init")
            await peer.notify("initialized")
            await trio.testing.wait_all_tasks_blocked()
        yield connection, peer


class EagerMemoryLink:
    """A memory link that can also send without waiting, as far as the far end has room."""

    def __init__(self, link: MemoryLink) -> None:
        self._link = link
        self._unsent: list[bytes] = []

    @property
    def kind(self) -> Any:
        return self._link.kind

    async def receive(self) -> list[bytes | FrameRejected]:
        return await self._link.receive()

    def send_nowait(self, frames: Sequence[bytes]) -> bool:
        self._unsent += frames
        pipe = self._link._outgoing
        while self._unsent and len(pipe.frames) < pipe.capacity and not pipe.reader_closed:
            pipe.frames.append(self._unsent.pop(0))
            pipe.readable.unpark()
        return not self._unsent

    async def send(self, frames: Sequence[bytes], progressed: Callable[[], object]) -> None:
        unsent, self._unsent = self._unsent, []
        await self._link.send([*unsent, *frames], progressed)

    async def aclose(self) -> None:
        await self._link.aclose()


def eager_link_pair(*, capacity: int = 1024) -> tuple[Link, Link]:
    """As ``memory_link_pair``, of links that the engine may send to from its reader."""
    near, far = (EagerMemoryLink(cast("MemoryLink", link)) for link in memory_link_pair(capacity=capacity))
    return near, far


class Recorder:
    """Handlers that say when they begin, end and are cancelled."""

    def __init__(self) -> None:
        self.began: list[Any] = []
        self.ended: list[Any] = []
        self.cancelled: list[Any] = []
        self.release = trio.Event()

    async def wait(self, params: Any, context: RequestContext) -> Any:
        """Waits for ``release``; returns the params."""
        self.began.append(context.id)
        try:
            await self.release.wait()
        except trio.Cancelled:
            self.cancelled.append(context.id)
            raise
        finally:
            self.ended.append(context.id)
        return None if params is UNSET else params

    @property
    def running(self) -> int:
        return len(self.began) - len(self.ended)
