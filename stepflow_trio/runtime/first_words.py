"""The first lines of a worker over stdio: they tell whether it is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from stepflow_trio.engine.link import Arrival, EagerLink
from stepflow_trio.protocol.dialects import TransportKind
from stepflow_trio.transports.port_process import port_in


class FirstWords:
    """A link to a worker that was started, which fails where the worker says its port instead of a message.

    Such a worker serves HTTP, and would be silent for ever. After the first message nothing is looked at.
    """

    def __init__(self, link: EagerLink) -> None:
        self._link = link
        self.serves_http = False
        """Whether it has failed for that."""

    @property
    def kind(self) -> TransportKind:
        """That of the link."""
        return self._link.kind

    async def receive(self) -> Sequence[Arrival]:
        """See :class:`~stepflow_trio.engine.link.Link`."""
        arrived = await self._link.receive()
        for arrival in arrived:
            if isinstance(arrival, bytes):
                if b'"jsonrpc"' in arrival:
                    self.receive = self._link.receive
                    break
                if port_in(arrival.decode("utf-8", "replace")) is not None:
                    self.serves_http = True
                    raise trio.BrokenResourceError("the worker says its port")
        return arrived

    async def send(self, frames: Sequence[bytes], progressed: Callable[[], object]) -> None:
        """See :class:`~stepflow_trio.engine.link.Link`."""
        await self._link.send(frames, progressed)

    def send_nowait(self, frames: Sequence[bytes]) -> bool:
        """See :class:`~stepflow_trio.engine.link.EagerLink`."""
        return self._link.send_nowait(frames)

    async def aclose(self) -> None:
        """See :class:`~stepflow_trio.engine.link.Link`."""
        await self._link.aclose()
