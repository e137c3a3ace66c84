"""A submission of many inputs with secrets: others have their turns, and nothing is told too early."""

from __future__ import annotations

from typing import Any

import trio
from runtime_stage import OpenRunStore, Seen, Stage, flow, step

from stepflow_trio import open_runtime
from stepflow_trio.flows.secrets import REDACTED
from stepflow_trio.runtime.events import RunStarted, StepEnded
from stepflow_trio.runtime.redaction import INPUTS_AT_ONCE

COUNT = 10 * INPUTS_AT_ONCE
HEAD = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."


def echoing(*, is_secret: bool) -> dict[str, Any]:
    token = {"type": "string", "is_secret": is_secret}
    return {
        **flow(step("echo", "/w/echo", {"value": {"$input": "$.note"}})),
        "schemas": {"properties": {"input": {"properties": {"token": token}}}},
    }


def inputs() -> list[dict[str, str]]:
    """Each quotes the next one's secret; the first the last one's, too."""
    return [
        {"token": f"{HEAD}{n:06}-secret", "note": f"after {HEAD}{(n + 1) % COUNT:06}-secret"}
        for n in range(COUNT)
    ]


async def turns_of_others(runtime: Any, tried: dict[str, Any]) -> int:
    """How often another task has its turn until a submission is accepted."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        run = await runtime.submit(tried, inputs())
        nursery.cancel_scope.cancel()
    run.cancel()
    await run.wait()
    return turns


async def test_others_have_their_turns_while_the_secrets_of_many_inputs_are_looked_for() -> None:
    async with open_runtime(workers={"w": Stage().worker}) as runtime:
        turns = await turns_of_others(runtime, echoing(is_secret=True))
    # Once to learn them and once to hide them.
    assert turns >= 2 * COUNT // INPUTS_AT_ONCE


async def test_an_input_is_rid_of_what_is_secret_in_any_other(autojump_clock: Any) -> None:
    seen, store = Seen(), OpenRunStore()
    async with open_runtime(workers={"w": Stage().worker}, on_event=seen, run_store=store) as runtime:
        run = await runtime.submit(echoing(is_secret=True), inputs())
        await run.wait()
        assert run.status == "completed"
    [started] = seen.of(RunStarted)
    assert list(started.inputs) == [{"token": REDACTED, "note": f"after {REDACTED}"}] * COUNT
    assert len(seen.of(StepEnded)) == COUNT
    assert HEAD not in repr([*seen, store.records])


async def test_a_submission_that_is_cancelled_meanwhile_has_started_nothing(autojump_clock: Any) -> None:
    for turns in (1, 12, 2 * COUNT // INPUTS_AT_ONCE):
        seen, store = Seen(), OpenRunStore()
        async with open_runtime(workers={"w": Stage().worker}, on_event=seen, run_store=store) as runtime:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(runtime.submit, echoing(is_secret=True), inputs())
                    for _ in range(turns):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            assert scope.cancelled_caught
            assert store.records == []
            assert seen.of(RunStarted) == []
            # What it brought is let go of.
            assert runtime._redaction._runs == {}  # pyright: ignore[reportPrivateUsage]: not to be seen else
