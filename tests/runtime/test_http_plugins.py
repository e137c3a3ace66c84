"""Plugins whose workers speak HTTP: they are started or found, asked how they are, restarted and replaced."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from http_plugin_stage import QUICK, over_http, raw_http_command, raw_http_plugin, started_worker
from runtime_stage import (
    Seen,
    failure_of,
    flow,
    has_children,
    one_step,
    open_descriptors,
    running,
    step,
    until,
)

from stepflow_trio import ConfigError, ErrorCode, open_runtime
from stepflow_trio.errors import BindFailed
from stepflow_trio.flows.results import Failed, Success
from stepflow_trio.runtime import http_launchers
from stepflow_trio.runtime.config import BlobApiConfig, Config, HttpProcessPluginConfig, RemotePluginConfig
from stepflow_trio.runtime.events import StepRetrying, StepStarted, WorkerEnded, WorkerLine, WorkerStarted
from stepflow_trio.runtime.plugin_config import ClientTls, HealthCheck
from stepflow_trio.transports.http import bearer, links
from stepflow_trio.transports.http.bearer import BearerTokens
from stepflow_trio.transports.port_process import open_port_process


@pytest.fixture(autouse=True)
def nothing_is_left() -> Generator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before
    assert not has_children()


@pytest.fixture(autouse=True)
def quick_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for long until a worker that does not listen is killed."""
    monkeypatch.setattr(http_launchers, "open_port_process", partial(open_port_process, ladder=QUICK))


ONE = one_step("/w/x")


# ---- workers that are started here ----------------------------------------------------------------------


async def test_a_worker_over_http_is_started_used_and_ended(tmp_path: Path) -> None:
    script = """
        print("loading", flush=True)
        def execute(self, input):
            print("at work", file=sys.stderr, flush=True)
            self.answer({"output": [input, dict(os.environ), os.getpid()]})
        Worker.execute = execute
        serve()
        """
    seen = Seen()
    plugin = raw_http_plugin(tmp_path, script, env={"ONLY": "this"})
    async with running(over_http(w=plugin), on_event=seen) as runtime:
        value, environment, pid = await runtime.run(ONE, {"ü": [1]})
        assert value == {"ü": [1]}
        assert environment["ONLY"] == "this"
        assert "PATH" not in environment
        assert [component.path for component in await runtime.list_components()][-1] == "/w/x"
        assert runtime.plugin_problems == {}
    assert [(event.plugin, event.pid) for event in seen.of(WorkerStarted)] == [("w", pid)]
    assert [event.text for event in seen.of(WorkerLine)] == ["loading", "at work"]
    assert [event.detail for event in seen.of(WorkerEnded)] == ["it was stopped"]


async def test_many_calls_are_in_flight_at_once(tmp_path: Path) -> None:
    script = """
        together = threading.Barrier(20)
        def execute(self, input):
            together.wait(10)
            self.answer({"output": input})
        Worker.execute = execute
        serve()
        """
    async with running(over_http(w=raw_http_plugin(tmp_path, script))) as runtime:
        run = await runtime.submit(ONE, list(range(20)))
        await run.wait()
        assert run.results == [Success(number) for number in range(20)]


DIES_ONCE = """
all_are_here = threading.Barrier(6)
def execute(self, input):
    if not os.path.exists("died"):
        all_are_here.wait(20)
        if input == "wait":
            time.sleep(30)
        open("died", "w").close()
        print("out of luck", file=sys.stderr, flush=True)
        {how}
    self.answer({{"output": [self.params["attempt"], os.getpid()]}})
Worker.execute = execute
serve()
"""


@pytest.mark.parametrize(
    ("how", "says"),
    [("os._exit(3)", "exited with code 3"), ("os.kill(os.getpid(), 9)", "was killed by signal 9")],
)
async def test_a_worker_that_dies_in_a_call_is_started_again_and_all_its_calls_are_made_again(
    tmp_path: Path, how: str, says: str
) -> None:
    seen = Seen()
    plugin = raw_http_plugin(tmp_path, DIES_ONCE.format(how=how))
    async with running(over_http(1, delay_s=0.01, w=plugin), on_event=seen) as runtime:
        run = await runtime.submit(ONE, ["wait"] * 5 + ["die"])
        await run.wait()
        pids = [event.pid for event in seen.of(WorkerStarted)]
        assert len(pids) == 2
        assert run.results == [Success([2, pids[1]])] * 6
        reasons = [event.error for event in seen.of(StepRetrying)]
        assert {reason.code for reason in reasons} == {ErrorCode.CONNECTION_LOST}
        assert all(says in reason.message for reason in reasons)
        assert all(reason.data["stderr"] == ["out of luck"] for reason in reasons)
        assert await runtime.run(ONE) == [1, pids[1]]


async def test_a_worker_that_dies_between_calls_is_started_again_for_the_next_one(tmp_path: Path) -> None:
    seen = Seen()
    async with running(over_http(0, w=raw_http_plugin(tmp_path)), on_event=seen) as runtime:
        _, first = await runtime.run(ONE)
        os.kill(first, signal.SIGKILL)
        await until(lambda: seen.of(WorkerEnded))
        assert "killed by signal 9" in seen.of(WorkerEnded)[0].detail
        _, second = await runtime.run(ONE)
        assert second != first


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        (
            "os.write(1, b'{\"port\": 1}\\n'); time.sleep(0.2); sys.exit('no luck')",
            "no luck",
        ),
    ],
    ids=["before its port", "before it is healthy"],
)
async def test_a_worker_that_exits_before_it_is_ready_fails_its_steps_at_once_with_its_stderr(
    tmp_path: Path, script: str, says: str
) -> None:
    seen = Seen()
    config = over_http(3, delay_s=60, w=raw_http_plugin(tmp_path, script))
    async with running(config, on_event=seen) as runtime:
        failure = await failure_of(runtime, ONE)
        assert failure.code == ErrorCode.CONNECTION_LOST
        assert failure.data["returncode"] == 1
        assert says in failure.data["stderr"][-1]
        assert len(seen.of(StepStarted)) == 1, "it would do so again: it is not retried"
        assert says in runtime.plugin_problems["w"]


async def test_a_worker_is_waited_for_until_it_is_healthy(tmp_path: Path) -> None:
    script = """
        asked = []
        def health(self):
            asked.append(self.path)
            self.reply(503 if len(asked) < 4 else 204, None)
        Worker.health = health
        def execute(self, input):
            self.answer({"output": len(asked)})
        Worker.execute = execute
        serve()
        """
    plugin = raw_http_plugin(tmp_path, script, health_check=HealthCheck(retry_delay_s=0.01))
    async with running(over_http(w=plugin)) as runtime:
        assert await runtime.run(ONE) == 4


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("Worker.health = lambda self: self.reply(500, None)\nserve()", "was answered with HTTP 500"),
        ("Worker.health = lambda self: self.reply(404, None)\nserve()", "was answered with HTTP 404"),
        ("os.write(1, b'{\"port\": 1}\\n'); time.sleep(60)", "cannot connect to http://127.0.0.1:1"),
    ],
)
async def test_a_worker_that_never_is_healthy_is_given_up_and_ended(
    tmp_path: Path, script: str, says: str
) -> None:
    check = HealthCheck(timeout_s=0.5, retry_delay_s=0.05)
    async with running(over_http(w=raw_http_plugin(tmp_path, script, health_check=check))) as runtime:
        failure = await failure_of(runtime, ONE)
    assert failure.code == ErrorCode.CONNECT_TIMED_OUT
    assert "it was not healthy 0.5 s after it had said its port" in failure.message
    assert says in failure.message


async def test_a_worker_that_cannot_be_started_costs_its_own_steps_only(tmp_path: Path) -> None:
    plugin = raw_http_plugin(tmp_path)
    missing = type(plugin)(command="./no-such-worker", working_directory=tmp_path)
    async with running(over_http(3, delay_s=60, w=plugin, v=missing)) as runtime:
        failure = await failure_of(runtime, one_step("/v/x"))
        assert failure.code == ErrorCode.SPAWN_FAILED
        assert await runtime.run(ONE)


# ---- what is said first ---------------------------------------------------------------------------------

SPELLING = """
keys = []
def initialize(self):
    keys.append(sorted(self.params))
    versions = [key for key in self.params if key.endswith(("ersion"))]
    if versions != [{wanted!r}]:
        {refuse}
    else:
        self.answer({{{answer!r}: 1}})
Worker.initialize = initialize
Worker.execute = lambda self, input: self.answer({{"output": keys}})
serve()
"""
BOTH = ["capabilities", "runtimeProtocolVersion", "runtime_protocol_version"]
CAMEL = ["capabilities", "runtimeProtocolVersion"]
SNAKE = ["runtime_protocol_version"]


@pytest.mark.parametrize(
    "refuse",
    [
        "self.fail(-32602, 'unknown field')",
        "self.fail(-32600, 'unknown field', status=400)",
        "self.reply(400, {'error': {'code': -32600, 'message': 'malformed'}})",
        "self.reply(422, {'detail': 'unknown field'})",
    ],
    ids=["an error", "an error with 400", "an error without an id", "a status"],
)
@pytest.mark.parametrize(
    ("wanted", "answer", "tried"),
    [
        ("runtimeProtocolVersion", "serverProtocolVersion", [BOTH, CAMEL]),
        ("runtime_protocol_version", "server_protocol_version", [BOTH, CAMEL, SNAKE]),
    ],
)
async def test_a_worker_that_refuses_both_spellings_at_once_gets_its_own(
    tmp_path: Path, wanted: str, answer: str, tried: list[list[str]], refuse: str
) -> None:
    script = SPELLING.format(wanted=wanted, answer=answer, refuse=refuse)
    async with running(over_http(w=raw_http_plugin(tmp_path, script))) as runtime:
        assert await runtime.run(ONE) == tried


async def test_a_worker_that_says_nothing_when_a_session_is_opened_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "OPENING_TIMEOUT_S", 0.3)
    worker = """
    def do_get(self):
        if self.path == "/health":
            self.health()
        else:
            time.sleep(60)
    Worker.do_GET = do_get
    serve()
    """
    async with running(over_http(w=raw_http_plugin(tmp_path, worker))) as runtime:
        failure = await failure_of(runtime, ONE)
        assert failure.code == ErrorCode.CONNECTION_LOST
        assert "opened no session within 0.3 s" in failure.message


async def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(tmp_path: Path) -> None:
    await trio.run_process(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-passout", "pass:canary", "-keyout", "k.pem",
         "-out", "c.pem", "-subj", "/CN=x"],
        cwd=tmp_path, capture_stderr=True,
    )  # fmt: skip
    tls = ClientTls(certificate=tmp_path / "c.pem", private_key=tmp_path / "k.pem")
    config = RemotePluginConfig(urls=("https://127.0.0.1:1/",), tls=tls)
    async with running(over_http(w=config)) as runtime:
        failure = await failure_of(runtime, ONE)
        assert failure.code == ErrorCode.CONFIGURATION_ERROR
        assert "k.pem: the private key is encrypted" in failure.message


async def test_what_no_other_spelling_would_heal_is_not_tried_again(tmp_path: Path) -> None:
    script = """
        asked = []
        def initialize(self):
            asked.append(1)
            self.fail(-32006, f"asked {len(asked)} times", data={"supported_versions": [2]})
        Worker.initialize = initialize
        serve()
        """
    async with running(over_http(w=raw_http_plugin(tmp_path, script))) as runtime:
        failure = await failure_of(runtime, ONE)
        assert (failure.code, failure.message) == (ErrorCode.VERSION_MISMATCH, "worker w: asked 1 times")


async def test_workers_are_told_of_blobs_which_they_store_and_read_over_http(tmp_path: Path) -> None:
    script = """
        import urllib.request
        agreed = []
        def initialize(self):
            agreed.append(self.params["capabilities"])
            self.answer({"serverProtocolVersion": 1})
        Worker.initialize = initialize
        def execute(self, input):
            url = agreed[0]["blobApiUrl"]
            if input is None:
                body = json.dumps({"data": {"of": "a worker"}, "blobType": "data"}).encode()
                asked = urllib.request.Request(url, body, {"content-type": "application/json"})
                stored = json.load(urllib.request.urlopen(asked, timeout=10))["blobId"]
            else:
                stored = json.load(urllib.request.urlopen(f"{url}/{input}", timeout=10))["data"]
            said = json.loads(self.headers["stepflow-capabilities"])
            self.answer({"output": [stored, said == agreed[0], agreed[0]["blobThreshold"]]})
        Worker.execute = execute
        serve()
        """
    config = over_http(w=raw_http_plugin(tmp_path, script))
    async with running(config) as runtime:
        blob_id, is_same, threshold = await runtime.run(ONE)
        assert (is_same, threshold) == (True, 2**20)
        assert (await runtime.run(ONE, blob_id))[0] == {"of": "a worker"}
        read = await runtime.run(one_step("/builtin/get_blob", {"blob_id": blob_id}))
        assert read == {"data": {"of": "a worker"}}


async def test_blobs_may_be_for_those_only_who_know_the_token(tmp_path: Path) -> None:
    token = "0123456789abcdef0123"  # noqa: S105 — nobody's
    script = """
        import urllib.error, urllib.request
        def execute(self, input):
            url = json.loads(self.headers["stepflow-capabilities"])["blobApiUrl"]
            headers = {"content-type": "application/json", **input}
            asked = urllib.request.Request(url, b'{"data": 1}', headers)
            try:
                self.answer({"output": urllib.request.urlopen(asked, timeout=10).status})
            except urllib.error.HTTPError as error:
                self.answer({"output": error.code})
        Worker.execute = execute
        serve()
        """
    base = over_http(w=raw_http_plugin(tmp_path, script))
    blob_api = BlobApiConfig(bearer=BearerTokens(token))
    config = Config(plugins=base.plugins, routes=base.routes, blob_api=blob_api, source="of a test")
    async with running(config) as runtime:
        assert await runtime.run(ONE, {}) == 401
        assert await runtime.run(ONE, {"authorization": f"Bearer {token}"}) == 200


async def test_blobs_are_not_served_to_other_machines_by_mistake(tmp_path: Path) -> None:
    blob_api = BlobApiConfig(enabled=True, bind="0.0.0.0:0")
    config = Config(plugins={}, routes=(), blob_api=blob_api, source="of a test")
    with pytest.raises(ConfigError, match="which other machines can reach"):
        async with running(config):
            raise AssertionError("opened")


async def test_where_blobs_cannot_be_served_the_runtime_does_not_open(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        blob_api = BlobApiConfig(enabled=True, bind=f"127.0.0.1:{taken.getsockname()[1]}")
        config = Config(plugins={}, routes=(), blob_api=blob_api, source="of a test")
        with pytest.raises(BindFailed, match="another program listens there"):
            async with running(config):
                raise AssertionError("opened")


REFERS = """
Worker.initialize = lambda self: self.answer({"serverProtocolVersion": 1, "supportsBlobRefs": SUPPORTS})
def execute(self, input):
    self.answer({"output": {"given": json.dumps(input), "returned": input}})
Worker.execute = execute
serve()
"""


@pytest.mark.parametrize("supports", [True, False])
async def test_large_fields_travel_as_blobs_with_a_worker_that_supports_it(
    tmp_path: Path, supports: bool
) -> None:
    base = over_http(w=raw_http_plugin(tmp_path, f"SUPPORTS = {supports}\n{REFERS}"))
    blob_api = BlobApiConfig(blob_threshold_bytes=100)
    config = Config(plugins=base.plugins, routes=base.routes, blob_api=blob_api, source="of a test")
    given = {"large": "x" * 200, "small": "y"}
    async with running(config) as runtime:
        output = await runtime.run(ONE, given)
    assert output["returned"] == given
    travelled = json.loads(output["given"])
    assert travelled["small"] == "y"
    assert ("$blob" in travelled["large"]) is supports


async def test_an_output_that_refers_to_no_blob_fails_as_a_transport_does(tmp_path: Path) -> None:
    script = """
        Worker.initialize = lambda self: self.answer({"serverProtocolVersion": 1, "supportsBlobRefs": True})
        Worker.execute = lambda self, input: self.answer({"output": {"a": [{"$blob": "0" * 64}]}})
        serve()
        """
    async with running(over_http(1, w=raw_http_plugin(tmp_path, script))) as runtime:
        failure = await failure_of(runtime, ONE)
        assert failure.code == ErrorCode.TRANSPORT_ERROR
        assert "$.a[0]" in failure.message


TELLS_CAPABILITIES = """
def execute(self, input):
    self.answer({"output": json.loads(self.headers["stepflow-capabilities"])})
Worker.execute = execute
serve()
"""


@pytest.mark.parametrize(
    ("blob_api", "url"),
    [
        (BlobApiConfig(enabled=False), None),
        (BlobApiConfig(enabled=False, url="http://blobs/v1"), "http://blobs/v1"),
        (BlobApiConfig(url="http://blobs/v1"), "http://blobs/v1"),
    ],
)
async def test_the_configuration_says_what_workers_are_told_of_blobs(
    tmp_path: Path, blob_api: BlobApiConfig, url: str | None
) -> None:
    base = over_http(w=raw_http_plugin(tmp_path, TELLS_CAPABILITIES))
    config = Config(plugins=base.plugins, routes=base.routes, blob_api=blob_api, source="of a test")
    async with running(config) as runtime:
        assert (await runtime.run(ONE)).get("blobApiUrl") == url


OWN = """
from stepflow_trio import Context, Worker
worker = Worker()

@worker.component
async def above(flow: dict, context: Context) -> int:
    return await context.evaluate_flow(flow, None)

@worker.component(inline=True)
def below() -> int:
    return 1

worker.run_http()
"""


async def test_components_that_wait_for_runs_on_their_own_worker_leave_these_a_way_to_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    plugin = HttpProcessPluginConfig(
        command=sys.executable, args=("own.py",), working_directory=tmp_path, session="never"
    )
    nested = one_step("/w/above", {"$literal": one_step("/w/below", {})})
    async with running(over_http(w=plugin)) as runtime:
        run = await runtime.submit(nested, [None] * 300, max_concurrency=300)
        await run.wait()
        assert run.results == [Success(1)] * 300


# ---- workers at a url -----------------------------------------------------------------------------------


async def test_a_worker_at_a_url_is_used_and_left_running(tmp_path: Path) -> None:
    seen = Seen()
    async with started_worker(tmp_path) as (url, process):
        config = over_http(w=RemotePluginConfig(urls=(url,)))
        for _ in range(2):
            async with running(config, on_event=seen) as runtime:
                assert await runtime.run(ONE) == [1, process.pid]
        assert process.returncode is None
    assert [event.pid for event in seen.of(WorkerStarted)] == [None, None]


async def test_a_worker_at_a_url_that_is_not_there_is_tried_again_until_it_is(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    seen = Seen()
    config = over_http(100, delay_s=0.05, w=RemotePluginConfig(urls=(f"http://127.0.0.1:{port}/",)))
    async with running(config, on_event=seen) as runtime, trio.open_nursery() as nursery:
        results: list[Any] = []

        async def run() -> None:
            results.append(await runtime.run(ONE))

        nursery.start_soon(run)
        await until(lambda: len(seen.of(StepRetrying)) > 1)
        assert "cannot connect" in runtime.plugin_problems["w"]
        async with started_worker(tmp_path, f"serve({port})"):
            await until(lambda: results)
    assert results[0][0] > 1
    reason = seen.of(StepRetrying)[0].error
    assert reason.code == ErrorCode.CONNECTION_LOST
    assert f"worker w at http://127.0.0.1:{port}/: cannot connect" in reason.message


async def test_a_worker_that_was_restarted_at_its_url_is_initialized_anew(tmp_path: Path) -> None:
    script = "Worker.execute = lambda self, input: self.answer({'output': [os.getpid(), said]})\n"
    async with (
        started_worker(tmp_path, script + "serve()") as (url, first),
        running(over_http(w=RemotePluginConfig(urls=(url,)))) as runtime,
    ):
        assert (await runtime.run(ONE))[0] == first.pid
        os.kill(first.pid, signal.SIGKILL)
        await first.wait_exited()
        assert (await failure_of(runtime, ONE)).code == ErrorCode.CONNECTION_LOST
        port = url.rstrip("/").rpartition(":")[2]
        async with started_worker(tmp_path, script + f"serve({port})") as (_, second):
            pid, said = await runtime.run(ONE)
            assert pid == second.pid
            assert said[0] == "initialize"


async def test_a_worker_at_a_url_that_is_not_healthy_gets_nothing(tmp_path: Path) -> None:
    script = "Worker.health = lambda self: self.reply(503, None)\nserve()"
    async with (
        started_worker(tmp_path, script) as (url, _),
        running(over_http(w=RemotePluginConfig(urls=(url,)))) as runtime,
    ):
        failure = await failure_of(runtime, ONE)
        assert failure.code == ErrorCode.CONNECTION_LOST
        assert "GET /health was answered with HTTP 503" in failure.message


async def test_a_worker_at_a_url_that_knows_no_health_is_used(tmp_path: Path) -> None:
    script = "Worker.health = lambda self: self.reply(404, None)\nserve()"
    async with (
        started_worker(tmp_path, script) as (url, process),
        running(over_http(w=RemotePluginConfig(urls=(url,)))) as runtime,
    ):
        assert await runtime.run(ONE) == [1, process.pid]


TELLS = """
Worker.execute = lambda self, input: self.answer({"output": self.headers["authorization"]})
serve()
"""


@pytest.mark.parametrize("from_file", [True, False])
async def test_the_token_is_sent_to_the_worker(tmp_path: Path, from_file: bool) -> None:
    token = "0123456789abcdef0123"  # noqa: S105 — nobody's
    (tmp_path / "token").write_text(token + "\n")
    (tmp_path / "token").chmod(0o600)
    async with started_worker(tmp_path, TELLS) as (url, _):
        where: dict[str, Any] = (
            {"bearer_file": tmp_path / "token"} if from_file else {"bearer": BearerTokens(token)}
        )
        async with running(over_http(w=RemotePluginConfig(urls=(url,), **where))) as runtime:
            assert await runtime.run(ONE) == f"Bearer {token}"


ROTATING = """
token = None
def execute(self, input):
    global token
    said = self.headers["authorization"]
    if token is None:
        token = said
        self.answer({"output": said})
    elif said == token:
        self.reply(401, {})
    else:
        self.answer({"output": said})
Worker.execute = execute
serve()
"""


async def test_a_token_that_is_written_anew_is_sent_with_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bearer, "RECHECK_S", 0.0)
    file = tmp_path / "token"
    file.write_text("a" * 20)
    file.chmod(0o600)
    seen = Seen()
    async with started_worker(tmp_path, ROTATING) as (url, _):
        config = over_http(w=RemotePluginConfig(urls=(url,), bearer_file=file))
        async with running(config, on_event=seen) as runtime:
            assert await runtime.run(ONE) == "Bearer " + "a" * 20
            file.write_text("b" * 20)
            assert await runtime.run(ONE) == "Bearer " + "b" * 20
    assert len(seen.of(WorkerStarted)) == 1


@pytest.mark.parametrize("what", ["token", "authority", "certificate"])
async def test_a_file_that_cannot_be_used_costs_only_its_own_plugin(tmp_path: Path, what: str) -> None:
    gone = tmp_path / "gone.pem"
    (tmp_path / "empty.pem").touch()
    configs = {
        "token": RemotePluginConfig(urls=("https://127.0.0.1:1/",), bearer_file=gone),
        "authority": RemotePluginConfig(urls=("https://127.0.0.1:1/",), tls=ClientTls(ca=gone)),
        "certificate": RemotePluginConfig(
            urls=("https://127.0.0.1:1/",),
            tls=ClientTls(certificate=tmp_path / "empty.pem", private_key=gone),
        ),
    }
    async with running(over_http(3, delay_s=60, w=configs[what], v=raw_http_plugin(tmp_path))) as runtime:
        failure = await failure_of(runtime, ONE)
        assert failure.code == ErrorCode.CONFIGURATION_ERROR
        assert str(gone) in failure.message or "empty.pem" in failure.message
        assert await runtime.run(one_step("/v/x"))


async def test_a_worker_elsewhere_is_not_told_of_blobs_that_it_cannot_reach(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = RemotePluginConfig(urls=("http://192.0.2.1:1/",))
    async with running(over_http(w=plugin)):
        pass
    assert "is not told of the blob API" in caplog.text
    caplog.clear()
    base = over_http(w=plugin)
    told = BlobApiConfig(url="http://runtime.internal/blobs")
    async with running(Config(plugins=base.plugins, routes=base.routes, blob_api=told, source="of a test")):
        pass
    assert "is not told" not in caplog.text


# ---- several urls ---------------------------------------------------------------------------------------


async def test_of_two_workers_one_may_die(tmp_path: Path) -> None:
    seen = Seen()
    async with started_worker(tmp_path) as (url_1, first), started_worker(tmp_path) as (url_2, second):
        config = over_http(2, delay_s=0.01, w=RemotePluginConfig(urls=(url_1, url_2)))
        async with running(config, on_event=seen) as runtime:
            await until(lambda: len(seen.of(WorkerStarted)) == 2)
            run = await runtime.submit(ONE, [None] * 10)
            await run.wait()
            pids = [result.result[1] for result in run.results if isinstance(result, Success)]
            assert sorted(pids) == sorted([first.pid, second.pid] * 5)
            os.kill(first.pid, signal.SIGKILL)
            await first.wait_exited()
            run = await runtime.submit(ONE, [None] * 10)
            await run.wait()
            assert not [result for result in run.results if isinstance(result, Failed)]
            assert {result.result[1] for result in run.results if isinstance(result, Success)} == {second.pid}
            assert runtime.plugin_problems == {}


# ---- the runtime's own end ------------------------------------------------------------------------------

RUNTIME = """
import sys, trio
from stepflow_trio import open_runtime

FLOW = {"steps": [{"id": "s", "component": "/w/x", "input": {}}], "output": {"$step": "s"}}

async def main():
    async with open_runtime("config.json") as runtime:
        await runtime.run(FLOW)

trio.run(main)
"""

LIVES = """
import socket
lifeline = socket.socket(socket.AF_UNIX)
lifeline.connect("lifelines")
def execute(self, input):
    lifeline.send(b"at work")
    time.sleep(60)
Worker.execute = execute
serve()
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_no_worker_over_http_outlives_its_runtime_s_process(tmp_path: Path, signum: signal.Signals) -> None:
    command, *args = raw_http_command(tmp_path, LIVES)
    config = {
        "plugins": {"w": {"type": "stepflow", "command": command, "args": args}},
        "routes": {"/w/{*component}": [{"plugin": "w"}]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "runtime.py").write_text(textwrap.dedent(RUNTIME))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "lifelines"))
        listener.listen()
        listener.settimeout(20)
        runtime = subprocess.Popen(
            [sys.executable, "runtime.py"],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            lifeline, _ = listener.accept()
            with lifeline:
                lifeline.settimeout(20)
                assert lifeline.recv(100) == b"at work"
                runtime.send_signal(signum)
                runtime.wait(20)
                # The end of the line proves the worker's, in the kernel.
                assert lifeline.recv(100) == b""
        finally:
            runtime.kill()
            runtime.wait()


async def test_cancelling_a_run_closes_the_request_that_carries_its_component(tmp_path: Path) -> None:
    script = """
        def execute(self, input):
            open("began", "w").close()
            assert self.connection.recv(1) == b""  # the client closes its end
            open("closed", "w").close()
        Worker.execute = execute
        serve()
        """
    async with running(over_http(w=raw_http_plugin(tmp_path, script))) as runtime:
        run = await runtime.submit(ONE, [None])
        await until((tmp_path / "began").exists)
        run.cancel()
        await run.wait()
        await until((tmp_path / "closed").exists)


async def test_a_flow_runs_over_workers_of_both_transports(tmp_path: Path) -> None:
    first, second = raw_http_plugin(tmp_path), raw_http_plugin(tmp_path)
    shared = flow(step("a", "/v/x"), step("b", "/w/x"), output=[{"$step": "a"}, {"$step": "b"}])
    async with running(over_http(v=first, w=second)) as runtime:
        (_, pid_1), (_, pid_2) = await runtime.run(shared)
        assert pid_1 != pid_2


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


@pytest.mark.slow
def test_a_runtime_with_a_worker_over_http_can_be_cancelled_anywhere_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    plugin = raw_http_plugin(tmp_path)
    results: list[Any] = []

    async def main(cancel: CancelAtStep) -> None:
        seen = Seen()
        with trio.fail_after(20), cancel.scope:
            async with open_runtime(over_http(w=plugin), on_event=seen) as runtime:
                results.append(await runtime.run(ONE))
        assert len(seen.of(WorkerStarted)) <= len(seen.of(WorkerEnded)) <= 1

    def run(point: int | None) -> int:
        before = open_descriptors()
        cancel = CancelAtStep(point)
        trio.run(main, cancel, instruments=[cancel])
        assert not has_children(), point
        assert open_descriptors() == before, point
        return cancel.steps

    steps = run(None)
    assert len(results) == 1
    assert steps > 40
    # Not at each: every run starts a worker.
    for point in range(1, steps + 1, 2):
        run(point)
