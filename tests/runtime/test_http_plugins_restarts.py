"""When a plugin over HTTP begins anew: another instance answers, a process ends, a call fails on its way."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from traceback import walk_tb
from typing import Any

import pytest
import trio
import trio.testing
from runtime_stage import Seen
from sites import Site

from stepflow_trio.engine import Handlers, Limits
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import ConnectFailed, ErrorCode, WorkerExited
from stepflow_trio.protocol.payloads import Observability
from stepflow_trio.runtime import hosted_worker
from stepflow_trio.runtime.events import WorkerEnded, WorkerStarted
from stepflow_trio.runtime.plugins import FailureKind, StepFailure
from stepflow_trio.runtime.timeouts import Timeouts
from stepflow_trio.runtime.worker_plugin import WorkerPlugin


@asynccontextmanager
async def plugged_in(site: Site, seen: Seen | None = None) -> AsyncGenerator[WorkerPlugin]:
    with one_exception():
        async with trio.open_nursery() as nursery:
            plugin = WorkerPlugin(
                "w",
                site.launch,
                Handlers(),
                nursery=nursery,
                observe=Seen() if seen is None else seen,
                limits=Limits(),
                connect_timeout_s=Timeouts().connect_s,
                url=site.url,
            )
            try:
                yield plugin
            finally:
                plugin.stop()


async def call(plugin: WorkerPlugin) -> Any:
    return await plugin.execute("/x", None, attempt=1, observability=Observability(), deadline=float("inf"))


@asynccontextmanager
async def waiting_call(plugin: WorkerPlugin, site: Site) -> AsyncGenerator[list[Any]]:
    """A call that waits for ``site.release``; in the list is what becomes of it."""
    ends: list[Any] = []
    site.release = trio.Event()

    async def wait() -> None:
        try:
            ends.append(await call(plugin))
        except StepFailure as failure:
            ends.append(failure)

    with one_exception():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            yield ends


async def test_calls_go_to_a_new_start_once_the_old_one_is_suspect_and_what_is_in_it_finishes(
    autojump_clock: Any,
) -> None:
    site, seen = Site("a"), Seen()
    async with plugged_in(site, seen) as plugin, waiting_call(plugin, site) as ends:
        release, site.release = site.release, None
        [first] = site.starts
        first.is_suspect = True
        assert await call(plugin) == "a"
        [_, second] = site.starts
        assert not first.is_over, "there is a call in it"
        assert ends == []
        assert release is not None
        release.set()
        await trio.testing.wait_all_tasks_blocked()
        assert ends == ["a"]
        assert first.is_over
        assert not second.is_over
        assert await call(plugin) == "a"
        assert len(site.starts) == 2
    assert len(seen.of(WorkerStarted)) == len(seen.of(WorkerEnded)) == 2


async def test_a_suspect_start_with_nothing_in_it_is_ended_when_the_next_call_comes(
    autojump_clock: Any,
) -> None:
    site = Site("a")
    async with plugged_in(site) as plugin:
        await call(plugin)
        site.starts[0].is_suspect = True
        await call(plugin)
        await trio.testing.wait_all_tasks_blocked()
        assert [start.is_over for start in site.starts] == [True, False]


@pytest.mark.parametrize("pid", [None, 4711])
async def test_after_a_call_that_failed_on_its_way_a_worker_at_a_url_is_initialized_anew(
    autojump_clock: Any, pid: int | None
) -> None:
    site = Site("a")
    site.pid = pid
    async with plugged_in(site) as plugin:
        async with waiting_call(plugin, site) as ends:
            site.starts[0].link.lose_next_answer()
            assert site.release is not None
            site.release.set()
        [failure] = ends
        assert (failure.kind, failure.error.code) == (FailureKind.TRANSPORT, ErrorCode.CONNECTION_LOST)
        assert await call(plugin) == "a"
        assert len(site.starts) == (2 if pid is None else 1), "a process that lives goes on"


async def test_a_call_for_which_this_machine_had_no_connection_to_make_says_nothing_of_the_worker(
    autojump_clock: Any,
) -> None:
    site = Site("a")
    async with plugged_in(site) as plugin:
        async with waiting_call(plugin, site) as ends:
            site.starts[0].link.lose_next_answer(ConnectFailed(site.url, "no more files", is_local=True))
            assert site.release is not None
            site.release.set()
        [failure] = ends
        assert (failure.kind, failure.error.code) == (FailureKind.TRANSPORT, ErrorCode.TRANSPORT_ERROR)
        assert failure.error.message == "worker w at http://a/: cannot connect to http://a/: no more files"
        assert await call(plugin) == "a"
        assert len(site.starts) == 1, "there is nothing that a new start would heal"


async def test_a_worker_that_does_not_answer_initialize_in_any_spelling_is_given_up_in_time(
    autojump_clock: Any,
) -> None:
    site = Site("a")
    site.initialize_delay_s = 20.0
    async with plugged_in(site) as plugin:
        with pytest.raises(StepFailure, match="did not answer initialize within 30 s") as caught:
            await call(plugin)
        assert trio.current_time() == 30.0
        assert caught.value.kind is FailureKind.FINAL
        await trio.testing.wait_all_tasks_blocked()
        assert [start.is_over for start in site.starts] == [True]


@pytest.mark.parametrize("is_there", [True, False])
async def test_those_who_wait_for_a_start_that_fails_share_no_traceback(
    autojump_clock: Any, is_there: bool
) -> None:
    site = Site("a")
    site.is_there = is_there
    failures: list[StepFailure] = []

    async def wait(plugin: WorkerPlugin) -> None:
        try:
            await call(plugin)
        except StepFailure as failure:
            failures.append(failure)

    for _ in range(2):
        with one_exception():
            async with plugged_in(site) as plugin, trio.open_nursery() as nursery:
                site.initialize_delay_s = 20.0
                for _ in range(10):
                    nursery.start_soon(wait, plugin)
                await trio.testing.wait_all_tasks_blocked()
                plugin.stop()
    assert len(failures) == 20
    for failure in failures:
        traceback = failure.__cause__.__traceback__ if failure.__cause__ is not None else None
        frames = [frame.f_code.co_name for frame, _ in walk_tb(traceback)]
        assert frames.count("_with_worker") == 0
    expected = "the runtime is shutting down" if is_there else "cannot connect to http://a/"
    assert all(expected in failure.error.message for failure in failures)


async def test_the_end_of_the_process_ends_its_calls_and_is_what_they_fail_with(autojump_clock: Any) -> None:
    site, seen = Site("a"), Seen()
    site.pid = 4711
    async with plugged_in(site, seen) as plugin:
        async with waiting_call(plugin, site) as ends:
            site.release = None
            [first] = site.starts
            first.ended = WorkerExited("worker --http", 3, ["no memory"])
            first.has_ended.set()
        [failure] = ends
        assert failure.kind is FailureKind.TRANSPORT
        assert failure.error.data == {"returncode": 3, "stderr": ["no memory"]}
        assert "'worker --http' exited with code 3: no memory" in failure.error.message
        assert await call(plugin) == "a"
        assert len(site.starts) == 2
    assert "no memory" in seen.of(WorkerEnded)[0].detail


async def test_a_message_that_is_cut_off_is_nothing_that_a_worker_over_http_is_replaced_for(
    autojump_clock: Any,
) -> None:
    site = Site("a")
    site.pid = 4711
    async with plugged_in(site) as plugin:
        await call(plugin)
        site.starts[0].unfinished_bytes = 10
        await trio.sleep(3 * hosted_worker.STALLED_FRAME_S)
        await call(plugin)
        assert len(site.starts) == 1


async def test_it_can_be_made_ready_without_a_call(autojump_clock: Any) -> None:
    site = Site("a")
    async with plugged_in(site) as plugin:
        assert not plugin.is_ready
        await plugin.wait_ready()
        assert plugin.is_ready
        assert site.has_begun == 0
        site.starts[0].is_suspect = True
        assert not plugin.is_ready
        site.is_there = False
        with pytest.raises(StepFailure, match="worker w at http://a/: cannot connect"):
            await plugin.wait_ready()
        assert plugin.problem is not None


async def test_a_worker_that_refuses_for_now_is_tried_again_when_it_says(autojump_clock: Any) -> None:
    site = Site("a")
    site.refuses_for_s = 7.0
    async with plugged_in(site) as plugin:
        with pytest.raises(StepFailure) as caught:
            await call(plugin)
        assert (caught.value.kind, caught.value.retry_after_s) == (FailureKind.TRANSPORT, 7.0)
        site.refuses_for_s = None
        assert await call(plugin) == "a"
