"""docs/testing.md says what is true: its flow, its configuration and what the command prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from cli_process import DEADLINE_S

from stepflow_trio.cli.case_configuration import TEST_FILE_NAMES

TEXT = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
CONSOLES = re.findall(r"^```console\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def without_times(text: str) -> str:
    return re.sub(r"\(\d[\d.]* s\)", "(…)", text)


def test_the_commands_of_the_page_print_what_is_under_them(tmp_path: Path) -> None:
    flow, config = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    (tmp_path / "prices.yaml").write_text(flow, encoding="utf-8")
    (tmp_path / "stepflow-config.test.yml").write_text(config, encoding="utf-8")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for line, printed in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", "".join(CONSOLES), re.MULTILINE):
        ran = subprocess.run(
            ["sh", "-c", line],
            cwd=tmp_path,
            env={"PATH": path, "LANG": "C.UTF-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=DEADLINE_S,
            check=False,
        )
        assert without_times(ran.stdout.decode()) == without_times(printed), line


def test_the_names_of_configuration_files_for_tests_are_those_looked_for() -> None:
    _, _, said = TEXT.partition("4. ")
    said, _, _ = said.partition("\n")
    dashed, dashed_too, underscored, underscored_too = TEST_FILE_NAMES
    assert said.startswith(f"`{dashed}`, or `{Path(dashed_too).suffix}`, or `{underscored}` or ")
    assert underscored_too == underscored.replace(".yml", ".yaml")
