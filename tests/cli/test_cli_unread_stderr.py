"""Whoever reads stderr late or never holds nothing up, and is told how much is missing."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from cli_process import CONFIG, DEADLINE_S, Finished, Started
from test_cli_serve import Server

from stepflow_trio.cli import standard_error
from stepflow_trio.cli.notices import complain, speak_json
from stepflow_trio.cli.standard_error import MAX_UNWRITTEN_BYTES, ErrorWriter

Cli = Callable[..., Finished]
Start = Callable[..., Started]
WriteFlow = Callable[..., Path]

PIPE_BYTES = 4096
"""The least that a pipe holds."""


class Pipe:
    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._is_closed: set[int] = set()

    def close(self, *descriptors: int) -> None:
        for descriptor in {*descriptors} - self._is_closed:
            self._is_closed.add(descriptor)
            os.close(descriptor)

    def read_to_its_end(self, finish: Callable[[], object]) -> bytes:
        """All that is in it when ``finish`` has been called and it was closed."""
        parts: list[bytes] = []

        def read() -> None:
            while part := os.read(self.reading, 65536):
                parts.append(part)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        finish()
        self.close(self.writing)
        reader.join(DEADLINE_S)
        return b"".join(parts)


@pytest.fixture
def pipe() -> Generator[Pipe]:
    made = Pipe()
    yield made
    made.close(made.reading, made.writing)


def told(lines: int) -> str:
    return f"{lines} lines are missing"


def test_what_is_taken_is_written_at_once(pipe: Pipe) -> None:
    writer = ErrorWriter(pipe.writing)
    for text in (b"one\n", b"two\nthree\n"):
        writer.put(text, told)
        assert os.read(pipe.reading, 100) == text


def test_what_is_not_taken_is_kept_in_order_up_to_a_bound_and_then_counted(pipe: Pipe) -> None:
    writer = ErrorWriter(pipe.writing)
    lines = [b"%06d %s\n" % (number, b"x" * 200) for number in range(8000)]
    for line in lines:
        writer.put(line, told)
    *read, gap = pipe.read_to_its_end(writer.finish).splitlines(keepends=True)
    assert read == lines[: len(read)]
    assert gap.decode() == f"{len(lines) - len(read)} lines are missing\n"
    assert MAX_UNWRITTEN_BYTES <= len(b"".join(read)) <= MAX_UNWRITTEN_BYTES + PIPE_BYTES + 4096


def test_what_follows_a_gap_is_written_behind_it(pipe: Pipe) -> None:
    writer = ErrorWriter(pipe.writing)
    writer.put(b"a" * MAX_UNWRITTEN_BYTES + b"\n", told)
    for _ in range(3):
        writer.put(b"b" * PIPE_BYTES * 2 + b"\n", told)

    def make_room_and_finish() -> None:
        writer.finish()
        writer.put(b"again\n", told)
        writer.finish()

    read = pipe.read_to_its_end(make_room_and_finish)
    assert read.lstrip(b"a") == b"\n3 lines are missing\nagain\n"


def test_a_descriptor_that_does_not_block_is_written_to_like_any_other(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    writer = ErrorWriter(pipe.writing)
    text = b"x" * 100_000 + b"\n"
    writer.put(text, told)
    assert pipe.read_to_its_end(writer.finish) == text


def test_a_reader_that_goes_away_is_no_error(pipe: Pipe) -> None:
    writer = ErrorWriter(pipe.writing)
    writer.put(b"x" * PIPE_BYTES * 2 + b"\n", told)
    pipe.close(pipe.reading)
    writer.finish()
    writer.put(b"more\n", told)
    writer.finish()


def test_at_the_end_a_reader_who_takes_nothing_is_given_up(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standard_error, "PATIENCE_S", 0.01)
    writer = ErrorWriter(pipe.writing)
    writer.put(b"x" * PIPE_BYTES * 2 + b"\n", told)
    writer.finish()
    assert os.read(pipe.reading, 100_000) == b"x" * PIPE_BYTES
    pipe.read_to_its_end(writer.finish)


@pytest.mark.parametrize("is_json", [False, True])
def test_a_gap_is_told_as_everything_else_is(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, *, is_json: bool
) -> None:
    with open(pipe.writing, "w", encoding="ascii", closefd=False) as stream:
        monkeypatch.setattr("sys.stderr", stream)
        speak_json(is_json)
        try:
            for length in (100, 100, MAX_UNWRITTEN_BYTES):
                complain("ä" * length + "\n" * MAX_UNWRITTEN_BYTES)
        finally:
            speak_json(False)
        last = pipe.read_to_its_end(standard_error.finish_errors).splitlines()[-1].decode()
    if is_json:
        assert json.loads(last)["event"] == "lines_dropped"
        assert json.loads(last)["lines"] == 2
    else:
        assert last.endswith("lines were not written: nobody reads stderr")


# ---- commands ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [(), ("--json",)], ids=str)
def test_a_run_whose_stderr_nobody_reads_ends_with_its_result(
    start: Start, flow: WriteFlow, pipe: Pipe, given: tuple[str, ...]
) -> None:
    chatter = flow("/crew/chatter", "{ lines: 2000 }")
    command = start(
        "run", "--flow", chatter, "--config", CONFIG, "--input-json", "1", *given, stderr=pipe.writing
    )
    ended = command.finish()
    assert (ended.code, ended.stdout) == (0, '{"outcome":"success","result":"said"}\n')


def test_a_test_whose_stderr_nobody_reads_ends_with_its_report(
    start: Start, flow: WriteFlow, pipe: Pipe
) -> None:
    cases = "[{ name: a, input: 1, output: { outcome: success, result: said } }]"
    chatter = flow("/crew/chatter", "{ lines: 2000 }", more=f"test: {{ cases: {cases} }}\n")
    command = start("test", chatter, "--config", CONFIG, "--json", stderr=pipe.writing)
    ended = command.finish()
    assert (ended.code, json.loads(ended.stdout)["summary"]["passed"]) == (0, 1)


def test_a_server_whose_stderr_nobody_reads_goes_on_serving(
    cli: Cli, start: Start, flow: WriteFlow, pipe: Pipe, tmp_path: Path
) -> None:
    server = Server(start("serve", "--port", "0", "--log-level", "debug", stderr=pipe.writing))
    inputs = tmp_path / "in.jsonl"
    inputs.write_text("1\n" * 200, encoding="utf-8")
    given = flow("/builtin/put_blob", "{ blob_type: data, data: { $input: $ } }")
    ran = cli("submit", "--url", server.url, "--flow", given, "--inputs", inputs, "--quiet")
    assert (ran.code, len(ran.stdout.splitlines())) == (0, 200)
    assert server.get("/health")[1]["status"] == "healthy"
