"""``ending.py``: last words under a deadline, and one exception out of a nursery."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from stepflow_trio.engine.ending import last_words, one_exception


class Failure(Exception):
    """What a test raises."""


async def run_in_nursery(*tasks: Callable[[], Awaitable[object]], body: BaseException | None = None) -> None:
    with one_exception():
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)
            if body is not None:
                raise body


def failing(exc: BaseException) -> Callable[[], Awaitable[object]]:
    async def fail() -> None:
        raise exc

    return fail


# ---- last words -----------------------------------------------------------------------------------------


async def test_last_words_are_said_although_the_task_is_cancelled(autojump_clock: Any) -> None:
    said: list[str] = []

    async def act() -> None:
        await trio.sleep(1)
        said.append("farewell")

    with trio.CancelScope() as scope:
        scope.cancel()
        assert await last_words(act, within_s=2) is True
        await trio.lowlevel.checkpoint()
        said.append("never")
    assert scope.cancelled_caught
    assert said == ["farewell"]


@pytest.mark.parametrize("cancelled", [True, False])
async def test_last_words_that_take_too_long_are_cut_off_at_their_deadline(
    autojump_clock: Any, cancelled: bool
) -> None:
    tidied: list[bool] = []

    async def act() -> None:
        try:
            await trio.sleep_forever()
        finally:
            tidied.append(True)

    began = trio.current_time()
    with trio.CancelScope() as scope:
        if cancelled:
            scope.cancel()
        assert await last_words(act, within_s=2) is False
        assert trio.current_time() == began + 2
        assert tidied == [True]
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught == cancelled


async def test_last_words_without_time_reach_their_first_checkpoint(autojump_clock: Any) -> None:
    steps: list[str] = []

    async def act() -> None:
        steps.append("begun")
        await trio.lowlevel.checkpoint()
        steps.append("never")

    assert await last_words(act, within_s=0) is False
    assert steps == ["begun"]


async def test_what_last_words_raise_comes_out(autojump_clock: Any) -> None:
    with pytest.raises(Failure):
        await last_words(failing(Failure()), within_s=1)


# ---- one exception --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["task", "body"])
async def test_a_single_exception_comes_out_bare_with_its_own_cause_and_context(
    autojump_clock: Any, where: str
) -> None:
    exc, cause, context = Failure("one"), ValueError("cause"), KeyError("context")
    exc.__cause__, exc.__context__ = cause, context
    tasks = [failing(exc)] if where == "task" else []
    with pytest.raises(Failure) as caught:
        await run_in_nursery(trio.sleep_forever, *tasks, body=exc if where == "body" else None)
    assert caught.value is exc
    assert (exc.__cause__, exc.__context__) == (cause, context)


async def test_several_exceptions_stay_a_group(autojump_clock: Any) -> None:
    one, other = Failure("one"), Failure("other")
    with pytest.raises(ExceptionGroup) as caught:
        await run_in_nursery(failing(one), failing(other))
    assert set(caught.value.exceptions) == {one, other}


async def test_only_the_nurserys_own_group_is_opened(autojump_clock: Any) -> None:
    inner = ExceptionGroup("the task's own", [Failure("one")])
    with pytest.raises(ExceptionGroup, match="the task's own") as caught:
        await run_in_nursery(failing(inner))
    assert repr(caught.value) == repr(inner)


async def test_a_failure_beside_a_cancellation_comes_out_bare(autojump_clock: Any) -> None:
    exc = Failure("one")

    async def cancelled_and_failing() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await run_in_nursery(trio.sleep_forever, trio.sleep_forever, body=exc)

    with pytest.raises(Failure) as caught:
        await cancelled_and_failing()
    assert caught.value is exc


async def test_a_cancellation_passes_through(autojump_clock: Any) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await run_in_nursery(trio.sleep_forever, trio.sleep_forever)
        pytest.fail("Cancelled was swallowed")
    assert scope.cancelled_caught


@pytest.mark.parametrize("exc", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
async def test_an_interrupt_comes_out_bare_too(autojump_clock: Any, exc: BaseException) -> None:
    with pytest.raises(type(exc)) as caught:
        await run_in_nursery(trio.sleep_forever, body=exc)
    assert caught.value is exc


async def test_without_an_exception_nothing_happens(autojump_clock: Any) -> None:
    await run_in_nursery(trio.lowlevel.checkpoint)
    with one_exception():
        pass
    with pytest.raises(Failure), one_exception():
        raise Failure
