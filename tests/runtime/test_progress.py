"""Progress: whose it is, who may report it, and how those who watch a run see it."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, cast

import pytest
import trio
from runtime_stage import OpenRunStore, RawWorker, Seen, Stage, flow, one_step, retrying, step

from stepflow_trio import ComponentError, Context, Runtime, open_runtime
from stepflow_trio.engine import Connection
from stepflow_trio.errors import RunNotFound
from stepflow_trio.protocol.payloads import ExecuteParams, Observability, ProgressParams
from stepflow_trio.runtime.events import RunEvent, StepEnded, StepProgressed
from stepflow_trio.runtime.progress import MAX_MESSAGE_CHARACTERS, SEARCHED_STEPS, StepsAtWork
from stepflow_trio.runtime.run_log import RecordedEvent
from stepflow_trio.runtime.run_watch import EVENTS_AT_ONCE, PROGRESS_INTERVAL_S
from stepflow_trio.testing import Cancellable, cancel_everywhere

REPORT = one_step("/w/report", {"plan": {"$input": "$"}})


class Reporting(Stage):
    """With a component that follows a plan: numbers from 1 on are seconds that pass, others are reported."""

    def __init__(self) -> None:
        super().__init__()

        @self.component
        async def report(plan: list[float], context: Context) -> None:
            for each in plan:
                if each < 1:
                    context.progress(each)
                else:
                    await trio.sleep(each)


@asynccontextmanager
async def open_reporting(**settings: Any) -> AsyncGenerator[Runtime]:
    async with open_runtime(workers={"w": Reporting().worker}, **settings) as runtime:
        yield runtime


def told(seen: Seen) -> list[tuple[int, float]]:
    return [(event.item_index, event.fraction) for event in seen.of(StepProgressed)]


def brief(event: RecordedEvent | StepProgressed) -> str:
    """``itemEnded``, or ``0: 50%``."""
    if isinstance(event, StepProgressed):
        return f"{event.item_index}: {event.fraction:.0%}"
    return event.kind


# ---- whose it is ----------------------------------------------------------------------------------------


async def test_progress_names_the_item_that_it_is_of(autojump_clock: Any) -> None:
    seen, at = Seen(), datetime(2024, 1, 1, tzinfo=UTC)
    async with open_reporting(on_event=seen, now=lambda: at) as runtime:
        run = await runtime.submit(REPORT, [[1, 0.5, 2, 0.75], [2, 0.25], [0.125]])
        await run.wait()
    assert told(seen) == [(2, 0.125), (0, 0.5), (1, 0.25), (0, 0.75)]
    assert seen.of(StepProgressed)[0] == StepProgressed(
        run_id=run.id, item_index=2, at=at, step_id="only", fraction=0.125, message=None
    )


async def test_the_items_of_runs_that_components_submit_are_told_apart_as_well(autojump_clock: Any) -> None:
    stage, seen = Reporting(), Seen()

    @stage.component
    async def twice(context: Context) -> None:
        await context.evaluate_run(REPORT, [[0.25, 5], [1, 0.75, 5]])

    async with open_runtime(workers={"w": stage.worker}, on_event=seen) as runtime:
        await runtime.run(one_step("/w/twice", {}))
    assert told(seen) == [(0, 0.25), (1, 0.75)]


Report = Callable[[Observability, Observability], dict[str, Any]]
REPORTS: dict[str, Report] = {
    "of another step": lambda own, _: {"step_id": "b", "run_id": own.run_id, "span_id": own.span_id},
    "of another run": lambda own, _: {"step_id": "only", "run_id": "r", "span_id": own.span_id},
    "of another span": lambda own, _: {"step_id": "only", "run_id": own.run_id, "span_id": "0" * 16},
    "of another worker's step": lambda _, other: {
        "step_id": "only", "run_id": other.run_id, "span_id": other.span_id
    },
    "of another worker's run": lambda _, other: {"step_id": "only", "run_id": other.run_id},
    "of no step": lambda own, _: {"step_id": "", "run_id": own.run_id},
}  # fmt: skip


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
async def test_a_worker_is_not_heard_about_what_it_does_not_execute(
    autojump_clock: Any, report: Report
) -> None:
    seen, given = Seen(), dict[str, Observability]()

    def acting(name: str) -> RawWorker:
        async def act(connection: Connection, params: ExecuteParams) -> None:
            given[name] = params.observability
            await trio.sleep(1)

            if name == "a":
                own = {"step_id": "only", "run_id": given["a"].run_id, "span_id": given["a"].span_id}
                for said in (report(given["a"], given["b"]), own):
                    await connection.notify("progress_update", {"progress": 0.5, **said})
                await trio.sleep(1)
            else:
                await trio.sleep(5)

        return RawWorker(act)

    workers = {name: acting(name) for name in "ab"}
    async with open_runtime(workers=cast("Any", workers), on_event=seen) as runtime:
        runs = [await runtime.submit(one_step(f"/{name}/x", {}), [1]) for name in "ab"]
        for run in runs:
            await run.wait()
            assert run.status == "completed"
    assert [(event.run_id, event.step_id) for event in seen.of(StepProgressed)] == [(runs[0].id, "only")]


async def test_what_is_said_after_a_step_has_ended_is_not_heard(autojump_clock: Any) -> None:
    seen = Seen()

    async def act(connection: Connection, params: ExecuteParams) -> None:
        of = params.observability
        report = {"step_id": "only", "progress": 0.5, "run_id": of.run_id, "span_id": of.span_id}
        await connection.notify("progress_update", report)
        late.append((connection, report))

    late: list[tuple[Connection, dict[str, Any]]] = []
    workers = cast("Any", {"w": RawWorker(act)})
    async with open_runtime(workers=workers, on_event=seen) as runtime:
        await runtime.run(one_step("/w/x", {}))
        [(connection, report)] = late
        await connection.notify("progress_update", report)
        await trio.sleep(1)
    assert told(seen) == [(0, 0.5)]


async def test_a_step_that_waits_for_its_next_attempt_has_no_progress(autojump_clock: Any) -> None:
    seen, said = Seen(), list[float]()

    async def act(connection: Connection, params: ExecuteParams) -> None:
        of = params.observability

        async def say(progress: float) -> None:
            report = {"step_id": "only", "progress": progress, "run_id": of.run_id, "span_id": of.span_id}
            await connection.notify("progress_update", report)

        await say(params.attempt / 10)
        if params.attempt == 1:
            workers_nursery.start_soon(say_later, say)
            raise ComponentError("not yet")
        await trio.sleep(1)

    async def say_later(say: Callable[[float], Any]) -> None:
        await trio.sleep(0.5)
        said.append(0.9)
        await say(0.9)

    again = one_step("/w/x", {}, onError={"action": "retry", "maxRetries": 1})
    async with trio.open_nursery() as workers_nursery:
        workers = cast("Any", {"w": RawWorker(act)})
        async with open_runtime(retrying(0), workers=workers, on_event=seen) as runtime:
            run = await runtime.submit(again, [1])
            await trio.sleep(0.75)
            assert said
            assert runtime.history.progress(run.id) == []
            await run.wait()
    assert told(seen) == [(0, 0.1), (0, 0.2)]


async def test_a_report_without_a_span_counts_where_it_can_be_of_one_execution_only(
    autojump_clock: Any,
) -> None:
    seen = Seen()

    async def act(connection: Connection, params: ExecuteParams) -> None:
        await trio.sleep(cast("int", params.input))
        report = {"step_id": params.observability.step_id, "progress": 0.5}
        await connection.notify("progress_update", report)
        await trio.sleep(1.5)

    workers = cast("Any", {"w": RawWorker(act)})
    async with open_runtime(workers=workers, on_event=seen) as runtime:
        # The first two report while both are at work, the third alone.
        await (await runtime.submit(one_step("/w/x"), [1, 2, 4])).wait()
        assert told(seen) == [(2, 0.5)]
        seen.clear()
        for count in (SEARCHED_STEPS, SEARCHED_STEPS - 1):
            many = await runtime.submit(one_step("/w/x"), [50] * count, max_concurrency=1000)
            await runtime.run(flow(step("lone", "/w/x")), 1)
            assert len(seen.of(StepProgressed)) == (0 if count == SEARCHED_STEPS else 1)
            many.cancel()
            await many.wait()


async def test_a_message_is_cut_off_where_it_gets_long(autojump_clock: Any) -> None:
    stage, seen = Stage(), Seen()

    @stage.component
    async def talk(context: Context) -> None:
        for length in (MAX_MESSAGE_CHARACTERS, MAX_MESSAGE_CHARACTERS + 1):
            context.progress(0.5, "x" * length)
        await trio.sleep(1)

    async with open_runtime(workers={"w": stage.worker}, on_event=seen) as runtime:
        await runtime.run(one_step("/w/talk", {}))
    assert [event.message for event in seen.of(StepProgressed)] == [
        "x" * MAX_MESSAGE_CHARACTERS,
        "x" * (MAX_MESSAGE_CHARACTERS - 1) + "…",
    ]


def test_nothing_is_kept_of_what_is_over() -> None:
    at_work, connection = StepsAtWork(), cast("Connection", object())
    spans = [Observability(run_id=f"r{n % 3}", step_id="s", span_id=str(n)) for n in range(30)]
    for number, span in enumerate(spans):
        at_work.begin(span, number)
        at_work.sent(span, connection)
        if number % 2:
            report = ProgressParams(step_id="s", progress=0.5, span_id=span.span_id)
            assert at_work.take(report, connection, now=lambda: datetime.now(UTC)) is not None
    assert [each.item_index for each in at_work.reports_of("r0")] == [3, 9, 15, 21, 27]
    for span in sorted(spans, key=lambda span: str(span.span_id)):
        at_work.end(span)
    assert not at_work._steps
    assert not at_work._reported


# ---- watching a run -------------------------------------------------------------------------------------


async def test_who_watches_a_run_sees_its_events_and_its_progress_in_order(autojump_clock: Any) -> None:
    async with open_reporting() as runtime:
        run = await runtime.submit(REPORT, [[0.1, 1, 0.5, 1]])
        story = [brief(event) async for event in runtime.history.watch(run.id)]
    assert story == ["runStarted", "stepStarted", "0: 10%", "0: 50%", "stepEnded", "itemEnded", "runEnded"]


async def test_who_comes_late_is_told_how_far_each_step_is(autojump_clock: Any) -> None:
    async with open_reporting() as runtime:
        run = await runtime.submit(REPORT, [[0.1, 1, 0.2, 9], [0.3, 9], [9], [0.4, 1]])
        await trio.sleep(5)
        watch = runtime.history.watch(run.id, after=7)
        assert [brief(event) for event in await watch.next_page()] == ["1: 30%", "0: 20%"]
        assert sorted(each.fraction for each in runtime.history.progress(run.id)) == [0.2, 0.3]
        run.cancel()
        await run.wait()
        assert runtime.history.progress(run.id) == []


async def test_progress_comes_at_most_every_tenth_of_a_second_and_then_the_latest(
    autojump_clock: Any,
) -> None:
    stage = Stage()

    @stage.component
    async def hurry(context: Context) -> None:
        for number in range(1000):
            context.progress(number / 1000)
            await trio.sleep(0.001)

    async with open_runtime(workers={"w": stage.worker}) as runtime:
        run = await runtime.submit(one_step("/w/hurry", {}), [1])
        watch = runtime.history.watch(run.id)
        told = [(trio.current_time(), each) async for each in watch]
    seen = [(at, each.fraction) for at, each in told if isinstance(each, StepProgressed)]
    assert 9 <= len(seen) <= 11
    assert all(later[0] - one[0] >= PROGRESS_INTERVAL_S - 1e-9 for one, later in pairwise(seen))
    assert all(fraction == pytest.approx(at, abs=0.003) for at, fraction in seen), "each is the latest"


async def test_events_are_not_held_up_by_the_pause_between_reports(autojump_clock: Any) -> None:
    async with open_reporting() as runtime:
        run = await runtime.submit(
            flow(
                step("a", "/w/report", {"plan": {"$input": "$"}}),
                step("b", "/w/sleep", {"seconds": 0.01}),
                output=[{"$step": "a"}, {"$step": "b"}],
            ),
            [[0.5, 3]],
        )
        ended: dict[str, float] = {}
        async for event in runtime.history.watch(run.id):
            if isinstance(event, RecordedEvent) and event.kind == "stepEnded":
                ended[str(event.step_id)] = trio.current_time()
    assert ended == {"a": 3, "b": pytest.approx(0.01)}


async def test_a_slow_reader_gets_the_latest_and_nothing_of_what_has_ended(autojump_clock: Any) -> None:
    async with open_reporting() as runtime:
        plan = [x for number in range(1, 10) for x in (number / 10, 1)]
        run = await runtime.submit(REPORT, [plan, [1.5, *plan], [0.05, 2]])
        watch = runtime.history.watch(run.id)
        story: list[str] = []
        while page := await watch.next_page():
            story += [brief(event) for event in page]
            await trio.sleep(3.7)
    assert [each for each in story if "%" in each] == ["0: 40%", "1: 30%", "1: 60%", "0: 80%"]
    assert story.count("stepEnded") == 3


async def test_who_is_behind_gets_what_is_on_record_first(autojump_clock: Any) -> None:
    async with open_reporting() as runtime:
        run = await runtime.submit(REPORT, [*[[]] * EVENTS_AT_ONCE, [0.5, 9]], max_concurrency=1000)
        await trio.sleep(1)
        watch = runtime.history.watch(run.id)
        pages = [await watch.next_page() for _ in range(4)]
        kinds = [{type(event) for event in page} for page in pages]
        assert kinds == [{RecordedEvent}] * 3 + [{RecordedEvent, StepProgressed}]
        assert isinstance(pages[-1][-1], StepProgressed)
        run.cancel()


@pytest.mark.parametrize("seed", range(8))
async def test_progress_never_comes_before_its_step_began_or_after_it_ended(
    autojump_clock: Any, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 — nobody is to be kept from guessing it

    class Slow(OpenRunStore):
        async def append(self, event: RunEvent) -> None:
            if isinstance(event, StepEnded) or chance.random() < 0.3:
                await trio.sleep(chance.choice([0, 0.01, 0.2]))
            await super().append(event)

        async def events(self, run_id: str, **more: Any) -> list[RecordedEvent]:
            if chance.random() < 0.5:
                await trio.sleep(chance.choice([0, 0.01, 0.2]))
            found = await super().events(run_id, **more)
            if chance.random() < 0.5:
                await trio.sleep(chance.choice([0, 0.01, 0.2]))
            return found

    stage = Stage()

    @stage.component
    async def wander(context: Context) -> None:
        for _ in range(chance.randrange(6)):
            context.progress(chance.random())
            await trio.sleep(chance.choice([0, 0.005, 0.1, 0.3]))
        if context.attempt < chance.randrange(3):
            raise ComponentError("again")

    again = {"onError": {"action": "retry", "maxRetries": 3}}
    two = flow(step("a", "/w/wander", {}, **again), step("b", "/w/wander", {"x": {"$step": "a"}}, **again))
    stories: list[list[RecordedEvent | StepProgressed]] = []

    async def watch(run_id: str, pause_s: float) -> None:
        story: list[RecordedEvent | StepProgressed] = []
        async for event in runtime.history.watch(run_id):
            story.append(event)
            if chance.random() < 0.1:
                await trio.sleep(pause_s)
        stories.append(story)

    async with open_runtime(retrying(0), workers={"w": stage.worker}, run_store=Slow()) as runtime:
        run = await runtime.submit(two, range(10), max_concurrency=4)
        async with trio.open_nursery() as nursery:
            for pause_s in (0, 0.05, 1):
                nursery.start_soon(watch, run.id, pause_s)
        recorded = await runtime.history.events(run.id)
    for story in stories:
        numbers = [event.seq for event in story if isinstance(event, RecordedEvent)]
        assert numbers == [*range(1, len(recorded) + 1)]
        at_work: set[tuple[int | None, str | None]] = set()
        for event in story:
            key = (event.item_index, event.step_id)
            if isinstance(event, StepProgressed):
                assert key in at_work
            elif event.kind == "stepStarted":
                at_work.add(key)
            elif event.kind in ("stepEnded", "stepRetrying"):
                at_work.discard(key)
    assert any(isinstance(event, StepProgressed) for event in stories[0])


async def test_a_run_that_there_is_not_cannot_be_watched(autojump_clock: Any) -> None:
    async with open_reporting() as runtime:
        with pytest.raises(RunNotFound):
            await anext(runtime.history.watch("00000000-0000-0000-0000-000000000000"))
        run = await runtime.submit(REPORT, [[]])
        await run.wait()
        watch = runtime.history.watch(run.id, after=4)
        assert [brief(event) async for event in watch] == ["runEnded"]
        assert [brief(event) async for event in watch] == []


def test_who_is_cancelled_anywhere_while_watching_loses_and_repeats_nothing() -> None:
    async def scenario(case: Cancellable) -> None:
        async with open_reporting() as runtime:
            run = await runtime.submit(REPORT, [[0.5, 1], [0.25, 2]])
            watch = runtime.history.watch(run.id)
            seen: list[RecordedEvent | StepProgressed] = []

            async def read() -> None:
                async for event in watch:
                    seen.append(event)  # noqa: PERF401 — what came before it is cancelled counts

            with case:
                await read()
            await read()
            assert [event.seq for event in seen if isinstance(event, RecordedEvent)] == [*range(1, 9)]
            told = [event for event in seen if isinstance(event, StepProgressed)]
            assert len(told) == len(set(told)) == 2

    cancel_everywhere(scenario)
