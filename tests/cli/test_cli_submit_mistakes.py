"""``submit`` to a server that answers what no Stepflow server does: it says so."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cli_process import Finished

CliHere = Callable[..., Finished]
WriteFlow = Callable[..., Path]

STORED: Any = {"flowId": "f", "stored": True, "diagnostics": {"diagnostics": []}}
RUN: Any = {"runId": "r", "status": "completed"}
DONE: Any = {"itemIndex": 0, "result": {"outcome": "success", "result": 1}}


@pytest.fixture
def answering() -> Generator[Callable[..., str]]:
    """The URL of a server that gives these answers, one after the other."""
    servers: list[tuple[HTTPServer, threading.Thread]] = []

    def answer(*answers: Any, status: int = 200) -> str:
        left = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.path.endswith("/events"):
                    self.send_error(404)
                    return
                found = left.pop(0)
                body = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 — the name that the server calls

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield answer
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


WRONG: list[list[Any]] = [
    [{"flowId": "x"}],
    [{"stored": "yes"}],
    [[]],
    [b"<html>"],
    [STORED, {"id": 1}],
    [STORED, {**RUN, "runId": 7}],
    [STORED, RUN, {"runId": "r"}],
    [STORED, RUN, RUN, {}],
    [STORED, RUN, RUN, {"items": [{}]}],
    [STORED, RUN, RUN, {"items": []}],
    [STORED, RUN, RUN, {"items": [DONE, {**DONE, "itemIndex": 1}]}],
    [STORED, RUN, RUN, {"items": [{**DONE, "itemIndex": 7}]}],
    [STORED, RUN, RUN, {"items": [{**DONE, "result": {"outcome": "odd"}}]}],
]


@pytest.mark.parametrize("answers", WRONG, ids=str)
def test_a_server_that_answers_otherwise_is_asked_what_it_is(
    cli_here: CliHere, flow: WriteFlow, answering: Callable[..., str], answers: list[Any]
) -> None:
    url = answering(*answers)
    ran = cli_here("submit", "--url", url, flow("/crew/echo"), "--input-json", "1", "--quiet")
    assert (ran.code, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"error: {url} answers ")
    assert ran.stderr.endswith("; is this a Stepflow server?\n")


def test_what_a_server_says_besides_is_of_no_matter(
    cli_here: CliHere, flow: WriteFlow, answering: Callable[..., str]
) -> None:
    answers: list[Any] = [{**each, "new": 1} for each in (STORED, RUN, RUN, {"items": [{**DONE, "more": 2}]})]
    ran = cli_here("submit", "--url", answering(*answers), flow("/crew/echo"), "--input-json", "1", "-q")
    assert ran == Finished(0, '{"outcome":"success","result":1}\n', "")


def test_a_flow_that_is_not_taken_without_a_word_is_said(
    cli_here: CliHere, flow: WriteFlow, answering: Callable[..., str]
) -> None:
    ran = cli_here("submit", "--url", answering({"stored": False}), flow("/crew/echo"), "--input-json", "1")
    assert ran == Finished(1, "", "error: the server does not take the flow: it does not say why\n")


def test_a_server_that_asks_for_a_token_is_given_one_with_an_option(
    cli_here: CliHere, flow: WriteFlow, answering: Callable[..., str]
) -> None:
    url = answering({"code": 401, "message": "no token"}, status=401)
    ran = cli_here("submit", "--url", url, flow("/crew/echo"), "--input-json", "1")
    assert ran.stderr == (
        f"error: {url} answers 401 to POST /flows: no token; "
        "it asks for a token: give it with --bearer-token-file\n"
    )
