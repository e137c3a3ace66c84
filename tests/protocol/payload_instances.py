"""One instance of every payload that sets nothing it need not, and one that sets everything."""

from __future__ import annotations

from typing import Any

from stepflow_trio.protocol import codec, methods
from stepflow_trio.protocol import payloads as p
from stepflow_trio.protocol.methods import Method

BLOB = "868591347a854ba1d0f4875b2dd44e1e8335052af03725a9819f89e0142318b0"
RUN = "01a1ff82-1900-78a1-9ba6-c11477158f0e"
NOW = "2026-11-21T19:07:39.123456Z"
TRACE = p.Observability(
    trace_id="0" * 31 + "1", span_id="0" * 15 + "1", run_id=RUN, flow_id=BLOB, step_id="s"
)
SUCCEEDED = {"outcome": "success", "result": {"a": [1, None, "é"]}}
FAILED = {"outcome": "failed", "error": {"code": -32100, "message": "x", "data": {"a": None}}}
INFO = p.ComponentInfo(component="/a")
FULL_INFO = p.ComponentInfo(
    component="/fs/{*path}", description="x", input_schema={"type": "object"}, output_schema={}
)
COUNTS = p.ItemStatistics(total=3, completed=1, failed=1, cancelled=1)
STATUS = p.RunStatus(run_id=RUN, flow_id=BLOB, status="running", items=COUNTS, created_at=NOW)
FULL_STATUS = p.RunStatus(
    run_id=RUN, flow_id=BLOB, status="failed", items=COUNTS, created_at=NOW, flow_name="f", completed_at=NOW,
    results=[
        p.ItemResult(item_index=0, status="completed", result=SUCCEEDED, completed_at=NOW),
        p.ItemResult(item_index=1, status="failed", result=FAILED),
        p.ItemResult(item_index=2, status="cancelled"),
    ],
)  # fmt: skip
DETAILS: dict[str, Any] = {
    "batch_id": RUN, "flow_id": BLOB, "total_runs": 5, "status": "running", "created_at": NOW,
    "completed_runs": 1, "running_runs": 1, "failed_runs": 1, "cancelled_runs": 1, "paused_runs": 1,
}  # fmt: skip
OVERRIDE = {"s": {"$type": "merge_patch", "value": {"input": {"x": 1}}}}

# method → (params, results), the sparsest first and the fullest last.
INSTANCES: dict[Method[Any, Any], tuple[list[Any], list[Any]]] = {
    methods.COMPONENTS_LIST: (
        [p.ListParams()],
        [p.ListResult([]), p.ListResult([INFO, FULL_INFO])],
    ),
    methods.COMPONENTS_INFO: (
        [p.InfoParams("/a"), p.InfoParams("/models/{name}")],
        [p.InfoResult(INFO), p.InfoResult(FULL_INFO)],
    ),
    methods.COMPONENTS_EXECUTE: (
        [
            p.ExecuteParams(component="/a", input=None),
            p.ExecuteParams(component="/a", input=[1.5], attempt=7, observability=TRACE, timeout_s=2.5),
        ],
        [p.ExecuteResult(None), p.ExecuteResult({"x": [{}]})],
    ),
    methods.COMPONENTS_INFER_SCHEMA: (
        [p.InferSchemaParams(component="/a", input_schema={"type": "object"})],
        [p.InferSchemaResult(), p.InferSchemaResult({"type": "object"})],
    ),
    methods.BLOBS_PUT: (
        [p.PutBlobParams(data=None), p.PutBlobParams(data={"a": 1}, blob_type="flow", observability=TRACE)],
        [p.PutBlobResult(BLOB)],
    ),
    methods.BLOBS_GET: (
        [p.GetBlobParams(blob_id=BLOB), p.GetBlobParams(blob_id=BLOB, observability=TRACE)],
        [p.GetBlobResult(data=None), p.GetBlobResult(data=[1], blob_type="flow")],
    ),
    methods.RUNS_SUBMIT: (
        [
            # The key is required from generation 0.11 on.
            p.SubmitRunParams(flow_id=BLOB, inputs=[], subflow_key=RUN),
            p.SubmitRunParams(
                flow_id=BLOB, inputs=[1, {}], wait=True, max_concurrency=2, overrides={"steps": OVERRIDE},
                timeout_secs=30, observability=TRACE, subflow_key=RUN,
            ),
        ],
        [STATUS, FULL_STATUS],
    ),
    methods.RUNS_GET: (
        [
            p.GetRunParams(run_id=RUN),
            p.GetRunParams(
                run_id=RUN, wait=True, include_results=True, result_order="by_completion", timeout_secs=0,
                observability=TRACE,
            ),
        ],
        [STATUS, FULL_STATUS],
    ),
    methods.FLOWS_EVALUATE: (
        [
            p.EvaluateFlowParams(flow_id=BLOB, input=None),
            p.EvaluateFlowParams(flow_id=BLOB, input={}, overrides=OVERRIDE, observability=TRACE),
        ],
        [p.EvaluateFlowResult(SUCCEEDED), p.EvaluateFlowResult(FAILED)],
    ),
    methods.FLOWS_GET_METADATA: (
        [
            p.FlowMetadataParams(flow_id=BLOB),
            p.FlowMetadataParams(flow_id=BLOB, step_id="s", observability=TRACE),
        ],
        [
            p.FlowMetadataResult(flow_metadata={}),
            p.FlowMetadataResult(flow_metadata={"a": 1}, step_metadata={"b": 2}),
        ],
    ),
    methods.FLOWS_SUBMIT_BATCH: (
        [
            p.SubmitBatchParams(flow_id=BLOB, inputs=[]),
            p.SubmitBatchParams(
                flow_id=BLOB, inputs=[1], overrides=OVERRIDE, max_concurrency=0, observability=TRACE
            ),
        ],
        [p.SubmitBatchResult(batch_id=RUN, total_runs=1)],
    ),
    methods.FLOWS_GET_BATCH: (
        [
            p.GetBatchParams(batch_id=RUN),
            p.GetBatchParams(batch_id=RUN, wait=True, include_results=True, observability=TRACE),
        ],
        [
            p.GetBatchResult(details=p.BatchDetails(**DETAILS)),
            p.GetBatchResult(
                details=p.BatchDetails(**DETAILS, flow_name="f", completed_at=NOW),
                outputs=[
                    p.BatchOutput(batch_input_index=0, status="completed", result=SUCCEEDED),
                    p.BatchOutput(batch_input_index=1, status="running"),
                ],
            ),
        ],
    ),
}  # fmt: skip

BY_NAME = {method.name: method for method in methods.METHODS}


def wire(value: Any) -> Any:
    """What a receiver sees of ``value``."""
    return codec.decode_json(codec.encode_json(value))
