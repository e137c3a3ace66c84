"""What takes too long ends on the second, with an error of its own: a step, a run, a worker's start."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from runtime_stage import (
    OpenRunStore,
    Seen,
    Stage,
    flow,
    one_step,
    processes,
    raw_plugin,
    retrying,
    running,
    step,
)

from stepflow_trio import Context, ErrorCode, RunFailed, open_runtime
from stepflow_trio.errors import ConfigError
from stepflow_trio.flows.results import Failed
from stepflow_trio.runtime.config import Config, HttpProcessPluginConfig, read_config
from stepflow_trio.runtime.events import StepRetrying
from stepflow_trio.runtime.timeouts import Timeouts

WAIT = one_step("/w/wait", {"name": "it"})


def within(**timeouts: float) -> Config:
    return dataclasses.replace(retrying(0), timeouts=Timeouts(**timeouts))


async def failure(runtime: Any, tested: dict[str, Any], input: Any = None) -> RunFailed:
    with pytest.raises(RunFailed) as caught:
        await runtime.run(tested, input)
    return caught.value


# ---- steps ----------------------------------------------------------------------------------------------


async def test_a_step_that_takes_longer_than_the_configuration_lets_it_fails_on_the_second(
    autojump_clock: Any,
) -> None:
    stage = Stage()
    async with open_runtime(within(step_s=2.5), workers={"w": stage.worker}) as runtime:
        failed = await failure(runtime, WAIT)
        assert (trio.current_time(), failed.code) == (2.5, ErrorCode.STEP_TIMED_OUT)
        assert failed.message == 'step "only" was not done within 2.5 s'
        assert failed.data == {"timeout_s": 2.5}
        await trio.testing.wait_all_tasks_blocked()
        assert stage.cancelled == ["it"], "the component was left running"
        assert await runtime.run(one_step("/w/sleep", {"seconds": 2})) == 2


async def test_a_steps_own_time_goes_before_that_of_the_configuration(autojump_clock: Any) -> None:
    stage = Stage()
    async with open_runtime(within(step_s=2), workers={"w": stage.worker}) as runtime:
        assert await runtime.run(one_step("/w/sleep", {"seconds": 5}, timeoutSecs=6)) == 5
        began = trio.current_time()
        failed = await failure(runtime, one_step("/w/wait", {"name": "it"}, timeoutSecs=0.5))
        assert (trio.current_time() - began, failed.code) == (0.5, ErrorCode.STEP_TIMED_OUT)


async def test_a_step_that_says_so_is_tried_again_after_its_time_was_up(autojump_clock: Any) -> None:
    stage, seen = Stage(), Seen()

    @stage.component
    async def slow_at_first(context: Context) -> int:
        if context.attempt < 3:
            await trio.sleep_forever()
        return context.attempt

    tested = one_step("/w/slow_at_first", {}, timeoutSecs=1, onError={"action": "retry", "maxRetries": 2})
    async with open_runtime(retrying(0), workers={"w": stage.worker}, on_event=seen) as runtime:
        assert await runtime.run(tested) == 3
    assert [each.error.code for each in seen.of(StepRetrying)] == [ErrorCode.STEP_TIMED_OUT] * 2
    assert trio.current_time() == 4.0, "two attempts of a second, two pauses of a second"


async def test_the_default_stands_in_for_a_step_that_took_too_long(autojump_clock: Any) -> None:
    stage = Stage()
    use_default = {"action": "useDefault", "defaultValue": "instead"}
    async with open_runtime(within(step_s=1), workers={"w": stage.worker}) as runtime:
        assert await runtime.run(one_step("/w/wait", {"name": "it"}, onError=use_default)) == "instead"


async def test_a_slow_step_costs_only_itself_and_who_reads_it(autojump_clock: Any) -> None:
    stage = Stage()
    tested = flow(
        step("slow", "/w/wait", {"name": "it"}, timeoutSecs=1, onError={"action": "useDefault"}),
        step("quick", "/w/sleep", {"seconds": 3}),
        output={"slow": {"$step": "slow"}, "quick": {"$step": "quick"}},
    )
    async with open_runtime(retrying(0), workers={"w": stage.worker}) as runtime:
        assert await runtime.run(tested) == {"slow": None, "quick": 3}
        assert trio.current_time() == 3.0


async def test_a_worker_is_told_how_long_its_attempt_may_take(autojump_clock: Any) -> None:
    stage = Stage()
    async with open_runtime(within(step_s=7), workers={"w": stage.worker}) as runtime:
        await failure(runtime, WAIT)
        stage.release.set()
        with trio.fail_after(3):
            await runtime.run(WAIT)
    assert [round(deadline or 0, 6) for deadline in stage.deadlines] == [7.0, 10.0]


async def test_the_runs_that_a_step_waits_for_end_with_its_time(autojump_clock: Any) -> None:
    stage, store = Stage(), OpenRunStore()
    below = one_step("/w/wait", {"name": "below"})
    tested = one_step("/builtin/map", {"workflow": {"$literal": below}, "items": [1, 2]}, timeoutSecs=4)
    async with open_runtime(retrying(0), workers={"w": stage.worker}, run_store=store) as runtime:
        failed = await failure(runtime, tested)
        assert (trio.current_time(), failed.code) == (4.0, ErrorCode.STEP_TIMED_OUT)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.cancelled == ["below", "below"]
        assert store.statuses == ["failed", "cancelled"]


# ---- runs -----------------------------------------------------------------------------------------------


async def test_a_run_that_takes_longer_than_the_configuration_lets_it_fails_with_all_that_belongs_to_it(
    autojump_clock: Any,
) -> None:
    stage, store = Stage(), OpenRunStore()
    below = one_step("/w/wait", {"name": "below"})
    tested = one_step("/builtin/map", {"workflow": {"$literal": below}, "items": [1]})
    async with open_runtime(within(run_s=5), workers={"w": stage.worker}, run_store=store) as runtime:
        failed = await failure(runtime, tested)
        assert (trio.current_time(), failed.code) == (5.0, ErrorCode.RUN_TIMED_OUT)
        assert (failed.message, failed.data) == ("the run was not over within 5 s", {"timeout_s": 5.0})
        await trio.testing.wait_all_tasks_blocked()
        assert stage.cancelled == ["below"]
        assert store.records[0].status == "failed"
        assert store.records[1].status != "running"


async def test_the_time_of_a_run_is_that_of_all_its_items_and_no_retry_lengthens_it(
    autojump_clock: Any,
) -> None:
    stage = Stage()
    tested = one_step("/w/sleep", {"seconds": INPUT_SECONDS}, onError={"action": "retry", "maxRetries": 9})
    async with open_runtime(within(run_s=5), workers={"w": stage.worker}) as runtime:
        run = await runtime.submit(tested, [{"seconds": n} for n in (2, 2, 2, 9)], max_concurrency=1)
        await run.wait()
        assert trio.current_time() == 5.0
    codes = [result.error.code if isinstance(result, Failed) else 0 for result in run.results]
    assert codes == [0, 0, ErrorCode.RUN_TIMED_OUT, ErrorCode.RUN_TIMED_OUT]


INPUT_SECONDS = {"$input": "seconds"}


async def test_a_default_does_not_save_a_run_whose_time_is_up(autojump_clock: Any) -> None:
    stage = Stage()
    tested = one_step("/w/wait", {"name": "it"}, onError={"action": "useDefault", "defaultValue": 1})
    async with open_runtime(within(run_s=5), workers={"w": stage.worker}) as runtime:
        assert (await failure(runtime, tested)).code == ErrorCode.RUN_TIMED_OUT


async def test_the_shorter_of_a_submissions_deadline_and_the_configured_time_counts(
    autojump_clock: Any,
) -> None:
    stage = Stage()
    async with open_runtime(within(run_s=5), workers={"w": stage.worker}) as runtime:
        for asked, ends in [(3.0, 3.0), (30.0, 3.0 + 5.0)]:
            run = await runtime.submit(WAIT, [None], deadline=trio.current_time() + asked)
            await run.wait()
            assert trio.current_time() == ends


@pytest.mark.parametrize(
    ("given", "late", "told"),
    [
        ({"timeout_s": 3.125}, 0, 3.125),
        ({"timeout_s": 3.125, "deadline": 9}, 0.1, 3.125),
        ({"deadline": 3.125}, 0, 3.1),
        ({"timeout_s": 9, "deadline": 0.1}, 0.0003, 0.1),
        ({"deadline": 125.4}, 0, 125),
        ({"timeout_s": 500}, 0, 200.05),
    ],
    ids=str,
)
async def test_a_run_says_the_time_that_it_was_given_and_no_digits_that_nobody_gave(
    autojump_clock: Any, given: dict[str, float], late: float, told: float
) -> None:
    stage = Stage()
    async with open_runtime(within(run_s=200.05), workers={"w": stage.worker}) as runtime:
        if "deadline" in given:
            given = {**given, "deadline": trio.current_time() + given["deadline"] - late}
        run = await runtime.submit(WAIT, [None], **given)
        await run.wait()
    [result] = run.results
    assert isinstance(result, Failed)
    assert result.error.message == f"the run was not over within {told:g} s"
    assert result.error.data == {"timeout_s": told}


# ---- a worker's start -----------------------------------------------------------------------------------


async def test_a_worker_that_never_answers_initialize_is_given_up(tmp_path: Path) -> None:
    config = processes(w=raw_plugin(tmp_path, "time.sleep(60)"))
    config = dataclasses.replace(config, timeouts=Timeouts(connect_s=0.2))
    async with running(config) as runtime:
        failed = await failure(runtime, one_step("/w/x"))
    assert failed.code == ErrorCode.CONNECT_TIMED_OUT
    assert failed.message == "worker w did not answer initialize within 0.2 s"


async def test_a_worker_over_http_that_never_says_its_port_is_given_up(tmp_path: Path) -> None:
    stdio = raw_plugin(tmp_path, "time.sleep(60)")
    silent = HttpProcessPluginConfig(command=stdio.command, args=stdio.args, working_directory=tmp_path)
    config = dataclasses.replace(processes(w=stdio), plugins={"w": silent}, timeouts=Timeouts(connect_s=0.2))
    config = dataclasses.replace(config, routes=tuple(r for r in config.routes if "builtin" not in r.pattern))
    async with running(config) as runtime:
        failed = await failure(runtime, one_step("/w/x"))
    assert failed.code == ErrorCode.CONNECT_TIMED_OUT
    assert 'it wrote no line such as {"port": 8080} to its stdout within 0.2 s' in failed.message


# ---- what is written ------------------------------------------------------------------------------------


def configured(timeouts: str) -> Config:
    text = (
        f"plugins: {{b: {{type: builtin}}}}\nroutes: {{'/b/{{c}}': [{{plugin: b}}]}}\ntimeouts: {timeouts}\n"
    )
    return read_config(text, name="c.yml", directory=Path(), environ={})


def test_a_configuration_says_the_times_in_seconds() -> None:
    assert configured("{stepSecs: 1.5, runSecs: 60, connectSecs: 3}").timeouts == Timeouts(
        step_s=1.5, run_s=60, connect_s=3
    )
    assert configured("{}").timeouts == Timeouts()


@pytest.mark.parametrize("value", ["0", "-1", "'5'", "true", ".inf", "1e300", "[]"])
def test_what_is_no_time_is_refused_with_its_place(value: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.yml:3:22: timeouts\.stepSecs: "):
        configured(f"{{stepSecs: {value}}}")


def test_a_misspelled_time_is_pointed_out() -> None:
    [warning] = configured("{stepSec: 5}").warnings
    assert 'did you mean "stepSecs"?' in warning
