"""docs/protocol.md, section 7: two budgets, one count of attempts, exact delays."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from runtime_stage import OpenRunStore, Seen, Stage, flow, one_step, retrying, step

from stepflow_trio import ComponentError, Context, ErrorCode, RpcError, RunFailed, open_runtime
from stepflow_trio.engine import Handlers, Link, open_connection
from stepflow_trio.flows.results import Success
from stepflow_trio.protocol import methods
from stepflow_trio.protocol.payloads import ExecuteParams, ExecuteResult
from stepflow_trio.protocol.peer import Role
from stepflow_trio.runtime.events import StepEnded, StepRetrying, StepStarted, WorkerStarted
from stepflow_trio.runtime.retries import Exponential, Fibonacci

TRANSPORT, COMPONENT, OWN, WORKER, INTERNAL = -32300, -32100, -32150, -32000, -32603


class FailingStage(Stage):
    """Its component `/fails` fails with these errors, one after the other, then succeeds."""

    def __init__(self, *errors: tuple[int, str, Any]) -> None:
        super().__init__()
        self.errors = list(errors)
        self.worker.add_component(self._fails, path="/fails")

    async def _fails(self, context: Context) -> str:
        self._note("fails", context)
        if self.errors:
            raise RpcError(*self.errors.pop(0))
        return "done"


def failing(*codes: int) -> FailingStage:
    return FailingStage(*((code, f"failure {n}", None) for n, code in enumerate(codes, 1)))


def on_error(action: str, **more: Any) -> dict[str, Any]:
    return one_step("/w/fails", {}, onError={"action": action, **more})


PLAIN = one_step("/w/fails", {})


# ---- which budget ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_a_transport_error_is_retried_as_often_as_the_configuration_says(
    autojump_clock: Any, retries: int
) -> None:
    stage = failing(*[TRANSPORT] * retries)
    async with open_runtime(retrying(retries), workers={"w": stage.worker}) as runtime:
        assert await runtime.run(PLAIN) == "done"
    assert stage.attempts == list(range(1, retries + 2))


async def test_one_transport_error_more_than_the_budget_is_the_run_s_last_error(autojump_clock: Any) -> None:
    stage = failing(*[TRANSPORT] * 9)
    async with open_runtime(retrying(3), workers={"w": stage.worker}) as runtime:
        with pytest.raises(RunFailed, match="failure 4") as caught:
            await runtime.run(PLAIN)
    assert caught.value.code == TRANSPORT
    assert stage.attempts == [1, 2, 3, 4]


@pytest.mark.parametrize("code", [COMPONENT, -32101, OWN, -32199])
async def test_a_component_error_is_retried_only_where_the_step_says_so(
    autojump_clock: Any, code: int
) -> None:
    stage = failing(code)
    async with open_runtime(retrying(), workers={"w": stage.worker}) as runtime:
        with pytest.raises(RunFailed) as caught:
            await runtime.run(PLAIN)
        assert (caught.value.code, stage.attempts) == (code, [1])
        stage.errors[:] = [(code, "again", None)]
        assert await runtime.run(on_error("retry")) == "done"
    assert stage.attempts == [1, 1, 2]


@pytest.mark.parametrize("max_retries", [0, 1, 2])
async def test_a_step_is_retried_as_often_as_it_says_and_then_fails_with_its_last_error(
    autojump_clock: Any, max_retries: int
) -> None:
    stage = failing(*[OWN] * 9)
    async with open_runtime(retrying(), workers={"w": stage.worker}) as runtime:
        with pytest.raises(RunFailed, match=f"failure {max_retries + 1} "):
            await runtime.run(on_error("retry", maxRetries=max_retries))
    assert stage.attempts == list(range(1, max_retries + 2))


async def test_a_step_that_does_not_say_how_often_is_retried_3_times(autojump_clock: Any) -> None:
    stage = failing(*[OWN] * 9)
    async with open_runtime(retrying(), workers={"w": stage.worker}) as runtime:
        with pytest.raises(RunFailed, match="failure 4 "):
            await runtime.run(on_error("retry"))


@pytest.mark.parametrize("code", [WORKER, -32001, -32010, -32050, -32202, INTERNAL, -32602, -32800, 17])
async def test_other_errors_are_never_retried(autojump_clock: Any, code: int) -> None:
    stage = failing(code)
    async with open_runtime(retrying(), workers={"w": stage.worker}) as runtime:
        with pytest.raises(RunFailed) as caught:
            await runtime.run(on_error("retry"))
    assert caught.value.code == code
    assert stage.attempts == [1]
    assert trio.current_time() == 0


@pytest.mark.parametrize(
    "codes",
    [
        [TRANSPORT, TRANSPORT, OWN, OWN],
        [OWN, OWN, TRANSPORT, TRANSPORT],
        [OWN, TRANSPORT, OWN, TRANSPORT],
    ],
    ids=str,
)
async def test_the_two_budgets_are_separate_and_the_attempts_are_counted_together(
    autojump_clock: Any, codes: Sequence[int]
) -> None:
    stage = failing(*codes)
    async with open_runtime(retrying(2), workers={"w": stage.worker}) as runtime:
        assert await runtime.run(on_error("retry", maxRetries=2)) == "done"
        assert stage.attempts == [1, 2, 3, 4, 5]
        stage.errors[:] = [(code, "once more", None) for code in [*codes, codes[-1]]]
        with pytest.raises(RunFailed, match="once more") as caught:
            await runtime.run(on_error("retry", maxRetries=2))
        assert caught.value.code == codes[-1]


async def test_every_step_has_budgets_of_its_own(autojump_clock: Any) -> None:
    stage = failing(*[TRANSPORT] * 4)
    two = flow(step("a", "/w/fails", {}), step("b", "/w/fails", {}), output=[{"$step": "a"}, {"$step": "b"}])
    async with open_runtime(retrying(2), workers={"w": stage.worker}) as runtime:
        assert await runtime.run(two) == ["done", "done"]


# ---- useDefault -----------------------------------------------------------------------------------------


async def test_use_default_applies_only_when_the_transport_budget_is_used_up(autojump_clock: Any) -> None:
    stage = failing(TRANSPORT)
    default = on_error("useDefault", defaultValue="default")
    async with open_runtime(retrying(1), workers={"w": stage.worker}) as runtime:
        assert await runtime.run(default) == "done"
        stage.errors[:] = [(TRANSPORT, "x", None)] * 2
        assert await runtime.run(default) == "default"
    assert stage.attempts == [1, 2, 1, 2]


async def test_use_default_takes_the_place_of_a_component_error_at_once(autojump_clock: Any) -> None:
    stage = failing(OWN)
    async with open_runtime(retrying(), workers={"w": stage.worker}) as runtime:
        assert await runtime.run(on_error("useDefault")) is None
    assert stage.attempts == [1]


# ---- delays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backoff", "times"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6]),
        (Fibonacci(), [0, 1, 2, 4, 7, 12, 20]),
        (Fibonacci(min_delay_s=2, max_delay_s=5), [0, 2, 4, 8, 13, 18, 23]),
        (Exponential(min_delay_s=0.5, max_delay_s=3, factor=2), [0, 0.5, 1.5, 3.5, 6.5, 9.5, 12.5]),
    ],
    ids=["constant", "fibonacci", "fibonacci with bounds", "exponential"],
)
async def test_attempts_begin_exactly_when_the_backoff_says_whatever_the_reason(
    autojump_clock: Any, backoff: Any, times: list[float]
) -> None:
    stage = failing(TRANSPORT, OWN, OWN, TRANSPORT, TRANSPORT, OWN)
    config = retrying(3, backoff=backoff)
    async with open_runtime(config, workers={"w": stage.worker}) as runtime:
        assert await runtime.run(on_error("retry")) == "done"
    assert stage.times == pytest.approx(times)


async def test_jitter_follows_from_the_randomness_that_was_given(autojump_clock: Any) -> None:
    async def delays(seed: int) -> list[float]:
        stage, seen = failing(*[TRANSPORT] * 3), Seen()
        async with open_runtime(
            retrying(3, jitter=0.5),
            workers={"w": stage.worker},
            randomness=random.Random(seed),  # noqa: S311 — jitter
            on_event=seen,
        ) as runtime:
            await runtime.run(PLAIN)
        told = [event.delay_s for event in seen.of(StepRetrying)]
        taken = [later - earlier for earlier, later in zip(stage.times, stage.times[1:], strict=False)]
        assert taken == pytest.approx(told)
        return told

    first, again, other = await delays(1), await delays(1), await delays(2)
    assert first == again != other
    assert all(0.5 <= delay <= 1.5 for delay in first)
    assert len(set(first)) == 3


@pytest.mark.parametrize(
    ("hint", "delay_s"), [(7.5, 7.5), (0.2, 1.0), (None, 1.0), ("soon", 1.0), (-4, 1.0), (1e308, 300)]
)
async def test_an_overloaded_worker_is_left_alone_as_long_as_it_asks_for(
    autojump_clock: Any, hint: Any, delay_s: float
) -> None:
    stage = FailingStage((ErrorCode.OVERLOADED, "full", {"retry_after_s": hint}))
    async with open_runtime(retrying(), workers={"w": stage.worker}) as runtime:
        assert await runtime.run(PLAIN) == "done"
    assert stage.times == [0, delay_s]


async def test_nothing_else_waits_while_a_step_waits_for_its_next_attempt(autojump_clock: Any) -> None:
    stage = FailingStage((ErrorCode.OVERLOADED, "full", {"retry_after_s": 100}))
    both = flow(
        step("slow", "/w/fails", {}),
        step("quick", "/w/sleep", {"seconds": 1}),
        step("after", "/w/wait", {"name": {"$coalesce": ["x", {"$step": "quick"}]}}),
        output=[{"$step": "slow"}, {"$step": "after"}],
    )
    stage.release.set()
    async with open_runtime(retrying(), workers={"w": stage.worker}) as runtime:
        assert await runtime.run(both) == ["done", "x"]
    assert stage.times[:2] in ([0, 0], [0, 1])
    assert trio.current_time() == 100


# ---- what is told ---------------------------------------------------------------------------------------


async def test_every_attempt_and_every_reason_is_told(autojump_clock: Any) -> None:
    stage, seen = failing(TRANSPORT, OWN), Seen()
    async with open_runtime(retrying(), workers={"w": stage.worker}, on_event=seen) as runtime:
        await runtime.run(on_error("retry"))
    assert [event.attempt for event in seen.of(StepStarted)] == [1, 2, 3]
    assert [(e.attempt, e.error.code, e.delay_s) for e in seen.of(StepRetrying)] == [
        (1, TRANSPORT, 1.0),
        (2, OWN, 1.0),
    ]
    assert [event.result for event in seen.of(StepEnded)] == [Success("done")]


# ---- what is not retried at all -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "input"),
    [
        ("/builtin/get_blob", {"blob_id": "0" * 64}),
        ("/builtin/get_blob", {"blob_id": 7}),
        ("/builtin/put_blob", {"data": 1, "blob_type": "nonsense"}),
        ("/builtin/load_file", {"path": "/no/such/file"}),
        ("/builtin/nope", {}),
        ("/nowhere/at/all", {}),
    ],
)
async def test_a_failure_of_the_runtime_s_own_components_is_not_retried(
    autojump_clock: Any, component: str, input: Any
) -> None:
    seen = Seen()
    async with open_runtime(retrying(), on_event=seen) as runtime:
        with pytest.raises(RunFailed):
            await runtime.run(one_step(component, input))
    assert len(seen.of(StepStarted)) == 1
    assert seen.of(StepRetrying) == []
    assert trio.current_time() == 0


# ---- a connection that is lost --------------------------------------------------------------------------


class DyingWorker:
    """Hangs up on what it executes in its first lives; in the one after, it answers with the attempt."""

    def __init__(self, deaths: int) -> None:
        self.deaths = deaths

    async def serve(self, link: Link) -> None:
        handlers = Handlers()
        over = trio.Event()
        is_doomed = self.deaths > 0
        self.deaths -= 1

        async def execute(params: ExecuteParams, _request: Any) -> ExecuteResult:
            if is_doomed:
                await trio.sleep(1)
                over.set()
                await trio.sleep_forever()
            return ExecuteResult(params.attempt)

        handlers.on_raw_request("initialize", lambda _params, _request: {"serverProtocolVersion": 1})
        handlers.on_request(methods.COMPONENTS_EXECUTE, execute)
        async with open_connection(link, handlers, role=Role.WORKER) as connection:
            async with trio.open_nursery() as nursery:

                async def hang_up() -> None:
                    await over.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(hang_up)
                await connection.wait_lost()
                nursery.cancel_scope.cancel()
            raise ConnectionAbortedError("dead")


async def test_a_lost_connection_fails_every_call_on_it_and_all_are_retried_on_a_new_one(
    autojump_clock: Any,
) -> None:
    seen = Seen()
    async with open_runtime(retrying(), workers={"w": DyingWorker(1)}, on_event=seen) as runtime:
        run = await runtime.submit(one_step("/w/x", {}), [None] * 20)
        await run.wait()
        assert run.results == [Success(2)] * 20
    assert len(seen.of(WorkerStarted)) == 2
    assert {event.error.code for event in seen.of(StepRetrying)} == {ErrorCode.CONNECTION_LOST}
    assert trio.current_time() == 2


async def test_a_worker_that_dies_again_and_again_uses_the_budget_up(autojump_clock: Any) -> None:
    seen, store = Seen(), OpenRunStore()
    async with open_runtime(
        retrying(2), workers={"w": DyingWorker(99)}, on_event=seen, run_store=store
    ) as runtime:
        with pytest.raises(RunFailed, match="dead") as caught:
            await runtime.run(one_step("/w/x", {}))
    assert caught.value.code == ErrorCode.CONNECTION_LOST
    assert len(seen.of(StepStarted)) == len(seen.of(WorkerStarted)) == 3
    assert store.statuses == ["failed"]


async def test_a_code_of_the_component_author_s_own_is_retried_where_the_step_says_so(
    autojump_clock: Any,
) -> None:
    tries = 0
    stage = Stage()

    @stage.component
    async def flaky() -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ComponentError("not yet", code=-32110)
        return tries

    async with open_runtime(retrying(), workers={"w": stage.worker}) as runtime:
        assert await runtime.run(one_step("/w/flaky", {}, onError={"action": "retry"})) == 3
    assert trio.current_time() == 2


async def test_an_exception_that_nobody_foresaw_counts_as_a_component_error(autojump_clock: Any) -> None:
    stage = Stage()
    tries = 0

    @stage.component
    async def buggy() -> int:
        nonlocal tries
        tries += 1
        return 1 // (tries - 1)

    async with open_runtime(retrying(), workers={"w": stage.worker}) as runtime:
        with pytest.raises(RunFailed, match="ZeroDivisionError") as caught:
            await runtime.run(one_step("/w/buggy", {}))
        assert caught.value.code == ErrorCode.COMPONENT_FAILED
        tries = 0
        assert await runtime.run(one_step("/w/buggy", {}, onError={"action": "retry"})) == 1
