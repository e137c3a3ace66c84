"""How a runtime reaches a worker over HTTP: with plain POSTs, or in a session."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, get_args

import trio

from stepflow_trio.engine.ending import one_exception
from stepflow_trio.engine.link import Link
from stepflow_trio.errors import ConnectionLost, LossReason, RemoteProtocolError
from stepflow_trio.protocol import codec, dialects
from stepflow_trio.protocol.sse import escape_non_ascii
from stepflow_trio.transports.http.bearer import BearerTokens, SecretStr
from stepflow_trio.transports.http.client import HttpClient, open_http_client
from stepflow_trio.transports.http.events import OPENING_TIMEOUT_S, EventStream, Opening
from stepflow_trio.transports.http.limits import HttpClientLimits
from stepflow_trio.transports.http.post_link import Headers, PostLink, shown_answer
from stepflow_trio.transports.http.session_link import SessionLink
from stepflow_trio.transports.http.urls import HttpUrl

SessionMode: TypeAlias = Literal["never", "auto", "always"]
"""Whether to open a session: ``auto`` does where the worker has sessions in which lines may be sent, and
``always`` wherever it has any. Both fall back to plain POSTs. A session belongs to one instance of the
worker: a balancer must keep to that."""


class HttpLink(Link, Protocol):
    """A link over HTTP."""

    @property
    def is_suspect(self) -> bool:
        """Whether new calls should go over a new link: what was agreed on over this one may not hold."""
        ...


@asynccontextmanager
async def open_http_link(
    url: str | HttpUrl,
    *,
    capabilities: Mapping[str, Any],
    sessions: SessionMode = "auto",
    limits: HttpClientLimits | None = None,
    tls: ssl.SSLContext | None = None,
    bearer: SecretStr | BearerTokens | str | None = None,
    connect: Callable[[], Awaitable[trio.abc.Stream]] | None = None,
    instances: set[bytes] | None = None,
) -> AsyncGenerator[HttpLink]:
    """Reach the worker at ``url`` for as long as the block lasts; leaving it closes every connection.

    Args:
        url: the worker's endpoint.
        capabilities: what the runtime says of itself, repeated with every request.
        sessions: whether to open a session.
        limits: the bounds of the client.
        tls: how to check the server, for ``https``: what ``client_ssl_context`` makes.
        bearer: the token to authenticate with; of several, the current one with each request.
        connect: opens a stream to the worker, where that is not a connection to the address in ``url``.
        instances: the worker's instances that are known, to which others are added; one that is not among
            them makes the link suspect, for it was not initialized.

    Raises:
        ValueError: ``sessions`` is none of its modes.
        ConfigError: ``url``, ``tls`` or ``bearer`` cannot be used.
        ConnectionLost: the worker cannot be reached; only where a session is tried.
        RemoteProtocolError: it opens a session, but not as the specification says.
    """
    if sessions not in get_args(SessionMode):
        raise ValueError(f"sessions is {sessions!r}; it must be one of {', '.join(get_args(SessionMode))}")
    limits = limits or HttpClientLimits()
    said = escape_non_ascii(codec.encode_json(dict(capabilities)))
    headers: Headers = [(b"stepflow-capabilities", said)]
    to_worker = partial(open_http_client, url, limits=limits, tls=tls, bearer=bearer, connect=connect)
    # Apart, or requests that wait for the answers to their callbacks could take every connection there is.
    async with to_worker() as client, to_worker() as short_client:
        path = client.url.path
        if sessions != "never":
            async with _open_session(client, path, headers, limits) as opened:
                if opened is not None and (sessions == "always" or dialects.BATCH in opened[1].extensions):
                    stream, opening, instance = opened
                    target = path.rstrip("/") + _session_target(opening)
                    headers += instance
                    if dialects.BATCH in opening.extensions:
                        yield SessionLink(
                            short_client,
                            target=target,
                            headers=headers,
                            stream=stream,
                            max_post_bytes=opening.max_post_bytes or limits.max_body_bytes,
                        )
                    else:
                        async with _open_post_link(
                            client, short_client, target, headers, limits, stream
                        ) as link:
                            yield link
                    return
        async with _open_post_link(client, short_client, path, headers, limits, None, instances) as link:
            yield link


@asynccontextmanager
async def _open_session(
    client: HttpClient, path: str, headers: Headers, limits: HttpClientLimits
) -> AsyncGenerator[tuple[EventStream, Opening, Headers] | None]:
    """Open a session; None where the worker has none. With it come headers for what is sent in it."""
    asked = [(b"accept", b"text/event-stream"), *headers]
    events = path.rstrip("/") + "/runtime/events"
    with trio.CancelScope(deadline=trio.current_time() + OPENING_TIMEOUT_S) as opening_scope:
        async with client.request("GET", events, headers=asked) as response:
            if response.status == 200 and response.headers.media_type == b"text/event-stream":
                stream = EventStream(response, max_event_bytes=limits.max_event_bytes)
                opening = await stream.read_opening()
                opening_scope.deadline = math.inf
                instance_id = response.headers.get(b"stepflow-instance-id")
                # A balancer leads to the session's own instance what says this.
                instance = [] if instance_id is None else [(b"stepflow-instance-id", instance_id)]
                yield stream, opening, instance
                return
            body = await response.read(limits.max_header_bytes)
            if response.status not in (404, 405, 406, 501):
                said = f"{client.url} refused a session: {shown_answer(response.status, body)}"
                raise RemoteProtocolError(said, data={"status": response.status})
    if opening_scope.cancelled_caught:
        detail = f"the worker opened no session within {OPENING_TIMEOUT_S:g} s"
        raise ConnectionLost(LossReason.STREAM_ERROR, detail)
    yield None


@asynccontextmanager
async def _open_post_link(
    client: HttpClient,
    short_client: HttpClient,
    target: str,
    headers: Headers,
    limits: HttpClientLimits,
    stream: EventStream | None,
    instances: set[bytes] | None = None,
) -> AsyncGenerator[PostLink]:
    with one_exception():
        async with trio.open_nursery() as nursery:
            link = PostLink(
                client,
                short_client,
                target=target,
                headers=headers,
                nursery=nursery,
                max_event_bytes=limits.max_event_bytes,
                has_session=stream is not None,
                instances=instances,
            )
            if stream is not None:
                nursery.start_soon(_carry, stream, link)
            try:
                yield link
            finally:
                nursery.cancel_scope.cancel(reason="the link is closed")


async def _carry(stream: EventStream, link: PostLink) -> None:
    """Hand over what a session's stream brings; the link ends with it."""
    try:
        while True:
            link.arrive(*await stream.receive())
    except ConnectionLost as exc:
        link.fail(trio.BrokenResourceError(str(exc)))


def _session_target(opening: Opening) -> str:
    """Where to POST to, relative to the worker's URL.

    Raises:
        RemoteProtocolError: it is on another server.
    """
    if not opening.endpoint.startswith("/") or opening.endpoint.startswith("//"):
        raise RemoteProtocolError(f"the session's endpoint {opening.endpoint!r:.200} is not on this server")
    return opening.endpoint
