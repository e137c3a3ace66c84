"""The example that the README runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from cli_process import Finished

Cli = Callable[..., Finished]

ROOT = Path(__file__).parents[2]
EXAMPLE = Path("docs/examples/text_report")


def test_the_text_report_uses_both_workers_at_once_and_comes_out_the_same_every_time(cli: Cli) -> None:
    ran = cli("run", "--flow", EXAMPLE / "flow.yaml", "--input", EXAMPLE / "input.json", cwd=ROOT)
    assert ran.code == 0, ran.stderr
    result = json.loads(ran.stdout)["result"]
    assert result["report"][:4] == [
        "Alice’s Adventures in Wonderland",
        "================================",
        "3,376 words, 778 different ones.",
        "Most frequent: alice (37), down (32), very (27), little (25), herself (19),",
    ]
    assert sum(line.startswith("Echo: ") for line in result["report"]) == 3
    assert result["text_id"].startswith("2276ad5cad23343e")
    lines = ran.stderr.splitlines()
    assert any(re.search(r"worker reader started, pid \d+", line) for line in lines)
    assert any(re.search(r"worker analyst started, pid \d+", line) for line in lines)

    def moment(text: str) -> int:
        return next(number for number, line in enumerate(lines) if text in line)

    parallel = ("words", "readability", "echoes", "quotations")
    assert max(moment(f"step {step} started") for step in parallel) < moment("step echoes completed")
    assert moment("step load completed") < min(moment(f"step {step} started") for step in parallel)


def test_a_step_that_nothing_asks_for_is_never_started(cli: Cli) -> None:
    ran = cli(
        "run", "--flow", EXAMPLE / "flow.yaml", "--input-json", '{"path": "text.txt"}',
        "--variables-json", '{"top_words": 1}', cwd=ROOT,
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert "Most frequent: alice (37)." in json.loads(ran.stdout)["result"]["report"]
    assert not any(line.startswith("Echo: ") for line in json.loads(ran.stdout)["result"]["report"])
    assert "step echoes" not in ran.stderr


def test_a_text_that_is_not_there_fails_with_the_worker_s_own_error(cli: Cli) -> None:
    given = '{"path": "txet.txt"}'
    ran = cli("run", "-q", "--flow", EXAMPLE / "flow.yaml", "--input-json", given, cwd=ROOT)
    assert ran.code == 1
    assert json.loads(ran.stdout)["error"] == {
        "code": -32110,
        "message": "cannot read txet.txt: No such file or directory",
        "data": {"path": "txet.txt"},
    }
    assert ran.stderr == (
        "run failed in step load (/reader/load_text): "
        "cannot read txet.txt: No such file or directory (code -32110)\n"
    )
