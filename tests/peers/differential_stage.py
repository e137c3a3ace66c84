"""One flow on two runtimes: the public orchestrator and ours, with the same components, side by side."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import trio
from orchestrator import Orchestrator, Refused, configuration, open_orchestrator, open_worker, plugin_of
from releases import WORKERS
from ruamel.yaml import YAML
from workers.differential_worker import new_worker

from stepflow_trio import FlowInvalid, RpcError, Runtime, Worker, open_runtime
from stepflow_trio.flows.model import Flow, flow_id
from stepflow_trio.flows.overrides import apply_overrides
from stepflow_trio.flows.reader import examine_flow_json, flow_from_json
from stepflow_trio.flows.results import Failed
from stepflow_trio.runtime.config import DEFAULT_CONFIG, Config
from stepflow_trio.runtime.retries import Constant, RetryPolicy
from stepflow_trio.runtime.step_records import step_records
from stepflow_trio.runtime.stores import put_json

RELEASE = "0.11.1"
TRANSPORT_RETRIES = 2
RETRY = {"transportMaxRetries": TRANSPORT_RETRIES, "backoff": {"type": "constant", "delayMs": 1}}
PATIENCE_S = 10
"""How long a run may take before it is said to hang."""


@dataclass(frozen=True)
class Case:
    """A flow and what it is run with."""

    flow: Any
    inputs: Sequence[Any] = (None,)
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    overrides: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        """As YAML, without what is not said."""
        said: dict[str, Any] = {"flow": self.flow, "inputs": [*self.inputs]}
        if self.variables:
            said["variables"] = dict(self.variables)
        if self.overrides is not None:
            said["overrides"] = self.overrides
        return yaml_of(said)


@dataclass(frozen=True)
class Outcome:
    """What a run came to on one side."""

    refused: str | None = None
    """Why it was not run; None: it was."""
    hangs: bool = False
    """It had not ended within `PATIENCE_S`."""
    status: str | None = None
    results: Sequence[dict[str, Any]] = ()
    """The flow result of each item."""
    steps: Sequence[dict[str, str]] = ()
    """Of each item the steps that ran or were to, and how each stands."""
    flow_id: str | None = None
    """None: the flow cannot be stored."""
    errors: Sequence[dict[str, Any]] = ()
    """Of each item what its failed steps failed with. Not known of the public one."""

    def __str__(self) -> str:
        if self.refused is not None:
            return f"refused: {self.refused[:600]}"
        if self.hangs:
            return f"hangs: {self.steps}"
        return yaml_of({"status": self.status, "results": [*self.results], "steps": [*self.steps]})


def yaml_of(value: Any) -> str:
    """A value as people read it."""
    written: list[bytes] = []

    class Sink:
        def write(self, text: bytes) -> None:
            written.append(text)

    yaml = YAML()
    yaml.width = 200
    yaml.representer.ignore_aliases = lambda _: True
    yaml.dump(json.loads(json.dumps(value)), Sink())
    return b"".join(written).decode()


class Public:
    """The public orchestrator, over its REST interface. Any thread may use it."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self.orchestrator = orchestrator
        self._local = threading.local()
        self._connections: list[HTTPConnection] = []

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """One call over this thread's connection; the JSON that came."""
        connection: HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = HTTPConnection("127.0.0.1", self.orchestrator.port, timeout=PATIENCE_S + 20)
            self._local.connection = connection
            self._connections.append(connection)
        content = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, f"/api/v1{path}", content, {"content-type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        except OSError:
            connection.close()
            raise
        if response.status >= 300:
            raise Refused(response.status, text)
        return json.loads(text)

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self._connections:
            connection.close()

    def store(self, flow: Any) -> dict[str, Any]:
        """What it says to a flow: ``flowId``, null where it has fatal diagnostics, and ``diagnostics``."""
        return self.request("POST", "/flows", {"flow": flow})

    def outcome(self, case: Case, *, patience_s: int = PATIENCE_S) -> Outcome:
        """Run a case; what still runs in the end is cancelled."""
        try:
            stored = self.store(case.flow)
            if not stored["stored"]:
                return Outcome(refused=str(stored["diagnostics"]["diagnostics"]))
        except Refused as refused:
            return Outcome(refused=str(refused))
        body: dict[str, Any] = {"flowId": stored["flowId"], "input": [*case.inputs], "wait": True}
        body |= {"variables": dict(case.variables), "timeoutSecs": patience_s}
        if case.overrides is not None:
            body["overrides"] = case.overrides
        try:
            run = self.request("POST", "/runs", body)
        except Refused as refused:
            return Outcome(refused=str(refused), flow_id=stored["flowId"])
        details = self.request("GET", f"/runs/{run['runId']}")
        items = sorted(details["itemDetails"], key=lambda item: item["itemIndex"])
        steps = [{step["stepId"]: step["status"] for step in item["steps"]} for item in items]
        if run["status"] == "running":
            with contextlib.suppress(Refused):
                self.request("POST", f"/runs/{run['runId']}/cancel")
            return Outcome(hangs=True, steps=steps, flow_id=stored["flowId"])
        results = sorted(run["results"], key=lambda item: item["itemIndex"])
        return Outcome(
            status=run["status"],
            results=[item["result"] for item in results],
            steps=steps,
            flow_id=stored["flowId"],
        )

    def blob_id(self, data: Any) -> str:
        """The id under which it stores data."""
        return self.request("POST", "/blobs", {"data": data, "blobType": "data"})["blobId"]


class Ours:
    """Our runtime, in a thread with a loop of its own. Any other thread may use it."""

    def __init__(self, token: trio.lowlevel.TrioToken, runtime: Runtime) -> None:
        self._token = token
        self._runtime = runtime

    def outcome(self, case: Case) -> Outcome:
        """Run a case; one that does not end is cancelled and an error."""
        reading = examine_flow_json(case.flow)
        try:
            flow = reading.runnable_flow()
        except FlowInvalid as exc:
            id_ = flow_id(reading.flow) if reading.flow is not None else None
            return Outcome(refused=str(exc), flow_id=id_)
        id_ = flow_id(flow)
        try:
            return trio.from_thread.run(self._run, case, id_, flow, trio_token=self._token)
        except RpcError as exc:
            return Outcome(refused=str(exc), flow_id=id_)

    @staticmethod
    def findings(flow: Any) -> list[dict[str, Any]]:
        """What it says to a flow, as its REST API shows it."""
        return [found.to_json() for found in examine_flow_json(flow).diagnostics]

    async def _run(self, case: Case, id_: str, flow: Flow) -> Outcome:
        with trio.fail_after(PATIENCE_S):
            if case.overrides is None:
                run_id = (await self._runtime.submit(flow, case.inputs, variables=case.variables)).id
            else:
                await self._runtime.flows.put(flow)
                run_id = await self._runtime.submit_stored(
                    id_, case.inputs, variables=case.variables, overrides=case.overrides
                )
                flow = flow_from_json(apply_overrides(flow.to_json(), case.overrides))
            record = await self._runtime.history.wait(run_id)
        steps: list[dict[str, str]] = []
        errors: list[dict[str, Any]] = []
        for index in range(len(case.inputs)):
            events = await self._runtime.history.events(run_id, item_index=index)
            known = step_records(events, is_over=True, flow=flow)
            steps.append({name: step.status.value for name, step in known.items()})
            failures = {name: step.result for name, step in known.items() if isinstance(step.result, Failed)}
            errors.append({name: failure.error.to_json() for name, failure in failures.items()})
        await self._runtime.history.delete(run_id)
        results = [item.result.to_json() for item in record.items if item.result is not None]
        return Outcome(status=record.status, results=results, steps=steps, flow_id=id_, errors=errors)

    def blob_id(self, data: Any) -> str:
        """The id under which it stores data."""
        return trio.from_thread.run(put_json, self._runtime.blob_store, data, trio_token=self._token)


@contextmanager
def open_ours(
    workers: Mapping[str, Worker], *, config: Config | Path | None = None, **more: Any
) -> Generator[Ours]:
    """Our runtime with these workers in its own process, for as long as the block lasts."""
    started: list[Ours] = []
    is_ready, failures = threading.Event(), list[BaseException]()
    stop: list[trio.Event] = []

    policy = RetryPolicy(transport_max_retries=TRANSPORT_RETRIES, backoff=Constant(delay_s=0.001), jitter=0.0)
    plain = Config(
        plugins=DEFAULT_CONFIG.plugins, routes=DEFAULT_CONFIG.routes, retry=policy, source="of a test"
    )

    async def main() -> None:
        async with open_runtime(config or plain, workers=workers, **more) as runtime:
            stop.append(trio.Event())
            started.append(Ours(trio.lowlevel.current_trio_token(), runtime))
            is_ready.set()
            await stop[0].wait()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as exc:  # noqa: BLE001 — whatever it is, it fails the test's thread
            failures.append(exc)
        finally:
            is_ready.set()

    thread = threading.Thread(target=run, name="our runtime")
    thread.start()
    is_ready.wait(PATIENCE_S)
    try:
        if started:
            yield started[0]
    finally:
        if started and thread.is_alive():
            started[0]._token.run_sync_soon(stop[0].set)
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "our runtime does not end"
        if failures:
            raise failures[0]


@contextmanager
def open_public(directory: Path, plugins: Mapping[str, Any] | None = None) -> Generator[Public]:
    """The public orchestrator with these plugins beside `differential_worker`, which is its ``w``."""
    with open_worker([sys.executable, WORKERS / "differential_worker.py"]) as (_, port):
        config = configuration({"w": plugin_of(port), **(plugins or {})}, retry=RETRY)
        with (
            open_orchestrator(RELEASE, directory, config) as orchestrator,
            contextlib.closing(Public(orchestrator)) as public,
        ):
            yield public


def own_worker() -> Worker:
    """The components of `differential_worker`, in this process."""
    return new_worker()


@contextmanager
def open_configured_pair(directory: Path, config: Path) -> Generator[Pair]:
    """Both of them with one configuration file, and no plugins but its own."""
    with (
        open_orchestrator(RELEASE, directory, config) as orchestrator,
        contextlib.closing(Public(orchestrator)) as public,
        open_ours({}, config=config, enforce_schemas=False) as ours,
    ):
        yield Pair(public, ours)


@contextmanager
def open_pair(directory: Path, plugins: Mapping[str, Any] | None = None) -> Generator[Pair]:
    """Both of them, ours without regard to flows' schemas, as it is there."""
    with (
        open_public(directory, plugins) as public,
        open_ours({"w": own_worker()}, enforce_schemas=False) as ours,
    ):
        yield Pair(public, ours)


# ---- comparing ------------------------------------------------------------------------------------------

OWN_CODES = range(-32299, -32199)
"""What a runtime itself says of a flow's expressions: its words are its own."""

OWN_WORDS = re.compile("Workflow result must contain |iteration [0-9]+ returned neither ")
"""And so are those of ``/builtin/iterate``."""

REFUSED_BY_BUILTIN = re.compile("input does not fit /|there is no builtin component |blob_type must be ")
"""What our builtin components say of an input that they cannot work with."""


def comparable(value: Any) -> Any:
    """A value as it must be on both sides: without what is a runtime's own.

    That is the message and the data of an error of its own, also within the results of runs below this one,
    and which run was it that ``/builtin/eval`` names.
    """
    if isinstance(value, list):
        return [comparable(member) for member in value]
    if not isinstance(value, dict):
        return value
    compared = {key: comparable(member) for key, member in value.items()}
    if value.get("outcome") == "failed" and isinstance(error := value.get("error"), dict):
        if _is_refused_by_builtin(error):
            compared["error"] = {"code": "of a builtin component"}
        elif error.get("code") in OWN_CODES or OWN_WORDS.match(str(error.get("message"))):
            compared["error"] = {"code": error["code"]}
    if isinstance(result := value.get("result"), dict) and "outcome" in result and "run_id" in value:
        compared["run_id"] = None
    return compared


def _is_refused_by_builtin(error: dict[str, Any]) -> bool:
    """Whether a builtin component could not work with its input: an error of its transport, there."""
    match error:
        case {"code": -32300, "data": {"stack": [{"attachments": [_, said, *_]}, *_]}}:
            return said.startswith("Component execution failed for step ")
        case {"code": -32103 | -32001 | -32004, "message": message}:
            return REFUSED_BY_BUILTIN.match(message) is not None
        case _:
            return False


def as_text(value: Any) -> str:
    """JSON that tells 1 from 1.0 and from true, −0.0 from 0.0, and one order of keys from another."""
    return json.dumps(value, ensure_ascii=False)


class Pair:
    """Both runtimes."""

    def __init__(self, public: Public, ours: Ours) -> None:
        self.public = public
        self.ours = ours

    def compare(self, case: Case, *, has_one_id: bool = True) -> Outcome:
        """Run a case on both sides, and fail where they differ; our outcome."""
        public, ours = self.public.outcome(case), self.ours.outcome(case)
        if not has_one_id:
            public = replace(public, flow_id=ours.flow_id)
        report = self._report(case, public, ours)
        assert report is None, report
        return ours

    def report(self, case: Case, *, patience_s: int = PATIENCE_S) -> str | None:
        """Run a case on both sides; what differs beyond what is meant to, if anything does."""
        return self._report(case, self.public.outcome(case, patience_s=patience_s), self.ours.outcome(case))

    def _report(self, case: Case, public: Outcome, ours: Outcome) -> str | None:
        difference = self._difference(case, public, ours)
        if difference is None:
            return None
        return f"{difference}\n{case}\n---- the public runtime\n{public}\n---- ours\n{ours}"

    def _difference(self, case: Case, public: Outcome, ours: Outcome) -> str | None:
        if (public.refused is None) is not (ours.refused is None):
            return "one of them does not run it"
        if public.flow_id != ours.flow_id:
            return f"the flow ids differ: {public.flow_id}, {ours.flow_id}"
        if public.refused is not None:
            return None
        if public.hangs:
            return "the public one hangs"
        if [*public.steps] != [*ours.steps]:
            return "the steps differ"
        theirs = [*public.results]
        own = self._with_the_output_in_spite_of_must_execute(case, public, ours)
        if isinstance(own, str):
            return own
        if as_text(comparable(theirs)) != as_text(comparable(own)):
            return "the results differ"
        is_failed = any(result["outcome"] == "failed" for result in ours.results)
        if ours.status != ("failed" if is_failed else "completed"):
            return "our status is not that of our results"
        is_failed = any(result["outcome"] == "failed" for result in public.results)
        return None if public.status == ("failed" if is_failed else "completed") else "their status is odd"

    def _with_the_output_in_spite_of_must_execute(
        self, case: Case, public: Outcome, ours: Outcome
    ) -> list[dict[str, Any]] | str:
        """Our results, but where a failed ``mustExecute`` step fails the item, what it came to without.

        Or what is wrong with that failure: it is that of the first such step.
        """
        own = [*ours.results]
        flow = case.flow if case.overrides is None else apply_overrides(case.flow, case.overrides)
        must = [step["id"] for step in flow.get("steps") or () if step.get("mustExecute")]
        lenient: Outcome | None = None
        for index, result in enumerate(public.results):
            failed = [id_ for id_ in must if ours.steps[index].get(id_) == "failed"]
            if result["outcome"] == "failed" or not failed:
                continue
            if own[index] != {"outcome": "failed", "error": ours.errors[index][failed[0]]}:
                return f'item {index} does not fail with the error of "{failed[0]}", which must be executed'
            lenient = lenient or self.ours.outcome(without_must_execute(case))
            own[index] = lenient.results[index]
        return own


def without_must_execute(case: Case) -> Case:
    """The case without a word about which steps must be executed."""
    flow = dict(case.flow)
    flow["steps"] = [{k: v for k, v in step.items() if k != "mustExecute"} for step in flow["steps"]]
    overrides: Any = json.loads(json.dumps(case.overrides))
    for override in (overrides or {}).get("steps", {}).values():
        override["value"].pop("mustExecute", None)
    return replace(case, flow=flow, overrides=overrides)
