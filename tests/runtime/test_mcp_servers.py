"""The processes of MCP servers: those that die, hang or talk nonsense, and that none of them is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from mcp_stage import lines_of, server, serving
from runtime_stage import Seen, failure_of, has_children, one_step, running, until

from stepflow_trio import ErrorCode
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


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ('send(id=request["id"], result="text")', "no message of MCP"),
        ('send(id=request["id"])', "no message of MCP"),
        ("answer(request, content=5)", "the answer is not what MCP says"),
        ('answer(request, content=[{"type": "odd"}])', "the answer is not what MCP says"),
        ("os.write(1, b'{\"jsonrpc\": \"2.0\", \"id\": 9' + b' ' * 10 + b'}x\\n'); os._exit(0)", "exited"),
        ('os.write(1, b\'{"jsonrpc": "2.0"\'); os._exit(0)', ""),
    ],
)
async def test_an_answer_that_is_none_fails_the_attempt_and_not_the_next_one(
    tmp_path: Path, answer: str, says: str
) -> None:
    plugin = server(
        tmp_path,
        f"""
        for request in requests(tool("t")):
            if not os.path.exists("once"):
                open("once", "w").close()
                {answer}
            else:
                text(request, "right")
        """,
    )
    async with running(serving(plugin)) as runtime:
        failure = await failure_of(runtime, one_step("/mcp/t"), {})
        assert failure.code in (ErrorCode.GARBLED_MESSAGE, ErrorCode.CONNECTION_LOST)
        assert says in failure.message
        assert await runtime.run(one_step("/mcp/t"), {}) == [{"type": "text", "text": "right"}]


async def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    plugin = server(tmp_path, "for line in sys.stdin: pass")
    seen = Seen()
    async with running(serving(plugin, retries=3, connect_s=0.3), on_event=seen) as runtime:
        failure = await failure_of(runtime, one_step("/mcp/t"), {})
        assert failure.code == ErrorCode.CONNECT_TIMED_OUT
        assert failure.message == "MCP server mcp did not answer initialize within 0.3 s"
        assert runtime.plugin_problems == {"mcp": failure.message}
    assert [event.detail for event in seen.of(WorkerEnded)] == [failure.message]
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
