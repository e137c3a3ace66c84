"""Our runtime and our workers over HTTP, in real processes: every way there is to reach them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import trio
from own_http_workers import (
    MODES,
    Stage,
    calling,
    config_with,
    open_stage,
    open_worker,
)
from runtime_stage import has_children, open_descriptors

from stepflow_trio import ErrorCode, RunFailed, Worker, open_runtime
from stepflow_trio.runtime.events import StepProgressed, StepRetrying, WorkerEnded, WorkerStarted
from stepflow_trio.runtime.stores import MemoryBlobStore

# The first plane without surrogates, and characters of others.
CHARACTERS = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000), 0x1F600, 0x10FFFF]))

TOKEN = "0123456789abcdef0123"  # noqa: S105 — nobody's


some_modes = pytest.mark.parametrize("mode", ["session", "posts", "hypercorn"])
"""Enough for what does not depend on where the worker is."""


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def nothing_is_left() -> Generator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before
    assert not has_children()


async def failure_of(stage: Stage, component: str, input: Any = None) -> RunFailed:
    with pytest.raises(RunFailed) as failed:
        await stage.run(component, input)
    return failed.value


async def run_for_ever(stage: Stage) -> None:
    while True:
        await stage.run("echo", {"value": 1})


# ---- what goes there and comes back ---------------------------------------------------------------------


async def test_values_come_back_as_they_were_sent(mode: str, tmp_path: Path) -> None:
    values = [None, 0, -1, 2**53, 1.5, "", CHARACTERS, [], {}, {"ключ": ["ä", {"\u2028": True}]}]
    async with open_stage(mode, tmp_path) as stage:
        run = await stage.runtime.submit(calling("echo"), [{"value": value} for value in values])
        await run.wait()
        assert [result.to_json()["result"] for result in run.results if result is not None] == values


@some_modes
@pytest.mark.parametrize("threshold", [0, 1_048_576], ids=["inline", "as-a-blob"])
async def test_ten_megabytes_go_both_ways(mode: str, tmp_path: Path, threshold: int) -> None:
    value = "äöü…" * 1_111_112
    async with open_stage(mode, tmp_path, blobApi={"blobThreshold": threshold}) as stage:
        assert await stage.run("echo_field", {"value": value}) == {"value": value, "length": len(value)}


async def test_large_fields_travel_as_blobs_and_small_ones_do_not(tmp_path: Path) -> None:
    class ListedStore(MemoryBlobStore):
        async def put(self, content: bytes, blob_type: str, filename: str | None = None) -> str:
            stored.append(content)
            return await super().put(content, blob_type, filename)

    stored: list[bytes] = []
    async with open_worker(tmp_path) as worker:
        config = config_with(tmp_path, {"url": worker.url}, blobApi={"blobThreshold": 1000})
        async with open_runtime(config, blob_store=ListedStore()) as runtime:
            for length, times in (900, 0), (2000, 2):
                value = "v" * length
                output = {"value": value, "length": length}
                assert await runtime.run(calling("echo_field"), {"value": value}) == output
                # Once from the runtime, for the input, and once from the worker, for the output.
                assert stored.count(b'"%b"' % value.encode()) == times


@some_modes
async def test_components_store_and_read_blobs(mode: str, tmp_path: Path) -> None:
    data = {"text": "hällo", "numbers": [1, 2.5]}
    async with open_stage(mode, tmp_path) as stage:
        blob_id, is_same = await stage.run("keep", {"data": data})
        assert is_same
        get = {
            "steps": [{"id": "got", "component": "/builtin/get_blob", "input": {"blob_id": blob_id}}],
            "output": {"$step": "got", "path": "$.data"},
        }
        assert await stage.runtime.run(get) == data


async def test_components_run_flows_which_may_lead_back_to_their_worker(mode: str, tmp_path: Path) -> None:
    async with open_stage(mode, tmp_path) as stage:
        deepest = calling("echo")
        inner = {"flow": {"$literal": deepest}, "input": {"$input": "$"}}
        call_echo = {
            "steps": [{"id": "inner", "component": "/w/call", "input": inner}],
            "output": {"$step": "inner"},
        }
        inputs = [{"flow": call_echo, "input": {"value": f"ä{number}"}} for number in range(20)]
        run = await stage.runtime.submit(calling("call"), inputs)
        await run.wait()
        results = [result.to_json()["result"] for result in run.results if result is not None]
        assert [value for _, (_, value) in results] == [f"ä{number}" for number in range(20)]
        told = [(event.fraction, event.message) for event in stage.seen.of(StepProgressed)]
        assert sorted(told) == sorted([(0.25, "calling back"), (0.75, "hat geantwortet: ä")] * 40)


@some_modes
async def test_a_component_s_error_comes_with_all_that_it_says(mode: str, tmp_path: Path) -> None:
    async with open_stage(mode, tmp_path, retries=2) as stage:
        failed = await failure_of(stage, "fail", {"code": -32111})
        assert (failed.code, failed.message, failed.data) == (-32111, "nicht möglich", {"why": "weil"})
        failed = await failure_of(stage, "crash")
        assert (failed.code, failed.message) == (ErrorCode.COMPONENT_FAILED, "KeyError: 'oops'")
        failed = await failure_of(stage, "ehco")
        assert failed.code == ErrorCode.COMPONENT_NOT_FOUND
        assert failed.data["suggestion"] == "did you mean /echo?"
        failed = await failure_of(stage, "echo", {"valeu": 1})
        assert failed.code == ErrorCode.INVALID_INPUT_SCHEMA
        assert stage.seen.of(StepRetrying) == []


@some_modes
async def test_components_are_listed(mode: str, tmp_path: Path) -> None:
    async with open_stage(mode, tmp_path) as stage:
        listed = {each.path: each for each in await stage.runtime.list_components()}
        assert {"/w/echo", "/w/call", "/w/hold"} <= listed.keys()
        assert listed["/w/hold"].info.description == "Is at it for ever."
        assert stage.runtime.plugin_problems == {}


@pytest.mark.parametrize("mode", ["session", "posts"])
async def test_eleven_hundred_calls_are_in_flight_at_once(mode: str, tmp_path: Path) -> None:
    count = 1100
    async with open_stage(mode, tmp_path) as stage:
        inputs = [{"count": count}] * count
        run = await stage.runtime.submit(calling("together"), inputs, max_concurrency=count)
        await run.wait()
    results = [result.to_json() for result in run.results if result is not None]
    assert results == [{"outcome": "success", "result": True}] * count


# ---- what is given up -------------------------------------------------------------------------------------


async def test_cancelling_a_run_ends_its_component_at_once_and_nothing_else(
    mode: str, tmp_path: Path
) -> None:
    async with open_stage(mode, tmp_path) as stage:
        run = await stage.runtime.submit(calling("hold"), [None])
        other = await stage.runtime.submit(calling("first_time"), [None])
        at = await stage.wait_said("hold began")
        await stage.wait_said("first_time began")
        before = await stage.run("pid")
        run.cancel()
        with trio.fail_after(1):
            await stage.logs[at].wait_for("hold ended")
        assert other.status == "running"
        assert not any("first_time ended" in log for log in stage.logs)
        after = {await stage.run("pid") for _ in range(4)}
        pids = {worker.process.pid for worker in stage.workers} or {before}
        assert after <= pids
        assert len(stage.seen.of(WorkerStarted)) == len(stage.logs)


@some_modes
async def test_who_gives_a_run_up_ends_its_component_and_what_that_called(mode: str, tmp_path: Path) -> None:
    async with open_stage(mode, tmp_path) as stage:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.run, "call", {"flow": calling("hold"), "input": None})
            at = await stage.wait_said("hold began")
            nursery.cancel_scope.cancel()
        with trio.fail_after(2):
            await stage.logs[at].wait_for("hold ended")
        assert await stage.run("echo", {"value": 1}) == 1


# ---- what is killed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["session", "posts"])
async def test_a_worker_that_is_killed_is_started_again_and_its_call_made_again(
    mode: str, tmp_path: Path
) -> None:
    async with open_stage(mode, tmp_path, retries=1) as stage:
        run = await stage.runtime.submit(calling("first_time"), [None])
        await stage.wait_said("first_time began")
        [started] = stage.seen.of(WorkerStarted)
        os.kill(started.pid, signal.SIGKILL)
        await run.wait()
        [result] = run.results
        assert result is not None
        attempt, pid = result.to_json()["result"]
        assert (attempt, pid != started.pid) == (2, True)
        [retrying] = stage.seen.of(StepRetrying)
        assert retrying.error.code == ErrorCode.CONNECTION_LOST
        assert "killed by signal 9" in retrying.error.message
        assert "killed by signal 9" in stage.seen.of(WorkerEnded)[0].detail


@pytest.mark.parametrize("session", ["never", "always"])
async def test_a_worker_at_a_url_that_is_killed_is_found_again_when_it_is_there_again(
    tmp_path: Path, session: str
) -> None:
    with trio.fail_after(30):
        async with open_worker(tmp_path) as worker:
            plugin = {"url": worker.url, "session": session}
            async with open_runtime(config_with(tmp_path, plugin, retries=1000)) as runtime:
                run = await runtime.submit(calling("first_time"), [None])
                await worker.log.wait_for("first_time began")
                worker.send(signal.SIGKILL)
                await worker.process.wait_exited()
                async with open_worker(tmp_path, PORT=str(worker.port)) as again:
                    await run.wait()
                    [result] = run.results
                    assert result is not None
                    attempt, pid = result.to_json()["result"]
                    assert attempt > 1
                    assert pid == again.process.pid
                    assert await runtime.run(calling("pid")) == pid
                    _, is_same = await runtime.run(calling("keep"), {"data": {"text": "ä"}})
                    assert is_same, "it was not told where the blobs are"


async def test_of_two_workers_the_other_takes_over_from_one_that_is_killed(tmp_path: Path) -> None:
    async with open_stage("urls", tmp_path, retries=1) as stage:
        run = await stage.runtime.submit(calling("first_time"), [None])
        killed = stage.workers[await stage.wait_said("first_time began")]
        [other] = [worker for worker in stage.workers if worker is not killed]
        killed.send(signal.SIGKILL)
        await run.wait()
        [result] = run.results
        assert result is not None
        assert result.to_json()["result"] == [2, other.process.pid]
        assert {await stage.run("pid") for _ in range(6)} == {other.process.pid}


# ---- what ends in order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["url", "url-session", "hypercorn"])
async def test_a_worker_that_is_asked_to_end_finishes_what_it_is_at(mode: str, tmp_path: Path) -> None:
    here = Worker()
    asked, release = trio.Event(), trio.Event()

    @here.component
    async def gate() -> str:
        asked.set()
        await release.wait()
        return "through"

    async with open_stage(mode, tmp_path, workers={"here": here}) as stage:
        [worker] = stage.workers
        run = await stage.runtime.submit(calling("call"), [{"flow": calling("gate", "here"), "input": {}}])
        await asked.wait()
        worker.send(signal.SIGTERM)
        with pytest.raises(RunFailed) as failed:
            await run_for_ever(stage)  # the signal takes its time to come
        assert failed.value.code == ErrorCode.OVERLOADED
        release.set()
        await run.wait()
        [result] = run.results
        assert result is not None
        assert result.to_json()["result"] == [worker.process.pid, "through"]
        with trio.fail_after(3):
            assert await worker.process.wait_exited() == 0


@pytest.mark.parametrize("mode", ["session", "posts", "urls"])
@pytest.mark.parametrize("is_cancelled", [False, True], ids=["in-order", "cancelled"])
async def test_a_runtime_that_ends_leaves_no_process_and_no_socket(
    mode: str, tmp_path: Path, is_cancelled: bool
) -> None:
    with trio.CancelScope() as scope:
        async with open_stage(mode, tmp_path) as stage:
            await stage.runtime.submit(calling("hold"), [None])
            await stage.wait_said("hold began")
            pids = [event.pid for event in stage.seen.of(WorkerStarted) if event.pid is not None]
            if is_cancelled:
                scope.cancel()
                await trio.lowlevel.checkpoint()
    assert len(pids) == (1 if mode in ("session", "posts") else 0)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_runtime_that_ends_cancels_what_it_was_at_in_a_worker_that_goes_on(tmp_path: Path) -> None:
    with trio.fail_after(20):
        async with open_worker(tmp_path) as worker:
            config = config_with(tmp_path, {"url": worker.url})
            async with open_runtime(config) as runtime:
                await runtime.submit(calling("hold"), [None])
                await worker.log.wait_for("hold began")
            await worker.log.wait_for("hold ended")
            async with open_runtime(config) as runtime:
                assert await runtime.run(calling("pid")) == worker.process.pid


# ---- who may call -----------------------------------------------------------------------------------------


async def test_a_worker_that_asks_for_a_token_serves_who_has_it_and_nobody_else(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with open_worker(tmp_path, TOKEN=TOKEN) as worker:
            plugin = {"url": worker.url, "bearerTokenEnv": "MINE"}
            config = config_with(tmp_path, plugin, environ={"MINE": TOKEN})
            async with open_runtime(config) as runtime:
                assert await runtime.run(calling("pid")) == worker.process.pid
            for refused in (
                config_with(tmp_path, plugin, environ={"MINE": TOKEN[::-1]}),
                config_with(tmp_path, {"url": worker.url}),
            ):
                async with open_runtime(refused) as runtime:
                    with pytest.raises(RunFailed, match="HTTP 401") as failed:
                        await runtime.run(calling("pid"))
                    assert "token" in failed.value.message
                    assert TOKEN not in str(failed.value)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an authority (`ca`), and what it says of a `server` at 127.0.0.1 and of a `client`."""
    directory = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for authority in ("ca", "other-ca"):
        openssl(
            "req",
            "-x509",
            *new,
            "-subj",
            f"/CN={authority}",
            "-keyout",
            f"{authority}.key",
            "-out",
            f"{authority}.pem",
        )
    for name in ("server", "client"):
        openssl(
            "req", "-x509", *new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem",
            "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1",
            "-addext", "basicConstraints=critical,CA:FALSE",
        )  # fmt: skip
    return directory


async def test_calls_travel_over_tls_to_a_worker_that_is_who_it_says(
    tmp_path: Path, certificates: Path
) -> None:
    serving = {"CERTIFICATE": str(certificates / "server.pem"), "KEY": str(certificates / "server.key")}
    with trio.fail_after(30):
        async with open_worker(tmp_path, **serving) as worker:
            plugin = {"url": worker.url, "tls": {"ca": str(certificates / "ca.pem")}}
            async with open_runtime(config_with(tmp_path, plugin)) as runtime:
                inner = {"flow": calling("echo"), "input": {"value": CHARACTERS}}
                assert await runtime.run(calling("call"), inner) == [worker.process.pid, CHARACTERS]
            for tls in ({"ca": str(certificates / "other-ca.pem")}, {}):
                plugin = {"url": worker.url, "tls": tls}
                async with open_runtime(config_with(tmp_path, plugin)) as runtime:
                    with pytest.raises(RunFailed, match="certificate verify failed"):
                        await runtime.run(calling("pid"))


async def test_with_client_certificates_a_worker_serves_only_who_shows_one(
    tmp_path: Path, certificates: Path
) -> None:
    ca = str(certificates / "ca.pem")
    serving = {
        "CERTIFICATE": str(certificates / "server.pem"),
        "KEY": str(certificates / "server.key"),
        "CLIENT_CA": ca,
    }
    shown = {"certificate": str(certificates / "client.pem"), "privateKey": str(certificates / "client.key")}
    with trio.fail_after(30):
        async with open_worker(tmp_path, **serving) as worker:
            config = config_with(tmp_path, {"url": worker.url, "tls": {"ca": ca, **shown}})
            async with open_runtime(config) as runtime:
                assert await runtime.run(calling("pid")) == worker.process.pid
            async with open_runtime(config_with(tmp_path, {"url": worker.url, "tls": {"ca": ca}})) as runtime:
                with pytest.raises(RunFailed) as failed:
                    await runtime.run(calling("pid"))
                assert failed.value.code == ErrorCode.CONNECTION_LOST
