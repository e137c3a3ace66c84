"""A run that was cancelled over REST is cancelled for good, whatever its worker makes of that."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import trio
from rest_stage import Client, open_client
from runtime_stage import RawWorker, Seen, Stage, flow, one_step, step
from trio.testing import wait_all_tasks_blocked

from stepflow_trio import Worker
from stepflow_trio.engine import Connection
from stepflow_trio.protocol.payloads import ExecuteParams
from stepflow_trio.runtime.events import StepStarted

ANSWERS_AFTER_S = 60


class Deaf(Stage):
    """A worker that hears no cancellation and answers a minute later, as if nothing had happened."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.answered = 0
        self.error = error
        self.worker = RawWorker(self._act)  # type: ignore[assignment]

    async def _act(self, _connection: Connection, _params: ExecuteParams) -> Any:
        self.began.append("deaf")
        with trio.CancelScope(shield=True):
            await trio.sleep(ANSWERS_AFTER_S)
        self.answered += 1
        if self.error is not None:
            raise self.error
        return "done all the same"


async def status_of(client: Client, run: dict[str, Any]) -> str:
    return (await client.get(f"/runs/{run['runId']}"))["status"]


@pytest.mark.parametrize("error", [None, ValueError("late")], ids=["answers", "fails"])
async def test_a_run_stays_cancelled_although_its_worker_does_not_listen_and_answers_later(
    autojump_clock: Any, error: Exception | None
) -> None:
    seen = Seen()
    async with open_client(Deaf(error), on_event=seen) as client:
        tested = flow(step("first", "/w/x"), step("second", "/w/x", {"$step": "first"}))
        run = await client.submit(tested, 1, 2)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        cancelled = (await client.call("POST", f"/runs/{run['runId']}/cancel")).json
        assert cancelled["status"] == "cancelled"
        assert trio.current_time() - began < ANSWERS_AFTER_S / 2, "it waited for the worker"
        waited = await client.get(f"/runs/{run['runId']}?wait=true")
        assert waited["status"] == "cancelled"
        for _ in range(2 * ANSWERS_AFTER_S):
            await trio.sleep(1)
            assert await status_of(client, run) == "cancelled"
        assert await client.get("/runs?status=completed") == await client.get("/runs?status=failed")
        assert [event.step_id for event in seen.of(StepStarted)] == ["first", "first"]
        details = await client.get(f"/runs/{run['runId']}")
        assert [item["status"] for item in details["itemDetails"]] == ["cancelled", "cancelled"]
        assert (await client.call("POST", f"/runs/{run['runId']}/cancel")).status == 409


async def test_components_hear_of_it_at_once_and_may_clean_up_while_the_run_is_cancelled_already(
    autojump_clock: Any,
) -> None:
    stage = Stage()
    heard: list[float] = []
    cleaned_up: list[float] = []

    @stage.component
    async def tidies() -> None:
        try:
            await trio.sleep_forever()
        finally:
            heard.append(trio.current_time())
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            cleaned_up.append(trio.current_time())

    async with open_client(stage) as client:
        run = await client.submit(one_step("/w/tidies", {}), None)
        await trio.sleep(10)
        await client.call("POST", f"/runs/{run['runId']}/cancel")
        await wait_all_tasks_blocked()
        assert (heard, await status_of(client, run)) == ([10], "cancelled")
        await trio.sleep(5)
        assert (cleaned_up, await status_of(client, run)) == ([12], "cancelled")


async def test_a_thread_that_cannot_be_cancelled_changes_nothing_of_its_cancelled_run() -> None:
    release, running, stage = threading.Event(), threading.Event(), Stage()
    stage.worker = Worker()

    @stage.component
    def blocks() -> str:
        running.set()
        release.wait(20)
        return "done all the same"

    async with open_client(stage) as client:
        try:
            run = await client.submit(one_step("/w/blocks", {}), None)
            await trio.to_thread.run_sync(running.wait, 10)
            with trio.fail_after(10):
                cancelled = (await client.call("POST", f"/runs/{run['runId']}/cancel")).json
            assert cancelled["status"] == "cancelled"
        finally:
            release.set()
        await trio.testing.wait_all_threads_completed()
        await wait_all_tasks_blocked(0.05)
        assert await status_of(client, run) == "cancelled"
