"""Plain components run in threads; one that waits for the runtime leaves its place to others meanwhile."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from serving_stage import execute, serving
from trio.testing import active_thread_count, wait_all_tasks_blocked

from stepflow_trio import Context, Worker
from stepflow_trio.engine import Handlers, open_connection
from stepflow_trio.errors import CallFailed, ErrorCode, LocalProtocolError, Overloaded, RpcError
from stepflow_trio.protocol import methods
from stepflow_trio.protocol.dialects import Dialect, Hello
from stepflow_trio.protocol.payloads import PutBlobResult
from stepflow_trio.testing import Cancellable, cancel_everywhere
from stepflow_trio.transports.memory import memory_link_pair
from stepflow_trio.worker.threads import ThreadPlace, ThreadPool


class Store:
    """A runtime that answers ``blobs/put`` when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer = trio.Event()
        self.handlers = Handlers()
        self.handlers.on_request(methods.BLOBS_PUT, self._put)

    async def _put(self, _params: Any, _request: Any) -> PutBlobResult:
        self.asked += 1
        await self.answer.wait()
        return PutBlobResult("5e43")


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 — what is waited for happens in a thread
            await trio.sleep(0.001)


# ---- in threads -----------------------------------------------------------------------------------------


async def test_another_has_the_place_of_one_that_waits_for_the_runtime_which_goes_on_when_it_is_free() -> (
    None
):
    worker, store = Worker(max_threads=1), Store()
    release, running, order = threading.Event(), threading.Event(), []

    @worker.component
    def asks(context: Context) -> str:
        blob_id = trio.from_thread.run(context.put_blob, 1)
        order.append("asks")
        return blob_id

    @worker.component
    def computes() -> str:
        running.set()
        release.wait(10)
        order.append("computes")
        return "done"

    async with serving(worker, store.handlers) as connection, trio.open_nursery() as nursery:
        nursery.start_soon(execute, connection, "/asks", {})
        await until(lambda: store.asked)
        nursery.start_soon(execute, connection, "/computes", {})
        await until(running.is_set)
        store.answer.set()
        await wait_all_tasks_blocked(0.05)
        assert order == [], "it went on although the only place is taken"
        release.set()
    assert order == ["computes", "asks"]


async def test_more_components_than_places_may_wait_for_one_another() -> None:
    worker, store, places = Worker(max_threads=3), Store(), 3

    @worker.component
    def asks(context: Context) -> str:
        return trio.from_thread.run(context.put_blob, 1)

    @worker.component
    def answers() -> str:
        return "done"

    async with serving(worker, store.handlers) as connection, trio.open_nursery() as nursery:
        for _ in range(10 * places):
            nursery.start_soon(execute, connection, "/asks", {})
        await until(lambda: store.asked == 10 * places)
        with trio.fail_after(10):
            assert await execute(connection, "/answers", {}) == "done"
        store.answer.set()


async def test_over_the_bound_a_thread_is_refused_for_now_and_later_there_is_one_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stepflow_trio.worker.threads.MAX_WAITING_THREADS", 2)
    worker, store = Worker(max_threads=1), Store()

    @worker.component
    def asks(context: Context) -> str:
        return trio.from_thread.run(context.put_blob, 1)

    async with serving(worker, store.handlers) as connection:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(execute, connection, "/asks", {})
            await until(lambda: store.asked == 3)
            with pytest.raises(Overloaded) as caught:
                await execute(connection, "/asks", {})
            assert (caught.value.code, caught.value.retry_after_s) == (ErrorCode.OVERLOADED, 1.0)
            assert caught.value.message == "All 3 threads of this worker are taken by components that wait"
            store.answer.set()
        assert await execute(connection, "/asks", {}) == "5e43"


async def test_where_the_system_starts_no_thread_the_execution_is_refused_for_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(max_threads=1)

    @worker.component
    def works() -> str:
        return "done"

    def start_no_thread(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    async with serving(worker) as connection:
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr("trio._threads.start_thread_soon", start_no_thread)
                with pytest.raises(Overloaded, match="can't start new thread"):
                    await execute(connection, "/works", {})
            assert await execute(connection, "/works", {}) == "done"


async def test_a_runtime_error_of_the_component_itself_is_its_failure() -> None:
    worker = Worker()

    @worker.component
    def fails() -> None:
        raise RuntimeError("mine")

    async with serving(worker) as connection:
        with pytest.raises(CallFailed) as caught:
            await execute(connection, "/fails", {})
    assert (caught.value.code, caught.value.message) == (ErrorCode.COMPONENT_FAILED, "RuntimeError: mine")


async def test_a_thread_whose_execution_was_cancelled_does_not_wait_for_the_runtime_any_longer() -> None:
    worker, store, raised = Worker(max_threads=1), Store(), []

    @worker.component
    def asks(context: Context) -> None:
        try:
            trio.from_thread.run(context.put_blob, 1)
        except BaseException as exc:
            raised.append(exc)
            raise

    async with serving(worker, store.handlers) as connection:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(execute, connection, "/asks", {})
            await until(lambda: store.asked)
            nursery.cancel_scope.cancel()
        await until(lambda: raised)
        assert isinstance(raised[0], LocalProtocolError)
        assert "is over" in str(raised[0])
        await until(lambda: active_thread_count() == 0)
        store.answer.set()
        raised.clear()
        await execute(connection, "/asks", {})
    assert raised == []


async def test_a_thread_that_gives_its_callback_up_goes_on_at_once_although_all_places_are_taken() -> None:
    worker, store = Worker(max_threads=1), Store()
    release, running = threading.Event(), threading.Event()

    @worker.component
    def asks(context: Context) -> str:
        async def ask() -> str:
            with trio.move_on_after(0.2):
                return await context.put_blob(1)
            return "gave up"

        said = trio.from_thread.run(ask)
        release.set()
        return said

    @worker.component
    def computes() -> bool:
        running.set()
        return release.wait(10)

    async with serving(worker, store.handlers) as connection, trio.open_nursery() as nursery:
        said: list[Any] = []

        async def call(component: str) -> None:
            said.append(await execute(connection, component, {}))

        nursery.start_soon(call, "/asks")
        await until(lambda: store.asked)
        nursery.start_soon(call, "/computes")
        await until(lambda: len(said) == 2)
        assert sorted(map(str, said)) == ["True", "gave up"]
        # Both have ended: the one place is there again, and no second one.
        running.clear()
        release.clear()
        nursery.start_soon(call, "/computes")
        await until(running.is_set)
        running.clear()
        nursery.start_soon(call, "/computes")
        await wait_all_tasks_blocked(0.05)
        assert not running.is_set()
        release.set()
        await until(lambda: len(said) == 4)


async def test_callbacks_of_a_component_s_own_threads_count_as_one_place() -> None:
    worker, store = Worker(max_threads=1), Store()
    release, running = threading.Event(), threading.Event()

    @worker.component
    def asks(context: Context) -> int:
        results: list[str] = []
        token = trio.from_thread.run_sync(trio.lowlevel.current_trio_token)

        def ask() -> None:
            results.append(trio.from_thread.run(context.put_blob, 1, trio_token=token))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(results)

    @worker.component
    def computes() -> bool:
        running.set()
        return release.wait(10)

    async with serving(worker, store.handlers) as connection, trio.open_nursery() as nursery:
        nursery.start_soon(execute, connection, "/asks", {})
        await until(lambda: store.asked == 3)
        nursery.start_soon(execute, connection, "/computes", {})
        await until(running.is_set)
        running.clear()
        nursery.start_soon(execute, connection, "/computes", {})
        await wait_all_tasks_blocked(0.05)
        assert not running.is_set(), "three callbacks gave back more than one place"
        release.set()
        store.answer.set()


def test_there_is_at_least_one_thread() -> None:
    with pytest.raises(ValueError, match="max_threads must be at least 1, not 0"):
        Worker(max_threads=0)


# ---- the pool itself, without threads -------------------------------------------------------------------


@asynccontextmanager
async def thread_in(pool: ThreadPool) -> AsyncGenerator[ThreadPlace]:
    """What trio does with the place of a thread that ends with the block."""
    place = ThreadPlace(pool)
    await place.acquire_on_behalf_of(None)
    try:
        yield place
    finally:
        place.release_on_behalf_of(None)


async def test_who_has_a_thread_goes_before_who_has_none(autojump_clock: trio.testing.MockClock) -> None:
    pool, order = ThreadPool(1), []

    async def asks() -> None:
        async with thread_in(pool) as place:
            async with place.given_back():
                await trio.sleep(1)
            order.append("returner")

    async def computes(seconds: float, name: str) -> None:
        async with thread_in(pool):
            await trio.sleep(seconds)
            order.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(asks)
        await wait_all_tasks_blocked()
        nursery.start_soon(computes, 2, "first")
        await wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(computes, 0, "newcomer")
    assert order == ["first", "returner", "newcomer", "newcomer", "newcomer"]
    assert (pool.threads, pool.running) == (0, 0)


async def test_a_callback_that_begins_while_another_one_s_thread_comes_back_keeps_the_place_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pool = ThreadPool(1)
    async with thread_in(pool) as place:

        async def ask(seconds: float) -> None:
            async with place.given_back():
                await trio.sleep(seconds)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 1)
            await wait_all_tasks_blocked()
            other = ThreadPlace(pool)
            await other.acquire_on_behalf_of(None)  # the place is taken: the first callback waits for it
            await trio.sleep(2)
            nursery.start_soon(ask, 5)
            await wait_all_tasks_blocked()
            other.release_on_behalf_of(None)
            await wait_all_tasks_blocked()
            assert (pool.threads, pool.running) == (1, 0), "held, although a callback waits"
        assert (pool.threads, pool.running) == (1, 1)
    assert (pool.threads, pool.running) == (0, 0)


async def test_two_callbacks_that_come_back_together_take_one_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pool = ThreadPool(2)
    async with thread_in(pool) as place, thread_in(pool):

        async def ask(seconds: float) -> None:
            async with place.given_back():
                await trio.sleep(seconds)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 1)
            await wait_all_tasks_blocked()
            other = ThreadPlace(pool)
            await other.acquire_on_behalf_of(None)
            await trio.sleep(1)  # the first callback's end waits for a place …
            nursery.start_soon(ask, 1)
            await trio.sleep(2)  # … and so does the second one's
            other.release_on_behalf_of(None)
            await wait_all_tasks_blocked()
            assert (pool.threads, pool.running) == (2, 2)
        assert (pool.threads, pool.running) == (2, 2)
    assert (pool.threads, pool.running) == (0, 0)


async def test_a_thread_that_ends_while_a_callback_of_its_waits_leaves_no_place_taken(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pool = ThreadPool(2)
    async with trio.open_nursery() as nursery, thread_in(pool):
        async with thread_in(pool) as place:

            async def ask() -> None:
                async with place.given_back():
                    await trio.sleep(1)

            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
        assert (pool.threads, pool.running) == (1, 1)
        await trio.sleep(2)
        assert (pool.threads, pool.running) == (1, 1)


async def test_what_runs_over_the_bound_is_made_up_for_before_another_begins(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pool, begun = ThreadPool(1), []

    async def newcomer() -> None:
        await pool.begin()
        begun.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        async with thread_in(pool) as place:
            with trio.move_on_after(1):
                async with place.given_back():
                    other = ThreadPlace(pool)
                    await other.acquire_on_behalf_of(None)
                    await trio.sleep_forever()
            assert pool.running == 2, "the thread whose callback was given up goes on"
            nursery.start_soon(newcomer)
            await trio.sleep(1)
            other.release_on_behalf_of(None)
            await trio.sleep(1)
            assert begun == []
        await trio.sleep(1)
        assert begun == [3]


@pytest.mark.parametrize("seed", range(60))
def test_whatever_threads_do_places_are_neither_lost_nor_made(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311 — no secret
    places, bound = draw.randint(1, 3), draw.randint(0, 4)
    pool: ThreadPool
    computing = most = 0

    async def compute() -> None:
        nonlocal computing, most
        computing += 1
        most = max(most, computing)
        await trio.sleep(draw.choice([0, 0.1, 1]))
        computing -= 1

    async def execution() -> None:
        await trio.sleep(draw.random() * 3)
        with contextlib.suppress(RpcError):
            async with thread_in(pool) as place:
                for _ in range(draw.randint(0, 3)):
                    await compute()
                    async with place.given_back():
                        await trio.sleep(draw.choice([0, 0.1, 1]))
                await compute()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(execution)
        assert (pool.threads, pool.running, computing) == (0, 0, 0)
        assert most <= places

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stepflow_trio.worker.threads.MAX_WAITING_THREADS", bound)
        pool = ThreadPool(places)
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# ---- cancelled anywhere ---------------------------------------------------------------------------------


async def executions_that_ask(cancellable: Cancellable) -> None:
    pool = ThreadPool(2)
    store = Store()
    store.answer.set()
    near, far = memory_link_pair()
    hello = Hello(dialect=Dialect.V0_11, version=1, extensions=frozenset(), announced=True)

    async with open_connection(far, store.handlers), open_connection(near, Handlers()) as connection:

        async def execution() -> None:
            async with thread_in(pool) as place:
                context = Context(connection, hello, component="/asks")
                context.use_thread(place)
                token = context.enter()
                try:
                    for _ in range(2):
                        await context.put_blob(1)
                        await trio.sleep(0.01)
                finally:
                    context.leave(token)

        async def shared_by_two(place: ThreadPlace) -> None:
            context = Context(connection, hello, component="/asks")
            context.use_thread(place)
            await context.put_blob(1)

        async with thread_in(pool) as kept:
            with cancellable:
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(execution)
                    for _ in range(2):
                        nursery.start_soon(shared_by_two, kept)
            assert (pool.threads, pool.running) == (1, 1)
            # Its place and one more: as many as before can run, and no more.
            async with thread_in(pool):
                with trio.move_on_after(1) as full:
                    await pool.begin()
                assert full.cancelled_caught
        assert (pool.threads, pool.running) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_executions_that_ask_can_be_cancelled_anywhere(seed: int) -> None:
    report = cancel_everywhere(executions_that_ask, seed=seed)
    assert report.injections > 20
