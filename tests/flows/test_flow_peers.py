"""The flows of the public releases, where they are at hand."""

from pathlib import Path

import pytest

from stepflow_trio.flows.model import flow_id
from stepflow_trio.flows.reader import flow_from_json, read_flow_file

FOLDER = Path(__file__).parents[2].parent / "shared" / "peers" / "flows"
FLOWS = [path for path in sorted(FOLDER.rglob("*.yaml")) if "config" not in path.name]


@pytest.mark.skipif(not FLOWS, reason=f"there are no flows of other releases at {FOLDER}")
@pytest.mark.parametrize("path", FLOWS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_flows_of_the_public_releases_are_read(path):
    flow = read_flow_file(path)
    assert flow.steps
    assert flow.test is not None
    assert flow.test["cases"]
    assert flow_id(flow_from_json(flow.to_json())) == flow_id(flow)
