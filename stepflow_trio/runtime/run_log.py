"""What happened in one run, in memory: its events and how its items stand, in columns of numbers.

A run of many items has many times as many events, most of which differ only in their item and their time. So
what they have in common is kept once, and 16 bytes for each event; for an item 24, besides its result.
"""

from __future__ import annotations

import contextlib
import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias, overload

from msgspec import Struct

from stepflow_trio.flows.results import Failed, FlowResult, Success
from stepflow_trio.runtime.events import (
    ItemEnded,
    RunEvent,
    RunStarted,
    StepEnded,
    StepRetrying,
    StepStarted,
)

_MICROSECOND = timedelta(microseconds=1)

_MAX_PACKED = 256
"""Events and items. What is packed is unpacked for every look at it."""

EventKind: TypeAlias = Literal[
    "runStarted", "stepStarted", "stepRetrying", "stepEnded", "itemEnded", "runEnded"
]


class RecordedEvent(Struct, frozen=True, kw_only=True, gc=False):
    """An event of a run as it is on record; what does not apply to its kind is None."""

    seq: int
    """Its number in its run: 1, 2, 3, …"""
    at: datetime
    kind: EventKind
    item_index: int | None = None
    step_id: str | None = None
    component: str | None = None
    attempt: int | None = None
    delay_s: float | None = None
    """Of a ``stepRetrying``: how long until the next attempt."""
    status: str | None = None
    """Of what ended: completed or failed, a run's also cancelled."""
    result: FlowResult | None = None
    """What ended came to; of a ``stepRetrying`` the failure. A store may keep the success of a step only as
    long as its item is at work."""


@dataclass(slots=True)
class ItemRecord:
    """How one item of a run stands."""

    result: FlowResult | None = None
    completed_at: datetime | None = None
    completion_order: int = 0


class _Shape(Struct, frozen=True, gc=False):
    """What events have in common that differ in item, time and result only."""

    kind: EventKind
    step_id: str | None
    component: str | None
    attempt: int | None
    status: str | None


class EventShapes:
    """The shapes of events by their numbers; shared by the runs of one flow."""

    __slots__ = ("__weakref__", "_number_of", "_shapes")

    def __init__(self) -> None:
        self._shapes: list[_Shape] = []
        self._number_of: dict[tuple[EventKind, str | None, str | None, int | None, str | None], int] = {}

    def number(
        self,
        kind: EventKind,
        step_id: str | None = None,
        component: str | None = None,
        attempt: int | None = None,
        status: str | None = None,
    ) -> int:
        """The number of a shape."""
        key = (kind, step_id, component, attempt, status)
        known = self._number_of.get(key)
        if known is None:
            known = self._number_of[key] = len(self._shapes)
            self._shapes.append(_Shape(*key))
        return known

    def __getitem__(self, number: int) -> _Shape:
        return self._shapes[number]


class PackedRunLog(Struct, frozen=True, gc=False):
    """A log of a run that is over. The garbage collector has nothing to look at in it."""

    began_at: datetime
    shapes: EventShapes
    at_us: bytes
    item: bytes
    shape: bytes
    first: bytes
    end: bytes
    results: tuple[FlowResult | None, ...]
    at_work: dict[int, dict[int, Success]] | None
    failures: dict[int, tuple[Failed, float | None]] | None

    @property
    def item_count(self) -> int:
        """How many items the run has."""
        return len(self.results)

    def unpacked(self) -> RunLog:
        """The log again."""
        log = RunLog(self.began_at, self.shapes, 0)
        log.unpack(self)
        return log


class RunLog:
    """The events of a run, and its items as they follow from them.

    Of an item that has ended there remain its result and its events; of its steps' results only failures.
    """

    __slots__ = (
        "_at_us",
        "_at_work",
        "_began_at",
        "_end",
        "_failures",
        "_first",
        "_item",
        "_results",
        "_shape",
        "_shapes",
    )

    def __init__(self, began_at: datetime, shapes: EventShapes, item_count: int) -> None:
        self._began_at = began_at
        self._shapes = shapes
        # Of each event: when it was, its item (−1: it has none), and which shape it has.
        self._at_us = array("q")
        self._item = array("i")
        self._shape = array("I")
        # Of each item: what it came to; the position of its first event, 0: there is none, for that is the
        # run's start; and the position behind its last one, 0: it has not ended.
        self._results: list[FlowResult | None] = [None] * item_count
        self._first = array("q", bytes(8 * item_count))
        self._end = array("q", bytes(8 * item_count))
        self._at_work: dict[int, dict[int, Success]] = {}
        """Of each item that is at work, the steps that succeeded, by their events' positions."""
        self._failures: dict[int, tuple[Failed, float | None]] = {}
        """Of steps, by their events' positions; with the seconds until the next attempt, if there is one."""

    def packed(self) -> PackedRunLog | RunLog:
        """The log in few objects, where it is small: so that many runs that are over cost little each."""
        if len(self._at_us) + len(self._results) > _MAX_PACKED:
            return self
        return PackedRunLog(
            self._began_at,
            self._shapes,
            self._at_us.tobytes(),
            self._item.tobytes(),
            self._shape.tobytes(),
            self._first.tobytes(),
            self._end.tobytes(),
            tuple(self._results),
            self._at_work or None,
            self._failures or None,
        )

    def unpacked(self) -> RunLog:
        """Itself."""
        return self

    def unpack(self, packed: PackedRunLog) -> None:
        """Become what another one was."""
        self._at_us.frombytes(packed.at_us)
        self._item.frombytes(packed.item)
        self._shape.frombytes(packed.shape)
        self._first.frombytes(packed.first)
        self._end.frombytes(packed.end)
        self._results.extend(packed.results)
        self._at_work = packed.at_work or {}
        self._failures = packed.failures or {}

    def append(self, event: RunEvent) -> int:
        """Take an event in; its number."""
        position, number_of = len(self._at_us), self._shapes.number
        # The most frequent ones first: this is done for each.
        if isinstance(event, StepStarted):
            index = event.item_index
            shape = number_of("stepStarted", event.step_id, event.component, event.attempt, None)
        elif isinstance(event, StepEnded):
            index, result = event.item_index, event.result
            if isinstance(result, Failed):
                self._failures[position] = (result, None)
            elif (succeeded := self._at_work.get(index)) is None:
                self._at_work[index] = {position: result}
            else:
                succeeded[position] = result
            shape = number_of("stepEnded", event.step_id, None, None, status_of(result))
        elif isinstance(event, ItemEnded):
            index, result = event.item_index, event.result
            self._results[index] = result
            self._end[index] = position + 1
            self._at_work.pop(index, None)
            shape = number_of("itemEnded", None, None, None, status_of(result))
        elif isinstance(event, StepRetrying):
            index = event.item_index
            self._failures[position] = (Failed(event.error), event.delay_s)
            shape = number_of("stepRetrying", event.step_id, None, event.attempt, None)
        elif isinstance(event, RunStarted):
            index, shape = -1, number_of("runStarted")
        else:
            index, shape = -1, number_of("runEnded", None, None, None, event.status)
        if index >= 0 and not self._first[index]:
            self._first[index] = position
        self._at_us.append((event.at - self._began_at) // _MICROSECOND)
        self._item.append(index)
        self._shape.append(shape)
        return position + 1

    def read(self, after: int, limit: int | None, item_index: int | None) -> Iterator[RecordedEvent]:
        """The events so far behind the one of number ``after``, in order; see :meth:`RunStore.events`."""
        # Events are numbered from 1 without gaps: the one of number n is at position n − 1.
        count = len(self._at_us)
        if item_index is None:
            end = count if limit is None else min(count, after + limit)
            return map(self._event, range(after, end))
        return map(self._event, itertools.islice(self._positions_of(item_index, after, count), limit))

    def _positions_of(self, index: int, at: int, end: int) -> Iterator[int]:
        if 0 <= index < len(self._results) and self._first[index]:
            at = max(at, self._first[index])
            with contextlib.suppress(ValueError):
                while True:
                    at = self._item.index(index, at, self._end[index] or end)
                    yield at
                    at += 1

    def _event(self, position: int) -> RecordedEvent:
        shape, index = self._shapes[self._shape[position]], self._item[position]
        result: FlowResult | None
        result, delay_s = self._failures.get(position, (None, None))
        if shape.kind == "itemEnded":
            result = self._results[index]
        elif result is None and index in self._at_work:
            result = self._at_work[index].get(position)
        return RecordedEvent(
            seq=position + 1,
            at=self._time(position),
            kind=shape.kind,
            item_index=index if index >= 0 else None,
            step_id=shape.step_id,
            component=shape.component,
            attempt=shape.attempt,
            delay_s=delay_s,
            status=shape.status,
            result=result,
        )

    def _time(self, position: int) -> datetime:
        return self._began_at + self._at_us[position] * _MICROSECOND

    def item(self, index: int) -> ItemRecord:
        """How an item stands."""
        result, end = self._results[index], self._end[index]
        return ItemRecord() if result is None else ItemRecord(result, self._time(end - 1), end)

    @property
    def item_count(self) -> int:
        """How many items the run has."""
        return len(self._results)


class RunItems(Sequence[ItemRecord]):
    """How the items of a run stand; each is put together when it is asked for."""

    __slots__ = ("_log",)

    def __init__(self, log: RunLog | PackedRunLog) -> None:
        self._log = log

    def __len__(self) -> int:
        return self._log.item_count

    @overload
    def __getitem__(self, index: int) -> ItemRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ItemRecord]: ...

    def __getitem__(self, index: int | slice) -> ItemRecord | list[ItemRecord]:
        log = self._log.unpacked()
        if isinstance(index, slice):
            return [log.item(number) for number in range(*index.indices(len(self)))]
        return log.item(index)

    def __iter__(self) -> Iterator[ItemRecord]:
        return map(self._log.unpacked().item, range(len(self)))


def status_of(result: FlowResult) -> str:
    """completed or failed."""
    return "completed" if isinstance(result, Success) else "failed"
