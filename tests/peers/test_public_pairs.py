"""The public workers under the public orchestrators: that the harness drives them, and what they get wrong.

What is pinned here says why ours does it otherwise; ``docs/peers.md`` lists it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from orchestrator import (
    NotStarted,
    Orchestrator,
    Refused,
    configuration,
    given,
    one_step,
    open_orchestrator,
    open_worker,
    plugin_of,
    until,
    worker_error,
)
from releases import WORKERS, needs, sdk_python

PAIRS = [("0.9.0", "0.9.2"), ("0.10.0", "0.11.2"), ("0.11.1", "0.11.2")]
RELEASES = [release for release, _ in PAIRS]
MODES = ["subprocess", "remote"]

pytestmark = needs(
    *(f"stepflow-orchestrator-{release}" for release in RELEASES),
    *(f"stepflow-py-{sdk}" for _, sdk in PAIRS),
)


def sdk_worker(sdk: str) -> list[Path]:
    return [sdk_python(sdk), WORKERS / "sdk_http.py"]


RAW_WORKER: list[str | Path] = [sys.executable, "-I", "-S", WORKERS / "raw_sse.py"]


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: f"{pair[0]}-with-{pair[1]}")
def orchestrator(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Orchestrator]:
    release, sdk = request.param
    command = sdk_worker(sdk)
    with open_worker(command) as (_, port):
        plugins = {"subprocess": plugin_of(command), "remote": plugin_of(port), "raw": plugin_of(RAW_WORKER)}
        with open_orchestrator(release, tmp_path_factory.mktemp(release), configuration(plugins)) as started:
            yield started


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def quick(orchestrator: Orchestrator) -> str:
    """Where an error costs least: 0.10 waits for three seconds before it gives up what is remote."""
    return "subprocess" if orchestrator.version[:2] == (0, 10) else "remote"


def is_old(orchestrator: Orchestrator) -> bool:
    return orchestrator.version < (0, 11)


# ---- the harness drives them ----------------------------------------------------------------------------


def test_100_items_are_run(orchestrator: Orchestrator, mode: str) -> None:
    results = orchestrator.results(one_step(f"/{mode}/add", {"a": {"$input": "$"}, "b": 1}), range(100))
    assert results == [{"outcome": "success", "result": {"c": n + 1}} for n in range(100)]


def test_a_component_stores_and_reads_a_blob(orchestrator: Orchestrator, mode: str) -> None:
    assert orchestrator.run(given(f"/{mode}/keep", data={"a": [1, "é"]}))["data"] == {"a": [1, "é"]}


def test_a_component_runs_flows(orchestrator: Orchestrator, mode: str) -> None:
    flow_id = orchestrator.store(one_step(f"/{mode}/add", {"a": {"$input": "$"}, "b": 1}))
    assert orchestrator.run(given(f"/{mode}/evaluate", flow_id=flow_id, input=4)) == {"value": {"c": 5}}
    late = orchestrator.run(given(f"/{mode}/runs", flow_id=flow_id, inputs=[1, 2]))["late"]
    assert [item["result"]["result"] for item in late["results"]] == [{"c": 2}, {"c": 3}]


def test_a_killed_worker_is_started_again_for_attempt_2(orchestrator: Orchestrator) -> None:
    assert orchestrator.run(given("/subprocess/dies", times=1))["attempt"] == 2


def test_a_worker_is_started_with_nothing_but_its_own_environment(orchestrator: Orchestrator) -> None:
    told = orchestrator.run(given("/subprocess/who"))
    # Python itself adds the locale that it coerces to.
    assert set(told["environ"]) <= {"LC_CTYPE"}


# ---- errors ---------------------------------------------------------------------------------------------


def test_the_code_and_data_of_a_components_own_error_are_lost(orchestrator: Orchestrator, quick: str) -> None:
    """E12."""
    refusal = given(f"/{quick}/refuses", code=-32110, message="no widgets", data={"sku": 7})
    failure = orchestrator.failure(refusal)
    if is_old(orchestrator):
        # What the worker said is text in a stack of the orchestrator's own.
        assert (failure["code"], failure["message"]) == (500, 'step "only" failed')
    error = worker_error(failure)
    failed = -32003 if orchestrator.version < (0, 10) else -32100
    assert (error.code, error.message) == (failed, "Component execution failed: no widgets")
    assert not error.data


def test_what_component_is_not_there_is_said_twice(orchestrator: Orchestrator) -> None:
    """E22."""
    if orchestrator.version[:2] == (0, 10):
        pytest.skip("the worker is the same as under 0.11.1, and 0.10 takes seconds")
    error = worker_error(orchestrator.failure(given("/remote/nope")))
    assert (error.code, error.message) == (-32001, "Component 'Component '/nope' not found' not found")


def test_up_to_0_10_any_error_restarts_the_worker_and_is_tried_again(orchestrator: Orchestrator) -> None:
    """Whatever the step's onError; whoever else is at work in that process loses its call."""
    first = orchestrator.run(given("/subprocess/who"))["pid"]
    [result] = orchestrator.results(given("/subprocess/flaky", until=2))
    second = orchestrator.run(given("/subprocess/who"))["pid"]
    if is_old(orchestrator):
        assert result == {"outcome": "success", "result": {"attempt": 2}}
        assert first != second
    else:
        assert worker_error(result["error"]).message == "Component execution failed: attempt 1"
        assert first == second


def test_up_to_0_10_who_else_is_at_work_in_that_worker_loses_its_call(
    orchestrator: Orchestrator, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    with ThreadPoolExecutor() as pool:
        other = pool.submit(orchestrator.results, given("/subprocess/sleeps", seconds=0.3, mark=str(mark)))
        until(mark.exists)
        orchestrator.failure(given("/subprocess/nope"))
        other.result()
    assert mark.read_text().startswith("began\nbegan\n") is is_old(orchestrator)


def test_0_9_never_retries_what_is_remote(orchestrator: Orchestrator) -> None:
    retried = one_step("/remote/flaky", {"until": 2}, onError={"action": "retry"})
    [result] = orchestrator.results(retried)
    assert result["outcome"] == ("failed" if orchestrator.version < (0, 10) else "success")


# ---- what they can read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["plain", "commented", "cut_anywhere"])
def test_an_event_stream_as_we_write_it_is_read(orchestrator: Orchestrator, answer: str) -> None:
    assert orchestrator.run(given(f"/raw/{answer}")) == {"text": "é"}


@pytest.mark.parametrize("answer", ["cut_in_a_character", "crlf", "no_space", "two_lines", "unfinished"])
def test_an_event_stream_that_the_standard_allows_is_not_read(
    orchestrator: Orchestrator, answer: str
) -> None:
    """E7; the last is one that nobody reads."""
    [result] = orchestrator.results(given(f"/raw/{answer}"))
    assert result["outcome"] == "failed"


def asked(orchestrator: Orchestrator, method: str, **params: Any) -> Any:
    """What the orchestrator answers to a worker's call; None where it is silent."""
    return orchestrator.run(given("/raw/ask", call={"method": method, "params": params}))["answer"]


def test_a_call_that_is_cut_in_a_character_is_never_answered(orchestrator: Orchestrator) -> None:
    """E7: what hangs then is the run."""
    if orchestrator.version < (0, 10):
        whole, cut = ({"data": text, "blob_type": "data"} for text in ("e", "é"))
        assert "blob_id" in asked(orchestrator, "blobs/put", **whole)["result"]
        assert asked(orchestrator, "blobs/put", **cut) is None
    else:
        assert "error" in asked(orchestrator, "runs/get", runId="e")
        assert asked(orchestrator, "runs/get", runId="é") is None


def test_a_call_that_the_orchestrator_does_not_know_is_never_answered(orchestrator: Orchestrator) -> None:
    assert asked(orchestrator, "no/such") is None
    if orchestrator.version >= (0, 10):
        assert asked(orchestrator, "blobs/put", data=1, blob_type="data") is None


@pytest.mark.parametrize("size", [2_000_000, 2_500_000])
def test_from_0_10_an_output_field_over_2_mib_cannot_be_stored(
    orchestrator: Orchestrator, quick: str, size: int
) -> None:
    """E6, E28: the worker makes a blob of what is over 1 MiB, the blob API takes 2 MiB."""
    [result] = orchestrator.results(given(f"/{quick}/large", size=size))
    if orchestrator.version >= (0, 10) and size > 2 * 2**20:
        assert "413 Payload Too Large" in worker_error(result["error"]).message
    else:
        assert len(result["result"]["text"]) == size


def test_a_request_body_over_2_mib_is_refused(orchestrator: Orchestrator) -> None:
    """E6."""
    with pytest.raises(Refused) as caught:
        orchestrator.run(one_step("/remote/echo", {"value": {"$input": "$"}}), "x" * 2_200_000)
    assert caught.value.status == 413


# ---- their processes ------------------------------------------------------------------------------------


def test_a_plain_function_holds_up_everybody_in_its_worker(
    orchestrator: Orchestrator, tmp_path: Path
) -> None:
    """E9."""
    mark = tmp_path / "mark"
    with ThreadPoolExecutor() as pool:
        blocked = pool.submit(orchestrator.run, given("/remote/blocks", seconds=0.5, mark=str(mark)))
        until(mark.exists)
        assert orchestrator.run(given("/remote/add", a=1, b=1)) == {"c": 2}
        assert mark.read_text() == "began\ndone\n"
        blocked.result()


@pytest.mark.parametrize(("release", "sdk"), [("0.9.0", "0.11.2"), ("0.10.0", "0.9.2"), ("0.11.1", "0.9.2")])
def test_an_orchestrator_does_not_start_with_a_worker_of_the_other_generation(
    release: str, sdk: str, tmp_path: Path
) -> None:
    """E19, E23."""
    plugins = {"other": plugin_of(sdk_worker(sdk))}
    with (
        pytest.raises(NotStarted),
        open_orchestrator(release, tmp_path, configuration(plugins)),
    ):
        pass


@pytest.mark.parametrize(("release", "sdk"), [PAIRS[0], PAIRS[2]])
def test_a_remote_worker_that_is_started_again_is_not_told_of_the_blobs(
    release: str, sdk: str, tmp_path: Path
) -> None:
    """E19."""
    command = sdk_worker(sdk)
    with open_worker(command) as (process, port):
        config = configuration({"remote": plugin_of(port)})
        with open_orchestrator(release, tmp_path, config) as orchestrator:
            assert orchestrator.run(given("/remote/keep", data=1))["data"] == 1
            process.kill()
            process.wait()
            with open_worker(command, port):
                [result] = orchestrator.results(given("/remote/keep", data=1))
    if release == "0.9.0":
        assert result["result"]["data"] == 1
    else:
        assert "Blob API URL not configured" in worker_error(result["error"]).message


@pytest.mark.parametrize(("release", "sdk"), PAIRS)
def test_a_worker_outlives_an_orchestrator_that_is_killed(release: str, sdk: str, tmp_path: Path) -> None:
    """E21."""
    config = configuration({"subprocess": plugin_of(sdk_worker(sdk))})
    with open_orchestrator(release, tmp_path, config) as orchestrator:
        pid: Any = orchestrator.run(given("/subprocess/who"))["pid"]
        assert orchestrator.end(signal.SIGKILL, grace_s=0.5) == [pid]
