"""What the REST API takes and answers. The OpenAPI document is made of these types."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct, field

from stepflow_trio.flows.results import FlowError, FlowResult
from stepflow_trio.protocol.payloads import ItemStatistics

MAX_RUNS_AT_ONCE = 1000
"""Runs in one answer."""

DEFAULT_RUNS_AT_ONCE = 100
"""Runs in one answer, where the request does not say."""

MAX_ITEMS = 1_000_000
"""Items of one run."""

Status: TypeAlias = Literal["running", "completed", "failed", "cancelled", "paused", "recoveryFailed"]
StepState: TypeAlias = Literal["blocked", "runnable", "running", "completed", "skipped", "failed"]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=2**63 - 1)]
Limit: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_RUNS_AT_ONCE)]


class ErrorResponse(Struct, frozen=True, kw_only=True):
    """Why a request was not done."""

    code: Annotated[int, Meta(ge=400, le=599)]
    """The HTTP status."""
    message: str


class HealthResponse(Struct, frozen=True, kw_only=True):
    """The server runs."""

    status: Literal["healthy"]
    timestamp: datetime
    version: str


# ---- components ---------------------------------------------------------------------------------------


class ComponentsQuery(Struct, frozen=True, kw_only=True, rename="camel"):
    """``includeSchemas=false`` leaves the schemas out."""

    include_schemas: bool = True


class ListedComponentInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A component, by the path that a flow's step names it with."""

    component: str
    plugin: str
    description: str | None = None
    input_schema: Any = None
    output_schema: Any = None


class ListComponentsResponse(Struct, frozen=True, kw_only=True):
    """What flows can use now, and the plugins that cannot say what they offer, with why."""

    components: list[ListedComponentInfo]
    problems: dict[str, str]


# ---- flows --------------------------------------------------------------------------------------------


class StoreFlowRequest(Struct, frozen=True, kw_only=True, rename="camel"):
    """A flow to be stored, or with ``dryRun`` only to be looked at."""

    flow: dict[str, Any]
    dry_run: bool | None = False


class DiagnosticInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing found in a flow."""

    kind: str
    code: int
    level: Literal["fatal", "error", "warning"]
    formatted: str
    path: str | None = None
    data: dict[str, Any] | None = None
    """What its message is about, by name."""
    experimental: bool = False
    suggestion: str | None = None


class DiagnosticsInfo(Struct, frozen=True, kw_only=True, rename="camel"):
    """All that was found in a flow. One with an error cannot run; one with a fatal finding, or with a
    misspelled field, is not stored either."""

    diagnostics: list[DiagnosticInfo]
    num_fatal: int
    num_error: int
    num_warning: int


class StoreFlowResponse(Struct, frozen=True, kw_only=True, rename="camel"):
    """What became of a flow."""

    flow_id: str
    stored: bool
    diagnostics: DiagnosticsInfo


class ExampleInput(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An input to try a flow with."""

    name: str
    input: Any
    description: str | None = None


class FlowResponse(Struct, frozen=True, kw_only=True, rename="camel"):
    """A flow in its normal form; the examples are its own, and the inputs of its tests."""

    flow: dict[str, Any]
    flow_id: str
    all_examples: list[ExampleInput]


class FlowVariablesResponse(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """The schema of a flow's variables, and the environment variables that it says they come from."""

    flow_id: str
    env_vars: dict[str, str]
    schema: dict[str, Any] | None = None


class PageQuery(Struct, frozen=True, kw_only=True):
    """A part of a list."""

    limit: Limit = DEFAULT_RUNS_AT_ONCE
    offset: Count = 0


class FlowSummary(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A stored flow."""

    flow_id: str
    name: str | None = None
    description: str | None = None
    version: str | None = None


class ListFlowsResponse(Struct, frozen=True, kw_only=True):
    """Flows, the one that was stored last first; ``total`` of them there are."""

    flows: list[FlowSummary]
    total: int


# ---- runs ---------------------------------------------------------------------------------------------


class StepOverride(Struct, frozen=True, kw_only=True):
    """A change to a step: a JSON Merge Patch (RFC 7396)."""

    value: Any
    type: Literal["merge_patch", "json_patch"] = field(default="merge_patch", name="$type")


class WorkflowOverrides(Struct, frozen=True, kw_only=True):
    """Changes to a flow's steps, by their ids."""

    steps: dict[str, StepOverride]


class CreateRunRequest(Struct, frozen=True, kw_only=True, rename="camel"):
    """A run to be started, with one item for each value of ``input``."""

    flow_id: str
    input: Annotated[list[Any], Meta(max_length=MAX_ITEMS)]
    overrides: WorkflowOverrides | None = None
    variables: dict[str, Any] | None = None
    max_concurrency: Count | None = None
    """Items in flight at once, at least 1."""
    wait: bool | None = False
    """Answer when the run has ended, or after ``timeoutSecs``."""
    timeout_secs: Seconds | None = None
    """300 by default."""


class ItemResultInfo(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """How an item stands, and what it came to."""

    item_index: int
    status: Status
    result: FlowResult | None = None
    completed_at: datetime | None = None


class RunSummary(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """How a run stands."""

    run_id: str
    flow_id: str
    status: Status
    items: ItemStatistics
    created_at: datetime
    root_run_id: str
    created_at_seqno: int
    """The number of its first event."""
    flow_name: str | None = None
    completed_at: datetime | None = None
    parent_run_id: str | None = None
    finished_at_seqno: int | None = None
    """The number of its last event, if it has ended."""


class CreateRunResponse(RunSummary, frozen=True, kw_only=True):
    """A run that was started; with its results, if it has ended."""

    results: list[ItemResultInfo] | None = None


class StepProgressInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The latest that a component said of how far it is."""

    fraction: float
    """0 to 1."""
    at: datetime
    message: str | None = None


class StepRunInfo(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """How a step stands. Of all items together only the status that says most about what is wrong."""

    step_id: str
    status: StepState
    component: str | None = None
    result: FlowResult | None = None
    """A success is known as long as the item is at work, a failure for ever."""
    attempt: int | None = None
    """The latest, from 1 on; 0: it failed without one, for its input could not be evaluated."""
    started_at: datetime | None = None
    """When its first attempt began."""
    completed_at: datetime | None = None
    """When it ended, failed or not."""
    progress: StepProgressInfo | None = None
    """Of a step whose component is at work and has said how far it is."""
    last_error: FlowError | None = None
    """Of a step that runs: what its last attempt failed with."""
    next_attempt_at: datetime | None = None
    """Of a step that waits for its next attempt."""


class ItemDetails(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """An item: its input, how it stands, and its steps as far as they began."""

    item_index: int
    input: Any
    status: Status
    steps: list[StepRunInfo]
    completed_at: datetime | None = None


class RunDetails(RunSummary, frozen=True, kw_only=True):
    """How a run stands, with its items, or those that were asked for."""

    item_details: list[ItemDetails] | None = None
    overrides: dict[str, Any] | None = None


class ListRunsQuery(Struct, frozen=True, kw_only=True, rename="camel"):
    """Which runs, of all that there are. ``maxDepth`` 0 are those that no run submitted."""

    status: Status | None = None
    flow_name: str | None = None
    root_run_id: str | None = None
    parent_run_id: str | None = None
    roots_only: bool = False
    max_depth: Count | None = None
    limit: Limit = DEFAULT_RUNS_AT_ONCE
    offset: Count = 0


class ListRunsResponse(Struct, frozen=True, kw_only=True):
    """Runs, the latest first; ``total`` of them fit."""

    runs: list[RunSummary]
    total: int


class GetRunQuery(Struct, frozen=True, kw_only=True, rename="camel"):
    """With ``wait`` the answer comes when the run has ended, or after ``timeoutSecs``, 300 by default.

    It has the details of ``itemLimit`` items from ``itemOffset`` on; of all of them, unless it is said.
    """

    wait: bool = False
    timeout_secs: Seconds | None = None
    item_limit: Count | None = None
    item_offset: Count = 0


class ItemsQuery(Struct, frozen=True, kw_only=True):
    """A part of a run's items; all of them without ``limit``."""

    limit: Count | None = None
    offset: Count = 0


class ListItemsResponse(Struct, frozen=True, kw_only=True, rename="camel"):
    """A run's items by their index; ``itemCount`` of them there are."""

    item_count: int
    items: list[ItemResultInfo]


class RunFlowResponse(Struct, frozen=True, kw_only=True, rename="camel"):
    """The flow that a run was submitted with, without its overrides."""

    flow: dict[str, Any]
    flow_id: str


class StepsQuery(Struct, frozen=True, kw_only=True, rename="camel"):
    """Of which item; of all of them together without ``itemIndex``."""

    item_index: Count | None = None


class ListStepRunsResponse(Struct, frozen=True, kw_only=True):
    """The steps of a run's flow, by their ids."""

    steps: dict[str, StepRunInfo]


class EventsQuery(Struct, frozen=True, kw_only=True):
    """Behind which event to begin; the header ``Last-Event-ID`` goes before it."""

    after: Count = 0


class RunEventInfo(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """An event of a run: the data of one event of its stream, whose id is ``seq``."""

    seq: int | None = None
    """There is none of a ``stepProgressed``: it is not on record, and comes only to those who listen."""
    type: Literal[
        "runStarted", "stepStarted", "stepProgressed", "stepRetrying", "stepEnded", "itemEnded", "runEnded"
    ]
    at: datetime
    run_id: str
    item_index: int | None = None
    step_id: str | None = None
    component: str | None = None
    attempt: int | None = None
    delay_secs: float | None = None
    """Until the next attempt, of a ``stepRetrying``."""
    fraction: float | None = None
    """How far the step is, 0 to 1, of a ``stepProgressed``."""
    message: str | None = None
    """What its component says to that."""
    status: Status | None = None
    error: FlowError | None = None
    """Of a ``stepRetrying``, and of a ``stepEnded`` that failed."""
    result: FlowResult | None = None
    """Of an ``itemEnded``."""


# ---- blobs --------------------------------------------------------------------------------------------


class StoreBlobRequest(Struct, frozen=True, kw_only=True, rename="camel"):
    """Data to be stored; ``binary`` as base64 text."""

    data: Any
    blob_type: Literal["data", "flow", "binary"] = "data"
    filename: str | None = None


class StoreBlobResponse(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """The id of what was stored: its SHA-256."""

    blob_id: str
    filename: str | None = None


class GetBlobResponse(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A blob; ``binary`` as base64 text."""

    data: Any
    blob_type: Literal["data", "flow", "binary"]
    blob_id: str
    filename: str | None = None
