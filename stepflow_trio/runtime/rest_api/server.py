"""The server itself, and the components that flows can use."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from stepflow_trio.runtime.rest_api.payloads import (
    ComponentsQuery,
    HealthResponse,
    ListComponentsResponse,
    ListedComponentInfo,
)
from stepflow_trio.runtime.rest_api.requests import Answer, Request, json_answer
from stepflow_trio.runtime.rest_api.routes import Route
from stepflow_trio.runtime.runtime import Runtime


class ServerRoutes:
    """``/health`` and ``/components``."""

    def __init__(self, runtime: Runtime, *, version: str) -> None:
        self._runtime = runtime
        self._version = version

    def routes(self) -> Iterator[Route]:
        """What these functions serve."""
        yield Route(
            method="GET",
            path="/health",
            operation="health_check",
            summary="Whether the server runs",
            handle=self._health,
            answers={200: HealthResponse},
        )
        yield Route(
            method="GET",
            path="/components",
            operation="list_components",
            summary="What flows can use now; starts workers that do not run",
            handle=self._list_components,
            query=ComponentsQuery,
            answers={200: ListComponentsResponse},
            errors=(400,),
        )

    async def _health(self, request: Request) -> Answer:
        now = datetime.now(UTC)
        return json_answer(200, HealthResponse(status="healthy", timestamp=now, version=self._version))

    async def _list_components(self, request: Request) -> Answer:
        with_schemas = request.query(ComponentsQuery).include_schemas
        listed = await request.while_connected(self._runtime.list_components)
        components = [
            ListedComponentInfo(
                component=each.path,
                plugin=each.plugin,
                description=each.info.description,
                input_schema=each.info.input_schema if with_schemas else None,
                output_schema=each.info.output_schema if with_schemas else None,
            )
            for each in listed
        ]
        problems = self._runtime.plugin_problems
        return json_answer(200, ListComponentsResponse(components=components, problems=problems))
