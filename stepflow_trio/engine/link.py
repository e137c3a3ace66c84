"""What the engine asks of a transport."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from stepflow_trio.protocol.dialects import TransportKind
from stepflow_trio.protocol.peer import Arrival


class Link(Protocol):
    """Carries whole frames, both ways, in order.

    The engine has one task that receives and one that sends; neither method is called twice at a time.
    ``tests/transports/test_link_contract.py`` holds every transport to what is said here.
    """

    @property
    def kind(self) -> TransportKind:
        """Which transport of the specification this is; the dialect depends on it."""
        ...

    async def receive(self) -> Sequence[Arrival]:
        """Wait for frames; return all that have come, at least one. An empty list is the end.

        Cancelling loses no frame.

        Raises:
            OSError, trio.BrokenResourceError: the stream failed.
        """
        ...

    async def send(self, frames: Sequence[bytes], progressed: Callable[[], object]) -> None:
        """Send the frames, as one write where possible; call ``progressed`` as the peer takes the bytes.

        It is a checkpoint only where it has to wait for the peer.

        Cancelled in the middle it leaves a torn frame: the caller must then give the link up.

        Raises:
            OSError, trio.BrokenResourceError: the peer takes nothing any more.
        """
        ...

    async def aclose(self) -> None:
        """Close both ways, also when cancelled: the descriptors are free when it returns or raises."""
        ...


__all__ = ["Arrival", "CancellingLink", "EagerLink", "Link"]


@runtime_checkable
class EagerLink(Link, Protocol):
    """A link that can also send without waiting.

    The reader then sends what it has answered itself before it waits for more, and a caller what it calls
    where no other call waits: a lone request is sent, and answered, one turn of the scheduler earlier.
    """

    def send_nowait(self, frames: Sequence[bytes]) -> bool:
        """Send the frames as far as that needs no waiting. Never raises.

        Called only where nothing waits to be sent: not during a :meth:`send`, and after it has returned
        False not before a :meth:`send` has returned.

        Returns:
            Whether all of it is gone. If not, the rest is kept and goes first with the next :meth:`send`,
            which may be called without frames for that, and which says so if the peer takes nothing any more.
        """
        ...


@runtime_checkable
class CancellingLink(Link, Protocol):
    """A link that brings a cancellation about by itself, whether or not the peer knows ``$/cancelRequest``.

    It is given that notification like any other frame.
    """

    @property
    def cancels_by_closing(self) -> bool:
        """Always true: it closes what carries the request."""
        ...
