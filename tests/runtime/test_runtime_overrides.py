"""Overrides of a run in this process: they change what runs, are on record, and leave the flow as it is."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from stepflow_trio import Worker, open_runtime
from stepflow_trio.errors import FlowInvalid, RpcError
from stepflow_trio.runtime.events import Event, RunStarted

FLOW = {
    "steps": [{"id": "only", "component": "/w/echo", "input": {"value": 1}}],
    "output": {"$step": "only"},
}


def worker() -> Worker:
    made = Worker()

    @made.component(inline=True)
    def echo(value: Any) -> Any:
        return value

    return made


def override(**step: Any) -> dict[str, Any]:
    return {"steps": {"only": {"value": step}}}


async def test_a_run_has_its_overrides_and_its_flow_s_id(autojump_clock: trio.abc.Clock) -> None:
    seen: list[Event] = []
    async with open_runtime(workers={"w": worker()}, on_event=seen.append) as runtime:
        assert await runtime.run(FLOW) == 1
        assert await runtime.run(FLOW, overrides=override(input={"value": 2})) == 2
        run = await runtime.submit(FLOW, [0, 0], overrides=override(input={"value": 3}))
        await run.wait()
        assert [result.result for result in run.results] == [3, 3]  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        assert await runtime.run(FLOW) == 1
    starts = [event for event in seen if isinstance(event, RunStarted)]
    assert len({event.flow_id for event in starts}) == 1
    assert [event.overrides for event in starts][1] == override(input={"value": 2})


async def test_overrides_that_do_not_fit_start_nothing(autojump_clock: trio.abc.Clock) -> None:
    seen: list[Event] = []
    async with open_runtime(workers={"w": worker()}, on_event=seen.append) as runtime:
        with pytest.raises(RpcError, match='did you mean "only"'):
            await runtime.run(FLOW, overrides={"steps": {"onyl": {"value": {}}}})
        with pytest.raises(RpcError, match=r'value\.componet: .* did you mean "component"') as refused:
            await runtime.submit(FLOW, [1], overrides=override(componet="/w/other"))
        assert refused.value.code == -32004
        with pytest.raises(RpcError, match='did you mean "steps"'):
            await runtime.run(FLOW, overrides={"stpes": {"only": {"value": {}}}})
        with pytest.raises(FlowInvalid, match="does not exist"):
            await runtime.submit(FLOW, [1], overrides=override(input={"$step": "nowhere"}))
    assert not any(isinstance(event, RunStarted) for event in seen)
