"""The OpenAPI document, made of the routes and of the types that they take and answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec

from stepflow_trio.runtime.rest_api.payloads import ErrorResponse
from stepflow_trio.runtime.rest_api.routes import Route

_REFUSALS = (400, 401, 403, 408, 413, 421, 431, 503)
"""What the server in front of the API answers: to whom it does not let in, and to bad HTTP."""

_REF = "#/components/schemas/{name}"


def openapi_document(routes: Iterable[Route], *, path: str, version: str) -> dict[str, Any]:
    """The description, in OpenAPI 3.1, of ``routes`` that are served below ``path``."""
    routes = list(routes)
    types = [type_ for route in routes for type_ in (route.body, route.query, *route.answers.values())]
    named = [type_ for type_ in types if type_ is not None]
    schemas, components = msgspec.json.schema_components(
        [*dict.fromkeys(named), ErrorResponse], ref_template=_REF
    )
    schema_of = dict(zip([*dict.fromkeys(named), ErrorResponse], schemas, strict=True))
    queries = {route.query.__name__ for route in routes if route.query is not None}
    parameters = {name: components[name].get("properties", {}) for name in queries}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation: dict[str, Any] = {
            "operationId": route.operation,
            "summary": route.summary,
            "responses": _responses(route, schema_of),
        }
        given = [_parameter(name, "path", {"type": "string"}) for name in re.findall(r"{(\w+)}", route.path)]
        if route.query is not None:
            properties = parameters[route.query.__name__]
            given += [_parameter(name, "query", schema) for name, schema in properties.items()]
        for name, meaning in route.headers.items():
            given.append({**_parameter(name, "header", {"type": "string"}), "description": meaning})
        if given:
            operation["parameters"] = given
        if route.body is not None:
            content = {"application/json": {"schema": schema_of[route.body]}}
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Stepflow API of stepflow-trio", "version": version},
        "servers": [{"url": path}],
        "paths": paths,
        "components": {
            "schemas": {name: schema for name, schema in components.items() if name not in queries},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


def _parameter(name: str, place: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _responses(route: Route, schema_of: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, type_ in route.answers.items():
        described: dict[str, Any] = {"description": HTTPStatus(status).phrase}
        if type_ is not None:
            described["content"] = {route.media_type: {"schema": schema_of[type_]}}
        responses[str(status)] = described
    for status in sorted({*route.errors, *_REFUSALS, 500}):
        content = {"application/json": {"schema": schema_of[ErrorResponse]}}
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
    return responses
