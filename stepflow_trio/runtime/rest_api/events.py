"""The events of a run as they happen, and from any of them on: ``text/event-stream``."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import trio

from stepflow_trio.errors import RunNotFound
from stepflow_trio.flows.results import Failed
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.sse import COMMENT_PING, write_event
from stepflow_trio.runtime.events import StepProgressed
from stepflow_trio.runtime.rest_api.errors import ApiError
from stepflow_trio.runtime.rest_api.payloads import EventsQuery, RunEventInfo
from stepflow_trio.runtime.rest_api.requests import Answer, Request
from stepflow_trio.runtime.run_history import RunHistory
from stepflow_trio.runtime.run_log import RecordedEvent
from stepflow_trio.runtime.run_watch import RunWatch
from stepflow_trio.transports.http.asgi import Send

HEARTBEAT_S = 15.0
"""A stream on which nothing happened for so long gets a comment, so that nobody takes it for dead."""

WRITE_BYTES = 64 * 2**10
"""Events are sent together up to this size, so that a slow reader holds little."""

_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
_MAX_DIGITS = 18


class EventStream:
    """A stream of what happens in a run. It ends when the run has ended, or the server is about to.

    What is on record has an id: whoever comes back with the last one that he has seen gets each further event
    once. Progress has none, and is not repeated. A reader that is slow holds one page.
    """

    def __init__(self, run_id: str, watch: RunWatch, ending: _Ending) -> None:
        self._run_id = run_id
        self._watch = watch
        self._ending = ending

    async def send(self, send: Send, *, is_head: bool = False) -> None:
        """Send it, to its end; cancelled when the client is gone."""
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        if not is_head:
            # At once: some hosts hold an answer's head back until there is something of its body.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            await self._send_events(send)
        await send({"type": "http.response.body", "body": b""})

    async def _send_events(self, send: Send) -> None:
        while not self._ending.has_begun:
            page: Sequence[RecordedEvent | StepProgressed] | None = None
            with trio.move_on_after(HEARTBEAT_S) as wait, self._ending.ends(wait):
                try:
                    page = await self._watch.next_page()
                except RunNotFound:  # deleted meanwhile, and so over
                    return
            if page is None:
                await send({"type": "http.response.body", "body": COMMENT_PING, "more_body": True})
                continue
            if not page:
                return
            written = bytearray()
            for number, event in enumerate(page, start=1):
                written += self._written(event)
                if len(written) >= WRITE_BYTES or number == len(page):
                    await send({"type": "http.response.body", "body": bytes(written), "more_body": True})
                    written.clear()

    def _written(self, event: RecordedEvent | StepProgressed) -> bytes:
        if isinstance(event, StepProgressed):
            return write_event(codec.encode_json(_progress_info(event)), "stepProgressed")
        data = codec.encode_json(_info(self._run_id, event))
        return b"id: %d\n%b" % (event.seq, write_event(data, event.kind))


class _Ending:
    """Whether streams are to end, and which of them wait meanwhile."""

    def __init__(self) -> None:
        self.has_begun = False
        self._waits: set[trio.CancelScope] = set()

    def begin(self) -> None:
        self.has_begun = True
        for wait in self._waits:
            wait.cancel(reason="the server is about to stop")

    @contextmanager
    def ends(self, wait: trio.CancelScope) -> Generator[None]:
        self._waits.add(wait)
        try:
            yield
        finally:
            self._waits.discard(wait)


class EventStreams:
    """Makes the streams of a runtime's runs."""

    def __init__(self, history: RunHistory) -> None:
        self._history = history
        self._ending = _Ending()

    def end(self) -> None:
        """End those that are open, at once and in order, and from now on those that are opened."""
        self._ending.begin()

    async def open(self, request: Request) -> Answer | EventStream:
        """A run's stream; 204 where the run is over and nothing more comes: then browsers stay away."""
        run_id = request.run_id()
        after = request.query(EventsQuery).after
        last_id = request.headers.get(b"last-event-id", b"").strip()
        if last_id:
            if not last_id.isdigit() or len(last_id) > _MAX_DIGITS:
                raise ApiError(400, "Last-Event-ID is the id of an event of this stream, a number")
            after = int(last_id)
        record = await self._history.get(run_id)
        if record.status != "running" and after >= record.last_seq:
            return Answer(204)
        return EventStream(run_id, self._history.watch(run_id, after=after), self._ending)


def _progress_info(event: StepProgressed) -> RunEventInfo:
    return RunEventInfo(
        type="stepProgressed",
        at=event.at,
        run_id=event.run_id,
        item_index=event.item_index,
        step_id=event.step_id,
        fraction=event.fraction,
        message=event.message,
    )


def _info(run_id: str, event: RecordedEvent) -> RunEventInfo:
    error = event.result.error if isinstance(event.result, Failed) else None
    is_item = event.kind == "itemEnded"
    return RunEventInfo(
        seq=event.seq,
        type=event.kind,
        at=event.at,
        run_id=run_id,
        item_index=event.item_index,
        step_id=event.step_id,
        component=event.component,
        attempt=event.attempt,
        delay_secs=event.delay_s,
        status=event.status,  # pyright: ignore[reportArgumentType]: stores keep no other
        error=None if is_item else error,
        result=event.result if is_item else None,
    )
