"""The processes of MCP servers: those that die, hang or talk nonsense, and that none of them is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from mcp_stage import lines_of, server, serving
from runtime_stage import Seen, failure_of, flow, has_children, one_step, running, step, until

from stepflow_trio import ErrorCode
from stepflow_trio.flows.results import Success
from stepflow_trio.runtime import hosted_worker
from stepflow_trio.runtime.config import McpPluginConfig
from stepflow_trio.runtime.events import StepStarted, WorkerEnded, WorkerStarted

pytest.importorskip("mcp", reason="the extra `mcp` is not installed")


async def test_a_server_that_died_is_started_again_for_the_next_attempt(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        for request in requests(tool("t")):
            if not os.path.exists("died"):
                open("died", "w").close()
                os._exit(3)
            text(request, "alive")
        """,
    )
    seen = Seen()
    async with running(serving(plugin, retries=1), on_event=seen) as runtime:
        assert await runtime.run(one_step("/mcp/t"), {}) == [{"type": "text", "text": "alive"}]
    assert [event.attempt for event in seen.of(StepStarted)] == [1, 2]
    assert len(seen.of(WorkerStarted)) == 2
    assert "exited with code 3" in seen.of(WorkerEnded)[0].detail


async def test_a_server_that_always_dies_fails_the_step_with_what_it_said_last(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        for request in requests(tool("t")):
            say("out of memory")
            os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    seen = Seen()
    async with running(serving(plugin, retries=2), on_event=seen) as runtime:
        failure = await failure_of(runtime, one_step("/mcp/t"), {})
    assert failure.code == ErrorCode.CONNECTION_LOST
    assert "was killed by signal 9: out of memory" in failure.message
    assert failure.data == {"returncode": -9, "stderr": ["out of memory"]}
    assert len(seen.of(StepStarted)) == 3


LOST = ErrorCode.CONNECTION_LOST
GARBLED = ErrorCode.GARBLED_MESSAGE


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        ('send(id=request["id"], result="text")', LOST, "no message of MCP"),
        ('send(id=request["id"])', LOST, "no message of MCP"),
        ("answer(request, content=5)", GARBLED, "the answer is not what MCP says"),
        ('answer(request, content=[{"type": "odd"}])', GARBLED, "the answer is not what MCP says"),
        ('answer(request, content=[], structuredContent={"x": float("nan")})', LOST, "invalid character"),
        ('answer(request, content=[], structuredContent={"x": DEEP})', LOST, "deeper than 128 levels"),
        ('os.write(1, b\'{"jsonrpc": "2.0", "id": 9}x\\n\')', LOST, "trailing characters (byte 28)"),
        ('os.write(1, b\'{"jsonrpc": "2.0"\\n\')', LOST, "cannot be read: "),
        ('os.write(1, b\' [ {"jsonrpc": "2.0"\\n\')', LOST, "cannot be read: "),
        ('os.write(1, b\'[{"jsonrpc": "2.0", "id": 9, "result": {}}, 5]\\n\')', LOST, "no message of MCP"),
        ('os.write(1, b\'{"jsonrpc": "2.0"\'); os._exit(3)', LOST, "exited with code 3"),
    ],
)
async def test_an_answer_that_is_none_fails_the_attempt_and_not_the_next_one(
    tmp_path: Path, answer: str, code: int, says: str
) -> None:
    plugin = server(
        tmp_path,
        f"""
        DEEP = []
        for _ in range(130):
            DEEP = [DEEP]
        for request in requests(tool("t")):
            if not os.path.exists("once"):
                open("once", "w").close()
                {answer}
            else:
                text(request, "right")
        """,
    )
    async with running(serving(plugin)) as runtime:
        with trio.fail_after(20):  # of the 60 s after which the server ends by itself
            failure = await failure_of(runtime, one_step("/mcp/t"), {})
        assert failure.code == code
        assert says in failure.message
        assert await runtime.run(one_step("/mcp/t"), {}) == [{"type": "text", "text": "right"}]


async def test_answers_in_a_batch_are_taken_one_by_one(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        waiting = []
        for request in requests(tool("t")):
            waiting.append(request)
            if len(waiting) == 2:
                batch = []
                for each in waiting:
                    result = {"content": [], "structuredContent": each["params"]["arguments"]}
                    batch.append({"jsonrpc": "2.0", "id": each["id"], "result": result})
                os.write(1, json.dumps(batch).encode() + b"\\n")
        """,
    )
    steps = [step(name, "/mcp/t", {"name": name}) for name in "ab"]
    output = {name: {"$step": name, "path": "$.name"} for name in "ab"}
    async with running(serving(plugin)) as runtime:
        assert await runtime.run(flow(*steps, output=output)) == {"a": "a", "b": "b"}


async def test_a_server_that_falls_silent_in_the_middle_of_a_message_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted_worker, "STALLED_FRAME_S", 0.1)
    plugin = server(
        tmp_path,
        """
        for request in requests(tool("t")):
            if not os.path.exists("once"):
                open("once", "w").close()
                os.write(1, b'{"jsonrpc": "2.0", "id": 9')
            else:
                text(request, "right")
        """,
    )
    seen = Seen()
    async with running(serving(plugin, retries=1), on_event=seen) as runtime:
        assert await runtime.run(one_step("/mcp/t"), {}) == [{"type": "text", "text": "right"}]
    assert "26 bytes into a message" in seen.of(WorkerEnded)[0].detail


# ---- servers that hang ----------------------------------------------------------------------------------


async def test_a_server_that_a_cancelled_tool_blocks_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted_worker, "CANCEL_GRACE_S", 0.2)
    plugin = server(
        tmp_path,
        """
        for request in requests(tool("t")):
            if request["params"].get("arguments"):
                say("blocked")
                while os.read(0, 65536):
                    pass
                os._exit(0)
            text(request, "ready")
        """,
    )
    seen = Seen()
    async with running(serving(plugin), on_event=seen) as runtime:
        run = await runtime.submit(one_step("/mcp/t"), [{"seconds": 60}])
        await until(lambda: "blocked" in lines_of(seen))
        run.cancel()
        await run.wait()
        await until(lambda: seen.of(WorkerEnded))
        assert (
            "it answers nothing, 0.2 s after an execution in it was cancelled"
            in seen.of(WorkerEnded)[0].detail
        )
        assert await runtime.run(one_step("/mcp/t"), {}) == [{"type": "text", "text": "ready"}]
    assert len(seen.of(WorkerStarted)) == 2


@pytest.mark.parametrize("refuses", [False, True])
async def test_a_server_that_answers_goes_on_after_a_cancellation_and_so_do_its_other_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    monkeypatch.setattr(hosted_worker, "CANCEL_GRACE_S", 0.2)
    plugin = server(
        tmp_path,
        f"""
        calls = []
        for request in requests(tool("t")):
            if request["method"] == "ping":
                say("asked")
                if {refuses}:
                    send(id=request["id"], error={{"code": -32601, "message": "Method not found"}})
                else:
                    answer(request)
            elif request["method"] == "tools/call":
                calls.append(request)
                say("called " + request["params"]["arguments"]["name"])
                if len(calls) > 2:
                    for each in calls[1:]:
                        text(each, each["params"]["arguments"]["name"])
        """,
    )
    seen = Seen()
    async with running(serving(plugin), on_event=seen) as runtime:
        cancelled = await runtime.submit(one_step("/mcp/t"), [{"name": "a"}])
        await until(lambda: "called a" in lines_of(seen))
        other = await runtime.submit(one_step("/mcp/t"), [{"name": "b"}])
        await until(lambda: "called b" in lines_of(seen))
        cancelled.cancel()
        await until(lambda: "asked" in lines_of(seen))
        await trio.sleep(0.4)  # twice the grace: nobody is to be replaced
        assert await runtime.run(one_step("/mcp/t"), {"name": "c"}) == [{"type": "text", "text": "c"}]
        await other.wait()
        assert other.results[0] == Success([{"type": "text", "text": "b"}])
    assert lines_of(seen).count("asked") == 1
    assert len(seen.of(WorkerStarted)) == 1


async def test_a_server_that_does_not_list_its_tools_again_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted_worker, "LIST_TIMEOUT_S", 0.2)
    plugin = server(
        tmp_path,
        """
        answered = False
        for request in requests():
            if request["method"] == "tools/list" and not answered:
                answered = True
                answer(request, tools=[tool("t")])
        """,
    )
    async with running(serving(plugin)) as runtime:
        with trio.fail_after(20):
            failure = await failure_of(runtime, one_step("/mcp/new"), {})
            assert (failure.code, failure.message) == (
                ErrorCode.TRANSPORT_ERROR,
                "MCP server mcp: tools/list: no answer within 0.2 s",
            )
            assert await runtime.list_components() == []


async def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    plugin = server(tmp_path, "for line in sys.stdin: pass")
    seen = Seen()
    async with running(serving(plugin, retries=3, connect_s=0.3), on_event=seen) as runtime:
        failure = await failure_of(runtime, one_step("/mcp/t"), {})
        assert failure.code == ErrorCode.CONNECT_TIMED_OUT
        assert failure.message == "MCP server mcp did not answer initialize within 0.3 s"
        problem = "initialize: no answer within 0.3 s"
        assert runtime.plugin_problems == {"mcp": problem}
    assert [event.detail for event in seen.of(WorkerEnded)] == [problem]
    assert not has_children()


async def test_a_server_that_ends_before_it_is_ready_is_not_tried_again(tmp_path: Path) -> None:
    plugin = server(tmp_path, "say('no such database'); sys.exit(4)")
    seen = Seen()
    async with running(serving(plugin, retries=3), on_event=seen) as runtime:
        failure = await failure_of(runtime, one_step("/mcp/t"), {})
    assert failure.code == ErrorCode.CONNECTION_LOST
    assert "exited with code 4: no such database; it was given no PATH" in failure.message
    assert len(seen.of(StepStarted)) == 1


async def test_a_version_that_nobody_knows_is_said(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        for line in sys.stdin:
            info = {"name": "raw", "version": "1"}
            answer(json.loads(line), protocolVersion="1999-01-01", capabilities={}, serverInfo=info)
        """,
    )
    async with running(serving(plugin)) as runtime:
        failure = await failure_of(runtime, one_step("/mcp/t"), {})
    assert failure.code == ErrorCode.VERSION_MISMATCH
    assert "1999-01-01" in failure.message


@pytest.mark.parametrize("code", [-32001, -32602, -32601])
async def test_what_a_server_refuses_to_begin_for_is_said_in_its_own_words(tmp_path: Path, code: int) -> None:
    plugin = server(
        tmp_path,
        f"""
        for line in sys.stdin:
            request = json.loads(line)
            if request["method"] == "initialize":
                error = {{"code": {code}, "message": "the licence has expired", "data": [1]}}
                send(id=request["id"], error=error)
            else:
                say("asked on")
                send(id=request["id"], error={{"code": -32601, "message": "Method not found"}})
        """,
    )
    seen = Seen()
    async with running(serving(plugin), on_event=seen) as runtime:
        failure = await failure_of(runtime, one_step("/mcp/t"), {})
    assert (failure.code, failure.message) == (code, "MCP server mcp: the licence has expired")
    assert failure.data == [1]
    assert ("asked on" in lines_of(seen)) == (code == -32601), "only that may be a server without a handshake"


async def test_a_program_that_is_not_there_costs_only_its_own_components(tmp_path: Path) -> None:
    plugin = McpPluginConfig(command="no-such-mcp-server", working_directory=tmp_path)
    async with running(serving(plugin)) as runtime:
        failure = await failure_of(runtime, one_step("/mcp/t"), {})
        assert failure.code == ErrorCode.SPAWN_FAILED
        assert "no-such-mcp-server" in runtime.plugin_problems["mcp"]
        assert await runtime.list_components() == []


@pytest.mark.slow
async def test_of_a_server_that_would_not_end_nothing_is_left(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        import subprocess
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
        say(f"pids {os.getpid()} {child.pid}")
        list(requests(tool("t")))
        time.sleep(60)
        """,
    )
    seen = Seen()

    def pids() -> list[int]:
        return [int(pid) for line in lines_of(seen) for pid in line.removeprefix("pids ").split()]

    with trio.CancelScope() as scope:
        async with running(serving(plugin), on_event=seen):
            await until(lambda: seen.of(WorkerStarted) and pids())
            scope.cancel()
    assert len(pids()) == 2
    assert not has_children()
    for pid in pids():
        await until(lambda pid=pid: not _is_alive(pid))


HOLDS_A_SERVER = """
import sys
from pathlib import Path
import trio
from stepflow_trio import open_runtime
from stepflow_trio.runtime.config import read_config

config = read_config(sys.argv[1], name="c.json", directory=Path.cwd(), environ={})

def show(event):
    if type(event).__name__ == "WorkerStarted":
        print(event.pid, flush=True)

async def main():
    async with open_runtime(config, on_event=show) as runtime:
        await trio.sleep(60)

trio.run(main)
"""


async def test_a_server_that_ignores_its_stdin_s_end_does_not_outlive_a_runtime_that_is_killed(
    tmp_path: Path,
) -> None:
    plugin = server(tmp_path, "list(requests(tool('t')))\ntime.sleep(60)")
    config = {
        "plugins": {"m": {"type": "mcp", "command": plugin.command, "args": [*plugin.args]}},
        "routes": {"/m/{*c}": [{"plugin": "m"}]},
    }
    with subprocess.Popen(  # noqa: ASYNC220 — it is there at once
        [sys.executable, "-c", HOLDS_A_SERVER, json.dumps(config)], stdout=subprocess.PIPE
    ) as runtime:
        assert runtime.stdout is not None
        pid = int(await trio.to_thread.run_sync(runtime.stdout.readline))
        assert _is_alive(pid)
        runtime.kill()
        await until(lambda: not _is_alive(pid))


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
