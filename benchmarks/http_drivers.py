"""Runtimes that know only sockets: prepared bytes out, answers kept as they come and read after the clock.

One epoll loop over blocking sockets drives all connections, so that what is measured is the server; each
driver tells how many answers came, in how many seconds, and what they were.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import select
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import trio

from stepflow_trio.engine import Handlers, LinkConnection, open_connection
from stepflow_trio.protocol.peer import Role
from stepflow_trio.transports.http.links import open_http_link

PATIENCE_S = 10
RUN = "01a1ff81-d1c1-70b0-a7f8-883ea333798e"
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
CLOSES = re.compile(rb"(?i)\r\nconnection: *close")
INSTANCE = re.compile(rb"(?i)\r\nstepflow-instance-id: *(\S+)")
TARGET = re.compile(rb'"endpoint": ?"([^"]+)"')
HELLO = {"runtimeProtocolVersion": 1, "capabilities": {"extensions": ["cancel", "progress", "batch"]}}


class GaveUpError(Exception):
    """The server did not do what it should; the text says what."""


@dataclass(slots=True)
class Turn:
    """What one driver saw in one turn."""

    answered: int = 0
    seconds: float = 0.0
    driver_s: float = 0.0
    """The driver's own CPU time."""
    answers: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])
    """Which request, and the HTTP response to it as it came; of a session, the message."""
    results: list[tuple[int, Any]] = field(default_factory=list[tuple[int, Any]])
    """Which request, and what a call returned."""
    acceptances: list[bytes] = field(default_factory=list[bytes])
    """The responses to the answers that callbacks got, or to the POSTs of a session."""

    @contextlib.contextmanager
    def timed(self) -> Generator[None]:
        began, cpu_began = time.perf_counter(), time.process_time()
        yield
        self.seconds = time.perf_counter() - began
        self.driver_s = time.process_time() - cpu_began


def identifier(number: int) -> str:
    return f"01a1ff81-d1c1-70b0-a7f8-{number:012x}"


def number_of(id_: str) -> int:
    return int(id_[-12:], 16)


def execute_params(component: str, input_: object) -> dict[str, Any]:
    """As the public runtime 0.11.1 sends them."""
    observability = {
        "trace_id": "01a1ff81d1c170b0a7f8884ccc3b7989",
        "span_id": "4dac8a1100000002",
        "run_id": RUN,
        "flow_id": "efd2e68f4fab06cb57851d7f83137b80d4f69fd729ec1d205ef1a4fdcee607b8",
        "step_id": "s",
    }
    return {"component": component, "input": input_, "attempt": 1, "observability": observability}


def message(method: str, params: object, id_: str | None = None) -> bytes:
    content = {"jsonrpc": "2.0", "id": id_, "method": method, "params": params}
    if id_ is None:
        del content["id"]
    return json.dumps(content, separators=(",", ":")).encode()


def execute(component: str, inputs: list[Any]) -> list[bytes]:
    """A request for each input, whose number is in its id."""
    return [
        message("components/execute", execute_params(component, each), identifier(number))
        for number, each in enumerate(inputs)
    ]


def post(
    port: int,
    body: bytes,
    target: bytes = b"/",
    content_type: bytes = b"application/json",
    instance: bytes = b"",
) -> bytes:
    more = b"stepflow-instance-id: %b\r\n" % instance if instance else b""
    return (
        b"POST %b HTTP/1.1\r\ncontent-type: %b\r\naccept: application/json, text/event-stream\r\n"
        b"host: 127.0.0.1:%d\r\n%bcontent-length: %d\r\n\r\n%b"
    ) % (target, content_type, port, more, len(body), body)


def is_whole(response: bytes) -> bool:
    head = response.find(b"\r\n\r\n")
    if head < 0:
        return False
    if length := LENGTH.search(response, 0, head + 2):
        return len(response) >= head + 4 + int(length[1])
    return response.endswith(b"\r\n0\r\n\r\n")


def unchunk(received: bytes) -> tuple[list[bytes], bytes]:
    """The chunks that are there as a whole, and what is left."""
    chunks: list[bytes] = []
    at = 0
    while (end := received.find(b"\r\n", at)) >= 0:
        size = int(received[at:end], 16)
        if len(received) < end + 4 + size:
            break
        chunks.append(received[end + 2 : end + 2 + size])
        at = end + 4 + size
    return chunks, received[at:]


def body_of(response: bytes) -> bytes:
    """The body; of a stream that was cut, what came of it."""
    head, _, rest = response.partition(b"\r\n\r\n")
    return b"".join(unchunk(rest)[0]) if b"transfer-encoding: chunked" in head.lower() else rest


def events(stream: bytes) -> list[bytes]:
    """The data of each whole event."""
    parts = (part.partition(b"data: ") for part in stream.split(b"\n\n")[:-1])
    return [data for _, mark, data in parts if mark]


class Channel:
    """One TCP connection, whose bytes gather in ``received`` until the one who waits for them takes them."""

    def __init__(self, loop: Loop, wake: Callable[[], None]) -> None:
        self.received = b""
        self.ended = False
        self.wake = wake
        self.loop = loop
        self.connect()

    def connect(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self.loop.port), PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received, self.ended = b"", False
        self.loop.channels[self.socket.fileno()] = self
        self.loop.epoll.register(self.socket, select.EPOLLIN)

    def close(self) -> None:
        del self.loop.channels[self.socket.fileno()]
        self.socket.close()

    def take(self) -> bytes:
        """All that came, for a request that is over: the next one may need a new connection."""
        taken, self.received = self.received, b""
        if self.ended or CLOSES.search(taken, 0, taken.find(b"\r\n\r\n") + 2):
            self.close()
            self.connect()
        return taken


class Loop:
    """Wakes whoever waits for bytes; ``busy`` counts those that have not finished."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.epoll = select.epoll()
        self.channels: dict[int, Channel] = {}
        self.busy = 0

    def run(self) -> None:
        while self.busy:
            events = self.epoll.poll(PATIENCE_S)
            if not events:
                raise GaveUpError(f"no answer within {PATIENCE_S} s")
            for fd, _ in events:
                channel = self.channels[fd]
                try:
                    data = channel.socket.recv(1 << 18)
                except ConnectionError:
                    data = b""
                channel.received += data
                channel.ended = not data
                channel.wake()

    def close(self) -> None:
        for channel in list(self.channels.values()):
            channel.close()
        self.epoll.close()


class Posts:
    """One connection: a request, its answer, the next request, until the time is up."""

    def __init__(self, loop: Loop, turn: Turn, requests: list[tuple[int, bytes]]) -> None:
        self.loop, self.turn, self.until = loop, turn, 0.0
        self.requests: Iterator[tuple[int, bytes]] = cycle(requests)
        self.channel = Channel(loop, self.wake)
        loop.busy += 1

    def begin(self) -> None:
        self.number, data = next(self.requests)
        self.channel.socket.sendall(data)

    def go_on(self) -> None:
        if time.perf_counter() < self.until:
            self.begin()
        else:
            self.loop.busy -= 1

    def wake(self) -> None:
        if is_whole(self.channel.received):
            self.turn.answers.append((self.number, self.channel.take()))
            self.go_on()
        elif self.channel.ended:
            raise GaveUpError(f"the connection ended after {self.channel.received!r}")


class Callbacks(Posts):
    """Like Posts, but each answer is a stream, and what it asks is answered on a connection beside it."""

    def __init__(self, loop: Loop, turn: Turn, requests: list[tuple[int, bytes]]) -> None:
        super().__init__(loop, turn, requests)
        self.answering = Channel(loop, self.wake)

    def begin(self) -> None:
        self.asked = self.accepted = False
        super().begin()

    def wake(self) -> None:
        received = self.channel.received
        if not self.asked and (asked := events(body_of(received))):
            self.asked = True
            instance = INSTANCE.search(received)
            answer = answer_to(json.loads(asked[0]))
            self.answering.socket.sendall(
                post(self.loop.port, answer, instance=instance[1] if instance else b"")
            )
        if not self.accepted and is_whole(self.answering.received):
            self.accepted = True
            self.turn.acceptances.append(self.answering.take())
        if self.asked and self.accepted and (self.channel.ended or is_whole(received)):
            self.turn.answers.append((self.number, self.channel.take()))
            self.go_on()
        elif self.channel.ended or self.answering.ended:
            raise GaveUpError(f"a connection ended after {received!r} and {self.answering.received!r}")


def answer_to(callback: dict[str, Any]) -> bytes:
    answer = {"jsonrpc": "2.0", "id": callback["id"], "result": run_status(callback["params"])}
    return json.dumps(answer, separators=(",", ":")).encode()


def run_status(asked: dict[str, Any]) -> dict[str, Any]:
    """A status that tells which run it is of, so that the component's answer does."""
    return {
        "runId": asked["runId"],
        "flowId": "efd2e68f4fab06cb57851d7f83137b80d4f69fd729ec1d205ef1a4fdcee607b8",
        "status": "running",
        "items": {
            "total": 1,
            "completed": number_of(asked["runId"]),
            "running": 1,
            "failed": 0,
            "cancelled": 0,
        },
        "createdAt": "2026-11-21T19:07:39Z",
    }


def drive_posts(
    port: int,
    bodies: list[bytes],
    connections: int,
    seconds: float,
    kind: type[Posts] = Posts,
    target: bytes = b"/",
) -> Turn:
    """So many connections, each with one request in flight."""
    loop, turn = Loop(port), Turn()
    prepared = [(number, post(port, body, target)) for number, body in enumerate(bodies)]
    lanes = [kind(loop, turn, prepared[n::connections]) for n in range(connections)]
    with turn.timed():
        until = time.perf_counter() + seconds
        for lane in lanes:
            lane.until = until
            lane.begin()
        loop.run()
    loop.close()
    turn.answered = len(turn.answers)
    return turn


def drive_session(port: int, bodies: list[bytes], in_flight: int, seconds: float) -> Turn:
    """One session: once a POST is accepted, the next carries all that may be asked by then."""
    turn = Turn()
    stream = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    posting = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    with stream, posting:
        stream.sendall(
            b"GET /runtime/events HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: text/event-stream\r\n\r\n" % port
        )
        session = Session(port, stream, posting, turn)
        session.exchange([message("initialize", HELLO, "initialize")], 1, 0)
        session.exchange([message("initialized", {}) + b"\n" + bodies[0]], 1, 0)
        session.answers.clear()
        with turn.timed():
            session.exchange(bodies, in_flight, seconds)
    turn.answered = len(session.answers)
    turn.answers = [(number_of(json.loads(answer)["id"]), answer) for answer in session.answers]
    return turn


class Session:
    """Both connections of a coalesced session."""

    def __init__(self, port: int, stream: socket.socket, posting: socket.socket, turn: Turn) -> None:
        self.port, self.stream, self.posting, self.turn = port, stream, posting, turn
        self.answers: list[bytes] = []
        self.replies: list[bytes] = []
        self.unread = self.text = b""
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.some(stream)
        self.unread = head.partition(b"\r\n\r\n")[2]
        while not self.take_events():
            self.unread += self.some(stream)
        endpoint = TARGET.search(self.answers.pop())
        if b" 200 " not in head or endpoint is None:
            raise GaveUpError(f"no session: {head!r}")
        self.target = endpoint[1]
        posting.setblocking(False)

    def some(self, of: socket.socket) -> bytes:
        return of.recv(1 << 18) or self.give_up("the server closed the connection")

    def give_up(self, why: str) -> bytes:
        raise GaveUpError(why)

    def take_events(self) -> int:
        chunks, self.unread = unchunk(self.unread)
        text = self.text + b"".join(chunks)
        self.text = text[text.rfind(b"\n\n") + 2 :] if b"\n\n" in text else text
        answered = len(self.answers)
        for said in events(text):
            if b'"runs/get"' in said:
                self.replies.append(answer_to(json.loads(said)))
            else:
                self.answers.append(said)
        return len(self.answers) - answered

    def exchange(self, lines: list[bytes], in_flight: int, seconds: float) -> None:
        """Ask for so long, or once each where ``seconds`` is 0; return when all is answered."""
        until = time.perf_counter() + seconds if seconds else 0.0
        asked = answered = 0
        unsent = memoryview(b"")
        accepted, acceptance = True, b""
        poll = select.epoll()
        poll.register(self.stream, select.EPOLLIN)
        poll.register(self.posting, select.EPOLLIN)
        while True:
            goes_on = time.perf_counter() < until if seconds else asked < len(lines)
            at = asked % len(lines)
            more = lines[at : at + in_flight - (asked - answered)] if goes_on else []
            if accepted and (self.replies or more):
                batch = b"\n".join(self.replies + more)
                unsent = memoryview(post(self.port, batch, self.target, b"application/x-ndjson"))
                accepted, acceptance = False, b""
                asked += len(more)
                self.replies.clear()
            elif not goes_on and accepted and asked == answered:
                return
            if unsent:
                with contextlib.suppress(BlockingIOError):
                    unsent = unsent[self.posting.send(unsent) :]
                poll.modify(self.posting, select.EPOLLIN | (select.EPOLLOUT if unsent else 0))
            ready = poll.poll(PATIENCE_S)
            if not ready:
                self.give_up(f"no answer within {PATIENCE_S} s")
            for fd, ready_for in ready:
                if fd == self.stream.fileno():
                    self.unread += self.some(self.stream)
                    answered += self.take_events()
                elif ready_for & ~select.EPOLLOUT:
                    acceptance += self.some(self.posting)
                    accepted = is_whole(acceptance)
                    if accepted:
                        self.turn.acceptances.append(acceptance)


def drive_link(port: int, component: str, inputs: list[Any], in_flight: int, seconds: float) -> Turn:
    """The library's own other end: so many tasks that call over one session, as its runtime does."""
    turn, numbers = Turn(), cycle(range(len(inputs)))

    async def call_until(connection: LinkConnection, until: float) -> None:
        while time.perf_counter() < until:
            number = next(numbers)
            params = execute_params(component, inputs[number])
            turn.results.append((number, await connection.call("components/execute", params)))

    async def main() -> None:
        handlers = Handlers()
        handlers.on_raw_request("runs/get", lambda params, _: run_status(params))
        url, capabilities = f"http://127.0.0.1:{port}", HELLO["capabilities"]
        async with (
            open_http_link(url, capabilities=capabilities, sessions="always") as link,
            open_connection(link, handlers, role=Role.RUNTIME) as connection,
        ):
            await connection.call("initialize", HELLO)
            await connection.notify("initialized", {})
            with turn.timed():
                async with trio.open_nursery() as nursery:
                    for _ in range(in_flight):
                        nursery.start_soon(call_until, connection, time.perf_counter() + seconds)

    trio.run(main)
    turn.answered = len(turn.results)
    return turn


def drive_wrk(port: int, body: bytes, expected: str, connections: int, seconds: float) -> Turn:
    """Have wrk send one request and check the answers."""
    script = Path(__file__).parent / "workers" / "execute.lua"
    duration = max(1, round(seconds))
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{duration}s",
        "-s",
        str(script),
        f"http://127.0.0.1:{port}/",
    ]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [*command, "--", body, expected], capture_output=True, check=True, timeout=duration + 30
    )
    counted = re.search(rb"answered (\d+) wrong (\d+) microseconds (\d+)", ran.stdout)
    if counted is None or int(counted[2]):
        raise GaveUpError(f"wrk: {ran.stdout.decode()[-400:]}")
    uses = resource.getrusage(resource.RUSAGE_CHILDREN)
    driver_s = uses.ru_utime + uses.ru_stime - used.ru_utime - used.ru_stime
    return Turn(answered=int(counted[1]), seconds=int(counted[3]) / 1e6, driver_s=driver_s)
