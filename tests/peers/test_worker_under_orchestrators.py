"""Our worker over HTTP under every public orchestrator, started by it and beside it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from orchestrator import (
    Orchestrator,
    configuration,
    given,
    one_step,
    open_orchestrator,
    open_worker,
    plugin_of,
    until,
    worker_error,
)
from releases import WORKERS, needs

RELEASES = ["0.9.0", "0.10.0", "0.11.1"]
WORKER = [sys.executable, WORKERS / "http_worker.py"]

pytestmark = needs(*(f"stepflow-orchestrator-{release}" for release in RELEASES))

HELLO = {"message": "Hello, blobs!", "number": 42, "nested": {"array": [1, 2, 3], "boolean": True}}
HELLO_ID = "868591347a854ba1d0f4875b2dd44e1e8335052af03725a9819f89e0142318b0"

# The whole of the first plane, and the first and last characters of the others.
CHARACTERS = "".join(
    chr(point)
    for start, end in [(0, 0xD800), (0xE000, 0x10000), *((p << 16, (p << 16) + 2) for p in range(1, 17))]
    for point in range(start, end)
) + "".join(chr((plane << 16) + 0xFFFF) for plane in range(1, 17))


@pytest.fixture(scope="module", params=RELEASES)
def orchestrator(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Orchestrator]:
    with open_worker(WORKER) as (_, port):
        config = configuration({"subprocess": plugin_of(WORKER, GIVEN="this"), "remote": plugin_of(port)})
        with open_orchestrator(request.param, tmp_path_factory.mktemp("server"), config) as started:
            yield started


@pytest.fixture(scope="module", params=RELEASES[1:])
def referring(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Orchestrator]:
    """One that hands whatever is larger than 1,000 bytes over as a reference to a blob."""
    config = configuration({"subprocess": plugin_of(WORKER)}, blobApi={"blobThreshold": 1000})
    with open_orchestrator(request.param, tmp_path_factory.mktemp("server"), config) as started:
        yield started


@pytest.fixture(params=["subprocess", "remote"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def quick(orchestrator: Orchestrator) -> str:
    """Where an error costs least: 0.10 waits for three seconds before it gives up what is remote."""
    return "subprocess" if orchestrator.version[:2] == (0, 10) else "remote"


def keeps_errors(orchestrator: Orchestrator) -> bool:
    """Up to 0.10 a run's error has the worker's code and message in its text, and no data."""
    return orchestrator.version >= (0, 11)


def skip_the_slow(orchestrator: Orchestrator) -> None:
    if orchestrator.version[:2] == (0, 10):
        pytest.skip("0.10 says what 0.9 says, after seconds")


def add(mode: str) -> dict[str, Any]:
    return one_step(f"/{mode}/add", {"a": {"$input": "$"}, "b": 1})


# ---- results --------------------------------------------------------------------------------------------


def test_its_components_are_listed_with_their_schemas(orchestrator: Orchestrator) -> None:
    listed = orchestrator.request("GET", "/components?includeSchemas=true")["components"]
    found = [component for component in listed if component["component"].endswith("/add")]
    assert {component["description"] for component in found} == {"add two"}
    assert {tuple(component["input_schema"]["required"]) for component in found} == {("a", "b")}


def test_200_items_are_run(orchestrator: Orchestrator, mode: str) -> None:
    results = orchestrator.results(add(mode), range(200))
    assert results == [{"outcome": "success", "result": {"c": n + 1}} for n in range(200)]


def test_100_items_wait_together(orchestrator: Orchestrator) -> None:
    flow = one_step("/remote/sleeps", {"seconds": 0.3})
    with ThreadPoolExecutor() as pool:
        results = pool.submit(orchestrator.results, flow, range(100), maxConcurrency=100)
        assert len(results.result(timeout=10)) == 100


def test_a_component_is_told_where_it_is(orchestrator: Orchestrator, mode: str) -> None:
    told = orchestrator.run(given(f"/{mode}/who"))
    assert (told["step_id"], told["attempt"]) == ("only", 1)
    assert len(told["flow_id"]) == 64
    assert orchestrator.request("GET", f"/runs/{told['run_id']}")["status"] == "completed"
    assert (len(told["trace_id"]), len(told["span_id"])) == (32, 16)


def test_it_is_started_with_nothing_but_the_environment_that_it_was_given(orchestrator: Orchestrator) -> None:
    environ = orchestrator.run(given("/subprocess/who"))["environ"]
    # Python itself adds the locale that it coerces to.
    assert {key: value for key, value in environ.items() if key != "LC_CTYPE"} == {"GIVEN": "this"}


@pytest.mark.parametrize("size", [100_000, 3_000_000, 20_000_000])
def test_a_large_output_arrives(orchestrator: Orchestrator, quick: str, size: int) -> None:
    """E6, E28: where the blob API refuses what is over 2 MiB, it comes within the answer."""
    assert orchestrator.run(given(f"/{quick}/large", size=size)) == {"text": "x" * size}


def test_a_large_output_is_another_components_input(orchestrator: Orchestrator, quick: str) -> None:
    steps = [
        {"id": "large", "component": f"/{quick}/large", "input": {"size": 3_000_000}},
        {
            "id": "length",
            "component": f"/{quick}/length",
            "input": {"text": {"$step": "large", "path": "text"}},
        },
    ]
    assert orchestrator.run({"steps": steps, "output": {"$step": "length"}}) == {"length": 3_000_000}


# ---- characters -----------------------------------------------------------------------------------------


def test_every_kind_of_character_survives_in_plain_answers(orchestrator: Orchestrator, mode: str) -> None:
    value = {"text": CHARACTERS, CHARACTERS[:3000]: "key"}
    assert orchestrator.run(given(f"/{mode}/echo", value=value)) == {"value": value}


def test_every_kind_of_character_survives_in_an_event_stream(orchestrator: Orchestrator, mode: str) -> None:
    """E7. There in a callback's parameters, and back in its result and the last answer."""
    flow_id = orchestrator.store(one_step(f"/{mode}/echo", {"value": {"$input": "$"}}))
    value = {"text": CHARACTERS, CHARACTERS[:3000]: "key"}
    answer = orchestrator.run(given(f"/{mode}/evaluate", flow_id=flow_id, input=value))
    assert answer == {"value": {"value": value}}


def test_every_kind_of_character_survives_in_a_blob(orchestrator: Orchestrator, mode: str) -> None:
    assert orchestrator.run(given(f"/{mode}/keep", data=CHARACTERS))["data"] == CHARACTERS


# ---- errors ---------------------------------------------------------------------------------------------


def test_a_components_own_error_keeps_its_code_and_data(orchestrator: Orchestrator, quick: str) -> None:
    """E12."""
    data = {"sku": 7, "names": ["é"]}
    error = worker_error(
        orchestrator.failure(given(f"/{quick}/refuses", code=-32110, message="no widgets", data=data))
    )
    assert (error.code, error.message) == (-32110, "no widgets")
    assert error.data == (data if keeps_errors(orchestrator) else None)


def test_an_exception_is_a_failed_component(orchestrator: Orchestrator) -> None:
    skip_the_slow(orchestrator)
    error = worker_error(orchestrator.failure(given("/remote/boom", text="bad")))
    assert error.code == -32100


def test_a_component_that_is_not_there_is_said_so_with_what_there_is(
    orchestrator: Orchestrator, quick: str
) -> None:
    """E22."""
    error = worker_error(orchestrator.failure(given(f"/{quick}/ad")))
    assert error.code == -32001
    assert "/ad" in error.message
    if keeps_errors(orchestrator):
        assert "/add" in error.data["available_components"]


def test_an_input_that_does_not_fit_is_said_so_with_its_place(orchestrator: Orchestrator) -> None:
    skip_the_slow(orchestrator)
    error = worker_error(orchestrator.failure(given("/remote/add", a="x", b=1)))
    assert error.code == -32003
    assert "$.a" in error.message


def test_a_step_that_says_so_is_retried(orchestrator: Orchestrator, mode: str) -> None:
    if mode == "remote" and not keeps_errors(orchestrator):
        pytest.skip("0.9 never retries what is remote, and 0.10 always, after seconds")
    retried = one_step(f"/{mode}/flaky", {"until": 3}, onError={"action": "retry"})
    assert orchestrator.run(retried) == {"attempt": 3}


def test_a_step_that_does_not_say_so_is_not_retried(orchestrator: Orchestrator) -> None:
    if not keeps_errors(orchestrator):
        pytest.skip("up to 0.10 every error is retried")
    error = worker_error(orchestrator.failure(given("/subprocess/flaky", until=2)))
    assert (error.code, error.message) == (-32100, "attempt 1")


def test_an_overloaded_worker_is_asked_again_whatever_the_step_says(orchestrator: Orchestrator) -> None:
    assert orchestrator.run(given("/subprocess/flaky", until=3, code=-32304)) == {"attempt": 3}


# ---- its death ------------------------------------------------------------------------------------------


def test_killed_in_the_middle_of_a_run_it_is_started_again_and_nothing_is_lost(
    orchestrator: Orchestrator,
) -> None:
    steps = [
        {"id": "dies", "component": "/subprocess/dies", "input": {"times": 1}},
        {"id": "sleeps", "component": "/subprocess/sleeps", "input": {"seconds": 0.3}},
        {"id": "keep", "component": "/subprocess/keep", "input": {"data": {"$step": "sleeps"}}},
    ]
    output = {step["id"]: {"$step": step["id"]} for step in steps}
    done = orchestrator.run({"steps": steps, "output": output})
    assert done["dies"]["attempt"] == 2
    assert done["dies"]["pid"] == done["sleeps"]["pid"]
    assert done["keep"]["data"] == done["sleeps"]


@pytest.mark.parametrize("release", ["0.9.0", "0.11.1"])
def test_started_again_beside_an_orchestrator_it_works_without_being_told_anything(
    release: str, tmp_path: Path
) -> None:
    """E19: it is not initialized again, so that from 0.10 it cannot know where the blobs are."""
    with open_worker(WORKER) as (process, port):
        config = configuration({"remote": plugin_of(port)})
        with open_orchestrator(release, tmp_path, config) as orchestrator:
            assert orchestrator.run(given("/remote/keep", data=1))["data"] == 1
            process.kill()
            process.wait()
            with open_worker(WORKER, port):
                flow_id = orchestrator.store(add("remote"))
                evaluate = given("/remote/evaluate", flow_id=flow_id, input=1)
                assert orchestrator.run(evaluate) == {"value": {"c": 2}}
                [result] = orchestrator.results(given("/remote/keep", data=1))
    if release == "0.9.0":
        assert result["result"]["data"] == 1
    else:
        assert "blob" in worker_error(result["error"]).message


@pytest.mark.parametrize("release", RELEASES)
def test_what_it_does_ends_with_an_orchestrator_that_is_killed(release: str, tmp_path: Path) -> None:
    """E3, E21: where a recovered run executes the step again, it is not executed twice at once."""
    with open_worker(WORKER) as (_, port):
        config = configuration({"subprocess": plugin_of(WORKER), "remote": plugin_of(port)})
        marks = {mode: tmp_path / mode for mode in ("subprocess", "remote")}
        with (
            ThreadPoolExecutor() as pool,
            open_orchestrator(release, tmp_path, config, leaves=True) as orchestrator,
        ):
            for mode, mark in marks.items():
                pool.submit(orchestrator.run, given(f"/{mode}/sleeps", seconds=60, mark=str(mark)))
            until(lambda: all(mark.exists() for mark in marks.values()))
            orchestrator.process.kill()
            until(lambda: all(mark.read_text() == "began\ncancelled\n" for mark in marks.values()))


def test_a_plain_function_holds_nobody_up(orchestrator: Orchestrator, tmp_path: Path) -> None:
    """E9."""
    mark = tmp_path / "mark"
    with ThreadPoolExecutor() as pool:
        blocked = pool.submit(orchestrator.run, given("/remote/blocks", seconds=1, mark=str(mark)))
        until(mark.exists)
        assert orchestrator.run(add("remote"), 1) == {"c": 2}
        assert mark.read_text() == "began\n"
        blocked.result()


def test_a_run_that_is_cancelled_there_goes_on_in_the_worker(
    orchestrator: Orchestrator, tmp_path: Path
) -> None:
    """E2: nothing that a worker could do; the run ends as completed."""
    if orchestrator.version < (0, 10):
        pytest.skip("0.9 answers only when a run is over")
    mark = tmp_path / "mark"
    flow_id = orchestrator.store(given("/subprocess/sleeps", seconds=0.3, mark=str(mark)))
    run = orchestrator.request("POST", "/runs", {"flowId": flow_id, "input": [None]})
    until(mark.exists)
    assert orchestrator.request("POST", f"/runs/{run['runId']}/cancel")["status"] == "cancelled"
    until(lambda: mark.read_text() == "began\ndone\n")
    until(lambda: orchestrator.request("GET", f"/runs/{run['runId']}")["status"] == "completed")


# ---- what it asks for -----------------------------------------------------------------------------------


def test_it_stores_a_blob_and_reads_it_again(orchestrator: Orchestrator, mode: str) -> None:
    assert orchestrator.run(given(f"/{mode}/keep", data=HELLO)) == {"blob_id": HELLO_ID, "data": HELLO}


def test_it_stores_bytes_and_reads_them_again(orchestrator: Orchestrator, mode: str) -> None:
    if orchestrator.version < (0, 10):
        pytest.skip("0.9 has no blobs of bytes")
    content = bytes(range(256))
    kept = orchestrator.run(given(f"/{mode}/keep_bytes", hex=content.hex()))
    assert kept == {"blob_id": hashlib.sha256(content).hexdigest(), "hex": content.hex()}


def test_100_callbacks_of_one_component_at_once_are_all_answered(
    orchestrator: Orchestrator, mode: str
) -> None:
    assert orchestrator.run(given(f"/{mode}/keep_many", count=100)) == [f"blob {n}" for n in range(100)]


def test_callbacks_of_50_components_at_once_are_all_answered(orchestrator: Orchestrator, mode: str) -> None:
    flow_id = orchestrator.store(add(mode))
    flow = one_step(f"/{mode}/evaluate", {"flow_id": flow_id, "input": {"$input": "$"}})
    results = orchestrator.results(flow, range(50), maxConcurrency=25)
    assert [result["result"]["value"] for result in results] == [{"c": n + 1} for n in range(50)]


def test_a_blob_that_there_is_not_is_an_error(orchestrator: Orchestrator, quick: str) -> None:
    error = worker_error(orchestrator.failure(given(f"/{quick}/fetch", blob_id="0" * 64)))
    assert error.code == -32100
    assert "blob" in error.message


def test_it_runs_a_flow_by_id_and_by_value(orchestrator: Orchestrator, mode: str) -> None:
    flow_id = orchestrator.store(add(mode))
    assert orchestrator.run(given(f"/{mode}/evaluate", flow_id=flow_id, input=4)) == {"value": {"c": 5}}
    by_value = given(f"/{mode}/evaluate_given", flow=add(mode), input=5)
    assert orchestrator.run(by_value) == {"value": {"c": 6}}


def test_a_flow_that_it_runs_keeps_its_on_error(orchestrator: Orchestrator) -> None:
    """E13."""
    skip_the_slow(orchestrator)
    flow = given("/remote/boom", text="inner")
    flow["steps"][0]["onError"] = {"action": "useDefault", "defaultValue": 7}
    assert orchestrator.run(given("/remote/evaluate_given", flow=flow, input=None)) == {"value": 7}


def test_it_submits_a_run_and_waits_for_it_later(orchestrator: Orchestrator, mode: str) -> None:
    flow_id = orchestrator.store(add(mode))
    told = orchestrator.run(given(f"/{mode}/runs", flow_id=flow_id, inputs=[1, 2, 3]))
    assert told["early"][2] == 3
    assert told["late"] == [told["early"][0], "completed", 3]
    assert [result["result"] for result in told["results"]] == [{"c": 2}, {"c": 3}, {"c": 4}]


def test_a_flow_that_fails_fails_the_component_that_runs_it(orchestrator: Orchestrator) -> None:
    skip_the_slow(orchestrator)
    flow = given("/remote/refuses", code=-32110, message="inner", data=None)
    error = worker_error(orchestrator.failure(given("/remote/evaluate_given", flow=flow, input=None)))
    assert error.code == -32100
    assert ("inner" if keeps_errors(orchestrator) else 'step "only" failed') in error.message


def test_from_0_10_overrides_for_a_run_below_are_not_heeded(orchestrator: Orchestrator) -> None:
    """E4: sent by the worker, dropped by the orchestrator."""
    flow_id = orchestrator.store(add("remote"))
    overrides = {"steps": {"only": {"value": {"input": {"a": 40}}}}}
    told = orchestrator.run(given("/remote/runs", flow_id=flow_id, inputs=[1], overrides=overrides))
    expected = 41 if orchestrator.version < (0, 10) else 2
    assert told["results"] == [{"outcome": "success", "result": {"c": expected}}]


# ---- references to blobs --------------------------------------------------------------------------------


def blob_id_of(text: str) -> str:
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()


def is_stored(orchestrator: Orchestrator, blob_id: str) -> bool:
    return orchestrator.request("GET", f"/blobs/{blob_id}")["blobType"] == "data"


def test_what_is_large_in_an_input_comes_as_a_reference(referring: Orchestrator) -> None:
    text = "i" * 1234
    assert referring.run(given("/subprocess/length", text=text)) == {"length": 1234}
    assert is_stored(referring, blob_id_of(text))


def test_what_is_large_in_an_output_goes_as_a_reference(referring: Orchestrator) -> None:
    assert referring.run(given("/subprocess/large", size=4321)) == {"text": "x" * 4321}
    assert is_stored(referring, blob_id_of("x" * 4321))


def test_a_reference_in_an_input_is_resolved_however_deep(referring: Orchestrator) -> None:
    inner = referring.blob({"é": [1, 2]})
    outer = referring.blob({"inner": {"$blob": inner}})
    flow = given("/subprocess/echo", here={"$blob": inner}, there=[{"deep": {"$blob": outer}}])
    assert referring.run(flow) == {"here": {"é": [1, 2]}, "there": [{"deep": {"inner": {"é": [1, 2]}}}]}


def test_a_reference_to_nothing_is_an_error(referring: Orchestrator) -> None:
    flow = given("/subprocess/echo", here={"$blob": "0" * 64})
    [result] = referring.results(flow)
    assert result["outcome"] == "failed"


def test_large_values_of_many_items_go_by_reference(referring: Orchestrator) -> None:
    flow = one_step("/subprocess/echo", {"value": {"$input": "$"}})
    values = [f"{n} " * 1000 for n in range(60)]
    results = referring.results(flow, values)
    assert [result["result"]["value"] for result in results] == values
