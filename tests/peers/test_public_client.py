"""The client of stepflow-py 0.11.2 at our REST API, and at the public server's for comparison."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from http.client import HTTPConnection
from typing import Any

import jsonschema_rs
import pytest
from orchestrator import configuration, open_orchestrator
from releases import WORKERS, needs, sdk_python

from stepflow_trio.flows.model import flow_id
from stepflow_trio.flows.reader import flow_from_json

pytestmark = needs("stepflow-py-0.11.2", "stepflow-orchestrator-0.11.1")

CLIENT_S = 50
STOP_S = 10

WORKER = """
import trio
from stepflow_trio import Context, Worker
worker = Worker()

@worker.component
async def forever(context: Context) -> None:
    try:
        await trio.sleep_forever()
    finally:
        with open({seen!r}, "a") as file:
            file.write("cancelled\\n")

worker.run_stdio()
"""


class Served:
    """A server, and what the client said of each of its calls to it."""

    def __init__(self, port: int, endless: str | None = None) -> None:
        self.port = port
        command = [sdk_python("0.11.2"), WORKERS / "sdk_client.py", f"http://127.0.0.1:{port}"]
        ran = subprocess.run(
            [*map(str, command), *([endless] if endless else [])],
            capture_output=True,
            encoding="utf-8",
            timeout=CLIENT_S,
        )
        assert ran.returncode == 0, ran.stderr
        self.said: dict[str, Any] = json.loads(ran.stdout)

    def get(self, path: str) -> Any:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", f"/api/v1{path}")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    directory = tmp_path_factory.mktemp("ours")
    (directory / "worker.py").write_text(WORKER.format(seen=str(directory / "seen")))
    plugin = {"type": "stepflow", "transport": "stdio", "command": sys.executable, "args": ["worker.py"]}
    config = directory / "config.json"
    config.write_text(json.dumps(configuration({"w": plugin})))
    command = [sys.executable, "-m", "stepflow_trio", "serve", "--port", "0", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            served = Served(json.loads(line)["port"], "/w/forever")
            served.said["seen"] = (directory / "seen").read_text()
            yield served
            process.terminate()
            _, errors = process.communicate(timeout=STOP_S)
            assert process.returncode == 0, errors
        finally:
            process.kill()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    with open_orchestrator("0.11.1", tmp_path_factory.mktemp("theirs"), configuration({})) as started:
        yield Served(started.port)


def outcomes(run: Any) -> list[Any]:
    return [(each["itemIndex"], each["status"], each["result"]) for each in run["results"]]


def test_every_call_of_the_client_does_what_it_says(ours: Served) -> None:
    said = ours.said
    assert said["is_healthy"] is True
    assert {"/builtin/put_blob", "/w/forever"} <= set(said["components"])
    assert (said["dry_run"]["stored"], said["store_flow"]["stored"]) == (False, True)
    assert said["dry_run"]["flowId"] == said["store_flow"]["flowId"]
    assert said["store_flow"]["flowId"] == flow_id(flow_from_json(said["get_flow"]["flow"]))
    assert said["get_flow_variables"]["envVars"] == {"word": "PUBLIC_WORD"}
    assert (said["fatal"]["stored"], said["fatal"]["diagnostics"]["numFatal"]) == (False, 1)
    result = {"outcome": "success", "result": {"data": {"n": 1}, "word": "given"}}
    assert outcomes(said["run"]) == [(0, "completed", result)]
    assert said["run_from_env"]["results"][0]["result"]["result"]["word"] == "environment"
    assert [each["result"]["result"]["data"]["n"] for each in said["batch"]["results"]] == [0, 1, 2, 3, 4]
    assert said["get_run"]["status"] == "completed"
    assert len(said["get_run_items"]) == 5
    assert said["overrides"]["results"][0]["result"]["result"]["data"] == "patched"
    assert "put" in said["get_patched"]["overrides"]["steps"]
    assert {each["status"] for each in said["steps_of_item"]["steps"].values()} == {"completed"}
    assert len(said["list_page"]["runs"]) == 2
    assert [each["runId"] for each in said["list_tree"]["runs"]] == [said["run"]["runId"]]
    assert said["get_blob"]["data"] == {"a": 1}


def test_a_cancelled_run_is_cancelled_and_stays_so(ours: Served) -> None:
    assert ours.said["waited"]["status"] == "running"
    assert ours.said["cancel_run"]["status"] == "cancelled"
    assert ours.said["cancelled"]["status"] == "cancelled"
    assert ours.said["seen"] == "cancelled\n", "the component was told"


def test_what_is_deleted_is_gone(ours: Served) -> None:
    for name in ("deleted_run", "deleted_flow"):
        assert ours.said[name] == {"status": 404, "code": 404, "has_message": True}


def test_it_answers_what_the_public_server_answers(ours: Served, theirs: Served) -> None:
    mine, public = ours.said, theirs.said
    assert mine["refusals"] == public["refusals"]
    for name in ("dry_run", "store_flow", "fatal"):
        assert mine[name]["flowId"] == public[name]["flowId"]
        assert mine[name]["stored"] == public[name]["stored"]
        found = [
            {(each["kind"], each["code"], each["level"]) for each in side[name]["diagnostics"]["diagnostics"]}
            for side in (mine, public)
        ]
        assert found[0] >= {each for each in found[1] if each[2] != "warning"}
    assert mine["get_flow_variables"] == public["get_flow_variables"]
    assert public["get_flow"] is None, "the public server leaves out what its own client insists on"
    for name in ("run", "run_from_env", "batch", "overrides"):
        assert outcomes(mine[name]) == outcomes(public[name])
        assert mine[name]["items"] == public[name]["items"]
    assert mine["flow_of_run"] == public["flow_of_run"]
    assert mine["store_blob"] == public["store_blob"]
    assert mine["get_blob"] == public["get_blob"]
    for name in ("steps", "steps_of_item"):
        shown = [
            {id_: (each["status"], each["component"]) for id_, each in side[name]["steps"].items()}
            for side in (mine, public)
        ]
        assert shown[0] == shown[1]
    assert {each["status"] for each in mine["list_runs"]["runs"]} >= {"completed"}


def test_our_answers_fit_the_public_server_s_own_description(ours: Served, theirs: Served) -> None:
    document = theirs.get("/openapi.json")
    schemas = document["components"]

    def fits(name: str, value: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": schemas}
        jsonschema_rs.validator_for(schema).validate(value)

    fits("HealthResponse", ours.get("/health"))
    fits("ListComponentsResponse", ours.get("/components"))
    listed = ours.get("/runs")
    fits("ListRunsResponse", listed)
    for run in listed["runs"]:
        path = f"/runs/{run['runId']}"
        fits("RunDetails", ours.get(path))
        fits("ListItemsResponse", ours.get(f"{path}/items"))
        fits("ListStepRunsResponse", ours.get(f"{path}/steps"))
        fits("ListStepRunsResponse", ours.get(f"{path}/steps?itemIndex=0"))
    for flow in ours.get("/flows")["flows"]:
        fits("FlowResponse", ours.get(f"/flows/{flow['flowId']}"))
        fits("FlowVariablesResponse", ours.get(f"/flows/{flow['flowId']}/variables"))
    fits("ErrorResponse", ours.get("/runs/x"))


def test_ours_describes_every_call_that_the_public_document_does(ours: Served, theirs: Served) -> None:
    mine, public = ours.get("/openapi.json")["paths"], theirs.get("/openapi.json")["paths"]

    def calls(paths: Any) -> dict[tuple[str, str], Any]:
        return {
            (method, path.removeprefix("/api/v1")): operation
            for path, operations in paths.items()
            for method, operation in operations.items()
        }

    described = calls(mine)
    for call, operation in calls(public).items():
        if call[1] == "/openapi.json":
            continue
        own = described[call]
        names = {each["name"] for each in own.get("parameters", ())}
        asked = {each["name"] for each in operation.get("parameters", ())} - {"error"}
        assert asked <= names, call
        good = {status for status in operation["responses"] if status.startswith("2")}
        assert good <= own["responses"].keys(), call
