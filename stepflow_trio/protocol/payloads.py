"""What methods carry: params and results as records (docs/protocol.md, sections 1, 6 and 8).

Field names are ours; ``rename`` gives the wire's. Unknown fields are ignored on reading. Optional fields
that are None are not written, or as null: to every published schema, null and absent mean the same.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Fraction = Annotated[float, Meta(ge=0, le=1)]
UnsignedInt = Annotated[int, Meta(ge=0)]


class Observability(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whom a call belongs to: W3C trace-context values and the run, flow and step ids."""

    trace_id: str | None = None
    """32 hex digits."""
    span_id: str | None = None
    """16 hex digits."""
    run_id: str | None = None
    flow_id: str | None = None
    step_id: str | None = None


class ComponentInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A component as a worker lists it. Keys are snake_case in every dialect."""

    component: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None


class ListParams(Struct, frozen=True):
    """``components/list`` takes nothing."""


class ListResult(Struct, frozen=True):
    """Everything the worker offers, path patterns included."""

    components: list[ComponentInfo]


class InfoParams(Struct, frozen=True):
    """Which component to describe."""

    component: str


class InfoResult(Struct, frozen=True):
    """The description."""

    info: ComponentInfo


class ExecuteParams(Struct, frozen=True, kw_only=True):
    """One execution. ``attempt`` is 1 on the first one of a step and grows with every further one."""

    component: str
    input: Any
    attempt: UnsignedInt = 1
    observability: Observability = Observability()
    timeout_s: float | UnsetType = UNSET
    """Ours, seconds that are left for this execution: sent only to a peer that announced ``deadline``."""


class ExecuteResult(Struct, frozen=True):
    """What the component returned: any JSON."""

    output: Any


class InferSchemaParams(Struct, frozen=True, kw_only=True):
    """Asks which output a component has for inputs of a schema."""

    component: str
    input_schema: dict[str, Any]


class InferSchemaResult(Struct, frozen=True):
    """The output's schema; null where nothing is known."""

    output_schema: dict[str, Any] | None = None


class PutBlobParams(Struct, frozen=True, kw_only=True):
    """Stores a blob; ``binary`` data are base64 text.

    Everything is written, for the published schemas require ``blob_type``.
    """

    data: Any
    blob_type: str = "data"
    observability: Observability | None = None


class PutBlobResult(Struct, frozen=True):
    """The content's SHA-256, lower-case hex."""

    blob_id: str


class GetBlobParams(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Reads a blob."""

    blob_id: str
    observability: Observability | None = None


class GetBlobResult(Struct, frozen=True, kw_only=True):
    """A blob; ``binary`` data are base64 text."""

    data: Any
    blob_type: str = "data"


class SubmitRunParams(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Starts a run of a stored flow with one item per input.

    ``subflow_key`` makes the submission idempotent within the submitting run: the same key is the same run.
    """

    flow_id: str
    inputs: list[Any]
    wait: bool = False
    max_concurrency: UnsignedInt | None = None
    overrides: dict[str, Any] | None = None
    timeout_secs: UnsignedInt | None = None
    observability: Observability | None = None
    subflow_key: str | None = None


class GetRunParams(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Asks how a run is; with ``wait``, once it has ended or after ``timeout_secs`` (300 by default)."""

    run_id: str
    wait: bool = False
    include_results: bool = False
    result_order: Literal["by_index", "by_completion", "byIndex", "byCompletion"] = "by_index"
    timeout_secs: UnsignedInt | None = None
    observability: Observability | None = None


class ItemStatistics(Struct, frozen=True, kw_only=True):
    """How many items of a run are how far."""

    total: int
    completed: int = 0
    running: int = 0
    failed: int = 0
    cancelled: int = 0


class ItemResult(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """One item's end. ``result`` is a flow result as JSON (docs/protocol.md, section 1)."""

    item_index: int
    status: str
    result: dict[str, Any] | None = None
    completed_at: str | None = None


class RunStatus(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """How a run is. ``status``: running, completed, failed, cancelled, paused or recoveryFailed."""

    run_id: str
    flow_id: str
    status: str
    items: ItemStatistics
    created_at: str
    """RFC 3339, UTC."""
    flow_name: str | None = None
    completed_at: str | None = None
    results: list[ItemResult] | None = None


class ProgressParams(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a step is. ``run_id`` and ``span_id`` are ours: they tell runs apart whose steps have the same
    id, and the items of a run.
    """

    step_id: str
    progress: Fraction
    message: str | None = None
    run_id: str | None = None
    span_id: str | None = None


class EvaluateFlowParams(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Dialect 0.8: runs a stored flow once and waits for its result."""

    flow_id: str
    input: Any
    overrides: dict[str, Any] | None = None
    observability: Observability | None = None


class EvaluateFlowResult(Struct, frozen=True):
    """Dialect 0.8: a flow result as JSON."""

    result: dict[str, Any]


class FlowMetadataParams(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Dialect 0.8: asks for the metadata of a flow and of one of its steps."""

    flow_id: str
    step_id: str | None = None
    observability: Observability | None = None


class FlowMetadataResult(Struct, frozen=True, kw_only=True):
    """Dialect 0.8: the metadata; ``step_metadata`` is null where no such step exists."""

    flow_metadata: dict[str, Any]
    step_metadata: dict[str, Any] | None = None


class SubmitBatchParams(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Dialect 0.8: the predecessor of ``runs/submit``."""

    flow_id: str
    inputs: list[Any]
    overrides: dict[str, Any] | None = None
    max_concurrency: UnsignedInt | None = None
    observability: Observability | None = None


class SubmitBatchResult(Struct, frozen=True, kw_only=True):
    """Dialect 0.8: the batch and its size."""

    batch_id: str
    total_runs: int


class GetBatchParams(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Dialect 0.8: the predecessor of ``runs/get``."""

    batch_id: str
    wait: bool = False
    include_results: bool = False
    observability: Observability | None = None


class BatchDetails(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Dialect 0.8: how a batch is."""

    batch_id: str
    flow_id: str
    total_runs: UnsignedInt
    status: str
    created_at: str
    completed_runs: UnsignedInt
    running_runs: UnsignedInt
    failed_runs: UnsignedInt
    cancelled_runs: UnsignedInt
    paused_runs: UnsignedInt
    flow_name: str | None = None
    completed_at: str | None = None


class BatchOutput(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Dialect 0.8: one item of a batch."""

    batch_input_index: UnsignedInt
    status: str
    result: dict[str, Any] | None = None


class GetBatchResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Dialect 0.8: the batch, and its outputs where asked for."""

    details: BatchDetails
    outputs: list[BatchOutput] | None = None
