"""``stepflow-trio submit``: a flow over a server's REST API, results as those of ``run``."""

from __future__ import annotations

import uuid
from http import HTTPStatus
from typing import Any, TypeVar, cast
from urllib.parse import quote

import msgspec
from msgspec import Struct

from stepflow_trio.cli.exits import FAILED
from stepflow_trio.cli.failures import Failures
from stepflow_trio.cli.interruption import run_until_signal
from stepflow_trio.cli.notices import complain
from stepflow_trio.cli.plain_text import count
from stepflow_trio.cli.run_arguments import SubmitArguments
from stepflow_trio.cli.standard_output import write_json_line
from stepflow_trio.errors import ErrorCode, RemoteProtocolError, StepflowError
from stepflow_trio.flows.results import Failed, FlowError, FlowResult, flow_result_from_json
from stepflow_trio.protocol import codec
from stepflow_trio.transports.http.bearer import BearerTokens
from stepflow_trio.transports.http.client import HttpClient, open_http_client

WAIT_SECS = 60
"""The server is asked again so often whether the run has ended."""

_API_PATH = "/api/v1"
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

    async def submit() -> list[FlowResult] | dict[str, Any]:
        async with open_http_client(url, bearer=bearer) as client:
            server = _Server(client)
            run = await server.start(arguments)
            if not arguments.quiet:
                run_id = run["runId"]
                complain(
                    f"run_id: {run_id}",
                    level="info",
                    message="run started",
                    event="run_started",
                    run_id=run_id,
                )
            return await server.results_of(run["runId"], len(arguments.inputs)) if is_waited_for else run

    def say_that_it_goes_on(number: int) -> None:
        complain("interrupted: the run goes on", level="info")

    found = run_until_signal(submit, on_signal=say_that_it_goes_on)
    if isinstance(found, dict):
        write_json_line(found)
        return 0
    if arguments.is_batch:
        with arguments.output.open_batch() as output:
            for index, result in enumerate(found):
                output.take(index, result)
            output.finish()
    else:
        arguments.output.write(found[0])
    failures = Failures(arguments.flow, input_lines=arguments.input_lines, quiet=arguments.quiet)
    why = failures.why(found)
    if why is None:
        return 0
    why.show()
    return FAILED


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

    async def results_of(self, run_id: str, total_items: int) -> list[FlowResult]:
        """Wait until a run has ended; return what its items came to."""
        path = f"/runs/{quote(run_id, safe='')}"
        status = "running"
        while status == "running":
            run = await self._call("GET", f"{path}?wait=true&timeoutSecs={WAIT_SECS}")
            status = self._read(run, _Run, "a run").status
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
