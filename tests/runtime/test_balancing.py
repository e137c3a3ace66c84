"""Several workers behind one plugin: who gets a call, who is ejected, and who comes back, in virtual time."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
import trio.testing
from runtime_stage import Seen
from sites import Site

from stepflow_trio.engine import Handlers, Limits
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import ErrorCode, RpcError
from stepflow_trio.protocol.payloads import Observability
from stepflow_trio.runtime import balancing
from stepflow_trio.runtime.balancing import BalancedWorker, BalancingPlugin
from stepflow_trio.runtime.events import WorkerStarted
from stepflow_trio.runtime.hosted_worker import Started
from stepflow_trio.runtime.plugins import FailureKind, StepFailure
from stepflow_trio.runtime.timeouts import Timeouts
from stepflow_trio.runtime.worker_plugin import WorkerPlugin
from stepflow_trio.testing.cancellation import Cancellable, cancel_everywhere


class NoChance(Random):
    """Draws this number always."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self._number = number

    def random(self) -> float:
        return self._number


@asynccontextmanager
async def balanced(
    *sites: Site, chance: float = 0.0, seen: Seen | None = None
) -> AsyncGenerator[BalancingPlugin]:
    with one_exception():
        async with trio.open_nursery() as nursery:
            workers = [
                BalancedWorker(
                    url=site.url,
                    plugin=WorkerPlugin(
                        "w",
                        site.launch,
                        Handlers(),
                        nursery=nursery,
                        observe=Seen() if seen is None else seen,
                        limits=Limits(),
                        connect_timeout_s=Timeouts().connect_s,
                        url=site.url,
                    ),
                    check_health=site.check_health,
                )
                for site in sites
            ]
            plugin = BalancingPlugin("w", workers, nursery=nursery, randomness=NoChance(chance))
            plugin.start()
            try:
                await trio.testing.wait_all_tasks_blocked()
                yield plugin
            finally:
                plugin.stop()


async def call(
    plugin: BalancingPlugin, input: Any = None, *, step: str | None = None, attempt: int = 1
) -> Any:
    return await plugin.execute(
        "/x",
        input,
        attempt=attempt,
        observability=Observability(span_id=step),
        deadline=float("inf"),
    )


def overloaded(_input: Any) -> Any:
    raise RpcError(ErrorCode.OVERLOADED, "busy", {"retry_after_s": 1})


# ---- who gets a call ------------------------------------------------------------------------------------


async def test_calls_one_after_another_go_to_each_worker_in_its_turn(autojump_clock: Any) -> None:
    sites = [Site("a"), Site("b"), Site("c")]
    async with balanced(*sites) as plugin:
        assert [await call(plugin) for _ in range(7)] == ["a", "b", "c", "a", "b", "c", "a"]


async def test_calls_at_once_go_to_those_with_least_to_do(autojump_clock: Any) -> None:
    sites = [Site("a"), Site("b"), Site("c")]
    for site in sites:
        site.release = trio.Event()
    async with balanced(*sites) as plugin, trio.open_nursery() as nursery:
        for _ in range(9):
            nursery.start_soon(call, plugin)
        await trio.testing.wait_all_tasks_blocked()
        assert [site.running for site in sites] == [3, 3, 3]
        assert sites[1].release is not None
        sites[1].release.set()
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            assert await call(plugin) == "b"
        for site in sites:
            if site.release is not None:
                site.release.set()


async def test_a_single_worker_gets_everything(autojump_clock: Any) -> None:
    async with balanced(Site("a")) as plugin:
        assert [await call(plugin, step="s") for _ in range(3)] == ["a"] * 3
    with pytest.raises(ValueError, match="at least one"):
        async with balanced():
            pass


# ---- workers that cannot be reached ---------------------------------------------------------------------


async def test_a_worker_that_is_not_there_costs_no_call(autojump_clock: Any) -> None:
    gone, there = Site("gone"), Site("there")
    gone.is_there = False
    async with balanced(gone, there) as plugin:
        assert [await call(plugin) for _ in range(4)] == ["there"] * 4
        assert plugin.problem is None
        assert trio.current_time() < 1


async def test_a_worker_that_cannot_be_initialized_is_passed_over_in_the_same_attempt(
    autojump_clock: Any,
) -> None:
    strange, fine = Site("strange"), Site("fine")
    strange.version = 2
    async with balanced(strange, fine) as plugin:
        assert [await call(plugin) for _ in range(3)] == ["fine"] * 3


async def test_a_worker_that_dies_in_a_call_fails_the_call_and_the_next_attempt_is_elsewhere(
    autojump_clock: Any,
) -> None:
    dying, other = Site("dying"), Site("other")
    dying.release = trio.Event()
    async with balanced(dying, other) as plugin:
        failures: list[StepFailure] = []

        async def failing() -> None:
            with pytest.raises(StepFailure) as caught:
                await call(plugin, step="s")
            failures.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(failing)
            await trio.testing.wait_all_tasks_blocked()
            await dying.die()
        assert failures[0].kind is FailureKind.TRANSPORT
        assert failures[0].error.code == ErrorCode.CONNECTION_LOST
        assert "worker w at http://dying/" in failures[0].error.message
        assert [await call(plugin, step="s", attempt=2) for _ in range(4)] == ["other"] * 4


async def test_that_this_machine_has_no_connection_to_make_is_held_against_no_worker(
    autojump_clock: Any,
) -> None:
    sites = [Site("a"), Site("b")]
    for site in sites:
        site.is_within_reach = False
    async with balanced(*sites) as plugin:
        with pytest.raises(StepFailure, match="no more files") as caught:
            await call(plugin)
        assert caught.value.kind is FailureKind.TRANSPORT
        with pytest.raises(StepFailure, match="no more files"):
            await plugin.list_components()
        await trio.sleep(100)
        assert len(sites[0].probed_at) > 5
        assert plugin.problem is None
        for site in sites:
            site.is_within_reach = True
        assert Counter([await call(plugin) for _ in range(4)]) == {"a": 2, "b": 2}


async def test_a_worker_that_comes_back_after_it_died_gets_calls_again_and_is_initialized_anew(
    autojump_clock: Any,
) -> None:
    site, other = Site("a"), Site("b")
    seen = Seen()
    async with balanced(site, other, seen=seen) as plugin:
        assert await call(plugin) == "a"
        await site.die()
        await trio.testing.wait_all_tasks_blocked()
        assert [await call(plugin) for _ in range(3)] == ["b"] * 3
        site.is_there = True
        await trio.sleep(30)
        assert Counter([await call(plugin) for _ in range(4)]) == {"a": 2, "b": 2}
    assert len(seen.of(WorkerStarted)) == 3


async def test_if_a_connection_was_lost_and_the_worker_is_well_it_is_back_at_once(
    autojump_clock: Any,
) -> None:
    site, other = Site("a"), Site("b")
    async with balanced(site, other) as plugin:
        site.release = trio.Event()

        async def failing() -> None:
            with pytest.raises(StepFailure):
                await call(plugin)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(failing)
            await trio.testing.wait_all_tasks_blocked()
            await site.die()
            site.is_there, site.release = True, None
        await trio.testing.wait_all_tasks_blocked()
        assert Counter([await call(plugin) for _ in range(4)]) == {"a": 2, "b": 2}
        assert trio.current_time() < 1


# ---- workers that are not well --------------------------------------------------------------------------


async def test_a_worker_that_is_not_healthy_finishes_what_it_has_and_gets_nothing_new(
    autojump_clock: Any,
) -> None:
    draining, other = Site("draining"), Site("other")
    draining.release = trio.Event()
    results: list[Any] = []
    async with balanced(draining, other) as plugin, trio.open_nursery() as nursery:

        async def run() -> None:
            results.append(await call(plugin))

        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        draining.is_well = False
        await trio.sleep(balancing.PROBE_INTERVAL_S + 0.5)
        assert [await call(plugin) for _ in range(4)] == ["other"] * 4
        assert results == []
        draining.release.set()
        await trio.testing.wait_all_tasks_blocked()
        assert results == ["draining"]
        assert draining.cancelled == 0
        draining.is_well = True
        await trio.sleep(60)
        assert Counter([await call(plugin) for _ in range(4)]) == {"draining": 2, "other": 2}


async def test_one_that_is_not_well_is_asked_less_and_less_often_up_to_every_half_minute(
    autojump_clock: Any,
) -> None:
    site = Site("a")
    site.is_well = False
    async with balanced(site, Site("b")):
        await trio.sleep(200)
    assert site.probed_at == [10, 11, 13, 17, 25, 41, 71, 101, 131, 161, 191]


async def test_one_that_is_well_is_asked_every_ten_seconds(autojump_clock: Any) -> None:
    site = Site("a")
    async with balanced(site):
        await trio.sleep(35)
    assert site.probed_at == [10, 20, 30]


async def test_chance_takes_up_to_a_fifth_off_every_delay(autojump_clock: Any) -> None:
    site = Site("a")
    site.is_well = False
    async with balanced(site, chance=1.0):
        await trio.sleep(12)
    assert site.probed_at == pytest.approx([8, 8.8, 10.4])


async def test_the_backoff_begins_anew_after_the_worker_was_well(autojump_clock: Any) -> None:
    site = Site("a")
    site.is_well = False
    async with balanced(site, Site("b")):
        await trio.sleep(12)
        site.is_well = True
        await trio.sleep(10)
        site.is_well = False
        await trio.sleep(5)
    assert site.probed_at == [10, 11, 13, 23, 24, 26]


async def test_asking_a_worker_may_go_wrong_in_any_way(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    site, other = Site("a"), Site("b")
    async with balanced(site, other) as plugin:

        async def broken() -> None:
            raise ZeroDivisionError("a mistake")

        plugin._workers[0].check_health = broken
        await trio.sleep(11)
        assert [await call(plugin) for _ in range(2)] == ["b", "b"]
    assert "ZeroDivisionError: a mistake" in caplog.text


# ---- if no worker is well -------------------------------------------------------------------------------


async def test_if_all_are_ejected_the_one_that_has_been_so_for_longest_is_tried(autojump_clock: Any) -> None:
    first, second = Site("first"), Site("second")
    async with balanced(first, second) as plugin:
        first.is_well = False
        await trio.sleep(10.5)
        second.is_well = False
        await trio.sleep(10)
        assert plugin.problem is not None
        assert "http://first/: " in plugin.problem
        assert "HTTP 503" in plugin.problem
        # Both are there, only not well: rather than failing at once, they get what there is to do.
        assert [await call(plugin) for _ in range(2)] == ["first", "first"]


async def test_if_all_are_gone_each_is_tried_in_its_turn_and_fails_as_a_transport_does(
    autojump_clock: Any,
) -> None:
    sites = [Site("a"), Site("b")]
    for site in sites:
        site.is_there = False
    async with balanced(*sites) as plugin:
        said: list[str] = []
        for attempt in range(1, 5):
            with pytest.raises(StepFailure) as caught:
                await call(plugin, step="s", attempt=attempt)
            assert caught.value.kind is FailureKind.TRANSPORT
            said.append(caught.value.error.message)
            await trio.sleep(0.1)
        tried = ["a" if "http://a/" in message else "b" for message in said]
        assert sorted(tried) == ["a", "a", "b", "b"]
        assert tried[:2] != tried[1:3], "by turns"
        sites[1].is_there = True
        await trio.sleep(60)
        assert await call(plugin, step="s", attempt=5) == "b"
        assert plugin.problem is None


async def test_a_call_that_an_ejected_worker_answers_brings_it_back_before_its_time(
    autojump_clock: Any,
) -> None:
    site = Site("a")
    site.is_there = False
    async with balanced(site) as plugin:
        await trio.sleep(100)
        site.is_there = True
        began = trio.current_time()
        assert await call(plugin) == "a"
        await trio.testing.wait_all_tasks_blocked()
        assert plugin.problem is None
        assert trio.current_time() - began < 1


# ---- attempts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skipped", [0, 1])
async def test_a_step_that_was_refused_is_tried_again_elsewhere(autojump_clock: Any, skipped: int) -> None:
    busy, idle = Site("busy"), Site("idle")
    async with balanced(*([busy, idle] if not skipped else [idle, busy])) as plugin:
        for _ in range(skipped):
            await call(plugin)
        busy.answer = overloaded
        with pytest.raises(StepFailure) as caught:
            await call(plugin, step="s")
        assert caught.value.error.code == ErrorCode.OVERLOADED
        assert caught.value.retry_after_s == 1
        # An odd number of calls in between, so that it would be the busy one's turn.
        assert await call(plugin) == "idle"
        assert await call(plugin, step="s", attempt=2) == "idle"
        assert plugin.problem is None, "to be busy is no illness"


async def test_a_component_that_fails_says_nothing_of_its_worker(autojump_clock: Any) -> None:
    def fail(_input: Any) -> Any:
        raise RpcError(ErrorCode.COMPONENT_FAILED, "no")

    sites = [Site("a"), Site("b")]
    for site in sites:
        site.answer = fail
    async with balanced(*sites) as plugin:
        for _ in range(4):
            with pytest.raises(StepFailure) as caught:
                await call(plugin, step="s")
            assert caught.value.kind is FailureKind.COMPONENT
        assert [site.has_begun for site in sites] == [2, 2]
        assert plugin.problem is None
        assert not plugin._failed_at


async def test_where_steps_failed_is_forgotten_in_time(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balancing, "MAX_REMEMBERED_STEPS", 3)
    site = Site("a")
    site.answer = overloaded
    async with balanced(site) as plugin:
        for number in range(10):
            with pytest.raises(StepFailure):
                await call(plugin, step=f"s{number}")
        assert list(plugin._failed_at) == ["s7", "s8", "s9"]
        site.answer = lambda input: input
        assert await call(plugin, 1, step="s8", attempt=2) == 1
        assert list(plugin._failed_at) == ["s7", "s9"]


# ---- cancellation ---------------------------------------------------------------------------------------


async def test_a_cancelled_call_cancels_its_component_and_counts_no_more(autojump_clock: Any) -> None:
    site, other = Site("a"), Site("b")
    site.release = trio.Event()
    async with balanced(site, other) as plugin:
        with trio.move_on_after(1) as scope:
            await call(plugin)
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert (site.running, site.cancelled) == (0, 1)
        assert [worker.live_calls for worker in plugin._workers] == [0, 0]
        site.release = None
        assert await call(plugin) == "b"
        assert await call(plugin) == "a"


async def test_a_call_that_waits_for_its_worker_to_start_can_be_cancelled(autojump_clock: Any) -> None:
    site = Site("a")
    is_slow = trio.Event()
    launch = site.launch

    @asynccontextmanager
    async def slow() -> AsyncGenerator[Started]:
        await is_slow.wait()
        async with launch() as started:
            yield started

    site.launch = slow  # type: ignore[method-assign]  # it takes its time
    async with balanced(site) as plugin:
        with trio.move_on_after(1) as scope:
            await call(plugin)
        assert scope.cancelled_caught
        assert plugin._workers[0].live_calls == 0
        is_slow.set()
        assert await call(plugin) == "a"
        assert site.has_begun == 1


# ---- what there is --------------------------------------------------------------------------------------


async def test_components_are_listed_by_any_worker_that_is_well(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sites = [Site("a"), Site("b"), Site("c")]
    sites[0].is_there = False
    for site in sites:
        site.components = ["/x", "/y"]
    async with balanced(*sites) as plugin:
        assert [info.component for info in await plugin.list_components()] == ["/x", "/y"]
        assert "offer the same" not in caplog.text


async def test_workers_that_do_not_offer_the_same_are_told_of(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sites = [Site("a"), Site("b")]
    sites[1].components = ["/x", "/new"]
    with caplog.at_level(logging.WARNING):
        async with balanced(*sites) as plugin:
            assert [info.component for info in await plugin.list_components()] == ["/x"]
    message = "http://a/ and http://b/ do not offer the same components, but differ in /new"
    assert message in caplog.text


async def test_one_that_does_not_list_is_not_waited_for(autojump_clock: Any) -> None:
    sites = [Site("a"), Site("b")]
    sites[0].list_delay_s = 20
    async with balanced(*sites) as plugin:
        assert [info.component for info in await plugin.list_components()] == ["/x"]
        assert trio.current_time() == balancing.LIST_GRACE_S


async def test_components_of_workers_that_are_gone_cannot_be_listed(autojump_clock: Any) -> None:
    sites = [Site("a"), Site("b")]
    for site in sites:
        site.is_there = False
    async with balanced(*sites) as plugin:
        for _ in range(2):
            with pytest.raises(StepFailure, match="cannot connect to http://"):
                await plugin.list_components()
        sites[1].is_there = True
        await trio.sleep(60)
        assert [info.component for info in await plugin.list_components()] == ["/x"]


async def test_its_repr_says_how_many_are_well(autojump_clock: Any) -> None:
    sites = [Site("a"), Site("b")]
    async with balanced(*sites) as plugin:
        assert repr(plugin) == "<BalancingPlugin w: 2 of 2 are well>"
        sites[0].is_well = False
        await trio.sleep(11)
        assert repr(plugin) == "<BalancingPlugin w: 1 of 2 are well>"


# ---- the sweep ------------------------------------------------------------------------------------------


async def calls_of_which_some_fail(cancellable: Cancellable) -> None:
    sites = [Site("a"), Site("b"), Site("c")]
    sites[0].is_there = False
    sites[1].answer = overloaded
    seen = Seen()
    with one_exception():
        async with balanced(*sites, seen=seen) as plugin:
            with cancellable:
                for attempt in range(1, 4):
                    with contextlib.suppress(StepFailure):
                        await call(plugin, step="s", attempt=attempt)
                await plugin.list_components()
            await trio.testing.wait_all_tasks_blocked()
            assert [worker.live_calls for worker in plugin._workers] == [0, 0, 0]
            assert [site.running for site in sites] == [0, 0, 0]
            sites[1].answer = lambda _input: "b"
            assert {await call(plugin) for _ in range(2)} == {"b", "c"}


def test_calls_can_be_cancelled_anywhere_and_leave_nothing() -> None:
    report = cancel_everywhere(calls_of_which_some_fail)
    assert report.caught >= 4, f"the sweep is hollow: {report}"
