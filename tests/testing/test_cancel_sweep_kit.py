"""The sweep finds what it promises to find: each test here breaks one promise on purpose."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable

import pytest
import trio

from stepflow_trio.testing import (
    AllPoints,
    Cancellable,
    CancelStrategy,
    EveryNth,
    FirstN,
    RandomSample,
    SweepFailure,
    cancel_everywhere,
)
from stepflow_trio.testing import cancellation as sweep_module


async def five_naps(cancellable: Cancellable) -> None:
    with cancellable:
        for _ in range(5):
            await trio.sleep(1)


def test_every_step_is_cancelled_once_and_the_last_run_completes() -> None:
    report = cancel_everywhere(five_naps)
    assert (report.steps, report.injections, report.caught) == (5, 6, 6)


def test_a_step_behind_the_last_checkpoint_is_cancelled_in_vain() -> None:
    async def handed_over(cancellable: Cancellable) -> None:
        send, receive = trio.open_memory_channel[int](0)
        async with send, receive, trio.open_nursery() as nursery:
            nursery.start_soon(send.send, 1)
            await trio.testing.wait_all_tasks_blocked()
            with cancellable:
                assert await receive.receive() == 1
            nursery.cancel_scope.cancel()

    report = cancel_everywhere(handed_over)
    assert report.caught < report.injections


@pytest.mark.parametrize(
    ("strategy", "points"),
    [
        (AllPoints(), [0, 1, 2, 3, 4, 5]),
        (EveryNth(2), [0, 2, 4]),
        (FirstN(3), [0, 1, 2]),
        (RandomSample(100), [0, 1, 2, 3, 4, 5]),
        (RandomSample(2, seed=1), None),
    ],
)
def test_a_strategy_chooses_the_points(strategy: CancelStrategy, points: list[int] | None) -> None:
    reasons: list[str] = []

    async def noting(cancellable: Cancellable) -> None:
        with cancellable as scope:
            try:
                for _ in range(5):
                    await trio.sleep(1)
            finally:
                if scope.cancel_called:
                    reasons.append(str(trio.current_time()))

    report = cancel_everywhere(noting, strategy=strategy)
    assert len(reasons) == report.injections == (2 if points is None else len(points))


def test_a_random_sample_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    samples = [list(RandomSample(10, seed).points(1000)) for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]
    assert samples[0] == sorted(samples[0])


def test_a_scenario_takes_the_same_steps_for_the_same_seed() -> None:
    orders: list[list[int]] = []

    async def crowd(cancellable: Cancellable) -> None:
        order: list[int] = []
        orders.append(order)

        async def one(number: int) -> None:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
                order.append(number)

        with cancellable:
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(one, number)

    for seed in (0, 0, 1):
        cancel_everywhere(crowd, strategy=FirstN(0), seed=seed)
    assert orders[0] == orders[1] != orders[2]


def test_a_failure_names_the_scenario_the_point_the_place_and_how_to_replay_it() -> None:
    async def forgetful(cancellable: Cancellable) -> None:
        held = True
        with cancellable:
            await trio.sleep(1)
            held = False
            await trio.sleep(1)
        assert not held, "the lock is still held"

    with pytest.raises(SweepFailure) as caught:
        cancel_everywhere(forgetful, seed=3)
    message = str(caught.value)
    assert "forgetful, cancelled before scheduler step 0" in message
    assert "the lock is still held" in message
    assert message.endswith("forgetful, seed=3, only=0)")
    assert isinstance(caught.value.__cause__, AssertionError)

    with pytest.raises(SweepFailure, match=r"step 1 \(.*test_cancel_sweep_kit.py:\d+\)") as again:
        cancel_everywhere(forgetful, seed=3, only=1)
    assert again.value.point == 1
    assert cancel_everywhere(five_naps, only=2).injections == 1


def test_a_scenario_that_fails_by_itself_is_said_to() -> None:
    async def broken(cancellable: Cancellable) -> None:
        with cancellable:
            raise LookupError("no such thing")

    with pytest.raises(SweepFailure, match=r"although it is not cancelled: LookupError: no such thing"):
        cancel_everywhere(broken)


def test_a_scenario_that_forgets_its_cancellable_part_is_told() -> None:
    async def aloof(_cancellable: Cancellable) -> None:
        await trio.sleep(1)

    with pytest.raises(SweepFailure, match="never entered"):
        cancel_everywhere(aloof)


def test_a_swallowed_cancellation_is_found() -> None:
    async def swallowing(cancellable: Cancellable) -> None:
        with cancellable, contextlib.suppress(trio.Cancelled):
            await trio.sleep(1)

    with pytest.raises(SweepFailure, match="swallowed"):
        cancel_everywhere(swallowing)


def test_a_shielded_wait_with_its_own_deadline_is_no_swallowed_cancellation() -> None:
    async def farewell(cancellable: Cancellable) -> None:
        with cancellable, trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await trio.sleep(10)

    assert cancel_everywhere(farewell).caught == 0


def test_a_scenario_that_does_not_end_is_found_with_its_tasks() -> None:
    async def lingering(cancellable: Cancellable) -> None:
        with cancellable as scope:
            await trio.sleep(1)
        if scope.cancelled_caught:
            await trio.sleep(6)

    with pytest.raises(SweepFailure, match=r"TooSlowError: .* 5 virtual seconds") as caught:
        cancel_everywhere(lingering)
    assert "test_cancel_sweep_kit.py:" in str(caught.value).partition("virtual seconds")[2]
    assert cancel_everywhere(lingering, within_s=7).injections == 2


def test_a_deadlock_is_found_even_uncancelled() -> None:
    async def deadlocked(cancellable: Cancellable) -> None:
        with cancellable:
            await trio.sleep_forever()

    with pytest.raises(SweepFailure, match="although it is not cancelled: TooSlowError"):
        cancel_everywhere(deadlocked)


def test_a_scenario_that_spins_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "_MAX_STEPS_AFTER", 1000)

    async def spinning(cancellable: Cancellable) -> None:
        with cancellable as scope:
            await trio.sleep(1)
        while scope.cancelled_caught:
            await trio.lowlevel.checkpoint()

    with pytest.raises(SweepFailure, match="spins"):
        cancel_everywhere(spinning)


def test_a_task_that_stays_is_found() -> None:
    async def leaving_a_task(cancellable: Cancellable) -> None:
        with cancellable:
            trio.lowlevel.spawn_system_task(trio.sleep_forever, name="the left one")
            await trio.sleep(1)

    with pytest.raises(SweepFailure, match=r"tasks are left.*the left one"):
        cancel_everywhere(leaving_a_task)


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="needs /dev/fd")
def test_a_descriptor_that_stays_open_is_found() -> None:
    opened: list[int] = []

    async def leaking(cancellable: Cancellable) -> None:
        with cancellable:
            opened.extend(os.pipe())
            await trio.sleep(1)
            while opened:
                os.close(opened.pop())

    try:
        with pytest.raises(SweepFailure, match=r"step 0 .*descriptors are still open: .*pipe"):
            cancel_everywhere(leaking)
    finally:
        for descriptor in opened:
            os.close(descriptor)


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_a_child_process_that_stays_is_found() -> None:
    started: list[subprocess.Popen[bytes]] = []

    def end(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    async def deserting(cancellable: Cancellable) -> None:
        with cancellable:
            started.append(subprocess.Popen(["sleep", "60"]))  # noqa: ASYNC220 — as sloppy code would do it
            await trio.sleep(1)
            end(started[-1])

    try:
        with pytest.raises(SweepFailure, match=r"step 0 .*child processes still run"):
            cancel_everywhere(deserting)
    finally:
        for process in started:
            end(process)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_finding(failure: Callable[[], BaseException]) -> None:
    async def interrupted(cancellable: Cancellable) -> None:
        with cancellable:
            raise failure()

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        cancel_everywhere(interrupted)
