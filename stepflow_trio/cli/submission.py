"""``stepflow-trio submit``: a flow over a server's REST API, results as those of ``run``."""

from __future__ import annotations

import json
import uuid
from typing import Any, cast

from stepflow_trio.cli.exits import FAILED
from stepflow_trio.cli.failures import Failures
from stepflow_trio.cli.interruption import run_until_signal
from stepflow_trio.cli.notices import complain
from stepflow_trio.cli.run_arguments import SubmitArguments
from stepflow_trio.cli.standard_output import write_line
from stepflow_trio.errors import ErrorCode, StepflowError
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
            return await server.results_of(run["runId"]) if is_waited_for else run

    def say_that_it_goes_on(number: int) -> None:
        complain("interrupted: the run goes on", level="info")

    found = run_until_signal(submit, on_signal=say_that_it_goes_on)
    if isinstance(found, dict):
        write_line(json.dumps(found, ensure_ascii=False))
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


class _Server:
    """The REST API of a server, ours or a public one."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        path = client.url.path.rstrip("/")
        self._path = path if path.endswith(_API_PATH) else path + _API_PATH

    async def start(self, arguments: SubmitArguments) -> dict[str, Any]:
        """Store the flow and start a run of it; return how it stands."""
        stored = await self._call("POST", "/flows", {"flow": arguments.flow.to_json()})
        if not stored["stored"]:
            found = [each["formatted"] for each in stored["diagnostics"]["diagnostics"]]
            raise StepflowError("the server does not take the flow: " + "; ".join(found))
        body: dict[str, Any] = {"flowId": stored["flowId"], "input": arguments.inputs}
        if arguments.variables:
            body["variables"] = arguments.variables
        if arguments.overrides is not None:
            body["overrides"] = arguments.overrides
        if arguments.max_concurrency is not None:
            body["maxConcurrency"] = arguments.max_concurrency
        return await self._call("POST", "/runs", body, headers=[("Idempotency-Key", str(uuid.uuid4()))])

    async def results_of(self, run_id: str) -> list[FlowResult]:
        """Wait until a run has ended; return what its items came to."""
        status = "running"
        while status == "running":
            run = await self._call("GET", f"/runs/{run_id}?wait=true&timeoutSecs={WAIT_SECS}")
            status = run["status"]
        items: list[dict[str, Any]] = (await self._call("GET", f"/runs/{run_id}/items"))["items"]
        items.sort(key=lambda item: item["itemIndex"])
        return [
            flow_result_from_json(item["result"]) if item.get("result") is not None else _CANCELLED
            for item in items
        ]

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
        if status >= 300 or not isinstance(answer, dict):
            raise StepflowError(
                f"{self._client.url.origin} answers {status} to {method} {path}: {_why(answer)}"
            )
        return cast("dict[str, Any]", answer)


def _why(answer: Any) -> str:
    if isinstance(answer, dict):
        said = cast("dict[str, Any]", answer)
        return str(said.get("message") or said.get("error") or said)
    return str(answer) or "nothing"
