"""``stepflow-trio submit``: a flow over a server's REST API, progress and results as those of ``run``."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeVar, cast
from urllib.parse import quote

import msgspec
import trio
from msgspec import Struct

from stepflow_trio.cli.exits import FAILED
from stepflow_trio.cli.failures import Failures
from stepflow_trio.cli.interruption import run_until_signal
from stepflow_trio.cli.notices import complain
from stepflow_trio.cli.plain_text import count
from stepflow_trio.cli.progress_stream import RunStream
from stepflow_trio.cli.reporting import Reporter, open_reporter
from stepflow_trio.cli.run_arguments import SubmitArguments
from stepflow_trio.cli.standard_output import write_json_line
from stepflow_trio.engine.ending import one_exception
from stepflow_trio.errors import ConnectionLost, ErrorCode, RemoteProtocolError, StepflowError
from stepflow_trio.flows.model import UseDefault
from stepflow_trio.flows.results import Failed, FlowError, FlowResult, flow_result_from_json
from stepflow_trio.protocol import codec
from stepflow_trio.runtime.events import Event, Observer, RunStarted
from stepflow_trio.transports.http.bearer import BearerTokens
from stepflow_trio.transports.http.client import HttpClient, open_http_client

WAIT_SECS = 60
"""Where a server does not tell what happens, it is asked again so often whether the run has ended."""

REOPENED_AFTER_SECS = 1
"""A stream of events that broke off is opened again when the run has not ended for so long."""

POLL_INTERVAL_S = 1.0
"""A server that does not wait is asked no more often."""

RETRY_PAUSES_S = (1.0, 2.0, 4.0)
"""A server that cannot be reached while the run is at work is tried again after each of them."""

_API_PATH = "/api/v1"
_GOES_ON = "interrupted: the run goes on"
_CANCELLED = Failed(FlowError(ErrorCode.REQUEST_CANCELLED, "the run was cancelled"))


def submit_flow(
    arguments: SubmitArguments, *, url: str, bearer_token_file: str | None, is_waited_for: bool
) -> int:
    """Store a flow, start a run of it, and write its results when it has ended; return the exit code.

    Without waiting, what is written is the run as the server describes it.

    Raises:
        ConfigError: the URL or the file of tokens cannot be used.
        Interrupted: a signal came; the run goes on.
        StepflowError: the server cannot be reached or refuses, or the results cannot be written.
    """
    bearer = None if bearer_token_file is None else BearerTokens.from_file(bearer_token_file)
    if not is_waited_for:
        write_json_line(
            run_until_signal(lambda: _start(arguments, url, bearer), on_signal=_say_that_it_goes_on)
        )
        return 0
    failures = Failures(arguments.flow, input_lines=arguments.input_lines, quiet=arguments.quiet)
    found = _results(arguments, url, bearer, failures.observe)
    if arguments.is_batch:
        with arguments.output.open_batch() as output:
            for index, result in enumerate(found):
                output.take(index, result)
            output.finish()
    else:
        arguments.output.write(found[0])
    why = failures.why(found)
    if why is None:
        return 0
    why.show()
    return FAILED


async def _start(arguments: SubmitArguments, url: str, bearer: BearerTokens | None) -> dict[str, Any]:
    async with open_http_client(url, bearer=bearer) as client:
        run = await _Server(client).start(arguments)
    if not arguments.quiet:
        run_id = run["runId"]
        complain(f"run_id: {run_id}", level="info", message="run started", event="run_started", run_id=run_id)
    return run


def _say_that_it_goes_on(number: int) -> None:
    complain(_GOES_ON, level="info")


def _results(
    arguments: SubmitArguments, url: str, bearer: BearerTokens | None, observer: Observer
) -> list[FlowResult]:
    reporters: list[Reporter] = []
    with_default = {step.id for step in arguments.flow.steps if isinstance(step.on_error, UseDefault)}

    async def submit() -> list[FlowResult]:
        # Opened in here, so that the terminal is as it was before a signal can end the process.
        with (
            open_reporter(
                quiet=arguments.quiet, input_lines=arguments.input_lines, with_default=with_default
            ) as reporter,
            one_exception(),
        ):
            reporters.append(reporter)

            def observe(event: Event) -> None:
                observer(event)
                reporter.observe(event)

            async with trio.open_nursery() as nursery, open_http_client(url, bearer=bearer) as client:
                nursery.start_soon(reporter.keep_showing)
                server = _Server(client)
                results = await server.results_of(await server.start(arguments), arguments, observe)
                nursery.cancel_scope.cancel(reason="the run is over")
        return results

    def say_that_it_goes_on(number: int) -> None:
        for reporter in reporters:
            reporter.warn(_GOES_ON, level="info")

    return run_until_signal(submit, on_signal=say_that_it_goes_on)


class _Finding(Struct, frozen=True):
    formatted: str


class _Findings(Struct, frozen=True):
    diagnostics: list[_Finding] = []


class _StoredFlow(Struct, frozen=True, kw_only=True, rename="camel"):
    """What became of a flow."""

    stored: bool
    flow_id: str | None = None
    diagnostics: _Findings = _Findings()


class _Run(Struct, frozen=True, kw_only=True, rename="camel"):
    """How a run stands."""

    run_id: str
    status: str


class _Item(Struct, frozen=True, kw_only=True, rename="camel"):
    item_index: int
    result: dict[str, Any] | None = None


class _Items(Struct, frozen=True):
    """What the items of a run came to."""

    items: list[_Item]


_AnswerT = TypeVar("_AnswerT", bound=Struct)

_NO_SERVER = "is this a Stepflow server?"


class _Server:
    """The REST API of a server, ours or a public one; of its answers is read only what is of use here."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        path = client.url.path.rstrip("/")
        self._path = path if path.endswith(_API_PATH) else path + _API_PATH

    async def start(self, arguments: SubmitArguments) -> dict[str, Any]:
        """Store the flow and start a run of it; return how it stands, as the server says it."""
        answer = await self._call("POST", "/flows", {"flow": arguments.flow.to_json()})
        stored = self._read(answer, _StoredFlow, "a flow")
        if not stored.stored:
            found = "; ".join(each.formatted for each in stored.diagnostics.diagnostics)
            raise StepflowError(f"the server does not take the flow: {found or 'it does not say why'}")
        body: dict[str, Any] = {"flowId": stored.flow_id, "input": arguments.inputs}
        if arguments.variables:
            body["variables"] = arguments.variables
        if arguments.overrides is not None:
            body["overrides"] = arguments.overrides
        if arguments.max_concurrency is not None:
            body["maxConcurrency"] = arguments.max_concurrency
        run = await self._call("POST", "/runs", body, headers=[("Idempotency-Key", str(uuid.uuid4()))])
        self._read(run, _Run, "a run")
        return run

    async def results_of(
        self, run: dict[str, Any], arguments: SubmitArguments, observe: Observer
    ) -> list[FlowResult]:
        """Tell what happens in a run until it has ended; return what its items came to."""
        start = RunStarted(
            run_id=run["runId"],
            at=datetime.now(UTC),
            flow_id=str(run.get("flowId", "")),
            flow_name=arguments.flow.name,
            inputs=arguments.inputs,
            variables=arguments.variables,
            max_concurrency=arguments.max_concurrency or len(arguments.inputs),
            overrides=arguments.overrides,
        )
        path = f"/runs/{quote(start.run_id, safe='')}"
        stream = RunStream(self._client, f"{self._path}{path}/events", start=start, observe=observe)
        status = "running"
        while status == "running":
            if stream.is_of_use:
                await stream.follow()
            wait_secs = REOPENED_AFTER_SECS if stream.is_of_use else WAIT_SECS
            asked_at = trio.current_time()
            status = await self._status_of(f"{path}?wait=true&timeoutSecs={wait_secs}")
            if status == "running":
                await trio.sleep_until(asked_at + POLL_INTERVAL_S)
        results = await self._items_of(path, start.total_items)
        stream.finish(results, status=status)
        return results

    async def _status_of(self, target: str) -> str:
        for pause_s in RETRY_PAUSES_S:
            try:
                return self._read(await self._call("GET", target), _Run, "a run").status
            except ConnectionLost:
                await trio.sleep(pause_s)
        return self._read(await self._call("GET", target), _Run, "a run").status

    async def _items_of(self, path: str, total_items: int) -> list[FlowResult]:
        items = self._read(await self._call("GET", f"{path}/items"), _Items, "a run's items").items
        by_index = {item.item_index: item.result for item in items}
        if by_index.keys() != set(range(total_items)):
            raise self._mistaken(f"{count(total_items, 'item')} of a run with {len(items):,}")
        try:
            return [
                _CANCELLED if (result := by_index[index]) is None else flow_result_from_json(result)
                for index in range(total_items)
            ]
        except RemoteProtocolError as exc:
            raise self._mistaken(f"a flow's result with something else: {exc}") from exc

    def _read(self, answer: dict[str, Any], expected: type[_AnswerT], what: str) -> _AnswerT:
        try:
            return msgspec.convert(answer, expected)
        except msgspec.ValidationError as exc:
            raise self._mistaken(f"what should be {what} with something else: {exc}") from exc

    def _mistaken(self, what: str) -> StepflowError:
        return StepflowError(f"{self._client.url.origin} answers {what}; {_NO_SERVER}")

    async def _call(
        self, method: str, path: str, body: Any = None, *, headers: list[tuple[str, str]] | None = None
    ) -> dict[str, Any]:
        given = [("Accept", "application/json"), *(headers or ())]
        content = b""
        if body is not None:
            content = codec.encode_json(body)
            given.append(("Content-Type", "application/json"))
        async with self._client.request(method, self._path + path, headers=given, body=content) as response:
            text = await response.read()
            status = response.status
        try:
            answer = codec.decode_json(text)
        except ValueError:
            answer = text.decode("utf-8", "replace")[:500]
        if 200 <= status < 300 and isinstance(answer, dict):
            return cast("dict[str, Any]", answer)
        hint = ""
        if status == HTTPStatus.UNAUTHORIZED:
            hint = "; it asks for a token: give it with --bearer-token-file"
        elif not isinstance(answer, dict):
            hint = f"; {_NO_SERVER}"
        origin = self._client.url.origin
        raise StepflowError(f"{origin} answers {status} to {method} {path}: {_why(answer)}{hint}")


def _why(answer: Any) -> str:
    if isinstance(answer, dict):
        said = cast("dict[str, Any]", answer)
        return str(said.get("message") or said.get("error") or said)
    return str(answer) or "nothing"
