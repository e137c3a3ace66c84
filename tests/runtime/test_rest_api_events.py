"""A run's events over the REST API: as they happen, resumed anywhere, bounded, and at their end."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
import trio
from rest_stage import Client, events_of, open_client
from runtime_stage import Stage, flow, one_step, step
from trio.testing import wait_all_tasks_blocked

from stepflow_trio import ComponentError, Context
from stepflow_trio.protocol.sse import COMMENT_PING
from stepflow_trio.runtime.rest_api import RestApi
from stepflow_trio.runtime.rest_api.events import WRITE_BYTES
from stepflow_trio.runtime.run_watch import EVENTS_AT_ONCE
from stepflow_trio.testing import Cancellable, cancel_everywhere

ECHO = one_step("/w/echo", {"value": {"$input": "$"}})
WAIT = one_step("/w/wait", {"name": {"$input": "$"}})


@pytest.fixture
async def client() -> AsyncGenerator[Client]:
    async with open_client() as client:
        yield client


def last_event(seq: int) -> dict[bytes, bytes]:
    return {b"last-event-id": b"%d" % seq}


async def test_events_come_as_they_happen_and_end_with_the_run(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(WAIT, "x")
    async with client.exchange("GET", f"/runs/{run['runId']}/events") as stream:
        seen = [await stream.event() for _ in range(2)]
        await wait_all_tasks_blocked()
        assert not stream.ended.is_set()
        client.stage.release.set()
        while (event := await stream.event()) is not None:
            seen.append(event)
        await stream.ended.wait()
    assert stream.reply.headers[b"content-type"] == b"text/event-stream"
    events = [json.loads(each.data) for each in seen if each]
    assert [each.id for each in seen if each] == ["1", "2", "3", "4", "5"]
    assert [(each["seq"], each["type"]) for each in events] == [
        (1, "runStarted"),
        (2, "stepStarted"),
        (3, "stepEnded"),
        (4, "itemEnded"),
        (5, "runEnded"),
    ]
    assert [each.type for each in seen if each] == [each["type"] for each in events]
    assert {each["runId"] for each in events} == {run["runId"]}
    assert events[1]["component"] == "/w/wait"
    assert events[3]["result"] == {"outcome": "success", "result": "x"}
    assert events[4]["status"] == "completed"


async def test_what_failed_and_will_be_tried_again_is_said_with_its_error(
    client: Client, autojump_clock: Any
) -> None:
    @client.stage.component
    async def second_time(context: Context) -> int:
        if context.attempt < 2:
            raise ComponentError("not yet", code=-32110)
        raise ComponentError("never", code=-32111)

    retried = one_step("/w/second_time", {}, onError={"action": "retry", "maxRetries": 1})
    run = await client.submit(retried, 1, wait=True)
    reply = await client.call("GET", f"/runs/{run['runId']}/events")
    events = events_of(reply.body)
    assert [each["type"] for each in events[1:5]] == [
        "stepStarted",
        "stepRetrying",
        "stepStarted",
        "stepEnded",
    ]
    assert events[2]["error"] == {"code": -32110, "message": "not yet"}
    assert events[2]["delaySecs"] > 0
    assert (events[4]["status"], events[4]["error"]["code"]) == ("failed", -32111)
    assert events[5]["result"]["error"]["code"] == -32111


async def test_a_stream_that_is_dropped_at_every_event_loses_none_and_repeats_none(
    client: Client, autojump_clock: Any
) -> None:
    steps = flow(
        step("a", "/w/sleep", {"seconds": {"$input": "$"}}),
        step("b", "/w/sleep", {"seconds": {"$step": "a"}}),
    )
    run = await client.submit(steps, *range(1, 9))
    path = f"/runs/{run['runId']}/events"
    seen: list[str] = []
    connections = 0
    while True:
        connections += 1
        headers = last_event(int(seen[-1])) if seen else {}
        async with client.exchange("GET", path, headers=headers) as stream:
            event = await stream.event()
            if event is None:
                break
            seen.append(event.id)
            if event.type == "runEnded":
                break
    whole = events_of((await client.call("GET", path)).body)
    assert seen == [str(each["seq"]) for each in whole] == [str(n) for n in range(1, len(whole) + 1)]
    assert len(whole) == 2 + 8 * 5 == connections


@pytest.mark.parametrize("dropped_at", range(12))
async def test_wherever_a_stream_is_cut_the_rest_is_the_rest(
    client: Client, autojump_clock: Any, dropped_at: int
) -> None:
    run = await client.submit(ECHO, *range(3), wait=True)
    path = f"/runs/{run['runId']}/events"
    whole = events_of((await client.call("GET", path)).body)
    assert len(whole) == 11
    by_header = await client.call("GET", path, headers=last_event(dropped_at))
    by_query = await client.call("GET", f"{path}?after={dropped_at}")
    if dropped_at == 11:
        assert (by_header.status, by_query.status) == (204, 204), "so that browsers do not come back"
    else:
        assert events_of(by_header.body) == events_of(by_query.body) == whole[dropped_at:]
    both = await client.call("GET", f"{path}?after=0", headers=last_event(dropped_at))
    assert both.body == by_header.body, "a browser that comes back asks for the same URL"


# ---- progress -------------------------------------------------------------------------------------------


def add_report(client: Client) -> None:
    @client.stage.component
    async def report(seconds: float, context: Context) -> float:
        context.progress(0.25, f"{seconds:g} s to go")
        await trio.sleep(seconds)
        context.progress(0.75)
        await trio.sleep(seconds)
        return seconds


REPORT = one_step("/w/report", {"seconds": {"$input": "$"}})


async def test_progress_is_in_the_stream_between_the_beginning_and_the_end_of_its_step(
    client: Client, autojump_clock: Any
) -> None:
    add_report(client)
    run = await client.submit(REPORT, 1, 10, maxConcurrency=1)
    seen = [
        (each.get("seq"), each["type"], each.get("itemIndex"), each.get("fraction"), each.get("message"))
        for each in events_of((await client.call("GET", f"/runs/{run['runId']}/events")).body)
    ]
    assert seen == [
        (1, "runStarted", None, None, None),
        (2, "stepStarted", 0, None, None),
        (None, "stepProgressed", 0, 0.25, "1 s to go"),
        (None, "stepProgressed", 0, 0.75, None),
        (3, "stepEnded", 0, None, None),
        (4, "itemEnded", 0, None, None),
        (5, "stepStarted", 1, None, None),
        (None, "stepProgressed", 1, 0.25, "10 s to go"),
        (None, "stepProgressed", 1, 0.75, None),
        (6, "stepEnded", 1, None, None),
        (7, "itemEnded", 1, None, None),
        (8, "runEnded", None, None, None),
    ]


async def test_progress_has_no_id_so_that_a_stream_is_taken_up_behind_what_is_on_record(
    client: Client, autojump_clock: Any
) -> None:
    add_report(client)
    run = await client.submit(REPORT, 5)
    path = f"/runs/{run['runId']}/events"
    async with client.exchange("GET", path) as stream:
        first = [await stream.event() for _ in range(3)]
        head = stream.reply.body
    assert [(each.type, each.id) for each in first if each] == [
        ("runStarted", "1"),
        ("stepStarted", "2"),
        ("stepProgressed", "2"),
    ]
    assert head.count(b"id: ") == 2
    await trio.sleep(7)
    async with client.exchange("GET", path, headers=last_event(2)) as stream:
        rest: list[Any] = []
        while (event := await stream.event()) is not None:
            rest.append(json.loads(event.data))
    assert [each["type"] for each in rest] == ["stepProgressed", "stepEnded", "itemEnded", "runEnded"]
    assert rest[0]["fraction"] == 0.75, "how far it is now, and not what was missed"
    later = await client.call("GET", path, headers=last_event(2))
    assert [each["type"] for each in events_of(later.body)] == ["stepEnded", "itemEnded", "runEnded"]


async def test_a_slow_reader_of_a_busy_run_gets_little_and_the_latest(
    client: Client, autojump_clock: Any
) -> None:
    @client.stage.component
    async def busy(context: Context) -> None:
        for number in range(2000):
            context.progress(number / 2000, "m" * 500)
            await trio.sleep(0.01)

    run = await client.submit(one_step("/w/busy", {}), *range(5))
    async with client.exchange("GET", f"/runs/{run['runId']}/events") as stream:
        for _ in range(6):
            assert await stream.event() is not None
        before = len(stream.reply.body)
        stream.blocks_sends = trio.Event()
        await trio.sleep(15)
        stream.blocks_sends.set()
        stream.blocks_sends = None
        reports: list[Any] = []
        while len(reports) < 10:
            event = await stream.event()
            assert event is not None
            reports.append(json.loads(event.data))
        assert len(stream.reply.body) - before < 10_000
    assert reports[-1]["fraction"] > 0.74
    assert {each["itemIndex"] for each in reports[-5:]} == {0, 1, 2, 3, 4}


# ---- many, slow and leaving readers ---------------------------------------------------------------------


async def test_many_readers_see_the_same(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(one_step("/w/sleep", {"seconds": {"$input": "$"}}), *range(1, 30))
    stories: list[Any] = []

    async def read() -> None:
        stories.append(events_of((await client.call("GET", f"/runs/{run['runId']}/events")).body))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(read)
            await trio.sleep(2)
    assert len(stories) == 20
    assert all(story == stories[0] for story in stories)
    assert len(stories[0]) == 2 + 29 * 3


async def test_a_stream_on_which_nothing_happens_gets_a_comment(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(WAIT, "x")
    async with client.exchange("GET", f"/runs/{run['runId']}/events?after=2") as stream:
        assert await stream.chunk() == b"", "the head goes out at once"
        for beat in (15, 30, 45):
            assert await stream.chunk() == COMMENT_PING
            assert trio.current_time() == beat
        await trio.sleep(10)
        client.stage.release.set()
        event = await stream.event()
        assert event is not None
        assert event.id == "3"


async def test_a_reader_that_leaves_leaves_nothing_behind(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(WAIT, "x")
    before = len(trio.lowlevel.current_task().parent_nursery.child_tasks)  # type: ignore[union-attr]
    for _ in range(3):
        async with client.exchange("GET", f"/runs/{run['runId']}/events") as stream:
            assert await stream.event() is not None
        assert stream.ended.is_set()
        assert trio.current_time() == 0, "at once"
    assert len(trio.lowlevel.current_task().parent_nursery.child_tasks) == before  # type: ignore[union-attr]
    client.stage.release.set()
    await client.runtime.history.wait(run["runId"])


async def test_a_reader_that_takes_nothing_holds_up_nobody_and_holds_one_page(
    client: Client, autojump_clock: Any
) -> None:
    run = await client.submit(WAIT, "x")
    async with client.exchange("GET", f"/runs/{run['runId']}/events") as stream:
        assert await stream.event() is not None
        stream.blocks_sends = trio.Event()
        text = "y" * 1000
        big = await client.submit(ECHO, *([text] * 2000), wait=True)
        client.stage.release.set()
        await client.runtime.history.wait(run["runId"])
        assert big["status"] == "completed"
        stream.blocks_sends.set()
    async with client.exchange("GET", f"/runs/{big['runId']}/events") as stream:
        sizes: list[int] = []
        while (chunk := await stream.chunk()) is not None:
            sizes.append(len(chunk))
    assert len(sizes) > 2000 * 4 / EVENTS_AT_ONCE
    assert max(sizes) < WRITE_BYTES + 2000


@pytest.mark.parametrize("last_id", ["x", "-1", "1.5", "9" * 30, "١", "0x1"])
async def test_an_id_that_is_none_is_refused(client: Client, autojump_clock: Any, last_id: str) -> None:
    run = await client.submit(ECHO, 1, wait=True)
    reply = await client.call(
        "GET", f"/runs/{run['runId']}/events", headers={b"last-event-id": last_id.encode()}
    )
    assert (reply.status, "Last-Event-ID" in reply.message) == (400, True)
    assert (await client.call("GET", f"/runs/{run['runId']}/events?after=x")).status == 400


async def test_an_id_of_the_future_waits_for_it(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(WAIT, "x")
    async with client.exchange("GET", f"/runs/{run['runId']}/events?after=4") as stream:
        await stream.chunk()
        client.stage.release.set()
        event = await stream.event()
        assert event is not None
        assert (event.id, event.type) == ("5", "runEnded")
        assert await stream.event() is None


async def test_the_events_of_a_cancelled_run_end_with_that(client: Client, autojump_clock: Any) -> None:
    run = await client.submit(WAIT, "x")
    async with client.exchange("GET", f"/runs/{run['runId']}/events?after=2") as stream:
        await wait_all_tasks_blocked()
        await client.call("POST", f"/runs/{run['runId']}/cancel")
        event = await stream.event()
        assert event is not None
        assert json.loads(event.data)["status"] == "cancelled"
        assert await stream.event() is None


async def test_a_stream_ends_where_the_run_s_end_cannot_be_recorded(autojump_clock: Any) -> None:
    from stepflow_trio.runtime.events import RunEnded
    from stepflow_trio.runtime.stores import MemoryRunStore

    class Full(MemoryRunStore):
        async def append(self, event: Any) -> None:
            if isinstance(event, RunEnded):
                await trio.sleep(1)  # so that who reads has read all, and waits
                raise OSError("the disk is full")
            await super().append(event)

    async with open_client(Stage(), run_store=Full()) as client:
        run = await client.submit(WAIT, "x")
        async with client.exchange("GET", f"/runs/{run['runId']}/events?after=3") as stream:
            await wait_all_tasks_blocked()
            client.stage.release.set()
            kinds: list[str] = []
            while (event := await stream.event()) is not None:
                kinds.append(event.type)
            assert trio.current_time() == 1, "at once"
    assert kinds == ["itemEnded"]


async def test_when_the_server_is_about_to_stop_its_streams_end_at_once_and_in_order(
    client: Client, autojump_clock: Any
) -> None:
    api = cast("RestApi", client.app)
    run = await client.submit(WAIT, "x")
    path = f"/runs/{run['runId']}/events"
    async with client.exchange("GET", path) as stream, client.exchange("GET", f"{path}?after=2") as other:
        seen = [await stream.event() for _ in range(2)]
        assert await other.chunk() == b""
        await wait_all_tasks_blocked()
        await api.drain()
        assert await stream.event() is None
        assert await other.event() is None
        await stream.ended.wait()
        await other.ended.wait()
        assert trio.current_time() == 0
    assert [each.id for each in seen if each] == ["1", "2"]
    assert events_of((await client.call("GET", path)).body) == [], "also one that is opened now"
    client.stage.release.set()
    assert (await client.get(f"/runs/{run['runId']}?wait=true"))["status"] == "completed"


def test_a_reader_cancelled_anywhere_loses_and_repeats_nothing() -> None:
    async def scenario(case: Cancellable) -> None:
        async with open_client() as client:
            run = await client.runtime.submit(one_step("/w/sleep", {"seconds": {"$input": "$"}}), [1, 2])
            seen: list[int] = []

            async def read() -> None:
                while True:
                    found = await client.runtime.history.next_events(run.id, after=seen[-1] if seen else 0)
                    seen.extend(each.seq for each in found)
                    if not found:
                        return

            with case:
                await read()
            await read()
            assert seen == list(range(1, 8 + 1))

    cancel_everywhere(scenario)
