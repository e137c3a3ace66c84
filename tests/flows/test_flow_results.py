import msgspec
import pytest

from stepflow_trio.errors import ErrorCode, RemoteProtocolError
from stepflow_trio.flows.results import Failed, FlowError, Success, flow_result_from_json


@pytest.mark.parametrize(
    ("result", "written"),
    [
        (Success({"a": 1}), {"outcome": "success", "result": {"a": 1}}),
        (Success(None), {"outcome": "success", "result": None}),
        (Failed(FlowError(-1, "no")), {"outcome": "failed", "error": {"code": -1, "message": "no"}}),
        (
            Failed(FlowError(-1, "no", [1])),
            {"outcome": "failed", "error": {"code": -1, "message": "no", "data": [1]}},
        ),
    ],
)
def test_a_result_is_written_and_read_back(result, written):
    assert result.to_json() == written
    assert flow_result_from_json(written) == result
    assert msgspec.json.decode(msgspec.json.encode(result)) == written


def test_a_code_of_ours_is_written_as_json_s_integer():
    written = Failed(FlowError(ErrorCode.BAD_REQUEST, "no")).to_json()
    assert type(written["error"]["code"]) is int


def test_unknown_fields_of_a_result_are_ignored():
    assert flow_result_from_json({"outcome": "success", "result": 1, "extra": 2}) == Success(1)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "$ must be an object, not null"),
        ({}, '$.outcome must be "success" or "failed", not null'),
        ({"outcome": "skipped"}, 'not "skipped"'),
        ({"outcome": "success"}, 'no "result"'),
        ({"outcome": "failed"}, "$.error must be an object, not null"),
        ({"outcome": "failed", "error": {"code": True, "message": ""}}, "$.error.code must be an integer"),
        ({"outcome": "failed", "error": {"code": 1}}, "$.error.message must be a string, not null"),
    ],
)
def test_what_is_no_result_is_refused_by_the_name_of_its_field(value, why):
    with pytest.raises(RemoteProtocolError) as caught:
        flow_result_from_json(value)
    assert why in caught.value.message
