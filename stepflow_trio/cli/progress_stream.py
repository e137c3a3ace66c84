"""What happens in a run on a server, from its event stream: the events that a run here would have."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec
import trio

from stepflow_trio.errors import ConnectionLost
from stepflow_trio.flows.results import FlowResult
from stepflow_trio.protocol import codec
from stepflow_trio.protocol.sse import EventParser, ServerEvent
from stepflow_trio.runtime.events import (
    ItemEnded,
    Observer,
    RunEnded,
    RunEvent,
    RunStarted,
    StepEnded,
    StepProgressed,
    StepRetrying,
    StepStarted,
)
from stepflow_trio.transports.http.client import HttpClient, HttpResponse

SILENCE_S = 40.0
"""A stream on which nothing comes for so long is given up; ours has a comment every 15 s."""

MAX_VAIN = 3
"""Streams of one run that end, one after the other, before anything has come; then no more are opened."""

_EVENTS: dict[str, type[RunEvent | StepProgressed]] = {
    "stepStarted": StepStarted,
    "stepProgressed": StepProgressed,
    "stepRetrying": StepRetrying,
    "stepEnded": StepEnded,
    "itemEnded": ItemEnded,
    "runEnded": RunEnded,
}
"""By the name of their kind. Of its start a run's observers are told when it is submitted."""

_FIELDS = {"runId": "run_id", "itemIndex": "item_index", "stepId": "step_id", "delaySecs": "delay_s"}


class RunStream:
    """Tells ``observe`` what happens in a run, as far as its server says so: each thing once, in order.

    Args:
        client: of the server.
        target: path of the run's event stream.
        start: that the run has started; told at once.
        observe: takes the events in.
    """

    def __init__(self, client: HttpClient, target: str, *, start: RunStarted, observe: Observer) -> None:
        self._client = client
        self._target = target
        self._start = start
        self._observe = observe
        self._last_seq = 0
        self._vain = 0
        self._ended_items: set[int] = set()
        self._has_run_ended = False
        self.is_of_use = True
        """Whether it may tell more: false where the server has no such stream, or the run has ended."""
        observe(start)

    async def follow(self) -> None:
        """Tell what happens until the run has ended or the stream breaks off; then it may be called again.

        A stream that brings nothing for 40 s is given up. Whatever else is wrong with one ends it, too: the
        run itself is not affected, and whoever asks the server for that learns what is wrong with the server.
        """
        headers = [("Accept", "text/event-stream")]
        if self._last_seq:
            headers.append(("Last-Event-ID", str(self._last_seq)))
        self._vain += 1
        patience = trio.CancelScope(deadline=trio.current_time() + SILENCE_S)
        try:
            with patience:
                async with self._client.request("GET", self._target, headers=headers) as response:
                    if (
                        response.status == HTTPStatus.OK
                        and response.headers.media_type == b"text/event-stream"
                    ):
                        await self._read(response, patience)
                    elif response.status != HTTPStatus.NO_CONTENT:
                        self.is_of_use = False
        except ConnectionLost:
            pass
        if self._vain >= MAX_VAIN or (patience.cancelled_caught and self._vain):
            self.is_of_use = False

    def finish(self, results: Sequence[FlowResult], *, status: str) -> None:
        """Tell the ends that no stream has told."""
        if self._has_run_ended:
            return
        run_id, now = self._start.run_id, datetime.now(UTC)
        for index, result in enumerate(results):
            if index not in self._ended_items:
                self._observe(ItemEnded(run_id=run_id, item_index=index, at=now, result=result))
        self._observe(RunEnded(run_id=run_id, at=now, status=status))

    async def _read(self, response: HttpResponse, patience: trio.CancelScope) -> None:
        parser = EventParser()
        while self.is_of_use and (received := await response.receive_some()):
            self._vain = 0
            patience.deadline = trio.current_time() + SILENCE_S
            for event in parser.feed(received):
                try:
                    self.is_of_use = isinstance(event, ServerEvent) and self._take(event)
                except (ValueError, msgspec.ValidationError):
                    self.is_of_use = False
                if not self.is_of_use:
                    break
            await trio.lowlevel.checkpoint()

    def _take(self, said: ServerEvent) -> bool:
        """Tell an event of the stream; whether more may follow.

        Raises ValueError or `msgspec.ValidationError`: it is none of this run.
        """
        expected = _EVENTS.get(said.type)
        if expected is None:
            return True
        data = msgspec.convert(codec.decode_json(said.data), dict[str, Any])
        fields = {_FIELDS.get(name, name): value for name, value in data.items()}
        if expected is StepProgressed:
            fields.setdefault("message", None)
        elif not isinstance(seq := fields.get("seq"), int) or seq < 1:
            raise ValueError("an event on record has a number")
        elif seq <= self._last_seq:
            return True
        else:
            self._last_seq = seq
        if expected is StepEnded:
            is_failure = fields.get("status") == "failed"
            fields["result"] = (
                {"outcome": "failed", "error": fields.get("error")}
                if is_failure
                else {"outcome": "success", "result": None}
            )
        event = msgspec.convert(fields, expected)
        self._require_of_run(event)
        self._observe(event)
        if isinstance(event, ItemEnded):
            self._ended_items.add(event.item_index)
        self._has_run_ended = isinstance(event, RunEnded)
        return not self._has_run_ended

    def _require_of_run(self, event: RunEvent | StepProgressed) -> None:
        if event.run_id != self._start.run_id:
            raise ValueError("it is another run's")
        if not isinstance(event, RunStarted | RunEnded):
            if not 0 <= event.item_index < self._start.total_items:
                raise ValueError("the run has no such item")
            if isinstance(event, StepProgressed) and not 0 <= event.fraction <= 1:
                raise ValueError("a step's progress is a fraction")
