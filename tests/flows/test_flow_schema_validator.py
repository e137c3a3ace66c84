import socket

import pytest

from stepflow_trio.flows.reader import examine_flow_json, flow_from_json
from stepflow_trio.flows.schema_validator import compiled, schema_fault
from stepflow_trio.flows.type_check import check_types
from stepflow_trio.protocol.payloads import ComponentInfo


@pytest.fixture
def listener():
    """A server that notes nobody may ask it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        with pytest.raises(BlockingIOError):
            server.accept()


KEYWORDS = ["$ref", "$schema", "$dynamicRef", "$id"]


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_nothing_that_a_flow_s_schema_names_is_fetched(listener, keyword):
    schema = {"$defs": {"a": {keyword: listener}}, keyword: listener, "items": {keyword: listener}}
    for part in ({"input": schema}, {"steps": {"properties": {"a": {"allOf": [schema]}}}}):
        examine_flow_json({"steps": [{"id": "a", "component": "/a"}], "schemas": {"properties": part}})


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_nothing_that_a_worker_s_schema_names_is_fetched(listener, keyword):
    schema = {keyword: listener, "properties": {"a": {keyword: listener, "enum": [1, "x"]}}}
    step = {"id": "a", "component": "/c", "input": {"a": 1, "b": {"$input": "$.x"}}}
    flow = flow_from_json({"steps": [step], "output": {"$step": "a", "path": "a"}})
    check_types(
        flow, {"/c": ComponentInfo(component="/c", input_schema=schema, output_schema=schema)}, strict=True
    )


def test_a_schema_is_at_fault_where_it_is_none_and_not_for_where_it_leads():
    assert schema_fault({"type": "object", "items": {"$ref": "#/nowhere"}}) == ""
    assert schema_fault({"$ref": "http://127.0.0.1:1/x"}) == ""
    assert "strng" in schema_fault({"type": "strng"})
    assert schema_fault({"properties": []})
    assert schema_fault(3)


def test_formats_are_remarks():
    assert compiled({"format": "date"}).is_valid("no date")
    assert compiled({"$schema": "http://json-schema.org/draft-07/schema#", "format": "date"}).is_valid("x")
