"""Flows: stored, read, listed, deleted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec

from stepflow_trio.errors import FlowNotFound
from stepflow_trio.flows.diagnostics import Diagnostic, DiagnosticKind
from stepflow_trio.flows.flow_shape import shape_flow
from stepflow_trio.flows.model import Flow, flow_id
from stepflow_trio.flows.reader import examine_flow_json
from stepflow_trio.flows.secrets import FlowSecrets, without_values
from stepflow_trio.flows.variables import declared_variables
from stepflow_trio.protocol import blobs
from stepflow_trio.runtime.large_flows import beside_the_loop
from stepflow_trio.runtime.rest_api.errors import ApiError
from stepflow_trio.runtime.rest_api.payloads import (
    DiagnosticInfo,
    DiagnosticsInfo,
    ExampleInput,
    FlowResponse,
    FlowSummary,
    FlowVariablesResponse,
    ListFlowsResponse,
    PageQuery,
    StoreFlowRequest,
    StoreFlowResponse,
)
from stepflow_trio.runtime.rest_api.requests import Answer, ReceiveBody, Request, json_answer
from stepflow_trio.runtime.rest_api.routes import Route
from stepflow_trio.runtime.runtime import Runtime

TOTAL_COUNT = b"x-total-count"

_NO_FLOW = frozenset(
    kind
    for kind in DiagnosticKind
    if kind.code >= 3900 and kind not in (DiagnosticKind.REFERENCE_CYCLE, DiagnosticKind.FORWARD_REFERENCE)
)
"""With one of these the value is no flow at all, so that it has no id either."""


class FlowRoutes:
    """``/flows``."""

    def __init__(self, runtime: Runtime, receive_body: ReceiveBody) -> None:
        self._flows = runtime.flows
        self._receive_body = receive_body

    def routes(self) -> Iterator[Route]:
        """What these functions serve."""
        yield Route(
            method="POST",
            path="/flows",
            operation="store_flow",
            summary="Store a flow, unless something fatal is wrong with it, or a field is misspelled",
            handle=self._store,
            body=StoreFlowRequest,
            answers={200: StoreFlowResponse},
            errors=(400, 413, 415, 422),
        )
        yield Route(
            method="GET",
            path="/flows",
            operation="list_flows",
            summary="The stored flows, the latest first; their number is in X-Total-Count too",
            handle=self._list,
            query=PageQuery,
            answers={200: ListFlowsResponse},
            errors=(400,),
        )
        yield Route(
            method="GET",
            path="/flows/{flow_id}",
            operation="get_flow",
            summary="A flow in its normal form",
            handle=self._get,
            answers={200: FlowResponse},
            errors=(404,),
        )
        yield Route(
            method="GET",
            path="/flows/{flow_id}/variables",
            operation="get_flow_variables",
            summary="What variables a flow takes",
            handle=self._variables,
            answers={200: FlowVariablesResponse},
            errors=(404,),
        )
        yield Route(
            method="DELETE",
            path="/flows/{flow_id}",
            operation="delete_flow",
            summary="Remove a flow; 409 while a run of it is at work",
            handle=self._delete,
            answers={200: None},
            errors=(404, 409),
        )

    async def _store(self, request: Request) -> Answer:
        asked = await request.json(StoreFlowRequest, self._receive_body)
        reading = await beside_the_loop(asked.flow, lambda: examine_flow_json(asked.flow))
        flow = reading.flow
        # A misspelled field has no place in the normal form: what would be stored is another flow.
        loses = any(found.kind is DiagnosticKind.MISSPELLED_FIELD for found in reading.diagnostics)
        is_stored = flow is not None and not loses and not asked.dry_run
        if flow is not None and loses:
            id_ = await beside_the_loop(
                asked.flow, lambda: blobs.blob_id(blobs.blob_content(asked.flow, blobs.FLOW))
            )
        elif flow is not None and is_stored:
            id_ = await self._flows.put(flow)
        elif flow is not None:
            id_ = await beside_the_loop(flow, lambda: flow_id(flow))
        else:
            self._refuse_what_is_no_flow(reading.diagnostics)
            id_ = flow_id(shape_flow(asked.flow, lambda finding: None))
        stored = StoreFlowResponse(
            flow_id=id_,
            stored=is_stored,
            diagnostics=_diagnostics(reading.diagnostics),
        )
        return json_answer(200, stored)

    @staticmethod
    def _refuse_what_is_no_flow(diagnostics: tuple[Diagnostic, ...]) -> None:
        for found in diagnostics:
            if found.kind in _NO_FLOW:
                shown = found.to_json()
                raise ApiError(422, f"this is no flow: {shown['formatted']} at {shown.get('path', '$')}")

    async def _list(self, request: Request) -> Answer:
        page = request.query(PageQuery)
        ids, total = await self._flows.list_ids(limit=page.limit, offset=page.offset)
        flows: list[FlowSummary] = []
        for id_ in ids:
            try:
                flow = await self._flows.get(id_)
            except FlowNotFound:  # deleted meanwhile, or stored under this type and none
                flows.append(FlowSummary(flow_id=id_))
                continue
            flows.append(
                FlowSummary(flow_id=id_, name=flow.name, description=flow.description, version=flow.version)
            )
        headers = ((TOTAL_COUNT, b"%d" % total),)
        return json_answer(200, ListFlowsResponse(flows=flows, total=total), headers)

    async def _get(self, request: Request) -> Answer:
        id_ = request.parameters["flow_id"]
        flow = await self._flows.get(id_)
        response = FlowResponse(
            flow=flow.to_json(), flow_id=blobs.normalize_blob_id(id_) or id_, all_examples=_examples(flow)
        )
        return json_answer(200, response)

    async def _variables(self, request: Request) -> Answer:
        id_ = request.parameters["flow_id"]
        flow = await self._flows.get(id_)
        names: dict[str, str] = {}
        for name, declared in (declared_variables(flow.schemas) or {}).items():
            from_env: object = declared.get("env_var") if isinstance(declared, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]: any JSON
            if isinstance(from_env, str):
                names[name] = from_env
        properties = cast("dict[str, Any]", (flow.schemas or {}).get("properties") or {})
        secrets = FlowSecrets.of(flow)
        response = FlowVariablesResponse(
            flow_id=blobs.normalize_blob_id(id_) or id_,
            env_vars=names,
            schema=without_values(properties.get("variables"), secrets.variables if secrets else None),
        )
        return json_answer(200, response)

    async def _delete(self, request: Request) -> Answer:
        await self._flows.delete(request.parameters["flow_id"])
        return Answer(200)


def _examples(flow: Flow) -> list[ExampleInput]:
    cases: list[dict[str, Any]] = [*(flow.examples or ()), *((flow.test or {}).get("cases") or ())]
    return [
        ExampleInput(name=case["name"], input=case.get("input"), description=case.get("description"))
        for case in cases
    ]


def _diagnostics(found: tuple[Diagnostic, ...]) -> DiagnosticsInfo:
    levels = [diagnostic.level for diagnostic in found]
    return DiagnosticsInfo(
        diagnostics=[msgspec.convert(diagnostic.to_json(), DiagnosticInfo) for diagnostic in found],
        num_fatal=levels.count("fatal"),
        num_error=levels.count("error"),
        num_warning=levels.count("warning"),
    )
