"""The h11 host under cancellation: the server, or a task of the application, is cancelled at every step.

``STEPFLOW_SWEEP_SCALE`` multiplies the number of orders of the scheduler.
"""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
import trio
from http_stage import MemoryListener, part, read_body, start
from raw_http import CutShort, RawClient, chunked, request

from stepflow_trio.testing import Cancellable, Scenario, cancel_everywhere
from stepflow_trio.transports.http.asgi import Receive, Scope, Send
from stepflow_trio.transports.http.h11_host import serve_h11
from stepflow_trio.transports.http.limits import HttpServerLimits

SCALE = int(os.environ.get("STEPFLOW_SWEEP_SCALE", "1"))


class Stage:
    """An application that streams what it is sent, counts itself, and watches for the client's end."""

    def __init__(self) -> None:
        self.listener = MemoryListener()
        self.running = 0
        self.cancellable: Cancellable | None = None
        self.cancelled_answers = 0

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.running += 1
        try:
            async with trio.open_nursery() as nursery:
                if scope["path"] == "/cancelled" and self.cancellable is not None:
                    with self.cancellable:
                        await self._answer(receive, send, nursery)
                else:
                    await self._answer(receive, send, nursery)
                nursery.cancel_scope.cancel()
        finally:
            self.running -= 1

    async def _answer(self, receive: Receive, send: Send, nursery: trio.Nursery) -> None:
        body = await read_body(receive)
        nursery.start_soon(receive)
        await start(send)
        for byte in body:
            await part(send, bytes([byte]), more=True)
        await part(send, b"")

    async def ask(self, *messages: bytes, lockstep: bool = False) -> list[bytes]:
        """The answers to these, as far as they came whole."""
        bodies: list[bytes] = []
        with suppress(trio.BrokenResourceError):  # as soon as the listener is closed
            client = RawClient(self.listener.connect_lockstep() if lockstep else self.listener.connect())
            with suppress(CutShort):
                for message in messages:
                    await client.send_while_possible(message)
                    bodies.append((await client.response()).body)
            await client.aclose()
        return bodies


MESSAGES = (
    request("POST", body=b"abc"),
    request("POST", "/", "Transfer-Encoding: chunked") + chunked(b"d", b"ef"),
    request("POST", "/", "Connection: close", body=b"gh"),
)


async def serving(cancellable: Cancellable, *, lockstep: bool, stops: bool) -> None:
    stage = Stage()
    answers: list[list[bytes]] = []

    async def ask() -> None:
        answers.append(await stage.ask(*MESSAGES, lockstep=lockstep))
        asked.set()

    async with trio.open_nursery() as clients:
        with cancellable:
            async with trio.open_nursery() as nursery:
                stop, asked = trio.Event(), trio.Event()
                clients.start_soon(ask)
                nursery.start_soon(
                    lambda: serve_h11(stage.app, [stage.listener], limits=HttpServerLimits(), stop=stop)
                )
                if not stops:
                    await asked.wait()
                stop.set()
        assert stage.running == 0
    for bodies in answers:
        assert bodies == [b"abc", b"def", b"gh"][: len(bodies)], "each answer is whole, or there is none"


async def a_server(cancellable: Cancellable) -> None:
    await serving(cancellable, lockstep=False, stops=False)


async def a_server_with_slow_clients(cancellable: Cancellable) -> None:
    await serving(cancellable, lockstep=True, stops=False)


async def a_server_that_stops(cancellable: Cancellable) -> None:
    await serving(cancellable, lockstep=True, stops=True)


async def an_answer(cancellable: Cancellable) -> None:
    stage = Stage()
    stage.cancellable = cancellable
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        nursery.start_soon(
            lambda: serve_h11(stage.app, [stage.listener], limits=HttpServerLimits(), stop=stop)
        )
        message = request("POST", "/cancelled", body=b"abc")
        bodies = await stage.ask(message, lockstep=True)
        assert not bodies or bodies == [b"abc"] or b"internal error" in bodies[0]
        stage.cancellable = None
        assert await stage.ask(*MESSAGES) == [b"abc", b"def", b"gh"]
        stop.set()


@pytest.mark.parametrize("seed", range(3 * SCALE))
@pytest.mark.parametrize("scenario", [a_server, a_server_with_slow_clients, a_server_that_stops])
def test_a_server_can_be_cancelled_anywhere(scenario: Scenario, seed: int) -> None:
    report = cancel_everywhere(scenario, seed=seed)
    assert report.caught > 0


@pytest.mark.parametrize("seed", range(3 * SCALE))
def test_an_answer_can_be_cancelled_anywhere(seed: int) -> None:
    report = cancel_everywhere(an_answer, seed=seed)
    assert report.caught > 10
