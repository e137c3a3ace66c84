"""Plugins of type mcp: their tools as components, and what fails."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import trio
from mcp_stage import lines_of, server, serving
from runtime_stage import Seen, failure_of, flow, one_step, running, step, until

from stepflow_trio import ErrorCode
from stepflow_trio.runtime.config import McpPluginConfig, read_config
from stepflow_trio.runtime.events import StepStarted, WorkerStarted

pytest.importorskip("mcp", reason="the extra `mcp` is not installed")

ECHO = """
for request in requests(tool("echo")):
    if request["method"] == "tools/call":
        answer(request, content=[], structuredContent={"echo": request["params"]["arguments"]})
"""


# ---- tools as components --------------------------------------------------------------------------------


async def test_tools_are_components_with_their_schemas(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        made = tool("make/it", description="Make it.", outputSchema={"type": "object"})
        list(requests(made, tool("plain", title="Plain")))
        """,
    )
    async with running(serving(plugin)) as runtime:
        listed = await runtime.list_components()
    assert [(c.path, c.info.description, c.info.input_schema, c.info.output_schema) for c in listed] == [
        ("/mcp/make/it", "Make it.", {"type": "object"}, {"type": "object"}),
        ("/mcp/plain", "Plain", {"type": "object"}, None),
    ]


async def test_every_page_of_a_list_of_tools_is_asked_for(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        for request in requests():
            at = int(request.get("params", {}).get("cursor", "0"))
            more = {"nextCursor": str(at + 1)} if at < 2 else {}
            answer(request, tools=[tool(f"t{at}")], **more)
        """,
    )
    async with running(serving(plugin)) as runtime:
        assert [c.path for c in await runtime.list_components()] == ["/mcp/t0", "/mcp/t1", "/mcp/t2"]


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ('[tool(f"t{number}")]', "more than 5 tools"),
        ('[tool("t")]', "more than 5 tools"),
        ("[]", "more than 10 pages"),
    ],
)
async def test_a_list_of_tools_without_an_end_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tools: str, says: str
) -> None:
    from stepflow_trio.runtime import mcp_session

    monkeypatch.setattr(mcp_session, "MAX_TOOLS", 5)
    monkeypatch.setattr(mcp_session, "MAX_PAGES", 10)
    plugin = server(
        tmp_path,
        f"""
        for number, request in enumerate(requests()):
            answer(request, tools={tools}, nextCursor=str(number))
        """,
    )
    async with running(serving(plugin)) as runtime:
        with trio.fail_after(20):
            failure = await failure_of(runtime, one_step("/mcp/t0"))
    assert failure.code == ErrorCode.GARBLED_MESSAGE
    assert says in failure.message


async def test_a_tool_returns_its_structured_content_or_else_its_content(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        for request in requests(tool("structured"), tool("plain")):
            if request["params"]["name"] == "plain":
                text(request, "ä", isError=False)
            else:
                arguments = request["params"]["arguments"]
                text(request, "beside", structuredContent={"got": arguments, "big": 2**60, "none": None})
        """,
    )
    async with running(serving(plugin)) as runtime:
        got = await runtime.run(one_step("/mcp/structured"), {"x": [1.0, None]})
        assert got == {"got": {"x": [1.0, None]}, "big": 2**60, "none": None}
        assert isinstance(got["got"]["x"][0], float)
        assert await runtime.run(one_step("/mcp/plain"), None) == [{"type": "text", "text": "ä"}]


async def test_a_server_of_the_package_itself_works(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(
        textwrap.dedent(
            """
            from mcp.server.mcpserver import MCPServer

            server = MCPServer("sums")

            @server.tool()
            def add(a: int, b: int) -> int:
                return a + b

            server.run()
            """
        ),
        encoding="utf-8",
    )
    plugin = McpPluginConfig(command=sys.executable, args=(str(script),), working_directory=tmp_path)
    async with running(serving(plugin)) as runtime:
        assert await runtime.run(one_step("/mcp/add"), {"a": 1, "b": 2}) == {"result": 3}


async def test_a_server_of_the_generation_without_a_handshake_works(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        common = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
        for line in sys.stdin:
            request = json.loads(line)
            if request["method"] == "server/discover":
                answer(request, supportedVersions=["2026-07-28"], capabilities={"tools": {}}, **common)
            elif request["method"] == "tools/list":
                answer(request, tools=[tool("new")], **common)
            elif request["method"] == "tools/call":
                text(request, "of today", resultType="complete")
            else:
                send(id=request["id"], error={"code": -32601, "message": "Method not found"})
        """,
    )
    async with running(serving(plugin)) as runtime:
        assert await runtime.run(one_step("/mcp/new"), {}) == [{"type": "text", "text": "of today"}]


async def test_a_tool_that_is_offered_later_is_found(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        listed = 0
        for request in requests():
            if request["method"] == "tools/list":
                listed += 1
                answer(request, tools=[tool("late")] if listed > 1 else [])
            else:
                text(request, str(listed))
        """,
    )
    async with running(serving(plugin)) as runtime:
        assert await runtime.run(one_step("/mcp/late"), {}) == [{"type": "text", "text": "2"}]


async def test_requests_run_at_the_same_time_and_are_answered_in_any_order(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        waiting = []
        for request in requests(tool("t")):
            waiting.append(request)
            if len(waiting) == 3:
                for each in reversed(waiting):
                    text(each, each["params"]["arguments"]["name"])
        """,
    )
    steps = [step(name, "/mcp/t", {"name": name}) for name in "abc"]
    output = {name: {"$step": name, "path": "$[0].text"} for name in "abc"}
    async with running(serving(plugin)) as runtime:
        assert await runtime.run(flow(*steps, output=output)) == {"a": "a", "b": "b", "c": "c"}


async def test_the_environment_is_what_is_configured_and_the_directory_the_working_directory(
    tmp_path: Path,
) -> None:
    plugin = server(
        tmp_path,
        """
        for request in requests(tool("t")):
            text(request, json.dumps([os.environ.get("GIVEN"), os.environ.get("PATH"), os.getcwd()]))
        """,
        GIVEN="it",
    )
    async with running(serving(plugin)) as runtime:
        [said] = await runtime.run(one_step("/mcp/t"), {})
    assert said["text"] == f'["it", null, "{tmp_path}"]'


# ---- what the server asks and says beside ----------------------------------------------------------------


async def test_a_ping_is_answered_and_what_nobody_here_can_do_is_refused(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        for request in requests(tool("t")):
            send(id="p", method="ping")
            pong = json.loads(sys.stdin.readline())
            send(id="s", method="sampling/createMessage", params={"messages": [], "maxTokens": 1})
            refused = json.loads(sys.stdin.readline())
            text(request, json.dumps([pong["id"], "result" in pong, "error" in refused]))
        """,
    )
    async with running(serving(plugin)) as runtime:
        [said] = await runtime.run(one_step("/mcp/t"), {})
    assert said["text"] == '["p", true, true]'


async def test_stderr_is_read_however_much_it_is_and_stdout_s_other_lines_are_shown_as_well(
    tmp_path: Path,
) -> None:
    plugin = server(
        tmp_path,
        """
        os.write(1, b"Listening on stdio\\n\\n[1]\\n{\\"level\\": 1}\\n")
        os.write(1, b"[INFO] sent {\\"jsonrpc\\": \\"2.0\\"}\\n{level: 2}\\n")
        for request in requests(tool("t")):
            for _ in range(300):
                say("x" * 4000)
            text(request, "done")
        """,
    )
    seen = Seen()
    async with running(serving(plugin), on_event=seen) as runtime:
        assert await runtime.run(one_step("/mcp/t"), {}) == [{"type": "text", "text": "done"}]
        await until(lambda: len(lines_of(seen)) == 305)
    beside = {"Listening on stdio", "[1]", '{"level": 1}', '[INFO] sent {"jsonrpc": "2.0"}', "{level: 2}"}
    assert beside < set(lines_of(seen))


# ---- tools that fail ------------------------------------------------------------------------------------


async def test_a_tool_that_says_that_it_failed_is_a_failed_step_which_may_be_retried(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        for number, request in enumerate(requests(tool("t")), 1):
            text(request, f"no {number}", isError=number < 3)
        """,
    )
    async with running(serving(plugin, retries=3)) as runtime:
        failure = await failure_of(runtime, one_step("/mcp/t"), {})
        assert (failure.code, failure.message) == (-32100, "no 1")
        assert failure.data == [{"type": "text", "text": "no 1"}]
        eager = one_step("/mcp/t", onError={"action": "retry", "maxRetries": 1})
        assert await runtime.run(eager, {}) == [{"type": "text", "text": "no 3"}]


@pytest.mark.parametrize(("code", "attempts"), [(-32602, 1), (-32000, 3), (-32300, 3), (7, 3)])
async def test_a_refusal_keeps_its_code_and_is_no_trouble_of_the_transport(
    tmp_path: Path, code: int, attempts: int
) -> None:
    plugin = server(
        tmp_path,
        f"""
        for request in requests(tool("t")):
            send(id=request["id"], error={{"code": {code}, "message": "refused", "data": [1]}})
        """,
    )
    seen = Seen()
    async with running(serving(plugin, retries=5), on_event=seen) as runtime:
        eager = one_step("/mcp/t", onError={"action": "retry", "maxRetries": 2})
        failure = await failure_of(runtime, eager, {})
    assert (failure.code, failure.message, failure.data) == (code, "refused", [1])
    assert len(seen.of(StepStarted)) == attempts


@pytest.mark.parametrize(
    ("component", "input", "code", "says"),
    [
        ("/mcp/ecko", {}, ErrorCode.COMPONENT_NOT_FOUND, "has no tool 'ecko'; did you mean \"echo\"?"),
        ("/mcp/echo", [1], ErrorCode.INVALID_VALUE, "takes an object with its arguments, not an array"),
    ],
)
async def test_a_call_that_makes_no_sense_is_refused_here(
    tmp_path: Path, component: str, input: Any, code: int, says: str
) -> None:
    async with running(serving(server(tmp_path, ECHO))) as runtime:
        failure = await failure_of(runtime, one_step(component), input)
        assert failure.code == code
        assert says in failure.message
        assert await runtime.run(one_step("/mcp/echo"), {"a": 1}) == {"echo": {"a": 1}}


async def test_an_output_that_does_not_fit_the_tool_s_schema_is_its_failure(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
        for request in requests(tool("t", outputSchema=schema)):
            answer(request, content=[], structuredContent={"n": "text"})
        """,
    )
    async with running(serving(plugin)) as runtime:
        failure = await failure_of(runtime, one_step("/mcp/t"), {})
    assert failure.code == ErrorCode.COMPONENT_FAILED
    assert "Invalid structured content" in failure.message


async def test_an_output_that_is_not_there_although_the_tool_s_schema_wants_one_is_its_failure(
    tmp_path: Path,
) -> None:
    plugin = server(
        tmp_path,
        """
        for request in requests(tool("t", outputSchema={"type": "object"})):
            text(request, "plain")
        """,
    )
    async with running(serving(plugin)) as runtime:
        failure = await failure_of(runtime, one_step("/mcp/t"), {})
    assert failure.code == ErrorCode.COMPONENT_FAILED
    assert "did not return structured content" in failure.message


async def test_an_output_schema_that_is_none_is_the_tool_s_failure(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        for request in requests(tool("t", outputSchema={"type": "object", "minProperties": -1})):
            answer(request, content=[], structuredContent={})
        """,
    )
    async with running(serving(plugin)) as runtime:
        failure = await failure_of(runtime, one_step("/mcp/t"), {})
    assert failure.code == ErrorCode.COMPONENT_FAILED
    assert "Invalid schema for tool t" in failure.message


@pytest.mark.parametrize("fault", [RuntimeError("mystery"), KeyError("mystery")])
async def test_a_fault_that_nobody_knows_is_an_incident_of_which_the_log_says_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    from mcp.client.session import ClientSession

    async def fail(*_args: Any, **_options: Any) -> None:
        await trio.lowlevel.checkpoint()
        raise fault

    monkeypatch.setattr(ClientSession, "call_tool", fail)
    async with running(serving(server(tmp_path, ECHO))) as runtime:
        failure = await failure_of(runtime, one_step("/mcp/echo"), {})
    assert failure.code == ErrorCode.RUNTIME_INTERNAL
    incident = failure.data["incident"]
    assert failure.message == f"tools/call failed, incident {incident}: the log says more"
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert incident in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is fault


# ---- cancellation ---------------------------------------------------------------------------------------


async def test_a_cancelled_step_leaves_at_once_and_the_server_is_told(tmp_path: Path) -> None:
    plugin = server(
        tmp_path,
        """
        called = None
        for request in requests(tool("t")):
            if request["method"] == "notifications/cancelled":
                say(f"cancelled {request['params']['requestId'] == called}")
            elif request["params"]["arguments"].get("answered"):
                text(request, "still here")
            else:
                called = request["id"]
                say("called")
        """,
    )
    seen = Seen()
    async with running(serving(plugin), on_event=seen) as runtime:
        run = await runtime.submit(one_step("/mcp/t"), [{}])
        await until(lambda: "called" in lines_of(seen))
        run.cancel()
        with trio.fail_after(1):
            await run.wait()
        await until(lambda: "cancelled True" in lines_of(seen))
        assert await runtime.run(one_step("/mcp/t"), {"answered": True}) == [
            {"type": "text", "text": "still here"}
        ]
    assert len(seen.of(WorkerStarted)) == 1


async def test_a_cancelled_step_leaves_a_server_that_reads_nothing_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stepflow_trio.runtime import mcp_session

    monkeypatch.setattr(mcp_session, "MAX_UNSENT_MESSAGES", 1)
    plugin = server(
        tmp_path,
        """
        introduced = requests(tool("t"))
        next(introduced)
        say("called")
        time.sleep(60)
        """,
    )
    seen = Seen()
    with trio.CancelScope() as scope:
        async with running(serving(plugin), on_event=seen) as runtime:
            large = {"text": "x" * 3_000_000}  # more than a pipe holds
            run = await runtime.submit(one_step("/mcp/t"), [large, large, large])
            await until(lambda: "called" in lines_of(seen))
            run.cancel()
            with trio.fail_after(1):
                await run.wait()
            scope.cancel()  # the server gets less time to end


# ---- configuration, and without the package -------------------------------------------------------------

CONFIG = """\
plugins:
  tools:
    type: mcp
    command: ${NPX:-npx}
    args: [-y, $SERVER]
    env: { PATH: $PATH }
routes:
  /tools/{*tool}: [{ plugin: tools }]
"""


def test_a_server_is_configured_as_in_the_public_releases(tmp_path: Path) -> None:
    config = read_config(CONFIG, name="c.yml", directory=tmp_path, environ={"SERVER": "x", "PATH": "/bin"})
    assert config.warnings == ()
    assert config.plugins["tools"] == McpPluginConfig(
        command="npx", args=("-y", "x"), env={"PATH": "/bin"}, working_directory=tmp_path
    )


@pytest.mark.parametrize("version", [None, "1.30.0"])
async def test_without_the_package_the_components_fail_and_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    def version_of(_name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(importlib.metadata, "version", version_of)
    environ = {"SERVER": "x", "PATH": os.environ["PATH"]}
    config = read_config(CONFIG, name="c.yml", directory=tmp_path, environ=environ)
    [warning] = config.warnings
    assert warning.startswith("c.yml:2:3: plugins.tools: its components cannot be used: it needs ")
    assert warning.endswith("pip install 'stepflow-trio[mcp]'")
    seen = Seen()
    async with running(config, on_event=seen) as runtime:
        failure = await failure_of(runtime, one_step("/tools/t"), {})
        assert failure.code == ErrorCode.CONFIGURATION_ERROR
        assert "pip install 'stepflow-trio[mcp]'" in failure.message
        assert set(runtime.plugin_problems) == {"tools"}
    assert len(seen.of(StepStarted)) == 1
