"""What the API offers: one table, by which requests find their function and the OpenAPI document is made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from stepflow_trio.runtime.rest_api.errors import ApiError
from stepflow_trio.runtime.rest_api.events import EventStream
from stepflow_trio.runtime.rest_api.requests import Answer, Request

Handle: TypeAlias = Callable[[Request], Awaitable[Answer | EventStream]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One thing that can be done."""

    method: str
    path: str
    """Behind ``/api/v1``; a segment in braces stands for any one segment."""
    operation: str
    """Its name in the OpenAPI document: that of the public clients where they have it."""
    summary: str
    handle: Handle | None
    """None: another application serves it."""
    answers: Mapping[int, Any]
    """What it answers when it goes well, by status; None: no body."""
    errors: tuple[int, ...] = ()
    query: type[Any] | None = None
    body: type[Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of the request, with what they mean."""
    media_type: str = "application/json"
    """Of the answer."""


class RouteTable:
    """Finds routes by method and path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._by_length: dict[int, list[tuple[list[str], Route]]] = {}
        for route in self.routes:
            segments = route.path.strip("/").split("/")
            self._by_length.setdefault(len(segments), []).append((segments, route))

    def find(self, method: str, path: str) -> tuple[Handle, dict[str, str]]:
        """The function, and the parameters that the path has. HEAD finds what GET does.

        Raises:
            ApiError: 404, there is no such path; 405, it takes other methods.
        """
        segments = path.strip("/").split("/")
        allowed: list[str] = []
        for template, route in self._by_length.get(len(segments), ()):
            parameters = _match(template, segments)
            if parameters is None or route.handle is None:
                continue
            if route.method == method or (method == "HEAD" and route.method == "GET"):
                return route.handle, parameters
            allowed += [route.method, "HEAD"] if route.method == "GET" else [route.method]
        if not allowed:
            raise ApiError(404, "there is nothing at this path: GET /api/v1/openapi.json says what there is")
        methods = ", ".join(sorted(allowed))
        raise ApiError(405, f"this path takes {methods}", [(b"allow", methods.encode())])


def _match(template: list[str], segments: list[str]) -> dict[str, str] | None:
    parameters: dict[str, str] = {}
    for expected, segment in zip(template, segments, strict=True):
        if expected.startswith("{"):
            if not segment:
                return None
            parameters[expected[1:-1]] = segment
        elif expected != segment:
            return None
    return parameters
