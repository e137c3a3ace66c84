"""Ctrl-C, SIGTERM, SIGHUP at any moment: the exit code says so, nothing is left, no traceback is shown."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from cli_process import CONFIG, DEADLINE_S, Finished, Started, is_alive

from stepflow_trio.cli.interruption import Interrupted, run_until_signal

Start = Callable[..., Started]
WriteFlow = Callable[..., Path]

SIGNALS = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)


def fifo(directory: Path, name: str) -> Path:
    path = directory / name
    os.mkfifo(path)
    return path


def wait_until_read(path: Path) -> int:
    """Wait until somebody opens a fifo to read it, who then waits for what is never written."""
    give_up_at = time.monotonic() + DEADLINE_S
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads it yet
            assert time.monotonic() < give_up_at, f"nobody opened {path.name}"
            time.sleep(0.005)  # noqa: TID251 — the kernel has no way to wait for this alone


@pytest.mark.parametrize("module", ["click", "msgspec", "trio", "ruamel"])
def test_an_interrupt_during_an_import_ends_the_command_in_silence(
    start: Start, flow: WriteFlow, tmp_path: Path, module: str
) -> None:
    gate = fifo(tmp_path, "gate")
    (tmp_path / f"{module}.py").write_text(f"open({str(gate)!r}).read()", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = start(
        "run", "--flow", flow("/crew/wait"), "--config", CONFIG, "--input-json", "1",
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    held = wait_until_read(gate)
    command.signal_until_over(signal.SIGINT)
    assert command.finish() == Finished(130, "", "")
    os.close(held)


@pytest.mark.parametrize(
    ("option", "number", "code"),
    [
        ("--flow", signal.SIGINT, 130),
        ("--config", signal.SIGTERM, 143),
        ("--input", signal.SIGINT, 130),
        ("--variables", signal.SIGHUP, 129),
    ],
)
def test_a_signal_while_a_file_is_read_ends_the_command_in_silence(
    start: Start, flow: WriteFlow, tmp_path: Path, option: str, number: int, code: int
) -> None:
    gate = fifo(tmp_path, "gate")
    given = {"--flow": str(flow("/builtin/put_blob")), "--input-json": "1", option: str(gate)}
    if option == "--input":
        del given["--input-json"]
    command = start("run", *(text for pair in given.items() for text in pair))
    held = wait_until_read(gate)
    command.signal_until_over(number)
    assert command.finish() == Finished(code, "", "")
    os.close(held)


def test_an_interrupt_while_stdin_is_waited_for_ends_the_command_in_silence(
    start: Start, flow: WriteFlow, tmp_path: Path
) -> None:
    gate = fifo(tmp_path, "gate")
    with open(os.open(gate, os.O_RDWR), "rb") as stdin:
        command = start("run", "--flow", flow("/builtin/put_blob"), "--input", "-", stdin=stdin)
        wait_until_started(command)
        command.signal_until_over(signal.SIGINT)
        assert command.finish() == Finished(130, "", "")


def wait_until_started(command: Started) -> None:
    """Wait until the command heeds signals: the interpreter's own start is beyond its reach."""
    give_up_at = time.monotonic() + DEADLINE_S
    status = Path(f"/proc/{command.process.pid}/status")
    caught = 0
    # SIGHUP is the one of the three that an interpreter leaves alone by itself.
    while not caught & 1 << (signal.SIGHUP - 1):
        assert time.monotonic() < give_up_at
        time.sleep(0.002)  # noqa: TID251 — likewise
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("SigCgt:"):
                caught = int(line.split()[1], 16)


@SIGNALS
def test_a_signal_cancels_the_run_and_ends_its_workers(
    start: Start, flow: WriteFlow, number: int, code: int
) -> None:
    command = start("run", "--flow", flow("/crew/wait"), "--config", CONFIG, "--input-json", "1")
    pid = int(command.wait_for(r"worker crew started, pid (\d+)")[1])
    command.wait_for(r"crew \| waiting")
    command.signal(number)
    ended = command.finish()
    assert (ended.code, ended.stdout) == (code, "")
    assert "interrupted: ending the run and its workers" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not is_alive(pid)


def test_signals_that_follow_do_not_keep_the_workers_from_being_ended(start: Start, flow: WriteFlow) -> None:
    # The worker blocks its event loop, so that it takes a while and a signal of its own to end it.
    command = start("run", "--flow", flow("/crew/hang"), "--config", CONFIG, "--input-json", "1")
    pid = int(command.wait_for(r"worker crew started, pid (\d+)")[1])
    command.wait_for(r"crew \| hanging")
    command.signal(signal.SIGINT)
    command.wait_for("interrupted")
    command.signal(signal.SIGINT)
    command.signal(signal.SIGINT)
    ended = command.finish()
    assert (ended.code, ended.stdout) == (130, "")
    assert "Traceback" not in ended.stderr
    assert not is_alive(pid)


def test_an_interrupt_while_a_worker_is_starting_leaves_no_process(
    start: Start, flow: WriteFlow, tmp_path: Path
) -> None:
    pid_file = fifo(tmp_path, "pid")
    config = tmp_path / "config.yml"
    text = CONFIG.read_text(encoding="utf-8").replace("[worker.py]", f"[worker.py, {pid_file}]")
    config.write_text(f"workingDirectory: {CONFIG.parent}\n{text}", encoding="utf-8")
    command = start("run", "--flow", flow("/crew/wait"), "--config", config, "--input-json", "1")
    pid = int(pid_file.read_text(encoding="utf-8"))
    command.signal(signal.SIGINT)
    ended = command.finish()
    assert (ended.code, ended.stdout) == (130, "")
    assert "Traceback" not in ended.stderr
    assert not is_alive(pid)


def test_interrupts_at_any_moment_leave_nothing_and_show_no_traceback(
    start: Start, flow: WriteFlow, tmp_path: Path
) -> None:
    given = flow("/crew/wait")
    # Of a path that is in no other process's arguments, whatever else runs on this machine.
    worker = tmp_path / "worker.py"
    shutil.copy(CONFIG.with_name("worker.py"), worker)
    config = tmp_path / "config.yml"
    text = CONFIG.read_text(encoding="utf-8").replace("[worker.py]", f"[{worker}]")
    config.write_text(text, encoding="utf-8")
    for delay_ms in range(0, 300, 30):
        command = start("run", "--flow", given, "--config", config, "--input-json", "1")
        wait_until_started(command)
        time.sleep(delay_ms / 1000)  # noqa: TID251 — the moment is what is tried out
        command.signal_until_over(signal.SIGINT)
        ended = command.finish()
        assert (ended.code, ended.stdout) == (130, ""), (delay_ms, ended)
        assert "Traceback" not in ended.stderr, (delay_ms, ended.stderr)
        assert not any(is_alive(pid) for pid in processes_of(worker)), delay_ms


def processes_of(script: Path) -> list[int]:
    """The processes that were started with a script."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(script) in arguments:
                found.append(int(entry.name))
    return found


def test_a_signal_that_the_caller_ignores_stays_ignored(
    start: Start, flow: WriteFlow, tmp_path: Path
) -> None:
    gate = fifo(tmp_path, "gate")
    command = start(
        "run", "-q", "--flow", flow("/builtin/put_blob", "{ blob_type: data, data: 1 }"), "--input", gate,
        prefix=["sh", "-c", 'trap "" HUP; exec "$@"', "sh"],
    )  # fmt: skip
    held = wait_until_read(gate)
    command.signal(signal.SIGHUP)
    os.write(held, b"1")
    os.close(held)
    ended = command.finish()
    assert (ended.code, ended.stderr) == (0, "")


def test_an_error_on_the_way_out_does_not_hide_the_signal() -> None:
    async def main() -> None:
        signal.raise_signal(signal.SIGTERM)
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("while ending")

    with pytest.raises(Interrupted) as caught:
        run_until_signal(main)
    assert caught.value.number == signal.SIGTERM


def test_listing_components_is_interrupted_like_a_run(start: Start, tmp_path: Path) -> None:
    pid_file = fifo(tmp_path, "pid")
    config = tmp_path / "config.yml"
    text = CONFIG.read_text(encoding="utf-8").replace("[worker.py]", f"[worker.py, {pid_file}]")
    config.write_text(f"workingDirectory: {CONFIG.parent}\n{text}", encoding="utf-8")
    command = start("list-components", "--config", config)
    pid = int(pid_file.read_text(encoding="utf-8"))
    command.signal(signal.SIGINT)
    assert command.finish() == Finished(130, "", "")
    assert not is_alive(pid)
