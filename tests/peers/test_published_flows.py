"""The flows that a public release is tested with pass our `test`, too: as they are, with their cases."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FLOWS = Path(__file__).parents[2].parent / "shared" / "peers" / "flows"
DIRECTORIES = sorted(path.name for path in FLOWS.glob("*") if path.is_dir())

pytestmark = pytest.mark.skipif(not DIRECTORIES, reason=f"there are no flows of other releases at {FLOWS}")

DEADLINE_S = 60.0


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_the_flows_of_stepflow_orchestrator_0_11_1_come_to_what_they_expect(directory: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "stepflow_trio", "test", FLOWS / directory, "--json"],
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    document = json.loads(ran.stdout)
    failed = [
        {"file": file["path"], **case}
        for file in document["files"]
        for case in file["cases"]
        if case["status"] != "passed"
    ]
    assert (ran.returncode, failed) == (0, [])
    assert document["summary"]["cases"] > 0
    # None of them is passed over.
    written = {str(path) for path in (FLOWS / directory).glob("*.yaml") if "config" not in path.name}
    assert {file["path"] for file in document["files"]} == written
