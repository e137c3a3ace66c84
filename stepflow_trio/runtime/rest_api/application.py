"""The ASGI application: which function serves a request, and what becomes of those that go wrong."""

from __future__ import annotations

import io
import logging
import secrets
from collections.abc import Iterator
from importlib import metadata

import trio

from stepflow_trio.errors import StepflowError
from stepflow_trio.protocol import blobs, codec
from stepflow_trio.protocol.lines import MAX_FRAME_BYTES
from stepflow_trio.runtime.blob_api import BlobApi
from stepflow_trio.runtime.rest_api.errors import ApiError, ClientGone, api_error
from stepflow_trio.runtime.rest_api.events import EventStream, EventStreams
from stepflow_trio.runtime.rest_api.flows import FlowRoutes
from stepflow_trio.runtime.rest_api.openapi import openapi_document
from stepflow_trio.runtime.rest_api.payloads import (
    ErrorResponse,
    EventsQuery,
    GetBlobResponse,
    RunEventInfo,
    StoreBlobRequest,
    StoreBlobResponse,
)
from stepflow_trio.runtime.rest_api.requests import JSON, Answer, Request, json_answer
from stepflow_trio.runtime.rest_api.routes import Route, RouteTable
from stepflow_trio.runtime.rest_api.runs import RunRoutes
from stepflow_trio.runtime.rest_api.server import ServerRoutes
from stepflow_trio.runtime.runtime import Runtime
from stepflow_trio.transports.http.asgi import Receive, Scope, Send

API_PATH = "/api/v1"
"""Where the public releases serve it."""

HEALTH_PATH = f"{API_PATH}/health"
"""For balancers: to be had without a token."""

BODIES_AT_ONCE = 8
"""Bodies that are being received may hold so many times ``max_body_bytes`` together; over it: 503."""

_log = logging.getLogger("stepflow_trio.runtime")


class RestApi:
    """The REST API of a runtime, below ``/api/v1``; ``GET /api/v1/openapi.json`` describes it.

    Errors are ``{code, message}`` with the HTTP status as code. An exception that nobody meant to send is
    logged, and answered with an incident id. The host guards it; it has to take bodies of
    ``max_blob_bytes``, or answers 413 itself.

    Args:
        runtime: what it serves. Its block must outlast the host's.
        max_body_bytes: of a body of JSON.
        max_blob_bytes: of a blob.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        max_body_bytes: int = MAX_FRAME_BYTES,
        max_blob_bytes: int = blobs.MAX_BLOB_BYTES,
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._receiving_bytes = 0
        self._blob_path = f"{API_PATH}/blobs"
        self._blobs = BlobApi(runtime.blob_store, path=self._blob_path, max_blob_bytes=max_blob_bytes)
        self._streams = EventStreams(runtime.history)
        self._table = RouteTable(self._routes(runtime))
        self._document = codec.encode_json(
            openapi_document(self._table.routes, path=API_PATH, version=_version())
        )

    def _routes(self, runtime: Runtime) -> Iterator[Route]:
        yield from ServerRoutes(runtime, version=_version()).routes()
        yield from FlowRoutes(runtime, self._receive_body).routes()
        yield from RunRoutes(runtime, self._receive_body).routes()
        yield Route(
            method="GET",
            path="/runs/{run_id}/events",
            operation="get_run_events",
            summary="What happens in a run, as it happens; resumed behind `Last-Event-ID`",
            handle=self._streams.open,
            query=EventsQuery,
            headers={"Last-Event-ID": "The id of the last event that was received."},
            answers={200: RunEventInfo, 204: None},
            errors=(400, 404),
            media_type="text/event-stream",
        )
        yield Route(
            method="GET",
            path="/openapi.json",
            operation="get_openapi",
            summary="This document",
            handle=self._openapi,
            answers={200: dict},
        )
        yield Route(
            method="POST",
            path="/blobs",
            operation="store_blob",
            summary="Store a blob: JSON, or a body of application/octet-stream itself",
            handle=None,
            body=StoreBlobRequest,
            answers={200: StoreBlobResponse},
            errors=(400, 413, 415, 503),
        )
        yield Route(
            method="GET",
            path="/blobs/{blob_id}",
            operation="get_blob",
            summary="Read a blob as JSON, or with Accept: application/octet-stream as it is",
            handle=None,
            answers={200: GetBlobResponse},
            errors=(404,),
        )

    async def drain(self) -> None:
        """End the event streams that are open, so that they do not hold up the end of their host; for
        ``open_http_host(…, drain=…)``. Whoever read one can go on behind the last event that he has seen.
        """
        self._streams.end()
        await trio.lowlevel.checkpoint()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, for as long as the client stays."""
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == self._blob_path or path.startswith(f"{self._blob_path}/"):
            await self._blobs(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
            if isinstance(answer, Answer):
                await request.answer(answer, send)
            else:
                is_head = request.method == "HEAD"
                stream = answer
                await request.while_connected(lambda: stream.send(send, is_head=is_head))
        except ClientGone:
            pass
        except (OSError, trio.BrokenResourceError) as exc:
            _log.debug("a client went away before it had its answer: %r", exc)

    async def _answer(self, request: Request) -> Answer | EventStream:
        try:
            if not request.path.startswith(f"{API_PATH}/"):
                raise ApiError(404, f"there is nothing at this path: the API is below {API_PATH}/")
            handle, parameters = self._table.find(request.method, request.path.removeprefix(API_PATH))
            request.parameters = parameters
            return await handle(request)
        except ApiError as exc:
            error = exc
        except StepflowError as exc:
            error = api_error(exc) or self._fault(request, exc)
        except (ClientGone, OSError):
            raise
        except Exception as exc:  # noqa: BLE001 — a fault of ours costs this request
            error = self._fault(request, exc)
        payload = ErrorResponse(code=error.status, message=error.message)
        return json_answer(error.status, payload, error.headers)

    @staticmethod
    def _fault(request: Request, exc: Exception) -> ApiError:
        incident = secrets.token_hex(4)
        what = f"{request.method} {request.path[:200]!a}"
        _log.error("%s failed, incident %s", what, incident, exc_info=exc)
        return ApiError(500, f"internal error, incident {incident}: the server's log says more")

    async def _openapi(self, request: Request) -> Answer:
        return Answer(200, self._document, ((b"content-type", JSON),))

    async def _receive_body(self, request: Request) -> bytes:
        announced = request.headers.get(b"content-length", b"")
        too_long = ApiError(413, f"the body is longer than {self._max_body_bytes} bytes")
        if announced.isdigit() and (len(announced) > 18 or int(announced) > self._max_body_bytes):
            raise too_long
        content = io.BytesIO()
        size = 0
        try:
            while not request.received.is_set():
                piece = await request.receive()
                size += len(piece)
                self._receiving_bytes += len(piece)
                if size > self._max_body_bytes:
                    raise too_long
                if self._receiving_bytes > BODIES_AT_ONCE * self._max_body_bytes:
                    retry_after = [(b"retry-after", b"1")]
                    raise ApiError(503, "too much is being sent at once: try again", retry_after)
                content.write(piece)
            return content.getvalue()
        finally:
            self._receiving_bytes -= size

    def __repr__(self) -> str:
        return f"<RestApi {API_PATH}: {len(self._table.routes)} routes>"


def _version() -> str:
    try:
        return metadata.version("stepflow-trio")
    except metadata.PackageNotFoundError:
        return "unknown"
