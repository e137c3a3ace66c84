"""Workers in processes of their own: they share work, exit, are killed, hang and talk nonsense."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from runtime_stage import (
    OpenRunStore,
    Seen,
    failure_of,
    flow,
    has_children,
    one_step,
    open_descriptors,
    own_plugin,
    processes,
    raw_plugin,
    running,
    step,
    until,
)

from stepflow_trio import ErrorCode, Runtime, open_runtime
from stepflow_trio.engine import Limits
from stepflow_trio.flows.results import Failed, Success
from stepflow_trio.runtime import hosted_worker, launchers
from stepflow_trio.runtime.config import StdioPluginConfig, read_config
from stepflow_trio.runtime.events import StepRetrying, StepStarted, WorkerEnded, WorkerLine, WorkerStarted
from stepflow_trio.transports.process import StopLadder, open_process_link

QUICK = StopLadder(stdin_grace_s=0.3, term_grace_s=0.3, cancelled_grace_s=0.2)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Generator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before
    assert not has_children()


@pytest.fixture(autouse=True)
def quick_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for long until a worker that does not listen is killed."""
    monkeypatch.setattr(launchers, "open_process_link", partial(open_process_link, ladder=QUICK))


# ---- work that is shared --------------------------------------------------------------------------------


async def test_a_flow_runs_over_two_processes_and_a_blob_goes_from_one_to_the_other(tmp_path: Path) -> None:
    writer = own_plugin(
        tmp_path,
        """
        @worker.component
        async def write(text: str, context: Context) -> dict:
            return {"blob": await context.put_blob({"text": text}), "pid": os.getpid()}
        """,
    )
    reader = own_plugin(
        tmp_path,
        """
        @worker.component
        async def read(blob: str, context: Context) -> dict:
            return {"text": (await context.get_blob(blob))["text"], "pid": os.getpid()}
        """,
    )
    shared = flow(
        step("a", "/writer/write", {"text": {"$input": "$"}}),
        step("b", "/reader/read", {"blob": {"$step": "a", "path": "blob"}}),
        output=[{"$step": "a"}, {"$step": "b"}],
    )
    seen = Seen()
    async with running(processes(writer=writer, reader=reader), on_event=seen) as runtime:
        written, read = await runtime.run(shared, "hällo")
        assert read["text"] == "hällo"
        pids = {event.plugin: event.pid for event in seen.of(WorkerStarted)}
        assert pids == {"writer": written["pid"], "reader": read["pid"]}
        paths = [component.path for component in await runtime.list_components()]
        assert paths[-2:] == ["/reader/read", "/writer/write"]
        assert runtime.plugin_problems == {}


async def test_a_run_below_crosses_processes_and_cancelling_the_first_ends_the_last(tmp_path: Path) -> None:
    upper = own_plugin(
        tmp_path,
        """
        @worker.component
        async def above(flow: dict, context: Context) -> str:
            try:
                return await context.evaluate_flow(flow, None)
            finally:
                open("upper ended", "w").close()
        """,
    )
    lower = own_plugin(
        tmp_path,
        """
        @worker.component
        async def below() -> None:
            open("lower began", "w").close()
            try:
                await trio.sleep_forever()
            finally:
                open("lower ended", "w").close()
        """,
    )
    nested = one_step("/upper/above", {"$literal": one_step("/lower/below", {})})
    store = OpenRunStore()
    async with running(processes(upper=upper, lower=lower), run_store=store) as runtime:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(runtime.run, nested)
                await until((tmp_path / "lower began").exists)
                scope.cancel()
        await until((tmp_path / "lower ended").exists)
        await until((tmp_path / "upper ended").exists)
        await until(lambda: store.statuses == ["cancelled", "cancelled"])


async def test_what_a_component_prints_is_told_line_by_line_and_disturbs_nothing(tmp_path: Path) -> None:
    noisy = own_plugin(
        tmp_path,
        """
        @worker.component
        async def noisy() -> int:
            print("from print")
            os.write(1, b"from write\\n")
            os.system("echo from a child")
            print("from stderr", file=sys.stderr)
            return 1
        """,
    )
    seen = Seen()
    async with running(processes(w=noisy), on_event=seen) as runtime:
        assert await runtime.run(one_step("/w/noisy", {})) == 1
    lines = [event.text for event in seen.of(WorkerLine)]
    assert [line for line in lines if line.startswith("from")] == [
        "from print",
        "from write",
        "from a child",
        "from stderr",
    ]


async def test_a_deadline_around_run_reaches_a_component_in_another_process(tmp_path: Path) -> None:
    timed = own_plugin(
        tmp_path,
        """
        @worker.component
        async def left(context: Context) -> float | None:
            return context.deadline and context.deadline - trio.current_time()
        """,
    )
    async with running(processes(w=timed)) as runtime:
        with trio.fail_after(10):
            assert 5 < await runtime.run(one_step("/w/left", {})) <= 10


async def test_leaving_the_block_cancels_a_component_whose_finally_still_runs(tmp_path: Path) -> None:
    waits = own_plugin(
        tmp_path,
        """
        @worker.component
        async def waits() -> None:
            open("began", "w").close()
            try:
                await trio.sleep_forever()
            finally:
                open("ended", "w").close()
        """,
    )
    async with running(processes(w=waits)) as runtime:
        await runtime.submit(one_step("/w/waits", {}), [None])
        await until((tmp_path / "began").exists)
    assert (tmp_path / "ended").exists()


# ---- workers that end -----------------------------------------------------------------------------------


async def test_a_worker_that_exits_at_its_start_fails_its_steps_at_once_with_what_it_wrote_to_stderr(
    tmp_path: Path,
) -> None:
    broken = raw_plugin(tmp_path, "import no_such_module_anywhere")
    seen = Seen()
    async with running(processes(2, w=broken), on_event=seen) as runtime:
        failure = await failure_of(runtime, one_step("/w/x"))
        assert failure.code == ErrorCode.CONNECTION_LOST
        assert "exited with code 1" in failure.message
        assert failure.data["returncode"] == 1
        assert failure.data["stderr"][-1] == "ModuleNotFoundError: No module named 'no_such_module_anywhere'"
        assert "no_such_module_anywhere" in failure.message
        assert len(seen.of(StepStarted)) == 1, "it would do so again: it is not retried"
        assert "no_such_module_anywhere" in runtime.plugin_problems["w"]
        listed = await runtime.list_components()
        assert not [component for component in listed if component.plugin == "w"]
    assert seen.of(WorkerStarted) == []
    assert "no_such_module_anywhere" in seen.of(WorkerEnded)[0].detail


DIES_ONCE = """
for request in executions():
    if request["params"]["input"] == "die" and not os.path.exists("died"):
        open("died", "w").close()
        {how}
    elif request["params"]["input"] == "wait" and not os.path.exists("died"):
        pass  # unanswered: it dies with the worker
    else:
        answer(request, [request["params"]["attempt"], os.getpid()])
"""


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("os._exit(3)", "exited with code 3"),
        ("os.kill(os.getpid(), 9)", "was killed by signal 9"),
        ("os.close(1); time.sleep(60)", "closed its stdout"),
        ("sys.exit(0)", "exited with code 0"),
    ],
    ids=["exits", "is killed", "closes stdout", "exits in order"],
)
async def test_a_worker_that_ends_in_a_call_is_started_again_and_all_its_calls_are_made_again(
    tmp_path: Path, how: str, says: str
) -> None:
    seen = Seen()
    config = processes(1, delay_s=0.01, w=raw_plugin(tmp_path, DIES_ONCE.replace("{how}", how)))
    async with running(config, on_event=seen) as runtime:
        run = await runtime.submit(one_step("/w/x"), ["wait"] * 9 + ["die"])
        await run.wait()
        pids = [event.pid for event in seen.of(WorkerStarted)]
        assert run.results == [Success([2, pids[1]])] * 10
        assert len(pids) == 2
        reasons = [event.error for event in seen.of(StepRetrying)]
        assert {reason.code for reason in reasons} == {ErrorCode.CONNECTION_LOST}
        assert all(says in reason.message for reason in reasons)
        assert await runtime.run(one_step("/w/x"), "again") == [1, pids[1]]


async def test_a_worker_that_closes_its_stdin_and_lives_on_is_replaced_and_told_of_as_it_was(
    tmp_path: Path,
) -> None:
    script = """
        for request in executions():
            if not os.path.exists("closed"):
                open("closed", "w").close()
                os.close(0)
                time.sleep(60)
            answer(request, len(request["params"]["input"]))
        """
    seen = Seen()
    async with running(processes(1, w=raw_plugin(tmp_path, script)), on_event=seen) as runtime:
        run = await runtime.submit(one_step("/w/x"), ["x" * 2_000_000] * 2)
        await run.wait()
        assert run.results == [Success(2_000_000)] * 2
    reason = seen.of(StepRetrying)[0].error
    assert reason.code == ErrorCode.CONNECTION_LOST
    assert "writing failed" in reason.message
    assert "stdout" not in reason.message


async def test_a_worker_that_is_killed_between_calls_is_started_again_for_the_next_one(
    tmp_path: Path,
) -> None:
    seen = Seen()
    echo = raw_plugin(tmp_path, "for request in executions(): answer(request, os.getpid())")
    async with running(processes(0, w=echo), on_event=seen) as runtime:
        first = await runtime.run(one_step("/w/x"))
        os.kill(first, signal.SIGKILL)
        await until(lambda: seen.of(WorkerEnded))
        assert "killed by signal 9" in seen.of(WorkerEnded)[0].detail
        assert await runtime.run(one_step("/w/x")) != first


@pytest.mark.parametrize("what", ["missing", "not executable", "a directory", "no interpreter", "no cwd"])
async def test_a_command_that_cannot_be_started_fails_at_once_and_without_retries(
    tmp_path: Path, what: str
) -> None:
    (tmp_path / "plain").write_text("text")
    (tmp_path / "script").write_text("#!/no/such/interpreter\n")
    (tmp_path / "script").chmod(0o755)
    command, says = {
        "missing": ("./plan", "'plain'"),
        "not executable": ("./plain", "not executable"),
        "a directory": ("./", "is a directory"),
        "no interpreter": ("./script", "/no/such/interpreter"),
        "no cwd": (sys.executable, "does not exist"),
    }[what]
    cwd = tmp_path / "nowhere" if what == "no cwd" else tmp_path
    seen = Seen()
    config = processes(3, delay_s=60, w=StdioPluginConfig(command=command, working_directory=cwd))
    async with running(config, on_event=seen) as runtime:
        failure = await failure_of(runtime, one_step("/w/x"))
    assert failure.code == ErrorCode.SPAWN_FAILED
    assert says in failure.message
    assert len(seen.of(StepStarted)) == 1


async def test_a_command_that_is_not_there_yet_is_found_once_it_is(tmp_path: Path) -> None:
    late = raw_plugin(tmp_path, "for request in executions(): answer(request, 1)")
    script = tmp_path / "script"
    (tmp_path / "later").write_text(f"#!{sys.executable} -IS\n" + (tmp_path / late.args[-1]).read_text())
    (tmp_path / "later").chmod(0o755)
    config = processes(w=StdioPluginConfig(command="./script", working_directory=tmp_path))
    async with running(config) as runtime:
        await failure_of(runtime, one_step("/w/x"))
        (tmp_path / "later").rename(script)
        assert await runtime.run(one_step("/w/x")) == 1
        assert runtime.plugin_problems == {}


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        ('result={"serverProtocolVersion": 2}', ErrorCode.VERSION_MISMATCH, "version 2"),
        ("result=[]", ErrorCode.GARBLED_MESSAGE, "initialize"),
        ("result={}", ErrorCode.GARBLED_MESSAGE, "names no protocol version"),
        ('error={"code": -32006, "message": "too new"}', ErrorCode.VERSION_MISMATCH, "too new"),
    ],
)
async def test_a_worker_that_cannot_be_initialized_costs_its_own_steps(
    tmp_path: Path, answer: str, code: int, says: str
) -> None:
    stranger = raw_plugin(
        tmp_path, f"send(id=json.loads(sys.stdin.readline())['id'], {answer})\ntime.sleep(60)"
    )
    async with running(processes(w=stranger)) as runtime:
        failure = await failure_of(runtime, one_step("/w/x"))
        assert failure.code == code
        assert says in failure.message


# ---- workers that do not listen -------------------------------------------------------------------------


@pytest.mark.parametrize("deaf_to", ["cancel", "stdin", "SIGTERM"])
async def test_a_worker_that_hangs_is_left_replaced_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf_to: str
) -> None:
    monkeypatch.setattr(hosted_worker, "CANCEL_GRACE_S", 0.1)
    hangs = {
        "cancel": "pass",
        "stdin": "time.sleep(60)",
        "SIGTERM": "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
    }[deaf_to]
    plugin = raw_plugin(
        tmp_path,
        f"""
        for request in executions():
            if request["params"]["input"] == "hang":
                {hangs}
            else:
                answer(request, os.getpid())
        """,
    )
    seen = Seen()
    async with running(processes(w=plugin), on_event=seen) as runtime:
        first = await runtime.run(one_step("/w/x"))
        with trio.move_on_after(0.05) as scope:
            await runtime.run(one_step("/w/x"), "hang")
        assert scope.cancelled_caught
        await until(lambda: seen.of(WorkerEnded))
        assert await runtime.run(one_step("/w/x")) != first
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)


async def test_a_worker_that_is_stopped_by_a_signal_hangs_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted_worker, "CANCEL_GRACE_S", 0.1)
    seen = Seen()
    echo = raw_plugin(tmp_path, "for request in executions(): answer(request, os.getpid())")
    async with running(processes(w=echo), on_event=seen) as runtime:
        first = await runtime.run(one_step("/w/x"))
        os.kill(first, signal.SIGSTOP)
        with trio.move_on_after(0.05):
            await runtime.run(one_step("/w/x"))
        await until(lambda: seen.of(WorkerEnded))
        assert await runtime.run(one_step("/w/x")) != first


async def test_a_worker_that_never_reads_its_stdin_loses_the_connection_in_time(tmp_path: Path) -> None:
    plugin = raw_plugin(
        tmp_path,
        """
        os.read(0, 100000)
        send(id=1, result={"serverProtocolVersion": 1})
        time.sleep(60)
        """,
    )
    limits = Limits(send_timeout_s=0.3, drain_s=0.1)
    async with running(processes(w=plugin), limits=limits) as runtime:
        failure = await failure_of(runtime, one_step("/w/x"), "x" * 5_000_000)
    assert failure.code == ErrorCode.CONNECTION_LOST
    assert "send_stalled" in failure.message


async def test_a_worker_that_reads_slowly_but_reads_gets_everything(tmp_path: Path) -> None:
    plugin = raw_plugin(
        tmp_path,
        """
        text = b""
        while text.count(b"\\n") < 3:
            time.sleep(0.01)
            text += os.read(0, 50_000)
            if text.count(b"\\n") == 1:
                send(id=1, result={"serverProtocolVersion": 1})
        request = json.loads(text.split(b"\\n")[2])
        answer(request, len(request["params"]["input"]))
        """,
    )
    limits = Limits(send_timeout_s=0.3)
    async with running(processes(w=plugin), limits=limits) as runtime:
        began = trio.current_time()
        assert await runtime.run(one_step("/w/x"), "x" * 3_000_000) == 3_000_000
        assert trio.current_time() - began > 0.4


# ---- workers that talk nonsense -------------------------------------------------------------------------

NONSENSE = {
    "text": r"os.write(1, b'Loading model... 100%\n')",
    "bytes that are no text": r"os.write(1, b'\xff\xfe\x00\x80\n')",
    "an empty line": r"os.write(1, b'\n \r\n')",
    "half a message": r"os.write(1, b'{\"jsonrpc\": \"2.0\", \"id\"\n')",
    "JSON that is no message": r"os.write(1, b'[1, 2]\n{}\n17\nnull\n\"text\"\n')",
    "a deep nest": r"os.write(1, b'[' * 100000 + b'\n')",
    "an answer to nothing": "send(id=4711, result={'output': 'wrong'})",
    "an answer to a string": "send(id=str(request['id']), result={'output': 'wrong'})",
    "an error for nothing": "send(id=None, error={'code': -32700, 'message': 'what?'})",
    "an unknown notification": "send(method='log/message', params={'text': 'hello'})",
    "an unknown request": "send(id='q', method='no/such', params={})",
    "progress for nothing": "send(method='progress_update', params={})",
    "a cancellation of nothing": "send(method='$/cancelRequest', params={'id': 99})",
}


@pytest.mark.parametrize("nonsense", NONSENSE, ids=str)
async def test_nonsense_between_the_answers_costs_neither_a_call_nor_the_connection(
    tmp_path: Path, nonsense: str
) -> None:
    script = f"for request in executions():\n    {NONSENSE[nonsense]}\n    answer(request, 'right')\n"
    seen = Seen()
    async with running(processes(w=raw_plugin(tmp_path, script)), on_event=seen) as runtime:
        assert [await runtime.run(one_step("/w/x")) for _ in range(3)] == ["right"] * 3
    assert len(seen.of(WorkerStarted)) == 1


async def test_a_second_answer_has_no_effect(tmp_path: Path) -> None:
    plugin = raw_plugin(
        tmp_path,
        """
        for request in executions():
            answer(request, "first")
            answer(request, "second")
            send(id=request["id"], error={"code": 1, "message": "third"})
        """,
    )
    seen = Seen()
    async with running(processes(w=plugin), on_event=seen) as runtime:
        assert [await runtime.run(one_step("/w/x")) for _ in range(3)] == ["first"] * 3
    assert len(seen.of(WorkerStarted)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "send(id=request['id'], result={})",
        "send(id=request['id'], result=None)",
        "send(id=request['id'], result=[1])",
        "send(id=request['id'], error='no')",
        "send(id=request['id'], error={'code': 'x', 'message': 1})",
        "send(id=request['id'], result={'output': 1}, error={'code': 1, 'message': 'both'})",
        "send(id=request['id'], result={'output': 1}, jsonrpc='1.0')",
    ],
)
async def test_an_answer_that_is_none_is_an_error_of_its_call_only(tmp_path: Path, answer: str) -> None:
    script = f"""
        def send(**message):
            os.write(1, json.dumps({{"jsonrpc": "2.0", **message}}).encode() + b"\\n")

        for request in executions():
            if request["params"]["input"] == "wrong":
                {answer}
            else:
                send(id=request["id"], result={{"output": "right"}})
        """
    seen = Seen()
    async with running(processes(1, w=raw_plugin(tmp_path, script)), on_event=seen) as runtime:
        with trio.move_on_after(3) as scope:
            failure = await failure_of(runtime, one_step("/w/x"), "wrong")
            assert failure.code in (ErrorCode.GARBLED_MESSAGE, ErrorCode.TRANSPORT_ERROR)
        assert not scope.cancelled_caught
        assert await runtime.run(one_step("/w/x")) == "right"
    assert len(seen.of(WorkerStarted)) == 1


CUTS = """
def cut(request):
    # As a public SDK does it when its stdout takes no more: the rest and the line's end are lost.
    os.write(1, b'{"id":%d,"result":{"output":{"text":"xxxxxxxx' % request["id"])
    open("cut", "w").close()

for request in executions():
    if request["params"]["input"] == "cut":
        cut(request)
    else:
        answer(request, "whole")
"""
CUTS_ONCE = CUTS.replace('== "cut"', '== "cut" and request["params"]["attempt"] == 1')


async def run_behind_a_cut(runtime: Runtime, cwd: Path) -> list[Any]:
    """The results of a run whose answer is cut off, and of two that are asked for behind it."""
    runs = [await runtime.submit(one_step("/w/x"), ["cut"])]
    await until((cwd / "cut").exists)
    for _ in range(2):
        runs.append(await runtime.submit(one_step("/w/x"), ["whole"]))
        await trio.sleep(0.02)
    for run in runs:
        await run.wait()
    return [run.results[0] for run in runs]


async def test_an_answer_that_is_cut_off_is_an_error_and_so_is_the_one_that_it_runs_into(
    tmp_path: Path,
) -> None:
    seen = Seen()
    async with running(processes(0, w=raw_plugin(tmp_path, CUTS)), on_event=seen) as runtime:
        *lost, whole = await run_behind_a_cut(runtime, tmp_path)
        assert whole == Success("whole")
        for result in lost:
            assert isinstance(result, Failed)
            assert result.error.code == ErrorCode.GARBLED_MESSAGE
        assert await runtime.run(one_step("/w/x"), "whole") == "whole"
    assert len(seen.of(WorkerStarted)) == 1


async def test_what_an_answer_that_was_cut_off_has_destroyed_is_asked_for_again(tmp_path: Path) -> None:
    async with running(processes(1, w=raw_plugin(tmp_path, CUTS_ONCE))) as runtime:
        assert await run_behind_a_cut(runtime, tmp_path) == [Success("whole")] * 3


async def test_a_worker_that_falls_silent_in_the_middle_of_a_message_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted_worker, "STALLED_FRAME_S", 0.2)
    seen = Seen()
    async with running(processes(1, w=raw_plugin(tmp_path, CUTS_ONCE)), on_event=seen) as runtime:
        assert await runtime.run(one_step("/w/x"), "cut") == "whole"
    [reason] = [event.error for event in seen.of(StepRetrying)]
    assert reason.code == ErrorCode.CONNECTION_LOST
    assert "bytes into a message" in reason.message
    assert len(seen.of(WorkerStarted)) == 2


async def test_a_worker_that_sends_a_message_slowly_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted_worker, "STALLED_FRAME_S", 0.1)
    script = """
        for request in executions():
            text = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": {"output": 1}}) + "\\n"
            for character in text:
                os.write(1, character.encode())
                time.sleep(0.02)
        """
    async with running(processes(0, w=raw_plugin(tmp_path, script))) as runtime:
        began = trio.current_time()
        assert await runtime.run(one_step("/w/x")) == 1
        assert trio.current_time() - began > 0.8


async def test_a_call_that_is_answered_under_a_wrong_id_waits_until_it_is_given_up(tmp_path: Path) -> None:
    script = "for request in executions(): send(id=request['id'] + 1000, result={'output': 'wrong'})"
    async with running(processes(w=raw_plugin(tmp_path, script))) as runtime:
        with trio.move_on_after(0.2) as scope:
            await runtime.run(one_step("/w/x"))
        assert scope.cancelled_caught


async def test_an_error_s_code_message_and_data_are_carried_as_they_came(tmp_path: Path) -> None:
    script = (
        "for request in executions():"
        " send(id=request['id'], error={'code': 17, 'message': 'ü', 'data': {'a': [None]}})"
    )
    async with running(processes(3, w=raw_plugin(tmp_path, script))) as runtime:
        failure = await failure_of(runtime, one_step("/w/x"))
    assert (failure.code, failure.message, failure.data) == (17, "ü", {"a": [None]})


async def test_a_large_answer_and_a_large_input_go_through(tmp_path: Path) -> None:
    script = "for request in executions(): answer(request, request['params']['input'] * 2)"
    async with running(processes(w=raw_plugin(tmp_path, script))) as runtime:
        assert await runtime.run(one_step("/w/x"), "x" * 3_000_000) == "x" * 6_000_000


# ---- the environment ------------------------------------------------------------------------------------

TELLS_ENVIRONMENT = """
for request in executions():
    given = open("/proc/self/environ").read().split("\\0")[:-1]
    answer(request, [dict(entry.split("=", 1) for entry in given), sys.argv[1:], os.getcwd()])
"""


async def test_a_worker_s_environment_is_exactly_what_the_configuration_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "not for workers")
    plugin = raw_plugin(tmp_path, TELLS_ENVIRONMENT, ONLY="this", EMPTY="")
    async with running(processes(w=plugin)) as runtime:
        environment, _, cwd = await runtime.run(one_step("/w/x"))
    assert environment == {"ONLY": "this", "EMPTY": ""}
    assert cwd == str(tmp_path)


async def test_variables_in_a_configuration_are_replaced_in_arguments_and_environment(tmp_path: Path) -> None:
    script = raw_plugin(tmp_path, TELLS_ENVIRONMENT).args[-1]
    text = textwrap.dedent(f"""
        plugins:
          w:
            type: stepflow
            transport: stdio
            command: $PYTHON
            args: [-I, -S, {script}, "${{WORD}}!", "${{NONE:-default}}", "$$HOME"]
            env:
              PLAIN: $WORD
              DEFAULTED: ${{NONE:upstream's form}}
              COSTS: 5$$
        routes:
          /w/{{*component}}: [{{plugin: w}}]
        """)
    environ = {"PYTHON": sys.executable, "WORD": "hello $HOME"}
    config = read_config(text, name="config.yml", directory=tmp_path, environ=environ)
    async with running(config) as runtime:
        environment, arguments, cwd = await runtime.run(one_step("/w/x"))
    assert environment == {"PLAIN": "hello $HOME", "DEFAULTED": "upstream's form", "COSTS": "5$"}
    assert arguments == ["hello $HOME!", "default", "$HOME"]
    assert cwd == str(tmp_path)


# ---- the runtime's own end ------------------------------------------------------------------------------

RUNTIME = """
import sys, trio
from pathlib import Path
from stepflow_trio import open_runtime
from stepflow_trio.runtime.config import read_config_file

FLOW = {"steps": [{"id": "s", "component": "/w/lives", "input": {}}], "output": {"$step": "s"}}

async def main():
    config = read_config_file(sys.argv[1], environ={})
    async with open_runtime(config) as runtime:
        await runtime.run(FLOW)

trio.run(main)
"""

LIVES = """
import signal, socket, subprocess
signal.alarm(30)
lifeline = socket.socket(socket.AF_UNIX)
lifeline.connect("lifelines")
os.set_inheritable(lifeline.fileno(), True)

@worker.component
async def lives() -> None:
    lifeline.send(b"at work")
    try:
        await trio.sleep_forever()
    finally:
        open("ended", "w").close()

worker._limits = __import__("stepflow_trio").Limits(drain_s=0.2)
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_no_worker_outlives_its_runtime_s_process(tmp_path: Path, signum: signal.Signals) -> None:
    plugin = own_plugin(tmp_path, LIVES)
    config = {
        "plugins": {
            "w": {"type": "stepflow", "transport": "stdio", "command": plugin.command, "args": plugin.args}
        },
        "routes": {"/w/{*component}": [{"plugin": "w"}]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "runtime.py").write_text(RUNTIME)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "lifelines"))
        listener.listen()
        listener.settimeout(10)
        runtime = subprocess.Popen(
            [sys.executable, "runtime.py", "config.json"],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            lifeline, _ = listener.accept()
            with lifeline:
                lifeline.settimeout(10)
                assert lifeline.recv(100) == b"at work"
                began = time.monotonic()
                runtime.send_signal(signum)
                runtime.wait(10)
                # The end of the line proves the worker's, in the kernel.
                assert lifeline.recv(100) == b""
                assert time.monotonic() - began < 5
        finally:
            runtime.kill()
            runtime.wait()
    assert (tmp_path / "ended").exists()


# ---- the sweep ------------------------------------------------------------------------------------------


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the n-th step of the scheduler; on the real clock, for there are processes."""

    def __init__(self, point: int | None) -> None:
        self.point = point
        self.steps = 0
        self.scope = trio.CancelScope()

    def before_task_step(self, task: Any) -> None:
        self.steps += 1
        if self.steps == self.point:
            self.scope.cancel()


def test_a_runtime_with_a_process_can_be_cancelled_anywhere_and_leaves_nothing(tmp_path: Path) -> None:
    plugin = raw_plugin(tmp_path, "for request in executions(): answer(request, os.getpid())")
    results: list[Any] = []

    async def main(cancel: CancelAtStep) -> None:
        store, seen = OpenRunStore(), Seen()
        with trio.fail_after(5), cancel.scope:
            async with open_runtime(processes(w=plugin), run_store=store, on_event=seen) as runtime:
                results.append(await runtime.run(one_step("/w/x")))
        assert "running" not in store.statuses
        assert len(seen.of(WorkerStarted)) <= len(seen.of(WorkerEnded)) <= 1

    def run(point: int | None) -> int:
        cancel = CancelAtStep(point)
        trio.run(main, cancel, instruments=[cancel])
        assert not has_children()
        return cancel.steps

    steps = run(None)
    assert len(results) == 1
    assert steps > 40
    for point in range(1, steps + 1):
        run(point)


async def test_a_run_sent_to_a_worker_that_is_stuck_is_taken_over_by_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted_worker, "CANCEL_GRACE_S", 0.5)
    worker = own_plugin(
        tmp_path,
        """
        @worker.component
        async def block(seconds: float) -> int:
            time.sleep(seconds)
            return os.getpid()
        """,
    )
    with trio.fail_after(30):
        async with running(processes(2, w=worker)) as runtime:
            first = await runtime.run(one_step("/w/block"), {"seconds": 0})
            with trio.move_on_after(0.2):
                await runtime.run(one_step("/w/block"), {"seconds": 60})
            began = trio.current_time()
            assert await runtime.run(one_step("/w/block"), {"seconds": 0}) != first
            assert trio.current_time() - began < 5
